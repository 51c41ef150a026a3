//! Reading database segments: the pages of one, decoded with the older pages that it leans on, and verified.
//!
//! Many segments lean on the same few, so decoded bases are kept, up to [`BASE_CACHE_BYTES`]. Whoever reads many
//! segments should go through them in the order of the pages that lie in them: then each base is decoded about once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::read::Witness;
use super::{FrameReader, Repository, SegmentPages, encode_segment};
use crate::error::{Error, Result};
use crate::format::pack::{Encoding, Frame};
use crate::format::segment::{Base, Decoded, Encoded, MAX_BASE_DEPTH, SlotSet};
use crate::id::BlobId;
use crate::index::Place;

/// Decoded bases that are kept, in bytes: two threads, each with the bases of some neighbouring segments.
pub(super) const BASE_CACHE_BYTES: usize = 24 << 20;

const NOT_THERE: &str = "an older page that it leans on is not there";

/// Decoded segments that others lean on; the one used last comes last.
#[derive(Default)]
pub(super) struct BaseCache(Mutex<VecDeque<(BlobId, Arc<Decoded>)>>);

impl BaseCache {
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn get(&self, base: &Base) -> Option<Arc<Decoded>> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cached.iter().rposition(|(id, decoded)| *id == base.id && decoded.present().holds(&base.slots))?;
        let (id, decoded) = cached.remove(at)?;
        cached.push_back((id, decoded.clone()));
        Some(decoded)
    }

    fn put(&self, id: BlobId, decoded: &Arc<Decoded>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|(other, _)| *other != id);
        cached.push_back((id, decoded.clone()));
        let mut bytes: usize = cached.iter().map(|(_, decoded)| decoded.bytes()).sum();
        while bytes > BASE_CACHE_BYTES
            && let Some((_, old)) = cached.pop_front()
        {
            bytes -= old.bytes();
        }
    }
}

/// Appends the page in a slot of a segment.
pub(super) type BasePage<'a> = dyn FnMut(&BlobId, u8, &mut Vec<u8>) -> Result<()> + 'a;

