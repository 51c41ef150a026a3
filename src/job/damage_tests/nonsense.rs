//! Authentic objects that a faulty writer made: sealed rightly, and wrong.

use super::*;

/// Stores what `build` makes as a snapshot of its own, and returns what a check then finds.
fn problems_of(build: impl FnOnce(&Repository, &mut Writer) -> Node) -> Vec<Problem> {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let repo = open(&store);
    repo.load_index(&Reporter::silent()).unwrap();
    let mut writer = Writer::new(&repo, 3);
    let node = build(&repo, &mut writer);
    let root = put_tree(&mut writer, vec![node]);
    writer.finish().unwrap();
    repo.put_snapshot(&snapshot("third", 1, None, root)).unwrap();
    check(&open(&store), ReadData::All).1
}

/// Exactly one problem: damage that costs the path "wrong" and says `why`.
fn assert_lost(problems: &[Problem], why: &str) {
    let [one] = problems else { panic!("{problems:#?}") };
    assert!(one.severity == Severity::Damage && one.why.contains(why), "{why}: {}", one.why);
    assert!(one.why.contains("lost: wrong"), "{}", one.why);
}

#[test]
fn files_whose_chunks_do_not_fit() {
    let problems = problems_of(|repo, writer| {
        let chunk = put_chunk(repo, writer, text(30, 500));
        file("wrong", 501, Content::new(0, &[chunk]))
    });
    assert_lost(&problems, "don't add up to its length");
    let problems = problems_of(|_, writer| {
        let list = writer.put(BlobType::List, &[0; 33]).unwrap();
        file("wrong", 1, Content::new(1, &[list]))
    });
    assert_lost(&problems, "no list of ids");
    let problems = problems_of(|_, writer| {
        let tree = put_tree(writer, vec![]);
        file("wrong", 1, Content::new(0, &[tree]))
    });
    assert_lost(&problems, "not of the type");
    assert_lost(&problems_of(|_, _| file("wrong", 1, Content::new(0, &[BlobId([3; 32])]))), "it is missing");
    assert_lost(&problems_of(|_, _| directory("wrong", BlobId([3; 32]))), "it is missing");
}

#[test]
fn a_blob_under_an_id_that_is_not_its_own() {
    let problems = problems_of(|_, writer| {
        let id = BlobId([4; 32]);
        assert!(writer.claims().claim(id));
        let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: 10 };
        writer.put_frame(encode_frame(vec![entry], vec![1; 10], 3)).unwrap();
        file("wrong", 10, Content::new(0, &[id]))
    });
    assert_lost(&problems, "not those that its id stands for");
}

#[test]
fn directories_whose_parts_do_not_fit() {
    let parts = |names: [&str; 2]| {
        problems_of(|_, writer| {
            let parts = names.map(|name| put_tree(writer, vec![file(name, 0, Content::default())]));
            let tree = Tree { nodes: vec![], parts: Some(parts.into()) };
            directory("wrong", writer.put(BlobType::Tree, &cbor::encode(&tree)).unwrap())
        })
    };
    assert!(parts(["a", "b"]).is_empty());
    assert_lost(&parts(["b", "a"]), "don't fit together");
    assert_lost(&parts(["a", "a"]), "don't fit together");
    let problems = problems_of(|_, writer| {
        let part = put_tree(writer, vec![file("a", 0, Content::default())]);
        let mut tree = part;
        for _ in 0..2 {
            tree = writer.put(BlobType::Tree, &cbor::encode(&Tree { nodes: vec![], parts: Some(vec![tree]) })).unwrap();
        }
        directory("wrong", tree)
    });
    assert_lost(&problems, "don't fit together");
}

#[test]
fn directories_nested_too_deeply() {
    let nested = |depth: usize| {
        problems_of(|_, writer| {
            let mut node = file("x", 0, Content::default());
            for _ in 0..depth {
                node = directory("wrong", put_tree(writer, vec![node]));
            }
            node
        })
    };
    assert!(nested(4000).is_empty());
    assert!(nested(4200).iter().any(|p| p.why.contains("more deeply")));
}

