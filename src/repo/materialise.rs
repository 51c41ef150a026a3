//! Databases back from their page maps.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rayon::prelude::*;

use super::Repository;
use crate::error::{Error, Result};
use crate::format::pagemap::{LEAF_PAGES, PageRef, Root};
use crate::format::segment::SlotSet;
use crate::id::BlobId;
use crate::report::Reporter;

/// How much of the file is read back at a time, in bytes.
const READ_BACK_BYTES: usize = 4 << 20;

impl Repository {
    /// Writes all pages of a database into `file`, verified, and verifies the whole file's hash by reading it back.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`] where the repository lacks something, and [`Error::File`] where the file
    /// can't be written.
    pub fn materialise(&self, map: &BlobId, file: &File, reporter: &Reporter) -> Result<Root> {
        let (root, leaves) = self.read_map(map)?;
        let page_bytes = u64::from(root.page_bytes);
        let size = root.pages * page_bytes;
        file.set_len(size).map_err(written)?;
        for (number, leaf) in leaves.iter().enumerate() {
            let pages = self.read_leaf(leaf)?.pages;
            if pages.len() != root.leaf_pages(number) {
                return Err(Error::corrupt(
                    format!("page map {map}"),
                    "a leaf has another number of pages than it must",
                ));
            }
            let mut by_segment: HashMap<BlobId, Vec<(u64, PageRef)>> = HashMap::new();
            for (page, at) in ((number * LEAF_PAGES) as u64..).zip(pages) {
                by_segment.entry(at.segment).or_default().push((page, at));
            }
            let mut by_segment: Vec<_> = by_segment.into_iter().collect();
            let mut bases = HashSet::new();
            {
                // Those that lean on others come after these, which are kept that long.
                let index = self.index();
                let place = |id: &BlobId| index.find(id).map(|place| (!index.bases(place).is_empty(), place));
                by_segment.sort_by_cached_key(|(segment, _)| place(segment));
                let leans_on = by_segment.iter().filter_map(|(id, _)| index.find(id)).flat_map(|p| index.bases(p));
                bases.extend(leans_on.map(|base| base.id));
            }
            by_segment.par_iter().try_for_each(|(segment, pages)| {
                reporter.check_interrupt()?;
                self.write_pages(segment, pages, bases.contains(segment), page_bytes, file)?;
                reporter.advance(pages.len() as u64 * page_bytes, 0);
                Ok::<_, Error>(())
            })?;
        }
        if hash_file(file, size, reporter)?.as_bytes()[..] == root.file_hash[..] {
            Ok(root)
        } else {
            Err(Error::corrupt(format!("page map {map}"), "its pages don't make the file that was captured"))
        }
    }

    /// Writes the pages that one segment holds, neighbours in one go.
    fn write_pages(
        &self,
        segment: &BlobId,
        pages: &[(u64, PageRef)],
        is_base: bool,
        page_bytes: u64,
        file: &File,
    ) -> Result<()> {
        let mut wanted = SlotSet::default();
        pages.iter().for_each(|(_, at)| wanted.insert(at.slot));
        let decoded = Arc::new(self.read_slots(segment, &wanted)?);
        if is_base {
            self.remember_base(*segment, &decoded);
        }
        let mut run = Vec::new();
        for (i, (page, at)) in pages.iter().enumerate() {
            let slot = usize::from(at.slot);
            let bytes = decoded.page(slot).filter(|b| b.len() as u64 == page_bytes);
            let bytes = bytes.filter(|_| decoded.hashes.get(slot) == Some(&at.hash)).ok_or_else(|| {
                Error::corrupt(format!("segment {segment}"), format!("page {} of the database is not in it", page + 1))
            })?;
            run.extend_from_slice(bytes);
            if pages.get(i + 1).is_none_or(|next| next.0 != page + 1) {
                let start = (page + 1) * page_bytes - run.len() as u64;
                file.write_all_at(&run, start).map_err(written)?;
                run.clear();
            }
        }
        Ok(())
    }
}

fn hash_file(file: &File, size: u64, reporter: &Reporter) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BACK_BYTES];
    let mut at = 0;
    while at < size {
        reporter.check_interrupt()?;
        let n = (size - at).min(READ_BACK_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at).map_err(|e| Error::file("read back", "the restored database", e))?;
        hasher.update_rayon(&buffer[..n]);
        at += n as u64;
    }
    Ok(hasher.finalize())
}

fn written(error: std::io::Error) -> Error {
    Error::file("write", "the restored database", error)
}
