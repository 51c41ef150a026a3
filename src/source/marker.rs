//! The mark of a restore that has not ended: a file in the target, there from the first moment to the end.
//!
//! May depend on `error` and its neighbour `target`. It is locked while a restore is at work, so that a second one
//! stays away; when a restore was killed it tells the next one what was being restored. Its text is the caller's.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, Stat, Timestamps};
use rustix::io::Errno;

use super::steps::step;
use super::target::Folder;
use super::temporary::write_all_at;
use crate::error::{Error, Result};

/// Its name in the target.
pub const MARKER: &[u8] = b".snapshot-restore";
/// Longer is no mark of ours.
const MAX_BYTES: usize = 4096;
/// The mark may go between opening and locking it, because that restore has just ended: then once more.
const TRIES: usize = 100;
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// A mark that this process holds.
pub struct Marker {
    file: OwnedFd,
    found: Option<String>,
    is_locked: bool,
}

impl Marker {
    /// Makes the mark in a target, or takes over the one that a dead restore left.
    ///
    /// # Errors
    /// [`Error::Locked`] if another restore is at work there; [`Error::File`].
    pub fn take(target: &Folder) -> Result<Self> {
        let path = target.path_of(MARKER);
        let failed = |e: Errno| Error::file("create", &path, e);
        for _ in 0..TRIES {
            let at = target.handle()?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = fs::openat(&at, MARKER, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            let is_locked = match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => true,
                Err(Errno::WOULDBLOCK) => return Err(held(&target.path())),
                // Some network file systems have no locks.
                Err(_) => false,
            };
            let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            let named = fs::statat(&at, MARKER, AtFlags::SYMLINK_NOFOLLOW);
            if let (Ok(named), Ok(opened)) = (named, fs::fstat(&file))
                && same(&named, &opened)
            {
                let found = read(&file);
                return Ok(Self { file, found, is_locked });
            }
        }
        Err(held(&target.path()))
    }

    /// Whether a second restore would be kept away.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// What a dead restore wrote; `None` if there was none.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Writes what is being restored, durably. What comes after a zero byte is for whoever reads the whole file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, target: &Folder, bytes: &[u8]) -> Result<()> {
        step();
        let write = || -> std::io::Result<()> {
            fs::ftruncate(&self.file, 0)?;
            write_all_at(&self.file, bytes, 0)?;
            Ok(fs::fsync(&self.file)?)
        };
        write().map_err(|e| Error::file("write", target.path_of(MARKER), e))
    }

    /// When it was written, in seconds and nanoseconds, by the clock of the target's file system.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn written(&self, target: &Folder) -> Result<(i64, i64)> {
        let stat = fs::fstat(&self.file).map_err(|e| Error::file("inspect", target.path_of(MARKER), e))?;
        Ok((stat.st_mtime, stat.st_mtime_nsec.cast_signed()))
    }

    /// The restore has ended.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(self, target: &Folder) -> Result<()> {
        target.remove(MARKER)
    }
}

impl Marker {
    /// The restore was not begun after all: the mark goes, unless another one left it, and the target is as it was.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn abandon(&self, target: &Folder, time: Option<&Timestamps>) -> Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        target.remove(MARKER)?;
        time.map_or(Ok(()), |time| target.set_time(time))
    }
}

/// What the mark in a directory says, whoever holds it, and when it was written; `None` if there is none.
pub fn peek(target: &Folder) -> Option<(String, (i64, i64))> {
    let file = fs::openat(target.handle().ok()?, MARKER, READ, Mode::empty()).ok()?;
    let stat = fs::fstat(&file).ok()?;
    Some((read(&file)?, (stat.st_mtime, stat.st_mtime_nsec.cast_signed())))
}

fn read(file: &OwnedFd) -> Option<String> {
    let mut bytes = vec![0; MAX_BYTES];
    let len = rustix::io::pread(file, &mut bytes[..], 0).ok()?;
    bytes.truncate(len);
    bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(len));
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// # Errors
/// [`Error::Locked`] if a restore is at work in this directory.
pub(super) fn refuse_held(folder: &Folder) -> Result<()> {
    let opened = fs::openat(folder.handle()?, MARKER, READ, Mode::empty());
    if opened.is_ok_and(is_held) { Err(held(&folder.path())) } else { Ok(()) }
}

/// Keeps away from a directory in which a restore is at work, for a target somewhere below it.
///
/// # Errors
/// [`Error::Locked`].
pub fn refuse_above(target: &Path) -> Result<()> {
    let target = std::path::absolute(target).map_err(|e| Error::file("find", target, e))?;
    target.ancestors().skip(1).try_for_each(refuse_held_at)
}

fn refuse_held_at(folder: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let opened = fs::open(folder.join(std::ffi::OsStr::from_bytes(MARKER)), READ, Mode::empty());
    if opened.is_ok_and(is_held) { Err(held(folder)) } else { Ok(()) }
}

fn is_held(file: OwnedFd) -> bool {
    matches!(fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

fn held(folder: &Path) -> Error {
    Error::Locked { what: folder.display().to_string(), by: "another restore into it".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_next_sees_what_the_last_left() {
        let temp = tempfile::tempdir().unwrap();
        let target = Folder::target(temp.path()).unwrap();
        let first = Marker::take(&target).unwrap();
        assert!(first.is_locked() && first.found().is_none());
        first.write(&target, b"a text\0and more").unwrap();
        assert!(matches!(Marker::take(&target), Err(Error::Locked { .. })));
        assert_eq!(peek(&target).unwrap().0, "a text");

        // Neither in a directory below, nor in one above.
        let below = target.make(b"below", false).unwrap();
        let inner = Folder::target(&below.path()).unwrap();
        assert!(matches!(refuse_above(&below.path()), Err(Error::Locked { .. })));
        drop(first);
        refuse_above(&below.path()).unwrap();
        let held = Marker::take(&inner).unwrap();
        assert!(matches!(target.make(b"below", false), Err(Error::Locked { .. })));
        held.remove(&inner).unwrap();
        assert!(target.make(b"below", false).is_ok());

        let second = Marker::take(&target).unwrap();
        assert_eq!(second.found(), Some("a text"));
        second.remove(&target).unwrap();
        assert!(peek(&target).is_none());
        // A planted link is not followed.
        std::os::unix::fs::symlink("elsewhere", temp.path().join(".snapshot-restore")).unwrap();
        assert!(matches!(Marker::take(&target), Err(Error::File { .. })));
        assert!(!temp.path().join("elsewhere").exists());
    }
}
