//! Restoring a snapshot, or a part of it, below a directory.
//!
//! The walk over the tree (`plan`, `run`) makes directories and gathers files into batches (`files`); a batch is
//! written by frames, not by files (`write`), so that every frame is read and decoded once; databases are put together
//! page by page (`database`). What is there afterwards is exact: everything is written under a temporary name, and what
//! can't be had whole is removed and reported. What is there before is judged by `existing`, used by `reuse`, and
//! removed by `delete`; a restore that was killed is gone on with (`resume`).
//!
//! May depend on `source`, `repo` and below.

mod context;
mod database;
mod delete;
mod dry;
mod existing;
mod fetch;
mod files;
mod in_place;
mod layered;
mod plan;
mod resume;
mod reuse;
#[cfg(test)]
mod reuse_tests;
mod run;
#[cfg(test)]
mod swap_tests;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::format::tree::NodeKind;
use crate::repo::{Repository, Selected, Start};
use crate::report::{Reporter, Severity};
use crate::source::owners::{Mapping, Owners, Ownership};
use crate::source::target::Folder;
use context::Context;
use delete::Deletion;
use plan::{Patterns, Walk};
use resume::Mark;

/// Why a directory can't be made where something else is.
const NO_DIRECTORY: &str = "something that is no directory has its name";

/// What happens to files that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// They are replaced.
    Always,
    /// They are replaced unless size and modification time, or a database's content, are those in the snapshot: then
    /// only other attributes are set.
    IfChanged,
    /// They are left.
    Never,
}

/// What to restore, and where.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The directory to restore below; made if it is missing.
    pub target: PathBuf,
    /// Only what these patterns (gitignore syntax, paths in the snapshot) name.
    pub include: Vec<String>,
    /// Not what these patterns name.
    pub exclude: Vec<String>,
    /// What happens to files that are there. Without it, `in_place` and `force`, the target must be empty.
    pub overwrite: Option<Overwrite>,
    /// Brings what is there to the snapshot's state: only what differs is written, as far as can be from what is there,
    /// and what is of another kind is replaced. Unless `overwrite` says otherwise, unchanged files are left.
    pub in_place: bool,
    /// Deletes what the snapshot doesn't have. Includes `in_place`, unless `overwrite` is given.
    pub delete: bool,
    /// Compares the content of files that are there, whatever their size and time.
    pub verify_content: bool,
    /// Replaces also what is of another kind, and databases that another process has open; deletes in spite of
    /// objections.
    pub force: bool,
    /// Only says what would be done.
    pub dry_run: bool,
    /// Reads back and compares everything that was written, has SQLite check every database, and compares what is in it
    /// with what was recorded at its capture.
    pub verify: bool,
    /// How owners are restored.
    pub ownership: Ownership,
    /// Users whose files go to others.
    pub map_users: Vec<Mapping>,
    /// Groups whose files go to others.
    pub map_groups: Vec<Mapping>,
    /// The user's home, from which nothing is ever deleted.
    pub home: Option<PathBuf>,
    /// The repository's directory, if it is a local one: nothing is deleted from a directory that holds it, or that
    /// lies in it.
    pub repository: Option<PathBuf>,
    /// Files that open the repository: they are never deleted.
    pub keys: Vec<PathBuf>,
}

impl Options {
    fn mode(&self) -> Overwrite {
        self.overwrite.unwrap_or(if self.in_place { Overwrite::IfChanged } else { Overwrite::Always })
    }

    /// Whether what is there may stay in the way without being named by the user.
    fn says_what_to_do(&self) -> bool {
        self.force || self.in_place || self.overwrite.is_some()
    }

    /// Whether something that is no directory gives way to one, and an empty directory to something else.
    fn replaces_kinds(&self) -> bool {
        self.force || self.in_place
    }
}

/// What would be done with one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is not there: it is made.
    Create,
    /// Something has the name: it is replaced.
    Replace,
    /// What is there is left.
    Keep,
    /// What is there is left, and gets other attributes.
    Metadata,
    /// The snapshot doesn't have it: it is deleted.
    Delete,
    /// It is not restored: a socket, or something that a problem was reported of.
    Omit,
}

