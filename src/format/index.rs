//! Index files: which pack holds which blob.
//!
//! ```text
//! header (48) | sealed table | sealed pack blocks … | sealed record blocks …
//! table:   pack blocks n (4) | record blocks m (4) | n × sealed length (4) | m × (sealed length (4), first id (32))
//! pack:    id (32) | file length (8) | the pack's header (48) | frames (4)
//!          | per frame: stored (4) | plain (4) | encoding (1) | partial (1) | bases (2) | bases
//!          | if partial: present slots (32)
//! record:  id (32) | pack (4) | frame (4) | offset in frame (3) | type (1) | length (4)       = 48 bytes, sorted by id
//! ```
//!
//! Blocks are sealed one by one and records are sorted, so that a blob can be found with one table and one block.
//! The index is advisory: whatever it says, a blob is authenticated at its pack.

use rayon::prelude::*;

use super::bytes::Reader;
use super::header::{HEADER_BYTES, Header, Kind};
use super::pack::{Encoding, Entry, PackInfo, belongs, take_partial, take_slots};
use super::segment::{Base, SlotSet};
use super::slots::{put_bases, take_bases};
use super::{MAX_FRAME_BYTES, MAX_PACK_BYTES};
use crate::crypto::{BlobType, Keys, ObjectKey, TAG_BYTES};
use crate::error::{Error, Result};
use crate::id::{BlobId, IndexId, PackId};

/// Length of a record, in bytes.
pub const RECORD_BYTES: u64 = 48;
/// Records of 48 bytes in a block of about 64 KiB.
const BLOCK_RECORDS: usize = 1365;
/// A block of packs is closed at this size.
const PACK_BLOCK_BYTES: usize = 64 << 10;

/// A frame as the index describes it. There is one for each large blob, so it is held in 8 bytes, and what few frames have
/// stands in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedFrame {
    stored_bytes: u32,
    /// The lowest 25 bits of it are the length: that is at most [`MAX_FRAME_BYTES`].
    plain_bytes_and_encoding: u32,
}

/// The lowest bits, which a length of up to [`MAX_FRAME_BYTES`] takes.
const PLAIN_BITS: u32 = 25;

impl IndexedFrame {
    /// A frame of at most [`MAX_FRAME_BYTES`] of plaintext.
    fn new(stored_bytes: u32, plain_bytes: u32, encoding: Encoding) -> Self {
        Self { stored_bytes, plain_bytes_and_encoding: plain_bytes | u32::from(encoding as u8) << PLAIN_BITS }
    }

    /// Length in the file, tag included, in bytes.
    pub fn stored_bytes(&self) -> u32 {
        self.stored_bytes
    }

    /// Length decoded, in bytes.
    pub fn plain_bytes(&self) -> u32 {
        self.plain_bytes_and_encoding & ((1 << PLAIN_BITS) - 1)
    }

    /// How the body is encoded.
    pub fn encoding(&self) -> Encoding {
        Encoding::from_u8((self.plain_bytes_and_encoding >> PLAIN_BITS) as u8).unwrap_or(Encoding::Raw)
    }
}

/// What only some segments have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extra {
    frame: u32,
    bases: Box<[Base]>,
    slots: Option<SlotSet>,
}

/// A pack as the index describes it: enough to open any frame without reading the pack's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack.
    pub id: PackId,
    /// Its header.
    pub header: Header,
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// Its frames, in order.
    pub frames: Vec<IndexedFrame>,
    /// In the order of the frames.
    extras: Vec<Extra>,
}

impl IndexedPack {
    fn extra(&self, frame: u32) -> Option<&Extra> {
        let at = self.extras.binary_search_by_key(&frame, |e| e.frame).ok()?;
        self.extras.get(at)
    }

    /// Segments that are needed to decode a frame.
    pub fn bases(&self, frame: u32) -> &[Base] {
        self.extra(frame).map_or(&[], |e| &e.bases)
    }

