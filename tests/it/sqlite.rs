//! Databases as of one moment, while other processes go on writing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use crate::roles::{Role, check_bank, make_bank};
use crate::world::{self, Dice, World};

/// Snapshots taken while a writer is at work.
const SNAPSHOTS: usize = 15;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The nodes of the newest snapshot that are databases.
fn databases(world: &World) -> Vec<String> {
    let nodes = world.json(["ls", "latest"])["nodes"].clone();
    let nodes = nodes.as_array().unwrap().iter().filter(|node| node["type"] == "database");
    nodes.map(|node| node["path"].as_str().unwrap().to_owned()).collect()
}

/// What SQLite makes of a database and its log: the file after a checkpoint, of a copy.
fn after_checkpoint(world: &World, path: &Path) -> Vec<u8> {
    let copy = world.at("tmp/copy.db");
    for suffix in ["", "-wal"] {
        let _ = fs::remove_file(beside(&copy, suffix));
        if beside(path, suffix).exists() {
            fs::copy(beside(path, suffix), beside(&copy, suffix)).unwrap();
        }
    }
    let db = Connection::open(&copy).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    fs::read(&copy).unwrap()
}

fn live_writer(mode: &str) {
    let world = World::new();
    fs::create_dir_all(world.work("app/storage")).unwrap();
    world.write("app/storage/file", "1");
    let path = world.work("app/data.db");
    make_bank(&path, mode, 4096);
    let writer = Role::Transfer.start(&path);
    for i in 0..SNAPSHOTS {
        let done = world.json(["create", "app", "--tag", &format!("t{i}")]);
        assert_eq!((&done["databases"], &done["unverified"], &done["skipped"]), (&1.into(), &0.into(), &0.into()));
    }
    writer.end();
    let mut seen = Vec::new();
    for i in (0..SNAPSHOTS).rev() {
        let target = world.restore(&format!("latest~{i}"), &format!("out{i}"));
        let found: Vec<_> = fs::read_dir(target.join("app")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(found.len(), 2, "no sidecars: {found:?}");
        seen.push(check_bank(&target.join("app/data.db")));
    }
    assert!(seen.is_sorted() && seen.first() < seen.last(), "the writer goes on, and so do the snapshots: {seen:?}");
    world.ok(["check", "--read-data", "--databases"]);
}

#[test]
fn a_writer_in_wal_mode_never_waits() {
    live_writer("WAL");
}

#[test]
fn a_writer_in_rollback_mode_waits_its_turn() {
    live_writer("DELETE");
}

#[test]
fn a_log_left_by_a_killed_process_is_part_of_the_database() {
    for page_bytes in [512, 4096, 65536] {
        let world = World::new();
        fs::create_dir(world.work("app")).unwrap();
        let path = world.work("app/data.db");
        make_bank(&path, "WAL", page_bytes);
        Role::CommitToLog.start(&path).kill();
        assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 0);
        let expected = after_checkpoint(&world, &path);
        world.ok(["create", "app"]);
        assert_eq!(world.ok(["ls", "latest"]).text(), "app\napp/data.db\n");
        let restored = world.restore("latest", "out").join("app/data.db");
        assert!(fs::read(&restored).unwrap() == expected, "page size {page_bytes}");
        assert!(world.ok(["dump", "latest", "app/data.db"]).stdout == expected);
        assert_eq!(fs::read_dir(world.work("out/app")).unwrap().count(), 1);
        check_bank(&restored);
        assert!(expected != fs::read(&path).unwrap(), "the log mattered");
    }
}

#[test]
fn a_process_that_has_the_database_open_changes_nothing_about_it() {
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let world = World::new();
        fs::create_dir(world.work("app")).unwrap();
        let path = world.work("app/data.db");
        make_bank(&path, mode, 4096);
        let db = Connection::open(&path).unwrap();
        db.execute("DELETE FROM entry WHERE id % 4 = 0", []).unwrap();
        world.ok(["create", "app"]);
        assert_eq!(databases(&world), ["app/data.db"]);
        let restored = world.restore("latest", "out").join("app/data.db");
        db.execute("UPDATE entry SET text = 'x' WHERE id = 1", []).unwrap();
        drop(db);
        assert_eq!(check_bank(&restored), 1500, "{mode}");
        assert_eq!(fs::read_dir(world.work("out/app")).unwrap().filter(|e| is_sidecar(e.as_ref().unwrap())).count(), 0);
    }
}

fn is_sidecar(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name().into_string().unwrap();
    ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix))
}

#[test]
fn page_sizes_auto_vacuum_growing_and_shrinking() {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, "DELETE", 1024);
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let steps = [
        "PRAGMA auto_vacuum = FULL; VACUUM",
        "INSERT INTO entry(text) SELECT text FROM entry",
        "DELETE FROM entry WHERE id % 3",
        "PRAGMA page_size = 8192; VACUUM",
        "PRAGMA journal_mode = WAL; INSERT INTO entry(text) VALUES ('in the log')",
        "DELETE FROM entry; VACUUM",
    ];
    let mut states = Vec::new();
    for step in steps {
        change(step);
        world.ok(["create", "app"]);
        states.push(fs::read(&path).unwrap());
    }
    for (i, state) in states.iter().rev().enumerate() {
        assert!(world.ok(["dump", &format!("latest~{i}"), "app/data.db"]).stdout == *state, "{i} from the end");
    }
    world.ok(["check", "--read-data", "--databases"]);
}

