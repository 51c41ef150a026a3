//! What is at the target already: what to leave, what to replace, and what belongs to a database that is replaced.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::context::Context;
use super::plan::Walk;
use super::{Overwrite, display, reuse};
use crate::error::{Error, Result};
use crate::format::tree::{Database, Node, NodeKind};
use crate::source::exclusive::{beside, in_use, locked_by, owner_of};
use crate::source::handles::Holder;
use crate::source::sqlite::{SIDECARS, has_magic};
use crate::source::target::Folder;
use crate::source::temporary::read_exact_at;

/// What of a file that is there is used for the one that replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Nothing.
    No,
    /// What it has of the content.
    Copy,
    /// The same; if it has all of the content, it stays.
    Keep,
}

/// What happens to what has a name.
pub(super) enum Verdict {
    /// Nothing is there.
    Create,
    /// It is left.
    Keep,
    /// Its content is right: only its attributes may have to be set.
    Same(OwnedFd),
    /// It is replaced.
    Replace(Reuse),
}

/// Another name of the same file in the snapshot, seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// There was none.
    No,
    /// It will be written.
    Planned,
    /// It is there: device and inode.
    There(u64, u64),
}

/// Whether a node is a database, or was one that could not be captured.
pub(super) fn may_be_database(node: &Node) -> bool {
    node.kind == NodeKind::Database || (node.kind == NodeKind::File && node.unverified.is_some())
}

/// The names of files beside a database that must be gone before it gets its name: an old WAL must never blend into a
/// restored database. Those that the snapshot restores are replaced on their own: a database that could not be captured
/// is stored with them, each file by itself.
pub(super) fn stale_sidecars(folder: &Folder, node: &Node, walk: &Walk<'_>) -> Option<Vec<Vec<u8>>> {
    if folder.is_new() || !may_be_database(node) {
        return None;
    }
    Some(SIDECARS.iter().map(|suffix| beside(&node.name, suffix)).filter(|name| !walk.will_reach(name)).collect())
}

/// The kind of a file by its stat.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What happens to what has the name of a node that is no directory.
///
/// # Errors
/// If it may not be replaced: another process has the database open, or it is a directory.
pub(super) fn judge(context: &Context<'_>, folder: &Folder, node: &Node, link: Link) -> Result<Verdict> {
    if folder.is_new() {
        return Ok(Verdict::Create);
    }
    let there = folder.stat(&node.name)?;
    if let Some(stat) = &there {
        let leaves = context.overwrite == Overwrite::Never;
        if leaves || link == Link::There(stat.st_dev, stat.st_ino) {
            return Ok(Verdict::Keep);
        }
        if link == Link::No
            && let Some(verdict) = same(context, folder, node, stat)?
        {
            return Ok(verdict);
        }
    }
    if !context.options.force && may_be_database(node) {
        refuse_locked(folder, node)?;
    }
    let Some(stat) = there else { return Ok(Verdict::Create) };
    if kind(&stat) == FileType::Directory && !(context.options.replaces_kinds() && folder_is_empty(folder, node)?) {
        return Err(Error::refused(
            format!("a directory has the name of {}", display(&folder.path_of(&node.name))),
            "move it away; with --delete it goes if the snapshot has nothing of it, an empty one with --in-place too",
        ));
    }
    // What this restore has written and the file system gave another time, by its coarser clock, is not fetched again.
    let is_ours = context.is_of_this_restore(&stat);
    let takes_local = context.options.in_place || context.compares_content || is_ours;
    let usable = takes_local && link == Link::No && kind(&stat) == FileType::RegularFile;
    let may_stay = (context.overwrite == Overwrite::IfChanged || is_ours) && is_only_name(&stat, node);
    Ok(Verdict::Replace(match (usable, node.size == u64::try_from(stat.st_size).ok()) {
        (true, true) if may_stay && node.kind == NodeKind::File => Reuse::Keep,
        (true, _) => Reuse::Copy,
        _ => Reuse::No,
    }))
}

/// # Errors
/// [`Error::Refused`] if another process holds a lock on the database with the name of a node.
pub(super) fn refuse_locked(folder: &Folder, node: &Node) -> Result<()> {
    match locked_by(folder, &node.name)? {
        Some(holder) => Err(in_use(&folder.path_of(&node.name), &holder)),
        None => Ok(()),
    }
}

