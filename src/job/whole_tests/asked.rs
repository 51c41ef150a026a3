//! What must be asked of the store itself, though this machine has a copy, and what is not believed at once that it says.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::backend::{Cached, Listed};
use crate::id::PackId;
use crate::repo::MarkNote;

/// A store that says yes to a key slot, and loses it; and that hands out snapshots and tombs with a flipped bit. Records
/// of condemned packs it hands out so the first time, and after that says that there is none.
struct Unsound(Arc<Memory>, AtomicU32);

impl Unsound {
    fn new(memory: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self(memory.clone(), AtomicU32::new(0)))
    }
}

impl Backend for Unsound {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        if path.starts_with(layout::KEYS) { Ok(()) } else { self.0.put(path, bytes) }
    }
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.0.put_new(path, bytes)
    }
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = self.0.get(path, max_bytes)?;
        let times = if layout::is_gc(path) { self.1.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        if times > 2 {
            return Err(Error::Missing { what: path.into() });
        }
        if path.starts_with(layout::SNAPSHOTS) || path.starts_with(layout::TOMBS) || times == 1 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Ok(bytes)
    }
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.0.get_range(path, offset, len)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.0.list(folder)
    }
    fn delete(&self, paths: &[String]) -> Result<()> {
        self.0.delete(paths)
    }
}

fn with_copies(store: Arc<dyn Backend>, folder: &Path) -> Arc<dyn Backend> {
    Arc::new(Cached::new(store, Some((folder.into(), 1 << 30))))
}

#[test]
fn the_old_password_stays_if_the_new_one_did_not_arrive() {
    let cheap = KdfCost { memory_kib: 19 * 1024, passes: 1, lanes: 1 };
    let [old, new] = ["old", "new"].map(|text| Unlock::Password(text.into()));
    let memory = Arc::new(Memory::default());
    drop(Repository::init(memory.clone(), &old, cheap, "a").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = with_copies(Unsound::new(&memory), folder.path());
    let repo = Repository::open(store, &old, "it", &Reporter::silent()).unwrap();
    let changed = repo.change_password(&repo.password_slot().unwrap(), &new, None);
    assert!(matches!(changed, Err(Error::Missing { .. })), "{changed:?}");
    Repository::open(memory, &old, "it", &Reporter::silent()).unwrap();
}

#[test]
fn a_pin_on_a_snapshot_that_another_machine_has_just_forgotten_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(Memory::default());
    let repo = init(with_copies(memory.clone(), folder.path()));
    fs::create_dir(folder.path().join("source")).unwrap();
    let id = create(&repo, &folder.path().join("source"), 1).unwrap();
    let mut named = repo.read_snapshots().unwrap().0.remove(0);
    open(memory).unwrap().bury_snapshot(id).unwrap();
    let pinned = repo.put_mark(&mut named, &MarkNote { pin: Some(true), ..MarkNote::default() });
    assert!(matches!(pinned, Err(Error::Refused { .. })), "{pinned:?}");
}

#[test]
fn a_snapshot_that_is_read_wrongly_is_neither_forgotten_nor_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(Memory::default());
    let repo = init(memory.clone());
    let id = create(&repo, folder.path(), 1).unwrap();
    let unsound = open(Unsound::new(&memory)).unwrap();
    let before = objects(&*memory);
    assert!(matches!(unsound.bury_snapshot(id), Err(Error::Corrupt { .. })));
    assert!(objects(&*memory) == before, "nothing was moved");
    repo.bury_snapshot(id).unwrap();
    let before = objects(&*memory);
    assert!(matches!(unsound.exhume_snapshot(id), Err(Error::Corrupt { .. })));
    assert!(objects(&*memory) == before, "nothing was moved");
    repo.exhume_snapshot(id).unwrap();
    assert_sound(&repo);
}

#[test]
fn a_record_of_condemned_packs_is_overlooked_by_nobody() {
    let memory = Arc::new(Memory::at(clock::now()));
    let repo = init(memory.clone());
    repo.condemn(vec![PackId([7; 32])], vec![]).unwrap();
    let unsound = open(Unsound::new(&memory)).unwrap();
    let live = unsound.live().unwrap();
    assert_eq!(unsound.records(&live, &Reporter::silent()).unwrap().len(), 1, "it is read once more");
    let missing = unsound.records(&live, &Reporter::silent());
    assert!(matches!(missing, Err(Error::Storage { .. })), "{missing:?}");
    // A prune has deleted it since it was listed.
    memory.delete(&records(&*memory)).unwrap();
    assert!(unsound.records(&live, &Reporter::silent()).unwrap().is_empty());
}
