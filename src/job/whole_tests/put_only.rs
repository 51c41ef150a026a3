//! Credentials that may put new objects, get and list, but neither delete nor overwrite: enough for `create`.

use super::*;
use crate::backend::Listed;
use crate::format::control::SessionKind;
use crate::repo::SessionGuard;

/// A store that only grows.
struct PutOnly(Arc<Memory>);

fn denied<T>(action: &'static str, object: &str) -> Result<T> {
    Err(Error::Storage { action, object: object.into(), why: "403 access denied".into(), full: false })
}

impl Backend for PutOnly {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        if self.0.put_new(path, bytes)? { Ok(()) } else { denied("write", path) }
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.0.put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.0.get(path, max_bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.0.get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.0.list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        paths.first().map_or(Ok(()), |path| denied("delete", path))
    }
}

/// A store to which a machine that may only add has a way of its own.
struct Scene {
    folder: tempfile::TempDir,
    store: Arc<Memory>,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap(), store: Arc::new(Memory::at(clock::now())) };
        init(scene.store.clone());
        scene
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn restricted(&self) -> Arc<Repository> {
        open(Arc::new(PutOnly(self.store.clone()))).unwrap()
    }

    fn full(&self) -> Arc<Repository> {
        open(self.store.clone()).unwrap()
    }

    /// Writes files and a database, and takes a snapshot with the restricted credentials.
    fn generation(&self, seed: u32) -> SnapshotId {
        fs::create_dir_all(self.source()).unwrap();
        fs::write(self.source().join("file"), noise(u64::from(seed), 60_000)).unwrap();
        sql(&self.source().join("app.db"), false, &insert(100, u64::from(seed)));
        create(&self.restricted(), &self.source(), seed).unwrap()
    }
}

#[test]
fn create_neither_deletes_nor_overwrites() {
    let scene = Scene::new();
    scene.generation(1);
    let last = scene.generation(2);
    assert_restores(&scene.restricted(), last, &scene.source(), &expected(&scene.source()));
    // Each session ended by one more object, which everybody takes for its end.
    assert_eq!(sessions(&*scene.store).len(), 4);
    assert!(scene.restricted().sessions().unwrap().is_empty());
    scene.store.advance(10);

    // A prune waits for nobody, and clears them away.
    let condemned = prune(&scene.full(), keep_last(1), false).unwrap();
    assert!(condemned.packs_condemned > 0 && condemned.waiting_for.is_empty());
    assert!(sessions(&*scene.store).is_empty());
    scene.store.advance(10);
    let third = scene.generation(3);
    scene.store.advance(10);
    assert!(prune(&scene.full(), Policy::default(), false).unwrap().packs_deleted > 0);
    assert_restores(&scene.full(), third, &scene.source(), &expected(&scene.source()));
    assert_sound(&scene.full());
}

#[test]
fn the_packs_of_a_dead_run_are_taken_over_without_deleting() {
    let scene = Scene::new();
    scene.generation(1);
    fs::write(scene.source().join("file"), noise(77, 90_000)).unwrap();
    // Killed after the session and the pack of data; the next run of another machine finds both.
    let dying = Arc::new(Faulty::with(scene.store.clone(), Fault::Killed, 2));
    create(&open(dying).unwrap(), &scene.source(), 2).unwrap_err();
    end_processes(&scene.store);
    assert_eq!(scene.full().sessions().unwrap().len(), 1);
    let packs = scene.store.list(layout::DATA_PACKS).unwrap().len();
    let id = create(&scene.restricted(), &scene.source(), 3).unwrap();
    assert_eq!(scene.store.list(layout::DATA_PACKS).unwrap().len(), packs, "its pack is used");
    assert!(scene.full().sessions().unwrap().is_empty(), "it has an end now");
    assert_restores(&scene.full(), id, &scene.source(), &expected(&scene.source()));
}

#[test]
fn a_session_that_was_ended_by_another_commits_nothing() {
    for is_restricted in [true, false] {
        let scene = Scene::new();
        scene.generation(1);
        let session = SessionGuard::start(&scene.restricted(), SessionKind::Write).unwrap();
        let other = if is_restricted { scene.restricted() } else { scene.full() };
        let seen = other.sessions().unwrap().remove(0);
        other.reap(&seen).unwrap();
        assert!(matches!(session.check_alive(), Err(Error::Refused { .. })));
        // A beat that comes after it brings it back to nobody.
        let beat = layout::session(session.name(), "7");
        let bytes = scene.store.get(&sessions(&*scene.store)[0], u64::MAX).unwrap();
        scene.store.put(&beat, bytes).unwrap();
        assert!(matches!(session.check_alive(), Err(Error::Refused { .. })));
        assert!(scene.full().sessions().unwrap().is_empty());
        drop(session);
        prune(&scene.full(), Policy::default(), false).unwrap();
        assert!(sessions(&*scene.store).is_empty());
    }
}
