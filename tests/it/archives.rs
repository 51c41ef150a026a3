//! Directories as tar archives, read by GNU tar; dumps into files.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;

use crate::picture;
use crate::world::{self, Dice, World, run};

/// Extracts an archive into a new directory, as root with owners.
fn extract(world: &World, archive: &Path, target: &str) -> world::Ran {
    let target = world.work(target);
    fs::create_dir(&target).unwrap();
    let mut tar = world.command_of("tar");
    tar.arg("-xpf").arg(archive).arg("-C").arg(&target).args(["--xattrs", "--xattrs-include=*"]);
    run(&mut tar)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .unwrap_or_else(|e| panic!("the file system of the temporary directory has no extended attributes: {e}"));
}

/// A directory `app` with everything that an archive can hold.
fn full_world() -> World {
    let world = World::new();
    world.write("app/plain", "content");
    let large = world.write("app/large", Dice::new(1).bytes(9 << 20));
    world.write("app/empty", "");
    fs::create_dir_all(world.work("app/empty folder/below")).unwrap();
    world.write(format!("app/{}/{}", "deep/".repeat(30), "n".repeat(200)), "long name");
    for name in [&b"caf\xe9"[..], &[0xfe; 180], b"\x1b[31mred", b"line\nbreak", b"a\\b", b"-rf"] {
        world.write(Path::new("app").join(OsStr::from_bytes(name)), name);
    }
    for (name, target) in [("link", "plain"), ("dangling", "no/such"), ("long link", &"x/".repeat(90))] {
        symlink(target, world.work("app").join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(&[0xff; 120]), world.work("app/odd link")).unwrap();
    fs::create_dir(world.work("app/sub")).unwrap();
    fs::hard_link(world.work("app/large"), world.work("app/sub/same")).unwrap();
    fs::hard_link(world.work("app/large"), world.work("app/a first name")).unwrap();
    run(Command::new("mkfifo").arg(world.work("app/pipe"))).expect(0);
    for (name, mode) in [("setuid", 0o4755), ("read only", 0o444)] {
        fs::set_permissions(world.write(format!("app/{name}"), name), fs::Permissions::from_mode(mode)).unwrap();
    }
    set_xattr(&large, "user.comment", b"\x00\xff=%");
    set_xattr(&world.work("app/plain"), "user.with=and%", b"1");
    set_xattr(&world.work("app/sub"), "user.folder", b"2");
    let sparse = OpenOptions::new().write(true).create_new(true).open(world.work("app/sparse")).unwrap();
    sparse.set_len((30 << 20) + 7).unwrap();
    for at in [0, (10 << 20) + 5, 20 << 20] {
        sparse.write_all_at(&Dice::new(at).bytes(100_000), at).unwrap();
    }
    File::create(world.work("app/only a hole")).unwrap().set_len(10 << 20).unwrap();
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(200000)), ('a')").unwrap();
    drop(db);
    world
}

#[test]
fn a_whole_snapshot_by_way_of_tar() {
    let world = full_world();
    world.ok(["create", "app"]);
    let all = world.ok(["dump", "latest"]);
    assert_eq!(all.stderr, "");
    fs::write(world.at("all.tar"), &all.stdout).unwrap();
    extract(&world, &world.at("all.tar"), "out").expect(0);
    picture::assert_same(&picture::of(&world.work("out/app")), &picture::of(&world.work("app")));
    let meta = |path: &str| fs::metadata(world.work("out/app").join(path)).unwrap();
    assert!(meta("large").ino() == meta("sub/same").ino() && meta("large").nlink() == 3);
    for name in ["sparse", "only a hole"] {
        let before = fs::metadata(world.work("app").join(name)).unwrap().blocks();
        assert!(meta(name).blocks() <= before + 512, "{name}");
    }
    assert!(all.stdout.len() < 13 << 20, "holes take no room: {}", all.stdout.len());
}

