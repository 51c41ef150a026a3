//! The commands together, on real directories and databases: any order of them (`model`), a fault at every call to
//! the store (`faults`, `init_faults`), one command in the middle of another (`meanwhile`), and what a command may ask
//! of the store (`budgets`).
//!
//! Stands beside the jobs since it needs all of them, and jobs don't import each other.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Call, Fault, Faulty, Memory, Op, layout};
use crate::clock;
use crate::crypto::KdfCost;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::control::{self, Session};
use crate::format::header::Kind;
use crate::format::keyslot::Unlock;
use crate::id::SnapshotId;
use crate::job::check::{self, ReadData};
use crate::job::policy::Policy;
use crate::job::{create, prune, restore};
use crate::repo::testing::{noise, records, sessions};
use crate::repo::{Filter, Repository, Selected, split_path};
use crate::report::{Problem, Reporter, Severity};

mod afar;
mod asked;
mod budgets;
mod changes;
mod faults;
mod init_faults;
mod meanwhile;
mod model;
mod nights;
#[allow(dead_code, reason = "shared with the integration tests, which use the rest")]
#[path = "../../../tests/it/picture.rs"]
mod picture;
mod put_only;
mod replays;
mod scale;
mod simulation;
mod steering;

use picture::{Picture, assert_same};

fn unlock() -> Unlock {
    Unlock::KeyFile(vec![7; 32])
}

fn init(store: Arc<dyn Backend>) -> Arc<Repository> {
    Arc::new(Repository::init(store, &unlock(), KdfCost::default(), "test").unwrap())
}

/// Opens as a fresh process does; the index is not loaded.
fn open(store: Arc<dyn Backend>) -> Result<Arc<Repository>> {
    Repository::open(store, &unlock(), "the key", &Reporter::silent()).map(Arc::new)
}

/// Takes a snapshot of a directory, dated so many hours after the first.
fn create(repo: &Arc<Repository>, source: &Path, hour: u32) -> Result<SnapshotId> {
    let reporter = Reporter::silent();
    let summary = create::run(repo, &options(source, hour), &reporter)?;
    let unread: Vec<_> = reporter.problems().into_iter().filter(|p| p.severity == Severity::Source).collect();
    assert!(unread.is_empty(), "everything of the source can be read: {unread:#?}");
    Ok(summary.id.unwrap())
}

fn options(source: &Path, hour: u32) -> create::Options {
    create::Options {
        paths: vec![source.to_path_buf()],
        named: None,
        stdin: None,
        postgres: vec![],
        host: Some("here".into()),
        source: Some("app".into()),
        tags: vec![],
        pin: false,
        time: Some(Time { secs: 1_700_000_000 + i64::from(hour) * 3600, nanos: 0 }),
        excludes: vec![],
        exclude_files: vec![],
        exclude_caches: false,
        one_file_system: false,
        preset: create::PresetChoice::Recognised,
        dry_run: false,
        level: 1,
        spool_dir: std::env::temp_dir(),
        max_lock: Duration::from_secs(5),
    }
}

/// A snapshot's part that was made from `source`.
fn selected(repo: &Repository, id: SnapshotId, source: &Path) -> Result<Selected> {
    let selected = repo.select(&id.to_string(), &Filter::default(), &Reporter::silent())?;
    Ok(Selected { sub_path: split_path(source.as_os_str().as_encoded_bytes()), ..selected })
}

/// Restores what was made from `source` as `target`.
fn restore(repo: &Repository, id: SnapshotId, source: &Path, target: &Path, over: bool) {
    let reporter = Reporter::silent();
    repo.load_index(&reporter).unwrap();
    let options = restore::Options {
        target: target.to_path_buf(),
        overwrite: over.then_some(restore::Overwrite::Always),
        force: over,
        ..restore::Options::default()
    };
    restore::run(repo, &selected(repo, id, source).unwrap(), &options, &reporter).unwrap();
    assert!(reporter.worst() <= Some(Severity::Note), "{:#?}", reporter.problems());
}

