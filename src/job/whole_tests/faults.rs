//! A fault at every call to the store, of every command that writes.
//!
//! Whatever happens, the snapshots from before restore exactly and a check finds no damage; the command does its work
//! when it is run again, and after an instant prune nothing is left over.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::job::{forget, repair};

/// A directory, and snapshots of it.
pub(super) struct Scene {
    folder: tempfile::TempDir,
    pub(super) store: Arc<Memory>,
    pub(super) snapshots: Vec<(SnapshotId, Picture)>,
}

impl Scene {
    fn new() -> Self {
        let store = Arc::new(Memory::at(clock::now()));
        init(store.clone());
        let scene = Self { folder: tempfile::tempdir().unwrap(), store, snapshots: vec![] };
        fs::create_dir_all(scene.source().join("inner")).unwrap();
        sql(&scene.source().join("app.db"), false, "PRAGMA journal_mode = WAL");
        scene
    }

    /// A scene with so many generations, and a directory that has changed since the last.
    pub(super) fn with(generations: u64) -> Self {
        let mut scene = Self::new();
        for seed in 1..=generations {
            scene.change(seed);
            scene.snapshot();
        }
        scene.change(generations + 1);
        scene
    }

    pub(super) fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    pub(super) fn repo(&self) -> Arc<Repository> {
        open(self.store.clone()).unwrap()
    }

    /// Some files stay, some change, the database has more rows.
    pub(super) fn change(&self, seed: u64) {
        fs::write(self.source().join("small"), noise(seed, 300)).unwrap();
        fs::write(self.source().join("inner/same"), noise(0, 70_000)).unwrap();
        fs::write(self.source().join("inner/large"), [noise(0, 600_000), noise(seed, 5000)].concat()).unwrap();
        sql(&self.source().join("app.db"), seed.is_multiple_of(2), &insert(60, seed));
    }

    pub(super) fn snapshot(&mut self) {
        let picture = expected(&self.source());
        let id = create(&self.repo(), &self.source(), self.snapshots.len() as u32).unwrap();
        self.snapshots.push((id, picture));
        self.store.advance(10);
    }

    fn id(&self, n: usize) -> SnapshotId {
        self.snapshots[n].0
    }

    /// A command that begins from here.
    fn command(self, run: impl Fn(&Arc<Repository>) -> Result<()> + Sync + 'static) -> Command {
        Command {
            before: objects(&*self.store),
            scene: self,
            run: Box::new(run),
            is_done: Box::new(|_| true),
            forgets: vec![],
            is_damaged: false,
        }
    }
}

type Done = Box<dyn Fn(&dyn Backend) -> bool + Sync>;
type Run = Box<dyn Fn(&Arc<Repository>) -> Result<()> + Sync>;

/// A command, and what it begins from.
struct Command {
    scene: Scene,
    before: Objects,
    run: Run,
    /// Whether the command's work is done.
    is_done: Done,
    /// Snapshots that may be gone afterwards.
    forgets: Vec<SnapshotId>,
    /// Whether the command is there to mend what a check finds.
    is_damaged: bool,
}

impl Command {
    fn until(self, is_done: impl Fn(&dyn Backend) -> bool + Sync + 'static) -> Self {
        Self { is_done: Box::new(is_done), ..self }
    }

    fn forgetting(self, forgets: &[SnapshotId]) -> Self {
        Self { forgets: forgets.to_vec(), ..self }
    }

