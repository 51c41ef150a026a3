//! Writing files by frames: a batch of files becomes a list of pieces, sorted by where they lie in the repository.
//!
//! Small files lie many to a frame and large ones many to a pack: every frame is read, opened and decoded once and its
//! blobs go to wherever they belong. A file is complete when its last piece is written, whichever that is.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::context::Context;
use super::display;
use super::existing::Reuse;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::index::Place;
use crate::repo::{FrameReader, Repository, Wanted, arrange};
use crate::report::Severity;
use crate::source::exclusive::Exclusive;
use crate::source::target::Folder;
use crate::source::temporary::Temporary;

/// One name to restore.
pub(super) struct Part {
    pub folder: Arc<Folder>,
    pub node: Node,
    /// If it is a database that may replace another one: the files beside it that must be gone before it gets its
    /// name.
    pub stale: Option<Vec<Vec<u8>>>,
    /// What of the file that is there is used.
    pub reuse: Reuse,
}

impl Part {
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path_of(&self.node.name)
    }

    /// Sets attributes of a complete file, clears the way, and gives it its name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn complete(&self, context: &Context<'_>, made: &Temporary) -> Result<()> {
        context.attributes.apply(&*made.file()?, &self.node, self.folder.passes_on_acl(), || self.path());
        if self.stale.is_some() {
            // What it replaces was sound: what comes instead must survive a power cut too.
            made.sync()?;
        }
        self.place(context, made)?;
        if let Some(why) = &self.node.unverified {
            let why = format!("restored as it was stored, which is unverified: {why}");
            context.reporter.warn(Severity::Note, display(&self.path()), why);
        }
        Ok(())
    }
}

impl Part {
    /// Gives what was made its name. A database that has it is first made self-contained and locked; then its sidecars
    /// go, which hold nothing any more; and only when that is durable comes the new one. So whenever this is cut off,
    /// the old database is there, or the new one, and nothing beside it that belongs to the other.
    ///
    /// # Errors
    /// [`Error::Refused`] if the old one is in use, and [`Error::File`].
    pub(super) fn place(&self, context: &Context<'_>, made: &Temporary) -> Result<()> {
        if self.stale.is_none() {
            return made.place();
        }
        let _alone = Exclusive::take(&self.folder, &self.node.name, context.options.force)?;
        self.remove_stale()?;
        made.place()?;
        self.folder.sync()
    }

    /// Removes what lies beside a database, durably.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn remove_stale(&self) -> Result<()> {
        let mut is_any = false;
        for name in self.stale.iter().flatten() {
            if self.folder.stat(name)?.is_some() {
                self.folder.remove(name)?;
                is_any = true;
            }
        }
        if is_any { self.folder.sync() } else { Ok(()) }
    }
}

/// A stretch of data: where it is in the data, in the file, and how long it is, in bytes.
struct Extent {
    data: u64,
    file: u64,
    bytes: u64,
}

/// Where the data of a file lies in it.
pub(super) struct Layout {
    extents: Vec<Extent>,
    pub data_bytes: u64,
    file_bytes: u64,
}

impl Layout {
    pub(super) fn of(node: &Node) -> Self {
        let file_bytes = node.size.unwrap_or(0);
        let whole = [0, file_bytes];
        let pairs = node.extents.as_deref().unwrap_or(&whole);
        let mut data = 0;
        let place = |pair: &[u64; 2]| {
            let extent = Extent { data, file: pair[0], bytes: pair[1] };
            data += pair[1];
            extent
        };
        let extents = pairs.as_chunks().0.iter().map(place).collect();
        Self { extents, data_bytes: data, file_bytes }
    }

    /// Takes data from `at` on apart: the range in it, and where in the file that belongs.
    pub(super) fn spans(&self, at: u64, bytes: usize) -> impl Iterator<Item = (Range<usize>, u64)> {
        let end = at + bytes as u64;
        let first = self.extents.partition_point(|e| e.data + e.bytes <= at);
        let within = self.extents.get(first..).unwrap_or_default().iter().take_while(move |e| e.data < end);
        within.map(move |extent| {
            let (from, to) = (extent.data.max(at), (extent.data + extent.bytes).min(end));
            ((from - at) as usize..(to - at) as usize, extent.file + (from - extent.data))
        })
    }

    /// Stretches of the file that hold no data: offset and length, in bytes.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let ends = [0].into_iter().chain(self.extents.iter().map(|e| e.file + e.bytes));
        let begins = self.extents.iter().map(|e| e.file).chain([self.file_bytes]);
        ends.zip(begins).filter(|(end, begin)| begin > end).map(|(end, begin)| (end, begin - end))
    }
}

pub(super) struct File {
    pub part: Part,
    pub layout: Layout,
    /// Pieces to come.
    pub left: AtomicUsize,
    state: Mutex<State>,
}

pub(super) enum State {
    Waiting,
    Writing(Arc<Temporary>),
    Done,
    /// What was there is right.
    Kept,
    Lost,
}

/// A blob that goes to one place in one file.
pub(super) struct Piece {
    pub id: BlobId,
    pub place: Place,
    /// Number of the file in the batch.
    pub file: u32,
    /// Where in the file's data, in bytes.
    pub at: u64,
}

