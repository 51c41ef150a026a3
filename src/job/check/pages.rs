//! The part of the walk that follows databases: page maps, their leaves with patches, segments and what those lean on.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::loss::Cause;
use super::structure::{Causes, Walk};
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::MAX_PATCH_DEPTH;
use crate::format::pagemap::{Inner, Root, StoredLeaf};
use crate::format::segment::{Base, MAX_BASE_DEPTH, SlotSet};
use crate::format::tree::split_ids;
use crate::id::BlobId;
use crate::index::Place;

impl Walk<'_> {
    /// Checks that every page of a database of `size` bytes can be had, as far as the maps tell.
    pub(super) fn database(&mut self, map: &BlobId, size: u64) -> Result<Causes> {
        if let Some(known) = self.maps.get(map) {
            return Ok(known.clone());
        }
        let mut causes = BTreeSet::new();
        self.follow_map(map, size, &mut causes)?;
        let causes = Rc::new(causes);
        self.maps.insert(*map, causes.clone());
        Ok(causes)
    }

    fn follow_map(&mut self, map: &BlobId, size: u64, causes: &mut BTreeSet<Cause>) -> Result<()> {
        let root = match self.read(map, BlobType::Map)? {
            Ok(bytes) => Root::decode(&bytes).map_err(|why| self.losses.blame(*map, why)),
            Err(cause) => Err(cause),
        };
        let root = match root {
            Ok(root) => root,
            Err(cause) => {
                causes.insert(cause);
                return Ok(());
            }
        };
        if root.pages * u64::from(root.page_bytes) != size {
            causes.insert(self.losses.blame(*map, "its pages don't add up to the length of the file"));
        }
        let mut level = split_ids(&root.children).unwrap_or_default();
        for _ in 0..root.height {
            let mut below = Vec::new();
            for node in &level {
                let children = match self.read(node, BlobType::Map)? {
                    Ok(bytes) => Inner::decode(&bytes).map_err(|why| self.losses.blame(*node, why)),
                    Err(cause) => Err(cause),
                };
                match children {
                    Ok(children) => below.extend(children),
                    Err(cause) => {
                        causes.insert(cause);
                    }
                }
                if below.len() > root.leaves() {
                    break;
                }
            }
            level = below;
        }
        if causes.is_empty() && level.len() != root.leaves() {
            causes.insert(self.losses.blame(*map, "its leaves are not as many as its pages need"));
        }
        // With a node lost it isn't known which leaf is which: they are checked, but not their number of pages.
        let in_order = causes.is_empty();
        for (number, id) in level.iter().enumerate() {
            self.reporter.check_interrupt()?;
            let (pages, lost) = self.leaf(id)?;
            if in_order && lost.is_empty() && pages != root.leaf_pages(number) {
                causes.insert(self.losses.blame(*id, "it has another number of pages than it must"));
            }
            causes.extend(lost.iter().copied());
        }
        Ok(())
    }

    /// How many pages a leaf has, and what of it is lost.
    fn leaf(&mut self, id: &BlobId) -> Result<(usize, Causes)> {
        if let Some(known) = self.leaves.get(id) {
            return Ok(known.clone());
        }
        let known = match self.leaf_chain(id)? {
            Some(cause) => (0, Rc::new([cause].into())),
            None => match self.repo.read_leaf(id) {
                Ok(leaf) => {
                    let mut needed: HashMap<BlobId, SlotSet> = HashMap::new();
                    let mut lost = BTreeSet::new();
                    for page in &leaf.pages {
                        needed.entry(page.segment).or_default().insert(page.slot);
                    }
                    lost.extend(needed.into_iter().filter_map(|(id, slots)| self.pages(&id, slots)));
                    (leaf.pages.len(), Rc::new(lost))
                }
                Err(e) => {
                    let error = self.repo.only_this_object(e)?;
                    (0, Rc::new([self.losses.blame(*id, super::reason(&error))].into()))
                }
            },
        };
        self.leaves.insert(*id, known.clone());
        Ok(known)
    }

    /// Whether a leaf and all that it patches can be read; else what is to blame.
    fn leaf_chain(&mut self, id: &BlobId) -> Result<Option<Cause>> {
        let mut chain = Vec::new();
        let mut next = Some(*id);
        while let Some(id) = next.filter(|id| !self.chains.contains(id)) {
            let stored = match self.read(&id, BlobType::Map)? {
                Ok(bytes) => StoredLeaf::decode(&bytes).map_err(|why| self.losses.blame(id, why)),
                Err(cause) => Err(cause),
            };
            match stored {
                Ok((stored, _)) => next = stored.parent,
                Err(cause) => return Ok(Some(cause)),
            }
            chain.push(id);
            if chain.len() > MAX_PATCH_DEPTH + 1 {
                return Ok(Some(self.losses.blame(id, "it patches a longer chain than allowed")));
            }
        }
        self.chains.extend(chain);
        Ok(None)
    }

    /// Whether these slots of a segment can be had; else what is to blame.
    fn pages(&mut self, id: &BlobId, slots: SlotSet) -> Option<Cause> {
        match self.segment(id, 0) {
            Err(cause) => Some(cause),
            Ok(_) if self.present(id, &slots).holds(&slots) => None,
            Ok(_) => Some(self.losses.blame(*id, "it is damaged: pages that a snapshot needs are not in it any more")),
        }
    }

    /// The slots of a segment that can be had from one place or another, until all that are wanted were found: as
    /// found where it was decoded, else as the index has it. What is in no index file comes last, and counts as needed
    /// only if the rest does not do.
    fn present(&mut self, id: &BlobId, wanted: &SlotSet) -> SlotSet {
        let index = self.repo.index();
        let mut present = SlotSet::default();
        for place in index.position(id).into_iter().flat_map(|at| index.places_at(at)) {
            if !present.holds(wanted) && self.packs.usable(id, place) {
                let told = index.slots(place).copied().unwrap_or(SlotSet::ALL);
                present.add(&self.packs.slots(id, place).unwrap_or(told));
            }
        }
        present
    }

    /// How many segments lean on each other below this one.
    fn segment(&mut self, id: &BlobId, depth: usize) -> Result<usize, Cause> {
        if let Some(known) = self.segments.get(id) {
            return *known;
        }
        if depth > MAX_BASE_DEPTH {
            return Err(self.losses.blame(*id, "too many segments lean on each other"));
        }
        let found = self.blob(id, BlobType::Segment).and_then(|_| self.segment_places(id, depth));
        self.segments.insert(*id, found);
        found
    }

    /// The same for a segment that another leans on: the slots that it takes must be there.
    fn base(&mut self, base: &Base, depth: usize) -> Result<usize, Cause> {
        let below = self.segment(&base.id, depth)?;
        if self.present(&base.id, &base.slots).holds(&base.slots) {
            return Ok(below);
        }
        Err(self.losses.blame(base.id, "it is damaged: pages that another segment leans on are not in it any more"))
    }

    /// The same, trying the segment's places one by one: each may lean on other segments.
    fn segment_places(&mut self, id: &BlobId, depth: usize) -> Result<usize, Cause> {
        let places: Vec<_> = {
            let index = self.repo.index();
            let with_bases = |p: Place| (p, index.bases(p).to_vec());
            let places = index.position(id).into_iter().flat_map(|at| index.places_at(at));
            places.filter(|p| p.kind == BlobType::Segment).map(with_bases).collect()
        };
        let mut culprit = None;
        for (place, bases) in places {
            if !self.packs.usable(id, place) {
                continue;
            }
            let mut below = Ok(0);
            for base in &bases {
                below = below.and_then(|most: usize| Ok(most.max(self.base(base, depth + 1)? + 1)));
            }
            match below {
                Ok(below) if below <= MAX_BASE_DEPTH => return Ok(below),
                Ok(_) => {
                    culprit = culprit.or_else(|| Some(self.losses.blame(*id, "too many segments lean on each other")))
                }
                Err(cause) => culprit = culprit.or(Some(cause)),
            }
        }
        Err(culprit.unwrap_or_else(|| self.losses.blame(*id, "it is missing")))
    }
}
