//! Finding blobs: the merged contents of all index files, in memory.
//!
//! May depend on `format` and below. Pure lookup: loading and saving are `repo`'s. A blob may lie in several packs;
//! a place in a pack that is not condemned is preferred, and one that has all of it.
//!
//! It is one list sorted by id, 46 bytes for each place, and 8 bytes for each frame: a repository of millions of blobs
//! is pruned in a few hundred MiB. The list is changed rarely, by merging.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::crypto::BlobType;
use crate::format::header::Kind;
use crate::format::index::{Index, IndexedFrame, IndexedPack, Record};
use crate::format::pack::{self, PackInfo};
use crate::format::segment::{Base, MAX_BASE_DEPTH, SlotSet};
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

/// A place of a blob, as it is held in memory, in 46 bytes: there are millions. In the order of their bytes, which is that
/// of id, pack, frame and offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    id: BlobId,
    pack: [u8; 4],
    /// A frame has at least a seal, and a pack at most 256 MiB: 24 bits are enough.
    frame: [u8; 3],
    /// Nothing in a frame begins later than 24 bits can say.
    offset: [u8; 3],
    /// The lowest 25 bits are the length: a frame has at most 16 MiB.
    kind_and_plain_bytes: [u8; 4],
}

/// The lowest bits, which a length of up to 16 MiB takes.
const PLAIN_BITS: u32 = 25;

/// The lowest 24 bits, the highest of them first.
fn three_bytes(n: u32) -> [u8; 3] {
    let [_, a, b, c] = n.to_be_bytes();
    [a, b, c]
}

fn from_three_bytes([a, b, c]: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, a, b, c])
}

impl Entry {
    fn new(record: &Record, pack: u32) -> Self {
        let kind_and_plain_bytes = u32::from(record.kind as u8) << PLAIN_BITS | record.plain_bytes;
        Self {
            id: record.id,
            pack: pack.to_be_bytes(),
            frame: three_bytes(record.frame),
            offset: three_bytes(record.offset),
            kind_and_plain_bytes: kind_and_plain_bytes.to_be_bytes(),
        }
    }

    fn place(&self) -> Place {
        let kind_and_plain_bytes = u32::from_be_bytes(self.kind_and_plain_bytes);
        Place {
            pack: u32::from_be_bytes(self.pack),
            frame: from_three_bytes(self.frame),
            offset: from_three_bytes(self.offset),
            plain_bytes: kind_and_plain_bytes & ((1 << PLAIN_BITS) - 1),
            kind: BlobType::from_u8((kind_and_plain_bytes >> PLAIN_BITS) as u8).unwrap_or(BlobType::Chunk),
        }
    }
}

/// A step of the lookup table has about so many places, as a power of two.
const STEP_BITS: u32 = 4;
/// The most steps of the lookup table, as a power of two.
const MAX_TABLE_BITS: u32 = 16;

/// All blobs that the index files know of.
#[derive(Default)]
pub struct BlobIndex {
    packs: Vec<IndexedPack>,
    numbers: HashMap<PackId, u32>,
    /// Sorted.
    entries: Vec<Entry>,
    /// Where the ids with the same first bits begin in `entries`: one more than there are steps.
    table: Vec<u32>,
    /// How many different ids there are.
    blobs: usize,
    condemned: HashSet<PackId>,
    /// Packs that no index file describes, and that a writer must not rely on therefore.
    strays: HashSet<PackId>,
    /// Whether a pack is one of either, by number.
    is_unreliable: Vec<bool>,
    version: u64,
}

/// Makes an index of many parts: they are sorted once, at the end.
#[derive(Default)]
pub struct Builder(BlobIndex);

impl Builder {
    /// For about so many places of blobs.
    pub fn new(places: usize) -> Self {
        let mut index = BlobIndex::default();
        // Only a hint, of the length of files that may be nonsense: without the room it takes a little longer.
        let _ = index.entries.try_reserve_exact(places);
        Self(index)
    }

