//! Which packs to condemn, and what to copy out of them before: the part of the plan that weighs space against work.
//!
//! A pack's unused space is that of blobs which nobody needs, and of slots of segments in which no page lies that
//! anybody needs.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::flatten::Flatten;
use super::plan::{at, lost, marks};
use crate::error::Result;
use crate::format::header::Kind;
use crate::id::PackId;
use crate::index::{BlobIndex, Place};
use crate::repo::{Needs, Piece};

/// Packs below this size are small, in bytes …
const SMALL_PACK_BYTES: u64 = 4 << 20;
/// … and are merged once there are more of a kind than this.
const MAX_SMALL_PACKS: usize = 8;

/// How much unused space may stay in packs that are partly used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// So much of what remains in the repository, in per cent.
    Percent(f64),
    /// So many bytes.
    Bytes(u64),
}

impl Limit {
    /// The limit in bytes where so many bytes are used.
    pub fn of(self, used: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) if percent >= 100.0 => u64::MAX,
            // Of what remains, unused space included. A cast of something negative gives zero.
            Self::Percent(percent) => (used as f64 * percent / (100.0 - percent)) as u64,
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::Percent(5.0)
    }
}

/// A number of packs and their length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub packs: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Amount {
    /// Adds a pack.
    pub fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What there is of one kind of packs, and what becomes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// All packs.
    pub total: Amount,
    /// Those all of which is needed.
    pub used: Amount,
    /// Those of which some is needed.
    pub partly_used: Amount,
    /// Those of which nothing is needed, to be condemned.
    pub unused: Amount,
    /// Those that a running command may just have stored: left alone.
    pub young: Amount,
    /// Those that were condemned before, this run's deletions included.
    pub condemned: Amount,
    /// Those of the used ones that are rewritten and then condemned.
    pub repack: Amount,
    /// What will be written of these again, in bytes, about.
    pub rewritten_bytes: u64,
    /// Unused space that stays in packs that are used, in bytes.
    pub unused_kept_bytes: u64,
}

/// Packs that are condemned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reclaim {
    /// Those of which nothing is needed.
    pub unused: Vec<PackId>,
    /// Those whose needed blobs are copied into new packs first.
    pub repack: Vec<PackId>,
    /// What to copy, in the order in which it lies.
    pub copies: Vec<Piece>,
    /// Length of all of these packs, in bytes.
    pub bytes: u64,
    /// Length of the packs to repack, in bytes.
    pub repack_bytes: u64,
    /// Unused space that stays in packs partly used, in bytes.
    pub unused_kept_bytes: u64,
    /// Whether more would be repacked if the budget allowed it.
    pub over_budget: bool,
    /// The same in detail: data, metadata.
    pub shares: [Share; 2],
}

impl Reclaim {
    /// Puts off what needs copying.
    pub fn without_repacks(mut self) -> Self {
        self.repack.clear();
        self.copies.clear();
        self.bytes -= self.repack_bytes;
        self.repack_bytes = 0;
        self
    }
}

/// What [`reclaim`] goes by.
pub struct Inputs<'a> {
    /// All packs and blobs; what is condemned is marked.
    pub index: &'a BlobIndex,
    /// What remaining snapshots need.
    pub needs: &'a Needs,
    /// Packs that are missing or have a wrong length: never relied on.
    pub unsound: &'a HashSet<PackId>,
    /// Packs that a running writer may just have stored: left alone.
    pub young: &'a HashSet<PackId>,
    /// Condemned packs that are needed again.
    pub reinstated: &'a HashSet<PackId>,
    /// How much unused space may stay.
    pub max_unused: Limit,
    /// How many bytes of packs may be repacked.
    pub max_repack: Option<u64>,
    /// Segments that will lean on no other.
    pub flatten: &'a Flatten,
}

/// How much of each pack is used; positions are those of [`BlobIndex::packs`].
struct Usage {
    /// Stored bytes, about: a blob's share of its frame.
    bytes: Vec<u64>,
    blobs: Vec<u64>,
    /// Which places are used of a blob that has several.
    chosen: HashMap<u32, Vec<Place>>,
}

/// The inputs, looked up once for each pack.
struct Survey<'a> {
    index: &'a BlobIndex,
    needs: &'a Needs,
    flatten: &'a Flatten,
    sound: Vec<bool>,
    young: Vec<bool>,
    condemned: Vec<bool>,
}

