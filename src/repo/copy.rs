//! Copying blobs out of packs that are to be condemned: a frame whole where all of it is needed, else what is needed
//! of it, and a segment without the pages that nobody needs. Every blob is verified on the way, so that damage is found
//! here and not carried on.

use std::collections::HashSet;
use std::sync::Arc;

use rayon::prelude::*;

use super::{FrameReader, Gather, Live, Needs, Repository, Writer, encode_frame};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::pack::{Encoding, Entry, Frame};
use crate::format::segment::{Decoded, SlotSet};
use crate::id::{BlobId, PackId};
use crate::index::Place;
use crate::report::Reporter;

/// Level at which frames that are not kept as they are get compressed: what `create` uses by default.
const LEVEL: i32 = 3;
/// Frames read and verified at a time; each may decode to 16 MiB, most to one or less.
const BATCH_FRAMES: usize = 8;

/// Blobs of this size get a frame of their own when their frame is taken apart, in bytes.
const SINGLE_BYTES: usize = 64 << 10;

/// What is to be copied of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The blob.
    pub id: BlobId,
    /// From where.
    pub place: Place,
    /// Only these slots of a segment.
    pub slots: Option<Box<SlotSet>>,
    /// Whether a segment is to lean on no other any more.
    pub in_full: bool,
}

/// Something to store again.
pub(super) enum Moved {
    Frame(Frame),
    Small(BlobId, BlobType, Vec<u8>),
}

/// Stores the given blobs, sorted by place, in new packs, and an index of these. Returns the length of all of them, in
/// bytes.
///
/// # Errors
/// [`Error::Corrupt`] for a blob that is damaged; storage errors. What was stored until then does no harm.
pub fn copy(repo: &Arc<Repository>, pieces: &[Piece], reporter: &Reporter) -> Result<u64> {
    if pieces.is_empty() {
        return Ok(0);
    }
    let mut mover = Mover::new(repo);
    let same_frame = |a: &Piece, b: &Piece| (a.place.pack, a.place.frame) == (b.place.pack, b.place.frame);
    let frames: Vec<_> = pieces.chunk_by(same_frame).collect();
    for batch in frames.chunks(BATCH_FRAMES) {
        reporter.check_interrupt()?;
        let moved: Vec<Vec<Moved>> = batch.par_iter().map(|live| read(repo, live)).collect::<Result<_>>()?;
        moved.into_iter().flatten().try_for_each(|moved| mover.put(moved, reporter))?;
    }
    mover.finish()
}

/// Stores what was read, small blobs gathered into new frames.
pub(super) struct Mover {
    writer: Writer,
    data: Gather,
    metadata: Gather,
}

impl Mover {
    pub(super) fn new(repo: &Arc<Repository>) -> Self {
        Self { writer: Writer::new(repo, LEVEL), data: Gather::default(), metadata: Gather::default() }
    }

    pub(super) fn put(&mut self, moved: Moved, reporter: &Reporter) -> Result<()> {
        match moved {
            Moved::Frame(frame) => {
                reporter.advance(frame.body.len() as u64, 0);
                self.writer.put_frame(frame)
            }
            Moved::Small(id, kind, plain) => {
                reporter.advance(plain.len() as u64, 0);
                let gather = if kind.is_data() { &mut self.data } else { &mut self.metadata };
                gather.push(id, kind, &plain);
                if !gather.is_full() {
                    return Ok(());
                }
                gather.take(LEVEL).map_or(Ok(()), |frame| self.writer.put_frame(frame))
            }
        }
    }

    /// Returns the length of what was stored, in bytes.
    pub(super) fn finish(mut self) -> Result<u64> {
        for mut gather in [self.data, self.metadata] {
            gather.take(LEVEL).map_or(Ok(()), |frame| self.writer.put_frame(frame))?;
        }
        Ok(self.writer.finish()?.stored_bytes)
    }
}

