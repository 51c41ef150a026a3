//! Tags and pins that come after a snapshot was made, the keys that made it, and what a machine remembers of it.

use std::fs;

use serde_json::Value;

use crate::world::{World, run};

/// A world with this many generations of one source.
fn generations(count: usize) -> World {
    let world = World::new();
    for n in 0..count {
        world.write("data/a", format!("{n}"));
        world.ok(["create", "data"]);
    }
    world
}

/// The snapshots that `list` shows beside what it can't read.
fn listed(world: &World) -> usize {
    world.run(["list", "--json"]).json().as_array().unwrap().len()
}

fn id(world: &World, at: usize) -> String {
    world.list()[at]["id"].as_str().unwrap().to_owned()
}

fn ids(found: &Value) -> Vec<&str> {
    found.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect()
}

fn tags(world: &World, at: usize) -> Vec<String> {
    world.list()[at]["tags"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect()
}

/// The one object in a folder of the repository.
fn only(world: &World, folder: &str) -> String {
    let objects = world.objects();
    let mut found = objects.iter().filter(|path| path.starts_with(folder));
    let one = found.next().unwrap().clone();
    assert_eq!(found.next(), None, "one object in {folder}");
    one
}

#[test]
fn tags_are_changed_and_found() {
    let world = World::new();
    world.write("data/a", "1");
    world.ok(["create", "data", "--tag", "nightly"]);
    world.ok(["create", "data", "--tag", "nightly", "--tag", "old"]);
    let [first, second] = [id(&world, 0), id(&world, 1)];

    let done = world.json(["tag", &first[..8], "latest", "--add", "gold,2.0", "--remove", "old"]);
    assert_eq!(ids(&done["snapshots"]), [&first, &second]);
    assert_eq!((&done["version"], &done["snapshots"][0]["changed"]), (&1.into(), &true.into()));
    assert_eq!(tags(&world, 0), ["nightly", "gold", "2.0"]);
    assert_eq!(tags(&world, 1), ["nightly", "gold", "2.0"]);
    // The ids stay: what tells of a snapshot lies beside it.
    assert_eq!([id(&world, 0), id(&world, 1)], [first.clone(), second.clone()]);

    world.ok(["tag", "latest~1", "--set", "silver,nightly"]);
    assert_eq!(tags(&world, 0), ["nightly", "silver"]);
    assert_eq!(ids(&world.json(["list", "--tag", "gold"])), [&second]);
    assert_eq!(ids(&world.json(["list", "--tag", "silver"])), [&first]);
    // Every command goes by them.
    let from = world.json(["restore", "latest", "--tag", "silver", "--target", "out"]);
    assert_eq!(from["snapshot_id"], first.as_str());
    world.run(["ls", "latest", "--tag", "old"]).expect(1);

    let done = world.json(["tag", "--tag", "nightly", "--host", "nobody", "--add", "x"]);
    assert_eq!(done["snapshots"], serde_json::json!([]));
    let done = world.json(["tag", "--tag", "nightly", "--set", ""]);
    assert_eq!(ids(&done["snapshots"]), [&first, &second]);
    assert!(tags(&world, 0).is_empty() && tags(&world, 1).is_empty());
    let before = world.objects();
    assert!(world.ok(["tag", "latest", "--remove", "gone"]).text().contains("as before"));
    assert_eq!(world.objects(), before, "what holds is not said again");
    world.ok(["check", "--read-data"]);
}

#[test]
fn wrong_ways_to_tag() {
    let world = generations(1);
    for bad in [
        &["tag"][..],
        &["tag", "latest"],
        &["tag", "--add", "x"],
        &["tag", "latest", "--add", "x", "--set", "y"],
        &["tag", "latest", "--pin", "--unpin"],
        &["tag", "latest", "--add", ""],
        &["tag", "latest:data", "--add", "x"],
    ] {
        world.run(bad).expect(2);
    }
    world.run(["tag", "0000", "--add", "x"]).expect(1);
    assert!(!world.objects().iter().any(|path| path.starts_with("marks/")));
}

#[test]
fn names_from_tags_command_no_terminal() {
    let world = generations(1);
    let said = world.ok(["tag", "latest", "--add", "a\u{1b}[2Jb"]).text();
    assert!(said.contains("a\\u{1b}[2Jb"), "{said}");
    assert!(world.ok(["list"]).text().contains("a\\u{1b}[2Jb"));
    assert_eq!(tags(&world, 0), ["a\u{1b}[2Jb"]);
}

#[test]
fn pinned_snapshots_stay() {
    let world = generations(2);
    let first = id(&world, 0);
    world.ok(["tag", &first, "--pin"]);
    world.write("data/a", "new");
    world.ok(["create", "data", "--pin"]);
    world.ok(["create", "data"]);
    let pinned: Vec<_> = world.list().iter().map(|s| s["pinned"].as_bool().unwrap()).collect();
    assert_eq!(pinned, [true, false, true, false]);
    let listed = world.ok(["list"]).text();
    assert_eq!(listed.lines().filter(|line| line.ends_with("pinned")).count(), 2, "{listed}");

    let refused = world.run(["forget", &first]).expect(1).names([&first[..8], "pinned", "--unpin"]);
    assert!(!refused.stderr.contains("undo"), "{}", refused.stderr);
    world.run(["forget", "latest", &first]).expect(1);
    assert_eq!(world.list().len(), 4, "all or none");

    let said = world.ok(["prune", "--keep-last", "1", "--dry-run"]).text();
    assert_eq!(said.lines().filter(|line| line.ends_with("pinned")).count(), 2, "{said}");
    let done = world.json(["prune", "--keep-last", "1"]);
    assert_eq!((&done["forgotten"], &done["snapshots"][0]["reasons"]), (&1.into(), &serde_json::json!(["pinned"])));
    assert_eq!(done["snapshots"][0]["pinned"], true);
    assert_eq!(world.list().len(), 3);

    world.ok(["tag", &first, "--unpin"]);
    world.ok(["tag", "latest~1", "--unpin"]);
    assert!(world.list().iter().all(|s| s["pinned"] == false));
    world.ok(["forget", &first]);
    world.ok(["prune", "--keep-last", "1"]);
    assert_eq!(world.list().len(), 1);
    world.ok(["check", "--read-data"]);
}

#[test]
fn what_is_forgotten_keeps_its_tags_and_what_is_gone_does_not() {
    let world = generations(2);
    let first = id(&world, 0);
    world.ok(["tag", &first, "--add", "gold"]);
    world.ok(["forget", &first]);
    world.ok(["undo-forget", &first]);
    assert_eq!(tags(&world, 0), ["gold"]);
    world.ok(["forget", &first]);
    world.ok(["prune"]);
    only(&world, "marks/");
    world.ok(["check"]);
    // The tomb is gone, and the mark with it.
    fs::remove_file(world.at("repo").join(only(&world, "tombs/"))).unwrap();
    world.run(["check"]).expect(0).names(["marks/", "gone"]);
    world.ok(["prune"]);
    assert!(!world.objects().iter().any(|path| path.starts_with("marks/")));
}

#[test]
fn a_mark_that_cannot_be_read() {
    let world = generations(3);
    world.ok(["tag", "latest~1", "--pin", "--add", "gold"]);
    let mark = only(&world, "marks/");
    let path = world.at("repo").join(&mark);
    let sound = fs::read(&path).unwrap();
    let mut bad = sound.clone();
    bad[60] ^= 1;
    for (others, damaged) in [&bad[..], &sound[..40], b""].into_iter().enumerate() {
        fs::write(&path, damaged).unwrap();
        // Said, and nothing more.
        let ran = world.run(["list", "--json"]).expect(1).names([mark.as_str()]);
        assert_eq!(ran.json().as_array().unwrap().len(), 3 + others);
        world.restore("latest", "out");
        fs::remove_dir_all(world.work("out")).unwrap();
        world.ok(["ls", "latest~1"]);
        world.ok(["create", "data", "--source", "other"]);
        world.run(["tag", "latest", "--add", "x", "--source", "other"]).expect(1).names([mark.as_str()]);
        world.run(["check"]).expect(4).names([mark.as_str(), "prune"]);
        // It may pin anything: nothing is forgotten.
        let count = listed(&world);
        let ran = world.run(["prune", "--keep-last", "1", "--json"]).expect(1).names([mark.as_str(), "forgets none"]);
        assert_eq!(ran.json()["forgotten"], 0);
        world.run(["forget", "latest"]).expect(1).names([mark.as_str()]);
        world.ok(["prune"]);
        assert_eq!(listed(&world), count);
    }
    fs::write(&path, &sound).unwrap();
    world.ok(["prune", "--keep-last", "1"]);
    let left: Vec<_> = world.list().into_iter().filter(|s| s["pinned"] == true).collect();
    assert_eq!((left.len(), &left[0]["tags"][0]), (1, &"gold".into()));
    world.ok(["check", "--read-data"]);
}

#[test]
fn several_machines_mark_at_once() {
    let world = generations(1);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let world = &world;
            scope.spawn(move || world.ok(["tag", "latest", "--add", &format!("tag-{n}")]));
        }
    });
    let mut found = tags(&world, 0);
    found.sort();
    assert_eq!(found, (0..8).map(|n| format!("tag-{n}")).collect::<Vec<_>>());
}

