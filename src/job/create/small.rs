//! The workers of a create: reading small files, hashing, compressing.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc;

use super::pipeline::{Outcome, Tasks, Work};
use super::survey::Vanished;
use crate::crypto::{BlobType, Keys};
use crate::format::pack::{Entry, Frame};
use crate::format::tree::{Content, Node};
use crate::format::zstd;
use crate::id::BlobId;
use crate::repo::{Claims, Gather, SegmentPages, encode_frame, encode_segment};
use crate::report::{Reporter, Severity};
use crate::source::capture::NewSegment;
use crate::source::{sqlite, stat};

/// Most files in a batch.
pub const BATCH_FILES: usize = 1024;

/// Most bytes that are read of a file that was small when it was listed.
const MAX_BYTES: u64 = 4 << 20;

/// A file that is read in one piece.
pub struct SmallFile {
    /// Where it is.
    pub path: PathBuf,
    /// What stat said of it.
    pub node: Node,
}

impl SmallFile {
    /// Its length, in bytes.
    pub fn bytes(&self) -> u64 {
        self.node.size.unwrap_or(0)
    }
}

/// What every worker needs.
pub struct Worker<'a> {
    /// Keys for hashing.
    pub keys: &'a Keys,
    /// Who stores what.
    pub claims: Claims,
    /// zstd level.
    pub level: i32,
    /// For files that can't be read.
    pub reporter: &'a Reporter,
    /// For files that have vanished.
    pub vanished: &'a Vanished,
}

impl Worker<'_> {
    /// Works until there is no more work, or nobody wants it.
    pub fn run(&self, tasks: &Tasks) {
        for (work, reply) in tasks {
            let outcome = match work {
                Work::Files(files) => self.files(files),
                Work::Chunk(bytes) => {
                    self.reporter.advance_read(bytes.len() as u64, 0);
                    self.chunk(bytes, self.level)
                }
                Work::Layer(bytes, level) => self.chunk(bytes, level),
                Work::Segment(new) => self.segment(&new),
            };
            if reply.send(outcome).is_err() {
                return;
            }
        }
    }

    fn files(&self, files: Vec<SmallFile>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut gather = Gather::default();
        for file in files {
            let read = read_whole(&file);
            let node = match read {
                Ok(Whole { bytes, changed }) => {
                    self.reporter.advance_read(bytes.len() as u64, 1);
                    Some(self.file(file, bytes, changed, &mut gather, &mut outcome.frames))
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.vanished.report(&file.path, self.reporter);
                    None
                }
                Err(e) => {
                    self.reporter.warn(Severity::Source, file.path.display(), format!("it can't be read: {e}"));
                    None
                }
            };
            outcome.nodes.push(node);
        }
        outcome.frames.extend(gather.take(self.level));
        outcome
    }

    fn file(
        &self,
        file: SmallFile,
        bytes: Vec<u8>,
        changed: bool,
        gather: &mut Gather,
        frames: &mut Vec<Frame>,
    ) -> Node {
        let SmallFile { path, mut node } = file;
        if changed {
            self.reporter.warn(Severity::Source, path.display(), super::CHANGED);
            node.unverified.get_or_insert_with(|| super::CHANGED.into());
        } else if node.unverified.is_none() && sqlite::has_magic(&bytes) {
            // The walker takes whatever can be a database; this can't, by its length.
            let why = "it begins as an SQLite database does, but is cut short or damaged; stored as a plain file";
            self.reporter.warn(Severity::Note, path.display(), why);
            node.unverified = Some(why.into());
        }
        node.size = Some(bytes.len() as u64);
        node.content = Some(Content::default());
        if !bytes.is_empty() {
            let id = self.keys.blob_id(BlobType::Chunk, &bytes);
            node.content = Some(Content::new(0, &[id]));
            if self.claims.claim(id) {
                // What can't be compressed would only dilute what can.
                if zstd::looks_random(&bytes) {
                    frames.push(single(id, bytes, self.level));
                } else {
                    gather.push(id, BlobType::Chunk, &bytes);
                    frames.extend(gather.is_full().then(|| gather.take(self.level)).flatten());
                }
            }
        }
        node
    }

    fn chunk(&self, bytes: Vec<u8>, level: i32) -> Outcome {
        let id = self.keys.blob_id(BlobType::Chunk, &bytes);
        let frames = self.claims.claim(id).then(|| single(id, bytes, level)).into_iter().collect();
        Outcome { id: Some(id), frames, ..Outcome::default() }
    }

    fn segment(&self, new: &NewSegment) -> Outcome {
        let pages = SegmentPages {
            id: new.id,
            page_bytes: new.page_bytes,
            hashes: &new.hashes,
            present: &(0..=u8::MAX).take(new.hashes.len()).collect(),
            pages: &new.pages,
            older: &new.older,
            base_pages: &new.base_pages,
        };
        Outcome { frames: vec![encode_segment(&pages, self.level)], ..Outcome::default() }
    }
}

struct Whole {
    bytes: Vec<u8>,
    changed: bool,
}

/// Opens a file for reading that was a regular file a moment ago: never follows a link, never waits for a pipe.
pub fn open_regular(path: &std::path::Path) -> std::io::Result<(File, std::fs::Metadata)> {
    let file =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta)) } else { Err(std::io::Error::other("it is no longer a regular file")) }
}

fn read_whole(file: &SmallFile) -> std::io::Result<Whole> {
    let (handle, before) = open_regular(&file.path)?;
    let mut bytes = Vec::with_capacity(before.len().min(1 << 20) as usize + 1);
    // What has grown meanwhile is cut off at what one frame may hold with others, and named as changed.
    (&handle).take(before.len().clamp(1 << 20, MAX_BYTES)).read_to_end(&mut bytes)?;
    Ok(Whole { changed: has_changed(&before, &handle.metadata()?, bytes.len() as u64), bytes })
}

fn single(id: BlobId, bytes: Vec<u8>, level: i32) -> Frame {
    let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: bytes.len() as u32 };
    encode_frame(vec![entry], bytes, level)
}

/// Whether a file was written to between two looks at it, or had another length than was read.
pub fn has_changed(before: &std::fs::Metadata, after: &std::fs::Metadata, read: u64) -> bool {
    (stat::mtime(before), stat::ctime(before), before.size()) != (stat::mtime(after), stat::ctime(after), after.size())
        || read != before.size()
}
