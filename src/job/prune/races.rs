//! Prunes against writers, other prunes, undone forgetting, and crashes.

use std::sync::{Barrier, Mutex};

use super::tests::{change_records, five_generations, keep_last, objects, prune, prune_with, strict};
use super::*;
use crate::backend::{Backend, Faulty, Listed, Memory, Op, layout};
use crate::format::control::{self, Session, SessionKind};
use crate::format::header::Kind;
use crate::format::mark::Mark;
use crate::repo::testing::{World, noise, records, sessions};

#[test]
fn a_writer_that_was_running_blocks_deletion() {
    let world = five_generations();
    let writer = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    world.memory.advance(10);
    let condemned = prune_with(&world, &strict(keep_last(1))).unwrap();
    assert!(condemned.packs_condemned > 0);
    let waiting = prune_with(&world, &strict(Policy::default())).unwrap();
    assert_eq!(waiting.packs_deleted, 0);
    assert!(waiting.waiting_for[0].contains(&writer.name()[..8]), "{:?}", waiting.waiting_for);
    writer.end().unwrap();
    world.memory.advance(10);
    let later = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    assert!(prune_with(&world, &strict(Policy::default())).unwrap().packs_deleted > 0);
    later.check_alive().unwrap();
    assert_eq!(world.read_all(), [5]);
}

#[test]
fn a_pack_that_a_writer_just_stored_is_left_alone() {
    let world = five_generations();
    let writer = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    let id = world.snapshot("/s", 6, &[noise(6, 1000)], |_| None);
    let snapshot = world.memory.get(&layout::snapshot(id), u64::MAX).unwrap();
    // Packs and index are there, the snapshot is not yet; then the index isn't, either.
    world.memory.delete(&[layout::snapshot(id)]).unwrap();
    assert_eq!(prune_with(&world, &strict(Policy::default())).unwrap().packs_condemned, 0);
    world.clear(layout::INDEX);
    let summary = prune_with(&world, &strict(Policy::default())).unwrap();
    assert_eq!(summary.packs_condemned, 0);
    world.memory.put(&layout::snapshot(id), snapshot).unwrap();
    writer.end().unwrap();
    assert_eq!(world.read_all(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn one_prune_at_a_time() {
    let world = five_generations();
    let other = SessionGuard::start(&world.reopen(), SessionKind::Prune).unwrap();
    assert!(matches!(prune_with(&world, &strict(keep_last(1))), Err(Error::Locked { .. })));
    drop(other);

    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    prune_with(&world, &strict(keep_last(2)))
                })
            })
            .collect();
        for run in runs {
            assert!(matches!(run.join().unwrap(), Ok(_) | Err(Error::Locked { .. })));
        }
    });
    assert!(sessions(&*world.memory).is_empty());
    prune(&world, keep_last(2));
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [4, 5]);
}

#[test]
fn a_writer_that_began_with_the_record_blocks_deletion() {
    let world = five_generations();
    let writer = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    prune_with(&world, &strict(keep_last(1))).unwrap();
    // As if the session had come after the prune listed them, and at the moment when it wrote the record.
    change_records(&world, |record| record.sessions.clear());
    world.memory.advance(10);
    let waiting = prune_with(&world, &strict(Policy::default())).unwrap();
    assert_eq!((waiting.packs_deleted, waiting.waiting_for.len()), (0, 1));
    drop(writer);
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [5]);
}

#[test]
fn a_writer_that_the_record_names_blocks_deletion_whatever_the_clock_says() {
    let world = five_generations();
    let writer = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    // The store's clock is set back: the record seems older than the session.
    world.memory.advance(-1000);
    prune_with(&world, &strict(keep_last(1))).unwrap();
    assert_eq!(prune_with(&world, &strict(Policy::default())).unwrap().packs_deleted, 0);
    drop(writer);
    assert!(prune(&world, Policy::default()).packs_deleted > 0);
}