    /// Which slots of the segment in a frame are present, if some are not.
    pub fn slots(&self, frame: u32) -> Option<&SlotSet> {
        self.extra(frame).and_then(|e| e.slots.as_ref())
    }

    fn push(&mut self, frame: IndexedFrame, bases: &[Base], slots: Option<SlotSet>) {
        if !bases.is_empty() || slots.is_some() {
            self.extras.push(Extra { frame: self.frames.len() as u32, bases: bases.into(), slots });
        }
        self.frames.push(frame);
    }

    /// A pack as its directory describes it.
    pub fn of(pack: &PackInfo) -> Self {
        let PackInfo { id, header, file_bytes, .. } = *pack;
        let frames = Vec::with_capacity(pack.frames.len());
        let mut indexed = Self { id, header, file_bytes, frames, extras: Vec::new() };
        for f in &pack.frames {
            let (stored_bytes, plain_bytes, encoding) = (f.stored_bytes, f.plain_bytes, f.encoding);
            indexed.push(IndexedFrame::new(stored_bytes, plain_bytes, encoding), &f.bases, f.slots);
        }
        indexed
    }
}

/// Where a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The blob.
    pub id: BlobId,
    /// Which pack, counted within the index.
    pub pack: u32,
    /// Which frame of it, from 0.
    pub frame: u32,
    /// Where in the decoded frame, in bytes.
    pub offset: u32,
    /// Length of its plaintext, in bytes.
    pub plain_bytes: u32,
    /// Its type.
    pub kind: BlobType,
}

/// The contents of an index file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// The packs it describes.
    pub packs: Vec<IndexedPack>,
    /// The blobs in them.
    pub records: Vec<Record>,
}

impl Index {
    /// Adds a pack with all its blobs.
    pub fn add(&mut self, pack: &PackInfo) {
        let number = self.packs.len() as u32;
        for (frame, info) in (0..).zip(&pack.frames) {
            let mut offset = 0;
            for entry in &info.entries {
                let Entry { id, kind, plain_bytes } = *entry;
                self.records.push(Record { id, pack: number, frame, offset, plain_bytes, kind });
                offset += plain_bytes;
            }
        }
        self.packs.push(IndexedPack::of(pack));
    }

    /// The bytes of the file, and its name.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(mut self, keys: &Keys) -> Result<(IndexId, Vec<u8>)> {
        self.records.sort_unstable();
        let mut pack_blocks: Vec<Vec<u8>> = Vec::new();
        for pack in &self.packs {
            if pack_blocks.last().is_none_or(|b| b.len() >= PACK_BLOCK_BYTES) {
                pack_blocks.push(Vec::new());
            }
            if let Some(block) = pack_blocks.last_mut() {
                put_pack(block, pack);
            }
        }
        let record_blocks: Vec<_> = self.records.chunks(BLOCK_RECORDS).collect();

        let mut table = Vec::new();
        table.extend_from_slice(&(pack_blocks.len() as u32).to_le_bytes());
        table.extend_from_slice(&(record_blocks.len() as u32).to_le_bytes());
        for block in &pack_blocks {
            table.extend_from_slice(&((block.len() + TAG_BYTES) as u32).to_le_bytes());
        }
        for block in &record_blocks {
            table.extend_from_slice(&((block.len() * 48 + TAG_BYTES) as u32).to_le_bytes());
            table.extend_from_slice(&block[0].id.0);
        }

