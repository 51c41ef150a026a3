//! Snapshots: the commit points.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::cbor::Time;
use super::control;
use super::header::Kind;
use super::tree::{Node, NodeKind};
use crate::crypto::Keys;
use crate::error::Result;
use crate::id::{BlobId, SlotId, SnapshotId};

/// Tag of a snapshot that stands in for a damaged one, with what could still be read of it.
pub const SALVAGED: &str = "salvaged";

/// What a snapshot holds and what it cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Counts {
    /// Regular files, databases not counted.
    #[n(0)]
    pub files: u64,
    /// Directories.
    #[n(1)]
    pub directories: u64,
    /// Databases captured page by page.
    #[n(2)]
    pub databases: u64,
    /// Symbolic links, pipes, devices, sockets.
    #[n(3)]
    pub others: u64,
    /// Length of all files and databases, in bytes.
    #[n(4)]
    pub bytes: u64,
    /// Bytes read from the source.
    #[n(5)]
    pub bytes_read: u64,
    /// Plaintext bytes of blobs that the repository did not have.
    #[n(6)]
    pub bytes_new: u64,
    /// Bytes the repository grew by: packs and index.
    #[n(7)]
    pub bytes_stored: u64,
    /// Milliseconds it took.
    #[n(8)]
    pub millis: u64,
    /// Sources that could not be read as they should.
    #[n(9)]
    pub skipped: u64,
    /// Databases stored as plain files, unverified.
    #[n(10)]
    pub unverified: u64,
}

impl Counts {
    /// Counts a node.
    pub fn add(&mut self, node: &Node) {
        match node.kind {
            NodeKind::File => self.files += 1,
            NodeKind::Directory => self.directories += 1,
            NodeKind::Database => self.databases += 1,
            _ => self.others += 1,
        }
        self.bytes += node.size.unwrap_or(0);
        self.unverified += u64::from(node.unverified.is_some());
    }
}

/// The name of a user or group on the machine the snapshot was taken on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// Its number.
    #[n(0)]
    pub id: u32,
    /// Its name.
    #[n(1)]
    pub name: String,
}

/// One generation of a source.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    /// When it was begun.
    #[n(0)]
    pub time: Time,
    /// Host name.
    #[n(1)]
    pub host: String,
    /// The source: by default the canonical absolute path.
    #[n(2)]
    pub source: String,
    /// Sequence number in host and source, from 1.
    #[n(3)]
    pub generation: u64,
    /// The generation before, unless this is the first.
    #[n(4)]
    pub previous: Option<SnapshotId>,
    /// The paths given.
    #[n(5)]
    pub paths: Vec<ByteVec>,
    /// Tags that it was made with. Marks may change them.
    #[n(6)]
    pub tags: Vec<String>,
    /// The root directory.
    #[n(7)]
    pub tree: BlobId,
    /// What it holds and cost.
    #[n(8)]
    pub counts: Counts,
    /// Name and version of the program.
    #[n(9)]
    pub program: String,
    /// Names of the users that own something.
    #[n(10)]
    pub users: Vec<Owner>,
    /// Names of the groups.
    #[n(11)]
    pub groups: Vec<Owner>,
    /// When it was really begun, where `time` may have been given by the user.
    #[n(12)]
    pub started: Time,
    /// The key slot that the repository was opened with.
    #[n(13)]
    pub slot: Option<SlotId>,
    /// Whether it was pinned when it was made: no rule drops it. Marks may change that.
    #[n(14)]
    pub pinned: bool,
    /// The presets of known applications that it was taken with: names, separated by commas.
    #[n(15)]
    pub preset: Option<String>,
}

impl Snapshot {
    /// Whether it stands in for a damaged snapshot of the same generation.
    pub fn is_salvaged(&self) -> bool {
        self.tags.iter().any(|tag| tag == SALVAGED)
    }

    /// The bytes of the file, and its name.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, keys: &Keys) -> Result<(SnapshotId, Vec<u8>)> {
        let bytes = control::seal(keys, Kind::Snapshot, self)?;
        Ok((SnapshotId(*blake3::hash(&bytes).as_bytes()), bytes))
    }

    /// Opens a snapshot file; `what` names it in errors.
    ///
    /// # Errors
    /// As [`control::open`].
    pub fn open(keys: &Keys, bytes: &[u8], what: &str) -> Result<Self> {
        control::open(keys, Kind::Snapshot, bytes, what)
    }
}
