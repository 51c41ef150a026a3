//! What differs between two snapshots, or two places in snapshots: names, contents, attributes, and for databases which
//! pages of which tables.
//!
//! Directories with the same id are not read, and files are compared by the ids of their chunks: no file is read.

mod database;
mod owners;
mod pages;

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::tree::{Node, NodeKind};
use crate::repo::{Repository, Selected, Start};
use crate::report::{Problem, Reporter, Severity};

pub use database::{DatabaseChange, TableChange, TableKind};

/// What about an entry differs that is in both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aspects {
    /// Another kind of thing.
    pub kind: bool,
    /// Bytes of a file or database, the target of a link, the number of a device.
    pub content: bool,
    /// Permission bits.
    pub mode: bool,
    /// User or group.
    pub owner: bool,
    /// Modification time.
    pub mtime: bool,
    /// Extended attributes.
    pub xattrs: bool,
}

impl Aspects {
    /// Whether anything differs.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Whether nothing but attributes differs.
    pub fn is_metadata(self) -> bool {
        self.any() && !self.kind && !self.content
    }

    fn of(before: &Node, after: &Node) -> Self {
        Self {
            kind: before.kind != after.kind,
            content: before.kind == after.kind && content_differs(before, after),
            mode: before.mode != after.mode,
            owner: (before.uid, before.gid) != (after.uid, after.gid),
            mtime: before.mtime != after.mtime,
            xattrs: before.xattrs != after.xattrs,
        }
    }
}

/// One entry that differs.
#[derive(Debug, Clone)]
pub struct Change {
    /// Path below the places compared, or the path itself where whole snapshots are.
    pub path: Vec<u8>,
    /// What was there; `None` for what is new.
    pub before: Option<Node>,
    /// What is there now; `None` for what is gone.
    pub after: Option<Node>,
    /// What differs, for what is in both.
    pub aspects: Aspects,
    /// For a database whose pages differ.
    pub database: Option<DatabaseChange>,
}

/// Entries of the same fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Databases.
    pub databases: u64,
    /// Links, pipes, devices, sockets.
    pub others: u64,
    /// Length of the files and databases, in bytes.
    pub bytes: u64,
}

impl Tally {
    fn count(&mut self, node: &Node) {
        *match node.kind {
            NodeKind::File => &mut self.files,
            NodeKind::Directory => &mut self.directories,
            NodeKind::Database => &mut self.databases,
            _ => &mut self.others,
        } += 1;
        self.bytes += node.size.unwrap_or(0);
    }
}

/// The changes in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// What is new.
    pub added: Tally,
    /// What is gone.
    pub removed: Tally,
    /// What is in both with another content or of another kind; the bytes are those after.
    pub changed: Tally,
    /// Length of the same before, in bytes.
    pub changed_bytes_before: u64,
    /// Entries that differ in their attributes only.
    pub metadata: u64,
}

/// Compares two places and hands out what differs, sorted by path, a directory before what is in it. The caller has
/// loaded the index. A directory or database that can't be read is reported as damage, and the rest is compared.
///
/// # Errors
/// [`Error::Unknown`] if one of the places isn't there, [`Error::Interrupted`], and what `each` returns.
pub fn run(
    repo: &Repository,
    before: &Selected,
    after: &Selected,
    reporter: &Reporter,
    each: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<Summary> {
    let mut comparison = Comparison { repo, reporter, each, summary: Summary::default() };
    match (before.find(repo, &[])?, after.find(repo, &[])?) {
        (Start::Directory(before, _), Start::Directory(after, _)) => {
            if before != after {
                let pairs = pair(repo.read_tree(&before)?, repo.read_tree(&after)?);
                comparison.walk(vec![(Vec::new(), pairs.into_iter())])?;
            }
        }
        (before, after) => {
            let (before, after) = (start_node(before)?, start_node(after)?);
            // Two names were given; the change is shown under one, that of the file where the other is a directory.
            let name = if after.kind == NodeKind::Directory { before.name.clone() } else { after.name.clone() };
            let pair = [before, after].map(|node| Some(Node { name: name.clone(), ..node }));
            comparison.walk(vec![(Vec::new(), vec![pair.into()].into_iter())])?;
        }
    }
    Ok(comparison.summary)
}

/// The node of a place; the root of a snapshot has none.
fn start_node(start: Start) -> Result<Node> {
    match start {
        Start::Other(node) | Start::Directory(_, Some(node)) => Ok(*node),
        Start::Directory(_, None) => Err(Error::refused(
            "a whole snapshot can't be compared with a file",
            "name the same path in both, like latest~1:app/data.db latest:app/data.db",
        )),
    }
}

/// The entry of one name in both, or in one.
type Pair = (Option<Node>, Option<Node>);

/// Nodes of two directories, both sorted, side by side.
fn pair(before: Vec<Node>, after: Vec<Node>) -> Vec<Pair> {
    let mut out = Vec::with_capacity(before.len().max(after.len()));
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return out,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.name.cmp(&b.name),
        };
        let a = if order.is_le() { before.next() } else { None };
        let b = if order.is_ge() { after.next() } else { None };
        out.push((a, b));
    }
}

