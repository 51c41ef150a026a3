//! The program as a whole with repositories on real servers.

use std::fs;

use crate::picture::{self, Picture};
use crate::roles::{check_bank, make_bank};
use crate::servers::{s3, sshd, world_with_s3, world_with_sftp};
use crate::world::{Dice, World, run};

const FORGET_NOTHING: [&str; 3] = ["prune", "--grace", "0s"];

/// Files and a database in `data`.
fn fill(world: &World) {
    let mut dice = Dice::new(1);
    for n in 0..20 {
        world.write(format!("data/some/{n}"), dice.bytes(3000));
    }
    world.write("data/large", dice.bytes(3_000_000));
    make_bank(&world.work("data/bank.db"), "WAL", 4096);
}

/// A night: some files and rows are others. Returns what it looks like then.
fn night(world: &World, n: u64) -> Picture {
    let mut dice = Dice::new(100 + n);
    world.write(format!("data/some/{n}"), dice.bytes(5000));
    world.write(format!("data/new {n}"), dice.bytes(500));
    let db = rusqlite::Connection::open(world.work("data/bank.db")).unwrap();
    db.execute("UPDATE entry SET text = hex(randomblob(150)) WHERE id % 50 = ?1", [n.cast_signed()]).unwrap();
    drop(db);
    picture::of(&world.work("data"))
}

/// Everything that one does with a repository in a year.
fn a_life(world: &World) {
    world.run(["list"]).expect(10);
    world.ok(["init"]);
    world.run(["init"]).expect(1);
    fill(world);
    let mut nights = Vec::new();
    for n in 0..3 {
        nights.push(night(world, n));
        let done = world.json(["create", "data", "--tag", "nightly"]);
        assert_eq!((&done["generation"], &done["databases"]), (&(n + 1).into(), &1.into()), "{done}");
    }
    let unchanged = world.json(["create", "data", "--tag", "again"]);
    assert!(unchanged["bytes_stored"].as_u64().unwrap() < 20_000, "{unchanged}");
    assert_eq!(world.list().len(), 4);
    for (n, expected) in nights.iter().enumerate() {
        let restored = world.restore(&format!("latest~{}", 3 - n), &format!("out{n}"));
        picture::assert_same(&picture::of(&restored.join("data")), expected);
    }
    check_bank(&world.work("out2/data/bank.db"));

    looks(world);
    keys(world);
    copies(world, &nights[2]);
    prunes(world, &nights[2]);
    // A machine that knows nothing of it yet.
    fs::remove_dir_all(world.at("cache")).ok();
    let restored = world.restore("latest", "afresh");
    picture::assert_same(&picture::of(&restored.join("data")), &nights[2]);
    // One that has lost its index.
    world.ok(["repair", "index"]);
    world.ok(["check", "--read-data", "--databases"]);
    world.ok(["unlock"]);
}

fn looks(world: &World) {
    assert!(world.ok(["ls", "latest", "data"]).text().contains("large"));
    assert!(world.ok(["find", "new 1"]).text().contains("new 1"));
    let dumped = world.ok(["dump", "latest", "data/large"]).stdout;
    assert!(dumped == fs::read(world.work("data/large")).unwrap());
    assert!(world.ok(["diff", "latest~3", "latest"]).text().contains("new 2"));
    world.ok(["stats"]);
    world.ok(["tag", "latest", "--add", "kept"]);
    assert!(world.list()[3]["tags"].as_array().unwrap().iter().any(|tag| tag == "kept"));
    world.ok(["check"]);
}

