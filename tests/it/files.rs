//! Everything a file system can hold comes back as it was.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::picture;
use crate::world::{self, Dice, World};

/// Takes a snapshot of `data`, restores it, and compares.
fn there_and_back(world: &World) {
    world.ok(["create", "data"]);
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/data")), &picture::of(&world.work("data")));
}

fn set_mtime(path: &Path, since_epoch: Duration) {
    let time = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + since_epoch);
    File::open(path).unwrap().set_times(time).unwrap();
}

#[test]
fn links_modes_times_and_empty_things() {
    let world = World::new();
    let file = world.write("data/file", "content");
    world.write("data/empty", "");
    world.write("data/ sp\u{e4}ces and\nlines ", "1");
    fs::create_dir_all(world.work("data/empty folder/another")).unwrap();
    for (name, target) in [("good", "file"), ("dangling", "no/such"), ("up", "../.."), ("absolute", "/etc/passwd")] {
        symlink(target, world.work("data").join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(b"\xff\xfe"), world.work("data/odd link")).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2750), ("none", 0), ("all", 0o777), ("run", 0o711)] {
        fs::set_permissions(world.write(format!("data/{name}"), name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("sticky", 0o1777), ("read only", 0o555)] {
        let folder = world.write(format!("data/{name}/in"), "1").parent().unwrap().to_path_buf();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    }
    if !world::is_root() {
        // Only root reads what nobody may.
        fs::remove_file(world.work("data/none")).unwrap();
    }
    set_mtime(&file, Duration::new(1_234_567_890, 123_456_789));
    set_mtime(&world.work("data/empty"), Duration::new(1, 1));
    set_mtime(&world.work("data/empty folder"), Duration::new(4_000_000_000, 999_999_999));
    there_and_back(&world);
}

#[test]
fn names_that_are_not_utf_8() {
    let world = World::new();
    for name in [&b"\xff\xfe"[..], b"caf\xe9", b"\x80/\x81\xc3", b"\x1b[31mred", b"-rf", b"*?[a]", b"a\\b", b"~"] {
        world.write(Path::new("data").join(OsStr::from_bytes(name)), name);
    }
    world.write(Path::new("data").join("n".repeat(255)), "long");
    there_and_back(&world);
    let nodes = world.json(["ls", "latest"])["nodes"].clone();
    let hex = nodes.as_array().unwrap().iter().filter(|node| node["path_hex"].is_string()).count();
    assert_eq!(hex, 4, "{nodes}");
    let name = OsStr::from_bytes(b"data/caf\xe9");
    assert_eq!(world.ok(["dump".as_ref(), "latest".as_ref(), name]).stdout, b"caf\xe9");
}

#[test]
fn hard_links_stay_links() {
    let world = World::new();
    let first = world.write("data/first", vec![5; 1000]);
    let large = world.write("data/large", Dice::new(1).bytes(3 << 20));
    fs::create_dir(world.work("data/sub")).unwrap();
    fs::hard_link(&first, world.work("data/second")).unwrap();
    fs::hard_link(&first, world.work("data/sub/third")).unwrap();
    fs::hard_link(&large, world.work("data/a large")).unwrap();
    there_and_back(&world);
    let inode = |path: &str| fs::metadata(world.work("out/data").join(path)).unwrap().ino();
    assert!(inode("first") == inode("second") && inode("first") == inode("sub/third"));
    assert!(inode("large") == inode("a large") && inode("large") != inode("first"));
    let created = world.json(["create", "data", "--source", "again"]);
    assert!(created["bytes_read"].as_u64() < Some(4 << 20), "read once: {created}");
}

#[test]
fn holes_stay_holes() {
    let world = World::new();
    let path = world.write("data/sparse", "");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    for at in [0, 20 << 20, (40 << 20) + 5] {
        file.write_all_at(&Dice::new(at).bytes(100_000), at).unwrap();
    }
    file.sync_all().unwrap();
    File::create(world.work("data/only a hole")).unwrap().set_len(10 << 20).unwrap();
    let created = world.json(["create", "data"]);
    assert!(created["bytes_stored"].as_u64() < Some(1 << 20), "{created}");
    let target = world.restore("latest", "out");
    picture::assert_same(&picture::of(&target.join("data")), &picture::of(&world.work("data")));
    for name in ["sparse", "only a hole"] {
        let blocks = |path: &Path| fs::metadata(path.join("data").join(name)).unwrap().blocks();
        let (before, after) = (blocks(&world.work("")), blocks(&target));
        // File systems round differently, by a few blocks around each extent.
        assert!(after <= before + 512, "{name}: {before} blocks before, {after} after");
    }
}

#[test]
fn extended_attributes() {
    let world = World::new();
    let file = world.write("data/file", "1");
    let folder = world.work("data");
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
            .unwrap_or_else(|e| panic!("the file system of the temporary directory has no extended attributes: {e}"));
    };
    set(&file, "user.comment", b"hello");
    set(&file, "user.binary", &[0, 255, 10, 0]);
    set(&file, "user.empty", b"");
    set(&file, "user.long", &[7; 2000]);
    set(&folder, "user.folder", b"yes");
    there_and_back(&world);
    // A change of nothing but an attribute shows.
    set(&file, "user.comment", b"other");
    fs::remove_dir_all(world.work("out")).unwrap();
    there_and_back(&world);
}

