//! Prune over a long time, and of much.

use super::tests::{keep_last, prune, strict};
use super::*;
use crate::backend::{Local, layout};
use crate::crypto::KdfCost;
use crate::format::keyslot::Unlock;
use crate::id::BlobId;
use crate::repo::Needs;
use crate::repo::testing::{Db, Dice, World, memory_mib, noise, store_index};

/// A year of nights, each with a small file of its own; with a prune every so many nights. Returns how many packs there
/// are, and index files, at most and at the end.
fn year(every: u64, policy: &Policy) -> (World, usize, usize) {
    let world = World::new();
    let (mut most_packs, mut most_index_files) = (0, 0);
    for night in 1..=365 {
        world.snapshot("/s", night, &[noise(night, 200_000), noise(0, 50_000)], |_| None);
        if night % every == 0 {
            let options = Options { max_unused: Limit::default(), grace_secs: 0, ..strict(policy.clone()) };
            super::tests::prune_with(&world, &options).unwrap();
        }
        world.memory.advance(86_400);
        most_packs = most_packs.max(world.packs().0);
        most_index_files = most_index_files.max(world.paths(layout::INDEX).len());
    }
    (world, most_packs, most_index_files)
}

#[test]
fn a_year_of_small_nights_leaves_few_packs_and_index_files() {
    // Nothing is forgotten: 73 MB in packs of 4 MiB and above, and the last ones.
    let (world, most_packs, most_index_files) = year(1, &Policy::default());
    let (packs, bytes) = world.packs();
    println!("all kept: {packs} packs of {bytes} bytes, at most {most_packs}; index files at most {most_index_files}");
    assert!(packs <= 19 + 2 * 11, "{packs} packs");
    assert!(most_index_files <= 20, "{most_index_files} index files");
    assert_eq!(world.read_all().len(), 365);

    let policy = Policy { last: Some(20), ..Policy::default() };
    let (world, most_packs, most_index_files) = year(7, &policy);
    let (packs, bytes) = world.packs();
    println!("20 kept: {packs} packs of {bytes} bytes, at most {most_packs}; index files at most {most_index_files}");
    assert!(packs <= 60 && most_index_files <= 24, "{packs} packs, {most_index_files} index files");
    for _ in 0..3 {
        prune(&world, keep_last(20));
    }
    assert_eq!(world.read_all().len(), 20);
    // The file that all share, 20 of their own, and metadata.
    assert!(world.packs().1 < 4_400_000, "{:?}", world.packs());
}

/// 4,096 pages of which each night changes some, in places at random with a few hot ones.
fn nights(dice: &mut Dice) -> Vec<Vec<(usize, u64)>> {
    let changed = |night: u64, dice: &mut Dice| {
        let mut pages: Vec<usize> = (0..200).map(|n| dice.roll(if n % 2 == 0 { 4096 } else { 400 })).collect();
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().map(|page| (page, night << 32 | page as u64)).collect()
    };
    let first = (0..4096).map(|page| (page, page as u64)).collect();
    std::iter::once(first).chain((1..30).map(|night| changed(night, dice))).collect()
}

#[test]
fn thirty_nights_pruned_to_two_are_as_small_as_two() {
    let nights = nights(&mut Dice::new(7));
    let (world, mut db) = (World::new(), Db::default());
    for (n, changed) in (1..).zip(&nights) {
        world.snapshot("/s", n, &[], |writer| Some(db.store(&world.repo, writer, changed, false)));
        world.memory.advance(10);
    }
    let before = world.packs().1;
    for _ in 0..2 {
        prune(&world, keep_last(2));
    }
    assert_eq!(world.read_all(), [29, 30]);

    let (fresh, mut db) = (World::new(), Db::default());
    let mut state: Vec<u64> = (0..4096).collect();
    for (page, seed) in nights.iter().take(29).flatten() {
        state[*page] = *seed;
    }
    let all: Vec<_> = state.into_iter().enumerate().collect();
    for (n, changed) in [(1, &all), (2, nights.last().unwrap())] {
        fresh.snapshot("/s", n, &[], |writer| Some(db.store(&fresh.repo, writer, changed, false)));
    }
    let (pruned, fresh) = (world.packs().1, fresh.packs().1);
    println!("{before} bytes, pruned to {pruned}; fresh {fresh}: {:.3}", pruned as f64 / fresh as f64);
    assert!(pruned * 100 < fresh * 115, "{pruned} bytes, and {fresh} in a fresh repository");
}

/// Measures; run it alone, best in a release build: `cargo test --release --lib millions -- --ignored --nocapture`.
#[test]
#[ignore = "it measures the plan of five million blobs, and proves nothing"]
fn the_plan_of_millions_of_blobs() {
    let blobs = std::env::var("BLOBS").map_or(5_000_000, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Local::new(folder.path()).unwrap());
    let secret = Unlock::KeyFile(vec![7; 32]);
    let repo = Repository::init(store, &secret, KdfCost::default(), "test").unwrap();
    store_index(&repo, blobs);
    // From here on the peak counts anew.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    println!("{blobs} blobs; before: {} MiB", memory_mib("VmRSS"));
    let begun = std::time::Instant::now();
    let loaded = repo.load_index_files(&[], &Reporter::silent()).unwrap();
    let (files, secs) = (loaded.files.len(), begun.elapsed().as_secs_f64());
    println!("{files} index files loaded: {secs:.1} s, {} MiB, peak {} MiB", memory_mib("VmRSS"), memory_mib("VmHWM"));
    let index = repo.index();
    let needed = (0..blobs).filter(|n| n % 10 > 0 && n % 300_000 > 20_000);
    let needs = Needs::of(&index, needed.map(|n| BlobId(*blake3::hash(&n.to_le_bytes()).as_bytes())));
    println!("needs: {:.1} s", begun.elapsed().as_secs_f64() - secs);
    let (none, secs) = (Default::default(), begun.elapsed().as_secs_f64());
    for max_repack in [Some(10 << 30), None] {
        let (unsound, young, reinstated) = (&none, &none, &none);
        let max_unused = Limit::default();
        let flatten = &flatten::Flatten::default();
        let inputs =
            Inputs { index: &index, needs: &needs, unsound, young, reinstated, max_unused, max_repack, flatten };
        let plan = reclaim::reclaim(&inputs).unwrap();
        let (unused, repack, copies) = (plan.unused.len(), plan.repack.len(), plan.copies.len());
        println!("plan: {unused} packs unused, {repack} to repack with {copies} blobs");
        let secs = begun.elapsed().as_secs_f64() - secs;
        println!("  so far {secs:.1} s, {} MiB, peak {} MiB", memory_mib("VmRSS"), memory_mib("VmHWM"));
    }
}
