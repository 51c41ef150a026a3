//! Page maps over the repository: reading a leaf through its patches.

use std::collections::{HashMap, HashSet};

use super::Repository;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::MAX_PATCH_DEPTH;
use crate::format::pagemap::{Change, PageRef, StoredLeaf};
use crate::format::segment::SlotSet;
use crate::id::BlobId;

/// A chain of patches is too long past so many bytes for each page of the leaf.
const MAX_PATCH_BYTES: usize = 12;
const WRONG_DEPTH: &str = "its depth is not that of a leaf which is patched here";

/// A leaf of a page map, patches applied.
#[derive(Clone)]
pub struct Leaf {
    /// The leaf as stored last: what a patch builds on.
    pub stored: StoredLeaf,
    /// Where each of its pages is.
    pub pages: Vec<PageRef>,
}

impl Leaf {
    /// What to store for the same place with these pages: a patch of this leaf, whose id is `id`, of at most `depth`
    /// patches in all, or a full leaf where the chain would get too long; `None` if nothing differs.
    pub fn successor(&self, id: BlobId, pages: &[PageRef], depth: u32) -> Option<StoredLeaf> {
        let is_new = |(page, at): &(usize, &PageRef)| self.pages.get(*page) != Some(*at);
        let changes: Vec<Change> =
            pages.iter().enumerate().filter(is_new).map(|(page, at)| (page as u16, *at)).collect();
        if changes.is_empty() && pages.len() == self.pages.len() {
            return None;
        }
        let patch = StoredLeaf::patch(id, &self.stored, pages.len(), &changes);
        let is_long = patch.depth > depth || patch.chain_bytes as usize > pages.len() * MAX_PATCH_BYTES;
        Some(if is_long { StoredLeaf::full(pages) } else { patch })
    }
}

impl Repository {
    /// Reads a leaf and everything it patches.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_leaf(&self, id: &BlobId) -> Result<Leaf> {
        self.read_leaf_and_chain(id).map(|(leaf, _)| leaf)
    }

    /// The same, with the ids of the stored leaves that it consists of: its own, and what it patches.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_leaf_and_chain(&self, id: &BlobId) -> Result<(Leaf, Vec<BlobId>)> {
        let bad = |id: &BlobId, why: &str| Error::corrupt(format!("page map leaf {id}"), why);
        let (mut chain, mut ids) = (Vec::new(), Vec::new());
        let mut next = Some(*id);
        while let Some(id) = next {
            if chain.len() > MAX_PATCH_DEPTH {
                return Err(bad(&id, "it patches a longer chain than allowed"));
            }
            let bytes = self.read_blob(&id, BlobType::Map)?;
            let (stored, changes) = StoredLeaf::decode(&bytes).map_err(|why| bad(&id, &why))?;
            if chain.last().is_some_and(|(above, _): &(StoredLeaf, _)| !above.fits_on(&stored)) {
                return Err(bad(&id, WRONG_DEPTH));
            }
            next = stored.parent;
            chain.push((stored, changes));
            ids.push(id);
        }
        let mut pages: Vec<Option<PageRef>> = Vec::new();
        for (stored, changes) in chain.iter().rev() {
            pages.resize(stored.pages as usize, None);
            for (page, at) in changes {
                if let Some(entry) = pages.get_mut(usize::from(*page)) {
                    *entry = Some(*at);
                }
            }
        }
        let pages = pages.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| bad(id, "a page of it is nowhere"))?;
        let (stored, _) = chain.into_iter().next().ok_or_else(|| bad(id, "it is empty"))?;
        Ok((Leaf { stored, pages }, ids))
    }

    /// The stored leaves that a leaf consists of: itself and what it patches.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn leaf_chain(&self, id: &BlobId) -> Result<Vec<BlobId>> {
        let mut chain = vec![*id];
        let mut above = None;
        while let Some(last) = chain.last() {
            let bytes = self.read_blob(last, BlobType::Map)?;
            let bad = |why: &str| Error::corrupt(format!("page map leaf {last}"), why);
            let (stored, _) = StoredLeaf::decode(&bytes).map_err(|why| bad(&why))?;
            if above.is_some_and(|above: StoredLeaf| !above.fits_on(&stored)) {
                return Err(bad(WRONG_DEPTH));
            }
            match stored.parent {
                Some(_) if chain.len() > MAX_PATCH_DEPTH => return Err(bad("it patches a longer chain than allowed")),
                Some(parent) => chain.push(parent),
                None => break,
            }
            above = Some(stored);
        }
        Ok(chain)
    }

    /// Whether every blob that a page map consists of may be relied on, its segments included.
    pub fn is_map_usable(&self, root: &BlobId) -> bool {
        let usable = |id: &BlobId| self.index().is_usable(id);
        // Inner nodes exist above 256 leaves only; reading the map has read them.
        let Ok((_, leaves)) = self.read_map(root) else { return false };
        let leaf_is_usable = |id: &BlobId| {
            let Ok(chain) = self.leaf_chain(id) else { return false };
            let Ok(leaf) = self.read_leaf(id) else { return false };
            let index = self.index();
            // Neighbours mostly lie in the same segment.
            let mut last = None;
            chain.iter().all(|id| index.is_usable(id))
                && leaf.pages.iter().all(|page| {
                    let known = last.filter(|(id, _)| *id == page.segment).map(|(_, slots)| slots);
                    let slots = known.unwrap_or_else(|| index.usable_slots(&page.segment));
                    last = Some((page.segment, slots));
                    slots.has(page.slot)
                })
        };
        usable(root) && leaves.iter().all(leaf_is_usable)
    }
}

