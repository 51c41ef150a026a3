//! Looking into one snapshot: listing names, and writing out files, databases and whole directories.
//!
//! Reads from the repository only, and writes to nothing but what it is given.

mod archive;
mod contents;

use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::pagemap::Root;
use crate::format::tree::{Database, Node, NodeKind};
use crate::repo::{Repository, Selected, Start};

pub use archive::archive;
pub use contents::dump;

/// One line of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Path in the snapshot.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
    /// How many directories lie between it and the place where the listing began.
    pub depth: usize,
    /// Whether nothing else follows in its directory.
    pub is_last: bool,
}

/// Lists what is in the selected directory, or the selected file; with `recursive` everything below, each directory
/// before what is in it.
///
/// # Errors
/// [`Error::Unknown`] if nothing is there, [`Error::Missing`] or [`Error::Corrupt`] for a directory that can't be read,
/// and what `each` returns.
pub fn ls(
    repo: &Repository,
    selected: &Selected,
    recursive: bool,
    each: &mut dyn FnMut(Listed) -> Result<()>,
) -> Result<()> {
    walk(repo, selected.find(repo, &[])?, selected.sub_path.join(&b'/'), recursive, each)
}

/// The same from a place that was found; `path` is what its path is shown as.
fn walk(
    repo: &Repository,
    start: Start,
    path: Vec<u8>,
    recursive: bool,
    each: &mut dyn FnMut(Listed) -> Result<()>,
) -> Result<()> {
    let nodes = match start {
        Start::Directory(tree, _) => repo.read_tree(&tree)?,
        Start::Other(node) => return each(Listed { path, node: *node, depth: 0, is_last: true }),
    };
    let mut levels = vec![(path, nodes.into_iter())];
    while let Some((around, nodes)) = levels.last_mut() {
        let Some(node) = nodes.next() else {
            levels.pop();
            continue;
        };
        let is_last = nodes.as_slice().is_empty();
        let mut path = around.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&node.name);
        let below = node.tree.filter(|_| recursive && node.kind == NodeKind::Directory);
        each(Listed { path: path.clone(), node, depth: levels.len() - 1, is_last })?;
        if let Some(tree) = below {
            if levels.len() >= MAX_TREE_DEPTH {
                return Err(Error::corrupt("the snapshot", "its directories are nested deeper than allowed"));
            }
            levels.push((path, repo.read_tree(&tree)?.into_iter()));
        }
    }
    Ok(())
}

/// Length of a page in bytes, and number of pages, of a captured database.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Corrupt`].
pub fn database_pages(repo: &Repository, database: &Database) -> Result<(u32, u64)> {
    let bytes = repo.read_blob(&database.map, BlobType::Map)?;
    let root = Root::decode(&bytes).map_err(|why| Error::corrupt(format!("page map {}", database.map), why))?;
    Ok((root.page_bytes, root.pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample::{CHUNK_BYTES, Sample, noise};
    use crate::report::Reporter;

    #[test]
    fn files_holes_and_databases_are_written_out() {
        let mut sample = Sample::new();
        let data = noise(1, CHUNK_BYTES * 6 + 5);
        let extents = vec![10, 30_000, 200_000, data.len() as u64 - 30_000, 400_000, 0];
        let sparse = Node { size: Some(400_000), extents: Some(extents), ..sample.file("sparse", &data) };
        let short = Node { size: Some(6), ..sample.file("short", b"seven!!") };
        let database = noise(2, 512 * 300);
        let mut pages = sample.pages(512, &database);
        let node = sample.database("data.db", 512, &database, &pages);
        pages.swap(0, 1);
        let bad = sample.database("bad.db", 512, &database, &pages);
        let app = sample.directory("app", vec![sparse, node, bad, short]);
        let selected = sample.snapshot(vec![app]);
        let reporter = Reporter::silent();
        let dumped = |path: &str| {
            let mut out = vec![];
            dump(&sample.repo, &selected, path.as_bytes(), &mut out, &reporter).map(|n| (n, out))
        };

        let (n, out) = dumped("/app/sparse").unwrap();
        let mut want = vec![0; 400_000];
        want[10..30_010].copy_from_slice(&data[..30_000]);
        want[200_000..][..data.len() - 30_000].copy_from_slice(&data[30_000..]);
        assert!(n == 400_000 && out == want);
        assert_eq!(dumped("app/data.db").unwrap().1, database);
        assert!(matches!(dumped("app/bad.db"), Err(Error::Corrupt { .. })));
        assert!(matches!(dumped("app/short"), Err(Error::Corrupt { .. })));
        assert!(matches!(dumped("app"), Err(Error::Refused { .. })));
        assert!(matches!(dumped("app/none"), Err(Error::Unknown { .. })));
    }

    #[test]
    fn listings_and_selections() {
        let mut sample = Sample::new();
        let files = vec![sample.file("b", b"b"), sample.file("a", b"a")];
        let app = sample.directory("app", files);
        let first = sample.snapshot(vec![app.clone()]);
        let second = sample.snapshot(vec![app]);
        let reporter = Reporter::silent();
        let select = |text: &str| sample.repo.select(text, &Default::default(), &reporter);
        let list = |text: &str, recursive| {
            let mut paths = vec![];
            let selected = select(text).unwrap();
            ls(&sample.repo, &selected, recursive, &mut |l| {
                paths.push(String::from_utf8(l.path).unwrap());
                Ok(())
            })
            .unwrap();
            paths
        };
        assert_eq!(list("latest", true), ["app", "app/a", "app/b"]);
        assert_eq!(list("latest", false), ["app"]);
        assert_eq!(list("latest:/app/", false), ["app/a", "app/b"]);
        assert_eq!(list("latest~1:app/b", false), ["app/b"]);

        assert_eq!(select("latest").unwrap().named.id, second.named.id);
        assert_eq!(select("latest~1").unwrap().named.id, first.named.id);
        let id = first.named.id.to_string().to_ascii_uppercase();
        assert_eq!(select(&id[..12]).unwrap().named.id, first.named.id);
        for unknown in ["latest~2", &id[..1], "../x", ""] {
            assert!(matches!(select(unknown), Err(Error::Unknown { .. })), "{unknown}");
        }
        let filter = crate::repo::Filter { sources: vec!["/other".into()], ..Default::default() };
        assert!(sample.repo.select("latest", &filter, &reporter).is_err());
    }
}
