//! A database restored over another: whatever lies beside it, and killed at every step.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tempfile::TempDir;

use super::tests::{PAGE, names, options, restored};
use super::*;
use crate::job::sample::{Sample, noise};
use crate::source::steps::kill_at;

/// What the process that is killed is told: the step, and how it restores.
const STEP: &str = "SNAPSHOT_TEST_STEP";
const HOW: &str = "SNAPSHOT_TEST_HOW";
const FOLDER: &str = "SNAPSHOT_TEST_FOLDER";

const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn make(path: &Path, mode: &str, rows: u32) -> Connection {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "page_size", PAGE as u32).unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch("PRAGMA synchronous = off; CREATE TABLE t (id INTEGER PRIMARY KEY, v)").unwrap();
    for id in 0..rows {
        db.execute("INSERT INTO t VALUES (?1, ?2)", (id, noise(id as u8, 300))).unwrap();
    }
    db
}

/// Everything in a database, which must be sound.
#[track_caller]
fn rows(path: &Path) -> Vec<(u32, Vec<u8>)> {
    let db = Connection::open(path).unwrap();
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{}", path.display());
    let mut all = db.prepare("SELECT id, v FROM t ORDER BY id").unwrap();
    let all = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    all.collect::<Result<_, _>>().unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        if beside(from, suffix).exists() {
            fs::copy(beside(from, suffix), beside(to, suffix)).unwrap();
        }
    }
}

/// What a program that was killed left of a database `name` in `folder`: in WAL mode, the last of it only in the log;
/// or in the middle of a transaction, part of which is in the file.
fn leave(folder: &Path, name: &str, how: &str) {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join(name);
    let db = make(&path, if how == "log" || how == "clean WAL" { "WAL" } else { "DELETE" }, 150);
    match how {
        "log" => {
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
            db.execute_batch("DELETE FROM t WHERE id % 2 = 0; UPDATE t SET v = randomblob(600) WHERE id < 40").unwrap();
        }
        "journal" => {
            db.pragma_update(None, "cache_size", 5).unwrap();
            db.execute_batch("PRAGMA synchronous = full; BEGIN; UPDATE t SET v = randomblob(300)").unwrap();
        }
        _ => db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop).unwrap(),
    }
    if how == "clean" || how == "clean WAL" {
        db.close().unwrap();
    }
    copy(&path, &folder.join(name));
    assert_eq!(beside(&folder.join(name), "-wal").exists(), how == "log");
    assert_eq!(beside(&folder.join(name), "-journal").exists(), how == "journal");
}

/// The ways to restore over something.
fn ways(target: &Path) -> BTreeMap<&'static str, Options> {
    let base = options(target);
    BTreeMap::from([
        ("in place", Options { in_place: true, ..base.clone() }),
        ("in place, deleting", Options { delete: true, ..base.clone() }),
        ("always", Options { overwrite: Some(Overwrite::Always), ..base.clone() }),
        ("if changed", Options { overwrite: Some(Overwrite::IfChanged), ..base.clone() }),
        ("in place, always", Options { in_place: true, overwrite: Some(Overwrite::Always), ..base.clone() }),
        ("forced", Options { force: true, ..base }),
    ])
}

fn new_database(dir: &Path) -> Vec<u8> {
    let path = dir.join("new.db");
    let db = make(&path, "WAL", 100);
    db.execute_batch("UPDATE t SET v = x'6e6577' WHERE id % 9 = 0").unwrap();
    db.close().unwrap();
    fs::read(&path).unwrap()
}

/// A snapshot of one database, and the file that it is of.
fn snapshot_of_new(dir: &Path) -> (Sample, Selected, Vec<u8>) {
    let new = new_database(dir);
    let mut sample = Sample::new();
    let pages = sample.pages(PAGE, &new);
    let node = sample.database("data.db", PAGE, &new, &pages);
    let selected = sample.snapshot(vec![node]);
    (sample, selected, new)
}

