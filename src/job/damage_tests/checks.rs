//! Damage in the store: what `check` says of it.

use super::*;

#[test]
fn a_sound_repository_has_no_problems_at_any_level() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let scratch = tempfile::tempdir().unwrap();
    let size: u64 = store.list("packs/").unwrap().iter().map(|l| l.bytes).sum();
    for (read_data, databases) in [(ReadData::None, false), (ReadData::All, true), (ReadData::Percent(50.0), false)] {
        let reporter = Reporter::silent();
        let options = Options { read_data, databases, scratch: scratch.path().to_owned(), memory: None };
        let summary = check::run(&open(&store), &options, &reporter).unwrap();
        assert!(reporter.problems().is_empty(), "{:#?}", reporter.problems());
        assert_eq!((summary.snapshots, summary.packs, summary.problems), (2, 4, 0));
        assert_eq!((summary.databases, summary.databases_rebuilt), (2, if databases { 2 } else { 0 }));
        assert_eq!(summary.trees, 2 * 4 + 1, "root, data, many and its own part of each, and the shared part");
        if read_data == ReadData::All {
            assert_eq!(summary.bytes_read, size);
        }
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left behind");
    assert!(objects(&*store) == fixture.objects, "a check writes nothing");
}

#[test]
fn parts_of_the_data_add_up_to_all_of_it() {
    let store = copy(&fixture().objects);
    let size: u64 = store.list("packs/").unwrap().iter().map(|l| l.bytes).sum();
    let read = |n| check(&open(&store), ReadData::Part { n, of: 3 }).0.bytes_read;
    assert_eq!((1..=3).map(read).sum::<u64>(), size);
    for bad in [
        ReadData::Percent(0.0),
        ReadData::Percent(f64::NAN),
        ReadData::Part { n: 0, of: 3 },
        ReadData::Part { n: 4, of: 3 },
    ] {
        let options = Options { read_data: bad, databases: false, scratch: std::env::temp_dir(), memory: None };
        assert!(matches!(check::run(&open(&store), &options, &Reporter::silent()), Err(Error::Usage(_))));
    }
}

/// What a check must say of a damaged object.
#[derive(Debug, PartialEq)]
enum Expect {
    /// Damage that names the object.
    Damage,
    /// Damage that names what depends on the object: nobody can know the name of what is gone.
    DamageElsewhere,
    /// A note that names the object.
    Note,
    /// Nothing: the repository is the same as if a user had removed it.
    Nothing,
}

/// The damage done to an object. Everything but a deletion is always noticed.
fn harms(path: &str, bytes: &[u8], twin: Option<&Vec<u8>>) -> Vec<(String, Option<Vec<u8>>)> {
    let mut harms = vec![
        ("deleted".into(), None),
        ("cut to half".into(), Some(bytes[..bytes.len() / 2].to_vec())),
        ("emptied".into(), Some(vec![])),
        ("longer by a byte".into(), Some([bytes, &[0]].concat())),
    ];
    let last = bytes.len() - 1;
    for at in [0, 4, 5, 9, 13, 20, 47, 48, 60, last / 4, last / 2, last * 3 / 4, last - 20, last] {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 0x40;
        harms.push((format!("flipped at {at}"), Some(flipped)));
    }
    // The config and its copy are the same bytes; a session's name says nothing about its contents.
    if let Some(twin) = twin.filter(|twin| *twin != bytes && layout::parse_session(path).is_none()) {
        harms.push(("replaced by another".into(), Some(twin.clone())));
    }
    harms
}

#[test]
fn every_damage_is_reported_by_name() {
    let fixture = fixture();
    let [first, second] = fixture.snapshots.map(layout::snapshot);
    let folder = |path: &str| {
        path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder[..folder.len().min(7)].to_owned())
    };
    let mut seen = 0;
    for (path, bytes) in &fixture.objects {
        let twin = fixture.objects.iter().find(|(p, _)| *p != path && folder(p) == folder(path)).map(|(_, b)| b);
        let folder = path.split('/').next().unwrap();
        for (how, harmed) in harms(path, bytes, twin) {
            let expect = match (folder, harmed.is_none()) {
                (_, false) | ("config" | "config.bak" | "packs", true) => Expect::Damage,
                ("index", true) => Expect::DamageElsewhere,
                ("snapshots", true) if *path == first => Expect::Note,
                ("snapshots", true) if *path == second => Expect::Note,
                ("keys" | "tombs" | "marks" | "live", true) => Expect::Nothing,
                _ => panic!("an object of no known class: {path}"),
            };
            let store = copy(&fixture.objects);
            let repo = open(&store);
            match harmed {
                Some(bytes) => store.put(path, bytes).unwrap(),
                None => store.delete(std::slice::from_ref(path)).unwrap(),
            }
            let (summary, problems) = check(&repo, ReadData::All);
            let short: String = path.rsplit('/').next().unwrap().chars().take(8).collect();
            let named = |p: &&&Problem| p.what == *path || p.why.contains(&short);
            let damages = damages(&problems);
            let fits = match expect {
                Expect::Damage => damages.iter().any(|p| p.what == *path),
                Expect::DamageElsewhere => !damages.is_empty(),
                Expect::Note => damages.is_empty() && problems.iter().collect::<Vec<_>>().iter().any(|p| named(&p)),
                Expect::Nothing => problems.is_empty(),
            };
            assert!(fits, "{path} {how}: expected {expect:?}, got {problems:#?}");
            assert_eq!(summary.problems, damages.len() as u64);
            assert!(problems.iter().all(|p| p.hint.as_ref().is_some_and(|h| !h.is_empty())), "{problems:#?}");
            seen += 1;
        }
    }
    assert!(seen > 250, "{seen}");
}

