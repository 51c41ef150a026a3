//! A repository that is open: its keys, its index, its snapshots; reading and writing blobs.
//!
//! May depend on `backend`, `index`, `format` and below; knows nothing of files or databases outside.

mod bases;
mod bundles;
mod closed;
mod control;
mod copy;
mod delta;
mod fetch;
mod live;
pub(crate) mod machine;
mod marks;
mod materialise;
mod needs;
mod open;
mod own;
mod pages;
mod proven;
mod reach;
mod read;
mod rivals;
mod salvage;
mod segments;
mod select;
mod session;
mod strays;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod trees;
mod unlock;
mod verify;
mod wide;
mod write;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::backend::Backend;
use crate::crypto::{Keys, Secret};
use crate::format::config::Config;
use crate::index::BlobIndex;

pub use bases::BasePages;
pub use closed::Closed;
pub use control::{Generations, Lost, Named};
pub use copy::{Piece, copy};
#[cfg(test)]
pub(crate) use delta::encode_delta;
pub use delta::{SegmentPages, bases_of, encode_segment};
pub use fetch::{Run, Wanted, arrange};
pub use live::{Condemnation, Live, Running};
pub use machine::host;
pub use marks::{MarkNote, Marks};
pub use needs::Needs;
pub use open::{IndexFile, LoadedIndex};
pub use pages::Leaf;
pub use proven::Proven;
pub use reach::{Added, Leaning, Reach, close};
pub use read::FrameReader;
pub use salvage::{Salvage, Salvaged};
pub use select::{BEFORE_RESTORE, Filter, Selected, Start, split_path};
pub use session::SessionGuard;
pub use stream::Stream;
pub use unlock::{KeySlot, decode_recovery_code, read_key_file, recovery_code, write_key_file};
pub use verify::Audit;
pub use wide::widen;
pub use write::{Claims, GATHER_BYTES, Gather, Writer, Written, encode_frame};

/// An open repository.
pub struct Repository {
    backend: Arc<dyn Backend>,
    config: Config,
    master: Secret,
    keys: Keys,
    opened: unlock::Opened,
    index: RwLock<BlobIndex>,
    frames: read::FrameCache,
    bases: segments::BaseCache,
    strays: strays::Strays,
    own: own::Own,
}

impl Repository {
    /// Where objects are kept.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The repository's parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Keys for hashing and sealing.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The index as loaded. Hold the guard briefly: writers wait for it.
    pub fn index(&self) -> RwLockReadGuard<'_, BlobIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the index in memory.
    pub fn with_index<T>(&self, change: impl FnOnce(&mut BlobIndex) -> T) -> T {
        change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another index in the place of the one in memory. Decoded frames are dropped with it: they are kept under
    /// the old index's numbers.
    pub fn replace_index(&self, index: BlobIndex) {
        self.with_index(|old| *old = index);
        self.frames.clear();
        self.bases.clear();
        self.strays.forget();
    }
}
