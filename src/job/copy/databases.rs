//! Databases: page maps and segments. A page keeps its place among the pages it was stored with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use rayon::prelude::*;

use super::Copying;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::cbor;
use crate::format::pack::Frame;
use crate::format::pagemap::{PageRef, Root, StoredLeaf};
use crate::format::segment::{self, Base};
use crate::id::BlobId;
use crate::index::Place;
use crate::repo::{Claims, Leaf, SegmentPages, encode_segment};

/// Segments that are in memory at once, of up to 1 MiB each.
const SEGMENTS_AT_ONCE: usize = 16;
/// Leaves that are kept to be patched: 200 KiB each.
const LEAVES_KEPT: usize = 256;
/// Deepest chain of patches that is written: as `create` has it.
const MAX_PATCHES: u32 = 32;

/// What was copied already.
#[derive(Default)]
pub(super) struct Made {
    maps: HashMap<BlobId, BlobId>,
    leaves: HashMap<BlobId, BlobId>,
    /// Where the slots of a segment went.
    segments: HashMap<BlobId, Vec<Option<PageRef>>>,
    recent: HashMap<BlobId, Arc<Recent>>,
    order: VecDeque<BlobId>,
}

/// A leaf that later ones may patch.
struct Recent {
    id: BlobId,
    leaf: Leaf,
}

