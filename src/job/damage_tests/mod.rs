//! What `check` says of a small repository with each object of it damaged in turn, and what `repair` makes of it.
//!
//! Stands beside the jobs since it needs both, and jobs don't import each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::{Backend, Faulty, Memory, layout};
use crate::crypto::{BlobType, KdfCost};
use crate::error::Error;
use crate::format::cbor::{self, Time};
use crate::format::control::{self, SessionKind};
use crate::format::header::Kind;
use crate::format::index::Index;
use crate::format::keyslot::Unlock;
use crate::format::pack::{Encoding, Entry, Frame};
use crate::format::pagemap::{PageRef, Root, StoredLeaf};
use crate::format::segment::{self, SEGMENT_PAGES};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Content, Database, Node, NodeKind, Tree, join_ids};
use crate::id::{BlobId, PackId, SnapshotId, hex};
use crate::job::check::{self, Options, ReadData, Summary};
use crate::job::repair;
use crate::repo::testing;
use crate::repo::{
    MarkNote, Repository, SegmentPages, SessionGuard, Writer, encode_delta, encode_frame, encode_segment,
};
use crate::report::{Problem, Reporter, Severity};

mod checks;
mod flips;
mod nonsense;
mod remembered;
mod repairs;
mod salvage;
mod sectors;

const PAGE_BYTES: usize = 512;

fn unlock() -> Unlock {
    Unlock::KeyFile(vec![7; 32])
}

fn open(store: &Arc<Memory>) -> Arc<Repository> {
    Arc::new(Repository::open(store.clone(), &unlock(), "the key", &Reporter::silent()).unwrap())
}

fn objects(store: &dyn Backend) -> BTreeMap<String, Vec<u8>> {
    let get = |l: crate::backend::Listed| (l.path.clone(), store.get(&l.path, u64::MAX).unwrap());
    store.list("").unwrap().into_iter().map(get).collect()
}

fn copy(objects: &BTreeMap<String, Vec<u8>>) -> Arc<Memory> {
    let store = Memory::default();
    objects.iter().for_each(|(path, bytes)| store.put(path, bytes.clone()).unwrap());
    Arc::new(store)
}

/// A real database in two states of equal length.
fn databases() -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(
        "PRAGMA page_size = 512; CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
         INSERT INTO t SELECT i, hex(randomblob(30)) FROM n;",
    )
    .unwrap();
    let first = std::fs::read(&path).unwrap();
    db.execute_batch("UPDATE t SET text = hex(randomblob(30)) WHERE id % 90 = 0").unwrap();
    [first, std::fs::read(&path).unwrap()]
}

/// Text that compresses a little, different for each seed.
fn text(seed: u8, bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes / 2];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut random);
    hex(&random).into_bytes()
}

fn put_chunk(repo: &Repository, writer: &mut Writer, plain: Vec<u8>) -> BlobId {
    let id = repo.keys().blob_id(BlobType::Chunk, &plain);
    if writer.claims().claim(id) {
        let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: plain.len() as u32 };
        writer.put_frame(encode_frame(vec![entry], plain, 3)).unwrap();
    }
    id
}

/// Stores pages as segments, changed ones as deltas against the pages given; returns where each page is.
fn put_pages(
    repo: &Repository,
    writer: &mut Writer,
    pages: &[&[u8]],
    old: Option<(&[PageRef], &[&[u8]])>,
) -> Vec<PageRef> {
    let mut out = Vec::new();
    for (number, some) in pages.chunks(SEGMENT_PAGES).enumerate() {
        let hashes: Vec<_> = some.iter().map(|p| repo.keys().page_hash(p)).collect();
        let id = segment::segment_id(repo.keys(), PAGE_BYTES as u32, &hashes);
        let plain = some.concat();
        let from = number * SEGMENT_PAGES;
        let (older, base_pages) = old.map_or_else(Default::default, |(at, base_pages)| {
            let at = &at[from..from + some.len()];
            let older: Vec<_> = at.iter().map(|p| Some((p.segment, p.slot))).collect();
            (older, base_pages[from..from + some.len()].concat())
        });
        let pages = SegmentPages {
            id,
            page_bytes: PAGE_BYTES as u32,
            hashes: &hashes,
            present: &(0..some.len()).map(|slot| slot as u8).collect(),
            pages: &plain,
            older: &older,
            base_pages: &base_pages,
        };
        if writer.claims().claim(id) {
            writer.put_frame(encode_delta(&pages, 3).unwrap_or_else(|| encode_segment(&pages, 3))).unwrap();
        }
        out.extend((0..=u8::MAX).zip(hashes).map(|(slot, hash)| PageRef { segment: id, slot, hash }));
    }
    out
}

