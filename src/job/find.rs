//! Searching names over many snapshots.
//!
//! Generations share most of their directories. A directory is searched once, whatever snapshots it is in, and what was
//! found in it is kept as a tree that shares parts just so; an entry that several generations in a row have is then one
//! hit with the range of them. Work and memory go with what differs, not with the number of snapshots.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::cbor::Time;
use crate::format::tree::{Node, NodeKind};
use crate::id::BlobId;
use crate::repo::{Named, Repository, Selected, Start};
use crate::report::{Problem, Reporter, Severity};

/// What is looked for: names that match one of the patterns and satisfy every other condition.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// In gitignore syntax: one without a slash matches the name, one with a slash the path in the snapshot.
    pub patterns: Vec<String>,
    /// Whether upper and lower case of ASCII letters are the same.
    pub ignore_case: bool,
    /// Only what was modified after this.
    pub newer: Option<Time>,
    /// Only what was modified before this.
    pub older: Option<Time>,
    /// Only these kinds; empty for all.
    pub kinds: Vec<NodeKind>,
}

/// Generations of one source, oldest first, and where in them is searched.
pub struct Group {
    /// The snapshots.
    pub snapshots: Vec<Named>,
    sub_path: Vec<Vec<u8>>,
}

/// Something that matches, in one snapshot or several in a row.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Path in the snapshots.
    pub path: Vec<u8>,
    /// What is there. A file's blobs are left out.
    pub node: Node,
    /// The first snapshot that has it, by its place in [`Group::snapshots`].
    pub first: usize,
    /// The last one; those between have it too.
    pub last: usize,
}

/// Puts snapshots of one host and source together, in the order in which the first of each is given.
pub fn groups(selected: Vec<Selected>) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    for Selected { named, sub_path } in selected {
        let place = |n: &Named| (n.snapshot.time, n.snapshot.generation, n.id);
        let belongs = |group: &&mut Group| {
            group.sub_path == sub_path
                && group.snapshots.first().is_some_and(|one| {
                    one.snapshot.host == named.snapshot.host && one.snapshot.source == named.snapshot.source
                })
        };
        match out.iter_mut().find(belongs) {
            None => out.push(Group { snapshots: vec![named], sub_path }),
            Some(group) => {
                if let Err(at) = group.snapshots.binary_search_by_key(&place(&named), place) {
                    group.snapshots.insert(at, named);
                }
            }
        }
    }
    out
}

/// A node that matches. Its content is only there as a hash, to be compared.
struct Match {
    node: Node,
    content: blake3::Hash,
}

/// An entry of a directory that matches, or that holds something that does.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    is_match: Option<Arc<Match>>,
    below: Option<Arc<Found>>,
}

/// What matches in a directory and below, sorted by name.
struct Found {
    entries: Vec<Entry>,
}

/// Something that the snapshots from the first number to the second have.
type Run<T> = (usize, usize, T);

/// Searches, and remembers directories that were searched.
pub struct Finder<'a> {
    repo: &'a Repository,
    query: Query,
    matcher: Gitignore,
    /// Whether a pattern looks at more than the name: then a directory must be searched again under another path.
    by_path: bool,
    seen: HashMap<(BlobId, Vec<u8>), Option<Arc<Found>>>,
    reporter: &'a Reporter,
}

/// A directory that is being searched.
struct Level {
    key: (BlobId, Vec<u8>),
    nodes: std::vec::IntoIter<Node>,
    found: Vec<Entry>,
    path_bytes: usize,
}

impl<'a> Finder<'a> {
    /// A search in a repository whose index is loaded.
    ///
    /// # Errors
    /// [`Error::Usage`] for a pattern that can't be read or would match nothing.
    pub fn new(repo: &'a Repository, query: Query, reporter: &'a Reporter) -> Result<Self> {
        let refuse =
            |pattern: &str, why: &dyn std::fmt::Display| Error::Usage(format!("the pattern \"{pattern}\": {why}"));
        let mut builder = GitignoreBuilder::new("");
        builder.case_insensitive(query.ignore_case).map_err(|e| Error::Usage(e.to_string()))?;
        for pattern in &query.patterns {
            if pattern.trim().is_empty() || pattern.starts_with('#') {
                return Err(refuse(pattern, &"it matches nothing; write \\# for a name that begins with #"));
            }
            builder.add_line(None, pattern).map_err(|e| refuse(pattern, &e))?;
        }
        let matcher = builder.build().map_err(|e| Error::Usage(format!("the patterns can't be used: {e}")))?;
        let by_path = query.patterns.iter().any(|p| p.trim_end_matches('/').contains('/'));
        Ok(Self { repo, query, matcher, by_path, seen: HashMap::new(), reporter })
    }

