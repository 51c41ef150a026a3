//! The store, the processes, and what may happen next.
//!
//! Two blobs, `a` and `b`; a pack holds one of them, and a snapshot needs one or both. Each step of a process is one call
//! to the store, as `repo-format.md` orders them. Between any two steps anybody else may act, a process may die, and a
//! day may pass, over which each process sleeps or beats. A day is both the grace period and how long a silent session
//! counts. Of times within a day only the order matters.

use stateright::{Model, Property};

use crate::{prune, undo, writer};

/// Packs, by number. The first two are there from the beginning; each process has four of its own.
pub type Packs = u32;
/// Processes, snapshots or tombs, by number. A process has the session of its number.
pub type Few = u8;

/// Most processes.
pub const MAX: usize = 4;
/// As many packs.
pub const PACKS: u8 = 2 + 4 * MAX as u8;

/// What a pack holds: blob 0 or 1.
pub fn blob_of(pack: u8) -> u8 {
    if pack < 2 { pack } else { (pack - 2) / 2 % 2 }
}

pub fn numbers(set: u32) -> impl Iterator<Item = u8> {
    (0..32).filter(move |n| set >> n & 1 == 1)
}

/// The blobs that some packs hold.
pub fn blobs(packs: Packs) -> Few {
    numbers(packs).fold(0, |blobs, pack| blobs | 1 << blob_of(pack))
}

/// Of some packs, those that hold one of these blobs.
pub fn holding(packs: Packs, blobs: Few) -> Packs {
    numbers(packs).filter(|pack| blobs >> blob_of(*pack) & 1 == 1).fold(0, |packs, pack| packs | 1 << pack)
}

/// A running session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// When it was first seen, among all times.
    pub first: u8,
    /// The day on which it began: by that it judges who is dead, however long it runs.
    pub began: u8,
    /// The day of its last beat.
    pub beat: u8,
}

/// A record of condemned packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub packs: Packs,
    /// The sessions that were running.
    pub sessions: Few,
    pub written: u8,
    pub day: u8,
}

/// What a process knows, by the calls it made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Known {
    pub index: Packs,
    pub condemned: Packs,
    pub listed: Packs,
    pub young: Packs,
    /// Packs to put, or that go.
    pub packs: Packs,
    /// Packs to be condemned.
    pub unused: Packs,
    pub live: Few,
    pub snapshots: Few,
    pub tombs: Few,
    /// Tombs that stay.
    pub kept: Few,
    /// Records that are there, by their prunes.
    pub records: Few,
    pub ripe: Few,
    pub attempts: u8,
}

/// Where a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Write(writer::At),
    Prune(prune::At),
    Undo(undo::At),
    /// It ended, well or with an error.
    Ended,
    /// It died.
    Died,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub day: u8,
    /// When each pack was stored, if it is there.
    pub packs: [Option<u8>; PACKS as usize],
    /// The packs that index files describe.
    pub index: Packs,
    pub snapshots: Few,
    pub tombs: Few,
    /// Of each prune.
    pub records: [Option<Record>; MAX],
    pub sessions: [Option<Session>; MAX],
    pub at: [At; MAX],
    pub known: [Known; MAX],
    /// Packs that were ever stored.
    made: Packs,
    /// Snapshots that whoever stored them has to look at once more, and take back if it came too late.
    pub unsettled: Few,
    /// For properties: whether this happened.
    pub deleted: bool,
    pub reinstated: bool,
    pub withdrawn: bool,
    pub rescued: bool,
}

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Takes a snapshot that needs these blobs.
    Write(Few),
    /// Prunes, forgets one snapshot, and copies needed packs if it is to.
    Prune { forgets: Option<u8>, repacks: bool },
    /// Takes back a forgotten snapshot.
    Undo(u8),
}

