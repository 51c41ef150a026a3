//! Taking from local files what they have of a file's content, instead of fetching it.
//!
//! There are two of them: what a killed restore left under a temporary name, which is gone on with, and the file that
//! is replaced. Nothing of either is trusted: every chunk is hashed, and after it was copied it is the bytes hashed
//! that were written. First each chunk is looked for where it belongs; then the file that is replaced is cut as
//! `create` would cut it, which finds chunks that have moved.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::context::Context;
use super::existing::{self, Reuse};
use super::layered;
use super::write::{File, Layout, Piece, State, pieces};
use crate::chunker::Chunker;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::repo::Repository;
use crate::source::target::Folder;
use crate::source::temporary::{Temporary, read_exact_at};

const ZEROS_BYTES: usize = 64 << 10;

/// Takes what there is; what remains has to be fetched.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn take_local(context: &Context<'_>, files: &[File], pieces: Vec<Piece>) -> Result<Vec<Piece>> {
    if files.iter().all(|file| file.part.folder.is_new()) {
        return Ok(pieces);
    }
    let groups: Vec<&[Piece]> = pieces.chunk_by(|a, b| a.file == b.file).collect();
    let found: Vec<Vec<bool>> = groups
        .par_iter()
        .map(|group| {
            context.reporter.check_interrupt()?;
            let file = group.first().and_then(|p| files.get(p.file as usize));
            let Some(file) = file.filter(|f| !f.part.folder.is_new()) else { return Ok(vec![false; group.len()]) };
            Taking { context, file, pieces: group, found: vec![false; group.len()] }.run().or_else(|e| {
                file.lose(context, e)?;
                Ok(vec![true; group.len()])
            })
        })
        .collect::<Result<_>>()?;
    let found: Vec<bool> = found.into_iter().flatten().collect();
    Ok(pieces.into_iter().zip(found).filter_map(|(piece, found)| (!found).then_some(piece)).collect())
}

/// Whether a local file has exactly a node's content.
///
/// # Errors
/// If the repository can't tell where the content is.
pub(super) fn has_content(context: &Context<'_>, node: &Node, file: &OwnedFd) -> Result<bool> {
    if let Some(dump) = &node.dump {
        return Ok(layered::has_hash(context, file, &dump.hash));
    }
    let layout = Layout::of(node);
    let pieces = pieces(context.repo, node, 0, layout.data_bytes)?;
    Ok(is_whole(context.repo, node, &layout, &pieces, file))
}

fn is_whole(repo: &Repository, node: &Node, layout: &Layout, pieces: &[Piece], file: &OwnedFd) -> bool {
    let size = rustix::fs::fstat(file).map_or(u64::MAX, |s| s.st_size.unsigned_abs());
    Some(size) == node.size
        && layout.gaps().all(|(at, bytes)| is_zero(file, at, bytes))
        && pieces.par_iter().all(|piece| read(repo, layout, piece, file).is_some())
}

/// The bytes of a piece, if a file has them where they belong.
fn read(repo: &Repository, layout: &Layout, piece: &Piece, file: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; piece.place.plain_bytes as usize];
    for (range, at) in layout.spans(piece.at, bytes.len()) {
        read_exact_at(file, bytes.get_mut(range)?, at).ok()?;
    }
    (repo.keys().blob_id(BlobType::Chunk, &bytes) == piece.id).then_some(bytes)
}

/// Whether a stretch of a file reads as zeros. Holes are not read.
fn is_zero(file: &OwnedFd, mut at: u64, bytes: u64) -> bool {
    let end = at + bytes;
    let mut buffer = vec![0; ZEROS_BYTES];
    while at < end {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => return true,
            Err(_) => at,
        };
        let n = (end.saturating_sub(at)).min(ZEROS_BYTES as u64) as usize;
        let Some(block) = buffer.get_mut(..n) else { return false };
        if read_exact_at(file, block, at).is_err() || block.iter().any(|b| *b != 0) {
            return false;
        }
        at += n as u64;
    }
    true
}

/// One file, while it takes what is there.
struct Taking<'a> {
    context: &'a Context<'a>,
    file: &'a File,
    pieces: &'a [Piece],
    found: Vec<bool>,
}