impl Copying<'_> {
    /// Copies a database's page map with everything it needs.
    pub(super) fn database(&mut self, map: &BlobId) -> Result<BlobId> {
        if let Some(made) = self.databases.maps.get(map) {
            return Ok(*made);
        }
        let (root, leaves) = self.from.read_map(map)?;
        let mut made = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            made.push(self.leaf(leaf, root.page_bytes)?);
        }
        let put = |node: Vec<u8>| self.writer.put(BlobType::Map, &node);
        let made = Root::build(root.page_bytes, root.pages, &root.file_hash, made, put)?;
        self.databases.maps.insert(*map, made);
        Ok(made)
    }

    fn leaf(&mut self, id: BlobId, page_bytes: u32) -> Result<BlobId> {
        if let Some(made) = self.databases.leaves.get(&id) {
            return Ok(*made);
        }
        let old = self.from.read_leaf(&id)?;
        self.segments(&old, page_bytes)?;
        let place = |page: &PageRef| {
            let slot = self.databases.segments.get(&page.segment)?.get(usize::from(page.slot))?;
            slot.as_ref().copied()
        };
        let pages = old.pages.iter().map(place).collect::<Option<Vec<_>>>();
        let pages = pages.ok_or_else(|| Error::corrupt(format!("page map leaf {id}"), "a page of it is nowhere"))?;
        // A patch of the nearest leaf that it was a patch of and that was copied of late.
        let chain = self.from.leaf_chain(&id)?;
        let older = chain.iter().find_map(|id| self.databases.recent.get(id).cloned());
        let stored = match &older {
            None => Some(StoredLeaf::full(&pages)),
            Some(older) => older.leaf.successor(older.id, &pages, MAX_PATCHES),
        };
        let made = match (&stored, &older) {
            (Some(stored), _) => self.writer.put(BlobType::Map, &cbor::encode(stored))?,
            (None, Some(older)) => older.id,
            (None, None) => return Err(Error::corrupt(format!("page map leaf {id}"), "it has no pages")),
        };
        self.databases.leaves.insert(id, made);
        if let Some(stored) = stored {
            self.keep(id, Recent { id: made, leaf: Leaf { stored, pages } });
        }
        Ok(made)
    }

    fn keep(&mut self, id: BlobId, recent: Recent) {
        self.databases.recent.insert(id, Arc::new(recent));
        self.databases.order.push_back(id);
        if self.databases.order.len() > LEAVES_KEPT
            && let Some(oldest) = self.databases.order.pop_front()
        {
            self.databases.recent.remove(&oldest);
        }
    }

    /// Copies the segments in which the pages of a leaf lie, and those that they lean on.
    fn segments(&mut self, leaf: &Leaf, page_bytes: u32) -> Result<()> {
        let mut wanted: BTreeMap<BlobId, Place> = BTreeMap::new();
        let mut waiting: Vec<BlobId> = leaf.pages.iter().map(|page| page.segment).collect();
        waiting.dedup();
        while let Some(id) = waiting.pop() {
            if !self.databases.segments.contains_key(&id) && !wanted.contains_key(&id) {
                let place = self.from.place(&id)?;
                wanted.insert(id, place);
                waiting.extend(self.from.index().bases(place).iter().map(|base| base.id));
            }
        }
        let mut wanted: Vec<_> = wanted.into_iter().map(|(id, place)| (self.leans(place), place, id)).collect();
        wanted.sort_unstable();
        let claims = self.writer.claims();
        // Those that lean on others are copied once these were.
        for some in wanted.chunk_by(|a, b| a.0 == b.0).flat_map(|alike| alike.chunks(SEGMENTS_AT_ONCE)) {
            self.reporter.check_interrupt()?;
            let this = &*self;
            let copy = |(leans, _, id): &(bool, Place, BlobId)| this.segment(id, *leans, page_bytes, &claims);
            let copied: Vec<(Vec<Option<PageRef>>, _)> = some.par_iter().map(copy).collect::<Result<_>>()?;
            for ((.., id), (slots, frame)) in some.iter().zip(copied) {
                self.databases.segments.insert(*id, slots);
                frame.map_or(Ok(()), |frame| self.writer.put_frame(frame))?;
            }
        }
        Ok(())
    }

    fn leans(&self, place: Place) -> bool {
        !self.from.index().bases(place).is_empty()
    }

    /// Encodes a segment anew, and says where its slots went.
    fn segment(
        &self,
        id: &BlobId,
        leans: bool,
        page_bytes: u32,
        claims: &Claims,
    ) -> Result<(Vec<Option<PageRef>>, Option<Frame>)> {
        let decoded = self.from.read_segment(id)?;
        let bases = if leans { self.from.bases_of_slots(id)? } else { Vec::new() };
        let (mut plain, mut hashes, mut older, mut base_pages) = (vec![], vec![], vec![], vec![]);
        for slot in 0..decoded.hashes.len() {
            let Some(page) = decoded.page(slot) else { continue };
            hashes.push(self.to.keys().page_hash(page));
            plain.extend_from_slice(page);
            let base = bases.get(slot).copied().flatten();
            let base = base.and_then(|(base, slot)| self.base_page(base, slot, &mut base_pages));
            older.push(base);
        }
        if plain.len() != hashes.len() * page_bytes as usize {
            return Err(Error::corrupt(format!("segment {id}"), "its pages have another length than they must"));
        }
        self.reporter.advance(plain.len() as u64, 0);
        let segment = segment::segment_id(self.to.keys(), page_bytes, &hashes);
        let mut refs = (0u8..=u8::MAX).zip(&hashes).map(|(slot, hash)| PageRef { segment, slot, hash: *hash });
        // Slots whose pages were dropped are left out, the others move up.
        let slots = (0..decoded.hashes.len()).map(|slot| decoded.page(slot).and_then(|_| refs.next())).collect();
        let present = (0..=u8::MAX).take(hashes.len()).collect();
        let pages = SegmentPages {
            id: segment,
            page_bytes,
            hashes: &hashes,
            present: &present,
            pages: &plain,
            older: &older,
            base_pages: &base_pages,
        };
        Ok((slots, claims.claim(segment).then(|| encode_segment(&pages, self.level))))
    }

    /// Where an older page went, whose bytes are added to the others; nowhere if it was not copied.
    fn base_page(&self, base: BlobId, slot: u8, pages: &mut Vec<u8>) -> Option<(BlobId, u8)> {
        let at = (*self.databases.segments.get(&base)?.get(usize::from(slot))?)?;
        let decoded = self.from.read_base(&Base { id: base, slots: [slot].into_iter().collect() }).ok()?;
        pages.extend_from_slice(decoded.page(slot.into())?);
        Some((at.segment, at.slot))
    }
}
