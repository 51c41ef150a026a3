//! Segments of which some pages are not needed any more: what a prune drops, and who may rely on what is left.

use super::tests::{keep_last, prune, prune_with, strict};
use super::*;
use crate::backend::{Backend, layout};
use crate::crypto::BlobType;
use crate::format::control::SessionKind;
use crate::id::BlobId;
use crate::job::forget::{forget, undo_forget};
use crate::repo::Writer;
use crate::repo::testing::{Db, Dice, World, database_node, noise, records};

fn all_pages(pages: usize) -> Vec<(usize, u64)> {
    (0..pages).map(|n| (n, n as u64)).collect()
}

/// A database of two segments, of which the second generation changed all but a few pages of the first.
fn two_generations() -> (World, Db) {
    let (world, mut db) = (World::new(), Db::default());
    let changed: Vec<_> = (10..256).map(|n| (n, 5000 + n as u64)).collect();
    for (n, pages) in [(1, all_pages(512)), (2, changed)] {
        world.snapshot("/s", n, &[], |writer| Some(db.store(&world.repo, writer, &pages, false)));
        world.memory.advance(10);
    }
    (world, db)
}

/// The segments of which no whole copy is there.
fn partial_segments(world: &World) -> Vec<BlobId> {
    let repo = world.reopen();
    let index = repo.index();
    let segments = index.iter().filter(|(_, p)| p.kind == BlobType::Segment).map(|(id, _)| *id);
    let mut partial: Vec<_> = segments.filter(|id| index.places(id).all(|p| index.slots(p).is_some())).collect();
    partial.dedup();
    partial
}

#[test]
fn dead_pages_are_dropped() {
    let (world, _) = two_generations();
    let before = world.packs().1;
    let first = prune(&world, keep_last(1));
    assert!(first.packs_repacked > 0 && first.bytes_rewritten > 0);
    prune(&world, Policy::default());
    assert_eq!(partial_segments(&world).len(), 1);
    assert_eq!(world.read_all(), [2]);
    let dropped = before - world.packs().1;
    assert!(dropped > 230 * 512, "{dropped}");
    let last = prune(&world, Policy::default());
    assert_eq!((last.packs_condemned, last.bytes_unused_kept), (0, 0));
    // Whoever rebuilds the index from the packs learns the same.
    world.clear(layout::INDEX);
    assert_eq!(prune(&world, Policy::default()).packs_condemned, 0);
    assert_eq!(partial_segments(&world).len(), 1);
    assert_eq!(world.read_all(), [2]);
}

#[test]
fn dead_pages_count_as_unused_space() {
    let (world, _) = two_generations();
    let of = |max_unused| {
        let options = Options { max_unused, dry_run: true, ..strict(keep_last(1)) };
        prune_with(&world, &options).unwrap()
    };
    let lazy = of(Limit::Percent(100.0));
    assert!((246 * 512..250 * 512).contains(&lazy.bytes_unused_kept), "{}", lazy.bytes_unused_kept);
    assert_eq!((lazy.packs_repacked, of(Limit::Percent(40.0)).packs_repacked), (0, 0));
    assert!(of(Limit::Percent(20.0)).packs_repacked > 0);
    assert_eq!(of(Limit::Bytes(0)).bytes_unused_kept, 0);
}

#[test]
fn a_partial_segment_is_not_taken_for_a_whole_one() {
    let (world, _) = two_generations();
    prune(&world, keep_last(1));
    prune(&world, Policy::default());
    let [partial] = partial_segments(&world)[..] else { panic!("one segment lost pages") };
    assert!(!world.reopen().index().is_usable(&partial));
    // The same pages come again, in the same segment: there is no other way to have them.
    let mut db = Db::default();
    world.snapshot("/other", 3, &[], |writer| Some(db.store(&world.repo, writer, &all_pages(512), false)));
    assert!(world.reopen().index().is_usable(&partial));
    world.memory.advance(10);
    assert_eq!(world.read_all(), [2, 3]);
    for _ in 0..3 {
        prune(&world, Policy::default());
        assert_eq!(world.read_all(), [2, 3]);
    }
    assert!(partial_segments(&world).is_empty());
    let repo = world.reopen();
    assert_eq!(repo.index().places(&partial).count(), 1, "one copy is enough");
}

