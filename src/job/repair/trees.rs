//! What is left of directories: each different one is looked at once, and stored anew without what it lost.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use super::databases::{Damage, Fill, Pages};
use super::snapshots::{LostItem, What};
use crate::backend::layout;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::snapshot::Counts;
use crate::format::tree::{Database, Node, NodeKind, Tree, split_ids};
use crate::format::{MAX_TREE_DEPTH, MAX_TREE_NODES};
use crate::id::{BlobId, PackId};
use crate::index::Place;
use crate::repo::{Named, Repository, Writer};
use crate::report::Reporter;

/// What is in the store, as far as the index and a listing tell.
pub(super) struct Have {
    /// By the packs' numbers in the index in memory.
    packs: Vec<bool>,
}

impl Have {
    pub(super) fn look(repo: &Repository) -> Result<Self> {
        let mut listed = repo.backend().list(layout::DATA_PACKS)?;
        listed.extend(repo.backend().list(layout::METADATA_PACKS)?);
        let there: HashSet<(PackId, u64)> =
            listed.iter().filter_map(|l| Some((layout::parse_pack(&l.path)?.1, l.bytes))).collect();
        Ok(Self { packs: repo.index().packs().iter().map(|p| there.contains(&(p.id, p.file_bytes))).collect() })
    }

    /// Whether a place is in a pack that is there, and of this type.
    pub(super) fn is_there(&self, place: Place, kind: BlobType) -> bool {
        place.kind == kind && self.packs.get(place.pack as usize) == Some(&true)
    }

    fn has(&self, repo: &Repository, id: &BlobId, kind: BlobType) -> Option<u32> {
        repo.index().places(id).find(|p| self.is_there(*p, kind)).map(|p| p.plain_bytes)
    }

    /// Reads a blob of metadata; `None` if it can't be had.
    ///
    /// # Errors
    /// When the store doesn't answer.
    pub(super) fn read(&self, repo: &Repository, id: &BlobId, kind: BlobType) -> Result<Option<Vec<u8>>> {
        if self.has(repo, id, kind).is_none() {
            return Ok(None);
        }
        match repo.read_blob(id, kind) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) => repo.only_this_object(e).map(|_| None),
        }
    }
}

/// What is left of a directory.
#[derive(Default)]
pub(super) struct Mended {
    /// `None` if it can't be read.
    pub tree: Option<BlobId>,
    pub counts: Counts,
    pub lost: Vec<LostItem>,
}

/// A directory whose nodes are being looked at.
struct Open {
    tree: BlobId,
    /// Names on the way to it.
    path: Vec<u8>,
    nodes: std::vec::IntoIter<Node>,
    kept: Vec<Node>,
    is_changed: bool,
    result: Mended,
}

/// Goes through directories, each different one once.
pub(super) struct Mender<'a> {
    pub repo: &'a Repository,
    pub reporter: &'a Reporter,
    pub have: &'a Have,
    pub pages: Pages<'a>,
    pub writer: Writer,
    /// What became of the directories looked at so far.
    pub trees: HashMap<BlobId, Rc<Mended>>,
    /// How to keep databases that lost pages, if at all.
    pub fill: Option<Fill>,
    /// All snapshots, to look for other generations in.
    pub all: &'a [Named],
}

