//! Whether rows and files agree: in a snapshot of a known application, every file that a row refers to must be there.
//!
//! The database is rebuilt and read with the application's own rules ([`crate::source::preset`]); the files are looked up
//! in the snapshot's tree. Nothing of the source is touched, so that a snapshot can be checked on any machine.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::tree::{Node, NodeKind};
use crate::id::{BlobId, SnapshotId};
use crate::repo::{Named, Repository};
use crate::report::{Problem, Reporter, Severity};
use crate::source::preset::references::{Place, Read, Stop};
use crate::source::preset::{PRESETS, Preset, of_snapshot};
use crate::source::scratch::Scratch;
use crate::source::sqlite::examine::open;

/// So many missing files are named; of further ones there is only the number.
const MAX_NAMED: usize = 20;

/// What came of one application in one snapshot.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The application's directory in it.
    pub path: Vec<u8>,
    /// Which application it is.
    pub preset: &'static str,
    /// Files that rows refer to.
    pub references: u64,
    /// Of these, how many are not in the snapshot.
    pub dangling: u64,
    /// Files that no row refers to.
    pub orphans: u64,
    /// Where the application keeps its files, if that is somewhere else: then none of them is looked for.
    pub is_elsewhere: bool,
}

/// An application's directory in a snapshot.
struct Application {
    preset: &'static Preset,
    path: Vec<u8>,
    tree: BlobId,
    database: Node,
}

/// Checks these snapshots, and reports files that are missing as `severity`. Databases are rebuilt below `scratch`, one
/// at a time. An application that is the same in several snapshots is checked once.
///
/// # Errors
/// When the scratch directory can't be written, or the store doesn't answer.
pub fn check(
    repo: &Repository,
    snapshots: &[Named],
    scratch: &Path,
    severity: Severity,
    reporter: &Reporter,
) -> Result<Vec<Checked>> {
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    for named in snapshots {
        let found = applications(repo, named, reporter)?;
        if found.is_empty() {
            let why = "no known application is in it whose references could be checked";
            reporter.warn(Severity::Note, format!("snapshot {}", named.id.short()), why);
        }
        for application in found {
            if seen.insert((application.preset.name, application.tree)) {
                out.extend(check_one(repo, named.id, &application, scratch, severity, reporter)?);
            }
        }
    }
    Ok(out)
}

