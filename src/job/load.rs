//! Loading the dump of a database into a PostgreSQL server: all of it, or nothing.
//!
//! Every piece is verified before `pg_restore` gets it, the last one only when the whole dump is what was dumped; until
//! then nothing that was loaded is committed.

use crate::error::{Error, Result};
use crate::format::dump::Dump;
use crate::format::tree::{Node, NodeKind};
use crate::id::BlobId;
use crate::repo::{Repository, Selected, Start, Stream};
use crate::report::{Problem, Reporter, Severity};
use crate::source::postgres::{Clean, Target, Url};

/// The directory of a snapshot that dumps are in, and how deep in it.
const FOLDER: &[u8] = b"postgres";
const DEPTH: usize = 2;

/// Where to, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server, and the database unless that has the name it had.
    pub url: Url,
    /// Which database of the snapshot, by its name there.
    pub database: Option<Vec<u8>>,
    /// What becomes of what the database holds.
    pub clean: Clean,
    /// Makes the database if there is none.
    pub create: bool,
    /// Makes the roles and tablespaces of the server, too.
    pub globals: bool,
    /// Objects get their owners and privileges; otherwise they belong to the user in the URL.
    pub owners: bool,
    /// Only looks whether it could be done.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The dump's path in the snapshot.
    pub path: Vec<u8>,
    /// Server and database.
    pub target: String,
    /// Length of the dump, in bytes.
    pub bytes: u64,
    /// Whether the database was made.
    pub created: bool,
    /// Whether roles were loaded.
    pub globals: bool,
}

/// A dump in a snapshot, with the roles of its server if they are there.
struct Found {
    path: Vec<u8>,
    node: Node,
    dump: Dump,
    globals: Option<Node>,
}

/// Loads a database. The caller has loaded the index.
///
/// # Errors
/// When the dump, the server or the repository can't be used: then the database is as it was.
pub fn run(repo: &Repository, selected: &Selected, options: &Options, reporter: &Reporter) -> Result<Summary> {
    let found = choose(repo, selected, options)?;
    let name = options.url.database().or(found.dump.database.as_ref().map(|name| &name[..])).unwrap_or_default();
    let target = Target::new(&options.url, name);
    let stream = repo.stream(&found.node)?;
    let bytes = found.node.size.unwrap_or(0);
    reporter.progress.bytes_total.store(bytes, std::sync::atomic::Ordering::Relaxed);
    let exists = target.exists(reporter)?;
    if !exists && !options.create {
        let hint = "let it be made with --create, or name another one in the URL";
        return Err(Error::refused(format!("there is no database {}", target.label()), hint));
    }
    if exists && options.clean == Clean::No && !target.is_empty(reporter)? {
        let hint = "--clean replaces what is in both; or load into another database, with --create";
        return Err(Error::refused(format!("{} is not empty", target.label()), hint));
    }
    let globals = found.globals.as_ref().filter(|_| options.globals);
    if options.globals && globals.is_none() {
        let hint = "leave --globals away, and make the roles by hand";
        return Err(Error::refused("the snapshot has no roles of that server", hint));
    }
    let summary =
        Summary { path: found.path, target: target.label(), bytes, created: !exists, globals: globals.is_some() };
    if options.dry_run {
        return Ok(summary);
    }
    if let Some(node) = globals {
        load_globals(repo, node, &target, reporter)?;
    }
    if !exists {
        let mut next = 0;
        let pieces = || {
            next += 1;
            (next <= stream.len()).then(|| repo.read_piece(&stream, next - 1)).transpose()
        };
        target.create(pieces, reporter)?;
    }
    if let Err(e) = load(repo, &stream, &found.dump, &target, options, reporter) {
        if !exists && let Err(left) = target.drop_database(reporter) {
            let why = format!("it was made and could not be dropped again: {left}");
            reporter.warn(Severity::Restore, target.label(), why);
        }
        return Err(e);
    }
    Ok(summary)
}

