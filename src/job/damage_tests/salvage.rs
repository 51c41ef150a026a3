//! What `repair packs` saves, what `repair snapshots` makes of the rest, and readers without an index.

use super::*;
use crate::job::repair::{Fill, Options as Mending, What, repair_packs, repair_snapshots};

/// The data pack that holds a blob.
fn pack_of(store: &Arc<Memory>, kind: BlobType, plain: &[u8]) -> (String, Vec<u8>) {
    let repo = open(store);
    repo.load_index(&Reporter::silent()).unwrap();
    let place = repo.place(&repo.keys().blob_id(kind, plain)).unwrap();
    let path = layout::pack(Kind::DataPack, repo.index().packs()[place.pack as usize].id);
    let bytes = store.get(&path, u64::MAX).unwrap();
    (path, bytes)
}

fn can_read(repo: &Repository, plain: &[u8]) -> bool {
    repo.read_blob(&repo.keys().blob_id(BlobType::Chunk, plain), BlobType::Chunk).is_ok_and(|bytes| bytes == plain)
}

fn loaded(store: &Arc<Memory>) -> Arc<Repository> {
    let repo = open(store);
    repo.load_index(&Reporter::silent()).unwrap();
    repo
}

/// Chunks of the first generation, in the order in which they were stored.
fn chunks() -> [Vec<u8>; 5] {
    [text(0, 3000), text(100, 70_000), text(101, 90_000), text(50, 200), text(50, 200)]
}

#[test]
fn a_pack_that_is_cut_in_half_gives_its_first_frames_back() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let (path, bytes) = pack_of(&store, BlobType::Chunk, &chunks()[0]);
    for (without_index, without_directory) in [(false, false), (true, false), (false, true)] {
        let store = copy(&fixture.objects);
        let mut half = bytes[..bytes.len() / 2].to_vec();
        if without_index {
            let files: Vec<_> = store.list(layout::INDEX).unwrap().into_iter().map(|l| l.path).collect();
            store.delete(&files).unwrap();
        }
        if without_directory {
            half[60] ^= 1;
        }
        store.put(&path, half).unwrap();
        let reporter = Reporter::silent();
        let summary = repair_packs(&open(&store), &reporter).unwrap();
        assert_eq!((summary.packs_condemned, summary.unreadable_packs), (1, 0), "{summary:?}");
        assert!(summary.salvaged_blobs >= 1 && summary.damaged_blobs >= 1, "{summary:?}");
        let repo = loaded(&store);
        assert!(can_read(&repo, &chunks()[0]) && can_read(&repo, &chunks()[1]), "{without_index} {without_directory}");
        assert!(!can_read(&repo, &chunks()[2]));
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(damages(&problems).iter().all(|p| p.why.contains("lost:") && p.what != path), "{problems:#?}");
    }
}

#[test]
fn a_second_copy_elsewhere_heals() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let (path, bytes) = pack_of(&store, BlobType::Chunk, &chunks()[1]);
    // All data of the first generation once more, in a pack of its own.
    let repo = open(&store);
    let index: Vec<_> = store.list(layout::INDEX).unwrap();
    repo.replace_index(Default::default());
    fixture.source.store(&repo, 0);
    assert!(store.list(layout::INDEX).unwrap().len() > index.len());
    for at in [bytes.len() / 3, 70, 20] {
        let store = copy(&objects(&*store));
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        store.put(&path, flipped).unwrap();
        let summary = repair_packs(&open(&store), &Reporter::silent()).unwrap();
        assert_eq!((summary.damaged_blobs, summary.packs_condemned), (0, 1), "{at}: {summary:?}");
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(damages(&problems).is_empty(), "{problems:#?}");
        assert_eq!(summary.next_steps(), ["snapshot prune"]);
    }
}

/// The generation whose data pack is lost: its `a.txt`, a file in a part of `many`, and the changed pages.
fn second_generation_lost(fixture: &Fixture) -> Arc<Memory> {
    let store = copy(&fixture.objects);
    let (path, _) = pack_of(&store, BlobType::Chunk, &text(1, 3000));
    store.delete(&[path]).unwrap();
    repair_packs(&open(&store), &Reporter::silent()).unwrap();
    store
}

