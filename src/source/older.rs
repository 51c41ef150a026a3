//! The previous version of a database, as the repository has it: which pages are as they were, and the older pages that
//! changed ones are stored against.
//!
//! May depend on `repo` and `format`. Whatever of it can't be read or relied on costs space, not correctness: pages are
//! stored anew, or in full.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::format::pagemap::Root;
use crate::format::segment::SlotSet;
use crate::id::{BlobId, PageHash};
use crate::repo::{Leaf, Repository};

/// A page whose older version has less than this of its bytes, in per cent, is stored in full: as a delta it would take
/// more than about 40 % of that, and later versions do better against the page as it is now. Measured by
/// `benches/delta_orders`: 60 % and 80 % store more.
const SIMILAR_PERCENT: usize = 60;
/// Leaves that are kept, of up to 200 KiB each: all of a database of 1 GiB with pages of 4 KiB.
const MAX_LEAVES_READ: usize = 64;
/// Segments of which the bases are remembered: up to 10 KiB each.
const MAX_LEANING: usize = 1024;
/// Length of the stretches that are looked for in the older version, in bytes.
const WORD_BYTES: usize = 8;

/// The page map of the previous version.
pub struct OlderMap<'r> {
    repo: &'r Repository,
    root: Option<Root>,
    leaves: Vec<BlobId>,
    leaves_read: LeavesRead,
    /// Of each segment that a page was found in.
    usage: HashMap<BlobId, Usage>,
    /// For segments that lean on others, where the older version of each slot is.
    leaning: HashMap<BlobId, Vec<Option<(BlobId, u8)>>>,
}

/// The leaves that were read last: for a leaf of many patches, much is read.
pub type LeavesRead = Arc<Mutex<BTreeMap<usize, Option<Arc<OlderLeaf>>>>>;

struct Usage {
    /// The slots that may be relied on.
    usable: SlotSet,
    /// Those with pages that are as they were.
    kept: SlotSet,
}

/// A leaf of it.
pub struct OlderLeaf {
    /// Its id.
    pub id: BlobId,
    /// What it says.
    pub leaf: Leaf,
}

impl<'r> OlderMap<'r> {
    /// The map with this root, if it has pages of this length and can be read; `leaves_read` may be shared with another
    /// one of the same root.
    pub fn new(repo: &'r Repository, page_bytes: u32, older: Option<&BlobId>, leaves_read: &LeavesRead) -> Self {
        let map = older.and_then(|id| repo.read_map(id).ok()).filter(|(root, _)| root.page_bytes == page_bytes);
        let (root, leaves) = map.unzip();
        let leaves = leaves.unwrap_or_default();
        let leaves_read = leaves_read.clone();
        Self { repo, root, leaves, leaves_read, usage: HashMap::new(), leaning: HashMap::new() }
    }

    /// How many pages a leaf has, and its id.
    pub fn leaf_pages(&self, number: usize) -> Option<(usize, BlobId)> {
        Some((self.root.as_ref()?.leaf_pages(number), *self.leaves.get(number)?))
    }

    /// A leaf, if it can be read and relied on.
    pub fn leaf(&mut self, number: usize) -> Option<Arc<OlderLeaf>> {
        let mut read = self.leaves_read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = read.get(&number) {
            return leaf.clone();
        }
        let leaf = self.read_leaf(number);
        if read.len() >= MAX_LEAVES_READ {
            // They are asked for in order, by one shortly after the other.
            read.pop_first();
        }
        read.insert(number, leaf.clone());
        leaf
    }

    fn read_leaf(&self, number: usize) -> Option<Arc<OlderLeaf>> {
        let id = *self.leaves.get(number)?;
        let (leaf, chain) = self.repo.read_leaf_and_chain(&id).ok()?;
        let index = self.repo.index();
        chain.iter().all(|id| index.is_usable(id)).then(|| Arc::new(OlderLeaf { id, leaf }))
    }

    /// Whether a page of a leaf is as it was, in a slot that may be relied on: a prune drops pages that no snapshot
    /// needs.
    pub fn has(&mut self, leaf: &OlderLeaf, page: usize, hash: &PageHash) -> bool {
        let Some(old) = leaf.leaf.pages.get(page).filter(|old| old.hash == *hash) else { return false };
        let index = self.repo.index();
        let new = || Usage { usable: index.usable_slots(&old.segment), kept: SlotSet::default() };
        let usage = self.usage.entry(old.segment).or_insert_with(new);
        let has = usage.usable.has(old.slot);
        if has {
            usage.kept.insert(old.slot);
        }
        has
    }

    /// The slots of each segment in which [`OlderMap::has`] has found pages.
    pub fn into_kept(self) -> HashMap<BlobId, SlotSet> {
        let kept = self.usage.into_iter().map(|(segment, usage)| (segment, usage.kept));
        kept.filter(|(_, slots)| !slots.is_empty()).collect()
    }