    /// Searches the snapshots of a group. Hits come in the order of their paths, those of one path oldest first. What
    /// can't be read is reported as damage, and the rest is searched.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Unknown`] where the place to search is in none of the snapshots, and what `each`
    /// returns.
    pub fn search(&mut self, group: &Group, each: &mut dyn FnMut(Hit) -> Result<()>) -> Result<()> {
        let mut runs: Vec<Run<Arc<Found>>> = Vec::new();
        let mut unknown = Vec::new();
        for (number, named) in group.snapshots.iter().enumerate() {
            self.reporter.current(|| format!("snapshot {}", named.id.short()));
            let selected = Selected { named: named.clone(), sub_path: group.sub_path.clone() };
            match self.snapshot(&selected) {
                Ok(Some(found)) => extend(&mut runs, (number, number, found), Arc::ptr_eq),
                Ok(None) => {}
                Err(e @ Error::Unknown { .. }) => unknown.push(e),
                Err(e @ Error::Interrupted) => return Err(e),
                Err(e) => self.damage(&format!("snapshot {}", named.id.short()), &e),
            }
        }
        match unknown.pop() {
            Some(e) if unknown.len() + 1 == group.snapshots.len() => Err(e),
            _ => show(&runs, &group.sub_path, each),
        }
    }

    fn damage(&self, what: &str, error: &Error) {
        self.reporter.problem(Problem {
            severity: Severity::Damage,
            what: what.to_owned(),
            why: format!("not searched: {error}"),
            hint: error.hint().map(str::to_owned),
        });
    }

    fn snapshot(&mut self, selected: &Selected) -> Result<Option<Arc<Found>>> {
        match selected.find(self.repo, &[])? {
            Start::Directory(tree, _) => self.directory(tree, selected.sub_path.join(&b'/')),
            // Shown below the directory that it is in, as everything else.
            Start::Other(node) => {
                let is_match = self.judge(&selected.sub_path.join(&b'/'), &node);
                let entry = Entry { name: Vec::new(), is_match, below: None };
                Ok(entry.is_match.is_some().then(|| Arc::new(Found { entries: vec![entry] })))
            }
        }
    }

    fn key(&self, tree: BlobId, path: &[u8]) -> (BlobId, Vec<u8>) {
        (tree, if self.by_path { path.to_vec() } else { Vec::new() })
    }

    /// Searches a directory and all below, without those that were searched before.
    fn directory(&mut self, tree: BlobId, mut path: Vec<u8>) -> Result<Option<Arc<Found>>> {
        let key = self.key(tree, &path);
        if let Some(found) = self.seen.get(&key) {
            return Ok(found.clone());
        }
        let nodes = self.repo.read_tree(&tree)?.into_iter();
        let mut levels = vec![Level { key, nodes, found: Vec::new(), path_bytes: path.len() }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else { return Ok(None) };
            path.truncate(level.path_bytes);
            let Some(node) = level.nodes.next() else {
                let Some(Level { key, found, .. }) = levels.pop() else { return Ok(None) };
                let found = (!found.is_empty()).then(|| Arc::new(Found { entries: found }));
                self.seen.insert(key, found.clone());
                let Some(above) = levels.last_mut() else { return Ok(found) };
                above.close(found);
                continue;
            };
            push_name(&mut path, &node.name);
            let is_match = self.judge(&path, &node);
            level.found.push(Entry { name: node.name.to_vec(), is_match, below: None });
            let Some(tree) = node.tree.filter(|_| node.kind == NodeKind::Directory) else {
                level.close(None);
                continue;
            };
            let key = self.key(tree, &path);
            if let Some(found) = self.seen.get(&key) {
                level.close(found.clone());
                continue;
            }
            self.reporter.check_interrupt()?;
            let too_deep = || Error::corrupt("the snapshot", "its directories are nested deeper than allowed");
            let read = if depth < MAX_TREE_DEPTH { self.repo.read_tree(&tree) } else { Err(too_deep()) };
            match read {
                Ok(nodes) => {
                    let (nodes, path_bytes) = (nodes.into_iter(), path.len());
                    levels.push(Level { key, nodes, found: Vec::new(), path_bytes });
                }
                Err(e) => {
                    // Told once, for all snapshots that have it.
                    self.damage(&String::from_utf8_lossy(&path), &e);
                    self.seen.insert(key, None);
                    level.close(None);
                }
            }
        }
    }

