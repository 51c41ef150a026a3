//! Machines that share one repository, with all the bad luck there is: a seed decides who runs, who has the next call to
//! the store, what becomes of it, how much time passes, who sleeps for days and who is killed. The machines' clocks are
//! wrong by days, and two machines have the same name.
//!
//! Each snapshot that a run said it made restores, byte for byte, unless somebody forgot it; what a restore brings in the
//! middle is right, or it fails; and some prunes later nothing is left of all the killed runs. What the format does not
//! promise is left out: a machine that slept for more than a day has no more bad luck (`repo-format.md` §21), and
//! listings are late only as far as a run can see it, by its own session.
//!
//! A seed does not fix everything: names and nonces are random, and the threads of one run are not held in step. So a
//! seed that failed is run several times. `CONTRIBUTING.md` says how to run others.

mod runs;
mod store;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::job::repair;
use crate::repo::testing::Dice;
use runs::{Computer, Files, Known, Process, Task, World, names};
use store::Shared;

/// Seeds that `./test` runs.
const SEEDS: u64 = 60;
const SEEDS_AT_ONCE: usize = 8;
/// Runs at a time, at most.
const AT_ONCE: usize = 4;
/// What files may hold: so few that what nobody needs any more comes back.
const CONTENTS: usize = 16;
const HOUR: i64 = 3600;

struct Simulation {
    dice: Dice,
    world: Arc<World>,
    computers: Vec<Computer>,
    _folder: tempfile::TempDir,
}

