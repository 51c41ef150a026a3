//! Taking a snapshot: `repo-format.md`, "Order of writes".

use crate::model::{self, Few, Known, Mutation, Packs, Protocol, Role, State, blobs, holding, numbers};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Start,
    /// Lists what is live.
    Look,
    LoadIndex,
    /// Opens the packs that no index describes, of a dead session.
    Adopt,
    /// Stores an index of them.
    IndexAdopted,
    Reap,
    PutPack,
    PutIndex,
    /// Looks again: is its session there, what is condemned?
    Secure,
    PutCopy,
    IndexCopies,
    Commit,
    LookAfter,
    PutCopyAfter,
    IndexCopiesAfter,
    /// Its session was gone: is all there that it needs?
    Doubt,
    Withdraw,
    End,
}

pub fn step(protocol: &Protocol, state: &mut State, own: usize, at: At) {
    let Role::Write(needs) = protocol.roles[own] else { return };
    let mutation = protocol.mutation;
    let snapshot: Few = 1 << (own + 2);
    let next = match at {
        At::Start => {
            state.announce(own);
            if mutation == Mutation::IndexFirst { At::LoadIndex } else { At::Look }
        }
        At::Look => {
            state.known[own].condemned = state.condemned();
            state.known[own].live = protocol.dead(state, own);
            if mutation == Mutation::IndexFirst { begin(state, own, needs) } else { At::LoadIndex }
        }
        At::LoadIndex => {
            state.known[own].index = state.index;
            match mutation {
                Mutation::IndexFirst => At::Look,
                _ if state.known[own].live != 0 => At::Adopt,
                _ => begin(state, own, needs),
            }
        }
        At::Adopt => {
            let known = &state.known[own];
            state.known[own].packs = state.there() & !known.index & !known.condemned;
            At::IndexAdopted
        }
        At::IndexAdopted => {
            let adopted = state.known[own].packs;
            state.index |= adopted;
            state.known[own].index |= adopted;
            At::Reap
        }
        At::Reap => {
            reap(state, state.known[own].live);
            state.known[own].live = 0;
            begin(state, own, needs)
        }
        At::PutPack => put(state, own, At::PutPack, At::PutIndex),
        At::PutIndex => index_own(state, own, At::Secure),
        At::Secure => {
            if !state.is_alive(own) && mutation != Mutation::NoLook {
                return state.end(own);
            }
            match rescue(state, own, needs) {
                None => return state.end(own),
                Some(0) => At::Commit,
                Some(_) => At::PutCopy,
            }
        }
        At::PutCopy => put(state, own, At::PutCopy, At::IndexCopies),
        At::IndexCopies => index_own(state, own, At::Secure),
        At::Commit => {
            state.snapshots |= snapshot;
            if state.is_alive(own) { At::LookAfter } else { unsettle(state, snapshot, mutation) }
        }
        At::LookAfter => {
            let is_alive = state.is_alive(own) || matches!(mutation, Mutation::NoLook | Mutation::NoSecondLook);
            match rescue(state, own, needs) {
                None if is_alive => At::End,
                None => At::Withdraw,
                Some(copies) if copies != 0 => At::PutCopyAfter,
                Some(_) if is_alive => At::End,
                Some(_) => doubt(protocol, state, own),
            }
        }
        At::PutCopyAfter => put(state, own, At::PutCopyAfter, At::IndexCopiesAfter),
        At::IndexCopiesAfter => {
            let is_alive = state.unsettled & snapshot == 0;
            index_own(state, own, if is_alive { At::End } else { At::Doubt })
        }
        At::Doubt => {
            let known = state.known[own];
            let is_whole = needs & !blobs(known.index & state.there()) == 0;
            if is_whole && known.live == 0 {
                state.unsettled &= !snapshot;
                At::End
            } else {
                At::Withdraw
            }
        }
        At::Withdraw => {
            state.snapshots &= !snapshot;
            state.unsettled &= !snapshot;
            state.withdrawn = true;
            At::End
        }
        At::End => return state.end(own),
    };
    state.at[own] = model::At::Write(next);
}

fn unsettle(state: &mut State, snapshot: Few, mutation: Mutation) -> At {
    // Whoever never looks again does not settle anything.
    if !matches!(mutation, Mutation::NoLook | Mutation::NoSecondLook) {
        state.unsettled |= snapshot;
    }
    At::LookAfter
}

fn doubt(protocol: &Protocol, state: &mut State, own: usize) -> At {
    let running = (0..model::MAX).filter(|p| *p != own && state.sessions[*p].is_some() && protocol.is_prune(*p));
    let running = running.fold(0, |set, p| set | 1 << p);
    state.known[own].live = running;
    At::Doubt
}

/// Chooses what to rely on, and what to store.
fn begin(state: &mut State, own: usize, needs: Few) -> At {
    let Known { index, condemned, .. } = state.known[own];
    let missing = needs & !blobs(index & !condemned);
    state.known[own].packs = new_packs(state, own, missing);
    if missing == 0 { At::Secure } else { At::PutPack }
}

fn new_packs(state: &State, own: usize, missing: Few) -> Packs {
    numbers(missing.into()).fold(0, |packs, blob| packs | state.new_pack(own, blob, packs).map_or(0, |p| 1 << p))
}

/// Stores the next pack.
fn put(state: &mut State, own: usize, again: At, then: At) -> At {
    let packs = state.known[own].packs;
    let left = numbers(packs).find(|pack| state.packs[*pack as usize].is_none());
    if let Some(pack) = left {
        state.put(pack);
    }
    let is_more = numbers(packs).any(|pack| state.packs[pack as usize].is_none());
    if is_more { again } else { then }
}

fn index_own(state: &mut State, own: usize, then: At) -> At {
    let packs = state.known[own].packs;
    state.index |= packs;
    state.known[own].index |= packs;
    state.known[own].packs = 0;
    then
}

/// Which packs to store for what condemned packs alone hold since the index was loaded; `None` if one of them is gone.
fn rescue(state: &mut State, own: usize, needs: Few) -> Option<Packs> {
    let known = state.known[own];
    let news = state.condemned() & known.index & !known.condemned;
    if news == 0 {
        return Some(0);
    }
    let condemned = known.condemned | news;
    state.known[own].condemned = condemned;
    let lost = needs & !blobs(known.index & !condemned);
    if lost & !blobs(holding(news, lost) & state.there()) != 0 {
        return None;
    }
    let packs = new_packs(state, own, lost);
    state.known[own].packs = packs;
    state.rescued |= packs != 0;
    Some(packs)
}

/// Clears dead sessions away.
pub fn reap(state: &mut State, dead: Few) {
    numbers(dead.into()).for_each(|session| state.sessions[session as usize] = None);
}