#[test]
fn devices_and_sockets() {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.work("app/socket")).unwrap();
    if world::is_root() {
        run(Command::new("mknod").arg(world.work("app/null")).args(["c", "1", "3"])).expect(0);
    }
    world.write("app/file", "1");
    world.ok(["create", "app"]);
    let ran = world.ok(["dump", "latest"]).names(["app/socket", "left out"]);
    fs::write(world.at("all.tar"), &ran.stdout).unwrap();
    let listed = run(Command::new("tar").arg("-tvf").arg(world.at("all.tar"))).expect(0).text();
    assert_eq!(listed.lines().count(), 2 + usize::from(world::is_root()), "{listed}");
    if world::is_root() {
        assert!(listed.lines().any(|line| line.starts_with('c') && line.contains("1,3")), "{listed}");
        assert!(world.ok(["ls", "-l", "latest"]).text().contains(" 1, 3 "));
    }
}

#[test]
fn names_begin_with_the_path_given() {
    let world = World::new();
    world.write("app/storage/a", "1");
    world.write("app/b", "2");
    world.ok(["create", "app"]);
    for (args, expected) in [
        (&["latest"][..], "app/\napp/b\napp/storage/\napp/storage/a\n"),
        (&["latest", "app/storage"], "app/storage/\napp/storage/a\n"),
        (&["latest", "/app/storage/"], "app/storage/\napp/storage/a\n"),
        (&["latest:app"], "b\nstorage/\nstorage/a\n"),
        (&["latest:app", "storage"], "storage/\nstorage/a\n"),
        (&["latest", "app/b", "--archive", "tar"], "app/b\n"),
        (&["latest:app/b", "--archive", "tar"], "b\n"),
    ] {
        let ran = world.ok(["dump", "-o", "out.tar"].iter().chain(args));
        assert!(ran.stdout.is_empty());
        let listed = run(Command::new("tar").arg("-tf").arg(world.work("out.tar"))).expect(0);
        assert_eq!(listed.text(), expected, "{args:?}");
    }
    let done = world.json(["dump", "latest", "app/b", "-o", "b"]);
    assert_eq!((&done["bytes"], &done["archive"], &done["output"]), (&1.into(), &serde_json::Value::Null, &"b".into()));
    assert_eq!(fs::read(world.work("b")).unwrap(), b"2");
    assert_eq!(world.ok(["dump", "latest:app/b"]).text(), "2");
    world.run(["dump", "latest", "app/none", "-o", "none"]).expect(1);
    world.run(["dump", "latest", "app", "-o", "no/such/folder"]).expect(1).names(["no/such/folder"]);
    assert!(!world.work("none").exists());
}

#[test]
fn a_damaged_archive_is_cut_off_and_no_file_appears() {
    let world = World::new();
    for i in 0..20 {
        world.write(format!("app/{i:02}"), Dice::new(i).bytes(1 << 20));
    }
    world.ok(["create", "app"]);
    let largest = world.objects().into_iter().filter(|path| path.starts_with("packs/d/"));
    let path =
        world.at("repo").join(largest.max_by_key(|p| fs::metadata(world.at("repo").join(p)).unwrap().len()).unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();

    let ran = world.run(["dump", "latest"]).expect(1).names(["damaged"]);
    assert!(!ran.stdout.is_empty() && !ran.stdout.ends_with(&[0; 1024]));
    fs::write(world.at("cut.tar"), &ran.stdout).unwrap();
    let read = extract(&world, &world.at("cut.tar"), "out");
    assert!(read.status != 0 && read.stderr.contains("Unexpected EOF"), "{} {}", read.status, read.stderr);

    world.write("kept.tar", "as it was");
    world.run(["dump", "latest", "-o", "kept.tar"]).expect(1);
    assert_eq!(fs::read(world.work("kept.tar")).unwrap(), b"as it was");
    let names: Vec<_> = fs::read_dir(world.work("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "app, out, kept.tar: {names:?}");
}
