//! From changed pages to segments and a page map.
//!
//! May depend on `repo` and `format`. Pages come in order. Those that are similar to an older version of themselves are
//! packed together and stored against these; all others are packed together and stored in full. Unchanged pages keep
//! their place in older segments.

use std::collections::{HashMap, HashSet, VecDeque};

use super::capture::{NewSegment, Sink};
use super::older::{OlderMap, read_at, read_similar};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::cbor;
use crate::format::pagemap::{Change, LEAF_PAGES, PageRef, Root, StoredLeaf};
use crate::format::segment::{Base, SEGMENT_PAGES, SlotSet, pages_per_segment, segment_id};
use crate::id::{BlobId, PageHash};
use crate::repo::{Repository, bases_of};

/// Older versions are looked for once so many bytes of pages have come. Each batch decodes the segments that its pages
/// lean on once, and those of earlier nights are spread over the whole file: so the fewer batches, the better.
const BATCH_BYTES: usize = 12 << 20;
/// Most bytes of pages in a segment that leans on others: it takes as many older pages to decode it. Half and twice as
/// many store 2 % more (`benches/delta_orders`).
const DELTA_BYTES: usize = 512 << 10;
/// A leaf is patched this often at most before it is written in full again; leaves take turns, between this and half
/// of it, so that no night rewrites them all.
const PATCHES: u32 = 32;

/// Of a segment with less than this of its slots in use, in per cent, the pages are stored again, with others like them:
/// otherwise restores and prunes pay for more and more pages that nobody needs. So the generations of a year stay as
/// quick to restore as those of a month, for a quarter more growth (`benches/delta_orders`).
const SPARSE_PERCENT: u32 = 50;
/// At most so many pages are stored again, in per cent of those that changed: no night costs much more than its changes.
const AGAIN_PERCENT: u64 = 50;
/// Leaves wait for what is stored again, as long as no more pages than this have changed: 52 bytes each.
const MAX_WAITING: u64 = 4 << 20;

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

/// The older version that a page is stored against: where it is, and its bytes.
type BasePage = ((BlobId, u8), Vec<u8>);

/// A page that goes into a group.
struct Placed<'p> {
    number: u64,
    hash: PageHash,
    page: &'p [u8],
    base: Option<BasePage>,
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
    /// How many pages came.
    changed: u64,
    /// What they were stored against.
    leaned_on: Vec<Base>,
}

impl<'r> Segmenter<'r> {
    /// For a database of so many pages of a length, with the map of its previous version.
    pub fn new(repo: &'r Repository, pages: u64, older: OlderMap<'r>, page_bytes: u32) -> Self {
        Self {
            repo,
            page_bytes,
            pages,
            older,
            batch: Group::default(),
            full: Group::default(),
            deltas: Group::default(),
            open: VecDeque::new(),
            leaves: Vec::new(),
            changed: 0,
            leaned_on: Vec::new(),
        }
    }

    /// Takes a changed page: its number, its hash, its bytes. Numbers rise.
    ///
    /// # Errors
    /// When storing has failed.
    pub fn page(&mut self, number: u64, hash: &PageHash, page: &[u8], sink: &mut dyn Sink) -> Result<()> {
        self.open_to(number)?.missing += 1;
        self.changed += 1;
        self.batch.numbers.push(number);
        self.batch.hashes.push(*hash);
        self.batch.pages.extend_from_slice(page);
        if self.batch.pages.len() >= BATCH_BYTES { self.work(sink) } else { Ok(()) }
    }

