//! Writing files by frames: a batch of files becomes a list of pieces, sorted by where they lie in the repository.
//!
//! Small files lie many to a frame and large ones many to a pack: every frame is read, opened and decoded once and its
//! blobs go to wherever they belong. A file is complete when its last piece is written, whichever that is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::context::Context;
use super::display;
use super::fetch::{self, Wanted};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::index::Place;
use crate::repo::{FrameReader, Repository};
use crate::report::Severity;
use crate::source::target::{Folder, Temporary};

/// A batch is written when it has this many files and pieces: about 20 MiB of plan.
const BATCH_ITEMS: usize = 50_000;

/// One name to restore.
pub(super) struct Part {
    pub folder: Arc<Folder>,
    pub node: Node,
    /// Files beside it that must be gone before it gets its name.
    pub stale: Vec<Vec<u8>>,
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
        context.attributes.apply(&*made.file()?, &self.node, || self.path());
        if !self.stale.is_empty() {
            // What it replaces and its WAL were a sound database: what comes instead must survive a power cut too.
            made.sync()?;
            self.stale.iter().try_for_each(|name| self.folder.remove(name))?;
        }
        made.place()?;
        if let Some(why) = &self.node.unverified {
            let why = format!("restored as it was stored, which is unverified: {why}");
            context.reporter.warn(Severity::Note, display(&self.path()), why);
        }
        Ok(())
    }
}

/// A stretch of data: where it is in the data, in the file, and how long it is, in bytes.
struct Extent {
    data: u64,
    file: u64,
    bytes: u64,
}

fn extents(node: &Node) -> Vec<Extent> {
    let whole = [0, node.size.unwrap_or(0)];
    let pairs = node.extents.as_deref().unwrap_or(&whole);
    let mut data = 0;
    let place = |pair: &[u64; 2]| {
        let extent = Extent { data, file: pair[0], bytes: pair[1] };
        data += pair[1];
        extent
    };
    pairs.as_chunks().0.iter().map(place).collect()
}

struct File {
    part: Part,
    extents: Vec<Extent>,
    /// Pieces to come.
    left: AtomicUsize,
    state: Mutex<State>,
}

enum State {
    Waiting,
    Writing(Arc<Temporary>),
    Done,
    Lost,
}

/// A blob that goes to one place in one file.
struct Piece {
    id: BlobId,
    place: Place,
    /// Number of the file in the batch.
    file: u32,
    /// Where in the file's data, in bytes.
    at: u64,
}