fn file(name: &str, size: usize, content: Content) -> Node {
    Node { size: Some(size as u64), content: Some(content), ..Node::bare(name.as_bytes(), NodeKind::File) }
}

fn directory(name: &str, tree: BlobId) -> Node {
    Node { tree: Some(tree), ..Node::bare(name.as_bytes(), NodeKind::Directory) }
}

fn put_tree(writer: &mut Writer, nodes: Vec<Node>) -> BlobId {
    writer.put(BlobType::Tree, &cbor::encode(&Tree { nodes, parts: None })).unwrap()
}

fn put_root(writer: &mut Writer, file: &[u8], leaf: BlobId) -> BlobId {
    let root = Root {
        page_bytes: PAGE_BYTES as u32,
        pages: (file.len() / PAGE_BYTES) as u64,
        file_hash: blake3::hash(file).as_bytes().to_vec().into(),
        height: 0,
        children: join_ids(&[leaf]),
    };
    writer.put(BlobType::Map, &cbor::encode(&root)).unwrap()
}

fn database(name: &str, file: &[u8], map: BlobId) -> Node {
    let database =
        Database { map, captured: Time::default(), device: 0, wal: None, wal_mode: false, file_bytes: 0, facts: None };
    Node { size: Some(file.len() as u64), database: Some(database), ..Node::bare(name.as_bytes(), NodeKind::Database) }
}

/// What two generations hold: fixed, so that they can be stored a second time.
struct Source {
    databases: [Vec<u8>; 2],
}

impl Source {
    /// Stores the blobs of a generation that aren't there yet, and returns the root tree.
    fn store(&self, repo: &Arc<Repository>, generation: usize) -> BlobId {
        let mut writer = Writer::new(repo, 3);
        let w = &mut writer;
        let a = put_chunk(repo, w, text(generation as u8, 3000));
        let (b, c) = (put_chunk(repo, w, text(100, 70_000)), put_chunk(repo, w, text(101, 90_000)));
        let list = w.put(BlobType::List, &[b.0, c.0].concat()).unwrap();
        // A directory in two parts, the second of which is new in each generation.
        let parts: Vec<_> = [("m", 0), ("n", generation as u8)]
            .map(|(name, seed)| {
                let chunk = put_chunk(repo, w, text(50 + seed, 200));
                put_tree(w, vec![file(name, 200, Content::new(0, &[chunk]))])
            })
            .into();
        let many = w.put(BlobType::Tree, &cbor::encode(&Tree { nodes: vec![], parts: Some(parts) })).unwrap();
        let db = &self.databases[generation];
        let map = self.put_database(repo, w, generation);
        let data = put_tree(
            w,
            vec![
                file("a.txt", 3000, Content::new(0, &[a])),
                file("big.bin", 160_000, Content::new(1, &[list])),
                database("live.db", db, map),
                directory("many", many),
                Node { target: Some(b"a.txt".to_vec().into()), ..Node::bare(b"soft", NodeKind::Symlink) },
            ],
        );
        let root = put_tree(w, vec![directory("data", data)]);
        writer.finish().unwrap();
        root
    }