#[test]
fn pipes_and_sockets() {
    let world = World::new();
    world.write("data/file", "1");
    let made = Command::new("mkfifo").args(["-m", "640"]).arg(world.work("data/pipe")).status().unwrap();
    assert!(made.success());
    there_and_back(&world);
    let _socket = std::os::unix::net::UnixListener::bind(world.work("data/socket")).unwrap();
    world.ok(["create", "data"]);
    let target = world.restore("latest", "again");
    assert!(target.join("data/pipe").exists() && !target.join("data/socket").exists());
}

#[test]
fn large_files_share_what_they_have_in_common() {
    let world = World::new();
    let mut bytes = Dice::new(7).bytes(24 << 20);
    world.write("data/large", &bytes);
    let first = world.json(["create", "data"]);
    assert!(first["bytes_stored"].as_u64() >= Some(24 << 20));
    bytes.splice(10_000_000..10_000_000, *b"inserted in the middle");
    world.write("data/large", &bytes);
    world.write("data/copy", &bytes);
    let second = world.json(["create", "data"]);
    assert!(second["bytes_stored"].as_u64() < Some(8 << 20), "{second}");
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/data")), &picture::of(&world.work("data")));
    assert!(world.ok(["dump", "latest", "data/large"]).stdout == bytes);
}

#[test]
fn many_small_files_and_deep_folders() {
    let world = World::new();
    let mut dice = Dice::new(11);
    for i in 0..3000 {
        let len = dice.below(4000) as usize;
        world.write(format!("data/{}/{i}", i % 7), dice.bytes(len));
    }
    world.write(format!("data/{}/end", "deep/".repeat(300)), "1");
    there_and_back(&world);
    let second = world.json(["create", "data"]);
    assert_eq!((&second["bytes_new"], &second["files"]), (&0.into(), &3001.into()));
}

/// Keeps changing a file while `create` runs, until it says so.
fn create_while(world: &World, mut change: impl FnMut() + Send) -> world::Ran {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                change();
            }
        });
        let ran = world.run(["create", "data"]);
        ended.store(true, Ordering::Relaxed);
        ran
    })
}

#[test]
fn a_file_that_grows_while_it_is_read_is_named() {
    let world = World::new();
    world.write("data/quiet", "still");
    let path = world.write("data/growing", Dice::new(3).bytes(30 << 20));
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    let ran = create_while(&world, || file.write_all(&[1; 4096]).unwrap()).expect(3).names(["growing"]);
    assert!(!ran.stderr.contains("quiet"), "{}", ran.stderr);
    assert_eq!(world.ok(["dump", "latest", "data/quiet"]).text(), "still");
    world.ok(["check", "--read-data"]);
    // What was not one state of the file is read again when it has settled.
    world.ok(["create", "data"]);
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/data")), &picture::of(&world.work("data")));
}

#[test]
fn a_file_that_shrinks_or_is_rewritten_while_it_is_read_is_named() {
    let world = World::new();
    let path = world.write("data/changing", Dice::new(3).bytes(30 << 20));
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    let mut i = 0;
    let change = || {
        i += 1;
        file.set_len((30 << 20) - i % 64 * 4096).unwrap();
        file.seek(SeekFrom::Start(i % 1000)).unwrap();
        file.write_all(b"rewritten").unwrap();
    };
    create_while(&world, change).expect(3).names(["changing"]);
    world.ok(["check", "--read-data"]);
}

#[test]
fn files_that_vanish_while_they_are_read_do_no_harm() {
    let world = World::new();
    for i in 0..2000 {
        world.write(format!("data/{i}"), format!("file {i}"));
    }
    world.write("data/z stays", "1");
    let mut next = 1999;
    let ran = create_while(&world, || {
        let _ = fs::remove_file(world.work(format!("data/{next}")));
        next = if next == 0 { 0 } else { next - 1 };
    });
    assert!(ran.status == 0 || ran.status == 3, "{}", ran.stderr);
    assert_eq!(world.ok(["dump", "latest", "data/z stays"]).text(), "1");
    // Whatever was caught is whole.
    let target = world.restore("latest", "out");
    for entry in fs::read_dir(target.join("data")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != "z stays" {
            assert_eq!(fs::read_to_string(entry.path()).unwrap(), format!("file {name}"));
        }
    }
}

#[test]
fn the_tree_may_be_piped_to_a_reader_that_leaves() {
    let world = World::new();
    world.write("data/large", Dice::new(5).bytes(4 << 20));
    world.ok(["create", "data"]);
    let mut dump = world.command(["dump", "latest", "data/large"]);
    let mut child = dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty());
}

#[test]
fn a_change_that_stat_hardly_shows_is_seen() {
    let world = World::new();
    let path = world.write("data/file", "round 000");
    let since_epoch = Duration::from_secs(1_000_000_000);
    for round in 1..=15 {
        // Same length, same time, and as soon after the capture as can be.
        let content = format!("round {round:03}");
        fs::write(&path, &content).unwrap();
        set_mtime(&path, since_epoch);
        world.ok(["create", "data"]);
        assert_eq!(world.ok(["dump", "latest", "data/file"]).text(), content);
    }
}

/// Ownership needs root: others can give files away no more than they can restore them so.
#[test]
fn owners() {
    if !world::is_root() {
        return;
    }
    let world = World::new();
    for (name, uid, gid) in [("a", 1234, 5678), ("b", 65534, 0)] {
        std::os::unix::fs::chown(world.write(format!("data/{name}"), name), Some(uid), Some(gid)).unwrap();
    }
    std::os::unix::fs::lchown(world.work("data"), Some(77), Some(88)).unwrap();
    there_and_back(&world);
}
