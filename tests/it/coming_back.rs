//! Restores over an application that is there: what is open is left alone, what is replaced is kept and comes back.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;

use crate::picture::{self, Picture};
use crate::restoring::MARK;
use crate::roles::{Role, check_bank, make_bank};
use crate::world::{self, Dice, World};

/// An application with a database in this journal mode and files, and a snapshot of it; then it went on.
fn application(mode: &str) -> World {
    let world = World::new();
    let mut dice = Dice::new(7);
    fs::create_dir(world.work("app")).unwrap();
    make_bank(&world.work("app/data.db"), mode, 4096);
    for name in ["same", "changed", "gone", "sub/same", "sub/changed"] {
        world.write(format!("app/{name}"), dice.bytes(5000));
    }
    world.ok(["create", "app", "-q"]);
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch("UPDATE entry SET text = 'later' WHERE id % 3 = 0; DELETE FROM entry WHERE id > 1500").unwrap();
    db.close().unwrap();
    world.write("app/changed", "later");
    world.write("app/sub/changed", dice.bytes(5000));
    fs::remove_file(world.work("app/gone")).unwrap();
    world.write("app/new", "later");
    world.write("app/newer/below", "later");
    world
}

fn now(world: &World) -> Picture {
    picture::contents(&world.work("app"))
}

fn kept(world: &World) -> Vec<Value> {
    world.list().into_iter().filter(|s| s["source"].as_str().unwrap().starts_with("before-restore:")).collect()
}

const OVER: [&str; 5] = ["restore", "latest:app", "--target", "app", "--delete"];
const UNDO: [&str; 4] = ["restore", "--undo", "--target", "app"];

#[test]
fn an_open_database_keeps_everything_as_it_is() {
    for (mode, role) in [("wal", Role::Idle), ("delete", Role::Idle), ("delete", Role::Spill)] {
        let world = application(mode);
        let user = role.clone().start(&world.work("app/data.db"));
        let before = now(&world);
        for way in [&OVER[..], &["restore", "latest:app", "--target", "app", "--overwrite", "always"]] {
            let ran =
                world.run(way).expect(1).names(["data.db", "open", "--force", &format!("process {} (", user.id())]);
            assert!(!ran.stderr.contains("not restored"), "{}", ran.stderr);
            picture::assert_same(&now(&world), &before);
            world.ok(way.iter().chain(&["--dry-run"])).names(["would be refused", "data.db"]);
        }
        assert!(kept(&world).is_empty() && !world.work("app").join(MARK).exists());
        if role == Role::Idle {
            world.ok(OVER.iter().chain(&["--force"]));
            assert_eq!(check_bank(&world.work("app/data.db")), 2000, "{mode}");
        }
        drop(user);
    }
}

#[test]
fn what_a_restore_replaces_is_kept_and_comes_back() {
    for mode in ["wal", "delete"] {
        let world = application(mode);
        let snapshot = world.list()[0]["id"].clone();
        let later = now(&world);
        let ran = world.ok(OVER);
        assert!(
            ran.text().contains("what was there is in snapshot") && ran.text().contains("--undo"),
            "{}",
            ran.text()
        );
        let restored = now(&world);
        assert_ne!(restored, later);
        assert_eq!(check_bank(&world.work("app/data.db")), 2000);
        let safety = kept(&world);
        assert_eq!((safety.len(), &safety[0]["tags"]), (1, &Value::from(vec!["before-restore"])));
        let target = world.work("app").canonicalize().unwrap();
        assert_eq!(safety[0]["source"], format!("before-restore:{}", target.display()));
        // It is newer, but it is not what "latest" means.
        assert_eq!(world.json(["restore", "latest:app", "--target", "elsewhere"])["snapshot_id"], snapshot);
        let named = world.json(["restore", "latest", "--tag", "before-restore", "--target", "named"]);
        assert_eq!(named["snapshot_id"], safety[0]["id"]);

        // Back and forth.
        let done = world.json(UNDO);
        assert_eq!((&done["snapshot_id"], done["kept"]["snapshot_id"].is_string()), (&safety[0]["id"], true));
        picture::assert_same(&now(&world), &later);
        check_bank(&world.work("app/data.db"));
        world.ok(UNDO);
        picture::assert_same(&now(&world), &restored);
        world.ok(UNDO.iter().chain(&["--no-safety"]));
        picture::assert_same(&now(&world), &later);
        assert_eq!(kept(&world).len(), 3);
    }
}

