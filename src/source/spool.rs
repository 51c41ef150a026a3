//! Where changed pages wait while a database transaction is held: in memory, and past a limit in a file.
//!
//! So a transaction lasts as long as reading and hashing, never as long as compressing or sending.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::crypto;
use crate::error::{Error, Result};
use crate::id::{PageHash, hex};

/// Kept in memory before the file is begun, in bytes.
const MEMORY_BYTES: usize = 24 << 20;
/// Written and read at a time, in bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// The file is not grown where less than this would be left on its disk, in bytes: others need some of it too.
const RESERVE_BYTES: u64 = 256 << 20;
/// How much is written before the disk is looked at again, in bytes.
const LOOK_BYTES: u64 = 64 << 20;

/// A waiting room for pages.
pub struct Spool {
    folder: PathBuf,
    page_bytes: usize,
    memory: Vec<Vec<u8>>,
    file: Option<File>,
    file_bytes: u64,
    /// What was put aside last.
    block: Vec<u8>,
}

/// Whether a page found room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It was put aside.
    Enough,
    /// Neither memory nor disk has room for more.
    None,
}

impl Spool {
    /// An empty spool for pages of a length, whose file, if one is needed, will be a nameless one in `folder`.
    pub fn new(folder: PathBuf, page_bytes: u32) -> Self {
        let (memory, block) = (Vec::new(), Vec::new());
        Self { folder, page_bytes: page_bytes as usize, memory, file: None, file_bytes: 0, block }
    }

    /// Where its file would lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts a page aside: its number in the file, its hash, its bytes.
    ///
    /// # Errors
    /// When the file can't be written for another reason than that the disk is full.
    pub fn push(&mut self, number: u64, hash: &PageHash, page: &[u8]) -> Result<Room> {
        if self.block.len() >= BLOCK_BYTES && self.put_away()? == Room::None {
            return Ok(Room::None);
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK_BYTES + record_bytes(self.page_bytes));
        }
        self.block.extend_from_slice(&number.to_le_bytes());
        self.block.extend_from_slice(hash);
        self.block.extend_from_slice(page);
        Ok(Room::Enough)
    }

    fn put_away(&mut self) -> Result<Room> {
        if self.file.is_none() && (self.memory.len() + 1) * BLOCK_BYTES <= MEMORY_BYTES {
            self.memory.push(std::mem::take(&mut self.block));
            return Ok(Room::Enough);
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(&self.folder)?),
        };
        if self.file_bytes / LOOK_BYTES != (self.file_bytes + self.block.len() as u64) / LOOK_BYTES
            || self.file_bytes == 0
        {
            let free = rustix::fs::fstatvfs(&*file).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
            if free < RESERVE_BYTES + LOOK_BYTES {
                return Ok(Room::None);
            }
        }
        match file.write_all_at(&self.block, self.file_bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Ok(Room::None),
            Err(e) => return Err(Error::file("spool to", &self.folder, e)),
        }
        self.file_bytes += self.block.len() as u64;
        self.block.clear();
        Ok(Room::Enough)
    }

    /// Hands every page on, in order, and is empty again.
    ///
    /// # Errors
    /// When the file can't be read, or `page` fails.
    pub fn drain(&mut self, mut page: impl FnMut(u64, &PageHash, &[u8]) -> Result<()>) -> Result<()> {
        let record = record_bytes(self.page_bytes);
        let mut hand_on = |block: &[u8]| {
            block.chunks_exact(record).try_for_each(|record| match split(record) {
                Some((number, hash, bytes)) => page(number, hash, bytes),
                None => Ok(()),
            })
        };
        self.memory.drain(..).try_for_each(|block| hand_on(&block))?;
        if let Some(file) = self.file.take() {
            let whole = (BLOCK_BYTES / record).max(1) * record;
            let mut buffer = vec![0; whole];
            let mut at = 0;
            while at < self.file_bytes {
                let n = whole.min(usize::try_from(self.file_bytes - at).unwrap_or(whole));
                let part = buffer.get_mut(..n).unwrap_or_default();
                file.read_exact_at(part, at).map_err(|e| Error::file("read the spool in", &self.folder, e))?;
                hand_on(part)?;
                at += n as u64;
            }
            self.file_bytes = 0;
        }
        hand_on(&std::mem::take(&mut self.block))
    }
}

fn record_bytes(page_bytes: usize) -> usize {
    8 + 16 + page_bytes
}

fn split(record: &[u8]) -> Option<(u64, &PageHash, &[u8])> {
    let (number, rest) = record.split_first_chunk::<8>()?;
    let (hash, page) = rest.split_first_chunk::<16>()?;
    Some((u64::from_le_bytes(*number), hash, page))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_in_order_from_memory_and_file() {
        let folder = tempfile::tempdir().unwrap();
        for (page_bytes, pages) in [(512u32, 10u64), (4096, 9000), (65536, 500)] {
            let mut spool = Spool::new(folder.path().to_path_buf(), page_bytes);
            let page = |number: u64| vec![number as u8; page_bytes as usize];
            for number in 0..pages {
                assert_eq!(spool.push(number * 3, &[number as u8; 16], &page(number)).unwrap(), Room::Enough);
            }
            let mut next = 0;
            spool
                .drain(|number, hash, bytes| {
                    assert_eq!((number, *hash, bytes), (next * 3, [next as u8; 16], &page(next)[..]));
                    next += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(next, pages);
            spool.drain(|_, _, _| panic!("it is empty")).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
