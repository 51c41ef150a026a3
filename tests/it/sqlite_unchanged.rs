//! A database is read again unless it is certain that it has not changed; and reading leaves no trace.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use crate::roles::{Role, check_bank, make_bank};
use crate::world::World;

/// What changed less than two seconds before a capture is read again by the next: after this it need not be.
const SETTLED: Duration = Duration::from_millis(3100);

fn with_database(mode: &str) -> (World, PathBuf) {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, mode, 4096);
    (world, path)
}

fn set_mtime_of(path: &Path, other: &fs::Metadata) {
    let times = FileTimes::new().set_modified(other.modified().unwrap());
    OpenOptions::new().write(true).open(path).unwrap().set_times(times).unwrap();
}

/// Takes a snapshot, and says whether it has read anything.
fn reads(world: &World) -> bool {
    world.json(["create", "app"])["bytes_read"].as_u64().unwrap() > 0
}

#[track_caller]
fn assert_newest_is(world: &World, expected: &[u8]) {
    assert!(world.ok(["dump", "latest", "app/data.db"]).stdout == expected);
}

/// Changes the text of an entry in place, without SQLite, so that nothing but the content shows it.
fn patch(path: &Path, marker: &str, now: &str) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(marker.len()).position(|window| window == marker.as_bytes()).unwrap();
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(now.as_bytes(), at as u64).unwrap();
}

fn insert(path: &Path, text: &str) {
    Connection::open(path).unwrap().execute("INSERT INTO entry(text) VALUES (?1)", [text]).unwrap();
}

#[test]
fn an_unchanged_database_is_not_read_again() {
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let (world, path) = with_database(if mode == "WAL" { mode } else { "DELETE" });
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute("INSERT INTO entry(text) VALUES ('with its journal')", []).unwrap();
        drop(db);
        let leaves_a_journal = matches!(mode, "TRUNCATE" | "PERSIST");
        assert_eq!(world.work("app/data.db-journal").exists(), leaves_a_journal, "{mode}");
        std::thread::sleep(SETTLED);
        assert!(reads(&world));
        assert!(!reads(&world), "{mode}");
        assert_newest_is(&world, &fs::read(&path).unwrap());
        insert(&path, "one more");
        assert!(reads(&world), "{mode}");
        assert_newest_is(&world, &fs::read(&path).unwrap());
    }
}

#[test]
fn a_commit_that_is_only_in_the_log_is_seen() {
    let (world, path) = with_database("WAL");
    Role::CommitToLog.start(&path).kill();
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    assert!(!reads(&world));
    let before = fs::metadata(&path).unwrap();
    Role::CommitToLog.start(&path).kill();
    let after = fs::metadata(&path).unwrap();
    let stat = |meta: &fs::Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    assert_eq!(stat(&before), stat(&after), "the main file was not touched, or this tests nothing");
    assert!(reads(&world));
    let restored = world.restore("latest", "out").join("app/data.db");
    assert_eq!(check_bank(&restored), check_bank(&path));
}

#[test]
fn a_change_behind_a_set_back_time_is_seen() {
    let (world, path) = with_database("DELETE");
    insert(&path, "before the change");
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    let before = fs::metadata(&path).unwrap();
    patch(&path, "before the change", "behind the change");
    set_mtime_of(&path, &before);
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert!(reads(&world));
    assert_newest_is(&world, &fs::read(&path).unwrap());
}

#[test]
fn a_replacement_of_equal_size_and_time_is_seen() {
    let (world, path) = with_database("DELETE");
    insert(&path, "the first one");
    let other = world.at("tmp/other.db");
    fs::copy(&path, &other).unwrap();
    patch(&other, "the first one", "the other one");
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    let before = fs::metadata(&path).unwrap();
    set_mtime_of(&other, &before);
    fs::rename(&other, &path).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert!(reads(&world));
    assert_newest_is(&world, &fs::read(&path).unwrap());
}

#[test]
fn a_write_within_the_same_tick_is_seen() {
    let (world, path) = with_database("DELETE");
    insert(&path, "tick 000");
    for i in 0..15 {
        // As close to the capture as can be, before and after; the length never changes.
        patch(&path, "tick ", "tack ");
        assert!(reads(&world));
        assert_newest_is(&world, &fs::read(&path).unwrap());
        patch(&path, "tack ", "tick ");
        let number = format!("tick {i:03}");
        patch(&path, "tick ", &number);
        assert!(reads(&world));
        assert_newest_is(&world, &fs::read(&path).unwrap());
    }
}

