//! Whoever can put objects into the store, even sealed with the right keys, blocks no restore and steers none: what an
//! index file says is believed only as far as where to look, and other nonsense is passed over.

use super::faults::Scene;
use super::*;
use crate::format::index::{Index, Record};
use crate::job::repair;

/// Makes an index file say something else.
type Forge = fn(&mut Index);

/// Each blob is said to be where the next one of its kind is.
fn redirect(index: &mut Index) {
    let mut records: Vec<Record> = index.records.clone();
    records.sort_by_key(|record| (record.kind as u8, record.id));
    for kind in records.chunk_by_mut(|a, b| a.kind == b.kind) {
        let ids: Vec<_> = kind.iter().map(|record| record.id).collect();
        kind.iter_mut().zip(ids.iter().cycle().skip(1)).for_each(|(record, id)| record.id = *id);
    }
    index.records = records;
}

/// Nothing is in the packs.
fn conceal(index: &mut Index) {
    index.records.clear();
}

/// Everything is a little shorter.
fn shorten(index: &mut Index) {
    index.records.iter_mut().for_each(|record| record.plain_bytes = record.plain_bytes.saturating_sub(1).max(1));
}

const FORGERIES: [(&str, Forge); 3] = [("redirected", redirect), ("concealed", conceal), ("shortened", shorten)];

fn index_files(store: &Memory) -> Vec<String> {
    store.list(layout::INDEX).unwrap().into_iter().map(|l| l.path).collect()
}

/// Puts a forged version of each index file into a store, which takes the file's place or comes before it.
fn forge(store: &Arc<Memory>, change: Forge, beside: bool) {
    let repo = open(store.clone()).unwrap();
    for path in index_files(store) {
        loop {
            let mut index = repo.open_index(&path).unwrap();
            change(&mut index);
            let (id, bytes) = index.seal(repo.keys()).unwrap();
            // The first one that describes a pack is believed.
            if beside && layout::index(id) > path {
                continue;
            }
            store.put(&layout::index(id), bytes).unwrap();
            break;
        }
        if !beside {
            store.delete(&[path]).unwrap();
        }
    }
}

fn assert_all_restore(scene: &Scene, store: &Arc<Memory>, case: &str) {
    for (id, picture) in &scene.snapshots {
        let folder = tempfile::tempdir().unwrap();
        let repo = open(store.clone()).unwrap();
        restore(&repo, *id, &scene.source(), &folder.path().join("target"), false);
        assert_same(&portrait(&folder.path().join("target")), picture);
        // A file of its own, too.
        let selected = selected(&repo, *id, &scene.source()).unwrap();
        let mut out = Vec::new();
        crate::job::look::dump(&repo, &selected, b"inner/same", &mut out, &Reporter::silent()).unwrap();
        assert_eq!(out, noise(0, 70_000), "{case}");
    }
}

#[test]
fn a_forged_index_misleads_nobody() {
    let scene = Scene::with(3);
    let before = objects(&*scene.store);
    for (name, change) in FORGERIES {
        for beside in [false, true] {
            let case = format!("{name}, beside the true one: {beside}");
            let store = copy(&before);
            forge(&store, change, beside);
            assert_all_restore(&scene, &store, &case);
            let repo = open(store.clone()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            restore(&repo, scene.snapshots[0].0, &scene.source(), &folder.path().join("target"), false);
            let notes = repo.take_notes();
            assert!(notes.iter().any(|note| note.what == layout::INDEX), "{case}: {notes:#?}");
            // A new snapshot is made in spite of it, and whole.
            let picture = expected(&scene.source());
            let id = create(&open(store.clone()).unwrap(), &scene.source(), 9).unwrap();
            assert_restores(&open(store.clone()).unwrap(), id, &scene.source(), &picture);
            repair::repair_index(&open(store.clone()).unwrap(), &Reporter::silent()).unwrap();
            assert_sound(&open(store.clone()).unwrap());
            let repo = open(store.clone()).unwrap();
            assert_restores(&repo, id, &scene.source(), &picture);
            assert!(repo.take_notes().is_empty(), "{case}");
        }
    }
}

#[test]
fn an_old_index_that_is_back_misleads_no_reader() {
    let mut scene = Scene::with(3);
    let old: Vec<_> =
        index_files(&scene.store).into_iter().map(|path| (scene.store.get(&path, u64::MAX).unwrap(), path)).collect();
    for _ in 0..2 {
        prune(&scene.repo(), keep_last(1), false).unwrap();
        scene.store.advance(10);
    }
    scene.snapshots.drain(..2);
    for alone in [false, true] {
        let store = copy(&objects(&*scene.store));
        if alone {
            store.delete(&index_files(&store)).unwrap();
        }
        old.iter().for_each(|(bytes, path)| store.put(path, bytes.clone()).unwrap());
        assert_all_restore(&scene, &store, &format!("alone: {alone}"));
    }
}

#[test]
fn nonsense_under_every_name_is_passed_over() {
    let scene = Scene::with(2);
    let other = Scene::with(1);
    let store = copy(&objects(&*scene.store));
    // Of another repository, whose keys are others, and of nobody.
    let mut strange: Vec<Vec<u8>> = objects(&*other.store).into_values().collect();
    strange.push(noise(5, 3000));
    strange.push(Vec::new());
    let unhex = |n: usize| format!("{n:032x}");
    for (n, bytes) in strange.into_iter().enumerate() {
        let hash = blake3::hash(&bytes).to_hex();
        for folder in [layout::INDEX, layout::MARKS, layout::TOMBS, layout::LIVE, "bundles/", layout::KEYS] {
            store.put(&format!("{folder}{hash}"), bytes.clone()).unwrap();
        }
        for kind in ["d", "m"] {
            store.put(&format!("packs/{kind}/{}/{hash}", &hash[..2]), bytes.clone()).unwrap();
        }
        store.put(&layout::session(&unhex(n), layout::FIRST), bytes.clone()).unwrap();
        store.put(&format!("elsewhere/{n}"), bytes).unwrap();
    }
    assert_all_restore(&scene, &store, "nonsense");
    let picture = expected(&scene.source());
    let id = create(&open(store.clone()).unwrap(), &scene.source(), 9).unwrap();
    assert_restores(&open(store.clone()).unwrap(), id, &scene.source(), &picture);
}
