//! Reading the rollback journal of an interrupted transaction, as "The Rollback Journal" in SQLite's file format
//! document describes it and `pager_playback` in its pager does it.
//!
//! A process that is killed while it writes a transaction to the main file leaves its journal behind, *hot*: whoever
//! opens the database next copies the original pages from it back to where they were. Here they are only read in place
//! of those in the main file, which is the same state without touching anything.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::wal::read_up_to;
use crate::format::segment::is_page_size;

/// What a header begins with, and a journal that names a super-journal ends with.
pub const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The fields of a header; it fills a whole sector.
const HEADER_BYTES: usize = 28;
/// The least that a sector can have, and what SQLite takes it for before it has read the first header.
const SECTOR_BYTES: u64 = 512;
const MAX_SECTOR_BYTES: u32 = 65536;
/// A record is the number of a page, the page, and a checksum.
const RECORD_OVERHEAD: usize = 8;
/// Stands for "as many as there are" in a header.
const TO_THE_END: u32 = u32::MAX;
/// First of the bytes that locks are taken on: no page that holds one of them is ever written.
const LOCK_BYTE: u64 = 0x4000_0000;
const READ_BYTES: usize = 1 << 20;
/// The longest path that SQLite's Unix file system takes, in bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// What a hot journal puts back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Originals {
    /// Where a page as it was before the transaction lies in the journal; pages count from 1.
    pub pages: HashMap<u32, u64>,
    /// Pages of the database before the transaction.
    pub database_pages: u32,
    /// Length of a page, in bytes.
    pub page_bytes: u32,
}

/// Number of the page that holds the lock bytes; pages count from 1.
pub fn lock_page(page_bytes: u32) -> u64 {
    LOCK_BYTE / u64::from(page_bytes) + 1
}

/// Whether there is a journal that is not marked as done with: by length 0, by a header of zeros.
///
/// # Errors
/// When it can't be read.
pub fn is_pending(journal: &Path) -> io::Result<bool> {
    let mut first = [0];
    match File::open(journal).and_then(|f| f.read_at(&mut first, 0)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        read => read.map(|n| n > 0 && first != [0]),
    }
}

/// Reads a hot journal; `None` if there is nothing to put back. `main_page_bytes` is what the main file says now.
///
/// # Errors
/// When it can't be read, or can't be understood.
pub fn scan(file: &File, main_page_bytes: u32) -> io::Result<Option<Originals>> {
    let len = file.metadata()?.len();
    if is_committed(file, len)? {
        return Ok(None);
    }
    let Some(first) = read_header(file, 0, SECTOR_BYTES, len)? else { return Ok(None) };
    let page_bytes = if first.page_bytes == 0 { main_page_bytes } else { first.page_bytes };
    let sector_is_valid = (32..=MAX_SECTOR_BYTES).contains(&first.sector_bytes) && first.sector_bytes.is_power_of_two();
    if !sector_is_valid || !is_page_size(page_bytes) {
        return Ok(None);
    }
    let sector = u64::from(first.sector_bytes);
    let mut found = Originals { pages: HashMap::new(), database_pages: first.database_pages, page_bytes };
    let (mut header, mut at) = (first, sector);
    loop {
        let records = match header.records {
            TO_THE_END => len.saturating_sub(sector) / (u64::from(page_bytes) + RECORD_OVERHEAD as u64),
            n => u64::from(n),
        };
        let Some(end) = found.read_records(file, at, records, header.nonce)? else { return Ok(Some(found)) };
        let next = end.next_multiple_of(sector);
        match read_header(file, next, sector, len)? {
            Some(found) => (header, at) = (found, next + sector),
            None => return Ok(Some(found)),
        }
    }
}

struct Header {
    records: u32,
    nonce: u32,
    database_pages: u32,
    sector_bytes: u32,
    page_bytes: u32,
}

/// The header at an offset; none if the journal ends before it, or a crash left something else there.
fn read_header(file: &File, at: u64, sector: u64, len: u64) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    if at.checked_add(sector).is_none_or(|end| end > len) || read_up_to(file, &mut bytes, at)? < HEADER_BYTES {
        return Ok(None);
    }
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok((bytes[..8] == MAGIC).then(|| Header {
        records: word(8),
        nonce: word(12),
        database_pages: word(16),
        sector_bytes: word(20),
        page_bytes: word(24),
    }))
}

impl Originals {
    /// Takes the records that begin at an offset, and says where they end; `None` where the journal ends in them.
    fn read_records(&mut self, file: &File, mut at: u64, mut left: u64, nonce: u32) -> io::Result<Option<u64>> {
        let record_bytes = self.page_bytes as usize + RECORD_OVERHEAD;
        let mut buffer = vec![0; (READ_BYTES / record_bytes).max(1) * record_bytes];
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(record_bytes));
            let got = read_up_to(file, &mut buffer[..wanted], at)?;
            for record in buffer[..got].chunks_exact(record_bytes) {
                let word = |i: usize| u32::from_be_bytes([record[i], record[i + 1], record[i + 2], record[i + 3]]);
                let (page, sum) = (word(0), word(record_bytes - 4));
                let is_kept = page <= self.database_pages;
                let content = &record[4..record_bytes - 4];
                // What was not written whole before a power cut ends the journal.
                if page == 0
                    || u64::from(page) == lock_page(self.page_bytes)
                    || (is_kept && checksum(nonce, content) != sum)
                {
                    return Ok(None);
                }
                if is_kept {
                    self.pages.insert(page, at + 4);
                }
                at += record_bytes as u64;
                left -= 1;
            }
            if got < wanted {
                return Ok(None);
            }
        }
        Ok(Some(at))
    }
}

/// The checksum of a record: the nonce, and every 200th byte of the page counted from its end.
pub fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let from_end = |i: usize| page.len().checked_sub(200 * i).filter(|at| *at > 0);
    (1..).map_while(from_end).filter_map(|at| page.get(at)).fold(nonce, |sum, b| sum.wrapping_add(u32::from(*b)))
}

/// Whether a transaction over several databases was committed: the journal names a super-journal, and that is gone.
fn is_committed(file: &File, len: u64) -> io::Result<bool> {
    let mut tail = [0; 16];
    if len < 16 || read_up_to(file, &mut tail, len - 16)? < 16 || tail[8..] != MAGIC {
        return Ok(false);
    }
    let word = |at: usize| u32::from_be_bytes([tail[at], tail[at + 1], tail[at + 2], tail[at + 3]]);
    let name_bytes = u64::from(word(0));
    if name_bytes == 0 || name_bytes > MAX_NAME_BYTES || name_bytes > len - 16 {
        return Ok(false);
    }
    let mut name = vec![0; name_bytes as usize];
    file.read_exact_at(&mut name, len - 16 - name_bytes)?;
    // Characters are signed or not, as the machine has it that wrote them.
    let signed = name.iter().fold(0u32, |sum, b| sum.wrapping_add_signed(i32::from(b.cast_signed())));
    let unsigned = name.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    if ![signed, unsigned].contains(&word(4)) {
        return Ok(false);
    }
    let path = Path::new(OsStr::from_bytes(&name));
    // Where another root directory was in force, its absence would mean nothing.
    let folder_is_here = path.is_absolute() && path.parent().is_some_and(Path::is_dir);
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == ErrorKind::NotFound && folder_is_here => Ok(true),
        Err(_) => {
            let name = path.display();
            Err(Error::other(format!("its interrupted transaction belongs to {name}, which can't be looked for here")))
        }
    }
}
