//! Copying blobs out of packs that are to be condemned: a frame whole where all of it is needed, else what is needed
//! of it. Every blob is verified on the way, so that damage is found here and not carried on.

use std::sync::Arc;

use rayon::prelude::*;

use super::{FrameReader, Gather, Repository, Writer, encode_frame};
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::pack::{Encoding, Entry, Frame};
use crate::id::{BlobId, PackId};
use crate::index::Place;
use crate::report::Reporter;

/// Level at which frames that are not kept as they are get compressed: what `create` uses by default.
const LEVEL: i32 = 3;
/// Frames read and verified at a time; each may decode to 16 MiB, most to one or less.
const BATCH_FRAMES: usize = 8;

/// Blobs of this size get a frame of their own when their frame is taken apart, in bytes.
const SINGLE_BYTES: usize = 64 << 10;

/// Something to store again.
pub(super) enum Moved {
    Frame(Frame),
    Small(BlobId, BlobType, Vec<u8>),
}

/// Stores the given blobs, sorted by place, in new packs, and an index of these.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] for a blob that is damaged; storage errors. What was stored until then does no harm.
pub fn copy(repo: &Arc<Repository>, blobs: &[(BlobId, Place)], reporter: &Reporter) -> Result<()> {
    if blobs.is_empty() {
        return Ok(());
    }
    let mut mover = Mover::new(repo);
    let frames: Vec<_> = blobs.chunk_by(|(_, a), (_, b)| (a.pack, a.frame) == (b.pack, b.frame)).collect();
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

    pub(super) fn finish(mut self) -> Result<()> {
        for mut gather in [self.data, self.metadata] {
            gather.take(LEVEL).map_or(Ok(()), |frame| self.writer.put_frame(frame))?;
        }
        self.writer.finish().map(drop)
    }
}

/// Reads and verifies those blobs of one frame that are needed.
fn read(repo: &Repository, live: &[(BlobId, Place)]) -> Result<Vec<Moved>> {
    let Some((first, place)) = live.first() else { return Ok(Vec::new()) };
    let reader = repo.frame_reader(*place)?;
    let (offset, len) = reader.range();
    let body = reader.open(repo, repo.backend().get_range(reader.path(), offset, len)?)?;
    if reader.encoding() == Encoding::Segment {
        repo.decode_segment(first, &reader, &body, 0)?;
        return Ok(vec![Moved::Frame(whole(&reader, live, body))]);
    }
    let plain = reader.decode(body.clone())?;
    live.iter().try_for_each(|(id, p)| repo.verify(id, *p, &plain).map(drop))?;
    Ok(take_apart(repo, &reader, live, body, &plain))
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
    /// never relies on a condemned pack. Called before and after a snapshot is committed.
    ///
    /// # Errors
    /// When a blob can't be read, or storage fails.
    pub fn rescue_condemned(self: &Arc<Self>, tree: BlobId, reporter: &Reporter) -> Result<()> {
        let records = self.condemned(reporter)?;
        let news: Vec<PackId> = {
            let index = self.index();
            let packs = records.into_iter().flat_map(|c| c.record.packs);
            packs.filter(|p| index.has_pack(p) && !index.is_condemned(p)).collect()
        };
        if news.is_empty() {
            return Ok(());
        }
        self.with_index(|index| index.condemn(news));
        let needed = self.reachable([tree], reporter)?;
        let mut lost: Vec<(BlobId, Place)> = {
            let index = self.index();
            let unusable = needed.into_iter().filter(|id| !index.is_usable(id));
            unusable.filter_map(|id| Some((id, index.find(&id)?))).collect()
        };
        lost.sort_by_key(|(_, place)| *place);
        copy(self, &lost, reporter)
    }
}
