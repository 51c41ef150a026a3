//! The store that all runs of a simulation share: one call at a time, in an order and with bad luck that a seed decides.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::backend::{Backend, Listed, Memory, Op, layout};
use crate::error::{Error, Result};
use crate::repo::testing::Dice;

/// Calls that a failure shows.
const LOG_LINES: usize = 400;
/// Seconds between two signs of life of a session.
const BEAT_SECS: i64 = 600;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// It does nothing, and fails.
    Lost,
    /// It is done, and fails.
    Unanswered,
    /// The process is killed before it.
    Killed,
    /// The process is killed after it.
    KilledAfter,
    /// Half of an object arrives, and the process is killed.
    Torn,
    /// A bit of what is read is another.
    Flipped,
    /// A listing shows what there was before the run's session was.
    Stale,
}

/// A run, as the store knows it.
#[derive(Default)]
struct Standing {
    /// Wakes its threads.
    wake: Arc<Condvar>,
    /// Its threads that wait for their turn.
    waiting: usize,
    has_ended: bool,
    is_killed: bool,
    /// It slept for so long that the format promises nothing if it has any more bad luck.
    is_spared: bool,
    /// How much bad luck it had.
    faults: u32,
    /// The name and contents of its session.
    session: Option<(String, Vec<u8>)>,
    beats: u32,
    last_beat: i64,
    /// What was going on before its session was there.
    before: Vec<Listed>,
}

struct State {
    dice: Dice,
    /// Of ten thousand calls, so many have bad luck.
    bad_luck: usize,
    turn: Option<usize>,
    /// Calls left in this turn.
    left: usize,
    runs: Vec<Standing>,
    log: VecDeque<String>,
    secs: i64,
}

