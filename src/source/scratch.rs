//! Directories for what is needed for a moment only, such as a snapshot that is restored to see whether it can be.
//!
//! One is removed when it is dropped; what a killed process left is removed by the next that makes one in the same
//! place: each is locked as long as its process lives. May depend on `error` and `crypto`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::crypto;
use crate::error::{Error, Result};
use crate::id::hex;

/// What their names begin with.
const PREFIX: &str = "snapshot-scratch-";
/// Another process may take a directory for a dead one's between its making and locking: then once more.
const TRIES: usize = 10;

/// A directory of this process alone.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Locked.
    _handle: File,
}

impl Scratch {
    /// Makes one below `folder`, which is made if it is missing, and removes what dead processes left there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
        sweep(folder);
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..TRIES {
            let path = folder.join(format!("{PREFIX}{}", hex(&crypto::random::<8>()?)));
            let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| lock(&path));
            match made {
                Ok(Some(handle)) => return Ok(Self { path, _handle: handle }),
                Ok(None) => {}
                Err(e) => last = e,
            }
        }
        Err(Error::file("create a directory in", folder, last))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much can be written to its file system, in bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.path).map_err(|e| Error::file("look for space in", &self.path, e))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`Error::File`] if something in it can't be removed.
    pub fn remove(self) -> Result<()> {
        remove_all(&self.path).map_err(|e| Error::file("remove", &self.path, e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may be gone already; what can't be removed now is tried again by the next.
        let _ = remove_all(&self.path);
    }
}

/// Locks a directory; `None` if somebody else has, or if it is gone or another one by now.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let handle = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        handle => handle?,
    };
    match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        // Some network file systems have no locks.
        locked => locked?,
    }
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let is_same = fs::symlink_metadata(path).is_ok_and(|named| handle.metadata().is_ok_and(|own| same(&named, &own)));
    Ok(is_same.then_some(handle))
}

/// Removes what dead processes left. What belongs to others, or can't be removed, stays.
fn sweep(folder: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if is_ours && let Ok(Some(_handle)) = lock(&entry.path()) {
            let _ = remove_all(&entry.path());
        }
    }
}

/// Removes a directory with all that is in it, however deep, whatever its permissions: directories in it are brought up to
/// the first level before they are emptied, so that neither a path nor a stack gets long.
fn remove_all(root: &Path) -> io::Result<()> {
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o700));
    let mut brought_up = 0u64;
    let mut more = true;
    while more {
        more = false;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            open(&entry.path())?;
            for below in fs::read_dir(entry.path())? {
                let below = below?;
                if below.file_type()?.is_dir() {
                    open(&below.path())?;
                    brought_up += 1;
                    more = true;
                    fs::rename(below.path(), root.join(format!("{PREFIX}{brought_up}")))?;
                } else {
                    fs::remove_file(below.path())?;
                }
            }
            fs::remove_dir(entry.path())?;
        }
    }
    fs::remove_dir(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_removed_with_all_that_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("stays"), "x").unwrap();
        let scratch = Scratch::new(&folder.path().join("deep/er")).unwrap();
        assert!(scratch.free_bytes().unwrap() > 0);
        let path = scratch.path().to_owned();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        // Deeper than a path can be long, some of it closed.
        let closed = path.join("target/closed");
        fs::create_dir_all(closed.join("empty")).unwrap();
        fs::write(closed.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, path.join("target/link")).unwrap();
        let mut level = File::open(&path).unwrap();
        for _ in 0..2000 {
            rustix::fs::mkdirat(&level, "a-level", rustix::fs::Mode::RWXU).unwrap();
            let below = rustix::fs::openat(&level, "a-level", OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
            level = File::from(below);
        }
        mode(&closed.join("empty"), 0);
        mode(&closed, 0);
        mode(&path.join("target"), 0o500);
        scratch.remove().unwrap();
        assert!(!path.exists() && outside.join("stays").exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let first = Scratch::new(folder.path()).unwrap();
        let dead = folder.path().join(format!("{PREFIX}0123456789abcdef"));
        fs::create_dir_all(dead.join("srv/app")).unwrap();
        fs::write(dead.join("srv/app/data.db"), "x").unwrap();
        let other = folder.path().join("something else");
        fs::create_dir(&other).unwrap();
        let second = Scratch::new(folder.path()).unwrap();
        assert!(!dead.exists() && other.exists() && first.path().exists() && second.path() != first.path());
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists() && second.path().exists());
    }
}
