//! Putting a database together page by page, and proving that it is the file that was captured.
//!
//! Every page is compared with its hash in the page map, and at the end the whole file with the BLAKE3 in the map's
//! root. Pages are written segment by segment, wherever they belong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::context::Context;
use super::existing::Reuse;
use super::in_place;
use super::reuse::open_regular;
use super::verify;
use super::write::Part;
use crate::error::{Error, Result};
use crate::format::pagemap::{LEAF_PAGES, Root};
use crate::format::segment::{Base, Decoded, SlotSet};
use crate::id::{BlobId, PageHash};
use crate::index::Place;
use crate::repo::{BasePages, FrameReader, Wanted, arrange};
use crate::source::temporary::{Temporary, read_exact_at};

/// Leaves that are dealt with at once: their pages are listed in some 5 MiB.
pub(super) const WINDOW_LEAVES: usize = 32;
/// The file is read back in blocks of this many bytes, two at a time.
pub(super) const READ_BACK_BYTES: usize = 2 << 20;

/// Writes bytes at an offset; called by several threads.
pub(super) type Write<'a> = dyn Fn(&[u8], u64) -> Result<()> + Sync + 'a;

/// A page, and where it is.
pub(super) struct Page {
    /// Number in [`Window::segments`].
    segment: u32,
    slot: u8,
    /// Counts from 0.
    pub number: u64,
    pub hash: PageHash,
}

/// Restores a database.
///
/// # Errors
/// If any page can't be had, or the file does not come out as it was; nothing is left then.
pub(super) fn write(context: &Context<'_>, part: &Part) -> Result<()> {
    let database = part.node.database.as_ref().ok_or_else(|| Error::corrupt("a database's node", "it has no map"))?;
    let (root, leaves) = context.repo.read_map(&database.map)?;
    if in_place::write(context, part, &root, &leaves)? {
        context.reporter.advance(0, 1);
        return Ok(());
    }
    let (made, local) = begin(part)?;
    let filled = fill(context, &root, &leaves, &made, &local);
    if matches!(filled, Err(Error::Interrupted)) {
        part.folder.keep_unfinished();
    }
    if filled?.as_bytes()[..] != root.file_hash[..] {
        return Err(not_captured(part));
    }
    if part.folder.stat(&part.node.name)?.is_some() {
        made.sync()?;
        verify::check_sound(context, &made.temporary_path(), &part.path())?;
    }
    part.complete(context, &made)?;
    context.reporter.advance(0, 1);
    Ok(())
}

/// That a database does not come out as it was.
pub(super) fn not_captured(part: &Part) -> Error {
    let map = part.node.database.as_ref().map_or_else(String::new, |database| database.map.to_string());
    Error::corrupt(format!("page map {map}"), "its pages do not add up to the file captured")
}

/// Writes all pages, and reads the file back: what comes out is its hash.
fn fill(
    context: &Context<'_>,
    root: &Root,
    leaves: &[BlobId],
    made: &Temporary,
    local: &Local,
) -> Result<blake3::Hash> {
    let file_bytes = root.pages * u64::from(root.page_bytes);
    made.set_len(file_bytes)?;
    for (n, window) in leaves.chunks(WINDOW_LEAVES).enumerate() {
        let mut window = Window::read(context, root, n * WINDOW_LEAVES, window)?;
        match local {
            Local::Nowhere => {}
            Local::Itself => window.take_local(context, root, made, &*made.file()?, false)?,
            Local::Other(file) => window.take_local(context, root, made, file, true)?,
        }
        let behind = made.file()?.try_clone().map_err(|e| Error::file("write", made.path(), e))?;
        let write = |bytes: &[u8], at| made.write_at(bytes, at);
        window.write(context, root, &write, Some(behind.into()), matches!(local, Local::Itself))?;
    }
    // Older pages lay behind its end.
    made.set_len(file_bytes)?;
    read_back(context, &*made.file()?, &made.path(), file_bytes)
}

/// Where pages may be found before they are fetched.
enum Local {
    Nowhere,
    /// In the file that is being made: it holds something already.
    Itself,
    /// In the file that is replaced.
    Other(OwnedFd),
}

