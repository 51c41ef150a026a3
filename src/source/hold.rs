//! Holding a read transaction in a child process.
//!
//! The child is this program, started with the hidden command `hold-database`: it opens the database with SQLite and
//! nothing else, begins a read transaction, says `held`, and waits for the end of its input. It queries nothing but
//! the header, so no schema of a hostile database is ever parsed. When the parent dies, the pipe closes and the
//! transaction ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

/// Name of the hidden command.
pub const COMMAND: &str = "hold-database";
/// How long the child waits for a writer in rollback-journal mode to finish.
const BUSY: Duration = Duration::from_secs(10);
/// How long it waits between two tries: SQLite's own waits of up to 100 ms miss, again and again, the gaps that a
/// writer leaves which commits without pause.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a journal may look like that of a transaction which was cut off. It does for a moment where one
/// transaction follows the other, and a reader can't tell.
const HOT: Duration = Duration::from_secs(1);
const HELD: &str = "held";

/// A read transaction that a child process holds; ends when dropped.
pub struct Hold {
    child: Child,
}

impl Hold {
    /// Starts `helper`, which is this program, and waits until it holds a read transaction on the database.
    ///
    /// # Errors
    /// SQLite's own words why it can't be had, or that the child could not be started.
    pub fn start(helper: &Path, database: &Path) -> Result<Self, String> {
        let mut child = Command::new(helper)
            .arg(COMMAND)
            .arg(absolute(database))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{} can't be started: {e}", helper.display()))?;
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            let _ = BufReader::new(out).read_line(&mut said);
        }
        let hold = Self { child };
        match said.trim_end() {
            HELD => Ok(hold),
            "" => Err("the process that should hold it ended".into()),
            why => Err(why.to_owned()),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The child's whole work; returns its exit status.
pub fn hold_database(path: &Path) -> u8 {
    let held = begin(path);
    let said = match &held {
        Ok(_) => HELD.to_owned(),
        Err(e) => e.to_string().replace('\n', " "),
    };
    let mut out = std::io::stdout();
    if writeln!(out, "{said}").and_then(|()| out.flush()).is_ok() && held.is_ok() {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    u8::from(held.is_err())
}

fn begin(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Duration::ZERO)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.execute_batch("BEGIN")?;
    let begun = Instant::now();
    // Reads the header, and with it begins the read transaction; no schema is parsed.
    while let Err(e) = db.query_row("PRAGMA schema_version", [], |_| Ok(())) {
        if begun.elapsed() > patience(&e) {
            return Err(e);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(db)
}

/// How long an error may be taken for the work of a writer that will be done with it.
fn patience(error: &rusqlite::Error) -> Duration {
    match error.sqlite_error() {
        Some(e) if e.code == ErrorCode::DatabaseBusy => BUSY,
        Some(e) if e.extended_code == ffi::SQLITE_READONLY_ROLLBACK => HOT,
        _ => Duration::ZERO,
    }
}