    /// How many leaves there are.
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Where the self-contained version of a page is that a changed one can be stored against: the previous version, or
    /// what that leans on itself.
    pub fn base_of(&mut self, leaf: &OlderLeaf, page: usize) -> Option<(BlobId, u8)> {
        let old = leaf.leaf.pages.get(page)?;
        let repo = self.repo;
        let is_alone = repo.index().is_usable_alone(&old.segment, old.slot);
        if is_alone {
            return Some((old.segment, old.slot)).filter(|(id, _)| repo.is_near(id));
        }
        if !repo.is_near(&old.segment) {
            return None;
        }
        if self.leaning.len() >= MAX_LEANING && !self.leaning.contains_key(&old.segment) {
            self.leaning.clear();
        }
        let bases =
            self.leaning.entry(old.segment).or_insert_with(|| repo.bases_of_slots(&old.segment).unwrap_or_default());
        let (base, slot) = (*bases.get(usize::from(old.slot))?)?;
        let is_alone = repo.index().is_usable_alone(&base, slot);
        (is_alone && repo.is_near(&base)).then_some((base, slot))
    }
}

/// Reads the pages at the given places, and returns those that are similar to the pages that they are older versions of.
pub fn read_similar(repo: &Repository, pages: &[&[u8]], older: &[Option<(BlobId, u8)>]) -> Vec<Option<Vec<u8>>> {
    read_at(repo, older, |number, old| pages.get(number).is_some_and(|new| is_similar(new, old)))
}

/// Reads the pages at the given places, each segment once, and returns those that `is_wanted`, given the number of the
/// place. What can't be read is told of by `check`; here it is absent.
pub fn read_at(
    repo: &Repository,
    places: &[Option<(BlobId, u8)>],
    is_wanted: impl Fn(usize, &[u8]) -> bool + Sync,
) -> Vec<Option<Vec<u8>>> {
    let mut by_segment: BTreeMap<BlobId, Vec<(usize, u8)>> = BTreeMap::new();
    for (number, at) in places.iter().enumerate() {
        if let Some((segment, slot)) = at {
            by_segment.entry(*segment).or_default().push((number, *slot));
        }
    }
    let read = |(segment, wanted): (BlobId, Vec<(usize, u8)>)| {
        let slots = wanted.iter().map(|(_, slot)| *slot).collect();
        let Ok(decoded) = repo.read_slots(&segment, &slots) else { return Vec::new() };
        let page = |(number, slot): (usize, u8)| {
            let page = decoded.page(slot.into())?;
            is_wanted(number, page).then(|| (number, page.to_vec()))
        };
        wanted.into_iter().filter_map(page).collect::<Vec<_>>()
    };
    let found: Vec<_> = by_segment.into_par_iter().map(read).collect();
    let mut out = vec![None; places.len()];
    for (number, page) in found.into_iter().flatten() {
        if let Some(place) = out.get_mut(number) {
            *place = Some(page);
        }
    }
    out
}

/// Whether enough of a page stands in its older version, at whatever place. Zeros don't count: they cost nothing
/// either way.
fn is_similar(new: &[u8], old: &[u8]) -> bool {
    if new.len() != old.len() {
        return false;
    }
    let known = Words::of(old);
    let (mut found, mut all, mut at) = (0, 0, 0);
    while let Some(word) = new.get(at..).and_then(<[u8]>::first_chunk::<WORD_BYTES>) {
        let word = u64::from_ne_bytes(*word);
        let step = if word == 0 || known.has(word) { WORD_BYTES } else { 1 };
        if word != 0 {
            all += step;
            found += if step == WORD_BYTES { step } else { 0 };
        }
        at += step;
    }
    found * 100 >= all * SIMILAR_PERCENT
}

/// The words of a page that stand at multiples of their length, in a table with open addressing.
struct Words {
    table: Vec<u64>,
    shift: u32,
}

impl Words {
    fn of(page: &[u8]) -> Self {
        let bits = (page.len() / WORD_BYTES * 4).max(2).next_power_of_two().trailing_zeros();
        let mut words = Self { table: vec![0; 1 << bits], shift: 64 - bits };
        for word in page.as_chunks::<WORD_BYTES>().0 {
            let word = u64::from_ne_bytes(*word);
            if word != 0 {
                let at = words.find(word);
                words.table[at] = word;
            }
        }
        words
    }

    /// Where a word is, or would be put. Three quarters of the table stay empty.
    fn find(&self, word: u64) -> usize {
        // Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4).
        let mut at = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.table[at] != 0 && self.table[at] != word {
            at = (at + 1) & (self.table.len() - 1);
        }
        at
    }

    fn has(&self, word: u64) -> bool {
        self.table[self.find(word)] == word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_sees_what_moved_and_ignores_zeros() {
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut other = vec![0; 4096];
        blake3::Hasher::new().update(b"other").finalize_xof().fill(&mut other);
        assert!(is_similar(&noise, &noise) && !is_similar(&noise, &other));
        let moved = [&noise[100..], &other[..100]].concat();
        assert!(is_similar(&moved, &noise));
        let most = [&noise[..2800], &other[2800..]].concat();
        assert!(is_similar(&most, &noise));
        let little = [&noise[..2000], &other[2000..]].concat();
        assert!(!is_similar(&little, &noise));
        let sparse = [&vec![0; 4000][..], &other[..96]].concat();
        assert!(!is_similar(&sparse, &noise));
        assert!(is_similar(&[0; 4096], &noise) && !is_similar(&noise, &[0; 4096]));
        assert!(!is_similar(&noise[..512], &noise));
    }
}