/// The store.
pub(super) struct Shared {
    pub(super) memory: Arc<Memory>,
    state: Mutex<State>,
    /// Wakes whoever waits for a run.
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(memory: Arc<Memory>, seed: u64, bad_luck: usize) -> Arc<Self> {
        let dice = Dice::new(seed);
        let (runs, log) = (Vec::new(), VecDeque::new());
        let state = State { dice, bad_luck, turn: None, left: 0, runs, log, secs: 0 };
        Arc::new(Self { memory, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A new run's number.
    pub(super) fn add_run(&self) -> usize {
        let mut state = self.state();
        state.runs.push(Standing::default());
        state.runs.len() - 1
    }

    /// Notes something that isn't a call.
    pub(super) fn note(&self, text: String) {
        self.state().note(text);
    }

    /// What happened last.
    pub(super) fn story(&self) -> String {
        self.state().log.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Lets a run make so many calls, and waits until it has, or has ended.
    pub(super) fn give_turn(&self, run: usize, calls: usize) {
        let mut state = self.state();
        (state.turn, state.left) = (Some(run), calls);
        state.runs[run].wake.notify_all();
        let is_over = |state: &State| {
            let standing = &state.runs[run];
            standing.has_ended || (state.left == 0 && standing.waiting > 0 && !standing.is_killed)
        };
        while !is_over(&state) {
            state = self.changed.wait(state).unwrap();
        }
        state.turn = None;
    }

    pub(super) fn has_ended(&self, run: usize) -> bool {
        self.state().runs[run].has_ended
    }

    pub(super) fn end(&self, run: usize) {
        self.state().runs[run].has_ended = true;
        self.changed.notify_all();
    }

    /// Kills a run, unless it is spared, and waits for its end.
    pub(super) fn kill(&self, run: usize) {
        let mut state = self.state();
        if state.runs[run].is_spared {
            return;
        }
        state.note(format!("run {run} is killed"));
        state.runs[run].is_killed = true;
        state.runs[run].faults += 1;
        state.runs[run].wake.notify_all();
        while !state.runs[run].has_ended {
            state = self.changed.wait(state).unwrap();
        }
    }

    pub(super) fn spare(&self, run: usize) {
        self.state().runs[run].is_spared = true;
    }

    pub(super) fn is_spared(&self, run: usize) -> bool {
        self.state().runs[run].is_spared
    }

    pub(super) fn faults(&self, run: usize) -> u32 {
        self.state().runs[run].faults
    }

    /// Time passes for the store.
    pub(super) fn wait(&self, secs: i64) {
        self.state().secs += secs;
        self.memory.advance(secs);
    }

    /// What a run's heart does that is awake.
    pub(super) fn beat(&self, run: usize) {
        let mut state = self.state();
        let secs = state.secs;
        let standing = &mut state.runs[run];
        if standing.is_killed || secs - standing.last_beat < BEAT_SECS {
            return;
        }
        standing.last_beat = secs;
        standing.beats += 1;
        if let Some((name, bytes)) = &standing.session {
            self.memory.put(&layout::session(name, &standing.beats.to_string()), bytes.clone()).unwrap();
        }
    }

    /// Makes a call when it is the run's turn; `half` is what a torn put leaves of it. With what it returns comes
    /// whether a bit of it is to be another.
    fn call<T>(
        &self,
        run: usize,
        (op, path, half): (Op, &str, &[u8]),
        act: impl FnOnce(&Memory) -> Result<T>,
    ) -> Result<(T, Fate)> {
        let mut state = self.state();
        let may_go = |state: &State| state.runs[run].is_killed || (state.turn == Some(run) && state.left > 0);
        while !may_go(&state) {
            state.runs[run].waiting += 1;
            self.changed.notify_all();
            let wake = state.runs[run].wake.clone();
            state = wake.wait(state).unwrap();
            state.runs[run].waiting -= 1;
        }
        let failed = |why: &str| {
            let action = if matches!(op, Op::Put | Op::Delete) { "write" } else { "read" };
            Err(Error::Storage { action, object: path.into(), why: why.into(), full: false })
        };
        if state.runs[run].is_killed {
            return failed("the process is dead");
        }
        state.left -= 1;
        let pause = state.dice.roll(3) as i64;
        state.secs += pause;
        self.memory.advance(pause);
        let fate = state.fate(run, op, path);
        let secs = state.secs;
        state.note(format!("{secs:>8} s  run {run}  {op:?} {path}  {}", Fate::shown(fate)));
        let standing = &mut state.runs[run];
        standing.faults += u32::from(fate != Fate::Good);
        standing.is_killed |= matches!(fate, Fate::Killed | Fate::KilledAfter | Fate::Torn);
        if standing.is_killed {
            standing.wake.notify_all();
        }
        match fate {
            Fate::Lost => failed("it was lost"),
            Fate::Unanswered => act(&self.memory).and_then(|_| failed("the answer was lost")),
            Fate::Killed => failed("the process is dead"),
            Fate::KilledAfter => act(&self.memory).and_then(|_| failed("the process is dead")),
            Fate::Torn => self.memory.put(path, half.to_vec()).and_then(|()| failed("the process is dead")),
            Fate::Good | Fate::Flipped | Fate::Stale => act(&self.memory).map(|done| (done, fate)),
        }
    }

    /// Takes note of a session that is about to be announced.
    fn note_session(&self, run: usize, path: &str, bytes: &[u8]) {
        if let Some((name, layout::FIRST)) = layout::parse_session(path) {
            let before = self.memory.list(layout::LIVE).unwrap();
            let mut state = self.state();
            let secs = state.secs;
            let standing = &mut state.runs[run];
            (standing.session, standing.before) = (Some((name.to_owned(), bytes.to_vec())), before);
            standing.last_beat = secs;
        }
    }
}

impl Fate {
    fn shown(self) -> String {
        if self == Self::Good { String::new() } else { format!("{self:?}") }
    }
}

impl State {
    fn note(&mut self, text: String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(text);
    }

    fn fate(&mut self, run: usize, op: Op, path: &str) -> Fate {
        if self.runs[run].is_spared || self.dice.roll(10_000) >= self.bad_luck {
            return Fate::Good;
        }
        let all: &[Fate] = match op {
            // Half of a snapshot is damage, which is for somebody to look at.
            Op::Put if !path.starts_with(layout::SNAPSHOTS) && !path.starts_with(layout::TOMBS) => {
                &[Fate::Lost, Fate::Unanswered, Fate::Killed, Fate::KilledAfter, Fate::Torn]
            }
            Op::Put | Op::Delete => &[Fate::Lost, Fate::Unanswered, Fate::Killed, Fate::KilledAfter],
            Op::Get => &[Fate::Lost, Fate::Killed, Fate::Flipped],
            Op::List if path == layout::LIVE && self.runs[run].session.is_some() => {
                &[Fate::Lost, Fate::Killed, Fate::Stale, Fate::Stale]
            }
            Op::List => &[Fate::Lost, Fate::Killed],
        };
        all[self.dice.roll(all.len())]
    }
}

/// The store, as one run sees it.
pub(super) struct Seen {
    pub(super) shared: Arc<Shared>,
    pub(super) run: usize,
}

fn half(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() / 2].to_vec()
}

fn read((mut bytes, fate): (Vec<u8>, Fate)) -> Vec<u8> {
    let middle = bytes.len() / 2;
    if fate == Fate::Flipped && !bytes.is_empty() {
        bytes[middle] ^= 1;
    }
    bytes
}

impl Backend for Seen {
    fn describe(&self) -> String {
        "simulated".into()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let copy = bytes.clone();
        let act = |memory: &Memory| memory.put(path, bytes);
        self.shared.note_session(self.run, path, &copy);
        self.shared.call(self.run, (Op::Put, path, &half(&copy)), act).map(drop)
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        let copy = half(&bytes);
        self.shared.call(self.run, (Op::Put, path, &copy), |memory| memory.put_new(path, bytes)).map(|(new, _)| new)
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.shared.call(self.run, (Op::Get, path, &[]), |memory| memory.get(path, max_bytes)).map(read)
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.shared.call(self.run, (Op::Get, path, &[]), |memory| memory.get_range(path, offset, len)).map(read)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let (listed, fate) = self.shared.call(self.run, (Op::List, folder, &[]), |memory| memory.list(folder))?;
        Ok(if fate == Fate::Stale { self.shared.state().runs[self.run].before.clone() } else { listed })
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            let one = std::slice::from_ref(path);
            self.shared.call(self.run, (Op::Delete, path, &[]), |memory| memory.delete(one))?;
        }
        Ok(())
    }
}
