//! From a database to segments and a page map: reads every page, hashes it, and keeps what changed.
//!
//! May depend on `repo` and `format`. The pages go through once, in order. While a transaction is held, those that
//! changed are only put aside; what becomes of them is worked out after its end (`segmenter`).

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::older::{LeavesRead, OlderMap};
use super::segmenter::Segmenter;
use super::spool::{Room, Spool};
use super::sqlite::{Database, PageObserver, Refusal};
use crate::error::{Error, Result};
use crate::format::facts::Facts;
use crate::format::pagemap::LEAF_PAGES;
use crate::id::{BlobId, PageHash};
use crate::repo::Repository;
use crate::report::{Reporter, Severity};

/// Read and hashed at a time, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// How long a transaction is held at most once changed pages have no room to wait in, and are stored while it lasts.
const MAX_WITHOUT_ROOM: Duration = Duration::from_secs(600);

/// Pages that the repository may not have yet.
pub struct NewSegment {
    /// The segment's id.
    pub id: BlobId,
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The pages, one after the other.
    pub pages: Vec<u8>,
    /// Their hashes.
    pub hashes: Vec<PageHash>,
    /// The segment and slot of each page's older version; empty if the pages are to be stored in full.
    pub older: Vec<Option<(BlobId, u8)>>,
    /// These older versions, one after the other.
    pub base_pages: Vec<u8>,
}

/// Takes what a capture finds.
pub trait Sink {
    /// Stores a segment unless it is there.
    ///
    /// # Errors
    /// When storing has failed.
    fn segment(&mut self, segment: NewSegment) -> Result<()>;

    /// Stores a part of the page map unless it is there.
    ///
    /// # Errors
    /// When storing has failed.
    fn map(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<()>;
}

/// Why a capture ended without a result.
pub enum Stop {
    /// The database can't be captured.
    Refused(Refusal),
    /// The run as a whole has failed.
    Failed(Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A captured database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Root of the page map.
    pub map: BlobId,
    /// Length of the database, in bytes.
    pub bytes: u64,
    /// What it says of itself.
    pub facts: Facts,
}

/// Captures a database; `older` is the root of its previous version's map. While a transaction is held, changed pages go
/// to `spool`, and what they become reaches `sink` after its end.
///
/// # Errors
/// [`Stop::Refused`] if the database can't be captured, changed while it was read included.
pub fn capture(
    repo: &Repository,
    db: Database,
    older: Option<&BlobId>,
    sink: &mut dyn Sink,
    mut spool: Spool,
    reporter: &Reporter,
) -> Result<Captured, Stop> {
    let (page_bytes, pages, is_held) = (db.header().page_bytes, db.pages(), db.is_held());
    if pages == 0 {
        return Err(Refusal::NotADatabase("it has no pages".into()).into());
    }
    let leaves_read = LeavesRead::default();
    let mut older_map = OlderMap::new(repo, page_bytes, older, &leaves_read);
    let mut segmenter = Segmenter::new(repo, pages, OlderMap::new(repo, page_bytes, older, &leaves_read), page_bytes);
    let mut direct = Direct { segmenter: &mut segmenter, sink: &mut *sink, limit: None };
    let read = if is_held {
        let mut held = Held { spool: &mut spool, direct, reporter, is_full: false };
        read(repo, &db, &mut older_map, &mut held, reporter)
    } else {
        read(repo, &db, &mut older_map, &mut direct, reporter)
    };
    // The transaction ends before anything is compressed or stored, and also if reading failed.
    let sound = db.finish();
    let (file_hash, facts) = read?;
    if !sound? {
        return Err(Refusal::Busy("it changed while it was read".into()).into());
    }
    spool.drain(|number, hash, page| {
        reporter.check_interrupt()?;
        segmenter.page(number, hash, page, sink)
    })?;
    let map = segmenter.finish(&file_hash, older_map.into_kept(), sink)?;
    Ok(Captured { map, bytes: pages * u64::from(page_bytes), facts })
}

/// Takes changed pages while a database is read.
trait Changes {
    fn page(&mut self, number: u64, hash: &PageHash, page: &[u8]) -> Result<()>;

