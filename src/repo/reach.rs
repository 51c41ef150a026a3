//! What is reachable: every blob that given root directories need, down to the segments that others lean on.
//!
//! Reads metadata only, each blob once, level by level and in the order in which the blobs lie in their packs. What
//! can't be read is an error, never a gap: a prune deletes what is not found here.

use std::collections::{BTreeMap, HashSet};

use rayon::prelude::*;

use super::Repository;
use super::pages::{Family, read_family};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::pagemap::{FAN_OUT, Inner, Root};
use crate::format::tree::{Tree, split_ids};
use crate::id::BlobId;
use crate::index::BlobIndex;
use crate::report::Reporter;

/// How a metadata blob is to be read. `lane` numbers the position in a map, so that versions of one leaf meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Tree,
    Part,
    List { level: u8 },
    Map,
    Inner { height: u8, lane: u64 },
    Leaf { lane: u64 },
}

/// What a metadata blob refers to.
#[derive(Default)]
struct Found {
    nodes: Vec<(BlobId, Role)>,
    chunks: Vec<BlobId>,
}

/// A set of blobs that is closed: with a blob it holds everything that is needed to make use of it.
#[derive(Default)]
pub struct Reach {
    needed: HashSet<BlobId>,
    read: HashSet<(BlobId, Role)>,
}

/// What one call of [`Reach::add`] added.
#[derive(Default)]
pub struct Added {
    /// The blobs, each once.
    pub blobs: Vec<BlobId>,
    read: Vec<(BlobId, Role)>,
}

impl Reach {
    /// The blobs.
    pub fn needed(&self) -> &HashSet<BlobId> {
        &self.needed
    }

    /// Adds everything that the given root directories need. After an error the set is what it was before.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] for the first blob that can't be read or isn't in the index.
    pub fn add(
        &mut self,
        repo: &Repository,
        trees: impl IntoIterator<Item = BlobId>,
        reporter: &Reporter,
    ) -> Result<Added> {
        let roots: Vec<_> = trees.into_iter().map(|id| (id, Role::Tree)).collect();
        match self.try_add(repo, roots.clone(), reporter) {
            // Chunks and segments are only looked up: whether a pack that no index file knows has them is seen here.
            Err(Error::Missing { .. }) if repo.adopt_strays() => self.try_add(repo, roots, reporter),
            done => done,
        }
    }

    fn try_add(&mut self, repo: &Repository, roots: Vec<(BlobId, Role)>, reporter: &Reporter) -> Result<Added> {
        let mut added = Added::default();
        match self.walk(repo, roots, reporter, &mut added) {
            Ok(()) => Ok(added),
            Err(e) => {
                self.remove(&added);
                Err(e)
            }
        }
    }

    /// Takes back the last call of [`Reach::add`].
    pub fn remove(&mut self, added: &Added) {
        for id in &added.blobs {
            self.needed.remove(id);
        }
        for item in &added.read {
            self.read.remove(item);
        }
    }

    fn walk(
        &mut self,
        repo: &Repository,
        mut frontier: Vec<(BlobId, Role)>,
        reporter: &Reporter,
        added: &mut Added,
    ) -> Result<()> {
        let mut lanes: BTreeMap<u64, Vec<BlobId>> = BTreeMap::new();
        while !frontier.is_empty() {
            reporter.check_interrupt()?;
            frontier.retain(|item| {
                let new = self.read.insert(*item);
                if new {
                    added.read.push(*item);
                }
                new
            });
            let mut nodes = Vec::with_capacity(frontier.len());
            for (id, role) in frontier {
                match role {
                    Role::Leaf { lane } => lanes.entry(lane).or_default().push(id),
                    _ => nodes.push((id, role)),
                }
            }
            {
                // In the order in which they lie in the packs: neighbours share a frame, which is opened once.
                let index = repo.index();
                nodes.sort_by_cached_key(|(id, _)| index.find(id));
            }
            let found: Vec<Found> =
                nodes.par_iter().map(|(id, role)| expand(repo, id, *role)).collect::<Result<_>>()?;
            let index = repo.index();
            for (id, role) in &nodes {
                self.need(&index, *id, role.kind(), added)?;
            }
            frontier = Vec::new();
            for found in found {
                for chunk in found.chunks {
                    self.need(&index, chunk, BlobType::Chunk, added)?;
                }
                frontier.extend(found.nodes);
            }
        }
        self.walk_leaves(repo, lanes, reporter, added)
    }

