//! Other processes at a database: this test binary, started again to play a part. Locks and crashes are real that way.
//!
//! A role says "ready" on its standard error, and goes on until its standard input ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

const ROLE: &str = "SNAPSHOT_IT_ROLE";
const DATABASE: &str = "SNAPSHOT_IT_DATABASE";
const FILES: &str = "SNAPSHOT_IT_FILES";
/// Transactions a second of [`Role::Transfer`] and [`Role::Serve`]; as many as it can without.
pub const PACE: &str = "SNAPSHOT_IT_PACE";
/// A value for `locking_mode`, set before the database is first read.
pub const LOCKING: &str = "SNAPSHOT_IT_LOCKING";
/// A value for `journal_mode`: the file remembers no other than WAL.
pub const JOURNAL: &str = "SNAPSHOT_IT_JOURNAL_MODE";
/// Where [`Role::Serve`] writes what it has done.
pub const FIGURES: &str = "SNAPSHOT_IT_FIGURES";
/// What an application that expects to wait for others gives SQLite to be patient.
const USUAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of accounts, and what they hold together.
pub const ACCOUNTS: i64 = 100;
/// See [`ACCOUNTS`].
pub const TOTAL: i64 = ACCOUNTS * 1000;

/// What a process does with a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Moves money between accounts and adds rows, one transaction after the other, as fast as it can. An error ends
    /// it with a status other than 0.
    Transfer,
    /// An application: moves money, adds rows each with a file that is written and synced before the row is committed,
    /// rewrites many rows now and then, checkpoints, closes the database and opens it again. An error ends it.
    Serve,
    /// Commits to the log, never checkpoints, and keeps the database open.
    CommitToLog,
    /// Has the database locked for itself.
    LockForItself,
    /// Has read the database, and keeps it open between two transactions.
    Idle,
    /// Is in the middle of a transaction so large that pages have been written to the file already.
    Spill,
    /// Writes a file into this directory, then a row that names it, and removes an older row, then its file, without end.
    Attach(PathBuf),
    /// The same, each file in a directory of its own that has the number of the row.
    AttachRecords(PathBuf),
}

/// A process that plays a role.
pub struct Player {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Role {
    /// Starts a process, and waits until it is ready.
    pub fn start(self, database: &Path) -> Player {
        self.start_with(database, &[])
    }

    /// Starts a process with variables, and waits until it is ready.
    pub fn start_with(self, database: &Path, variables: &[(&str, &str)]) -> Player {
        let name = match self {
            Role::Transfer => "transfer",
            Role::Serve => "serve",
            Role::CommitToLog => "commit-to-log",
            Role::LockForItself => "lock-for-itself",
            Role::Idle => "idle",
            Role::Spill => "spill",
            Role::Attach(_) => "attach",
            Role::AttachRecords(_) => "attach-records",
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "roles::play", "--ignored", "--nocapture"]).env(ROLE, name).env(DATABASE, database);
        command.envs(variables.iter().copied());
        if let Role::Attach(files) | Role::AttachRecords(files) = &self {
            command.env(FILES, files);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), "ready", "{name}");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::stderr()));
        Player { stdin: child.stdin.take(), child }
    }
}

impl Player {
    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order; fails if it met an error.
    pub fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success(), "the other process has met an error");
    }

    /// Ends it as a power cut would, as far as processes go.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // Ended already, or the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a database with accounts, in the journal mode and of the page size given.
pub fn make_bank(path: &Path, mode: &str, page_bytes: u32) {
    make_bank_with(path, mode, page_bytes, "NONE");
}

/// Makes a database with accounts, with a setting of `auto_vacuum` besides.
pub fn make_bank_with(path: &Path, mode: &str, page_bytes: u32, auto_vacuum: &str) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "page_size", page_bytes).unwrap();
    db.pragma_update(None, "auto_vacuum", auto_vacuum).unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch(&format!(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER NOT NULL);
         CREATE TABLE entry(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
         CREATE INDEX by_text ON entry(text);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
         INSERT INTO account SELECT i, 1000 FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO entry SELECT i, hex(randomblob(100)) FROM n;"
    ))
    .unwrap();
}

