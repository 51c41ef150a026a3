//! Page maps: which segment and slot hold each page of a database.
//!
//! A root, inner nodes of up to 256 children where there are many leaves, and leaves for 4,096 pages each. A leaf is
//! stored in full or as a patch of an older version of itself, so that no night pays for the size of the file. Beside
//! each location stands the page's hash: what changed is found from the map alone.
//!
//! The columns of a leaf, each compressing well on its own (numbers little-endian):
//!
//! ```text
//! patches only: page numbers in the leaf, as LEB128 of the gap to the number expected next
//! segments: u16 each | slots: u8 each, minus the slot expected next | hashes: 16 bytes each
//! ```

use std::cmp::Ordering;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::bytes::{Reader, put_varint};
use super::cbor;
use super::segment::is_page_size;
use super::tree::{join_ids, split_ids};
use crate::id::{BlobId, PageHash};

/// Pages of a leaf.
pub const LEAF_PAGES: usize = 4096;
/// Children of an inner node.
pub const FAN_OUT: usize = 256;
/// Most pages SQLite can have.
const MAX_PAGES: u64 = 0xffff_fffe;

/// The root of a map.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Root {
    /// Length of a page, in bytes.
    #[n(0)]
    pub page_bytes: u32,
    /// Pages in the file.
    #[n(1)]
    pub pages: u64,
    /// BLAKE3-256 of the whole file.
    #[n(2)]
    pub file_hash: ByteVec,
    /// 0: the children are leaves; n: nodes of height n − 1.
    #[n(3)]
    pub height: u8,
    /// Leaves or nodes, in order, 32 bytes each.
    #[n(4)]
    pub children: ByteVec,
}

impl Root {
    /// Reads a root and checks that its numbers fit each other.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let root: Self = cbor::decode(bytes)?;
        let fits = is_page_size(root.page_bytes)
            && (1..=MAX_PAGES).contains(&root.pages)
            && root.file_hash.len() == 32
            && root.height <= 4
            && split_ids(&root.children).is_some_and(|c| (1..=FAN_OUT).contains(&c.len()));
        if fits { Ok(root) } else { Err("its numbers don't fit each other".into()) }
    }

    /// Makes the root over these leaves, and inner nodes where there are many; `put` stores a node and tells its id.
    ///
    /// # Errors
    /// What `put` returns.
    pub fn build<E>(
        page_bytes: u32,
        pages: u64,
        file_hash: &[u8],
        mut leaves: Vec<BlobId>,
        mut put: impl FnMut(Vec<u8>) -> Result<BlobId, E>,
    ) -> Result<BlobId, E> {
        let mut height = 0;
        while leaves.len() > FAN_OUT {
            leaves = leaves.chunks(FAN_OUT).map(|c| put(cbor::encode(&Inner::new(c)))).collect::<Result<_, E>>()?;
            height += 1;
        }
        let file_hash = file_hash.to_vec().into();
        put(cbor::encode(&Self { page_bytes, pages, file_hash, height, children: join_ids(&leaves) }))
    }

    /// How many leaves a map of this many pages has.
    pub fn leaves(&self) -> usize {
        (self.pages as usize).div_ceil(LEAF_PAGES)
    }

    /// How many pages leaf number `leaf` covers.
    pub fn leaf_pages(&self, leaf: usize) -> usize {
        (self.pages as usize).saturating_sub(leaf * LEAF_PAGES).min(LEAF_PAGES)
    }
}

/// An inner node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Inner {
    /// Leaves or nodes, in order, 32 bytes each.
    #[n(0)]
    pub children: ByteVec,
}

impl Inner {
    /// A node with these children.
    pub fn new(children: &[BlobId]) -> Self {
        Self { children: join_ids(children) }
    }

    /// Reads the children.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Vec<BlobId>, String> {
        let inner: Self = cbor::decode(bytes)?;
        split_ids(&inner.children)
            .filter(|c| (1..=FAN_OUT).contains(&c.len()))
            .ok_or_else(|| "it has no sound list of children".into())
    }
}