impl File {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file under its temporary name, made at the first call; `None` if it is lost.
    fn begin(&self) -> Result<Option<Arc<Temporary>>> {
        let mut state = self.lock();
        match &*state {
            State::Writing(made) => Ok(Some(made.clone())),
            State::Lost | State::Done => Ok(None),
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

    fn write(&self, context: &Context<'_>, mut at: u64, mut bytes: &[u8]) -> Result<()> {
        let Some(made) = self.begin()? else { return Ok(()) };
        let count = bytes.len() as u64;
        let first = self.extents.partition_point(|e| e.data + e.bytes <= at);
        for extent in self.extents.get(first..).unwrap_or_default() {
            let skip = at.saturating_sub(extent.data);
            let n = (extent.bytes - skip).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(n as usize);
            made.write_at(now, extent.file + skip)?;
            (bytes, at) = (later, at + n);
            if bytes.is_empty() {
                break;
            }
        }
        drop(made);
        context.bytes.fetch_add(count, Ordering::Relaxed);
        context.reporter.advance(count, 0);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 { self.finish(context) } else { Ok(()) }
    }

    fn finish(&self, context: &Context<'_>) -> Result<()> {
        let Some(made) = self.begin()? else { return Ok(()) };
        self.part.complete(context, &made)?;
        *self.lock() = State::Done;
        context.files.fetch_add(1, Ordering::Relaxed);
        context.reporter.advance(0, 1);
        Ok(())
    }

    fn lose(&self, context: &Context<'_>, error: Error) -> Result<()> {
        let before = std::mem::replace(&mut *self.lock(), State::Lost);
        if matches!(before, State::Lost) {
            return Ok(());
        }
        // Here the temporary file goes, unless another thread still writes to it: then there.
        drop(before);
        context.lose(&self.part.path(), error)
    }

    fn is(&self, wanted: impl Fn(&State) -> bool) -> bool {
        wanted(&self.lock())
    }
}

/// A name of a file that has several.
enum Linked {
    /// In the batch that is being gathered.
    Planned,
    /// Restored.
    There(Arc<Folder>, Vec<u8>),
}

/// Gathers files and writes them in batches; then links, then attributes of directories that are complete.
pub(super) struct Files<'a> {
    context: &'a Context<'a>,
    files: Vec<File>,
    pieces: Vec<Piece>,
    linked: HashMap<u64, Linked>,
    links: Vec<Part>,
    /// Directories that the walk has left, deepest first.
    closed: Vec<(Arc<Folder>, Node)>,
}

impl<'a> Files<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, files: vec![], pieces: vec![], linked: HashMap::new(), links: vec![], closed: vec![] }
    }

    /// A directory gets its attributes when everything in it is there.
    pub(super) fn close_folder(&mut self, folder: Arc<Folder>, node: Node) {
        self.closed.push((folder, node));
    }

    /// Adds a file to the batch, or to the links that follow it.
    pub(super) fn add(&mut self, part: Part) -> Result<()> {
        if matches!(part.node.hard_link.and_then(|group| self.linked.get(&group)), Some(Linked::Planned)) {
            self.links.push(part);
            return Ok(());
        }
        if self.is_linked(&part)? {
            self.context.files.fetch_add(1, Ordering::Relaxed);
            self.context.reporter.advance(part.node.size.unwrap_or(0), 1);
            return Ok(());
        }
        self.add_file(part)
    }

    fn add_file(&mut self, part: Part) -> Result<()> {
        let number = self.files.len() as u32;
        let extents = extents(&part.node);
        let data_bytes = extents.iter().map(|e| e.bytes).sum();
        let pieces = match pieces(self.context.repo, &part.node, number, data_bytes) {
            Ok(pieces) => pieces,
            Err(e) => return self.context.lose(&part.path(), e),
        };
        if let Some(group) = part.node.hard_link {
            self.linked.insert(group, Linked::Planned);
        }
        let left = AtomicUsize::new(pieces.len());
        self.pieces.extend(pieces);
        self.files.push(File { part, extents, left, state: Mutex::new(State::Waiting) });
        Ok(())
    }

    /// Whether a name could be made as a link to a file that is restored already.
    pub(super) fn is_linked(&self, part: &Part) -> Result<bool> {
        let group = part.node.hard_link.and_then(|group| self.linked.get(&group));
        let Some(Linked::There(folder, name)) = group else { return Ok(false) };
        let made = part.folder.temporary(&part.node.name);
        let clear = || part.stale.iter().try_for_each(|name| part.folder.remove(name));
        // Where links are not to be had, the contents are written once more.
        Ok(made.make_link(folder, name).and_then(|()| clear()).and_then(|()| made.place()).is_ok())
    }

    /// Further names of this one can be links to it.
    pub(super) fn remember_link(&mut self, part: &Part) {
        if let Some(group) = part.node.hard_link {
            self.linked.insert(group, Linked::There(part.folder.clone(), part.node.name.to_vec()));
        }
    }

    pub(super) fn flush_if_full(&mut self) -> Result<()> {
        if self.files.len() + self.pieces.len() + self.links.len() + self.closed.len() < BATCH_ITEMS {
            return Ok(());
        }
        self.flush()
    }

    /// Writes everything that was gathered.
    pub(super) fn flush(&mut self) -> Result<()> {
        while !self.files.is_empty() {
            let pieces = std::mem::take(&mut self.pieces);
            write_batch(self.context, &self.files, pieces)?;
            for file in std::mem::take(&mut self.files) {
                if file.is(|s| matches!(s, State::Done)) {
                    self.remember_link(&file.part);
                } else if let Some(group) = file.part.node.hard_link {
                    self.linked.remove(&group);
                }
            }
            // Where the first of several names was lost, the next one is written instead: another round.
            std::mem::take(&mut self.links).into_iter().try_for_each(|part| self.add(part))?;
        }
        for (folder, node) in self.closed.drain(..) {
            match folder.handle() {
                Ok(handle) => self.context.attributes.apply(&*handle, &node, || folder.path()),
                Err(e) => self.context.lose(&folder.path(), e)?,
            }
        }
        Ok(())
    }
}

/// Where the data of a file lies, piece by piece.
fn pieces(repo: &Repository, node: &Node, file: u32, data_bytes: u64) -> Result<Vec<Piece>> {
    let content = node.content.as_ref().ok_or_else(|| Error::corrupt("a file's node", "it has no content"))?;
    let ids = repo.chunks(content)?;
    let mut pieces = Vec::with_capacity(ids.len());
    let mut at = 0;
    let index = repo.index();
    for id in ids {
        let place = index.find(&id).ok_or_else(|| Error::Missing { what: format!("blob {id}") })?;
        if place.kind != BlobType::Chunk {
            return Err(Error::corrupt(format!("blob {id}"), "it is not of the type expected"));
        }
        pieces.push(Piece { id, place, file, at });
        at += u64::from(place.plain_bytes);
    }
    if at == data_bytes {
        Ok(pieces)
    } else {
        Err(Error::corrupt("its list of blobs", "they don't add up to its size"))
    }
}

fn write_batch(context: &Context<'_>, files: &[File], mut pieces: Vec<Piece>) -> Result<()> {
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
    fetch::arrange(context.repo, wanted).par_iter().try_for_each(|run| {
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