#[test]
fn a_deleted_last_key_slot_is_noticed() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let repo = open(&store);
    let slots: Vec<_> = store.list(layout::KEYS).unwrap().into_iter().map(|l| l.path).collect();
    store.delete(&slots).unwrap();
    let (_, problems) = check(&repo, ReadData::None);
    assert!(damages(&problems).iter().any(|p| p.what == layout::KEYS), "{problems:#?}");
}

#[test]
fn damage_comes_with_what_it_costs() {
    let fixture = fixture();
    let [first, second] = fixture.snapshots.map(|s| s.short());
    // The data pack of the second generation holds its a.txt, its new file in many/, and the changed pages.
    let of_second = |repo: &Repository| {
        let chunk = repo.keys().blob_id(BlobType::Chunk, &text(1, 3000));
        repo.load_index(&Reporter::silent()).unwrap();
        let place = repo.index().find(&chunk).unwrap();
        layout::pack(Kind::DataPack, repo.index().packs()[place.pack as usize].id)
    };
    let store = copy(&fixture.objects);
    let path = of_second(&open(&store));
    store.delete(std::slice::from_ref(&path)).unwrap();
    let (_, problems) = check(&open(&store), ReadData::None);
    let [one] = damages(&problems)[..] else { panic!("{problems:#?}") };
    assert_eq!(one.what, path);
    for part in ["data/a.txt", "data/live.db", "data/many/n", &second] {
        assert!(one.why.contains(part), "{part}: {}", one.why);
    }
    assert!(!one.why.contains("big.bin") && !one.why.contains(&first), "{}", one.why);
    let hint = one.hint.as_ref().unwrap();
    assert!(hint.contains("repair index") && hint.contains(&format!("host:/data is {first}")), "{hint}");

    // A pack of the first generation is needed by both: the pages that deltas lean on, and shared chunks.
    let store = copy(&fixture.objects);
    let all = store.list(layout::DATA_PACKS).unwrap();
    let other = &all.iter().find(|l| l.path != path).unwrap().path;
    store.delete(std::slice::from_ref(other)).unwrap();
    let (_, problems) = check(&open(&store), ReadData::None);
    let [one] = damages(&problems)[..] else { panic!("{problems:#?}") };
    assert!(one.why.contains(&first) && one.why.contains(&second) && one.why.contains("data/big.bin"), "{}", one.why);
    assert!(one.hint.as_ref().unwrap().contains("no snapshot of host:/data is unaffected"));
}

#[test]
fn databases_are_judged_by_sqlite() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let repo = open(&store);
    repo.load_index(&Reporter::silent()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch(
            "PRAGMA page_size = 512; PRAGMA foreign_keys = OFF; CREATE TABLE p (id INTEGER PRIMARY KEY);
             CREATE TABLE c (p REFERENCES p); INSERT INTO c VALUES (5), (6);",
        )
        .unwrap();
    let dangling = std::fs::read(path).unwrap();
    // A page in the middle of the b-tree is overwritten: it was damaged before it was captured.
    let mut damaged = fixture.source.databases[0].clone();
    damaged[40 * PAGE_BYTES..41 * PAGE_BYTES].fill(0xee);
    let mut writer = Writer::new(&repo, 3);
    let nodes = [("dangling.db", &dangling), ("wrong.db", &damaged)].map(|(name, file)| {
        let pages: Vec<&[u8]> = file.chunks(PAGE_BYTES).collect();
        let at = put_pages(&repo, &mut writer, &pages, None);
        let leaf = writer.put(BlobType::Map, &cbor::encode(&StoredLeaf::full(&at))).unwrap();
        database(name, file, put_root(&mut writer, file, leaf))
    });
    let root = put_tree(&mut writer, nodes.into());
    writer.finish().unwrap();
    repo.put_snapshot(&snapshot("third", 1, None, root)).unwrap();

    let reporter = Reporter::silent();
    let options =
        Options { read_data: ReadData::None, databases: true, scratch: folder.path().join("scratch"), memory: None };
    let summary = check::run(&open(&store), &options, &reporter).unwrap();
    assert_eq!((summary.databases_rebuilt, summary.problems), (4, 1));
    let problems = reporter.problems();
    let of = |name: &str| problems.iter().find(|p| p.what.contains(name)).unwrap();
    assert_eq!((of("wrong.db").severity, of("dangling.db").severity), (Severity::Damage, Severity::Note));
    assert!(of("dangling.db").why.starts_with("2 rows"), "{}", of("dangling.db").why);
    assert_eq!(std::fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0);
}