#[test]
fn a_password_is_changed() {
    let mut world = World::bare();
    world.write("old", "old password\n");
    world.write("new", "new password\n");
    world.write("empty", "\n");
    world.set("SNAPSHOT_REPO", world.at("repo"));
    let cheap = ["--kdf-memory", "19", "--kdf-time", "1"];
    let init: Vec<_> = ["--password-file", "old", "init"].iter().chain(&cheap).collect();
    world.ok(init);
    world.write("data/a", "1");
    world.ok(["--password-file", "old", "create", "data"]);
    let keys = world.json(["--password-file", "old", "key", "list"])["keys"].clone();
    let (old, made) = (keys[0]["id"].as_str().unwrap(), keys[0]["last_wrote"].as_str().unwrap());
    assert_eq!((&keys[0]["cost"]["memory_kib"], &keys[0]["current"]), (&(19 * 1024).into(), &true.into()));
    assert!(made.starts_with("20"), "{made}");

    let before = world.objects();
    world.run(["--password-file", "new", "key", "passwd", "--new-password-file", "old"]).expect(12);
    world.run(["--password-file", "old", "key", "passwd", "--new-password-file", "empty"]).expect(1);
    world.run(["--password-file", "old", "key", "passwd", "--new-password-file", "absent"]).expect(1);
    world.run(["--password-file", "old", "key", "passwd"]).expect(1).names(["terminal"]);
    assert_eq!(world.objects(), before);

    world.ok(["--password-file", "old", "key", "passwd", "--new-password-file", "new"]);
    world.run(["--password-file", "old", "list"]).expect(12);
    let keys = world.json(["--password-file", "new", "key", "list"])["keys"].clone();
    assert_eq!(keys.as_array().unwrap().len(), 1);
    assert_ne!(keys[0]["id"], old);
    assert_eq!(keys[0]["cost"]["memory_kib"], 19 * 1024, "the cost stays");
    assert!(keys[0]["last_wrote"].is_null(), "nothing was written with the new one yet");
    world.ok(["--password-file", "new", "tag", "latest", "--add", "x"]);
    assert!(world.json(["--password-file", "new", "key", "list"])["keys"][0]["last_wrote"].is_string());
}