/// Restores into a new directory, and compares with what the source was.
#[track_caller]
fn assert_restores(repo: &Repository, id: SnapshotId, source: &Path, expected: &Picture) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    restore(repo, id, source, &target, false);
    assert_same(&portrait(&target), expected);
}

/// What a directory looks like, with what hard links and holes it has.
fn portrait(directory: &Path) -> Picture {
    let mut out = picture::of(directory);
    let mut groups: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
    for (name, path) in files(directory) {
        let meta = fs::symlink_metadata(&path).unwrap();
        let line = out.get_mut(&name).unwrap();
        if meta.is_file() && meta.len() > 1 << 20 && meta.blocks() * 512 < meta.len() / 2 {
            *line += " sparse";
        }
        if meta.is_file() && meta.nlink() > 1 {
            groups.entry((meta.dev(), meta.ino())).or_default().push(name);
        }
    }
    for names in groups.into_values() {
        for name in &names {
            *out.get_mut(name).unwrap() += &format!(" one file with {}", names[0]);
        }
    }
    out
}

/// What a restore of the directory must make: databases with what their logs hold, and without the logs.
fn expected(source: &Path) -> Picture {
    let mut out = portrait(source);
    for (name, path) in files(source).into_iter().filter(|(name, _)| name.ends_with(".db")) {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        fs::copy(&path, &copy).unwrap();
        for suffix in ["-wal", "-shm"] {
            let beside = PathBuf::from(format!("{}{suffix}", path.display()));
            if beside.exists() && suffix == "-wal" {
                fs::copy(&beside, folder.path().join("copy.db-wal")).unwrap();
            }
            out.remove(&format!("{name}{suffix}"));
        }
        let db = rusqlite::Connection::open(&copy).unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(db);
        let bytes = fs::read(&copy).unwrap();
        let line = out.get_mut(&name).unwrap();
        let attributes = line.split_once(" | ").unwrap().1;
        *line = format!("{} bytes {} | {attributes}", bytes.len(), blake3::hash(&bytes).to_hex());
    }
    out
}

/// Everything in a directory but directories: names as in a picture, and paths, sorted.
fn files(directory: &Path) -> Vec<(String, PathBuf)> {
    entries(directory).into_iter().filter(|(_, path)| !fs::symlink_metadata(path).unwrap().is_dir()).collect()
}

/// Everything in a directory: names as in a picture, and paths, sorted.
fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut out = Vec::new();
    let mut folders = vec![(String::new(), directory.to_path_buf())];
    while let Some((above, folder)) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{above}{}", entry.file_name().as_encoded_bytes().escape_ascii());
            if entry.file_type().unwrap().is_dir() {
                folders.push((format!("{name}/"), entry.path()));
            }
            out.push((name, entry.path()));
        }
    }
    out.sort();
    out
}

fn check(repo: &Arc<Repository>, read_data: ReadData, databases: bool) -> Result<Vec<Problem>> {
    let reporter = Reporter::silent();
    check::run(repo, &check::Options { read_data, databases, scratch: std::env::temp_dir(), memory: None }, &reporter)?;
    Ok(reporter.problems())
}

/// Reads everything as a check does; notes are no damage.
#[track_caller]
fn assert_sound(repo: &Arc<Repository>) {
    let damages: Vec<_> = check(repo, ReadData::All, false).unwrap();
    let damages: Vec<_> = damages.into_iter().filter(|p| p.severity > Severity::Note).collect();
    assert!(damages.is_empty(), "{damages:#?}");
}

fn keep_last(n: u32) -> Policy {
    Policy { last: Some(n), ..Policy::default() }
}

/// Prunes without grace, and leaves no unused space if that can be had in one run.
fn prune(repo: &Arc<Repository>, policy: Policy, instant: bool) -> Result<prune::Summary> {
    prune_after(repo, policy, 0, instant)
}

/// Does the same with a grace period, in seconds.
fn prune_after(repo: &Arc<Repository>, policy: Policy, grace_secs: i64, instant: bool) -> Result<prune::Summary> {
    let (filter, max_unused) = (Filter::default(), prune::Limit::Bytes(0));
    let options = prune::Options { policy, filter, dry_run: false, max_unused, max_repack: None, grace_secs, instant };
    prune::run(repo, &options, &mut |_| {}, &Reporter::silent())
}

