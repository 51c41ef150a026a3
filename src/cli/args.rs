//! The command line as written: one struct for each command, checked by clap. Longer help stands in `help`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use snapshot::format::cbor::Time;
use snapshot::job::create::PresetChoice;
use snapshot::source::owners::Mapping;

use super::{help, parse};

mod keep;
mod look;

pub use keep::{Check, Copy, Forget, Key, KeyAdd, KeyPasswd, LostPages, Prune, Repair, RepairSnapshots, Tag, Unlock};
pub use look::{Cat, Diff, Dump, Find, Ls, Object, Stats};

/// Encrypted, deduplicated snapshots of applications that keep a live SQLite database and files.
#[derive(Debug, Parser)]
#[command(name = "snapshot", version, after_help = help::TOP_SHORT, after_long_help = help::TOP)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The repository: a path, sftp://user@host/path, or s3://bucket/prefix [env: SNAPSHOT_REPO] [default: one in your
    /// data directory]
    #[arg(short, long, global = true, value_name = "URL")]
    pub repo: Option<OsString>,
    /// Take the password from the first line of this file [env: SNAPSHOT_PASSWORD_FILE]
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["password_command", "key_file"])]
    pub password_file: Option<PathBuf>,
    /// Take the password from the first line this command prints; run by sh [env: SNAPSHOT_PASSWORD_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", conflicts_with = "key_file")]
    pub password_command: Option<OsString>,
    /// Unlock with this key file instead of a password [env: SNAPSHOT_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Print one JSON document; progress and problems become JSON lines on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but errors, warnings and what was asked for
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Show no progress
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Keep temporary data in the system's temporary directory instead of the cache directory, and remember nothing
    #[arg(long, global = true, conflicts_with = "cache_dir")]
    pub no_cache: bool,
    /// Directory for temporary data and what is remembered of repositories [default: snapshot in your cache directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Keep at most so much of a remote repository in the cache directory [default: 4G]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse::size)]
    pub cache_size: Option<u64>,
    /// Send no more than this many bytes a second, such as 10M for 10 MiB
    #[arg(long, global = true, value_name = "RATE", value_parser = parse::rate)]
    pub limit_upload: Option<u64>,
    /// Receive no more than this many bytes a second
    #[arg(long, global = true, value_name = "RATE", value_parser = parse::rate)]
    pub limit_download: Option<u64>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository
    #[command(after_long_help = help::INIT)]
    Init(Init),
    /// Take a snapshot of directories, files, or the output of a command
    #[command(after_long_help = help::CREATE)]
    Create(Box<Create>),
    /// Show the snapshots
    #[command(after_long_help = help::LIST)]
    List(List),
    /// Show the files in a snapshot
    #[command(after_long_help = help::LS)]
    Ls(Ls),
    /// Find names in all snapshots
    #[command(after_long_help = help::FIND)]
    Find(Find),
    /// Show what differs between two snapshots, down to the tables of databases
    #[command(after_long_help = help::DIFF)]
    Diff(Diff),
    /// Write a file or database of a snapshot, or an archive of a directory, to standard output
    #[command(after_long_help = help::DUMP)]
    Dump(Dump),
    /// Get a snapshot back
    #[command(after_long_help = help::RESTORE)]
    Restore(Box<Restore>),
    /// Take a snapshot, run a command, and put the snapshot back if the command fails
    #[command(after_long_help = help::GUARD, mut_arg("dry_run", |a| a.hide(true)), mut_arg("stdin", |a| a.hide(true)))]
    #[command(mut_arg("stdin_from_command", |a| a.hide(true)), mut_arg("stdin_name", |a| a.hide(true)))]
    #[command(mut_arg("postgres", |a| a.hide(true)), mut_arg("preset", |a| a.hide(true)))]
    #[command(mut_arg("check_references", |a| a.hide(true)), mut_arg("cost", |a| a.hide(true)))]
    Guard(Box<Guard>),
    /// Change the tags of snapshots that are there, and pin them
    #[command(after_long_help = help::TAG)]
    Tag(Tag),
    /// Drop single snapshots; `undo-forget` takes them back while their data is there
    #[command(after_long_help = help::FORGET)]
    Forget(Forget),
    /// Take forgotten snapshots back
    #[command(after_long_help = help::UNDO_FORGET)]
    UndoForget(Forget),
    /// Drop old snapshots by rules, and reclaim the space of what no snapshot needs
    #[command(after_long_help = help::PRUNE)]
    Prune(Prune),
    /// Look for damage in the repository
    #[command(after_long_help = help::CHECK)]
    Check(Check),
    /// Show what snapshots hold, what they cost, and what forgetting them would free
    #[command(after_long_help = help::STATS)]
    Stats(Stats),
    /// Show a stored object as JSON, or the bytes of a blob
    #[command(after_long_help = help::CAT)]
    Cat(Cat),
    /// Mend what `check` found, never deleting what can still be read
    #[command(subcommand, after_long_help = help::REPAIR)]
    Repair(Repair),
    /// Manage the passwords, key files and recovery codes that open the repository
    #[command(subcommand, after_long_help = help::KEY)]
    Key(Key),
    /// Copy snapshots from another repository into this one
    #[command(after_long_help = help::COPY)]
    Copy(Box<Copy>),
    /// Clear away sessions of runs that were killed
    #[command(after_long_help = help::UNLOCK)]
    Unlock(Unlock),
    /// Print a script that completes this command in a shell
    #[command(after_long_help = help::COMPLETIONS)]
    Completions(Completions),
}

