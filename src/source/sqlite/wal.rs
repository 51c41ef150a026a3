//! Reading a write-ahead log, as "WAL-mode File Format" in SQLite's documentation describes it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::format::cbor::Time;
use crate::format::tree::WalStamp;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const READ_BYTES: usize = 1 << 20;
/// A log that is begun anew while it is read is read again, this often in all.
const SCANS: usize = 5;

/// The committed part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Where the newest committed version of a page lies in the file; pages count from 1.
    pub pages: HashMap<u32, u64>,
    /// Pages of the database after the last commit.
    pub database_pages: u32,
    /// The header, which is another one as soon as the log is begun anew.
    header: [u8; HEADER_BYTES],
}

/// Reads the log up to its last commit; `None` if nothing is committed in it.
///
/// # Errors
/// When the file can't be read, is for another page size, or is begun anew all the time.
pub fn scan(file: &File, page_bytes: u32) -> io::Result<Option<Committed>> {
    for _ in 0..SCANS {
        let found = scan_once(file, page_bytes)?;
        // What was read while the log was begun anew may end in the middle of the old one.
        if found.as_ref().map_or(Ok(true), |found| found.is_still_there(file))? {
            return Ok(found);
        }
    }
    Err(io::Error::other("its log is begun anew all the time"))
}

fn scan_once(file: &File, page_bytes: u32) -> io::Result<Option<Committed>> {
    let mut header = [0; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let big_endian = match word(0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return Ok(None),
    };
    let mut sum = checksum([0, 0], &header[..24], big_endian);
    if sum != [word(24), word(28)] {
        return Ok(None);
    }
    if word(8) != page_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its write-ahead log is for another page size"));
    }
    let frame_bytes = FRAME_HEADER_BYTES + page_bytes as usize;
    let mut buffer = vec![0; (READ_BYTES / frame_bytes).max(1) * frame_bytes];
    let mut at = HEADER_BYTES as u64;
    let mut since_commit: Vec<(u32, u64)> = Vec::new();
    let mut found: Option<Committed> = None;
    loop {
        let got = read_up_to(file, &mut buffer, at)?;
        let mut ended = got < frame_bytes;
        for frame in buffer[..got].chunks_exact(frame_bytes) {
            let word = |i: usize| u32::from_be_bytes([frame[i], frame[i + 1], frame[i + 2], frame[i + 3]]);
            let next = checksum(sum, &frame[..8], big_endian);
            let next = checksum(next, &frame[FRAME_HEADER_BYTES..], big_endian);
            // The first frame of an older generation, or one that was not written whole, ends the log.
            if frame[8..16] != header[16..24] || next != [word(16), word(20)] || word(0) == 0 {
                ended = true;
                break;
            }
            sum = next;
            since_commit.push((word(0), at + FRAME_HEADER_BYTES as u64));
            at += frame_bytes as u64;
            if word(4) > 0 {
                let committed =
                    found.get_or_insert_with(|| Committed { pages: HashMap::new(), database_pages: 0, header });
                committed.pages.extend(since_commit.drain(..));
                committed.database_pages = word(4);
            }
        }
        if ended {
            return Ok(found);
        }
    }
}

impl Committed {
    /// Whether everything that was found is still there: committed frames are never written over before the header is,
    /// and what is committed after them lies behind them.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn is_still_there(&self, file: &File) -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        Ok(read_up_to(file, &mut header, 0)? == HEADER_BYTES && header == self.header)
    }
}

/// Reads from an offset until the buffer is full or the file ends; returns how many bytes it was.
///
/// # Errors
/// The system's.
pub fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn checksum([mut a, mut b]: [u32; 2], bytes: &[u8], big_endian: bool) -> [u32; 2] {
    for pair in bytes.as_chunks::<8>().0 {
        let [w, x, y, z, p, q, r, s] = *pair;
        let read = |four| if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
        a = a.wrapping_add(read([w, x, y, z])).wrapping_add(b);
        b = b.wrapping_add(read([p, q, r, s])).wrapping_add(a);
    }
    [a, b]
}

/// What identifies the state of a log; `None` for one that is empty.
///
/// # Errors
/// When the file can't be read.
pub fn stamp(file: &File) -> io::Result<Option<WalStamp>> {
    let meta = file.metadata()?;
    if meta.len() == 0 {
        return Ok(None);
    }
    let mut salts = [0; 8];
    let n = file.read_at(&mut salts, 16)?;
    Ok(Some(WalStamp {
        inode: meta.ino(),
        size: meta.len(),
        mtime: Time { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
        ctime: Time { secs: meta.ctime(), nanos: meta.ctime_nsec() as u32 },
        salts: if n == salts.len() { u64::from_be_bytes(salts) } else { 0 },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn the_overlay_is_what_a_checkpoint_leaves() {
        for page_bytes in [512u32, 4096, 65536] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.db");
            let db = Connection::open(&path).unwrap();
            db.pragma_update(None, "page_size", page_bytes).unwrap();
            db.pragma_update(None, "journal_mode", "WAL").unwrap();
            db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
            db.execute_batch("CREATE TABLE t(a, b); CREATE INDEX i ON t(b);").unwrap();
            for i in 0..50 {
                db.execute("INSERT INTO t VALUES (?1, randomblob(900))", [i]).unwrap();
            }
            db.execute("DELETE FROM t WHERE a % 3 = 0", []).unwrap();
            let log = File::open(folder.path().join("a.db-wal")).unwrap();
            let found = scan(&log, page_bytes).unwrap().unwrap();
            let mut image = std::fs::read(&path).unwrap();
            image.resize(found.database_pages as usize * page_bytes as usize, 0);
            for (page, at) in &found.pages {
                if *page <= found.database_pages {
                    let from = (*page as usize - 1) * page_bytes as usize;
                    log.read_exact_at(&mut image[from..from + page_bytes as usize], *at).unwrap();
                }
            }
            db.execute("INSERT INTO t VALUES (1, 2)", []).unwrap();
            assert!(found.is_still_there(&log).unwrap(), "a later commit doesn't matter");
            assert_ne!(scan(&log, page_bytes).unwrap().unwrap(), found);
            db.execute_batch("DELETE FROM t WHERE a = 1 AND b = 2; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            drop(db);
            let copy = folder.path().join("copy.db");
            std::fs::write(&copy, &image).unwrap();
            let db = Connection::open(&copy).unwrap();
            let ok: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
            let rows: u32 = db.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
            assert_eq!((ok.as_str(), rows), ("ok", 33), "page size {page_bytes}");
        }
    }

    #[test]
    fn rubbish_holds_no_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x-wal");
        for bytes in [&b""[..], b"short", &[0; 100], &[0x37, 0x7f, 0x06, 0x82, 0, 0, 0, 0, 0, 0, 16, 0].repeat(10)] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(scan(&File::open(&path).unwrap(), 4096).unwrap(), None);
        }
    }
}
