//! Opening a database for a capture, reading its pages, and making sure that they belong together.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::locks::{self, Use, sidecar};
use super::{HEADER_BYTES, Header, wal};
use crate::format::tree::WalStamp;
use crate::source::hold::Hold;

/// A file that was written to less than this long ago could be written to again within the same tick of the file
/// system's clock, which is 10 ms at the coarsest (CONFIG_HZ=100).
const SETTLE: Duration = Duration::from_millis(50);

/// Why a database was not captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is stable, and no database that SQLite could read: stored as the plain file it is.
    NotADatabase(String),
    /// It is locked, or changed while it was read: stored as a plain file that may be torn.
    Busy(String),
}

/// What of a file's stat shows that it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    inode: (u64, u64),
    size: u64,
    times: [(i64, i64); 2],
}

impl Stat {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            times: [(meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())],
        }
    }

    fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            meta => Ok(Some(Self::of(&meta?))),
        }
    }
}

/// Everything that a quiet capture must find unchanged afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Surroundings {
    main: Option<Stat>,
    wal: Option<Stat>,
    journal: Option<Stat>,
}

impl Surroundings {
    fn look(path: &Path) -> io::Result<Self> {
        Ok(Self {
            main: Stat::at(path)?,
            wal: Stat::at(&sidecar(path, "-wal"))?,
            journal: Stat::at(&sidecar(path, "-journal"))?,
        })
    }

    /// Whether everything was last touched long enough ago that a new write must show.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = now.saturating_sub(SETTLE);
        let limit = (limit.as_secs().cast_signed(), i64::from(limit.subsec_nanos()));
        [self.main, self.wal, self.journal].iter().flatten().all(|s| s.times.iter().all(|t| *t < limit))
    }
}

/// A database that is being captured.
pub struct Database {
    path: PathBuf,
    main: File,
    header: Header,
    main_bytes: u64,
    log: Option<(File, wal::Committed)>,
    log_stamp: Option<WalStamp>,
    surroundings: Surroundings,
    hold: Option<Hold>,
    /// When a transaction in rollback-journal mode, which holds up writers, must end.
    deadline: Option<Instant>,
}

