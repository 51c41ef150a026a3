//! What the machines of a simulation do.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::store::{Seen, Shared};
use super::*;
use crate::backend::Cached;
use crate::clock::skewed;
use crate::job::{forget, repair};
use crate::repo::machine::pretended::{self, Machine};

/// Names and contents of files.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// A machine.
pub(super) struct Computer {
    pub(super) host: String,
    pub(super) boot: u32,
    /// How far its clock is ahead, in seconds.
    pub(super) skew_secs: i64,
    pub(super) source: PathBuf,
    pub(super) files: Files,
    /// Where it keeps copies of what it read, if it does.
    pub(super) cache: Option<PathBuf>,
}

/// A snapshot that a run said it made.
pub(super) struct Known {
    pub(super) id: SnapshotId,
    pub(super) source: PathBuf,
    pub(super) files: Files,
    /// Whether somebody has forgotten it, or may have.
    pub(super) is_forgotten: bool,
}

/// What a run is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    Create,
    /// Keeps so many of each source; `None`: all.
    Prune {
        keep: Option<u32>,
        grace_secs: i64,
        instant: bool,
    },
    Forget(SnapshotId),
    UndoForget(SnapshotId),
    Restore(SnapshotId),
    RepairIndex,
}

impl Task {
    /// Whether packs may go while it runs.
    pub(super) fn takes_away(self) -> bool {
        matches!(self, Self::Prune { .. } | Self::RepairIndex)
    }
}

/// What all runs share.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) known: Mutex<Vec<Known>>,
    /// The processes that run.
    pub(super) running: Arc<Mutex<HashSet<u32>>>,
    pub(super) folder: PathBuf,
}

/// A process.
pub(super) struct Process {
    pub(super) run: usize,
    pub(super) task: Task,
    /// Whether packs went meanwhile, or may have.
    pub(super) is_unsettled: AtomicBool,
    machine: Machine,
    skew_secs: i64,
    source: PathBuf,
    files: Files,
    cache: Option<PathBuf>,
}

/// However a run ends, the store knows.
struct End<'a>(&'a Shared, usize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

impl World {
    pub(super) fn begin(&self, computer: &Computer, task: Task) -> Process {
        let run = self.shared.add_run();
        let process = run as u32 + 1;
        self.running.lock().unwrap().insert(process);
        let Computer { host, boot, skew_secs, source, files, cache } = computer;
        self.shared.note(format!("run {run} on {host}.{boot}, clock {skew_secs:+} s: {task:?}"));
        let boot = format!("{host} {boot} {}", source.display());
        let machine = Machine { host: host.clone(), boot, process, running: self.running.clone() };
        let (source, files, cache) = (source.clone(), files.clone(), cache.clone());
        let is_unsettled = AtomicBool::new(false);
        Process { run, task, is_unsettled, machine, skew_secs: *skew_secs, source, files, cache }
    }

    /// Runs it to whatever end.
    pub(super) fn run(&self, process: &Process) {
        let _end = End(&self.shared, process.run);
        // What runs in parallel inside waits for the store: it must not keep other runs from doing so.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let done = pool.install(|| {
            pretended::become_process(process.machine.clone());
            skewed::set(process.skew_secs);
            self.perform(process)
        });
        let end = done.map_or_else(|e| e.to_string(), |()| "well".to_owned());
        self.shared.note(format!("run {} ends: {end}", process.run));
        self.running.lock().unwrap().remove(&process.machine.process);
    }

    fn mark(&self, is_it: impl Fn(&Known) -> bool, is_forgotten: bool) {
        let mut known = self.known.lock().unwrap();
        known.iter_mut().filter(|known| is_it(known)).for_each(|known| known.is_forgotten = is_forgotten);
    }

    fn perform(&self, process: &Process) -> Result<()> {
        let seen = Seen { shared: self.shared.clone(), run: process.run };
        let store: Arc<dyn Backend> = match &process.cache {
            Some(cache) => Arc::new(Cached::new(Arc::new(seen), Some((cache.clone(), 1 << 20)))),
            None => Arc::new(seen),
        };
        let repo = open(store)?;
        match process.task {
            Task::Create => {
                let options = create::Options { time: None, ..options(&process.source, 0) };
                let host = Some(process.machine.host.clone());
                let id = create::run(&repo, &create::Options { host, ..options }, &Reporter::silent())?.id.unwrap();
                let (source, files) = (process.source.clone(), process.files.clone());
                self.known.lock().unwrap().push(Known { id, source, files, is_forgotten: false });
            }
            Task::Prune { keep, grace_secs, instant } => self.prune(&repo, keep, grace_secs, instant)?,
            Task::Forget(id) => {
                self.mark(|known| known.id == id, true);
                let done = forget::forget(&repo, &[id], &Reporter::silent());
                // Somebody may have taken it back while this one slept.
                self.mark(|known| known.id == id, true);
                done?;
            }
            Task::UndoForget(id) => {
                forget::undo_forget(&repo, &[id.to_string()], &Reporter::silent())?;
                self.mark(|known| known.id == id, false);
            }
            Task::Restore(id) => {
                let known = self.known.lock().unwrap();
                let Known { source, files, .. } = known.iter().find(|known| known.id == id).unwrap();
                let (source, files) = (source.clone(), files.clone());
                drop(known);
                let found = self.restore(&repo, id, &source).inspect_err(|e| {
                    let is_lucky = self.shared.faults(process.run) == 0 && !process.is_unsettled.load(Ordering::SeqCst);
                    let known = self.known.lock().unwrap();
                    let is_kept = known.iter().any(|known| known.id == id && !known.is_forgotten);
                    assert!(!is_lucky || !is_kept, "snapshot {id} does not come back: {e}");
                })?;
                assert!(found == files, "snapshot {id} comes back as {:?}", names(&found, &files));
            }
            Task::RepairIndex => drop(repair::repair_index(&repo, &Reporter::silent())?),
        }
        Ok(())
    }

    fn prune(&self, repo: &Arc<Repository>, keep: Option<u32>, grace_secs: i64, instant: bool) -> Result<()> {
        let done = prune_after(repo, Policy { last: keep, ..Policy::default() }, grace_secs, instant);
        match &done {
            Ok(summary) => {
                let gone = summary.verdicts.iter().filter(|v| v.keep.is_empty()).map(|v| v.named.id);
                let gone: HashSet<_> = gone.collect();
                self.mark(|known| gone.contains(&known.id), true);
            }
            // Which, nobody knows.
            Err(_) if keep.is_some() => self.mark(|_| true, true),
            Err(_) => {}
        }
        done.map(drop)
    }

    /// What a snapshot holds, as a restore makes it.
    pub(super) fn restore(&self, repo: &Repository, id: SnapshotId, source: &Path) -> Result<Files> {
        let folder = tempfile::tempdir_in(&self.folder).unwrap();
        let target = folder.path().join("target");
        let reporter = Reporter::silent();
        repo.load_index(&reporter)?;
        let options = restore::Options { target: target.clone(), ..restore::Options::default() };
        restore::run(repo, &selected(repo, id, source)?, &options, &reporter)?;
        if let Some(problem) = reporter.problems().into_iter().find(|p| p.severity > Severity::Note) {
            return Err(Error::corrupt(problem.what, problem.why));
        }
        Ok(files(&target).into_iter().map(|(name, path)| (name, fs::read(path).unwrap())).collect())
    }
}

/// The names of files that differ.
pub(super) fn names(found: &Files, expected: &Files) -> Vec<String> {
    let all = found.keys().chain(expected.keys());
    all.filter(|name| found.get(*name) != expected.get(*name)).cloned().collect()
}
