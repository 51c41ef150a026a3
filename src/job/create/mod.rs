//! Taking a snapshot.
//!
//! Order of writes: session, packs, index, snapshot, end of session. A run that dies anywhere before the snapshot
//! leaves packs that the next run finds and uses, and nothing that is visible.

mod collect;
mod database;
mod dumps;
mod large;
mod layering;
mod pipeline;
mod presets;
mod small;
mod sources;
mod survey;
mod walk;

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::both;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::config::Config;
use crate::format::control::SessionKind;
use crate::format::snapshot::{Counts, Owner, Snapshot};
use crate::format::tree::{Node, NodeKind};
use crate::id::{BlobId, SnapshotId};
use crate::repo::{Generations, Named, Repository, SessionGuard, Writer, host};
use crate::report::{Reporter, Severity};
use crate::source::postgres::Url;

use collect::{Collected, collect};
use small::Worker;
pub use sources::place_of;
use survey::Vanished;
use walk::{Owners, Walker};

use presets::Chosen;
pub use presets::PresetChoice;

/// What is said of a file that was written to while it was read.
const CHANGED: &str = "it changed while it was read; what was stored may not be one state of it";
/// A file changed less than this many seconds before the previous generation is read again: a further change within
/// the same tick of the file system's clock would not show.
const RACY_SECS: i64 = 2;
/// A run that took less than this many seconds, and saw no other, asks once which snapshots there are.
const QUICK_SECS: i64 = 60;
/// Directories are walked by recursion; the deepest path that the system takes has 2,048 names.
const WALK_STACK_BYTES: usize = 64 << 20;

/// Standard input as a source.
#[derive(Debug, Clone)]
pub struct Stdin {
    /// The name it gets.
    pub name: Vec<u8>,
    /// Run this, and save what it writes.
    pub command: Option<Vec<OsString>>,
}

/// What to save, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// The paths that the snapshot says it is of, where `paths` are too many to say.
    pub named: Option<Vec<PathBuf>>,
    /// Standard input instead of paths.
    pub stdin: Option<Stdin>,
    /// PostgreSQL databases, dumped before any file is read.
    pub postgres: Vec<Url>,
    /// Instead of this machine's name.
    pub host: Option<String>,
    /// Instead of the canonical paths.
    pub source: Option<String>,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// Whether it is pinned.
    pub pin: bool,
    /// Instead of now.
    pub time: Option<Time>,
    /// Patterns in gitignore syntax, relative to each path.
    pub excludes: Vec<String>,
    /// Files of such patterns.
    pub exclude_files: Vec<PathBuf>,
    /// Leave out what lies in directories with a CACHEDIR.TAG.
    pub exclude_caches: bool,
    /// Stay on the file system of each path.
    pub one_file_system: bool,
    /// Which applications are looked for, and what is left out of theirs.
    pub preset: PresetChoice,
    /// Store nothing.
    pub dry_run: bool,
    /// zstd level.
    pub level: i32,
    /// Where changed pages wait if there are many while a database is locked.
    pub spool_dir: PathBuf,
    /// How long writers of a database in rollback-journal mode may be held up.
    pub max_lock: Duration,
}

impl Options {
    /// The paths that the snapshot says it is of.
    fn said(&self) -> impl Iterator<Item = &PathBuf> {
        self.named.as_ref().unwrap_or(&self.paths).iter()
    }
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The snapshot's id; none after a dry run.
    pub id: Option<SnapshotId>,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Packs that were stored for it, or would have been.
    pub packs: u64,
    /// The paths of the snapshots that there were before.
    pub before: Vec<String>,
}

