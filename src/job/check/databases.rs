//! Rebuilding databases and letting SQLite look at them.
//!
//! What is rebuilt is hostile input as far as SQLite is concerned: it is opened read-only and immutable, with nothing
//! in its schema trusted, and no query is run but the two checks.

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::structure::FoundDatabase;
use super::{damage, note};
use crate::crypto;
use crate::error::{Error, Result};
use crate::id::hex;
use crate::repo::Repository;
use crate::report::Reporter;

/// Lines of an integrity check that are shown.
const MAX_LINES: u32 = 5;
/// Bytes that a path in a URI may hold as they are.
const PLAIN: &[u8] = b"/-_.~";

/// A file that is deleted when dropped.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
        let path = folder.join(format!("snapshot-check-{}.db", hex(&crypto::random::<16>()?)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        Ok(Self { file: file.map_err(|e| Error::file("create", &path, e))?, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Rebuilds each database below `scratch`, one at a time, and has SQLite check it. Returns how many were rebuilt.
pub(super) fn check(
    repo: &Repository,
    databases: &[FoundDatabase],
    scratch: &Path,
    reporter: &Reporter,
) -> Result<u64> {
    let mut rebuilt = 0;
    for database in databases {
        reporter.check_interrupt()?;
        let name = format!("{} in snapshot {}", String::from_utf8_lossy(&database.path), database.snapshot.short());
        reporter.current(|| name.clone());
        let scratch = Scratch::new(scratch)?;
        match repo.materialise(&database.map, &scratch.file, reporter) {
            Ok(_) => {
                rebuilt += 1;
                judge(&scratch.path, &name, reporter);
            }
            // The disk that it is rebuilt on: says nothing about the repository.
            Err(Error::File { action, error, .. }) => {
                return Err(Error::File { action, path: scratch.path.clone(), error });
            }
            Err(e) => {
                let error = repo.only_this_object(e)?;
                let why = format!("it can't be rebuilt: {error}; this generation of it can't be restored");
                let hint =
                    "run `snapshot check --read-data` to see which object is to blame, and restore another generation";
                damage(reporter, &name, why, hint);
            }
        }
    }
    Ok(rebuilt)
}

/// Reports what SQLite says of a database that equals the captured one byte for byte.
fn judge(path: &Path, name: &str, reporter: &Reporter) {
    let hint = "it was so when it was captured: repair it at the source, or look for an older generation that is sound";
    match integrity(path) {
        Ok(lines) if lines.is_empty() => match foreign_keys(path) {
            Ok(0) => {}
            Ok(n) => {
                note(reporter, name, format!("{n} rows refer to rows that are not there (foreign_key_check)"), hint)
            }
            Err(e) => note(reporter, name, format!("its foreign keys can't be checked: {e}"), hint),
        },
        Ok(lines) => damage(reporter, name, format!("SQLite finds it damaged: {}", lines.join("; ")), hint),
        Err(e) if matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) => {
            damage(reporter, name, format!("SQLite finds it damaged: {e}"), hint);
        }
        // For example a collation or table module that only the application has.
        Err(e) => {
            note(reporter, name, format!("SQLite can't check it here: {e}"), "let the application itself check it")
        }
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let escape = |b: &u8| {
        let plain = b.is_ascii_alphanumeric() || PLAIN.contains(b);
        if plain { char::from(*b).to_string() } else { format!("%{b:02x}") }
    };
    let uri: String = path.as_os_str().as_bytes().iter().map(escape).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(format!("file:{uri}?immutable=1"), flags)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(db)
}

/// What the integrity check complains of.
fn integrity(path: &Path) -> rusqlite::Result<Vec<String>> {
    let db = open(path)?;
    let mut statement = db.prepare(&format!("PRAGMA integrity_check({MAX_LINES})"))?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

/// How many rows break a foreign key.
fn foreign_keys(path: &Path) -> rusqlite::Result<u64> {
    let db = open(path)?;
    let mut statement = db.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while rows.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}
