//! Any sequence of commands against a model: each snapshot restores, for as long as it is kept, as exactly what the
//! directory was.
//!
//! `CONTRIBUTING.md` says how to run more of it. What failed once is kept in `proptest-regressions/`.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed};

use super::changes::{Change, change};
use super::*;
use crate::backend::Local;
use crate::job::{forget, repair};

/// Sequences run unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 24;

#[derive(Debug, Clone)]
enum Step {
    /// `settled`: as if the files had been left alone for some seconds before, so that unchanged ones are recognised.
    Create {
        changes: Vec<Change>,
        settled: bool,
    },
    Forget(Index),
    UndoForget(Index),
    Prune {
        policy: Policy,
        instant: bool,
        strict: bool,
        sample: Index,
    },
    RepairIndex,
    RepairPacks,
    Restore {
        which: Index,
        over: bool,
    },
    Check,
    /// The next commands are run by another process.
    Reopen,
    /// An index file is lost.
    LoseIndex(Index),
    /// Hours go by for the store.
    Wait(u8),
}

fn policy() -> impl Strategy<Value = Policy> {
    let count = || proptest::option::weighted(0.3, 1..4u32);
    let within = proptest::option::weighted(0.2, 1..200_000i64);
    (proptest::option::weighted(0.6, 1..5u32), count(), count(), count(), within).prop_map(
        |(last, daily, weekly, yearly, within)| Policy { last, daily, weekly, yearly, within, ..Policy::default() },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let i = any::<Index>;
    prop_oneof![
        9 => (proptest::collection::vec(change(), 0..8), proptest::bool::weighted(0.7))
            .prop_map(|(changes, settled)| Step::Create { changes, settled }),
        2 => i().prop_map(Step::Forget),
        2 => i().prop_map(Step::UndoForget),
        5 => (policy(), proptest::bool::weighted(0.3), any::<bool>(), i())
            .prop_map(|(policy, instant, strict, sample)| Step::Prune { policy, instant, strict, sample }),
        1 => Just(Step::RepairIndex),
        1 => Just(Step::RepairPacks),
        2 => (i(), any::<bool>()).prop_map(|(which, over)| Step::Restore { which, over }),
        1 => Just(Step::Check),
        2 => Just(Step::Reopen),
        1 => i().prop_map(Step::LoseIndex),
        1 => (1..50u8).prop_map(Step::Wait),
    ]
}

/// A snapshot, and what the directory was.
struct Kept {
    id: SnapshotId,
    picture: Picture,
    /// Of a forgotten one: whether a prune has deleted anything since.
    is_at_risk: bool,
}

struct Model {
    folder: tempfile::TempDir,
    store: Arc<dyn Backend>,
    /// The store, where it is one whose clock can be set.
    memory: Option<Arc<Memory>>,
    repo: Arc<Repository>,
    kept: Vec<Kept>,
    forgotten: Vec<Kept>,
    hour: u32,
}

impl Model {
    fn new(local: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("source")).unwrap();
        let memory = (!local).then(|| Arc::new(Memory::at(clock::now())));
        let store: Arc<dyn Backend> = match &memory {
            Some(memory) => memory.clone(),
            None => Arc::new(Local::new(&folder.path().join("repo")).unwrap()),
        };
        let repo = init(store.clone());
        Self { folder, store, memory, repo, kept: vec![], forgotten: vec![], hour: 0 }
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn wait(&self, secs: i64) {
        if let Some(memory) = &self.memory {
            memory.advance(secs);
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Create { changes, settled } => {
                changes.iter().for_each(|change| change.make(&self.source()));
                self.create(*settled);
            }
            Step::Forget(which) if !self.kept.is_empty() => {
                let gone = self.kept.remove(which.index(self.kept.len()));
                forget::forget(&self.repo, &[gone.id], &Reporter::silent()).unwrap();
                self.forgotten.push(gone);
            }
            Step::UndoForget(which) if !self.forgotten.is_empty() => {
                self.undo_forget(which.index(self.forgotten.len()));
            }
            Step::Prune { policy, instant, strict, sample } => self.prune(policy, *instant, *strict, sample),
            Step::RepairIndex | Step::RepairPacks => {
                let run = if matches!(step, Step::RepairIndex) { repair::repair_index } else { repair::repair_packs };
                let summary = run(&self.repo, &Reporter::silent()).unwrap();
                assert_eq!((summary.unreadable_packs, summary.damaged_blobs, summary.config_repaired), (0, 0, false));
                assert_sound(&self.repo);
            }
            Step::Restore { which, over } if !self.kept.is_empty() => {
                self.restore(which.index(self.kept.len()), *over);
            }
            Step::Check => self.check(ReadData::None, false),
            Step::Reopen => self.repo = open(self.store.clone()).unwrap(),
            Step::LoseIndex(which) => {
                let files = self.store.list(layout::INDEX).unwrap();
                if !files.is_empty() {
                    self.store.delete(&[files[which.index(files.len())].path.clone()]).unwrap();
                    repair::repair_index(&self.repo, &Reporter::silent()).unwrap();
                }
            }
            Step::Wait(hours) => self.wait(i64::from(*hours) * 3600),
            Step::Forget(_) | Step::UndoForget(_) | Step::Restore { .. } => {}
        }
        self.wait(10);
        self.compare();
    }

    fn create(&mut self, settled: bool) {
        let picture = expected(&self.source());
        self.hour += 7;
        let mut id = create(&self.repo, &self.source(), self.hour).unwrap();
        if settled {
            id = self.settle(id);
        }
        self.kept.push(Kept { id, picture, is_at_risk: false });
    }

    /// Dates the beginning of a snapshot later. Sound only if no file changes within one tick of the file system's
    /// clock after it was looked at.
    fn settle(&self, id: SnapshotId) -> SnapshotId {
        std::thread::sleep(Duration::from_millis(20));
        let mut snapshot = self.repo.select(&id.to_string(), &Filter::default(), &Reporter::silent()).unwrap();
        snapshot.named.snapshot.started.secs += 3600;
        self.store.delete(&[layout::snapshot(id)]).unwrap();
        self.repo.put_snapshot(&snapshot.named.snapshot).unwrap()
    }

    fn undo_forget(&mut self, which: usize) {
        let mut back = self.forgotten.remove(which);
        match forget::undo_forget(&self.repo, &[back.id.to_string()], &Reporter::silent()) {
            Ok(ids) => {
                assert_eq!(ids, [back.id]);
                back.is_at_risk = false;
                self.kept.push(back);
            }
            Err(e) => {
                assert!(matches!(e, Error::Refused { .. }), "{e}");
                assert!(back.is_at_risk, "nothing was deleted since it was forgotten: {e}");
            }
        }
    }

    fn prune(&mut self, policy: &Policy, instant: bool, strict: bool, sample: &Index) {
        let max_unused = if strict { prune::Limit::Bytes(0) } else { prune::Limit::default() };
        let (policy, filter) = (policy.clone(), Filter::default());
        let last = policy.last.unwrap_or(0) as usize;
        let options =
            prune::Options { policy, filter, dry_run: false, max_unused, max_repack: None, grace_secs: 0, instant };
        let summary = prune::run(&self.repo, &options, &mut |_| {}, &Reporter::silent()).unwrap();
        assert_eq!(summary.verdicts.len(), self.kept.len());
        let mut by_time: Vec<_> = summary.verdicts.iter().collect();
        by_time.sort_by_key(|v| v.named.snapshot.time);
        assert!(by_time.iter().rev().take(last).all(|v| !v.keep.is_empty()));
        for kept in std::mem::take(&mut self.kept) {
            let verdict = summary.verdicts.iter().find(|v| v.named.id == kept.id).unwrap();
            if verdict.keep.is_empty() { &mut self.forgotten } else { &mut self.kept }.push(kept);
        }
        if summary.packs_deleted > 0 {
            self.forgotten.iter_mut().for_each(|f| f.is_at_risk = true);
        }
        self.wait(10);
        self.check(ReadData::All, true);
        if instant && strict {
            let mut left = leftovers(&self.store);
            // Of forgotten ones, those stay whose data others need.
            left.retain(|l| !l.starts_with(layout::TOMBS));
            assert!(left.is_empty(), "{left:#?}");
        }
        if !self.kept.is_empty() {
            self.restore(sample.index(self.kept.len()), false);
        }
    }

    fn check(&self, read_data: ReadData, databases: bool) {
        let problems = check(&self.repo, read_data, databases).unwrap();
        // Gaps in the chain of generations are all that there may be.
        assert!(problems.iter().all(|p| p.severity == Severity::Note && p.what == "here:app"), "{problems:#?}");
    }

    fn restore(&self, which: usize, over: bool) {
        let Kept { id, picture, .. } = &self.kept[which];
        if !over {
            return assert_restores(&self.repo, *id, &self.source(), picture);
        }
        let target = self.folder.path().join("target");
        restore(&self.repo, *id, &self.source(), &target, true);
        let mut found = portrait(&target);
        // What other snapshots left there stays, and so does what the user made: the target itself.
        found.retain(|name, _| picture.contains_key(name));
        found.extend(picture.get_key_value(".").map(|(name, line)| (name.clone(), line.clone())));
        assert_same(&found, picture);
    }

    /// The model and the store know of the same snapshots.
    fn compare(&self) {
        let names = |kept: &[Kept], path: fn(SnapshotId) -> String| {
            let mut names: Vec<_> = kept.iter().map(|k| path(k.id)).collect();
            names.sort();
            names
        };
        assert_eq!(self.repo.snapshot_names().unwrap(), names(&self.kept, layout::snapshot));
        let tombs: Vec<_> = self.store.list(layout::TOMBS).unwrap().into_iter().map(|l| l.path).collect();
        assert!(tombs.iter().all(|t| names(&self.forgotten, layout::tomb).contains(t)), "{tombs:?}");
    }
}

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    Config {
        cases: cases.unwrap_or(CASES),
        // The same for the same code, unless more is asked for: what is new is found by longer runs, not by somebody
        // else's change.
        rng_seed: if cases.is_some() { RngSeed::Random } else { RngSeed::Fixed(1) },
        max_shrink_iters: std::env::var("PROPTEST_MAX_SHRINK_ITERS").ok().and_then(|n| n.parse().ok()).unwrap_or(300),
        failure_persistence: Some(Box::new(FileFailurePersistence::SourceParallel("proptest-regressions"))),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_snapshot_restores_as_what_it_was_made_of(
        local in proptest::bool::weighted(0.2),
        steps in proptest::collection::vec(step(), 1..20),
    ) {
        let mut model = Model::new(local);
        steps.iter().for_each(|step| model.take(step));
        for which in 0..model.kept.len() {
            model.restore(which, false);
        }
    }
}

#[test]
fn a_link_below_a_directory_comes_before_a_name_that_was_listed_earlier() {
    let mut model = Model::new(false);
    fs::create_dir(model.source().join("a")).unwrap();
    fs::write(model.source().join("z"), noise(1, 100)).unwrap();
    fs::hard_link(model.source().join("z"), model.source().join("a/link")).unwrap();
    model.create(false);
    model.restore(0, false);
}

#[test]
fn a_change_that_leaves_length_and_time_alone_is_noticed() {
    let mut model = Model::new(false);
    let path = model.source().join("file");
    fs::write(&path, noise(1, 5000)).unwrap();
    model.create(true);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(2, 5000), 0).unwrap();
    file.set_modified(time).unwrap();
    model.create(true);
    (0..2).for_each(|which| model.restore(which, false));
}
