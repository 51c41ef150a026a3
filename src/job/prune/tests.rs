//! Prunes of made-up repositories in memory. After each, all that remains is read by a fresh process.

use super::*;
use crate::backend::{Backend, Faulty, layout};
use crate::format::control::{self, Condemned, SessionKind};
use crate::format::header::Kind;
use crate::id::GcId;
use crate::job::forget::{forget, undo_forget};
use crate::repo::testing::{Db, World, noise, records, sessions};
use crate::repo::{MarkNote, Named};

pub(super) fn keep_last(n: u32) -> Policy {
    Policy { last: Some(n), ..Policy::default() }
}

/// No grace, no unused space.
pub(super) fn strict(policy: Policy) -> Options {
    Options {
        policy,
        filter: Filter::default(),
        dry_run: false,
        max_unused: Limit::Bytes(0),
        max_repack: None,
        grace_secs: 0,
        instant: false,
    }
}

pub(super) fn prune_with(world: &World, options: &Options) -> Result<Summary> {
    run(&world.reopen_through(world.memory.clone()), options, &mut |_| {}, &Reporter::silent())
}

pub(super) fn prune(world: &World, policy: Policy) -> Summary {
    let summary = prune_with(world, &strict(policy)).unwrap();
    world.memory.advance(10);
    assert!(sessions(&*world.memory).is_empty());
    summary
}

/// Five generations of three files each, of which each shares one with all, one with the next, and of a database.
pub(super) fn five_generations() -> World {
    let world = World::new();
    let mut db = Db::default();
    for n in 1..=5u64 {
        let files = [noise(0, 90_000), noise(100 + n / 2, 70_000), noise(200 + n, 300)];
        let all: Vec<_> = (0..100).map(|page| (page, page as u64)).collect();
        let changed = if n == 1 { all } else { vec![(n as usize, 1000 + n), (50 + n as usize, 2000 + n)] };
        world.snapshot("/s", n, &files, |writer| Some(db.store(&world.repo, writer, &changed, n % 2 == 0)));
        world.memory.advance(10);
    }
    world
}

/// Everything in the store, but sessions.
pub(super) fn objects(world: &World) -> Vec<String> {
    world.paths("").into_iter().filter(|p| layout::parse_session(p).is_none()).collect()
}

#[test]
fn two_runs_leave_nothing_unused() {
    let world = five_generations();
    let (_, before) = world.packs();
    let first = prune(&world, keep_last(2));
    assert_eq!(first.forgotten, 3);
    assert_eq!(first.verdicts.iter().filter(|v| !v.keep.is_empty()).count(), 2);
    assert_eq!((first.packs_deleted, first.bytes_unused_kept), (0, 0));
    assert!(first.packs_condemned > 0 && first.packs_repacked > 0);
    assert_eq!(world.read_all(), [4, 5]);
    assert_eq!(world.paths(layout::TOMBS).len(), 3);

    let second = prune(&world, Policy::default());
    assert_eq!(second.packs_deleted, first.packs_condemned);
    assert_eq!(second.bytes_deleted, first.bytes_condemned);
    assert_eq!((second.forgotten, second.packs_condemned), (0, 0));
    assert_eq!(world.read_all(), [4, 5]);
    assert!(world.paths(layout::TOMBS).is_empty() && records(&*world.memory).is_empty());
    assert_eq!(world.paths(layout::INDEX).len(), 1);
    assert!(world.packs().1 < before);

    let third = prune(&world, Policy::default());
    assert_eq!((third.packs_deleted, third.packs_condemned), (0, 0));
    // A fresh repository with the same two generations has as much, but for rounding of two packs to Padmé lengths.
    let needed = 90_000 + 2 * 70_000 + 3 * 64 * 512;
    assert!(world.packs().1 < needed + 50_000, "{:?}", world.packs());
}

#[test]
fn wholly_unused_packs_need_no_copying() {
    let world = World::new();
    for n in 1..=3 {
        world.snapshot("/s", n, &[noise(n, 100_000)], |_| None);
    }
    let first = prune(&world, keep_last(1));
    assert_eq!((first.packs_condemned, first.packs_repacked), (4, 0));
    assert_eq!(prune(&world, Policy::default()).packs_deleted, 4);
    assert_eq!(world.packs().0, 2);
    assert_eq!(world.read_all(), [3]);
}

