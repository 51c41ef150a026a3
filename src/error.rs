//! One error type, arranged by what the user can do about it.
//!
//! May depend on nothing else in the crate. Each variant names the object or file concerned; the exit status and
//! the hint that go with it stand here too, so that every command speaks alike.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on which object.
#[derive(Debug, Error)]
pub enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no repository at the place given.
    #[error("there is no repository at {at}")]
    NoRepository {
        /// The repository as the user named it.
        at: String,
    },
    /// `init` found something at the place given.
    #[error("{at} already holds {what}")]
    Exists {
        /// The place as the user named it.
        at: String,
        /// What was found there.
        what: &'static str,
    },
    /// No key slot opens with the secret given.
    #[error("{what} opens none of the {slots} key slots of this repository")]
    WrongKey {
        /// The secret, in words ("the password", "key file /x").
        what: String,
        /// How many slots were tried.
        slots: usize,
    },
    /// Another process holds what this one needs alone.
    #[error("{what} is locked by {by}")]
    Locked {
        /// What could not be had.
        what: String,
        /// Who has it.
        by: String,
    },
    /// A stored object is damaged, forged or incomplete.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// The object, by its path in the repository or its blob id.
        what: String,
        /// What exactly is wrong with it.
        why: String,
    },
    /// A stored object is needed but is not there.
    #[error("{what} is missing from the repository")]
    Missing {
        /// The object, by its path in the repository or its blob id.
        what: String,
    },
    /// The user named something that isn't there.
    #[error("no {kind} matches \"{name}\"")]
    Unknown {
        /// "snapshot", "path", "key slot", "blob", …
        kind: &'static str,
        /// As the user wrote it.
        name: String,
    },
    /// The repository was written by something newer, or uses a feature unknown here.
    #[error("{what} needs a newer version of snapshot: {why}")]
    Unsupported {
        /// The object concerned.
        what: String,
        /// Which version or feature.
        why: String,
    },
    /// Storage failed: the repository's disk or server.
    #[error("cannot {action} {object}: {why}")]
    Storage {
        /// "read", "write", "list", "delete".
        action: &'static str,
        /// The object's path in the repository.
        object: String,
        /// The storage's own words.
        why: String,
        /// Whether the storage is out of space.
        full: bool,
    },
    /// A repository on a network failed.
    #[error("cannot {action} {object} at {at}: {why}")]
    Remote {
        /// "read", "write", "list", "delete".
        action: &'static str,
        /// The object's path in the repository.
        object: String,
        /// The repository, as a URL.
        at: String,
        /// The cause, as far as it is known.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// A local file or directory outside the repository could not be used.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// "read", "write", "create", …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
    /// The request is understood and would do harm, or can't be met.
    #[error("{what}")]
    Refused {
        /// What was refused and why.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// The user asked for an end.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A local file could not be used.
    pub fn file(action: &'static str, path: impl AsRef<Path>, error: impl Into<io::Error>) -> Self {
        Self::File { action, path: path.as_ref().to_path_buf(), error: error.into() }
    }

    /// A stored object is damaged.
    pub fn corrupt(what: impl ToString, why: impl ToString) -> Self {
        Self::Corrupt { what: what.to_string(), why: why.to_string() }
    }

    /// A request that is refused, with the way out.
    pub fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), hint: hint.into() }
    }

    /// The exit status, as documented in the README.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NoRepository { .. } => 10,
            Self::Locked { .. } => 11,
            Self::WrongKey { .. } => 12,
            Self::Interrupted => 130,
            _ => 1,
        }
    }

    /// A stable name for `--json`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::NoRepository { .. } => "no-repository",
            Self::Exists { .. } => "exists",
            Self::WrongKey { .. } => "wrong-key",
            Self::Locked { .. } => "locked",
            Self::Corrupt { .. } => "corrupt",
            Self::Missing { .. } => "missing",
            Self::Unknown { .. } => "unknown",
            Self::Unsupported { .. } => "unsupported",
            Self::Storage { .. } | Self::Remote { .. } => "storage",
            Self::File { .. } => "file",
            Self::Refused { .. } => "refused",
            Self::Interrupted => "interrupted",
        }
    }

    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<&str> {
        Some(match self {
            Self::NoRepository { .. } => "make one with `snapshot init`, or check --repo",
            Self::Exists { .. } => "choose another place; each repository has a key file of its own, too",
            Self::WrongKey { .. } => "check the password or key file; a recovery code works as a password",
            Self::Locked { .. } => "try again when it has ended",
            Self::Corrupt { .. } | Self::Missing { .. } => "run `snapshot check` to see what is affected",
            Self::Unknown { kind: "snapshot", .. } => "`snapshot list` shows what there is",
            Self::Unknown { kind: "path", .. } => "`snapshot ls SNAPSHOT` shows what there is",
            Self::Unsupported { .. } => "install the current release",
            Self::Storage { full: true, .. } => {
                "free some space (`snapshot prune --instant` frees what no snapshot needs) and run the command again"
            }
            Self::Storage { .. } => "nothing was lost; run the command again when the storage answers",
            Self::Refused { hint, .. } | Self::Remote { hint, .. } => hint,
            Self::Usage(_) | Self::File { .. } | Self::Unknown { .. } | Self::Interrupted => return None,
        })
    }
}
