//! Packs: the files that hold blobs.
//!
//! ```text
//! header (48) | sealed directory | sealed frame 1 | sealed frame 2 | … | padding
//! ```
//!
//! A *frame* is the unit of compression and sealing: one large blob, or several small ones together, since small
//! files compressed and sealed one by one cost twice the time and a quarter more space. The directory describes the
//! frames, so that an index can be rebuilt from packs alone. Padding takes the file to a Padmé length
//! (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", PETS 2019): sizes reveal little.

use super::bytes::Reader;
use super::header::{HEADER_BYTES, Header, Kind};
use super::segment::{Base, Encoded, SEGMENT_PAGES, SlotSet};
use super::slots::{put_bases, take_bases};
use super::{MAX_FRAME_BYTES, MAX_PACK_BYTES, MAX_PACK_DIRECTORY_BYTES};
use crate::crypto::{BlobType, Keys, ObjectKey, Secret, TAG_BYTES};
use crate::error::{Error, Result};
use crate::id::{BlobId, PackId};

/// A pack is closed at the first frame past this size that leaves little padding …
pub const PACK_TARGET_BYTES: usize = 8 << 20;
/// … or, when it has reached this size, where it left the least.
const PACK_LIMIT_BYTES: usize = 12 << 20;
/// Padding of less than a five-hundredth is little.
const LITTLE_PADDING: usize = 512;
/// The directory is padded with zeros to a multiple of this, so that its length hides the number of blobs.
const DIRECTORY_STEP_BYTES: usize = 512;

/// How a frame's body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The blobs, one after the other.
    Raw = 0,
    /// The same as one zstd frame.
    Zstd = 1,
    /// One database segment, see [`super::segment`].
    Segment = 2,
}

impl Encoding {
    /// Reads the stored number.
    pub fn from_u8(n: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd, Self::Segment].into_iter().find(|e| *e as u8 == n)
    }
}

/// One blob of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: BlobId,
    /// Its type.
    pub kind: BlobType,
    /// Length of its plaintext, in bytes.
    pub plain_bytes: u32,
}

/// A frame as the directory describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Length in the file, tag included, in bytes.
    pub stored_bytes: u32,
    /// Length decoded, in bytes.
    pub plain_bytes: u32,
    /// How the body is encoded.
    pub encoding: Encoding,
    /// The blobs in it, in order.
    pub entries: Vec<Entry>,
    /// Segments that are needed to decode this one.
    pub bases: Vec<Base>,
    /// Which slots of a segment are present, if some are not.
    pub slots: Option<SlotSet>,
}

/// A frame that was encoded and is not sealed yet: still readable, never stored like this.
#[derive(Debug, Clone)]
pub struct Frame {
    /// How the body is encoded.
    pub encoding: Encoding,
    /// Length decoded, in bytes.
    pub plain_bytes: u32,
    /// The blobs in it, in order.
    pub entries: Vec<Entry>,
    /// Segments that are needed to decode this one.
    pub bases: Vec<Base>,
    /// The encoded bytes.
    pub body: Vec<u8>,
}

/// What the directory of a pack says, with what is needed to open its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackInfo {
    /// The pack.
    pub id: PackId,
    /// Its header.
    pub header: Header,
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// Its frames, in order.
    pub frames: Vec<FrameInfo>,
}

/// A pack ready to be stored.
pub struct SealedPack {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// What it holds.
    pub info: PackInfo,
}

/// The next Padmé length at or above `n` bytes.
pub fn padme(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let exponent = u64::from(n.ilog2());
    let step = 1u64 << (exponent - u64::from(exponent.ilog2().saturating_add(1)).min(exponent));
    n.div_ceil(step) * step
}

/// The class key that seals packs of a kind.
pub fn class_key(keys: &Keys, kind: Kind) -> &Secret {
    if kind == Kind::DataPack { &keys.data } else { &keys.metadata }
}

