//! Encoding segments: in full, or against older versions of their pages where that is much smaller.

use crate::crypto::BlobType;
use crate::format::pack::{Encoding, Entry, Frame};
use crate::format::segment::{self, Base, BaseRef, Delta, Segment, SlotSet};
use crate::id::{BlobId, PageHash};

/// A delta is stored if it is smaller than this share of the segment in full, in per cent: what it saves must be worth
/// that another segment is needed to decode it.
const WORTH_PERCENT: usize = 60;
/// A delta below this share of the pages' length, in per cent, is worth it whatever the segment in full would take.
const CERTAIN_PERCENT: usize = 10;

/// Pages of one segment, and where their older versions are.
#[derive(Clone, Copy)]
pub struct SegmentPages<'a> {
    /// The segment's id.
    pub id: BlobId,
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The hash of every slot, absent ones included.
    pub hashes: &'a [PageHash],
    /// The slots that are present.
    pub present: &'a SlotSet,
    /// Their pages, one after the other.
    pub pages: &'a [u8],
    /// For each of them, the segment and slot of its older version, if it has one.
    pub older: &'a [Option<(BlobId, u8)>],
    /// The older versions, in the order of the slots that have one.
    pub base_pages: &'a [u8],
}

/// Encodes a segment as a delta if that is worth it, else in full.
pub fn encode_segment(pages: &SegmentPages<'_>, level: i32) -> Frame {
    let full = || frame(pages, Vec::new(), encode_in_full(pages, level));
    let Some(delta) = encode_delta(pages, level) else { return full() };
    if delta.body.len() < pages.pages.len() * CERTAIN_PERCENT / 100 {
        return delta;
    }
    let full = full();
    if delta.body.len() < full.body.len() * WORTH_PERCENT / 100 { delta } else { full }
}

/// Encodes a segment as a delta; `None` if no page has an older version.
pub(crate) fn encode_delta(pages: &SegmentPages<'_>, level: i32) -> Option<Frame> {
    let (bases, refs) = number_bases(pages.older);
    if bases.is_empty() {
        return None;
    }
    let delta = Delta {
        page_bytes: pages.page_bytes,
        hashes: pages.hashes,
        present: pages.present,
        pages: pages.pages,
        refs: &refs,
        base_pages: pages.base_pages,
    };
    Some(frame(pages, bases, segment::encode_delta(&delta, level)?))
}

fn frame(pages: &SegmentPages<'_>, bases: Vec<Base>, body: Vec<u8>) -> Frame {
    let plain_bytes = pages.pages.len() as u32;
    let entries = vec![Entry { id: pages.id, kind: BlobType::Segment, plain_bytes }];
    Frame { encoding: Encoding::Segment, plain_bytes, entries, bases, body }
}

fn encode_in_full(pages: &SegmentPages<'_>, level: i32) -> Vec<u8> {
    if pages.present.count() as usize == pages.hashes.len() {
        return segment::encode(pages.page_bytes, pages.pages, pages.hashes.len(), level);
    }
    let mut present = pages.pages.chunks_exact(pages.page_bytes as usize);
    let slots = (0..pages.hashes.len()).map(|slot| u8::try_from(slot).is_ok_and(|slot| pages.present.has(slot)));
    let segment = Segment {
        page_bytes: pages.page_bytes,
        pages: slots.map(|there| if there { present.next().map(<[u8]>::to_vec) } else { None }).collect(),
    };
    segment::encode_partial(&segment, pages.hashes, level)
}

/// The bases in the order of their first mention, and where each page's is among them.
fn number_bases(older: &[Option<(BlobId, u8)>]) -> (Vec<Base>, Vec<BaseRef>) {
    let bases = bases_of(older);
    let mut last = 0;
    let mut number = |(id, slot): (BlobId, u8)| {
        // Neighbours mostly lean on the same.
        if bases.get(last).is_none_or(|base| base.id != id) {
            last = bases.iter().position(|base| base.id == id).unwrap_or_default();
        }
        (last as u16, u16::from(slot))
    };
    let refs = older.iter().map(|at| at.map(&mut number)).collect();
    (bases, refs)
}

/// The segments that pages lean on, in the order of their first mention, and which slots of each.
pub fn bases_of(older: &[Option<(BlobId, u8)>]) -> Vec<Base> {
    let mut bases: Vec<Base> = Vec::new();
    for (id, slot) in older.iter().flatten() {
        let at = bases.iter().rposition(|base| base.id == *id).unwrap_or_else(|| {
            bases.push(Base { id: *id, slots: SlotSet::default() });
            bases.len() - 1
        });
        if let Some(base) = bases.get_mut(at) {
            base.slots.insert(*slot);
        }
    }
    bases
}
