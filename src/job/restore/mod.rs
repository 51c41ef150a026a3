//! Restoring a snapshot, or a part of it, below a directory.
//!
//! The walk over the tree (`plan`) makes directories and gathers files into batches; a batch is written by frames,
//! not by files ([`write`]), so that every frame is read and decoded once; databases are put together page by page
//! (`database`). What is there afterwards is exact: everything is written under a temporary name, and what can't be
//! had whole is removed and reported.

mod context;
mod database;
mod dry;
mod existing;
mod fetch;
mod plan;
#[cfg(test)]
mod tests;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use crate::error::{Error, Result};
use crate::format::tree::{Node, NodeKind};
use crate::repo::{Repository, Selected, Start};
use crate::report::{Reporter, Severity};
use crate::source::target::Folder;
use context::Context;
use plan::{Patterns, Step, Walk};
use write::{Files, Part};

/// What happens to files that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// They are replaced.
    Always,
    /// They are replaced unless size and modification time are those in the snapshot.
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
    /// What happens to files that are there. Without it, and without `force`, the target must be empty.
    pub overwrite: Option<Overwrite>,
    /// Replaces also what is of another kind, and databases that another process has open.
    pub force: bool,
    /// Only says what would be done.
    pub dry_run: bool,
    /// Runs `PRAGMA integrity_check` on every restored database.
    pub verify: bool,
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
    /// It is not restored: a socket.
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
    /// Names that were left as they are.
    pub skipped: u64,
    /// Databases that passed `PRAGMA integrity_check`.
    pub verified_databases: u64,
    /// Of a dry run: everything that would be done.
    pub planned: Vec<PlannedItem>,
}

/// Restores. The caller has loaded the index. What could not be restored is reported and absent.
///
/// # Errors
/// [`Error::Refused`] for a target that is not empty, [`Error::Unknown`] if nothing is selected, [`Error::File`] if the
/// target can't be written at all or is full, [`Error::Interrupted`].
pub fn run(repo: &Repository, selected: &Selected, options: &Options, reporter: &Reporter) -> Result<Summary> {
    let patterns = Patterns::new(&options.include, &options.exclude)?;
    let start = selected.find(repo, &[])?;
    let mut walk = Walk::new(repo, selected, &start, &patterns, reporter)?;
    check_target(options)?;
    let context = Context::new(repo, options, reporter);
    let summary = if options.dry_run {
        dry::run(&mut walk, &context)?
    } else {
        let counts = &selected.named.snapshot.counts;
        let all = selected.sub_path.is_empty() && patterns.are_empty();
        if all {
            reporter.progress.bytes_total.store(counts.bytes, Ordering::Relaxed);
            reporter.progress.files_total.store(counts.files + counts.databases, Ordering::Relaxed);
        }
        let target = Folder::target(&options.target)?;
        let totals_known = all;
        Restore {
            files: Files::new(&context),
            context: &context,
            target,
            open: vec![],
            totals_known,
            summary: Summary::default(),
        }
        .run(&mut walk, start)?
    };
    if summary == Summary::default() && !options.include.is_empty() && reporter.worst() < Some(Severity::Restore) {
        return Err(Error::Unknown { kind: "path", name: options.include.join(", ") });
    }
    Ok(summary)
}

/// Refuses a target that holds something, unless it was said what to do with that.
fn check_target(options: &Options) -> Result<()> {
    let Options { target, force, overwrite, .. } = options;
    let mut entries = match std::fs::read_dir(target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| Error::file("open", target, e))?,
    };
    if entries.next().is_none() || *force || overwrite.is_some() {
        return Ok(());
    }
    Err(Error::refused(
        format!("{} is not empty", target.display()),
        "choose another target, or say what happens to files that are there: --overwrite always, if-changed or never",
    ))
}

/// A directory that the walk is in.
struct Open {
    node: Box<Node>,
    made: Made,
}

enum Made {
    NotYet,
    Yes(Arc<Folder>),
    /// It could not be made, which was reported.
    Lost,
}

struct Restore<'a> {
    context: &'a Context<'a>,
    target: Arc<Folder>,
    open: Vec<Open>,
    files: Files<'a>,
    totals_known: bool,
    summary: Summary,
}

