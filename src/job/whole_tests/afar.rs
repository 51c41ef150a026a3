//! A store behind a network, and what this machine remembers of it: how many requests commands cost, and that whatever
//! happens to the copies changes nothing but that.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::backend::Listed;
use crate::repo::Closed;

/// A store of which each call is a request.
struct Far(Arc<dyn Backend>, AtomicUsize);

impl Far {
    fn new() -> Arc<Self> {
        Arc::new(Self(Arc::new(Memory::at(clock::now())), AtomicUsize::new(0)))
    }

    fn count(&self) -> &dyn Backend {
        self.1.fetch_add(1, Ordering::Relaxed);
        &*self.0
    }

    fn take_requests(&self) -> usize {
        self.1.swap(0, Ordering::Relaxed)
    }
}

impl Backend for Far {
    fn describe(&self) -> String {
        "far away".into()
    }
    fn is_remote(&self) -> bool {
        true
    }
    fn concurrency(&self) -> usize {
        4
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.count().put(path, bytes)
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.count().put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.count().get(path, max_bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.count().get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.count().list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        self.count().delete(paths)
    }
}

/// A machine with a directory to save, and one for copies.
struct Machine {
    folder: tempfile::TempDir,
    store: Arc<Far>,
    hour: u32,
}

/// Pages of a database that lie far apart get other contents.
fn night(source: &Path, seed: usize) {
    let db = rusqlite::Connection::open(source.join("app.db")).unwrap();
    for row in (1..300).step_by(23) {
        db.execute(
            "UPDATE t SET b = substr(b, 1, 100) || ?1 || substr(b, 105) WHERE a = ?2",
            ((1000 + seed).to_string(), row),
        )
        .unwrap();
    }
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap(), store: Far::new(), hour: 0 };
        init(machine.store.clone());
        fs::create_dir_all(machine.source().join("inner")).unwrap();
        for n in 0..5 {
            fs::write(machine.source().join(format!("inner/{n}")), noise(n, 50_000)).unwrap();
        }
        let db = rusqlite::Connection::open(machine.source().join("app.db")).unwrap();
        db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").unwrap();
        for row in 0..300 {
            let text: String = noise(row, 1500).iter().map(|byte| char::from(32 + byte % 90)).collect();
            db.execute("INSERT INTO t(b) VALUES (?1)", [text]).unwrap();
        }
        machine
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn copies(&self) -> PathBuf {
        self.folder.path().join("copies")
    }

    fn files_of_copies(&self) -> Vec<PathBuf> {
        if self.copies().exists() { files(&self.copies()).into_iter().map(|(_, path)| path).collect() } else { vec![] }
    }

    fn open(&self) -> Arc<Repository> {
        self.open_with(Some((self.copies(), 1 << 30)))
    }

    fn open_with(&self, cache: Option<(PathBuf, u64)>) -> Arc<Repository> {
        let closed = Closed::find(self.store.clone()).unwrap().cached(cache);
        Arc::new(closed.open(&unlock(), "the key", &Reporter::silent()).unwrap())
    }

    /// Takes a snapshot as a fresh process does; how many requests it cost, and how much was stored.
    fn create(&mut self) -> (usize, u64) {
        self.hour += 1;
        self.store.take_requests();
        let before = self.stored();
        let repo = self.open();
        create(&repo, &self.source(), self.hour).unwrap();
        drop(repo);
        (self.store.take_requests(), self.stored() - before)
    }

    fn stored(&self) -> u64 {
        self.store.0.list("packs/").unwrap().iter().map(|l| l.bytes).sum()
    }

    /// Every snapshot is whole, and the last one is the source as it is.
    fn assert_whole(&self) {
        let repo = open(self.store.0.clone()).unwrap();
        assert_sound(&repo);
        let newest = repo.snapshots(&Reporter::silent()).unwrap().pop().unwrap();
        assert_restores(&open(self.store.0.clone()).unwrap(), newest.id, &self.source(), &portrait(&self.source()));
    }
}