/// What is left out of the protocol: for each, something must be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// A prune deletes ripe packs without asking again what is needed.
    NoRecheck,
    /// A prune does not wait for the sessions that were running when packs were condemned.
    NoWait,
    /// A writer commits without looking for its session, before or after.
    NoLook,
    /// A writer looks for its session before it commits, and never again.
    NoSecondLook,
    /// A heartbeat brings a reaped session back.
    BeatRevives,
    /// A writer reads the index before the records of condemned packs.
    IndexFirst,
    /// A prune deletes records before packs, and both before the index.
    RecordsFirst,
    /// A prune lists snapshots for the last time before it deletes tombs.
    TombsLast,
    /// An undone forget never looks for the tomb again.
    NoTombLook,
}

pub struct Protocol {
    pub roles: Vec<Role>,
    /// Blobs that each of the two first snapshots needs.
    pub first: [Few; 2],
    /// Which of them are forgotten at the beginning.
    pub forgotten: Few,
    /// Packs that were condemned long ago, by a prune that nobody remembers.
    pub condemned: Packs,
    pub days: u8,
    pub deaths: u8,
    /// Whether a prune waits for a day to pass.
    pub grace: bool,
    /// Whether all run on one machine, which knows at once who died.
    pub one_machine: bool,
    pub mutation: Mutation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Step(u8),
    Die(u8),
    /// A day passes; these processes are awake and beat.
    Day(Few),
}

impl State {
    pub fn there(&self) -> Packs {
        (0..PACKS).filter(|p| self.packs[*p as usize].is_some()).fold(0, |set, p| set | 1 << p)
    }

    /// A time after all times.
    pub fn now(&self) -> u8 {
        let packs = self.packs.iter().flatten().copied();
        let sessions = self.sessions.iter().flatten().map(|s| s.first);
        let records = self.records.iter().flatten().map(|r| r.written);
        packs.chain(sessions).chain(records).max().map_or(0, |last| last + 1)
    }

    /// Stores a pack.
    pub fn put(&mut self, pack: u8) {
        self.packs[pack as usize] = Some(self.now());
        self.made |= 1 << pack;
    }

    /// A pack that a process has not stored yet, for a blob.
    pub fn new_pack(&self, own: usize, blob: u8, but: Packs) -> Option<u8> {
        let first = 2 + 4 * own as u8 + 2 * blob;
        (first..first + 2).find(|pack| (self.made | but) >> pack & 1 == 0)
    }

    pub fn announce(&mut self, own: usize) {
        self.sessions[own] = Some(Session { first: self.now(), began: self.day, beat: self.day });
    }

    pub fn is_alive(&self, own: usize) -> bool {
        self.sessions[own].is_some()
    }

    /// All packs that records name.
    pub fn condemned(&self) -> Packs {
        self.records.iter().flatten().fold(0, |packs, record| packs | record.packs)
    }

    /// Ends a session and a process.
    pub fn end(&mut self, own: usize) {
        self.sessions[own] = None;
        self.at[own] = At::Ended;
        self.known[own] = Known::default();
    }

    /// Makes states equal that differ only in what times are called.
    fn rename_times(&mut self) {
        let mut times: Vec<u8> = self.packs.iter().flatten().copied().collect();
        times.extend(self.sessions.iter().flatten().map(|s| s.first));
        times.extend(self.records.iter().flatten().map(|r| r.written));
        times.sort_unstable();
        times.dedup();
        let rank = |time: &mut u8| *time = times.partition_point(|earlier| earlier < time) as u8;
        self.packs.iter_mut().flatten().for_each(rank);
        self.sessions.iter_mut().flatten().for_each(|s| rank(&mut s.first));
        self.records.iter_mut().flatten().for_each(|r| rank(&mut r.written));
    }
}

impl Protocol {
    /// The blobs that a snapshot needs.
    pub fn needs(&self, snapshot: u8) -> Few {
        match snapshot {
            0 | 1 => self.first[snapshot as usize],
            own => match self.roles[own as usize - 2] {
                Role::Write(blobs) => blobs,
                _ => 0,
            },
        }
    }

    pub fn needs_of(&self, snapshots: Few) -> Few {
        numbers(snapshots.into()).fold(0, |blobs, snapshot| blobs | self.needs(snapshot))
    }

