//! Getting out of a damaged pack what can still be read of it.
//!
//! A pack describes itself in its directory, and the index has a copy of that. Either may be wrong or lost, the file may
//! be cut short, changed in places, or lie under another pack's name: whatever frame still authenticates, by either
//! description, and whatever blob in it has the bytes that its id stands for, is stored again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::copy::{Moved, Mover, take_apart, whole};
use super::{FrameReader, Repository};
use crate::backend::{Listed, layout};
use crate::error::Result;
use crate::format::header::{Header, Kind};
use crate::format::pack::{Encoding, Entry, PackInfo, open_directory_of_part};
use crate::id::{BlobId, PackId};
use crate::index::{BlobIndex, Place};
use crate::report::Reporter;

/// Stores what is got out of damaged packs in new ones.
pub struct Salvage {
    repo: Arc<Repository>,
    told: BTreeMap<PackId, Told>,
    mover: Option<Mover>,
    saved: HashSet<BlobId>,
    /// Those of which no other copy can have more.
    whole: HashSet<BlobId>,
}

/// What an index tells of a pack.
struct Told {
    header: Header,
    pieces: Vec<Piece>,
}

/// What came of one pack.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Blobs that were stored again.
    pub saved: u64,
    /// Blobs that it should hold, that can't be read, and that lie nowhere else.
    pub lost: Vec<BlobId>,
    /// Whether anything at all is known of what it should hold.
    pub described: bool,
}

/// A frame as one of the descriptions has it, with its blobs.
struct Piece {
    reader: FrameReader,
    blobs: Vec<(BlobId, Place)>,
}

impl Salvage {
    /// For these packs, as `index` describes them, if it does. Nothing is stored before there is something to store.
    pub fn new(repo: &Arc<Repository>, index: &BlobIndex, packs: &HashSet<PackId>) -> Self {
        Self {
            repo: repo.clone(),
            told: told_of(index, packs),
            mover: None,
            saved: HashSet::new(),
            whole: HashSet::new(),
        }
    }

    /// Stores again what can be read of a file that is, or should be, one of these packs, but for blobs that `elsewhere`
    /// says to be safe.
    ///
    /// # Errors
    /// When storing fails.
    pub fn pack(
        &mut self,
        listed: &Listed,
        elsewhere: impl Fn(&BlobId) -> bool,
        reporter: &Reporter,
    ) -> Result<Salvaged> {
        let mut result = Salvaged::default();
        let mut missing: HashSet<BlobId> = HashSet::new();
        for mut piece in self.pieces(listed) {
            reporter.check_interrupt()?;
            result.described = true;
            piece.blobs.retain(|(id, _)| !elsewhere(id) && !self.whole.contains(id));
            missing.extend(piece.blobs.iter().map(|(id, _)| *id));
            for moved in read(&self.repo, &piece) {
                let ids = moved.ids();
                let moved_is_partial = matches!(&moved, Moved::Frame(frame) if frame.slots().is_some());
                self.mover.get_or_insert_with(|| Mover::new(&self.repo)).put(moved, reporter)?;
                result.saved += ids.len() as u64;
                // Of a segment that lacks pages another copy may have others.
                if !moved_is_partial {
                    self.whole.extend(&ids);
                }
                self.saved.extend(ids);
            }
        }
        missing.retain(|id| !self.saved.contains(id));
        result.lost = missing.into_iter().collect();
        Ok(result)
    }

    /// The frames of the file: by its own directory first, then by the index.
    fn pieces(&mut self, listed: &Listed) -> Vec<Piece> {
        let Some((_, id)) = layout::parse_pack(&listed.path) else { return Vec::new() };
        let mut pieces = Vec::new();
        let told = self.told.remove(&id);
        let info = own_directory(&self.repo, listed, id);
        if let Some(info) = &info {
            for ((number, offset), frame) in (0..).zip(info.frame_offsets()).zip(&info.frames) {
                let reader = FrameReader::of_pack(info, number, offset, frame);
                pieces.push(Piece { reader, blobs: places(number, &frame.entries) });
            }
        }
        // The same again, unless another pack lies there under this one's name.
        pieces.extend(told.filter(|t| info.is_none_or(|i| i.header != t.header)).into_iter().flat_map(|t| t.pieces));
        pieces.into_iter().map(|Piece { reader, blobs }| Piece { reader: reader.at(&listed.path), blobs }).collect()
    }