/// What a frame's seal binds besides its position: the header, and how to decode it.
pub fn frame_aad(header: &Header, encoding: Encoding, plain_bytes: u32) -> [u8; HEADER_BYTES + 5] {
    let mut aad = [0; HEADER_BYTES + 5];
    aad[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    aad[HEADER_BYTES] = encoding as u8;
    aad[HEADER_BYTES + 1..].copy_from_slice(&plain_bytes.to_le_bytes());
    aad
}

/// Collects frames until a pack is full.
pub struct PackBuilder {
    kind: Kind,
    frames: Vec<Frame>,
    directory_bytes: usize,
    body_bytes: usize,
    /// Past the target size: how many frames leave the least padding, and how much that is.
    best: Option<(usize, usize)>,
}

impl PackBuilder {
    /// An empty pack of the given kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, frames: Vec::new(), directory_bytes: 4, body_bytes: 0, best: None }
    }

    /// Whether no frame was added.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: Frame) {
        let bases: usize = frame.bases.iter().map(Base::stored_bytes).sum();
        self.directory_bytes += 16 + 40 * frame.entries.len() + bases + 32 * usize::from(frame.slots().is_some());
        self.body_bytes += frame.body.len() + TAG_BYTES;
        self.frames.push(frame);
        let n = self.unpadded_bytes();
        let padding = padme(n as u64) as usize - n;
        if n >= PACK_TARGET_BYTES && self.best.is_none_or(|(_, least)| padding < least) {
            self.best = Some((self.frames.len(), padding));
        }
    }

    fn first_bytes(&self) -> usize {
        self.directory_bytes.next_multiple_of(DIRECTORY_STEP_BYTES) + TAG_BYTES
    }

    fn unpadded_bytes(&self) -> usize {
        HEADER_BYTES + self.first_bytes() + self.body_bytes
    }

    /// Whether a pack should be taken now.
    pub fn is_full(&self) -> bool {
        let n = self.unpadded_bytes();
        n >= PACK_LIMIT_BYTES || self.best.is_some_and(|(_, padding)| padding < n / LITTLE_PADDING)
    }

    /// Whether two packs would be padded less than this one: so a run's last one is better split.
    pub fn is_better_split(&self) -> bool {
        self.best.is_some_and(|(frames, _)| frames < self.frames.len())
    }

    /// Takes a full pack and goes on with the frames that did not fit well.
    pub fn take_full(&mut self) -> Self {
        let mut full = std::mem::replace(self, Self::new(self.kind));
        let keep = full.best.map_or(full.frames.len(), |(frames, _)| frames);
        let rest = full.frames.split_off(keep);
        let mut taken = Self::new(full.kind);
        full.frames.into_iter().for_each(|frame| taken.push(frame));
        rest.into_iter().for_each(|frame| self.push(frame));
        taken
    }

    /// Seals the pack.
    ///
    /// # Errors
    /// When there is no randomness, or a frame is too long to be sealed.
    pub fn seal(self, keys: &Keys) -> Result<SealedPack> {
        let first_bytes = self.first_bytes();
        let file_bytes = padme(self.unpadded_bytes() as u64);
        let header = Header::fresh(self.kind, first_bytes as u32)?;
        let key = ObjectKey::derive(class_key(keys, self.kind), &header.to_bytes());
        let frames: Vec<FrameInfo> = self.frames.iter().map(Frame::info).collect();

        let mut bytes = Vec::with_capacity(file_bytes as usize);
        bytes.extend_from_slice(&header.to_bytes());
        put_directory(&mut bytes, &frames);
        bytes.resize(HEADER_BYTES + first_bytes - TAG_BYTES, 0);
        key.seal(0, &header.to_bytes(), &mut bytes, HEADER_BYTES)?;
        // Each frame is dropped once it is sealed: a pack is never held twice.
        for (position, frame) in (1..).zip(self.frames) {
            let from = bytes.len();
            bytes.extend_from_slice(&frame.body);
            key.seal(position, &frame_aad(&header, frame.encoding, frame.plain_bytes), &mut bytes, from)?;
        }
        let padding = file_bytes as usize - bytes.len();
        key.pad(&mut bytes, padding);
        let id = PackId(*blake3::hash(&bytes).as_bytes());
        Ok(SealedPack { bytes, info: PackInfo { id, header, file_bytes, frames } })
    }
}