#[test]
fn limits_bound_what_is_repacked() {
    let world = five_generations();
    let of = |max_unused, max_repack| {
        let options = Options { max_unused, max_repack, dry_run: true, ..strict(keep_last(1)) };
        let summary = prune_with(&world, &options).unwrap();
        (summary.packs_repacked, summary.bytes_unused_kept)
    };
    let (none, all) = of(Limit::Bytes(u64::MAX), None);
    assert!(none == 0 && all > 10_000);
    assert_eq!(of(Limit::Percent(100.0), None), (0, all));
    assert_eq!(of(Limit::Bytes(0), Some(0)), (0, all));
    assert_eq!(of(Limit::Bytes(0), None).1, 0);
    assert_eq!(of(Limit::Percent(0.0), None).1, 0);
    let (packs, rest) = of(Limit::Bytes(all - 1), None);
    assert!(packs == 1 && rest > 0 && rest < all);
    let (_, at_default) = of(Limit::default(), None);
    assert!(at_default < 10_000, "{at_default}");
    prune_with(&world, &Options { max_unused: Limit::Bytes(all - 1), ..strict(keep_last(1)) }).unwrap();
    assert_eq!(world.read_all(), [5]);
}

#[test]
fn a_frame_partly_needed_is_taken_apart() {
    let world = World::new();
    let files: Vec<_> = (0..20).map(|n| noise(n, 2000)).collect();
    world.snapshot("/s", 1, &files, |_| None);
    world.snapshot("/s", 2, &files[..3], |_| None);
    let first = prune(&world, keep_last(1));
    assert_eq!(first.packs_repacked, 1);
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [2]);
    assert!(world.packs().1 < 12_000, "{:?}", world.packs());
}

#[test]
fn many_small_packs_and_index_files_are_merged() {
    let world = World::new();
    for n in 1..=20 {
        world.snapshot("/s", n, &[noise(n, 1000)], |_| None);
    }
    let first = prune(&world, Policy::default());
    assert_eq!((first.packs_repacked, first.bytes_unused_kept), (40, 0));
    prune(&world, Policy::default());
    assert_eq!(world.read_all().len(), 20);
    assert_eq!((world.packs().0, world.paths(layout::INDEX).len()), (2, 1));
    assert_eq!(prune(&world, Policy::default()).packs_condemned, 0);
}

/// Makes all records of condemned packs look as if written so many seconds earlier.
fn age_records(world: &World, secs: i64) {
    change_records(world, |record| record.time.secs -= secs);
}

pub(super) fn change_records(world: &World, change: impl Fn(&mut Condemned)) {
    for found in world.repo.condemned(&Reporter::silent()).unwrap() {
        let mut record = found.record;
        change(&mut record);
        let bytes = control::seal(world.repo.keys(), Kind::Gc, &record).unwrap();
        world.memory.delete(&[found.path]).unwrap();
        world.memory.put(&layout::gc(GcId(*blake3::hash(&bytes).as_bytes())), bytes).unwrap();
    }
}

#[test]
fn the_grace_period_counts_by_both_clocks() {
    let world = five_generations();
    let wait = Options { grace_secs: 86_400, ..strict(Policy::default()) };
    prune(&world, keep_last(1));
    let waits = |why: &str| {
        let summary = prune_with(&world, &wait).unwrap();
        assert_eq!(summary.packs_deleted, 0, "{why}");
        assert!(summary.waiting_for[0].contains("grace"), "{:?}", summary.waiting_for);
    };
    waits("just condemned");
    age_records(&world, 90_000);
    waits("the store's clock has not moved");
    world.memory.advance(90_000);
    assert!(prune_with(&world, &wait).unwrap().packs_deleted > 0);
    assert_eq!(world.read_all(), [5]);
    prune(&world, Policy::default());
    world.snapshot("/s", 6, &[noise(6, 100)], |_| None);
    prune(&world, keep_last(1));
    world.memory.advance(90_000);
    waits("this machine's clock has not moved");
}

