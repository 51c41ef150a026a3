//! Captures against SQLite itself, step by step: what is read is what SQLite would make of the files at that moment.
//!
//! Our locks belong to open file descriptions and SQLite's to processes, so they meet within one process, too. But
//! SQLite's go when this process closes another descriptor of the file: what is in use is copied by another process.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

use super::journal;
use super::locks::sidecar;
use super::{Database, Refusal};

/// No database here comes near to that.
const MAX_BYTES: u64 = 64 << 20;
const MAX_LOCK: Duration = Duration::from_secs(30);

/// A directory, in memory where there is such a place: hundreds of rollbacks are synced.
fn folder() -> (TempDir, PathBuf) {
    let in_memory = Path::new("/dev/shm");
    let folder = if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().join("a.db");
    (folder, path)
}

fn open(path: &Path, mode: &str, page_bytes: u32) -> Connection {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    db.pragma_update(None, "page_size", page_bytes).unwrap();
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL").unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO t SELECT i, randomblob(700) FROM n",
    )
    .unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db
}

fn read(db: &Database) -> Result<Vec<u8>, Refusal> {
    let (mut image, mut batch) = (Vec::new(), Vec::new());
    for first in (0..db.pages()).step_by(7) {
        db.read(first, (db.pages() - first).min(7) as usize, &mut batch)?;
        image.extend_from_slice(&batch);
    }
    Ok(image)
}

fn copy(path: &Path, suffixes: &[&str]) -> (TempDir, PathBuf) {
    let (folder, to) = folder();
    for suffix in suffixes {
        if sidecar(path, suffix).exists() {
            let done = Command::new("cp").arg(sidecar(path, suffix)).arg(sidecar(&to, suffix)).status();
            assert!(done.unwrap().success());
        }
    }
    (folder, to)
}

/// What SQLite makes of a main file and its journal, which nobody has open; `None` if it makes nothing of it.
fn rolled_back(path: &Path) -> Option<Vec<u8>> {
    let (_folder, copy) = folder();
    for suffix in ["", "-journal"] {
        fs::copy(sidecar(path, suffix), sidecar(&copy, suffix)).unwrap();
    }
    let db = Connection::open(&copy).unwrap();
    let done = db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    // A journal that states a wrong size makes it as large as that, which may be terabytes of nothing.
    let is_sensible = fs::metadata(&copy).unwrap().len() < MAX_BYTES;
    (done.is_ok() && is_sensible).then(|| fs::read(&copy).unwrap())
}

/// What SQLite makes of a main file and its log.
fn checkpointed(path: &Path) -> Vec<u8> {
    let (_folder, copy) = copy(path, &["", "-wal"]);
    let db = Connection::open(&copy).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    fs::read(&copy).unwrap()
}

/// A main file and a journal as a crash in the middle of a transaction leaves them; of at most so many rows.
fn crash(mode: &str, synchronous: &str, page_bytes: u32, rows: u32) -> (TempDir, PathBuf) {
    let (_folder, path) = folder();
    let db = open(&path, mode, page_bytes);
    db.execute_batch(&format!("DELETE FROM t WHERE a > {rows}; PRAGMA incremental_vacuum")).unwrap();
    db.pragma_update(None, "synchronous", synchronous).unwrap();
    db.pragma_update(None, "cache_size", 5).unwrap();
    db.execute_batch(
        "BEGIN; DELETE FROM t WHERE a % 3 = 0; UPDATE t SET b = randomblob(1500) WHERE a < 200;
         PRAGMA incremental_vacuum(20); INSERT INTO t SELECT a + 1000, randomblob(2000) FROM t;",
    )
    .unwrap();
    copy(&path, &["", "-journal"])
}

#[test]
fn an_interrupted_transaction_is_read_as_it_is_rolled_back() {
    for page_bytes in [512, 1024, 4096, 65536] {
        for (mode, synchronous) in [("DELETE", "FULL"), ("TRUNCATE", "OFF"), ("PERSIST", "EXTRA"), ("DELETE", "OFF")] {
            let (_folder, path) = crash(mode, synchronous, page_bytes, 400);
            let before = (fs::read(&path).unwrap(), fs::read(sidecar(&path, "-journal")).unwrap());
            let expected = rolled_back(&path).unwrap();
            assert!(before.0 != expected, "the journal matters");
            std::thread::sleep(Duration::from_millis(100));
            let quiet = Database::quiet(&path).unwrap().unwrap();
            assert!(read(&quiet).unwrap() == expected, "{mode}, {synchronous}, pages of {page_bytes}");
            assert!(quiet.finish().unwrap());
            let held = Database::held(&path, MAX_LOCK).unwrap();
            assert!(read(&held).unwrap() == expected, "{mode}, {synchronous}, pages of {page_bytes}");
            assert!(held.finish().unwrap());
            assert!((fs::read(&path).unwrap(), fs::read(sidecar(&path, "-journal")).unwrap()) == before);
        }
    }
}

