//! Proving what was restored, after it has its name: every file is read back and compared by its hashes, and SQLite
//! checks the databases.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::Advice;

use super::context::Context;
use super::database::read_back;
use super::display;
use super::reuse::has_content;
use super::write::{File, Part, State};
use crate::error::{Error, Result};
use crate::report::{Problem, Severity};

/// Rows of an integrity check that are shown.
const SHOWN_ROWS: usize = 3;

/// Sends the file system of some files to its disk, once for all: what is read back then comes from there.
pub(super) fn flush(files: &[File]) {
    // Only a help: where it fails, what is read back comes from memory.
    if let Some(Ok(handle)) = files.first().map(|file| file.part.folder.handle()) {
        let _ = rustix::fs::syncfs(&*handle);
    }
}

/// Lets go of what the system keeps of a file in memory; `dirty` if it may not be on the disk yet.
fn forget_cached(file: &OwnedFd, dirty: bool) {
    if dirty {
        let _ = rustix::fs::fdatasync(file);
    }
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Reads a file back that was written; one that is not as it was is removed, and reported.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn file(context: &Context<'_>, file: &File) -> Result<()> {
    if !file.is(|state| matches!(state, State::Done)) {
        return Ok(());
    }
    context.reporter.check_interrupt()?;
    let part = &file.part;
    let is_sound = || {
        let opened = part.folder.open_file(&part.node.name)?;
        let opened = opened.ok_or_else(|| Error::file("read back", part.path(), io::ErrorKind::NotFound))?;
        forget_cached(&opened, false);
        has_content(context, &part.node, &opened)
    };
    match is_sound() {
        Ok(true) => {
            context.tally.verified.add(1);
            return Ok(());
        }
        Ok(false) => context.lose(&part.path(), disprove(part))?,
        Err(e) => context.lose(&part.path(), e)?,
    }
    file.set(State::Lost);
    context.tally.files.take_back(1);
    Ok(())
}

/// Removes what is not what was written.
fn disprove(part: &Part) -> Error {
    let what = match part.folder.remove(&part.node.name) {
        Ok(()) => "what was read back is not what was written, and it was removed".to_owned(),
        Err(e) => format!("what was read back is not what was written; remove it, which was tried: {e}"),
    };
    Error::refused(what, "the target's disk or this machine's memory is failing: restore to another one")
}

/// Reads a restored database back and runs `PRAGMA integrity_check` on it; `false` if it did not pass that, which is
/// reported.
///
/// # Errors
/// If it can't be read, or is not as it was captured: then it is removed.
pub(super) fn database(context: &Context<'_>, part: &Part) -> Result<bool> {
    prove(context, part)?;
    let path = &part.path();
    let (severity, why) = match integrity(path) {
        Ok(rows) if rows == ["ok"] => return Ok(true),
        Ok(rows) => (Severity::Restore, format!("restored as it was captured, but not sound: {}", rows.join("; "))),
        Err(e) if matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) => {
            (Severity::Restore, format!("restored as it was captured, but not sound: {e}"))
        }
        Err(e) => (Severity::Note, format!("restored exactly, but its integrity could not be checked: {e}")),
    };
    let hint = (severity == Severity::Restore).then(|| "an older snapshot may hold a sound version".into());
    context.reporter.problem(Problem { severity, what: display(path), why, hint });
    Ok(false)
}

/// Reads a database back; one that is not as it was captured is removed.
fn prove(context: &Context<'_>, part: &Part) -> Result<()> {
    let path = part.path();
    let (Some(database), Some(file)) = (&part.node.database, part.folder.open_file(&part.node.name)?) else {
        return Err(Error::file("read back", path, io::ErrorKind::NotFound));
    };
    forget_cached(&file, true);
    let hash = read_back(context, &file, &path, part.node.size.unwrap_or(0))?;
    let is_captured = hash.as_bytes()[..] == context.repo.read_map(&database.map)?.0.file_hash[..];
    if is_captured { Ok(()) } else { Err(disprove(part)) }
}

fn integrity(path: &Path) -> rusqlite::Result<Vec<String>> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1&mode=ro");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let mut check = connection.prepare("PRAGMA integrity_check")?;
    check.query_map([], |row| row.get(0))?.take(SHOWN_ROWS).collect()
}
