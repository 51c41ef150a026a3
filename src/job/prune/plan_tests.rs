//! The plan, tried on made-up packs: whatever there is, what is needed stays, and the limits hold.

use std::collections::HashSet;

use super::flatten::Flatten;
use super::plan::{Deletion, deletion};
use super::reclaim::{Inputs, Limit, Reclaim, reclaim};
use crate::clock;
use crate::crypto::BlobType;
use crate::error::Error;
use crate::format::control::Condemned;
use crate::format::header::{Header, Kind};
use crate::format::pack::{Encoding, Entry, FrameInfo, PackInfo};
use crate::format::segment::SlotSet;
use crate::id::{BlobId, PackId};
use crate::index::{BlobIndex, Place};
use crate::repo::testing::Dice;
use crate::repo::{Condemnation, Needs};

const PAGE: u32 = 512;

/// Packs at random, what is needed of them, and what is known of them.
struct Stage {
    index: BlobIndex,
    needs: Needs,
    unsound: HashSet<PackId>,
    young: HashSet<PackId>,
    records: Vec<Condemnation>,
}

fn slots(dice: &mut Dice, percent: usize) -> SlotSet {
    let mut set = SlotSet::default();
    (0..=u8::MAX).filter(|_| dice.chance(percent)).for_each(|slot| set.insert(slot));
    set
}

/// A frame with small blobs, or one segment, perhaps without some slots.
fn frame(dice: &mut Dice, kind: Kind, ids: usize) -> FrameInfo {
    let id = |dice: &mut Dice| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&(dice.roll(ids) as u32).to_be_bytes());
        BlobId(id)
    };
    if kind == Kind::DataPack && dice.chance(40) {
        let slots = dice.chance(40).then(|| slots(dice, 60));
        let plain_bytes = slots.map_or(256, |s| s.count()) * PAGE;
        let mut id = id(dice);
        id.0[31] = 1;
        let entries = vec![Entry { id, kind: BlobType::Segment, plain_bytes }];
        let stored_bytes = plain_bytes / 2 + 16;
        return FrameInfo { stored_bytes, plain_bytes, encoding: Encoding::Segment, entries, bases: vec![], slots };
    }
    let blob_kind = if kind == Kind::DataPack { BlobType::Chunk } else { BlobType::Tree };
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..=dice.roll(5) {
        let mut id = id(dice);
        id.0[31] = if kind == Kind::DataPack { 2 } else { 3 };
        // A blob has one length, whatever pack it lies in.
        let plain_bytes = u32::from(id.0[3]) * 300;
        entries.push(Entry { id, kind: blob_kind, plain_bytes });
    }
    let plain_bytes = entries.iter().map(|e| e.plain_bytes).sum();
    FrameInfo {
        stored_bytes: plain_bytes / 2 + 16,
        plain_bytes,
        encoding: Encoding::Zstd,
        entries,
        bases: vec![],
        slots: None,
    }
}

fn pack(dice: &mut Dice, number: usize) -> PackInfo {
    let kind = if dice.chance(70) { Kind::DataPack } else { Kind::MetadataPack };
    let frames: Vec<_> = (0..=dice.roll(4)).map(|_| frame(dice, kind, 60)).collect();
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    let file_bytes = 600 + frames.iter().map(|f| u64::from(f.stored_bytes)).sum::<u64>();
    PackInfo { id: PackId(id), header: Header::fresh(kind, 528).unwrap(), file_bytes, frames }
}