    /// Has every fault at every call.
    fn sweep(&self) {
        let store = Arc::new(Faulty::recorder(copy(&self.before)));
        (self.run)(&open(store.clone()).unwrap()).unwrap();
        assert!((self.is_done)(&*store), "the command does its work");
        let calls = store.take_calls();
        let (writes, reads): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|call| matches!(call.op, Op::Put | Op::Delete));
        assert!(!writes.is_empty());
        let mut cases = Vec::new();
        for (n, call) in writes.iter().enumerate() {
            cases.extend([Fault::Killed, Fault::Refused, Fault::Unanswered].map(|fault| (fault, n)));
            if call.op == Op::Put {
                cases.extend([Fault::Torn, Fault::Unfinished].map(|fault| (fault, n)));
            }
        }
        cases.extend((0..reads.len()).map(|n| (Fault::Unread, n)));
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| {
                    while let Some((fault, at)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let _case = Case(*fault, *at);
                        self.survives(*fault, *at as u64);
                    }
                });
            }
        });
    }

    fn survives(&self, fault: Fault, at: u64) {
        let memory = copy(&self.before);
        let faulty = Arc::new(Faulty::with(memory.clone(), fault, at));
        let result = open(faulty.clone()).and_then(|repo| (self.run)(&repo));
        assert!(result.is_err() || (self.is_done)(&*memory), "what was reported as done is done");
        let is_write = |call: &Call| matches!(call.op, Op::Put | Op::Delete);
        let hit = faulty.take_calls().into_iter().filter(is_write).nth(at as usize).map(|call| call.path);
        let torn = hit.filter(|_| fault == Fault::Torn).unwrap_or_default();
        end_processes(&memory);
        memory.advance(10);

        let is_expected = |p: &Problem| p.severity == Severity::Note || p.what == torn;
        if !self.is_damaged {
            self.assert_restores(&memory);
            let problems = check(&open(memory.clone()).unwrap(), ReadData::All, false).unwrap();
            assert!(problems.iter().all(is_expected), "{problems:#?}");
        }

        // A store that leaves half an object under its name keeps no promise, and a user has to follow the hints.
        if torn.starts_with(layout::SNAPSHOTS) {
            memory.delete(std::slice::from_ref(&torn)).unwrap();
        }
        let again = open(memory.clone()).and_then(|repo| (self.run)(&repo));
        assert!(again.is_ok() || (self.is_done)(&*memory), "{again:?}");
        assert!((self.is_done)(&*memory), "the command does its work when it is run again");
        if torn.starts_with(layout::INDEX) || layout::is_gc(&torn) {
            repair::repair_index(&open(memory.clone()).unwrap(), &Reporter::silent()).unwrap();
        }

        // A day later, unfinished uploads are leftovers.
        memory.advance(90_000);
        prune(&open(memory.clone()).unwrap(), Policy::default(), true).unwrap();
        self.assert_restores(&memory);
        let store: Arc<dyn Backend> = memory.clone();
        let problems = check(&open(store.clone()).unwrap(), ReadData::All, false).unwrap();
        assert!(problems.iter().all(is_expected), "{problems:#?}");
        let mut left = leftovers(&store);
        left.retain(|l| torn.is_empty() || !l.starts_with(&torn));
        assert!(left.is_empty(), "{left:#?}");
    }

    /// What was there before is there, but for what the command forgets, and restores exactly.
    fn assert_restores(&self, store: &Arc<Memory>) {
        let repo = open(store.clone()).unwrap();
        let names = repo.snapshot_names().unwrap();
        for (id, picture) in &self.scene.snapshots {
            let was_there = self.before.contains_key(&layout::snapshot(*id));
            let is_there = names.contains(&layout::snapshot(*id));
            assert!(is_there || !was_there || self.forgets.contains(id), "snapshot {id} is gone");
            // One that was half taken back is seen to by running the command again.
            let readable = is_there && repo.select(&id.to_string(), &Filter::default(), &Reporter::silent()).is_ok();
            assert!(readable || !was_there || !is_there, "snapshot {id} can't be read");
            if readable {
                assert_restores(&repo, *id, &self.scene.source(), picture);
            }
        }
    }
}

/// Says which case it was that failed.
struct Case(Fault, usize);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with the fault {:?} at call {} to the store", self.0, self.1);
        }
    }
}

fn snapshots(store: &dyn Backend) -> usize {
    store.list(layout::SNAPSHOTS).unwrap().len()
}

fn has(store: &dyn Backend, path: &str) -> bool {
    store.list(path).unwrap().iter().any(|l| l.path == path)
}

#[test]
fn the_first_create() {
    let scene = Scene::with(0);
    let source = scene.source();
    scene.command(move |repo| create(repo, &source, 0).map(drop)).until(|store| snapshots(store) > 0).sweep();
}

