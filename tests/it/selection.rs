//! What goes into a snapshot: the rules for paths, excludes, standard input, and what can't be read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::picture;
use crate::world::{self, PROGRAM, Ran, World};

/// Any user that is not root.
const NOBODY: u32 = 65534;

fn names(directory: &Path) -> Vec<String> {
    picture::within(directory).into_keys().collect()
}

fn listed(world: &World, snapshot: &str) -> Vec<String> {
    world.ok(["ls", snapshot]).text().lines().map(str::to_owned).collect()
}

#[test]
fn paths_restore_as_they_were_given() {
    let world = World::new();
    world.write("data/sub/a", "1");
    world.ok(["create", "data"]);
    assert_eq!(names(&world.restore("latest", "whole")), ["data", "data/sub", "data/sub/a"]);
    assert_eq!(names(&world.restore("latest:data", "part")), ["sub", "sub/a"]);
    assert_eq!(names(&world.restore("latest:data/sub", "deep")), ["a"]);
    assert_eq!(names(&world.restore("latest:data/sub/a", "file")), ["a"]);

    world.ok(["create", "./data/../data/sub/."]);
    assert_eq!(listed(&world, "latest"), ["data", "data/sub", "data/sub/a"]);

    let absolute = world.work("data");
    world.ok(["create".as_ref(), absolute.as_os_str()]);
    let target = world.restore("latest", "absolute");
    let below = absolute.strip_prefix("/").unwrap();
    picture::assert_same(&picture::of(&target.join(below)), &picture::of(&absolute));

    let within = world.work("data/sub");
    world::run(world.command(["create", "."]).current_dir(&within)).expect(0);
    assert_eq!(names(&world.restore("latest", "here")), ["a"]);
    // Out of the working directory: only the absolute path has a name.
    world::run(world.command(["create", "../../data"]).current_dir(&within)).expect(0);
    assert_eq!(names(&world.restore("latest", "above")).last(), Some(&format!("{}/sub/a", below.display())));
}

#[test]
fn directories_of_the_same_name_are_two_sources() {
    let world = World::new();
    world.write("x/app/a", "1");
    world.write("y/app/a", "2");
    for (parent, content) in [("x", "1"), ("y", "2"), ("x", "1")] {
        world::run(world.command(["create", "app"]).current_dir(world.work(parent))).expect(0);
        assert_eq!(world.ok(["dump", "latest", "app/a"]).text(), content);
    }
    let all = world.list();
    let generations: Vec<_> = all.iter().map(|s| s["generation"].as_u64().unwrap()).collect();
    assert_eq!(generations, [1, 1, 2]);
    assert_eq!(all[0]["source"], all[2]["source"]);
    assert_ne!(all[0]["source"], all[1]["source"]);
    assert_eq!(all[2]["previous"], all[0]["id"]);
}

#[test]
fn several_paths_are_one_snapshot() {
    let world = World::new();
    world.write("a/1", "1");
    world.write("b/2", "2");
    world.write("c", "3");
    world.ok(["create", "a", "b", "c", "a/1"]);
    assert_eq!(listed(&world, "latest"), ["a", "a/1", "b", "b/2", "c"]);
    let target = world.restore("latest", "out");
    for path in ["a", "b"] {
        picture::assert_same(&picture::of(&target.join(path)), &picture::of(&world.work(path)));
    }
}

#[test]
fn a_source_that_is_not_there() {
    let world = World::new();
    world.write("data/a", "1");
    world.run(["create", "absent"]).expect(1).names(["absent"]);
    world.run(["create", "absent", "gone"]).expect(1);
    assert!(world.list().is_empty());
    let done = world.json_of(3, ["create", "absent", "data"]);
    assert_eq!(done["skipped"], 1);
    world.run(["create", "absent", "data"]).expect(3).names(["absent"]);
    assert_eq!(listed(&world, "latest"), ["data", "data/a"]);
}

/// Runs `create data` as a user whom permission bits stop.
fn create_as_nobody(world: &World) -> Ran {
    if !world::is_root() {
        return world.run(["create", "data"]);
    }
    let change_owner = |path: &Path| {
        let done = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(path).status();
        assert!(done.is_ok_and(|status| status.success()), "chown {}", path.display());
    };
    change_owner(&world.at(""));
    // The program may lie where others can't go.
    let copy = world.at("snapshot");
    fs::copy(PROGRAM, &copy).unwrap();
    let mut command = world.command_of("setpriv");
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let ran = world::run(command.args(ids).args(["--clear-groups", "--"]).arg(copy).args(["create", "data"]));
    assert_ne!(ran.status, 127, "setpriv can't start the program as another user: {}", ran.stderr);
    chown(world.at(""), Some(0), Some(0)).unwrap();
    ran
}

