//! Segments as repo-format.md §10 has them, and what they take. Depends on `history`, `scheme` and the library's
//! `format::zstd`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use snapshot::format::zstd;

use super::history::{History, PAGE_BYTES, Version};
use super::scheme::{LEVEL, Plan};

/// Most pages of a segment stored in full.
const FULL_PAGES: usize = 256;
/// Tag that seals a frame, in bytes; its entry in the pack's directory; its pack block and record in the index.
const FRAME_BYTES: usize = 16 + (12 + 40) + (12 + 48);
/// For each base segment, its id in the directory and in the index.
const BASE_BYTES: usize = 32 + 32;
/// Bits of the slots present, in the directory and in the index; the hash of an absent slot in the segment.
const PARTIAL_BYTES: usize = 32 + 32;
const HASH_BYTES: usize = 16;

/// Number of a segment.
pub type SegmentId = usize;

/// A version as it lies in a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Copied {
    /// The version.
    pub version: Version,
    /// The segment.
    pub segment: SegmentId,
}

/// A page in a segment, and what its delta leans on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The page.
    pub version: Version,
    /// Its base.
    pub base: Option<Copied>,
}

/// Bytes in a store.
#[derive(Clone, Copy, Default)]
pub struct Bytes {
    /// All.
    pub all: usize,
    /// Those of `all` that are spent on naming bases: ids of segments, and slots.
    pub naming: usize,
    /// Those of `all` that are hashes of absent slots.
    pub absent: usize,
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.naming += other.naming;
        self.absent += other.absent;
    }
}

/// A segment.
pub struct Segment {
    /// Its pages.
    pub slots: Vec<Slot>,
    /// What it takes, as it was written first.
    pub bytes: Bytes,
    /// The zstd frame, unless it is stored as it is.
    pub packed: Option<Vec<u8>>,
    /// The segments that its deltas lean on.
    pub bases: BTreeSet<SegmentId>,
    /// How many segments must be decoded one after the other before this one.
    pub depth: usize,
}

impl Segment {
    /// Bytes of its pages.
    pub fn plain_bytes(&self) -> usize {
        self.slots.len() * PAGE_BYTES
    }
}

/// How pages are put together.
#[derive(Clone, Copy)]
pub struct Packing {
    /// Most pages in a segment of deltas.
    pub group: usize,
    /// Whether deltas of one depth are grouped apart from those of another.
    pub by_depth: bool,
    /// Which pages that did not change are stored again.
    pub again: Again,
}

/// Pages that did not change are stored again if the segment that they are in is needed for few of them, so that a restore
/// need not decode it any more: deltas as deltas, and in full what leans on a base in such a segment.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// The part of a segment's slots below which it is left, bases of the generation's pages counted as needed.
    pub below: f64,
    /// Whether segments stored in full are left too.
    pub bases: bool,
    /// At most so many pages a night, as a part of those that changed; the segments least needed come first.
    pub most: f64,
}

/// The segments of a repository.
#[derive(Default)]
pub struct Store {
    /// In the order in which they were written.
    pub segments: Vec<Segment>,
    /// For each generation stored, where its pages are.
    pub maps: Vec<Vec<Copied>>,
    /// What each generation added.
    pub added: Vec<Bytes>,
    newest: HashMap<Version, SegmentId>,
    /// For bases that were left, the version of the page that is the base now.
    heirs: HashMap<Version, Version>,
}

impl Store {
    /// Stores these generations, one after the other.
    pub fn new(history: &History, generations: &[usize], plan: &Plan, packing: Packing) -> Self {
        let mut store = Self::default();
        for map in generations.iter().map(|generation| &history.maps[*generation]) {
            let again = store.again(map, plan, packing.again);
            // By depth: pages, and whether they lean on their base.
            let mut groups: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
            for version in map {
                let again = again.get(version);
                if store.newest.contains_key(version) && again.is_none() {
                    continue;
                }
                let old = plan.base(*version);
                let base = if again == Some(&true) { None } else { store.base(plan, *version) };
                if let (Some(old), None) = (old, base) {
                    store.heirs.insert(old, *version);
                }
                let depth = if base.is_none() { 0 } else { plan.depth(*version) };
                let slot = Slot { version: *version, base };
                groups.entry(if packing.by_depth { depth } else { depth.min(1) }).or_default().push(slot);
            }
            let mut added = Bytes::default();
            for (depth, slots) in groups {
                for slots in slots.chunks(if depth == 0 { FULL_PAGES } else { packing.group }) {
                    added += store.add(history, slots);
                }
            }
            store.added.push(added);
            let copied = |version: &Version| store.copied(*version);
            store.maps.push(map.iter().filter_map(copied).collect());
        }
        store
    }

