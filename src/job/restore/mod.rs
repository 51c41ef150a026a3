//! Restoring a snapshot, or a part of it, below a directory.
//!
//! The walk over the tree (`plan`, `run`) makes directories and gathers files into batches (`files`); a batch is
//! written by frames, not by files (`write`), so that every frame is read and decoded once; databases are put together
//! page by page (`database`). What is there afterwards is exact: everything is written under a temporary name, and what
//! can't be had whole is removed and reported. What is there before is judged by `existing`, used by `reuse`, and
//! removed by `delete`; a restore that was killed is gone on with (`resume`).
//!
//! May depend on `source`, `repo` and below.

mod before;
mod context;
mod database;
mod delete;
mod dry;
mod existing;
mod files;
mod in_place;
mod keep;
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
mod undo;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::format::tree::NodeKind;
use crate::id::SnapshotId;
use crate::repo::{Repository, Selected, Start};
use crate::report::{Reporter, Severity};
use crate::source::owners::{Mapping, Owners, Ownership};
use crate::source::target::Folder;
pub use before::{Before, Kept, parse_made};
use context::Context;
pub use delete::check_target;
use dry::Looked;
use plan::{Patterns, Walk};
use resume::Mark;
pub use undo::{newest_copy, undo_copy};

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
    /// Paths below the target that are deleted too: what an earlier restore made. A directory goes if nothing is left
    /// in it.
    pub remove: Vec<Vec<u8>>,
    /// Whether this takes an earlier restore back: what its snapshot has of that restore's own is not restored.
    pub is_undo: bool,
    /// Whether it is known that the snapshot is what is to be there, whatever it is like: also most of what is there is
    /// deleted, and a database need not be sound.
    pub exact: bool,
    /// What is left out when names are deleted that the snapshot doesn't have, since it was left out of the snapshot.
    pub left_out: LeftOut,
}

/// What `create` was told to leave out, as paths in the file system.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    /// Patterns in gitignore syntax, relative to `root`.
    pub patterns: Vec<String>,
    /// Files of such patterns.
    pub files: Vec<PathBuf>,
    /// Whether the contents of caches were left out.
    pub caches: bool,
    /// The path that was given to `create`.
    pub root: PathBuf,
}

impl Options {
    fn mode(&self) -> Overwrite {
        self.overwrite.unwrap_or(if self.in_place { Overwrite::IfChanged } else { Overwrite::Always })
    }

    /// Whether what is there may stay in the way without being named by the user.
    fn says_what_to_do(&self) -> bool {
        self.force || self.in_place || self.overwrite.is_some()
    }

    /// Whether anything may be deleted.
    fn deletes(&self) -> bool {
        self.delete || !self.remove.is_empty()
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
    /// Where what was replaced or deleted is kept.
    pub kept: Kept,
    /// Of a dry run: everything that would be done.
    pub planned: Vec<PlannedItem>,
}

/// Takes a snapshot of what a restore is about to change, whole. What goes wrong must be said by its error.
pub type Keep<'a> = dyn Fn(&Before) -> Result<SnapshotId> + 'a;

/// Restores, as [`run_keeping`], and keeps nothing of what it replaces.
///
/// # Errors
/// As [`run_keeping`].
pub fn run(repo: &Repository, selected: &Selected, options: &Options, reporter: &Reporter) -> Result<Summary> {
    run_keeping(repo, selected, options, None, reporter)
}

/// Restores. The caller has loaded the index. What could not be restored is reported and absent. Before anything is
/// changed that is there, `keep` takes a snapshot of it; if that fails, it is kept in the target by other names.
///
/// # Errors
/// [`Error::Refused`] for a target that is not empty, for a database that another process has open, and for a deletion
/// that would do harm; [`Error::Locked`] for a target that another restore is at work in, [`Error::Unknown`] if nothing
/// is selected, [`Error::File`] if the target can't be written at all or is full, [`Error::Interrupted`].
pub fn run_keeping(
    repo: &Repository,
    selected: &Selected,
    options: &Options,
    keep: Option<&Keep<'_>>,
    reporter: &Reporter,
) -> Result<Summary> {
    let in_place = options.in_place || (options.delete && options.overwrite.is_none());
    let options = &Options { in_place, ..options.clone() };
    let patterns = Patterns::new(&options.include, &options.exclude)?;
    let start = selected.find(repo, &[])?;
    let owners = Owners::new(options.ownership, &selected.named.snapshot, &options.map_users, &options.map_groups)?;
    let mut walk = Walk::new(repo, selected, &start, &patterns, reporter)?;
    if options.delete {
        check_target(options)?;
    }
    let there = Folder::look(&options.target)?;
    let mark = Mark::new(selected, options, there.is_none());
    let mut context = Context::new(repo, options, reporter, owners);
    context.go_on(mark.look(there.as_deref(), options)?.as_ref());
    let all = Whole { selected, start, patterns: &patterns, there, mark };
    let done = if options.dry_run { all.look(&context, &mut walk) } else { all.run(&mut context, &mut walk, keep) };
    context.report();
    let summary = done?;
    let is_nothing = Summary { resumed: false, ..summary.clone() } == Summary::default();
    if is_nothing && !options.include.is_empty() && reporter.worst() < Some(Severity::Restore) {
        return Err(Error::Unknown { kind: "path", name: options.include.join(", ") });
    }
    Ok(summary)
}

/// A restore from before its first look to its end.
struct Whole<'a> {
    selected: &'a Selected,
    start: Start,
    patterns: &'a Patterns,
    there: Option<Arc<Folder>>,
    mark: Mark,
}

