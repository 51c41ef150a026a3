//! From changed pages to segments and a page map.
//!
//! May depend on `repo` and `format`. Pages come in order. Those that are similar to an older version of themselves are
//! packed together and stored against these; all others are packed together and stored in full. Unchanged pages keep
//! their place in older segments.

use std::collections::VecDeque;

use super::capture::{NewSegment, Sink};
use super::older::{OlderMap, read_similar};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::cbor;
use crate::format::pagemap::{Change, LEAF_PAGES, PageRef, Root, StoredLeaf};
use crate::format::segment::{SEGMENT_PAGES, pages_per_segment, segment_id};
use crate::id::{BlobId, PageHash};
use crate::repo::Repository;

/// Older versions are looked for once so many bytes of pages have come: whatever lies in one segment is decoded once.
const BATCH_BYTES: usize = 4 << 20;
/// Most bytes of pages in a segment that leans on others: it takes as many older pages to decode it. Half and twice as
/// many store 2 % more (`benches/delta_orders`).
const DELTA_BYTES: usize = 512 << 10;
/// A leaf is patched this often at most before it is written in full again; leaves take turns, between this and half
/// of it, so that no night rewrites them all.
const PATCHES: u32 = 32;

/// Pages that will make up a segment.
#[derive(Default)]
struct Group {
    pages: Vec<u8>,
    hashes: Vec<PageHash>,
    /// Numbers of the pages in the database.
    numbers: Vec<u64>,
    older: Vec<Option<(BlobId, u8)>>,
    base_pages: Vec<u8>,
}

/// A leaf with pages that are not all placed yet.
#[derive(Default)]
struct OpenLeaf {
    changes: Vec<Change>,
    missing: usize,
}

/// Makes segments and a page map of changed pages.
pub struct Segmenter<'r> {
    repo: &'r Repository,
    page_bytes: u32,
    /// Pages of the database.
    pages: u64,
    older: OlderMap<'r>,
    batch: Group,
    full: Group,
    deltas: Group,
    /// Leaves from number `leaves.len()` on.
    open: VecDeque<OpenLeaf>,
    /// Finished leaves.
    leaves: Vec<BlobId>,
}

impl<'r> Segmenter<'r> {
    /// For a database of so many pages of a length, with the root of its previous version's map.
    pub fn new(repo: &'r Repository, page_bytes: u32, pages: u64, older: Option<&BlobId>) -> Self {
        Self {
            repo,
            page_bytes,
            pages,
            older: OlderMap::new(repo, page_bytes, older),
            batch: Group::default(),
            full: Group::default(),
            deltas: Group::default(),
            open: VecDeque::new(),
            leaves: Vec::new(),
        }
    }

    /// Takes a changed page: its number, its hash, its bytes. Numbers rise.
    ///
    /// # Errors
    /// When storing has failed.
    pub fn page(&mut self, number: u64, hash: &PageHash, page: &[u8], sink: &mut dyn Sink) -> Result<()> {
        self.open_to(number)?.missing += 1;
        self.batch.numbers.push(number);
        self.batch.hashes.push(*hash);
        self.batch.pages.extend_from_slice(page);
        if self.batch.pages.len() >= BATCH_BYTES { self.work(sink) } else { Ok(()) }
    }

    /// Takes note that there are no more, and returns the root of the map; `file_hash` is of the whole database.
    ///
    /// # Errors
    /// When storing has failed.
    pub fn finish(mut self, file_hash: &blake3::Hash, sink: &mut dyn Sink) -> Result<BlobId> {
        self.work(sink)?;
        self.flush_deltas(sink)?;
        self.flush_full(sink)?;
        if let Some(last) = self.pages.checked_sub(1) {
            self.open_to(last)?;
        }
        self.flush_leaves(usize::MAX, sink)?;
        let leaves = std::mem::take(&mut self.leaves);
        Root::build(self.page_bytes, self.pages, file_hash.as_bytes(), leaves, |node| self.put(node, sink))
    }

    /// The leaf that a page lies in.
    fn open_to(&mut self, page: u64) -> Result<&mut OpenLeaf> {
        let at = usize::try_from(page / LEAF_PAGES as u64).ok().and_then(|leaf| leaf.checked_sub(self.leaves.len()));
        let at = at.filter(|_| page < self.pages);
        let at = at.ok_or_else(|| Error::refused(format!("page {page} came out of its order"), "report this"))?;
        if self.open.len() <= at {
            self.open.resize_with(at + 1, OpenLeaf::default);
        }
        self.open.get_mut(at).ok_or(Error::Interrupted)
    }