    fn judge(&self, path: &[u8], node: &Node) -> Option<Arc<Match>> {
        let Query { newer, older, kinds, .. } = &self.query;
        let wanted = (kinds.is_empty() || kinds.contains(&node.kind))
            && newer.is_none_or(|time| node.mtime > time)
            && older.is_none_or(|time| node.mtime < time);
        let is_directory = node.kind == NodeKind::Directory;
        if !wanted || !self.matcher.matched(Path::new(OsStr::from_bytes(path)), is_directory).is_ignore() {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        if let Some(content) = &node.content {
            hasher.update(&[content.level]).update(&content.ids);
        }
        for n in node.extents.iter().flatten() {
            hasher.update(&n.to_le_bytes());
        }
        let node = Node { content: None, extents: None, ..node.clone() };
        Some(Arc::new(Match { node, content: hasher.finalize() }))
    }
}

impl Level {
    /// Completes the entry made last, and drops it if there is nothing in it.
    fn close(&mut self, below: Option<Arc<Found>>) {
        if let Some(entry) = self.found.last_mut() {
            entry.below = below;
            if entry.is_match.is_none() && entry.below.is_none() {
                self.found.pop();
            }
        }
    }
}

fn push_name(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Whether two nodes are the same entry for whoever looks for it: inode and change time, or the moment of a capture,
/// don't count, nor does what a directory holds.
fn same(a: &Arc<Match>, b: &Arc<Match>) -> bool {
    let essence = |node: &Node| {
        let map = node.database.as_ref().map(|database| database.map);
        (node.kind, node.mode, node.uid, node.gid, node.mtime, node.size, node.rdev, map)
    };
    Arc::ptr_eq(a, b)
        || (a.content == b.content
            && essence(&a.node) == essence(&b.node)
            && a.node.target == b.node.target
            && a.node.xattrs == b.node.xattrs
            && a.node.unverified == b.node.unverified)
}

/// Adds a run, as a part of the one before if it goes on with the same.
fn extend<T>(runs: &mut Vec<Run<T>>, (first, last, what): Run<T>, same: impl Fn(&T, &T) -> bool) {
    match runs.last_mut() {
        Some(before) if before.1 + 1 == first && same(&before.2, &what) => before.1 = last,
        _ => runs.push((first, last, what)),
    }
}

/// The entries of several versions of a directory, by name.
fn merge(versions: &[Run<Arc<Found>>]) -> BTreeMap<Vec<u8>, Vec<Run<Entry>>> {
    let mut names: BTreeMap<Vec<u8>, Vec<Run<Entry>>> = BTreeMap::new();
    for (first, last, found) in versions {
        for entry in &found.entries {
            names.entry(entry.name.clone()).or_default().push((*first, *last, entry.clone()));
        }
    }
    names
}

/// Hands out what was found in the versions of a place.
fn show(versions: &[Run<Arc<Found>>], around: &[Vec<u8>], each: &mut dyn FnMut(Hit) -> Result<()>) -> Result<()> {
    let mut path = around.join(&b'/');
    let mut levels = vec![(merge(versions).into_iter(), path.len())];
    while let Some((names, path_bytes)) = levels.last_mut() {
        path.truncate(*path_bytes);
        let Some((name, entries)) = names.next() else {
            levels.pop();
            continue;
        };
        push_name(&mut path, &name);
        let (mut matches, mut below) = (Vec::new(), Vec::new());
        for (first, last, entry) in entries {
            if let Some(found) = entry.is_match {
                extend(&mut matches, (first, last, found), same);
            }
            if let Some(found) = entry.below {
                extend(&mut below, (first, last, found), Arc::ptr_eq);
            }
        }
        for (first, last, found) in matches {
            each(Hit { path: path.clone(), node: found.node.clone(), first, last })?;
        }
        if !below.is_empty() {
            levels.push((merge(&below).into_iter(), path.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample::Sample;

    fn search(sample: &Sample, selected: &[&Selected], query: Query) -> Vec<(String, usize, usize)> {
        let reporter = Reporter::silent();
        let mut finder = Finder::new(&sample.repo, query, &reporter).unwrap();
        let mut hits = Vec::new();
        for group in groups(selected.iter().map(|s| (*s).clone()).collect()) {
            finder
                .search(&group, &mut |hit| {
                    hits.push((String::from_utf8(hit.path).unwrap(), hit.first, hit.last));
                    Ok(())
                })
                .unwrap();
        }
        assert!(reporter.problems().is_empty());
        hits
    }

    fn query(patterns: &[&str]) -> Query {
        Query { patterns: patterns.iter().map(ToString::to_string).collect(), ..Query::default() }
    }

    fn hit(path: &str, first: usize, last: usize) -> (String, usize, usize) {
        (path.into(), first, last)
    }

    #[test]
    fn generations_in_a_row_are_one_hit() {
        let mut sample = Sample::new();
        let same = sample.file("same.txt", b"1");
        let old = sample.file("note.txt", b"old");
        let new = sample.file("note.txt", b"new");
        // Another tree, but nothing that anybody looks for.
        let touched = Node { ctime: Some(Time { secs: 5, nanos: 0 }), ..same.clone() };
        let deep = sample.directory("deep", vec![same.clone()]);
        let generations = [
            vec![old.clone(), deep.clone()],
            vec![old.clone(), deep.clone(), touched],
            vec![new, deep.clone(), same],
            vec![deep.clone()],
            vec![old, deep],
        ];
        let selected: Vec<_> = generations
            .into_iter()
            .map(|nodes| {
                let app = sample.directory("app", nodes);
                sample.snapshot(vec![app])
            })
            .collect();
        let all: Vec<_> = selected.iter().rev().collect();
        let expected = [
            hit("app/deep/same.txt", 0, 4),
            hit("app/note.txt", 0, 1),
            hit("app/note.txt", 2, 2),
            hit("app/note.txt", 4, 4),
            hit("app/same.txt", 1, 2),
        ];
        assert_eq!(search(&sample, &all, query(&["*.txt"])), expected);
        assert_eq!(search(&sample, &all, query(&["app/*.txt"])), expected[1..]);
        assert_eq!(search(&sample, &all, query(&["SAME*"])), []);
        let folded = Query { ignore_case: true, ..query(&["SAME*"]) };
        assert_eq!(search(&sample, &all, folded).len(), 2);
        assert_eq!(search(&sample, &all[..1], query(&["note.txt"])), [hit("app/note.txt", 0, 0)]);
    }

    #[test]
    fn each_directory_is_read_once() {
        let mut sample = Sample::new();
        let file = sample.file("a", b"1");
        let inner = sample.directory("inner", vec![file]);
        let twice = Node { name: b"twice".to_vec().into(), ..inner.clone() };
        let first = sample.snapshot(vec![inner.clone()]);
        let second = sample.snapshot(vec![inner, twice]);
        let reporter = Reporter::silent();
        for (pattern, directories) in [("a", 3), ("*/a", 4)] {
            let mut finder = Finder::new(&sample.repo, query(&[pattern]), &reporter).unwrap();
            let group = groups(vec![first.clone(), second.clone()]).remove(0);
            let mut hits = 0;
            finder
                .search(&group, &mut |_| {
                    hits += 1;
                    Ok(())
                })
                .unwrap();
            // A pattern with a slash may match in one place and not in another.
            assert_eq!((finder.seen.len(), hits), (directories, 2), "{pattern}");
        }
    }

    #[test]
    fn conditions_and_patterns() {
        let mut sample = Sample::new();
        let file = sample.file("a.db", b"1");
        let link = Node { target: Some(b"x".to_vec().into()), ..Node::bare(b"b.db", NodeKind::Symlink) };
        let odd = sample.file("#odd", b"2");
        let selected = sample.snapshot(vec![file.clone(), link, odd]);
        let of = |query| search(&sample, &[&selected], query).into_iter().map(|h| h.0).collect::<Vec<_>>();
        assert_eq!(of(query(&["*.db"])), ["a.db", "b.db"]);
        assert_eq!(of(query(&["*.db", "!b*"])), ["a.db"]);
        assert_eq!(of(Query { kinds: vec![NodeKind::Symlink], ..query(&["*"]) }), ["b.db"]);
        assert_eq!(of(Query { newer: Some(Time { secs: 1, nanos: 0 }), ..query(&["*.db"]) }), ["a.db"]);
        assert_eq!(of(Query { newer: Some(file.mtime), ..query(&["*"]) }), [""; 0]);
        assert_eq!(of(Query { older: Some(file.mtime), ..query(&["*"]) }), ["b.db"]);
        assert_eq!(of(query(&["\\#odd"])), ["#odd"]);
        for bad in ["", "#odd", "a{b"] {
            assert!(
                matches!(Finder::new(&sample.repo, query(&[bad]), &Reporter::silent()), Err(Error::Usage(_))),
                "{bad}"
            );
        }
        let inside = sample.repo.select("latest:a.db", &Default::default(), &Reporter::silent()).unwrap();
        assert_eq!(search(&sample, &[&inside], query(&["*.db"])), [hit("a.db", 0, 0)]);
    }
}