/// Fails unless a database is whole and no money was lost or made; returns the number of its entries.
#[track_caller]
pub fn check_bank(path: &Path) -> i64 {
    let db = Connection::open(path).unwrap();
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    let total: i64 = db.query_row("SELECT sum(money) FROM account", [], |row| row.get(0)).unwrap();
    let entries: i64 = db.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap();
    assert_eq!((verdict.as_str(), total), ("ok", TOTAL), "{}", path.display());
    entries
}

/// What the other processes run; nothing unless started as one.
#[test]
#[ignore = "what other processes run, started by tests"]
fn play() {
    let (Some(role), Some(path)) = (std::env::var_os(ROLE), std::env::var_os(DATABASE)) else { return };
    let path = Path::new(&path);
    match role.to_str().unwrap() {
        "transfer" => transfer(path),
        "serve" => serve(path),
        "commit-to-log" => commit_to_log(path),
        "lock-for-itself" => lock_for_itself(path),
        "idle" => idle(path),
        "spill" => spill(path),
        "attach" => attach(path, &files(), |_| String::new()),
        "attach-records" => attach(path, &files(), |id| id.to_string()),
        other => panic!("no role {other}"),
    }
}

fn ready() {
    eprintln!("ready");
}

fn wait_for_end() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Becomes true at the end of standard input.
fn ended() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let set = ended.clone();
    std::thread::spawn(move || {
        wait_for_end();
        set.store(true, Ordering::Relaxed);
    });
    ended
}

/// Makes a database whose rows name files.
pub fn make_shelf(path: &Path, mode: &str) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch("CREATE TABLE shelf(id INTEGER PRIMARY KEY, file TEXT NOT NULL)").unwrap();
}

/// What is in the file that a row of this id names.
pub fn attachment(id: i64) -> Vec<u8> {
    format!("attachment {id} ").repeat(50 + (id % 7) as usize * 100).into_bytes()
}

fn files() -> PathBuf {
    std::env::var_os(FILES).unwrap().into()
}

