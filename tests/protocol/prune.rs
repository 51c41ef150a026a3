//! Pruning: `repo-format.md`, "Order of deletes".

use crate::model::{self, Few, Known, MAX, Mutation, Packs, Protocol, Record, Role, State, blobs, holding, numbers};
use crate::writer::reap;

/// How often it plans again when snapshots come and go.
const ATTEMPTS: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Start,
    /// Looks for others, and gives way to another prune.
    Look,
    Reap,
    ListPacks,
    ListLive,
    ListSnapshots,
    LoadIndex,
    /// Looks for its session.
    Alive,
    ListTombs,
    DeleteTombs,
    /// Did snapshots come or go?
    ListSnapshotsAgain,
    ListTombsAgain,
    AliveAgain,
    RewriteIndex,
    AliveBeforeDeleting,
    DeletePack,
    DeleteRecords,
    /// Which snapshots are there whose tombs went?
    FindRevenants,
    DeleteRevenants,
    Bury,
    DeleteBuried,
    PutCopy,
    IndexCopies,
    /// Who is running?
    LookBeforeCondemning,
    Condemn,
    End,
}

pub fn step(protocol: &Protocol, state: &mut State, own: usize, at: At) {
    let Role::Prune { forgets, .. } = protocol.roles[own] else { return };
    let mutation = protocol.mutation;
    let known = state.known[own];
    let forgotten: Few = forgets.map_or(0, |s| 1 << s) & known.snapshots;
    let next = match at {
        At::Start => {
            state.announce(own);
            At::Look
        }
        At::Look => {
            let living = protocol.living(state, own);
            if numbers(living.into()).any(|other| protocol.is_prune(other as usize)) {
                return state.end(own);
            }
            state.known[own].live = protocol.dead(state, own);
            if state.known[own].live == 0 { At::ListPacks } else { At::Reap }
        }
        At::Reap => {
            reap(state, known.live);
            At::ListPacks
        }
        At::ListPacks => {
            state.known[own] = Known { listed: state.there(), attempts: known.attempts + 1, ..Known::default() };
            At::ListLive
        }
        At::ListLive => {
            list_live(protocol, state, own);
            At::ListSnapshots
        }
        At::ListSnapshots => {
            state.known[own].snapshots = state.snapshots;
            At::LoadIndex
        }
        At::LoadIndex => {
            load_index(state, own);
            plan(protocol, state, own);
            At::Alive
        }
        At::Alive | At::AliveAgain | At::AliveBeforeDeleting if !state.is_alive(own) => return state.end(own),
        At::Alive if known.packs == 0 => At::RewriteIndex,
        At::Alive if mutation == Mutation::TombsLast => At::ListSnapshotsAgain,
        At::Alive => At::ListTombs,
        At::ListTombs => {
            list_tombs(protocol, state, own);
            At::DeleteTombs
        }
        At::DeleteTombs => {
            state.tombs &= !(known.tombs & !known.kept);
            if mutation == Mutation::TombsLast { At::AliveAgain } else { At::ListSnapshotsAgain }
        }
        At::ListSnapshotsAgain if state.snapshots != known.snapshots => return outdated(state, own),
        At::ListSnapshotsAgain if mutation == Mutation::TombsLast => At::ListTombs,
        At::ListSnapshotsAgain => At::ListTombsAgain,
        At::ListTombsAgain if state.tombs & !known.kept != 0 => return outdated(state, own),
        At::ListTombsAgain => At::AliveAgain,
        At::AliveAgain if mutation == Mutation::RecordsFirst => At::DeleteRecords,
        At::AliveAgain => At::RewriteIndex,
        At::RewriteIndex => {
            state.index |= known.index & known.listed;
            state.index &= !known.packs;
            match (known.ripe, mutation) {
                (0, _) => At::Bury,
                (_, Mutation::RecordsFirst) => At::FindRevenants,
                _ => At::AliveBeforeDeleting,
            }
        }
        At::AliveBeforeDeleting if known.packs == 0 => At::DeleteRecords,
        At::AliveBeforeDeleting => At::DeletePack,
        At::DeletePack => delete_pack(state, own, mutation),
        At::DeleteRecords => {
            numbers(known.ripe.into()).for_each(|record| state.records[record as usize] = None);
            match mutation {
                Mutation::RecordsFirst if known.packs != 0 => At::DeletePack,
                Mutation::RecordsFirst => At::RewriteIndex,
                _ => At::FindRevenants,
            }
        }
        At::FindRevenants => {
            let gone = known.tombs & !known.kept & !known.snapshots;
            state.known[own].tombs = state.snapshots & gone;
            if state.known[own].tombs == 0 { At::Bury } else { At::DeleteRevenants }
        }
        At::DeleteRevenants => {
            state.snapshots &= !known.tombs;
            state.unsettled &= !known.tombs;
            At::Bury
        }
        At::Bury if forgotten & state.snapshots == 0 => copy(state, own),
        At::Bury => {
            state.tombs |= forgotten;
            At::DeleteBuried
        }
        At::DeleteBuried => {
            state.snapshots &= !forgotten;
            copy(state, own)
        }
        At::PutCopy => {
            if let Some(pack) = numbers(known.young).find(|pack| state.packs[*pack as usize].is_none()) {
                // Copied from packs that are there: it is an error otherwise.
                if holding(known.unused & state.there(), 1 << model::blob_of(pack)) == 0 {
                    return state.end(own);
                }
                state.put(pack);
            }
            let is_more = numbers(known.young).any(|pack| state.packs[pack as usize].is_none());
            if is_more { At::PutCopy } else { At::IndexCopies }
        }
        At::IndexCopies => {
            state.index |= known.young;
            if known.unused == 0 { At::End } else { At::LookBeforeCondemning }
        }
        At::LookBeforeCondemning if !state.is_alive(own) => return state.end(own),
        At::LookBeforeCondemning => {
            state.known[own].live = protocol.living(state, own);
            At::Condemn
        }
        At::Condemn => {
            let (written, day) = (state.now(), state.day);
            state.records[own] = Some(Record { packs: known.unused, sessions: known.live, written, day });
            At::End
        }
        At::End => return state.end(own),
    };
    state.at[own] = model::At::Prune(next);
}