struct Comparison<'a> {
    repo: &'a Repository,
    reporter: &'a Reporter,
    each: &'a mut dyn FnMut(Change) -> Result<()>,
    summary: Summary,
}

impl Comparison<'_> {
    fn walk(&mut self, mut levels: Vec<(Vec<u8>, std::vec::IntoIter<Pair>)>) -> Result<()> {
        while let Some((around, pairs)) = levels.last_mut() {
            self.reporter.check_interrupt()?;
            let Some((before, after)) = pairs.next() else {
                levels.pop();
                continue;
            };
            let mut path = around.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(before.iter().chain(&after).take(1).flat_map(|node| node.name.iter()));
            let tree = |node: &Option<Node>| node.as_ref().filter(|n| n.kind == NodeKind::Directory)?.tree;
            let (tree_before, tree_after) = (tree(&before), tree(&after));
            self.compare(&path, before, after)?;
            if tree_before == tree_after {
                continue;
            }
            let read = |tree| match tree {
                Some(tree) if levels.len() < MAX_TREE_DEPTH => self.repo.read_tree(&tree),
                Some(_) => Err(Error::corrupt("the snapshot", "its directories are nested deeper than allowed")),
                None => Ok(Vec::new()),
            };
            match read(tree_before).and_then(|before| Ok(pair(before, read(tree_after)?))) {
                Ok(pairs) => levels.push((path, pairs.into_iter())),
                Err(e) => self.damage(&path, &e),
            }
        }
        Ok(())
    }

    fn damage(&self, path: &[u8], error: &Error) {
        self.reporter.problem(Problem {
            severity: Severity::Damage,
            what: String::from_utf8_lossy(path).into_owned(),
            why: format!("not compared: {error}"),
            hint: error.hint().map(str::to_owned),
        });
    }

    fn compare(&mut self, path: &[u8], before: Option<Node>, after: Option<Node>) -> Result<()> {
        let mut aspects = Aspects::default();
        let mut database = None;
        match (&before, &after) {
            (Some(a), Some(b)) => {
                aspects = Aspects::of(a, b);
                if aspects.content
                    && let (Some(a), Some(b)) = (&a.database, &b.database)
                {
                    self.reporter.current(|| String::from_utf8_lossy(path).into_owned());
                    match database::compare(self.repo, a, b, self.reporter) {
                        Ok(change) => {
                            aspects.content = change.is_change();
                            database = aspects.content.then_some(change);
                        }
                        Err(e @ Error::Interrupted) => return Err(e),
                        Err(e) => self.damage(path, &e),
                    }
                }
                if aspects.kind || aspects.content {
                    self.summary.changed.count(b);
                    self.summary.changed_bytes_before += a.size.unwrap_or(0);
                } else if aspects.any() {
                    self.summary.metadata += 1;
                } else {
                    return Ok(());
                }
            }
            (Some(a), None) => self.summary.removed.count(a),
            (None, Some(b)) => self.summary.added.count(b),
            (None, None) => return Ok(()),
        }
        (self.each)(Change { path: path.to_vec(), before, after, aspects, database })
    }
}