    fn walk_leaves(
        &mut self,
        repo: &Repository,
        lanes: BTreeMap<u64, Vec<BlobId>>,
        reporter: &Reporter,
        added: &mut Added,
    ) -> Result<()> {
        let lanes: Vec<_> = lanes.into_values().collect();
        let families: Vec<Family> = lanes
            .par_iter()
            .map(|leaves| reporter.check_interrupt().and_then(|()| read_family(repo, leaves)))
            .collect::<Result<_>>()?;
        let index = repo.index();
        for family in families {
            for leaf in family.leaves {
                self.need(&index, leaf, BlobType::Map, added)?;
            }
            for segment in family.segments {
                self.need_segment(&index, segment, added)?;
            }
        }
        Ok(())
    }

    /// Adds one blob; whether it is new.
    fn need(&mut self, index: &BlobIndex, id: BlobId, kind: BlobType, added: &mut Added) -> Result<bool> {
        if !self.needed.insert(id) {
            return Ok(false);
        }
        added.blobs.push(id);
        if index.places(&id).any(|place| place.kind == kind) {
            Ok(true)
        } else {
            Err(Error::Missing { what: format!("blob {id}") })
        }
    }

    /// Adds a segment and, transitively, those that it leans on. Where it lies in packs that are not condemned, only
    /// those places count.
    fn need_segment(&mut self, index: &BlobIndex, id: BlobId, added: &mut Added) -> Result<()> {
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            if !self.need(index, id, BlobType::Segment, added)? {
                continue;
            }
            let usable = index.is_usable(&id);
            for (pack, frame) in index.places(&id).filter_map(|place| index.frame(place)) {
                if !usable || !index.is_condemned(&pack.id) {
                    waiting.extend(frame.bases.iter().copied());
                }
            }
        }
        Ok(())
    }
}

impl Role {
    fn kind(self) -> BlobType {
        match self {
            Self::Tree | Self::Part => BlobType::Tree,
            Self::List { .. } => BlobType::List,
            Self::Map | Self::Inner { .. } | Self::Leaf { .. } => BlobType::Map,
        }
    }
}

/// Reads a metadata blob that is not a leaf, and returns what it refers to.
fn expand(repo: &Repository, id: &BlobId, role: Role) -> Result<Found> {
    let bytes = repo.read_blob(id, role.kind())?;
    match role {
        Role::Tree | Role::Part => expand_tree(&bytes, role).map_err(|why| Error::corrupt(format!("tree {id}"), why)),
        Role::List { level } => {
            let ids = split_ids(&bytes).ok_or_else(|| Error::corrupt(format!("list {id}"), "it is no list of ids"))?;
            let mut found = Found::default();
            found.content(level, ids);
            Ok(found)
        }
        Role::Map => {
            let root = Root::decode(&bytes).map_err(|why| Error::corrupt(format!("page map {id}"), why))?;
            Ok(Found::below(root.height, 0, split_ids(&root.children).unwrap_or_default()))
        }
        Role::Inner { height, lane } => {
            let children = Inner::decode(&bytes).map_err(|why| Error::corrupt(format!("page map {id}"), why))?;
            Ok(Found::below(height, lane, children))
        }
        Role::Leaf { .. } => Ok(Found::default()),
    }
}

