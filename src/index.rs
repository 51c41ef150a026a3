//! Finding blobs: the merged contents of all index files, in memory.
//!
//! May depend on `format` and below. Pure lookup: loading and saving are `repo`'s. A blob may lie in several packs;
//! a place in a pack that is not condemned is preferred.

use std::collections::{HashMap, HashSet};

use crate::crypto::BlobType;
use crate::format::header::Kind;
use crate::format::index::{Index, IndexedFrame, IndexedPack, Record};
use crate::format::pack::{Entry, PackInfo};
use crate::id::{BlobId, PackId};

/// Where a blob is, in terms of this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Number of the pack in [`BlobIndex::packs`].
    pub pack: u32,
    /// Number of the frame in that pack, from 0.
    pub frame: u32,
    /// Where in the decoded frame, in bytes.
    pub offset: u32,
    /// Length of the plaintext, in bytes.
    pub plain_bytes: u32,
    /// Its type.
    pub kind: BlobType,
}

/// All blobs that the index files know of.
#[derive(Default)]
pub struct BlobIndex {
    packs: Vec<IndexedPack>,
    numbers: HashMap<PackId, u32>,
    blobs: HashMap<BlobId, Place>,
    /// Further places of blobs that lie in several packs: rare.
    others: HashMap<BlobId, Vec<Place>>,
    condemned: HashSet<PackId>,
    /// Packs that no index file describes, and that a writer must not rely on therefore.
    strays: HashSet<PackId>,
}

impl BlobIndex {
    /// Adds the contents of an index file; packs that are known already are left as they are.
    pub fn add(&mut self, index: Index) {
        let mut numbers = Vec::with_capacity(index.packs.len());
        for pack in index.packs {
            let number = self.packs.len() as u32;
            let known = *self.numbers.entry(pack.id).or_insert(number);
            numbers.push((known == number).then_some(number));
            if known == number {
                self.packs.push(pack);
            }
        }
        self.blobs.reserve(index.records.len());
        for Record { id, pack, frame, offset, plain_bytes, kind } in index.records {
            if let Some(Some(pack)) = numbers.get(pack as usize) {
                self.place(id, Place { pack: *pack, frame, offset, plain_bytes, kind });
            }
        }
    }

    /// Adds one pack.
    pub fn add_pack(&mut self, pack: &PackInfo) {
        let mut index = Index::default();
        index.add(pack);
        self.add(index);
    }

    /// Adds a pack that no index file describes: readers find what is in it, writers don't rely on it.
    pub fn add_stray(&mut self, pack: &PackInfo) {
        if !self.has_pack(&pack.id) {
            self.strays.insert(pack.id);
            self.add_pack(pack);
        }
    }

    fn place(&mut self, id: BlobId, new: Place) {
        use std::collections::hash_map::Entry;
        match self.blobs.entry(id) {
            Entry::Vacant(e) => drop(e.insert(new)),
            Entry::Occupied(mut e) => {
                let is_worse = is_unreliable(&self.packs, &self.condemned, &self.strays, e.get());
                let other = if is_worse { e.insert(new) } else { new };
                self.others.entry(id).or_default().push(other);
            }
        }
    }

    /// Marks packs as condemned and prefers other places of what they hold.
    pub fn condemn(&mut self, packs: impl IntoIterator<Item = PackId>) {
        self.condemned.extend(packs);
        for (id, others) in &mut self.others {
            let Some(first) = self.blobs.get_mut(id) else { continue };
            let is_bad = |p: &Place| is_unreliable(&self.packs, &self.condemned, &self.strays, p);
            if is_bad(first)
                && let Some(better) = others.iter_mut().find(|p| !is_bad(p))
            {
                std::mem::swap(first, better);
            }
        }
    }

    /// The best place of a blob.
    pub fn find(&self, id: &BlobId) -> Option<Place> {
        self.blobs.get(id).copied()
    }

    /// All places of a blob.
    pub fn places(&self, id: &BlobId) -> impl Iterator<Item = Place> {
        self.find(id).into_iter().chain(self.others.get(id).into_iter().flatten().copied())
    }

    /// Whether a writer may rely on a blob: it is there, and not only in packs that are condemned or that no index file
    /// describes.
    pub fn is_usable(&self, id: &BlobId) -> bool {
        self.blobs.get(id).is_some_and(|p| !is_unreliable(&self.packs, &self.condemned, &self.strays, p))
    }

    /// Whether a pack is condemned.
    pub fn is_condemned(&self, id: &PackId) -> bool {
        self.condemned.contains(id)
    }

    /// Whether a pack is known.
    pub fn has_pack(&self, id: &PackId) -> bool {
        self.numbers.contains_key(id)
    }

    /// All packs; a [`Place::pack`] is a position in here.
    pub fn packs(&self) -> &[IndexedPack] {
        &self.packs
    }

