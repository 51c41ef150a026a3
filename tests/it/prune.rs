//! Prunes of real databases over many nights, and what the command says.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use crate::world::{Dice, World};

const ROWS: u64 = 3000;
const NIGHTS: u64 = 12;

/// A row's text: half of it words, half of it noise.
fn text(dice: &mut Dice) -> String {
    let noise: String = dice.bytes(350).iter().map(|b| format!("{b:02x}")).collect();
    format!("{}{noise}", "the quick brown fox jumps over the lazy dog; ".repeat(15))
}

fn night(path: &Path, dice: &mut Dice, rows: u64) {
    let mut db = Connection::open(path).unwrap();
    let work = db.transaction().unwrap();
    for _ in 0..rows {
        let row = (dice.below(ROWS).cast_signed(), text(dice));
        work.execute("INSERT INTO notes VALUES (?1, ?2) ON CONFLICT DO UPDATE SET text = excluded.text", row).unwrap();
    }
    work.commit().unwrap();
}

fn pack_bytes(world: &World) -> u64 {
    let packs = world.objects().into_iter().filter(|path| path.starts_with("packs/"));
    packs.map(|path| fs::metadata(world.at("repo").join(path)).unwrap().len()).sum()
}

#[test]
fn nights_of_a_database_pruned_to_two() {
    let (world, mut dice) = (World::new(), Dice::new(11));
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    Connection::open(&path).unwrap().execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)", []).unwrap();
    night(&path, &mut dice, 3 * ROWS);
    let prune = ["prune", "--keep-last", "2", "--grace", "0s", "--max-unused", "0%"];
    for n in 1..=NIGHTS {
        night(&path, &mut dice, 150);
        fs::copy(&path, world.work(format!("kept-{n}.db"))).unwrap();
        world.ok(["create", "app"]);
        // What a prune left is what the next night builds on.
        if n % 3 == 0 {
            world.ok(prune);
            world.ok(["check", "--read-data", "--databases"]);
        }
        let restored = world.restore("latest", &format!("out-{n}"));
        assert!(fs::read(restored.join("app/data.db")).unwrap() == fs::read(&path).unwrap(), "night {n}");
    }
    for _ in 0..2 {
        world.ok(prune);
    }
    world.ok(["check", "--read-data", "--databases"]);
    for back in 0..2 {
        let restored = world.restore(&format!("latest~{back}"), &format!("last-{back}"));
        let kept = fs::read(world.work(format!("kept-{}.db", NIGHTS - back))).unwrap();
        assert!(fs::read(restored.join("app/data.db")).unwrap() == kept, "{back} nights back");
    }

    let fresh = World::new();
    fs::create_dir(fresh.work("app")).unwrap();
    for n in [NIGHTS - 1, NIGHTS] {
        fs::copy(world.work(format!("kept-{n}.db")), fresh.work("app/data.db")).unwrap();
        fresh.ok(["create", "app"]);
    }
    let (pruned, fresh) = (pack_bytes(&world), pack_bytes(&fresh));
    println!("{pruned} bytes; {fresh} in a fresh repository");
    assert!(pruned * 100 < fresh * 115, "{pruned} bytes, and {fresh} in a fresh repository");
}

#[test]
fn what_it_costs_is_told_before_it_is_done() {
    let world = World::new();
    for n in 0..3u8 {
        world.write("data/file", Dice::new(u64::from(n)).bytes(100_000));
        world.ok(["create", "data"]);
    }
    let prune = ["prune", "--keep-last", "1"];
    let dry = [&prune[..], &["--dry-run"]].concat();
    let plan = world.json(&dry);
    assert_eq!((&plan["dry_run"], &plan["plan"]["data"]["unused"]["packs"]), (&true.into(), &2.into()));
    assert_eq!(plan["plan"]["data"]["total"]["packs"], 3);
    assert_eq!(plan["plan"]["index"]["files"], 3);
    assert!(plan["plan"]["requests"]["put"].as_u64().unwrap() >= 3, "{plan}");
    assert!(plan["free_after"].is_string());
    let table = world.ok(&dry).text();
    for words in ["DATA PACKS", "not needed", "requests, about", "free with a prune after"] {
        assert!(table.contains(words), "{table}");
    }
    // The plan is what was asked for: being quiet doesn't hide it.
    assert_eq!(world.ok([&["-q"], &dry[..]].concat()).text(), table);
    assert_eq!(world.list().len(), 3);
    let done = world.ok(prune);
    let (cost, result) = (done.text().find("DATA PACKS").unwrap(), done.text().find("marked for deletion").unwrap());
    assert!(cost < result, "{}", done.text());
    let again = world.ok([&["-q"], &prune[..]].concat());
    assert!(again.stdout.is_empty() && again.stderr.is_empty());
    let later = world.json(["prune", "--grace", "0s", "--dry-run"]);
    assert_eq!(
        (&later["plan"]["data"]["delete"]["packs"], &later["free_after"]),
        (&2.into(), &serde_json::Value::Null)
    );
}

#[test]
fn limits_that_leave_something_say_so() {
    let world = World::new();
    let mut dice = Dice::new(5);
    for n in 0..20 {
        world.write(format!("data/{n}"), dice.bytes(200_000));
    }
    world.ok(["create", "data"]);
    (0..19).for_each(|n| fs::remove_file(world.work(format!("data/{n}"))).unwrap());
    world.ok(["create", "data"]);
    let plan = |limits: &[&str]| world.json([&["prune", "--keep-last", "1", "--dry-run"], limits].concat());
    let of = |limits: &[&str]| {
        let plan = plan(limits);
        (plan["packs_repacked"].as_u64().unwrap(), plan["over_budget"].as_bool().unwrap())
    };
    assert_eq!(of(&["--max-unused", "0"]), (1, false));
    assert_eq!(of(&["--max-unused", "0%"]), (1, false));
    assert_eq!(of(&["--max-unused", "99%"]), (0, false));
    assert_eq!(of(&["--max-unused", "100%"]), (0, false));
    assert_eq!(of(&["--max-unused", "unlimited"]), (0, false));
    // A budget below the one pack that is worth it.
    assert_eq!(of(&["--max-repack", "1M"]), (0, true));
    assert_eq!(of(&["--max-repack", "0"]), (0, true));
    assert_eq!(of(&["--max-repack", "100M"]), (1, false));
    let told = world.ok(["prune", "--keep-last", "1", "--max-repack", "1M", "--dry-run"]).text();
    assert!(told.contains("--max-repack allowed"), "{told}");
    assert!(plan(&["--max-repack", "1M"])["bytes_unused_kept"].as_u64().unwrap() > 3_500_000);
}