    /// When reading must have ended.
    fn limit(&self) -> Option<Instant>;
}

/// Works on them at once.
struct Direct<'a, 'r> {
    segmenter: &'a mut Segmenter<'r>,
    sink: &'a mut dyn Sink,
    limit: Option<Instant>,
}

impl Changes for Direct<'_, '_> {
    fn page(&mut self, number: u64, hash: &PageHash, page: &[u8]) -> Result<()> {
        self.segmenter.page(number, hash, page, self.sink)
    }

    fn limit(&self) -> Option<Instant> {
        self.limit
    }
}

/// Puts them aside as long as there is room.
struct Held<'a, 'r> {
    spool: &'a mut Spool,
    direct: Direct<'a, 'r>,
    reporter: &'a Reporter,
    is_full: bool,
}

impl Changes for Held<'_, '_> {
    fn page(&mut self, number: u64, hash: &PageHash, page: &[u8]) -> Result<()> {
        if !self.is_full {
            if self.spool.push(number, hash, page)? == Room::Enough {
                return Ok(());
            }
            self.is_full = true;
            self.direct.limit = Some(Instant::now() + MAX_WITHOUT_ROOM);
            self.reporter.warn(
                Severity::Note,
                self.spool.folder().display(),
                format!(
                    "there is no room for the changed pages of a database; they are stored while its transaction is \
                     held, for {} minutes at most",
                    MAX_WITHOUT_ROOM.as_secs() / 60
                ),
            );
            self.spool.drain(|number, hash, page| self.direct.page(number, hash, page))?;
        }
        self.direct.page(number, hash, page)
    }

    fn limit(&self) -> Option<Instant> {
        self.direct.limit
    }
}

/// Reads and hashes all pages, and hands on those that changed. Returns the hash of the whole file, and what it says of
/// itself.
fn read(
    repo: &Repository,
    db: &Database,
    older: &mut OlderMap<'_>,
    changes: &mut dyn Changes,
    reporter: &Reporter,
) -> Result<(blake3::Hash, Facts), Stop> {
    let page_bytes = db.header().page_bytes as usize;
    let batch_pages = (BATCH_BYTES / page_bytes).min(LEAF_PAGES) as u64;
    let mut whole = blake3::Hasher::new();
    let mut observer = PageObserver::new(db.header().page_bytes, db.pages());
    let mut buffer = Vec::new();
    let mut first = 0;
    while first < db.pages() {
        reporter.check_interrupt()?;
        if changes.limit().is_some_and(|limit| Instant::now() > limit) {
            let why = "its pages have nowhere to wait, and storing them takes too long for its transaction to be held";
            return Err(Refusal::Busy(why.into()).into());
        }
        let leaf_end = (first / LEAF_PAGES as u64 + 1) * LEAF_PAGES as u64;
        let end = (first + batch_pages).min(leaf_end).min(db.pages());
        db.read(first, (end - first) as usize, &mut buffer)?;
        let hash = |page: &[u8]| repo.keys().page_hash(page);
        let hashes: Vec<PageHash> = buffer.par_chunks(page_bytes).map(hash).collect();
        whole.update_rayon(&buffer);
        observer.see(first, &buffer);
        let leaf = older.leaf((first / LEAF_PAGES as u64) as usize);
        for (number, (page, hash)) in (first..).zip(buffer.chunks_exact(page_bytes).zip(&hashes)) {
            let in_leaf = (number % LEAF_PAGES as u64) as usize;
            if leaf.as_ref().is_none_or(|leaf| !older.has(leaf, in_leaf, hash)) {
                changes.page(number, hash, page)?;
            }
        }
        reporter.advance_read(buffer.len() as u64, 0);
        first = end;
    }
    let facts = observer.finish(|page| db.page(page))?;
    Ok((whole.finalize(), facts))
}
