//! Restores that are cut off and go on, and two at a time.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::picture;
use crate::restoring::{MARK, assert_restored, in_place};
use crate::roles::{check_bank, make_bank};
use crate::world::{self, Dice, World, spawn};

/// Sends a signal to a process.
fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_killed_restore_goes_on_where_it_stopped() {
    let world = World::new();
    let mut dice = Dice::new(3);
    for i in 0..600 {
        world.write(format!("data/{}/{i}", i % 10), dice.bytes(60_000));
    }
    world.write("data/large", dice.bytes(32 << 20));
    make_bank(&world.work("data/bank.db"), "delete", 4096);
    let db = Connection::open(world.work("data/bank.db")).unwrap();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
        INSERT INTO entry(text) SELECT hex(randomblob(20000)) FROM n";
    db.execute_batch(fill).unwrap();
    drop(db);
    world.ok(["create", "data"]);
    let restore = |target| ["restore", "latest:data", "--target", target, "--json", "-q"];
    // What a restore that is not killed would fetch from here on.
    let remaining = || {
        let copied = Command::new("cp").args(["-a", "out", "copy"]).current_dir(world.work("")).status();
        assert!(copied.unwrap().success());
        let done = world.ok(restore("copy")).json();
        picture::assert_same(&picture::of(&world.work("copy")), &picture::of(&world.work("data")));
        fs::remove_dir_all(world.work("copy")).unwrap();
        done["bytes_fetched"].as_u64().unwrap()
    };
    let (mut kills, mut before) = (0, u64::MAX);
    for round in 0u64.. {
        let mut command = world.command(restore("out"));
        let mut child = spawn(&mut command);
        // Looking at what is there takes longer each time: so does the time allowed, so that this ends.
        let end = Instant::now() + Duration::from_millis(20 + round * 20 + dice.below(60));
        while Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if child.try_wait().unwrap().is_some() {
            let ran = world::Ran::new(&command, child.wait_with_output().unwrap()).expect(0);
            assert_eq!(ran.json()["resumed"], true);
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if world.work("out").join(MARK).exists() {
            // Nothing is fetched twice, whenever it was killed.
            let now = remaining();
            assert!(now <= before, "after {kills} kills, {now} bytes are to be fetched, {before} before");
            (kills, before) = (kills + 1, now);
        }
    }
    assert!(kills >= 2, "{kills} kills");
    assert_restored(&world);
    check_bank(&world.work("out/bank.db"));
}

/// Starts a restore and stops it when it has made its mark.
fn stopped_restore(world: &World, args: &[&str]) -> Child {
    let child = spawn(&mut world.command(args));
    let begun = Instant::now();
    let is_written = || fs::read_to_string(world.work("out").join(MARK)).is_ok_and(|text| text.ends_with('\n'));
    while !is_written() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the mark does not appear");
        std::thread::yield_now();
    }
    signal(&child, rustix::process::Signal::STOP);
    child
}

