//! From each snapshot's tree to every blob that it needs.
//!
//! A blob that several snapshots share is looked at once: what is lost below each tree is kept, and added up where it
//! is met again. The walk keeps its own stack, so that deep directories don't exhaust the thread's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::loss::{Cause, Loss, Losses, lose, merge};
use super::packs::Packs;
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::MAX_TREE_DEPTH;
use crate::format::facts::Facts;
use crate::format::tree::{Content, Database, Node, NodeKind, Tree, split_ids};
use crate::id::{BlobId, SnapshotId};
use crate::repo::{Named, Repository};
use crate::report::Reporter;

/// What keeps one thing from being read.
pub(super) type Causes = Rc<BTreeSet<Cause>>;

/// A database, and what is recorded of it.
pub(super) struct FoundDatabase {
    pub map: BlobId,
    /// Different records of it, each with where it was first met. There is at least one.
    pub records: Vec<RecordOfDatabase>,
}

/// What a snapshot says of a database.
pub(super) struct RecordOfDatabase {
    pub facts: Option<Facts>,
    snapshot: SnapshotId,
    path: Vec<u8>,
}

impl FoundDatabase {
    /// Where it was met first, for people.
    pub(super) fn name(&self) -> String {
        self.records.first().map_or_else(String::new, RecordOfDatabase::name)
    }
}

impl RecordOfDatabase {
    /// Where it was met, for people.
    pub(super) fn name(&self) -> String {
        format!("{} in snapshot {}", String::from_utf8_lossy(&self.path), self.snapshot.short())
    }
}

/// A tree blob whose directories are still to be walked.
struct Open {
    id: BlobId,
    /// Its name in the directory above; none for a root, and for a part of a directory.
    name: Option<Vec<u8>>,
    pending: Vec<(Option<Vec<u8>>, BlobId)>,
    parts: Vec<BlobId>,
    loss: Loss,
}

/// First and last name of a part; `None` for an empty one.
type Ends = Option<(Vec<u8>, Vec<u8>)>;