/// Reads and verifies those blobs of one frame that are needed.
fn read(repo: &Repository, live: &[Piece]) -> Result<Vec<Moved>> {
    let Some(Piece { id: first, place, slots, in_full }) = live.first() else { return Ok(Vec::new()) };
    let reader = repo.frame_reader(*place)?;
    let (offset, len) = reader.range();
    let body = reader.open(repo, repo.backend().get_range(reader.path(), offset, len)?)?;
    let blobs: Vec<_> = live.iter().map(|p| (p.id, p.place)).collect();
    if reader.encoding() == Encoding::Segment {
        let decoded = repo.decode_segment(first, &reader, &body, 0)?;
        let told = repo.index().slots(*place).copied().unwrap_or(SlotSet::ALL);
        let wanted = slots.as_deref().unwrap_or(&SlotSet::ALL).common(&told);
        if !decoded.is_whole() && !decoded.present().holds(&wanted) {
            let why = "it lacks pages that it has by the index";
            return Err(Error::corrupt(format!("segment {first}"), why));
        }
        let present = decoded.present();
        let keep = slots.as_deref().map_or(present, |slots| slots.common(&present));
        let frame = if keep == present && (!in_full || reader.bases().is_empty()) {
            whole(&reader, &blobs, body)
        } else if *in_full || reader.bases().is_empty() {
            without_others(*first, &decoded, &keep)
        } else {
            repo.shrink_delta(first, &reader, &body, &decoded, &keep, LEVEL)?
        };
        return Ok(vec![Moved::Frame(frame)]);
    }
    let plain = reader.decode(body.clone())?;
    blobs.iter().try_for_each(|(id, p)| repo.verify(id, *p, &plain).map(drop))?;
    Ok(take_apart(repo, &reader, &blobs, body, &plain))
}

/// A segment with only some of its pages. It leans on no other any more.
fn without_others(id: BlobId, segment: &Decoded, slots: &SlotSet) -> Frame {
    let (plain_bytes, body) = segment.encode_only(slots, LEVEL);
    let entries = vec![Entry { id, kind: BlobType::Segment, plain_bytes }];
    Frame { encoding: Encoding::Segment, plain_bytes, entries, bases: Vec::new(), body }
}

/// A frame as it is.
pub(super) fn whole(reader: &FrameReader, live: &[(BlobId, Place)], body: Vec<u8>) -> Frame {
    let entries = live.iter().map(|(id, p)| Entry { id: *id, kind: p.kind, plain_bytes: p.plain_bytes }).collect();
    let bases = reader.bases().to_vec();
    Frame { encoding: reader.encoding(), plain_bytes: reader.plain_bytes(), entries, bases, body }
}

/// What is needed of a frame of blobs: the frame as it is if that is all of it, else the blobs that can be verified.
pub(super) fn take_apart(
    repo: &Repository,
    reader: &FrameReader,
    live: &[(BlobId, Place)],
    body: Vec<u8>,
    plain: &[u8],
) -> Vec<Moved> {
    if covers(live, reader.plain_bytes()) {
        return vec![Moved::Frame(whole(reader, live, body))];
    }
    let moved = live.iter().filter_map(|(id, place)| {
        let blob = repo.verify(id, *place, plain).ok()?;
        if blob.len() < SINGLE_BYTES {
            return Some(Moved::Small(*id, place.kind, blob.to_vec()));
        }
        let entry = Entry { id: *id, kind: place.kind, plain_bytes: place.plain_bytes };
        Some(Moved::Frame(encode_frame(vec![entry], blob.to_vec(), LEVEL)))
    });
    moved.collect()
}

/// Whether the blobs are all of the frame, one after the other.
fn covers(live: &[(BlobId, Place)], plain_bytes: u32) -> bool {
    let end =
        live.iter().try_fold(0u32, |end, (_, p)| if p.offset == end { end.checked_add(p.plain_bytes) } else { None });
    end == Some(plain_bytes)
}

impl Repository {
    /// Copies what the given root directory needs out of packs that were condemned since the index was loaded: a writer
    /// never relies on a condemned pack. Called before and after a snapshot is committed. Whether any were condemned.
    ///
    /// # Errors
    /// When a blob can't be read, or storage fails.
    pub(super) fn rescue_condemned(self: &Arc<Self>, tree: BlobId, live: &Live, reporter: &Reporter) -> Result<bool> {
        let records = self.records(live, reporter)?;
        let news: HashSet<PackId> = {
            let index = self.index();
            let packs = records.into_iter().flat_map(|c| c.record.packs);
            packs.filter(|p| index.has_pack(p) && !index.is_condemned(p)).collect()
        };
        if news.is_empty() {
            return Ok(false);
        }
        self.with_index(|index| index.condemn(news.iter().copied()));
        let needs = self.reachable([tree], reporter)?;
        let lost = self.unreliable(&needs, &news);
        copy(self, &lost, reporter).map(|_| true)
    }