/// A run that has not ended.
struct Active {
    process: Arc<Process>,
    computer: usize,
    thread: JoinHandle<()>,
    /// Whether it is on a slow line: others run from beginning to end while it makes a few calls.
    is_slow: bool,
    /// It stands still until this step.
    sleeps_until: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let memory = Arc::new(Memory::at(clock::now()));
        drop(init(memory.clone()));
        let bad_luck = [0, 30, 100][dice.roll(3)];
        let computers = ["ant", "bee", "cow", "ant"].into_iter().enumerate().map(|(n, host)| Computer {
            host: host.into(),
            boot: 0,
            skew_secs: if dice.chance(50) { (dice.roll(145) as i64 - 72) * HOUR } else { 0 },
            source: folder.path().join(format!("source-{n}")),
            files: Files::new(),
            cache: dice.chance(40).then(|| folder.path().join(format!("cache-{n}"))),
        });
        let computers: Vec<_> = computers.collect();
        computers.iter().for_each(|computer| fs::create_dir(&computer.source).unwrap());
        let world = Arc::new(World {
            shared: Shared::new(memory, seed + 1_000_000, bad_luck),
            known: Mutex::default(),
            running: Arc::default(),
            folder: folder.path().to_path_buf(),
        });
        Self { dice, world, computers, _folder: folder }
    }

    /// Changes some files of a machine. What all machines write is much the same, so that they share it.
    fn change(&mut self, computer: usize) {
        let Computer { source, files, .. } = &mut self.computers[computer];
        for _ in 0..=self.dice.roll(4) {
            let (name, content) = (format!("file-{}", self.dice.roll(3)), self.dice.roll(CONTENTS));
            let path = source.join(&name);
            if self.dice.chance(10) {
                files.remove(&name);
                let _ = fs::remove_file(path);
            } else {
                // Each has another length: the clocks are wrong, and with them what looks unchanged.
                let bytes = noise(content as u64, 3000 + content * 100);
                fs::write(path, &bytes).unwrap();
                files.insert(name, bytes);
            }
        }
    }

    fn task(&mut self) -> Task {
        let forgotten = self.dice.chance(50);
        let known = self.world.known.lock().unwrap();
        let some: Vec<_> = known.iter().filter(|known| known.is_forgotten == forgotten).map(|known| known.id).collect();
        let one = some.get(self.dice.roll(some.len())).copied();
        match (self.dice.roll(100), one) {
            (0..36, _) => Task::Prune {
                keep: self.dice.chance(60).then(|| 1 + self.dice.roll(2) as u32),
                grace_secs: if self.dice.chance(30) { 24 * HOUR } else { 0 },
                instant: self.dice.chance(10),
            },
            (36..40, _) => Task::RepairIndex,
            (40..52, Some(id)) if forgotten => Task::UndoForget(id),
            (40..45, Some(id)) => Task::Forget(id),
            (45..52, Some(id)) => Task::Restore(id),
            _ => Task::Create,
        }
    }

    /// Begins a run, unless it is one that can't begin now.
    fn begin(&mut self, active: &mut Vec<Active>) -> bool {
        let computer = self.dice.roll(self.computers.len());
        let task = self.task();
        let creates = |active: &Active| active.computer == computer && matches!(active.process.task, Task::Create);
        if matches!(task, Task::Create) {
            // Its files must stay as they are.
            if active.iter().any(creates) {
                return false;
            }
            self.change(computer);
        }
        let (world, process) = (self.world.clone(), Arc::new(self.world.begin(&self.computers[computer], task)));
        let unsettle = |process: &Process| process.is_unsettled.store(true, Ordering::SeqCst);
        if active.iter().any(|other| other.process.task.takes_away()) {
            unsettle(&process);
        }
        if task.takes_away() {
            active.iter().for_each(|other| unsettle(&other.process));
        }
        let own = process.clone();
        let thread = std::thread::spawn(move || world.run(&own));
        let is_slow = self.dice.chance(if matches!(task, Task::Create | Task::UndoForget(_)) { 50 } else { 15 });
        active.push(Active { process, computer, thread, is_slow, sleeps_until: 0 });
        true
    }

    /// Something happens between two calls.
    fn happen(&mut self, active: &mut [Active], step: usize) {
        let shared = self.world.shared.clone();
        let one = self.dice.roll(active.len());
        match self.dice.roll(100) {
            0..12 => shared.wait(self.dice.roll(3 * HOUR as usize) as i64),
            12..16 => {
                // Whoever sleeps now is taken for dead.
                let sleeping = active.iter().filter(|active| active.sleeps_until > step);
                sleeping.for_each(|active| shared.spare(active.process.run));
                shared.note("days pass".into());
                shared.wait(25 * HOUR + self.dice.roll(48 * HOUR as usize) as i64);
            }
            16..20 if !active.is_empty() && !shared.is_spared(active[one].process.run) => {
                shared.note(format!("run {} falls asleep", active[one].process.run));
                active[one].sleeps_until = step + 1 + self.dice.roll(40);
            }
            20 if !active.is_empty() && self.dice.chance(30) => shared.kill(active[one].process.run),
            21 => {
                let computer = self.dice.roll(self.computers.len());
                let on_it = |active: &&Active| active.computer == computer;
                // A machine that starts again has no process left.
                if active.iter().filter(on_it).all(|active| !shared.is_spared(active.process.run)) {
                    shared.note(format!("{} starts again", self.computers[computer].host));
                    active.iter().filter(on_it).for_each(|active| shared.kill(active.process.run));
                    self.computers[computer].boot += 1;
                }
            }
            _ => {}
        }
        let awake = active.iter().filter(|active| active.sleeps_until <= step);
        awake.for_each(|active| shared.beat(active.process.run));
    }

    fn play(&mut self) {
        let mut active: Vec<Active> = Vec::new();
        let mut tasks = 12 + self.dice.roll(16);
        for step in 0.. {
            if tasks > 0 && active.len() < AT_ONCE && (active.is_empty() || self.dice.chance(40)) {
                tasks -= usize::from(self.begin(&mut active));
            }
            if active.is_empty() {
                if tasks == 0 {
                    return;
                }
                continue;
            }
            let mut awake: Vec<_> = active.iter().filter(|active| active.sleeps_until <= step).collect();
            if awake.iter().any(|active| !active.is_slow) && self.dice.chance(90) {
                awake.retain(|active| !active.is_slow);
            }
            if let Some(one) = awake.get(self.dice.roll(awake.len())) {
                let most = if one.is_slow { 3 } else { 1 << self.dice.roll(6) };
                self.world.shared.give_turn(one.process.run, 1 + self.dice.roll(most));
            }
            self.happen(&mut active, step);
            let has_ended = |active: &mut Active| self.world.shared.has_ended(active.process.run);
            for ended in active.extract_if(.., has_ended) {
                ended.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        }
    }

    /// Some days later, with good luck only: everything that was not forgotten is there, and nothing of what died.
    fn settle(&self) {
        let memory = &self.world.shared.memory;
        let repo = open(memory.clone()).unwrap();
        memory.advance(30 * HOUR);
        repair::repair_index(&repo, &Reporter::silent()).unwrap();
        // Half of a pack is set aside.
        repair::repair_packs(&repo, &Reporter::silent()).unwrap();
        for _ in 0..3 {
            memory.advance(30 * HOUR);
            prune(&open(memory.clone()).unwrap(), Policy::default(), false).unwrap();
        }
        assert_sound(&repo);
        let store: Arc<dyn Backend> = memory.clone();
        let left: Vec<_> = leftovers(&store).into_iter().filter(|l| !l.starts_with(layout::TOMBS)).collect();
        assert!(left.is_empty(), "{left:#?}");
        let there = repo.snapshot_names().unwrap();
        for Known { id, source, files, is_forgotten } in &*self.world.known.lock().unwrap() {
            if there.contains(&layout::snapshot(*id)) {
                let found = self.world.restore(&repo, *id, source).unwrap();
                assert!(found == *files, "snapshot {id} comes back with other {:?}", names(&found, files));
            } else {
                assert!(is_forgotten, "snapshot {id} is gone");
            }
        }
    }
}

fn simulate(seed: u64) {
    let mut simulation = Simulation::new(seed);
    let shared = simulation.world.shared.clone();
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        simulation.play();
        simulation.settle();
    }));
    if let Err(panic) = played {
        eprintln!("{}seed {seed} failed", shared.story());
        std::panic::resume_unwind(panic);
    }
}

/// Seeds of a range, some at a time.
fn simulate_all(seeds: Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        // They mostly sleep: one prune waits for another, and for a listing that is late.
        for _ in 0..SEEDS_AT_ONCE {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::SeqCst)).filter(|seed| *seed < seeds.end) {
                    simulate(seed);
                }
            });
        }
    });
}

#[test]
fn every_snapshot_outlives_all_bad_luck() {
    let seeds = std::env::var("SNAPSHOT_SIMULATION").ok().map(|range| {
        let (first, end) = range.split_once("..").expect("SNAPSHOT_SIMULATION=FIRST..END");
        first.parse().unwrap()..end.parse().unwrap()
    });
    simulate_all(seeds.unwrap_or(0..SEEDS));
}