#[test]
fn a_night_costs_few_requests() {
    let mut machine = Machine::new();
    machine.create();
    std::thread::sleep(Duration::from_millis(2100));
    machine.create();
    // On a busy machine one of them may take what was written just before for changed, and look again.
    let unchanged = [(); 3].map(|()| machine.create().0);
    assert!(unchanged.iter().min() <= Some(&10), "{unchanged:?}");
    night(&machine.source(), 1);
    fs::write(machine.source().join("inner/1"), noise(77, 50_000)).unwrap();
    let (small, _) = machine.create();
    assert!(small <= 15, "{small}");
    machine.assert_whole();
}

#[test]
fn changed_pages_are_stored_against_older_ones_only_where_these_are_at_hand() {
    let mut machine = Machine::new();
    let (_, first) = machine.create();
    night(&machine.source(), 1);
    let (with_copies, deltas) = machine.create();
    fs::remove_dir_all(machine.copies()).unwrap();
    night(&machine.source(), 2);
    let (without_copies, full) = machine.create();
    assert!(deltas * 3 < full && full < first / 2, "{first}, then {deltas} and {full}");
    assert!(without_copies < with_copies + 12, "no data is fetched: {with_copies}, {without_copies}");
    // What was stored in full is at hand now.
    night(&machine.source(), 3);
    let (_, deltas) = machine.create();
    assert!(deltas * 3 < full, "{deltas} and {full}");
    machine.assert_whole();
}

#[test]
fn whatever_happens_to_the_copies_changes_no_snapshot() {
    let mut machine = Machine::new();
    for turn in 0..8 {
        night(&machine.source(), turn);
        machine.create();
        for (number, path) in machine.files_of_copies().into_iter().enumerate() {
            let bytes = fs::read(&path).unwrap();
            match (turn + number) % 4 {
                0 => fs::remove_file(path).unwrap(),
                1 => {
                    fs::write(path, [&bytes[..bytes.len() / 2], b"?", &bytes[bytes.len() / 2 + 1..]].concat()).unwrap()
                }
                2 => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                _ => {}
            }
        }
    }
    machine.assert_whole();
}

#[test]
fn a_database_that_leans_on_older_pages_comes_back_in_few_requests() {
    let mut machine = Machine::new();
    // As long as several stretches of a file that is read in the order of its pages.
    let db = rusqlite::Connection::open(machine.source().join("app.db")).unwrap();
    db.execute_batch(
        "PRAGMA synchronous = OFF; WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 9000)
         INSERT INTO t(b) SELECT hex(randomblob(1700)) FROM c",
    )
    .unwrap();
    for turn in 0..6 {
        machine.create();
        let sql = "UPDATE t SET b = ?1 || substr(b, 5) WHERE a % 97 = ?1 - 1000";
        db.execute(sql, [(1000 + turn).to_string()]).unwrap();
    }
    machine.create();
    drop(db);
    let expected = portrait(&machine.source());
    let near = Arc::new(Faulty::recorder(machine.store.0.clone()));
    let repo = open(near.clone()).unwrap();
    let newest = repo.snapshots(&Reporter::silent()).unwrap().pop().unwrap();
    near.take_calls();
    assert_restores(&repo, newest.id, &machine.source(), &expected);
    let in_order_of_pages = near.take_calls().len();
    let repo = machine.open_with(None);
    machine.store.take_requests();
    assert_restores(&repo, newest.id, &machine.source(), &expected);
    let in_order_of_packs = machine.store.take_requests();
    assert!(in_order_of_packs + 10 < in_order_of_pages, "{in_order_of_packs} and {in_order_of_pages}");
}

#[test]
fn copies_have_a_limit() {
    let mut machine = Machine::new();
    machine.create();
    night(&machine.source(), 1);
    drop(machine.open_with(Some((machine.copies(), 100_000))));
    machine.hour += 1;
    let repo = machine.open_with(Some((machine.copies(), 100_000)));
    create(&repo, &machine.source(), machine.hour).unwrap();
    drop(repo);
    let bytes: u64 = machine.files_of_copies().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= 100_000, "{bytes}");
    machine.assert_whole();
}