fn expand_tree(bytes: &[u8], role: Role) -> Result<Found, String> {
    let tree = Tree::decode(bytes)?;
    let mut found = Found::default();
    if let Some(parts) = tree.parts {
        if role == Role::Part {
            return Err("it is a part and has parts".into());
        }
        found.nodes.extend(parts.into_iter().map(|part| (part, Role::Part)));
    }
    for node in tree.nodes {
        if let Some(content) = node.content {
            found.content(content.level, content.ids().ok_or("a file's content is no list of ids")?);
        }
        found.nodes.extend(node.tree.map(|tree| (tree, Role::Tree)));
        found.nodes.extend(node.database.map(|database| (database.map, Role::Map)));
    }
    Ok(found)
}

impl Found {
    /// Adds ids of chunks (level 0) or of lists whose own ids are of the level below.
    fn content(&mut self, level: u8, ids: Vec<BlobId>) {
        match level.checked_sub(1) {
            None => self.chunks.extend(ids),
            Some(level) => self.nodes.extend(ids.into_iter().map(|id| (id, Role::List { level }))),
        }
    }

    /// The children of a map's node: leaves at height 0, else nodes of the height below.
    fn below(height: u8, lane: u64, children: Vec<BlobId>) -> Self {
        let role = |n: u64| {
            let lane = lane * FAN_OUT as u64 + n;
            match height.checked_sub(1) {
                None => Role::Leaf { lane },
                Some(height) => Role::Inner { height, lane },
            }
        };
        Self { nodes: (0..).zip(children).map(|(n, child)| (child, role(n))).collect(), chunks: Vec::new() }
    }
}

