//! `repair snapshots`: beside each snapshot that lost something, another one of what is left.
//!
//! The new snapshot has host, source, time, generation and predecessor of the damaged one, and the tag `salvaged`; what
//! can't be read is left out of it, and listed. The damaged one stays, unless it is to be forgotten, as a user would
//! forget it. What is there is found by the index: damaged data has to be found by `repair packs` before.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::begin;
use super::databases::{Fill, Pages};
use super::heal::heal;
use super::trees::{Have, Mended, Mender};
use crate::backend::layout;
use crate::error::{Error, Result};
use crate::format::snapshot::{Counts, SALVAGED, Snapshot};
use crate::id::{BlobId, SlotId, SnapshotId};
use crate::repo::{Lost, Named, Repository, SessionGuard, Writer};
use crate::report::{Problem, Reporter, Severity};

/// Level at which new directories are compressed: what `create` uses by default.
const LEVEL: i32 = 3;

/// What to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Forget the damaged snapshots once there are others in their place, and what can't be read at all.
    pub forget: bool,
    /// Keep databases that lost pages, as plain files.
    pub databases: Option<Fill>,
}

/// Something that a snapshot lost.
#[derive(Debug, Clone)]
pub struct LostItem {
    /// Its path in the snapshot; empty for the root.
    pub path: Vec<u8>,
    /// What it was.
    pub what: What,
}

/// What was lost.
#[derive(Debug, Clone)]
pub enum What {
    /// A file.
    File,
    /// A directory and everything below it, whose names nobody knows any more.
    Directory,
    /// Some of the names in a directory.
    SomeOfDirectory,
    /// A database: its page map, so that nobody knows which pages it had.
    Database,
    /// Pages of a database.
    Pages {
        /// How many it had.
        pages: u64,
        /// The lost ones, counted from 1 as SQLite does.
        lost: Vec<Range<u64>>,
        /// The path of the plain file that was made of the others.
        kept_as: Option<Vec<u8>>,
    },
}

/// A snapshot that lost something.
#[derive(Debug, Clone)]
pub struct Affected {
    /// The snapshot.
    pub original: Named,
    /// The one that has what is left; `None` if nothing is, and in a dry run.
    pub salvaged: Option<SnapshotId>,
    /// Whether nothing at all is left.
    pub is_lost: bool,
    /// Whether the original was forgotten.
    pub forgotten: bool,
    /// Everything that it lost.
    pub lost: Vec<LostItem>,
}

/// What was found and done.
#[derive(Debug, Clone, Default)]
pub struct SnapshotsSummary {
    /// Readable snapshots that were looked at.
    pub examined: u64,
    /// Those that lost something, oldest first.
    pub affected: Vec<Affected>,
    /// Pages that were lost and are the same in another segment: these segments have them again.
    pub healed_pages: u64,
    /// Paths of snapshots that can't be read themselves.
    pub unreadable: Vec<String>,
    /// Paths of snapshots and tombs of which a flipped bit was put right.
    pub mended: Vec<String>,
}

impl SnapshotsSummary {
    /// The commands to run next, in this order.
    pub fn next_steps(&self) -> Vec<&'static str> {
        if self.affected.iter().any(|a| a.salvaged.is_none() && !a.is_lost) {
            return vec!["snapshot repair snapshots"];
        }
        let left = self.affected.iter().any(|a| !a.forgotten) || !self.unreadable.is_empty();
        if left {
            return vec!["snapshot repair snapshots --forget", "snapshot prune"];
        }
        if self.affected.is_empty() { Vec::new() } else { vec!["snapshot prune"] }
    }
}

/// Looks for snapshots that lost something, and stores beside each what is left of it. Loads the index.
///
/// # Errors
/// [`Error::Locked`] while a prune is running, and when the store fails. What is lost is reported.
pub fn repair_snapshots(repo: &Arc<Repository>, options: &Options, reporter: &Reporter) -> Result<SnapshotsSummary> {
    let session = if options.dry_run { None } else { Some(begin(repo)?) };
    let mut summary = SnapshotsSummary::default();
    for folder in [layout::SNAPSHOTS, layout::TOMBS] {
        summary.mended.extend(repo.mend_flipped(folder, options.dry_run)?);
    }
    let live = session.as_ref().map_or_else(|| repo.live(), |session| Ok(session.begun().clone()))?;
    repo.load_index_to_write(&live, reporter)?;
    let adopted = repo.adopt_packs(reporter)?;
    let (snapshots, lost) = repo.read_snapshots()?;
    summary.examined = snapshots.len() as u64;
    if !options.dry_run {
        // The new snapshots may rely on these.
        repo.index_packs(&adopted)?;
    }
    let writer = || if options.dry_run { Writer::dry(repo, LEVEL) } else { Writer::new(repo, LEVEL) };
    let mut healing = writer();
    summary.healed_pages = heal(repo, &Have::look(repo)?, &snapshots, &mut healing, LEVEL, reporter)?;
    healing.finish()?;
    let (have, writer) = (Have::look(repo)?, writer());
    let pages = Pages::new(repo, &have);
    let (all, fill) = (&snapshots[..], options.databases);
    let mut mender = Mender { repo, reporter, have: &have, pages, writer, trees: HashMap::new(), fill, all };
    let mut drafts: Vec<(&Named, Rc<Mended>)> = Vec::new();
    for named in &snapshots {
        reporter.current(|| format!("snapshot {}", named.id.short()));
        let mended = mender.snapshot(named)?;
        if !mended.lost.is_empty() {
            drafts.push((named, mended));
        }
    }
    mender.writer.finish()?;
    for (named, mended) in drafts {
        summary.affected.push(commit(repo, named, &mended, &snapshots, session.as_ref(), options, reporter)?);
    }
    summary.unreadable = unreadable(repo, lost, session.as_ref(), options, reporter)?;
    session.map_or(Ok(()), SessionGuard::end)?;
    Ok(summary)
}

