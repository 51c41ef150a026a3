//! Deleting what the snapshot doesn't have.
//!
//! What goes is planned before anything is restored, and checked as a whole; it is deleted after everything was
//! restored without a problem. Only names in directories that the snapshot has whole count, and only those that the
//! selection would restore if the snapshot had them: what is excluded stays, and so does all that is mounted.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use super::context::Context;
use super::plan::{Surroundings, Walk, push_name};
use super::{Action, Options, PlannedItem, display, existing};
use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::tree::NodeKind;
use crate::repo::Selected;
use crate::report::{Problem, Severity};
use crate::source::exclusive::{in_use, owner_of};
use crate::source::handles::Holder;
use crate::source::marker::MARKER;
use crate::source::sqlite::SIDECARS;
use crate::source::target::Folder;
use crate::source::temporary::is_temporary;

const MOUNTED: &str = "something is mounted here";
const KEY: &str = "it opens this repository";

/// So many names may go without a question, even if they are most of what there is.
const FEW: u64 = 20;

struct Doomed {
    folder: Arc<Folder>,
    name: Vec<u8>,
    kind: FileType,
    stat: Stat,
}

/// What is to be deleted: what is in a directory before the directory.
#[derive(Default)]
pub(super) struct Deletion {
    doomed: Vec<Doomed>,
    /// Names that were looked at, in directories that the snapshot has.
    seen: u64,
    /// Directories that a name of their own is deleted from.
    folders: HashSet<PathBuf>,
    /// Directories that have the name of something else in the snapshot.
    in_the_way: HashSet<PathBuf>,
    /// What stays though the snapshot doesn't have it, and why.
    left: Vec<(PathBuf, &'static str)>,
    /// A database that another process has open.
    open_database: Option<(PathBuf, Holder)>,
    is_anything_covered: bool,
}

/// Refuses a target that nothing may ever be deleted from.
///
/// # Errors
/// [`Error::Refused`].
pub(super) fn check_target(options: &Options) -> Result<()> {
    let Ok(target) = options.target.canonicalize() else { return Ok(()) };
    let refuse = |what: &str| {
        Err(Error::refused(
            format!("--delete is refused for {}, which {what}", display(&target)),
            "restore without --delete, or name a directory below",
        ))
    };
    if target == Path::new("/") {
        return refuse("is the root directory");
    }
    if options.home.as_ref().and_then(|home| home.canonicalize().ok()).as_ref() == Some(&target) {
        return refuse("is your home directory");
    }
    if let Some(path) = options.repository.as_ref().and_then(|path| path.canonicalize().ok()) {
        if target.starts_with(&path) {
            return refuse(&format!("is, or lies in, the repository {}", display(&path)));
        }
        if path.starts_with(&target) {
            return refuse(&format!("holds the repository {}", display(&path)));
        }
    }
    Ok(())
}

impl Deletion {
    /// Looks at a directory that the walk has just entered.
    ///
    /// # Errors
    /// If it can't be listed.
    pub(super) fn look(&mut self, walk: &Walk<'_>, folder: &Arc<Folder>, options: &Options) -> Result<()> {
        let Some(around) = walk.surroundings() else { return Ok(()) };
        self.is_anything_covered = true;
        for name in sorted_names(folder)? {
            if (walk.is_at_top() && name == MARKER) || is_temporary(&name) {
                continue;
            }
            self.seen += 1;
            let Some(stat) = folder.stat(&name)? else { continue };
            let kind = existing::kind(&stat);
            let is_directory = kind == FileType::Directory;
            let known = around.kind_of(&name);
            let stays = match known {
                Some(NodeKind::Directory) => true,
                // What is of another kind is replaced; only a directory has to go first.
                Some(_) => !is_directory,
                None => false,
            };
            let path_of = |name: &[u8]| {
                let mut path = around.path.to_vec();
                push_name(&mut path, name);
                path
            };
            let path = path_of(&name);
            let stays_by_name =
                |owner: &[u8]| around.kind_of(owner).is_some() || !around.selects(&path_of(owner), false, None);
            if stays || !around.selects(&path, is_directory, None) || holds_news(folder, &name, &stat, stays_by_name)? {
                continue;
            }
            let doomed = Doomed { folder: folder.clone(), name: name.clone(), kind, stat };
            if self.doom(&around, doomed, path, options)? {
                if known.is_some() {
                    self.in_the_way.insert(folder.path_of(&name));
                }
                self.folders.insert(folder.path());
            }
        }
        Ok(())
    }

