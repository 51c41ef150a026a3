//! What is lost of a database, page by page, and a plain file of what is left.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

use super::trees::Have;
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::MAX_PATCH_DEPTH;
use crate::format::pack::Entry;
use crate::format::pagemap::{FAN_OUT, Inner, LEAF_PAGES, PageRef, Root, StoredLeaf};
use crate::format::segment::{Base, MAX_BASE_DEPTH, SlotSet};
use crate::format::tree::{Content, split_ids};
use crate::id::BlobId;

use crate::repo::{Repository, Writer, encode_frame};

/// Pages are gathered and stored in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Level at which the pieces are compressed: what `create` uses by default.
const LEVEL: i32 = 3;

/// What stands in the place of lost pages where a damaged database is kept as a plain file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zeros,
    /// The same pages of another generation of the same path, the nearest that has them, and zeros where none has.
    OtherGenerations,
}

/// A page map as far as it can be read.
pub(super) struct Map {
    pub root: Root,
    leaves: Vec<Option<BlobId>>,
}

impl Map {
    /// How many leaves it has.
    pub(super) fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    /// A leaf's id, unless that is lost.
    pub(super) fn leaf_id(&self, number: usize) -> Option<BlobId> {
        self.leaves.get(number).copied().flatten()
    }
}

/// What is lost of a database.
#[derive(Clone)]
pub(super) enum Damage {
    /// Its page map: nobody knows which pages it had.
    Map,
    /// These pages, counted from 1 as SQLite does.
    Pages {
        /// Pages in all.
        pages: u64,
        /// The lost ones.
        lost: Vec<Range<u64>>,
    },
}