    /// Takes note that there are no more, and returns the root of the map; `file_hash` is of the whole database, `kept`
    /// says in which slots of which segments pages are as they were.
    ///
    /// # Errors
    /// When storing has failed.
    pub fn finish(
        mut self,
        file_hash: &blake3::Hash,
        kept: HashMap<BlobId, SlotSet>,
        sink: &mut dyn Sink,
    ) -> Result<BlobId> {
        self.work(sink)?;
        if self.leaves.is_empty() {
            self.store_again(&kept, sink)?;
        }
        self.flush_deltas(sink)?;
        self.flush_full(sink)?;
        if let Some(last) = self.pages.checked_sub(1) {
            self.open_to(last)?;
        }
        self.flush_leaves(usize::MAX, sink)?;
        let leaves = std::mem::take(&mut self.leaves);
        Root::build(self.page_bytes, self.pages, file_hash.as_bytes(), leaves, |node| self.put_node(node, sink))
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
            let base = base_page.zip(older.get(at).copied().flatten()).map(|(page, at)| (at, page));
            self.put(Placed { number: *number, hash: *hash, page, base }, sink)?;
        }
        if self.older.leaves() > 0 && self.changed < MAX_WAITING {
            return Ok(());
        }
        // The leaf that the last page lies in may get more.
        let last = batch.numbers.last().map_or(0, |number| (number / LEAF_PAGES as u64) as usize);
        self.flush_leaves(last, sink)
    }

    /// Stores the pages of sparsely used segments again.
    fn store_again(&mut self, kept: &HashMap<BlobId, SlotSet>, sink: &mut dyn Sink) -> Result<()> {
        let chosen = self.sparse(kept);
        if chosen.is_empty() {
            return Ok(());
        }
        let again = self.resting_on(&chosen, kept);
        let waiting: HashSet<u64> = self.full.numbers.iter().chain(&self.deltas.numbers).copied().collect();
        let mut pages: Vec<(u64, PageRef)> = Vec::new();
        for leaf in 0..self.older.leaves() {
            let from = leaf as u64 * LEAF_PAGES as u64;
            let Some(older) = self.older.leaf(leaf) else { continue };
            let changes = self.open.get(leaf).map(|open| &open.changes[..]).unwrap_or_default();
            let changed: HashSet<u16> = changes.iter().map(|(page, _)| *page).collect();
            for (page, at) in (0..=u16::MAX).zip(&older.leaf.pages) {
                let number = from + u64::from(page);
                let is_changed = || changed.contains(&page) || waiting.contains(&number) || number >= self.pages;
                if again.get(&at.segment).is_some_and(|slots| slots.has(at.slot)) && !is_changed() {
                    pages.push((number, *at));
                }
            }
        }
        for some in pages.chunks((BATCH_BYTES / self.page_bytes as usize).max(1)) {
            self.put_again(some, &chosen, sink)?;
        }
        Ok(())
    }

    /// Stores unchanged pages again: against the bases that they had, where these stay. What can't be read stays where
    /// it is.
    fn put_again(&mut self, some: &[(u64, PageRef)], chosen: &HashSet<BlobId>, sink: &mut dyn Sink) -> Result<()> {
        let places: Vec<_> = some.iter().map(|(_, at)| Some((at.segment, at.slot))).collect();
        let keys = self.repo.keys();
        let read = read_at(self.repo, &places, |number, page| {
            some.get(number).is_some_and(|(_, at)| keys.page_hash(page) == at.hash)
        });
        let (mut pages, mut older, mut placed) = (Vec::new(), Vec::new(), Vec::new());
        for ((number, at), page) in some.iter().zip(&read) {
            let Some(page) = page else { continue };
            let leaf = self.older.leaf((number / LEAF_PAGES as u64) as usize);
            let base = leaf.and_then(|leaf| self.older.base_of(&leaf, (number % LEAF_PAGES as u64) as usize));
            // One that leans on nothing is its own base.
            older.push(base.filter(|(id, _)| *id != at.segment && !chosen.contains(id)));
            pages.push(&page[..]);
            placed.push((*number, at.hash));
        }
        let base_pages = read_similar(self.repo, &pages, &older);
        for (((number, hash), page), (at, base_page)) in placed.into_iter().zip(pages).zip(older.iter().zip(base_pages))
        {
            self.open_to(number)?.missing += 1;
            self.put(Placed { number, hash, page, base: at.zip(base_page) }, sink)?;
        }
        Ok(())
    }

    /// The segments that are to be given up: those of which least is used, by pages or by what leans on them, as many as
    /// may be.
    fn sparse(&self, kept: &HashMap<BlobId, SlotSet>) -> HashSet<BlobId> {
        let index = self.repo.index();
        let mut used = kept.clone();
        let places = kept.keys().filter_map(|segment| index.find(segment));
        for base in places.flat_map(|place| index.bases(place)).chain(&self.leaned_on) {
            used.entry(base.id).or_default().add(&base.slots);
        }
        let mut sparse: Vec<(u32, BlobId, u32)> = Vec::new();
        for (segment, used) in used {
            let Some(place) = index.find(&segment) else { continue };
            // What a prune left out counts: a segment of few pages compresses badly.
            let slots = match index.slots(place) {
                Some(slots) => slots.iter().last().map_or(0, |last| u32::from(last) + 1),
                None => place.plain_bytes / self.page_bytes.max(1),
            };
            let percent = used.count() * 100 / slots.max(1);
            if percent < SPARSE_PERCENT {
                sparse.push((percent, segment, used.count()));
            }
        }
        drop(index);
        // Pages that would have to be fetched first stay where they are.
        sparse.retain(|(_, segment, _)| self.repo.is_near(segment));
        sparse.sort_unstable();
        let mut left = self.changed * AGAIN_PERCENT / 100;
        let fits = |(_, _, used): &(u32, BlobId, u32)| {
            let fits = u64::from(*used) <= left;
            left = left.saturating_sub(u64::from(*used));
            fits
        };
        sparse.into_iter().take_while(fits).map(|(_, segment, _)| segment).collect()
    }

    /// The slots whose pages keep the chosen segments in use: their own, and those that lean on them.
    fn resting_on(&self, chosen: &HashSet<BlobId>, kept: &HashMap<BlobId, SlotSet>) -> HashMap<BlobId, SlotSet> {
        let mut again = HashMap::new();
        for (segment, slots) in kept {
            if chosen.contains(segment) {
                again.insert(*segment, *slots);
                continue;
            }
            let leans = {
                let index = self.repo.index();
                index.find(segment).is_some_and(|p| index.bases(p).iter().any(|base| chosen.contains(&base.id)))
            };
            if leans && self.repo.is_near(segment) {
                let bases = self.repo.bases_of_slots(segment).unwrap_or_default();
                let is_on = |base: &Option<(BlobId, u8)>| base.is_some_and(|(id, _)| chosen.contains(&id));
                let on: SlotSet = (0..=u8::MAX).zip(&bases).filter(|(_, b)| is_on(b)).map(|(slot, _)| slot).collect();
                again.insert(*segment, on.common(slots));
            }
        }
        again
    }

    /// Puts a page to its like.
    fn put(&mut self, placed: Placed<'_>, sink: &mut dyn Sink) -> Result<()> {
        let group = if placed.base.is_some() { &mut self.deltas } else { &mut self.full };
        group.numbers.push(placed.number);
        group.hashes.push(placed.hash);
        group.pages.extend_from_slice(placed.page);
        if let Some((at, page)) = placed.base {
            group.older.push(Some(at));
            group.base_pages.extend_from_slice(&page);
            let most = (DELTA_BYTES / self.page_bytes as usize).clamp(1, SEGMENT_PAGES);
            return if group.numbers.len() >= most { self.flush_deltas(sink) } else { Ok(()) };
        }
        let is_full = group.numbers.len() >= pages_per_segment(self.page_bytes as usize);
        if is_full { self.flush_full(sink) } else { Ok(()) }
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
        self.leaned_on.extend(bases_of(&older));
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

    fn put_node(&self, bytes: Vec<u8>, sink: &mut dyn Sink) -> Result<BlobId> {
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
            return self.put_node(cbor::encode(&StoredLeaf::full(&pages)), sink);
        };
        let turn = PATCHES - (number as u32 * 7) % (PATCHES / 2);
        match older.leaf.successor(older.id, &pages, turn) {
            Some(stored) => self.put_node(cbor::encode(&stored), sink),
            None => Ok(older.id),
        }
    }
}