impl Database {
    /// Opens a database that nobody uses; `Ok(None)` if somebody does, or has just written to it.
    ///
    /// # Errors
    /// Why it can't be captured at all.
    pub fn quiet(path: &Path) -> Result<Option<Self>, Refusal> {
        let main = File::open(path).map_err(busy)?;
        if locks::in_use(&main, path).map_err(busy)? != Use::None {
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
        // Whoever begins to use it from here on shows in the end: by a lock, or in what stat says.
        if is_hot(&sidecar(path, "-journal")).map_err(busy)? {
            // It may be that of a transaction which has begun, or even ended, since.
            let unused = locks::in_use(&main, path).map_err(busy)? == Use::None;
            if !unused || Surroundings::look(path).map_err(busy)? != surroundings {
                return Ok(None);
            }
            return Err(Refusal::Busy(
                "the journal of an interrupted transaction lies beside it; open it once with its application".into(),
            ));
        }
        Self::assemble(path, main, surroundings, None, None).map(Some)
    }

    /// Opens a database under a read transaction held by a child process. In rollback-journal mode writers wait for
    /// it, so it must end within `max_lock`.
    ///
    /// # Errors
    /// Why it can't be captured.
    pub fn held(path: &Path, helper: &Path, max_lock: Duration) -> Result<Self, Refusal> {
        let main = File::open(path).map_err(busy)?;
        let hold = Hold::start(helper, path).map_err(|why| Refusal::Busy(format!("it can't be locked: {why}")))?;
        let surroundings = Surroundings::look(path).map_err(busy)?;
        // The child opened the path by name: it must have met the same file.
        if surroundings.main.map(|s| s.inode) != Some(Stat::of(&main.metadata().map_err(busy)?).inode) {
            return Err(Refusal::Busy("it was replaced while it was being opened".into()));
        }
        let deadline = Instant::now() + max_lock;
        Self::assemble(path, main, surroundings, Some(hold), Some(deadline))
    }

    fn assemble(
        path: &Path,
        main: File,
        surroundings: Surroundings,
        hold: Option<Hold>,
        deadline: Option<Instant>,
    ) -> Result<Self, Refusal> {
        let unusable = |why: &str| Refusal::NotADatabase(why.to_owned());
        let mut start = [0; HEADER_BYTES];
        main.read_exact_at(&mut start, 0).map_err(|_| unusable("its header is cut short"))?;
        let header = Header::parse(&start).map_err(unusable)?;
        let main_bytes = main.metadata().map_err(busy)?.len();
        let mut log = None;
        let mut log_stamp = None;
        if header.wal_mode {
            match File::open(sidecar(path, "-wal")) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                file => {
                    let file = file.map_err(busy)?;
                    log_stamp = wal::stamp(&file).map_err(busy)?;
                    log = wal::scan(&file, header.page_bytes).map_err(busy)?.map(|found| (file, found));
                }
            }
        }
        if log.is_none() && !main_bytes.is_multiple_of(header.page_bytes.into()) {
            return Err(unusable("its length is not a multiple of its page size"));
        }
        let deadline = deadline.filter(|_| !header.wal_mode);
        let path = path.to_path_buf();
        Ok(Self { path, main, header, main_bytes, log, log_stamp, surroundings, hold, deadline })
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Pages of the database.
    pub fn pages(&self) -> u64 {
        match &self.log {
            Some((_, found)) => found.database_pages.into(),
            None => self.main_bytes / u64::from(self.header.page_bytes),
        }
    }

    /// Length of the main file, in bytes.
    pub fn main_bytes(&self) -> u64 {
        self.main_bytes
    }

    /// The state of the log, unless it is empty.
    pub fn log_stamp(&self) -> Option<&WalStamp> {
        self.log_stamp.as_ref()
    }

    /// Whether a transaction is held, so that what is read should be put aside rather than worked on.
    pub fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// Reads `count` pages from page `first` (counted from 0) into `out`.
    ///
    /// # Errors
    /// When they can't be read, or holding writers up has taken as long as it may.
    pub fn read(&self, first: u64, count: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.deadline.is_some_and(|end| Instant::now() > end) {
            return Err(Refusal::Busy("reading it would hold up its writers for longer than --max-lock allows".into()));
        }
        let page_bytes = self.header.page_bytes as usize;
        out.resize(count * page_bytes, 0);
        let from = first * page_bytes as u64;
        // Pages that exist in the log alone lie past the end of the main file.
        let in_main = usize::try_from(self.main_bytes.saturating_sub(from)).unwrap_or(usize::MAX).min(out.len());
        self.main.read_exact_at(&mut out[..in_main], from).map_err(busy)?;
        let Some((file, found)) = &self.log else { return Ok(()) };
        for (page, out) in (first + 1..).zip(out.chunks_exact_mut(page_bytes)) {
            match u32::try_from(page).ok().and_then(|page| found.pages.get(&page)) {
                Some(at) => file.read_exact_at(out, *at).map_err(busy)?,
                None if page * page_bytes as u64 > self.main_bytes => {
                    return Err(Refusal::Busy(format!("its page {page} is neither in the file nor in the log")));
                }
                None => {}
            }
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
        let log_is_sound = match &self.log {
            Some((file, found)) => found.is_still_there(file, self.header.page_bytes).map_err(busy)?,
            None => true,
        };
        if self.hold.is_some() {
            drop(self.hold);
            locks::tidy_sidecars(&self.path);
            return Ok(log_is_sound);
        }
        let unused = locks::in_use(&self.main, &self.path).map_err(busy)? == Use::None;
        Ok(log_is_sound && unused && Surroundings::look(&self.path).map_err(busy)? == self.surroundings)
    }
}

/// Whether a rollback journal belongs to a transaction that was not finished: it has a header that is not zeroed.
fn is_hot(journal: &Path) -> io::Result<bool> {
    let mut start = [0; 8];
    match File::open(journal).and_then(|f| f.read_at(&mut start, 0)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        read => read.map(|n| n > 0 && start.iter().any(|b| *b != 0)),
    }
}

fn busy(error: impl ToString) -> Refusal {
    Refusal::Busy(error.to_string())
}
