//! The first pass of a create: finds the databases of all sources and captures them, one right after the other, before
//! any file is listed.
//!
//! An application writes a file, commits the row that refers to it, and removes the row before the file. So whatever a
//! captured row refers to was there at the capture, and is there when the files are listed afterwards, unless it was
//! removed in between: such files are named. The walk proper puts the captured databases where they belong.
//!
//! The first pass must cost little where nothing has changed: names and inode numbers come with the listing of a
//! directory, and a name that was no database in the previous generation and has the same inode number is not looked
//! at. One that has become a database in place since is captured when the walk comes to it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::sources::Top;
use super::walk::{Entry, Walker};
use crate::error::Result;
use crate::format::tree::{Node, NodeKind};
use crate::id::BlobId;
use crate::report::{Reporter, Severity};
use crate::source::exclude::is_cache;
use crate::source::sqlite::SIDECARS;
use crate::source::stat;

/// So many vanished files are named one by one; of further ones there is only the number.
const MAX_VANISHED: usize = 100;
/// What names of files begin or end with that programs make and remove all the time, so that no row refers to them:
/// editors' and downloaders' temporary files, locks, NFS's names for deleted files, SQLite's temporary files
/// (SQLITE_TEMP_FILE_PREFIX).
const PASSING_STARTS: [&str; 4] = [".nfs", ".#", "etilqs_", ".goutputstream-"];
const PASSING_ENDS: [&str; 8] = [".tmp", ".temp", ".part", ".partial", ".lock", ".pid", ".swp", "~"];
/// The name of SQLite's super-journal: that of a database, this, and digits.
const SUPER_JOURNAL: &[u8] = b"-mj";

/// What the first pass has left for the walk in one directory.
#[derive(Default)]
pub(super) struct Surveyed {
    /// Captured databases by name.
    pub databases: BTreeMap<Vec<u8>, Node>,
    /// Databases that could not be captured, and why.
    pub refused: BTreeMap<Vec<u8>, String>,
    /// Names that the previous generation did not have, each with a slash behind it: there may be a million.
    new: Vec<u8>,
    /// Names of the previous generation that were gone, or are left out now.
    gone: HashSet<Vec<u8>>,
}

/// What the first pass has left for the walk.
#[derive(Default)]
pub(super) struct Survey {
    /// By directory; nothing for those where nothing is to be said.
    directories: HashMap<PathBuf, Surveyed>,
    /// Databases that have several names, by their group of hard links.
    groups: HashMap<u64, Node>,
}

/// A file that may be a database.
struct Candidate {
    path: PathBuf,
    older: Option<Node>,
}

/// Names files that were there when the databases were captured, and are not any more: the one channel for that, of the
/// walk and of the workers.
#[derive(Default)]
pub(super) struct Vanished {
    /// Whether there is any database that could refer to them.
    after_capture: AtomicBool,
    count: AtomicUsize,
}

impl Vanished {
    /// Reports a file, unless its name says that it is of the kind that comes and goes.
    pub fn report(&self, path: &Path, reporter: &Reporter) {
        if path.file_name().is_some_and(|name| is_passing(name.as_bytes())) {
            return;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < MAX_VANISHED {
            reporter.warn(Severity::Source, path.display(), self.why());
        }
    }

    /// Reports how many were not named.
    pub fn finish(&self, reporter: &Reporter) {
        let more = self.count.load(Ordering::Relaxed).saturating_sub(MAX_VANISHED);
        if more > 0 {
            reporter.warn(Severity::Source, format!("{more} more files"), self.why());
        }
    }

    fn why(&self) -> &'static str {
        match self.after_capture.load(Ordering::Relaxed) {
            true => "vanished after the databases were captured: rows in this snapshot may refer to it",
            false => "vanished while the snapshot was taken",
        }
    }
}

/// Whether a name is of the kind that comes and goes.
fn is_passing(name: &[u8]) -> bool {
    let is_super_journal = name
        .windows(SUPER_JOURNAL.len())
        .rposition(|w| w == SUPER_JOURNAL)
        .map(|at| &name[at + SUPER_JOURNAL.len()..])
        .is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit));
    SIDECARS.iter().chain(&PASSING_ENDS).any(|end| name.ends_with(end.as_bytes()))
        || PASSING_STARTS.iter().any(|start| name.starts_with(start.as_bytes()))
        || is_super_journal
}

