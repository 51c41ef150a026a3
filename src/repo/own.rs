//! The index files that this process's session has stored, and that it has not yet been found alive after.
//!
//! A session that stood still for more than a day is taken for dead, and packs that it stored, or that it knows, may be
//! deleted. An index file that it stores afterwards names packs that are gone, and the next writer would rely on them. So
//! it looks for itself before such a put, if the last look was a while ago, and after it: an index file that was stored
//! too late is deleted again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Live, Repository};
use crate::clock;
use crate::error::{Error, Result};

/// After so many seconds since the last look, or since a clock was set back, there is another one before a put.
const LATE_SECS: i64 = 60;

/// See the head comment.
#[derive(Default)]
pub(super) struct Own(Mutex<State>);

#[derive(Default)]
struct State {
    /// The session's name, if there is one.
    session: Option<String>,
    /// When it was seen alive last, by this machine's clock.
    seen_secs: i64,
    /// Paths of index files stored since.
    stored: Vec<String>,
}

impl Own {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session, which was just seen alive: a process has one at a time in a repository.
    pub(super) fn begin(&self, session: &str) {
        *self.state() = State { session: Some(session.into()), seen_secs: clock::now().secs, stored: Vec::new() };
    }

    /// The session has ended.
    pub(super) fn end(&self) {
        *self.state() = State::default();
    }

    /// Whether something was stored that the session was not seen alive after.
    pub(super) fn has_stored(&self) -> bool {
        !self.state().stored.is_empty()
    }

    /// What was stored may stay.
    pub(super) fn vouch(&self) {
        self.state().stored.clear();
    }

    /// Takes note of an index file that is about to be stored.
    pub(super) fn note(&self, path: &str) {
        let mut state = self.state();
        if state.session.is_some() {
            state.stored.push(path.into());
        }
    }

    /// The session's name, if it was not seen alive for a while.
    fn late(&self) -> Option<String> {
        let state = self.state();
        let is_late = !(0..=LATE_SECS).contains(&(clock::now().secs - state.seen_secs));
        state.session.clone().filter(|_| is_late)
    }
}

/// What a run says that was taken for dead.
pub(super) fn gone() -> Error {
    Error::refused(
        "this run was taken for dead by a prune, after a long silence; nothing was committed",
        "run the command again: what was stored so far, and is still there, is used",
    )
}

impl Repository {
    /// Looks what is going on, and whether a session of this process is among it; if not, what it stored last is deleted.
    pub(super) fn look_for(&self, session: &str) -> Result<Live> {
        let stored = std::mem::take(&mut self.own.state().stored);
        let live = match self.live() {
            Ok(live) => live,
            Err(e) => {
                self.own.state().stored.extend(stored);
                return Err(e);
            }
        };
        if live.session(session).is_some() {
            self.own.state().seen_secs = clock::now().secs;
            return Ok(live);
        }
        let Some(first) = stored.first() else { return Err(gone()) };
        match self.backend.delete(&stored) {
            Ok(()) => Err(gone()),
            Err(e) => Err(Error::refused(
                format!(
                    "this run was taken for dead by a prune, after a long silence; nothing was committed, but {first}, \
                     which it stored, may name packs that are gone, and can't be deleted: {e}"
                ),
                "run `snapshot repair index` with access that may delete, before anything else is stored",
            )),
        }
    }

    /// Before an index file is stored: fails if the session is over.
    pub(super) fn look_if_late(&self) -> Result<()> {
        self.own.late().map_or(Ok(()), |session| self.look_for(&session).map(drop))
    }
}