#[test]
fn a_further_create() {
    let scene = Scene::with(1);
    let source = scene.source();
    scene.command(move |repo| create(repo, &source, 1).map(drop)).until(|store| snapshots(store) > 1).sweep();
}

#[test]
fn a_create_of_what_is_condemned() {
    let mut scene = Scene::with(2);
    scene.snapshot();
    prune(&scene.repo(), keep_last(1), false).unwrap();
    scene.store.advance(10);
    assert!(!records(&*scene.store).is_empty());
    // The files of the first generation come back: its packs may not be relied on.
    scene.change(1);
    let source = scene.source();
    scene.command(move |repo| create(repo, &source, 9).map(drop)).until(|store| snapshots(store) > 1).sweep();
}

#[test]
fn a_forget() {
    let scene = Scene::with(2);
    let id = scene.id(0);
    scene
        .command(move |repo| forget::forget(repo, &[id], &Reporter::silent()).map(drop))
        .until(move |store| !has(store, &layout::snapshot(id)) && has(store, &layout::tomb(id)))
        .forgetting(&[id])
        .sweep();
}

#[test]
fn an_undone_forget() {
    let scene = Scene::with(2);
    let id = scene.id(0);
    forget::forget(&scene.repo(), &[id], &Reporter::silent()).unwrap();
    scene
        .command(move |repo| forget::undo_forget(repo, &[id.to_string()], &Reporter::silent()).map(drop))
        .until(move |store| has(store, &layout::snapshot(id)))
        .sweep();
}

#[test]
fn a_prune_that_condemns() {
    let scene = Scene::with(3);
    let ids = [scene.id(0), scene.id(1)];
    scene
        .command(|repo| prune(repo, keep_last(1), false).map(drop))
        .until(|store| snapshots(store) == 1)
        .forgetting(&ids)
        .sweep();
}

#[test]
fn a_prune_that_deletes() {
    let scene = Scene::with(3);
    prune(&scene.repo(), keep_last(2), false).unwrap();
    scene.store.advance(10);
    scene
        .command(|repo| prune(repo, Policy::default(), false).map(drop))
        .until(|store| records(store).is_empty())
        .sweep();
}

#[test]
fn an_instant_prune() {
    let scene = Scene::with(3);
    let ids = [scene.id(0), scene.id(1)];
    scene
        .command(|repo| prune(repo, keep_last(1), true).map(drop))
        .until(|store| snapshots(store) == 1 && store.list(layout::TOMBS).unwrap().is_empty())
        .forgetting(&ids)
        .sweep();
}

#[test]
fn a_repair_of_the_index() {
    let scene = Scene::with(2);
    let run = |repo: &Arc<Repository>| repair::repair_index(repo, &Reporter::silent()).map(drop);
    scene.command(run).sweep();

    let scene = Scene::with(2);
    let lost = scene.store.list(layout::INDEX).unwrap().remove(0).path;
    scene.store.delete(&[lost, layout::CONFIG_COPY.into()]).unwrap();
    let command = scene.command(run).until(|store| has(store, layout::CONFIG_COPY));
    Command { is_damaged: true, ..command }.sweep();
}

#[test]
fn a_repair_of_packs() {
    let scene = Scene::with(2);
    scene.command(|repo| repair::repair_packs(repo, &Reporter::silent()).map(drop)).sweep();
}

#[test]
fn a_key_added_and_removed() {
    let new = || Unlock::KeyFile(vec![8; 32]);
    let opens = move |store: &dyn Backend| {
        let kept = copy(&objects(store));
        Repository::open(kept, &new(), "the new key", &Reporter::silent()).is_ok()
    };
    let scene = Scene::with(1);
    scene.command(move |repo| repo.add_slot(&new(), KdfCost::default(), "new").map(drop)).until(opens).sweep();

    let scene = Scene::with(1);
    let id = scene.repo().add_slot(&new(), KdfCost::default(), "new").unwrap();
    scene.command(move |repo| repo.remove_slot(&id).map(drop)).until(move |store| !opens(store)).sweep();
}