impl Restore<'_> {
    fn run(mut self, walk: &mut Walk<'_>, start: Start) -> Result<Summary> {
        while let Some(step) = walk.next()? {
            match step {
                Step::Enter { node, wanted } => {
                    self.open.push(Open { node, made: Made::NotYet });
                    if wanted && self.here()?.is_none() {
                        walk.skip();
                        self.open.pop();
                    }
                }
                Step::Leave => self.leave(),
                Step::Node(node) => self.visit(walk, *node)?,
            }
            self.files.flush_if_full()?;
        }
        if let Start::Directory(_, Some(node)) = start
            && self.target.is_new()
        {
            self.files.close_folder(self.target.clone(), *node);
        }
        self.files.flush()?;
        self.summary.files = self.context.files.load(Ordering::Relaxed);
        self.summary.bytes = self.context.bytes.load(Ordering::Relaxed);
        Ok(self.summary)
    }

    /// The directory that the walk is in, made now if it was not; `None` if it can't be made.
    fn here(&mut self) -> Result<Option<Arc<Folder>>> {
        match self.open.last() {
            None => return Ok(Some(self.target.clone())),
            Some(Open { made: Made::Yes(folder), .. }) => return Ok(Some(folder.clone())),
            Some(_) => {}
        }
        let mut above = self.target.clone();
        for open in &mut self.open {
            above = match &open.made {
                Made::Lost => return Ok(None),
                Made::Yes(folder) => folder.clone(),
                Made::NotYet => match above.make(&open.node.name, self.context.options.force) {
                    Ok(folder) => {
                        self.summary.directories += 1;
                        open.made = Made::Yes(folder.clone());
                        folder
                    }
                    Err(e) => {
                        open.made = Made::Lost;
                        self.context.lose(&above.path_of(&open.node.name), e)?;
                        return Ok(None);
                    }
                },
            };
        }
        Ok(Some(above))
    }

    fn leave(&mut self) {
        let Some(Open { node, made: Made::Yes(folder) }) = self.open.pop() else { return };
        if folder.is_new() || self.context.options.overwrite != Some(Overwrite::Never) {
            self.files.close_folder(folder, *node);
        }
    }

    fn visit(&mut self, walk: &Walk<'_>, node: Node) -> Result<()> {
        let reporter = self.context.reporter;
        if node.kind == NodeKind::Socket {
            reporter.warn(
                Severity::Note,
                walk.display(),
                "a socket is not restored: the program that listens makes it",
            );
            return Ok(());
        }
        if !self.totals_known && matches!(node.kind, NodeKind::File | NodeKind::Database) {
            reporter.progress.bytes_total.fetch_add(node.size.unwrap_or(0), Ordering::Relaxed);
            reporter.progress.files_total.fetch_add(1, Ordering::Relaxed);
        }
        let Some(folder) = self.here()? else { return Ok(()) };
        let stale = existing::stale_sidecars(&folder, &node, walk);
        let part = Part { folder, node, stale };
        match existing::is_kept(self.context, &part) {
            Ok(false) => {}
            Ok(true) => {
                self.summary.skipped += 1;
                if matches!(part.node.kind, NodeKind::File | NodeKind::Database) {
                    reporter.advance(part.node.size.unwrap_or(0), 1);
                }
                return Ok(());
            }
            Err(e) => return self.context.lose(&part.path(), e),
        }
        match part.node.kind {
            NodeKind::File => self.files.add(part),
            NodeKind::Database => self.database(part),
            _ => match make_other(self.context, &part) {
                Ok(()) => {
                    self.summary.others += 1;
                    Ok(())
                }
                Err(e) => self.context.lose(&part.path(), e),
            },
        }
    }

    fn database(&mut self, part: Part) -> Result<()> {
        if !self.files.is_linked(&part)? {
            self.context.reporter.current(|| part.path().display().to_string());
            if let Err(e) = database::write(self.context, &part) {
                return self.context.lose(&part.path(), e);
            }
            if self.context.options.verify && database::verify(self.context, &part.path()) {
                self.summary.verified_databases += 1;
            }
            self.files.remember_link(&part);
        }
        self.summary.databases += 1;
        Ok(())
    }
}

/// Makes a symbolic link, a pipe or a device node.
fn make_other(context: &Context<'_>, part: &Part) -> Result<()> {
    let node = &part.node;
    let made = part.folder.temporary(&node.name);
    let device = node.rdev.unwrap_or(0);
    match node.kind {
        NodeKind::Symlink => made.make_symlink(node.target.as_ref().map_or(&[][..], |t| t))?,
        NodeKind::CharDevice => made.make_special(FileType::CharacterDevice, device)?,
        NodeKind::BlockDevice => made.make_special(FileType::BlockDevice, device)?,
        _ => made.make_special(FileType::Fifo, 0)?,
    }
    context.attributes.apply_by_name(&made, node)?;
    made.place()
}

/// The text of a path, for people.
fn display(path: &Path) -> String {
    path.display().to_string()
}
