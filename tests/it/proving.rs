//! What is recorded of databases when they are captured, and what it is compared with later: by `check --databases`, by
//! `restore --verify`, and by drills.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use snapshot::backend::Local;
use snapshot::format::facts::Facts;
use snapshot::format::snapshot::Snapshot;
use snapshot::format::tree::Node;
use snapshot::repo::{Repository, Writer, read_key_file};
use snapshot::report::Reporter;

use crate::roles::{Role, make_bank};
use crate::world::{Dice, World, in_private_mounts, mount_tmpfs, spawn};

const SETTLED: Duration = Duration::from_millis(3100);

/// An application with two databases and some files.
fn application(world: &World) {
    let mut dice = Dice::new(11);
    world.write("app/storage/one", dice.bytes(700_000));
    world.write("app/storage/two", dice.bytes(3_000));
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA user_version=42; PRAGMA application_id=7;
         CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE INDEX i ON t(x); CREATE TABLE w(k PRIMARY KEY) WITHOUT ROWID;
         CREATE VIEW v AS SELECT 1; CREATE VIRTUAL TABLE f USING fts5(body);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2500)
           INSERT INTO t SELECT i, hex(randomblob(i % 90)) FROM n;
         INSERT INTO w SELECT id FROM t; DELETE FROM t WHERE id > 2000; INSERT INTO f SELECT x FROM t;",
    )
    .unwrap();
    make_bank(&world.work("app/bank.db"), "WAL", 4096);
}

/// The tables of a database with their rows, by SQLite's account.
fn by_sqlite(path: &Path) -> Value {
    let db = Connection::open(path).unwrap();
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY name";
    let mut query = db.prepare(sql).unwrap();
    let names: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let rows = |name: &String| -> i64 {
        db.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0)).unwrap()
    };
    names.iter().map(|name| json!({"name": name, "rows": rows(name)})).collect()
}

fn facts(world: &World, snapshot: &str, path: &str) -> Value {
    world.json(["ls", snapshot, path])["nodes"][0]["database"]["facts"].clone()
}

/// What stands in a directory for temporary data, this program's memory aside.
fn scratch_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("snapshot-scratch-")).collect()
}

#[test]
fn what_is_in_a_database_is_recorded_and_shown() {
    let world = World::new();
    application(&world);
    // Rows that are in the log alone.
    Role::CommitToLog.start(&world.work("app/bank.db")).kill();
    std::thread::sleep(SETTLED);
    world.ok(["create", "app"]);
    let out = world.restore("latest", "out");
    for name in ["data.db", "bank.db"] {
        let facts = facts(&world, "latest", &format!("app/{name}"));
        assert_eq!(facts["tables"], by_sqlite(&out.join("app").join(name)), "{name}");
        assert_eq!(facts["schema_hash"].as_str().unwrap().len(), 64);
    }
    let first = facts(&world, "latest", "app/data.db");
    assert_eq!(
        (&first["user_version"], &first["application_id"], &first["encoding"]),
        (&42.into(), &7.into(), &1.into())
    );
    let long = world.ok(["ls", "-l", "latest", "app/data.db"]).text();
    let tables = first["tables"].as_array().unwrap();
    let rows: u64 = tables.iter().map(|table| table["rows"].as_u64().unwrap()).sum();
    assert!(rows > 4500 && long.contains(&format!(" pages of 1024 bytes, {} tables, ", tables.len())), "{long}");
    assert_eq!(world.json(["cat", "tree", "latest:app"])["nodes"][1]["database"]["facts"], first);

    // By now nobody has touched it for long enough: it is not read again.
    assert_eq!(world.json(["create", "app"])["bytes_read"], 0);
    assert_eq!(facts(&world, "latest", "app/data.db"), first);
    Connection::open(world.work("app/data.db")).unwrap().execute_batch("DELETE FROM t; DROP TABLE w").unwrap();
    world.ok(["create", "app"]);
    let second = facts(&world, "latest", "app/data.db");
    assert!(second["schema_hash"] != first["schema_hash"] && second["free_pages"] != 0);
    // Counted nowhere: all that is known of both is in the records.
    let diff = world.ok(["diff", "latest~1", "latest"]).text();
    assert!(diff.contains("table t: ") && diff.contains("0 rows, was 2,000"), "{diff}");
    world.ok(["check", "--databases"]);
    assert!(scratch_in(&world.at("cache/snapshot")).is_empty());
}

