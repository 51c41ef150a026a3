//! Small objects sealed as one message: records of condemned packs, and sessions. Snapshots and marks use the same
//! envelope.

use minicbor::{Decode, Encode};

use super::MAX_CONTROL_BYTES;
use super::cbor::{self, Time};
use super::header::{HEADER_BYTES, Header, Kind};
use crate::crypto::{Keys, ObjectKey, TAG_BYTES};
use crate::error::{Error, Result};
use crate::id::PackId;

/// Seals a value as an object of the given kind.
///
/// # Errors
/// When there is no randomness.
pub fn seal<T: Encode<()>>(keys: &Keys, kind: Kind, value: &T) -> Result<Vec<u8>> {
    let plain = cbor::encode(value);
    let header = Header::fresh(kind, (plain.len() + TAG_BYTES) as u32)?.to_bytes();
    let mut out = header.to_vec();
    out.extend_from_slice(&plain);
    ObjectKey::derive(&keys.control, &header).seal(0, &header, &mut out, HEADER_BYTES)?;
    Ok(out)
}

/// Opens what [`seal`] made; `what` names the object in errors.
///
/// # Errors
/// [`Error::Corrupt`] if it is not authentic or makes no sense, [`Error::Unsupported`] if it is newer.
pub fn open<T: for<'b> Decode<'b, ()> + Encode<()>>(keys: &Keys, kind: Kind, bytes: &[u8], what: &str) -> Result<T> {
    let header = Header::parse(bytes, kind, what)?;
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    if bytes.len() > MAX_CONTROL_BYTES || body.len() != header.first_bytes as usize {
        return Err(Error::corrupt(what, "its length is not the stated one"));
    }
    let mut plain = body.to_vec();
    let aad = header.to_bytes();
    if !ObjectKey::derive(&keys.control, &aad).open(0, &aad, &mut plain) {
        return Err(Error::corrupt(what, "it is not authentic"));
    }
    cbor::decode(&plain).map_err(|why| Error::corrupt(what, why))
}

/// Packs that a prune condemned; a later prune deletes them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Condemned {
    /// When, by the pruning machine's clock.
    #[n(0)]
    pub time: Time,
    /// The packs.
    #[n(1)]
    pub packs: Vec<PackId>,
    /// Sessions that were running then: nothing is deleted before each has ended or was reaped.
    #[n(2)]
    pub sessions: Vec<String>,
}

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum SessionKind {
    /// Writes packs and snapshots.
    #[n(0)]
    Write,
    /// Condemns and deletes packs: one at a time.
    #[n(1)]
    Prune,
}

/// A running writer or prune.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Session {
    /// What it does.
    #[n(0)]
    pub kind: SessionKind,
    /// Host name.
    #[n(1)]
    pub host: String,
    /// Boot of that host, so that a process number is not taken for one of another boot.
    #[n(2)]
    pub boot: String,
    /// Process number.
    #[n(3)]
    pub pid: u32,
    /// Start, by that host's clock.
    #[n(4)]
    pub started: Time,
}