fn tree_of(world: &World, n: usize) -> BlobId {
    world.reopen().read_snapshots().unwrap().0[n].snapshot.tree
}

#[test]
fn a_writer_copies_pages_that_were_dropped_behind_its_back() {
    for rescues in [true, false] {
        let (world, _) = two_generations();
        let tree = tree_of(&world, 0);
        let writer = world.reopen();
        prune(&world, keep_last(1));
        if rescues {
            SessionGuard::start(&writer, SessionKind::Write).unwrap().secure(tree, &Reporter::silent()).unwrap();
        }
        world.memory.advance(10);
        // Where the writer died before it could, the packs that were condemned are needed, and come back.
        world.commit("/s", 3, tree);
        assert_eq!(world.read_all(), [2, 3]);
        for _ in 0..3 {
            prune(&world, Policy::default());
            assert_eq!(world.read_all(), [2, 3], "rescues: {rescues}");
        }
    }
}

#[test]
fn pages_in_several_partial_copies_are_found() {
    let (world, _) = two_generations();
    let tree = tree_of(&world, 0);
    let late = world.reopen();
    prune(&world, keep_last(1));
    // As an index has it that was loaded when the partial copy was there and nothing was condemned.
    let reporter = Reporter::silent();
    late.load_index_files(&[], &reporter).unwrap();
    SessionGuard::start(&late, SessionKind::Write).unwrap().secure(tree, &reporter).unwrap();
    world.commit("/s", 3, tree);
    world.memory.advance(10);
    prune(&world, Policy::default());
    assert_eq!(partial_segments(&world).len(), 1, "two copies, neither of them whole");
    assert_eq!(world.read_all(), [2, 3]);
    for _ in 0..2 {
        prune(&world, Policy::default());
        assert_eq!(world.read_all(), [2, 3]);
    }
    // Neither is deleted while the other lacks what is needed, nor taken for the other.
    prune(&world, keep_last(1));
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [3]);
}

#[test]
fn forgetting_is_undone_with_its_pages_or_not_at_all() {
    let (world, _) = two_generations();
    let id = world.repo.read_snapshots().unwrap().0[0].id;
    let reporter = Reporter::silent();
    prune(&world, keep_last(1));
    undo_forget(&world.reopen(), &[id.to_string()], &reporter).unwrap();
    assert_eq!(world.read_all(), [1, 2]);
    prune(&world, Policy::default());
    assert_eq!(world.read_all(), [1, 2]);
    forget(&world.reopen(), &[id], &reporter).unwrap();
    prune(&world, Policy::default());
    assert_eq!(world.paths(layout::TOMBS).len(), 1);
    prune(&world, Policy::default());
    assert!(world.paths(layout::TOMBS).is_empty(), "the pages that it needs alone are gone");
    assert!(undo_forget(&world.reopen(), &[id.to_string()], &reporter).is_err());
    assert_eq!(world.read_all(), [2]);
}

