//! What is restored: the walk over a snapshot's tree, with include and exclude patterns. Touches no local file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::vec;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Node, NodeKind};
use crate::repo::{Repository, Selected, Start};
use crate::report::{Problem, Reporter, Severity};

/// Most names that are restored from one snapshot: trees that share trees could stand for any number.
const MAX_NODES: u64 = 1 << 30;

/// Include and exclude patterns in gitignore syntax, matched against paths in the snapshot.
pub(super) struct Patterns {
    include: Gitignore,
    exclude: Gitignore,
}

impl Patterns {
    /// # Errors
    /// [`Error::Usage`] for a pattern that can't be read.
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        Ok(Self { include: matcher(include)?, exclude: matcher(exclude)? })
    }

    /// Whether all is restored.
    pub(super) fn are_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a node is wanted, given whether the directory around it is; `None` if it is excluded.
    fn judge(&self, path: &[u8], is_directory: bool, around: bool) -> Option<bool> {
        let path = Path::new(OsStr::from_bytes(path));
        if self.exclude.matched(path, is_directory).is_ignore() {
            return None;
        }
        Some(match self.include.matched(path, is_directory) {
            Match::None => around,
            Match::Ignore(_) => true,
            Match::Whitelist(_) => false,
        })
    }
}

fn matcher(patterns: &[String]) -> Result<Gitignore> {
    let mut builder = GitignoreBuilder::new("");
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(|e| Error::Usage(format!("the pattern \"{pattern}\": {e}")))?;
    }
    builder.build().map_err(|e| Error::Usage(format!("the patterns can't be used: {e}")))
}

/// One step of the walk.
pub(super) enum Step {
    /// Into a directory. One that is not wanted itself is made only when something in it is.
    Enter { node: Box<Node>, wanted: bool },
    /// Out of the directory entered last.
    Leave,
    /// A wanted node that is no directory.
    Node(Box<Node>),
}

struct Level {
    nodes: vec::IntoIter<Node>,
    wanted: bool,
    /// Whether the snapshot has all that was in the directory, as opposed to what leads to a source.
    covered: bool,
    /// Length of the path of the directory, in bytes.
    path_bytes: usize,
}

/// Walks a tree in order, depth first, directories before what is in them.
pub(super) struct Walk<'a> {
    repo: &'a Repository,
    patterns: &'a Patterns,
    reporter: &'a Reporter,
    levels: Vec<Level>,
    path: Vec<u8>,
    seen: u64,
    /// Whether another walk reports what can't be read.
    is_first_look: bool,
    /// Where the sources are in the tree.
    sources: Vec<Vec<u8>>,
}

impl<'a> Walk<'a> {
    /// Starts at the place selected. Its own directory is not a step: its contents are.
    ///
    /// # Errors
    /// When the directory to start in can't be read.
    pub(super) fn new(
        repo: &'a Repository,
        selected: &Selected,
        start: &Start,
        patterns: &'a Patterns,
        reporter: &'a Reporter,
    ) -> Result<Self> {
        let (nodes, names) = match start {
            Start::Directory(tree, _) => (repo.read_tree(tree)?, &selected.sub_path[..]),
            Start::Other(node) => {
                let above = selected.sub_path.split_last().map_or(&[][..], |(_, above)| above);
                (vec![(**node).clone()], above)
            }
        };
        let mut wanted = patterns.include.is_empty();
        let mut path = Vec::new();
        for name in names {
            push_name(&mut path, name);
            // What was named is not excluded.
            wanted = patterns.judge(&path, true, wanted).unwrap_or(wanted);
        }
        let sources = sources(&selected.named.snapshot);
        let covered = matches!(start, Start::Directory(..)) && is_covered(&sources, &path);
        let levels = vec![Level { nodes: nodes.into_iter(), wanted, covered, path_bytes: path.len() }];
        Ok(Self { repo, patterns, reporter, levels, path, seen: 0, is_first_look: false, sources })
    }

    /// A walk before the one that restores: what can't be read is reported there.
    pub(super) fn into_first_look(self) -> Self {
        Self { is_first_look: true, ..self }
    }