#[test]
fn only_a_password_is_changed() {
    let world = World::new();
    world.write("new", "new password\n");
    let before = world.objects();
    world.run(["key", "passwd", "--new-password-file", "new"]).expect(1).names(["key file", "key add"]);
    assert_eq!(world.objects(), before);
    let code = world.json(["key", "recovery-code"])["recovery_code"].as_str().unwrap().to_owned();
    world.write("code", code);
    let ran = world.run(["--password-file", "code", "key", "passwd", "--new-password-file", "new"]);
    ran.expect(1).names(["recovery code"]);
    let listed = world.ok(["--password-file", "code", "key", "list"]).text();
    let current: Vec<_> = listed.lines().filter(|line| line.starts_with('*')).collect();
    assert!(current.len() == 1 && current[0].contains("recovery-code"), "{listed}");
}

/// Puts all but the key aside, or back.
fn copy_of_repository(world: &World, from: &str, to: &str) {
    let _ = fs::remove_dir_all(world.at(to));
    let done = std::process::Command::new("cp").arg("-a").arg(world.at(from)).arg(world.at(to)).status();
    assert!(done.is_ok_and(|status| status.success()));
}

#[test]
fn a_repository_put_back_is_noticed() {
    let world = generations(2);
    copy_of_repository(&world, "repo", "older");
    for _ in 0..2 {
        world.ok(["create", "data"]);
    }
    copy_of_repository(&world, "older", "repo");
    let warned = ["generation 4", "ends at 2"];
    for _ in 0..2 {
        // Until something is written, each command says so.
        assert_eq!(world.run(["-q", "list", "--json"]).expect(0).names(warned).json().as_array().unwrap().len(), 2);
        world.run(["-q", "check"]).expect(4).names(warned);
        world.run(["restore", "latest", "--target", "out"]).expect(0).names(warned);
        fs::remove_dir_all(world.work("out")).unwrap();
    }
    let quiet = world.ok(["list", "--no-cache"]);
    assert!(!quiet.stderr.contains("generation"), "{}", quiet.stderr);
    world.run(["-q", "create", "data"]).expect(0).names(warned);
    let ran = world.ok(["list"]);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
}