impl Taking<'_> {
    fn run(mut self) -> Result<Vec<bool>> {
        let part = &self.file.part;
        if let Some(made) = part.folder.adopt(&part.node.name) {
            self.go_on_with(&made)?;
            self.file.set(State::Writing(Arc::new(made)));
        }
        if part.reuse != Reuse::No
            && self.found.contains(&false)
            && let Some(old) = open_regular(&part.folder, &part.node.name)?
        {
            if part.reuse == Reuse::Keep && self.is_kept(&old) {
                return Ok(vec![true; self.pieces.len()]);
            }
            self.copy_from(&old)?;
        }
        let bytes = self.pieces.iter().zip(&self.found).filter(|(_, found)| **found);
        let bytes = bytes.map(|(piece, _)| u64::from(piece.place.plain_bytes)).sum();
        self.context.tally.reused.add(bytes);
        self.context.tally.bytes.add(bytes);
        self.context.reporter.advance(bytes, 0);
        let found = self.found.iter().filter(|found| **found).count();
        self.file.left.fetch_sub(found, Ordering::AcqRel);
        Ok(self.found)
    }

    /// Leaves the file that is there, if its content is right.
    fn is_kept(&self, old: &OwnedFd) -> bool {
        let (part, context) = (&self.file.part, self.context);
        if !is_whole(context.repo, &part.node, &self.file.layout, self.pieces, old) {
            return false;
        }
        context.keep(old, &part.node, || part.path());
        context.reporter.advance(part.node.size.unwrap_or(0), 1);
        self.file.left.store(0, Ordering::Release);
        self.file.set(State::Kept);
        true
    }

    /// Finds what is where it belongs in a file that will be the restored one. All else in it is overwritten.
    fn go_on_with(&mut self, made: &Temporary) -> Result<()> {
        made.set_len(self.file.part.node.size.unwrap_or(0))?;
        let file = made.file()?;
        for (at, bytes) in self.file.layout.gaps() {
            if !is_zero(&file, at, bytes) {
                made.make_hole(at, bytes)?;
            }
        }
        let (repo, layout) = (self.context.repo, &self.file.layout);
        let pieces = self.pieces.par_iter();
        self.found = pieces.map(|piece| read(repo, layout, piece, &file).is_some()).collect();
        Ok(())
    }

    fn copy_from(&mut self, old: &OwnedFd) -> Result<()> {
        let (repo, layout) = (self.context.repo, &self.file.layout);
        // A single chunk that is not the same has nothing in common that could be told.
        let is_hopeless = self.pieces.len() == 1 && read(repo, layout, &self.pieces[0], old).is_none();
        let adopted = self.file.is(|state| matches!(state, State::Writing(_)));
        let Some(made) = (if is_hopeless { None } else { self.file.begin()? }) else { return Ok(()) };
        if !adopted && made.share_blocks_of(old) {
            self.go_on_with(&made)?;
        } else {
            let copy = |(piece, found): (&Piece, &mut bool)| {
                if !*found && let Some(bytes) = read(repo, layout, piece, old) {
                    self.file.put(&made, piece.at, &bytes)?;
                    *found = true;
                }
                Ok::<_, Error>(())
            };
            self.pieces.par_iter().zip(&mut self.found).try_for_each(copy)?;
        }
        self.copy_moved(old, &made)
    }

    /// Finds chunks that are elsewhere in the old file.
    fn copy_moved(&mut self, old: &OwnedFd, made: &Temporary) -> Result<()> {
        let mut wanted: HashMap<BlobId, Vec<usize>> = HashMap::new();
        let mut lengths = HashSet::new();
        for (at, piece) in self.pieces.iter().enumerate().filter(|(at, _)| !self.found[*at]) {
            wanted.entry(piece.id).or_default().push(at);
            lengths.insert(piece.place.plain_bytes as usize);
        }
        if wanted.is_empty() || self.file.part.node.extents.is_some() {
            return Ok(());
        }
        let repo = self.context.repo;
        let chunker = Chunker::new(&repo.config().chunker, &repo.keys().chunker.0);
        let mut buffer = Vec::new();
        let (mut at, mut filled) = (0u64, 0);
        loop {
            self.context.reporter.check_interrupt()?;
            buffer.resize(chunker.max_bytes(), 0);
            let ended = fill(old, &mut buffer, &mut filled, at);
            let Some(data) = buffer.get(..filled).filter(|data| !data.is_empty()) else { return Ok(()) };
            let chunk = data.get(..chunker.cut(data)).unwrap_or(data);
            if lengths.contains(&chunk.len()) {
                let id = repo.keys().blob_id(BlobType::Chunk, chunk);
                for number in wanted.remove(&id).unwrap_or_default() {
                    self.file.put(made, self.pieces[number].at, chunk)?;
                    self.found[number] = true;
                }
            }
            let bytes = chunk.len();
            if wanted.is_empty() || (ended && bytes == filled) {
                return Ok(());
            }
            buffer.copy_within(bytes..filled, 0);
            (at, filled) = (at + bytes as u64, filled - bytes);
        }
    }
}

/// Reads on until the buffer is full, from `at` plus what is in it; says whether the file has ended.
fn fill(file: &OwnedFd, buffer: &mut [u8], filled: &mut usize, at: u64) -> bool {
    while let Some(rest) = buffer.get_mut(*filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, at + *filled as u64) {
            Ok(0) => return true,
            Ok(n) => *filled += n,
            Err(Errno::INTR) => {}
            // What can't be read is not reused.
            Err(_) => return true,
        }
    }
    false
}

/// Opens what has a name, if it is a regular file that can be read.
pub(super) fn open_regular(folder: &Folder, name: &[u8]) -> Result<Option<OwnedFd>> {
    let is_file = folder.stat(name)?.is_some_and(|s| existing::kind(&s) == FileType::RegularFile);
    Ok(if is_file { folder.open_file(name).unwrap_or_default() } else { None })
}
