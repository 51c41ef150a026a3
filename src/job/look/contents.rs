//! The contents of files and databases, streamed in order. Every blob is verified before a byte of it is written.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::pagemap::{PageRef, Root};
use crate::format::tree::{Database, Node, NodeKind};
use crate::id::BlobId;
use crate::repo::{Repository, Selected, Start, split_path};
use crate::report::Reporter;

/// Chunks that are read at once, of up to 16 MiB each by the format and 4 MiB by default.
const CHUNKS_AT_ONCE: usize = 4;
/// Segments that are read at once, of up to 1 MiB each.
const SEGMENTS_AT_ONCE: usize = 16;
/// Pages of a database are gathered until they have this many bytes, and then written out in order.
const WINDOW_BYTES: usize = 16 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes the contents of one file or database to `out`, and returns their length in bytes. The caller has loaded the
/// index. Every blob is verified before a byte of it is written; a damaged one is found only when its turn comes.
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
            "have it as an archive with `snapshot dump --archive tar`",
        ));
    };
    let mut out = Output { out, written: 0, holes: true, reporter };
    reporter.progress.bytes_total.store(node.size.unwrap_or(0), Ordering::Relaxed);
    if !out.contents(repo, &node)? {
        return Err(Error::refused(
            format!("\"{}\" is neither a file nor a database", node.display_name()),
            "use `snapshot restore`, or `snapshot dump --archive tar`",
        ));
    }
    out.out.flush().map_err(|e| Error::file("write", "the output", e))?;
    Ok(out.written)
}

/// Where contents go.
pub(super) struct Output<'a> {
    pub out: &'a mut dyn Write,
    /// Bytes written so far.
    pub written: u64,
    /// Whether holes are written as zeros; otherwise they are left out.
    pub holes: bool,
    pub reporter: &'a Reporter,
}

impl Output<'_> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::file("write", "the output", e))?;
        self.written += bytes.len() as u64;
        self.reporter.advance(bytes.len() as u64, 0);
        self.reporter.check_interrupt()
    }

    /// Writes zeros up to an offset in the file.
    fn fill(&mut self, to: u64) -> Result<()> {
        while self.holes && self.written < to {
            let n = (to - self.written).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..n])?;
        }
        Ok(())
    }

    /// Writes what a node holds; `false` if it is of a kind that holds nothing.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], and [`Error::File`] if the output fails.
    pub(super) fn contents(&mut self, repo: &Repository, node: &Node) -> Result<bool> {
        match (node.kind, &node.database) {
            (NodeKind::File, _) => self.file(repo, node)?,
            (NodeKind::Database, Some(database)) => self.database(repo, database)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn file(&mut self, repo: &Repository, node: &Node) -> Result<()> {
        let bad = || Error::corrupt(node.display_name(), "its blobs don't add up to its size");
        let size = node.size.unwrap_or(0);
        let stream = repo.stream(node)?;
        let whole = [0, size];
        let mut extents = node.extents.as_deref().unwrap_or(&whole).as_chunks::<2>().0.iter();
        let mut left = 0;
        for first in (0..stream.len()).step_by(CHUNKS_AT_ONCE) {
            let pieces = first..stream.len().min(first + CHUNKS_AT_ONCE);
            let read: Vec<_> = pieces.into_par_iter().map(|n| repo.read_piece(&stream, n)).collect::<Result<_>>()?;
            for chunk in &read {
                let mut chunk = &chunk[..];
                while !chunk.is_empty() {
                    if left == 0 {
                        let [at, bytes] = extents.next().ok_or_else(bad)?;
                        self.fill(*at)?;
                        left = *bytes;
                    }
                    let (now, later) = chunk.split_at(left.min(chunk.len() as u64) as usize);
                    self.write(now)?;
                    left -= now.len() as u64;
                    chunk = later;
                }
            }
        }
        if left > 0 || extents.any(|e| e[1] > 0) {
            return Err(bad());
        }
        self.fill(size)
    }

    fn database(&mut self, repo: &Repository, database: &Database) -> Result<()> {
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
                self.write(&bytes)?;
            }
        }
        if hasher.finalize().as_bytes()[..] == root.file_hash[..] {
            return Ok(());
        }
        Err(Error::corrupt(format!("page map {}", database.map), "its pages do not add up to the file captured"))
    }
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