    /// The next step; `None` at the end. A directory that can't be read is reported, and is no step.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or [`Error::Corrupt`] for a tree without end.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(node) = level.nodes.next() else {
                self.levels.pop();
                return Ok((!self.levels.is_empty()).then_some(Step::Leave));
            };
            self.path.truncate(level.path_bytes);
            push_name(&mut self.path, &node.name);
            self.seen += 1;
            if self.seen > MAX_NODES {
                return Err(Error::corrupt("the snapshot", "its directories hold more names than can be restored"));
            }
            let is_directory = node.kind == NodeKind::Directory;
            let Some(wanted) = self.patterns.judge(&self.path, is_directory, level.wanted) else { continue };
            if !is_directory {
                if wanted {
                    return Ok(Some(Step::Node(Box::new(node))));
                }
                continue;
            }
            self.reporter.check_interrupt()?;
            match self.descend(&node, wanted) {
                Ok(()) => return Ok(Some(Step::Enter { node: Box::new(node), wanted })),
                Err(_) if self.is_first_look => {}
                Err(e) => self.reporter.problem(Problem {
                    severity: Severity::Restore,
                    what: self.display(),
                    why: format!("this directory was not restored, with everything in it: {e}"),
                    hint: e.hint().map(str::to_owned),
                }),
            }
        }
    }

    fn descend(&mut self, node: &Node, wanted: bool) -> Result<()> {
        if self.levels.len() >= MAX_TREE_DEPTH {
            return Err(Error::corrupt("the snapshot", "its directories are nested deeper than allowed"));
        }
        let tree = node.tree.ok_or_else(|| Error::corrupt("the snapshot", "a directory of it has no tree"))?;
        let nodes = self.repo.read_tree(&tree)?.into_iter();
        let covered = is_covered(&self.sources, &self.path);
        self.levels.push(Level { nodes, wanted, covered, path_bytes: self.path.len() });
        Ok(())
    }

    /// Leaves the directory entered last at once: there will be no [`Step::Leave`] for it.
    pub(super) fn skip(&mut self) {
        self.levels.pop();
    }

    /// The path of the last node in the snapshot, for people.
    pub(super) fn display(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// Whether the walk is where it began.
    pub(super) fn is_at_top(&self) -> bool {
        self.levels.len() == 1
    }

    /// What tells whether names that the snapshot doesn't have in the directory just entered are selected; `None` if
    /// the snapshot doesn't have that directory whole.
    pub(super) fn surroundings(&self) -> Option<Surroundings<'_>> {
        let level = self.levels.last().filter(|level| level.covered)?;
        let path = self.path.get(..level.path_bytes)?;
        Some(Surroundings { patterns: self.patterns, path, wanted: level.wanted, nodes: level.nodes.as_slice() })
    }

    /// Whether the node with this name, later in the same directory, will be a step too.
    pub(super) fn will_reach(&self, name: &[u8]) -> bool {
        let Some(level) = self.levels.last() else { return false };
        let rest = level.nodes.as_slice();
        let Ok(at) = rest.binary_search_by(|n| n.name[..].cmp(name)) else { return false };
        let mut path = self.path[..level.path_bytes].to_vec();
        push_name(&mut path, name);
        rest[at].kind != NodeKind::Directory && self.patterns.judge(&path, false, level.wanted) == Some(true)
    }
}

/// A directory in the snapshot, as seen on entering it.
pub(super) struct Surroundings<'a> {
    patterns: &'a Patterns,
    /// Its path in the snapshot.
    pub path: &'a [u8],
    wanted: bool,
    nodes: &'a [Node],
}

impl Surroundings<'_> {
    /// What has this name in the snapshot.
    pub(super) fn kind_of(&self, name: &[u8]) -> Option<NodeKind> {
        let at = self.nodes.binary_search_by(|n| n.name[..].cmp(name)).ok()?;
        self.nodes.get(at).map(|node| node.kind)
    }

    /// Whether a path would be restored if the snapshot had it; `around` is whether the directory that it is in would
    /// be, and `None` stands for the one that was entered.
    pub(super) fn selects(&self, path: &[u8], is_directory: bool, around: Option<bool>) -> bool {
        self.patterns.judge(path, is_directory, around.unwrap_or(self.wanted)) == Some(true)
    }
}

