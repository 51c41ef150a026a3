//! Bad luck in time: runs that are killed, and runs at the same time.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::picture::{self, Picture};
use crate::roles::{check_bank, make_bank};
use crate::world::{Dice, Ran, World, spawn};

/// Rounds of create and prune that are killed.
const ROUNDS: u64 = 20;

/// Changes some files and the database in `data`; returns what it looks like then.
fn change(world: &World, dice: &mut Dice) -> Picture {
    for _ in 0..4 {
        let name = dice.below(12);
        let len = dice.below(400_000) as usize;
        world.write(format!("data/{name}"), dice.bytes(len));
    }
    let path = world.work("data/bank.db");
    if !path.exists() {
        make_bank(&path, "WAL", 4096);
    }
    let db = Connection::open(&path).unwrap();
    for _ in 0..30 {
        let id = dice.below(2000).cast_signed();
        db.execute("UPDATE entry SET text = hex(randomblob(150)) WHERE id = ?1", [id]).unwrap();
    }
    drop(db);
    picture::of(&world.work("data"))
}

/// Runs a command and kills it after a while, unless it has ended by then.
fn kill_after(command: &mut Command, delay: Duration) {
    let mut child = spawn(command);
    std::thread::sleep(delay);
    child.kill().unwrap();
    let ran = Ran::new(command, child.wait_with_output().unwrap());
    assert!(ran.status == 137 || ran.status == 0, "{}: {}", ran.status, ran.stderr);
}

/// Restores each snapshot and compares it with the state its tag names.
fn check_all(world: &World, states: &HashMap<String, Picture>) -> usize {
    let all = world.list();
    for snapshot in &all {
        let target = world.restore(snapshot["id"].as_str().unwrap(), "out");
        let state = &states[snapshot["tags"][0].as_str().unwrap()];
        picture::assert_same(&picture::of(&target.join("data")), state);
        fs::remove_dir_all(target).unwrap();
    }
    world.ok(["check", "--read-data"]);
    all.len()
}

#[test]
fn killed_at_random_moments() {
    let world = World::new();
    let mut dice = Dice::new(20);
    let mut states = HashMap::new();
    let prune = ["prune", "--keep-last", "3", "--grace", "0s", "--max-unused", "0%"];
    // The first run of each, undisturbed, shows how long it takes.
    states.insert("first".to_owned(), change(&world, &mut dice));
    let begun = Instant::now();
    world.ok(["create", "data", "--tag", "first"]);
    let create_time = begun.elapsed();
    let begun = Instant::now();
    world.ok(prune);
    let prune_time = begun.elapsed();
    let mut moment = |time: Duration| time.mul_f64(dice.below(1000) as f64 / 900.0);
    let mut changes = Dice::new(21);
    for round in 0..ROUNDS {
        let tag = format!("round {round}");
        states.insert(tag.clone(), change(&world, &mut changes));
        let create = ["create", "data", "--tag", &tag];
        kill_after(&mut world.command(create), moment(create_time));
        kill_after(&mut world.command(prune), moment(prune_time));
        let left = check_all(&world, &states);
        assert!(left >= 1);
        // Now and then one of each gets through, and goes on with whatever the others left.
        if round % 4 == 3 {
            world.ok(create);
            world.ok(prune);
            assert!(check_all(&world, &states) <= 3);
        }
    }
    // Nothing is left behind for good.
    for _ in 0..3 {
        world.ok(prune);
    }
    assert_eq!(check_all(&world, &states), 3);
    let left_over = world.objects().into_iter().filter(|o| o.starts_with("live/"));
    assert_eq!(left_over.collect::<Vec<_>>(), Vec::<String>::new());
    check_bank(&world.restore("latest", "end").join("data/bank.db"));
}

#[test]
fn a_killed_restore_can_be_run_again() {
    let world = World::new();
    let mut dice = Dice::new(30);
    let state = change(&world, &mut dice);
    world.ok(["create", "data"]);
    for _ in 0..6 {
        let delay = Duration::from_micros(dice.below(60_000));
        kill_after(&mut world.command(["restore", "latest", "--target", "out", "--overwrite", "always"]), delay);
        // Whatever has its name is whole.
        if world.work("out/data").exists() {
            let contents = |line: &str| line.split_once(" | ").map(|(content, _)| content.to_owned());
            for (name, found) in picture::within(&world.work("out/data")) {
                let expected = state.get(&name).and_then(|line| contents(line));
                let is_temporary = expected.is_none() && !found.starts_with("directory");
                assert!(is_temporary || expected == contents(&found), "{name}: {found}");
            }
        }
    }
    fs::remove_dir_all(world.work("out")).ok();
    world.restore("latest", "out");
    picture::assert_same(&picture::of(&world.work("out/data")), &state);
}

#[test]
fn several_runs_at_the_same_time() {
    let world = World::new();
    let (mut first, mut second) = (Dice::new(40), Dice::new(41));
    let mut states = HashMap::new();
    for round in 0..5 {
        let tag = format!("round {round}");
        states.insert(tag.clone(), change(&world, &mut first));
        let names = second.below(30);
        for i in 0..6 {
            world.write(format!("other/{}", names + i), second.bytes(200_000));
        }
        states.insert(format!("other {round}"), picture::of(&world.work("other")));
        let other_tag = format!("other {round}");
        let mut runs = vec![
            world.command(["create", "data", "--tag", &tag]),
            world.command(["create", "other", "--tag", &other_tag]),
            world.command(["prune", "--keep-last", "2", "--grace", "0s", "--max-unused", "0%"]),
        ];
        if round > 0 {
            runs.push(world.command(["restore", "latest", "--target", &format!("during {round}")]));
        }
        let children: Vec<_> = runs.iter_mut().map(spawn).collect();
        for (command, child) in runs.iter().zip(children) {
            Ran::new(command, child.wait_with_output().unwrap()).expect(0);
        }
    }
    for snapshot in world.list() {
        let tag = snapshot["tags"][0].as_str().unwrap();
        let target = world.restore(snapshot["id"].as_str().unwrap(), tag);
        let path = snapshot["paths"][0].as_str().unwrap();
        picture::assert_same(&picture::of(&target.join(path)), &states[tag]);
    }
    world.ok(["check", "--read-data", "--databases"]);
    assert!(world.list().len() >= 4);
}

#[test]
fn first_runs_at_the_same_time_share_the_default_repository() {
    let world = World::bare();
    world.write("data/a", "1");
    let mut runs: Vec<_> = (0..4).map(|i| world.command(["create", "data", "--source", &format!("s{i}")])).collect();
    let children: Vec<_> = runs.iter_mut().map(spawn).collect();
    for (command, child) in runs.iter().zip(children) {
        Ran::new(command, child.wait_with_output().unwrap()).expect(0);
    }
    assert_eq!(world.list().len(), 4);
    world.ok(["check", "--read-data"]);
}

#[test]
fn an_interrupt_ends_in_order() {
    let world = World::new();
    world.write("data/large", Dice::new(9).bytes(60 << 20));
    let mut command = world.command(["create", "data"]);
    let child = spawn(&mut command);
    std::thread::sleep(Duration::from_millis(150));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ran = Ran::new(&command, child.wait_with_output().unwrap());
    // It may have been done already.
    assert!(ran.status == 130 || ran.status == 0, "{}: {}", ran.status, ran.stderr);
    assert_eq!(world.list().len(), usize::from(ran.status == 0));
    assert!(!world.objects().iter().any(|o| o.starts_with("live/") || o.starts_with("tmp/")), "{:?}", world.objects());
    world.ok(["create", "data"]);
    world.ok(["check", "--read-data"]);
}