impl Whole<'_> {
    /// Only looks, and says what would be done.
    fn look(self, context: &Context<'_>, walk: &mut Walk<'_>) -> Result<Summary> {
        let options = context.options;
        let mut looked = dry::look(walk, context, self.there)?;
        let objections = [looked.before.objection(), looked.deletion.objection(self.selected, options)];
        for objection in objections.into_iter().flatten().filter(|_| !options.force) {
            context.reporter.warn(Severity::Note, display(&options.target), format!("would be refused: {objection}"));
        }
        if options.deletes() {
            looked.deletion.report(context);
        }
        Ok(looked.summary)
    }

    /// Looks at what is about to change, and refuses to do harm.
    fn look_before(&self, context: &Context<'_>) -> Result<Looked> {
        let Some(there) = &self.there else { return Ok(Looked::default()) };
        let walk = Walk::new(context.repo, self.selected, &self.start, self.patterns, context.reporter)?;
        context.looks.store(true, Ordering::Relaxed);
        let looked = dry::look(&mut walk.into_first_look(), context, Some(there.clone()));
        context.looks.store(false, Ordering::Relaxed);
        let mut looked = looked?;
        let objection = looked.before.objection().or_else(|| looked.deletion.objection(self.selected, context.options));
        match objection {
            Some(objection) if !context.options.force => Err(objection),
            _ => Ok(looked),
        }
    }

    fn run(mut self, context: &mut Context<'_>, walk: &mut Walk<'_>, keep: Option<&Keep<'_>>) -> Result<Summary> {
        let options = context.options;
        let Looked { deletion, before, .. } = self.look_before(context)?;
        let keep = keep.filter(|_| !before.is_empty());
        if keep.is_none() {
            self.mark.keeps_nothing();
        }
        if self.selected.sub_path.is_empty() && self.patterns.are_empty() {
            let counts = &self.selected.named.snapshot.counts;
            context.reporter.progress.bytes_total.store(counts.bytes, Ordering::Relaxed);
            context.reporter.progress.files_total.store(counts.files + counts.databases, Ordering::Relaxed);
            context.totals_known = true;
        }
        let time = self.there.as_ref().map(|there| there.time()).transpose()?;
        let made = before.record();
        let (target, marker, resumed) = self.mark.begin(self.there.as_deref(), &made, options, context.reporter)?;
        context.go_on(resumed.as_ref());
        let kept = match resumed.as_ref().and_then(|resumed| resumed.kept.clone()) {
            Some(kept) => kept,
            None => match keep {
                None => Kept::Nothing,
                Some(keep) => {
                    let kept = keep::keep(context, &target, &before, keep).or_else(|e| {
                        // Nothing was changed: this is no restore that has not ended.
                        marker.abandon(&target, time.as_ref()).and(Err(e))
                    })?;
                    self.mark.note_kept(&marker, &target, &made, &kept)?;
                    kept
                }
            },
        };
        let sets_target = target.is_new() || resumed.is_some_and(|r| r.is_new) || options.in_place;
        let node = match self.start {
            Start::Directory(_, Some(node)) if sets_target => Some(*node),
            _ => None,
        };
        let (summary, target) = run::run(context, walk, target, &deletion)?;
        // Nothing of ours is in it any more when it gets its attributes.
        marker.remove(&target)?;
        if let (Some(_), Some(time)) = (&node, &time) {
            // The mark itself is no difference.
            target.set_time(time)?;
        }
        files::close(context, &target, node)?;
        Ok(context.counted(Summary { kept, ..summary }))
    }
}

/// The text of a path, for people.
fn display(path: &Path) -> String {
    path.display().to_string()
}