/// Cost of hashing a password.
#[derive(Debug, Args)]
pub struct Kdf {
    /// Memory for hashing the password, in MiB (or like 1G): more makes guessing dearer, and unlocking
    #[arg(long, value_name = "MIB", value_parser = parse::memory_kib)]
    pub kdf_memory: Option<u32>,
    /// Passes over that memory
    #[arg(long, value_name = "N")]
    pub kdf_time: Option<u32>,
}

/// `init`
#[derive(Debug, Args)]
pub struct Init {
    /// Cost of hashing a password.
    #[command(flatten)]
    pub kdf: Kdf,
}

/// `create`
#[derive(Debug, Args)]
pub struct Create {
    /// Directories and files; with --stdin-from-command, the command and its arguments
    #[arg(value_name = "PATH", required_unless_present_any = ["stdin", "postgres"], conflicts_with = "stdin")]
    pub paths: Vec<OsString>,
    /// Take a PostgreSQL database along, before any file is read: postgresql://user@host/database (may be repeated)
    #[arg(long, value_name = "URL", conflicts_with_all = ["stdin", "stdin_from_command"])]
    pub postgres: Vec<String>,
    /// A label, to select snapshots by (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Pin the snapshot: no rule of `prune` drops it, until `snapshot tag --unpin`
    #[arg(long)]
    pub pin: bool,
    /// Host name to record [default: this machine's]
    #[arg(long)]
    pub host: Option<String>,
    /// Name of the source, whose generations are counted [default: the absolute path]
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Time to record, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    pub time: Option<Time>,
    /// Leave out what matches, in gitignore syntax (may be repeated)
    #[arg(long = "exclude", value_name = "GLOB")]
    pub excludes: Vec<String>,
    /// Leave out what matches a line of this file, in gitignore syntax (may be repeated)
    #[arg(long = "exclude-file", value_name = "FILE")]
    pub exclude_files: Vec<PathBuf>,
    /// Leave out the contents of directories marked by a CACHEDIR.TAG
    #[arg(long)]
    pub exclude_caches: bool,
    /// Stay on the file systems of the paths given
    #[arg(long)]
    pub one_file_system: bool,
    /// Take the paths for those of this application, and leave out what need not be kept of it; `none`: recognise none
    /// [default: what is recognised]
    #[arg(long, value_name = "NAME", value_parser = parse::preset, conflicts_with_all = ["stdin", "stdin_from_command"])]
    pub preset: Option<PresetChoice>,
    /// When the snapshot is there, see whether the files are in it that rows of known applications refer to
    #[arg(long, conflicts_with_all = ["stdin", "stdin_from_command", "dry_run"])]
    pub check_references: bool,
    /// Read everything, store nothing, and say what would be stored
    #[arg(long)]
    pub dry_run: bool,
    /// Also say how many requests and bytes that would take where requests are paid for
    #[arg(long, requires = "dry_run")]
    pub cost: bool,
    /// Take a snapshot of standard input
    #[arg(long, conflicts_with = "stdin_from_command")]
    pub stdin: bool,
    /// Take a snapshot of what a command prints; none is made if the command fails
    #[arg(long)]
    pub stdin_from_command: bool,
    /// Name of the file that holds it in the snapshot [default: stdin]
    #[arg(long, value_name = "NAME")]
    pub stdin_name: Option<OsString>,
    /// How hard to compress, from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compression: i32,
    /// Longest time to hold up writers of a database in rollback-journal mode; those in WAL mode never wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub max_lock: u64,
}

/// `guard`
#[derive(Debug, Args)]
pub struct Guard {
    /// What the snapshot is of, and how it is taken.
    #[command(flatten)]
    pub create: Create,
    /// If the command fails, put the snapshot back without asking
    #[arg(long)]
    pub rollback: bool,
    /// Run the command even if some of the source could not be read as it should
    #[arg(long)]
    pub allow_incomplete: bool,
    /// Don't keep what a rollback replaces
    #[arg(long)]
    pub no_safety: bool,
    /// The command to run, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Which snapshots are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    /// Only snapshots of this host (may be repeated)
    #[arg(long = "host")]
    pub hosts: Vec<String>,
    /// Only snapshots of this source (may be repeated)
    #[arg(long = "source", value_name = "NAME")]
    pub sources: Vec<String>,
    /// Only snapshots with this tag (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Only snapshots of this path (may be repeated)
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<OsString>,
}