/// Takes a snapshot. Loads the index.
///
/// # Errors
/// When there is nothing to save, or storing fails. What concerns single files is reported.
pub fn run(repo: &Arc<Repository>, options: &Options, reporter: &Reporter) -> Result<Summary> {
    let (begun, started) = (Instant::now(), clock::now());
    let top =
        if options.paths.is_empty() { sources::Top::default() } else { sources::arrange(&options.paths, reporter)? };
    dumps::check(&options.postgres, &top)?;
    let source = match (&options.source, &options.stdin) {
        (Some(name), _) => name.clone(),
        (None, Some(stdin)) => String::from_utf8_lossy(&stdin.name).into_owned(),
        (None, None) => sources::default_name(&options.paths, &options.postgres)?,
    };
    let host = options.host.clone().unwrap_or_else(host);
    let session = if options.dry_run { None } else { Some(SessionGuard::start(repo, SessionKind::Write)?) };
    let generations = || repo.generations(&host, &source, reporter);
    let (loaded, generations) = both(repo.backend(), || load(repo, session.as_ref(), reporter), generations);
    loaded?;
    let Generations { names: names_before, newest: older_snapshot } = generations?;
    if let Some(Named { snapshot, .. }) = &older_snapshot {
        let totals = &reporter.progress;
        totals.bytes_total.store(snapshot.counts.bytes, std::sync::atomic::Ordering::Relaxed);
    }
    let mut writer = if options.dry_run { Writer::dry(repo, options.level) } else { Writer::new(repo, options.level) };
    let older = older_snapshot.as_ref().map(|p| {
        let root = Node { tree: Some(p.snapshot.tree), ..Node::bare(b"root", NodeKind::Directory) };
        (root, p.snapshot.started)
    });
    let chosen = Chosen::new(&top, options.preset, reporter);
    let preset = chosen.recorded();
    let (collected, owners) = flow(repo, options, reporter, &mut writer, Plan { top: &top, chosen, older })?;
    let written = writer.finish()?;

    // Another run may have stored a generation of this source meanwhile: this one comes after it.
    let is_alone = session.as_ref().map_or(Ok(true), |s| secure(s, collected.tree, started, reporter))?;
    let previous = if is_alone || repo.snapshot_names()? == names_before {
        older_snapshot
    } else {
        repo.newest(&host, &source, reporter)?
    };
    let mut snapshot = Snapshot {
        time: options.time.unwrap_or(started),
        started,
        host,
        source,
        generation: previous.as_ref().map_or(1, |p| p.snapshot.generation + 1),
        previous: previous.map(|p| p.id),
        paths: options.said().map(|p| p.as_os_str().as_bytes().to_vec().into()).collect(),
        tags: options.tags.clone(),
        tree: collected.tree,
        counts: Counts {
            bytes_read: reporter.progress.bytes_read.load(std::sync::atomic::Ordering::Relaxed),
            bytes_new: written.plain_bytes,
            bytes_stored: written.stored_bytes,
            skipped: reporter.problems().iter().filter(|p| p.severity == Severity::Source).count() as u64,
            ..collected.counts
        },
        program: crate::PROGRAM.into(),
        users: names(&owners.users, |id| nix::unistd::User::from_uid(id.into()).ok().flatten().map(|u| u.name)),
        groups: names(&owners.groups, |id| nix::unistd::Group::from_gid(id.into()).ok().flatten().map(|g| g.name)),
        slot: Some(repo.slot()),
        pinned: options.pin,
        preset,
    };
    snapshot.counts.millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let packs = written.packs;
    let Some(session) = session else { return Ok(Summary { id: None, snapshot, packs, before: names_before }) };
    if !is_alone {
        session.secure(snapshot.tree, reporter)?;
    }
    let id = session.commit(&snapshot, reporter)?;
    // The snapshot is there whatever fails now: what is in no bundle is read from its own place, and a session that can't
    // be ended is cleared away by the next run or prune.
    let _ = repo.bundle_sometimes(names_before.len());
    drop(session);
    Ok(Summary { id: Some(id), snapshot, packs, before: names_before })
}

/// Loads the index, and what killed runs left; without a session, for a run that stores nothing, as it is.
fn load(repo: &Repository, session: Option<&SessionGuard>, reporter: &Reporter) -> Result<()> {
    let Some(session) = session else { return repo.load_index_to_write(&repo.live()?, reporter) };
    repo.load_index_to_write(session.begun(), reporter)?;
    session.adopt_leftovers(reporter)
}

/// Makes sure of what was stored and of what it relies on. Whether this run was so quick that another would have been seen
/// beside it, and there was none.
fn secure(session: &SessionGuard, tree: BlobId, started: Time, reporter: &Reporter) -> Result<bool> {
    let live = session.secure(tree, reporter)?;
    let is_quick = (0..QUICK_SECS).contains(&(clock::now().secs - started.secs));
    Ok(is_quick && !session.begun().has_others(session.name()) && !live.has_others(session.name()))
}

/// What is walked.
struct Plan<'p> {
    top: &'p sources::Top,
    chosen: Chosen,
    /// The root of the generation before, and when that was begun.
    older: Option<(Node, Time)>,
}

/// Runs all stages to their end.
fn flow(
    repo: &Arc<Repository>,
    options: &Options,
    reporter: &Reporter,
    writer: &mut Writer,
    Plan { top, chosen, older }: Plan<'_>,
) -> Result<(Collected, Owners)> {
    let (feeder, tasks, ends) = pipeline::open();
    let vanished = Arc::new(Vanished::default());
    let walker = Walker::new(repo, options, reporter, feeder, writer.claims(), vanished.clone())?.leaving_out(chosen);
    let worker =
        Worker { keys: repo.keys(), claims: writer.claims(), level: options.level, reporter, vanished: &vanished };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (worker, tasks) = (&worker, tasks.clone());
            scope.spawn(move || worker.run(&tasks));
        }
        drop(tasks);
        let walking = std::thread::Builder::new()
            .stack_size(WALK_STACK_BYTES)
            .spawn_scoped(scope, move || walker.run(top, older))
            .map_err(|e| Error::refused(format!("no thread can be started: {e}"), "try again"))?;
        let collected = collect(&ends, writer, reporter);
        drop(ends);
        let walked =
            walking.join().unwrap_or_else(|_| Err(Error::refused("the walk failed unexpectedly", "report this")));
        vanished.finish(reporter);
        match (collected, walked) {
            (Ok(collected), Ok(owners)) => Ok((collected, owners)),
            // A stage that was cut off says that it was interrupted; the other knows why.
            (Err(Error::Interrupted), Err(e)) | (Err(e), _) | (Ok(_), Err(e)) => Err(e),
        }
    })
}

fn names(ids: &std::collections::HashSet<u32>, name: impl Fn(u32) -> Option<String>) -> Vec<Owner> {
    let mut out: Vec<_> = ids.iter().filter_map(|id| Some(Owner { id: *id, name: name(*id)? })).collect();
    out.sort_by_key(|o| o.id);
    out
}

/// Whether a directory is the repository with this config.
fn is_repository(directory: &Path, config: &Config) -> bool {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(directory.join(crate::backend::layout::CONFIG))
        .and_then(|f| f.take(crate::format::MAX_CONFIG_BYTES as u64).read_to_end(&mut bytes));
    read.is_ok() && Config::parse(&bytes, "").is_ok_and(|found| found.repository == config.repository)
}