impl Survey<'_> {
    /// Whether a place can be relied on from now on.
    fn is_available(&self, place: Place) -> bool {
        at(&self.sound, place) && !at(&self.condemned, place)
    }

    fn available(&self, position: u32) -> impl Iterator<Item = Place> + Clone {
        let is_flat = self.flatten.done.contains(&position);
        let usable = move |p: &Place| self.is_available(*p) && (!is_flat || self.index.bases(*p).is_empty());
        self.index.places_at(position).filter(usable)
    }

    /// The share that a blob, or what is needed of it, has of the stored bytes of its frame, rounded up.
    fn share(&self, position: u32, place: Place) -> u64 {
        self.index.frame(place).map_or(0, |(_, frame)| {
            let (stored, plain) = (u64::from(frame.stored_bytes()), u64::from(frame.plain_bytes().max(1)));
            let live = self.needs.live_bytes(self.index, position, place);
            (stored * u64::from(live)).div_ceil(plain).min(stored)
        })
    }

    /// Decides for each needed blob which of its places is used: one in a pack that stays anyway, else in the pack
    /// that is used most.
    fn usage(&self) -> Result<Usage> {
        let packs = self.index.packs().len();
        let mut usage = Usage { bytes: vec![0; packs], blobs: vec![0; packs], chosen: HashMap::new() };
        let mut several = Vec::new();
        for position in self.needs.iter() {
            let mut available = self.available(position);
            match (available.next(), available.next()) {
                (Some(place), None) => self.count(&mut usage, position, place),
                (Some(_), Some(_)) => several.push(position),
                (None, _) => {}
            }
            // What is in condemned packs only, whose time has not come, will be reinstated then.
            if !self.needs.are_met_at(self.index, position, |p| at(&self.sound, p)) {
                return Err(lost(self.index, position, &self.sound));
            }
        }
        for position in several {
            let places = self.choose(&usage, position);
            places.iter().for_each(|place| self.count(&mut usage, position, *place));
            usage.chosen.insert(position, places);
        }
        Ok(usage)
    }

    /// One place that has all that is needed, or as few as can be found easily.
    fn choose(&self, usage: &Usage, position: u32) -> Vec<Place> {
        let used = |p: Place| usage.bytes.get(p.pack as usize).copied();
        let mut places: Vec<_> = self.available(position).collect();
        places.sort_by_key(|p| Reverse((at(&self.young, *p), used(*p), Reverse(*p))));
        let slots = |p: &Place| self.index.slots(*p).copied();
        let has_all = |p: &&Place| self.needs.are_met(position, std::iter::once(slots(p)));
        if let Some(best) = places.iter().find(has_all) {
            return vec![*best];
        }
        let mut there = Vec::new();
        let mut chosen = Vec::new();
        for place in places {
            if !self.needs.are_met(position, there.iter().copied()) {
                there.push(slots(&place));
                chosen.push(place);
            }
        }
        chosen
    }

    fn count(&self, usage: &mut Usage, position: u32, place: Place) {
        let number = place.pack as usize;
        if let (Some(bytes), Some(blobs)) = (usage.bytes.get_mut(number), usage.blobs.get_mut(number)) {
            *bytes += self.share(position, place);
            *blobs += 1;
        }
    }

    /// What of the needed blobs lies in the chosen packs.
    fn pieces(&self, usage: &Usage, chosen: &[bool]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for position in self.needs.iter() {
            let Some(id) = self.index.id_at(position) else { continue };
            let slots = self.needs.slots(position);
            let mut take = |place: Place| {
                if at(chosen, place) {
                    let in_full = self.flatten.copied.contains(&position);
                    pieces.push(Piece { id, place, slots: slots.map(|slots| Box::new(*slots)), in_full });
                }
            };
            match usage.chosen.get(&position) {
                Some(places) => places.iter().for_each(|place| take(*place)),
                None => self.available(position).take(1).for_each(&mut take),
            }
        }
        // What leans on the same segments follows each other, so that these are decoded once. Keys of millions of pieces
        // would take more room than the pieces: they are found again when they are compared.
        let base = |place| self.index.bases(place).first().and_then(|base| self.index.find(&base.id));
        pieces.sort_unstable_by_key(|piece| (base(piece.place), piece.place, piece.id));
        pieces
    }
}

/// A pack of which some is needed.
struct Partial {
    number: usize,
    id: PackId,
    kind: Kind,
    file_bytes: u64,
    used: u64,
    unused: u64,
}