/// Begins with what a killed restore left, or with what there is.
fn begin(part: &Part) -> Result<(Temporary, Local)> {
    if let Some(made) = part.folder.adopt(&part.node.name) {
        return Ok((made, Local::Itself));
    }
    let made = part.folder.temporary(&part.node.name);
    made.make_file()?;
    if part.reuse == Reuse::No {
        return Ok((made, Local::Nowhere));
    }
    Ok(match open_regular(&part.folder, &part.node.name)? {
        Some(old) if made.share_blocks_of(&old) => (made, Local::Itself),
        Some(old) => (made, Local::Other(old)),
        None => (made, Local::Nowhere),
    })
}

/// Segments are read stretch by stretch of the file: those that lean on others follow the ones that most of these are
/// among, which are kept that long ([`Repository::remember_base`]). In bytes of the file.
///
/// [`Repository::remember_base`]: crate::repo::Repository::remember_base
const STRETCH_BYTES: u64 = 8 << 20;

/// The pages of some leaves, by segment.
pub(super) struct Window {
    segments: Vec<(BlobId, Place)>,
    pub pages: Vec<Page>,
}

/// In which order segments are read: stretch of the file, whether it leans on others, place.
type Turn = (u64, bool, Place);

impl Window {
    pub(super) fn read(context: &Context<'_>, root: &Root, first_leaf: usize, leaves: &[BlobId]) -> Result<Self> {
        context.reporter.check_interrupt()?;
        let read: Vec<_> = leaves.par_iter().map(|id| context.repo.read_leaf(id)).collect::<Result<_>>()?;
        let mut numbers = HashMap::new();
        let mut window = Self { segments: Vec::new(), pages: Vec::new() };
        for (at, (leaf, id)) in (first_leaf..).zip(read.iter().zip(leaves)) {
            if leaf.pages.len() != root.leaf_pages(at) {
                return Err(Error::corrupt(format!("page map leaf {id}"), "it covers another number of pages"));
            }
            for (number, page) in (at as u64 * LEAF_PAGES as u64..).zip(&leaf.pages) {
                let segment = match numbers.get(&page.segment) {
                    Some(segment) => *segment,
                    None => {
                        let segment = window.segments.len() as u32;
                        window.segments.push((page.segment, context.repo.place(&page.segment)?));
                        numbers.insert(page.segment, segment);
                        segment
                    }
                };
                window.pages.push(Page { segment, slot: page.slot, number, hash: page.hash });
            }
        }
        Ok(window)
    }

    fn segment(&self, page: &Page) -> Option<(BlobId, Place)> {
        self.segments.get(page.segment as usize).copied()
    }

    /// Takes the pages that a local file has, and copies them if it is another one. What remains is to be fetched.
    fn take_local(
        &mut self,
        context: &Context<'_>,
        root: &Root,
        made: &Temporary,
        local: &OwnedFd,
        copies: bool,
    ) -> Result<()> {
        let page_bytes = root.page_bytes as usize;
        let here: Vec<Vec<bool>> = self
            .pages
            .par_chunks((READ_BACK_BYTES / page_bytes).max(1))
            .map(|pages| {
                context.reporter.check_interrupt()?;
                let mut page = vec![0; page_bytes];
                let has = |wanted: &Page| {
                    let at = wanted.number * page_bytes as u64;
                    let same = read_exact_at(local, &mut page, at).is_ok()
                        && context.repo.keys().page_hash(&page) == wanted.hash;
                    if same && copies && !is_zero(&page) {
                        made.write_at(&page, at)?;
                    }
                    Ok(same)
                };
                pages.iter().map(has).collect()
            })
            .collect::<Result<_>>()?;
        let mut here = here.into_iter().flatten();
        let before = self.pages.len();
        self.pages.retain(|_| !here.next().unwrap_or(false));
        let bytes = ((before - self.pages.len()) * page_bytes) as u64;
        context.tally.bytes.add(bytes);
        context.tally.reused.add(bytes);
        context.reporter.advance(bytes, 0);
        Ok(())
    }

    /// When each segment is to be read.
    fn turns(&self, context: &Context<'_>, root: &Root) -> Vec<Turn> {
        let stretch_pages = (STRETCH_BYTES / u64::from(root.page_bytes)).max(1);
        let mut first = vec![u64::MAX; self.segments.len()];
        for page in &self.pages {
            if let Some(first) = first.get_mut(page.segment as usize) {
                *first = page.number.min(*first);
            }
        }
        let index = context.repo.index();
        let turn = |(first, (_, place)): (u64, &(BlobId, Place))| {
            (first / stretch_pages, !index.bases(*place).is_empty(), *place)
        };
        first.into_iter().zip(&self.segments).map(turn).collect()
    }

