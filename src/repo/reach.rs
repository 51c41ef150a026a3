//! What is reachable: every blob that given root directories need, down to the segments that others lean on.
//!
//! Reads metadata only, each blob once, level by level and in the order in which the blobs lie in their packs. What
//! can't be read is an error, never a gap: a prune deletes what is not found here.

use std::collections::{BTreeMap, HashSet};

use rayon::prelude::*;

use super::Repository;
use super::needs::{Needs, Undo};
use super::pages::{Family, read_family};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::pagemap::{FAN_OUT, Inner, Root};
use crate::format::segment::{Base, SlotSet};
use crate::format::tree::{Tree, split_ids};
use crate::id::BlobId;
use crate::index::{BlobIndex, Place};
use crate::report::Reporter;

/// Places in page maps whose versions are read at a time; what they refer to is held until all of them are.
const LANES_AT_ONCE: usize = 64;

/// How a metadata blob is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Tree,
    Part,
    List { level: u8 },
    Map,
    Inner { height: u8, lane: Lane },
    Leaf { lane: Lane },
}

/// A position in maps of one page size, so that versions of one leaf meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Lane {
    page_bytes: u32,
    number: u64,
}

/// What a metadata blob refers to.
#[derive(Default)]
struct Found {
    nodes: Vec<(BlobId, Role)>,
    chunks: Vec<BlobId>,
}

/// What snapshots need: a set that is closed. With a blob it holds everything that is needed to make use of it; of a
/// segment it holds the slots that pages lie in.
#[derive(Default)]
pub struct Reach {
    needs: Needs,
    read: HashSet<(u32, Role)>,
    /// Segments that lean on others which were not followed yet, with the length of their pages.
    leaning: Option<Vec<Leaning>>,
}

/// A segment that leans on others, by its position in the index, and the length of its pages in bytes.
pub type Leaning = (u32, u32);

/// What one call of [`Reach::add`] added.
#[derive(Default)]
pub struct Added {
    undo: Undo,
    read: Vec<(u32, Role)>,
    leaning: usize,
}

impl Added {
    /// The blobs of which nothing was needed before, by their positions in the index.
    pub fn new_blobs(&self) -> impl Iterator<Item = u32> {
        Needs::new_ones(&self.undo)
    }

    /// The blobs of which something was added, by their positions in the index.
    pub fn touched(&self) -> impl Iterator<Item = u32> {
        Needs::touched(&self.undo)
    }
}

impl Reach {
    /// A set that leaves the segments out that others lean on, until [`Reach::close`].
    pub fn without_bases() -> Self {
        Self { leaning: Some(Vec::new()), ..Self::default() }
    }

    /// The needed segments that lean on others, as long as these were left out.
    pub fn leaning(&self) -> &[Leaning] {
        self.leaning.as_deref().unwrap_or_default()
    }

    /// Adds what the segments lean on, and from here on that of those which come.
    ///
    /// # Errors
    /// [`Error::Missing`] if some of it is nowhere.
    pub fn close(&mut self, index: &BlobIndex) -> Result<()> {
        let leaning = self.leaning.take().unwrap_or_default();
        close(&mut self.needs, index, leaning)
    }

    /// What is needed.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Adds everything that the given root directories need. After an error the set is what it was before.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] for the first blob that can't be read or isn't in the index;
    /// [`Error::Refused`] if the index changed since the last call.
    pub fn add(
        &mut self,
        repo: &Repository,
        trees: impl IntoIterator<Item = BlobId>,
        reporter: &Reporter,
    ) -> Result<Added> {
        let roots: Vec<_> = trees.into_iter().map(|id| (id, Role::Tree)).collect();
        let version = repo.index().version();
        let done = self.try_add(repo, roots.clone(), reporter);
        if let Err(Error::Missing { .. }) = &done {
            // Chunks and segments are only looked up: whether a pack that no index file knows has them is seen here.
            repo.adopt_strays();
        }
        if repo.index().version() == version {
            return done;
        }
        // Such packs were found on the way, and all positions are others.
        if let Ok(added) = done {
            self.remove(&added);
        }
        self.try_add(repo, roots, reporter)
    }