    /// Looks for older versions of the pages that have come, and puts each page to its like.
    fn work(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let mut older = Vec::with_capacity(batch.numbers.len());
        for number in &batch.numbers {
            let leaf = self.older.leaf((number / LEAF_PAGES as u64) as usize);
            older.push(leaf.and_then(|leaf| self.older.base_of(&leaf, (number % LEAF_PAGES as u64) as usize)));
        }
        let pages: Vec<&[u8]> = batch.pages.chunks_exact(self.page_bytes as usize).collect();
        let similar = read_similar(self.repo, &pages, &older);
        for ((at, page), base_page) in pages.iter().enumerate().zip(similar) {
            let (Some(number), Some(hash)) = (batch.numbers.get(at), batch.hashes.get(at)) else { continue };
            let group = if base_page.is_some() { &mut self.deltas } else { &mut self.full };
            group.numbers.push(*number);
            group.hashes.push(*hash);
            group.pages.extend_from_slice(page);
            if let Some(base_page) = base_page {
                group.older.push(older.get(at).copied().flatten());
                group.base_pages.extend_from_slice(&base_page);
                let most = (DELTA_BYTES / self.page_bytes as usize).clamp(1, SEGMENT_PAGES);
                if group.numbers.len() >= most {
                    self.flush_deltas(sink)?;
                }
            } else if group.numbers.len() >= pages_per_segment(self.page_bytes as usize) {
                self.flush_full(sink)?;
            }
        }
        // The leaf that the last page lies in may get more.
        let last = batch.numbers.last().map_or(0, |number| (number / LEAF_PAGES as u64) as usize);
        self.flush_leaves(last, sink)
    }

    fn flush_full(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let group = std::mem::take(&mut self.full);
        self.store(group, sink)
    }

    fn flush_deltas(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let group = std::mem::take(&mut self.deltas);
        self.store(group, sink)
    }

    fn store(&mut self, group: Group, sink: &mut dyn Sink) -> Result<()> {
        if group.numbers.is_empty() {
            return Ok(());
        }
        let (page_bytes, first_leaf) = (self.page_bytes, self.leaves.len());
        let id = segment_id(self.repo.keys(), page_bytes, &group.hashes);
        for (slot, (number, hash)) in (0..=u8::MAX).zip(group.numbers.iter().zip(&group.hashes)) {
            let leaf = (number / LEAF_PAGES as u64) as usize;
            if let Some(open) = leaf.checked_sub(first_leaf).and_then(|at| self.open.get_mut(at)) {
                let page = (number % LEAF_PAGES as u64) as u16;
                open.changes.push((page, PageRef { segment: id, slot, hash: *hash }));
                open.missing -= 1;
            }
        }
        let Group { pages, hashes, older, base_pages, .. } = group;
        sink.segment(NewSegment { id, page_bytes, pages, hashes, older, base_pages })
    }

    /// Stores the leaves below a number that are complete, in order.
    fn flush_leaves(&mut self, below: usize, sink: &mut dyn Sink) -> Result<()> {
        while self.leaves.len() < below && self.open.front().is_some_and(|leaf| leaf.missing == 0) {
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

    fn store_leaf(&mut self, leaf: OpenLeaf, sink: &mut dyn Sink) -> Result<BlobId> {
        let number = self.leaves.len();
        let from = number as u64 * LEAF_PAGES as u64;
        let count = (self.pages - from).min(LEAF_PAGES as u64) as usize;
        if let Some((older_count, id)) = self.older.leaf_pages(number)
            && leaf.changes.is_empty()
            && older_count == count
        {
            return Ok(id);
        }
        let older = self.older.leaf(number);
        let mut pages: Vec<Option<PageRef>> =
            older.iter().flat_map(|older| &older.leaf.pages).take(count).copied().map(Some).collect();
        pages.resize(count, None);
        for (page, at) in leaf.changes {
            if let Some(entry) = pages.get_mut(usize::from(page)) {
                *entry = Some(at);
            }
        }
        let pages: Option<Vec<PageRef>> = pages.into_iter().collect();
        // Pages that are as they were are known from the older leaf, which can't be read again.
        let pages =
            pages.ok_or_else(|| Error::corrupt("a page map", "its older version went away while it was used"))?;
        let Some(older) = older else {
            return self.put(cbor::encode(&StoredLeaf::full(&pages)), sink);
        };
        let turn = PATCHES - (number as u32 * 7) % (PATCHES / 2);
        match older.leaf.successor(older.id, &pages, turn) {
            Some(stored) => self.put(cbor::encode(&stored), sink),
            None => Ok(older.id),
        }
    }
}
