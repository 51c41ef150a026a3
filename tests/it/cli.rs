//! The interface that scripts rely on: commands, JSON fields, exit statuses, the default repository.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::picture;
use crate::world::{World, run};

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no text in {field}: {value}"))
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number in {field}: {value}"))
}

/// A world with a small directory `data`, of which the first snapshot is taken.
fn with_snapshot() -> (World, Value) {
    let world = World::new();
    world.write("data/a.txt", "alpha");
    world.write("data/sub/b.txt", "beta");
    let created = world.json(["create", "data", "--tag", "one", "--host", "h"]);
    (world, created)
}

#[test]
fn create_says_what_it_did() {
    let (world, created) = with_snapshot();
    assert_eq!(text(&created, "snapshot_id").len(), 64);
    for (field, expected) in [("generation", 1), ("files", 2), ("databases", 0), ("bytes_read", 9), ("bytes", 9)] {
        assert_eq!(number(&created, field), expected, "{field}");
    }
    assert!(number(&created, "bytes_new") >= 9 && number(&created, "bytes_stored") > 0);
    assert!(created["seconds"].is_number());
    let second = world.json(["create", "data", "--host", "h"]);
    assert_eq!((number(&second, "generation"), number(&second, "bytes_new")), (2, 0));
}

#[test]
fn list_shows_and_filters() {
    let (world, created) = with_snapshot();
    world.ok([
        "create",
        "data",
        "--host",
        "other",
        "--source",
        "named",
        "--time",
        "2001-02-03T04:05:06Z",
        "--tag",
        "x",
    ]);
    let all = world.list();
    assert_eq!(all.len(), 2);
    // Oldest first, by the snapshots' own times.
    assert_eq!((text(&all[0], "source"), text(&all[0], "time")), ("named", "2001-02-03T04:05:06Z"));
    let shown = &all[1];
    assert_eq!(shown["id"], created["snapshot_id"]);
    assert_eq!((number(shown, "generation"), text(shown, "host")), (1, "h"));
    assert_eq!(text(shown, "source"), fs::canonicalize(world.work("data")).unwrap().to_str().unwrap());
    assert_eq!((&shown["paths"], &shown["tags"]), (&serde_json::json!(["data"]), &serde_json::json!(["one"])));
    assert!(text(shown, "time").ends_with('Z'));
    for (filter, count) in [
        (["--host", "h"], 1),
        (["--source", "named"], 1),
        (["--tag", "one"], 1),
        (["--tag", "none"], 0),
        (["--path", "data"], 2),
        (["--latest", "1"], 2),
    ] {
        assert_eq!(world.json(["list"].iter().chain(&filter)).as_array().unwrap().len(), count, "{filter:?}");
    }
    let people = world.ok(["list"]).text();
    assert!(people.contains(&text(shown, "id")[..8]) && people.contains("named"), "{people}");
}

#[test]
fn snapshots_are_named_by_prefix_and_by_age() {
    let (world, created) = with_snapshot();
    world.write("data/a.txt", "newer");
    world.ok(["create", "data", "--host", "h"]);
    let id = text(&created, "snapshot_id");
    for (name, content) in [("latest", "newer"), ("latest~1", "alpha"), (&id[..10], "alpha"), (id, "alpha")] {
        assert_eq!(world.ok(["dump", name, "data/a.txt"]).text(), content, "{name}");
        assert_eq!(world.ok(["dump", &format!("{name}:data"), "a.txt"]).text(), content, "{name}:data");
    }
    for unknown in ["latest~2", "ffffffffffff", "nonsense", "latest:nowhere"] {
        let ran = world.run(["restore", unknown, "--target", "out"]).expect(1);
        assert!(!world.work("out").exists(), "{unknown}");
        ran.names(["no "]);
    }
}

#[test]
fn ls_and_dump_look_inside() {
    let (world, created) = with_snapshot();
    assert_eq!(world.ok(["ls", "latest"]).text(), "data\ndata/a.txt\ndata/sub\ndata/sub/b.txt\n");
    assert_eq!(world.ok(["ls", "latest", "data/sub"]).text().lines().last(), Some("data/sub/b.txt"));
    let document = world.json(["ls", "latest", "data/a.txt"]);
    assert_eq!(document["snapshot_id"], created["snapshot_id"]);
    let node = &document["nodes"][0];
    assert_eq!((text(node, "path"), text(node, "type"), number(node, "size")), ("data/a.txt", "file", 5));
    world.run(["ls", "latest", "nowhere"]).expect(1);
    assert_eq!(world.ok(["dump", "latest", "data/sub/b.txt"]).stdout, b"beta");
    assert!(world.run(["dump", "latest", "data/none"]).expect(1).stdout.is_empty());
}

