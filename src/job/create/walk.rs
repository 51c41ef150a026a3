//! The walking end of a create: lists directories, recognises what is unchanged, puts the databases that the first pass
//! ([`super::survey`]) has captured where they belong, feeds the rest to the workers.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::database::sidecar_owner;
use super::pipeline::{Event, Feeder};
use super::presets::Chosen;
use super::small::SmallFile;
use super::sources::Top;
use super::survey::{Survey, Surveyed, Vanished};
use super::{Options, RACY_SECS};
use crate::chunker::Chunker;
use crate::error::Result;
use crate::format::cbor::Time;
use crate::format::tree::{Node, NodeKind};
use crate::repo::{Claims, Repository};
use crate::report::{Reporter, Severity};
use crate::source::exclude::{CACHE_TAG_NAME, Excludes, is_cache};
use crate::source::stat;

/// Owners seen, for the names in the snapshot.
#[derive(Default)]
pub struct Owners {
    /// User numbers.
    pub users: HashSet<u32>,
    /// Group numbers.
    pub groups: HashSet<u32>,
}

/// Walks the sources.
pub struct Walker<'a> {
    pub(super) repo: &'a Repository,
    pub(super) options: &'a Options,
    pub(super) reporter: &'a Reporter,
    pub(super) feeder: Feeder,
    pub(super) claims: Claims,
    pub(super) chunker: Chunker,
    /// When the previous generation was taken: what changed shortly before is read again.
    pub(super) previous_start: Option<Time>,
    pub(super) owners: Owners,
    /// Numbers of the groups of hard links, by device and inode.
    links: HashMap<(u64, u64), u64>,
    /// The groups of which one name was handed on: the others come after it and refer to it.
    begun: HashSet<u64>,
    pub(super) excludes: Excludes,
    chosen: Chosen,
    device: Option<u64>,
    pub(super) survey: Survey,
    pub(super) vanished: Arc<Vanished>,
}

/// A name in a directory that is to be saved.
pub(super) struct Entry {
    pub path: PathBuf,
    pub meta: Metadata,
    pub node: Node,
}

impl<'a> Walker<'a> {
    /// A walker at the beginning.
    ///
    /// # Errors
    /// When the excludes can't be read.
    pub fn new(
        repo: &'a Repository,
        options: &'a Options,
        reporter: &'a Reporter,
        feeder: Feeder,
        claims: Claims,
        vanished: Arc<Vanished>,
    ) -> Result<Self> {
        Ok(Self {
            claims,
            repo,
            options,
            reporter,
            feeder,
            chunker: Chunker::new(&repo.config().chunker, &repo.keys().chunker.0),
            previous_start: None,
            owners: Owners::default(),
            links: HashMap::new(),
            begun: HashSet::new(),
            excludes: Excludes::new(Path::new("/"), &[], &options.excludes, &options.exclude_files)?,
            chosen: Chosen::default(),
            device: None,
            survey: Survey::default(),
            vanished,
        })
    }

    /// The same, leaving out what the applications' presets leave out.
    pub fn leaving_out(self, chosen: Chosen) -> Self {
        Self { chosen, ..self }
    }

    /// Walks everything; `older` is the root of the previous generation, with the time it was begun.
    ///
    /// # Errors
    /// When the run as a whole fails. What concerns one file is reported.
    pub fn run(mut self, top: &Top, older: Option<(Node, Time)>) -> Result<Owners> {
        let (older, time) = older.unzip();
        self.previous_start = time;
        self.feeder.event(Event::Enter(Box::new(Node::bare(b"root", NodeKind::Directory))))?;
        // Before any file is read: what rows refer to is there then.
        self.dumps(older.as_ref())?;
        if let Some(stdin) = &self.options.stdin {
            self.stdin(stdin)?;
        } else {
            self.survey(top, older.as_ref())?;
            match &top.source {
                Some(source) => {
                    self.enter_source(source)?;
                    self.contents(source, older.as_ref())?;
                }
                None => self.top(top, older.as_ref())?,
            }
            self.report_left_over();
        }
        self.feeder.event(Event::Leave)?;
        self.feeder.flush()?;
        Ok(self.owners)
    }

    /// What leads to the sources.
    fn top(&mut self, top: &Top, older: Option<&Node>) -> Result<()> {
        let older = self.older_nodes(older);
        for (name, below) in &top.below {
            let older = older.get(name);
            match &below.source {
                Some(source) => self.source(name, source, older)?,
                None => {
                    let node = match fs::metadata(&below.path) {
                        Ok(meta) => self.node(name, &meta),
                        Err(_) => Node::bare(name, NodeKind::Directory),
                    };
                    self.feeder.event(Event::Enter(Box::new(Node { kind: NodeKind::Directory, ..node })))?;
                    self.top(below, older)?;
                    self.feeder.event(Event::Leave)?;
                }
            }
        }
        Ok(())
    }

