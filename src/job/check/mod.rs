//! `check`: is everything there that the snapshots need, and is it what it should be?
//!
//! A check goes the way of a reader: snapshots, index, packs, then from each snapshot's tree down to the last page of
//! a database, and back up with what is lost, so that every damaged object is reported once, with what it costs and
//! which command mends it. It never stops at a problem; only a store that doesn't answer at all ends it.

mod advice;
mod control;
mod databases;
mod loss;
mod packs;
mod pages;
pub mod references;
mod structure;

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::backend::layout;
use crate::error::{Error, Result};
use crate::index::BlobIndex;
use crate::repo::{Proven, Repository};
use crate::report::{Problem, Reporter, Severity};

pub use advice::what_to_do;
use packs::Packs;
use structure::Walk;

/// How many index files are in memory at once, beside the index that they are merged into.
const INDEX_FILES_AT_ONCE: usize = 8;

/// How much of the packs' data is read and verified. Subsets are made of whole packs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReadData {
    /// None: structure, index and the packs' directories only.
    None,
    /// Everything.
    All,
    /// About this many hundredths of the bytes, another random choice each time.
    Percent(f64),
    /// Part `n` of `of`, the same each time: parts 1 to `of` together are everything.
    Part {
        /// Which part, from 1.
        n: u32,
        /// Of how many.
        of: u32,
    },
    /// About this many bytes, another random choice each time.
    Bytes(u64),
}

/// What to check.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much data to read.
    pub read_data: ReadData,
    /// Whether to rebuild every database and let SQLite check it.
    pub databases: bool,
    /// Where databases are rebuilt, one at a time: needs room for the largest.
    pub scratch: PathBuf,
    /// Where it is remembered which packs were decoded and found sound, so that the next check only hashes them.
    pub memory: Option<PathBuf>,
}

/// What was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Snapshots that could be read.
    pub snapshots: u64,
    /// Different tree blobs.
    pub trees: u64,
    /// Different blobs in the packs.
    pub blobs: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Bytes of packs that were read whole.
    pub bytes_read: u64,
    /// Bytes of those that were decoded too; the others were before, and their hashes show that they are the same.
    pub bytes_decoded: u64,
    /// Different database generations whose page maps were followed.
    pub databases: u64,
    /// Of these, how many were rebuilt and given to SQLite.
    pub databases_rebuilt: u64,
    /// Problems of severity [`Severity::Damage`].
    pub problems: u64,
}

/// Checks a repository and reports every problem. Loads the index itself.
///
/// # Errors
/// [`Error::Usage`] for a subset that makes no sense, and when the store doesn't answer. Damage is no error: it is
/// reported as [`Severity::Damage`].
pub fn run(repo: &Arc<Repository>, options: &Options, reporter: &Reporter) -> Result<Summary> {
    options.read_data.validate()?;
    let before = damages(reporter);
    // The way of a reader: whatever a snapshot needs was in the index, and in a pack, before the snapshot was.
    let snapshots = control::check(repo, reporter)?;
    let index_files = load_index(repo, reporter)?;
    let listed = control::list_all(repo, reporter)?;
    let mut packs = Packs::check(repo, &listed, reporter)?;
    let mut summary = Summary {
        snapshots: snapshots.len() as u64,
        packs: listed.len() as u64,
        blobs: repo.index().len() as u64,
        ..Summary::default()
    };
    let mut proven = options.memory.as_ref().map_or_else(Proven::default, |folder| Proven::load(repo, folder));
    let read = packs.read_data(repo, &listed, options.read_data, &mut proven, reporter)?;
    (summary.bytes_read, summary.bytes_decoded) = (read.bytes, read.bytes_decoded);
    if let Err(e) = proven.save(&listed) {
        reporter.warn(Severity::Note, "the cache", format!("{e}; the next check reads everything anew"));
    }

    let mut walk = Walk::new(repo, reporter, &mut packs);
    for named in &snapshots {
        reporter.current(|| format!("snapshot {}", named.id.short()));
        walk.snapshot(named)?;
    }
    (summary.trees, summary.databases) = (walk.tree_count(), walk.databases.len() as u64);
    let (databases, losses) = walk.finish();
    loss::report(repo, &packs, &losses, &snapshots, &index_files, reporter)?;
    if options.databases {
        summary.databases_rebuilt = databases::check(repo, &databases, &options.scratch, reporter)?;
    }
    summary.problems = damages(reporter) - before;
    Ok(summary)
}

