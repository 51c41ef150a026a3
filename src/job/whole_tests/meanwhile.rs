//! One command held up at any of its calls to the store while others run from beginning to end: each snapshot that is
//! there afterwards is whole, and stays so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::Scene;
use super::*;
use crate::backend::Listed;
use crate::format::control::SessionKind;
use crate::job::forget;
use crate::repo::SessionGuard;

type Act = Box<dyn FnOnce(&Arc<Memory>) + Send>;

/// Lets others act just before call number `at`.
pub(super) struct HeldUp {
    inner: Arc<dyn Backend>,
    memory: Arc<Memory>,
    at: u64,
    calls: AtomicU64,
    act: Mutex<Option<Act>>,
}

impl HeldUp {
    pub(super) fn new(inner: Arc<dyn Backend>, memory: &Arc<Memory>, at: u64, act: Act) -> Arc<Self> {
        let (calls, act) = (AtomicU64::new(0), Mutex::new(Some(act)));
        Arc::new(Self { inner, memory: memory.clone(), at, calls, act })
    }

    /// Whether there were so many calls.
    pub(super) fn came(&self) -> bool {
        self.act.lock().unwrap().is_none()
    }

    fn call(&self) -> &dyn Backend {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.at
            && let Some(act) = self.act.lock().unwrap().take()
        {
            self.memory.advance(10);
            act(&self.memory);
            self.memory.advance(10);
        }
        &*self.inner
    }
}

impl Backend for HeldUp {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.call().put(path, bytes)
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.call().put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.call().get(path, max_bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.call().get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.call().list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        self.call().delete(paths)
    }
}

/// All that there is restores, or can at least be read whole.
pub(super) fn assert_whole(scene: &Scene, store: &Arc<Memory>, known: &[(SnapshotId, &Picture)], case: &str) {
    let repo = open(store.clone()).unwrap();
    let problems = check(&repo, ReadData::All, false).unwrap();
    assert!(problems.iter().all(|p| p.severity == Severity::Note), "{case}: {problems:#?}");
    let names = repo.snapshot_names().unwrap();
    for (id, picture) in known.iter().filter(|(id, _)| names.contains(&layout::snapshot(*id))) {
        assert_restores(&repo, *id, &scene.source(), picture);
    }
}

fn two_prunes(store: &Arc<Memory>) {
    for policy in [keep_last(1), Policy::default()] {
        // A prune gives way to another.
        let done = prune(&open(store.clone()).unwrap(), policy, false);
        assert!(matches!(done, Ok(_) | Err(Error::Locked { .. })), "{done:?}");
        store.advance(10);
    }
}

/// Holds a command up at each call in turn. `run` gives the id of what must be there if it ends well.
pub(super) fn sweep(
    scene: &Scene,
    unread_record: bool,
    run: &dyn Fn(&Arc<Repository>) -> Result<Option<SnapshotId>>,
    act: impl Fn(&Arc<Memory>) + Send + Sync + 'static,
) {
    let before = objects(&*scene.store);
    let picture = expected(&scene.source());
    let act = Arc::new(act);
    for at in 0.. {
        let memory = copy(&before);
        let inner: Arc<dyn Backend> = if unread_record { Arc::new(UnreadRecord::new(&memory)) } else { memory.clone() };
        let act = act.clone();
        let store = HeldUp::new(inner, &memory, at, Box::new(move |store| act(store)));
        let made = open(store.clone()).and_then(|repo| run(&repo));
        let case = format!("held up at call {at}, {made:?}");
        assert!(made.is_ok(), "{case}");
        let mut known: Vec<_> = scene.snapshots.iter().map(|(id, picture)| (*id, picture)).collect();
        if let Ok(Some(id)) = made {
            assert!(memory.get(&layout::snapshot(id), u64::MAX).is_ok(), "{case}");
            known.push((id, &picture));
        }
        assert_whole(scene, &memory, &known, &case);
        memory.advance(10);
        two_prunes(&memory);
        assert_whole(scene, &memory, &known, &case);
        if !store.came() {
            assert!(at > 5, "a command makes more calls than {at}");
            return;
        }
    }
}

