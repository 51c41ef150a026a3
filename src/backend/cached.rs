//! A store of which this machine remembers what it read and wrote: see [`super::copies`].
//!
//! Only objects that are named by the hash of their bytes are remembered, and only their contents: which objects there
//! are is always asked of the store. So a stale copy can't mislead, and a store that does not hand out what it lists is
//! noticed by everybody who has no copy. `check` and `repair` must not go through this: they are about the store.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::at_once::so_many_at_once;
use super::bundle::{MAX_BUNDLE_BYTES, MAX_BUNDLED_BYTES, unbundle};
use super::copies::Copies;
use super::layout::{self, named_hash};
use super::{Backend, Listed, Usage, at_once};
use crate::error::Result;
use crate::format::MAX_PACK_BYTES;
use crate::format::header::Kind;

/// As many objects must be absent for bundles to be looked at.
const BUNDLES_PAY: usize = 8;
/// Objects that came in a bundle and wait in memory to be read take so many bytes at most.
const MAX_HELD_BYTES: usize = 64 << 20;
/// A metadata pack of which as many parts were asked for is fetched whole.
const PARTS_BEFORE_ALL: u32 = 3;
/// Small objects that are fetched at a time: what each takes is the way there and back.
const SMALL_AT_ONCE: usize = 128;

type Hash = [u8; 32];

/// A store with copies.
pub struct Cached {
    inner: Arc<dyn Backend>,
    copies: Option<Copies>,
    held: Mutex<Held>,
    /// How many parts of each metadata pack were fetched.
    parts: Mutex<HashMap<Hash, u32>>,
}

/// What came before it was asked for, where it can't be written down.
#[derive(Default)]
struct Held {
    objects: HashMap<Hash, Vec<u8>>,
    bytes: usize,
}

impl Cached {
    /// Remembers what is read and written in a directory, up to so many bytes; without one, only what comes in bundles is
    /// held until it is read.
    pub fn new(inner: Arc<dyn Backend>, directory: Option<(PathBuf, u64)>) -> Self {
        let copies = directory.map(|(dir, max_bytes)| Copies::new(dir, max_bytes));
        Self { inner, copies, held: Mutex::default(), parts: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, hash: &Hash) -> bool {
        self.copies.as_ref().is_some_and(|copies| copies.has(hash)) || self.held().objects.contains_key(hash)
    }

    /// Writes down what was read, or holds it if there is room.
    fn admit(&self, hash: Hash, bytes: &[u8]) {
        if self.copies.as_ref().is_some_and(|copies| copies.write(&hash, bytes)) {
            return;
        }
        let mut held = self.held();
        if held.bytes + bytes.len() <= MAX_HELD_BYTES && held.objects.insert(hash, bytes.to_vec()).is_none() {
            held.bytes += bytes.len();
        }
    }

    fn recall(&self, hash: &Hash, max_bytes: u64) -> Option<Vec<u8>> {
        let mut held = self.held();
        if held.objects.get(hash).is_some_and(|bytes| bytes.len() as u64 <= max_bytes)
            && let Some(bytes) = held.objects.remove(hash)
        {
            held.bytes -= bytes.len();
            return Some(bytes);
        }
        drop(held);
        self.copies.as_ref()?.read(hash, max_bytes)
    }

    /// Looks for absent objects in bundles, the newest first: what is absent here is usually what is new there.
    fn take_from_bundles(&self, absent: &mut HashSet<Hash>) -> Result<()> {
        let mut bundles = self.inner.list(layout::BUNDLES)?;
        bundles.sort_by_key(|bundle| std::cmp::Reverse(bundle.modified));
        let found = Mutex::new(std::mem::take(absent));
        let found = || found.lock().unwrap_or_else(PoisonError::into_inner);
        for some in bundles.chunks(self.concurrency().max(1)) {
            at_once(&*self.inner, some, |bundle| {
                let bytes = self.inner.get(&bundle.path, MAX_BUNDLE_BYTES).unwrap_or_default();
                for (_, hash, object) in unbundle(&bytes) {
                    if found().remove(&hash) {
                        self.admit(hash, object);
                    }
                }
            });
            if found().len() < BUNDLES_PAY {
                break;
            }
        }
        *absent = std::mem::take(&mut *found());
        Ok(())
    }

    fn fetch_absent(&self, objects: &[Listed]) -> Result<()> {
        let is_small = |o: &&Listed| o.bytes <= MAX_BUNDLED_BYTES;
        let named = |o: &Listed| named_hash(&o.path).filter(|hash| !self.has(hash));
        let mut absent: HashSet<Hash> = objects.iter().filter(is_small).filter_map(named).collect();
        if absent.len() >= BUNDLES_PAY {
            self.take_from_bundles(&mut absent)?;
        }
        if absent.len() > 1 {
            let is_absent = |o: &&Listed| named_hash(&o.path).is_some_and(|hash| absent.contains(&hash));
            let rest: Vec<_> = objects.iter().filter(is_small).filter(is_absent).collect();
            let most = if self.concurrency() > 1 { SMALL_AT_ONCE } else { 1 };
            so_many_at_once(most, &rest, |o| {
                let bytes = self.inner.get(&o.path, MAX_BUNDLED_BYTES).unwrap_or_default();
                let hash = *blake3::hash(&bytes).as_bytes();
                if named_hash(&o.path) == Some(hash) {
                    self.admit(hash, &bytes);
                }
            });
        }
        Ok(())
    }

    /// Fetches all of a metadata pack of which some was read, and more is wanted.
    fn fetch_pack(&self, path: &str, hash: &Hash) -> Option<()> {
        let copies = self.copies.as_ref()?;
        let (Kind::MetadataPack, _) = layout::parse_pack(path)? else { return None };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched = parts.entry(*hash).or_default();
        *fetched += 1;
        let is_enough = *fetched == PARTS_BEFORE_ALL;
        drop(parts);
        let bytes = is_enough.then(|| self.inner.get(path, MAX_PACK_BYTES).ok())??;
        (*blake3::hash(&bytes).as_bytes() == *hash && copies.write(hash, &bytes)).then_some(())
    }
}

/// Whether everything of this kind is copied as it is read or written. Of data packs only those are that
/// [`Backend::keep`] names.
fn is_copied(path: &str) -> bool {
    !path.starts_with(layout::DATA_PACKS) && !path.starts_with(layout::BUNDLES)
}

impl Backend for Cached {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn concurrency(&self) -> usize {
        self.inner.concurrency()
    }

