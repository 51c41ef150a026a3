//! Large uploads that are cut off: by a kill, by a server that ends, by a network that is away, by a full disk.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Diary;
use crate::picture;
use crate::servers::proxy::{Fate, Proxy};
use crate::servers::s3::{self, S3};
use crate::servers::sshd::{self, Sshd};
use crate::servers::wire::Wire;
use crate::servers::{PREFIX, world_with_s3, world_with_sftp};
use crate::world::{Dice, Ran, World, in_private_mounts, mount_tmpfs, spawn};

const MIB: u64 = 1 << 20;
/// Packs that are under way at a time, at most: concurrency of the remote store, each of 12 MiB.
const UNDER_WAY: u64 = 5 * 12 * MIB;

fn fill(world: &World, bytes: u64) {
    let mut dice = Dice::new(77);
    for n in 0..bytes / (4 * MIB) {
        world.write(format!("data/{n}"), dice.bytes(usize::try_from(4 * MIB).unwrap()));
    }
}

/// Starts a snapshot and does something to it when so many bytes have left.
fn create_and(world: &World, left: impl Fn() -> u64, bytes: u64, act: impl FnOnce(&mut std::process::Child)) -> Ran {
    let mut command = world.command(["create", "data", "--json", "-q"]);
    let mut child = spawn(&mut command);
    let begun = Instant::now();
    while left() < bytes && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(240), "nothing is sent any more");
        thread::sleep(Duration::from_millis(5));
    }
    act(&mut child);
    Ran::new(&command, child.wait_with_output().unwrap())
}

/// Objects named by their hash have it: nobody sees a part of one.
fn assert_whole(objects: &[(String, Vec<u8>)]) {
    let mut packs = 0;
    for (path, bytes) in objects.iter().filter(|(path, _)| path.contains("packs/")) {
        assert_eq!(path.rsplit('/').next().unwrap(), blake3::hash(bytes).to_hex().as_str(), "{path} is no whole pack");
        packs += 1;
    }
    assert!(packs > 0, "no pack had arrived");
}

/// The packs of the repository `repo`.
fn packs_of(world: &World) -> Vec<(String, Vec<u8>)> {
    let paths = world.objects().into_iter().filter(|path| path.starts_with("packs/"));
    paths.map(|path| (path.clone(), fs::read(world.at("repo").join(path)).unwrap())).collect()
}

/// After the kill: what arrived is whole, is found again, and what remains is sent alone.
fn assert_goes_on(world: &World, arrived: u64, total: u64) {
    assert!(arrived > total / 4, "only {arrived} bytes had arrived");
    let done = world.json(["create", "data"]);
    let sent = done["storage"]["bytes_up"].as_u64().unwrap();
    let (left, allowed) = (total - arrived, total / 50);
    assert!(sent <= left + allowed, "{sent} bytes were sent where {left} were left");
    let restored = world.restore("latest", "out");
    picture::assert_same(&picture::of(&restored.join("data")), &picture::of(&world.work("data")));
    world.ok(["check", "--read-data"]);
}

#[test]
fn killed_in_the_middle_s3() {
    let server = s3::shared();
    let (bucket, total) = (server.new_bucket(), 100 * MIB);
    let proxy = Proxy::to(server.port());
    let world = world_with_s3(&proxy.url(), &bucket);
    world.ok(["init"]);
    fill(&world, total);
    // The last packs are held back until the kill.
    let (sent, held) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let (is_held, over) = (held.clone(), Arc::new(AtomicBool::new(false)));
    let is_over = over.clone();
    proxy.set_fate(move |request| {
        let bytes = request.bytes as u64;
        if !request.is_put() || sent.fetch_add(bytes, Ordering::SeqCst) + bytes < total - 12 * MIB {
            return Fate::Good;
        }
        is_held.store(true, Ordering::SeqCst);
        while !is_over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        Fate::Unheard
    });
    create_and(&world, || u64::from(held.load(Ordering::SeqCst)), 1, |child| child.kill().unwrap());
    over.store(true, Ordering::SeqCst);
    proxy.be_good();
    let mut objects = server.objects(&bucket);
    objects.retain(|(key, _)| key.contains("packs/d/"));
    let arrived = objects.iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert!(arrived < total && total - arrived <= UNDER_WAY, "{arrived} of {total} bytes have arrived");
    let read = |(key, _): &(String, u64)| (key.strip_prefix(PREFIX).unwrap().to_owned(), server.read(&bucket, key));
    assert_whole(&objects.iter().map(read).collect::<Vec<_>>());
    assert_goes_on(&world, arrived, total);
}