    /// The other sessions that are dead, as this process can tell.
    pub fn dead(&self, state: &State, own: usize) -> Few {
        let today = state.sessions[own].map_or(0, |session| session.began);
        let is_dead = |other: &usize| {
            let known = self.one_machine && state.at[*other] == At::Died;
            state.sessions[*other].is_some_and(|s| known || s.beat < today)
        };
        (0..MAX).filter(|other| *other != own).filter(is_dead).fold(0, |set, other| set | 1 << other)
    }

    /// The other sessions that are not dead.
    pub fn living(&self, state: &State, own: usize) -> Few {
        let there = (0..MAX).filter(|s| *s != own && state.sessions[*s].is_some()).fold(0, |set, s| set | 1 << s);
        there & !self.dead(state, own)
    }

    pub fn is_prune(&self, process: usize) -> bool {
        matches!(self.roles.get(process), Some(Role::Prune { .. }))
    }

    fn is_running(state: &State, process: usize) -> bool {
        !matches!(state.at[process], At::Ended | At::Died)
    }

    /// Whether a snapshot has all that it needs.
    fn is_whole(&self, state: &State, snapshot: u8) -> bool {
        self.needs(snapshot) & !blobs(state.there()) == 0
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let at = |process: usize| match self.roles.get(process) {
            Some(Role::Write(_)) => At::Write(writer::At::Start),
            Some(Role::Prune { .. }) => At::Prune(prune::At::Start),
            Some(Role::Undo(_)) => At::Undo(undo::At::Start),
            None => At::Ended,
        };
        let mut state = State {
            day: 0,
            packs: [None; PACKS as usize],
            index: 0b11,
            snapshots: 0b11 & !self.forgotten,
            tombs: self.forgotten,
            records: [None; MAX],
            sessions: [None; MAX],
            at: std::array::from_fn(at),
            known: [Known::default(); MAX],
            made: 0b11,
            unsettled: 0,
            deleted: false,
            reinstated: false,
            withdrawn: false,
            rescued: false,
        };
        state.packs[..2].fill(Some(0));
        if self.condemned != 0 {
            // It lies in the place of the last process, which is none.
            state.records[MAX - 1] = Some(Record { packs: self.condemned, sessions: 0, written: 1, day: 0 });
            state.day = 1;
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let running: Few = (0..MAX).filter(|p| Self::is_running(state, *p)).fold(0, |set, p| set | 1 << p);
        for process in numbers(running.into()) {
            actions.push(Action::Step(process));
            let deaths = state.at.iter().filter(|at| **at == At::Died).count();
            // Before it began, a death changes nothing; one that is reaped may go on, which is worse.
            if deaths < self.deaths as usize && state.sessions[process as usize].is_some() {
                actions.push(Action::Die(process));
            }
        }
        if state.day < self.days && running != 0 {
            actions.extend((0..1 << MAX).filter(|awake| awake & !running == 0).map(Action::Day));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(process) => {
                let own = process as usize;
                match state.at[own] {
                    At::Write(at) => writer::step(self, &mut state, own, at),
                    At::Prune(at) => prune::step(self, &mut state, own, at),
                    At::Undo(at) => undo::step(self, &mut state, own, at),
                    At::Ended | At::Died => return None,
                }
            }
            Action::Die(process) => {
                state.at[process as usize] = At::Died;
                state.known[process as usize] = Known::default();
            }
            Action::Day(awake) => {
                state.day += 1;
                for process in numbers(awake.into()).map(usize::from) {
                    let has_begun = state.known[process] != Known::default();
                    match &mut state.sessions[process] {
                        Some(session) => session.beat = state.day,
                        None if self.mutation == Mutation::BeatRevives && has_begun => state.announce(process),
                        None => {}
                    }
                }
            }
        }
        state.rename_times();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every snapshot is whole", |protocol: &Self, state: &State| {
                numbers((state.snapshots & !state.unsettled).into()).all(|s| protocol.is_whole(state, s))
            }),
            Property::sometimes("packs are deleted", |_, state: &State| state.deleted),
            Property::sometimes("packs are reinstated", |_, state: &State| state.reinstated),
            Property::sometimes("a snapshot is taken back by its writer", |_, state: &State| state.withdrawn),
            Property::sometimes("blobs are copied out of condemned packs", |_, state: &State| state.rescued),
        ]
    }
}