impl Repository {
    /// Reads and verifies the pages of a segment, all that there are of it.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_segment(&self, id: &BlobId) -> Result<Decoded> {
        self.read_slots(id, &SlotSet::ALL)
    }

    /// Reads and verifies the pages in these slots of a segment, and maybe others. A page that is nowhere is absent in
    /// what is returned, if there is any other.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_slots(&self, id: &BlobId, wanted: &SlotSet) -> Result<Decoded> {
        self.segment_at_depth(id, wanted, 0)
    }

    /// Reads a segment that others lean on, or takes it from those that were read last.
    ///
    /// # Errors
    /// As [`Repository::read_slots`]; [`Error::Missing`] also if one of the base's slots is nowhere.
    pub fn read_base(&self, base: &Base) -> Result<Arc<Decoded>> {
        self.base_at_depth(base, 0)
    }

    /// Keeps a segment that was decoded already for those that lean on it.
    pub fn remember_base(&self, id: BlobId, decoded: &Arc<Decoded>) {
        self.bases.put(id, decoded);
    }

    /// As after opening the repository anew.
    #[cfg(test)]
    pub(crate) fn forget_bases(&self) {
        self.bases.clear();
    }

    fn base_at_depth(&self, base: &Base, depth: usize) -> Result<Arc<Decoded>> {
        if let Some(decoded) = self.bases.get(base) {
            return Ok(decoded);
        }
        let decoded = Arc::new(self.segment_at_depth(&base.id, &base.slots, depth)?);
        if !decoded.present().holds(&base.slots) {
            return Err(Error::Missing { what: format!("page of segment {}", base.id) });
        }
        self.bases.put(base.id, &decoded);
        Ok(decoded)
    }

    /// Goes through the places of a segment until all that is wanted was found: a prune may have left out of one what
    /// another has.
    fn segment_at_depth(&self, id: &BlobId, wanted: &SlotSet, depth: usize) -> Result<Decoded> {
        let (mut tried, mut first_error) = (Vec::new(), None);
        let mut found: Option<Decoded> = None;
        for witness in Witness::ALL {
            let mut places = self.places_by(witness, id, &tried);
            // Those that have all of it first. What the index says need not be true.
            let lacks_some = |p: &Place| self.index().slots(*p).is_some_and(|slots| !slots.holds(wanted));
            places.sort_by_cached_key(lacks_some);
            for place in places {
                let decoded = self.frame_reader(place).and_then(|reader| {
                    let body = self.fetch(&reader)?;
                    self.decode_segment(id, &reader, &body, depth)
                });
                match (decoded, &mut found) {
                    (Ok(decoded), None) => found = Some(decoded),
                    (Ok(decoded), Some(found)) => found.fill_from(&decoded),
                    (Err(e), _) => first_error = first_error.or(Some(e)),
                }
                if let Some(found) = found.take_if(|f| f.is_whole() || f.present().holds(wanted)) {
                    self.note_witness(witness, id);
                    return Ok(found);
                }
                tried.push(place);
            }
            // All that there is: what a prune left out is nowhere.
            if found.is_some() && *wanted == SlotSet::ALL {
                break;
            }
        }
        found.ok_or_else(|| first_error.unwrap_or_else(|| Error::Missing { what: format!("blob {id}") }))
    }

    /// Decodes the opened frame of a segment, with the segments that it leans on; `depth` of them lean on it.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn decode_segment(&self, id: &BlobId, reader: &FrameReader, body: &[u8], depth: usize) -> Result<Decoded> {
        if depth > MAX_BASE_DEPTH {
            return Err(Error::corrupt(format!("segment {id}"), "too many segments lean on each other"));
        }
        let encoded = parse_segment(id, reader, body)?;
        let base_pages = self.base_pages(id, reader, &encoded, depth)?;
        encoded.decode(&self.keys, *id, &base_pages).map_err(|why| Error::corrupt(format!("segment {id}"), why))
    }

    /// The same; `base_page` appends the page in a slot of a base.
    ///
    /// # Errors
    /// What `base_page` returns, and [`Error::Corrupt`].
    pub(super) fn decode_segment_with(
        &self,
        id: &BlobId,
        reader: &FrameReader,
        body: &[u8],
        base_page: &mut BasePage<'_>,
    ) -> Result<Decoded> {
        let bad = |why: &str| Error::corrupt(format!("segment {id}"), why);
        let encoded = parse_segment(id, reader, body)?;
        let mut base_pages = Vec::new();
        for (number, slot) in encoded.bases.iter().flatten() {
            // What the directory doesn't name, a prune may have dropped.
            let base = reader.bases().get(usize::from(*number));
            let told = base.zip(u8::try_from(*slot).ok()).filter(|(base, slot)| base.slots.has(*slot));
            let (base, slot) = told.ok_or_else(|| bad(NOT_THERE))?;
            base_page(&base.id, slot, &mut base_pages)?;
        }
        encoded.decode(&self.keys, *id, &base_pages).map_err(|why| bad(&why))
    }

    /// The older pages that a segment is encoded against, in the order of its slots.
    fn base_pages(&self, id: &BlobId, reader: &FrameReader, encoded: &Encoded<'_>, depth: usize) -> Result<Vec<u8>> {
        let read = |base| Ok((base, self.base_at_depth(base, depth + 1)?));
        let bases = reader.bases().iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut pages = Vec::new();
        for (number, slot) in encoded.bases.iter().flatten() {
            let told = bases.get(usize::from(*number)).filter(|(base, _)| has(&base.slots, *slot));
            let page = told.and_then(|(_, decoded)| decoded.page(usize::from(*slot)));
            let page = page.filter(|page| page.len() == encoded.page_bytes as usize);
            pages.extend_from_slice(page.ok_or_else(|| Error::corrupt(format!("segment {id}"), NOT_THERE))?);
        }
        Ok(pages)
    }

    /// A segment that leans on others with only some of its pages: what these don't lean on is needed no more.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub(super) fn shrink_delta(
        &self,
        id: &BlobId,
        reader: &FrameReader,
        body: &[u8],
        decoded: &Decoded,
        keep: &SlotSet,
        level: i32,
    ) -> Result<Frame> {
        let encoded = parse_segment(id, reader, body)?;
        let base_pages = self.base_pages(id, reader, &encoded, 0)?;
        let mut base_pages = base_pages.chunks_exact(encoded.page_bytes as usize);
        let (mut pages, mut older, mut kept_base_pages) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, at) in decoded.present().iter().zip(older_slots(reader, &encoded)) {
            let base_page = at.and_then(|_| base_pages.next());
            if keep.has(slot) {
                pages.extend_from_slice(decoded.page(slot.into()).unwrap_or_default());
                older.push(at);
                kept_base_pages.extend_from_slice(base_page.unwrap_or_default());
            }
        }
        let (page_bytes, hashes) = (encoded.page_bytes, &decoded.hashes[..]);
        let (pages, older, base_pages) = (&pages[..], &older[..], &kept_base_pages[..]);
        let pages = SegmentPages { id: *id, page_bytes, hashes, present: keep, pages, older, base_pages };
        Ok(encode_segment(&pages, level))
    }

    /// Where the older versions are that a stored segment is encoded against: for each slot, a segment and a slot of it;
    /// `None` for those that are self-contained or absent.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn bases_of_slots(&self, id: &BlobId) -> Result<Vec<Option<(BlobId, u8)>>> {
        let reader = self.frame_reader(self.place(id)?)?;
        let body = self.fetch(&reader)?;
        let encoded = parse_segment(id, &reader, &body)?;
        let mut older = older_slots(&reader, &encoded);
        Ok(encoded.slots().map(|present| if present { older.next().flatten() } else { None }).collect())
    }
}

/// For each present slot, where its older version is.
fn older_slots(reader: &FrameReader, encoded: &Encoded<'_>) -> impl Iterator<Item = Option<(BlobId, u8)>> {
    let older = |at: Option<(u16, u16)>| {
        let (number, slot) = at?;
        Some((reader.bases().get(usize::from(number))?.id, u8::try_from(slot).ok()?))
    };
    // A segment in full has no list of them.
    let listed = encoded.bases.iter().copied().map(older);
    listed.chain(std::iter::repeat(None)).take(encoded.present())
}

fn has(slots: &SlotSet, slot: u16) -> bool {
    u8::try_from(slot).is_ok_and(|slot| slots.has(slot))
}

fn parse_segment<'b>(id: &BlobId, reader: &FrameReader, body: &'b [u8]) -> Result<Encoded<'b>> {
    let bad = |why: String| Error::corrupt(format!("segment {id}"), why);
    if reader.encoding() != Encoding::Segment {
        return Err(bad("it is not of the type expected".into()));
    }
    Encoded::parse(body).map_err(bad)
}