/// Snapshots come, go, and come back, with and without deltas; prunes have all kinds of limits. Nothing is ever lost.
#[test]
fn nothing_is_lost_whatever_the_order() {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let (world, mut db) = (World::new(), Db::default());
        let mut gone: Vec<(SnapshotId, u64)> = Vec::new();
        let mut there: Vec<(SnapshotId, u64, BlobId)> = Vec::new();
        let reporter = Reporter::silent();
        for step in 1..30u64 {
            match dice.roll(6) {
                0..=2 => {
                    let pages = if db.segments().is_empty() {
                        all_pages(300 + dice.roll(600))
                    } else {
                        let first = dice.roll(250);
                        let dense = dice.chance(30);
                        let hit = |n: &usize, dice: &mut Dice| dice.chance(if dense && *n > first { 90 } else { 7 });
                        let hit: Vec<_> = (0..300).filter(|n| hit(n, &mut dice)).collect();
                        hit.into_iter().map(|n| (n, step * 10_000 + n as u64)).collect()
                    };
                    let delta = dice.chance(40);
                    let files = [noise(step % 7, 3000), noise(1000 + step, 500)];
                    let id = world.snapshot("/s", step, &files, |w| Some(db.store(&world.repo, w, &pages, delta)));
                    let (found, _) = world.repo.read_snapshots().unwrap();
                    let tree = found.iter().find(|n| n.id == id).unwrap().snapshot.tree;
                    there.push((id, step, tree));
                }
                // The newest stays: the database goes on from it.
                3 if there.len() > 1 => {
                    let (id, n, _) = there.remove(dice.roll(there.len() - 1));
                    forget(&world.reopen(), &[id], &reporter).unwrap();
                    gone.push((id, n));
                }
                4 if !gone.is_empty() => {
                    let (id, n) = gone.remove(dice.roll(gone.len()));
                    if undo_forget(&world.reopen(), &[id.to_string()], &reporter).is_ok() {
                        let (found, _) = world.repo.read_snapshots().unwrap();
                        let tree = found.iter().find(|n| n.id == id).unwrap().snapshot.tree;
                        there.insert(0, (id, n, tree));
                    }
                }
                _ => {
                    let max_unused = [Limit::Bytes(0), Limit::Percent(20.0), Limit::Percent(100.0)][dice.roll(3)];
                    let max_repack = dice.chance(30).then(|| dice.roll(400_000) as u64);
                    let options = Options { max_unused, max_repack, ..strict(Policy::default()) };
                    prune_with(&world, &options).unwrap();
                }
            }
            world.memory.advance(10);
            let mut generations = world.read_all();
            generations.sort_unstable();
            let mut wanted: Vec<_> = there.iter().map(|(_, n, _)| *n).collect();
            wanted.sort_unstable();
            assert_eq!(generations, wanted, "seed {seed}, step {step}");
        }
        for _ in 0..3 {
            prune(&world, Policy::default());
            assert_eq!(world.read_all().len(), there.len(), "seed {seed}");
        }
    }
}

#[test]
fn damage_is_not_carried_into_a_segment_written_anew() {
    let (world, _) = two_generations();
    let largest = world.memory.list(layout::DATA_PACKS).unwrap().into_iter().max_by_key(|l| l.bytes).unwrap();
    world.damage(&largest.path);
    world.damage(&largest.path.clone());
    let mut bytes = world.memory.get(&largest.path, u64::MAX).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    world.memory.put(&largest.path, bytes).unwrap();
    assert!(matches!(prune_with(&world, &strict(keep_last(1))), Err(Error::Corrupt { .. })));
    assert!(records(&*world.memory).is_empty());
}

#[test]
fn a_writer_in_memory_stores_what_only_a_partial_copy_has() {
    let (world, _) = two_generations();
    prune(&world, keep_last(1));
    prune(&world, Policy::default());
    let repo = world.reopen();
    let [partial] = partial_segments(&world)[..] else { panic!("one segment lost pages") };
    let slots = repo.index().usable_slots(&partial);
    assert_eq!((slots.count(), slots.has(9), slots.has(10)), (10, true, false));
    let tree = tree_of(&world, 0);
    let node = repo.read_tree(&tree).unwrap().into_iter().find_map(|node| node.database).unwrap();
    assert!(repo.is_map_usable(&node.map), "the pages that are there may be relied on");
    let writer = Writer::new(&repo, 3);
    assert!(writer.claims().claim(partial) && !writer.claims().claim(partial));
    drop(writer);
    let unknown = World::new();
    assert!(!unknown.repo.is_map_usable(&database_node(partial).database.unwrap().map));
}
