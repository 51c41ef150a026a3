//! Marks: what is said of a snapshot after it was made. A snapshot never changes, since its name is its hash and the
//! next generation names it; so a tag or a pin that comes later is an object of its own.

use minicbor::{Decode, Encode};

use super::cbor::Time;
use super::control;
use super::header::Kind;
use crate::crypto::Keys;
use crate::error::Result;
use crate::id::{MarkId, SlotId, SnapshotId};

/// A change to what is said of one snapshot. The marks of a snapshot count in the order of (time, id).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Mark {
    /// When, by the clock of whoever marked; later than every mark of the snapshot that was known there.
    #[n(0)]
    pub time: Time,
    /// The snapshot.
    #[n(1)]
    pub snapshot: SnapshotId,
    /// Tags that it has from here on.
    #[n(2)]
    pub add: Vec<String>,
    /// Tags that it does not have any more; taken away before the others are added.
    #[n(3)]
    pub remove: Vec<String>,
    /// Whether it is pinned from here on, where that changes.
    #[n(4)]
    pub pin: Option<bool>,
    /// The key slot that the repository was opened with.
    #[n(5)]
    pub slot: Option<SlotId>,
}

impl Mark {
    /// The bytes of the file, and its name.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, keys: &Keys) -> Result<(MarkId, Vec<u8>)> {
        let bytes = control::seal(keys, Kind::Mark, self)?;
        Ok((MarkId(*blake3::hash(&bytes).as_bytes()), bytes))
    }

    /// Opens a mark; `what` names it in errors.
    ///
    /// # Errors
    /// As [`control::open`].
    pub fn open(keys: &Keys, bytes: &[u8], what: &str) -> Result<Self> {
        control::open(keys, Kind::Mark, bytes, what)
    }
}