/// One line of a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedItem {
    /// Where it would be.
    pub path: PathBuf,
    /// What it is.
    pub kind: NodeKind,
    /// Length of a file or database, in bytes.
    pub bytes: u64,
    /// What would be done.
    pub action: Action,
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files, further names of hard-linked ones included.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Databases.
    pub databases: u64,
    /// Symbolic links, pipes, devices.
    pub others: u64,
    /// Bytes of files and databases written.
    pub bytes: u64,
    /// Of these, bytes that came from the repository.
    pub fetched: u64,
    /// Of these, bytes that local files had.
    pub reused: u64,
    /// Names that were left as they are.
    pub skipped: u64,
    /// Names of which only attributes were set.
    pub metadata: u64,
    /// Names that were deleted.
    pub deleted: u64,
    /// Files that were read back and compared.
    pub verified_files: u64,
    /// Databases that were read back and compared, passed SQLite's check, and are what was recorded.
    pub verified_databases: u64,
    /// Whether this went on with a restore that had not ended.
    pub resumed: bool,
    /// Of a dry run: everything that would be done.
    pub planned: Vec<PlannedItem>,
}

/// Restores. The caller has loaded the index. What could not be restored is reported and absent.
///
/// # Errors
/// [`Error::Refused`] for a target that is not empty and for a deletion that would do harm, [`Error::Locked`] for a
/// target that another restore is at work in, [`Error::Unknown`] if nothing is selected, [`Error::File`] if the target
/// can't be written at all or is full, [`Error::Interrupted`].
pub fn run(repo: &Repository, selected: &Selected, options: &Options, reporter: &Reporter) -> Result<Summary> {
    let in_place = options.in_place || (options.delete && options.overwrite.is_none());
    let options = &Options { in_place, ..options.clone() };
    let patterns = Patterns::new(&options.include, &options.exclude)?;
    let start = selected.find(repo, &[])?;
    let owners = Owners::new(options.ownership, &selected.named.snapshot, &options.map_users, &options.map_groups)?;
    let mut walk = Walk::new(repo, selected, &start, &patterns, reporter)?;
    let mut context = Context::new(repo, options, reporter, owners);
    if options.delete {
        delete::check_target(options)?;
    }
    let there = Folder::look(&options.target)?;
    let mark = Mark::new(selected, options, there.is_none());
    let done = if options.dry_run {
        context.go_on(mark.look(there.as_deref(), options)?);
        let (summary, deletion) = dry::look(&mut walk, &context, there, true)?;
        if let (true, Some(objection)) = (options.delete && !options.force, deletion.objection(selected)) {
            reporter.warn(Severity::Note, display(&options.target), format!("would be refused: {objection}"));
        }
        if options.delete {
            deletion.report(&context);
        }
        Ok(summary)
    } else {
        let deletion = match &there {
            Some(there) if options.delete => {
                let mut walk = Walk::new(repo, selected, &start, &patterns, reporter)?.into_first_look();
                let (_, deletion) = dry::look(&mut walk, &context, Some(there.clone()), false)?;
                match deletion.objection(selected) {
                    Some(objection) if !options.force => return Err(objection),
                    _ => deletion,
                }
            }
            _ => Deletion::default(),
        };
        if selected.sub_path.is_empty() && patterns.are_empty() {
            let counts = &selected.named.snapshot.counts;
            reporter.progress.bytes_total.store(counts.bytes, Ordering::Relaxed);
            reporter.progress.files_total.store(counts.files + counts.databases, Ordering::Relaxed);
            context.totals_known = true;
        }
        let time = there.as_ref().map(|there| there.time()).transpose()?;
        let (target, marker, resumed) = mark.begin(there.as_deref(), options, reporter)?;
        context.go_on(resumed);
        let sets_target = target.is_new() || resumed.is_some_and(|r| r.is_new) || options.in_place;
        let node = match start {
            Start::Directory(_, Some(node)) if sets_target => Some(*node),
            _ => None,
        };
        run::run(&context, &mut walk, target, &deletion).and_then(|(summary, target)| {
            // Nothing of ours is in it any more when it gets its attributes.
            marker.remove(&target)?;
            if let (Some(_), Some(time)) = (&node, &time) {
                // The mark itself is no difference.
                target.set_time(time)?;
            }
            files::close(&context, &target, node)?;
            Ok(context.counted(summary))
        })
    };
    context.report();
    let summary = done?;
    let is_nothing = Summary { resumed: false, ..summary.clone() } == Summary::default();
    if is_nothing && !options.include.is_empty() && reporter.worst() < Some(Severity::Restore) {
        return Err(Error::Unknown { kind: "path", name: options.include.join(", ") });
    }
    Ok(summary)
}

/// The text of a path, for people.
fn display(path: &Path) -> String {
    path.display().to_string()
}