fn load(
    repo: &Repository,
    stream: &Stream,
    dump: &Dump,
    target: &Target,
    options: &Options,
    reporter: &Reporter,
) -> Result<()> {
    let mut load = target.load(options.clean, options.owners)?;
    let mut hasher = blake3::Hasher::new();
    for piece in 0..stream.len() {
        let bytes = repo.read_piece(stream, piece)?;
        hasher.update(&bytes);
        if piece + 1 == stream.len() && hasher.finalize().as_bytes()[..] != dump.hash[..] {
            return Err(Error::corrupt("the dump", "its pieces are not those of what was dumped"));
        }
        reporter.advance(bytes.len() as u64, 0);
        load = load.put(bytes, reporter)?;
    }
    let complaint = load.finish(reporter)?;
    if !complaint.is_empty() {
        reporter.warn(Severity::Note, target.label(), complaint.replace('\n', "; "));
    }
    Ok(())
}

/// Makes roles and tablespaces; those that are there stay as they are, but for what the snapshot says of them.
fn load_globals(repo: &Repository, node: &Node, target: &Target, reporter: &Reporter) -> Result<()> {
    let stream = repo.stream(node)?;
    let pieces = (0..stream.len()).map(|piece| repo.read_piece(&stream, piece)).collect::<Result<Vec<_>>>()?;
    for why in target.load_globals(pieces.concat(), reporter)? {
        reporter.problem(Problem {
            severity: Severity::Restore,
            what: format!("roles of {}", target.label()),
            why,
            hint: Some("make the role or tablespace by hand, then load the database again".into()),
        });
    }
    Ok(())
}

/// Finds the dump that is meant.
fn choose(repo: &Repository, selected: &Selected, options: &Options) -> Result<Found> {
    let mut all = Vec::new();
    match selected.find(repo, &[])? {
        Start::Directory(tree, _) if selected.sub_path.is_empty() => {
            let nodes = repo.read_tree(&tree)?;
            let folder = nodes.into_iter().find(|node| node.name[..] == *FOLDER).and_then(|node| node.tree);
            folder.map_or(Ok(()), |tree| collect(repo, tree, FOLDER, DEPTH, &mut all))?;
        }
        Start::Directory(tree, _) => collect(repo, tree, &selected.sub_path.join(&b'/'), DEPTH, &mut all)?,
        Start::Other(node) => {
            let above = Selected {
                named: selected.named.clone(),
                sub_path: selected.sub_path[..selected.sub_path.len() - 1].to_vec(),
            };
            if let Start::Directory(tree, _) = above.find(repo, &[])? {
                collect(repo, tree, &above.sub_path.join(&b'/'), 0, &mut all)?;
            }
            all.retain(|found| found.node.name == node.name);
        }
    }
    let names: Vec<String> = all.iter().map(|found| String::from_utf8_lossy(&found.path).into_owned()).collect();
    let is_named = |found: &Found, name: &[u8]| found.dump.database.as_ref().is_some_and(|own| own[..] == *name);
    let several = all.len() > 1;
    if let Some(name) = &options.database {
        all.retain(|found| is_named(found, name));
    } else if let Some(name) = options.url.database().filter(|name| several && all.iter().any(|f| is_named(f, name))) {
        all.retain(|found| is_named(found, name));
    }
    match (all.pop(), all.is_empty(), names.is_empty()) {
        (Some(found), true, _) => Ok(found),
        (_, _, true) => Err(Error::refused(
            "the snapshot has no dump of a PostgreSQL database",
            "look with `snapshot ls`; such dumps are made by `snapshot create --postgres`",
        )),
        _ => Err(Error::refused(
            format!("the snapshot has several databases, or none of that name: {}", names.join(", ")),
            "name one with --postgres-database, or by its path behind a colon, as in latest:postgres/app.dump",
        )),
    }
}

/// The dumps in a directory, and so many levels below it.
fn collect(repo: &Repository, tree: BlobId, path: &[u8], depth: usize, out: &mut Vec<Found>) -> Result<()> {
    let nodes = repo.read_tree(&tree)?;
    let is = |node: &Node, kind: &str| node.dump.as_ref().is_some_and(|dump| dump.kind == kind);
    let globals = nodes.iter().find(|node| is(node, Dump::POSTGRES_GLOBALS)).cloned();
    for node in nodes {
        let path = [path, &node.name].join(&b'/');
        match (&node.dump, node.kind, node.tree) {
            (Some(dump), ..) if dump.kind == Dump::POSTGRES => {
                let dump = dump.clone();
                out.push(Found { path, node, dump, globals: globals.clone() });
            }
            (_, NodeKind::Directory, Some(tree)) if depth > 0 => collect(repo, tree, &path, depth - 1, out)?,
            _ => {}
        }
    }
    Ok(())
}
