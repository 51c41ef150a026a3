//! Which files the rows of an application's database refer to.
//!
//! The database came out of a repository and may be hostile. Nothing but plain `SELECT`s of named columns runs, on what
//! `sqlite_schema` says is an ordinary table: no view, no virtual table, no generated column, no trigger. Whatever the
//! rows say is only compared with names, never used as a path.

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::Value;

use crate::error::Error;

/// A longer value is no file name, nor a list of some.
const MAX_VALUE_BYTES: usize = 4 << 20;
/// So many things that could not be read are named.
const MAX_TROUBLES: usize = 10;

/// A file that a row refers to.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where it must be, from the application's directory on.
    pub path: String,
    /// The row, for people.
    pub row: String,
}

/// Where the files are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// In the application's directory.
    Beside,
    /// There, unless the application was told otherwise where this program does not look.
    #[default]
    Unknown,
    /// Somewhere else, such as in S3.
    Elsewhere,
}

/// What was found out beside the references.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Where the files are.
    pub place: Place,
    /// What could not be understood, for people.
    pub troubles: Vec<String>,
}

impl Read {
    /// Notes something that could not be understood.
    pub fn trouble(&mut self, what: impl Into<String>) {
        if self.troubles.len() < MAX_TROUBLES {
            self.troubles.push(what.into());
        }
    }
}

/// Why references could not be read.
#[derive(Debug)]
pub enum Stop {
    /// It is not this application's database, for this reason.
    NotThis(String),
    /// What SQLite says.
    Sql(rusqlite::Error),
    /// The run as a whole ends.
    Ended(Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Takes one reference after the other.
pub type Each<'e> = dyn FnMut(Reference) -> Result<(), Error> + 'e;
/// Hands all references in a database on.
pub type Reader = fn(&Connection, &mut Each<'_>) -> Result<Read, Stop>;

/// An ordinary table.
pub struct Table<'d> {
    db: &'d Connection,
    name: String,
    columns: Vec<String>,
}

impl<'d> Table<'d> {
    /// The ordinary table of this name, if there is one.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(db: &'d Connection, name: &str) -> Result<Option<Self>, Stop> {
        if name.contains('\0') {
            return Ok(None);
        }
        let sql = "SELECT type, rootpage FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')";
        let mut statement = db.prepare(sql)?;
        let mut rows = statement.query([name])?;
        let mut found = 0;
        while let Some(row) = rows.next()? {
            // A virtual table has no pages of its own.
            let is_ordinary = row.get_ref(0)? == ValueRef::Text(b"table")
                && matches!(row.get_ref(1)?, ValueRef::Integer(root) if root > 0);
            if !is_ordinary {
                return Ok(None);
            }
            found += 1;
        }
        if found != 1 {
            return Ok(None);
        }
        let mut statement = db.prepare(&format!("PRAGMA main.table_xinfo({})", quoted(name)))?;
        let mut rows = statement.query([])?;
        let mut columns = Vec::new();
        while let Some(row) = rows.next()? {
            // What is not 0 is generated or hidden.
            if matches!(row.get_ref(6)?, ValueRef::Integer(0))
                && let Some(column) = text(row.get_ref(1)?)
            {
                columns.push(column);
            }
        }
        Ok(Some(Self { db, name: name.to_owned(), columns }))
    }

    /// Whether it has a stored column of this name.
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known.eq_ignore_ascii_case(column))
    }

    /// Hands on these columns of each row as text; `None` for NULL, blobs, and what is too long.
    ///
    /// # Errors
    /// [`Stop::NotThis`] if it lacks a column; what SQLite or `each` says.
    pub fn rows(
        &self,
        columns: &[&str],
        each: &mut dyn FnMut(Vec<Option<String>>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if let Some(missing) = columns.iter().find(|column| !self.has(column)) {
            return Err(Stop::NotThis(format!("its table {} has no column {missing}", self.name)));
        }
        let list: Vec<_> = columns.iter().map(|column| quoted(column)).collect();
        let sql = format!("SELECT {} FROM main.{} NOT INDEXED", list.join(", "), quoted(&self.name));
        let mut statement = self.db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns.len()).map(|n| row.get_ref(n).map(text)).collect::<rusqlite::Result<_>>()?;
            each(values)?;
        }
        Ok(())
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Text(text) if text.len() <= MAX_VALUE_BYTES => str::from_utf8(text).ok().map(str::to_owned),
        ValueRef::Integer(n) => Some(n.to_string()),
        _ => None,
    }
}