impl Mender<'_> {
    /// What is left of a snapshot's root directory.
    ///
    /// # Errors
    /// When the store doesn't answer, or storing fails.
    pub(super) fn snapshot(&mut self, named: &Named) -> Result<Rc<Mended>> {
        let root = named.snapshot.tree;
        let mut stack: Vec<Open> = Vec::new();
        self.enter(root, Vec::new(), &mut stack)?;
        loop {
            let depth = stack.len();
            let Some(top) = stack.last_mut() else { break };
            self.reporter.check_interrupt()?;
            let Some(node) = top.nodes.next() else {
                self.close(&mut stack)?;
                continue;
            };
            let Some(tree) = node.tree.filter(|_| node.kind == NodeKind::Directory) else {
                self.node(named, top, node)?;
                continue;
            };
            if depth > MAX_TREE_DEPTH {
                take_in(top, node, &lost_directory());
                continue;
            }
            if !self.trees.contains_key(&tree) {
                let path = join(&top.path, &node.name);
                self.enter(tree, path, &mut stack)?;
            }
            match self.trees.get(&tree).cloned() {
                // It was known, or can't be read.
                Some(mended) => {
                    if let Some(around) = stack.last_mut() {
                        take_in(around, node, &mended);
                    }
                }
                // To be met again by whoever closes it.
                None => {
                    if let Some(around) = stack.len().checked_sub(2).and_then(|n| stack.get_mut(n)) {
                        around.kept.push(node);
                    }
                }
            }
        }
        Ok(self.trees.get(&root).cloned().unwrap_or_default())
    }

    /// Begins with a directory, unless it is known or can't be read.
    fn enter(&mut self, tree: BlobId, path: Vec<u8>, stack: &mut Vec<Open>) -> Result<()> {
        if self.trees.contains_key(&tree) {
            return Ok(());
        }
        let Some((nodes, is_whole)) = self.read_directory(&tree)? else {
            self.trees.insert(tree, Rc::new(lost_directory()));
            return Ok(());
        };
        let mut result = Mended::default();
        if !is_whole {
            result.lost.push(LostItem { path: Vec::new(), what: What::SomeOfDirectory });
        }
        let nodes = nodes.into_iter();
        stack.push(Open { tree, path, nodes, kept: Vec::new(), is_changed: !is_whole, result });
        Ok(())
    }

    /// The nodes of a directory, and whether these are all; `None` if it can't be read.
    fn read_directory(&self, id: &BlobId) -> Result<Option<(Vec<Node>, bool)>> {
        let read = |id: &BlobId| {
            let bytes = self.have.read(self.repo, id, BlobType::Tree)?;
            Ok::<_, Error>(bytes.and_then(|bytes| Tree::decode(&bytes).ok()))
        };
        let Some(tree) = read(id)? else { return Ok(None) };
        let Some(parts) = tree.parts else { return Ok(Some((tree.nodes, true))) };
        let (mut nodes, mut is_whole): (Vec<Node>, bool) = (Vec::new(), true);
        for part in &parts {
            let follows = |part: &Tree| nodes.last().zip(part.nodes.first()).is_none_or(|(a, b)| a.name < b.name);
            match read(part)? {
                Some(part) if part.parts.is_none() && follows(&part) && nodes.len() <= MAX_TREE_NODES * 256 => {
                    nodes.extend(part.nodes);
                }
                _ => is_whole = false,
            }
        }
        Ok(Some((nodes, is_whole)))
    }

    /// Stores a directory that changed, and takes it off the stack.
    fn close(&mut self, stack: &mut Vec<Open>) -> Result<()> {
        let Some(Open { tree, mut kept, is_changed, mut result, .. }) = stack.pop() else { return Ok(()) };
        result.tree = Some(if is_changed {
            kept.sort_by(|a, b| a.name.cmp(&b.name));
            self.writer.put_tree(kept)?
        } else {
            tree
        });
        let mended = Rc::new(result);
        self.trees.insert(tree, mended.clone());
        if let Some(around) = stack.last_mut()
            && let Some(node) = around.kept.pop()
        {
            take_in(around, node, &mended);
        }
        Ok(())
    }

    /// Looks at anything but a directory.
    fn node(&mut self, named: &Named, open: &mut Open, node: Node) -> Result<()> {
        let what = match (&node.content, &node.database) {
            (Some(_), _) if node.kind == NodeKind::File => (!self.has_file(&node)?).then_some(What::File),
            (_, Some(database)) if node.kind == NodeKind::Database => {
                match self.pages.damage(&database.map, node.size.unwrap_or_default())? {
                    None => None,
                    Some(Damage::Map) => Some(What::Database),
                    Some(Damage::Pages { pages, lost }) => {
                        let kept_as = self.keep_database(named, open, &node, database, &lost)?;
                        Some(What::Pages { pages, lost, kept_as })
                    }
                }
            }
            _ => None,
        };
        match what {
            None => {
                open.result.counts.add(&node);
                open.kept.push(node);
            }
            Some(what) => {
                open.is_changed = true;
                open.result.lost.push(LostItem { path: node.name.to_vec(), what });
            }
        }
        Ok(())
    }

    /// Whether all chunks of a file are there and add up to its length.
    fn has_file(&self, node: &Node) -> Result<bool> {
        let Some(content) = &node.content else { return Ok(false) };
        let mut ids = content.ids().unwrap_or_default();
        for _ in 0..content.level {
            let mut below = Vec::new();
            for list in &ids {
                let read = self.have.read(self.repo, list, BlobType::List)?;
                let Some(more) = read.and_then(|bytes| split_ids(&bytes)) else { return Ok(false) };
                below.extend(more);
            }
            ids = below;
        }
        let wanted = match &node.extents {
            Some(extents) => extents.chunks_exact(2).fold(0u64, |sum, e| sum.saturating_add(e[1])),
            None => node.size.unwrap_or_default(),
        };
        let mut bytes = 0u64;
        for id in &ids {
            let Some(n) = self.have.has(self.repo, id, BlobType::Chunk) else { return Ok(false) };
            bytes = bytes.saturating_add(u64::from(n));
        }
        Ok(bytes == wanted)
    }

    /// Keeps a database that lost pages as a plain file, if that is wanted; returns its name.
    fn keep_database(
        &mut self,
        named: &Named,
        open: &mut Open,
        node: &Node,
        database: &Database,
        lost: &[Range<u64>],
    ) -> Result<Option<Vec<u8>>> {
        let Some(fill) = self.fill else { return Ok(None) };
        let Some(map) = self.pages.map(&database.map)? else { return Ok(None) };
        let others = match fill {
            Fill::Zeros => Vec::new(),
            Fill::OtherGenerations => self.other_generations(named, &join(&open.path, &node.name))?,
        };
        let (content, stand) = self.pages.store(&map, &others, &mut self.writer)?;
        let mut name = [&node.name[..], b".salvaged"].concat();
        while open.kept.iter().any(|n| n.name[..] == name[..])
            || open.nodes.as_slice().iter().any(|n| n.name[..] == name[..])
        {
            name.push(b'_');
        }
        let count: u64 = lost.iter().map(|range| range.end - range.start).sum();
        let unverified = format!(
            "salvaged, and unsound: of {} pages {count} were lost; {} are zeros, {} are from another generation",
            map.root.pages, stand.zeroed, stand.from_others
        );
        let kept = Node {
            name: name.clone().into(),
            kind: NodeKind::File,
            content: Some(content),
            database: None,
            hard_link: None,
            unverified: Some(unverified),
            ..node.clone()
        };
        open.result.counts.add(&kept);
        open.kept.push(kept);
        Ok(Some(name))
    }

    /// The maps of the same path in the other generations of a source, the nearest first.
    fn other_generations(&self, named: &Named, path: &[u8]) -> Result<Vec<BlobId>> {
        let own = &named.snapshot;
        let is_other = |n: &&Named| n.snapshot.host == own.host && n.snapshot.source == own.source && n.id != named.id;
        let mut others: Vec<_> = self.all.iter().filter(is_other).collect();
        others.sort_by_key(|n| (n.snapshot.generation.abs_diff(own.generation), n.snapshot.generation));
        let mut maps = Vec::new();
        for other in others {
            let mut tree = Some(other.snapshot.tree);
            let mut found = None;
            for name in path.split(|b| *b == b'/') {
                let Some(id) = tree.take() else { break };
                let nodes = self.read_directory(&id)?.map(|(nodes, _)| nodes).unwrap_or_default();
                found = nodes.into_iter().find(|n| n.name[..] == *name);
                tree = found.as_ref().and_then(|n| n.tree);
            }
            maps.extend(found.and_then(|n| n.database).map(|d| d.map));
        }
        maps.dedup();
        Ok(maps)
    }
}

fn lost_directory() -> Mended {
    let lost = vec![LostItem { path: Vec::new(), what: What::Directory }];
    Mended { tree: None, counts: Counts::default(), lost }
}

/// Adds what became of a directory to the one around it.
fn take_in(around: &mut Open, node: Node, mended: &Mended) {
    let counts = &mut around.result.counts;
    counts.files += mended.counts.files;
    counts.directories += mended.counts.directories;
    counts.databases += mended.counts.databases;
    counts.others += mended.counts.others;
    counts.bytes += mended.counts.bytes;
    counts.unverified += mended.counts.unverified;
    let below = |item: &LostItem| {
        let mut item = item.clone();
        if let What::Pages { kept_as: Some(kept), .. } = &mut item.what {
            *kept = join(&node.name, kept);
        }
        LostItem { path: join(&node.name, &item.path), ..item }
    };
    around.result.lost.extend(mended.lost.iter().map(below));
    around.is_changed |= mended.tree != node.tree;
    if mended.tree.is_some() {
        around.result.counts.add(&node);
        around.kept.push(Node { tree: mended.tree, ..node });
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match (folder.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => folder.to_vec(),
        _ => [folder, b"/", name].concat(),
    }
}