#[test]
fn a_session_silent_for_a_day_is_cleared_away() {
    let world = five_generations();
    let session =
        Session { kind: SessionKind::Prune, host: "elsewhere".into(), boot: "b".into(), pid: 1, started: clock::now() };
    let bytes = control::seal(world.repo.keys(), Kind::Session, &session).unwrap();
    world.memory.put(&layout::session("00ff", layout::FIRST), bytes).unwrap();
    assert!(matches!(prune_with(&world, &strict(keep_last(1))), Err(Error::Locked { .. })));
    world.memory.advance(90_000);
    assert_eq!(prune(&world, keep_last(1)).forgotten, 4);
}

type Act = Box<dyn FnOnce(&Memory) + Send>;

/// Lets somebody act at the moment when the first object below a folder is about to be put or deleted.
pub(super) struct Intruder {
    inner: Arc<Memory>,
    op: Op,
    folder: &'static str,
    act: Mutex<Option<Act>>,
}

impl Intruder {
    pub(super) fn new(
        world: &World,
        (op, folder): (Op, &'static str),
        act: impl FnOnce(&Memory) + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner: world.memory.clone(), op, folder, act: Mutex::new(Some(Box::new(act))) })
    }

    /// Whether the moment came.
    pub(super) fn came(&self) -> bool {
        self.act.lock().unwrap().is_none()
    }

    fn call(&self, op: Op, path: &str) {
        if op == self.op
            && path.starts_with(self.folder)
            && let Some(act) = self.act.lock().unwrap().take()
        {
            act(&self.inner);
        }
    }
}

impl Backend for Intruder {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.call(Op::Put, path);
        self.inner.put(path, bytes)
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.inner.put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.inner.get(path, max_bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.inner.get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.inner.list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        paths.iter().for_each(|path| self.call(Op::Delete, path));
        self.inner.delete(paths)
    }
}

fn prune_with_intruder(
    world: &World,
    policy: Policy,
    folder: &'static str,
    act: impl FnOnce(&Memory) + Send + 'static,
) -> Summary {
    let store = Intruder::new(world, (Op::Delete, folder), act);
    let summary = run(&world.reopen_through(store.clone()), &strict(policy), &mut |_| {}, &Reporter::silent()).unwrap();
    assert!(store.came(), "the moment came");
    world.memory.advance(10);
    summary
}

#[test]
fn a_snapshot_taken_back_while_tombs_go_keeps_its_data() {
    let world = five_generations();
    prune(&world, keep_last(1));
    // All of undoing but the deletion of the tomb, just before the prune deletes the tombs.
    prune_with_intruder(&world, Policy::default(), layout::TOMBS, |memory| {
        let tomb = memory.list(layout::TOMBS).unwrap().remove(0).path;
        let bytes = memory.get(&tomb, u64::MAX).unwrap();
        memory.put(&tomb.replace(layout::TOMBS, layout::SNAPSHOTS), bytes).unwrap();
    });
    assert_eq!(world.read_all().len(), 2);
    prune(&world, Policy::default());
    assert_eq!(world.read_all().len(), 2);
}

#[test]
fn a_snapshot_taken_back_too_late_goes_again_though_nobody_looks() {
    let world = five_generations();
    prune(&world, keep_last(1));
    let tomb = world.paths(layout::TOMBS).remove(0);
    let bytes = world.memory.get(&tomb, u64::MAX).unwrap();
    // Undoing read the tomb in time, and is cut off when it has stored the snapshot, while packs go.
    prune_with_intruder(&world, Policy::default(), "packs/", move |memory| {
        memory.put(&tomb.replace(layout::TOMBS, layout::SNAPSHOTS), bytes).unwrap();
    });
    assert_eq!(world.read_all(), [5]);
    prune(&world, Policy::default());
}

#[test]
fn a_snapshot_forgotten_while_tombs_go_can_be_taken_back() {
    let world = five_generations();
    prune(&world, keep_last(2));
    // Generation 4 moves just before the prune looks at the snapshots again: it is among neither list.
    prune_with_intruder(&world, Policy::default(), layout::TOMBS, |memory| {
        let snapshot = memory.list(layout::SNAPSHOTS).unwrap().remove(0).path;
        let bytes = memory.get(&snapshot, u64::MAX).unwrap();
        memory.put(&snapshot.replace(layout::SNAPSHOTS, layout::TOMBS), bytes).unwrap();
        memory.delete(&[snapshot]).unwrap();
    });
    for tomb in world.paths(layout::TOMBS) {
        let bytes = world.memory.get(&tomb, u64::MAX).unwrap();
        world.memory.put(&tomb.replace(layout::TOMBS, layout::SNAPSHOTS), bytes).unwrap();
    }
    assert_eq!(world.read_all(), [4, 5]);
}