#[test]
fn a_journal_that_is_damaged_anywhere_is_understood_as_sqlite_does() {
    let (mut compared, mut refused) = (0, 0);
    for (synchronous, page_bytes) in [("FULL", 1024), ("OFF", 512)] {
        let (_folder, path) = crash("DELETE", synchronous, page_bytes, 60);
        let journal_path = sidecar(&path, "-journal");
        let whole = fs::read(&journal_path).unwrap();
        let record = page_bytes as usize + 8;
        let at = |i: usize| (i * 7919) % whole.len();
        let cuts = (0..12).map(at).chain([0, 27, 28, 511, 512, 513, 512 + record, 512 + 3 * record - 1]);
        let flips = (0..20).map(at).chain(0..28).chain([512, 515, 516, 512 + record - 1, 512 + record]);
        let cut = cuts.map(|len| whole[..len].to_vec());
        let flipped = flips.map(|i| {
            let mut bytes = whole.clone();
            bytes[i] ^= 1 << (i % 8);
            bytes
        });
        for bytes in cut.chain(flipped) {
            fs::write(&journal_path, &bytes).unwrap();
            let Some(expected) = rolled_back(&path) else { continue };
            let main = fs::read(&path).unwrap();
            let found = journal::scan(&File::open(&journal_path).unwrap(), page_bytes);
            let is_pending = journal::is_pending(&journal_path).unwrap();
            let ours = match found {
                Ok(Some(found)) if is_pending => overlaid(main, &bytes, &found),
                Ok(_) => Some(main),
                Err(_) => None,
            };
            match ours {
                Some(ours) => {
                    assert!(ours == expected);
                    compared += 1;
                }
                None => refused += 1,
            }
        }
    }
    assert!(compared > 60 && refused < 20, "{compared} compared, {refused} refused");
}

/// The main file with the originals put back; none where they don't fit to it.
fn overlaid(mut main: Vec<u8>, journal: &[u8], found: &journal::Originals) -> Option<Vec<u8>> {
    let page_bytes = found.page_bytes as usize;
    let len = found.database_pages as usize * page_bytes;
    let has_page_size = |bytes: &[u8]| u16::from_be_bytes([bytes[16], bytes[17]]) as usize == page_bytes;
    if len > main.len() || !has_page_size(&main) {
        return None;
    }
    main.truncate(len);
    for (page, at) in &found.pages {
        let to = (*page as usize - 1) * page_bytes;
        main[to..to + page_bytes].copy_from_slice(&journal[*at as usize..*at as usize + page_bytes]);
    }
    Some(main)
}

#[test]
fn a_transaction_over_several_databases_is_committed_when_its_super_journal_is_gone() {
    let (folder, path) = crash("DELETE", "FULL", 4096, 400);
    let super_journal = folder.path().join("a.db-mj0123AB9DE");
    let name = super_journal.as_os_str().as_encoded_bytes();
    let journal_path = sidecar(&path, "-journal");
    let mut bytes = fs::read(&journal_path).unwrap();
    let magic = bytes[..8].to_vec();
    // As `writeSuperJournal` ends a journal.
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&(0x4000_0000u32 / 4096 + 1).to_be_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&name.iter().map(|b| u32::from(*b)).sum::<u32>().to_be_bytes());
    bytes.extend_from_slice(&magic);
    fs::write(&journal_path, &bytes).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let image = || Database::quiet(&path).map(|db| read(&db.unwrap()).unwrap());
    assert!(image().unwrap() == fs::read(&path).unwrap(), "no super-journal: what is in the file is committed");
    assert!(rolled_back(&path).unwrap() == fs::read(&path).unwrap());
    fs::write(&super_journal, [&sidecar(&path, "-journal").into_os_string().into_encoded_bytes()[..], b"\0"].concat())
        .unwrap();
    let original = image().unwrap();
    assert!(original != fs::read(&path).unwrap() && original == rolled_back(&path).unwrap());
    // In another root directory nobody can say.
    let away = bytes.windows(5).rposition(|w| w == b"/a.db").unwrap();
    bytes[away - 1] ^= 1;
    let sum = bytes.len() - 12;
    let old = u32::from_be_bytes([bytes[sum], bytes[sum + 1], bytes[sum + 2], bytes[sum + 3]]);
    let changed = bytes[away - 1];
    let new = old.wrapping_add(u32::from(changed)).wrapping_sub(u32::from(changed ^ 1));
    bytes[sum..sum + 4].copy_from_slice(&new.to_be_bytes());
    fs::write(&journal_path, &bytes).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(matches!(image(), Err(Refusal::Busy(why)) if why.contains("-mj0123AB9DE")));
}

#[test]
fn a_transaction_that_has_not_reached_the_file_is_not_there() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let (_folder, path) = folder();
        let writer = open(&path, mode, 4096);
        let expected = fs::read(&path).unwrap();
        // Only now does it have a lock that a look at the file would have lost.
        writer.execute_batch("BEGIN; UPDATE t SET b = 1 WHERE a = 7").unwrap();
        let held = Database::held(&path, MAX_LOCK).unwrap();
        assert!(read(&held).unwrap() == expected);
        let error = writer.execute_batch("COMMIT").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "it waits its turn");
        assert!(held.finish().unwrap());
        writer.execute_batch("COMMIT").unwrap();
        assert!(fs::read(&path).unwrap() != expected);
    }
}