#[test]
fn killed_in_the_middle_sftp() {
    let server = sshd::shared();
    let wire = Wire::to(server.port());
    let world = world_with_sftp(server, wire.port());
    world.ok(["init"]);
    let total = 100 * MIB;
    fill(&world, total);
    wire.set_pace(40 * MIB);
    create_and(&world, || wire.passed(), total * 3 / 4, |child| child.kill().unwrap());
    wire.set_pace(0);
    let mut objects = packs_of(&world);
    objects.retain(|(path, _)| path.starts_with("packs/d/"));
    assert_whole(&objects);
    let arrived = objects.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_goes_on(&world, arrived, total);
}

#[test]
fn server_ends_and_starts_again() {
    // Servers of their own: others use the shared ones.
    let s3 = S3::start();
    let proxy = Proxy::to(s3.port());
    let world = world_with_s3(&proxy.url(), &s3.new_bucket());
    let left = || proxy.seen().iter().filter(|r| r.is_put()).map(|r| r.bytes as u64).sum();
    proxy.set_pace(20 * MIB, 0);
    survives(&world, left, || {
        s3.stop();
        thread::sleep(Duration::from_secs(2));
        s3.go_on();
    });
    let sshd = Sshd::start();
    let wire = Wire::to(sshd.port());
    wire.set_pace(20 * MIB);
    let world = world_with_sftp(&sshd, wire.port());
    survives(
        &world,
        || wire.passed(),
        || {
            sshd.stop();
            thread::sleep(Duration::from_secs(2));
            sshd.go_on();
        },
    );
}

#[test]
fn network_is_away_for_a_while() {
    let away = |wire: &Wire| {
        wire.set_away(true);
        thread::sleep(Duration::from_secs(4));
        wire.set_away(false);
    };
    let (s3, sshd) = (s3::shared(), sshd::shared());
    let wire = Wire::to(s3.port());
    wire.set_pace(20 * MIB);
    let world = world_with_s3(&format!("http://127.0.0.1:{}", wire.port()), &s3.new_bucket());
    survives(&world, || wire.passed(), || away(&wire));
    let wire = Wire::to(sshd.port());
    wire.set_pace(20 * MIB);
    survives(&world_with_sftp(sshd, wire.port()), || wire.passed(), || away(&wire));
}

/// What happens in the middle of an upload only delays it.
fn survives(world: &World, left: impl Fn() -> u64, happens: impl FnOnce()) {
    world.ok(["init"]);
    fill(world, 24 * MIB);
    let before = left();
    create_and(world, || left() - before, 8 * MIB, |_| happens()).expect(0);
    let restored = world.restore("latest", "out");
    picture::assert_same(&picture::of(&restored.join("data")), &picture::of(&world.work("data")));
    world.ok(["check", "--read-data"]);
}

/// The connection is cut after so many bytes, wherever that is: in the handshake, in a request, in an answer.
#[test]
fn cut_after_any_number_of_bytes() {
    let server = sshd::shared();
    let wire = Wire::to(server.port());
    let mut diary = Diary::new(world_with_sftp(server, wire.port()));
    diary.create().expect(0);
    let mut dice = Dice::new(3);
    // A run passes some 100 kB.
    for _ in 0..16 {
        wire.cut_after(dice.below(90_000));
        let ran = diary.create();
        // What cuts the very first connection may be a wrong address.
        assert!(ran.status == 0 || ran.status == 1, "status {}: {}", ran.status, ran.stderr);
        if ran.status == 1 {
            ran.names(["cannot", "127.0.0.1"]);
        }
    }
    wire.cut_after(u64::MAX / 2);
    diary.create().expect(0);
    diary.assert_sound();
    assert_whole(&packs_of(&diary.world));
}

#[test]
fn disk_of_the_server_is_full() {
    in_private_mounts("bad_luck::uploads::disk_of_the_server_is_full", || {
        let server = Sshd::start();
        let world = world_with_sftp(&server, server.port());
        mount_tmpfs(&world.at("repo"), 8 << 20);
        let mut diary = Diary::new(world);
        diary.create().expect(0);
        diary.world.write("data/large", Dice::new(8).bytes(20 << 20));
        diary.create_again().expect(1).names(["disk is full", "free some space"]);
        assert_eq!(diary.assert_restores(), 1);
        fs::remove_file(diary.world.work("data/large")).unwrap();
        // Making room takes room: for what a prune writes, and it clears away what the failed run left.
        diary.world.ok(["prune", "--instant"]);
        diary.create().expect(0);
        assert_eq!(diary.assert_sound(), 2);
    });
}
