//! Lost segments put together again from pages that are in others.
//!
//! A page that did not change between two generations may lie in several segments: after `repair packs` set a damaged one
//! aside, `create` packs the pages of today anew, in another order than they had. A segment's id stands for the hashes of
//! its pages, and page maps name these. So where all hashes of a lost segment are known, it is stored again with every
//! page that is found elsewhere by its hash, and all snapshots that name it have these pages again.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::databases::{Map, Pages};
use super::trees::Have;
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::pack::{Encoding, Entry, Frame};
use crate::format::pagemap::PageRef;
use crate::format::segment::{self, SEGMENT_PAGES, Segment};
use crate::format::tree::{NodeKind, Tree};
use crate::id::{BlobId, PageHash};
use crate::repo::{Named, Repository, Writer};
use crate::report::Reporter;

/// What page maps tell of a segment of which something is lost.
#[derive(Default)]
struct Lost {
    page_bytes: u32,
    /// Slots that some map names.
    hashes: BTreeMap<u8, PageHash>,
    /// Those that can't be read.
    missing: HashSet<u8>,
}

/// Stores lost segments of the databases of these snapshots again, as far as their pages are found elsewhere. Returns
/// how many pages were found; with a writer that stores nothing, how many would be.
///
/// # Errors
/// When the store doesn't answer, or storing fails.
pub(super) fn heal(
    repo: &Repository,
    have: &Have,
    snapshots: &[Named],
    writer: &mut Writer,
    level: i32,
    reporter: &Reporter,
) -> Result<u64> {
    let mut pages = Pages::new(repo, have);
    let mut maps = Vec::new();
    for id in database_maps(repo, have, snapshots, reporter)? {
        maps.extend(pages.map(&id)?);
    }
    // Most repositories end here: only of lost segments are hashes gathered.
    let mut segments: HashMap<BlobId, Lost> = HashMap::new();
    each_page(&mut pages, &maps, reporter, |pages, page_bytes, at| {
        if !pages.slots_of(&at.segment, 0).has(at.slot) {
            segments
                .entry(at.segment)
                .or_insert_with(|| Lost { page_bytes, ..Lost::default() })
                .missing
                .insert(at.slot);
        }
    })?;
    if segments.is_empty() {
        return Ok(0);
    }
    each_page(&mut pages, &maps, reporter, |_, _, at| {
        if let Some(lost) = segments.get_mut(&at.segment) {
            lost.hashes.insert(at.slot, at.hash);
        }
    })?;
    segments.retain(|id, lost| lost.is_known(repo, id));
    let wanted: HashSet<(u32, PageHash)> = segments
        .values()
        .flat_map(|lost| lost.missing.iter().filter_map(|slot| Some((lost.page_bytes, *lost.hashes.get(slot)?))))
        .collect();
    let mut found: HashMap<(u32, PageHash), PageRef> = HashMap::new();
    each_page(&mut pages, &maps, reporter, |pages, page_bytes, at| {
        if wanted.contains(&(page_bytes, at.hash)) && pages.slots_of(&at.segment, 0).has(at.slot) {
            found.entry((page_bytes, at.hash)).or_insert(at);
        }
    })?;
    let mut healed = 0;
    for (id, lost) in &segments {
        reporter.check_interrupt()?;
        healed += lost.store(repo, id, &found, writer, level)?;
    }
    Ok(healed)
}

impl Lost {
    /// Whether the maps name every slot: only then is it known what the id stands for.
    fn is_known(&self, repo: &Repository, id: &BlobId) -> bool {
        let all = self.hashes.keys().zip(0..=u8::MAX).all(|(slot, number)| *slot == number);
        let hashes: Vec<PageHash> = self.hashes.values().copied().collect();
        all && segment::segment_id(repo.keys(), self.page_bytes, &hashes) == *id
    }

    /// Stores the segment with those lost pages that are found; returns how many that are.
    fn store(
        &self,
        repo: &Repository,
        id: &BlobId,
        found: &HashMap<(u32, PageHash), PageRef>,
        writer: &mut Writer,
        level: i32,
    ) -> Result<u64> {
        let mut pages: Vec<Option<Vec<u8>>> = vec![None; self.hashes.len().min(SEGMENT_PAGES)];
        // By segment, each of which is decoded once.
        let place = |slot: &u8| {
            let hash = self.hashes.get(slot)?;
            Some((*slot, found.get(&(self.page_bytes, *hash))?))
        };
        let mut from: BTreeMap<BlobId, Vec<(u8, &PageRef)>> = BTreeMap::new();
        for (slot, at) in self.missing.iter().filter_map(place) {
            from.entry(at.segment).or_default().push((slot, at));
        }
        for (id, wanted) in from {
            let Ok(decoded) = repo.read_segment(&id) else { continue };
            for (slot, at) in wanted {
                let page = decoded.page_with(usize::from(at.slot), &at.hash);
                if let Some(place) = pages.get_mut(usize::from(slot)) {
                    *place = page.filter(|page| page.len() == self.page_bytes as usize).map(<[u8]>::to_vec);
                }
            }
        }
        let count = pages.iter().flatten().count();
        if count == 0 {
            return Ok(0);
        }
        let hashes: Vec<PageHash> = self.hashes.values().copied().collect();
        let plain_bytes = count as u32 * self.page_bytes;
        let body = segment::encode_partial(&Segment { page_bytes: self.page_bytes, pages }, &hashes, level);
        let entries = vec![Entry { id: *id, kind: BlobType::Segment, plain_bytes }];
        writer.put_frame(Frame { encoding: Encoding::Segment, plain_bytes, entries, bases: Vec::new(), body })?;
        Ok(count as u64)
    }
}

/// The page maps of all databases that can be found.
fn database_maps(repo: &Repository, have: &Have, snapshots: &[Named], reporter: &Reporter) -> Result<Vec<BlobId>> {
    let mut waiting: Vec<BlobId> = snapshots.iter().map(|n| n.snapshot.tree).collect();
    let (mut seen, mut maps): (HashSet<BlobId>, Vec<BlobId>) = (HashSet::new(), Vec::new());
    while let Some(tree) = waiting.pop() {
        reporter.check_interrupt()?;
        if !seen.insert(tree) {
            continue;
        }
        let Some(tree) = have.read(repo, &tree, BlobType::Tree)?.and_then(|bytes| Tree::decode(&bytes).ok()) else {
            continue;
        };
        waiting.extend(tree.parts.into_iter().flatten());
        for node in tree.nodes {
            waiting.extend(node.tree.filter(|_| node.kind == NodeKind::Directory));
            maps.extend(node.database.map(|d| d.map).filter(|map| seen.insert(*map)));
        }
    }
    Ok(maps)
}

/// Calls `each` with every page that the maps place, leaves that several of them have once: its length and where it
/// is.
fn each_page(
    pages: &mut Pages<'_>,
    maps: &[Map],
    reporter: &Reporter,
    mut each: impl FnMut(&mut Pages<'_>, u32, PageRef),
) -> Result<()> {
    let mut seen: HashSet<BlobId> = HashSet::new();
    for map in maps {
        for number in 0..map.leaf_count() {
            reporter.check_interrupt()?;
            if map.leaf_id(number).is_none_or(|id| !seen.insert(id)) {
                continue;
            }
            let leaf = pages.leaf(map, number)?;
            leaf.into_iter().flatten().for_each(|at| each(pages, map.root.page_bytes, at));
        }
    }
    Ok(())
}
