//! Database segments: up to 256 pages encoded together.
//!
//! A segment's id is the keyed hash of its list of page hashes, never of the encoding, so that a prune may store the
//! same segment in full, as a delta, or without pages that no map needs any more. Body of its frame, before sealing:
//!
//! ```text
//! page size (4) | slots n (2) | method (1) | zero (1) | n bits: slot is present | hashes (16 each) of absent slots
//! | method 2: for each present slot, base number (2) and base slot (2), or ffff ffff for none
//! | pages of the present slots: 0 as they are, 1 zstd, 2 zstd with the base pages, in slot order, as prefix
//! ```

use super::bytes::Reader;
pub use super::slots::{Base, SlotSet};
use super::zstd;
use crate::crypto::{BlobType, Keys};
use crate::id::{BlobId, PageHash};

/// Most pages in a segment: what a slot number of one byte can tell apart.
pub const SEGMENT_PAGES: usize = 256;
/// Most bytes of pages in a segment. Four times as much as 256 KiB compresses 7 % better on a first snapshot.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// Longest chain of segments that lean on each other.
pub const MAX_BASE_DEPTH: usize = 16;
const NO_BASE: u16 = u16::MAX;

/// How many pages of a size go into one segment.
pub fn pages_per_segment(page_bytes: usize) -> usize {
    (SEGMENT_BYTES / page_bytes.max(1)).clamp(1, SEGMENT_PAGES)
}

/// Whether SQLite can have pages of this size.
pub fn is_page_size(n: u32) -> bool {
    n.is_power_of_two() && (512..=65536).contains(&n)
}

/// The id of the segment with these pages.
pub fn segment_id(keys: &Keys, page_bytes: u32, hashes: &[PageHash]) -> BlobId {
    let mut text = Vec::with_capacity(4 + hashes.len() * 16);
    text.extend_from_slice(&page_bytes.to_le_bytes());
    text.extend_from_slice(hashes.as_flattened());
    keys.blob_id(BlobType::Segment, &text)
}

/// Where the older version of a page is: which of the frame's bases, and which slot there.
pub type BaseRef = Option<(u16, u16)>;

/// Decoded pages of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The pages; `None` where a prune dropped a dead one.
    pub pages: Vec<Option<Vec<u8>>>,
}

/// Encodes full pages; `pages` holds one page for each hash.
pub fn encode(page_bytes: u32, pages: &[u8], slots: usize, level: i32) -> Vec<u8> {
    let packed = if zstd::looks_random(pages) { None } else { zstd::compress(pages, level) };
    let mut out = preamble(page_bytes, slots, u8::from(packed.is_some()), |_| true);
    out.extend_from_slice(packed.as_deref().unwrap_or(pages));
    out
}

/// Encodes pages of which some are absent; `hashes` names all.
pub fn encode_partial(segment: &Segment, hashes: &[PageHash], level: i32) -> Vec<u8> {
    let plain: Vec<u8> = segment.pages.iter().flatten().flatten().copied().collect();
    let packed = zstd::compress(&plain, level);
    let present = |i: usize| segment.pages.get(i).is_some_and(Option::is_some);
    let mut out = preamble(segment.page_bytes, segment.pages.len(), u8::from(packed.is_some()), present);
    for (_, hash) in hashes.iter().enumerate().filter(|(i, _)| !present(*i)) {
        out.extend_from_slice(hash);
    }
    out.extend_from_slice(packed.as_deref().unwrap_or(&plain));
    out
}

/// Pages of a segment, with the older versions that they are encoded against.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The hash of every slot, absent ones included.
    pub hashes: &'a [PageHash],
    /// The slots that are present.
    pub present: &'a SlotSet,
    /// Their pages, one after the other.
    pub pages: &'a [u8],
    /// Where the older version of each of them is.
    pub refs: &'a [BaseRef],
    /// The older versions, in the order of the slots that have one.
    pub base_pages: &'a [u8],
}

/// Encodes pages as a delta; `None` if zstd fails.
pub fn encode_delta(delta: &Delta<'_>, level: i32) -> Option<Vec<u8>> {
    let packed = zstd::compress_delta(delta.pages, delta.base_pages, level)?;
    let present = |i: usize| u8::try_from(i).is_ok_and(|slot| delta.present.has(slot));
    let mut out = preamble(delta.page_bytes, delta.hashes.len(), 2, present);
    for (_, hash) in delta.hashes.iter().enumerate().filter(|(i, _)| !present(*i)) {
        out.extend_from_slice(hash);
    }
    for (base, slot) in delta.refs.iter().map(|r| r.unwrap_or((NO_BASE, NO_BASE))) {
        out.extend_from_slice(&base.to_le_bytes());
        out.extend_from_slice(&slot.to_le_bytes());
    }
    out.extend_from_slice(&packed);
    Some(out)
}

fn preamble(page_bytes: u32, slots: usize, method: u8, present: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&page_bytes.to_le_bytes());
    out.extend_from_slice(&(slots as u16).to_le_bytes());
    out.extend_from_slice(&[method, 0]);
    let mut bits = vec![0u8; slots.div_ceil(8)];
    for i in (0..slots).filter(|i| present(*i)) {
        bits[i / 8] |= 1 << (i % 8);
    }
    out.extend_from_slice(&bits);
    out
}