fn stage(dice: &mut Dice) -> Stage {
    let mut index = BlobIndex::default();
    (0..5 + dice.roll(40)).for_each(|number| index.add_pack(&pack(dice, number)));
    let some = |dice: &mut Dice, percent| -> HashSet<PackId> {
        index.packs().iter().map(|p| p.id).filter(|_| dice.chance(percent)).collect()
    };
    let (unsound, young) = (some(dice, 3), some(dice, 10));
    let condemned: Vec<PackId> = some(dice, 15).into_iter().collect();
    let needed: HashSet<BlobId> = index.iter().map(|(id, _)| *id).collect();
    let percent = [5, 50, 90][dice.roll(3)];
    let needed: Vec<_> = needed.into_iter().filter(|_| dice.chance(percent)).collect();
    let mut needs = Needs::of(&index, needed.iter().copied());
    for id in needed.iter().filter(|id| id.0[31] == 1) {
        // Of what is there, so that it can be had; else of which all is needed it may be nowhere.
        let mut there = SlotSet::default();
        index.places(id).for_each(|p| there.add(index.slots(p).unwrap_or(&SlotSet::ALL)));
        let whole = index.places(id).any(|p| index.slots(p).is_none());
        if !whole || dice.chance(60) {
            let wanted = slots(dice, 30).common(&there);
            needs.only_slots(&index, id, if wanted.is_empty() { there } else { wanted }, PAGE);
        }
    }
    index.condemn(condemned.iter().copied());
    let record = Condemned { time: clock::now(), packs: condemned, sessions: vec![] };
    let records = vec![Condemnation { path: "live/x".into(), modified: clock::now(), record }];
    Stage { index, needs, unsound, young, records }
}

impl Stage {
    fn pack_of(&self, place: Place) -> PackId {
        self.index.packs()[place.pack as usize].id
    }

    fn sound(&self, place: Place) -> bool {
        !self.unsound.contains(&self.pack_of(place))
    }

    fn all_met(&self, only: impl Fn(Place) -> bool) -> bool {
        self.needs.iter().all(|at| self.needs.are_met_at(&self.index, at, &only))
    }
}

#[test]
fn what_is_needed_is_not_deleted() {
    let (mut refused, mut deleted, mut reinstated) = (0, 0, 0);
    for seed in 0..400 {
        let stage = stage(&mut Dice::new(seed));
        let records: Vec<_> = stage.records.iter().collect();
        let Ok(Deletion { packs, reinstated: back, .. }) =
            deletion(&stage.index, &records, &stage.unsound, &stage.needs)
        else {
            assert!(!stage.all_met(|p| stage.sound(p)), "seed {seed}");
            refused += 1;
            continue;
        };
        assert!(stage.all_met(|p| stage.sound(p) && !packs.contains(&stage.pack_of(p))), "seed {seed}");
        let candidates: HashSet<_> = stage.records[0].record.packs.iter().copied().collect();
        assert!(packs.is_disjoint(&back) && packs.union(&back).copied().collect::<HashSet<_>>() == candidates);
        // None comes back for nothing.
        for pack in &back {
            let without = |p| stage.sound(p) && !packs.contains(&stage.pack_of(p)) && stage.pack_of(p) != *pack;
            assert!(back.len() > 1 || !stage.all_met(without), "seed {seed}");
        }
        deleted += packs.len();
        reinstated += back.len();
    }
    assert!(refused > 20 && deleted > 100 && reinstated > 100, "{refused} {deleted} {reinstated}");
}

#[test]
fn what_is_needed_stays_within_the_limits() {
    let (mut refused, mut repacked, mut stopped) = (0, 0, 0);
    for seed in 0..600 {
        let mut dice = Dice::new(seed);
        let stage = stage(&mut dice);
        let max_unused = match dice.roll(3) {
            0 => Limit::Bytes(dice.roll(400_000) as u64),
            1 => Limit::Percent(dice.roll(101) as f64),
            _ => Limit::Bytes(0),
        };
        let max_repack = dice.chance(50).then(|| dice.roll(600_000) as u64);
        let reinstated: HashSet<_> =
            stage.records[0].record.packs.iter().copied().filter(|_| dice.chance(30)).collect();
        let inputs = Inputs {
            index: &stage.index,
            needs: &stage.needs,
            unsound: &stage.unsound,
            young: &stage.young,
            reinstated: &reinstated,
            max_unused,
            max_repack,
            flatten: &Flatten::default(),
        };
        match reclaim(&inputs) {
            Ok(plan) => {
                check(seed, &stage, &inputs, &plan);
                repacked += plan.repack.len();
                stopped += usize::from(plan.over_budget);
            }
            Err(e) => {
                assert!(matches!(e, Error::Corrupt { .. } | Error::Missing { .. }));
                assert!(!stage.all_met(|p| stage.sound(p)), "seed {seed}");
                refused += 1;
            }
        }
    }
    assert!(refused > 30 && repacked > 300 && stopped > 50, "{refused} {repacked} {stopped}");
}

