//! Which blobs of an index are needed, and of segments which slots: one bit for each place in the index, and some 50
//! bytes for each segment of which only some slots are needed.
//!
//! May depend on `index` and below.

use std::collections::HashMap;

use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::segment::SlotSet;
use crate::id::BlobId;
use crate::index::{BlobIndex, Place};

/// What is needed of the blobs of one index. The numbers are [`BlobIndex::position`]s.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The index's version; 0 as long as nothing was added.
    version: u64,
    bits: Vec<u64>,
    /// Segments that are needed in part. One that is needed and not in here is needed as a whole.
    partial: HashMap<u32, Part>,
    count: usize,
}

/// What is needed of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    slots: SlotSet,
    page_bytes: u32,
}

/// What was added, to be taken back.
#[derive(Default)]
pub(super) struct Undo {
    new: Vec<u32>,
    /// Segments of which more is needed than before, and what was needed of them.
    grown: Vec<(u32, Part)>,
}

impl Needs {
    /// Makes sure that the numbers are those of this index.
    ///
    /// # Errors
    /// [`Error::Refused`] if the index changed since something was added.
    pub fn check(&mut self, index: &BlobIndex) -> Result<()> {
        if self.version != index.version() {
            if self.count > 0 {
                return Err(Error::refused("the index changed while it was in use", "run the command again"));
            }
            self.version = index.version();
            self.bits = vec![0; index.positions().div_ceil(64)];
        }
        Ok(())
    }

    /// Whether a blob is needed.
    pub fn has(&self, position: u32) -> bool {
        self.bits.get(position as usize / 64).is_some_and(|word| word >> (position % 64) & 1 == 1)
    }

    /// Which slots of a needed blob are needed, if it is a segment and not all of it is.
    pub fn slots(&self, position: u32) -> Option<&SlotSet> {
        self.partial.get(&position).map(|part| &part.slots)
    }

    /// How much of a needed blob is needed of what lies at a place, in bytes of plaintext.
    pub fn live_bytes(&self, index: &BlobIndex, position: u32, place: Place) -> u32 {
        self.partial.get(&position).map_or(place.plain_bytes, |part| {
            let slots = part.slots.common(index.slots(place).unwrap_or(&SlotSet::ALL));
            slots.count().saturating_mul(part.page_bytes).min(place.plain_bytes)
        })
    }

    /// How many blobs are needed.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The blobs that are needed, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0u32..).step_by(64).zip(&self.bits).flat_map(|(first, word)| {
            let rest = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest > 0);
            let first_word = (*word > 0).then_some(*word);
            std::iter::successors(first_word, rest).map(move |word| first + word.trailing_zeros())
        })
    }

    /// Whether what is needed of a blob is there, given what there is of it: the slots at each place.
    pub fn are_met(&self, position: u32, there: impl Iterator<Item = Option<SlotSet>>) -> bool {
        let mut missing = self.slots(position).copied().unwrap_or(SlotSet::ALL);
        for slots in there {
            missing.remove(&slots.unwrap_or(SlotSet::ALL));
            if missing.is_empty() {
                return true;
            }
        }
        false
    }

    /// The same for those places of it in the index that a filter lets through.
    pub fn are_met_at(&self, index: &BlobIndex, position: u32, only: impl Fn(Place) -> bool) -> bool {
        self.are_met(position, index.places_at(position).filter(|p| only(*p)).map(|p| index.slots(p).copied()))
    }

    fn insert(&mut self, position: u32) -> bool {
        let Some(word) = self.bits.get_mut(position as usize / 64) else { return false };
        let bit = 1 << (position % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(new);
        new
    }

    /// Adds a blob, all of it; whether it is new or was needed in part.
    ///
    /// # Errors
    /// [`Error::Missing`] if the index does not place it, as this type.
    pub(super) fn need(&mut self, index: &BlobIndex, id: &BlobId, kind: BlobType, undo: &mut Undo) -> Result<bool> {
        let position = find(index, id, kind)?;
        if self.insert(position) {
            undo.new.push(position);
            return Ok(true);
        }
        let grown = self.partial.remove(&position);
        undo.grown.extend(grown.map(|part| (position, part)));
        Ok(grown.is_some())
    }

    /// Adds slots of a segment with pages of `page_bytes`; whether more is needed of it than before.
    ///
    /// # Errors
    /// [`Error::Missing`] if the index does not place the segment, or not with these slots.
    pub(super) fn need_slots(
        &mut self,
        index: &BlobIndex,
        (id, slots): (&BlobId, &SlotSet),
        page_bytes: u32,
        undo: &mut Undo,
    ) -> Result<bool> {
        let position = find(index, id, BlobType::Segment)?;
        let new = self.insert(position);
        let mut needed = *slots;
        if new {
            undo.new.push(position);
        } else if let Some(old) = self.partial.get(&position) {
            if old.slots.holds(slots) {
                return Ok(false);
            }
            undo.grown.push((position, *old));
            needed.add(&old.slots);
        } else {
            return Ok(false);
        }
        let needed_bytes = u64::from(needed.count()) * u64::from(page_bytes);
        let is_whole = |p: Place| index.slots(p).is_none() && u64::from(p.plain_bytes) <= needed_bytes;
        if index.places_at(position).any(is_whole) {
            self.partial.remove(&position);
        } else {
            self.partial.insert(position, Part { slots: needed, page_bytes });
            if !self.are_met_at(index, position, |_| true) {
                return Err(Error::Missing { what: format!("page of segment {id}") });
            }
        }
        Ok(true)
    }

    /// Takes back what was added last.
    pub(super) fn remove(&mut self, undo: &Undo) {
        for (position, part) in undo.grown.iter().rev() {
            self.partial.insert(*position, *part);
        }
        for position in &undo.new {
            if let Some(word) = self.bits.get_mut(*position as usize / 64) {
                *word &= !(1 << (position % 64));
            }
            self.partial.remove(position);
            self.count -= 1;
        }
    }

    /// The blobs that were not needed at all before.
    pub(super) fn new_ones(undo: &Undo) -> impl Iterator<Item = u32> {
        undo.new.iter().copied()
    }

    /// The blobs of which something was added.
    pub(super) fn touched(undo: &Undo) -> impl Iterator<Item = u32> {
        undo.new.iter().copied().chain(undo.grown.iter().map(|(position, _)| *position))
    }
}

fn find(index: &BlobIndex, id: &BlobId, kind: BlobType) -> Result<u32> {
    let position = index.position(id).filter(|at| index.places_at(*at).any(|place| place.kind == kind));
    position.ok_or_else(|| Error::Missing { what: format!("blob {id}") })
}

#[cfg(test)]
impl Needs {
    /// All of the given blobs of an index.
    pub(crate) fn of(index: &BlobIndex, ids: impl IntoIterator<Item = BlobId>) -> Self {
        let mut needs = Self::default();
        needs.check(index).unwrap();
        for id in ids {
            needs.insert(index.position(&id).unwrap());
        }
        needs
    }

    /// Only these slots of a segment that is in the set.
    pub(crate) fn only_slots(&mut self, index: &BlobIndex, id: &BlobId, slots: SlotSet, page_bytes: u32) {
        self.partial.insert(index.position(id).unwrap(), Part { slots, page_bytes });
    }

    /// The blobs' ids.
    pub(crate) fn ids(&self, index: &BlobIndex) -> std::collections::HashSet<BlobId> {
        self.iter().map(|at| index.id_at(at).unwrap()).collect()
    }
}