/// Fails once to hand out a record of condemned packs.
struct UnreadRecord {
    inner: Arc<Memory>,
    is_read: Mutex<bool>,
}

impl UnreadRecord {
    fn new(inner: &Arc<Memory>) -> Self {
        Self { inner: inner.clone(), is_read: Mutex::new(false) }
    }
}

impl Backend for UnreadRecord {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.inner.put(path, bytes)
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.inner.put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        if layout::is_gc(path) && !std::mem::replace(&mut *self.is_read.lock().unwrap(), true) {
            return Err(Error::Storage { action: "read", object: path.into(), why: "timed out".into(), full: false });
        }
        self.inner.get(path, max_bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.inner.get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.inner.list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        self.inner.delete(paths)
    }
}

/// Two generations, the packs of the first condemned, and the directory as it was then.
pub(super) fn first_condemned() -> Scene {
    let mut scene = Scene::with(2);
    scene.snapshot();
    prune(&scene.repo(), keep_last(1), false).unwrap();
    scene.store.advance(10);
    scene.change(1);
    scene
}

#[test]
fn two_prunes_during_a_create() {
    let scene = first_condemned();
    let source = scene.source();
    sweep(&scene, false, &|repo| create(repo, &source, 9).map(Some), two_prunes);
}

#[test]
fn two_prunes_during_a_create_that_could_not_read_what_is_condemned() {
    let scene = first_condemned();
    let source = scene.source();
    sweep(&scene, true, &|repo| create(repo, &source, 9).map(Some).or(Ok(None)), two_prunes);
}

#[test]
fn two_prunes_during_an_undone_forget() {
    let scene = first_condemned();
    let id = scene.snapshots[0].0.to_string();
    let undo = |repo: &Arc<Repository>| match forget::undo_forget(repo, std::slice::from_ref(&id), &Reporter::silent())
    {
        Ok(_) | Err(Error::Refused { .. }) => Ok(None),
        Err(e) => Err(e),
    };
    sweep(&scene, false, &undo, two_prunes);
}

#[test]
fn an_undone_forget_during_a_prune() {
    let scene = first_condemned();
    sweep(&scene, false, &|repo| prune(repo, Policy::default(), false).map(|_| None), |store| {
        let repo = open(store.clone()).unwrap();
        let tombs = repo.read_tombs().unwrap().0;
        for tomb in tombs {
            let undone = forget::undo_forget(&repo, &[tomb.id.to_string()], &Reporter::silent());
            assert!(matches!(undone, Ok(_) | Err(Error::Refused { .. })), "{undone:?}");
        }
    });
}

#[test]
fn a_prune_that_cannot_tell_who_else_is_there_gives_up() {
    let scene = first_condemned();
    let _other = SessionGuard::start(&scene.repo(), SessionKind::Prune).unwrap();
    let before = objects(&*scene.store);
    // From the first listing of sessions, past the three calls that open the repository.
    for at in 3..10 {
        let faulty = Arc::new(Faulty::with(copy(&before), Fault::Unread, at));
        let done = prune(&open(faulty).unwrap(), Policy::default(), false);
        assert!(matches!(done, Err(Error::Locked { .. } | Error::Storage { .. })), "{at}: {done:?}");
    }
}

#[test]
fn a_create_that_takes_over_what_a_killed_one_left_during_a_prune() {
    let scene = first_condemned();
    let source = scene.source();
    sweep(&scene, false, &|repo| prune(repo, Policy::default(), false).map(|_| None), move |store| {
        let prunes = objects(&**store).into_iter().filter(|(path, _)| layout::parse_session(path).is_some());
        let prunes: Vec<_> = prunes.collect();
        let dying = Arc::new(Faulty::with(store.clone(), Fault::Killed, 1));
        create(&open(dying).unwrap(), &source, 8).unwrap_err();
        end_processes(store);
        // The prune goes on.
        prunes.iter().for_each(|(path, bytes)| store.put(path, bytes.clone()).unwrap());
        create(&open(store.clone()).unwrap(), &source, 9).unwrap();
    });
}