    fn usage(&self) -> Option<Usage> {
        self.inner.usage()
    }

    fn is_near(&self, path: &str) -> bool {
        self.inner.is_near(path) || named_hash(path).is_some_and(|hash| self.has(&hash))
    }

    fn want(&self, objects: &[Listed]) {
        // Whoever reads them finds out what could not be had, and why.
        let _ = self.fetch_absent(objects);
    }

    fn keep(&self, path: &str, bytes: &[u8]) {
        if let Some((copies, hash)) = self.copies.as_ref().zip(named_hash(path)) {
            copies.write(&hash, bytes);
        }
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        // Whoever stores a key slot reads it back, and the store must answer.
        if is_copied(path) && !path.starts_with(layout::KEYS) {
            self.keep(path, &bytes);
        }
        self.inner.put(path, bytes)
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.inner.put_new(path, bytes)
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let Some(hash) = named_hash(path) else { return self.inner.get(path, max_bytes) };
        if let Some(bytes) = self.recall(&hash, max_bytes) {
            return Ok(bytes);
        }
        let bytes = self.inner.get(path, max_bytes)?;
        if let Some(copies) = self.copies.as_ref().filter(|_| is_copied(path))
            && *blake3::hash(&bytes).as_bytes() == hash
        {
            copies.write(&hash, &bytes);
        }
        Ok(bytes)
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        if let Some((copies, hash)) = self.copies.as_ref().zip(named_hash(path)) {
            let copied = copies.read_range(&hash, offset, len).or_else(|| {
                self.fetch_pack(path, &hash)?;
                copies.read_range(&hash, offset, len)
            });
            if let Some(bytes) = copied {
                return Ok(bytes);
            }
        }
        self.inner.get_range(path, offset, len)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.inner.list(folder)
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        self.inner.delete(paths)?;
        if let Some(copies) = &self.copies {
            paths.iter().filter_map(|path| named_hash(path)).for_each(|hash| copies.remove(&hash));
        }
        Ok(())
    }
}
