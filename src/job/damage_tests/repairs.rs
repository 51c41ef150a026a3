//! What `repair index` and `repair packs` mend, and what they leave alone.

use super::*;

#[test]
fn a_lost_index_is_rebuilt() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let files: Vec<_> = store.list(layout::INDEX).unwrap().into_iter().map(|l| l.path).collect();
    assert_eq!(files.len(), 2);
    store.delete(&files).unwrap();
    let (_, problems) = check(&open(&store), ReadData::All);
    let [one] = damages(&problems)[..] else { panic!("{problems:#?}") };
    assert!(one.hint.as_ref().unwrap().contains("repair index"));
    let (summary, problems) = repair(&store);
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!((summary.packs, summary.index_files_replaced, summary.unreadable_packs), (4, 0, 0));
    assert!(check(&open(&store), ReadData::All).1.is_empty());
}

#[test]
fn a_wrong_index_is_rebuilt() {
    let fixture = fixture();
    type Poison = fn(&mut Index);
    let poisons: [(&str, Poison); 5] = [
        ("records lacking", |index| index.records.truncate(index.records.len() / 2)),
        ("frames mixed up", |index| {
            let frames: Vec<_> = index.records.iter().map(|r| (r.frame, r.offset, r.pack)).rev().collect();
            for (record, (frame, offset, pack)) in index.records.iter_mut().zip(frames) {
                (record.frame, record.offset, record.pack) = (frame, offset, pack);
            }
            // What an index can't say is refused as a whole.
            let fits = |r: &crate::format::index::Record| {
                let pack = &index.packs[r.pack as usize];
                let frame = &pack.frames[r.frame as usize];
                let is_data = matches!(r.kind, BlobType::Chunk | BlobType::Segment);
                (frame.encoding() == Encoding::Segment) == (r.kind == BlobType::Segment)
                    && (pack.header.kind == Kind::DataPack) == is_data
                    && r.offset + r.plain_bytes <= frame.plain_bytes()
            };
            index.records.retain(fits);
        }),
        ("a blob of a pack that has it not", |index| {
            let mut more = index.records[0];
            more.id = BlobId([9; 32]);
            index.records.push(more);
        }),
        ("a pack that is not there", |index| index.packs[0].id = PackId([9; 32])),
        ("another header", |index| index.packs[0].header.salt[0] ^= 1),
    ];
    for (what, poison) in poisons {
        let store = copy(&fixture.objects);
        let repo = open(&store);
        for listed in store.list(layout::INDEX).unwrap() {
            let mut index = repo.open_index(&listed.path).unwrap();
            poison(&mut index);
            repo.put_index(index).unwrap();
            store.delete(&[listed.path]).unwrap();
        }
        let (_, problems) = check(&open(&store), ReadData::All);
        let helps = |hint: &str| hint.contains("repair index") || hint.contains("repair packs");
        assert!(problems.iter().any(|p| helps(p.hint.as_ref().unwrap())), "{what}: {problems:#?}");
        let (summary, problems) = repair(&store);
        assert!(damages(&problems).is_empty(), "{what}: {problems:#?}");
        assert_eq!((summary.packs, summary.index_files_replaced, summary.damaged_blobs), (4, 2, 0));
        assert_eq!((summary.missing_packs, problems.len()), if what.contains("not there") { (1, 1) } else { (0, 0) });
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(problems.is_empty(), "{what}: {problems:#?}");
    }
}

#[test]
fn what_a_missing_pack_held_is_stored_anew_after_a_repair() {
    let fixture = fixture();
    for pack in fixture.objects.keys().filter(|p| p.starts_with("packs/")) {
        let store = copy(&fixture.objects);
        store.delete(std::slice::from_ref(pack)).unwrap();
        let (summary, _) = repair(&store);
        assert_eq!(summary.packs, 3);
        let (_, problems) = check(&open(&store), ReadData::None);
        assert!(!damages(&problems).is_empty(), "what is lost is lost");
        let repo = open(&store);
        repo.load_index(&Reporter::silent()).unwrap();
        for generation in [0, 1] {
            fixture.source.store(&repo, generation);
        }
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(problems.is_empty(), "{pack}: {problems:#?}");
    }
}