    fn try_add(&mut self, repo: &Repository, roots: Vec<(BlobId, Role)>, reporter: &Reporter) -> Result<Added> {
        self.needs.check(&repo.index())?;
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
        self.needs.remove(&added.undo);
        for item in &added.read {
            self.read.remove(item);
        }
        if let Some(leaning) = &mut self.leaning {
            leaning.truncate(leaning.len().saturating_sub(added.leaning));
        }
    }

    fn walk(
        &mut self,
        repo: &Repository,
        mut frontier: Vec<(BlobId, Role)>,
        reporter: &Reporter,
        added: &mut Added,
    ) -> Result<()> {
        let mut lanes: BTreeMap<Lane, Vec<BlobId>> = BTreeMap::new();
        while !frontier.is_empty() {
            reporter.check_interrupt()?;
            let mut nodes = Vec::new();
            {
                let index = repo.index();
                for (id, role) in frontier {
                    if !self.is_new(&index, &id, role, added)? {
                        continue;
                    }
                    match role {
                        Role::Leaf { lane } => lanes.entry(lane).or_default().push(id),
                        _ => nodes.push((id, role)),
                    }
                }
                // In the order in which they lie in the packs: neighbours share a frame, which is opened once.
                nodes.sort_by_cached_key(|(id, _)| index.find(id));
            }
            let found: Vec<Found> =
                nodes.par_iter().map(|(id, role)| expand(repo, id, *role)).collect::<Result<_>>()?;
            let index = repo.index();
            for (id, role) in &nodes {
                self.needs.need(&index, id, role.kind(), &mut added.undo)?;
            }
            frontier = Vec::new();
            for found in found {
                for chunk in found.chunks {
                    self.needs.need(&index, &chunk, BlobType::Chunk, &mut added.undo)?;
                }
                frontier.extend(found.nodes);
            }
        }
        self.walk_leaves(repo, lanes, reporter, added)
    }

    /// Whether a metadata blob has not been read in this role.
    fn is_new(&mut self, index: &BlobIndex, id: &BlobId, role: Role, added: &mut Added) -> Result<bool> {
        let position = index.position(id).ok_or_else(|| Error::Missing { what: format!("blob {id}") })?;
        let new = self.read.insert((position, role));
        if new {
            added.read.push((position, role));
        }
        Ok(new)
    }

    fn walk_leaves(
        &mut self,
        repo: &Repository,
        lanes: BTreeMap<Lane, Vec<BlobId>>,
        reporter: &Reporter,
        added: &mut Added,
    ) -> Result<()> {
        let lanes: Vec<_> = lanes.into_iter().collect();
        for some in lanes.chunks(LANES_AT_ONCE) {
            let families: Vec<Family> = some
                .par_iter()
                .map(|(_, leaves)| reporter.check_interrupt().and_then(|()| read_family(repo, leaves)))
                .collect::<Result<_>>()?;
            let index = repo.index();
            for (family, (lane, _)) in families.iter().zip(some) {
                for leaf in &family.leaves {
                    self.needs.need(&index, leaf, BlobType::Map, &mut added.undo)?;
                }
                for (segment, slots) in &family.segments {
                    self.need_slots(&index, (segment, slots), lane.page_bytes, added)?;
                }
            }
        }
        Ok(())
    }

    /// Adds slots of a segment and, transitively, of those that it leans on.
    fn need_slots(
        &mut self,
        index: &BlobIndex,
        segment: (&BlobId, &SlotSet),
        page_bytes: u32,
        added: &mut Added,
    ) -> Result<()> {
        if !self.needs.need_slots(index, segment, page_bytes, &mut added.undo)? {
            return Ok(());
        }
        match &mut self.leaning {
            None => follow(&mut self.needs, index, segment.0, page_bytes, &mut added.undo),
            Some(leaning) => {
                let position = index.position(segment.0);
                let leans = position.filter(|at| index.places_at(*at).any(|p| !index.bases(p).is_empty()));
                added.leaning += usize::from(leans.is_some());
                leaning.extend(leans.map(|at| (at, page_bytes)));
                Ok(())
            }
        }
    }
}

