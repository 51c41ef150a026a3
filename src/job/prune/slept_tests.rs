//! Runs that stand still for days while others prune, and wake up: a laptop whose lid was closed.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::races::Intruder;
use super::tests::{change_records, keep_last, prune, prune_with, strict};
use super::*;
use crate::backend::{Backend, Memory, Op, layout};
use crate::format::control::SessionKind;
use crate::repo::Writer;
use crate::repo::machine::pretended::{Machine, become_process};
use crate::repo::testing::{World, noise, records};

const A_DAY_AND_MORE: i64 = 90_000;

/// Runs something as a process of another machine, so that nobody here can tell whether it lives.
fn elsewhere<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let as_laptop = || {
        let running = Arc::new(Mutex::new(HashSet::from([4242])));
        become_process(Machine { host: "laptop".into(), boot: "b".into(), process: 4242, running });
        act()
    };
    thread::scope(|scope| scope.spawn(as_laptop).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Packs that an index file names and that are not there.
fn gone_packs(world: &World) -> usize {
    let there: HashSet<_> = [layout::DATA_PACKS, layout::METADATA_PACKS]
        .iter()
        .flat_map(|folder| world.memory.list(folder).unwrap())
        .filter_map(|listed| layout::parse_pack(&listed.path))
        .map(|(_, id)| id)
        .collect();
    world.reopen().index().packs().iter().filter(|pack| !there.contains(&pack.id)).count()
}

fn begin(world: &World) -> (Arc<Repository>, SessionGuard, Writer) {
    let repo = world.reopen_through(world.memory.clone());
    let session = SessionGuard::start(&repo, SessionKind::Write).unwrap();
    repo.load_index_to_write(session.begun(), &Reporter::silent()).unwrap();
    session.adopt_leftovers(&Reporter::silent()).unwrap();
    let writer = Writer::new(&repo, 3);
    (repo, session, writer)
}

/// A backup that takes longer than the grace period, and was silent meanwhile.
#[test]
fn a_writer_that_slept_through_two_prunes_leaves_no_index_of_packs_that_are_gone() {
    let world = World::new();
    world.snapshot("/other", 1, &[noise(1, 1000)], |_| None);
    world.memory.advance(10);
    let files: Vec<_> = (0..20).map(|n| noise(5000 + n, 1 << 20)).collect();
    let before = world.packs().0;
    let (_repo, session, writer, tree) = elsewhere(|| {
        let (repo, session, mut writer) = begin(&world);
        let nodes = world.put_files(&mut writer, &files);
        // The first packs arrive in the background.
        while world.packs().0 == before {
            thread::sleep(Duration::from_millis(10));
        }
        let tree = World::put_tree(&mut writer, nodes);
        (repo, session, writer, tree)
    });
    for is_second in [false, true] {
        world.memory.advance(A_DAY_AND_MORE);
        let summary = prune_with(&world, &strict(Policy::default())).unwrap();
        assert_eq!((summary.packs_condemned > 0, summary.packs_deleted > 0), (!is_second, is_second));
    }
    writer.finish().unwrap();
    assert!(gone_packs(&world) > 0, "the index file names what is gone");
    assert!(matches!(session.secure(tree, &Reporter::silent()), Err(Error::Refused { .. })));
    assert_eq!(gone_packs(&world), 0);
    drop(session);

    // As it was told: it runs the command again.
    let (_repo, session, mut writer) = begin(&world);
    let nodes = world.put_files(&mut writer, &files);
    let tree = World::put_tree(&mut writer, nodes);
    assert!(writer.finish().unwrap().packs > 0, "what is gone is stored anew");
    session.secure(tree, &Reporter::silent()).unwrap();
    world.commit("/laptop", 2, tree);
    session.end().unwrap();
    assert_eq!(world.read_all(), [1, 2]);
}

#[test]
fn a_prune_that_slept_before_it_stored_the_index_leaves_none_of_packs_that_are_gone() {
    let world = Arc::new(World::new());
    for n in 1..=3u64 {
        world.snapshot("/s", n, &[noise(700 + n, 70_000)], |_| None);
        world.memory.advance(10);
    }
    // The packs of the first are condemned long ago, those of the second lately.
    prune(&world, keep_last(2));
    change_records(&world, |record| record.time.secs -= 10_000);
    world.memory.advance(5000);
    prune_with(&world, &Options { grace_secs: 1_000_000, ..strict(keep_last(1)) }).unwrap();
    assert_eq!(records(&*world.memory).len(), 2);

    let others = world.clone();
    let act = move |_: &Memory| {
        others.memory.advance(A_DAY_AND_MORE);
        let other = thread::spawn(move || prune_with(&others, &strict(Policy::default())).unwrap());
        assert!(other.join().unwrap().packs_deleted > 0);
    };
    let store = Intruder::new(&world, (Op::Put, layout::INDEX), act);
    let slept = elsewhere(|| {
        // Only the older record is ripe for it.
        let options = Options { grace_secs: 3600, ..strict(Policy::default()) };
        run(&world.reopen_through(store.clone()), &options, &mut |_| {}, &Reporter::silent()).map(drop)
    });
    assert!(matches!(slept, Err(Error::Refused { .. })), "{slept:?}");
    assert!(store.came(), "the moment came");
    assert_eq!(gone_packs(&world), 0);
    // What the second held comes back.
    world.snapshot("/s", 4, &[noise(702, 70_000)], |_| None);
    assert_eq!(world.read_all(), [3, 4]);
}
