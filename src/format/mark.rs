//! Marks: what is said of a snapshot after it was made. A snapshot never changes, since its name is its hash and the
//! next generation names it; so a tag or a pin that comes later is an object of its own, and so is the proof that it can be
//! restored.

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
    /// That it was proved to be restorable.
    #[n(6)]
    pub proof: Option<Proof>,
}

/// How a snapshot was proved to be restorable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ProofKind {
    /// All of it was restored to a scratch directory, read back and compared; SQLite checked its databases, and what is
    /// in them was compared with what was recorded at their capture.
    #[n(0)]
    Drill,
}

/// A snapshot was proved to be restorable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Proof {
    /// When that was done.
    #[n(0)]
    pub time: Time,
    /// Program and version that did it.
    #[n(1)]
    pub program: String,
    /// How.
    #[n(2)]
    pub kind: ProofKind,
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
