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
    let mut segments: HashMap<BlobId, Lost> = HashMap::new();
    each_page(&pages, &maps, reporter, |page_bytes, at| {
        let lost = segments.entry(at.segment).or_default();
        lost.page_bytes = page_bytes;
        lost.hashes.insert(at.slot, at.hash);
    })?;
    for (id, lost) in &mut segments {
        let there = pages.slots_of(id, 0);
        lost.missing.extend(lost.hashes.keys().filter(|slot| !there.has(**slot)));
    }
    segments.retain(|id, lost| !lost.missing.is_empty() && lost.is_known(repo, id));
    if segments.is_empty() {
        return Ok(0);
    }
    let wanted: HashSet<(u32, PageHash)> = segments
        .values()
        .flat_map(|lost| lost.missing.iter().filter_map(|slot| Some((lost.page_bytes, *lost.hashes.get(slot)?))))
        .collect();
    let mut found: HashMap<(u32, PageHash), PageRef> = HashMap::new();
    let mut candidates = Vec::new();
    each_page(&pages, &maps, reporter, |page_bytes, at| {
        if wanted.contains(&(page_bytes, at.hash)) && !segments.contains_key(&at.segment) {
            candidates.push(((page_bytes, at.hash), at));
        }
    })?;
    for (key, at) in candidates {
        if pages.slots_of(&at.segment, 0).has(at.slot) {
            found.entry(key).or_insert(at);
        }
    }
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
        for slot in &self.missing {
            let Some(hash) = self.hashes.get(slot) else { continue };
            let Some(at) = found.get(&(self.page_bytes, *hash)) else { continue };
            let page = repo.read_segment(&at.segment).ok();
            let page = page.and_then(|s| s.page_with(usize::from(at.slot), hash).map(<[u8]>::to_vec));
            if let (Some(place), Some(page)) = (pages.get_mut(usize::from(*slot)), page) {
                *place = (page.len() == self.page_bytes as usize).then_some(page);
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
fn each_page(pages: &Pages<'_>, maps: &[Map], reporter: &Reporter, mut each: impl FnMut(u32, PageRef)) -> Result<()> {
    let mut seen: HashSet<BlobId> = HashSet::new();
    for map in maps {
        for number in 0..map.leaf_count() {
            reporter.check_interrupt()?;
            if map.leaf_id(number).is_none_or(|id| !seen.insert(id)) {
                continue;
            }
            pages.leaf(map, number)?.into_iter().flatten().for_each(|at| each(map.root.page_bytes, at));
        }
    }
    Ok(())
}
