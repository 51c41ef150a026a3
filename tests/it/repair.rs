//! Damage and what the repairs make of it, as a user meets it.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::Value;

use crate::picture;
use crate::roles::make_bank;
use crate::world::{Dice, World};

/// Two generations: the second has one file changed, one file less, and some pages of the database changed.
fn two_generations() -> World {
    let world = World::new();
    let mut dice = Dice::new(7);
    for name in ["same", "changed", "gone"] {
        world.write(format!("data/{name}"), dice.bytes(200_000));
    }
    make_bank(&world.work("data/bank.db"), "DELETE", 4096);
    world.ok(["create", "data"]);
    world.write("data/changed", dice.bytes(200_000));
    fs::remove_file(world.work("data/gone")).unwrap();
    let db = Connection::open(world.work("data/bank.db")).unwrap();
    db.execute("UPDATE entry SET text = hex(randomblob(100)) WHERE id < 20", []).unwrap();
    drop(db);
    world.ok(["create", "data"]);
    world
}

/// The data packs, the older one first.
fn data_packs(world: &World) -> Vec<PathBuf> {
    let mut packs: Vec<_> =
        world.objects().into_iter().filter(|o| o.starts_with("packs/d/")).map(|o| world.at("repo").join(o)).collect();
    packs.sort_by_key(|p| fs::metadata(p).unwrap().modified().unwrap());
    packs
}

/// Flips bits in the middle of a pack: within a file's only frame.
fn damage(pack: &PathBuf) {
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(pack, bytes).unwrap();
}

fn steps(document: &Value, field: &str) -> Vec<String> {
    document[field].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_damaged_pack_is_salvaged_step_by_step() {
    let world = two_generations();
    let first = world.list()[0]["id"].as_str().unwrap().to_owned();
    let whole = picture::contents(&world.restore(&first, "whole").join("data"));
    damage(&data_packs(&world)[0]);
    let found = world.json_of(4, ["check", "--read-data"]);
    let wanted = ["snapshot repair packs", "snapshot create", "snapshot repair snapshots"];
    assert_eq!(steps(&found, "what_to_do"), wanted);
    let text = world.run(["check", "--read-data"]).expect(4).text();
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("what to do: `snapshot repair packs`, then `snapshot create`, then"), "{text}");

    let repaired = world.json_of(1, ["repair", "packs"]);
    assert!(repaired["packs_condemned"] == 1 && repaired["damaged_blobs"] == 1, "{repaired}");
    assert!(repaired["salvaged_blobs"].as_u64().unwrap() >= 2, "{repaired}");
    assert_eq!(steps(&repaired, "next")[0], "snapshot create");
    world.ok(["create", "data"]);
    let lost = world.run(["check", "--read-data"]);
    // If the frame held what the source still has, that is all; else one file, or the database, is lost.
    if lost.status != 0 {
        let text = world.run(["repair", "snapshots"]).expect(1).text();
        assert!(text.contains("lost: data/") && text.contains("next: `snapshot repair snapshots --forget`"), "{text}");
        let forgotten = world.json_of(1, ["repair", "snapshots", "--forget"]);
        assert_eq!(forgotten["affected"][0]["forgotten"], true);
    }
    world.ok(["check", "--read-data"]);
    let out = world.restore("latest", "latest");
    picture::assert_same(&picture::contents(&out.join("data")), &picture::contents(&world.work("data")));
    let oldest = world.list()[0]["id"].as_str().unwrap().to_owned();
    let left = picture::contents(&world.restore(&oldest, "left").join("data"));
    assert!(left.len() + 1 >= whole.len() && left.iter().all(|(name, content)| whole.get(name) == Some(content)));
    world.ok(["prune", "--instant"]);
    let clean = world.ok(["check", "--read-data"]);
    assert!(clean.stderr.is_empty(), "{}", clean.stderr);
    assert_eq!(world.json(["repair", "packs"])["packs_condemned"], 0);
}

#[test]
fn a_pack_that_is_gone_costs_what_is_listed() {
    let world = two_generations();
    let ids: Vec<_> = world.list().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    fs::remove_file(&data_packs(&world)[1]).unwrap();
    world.run(["check"]).expect(4).names(["repair index"]);
    world.ok(["repair", "index"]);
    let before = world.objects();
    let dry = world.json_of(1, ["repair", "snapshots", "--dry-run"]);
    assert_eq!(world.objects(), before);
    let lost = dry["affected"][0]["lost"].as_array().unwrap();
    let paths: Vec<_> = lost.iter().map(|l| (l["path"].as_str().unwrap(), l["kind"].as_str().unwrap())).collect();
    assert_eq!(paths, [("data/bank.db", "database"), ("data/changed", "file")]);
    assert!(!lost[0]["lost_pages"].as_array().unwrap().is_empty());
    let kept = world.json_of(1, ["repair", "snapshots", "--keep-databases", "other-generations"]);
    assert_eq!(kept["affected"][0]["snapshot_id"], *ids[1]);
    assert_eq!(kept["affected"][0]["lost"][0]["kept_as"], "data/bank.db.salvaged");
    let salvaged = kept["affected"][0]["salvaged_id"].as_str().unwrap().to_owned();
    let out = world.restore(&salvaged, "salvaged").join("data");
    let names: Vec<_> = picture::contents(&out).into_keys().collect();
    assert_eq!(names, ["bank.db.salvaged", "same"]);
    let latest = world.json(["ls", "latest"]);
    assert_eq!(latest["snapshot_id"], *salvaged);
    world.run(["prune"]).expect(1);
    world.run(["repair", "snapshots", "--forget"]).expect(1);
    world.ok(["prune"]);
    world.ok(["check", "--read-data"]);
    assert!(world.ok(["repair", "snapshots"]).text().contains("nothing is lost"));
}