#[test]
fn commits_one_after_the_other_are_all_seen() {
    let (world, path) = with_database("WAL");
    let db = Connection::open(&path).unwrap();
    for i in 1..=15 {
        db.execute("INSERT INTO entry(text) VALUES (?1)", [i]).unwrap();
        assert!(reads(&world));
        let copy = world.at("tmp/newest.db");
        fs::write(&copy, world.ok(["dump", "latest", "app/data.db"]).stdout).unwrap();
        assert_eq!(check_bank(&copy), 2000 + i);
    }
}

#[test]
fn a_log_begun_anew_with_the_same_length_and_time_is_seen() {
    let (world, path) = with_database("WAL");
    let log = world.work("app/data.db-wal");
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    let commit = |text: &str| assert_eq!(db.execute("UPDATE entry SET text = ?1 WHERE id = 7", [text]).unwrap(), 1);
    let checkpoint = |how: &str| db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(())).unwrap();
    commit("one");
    checkpoint("PASSIVE");
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    assert!(!reads(&world));
    let before = fs::metadata(&log).unwrap();
    commit("two");
    set_mtime_of(&log, &before);
    let after = fs::metadata(&log).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert!(reads(&world));
    let copy = world.at("tmp/newest.db");
    fs::write(&copy, world.ok(["dump", "latest", "app/data.db"]).stdout).unwrap();
    let text = "SELECT text FROM entry WHERE id = 7";
    let text: String = Connection::open(&copy).unwrap().query_row(text, [], |row| row.get(0)).unwrap();
    assert_eq!(text, "two");
}

#[test]
fn what_is_written_where_the_file_is_mapped_is_seen() {
    let (world, path) = with_database("DELETE");
    insert(&path, "before mapping");
    // SQLite reads through its mapping, and writes to the file.
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "mmap_size", 1 << 30).unwrap();
    db.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, i64>(0)).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    assert!(!reads(&world));
    db.execute("UPDATE entry SET text = 'behind mapping' WHERE text = 'before mapping'", []).unwrap();
    assert!(reads(&world));
    assert_newest_is(&world, &fs::read(&path).unwrap());
    // Another program that writes through a mapping.
    drop(db);
    File::open(&path).unwrap().sync_all().unwrap();
    std::thread::sleep(SETTLED);
    reads(&world);
    assert!(!reads(&world));
    let script = "import mmap, sys\n\
        with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n    \
            at = m.find(b'behind mapping'); m[at:at + 14] = b'in its mapping'";
    let done = world.command_of("python3").args(["-c", script]).arg(&path).status().unwrap();
    assert!(done.success());
    assert!(reads(&world));
    assert_newest_is(&world, &fs::read(&path).unwrap());
}

#[test]
fn an_interrupted_transaction_is_read_again_when_its_journal_is_gone() {
    let (world, path) = with_database("DELETE");
    Role::Spill.start(&path).kill();
    std::thread::sleep(SETTLED);
    assert!(reads(&world));
    assert!(!reads(&world), "the journal is as it was");
    let whole = world.ok(["dump", "latest", "app/data.db"]).stdout;
    assert!(whole != fs::read(&path).unwrap());
    // Somebody takes it for rubbish: now the file is what it is.
    fs::remove_file(world.work("app/data.db-journal")).unwrap();
    assert!(reads(&world));
    assert_newest_is(&world, &fs::read(&path).unwrap());
}

/// Names, kinds, sizes and modification times.
fn listing(directory: &Path) -> Vec<(String, u64, i64, i64, u64)> {
    let mut out: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap()))
        .chain([(".".to_owned(), fs::metadata(directory).unwrap())])
        .map(|(name, meta)| (name, meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
        .collect();
    out.sort();
    out
}

#[test]
fn the_source_looks_as_before() {
    let (world, path) = with_database("WAL");
    for state in ["closed", "killed", "rollback", "interrupted", "closed again"] {
        match state {
            "killed" => Role::CommitToLog.start(&path).kill(),
            "rollback" => Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "DELETE").unwrap(),
            "interrupted" => Role::Spill.start(&path).kill(),
            "closed again" => insert(&path, "rolled back before"),
            _ => {}
        }
        let before = listing(&world.work("app"));
        // Twice: just written, and settled.
        for _ in 0..2 {
            world.ok(["create", "app"]);
            assert_eq!(listing(&world.work("app")), before, "{state}");
        }
    }
}

#[test]
fn locks_of_the_application_survive_a_capture() {
    let (world, path) = with_database("DELETE");
    fs::hard_link(&path, world.work("app/also.db")).unwrap();
    let user = Role::LockForItself.start(&path);
    world.run(["create", "app", "--max-lock", "1"]).expect(3);
    // Whoever else comes still finds it locked.
    let other = Connection::open(&path).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    assert!(other.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, i64>(0)).is_err());
    user.end();
    File::open(&path).unwrap();
}