/// Where the paths given to `create` are in the tree. One that led out of the working directory is there by its
/// absolute path, which only the name of the source tells; where it doesn't, that path is left out.
fn sources(snapshot: &Snapshot) -> Vec<Vec<u8>> {
    let by_name: Vec<_> = snapshot.source.split(':').filter(|name| name.starts_with('/')).map(resolve).collect();
    let place = |path: &[u8]| {
        let (names, leads_out) = resolve(OsStr::from_bytes(path));
        if !leads_out || path.starts_with(b"/") {
            return Some(names.join(&b'/'));
        }
        by_name.iter().map(|(whole, _)| whole).find(|whole| whole.ends_with(&names)).map(|whole| whole.join(&b'/'))
    };
    snapshot.paths.iter().filter_map(|path| place(path)).collect()
}

/// The names in a path, `..` resolved, and whether it leads out of where it begins.
fn resolve(path: impl AsRef<Path>) -> (Vec<Vec<u8>>, bool) {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut leads_out = false;
    for component in path.as_ref().components() {
        match component {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::ParentDir => leads_out |= names.pop().is_none(),
            _ => {}
        }
    }
    (names, leads_out)
}

fn is_covered(sources: &[Vec<u8>], path: &[u8]) -> bool {
    let within = |source: &Vec<u8>| {
        let rest = path.strip_prefix(&source[..]);
        source.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    sources.iter().any(within)
}

pub(super) fn push_name(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(include: &[&str], exclude: &[&str], path: &str) -> Option<bool> {
        let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        let patterns = Patterns::new(&owned(include), &owned(exclude)).unwrap();
        let mut wanted = patterns.include.is_empty();
        for (at, _) in path.match_indices('/') {
            wanted = patterns.judge(&path.as_bytes()[..at], true, wanted)?;
        }
        patterns.judge(path.as_bytes(), false, wanted)
    }

    #[test]
    fn only_sources_are_covered() {
        let place = |path: &str, source: &str| {
            let paths = vec![path.as_bytes().to_vec().into()];
            let found = sources(&crate::job::sample::snapshot_of(paths, source));
            found.first().map(|place| String::from_utf8(place.clone()).unwrap())
        };
        assert_eq!(place("/srv/app", "x").as_deref(), Some("srv/app"));
        assert_eq!(place("./a/../data/", "x").as_deref(), Some("data"));
        assert_eq!(place(".", "x").as_deref(), Some(""));
        assert_eq!(place("../data", "/home/u/data").as_deref(), Some("home/u/data"));
        assert_eq!(place("..", "/home/u").as_deref(), Some("home/u"));
        assert_eq!(place("../link", "/real/data"), None);
        assert_eq!(place("../data", "a name"), None);
        let covered = |path: &str| is_covered(&[b"srv/app".to_vec()], path.as_bytes());
        assert!(covered("srv/app") && covered("srv/app/x"));
        assert!(!covered("") && !covered("srv") && !covered("srv/apple"));
        assert!(is_covered(&[vec![]], b""));
    }

    #[test]
    fn patterns_follow_gitignore() {
        assert_eq!(judge(&[], &[], "home/a"), Some(true));
        assert_eq!(judge(&["storage/"], &[], "app/storage/x/y"), Some(true));
        assert_eq!(judge(&["storage/"], &[], "app/data.db"), Some(false));
        assert_eq!(judge(&["/app/data.db"], &[], "app/data.db"), Some(true));
        assert_eq!(judge(&["/data.db"], &[], "app/data.db"), Some(false));
        assert_eq!(judge(&["app/*", "!*.log"], &[], "app/x.log"), Some(false));
        assert_eq!(judge(&[], &["*.log"], "app/x.log"), None);
        assert_eq!(judge(&[], &["*.log", "!keep.log"], "app/keep.log"), Some(true));
        assert_eq!(judge(&["app"], &["cache/"], "app/cache/x"), None);
        assert!(matches!(Patterns::new(&["a[b-".into()], &[]), Ok(_) | Err(Error::Usage(_))));
        assert!(matches!(Patterns::new(&["a{b".into()], &[]), Err(Error::Usage(_))));
    }
}
