//! Older pages that the segments of a database lean on, set aside while the database is put together.
//!
//! Late in a year, neighbouring pages lean on segments from a hundred nights, each spread over the whole file: decoding a
//! segment for each that leans on it would decode the database many times over. So each base is decoded once, the
//! pages that are needed of it are put behind the end of the file that is being made, and are cut off in the end.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::segments::BASE_CACHE_BYTES;
use super::{FrameReader, Repository};
use crate::error::{Error, Result};
use crate::format::segment::{Base, Decoded, SEGMENT_BYTES, SlotSet};
use crate::id::BlobId;
use crate::index::Place;

/// As long as every base is decoded less than this often, those decoded last are enough.
const OFTEN: usize = 2;

/// Older pages in a file.
pub struct BasePages {
    file: File,
    start: u64,
    page_bytes: usize,
    /// The slots of each base, and where the first of them is, counted in pages.
    bases: HashMap<BlobId, (SlotSet, u64)>,
}

impl BasePages {
    /// Room in `file` from `start` on for what segments at these places lean on; `None` if decoded bases can be kept in
    /// memory, and segments are near: what is far away is better read in the order of the packs. The places are given
    /// stretch by stretch, in the order in which they will be decoded otherwise.
    pub fn plan(
        repo: &Repository,
        stretches: &[Vec<Place>],
        page_bytes: u32,
        (file, start): (File, u64),
    ) -> Option<Self> {
        let index = repo.index();
        let mut needed: HashMap<BlobId, SlotSet> = HashMap::new();
        let mut decoded = 0;
        for stretch in stretches {
            let mut here = BTreeSet::new();
            for base in stretch.iter().flat_map(|place| index.bases(*place)) {
                needed.entry(base.id).or_default().add(&base.slots);
                here.insert(base.id);
            }
            decoded += here.len();
        }
        drop(index);
        let is_little = needed.len() <= BASE_CACHE_BYTES / SEGMENT_BYTES || decoded <= needed.len() * OFTEN;
        if needed.is_empty() || (is_little && !repo.backend().is_remote()) {
            return None;
        }
        let mut next = 0;
        let mut bases = HashMap::new();
        for (id, slots) in needed {
            bases.insert(id, (slots, next));
            next += u64::from(slots.count());
        }
        Some(Self { file, start, page_bytes: page_bytes as usize, bases })
    }

    /// The bases, sorted by place.
    pub fn bases(&self, repo: &Repository) -> Vec<Base> {
        let index = repo.index();
        let mut bases: Vec<_> = self.bases.iter().map(|(id, (slots, _))| Base { id: *id, slots: *slots }).collect();
        bases.sort_by_cached_key(|base| index.find(&base.id));
        bases
    }

    /// Sets the pages aside that are needed of a decoded segment, if it is a base.
    ///
    /// # Errors
    /// [`Error::Missing`] if it lacks some of them; [`Error::File`].
    pub fn set_aside(&self, id: &BlobId, decoded: &Decoded) -> Result<()> {
        let Some((slots, first)) = self.bases.get(id) else { return Ok(()) };
        let mut pages = Vec::with_capacity(slots.count() as usize * self.page_bytes);
        for slot in slots.iter() {
            let page = decoded.page(slot.into()).filter(|page| page.len() == self.page_bytes);
            let missing = || Error::Missing { what: format!("page of segment {id}") };
            pages.extend_from_slice(page.ok_or_else(missing)?);
        }
        let at = self.start + first * self.page_bytes as u64;
        self.file.write_all_at(&pages, at).map_err(|e| Error::file("write", "older pages behind a database", e))
    }

    /// Decodes the opened frame of a segment with the pages that were set aside.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Missing`] or [`Error::File`].
    pub fn decode(&self, repo: &Repository, id: &BlobId, reader: &FrameReader, body: &[u8]) -> Result<Decoded> {
        repo.decode_segment_with(id, reader, body, &mut |base, slot, out| {
            let missing = || Error::Missing { what: format!("page of segment {base}") };
            let (slots, first) = self.bases.get(base).filter(|(slots, _)| slots.has(slot)).ok_or_else(missing)?;
            let before = slots.iter().take_while(|other| *other < slot).count() as u64;
            let from = out.len();
            out.resize(from + self.page_bytes, 0);
            let at = self.start + (first + before) * self.page_bytes as u64;
            let page = out.get_mut(from..).unwrap_or_default();
            self.file.read_exact_at(page, at).map_err(|e| Error::file("read", "older pages behind a database", e))
        })
    }
}