/// Seals a mark that pins, or says nothing of it.
fn mark(world: &World, snapshot: SnapshotId, pin: Option<bool>) -> (String, Vec<u8>) {
    let mark =
        Mark { time: clock::now(), snapshot, add: vec!["a".into()], remove: vec![], pin, slot: None, proof: None };
    let (id, bytes) = mark.seal(world.repo.keys()).unwrap();
    (layout::mark(id), bytes)
}

#[test]
fn what_is_pinned_while_it_is_forgotten_comes_back() {
    for (pin, left) in [(Some(true), &[3, 5][..]), (None, &[5])] {
        let world = five_generations();
        let third = world.repo.read_snapshots().unwrap().0[2].id;
        let (path, bytes) = mark(&world, third, pin);
        // The first snapshot just got a tomb: marks were looked at.
        prune_with_intruder(&world, keep_last(1), layout::SNAPSHOTS, move |memory| memory.put(&path, bytes).unwrap());
        assert_eq!(world.read_all(), left, "{pin:?}");
        prune(&world, Policy::default());
        assert_eq!(world.read_all(), left, "{pin:?}");
    }
}

#[test]
fn a_run_taken_for_dead_deletes_nothing() {
    let world = five_generations();
    prune(&world, keep_last(1));
    let before = objects(&world);
    let act = |memory: &Memory| {
        memory.delete(&sessions(memory)).unwrap();
    };
    let store = Intruder::new(&world, (Op::Delete, layout::TOMBS), act);
    let result = run(&world.reopen_through(store), &strict(Policy::default()), &mut |_| {}, &Reporter::silent());
    assert!(matches!(result, Err(Error::Refused { .. })));
    let gone: Vec<_> = before.into_iter().filter(|p| !objects(&world).contains(p)).collect();
    assert!(gone.iter().all(|p| p.starts_with(layout::TOMBS)), "{gone:?}");
}

/// Fails every write from the n-th on, for every n, in two prunes one after the other: whatever is left must be whole.
#[test]
fn every_crash_leaves_all_snapshots_whole() {
    let two_prunes = |world: &World, store: &Arc<Faulty>, options: &Options| -> Result<()> {
        run(&world.reopen_through(store.clone()), options, &mut |_| {}, &Reporter::silent())?;
        world.memory.advance(10);
        run(&world.reopen_through(store.clone()), &strict(Policy::default()), &mut |_| {}, &Reporter::silent())
            .map(drop)
    };
    for instant in [false, true] {
        let options = Options { instant, ..strict(keep_last(2)) };
        let mut fail_from = 0;
        loop {
            let world = five_generations();
            let store = Arc::new(Faulty::new(world.memory.clone(), fail_from));
            let result = two_prunes(&world, &store, &options);
            // The process dies; its session is reaped.
            world.memory.delete(&sessions(&*world.memory)).unwrap();
            let left = world.read_all();
            assert!(left.ends_with(&[4, 5]), "write {fail_from}: {left:?}");
            world.memory.advance(10);
            prune(&world, keep_last(2));
            assert_eq!(world.read_all(), [4, 5], "write {fail_from}");
            prune(&world, Policy::default());
            assert_eq!(world.read_all(), [4, 5], "write {fail_from}");
            assert!(records(&*world.memory).is_empty() && world.paths(layout::TOMBS).is_empty());
            let last = prune(&world, Policy::default());
            assert_eq!((last.packs_condemned, last.packs_deleted), (0, 0), "write {fail_from}");
            if result.is_ok() {
                assert!(fail_from > 20, "there is more to write than {fail_from} objects");
                break;
            }
            fail_from += 1;
        }
    }
}