#[test]
fn what_may_not_be_read_is_named_and_the_rest_is_saved() {
    let world = World::new();
    world.write("data/open", "1");
    world.write("data/closed", "2");
    world.write("data/large", vec![7; 3 << 20]);
    world.write("data/folder/in", "3");
    for path in ["data/closed", "data/large", "data/folder"] {
        fs::set_permissions(world.work(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ran = create_as_nobody(&world);
    for path in ["data/large", "data/folder"] {
        fs::set_permissions(world.work(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let ran = ran.expect(3).names(["data/closed", "data/large", "data/folder"]);
    assert!(!ran.stderr.contains("data/open"), "{}", ran.stderr);
    assert_eq!(world.ok(["dump", "latest", "data/open"]).text(), "1");
    let snapshot = &world.list()[0];
    assert_eq!((&snapshot["skipped"], &snapshot["files"]), (&3.into(), &1.into()));
    world.ok(["check", "--read-data"]);
}

#[test]
fn a_file_that_cannot_be_read_whatever_the_user() {
    let world = World::new();
    world.write("data/a", "1");
    // Reading another process's memory at address 0 fails with EIO, for root as well.
    symlink("/proc/self", world.work("self")).unwrap();
    let done = world.run(["create", "data", "/proc/self/mem", "/proc/self/stat"]);
    assert_ne!(done.status, 0, "{}", done.stderr);
    let done = done.expect(3);
    assert!(done.stderr.contains("/proc/self/mem"), "{}", done.stderr);
    assert_eq!(world.ok(["dump", "latest", "data/a"]).text(), "1");
}

#[test]
fn standard_input_is_a_file() {
    let world = World::new();
    let input: Vec<u8> = (0..3_000_000u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
    world.run_with_input(["create", "--stdin", "--stdin-name", "dump.sql"], &input).expect(0);
    assert!(world.ok(["dump", "latest", "dump.sql"]).stdout == input);
    assert_eq!(fs::read(world.restore("latest", "out").join("dump.sql")).unwrap(), input);
    world.run_with_input(["create", "--stdin"], b"").expect(0);
    assert_eq!(world.ok(["dump", "latest", "stdin"]).stdout, b"");
}

#[test]
fn the_output_of_a_command_is_a_file_unless_it_fails() {
    let world = World::new();
    let script =
        |script: &'static str| ["create", "--stdin-from-command", "--stdin-name", "x", "--", "sh", "-c", script];
    world.ok(script("printf hello"));
    assert_eq!(world.ok(["dump", "latest", "x"]).text(), "hello");
    for bad in ["echo half; exit 3", "echo half; kill -9 $$", "seq 1000000; exit 1"] {
        world.run(script(bad)).expect(1).names(["sh"]);
    }
    world.run(["create", "--stdin-from-command", "--", "/no/such/command"]).expect(1).names(["/no/such/command"]);
    assert_eq!(world.list().len(), 1);
    world.ok(["check", "--read-data"]);
}

#[test]
fn excludes_are_in_gitignore_syntax() {
    let world = World::new();
    for path in ["a.log", "keep.log", "sub/b.log", "sub/tmp/x", "tmp/y", "c.txt", "deep/er/cache/z"] {
        world.write(Path::new("data").join(path), "1");
    }
    world.write("patterns", "# a comment\n\n*.log\n!keep.log\n");
    world.ok(["create", "data", "--exclude-file", "patterns", "--exclude", "/tmp/", "--exclude", "deep/**/z"]);
    let expected = ["c.txt", "deep", "deep/er", "deep/er/cache", "keep.log", "sub", "sub/tmp", "sub/tmp/x"]
        .map(|p| format!("data/{p}"));
    assert_eq!(listed(&world, "latest")[1..], expected);
    world.run(["create", "data", "--exclude-file", "absent"]).expect(1).names(["absent"]);
    world.run(["create", "data", "--exclude", "a{b"]).expect(2);
    assert_eq!(world.list().len(), 1);
}

#[test]
fn marked_caches_are_left_out_on_demand() {
    let world = World::new();
    world.write("data/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n# comment");
    world.write("data/cache/big", "1");
    world.write("data/other/CACHEDIR.TAG", "not a signature");
    world.write("data/other/kept", "1");
    world.ok(["create", "data"]);
    assert_eq!(listed(&world, "latest").len(), 7);
    world.ok(["create", "data", "--exclude-caches"]);
    let left = listed(&world, "latest");
    assert!(left.contains(&"data/cache/CACHEDIR.TAG".into()) && left.contains(&"data/other/kept".into()));
    assert!(!left.contains(&"data/cache/big".into()));
}

#[test]
fn one_file_system() {
    world::in_private_mounts("selection::one_file_system", || {
        let world = World::new();
        world.write("data/a", "1");
        world::mount_tmpfs(&world.work("data/mounted"), 1 << 20);
        world.write("data/mounted/b", "1");
        world.ok(["create", "data"]);
        assert!(listed(&world, "latest").contains(&"data/mounted/b".into()));
        world.ok(["create", "data", "--one-file-system"]);
        assert!(!listed(&world, "latest").contains(&"data/mounted/b".into()));
        // The file system of a path that is given is meant.
        world.ok(["create", "data/mounted", "--one-file-system"]);
        assert!(listed(&world, "latest").contains(&"data/mounted/b".into()));
    });
}

#[test]
fn a_dry_run_writes_nothing() {
    let world = World::new();
    world.write("data/a", vec![1; 100_000]);
    world.ok(["create", "data"]);
    world.write("data/b", vec![2; 100_000]);
    let (repo, cache) = (picture::of(&world.at("repo")), picture::of(&world.at("cache")));
    let done = world.json(["create", "data", "--dry-run"]);
    assert!(done["snapshot_id"].is_null() && done["files"] == 2 && done["bytes_new"].as_u64() >= Some(100_000));
    picture::assert_same(&picture::of(&world.at("repo")), &repo);
    picture::assert_same(&picture::of(&world.at("cache")), &cache);
}

#[test]
fn the_repository_itself_is_left_out() {
    let mut world = World::bare();
    world.use_repository("work/data/repo", "work/data/key");
    world.write("data/a", "1");
    world.ok(["init"]);
    world.ok(["create", "data"]);
    assert_eq!(listed(&world, "latest"), ["data", "data/a", "data/key"]);
}

#[test]
fn a_link_to_a_directory_stands_for_it() {
    let world = World::new();
    world.write("data/a", "1");
    symlink("data", world.work("link")).unwrap();
    world.ok(["create", "link"]);
    assert_eq!(listed(&world, "latest"), ["link", "link/a"]);
}