    /// A source as the user named it: a symbolic link to a directory stands for that directory.
    fn source(&mut self, name: &[u8], path: &Path, older: Option<&Node>) -> Result<()> {
        self.enter_source(path)?;
        let meta = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(meta),
            _ => fs::symlink_metadata(path),
        };
        match meta {
            Ok(meta) => {
                let mut entry = self.stat(name, path.to_path_buf(), meta);
                let (node, refused) = self.surveyed_file(path);
                entry.node.unverified = refused;
                match node {
                    Some(node) => self.place(Node { name: name.to_vec().into(), ..node }),
                    None => self.entry(entry, older),
                }
            }
            Err(e) => {
                self.reporter.warn(Severity::Source, path.display(), format!("it can't be read: {e}"));
                Ok(())
            }
        }
    }

    pub(super) fn enter_source(&mut self, path: &Path) -> Result<()> {
        self.device = fs::metadata(path).ok().map(|m| m.dev());
        self.excludes =
            Excludes::new(path, self.chosen.patterns(path), &self.options.excludes, &self.options.exclude_files)?;
        Ok(())
    }

    pub(super) fn older_nodes(&self, older: Option<&Node>) -> HashMap<Vec<u8>, Node> {
        let tree = older.and_then(|node| node.tree);
        let nodes = tree.and_then(|tree| self.repo.read_tree(&tree).ok()).unwrap_or_default();
        nodes.into_iter().map(|node| (node.name.to_vec(), node)).collect()
    }

    /// Whatever is in a directory: the databases as they were captured, whatever became of their names since, then all
    /// else as it is now.
    fn contents(&mut self, directory: &Path, older: Option<&Node>) -> Result<()> {
        self.reporter.check_interrupt()?;
        self.reporter.current(|| directory.display().to_string());
        let older = self.older_nodes(older);
        let mut surveyed = self.surveyed(directory);
        let mut captured: HashSet<Vec<u8>> = surveyed.databases.keys().cloned().collect();
        let mut others = Vec::new();
        for mut entry in self.list(directory, &surveyed, &older) {
            if captured.contains(&*entry.node.name) {
                continue;
            }
            let older = older.get(&*entry.node.name);
            if let Some(why) = surveyed.refused.remove(&*entry.node.name) {
                entry.node.unverified = Some(why);
            } else if let Some(node) = self.other_name_of_database(&entry.node) {
                self.place(node)?;
                continue;
            } else if let Some(node) = self.database(&mut entry, older)? {
                // It has come, or become one, after the others were captured.
                captured.insert(node.name.to_vec());
                self.place(node)?;
                continue;
            }
            others.push(entry);
        }
        surveyed.databases.into_values().try_for_each(|node| self.place(node))?;
        for entry in others {
            // A sidecar is part of the database that was captured beside it.
            if sidecar_owner(&entry.node.name).is_none_or(|owner| !captured.contains(owner)) {
                let older = older.get(&*entry.node.name);
                self.entry(entry, older)?;
            }
        }
        Ok(())
    }

    /// Hands on the node of a captured database.
    fn place(&mut self, node: Node) -> Result<()> {
        self.begin(&node);
        Ok(self.feeder.event(Event::Node(Box::new(node)))?)
    }

    /// The entries of a directory that are to be saved, by name. What can't be read, and what has vanished since the
    /// databases were captured, is reported.
    fn list(&mut self, directory: &Path, surveyed: &Surveyed, older: &HashMap<Vec<u8>, Node>) -> Vec<Entry> {
        let mut out = Vec::new();
        let mut names = match fs::read_dir(directory) {
            Ok(entries) => {
                let mut names = Vec::new();
                for entry in entries {
                    match entry {
                        Ok(entry) => names.push(entry.file_name().into_vec()),
                        Err(e) => self.unreadable(directory, &e),
                    }
                }
                names
            }
            Err(e) => {
                self.unreadable(directory, &e);
                return out;
            }
        };
        names.sort_unstable();
        self.report_vanished(directory, surveyed, older, &names);
        if self.options.exclude_caches && is_cache(directory) {
            names.retain(|name| name == CACHE_TAG_NAME.as_bytes());
        }
        for name in &names {
            let path = directory.join(OsStr::from_bytes(name));
            match fs::symlink_metadata(&path) {
                Ok(meta) if self.is_wanted(&path, &meta, true) => out.push(self.stat(name, path, meta)),
                Ok(_) => {}
                Err(e) => self.unreadable(&path, &e),
            }
        }
        out
    }

    pub(super) fn unreadable(&self, path: &Path, error: &std::io::Error) {
        if error.kind() == ErrorKind::NotFound {
            return self.vanished.report(path, self.reporter);
        }
        self.reporter.warn(Severity::Source, path.display(), format!("it can't be read: {error}"));
    }

    /// Whether it is to be saved. `tells` says of the repository written to that it is left out.
    pub(super) fn is_wanted(&self, path: &Path, meta: &Metadata, tells: bool) -> bool {
        if self.excludes.excludes(path, meta.is_dir()) {
            return false;
        }
        if !meta.is_dir() {
            return true;
        }
        if self.options.one_file_system && self.device.is_some_and(|d| d != meta.dev()) {
            return false;
        }
        let is_own = super::is_repository(path, self.repo.config());
        if is_own && tells {
            self.reporter.warn(Severity::Note, path.display(), "left out: it is the repository written to");
        }
        !is_own
    }

    fn node(&mut self, name: &[u8], meta: &Metadata) -> Node {
        self.owners.users.insert(meta.uid());
        self.owners.groups.insert(meta.gid());
        stat::node(name, meta)
    }

    pub(super) fn stat(&mut self, name: &[u8], path: PathBuf, meta: Metadata) -> Entry {
        let mut node = self.node(name, &meta);
        if node.kind == NodeKind::File && meta.nlink() > 1 {
            let next = self.links.len() as u64 + 1;
            node.hard_link = Some(*self.links.entry((meta.dev(), meta.ino())).or_insert(next));
        }
        Entry { path, meta, node }
    }

    /// Whether it is a further name of a file that was handed on. Names are listed in another order than they are
    /// handed on: what is in a directory comes before the names that follow that directory's.
    pub(super) fn is_further_name(&self, node: &Node) -> bool {
        node.hard_link.is_some_and(|group| self.begun.contains(&group))
    }

    /// Notes that a name is handed on.
    pub(super) fn begin(&mut self, node: &Node) {
        self.begun.extend(node.hard_link);
    }

    fn entry(&mut self, mut entry: Entry, older: Option<&Node>) -> Result<()> {
        self.reporter.check_interrupt()?;
        if entry.node.kind == NodeKind::File {
            return self.file(entry, older);
        }
        self.add_xattrs(&entry.path, &mut entry.node);
        match entry.node.kind {
            NodeKind::Directory => {
                self.feeder.event(Event::Enter(Box::new(entry.node)))?;
                self.contents(&entry.path, older)?;
                self.feeder.event(Event::Leave)?;
                return Ok(());
            }
            NodeKind::Symlink => match stat::link_target(&entry.path) {
                Ok(target) => entry.node.target = Some(target.into()),
                Err(e) => {
                    self.unreadable(&entry.path, &e);
                    return Ok(());
                }
            },
            _ => {}
        }
        self.reporter.advance(0, 1);
        Ok(self.feeder.event(Event::Node(Box::new(entry.node)))?)
    }

    pub(super) fn add_xattrs(&self, path: &Path, node: &mut Node) {
        match stat::xattrs(path) {
            Ok(xattrs) => node.xattrs = xattrs,
            Err(e) => {
                let why = format!("its extended attributes can't be read: {e}");
                self.reporter.warn(Severity::Source, path.display(), why);
            }
        }
    }

    fn file(&mut self, mut entry: Entry, older: Option<&Node>) -> Result<()> {
        if self.is_further_name(&entry.node) {
            self.add_xattrs(&entry.path, &mut entry.node);
            return Ok(self.feeder.event(Event::Link(Box::new(entry.node)))?);
        }
        self.begin(&entry.node);
        if let Some(older) = older
            && self.is_unchanged(&entry.node, older)
        {
            let Node { content, extents, xattrs, unverified, .. } = older.clone();
            self.reporter.advance(entry.meta.size(), 1);
            return Ok(self.feeder.event(Event::Node(Box::new(Node {
                content,
                extents,
                xattrs,
                unverified,
                ..entry.node
            })))?);
        }
        self.add_xattrs(&entry.path, &mut entry.node);
        self.read_file(entry.path, entry.node)
    }

    /// Reads a file as plain bytes, whatever it is.
    pub(super) fn read_file(&mut self, path: PathBuf, node: Node) -> Result<()> {
        if node.size.unwrap_or(0) <= self.chunker.min_bytes() as u64 {
            return Ok(self.feeder.small(SmallFile { path, node })?);
        }
        self.reporter.current(|| path.display().to_string());
        self.large(&path, node)
    }

    /// A file is taken for unchanged if stat says so, nothing happened to it shortly before the previous generation,
    /// and everything it consists of can be relied on.
    fn is_unchanged(&self, node: &Node, older: &Node) -> bool {
        let same = older.kind == NodeKind::File
            && (node.size, node.mtime, node.ctime, node.inode) == (older.size, older.mtime, older.ctime, older.inode)
            && older.unverified.is_none();
        let settled = self
            .previous_start
            .zip(node.ctime)
            .is_some_and(|(start, ctime)| ctime.secs + RACY_SECS <= start.secs && node.mtime.secs <= start.secs);
        if !same || !settled {
            return false;
        }
        let Some(content) = &older.content else { return false };
        let chunks = self.repo.chunks(content).unwrap_or_default();
        let lists = if content.level > 0 { content.ids().unwrap_or_default() } else { Vec::new() };
        let index = self.repo.index();
        let whole = !chunks.is_empty() || older.size == Some(0);
        whole && chunks.iter().chain(&lists).all(|id| index.is_usable(id))
    }
}