impl Frame {
    fn info(&self) -> FrameInfo {
        FrameInfo {
            stored_bytes: (self.body.len() + TAG_BYTES) as u32,
            plain_bytes: self.plain_bytes,
            encoding: self.encoding,
            entries: self.entries.clone(),
            bases: self.bases.clone(),
            slots: self.slots(),
        }
    }

    /// Which slots are present, if this is a segment that lacks some.
    pub fn slots(&self) -> Option<SlotSet> {
        let segment = (self.encoding == Encoding::Segment).then_some(&self.body)?;
        Encoded::parse(segment).ok()?.partial()
    }
}

fn put_directory(out: &mut Vec<u8>, frames: &[FrameInfo]) {
    out.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    for frame in frames {
        put_frame(out, frame);
    }
}

/// Appends a frame's description: 16 bytes, 40 for each blob, those of its bases, 32 for the slots of a partial segment.
fn put_frame(out: &mut Vec<u8>, frame: &FrameInfo) {
    out.extend_from_slice(&frame.stored_bytes.to_le_bytes());
    out.extend_from_slice(&frame.plain_bytes.to_le_bytes());
    out.extend_from_slice(&[frame.encoding as u8, u8::from(frame.slots.is_some())]);
    out.extend_from_slice(&(frame.bases.len() as u16).to_le_bytes());
    out.extend_from_slice(&(frame.entries.len() as u32).to_le_bytes());
    for entry in &frame.entries {
        out.extend_from_slice(&entry.id.0);
        out.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
        out.extend_from_slice(&entry.plain_bytes.to_le_bytes());
    }
    put_bases(out, &frame.bases);
    if let Some(slots) = frame.slots {
        out.extend_from_slice(&slots.to_bytes());
    }
}

/// Whether blobs of a type lie in packs of a kind: data and metadata never share a pack.
pub(super) fn belongs(kind: Kind, blob: BlobType) -> bool {
    matches!(blob, BlobType::Chunk | BlobType::Segment) == (kind == Kind::DataPack)
}

/// Reads what [`put_frame`] wrote for a pack of this kind; `None` for anything out of bounds.
fn take_frame(r: &mut Reader<'_>, pack: Kind) -> Option<FrameInfo> {
    let (stored_bytes, plain_bytes) = (r.u32()?, r.u32()?);
    let encoding = Encoding::from_u8(r.u8()?)?;
    let stored_fits = (TAG_BYTES..=2 * MAX_FRAME_BYTES).contains(&(stored_bytes as usize));
    let partial = take_partial(r, encoding)?;
    if plain_bytes as usize > MAX_FRAME_BYTES || !stored_fits {
        return None;
    }
    let (bases, entries) = (usize::from(r.u16()?), r.u32()? as usize);
    let mut take_entry = || {
        let id = BlobId(r.id()?);
        let kind = BlobType::from_u8(r.u8()?).filter(|kind| belongs(pack, *kind))?;
        if r.take(3)? != [0; 3] {
            return None;
        }
        Some(Entry { id, kind, plain_bytes: r.u32()? })
    };
    // Not with_capacity(entries): the number is from outside, the bytes behind it are counted as they are read.
    let mut list = Vec::new();
    for _ in 0..entries {
        list.push(take_entry()?);
    }
    let sum: u64 = list.iter().map(|e| u64::from(e.plain_bytes)).sum();
    let fits = match encoding {
        // An index has 24 bits for where a blob begins: nothing may follow 16 MiB, not even an empty blob.
        Encoding::Raw | Encoding::Zstd => {
            let is_last_placed = plain_bytes < MAX_FRAME_BYTES as u32 || list.last().is_some_and(|e| e.plain_bytes > 0);
            let none_is_segment = list.iter().all(|e| e.kind != BlobType::Segment);
            sum == u64::from(plain_bytes) && is_last_placed && none_is_segment && bases == 0
        }
        Encoding::Segment => {
            matches!(&list[..], [one] if one.kind == BlobType::Segment && one.plain_bytes == plain_bytes)
        }
    };
    if !fits || list.is_empty() {
        return None;
    }
    let bases = take_bases(r, bases)?;
    let slots = if partial { Some(take_slots(r)?) } else { None };
    Some(FrameInfo { stored_bytes, plain_bytes, encoding, entries: list, bases, slots })
}

