//! Sessions: which writers and prunes are running.
//!
//! A session is a few objects under a random name: `sessions/<name>.0`, then `.1`, `.2` … every ten minutes. Its end
//! is their deletion. Nobody waits for a session but a prune: a pack is deleted only when every session that was
//! running at its condemnation has ended, and one prune runs at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Repository;
use crate::backend::layout;
use crate::clock;
use crate::crypto;
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::cbor::Time;
use crate::format::control::{self, Session, SessionKind};
use crate::format::header::Kind;
use crate::id::hex;
use crate::report::Reporter;

const HEARTBEAT: Duration = Duration::from_secs(600);
/// A session of another machine that was silent for this long, by the store's clock, is taken for dead.
const SILENCE_SECS: i64 = 24 * 3600;

/// A session that was found in the store.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its random name.
    pub name: String,
    /// What it is; `None` if it can't be read, which counts as a writer.
    pub session: Option<Session>,
    /// Whether the store failed to hand it out: it may be a prune, beside which no other runs.
    pub is_unread: bool,
    /// Its first sign of life, by the store's clock.
    pub first_seen: Time,
    /// Its last sign of life, by the store's clock.
    pub last_seen: Time,
    /// Its objects.
    paths: Vec<String>,
}

impl Running {
    /// Who it is, for people.
    pub fn describe(&self) -> String {
        match &self.session {
            Some(s) => format!("process {} on {} (session {})", s.pid, s.host, &self.name[..8.min(self.name.len())]),
            None => format!("an unknown session {}", self.name),
        }
    }

    /// Whether it has certainly or very probably ended without saying so: its process is gone from this machine, or
    /// it was silent for a day.
    pub fn is_dead(&self, store_now: Time) -> bool {
        if let Some(s) = &self.session
            && s.host == host()
            && s.boot == boot()
        {
            return !Path::new(&format!("/proc/{}", s.pid)).exists();
        }
        store_now.secs - self.last_seen.secs > SILENCE_SECS
    }
}

/// This process's session; ends when dropped, or by [`SessionGuard::end`].
pub struct SessionGuard {
    repo: Arc<Repository>,
    name: String,
    /// Dropping it stops the heartbeat.
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<Vec<String>>>,
    /// The store's time when the session began.
    started: Time,
}

impl SessionGuard {
    /// Announces a session and keeps it alive.
    ///
    /// # Errors
    /// When the store fails.
    pub fn start(repo: &Arc<Repository>, kind: SessionKind) -> Result<Self> {
        let name = hex(&crypto::random::<16>()?);
        let session = Session { kind, host: host(), boot: boot(), pid: std::process::id(), started: clock::now() };
        let put = {
            let (repo, name) = (repo.clone(), name.clone());
            move |n: u32| {
                let path = format!("{}{name}.{n}", layout::SESSIONS);
                repo.backend.put(&path, control::seal(&repo.keys, Kind::Session, &session)?)?;
                Ok::<_, Error>(path)
            }
        };
        let mut paths = vec![put(0)?];
        let (stop, stopped) = channel();
        let heart = std::thread::spawn(move || {
            let mut n = 0;
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                n += 1;
                // A beat that fails is made up for by the next one.
                paths.extend(put(n));
            }
            paths
        });
        let mut guard =
            Self { repo: repo.clone(), name, stop: Some(stop), heart: Some(heart), started: Time::default() };
        guard.started = guard.find()?.ok_or_else(|| guard.gone())?.last_seen;
        Ok(guard)
    }

    /// The session's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The store's clock when the session began.
    pub fn store_time(&self) -> Time {
        self.started
    }

    fn find(&self) -> Result<Option<Running>> {
        Ok(self.repo.sessions()?.into_iter().find(|s| s.name == self.name))
    }

    fn gone(&self) -> Error {
        Error::refused(
            "this run was taken for dead by a prune, after a long silence; nothing was committed",
            "run the command again: what was stored so far is used",
        )
    }

    /// Fails if a prune took this session for dead: what it relied on may be gone.
    ///
    /// # Errors
    /// [`Error::Refused`], or when the store fails.
    pub fn check_alive(&self) -> Result<()> {
        self.find()?.map(drop).ok_or_else(|| self.gone())
    }

    /// The other sessions.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn others(&self) -> Result<Vec<Running>> {
        Ok(self.repo.sessions()?.into_iter().filter(|s| s.name != self.name).collect())
    }

    /// If a session has died, takes over what it stored, and clears it away. The index is loaded.
    ///
    /// # Errors
    /// When the store fails.
    pub fn adopt_leftovers(&self, reporter: &Reporter) -> Result<()> {
        let others = self.others()?;
        let dead: Vec<_> = others.iter().filter(|s| s.is_dead(self.started)).collect();
        if dead.is_empty() {
            return Ok(());
        }
        self.adopt(reporter)?;
        dead.into_iter().try_for_each(|s| self.repo.reap(s))
    }

    /// Takes over packs that no index file describes: the index must name them before the last trace of the session
    /// goes that stored them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn adopt(&self, reporter: &Reporter) -> Result<()> {
        let mut adopted = self.repo.adopt_packs(reporter)?;
        // Not what a prune has condemned since: it may be deleting that now, and has listed the index files that go with
        // it.
        adopted.retain(|pack| !self.repo.index().is_condemned(&pack.id));
        self.repo.index_packs(&adopted).map(drop)
    }

    /// Ends the session.
    ///
    /// # Errors
    /// When the store fails.
    pub fn end(mut self) -> Result<()> {
        self.stop_and_delete()
    }

    fn stop_and_delete(&mut self) -> Result<()> {
        drop(self.stop.take());
        let Some(heart) = self.heart.take() else { return Ok(()) };
        let paths = heart.join().unwrap_or_default();
        self.repo.backend.delete(&paths)
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        // Where deletion is denied or fails, a prune clears it away.
        let _ = self.stop_and_delete();
    }
}

impl Repository {
    /// All sessions in the store.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn sessions(&self) -> Result<Vec<Running>> {
        let mut found: BTreeMap<String, Running> = BTreeMap::new();
        for listed in self.backend.list(layout::SESSIONS)? {
            let name = listed.name().split('.').next().unwrap_or_default().to_owned();
            let entry = found.entry(name.clone()).or_insert_with(|| Running {
                name,
                session: None,
                is_unread: false,
                first_seen: listed.modified,
                last_seen: listed.modified,
                paths: Vec::new(),
            });
            entry.first_seen = entry.first_seen.min(listed.modified);
            entry.last_seen = entry.last_seen.max(listed.modified);
            if entry.session.is_none() {
                match self.backend.get(&listed.path, MAX_CONTROL_BYTES as u64) {
                    Ok(bytes) => {
                        entry.session = control::open(&self.keys, Kind::Session, &bytes, &listed.path).ok();
                    }
                    // It has ended since it was listed, or nobody can read it.
                    Err(Error::Missing { .. } | Error::Corrupt { .. }) => {}
                    Err(_) => entry.is_unread = true,
                }
            }
            entry.paths.push(listed.path);
        }
        Ok(found.into_values().collect())
    }

    /// Clears a dead session away.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reap(&self, dead: &Running) -> Result<()> {
        self.backend.delete(&dead.paths)
    }
}

/// This machine's name.
pub fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

/// This boot and process namespace, within which process numbers mean something.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", id.trim(), namespace.display())
}