/// Searches a snapshot for the directories of applications: those that it was taken as, and those that look like one.
fn applications(repo: &Repository, named: &Named, reporter: &Reporter) -> Result<Vec<Application>> {
    let said = of_snapshot(named.snapshot.preset.as_deref());
    let mut out = Vec::new();
    let mut open = vec![(Vec::new(), named.snapshot.tree)];
    while let Some((path, tree)) = open.pop() {
        reporter.check_interrupt()?;
        let Some(nodes) = read_tree(repo, &tree, &path, named.id, reporter)? else { continue };
        for preset in &PRESETS {
            let is_said = said.iter().any(|said| said.name == preset.name);
            let is_beside = |name: &str| nodes.iter().any(|node| node.name[..] == *name.as_bytes());
            if !(is_said || preset.beside.is_empty() || preset.beside.iter().any(|name| is_beside(name))) {
                continue;
            }
            if let Some(database) = find(repo, &nodes, preset.database)
                && matches!(database.kind, NodeKind::Database | NodeKind::File)
            {
                out.push(Application { preset, path: path.clone(), tree, database });
                break;
            }
        }
        let is_shallow = path.iter().filter(|b| **b == b'/').count() < MAX_TREE_DEPTH;
        for node in nodes.into_iter().filter(|_| is_shallow) {
            open.extend(node.tree.map(|tree| (join(&path, &node.name), tree)));
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

/// The nodes of a directory, unless it is damaged, which is reported.
fn read_tree(
    repo: &Repository,
    tree: &BlobId,
    path: &[u8],
    snapshot: SnapshotId,
    reporter: &Reporter,
) -> Result<Option<Vec<Node>>> {
    match repo.read_tree(tree) {
        Ok(nodes) => Ok(Some(nodes)),
        Err(e) => {
            let error = repo.only_this_object(e)?;
            let what = format!("{}/ in snapshot {}", String::from_utf8_lossy(path), snapshot.short());
            super::damage(reporter, &what, error.to_string(), "run `snapshot check`, which says what it costs");
            Ok(None)
        }
    }
}

/// The node at a path below these nodes. What can't be read on the way is reported where it is searched.
fn find(repo: &Repository, nodes: &[Node], path: &str) -> Option<Node> {
    let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let node = nodes.iter().find(|node| node.name[..] == *name.as_bytes())?;
    match rest {
        None => Some(node.clone()),
        Some(rest) => find(repo, &repo.read_tree(&node.tree?).ok()?, rest),
    }
}

fn check_one(
    repo: &Repository,
    snapshot: SnapshotId,
    application: &Application,
    scratch: &Path,
    severity: Severity,
    reporter: &Reporter,
) -> Result<Option<Checked>> {
    let Application { preset, path, tree, database } = application;
    let at = join(path, preset.database.as_bytes());
    let what = format!("{} in snapshot {}", String::from_utf8_lossy(&at), snapshot.short());
    reporter.current(|| what.clone());
    let note = |why: String| reporter.warn(Severity::Note, &what, format!("its references can't be checked: {why}"));
    let Some(record) = &database.database else {
        note("it was stored as a plain file, unverified".into());
        return Ok(None);
    };
    let scratch = Scratch::new(scratch)?;
    let rebuilt = scratch.path().join("data.db");
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&rebuilt);
    let file = file.map_err(|e| Error::file("create", &rebuilt, e))?;
    if let Err(e) = repo.materialise(&record.map, &file, reporter) {
        if let Error::File { action, error, .. } = e {
            return Err(Error::File { action, path: rebuilt, error });
        }
        let error = repo.only_this_object(e)?;
        let hint = "run `snapshot check --read-data` to see which object is to blame";
        super::damage(reporter, &what, format!("it can't be rebuilt: {error}"), hint);
        return Ok(None);
    }
    let Some(mut files) = files(repo, *tree, preset, snapshot, reporter)? else { return Ok(None) };
    let mut tally = Tally { references: 0, dangling: 0, named: Vec::new() };
    let read = open(&rebuilt).map_err(Stop::Sql).and_then(|db| {
        (preset.reader)(&db, &mut |reference| {
            reporter.check_interrupt()?;
            tally.references += 1;
            match files.referred.get_mut(reference.path.as_bytes()) {
                Some(is_referred) => *is_referred = true,
                None => tally.miss(reference.row, reference.path),
            }
            Ok(())
        })
    });
    let read = match read {
        Ok(read) => read,
        Err(Stop::Ended(e)) => return Err(e),
        Err(Stop::NotThis(why)) => {
            note(format!("it is not {}'s database: {why}", preset.title));
            return Ok(None);
        }
        Err(Stop::Sql(e)) => {
            note(format!("SQLite can't read it: {e}"));
            return Ok(None);
        }
    };
    let checked = Checked {
        snapshot,
        path: path.clone(),
        preset: preset.name,
        references: tally.references,
        dangling: tally.dangling,
        orphans: files.referred.values().filter(|is_referred| !**is_referred).count() as u64,
        is_elsewhere: read.place == Place::Elsewhere
            || (read.place == Place::Unknown && !files.has_folder && tally.dangling > 0),
    };
    report(&what, preset, &checked, &tally, &read, severity, reporter);
    Ok(Some(if checked.is_elsewhere { Checked { dangling: 0, ..checked } } else { checked }))
}

/// What rows refer to.
struct Tally {
    references: u64,
    dangling: u64,
    named: Vec<String>,
}

impl Tally {
    fn miss(&mut self, row: String, path: String) {
        self.dangling += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(format!("{path} ({row})"));
        }
    }
}

fn report(
    what: &str,
    preset: &Preset,
    checked: &Checked,
    tally: &Tally,
    read: &Read,
    severity: Severity,
    reporter: &Reporter,
) {
    let folders = preset.folders.join("/, ");
    for trouble in &read.troubles {
        reporter.warn(Severity::Note, what, format!("not all of its references could be read: {trouble}"));
    }
    if checked.is_elsewhere {
        let why = match read.place {
            Place::Elsewhere => "its files are kept in S3, by its settings; they are not in the snapshot".to_owned(),
            _ => format!(
                "{} rows refer to files below {folders}/, which is not in the snapshot: right if they are kept elsewhere",
                tally.references
            ),
        };
        reporter.warn(Severity::Note, what, why);
        return;
    }
    if tally.dangling > 0 {
        let shown = super::some_of(tally.named.iter().cloned(), tally.dangling, MAX_NAMED);
        reporter.problem(Problem {
            severity,
            what: what.into(),
            why: format!(
                "missing from the snapshot: {} of the {} files that its rows refer to: {shown}",
                tally.dangling, tally.references
            ),
            hint: Some("look for them with `snapshot find NAME`; an older generation may have them".into()),
        });
    }
    if checked.orphans > 0 {
        let why = format!("no row refers to {} files below {folders}/", checked.orphans);
        reporter.warn(Severity::Note, what, why);
    }
}

/// The files that rows may refer to.
struct Files {
    /// Paths from the application's directory on, and whether a row was met that refers to them.
    referred: HashMap<Vec<u8>, bool>,
    /// Whether any of their directories is there.
    has_folder: bool,
}

/// Lists the files; `None` if a directory is damaged, which is reported.
fn files(
    repo: &Repository,
    tree: BlobId,
    preset: &Preset,
    snapshot: SnapshotId,
    reporter: &Reporter,
) -> Result<Option<Files>> {
    let mut files = Files { referred: HashMap::new(), has_folder: false };
    let Some(root) = read_tree(repo, &tree, b"", snapshot, reporter)? else { return Ok(None) };
    let mut open = Vec::new();
    for folder in preset.folders {
        let tree = find(repo, &root, folder).and_then(|node| node.tree);
        open.extend(tree.map(|tree| (folder.as_bytes().to_vec(), tree)));
    }
    files.has_folder = !open.is_empty();
    while let Some((path, tree)) = open.pop() {
        reporter.check_interrupt()?;
        let Some(nodes) = read_tree(repo, &tree, &path, snapshot, reporter)? else { return Ok(None) };
        for node in nodes {
            let path = join(&path, &node.name);
            match node.tree {
                Some(tree) if path.iter().filter(|b| **b == b'/').count() < MAX_TREE_DEPTH => open.push((path, tree)),
                Some(_) => {}
                // Of a by-product nobody says that no row refers to it.
                None => {
                    let is_byproduct = (preset.is_byproduct)(&String::from_utf8_lossy(&path));
                    files.referred.insert(path, is_byproduct);
                }
            }
        }
    }
    Ok(Some(files))
}
