//! The restore itself: the walk makes directories, gathers files, and restores what else there is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use super::context::Context;
use super::delete::Deletion;
use super::existing::{self, Reuse, Verdict};
use super::files::{Files, close};
use super::plan::{Step, Walk};
use super::write::Part;
use super::{Overwrite, Summary, database, display, verify};
use crate::error::{Error, Result};
use crate::format::tree::{Node, NodeKind};
use crate::report::Severity;
use crate::source::marker::MARKER;
use crate::source::target::Folder;

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
    deletion: &'a Deletion,
    /// What can be restored only when a directory of its name is gone.
    late: Vec<Part>,
    /// Directories that something is deleted from: they get their attributes after that.
    touched: Vec<(Arc<Folder>, Option<Node>)>,
    summary: Summary,
}

/// Restores everything that the walk finds, then deletes. What comes back is not yet all counted.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn run(
    context: &Context<'_>,
    walk: &mut Walk<'_>,
    target: Arc<Folder>,
    deletion: &Deletion,
) -> Result<(Summary, Arc<Folder>)> {
    let mut restore = Restore {
        context,
        target,
        open: vec![],
        files: Files::new(context),
        deletion,
        late: vec![],
        touched: vec![],
        summary: Summary::default(),
    };
    while let Some(step) = walk.next()? {
        match step {
            Step::Enter { node, wanted } => {
                restore.open.push(Open { node, made: Made::NotYet });
                if wanted && restore.here()?.is_none() {
                    walk.skip();
                    restore.open.pop();
                }
            }
            Step::Leave => restore.leave()?,
            Step::Node(node) => restore.visit(walk, *node)?,
        }
        restore.files.flush_if_full()?;
    }
    restore.files.flush()?;
    restore.finish()
}

impl Restore<'_> {
    /// Deletes, and then restores what waited for that.
    fn finish(mut self) -> Result<(Summary, Arc<Folder>)> {
        if self.context.options.deletes() {
            self.deletion.report(self.context);
            if self.context.reporter.worst() == Some(Severity::Restore) {
                let why = "nothing is deleted, since not everything was restored";
                self.context.reporter.warn(Severity::Note, display(&self.target.path()), why);
            } else {
                self.summary.deleted = self.deletion.run(self.context.options, self.context.reporter)?;
            }
        }
        std::mem::take(&mut self.late).into_iter().try_for_each(|part| self.restore(part))?;
        self.files.flush()?;
        for (folder, node) in std::mem::take(&mut self.touched) {
            close(self.context, &folder, node)?;
        }
        Ok((self.summary, self.target))
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
                Made::NotYet => match above.make(&open.node.name, self.context.options.replaces_kinds()) {
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

    fn leave(&mut self) -> Result<()> {
        let Some(Open { node, made: Made::Yes(folder) }) = self.open.pop() else { return Ok(()) };
        let is_ours = folder.is_new() || self.context.overwrite != Overwrite::Never || self.was_being_filled(&folder);
        let node = is_ours.then_some(*node);
        if self.context.options.deletes() && self.deletion.touches(&folder.path()) {
            self.touched.push((folder, node));
        } else {
            self.files.close_folder(folder, node);
        }
        Ok(())
    }

    /// Whether the restore that this one goes on with made a directory and did not come to its end.
    fn was_being_filled(&self, folder: &Folder) -> bool {
        let stat = folder
            .handle()
            .and_then(|at| rustix::fs::fstat(&*at).map_err(|e| Error::file("inspect", folder.path(), e)));
        stat.is_ok_and(|stat| self.context.is_of_this_restore(&stat) && stat.st_mode & 0o7777 == 0o700)
    }

    fn visit(&mut self, walk: &Walk<'_>, node: Node) -> Result<()> {
        let reporter = self.context.reporter;
        if node.kind == NodeKind::Socket {
            self.context.skip_socket(PathBuf::from(walk.display()));
            return Ok(());
        }
        if walk.is_at_top() && node.name[..] == *MARKER {
            if self.context.options.is_undo {
                return Ok(());
            }
            let why = "not restored: it marked an unfinished restore when the snapshot was taken";
            reporter.warn(Severity::Note, walk.display(), why);
            return Ok(());
        }
        if !self.context.totals_known && matches!(node.kind, NodeKind::File | NodeKind::Database) {
            reporter.progress.bytes_total.fetch_add(node.size.unwrap_or(0), Ordering::Relaxed);
            reporter.progress.files_total.fetch_add(1, Ordering::Relaxed);
        }
        let Some(folder) = self.here()? else { return Ok(()) };
        let stale = existing::stale_sidecars(&folder, &node, walk);
        let part = Part { folder, node, stale, reuse: Reuse::No };
        if self.deletion.is_in_the_way(&part.path()) {
            self.late.push(part);
            return Ok(());
        }
        self.restore(part)
    }

    fn restore(&mut self, mut part: Part) -> Result<()> {
        let link = match self.files.link_of(&part.node) {
            Ok(link) => link,
            Err(e) => return self.context.lose(&part.path(), e),
        };
        let verdict = match existing::judge(self.context, &part.folder, &part.node, link) {
            Ok(verdict) => verdict,
            Err(e) => return self.context.lose(&part.path(), e),
        };
        match verdict {
            Verdict::Keep => self.context.tally.kept.add(1),
            Verdict::Same(file) => self.context.keep(&file, &part.node, || part.path()),
            Verdict::Create => return self.write(part),
            Verdict::Replace(reuse) => {
                part.reuse = reuse;
                return self.write(part);
            }
        }
        if matches!(part.node.kind, NodeKind::File | NodeKind::Database) {
            self.context.reporter.advance(part.node.size.unwrap_or(0), 1);
            self.files.remember_link(&part);
        }
        Ok(())
    }

    fn write(&mut self, part: Part) -> Result<()> {
        if let Err(e) = clear_way(self.context, &part) {
            return self.context.lose(&part.path(), e);
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
        if !self.files.is_linked(&part) {
            self.context.reporter.current(|| part.path().display().to_string());
            if let Err(e) = database::write(self.context, &part) {
                return self.context.lose(&part.path(), e);
            }
            if self.context.options.verify {
                match verify::database(self.context, &part) {
                    Ok(true) => self.summary.verified_databases += 1,
                    Ok(false) => {}
                    Err(e) => return self.context.lose(&part.path(), e),
                }
            }
            self.files.remember_link(&part);
        }
        self.summary.databases += 1;
        Ok(())
    }
}

/// Removes an empty directory that has the name of something else.
fn clear_way(context: &Context<'_>, part: &Part) -> Result<()> {
    if part.folder.is_new() || !context.options.replaces_kinds() {
        return Ok(());
    }
    match part.folder.stat(&part.node.name)? {
        Some(stat) if existing::kind(&stat) == FileType::Directory => part.folder.remove_folder(&part.node.name),
        _ => Ok(()),
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