impl ReadData {
    fn validate(self) -> Result<()> {
        match self {
            Self::Percent(p) if !(p > 0.0 && p <= 100.0) => {
                Err(Error::Usage("a percentage of data to read lies above 0 and up to 100".into()))
            }
            Self::Part { n, of } if !(1..=of).contains(&n) => {
                Err(Error::Usage(format!("there is no part {n} of {of}: parts are counted from 1")))
            }
            _ => Ok(()),
        }
    }
}

/// Loads all index files into memory and returns their paths. Those that can't be used are reported.
fn load_index(repo: &Repository, reporter: &Reporter) -> Result<Vec<String>> {
    let listed = repo.backend().list(layout::INDEX)?;
    let mut index = BlobIndex::default();
    let mut loaded = Vec::new();
    for some in listed.chunks(INDEX_FILES_AT_ONCE) {
        reporter.check_interrupt()?;
        let opened: Vec<_> = some.par_iter().map(|l| repo.open_index(&l.path)).collect();
        for (listed, opened) in some.iter().zip(opened) {
            match opened {
                Ok(part) => {
                    index.add(part);
                    loaded.push(listed.path.clone());
                }
                Err(Error::Missing { .. }) => note(
                    reporter,
                    &listed.path,
                    "it was replaced while the check began, so that other problems may be due to that",
                    "run `snapshot check` again when no prune is running",
                ),
                Err(e) => damage(
                    reporter,
                    &listed.path,
                    format!(
                        "{}; nothing is lost, but until it is mended commands read every pack that it described",
                        reason(&repo.only_this_object(e)?)
                    ),
                    "run `snapshot repair index`, which builds the index anew from the packs",
                ),
            }
        }
    }
    // Records of condemned packs are checked with the control objects; here they only order the places of blobs.
    let condemned = repo.condemned(&Reporter::silent()).or_else(|e| repo.only_this_object(e).map(|_| Vec::new()))?;
    index.condemn(condemned.into_iter().flat_map(|c| c.record.packs));
    repo.replace_index(index);
    Ok(loaded)
}

fn damages(reporter: &Reporter) -> u64 {
    reporter.problems().iter().filter(|p| p.severity == Severity::Damage).count() as u64
}

fn problem(reporter: &Reporter, severity: Severity, what: &str, why: impl Into<String>, hint: impl Into<String>) {
    reporter.problem(Problem { severity, what: what.into(), why: why.into(), hint: Some(hint.into()) });
}

fn damage(reporter: &Reporter, what: &str, why: impl Into<String>, hint: impl Into<String>) {
    problem(reporter, Severity::Damage, what, why, hint);
}

fn note(reporter: &Reporter, what: &str, why: impl Into<String>, hint: impl Into<String>) {
    problem(reporter, Severity::Note, what, why, hint);
}

/// What is wrong, without the name of the object, which stands beside it.
fn reason(error: &Error) -> String {
    match error {
        Error::Corrupt { why, .. } => why.clone(),
        Error::Missing { .. } => "it is missing".into(),
        error => error.to_string(),
    }
}

/// Up to `max` of many, and how many more there are.
fn some_of(names: impl IntoIterator<Item = String>, total: u64, max: usize) -> String {
    let shown: Vec<_> = names.into_iter().take(max).collect();
    match total - shown.len() as u64 {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