/// A segment's body, read up to its pages.
pub struct Encoded<'a> {
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// The hash of each absent slot, `None` for a present one.
    absent: Vec<Option<PageHash>>,
    /// For a delta, the base of each present slot, in order.
    pub bases: Vec<BaseRef>,
    method: u8,
    stored: &'a [u8],
}

impl<'a> Encoded<'a> {
    /// Reads the body of a segment's frame.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        Self::take(Reader(body)).ok_or_else(|| "its description of pages makes no sense".into())
    }

    fn take(mut r: Reader<'a>) -> Option<Self> {
        let (page_bytes, slots, method) = (r.u32()?, usize::from(r.u16()?), r.u8()?);
        let fits = is_page_size(page_bytes) && (1..=pages_per_segment(page_bytes as usize)).contains(&slots);
        if !fits || method > 2 || r.u8()? != 0 {
            return None;
        }
        let bits = r.take(slots.div_ceil(8))?;
        if slots % 8 > 0 && bits.last()? >> (slots % 8) != 0 {
            return None;
        }
        let mut absent = Vec::with_capacity(slots);
        for i in 0..slots {
            let present = bits[i / 8] >> (i % 8) & 1 == 1;
            absent.push(if present { None } else { Some(r.take(16)?.try_into().ok()?) });
        }
        let mut bases = Vec::new();
        if method == 2 {
            for _ in absent.iter().filter(|a| a.is_none()) {
                let (base, slot) = (r.u16()?, r.u16()?);
                if base == NO_BASE && slot != NO_BASE {
                    return None;
                }
                bases.push((base != NO_BASE).then_some((base, slot)));
            }
        }
        Some(Self { page_bytes, absent, bases, method, stored: r.0 })
    }

    /// The slots that are present, if some are not.
    pub fn partial(&self) -> Option<SlotSet> {
        let mut set = SlotSet::default();
        let slots = (0..=u8::MAX).zip(&self.absent);
        slots.filter(|(_, absent)| absent.is_none()).for_each(|(slot, _)| set.insert(slot));
        (self.present() < self.absent.len()).then_some(set)
    }

    /// Whether each slot is present.
    pub fn slots(&self) -> impl Iterator<Item = bool> {
        self.absent.iter().map(Option::is_none)
    }

    /// How many slots are present.
    pub fn present(&self) -> usize {
        self.absent.iter().filter(|a| a.is_none()).count()
    }

    /// Decodes the pages, recomputes every hash and compares the segment's id. `base_pages` holds the older
    /// versions that [`Encoded::bases`] asks for, in slot order; it is empty for a segment in full.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(&self, keys: &Keys, id: BlobId, base_pages: &[u8]) -> Result<Decoded, String> {
        let page_bytes = self.page_bytes as usize;
        let plain_bytes = self.present() * page_bytes;
        let plain = match self.method {
            0 if self.stored.len() == plain_bytes => self.stored.to_vec(),
            0 => return Err("its length is not that of its pages".into()),
            1 => zstd::decompress(self.stored, plain_bytes, None)?,
            _ => zstd::decompress(self.stored, plain_bytes, Some(base_pages))?,
        };
        let mut next = 0;
        let mut starts = Vec::with_capacity(self.absent.len());
        let mut hashes = Vec::with_capacity(self.absent.len());
        for absent in &self.absent {
            if let Some(hash) = absent {
                starts.push(None);
                hashes.push(*hash);
            } else {
                hashes.push(keys.page_hash(&plain[next..next + page_bytes]));
                starts.push(Some(next));
                next += page_bytes;
            }
        }
        if segment_id(keys, self.page_bytes, &hashes) != id {
            return Err("its pages are not those that its id stands for".into());
        }
        Ok(Decoded { page_bytes, plain, starts, hashes })
    }
}

/// The verified pages of a segment.
pub struct Decoded {
    page_bytes: usize,
    plain: Vec<u8>,
    starts: Vec<Option<usize>>,
    /// The hash of every slot, absent ones included.
    pub hashes: Vec<PageHash>,
}

impl Decoded {
    /// The page in a slot; `None` if there is no such slot or its page was dropped.
    pub fn page(&self, slot: usize) -> Option<&[u8]> {
        let start = (*self.starts.get(slot)?)?;
        self.plain.get(start..start + self.page_bytes)
    }

    /// The pages in `count` slots from `slot` on, one after the other; `None` unless all are there and lie in a row.
    pub fn pages(&self, slot: usize, count: usize) -> Option<&[u8]> {
        let starts = self.starts.get(slot..slot.checked_add(count)?)?;
        let start = (*starts.first()?)?;
        let in_a_row = starts.iter().zip(0..).all(|(at, n)| *at == Some(start + n * self.page_bytes));
        self.plain.get(start..start + count * self.page_bytes).filter(|_| in_a_row)
    }