    /// Adds the contents of an index file, and returns the numbers of the packs that were new.
    pub fn add(&mut self, part: Index) -> std::ops::Range<u32> {
        let from = self.0.packs.len() as u32;
        let entries = self.0.admit(part);
        self.0.entries.extend(entries);
        from..self.0.packs.len() as u32
    }

    /// The index.
    pub fn finish(self, condemned: impl IntoIterator<Item = PackId>) -> BlobIndex {
        let mut index = self.0;
        index.entries.par_sort_unstable();
        index.settle();
        index.condemn(condemned);
        index
    }
}

impl BlobIndex {
    /// Adds the contents of an index file; packs that are known already are left as they are.
    pub fn add(&mut self, part: Index) {
        let mut new: Vec<_> = self.admit(part).collect();
        new.sort_unstable();
        self.merge(&new);
        self.settle();
    }

    /// Takes the packs that are new, and returns the places in them.
    fn admit(&mut self, part: Index) -> impl Iterator<Item = Entry> + use<> {
        let mut numbers = Vec::with_capacity(part.packs.len());
        for pack in part.packs {
            let number = self.packs.len() as u32;
            let known = *self.numbers.entry(pack.id).or_insert(number);
            numbers.push((known == number).then_some(number));
            if known == number {
                self.is_unreliable.push(self.condemned.contains(&pack.id) || self.strays.contains(&pack.id));
                self.packs.push(pack);
            }
        }
        let entry = move |record: Record| Some(Entry::new(&record, (*numbers.get(record.pack as usize)?)?));
        part.records.into_iter().filter_map(entry)
    }

    /// Merges sorted entries into those that are there, from the end on, in place.
    fn merge(&mut self, new: &[Entry]) {
        let (mut old, mut left) = (self.entries.len(), new.len());
        self.entries.reserve_exact(left);
        self.entries.extend_from_slice(new);
        while left > 0 {
            let takes_old = old > 0 && self.entries[old - 1] > new[left - 1];
            let entry = if takes_old { self.entries[old - 1] } else { new[left - 1] };
            self.entries[old + left - 1] = entry;
            if takes_old { old -= 1 } else { left -= 1 }
        }
    }

    /// To be called after the entries changed.
    fn settle(&mut self) {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        self.version = VERSIONS.fetch_add(1, Relaxed);
        self.entries.dedup();
        let bits = self.entries.len().max(1).ilog2().saturating_sub(STEP_BITS).min(MAX_TABLE_BITS);
        self.table.clear();
        self.table.resize((1 << bits) + 1, 0);
        self.blobs = 0;
        let mut last = None;
        for entry in &self.entries {
            let step = first_bits(&entry.id, bits);
            self.table[step + 1] += 1;
            self.blobs += usize::from(last.replace(entry.id) != Some(entry.id));
        }
        let mut sum = 0;
        for end in &mut self.table {
            sum += *end;
            *end = sum;
        }
    }