/// Writes a snapshot like the newest, but with other facts of `app/data.db`, as somebody could who has the key.
fn forge(world: &World, change: impl FnOnce(&mut Facts)) {
    let unlock = read_key_file(&world.at("key")).unwrap();
    let reporter = Reporter::silent();
    let backend = Arc::new(Local::new(&world.at("repo")).unwrap());
    let repo = Arc::new(Repository::open(backend, &unlock, "key", &reporter).unwrap());
    repo.load_index(&reporter).unwrap();
    let newest = repo.read_snapshots().unwrap().0.pop().unwrap();
    let mut root = repo.read_tree(&newest.snapshot.tree).unwrap();
    let mut nodes = repo.read_tree(&root[0].tree.unwrap()).unwrap();
    let named = |node: &&mut Node| &node.name[..] == b"data.db";
    let database = nodes.iter_mut().find(named).unwrap().database.as_mut().unwrap();
    change(database.facts.as_mut().unwrap());
    let mut writer = Writer::new(&repo, 3);
    root[0].tree = Some(writer.put_tree(nodes).unwrap());
    let tree = writer.put_tree(root).unwrap();
    writer.finish().unwrap();
    let generation = newest.snapshot.generation + 1;
    repo.put_snapshot(&Snapshot { tree, generation, previous: Some(newest.id), ..newest.snapshot }).unwrap();
}

#[test]
fn a_record_that_does_not_fit_is_found() {
    let changes: [(&str, fn(&mut Facts)); 4] = [
        ("table t has 2000 rows, and 2001 were recorded", |facts| {
            let tables = facts.tables.as_mut().unwrap();
            tables.iter_mut().find(|table| table.name == "t").unwrap().rows += 1;
        }),
        ("user_version is 42, and 41 was recorded", |facts| facts.user_version = 41),
        ("its schema is not the one that was recorded", |facts| facts.schema_hash = Some([3; 32].into())),
        ("table w was not recorded", |facts| facts.tables.as_mut().unwrap().retain(|table| table.name != "w")),
    ];
    for (said, change) in changes {
        let world = World::new();
        application(&world);
        world.ok(["create", "app"]);
        world.ok(["check", "--databases", "--restore-drill"]);
        world.ok(["restore", "latest", "--target", "good", "--verify"]);
        forge(&world, change);
        let forged = world.list().pop().unwrap();
        let short = &forged["id"].as_str().unwrap()[..8];
        // The structure has nothing wrong with it; the pages are the same as before, and are rebuilt once.
        world.ok(["check", "--read-data"]);
        let ran = world.run(["check", "--databases"]).expect(4).names([said, "app/data.db", short]);
        assert!(ran.text().contains("2 databases rebuilt"), "{}", ran.text());
        world.run(["restore", "latest", "--target", "bad", "--verify"]).expect(5).names([said, "bad/app/data.db"]);
        world.ok(["restore", "latest", "--target", "unverified"]);
        let ran = world.run(["check", "--restore-drill"]).expect(4).names([said, "app/data.db in snapshot", short]);
        assert!(ran.text().contains("not proven: snapshot"), "{}", ran.text());
        assert_eq!(world.list().pop().unwrap()["proven"], Value::Null);
        assert!(scratch_in(&world.at("cache/snapshot")).is_empty());
    }
}