fn list_live(protocol: &Protocol, state: &mut State, own: usize) {
    let live = protocol.living(state, own);
    let oldest = numbers(live.into()).filter_map(|s| state.sessions[s as usize]).map(|s| s.first).min();
    let is_young = |pack: &u8| state.packs[*pack as usize].zip(oldest).is_some_and(|(stored, oldest)| stored >= oldest);
    let young = numbers(state.known[own].listed).filter(is_young).fold(0, |set, pack| set | 1 << pack);
    let is_ripe = |record: &Record| {
        let blocks = |s: u8| {
            record.sessions >> s & 1 == 1 || state.sessions[s as usize].is_some_and(|s| s.first <= record.written)
        };
        let is_blocked = protocol.mutation != Mutation::NoWait && numbers(live.into()).any(blocks);
        (!protocol.grace || record.day < state.day) && !is_blocked
    };
    let all = |is: &dyn Fn(&Record) -> bool| {
        (0..MAX).filter(|r| state.records[*r].as_ref().is_some_and(is)).fold(0, |set, r| set | 1 << r)
    };
    let (records, ripe, condemned) = (all(&|_| true), all(&is_ripe), state.condemned());
    let known = &mut state.known[own];
    *known = Known { live, young, records, ripe, condemned, ..*known };
}

/// The index, and packs that it lacks.
fn load_index(state: &mut State, own: usize) {
    let there = state.there();
    let known = &mut state.known[own];
    known.index = state.index | there;
    if known.index & !known.listed != 0 {
        known.young |= there & !known.listed;
        known.listed |= there;
    }
}

/// Decides which packs go, and which are condemned.
fn plan(protocol: &Protocol, state: &mut State, own: usize) {
    let Role::Prune { forgets, repacks } = protocol.roles[own] else { return };
    let known = state.known[own];
    let sound = known.index & known.listed;
    let ripe = numbers(known.ripe.into()).filter_map(|r| state.records[r as usize]);
    let candidates = ripe.fold(0, |packs, record| packs | record.packs) & known.listed;
    let needed = protocol.needs_of(known.snapshots);
    let mut back: Packs = 0;
    for blob in numbers((needed & !blobs(sound & !candidates)).into()) {
        back |= numbers(holding(candidates, 1 << blob)).next().map_or(0, |pack| 1 << pack);
    }
    if protocol.mutation == Mutation::NoRecheck {
        back = 0;
    }
    state.reinstated |= back != 0;
    let kept = protocol.needs_of(known.snapshots & !forgets.map_or(0, |s| 1 << s));
    let usable = sound & (!known.condemned | back);
    let mut unused = 0;
    let mut copied = 0;
    for blob in 0..2 {
        let holding = holding(usable, 1 << blob);
        // A young pack is taken for the place that stays.
        let stays = numbers(holding).max_by_key(|p| (known.young >> p & 1, *p)).map_or(0, |pack| 1 << pack);
        let is_needed = kept >> blob & 1 == 1;
        unused |= if is_needed { holding & !stays } else { holding } & !known.young;
        if is_needed && repacks && stays & !known.young != 0 {
            unused |= stays;
            copied |= state.new_pack(own, blob, copied).map_or(0, |pack| 1 << pack);
        }
    }
    let known = &mut state.known[own];
    known.packs = candidates & !back;
    known.unused = unused;
    // From here on, what is to be stored.
    known.young = copied;
}

fn list_tombs(protocol: &Protocol, state: &mut State, own: usize) {
    let known = state.known[own];
    let stays = known.index & known.listed & !known.packs;
    let kept = numbers(state.tombs.into()).filter(|tomb| protocol.needs(*tomb) & !blobs(stays) == 0);
    let kept = kept.fold(0, |set, tomb| set | 1 << tomb);
    state.known[own].tombs = state.tombs;
    state.known[own].kept = kept;
}

fn outdated(state: &mut State, own: usize) {
    if state.known[own].attempts >= ATTEMPTS {
        return state.end(own);
    }
    state.at[own] = model::At::Prune(At::ListPacks);
}

fn delete_pack(state: &mut State, own: usize, mutation: Mutation) -> At {
    let left = state.known[own].packs & state.there();
    if let Some(pack) = numbers(left).next() {
        state.packs[pack as usize] = None;
        state.deleted = true;
    }
    match (left.count_ones(), mutation) {
        (2.., _) => At::DeletePack,
        (_, Mutation::RecordsFirst) => At::RewriteIndex,
        _ => At::DeleteRecords,
    }
}

fn copy(state: &State, own: usize) -> At {
    let known = state.known[own];
    match (known.young, known.unused) {
        (0, 0) => At::End,
        (0, _) => At::LookBeforeCondemning,
        _ => At::PutCopy,
    }
}
