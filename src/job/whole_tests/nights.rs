//! A year of nights: one database, changed at random, snapshot by snapshot; every generation comes back byte for byte,
//! also while prunes take others away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::*;
use crate::repo::testing::Dice;

/// A night of an application: mostly a few rows, now and then something that moves many pages.
fn work(db: &Connection, night: u32, dice: &mut Dice) {
    let mut text = |n: usize| crate::id::hex(&noise(dice.roll(1 << 30) as u64, n / 2));
    let (key, body) = (text(20), text(300));
    db.execute_batch("BEGIN").unwrap();
    for _ in 0..1 + dice.roll(30) {
        let sql = match dice.roll(10) {
            0..4 => format!("UPDATE t SET body = '{body}' || rowid, n = n + 1 WHERE rowid = {}", 1 + dice.roll(2000)),
            4..7 => {
                format!("INSERT INTO t (key, body, n) VALUES ('{key}' || {}, '{body}', {night})", dice.roll(1 << 20))
            }
            7 => format!("UPDATE t SET n = n + 1 WHERE key < '{}'", &key[..2]),
            8 => format!("DELETE FROM t WHERE rowid % 97 = {}", dice.roll(97)),
            _ => format!("INSERT INTO log VALUES ({night}, '{body}')"),
        };
        db.execute_batch(&sql).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    let more = match dice.roll(60) {
        0 => "VACUUM",
        1 => "DELETE FROM log; PRAGMA incremental_vacuum",
        2 => "DELETE FROM t WHERE rowid % 3 = 0",
        3 => "INSERT INTO t (key, body, n) SELECT key || n, body, 0 FROM t LIMIT 700",
        4 => "CREATE INDEX IF NOT EXISTS by_n ON t (n)",
        5 => "DROP INDEX IF EXISTS by_n",
        _ => "",
    };
    db.execute_batch(more).unwrap();
}

fn begin(path: &Path, page_bytes: u32, auto_vacuum: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA page_size = {page_bytes}; PRAGMA auto_vacuum = {auto_vacuum}; PRAGMA synchronous = OFF;
         CREATE TABLE t (key TEXT, body TEXT, n INTEGER); CREATE INDEX by_key ON t (key); CREATE TABLE log (n, line);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 1500)
         INSERT INTO t SELECT hex(i * 7919 % 1501) || i, hex(zeroblob(20)) || hex(i * 104729), 0 FROM c;"
    ))
    .unwrap();
    db
}

/// What became of each night: the snapshot, and the hash of the file.
type Nights = BTreeMap<u32, (SnapshotId, blake3::Hash)>;

fn run(nights: u32, page_bytes: u32, auto_vacuum: &str, seed: u64) -> (Arc<dyn Backend>, Nights) {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    init(store.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.db");
    let mut dice = Dice::new(seed);
    let mut made = Nights::new();
    drop(begin(&path, page_bytes, auto_vacuum));
    for night in 0..nights {
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "synchronous", "OFF").unwrap();
        work(&db, night, &mut dice);
        db.close().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        // A file that was written to just now would be waited for.
        file.set_modified(clock_ago(5)).unwrap();
        let hash = blake3::hash(&fs::read(&path).unwrap());
        made.insert(night, (create(&open(store.clone()).unwrap(), folder.path(), night).unwrap(), hash));
    }
    (store, made)
}

fn snapshots(repo: &Repository) -> BTreeMap<SnapshotId, crate::format::snapshot::Snapshot> {
    repo.read_snapshots().unwrap().0.into_iter().map(|named| (named.id, named.snapshot)).collect()
}

/// Rebuilds the database of each night that is left.
fn assert_all_come_back(store: &Arc<dyn Backend>, nights: &Nights) {
    let repo = open(store.clone()).unwrap();
    repo.load_index(&Reporter::silent()).unwrap();
    let snapshots = snapshots(&repo);
    for (night, (id, hash)) in nights {
        let mut tree = snapshots[id].tree;
        let database = loop {
            let nodes = repo.read_tree(&tree).unwrap();
            match nodes.first().unwrap() {
                crate::format::tree::Node { tree: Some(below), .. } => tree = *below,
                node => break node.database.clone().unwrap(),
            }
        };
        let file = tempfile::tempfile().unwrap();
        repo.materialise(&database.map, &file, &Reporter::silent()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Seek::rewind(&mut &file).map(|()| &file).unwrap(), &mut bytes)
            .unwrap();
        assert_eq!(blake3::hash(&bytes), *hash, "night {night}");
    }
}

