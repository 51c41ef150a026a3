//! The commands that look after the repository and what is in it, as written.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use snapshot::job::check::ReadData;
use snapshot::job::prune::Limit;

use super::{Filters, Kdf};
use crate::cli::{help, parse};

/// `tag`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct Tag {
    /// The snapshots: the start of an id, latest, latest~2; without one, all that the filters choose
    #[arg(value_name = "SNAP")]
    pub snapshots: Vec<String>,
    /// Add these tags (may be repeated)
    #[arg(long, value_name = "TAG,…", value_delimiter = ',', group = "change")]
    pub add: Vec<String>,
    /// Take these tags away (may be repeated)
    #[arg(long, value_name = "TAG,…", value_delimiter = ',', group = "change")]
    pub remove: Vec<String>,
    /// Have these tags and no others; '' for none
    #[arg(long, value_name = "TAG,…", value_delimiter = ',', group = "change", conflicts_with_all = ["add", "remove"])]
    pub set: Option<Vec<String>>,
    /// Pin: no rule of `prune` drops it, and `forget` refuses to
    #[arg(long, group = "change", conflicts_with = "unpin")]
    pub pin: bool,
    /// Let it go the way of others again
    #[arg(long, group = "change")]
    pub unpin: bool,
    /// Which snapshots, or what `latest` is taken from.
    #[command(flatten)]
    pub filters: Filters,
}

/// `forget`, `undo-forget`
#[derive(Debug, Args)]
pub struct Forget {
    /// The start of a snapshot's id
    #[arg(value_name = "SNAP", required = true)]
    pub snapshots: Vec<String>,
}

/// `prune`
#[derive(Debug, Args)]
pub struct Prune {
    /// Keep the newest N of each source
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_daily: Option<u32>,
    /// Keep the newest of each of the last N weeks that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_monthly: Option<u32>,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    pub keep_yearly: Option<u32>,
    /// Keep all that are younger than this, like 30d
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "What to keep")]
    pub keep_within: Option<i64>,
    /// Keep all with this tag (may be repeated)
    #[arg(long = "keep-tag", value_name = "TAG", help_heading = "What to keep")]
    pub keep_tags: Vec<String>,
    /// Which snapshots the rules are for; all others are kept.
    #[command(flatten)]
    pub filters: Filters,
    /// Change nothing, and print what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Unused data that may stay in packs to save rewriting them: 5% of all, 200M, or unlimited
    #[arg(long, value_name = "LIMIT", default_value = "5%", value_parser = parse::limit)]
    pub max_unused: Limit,
    /// Rewrite at most this much, like 2G
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub max_repack: Option<u64>,
    /// How long unused data stays before a later prune deletes it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse::duration)]
    pub grace: i64,
    /// Delete at once, without grace; refused while another session is running
    #[arg(long)]
    pub instant: bool,
}

/// `check`
#[derive(Debug, Args)]
pub struct Check {
    /// Read and verify all stored data, too
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// Read a part of it: 5% at random, 2/7 (the second of seven parts), or 500M
    #[arg(long, value_name = "PART", value_parser = parse::subset)]
    pub read_data_subset: Option<ReadData>,
    /// Rebuild each database, run SQLite's own checks on it, and compare it with what was recorded at its capture
    #[arg(long)]
    pub databases: bool,
    /// Restore these snapshots to a scratch directory, check all that came of it, and record that they are proven
    /// [default: the newest of each source]
    #[arg(long, value_name = "SNAP", num_args = 0..)]
    pub restore_drill: Option<Vec<String>>,
    /// Directory to rebuild databases and to restore in [default: in your cache directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// See whether the files are there that the rows of known applications refer to, in these snapshots [default: the
    /// newest of each source]
    #[arg(long, value_name = "SNAP", num_args = 0..)]
    pub references: Option<Vec<String>>,
}

