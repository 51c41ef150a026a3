//! What stat says of a database and its sidecars: how a change shows that no lock keeps off.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::locks::sidecar;

/// A file that was written to less than this long ago could be written to again within the same tick of the file
/// system's clock, which is 10 ms at the coarsest (CONFIG_HZ=100).
pub const SETTLE: Duration = Duration::from_millis(50);

/// What of a file's stat shows that it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    inode: (u64, u64),
    size: u64,
    times: [(i64, i64); 2],
}

impl Stat {
    /// Of a file that is open.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            times: [(meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())],
        }
    }

    /// Of what has this name, if anything has.
    ///
    /// # Errors
    /// The system's.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            meta => Ok(Some(Self::of(&meta?))),
        }
    }

    /// Whether both are of one file.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.inode == other.inode
    }

    /// Whether both are of one file that was not written to in between; a new owner or mode doesn't matter.
    pub fn is_same_content(&self, other: &Self) -> bool {
        (self.inode, self.size, self.times[0]) == (other.inode, other.size, other.times[0])
    }

    /// Whether it was last touched long enough ago that a new write must show.
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = now.saturating_sub(SETTLE);
        let limit = (limit.as_secs().cast_signed(), i64::from(limit.subsec_nanos()));
        self.times.iter().all(|t| *t < limit)
    }
}

/// Everything that a capture without locks must find unchanged afterwards.
#[derive(Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The main file.
    pub main: Option<Stat>,
    /// The `-wal` file.
    pub wal: Option<Stat>,
    /// The `-journal` file.
    pub journal: Option<Stat>,
}

impl Surroundings {
    /// What there is now.
    ///
    /// # Errors
    /// The system's.
    pub fn look(path: &Path) -> io::Result<Self> {
        Ok(Self {
            main: Stat::at(path)?,
            wal: Stat::at(&sidecar(path, "-wal"))?,
            journal: Stat::at(&sidecar(path, "-journal"))?,
        })
    }

    /// Whether everything was last touched long enough ago that a new write must show.
    pub fn is_settled(&self) -> bool {
        [self.main, self.wal, self.journal].iter().flatten().all(Stat::is_settled)
    }
}
