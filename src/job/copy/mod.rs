//! Copying snapshots from one repository into another.
//!
//! The two share no key, so every id is another: a snapshot is copied by walking it and storing anew what the target
//! does not have. Chunks keep the cuts they have, segments their pages, page maps the patches they consist of as far
//! as these can be found again; what was verified on reading is all that is written.
//!
//! `chunks` copies contents of files, `databases` page maps and segments; here are trees and snapshots.

mod chunks;
mod databases;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::cbor::Time;
use crate::format::control::SessionKind;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Database, Node, NodeKind};
use crate::id::{BlobId, SnapshotId};
use crate::repo::{Gather, MarkNote, Named, Repository, SessionGuard, Writer};
use crate::report::Reporter;

/// Snapshots are committed when this many bytes were written since the last commit, and at the end.
const COMMIT_BYTES: u64 = 64 << 20;

/// A snapshot that was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Its id where it came from.
    pub from: SnapshotId,
    /// Its id in the target.
    pub to: SnapshotId,
    /// Its generation in the target.
    pub generation: u64,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Snapshots copied, oldest first.
    pub copied: Vec<Copied>,
    /// Snapshots that the target had already.
    pub skipped: u64,
    /// Bytes of plaintext that the target did not have.
    pub bytes_new: u64,
    /// Bytes the target grew by: packs and index.
    pub bytes_stored: u64,
}

/// What tells one snapshot from all others wherever it is copied to.
#[derive(PartialEq, Eq, Hash)]
struct Origin {
    host: String,
    source: String,
    started: Time,
}

impl Origin {
    fn of(snapshot: &Snapshot) -> Self {
        Self { host: snapshot.host.clone(), source: snapshot.source.clone(), started: snapshot.started }
    }
}

/// Copies snapshots, oldest first, that the target does not have. Loads both indexes.
///
/// # Errors
/// [`Error::Refused`] if both are the same repository; whatever can't be read or stored. Snapshots that were committed
/// before are there, and the next run goes on.
pub fn run(
    from: &Arc<Repository>,
    to: &Arc<Repository>,
    mut snapshots: Vec<Named>,
    level: i32,
    reporter: &Reporter,
) -> Result<Summary> {
    if from.config().repository == to.config().repository {
        return Err(Error::refused(
            "source and target are the same repository, or one is a copy of the other's files",
            "name another target with --repo",
        ));
    }
    let session = SessionGuard::start(to, SessionKind::Write)?;
    to.load_index_to_write(session.begun(), reporter)?;
    session.adopt_leftovers(reporter)?;
    from.load_index(reporter)?;
    let mut summary = Summary::default();
    let mut there: HashSet<Origin> = to.snapshots(reporter)?.iter().map(|n| Origin::of(&n.snapshot)).collect();
    let all = snapshots.len();
    snapshots.retain(|n| there.insert(Origin::of(&n.snapshot)));
    summary.skipped = (all - snapshots.len()) as u64;
    snapshots.sort_by_key(|n| (n.snapshot.started, n.snapshot.generation));
    let bytes = snapshots.iter().map(|n| n.snapshot.counts.bytes).sum();
    reporter.progress.bytes_total.store(bytes, std::sync::atomic::Ordering::Relaxed);

    let mut copying = Copying::new(from, to, level, reporter);
    let mut ready = Vec::new();
    for named in snapshots {
        reporter.current(|| format!("snapshot {}", named.id.short()));
        let tree = copying.tree(named.snapshot.tree)?;
        ready.push((named, tree));
        if copying.writer.plain_bytes() >= COMMIT_BYTES {
            copying.commit(&session, &mut ready, &mut summary)?;
        }
    }
    copying.commit(&session, &mut ready, &mut summary)?;
    drop(session);
    Ok(summary)
}

struct Copying<'a> {
    from: &'a Arc<Repository>,
    to: &'a Arc<Repository>,
    reporter: &'a Reporter,
    level: i32,
    writer: Writer,
    /// Small chunks that wait for a frame.
    gather: Gather,
    /// What became of trees and chunks.
    ids: HashMap<BlobId, BlobId>,
    databases: databases::Made,
}