fn keys(world: &World) {
    world.ok(["key", "add", "--new-key-file", "second.key"]);
    let keys = world.json(["key", "list"])["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 2);
    run(world.command(["list"]).env("SNAPSHOT_KEY_FILE", world.work("second.key"))).expect(0);
    let first = keys.iter().find(|key| key["current"] == true).unwrap_or(&keys[0]);
    let second = keys.iter().find(|key| key["id"] != first["id"]).unwrap();
    world.ok(["key", "remove", second["id"].as_str().unwrap()]);
    run(world.command(["list"]).env("SNAPSHOT_KEY_FILE", world.work("second.key"))).expect(12);
}

/// To a local repository, and from there back to another place on the server.
fn copies(world: &World, expected: &Picture) {
    let far = world.variable("SNAPSHOT_REPO");
    let init = |repo: &std::ffi::OsStr, key: &str| {
        let mut command = world.command(["init"]);
        run(command.env("SNAPSHOT_REPO", repo).env("SNAPSHOT_KEY_FILE", world.at(key))).expect(0);
    };
    let near = world.at("near").into_os_string();
    let mut second = far.clone();
    second.push("-second");
    init(&near, "near.key");
    init(&second, "second-far.key");
    let copy = |repo: &std::ffi::OsStr, key: &str, from: &std::ffi::OsStr, from_key: &str| {
        let mut command = world.command(["copy"]);
        command.env("SNAPSHOT_REPO", repo).env("SNAPSHOT_KEY_FILE", world.at(key));
        run(command.env("SNAPSHOT_FROM_REPO", from).env("SNAPSHOT_FROM_KEY_FILE", world.at(from_key))).expect(0);
    };
    copy(&near, "near.key", &far, "key");
    copy(&second, "second-far.key", &near, "near.key");
    let mut restore = world.command(["restore", "latest", "--target", "copied", "-q"]);
    run(restore.env("SNAPSHOT_REPO", &second).env("SNAPSHOT_KEY_FILE", world.at("second-far.key"))).expect(0);
    picture::assert_same(&picture::of(&world.work("copied/data")), expected);
}

fn prunes(world: &World, expected: &Picture) {
    let first = world.list()[0]["id"].as_str().unwrap().to_owned();
    world.ok(["forget", &first]);
    assert_eq!(world.list().len(), 3);
    world.ok(["undo-forget", &first]);
    assert_eq!(world.list().len(), 4);
    let keep = [&FORGET_NOTHING[..], &["--keep-last", "1", "--max-unused", "0%"]].concat();
    world.ok(&keep);
    world.ok(&keep);
    assert_eq!(world.list().len(), 1);
    world.ok(["check", "--read-data"]);
    let restored = world.restore("latest", "pruned");
    picture::assert_same(&picture::of(&restored.join("data")), expected);
}

#[test]
fn in_a_directory_of_a_server() {
    let server = sshd::shared();
    let world = world_with_sftp(server, server.port());
    a_life(&world);
    // Nothing unfinished is left, and nobody else may read what is there.
    assert!(world.objects().iter().all(|path| !path.starts_with("tmp/")), "{:?}", world.objects());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(world.at("repo")).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn in_a_bucket() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let world = world_with_s3(&server.url(), &bucket);
    a_life(&world);
}

/// The estimate of a dry run is what the run comes to.
#[test]
fn what_a_night_would_cost() {
    let server = s3::shared();
    let world = world_with_s3(&server.url(), &server.new_bucket());
    world.ok(["init"]);
    fill(&world);
    for n in 0..3 {
        night(&world, n);
        let cost = world.json(["create", "data", "--dry-run", "--cost"])["cost"].clone();
        let real = world.json(["create", "data"])["storage"].clone();
        let number = |of: &serde_json::Value, what: &str| of.pointer(what).unwrap().as_u64().unwrap();
        for what in ["/requests/put", "/requests/list", "/requests/delete"] {
            assert_eq!(number(&cost, what), number(&real, what), "{what} of {cost} and {real}");
        }
        let (expected, sent) = (number(&cost, "/bytes_up"), number(&real, "/bytes_up"));
        assert!(expected.abs_diff(sent) < sent / 50 + 3000, "{expected} and {sent} bytes");
    }
}

#[test]
fn by_tls() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let url = |host: &str, port: u16| format!("https://{host}:{port}");
    let mut world = world_with_s3(&url("127.0.0.1", server.tls_port()), &bucket);
    world.write("data/file", "something");
    // Nobody vouches for the server.
    world.run(["init"]).expect(1).names(["certificate is not to be trusted", "127.0.0.1", "AWS_CA_BUNDLE"]);
    world.set("AWS_CA_BUNDLE", server.authority());
    world.ok(["init"]);
    world.ok(["create", "data"]);
    let restored = world.restore("latest", "out");
    picture::assert_same(&picture::of(&restored.join("data")), &picture::of(&world.work("data")));
    // It is vouched for, but not by this name.
    world.set("AWS_ENDPOINT_URL", url("localhost", server.tls_port()));
    world.run(["list"]).expect(1).names(["certificate is not to be trusted", "localhost"]);
    world.set("AWS_ENDPOINT_URL", url("127.0.0.1", server.port()));
    world.run(["list"]).expect(1).names(["does not speak TLS", "127.0.0.1", "https or http"]);
    world.set("AWS_CA_BUNDLE", world.work("data/file"));
    world.run(["list"]).expect(1).names(["AWS_CA_BUNDLE"]);
}
