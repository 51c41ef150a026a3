//! Where changed pages wait while a database transaction is held: in memory, and past a limit in a file.
//!
//! So a transaction lasts as long as reading and hashing, never as long as compressing or sending.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use super::capture::{NewSegment, Sink};
use crate::crypto;
use crate::error::{Error, Result};
use crate::id::{BlobId, hex};

/// Kept in memory before the file is begun, in bytes.
const MEMORY_BYTES: usize = 24 << 20;

/// A waiting room for segments.
pub struct Spool {
    folder: PathBuf,
    memory: Vec<NewSegment>,
    memory_bytes: usize,
    file: Option<File>,
    file_bytes: u64,
    /// Id, page length, offset and length of each segment in the file.
    in_file: Vec<(BlobId, u32, u64, usize)>,
    maps: Vec<(BlobId, Vec<u8>)>,
}

impl Spool {
    /// An empty spool whose file, if one is needed, will be a nameless one in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            memory: Vec::new(),
            memory_bytes: 0,
            file: None,
            file_bytes: 0,
            in_file: Vec::new(),
            maps: Vec::new(),
        }
    }

    /// Puts a segment aside.
    ///
    /// # Errors
    /// When the file can't be written: the disk is full, say.
    pub fn push(&mut self, segment: NewSegment) -> Result<()> {
        if self.memory_bytes + segment.pages.len() <= MEMORY_BYTES {
            self.memory_bytes += segment.pages.len();
            self.memory.push(segment);
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(&self.folder)?),
        };
        file.write_all_at(&segment.pages, self.file_bytes).map_err(|e| Error::file("spool to", &self.folder, e))?;
        self.in_file.push((segment.id, segment.page_bytes, self.file_bytes, segment.pages.len()));
        self.file_bytes += segment.pages.len() as u64;
        Ok(())
    }

    /// Puts a part of the page map aside.
    pub fn push_map(&mut self, id: BlobId, bytes: Vec<u8>) {
        self.maps.push((id, bytes));
    }

    /// Forgets what a failed capture left.
    pub fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.folder));
    }

    /// Hands everything on, in order, and is empty again.
    ///
    /// # Errors
    /// When the file can't be read, or the sink fails.
    pub fn drain(&mut self, sink: &mut dyn Sink) -> Result<()> {
        self.memory_bytes = 0;
        self.memory.drain(..).try_for_each(|segment| sink.segment(segment))?;
        for (id, page_bytes, offset, len) in self.in_file.drain(..) {
            let Some(file) = &self.file else { break };
            let mut pages = vec![0; len];
            file.read_exact_at(&mut pages, offset).map_err(|e| Error::file("read the spool in", &self.folder, e))?;
            sink.segment(NewSegment { id, page_bytes, pages })?;
        }
        self.maps.drain(..).try_for_each(|(id, bytes)| sink.map(id, bytes))?;
        self.clear();
        Ok(())
    }
}

/// A file that has no name from the start, and so is gone whatever happens to this process.
fn nameless(folder: &PathBuf) -> Result<File> {
    let fail = |e| Error::file("spool to", folder, e);
    fs::create_dir_all(folder).map_err(fail)?;
    let path = folder.join(format!("spool-{}", hex(&crypto::random::<8>()?)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
    fs::remove_file(&path).map_err(fail)?;
    Ok(file)
}