        let header = Header::fresh(Kind::Index, (table.len() + TAG_BYTES) as u32)?;
        let aad = header.to_bytes();
        let key = ObjectKey::derive(&keys.index, &aad);
        let mut out = aad.to_vec();
        let mut position = 0;
        let mut put = |block: &[u8], out: &mut Vec<u8>| {
            let from = out.len();
            out.extend_from_slice(block);
            key.seal(position, &aad, out, from)?;
            position += 1;
            Ok::<_, Error>(())
        };
        put(&table, &mut out)?;
        for block in &pack_blocks {
            put(block, &mut out)?;
        }
        for block in record_blocks {
            put(&block.iter().flat_map(record_bytes).collect::<Vec<u8>>(), &mut out)?;
        }
        Ok((IndexId(*blake3::hash(&out).as_bytes()), out))
    }

    /// Opens a whole index file; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if anything about it isn't as it must be.
    pub fn open(keys: &Keys, bytes: &[u8], what: &str) -> Result<Self> {
        let header = Header::parse(bytes, Kind::Index, what)?;
        let key = ObjectKey::derive(&keys.index, &header.to_bytes());
        let mut file = Reader(bytes.get(HEADER_BYTES..).unwrap_or_default());
        let mut position = 0;
        let mut block = |file: &mut Reader<'_>, sealed_bytes: u32| {
            let sealed = file.take(sealed_bytes as usize);
            let mut sealed = sealed.ok_or_else(|| Error::corrupt(what, "it is cut short"))?.to_vec();
            let ok = key.open(position, &header.to_bytes(), &mut sealed);
            position += 1;
            if ok { Ok(sealed) } else { Err(Error::corrupt(what, "a part of it is not authentic")) }
        };
        let nonsense = || Error::corrupt(what, "its contents make no sense");

        let table = block(&mut file, header.first_bytes)?;
        let (pack_blocks, record_blocks) = parse_table(&table).ok_or_else(nonsense)?;
        let mut index = Self::default();
        for sealed_bytes in pack_blocks {
            let plain = block(&mut file, sealed_bytes)?;
            let mut r = Reader(&plain);
            while !r.0.is_empty() {
                index.packs.push(take_pack(&mut r).ok_or_else(nonsense)?);
            }
        }
        let mut blocks = Vec::with_capacity(record_blocks.len());
        for (sealed_bytes, first) in record_blocks {
            let sealed = file.take(sealed_bytes as usize).ok_or_else(|| Error::corrupt(what, "it is cut short"))?;
            blocks.push((position, sealed, first));
            position += 1;
        }
        // Each block is a part of `records`: there are millions, and no room for them twice.
        let records_in = |sealed: &[u8]| sealed.len().saturating_sub(TAG_BYTES) / RECORD_BYTES as usize;
        let nothing =
            Record { id: BlobId([0; 32]), pack: 0, frame: 0, offset: 0, plain_bytes: 0, kind: BlobType::Chunk };
        index.records.resize(blocks.iter().map(|(_, sealed, _)| records_in(sealed)).sum(), nothing);
        let mut parts = Vec::with_capacity(blocks.len());
        let mut rest = &mut index.records[..];
        for block in blocks {
            let (part, after) = rest.split_at_mut_checked(records_in(block.1)).ok_or_else(nonsense)?;
            parts.push((block, part));
            rest = after;
        }
        let (packs, aad) = (&index.packs[..], header.to_bytes());
        parts.into_par_iter().try_for_each(|((position, sealed, first), part)| {
            let mut plain = sealed.to_vec();
            if !key.open(position, &aad, &mut plain) {
                return Err(Error::corrupt(what, "a part of it is not authentic"));
            }
            let mut r = Reader(&plain);
            for record in part {
                *record = take_record(&mut r).filter(|r| holds(packs, r)).ok_or_else(nonsense)?;
            }
            if r.0.is_empty() && plain.starts_with(&first.0) { Ok(()) } else { Err(nonsense()) }
        })?;
        if !file.0.is_empty() || !index.records.is_sorted() {
            return Err(nonsense());
        }
        Ok(index)
    }
}

/// Whether a record points into a frame that exists, may hold such a blob, and is long enough.
fn holds(packs: &[IndexedPack], record: &Record) -> bool {
    let Some(pack) = packs.get(record.pack as usize) else { return false };
    let Some(frame) = pack.frames.get(record.frame as usize) else { return false };
    let is_segment = record.kind == BlobType::Segment;
    belongs(pack.header.kind, record.kind)
        && (frame.encoding() == Encoding::Segment) == is_segment
        && u64::from(record.offset) + u64::from(record.plain_bytes) <= u64::from(frame.plain_bytes())
}