#[test]
fn machines_that_share_a_directory_of_copies_do_not_disturb_each_other() {
    let mut machine = Machine::new();
    machine.create();
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for user in 0..4 {
            let (machine, folder) = (&machine, folder.path());
            scope.spawn(move || {
                for turn in 0..5 {
                    let source = folder.join(user.to_string());
                    fs::create_dir_all(&source).unwrap();
                    fs::write(source.join(turn.to_string()), noise(user * 10 + turn, 30_000)).unwrap();
                    create(&machine.open(), &source, (100 + user * 10 + turn) as u32).unwrap();
                }
            });
        }
    });
    machine.hour = 200;
    machine.create();
    machine.assert_whole();
}

#[test]
fn a_machine_that_was_never_there_fetches_few_objects() {
    let mut machine = Machine::new();
    fs::remove_file(machine.source().join("app.db")).unwrap();
    for n in 0..100 {
        fs::write(machine.source().join("inner/1"), noise(n, 50)).unwrap();
        machine.create();
    }
    for cache in [None, Some((machine.folder.path().join("new"), 1 << 30))] {
        machine.store.take_requests();
        let repo = machine.open_with(cache);
        repo.load_index(&Reporter::silent()).unwrap();
        assert_eq!(repo.snapshots(&Reporter::silent()).unwrap().len(), 100);
        let requests = machine.store.take_requests();
        // Config, slots, five lists, three bundles; four snapshots and index files that are in none yet.
        assert!(requests < 30, "{requests}");
    }
    // A prune puts them together, and what is in them is what is there.
    prune(&machine.open(), keep_last(40), true).unwrap();
    let bundles = machine.store.0.list(layout::BUNDLES).unwrap();
    assert_eq!(bundles.len(), 1);
    machine.assert_whole();
    // A bundle is believed nothing that it can't prove.
    let bundle = machine.store.0.get(&bundles[0].path, u64::MAX).unwrap();
    for at in [9, 100, bundle.len() / 2, bundle.len() - 1] {
        let mut flipped = bundle.clone();
        flipped[at] ^= 1;
        machine.store.0.put(&bundles[0].path, flipped).unwrap();
        let repo = machine.open_with(None);
        repo.load_index(&Reporter::silent()).unwrap();
        assert_eq!(repo.snapshots(&Reporter::silent()).unwrap().len(), 40);
    }
}

#[test]
fn what_was_stored_before_a_power_failure_is_used() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..30 {
        fs::write(folder.path().join(n.to_string()), noise(n, 1 << 20)).unwrap();
    }
    // Where files are cut depends on the repository's keys, and with that how many packs they take.
    let empty = {
        let store = Arc::new(Memory::at(clock::now()));
        init(store.clone());
        objects(&*store)
    };
    let whole = {
        let recorder = Arc::new(Faulty::recorder(copy(&empty)));
        create(&open(recorder.clone()).unwrap(), folder.path(), 0).unwrap();
        recorder.writes()
    };
    // All but the last, which ends the session of a run that is done.
    for at in 1..whole - 1 {
        let store = copy(&empty);
        let repo = open(store.clone()).unwrap();
        let killed = Arc::new(Faulty::with(store.clone(), Fault::Killed, at));
        assert!(create(&open(killed).unwrap(), folder.path(), 0).is_err());
        // The machine was started again since, and its process numbers were given to others.
        for path in sessions(&*store) {
            let session =
                control::open::<Session>(repo.keys(), Kind::Session, &store.get(&path, 1 << 20).unwrap(), &path);
            let session = Session { boot: "another".into(), pid: 1, ..session.unwrap() };
            store.put(&path, control::seal(repo.keys(), Kind::Session, &session).unwrap()).unwrap();
        }
        let packs = || store.list(layout::DATA_PACKS).unwrap();
        let there: u64 = packs().iter().map(|l| l.bytes).sum();
        create(&open(store.clone()).unwrap(), folder.path(), 1).unwrap();
        let total: u64 = packs().iter().map(|l| l.bytes).sum();
        assert!(total < 32 << 20, "killed at {at}: {there} bytes were there, {total} are");
        assert_sound(&open(store.clone()).unwrap());
    }
}
