//! A repository in memory and made-up snapshots, for tests.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Gather, Repository, SegmentPages, Writer, encode_frame, encode_segment};
use crate::backend::{Backend, Memory, layout};
use crate::clock;
use crate::crypto::{BlobType, KdfCost};
use crate::format::cbor;
use crate::format::header::{Header, Kind};
use crate::format::index::Index;
use crate::format::keyslot::Unlock;
use crate::format::pack::{Encoding, Entry, FrameInfo, PackInfo};
use crate::format::pagemap::{PageRef, Root, StoredLeaf};
use crate::format::segment;
use crate::format::snapshot::{Counts, Snapshot};
use crate::format::tree::{Content, Database, Node, NodeKind, Tree, join_ids};
use crate::id::{BlobId, PackId, SnapshotId};
use crate::report::Reporter;

const PAGE: usize = 512;

/// A store in memory with a repository in it.
pub(crate) struct World {
    pub(crate) memory: Arc<Memory>,
    pub(crate) repo: Arc<Repository>,
    secret: Unlock,
}

/// Incompressible bytes.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

impl World {
    pub(crate) fn new() -> Self {
        let memory = Arc::new(Memory::at(clock::now()));
        let secret = Unlock::KeyFile(vec![7; 32]);
        let repo = Repository::init(memory.clone(), &secret, KdfCost::default(), "test").unwrap();
        Self { memory, repo: Arc::new(repo), secret }
    }

    /// The repository as another process sees it, through `backend`, index not loaded.
    pub(crate) fn reopen_through(&self, backend: Arc<dyn Backend>) -> Arc<Repository> {
        Arc::new(Repository::open(backend, &self.secret, "key", &Reporter::silent()).unwrap())
    }

    /// The same, index loaded.
    pub(crate) fn reopen(&self) -> Arc<Repository> {
        let repo = self.reopen_through(self.memory.clone());
        repo.load_index(&Reporter::silent()).unwrap();
        repo
    }

    /// Stores a chunk for each file, each but shared ones anew, and returns the tree that names them.
    pub(crate) fn put_files(&self, writer: &mut Writer, files: &[Vec<u8>]) -> Vec<Node> {
        let claims = writer.claims();
        let mut gather = Gather::default();
        let mut nodes = Vec::new();
        for (n, data) in files.iter().enumerate() {
            let id = self.repo.keys().blob_id(BlobType::Chunk, data);
            let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: data.len() as u32 };
            match claims.claim(id) {
                true if data.len() < 64 << 10 => gather.push(id, BlobType::Chunk, data),
                true => writer.put_frame(encode_frame(vec![entry], data.clone(), 3)).unwrap(),
                false => {}
            }
            let bare = Node::bare(format!("file-{n:04}").as_bytes(), NodeKind::File);
            nodes.push(Node { size: Some(data.len() as u64), content: Some(Content::new(0, &[id])), ..bare });
        }
        if let Some(frame) = gather.take(3) {
            writer.put_frame(frame).unwrap();
        }
        nodes
    }

    pub(crate) fn put_tree(writer: &mut Writer, nodes: Vec<Node>) -> BlobId {
        writer.put(BlobType::Tree, &cbor::encode(&Tree { nodes, parts: None })).unwrap()
    }

    /// Takes a snapshot of files in a directory below the root, and of a database there.
    pub(crate) fn snapshot(
        &self,
        source: &str,
        generation: u64,
        files: &[Vec<u8>],
        map: impl FnOnce(&mut Writer) -> Option<BlobId>,
    ) -> SnapshotId {
        self.repo.load_index(&Reporter::silent()).unwrap();
        let mut writer = Writer::new(&self.repo, 3);
        let nodes = self.put_files(&mut writer, files);
        let below = Self::put_tree(&mut writer, nodes);
        let mut root = vec![Node { tree: Some(below), ..Node::bare(b"dir", NodeKind::Directory) }];
        root.extend(map(&mut writer).map(database_node));
        let tree = Self::put_tree(&mut writer, root);
        writer.finish().unwrap();
        self.commit(source, generation, tree)
    }

    /// Commits a tree as a snapshot, an hour older for each generation below 1,000.
    pub(crate) fn commit(&self, source: &str, generation: u64, tree: BlobId) -> SnapshotId {
        let mut time = clock::now();
        time.secs -= (1000 - generation.cast_signed()) * 3600;
        let snapshot = Snapshot {
            started: clock::now(),
            time,
            host: "h".into(),
            source: source.into(),
            generation,
            previous: None,
            paths: vec![],
            tags: vec![],
            tree,
            counts: Counts::default(),
            program: "test".into(),
            users: vec![],
            groups: vec![],
            slot: None,
            pinned: false,
            preset: None,
        };
        self.repo.put_snapshot(&snapshot).unwrap()
    }

    /// Reads everything in all snapshots as a fresh process does, and returns the snapshots' generations.
    pub(crate) fn read_all(&self) -> Vec<u64> {
        let repo = self.reopen();
        let (snapshots, lost) = repo.read_snapshots().unwrap();
        assert!(lost.is_empty());
        for named in &snapshots {
            read_tree(&repo, &named.snapshot.tree);
        }
        snapshots.into_iter().map(|n| n.snapshot.generation).collect()
    }

    /// The paths of all objects below a folder.
    pub(crate) fn paths(&self, folder: &str) -> Vec<String> {
        self.memory.list(folder).unwrap().into_iter().map(|l| l.path).collect()
    }

    /// Deletes everything below a folder.
    pub(crate) fn clear(&self, folder: &str) {
        self.memory.delete(&self.paths(folder)).unwrap();
    }

    /// How many packs there are, and their length in bytes.
    pub(crate) fn packs(&self) -> (usize, u64) {
        let mut listed = self.memory.list(layout::DATA_PACKS).unwrap();
        listed.extend(self.memory.list(layout::METADATA_PACKS).unwrap());
        (listed.len(), listed.iter().map(|l| l.bytes).sum())
    }

    /// Flips a bit in the middle of an object.
    pub(crate) fn damage(&self, path: &str) {
        let mut bytes = self.memory.get(path, u64::MAX).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        self.memory.put(path, bytes).unwrap();
    }
}

