//! What is at the target already: files to leave or to replace, and what belongs to a database that is replaced.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FileType, Stat};

use super::context::Context;
use super::database::read_back;
use super::plan::Walk;
use super::write::Part;
use super::{Overwrite, display};
use crate::error::{Error, Result};
use crate::format::tree::{Database, Node, NodeKind};
use crate::source::target::Folder;

pub(super) const SIDECARS: [&[u8]; 3] = [b"-wal", b"-shm", b"-journal"];
/// Where SQLite locks a database file: offset and length in bytes.
const FILE_LOCKS: (i64, i64) = (0x4000_0000, 512);
/// Where it locks the `-shm` file; the last byte is held by everyone who has the database open.
const SHM_LOCKS: (i64, i64) = (120, 9);

/// Whether a node is a database, or was one that could not be captured.
fn may_be_database(node: &Node) -> bool {
    node.kind == NodeKind::Database || (node.kind == NodeKind::File && node.unverified.is_some())
}

fn beside(name: &[u8], suffix: &[u8]) -> Vec<u8> {
    [name, suffix].concat()
}

/// The names of files beside a database that must be gone before it gets its name: an old WAL must never blend into a
/// restored database. Those that the snapshot restores are replaced on their own.
pub(super) fn stale_sidecars(folder: &Folder, node: &Node, walk: &Walk<'_>) -> Vec<Vec<u8>> {
    if folder.is_new() || !may_be_database(node) {
        return Vec::new();
    }
    SIDECARS.iter().map(|suffix| beside(&node.name, suffix)).filter(|name| !walk.will_reach(name)).collect()
}

/// Whether what is there is left as it is. Otherwise it may be replaced.
///
/// # Errors
/// If it may not be replaced: another process has the database open, or it is a directory.
pub(super) fn is_kept(context: &Context<'_>, part: &Part) -> Result<bool> {
    let Part { folder, node, .. } = part;
    if folder.is_new() {
        return Ok(false);
    }
    let force = context.options.force;
    let there = folder.stat(&node.name)?;
    if let Some(stat) = &there {
        match context.options.overwrite {
            Some(Overwrite::Never) => return Ok(true),
            Some(Overwrite::IfChanged) if is_unchanged(context, part, stat)? => return Ok(true),
            _ => {}
        }
    }
    if !force && may_be_database(node) && is_in_use(folder, &node.name)? {
        return Err(Error::refused(
            format!("another process has the database {} open", display(&part.path())),
            "end that process and restore again, or restore to another directory",
        ));
    }
    if force && there.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory) {
        folder.remove_folder(&node.name)?;
    }
    Ok(false)
}

fn is_unchanged(context: &Context<'_>, part: &Part, stat: &Stat) -> Result<bool> {
    let Part { folder, node, .. } = part;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || node.size != u64::try_from(stat.st_size).ok() {
        return Ok(false);
    }
    let Some(database) = &node.database else {
        return Ok(node.mtime.secs == stat.st_mtime && u64::from(node.mtime.nanos) == stat.st_mtime_nsec);
    };
    // Commits go to the WAL first: two versions of a database may have the same size and time.
    for suffix in [SIDECARS[0], SIDECARS[2]] {
        if folder.stat(&beside(&node.name, suffix))?.is_some_and(|s| s.st_size > 0) {
            return Ok(false);
        }
    }
    match folder.open_file(&node.name)? {
        Some(file) => is_captured(context, database, &file, &part.path(), stat.st_size.unsigned_abs()),
        None => Ok(false),
    }
}

/// Whether a file is, byte for byte, the database that was captured.
///
/// # Errors
/// If the file or the page map can't be read.
pub(super) fn is_captured(
    context: &Context<'_>,
    database: &Database,
    file: &OwnedFd,
    path: &Path,
    bytes: u64,
) -> Result<bool> {
    let hash = read_back(context, file, path, bytes)?;
    Ok(hash.as_bytes()[..] == context.repo.read_map(&database.map)?.0.file_hash[..])
}

/// Whether another process holds one of SQLite's locks on a database.
fn is_in_use(folder: &Folder, name: &[u8]) -> Result<bool> {
    for (name, range) in [(name.to_vec(), FILE_LOCKS), (beside(name, SIDECARS[1]), SHM_LOCKS)] {
        if let Some(file) = folder.open_file(&name)?
            && is_locked(file, range).map_err(|e| Error::file("inspect", folder.path_of(&name), e))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_locked(file: impl AsFd, (start, len): (i64, i64)) -> nix::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}