fn put_pack(out: &mut Vec<u8>, pack: &IndexedPack) {
    out.extend_from_slice(&pack.id.0);
    out.extend_from_slice(&pack.file_bytes.to_le_bytes());
    out.extend_from_slice(&pack.header.to_bytes());
    out.extend_from_slice(&(pack.frames.len() as u32).to_le_bytes());
    for (number, f) in (0..).zip(&pack.frames) {
        let (bases, slots) = (pack.bases(number), pack.slots(number));
        out.extend_from_slice(&f.stored_bytes().to_le_bytes());
        out.extend_from_slice(&f.plain_bytes().to_le_bytes());
        out.extend_from_slice(&[f.encoding() as u8, u8::from(slots.is_some())]);
        out.extend_from_slice(&(bases.len() as u16).to_le_bytes());
        put_bases(out, bases);
        slots.into_iter().for_each(|slots| out.extend_from_slice(&slots.to_bytes()));
    }
}

fn take_pack(r: &mut Reader<'_>) -> Option<IndexedPack> {
    let (id, file_bytes) = (PackId(r.id()?), r.u64()?);
    let header = r.take(HEADER_BYTES)?;
    let header =
        Header::parse(header, Kind::DataPack, "").or_else(|_| Header::parse(header, Kind::MetadataPack, "")).ok()?;
    let mut pack = IndexedPack { id, header, file_bytes, frames: Vec::new(), extras: Vec::new() };
    let mut end = HEADER_BYTES as u64 + u64::from(header.first_bytes);
    for _ in 0..r.u32()? {
        let (stored_bytes, plain_bytes) = (r.u32()?, r.u32()?);
        let encoding = Encoding::from_u8(r.u8()?)?;
        let partial = take_partial(r, encoding)?;
        let stored_fits = (TAG_BYTES..=2 * MAX_FRAME_BYTES).contains(&(stored_bytes as usize));
        let sound = plain_bytes as usize <= MAX_FRAME_BYTES && stored_fits;
        end += u64::from(stored_bytes);
        if !sound || end > file_bytes {
            return None;
        }
        let bases = usize::from(r.u16()?);
        if bases > 0 && encoding != Encoding::Segment {
            return None;
        }
        let bases = take_bases(r, bases)?;
        let slots = if partial { Some(take_slots(r)?) } else { None };
        pack.push(IndexedFrame::new(stored_bytes, plain_bytes, encoding), &bases, slots);
    }
    // There are many packs, and each would keep room for as many frames again.
    pack.frames.shrink_to_fit();
    (file_bytes <= MAX_PACK_BYTES).then_some(pack)
}

fn record_bytes(r: &Record) -> [u8; 48] {
    let mut out = [0; 48];
    out[..32].copy_from_slice(&r.id.0);
    out[32..36].copy_from_slice(&r.pack.to_le_bytes());
    out[36..40].copy_from_slice(&r.frame.to_le_bytes());
    // A frame has at most 16 MiB, so that a blob in it begins below 2^24.
    out[40..44].copy_from_slice(&(r.offset | (r.kind as u32) << 24).to_le_bytes());
    out[44..].copy_from_slice(&r.plain_bytes.to_le_bytes());
    out
}

