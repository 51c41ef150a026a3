//! Small repositories in memory, built blob by blob, for the tests of jobs that read.

use std::sync::Arc;

use minicbor::bytes::ByteVec;

use crate::backend::{Backend, Memory, layout};
use crate::crypto::{BlobType, KdfCost};
use crate::format::cbor::{self, Time};
use crate::format::header::Kind;
use crate::format::keyslot::Unlock;
use crate::format::pack::Entry;
use crate::format::pagemap::{PageRef, Root, StoredLeaf};
use crate::format::segment;
use crate::format::snapshot::{Counts, Snapshot};
use crate::format::tree::{Content, Database, Node, NodeKind, Tree, join_ids, split};
use crate::id::BlobId;
use crate::repo::{Named, Repository, SegmentPages, Selected, Writer, encode_delta, encode_frame, encode_segment};

/// Chunks of the sample files, in bytes.
pub const CHUNK_BYTES: usize = 20_000;

/// A repository that is being filled.
pub struct Sample {
    pub store: Arc<Memory>,
    pub repo: Arc<Repository>,
    writer: Option<Writer>,
    generation: u64,
}

impl Sample {
    pub fn new() -> Self {
        let store = Arc::new(Memory::default());
        let unlock = Unlock::KeyFile(vec![7; 32]);
        let repo = Repository::init(store.clone(), &unlock, KdfCost::default(), "test").unwrap();
        Self { store, repo: Arc::new(repo), writer: None, generation: 0 }
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.get_or_insert_with(|| Writer::new(&self.repo, 3))
    }

