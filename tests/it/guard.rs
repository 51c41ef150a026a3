//! `guard`: a snapshot, a command, and the way back.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::picture::{self, Picture};
use crate::roles::{Role, check_bank, make_bank};
use crate::world::{self, Dice, Ran, World};

/// A migration that commits one step, changes and removes attachments, and fails in the middle of the next step.
const MIGRATION: &str = "
    set -e
    cd app
    sqlite3 data.db 'ALTER TABLE entry ADD COLUMN more; UPDATE entry SET more = id, text = text || id; DROP TABLE account;'
    rm storage/1
    echo other > storage/2
    mkdir -p storage/new/er
    echo new > storage/new/er/3
    echo line >> app.log
    mkdir -p cache && echo x > cache/made
    sqlite3 data.db 'BEGIN; CREATE TABLE half(x); COMMIT; SELECT * FROM no_such_table;'
";

fn application(mode: &str) -> World {
    let world = World::new();
    let mut dice = Dice::new(3);
    for i in 1..6 {
        world.write(format!("app/storage/{i}"), dice.bytes(3000));
    }
    make_bank(&world.work("app/data.db"), mode, 4096);
    world
}

fn now(world: &World) -> Picture {
    picture::contents(&world.work("app"))
}

fn guard<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["guard"], options, &["app", "--"], command].concat()
}

/// Runs the command that says how to go back.
fn go_back(world: &World, said: &str) -> Ran {
    let line = said.lines().find_map(|line| line.split_once("to go back: snapshot ")).expect(said).1;
    world.ok(line.split(' '))
}

#[test]
fn a_migration_that_fails_halfway_leaves_everything_as_it_was() {
    for mode in ["wal", "delete"] {
        let world = application(mode);
        let before = now(&world);
        let ran = world.run(guard(&["--rollback"], &["sh", "-c", MIGRATION])).expect(1);
        let ran = ran.names(["sh failed with status 1", "everything is as it was", "to go back"]);
        assert!(ran.text().is_empty(), "standard output is the command's: {}", ran.text());
        picture::assert_same(&now(&world), &before);
        assert_eq!(check_bank(&world.work("app/data.db")), 2000);
        let list = world.list();
        assert_eq!((list.len(), &list[0]["tags"][0]), (2, &"guard".into()));
        // What the migration left is kept, too.
        world.ok(["restore", "--undo", "--target", "app"]);
        assert_eq!(fs::read_to_string(world.work("app/storage/new/er/3")).unwrap(), "new\n");
        let db = Connection::open(world.work("app/data.db")).unwrap();
        db.query_row("SELECT count(*) FROM half", [], |_| Ok(())).unwrap();
    }
}

#[test]
fn a_command_that_does_well_is_let_be() {
    let world = application("wal");
    let ran = world.ok(guard(&["--rollback", "--tag", "v2"], &["sh", "-c", "echo said; rm app/storage/1"]));
    assert_eq!(ran.text(), "said\n");
    assert!(!world.work("app/storage/1").exists());
    assert_eq!(world.list()[0]["tags"], serde_json::json!(["guard", "v2"]));
}

#[test]
fn without_rollback_it_says_how_to_go_back() {
    let world = application("wal");
    let before = now(&world);
    let ran = world.run(guard(&[], &["sh", "-c", "rm app/storage/*; exit 7"])).expect(7);
    assert!(!world.work("app/storage/1").exists());
    go_back(&world, &ran.stderr);
    picture::assert_same(&now(&world), &before);
    // A file alone, which is not in a directory of its own.
    let ran = world.run(["guard", "--rollback", "app/data.db", "--", "sh", "-c", "echo > app/data.db; kill -9 $$"]);
    ran.expect(137).names(["signal 9", "everything is as it was"]);
    picture::assert_same(&now(&world), &before);
}

#[test]
fn without_a_whole_snapshot_the_command_is_not_run() {
    let world = application("delete");
    let touch = ["touch", "app/touched"];
    world.run(["guard", "absent", "--", "touch", "app/touched"]).expect(125).names(["absent", "was not run"]);
    let writer = Role::LockForItself.start(&world.work("app/data.db"));
    let incomplete = world.run(guard(&[], &touch)).expect(125).names(["data.db", "incomplete", "was not run"]);
    assert!(incomplete.stderr.contains("--allow-incomplete") && !world.work("app/touched").exists());
    world.ok(guard(&["--allow-incomplete"], &touch));
    assert!(world.work("app/touched").exists());
    writer.end();
    world.run(guard(&["--dry-run"], &touch)).expect(2);
    world.run(["guard", "app"]).expect(2);
    let mut inside = application("wal");
    inside.use_repository("work/app/repo", "key 2");
    inside.ok(["init"]);
    inside.run(guard(&[], &touch)).expect(125).names(["holds the repository"]);
    assert!(!inside.work("app/touched").exists());
}