#[test]
fn an_interrupted_restore_goes_on_too() {
    let world = World::new();
    world.write("data/large", Dice::new(1).bytes(32 << 20));
    world.ok(["create", "data"]);
    let line = ["restore", "latest:data", "--target", "out"];
    let child = stopped_restore(&world, &line);
    signal(&child, rustix::process::Signal::INT);
    signal(&child, rustix::process::Signal::CONT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(!world.work("out/large").exists());
    assert_eq!(world.json(line)["resumed"], true);
    assert_restored(&world);
}

#[test]
fn after_a_power_cut_what_seems_complete_is_compared() {
    let world = World::new();
    world.write("data/large", Dice::new(1).bytes(32 << 20));
    world.write("data/small", "what was written");
    world.ok(["create", "data"]);
    let line = ["restore", "latest:data", "--target", "out"];
    let mut child = stopped_restore(&world, &line);
    child.kill().unwrap();
    child.wait().unwrap();
    // The name and the time reached the disk, the content did not; the machine was started again.
    let time = fs::metadata(world.work("data/small")).unwrap().modified().unwrap();
    fs::write(world.work("out/small"), [0; 16]).unwrap();
    fs::File::open(world.work("out/small")).unwrap().set_modified(time).unwrap();
    let mark = world.work("out").join(MARK);
    let (text, since) = (fs::read_to_string(&mark).unwrap(), fs::metadata(&mark).unwrap().modified().unwrap());
    let (rest, boot) = text.trim_end().rsplit_once(' ').unwrap();
    assert!(boot.len() > 30, "{text}");
    fs::write(&mark, format!("{rest} another\n")).unwrap();
    fs::File::open(&mark).unwrap().set_modified(since).unwrap();
    assert_eq!(world.json(line)["resumed"], true);
    assert_restored(&world);
}

#[test]
fn of_two_restores_into_one_directory_the_second_is_refused() {
    let world = World::new();
    world.write("data/large", Dice::new(1).bytes(32 << 20));
    world.ok(["create", "data"]);
    let first = ["restore", "latest:data", "--target", "out"];
    let child = stopped_restore(&world, &first);
    world.run(first).expect(11).names(["another restore"]);
    world.run(first.iter().chain(&["--in-place", "--force"])).expect(11);
    world.run(["restore", "latest:data", "--target", "out/below"]).expect(11);
    assert!(!world.work("out/below").exists());
    signal(&child, rustix::process::Signal::CONT);
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_restored(&world);
}

#[test]
fn an_unfinished_restore_of_something_else_is_named() {
    let world = World::new();
    world.write("data/large", Dice::new(1).bytes(32 << 20));
    world.write("data/sub/small", "1");
    world.ok(["create", "data"]);
    let first = world.list()[0]["id"].as_str().unwrap()[..8].to_owned();
    let line = ["restore", "latest:data", "--target", "out"];
    let mut child = stopped_restore(&world, &line);
    child.kill().unwrap();
    child.wait().unwrap();
    world.write("data/sub/small", "2");
    world.ok(["create", "data"]);
    let unchanged = picture::of(&world.work("out"));
    world.run(line).expect(1).names(["unfinished", &first, "--in-place"]);
    world.run(["restore", &format!("{first}:data/sub"), "--target", "out"]).expect(1).names(["another part", &first]);
    world.run(line.iter().chain(&["--dry-run"])).expect(1).names(["unfinished"]);
    picture::assert_same(&picture::of(&world.work("out")), &unchanged);
    let done = world.json(["restore", &format!("{first}:data"), "--target", "out"]);
    assert_eq!(done["resumed"], true);
    assert_eq!(fs::read_to_string(world.work("out/sub/small")).unwrap(), "1");
    // It has ended: what is there is as any other directory.
    world.run(line).expect(1).names(["not empty"]);

    fs::remove_dir_all(world.work("out")).unwrap();
    let mut child = stopped_restore(&world, &["restore", &format!("{first}:data"), "--target", "out"]);
    child.kill().unwrap();
    child.wait().unwrap();
    in_place(&world, &[]);
    assert_restored(&world);
    assert!(!world.work("out").join(MARK).exists());
}

#[test]
fn a_full_disk_ends_it_and_more_room_lets_it_go_on() {
    world::in_private_mounts("restoring_on::a_full_disk_ends_it_and_more_room_lets_it_go_on", || {
        let world = World::new();
        let mut dice = Dice::new(1);
        for i in 0..20 {
            world.write(format!("data/{i}"), dice.bytes(1 << 20));
        }
        world.ok(["create", "data"]);
        world::mount_tmpfs(&world.work("disk"), 8 << 20);
        let line = ["restore", "latest:data", "--target", "disk/out"];
        world.run(line).expect(1).names(["disk/out/", "space"]);
        let mut whole = 0;
        for entry in fs::read_dir(world.work("disk/out")).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if name != MARK {
                assert_eq!(fs::read(entry.path()).unwrap(), fs::read(world.work("data").join(&name)).unwrap());
                whole += 1;
            }
        }
        let more = world::run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(world.work("disk")));
        assert_eq!(more.status, 0, "{}", more.stderr);
        let done = world.json(line);
        assert_eq!((&done["skipped"], &done["resumed"]), (&whole.into(), &true.into()), "{done}");
        picture::assert_same(&picture::of(&world.work("disk/out")), &picture::of(&world.work("data")));
    });
}