#[test]
fn every_generation_of_400_nights_comes_back_byte_for_byte() {
    for (nights, page_bytes, auto_vacuum, seed) in
        [(400, 1024, "NONE", 1), (60, 512, "FULL", 2), (60, 8192, "INCREMENTAL", 3)]
    {
        let (store, mut nights) = run(nights, page_bytes, auto_vacuum, seed);
        assert_all_come_back(&store, &nights);
        // Others are taken away in any order; what the rest leans on stays.
        let mut dice = Dice::new(seed + 100);
        while nights.len() > 2 {
            let repo = open(store.clone()).unwrap();
            for _ in 0..nights.len().div_ceil(2) {
                if nights.len() > 2 {
                    let night = *nights.keys().nth(dice.roll(nights.len())).unwrap();
                    repo.bury_snapshot(nights.remove(&night).unwrap().0).unwrap();
                }
            }
            prune(&open(store.clone()).unwrap(), Policy::default(), dice.chance(50)).unwrap();
            prune(&open(store.clone()).unwrap(), Policy::default(), false).unwrap();
            assert_all_come_back(&store, &nights);
        }
        assert_sound(&open(store.clone()).unwrap());
    }
}

#[test]
fn a_night_costs_what_changed_in_its_pages() {
    let (store, nights) = run(12, 4096, "NONE", 7);
    let repo = open(store).unwrap();
    repo.load_index(&Reporter::silent()).unwrap();
    let snapshots = snapshots(&repo);
    let counts = |night: &(SnapshotId, blake3::Hash)| snapshots[&night.0].counts.clone();
    let (mut plain, mut stored) = (0, 0);
    for night in nights.values().skip(1) {
        plain += counts(night).bytes_new;
        stored += counts(night).bytes_stored;
    }
    let is_delta = |frame: u32, pack: &crate::format::index::IndexedPack| !pack.bases(frame).is_empty();
    let index = repo.index();
    let deltas = index.packs().iter().flat_map(|p| (0..p.frames.len() as u32).map(move |n| is_delta(n, p)));
    assert!(deltas.filter(|is| *is).count() > 5, "most nights store changed pages against older ones");
    assert!(stored * 4 < plain, "{stored} bytes stored for {plain} bytes of changed pages and metadata");
}

fn stored_bytes(store: &Arc<dyn Backend>) -> u64 {
    store.list("").unwrap().iter().map(|l| l.bytes).sum()
}

/// Some rows in a hundred are changed a little, wherever they lie.
fn edit(path: &Path, night: u32, dice: &mut Dice) {
    let mut batch = String::from("BEGIN;");
    for _ in 0..60 {
        let row = 1 + dice.roll(30_000);
        batch += &format!(
            "UPDATE t SET x = substr(x, 1, 40) || x'{:08x}{night:08x}' || substr(x, 49) WHERE id = {row};",
            row
        );
    }
    sql(path, false, &(batch + "COMMIT;"));
    File::options().write(true).open(path).unwrap().set_modified(clock_ago(5)).unwrap();
}

fn clock_ago(secs: u64) -> std::time::SystemTime {
    std::time::SystemTime::now() - Duration::from_secs(secs)
}

#[test]
fn thirty_nights_pruned_to_two_take_little_more_than_these_two() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.db");
    for part in 0..6 {
        sql(&path, false, &insert(5000, 77 + part));
    }
    let (store, fresh_store): (Arc<dyn Backend>, Arc<dyn Backend>) =
        (Arc::new(Memory::default()), Arc::new(Memory::default()));
    init(store.clone());
    init(fresh_store.clone());
    let mut dice = Dice::new(9);
    for night in 0..30 {
        edit(&path, night, &mut dice);
        create(&open(store.clone()).unwrap(), folder.path(), night).unwrap();
        if night >= 28 {
            create(&open(fresh_store.clone()).unwrap(), folder.path(), night).unwrap();
        }
    }
    prune(&open(store.clone()).unwrap(), keep_last(2), true).unwrap();
    prune(&open(store.clone()).unwrap(), keep_last(2), true).unwrap();
    assert_sound(&open(store.clone()).unwrap());
    let (pruned, fresh) = (stored_bytes(&store), stored_bytes(&fresh_store));
    for (name, store) in [("pruned", &store), ("fresh", &fresh_store)] {
        let sum = |folder: &str| store.list(folder).unwrap().iter().map(|l| l.bytes).sum::<u64>();
        println!("{name}: data {}, metadata {}, index {}", sum("packs/d/"), sum("packs/m/"), sum(layout::INDEX));
    }
    println!("pruned to {pruned} bytes; fresh {fresh}: {:.3}", pruned as f64 / fresh as f64);
    assert!(pruned * 100 <= fresh * 115, "{pruned} bytes, and {fresh} in a fresh repository");
}