    /// Changes whenever a [`BlobIndex::position`] may mean another blob; no two indexes have the same.
    pub fn version(&self) -> u64 {
        self.version
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

    /// Adds packs by what their own directories say, beside what index files say of them, which is preferred no more: for
    /// readers, once something is not where an index file says.
    pub fn add_beside(&mut self, part: Index) {
        for pack in &part.packs {
            if let Some(mark) = self.numbers.get(&pack.id).and_then(|n| self.is_unreliable.get_mut(*n as usize)) {
                *mark = true;
            }
        }
        let first = self.packs.len() as u32;
        self.packs.extend(part.packs);
        self.is_unreliable.resize(self.packs.len(), false);
        let mut new: Vec<_> = part.records.iter().map(|record| Entry::new(record, first + record.pack)).collect();
        new.sort_unstable();
        self.merge(&new);
        self.settle();
    }

    /// Marks packs as condemned and prefers other places of what they hold.
    pub fn condemn(&mut self, packs: impl IntoIterator<Item = PackId>) {
        for id in packs {
            if let Some(mark) = self.numbers.get(&id).and_then(|n| self.is_unreliable.get_mut(*n as usize)) {
                *mark = true;
            }
            self.condemned.insert(id);
        }
    }

    /// The entries of one blob, and where they begin.
    fn run(&self, id: &BlobId) -> (usize, &[Entry]) {
        let bits = self.table.len().saturating_sub(1).max(1).ilog2();
        let step = first_bits(id, bits);
        let step = self.table.get(step).zip(self.table.get(step + 1)).map(|(from, to)| *from as usize..*to as usize);
        let step = step.unwrap_or_default();
        let within = self.entries.get(step.clone()).unwrap_or_default();
        let from = step.start + within.partition_point(|e| e.id < *id);
        (from, self.run_at(from, id))
    }

    fn run_at(&self, from: usize, id: &BlobId) -> &[Entry] {
        let rest = self.entries.get(from..).unwrap_or_default();
        let len = rest.iter().take_while(|e| e.id == *id).count();
        rest.get(..len).unwrap_or_default()
    }

    /// A number that stands for a blob as long as [`BlobIndex::version`] is the same.
    pub fn position(&self, id: &BlobId) -> Option<u32> {
        let (from, run) = self.run(id);
        (!run.is_empty()).then_some(from as u32)
    }

    /// The blob that a position stands for.
    pub fn id_at(&self, position: u32) -> Option<BlobId> {
        self.entries.get(position as usize).map(|e| e.id)
    }

    /// One more than the highest position.
    pub fn positions(&self) -> usize {
        self.entries.len()
    }

    /// All places of the blob at a position, in order; [`BlobIndex::places`] begins with the best.
    pub fn places_at(&self, position: u32) -> impl Iterator<Item = Place> + Clone {
        let run = self.id_at(position).map(|id| self.run_at(position as usize, &id)).unwrap_or_default();
        run.iter().map(Entry::place)
    }

    /// The best place of a blob.
    pub fn find(&self, id: &BlobId) -> Option<Place> {
        self.best(self.run(id).1)
    }

    fn best(&self, run: &[Entry]) -> Option<Place> {
        let places = run.iter().map(Entry::place);
        match run {
            [only] => Some(only.place()),
            _ => places.min_by_key(|p| (self.is_unreliable(*p), self.slots(*p).is_some(), !self.bases(*p).is_empty())),
        }
    }

    /// All places of a blob, the best first.
    pub fn places(&self, id: &BlobId) -> impl Iterator<Item = Place> {
        let (_, run) = self.run(id);
        let best = self.best(run);
        best.into_iter().chain(run.iter().map(Entry::place).filter(move |p| Some(*p) != best))
    }

    /// Whether a writer must not rely on what lies in this pack: it is condemned, or no index file describes it.
    fn is_unreliable(&self, place: Place) -> bool {
        self.is_unreliable.get(place.pack as usize).is_some_and(|c| *c)
    }

    /// Which slots a segment has at a place, if some are absent.
    pub fn slots(&self, place: Place) -> Option<&SlotSet> {
        if place.kind != BlobType::Segment {
            return None;
        }
        self.packs.get(place.pack as usize)?.slots(place.frame)
    }

    /// Whether a writer may rely on a blob: all of it is there, with all that it leans on, and not only in packs that
    /// are condemned or that no index file describes.
    pub fn is_usable(&self, id: &BlobId) -> bool {
        let usable = |p: Place| !self.is_unreliable(p) && self.slots(p).is_none() && self.has_usable_bases(p, 0);
        self.run(id).1.iter().map(Entry::place).any(usable)
    }

    /// The slots of a segment that a writer may rely on. A segment all of which may be relied on has all slots, those
    /// that it can't have included.
    pub fn usable_slots(&self, id: &BlobId) -> SlotSet {
        self.usable_at_depth(id, 0)
    }

    fn usable_at_depth(&self, id: &BlobId, depth: usize) -> SlotSet {
        let mut all = SlotSet::default();
        for place in self.run(id).1.iter().map(Entry::place) {
            if !self.is_unreliable(place) && self.has_usable_bases(place, depth) {
                all.add(self.slots(place).unwrap_or(&SlotSet::ALL));
            }
        }
        all
    }

    fn has_usable_bases(&self, place: Place, depth: usize) -> bool {
        let bases = self.bases(place);
        bases.is_empty()
            || depth < MAX_BASE_DEPTH
                && bases.iter().all(|base| self.usable_at_depth(&base.id, depth + 1).holds(&base.slots))
    }

    /// The segments that are needed to decode what lies at a place.
    pub fn bases(&self, place: Place) -> &[Base] {
        if place.kind != BlobType::Segment {
            return &[];
        }
        self.packs.get(place.pack as usize).map_or(&[], |pack| pack.bases(place.frame))
    }

    /// Whether a writer may rely on a segment that leans on no other.
    pub fn is_usable_alone(&self, id: &BlobId, slot: u8) -> bool {
        let alone = |p: Place| {
            let has_slot = self.slots(p).is_none_or(|slots| slots.has(slot));
            has_slot && !self.is_unreliable(p) && self.bases(p).is_empty()
        };
        self.run(id).1.iter().map(Entry::place).any(alone)
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

    /// Every blob with every place of it, sorted by id.
    pub fn iter(&self) -> impl Iterator<Item = (&BlobId, Place)> {
        self.entries.iter().map(|e| (&e.id, e.place()))
    }

    /// The blobs of a pack, as its directory lists them, that this index doesn't place where they are; `number` is the
    /// pack's in [`BlobIndex::packs`].
    pub fn untold(&self, number: u32, pack: &PackInfo) -> Vec<BlobId> {
        let mut untold = Vec::new();
        for (frame, info) in (0..).zip(&pack.frames) {
            let mut offset = 0;
            for pack::Entry { id, kind, plain_bytes } in info.entries.iter().copied() {
                let place = Place { pack: number, frame, offset, plain_bytes, kind };
                offset += plain_bytes;
                if !self.run(&id).1.iter().any(|e| e.place() == place) {
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
        self.blobs
    }

    /// Whether there is no blob.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The index of the packs for which `keep` is true, to be saved as one file.
    pub fn extract(&self, keep: impl Fn(&IndexedPack) -> bool) -> Index {
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(self.packs.len());
        let mut out = Index::default();
        for pack in &self.packs {
            let number = out.packs.len() as u32;
            let kept = keep(pack);
            numbers.push(kept.then_some(number));
            if kept {
                out.packs.push(pack.clone());
            }
        }
        for (id, place) in self.iter() {
            if let Some(Some(pack)) = numbers.get(place.pack as usize) {
                let Place { frame, offset, plain_bytes, kind, .. } = place;
                out.records.push(Record { id: *id, pack: *pack, frame, offset, plain_bytes, kind });
            }
        }
        out
    }
}

/// The first bits of an id, as a number.
fn first_bits(id: &BlobId, bits: u32) -> usize {
    let [a, b, c, d, ..] = id.0;
    (u64::from(u32::from_be_bytes([a, b, c, d])) >> (32 - bits)) as usize
}

impl IndexedPack {
    /// Data or metadata.
    pub fn kind(&self) -> Kind {
        self.header.kind
    }

    /// Where a frame begins in the file, in bytes.
    pub fn frame_offset(&self, frame: u32) -> u64 {
        let before = self.frames.iter().take(frame as usize).map(|f| u64::from(f.stored_bytes())).sum::<u64>();
        crate::format::header::HEADER_BYTES as u64 + u64::from(self.header.first_bytes) + before
    }
}

#[cfg(test)]
mod tests;
