//! What every command needs: options, standard error, and the open repository.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use snapshot::backend::remote::{Limits, Surroundings, Weight};
use snapshot::backend::{Backend, DEFAULT_CACHE_BYTES, Usage};
use snapshot::error::{Error, Result};
use snapshot::repo::{Closed, Filter, Repository, widen};
use snapshot::report::{Problem, Progress, Reporter, Sink};
use snapshot::source::handles::terminate;

use super::args::{Filters, Global};
use super::env::Env;
use super::location::Location;
use super::progress::{Display, Shown};
use super::secrets::{self, Secret};
use super::storage;

/// Set by the first signal.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Another program that signals are for while it runs, by its process number.
static RUNNING: Mutex<Option<u32>> = Mutex::new(None);
/// Folder in the cache directory.
const COPIES: &str = "objects";
/// Where no status was set.
const UNSET: u16 = u16::MAX;

/// One run of the program.
pub struct Context {
    /// Options of every command.
    pub global: Global,
    /// The environment.
    pub env: Env,
    /// Standard error.
    pub display: Arc<Display>,
    /// What jobs report to.
    pub reporter: Reporter,
    /// The repositories that were opened: `copy` opens two.
    opened: Mutex<Vec<Arc<Repository>>>,
    /// The exit status, if it is not one of those that all commands have.
    status: AtomicU16,
}

/// An open repository.
pub struct Session {
    /// The repository. Its index is not loaded yet.
    pub repo: Arc<Repository>,
}

impl Context {
    /// The context of a command with these options.
    pub fn new(global: Global) -> Self {
        let display = Display::new(&global);
        let reporter = Reporter::new(Box::new(Shown(display.clone())), &INTERRUPTED);
        Self {
            global,
            env: Env::of_process(),
            display,
            reporter,
            opened: Mutex::default(),
            status: AtomicU16::new(UNSET),
        }
    }

    /// Ends the program with this status, whatever else is said.
    pub fn end_with(&self, status: u8) {
        self.status.store(status.into(), Ordering::Relaxed);
    }

    /// The status that was set.
    pub fn status(&self) -> Option<u8> {
        u8::try_from(self.status.load(Ordering::Relaxed)).ok()
    }

    /// A reporter that shows progress, and keeps problems to itself.
    pub fn collecting_reporter(&self) -> Reporter {
        Reporter::new(Box::new(OnlyProgress(Shown(self.display.clone()))), &INTERRUPTED)
    }

    /// Where the repository is, or would be.
    ///
    /// # Errors
    /// For what is no place this version can use.
    pub fn location(&self) -> Result<Location> {
        Location::resolve(self.global.repo.as_deref(), &self.env)
    }

    /// Directory for temporary data.
    ///
    /// # Errors
    /// [`Error::File`] if the one that was given can't be made.
    pub fn scratch_dir(&self) -> Result<PathBuf> {
        self.env.scratch_dir(self.global.cache_dir.clone(), self.global.no_cache)
    }

    /// Directory for what may be forgotten, if there is one: it is the user's own.
    ///
    /// # Errors
    /// [`Error::File`] if the one that was given can't be made.
    pub fn cache_dir(&self) -> Result<Option<PathBuf>> {
        self.env.cache_dir(self.global.cache_dir.clone(), self.global.no_cache)
    }

    /// The storage at a place. Nothing is made, and no connection either.
    ///
    /// # Errors
    /// As [`Location::backend`].
    pub fn backend(&self, location: &Location) -> Result<Arc<dyn Backend>> {
        let display = self.display.clone();
        let tell = Box::new(move |weight, text: &str| match weight {
            Weight::Detail => display.detail(|| text.to_owned()),
            Weight::Notice => display.remark(text),
        });
        let limits = Limits { up: self.global.limit_upload, down: self.global.limit_download };
        let backend = location.backend(&self.env, limits, Surroundings { interrupted: &INTERRUPTED, tell })?;
        if backend.is_remote() {
            widen(backend.concurrency());
        }
        Ok(backend)
    }

    /// Opens the repository. Whether there is one is found out before a password is asked for.
    ///
    /// # Errors
    /// As [`Repository::open`], and when no secret can be had.
    pub fn open(&self) -> Result<Session> {
        self.open_at(&self.location()?, None)
    }