fn folder_is_empty(folder: &Folder, node: &Node) -> Result<bool> {
    let path = folder.path_of(&node.name);
    let mut entries = std::fs::read_dir(&path).map_err(|e| Error::file("list", &path, e))?;
    Ok(entries.next().is_none())
}

/// A file with further names that the snapshot doesn't have as such may be another file's as well.
fn is_only_name(stat: &Stat, node: &Node) -> bool {
    stat.st_nlink == 1 || node.hard_link.is_some()
}

/// Whether what is there is what the snapshot has, as far as it is trusted to tell.
fn same(context: &Context<'_>, folder: &Folder, node: &Node, stat: &Stat) -> Result<Option<Verdict>> {
    let trusted = match context.overwrite {
        Overwrite::Always => context.is_of_this_restore(stat),
        Overwrite::IfChanged => true,
        Overwrite::Never => false,
    };
    if !trusted {
        return Ok(None);
    }
    match (node.kind, kind(stat)) {
        (NodeKind::File | NodeKind::Database, FileType::RegularFile) => {}
        (NodeKind::Symlink, FileType::Symlink) => {
            let leads = folder.link_target(&node.name)?;
            let same = leads.as_deref() == node.target.as_deref().map(|t| &t[..]) && node.xattrs.is_none();
            return Ok((same && context.attributes.are_those_of(stat, node)).then_some(Verdict::Keep));
        }
        (NodeKind::Fifo, FileType::Fifo)
        | (NodeKind::CharDevice, FileType::CharacterDevice)
        | (NodeKind::BlockDevice, FileType::BlockDevice) => {
            let same = node.rdev.is_none_or(|rdev| rdev == stat.st_rdev) && node.xattrs.is_none();
            return Ok((same && context.attributes.are_those_of(stat, node)).then_some(Verdict::Keep));
        }
        _ => return Ok(None),
    }
    if !is_only_name(stat, node) || node.size != u64::try_from(stat.st_size).ok() {
        return Ok(None);
    }
    let Ok(Some(file)) = folder.open_file(&node.name) else { return Ok(None) };
    let has_time = (stat.st_mtime, stat.st_mtime_nsec.cast_signed()) == (node.mtime.secs, node.mtime.nanos.into());
    let path = folder.path_of(&node.name);
    let same = match &node.database {
        Some(database) => {
            // Commits go to the WAL first: two versions of a database may have the same size and time.
            !has_log(folder, &node.name)?
                && match context.options.dry_run && !context.compares_content {
                    true => has_time,
                    false => is_captured(context, database, &file, &path)?,
                }
        }
        None if context.compares_content && context.is_looking() => reuse::has_content(context, node, &file)?,
        None => has_time && !context.compares_content,
    };
    Ok(same.then_some(Verdict::Same(file)))
}

fn has_log(folder: &Folder, name: &[u8]) -> Result<bool> {
    for suffix in [SIDECARS[0], SIDECARS[2]] {
        if folder.stat(&beside(name, suffix))?.is_some_and(|s| s.st_size > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file says that it is a database.
pub(super) fn is_database(folder: &Folder, name: &[u8]) -> bool {
    let mut start = [0; 16];
    let file = reuse::open_regular(folder, name).ok().flatten();
    file.is_some_and(|file| read_exact_at(&file, &mut start, 0).is_ok() && has_magic(&start))
}

/// Whether a file is, byte for byte, the database that was captured.
fn is_captured(context: &Context<'_>, database: &Database, file: &OwnedFd, path: &Path) -> Result<bool> {
    let hash = context.hash_of(file, path)?;
    Ok(hash.as_bytes()[..] == context.repo.read_map(&database.map)?.0.file_hash[..])
}

/// Whether a file is a database that another process has open, or belongs to one.
///
/// # Errors
/// If its locks can't be looked at.
pub(super) fn is_part_of_open_database(folder: &Folder, name: &[u8]) -> Result<Option<Holder>> {
    match locked_by(folder, owner_of(name).unwrap_or(name)) {
        // What we may not read is not ours to know of; who may delete it decides by the directory.
        Err(Error::File { error, .. }) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        answer => answer,
    }
}