#[test]
fn an_index_file_that_is_gone_hinders_no_reader() {
    let world = two_generations();
    let data = picture::contents(&world.work("data"));
    for index in world.objects().into_iter().filter(|o| o.starts_with("index/")) {
        let path = world.at("repo").join(&index);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let out = format!("without {}", &index[6..14]);
        world.ok(["restore", "latest", "--target", &out]).names(["repair index"]);
        picture::assert_same(&picture::contents(&world.work(&out).join("data")), &data);
        world.ok(["ls", "latest~1"]);
        let dumped = world.ok(["dump", "latest", "data/same"]).stdout;
        assert_eq!(dumped, fs::read(world.work("data/same")).unwrap());
        fs::write(&path, bytes).unwrap();
    }
    let quiet = world.ok(["ls", "latest"]);
    assert!(quiet.stderr.is_empty(), "{}", quiet.stderr);
}

#[test]
fn a_snapshot_with_a_flipped_bit_is_put_right_and_one_cut_short_is_given_up() {
    let world = two_generations();
    let ids: Vec<_> = world.list().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    let path = world.at("repo/snapshots").join(&ids[1]);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 4;
    fs::write(&path, &bad).unwrap();
    world.run(["check"]).expect(4).names(["repair snapshots"]);
    world.ok(["repair", "snapshots"]);
    assert_eq!(fs::read(&path).unwrap(), good);
    world.ok(["check"]);
    fs::write(&path, &good[..100]).unwrap();
    world.run(["repair", "snapshots"]).expect(1).names([&ids[1][..8], "--forget"]);
    world.run(["prune"]).expect(1);
    world.run(["repair", "snapshots", "--forget"]).expect(1);
    assert_eq!(world.list().len(), 1);
    world.ok(["prune"]);
    world.run(["repair", "snapshots", "--forget"]).expect(0);
    world.ok(["check"]);
}

#[test]
fn pages_that_another_generation_has_heal_the_others() {
    let world = World::new();
    let path = world.write("data/app.db", "");
    let db = Connection::open(&path).unwrap();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)";
    db.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x); {rows} INSERT INTO t SELECT i, hex(randomblob(40)) FROM n"
    ))
    .unwrap();
    drop(db);
    world.ok(["create", "data"]);
    Connection::open(&path).unwrap().execute("UPDATE t SET x = hex(randomblob(40)) WHERE id % 900 = 0", []).unwrap();
    world.ok(["create", "data"]);
    let states: Vec<_> = ["latest~1", "latest"].map(|s| world.ok(["dump", s, "data/app.db"]).stdout).into();

    // The first frame is the segment with the first 256 pages.
    let pack = &data_packs(&world)[0];
    let mut bytes = fs::read(pack).unwrap();
    bytes[30_000] ^= 0x10;
    fs::write(pack, bytes).unwrap();
    world.run(["dump", "latest", "data/app.db"]).expect(1);
    world.run(["repair", "packs"]).expect(1);
    world.ok(["create", "data"]);
    let would = world.json_of(1, ["repair", "snapshots", "--dry-run"]);
    let done = world.json_of(1, ["repair", "snapshots"]);
    assert_eq!(would["healed_pages"], done["healed_pages"]);
    assert!(done["healed_pages"].as_u64().unwrap() > 150, "{done}");

    // All that the second generation needs is in the third. The first lacks the pages that only it had.
    let second = world.list().iter().find(|s| s["generation"] == 2).unwrap()["id"].as_str().unwrap().to_owned();
    assert!(world.ok(["dump", &second, "data/app.db"]).stdout == states[1]);
    let affected = done["affected"].as_array().unwrap();
    assert_eq!(affected.len(), 1, "{done}");
    let lost = &affected[0]["lost"][0];
    let ranges = lost["lost_pages"].as_array().unwrap().len();
    assert!(affected[0]["generation"] == 1 && (1..30).contains(&ranges), "{lost}");
    assert_eq!(world.json_of(1, ["repair", "snapshots"])["healed_pages"], 0);
}
