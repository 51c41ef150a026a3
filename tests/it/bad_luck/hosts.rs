//! Hosts that get in each other's way, whose clocks are wrong, and a repository that is moved away.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::{Diary, PRUNE};
use crate::picture;
use crate::servers::wire::Wire;
use crate::servers::{s3, sshd, use_s3, world_with_s3, world_with_sftp};
use crate::world::{Dice, Ran, World, run, spawn};

/// Two machines that have the same name, the same directory, and one repository.
#[test]
fn of_the_same_name() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let first = world_with_s3(&server.url(), &bucket);
    first.ok(["init"]);
    let mut second = World::bare();
    use_s3(&mut second, &server.url(), &bucket, s3::OWNER);
    second.set("SNAPSHOT_KEY_FILE", first.at("key"));
    let hosts = [&first, &second];
    let mut pictures = Vec::new();
    for round in 0..3u64 {
        for (n, host) in hosts.iter().enumerate() {
            host.write("data/mine", Dice::new(round * 2 + n as u64).bytes(50_000));
            pictures.push(picture::of(&host.work("data")));
        }
        let create = |host: &World| {
            let mut command = host.command(["create", "data", "--host", "twin", "--source", "same", "--json", "-q"]);
            let child = spawn(&mut command);
            (command, child)
        };
        let running = hosts.map(create);
        let ids = running.map(|(command, child)| {
            let done = Ran::new(&command, child.wait_with_output().unwrap()).expect(0).json();
            done["snapshot_id"].as_str().unwrap().to_owned()
        });
        for (n, id) in ids.iter().enumerate() {
            let restored = hosts[1 - n].restore(id, &format!("out{round}"));
            picture::assert_same(&picture::of(&restored.join("data")), &pictures[pictures.len() - 2 + n]);
        }
    }
    let all = first.list();
    assert_eq!(all.len(), 6);
    // Which of two came last is the same for everybody.
    let ids = |list: &[serde_json::Value]| list.iter().map(|s| s["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&all), ids(&second.list()));
    first.ok(["check", "--read-data"]);
}

/// The library that shifts a program's clock.
fn libfaketime() -> PathBuf {
    let folders =
        fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let folders = folders.chain([PathBuf::from("/usr/lib/faketime/libfaketime.so.1")]);
    let mut found = folders.into_iter().filter(|path| path.exists());
    found.next().expect("libfaketime is not installed: on Debian it is the package libfaketime; ./test installs it")
}

/// Runs the program on a machine whose clock is so far ahead ("+1d") or behind.
fn run_at(world: &World, shift: &str, args: &[&str]) -> Ran {
    let mut command = world.command(args);
    command.env("LD_PRELOAD", libfaketime()).env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    run(&mut command)
}

#[test]
fn whose_clock_is_a_day_off_s3() {
    let server = s3::shared();
    let world = world_with_s3(&server.url(), &server.new_bucket());
    world.ok(["init"]);
    world.write("data/a", "1");
    for (shift, word) in [("+1d", "ahead of"), ("-1d", "behind")] {
        for args in [&["create", "data"][..], &["list"], &["prune"]] {
            run_at(&world, shift, args).expect(1).names(["clock is", word, "set this machine's clock"]);
        }
    }
    world.ok(["create", "data"]);
    assert_eq!(world.list().len(), 1);
}

/// SFTP has no need of clocks: the server's is the one that counts.
#[test]
fn whose_clock_is_a_day_off_sftp() {
    let server = sshd::shared();
    let world = world_with_sftp(server, server.port());
    world.ok(["init"]);
    let mut pictures = Vec::new();
    for (n, shift) in ["+1d", "-1d", "+0d", "+1d"].into_iter().enumerate() {
        world.write("data/a", Dice::new(n as u64).bytes(20_000));
        pictures.push(picture::of(&world.work("data")));
        run_at(&world, shift, &["create", "data"]).expect(0);
    }
    // Whoever is a day ahead must not take what was condemned a moment ago for a day old.
    run_at(&world, "+0d", &["prune", "--keep-last", "1", "--grace", "12h"]).expect(0);
    let packs = |world: &World| world.objects().into_iter().filter(|path| path.starts_with("packs/")).count();
    let before = packs(&world);
    run_at(&world, "+1d", &["prune", "--keep-last", "1", "--grace", "12h"]).expect(0);
    assert!(packs(&world) >= before, "packs within their grace period were deleted");
    for id in world.list().iter().map(|s| s["id"].as_str().unwrap()) {
        world.restore(id, &format!("out {id}"));
    }
    world.ok(["check", "--read-data"]);
}

/// Somebody renames the repository while it is pruned, at one moment or another.
#[test]
fn moved_under_a_prune() {
    let server = sshd::shared();
    let wire = Wire::to(server.port());
    let mut diary = Diary::new(world_with_sftp(server, wire.port()));
    let mut dice = Dice::new(12);
    for round in 0..4 {
        diary.create().expect(0);
        diary.create().expect(0);
        let world = &diary.world;
        wire.set_pace(400_000);
        let mut command = world.command(PRUNE);
        let child = spawn(&mut command);
        thread::sleep(Duration::from_millis(100 + dice.below(900)));
        fs::rename(world.at("repo"), world.at("moved")).unwrap();
        let ran = Ran::new(&command, child.wait_with_output().unwrap());
        wire.set_pace(0);
        assert!([0, 1, 10].contains(&ran.status), "round {round}: {}: {}", ran.status, ran.stderr);
        // What the prune may have written meanwhile where the repository was is of no use to it.
        fs::remove_dir_all(world.at("repo")).ok();
        fs::rename(world.at("moved"), world.at("repo")).unwrap();
        diary.assert_restores();
        diary.world.ok(["check", "--read-data"]);
    }
    diary.world.ok(PRUNE);
    assert_eq!(diary.assert_sound(), 2);
}
