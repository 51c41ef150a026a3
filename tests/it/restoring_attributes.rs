//! What a restore sets beside contents: owners, access lists, capabilities, devices; and where it can't.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::picture;
use crate::world::{self, PROGRAM, Ran, World};

/// A user and group that exist nowhere, and that permission bits stop.
const NOBODY: u32 = 65534;

/// Runs a tool, which must be there and succeed.
fn tool(world: &World, program: &str, args: &[&str]) -> Ran {
    let mut command = world.command_of(program);
    command.args(args);
    world::run(&mut command).expect(0)
}

/// What `getfacl` shows of a directory and all that is in it.
fn access_lists(world: &World, folder: &str) -> String {
    tool(world, "sh", &["-c", &format!("cd {folder} && getfacl --numeric --recursive --skip-base . | sort")]).text()
}

#[test]
fn access_lists_come_back() {
    let world = World::new();
    for name in ["plain", "listed", "folder/inside", "masked"] {
        world.write(format!("data/{name}"), name);
    }
    tool(&world, "setfacl", &["-m", "u:1234:rw,g:4321:r", "data/listed"]);
    tool(&world, "setfacl", &["-m", "u:1234:rwx,m::r", "data/masked"]);
    tool(&world, "setfacl", &["-m", "u:77:rwx,d:u:77:rwx,d:g:88:rx", "data/folder"]);
    world.write("data/folder/inherited", "1");
    world.write("data/folder/cleared", "1");
    tool(&world, "setfacl", &["-b", "data/folder/cleared"]);
    let expected = access_lists(&world, "data");
    assert!(expected.contains("default:user:77:rwx") && expected.contains("user:1234:rw"), "{expected}");
    world.ok(["create", "data"]);
    world.restore("latest:data", "out");
    assert_eq!(access_lists(&world, "out"), expected);
    picture::assert_same(&picture::of(&world.work("out")), &picture::of(&world.work("data")));

    // Into a directory whose list is passed on to what is made in it.
    fs::create_dir(world.work("listed")).unwrap();
    tool(&world, "setfacl", &["-m", "d:u:55:rwx", "listed"]);
    world.restore("latest:data", "listed/out");
    assert_eq!(access_lists(&world, "listed/out"), expected);
    // And in place.
    tool(&world, "setfacl", &["-m", "u:99:r", "out/plain"]);
    tool(&world, "setfacl", &["-b", "out/listed"]);
    fs::remove_file(world.work("out/folder/cleared")).unwrap();
    world.ok(["restore", "latest:data", "--target", "out", "--in-place"]);
    assert_eq!(access_lists(&world, "out"), expected);
}