/// Adds what a needed segment leans on.
fn follow(needs: &mut Needs, index: &BlobIndex, id: &BlobId, page_bytes: u32, undo: &mut Undo) -> Result<()> {
    let mut waiting = bases(needs, index, id);
    while let Some(Base { id, slots }) = waiting.pop() {
        if needs.need_slots(index, (&id, &slots), page_bytes, undo)? {
            waiting.extend(bases(needs, index, &id));
        }
    }
    Ok(())
}

/// What a needed segment leans on. Where packs that are not condemned have all that is needed of it, only these count.
fn bases(needs: &Needs, index: &BlobIndex, id: &BlobId) -> Vec<Base> {
    let leans = |p: Place| !index.bases(p).is_empty();
    let Some(position) = index.position(id).filter(|at| index.places_at(*at).any(leans)) else {
        return Vec::new();
    };
    let stays = |p: Place| index.frame(p).is_some_and(|(pack, _)| !index.is_condemned(&pack.id));
    let enough = needs.are_met_at(index, position, stays);
    let places = index.places_at(position).filter(|p| !enough || stays(*p));
    places.flat_map(|p| index.bases(p)).copied().collect()
}

/// Adds what the given segments lean on.
///
/// # Errors
/// [`Error::Missing`] if some of it is nowhere.
pub fn close(needs: &mut Needs, index: &BlobIndex, leaning: impl IntoIterator<Item = Leaning>) -> Result<()> {
    for (position, page_bytes) in leaning {
        if let Some(id) = index.id_at(position) {
            follow(needs, index, &id, page_bytes, &mut Undo::default())?;
        }
    }
    Ok(())
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
            let top = Lane { page_bytes: root.page_bytes, number: 0 };
            Ok(Found::below(root.height, top, split_ids(&root.children).unwrap_or_default()))
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
    fn below(height: u8, above: Lane, children: Vec<BlobId>) -> Self {
        let role = |n: u64| {
            let lane = Lane { number: above.number * FAN_OUT as u64 + n, ..above };
            match height.checked_sub(1) {
                None => Role::Leaf { lane },
                Some(height) => Role::Inner { height, lane },
            }
        };
        Self { nodes: (0..).zip(children).map(|(n, child)| (child, role(n))).collect(), chunks: Vec::new() }
    }
}

impl Repository {
    /// Everything that the given root directories need, down to the segments that others lean on.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] for the first blob that can't be read or isn't in the index.
    pub fn reachable(&self, trees: impl IntoIterator<Item = BlobId>, reporter: &Reporter) -> Result<Needs> {
        let mut reach = Reach::default();
        reach.add(self, trees, reporter)?;
        Ok(reach.needs)
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
        let repo = world.reopen();
        let needs = repo.reachable([tree], &Reporter::silent())?;
        Ok(needs.ids(&repo.index()))
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
            let found = repo.reachable([*root], &Reporter::silent()).unwrap().ids(&repo.index());
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
        let before = reach.needs().clone();
        let added = reach.add(&repo, roots.iter().copied(), &reporter).unwrap();
        assert_eq!(reach.needs(), &everything);
        reach.remove(&added);
        assert_eq!(reach.needs(), &before);
        reach.add(&repo, roots.iter().copied(), &reporter).unwrap();
        assert_eq!(reach.needs(), &everything);
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
        let before = reach.needs().clone();
        for bad in [absent, bad_chunk, bad_list, bad_map, not_a_map] {
            assert!(reach.add(&repo, [bad], &reporter).is_err());
            assert_eq!(reach.needs(), &before);
        }
    }
}