#[test]
fn restore_says_what_it_did_and_refuses_what_would_do_harm() {
    let (world, created) = with_snapshot();
    let done = world.json(["restore", "latest", "--target", "out"]);
    assert_eq!(done["snapshot_id"], created["snapshot_id"]);
    for (field, expected) in [("files", 2), ("directories", 2), ("databases", 0), ("bytes", 9)] {
        assert_eq!(number(&done, field), expected, "{field}");
    }
    world.write("out/data/a.txt", "mine");
    let before = picture::of(&world.work("out"));
    world.run(["restore", "latest", "--target", "out"]).expect(1).names(["not empty", "--overwrite"]);
    picture::assert_same(&picture::of(&world.work("out")), &before);
    world.ok(["restore", "latest", "--target", "out", "--overwrite", "never"]);
    assert_eq!(fs::read(world.work("out/data/a.txt")).unwrap(), b"mine");
    world.ok(["restore", "latest", "--target", "out", "--overwrite", "if-changed"]);
    picture::assert_same(&picture::of(&world.work("out/data")), &picture::of(&world.work("data")));
    world.write("out/data/a.txt", "other");
    world.ok(["restore", "latest", "--target", "out", "--overwrite", "always", "--include", "a.txt"]);
    assert_eq!(fs::read(world.work("out/data/a.txt")).unwrap(), b"alpha");
}

#[test]
fn a_dry_restore_and_a_selective_one() {
    let (world, _) = with_snapshot();
    let planned = world.json(["restore", "latest", "--target", "out", "--dry-run"]);
    assert_eq!(planned["planned"].as_array().unwrap().len(), 4);
    assert!(!world.work("out").exists());
    world.ok(["restore", "latest", "--target", "some", "--include", "*.txt", "--exclude", "/data/sub"]);
    assert_eq!(picture::contents(&world.work("some")).into_keys().collect::<Vec<_>>(), ["data", "data/a.txt"]);
    world.run(["restore", "latest", "--target", "none", "--include", "*.absent"]).expect(1);
}

#[test]
fn forgetting_is_undone_until_pruned() {
    let (world, created) = with_snapshot();
    let id = text(&created, "snapshot_id");
    assert_eq!(world.json(["forget", &id[..8]])["forgotten"][0], id);
    assert!(world.list().is_empty());
    world.run(["restore", &id[..8], "--target", "out"]).expect(1);
    world.run(["forget", &id[..8]]).expect(1);
    assert_eq!(world.json(["undo-forget", &id[..8]])["restored"][0], id);
    assert_eq!(world.list()[0]["id"], id);
    assert_eq!(fs::read(world.restore("latest", "out").join("data/a.txt")).unwrap(), b"alpha");
    world.ok(["forget", id]);
    for _ in 0..2 {
        world.ok(["prune", "--grace", "0s"]);
    }
    world.run(["undo-forget", id]).expect(1);
    assert!(!world.objects().iter().any(|o| o.starts_with("packs/")), "{:?}", world.objects());
}

#[test]
fn prune_keeps_by_rules_and_says_why() {
    let (world, _) = with_snapshot();
    for day in 1..=4 {
        world.write("data/a.txt", format!("day {day}"));
        world.ok(["create", "data", "--source", "s", "--host", "h", "--time", &format!("2020-01-0{day}T12:00:00Z")]);
    }
    let objects = world.objects();
    let plan = world.json(["prune", "--keep-daily", "2", "--source", "s", "--dry-run"]);
    assert_eq!(world.objects(), objects);
    let done = world.json(["prune", "--keep-daily", "2", "--source", "s"]);
    assert_eq!((number(&plan, "forgotten"), number(&done, "forgotten")), (2, 2));
    assert_eq!(plan["snapshots"], done["snapshots"]);
    for verdict in done["snapshots"].as_array().unwrap() {
        let is_kept = verdict["keep"].as_bool().unwrap();
        assert_eq!(is_kept, !verdict["reasons"].as_array().unwrap().is_empty());
    }
    let left: Vec<_> = world.list().iter().map(|s| text(s, "time").to_owned()).collect();
    assert_eq!(left.len(), 3);
    assert_eq!(left[..2], ["2020-01-03T12:00:00Z", "2020-01-04T12:00:00Z"]);
    // A policy that would leave nothing of a source.
    world.run(["prune", "--keep-tag", "absent"]).expect(1);
    assert_eq!(world.list().len(), 3);
    let people = world.ok(["prune", "--keep-last", "1", "--dry-run"]).text();
    assert!(people.contains("keep") && people.contains("would forget"), "{people}");
}

