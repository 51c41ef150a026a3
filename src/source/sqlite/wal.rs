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

/// The committed part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Where the newest committed version of a page lies in the file; pages count from 1.
    pub pages: HashMap<u32, u64>,
    /// Pages of the database after the last commit.
    pub database_pages: u32,
    /// The cumulative checksum at the last commit, and the header: two scans that agree on it saw the same log.
    fingerprint: ([u8; HEADER_BYTES], u64, [u32; 2]),
}

/// Reads the log up to its last commit; `None` if nothing is committed in it.
///
/// # Errors
/// When the file can't be read, or is for another page size.
pub fn scan(file: &File, page_bytes: u32) -> io::Result<Option<Committed>> {
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
                let committed = found.get_or_insert_with(|| Committed {
                    pages: HashMap::new(),
                    database_pages: 0,
                    fingerprint: (header, 0, [0, 0]),
                });
                committed.pages.extend(since_commit.drain(..));
                committed.database_pages = word(4);
                committed.fingerprint = (header, at, sum);
            }
        }
        if ended {
            return Ok(found);
        }
    }
}

impl Committed {
    /// Whether the part of the log that was read is still there unchanged; commits that came after it don't matter.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn is_still_there(&self, file: &File, page_bytes: u32) -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let (old_header, end, sum) = self.fingerprint;
        if header != old_header {
            return Ok(false);
        }
        let big_endian = header[3] & 1 == 1;
        let frame_bytes = FRAME_HEADER_BYTES + page_bytes as usize;
        let mut buffer = vec![0; (READ_BYTES / frame_bytes).max(1) * frame_bytes];
        let mut now = checksum([0, 0], &header[..24], big_endian);
        let mut at = HEADER_BYTES as u64;
        while at < end {
            let wanted = buffer.len().min((end - at) as usize);
            file.read_exact_at(&mut buffer[..wanted], at)?;
            for frame in buffer[..wanted].chunks_exact(frame_bytes) {
                now = checksum(checksum(now, &frame[..8], big_endian), &frame[FRAME_HEADER_BYTES..], big_endian);
            }
            at += wanted as u64;
        }
        Ok(now == sum)
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
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
            assert!(found.is_still_there(&log, page_bytes).unwrap(), "a later commit doesn't matter");
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
