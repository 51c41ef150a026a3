//! The 48 bytes that every sealed object begins with.
//!
//! ```text
//!  0  4  magic "SNAP"          8  4  key epoch, little-endian
//!  4  1  format version       12  4  length of the first sealed message, little-endian
//!  5  1  kind of object       16 32  salt: fresh random bytes
//!  6  1  suite
//!  7  1  zero
//! ```

use super::VERSION;
use crate::crypto;
use crate::error::{Error, Result};

/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 48;
/// BLAKE3, ChaCha20-Poly1305, zstd, Argon2id.
pub const SUITE: u8 = 1;
const MAGIC: &[u8; 4] = b"SNAP";

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The repository's parameters (not sealed; authenticated).
    Config = 1,
    /// A key slot (not sealed; holds the sealed master key).
    Slot = 2,
    /// File chunks and database segments.
    DataPack = 3,
    /// Trees, chunk lists and page maps.
    MetadataPack = 4,
    /// An index segment.
    Index = 5,
    /// A snapshot.
    Snapshot = 6,
    /// A record of condemned packs.
    Gc = 7,
    /// A running writer.
    Session = 8,
    /// What was said of a snapshot after it was made: tags, a pin.
    Mark = 9,
}

impl Kind {
    fn from_u8(n: u8) -> Option<Self> {
        use Kind::{Config, DataPack, Gc, Index, Mark, MetadataPack, Session, Slot, Snapshot};
        [Config, Slot, DataPack, MetadataPack, Index, Snapshot, Gc, Session, Mark].into_iter().find(|k| *k as u8 == n)
    }
}

/// The first 48 bytes of a sealed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: Kind,
    /// Which master key sealed it; 0 until keys are rotated.
    pub epoch: u32,
    /// Length of the first sealed message, tag included, in bytes.
    pub first_bytes: u32,
    /// Makes the object's key unique.
    pub salt: [u8; 32],
}

impl Header {
    /// A header with a fresh salt.
    ///
    /// # Errors
    /// As [`crypto::random`].
    pub fn fresh(kind: Kind, first_bytes: u32) -> Result<Self> {
        Ok(Self { kind, epoch: 0, first_bytes, salt: crypto::random()? })
    }

    /// The bytes as stored.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(MAGIC);
        out[4] = VERSION;
        out[5] = self.kind as u8;
        out[6] = SUITE;
        out[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        out[12..16].copy_from_slice(&self.first_bytes.to_le_bytes());
        out[16..].copy_from_slice(&self.salt);
        out
    }

    /// Reads the header at the start of `bytes`; `what` names the object in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for anything that isn't a header of the `expected` kind, [`Error::Unsupported`] for a
    /// version or suite from the future.
    pub fn parse(bytes: &[u8], expected: Kind, what: &str) -> Result<Self> {
        let Some(&h) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Error::corrupt(what, format!("it has {} bytes, fewer than a header", bytes.len())));
        };
        if &h[..4] != MAGIC {
            return Err(Error::corrupt(what, "it does not begin as a snapshot object does"));
        }
        if h[4] != VERSION || h[6] != SUITE {
            let why = format!("it is of format version {}, suite {}", h[4], h[6]);
            return Err(Error::Unsupported { what: what.into(), why });
        }
        if Kind::from_u8(h[5]) != Some(expected) || h[7] != 0 {
            return Err(Error::corrupt(what, "it is not the kind of object that belongs there"));
        }
        let u32_at = |i: usize| u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
        let mut salt = [0; 32];
        salt.copy_from_slice(&h[16..]);
        Ok(Self { kind: expected, epoch: u32_at(8), first_bytes: u32_at(12), salt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let header = Header::fresh(Kind::Snapshot, 77).unwrap();
        let bytes = header.to_bytes();
        assert_eq!(Header::parse(&bytes, Kind::Snapshot, "x").unwrap(), header);
        assert!(matches!(Header::parse(&bytes, Kind::Index, "x"), Err(Error::Corrupt { .. })));
        assert!(matches!(Header::parse(&bytes[..47], Kind::Snapshot, "x"), Err(Error::Corrupt { .. })));
        let mut newer = bytes;
        newer[4] += 1;
        assert!(matches!(Header::parse(&newer, Kind::Snapshot, "x"), Err(Error::Unsupported { .. })));
    }
}