#[test]
fn a_newest_snapshot_that_is_gone_is_noticed() {
    let world = generations(3);
    let path = world.at("repo/snapshots").join(id(&world, 2));
    // As long as it can't be read only, that is what is said, and it is not thought to be gone.
    fs::write(&path, "").unwrap();
    let ran = world.run(["list"]).expect(1);
    assert!(!ran.stderr.contains("this machine"), "{}", ran.stderr);
    fs::remove_file(&path).unwrap();
    world.run(["list"]).expect(0).names(["generation 3", "ends at 2"]);
    // One that is older is nobody's concern.
    world.ok(["create", "data"]);
    fs::remove_file(world.at("repo/snapshots").join(id(&world, 0))).unwrap();
    let ran = world.ok(["list"]);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    // A damaged memory is none.
    for entry in fs::read_dir(world.at("cache/snapshot/seen")).unwrap() {
        fs::write(entry.unwrap().path(), "[").unwrap();
    }
    world.ok(["list"]);
    assert_eq!(fs::read_dir(world.at("cache/snapshot/seen")).unwrap().count(), 1);
}

#[test]
fn what_was_forgotten_is_not_missed() {
    let world = generations(4);
    let quiet = |args: &[&str]| {
        let ran = world.run(args).expect(0);
        assert!(!ran.stderr.contains("this machine"), "{}", ran.stderr);
    };
    // Forgotten and pruned elsewhere: of the newest there is a tomb.
    let elsewhere = |args: &[&str]| run(world.command(args).env("XDG_CACHE_HOME", world.at("other"))).expect(0);
    elsewhere(&["forget", "latest"]);
    quiet(&["list"]);
    elsewhere(&["prune", "--keep-last", "1"]);
    quiet(&["list"]);
    quiet(&["check"]);
    // Forgotten here, and gone for good.
    quiet(&["create", "data"]);
    quiet(&["forget", "latest"]);
    for object in world.objects().iter().filter(|path| path.starts_with("tombs/")) {
        fs::remove_file(world.at("repo").join(object)).unwrap();
    }
    quiet(&["list"]);
    quiet(&["check"]);
    quiet(&["restore", "latest", "--target", "out"]);
    // Forgotten elsewhere, and gone for good before this machine looked: that can't be told apart from worse.
    quiet(&["create", "data"]);
    elsewhere(&["forget", "latest"]);
    for object in world.objects().iter().filter(|path| path.starts_with("tombs/")) {
        fs::remove_file(world.at("repo").join(object)).unwrap();
    }
    let ran = world.run(["list"]).expect(0).names(["this machine has seen", "forgot", "seen/"]);
    let file = ran.stderr.split_whitespace().find(|word| word.ends_with(".json")).unwrap();
    fs::remove_file(file).unwrap();
    quiet(&["list"]);
}

#[test]
fn a_prune_leaves_gaps_that_alarm_nobody() {
    let world = generations(5);
    world.ok(["prune", "--keep-last", "2"]);
    let done = world.run(["check", "--json", "--no-progress"]).expect(0).json();
    assert_eq!(done["damaged"], false);
    world.ok(["prune", "--instant"]);
    for object in world.objects().iter().filter(|path| path.starts_with("tombs/")) {
        fs::remove_file(world.at("repo").join(object)).unwrap();
    }
    let ran = world.run(["check"]).expect(0).names(["2 of its 5 generations", "usual"]);
    assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("note:")).count(), 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
}
