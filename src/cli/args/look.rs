//! The commands that look into snapshots and the repository, as written.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use snapshot::format::cbor::Time;
use snapshot::format::tree::NodeKind;

use super::Filters;
use crate::cli::parse;

/// `ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// The snapshot: the start of its id, latest, latest~2; each optionally with :sub/path
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
    /// Show only this directory or file
    pub path: Option<OsString>,
    /// Show permissions, owner, size, time and what is special, too
    #[arg(short, long)]
    pub long: bool,
    /// Draw the directories as a tree
    #[arg(long)]
    pub tree: bool,
    /// Show owners as numbers
    #[arg(short, long)]
    pub numeric: bool,
    /// Show sizes like 1.5 MiB
    #[arg(long)]
    pub human: bool,
    /// Go into directories: the default
    #[arg(short = 'R', long, overrides_with = "no_recursive")]
    pub recursive: bool,
    /// Don't go into directories
    #[arg(long, overrides_with = "recursive")]
    pub no_recursive: bool,
    /// What `latest` is taken from.
    #[command(flatten)]
    pub filters: Filters,
}

/// `find`
#[derive(Debug, Args)]
pub struct Find {
    /// What names match, in gitignore syntax; one with a slash is for paths, like /app/*.db
    #[arg(value_name = "PATTERN", required = true)]
    pub patterns: Vec<String>,
    /// Upper and lower case are the same
    #[arg(short, long)]
    pub ignore_case: bool,
    /// Only what was modified after this: 2026-03-01, 2026-03-01T22:00:00Z, or an age like 30d
    #[arg(long, value_name = "TIME", value_parser = parse::moment)]
    pub newer: Option<Time>,
    /// Only what was modified before this
    #[arg(long, value_name = "TIME", value_parser = parse::moment)]
    pub older: Option<Time>,
    /// Only this kind of thing (may be repeated)
    #[arg(short = 't', long = "type", value_name = "KIND", value_enum)]
    pub kinds: Vec<Kind>,
    /// Show permissions, owner, size and time, too
    #[arg(short, long)]
    pub long: bool,
    /// Show owners as numbers
    #[arg(short, long)]
    pub numeric: bool,
    /// Show sizes like 1.5 MiB
    #[arg(long)]
    pub human: bool,
    /// Search only this snapshot, named as for `restore` (may be repeated)
    #[arg(short, long = "snapshot", value_name = "SNAP", conflicts_with = "latest")]
    pub snapshots: Vec<String>,
    /// Search only the newest N of each source
    #[arg(long, value_name = "N")]
    pub latest: Option<usize>,
    /// Which snapshots.
    #[command(flatten)]
    pub filters: Filters,
}

/// A kind of thing.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Files, databases not among them
    #[value(alias = "f")]
    File,
    /// Directories
    #[value(alias = "d", alias = "dir")]
    Directory,
    /// Databases stored as such
    #[value(alias = "db")]
    Database,
    /// Symbolic links
    #[value(alias = "l", alias = "link")]
    Symlink,
    /// Named pipes
    #[value(alias = "p")]
    Fifo,
    /// Character devices
    #[value(alias = "c")]
    CharDevice,
    /// Block devices
    #[value(alias = "b")]
    BlockDevice,
    /// Sockets
    #[value(alias = "s")]
    Socket,
}

impl From<Kind> for NodeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Directory => Self::Directory,
            Kind::Database => Self::Database,
            Kind::Symlink => Self::Symlink,
            Kind::Fifo => Self::Fifo,
            Kind::CharDevice => Self::CharDevice,
            Kind::BlockDevice => Self::BlockDevice,
            Kind::Socket => Self::Socket,
        }
    }
}

/// `diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// What was: the start of a snapshot's id, latest, latest~2; each optionally with :sub/path
    #[arg(value_name = "A")]
    pub before: String,
    /// What is, named in the same way
    #[arg(value_name = "B")]
    pub after: String,
    /// Show what differs in permissions, owner, time or attributes only, too
    #[arg(long)]
    pub metadata: bool,
    /// What `latest` is taken from.
    #[command(flatten)]
    pub filters: Filters,
}

/// `stats`
#[derive(Debug, Args)]
pub struct Stats {
    /// Only this snapshot, or a directory in it: named as for `restore`
    #[arg(value_name = "SNAP")]
    pub snapshot: Option<String>,
    /// Show only the newest N of each source
    #[arg(long, value_name = "N", conflicts_with = "snapshot")]
    pub latest: Option<usize>,
    /// Which snapshots to show; all are counted in.
    #[command(flatten)]
    pub filters: Filters,
}

/// `cat`
#[derive(Debug, Args)]
pub struct Cat {
    /// What kind of object
    #[arg(value_enum)]
    pub kind: Object,
    /// The start of its id; without one, all keys, index files, sessions or gc records
    pub id: Option<String>,
}

/// A kind of object in the repository.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Object {
    /// The parameters
    Config,
    /// Key slots, without secrets
    Key,
    /// A snapshot, forgotten ones too; latest is one
    Snapshot,
    /// A directory: by its id, or like latest:app
    Tree,
    /// A part of a page map: by its id, or like latest:app/data.db
    Map,
    /// An index file; without an id, what all of them hold
    Index,
    /// The directory of a pack
    Pack,
    /// The bytes of any blob; with --json, where it is
    Blob,
    /// What was said of snapshots after they were made: of all, or of the one with this id
    Mark,
    /// Running sessions
    Session,
    /// Records of packs that are marked for deletion
    Gc,
}

/// `dump`
#[derive(Debug, Args)]
pub struct Dump {
    /// The snapshot: the start of its id, latest, latest~2; each optionally with :sub/path
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
    /// The file, database or directory in it [default: all of it]
    pub path: Option<OsString>,
    /// Write an archive: the default for a directory
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub archive: Option<Archive>,
    /// Write to this file, which appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What `latest` is taken from.
    #[command(flatten)]
    pub filters: Filters,
}

/// A kind of archive.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Archive {
    /// A tar archive in the pax format
    Tar,
}
