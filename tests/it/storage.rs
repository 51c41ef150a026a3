//! Bad luck in the store: wrong keys, hostile and damaged objects, full disks.

use std::fs;

use rusqlite::Connection;

use crate::picture::{self, Picture};
use crate::roles::make_bank;
use crate::world::{self, Dice, World};

const CHEAP: [&str; 4] = ["--kdf-memory", "19", "--kdf-time", "1"];

/// A world whose repository opens with the password "right".
fn with_password() -> World {
    let mut world = World::bare();
    world.set("SNAPSHOT_REPO", world.at("repo"));
    world.set("SNAPSHOT_PASSWORD", "right");
    world.ok(["init"].iter().chain(&CHEAP));
    world.write("data/a", "1");
    world.ok(["create", "data"]);
    world
}

fn slot_of(world: &World) -> std::path::PathBuf {
    let slots: Vec<_> = world.objects().into_iter().filter(|o| o.starts_with("keys/")).collect();
    assert_eq!(slots.len(), 1);
    world.at("repo").join(&slots[0])
}

#[test]
fn a_wrong_password_or_key() {
    let mut world = with_password();
    world.set("SNAPSHOT_PASSWORD", "wrong");
    for args in [&["list"][..], &["create", "data"], &["restore", "latest", "--target", "out"], &["check"], &["prune"]]
    {
        world.run(args).expect(12).names(["password"]);
    }
    assert!(!world.work("out").exists());
    let other = World::new();
    world.unset("SNAPSHOT_PASSWORD");
    world.set("SNAPSHOT_KEY_FILE", other.at("key"));
    world.run(["list"]).expect(12).names([other.at("key").to_str().unwrap()]);
    let no_key = world.write("no key", "nonsense");
    world.set("SNAPSHOT_KEY_FILE", no_key);
    world.run(["list"]).expect(1).names(["not a key file"]);
    world.set("SNAPSHOT_KEY_FILE", world.work("absent"));
    world.run(["list"]).expect(1).names(["absent"]);
}

#[test]
fn a_hostile_key_slot() {
    let world = with_password();
    let slot = slot_of(&world);
    let bytes = fs::read(&slot).unwrap();
    // CBOR: a map of 3 with the memory (19,456 KiB), the passes (1) and the lanes (4).
    let stated = [0xa3, 0, 0x19, 0x4c, 0, 1, 1, 2, 4];
    let at = bytes.windows(stated.len()).position(|window| window == stated).expect("the cost stands in the slot");
    let with = |cost: &[u8]| [&bytes[..at], cost, &bytes[at + stated.len()..]].concat();
    let greedy = [
        with(&[0xa3, 0, 0x1a, 0xff, 0xff, 0xff, 0xff, 1, 1, 2, 4]),
        with(&[0xa3, 0, 0x19, 0x4c, 0, 1, 0x1a, 0xff, 0xff, 0xff, 0xff, 2, 4]),
        with(&[0xa3, 0, 0x19, 0x4c, 0, 1, 1, 2, 0x19, 0xff, 0xff]),
        with(&[0xa3, 0, 0, 1, 0, 2, 0]),
        vec![0x9f; 60_000],
        vec![0; 70_000],
        Vec::new(),
    ];
    for (i, hostile) in greedy.iter().enumerate() {
        fs::write(&slot, hostile).unwrap();
        let ran = world.run(["list"]);
        assert!(ran.status == 1 || ran.status == 12, "{i}: status {}", ran.status);
        ran.names(["key"]);
        // Beside a good one it is no hindrance.
        let good = slot.with_file_name("ff".repeat(32));
        fs::write(&good, &bytes).unwrap();
        assert_eq!(world.list().len(), 1, "{i}");
        fs::remove_file(good).unwrap();
    }
}

#[test]
fn a_repository_of_an_unknown_version() {
    let world = with_password();
    for name in ["config", "config.bak"] {
        let path = world.at("repo").join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[4] = 77;
        fs::write(&path, bytes).unwrap();
    }
    let before = picture::of(&world.at("repo"));
    for args in [&["list"][..], &["create", "data"], &["prune"], &["check"], &["repair", "index"]] {
        world.run(args).expect(1).names(["version 77", "config"]);
    }
    world.run(["init"]).expect(1);
    picture::assert_same(&picture::of(&world.at("repo")), &before);
}

