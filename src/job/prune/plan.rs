//! What a prune will do, worked out without touching anything: `--dry-run` prints it, the execution follows it.

use std::collections::HashSet;

use super::cost::Cost;
use super::reclaim::Reclaim;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::segment::SlotSet;
use crate::id::{BlobId, PackId};
use crate::index::{BlobIndex, Place};
use crate::job::policy::Verdict;
use crate::repo::{Condemnation, Needs, Running};

/// What a prune will do.
#[derive(Debug)]
pub struct Plan {
    /// What is kept and forgotten, and why.
    pub verdicts: Vec<Verdict>,
    /// What earlier runs condemned and this one deletes.
    pub deletion: Deletion,
    /// What this run condemns.
    pub reclaim: Reclaim,
    /// Who or what keeps condemned packs from being deleted now, for people.
    pub waiting_for: Vec<String>,
    /// What there is, what becomes of it, and what that takes.
    pub cost: Cost,
}

/// Condemned packs whose time has come.
#[derive(Debug, Default)]
pub struct Deletion {
    /// Paths of the records that name them.
    pub records: Vec<String>,
    /// Those that are deleted.
    pub packs: HashSet<PackId>,
    /// Those that are needed again, and are condemned no more.
    pub reinstated: HashSet<PackId>,
}

/// Finds the records of condemned packs whose time has come: the grace period has passed by this machine's clock and
/// by the store's, and no session lives that may not know of the record, because it was running when the record was
/// written. The others are described.
///
/// A session that began while the record was being written may be missing in it; the store's own times tell: a
/// session first seen later than the record read the record.
pub fn ripe<'r>(
    records: &'r [Condemnation],
    live: &[Running],
    grace_secs: i64,
    (own_now, store_now): (Time, Time),
) -> (Vec<&'r Condemnation>, Vec<String>) {
    let (mut ripe, mut waiting_for) = (Vec::new(), Vec::new());
    for found in records {
        let own_age = own_now.secs.saturating_sub(found.record.time.secs);
        let age = own_age.min(store_now.secs.saturating_sub(found.modified.secs));
        let what = format!("{} packs, condemned {} ago", found.record.packs.len(), span(age.max(0)));
        let blocks = |s: &&Running| found.record.sessions.contains(&s.name) || s.first_seen <= found.modified;
        if grace_secs > 0 && age < grace_secs {
            waiting_for.push(format!("{what}: the grace period is {}", span(grace_secs)));
        } else if let Some(session) = live.iter().find(blocks) {
            waiting_for.push(format!("{what}: {} was running then and has not ended", session.describe()));
        } else {
            ripe.push(found);
        }
    }
    (ripe, waiting_for)
}

fn span(secs: i64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

/// Decides which packs of the ripe records are deleted: a pack that is needed for a blob, or for slots of a segment,
/// which lie nowhere outside of them is reinstated.
///
/// # Errors
/// [`Error::Corrupt`] if something needed lies in no sound pack at all: then nothing may be deleted.
pub fn deletion(
    index: &BlobIndex,
    records: &[&Condemnation],
    unsound: &HashSet<PackId>,
    needs: &Needs,
) -> Result<Deletion> {
    let candidates: HashSet<PackId> = records.iter().flat_map(|c| c.record.packs.iter().copied()).collect();
    let is_sound = marks(index, |id| !unsound.contains(id));
    let is_candidate = marks(index, |id| candidates.contains(id));
    let sound = |place: Place| at(&is_sound, place);
    let mut only_here: Vec<(Place, u32)> = Vec::new();
    for position in needs.iter() {
        if needs.are_met_at(index, position, |p| sound(p) && !at(&is_candidate, p)) {
            continue;
        }
        let first = index.places_at(position).find(|p| sound(*p) && at(&is_candidate, *p));
        let met = needs.are_met_at(index, position, sound);
        only_here.push((first.filter(|_| met).ok_or_else(|| lost(index, position, &is_sound))?, position));
    }
    only_here.sort_unstable();
    let mut stays: Vec<bool> = is_candidate.iter().map(|c| !c).collect();
    for (_, position) in only_here {
        let mut missing = missing(index, needs, position, |p| sound(p) && at(&stays, p));
        for place in index.places_at(position).filter(|p| sound(*p)) {
            let slots = *index.slots(place).unwrap_or(&SlotSet::ALL);
            if !missing.common(&slots).is_empty() {
                missing.remove(&slots);
                stays[place.pack as usize] = true;
            }
        }
    }
    let is_back = |number: u32| at_number(&is_candidate, number) && at_number(&stays, number);
    let reinstated: HashSet<PackId> =
        (0..).zip(index.packs()).filter(|(number, _)| is_back(*number)).map(|(_, pack)| pack.id).collect();
    let packs = candidates.difference(&reinstated).copied().collect();
    Ok(Deletion { records: records.iter().map(|c| c.path.clone()).collect(), packs, reinstated })
}

/// Slots that are needed and that no place has which a filter lets through. Of a blob that is no segment, and of a
/// segment that is needed as a whole: none or all.
fn missing(index: &BlobIndex, needs: &Needs, position: u32, only: impl Fn(Place) -> bool) -> SlotSet {
    let mut missing = needs.slots(position).copied().unwrap_or(SlotSet::ALL);
    for place in index.places_at(position).filter(|p| only(*p)) {
        missing.remove(index.slots(place).unwrap_or(&SlotSet::ALL));
    }
    missing
}

/// For each pack of an index, by its number, whether it fulfils a condition.
pub(super) fn marks(index: &BlobIndex, is: impl Fn(&PackId) -> bool) -> Vec<bool> {
    index.packs().iter().map(|pack| is(&pack.id)).collect()
}

pub(super) fn at(marks: &[bool], place: Place) -> bool {
    at_number(marks, place.pack)
}

fn at_number(marks: &[bool], number: u32) -> bool {
    marks.get(number as usize).is_some_and(|mark| *mark)
}

/// What to say of a blob that is needed and can't be had.
pub(super) fn lost(index: &BlobIndex, position: u32, is_sound: &[bool]) -> Error {
    let id = index.id_at(position).unwrap_or(BlobId([0; 32]));
    let bad = index.places_at(position).find(|p| !at(is_sound, *p)).and_then(|p| index.frame(p));
    match bad {
        Some((pack, _)) => Error::corrupt(
            format!("pack {}", pack.id),
            format!("it is missing or its length is wrong, and a snapshot needs blob {} of it", id.short()),
        ),
        None => Error::Missing { what: format!("blob {id}, or some of it") },
    }
}