    /// The page in a slot, if it has the hash that is asked for.
    pub fn page_with(&self, slot: usize, hash: &PageHash) -> Option<&[u8]> {
        self.page(slot).filter(|_| self.hashes.get(slot) == Some(hash))
    }

    /// Whether every slot's page is there.
    pub fn is_whole(&self) -> bool {
        self.starts.iter().all(Option::is_some)
    }

    /// The slots whose pages are there.
    pub fn present(&self) -> SlotSet {
        let mut set = SlotSet::default();
        (0..=u8::MAX).filter(|slot| self.page(usize::from(*slot)).is_some()).for_each(|slot| set.insert(slot));
        set
    }

    /// Takes over pages that another copy of the same segment has and this one lacks.
    pub fn fill_from(&mut self, other: &Self) {
        for slot in 0..self.starts.len() {
            if self.page(slot).is_none()
                && let Some(page) = other.page(slot)
            {
                self.starts[slot] = Some(self.plain.len());
                self.plain.extend_from_slice(page);
            }
        }
    }

    /// The segment with no other pages than those in the given slots, encoded in full.
    pub fn encode_only(&self, slots: &SlotSet, level: i32) -> (u32, Vec<u8>) {
        let keep = |slot: usize| u8::try_from(slot).is_ok_and(|slot| slots.has(slot));
        let page = |slot| self.page(slot).filter(|_| keep(slot)).map(<[u8]>::to_vec);
        let segment = Segment { page_bytes: self.page_bytes as u32, pages: (0..self.starts.len()).map(page).collect() };
        let plain_bytes = segment.pages.iter().flatten().map(Vec::len).sum::<usize>() as u32;
        (plain_bytes, encode_partial(&segment, &self.hashes, level))
    }

    /// Decoded bytes held.
    pub fn bytes(&self) -> usize {
        self.plain.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn pages(n: usize, seed: u8) -> Vec<u8> {
        (0..n * 512).map(|i| (i / 7) as u8 ^ seed).collect()
    }

    #[test]
    fn every_encoding_has_the_same_id_and_pages() {
        let keys = Keys::derive(&Secret([1; 32]));
        let plain = pages(5, 3);
        let hashes: Vec<_> = plain.chunks(512).map(|p| keys.page_hash(p)).collect();
        let id = segment_id(&keys, 512, &hashes);

        let full = encode(512, &plain, 5, 3);
        let decoded = Encoded::parse(&full).unwrap().decode(&keys, id, &[]).unwrap();
        assert_eq!(decoded.page(4), Some(&plain[2048..]));
        assert_eq!(decoded.page(5), None);

        // Incompressible but for the older version: the delta must really lean on it.
        let mut random = vec![0; 512];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        let plain = [&plain[..512], &random, &plain[1024..]].concat();
        let hashes: Vec<_> = plain.chunks(512).map(|p| keys.page_hash(p)).collect();
        let id = segment_id(&keys, 512, &hashes);
        let mut base = [&plain[512..1024], &plain[2048..]].concat();
        base[100] ^= 1;
        let refs = [None, Some((0, 1)), None, None, Some((1, 7))];
        let (hashes, all) = (&hashes[..], (0..5).collect::<SlotSet>());
        let delta = Delta { page_bytes: 512, hashes, present: &all, pages: &plain, refs: &refs, base_pages: &base };
        let encoded = encode_delta(&delta, 3).unwrap();
        let parsed = Encoded::parse(&encoded).unwrap();
        assert_eq!(parsed.bases, refs);
        assert_eq!(parsed.decode(&keys, id, &base).unwrap().page(1), Some(&plain[512..1024]));
        base[200] ^= 1;
        assert!(parsed.decode(&keys, id, &base).is_err(), "the wrong base is noticed");

        let mut kept = Segment { page_bytes: 512, pages: plain.chunks(512).map(|p| Some(p.to_vec())).collect() };
        kept.pages[2] = None;
        let partial = encode_partial(&kept, hashes, 3);
        let decoded = Encoded::parse(&partial).unwrap().decode(&keys, id, &[]).unwrap();
        assert_eq!((decoded.page(2), decoded.page(3)), (None, Some(&plain[1536..2048])));
        assert!(Encoded::parse(&partial).unwrap().decode(&keys, BlobId([0; 32]), &[]).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let full = encode(512, &pages(3, 1), 3, 3);
        for cut in 0..9 {
            assert!(Encoded::parse(&full[..cut]).is_err());
        }
        for (at, value, why) in [(0, 1, "a page size that is no power of two"), (8, 0b1111, "a bit beyond the slots")] {
            let mut bad = full.clone();
            bad[at] = value;
            assert!(Encoded::parse(&bad).is_err(), "{why}");
        }
        let one = [0].into_iter().collect();
        let none = Delta {
            page_bytes: 512,
            hashes: &[[0; 16]],
            present: &one,
            pages: &pages(1, 1),
            refs: &[None],
            base_pages: &[],
        };
        let mut delta = encode_delta(&none, 3).unwrap();
        assert!(Encoded::parse(&delta).is_ok());
        delta[11] = 0;
        assert!(Encoded::parse(&delta).is_err(), "half a base");
    }
}