#[test]
fn packs_of_a_killed_run_are_reclaimed() {
    let world = five_generations();
    let (packs, _) = world.packs();
    let id = world.snapshot("/s", 6, &[noise(6, 1000)], |_| None);
    let indexes = world.paths(layout::INDEX);
    let newest = indexes.iter().find(|p| {
        world.repo.open_index(p).unwrap().packs.len() == 2 && {
            let index = world.repo.open_index(p).unwrap();
            let wanted = world.repo.keys().blob_id(crate::crypto::BlobType::Chunk, &noise(6, 1000));
            index.records.iter().any(|r| r.id == wanted)
        }
    });
    world.memory.delete(&[newest.unwrap().clone(), layout::snapshot(id)]).unwrap();
    assert_eq!(prune(&world, Policy::default()).packs_condemned, 2);
    assert_eq!(prune(&world, Policy::default()).packs_deleted, 2);
    assert_eq!(world.packs().0, packs);
    assert_eq!(world.read_all(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_snapshot_that_needs_a_condemned_pack_reinstates_it() {
    let world = five_generations();
    let tree = world.repo.read_snapshots().unwrap().0[0].snapshot.tree;
    let first = prune(&world, keep_last(1));
    world.commit("/s", 6, tree);
    let second = prune(&world, Policy::default());
    assert!(second.packs_deleted < first.packs_condemned);
    assert_eq!(world.read_all(), [5, 6]);
    assert!(records(&*world.memory).is_empty() || second.packs_condemned > 0);
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [5, 6]);
    let repo = world.reopen();
    let needed = repo.reachable([tree], &Reporter::silent()).unwrap();
    assert!(needed.ids(&repo.index()).iter().all(|id| !repo.index().usable_slots(id).is_empty()));
}

#[test]
fn forgetting_can_be_undone_until_the_packs_are_deleted() {
    let world = five_generations();
    let ids: Vec<_> = world.repo.read_snapshots().unwrap().0.iter().map(|n| n.id).collect();
    let reporter = Reporter::silent();
    prune(&world, keep_last(1));
    assert_eq!(undo_forget(&world.reopen(), &[ids[1].to_string()], &reporter).unwrap(), [ids[1]]);
    assert_eq!(world.read_all(), [2, 5]);
    let second = prune(&world, Policy::default());
    assert_eq!(world.read_all(), [2, 5]);
    assert!(second.packs_deleted > 0);
    assert!(world.paths(layout::TOMBS).is_empty(), "what could not be taken back any more is gone");
    assert!(undo_forget(&world.reopen(), &[ids[0].to_string()], &reporter).is_err());
    forget(&world.reopen(), &[ids[1]], &reporter).unwrap();
    prune(&world, Policy::default());
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [5]);
}

#[test]
fn tombs_that_lose_nothing_stay() {
    let world = five_generations();
    let named = world.repo.read_snapshots().unwrap().0.remove(4);
    let twin = world.commit("/s", 6, named.snapshot.tree);
    forget(&world.reopen(), &[named.id], &Reporter::silent()).unwrap();
    prune(&world, keep_last(1));
    assert!(prune(&world, Policy::default()).packs_deleted > 0);
    assert_eq!(world.paths(layout::TOMBS), [layout::tomb(named.id)]);
    undo_forget(&world.reopen(), &[named.id.to_string()], &Reporter::silent()).unwrap();
    assert_eq!(world.read_all(), [5, 6]);
    assert!(world.paths(layout::SNAPSHOTS).contains(&layout::snapshot(twin)));
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_will_happen() {
    let world = five_generations();
    for options in [strict(keep_last(2)), strict(Policy::default())] {
        let before = objects(&world);
        let store = Arc::new(Faulty::new(world.memory.clone(), 0));
        let dry = Options { dry_run: true, ..options.clone() };
        let planned = run(&world.reopen_through(store.clone()), &dry, &mut |_| {}, &Reporter::silent()).unwrap();
        assert_eq!((store.writes(), objects(&world)), (0, before));
        let done = prune(&world, options.policy);
        let figures = |s: &Summary| {
            let reasons: Vec<_> = s.verdicts.iter().map(|v| v.keep.clone()).collect();
            let packs = [s.packs_deleted, s.packs_condemned, s.packs_repacked, s.forgotten];
            (reasons, packs, [s.bytes_deleted, s.bytes_condemned, s.bytes_repacked, s.bytes_unused_kept])
        };
        assert_eq!(figures(&planned), figures(&done));
    }
}

#[test]
fn instant_needs_to_be_alone_and_frees_at_once() {
    let world = five_generations();
    let instant = Options { instant: true, grace_secs: 86_400, ..strict(keep_last(1)) };
    let other = SessionGuard::start(&world.reopen(), SessionKind::Write).unwrap();
    assert!(matches!(prune_with(&world, &instant), Err(Error::Locked { .. })));
    assert_eq!(world.read_all(), [1, 2, 3, 4, 5]);
    drop(other);
    let summary = prune_with(&world, &instant).unwrap();
    assert_eq!((summary.forgotten, summary.packs_condemned), (4, summary.packs_deleted));
    assert!(summary.packs_repacked > 0);
    assert_eq!(world.read_all(), [5]);
    let after = prune(&world, Policy::default());
    assert_eq!((after.packs_condemned, after.packs_deleted), (0, 0));
}

#[test]
fn what_cannot_be_read_aborts() {
    let lose: [&dyn Fn(&World); 6] = [
        &|world| world.damage(&world.paths(layout::SNAPSHOTS)[2]),
        &|world| world.clear(layout::METADATA_PACKS),
        &|world| world.paths(layout::METADATA_PACKS).iter().for_each(|p| world.damage(p)),
        &|world| world.clear(layout::DATA_PACKS),
        &|world| world.paths(layout::DATA_PACKS).iter().for_each(|p| world.memory.put(p, vec![0; 99]).unwrap()),
        // The frames themselves: found out only when they are copied.
        &|world| world.paths(layout::DATA_PACKS).iter().for_each(|p| world.damage(p)),
    ];
    for (n, lose) in lose.iter().enumerate() {
        let world = five_generations();
        lose(&world);
        let before = objects(&world);
        let error = prune_with(&world, &strict(keep_last(2))).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. } | Error::Missing { .. }), "{n}: {error}");
        let gone = before.iter().filter(|p| !world.paths("").contains(p));
        // A policy's snapshots may be forgotten by then, not more: they are tombs.
        assert_eq!(gone.filter(|p| !p.starts_with(layout::SNAPSHOTS)).count(), 0, "{n}");
        assert_eq!(world.paths(layout::SNAPSHOTS).len() + world.paths(layout::TOMBS).len(), 5, "{n}");
        assert!(records(&*world.memory).is_empty() && sessions(&*world.memory).is_empty(), "{n}");
    }
    // Condemned packs are not deleted, either.
    let world = five_generations();
    prune(&world, keep_last(2));
    world.damage(&world.paths(layout::SNAPSHOTS)[0]);
    let before = objects(&world);
    let error = prune_with(&world, &strict(Policy::default())).unwrap_err();
    assert!(error.to_string().contains(&world.paths(layout::SNAPSHOTS)[0]), "{error}");
    assert_eq!(objects(&world), before);
}