#[test]
fn a_place_that_is_no_repository() {
    let mut world = World::new();
    world.write("data/a", "1");
    fs::create_dir(world.at("empty")).unwrap();
    fs::create_dir(world.at("other")).unwrap();
    fs::write(world.at("other/file"), "mine").unwrap();
    for place in ["empty", "other", "absent", "absent/deep"] {
        world.set("SNAPSHOT_REPO", world.at(place));
        for args in [&["list"][..], &["create", "data"], &["restore", "latest", "--target", "out"], &["check"]] {
            world.run(args).expect(10).names([place]);
        }
    }
    assert!(!world.at("absent").exists() && fs::read_dir(world.at("empty")).unwrap().next().is_none());
    world.set("SNAPSHOT_REPO", world.at("other/file"));
    let status = world.run(["list"]).status;
    assert!(status == 10 || status == 1, "{status}");
    // A config of nobody's.
    fs::write(world.at("other/config"), "[nonsense]").unwrap();
    world.set("SNAPSHOT_REPO", world.at("other"));
    world.run(["list"]).expect(1).names(["config"]);
    world.run(["list", "--repo", "s3://bucket"]).expect(1);
}

/// A repository with every class of object, and the ids and contents of its two snapshots.
fn sample() -> (World, [(String, Picture); 2]) {
    let world = World::new();
    let mut dice = Dice::new(1);
    for i in 0..4 {
        world.write(format!("data/small {i}"), dice.bytes(3000));
    }
    world.write("data/sub/large", dice.bytes(3 << 20));
    let bank = world.work("data/bank.db");
    make_bank(&bank, "DELETE", 4096);
    let create = || {
        let created = world.json(["create", "data"]);
        (created["snapshot_id"].as_str().unwrap().to_owned(), picture::contents(&world.work("data")))
    };
    let first = create();
    world.write("data/small 1", dice.bytes(5000));
    Connection::open(&bank).unwrap().execute("DELETE FROM entry WHERE id < 50", []).unwrap();
    let second = create();
    // A third that is forgotten, so that there are a tomb and condemned packs.
    world.write("data/small 2", dice.bytes(5000));
    let third = create().0;
    world.ok(["forget", &third]);
    world.ok(["prune", "--max-unused", "0%"]);
    world.ok(["tag", &first.0, "--add", "first", "--pin"]);
    (world, [first, second])
}

/// Restores a snapshot; what is there must be exact, and if anything is absent the status must say so. Returns
/// whether all of it came back.
fn restores_exactly(world: &World, (id, expected): &(String, Picture), what: &str) -> bool {
    let ran = world.run(["restore", id, "--target", "out", "-q"]);
    assert!(matches!(ran.status, 0 | 1 | 4 | 5 | 12), "{what}: status {}: {}", ran.status, ran.stderr);
    let status = ran.status;
    let ran = ran.expect(status);
    let out = world.work("out/data");
    let found = if out.exists() { picture::contents(&out) } else { Picture::new() };
    for (name, content) in &found {
        assert_eq!(Some(content), expected.get(name), "{what}: {name}; {}", ran.stderr);
    }
    let is_whole = found == *expected;
    assert_eq!(status == 0, is_whole, "{what}: {}", ran.stderr);
    assert!(is_whole || !ran.stderr.is_empty(), "{what}");
    let _ = fs::remove_dir_all(world.work("out"));
    is_whole
}

/// Fails unless `check` sees that something is wrong, and names the object if it is there.
fn is_noticed(world: &World, object: &str, what: &str) {
    let ran = world.run(["check", "--read-data", "-q"]);
    assert!(matches!(ran.status, 1 | 4 | 12), "{what}: check ends with {}: {}", ran.status, ran.stderr);
    let name = object.rsplit('/').next().unwrap();
    let by_class = object.starts_with("keys/") && ran.stderr.contains("key");
    let is_named = ran.stderr.contains(&name[..name.len().min(8)]) || by_class;
    assert!(is_named || !world.at("repo").join(object).exists(), "{what}: {}", ran.stderr);
}