#[test]
fn holding_writers_up_ends_in_time() {
    let (_folder, path) = folder();
    let _writer = open(&path, "DELETE", 4096);
    let held = Database::held(&path, Duration::ZERO).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(read(&held), Err(Refusal::Slow));
}

#[test]
fn in_wal_mode_nothing_that_users_do_changes_what_is_read() {
    type Deed = fn(&Connection);
    let commit: Deed = |db| assert!(db.execute("UPDATE t SET b = randomblob(900)", []).unwrap() > 0);
    let checkpoint: Deed = |db| db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    let truncate: Deed = |db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let shrink: Deed = |db| db.execute_batch("DELETE FROM t WHERE a % 2; PRAGMA incremental_vacuum; VACUUM").unwrap();
    let deeds = [commit, checkpoint, truncate, shrink];
    for (page_bytes, step) in [(512, 17), (4096, 3), (65536, 19)] {
        // Pairs of deeds before the lock with pairs under it, of 256 possible.
        for case in (0..256usize).step_by(step) {
            let (_folder, path) = folder();
            let user = open(&path, "WAL", page_bytes);
            user.pragma_update(None, "wal_autocheckpoint", 50).unwrap();
            let turn = |i: usize| deeds[case >> (2 * i) & 3](&user);
            turn(0);
            turn(1);
            let expected = checkpointed(&path);
            let held = Database::held(&path, MAX_LOCK).unwrap();
            let half = held.pages() / 2;
            let (mut image, mut rest) = (Vec::new(), Vec::new());
            turn(2);
            held.read(0, half as usize, &mut image).unwrap();
            turn(3);
            // Others come and go without an error, too, and the last one leaves the log alone.
            let other = Connection::open(&path).unwrap();
            other.busy_timeout(Duration::ZERO).unwrap();
            other.execute("INSERT INTO t(b) VALUES (1)", []).unwrap();
            drop((other, user));
            held.read(half, (held.pages() - half) as usize, &mut rest).unwrap();
            image.extend_from_slice(&rest);
            assert!(image == expected, "case {case:03x}, pages of {page_bytes}");
            assert!(held.finish().unwrap(), "case {case:03x}, pages of {page_bytes}");
            let after = Connection::open(&path).unwrap();
            let verdict: String = after.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok");
        }
    }
}

#[test]
fn who_closes_a_database_before_it_is_read_leaves_it_to_be_watched() {
    let (_folder, path) = folder();
    drop(open(&path, "WAL", 4096));
    let held = Database::held(&path, MAX_LOCK).unwrap();
    assert!(!held.is_held(), "there is no index to lock");
    let expected = fs::read(&path).unwrap();
    assert!(read(&held).unwrap() == expected);
    assert!(held.finish().unwrap());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing was made beside it");

    let held = Database::held(&path, MAX_LOCK).unwrap();
    let user = Connection::open(&path).unwrap();
    user.execute("UPDATE t SET b = 1", []).unwrap();
    user.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    assert!(!held.finish().unwrap(), "the file was written to");
}

#[test]
fn a_replaced_database_is_no_sound_capture() {
    for mode in ["WAL", "DELETE"] {
        let (_folder, path) = folder();
        let user = open(&path, mode, 4096);
        let (_other_folder, other) = copy(&path, &[""]);
        let held = Database::held(&path, MAX_LOCK).unwrap();
        read(&held).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!held.finish().unwrap(), "{mode}");
        drop(user);
    }
}

#[test]
fn a_write_without_locks_is_no_sound_capture() {
    let (_folder, path) = folder();
    let _user = open(&path, "DELETE", 4096);
    std::thread::sleep(Duration::from_millis(100));
    let held = Database::held(&path, MAX_LOCK).unwrap();
    read(&held).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 5000).unwrap();
    assert!(!held.finish().unwrap());
}

#[test]
fn who_has_it_locked_for_himself_is_watched_in_wal_mode_alone() {
    for before_reading in [true, false] {
        let (_folder, path) = folder();
        drop(open(&path, "WAL", 4096));
        let user = Connection::open(&path).unwrap();
        let lock = || user.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
        if before_reading {
            lock();
        }
        user.execute("UPDATE t SET b = 2", []).unwrap();
        if !before_reading {
            lock();
        }
        user.execute("UPDATE t SET b = 1", []).unwrap();
        assert_eq!(sidecar(&path, "-shm").exists(), !before_reading);
        let expected = checkpointed(&path);
        std::thread::sleep(Duration::from_millis(100));
        let watched = Database::held(&path, MAX_LOCK).unwrap();
        user.execute("UPDATE t SET b = 3 WHERE a < 20", []).unwrap();
        assert!(read(&watched).unwrap() == expected, "what is appended to the log changes nothing");
        assert!(watched.finish().unwrap());

        let watched = Database::held(&path, MAX_LOCK).unwrap();
        user.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        assert!(!watched.finish().unwrap(), "the file was written to");
    }
}
