//! Contents of files: read, verified, hashed with the target's key, and stored if the target lacks them.

use rayon::prelude::*;

use super::Copying;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::pack::{Entry, Frame};
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::repo::encode_frame;

/// Chunks that are in memory at once, in bytes.
const WINDOW_BYTES: u64 = 16 << 20;
/// Smaller chunks share a frame, in bytes.
const SINGLE_BYTES: usize = 64 << 10;

/// What is to be stored of a chunk.
enum New {
    Nothing,
    Small(Vec<u8>),
    Frame(Frame),
}

impl Copying<'_> {
    /// Copies the contents of all files of a directory.
    pub(super) fn files(&mut self, nodes: &mut [Node]) -> Result<()> {
        let mut contents = Vec::new();
        for node in nodes.iter() {
            contents.push(node.content.as_ref().map(|content| self.from.chunks(content)).transpose()?);
        }
        self.chunks(contents.iter().flatten().flatten())?;
        for (node, chunks) in nodes.iter_mut().zip(contents) {
            let Some(chunks) = chunks else { continue };
            let made = chunks.iter().map(|id| self.ids.get(id).copied()).collect::<Option<Vec<_>>>();
            let made = made.ok_or_else(|| Error::corrupt(node.display_name(), "a chunk of it was not copied"))?;
            node.content = Some(self.writer.put_content(made)?);
        }
        Ok(())
    }

    fn chunks<'i>(&mut self, ids: impl Iterator<Item = &'i BlobId>) -> Result<()> {
        let mut wanted = Vec::new();
        for id in ids.filter(|id| !self.ids.contains_key(id)) {
            wanted.push((self.from.place(id)?, *id));
        }
        // In the order in which they lie: neighbours share a frame, which is opened once.
        wanted.sort_unstable();
        wanted.dedup();
        let mut window_bytes = 0;
        let mut window = Vec::new();
        for (place, id) in wanted {
            window_bytes += u64::from(place.plain_bytes);
            window.push(id);
            if window_bytes >= WINDOW_BYTES {
                self.window(&window)?;
                (window_bytes, window) = (0, Vec::new());
            }
        }
        self.window(&window)
    }

    fn window(&mut self, ids: &[BlobId]) -> Result<()> {
        self.reporter.check_interrupt()?;
        let claims = self.writer.claims();
        let copy = |id: &BlobId| {
            let plain = self.from.read_blob(id, BlobType::Chunk)?;
            self.reporter.advance(plain.len() as u64, 0);
            let made = self.to.keys().blob_id(BlobType::Chunk, &plain);
            let entry = Entry { id: made, kind: BlobType::Chunk, plain_bytes: plain.len() as u32 };
            let new = match plain.len() {
                _ if !claims.claim(made) => New::Nothing,
                0..SINGLE_BYTES => New::Small(plain),
                _ => New::Frame(encode_frame(vec![entry], plain, self.level)),
            };
            Ok::<_, Error>((made, new))
        };
        let copied: Vec<_> = ids.par_iter().map(copy).collect::<Result<_>>()?;
        for (id, (made, new)) in ids.iter().zip(copied) {
            self.ids.insert(*id, made);
            match new {
                New::Nothing => {}
                New::Frame(frame) => self.writer.put_frame(frame)?,
                New::Small(plain) => {
                    self.gather.push(made, BlobType::Chunk, &plain);
                    if self.gather.is_full() {
                        self.flush_small()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores the small chunks that wait.
    pub(super) fn flush_small(&mut self) -> Result<()> {
        self.gather.take(self.level).map_or(Ok(()), |frame| self.writer.put_frame(frame))
    }
}
