//! What all parts of a restore share, what they count, and how a file that can't be restored is dealt with.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::Stat;

use super::database::read_back;
use super::resume::Resumed;
use super::{Options, Overwrite, Summary, display};
use crate::error::{Error, Result};
use crate::format::tree::Node;
use crate::repo::Repository;
use crate::report::{Problem, Reporter, Severity};
use crate::source::attributes::Attributes;
use crate::source::owners::Owners;

/// A number that several threads count up.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn take_back(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was done so far.
#[derive(Default)]
pub(super) struct Tally {
    /// Regular files restored.
    pub files: Count,
    /// Bytes written, or found to be there already in what is written.
    pub bytes: Count,
    /// Of these, bytes that came from the repository.
    pub fetched: Count,
    /// Of these, bytes that local files had.
    pub reused: Count,
    /// Names left as they are.
    pub kept: Count,
    /// Names of which only attributes were set.
    pub metadata: Count,
    /// Files that were read back.
    pub verified: Count,
}

/// What a file is and whether it was changed: device, inode, size, and change time in seconds and nanoseconds.
type State = (u64, u64, i64, i64, i64);

pub(super) struct Context<'a> {
    pub repo: &'a Repository,
    pub options: &'a Options,
    pub reporter: &'a Reporter,
    pub attributes: Attributes,
    /// What happens to what is there.
    pub overwrite: Overwrite,
    /// Whether local content is looked at where size and time are those in the snapshot.
    pub compares_content: bool,
    /// When the restore that this one goes on with was begun, in seconds and nanoseconds.
    pub resumed: Option<(i64, i64)>,
    /// Whether the totals of the progress were known from the beginning.
    pub totals_known: bool,
    pub tally: Tally,
    /// Whether this is a look before the restore: nothing is changed, and what can't be restored is not reported yet.
    pub looks: AtomicBool,
    /// Hashes of databases that are there: a look before the restore and the restore itself read them once.
    hashes: Mutex<HashMap<State, blake3::Hash>>,
    sockets: Mutex<(u64, PathBuf)>,
}

impl<'a> Context<'a> {
    pub(super) fn new(repo: &'a Repository, options: &'a Options, reporter: &'a Reporter, owners: Owners) -> Self {
        Self {
            repo,
            options,
            reporter,
            attributes: Attributes::new(owners),
            overwrite: options.mode(),
            compares_content: options.verify_content,
            resumed: None,
            totals_known: false,
            tally: Tally::default(),
            looks: AtomicBool::new(options.dry_run),
            hashes: Mutex::default(),
            sockets: Mutex::default(),
        }
    }

    /// Goes on with another restore, if there is one to go on with.
    pub(super) fn go_on(&mut self, resumed: Option<&Resumed>) {
        self.compares_content |= resumed.is_some_and(|resumed| resumed.is_of_another_boot);
        self.resumed = resumed.map(|resumed| resumed.since);
    }

    /// Whether this is a dry run, or a look before the restore.
    pub(super) fn is_looking(&self) -> bool {
        self.looks.load(Ordering::Relaxed)
    }

    /// The hash of a file that is there.
    pub(super) fn hash_of(&self, file: &OwnedFd, path: &Path) -> Result<blake3::Hash> {
        let stat = rustix::fs::fstat(file).map_err(|e| Error::file("inspect", path, e))?;
        let ctime = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
        let key = (stat.st_dev, stat.st_ino, stat.st_size, ctime.0, ctime.1);
        if let Some(hash) = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*hash);
        }
        let hash = read_back(self, file, path, stat.st_size.unsigned_abs())?;
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, hash);
        Ok(hash)
    }

    /// Completes a summary by what was counted.
    pub(super) fn counted(&self, summary: Summary) -> Summary {
        Summary {
            files: self.tally.files.get(),
            bytes: self.tally.bytes.get(),
            fetched: self.tally.fetched.get(),
            reused: self.tally.reused.get(),
            skipped: self.tally.kept.get(),
            metadata: self.tally.metadata.get(),
            verified_files: self.tally.verified.get(),
            resumed: self.resumed.is_some(),
            ..summary
        }
    }

    /// Whether a file that is to be written whatever it holds was written by the run that this one goes on with: its
    /// change time is of after that run's begin.
    pub(super) fn is_of_this_restore(&self, stat: &Stat) -> bool {
        self.resumed.is_some_and(|since| (stat.st_ctime, stat.st_ctime_nsec.cast_signed()) >= since)
    }

    /// Leaves a file whose content is right, and sets its attributes if they aren't.
    pub(super) fn keep(&self, file: &OwnedFd, node: &Node, path: impl Fn() -> PathBuf) {
        let changed = self.attributes.apply_over(file, node, path);
        if changed { self.tally.metadata.add(1) } else { self.tally.kept.add(1) }
    }

    /// Counts a socket, which is not restored.
    pub(super) fn skip_socket(&self, path: PathBuf) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if sockets.0 == 0 {
            sockets.1 = path;
        }
        sockets.0 += 1;
    }

    /// Reports what was only counted.
    pub(super) fn report(&self) {
        self.attributes.report(self.reporter);
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match sockets.0 {
            0 => return,
            1 => "a socket is not restored: the program that listens makes it".to_owned(),
            n => {
                format!("{n} sockets, of which this is the first, are not restored: the programs that listen make them")
            }
        };
        self.reporter.warn(Severity::Note, display(&sockets.1), why);
    }

    /// Reports that something was not restored, and lets the rest go on.
    ///
    /// # Errors
    /// What ends the whole restore: an interrupt, a target that is full, another restore at work in it, a server that is
    /// gone.
    pub(super) fn lose(&self, path: &Path, error: Error) -> Result<()> {
        let error = if matches!(error, Error::Remote { .. }) { self.repo.only_this_object(error)? } else { error };
        let why = match &error {
            Error::Interrupted | Error::Locked { .. } => return Err(error),
            Error::File { error: io, .. } if is_full(io) => return Err(error),
            _ if self.is_looking() && !self.options.dry_run => return Ok(()),
            Error::File { action, path: at, error: io } if at == path => format!("cannot {action} it: {io}"),
            _ => error.to_string(),
        };
        let is_forbidden =
            matches!(&error, Error::File { error, .. } if error.kind() == io::ErrorKind::PermissionDenied);
        let hint = error.hint().map(str::to_owned);
        self.reporter.problem(Problem {
            severity: Severity::Restore,
            what: display(path),
            why: format!("not restored: {why}"),
            hint: hint
                .or_else(|| is_forbidden.then(|| "see who may write there, and `lsattr` for what is immutable".into())),
        });
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