/// What is in the store and of no use to any snapshot: for an instant prune to leave nothing of.
fn leftovers(store: &Arc<dyn Backend>) -> Vec<String> {
    let repo = open(store.clone()).unwrap();
    repo.load_index(&Reporter::silent()).unwrap();
    let mut out = Vec::new();
    for folder in [layout::LIVE, layout::TOMBS, "tmp/"] {
        out.extend(store.list(folder).unwrap().into_iter().map(|l| l.path));
    }
    let index = repo.index();
    let mut packs = store.list(layout::DATA_PACKS).unwrap();
    packs.extend(store.list(layout::METADATA_PACKS).unwrap());
    let stored: HashMap<_, _> = packs.iter().map(|l| (layout::parse_pack(&l.path).unwrap().1, l)).collect();
    out.extend(stored.iter().filter(|(id, _)| !index.has_pack(id)).map(|(_, l)| format!("{} in no index", l.path)));
    let missing = index.packs().iter().filter(|p| !stored.contains_key(&p.id));
    out.extend(missing.map(|p| format!("pack {} in the index alone", p.id)));
    let trees: Vec<_> = repo.read_snapshots().unwrap().0.iter().map(|n| n.snapshot.tree).collect();
    let needed = repo.reachable(trees, &Reporter::silent()).unwrap();
    out.extend(
        index
            .iter()
            .filter(|(id, _)| !index.position(id).is_some_and(|at| needed.has(at)))
            .map(|(id, _)| format!("blob {id} is not needed")),
    );
    let twice = needed.iter().filter(|at| index.places_at(*at).count() > 1).filter_map(|at| index.id_at(at));
    out.extend(twice.map(|id| format!("blob {id} is there more than once")));
    out
}

/// All that is in a store, to begin again from.
type Objects = BTreeMap<String, Vec<u8>>;

fn objects(store: &dyn Backend) -> Objects {
    store.list("").unwrap().into_iter().map(|l| (l.path.clone(), store.get(&l.path, u64::MAX).unwrap())).collect()
}

fn copy(objects: &Objects) -> Arc<Memory> {
    let store = Memory::at(clock::now());
    objects.iter().for_each(|(path, bytes)| store.put(path, bytes.clone()).unwrap());
    // Whatever comes now is younger.
    store.advance(10);
    Arc::new(store)
}

/// Makes the sessions in the store look like those of a process that is no more: this one runs all commands.
fn end_processes(store: &Arc<Memory>) {
    let Ok(repo) = open(store.clone()) else { return };
    for path in sessions(&**store) {
        let bytes = store.get(&path, u64::MAX).unwrap();
        match control::open::<Session>(repo.keys(), Kind::Session, &bytes, &path) {
            // No process gets this number: it is above the largest that Linux can be set to.
            Ok(session) => {
                let session = Session { pid: 1 << 23, ..session };
                store.put(&path, control::seal(repo.keys(), Kind::Session, &session).unwrap()).unwrap();
            }
            // Whose it is can't be known: it counts until it was silent for a day.
            Err(_) => store.advance(90_000),
        }
    }
}

/// Runs SQL on a database and closes it; `keep_log` leaves the write-ahead log beside it, as a crash does.
fn sql(path: &Path, keep_log: bool, batch: &str) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep_log).unwrap();
    db.execute_batch(batch).unwrap();
    db.close().unwrap();
}

/// SQL that inserts rows of some 100 bytes that don't compress, the same for the same seed.
fn insert(rows: u32, seed: u64) -> String {
    let mut batch = String::from("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB); BEGIN;");
    for row in 0..u64::from(rows) {
        let bytes = crate::id::hex(&noise(seed << 32 | row, 100));
        batch += &format!("INSERT INTO t (x) VALUES (x'{bytes}');");
    }
    batch + "COMMIT;"
}