fn check(seed: u64, stage: &Stage, inputs: &Inputs<'_>, plan: &Reclaim) {
    let condemned: HashSet<_> = plan.unused.iter().chain(&plan.repack).copied().collect();
    assert_eq!(condemned.len(), plan.unused.len() + plan.repack.len());
    assert!(condemned.is_disjoint(inputs.young), "seed {seed}: what is young is left alone");
    let before = |id: &PackId| stage.index.is_condemned(id) && !inputs.reinstated.contains(id);
    assert!(!condemned.iter().any(before), "seed {seed}: nothing is condemned twice");
    // Whatever is needed lies in packs that stay, or is copied, or has been condemned all along.
    for position in stage.needs.iter() {
        let id = stage.index.id_at(position).unwrap();
        let stays = |p: &Place| stage.sound(*p) && !condemned.contains(&stage.pack_of(*p));
        let there = stage.index.places(&id).filter(stays).map(|p| stage.index.slots(p).copied());
        let copied = plan.copies.iter().filter(|piece| piece.id == id).map(|piece| {
            assert!(stage.sound(piece.place), "seed {seed}: nothing is copied out of a bad pack");
            let slots = piece.slots.as_deref().copied().unwrap_or(SlotSet::ALL);
            Some(slots.common(stage.index.slots(piece.place).unwrap_or(&SlotSet::ALL)))
        });
        assert!(stage.needs.are_met(position, there.chain(copied)), "seed {seed}: {id}");
    }
    let repack: HashSet<_> = plan.repack.iter().copied().collect();
    assert!(plan.copies.iter().all(|piece| repack.contains(&stage.pack_of(piece.place))), "seed {seed}");
    assert!(plan.copies.is_sorted_by_key(|piece| piece.place));
    assert!(inputs.max_repack.is_none_or(|max| plan.repack_bytes <= max), "seed {seed}: the budget holds");
    let [data, metadata] = plan.shares;
    assert_eq!(data.unused_kept_bytes + metadata.unused_kept_bytes, plan.unused_kept_bytes);
    assert_eq!(data.repack.bytes + metadata.repack.bytes, plan.repack_bytes);
    // What stays is bounded, in bytes or as a share of what remains, unless the budget stops it.
    let young: u64 = data.young.bytes + metadata.young.bytes;
    let used = data.rewritten_bytes + metadata.rewritten_bytes + used_bytes(stage, inputs, plan) + young;
    let allowed = match inputs.max_unused {
        Limit::Bytes(bytes) => bytes,
        Limit::Percent(percent) => ((used + plan.unused_kept_bytes) as f64 * percent / 100.0) as u64 + 1,
    };
    assert!(
        plan.over_budget || plan.unused_kept_bytes <= allowed,
        "seed {seed}: {} > {allowed}",
        plan.unused_kept_bytes
    );
    if inputs.max_repack.is_none() {
        assert!(!plan.over_budget);
    }
}

/// What is used in packs that are partly used and stay.
fn used_bytes(stage: &Stage, inputs: &Inputs<'_>, plan: &Reclaim) -> u64 {
    let gone: HashSet<_> = plan.unused.iter().chain(&plan.repack).chain(inputs.young).copied().collect();
    let condemned = |id: &PackId| stage.index.is_condemned(id) && !inputs.reinstated.contains(id);
    let stays = stage.index.packs().iter().filter(|p| !gone.contains(&p.id) && !condemned(&p.id));
    let stored: u64 = stays.flat_map(|p| &p.frames).map(|f| u64::from(f.stored_bytes())).sum();
    stored - plan.unused_kept_bytes
}