#[test]
fn nothing_is_kept_where_nothing_is_replaced_or_it_is_not_wanted() {
    let world = application("wal");
    world.restore("latest:app", "new");
    let id = world.list()[0]["id"].as_str().unwrap().to_owned();
    fs::create_dir(world.work("empty")).unwrap();
    world.ok(["restore", &id, "--target", "empty"]);
    world.ok(OVER.iter().chain(&["--dry-run"]));
    assert_eq!(world.json(OVER.iter().chain(&["--no-safety"]))["kept"], Value::Null);
    assert_eq!(world.json(OVER)["kept"], Value::Null, "it is the same already");
    assert!(kept(&world).is_empty());
    world.run(UNDO).expect(1).names(["app", "before a restore"]);
    world.run(["restore", "--target", "app"]).expect(2);
    world.run(["restore", "latest", "--undo", "--target", "app"]).expect(2);
}

#[test]
fn a_log_that_was_left_is_part_of_what_is_kept() {
    let world = application("wal");
    Role::CommitToLog.start(&world.work("app/data.db")).kill();
    let count = |path: &Path| check_bank(path);
    let seen = world.work("seen.db");
    for suffix in ["", "-wal"] {
        fs::copy(world.work(format!("app/data.db{suffix}")), world.work(format!("seen.db{suffix}"))).unwrap();
    }
    let entries = count(&seen);
    world.ok(OVER);
    assert_eq!(count(&world.work("app/data.db")), 2000);
    world.ok(UNDO);
    assert_eq!(count(&world.work("app/data.db")), entries);
}

#[test]
fn without_a_writable_repository_files_are_kept_by_another_name() {
    world::in_private_mounts("coming_back::without_a_writable_repository_files_are_kept_by_another_name", || {
        let mut world = application("wal");
        let later = now(&world);
        let repo = world.at("repo");
        for options in [&["--bind"][..], &["-o", "remount,ro,bind"]] {
            let mounted = world::run(std::process::Command::new("mount").args(options).arg(&repo).arg(&repo));
            assert_eq!(mounted.status, 0, "{}", mounted.stderr);
        }
        let ran = world.ok(OVER).names([".snapshot-before-restore-", "no snapshot"]);
        assert!(ran.text().contains("what was there is in"), "{}", ran.text());
        assert_eq!(check_bank(&world.work("app/data.db")), 2000);
        assert!(world.work("app/gone").exists() && !world.work("app/new").exists());
        let there: Vec<_> = fs::read_dir(world.work("app")).unwrap().map(|e| e.unwrap().path()).collect();
        let copy = there.iter().find(|path| path.to_string_lossy().contains("before-restore-")).unwrap();
        for (name, content) in picture::contents(copy).into_iter().filter(|(name, _)| name != MARK) {
            assert_eq!(later.get(&name), Some(&content), "{name}");
        }
        for name in ["data.db", "changed", "sub/changed", "new", "newer/below"] {
            assert!(copy.join(name).exists(), "{name}");
        }
        // It stays when the same is restored once more.
        world.ok(OVER);
        assert!(copy.join("new").exists());

        // Back and forth, also where the repository can't be opened at all.
        let mut undo = |repository: &Path| {
            world.set("SNAPSHOT_REPO", repository);
            let ran = world.ok(UNDO);
            assert!(ran.text().contains("put back"), "{}", ran.text());
            application_alone(&world)
        };
        picture::assert_same(&undo(Path::new("/nowhere")), &later);
        let restored = undo(&repo);
        assert!(restored.contains_key("gone") && !restored.contains_key("newer"), "{restored:?}");
        picture::assert_same(&undo(Path::new("/nowhere")), &later);
        check_bank(&world.work("app/data.db"));
        let user = Role::Idle.start(&world.work("app/data.db"));
        world.run(UNDO).expect(1).names(["data.db", "open"]);
        picture::assert_same(&application_alone(&world), &later);
        user.end();
    });
}