pub(crate) fn database_node(map: BlobId) -> Node {
    let database =
        Database { map, captured: clock::now(), device: 0, wal: None, wal_mode: true, file_bytes: 0, facts: None };
    Node { size: Some(1), database: Some(database), ..Node::bare(b"zz.db", NodeKind::Database) }
}

fn read_tree(repo: &Repository, tree: &BlobId) {
    for node in repo.read_tree(tree).unwrap() {
        if let Some(tree) = &node.tree {
            read_tree(repo, tree);
        }
        for chunk in node.content.iter().flat_map(|c| repo.chunks(c).unwrap()) {
            repo.read_blob(&chunk, BlobType::Chunk).unwrap();
        }
        if let Some(database) = &node.database {
            let (_, leaves) = repo.read_map(&database.map).unwrap();
            let mut segments: HashMap<BlobId, Vec<PageRef>> = HashMap::new();
            for page in leaves.iter().flat_map(|leaf| repo.read_leaf(leaf).unwrap().pages) {
                segments.entry(page.segment).or_default().push(page);
            }
            for (segment, pages) in segments {
                let mut wanted = segment::SlotSet::default();
                pages.iter().for_each(|page| wanted.insert(page.slot));
                let segment = repo.read_slots(&segment, &wanted).unwrap();
                for page in pages {
                    let bytes = segment.page(usize::from(page.slot)).unwrap();
                    assert_eq!(repo.keys().page_hash(bytes), page.hash);
                }
            }
        }
    }
}

/// Whether a segment is there as a whole, and leans on none that leans on others: each would be decoded for each.
fn may_lean_on(repo: &Repository, base: &BlobId) -> bool {
    let index = repo.index();
    let bases = |id: &BlobId| -> Vec<BlobId> { index.places(id).flat_map(|p| index.bases(p)).map(|b| b.id).collect() };
    // What the same run stores is not in the index yet.
    index.find(base).is_none() || index.is_usable(base) && bases(base).iter().all(|base| bases(base).is_empty())
}

/// A database of pages of noise, captured generation by generation.
#[derive(Default)]
pub(crate) struct Db {
    pages: Vec<Vec<u8>>,
    refs: Vec<PageRef>,
    leaf: Option<(BlobId, StoredLeaf)>,
}