    /// Opens the repository for a look at the store itself, whatever this machine remembers of it.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open_as_stored(&self) -> Result<Session> {
        let location = self.location()?;
        self.unlock(Closed::find(self.backend(&location)?)?, &location, None)
    }

    /// Opens the repository at a place, with a secret of its own if there is one.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open_at(&self, location: &Location, own: Option<secrets::Given>) -> Result<Session> {
        let backend = self.backend(location)?;
        let is_remote = backend.is_remote();
        let closed = Closed::find(backend)?;
        let closed = if is_remote { closed.cached(self.cache()?) } else { closed };
        self.unlock(closed, location, own)
    }

    /// Where copies of a repository's objects are kept, and how much of them.
    fn cache(&self) -> Result<Option<(PathBuf, u64)>> {
        Ok(self.cache_dir()?.map(|dir| (dir.join(COPIES), self.global.cache_size.unwrap_or(DEFAULT_CACHE_BYTES))))
    }

    fn unlock(&self, closed: Closed, location: &Location, own: Option<secrets::Given>) -> Result<Session> {
        let Secret { unlock, name } = match own {
            Some(own) => own.read()?,
            None => self.secret_for(location)?,
        };
        let repo = Arc::new(closed.open(&unlock, &name, &self.reporter)?);
        self.display.detail(|| format!("repository {}, opened with {name}", repo.backend().describe()));
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(repo.clone());
        Ok(Session { repo })
    }

    /// What the servers of the repositories were asked for; `None` if all are on this machine.
    pub fn usage(&self) -> Option<Usage> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.iter().filter_map(|repo| repo.backend().usage()).reduce(Usage::plus)
    }

    /// Adds what servers were asked for to the document of a command.
    pub fn with_usage(&self, mut document: Value) -> Value {
        if let Some(usage) = self.usage() {
            document["storage"] = storage::to_json(&usage);
        }
        document
    }

    /// Tells what servers were asked for.
    pub fn tell_usage(&self) {
        if let Some(usage) = self.usage() {
            self.display.detail(|| format!("storage: {}", storage::to_text(&usage)));
        }
    }

    /// Tells what the repositories noticed while they were read.
    pub fn tell_notes(&self) {
        for repo in self.opened.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            repo.take_notes().into_iter().for_each(|note| self.reporter.problem(note));
        }
    }

    /// Opens the repository and loads its index.
    ///
    /// # Errors
    /// As [`Context::open`] and [`Repository::load_index`].
    pub fn open_indexed(&self) -> Result<Session> {
        let session = self.open()?;
        session.repo.load_index(&self.reporter)?;
        Ok(session)
    }

    fn secret_for(&self, location: &Location) -> Result<Secret> {
        match (secrets::given(&self.global, &self.env), location) {
            (Some(given), _) => given.read(),
            (None, Location::Named(_)) => secrets::ask(),
            (None, Location::Default { key_file, .. }) => secrets::key_file(key_file).map_err(|e| match e {
                Error::File { error, .. } if error.kind() == io::ErrorKind::NotFound => Error::refused(
                    format!("the key file of the default repository, {}, is gone", key_file.display()),
                    "put a copy of it back, or give the recovery code (or a password) with --password-file or \
                     SNAPSHOT_PASSWORD; `snapshot key add --new-key-file` then writes a new one",
                ),
                other => other,
            }),
        }
    }
}

/// Shows no problems.
struct OnlyProgress(Shown);

impl Sink for OnlyProgress {
    fn problem(&self, _: &Problem) {}

    fn progress(&self, progress: &Progress) {
        self.0.progress(progress);
    }
}

impl From<Filters> for Filter {
    fn from(filters: Filters) -> Self {
        use std::os::unix::ffi::OsStringExt;
        let paths = filters.paths.into_iter().map(OsStringExt::into_vec).collect();
        Self { hosts: filters.hosts, sources: filters.sources, tags: filters.tags, paths, latest: None }
    }
}

/// The first signal asks the job to end in order; the second ends the process at once.
///
/// # Errors
/// When the handler can't be installed.
pub fn catch_signals() -> Result<()> {
    let handler = || {
        if let Some(running) = *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) {
            INTERRUPTED.store(true, Ordering::Relaxed);
            // A terminal's Ctrl-C has reached it already.
            if !io::stdin().is_terminal() {
                terminate(running);
            }
        } else if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|e| Error::refused(format!("signals can't be handled: {e}"), "report this with your system's name"))
}

/// Starts another program, to which signals are passed on until it ends; says how it ended, and whether there was a
/// signal.
///
/// # Errors
/// Why it can't be started.
pub fn with_signals_to(start: impl FnOnce() -> io::Result<Child>) -> (io::Result<ExitStatus>, bool) {
    let set = |running| *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = running;
    let child = start();
    let waited = child.and_then(|mut child| {
        set(Some(child.id()));
        child.wait()
    });
    set(None);
    (waited, INTERRUPTED.swap(false, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_passed_on() {
        let given = Filters {
            hosts: vec!["h".into()],
            sources: vec!["s".into()],
            tags: vec!["t".into()],
            paths: vec!["/p".into()],
        };
        let filter = Filter::from(given);
        assert_eq!((filter.hosts, filter.sources, filter.tags), (vec!["h".into()], vec!["s".into()], vec!["t".into()]));
        assert_eq!((filter.paths, filter.latest), (vec![b"/p".to_vec()], None));
    }
}
