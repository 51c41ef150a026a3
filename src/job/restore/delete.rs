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

use super::before::{Before, There};
use super::context::Context;
use super::keep::COPY;
use super::plan::{Surroundings, Walk, push_name};
use super::{Action, Options, PlannedItem, display, existing};
use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::tree::NodeKind;
use crate::repo::Selected;
use crate::report::{Problem, Reporter, Severity};
use crate::source::exclude::{CACHE_TAG_NAME, Excludes, is_cache};
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
    /// Whether a directory goes only if nothing is left in it.
    if_empty: bool,
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
    /// What was left out of the snapshot on purpose.
    left_out: Option<Excludes>,
}

/// Refuses a target that nothing may ever be deleted from.
///
/// # Errors
/// [`Error::Refused`].
pub fn check_target(options: &Options) -> Result<()> {
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
    /// Nothing so far.
    ///
    /// # Errors
    /// As [`Excludes::new`].
    pub(super) fn new(options: &Options) -> Result<Self> {
        let left = &options.left_out;
        let is_any = !(left.patterns.is_empty() && left.files.is_empty());
        let left_out = is_any.then(|| Excludes::new(&left.root, &[], &left.patterns, &left.files)).transpose()?;
        Ok(Self { left_out, ..Self::default() })
    }

    /// Whether a name was left out of the snapshot on purpose, so that its absence there means nothing.
    fn was_left_out(&self, folder: &Folder, name: &[u8], is_directory: bool, options: &Options) -> bool {
        self.left_out.as_ref().is_some_and(|left| left.excludes(&folder.path_of(name), is_directory))
            || (options.left_out.caches && name != CACHE_TAG_NAME.as_bytes() && is_cache(&folder.path()))
            || name.starts_with(COPY.as_bytes())
    }

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
            let is_left_out = self.was_left_out(folder, &name, is_directory, options);
            if stays || is_left_out || !around.selects(&path, is_directory, None) {
                continue;
            }
            if holds_news(folder, &name, &stat, stays_by_name)? {
                continue;
            }
            let doomed = Doomed { folder: folder.clone(), name: name.clone(), kind, stat, if_empty: false };
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
            let is_directory = kind == FileType::Directory;
            let stays = self.was_left_out(&folder, &name, is_directory, options)
                || holds_news(&folder, &name, &stat, owner_stays)?;
            if !stays && around.selects(&path, is_directory, Some(true)) {
                let doomed = Doomed { folder: folder.clone(), name, kind, stat, if_empty: false };
                all &= self.doom(around, doomed, path, options)?;
            } else {
                all = false;
            }
        }
        if all {
            self.doomed.push(doomed);
        }
        Ok(all)
    }

    /// Plans to delete what another restore made: `made` has paths below the target, each after the directory that it
    /// is in. What is gone already is passed over.
    ///
    /// # Errors
    /// If something can't be looked at.
    pub(super) fn add_made(&mut self, target: &Arc<Folder>, made: &[Vec<u8>], options: &Options) -> Result<()> {
        for path in made.iter().rev() {
            let mut folder = Some(target.clone());
            let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
            let Some(name) = names.pop() else { continue };
            for above in names {
                folder = folder.map_or(Ok(None), |folder| folder.enter(above))?;
            }
            let Some(folder) = folder else { continue };
            let Some(stat) = folder.stat(name)? else { continue };
            let kind = existing::kind(&stat);
            if is_one_of(&options.keys, &stat) || folder.is_mount(name)? {
                continue;
            }
            self.is_anything_covered = true;
            self.folders.insert(folder.path());
            self.doomed.push(Doomed { folder, name: name.to_vec(), kind, stat, if_empty: true });
        }
        Ok(())
    }

    /// Says what is about to be deleted.
    ///
    /// # Errors
    /// If something can't be looked at.
    pub(super) fn tell(&self, before: &mut Before) -> Result<()> {
        for doomed in self.doomed.iter().filter(|doomed| doomed.kind != FileType::Directory || !doomed.if_empty) {
            // What lies beside a database is part of it.
            if owner_of(&doomed.name).is_some_and(|owner| existing::is_database(&doomed.folder, owner)) {
                continue;
            }
            before.replaced.push(There { folder: doomed.folder.clone(), name: doomed.name.clone() });
            if existing::is_database(&doomed.folder, &doomed.name) {
                before.add_database(&doomed.folder, &doomed.name)?;
            }
        }
        Ok(())
    }

    /// A directory of the snapshot in which something is mounted: nothing in it is looked at.
    pub(super) fn pass_over(&mut self, mount: PathBuf) {
        self.left.push((mount, MOUNTED));
    }

    /// Why this must not be done, unless it is forced.
    pub(super) fn objection(&self, selected: &Selected, options: &Options) -> Option<Error> {
        let count = self.doomed.len() as u64;
        if let Some((database, holder)) = &self.open_database {
            return Some(Error::refused(
                format!("--delete would remove {}, a database that {holder} has open", display(database)),
                "end that process, or leave it with --exclude",
            ));
        }
        if !options.delete || options.exact {
            return None;
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
        if !self.is_anything_covered && context.options.delete {
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
    pub(super) fn run(&self, options: &Options, reporter: &Reporter) -> Result<u64> {
        let mut gone = 0;
        for doomed in &self.doomed {
            reporter.check_interrupt()?;
            match doomed.delete(options) {
                Ok(()) => gone += 1,
                Err(e) => reporter.problem(Problem {
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
            let stays = self.if_empty && folder.enter(name)?.is_some_and(|at| at.names().is_ok_and(|n| !n.is_empty()));
            return if stays { Ok(()) } else { folder.remove_folder(name) };
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