#[test]
fn check_and_repair_index() {
    let (world, _) = with_snapshot();
    let found = world.json(["check", "--read-data", "--databases"]);
    assert_eq!((&found["damaged"], number(&found, "snapshots")), (&Value::Bool(false), 1));
    world.json(["check", "--read-data-subset", "1/2"]);
    for index in world.objects().iter().filter(|o| o.starts_with("index/")) {
        fs::remove_file(world.at("repo").join(index)).unwrap();
    }
    let found = world.json_of(4, ["check"]);
    assert_eq!(found["damaged"], true);
    world.run(["check"]).expect(4).names(["repair index"]);
    assert!(number(&world.json(["repair", "index"]), "packs") > 0);
    world.ok(["check", "--read-data"]);
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/data")), &picture::of(&world.work("data")));
}

#[test]
fn keys_are_added_listed_and_removed() {
    let (mut world, _) = with_snapshot();
    let first = world.json(["key", "list"])["keys"][0].clone();
    assert_eq!((text(&first, "kind"), &first["current"]), ("key-file", &Value::Bool(true)));
    let cost = ["--kdf-memory", "19", "--kdf-time", "1"];
    let password = world.write("password", "secret\n");
    world.ok(["key", "add", "--new-password-file", password.to_str().unwrap()].iter().chain(&cost));
    world.ok(["key", "add", "--new-key-file", "second.key", "--label", "second"]);
    world.run(["key", "add", "--new-key-file", "second.key"]).expect(1);
    let code = text(&world.json(["key", "recovery-code"]), "recovery_code").to_owned();
    assert_eq!(world.json(["key", "list"])["keys"].as_array().unwrap().len(), 4);
    let mode = fs::metadata(world.work("second.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    world.unset("SNAPSHOT_KEY_FILE");
    assert!(world.json(["list", "--key-file", "second.key"]).is_array());
    assert!(world.json(["list", "--password-file", "password"]).is_array());
    assert!(world.json(["list", "--password-command", "echo secret; echo no"]).is_array());
    let with_password = |password: &str, args: &[&str]| run(world.command(args).env("SNAPSHOT_PASSWORD", password));
    with_password(&code, &["list"]).expect(0);
    with_password("wrong", &["list"]).expect(12).names(["password"]);
    world.run(["list"]).expect(1).names(["--password-file"]);

    let id = text(&first, "id");
    world.ok(["key", "remove", &id[..10], "--password-file", "password"]);
    run(world.command(["list"]).env("SNAPSHOT_KEY_FILE", world.at("key"))).expect(12);
    assert_eq!(with_password("secret", &["list", "--json"]).expect(0).json().as_array().unwrap().len(), 1);
}

#[test]
fn init_makes_what_is_not_there() {
    let mut world = World::bare();
    // No password, no key, no terminal.
    world.run(["init", "--repo", "repo"]).expect(1).names(["--key-file"]);
    assert!(!world.work("repo").exists());
    world.set("SNAPSHOT_PASSWORD", "");
    world.run(["init", "--repo", "repo"]).expect(1);
    world.unset("SNAPSHOT_PASSWORD");
    let made = world.json(["init", "--repo", "repo", "--key-file", "key"]);
    assert!(!text(&made, "repository_id").is_empty());
    world.run(["init", "--repo", "repo", "--key-file", "other"]).expect(1).names(["already"]);
    assert!(!world.work("other").exists());
    world.run(["init", "--repo", "second", "--key-file", "key"]).expect(1).names(["key"]);
    assert!(!world.work("second/config").exists());
    let keys = ["--repo", "repo", "--key-file", "key"];
    world.write("a", "1");
    world.ok(["create", "a"].iter().chain(&keys));
    assert_eq!(world.json(["list"].iter().chain(&keys)).as_array().unwrap().len(), 1);
}

#[test]
fn the_default_repository_is_made_by_create_alone() {
    let world = World::bare();
    world.write("data/a", "1");
    for args in [&["list"][..], &["prune"], &["check"], &["restore", "latest", "--target", "out"], &["key", "list"]] {
        world.run(args).expect(10).names(["no repository"]);
    }
    world.run(["create", "data", "--dry-run"]).expect(10);
    assert!(!world.at("data").exists());
    let first = world.ok(["create", "data"]);
    let key = world.at("config/snapshot/default.key");
    let said = first.names([key.to_str().unwrap(), "no backup of that disk", "recovery-code"]);
    assert!(said.stderr.contains(world.at("data/snapshot/repository").to_str().unwrap()));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!key.starts_with(world.at("data")));
    world.ok(["create", "data"]);
    assert_eq!(world.list().len(), 2);
    world.restore("latest", "out");
    assert_eq!(fs::read(world.work("out/data/a")).unwrap(), b"1");
    // A repository that is named is never made on the way.
    world.run(["create", "data", "--repo", "elsewhere"]).expect(10);
    assert!(!world.work("elsewhere").exists());
    fs::remove_file(&key).unwrap();
    world.run(["list"]).expect(1).names(["key file"]);
}

#[test]
fn wrong_usage_is_status_2() {
    let world = World::new();
    for args in [
        &[][..],
        &["create"],
        &["nonsense"],
        &["create", "a", "--nonsense"],
        &["restore", "latest"],
        &["prune", "--keep-last", "x"],
        &["check", "--read-data-subset", "7/3"],
        &["create", "--time", "yesterday", "a"],
        &["list", "--repo", ""],
    ] {
        world.run(args).expect(2);
    }
    let ran = world.run(["create", "--json"]).expect(2);
    let error: Value = serde_json::from_str(ran.stderr.lines().next().unwrap()).unwrap();
    assert_eq!((text(&error, "type"), text(&error, "code")), ("error", "usage"));
}

#[test]
fn errors_and_progress_are_json_lines() {
    let (world, _) = with_snapshot();
    let ran = world.run(["create", "data", "missing", "--json"]).expect(3);
    let mut kinds = Vec::new();
    for line in ran.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        kinds.push(text(&line, "type").to_owned());
    }
    assert!(kinds.iter().any(|k| k == "problem"), "{kinds:?}");
    ran.json();
    let ran = world.run(["restore", "ffff", "--target", "out", "--json"]).expect(1);
    let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((text(&error, "type"), text(&error, "code")), ("error", "unknown"));
    assert!(!text(&error, "message").is_empty() && ran.stdout.is_empty());
}