/// Reads whether a frame is a segment that lacks some slots.
pub(super) fn take_partial(r: &mut Reader<'_>, encoding: Encoding) -> Option<bool> {
    match r.u8()? {
        0 => Some(false),
        1 if encoding == Encoding::Segment => Some(true),
        _ => None,
    }
}

/// Reads which slots of a segment are present.
pub(super) fn take_slots(r: &mut Reader<'_>) -> Option<SlotSet> {
    r.take(SEGMENT_PAGES / 8)?.try_into().ok().map(SlotSet::from_bytes)
}

/// How many bytes at the start of a pack hold header and directory, from its first [`HEADER_BYTES`].
///
/// # Errors
/// [`Error::Corrupt`] if the header is not one, or states more than is allowed.
pub fn prefix_bytes(start: &[u8], kind: Kind, what: &str) -> Result<usize> {
    let first = Header::parse(start, kind, what)?.first_bytes as usize;
    if first > MAX_PACK_DIRECTORY_BYTES {
        return Err(Error::corrupt(what, "its directory is larger than allowed"));
    }
    Ok(HEADER_BYTES + first)
}

/// Opens the directory of a pack from its first bytes ([`prefix_bytes`] of them at least).
///
/// # Errors
/// [`Error::Corrupt`] if anything about it isn't as it must be.
pub fn open_directory(keys: &Keys, id: PackId, kind: Kind, file_bytes: u64, start: &[u8]) -> Result<PackInfo> {
    let info = open_directory_of_part(keys, id, kind, file_bytes, start)?;
    let body: u64 = info.frames.iter().map(|f| u64::from(f.stored_bytes)).sum();
    let end = HEADER_BYTES as u64 + u64::from(info.header.first_bytes);
    if end + body <= file_bytes && file_bytes <= MAX_PACK_BYTES {
        return Ok(info);
    }
    Err(Error::corrupt(format!("pack {}", id.short()), "it ends before its last frame does, or is too long"))
}

/// The same for a pack that may be cut short: its frames may lie beyond the end of the file.
///
/// # Errors
/// [`Error::Corrupt`] if the directory is not authentic or makes no sense.
pub fn open_directory_of_part(keys: &Keys, id: PackId, kind: Kind, file_bytes: u64, start: &[u8]) -> Result<PackInfo> {
    let what = format!("pack {}", id.short());
    let end = prefix_bytes(start, kind, &what)?;
    let header = Header::parse(start, kind, &what)?;
    let mut directory =
        start.get(HEADER_BYTES..end).ok_or_else(|| Error::corrupt(&what, "it ends within its directory"))?.to_vec();
    let key = ObjectKey::derive(class_key(keys, kind), &header.to_bytes());
    if !key.open(0, &header.to_bytes(), &mut directory) {
        return Err(Error::corrupt(what, "its directory is not authentic"));
    }
    let parse = || {
        let mut r = Reader(&directory);
        let count = r.u32()?;
        let mut frames = Vec::new();
        for _ in 0..count {
            frames.push(take_frame(&mut r, kind)?);
        }
        r.only_zeros_left().then_some(frames)
    };
    let frames = parse().ok_or_else(|| Error::corrupt(&what, "its directory makes no sense"))?;
    Ok(PackInfo { id, header, file_bytes, frames })
}

impl PackInfo {
    /// Where each frame begins in the file, in bytes.
    pub fn frame_offsets(&self) -> impl Iterator<Item = u64> {
        let start = HEADER_BYTES as u64 + u64::from(self.header.first_bytes);
        self.frames.iter().scan(start, |at, frame| {
            let here = *at;
            *at += u64::from(frame.stored_bytes);
            Some(here)
        })
    }
}

#[cfg(test)]
mod tests;