/// Follows what snapshots refer to, and remembers what it has seen.
pub(super) struct Walk<'a> {
    pub(super) repo: &'a Repository,
    pub(super) reporter: &'a Reporter,
    pub(super) packs: &'a mut Packs,
    pub(super) losses: Losses,
    trees: HashMap<BlobId, Option<Box<Loss>>>,
    /// Ends of trees that were met as a part or root.
    ends: HashMap<BlobId, Ends>,
    /// Lists of chunks: by id and level, how many bytes the chunks have, and what is lost.
    lists: HashMap<(BlobId, u8), (u64, Causes)>,
    pub(super) maps: HashMap<BlobId, Causes>,
    pub(super) leaves: HashMap<BlobId, (usize, Causes)>,
    /// Stored leaves known to be readable, with all that they patch.
    pub(super) chains: HashSet<BlobId>,
    /// How many segments lean on each other below this one, or why it can't be read.
    pub(super) segments: HashMap<BlobId, Result<usize, Cause>>,
    /// Different databases that nothing is missing of, as far as their maps tell.
    pub(super) databases: Vec<FoundDatabase>,
    /// Where each of them stands there.
    database_of_map: HashMap<BlobId, usize>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(repo: &'a Repository, reporter: &'a Reporter, packs: &'a mut Packs) -> Self {
        Self {
            repo,
            reporter,
            packs,
            losses: Losses::default(),
            trees: HashMap::new(),
            ends: HashMap::new(),
            lists: HashMap::new(),
            maps: HashMap::new(),
            leaves: HashMap::new(),
            chains: HashSet::new(),
            segments: HashMap::new(),
            databases: Vec::new(),
            database_of_map: HashMap::new(),
        }
    }

    /// Different tree blobs seen so far.
    pub(super) fn tree_count(&self) -> u64 {
        self.trees.len() as u64
    }

    /// What was found.
    pub(super) fn finish(self) -> (Vec<FoundDatabase>, Losses) {
        (self.databases, self.losses)
    }

    /// Walks a snapshot's tree, but for what was seen before.
    pub(super) fn snapshot(&mut self, named: &Named) -> Result<()> {
        let root = named.snapshot.tree;
        if !self.trees.contains_key(&root) {
            let mut stack = vec![self.open(None, root, named.id, &[])?];
            while let Some(top) = stack.last_mut() {
                self.reporter.check_interrupt()?;
                let Some((name, id)) = top.pending.pop() else {
                    self.close(&mut stack)?;
                    continue;
                };
                if let Some(known) = self.trees.get(&id) {
                    if let Some(loss) = known {
                        merge(&mut top.loss, name.as_deref(), loss);
                    }
                } else if stack.len() > MAX_TREE_DEPTH {
                    let cause = self.losses.blame(id, "directories are nested more deeply than can be restored");
                    if let Some(top) = stack.last_mut() {
                        lose(&mut top.loss, cause, &name.unwrap_or_default());
                    }
                } else {
                    let open = self.open(name, id, named.id, &stack)?;
                    stack.push(open);
                }
            }
        }
        if let Some(Some(loss)) = self.trees.get(&root) {
            self.losses.add(named.id, loss);
        }
        Ok(())
    }

    /// Takes a tree that was walked off the stack and adds what it lost to the one above.
    fn close(&mut self, stack: &mut Vec<Open>) -> Result<()> {
        let Some(mut done) = stack.pop() else { return Ok(()) };
        if !self.parts_fit(&done)? {
            let cause = self.losses.blame(done.id, "it is damaged: the parts of this directory don't fit together");
            lose(&mut done.loss, cause, b"");
        }
        if let Some(above) = stack.last_mut() {
            merge(&mut above.loss, done.name.as_deref(), &done.loss);
        }
        self.trees.insert(done.id, (!done.loss.is_empty()).then(|| Box::new(done.loss)));
        Ok(())
    }

    /// Reads a tree blob and looks at all its nodes; its directories and parts are left pending.
    fn open(&mut self, name: Option<Vec<u8>>, id: BlobId, snapshot: SnapshotId, above: &[Open]) -> Result<Open> {
        let mut open = Open { id, name, pending: Vec::new(), parts: Vec::new(), loss: Loss::new() };
        let tree = match self.tree(&id)? {
            Ok(tree) => tree,
            Err(cause) => {
                lose(&mut open.loss, cause, b"");
                return Ok(open);
            }
        };
        if open.name.is_none() {
            self.ends.insert(id, ends(&tree));
        }
        for node in &tree.nodes {
            let causes = match (node.kind, &node.content, node.tree, &node.database) {
                (NodeKind::File, Some(content), _, _) => self.file(node, content, &id)?,
                (NodeKind::Directory, _, Some(tree), _) => {
                    open.pending.push((Some(node.name.to_vec()), tree));
                    continue;
                }
                (NodeKind::Database, _, _, Some(database)) => {
                    let causes = self.database(&database.map, node.size.unwrap_or_default())?;
                    if causes.is_empty() {
                        let path = || path_of(above, &open, &node.name);
                        self.found_database(database, snapshot, path);
                    }
                    causes
                }
                _ => continue,
            };
            causes.iter().for_each(|cause| lose(&mut open.loss, *cause, &node.name));
        }
        open.pending.extend(tree.parts.iter().flatten().map(|part| (None, *part)));
        open.parts = tree.parts.unwrap_or_default();
        open.pending.reverse();
        Ok(open)
    }

    /// Remembers a database once, and each different record of it.
    fn found_database(&mut self, database: &Database, snapshot: SnapshotId, path: impl FnOnce() -> Vec<u8>) {
        let at = *self.database_of_map.entry(database.map).or_insert(self.databases.len());
        if at == self.databases.len() {
            self.databases.push(FoundDatabase { map: database.map, records: Vec::new() });
        }
        if let Some(found) = self.databases.get_mut(at)
            && !found.records.iter().any(|record| record.facts == database.facts)
        {
            let facts = database.facts.clone();
            found.records.push(RecordOfDatabase { facts, snapshot, path: path() });
        }
    }

    fn tree(&mut self, id: &BlobId) -> Result<Result<Tree, Cause>> {
        Ok(match self.read(id, BlobType::Tree)? {
            Ok(bytes) => Tree::decode(&bytes).map_err(|why| self.losses.blame(*id, why)),
            Err(cause) => Err(cause),
        })
    }

    /// Whether the parts of a directory follow on each other, as far as they can be read.
    fn parts_fit(&mut self, open: &Open) -> Result<bool> {
        let mut last: Option<Vec<u8>> = None;
        for part in &open.parts {
            let ends = match self.ends.get(part) {
                Some(ends) => ends.clone(),
                // Met as a directory before.
                None => match self.tree(part)? {
                    Ok(tree) => ends(&tree),
                    Err(_) => continue,
                },
            };
            let Some((first, end)) = ends else { continue };
            // A list of parts has no names of its own, and must not be a part.
            if first.is_empty() || last.is_some_and(|last| last >= first) {
                return Ok(false);
            }
            last = Some(end);
        }
        Ok(true)
    }

    /// Checks that all chunks of a file are there and add up to its length.
    fn file(&mut self, node: &Node, content: &Content, tree: &BlobId) -> Result<Causes> {
        let ids = content.ids().unwrap_or_default();
        let (bytes, causes) = self.chunks(&ids, content.level)?;
        if causes.is_empty() && node.dump.as_ref().is_some_and(|dump| dump.layers.is_some()) {
            return Ok(match self.repo.stream(node) {
                Ok(_) => causes,
                Err(e) => {
                    let why = format!("it is damaged: {}", self.repo.only_this_object(e)?);
                    Rc::new([self.losses.blame(*tree, why)].into())
                }
            });
        }
        let wanted = match &node.extents {
            Some(extents) => extents.chunks_exact(2).fold(0u64, |sum, e| sum.saturating_add(e[1])),
            None => node.size.unwrap_or_default(),
        };
        if causes.is_empty() && bytes != wanted {
            let why = format!("it is damaged: the chunks of {:?} don't add up to its length", node.display_name());
            return Ok(Rc::new([self.losses.blame(*tree, why)].into()));
        }
        Ok(causes)
    }

    /// How many bytes chunks have together, or the chunks that lists of a level above 0 lead to; and what is lost.
    fn chunks(&mut self, ids: &[BlobId], level: u8) -> Result<(u64, Causes)> {
        let (mut bytes, mut causes) = (0u64, BTreeSet::new());
        for id in ids {
            if level == 0 {
                match self.blob(id, BlobType::Chunk) {
                    Ok(n) => bytes = bytes.saturating_add(u64::from(n)),
                    Err(cause) => {
                        causes.insert(cause);
                    }
                }
                continue;
            }
            if !self.lists.contains_key(&(*id, level)) {
                self.reporter.check_interrupt()?;
                let below = match self.read(id, BlobType::List)? {
                    Ok(list) => split_ids(&list).ok_or_else(|| self.losses.blame(*id, "it is no list of ids")),
                    Err(cause) => Err(cause),
                };
                let known = match below {
                    Ok(below) => self.chunks(&below, level - 1)?,
                    Err(cause) => (0, Rc::new([cause].into())),
                };
                self.lists.insert((*id, level), known);
            }
            if let Some((n, lost)) = self.lists.get(&(*id, level)) {
                bytes = bytes.saturating_add(*n);
                causes.extend(lost.iter().copied());
            }
        }
        Ok((bytes, Rc::new(causes)))
    }

    /// Whether a blob of this type can be had from some pack: its length, or what is to blame.
    pub(super) fn blob(&mut self, id: &BlobId, kind: BlobType) -> Result<u32, Cause> {
        let index = self.repo.index();
        let mut culprit = None;
        // Not the best first: what is in no index file comes last.
        for place in index.position(id).into_iter().flat_map(|at| index.places_at(at)) {
            if place.kind != kind {
                culprit = culprit.or_else(|| Some(self.losses.blame(*id, "it is not of the type that is expected")));
            } else if self.packs.usable(id, place) {
                return Ok(place.plain_bytes);
            } else {
                culprit = culprit.or(Some(Cause::Pack(place.pack)));
            }
        }
        let untold = self.packs.untold(id).map(Cause::Pack);
        Err(culprit
            .or(untold)
            .unwrap_or_else(|| self.losses.blame(*id, "it is missing: the index knows no pack with it")))
    }

    /// Reads and verifies a blob, or says what is to blame.
    pub(super) fn read(&mut self, id: &BlobId, kind: BlobType) -> Result<Result<Vec<u8>, Cause>> {
        if let Err(cause) = self.blob(id, kind) {
            return Ok(Err(cause));
        }
        match self.repo.read_blob(id, kind) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(e) => {
                let error = self.repo.only_this_object(e)?;
                let Some(place) = self.repo.index().find(id) else {
                    return Ok(Err(self.losses.blame(*id, "it is missing")));
                };
                self.packs.found_bad(*id, place.pack, &error);
                Ok(Err(Cause::Pack(place.pack)))
            }
        }
    }
}

fn ends(tree: &Tree) -> Ends {
    match (&tree.parts, tree.nodes.first(), tree.nodes.last()) {
        (Some(_), _, _) => Some(Default::default()),
        (None, Some(first), Some(last)) => Some((first.name.to_vec(), last.name.to_vec())),
        _ => None,
    }
}

/// The path of a node in a tree that is being opened.
fn path_of(above: &[Open], open: &Open, name: &[u8]) -> Vec<u8> {
    let names = above.iter().chain([open]).filter_map(|o| o.name.as_deref());
    let mut path = names.flat_map(|n| [n, b"/"]).collect::<Vec<_>>().concat();
    path.extend_from_slice(name);
    path
}