impl Repository {
    /// All blobs that the given root directories need, down to the segments that others lean on.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] for the first blob that can't be read or isn't in the index.
    pub fn reachable(&self, trees: impl IntoIterator<Item = BlobId>, reporter: &Reporter) -> Result<HashSet<BlobId>> {
        let mut reach = Reach::default();
        reach.add(self, trees, reporter)?;
        Ok(reach.needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor;
    use crate::format::tree::{Content, Node, NodeKind, join_ids};
    use crate::repo::Writer;
    use crate::repo::testing::{Db, World, database_node, noise};

    fn reach(world: &World, tree: BlobId) -> Result<HashSet<BlobId>> {
        world.reopen().reachable([tree], &Reporter::silent())
    }

    #[test]
    fn files_lists_and_parts() {
        let world = World::new();
        let mut writer = Writer::new(&world.repo, 3);
        let chunks: Vec<_> = (0..4).map(|n| noise(n, 100)).collect();
        let files = world.put_files(&mut writer, &chunks);
        let ids: Vec<_> = files.iter().map(|f| f.content.clone().unwrap().ids().unwrap()[0]).collect();
        let put_list = |writer: &mut Writer, ids: &[BlobId]| writer.put(BlobType::List, &join_ids(ids)).unwrap();
        let lists = [put_list(&mut writer, &ids[..2]), put_list(&mut writer, &ids[2..])];
        let top = put_list(&mut writer, &lists);
        let large =
            Node { size: Some(400), content: Some(Content::new(2, &[top])), ..Node::bare(b"large", NodeKind::File) };
        let part = World::put_tree(&mut writer, vec![large]);
        let tree = writer.put(BlobType::Tree, &cbor::encode(&Tree { nodes: vec![], parts: Some(vec![part]) })).unwrap();
        let unused = World::put_tree(&mut writer, files);
        writer.finish().unwrap();

        let mut wanted: HashSet<_> = ids.into_iter().collect();
        wanted.extend(lists);
        wanted.extend([top, part, tree]);
        assert_eq!(reach(&world, tree).unwrap(), wanted);
        assert!(!wanted.contains(&unused));
    }

    #[test]
    fn maps_patches_and_bases() {
        let world = World::new();
        let (mut db, mut roots, mut segments) = (Db::default(), Vec::new(), Vec::new());
        let all: Vec<_> = (0..512).map(|n| (n, n as u64)).collect();
        let second_half: Vec<_> = (256..512).map(|n| (n, 1000 + n as u64)).collect();
        for (changed, delta) in [(&all[..], false), (&second_half, false), (&[(0, 2000), (511, 2001)], true)] {
            let mut writer = Writer::new(&world.repo, 3);
            let map = db.store(&world.repo, &mut writer, changed, delta);
            roots.push(World::put_tree(&mut writer, vec![database_node(map)]));
            segments.push(db.segments());
            writer.finish().unwrap();
        }
        let is_segment = |repo: &Repository, id: &BlobId| repo.place(id).unwrap().kind == BlobType::Segment;
        let repo = world.reopen();
        for (n, root) in roots.iter().enumerate() {
            let found = repo.reachable([*root], &Reporter::silent()).unwrap();
            let found_segments: HashSet<_> = found.iter().filter(|id| is_segment(&repo, id)).copied().collect();
            // The last leans on segments that its pages lie in as well, so that the sets are equal.
            assert_eq!(found_segments, segments[n], "generation {n}");
            // Tree, root, and a leaf for each generation so far.
            assert_eq!(found.len() - found_segments.len(), 3 + n, "generation {n}");
        }
        assert!(segments[0].difference(&segments[1]).count() == 1, "a segment that a patch made useless");
        let everything = repo.reachable(roots.iter().copied(), &Reporter::silent()).unwrap();
        let mut reach = Reach::default();
        let reporter = Reporter::silent();
        reach.add(&repo, [roots[1]], &reporter).unwrap();
        let before = reach.needed().clone();
        let added = reach.add(&repo, roots.iter().copied(), &reporter).unwrap();
        assert_eq!(reach.needed(), &everything);
        reach.remove(&added);
        assert_eq!(reach.needed(), &before);
        reach.add(&repo, roots.iter().copied(), &reporter).unwrap();
        assert_eq!(reach.needed(), &everything);
    }

    #[test]
    fn bases_that_no_map_names_are_needed() {
        let world = World::new();
        let mut db = Db::default();
        let mut writer = Writer::new(&world.repo, 3);
        db.store(&world.repo, &mut writer, &[(0, 1), (1, 2)], false);
        let base = db.segments();
        let map = db.store(&world.repo, &mut writer, &[(0, 3), (1, 4)], true);
        let tree = World::put_tree(&mut writer, vec![database_node(map)]);
        writer.finish().unwrap();
        assert!(db.segments().is_disjoint(&base));
        assert!(base.is_subset(&reach(&world, tree).unwrap()));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_changes_nothing() {
        let world = World::new();
        let mut db = Db::default();
        let mut writer = Writer::new(&world.repo, 3);
        let map = db.store(&world.repo, &mut writer, &[(0, 1)], false);
        let good = World::put_tree(&mut writer, vec![database_node(map)]);
        let absent = BlobId([9; 32]);
        let mut nodes = world.put_files(&mut writer, &[noise(1, 9)]);
        nodes[0].content = Some(Content::new(0, &[absent]));
        let bad_chunk = World::put_tree(&mut writer, nodes.clone());
        nodes[0].content = Some(Content::new(1, &[absent]));
        let bad_list = World::put_tree(&mut writer, nodes);
        let bad_map = World::put_tree(&mut writer, vec![database_node(absent)]);
        let not_a_map = World::put_tree(&mut writer, vec![database_node(good)]);
        writer.finish().unwrap();
        let (repo, reporter) = (world.reopen(), Reporter::silent());
        let mut reach = Reach::default();
        reach.add(&repo, [good], &reporter).unwrap();
        let before = reach.needed().clone();
        for bad in [absent, bad_chunk, bad_list, bad_map, not_a_map] {
            assert!(reach.add(&repo, [bad], &reporter).is_err());
            assert_eq!(reach.needed(), &before);
        }
    }
}