#[test]
fn damaged_frames_are_set_aside_and_stay_so() {
    let fixture = fixture();
    let packs = fixture.objects.iter().filter(|(p, _)| p.starts_with("packs/"));
    for (pack, bytes) in packs {
        // Just behind the directory: in the first frame.
        let frame = 48 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize + 3;
        let mut flipped = bytes.clone();
        flipped[frame] ^= 1;
        let store = copy(&fixture.objects);
        store.put(pack, flipped).unwrap();
        let (_, problems) = check(&open(&store), ReadData::All);
        let [one] = damages(&problems)[..] else { panic!("{problems:#?}") };
        assert!(one.what == *pack && one.hint.as_ref().unwrap().contains("repair packs"), "{one:?}");

        let reporter = Reporter::silent();
        let summary = repair::repair_packs(&open(&store), &reporter).unwrap();
        assert!(summary.damaged_blobs > 0 && summary.packs_condemned == 1, "{summary:?}");
        assert_eq!(reporter.worst(), Some(Severity::Damage));
        assert_eq!(
            summary.next_steps(),
            ["snapshot create", "snapshot check", "snapshot repair snapshots", "snapshot prune"]
        );
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(damages(&problems).iter().all(|p| p.why.contains("lost:")), "only what is lost: {problems:#?}");
        let (again, _) = repair(&store);
        assert_eq!(again.unreadable_packs, 0);
        let damaged = open(&store);
        damaged.load_index(&Reporter::silent()).unwrap();
        assert!(repair::repair_packs(&damaged, &Reporter::silent()).unwrap().packs_condemned == 0, "it is condemned");
        let repo = open(&store);
        repo.load_index(&Reporter::silent()).unwrap();
        for generation in [0, 1] {
            fixture.source.store(&repo, generation);
        }
        let (_, problems) = check(&open(&store), ReadData::All);
        let [one] = &problems[..] else { panic!("{problems:#?}") };
        assert!(one.severity == Severity::Note && one.what == *pack && one.why.contains("condemned"), "{one:?}");
        assert!(store.list("").unwrap().iter().any(|l| l.path == *pack), "a repair deletes no pack");
    }
}

#[test]
fn a_damaged_directory_costs_nothing_while_the_index_is_there() {
    let fixture = fixture();
    let (pack, bytes) = fixture.objects.iter().find(|(p, _)| p.starts_with(layout::DATA_PACKS)).unwrap();
    let mut flipped = bytes.clone();
    flipped[60] ^= 1;
    let store = copy(&fixture.objects);
    store.put(pack, flipped).unwrap();
    let lost = |problems: &[Problem]| problems.iter().any(|p| p.why.contains("lost:"));
    let (_, problems) = check(&open(&store), ReadData::None);
    assert!(damages(&problems).len() == 1 && !lost(&problems), "{problems:#?}");
    let (summary, _) = repair(&store);
    assert_eq!((summary.packs, summary.unreadable_packs), (4, 0));
    let (_, problems) = check(&open(&store), ReadData::None);
    assert!(damages(&problems).len() == 1 && !lost(&problems), "{problems:#?}");
    let files: Vec<_> = store.list(layout::INDEX).unwrap().into_iter().map(|l| l.path).collect();
    store.delete(&files).unwrap();
    let (summary, problems) = repair(&store);
    assert_eq!((summary.packs, summary.unreadable_packs), (3, 1));
    assert!(problems.iter().any(|p| p.what == *pack && p.severity == Severity::Damage));
    assert!(lost(&check(&open(&store), ReadData::None).1));
}

#[test]
fn a_repair_mends_config_and_records_and_waits_for_no_prune() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let repo = open(&store);
    let record = testing::records(&*store).remove(0);
    store.put(&record, vec![1, 2, 3]).unwrap();
    store.put(layout::CONFIG, vec![]).unwrap();
    let prune = SessionGuard::start(&repo, SessionKind::Prune).unwrap();
    let before = objects(&*store);
    assert!(matches!(repair::repair_index(&open(&store), &Reporter::silent()), Err(Error::Locked { .. })));
    assert!(objects(&*store) == before, "its session is cleared away, too");
    prune.end().unwrap();
    let (summary, _) = repair(&store);
    assert!(summary.config_repaired);
    assert!(testing::records(&*store).is_empty());
    let (_, problems) = check(&open(&store), ReadData::All);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn a_repair_that_fails_midway_does_no_harm() {
    let fixture = fixture();
    for fail_from in 0..12 {
        let store = copy(&fixture.objects);
        let faulty = Arc::new(Faulty::new(store.clone(), fail_from));
        let repo = Repository::open(faulty.clone(), &unlock(), "the key", &Reporter::silent()).unwrap();
        let done = repair::repair_index(&Arc::new(repo), &Reporter::silent());
        assert_eq!(done.is_ok(), faulty.writes() <= fail_from);
        let (_, problems) = check(&open(&store), ReadData::All);
        assert!(problems.is_empty(), "{problems:#?}");
    }
}
