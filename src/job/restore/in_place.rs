//! Rewriting a database where it is: only the pages that differ, under SQLite's locks and a journal of its own kind.
//!
//! It needs room for those pages once more, and not for a second database. A crash at any moment leaves a journal that
//! SQLite rolls back by itself ([`crate::source::journal`]), and so the old database; when the journal is gone, the new
//! one is there, whole, hashed, and checked by SQLite.

use rayon::prelude::*;

use super::context::Context;
use super::database::{READ_BACK_BYTES, WINDOW_LEAVES, Window, not_captured, read_back};
use super::existing::Reuse;
use super::verify;
use super::write::Part;
use crate::error::{Error, Result};
use crate::format::pagemap::Root;
use crate::id::BlobId;
use crate::source::exclusive::Exclusive;
use crate::source::journal::{Journal, Main};
use crate::source::sqlite::{HEADER_BYTES, Header};
use crate::source::temporary::read_exact_at;

/// A database that is being rewritten.
struct Rewrite<'a> {
    context: &'a Context<'a>,
    part: &'a Part,
    root: &'a Root,
    leaves: &'a [BlobId],
    main: Main<'a>,
    /// Pages that it has now.
    pages_before: u32,
    /// Numbers of the pages that differ, counted from 0, in order.
    differing: Vec<u32>,
}

/// Rewrites the database that is there. `false` if that is not wanted or not possible: nothing was changed then, and it
/// is to be written beside.
///
/// # Errors
/// If any page can't be had, or the file does not come out as it was; then it is again what it was before.
pub(super) fn write(context: &Context<'_>, part: &Part, root: &Root, leaves: &[BlobId]) -> Result<bool> {
    let is_only_name = || Ok::<_, Error>(part.folder.stat(&part.node.name)?.is_some_and(|stat| stat.st_nlink == 1));
    // Further names of the file may be another application's, or a copy that was kept.
    if !context.options.in_place || part.reuse != Reuse::Copy || !is_only_name()? {
        return Ok(false);
    }
    let alone = Exclusive::take(&part.folder, &part.node.name, context.options.force)?;
    let Some(file) = alone.main() else { return Ok(false) };
    let Some(pages_before) = pages_of(file, root.page_bytes) else { return Ok(false) };
    // What is left beside it holds nothing any more.
    part.remove_stale()?;
    let main = Main { file, path: part.path() };
    let mut rewrite = Rewrite { context, part, root, leaves, main, pages_before, differing: Vec::new() };
    let mut journal = Journal::begin(&part.folder, &part.node.name, file, root.page_bytes, pages_before)?;
    rewrite.compare(&mut journal)?;
    journal.seal()?;
    if let Err(error) = rewrite.run() {
        return Err(match journal.roll_back(&rewrite.main) {
            Ok(()) => error,
            Err(failed) => Error::refused(
                format!("{error}; and the old pages could not be put back: {failed}"),
                "open the database once with its application, or with sqlite3: that puts them back from its journal",
            ),
        });
    }
    journal.commit()?;
    context.attributes.apply_over(file, &part.node, || part.path());
    Ok(true)
}

/// Pages of a file that is a database with pages of this length; `None` for anything else.
fn pages_of(file: &std::os::fd::OwnedFd, page_bytes: u32) -> Option<u32> {
    let mut start = [0; HEADER_BYTES];
    read_exact_at(file, &mut start, 0).ok()?;
    let bytes = rustix::fs::fstat(file).ok()?.st_size.unsigned_abs();
    let is_fit = Header::parse(&start).ok()?.page_bytes == page_bytes && bytes.is_multiple_of(page_bytes.into());
    u32::try_from(bytes / u64::from(page_bytes)).ok().filter(|_| is_fit)
}

impl Rewrite<'_> {
    fn windows(&self) -> impl Iterator<Item = (usize, &[BlobId])> {
        self.leaves.chunks(WINDOW_LEAVES).enumerate().map(|(n, leaves)| (n * WINDOW_LEAVES, leaves))
    }

    /// Finds the pages that differ, and keeps each as it is, with those that the new database doesn't have.
    fn compare(&mut self, journal: &mut Journal) -> Result<()> {
        let page_bytes = self.root.page_bytes as usize;
        let mut differing = Vec::new();
        let mut block = Vec::new();
        for (first, leaves) in self.windows() {
            let window = Window::read(self.context, self.root, first, leaves)?;
            for pages in window.pages.chunks((READ_BACK_BYTES / page_bytes).max(1)) {
                self.context.reporter.check_interrupt()?;
                let Some(first) = pages.first().map(|page| page.number) else { continue };
                let there = u64::from(self.pages_before).saturating_sub(first).min(pages.len() as u64);
                block.resize(there as usize * page_bytes, 0);
                self.read(&mut block, first)?;
                let keys = self.context.repo.keys();
                let is_same = |(page, old): (&super::database::Page, &[u8])| keys.page_hash(old) == page.hash;
                let same: Vec<bool> = pages.par_iter().zip(block.par_chunks_exact(page_bytes)).map(is_same).collect();
                for (at, page) in pages.iter().enumerate() {
                    if same.get(at) == Some(&true) {
                        continue;
                    }
                    let number = u32::try_from(page.number).map_err(|_| not_captured(self.part))?;
                    differing.push(number);
                    if let Some(old) = block.chunks_exact(page_bytes).nth(at) {
                        journal.keep(number + 1, old)?;
                    }
                }
            }
        }
        let mut page = vec![0; page_bytes];
        for number in self.root.pages..u64::from(self.pages_before) {
            self.read(&mut page, number)?;
            journal.keep(number as u32 + 1, &page)?;
        }
        let reused = (self.root.pages - differing.len() as u64) * u64::from(self.root.page_bytes);
        self.context.tally.bytes.add(reused);
        self.context.tally.reused.add(reused);
        self.context.reporter.advance(reused, 0);
        self.differing = differing;
        Ok(())
    }

    fn read(&self, bytes: &mut [u8], page: u64) -> Result<()> {
        read_exact_at(self.main.file, bytes, page * u64::from(self.root.page_bytes))
            .map_err(|e| Error::file("read", &self.main.path, e))
    }

    /// Writes the pages that differ, and proves what comes out.
    fn run(&self) -> Result<()> {
        for (first, leaves) in self.windows() {
            let mut window = Window::read(self.context, self.root, first, leaves)?;
            window.pages.retain(|page| {
                u32::try_from(page.number).is_ok_and(|number| self.differing.binary_search(&number).is_ok())
            });
            window.write(self.context, self.root, &|bytes, at| self.main.write_at(bytes, at), None, true)?;
        }
        let file_bytes = self.root.pages * u64::from(self.root.page_bytes);
        self.main.set_len(file_bytes)?;
        self.main.sync()?;
        let hash = read_back(self.context, self.main.file, &self.main.path, file_bytes)?;
        if hash.as_bytes()[..] != self.root.file_hash[..] {
            return Err(not_captured(self.part));
        }
        verify::check_sound(self.context, &self.main.path, &self.main.path)
    }
}