impl Db {
    /// Sets pages to noise (a page's number may be one past the end) and stores the database as patch of its previous
    /// version; with `delta`, changed pages lean on their older versions, where these are in the index. Returns the root
    /// of the map.
    pub(crate) fn store(
        &mut self,
        repo: &Repository,
        writer: &mut Writer,
        changed: &[(usize, u64)],
        delta: bool,
    ) -> BlobId {
        let mut changes = Vec::new();
        for group in changed.chunks(segment::SEGMENT_PAGES) {
            let old: Vec<_> =
                group.iter().map(|(n, _)| self.pages.get(*n).cloned().zip(self.refs.get(*n).copied())).collect();
            let new: Vec<_> = group
                .iter()
                .zip(&old)
                .map(|((_, seed), old)| match old {
                    Some((page, _)) if delta => [&noise(*seed, 16), &page[16..]].concat(),
                    _ => noise(*seed, PAGE),
                })
                .collect();
            let hashes: Vec<_> = new.iter().map(|page| repo.keys().page_hash(page)).collect();
            let id = segment::segment_id(repo.keys(), PAGE as u32, &hashes);
            let older: Vec<Option<(BlobId, u8)>> =
                old.iter().map(|old| old.as_ref().map(|(_, at)| (at.segment, at.slot))).collect();
            let plain = new.concat();
            let base_pages: Vec<u8> = old.iter().flatten().flat_map(|(page, _)| page.clone()).collect();
            let leans = delta && older.iter().flatten().all(|(base, _)| may_lean_on(repo, base));
            let pages = SegmentPages {
                id,
                page_bytes: PAGE as u32,
                hashes: &hashes,
                present: &(0..group.len()).map(|slot| slot as u8).collect(),
                pages: &plain,
                older: if leans { &older } else { &[] },
                base_pages: &base_pages,
            };
            if writer.claims().claim(id) {
                writer.put_frame(encode_segment(&pages, 3)).unwrap();
            }
            for (slot, ((n, _), (page, hash))) in group.iter().zip(new.into_iter().zip(hashes)).enumerate() {
                let at = PageRef { segment: id, slot: slot as u8, hash };
                changes.push((*n as u16, at));
                if *n == self.pages.len() {
                    self.pages.push(page);
                    self.refs.push(at);
                } else {
                    self.pages[*n] = page;
                    self.refs[*n] = at;
                }
            }
        }
        changes.sort_by_key(|c| c.0);
        let leaf = match &self.leaf {
            None => StoredLeaf::full(&self.refs),
            Some((parent, older)) => StoredLeaf::patch(*parent, older, self.pages.len(), &changes),
        };
        let id = writer.put(BlobType::Map, &cbor::encode(&leaf)).unwrap();
        self.leaf = Some((id, leaf));
        let root = Root {
            page_bytes: PAGE as u32,
            pages: self.pages.len() as u64,
            file_hash: vec![0; 32].into(),
            height: 0,
            children: join_ids(&[id]),
        };
        writer.put(BlobType::Map, &cbor::encode(&root)).unwrap()
    }

    /// The segments that the pages lie in now.
    pub(crate) fn segments(&self) -> std::collections::HashSet<BlobId> {
        self.refs.iter().map(|r| r.segment).collect()
    }
}

/// Numbers that are the same for the same seed.
pub(crate) struct Dice(u64, Vec<u8>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed << 32, Vec::new())
    }

    /// A number below `n`.
    pub(crate) fn roll(&mut self, n: usize) -> usize {
        if self.1.len() < 4 {
            self.0 += 1;
            self.1 = noise(self.0, 4096);
        }
        let bytes = self.1.split_off(self.1.len() - 4);
        u32::from_le_bytes(bytes.try_into().unwrap()) as usize % n.max(1)
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

/// The paths of all sessions' objects.
pub(crate) fn sessions(store: &dyn Backend) -> Vec<String> {
    live(store, |path| layout::parse_session(path).is_some())
}

/// The paths of all records of condemned packs.
pub(crate) fn records(store: &dyn Backend) -> Vec<String> {
    live(store, layout::is_gc)
}

fn live(store: &dyn Backend, is_one: impl Fn(&str) -> bool) -> Vec<String> {
    store.list(layout::LIVE).unwrap().into_iter().map(|l| l.path).filter(|path| is_one(path)).collect()
}

/// A line of /proc/self/status, in MiB.
pub(crate) fn memory_mib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Stores the index of so many blobs, each in a frame of its own, a thousand to a pack.
pub(crate) fn store_index(repo: &Repository, blobs: u64) {
    for first in (0..blobs).step_by(250_000) {
        let mut index = Index::default();
        for pack in (first..blobs.min(first + 250_000)).step_by(1000) {
            let frames = (pack..pack + 1000).map(|n| {
                let id = BlobId(*blake3::hash(&n.to_le_bytes()).as_bytes());
                let entries = vec![Entry { id, kind: BlobType::Chunk, plain_bytes: 9000 }];
                let (stored_bytes, plain_bytes, encoding) = (8000, 9000, Encoding::Zstd);
                FrameInfo { stored_bytes, plain_bytes, encoding, entries, bases: vec![], slots: None }
            });
            let id = PackId(*blake3::hash(&(pack + 1).to_be_bytes()).as_bytes());
            let header = Header::fresh(Kind::DataPack, 40_016).unwrap();
            index.add(&PackInfo { id, header, file_bytes: 8_100_000, frames: frames.collect() });
        }
        repo.put_index(index).unwrap();
    }
}
