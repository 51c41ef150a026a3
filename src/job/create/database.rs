//! Databases within a create: recognising them, skipping unchanged ones, capturing the others.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::RACY_SECS;
use super::pipeline::{Event, Work};
use super::walk::{Entry, Walker};
use crate::clock;
use crate::error::Result;
use crate::format::cbor::Time;
use crate::format::tree::{Database as Record, Node, NodeKind, WalStamp};
use crate::id::BlobId;
use crate::report::{Problem, Severity};
use crate::source::capture::{Captured, NewSegment, Sink, Stop, capture};
use crate::source::spool::Spool;
use crate::source::sqlite::{
    Database, HEADER_BYTES, Header, Refusal, SIDECARS, has_magic, is_journal_pending, sidecar, wal_stamp,
};
use crate::source::stat;

/// Smallest page size, and so a divisor of every database's length.
const SMALLEST_PAGE_BYTES: u64 = 512;
/// A database that keeps changing while nobody seems to use it is tried this often, then read under a lock.
const QUIET_TRIES: usize = 2;
/// A capture under a lock fails only where the database is replaced meanwhile, or written to by somebody who ignores
/// or has all locks.
const HELD_TRIES: usize = 5;

/// The name of the database that a sidecar's name belongs to.
pub fn sidecar_owner(name: &[u8]) -> Option<&[u8]> {
    SIDECARS.iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes()))
}

/// Sends what a capture finds down the pipeline.
struct Feeding<'w, 'a> {
    walker: &'w mut Walker<'a>,
}

impl Sink for Feeding<'_, '_> {
    fn segment(&mut self, segment: NewSegment) -> Result<()> {
        if self.walker.claims.claim(segment.id) {
            let ticket = self.walker.feeder.submit(Work::Segment(segment))?;
            self.walker.feeder.event(Event::Segment(ticket))?;
        }
        Ok(())
    }

    fn map(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<()> {
        Ok(self.walker.feeder.event(Event::Map(id, bytes))?)
    }
}

impl Walker<'_> {
    /// Whether an entry is worth a closer look: of a database's length, not known to be something else, and a database
    /// in the previous generation or beginning like one.
    pub(super) fn may_be_database(&self, entry: &Entry, older: Option<&Node>) -> bool {
        let size = entry.meta.size();
        // Of the other lengths, a small file is looked at when it is read anyway; a large one, which a crash may have
        // cut or left half extended, is opened once more.
        let can_be = size.is_multiple_of(SMALLEST_PAGE_BYTES) || size > self.chunker.min_bytes() as u64;
        if entry.node.kind != NodeKind::File || size < SMALLEST_PAGE_BYTES || !can_be {
            return false;
        }
        if older.is_some_and(|node| node.database.is_some()) {
            return true;
        }
        let is_known =
            older.is_some_and(|o| o.kind == NodeKind::File && o.unverified.is_none() && same_stat(o, &entry.node));
        !is_known && read_start(&entry.path).is_some()
    }

    /// The complete node of an entry, if it is a database that was captured or is unchanged. One that can't be captured
    /// is left to be stored as a plain file with its sidecars, and reported.
    pub(super) fn database(&mut self, entry: &mut Entry, older: Option<&Node>) -> Result<Option<Node>> {
        if !self.may_be_database(entry, older) || self.is_further_name(&entry.node) {
            return Ok(None);
        }
        let older_record = older.and_then(|node| node.database.as_ref());
        if let (Some(older), Some(record)) = (older, older_record)
            && self.is_unchanged_database(entry, older, record)
        {
            self.reporter.advance(older.size.unwrap_or(0), 1);
            let (size, database) = (older.size, older.database.clone());
            let xattrs = older.xattrs.clone();
            return Ok(Some(Node { kind: NodeKind::Database, size, database, xattrs, ..entry.node.clone() }));
        }
        let Some(start) = read_start(&entry.path) else { return Ok(None) };
        self.reporter.current(|| entry.path.display().to_string());
        let outcome = match Header::parse(&start) {
            Ok(_) => self.capture(entry, older_record),
            Err(why) => Err(Stop::Refused(Refusal::NotADatabase(why.into()))),
        };
        match outcome {
            Ok((captured, record)) => {
                let mut node = entry.node.clone();
                self.add_xattrs(&entry.path, &mut node);
                (node.kind, node.size, node.database) = (NodeKind::Database, Some(captured.bytes), Some(record));
                self.reporter.advance(0, 1);
                Ok(Some(node))
            }
            Err(Stop::Failed(e)) => Err(e),
            Err(Stop::Refused(refusal)) => {
                entry.node.unverified = Some(self.store_plain(entry, &refusal));
                Ok(None)
            }
        }
    }

