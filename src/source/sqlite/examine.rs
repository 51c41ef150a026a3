//! What SQLite itself says of a database file: whether it is sound, and what is in it.
//!
//! The file came out of a repository and may be hostile: it is opened read-only and immutable, nothing in its schema is
//! trusted, and nothing runs but the two checks, a few pragmas, a look at the schema, and counting. May depend on
//! `format` and below.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};

use crate::error::Result;
use crate::format::facts::{Facts, MAX_TABLES, SchemaHash, SchemaHasher, TableRows, tables_of};
use crate::report::Reporter;

/// Lines of an integrity check that are shown.
const MAX_LINES: u32 = 5;
/// How often it is looked whether the user has had enough.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes that a path in a URI may hold as they are.
const PLAIN: &[u8] = b"/-_.~";

/// Something that SQLite has to say of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is damaged: what `PRAGMA integrity_check` complains of.
    Unsound(String),
    /// So many rows refer to rows that are not there, by `PRAGMA foreign_key_check`.
    Orphans(u64),
    /// It can't be checked, or not wholly, for this reason: a module that only the application has, say.
    CantTell(String),
}

/// What SQLite says of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examined {
    /// What is wrong; nothing if it is sound.
    pub findings: Vec<Finding>,
    /// What is in it, if it is sound as far as that could be told.
    pub facts: Option<Facts>,
}

impl Examined {
    /// Whether it was found sound, wholly.
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|found| !matches!(found, Finding::Orphans(_)))
    }
}

/// Has SQLite check a database, and count what is in it.
///
/// # Errors
/// [`crate::error::Error::Interrupted`]. All else is a finding.
pub fn examine(path: &Path, reporter: &Reporter) -> Result<Examined> {
    let mut out = Examined::default();
    let examined = open(path).and_then(|db| {
        let (done, waiting) = mpsc::channel::<()>();
        let handle = db.get_interrupt_handle();
        std::thread::scope(|scope| {
            // What SQLite does in one call can take minutes.
            scope.spawn(move || {
                while waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    if reporter.check_interrupt().is_err() {
                        handle.interrupt();
                    }
                }
            });
            let examined = look(&db, &mut out);
            drop(done);
            examined
        })
    });
    reporter.check_interrupt()?;
    if let Err(error) = examined {
        let is_damage = matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
        let found = if is_damage { Finding::Unsound } else { Finding::CantTell };
        out.findings.push(found(error.to_string()));
    }
    Ok(out)
}

fn look(db: &Connection, out: &mut Examined) -> rusqlite::Result<()> {
    let complaints = integrity(db)?;
    if !complaints.is_empty() {
        out.findings.push(Finding::Unsound(complaints.join("; ")));
        return Ok(());
    }
    out.facts = Some(facts(db)?);
    let orphans = foreign_keys(db)?;
    out.findings.extend((orphans > 0).then_some(Finding::Orphans(orphans)));
    Ok(())
}

/// Opens a database that may be hostile: nothing is written, and nothing in its schema is trusted.
///
/// # Errors
/// What SQLite says.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
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
fn integrity(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare(&format!("PRAGMA integrity_check({MAX_LINES})"))?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

/// How many rows break a foreign key.
fn foreign_keys(db: &Connection) -> rusqlite::Result<u64> {
    let mut statement = db.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while rows.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn facts(db: &Connection) -> rusqlite::Result<Facts> {
    let number = |pragma: &str| db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let encoding: String = db.query_row("PRAGMA encoding", [], |row| row.get(0))?;
    let (schema_hash, names) = schema(db)?;
    let mut tables = Vec::new();
    // One more than allowed says that there are too many.
    for name in names.iter().flatten().take(MAX_TABLES + 1) {
        let quoted = name.replace('"', "\"\"");
        let sql = format!("SELECT count(*) FROM main.\"{quoted}\" NOT INDEXED");
        let rows = db.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        tables.push(TableRows { name: name.clone(), rows: rows.unsigned_abs() });
    }
    Ok(Facts {
        user_version: number("user_version")? as i32,
        application_id: number("application_id")? as i32,
        schema_version: number("schema_version")? as u32,
        encoding: match encoding.as_str() {
            "UTF-16le" => 2,
            "UTF-16be" => 3,
            _ => 1,
        },
        free_pages: number("freelist_count")? as u32,
        schema_hash,
        tables: names.and_then(|_| tables_of(tables)),
    })
}

/// The schema's hash, and the names of the tables that have pages; `None` for what makes no sense.
fn schema(db: &Connection) -> rusqlite::Result<(Option<SchemaHash>, Option<Vec<String>>)> {
    let mut statement = db.prepare("SELECT type, name, tbl_name, sql, rootpage FROM sqlite_schema ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    let (mut hasher, mut is_text, mut names) = (SchemaHasher::default(), true, Some(Vec::new()));
    while let Some(row) = rows.next()? {
        for column in 0..4 {
            let value = row.get_ref(column)?;
            let text = if let ValueRef::Text(text) = value { Some(text) } else { None };
            is_text &= text.is_some() || value == ValueRef::Null;
            hasher.column(text);
        }
        let has_pages = matches!(row.get_ref(4)?, ValueRef::Integer(root) if root > 0);
        if has_pages && row.get_ref(0)? == ValueRef::Text(b"table") {
            match name(row)? {
                Some(name) => names.iter_mut().for_each(|names| names.push(name.clone())),
                None => names = None,
            }
        }
    }
    Ok((is_text.then(|| hasher.finish()), names))
}

/// A name that SQLite can be asked for.
fn name(row: &Row<'_>) -> rusqlite::Result<Option<String>> {
    let ValueRef::Text(name) = row.get_ref(1)? else { return Ok(None) };
    Ok(str::from_utf8(name).ok().filter(|name| !name.contains('\0')).map(str::to_owned))
}