/// For nodes of one kind. Databases are only said to be the same here; whether they differ is found by their pages.
fn content_differs(before: &Node, after: &Node) -> bool {
    match before.kind {
        NodeKind::File => {
            (before.size, &before.content, &before.extents) != (after.size, &after.content, &after.extents)
        }
        NodeKind::Database => {
            let map = |node: &Node| node.database.as_ref().map(|database| database.map);
            map(before) != map(after)
        }
        NodeKind::Symlink => before.target != after.target,
        NodeKind::CharDevice | NodeKind::BlockDevice => before.rdev != after.rdev,
        NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor::Time;
    use crate::job::sample::Sample;

    fn changes(sample: &Sample, before: &Selected, after: &Selected) -> (Vec<(String, char)>, Summary) {
        let reporter = Reporter::silent();
        let mut out = Vec::new();
        let summary = run(&sample.repo, before, after, &reporter, &mut |change| {
            let letter = match (&change.before, &change.after) {
                (None, _) => '+',
                (_, None) => '-',
                _ if change.aspects.kind => 'T',
                _ if change.aspects.content => 'M',
                _ => 'U',
            };
            out.push((String::from_utf8(change.path).unwrap(), letter));
            Ok(())
        })
        .unwrap();
        assert!(reporter.problems().is_empty());
        (out, summary)
    }

    #[test]
    fn names_contents_kinds_and_attributes() {
        let mut sample = Sample::new();
        let file = sample.file("file", b"old");
        let later = Time { secs: 9, nanos: 0 };
        let same = sample.file("same", b"same");
        let unseen = Node { inode: Some(7), ctime: Some(later), ..same.clone() };
        let moded = Node { mode: 0o600, mtime: later, ..sample.file("moded", b"x") };
        let becomes = sample.file("thing", b"12345");
        let inside = sample.file("inside", b"12");
        let gone = sample.directory("gone", vec![inside.clone()]);
        let thing = sample.directory("thing", vec![inside.clone()]);
        let shared = sample.directory("shared", vec![inside]);
        let before = vec![file, same, Node { mode: 0o644, ..moded.clone() }, becomes, gone, shared.clone()];
        let after = vec![sample.file("file", b"newer"), unseen, moded, thing, sample.file("new", b"1"), shared];
        let (before, after) = (sample.snapshot(before), sample.snapshot(after));
        let (found, summary) = changes(&sample, &before, &after);
        let expected = [
            ("file", 'M'),
            ("gone", '-'),
            ("gone/inside", '-'),
            ("moded", 'U'),
            ("new", '+'),
            ("thing", 'T'),
            ("thing/inside", '+'),
        ];
        assert_eq!(found, expected.map(|(path, letter)| (path.to_owned(), letter)));
        assert_eq!(summary.added, Tally { files: 2, bytes: 3, ..Tally::default() });
        assert_eq!(summary.removed, Tally { files: 1, directories: 1, bytes: 2, ..Tally::default() });
        assert_eq!(summary.changed, Tally { files: 1, directories: 1, bytes: 5, ..Tally::default() });
        assert_eq!((summary.changed_bytes_before, summary.metadata), (8, 1));
        assert_eq!(changes(&sample, &after, &after), (vec![], Summary::default()));

        let place = |text: &str| sample.repo.select(text, &Default::default(), &Reporter::silent()).unwrap();
        assert_eq!(changes(&sample, &place("latest~1:gone"), &place("latest:thing")).0, []);
        let one = changes(&sample, &place("latest~1:file"), &place("latest:file")).0;
        assert_eq!(one, [("file".to_owned(), 'M')]);
        let whole = run(&sample.repo, &place("latest"), &place("latest:file"), &Reporter::silent(), &mut |_| Ok(()));
        assert!(matches!(whole, Err(Error::Refused { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_compared() {
        let mut sample = Sample::new();
        let (a, b) = (sample.file("a", b"1"), sample.file("a", b"2"));
        let lost = sample.directory("lost", vec![a.clone()]);
        sample.flush();
        let other = sample.directory("lost", vec![b.clone()]);
        let (x, y) = (sample.file("x", b"1"), sample.file("x", b"2"));
        let before = sample.snapshot(vec![lost.clone(), x]);
        let after = sample.snapshot(vec![other, y]);
        sample.damage(&lost.tree.unwrap(), 0);
        let reporter = Reporter::silent();
        let mut paths = Vec::new();
        run(&sample.repo, &before, &after, &reporter, &mut |change| {
            paths.push(change.path);
            Ok(())
        })
        .unwrap();
        assert_eq!(paths, [b"x"]);
        assert_eq!(reporter.problems().iter().map(|p| p.what.as_str()).collect::<Vec<_>>(), ["lost"]);
    }
}