#[test]
fn a_command_that_cannot_be_run_is_a_failure() {
    let world = application("wal");
    world.run(guard(&["--rollback"], &["no-such-command"])).expect(127).names(["no-such-command"]);
    world.run(guard(&["--rollback"], &["./app/data.db"])).expect(126).names(["data.db"]);
}

#[test]
fn what_is_excluded_is_left_alone() {
    let world = application("wal");
    world.write("app/app.log", "first\n");
    world.write("app/cache/old", "1");
    world.write("app/storage/cache/kept", "1");
    world.write("app/tagged/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    world.write("app/tagged/old", "1");
    let before = now(&world);
    let options = ["--rollback", "--exclude", "*.log", "--exclude", "/cache/", "--exclude-caches"];
    world.run(guard(&options, &["sh", "-c", &format!("echo 1 > app/tagged/new; {MIGRATION}")])).expect(1);
    let mut after = now(&world);
    assert_eq!(fs::read_to_string(world.work("app/app.log")).unwrap(), "first\nline\n");
    for left in ["cache/made", "tagged/new"] {
        assert!(after.remove(left).is_some(), "{left}");
    }
    after.insert("app.log".into(), before["app.log"].clone());
    picture::assert_same(&after, &before);
}

#[test]
fn an_orphan_of_the_command_that_has_the_database_open_is_named() {
    let world = application("wal");
    let database = world.work("app/data.db");
    let holder = std::cell::RefCell::new(None);
    let mut command = world
        .command(guard(&["--rollback"], &["sh", "-c", "touch begun; while [ ! -e go ]; do sleep 0.05; done; exit 3"]));
    let child = world::spawn(&mut command);
    wait_for(&world.work("begun"));
    *holder.borrow_mut() = Some(Role::Idle.start(&database));
    world.write("go", "");
    let ran = Ran::new(&command, child.wait_with_output().unwrap()).expect(124);
    let ran = ran.names(["data.db", "open", "not everything could be put back", "to go back"]);
    drop(holder);
    go_back(&world, &ran.stderr);
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_signal_ends_the_command_and_counts_as_a_failure() {
    let world = application("wal");
    let before = now(&world);
    let script = "rm app/storage/1; trap 'touch ended; exit 0' TERM; touch begun; while :; do sleep 0.05; done";
    let mut command = world.command(guard(&["--rollback"], &["sh", "-c", script]));
    let child = world::spawn(&mut command);
    wait_for(&world.work("begun"));
    signal(&child, rustix::process::Signal::INT);
    Ran::new(&command, child.wait_with_output().unwrap()).expect(130).names(["interrupted", "everything is as it was"]);
    assert!(world.work("ended").exists());
    picture::assert_same(&now(&world), &before);
}

#[test]
fn killed_at_any_moment_there_is_a_way_back() {
    let world = application("wal");
    let before = now(&world);
    let mut dice = Dice::new(5);
    let mut killed = 0;
    for round in 0..12 {
        let _ = fs::remove_file(world.work("failed"));
        let script = format!("{}\ntouch ../failed\nexit 3", MIGRATION.replace("set -e", ""));
        let mut command = world.command(guard(&["--rollback"], &["sh", "-c", &script]));
        let mut child = world::spawn(&mut command);
        if round > 3 {
            // While it is being put back.
            while !world.work("failed").exists() {
                if child.try_wait().unwrap().is_some() {
                    panic!("{}", Ran::new(&command, child.wait_with_output().unwrap()).stderr);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(dice.below(60) + 10 * (round - 3)));
        } else {
            std::thread::sleep(Duration::from_millis(20 + 60 * round));
        }
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        let said = Ran::new(&command, child.wait_with_output().unwrap()).stderr;
        // The command goes on where its guard was killed.
        std::thread::sleep(Duration::from_millis(300));
        if said.contains("to go back") {
            let begun = Instant::now();
            while !world.work("failed").exists() {
                assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
                std::thread::sleep(Duration::from_millis(20));
            }
            go_back(&world, &said);
        }
        let mut after = now(&world);
        after.retain(|name, _| !name.starts_with("data.db-"));
        picture::assert_same(&after, &before);
    }
    assert!(killed > 5, "{killed} times it was still at work");
}
