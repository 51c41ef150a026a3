//! Encrypted, deduplicated snapshots of applications that keep a live SQLite database and files.
//!
//! The binary `snapshot` is a thin command line over this library. `ARCHITECTURE.md` shows the rooms and which way
//! imports point; `repo-format.md` is the normative description of what is stored.

pub mod backend;
pub mod chunker;
pub mod clock;
pub mod crypto;
pub mod error;
pub mod format;
pub mod id;
pub mod index;
pub mod job;
pub mod repo;
pub mod report;
pub mod source;

/// This program and its version, as both are recorded.
pub const PROGRAM: &str = concat!("snapshot ", env!("CARGO_PKG_VERSION"));