/// Reads page maps, remembering what is lost of each leaf.
pub(super) struct Pages<'a> {
    repo: &'a Repository,
    have: &'a Have,
    /// Lost pages of leaves, counted from 0 within the leaf.
    leaves: HashMap<BlobId, Rc<Vec<Range<u64>>>>,
    segments: HashMap<BlobId, SlotSet>,
    maps: HashMap<BlobId, Option<Damage>>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(repo: &'a Repository, have: &'a Have) -> Self {
        Self { repo, have, leaves: HashMap::new(), segments: HashMap::new(), maps: HashMap::new() }
    }

    /// What is lost of a database of `size` bytes, by its map and the index.
    ///
    /// # Errors
    /// When the store doesn't answer.
    pub(super) fn damage(&mut self, map: &BlobId, size: u64) -> Result<Option<Damage>> {
        if let Some(known) = self.maps.get(map) {
            return Ok(known.clone());
        }
        let damage = match self.map(map)?.filter(|m| m.root.pages * u64::from(m.root.page_bytes) == size) {
            None => Some(Damage::Map),
            Some(map) => {
                let mut lost: Vec<Range<u64>> = Vec::new();
                for number in 0..map.leaves.len() {
                    let first = (number * LEAF_PAGES) as u64 + 1;
                    for range in self.lost_of_leaf(&map, number)?.iter() {
                        push_range(&mut lost, first + range.start..first + range.end);
                    }
                }
                (!lost.is_empty()).then_some(Damage::Pages { pages: map.root.pages, lost })
            }
        };
        self.maps.insert(*map, damage.clone());
        Ok(damage)
    }

    /// Reads a map as far as it goes; `None` if its root can't be read.
    ///
    /// # Errors
    /// When the store doesn't answer.
    pub(super) fn map(&self, id: &BlobId) -> Result<Option<Map>> {
        let Some(root) = self.have.read(self.repo, id, BlobType::Map)?.and_then(|b| Root::decode(&b).ok()) else {
            return Ok(None);
        };
        let wanted = root.leaves();
        let mut level: Vec<Option<BlobId>> =
            split_ids(&root.children).unwrap_or_default().into_iter().map(Some).collect();
        for height in (0..root.height).rev() {
            // Every node but the last of its level is full: so it is known how many leaves a lost one had.
            let count = wanted.div_ceil(FAN_OUT.saturating_pow(u32::from(height)));
            let mut next: Vec<Option<BlobId>> = Vec::new();
            for node in level {
                let read = match &node {
                    Some(node) => self.have.read(self.repo, node, BlobType::Map)?.and_then(|b| Inner::decode(&b).ok()),
                    None => None,
                };
                match read {
                    Some(children) => next.extend(children.into_iter().map(Some)),
                    None => next.extend(std::iter::repeat_n(None, FAN_OUT.min(count.saturating_sub(next.len())))),
                }
                if next.len() > wanted {
                    return Ok(None);
                }
            }
            level = next;
        }
        Ok((level.len() == wanted).then_some(Map { root, leaves: level }))
    }

    /// Which pages of a leaf are lost.
    fn lost_of_leaf(&mut self, map: &Map, number: usize) -> Result<Rc<Vec<Range<u64>>>> {
        let id = map.leaves.get(number).copied().flatten();
        if let Some(known) = id.and_then(|id| self.leaves.get(&id)) {
            return Ok(known.clone());
        }
        let mut lost = Vec::new();
        for (n, at) in (0..).zip(self.leaf(map, number)?) {
            let is_there = at.is_some_and(|at| self.slots_of(&at.segment, 0).has(at.slot));
            if !is_there {
                push_range(&mut lost, n..n + 1);
            }
        }
        let lost = Rc::new(lost);
        if let Some(id) = id {
            self.leaves.insert(id, lost.clone());
        }
        Ok(lost)
    }

    /// Where the pages of a leaf are, as far as it and what it patches can be read. A patch is known whatever became of
    /// the leaves below it.
    pub(super) fn leaf(&self, map: &Map, number: usize) -> Result<Vec<Option<PageRef>>> {
        let mut pages: Vec<Option<PageRef>> = vec![None; map.root.leaf_pages(number)];
        let mut next = map.leaves.get(number).copied().flatten();
        for depth in 0..=MAX_PATCH_DEPTH {
            let Some(id) = next else { break };
            let read = self.have.read(self.repo, &id, BlobType::Map)?.and_then(|b| StoredLeaf::decode(&b).ok());
            let Some((stored, changes)) = read else { break };
            if depth == 0 && stored.pages as usize != pages.len() {
                return Ok(vec![None; pages.len()]);
            }
            for (page, at) in changes {
                if let Some(entry) = pages.get_mut(usize::from(page)) {
                    entry.get_or_insert(at);
                }
            }
            next = stored.parent;
        }
        Ok(pages)
    }

    /// Which slots of a segment are there, with all that they lean on, as far as the index tells.
    pub(super) fn slots_of(&mut self, id: &BlobId, depth: usize) -> SlotSet {
        if let Some(known) = self.segments.get(id) {
            return *known;
        }
        let copies: Vec<(SlotSet, Vec<Base>)> = {
            let index = self.repo.index();
            let places = index.places(id).filter(|p| self.have.is_there(*p, BlobType::Segment));
            let copy = |p| (index.slots(p).copied().unwrap_or(SlotSet::ALL), index.bases(p).to_vec());
            places.map(copy).collect()
        };
        let mut there = SlotSet::default();
        for (slots, bases) in copies.iter().filter(|_| depth <= MAX_BASE_DEPTH) {
            if bases.iter().all(|base| self.slots_of(&base.id, depth + 1).holds(&base.slots)) {
                there.add(slots);
            }
        }
        self.segments.insert(*id, there);
        there
    }

    /// Stores what is left of a database as the content of a plain file, and says what stands in place of lost pages.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn store(&mut self, map: &Map, others: &[BlobId], writer: &mut Writer) -> Result<(Content, Stand)> {
        let page_bytes = map.root.page_bytes as usize;
        let mut maps = Vec::new();
        for other in others {
            maps.extend(self.map(other)?.filter(|m| m.root.page_bytes == map.root.page_bytes));
        }
        let (mut ids, mut stand) = (Vec::new(), Stand::default());
        for number in 0..map.leaves.len() {
            let own = self.leaf(map, number)?;
            let mut older: Vec<Vec<Option<PageRef>>> = Vec::new();
            for other in maps.iter().filter(|m| number < m.leaves.len()) {
                older.push(self.leaf(other, number)?);
            }
            let piece_pages = (PIECE_BYTES / page_bytes).max(1);
            for (piece, refs) in own.chunks(piece_pages).enumerate() {
                let mut bytes = vec![0; refs.len() * page_bytes];
                let mut open: Vec<bool> = vec![true; refs.len()];
                self.fill(refs, page_bytes, &mut bytes, &mut open);
                let lost = count(&open);
                for older in &older {
                    let from = (piece * piece_pages).min(older.len());
                    let same = older.get(from..(from + refs.len()).min(older.len())).unwrap_or_default();
                    self.fill(same, page_bytes, &mut bytes, &mut open);
                }
                stand.zeroed += count(&open);
                stand.from_others += lost - count(&open);
                ids.push(self.put_chunk(bytes, writer)?);
            }
        }
        Ok((writer.put_content(ids)?, stand))
    }

    /// Reads those pages that are still open, each segment once.
    fn fill(&self, refs: &[Option<PageRef>], page_bytes: usize, bytes: &mut [u8], open: &mut [bool]) {
        let mut by_segment: BTreeMap<BlobId, Vec<(usize, PageRef)>> = BTreeMap::new();
        for (at, page) in refs.iter().enumerate() {
            if let Some(page) = page.filter(|_| open.get(at) == Some(&true)) {
                by_segment.entry(page.segment).or_default().push((at, page));
            }
        }
        for (segment, pages) in by_segment {
            // Whatever keeps it from being read, its pages stay open, and are told of.
            let Ok(decoded) = self.repo.read_segment(&segment) else { continue };
            for (at, page) in pages {
                let found = decoded.page_with(usize::from(page.slot), &page.hash);
                let to = bytes.get_mut(at * page_bytes..(at + 1) * page_bytes);
                if let (Some(found), Some(to), Some(open)) = (found, to, open.get_mut(at))
                    && found.len() == to.len()
                {
                    to.copy_from_slice(found);
                    *open = false;
                }
            }
        }
    }

    fn put_chunk(&self, plain: Vec<u8>, writer: &mut Writer) -> Result<BlobId> {
        let id = self.repo.keys().blob_id(BlobType::Chunk, &plain);
        if writer.claims().claim(id) {
            let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: plain.len() as u32 };
            writer.put_frame(encode_frame(vec![entry], plain, LEVEL))?;
        }
        Ok(id)
    }
}

/// What stands in the place of lost pages.
#[derive(Default)]
pub(super) struct Stand {
    pub zeroed: u64,
    pub from_others: u64,
}

fn count(open: &[bool]) -> u64 {
    open.iter().filter(|o| **o).count() as u64
}

/// Adds a range that follows on the others, joined with the last where they touch.
fn push_range(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == new.start => last.end = new.end,
        _ => ranges.push(new),
    }
}
