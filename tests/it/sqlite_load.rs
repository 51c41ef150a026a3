//! Snapshots of an application that is at work all the time: every one is whole, and the application never notices.
//!
//! `./test` takes some in each way the database is run; `SNAPSHOT_TEST_ALL_LOADS=1 ./test --test it sqlite_load --
//! --nocapture --test-threads 1` takes 100 in each, and says what the writer did meanwhile.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use crate::roles::{FIGURES, PACE, Role, check_bank, make_bank, upload};
use crate::world::{Ran, World};

/// Set for the whole of it.
const ALL: &str = "SNAPSHOT_TEST_ALL_LOADS";
/// Snapshots in a repository, and repositories one after the other: the application's directory grows with its uploads.
const SNAPSHOTS: (usize, usize) = (8, 1);
/// With [`ALL`].
const ALL_SNAPSHOTS: (usize, usize) = (10, 10);
/// Rows to begin with, of some 600 bytes each: reading them takes as long as many transactions.
const ROWS: u32 = 12_000;

/// What the writers did.
#[derive(Default)]
struct Figures {
    commits: u64,
    longest_ms: u64,
    snapshots: usize,
    uploads_seen: i64,
}

/// Fails unless the database was captured. A file may be caught in the middle of its upload: no row refers to it yet.
fn expect_snapshot(created: Ran) {
    let is_upload = |line: &str| line.contains("/uploads/") && line.contains("it changed while it was read");
    if created.status == 3 {
        assert!(created.stderr.lines().filter(|line| line.contains("app/")).all(is_upload), "{}", created.stderr);
    } else {
        let created = created.expect(0).json();
        assert_eq!((&created["databases"], &created["unverified"]), (&1.into(), &0.into()));
    }
}

/// Fails unless everything that the database knows of is there and right; returns how many uploads it is.
fn check_application(app: &Path) -> i64 {
    let path = app.join("data.db");
    for sidecar in ["data.db-wal", "data.db-shm", "data.db-journal"] {
        assert!(!app.join(sidecar).exists(), "{sidecar}");
    }
    check_bank(&path);
    let db = Connection::open(&path).unwrap();
    let mut rows = db.prepare("SELECT number, name FROM upload ORDER BY number").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?))).unwrap();
    let mut seen = 0;
    for row in rows {
        let (number, name) = row.unwrap();
        assert_eq!(i64::from(number), seen, "no row is missing");
        let content = fs::read(app.join("uploads").join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!((name, content) == upload(number));
        seen += 1;
    }
    seen
}

fn round(mode: &str, pace: Option<&str>, snapshots: usize, figures: &mut Figures) {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, mode, 4096);
    let db = Connection::open(&path).unwrap();
    db.execute_batch(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO entry(text) SELECT hex(randomblob(190)) FROM n"
    ))
    .unwrap();
    drop(db);
    let said = world.at("figures");
    let mut variables = vec![(FIGURES, said.to_str().unwrap())];
    variables.extend(pace.map(|pace| (PACE, pace)));
    let writer = Role::Serve.start_with(&path, &variables);
    for _ in 0..snapshots {
        expect_snapshot(world.run(["create", "app", "--json", "-q"]));
    }
    writer.end();
    let said = fs::read_to_string(said).unwrap();
    let (commits, longest_ms) = said.trim_end().split_once(' ').unwrap();
    figures.commits += commits.parse::<u64>().unwrap();
    figures.longest_ms = figures.longest_ms.max(longest_ms.parse().unwrap());
    let mut seen = Vec::new();
    for i in (0..snapshots).rev() {
        let out = world.restore(&format!("latest~{i}"), "out");
        seen.push(check_application(&out.join("app")));
        fs::remove_dir_all(out).unwrap();
    }
    assert!(seen.is_sorted() && seen.first() < seen.last(), "the writer goes on, and so do the snapshots: {seen:?}");
    figures.snapshots += seen.len();
    figures.uploads_seen += seen.last().unwrap();
    world.ok(["check", "--read-data", "--databases"]);
}

fn under_load(mode: &str, pace: Option<&str>) {
    let (snapshots, rounds) = if std::env::var_os(ALL).is_some() { ALL_SNAPSHOTS } else { SNAPSHOTS };
    let mut figures = Figures::default();
    for _ in 0..rounds {
        round(mode, pace, snapshots, &mut figures);
    }
    let Figures { commits, longest_ms, snapshots, uploads_seen } = figures;
    println!(
        "{mode}, {} transactions a second: {commits} committed, none failed, the longest took {longest_ms} ms; \
         {snapshots} snapshots, all sound, with up to {uploads_seen} uploads in all",
        pace.unwrap_or("as many as possible"),
    );
}

#[test]
fn wal_as_fast_as_it_can() {
    under_load("WAL", None);
}

#[test]
fn wal_at_a_steady_pace() {
    under_load("WAL", Some("50"));
}

#[test]
fn rollback_journal_as_fast_as_it_can() {
    under_load("DELETE", None);
}

#[test]
fn rollback_journal_at_a_steady_pace() {
    under_load("DELETE", Some("50"));
}