/// Where a page is, and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// The segment that holds it.
    pub segment: BlobId,
    /// The slot in that segment.
    pub slot: u8,
    /// The page's keyed hash.
    pub hash: PageHash,
}

/// A leaf as stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StoredLeaf {
    /// The leaf that this one patches; a full leaf has none.
    #[n(0)]
    pub parent: Option<BlobId>,
    /// How many patches lie between this and a full leaf: 0 for a full one.
    #[n(1)]
    pub depth: u32,
    /// Stored bytes of this leaf's chain of patches, about: decides when it is written in full again.
    #[n(2)]
    pub chain_bytes: u32,
    /// Pages covered, 1 to 4,096.
    #[n(3)]
    pub pages: u32,
    /// Segments that the columns refer to by number, 32 bytes each.
    #[n(4)]
    pub segments: ByteVec,
    /// The columns.
    #[n(5)]
    pub columns: ByteVec,
}

/// One page's entry in a leaf: its number within the leaf, and where it is.
pub type Change = (u16, PageRef);

impl StoredLeaf {
    /// A full leaf.
    pub fn full(pages: &[PageRef]) -> Self {
        let changes: Vec<Change> = (0..).zip(pages.iter().copied()).collect();
        Self::build(None, 0, 0, pages.len(), &changes)
    }

    /// A patch of `parent`, which is `depth − 1` patches above a full leaf.
    pub fn patch(parent: BlobId, older: &Self, pages: usize, changes: &[Change]) -> Self {
        let mut leaf = Self::build(Some(parent), older.depth.saturating_add(1), older.chain_bytes, pages, changes);
        leaf.chain_bytes = older.chain_bytes.saturating_add((leaf.segments.len() + leaf.columns.len()) as u32);
        leaf
    }

    fn build(parent: Option<BlobId>, depth: u32, chain_bytes: u32, pages: usize, changes: &[Change]) -> Self {
        let mut segments: Vec<BlobId> = Vec::new();
        let mut numbers = std::collections::HashMap::new();
        let (mut gaps, mut which, mut slots, mut hashes) = (vec![], vec![], vec![], vec![]);
        let (mut next_page, mut next_slot) = (0u32, 0u8);
        for (page, at) in changes {
            if parent.is_some() {
                put_varint(&mut gaps, u32::from(*page).saturating_sub(next_page));
                next_page = u32::from(*page) + 1;
            }
            let number = *numbers.entry(at.segment).or_insert_with(|| {
                segments.push(at.segment);
                next_slot = 0;
                segments.len() - 1
            });
            which.extend_from_slice(&(number as u16).to_le_bytes());
            slots.push(at.slot.wrapping_sub(next_slot));
            next_slot = at.slot.wrapping_add(1);
            hashes.extend_from_slice(&at.hash);
        }
        let columns = [gaps, which, slots, hashes].concat();
        let segments = join_ids(&segments);
        Self { parent, depth, chain_bytes, pages: pages as u32, segments, columns: columns.into() }
    }

    /// Whether this leaf may patch `older`: it lies one patch above it.
    pub fn fits_on(&self, older: &Self) -> bool {
        older.depth.checked_add(1) == Some(self.depth)
    }

