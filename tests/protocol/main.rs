//! The protocol by which many hosts share a repository, as a model of which every state is looked at.
//!
//! What must hold in each: every snapshot has a pack with each blob that it needs. Left out is what `repo-format.md`
//! says remains: a writer that slept for a day between its last look and its commit, and one that takes a forgotten
//! snapshot back, until each has looked once more.
//!
//! That the model can fail is shown by leaving parts of the protocol out: each time, something is lost.
//!
//! `SNAPSHOT_MODEL=large` looks at more processes, days and deaths, which takes minutes and some gigabytes.

mod model;
mod prune;
mod undo;
mod writer;

use model::{Mutation, Protocol, Role};
use stateright::{Checker, HasDiscoveries, Model};

const WHOLE: &str = "every snapshot is whole";
const FORGET_FIRST: Role = Role::Prune { forgets: Some(0), repacks: false };
const PRUNE: Role = Role::Prune { forgets: None, repacks: false };
const REPACK: Role = Role::Prune { forgets: None, repacks: true };
const A: u8 = 1;
const B: u8 = 2;

/// The first snapshot needs `a`, the second `b`.
fn protocol(roles: &[Role]) -> Protocol {
    Protocol {
        roles: roles.to_vec(),
        first: [A, B],
        forgotten: 0,
        condemned: 0,
        days: 1,
        deaths: 0,
        grace: true,
        one_machine: false,
        mutation: Mutation::None,
    }
}

fn is_large() -> bool {
    std::env::var("SNAPSHOT_MODEL").is_ok_and(|size| size == "large")
}

/// Looks at every state; `happens` are properties that some must have.
#[track_caller]
fn holds(protocol: Protocol, happens: &[&str]) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    checker.assert_no_discovery(WHOLE);
    for name in happens {
        let found: Vec<_> = checker.discoveries().into_keys().filter(|found| found.contains(name)).collect();
        assert_eq!(found.len(), 1, "never: {name}, in {} states", checker.unique_state_count());
    }
    println!("{} states", checker.unique_state_count());
}

/// Looks for a state in which something is lost.
#[track_caller]
fn fails(protocol: Protocol, mutation: Mutation) {
    let protocol = Protocol { mutation, ..protocol };
    let only = HasDiscoveries::AnyOf([WHOLE].into());
    let checker = protocol.checker().threads(2).finish_when(only).spawn_bfs().join();
    let path = checker.discovery(WHOLE).unwrap_or_else(|| panic!("{mutation:?} does no harm"));
    println!("{mutation:?}: {} states, {} steps", checker.unique_state_count(), path.into_vec().len() - 1);
}

/// A prune condemns what a writer needs again, and another deletes it, if it may.
fn writer_between_prunes() -> Protocol {
    protocol(&[Role::Write(A), FORGET_FIRST, PRUNE])
}

#[test]
fn a_writer_between_prunes() {
    holds(Protocol { days: 2, ..writer_between_prunes() }, &["deleted", "reinstated", "taken back", "copied"]);
}

#[test]
fn without_a_grace_period() {
    let deaths = if is_large() { 2 } else { 1 };
    holds(Protocol { grace: false, deaths, one_machine: true, ..writer_between_prunes() }, &["deleted"]);
}

#[test]
fn when_processes_die() {
    let (deaths, days) = if is_large() { (2, 2) } else { (1, 1) };
    holds(Protocol { deaths, days, ..writer_between_prunes() }, &["deleted", "reinstated"]);
}

#[test]
fn when_packs_are_copied() {
    let days = if is_large() { 2 } else { 1 };
    holds(Protocol { days, ..protocol(&[Role::Write(A | B), REPACK, PRUNE]) }, &["deleted", "copied"]);
}

#[test]
fn a_forgotten_snapshot_taken_back() {
    let forgotten = Protocol { forgotten: 1, condemned: 1, days: 2, ..protocol(&[Role::Undo(0), PRUNE]) };
    holds(Protocol { deaths: 1, ..forgotten }, &["deleted", "reinstated", "taken back"]);
}

#[test]
fn two_writers_and_two_prunes() {
    if is_large() {
        let roles = [Role::Write(A), Role::Write(A | B), FORGET_FIRST, PRUNE];
        holds(protocol(&roles), &["deleted", "reinstated"]);
    }
}

#[test]
fn nothing_may_be_left_out() {
    fails(writer_between_prunes(), Mutation::NoRecheck);
    fails(writer_between_prunes(), Mutation::NoLook);
    fails(writer_between_prunes(), Mutation::NoSecondLook);
    fails(Protocol { days: 2, ..writer_between_prunes() }, Mutation::BeatRevives);
    fails(writer_between_prunes(), Mutation::NoWait);
    fails(writer_between_prunes(), Mutation::IndexFirst);
    fails(writer_between_prunes(), Mutation::RecordsFirst);
    let taken_back = || Protocol { forgotten: 1, condemned: 1, days: 2, ..protocol(&[Role::Undo(0), PRUNE]) };
    fails(taken_back(), Mutation::TombsLast);
    fails(taken_back(), Mutation::NoTombLook);
}