    /// Fetches the pages. In a file that holds something already, zeros are written too.
    ///
    /// Older pages that many others lean on wait behind the end of the file that is made, if there is one (`behind`).
    pub(super) fn write(
        mut self,
        context: &Context<'_>,
        root: &Root,
        write: &Write<'_>,
        behind: Option<File>,
        writes_zeros: bool,
    ) -> Result<()> {
        let mut turns = self.turns(context, root);
        let mut stretches: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for (stretch, _, place) in turns.iter().filter(|(_, leans, _)| *leans) {
            stretches.entry(*stretch).or_default().push(*place);
        }
        let stretches: Vec<_> = stretches.into_values().collect();
        let end = root.pages * u64::from(root.page_bytes);
        let aside = behind.and_then(|file| BasePages::plan(context.repo, &stretches, root.page_bytes, (file, end)));
        if aside.is_some() || stretches.is_empty() {
            // Each is decoded once: the order of the packs is the best.
            turns.iter_mut().for_each(|(stretch, ..)| *stretch = 0);
        }
        let leans = |page: &Page| turns.get(page.segment as usize).is_some_and(|(_, leans, _)| *leans);
        self.pages.sort_unstable_by_key(|p| (turns.get(p.segment as usize), p.slot, p.number));
        let bases: HashSet<BlobId> = {
            let index = context.repo.index();
            stretches.iter().flatten().flat_map(|place| index.bases(*place)).map(|base| base.id).collect()
        };
        let fetching = Fetching { context, root, write, writes_zeros, aside, bases, set_aside: Mutex::default() };
        let Some(aside) = &fetching.aside else { return fetching.run(&self, 0..self.pages.len()) };
        let first_leaning = self.pages.partition_point(|page| !leans(page));
        fetching.run(&self, 0..first_leaning)?;
        let mut missing = aside.bases(context.repo);
        missing.retain(|base| !lock(&fetching.set_aside).contains(&base.id));
        fetching.set_aside(aside, &missing)?;
        fetching.run(&self, first_leaning..self.pages.len())
    }

    /// What to fetch for some of the pages.
    fn wanted(&self, some: Range<usize>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let mut next = some.start;
        for pages in self.pages.get(some).unwrap_or_default().chunk_by(|a, b| a.segment == b.segment) {
            if let Some((_, place)) = pages.first().and_then(|p| self.segment(p)) {
                wanted.push(Wanted { place, items: next..next + pages.len() });
            }
            next += pages.len();
        }
        wanted
    }
}

/// Fetches segments, and writes the pages in them.
struct Fetching<'a> {
    context: &'a Context<'a>,
    root: &'a Root,
    write: &'a Write<'a>,
    writes_zeros: bool,
    /// Where older pages wait for those that lean on them, if there are too many to keep them in memory.
    aside: Option<BasePages>,
    /// Segments that others lean on.
    bases: HashSet<BlobId>,
    /// Those of which the pages were put there.
    set_aside: Mutex<HashSet<BlobId>>,
}