/// Decides which packs to condemn, and which of them to repack first.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] if something needed lies in no sound pack.
pub fn reclaim(inputs: &Inputs<'_>) -> Result<Reclaim> {
    let index = inputs.index;
    let survey = Survey {
        index,
        needs: inputs.needs,
        flatten: inputs.flatten,
        sound: marks(index, |id| !inputs.unsound.contains(id)),
        young: marks(index, |id| inputs.young.contains(id)),
        condemned: marks(index, |id| index.is_condemned(id) && !inputs.reinstated.contains(id)),
    };
    let usage = survey.usage()?;
    let mut plan = Reclaim::default();
    let mut partial: Vec<Partial> = Vec::new();
    let mut used_bytes = 0;
    for (number, pack) in index.packs().iter().enumerate() {
        let (id, kind, file_bytes) = (pack.id, pack.kind(), pack.file_bytes);
        let share = share_of(&mut plan.shares, kind);
        if survey.sound[number] {
            share.total.add(file_bytes);
        }
        if survey.condemned[number] {
            share.condemned.add(if survey.sound[number] { file_bytes } else { 0 });
        } else if survey.young[number] {
            share.young.add(file_bytes);
            used_bytes += file_bytes;
        } else if usage.blobs[number] == 0 {
            share.unused.add(file_bytes);
            plan.unused.push(id);
            plan.bytes += file_bytes;
        } else {
            let used = usage.bytes[number];
            used_bytes += used;
            let stored: u64 = pack.frames.iter().map(|f| u64::from(f.stored_bytes())).sum();
            let unused = stored.saturating_sub(used);
            let amount = if unused > 0 { &mut share.partly_used } else { &mut share.used };
            amount.add(file_bytes);
            partial.push(Partial { number, id, kind, file_bytes, used, unused });
        }
    }
    let available: Vec<bool> = survey.sound.iter().zip(&survey.condemned).map(|(s, c)| *s && !*c).collect();
    let forced = inputs.flatten.packs(index, &available);
    let chosen = choose_repacks(&mut plan, partial, used_bytes, &forced, inputs);
    plan.copies = if plan.repack.is_empty() { Vec::new() } else { survey.pieces(&usage, &chosen) };
    Ok(plan)
}

fn share_of(shares: &mut [Share; 2], kind: Kind) -> &mut Share {
    let [data, metadata] = shares;
    if kind == Kind::DataPack { data } else { metadata }
}

/// Chooses what to repack: the packs that must be (`forced`), those with the most waste until the rest is small enough, and small ones where there
/// are many, all within the budget. Says for each pack, by its number, whether it was chosen.
fn choose_repacks(
    plan: &mut Reclaim,
    mut partial: Vec<Partial>,
    used: u64,
    forced: &HashSet<PackId>,
    inputs: &Inputs<'_>,
) -> Vec<bool> {
    let allowed = inputs.max_unused.of(used);
    let waste = |p: &Partial| p.unused as f64 / p.file_bytes.max(1) as f64;
    partial.sort_by(|a, b| waste(b).total_cmp(&waste(a)).then(a.id.cmp(&b.id)));
    let mut unused: u64 = partial.iter().map(|p| p.unused).sum();
    let mut left = inputs.max_repack.unwrap_or(u64::MAX);
    let mut chosen = vec![false; inputs.index.packs().len()];
    for pack in partial.iter().filter(|p| forced.contains(&p.id)) {
        left = left.saturating_sub(pack.file_bytes);
        unused -= pack.unused;
        chosen[pack.number] = true;
    }
    for pack in partial.iter().filter(|p| !forced.contains(&p.id)) {
        if unused <= allowed || pack.unused == 0 {
            break;
        }
        if pack.file_bytes > left {
            plan.over_budget = true;
        } else {
            left -= pack.file_bytes;
            unused -= pack.unused;
            chosen[pack.number] = true;
        }
    }
    for kind in [Kind::DataPack, Kind::MetadataPack] {
        let is_small = |p: &&Partial| p.kind == kind && p.file_bytes < SMALL_PACK_BYTES && !chosen[p.number];
        let mut small: Vec<_> = partial.iter().filter(is_small).collect();
        if small.len() <= MAX_SMALL_PACKS {
            continue;
        }
        // The smallest first, so that what a budget allows takes away as many as can be; one alone is left alone.
        small.sort_by_key(|p| (p.file_bytes, p.id));
        let sum_to = |n: usize| small.iter().take(n).map(|p| p.file_bytes).sum::<u64>();
        let fit = (0..=small.len()).rev().find(|n| sum_to(*n) <= left).unwrap_or(0);
        plan.over_budget |= fit < small.len();
        for pack in small.iter().take(fit).filter(|_| fit > 1) {
            left -= pack.file_bytes;
            unused -= pack.unused;
            chosen[pack.number] = true;
        }
    }
    for pack in partial {
        let share = share_of(&mut plan.shares, pack.kind);
        if chosen[pack.number] {
            plan.repack.push(pack.id);
            plan.repack_bytes += pack.file_bytes;
            share.repack.add(pack.file_bytes);
            share.rewritten_bytes += pack.used;
        } else {
            share.unused_kept_bytes += pack.unused;
        }
    }
    plan.bytes += plan.repack_bytes;
    plan.unused_kept_bytes = unused;
    chosen
}
