//! Opening a database for a capture, reading its pages, and making sure that they belong together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::hold::{self, BUSY, PAUSE};
use super::journal::{self, Originals};
use super::locks::{self, RESERVED, Use, sidecar};
use super::looks::{SETTLE, Stat, Surroundings};
use super::{HEADER_BYTES, Header, wal};
use crate::format::tree::WalStamp;
use crate::source::stat::is_local;

/// How long a database in WAL mode may be locked for good before that is taken for `locking_mode=EXCLUSIVE`: whoever
/// closes it locks it for a moment.
const CLOSING: Duration = Duration::from_millis(200);

/// Why a database was not captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is stable, and no database that SQLite could read: stored as the plain file it is.
    NotADatabase(String),
    /// It is locked, or changed while it was read: stored as a plain file that may be torn.
    Busy(String),
    /// Reading it takes longer than its writers may be held up, and would take as long again: stored likewise.
    Slow,
}

/// Pages that are not to be taken from the main file.
struct Overlay {
    file: File,
    pages: Pages,
    /// The log was begun anew since: everything in it had been copied into the main file before.
    is_spent: AtomicBool,
}

enum Pages {
    Log(wal::Committed),
    Journal(Originals),
}

impl Overlay {
    fn new(file: File, pages: Pages) -> Self {
        Self { file, pages, is_spent: AtomicBool::new(false) }
    }

    fn database_pages(&self) -> u32 {
        match &self.pages {
            Pages::Log(found) => found.database_pages,
            Pages::Journal(found) => found.database_pages,
        }
    }

    fn find(&self, page: u64) -> Option<u64> {
        let pages = match &self.pages {
            Pages::Log(found) => &found.pages,
            Pages::Journal(found) => &found.pages,
        };
        u32::try_from(page)
            .ok()
            .filter(|_| !self.is_spent.load(Ordering::Relaxed))
            .and_then(|page| pages.get(&page).copied())
    }

    /// Whether what it holds can still be read from it.
    fn is_still_there(&self) -> io::Result<bool> {
        match &self.pages {
            Pages::Log(found) => found.is_still_there(&self.file),
            Pages::Journal(_) => Ok(true),
        }
    }
}

/// What makes the pages read those of one state.
enum Ground {
    /// Nobody had it open before and after, and everything looks as before.
    Quiet(Surroundings),
    /// The main file looks as before, so the log was neither copied into it nor begun anew, except where that changes
    /// nothing. For databases in WAL mode whose users can't be held off.
    Watched(Surroundings),
    /// Whoever would change what is read is held off by locks; whoever does not ask for locks shows in what stat says,
    /// where that can be relied on.
    Locked { main: Stat, is_local: bool, _shm: Option<File> },
}

/// A database that is being captured.
pub struct Database {
    path: PathBuf,
    /// The locks go when it is closed.
    main: File,
    header: Header,
    main_bytes: u64,
    overlay: Option<Overlay>,
    stamp: Option<WalStamp>,
    ground: Ground,
    /// When a lock that holds up writers must end.
    deadline: Option<Instant>,
}

impl Database {
    /// Opens a database that nobody uses; `Ok(None)` if somebody does, or has just written to it.
    ///
    /// # Errors
    /// Why it can't be captured at all.
    pub fn quiet(path: &Path) -> Result<Option<Self>, Refusal> {
        let main = File::open(path).map_err(busy)?;
        let stat = Stat::of(&main.metadata().map_err(busy)?);
        let is_unused = || Ok(locks::in_use(&main, path).map_err(busy)? == Use::None);
        if !is_unused()? {
            return Ok(None);
        }
        let mut surroundings = Surroundings::look(path).map_err(busy)?;
        if !surroundings.is_settled() {
            std::thread::sleep(SETTLE + SETTLE / 2);
            surroundings = Surroundings::look(path).map_err(busy)?;
            if !surroundings.is_settled() {
                return Ok(None);
            }
        }
        if !surroundings.main.is_some_and(|there| there.is_same_file(&stat)) {
            return Ok(None);
        }
        // Whoever begins to use it from here on shows in the end: by a lock, or in what stat says.
        let is_interrupted = journal::is_pending(&sidecar(path, "-journal")).map_err(|e| beside("journal", &e))?;
        // The journal may be that of a transaction which has begun, or even ended, since.
        if is_interrupted && (!is_unused()? || Surroundings::look(path).map_err(busy)? != surroundings) {
            return Ok(None);
        }
        Self::assemble(path, main, is_interrupted, Ground::Quiet(surroundings), None).map(Some)
    }