impl Walker<'_> {
    /// Captures all databases of all sources. `older` is the root of the previous generation.
    pub(super) fn survey(&mut self, top: &Top, older: Option<&Node>) -> Result<()> {
        let mut candidates = Vec::new();
        self.survey_top(top, older, &mut candidates)?;
        candidates.sort_by(|a, b| a.path.cmp(&b.path));
        for candidate in candidates {
            self.reporter.check_interrupt()?;
            self.capture_first(candidate)?;
        }
        let has_databases = self.survey.directories.values().any(|d| !d.databases.is_empty() || !d.refused.is_empty());
        if !has_databases {
            self.survey = Survey::default();
        }
        self.vanished.after_capture.store(has_databases, Ordering::Relaxed);
        Ok(())
    }

    fn survey_top(&mut self, top: &Top, older: Option<&Node>, found: &mut Vec<Candidate>) -> Result<()> {
        if let Some(source) = &top.source {
            self.enter_source(source)?;
            // As in the walk, a symbolic link to a directory stands for it, and one to a file for itself.
            if source.is_dir() {
                return self.survey_below(source, older.and_then(|node| node.tree), found);
            }
            self.consider(source.clone(), older, found);
            return Ok(());
        }
        let nodes = self.older_tree(older.and_then(|node| node.tree).as_ref());
        for (name, below) in &top.below {
            self.survey_top(below, find(&nodes, name).map(|at| &nodes[at]), found)?;
        }
        Ok(())
    }

    fn survey_below(&mut self, root: &Path, older: Option<BlobId>, found: &mut Vec<Candidate>) -> Result<()> {
        let mut open = vec![(root.to_path_buf(), older)];
        while let Some((directory, older)) = open.pop() {
            self.reporter.check_interrupt()?;
            self.survey_directory(directory, older, &mut open, found);
        }
        Ok(())
    }

    /// Looks for databases in a directory, and notes which names there are. What can't be read is left to the walk,
    /// which reports it.
    fn survey_directory(
        &mut self,
        directory: PathBuf,
        older: Option<BlobId>,
        open: &mut Vec<(PathBuf, Option<BlobId>)>,
        found: &mut Vec<Candidate>,
    ) {
        let older = self.older_tree(older.as_ref());
        let mut seen = vec![false; older.len()];
        let mut new: Vec<u8> = Vec::new();
        let is_left_out = self.options.exclude_caches && is_cache(&directory);
        let entries = if is_left_out { None } else { fs::read_dir(&directory).ok() };
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                let is_wanted = fs::symlink_metadata(&path).is_ok_and(|meta| self.is_wanted(&path, &meta, false));
                if !is_wanted {
                    continue;
                }
            } else if self.excludes.excludes(&path, false) {
                continue;
            }
            let name = entry.file_name().into_vec();
            let at = find(&older, &name);
            let node = at.map(|at| &older[at]);
            if kind.is_dir() {
                open.push((path, node.and_then(|node| node.tree)));
            } else if kind.is_file() && !node.is_some_and(|node| is_known_other(node, entry.ino())) {
                self.consider(path, node, found);
            }
            match at {
                Some(at) => seen[at] = true,
                None => {
                    new.extend(name);
                    new.push(b'/');
                }
            }
        }
        let gone = seen.iter().zip(&older).filter(|(seen, _)| !**seen).map(|(_, node)| node.name.to_vec()).collect();
        new.shrink_to_fit();
        let surveyed = Surveyed { new, gone, ..Surveyed::default() };
        if !(surveyed.new.is_empty() && surveyed.gone.is_empty()) {
            self.survey.directories.insert(directory, surveyed);
        }
    }

    fn older_tree(&self, tree: Option<&BlobId>) -> Vec<Node> {
        tree.and_then(|tree| self.repo.read_tree(tree).ok()).unwrap_or_default()
    }

    fn consider(&self, path: PathBuf, older: Option<&Node>, found: &mut Vec<Candidate>) {
        let Ok(meta) = fs::symlink_metadata(&path) else { return };
        let node = stat::node(name_of(&path), &meta);
        let entry = Entry { path, meta, node };
        if self.may_be_database(&entry, older) {
            found.push(Candidate { path: entry.path, older: older.cloned() });
        }
    }

    fn capture_first(&mut self, Candidate { path, older }: Candidate) -> Result<()> {
        let Ok(meta) = fs::symlink_metadata(&path) else { return Ok(()) };
        let name = name_of(&path).to_vec();
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut entry = self.stat(&name, path, meta);
        if entry.node.hard_link.is_some_and(|group| self.survey.groups.contains_key(&group)) {
            return Ok(());
        }
        match self.database(&mut entry, older.as_ref())? {
            Some(node) => {
                self.survey.groups.extend(node.hard_link.map(|group| (group, node.clone())));
                self.survey.directories.entry(directory).or_default().databases.insert(name, node);
            }
            None => {
                if let Some(why) = entry.node.unverified {
                    self.survey.directories.entry(directory).or_default().refused.insert(name, why);
                }
            }
        }
        Ok(())
    }

    /// What the first pass has left for a directory that the walk enters.
    pub(super) fn surveyed(&mut self, directory: &Path) -> Surveyed {
        self.survey.directories.remove(directory).unwrap_or_default()
    }

    /// What the first pass has found of a single file that is a source.
    pub(super) fn surveyed_file(&mut self, path: &Path) -> (Option<Node>, Option<String>) {
        let directory = path.parent().unwrap_or(Path::new(""));
        let Some(surveyed) = self.survey.directories.get_mut(directory) else { return (None, None) };
        (surveyed.databases.remove(name_of(path)), surveyed.refused.remove(name_of(path)))
    }

    /// The node of a further name of a database that was captured by another.
    pub(super) fn other_name_of_database(&self, node: &Node) -> Option<Node> {
        let first = self.survey.groups.get(&node.hard_link?)?;
        let Node { kind, size, database, xattrs, .. } = first.clone();
        Some(Node { kind, size, database, xattrs, ..node.clone() })
    }

    /// Names what was in a directory when the databases were captured, and is not among `listed`, sorted, any more.
    pub(super) fn report_vanished(
        &self,
        directory: &Path,
        surveyed: &Surveyed,
        older: &HashMap<Vec<u8>, Node>,
        listed: &[Vec<u8>],
    ) {
        if !self.vanished.after_capture.load(Ordering::Relaxed) {
            return;
        }
        let known = older.keys().filter(|name| !surveyed.gone.contains(*name)).map(Vec::as_slice);
        let new = surveyed.new.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let is_listed = |name: &[u8]| listed.binary_search_by(|listed| listed[..].cmp(name)).is_ok();
        let mut vanished: Vec<&[u8]> = known.chain(new).filter(|name| !is_listed(name)).collect();
        vanished.sort_unstable();
        for name in vanished.into_iter().filter(|name| !surveyed.databases.contains_key(*name)) {
            self.vanished.report(&directory.join(OsStr::from_bytes(name)), self.reporter);
        }
    }

    /// Reports databases whose directories vanished after the capture, so that the walk did not come to them.
    pub(super) fn report_left_over(&self) {
        let left = self.survey.directories.iter().flat_map(|(directory, surveyed)| {
            surveyed.databases.keys().map(|name| directory.join(OsStr::from_bytes(name)))
        });
        let mut left: Vec<_> = left.collect();
        left.sort_unstable();
        for path in left {
            let why = "it is not in the snapshot: its directory vanished after it was captured";
            self.reporter.warn(Severity::Source, path.display(), why);
        }
    }
}

fn name_of(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_bytes()
}

fn find(nodes: &[Node], name: &[u8]) -> Option<usize> {
    nodes.binary_search_by(|node| node.name[..].cmp(name)).ok()
}

/// Whether what has this inode number was no database in the previous generation. An empty file may have become one
/// without becoming another file, and so may one that was not what it seemed.
fn is_known_other(older: &Node, inode: u64) -> bool {
    older.kind == NodeKind::File
        && older.inode == Some(inode)
        && older.unverified.is_none()
        && older.size.is_some_and(|size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::is_passing;

    #[test]
    fn what_comes_and_goes() {
        for name in ["a.db-journal", "a.db-wal", "x.tmp", "y~", ".nfs0012", "etilqs_ab12", "a.db-mj1A2B3C", ".#f"] {
            assert!(is_passing(name.as_bytes()), "{name}");
        }
        for name in ["1.pdf", "tmp", "a.db-mj", "x-mjz", "journal", "partial.txt"] {
            assert!(!is_passing(name.as_bytes()), "{name}");
        }
    }
}