/// What one version of a place in a page map changes, in few bytes: segments are numbers.
struct Patch {
    parent: Option<BlobId>,
    depth: u32,
    pages: usize,
    /// Page, slot, segment.
    changes: Vec<(u16, u8, u32)>,
}

/// What a group of leaves needs.
pub(super) struct Family {
    /// The stored leaves, patched ones included.
    pub(super) leaves: HashSet<BlobId>,
    /// The segments that the pages lie in, and in which slots.
    pub(super) segments: Vec<(BlobId, SlotSet)>,
}

/// Reads versions of one place in page maps, each stored leaf once, and finds which segments their pages lie in: a
/// patch may have left none of the pages of a segment that its older versions name.
pub(super) fn read_family(repo: &Repository, wanted: &[BlobId]) -> Result<Family> {
    let mut segments: Vec<BlobId> = Vec::new();
    let mut numbers: HashMap<BlobId, u32> = HashMap::new();
    let mut stored: HashMap<BlobId, Patch> = HashMap::new();
    for leaf in wanted {
        let mut next = Some(*leaf);
        while let Some(id) = next
            && !stored.contains_key(&id)
        {
            let bytes = repo.read_blob(&id, BlobType::Map)?;
            let (leaf, changes) = StoredLeaf::decode(&bytes).map_err(|why| bad_leaf(&id, why))?;
            let mut number = |segment: BlobId| {
                *numbers.entry(segment).or_insert_with(|| {
                    segments.push(segment);
                    segments.len() as u32 - 1
                })
            };
            let changes = changes.iter().map(|(page, at)| (*page, at.slot, number(at.segment))).collect();
            next = leaf.parent;
            stored.insert(id, Patch { parent: leaf.parent, depth: leaf.depth, pages: leaf.pages as usize, changes });
        }
    }
    let mut used = vec![SlotSet::default(); segments.len()];
    for leaf in wanted {
        mark_pages(leaf, &stored, &mut used)?;
    }
    let segments = segments.into_iter().zip(used).filter(|(_, slots)| !slots.is_empty()).collect();
    Ok(Family { leaves: stored.into_keys().collect(), segments })
}

/// Applies a leaf's patches and marks the slots of segments that its pages lie in.
fn mark_pages(leaf: &BlobId, stored: &HashMap<BlobId, Patch>, used: &mut [SlotSet]) -> Result<()> {
    const NOWHERE: (u8, u32) = (0, u32::MAX);
    let mut chain = Vec::new();
    let mut next = Some(*leaf);
    while let Some(patch) = next.and_then(|id| stored.get(&id)) {
        if chain.len() > MAX_PATCH_DEPTH {
            return Err(bad_leaf(leaf, "it patches a longer chain than allowed"));
        }
        if chain.last().is_some_and(|above: &&Patch| above.depth != patch.depth.saturating_add(1)) {
            return Err(bad_leaf(leaf, WRONG_DEPTH));
        }
        chain.push(patch);
        next = patch.parent;
    }
    let mut pages: Vec<(u8, u32)> = Vec::new();
    for patch in chain.iter().rev() {
        pages.resize(patch.pages, NOWHERE);
        for (page, slot, segment) in &patch.changes {
            if let Some(entry) = pages.get_mut(usize::from(*page)) {
                *entry = (*slot, *segment);
            }
        }
    }
    for (slot, segment) in pages {
        let slots = used.get_mut(segment as usize).ok_or_else(|| bad_leaf(leaf, "a page of it is nowhere"))?;
        slots.insert(slot);
    }
    Ok(())
}

fn bad_leaf(id: &BlobId, why: impl ToString) -> Error {
    Error::corrupt(format!("page map leaf {id}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor;
    use crate::repo::Writer;
    use crate::repo::testing::World;

    #[test]
    fn a_patch_says_how_deep_it_lies() {
        let world = World::new();
        let repo = &world.repo;
        let mut writer = Writer::new(repo, 3);
        let at = PageRef { segment: BlobId([1; 32]), slot: 0, hash: [2; 16] };
        let full = StoredLeaf::full(&[at]);
        let mut put = |leaf: &StoredLeaf| writer.put(BlobType::Map, &cbor::encode(leaf)).unwrap();
        let below = put(&full);
        let patch = StoredLeaf::patch(below, &full, 1, &[(0, at)]);
        let sound = put(&patch);
        let bad = [2, u32::MAX].map(|depth| put(&StoredLeaf { depth, ..patch.clone() }));
        writer.finish().unwrap();
        assert!(repo.read_leaf(&sound).is_ok() && repo.leaf_chain(&sound).is_ok());
        assert!(read_family(repo, &[sound]).is_ok());
        for bad in bad {
            assert!(matches!(repo.read_leaf(&bad), Err(Error::Corrupt { .. })));
            assert!(matches!(repo.leaf_chain(&bad), Err(Error::Corrupt { .. })));
            assert!(matches!(read_family(repo, &[bad]), Err(Error::Corrupt { .. })));
        }
    }
}
