//! Where objects are kept: a small blocking trait, and what implements it.
//!
//! May depend on `id`, `error`, `format`. A put is atomic (nobody ever sees a part of an object) and durable (when it
//! returns, the object survives a power cut); everything above relies on just that, and on listing, never on
//! conditional writes or locks of the store.

mod at_once;
mod bundle;
mod cached;
mod copies;
mod fault;
pub mod layout;
mod local;
mod memory;
pub mod remote;

use crate::error::Result;
use crate::format::cbor::Time;

pub use at_once::{at_once, both};
pub use bundle::{Bundler, MAX_BUNDLE_BYTES, MAX_BUNDLED_BYTES, unbundle};
pub use cached::Cached;
pub use copies::DEFAULT_CACHE_BYTES;
pub use fault::{Call, Fault, Faulty, Op};
pub use local::Local;
pub use memory::Memory;
pub use remote::{Remote, Usage};

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its path below the repository's root.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When the store last wrote it, by the store's clock.
    pub modified: Time,
}

impl Listed {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// A store of objects under relative paths.
///
/// Errors name the object: [`crate::error::Error::Missing`] where there is none, and
/// [`crate::error::Error::Storage`] for all else.
pub trait Backend: Send + Sync {
    /// The place, for people.
    fn describe(&self) -> String;

    /// Whether each call is a request to a server, with its latency and its price.
    fn is_remote(&self) -> bool {
        false
    }

    /// How many calls at a time it answers best.
    fn concurrency(&self) -> usize {
        1
    }

    /// What was asked of the server so far, if there is one.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Whether parts of an object can be read without a request to a server.
    fn is_near(&self, path: &str) -> bool {
        let _ = path;
        !self.is_remote()
    }

    /// Says that these objects will be read whole, one after the other, soon. What can't be had is found out then.
    fn want(&self, objects: &[Listed]) {
        let _ = objects;
    }

    /// Says that an object that is about to be put will be read by later runs on this machine.
    fn keep(&self, path: &str, bytes: &[u8]) {
        let _ = (path, bytes);
    }

    /// Writes an object, atomically and durably. Writing an existing path again replaces it.
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()>;

    /// The same, but only where there is none; `false` if there was one.
    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool>;

    /// Reads a whole object, of at most `max_bytes`.
    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>>;

    /// Reads `len` bytes from `offset`; an object that ends before that is an error.
    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>>;

    /// Lists all objects below a folder, sorted by path. A folder that isn't there is empty.
    fn list(&self, folder: &str) -> Result<Vec<Listed>>;

    /// Deletes objects, durably; one that isn't there counts as deleted.
    fn delete(&self, paths: &[String]) -> Result<()>;
}
