//! Snapshots copied from one repository into another, and sessions cleared away.

use std::fs;
use std::os::unix::fs::symlink;

use rusqlite::Connection;

use crate::picture;
use crate::world::{self, Dice, World};

/// A directory with a database, small and large files, a sparse one, links; and what a night changes in it.
fn fill(world: &World) {
    let mut dice = Dice::new(7);
    world.write("app/small", "a small file");
    world.write("app/storage/one", dice.bytes(300_000));
    world.write("app/storage/large", dice.bytes(9_000_000));
    world.write("app/empty", "");
    symlink("small", world.work("app/link")).unwrap();
    fs::hard_link(world.work("app/small"), world.work("app/storage/twin")).unwrap();
    fs::File::create(world.work("app/sparse")).unwrap().set_len(5 << 20).unwrap();
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO t SELECT i, hex(randomblob(60)) FROM n;",
    )
    .unwrap();
}

fn night(world: &World, n: i64) {
    world.write("app/storage/new", format!("night {n}"));
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute("UPDATE t SET text = hex(randomblob(60)) WHERE id % 701 = ?1", [n]).unwrap();
}

/// A world with three generations in `repo`, what they were, and an empty repository `other` with a password.
fn two_repositories() -> (World, Vec<picture::Picture>) {
    let world = World::new();
    fill(&world);
    let mut pictures = Vec::new();
    for n in 0..3 {
        night(&world, n);
        world.ok(["create", "app", "--tag", "nightly"]);
        pictures.push(picture::of(&world.work("app")));
    }
    let mut other = world.command(["init", "--kdf-memory", "19"]);
    world::run(at_other(&world, &mut other)).expect(0);
    (world, pictures)
}

/// The same command for the other repository.
fn at_other<'c>(world: &World, command: &'c mut std::process::Command) -> &'c mut std::process::Command {
    command.env_remove("SNAPSHOT_KEY_FILE").env("SNAPSHOT_PASSWORD", "other");
    command.env("SNAPSHOT_REPO", world.at("other"))
}

fn other(world: &World, args: &[&str]) -> world::Ran {
    world::run(at_other(world, &mut world.command(args)))
}

fn copy(world: &World, args: &[&str]) -> world::Ran {
    let mut command = world.command(["copy", "--json"].iter().chain(args));
    command.env("SNAPSHOT_FROM_REPO", world.at("repo")).env("SNAPSHOT_FROM_KEY_FILE", world.at("key"));
    world::run(at_other(world, &mut command))
}

#[test]
fn copies_are_the_same_and_are_made_once() {
    let (world, pictures) = two_repositories();
    let done = copy(&world, &["latest~2"]).expect(0).json();
    assert_eq!((done["copied"].as_array().unwrap().len(), &done["skipped"]), (1, &0.into()));
    let done = copy(&world, &[]).expect(0).json();
    assert_eq!((done["copied"].as_array().unwrap().len(), &done["skipped"]), (2, &1.into()));
    let done = copy(&world, &[]).expect(0).json();
    assert_eq!((done["copied"].as_array().unwrap().len(), &done["skipped"]), (0, &3.into()));
    assert_eq!(done["bytes_stored"], 0);

    for (generation, expected) in pictures.iter().enumerate() {
        let (snapshot, target) = (format!("latest~{}", 2 - generation), format!("copy{generation}"));
        other(&world, &["restore", &snapshot, "--verify", "--target", &target]).expect(0);
        picture::assert_same(&picture::of(&world.work(&target).join("app")), expected);
    }
    other(&world, &["check", "--read-data", "--databases"]).expect(0);
    let list = |of: &str| {
        let ran =
            if of == "repo" { world.ok(["list", "--json"]) } else { other(&world, &["list", "--json"]).expect(0) };
        let keep =
            |s: &serde_json::Value| ["generation", "time", "host", "source", "tags", "paths"].map(|key| s[key].clone());
        ran.json().as_array().unwrap().iter().map(keep).collect::<Vec<_>>()
    };
    assert_eq!(list("repo"), list("other"));

    // A night costs what changed there too, and the next create goes on from it.
    let bytes: u64 = fs_bytes(&world, "other");
    assert!(bytes < fs_bytes(&world, "repo") * 11 / 10, "{bytes}");
    other(&world, &["create", "app"]).expect(0);
    let list = other(&world, &["list", "--json"]).expect(0).json();
    assert_eq!(list.as_array().unwrap().last().unwrap()["generation"], 4);
}

fn fs_bytes(world: &World, repository: &str) -> u64 {
    fn sum(folder: &std::path::Path) -> u64 {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap());
        entries.map(|e| if e.path().is_dir() { sum(&e.path()) } else { e.metadata().unwrap().len() }).sum()
    }
    sum(&world.at(repository))
}

#[test]
fn copies_that_make_no_sense_are_refused() {
    let (world, _) = two_repositories();
    copy(&world, &["nothing"]).expect(1).names(["nothing"]);
    copy(&world, &["latest:app"]).expect(2);
    let mut same = world.command(["copy"]);
    world::run(same.env("SNAPSHOT_FROM_REPO", world.at("repo"))).expect(1).names(["same repository"]);
    let mut wrong = world.command(["copy"]);
    wrong.env("SNAPSHOT_FROM_REPO", world.at("repo")).env("SNAPSHOT_FROM_PASSWORD", "wrong");
    world::run(at_other(&world, &mut wrong)).expect(12);
    let mut none = world.command(["copy", "--from-repo", "nowhere"]);
    world::run(at_other(&world, &mut none)).expect(10).names(["nowhere"]);
    assert_eq!(other(&world, &["list", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
}

#[test]
fn damage_is_not_carried_on() {
    let (world, _) = two_repositories();
    let largest = world
        .objects()
        .into_iter()
        .filter(|path| path.starts_with("packs/d/"))
        .max_by_key(|path| fs::metadata(world.at("repo").join(path)).unwrap().len())
        .unwrap();
    let path = world.at("repo").join(&largest);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    copy(&world, &[]).expect(1);
    assert_eq!(other(&world, &["list", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
    other(&world, &["check", "--read-data"]).expect(0);
}

#[test]
fn sessions_of_other_machines_are_cleared_away_on_request() {
    let world = World::new();
    world.write("data/a", "a");
    world.ok(["create", "data"]);
    assert_eq!(world.ok(["unlock"]).text().trim(), "nothing to clear away");
    // What can't be read may be a session of a newer version on another machine.
    let folder = world.at("repo/live");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("00112233445566778899aabbccddeeff.0"), "?").unwrap();
    let left = world.json(["unlock"]);
    assert_eq!((left["removed"].as_array().unwrap().len(), left["running"].as_array().unwrap().len()), (0, 1));
    let gone = world.json(["unlock", "--remove-all"]);
    assert_eq!((gone["removed"].as_array().unwrap().len(), gone["running"].as_array().unwrap().len()), (1, 0));
    assert_eq!(world.ok(["unlock"]).text().trim(), "nothing to clear away");
}
