//! Sets of slots of a segment, and the segments that others lean on.
//!
//! May depend on `id`. Directories of packs and index files describe bases alike:
//!
//! ```text
//! id (32) | slots n, less one (1) | n slots, rising (1 each)
//! ```

use super::bytes::Reader;
use super::segment::SEGMENT_PAGES;
use crate::id::BlobId;

/// A set of slots of one segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotSet([u64; SEGMENT_PAGES / 64]);

impl SlotSet {
    /// Adds a slot.
    pub fn insert(&mut self, slot: u8) {
        self.0[usize::from(slot / 64)] |= 1 << (slot % 64);
    }

    /// Every slot that a segment can have.
    pub const ALL: Self = Self([u64::MAX; SEGMENT_PAGES / 64]);

    /// Whether every slot of `other` is in this set.
    pub fn holds(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(all, some)| some & !all == 0)
    }

    /// Whether a slot is in this set.
    pub fn has(&self, slot: u8) -> bool {
        self.0[usize::from(slot / 64)] >> (slot % 64) & 1 == 1
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the slots of another set.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    /// Takes the slots of another set out.
    pub fn remove(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, less)| *word &= !less);
    }

    /// The slots that are in both sets.
    pub fn common(&self, other: &Self) -> Self {
        let mut common = *self;
        common.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
        common
    }

    /// As stored: bit i%8, from the least, of byte i/8 stands for slot i.
    pub fn to_bytes(self) -> [u8; SEGMENT_PAGES / 8] {
        let mut out = [0; SEGMENT_PAGES / 8];
        out.chunks_exact_mut(8).zip(self.0).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
        out
    }

    /// Reads what [`SlotSet::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; SEGMENT_PAGES / 8]) -> Self {
        let mut set = Self::default();
        for (word, bytes) in set.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        set
    }
}

impl SlotSet {
    /// The slots, rising.
    pub fn iter(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(|slot| self.has(*slot))
    }
}

impl FromIterator<u8> for SlotSet {
    fn from_iter<I: IntoIterator<Item = u8>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// A segment that another one is encoded against, and which slots of it that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The segment.
    pub id: BlobId,
    /// The slots with the older pages: at least one.
    pub slots: SlotSet,
}

impl Base {
    /// Length of its description, in bytes.
    pub(super) fn stored_bytes(&self) -> usize {
        32 + 1 + self.slots.count() as usize
    }
}

/// Appends the description of bases.
pub(super) fn put_bases(out: &mut Vec<u8>, bases: &[Base]) {
    for base in bases {
        out.extend_from_slice(&base.id.0);
        out.push(base.slots.count().saturating_sub(1) as u8);
        out.extend(base.slots.iter());
    }
}

/// Reads what [`put_bases`] wrote; `None` unless slots rise.
pub(super) fn take_bases(r: &mut Reader<'_>, count: usize) -> Option<Vec<Base>> {
    let mut bases = Vec::new();
    for _ in 0..count {
        let id = BlobId(r.id()?);
        let slots = usize::from(r.u8()?) + 1;
        let slots = r.take(slots)?;
        if !slots.is_sorted_by(|a, b| a < b) {
            return None;
        }
        bases.push(Base { id, slots: slots.iter().copied().collect() });
    }
    Some(bases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_have_one_form() {
        let base = |n: u8, slots: &[u8]| Base { id: BlobId([n; 32]), slots: slots.iter().copied().collect() };
        let bases = [base(1, &[0]), base(2, &[3, 200, 255]), Base { slots: SlotSet::ALL, ..base(3, &[]) }];
        let mut bytes = vec![];
        put_bases(&mut bytes, &bases);
        assert_eq!(bytes.len(), bases.iter().map(Base::stored_bytes).sum::<usize>());
        assert_eq!(take_bases(&mut Reader(&bytes), 3).unwrap(), bases);
        for cut in 0..bytes.len() {
            assert_eq!(take_bases(&mut Reader(&bytes[..cut]), 3), None);
        }
        let mut falling = vec![];
        put_bases(&mut falling, &bases[1..2]);
        falling.swap(34, 35);
        assert_eq!(take_bases(&mut Reader(&falling), 1), None);
    }
}
