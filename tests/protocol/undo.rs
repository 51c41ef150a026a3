//! Taking back a forgotten snapshot: `repo-format.md`, "Order of writes", undo-forget.

use crate::model::{self, Few, MAX, Mutation, Protocol, Role, State, blobs};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Start,
    LoadIndex,
    ListTombs,
    ListPacks,
    Alive,
    GetTomb,
    PutSnapshot,
    /// Is the tomb still there?
    LookForTomb,
    DeleteTomb,
    /// Is a prune running?
    LookForPrunes,
    /// Is all there that it needs?
    Doubt,
    Withdraw,
    End,
}

pub fn step(protocol: &Protocol, state: &mut State, own: usize, at: At) {
    let Role::Undo(snapshot) = protocol.roles[own] else { return };
    let needs = protocol.needs(snapshot);
    let bit: Few = 1 << snapshot;
    let is_whole = |state: &State| needs & !blobs(state.known[own].index & state.there()) == 0;
    let next = match at {
        At::Start => {
            state.announce(own);
            At::LoadIndex
        }
        At::LoadIndex => {
            state.known[own].index = state.index;
            At::ListTombs
        }
        At::ListTombs | At::GetTomb if state.tombs & bit == 0 => return state.end(own),
        At::ListTombs => At::ListPacks,
        At::ListPacks if !is_whole(state) => return state.end(own),
        At::ListPacks => At::Alive,
        At::Alive if !state.is_alive(own) => return state.end(own),
        At::Alive => At::GetTomb,
        At::GetTomb => At::PutSnapshot,
        At::PutSnapshot => {
            if state.tombs & bit == 0 && protocol.mutation != Mutation::NoTombLook {
                state.unsettled |= bit;
            }
            state.snapshots |= bit;
            if protocol.mutation == Mutation::NoTombLook { At::DeleteTomb } else { At::LookForTomb }
        }
        At::LookForTomb if state.tombs & bit != 0 => At::DeleteTomb,
        At::LookForTomb => At::LookForPrunes,
        At::DeleteTomb => {
            state.tombs &= !bit;
            At::End
        }
        At::LookForPrunes => {
            let is_running = (0..MAX).any(|p| state.sessions[p].is_some() && protocol.is_prune(p));
            if is_running { At::Withdraw } else { At::Doubt }
        }
        At::Doubt if is_whole(state) => {
            state.unsettled &= !bit;
            At::End
        }
        At::Doubt => At::Withdraw,
        At::Withdraw => {
            state.snapshots &= !bit;
            state.unsettled &= !bit;
            state.withdrawn = true;
            At::End
        }
        At::End => return state.end(own),
    };
    state.at[own] = model::At::Undo(next);
}
