//! A database that is about to be replaced: who has it open, making it self-contained, and keeping others out.
//!
//! What was committed to a write-ahead log, or must be rolled back from a journal, is brought into the main file first,
//! by SQLite itself, as the next program to open it would. From then on the sidecars hold nothing, and removing them
//! loses nothing: the main file alone is the old database, until another file gets its name. Meanwhile an exclusive
//! lock on SQLite's own lock bytes keeps every other connection out. It is an open file description lock: unlike those
//! of POSIX it stays when another descriptor of the file is closed in this process.
//!
//! May depend on `error` and its neighbours `target`, `handles` and `steps`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{FileType, Stat};

use super::handles::Holder;
use super::sqlite::{SIDECARS, has_magic};
use super::steps::step;
use super::target::Folder;
use crate::error::{Error, Result};

/// Where SQLite locks a database file: offset and length in bytes.
const FILE_LOCKS: (i64, i64) = (0x4000_0000, 512);
/// Where it locks the `-shm` file; the last byte is held by everyone who has the database open.
const SHM_LOCKS: (i64, i64) = (120, 9);
/// Somebody may come between the two steps; then both are done once more.
const TRIES: usize = 3;

/// The name of a sidecar.
pub fn beside(name: &[u8], suffix: &str) -> Vec<u8> {
    [name, suffix.as_bytes()].concat()
}

/// The name of the database that a sidecar's name belongs to.
pub fn owner_of(name: &[u8]) -> Option<&[u8]> {
    SIDECARS.iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes()))
}

/// Another process that holds one of SQLite's locks on a database: in WAL mode everyone who has it open, in the other
/// modes those that are within a transaction.
///
/// # Errors
/// [`Error::File`] if the locks can't be looked at.
pub fn locked_by(folder: &Folder, name: &[u8]) -> Result<Option<Holder>> {
    for (name, range) in [(name.to_vec(), FILE_LOCKS), (beside(name, SIDECARS[1]), SHM_LOCKS)] {
        let Some(file) = folder.open_file(&name)? else { continue };
        let mut lock = request(range);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|e| Error::file("inspect", folder.path_of(&name), e))?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Ok(Some(Holder::of_process(lock.l_pid)));
        }
    }
    Ok(None)
}

/// That a database is open elsewhere.
pub fn in_use(path: &Path, holder: &Holder) -> Error {
    Error::refused(
        format!("{holder} has the database {} open", path.display()),
        "end that process and restore again, or restore to another directory; --force replaces the database all the \
         same, and what the process goes on to write is lost",
    )
}

fn request((start, len): (i64, i64)) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// A database that is self-contained and that nobody else can use, as far as the file system has locks.
pub struct Exclusive {
    main: Option<OwnedFd>,
}

impl Exclusive {
    /// Makes what has this name self-contained, if it is a database, and locks it. With `force` the locks and changes
    /// of others are no reason not to go on.
    ///
    /// # Errors
    /// [`Error::Refused`] if somebody uses it, or if what its log or journal holds can't be brought into the file;
    /// [`Error::File`].
    pub fn take(folder: &Arc<Folder>, name: &[u8], force: bool) -> Result<Self> {
        let nobody = Ok(Self { main: None });
        for _ in 0..TRIES {
            let Some(stat) = folder.stat(name)? else { return nobody };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return nobody;
            }
            let is_lost = has_news(folder, name)? && !settle(folder, name, &stat, force)?;
            let Ok(Some(main)) = folder.open_to_write(name) else { return nobody };
            match fcntl(&main, FcntlArg::F_OFD_SETLK(&request(FILE_LOCKS))) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) if force => return nobody,
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let holder = locked_by(folder, name)?.unwrap_or_else(|| Holder::of_process(0));
                    return Err(in_use(&folder.path_of(name), &holder));
                }
                // A file system without locks keeps nobody out.
                Err(_) => return nobody,
            }
            let is_same = is_named(folder, name, &main)?;
            if is_same && (is_lost || !has_news(folder, name)?) {
                return Ok(Self { main: Some(main) });
            }
        }
        Err(in_use(&folder.path_of(name), &Holder::of_process(0)))
    }

    /// The main file, if it is locked.
    pub fn main(&self) -> Option<&OwnedFd> {
        self.main.as_ref()
    }
}

/// Whether a name is still that of an open file.
fn is_named(folder: &Folder, name: &[u8], file: &OwnedFd) -> Result<bool> {
    let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    let opened = rustix::fs::fstat(file).map_err(|e| Error::file("inspect", folder.path_of(name), e))?;
    Ok(folder.stat(name)?.is_some_and(|named| same(&named, &opened)))
}

/// Whether the sidecars may hold something that the main file doesn't: a log that is not empty, or a journal that does
/// not begin with a zero, as one does that is kept for the next transaction.
fn has_news(folder: &Folder, name: &[u8]) -> Result<bool> {
    if folder.stat(&beside(name, SIDECARS[0]))?.is_some_and(|s| s.st_size > 0) {
        return Ok(true);
    }
    Ok(starts_with(folder, &beside(name, SIDECARS[2]), |start| start.first().is_some_and(|b| *b != 0)))
}

/// Whether what a file begins with is as wanted. A sidecar that can't be read is for its owner to know.
fn starts_with(folder: &Folder, name: &[u8], is_wanted: impl Fn(&[u8]) -> bool) -> bool {
    let mut start = [0; 16];
    let Ok(Some(file)) = folder.open_file(name) else { return false };
    let read = rustix::io::pread(file.as_fd(), &mut start[..], 0).unwrap_or(0);
    is_wanted(start.get(..read).unwrap_or_default())
}

/// Has SQLite roll back what was not finished and bring in what was committed; says whether the main file is now all of
/// it. It is not where there is no sound database to keep: what lies beside it then belongs to nothing.
fn settle(folder: &Folder, name: &[u8], stat: &Stat, force: bool) -> Result<bool> {
    // An empty file is an empty database, whatever lies beside it; without the magic it is none of SQLite's.
    if stat.st_size == 0 || !starts_with(folder, name, has_magic) {
        return Ok(false);
    }
    step();
    let path = folder.path();
    let path = path.canonicalize().map_err(|e| Error::file("find", &path, e))?;
    let path = path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
    let opened = open_once(&path);
    if !has_news(folder, name)? {
        return Ok(true);
    }
    let why = match opened {
        Err(e) if is_unsound(&e) => return Ok(false),
        _ if force => return Ok(false),
        Err(e) => e.to_string(),
        Ok(()) => "another process has it open".to_owned(),
    };
    Err(Error::refused(
        format!("what lies beside the database {} can't be brought into it: {why}", path.display()),
        "open and close it once with its application, or with sqlite3, and restore again; --force replaces it all the \
         same",
    ))
}

/// Opens a database, which rolls a journal back, and closes it, which empties the log and removes it. Reads the header
/// and nothing else: no schema is parsed.
fn open_once(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(std::time::Duration::ZERO)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
    db.close().map_err(|(_, e)| e)
}

fn is_unsound(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}