#[test]
fn a_later_generation_costs_its_changed_pages() {
    let world = World::new();
    let path = world.write("app/data.db", "");
    let mut dice = Dice::new(5);
    let mut db = Connection::open(&path).unwrap();
    let work = db.transaction().unwrap();
    work.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    for i in 0..20_000 {
        work.execute("INSERT INTO t VALUES (?1, ?2)", (i, dice.bytes(1000))).unwrap();
    }
    work.commit().unwrap();
    drop(db);
    assert!(fs::metadata(&path).unwrap().len() > 20_000_000);
    let first = world.json(["create", "app"])["bytes_stored"].as_u64().unwrap();
    let db = Connection::open(&path).unwrap();
    for _ in 0..100 {
        let id = dice.below(20_000).cast_signed();
        db.execute("UPDATE t SET body = ?2 WHERE id = ?1", (id, dice.bytes(1000))).unwrap();
    }
    drop(db);
    let second = world.json(["create", "app"])["bytes_stored"].as_u64().unwrap();
    assert!(second * 10 < first, "{second} after {first}");
    assert!(world.ok(["dump", "latest", "app/data.db"]).stdout == fs::read(&path).unwrap());
    // Taken back page by page: everything is there already.
    let third = world.json(["create", "app"])["bytes_stored"].as_u64().unwrap();
    assert!(third * 100 < first, "{third} after {first}");
}

#[test]
fn databases_anywhere_in_the_tree_and_under_any_name() {
    let world = World::new();
    for (i, name) in ["top.db", "a/b/c/none", "a/images.png", "a/-wal", "x-journal"].into_iter().enumerate() {
        let path = world.write(format!("app/{name}"), "");
        make_bank(&path, if i % 2 == 0 { "WAL" } else { "DELETE" }, 4096);
    }
    world.write("app/text-wal", "belongs to nothing");
    let done = world.json(["create", "app"]);
    assert_eq!((&done["databases"], &done["files"]), (&5.into(), &1.into()));
    let restored = world.json(["restore", "latest", "--target", "out", "--verify"]);
    assert_eq!(restored["verified_databases"], 5);
    assert_eq!(fs::read(world.work("out/app/text-wal")).unwrap(), b"belongs to nothing");
    // A database that is given by its own path.
    world.ok(["create", "app/top.db"]);
    assert_eq!(databases(&world), ["app/top.db"]);
}

#[test]
fn a_database_with_two_names_keeps_them() {
    let world = World::new();
    let path = world.write("app/data.db", "");
    make_bank(&path, "DELETE", 4096);
    fs::hard_link(&path, world.work("app/other.db")).unwrap();
    world.ok(["create", "app"]);
    let out = world.restore("latest", "out");
    for name in ["data.db", "other.db"] {
        assert!(fs::read(out.join("app").join(name)).unwrap() == fs::read(&path).unwrap(), "{name}");
    }
}

#[test]
fn a_restored_database_never_meets_an_old_log() {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, "WAL", 4096);
    world.ok(["create", "app"]);
    let expected = fs::read(&path).unwrap();
    // At the target lies a later state, most of it in its log.
    Role::CommitToLog.start(&path).kill();
    assert!(beside(&path, "-wal").exists());
    world.ok(["restore", "latest", "--target", ".", "--force"]);
    assert!(!beside(&path, "-wal").exists() && !beside(&path, "-shm").exists());
    assert!(fs::read(&path).unwrap() == expected);
    assert_eq!(check_bank(&path), 2000);
}

#[test]
fn a_database_in_use_is_not_overwritten() {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, "WAL", 4096);
    world.ok(["create", "app"]);
    let user = Role::CommitToLog.start(&path);
    world.run(["restore", "latest", "--target", ".", "--overwrite", "always"]).expect(1).names(["data.db", "open"]);
    user.end();
    assert_eq!(check_bank(&path), 1624);
}

#[test]
fn what_comes_while_a_database_is_waited_for_is_in_the_snapshot_with_its_row() {
    let world = World::new();
    world.write("app/a file of before", "1");
    let path = world.work("app/data.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE files(name TEXT); BEGIN EXCLUSIVE").unwrap();
    let mut create = world.command(["create", "app"]);
    let running = world::spawn(&mut create);
    // By now it has listed the directory and waits for the transaction to end; if not, there is nothing to see.
    std::thread::sleep(Duration::from_secs(2));
    world.write("app/new", "2");
    world.write("app/storage/newer", "3");
    fs::hard_link(world.work("app/new"), world.work("app/twin")).unwrap();
    db.execute_batch("INSERT INTO files VALUES ('new'), ('storage/newer'); COMMIT").unwrap();
    world::Ran::new(&create, running.wait_with_output().unwrap()).expect(0);

    let restored = world.restore("latest", "out").join("app");
    let db = Connection::open(restored.join("data.db")).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM files", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2);
    assert_eq!(fs::read(restored.join("storage/newer")).unwrap(), b"3");
    assert_eq!(fs::metadata(restored.join("new")).unwrap().ino(), fs::metadata(restored.join("twin")).unwrap().ino());
}