fn salvaged_nodes(repo: &Repository, id: SnapshotId) -> BTreeMap<String, Node> {
    let named = repo.read_snapshots().unwrap().0.into_iter().find(|n| n.id == id).unwrap();
    assert!(named.snapshot.is_salvaged());
    let root = repo.read_tree(&named.snapshot.tree).unwrap();
    let data = repo.read_tree(&root[0].tree.unwrap()).unwrap();
    data.into_iter().map(|n| (n.display_name(), n)).collect()
}

#[test]
fn what_is_left_of_a_snapshot_is_salvaged_and_what_is_lost_is_listed() {
    let fixture = fixture();
    let store = second_generation_lost(&fixture);
    let before = objects(&*store);
    let dry = Mending { dry_run: true, ..Default::default() };
    let planned = repair_snapshots(&open(&store), &dry, &Reporter::silent()).unwrap();
    assert!(objects(&*store) == before, "a dry run writes nothing");
    let reporter = Reporter::silent();
    let summary = repair_snapshots(&open(&store), &Mending::default(), &reporter).unwrap();
    assert_eq!(reporter.worst(), Some(Severity::Damage));
    assert_eq!(summary.examined, 2);
    let [affected] = &summary.affected[..] else { panic!("{summary:#?}") };
    assert_eq!(affected.original.id, fixture.snapshots[1]);
    let paths =
        |lost: &[repair::LostItem]| lost.iter().map(|i| String::from_utf8(i.path.clone()).unwrap()).collect::<Vec<_>>();
    assert_eq!(paths(&affected.lost), ["data/a.txt", "data/live.db", "data/many/n"]);
    assert_eq!(paths(&planned.affected[0].lost), paths(&affected.lost));
    // Exactly the pages that changed.
    let [first, second] = &fixture.source.databases;
    let page = |n: u64| n as usize * PAGE_BYTES..(n as usize + 1) * PAGE_BYTES;
    let all = (first.len() / PAGE_BYTES) as u64;
    let changed: Vec<u64> = (0..all).filter(|n| first[page(*n)] != second[page(*n)]).map(|n| n + 1).collect();
    let What::Pages { pages, lost, kept_as: None } = &affected.lost[1].what else { panic!("{affected:?}") };
    assert_eq!((*pages, lost.iter().cloned().flatten().collect::<Vec<_>>()), (all, changed));

    let id = affected.salvaged.unwrap();
    let repo = loaded(&store);
    let nodes = salvaged_nodes(&repo, id);
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["big.bin", "many", "soft"]);
    let named = repo.read_snapshots().unwrap().0.into_iter().find(|n| n.id == id).unwrap();
    let original = &affected.original.snapshot;
    let same = |s: &Snapshot| (s.time, s.generation, s.previous, s.host.clone(), s.source.clone());
    assert_eq!(same(&named.snapshot), same(original));
    assert_eq!((named.snapshot.counts.files, named.snapshot.counts.databases), (2, 0));
    let latest = repo.select("latest", &Default::default(), &Reporter::silent()).unwrap();
    assert_eq!(latest.named.id, id, "what is left comes after the snapshot itself");

    // Again: nothing new. Then the damaged one goes, and all is well; also when its tomb is gone.
    let snapshots = repo.snapshot_names().unwrap();
    let again = repair_snapshots(&open(&store), &Mending::default(), &Reporter::silent()).unwrap();
    assert_eq!((again.affected[0].salvaged, repo.snapshot_names().unwrap()), (Some(id), snapshots));
    let forget = Mending { forget: true, ..Default::default() };
    let forgotten = repair_snapshots(&open(&store), &forget, &Reporter::silent()).unwrap();
    assert!(forgotten.affected[0].forgotten && forgotten.affected[0].salvaged == Some(id));
    assert!(store.list(layout::TOMBS).unwrap().iter().any(|l| l.path == layout::tomb(fixture.snapshots[1])));
    let (_, problems) = check(&open(&store), ReadData::All);
    assert!(damages(&problems).is_empty(), "{problems:#?}");
    let third = repo.put_snapshot(&snapshot("host", 3, Some(fixture.snapshots[1]), named.snapshot.tree)).unwrap();
    store.delete(&[layout::tomb(fixture.snapshots[1])]).unwrap();
    let (_, problems) = check(&open(&store), ReadData::All);
    assert!(damages(&problems).is_empty(), "{third:?}: {problems:#?}");
    let done = repair_snapshots(&open(&store), &forget, &Reporter::silent()).unwrap();
    assert!(done.affected.is_empty() && done.next_steps().is_empty());
}

