//! What a job tells the outside: progress, and problems that don't end it.
//!
//! May depend on nothing else in the crate. This is the single channel for problems: the display and the exit
//! status are both fed from [`Reporter::problem`], so that nothing is shown and then ends in status 0, or the
//! other way round.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// How a problem counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the status stays 0.
    Note,
    /// Worth looking into; the status stays 0, but for `check`.
    Warning,
    /// A source could not be read as it should (status 3).
    Source,
    /// A repository object is damaged (status 4).
    Damage,
    /// Something could not be restored (status 5).
    Restore,
}

/// Something that concerns one file or one object and doesn't end the job.
#[derive(Debug, Clone)]
pub struct Problem {
    /// How it counts.
    pub severity: Severity,
    /// The file or object, by name.
    pub what: String,
    /// What is wrong, and what it costs the user.
    pub why: String,
    /// The command or step that mends it.
    pub hint: Option<String>,
}

/// Receives what a [`Reporter`] is told. Implemented by the command line and by tests.
pub trait Sink: Send + Sync {
    /// Show a problem.
    fn problem(&self, problem: &Problem);
    /// Progress has moved: called often, must be cheap.
    fn progress(&self, _progress: &Progress) {}
}

/// Counters of the running job, read by the display.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes handled so far.
    pub bytes: AtomicU64,
    /// Bytes really read: those of unchanged files are handled without.
    pub bytes_read: AtomicU64,
    /// Bytes to handle in all; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Files handled so far.
    pub files: AtomicU64,
    /// Files to handle in all; 0 while unknown.
    pub files_total: AtomicU64,
    /// What is being handled now.
    pub current: Mutex<String>,
}

/// Collects problems and progress of one job.
pub struct Reporter {
    sink: Box<dyn Sink>,
    problems: Mutex<Vec<Problem>>,
    interrupted: &'static AtomicBool,
    /// Progress counters.
    pub progress: Progress,
}

/// Shows nothing.
struct Silent;

impl Sink for Silent {
    fn problem(&self, _: &Problem) {}
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Reporter {
    /// A reporter that shows what it is told on `sink`, for a job that ends when `interrupted` becomes true.
    pub fn new(sink: Box<dyn Sink>, interrupted: &'static AtomicBool) -> Self {
        Self { sink, problems: Mutex::default(), interrupted, progress: Progress::default() }
    }

    /// A reporter that only collects.
    pub fn silent() -> Self {
        Self::new(Box::new(Silent), &NEVER)
    }

    /// Records and shows a problem.
    pub fn problem(&self, problem: Problem) {
        self.sink.problem(&problem);
        self.lock().push(problem);
    }

    /// Records a problem of `severity` with `what`, in words.
    pub fn warn(&self, severity: Severity, what: impl ToString, why: impl ToString) {
        self.problem(Problem { severity, what: what.to_string(), why: why.to_string(), hint: None });
    }

    /// Counts bytes and files as handled.
    pub fn advance(&self, bytes: u64, files: u64) {
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.files.fetch_add(files, Ordering::Relaxed);
        self.sink.progress(&self.progress);
    }

    /// Counts bytes and files as read and handled.
    pub fn advance_read(&self, bytes: u64, files: u64) {
        self.progress.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        self.advance(bytes, files);
    }

    /// Names what is being handled.
    pub fn current(&self, name: impl FnOnce() -> String) {
        if let Ok(mut current) = self.progress.current.try_lock() {
            *current = name();
        }
    }

    /// Ends the job with [`Error::Interrupted`] if the user asked for it.
    pub fn check_interrupt(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The problems so far.
    pub fn problems(&self) -> Vec<Problem> {
        self.lock().clone()
    }

    /// The worst severity so far.
    pub fn worst(&self) -> Option<Severity> {
        self.lock().iter().map(|p| p.severity).max()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Problem>> {
        self.problems.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