/// Breaks one object after the other in several ways, and looks what comes of it each time.
fn break_each(ways: &[(&str, &dyn Fn(&[u8]) -> Option<Vec<u8>>)]) {
    let (world, snapshots) = sample();
    let objects = world.objects();
    for class in ["config", "keys/", "packs/d/", "packs/m/", "index/", "snapshots/", "tombs/", "marks/", "live/"] {
        assert!(objects.iter().any(|o| o.starts_with(class)), "no {class} in {objects:?}");
    }
    for object in &objects {
        let path = world.at("repo").join(object);
        let good = fs::read(&path).unwrap();
        for (way, damage) in ways {
            match damage(&good) {
                Some(bad) => fs::write(&path, bad).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let what = format!("{object}, {way}");
            let whole = snapshots.iter().filter(|snapshot| restores_exactly(&world, snapshot, &what)).count();
            // What is gone and was needed by nothing is not missed, but for the config, of which there is a copy. A
            // snapshot that is gone can't be told from one that was pruned.
            let is_needed =
                object.starts_with("config") || (whole < snapshots.len() && !object.starts_with("snapshots/"));
            if damage(&good).is_some() || is_needed {
                is_noticed(&world, object, &what);
            }
            fs::write(&path, &good).unwrap();
        }
    }
    for snapshot in &snapshots {
        assert!(restores_exactly(&world, snapshot, "mended"));
    }
    world.ok(["check", "--read-data"]);
}

#[test]
fn an_object_with_a_flipped_bit() {
    let flip = |at: fn(usize) -> usize| {
        move |bytes: &[u8]| {
            let mut bad = bytes.to_vec();
            bad[at(bytes.len())] ^= 1;
            Some(bad)
        }
    };
    break_each(&[
        ("magic", &flip(|_| 1)),
        ("salt", &flip(|_| 20)),
        ("just after the header", &flip(|_| 50)),
        ("middle", &flip(|len| len / 2)),
        ("end", &flip(|len| len - 1)),
    ]);
}

#[test]
fn an_object_that_is_cut_emptied_or_gone() {
    break_each(&[
        ("cut in half", &|bytes| Some(bytes[..bytes.len() / 2].to_vec())),
        ("emptied", &|_| Some(Vec::new())),
        ("zeroed", &|bytes| Some(vec![0; bytes.len()])),
        ("lengthened", &|bytes| Some([bytes, &[0; 10]].concat())),
        ("deleted", &|_| None),
    ]);
}

#[test]
fn objects_that_changed_places() {
    let (world, snapshots) = sample();
    let objects = world.objects();
    for pair in objects.windows(2) {
        let [one, other] = [0, 1].map(|i| world.at("repo").join(&pair[i]));
        let bytes = [fs::read(&one).unwrap(), fs::read(&other).unwrap()];
        fs::write(&one, &bytes[1]).unwrap();
        fs::write(&other, &bytes[0]).unwrap();
        for snapshot in &snapshots {
            restores_exactly(&world, snapshot, &format!("{pair:?} swapped"));
        }
        let status = world.run(["check", "-q"]).status;
        assert!(matches!(status, 0 | 1 | 4 | 10 | 12), "{pair:?} swapped: check ends with {status}");
        fs::write(&one, &bytes[0]).unwrap();
        fs::write(&other, &bytes[1]).unwrap();
    }
    world.ok(["check", "--read-data"]);
}

#[test]
fn latest_does_not_hide_that_a_newer_one_is_unreadable() {
    let (world, [_, newest]) = sample();
    let path = world.at("repo/snapshots").join(&newest.0);
    fs::write(&path, "nonsense").unwrap();
    world.ok(["restore", "latest", "--target", "out"]).names([&newest.0[..8], "newer"]);
    world.run(["list"]).expect(1).names([&newest.0[..8]]);
    world.run(["prune", "--grace", "0s"]).expect(1);
}

#[test]
fn a_full_disk_under_the_repository() {
    world::in_private_mounts("storage::a_full_disk_under_the_repository", || {
        let mut world = World::bare();
        let disk = world.at("disk");
        world::mount_tmpfs(&disk, 8 << 20);
        world.use_repository("disk/repo", "key");
        world.ok(["init"]);
        world.write("data/a", Dice::new(1).bytes(1 << 20));
        world.ok(["create", "data"]);
        let expected = picture::of(&world.work("data"));
        world.write("more/b", Dice::new(2).bytes(20 << 20));
        for _ in 0..2 {
            let ran = world.run(["create", "data", "more"]).expect(1);
            assert!(ran.stderr.contains("space"), "{}", ran.stderr);
        }
        assert_eq!(world.list().len(), 1);
        picture::assert_same(&picture::of(&world.restore("latest", "out").join("data")), &expected);
        world.ok(["check", "--read-data"]);
        // Full to the last byte: reading goes on, and space can still be freed.
        let _ = fs::write(world.at("disk/filler"), vec![1; 8 << 20]);
        picture::assert_same(&picture::of(&world.restore("latest", "again").join("data")), &expected);
        world.run(["create", "more"]).expect(1);
        fs::remove_file(world.at("disk/filler")).unwrap();
        world.ok(["prune", "--instant"]);
        world.write("data/a", Dice::new(3).bytes(2 << 20));
        world.ok(["create", "data"]);
        world.ok(["check", "--read-data"]);
    });
}

#[test]
fn a_full_disk_at_the_target() {
    world::in_private_mounts("storage::a_full_disk_at_the_target", || {
        let world = World::new();
        let mut dice = Dice::new(1);
        for i in 0..20 {
            world.write(format!("data/{i}"), dice.bytes(1 << 20));
        }
        make_bank(&world.work("data/bank.db"), "DELETE", 4096);
        world.ok(["create", "data"]);
        let expected = picture::contents(&world.work("data"));
        world::mount_tmpfs(&world.work("out"), 6 << 20);
        let ran = world.run(["restore", "latest", "--target", "out"]);
        assert!(ran.status == 1 || ran.status == 5, "{}: {}", ran.status, ran.stderr);
        assert!(ran.stderr.contains("space"), "{}", ran.stderr);
        if world.work("out/data").exists() {
            let found = picture::contents(&world.work("out/data"));
            assert!(found.len() < expected.len());
            for (name, content) in found {
                assert_eq!(Some(&content), expected.get(&name), "{name}");
            }
        }
        picture::assert_same(&picture::contents(&world.restore("latest", "elsewhere").join("data")), &expected);
    });
}

#[test]
fn a_full_disk_under_the_cache() {
    world::in_private_mounts("storage::a_full_disk_under_the_cache", || {
        let mut world = World::new();
        world::mount_tmpfs(&world.at("small"), 1 << 20);
        world.set("XDG_CACHE_HOME", world.at("small"));
        let path = world.write("app/data.db", "");
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch(
            "CREATE TABLE t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
             INSERT INTO t SELECT randomblob(1000) FROM n",
        )
        .unwrap();
        // The database is in use and larger than what waits in memory: it is stored while its transaction is held.
        world.run(["create", "app"]).expect(0).names([world.at("small").to_str().unwrap(), "no room"]);
        assert_eq!(world.list().len(), 1);
        world.ok(["create", "app", "--cache-dir", world.at("roomy").to_str().unwrap()]);
        drop(db);
        world.run(["check", "--databases"]).expect(1).names(["space"]);
        world.ok(["check", "--databases", "--cache-dir", world.at("roomy").to_str().unwrap()]);
        for cache in ["roomy", "small/snapshot"] {
            // But for what is remembered of the repository.
            let left = fs::read_dir(world.at(cache)).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "seen");
            assert_eq!(left.count(), 0, "nothing is left lying about in {cache}");
        }
    });
}

#[test]
fn a_target_that_can_not_be_written() {
    let world = World::new();
    world.write("data/a", "1");
    world.write("file", "1");
    world.ok(["create", "data"]);
    for target in ["file", "file/below", "/proc/nowhere"] {
        world.run(["restore", "latest", "--target", target]).expect(1).names([target]);
    }
    assert_eq!(fs::read(world.work("file")).unwrap(), b"1");
}

#[test]
fn a_link_at_the_target_is_not_followed() {
    let world = World::new();
    world.write("data/sub/a", "1");
    world.ok(["create", "data"]);
    fs::create_dir_all(world.work("out/data")).unwrap();
    fs::create_dir(world.work("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", world.work("out/data/sub")).unwrap();
    for options in [&["--overwrite", "always"][..], &["--force"]] {
        world.run(["restore", "latest", "--target", "out"].iter().chain(options));
        assert_eq!(fs::read_dir(world.work("elsewhere")).unwrap().count(), 0, "{options:?}");
    }
}