    /// What is needed and can't be relied on, since condemned packs alone have it: of a segment, the slots that no
    /// other pack has, from as many places as it takes. Sorted by place. It is taken from packs that were condemned just
    /// now: those that had been before may be gone.
    fn unreliable(&self, needs: &Needs, news: &HashSet<PackId>) -> Vec<Piece> {
        let index = self.index();
        let condemned = |p: Place| index.packs().get(p.pack as usize).is_some_and(|pack| index.is_condemned(&pack.id));
        let mut lost = Vec::new();
        for position in needs.iter() {
            if needs.are_met_at(&index, position, |p| !condemned(p)) {
                continue;
            }
            let Some(id) = index.id_at(position) else { continue };
            let mut missing = needs.slots(position).copied().unwrap_or(SlotSet::ALL);
            let is_new = |p: &Place| index.packs().get(p.pack as usize).is_some_and(|pack| news.contains(&pack.id));
            for place in index.places(&id).filter(|p| !condemned(*p) || is_new(p)) {
                let slots = index.slots(place).copied().unwrap_or(SlotSet::ALL).common(&missing);
                if !slots.is_empty() {
                    let slots = (place.kind == BlobType::Segment).then(|| Box::new(slots));
                    lost.extend(condemned(place).then_some(Piece { id, place, slots, in_full: false }));
                    missing.remove(&index.slots(place).copied().unwrap_or(SlotSet::ALL));
                }
            }
        }
        lost.sort_by_key(|piece| piece.place);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Memory, layout};
    use crate::repo::testing::{World, noise};

    #[test]
    fn what_is_rescued_comes_from_packs_that_are_there_still() {
        let world = World::new();
        let files = [noise(1, 100_000), noise(2, 3000)];
        let mut trees = Vec::new();
        for _ in 0..2 {
            // Neither knows of the other, so that everything is stored twice.
            let repo = world.reopen_through(world.memory.clone());
            let mut writer = Writer::new(&repo, LEVEL);
            let nodes = world.put_files(&mut writer, &files);
            trees.push(World::put_tree(&mut writer, nodes));
            writer.finish().unwrap();
        }
        assert_eq!(trees[0], trees[1]);
        for old_first in [true, false] {
            let memory = Arc::new(Memory::default());
            for listed in world.memory.list("").unwrap() {
                memory.put(&listed.path, world.memory.get(&listed.path, u64::MAX).unwrap()).unwrap();
            }
            let open = || {
                let repo = world.reopen_through(memory.clone());
                repo.load_index(&Reporter::silent()).unwrap();
                repo
            };
            let index_files = memory.list(layout::INDEX).unwrap();
            let packs = index_files.iter().map(|l| open().open_index(&l.path).unwrap().packs);
            let mut runs: Vec<Vec<_>> = packs.map(|p| p.iter().map(|p| (p.kind(), p.id)).collect()).collect();
            if old_first {
                runs.reverse();
            }
            let ids = |run: usize| runs[run].iter().map(|(_, id)| *id).collect::<Vec<_>>();
            open().condemn(ids(0), vec![]).unwrap();
            // It relies on the packs of the other run, which are condemned too while it works; the first are deleted.
            let writer = open();
            open().condemn(ids(1), vec![]).unwrap();
            let gone: Vec<_> = runs[0].iter().map(|(kind, id)| layout::pack(*kind, *id)).collect();
            memory.delete(&gone).unwrap();
            writer.rescue_condemned(trees[0], &writer.live().unwrap(), &Reporter::silent()).unwrap();
            let needs = writer.reachable([trees[0]], &Reporter::silent()).unwrap();
            let index = writer.index();
            assert!(needs.iter().filter_map(|at| index.id_at(at)).all(|id| index.is_usable(&id)));
        }
    }
}
