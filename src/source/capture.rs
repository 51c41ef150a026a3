//! From a database to segments and a page map: reads every page, hashes it, and keeps what changed.
//!
//! May depend on `repo` and `format`. The pages go through once, in order. Changed ones are packed together, up to
//! 256 to a segment, wherever in the file they lie; unchanged ones keep their place in older segments.

use std::collections::{HashMap, VecDeque};

use rayon::prelude::*;

use super::spool::Spool;
use super::sqlite::{Database, PageObserver, Refusal};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::cbor;
use crate::format::facts::Facts;
use crate::format::pagemap::{LEAF_PAGES, PageRef, Root, StoredLeaf};
use crate::format::segment::{SlotSet, pages_per_segment, segment_id};
use crate::id::{BlobId, PageHash};
use crate::repo::{Leaf, Repository};
use crate::report::Reporter;

/// Read and hashed at a time, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// A leaf is patched this often at most before it is written in full again; leaves take turns, between this and half
/// of it, so that no night rewrites them all.
const PATCHES: u32 = 32;

/// Pages that the repository may not have yet.
pub struct NewSegment {
    /// The segment's id.
    pub id: BlobId,
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The pages, one after the other.
    pub pages: Vec<u8>,
}

/// Takes what a capture finds.
pub trait Sink {
    /// Stores a segment unless it is there.
    ///
    /// # Errors
    /// When storing has failed.
    fn segment(&mut self, segment: NewSegment) -> Result<()>;

    /// Stores a part of the page map unless it is there.
    ///
    /// # Errors
    /// When storing has failed.
    fn map(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<()>;
}

/// Why a capture ended without a result.
pub enum Stop {
    /// The database can't be captured.
    Refused(Refusal),
    /// The run as a whole has failed.
    Failed(Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A captured database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Root of the page map.
    pub map: BlobId,
    /// Length of the database, in bytes.
    pub bytes: u64,
    /// What it says of itself.
    pub facts: Facts,
}

/// Captures a database. While a transaction is held, new segments go to `spool` and reach `sink` after its end.
///
/// # Errors
/// [`Stop::Refused`] if the database can't be captured, changed while it was read included.
pub fn capture(
    repo: &Repository,
    db: Database,
    older: Option<&BlobId>,
    sink: &mut dyn Sink,
    spool: &mut Spool,
    reporter: &Reporter,
) -> Result<Captured, Stop> {
    let held = db.is_held();
    let captured = if held {
        read(repo, &db, older, &mut Spooling { repo, spool }, reporter)
    } else {
        read(repo, &db, older, sink, reporter)
    };
    // The transaction ends before anything is compressed or stored, and also if reading failed.
    let sound = db.finish();
    let captured = captured?;
    if !sound? {
        return Err(Refusal::Busy("it changed while it was read".into()).into());
    }
    if held {
        spool.drain(sink)?;
    }
    Ok(captured)
}

/// Puts aside what the repository does not have.
struct Spooling<'a> {
    repo: &'a Repository,
    spool: &'a mut Spool,
}

impl Sink for Spooling<'_> {
    fn segment(&mut self, segment: NewSegment) -> Result<()> {
        let known = self.repo.index().is_usable(&segment.id);
        if known { Ok(()) } else { self.spool.push(segment) }
    }

    fn map(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<()> {
        self.spool.push_map(id, bytes);
        Ok(())
    }
}

fn read(
    repo: &Repository,
    db: &Database,
    older: Option<&BlobId>,
    sink: &mut dyn Sink,
    reporter: &Reporter,
) -> Result<Captured, Stop> {
    let page_bytes = db.header().page_bytes;
    if db.pages() == 0 {
        return Err(Refusal::NotADatabase("it has no pages".into()).into());
    }
    let mut map = MapBuilder::new(repo, page_bytes, older);
    let mut whole = blake3::Hasher::new();
    let mut observer = PageObserver::new(page_bytes, db.pages());
    let mut buffer = Vec::new();
    let batch_pages = (BATCH_BYTES / page_bytes as usize).min(LEAF_PAGES) as u64;
    let mut first = 0;
    while first < db.pages() {
        reporter.check_interrupt()?;
        let leaf_end = (first / LEAF_PAGES as u64 + 1) * LEAF_PAGES as u64;
        let end = (first + batch_pages).min(leaf_end).min(db.pages());
        if first.is_multiple_of(LEAF_PAGES as u64) {
            map.begin_leaf((db.pages() - first).min(LEAF_PAGES as u64) as usize);
        }
        db.read(first, (end - first) as usize, &mut buffer)?;
        let hash = |page: &[u8]| repo.keys().page_hash(page);
        let hashes: Vec<PageHash> = buffer.par_chunks(page_bytes as usize).map(hash).collect();
        whole.update_rayon(&buffer);
        observer.see(first, &buffer);
        map.add((first % LEAF_PAGES as u64) as usize, &buffer, &hashes, sink)?;
        reporter.advance_read(buffer.len() as u64, 0);
        first = end;
    }
    let facts = observer.finish(|page| db.page(page))?;
    let root = map.finish(db.pages(), whole.finalize(), sink)?;
    Ok(Captured { map: root, bytes: db.pages() * u64::from(page_bytes), facts })
}

/// A leaf whose pages are not all placed yet.
struct OpenLeaf {
    older: Option<(BlobId, Leaf)>,
    pages: Vec<Option<PageRef>>,
    missing: usize,
}

struct MapBuilder<'r> {
    repo: &'r Repository,
    page_bytes: u32,
    older_leaves: Vec<BlobId>,
    /// Leaves from number `leaves.len()` on.
    open: VecDeque<OpenLeaf>,
    /// Finished leaves.
    leaves: Vec<BlobId>,
    pages: Vec<u8>,
    hashes: Vec<PageHash>,
    /// Leaf and page of each pending page.
    targets: Vec<(usize, usize)>,
    /// The slots that may be relied on.
    usable: HashMap<BlobId, SlotSet>,
}