impl Fetching<'_> {
    fn run(&self, window: &Window, some: Range<usize>) -> Result<()> {
        let (context, repo) = (self.context, self.context.repo);
        repo.for_each(&arrange(repo, window.wanted(some)), |run| {
            context.reporter.check_interrupt()?;
            run.each(repo, |items, opened| {
                let pages = window.pages.get(items).unwrap_or_default();
                let Some((id, _)) = pages.first().and_then(|p| window.segment(p)) else { return Ok(()) };
                let wanted: SlotSet = pages.iter().map(|page| page.slot).collect();
                let decoded = match opened.map(|(reader, body)| self.decode(&id, reader, body)) {
                    Some(Ok(decoded)) if decoded.present().holds(&wanted) => decoded,
                    // Another copy of it may be sound, or have pages that a prune left out of this one.
                    _ => repo.read_slots(&id, &wanted)?,
                };
                let decoded = Arc::new(decoded);
                self.keep(id, &decoded)?;
                write_pages(context, self.root, self.write, &id, &decoded, pages, self.writes_zeros)
            })
        })
    }

    /// Fetches older pages that no page of the file itself is among.
    fn set_aside(&self, aside: &BasePages, bases: &[Base]) -> Result<()> {
        let (context, repo) = (self.context, self.context.repo);
        let wanted = |(n, base): (usize, &Base)| Ok(Wanted { place: repo.place(&base.id)?, items: n..n + 1 });
        let wanted = bases.iter().enumerate().map(wanted).collect::<Result<Vec<_>>>()?;
        repo.for_each(&arrange(repo, wanted), |run| {
            context.reporter.check_interrupt()?;
            run.each(repo, |items, opened| {
                let Some(base) = bases.get(items.start) else { return Ok(()) };
                let decoded = opened.and_then(|(reader, body)| repo.decode_segment(&base.id, reader, body, 0).ok());
                match decoded.filter(|decoded| decoded.present().holds(&base.slots)) {
                    Some(decoded) => aside.set_aside(&base.id, &decoded),
                    // Another copy of it may be sound, or have pages that a prune left out of this one.
                    None => aside.set_aside(&base.id, &repo.read_slots(&base.id, &base.slots)?),
                }
            })
        })
    }

    fn decode(&self, id: &BlobId, reader: &FrameReader, body: &[u8]) -> Result<Decoded> {
        match &self.aside {
            Some(aside) if !reader.bases().is_empty() => aside.decode(self.context.repo, id, reader, body),
            _ => self.context.repo.decode_segment(id, reader, body, 0),
        }
    }

    /// Keeps a segment, or pages of it, for those that lean on it.
    fn keep(&self, id: BlobId, decoded: &Arc<Decoded>) -> Result<()> {
        if !self.bases.contains(&id) {
            return Ok(());
        }
        let Some(aside) = &self.aside else {
            self.context.repo.remember_base(id, decoded);
            return Ok(());
        };
        match aside.set_aside(&id, decoded) {
            Ok(()) => drop(lock(&self.set_aside).insert(id)),
            // Another copy has the rest.
            Err(Error::Missing { .. }) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes pages of one segment, neighbours together. Pages of zeros stay holes where there are some.
fn write_pages(
    context: &Context<'_>,
    root: &Root,
    write: &Write<'_>,
    id: &BlobId,
    decoded: &Decoded,
    pages: &[Page],
    writes_zeros: bool,
) -> Result<()> {
    let page_bytes = root.page_bytes as usize;
    for page in pages {
        let found = decoded.page_with(usize::from(page.slot), &page.hash);
        if found.is_none_or(|bytes| bytes.len() != page_bytes) {
            return Err(Error::corrupt(format!("segment {id}"), format!("it does not hold page {}", page.number + 1)));
        }
    }
    let is_hole = |p: &Page| !writes_zeros && decoded.page(usize::from(p.slot)).is_some_and(is_zero);
    let follows = |a: &Page, b: &Page| {
        b.number == a.number + 1 && u16::from(b.slot) == u16::from(a.slot) + 1 && is_hole(a) == is_hole(b)
    };
    for run in pages.chunk_by(follows) {
        let Some(first) = run.first() else { continue };
        if let Some(bytes) = decoded.pages(usize::from(first.slot), run.len())
            && !is_hole(first)
        {
            write(bytes, first.number * u64::from(root.page_bytes))?;
        }
    }
    let bytes = (pages.len() * page_bytes) as u64;
    context.tally.bytes.add(bytes);
    context.tally.fetched.add(bytes);
    context.reporter.advance(bytes, 0);
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|b| *b == 0)
}

/// Hashes a file as it is now: while one block is hashed the next is read.
///
/// # Errors
/// [`Error::File`], also if it is shorter than stated.
pub(super) fn read_back(context: &Context<'_>, file: &OwnedFd, path: &Path, file_bytes: u64) -> Result<blake3::Hash> {
    let read = |buffer: &mut Vec<u8>, at: u64| {
        buffer.resize(READ_BACK_BYTES.min((file_bytes - at) as usize), 0);
        read_exact_at(file, buffer, at).map_err(|e| Error::file("read", path, e))
    };
    let mut hasher = blake3::Hasher::new();
    let (mut this, mut next) = (Vec::new(), Vec::new());
    let mut at = 0;
    read(&mut this, at)?;
    while !this.is_empty() {
        context.reporter.check_interrupt()?;
        at += this.len() as u64;
        let (done, ()) = rayon::join(
            || read(&mut next, at),
            || {
                hasher.update_rayon(&this);
            },
        );
        done?;
        std::mem::swap(&mut this, &mut next);
    }
    Ok(hasher.finalize())
}
