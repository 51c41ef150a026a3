//! Single pages of a captured database, read from the repository. Segments that were decoded last are kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::pagemap::{LEAF_PAGES, PageRef, Root};
use crate::format::segment::Decoded;
use crate::id::BlobId;
use crate::repo::Repository;
use crate::report::Reporter;

/// Decoded segments of up to 1 MiB that are kept.
const KEPT_SEGMENTS: usize = 16;
/// Pages that are read at once.
const BATCH_PAGES: usize = 512;

/// A version of a database. Pages are counted from 1, as SQLite does.
pub(super) struct Pages<'a> {
    repo: &'a Repository,
    reporter: &'a Reporter,
    pub(super) root: Root,
    pub(super) leaves: Vec<BlobId>,
    /// The leaf read last, with its number.
    leaf: Option<(usize, Vec<PageRef>)>,
    segments: VecDeque<(BlobId, Arc<Decoded>)>,
}

impl<'a> Pages<'a> {
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] if the map can't be read.
    pub(super) fn open(repo: &'a Repository, map: &BlobId, reporter: &'a Reporter) -> Result<Self> {
        let (root, leaves) = repo.read_map(map)?;
        Ok(Self { repo, reporter, root, leaves, leaf: None, segments: VecDeque::new() })
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        // The format allows no more than SQLite does, which is less than 2^32.
        u32::try_from(self.root.pages).unwrap_or(u32::MAX)
    }

    /// The entries of a leaf of the map.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub(super) fn leaf(&mut self, number: usize) -> Result<&[PageRef]> {
        if self.leaf.as_ref().is_none_or(|(n, _)| *n != number) {
            let bad = |what: String| Error::corrupt(what, "it covers another number of pages");
            let id = self.leaves.get(number).ok_or_else(|| bad("a page map".into()))?;
            let pages = self.repo.read_leaf(id)?.pages;
            if pages.len() != self.root.leaf_pages(number) {
                return Err(bad(format!("page map leaf {id}")));
            }
            self.leaf = Some((number, pages));
        }
        Ok(self.leaf.as_ref().map_or(&[], |(_, pages)| pages))
    }

    /// Where a page is, and its hash.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`], also for a page that isn't there: callers look first.
    pub(super) fn place(&mut self, page: u32) -> Result<PageRef> {
        let at = page.wrapping_sub(1) as usize;
        let leaf = self.leaf(at / LEAF_PAGES)?;
        leaf.get(at % LEAF_PAGES).copied().ok_or_else(|| Error::corrupt("a page map", "it ends too early"))
    }

    /// One page.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub(super) fn one(&mut self, page: u32) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.each(&[page], &mut |_, bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// Hands out pages, in an order of its own choice.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`] or [`Error::Interrupted`].
    pub(super) fn each(&mut self, pages: &[u32], take: &mut dyn FnMut(u32, &[u8])) -> Result<()> {
        for batch in pages.chunks(BATCH_PAGES) {
            self.reporter.check_interrupt()?;
            let mut by_segment: BTreeMap<BlobId, Vec<(u32, PageRef)>> = BTreeMap::new();
            for page in batch {
                let at = self.place(*page)?;
                by_segment.entry(at.segment).or_default().push((*page, at));
            }
            let wanted: Vec<_> = by_segment.keys().copied().collect();
            for some in wanted.chunks(KEPT_SEGMENTS) {
                for (id, decoded) in some.iter().zip(self.decoded(some)?) {
                    for (page, at) in by_segment.get(id).into_iter().flatten() {
                        let bytes = decoded.page_with(usize::from(at.slot), &at.hash);
                        let bytes =
                            bytes.filter(|bytes| bytes.len() == self.root.page_bytes as usize).ok_or_else(|| {
                                Error::corrupt(
                                    format!("segment {id}"),
                                    format!("page {page} of the database is not in it"),
                                )
                            })?;
                        take(*page, bytes);
                    }
                }
            }
        }
        Ok(())
    }

    fn decoded(&mut self, ids: &[BlobId]) -> Result<Vec<Arc<Decoded>>> {
        let kept = |segments: &VecDeque<(BlobId, Arc<Decoded>)>, id: &BlobId| {
            segments.iter().find(|(known, _)| known == id).map(|(_, decoded)| decoded.clone())
        };
        let out: Vec<_> = ids
            .par_iter()
            .map(|id| match kept(&self.segments, id) {
                Some(decoded) => Ok(decoded),
                None => self.repo.read_segment(id).map(Arc::new),
            })
            .collect::<Result<_>>()?;
        for (id, decoded) in ids.iter().zip(&out) {
            if kept(&self.segments, id).is_none() {
                self.segments.push_back((*id, decoded.clone()));
            }
        }
        while self.segments.len() > KEPT_SEGMENTS {
            self.segments.pop_front();
        }
        Ok(out)
    }
}
