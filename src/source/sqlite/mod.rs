//! SQLite databases: recognised by content, read page-stable while their applications go on.
//!
//! A database is read by this program itself, not through SQLite: the main file, overlaid with the committed frames of
//! the write-ahead log, or with the original pages from the journal of a transaction that was interrupted. That is
//! byte-identical to what a checkpoint or a rollback would leave, in every build of SQLite, and several times faster
//! than asking SQLite for pages. What makes it stable is one of three things:
//!
//! - *quiet*: no process holds a lock, and stat is the same before and after reading;
//! - *locked*: read locks, the same that an SQLite reader takes, keep others from changing what is read (`hold`);
//! - *watched*: in WAL mode, where those who use it can't be held off (`locking_mode=EXCLUSIVE`), the main file is not
//!   written to while it is read: at any moment, it and the committed frames are what a crash would leave.
//!
//! Pages are understood by `btree`; `observe` reads off them what the database says of itself, and `examine` asks SQLite
//! the same of a file that was put back. The source is never written to, and nothing is made beside it. May depend on
//! `format` and below.

pub mod btree;
pub mod examine;
mod hold;
pub mod journal;
mod locks;
mod looks;
pub mod observe;
mod open;
pub mod wal;

pub use journal::is_pending as is_journal_pending;
pub use locks::sidecar;
pub use observe::PageObserver;
pub use open::{Database, Refusal};
pub use wal::stamp as wal_stamp;

use crate::format::segment::is_page_size;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 100;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// What SQLite puts beside a database.
pub const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What the first 100 bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of a page, in bytes.
    pub page_bytes: u32,
    /// Whether the file is in WAL mode.
    pub wal_mode: bool,
}

/// Whether a file that begins like this says it is an SQLite database.
pub fn has_magic(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

impl Header {
    /// Reads the header, see "The Database Header" in SQLite's file format document.
    ///
    /// # Errors
    /// Why a file that has the magic can't be a database.
    pub fn parse(start: &[u8]) -> Result<Self, &'static str> {
        let Some(&h) = start.first_chunk::<HEADER_BYTES>().filter(|h| has_magic(&h[..])) else {
            return Err("its header is cut short");
        };
        let page_bytes = match u16::from_be_bytes([h[16], h[17]]) {
            1 => 65536,
            n => u32::from(n),
        };
        if !is_page_size(page_bytes) {
            return Err("its header states a page size that SQLite can't have");
        }
        // Payload fractions are fixed; anything else is no database, or encrypted.
        if h[21..24] != [64, 32, 32] || !matches!((h[18], h[19]), (1 | 2, 1 | 2)) {
            return Err("its header is damaged or encrypted");
        }
        Ok(Self { page_bytes, wal_mode: h[19] == 2 })
    }
}

#[cfg(test)]
mod tests;