/// A directory that is being copied.
struct Level {
    id: BlobId,
    /// Its node in the directory above.
    node: Option<Node>,
    rest: std::vec::IntoIter<Node>,
    done: Vec<Node>,
}

impl<'a> Copying<'a> {
    fn new(from: &'a Arc<Repository>, to: &'a Arc<Repository>, level: i32, reporter: &'a Reporter) -> Self {
        Self {
            from,
            to,
            reporter,
            level,
            writer: Writer::new(to, level),
            gather: Gather::default(),
            ids: HashMap::new(),
            databases: databases::Made::default(),
        }
    }

    /// Copies a directory with everything in it.
    fn tree(&mut self, root: BlobId) -> Result<BlobId> {
        if let Some(made) = self.ids.get(&root) {
            return Ok(*made);
        }
        let mut levels = vec![self.enter(root, None)?];
        loop {
            let Some(level) = levels.last_mut() else {
                return Err(Error::corrupt(format!("tree {root}"), "it has no end"));
            };
            let Some(mut node) = level.rest.next() else {
                let Some(Level { id, node, done, .. }) = levels.pop() else { continue };
                let made = self.writer.put_tree(done)?;
                self.ids.insert(id, made);
                match (levels.last_mut(), node) {
                    (Some(above), Some(node)) => above.done.push(Node { tree: Some(made), ..node }),
                    _ => return Ok(made),
                }
                continue;
            };
            match node.tree.filter(|_| node.kind == NodeKind::Directory) {
                None => level.done.push(node),
                Some(tree) => match self.ids.get(&tree) {
                    Some(made) => {
                        node.tree = Some(*made);
                        level.done.push(node);
                    }
                    None if levels.len() >= MAX_TREE_DEPTH => {
                        return Err(Error::corrupt("the snapshot", "its directories are nested deeper than allowed"));
                    }
                    None => levels.push(self.enter(tree, Some(node))?),
                },
            }
        }
    }

    /// Reads a directory, and copies the files and databases in it.
    fn enter(&mut self, id: BlobId, node: Option<Node>) -> Result<Level> {
        self.reporter.check_interrupt()?;
        let mut nodes = self.from.read_tree(&id)?;
        self.files(&mut nodes)?;
        for node in &mut nodes {
            if let Some(Database { map, .. }) = &mut node.database {
                *map = self.database(map)?;
            }
        }
        Ok(Level { id, node, rest: nodes.into_iter(), done: Vec::new() })
    }

    /// Makes everything copied so far durable, then the snapshots that need it.
    fn commit(
        &mut self,
        session: &SessionGuard,
        ready: &mut Vec<(Named, BlobId)>,
        summary: &mut Summary,
    ) -> Result<()> {
        self.flush_small()?;
        let written = std::mem::replace(&mut self.writer, Writer::new(self.to, self.level)).finish()?;
        summary.bytes_new += written.plain_bytes;
        summary.bytes_stored += written.stored_bytes;
        for (named, tree) in ready.drain(..) {
            let (host, source) = (&named.snapshot.host, &named.snapshot.source);
            let previous = self.to.newest(host, source, self.reporter)?;
            let proof = named.proof().cloned();
            let snapshot = Snapshot {
                generation: previous.as_ref().map_or(1, |p| p.snapshot.generation + 1),
                previous: previous.map(|p| p.id),
                tree,
                // As they are now: marks stay where they are.
                tags: named.tags().to_vec(),
                pinned: named.is_pinned(),
                slot: Some(self.to.slot()),
                ..named.snapshot
            };
            session.secure(tree, self.reporter)?;
            let id = session.commit(&snapshot, self.reporter)?;
            if let Some(proof) = proof {
                let mut named = Named::new(id, snapshot.clone());
                self.to.put_mark(&mut named, &MarkNote { proof: Some(proof), ..MarkNote::default() })?;
            }
            summary.copied.push(Copied { from: named.id, to: id, generation: snapshot.generation });
        }
        Ok(())
    }
}
