//! Holding off those who would change a database while it is read.
//!
//! The locks are the ones that an SQLite reader takes, at the same bytes and in the same order, but as *open file
//! description locks*: POSIX locks go when any descriptor of the file is closed in the process that holds them, these
//! when the one description they were taken through is closed. So no SQLite is needed, no second process, no right to
//! write, and nothing appears beside the database: a reader of SQLite's own makes a `-wal` and a `-shm`, may have to
//! recover a log, and lets whoever opens the database in that moment meet SQLITE_BUSY.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::locks::{PENDING, READ_MARK_0, SHARED, sidecar, try_read_lock, unlock};

/// How long a writer in rollback-journal mode, or a checkpoint, is waited for.
pub const BUSY: Duration = Duration::from_secs(10);
/// How long is waited between two tries: longer waits miss, again and again, the gaps that a writer leaves which
/// commits without pause.
pub const PAUSE: Duration = Duration::from_millis(1);

/// Takes a SHARED lock on a main file, for as long as `main` is open; `false` if a writer doesn't let us.
///
/// In rollback-journal mode no transaction can be written to the file under it. In WAL mode nobody can close the
/// database in a way that writes to the file and removes the log.
///
/// # Errors
/// When there are no locks: the file system has none.
pub fn lock_main(main: &File) -> io::Result<bool> {
    // A writer that has PENDING waits for its readers to go: no new one may come.
    if !try_read_lock(main, PENDING)? {
        return Ok(false);
    }
    let got = try_read_lock(main, SHARED);
    unlock(main, PENDING)?;
    got
}

/// Keeps everybody from copying the log into the main file of a database in WAL mode; [`lock_main`] must be held.
///
/// Read mark 0 is that of readers who take everything from the main file, so a checkpoint needs its lock exclusively
/// before it writes there ("WAL-mode File Format", 2.3.1). Writers go on: they append to the log, and begin it anew
/// only where all of it had been copied before the lock was taken. A checkpoint under way is waited for.
///
/// The lock lasts as long as the `-shm` file that is returned is open. Where there is none, nobody has the database open
/// in WAL mode yet, and if we may not read it, who has can't be held off.
///
/// # Errors
/// When the lock can't be had within [`BUSY`].
pub fn hold_log(path: &Path) -> io::Result<Option<File>> {
    let shm = match File::open(sidecar(path, "-shm")) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        shm => shm?,
    };
    let begun = Instant::now();
    while !try_read_lock(&shm, READ_MARK_0)? {
        if begun.elapsed() > BUSY {
            return Err(io::Error::other("a checkpoint has been under way for more than 10 seconds"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Some(shm))
}