#[test]
fn a_missing_pack_is_not_relied_on() {
    let world = World::new();
    let file = noise(1, 100_000);
    world.snapshot("/s", 1, std::slice::from_ref(&file), |_| None);
    let first = world.paths(layout::DATA_PACKS).remove(0);
    // The same again in a second pack: the writer does not know of the first.
    let index = world.paths(layout::INDEX).remove(0);
    let bytes = world.memory.get(&index, u64::MAX).unwrap();
    world.memory.delete(std::slice::from_ref(&index)).unwrap();
    world.snapshot("/s", 2, &[file], |_| None);
    world.memory.put(&index, bytes).unwrap();
    world.memory.delete(&[first]).unwrap();
    world.memory.advance(10);
    for _ in 0..3 {
        prune(&world, Policy::default());
        assert_eq!(world.read_all(), [1, 2]);
    }
}

#[test]
fn a_damaged_index_file_does_not_stop_it() {
    let world = five_generations();
    world.damage(&world.paths(layout::INDEX)[2]);
    prune(&world, keep_last(2));
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [4, 5]);
}

#[test]
fn filters_limit_what_the_policy_judges() {
    let world = five_generations();
    world.snapshot("/other", 1, &[noise(1, 10)], |_| None);
    world.snapshot("/other", 2, &[noise(2, 10)], |_| None);
    let filter = Filter { sources: vec!["/other".into()], ..Filter::default() };
    let summary = prune_with(&world, &Options { filter, ..strict(keep_last(1)) }).unwrap();
    assert_eq!((summary.forgotten, summary.verdicts.len()), (1, 7));
    assert_eq!(world.read_all().len(), 6);
    let none = Policy { tags: vec!["x".into()], ..Policy::default() };
    let before = objects(&world);
    assert!(matches!(prune_with(&world, &strict(none)), Err(Error::Refused { .. })));
    assert_eq!(objects(&world), before);
}