    /// Plans to delete a name with everything below it, as far as that is selected; says whether all of it goes.
    fn doom(&mut self, around: &Surroundings<'_>, doomed: Doomed, path: Vec<u8>, options: &Options) -> Result<bool> {
        let parent = doomed.folder.clone();
        if doomed.kind != FileType::Directory {
            let is_file = doomed.kind == FileType::RegularFile;
            if is_file && is_one_of(&options.keys, &doomed.stat) {
                self.left.push((parent.path_of(&doomed.name), KEY));
                return Ok(false);
            }
            if is_file
                && !options.force
                && let Some(holder) = existing::is_part_of_open_database(&parent, &doomed.name)?
            {
                self.open_database.get_or_insert_with(|| (parent.path_of(&doomed.name), holder));
            }
            self.doomed.push(doomed);
            return Ok(true);
        }
        if parent.is_mount(&doomed.name)? {
            self.left.push((parent.path_of(&doomed.name), MOUNTED));
            return Ok(false);
        }
        let Some(folder) = parent.enter(&doomed.name)? else { return Ok(false) };
        if path.iter().filter(|b| **b == b'/').count() > MAX_TREE_DEPTH {
            let what = format!("directories below {} are nested deeper than --delete goes", display(&parent.path()));
            return Err(Error::refused(what, "remove them by other means"));
        }
        let mut all = true;
        for name in sorted_names(&folder)? {
            self.seen += 1;
            let Some(stat) = folder.stat(&name)? else { continue };
            let kind = existing::kind(&stat);
            let mut path = path.clone();
            push_name(&mut path, &name);
            let owner_stays = |owner: &[u8]| {
                let mut path = path[..path.len() - name.len()].to_vec();
                path.extend_from_slice(owner);
                !around.selects(&path, false, Some(true))
            };
            let stays = holds_news(&folder, &name, &stat, owner_stays)?;
            if !stays && around.selects(&path, kind == FileType::Directory, Some(true)) {
                all &= self.doom(around, Doomed { folder: folder.clone(), name, kind, stat }, path, options)?;
            } else {
                all = false;
            }
        }
        if all {
            self.doomed.push(doomed);
        }
        Ok(all)
    }

    /// A directory of the snapshot in which something is mounted: nothing in it is looked at.
    pub(super) fn pass_over(&mut self, mount: PathBuf) {
        self.left.push((mount, MOUNTED));
    }

    /// Why this must not be done, unless it is forced.
    pub(super) fn objection(&self, selected: &Selected) -> Option<Error> {
        let count = self.doomed.len() as u64;
        if let Some((database, holder)) = &self.open_database {
            return Some(Error::refused(
                format!("--delete would remove {}, a database that {holder} has open", display(database)),
                "end that process, or leave it with --exclude",
            ));
        }
        let skipped = selected.named.snapshot.counts.skipped;
        if count > 0 && skipped > 0 {
            return Some(Error::refused(
                format!(
                    "--delete is refused: snapshot {} is incomplete, since {skipped} of its sources could not be read",
                    selected.named.id.short()
                ),
                "use a complete snapshot, or see with --dry-run what would go and say --force",
            ));
        }
        (count > FEW && count * 2 > self.seen).then(|| {
            Error::refused(
                format!("--delete would remove {count} of {} names, more than half", self.seen),
                "--dry-run shows them; --force does it if that is what you want",
            )
        })
    }