#[test]
fn nothing_that_lies_beside_blends_in() {
    let temp = TempDir::new().unwrap();
    let (sample, selected, new) = snapshot_of_new(temp.path());
    let other = temp.path().join("other");
    leave(&other, "log.db", "log");
    leave(&other, "journal.db", "journal");
    let mut cases = 0;
    for main in ["none", "clean", "clean WAL", "log", "journal", "same", "empty", "rubbish"] {
        for left in [&[][..], &["-wal"], &["-shm"], &["-journal"], &SIDECARS] {
            for way in ways(Path::new("")).into_keys() {
                let target = temp.path().join(format!("target {cases}"));
                let path = target.join("data.db");
                fs::create_dir(&target).unwrap();
                match main {
                    "none" => {}
                    "same" => fs::write(&path, &new).unwrap(),
                    "empty" => fs::write(&path, b"").unwrap(),
                    "rubbish" => fs::write(&path, noise(3, 9000)).unwrap(),
                    how => leave(&target, "data.db", how),
                }
                for suffix in left {
                    // Those of databases that are not here.
                    let from = if *suffix == "-journal" { "journal.db" } else { "log.db" };
                    fs::copy(beside(&other.join(from), suffix), beside(&path, suffix)).unwrap();
                }
                let whole = if way == "always" { selected.clone() } else { at_file(&selected) };
                restored(&sample, &whole, &ways(&target)[way]);
                let what = format!("{main}, {left:?}, {way}");
                assert!(fs::read(&path).unwrap() == new, "{what}");
                let left: Vec<_> = names(&target).into_iter().filter(|name| name != "data.db").collect();
                assert!(left.is_empty() || (main == "same" && left == ["data.db-shm"]), "{what}: {left:?}");
                assert_eq!(rows(&path).len(), 100, "{what}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 8 * 5 * 6);
}

/// The database alone.
fn at_file(selected: &Selected) -> Selected {
    Selected { sub_path: vec![b"data.db".to_vec()], ..selected.clone() }
}

/// What the process does that is killed.
fn die(step: &str) {
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let (sample, selected, _) = snapshot_of_new(&TempDir::new_in(&folder).unwrap().keep());
    let options = ways(&folder.join("target")).remove(&*env::var(HOW).unwrap()).unwrap();
    kill_at(step.parse().unwrap());
    run(&sample.repo, &selected, &options, &Reporter::silent()).unwrap();
}

#[test]
fn killed_at_every_step_it_is_the_old_database_or_the_new() {
    if let Ok(step) = env::var(STEP) {
        return die(&step);
    }
    let this = "job::restore::swap_tests::killed_at_every_step_it_is_the_old_database_or_the_new";
    for main in ["log", "journal", "clean", "clean WAL"] {
        for way in ["in place", "always"] {
            let temp = TempDir::new().unwrap();
            let (sample, selected, new) = snapshot_of_new(temp.path());
            leave(&temp.path().join("before"), "data.db", main);
            copy(&temp.path().join("before/data.db"), &temp.path().join("old/data.db"));
            let old = rows(&temp.path().join("old/data.db"));
            let new_rows = rows(&temp.path().join("new.db"));
            assert_ne!(old, new_rows);
            let target = temp.path().join("target");
            let path = target.join("data.db");
            let (mut olds, mut news) = (0, 0);
            for step in 0.. {
                let _ = fs::remove_dir_all(&target);
                copy(&temp.path().join("before/data.db"), &path);
                let mut child = Command::new(env::current_exe().unwrap());
                child.args(["--exact", this, "--nocapture"]).env(STEP, step.to_string()).env(HOW, way);
                let ran = child.env(FOLDER, temp.path()).output().unwrap();
                let what = format!("{main}, {way}, step {step}: {}", String::from_utf8_lossy(&ran.stderr));
                let is_done = ran.status.success();
                assert!(is_done || std::os::unix::process::ExitStatusExt::signal(&ran.status) == Some(9), "{what}");
                // A program opens what is there; a copy, so that the next restore finds it as it was left.
                let seen = temp.path().join("seen/data.db");
                let _ = fs::remove_dir_all(temp.path().join("seen"));
                copy(&path, &seen);
                let there = rows(&seen);
                assert!(there == old || there == new_rows, "{what}");
                if there == old {
                    olds += 1
                } else {
                    news += 1
                }
                restored(&sample, &selected, &ways(&target)[way]);
                assert!(fs::read(&path).unwrap() == new, "{what}");
                assert_eq!(names(&target), ["data.db"], "{what}");
                if is_done {
                    break;
                }
            }
            assert!(olds > 5 && news > 1, "{main}, {way}: {olds} times the old one, {news} times the new one");
        }
    }
}