/// Stores the snapshot of what is left, unless it is there, and then forgets the damaged one if it is to be forgotten.
fn commit(
    repo: &Repository,
    named: &Named,
    mended: &Mended,
    all: &[Named],
    session: Option<&SessionGuard>,
    options: &Options,
    reporter: &Reporter,
) -> Result<Affected> {
    let mut affected = Affected {
        original: named.clone(),
        salvaged: None,
        is_lost: mended.tree.is_none(),
        forgotten: false,
        lost: mended.lost.clone(),
    };
    if let Some(session) = session {
        session.check_alive()?;
        if let Some(tree) = mended.tree {
            let new = salvaged(named, repo.slot(), tree, &mended.counts);
            let same = |n: &&Named| n.snapshot.tree == tree && n.snapshot.is_salvaged() && is_twin(&n.snapshot, &new);
            affected.salvaged = Some(match all.iter().find(same) {
                Some(known) => known.id,
                None => repo.put_snapshot(&new)?,
            });
        }
        if options.forget {
            repo.bury_snapshot(named.id)?;
            affected.forgotten = true;
        }
    }
    let outcome = match (affected.salvaged, affected.is_lost) {
        (Some(id), _) => format!("what is left of it is snapshot {}", id.short()),
        (None, true) => "nothing of it is left".into(),
        (None, false) => "the rest can be salvaged".into(),
    };
    let forgotten = if affected.forgotten { "; this one was forgotten" } else { "" };
    reporter.problem(Problem {
        severity: Severity::Damage,
        what: layout::snapshot(named.id),
        why: format!("lost: {} of its files, databases or directories; {outcome}{forgotten}", mended.lost.len()),
        hint: None,
    });
    Ok(affected)
}

/// The snapshot that takes a damaged one's place: the same generation, so that the chain of the others stays as it is.
fn salvaged(named: &Named, slot: SlotId, tree: BlobId, counts: &Counts) -> Snapshot {
    let original = &named.snapshot;
    let (tags, pinned) = (named.tags().to_vec(), named.is_pinned());
    let mut new = Snapshot { tree, tags, pinned, slot: Some(slot), ..original.clone() };
    if !new.is_salvaged() {
        new.tags.push(SALVAGED.into());
    }
    let Counts { files, directories, databases, others, bytes, unverified, .. } = *counts;
    new.counts = Counts { files, directories, databases, others, bytes, unverified, ..original.counts.clone() };
    new
}

fn is_twin(a: &Snapshot, b: &Snapshot) -> bool {
    (&a.host, &a.source, a.generation, a.time, a.previous) == (&b.host, &b.source, b.generation, b.time, b.previous)
}

/// Reports snapshots that can't be read. If they are to be given up, they become tombs, which hold up no prune; tombs
/// that can't be read go.
fn unreadable(
    repo: &Repository,
    lost: Vec<Lost>,
    session: Option<&SessionGuard>,
    options: &Options,
    reporter: &Reporter,
) -> Result<Vec<String>> {
    let gives_up = options.forget && session.is_some();
    let is_beyond_hope = |error: &Error| matches!(error, Error::Corrupt { .. });
    if gives_up {
        let (_, tombs) = repo.read_tombs()?;
        let hopeless: Vec<_> = tombs.into_iter().filter(|t| is_beyond_hope(&t.error)).map(|t| t.path).collect();
        repo.backend().delete(&hopeless)?;
    }
    let mut left = Vec::new();
    for Lost { path, error } in lost {
        let forgets = gives_up && is_beyond_hope(&error);
        if forgets {
            repo.bury_unreadable(&path)?;
        } else {
            left.push(path.clone());
        }
        let then = if forgets { "it was forgotten" } else { "no prune runs while it is there" };
        reporter.problem(Problem {
            severity: Severity::Damage,
            what: path,
            why: format!("{error}; nothing of it can be had; {then}"),
            hint: (!forgets).then(|| {
                "put the file back from a copy of the repository if there is one; else run `snapshot repair snapshots \
                 --forget`, which gives up this snapshot and no other"
                    .into()
            }),
        });
    }
    Ok(left)
}