    /// Reports why a database is stored as a plain file.
    fn store_plain(&self, entry: &Entry, refusal: &Refusal) -> String {
        let (severity, why) = match refusal {
            Refusal::NotADatabase(why) => (Severity::Note, why.as_str()),
            Refusal::Busy(why) => (Severity::Source, why.as_str()),
            Refusal::Slow => {
                (Severity::Source, "reading it would hold up its writers for longer than --max-lock allows")
            }
        };
        self.reporter.problem(Problem {
            severity,
            what: entry.path.display().to_string(),
            why: format!("stored as a plain file, unverified: {why}"),
            hint: (severity == Severity::Source).then(|| "run again when its application is idle".into()),
        });
        why.to_owned()
    }

    fn capture(&mut self, entry: &Entry, older: Option<&Record>) -> Result<(Captured, Record), Stop> {
        let quiet_tries = if stat::is_local(&entry.path) { QUIET_TRIES } else { 0 };
        let mut last = Refusal::Busy("it changes all the time".into());
        for attempt in 0..quiet_tries + HELD_TRIES {
            let captured = clock::now();
            let db = if attempt < quiet_tries {
                match Database::quiet(&entry.path)? {
                    Some(db) => db,
                    None => continue,
                }
            } else {
                Database::held(&entry.path, self.options.max_lock)?
            };
            let mut record = Record {
                map: BlobId([0; 32]),
                captured,
                device: entry.meta.dev(),
                wal: db.log_stamp().cloned(),
                wal_mode: db.header().wal_mode,
                file_bytes: db.main_bytes(),
                facts: None,
            };
            let spool = Spool::new(self.options.spool_dir.clone(), db.header().page_bytes);
            let (repo, reporter) = (self.repo, self.reporter);
            let mut sink = Feeding { walker: self };
            let result = capture(repo, db, older.map(|o| &o.map), &mut sink, spool, reporter);
            match result {
                Ok(captured) => {
                    record.map = captured.map;
                    record.facts = Some(captured.facts.clone());
                    return Ok((captured, record));
                }
                Err(Stop::Refused(why @ Refusal::Busy(_))) => last = why,
                Err(stop) => return Err(stop),
            }
        }
        Err(last.into())
    }

    /// Whether a database is certainly as it was captured, so that it need not be read: same file and same stat, the
    /// log or the hot journal as it was, everything at least two seconds older than that capture, on a local file system,
    /// and every blob of it can be relied on.
    fn is_unchanged_database(&self, entry: &Entry, older: &Node, record: &Record) -> bool {
        let unchanged = same_stat(&Node { size: Some(record.file_bytes), ..older.clone() }, &entry.node)
            && record.device == entry.meta.dev()
            && is_settled(&[Some(older.mtime), older.ctime], record.captured)
            && sidecars_match(&entry.path, record)
            && stat::is_local(&entry.path);
        unchanged && self.repo.is_map_usable(&record.map)
    }
}

/// The header of a file that says it is a database.
fn read_start(path: &Path) -> Option<[u8; HEADER_BYTES]> {
    let mut start = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut start, 0));
    (read.is_ok() && has_magic(&start)).then_some(start)
}

fn same_stat(older: &Node, now: &Node) -> bool {
    (older.size, older.mtime, older.ctime, older.inode) == (now.size, now.mtime, now.ctime, now.inode)
}

fn is_settled(times: &[Option<Time>], captured: Time) -> bool {
    times.iter().all(|t| t.is_some_and(|t| t.secs + RACY_SECS <= captured.secs))
}

/// Whether what lies beside the main file is what its pages were taken from at the capture. A journal that was done with
/// (`journal_mode` TRUNCATE and PERSIST leave it) says nothing.
fn sidecars_match(path: &Path, record: &Record) -> bool {
    let Ok(is_interrupted) = is_journal_pending(&sidecar(path, "-journal")) else { return false };
    let found = match File::open(sidecar(path, if is_interrupted { "-journal" } else { "-wal" })) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.and_then(|file| wal_stamp(&file)),
    };
    let settled = |w: &WalStamp| is_settled(&[Some(w.mtime), Some(w.ctime)], record.captured);
    // What is in rollback-journal mode has a log only where the journal was hot.
    let is_same_kind = record.wal.is_none() || is_interrupted != record.wal_mode;
    is_same_kind && found.is_ok_and(|now| now == record.wal && now.as_ref().is_none_or(settled))
}