    fn copied(&self, version: Version) -> Option<Copied> {
        Some(Copied { version, segment: *self.newest.get(&version)? })
    }

    /// What a version leans on, if it is stored now.
    fn base(&self, plan: &Plan, version: Version) -> Option<Copied> {
        let mut base = plan.base(version)?;
        while let Some(heir) = self.heirs.get(&base) {
            base = *heir;
        }
        self.copied(base)
    }

    /// Which pages are stored again, and whether in full.
    fn again(&self, map: &[Version], plan: &Plan, rule: Again) -> HashMap<Version, bool> {
        // For each segment, the pages of this generation that need it, and whether as base.
        let mut needed: BTreeMap<SegmentId, Vec<(Version, bool)>> = BTreeMap::new();
        let mut changed = 0;
        for version in map {
            let here = self.newest.get(version);
            changed += usize::from(here.is_none());
            if let Some(segment) = here {
                needed.entry(*segment).or_default().push((*version, false));
            }
            if let Some(base) = self.base(plan, *version).filter(|base| base.version != *version) {
                needed.entry(base.segment).or_default().push((*version, true));
            }
        }
        let part =
            |(segment, pages): &(SegmentId, Vec<_>)| pages.len() as f64 / self.segments[*segment].slots.len() as f64;
        let is_left = |segment: SegmentId| rule.bases || self.segments[segment].depth > 0;
        let mut sparse: Vec<_> = needed.into_iter().filter(|of| is_left(of.0) && part(of) < rule.below).collect();
        sparse.sort_by(|a, b| part(a).total_cmp(&part(b)));
        let mut again = HashMap::new();
        for (segment, pages) in sparse {
            if (again.len() + pages.len()) as f64 > rule.most * changed as f64 {
                break;
            }
            let in_full = self.segments[segment].depth == 0;
            pages.into_iter().for_each(|(version, _)| *again.entry(version).or_default() |= in_full);
        }
        again
    }

    fn add(&mut self, history: &History, slots: &[Slot]) -> Bytes {
        let bases: BTreeSet<_> = slots.iter().filter_map(|slot| Some(slot.base?.segment)).collect();
        let depth = bases.iter().map(|base| self.segments[*base].depth + 1).max().unwrap_or_default();
        let (bytes, packed) = encoded(history, slots, 0, bases.len());
        self.newest.extend(slots.iter().map(|slot| (slot.version, self.segments.len())));
        self.segments.push(Segment { slots: slots.to_vec(), bytes, packed, bases, depth });
        bytes
    }

    /// All that was added.
    pub fn bytes(&self) -> Bytes {
        let mut bytes = Bytes::default();
        self.added.iter().for_each(|added| bytes += *added);
        bytes
    }
}

/// Pages one after the other.
fn joined(history: &History, versions: impl Iterator<Item = Version>) -> Vec<u8> {
    versions.fold(Vec::new(), |mut out, version| {
        out.extend_from_slice(history.page(version));
        out
    })
}

/// The base pages of a segment, one after the other.
pub fn prefix(history: &History, slots: &[Slot]) -> Vec<u8> {
    joined(history, slots.iter().filter_map(|slot| Some(slot.base?.version)))
}

/// What a segment takes with these slots present, and its zstd frame.
pub fn encoded(history: &History, present: &[Slot], absent: usize, bases: usize) -> (Bytes, Option<Vec<u8>>) {
    let plain = joined(history, present.iter().map(|slot| slot.version));
    let prefix = prefix(history, present);
    let packed = match prefix.is_empty() {
        true => zstd::compress(&plain, LEVEL),
        false => zstd::compress_delta(&plain, &prefix, LEVEL),
    };
    let naming = if prefix.is_empty() { 0 } else { 4 * present.len() + bases * BASE_BYTES };
    let absent_hashes = absent * HASH_BYTES;
    let head = 8 + (present.len() + absent).div_ceil(8) + absent_hashes;
    let partial = if absent > 0 { PARTIAL_BYTES } else { 0 };
    let body = packed.as_ref().map_or(plain.len(), Vec::len);
    (Bytes { all: body + head + naming + FRAME_BYTES + partial, naming, absent: absent_hashes }, packed)
}
