//! Databases back from their page maps.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{BasePages, FrameReader, Repository, Wanted, arrange};
use crate::error::{Error, Result};
use crate::format::pagemap::{LEAF_PAGES, PageRef, Root};
use crate::format::segment::{Decoded, SlotSet};
use crate::id::BlobId;
use crate::index::Place;
use crate::report::Reporter;

/// Leaves that are dealt with at once: their pages are listed in some 8 MiB.
const WINDOW_LEAVES: usize = 32;
/// Segments that lean on others are read stretch by stretch of the file, in bytes, after those that they lean on.
const STRETCH_BYTES: u64 = 8 << 20;

/// Stretch of the file, whether it leans on others, place, id, and the pages in it with their numbers.
type Segment = (u64, bool, Place, BlobId, Vec<(u64, PageRef)>);

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
        for (number, window) in leaves.chunks(WINDOW_LEAVES).enumerate() {
            let mut pages: HashMap<BlobId, Vec<(u64, PageRef)>> = HashMap::new();
            for (leaf, id) in (number * WINDOW_LEAVES..).zip(window) {
                let read = self.read_leaf(id)?.pages;
                if read.len() != root.leaf_pages(leaf) {
                    return Err(Error::corrupt(
                        format!("page map {map}"),
                        "a leaf has another number of pages than it must",
                    ));
                }
                for (page, at) in ((leaf * LEAF_PAGES) as u64..).zip(read) {
                    pages.entry(at.segment).or_default().push((page, at));
                }
            }
            let own = file.try_clone().map_err(written)?;
            self.write_window(pages, root.page_bytes, (own, size), reporter)?;
        }
        // Older pages lay behind its end.
        file.set_len(size).map_err(written)?;
        if hash_file(file, size, reporter)?.as_bytes()[..] == root.file_hash[..] {
            Ok(root)
        } else {
            Err(Error::corrupt(format!("page map {map}"), "its pages don't make the file that was captured"))
        }
    }

    /// Writes the pages of some leaves: first those in segments that others lean on.
    fn write_window(
        &self,
        pages: HashMap<BlobId, Vec<(u64, PageRef)>>,
        page_bytes: u32,
        (file, size): (File, u64),
        reporter: &Reporter,
    ) -> Result<()> {
        let stretch_pages = (STRETCH_BYTES / u64::from(page_bytes)).max(1);
        let mut segments = Vec::new();
        let mut stretches: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for (id, pages) in pages {
            let place = self.place(&id)?;
            let stretch = pages.first().map_or(0, |(page, _)| page / stretch_pages);
            let leans = !self.index().bases(place).is_empty();
            if leans {
                stretches.entry(stretch).or_default().push(place);
            }
            segments.push((stretch, leans, place, id, pages));
        }
        let stretches: Vec<_> = stretches.into_values().collect();
        let own = file.try_clone().map_err(written)?;
        let aside = BasePages::plan(self, &stretches, page_bytes, (own, size));
        // Otherwise each is decoded once: the order of the packs is the best.
        let in_stretches = aside.is_none() && !stretches.is_empty();
        let order = |(stretch, leans, place, ..): &Segment| (if in_stretches { *stretch } else { 0 }, *leans, *place);
        segments.sort_by_key(order);
        let write = |(.., id, pages): &Segment, opened: Option<(&FrameReader, &[u8])>| {
            let wanted = pages.iter().map(|(_, at)| at.slot).collect();
            let decoded = Arc::new(self.decode_beside(id, opened, &wanted, aside.as_ref())?);
            if in_stretches {
                self.remember_base(*id, &decoded);
            }
            write_pages(id, &decoded, pages, page_bytes.into(), &file)?;
            reporter.advance(pages.len() as u64 * u64::from(page_bytes), 0);
            Ok::<_, Error>(())
        };
        let write_all = |segments: &[Segment]| {
            let places = segments.iter().map(|(_, _, place, ..)| *place);
            self.fetch_each(places, reporter, |n, opened| segments.get(n).map_or(Ok(()), |one| write(one, opened)))
        };
        let Some(aside) = &aside else { return write_all(&segments) };
        let (alone, leaning) = segments.split_at(segments.partition_point(|(_, leans, ..)| !leans));
        write_all(alone)?;
        let bases = aside.bases(self);
        let places = bases.iter().map(|base| self.place(&base.id)).collect::<Result<Vec<_>>>()?;
        self.fetch_each(places, reporter, |n, opened| {
            let Some(base) = bases.get(n) else { return Ok(()) };
            aside.set_aside(&base.id, &self.decode_beside(&base.id, opened, &base.slots, None)?)
        })?;
        write_all(leaning)
    }

    /// Fetches the frames at these places, several at a time, and hands each on with its number.
    fn fetch_each(
        &self,
        places: impl IntoIterator<Item = Place>,
        reporter: &Reporter,
        each: impl Fn(usize, Option<(&FrameReader, &[u8])>) -> Result<()> + Sync,
    ) -> Result<()> {
        let wanted = places.into_iter().enumerate().map(|(n, place)| Wanted { place, items: n..n + 1 });
        self.for_each(&arrange(self, wanted.collect()), |run| {
            reporter.check_interrupt()?;
            run.each(self, |items, opened| each(items.start, opened))
        })
    }

    /// Decodes a segment, with older pages that were set aside.
    fn decode_beside(
        &self,
        id: &BlobId,
        opened: Option<(&FrameReader, &[u8])>,
        wanted: &SlotSet,
        aside: Option<&BasePages>,
    ) -> Result<Decoded> {
        let decoded = opened.map(|(reader, body)| match aside.filter(|_| !reader.bases().is_empty()) {
            Some(aside) => aside.decode(self, id, reader, body),
            None => self.decode_segment(id, reader, body, 0),
        });
        match decoded {
            Some(Ok(decoded)) if decoded.present().holds(wanted) => Ok(decoded),
            // Another copy of it may be sound, or have pages that a prune left out of this one.
            _ => self.read_slots(id, wanted),
        }
    }
}

/// Writes the pages that one segment holds, neighbours in one go.
fn write_pages(
    segment: &BlobId,
    decoded: &Decoded,
    pages: &[(u64, PageRef)],
    page_bytes: u64,
    file: &File,
) -> Result<()> {
    let mut run = Vec::new();
    for (i, (page, at)) in pages.iter().enumerate() {
        let bytes = decoded.page_with(at.slot.into(), &at.hash).filter(|b| b.len() as u64 == page_bytes);
        let bytes = bytes.ok_or_else(|| {
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
