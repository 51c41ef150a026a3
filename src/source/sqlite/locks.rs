//! SQLite's locks, seen from outside, and those of readers.
//!
//! Bytes and protocol: "File Locking And Concurrency" and "WAL-mode File Format" in SQLite's documentation. Open file
//! description locks conflict with other processes' POSIX locks, and asking about them disturbs nobody.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A range of bytes of a file: its first, and how many.
pub type Range = (i64, i64);

/// Of the main file: a writer waits for its readers to go.
pub const PENDING: Range = (0x4000_0000, 1);
/// Of the main file: a transaction that writes has begun.
pub const RESERVED: Range = (0x4000_0001, 1);
/// Of the main file: locked by readers in common, by a writer alone.
pub const SHARED: Range = (0x4000_0002, 510);
/// All of these.
const MAIN_LOCKS: Range = (0x4000_0000, 512);
/// Of the `-shm` file: the lock of read mark 0.
pub const READ_MARK_0: Range = (123, 1);
/// The "dead man's switch" of the `-shm` file: every connection in WAL mode holds a shared lock on it.
const DEAD_MANS_SWITCH: Range = (128, 1);

/// How a main file is locked by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// By nobody.
    None,
    /// Some process has it open or is writing.
    Busy,
}

fn request(kind: i32, (start, len): Range) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Whether a lock of any kind is held by somebody else in the range: through another description of the file, that is.
///
/// # Errors
/// When locks can't be asked about: the file system has none.
pub fn is_locked(file: &File, range: Range) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, range);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Locks a range for reading, until it is unlocked or `file` is closed; `false` if somebody has it locked for writing.
///
/// # Errors
/// When it can't be locked at all: the file system has no locks.
pub fn try_read_lock(file: &File, range: Range) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(libc::F_RDLCK, range))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Gives up a lock.
///
/// # Errors
/// The system's.
pub fn unlock(file: &File, range: Range) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&request(libc::F_UNLCK, range)))?;
    Ok(())
}

/// The path of a sidecar.
pub fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether some process has the database open, as far as locks tell: in WAL mode every connection shows, in the other
/// modes those that are within a transaction.
///
/// # Errors
/// When locks can't be asked about: the file system has none.
pub fn in_use(main: &File, path: &Path) -> io::Result<Use> {
    let by_shm = match File::open(sidecar(path, "-shm")) {
        Ok(shm) => is_locked(&shm, DEAD_MANS_SWITCH)?,
        // Whoever has the database open in WAL mode has a lock on the main file, too.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => false,
        Err(e) => return Err(e),
    };
    Ok(if by_shm || is_locked(main, MAIN_LOCKS)? { Use::Busy } else { Use::None })
}