    /// The second generation is a patch of the first, its changed pages deltas.
    fn put_database(&self, repo: &Repository, writer: &mut Writer, generation: usize) -> BlobId {
        let [first, second] = &self.databases;
        let pages: Vec<&[u8]> = first.chunks(PAGE_BYTES).collect();
        let at = put_pages(repo, writer, &pages, None);
        let leaf = StoredLeaf::full(&at);
        let leaf_id = writer.put(BlobType::Map, &cbor::encode(&leaf)).unwrap();
        if generation == 0 {
            return put_root(writer, first, leaf_id);
        }
        let changed: Vec<usize> =
            (0..pages.len()).filter(|i| second[i * PAGE_BYTES..][..PAGE_BYTES] != *pages[*i]).collect();
        assert!(changed.len() > 3 && changed.len() < pages.len());
        let new: Vec<&[u8]> = changed.iter().map(|i| &second[i * PAGE_BYTES..][..PAGE_BYTES]).collect();
        let old: Vec<PageRef> = changed.iter().map(|i| at[*i]).collect();
        let old_pages: Vec<&[u8]> = changed.iter().map(|i| pages[*i]).collect();
        let new_at = put_pages(repo, writer, &new, Some((&old, &old_pages)));
        let changes: Vec<_> = changed.iter().map(|i| *i as u16).zip(new_at).collect();
        let patch = StoredLeaf::patch(leaf_id, &leaf, pages.len(), &changes);
        let patch = writer.put(BlobType::Map, &cbor::encode(&patch)).unwrap();
        put_root(writer, second, patch)
    }
}

struct Fixture {
    source: Source,
    objects: BTreeMap<String, Vec<u8>>,
    snapshots: [SnapshotId; 2],
}

/// Two generations, each with a mark, a forgotten snapshot, a record of condemned packs, two sessions, two key slots.
fn fixture() -> Fixture {
    let store = Arc::new(Memory::default());
    let repo = Repository::init(store.clone(), &unlock(), KdfCost::default(), "a").unwrap();
    repo.add_slot(&Unlock::KeyFile(vec![8; 32]), KdfCost::default(), "b").unwrap();
    let repo = Arc::new(repo);
    let source = Source { databases: databases() };
    let mut previous = None;
    let snapshots = [0, 1].map(|n| {
        let snapshot = snapshot("host", n as u64 + 1, previous, source.store(&repo, n));
        let id = repo.put_snapshot(&snapshot).unwrap();
        previous = Some(id);
        id
    });
    let root = source.store(&repo, 0);
    let forgotten = repo.put_snapshot(&snapshot("other", 1, None, root)).unwrap();
    repo.bury_snapshot(forgotten).unwrap();
    repo.condemn(vec![PackId([1; 32])], vec![]).unwrap();
    for named in repo.read_snapshots().unwrap().0.iter_mut() {
        let note = MarkNote { add: vec!["a".into()], remove: vec![], pin: Some(true), proof: None };
        repo.put_mark(named, &note).unwrap();
    }
    for name in [1, 2] {
        let session = control::Session {
            kind: SessionKind::Write,
            host: "elsewhere".into(),
            boot: String::new(),
            pid: name,
            started: Time::default(),
        };
        let bytes = control::seal(repo.keys(), Kind::Session, &session).unwrap();
        store.put(&layout::session(&name.to_string(), layout::FIRST), bytes).unwrap();
    }
    Fixture { source, objects: objects(&*store), snapshots }
}

fn snapshot(host: &str, generation: u64, previous: Option<SnapshotId>, tree: BlobId) -> Snapshot {
    Snapshot {
        started: Time::default(),
        time: Time { secs: generation as i64, nanos: 0 },
        host: host.into(),
        source: "/data".into(),
        generation,
        previous,
        paths: vec![b"data".to_vec().into()],
        tags: vec![],
        tree,
        counts: Default::default(),
        program: "test".into(),
        users: vec![],
        groups: vec![],
        slot: None,
        pinned: false,
        preset: None,
    }
}

fn check(repo: &Arc<Repository>, read_data: ReadData) -> (Summary, Vec<Problem>) {
    let reporter = Reporter::silent();
    let options = Options { read_data, databases: false, scratch: std::env::temp_dir(), memory: None };
    let summary = check::run(repo, &options, &reporter).unwrap();
    (summary, reporter.problems())
}

fn damages(problems: &[Problem]) -> Vec<&Problem> {
    problems.iter().filter(|p| p.severity == Severity::Damage).collect()
}

fn repair(store: &Arc<Memory>) -> (repair::Summary, Vec<Problem>) {
    let packs =
        |all: BTreeMap<String, Vec<u8>>| all.into_iter().filter(|(p, _)| p.starts_with("packs/")).collect::<Vec<_>>();
    let before = packs(objects(&**store));
    let reporter = Reporter::silent();
    let summary = repair::repair_index(&open(store), &reporter).unwrap();
    assert!(packs(objects(&**store)) == before, "packs are never touched");
    (summary, reporter.problems())
}
