//! What a prune will do, worked out without touching anything: `--dry-run` prints it, the execution follows it.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::header::Kind;
use crate::id::{BlobId, PackId};
use crate::index::{BlobIndex, Place};
use crate::job::policy::Verdict;
use crate::repo::{Condemnation, Running};

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

impl Default for Limit {
    fn default() -> Self {
        Self::Percent(5.0)
    }
}

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

/// Packs that are condemned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reclaim {
    /// Those of which nothing is needed.
    pub unused: Vec<PackId>,
    /// Those whose needed blobs are copied into new packs first.
    pub repack: Vec<PackId>,
    /// The blobs to copy, in the order in which they lie.
    pub copies: Vec<(BlobId, Place)>,
    /// Length of all of these packs, in bytes.
    pub bytes: u64,
    /// Length of the packs to repack, in bytes.
    pub repack_bytes: u64,
    /// Unused space that stays in packs partly used, in bytes.
    pub unused_kept_bytes: u64,
}

/// The blobs that are needed: all of a set but some.
pub struct Needed<'a> {
    /// The set.
    pub all: &'a HashSet<BlobId>,
    /// Those that don't count.
    pub except: HashSet<BlobId>,
}

/// What [`reclaim`] goes by.
pub struct Inputs<'a> {
    /// All packs and blobs; what is condemned is marked.
    pub index: &'a BlobIndex,
    /// What remaining snapshots need.
    pub needed: Needed<'a>,
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

/// Decides which packs of the ripe records are deleted: a pack that is needed for a blob which lies nowhere outside
/// of them is reinstated.
///
/// # Errors
/// [`Error::Corrupt`] if a needed blob lies in no sound pack at all: then nothing may be deleted.
pub fn deletion(
    index: &BlobIndex,
    records: &[&Condemnation],
    unsound: &HashSet<PackId>,
    needed: &HashSet<BlobId>,
) -> Result<Deletion> {
    let candidates: HashSet<PackId> = records.iter().flat_map(|c| c.record.packs.iter().copied()).collect();
    let mut only_here: Vec<(Place, PackId, &BlobId)> = Vec::new();
    for id in needed {
        let mut sound = places(index, id).filter(|(_, pack)| !unsound.contains(pack));
        if sound.clone().any(|(_, pack)| !candidates.contains(&pack)) {
            continue;
        }
        let (place, pack) = sound.next().ok_or_else(|| lost(index, id))?;
        only_here.push((place, pack, id));
    }
    only_here.sort_unstable();
    let mut reinstated = HashSet::new();
    for (_, pack, id) in only_here {
        if !places(index, id).any(|(_, pack)| reinstated.contains(&pack) && !unsound.contains(&pack)) {
            reinstated.insert(pack);
        }
    }
    let packs = candidates.difference(&reinstated).copied().collect();
    Ok(Deletion { records: records.iter().map(|c| c.path.clone()).collect(), packs, reinstated })
}

fn places(index: &BlobIndex, id: &BlobId) -> impl Iterator<Item = (Place, PackId)> + Clone {
    let places: Vec<_> = index.places(id).filter_map(|p| index.frame(p).map(|(pack, _)| (p, pack.id))).collect();
    places.into_iter()
}

fn lost(index: &BlobIndex, id: &BlobId) -> Error {
    match places(index, id).next() {
        Some((_, pack)) => Error::corrupt(
            format!("pack {pack}"),
            format!("it is missing or its length is wrong, and a snapshot needs blob {} of it", id.short()),
        ),
        None => Error::Missing { what: format!("blob {id}") },
    }
}

/// How much of each pack is used; positions are those of [`BlobIndex::packs`].
struct Usage {
    /// Stored bytes, about: a blob's share of its frame.
    bytes: Vec<u64>,
    blobs: Vec<u64>,
    /// Which place is used of a blob that has several.
    chosen: HashMap<BlobId, Place>,
}

impl Inputs<'_> {
    /// The places of a blob that can be relied on from now on.
    fn available(&self, id: &BlobId) -> impl Iterator<Item = Place> + Clone {
        let relied_on = |place: &Place| {
            self.index.frame(*place).is_some_and(|(pack, _)| {
                let condemned = self.index.is_condemned(&pack.id) && !self.reinstated.contains(&pack.id);
                !condemned && !self.unsound.contains(&pack.id)
            })
        };
        // Nearly always one.
        self.index.places(id).filter(relied_on).collect::<Vec<_>>().into_iter()
    }

    fn needed(&self) -> impl Iterator<Item = &BlobId> {
        self.needed.all.iter().filter(|id| !self.needed.except.contains(id))
    }

    /// A blob's share of the stored bytes of its frame, rounded up.
    fn share(&self, place: Place) -> u64 {
        self.index.frame(place).map_or(0, |(_, frame)| {
            let (stored, plain) = (u64::from(frame.stored_bytes), u64::from(frame.plain_bytes.max(1)));
            (stored * u64::from(place.plain_bytes)).div_ceil(plain).min(stored)
        })
    }

    /// Decides for each needed blob which of its places is used: one in a pack that stays anyway, else in the pack
    /// that is used most.
    fn usage(&self) -> Result<Usage> {
        let packs = self.index.packs();
        let mut usage = Usage { bytes: vec![0; packs.len()], blobs: vec![0; packs.len()], chosen: HashMap::new() };
        let mut several: Vec<BlobId> = Vec::new();
        for id in self.needed() {
            let mut available = self.available(id);
            match (available.next(), available.next()) {
                (Some(place), None) => self.count(&mut usage, place),
                (Some(_), Some(_)) => several.push(*id),
                // In condemned packs only, whose time has not come: they will be reinstated then.
                (None, _) if places(self.index, id).any(|(_, pack)| !self.unsound.contains(&pack)) => {}
                (None, _) => return Err(lost(self.index, id)),
            }
        }
        several.sort_unstable();
        for id in several {
            let is_young = |p: Place| packs.get(p.pack as usize).is_some_and(|pack| self.young.contains(&pack.id));
            let used = |p: Place| usage.bytes.get(p.pack as usize).copied();
            if let Some(best) = self.available(&id).max_by_key(|p| (is_young(*p), used(*p), Reverse(*p))) {
                self.count(&mut usage, best);
                usage.chosen.insert(id, best);
            }
        }
        Ok(usage)
    }

    fn count(&self, usage: &mut Usage, place: Place) {
        let number = place.pack as usize;
        if let (Some(bytes), Some(blobs)) = (usage.bytes.get_mut(number), usage.blobs.get_mut(number)) {
            *bytes += self.share(place);
            *blobs += 1;
        }
    }
}