impl<'r> MapBuilder<'r> {
    fn new(repo: &'r Repository, page_bytes: u32, older: Option<&BlobId>) -> Self {
        // An older map that can't be read costs space, not correctness.
        let older_leaves =
            older.and_then(|id| repo.read_map(id).ok()).filter(|(root, _)| root.page_bytes == page_bytes);
        Self {
            repo,
            page_bytes,
            older_leaves: older_leaves.map(|(_, leaves)| leaves).unwrap_or_default(),
            open: VecDeque::new(),
            leaves: Vec::new(),
            pages: Vec::new(),
            hashes: Vec::new(),
            targets: Vec::new(),
            usable: HashMap::new(),
        }
    }

    fn begin_leaf(&mut self, pages: usize) {
        let number = self.leaves.len() + self.open.len();
        let older = self.older_leaves.get(number).copied();
        let is_usable = |id: &BlobId| {
            let chain = self.repo.leaf_chain(id).unwrap_or_default();
            !chain.is_empty() && chain.iter().all(|id| self.repo.index().is_usable(id))
        };
        let older = older.filter(is_usable).and_then(|id| Some((id, self.repo.read_leaf(&id).ok()?)));
        self.open.push_back(OpenLeaf { older, pages: vec![None; pages], missing: pages });
    }

    /// Takes pages of the leaf begun last, from number `first` in it.
    fn add(&mut self, first: usize, pages: &[u8], hashes: &[PageHash], sink: &mut dyn Sink) -> Result<()> {
        let leaf = self.leaves.len() + self.open.len() - 1;
        for (i, (page, hash)) in pages.chunks_exact(self.page_bytes as usize).zip(hashes).enumerate() {
            if self.keep(first + i, hash) {
                continue;
            }
            self.pages.extend_from_slice(page);
            self.hashes.push(*hash);
            self.targets.push((leaf, first + i));
            if self.hashes.len() == pages_per_segment(self.page_bytes as usize) {
                self.flush_segment(sink)?;
            }
        }
        self.flush_leaves(sink)
    }

    /// Keeps an unchanged page where it is, if that slot of the segment may be relied on: a prune drops pages that no
    /// snapshot needs.
    fn keep(&mut self, page: usize, hash: &PageHash) -> bool {
        let Some(leaf) = self.open.back_mut() else { return false };
        let old = leaf.older.as_ref().and_then(|(_, old)| old.pages.get(page)).filter(|old| old.hash == *hash);
        let Some(old) = old.copied() else { return false };
        let repo = self.repo;
        let usable = self.usable.entry(old.segment).or_insert_with(|| repo.index().usable_slots(&old.segment));
        if !usable.has(old.slot) {
            return false;
        }
        leaf.pages[page] = Some(old);
        leaf.missing -= 1;
        true
    }

    fn flush_segment(&mut self, sink: &mut dyn Sink) -> Result<()> {
        if self.hashes.is_empty() {
            return Ok(());
        }
        let segment = segment_id(self.repo.keys(), self.page_bytes, &self.hashes);
        for (slot, ((leaf, page), hash)) in self.targets.drain(..).zip(self.hashes.drain(..)).enumerate() {
            if let Some(open) = self.open.get_mut(leaf - self.leaves.len()) {
                open.pages[page] = Some(PageRef { segment, slot: slot as u8, hash });
                open.missing -= 1;
            }
        }
        let pages = std::mem::take(&mut self.pages);
        sink.segment(NewSegment { id: segment, page_bytes: self.page_bytes, pages })
    }

    fn flush_leaves(&mut self, sink: &mut dyn Sink) -> Result<()> {
        while self.open.front().is_some_and(|leaf| leaf.missing == 0) {
            let Some(leaf) = self.open.pop_front() else { break };
            let id = self.store_leaf(leaf, sink)?;
            self.leaves.push(id);
        }
        Ok(())
    }

    fn put(&self, bytes: Vec<u8>, sink: &mut dyn Sink) -> Result<BlobId> {
        let id = self.repo.keys().blob_id(BlobType::Map, &bytes);
        sink.map(id, bytes)?;
        Ok(id)
    }

    fn store_leaf(&self, leaf: OpenLeaf, sink: &mut dyn Sink) -> Result<BlobId> {
        let pages: Vec<PageRef> = leaf.pages.into_iter().flatten().collect();
        let Some((older_id, older)) = leaf.older else {
            return self.put(cbor::encode(&StoredLeaf::full(&pages)), sink);
        };
        let turn = PATCHES - (self.leaves.len() as u32 * 7) % (PATCHES / 2);
        match older.successor(older_id, &pages, turn) {
            Some(stored) => self.put(cbor::encode(&stored), sink),
            None => Ok(older_id),
        }
    }

    fn finish(mut self, pages: u64, file_hash: blake3::Hash, sink: &mut dyn Sink) -> Result<BlobId> {
        self.flush_segment(sink)?;
        self.flush_leaves(sink)?;
        let leaves = std::mem::take(&mut self.leaves);
        Root::build(self.page_bytes, pages, file_hash.as_bytes(), leaves, |node| self.put(node, sink))
    }
}
