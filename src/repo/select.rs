//! Choosing snapshots, and a place in one: `ID`, `latest`, `latest~2`, each optionally followed by `:sub/path`.

use std::collections::HashMap;

use super::{Named, Repository};
use crate::backend::{both, layout};
use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::tree::{Node, NodeKind};
use crate::id::BlobId;
use crate::report::{Problem, Reporter, Severity};

/// What the source of a snapshot begins with that holds what was in a directory before something was restored there;
/// the directory follows.
pub const BEFORE_RESTORE: &str = "before-restore:";

/// Fewest hex digits that name a snapshot.
const MIN_PREFIX_DIGITS: usize = 2;

/// Which snapshots are meant: those that satisfy each kind of condition given, any one of several of a kind.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Host names.
    pub hosts: Vec<String>,
    /// Sources.
    pub sources: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Paths as given to `create`.
    pub paths: Vec<Vec<u8>>,
    /// Only the newest so many of each host and source.
    pub latest: Option<usize>,
}

impl Filter {
    /// Whether no condition is given.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.sources.is_empty() && self.tags.is_empty() && self.paths.is_empty()
    }

    /// The snapshots that are meant, in the same order: oldest first in, oldest first out.
    pub fn apply(&self, snapshots: Vec<Named>) -> Vec<Named> {
        let mut chosen = snapshots;
        chosen.retain(|named| {
            let snapshot = &named.snapshot;
            (self.hosts.is_empty() || self.hosts.contains(&snapshot.host))
                && (self.sources.is_empty() || self.sources.contains(&snapshot.source))
                && (self.tags.is_empty() || named.tags().iter().any(|tag| self.tags.contains(tag)))
                && (self.paths.is_empty() || snapshot.paths.iter().any(|p| self.paths.iter().any(|w| w[..] == p[..])))
        });
        let Some(latest) = self.latest else { return chosen };
        let mut seen: HashMap<_, usize> = HashMap::new();
        chosen.reverse();
        chosen.retain(|Named { snapshot, .. }| {
            let count = seen.entry((snapshot.host.clone(), snapshot.source.clone())).or_default();
            *count += 1;
            *count <= latest
        });
        chosen.reverse();
        chosen
    }
}

/// A snapshot, or a place in it.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The snapshot.
    pub named: Named,
    /// Names on the way from its root to the place; empty for the root.
    pub sub_path: Vec<Vec<u8>>,
}

/// What was found at a place in a snapshot.
#[derive(Debug, Clone)]
pub enum Start {
    /// A directory: its tree, and its node unless it is the snapshot's root.
    Directory(BlobId, Option<Box<Node>>),
    /// Anything else.
    Other(Box<Node>),
}

/// Takes a path apart: empty parts and `.` don't count.
pub fn split_path(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && part != b".").map(<[u8]>::to_vec).collect()
}

impl Selected {
    /// Finds what is at the place, or at `below` that place.
    ///
    /// # Errors
    /// [`Error::Unknown`] if nothing is there; [`Error::Missing`] or [`Error::Corrupt`] if a directory on the way can't
    /// be read.
    pub fn find(&self, repo: &Repository, below: &[Vec<u8>]) -> Result<Start> {
        let unknown = || {
            let names: Vec<_> = self.sub_path.iter().chain(below).map(|n| String::from_utf8_lossy(n)).collect();
            Error::Unknown { kind: "path", name: names.join("/") }
        };
        if self.sub_path.len() + below.len() > MAX_TREE_DEPTH {
            return Err(unknown());
        }
        let mut at = Start::Directory(self.named.snapshot.tree, None);
        for name in self.sub_path.iter().chain(below) {
            let Start::Directory(tree, _) = at else { return Err(unknown()) };
            let mut nodes = repo.read_tree(&tree)?;
            let found = nodes.binary_search_by(|n| n.name[..].cmp(name)).map_err(|_| unknown())?;
            let node = Box::new(nodes.swap_remove(found));
            at = match (node.kind, node.tree) {
                (NodeKind::Directory, Some(tree)) => Start::Directory(tree, Some(node)),
                _ => Start::Other(node),
            };
        }
        Ok(at)
    }
}

impl Repository {
    /// Finds the snapshot that `text` means. `latest` is the newest of those that pass the filter; one of what was
    /// there before a restore is not meant unless the filter asks for sources or tags. A prefix of an id is looked for
    /// among all.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none, [`Error::Refused`] if a prefix fits several.
    pub fn select(&self, text: &str, filter: &Filter, reporter: &Reporter) -> Result<Selected> {
        let (name, sub_path) = text.split_once(':').unwrap_or((text, ""));
        let named = match steps_back(name) {
            Some(back) => self.select_latest(name, back, filter, reporter)?,
            None => self.select_prefix(name)?,
        };
        Ok(Selected { named, sub_path: split_path(sub_path.as_bytes()) })
    }

    fn select_latest(&self, name: &str, back: usize, filter: &Filter, reporter: &Reporter) -> Result<Named> {
        let found = || self.read_snapshots_in(layout::SNAPSHOTS);
        let (marks, found) = both(&*self.backend, || self.read_marks(), found);
        let marks = marks?;
        if !filter.tags.is_empty() {
            marks.report_lost(reporter, &format!("it may change which snapshot \"{name}\" with that tag stands for"));
        }
        let (mut found, lost) = found?;
        found.iter_mut().for_each(|named| marks.apply(named));
        for lost in lost {
            reporter.problem(Problem {
                severity: Severity::Note,
                what: lost.path,
                why: format!("{}; it may be newer than the snapshot that \"{name}\" stands for", lost.error),
                hint: Some("run `snapshot check`, or name a snapshot by its id".into()),
            });
        }
        let mut found = Filter { latest: None, ..filter.clone() }.apply(found);
        if filter.sources.is_empty() && filter.tags.is_empty() {
            found.retain(|named| !named.snapshot.source.starts_with(BEFORE_RESTORE));
        }
        let at = found.len().checked_sub(back + 1);
        at.map(|at| found.swap_remove(at)).ok_or_else(|| Error::Unknown { kind: "snapshot", name: name.into() })
    }

    fn select_prefix(&self, prefix: &str) -> Result<Named> {
        let unknown = || Error::Unknown { kind: "snapshot", name: prefix.into() };
        let digits = prefix.to_ascii_lowercase();
        if digits.len() < MIN_PREFIX_DIGITS || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let (listed, marks) = both(&*self.backend, || self.backend.list(layout::SNAPSHOTS), || self.read_marks());
        let mut listed = listed?;
        listed.retain(|l| l.name().starts_with(&digits));
        match &listed[..] {
            [] => Err(unknown()),
            [one] => {
                let mut named = self.read_snapshot_at(&one.path)?;
                marks?.apply(&mut named);
                Ok(named)
            }
            several => Err(Error::refused(
                format!("\"{prefix}\" fits {} snapshots", several.len()),
                "give more digits: `snapshot list` shows the ids",
            )),
        }
    }
}

/// How many snapshots before the newest are meant by `latest` or `latest~N`; `None` for anything else.
fn steps_back(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("latest")?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix('~')?.parse().ok().filter(|n| *n < usize::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_say_latest() {
        assert_eq!(steps_back("latest"), Some(0));
        assert_eq!(steps_back("latest~2"), Some(2));
        for other in ["latest2", "latest~", "latest~-1", "la", "abcd", "latest~99999999999999999999"] {
            assert_eq!(steps_back(other), None, "{other}");
        }
        assert_eq!(split_path(b"/a//b/./c/"), [b"a", b"b", b"c"]);
    }
}
