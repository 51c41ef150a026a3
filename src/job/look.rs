//! Looking into a snapshot: listing names, and writing out one file or database.

use std::collections::BTreeMap;
use std::io::Write;

use rayon::prelude::*;

use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::MAX_TREE_DEPTH;
use crate::format::pagemap::{PageRef, Root};
use crate::format::tree::{Database, Node, NodeKind};
use crate::id::BlobId;
use crate::repo::{Repository, Selected, Start, split_path};
use crate::report::Reporter;

/// Chunks that are read at once, of up to 16 MiB each by the format and 4 MiB by default.
const CHUNKS_AT_ONCE: usize = 4;
/// Segments that are read at once, of up to 256 KiB each.
const SEGMENTS_AT_ONCE: usize = 32;
/// Pages of a database are gathered until they have this many bytes, and then written out in order.
const WINDOW_BYTES: usize = 16 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// One line of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Path in the snapshot.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
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
    let start = selected.sub_path.join(&b'/');
    let nodes = match selected.find(repo, &[])? {
        Start::Directory(tree, _) => repo.read_tree(&tree)?,
        Start::Other(node) => return each(Listed { path: start, node: *node }),
    };
    let mut levels = vec![(start, nodes.into_iter())];
    while let Some((around, nodes)) = levels.last_mut() {
        let Some(node) = nodes.next() else {
            levels.pop();
            continue;
        };
        let mut path = around.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&node.name);
        let below = node.tree.filter(|_| recursive && node.kind == NodeKind::Directory);
        each(Listed { path: path.clone(), node })?;
        if let Some(tree) = below {
            if levels.len() >= MAX_TREE_DEPTH {
                return Err(Error::corrupt("the snapshot", "its directories are nested deeper than allowed"));
            }
            levels.push((path, repo.read_tree(&tree)?.into_iter()));
        }
    }
    Ok(())
}

/// Writes the contents of one file or database to `out`, and returns their length in bytes. The caller has loaded the
/// index. Every blob is verified before a byte of it is written, but a missing one is found only when its turn comes.
///
/// # Errors
/// [`Error::Unknown`] if nothing is there, [`Error::Refused`] for what has no contents, [`Error::Missing`] or
/// [`Error::Corrupt`], and [`Error::File`] if `out` fails.
pub fn dump(
    repo: &Repository,
    selected: &Selected,
    path: &[u8],
    out: &mut dyn Write,
    reporter: &Reporter,
) -> Result<u64> {
    let Start::Other(node) = selected.find(repo, &split_path(path))? else {
        return Err(Error::refused(
            format!("\"{}\" is a directory", String::from_utf8_lossy(path)),
            "name one file, or use `snapshot restore`",
        ));
    };
    let mut out = Output { out, written: 0, reporter };
    reporter.progress.bytes_total.store(node.size.unwrap_or(0), std::sync::atomic::Ordering::Relaxed);
    match (node.kind, &node.database) {
        (NodeKind::File, _) => dump_file(repo, &node, &mut out)?,
        (NodeKind::Database, Some(database)) => dump_database(repo, database, &mut out)?,
        _ => {
            return Err(Error::refused(
                format!("\"{}\" is neither a file nor a database", node.display_name()),
                "use `snapshot restore`",
            ));
        }
    }
    out.out.flush().map_err(|e| Error::file("write", "the output", e))?;
    Ok(out.written)
}

struct Output<'a> {
    out: &'a mut dyn Write,
    written: u64,
    reporter: &'a Reporter,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::file("write", "the output", e))?;
        self.written += bytes.len() as u64;
        self.reporter.advance(bytes.len() as u64, 0);
        self.reporter.check_interrupt()
    }

    /// Writes zeros up to an offset in the file.
    fn fill(&mut self, to: u64) -> Result<()> {
        while self.written < to {
            let n = (to - self.written).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..n])?;
        }
        Ok(())
    }
}

fn dump_file(repo: &Repository, node: &Node, out: &mut Output<'_>) -> Result<()> {
    let bad = || Error::corrupt(node.display_name(), "its blobs don't add up to its size");
    let size = node.size.unwrap_or(0);
    let content = node.content.as_ref().ok_or_else(bad)?;
    let whole = [0, size];
    let mut extents = node.extents.as_deref().unwrap_or(&whole).as_chunks::<2>().0.iter();
    let mut left = 0;
    for ids in repo.chunks(content)?.chunks(CHUNKS_AT_ONCE) {
        let read: Vec<_> = ids.par_iter().map(|id| repo.read_blob(id, BlobType::Chunk)).collect::<Result<_>>()?;
        for chunk in &read {
            let mut chunk = &chunk[..];
            while !chunk.is_empty() {
                if left == 0 {
                    let [at, bytes] = extents.next().ok_or_else(bad)?;
                    out.fill(*at)?;
                    left = *bytes;
                }
                let (now, later) = chunk.split_at(left.min(chunk.len() as u64) as usize);
                out.write(now)?;
                left -= now.len() as u64;
                chunk = later;
            }
        }
    }
    if left > 0 || extents.any(|e| e[1] > 0) {
        return Err(bad());
    }
    out.fill(size)
}

fn dump_database(repo: &Repository, database: &Database, out: &mut Output<'_>) -> Result<()> {
    let (root, leaves) = repo.read_map(&database.map)?;
    let mut hasher = blake3::Hasher::new();
    let window_pages = (WINDOW_BYTES / root.page_bytes as usize).max(1);
    for (n, id) in leaves.iter().enumerate() {
        let leaf = repo.read_leaf(id)?;
        if leaf.pages.len() != root.leaf_pages(n) {
            return Err(Error::corrupt(format!("page map leaf {id}"), "it covers another number of pages"));
        }
        for pages in leaf.pages.chunks(window_pages) {
            let bytes = gather(repo, &root, pages)?;
            hasher.update_rayon(&bytes);
            out.write(&bytes)?;
        }
    }
    if hasher.finalize().as_bytes()[..] == root.file_hash[..] {
        return Ok(());
    }
    Err(Error::corrupt(format!("page map {}", database.map), "its pages do not add up to the file captured"))
}

/// The bytes of some pages, in order; every segment is decoded once.
fn gather(repo: &Repository, root: &Root, pages: &[PageRef]) -> Result<Vec<u8>> {
    let page_bytes = root.page_bytes as usize;
    let mut by_segment: BTreeMap<BlobId, Vec<usize>> = BTreeMap::new();
    for (at, page) in pages.iter().enumerate() {
        by_segment.entry(page.segment).or_default().push(at);
    }
    let by_segment: Vec<_> = by_segment.into_iter().collect();
    let mut out = vec![0; pages.len() * page_bytes];
    for some in by_segment.chunks(SEGMENTS_AT_ONCE) {
        let decoded: Vec<_> = some.par_iter().map(|(id, _)| repo.read_segment(id)).collect::<Result<_>>()?;
        for ((id, places), decoded) in some.iter().zip(&decoded) {
            for at in places {
                let page = pages.get(*at).and_then(|p| decoded.page_with(usize::from(p.slot), &p.hash));
                let to = out.get_mut(at * page_bytes..(at + 1) * page_bytes);
                match (page, to) {
                    (Some(page), Some(to)) if page.len() == to.len() => to.copy_from_slice(page),
                    _ => return Err(Error::corrupt(format!("segment {id}"), "it does not hold a page that it should")),
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample::{CHUNK_BYTES, Sample, noise};

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