/// A pack of which some is needed.
struct Partial {
    number: u32,
    id: PackId,
    kind: Kind,
    file_bytes: u64,
    unused: u64,
}

/// Decides which packs to condemn, and which of them to repack first.
///
/// # Errors
/// [`Error::Corrupt`] if a needed blob lies in no sound pack.
pub fn reclaim(inputs: &Inputs<'_>) -> Result<Reclaim> {
    let usage = inputs.usage()?;
    let mut plan = Reclaim::default();
    let mut partial: Vec<Partial> = Vec::new();
    let mut used_bytes = 0;
    for (number, pack) in (0..).zip(inputs.index.packs()) {
        let i = number as usize;
        let condemned = inputs.index.is_condemned(&pack.id) && !inputs.reinstated.contains(&pack.id);
        if condemned {
            continue;
        }
        if inputs.young.contains(&pack.id) {
            used_bytes += pack.file_bytes;
        } else if usage.blobs[i] == 0 {
            plan.unused.push(pack.id);
            plan.bytes += pack.file_bytes;
        } else {
            used_bytes += usage.bytes[i];
            let stored: u64 = pack.frames.iter().map(|f| u64::from(f.stored_bytes)).sum();
            let unused = stored.saturating_sub(usage.bytes[i]);
            let (id, kind, file_bytes) = (pack.id, pack.kind(), pack.file_bytes);
            partial.push(Partial { number, id, kind, file_bytes, unused });
        }
    }
    let chosen = choose_repacks(&mut plan, partial, used_bytes, inputs);
    for id in inputs.needed() {
        let place = usage.chosen.get(id).copied().or_else(|| inputs.available(id).next());
        plan.copies.extend(place.filter(|p| chosen.contains(&p.pack)).map(|p| (*id, p)));
    }
    plan.copies.sort_unstable_by_key(|(id, place)| (*place, *id));
    Ok(plan)
}

/// Chooses what to repack: the packs with the most waste until the rest is small enough, and small ones where there
/// are many. Returns their numbers.
fn choose_repacks(plan: &mut Reclaim, mut partial: Vec<Partial>, used: u64, inputs: &Inputs<'_>) -> HashSet<u32> {
    let allowed = match inputs.max_unused {
        Limit::Bytes(bytes) => bytes,
        Limit::Percent(percent) if percent >= 100.0 => u64::MAX,
        // Of what remains, unused space included. A cast of something negative gives zero.
        Limit::Percent(percent) => (used as f64 * percent / (100.0 - percent)) as u64,
    };
    let waste = |p: &Partial| p.unused as f64 / p.file_bytes.max(1) as f64;
    partial.sort_by(|a, b| waste(b).total_cmp(&waste(a)).then(a.id.cmp(&b.id)));
    let mut unused: u64 = partial.iter().map(|p| p.unused).sum();
    let mut chosen = HashSet::new();
    let mut take = |pack: &Partial| {
        if inputs.max_repack.is_none_or(|max| plan.repack_bytes + pack.file_bytes <= max) {
            plan.repack.push(pack.id);
            plan.repack_bytes += pack.file_bytes;
            chosen.insert(pack.number);
            return pack.unused;
        }
        0
    };
    let mut small = Vec::new();
    for pack in &partial {
        let taken = if unused > allowed && pack.unused > 0 { take(pack) } else { 0 };
        unused -= taken;
        if taken == 0 && pack.file_bytes < SMALL_PACK_BYTES {
            small.push(pack);
        }
    }
    for kind in [Kind::DataPack, Kind::MetadataPack] {
        let of_kind: Vec<_> = small.iter().filter(|p| p.kind == kind).collect();
        if of_kind.len() > MAX_SMALL_PACKS {
            unused -= of_kind.into_iter().map(|p| take(p)).sum::<u64>();
        }
    }
    plan.bytes += plan.repack_bytes;
    plan.unused_kept_bytes = unused;
    chosen
}