/// The table that tells an application's database from others.
///
/// # Errors
/// [`Stop::NotThis`] if there is none.
pub fn needed<'d>(db: &'d Connection, table: &str) -> Result<Table<'d>, Stop> {
    Table::open(db, table)?.ok_or_else(|| Stop::NotThis(format!("it has no table {table}")))
}

/// `attachments(id, cipher_uuid)`, and `sends(uuid, atype, data)`: those of type 1 have the file's id in their JSON. The
/// row of an attachment is written before its file: one that is being uploaded is missing for a moment.
pub(super) fn vaultwarden(db: &Connection, each: &mut Each<'_>) -> Result<Read, Stop> {
    let mut read = Read::default();
    needed(db, "attachments")?.rows(&["id", "cipher_uuid"], &mut |row| {
        let [Some(id), Some(cipher)] = &row[..] else { return Ok(()) };
        let (path, row) = (format!("attachments/{cipher}/{id}"), format!("attachment {id} of cipher {cipher}"));
        each(Reference { path, row }).map_err(Stop::Ended)
    })?;
    // Versions before 1.20 have no sends.
    let Some(sends) = Table::open(db, "sends")? else { return Ok(read) };
    sends.rows(&["uuid", "atype", "data"], &mut |row| {
        let [Some(uuid), Some(kind), data] = &row[..] else { return Ok(()) };
        if kind != "1" {
            return Ok(());
        }
        let data = data.as_deref().and_then(|data| serde_json::from_str::<Value>(data).ok());
        let id = data.as_ref().and_then(|data| data.get("id").or_else(|| data.get("Id"))?.as_str());
        match id {
            Some(id) => {
                let (path, row) = (format!("sends/{uuid}/{id}"), format!("file of send {uuid}"));
                each(Reference { path, row }).map_err(Stop::Ended)?;
            }
            None => read.trouble(format!("send {uuid} does not say which file it has")),
        }
        Ok(())
    })?;
    Ok(read)
}

/// `attachment(uuid)`: its file is `attachments/1/2/12…`.
pub(super) fn gitea(db: &Connection, each: &mut Each<'_>) -> Result<Read, Stop> {
    let mut read = Read::default();
    needed(db, "attachment")?.rows(&["uuid"], &mut |row| {
        let [Some(uuid)] = &row[..] else { return Ok(()) };
        let (Some(first), Some(second)) = (uuid.get(0..1), uuid.get(1..2)) else {
            read.trouble(format!("attachment \"{uuid}\" can have no file"));
            return Ok(());
        };
        let (path, row) = (format!("attachments/{first}/{second}/{uuid}"), format!("attachment {uuid}"));
        each(Reference { path, row }).map_err(Stop::Ended)
    })?;
    Ok(read)
}

/// `directus_files(id, storage, filename_disk)`; the storage that is the local directory is called `local` by default.
pub(super) fn directus(db: &Connection, each: &mut Each<'_>) -> Result<Read, Stop> {
    needed(db, "directus_files")?.rows(&["id", "storage", "filename_disk"], &mut |row| {
        let [Some(id), Some(storage), Some(name)] = &row[..] else { return Ok(()) };
        if storage != "local" || name.is_empty() {
            return Ok(());
        }
        each(Reference { path: format!("uploads/{name}"), row: format!("file {id}") }).map_err(Stop::Ended)
    })?;
    Ok(Read::default())
}