/// What is there, without what is kept.
fn application_alone(world: &World) -> Picture {
    let mut there = now(world);
    there.retain(|name, _| !name.starts_with(".snapshot-before-restore-") && !name.starts_with("data.db-"));
    there
}

#[test]
fn in_place_a_database_needs_room_for_its_changes_only() {
    world::in_private_mounts("coming_back::in_place_a_database_needs_room_for_its_changes_only", || {
        let world = World::new();
        world::mount_tmpfs(&world.work("disk"), 80 << 20);
        let path = world.work("disk/data.db");
        make_bank(&path, "delete", 4096);
        let db = Connection::open(&path).unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250)
            INSERT INTO entry(text) SELECT hex(randomblob(50000)) FROM n; PRAGMA user_version = 1";
        db.execute_batch(fill).unwrap();
        world.ok(["create", "disk", "-q"]);
        let before = fs::read(&path).unwrap();
        assert!(before.len() > 25 << 20);
        db.execute_batch("UPDATE account SET money = 1000; PRAGMA user_version = 2").unwrap();
        db.close().unwrap();
        assert!(fs::read(&path).unwrap() != before);
        let done = world.json(["restore", "latest:disk", "--target", "disk", "--in-place"]);
        assert!(done["bytes_fetched"].as_u64() < Some(1 << 20), "{done}");
        assert!(fs::read(&path).unwrap() == before);
        assert_eq!(fs::read_dir(world.work("disk")).unwrap().count(), 1);
        // Beside it there is no room for another one, and what is there stays.
        world.run(["restore", "latest:disk", "--target", "disk", "--overwrite", "always"]).expect(1).names(["space"]);
        assert!(fs::read(&path).unwrap() == before);
    });
}

#[test]
fn an_unsound_database_does_not_take_the_place_of_a_sound_one() {
    let world = application("delete");
    let path = world.work("app/data.db");
    let sound = fs::read(&path).unwrap();
    let mut bad = sound.clone();
    // A page in the middle of the tree that is no page of a tree.
    bad[8 * 4096..9 * 4096].fill(0x55);
    fs::write(&path, &bad).unwrap();
    world.ok(["create", "app", "-q"]);
    fs::write(&path, &sound).unwrap();
    for way in [&["--in-place"][..], &["--overwrite", "always"]] {
        let line = ["restore", "latest:app/data.db", "--target", "app"];
        let ran = world.run(line.iter().chain(way)).expect(5);
        ran.names(["data.db", "not sound", "--force"]);
        assert!(fs::read(&path).unwrap() == sound, "{way:?}");
        assert!(!world.work("app/data.db-journal").exists());
    }
    world.ok(["restore", "latest:app/data.db", "--target", "app", "--overwrite", "always", "--force"]);
    assert!(fs::read(&path).unwrap() == bad);
}

#[test]
fn the_log_of_a_database_that_stays_is_not_deleted() {
    let world = application("wal");
    Role::CommitToLog.start(&world.work("app/data.db")).kill();
    for suffix in ["", "-wal"] {
        fs::copy(world.work(format!("app/data.db{suffix}")), world.work(format!("seen.db{suffix}"))).unwrap();
    }
    let entries = check_bank(&world.work("seen.db"));
    let line = ["restore", "latest:app", "--target", "app", "--delete"];
    world.ok(line.iter().chain(&["--overwrite", "never"]));
    world.ok(line.iter().chain(&["--exclude", "data.db"]));
    assert!(!world.work("app/new").exists());
    assert_eq!(check_bank(&world.work("app/data.db")), entries);
}
