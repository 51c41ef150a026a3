//! What all parts of a restore share, and how a file that can't be restored is dealt with.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::{Options, display};
use crate::error::{Error, Result};
use crate::repo::Repository;
use crate::report::{Problem, Reporter, Severity};
use crate::source::attributes::Attributes;

pub(super) struct Context<'a> {
    pub repo: &'a Repository,
    pub options: &'a Options,
    pub reporter: &'a Reporter,
    pub attributes: Attributes<'a>,
    /// Regular files restored.
    pub files: AtomicU64,
    /// Bytes written.
    pub bytes: AtomicU64,
}

impl<'a> Context<'a> {
    pub(super) fn new(repo: &'a Repository, options: &'a Options, reporter: &'a Reporter) -> Self {
        let attributes = Attributes::new(reporter);
        Self { repo, options, reporter, attributes, files: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Reports that something was not restored, and lets the rest go on.
    ///
    /// # Errors
    /// What ends the whole restore: an interrupt, and a target that is full.
    pub(super) fn lose(&self, path: &Path, error: Error) -> Result<()> {
        let why = match &error {
            Error::Interrupted => return Err(error),
            Error::File { error: io, .. } if is_full(io) => return Err(error),
            Error::File { action, path: at, error: io } if at == path => format!("cannot {action} it: {io}"),
            _ => error.to_string(),
        };
        self.reporter.problem(Problem {
            severity: Severity::Restore,
            what: display(path),
            why: format!("not restored: {why}"),
            hint: error.hint().map(str::to_owned),
        });
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
