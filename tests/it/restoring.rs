//! Restores over what is there: in place, with deletion, after a kill, and two at a time.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::picture;
use crate::roles::{Role, check_bank, make_bank};
use crate::world::{self, Dice, World};

pub const MARK: &str = ".snapshot-restore";

/// A directory with small files, a large one and a database, in a snapshot and restored to `out`.
fn restored() -> World {
    let world = World::new();
    let mut dice = Dice::new(1);
    for i in 0..40 {
        world.write(format!("data/sub {}/{i}", i % 4), dice.bytes(500));
    }
    world.write("data/large", dice.bytes(12 << 20));
    make_bank(&world.work("data/bank.db"), "delete", 4096);
    world.ok(["create", "data"]);
    world.restore("latest:data", "out");
    world
}

pub fn in_place(world: &World, more: &[&str]) -> Value {
    world.json(["restore", "latest:data", "--target", "out", "--in-place"].iter().chain(more))
}

pub fn assert_restored(world: &World) {
    picture::assert_same(&picture::of(&world.work("out")), &picture::of(&world.work("data")));
}

fn set_mtime(path: &Path, secs: u64) {
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
pub fn in_place_nothing_is_written_where_nothing_differs() {
    let world = restored();
    let inode = |name: &str| fs::metadata(world.work("out").join(name)).unwrap().ino();
    let before = ["large", "bank.db", "sub 1/1"].map(inode);
    let done = in_place(&world, &[]);
    assert_eq!((&done["files"], &done["bytes"], &done["skipped"]), (&0.into(), &0.into(), &42.into()), "{done}");
    assert_eq!(["large", "bank.db", "sub 1/1"].map(inode), before);

    // Only attributes differ: only these are set.
    fs::set_permissions(world.work("out/sub 1/1"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(world.work("out/sub 2"), fs::Permissions::from_mode(0o700)).unwrap();
    rustix::fs::setxattr(world.work("out/large"), "user.extra", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let done = in_place(&world, &[]);
    assert_eq!((&done["bytes"], &done["metadata"]), (&0.into(), &3.into()), "{done}");
    assert_eq!(["large", "bank.db", "sub 1/1"].map(inode), before);
    assert_restored(&world);

    // Another time, but the same content: it is looked at, and only the time is set.
    set_mtime(&world.work("out/large"), 5);
    let done = in_place(&world, &[]);
    assert_eq!((&done["bytes"], &done["metadata"]), (&0.into(), &1.into()), "{done}");
    assert_eq!(inode("large"), before[0]);
    assert_restored(&world);
}

#[test]
pub fn in_place_only_what_differs_is_fetched() {
    let world = restored();
    let large = world.work("out/large");
    let mut bytes = fs::read(&large).unwrap();
    bytes.splice(1_000_000..1_000_010, *b"inserted somewhere");
    bytes[8_000_000] ^= 1;
    fs::write(&large, &bytes).unwrap();
    let db = Connection::open(world.work("out/bank.db")).unwrap();
    db.execute_batch("UPDATE entry SET text = 'short' WHERE id = 1000; PRAGMA user_version = 7").unwrap();
    drop(db);
    fs::write(world.work("out/sub 1/1"), "changed").unwrap();
    fs::remove_file(world.work("out/sub 1/5")).unwrap();
    // A file where a directory must be, an empty directory and a link where files must be.
    fs::remove_dir_all(world.work("out/sub 3")).unwrap();
    fs::write(world.work("out/sub 3"), "no directory").unwrap();
    fs::remove_file(world.work("out/sub 0/0")).unwrap();
    fs::create_dir(world.work("out/sub 0/0")).unwrap();
    fs::remove_file(world.work("out/sub 0/4")).unwrap();
    symlink("/etc/passwd", world.work("out/sub 0/4")).unwrap();
    let done = in_place(&world, &["--verify"]);
    let database = fs::metadata(world.work("data/bank.db")).unwrap().len();
    let number = |key: &str| done[key].as_u64().unwrap();
    assert_eq!(number("bytes"), number("bytes_fetched") + number("bytes_reused"), "{done}");
    assert!(number("bytes_reused") > (4 << 20) + database / 2, "{done}");
    assert!(number("bytes_fetched") < 9 << 20, "{done}");
    assert_eq!((number("files"), number("verified_files"), number("verified_databases")), (15, 15, 1), "{done}");
    assert_restored(&world);
    check_bank(&world.work("out/bank.db"));
}

#[test]
fn content_is_compared_on_demand() {
    let world = restored();
    for (name, at) in [("large", 5 << 20), ("sub 1/1", 7)] {
        let path = world.work("out").join(name);
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"\xff damage \xff", at).unwrap();
        file.set_modified(before).unwrap();
    }
    assert_eq!(in_place(&world, &[])["bytes"], 0, "size and time are the same");
    let planned = in_place(&world, &["--verify-content", "--dry-run"]);
    assert_eq!((&planned["files"], &planned["skipped"]), (&2.into(), &40.into()), "{planned}");
    let done = in_place(&world, &["--verify-content"]);
    assert_eq!(done["files"], 2, "{done}");
    assert!(done["bytes_fetched"].as_u64() < Some(5 << 20), "{done}");
    assert_restored(&world);
}

#[test]
fn delete_brings_a_directory_to_the_state_of_the_snapshot() {
    let world = restored();
    let outside = world.write("outside/precious", "precious");
    world.write("out/extra", "1");
    world.write("out/sub 1/extra dir/deep/er/file", "1");
    world.write("out/kept.log", "excluded");
    world.write("out/sub 2/half/kept.log", "excluded");
    world.write("out/sub 2/half/gone", "1");
    symlink(world.work("outside"), world.work("out/link")).unwrap();
    // A directory has the name of a file.
    fs::remove_file(world.work("out/sub 0/0")).unwrap();
    world.write("out/sub 0/0/in the way", "1");
    fs::set_permissions(world.work("out/sub 1/extra dir/deep"), fs::Permissions::from_mode(0o500)).unwrap();

    world.run(["restore", "latest:data", "--target", "out", "--in-place"]).expect(5).names(["sub 0/0", "--delete"]);
    let planned = in_place(&world, &["--delete", "--exclude", "*.log", "--dry-run"]);
    assert_eq!(planned["deleted"], 9, "{planned}");
    let done = in_place(&world, &["--delete", "--exclude", "*.log"]);
    assert_eq!(done["deleted"], 9, "{done}");
    assert_eq!(fs::read_to_string(world.work("out/kept.log")).unwrap(), "excluded");
    assert_eq!(fs::read_to_string(world.work("out/sub 2/half/kept.log")).unwrap(), "excluded");
    assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
    assert!(!world.work("out/sub 2/half/gone").exists());
    // Without --in-place as well.
    let done = world.json(["restore", "latest:data", "--target", "out", "--delete"]);
    assert_eq!(done["deleted"], 3, "{done}");
    assert_restored(&world);
}

#[test]
fn delete_stays_within_what_the_snapshot_has_whole() {
    let world = World::new();
    world.write("app/data/a", "1");
    world.write("app/data/sub/b", "1");
    world.ok(["create", "app/data"]);
    world.write("app/beside", "not in the snapshot");
    world.write("app/data/extra", "1");
    world.write("app/data/sub/extra.txt", "1");
    let delete = |snapshot: &str, target: &str, more: &[&str]| {
        world.json(["restore", snapshot, "--target", target, "--delete"].iter().chain(more))["deleted"].clone()
    };
    // The patterns name one file, or one kind of file, in that directory.
    assert_eq!(delete("latest", ".", &["--include", "/app/data/a"]), 0);
    assert_eq!(delete("latest:app/data/a", "app/data", &[]), 0);
    assert_eq!(delete("latest", ".", &["--include", "*.txt", "--include", "/app/data/a"]), 1);
    assert!(!world.work("app/data/sub/extra.txt").exists() && world.work("app/data/extra").exists());
    // What leads to the source is not the snapshot's.
    assert_eq!(delete("latest", ".", &[]), 1);
    assert!(!world.work("app/data/extra").exists() && world.work("app/beside").exists());
    assert_eq!(delete("latest:app", "app", &[]), 0);
    assert!(world.work("app/beside").exists());
}

#[test]
fn delete_is_refused_where_it_would_do_harm() {
    let mut world = World::bare();
    world.use_repository("work/data/repo", "work/data/key");
    world.write("data/a", "1");
    world.ok(["init"]);
    world.ok(["create", "data"]);
    let before = picture::of(&world.work("data"));
    let refused = |args: &[&str], words: &[&str]| {
        let line = ["restore", "latest:data", "--delete", "--target"].iter().chain(args);
        world.run(line).expect(1).names(words.iter().copied());
    };
    refused(&["data", "--force"], &["data", "holds the repository"]);
    refused(&["data/repo/packs", "--force"], &["lies in, the repository"]);
    refused(&["/", "--force"], &["root"]);
    refused(&[world.at("home").to_str().unwrap(), "--force"], &["home"]);
    symlink(world.at("home"), world.work("home link")).unwrap();
    refused(&["home link"], &["home"]);
    picture::assert_same(&picture::of(&world.work("data")), &before);

    // The key never goes.
    fs::create_dir(world.work("keys")).unwrap();
    fs::rename(world.work("data/repo"), world.at("repo")).unwrap();
    fs::rename(world.work("data/key"), world.work("keys/ours")).unwrap();
    world.use_repository("repo", "work/keys/ours");
    world.write("keys/other", "1");
    let ran = world.ok(["restore", "latest:data", "--delete", "--target", "keys"]).names(["keys/ours", "opens"]);
    assert!(ran.text().contains("1 name deleted"), "{}", ran.text());
    assert!(world.work("keys/ours").exists() && world.work("keys/a").exists() && !world.work("keys/other").exists());
}

#[test]
fn delete_asks_before_it_takes_most() {
    let world = restored();
    for i in 0..60 {
        world.write(format!("out/more/{i}"), "1");
    }
    let before = picture::of(&world.work("out"));
    let line = ["restore", "latest:data", "--target", "out", "--delete"];
    world.run(line).expect(1).names(["61 of 107", "--dry-run", "--force"]);
    picture::assert_same(&picture::of(&world.work("out")), &before);
    let planned = world.ok(line.iter().chain(&["--dry-run"])).names(["would be refused"]);
    assert_eq!(planned.text().lines().filter(|line| line.starts_with("delete")).count(), 61, "{}", planned.text());
    picture::assert_same(&picture::of(&world.work("out")), &before);
    world.ok(line.iter().chain(&["--force"]));
    assert_restored(&world);
}

#[test]
fn delete_by_an_incomplete_snapshot_or_after_an_incomplete_restore() {
    let world = restored();
    world.run(["create", "data", "absent"]).expect(3);
    world.write("out/extra", "1");
    let line = ["restore", "latest:data", "--target", "out", "--delete"];
    world.run(line).expect(1).names(["incomplete", "--force"]);
    assert!(world.work("out/extra").exists());
    world.ok(line.iter().chain(&["--force"]));
    assert!(!world.work("out/extra").exists());

    // Something can't be restored: nothing goes.
    world.write("out/extra", "1");
    world.ok(["create", "data"]);
    fs::remove_file(world.work("out/large")).unwrap();
    fs::create_dir(world.work("out/large")).unwrap();
    fs::remove_file(world.work("out/sub 0/0")).unwrap();
    world.write("out/sub 0/0/kept.log", "1");
    world.run(line.iter().chain(&["--exclude", "*.log"])).expect(5).names(["sub 0/0", "nothing is deleted"]);
    assert!(world.work("out/extra").exists() && world.work("out/large").is_file());
}

#[test]
fn a_database_that_is_open_is_neither_replaced_nor_deleted() {
    let world = restored();
    make_bank(&world.work("out/other.db"), "wal", 4096);
    let writer = Role::CommitToLog.start(&world.work("out/other.db"));
    let line = ["restore", "latest:data", "--target", "out", "--delete"];
    world.run(line).expect(1).names(["other.db", "open"]);
    assert!(world.work("out/other.db-wal").exists());
    writer.end();
    world.ok(line);
    assert!(!world.work("out/other.db").exists() && !world.work("out/other.db-wal").exists());
    assert_restored(&world);
}

#[test]
fn what_is_mounted_stays() {
    world::in_private_mounts("restoring::what_is_mounted_stays", || {
        let world = restored();
        world::mount_tmpfs(&world.work("out/extra/mounted"), 1 << 20);
        world.write("out/extra/mounted/file", "1");
        world.write("out/extra/gone", "1");
        world::mount_tmpfs(&world.work("out/sub 1"), 1 << 20);
        world.write("out/sub 1/file", "1");
        // The same file system, mounted once more.
        world.write("elsewhere/file", "1");
        fs::create_dir(world.work("out/bind")).unwrap();
        let bound =
            Command::new("mount").args(["--bind", "elsewhere", "out/bind"]).current_dir(world.work("")).status();
        assert!(bound.unwrap().success());
        let ran = world.ok(["restore", "latest:data", "--target", "out", "--delete"]);
        ran.names(["extra/mounted", "out/bind", "out/sub 1"]);
        for stays in ["extra/mounted/file", "bind/file", "sub 1/file", "sub 1/1"] {
            assert!(world.work("out").join(stays).exists(), "{stays}");
        }
        assert!(!world.work("out/extra/gone").exists());
    });
}

#[test]
fn a_dry_run_tells_the_whole_plan() {
    let world = restored();
    fs::remove_file(world.work("out/sub 1/1")).unwrap();
    fs::write(world.work("out/large"), "other").unwrap();
    fs::set_permissions(world.work("out/sub 1/5"), fs::Permissions::from_mode(0o600)).unwrap();
    world.write("out/extra", "12345");
    let _socket = std::os::unix::net::UnixListener::bind(world.work("data/socket")).unwrap();
    world.ok(["create", "data"]);
    let before = picture::of(&world.work("out"));
    let planned = in_place(&world, &["--delete", "--dry-run"]);
    picture::assert_same(&picture::of(&world.work("out")), &before);
    let action = |name: &str| {
        let items = planned["planned"].as_array().unwrap();
        let found = items.iter().find(|item| item["path"].as_str().unwrap() == format!("out/{name}"));
        let item = found.unwrap_or_else(|| panic!("{name} is not in {planned}"));
        (item["action"].as_str().unwrap().to_owned(), item["bytes"].as_u64().unwrap())
    };
    for (name, expected, bytes) in [
        ("sub 1/1", "create", 500),
        ("large", "replace", 12 << 20),
        ("sub 1/5", "metadata", 500),
        ("sub 1/9", "keep", 500),
        ("sub 2", "keep", 0),
        ("extra", "delete", 5),
        ("socket", "omit", 0),
    ] {
        assert_eq!(action(name), (expected.to_owned(), bytes), "{name}");
    }
    assert_eq!((&planned["files"], &planned["deleted"], &planned["metadata"]), (&2.into(), &1.into(), &2.into()));
    let text = world.ok(["restore", "latest:data", "--target", "out", "--delete", "--dry-run"]).text();
    assert!(text.contains("replace    12.0 MiB  ") && text.contains("1 name would be deleted"), "{text}");
    in_place(&world, &["--delete"]);
    fs::remove_file(world.work("data/socket")).unwrap();
    fs::remove_dir_all(world.work("out")).unwrap();
    world.restore("latest:data", "out");
}