    /// Reads a leaf and its entries.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<Change>), String> {
        let leaf: Self = cbor::decode(bytes)?;
        let changes = leaf.changes().ok_or("its columns make no sense")?;
        Ok((leaf, changes))
    }

    fn changes(&self) -> Option<Vec<Change>> {
        let pages = self.pages as usize;
        let segments = split_ids(&self.segments)?;
        if !(1..=LEAF_PAGES).contains(&pages) || self.parent.is_some() != (self.depth > 0) {
            return None;
        }
        // Each entry takes 19 bytes beside its gap; find the count from the total, gap by gap.
        let mut r = Reader(&self.columns);
        let numbers: Vec<u32> = if self.parent.is_none() {
            (0..self.pages).collect()
        } else {
            let (mut numbers, mut next) = (vec![], 0u32);
            while r.0.len() > numbers.len() * 19 {
                let page = r.varint()?.checked_add(next).filter(|p| (*p as usize) < pages)?;
                numbers.push(page);
                next = page + 1;
            }
            numbers
        };
        let n = numbers.len();
        let (which, slots, hashes) = (r.take(n * 2)?, r.take(n)?, r.take(n * 16)?);
        if !r.0.is_empty() {
            return None;
        }
        let mut seen = 0;
        let mut next_slot = 0u8;
        let mut out = Vec::with_capacity(n);
        for (i, page) in numbers.into_iter().enumerate() {
            let number = usize::from(u16::from_le_bytes([which[i * 2], which[i * 2 + 1]]));
            // Segments are listed in the order of their first mention.
            match number.cmp(&seen) {
                Ordering::Less => {}
                Ordering::Equal => (seen, next_slot) = (seen + 1, 0),
                Ordering::Greater => return None,
            }
            let slot = slots[i].wrapping_add(next_slot);
            next_slot = slot.wrapping_add(1);
            let hash = hashes[i * 16..][..16].try_into().ok()?;
            out.push((page as u16, PageRef { segment: *segments.get(number)?, slot, hash }));
        }
        (seen == segments.len()).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_ref(segment: u8, slot: u8, hash: u8) -> PageRef {
        PageRef { segment: BlobId([segment; 32]), slot, hash: [hash; 16] }
    }

    #[test]
    fn leaves_round_trip() {
        let full: Vec<_> = (0..200u8).map(|i| page_ref(i / 64, i % 64, i)).collect();
        let leaf = StoredLeaf::full(&full);
        let (decoded, changes) = StoredLeaf::decode(&cbor::encode(&leaf)).unwrap();
        assert_eq!(decoded, leaf);
        assert_eq!(changes.iter().map(|c| c.1).collect::<Vec<_>>(), full);

        let wanted =
            vec![(3, page_ref(9, 1, 1)), (4, page_ref(8, 60, 2)), (199, page_ref(9, 2, 3)), (500, page_ref(8, 0, 3))];
        let patch = StoredLeaf::patch(BlobId([5; 32]), &leaf, 501, &wanted);
        let (decoded, changes) = StoredLeaf::decode(&cbor::encode(&patch)).unwrap();
        assert_eq!((decoded.depth, decoded.pages), (1, 501));
        assert_eq!(changes, wanted);
        let empty = StoredLeaf::patch(BlobId([5; 32]), &leaf, 100, &[]);
        assert_eq!(StoredLeaf::decode(&cbor::encode(&empty)).unwrap().1, vec![]);
    }

    #[test]
    fn damaged_leaves_are_refused() {
        let leaf =
            StoredLeaf::patch(BlobId([5; 32]), &StoredLeaf::full(&[page_ref(0, 0, 0)]), 9, &[(8, page_ref(1, 1, 1))]);
        for cut in 0..leaf.columns.len() {
            let bad = StoredLeaf { columns: leaf.columns[..cut].to_vec().into(), ..leaf.clone() };
            assert!(cut == 0 || StoredLeaf::decode(&cbor::encode(&bad)).is_err(), "cut at {cut}");
        }
        let bad = StoredLeaf { pages: 8, ..leaf.clone() };
        assert!(StoredLeaf::decode(&cbor::encode(&bad)).is_err(), "a page past the end");
        let padded = [&[0x88, 0x00][..], &leaf.columns[1..]].concat();
        let bad = StoredLeaf { columns: padded.into(), ..leaf };
        assert!(StoredLeaf::decode(&cbor::encode(&bad)).is_err(), "a number that is longer than it must be");
    }

    #[test]
    fn segments_are_listed_as_they_are_mentioned() {
        let leaf = StoredLeaf::full(&[page_ref(4, 0, 0), page_ref(5, 0, 1)]);
        let mut columns = leaf.columns.to_vec();
        columns[..4].copy_from_slice(&[1, 0, 0, 0]);
        let segments = join_ids(&[BlobId([5; 32]), BlobId([4; 32])]);
        let bad = StoredLeaf { columns: columns.into(), segments, ..leaf };
        assert!(StoredLeaf::decode(&cbor::encode(&bad)).is_err());
    }
}