#[test]
fn where_attributes_cannot_be_set_it_is_said_once() {
    world::in_private_mounts("restoring_attributes::where_attributes_cannot_be_set_it_is_said_once", || {
        let world = World::new();
        for i in 0..50 {
            let path = world.write(format!("data/{i}"), "1");
            rustix::fs::setxattr(path, "user.note", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }
        world.ok(["create", "data"]);
        fs::create_dir(world.work("plain")).unwrap();
        let mounted = world::run(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(world.work("plain")));
        assert_eq!(mounted.status, 0, "{}", mounted.stderr);
        let ran = world.ok(["restore", "latest:data", "--target", "plain/out"]).names(["user.note", "49 others"]);
        assert_eq!(ran.stderr.lines().filter(|line| line.contains("user.note")).count(), 1, "{}", ran.stderr);
        let strip = |folder: &str| picture::contents(&world.work(folder));
        picture::assert_same(&strip("plain/out"), &strip("data"));
    });
}

#[test]
fn a_further_name_comes_with_the_content_where_the_first_is_left_out() {
    let world = World::new();
    let first = world.write("data/a", "the content");
    fs::create_dir(world.work("data/sub")).unwrap();
    for name in ["b", "sub/c"] {
        fs::hard_link(&first, world.work("data").join(name)).unwrap();
    }
    world.ok(["create", "data"]);
    world.ok(["restore", "latest:data", "--target", "out", "--exclude", "/data/a"]);
    let inode = |name: &str| fs::metadata(world.work("out").join(name)).unwrap().ino();
    assert_eq!(fs::read_to_string(world.work("out/sub/c")).unwrap(), "the content");
    assert_eq!(inode("b"), inode("sub/c"));
    world.ok(["restore", "latest:data/sub", "--target", "sub"]);
    assert_eq!(fs::read_to_string(world.work("sub/c")).unwrap(), "the content");
    // In place, the missing name becomes a link to what is there, and what was parted is joined.
    fs::remove_file(world.work("out/sub/c")).unwrap();
    fs::copy(world.work("out/b"), world.work("out/sub/c")).unwrap();
    let before = inode("b");
    world.ok(["restore", "latest:data", "--target", "out", "--in-place"]);
    world.ok(["restore", "latest:data", "--target", "out", "--in-place"]);
    assert_eq!((inode("a"), inode("sub/c")), (inode("b"), inode("b")));
    assert!(inode("b") == before || fs::metadata(world.work("out/b")).unwrap().nlink() == 3);
    // A file that only looks like one of several is not touched through its other name.
    world.write("data/single", "1");
    world.ok(["create", "data"]);
    world.ok(["restore", "latest:data", "--target", "out", "--in-place"]);
    fs::hard_link(world.work("out/single"), world.work("elsewhere")).unwrap();
    fs::set_permissions(world.work("out/single"), fs::Permissions::from_mode(0o600)).unwrap();
    world.ok(["restore", "latest:data", "--target", "out", "--in-place"]);
    assert_eq!(fs::metadata(world.work("elsewhere")).unwrap().mode() & 0o777, 0o600);
    picture::assert_same(&picture::of(&world.work("out")), &picture::of(&world.work("data")));
}

#[test]
fn sockets_and_names_left_alone_are_counted() {
    let world = World::new();
    world.write("data/a", "1");
    let _sockets: Vec<_> =
        (0..5).map(|i| std::os::unix::net::UnixListener::bind(world.work(format!("data/s{i}"))).unwrap()).collect();
    world.ok(["create", "data"]);
    let ran = world.ok(["restore", "latest", "--target", "out"]).names(["5 sockets"]);
    assert_eq!(ran.stderr.lines().filter(|line| line.contains("socket")).count(), 1, "{}", ran.stderr);
}

/// What follows needs root, as the restore of it does.
fn needs_root(why: &str) -> bool {
    if !world::is_root() {
        eprintln!("not tested without root: {why}");
    }
    world::is_root()
}

#[test]
fn owners_by_name_number_or_map() {
    if !needs_root("owners") {
        return;
    }
    let world = World::new();
    let file = world.write("data/file", "1");
    chown(&file, Some(1234), Some(4321)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    world.write("data/ours", "1");
    world.ok(["create", "data"]);
    let restore = |target: &str, more: &[&str]| {
        let ran = world.ok(["restore", "latest:data", "--target", target].iter().chain(more));
        let meta = fs::metadata(world.work(target).join("file")).unwrap();
        (ran.stderr, meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(restore("names", &[]), (String::new(), 1234, 4321, 0o6755));
    assert_eq!(restore("numbers", &["--owner", "numbers"]), (String::new(), 1234, 4321, 0o6755));
    // Nobody acts as root who acted as somebody else.
    assert_eq!(restore("none", &["--owner", "none"]), (String::new(), 0, 0, 0o755));
    let mapped = restore("mapped", &["--map-user", "1234=nobody", "--map-group", "4321=77"]);
    assert_eq!(mapped, (String::new(), NOBODY, 77, 0o6755));
    assert_eq!(fs::metadata(world.work("mapped/ours")).unwrap().uid(), 0);
    // A mapping holds in place, too.
    let again = restore("names", &["--in-place", "--map-user", "1234=55"]);
    assert_eq!((again.1, again.3), (55, 0o6755));
    let wrong = ["restore", "latest:data", "--target", "wrong", "--map-user"];
    world.run(wrong.iter().chain(&["1234=no-such-user"])).expect(1).names(["no-such-user"]);
    world.run(wrong.iter().chain(&["no-such-user=0"])).expect(1).names(["no-such-user"]);
    world.run(wrong.iter().chain(&["nonsense"])).expect(2);
    world.run(wrong.iter().chain(&["1=2", "--owner", "none"])).expect(2);
    assert!(!world.work("wrong").exists());
}

#[test]
fn devices_and_capabilities_come_back() {
    if !needs_root("devices and capabilities") {
        return;
    }
    let world = World::new();
    fs::copy("/bin/true", world.write("data/able", "")).unwrap();
    chown(world.work("data/able"), Some(1234), Some(4321)).unwrap();
    tool(&world, "setcap", &["cap_net_raw+ep", "data/able"]);
    tool(&world, "mknod", &["-m", "640", "data/null", "c", "1", "3"]);
    tool(&world, "mknod", &["-m", "600", "data/loop", "b", "7", "200"]);
    world.ok(["create", "data"]);
    let target = world.restore("latest:data", "out");
    let capability = |folder: &str| tool(&world, "getcap", &[&format!("{folder}/able")]).text().replace(folder, "");
    assert!(capability("data").contains("cap_net_raw"));
    assert_eq!(capability("out"), capability("data"));
    for (name, kind) in [("null", 'c'), ("loop", 'b')] {
        let (found, expected) = (fs::metadata(target.join(name)).unwrap(), fs::metadata(world.work("data").join(name)));
        assert_eq!((found.rdev(), found.mode()), (expected.as_ref().unwrap().rdev(), expected.unwrap().mode()));
        assert_eq!(found.file_type().is_char_device(), kind == 'c');
    }
    assert_eq!(fs::metadata(target.join("able")).unwrap().uid(), 1234);
    let again = world.json(["restore", "latest:data", "--target", "out", "--in-place"]);
    assert_eq!((&again["skipped"], &again["others"], &again["metadata"]), (&3.into(), &0.into(), &0.into()), "{again}");
}

/// Runs the program as somebody who is not root.
fn run_as_nobody(world: &World, args: &[&str]) -> Ran {
    tool(world, "chown", &["-R", &format!("{NOBODY}:{NOBODY}"), world.at("").to_str().unwrap()]);
    let copy = world.at("snapshot");
    fs::copy(PROGRAM, &copy).unwrap();
    let mut command = world.command_of("setpriv");
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    world::run(command.args(ids).args(["--clear-groups", "--"]).arg(copy).args(args))
}

#[test]
fn who_is_not_root_owns_what_he_restores() {
    if !needs_root("a restore by somebody else, of devices") {
        return;
    }
    let world = World::new();
    for i in 0..30 {
        let file = world.write(format!("data/sub/{i}"), "1");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    }
    fs::set_permissions(world.work("data/sub"), fs::Permissions::from_mode(0o555)).unwrap();
    tool(&world, "mknod", &["data/null", "c", "1", "3"]);
    world.ok(["create", "data"]);
    let ran =
        run_as_nobody(&world, &["restore", "latest:data", "--target", "out"]).expect(5).names(["null", "31 others"]);
    assert_eq!(ran.stderr.lines().filter(|line| line.contains("owner")).count(), 1, "{}", ran.stderr);
    let meta = |name: &str| fs::symlink_metadata(world.work("out").join(name));
    let file = meta("sub/7").unwrap();
    assert_eq!((file.uid(), file.mode() & 0o7777), (NOBODY, 0o755), "set-user-id is dropped with the owner");
    assert_eq!(meta("sub").unwrap().mode() & 0o7777, 0o555);
    assert!(meta("null").is_err());
    // Read-only directories are no obstacle, and nothing differs the second time.
    let line = ["restore", "latest:data", "--target", "out", "--delete", "--exclude", "null"];
    world.write("out/sub/extra", "1");
    let ran = run_as_nobody(&world, &line).expect(0);
    assert!(ran.text().contains("1 name deleted") && ran.text().contains("30 names left"), "{}", ran.text());
    assert_eq!(meta("sub").unwrap().mode() & 0o7777, 0o555);
    assert_eq!(meta("sub").unwrap().mtime_nsec(), fs::metadata(world.work("data/sub")).unwrap().mtime_nsec());
}

#[test]
fn an_immutable_file_is_named() {
    if !needs_root("immutable files") {
        return;
    }
    let world = World::new();
    world.write("data/a", "1");
    world.write("data/b", "1");
    world.ok(["create", "data"]);
    world.restore("latest:data", "out");
    for name in ["out/a", "out/b", "out/extra"] {
        world.write(name, "changed");
    }
    let set = |flag: &str, path: &Path| {
        world::run(Command::new("chattr").arg(flag).arg(path)).expect(0);
    };
    set("+i", &world.work("out/a"));
    let ran = world.run(["restore", "latest:data", "--target", "out", "--delete"]);
    set("-i", &world.work("out/a"));
    ran.expect(5).names(["out/a", "lsattr", "nothing is deleted"]);
    assert_eq!(fs::read_to_string(world.work("out/b")).unwrap(), "1");
    assert_eq!(fs::read_to_string(world.work("out/a")).unwrap(), "changed");
    assert!(world.work("out/extra").exists());
}