#[test]
fn leftovers_go_after_a_day() {
    let world = five_generations();
    world.memory.put("tmp/old", vec![1]).unwrap();
    world.memory.advance(90_000);
    world.memory.put("tmp/new", vec![1]).unwrap();
    prune(&world, Policy::default());
    assert_eq!(world.paths("tmp/"), ["tmp/new"]);
}

#[test]
fn pinned_snapshots_stay_whatever_the_policy() {
    let world = five_generations();
    let all = world.repo.read_snapshots().unwrap().0;
    let pin = |named: &Named, pin| {
        world.repo.put_mark(&mut named.clone(), &MarkNote { pin: Some(pin), ..MarkNote::default() }).unwrap();
    };
    pin(&all[1], true);
    pin(&all[2], true);
    pin(&world.repo.read_snapshots().unwrap().0[2], false);
    let summary = prune(&world, keep_last(1));
    let kept = summary.verdicts.iter().filter(|v| !v.keep.is_empty());
    let kept: Vec<_> = kept.map(|v| (v.named.snapshot.generation, v.keep.join(", "))).collect();
    assert_eq!(kept, [(2, "pinned".into()), (5, "last".into())]);
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [2, 5]);
}

#[test]
fn tags_that_came_later_count() {
    let world = five_generations();
    let mut first = world.repo.read_snapshots().unwrap().0.remove(0);
    world.repo.put_mark(&mut first, &MarkNote { add: vec!["gold".into()], ..MarkNote::default() }).unwrap();
    prune(&world, Policy { tags: vec!["gold".into()], ..keep_last(1) });
    assert_eq!(world.read_all(), [1, 5]);
}

#[test]
fn a_mark_that_can_not_be_read_may_pin_anything() {
    let world = five_generations();
    let mut first = world.repo.read_snapshots().unwrap().0.remove(0);
    world.repo.put_mark(&mut first, &MarkNote { pin: Some(true), ..MarkNote::default() }).unwrap();
    forget(&world.repo, &[world.repo.read_snapshots().unwrap().0[2].id], &Reporter::silent()).unwrap();
    let mark = world.paths(layout::MARKS).remove(0);
    let sound = world.memory.get(&mark, u64::MAX).unwrap();
    world.damage(&mark);
    let repo = world.reopen_through(world.memory.clone());
    let reporter = Reporter::silent();
    let summary = run(&repo, &strict(keep_last(1)), &mut |_| {}, &reporter).unwrap();
    assert_eq!(summary.forgotten, 0);
    assert!(summary.packs_condemned > 0, "space is reclaimed as ever");
    assert!(reporter.problems().iter().any(|p| p.what == mark && p.why.contains("forgets none")));
    assert_eq!(world.read_all(), [1, 2, 4, 5]);
    world.memory.put(&mark, sound).unwrap();
    prune(&world, keep_last(1));
    assert_eq!(world.read_all(), [1, 5]);
}

#[test]
fn marks_go_with_their_snapshots() {
    let world = five_generations();
    for mut named in world.repo.read_snapshots().unwrap().0 {
        world.repo.put_mark(&mut named, &MarkNote { add: vec!["a".into()], ..MarkNote::default() }).unwrap();
    }
    let options = Options { grace_secs: 0, ..strict(keep_last(2)) };
    prune_with(&world, &options).unwrap();
    assert_eq!(world.paths(layout::MARKS).len(), 5, "what is forgotten may be taken back");
    world.memory.advance(10);
    prune(&world, Policy::default());
    assert_eq!((world.paths(layout::TOMBS).len(), world.paths(layout::MARKS).len()), (0, 2));
    assert!(world.repo.read_snapshots().unwrap().0.iter().all(|named| named.tags() == ["a"]));
}