fn take_record(r: &mut Reader<'_>) -> Option<Record> {
    let (id, pack, frame, place, plain_bytes) = (BlobId(r.id()?), r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    let kind = BlobType::from_u8((place >> 24) as u8)?;
    Some(Record { id, pack, frame, offset: place & 0x00ff_ffff, plain_bytes, kind })
}

/// The sealed lengths of the pack blocks, and of the record blocks with the id that each begins with.
type Table = (Vec<u32>, Vec<(u32, BlobId)>);

fn parse_table(table: &[u8]) -> Option<Table> {
    let mut r = Reader(table);
    let (packs, records) = (r.u32()? as usize, r.u32()? as usize);
    if r.0.len() as u64 != packs as u64 * 4 + records as u64 * 36 {
        return None;
    }
    let packs = (0..packs).map(|_| r.u32()).collect::<Option<_>>()?;
    let records = (0..records).map(|_| Some((r.u32()?, BlobId(r.id()?)))).collect::<Option<_>>()?;
    Some((packs, records))
}

#[cfg(test)]
mod tests {
    use super::super::pack::{Frame, PackBuilder};
    use super::*;
    use crate::crypto::Secret;

    fn index(keys: &Keys) -> Index {
        let mut index = Index::default();
        for p in 0..3u8 {
            let mut builder = PackBuilder::new(if p == 0 { Kind::MetadataPack } else { Kind::DataPack });
            for f in 0..900u16 {
                let mut id = [p; 32];
                id[..2].copy_from_slice(&f.to_be_bytes());
                let kind = if p == 0 { BlobType::Tree } else { BlobType::Chunk };
                let entry = Entry { id: BlobId(id), kind, plain_bytes: 3 };
                let mut frame = Frame {
                    encoding: Encoding::Raw,
                    plain_bytes: 6,
                    entries: vec![entry, Entry { id: BlobId([f as u8; 32]), ..entry }],
                    bases: vec![],
                    body: vec![0; 6],
                };
                if p > 0 && f % 9 == 0 {
                    frame.encoding = Encoding::Segment;
                    frame.entries = vec![Entry { kind: BlobType::Segment, plain_bytes: 6, ..entry }];
                    frame.bases = vec![Base { id: BlobId([7; 32]), slots: [0, 200].into_iter().collect() }];
                }
                builder.push(frame);
            }
            index.add(&builder.seal(keys).unwrap().info);
        }
        index
    }

    #[test]
    fn round_trip_and_flips() {
        let keys = Keys::derive(&Secret([1; 32]));
        let mut index = index(&keys);
        let (_, bytes) = index.clone().seal(&keys).unwrap();
        index.records.sort_unstable();
        assert_eq!(Index::open(&keys, &bytes, "x").unwrap(), index);
        for at in (0..bytes.len()).step_by(997).chain(0..64) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Index::open(&keys, &bad, "x").is_err(), "byte {at}");
        }
        for cut in [0, 47, 60, bytes.len() / 2, bytes.len() - 1] {
            assert!(Index::open(&keys, &bytes[..cut], "x").is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn records_that_can_not_be_are_refused() {
        let keys = Keys::derive(&Secret([1; 32]));
        let sound = index(&keys);
        let opens = |change: &dyn Fn(&mut Index)| {
            let mut index = sound.clone();
            change(&mut index);
            Index::open(&keys, &index.seal(&keys).unwrap().1, "x").is_ok()
        };
        assert!(opens(&|_| {}));
        // The first record is of a tree in a metadata pack, frame 0 of pack 1 is a segment's.
        assert!(!opens(&|index| index.records[0].kind = BlobType::Chunk), "a chunk in a metadata pack");
        assert!(!opens(&|index| index.records[0].plain_bytes = 7), "past the end of its frame");
        let zstd = |index: &mut Index| {
            let frame = index.packs[1].frames[0];
            index.packs[1].frames[0] = IndexedFrame::new(frame.stored_bytes, frame.plain_bytes(), Encoding::Zstd);
        };
        assert!(!opens(&zstd), "bases of a frame of chunks");
        assert!(!opens(&|index| index.packs[1].frames[0].stored_bytes = TAG_BYTES as u32 - 1), "less than a seal");
        let segment = sound.records.iter().position(|r| r.kind == BlobType::Segment).unwrap();
        assert!(!opens(&|index| index.records[segment].kind = BlobType::Chunk), "a chunk where a segment is");
    }
}