#[test]
fn databases_that_lost_pages_are_kept_only_as_plain_files() {
    let fixture = fixture();
    let [first, second] = &fixture.source.databases;
    for fill in [Fill::Zeros, Fill::OtherGenerations] {
        let store = second_generation_lost(&fixture);
        let mending = Mending { databases: Some(fill), ..Default::default() };
        let summary = repair_snapshots(&open(&store), &mending, &Reporter::silent()).unwrap();
        let What::Pages { kept_as: Some(path), lost, .. } = &summary.affected[0].lost[1].what else {
            panic!("{summary:?}")
        };
        assert_eq!(path, b"data/live.db.salvaged");
        let repo = loaded(&store);
        let nodes = salvaged_nodes(&repo, summary.affected[0].salvaged.unwrap());
        assert!(!nodes.contains_key("live.db"));
        let node = &nodes["live.db.salvaged"];
        assert!(node.kind == NodeKind::File && node.database.is_none());
        assert!(node.unverified.as_ref().unwrap().contains("unsound"), "{node:?}");
        let ids = repo.chunks(node.content.as_ref().unwrap()).unwrap();
        let bytes = ids.iter().map(|id| repo.read_blob(id, BlobType::Chunk).unwrap()).collect::<Vec<_>>().concat();
        let mut expected = second.clone();
        for page in lost.iter().cloned().flatten() {
            let at = (page as usize - 1) * PAGE_BYTES..page as usize * PAGE_BYTES;
            match fill {
                Fill::Zeros => expected[at].fill(0),
                Fill::OtherGenerations => expected[at.clone()].copy_from_slice(&first[at]),
            }
        }
        assert!(bytes == expected && bytes != *second);
        let (_, problems) = check(&open(&store), ReadData::All);
        let of_salvaged = damages(&problems).into_iter().filter(|p| p.why.contains("salvaged")).count();
        assert_eq!(of_salvaged, 0, "{problems:#?}");
    }
}

#[test]
fn readers_find_packs_whose_index_is_lost() {
    let fixture = fixture();
    for lost in fixture.objects.keys().filter(|p| p.starts_with(layout::INDEX)) {
        let store = copy(&fixture.objects);
        store.delete(std::slice::from_ref(lost)).unwrap();
        let repo = loaded(&store);
        for named in repo.read_snapshots().unwrap().0 {
            let reach = repo.reachable([named.snapshot.tree], &Reporter::silent()).unwrap();
            assert!(reach.len() > 10);
            assert!(can_read(&repo, &text(named.snapshot.generation as u8 - 1, 3000)));
        }
        let notes = repo.take_notes();
        let [one] = &notes[..] else { panic!("{notes:?}") };
        assert!(one.severity == Severity::Note && one.hint.as_ref().unwrap().contains("repair index"), "{one:?}");
        assert!(repo.take_notes().is_empty(), "said once");
        // Nobody relies on a pack that no index describes: it may be another run's, and that may die.
        let packs = store.list("packs/").unwrap().len();
        let generation = repo.read_snapshots().unwrap().0.len() - 1;
        fixture.source.store(&repo, generation);
        assert!(store.list("packs/").unwrap().len() > packs);
        assert!(repair::repair_index(&open(&store), &Reporter::silent()).is_ok());
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(damages(&problems).is_empty(), "{problems:#?}");
    }
}

#[test]
fn a_pack_that_the_store_fails_to_read_is_not_condemned() {
    let fixture = fixture();
    let inner = copy(&fixture.objects);
    let (path, _) = pack_of(&inner, BlobType::Chunk, &chunks()[0]);
    let store = Arc::new(sectors::Unreadable { inner: inner.clone(), path: Some(path.clone()) });
    let repo = Repository::open(store, &unlock(), "the key", &Reporter::silent()).map(Arc::new).unwrap();
    let reporter = Reporter::silent();
    let summary = repair_packs(&repo, &reporter).unwrap();
    assert_eq!((summary.packs_condemned, summary.unreadable_packs), (0, 1), "{summary:?}");
    // The disk answers again.
    repair::repair_index(&open(&inner), &Reporter::silent()).unwrap();
    let (_, problems) = check(&open(&inner), ReadData::All);
    assert!(damages(&problems).is_empty(), "{problems:#?}");
}
