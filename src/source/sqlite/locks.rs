//! SQLite's locks, seen from outside.
//!
//! Bytes and protocol: "File Locking And Concurrency" and "WAL-mode File Format" in SQLite's documentation. Open file
//! description locks conflict with other processes' POSIX locks, and asking about them disturbs nobody.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Pending byte, reserved byte and the 510 shared bytes of the main file.
const MAIN_LOCKS: (i64, i64) = (0x4000_0000, 512);
/// The "dead man's switch" of the `-shm` file: every connection in WAL mode holds a shared lock on it.
const DEAD_MANS_SWITCH: (i64, i64) = (128, 1);

/// How a main file is locked by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// By nobody.
    None,
    /// Some process has it open or is writing.
    Busy,
}

fn request(kind: i32, (start, len): (i64, i64)) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Whether a lock of any kind is held by somebody else in the range.
fn is_locked(file: &File, range: (i64, i64)) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, range);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
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
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    Ok(if by_shm || is_locked(main, MAIN_LOCKS)? { Use::Busy } else { Use::None })
}

/// After a held capture: if the application has closed the database meanwhile and only our own reader kept an empty
/// `-wal` and a `-shm` alive, removes them as SQLite's last connection does, under the same exclusive lock.
pub fn tidy_sidecars(path: &Path) {
    let (wal, shm) = (sidecar(path, "-wal"), sidecar(path, "-shm"));
    let is_empty = fs::metadata(&wal).is_ok_and(|m| m.len() == 0);
    let Ok(main) = OpenOptions::new().read(true).write(true).open(path) else { return };
    if !is_empty || !matches!(in_use(&main, path), Ok(Use::None)) {
        return;
    }
    let lock = request(libc::F_WRLCK, MAIN_LOCKS);
    if fcntl(&main, FcntlArg::F_OFD_SETLK(&lock)).is_ok() && fs::metadata(&wal).is_ok_and(|m| m.len() == 0) {
        let _ = fs::remove_file(wal);
        let _ = fs::remove_file(shm);
    }
}