    /// The pack and frame of a place.
    pub fn frame(&self, place: Place) -> Option<(&IndexedPack, &IndexedFrame)> {
        let pack = self.packs.get(place.pack as usize)?;
        Some((pack, pack.frames.get(place.frame as usize)?))
    }

    /// Every blob with every place of it, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&BlobId, Place)> {
        let first = self.blobs.iter().map(|(id, place)| (id, *place));
        first.chain(self.others.iter().flat_map(|(id, places)| places.iter().map(move |p| (id, *p))))
    }

    /// The blobs of a pack, as its directory lists them, that this index doesn't place where they are; `number` is the
    /// pack's in [`BlobIndex::packs`].
    pub fn untold(&self, number: u32, pack: &PackInfo) -> Vec<BlobId> {
        let mut untold = Vec::new();
        for (frame, info) in (0..).zip(&pack.frames) {
            let mut offset = 0;
            for Entry { id, kind, plain_bytes } in info.entries.iter().copied() {
                let place = Place { pack: number, frame, offset, plain_bytes, kind };
                offset += plain_bytes;
                if !self.places(&id).any(|p| p == place) {
                    untold.push(id);
                }
            }
        }
        untold
    }

    /// The number of a pack.
    pub fn number(&self, id: &PackId) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    /// How many different blobs there are.
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Whether there is no blob.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The index of the packs for which `keep` is true, to be saved as one file.
    pub fn extract(&self, keep: impl Fn(&IndexedPack) -> bool) -> Index {
        let mut numbers = HashMap::new();
        let mut out = Index::default();
        for (old, pack) in (0u32..).zip(&self.packs) {
            if keep(pack) {
                numbers.insert(old, out.packs.len() as u32);
                out.packs.push(pack.clone());
            }
        }
        for (id, place) in self.iter() {
            if let Some(pack) = numbers.get(&place.pack) {
                let Place { frame, offset, plain_bytes, kind, .. } = place;
                out.records.push(Record { id: *id, pack: *pack, frame, offset, plain_bytes, kind });
            }
        }
        out
    }
}

fn is_unreliable(packs: &[IndexedPack], condemned: &HashSet<PackId>, strays: &HashSet<PackId>, place: &Place) -> bool {
    packs.get(place.pack as usize).is_none_or(|pack| condemned.contains(&pack.id) || strays.contains(&pack.id))
}

impl IndexedPack {
    /// Data or metadata.
    pub fn kind(&self) -> Kind {
        self.header.kind
    }

    /// Where a frame begins in the file, in bytes.
    pub fn frame_offset(&self, frame: u32) -> u64 {
        let before = self.frames.iter().take(frame as usize).map(|f| u64::from(f.stored_bytes)).sum::<u64>();
        crate::format::header::HEADER_BYTES as u64 + u64::from(self.header.first_bytes) + before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Keys, Secret};
    use crate::format::pack::{Encoding, Frame, PackBuilder};

    fn pack(ids: &[u8]) -> PackInfo {
        let mut builder = PackBuilder::new(Kind::DataPack);
        for id in ids {
            let entries = vec![Entry { id: BlobId([*id; 32]), kind: BlobType::Chunk, plain_bytes: 1 }];
            builder.push(Frame { encoding: Encoding::Raw, plain_bytes: 1, entries, bases: vec![], body: vec![0] });
        }
        builder.seal(&Keys::derive(&Secret([0; 32]))).unwrap().info
    }

    #[test]
    fn condemned_places_give_way() {
        let (a, b) = (pack(&[1, 2]), pack(&[2, 3]));
        let mut index = BlobIndex::default();
        index.add_pack(&a);
        index.condemn([a.id]);
        assert!(!index.is_usable(&BlobId([2; 32])));
        index.add_pack(&b);
        assert!(index.is_usable(&BlobId([2; 32])) && !index.is_usable(&BlobId([1; 32])));
        assert_eq!(index.places(&BlobId([2; 32])).count(), 2);
        assert_eq!((index.len(), index.iter().count()), (3, 4));
        let kept = index.extract(|p| p.id == b.id);
        assert_eq!((kept.packs.len(), kept.records.len()), (1, 2));

        let mut index = BlobIndex::default();
        index.add_pack(&a);
        index.add_pack(&b);
        index.condemn([a.id]);
        assert!(index.is_usable(&BlobId([2; 32])), "condemning later changes the preference too");
    }

    #[test]
    fn strays_are_found_and_not_relied_on() {
        let (a, b) = (pack(&[1, 2]), pack(&[2, 3]));
        let mut index = BlobIndex::default();
        index.add_stray(&a);
        assert!(index.find(&BlobId([1; 32])).is_some() && !index.is_usable(&BlobId([1; 32])));
        index.add_pack(&b);
        assert!(index.is_usable(&BlobId([2; 32])), "it lies in a pack that is described, too");
        index.add_stray(&b);
        assert!(index.is_usable(&BlobId([3; 32])), "a pack that is known stays what it is");
    }
}