    /// Closes the pack, so that what follows lies in another one.
    pub fn flush(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.finish().unwrap();
        }
    }

    pub fn chunks(&mut self, data: &[u8]) -> Vec<BlobId> {
        let keys = self.repo.clone();
        data.chunks(CHUNK_BYTES)
            .map(|chunk| {
                let id = keys.keys().blob_id(BlobType::Chunk, chunk);
                let entries = vec![Entry { id, kind: BlobType::Chunk, plain_bytes: chunk.len() as u32 }];
                self.writer().put_frame(encode_frame(entries, chunk.to_vec(), 3)).unwrap();
                id
            })
            .collect()
    }

    pub fn file(&mut self, name: &str, data: &[u8]) -> Node {
        let content = Some(Content::new(0, &self.chunks(data)));
        let mtime = Time { secs: 1_600_000_000, nanos: 123_456_789 };
        Node {
            size: Some(data.len() as u64),
            content,
            mtime,
            mode: 0o640,
            ..Node::bare(name.as_bytes(), NodeKind::File)
        }
    }

    /// Small files that share one frame.
    pub fn small_files(&mut self, files: &[(String, Vec<u8>)]) -> Vec<Node> {
        let repo = self.repo.clone();
        let (mut entries, mut plain, mut nodes) = (vec![], vec![], vec![]);
        for (name, data) in files {
            let id = repo.keys().blob_id(BlobType::Chunk, data);
            entries.push(Entry { id, kind: BlobType::Chunk, plain_bytes: data.len() as u32 });
            plain.extend_from_slice(data);
            let content = Some(Content::new(0, &[id]));
            nodes.push(Node { size: Some(data.len() as u64), content, ..Node::bare(name.as_bytes(), NodeKind::File) });
        }
        self.writer().put_frame(encode_frame(entries, plain, 3)).unwrap();
        nodes
    }

    fn tree(&mut self, mut nodes: Vec<Node>) -> BlobId {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let put = |writer: &mut Writer, tree| writer.put(BlobType::Tree, &cbor::encode::<Tree>(&tree)).unwrap();
        let writer = self.writer();
        let mut parts: Vec<_> =
            split(nodes).into_iter().map(|nodes| put(writer, Tree { nodes, parts: None })).collect();
        if parts.len() == 1 {
            return parts.remove(0);
        }
        put(writer, Tree { nodes: vec![], parts: Some(parts) })
    }

    pub fn directory(&mut self, name: &str, nodes: Vec<Node>) -> Node {
        let tree = Some(self.tree(nodes));
        let mtime = Time { secs: 1_500_000_000, nanos: 1 };
        Node { tree, mtime, mode: 0o750, ..Node::bare(name.as_bytes(), NodeKind::Directory) }
    }

    /// A segment with these pages: in full, or against a base that has older versions in its first slots.
    pub fn segment(&mut self, page_bytes: usize, pages: &[u8], base: Option<(BlobId, &[u8])>) -> Vec<PageRef> {
        let hashes: Vec<_> = pages.chunks(page_bytes).map(|p| self.repo.keys().page_hash(p)).collect();
        let id = segment::segment_id(self.repo.keys(), page_bytes as u32, &hashes);
        let older: Vec<_> = base.iter().flat_map(|(id, _)| (0..hashes.len()).map(|s| Some((*id, s as u8)))).collect();
        let pages = SegmentPages {
            id,
            page_bytes: page_bytes as u32,
            hashes: &hashes,
            present: &(0..hashes.len()).map(|slot| slot as u8).collect(),
            pages,
            older: &older,
            base_pages: base.map_or(&[], |(_, older)| older),
        };
        let frame = encode_delta(&pages, 3).unwrap_or_else(|| encode_segment(&pages, 3));
        self.writer().put_frame(frame).unwrap();
        (0..=u8::MAX).zip(hashes).map(|(slot, hash)| PageRef { segment: id, slot, hash }).collect()
    }

    /// All pages of a database, in full segments.
    pub fn pages(&mut self, page_bytes: usize, file: &[u8]) -> Vec<PageRef> {
        let step = page_bytes * segment::pages_per_segment(page_bytes);
        file.chunks(step).flat_map(|pages| self.segment(page_bytes, pages, None)).collect()
    }

    pub fn database(&mut self, name: &str, page_bytes: usize, file: &[u8], pages: &[PageRef]) -> Node {
        let leaf = self.writer().put(BlobType::Map, &cbor::encode(&StoredLeaf::full(pages))).unwrap();
        let root = Root {
            page_bytes: page_bytes as u32,
            pages: pages.len() as u64,
            file_hash: blake3::hash(file).as_bytes().to_vec().into(),
            height: 0,
            children: join_ids(&[leaf]),
        };
        let map = self.writer().put(BlobType::Map, &cbor::encode(&root)).unwrap();
        let database = Some(Database {
            map,
            captured: Time::default(),
            device: 1,
            wal: None,
            wal_mode: true,
            file_bytes: 0,
            facts: None,
        });
        Node { size: Some(file.len() as u64), database, mode: 0o600, ..Node::bare(name.as_bytes(), NodeKind::Database) }
    }

    /// Stores a snapshot with these nodes in its root.
    pub fn snapshot(&mut self, nodes: Vec<Node>) -> Selected {
        let tree = self.tree(nodes);
        self.flush();
        self.generation += 1;
        let snapshot = Snapshot {
            time: Time { secs: 1_700_000_000 + self.generation.cast_signed() * 86_400, nanos: 0 },
            generation: self.generation,
            tree,
            ..snapshot_of(vec![b"app".to_vec().into()], "/app")
        };
        let id = self.repo.put_snapshot(&snapshot).unwrap();
        Selected { named: Named::new(id, snapshot), sub_path: vec![] }
    }

    /// Flips a byte in the frame that a blob lies in: in its first place, or the n-th.
    pub fn damage(&self, id: &BlobId, n: usize) {
        let place = self.repo.index().places(id).nth(n).unwrap();
        let reader = self.repo.frame_reader(place).unwrap();
        let mut bytes = self.store.get(reader.path(), u64::MAX).unwrap();
        let (offset, len) = reader.range();
        bytes[(offset + len / 2) as usize] ^= 1;
        self.store.put(reader.path(), bytes).unwrap();
    }

    /// Deletes the pack that a blob lies in.
    pub fn lose_pack(&self, id: &BlobId) {
        let place = self.repo.place(id).unwrap();
        let pack = self.repo.index().packs()[place.pack as usize].id;
        self.store.delete(&[layout::pack(Kind::DataPack, pack)]).unwrap();
    }
}

/// A snapshot of nothing, with these paths and this source.
pub fn snapshot_of(paths: Vec<ByteVec>, source: &str) -> Snapshot {
    Snapshot {
        started: Time::default(),
        time: Time::default(),
        host: "here".into(),
        source: source.into(),
        generation: 1,
        previous: None,
        paths,
        tags: vec![],
        tree: BlobId([0; 32]),
        counts: Counts::default(),
        program: "test".into(),
        users: vec![],
        groups: vec![],
        slot: None,
        pinned: false,
        preset: None,
    }
}

/// Bytes that don't compress, the same for the same seed.
pub fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}