impl File {
    pub(super) fn new(part: Part, layout: Layout, pieces: usize) -> Self {
        Self { part, layout, left: AtomicUsize::new(pieces), state: Mutex::new(State::Waiting) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, state: State) {
        *self.lock() = state;
    }

    /// The file under its temporary name, made at the first call; `None` if it is lost, or needs no writing.
    pub(super) fn begin(&self) -> Result<Option<Arc<Temporary>>> {
        let mut state = self.lock();
        match &*state {
            State::Writing(made) => Ok(Some(made.clone())),
            State::Lost | State::Done | State::Kept => Ok(None),
            State::Waiting => {
                let made = Arc::new(self.part.folder.temporary(&self.part.node.name));
                made.make_file()?;
                if self.part.node.extents.is_some() {
                    made.set_len(self.part.node.size.unwrap_or(0))?;
                }
                *state = State::Writing(made.clone());
                Ok(Some(made))
            }
        }
    }

    /// Writes data from `at` on to wherever it belongs.
    pub(super) fn put(&self, made: &Temporary, at: u64, bytes: &[u8]) -> Result<()> {
        self.layout.spans(at, bytes.len()).try_for_each(|(range, offset)| {
            let part = bytes.get(range).unwrap_or_default();
            made.write_at(part, offset)
        })
    }

    pub(super) fn write(&self, context: &Context<'_>, at: u64, bytes: &[u8]) -> Result<()> {
        let Some(made) = self.begin()? else { return Ok(()) };
        self.put(&made, at, bytes)?;
        drop(made);
        let count = bytes.len() as u64;
        context.tally.bytes.add(count);
        context.tally.fetched.add(count);
        context.reporter.advance(count, 0);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 { self.finish(context) } else { Ok(()) }
    }

    fn finish(&self, context: &Context<'_>) -> Result<()> {
        let Some(made) = self.begin()? else { return Ok(()) };
        self.part.complete(context, &made)?;
        self.set(State::Done);
        context.tally.files.add(1);
        context.reporter.advance(0, 1);
        Ok(())
    }

    pub(super) fn lose(&self, context: &Context<'_>, error: Error) -> Result<()> {
        let before = std::mem::replace(&mut *self.lock(), State::Lost);
        if matches!(before, State::Lost) {
            return Ok(());
        }
        // Here the temporary file goes, unless another thread still writes to it: then there.
        drop(before);
        context.lose(&self.part.path(), error)
    }

    pub(super) fn is(&self, wanted: impl Fn(&State) -> bool) -> bool {
        wanted(&self.lock())
    }
}

/// Where the data of a file is in the repository, piece by piece.
///
/// # Errors
/// If anything of it is nowhere, or it is not as long as stated.
pub(super) fn pieces(repo: &Repository, node: &Node, file: u32, data_bytes: u64) -> Result<Vec<Piece>> {
    let content = node.content.as_ref().ok_or_else(|| Error::corrupt("a file's node", "it has no content"))?;
    let ids = repo.chunks(content)?;
    let found = || {
        let mut pieces = Vec::with_capacity(ids.len());
        let mut at = 0;
        for id in &ids {
            let place = repo.place(id)?;
            if place.kind != BlobType::Chunk {
                return Err(Error::corrupt(format!("blob {id}"), "it is not of the type expected"));
            }
            pieces.push(Piece { id: *id, place, file, at });
            at += u64::from(place.plain_bytes);
        }
        if at == data_bytes {
            Ok(pieces)
        } else {
            Err(Error::corrupt("its list of blobs", "they don't add up to its size"))
        }
    };
    // The index may be wrong.
    found().or_else(|e| if repo.ask_packs() { found() } else { Err(e) })
}

/// Fetches pieces and writes them.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn write_batch(context: &Context<'_>, files: &[File], mut pieces: Vec<Piece>) -> Result<()> {
    files.par_iter().filter(|f| f.left.load(Ordering::Relaxed) == 0).try_for_each(|file| {
        context.reporter.check_interrupt()?;
        file.finish(context).or_else(|e| file.lose(context, e))
    })?;
    pieces.sort_unstable_by_key(|p| (p.place, p.file, p.at));
    let mut wanted = Vec::new();
    let mut next = 0;
    for frame in pieces.chunk_by(|a, b| (a.place.pack, a.place.frame) == (b.place.pack, b.place.frame)) {
        if let Some(first) = frame.first() {
            wanted.push(Wanted { place: first.place, items: next..next + frame.len() });
        }
        next += frame.len();
    }
    context.repo.for_each(&arrange(context.repo, wanted), |run| {
        context.reporter.check_interrupt()?;
        run.each(context.repo, |items, opened| {
            write_frame(context, files, pieces.get(items).unwrap_or_default(), opened)
        })
    })
}

/// Writes the pieces that lie in one frame.
fn write_frame(
    context: &Context<'_>,
    files: &[File],
    pieces: &[Piece],
    opened: Option<(&FrameReader, &[u8])>,
) -> Result<()> {
    let plain = opened.and_then(|(reader, body)| reader.decode_slice(body).ok());
    if let Some(file) = pieces.first().and_then(|p| files.get(p.file as usize)) {
        context.reporter.current(|| display(&file.part.path()));
    }
    for piece in pieces {
        let Some(file) = files.get(piece.file as usize).filter(|f| !f.is(|s| matches!(s, State::Lost))) else {
            continue;
        };
        let verified = plain.as_deref().and_then(|plain| context.repo.verify(&piece.id, piece.place, plain).ok());
        let written = match verified {
            Some(bytes) => file.write(context, piece.at, bytes),
            // Another copy of it may be sound.
            None => context
                .repo
                .read_blob(&piece.id, BlobType::Chunk)
                .and_then(|bytes| file.write(context, piece.at, &bytes)),
        };
        written.or_else(|e| file.lose(context, e))?;
    }
    Ok(())
}