/// `list`
#[derive(Debug, Args)]
pub struct List {
    /// Which snapshots.
    #[command(flatten)]
    pub filters: Filters,
    /// Only the newest N of each source
    #[arg(long, value_name = "N")]
    pub latest: Option<usize>,
}

/// When a restore writes over what is there.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Overwrite {
    /// Write every file
    Always,
    /// Write files whose size or time differs
    IfChanged,
    /// Leave what is there
    Never,
}

/// How owners are restored.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Owners {
    /// By name where there is such a user or group here, else by number
    Names,
    /// By number
    Numbers,
    /// Not: everything belongs to you
    None,
}

/// `restore`
#[derive(Debug, Args)]
pub struct Restore {
    /// The snapshot: the start of its id, latest, latest~2; each optionally with :sub/path
    #[arg(value_name = "SNAP", required_unless_present = "undo", conflicts_with = "undo")]
    pub snapshot: Option<String>,
    /// Directory to restore into; made if it isn't there
    #[arg(short, long, value_name = "DIR", required_unless_present = "postgres")]
    pub target: Option<PathBuf>,
    /// Load a dump of the snapshot into this PostgreSQL database instead: postgresql://user@host/database
    #[arg(long, value_name = "URL", help_heading = "PostgreSQL")]
    #[arg(conflicts_with_all = ["target", "include", "exclude", "in_place", "delete", "overwrite", "verify_content"])]
    #[arg(conflicts_with_all = ["force", "verify", "map_user", "map_group"])]
    pub postgres: Option<String>,
    /// Which database of the snapshot, if there are several
    #[arg(long, value_name = "NAME", requires = "postgres", help_heading = "PostgreSQL")]
    pub postgres_database: Option<OsString>,
    /// Make the database if there is none of that name
    #[arg(long, requires = "postgres", help_heading = "PostgreSQL")]
    pub create: bool,
    /// Load into a database that is not empty: what is in the snapshot too is replaced
    #[arg(long, requires = "postgres", help_heading = "PostgreSQL")]
    pub clean: bool,
    /// Make the roles and tablespaces of the server first
    #[arg(long, requires = "postgres", help_heading = "PostgreSQL")]
    pub globals: bool,
    /// Restore only what matches, in gitignore syntax (may be repeated)
    #[arg(short, long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out what matches, in gitignore syntax (may be repeated)
    #[arg(short, long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Bring a directory that is there to the snapshot's state, writing and fetching only what differs
    #[arg(long, help_heading = "What is there already")]
    pub in_place: bool,
    /// Delete what the snapshot doesn't have, after everything was restored; includes --in-place
    #[arg(long, help_heading = "What is there already")]
    pub delete: bool,
    /// What to do with files that are there already [default: refuse a target that is not empty]
    #[arg(long, value_name = "WHEN", value_enum, help_heading = "What is there already")]
    pub overwrite: Option<Overwrite>,
    /// Compare the content of files that are there, even if size and time are the same
    #[arg(long, help_heading = "What is there already")]
    pub verify_content: bool,
    /// Take the last restore into the target back: what it replaced or deleted returns, what it made goes
    #[arg(long, help_heading = "What is there already")]
    #[arg(conflicts_with_all = ["include", "exclude", "overwrite", "delete", "postgres"])]
    pub undo: bool,
    /// Don't keep a snapshot of what is replaced or deleted
    #[arg(long, help_heading = "What is there already")]
    pub no_safety: bool,
    /// Restore into a target that is not empty; replace what is of another kind, databases that are open or not sound;
    /// delete in spite of objections
    #[arg(long, help_heading = "What is there already")]
    pub force: bool,
    /// Write nothing, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Read back and compare all that was written, run SQLite's checks on every restored database, and compare it with
    /// what was recorded at its capture
    #[arg(long)]
    pub verify: bool,
    /// As root: how owners are restored
    #[arg(long, value_name = "HOW", value_enum, default_value = "names", help_heading = "Owners")]
    pub owner: Owners,
    /// As root: give what belongs to user A in the snapshot to B, by name or number (may be repeated)
    #[arg(long, value_name = "A=B", value_parser = parse::mapping, help_heading = "Owners")]
    pub map_user: Vec<Mapping>,
    /// As root: the same for groups (may be repeated)
    #[arg(long, value_name = "A=B", value_parser = parse::mapping, help_heading = "Owners")]
    pub map_group: Vec<Mapping>,
    /// What `latest` is taken from.
    #[command(flatten)]
    pub filters: Filters,
}

/// `completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}