#[test]
fn help_and_completions() {
    let world = World::bare();
    for shell in ["bash", "zsh", "fish"] {
        let script = world.ok(["completions", shell]).text();
        assert!(script.contains("undo-forget"), "{shell}");
    }
    for command in [
        "init",
        "create",
        "list",
        "ls",
        "find",
        "diff",
        "dump",
        "restore",
        "forget",
        "undo-forget",
        "prune",
        "check",
        "stats",
        "cat",
    ] {
        let short = world.ok([command, "-h"]).text();
        let long = world.ok([command, "--help"]).text();
        assert!(long.contains("Examples:") && !short.contains("Examples:"), "{command}");
    }
    assert!(world.ok(["--version"]).text().starts_with("snapshot "));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let world = World::new();
    for i in 0..3000 {
        world.write(format!("data/a file with a rather long name, to fill the pipe, number {i}"), "");
    }
    world.ok(["create", "data"]);
    let mut shell = world.command_of("bash");
    shell.args(["-c", "set -o pipefail; \"$0\" ls latest | head -n 1", crate::world::PROGRAM]);
    let ran = run(&mut shell).expect(0);
    assert_eq!((ran.text().as_str(), ran.stderr.as_str()), ("data\n", ""));
}

#[test]
fn nothing_but_the_result_in_a_pipe() {
    let (world, _) = with_snapshot();
    for args in
        [&["create", "data"][..], &["restore", "latest", "--target", "out"], &["check", "--read-data"], &["prune"]]
    {
        let ran = world.ok(args);
        assert!(ran.stderr.is_empty(), "{args:?}: {}", ran.stderr);
        assert!(!ran.text().contains(['\r', '\x1b']), "{args:?}");
    }
    for args in [&["create", "data", "-q"][..], &["restore", "latest", "--target", "out2", "-q"], &["check", "-q"]] {
        assert_eq!(world.ok(args).text(), "", "{args:?}");
    }
}