#[test]
fn a_drill_proves_what_it_restores() {
    let world = World::new();
    application(&world);
    fs::set_permissions(world.work("app/storage"), PermissionsExt::from_mode(0o500)).unwrap();
    world.ok(["create", "app"]);
    world.ok(["create", "app"]);
    world.write("other/file", "x");
    world.ok(["create", "other"]);
    fs::set_permissions(world.work("app/storage"), PermissionsExt::from_mode(0o700)).unwrap();
    assert!(world.list().iter().all(|named| named["proven"] == Value::Null));

    let before = world.objects();
    let ran = world.ok(["check", "--restore-drill"]);
    assert_eq!(ran.text().matches("\nproven: ").count() + usize::from(ran.text().starts_with("proven: ")), 2);
    assert!(
        ran.text().contains(":{}: 2 files, 2 databases, ".replace("{}", world.work("app").to_str().unwrap()).as_str())
    );
    let proven = |world: &World| world.list().iter().map(|named| named["proven"].clone()).collect::<Vec<_>>();
    let now = proven(&world);
    assert!(now[0].is_null() && now[1]["by"] == "restore-drill" && now[2]["program"].is_string(), "{now:?}");
    let day = &now[1]["time"].as_str().unwrap()[..10];
    assert_eq!(world.ok(["list"]).text().matches(&format!("proven {day}")).count(), 2);
    // Nothing but two marks was written.
    let new: Vec<_> = world.objects().into_iter().filter(|path| !before.contains(path)).collect();
    assert!(new.len() == 2 && new.iter().all(|path| path.starts_with("marks/")), "{new:?}");
    let id = world.list()[1]["id"].as_str().unwrap().to_owned();
    assert_eq!(world.json(["cat", "mark", &id])[0]["proof"], now[1]);

    // Those that are named, elsewhere.
    let done = world.json(["check", "--scratch", "elsewhere", "--restore-drill", "latest~1"]);
    assert_eq!((&done["damaged"], done["drills"].as_array().unwrap().len()), (&false.into(), 1));
    assert_eq!((&done["drills"][0]["proven"], &done["drills"][0]["verified_databases"]), (&true.into(), &2.into()));
    assert!(scratch_in(&world.work("elsewhere")).is_empty() && scratch_in(&world.at("cache/snapshot")).is_empty());
    assert_eq!(proven(&world)[2], now[2]);
    assert!(proven(&world)[1]["time"].as_str() > now[1]["time"].as_str());
    world.run(["check", "--restore-drill", "latest:other"]).expect(2).names(["whole snapshots"]);
    world.run(["check", "--restore-drill", "00000000"]).expect(1);

    // A copy takes the proof with it.
    let mut there = world;
    there.use_repository("second", "key-2");
    there.ok(["init"]);
    let from = there.at("repo");
    let key = there.at("key");
    there.ok(["copy", "--from-repo", from.to_str().unwrap(), "--from-key-file", key.to_str().unwrap()]);
    assert_eq!(proven(&there)[2], now[2]);
    assert_eq!(there.list().iter().filter(|named| named["proven"].is_null()).count(), 1);
}

#[test]
fn damage_is_no_proof() {
    let world = World::new();
    application(&world);
    world.ok(["create", "app"]);
    let pack =
        world.objects().into_iter().filter(|path| path.starts_with("packs/d/")).map(|path| world.at("repo").join(path));
    let pack = pack.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&pack, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&pack, bytes).unwrap();
    world.ok(["check"]);
    let ran = world.run(["check", "--restore-drill"]).expect(4).names(["app/", " in snapshot ", "not restored"]);
    assert!(ran.text().starts_with("not proven: ") && world.list()[0]["proven"].is_null());
    assert!(scratch_in(&world.at("cache/snapshot")).is_empty());
}

#[test]
fn a_drill_leaves_nothing_however_it_ends() {
    let world = World::new();
    for n in 0..12 {
        world.write(format!("app/{n}"), Dice::new(n).bytes(8 << 20));
    }
    world.ok(["create", "app"]);
    let folder = world.at("cache/snapshot");
    let wait_for_scratch = || {
        let since = Instant::now();
        while scratch_in(&folder).is_empty() {
            assert!(since.elapsed() < Duration::from_secs(120), "a drill begins");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = world.command(["check", "--restore-drill"]);
        command.stdin(Stdio::null());
        let mut child = spawn(&mut command);
        wait_for_scratch();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success() && world.list()[0]["proven"].is_null(), "{signal:?}: {status}");
        assert_eq!(scratch_in(&folder).len(), usize::from(signal == Signal::KILL), "{signal:?}");
    }
    world.ok(["check", "--restore-drill"]);
    assert!(scratch_in(&folder).is_empty() && !world.list()[0]["proven"].is_null());
}

#[test]
fn space_is_looked_for_first() {
    in_private_mounts("proving::space_is_looked_for_first", || {
        let world = World::new();
        world.write("app/large", Dice::new(1).bytes(3 << 20));
        world.ok(["create", "app"]);
        mount_tmpfs(&world.work("small"), 1 << 20);
        let ran = world.run(["check", "--restore-drill", "--scratch", "small"]).expect(1);
        ran.names(["takes 3.0 MiB, and small has", "left", "--scratch"]);
        assert_eq!(fs::read_dir(world.work("small")).unwrap().count(), 0);
        world.ok(["check", "--restore-drill"]);
    });
}