fn attach(path: &Path, files: &Path, folder: impl Fn(i64) -> String) {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    let ended = ended();
    let name = |id: i64| format!("{id}.txt");
    ready();
    for id in 1i64.. {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        std::fs::create_dir_all(files.join(folder(id))).unwrap();
        std::fs::write(files.join(folder(id)).join(name(id)), attachment(id)).unwrap();
        db.execute("INSERT INTO shelf VALUES (?1, ?2)", (id, name(id))).unwrap();
        let old = id - 100;
        if old > 0 && old % 2 == 0 {
            db.execute("DELETE FROM shelf WHERE id = ?1", [old]).unwrap();
            std::fs::remove_file(files.join(folder(old)).join(name(old))).unwrap();
            if !folder(old).is_empty() {
                std::fs::remove_dir(files.join(folder(old))).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens a database as a writer does that waits for others where it must.
fn open_to_write(path: &Path) -> Connection {
    let mut start = [0; 20];
    File::open(path).unwrap().read_exact(&mut start).unwrap();
    let is_wal = start[19] == 2;
    let db = Connection::open(path).unwrap();
    // In WAL mode a reader never makes a writer wait, so there is nothing to be patient about.
    db.busy_timeout(if is_wal { Duration::ZERO } else { USUAL_TIMEOUT }).unwrap();
    set(&db, "locking_mode", LOCKING);
    set(&db, "journal_mode", JOURNAL);
    db.pragma_update(None, "synchronous", "NORMAL").unwrap();
    db
}

/// Sets what a variable says, if it is there.
fn set(db: &Connection, pragma: &str, variable: &str) {
    if let Ok(value) = std::env::var(variable) {
        db.pragma_update(None, pragma, value).unwrap();
    }
}

/// Waits until it is time for transaction number `i`.
fn keep_pace(begun: Instant, i: u32) {
    if let Ok(pace) = std::env::var(PACE) {
        let due = Duration::from_secs(1) * i / pace.parse().unwrap();
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

fn move_money(work: &Transaction<'_>, i: u32) {
    let i = i64::from(i);
    let (from, to, amount) = (1 + i * 7 % ACCOUNTS, 1 + i * 13 % ACCOUNTS, i % 50);
    work.execute("UPDATE account SET money = money - ?1 WHERE id = ?2", [amount, from]).unwrap();
    work.execute("INSERT INTO entry(text) VALUES (hex(randomblob(200)))", []).unwrap();
    work.execute("UPDATE account SET money = money + ?1 WHERE id = ?2", [amount, to]).unwrap();
    if i % 3 == 0 {
        work.execute("DELETE FROM entry WHERE id = (SELECT min(id) FROM entry)", []).unwrap();
    }
}

fn transfer(path: &Path) {
    let mut db = open_to_write(path);
    let (ended, begun) = (ended(), Instant::now());
    let mut i = 0;
    while !ended.load(Ordering::Relaxed) {
        let work = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        move_money(&work, i);
        work.commit().unwrap();
        if i == 0 {
            ready();
        }
        i += 1;
        keep_pace(begun, i);
    }
}

/// The file that belongs to a row, and what is in it.
pub fn upload(number: u32) -> (String, Vec<u8>) {
    let line = format!("what was uploaded as number {number}\n");
    (format!("{number:06}.txt"), line.repeat(1 + number as usize % 20).into_bytes())
}

fn serve(path: &Path) {
    let uploads = path.with_file_name("uploads");
    std::fs::create_dir_all(&uploads).unwrap();
    let folder = File::open(&uploads).unwrap();
    let mut db = open_to_write(path);
    db.execute_batch("CREATE TABLE IF NOT EXISTS upload(number INTEGER PRIMARY KEY, name TEXT NOT NULL)").unwrap();
    let (ended, begun) = (ended(), Instant::now());
    let mut longest = Duration::ZERO;
    let mut i = 0;
    ready();
    while !ended.load(Ordering::Relaxed) {
        let (name, content) = upload(i);
        let mut file = File::create(uploads.join(&name)).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        folder.sync_all().unwrap();
        let before = Instant::now();
        let work = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        work.execute("INSERT INTO upload VALUES (?1, ?2)", (i, name)).unwrap();
        move_money(&work, i);
        if i % 97 == 96 {
            // More than one log holds before it is checkpointed.
            work.execute("UPDATE entry SET text = hex(randomblob(190)) WHERE id % 2 = ?1", [i % 2]).unwrap();
        }
        work.commit().unwrap();
        longest = longest.max(before.elapsed());
        if i % 61 == 60 {
            // Busy is an answer here, not an error: nothing in rollback-journal mode.
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
        if i % 41 == 40 {
            drop(db);
            db = open_to_write(path);
        }
        i += 1;
        keep_pace(begun, i);
    }
    let figures = format!("{i} {}\n", longest.as_millis());
    std::fs::write(std::env::var_os(FIGURES).unwrap(), figures).unwrap();
}

fn commit_to_log(path: &Path) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    for i in 0..30 {
        db.execute("INSERT INTO entry(text) VALUES (hex(randomblob(300)))", []).unwrap();
        db.execute("UPDATE account SET money = money + 1 - 2 * (id % 2) WHERE id IN (?1, ?1 + 1)", [1 + i * 2])
            .unwrap();
    }
    db.execute("DELETE FROM entry WHERE id % 5 = 0", []).unwrap();
    ready();
    wait_for_end();
}

fn lock_for_itself(path: &Path) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    db.execute("UPDATE account SET money = money", []).unwrap();
    ready();
    wait_for_end();
}

fn idle(path: &Path) {
    let db = Connection::open(path).unwrap();
    db.query_row("SELECT count(*) FROM entry", [], |_| Ok(())).unwrap();
    ready();
    wait_for_end();
}

fn spill(path: &Path) {
    let db = Connection::open(path).unwrap();
    set(&db, "journal_mode", JOURNAL);
    db.pragma_update(None, "cache_size", 10).unwrap();
    db.execute_batch("BEGIN; UPDATE entry SET text = hex(randomblob(100)); UPDATE account SET money = money + 1;")
        .unwrap();
    ready();
    wait_for_end();
}