    /// Blobs that were stored again so far.
    pub fn saved(&self) -> &HashSet<BlobId> {
        &self.saved
    }

    /// Stores what is left, and an index of the new packs. They are in the index in memory then.
    ///
    /// # Errors
    /// When the store fails.
    pub fn finish(self) -> Result<()> {
        self.mover.map_or(Ok(()), |mover| mover.finish().map(drop))
    }
}

impl Moved {
    fn ids(&self) -> Vec<BlobId> {
        match self {
            Self::Frame(frame) => frame.entries.iter().map(|e| e.id).collect(),
            Self::Small(id, ..) => vec![*id],
        }
    }
}

/// What can be read and verified of a frame.
fn read(repo: &Repository, piece: &Piece) -> Vec<Moved> {
    let Piece { reader, blobs } = piece;
    let Some((first, _)) = blobs.first() else { return Vec::new() };
    let (offset, len) = reader.range();
    let sealed = repo.backend().get_range(reader.path(), offset, len);
    let Ok(body) = sealed.and_then(|sealed| reader.open(repo, sealed)) else { return Vec::new() };
    if reader.encoding() == Encoding::Segment {
        // Authentic, and only what it leans on is lost: that may come back.
        let leans_on_lost = || reader.bases().iter().any(|base| repo.read_base(base).is_err());
        let is_sound = repo.decode_segment(first, reader, &body, 0).is_ok() || leans_on_lost();
        return if is_sound { vec![Moved::Frame(whole(reader, blobs, body))] } else { Vec::new() };
    }
    let Ok(plain) = reader.decode(body.clone()) else { return Vec::new() };
    let sound: Vec<_> = blobs.iter().filter(|(id, p)| repo.verify(id, *p, &plain).is_ok()).copied().collect();
    take_apart(repo, reader, &sound, body, &plain)
}

/// The directory of the file, whatever kind of pack it is and however long.
fn own_directory(repo: &Repository, listed: &Listed, id: PackId) -> Option<PackInfo> {
    [Kind::DataPack, Kind::MetadataPack].into_iter().find_map(|kind| {
        let start = repo.read_prefix(&listed.path, kind, listed.bytes).ok()?;
        open_directory_of_part(repo.keys(), id, kind, listed.bytes, &start).ok()
    })
}

/// Where blobs lie that follow each other in a frame.
fn places(frame: u32, entries: &[Entry]) -> Vec<(BlobId, Place)> {
    let mut offset = 0;
    let place = |entry: &Entry| {
        let Entry { id, kind, plain_bytes } = *entry;
        let place = Place { pack: 0, frame, offset, plain_bytes, kind };
        offset += plain_bytes;
        (id, place)
    };
    entries.iter().map(place).collect()
}

fn told_of(index: &BlobIndex, wanted: &HashSet<PackId>) -> BTreeMap<PackId, Told> {
    let mut blobs: BTreeMap<(PackId, u32), Vec<(BlobId, Place)>> = BTreeMap::new();
    for (id, place) in index.iter() {
        let pack = index.packs().get(place.pack as usize).filter(|pack| wanted.contains(&pack.id));
        if let Some(pack) = pack {
            blobs.entry((pack.id, place.frame)).or_default().push((*id, place));
        }
    }
    let mut told = BTreeMap::new();
    for ((id, frame), mut blobs) in blobs {
        let pack = index.number(&id).and_then(|number| index.packs().get(number as usize));
        let Some(pack) = pack else { continue };
        blobs.sort_unstable_by_key(|(_, place)| *place);
        let piece = FrameReader::of_index(pack, frame).map(|reader| Piece { reader, blobs });
        let of_pack = told.entry(id).or_insert_with(|| Told { header: pack.header, pieces: Vec::new() });
        of_pack.pieces.extend(piece);
    }
    told
}