#[test]
fn databases_whose_pages_do_not_fit() {
    let first = databases()[0].clone();
    let pages: Vec<&[u8]> = first.chunks(PAGE_BYTES).collect();
    let with = |change: &dyn Fn(&Repository, &mut Writer, &mut Vec<PageRef>)| {
        problems_of(|repo, writer| {
            let mut at = put_pages(repo, writer, &pages, None);
            change(repo, writer, &mut at);
            let leaf = writer.put(BlobType::Map, &cbor::encode(&StoredLeaf::full(&at))).unwrap();
            database("wrong", &first, put_root(writer, &first, leaf))
        })
    };
    assert!(with(&|_, _, _| {}).is_empty());
    assert_lost(&with(&|_, _, at| at.truncate(at.len() - 1)), "another number of pages");
    assert_lost(&with(&|_, _, at| at[3].slot = 255), "are not in it any more");
    assert_lost(&with(&|_, _, at| at[3].segment = BlobId([5; 32])), "it is missing");
    // A segment of three slots, of which the map needs one that was dropped.
    let dropped = |repo: &Repository, writer: &mut Writer, at: &mut Vec<PageRef>| {
        let some: Vec<_> = (1..4u8).map(|seed| text(seed, PAGE_BYTES)).collect();
        let hashes: Vec<_> = some.iter().map(|p| repo.keys().page_hash(p)).collect();
        let id = segment::segment_id(repo.keys(), PAGE_BYTES as u32, &hashes);
        let mut kept: Vec<_> = some.into_iter().map(Some).collect();
        kept[1] = None;
        let body =
            segment::encode_partial(&segment::Segment { page_bytes: PAGE_BYTES as u32, pages: kept }, &hashes, 3);
        let plain_bytes = 2 * PAGE_BYTES as u32;
        let entries = vec![Entry { id, kind: BlobType::Segment, plain_bytes }];
        writer.put_frame(Frame { encoding: Encoding::Segment, plain_bytes, entries, bases: vec![], body }).unwrap();
        at[3] = PageRef { segment: id, slot: 1, hash: hashes[1] };
    };
    assert_lost(&with(&dropped), "are not in it any more");
    let problems = problems_of(|repo, writer| {
        let at = put_pages(repo, writer, &pages, None);
        let leaf = writer.put(BlobType::Map, &cbor::encode(&StoredLeaf::full(&at))).unwrap();
        database("wrong", &first[PAGE_BYTES..], put_root(writer, &first, leaf))
    });
    assert_lost(&problems, "don't add up to the length");
}

#[test]
fn segments_that_lean_on_each_other_without_end() {
    let problems = problems_of(|repo, writer| {
        let page = text(1, PAGE_BYTES);
        let chain: Vec<_> = (0..20u8)
            .map(|n| {
                let mut page = page.clone();
                page[0] = n;
                page
            })
            .collect();
        let mut last: Option<PageRef> = None;
        for (n, page) in chain.iter().enumerate() {
            let old = last.map(|at| [at]);
            let older = [chain[n.saturating_sub(1)].as_slice()];
            let at = put_pages(repo, writer, &[page], old.as_ref().map(|at| (&at[..], &older[..])));
            last = at.into_iter().next();
        }
        let leaf = writer.put(BlobType::Map, &cbor::encode(&StoredLeaf::full(&[last.unwrap()]))).unwrap();
        database("wrong", &chain[19], put_root(writer, &chain[19], leaf))
    });
    assert!(
        problems
            .iter()
            .any(|p| p.why.contains("too many segments lean on each other") && p.why.contains("lost: wrong")),
        "{problems:#?}"
    );
}

#[test]
fn one_of_two_snapshots_of_a_generation_is_gone() {
    let fixture = fixture();
    let [first, second] = fixture.snapshots;
    let store = copy(&fixture.objects);
    let repo = open(&store);
    let (all, _) = repo.read_snapshots().unwrap();
    let original = &all.iter().find(|n| n.id == first).unwrap().snapshot;
    let other = Snapshot { tags: vec!["other".into()], ..original.clone() };
    repo.put_snapshot(&other).unwrap();
    assert!(check(&repo, ReadData::None).1.is_empty(), "two of a generation: both were being made at the same time");
    store.delete(&[layout::snapshot(first)]).unwrap();
    let (_, problems) = check(&repo, ReadData::None);
    // A prune may have taken it: whoever knows better is told which one.
    assert!(damages(&problems).is_empty(), "{problems:#?}");
    let one = problems.iter().find(|p| p.what == layout::snapshot(second)).unwrap();
    assert!(one.why.contains(&first.short()) && one.why.contains("there were two"), "{}", one.why);
}

#[test]
fn databases_are_rebuilt_exactly_or_not_at_all() {
    let fixture = fixture();
    let store = copy(&fixture.objects);
    let repo = open(&store);
    repo.load_index(&Reporter::silent()).unwrap();
    let [first, second] = &fixture.source.databases;
    let pages: Vec<&[u8]> = first.chunks(PAGE_BYTES).collect();
    let mut writer = Writer::new(&repo, 3);
    let good = [0, 1].map(|n| fixture.source.put_database(&repo, &mut writer, n));
    let at = put_pages(&repo, &mut writer, &pages, None);
    let mut map_of = |at: &[PageRef], file: &[u8]| {
        let leaf = writer.put(BlobType::Map, &cbor::encode(&StoredLeaf::full(at))).unwrap();
        put_root(&mut writer, file, leaf)
    };
    let wrong_file = map_of(&at, second);
    let mut changed = at.clone();
    changed[9].hash = [0; 16];
    let wrong_page = map_of(&changed, first);
    let mut changed = at;
    changed.swap(20, 21);
    let swapped = map_of(&changed, first);
    writer.finish().unwrap();

    let rebuild = |map: &BlobId| {
        let mut file = tempfile::tempfile().unwrap();
        let root = repo.materialise(map, &file, &Reporter::silent())?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, root.pages * u64::from(root.page_bytes));
        Ok::<_, Error>(bytes)
    };
    assert!(rebuild(&good[0]).unwrap() == *first && rebuild(&good[1]).unwrap() == *second);
    for bad in [wrong_file, wrong_page, swapped] {
        assert!(matches!(rebuild(&bad), Err(Error::Corrupt { .. })));
    }
}