/// `repair`
#[derive(Debug, Subcommand)]
pub enum Repair {
    /// Write the index anew from the packs themselves
    #[command(after_long_help = help::REPAIR)]
    Index,
    /// Read all data, save what can be read of damaged packs in new ones, and set the damaged ones aside
    #[command(after_long_help = help::REPAIR)]
    Packs,
    /// Make a snapshot of what is left of each that lost something, and list exactly what that is
    #[command(after_long_help = help::REPAIR_SNAPSHOTS)]
    Snapshots(RepairSnapshots),
}

/// What stands in the place of lost pages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LostPages {
    /// Zeros
    Zeros,
    /// The pages of the nearest generation that still has them, and zeros where none has
    OtherGenerations,
}

/// `repair snapshots`
#[derive(Debug, Args)]
pub struct RepairSnapshots {
    /// Change nothing, and print what is lost
    #[arg(long)]
    pub dry_run: bool,
    /// Forget the damaged snapshots afterwards, and those that can't be read at all
    #[arg(long)]
    pub forget: bool,
    /// Keep databases that lost pages as plain files NAME.salvaged, with something else in place of these: never sound
    #[arg(long, value_name = "LOST-PAGES", value_enum)]
    pub keep_databases: Option<LostPages>,
}

/// `key`
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Add a password (asked for on a terminal) or a key file
    #[command(after_long_help = help::KEY)]
    Add(KeyAdd),
    /// Show what opens the repository
    #[command(after_long_help = help::KEY)]
    List,
    /// Change the password that this command is run with
    #[command(after_long_help = help::KEY)]
    Passwd(KeyPasswd),
    /// Remove a password, key file or recovery code
    #[command(after_long_help = help::KEY)]
    Remove {
        /// The start of its id, as `snapshot key list` shows it
        id: String,
    },
    /// Make a code that opens the repository, and print it; write it down
    #[command(after_long_help = help::KEY)]
    RecoveryCode,
}

/// `key add`
#[derive(Debug, Args)]
pub struct KeyAdd {
    /// Take the new password from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    pub new_password_file: Option<PathBuf>,
    /// Write a new key file here
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// A name for it, to know it by [default: this machine's]
    #[arg(long)]
    pub label: Option<String>,
    /// Cost of hashing a password.
    #[command(flatten)]
    pub kdf: Kdf,
}

/// `copy`
#[derive(Debug, Default, Args)]
pub struct Copy {
    /// The snapshots: the start of an id, latest, latest~2 [default: all that the filters leave]
    #[arg(value_name = "SNAP")]
    pub snapshots: Vec<String>,
    /// The repository to copy from [env: SNAPSHOT_FROM_REPO] [default: the one in your data directory]
    #[arg(long, value_name = "URL", help_heading = "Where to copy from")]
    pub from_repo: Option<OsString>,
    /// Its password's file [env: SNAPSHOT_FROM_PASSWORD_FILE] [default: what opens the target]
    #[arg(long, value_name = "FILE", help_heading = "Where to copy from")]
    #[arg(conflicts_with_all = ["from_password_command", "from_key_file"])]
    pub from_password_file: Option<PathBuf>,
    /// A command that prints its password [env: SNAPSHOT_FROM_PASSWORD_COMMAND]
    #[arg(long, value_name = "COMMAND", conflicts_with = "from_key_file", help_heading = "Where to copy from")]
    pub from_password_command: Option<OsString>,
    /// Its key file [env: SNAPSHOT_FROM_KEY_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Where to copy from")]
    pub from_key_file: Option<PathBuf>,
    /// How hard to compress, from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compression: i32,
    /// Which snapshots.
    #[command(flatten)]
    pub filters: Filters,
}

/// `unlock`
#[derive(Debug, Args)]
pub struct Unlock {
    /// Also those that may be running: each then fails before it commits anything
    #[arg(long)]
    pub remove_all: bool,
}

/// `key passwd`
#[derive(Debug, Args)]
pub struct KeyPasswd {
    /// Take the new password from the first line of this file [default: ask for it on the terminal]
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// Cost of hashing a password; as it was, unless given.
    #[command(flatten)]
    pub kdf: Kdf,
}
