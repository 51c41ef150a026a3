//! Which segments a prune stores in full that were stored against older pages: where these older pages are needed for
//! nothing else, the two together take more than the segment alone.
//!
//! A segment keeps its id however it is encoded, so that no page map and no snapshot knows of it.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::format::segment::SlotSet;
use crate::id::PackId;
use crate::index::{BlobIndex, Place};
use crate::repo::{Leaning, Needs, Reach, close};

/// What a page takes in full among the few that are left of its segment, in per cent of what it takes in a segment that
/// is whole.
const FEW_TOGETHER_PERCENT: u64 = 125;

/// Segments that will lean on no other, by their positions in the index.
#[derive(Debug, Default)]
pub struct Flatten {
    /// Those that have to be copied for that.
    pub copied: HashSet<u32>,
    /// Those of which there is such a copy already: a prune was cut off.
    pub done: HashSet<u32>,
    /// What that saves, in bytes, about.
    pub saved_bytes: u64,
}

/// Which packs can be worked on, by their numbers in the index.
pub struct Workable<'a> {
    /// Those that can be relied on from now on.
    pub available: &'a [bool],
    /// Those that may be rewritten.
    pub rewritable: &'a [bool],
}

/// How the older pages of a base are used.
#[derive(Default, Clone, Copy)]
struct Lean {
    /// Slots that some segment leans on.
    once: SlotSet,
    /// Slots that several segments lean on.
    often: SlotSet,
}

/// Decides what to store in full. `direct` is what page maps name, without what segments lean on.
pub fn flatten(index: &BlobIndex, direct: &Needs, leaning: &[Leaning], packs: &Workable<'_>) -> Flatten {
    let leaning: HashMap<u32, u32> = leaning.iter().copied().collect();
    let at = |marks: &[bool], p: Place| marks.get(p.pack as usize).is_some_and(|mark| *mark);
    let mut out = Flatten::default();
    let mut lean: HashMap<u32, Lean> = HashMap::new();
    let mut candidates: Vec<(u32, u32, Place)> = Vec::new();
    for (position, page_bytes) in leaning {
        let available = || index.places_at(position).filter(|p| at(packs.available, *p));
        let alone = |p: Place| at(packs.available, p) && index.bases(p).is_empty();
        if direct.are_met_at(index, position, alone) {
            out.done.insert(position);
            continue;
        }
        for base in available().flat_map(|p| index.bases(p)) {
            let Some(base_at) = index.position(&base.id) else { continue };
            let lean = lean.entry(base_at).or_default();
            lean.often.add(&lean.once.common(&base.slots));
            lean.once.add(&base.slots);
        }
        let mut places = available();
        if let (Some(place), None) = (places.next(), places.next())
            && at(packs.rewritable, place)
        {
            candidates.push((position, page_bytes, place));
        }
    }
    for (position, page_bytes, place) in candidates {
        if let Some(saved) = saving(index, direct, &lean, (position, page_bytes, place)) {
            out.saved_bytes += saved;
            out.copied.insert(position);
        }
    }
    out
}

/// What storing a segment in full saves, in bytes: its delta, and older pages that nothing else needs, less the pages.
fn saving(
    index: &BlobIndex,
    direct: &Needs,
    lean: &HashMap<u32, Lean>,
    (position, page_bytes, place): (u32, u32, Place),
) -> Option<u64> {
    let (mut alone, mut base_stored, mut base_plain) = (0u64, 0u64, 0u64);
    for base in index.bases(place) {
        let at = index.position(&base.id)?;
        let (_, frame) = index.frame(index.find(&base.id)?)?;
        let mut slots = base.slots;
        slots.remove(&lean.get(&at)?.often);
        if direct.has(at) {
            slots.remove(direct.slots(at).unwrap_or(&SlotSet::ALL));
        }
        alone += u64::from(slots.count());
        base_stored += u64::from(frame.stored_bytes());
        base_plain += u64::from(frame.plain_bytes());
    }
    let (_, frame) = index.frame(place)?;
    let live = u64::from(direct.live_bytes(index, position, place) / page_bytes.max(1));
    let page_stored = u64::from(page_bytes) * base_stored / base_plain.max(1);
    let in_full = live * page_stored * FEW_TOGETHER_PERCENT / 100;
    (alone * page_stored + u64::from(frame.stored_bytes())).checked_sub(in_full).filter(|saved| *saved > 0)
}

impl Flatten {
    /// Whether a segment will lean on no other.
    pub fn has(&self, position: u32) -> bool {
        self.copied.contains(&position) || self.done.contains(&position)
    }

    /// The packs that have to be rewritten for it.
    pub fn packs(&self, index: &BlobIndex, available: &[bool]) -> HashSet<PackId> {
        let places = self.copied.iter().flat_map(|position| index.places_at(*position));
        let packs = places.filter(|p| available.get(p.pack as usize).is_some_and(|a| *a));
        packs.filter_map(|p| Some(index.frame(p)?.0.id)).collect()
    }

    /// What is needed once it is done.
    ///
    /// # Errors
    /// [`crate::error::Error::Missing`] if some of it is nowhere.
    pub fn needs(&self, index: &BlobIndex, direct: &Reach) -> Result<Needs> {
        let mut needs = direct.needs().clone();
        close(&mut needs, index, direct.leaning().iter().copied().filter(|(at, _)| !self.has(*at)))?;
        Ok(needs)
    }
}