    /// Says what stays although the snapshot doesn't have it.
    pub(super) fn report(&self, context: &Context<'_>) {
        let note = |path: &Path, why: &str| context.reporter.warn(Severity::Note, display(path), why);
        for (path, why) in &self.left {
            note(path, &format!("{why}: --delete leaves it"));
        }
        if !self.is_anything_covered {
            let why = "--delete removes nothing: the snapshot doesn't have the whole of any directory that is restored";
            note(&context.options.target, why);
        }
    }

    /// Whether a name of this directory's own is deleted.
    pub(super) fn touches(&self, folder: &Path) -> bool {
        self.folders.contains(folder)
    }

    /// Whether a directory that goes has the name of something else in the snapshot.
    pub(super) fn is_in_the_way(&self, path: &Path) -> bool {
        self.in_the_way.contains(path)
    }

    /// The plan, for a dry run: paths begin as the target was given.
    pub(super) fn planned(&self, target: &Path) -> impl Iterator<Item = PlannedItem> {
        let root = std::path::absolute(target).unwrap_or_default();
        let given = move |path: PathBuf| path.strip_prefix(&root).map(|below| target.join(below)).unwrap_or(path);
        self.doomed.iter().map(move |doomed| PlannedItem {
            path: given(doomed.folder.path_of(&doomed.name)),
            kind: match doomed.kind {
                FileType::Directory => NodeKind::Directory,
                FileType::Symlink => NodeKind::Symlink,
                FileType::Fifo => NodeKind::Fifo,
                FileType::CharacterDevice => NodeKind::CharDevice,
                FileType::BlockDevice => NodeKind::BlockDevice,
                FileType::Socket => NodeKind::Socket,
                _ => NodeKind::File,
            },
            bytes: if doomed.kind == FileType::RegularFile { doomed.stat.st_size.unsigned_abs() } else { 0 },
            action: Action::Delete,
        })
    }

    /// Deletes; returns how many names are gone. What can't be deleted is reported.
    ///
    /// # Errors
    /// An interrupt.
    pub(super) fn run(&self, context: &Context<'_>) -> Result<u64> {
        let mut gone = 0;
        for doomed in &self.doomed {
            context.reporter.check_interrupt()?;
            match doomed.delete(context.options) {
                Ok(()) => gone += 1,
                Err(e) => context.reporter.problem(Problem {
                    severity: Severity::Restore,
                    what: display(&doomed.folder.path_of(&doomed.name)),
                    why: format!("not deleted, though the snapshot doesn't have it: {e}"),
                    hint: e.hint().map(str::to_owned),
                }),
            }
        }
        Ok(gone)
    }
}

impl Doomed {
    fn delete(&self, options: &Options) -> Result<()> {
        let Self { folder, name, .. } = self;
        if self.kind == FileType::Directory {
            return folder.remove_folder(name);
        }
        if self.kind == FileType::RegularFile
            && !options.force
            && let Some(holder) = existing::is_part_of_open_database(folder, name)?
        {
            return Err(in_use(&folder.path_of(name), &holder));
        }
        folder.open_up()?;
        folder.remove(name)
    }
}

/// Whether a name is that of the log or journal of a database that stays: what is in it may be in no other file. That of
/// a database which is replaced goes with it.
fn holds_news(folder: &Folder, name: &[u8], stat: &Stat, stays: impl Fn(&[u8]) -> bool) -> Result<bool> {
    match owner_of(name) {
        Some(owner) if stat.st_size > 0 && !name.ends_with(SIDECARS[1].as_bytes()) && stays(owner) => {
            Ok(folder.stat(owner)?.is_some_and(|stat| existing::kind(&stat) == FileType::RegularFile))
        }
        _ => Ok(false),
    }
}

fn is_one_of(files: &[PathBuf], stat: &Stat) -> bool {
    let is = |path: &PathBuf| path.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (stat.st_dev, stat.st_ino));
    files.iter().any(is)
}

fn sorted_names(folder: &Folder) -> Result<Vec<Vec<u8>>> {
    let mut names = folder.names()?;
    names.sort();
    Ok(names)
}
