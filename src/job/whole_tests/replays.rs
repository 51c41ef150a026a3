//! How others lost data, replayed: whatever call the one run is held up at, nothing is lost here.

use super::meanwhile::{HeldUp, assert_whole, first_condemned, sweep};
use super::*;

const HOUR: i64 = 3600;

/// What another machine stores meanwhile.
fn create_elsewhere(store: &Arc<Memory>, source: &Path, hour: u32) {
    let repo = open(store.clone()).unwrap();
    let options = create::Options { host: Some("elsewhere".into()), ..options(source, hour) };
    create::run(&repo, &options, &Reporter::silent()).unwrap();
}

/// kopia#1949: a maintenance run stood still for hours, the lid of its laptop closed, between finding what nobody needs
/// and deleting it; a snapshot that was made meanwhile needed it again.
#[test]
fn a_prune_stands_still_for_hours_while_a_snapshot_brings_back_what_it_deletes() {
    let scene = first_condemned();
    let source = scene.source();
    let picture = expected(&source);
    sweep(&scene, false, &|repo| prune(repo, Policy::default(), false).map(|_| None), move |store| {
        store.advance(5 * HOUR);
        create_elsewhere(store, &source, 9);
        let repo = open(store.clone()).unwrap();
        let newest = repo.read_snapshots().unwrap().0.into_iter().find(|n| n.snapshot.host == "elsewhere").unwrap();
        assert_restores(&repo, newest.id, &source, &picture);
    });
}

/// restic#3984: a prune lost its lock in the middle and gave up, and the next one found data missing.
#[test]
fn a_prune_loses_its_session_at_any_call_and_the_next_one_finds_everything() {
    let scene = first_condemned();
    let before = objects(&*scene.store);
    let known: Vec<_> = scene.snapshots.iter().map(|(id, picture)| (*id, picture)).collect();
    let mut refused = 0;
    for at in 0.. {
        let memory = copy(&before);
        let clear = |store: &Arc<Memory>| store.delete(&sessions(&**store)).unwrap();
        let store = HeldUp::new(memory.clone(), &memory, at, Box::new(clear));
        let done = open(store.clone()).and_then(|repo| prune(&repo, keep_last(1), false));
        let case = format!("lost before call {at}: {done:?}");
        assert!(matches!(done, Ok(_) | Err(Error::Refused { .. })), "{case}");
        refused += usize::from(done.is_err());
        assert_whole(&scene, &memory, &known, &case);
        memory.advance(10);
        prune(&open(memory.clone()).unwrap(), Policy::default(), false).unwrap();
        assert_whole(&scene, &memory, &known, &case);
        if !store.came() {
            break;
        }
    }
    assert!(refused > 5, "it notices: {refused}");
}

/// Duplicacy's two collections: chunks are set aside by the first, and deleted by the second once every other machine has
/// made a backup since; one backup began before the first and ends after the second.
#[test]
fn a_create_lasts_from_before_one_prune_until_after_the_next_while_all_others_make_snapshots() {
    let scene = first_condemned();
    let source = scene.source();
    let others = tempfile::tempdir().unwrap();
    fs::write(others.path().join("file"), noise(77, 5000)).unwrap();
    let create_long = |repo: &Arc<Repository>| create(repo, &source, 9).map(Some);
    sweep(&scene, false, &create_long, move |store| {
        for (hour, policy) in [(10, keep_last(1)), (11, Policy::default()), (12, Policy::default())] {
            prune(&open(store.clone()).unwrap(), policy, false).unwrap();
            store.advance(8 * 24 * HOUR);
            create_elsewhere(store, others.path(), hour);
        }
    });
}

/// A backup that takes longer than the grace period: several of them pass while it runs, with a prune each.
#[test]
fn a_create_lasts_for_longer_than_the_grace_period() {
    let scene = first_condemned();
    let source = scene.source();
    let create_long = |repo: &Arc<Repository>| create(repo, &source, 9).map(Some);
    sweep(&scene, false, &create_long, |store| {
        for policy in [keep_last(1), Policy::default(), Policy::default(), Policy::default()] {
            store.advance(30 * HOUR);
            prune_after(&open(store.clone()).unwrap(), policy, 24 * HOUR, false).unwrap();
        }
    });
}