    /// Opens a database that others use, held off by a read lock as far as they would change what is read. In
    /// rollback-journal mode writers wait for it, so it must end within `max_lock`.
    ///
    /// # Errors
    /// Why it can't be captured.
    pub fn held(path: &Path, max_lock: Duration) -> Result<Self, Refusal> {
        let begun = Instant::now();
        loop {
            let main = File::open(path).map_err(busy)?;
            let is_locked = hold::lock_main(&main).map_err(busy)?;
            let stat = Stat::of(&main.metadata().map_err(busy)?);
            let is_there = Stat::at(path).map_err(busy)?.is_some_and(|there| there.is_same_file(&stat));
            if is_locked && is_there {
                return Self::locked(path, main, max_lock);
            }
            if !is_locked && begun.elapsed() > CLOSING && header_of(&main)?.wal_mode {
                if !is_local(path) {
                    return Err(Refusal::Busy("its application keeps it locked for itself".into()));
                }
                return Self::watched(path, main);
            }
            if begun.elapsed() > BUSY {
                return Err(Refusal::Busy(if is_locked {
                    "it is replaced by another file all the time".into()
                } else {
                    "another process has kept it locked for itself for more than 10 seconds".into()
                }));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn locked(path: &Path, main: File, max_lock: Duration) -> Result<Self, Refusal> {
        let deadline = Some(Instant::now() + max_lock);
        let is_interrupted = is_interrupted(&main, path)?;
        let mut shm = None;
        if !is_interrupted && header_of(&main)?.wal_mode {
            shm = hold::hold_log(path).map_err(busy)?;
            if shm.is_none() {
                return Self::watched(path, main);
            }
        }
        // After the locks: the checkpoint that they had to wait for wrote to the file.
        let stat = Stat::of(&main.metadata().map_err(busy)?);
        let ground = Ground::Locked { main: stat, is_local: is_local(path), _shm: shm };
        Self::assemble(path, main, is_interrupted, ground, deadline)
    }

    fn watched(path: &Path, main: File) -> Result<Self, Refusal> {
        let begun = Instant::now();
        let stat = Stat::of(&main.metadata().map_err(busy)?);
        loop {
            let surroundings = Surroundings::look(path).map_err(busy)?;
            if !surroundings.main.is_some_and(|there| there.is_same_file(&stat)) {
                return Err(changed());
            }
            if surroundings.main.as_ref().is_some_and(Stat::is_settled) {
                return Self::assemble(path, main, false, Ground::Watched(surroundings), None);
            }
            if begun.elapsed() > BUSY {
                return Err(Refusal::Busy(
                    "its application keeps it locked for itself, and writes all the time".into(),
                ));
            }
            std::thread::sleep(SETTLE / 5);
        }
    }

    fn assemble(
        path: &Path,
        main: File,
        is_interrupted: bool,
        ground: Ground,
        deadline: Option<Instant>,
    ) -> Result<Self, Refusal> {
        let mut header = header_of(&main)?;
        let main_bytes = main.metadata().map_err(busy)?.len();
        let (mut overlay, mut stamp) = (None, None);
        if is_interrupted {
            let file = File::open(sidecar(path, "-journal")).map_err(|e| beside("journal", &e))?;
            stamp = wal::stamp(&file).map_err(busy)?;
            let found = journal::scan(&file, header.page_bytes).map_err(busy)?;
            if let Some(found) = found {
                header = original_header(&file, &found, header)?;
                overlay = Some(Overlay::new(file, Pages::Journal(found)));
            }
        } else if header.wal_mode {
            match File::open(sidecar(path, "-wal")) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                file => {
                    let file = file.map_err(|e| beside("log", &e))?;
                    stamp = wal::stamp(&file).map_err(busy)?;
                    let found = wal::scan(&file, header.page_bytes).map_err(busy)?;
                    overlay = found.map(|found| Overlay::new(file, Pages::Log(found)));
                }
            }
        }
        if overlay.is_none() && !main_bytes.is_multiple_of(header.page_bytes.into()) {
            return Err(Refusal::NotADatabase("its length is not a multiple of its page size".into()));
        }
        let deadline = deadline.filter(|_| is_interrupted || !header.wal_mode);
        let path = path.to_path_buf();
        Ok(Self { path, main, header, main_bytes, overlay, stamp, ground, deadline })
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Pages of the database.
    pub fn pages(&self) -> u64 {
        match &self.overlay {
            Some(overlay) => overlay.database_pages().into(),
            None => self.main_bytes / u64::from(self.header.page_bytes),
        }
    }

    /// Length of the main file, in bytes.
    pub fn main_bytes(&self) -> u64 {
        self.main_bytes
    }

    /// The state of the log, or of the journal of an interrupted transaction, unless it is empty.
    pub fn log_stamp(&self) -> Option<&WalStamp> {
        self.stamp.as_ref()
    }

    /// Whether writers or checkpoints are held off, so that what is read should be put aside rather than worked on.
    pub fn is_held(&self) -> bool {
        matches!(self.ground, Ground::Locked { .. })
    }

    /// Reads `count` pages from page `first` (counted from 0) into `out`.
    ///
    /// # Errors
    /// When they can't be read, or holding writers up has taken as long as it may.
    pub fn read(&self, first: u64, count: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.deadline.is_some_and(|end| Instant::now() > end) {
            return Err(Refusal::Slow);
        }
        let page_bytes = self.header.page_bytes as usize;
        out.resize(count * page_bytes, 0);
        let from = first * page_bytes as u64;
        // Pages that exist in the log alone lie past the end of the main file.
        let in_main = usize::try_from(self.main_bytes.saturating_sub(from)).unwrap_or(usize::MAX).min(out.len());
        self.main.read_exact_at(&mut out[..in_main], from).map_err(busy)?;
        let Some(overlay) = &self.overlay else { return Ok(()) };
        let mut has_overlaid = false;
        for (page, out) in (first + 1..).zip(out.chunks_exact_mut(page_bytes)) {
            if let Some(at) = overlay.find(page) {
                overlay.file.read_exact_at(out, at).or_else(|e| match e.kind() {
                    // It may have been cut: then it is not still there.
                    io::ErrorKind::UnexpectedEof => Ok(()),
                    _ => Err(busy(e)),
                })?;
                has_overlaid = true;
            } else if page == journal::lock_page(self.header.page_bytes) {
                // It is never written: past the end of the main file it is in neither.
                out[in_main.saturating_sub((page - 1 - first) as usize * page_bytes).min(page_bytes)..].fill(0);
            } else if page * page_bytes as u64 > self.main_bytes {
                return Err(Refusal::Busy(format!("its page {page} is neither in the file nor in the log")));
            }
        }
        if has_overlaid && !overlay.is_still_there().map_err(busy)? {
            if !self.is_held() {
                return Err(changed());
            }
            // Under the lock that can't be before all of it is in the main file.
            overlay.is_spent.store(true, Ordering::Relaxed);
            return self.read(first, count, out);
        }
        Ok(())
    }

    /// Reads one page, counted from 1.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub fn page(&self, number: u32) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::new();
        self.read(u64::from(number).saturating_sub(1), 1, &mut out)?;
        Ok(out)
    }

    /// Ends the capture: what was read is one state of the database if this returns `true`.
    ///
    /// # Errors
    /// When that can't be found out.
    pub fn finish(self) -> Result<bool, Refusal> {
        let now = Surroundings::look(&self.path).map_err(busy)?;
        Ok(match &self.ground {
            Ground::Quiet(before) => {
                locks::in_use(&self.main, &self.path).map_err(busy)? == Use::None && now == *before
            }
            Ground::Watched(before) => {
                let log_is_there = self.overlay.as_ref().map_or(Ok(true), Overlay::is_still_there).map_err(busy)?;
                log_is_there && (now.main, now.journal) == (before.main, before.journal)
            }
            Ground::Locked { main, is_local: true, .. } => now.main.is_some_and(|now| now.is_same_content(main)),
            Ground::Locked { main, .. } => now.main.is_some_and(|now| now.is_same_file(main)),
        })
    }
}

/// Whether a hot journal lies beside a main file that is locked for reading. One that looks so may be that of a
/// transaction which has not got to the main file yet; who writes it has the RESERVED lock.
fn is_interrupted(main: &File, path: &Path) -> Result<bool, Refusal> {
    let begun = Instant::now();
    let journal = sidecar(path, "-journal");
    loop {
        let stat = Stat::at(&journal).map_err(busy)?;
        if !journal::is_pending(&journal).map_err(|e| beside("journal", &e))?
            || locks::is_locked(main, RESERVED).map_err(busy)?
        {
            return Ok(false);
        }
        // The lock may have gone, or come, between the two looks: not with a journal that has been there for long.
        if stat.is_some_and(|stat| stat.is_settled()) && stat == Stat::at(&journal).map_err(busy)? {
            return Ok(true);
        }
        if begun.elapsed() > BUSY {
            return Err(Refusal::Busy("its journal changes all the time, and nobody has it locked".into()));
        }
        std::thread::sleep(PAUSE);
    }
}

fn header_of(main: &File) -> Result<Header, Refusal> {
    let mut start = [0; HEADER_BYTES];
    main.read_exact_at(&mut start, 0).map_err(|_| Refusal::NotADatabase("its header is cut short".into()))?;
    Header::parse(&start).map_err(|why| Refusal::NotADatabase(why.to_owned()))
}

/// The header as it was before the transaction that was interrupted.
fn original_header(journal: &File, found: &Originals, now: Header) -> Result<Header, Refusal> {
    let mut header = now;
    if let Some(at) = found.pages.get(&1) {
        let mut start = [0; HEADER_BYTES];
        journal.read_exact_at(&mut start, *at).map_err(busy)?;
        header = Header::parse(&start).map_err(|why| Refusal::NotADatabase(why.to_owned()))?;
    }
    if header.page_bytes != found.page_bytes {
        return Err(Refusal::Busy(
            "the journal of an interrupted transaction beside it is for another page size".into(),
        ));
    }
    Ok(header)
}

fn busy(error: impl ToString) -> Refusal {
    Refusal::Busy(error.to_string())
}

fn beside(what: &str, error: &io::Error) -> Refusal {
    Refusal::Busy(format!("its {what} can't be read: {error}"))
}

fn changed() -> Refusal {
    Refusal::Busy("it changed while it was read".into())
}
