//! What can't be captured as a database is stored as the plain file it is, and said to be unverified.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::picture;
use crate::roles::{Role, check_bank, make_bank};
use crate::world::World;

fn with_database(mode: &str) -> (World, PathBuf) {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, mode, 4096);
    (world, path)
}

/// Fails unless the newest snapshot holds `app/data.db` as a plain file that is marked.
#[track_caller]
fn assert_plain_and_marked(world: &World) {
    let newest = world.list().pop().unwrap();
    assert_eq!((&newest["databases"], &newest["unverified"]), (&0.into(), &1.into()));
    let nodes = world.json(["ls", "latest", "app/data.db"])["nodes"].clone();
    assert_eq!(nodes[0]["type"], "file");
    assert!(nodes[0]["unverified"].is_string(), "{nodes}");
}

#[test]
fn a_stable_file_with_a_bad_header_is_worth_a_note() {
    type Damage = fn(&Path);
    let write = |at: u64, bytes: &'static [u8]| {
        move |path: &Path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap()
    };
    let cut: Damage = |path| OpenOptions::new().write(true).open(path).unwrap().set_len(4096 * 3 + 512).unwrap();
    let page_size = write(16, &[0x0d, 0x0d]);
    let fractions = write(18, &[0xaa; 8]);
    let damages: [(&str, &dyn Fn(&Path)); 3] = [("cut", &cut), ("page size", &page_size), ("fractions", &fractions)];
    for (what, damage) in damages {
        let (world, path) = with_database("DELETE");
        damage(&path);
        world.ok(["create", "app"]).names(["data.db", "unverified"]);
        assert_plain_and_marked(&world);
        let ran = world.ok(["restore", "latest", "--target", "out"]);
        assert!(ran.stderr.contains("data.db") && ran.stderr.contains("unverified"), "{what}: {}", ran.stderr);
        picture::assert_same(&picture::of(&world.work("out/app")), &picture::of(&world.work("app")));
        // Nor is it forgotten to be said the next time.
        world.ok(["create", "app"]);
        assert_plain_and_marked(&world);
    }
}

#[test]
fn a_file_that_only_begins_like_a_database() {
    let world = World::new();
    world.write("app/data.db", [&b"SQLite format 3\0"[..], &[0xaa; 496]].concat());
    world.write("app/data.db-wal", "its log");
    world.ok(["create", "app"]);
    assert_plain_and_marked(&world);
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/app")), &picture::of(&world.work("app")));
}

#[test]
fn a_database_that_was_cut_anywhere() {
    for len in [20, 512 * 9 + 7, 4096 * 30 + 1, 4096 * 300 + 1] {
        let (world, path) = with_database("DELETE");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("UPDATE entry SET text = text || hex(randomblob(300))").unwrap();
        drop(db);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(file.metadata().unwrap().len() > len);
        file.set_len(len).unwrap();
        world.ok(["create", "app"]).names(["data.db"]);
        assert_plain_and_marked(&world);
        assert!(world.ok(["dump", "latest", "app/data.db"]).stdout == fs::read(&path).unwrap());
    }
}

#[test]
fn a_database_locked_by_another_process() {
    // In WAL mode it can be had all the same, see `sqlite_modes`.
    let (world, path) = with_database("DELETE");
    let user = Role::LockForItself.start(&path);
    let ran = world.run(["create", "app", "--max-lock", "1"]).expect(3);
    ran.names(["data.db", "unverified", "another process has kept it locked for itself for more than 10 seconds"]);
    assert_plain_and_marked(&world);
    user.end();
    // As soon as it can be, it is captured.
    let done = world.json(["create", "app"]);
    assert_eq!((&done["databases"], &done["unverified"]), (&1.into(), &0.into()));
    check_bank(&world.restore("latest", "out").join("app/data.db"));
}

#[test]
fn a_transaction_that_is_under_way() {
    for mode in ["WAL", "DELETE"] {
        let (world, path) = with_database(mode);
        let writer = Role::Spill.start(&path);
        let ran = world.run(["create", "app", "--max-lock", "1"]);
        writer.end();
        match ran.status {
            0 => {
                let restored = world.restore("latest", "out").join("app/data.db");
                assert_eq!(check_bank(&restored), 2000, "{mode}: what is not committed is not there");
            }
            3 => assert_plain_and_marked(&world),
            other => panic!("{mode}: status {other}: {}", ran.stderr),
        }
    }
}

#[test]
fn a_log_that_belongs_to_another_database_changes_nothing() {
    let (world, path) = with_database("WAL");
    let other = world.at("tmp/other.db");
    make_bank(&other, "WAL", 8192);
    Role::CommitToLog.start(&other).kill();
    fs::rename(world.at("tmp/other.db-wal"), world.work("app/data.db-wal")).unwrap();
    let before = fs::read(&path).unwrap();
    let ran = world.run(["create", "app"]);
    assert!(ran.status == 0 || ran.status == 3, "{}", ran.stderr);
    let restored = world.restore("latest", "out").join("app/data.db");
    assert!(fs::read(&restored).unwrap() == before);
}

#[test]
fn nothing_of_a_hostile_schema_is_run() {
    let (world, path) = with_database("DELETE");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE VIEW v AS SELECT load_extension('/no/such'); CREATE TABLE t(a DEFAULT (load_extension('/no/such')));
         PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES('table','x','x',0,'nonsense');
         PRAGMA writable_schema = OFF",
    )
    .unwrap();
    drop(db);
    // Capturing needs no schema, whether somebody has it open or not.
    let holder = OpenOptions::new().read(true).open(&path).unwrap();
    world.ok(["create", "app"]);
    drop(holder);
    assert!(world.ok(["dump", "latest", "app/data.db"]).stdout == fs::read(&path).unwrap());
}
