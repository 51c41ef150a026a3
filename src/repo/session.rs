//! Sessions: which writers and prunes are running.
//!
//! A session is a few objects under a random name: `live/<name>.0`, then `.1`, `.2` … every ten minutes. Its end is their
//! deletion, or where that is denied one more, `.end`. Nobody waits for a session but a prune: a pack is deleted only
//! when every session that was running at its condemnation has ended, and one prune runs at a time.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::machine::{boot, host, process};
use super::{Live, Repository, Running, own};
use crate::backend::layout;
use crate::clock;
use crate::crypto;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::control::{self, Session, SessionKind};
use crate::format::header::Kind;
use crate::format::snapshot::Snapshot;
use crate::id::{BlobId, SnapshotId, hex};
use crate::report::Reporter;

const HEARTBEAT: Duration = Duration::from_secs(600);
/// How long is waited for a listing to show this run's session, in milliseconds, each time before another listing.
const LAGS_MILLIS: [u64; 4] = [100, 300, 900, 1700];

/// This process's session; ends when dropped, or by [`SessionGuard::end`].
pub struct SessionGuard {
    repo: Arc<Repository>,
    name: String,
    session: Session,
    /// Dropping it stops the heartbeat.
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<Vec<String>>>,
    /// What was going on when the session began, itself included.
    begun: Live,
    /// The store's time when the session began.
    started: Time,
}

impl SessionGuard {
    /// Announces a session, looks what else is going on, and keeps the session alive.
    ///
    /// # Errors
    /// When the store fails.
    pub fn start(repo: &Arc<Repository>, kind: SessionKind) -> Result<Self> {
        let name = hex(&crypto::random::<16>()?);
        let session = own(kind);
        let put = {
            let (repo, name, session) = (repo.clone(), name.clone(), session.clone());
            move |part: &str| {
                let path = layout::session(&name, part);
                repo.backend.put(&path, control::seal(&repo.keys, Kind::Session, &session)?)?;
                Ok::<_, Error>(path)
            }
        };
        let mut paths = vec![put(layout::FIRST)?];
        let (stop, stopped) = channel();
        let heart = std::thread::spawn(move || {
            let mut n = 0;
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                n += 1;
                // A beat that fails is made up for by the next one.
                paths.extend(put(&n.to_string()));
            }
            paths
        });
        let (stop, heart) = (Some(stop), Some(heart));
        let (begun, started) = (Live::default(), Time::default());
        let mut guard = Self { repo: repo.clone(), name, session, stop, heart, begun, started };
        let mut lags = LAGS_MILLIS.into_iter();
        loop {
            guard.begun = repo.live()?;
            if let Some(seen) = guard.begun.session(&guard.name) {
                guard.started = seen.first_seen;
                repo.own.begin(&guard.name);
                return Ok(guard);
            }
            let Some(millis) = lags.next() else {
                return Err(Error::refused(
                    "the storage doesn't list what was just stored; nothing was committed",
                    "it must list each object as soon as it is stored: look whether all requests go to the same server",
                ));
            };
            std::thread::sleep(Duration::from_millis(millis));
        }
    }

    /// The session's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was going on when the session began, itself included.
    pub fn begun(&self) -> &Live {
        &self.begun
    }

    /// The store's clock when the session began.
    pub fn store_time(&self) -> Time {
        self.started
    }

    /// Looks what is going on. Fails if this session was taken for dead: what it relied on may be gone. The index files
    /// that it stored since the last look are deleted then.
    ///
    /// # Errors
    /// [`Error::Refused`], or when the store fails.
    pub fn look(&self) -> Result<Live> {
        self.repo.look_for(&self.name)
    }

    /// Fails if this session was taken for dead: what it relied on may be gone.
    ///
    /// # Errors
    /// [`Error::Refused`], or when the store fails.
    pub fn check_alive(&self) -> Result<()> {
        self.look().map(drop)
    }

    /// The other sessions of a listing that are not over.
    pub fn others(&self, live: &Live) -> Vec<Running> {
        self.repo.running(live, &self.name)
    }

    /// The other sessions of a listing that are running, as far as is known.
    pub fn living(&self, live: &Live) -> Vec<Running> {
        let mut others = self.others(live);
        others.retain(|other| !other.is_dead(self.started));
        others
    }

    /// Makes sure that what a root directory needs can be relied on: copies it out of packs that were condemned since
    /// the index was loaded. Returns the listing by which nothing was left to copy, and this session is alive.
    ///
    /// # Errors
    /// [`Error::Refused`] if this session was taken for dead; damage, and storage errors.
    pub fn secure(&self, tree: BlobId, reporter: &Reporter) -> Result<Live> {
        loop {
            let live = self.look()?;
            if !self.repo.rescue_condemned(tree, &live, reporter)? {
                return Ok(live);
            }
        }
    }

    /// Stores a snapshot whose data was just made sure of, see [`SessionGuard::secure`]: from here on it exists. Then
    /// looks once more: a prune that listed the snapshots before this one was there may have condemned what it needs.
    ///
    /// # Errors
    /// [`Error::Refused`] if this session was taken for dead meanwhile, and the snapshot is not whole: it is gone again.
    /// Damage and storage errors.
    pub fn commit(&self, snapshot: &Snapshot, reporter: &Reporter) -> Result<SnapshotId> {
        let id = self.repo.put_snapshot(snapshot)?;
        let live = self.repo.live()?;
        let rescued = self.repo.rescue_condemned(snapshot.tree, &live, reporter);
        if live.session(&self.name).is_some() {
            self.repo.own.vouch();
            return rescued.map(|_| id);
        }
        // It stood still between the last look and the commit, for so long that it was cleared away, and prunes may have
        // deleted what it relied on. One that runs now may not have seen the snapshot.
        if rescued.is_ok() && self.repo.is_left_alone(snapshot.tree, &live)? {
            self.repo.own.vouch();
            return Ok(id);
        }
        self.repo.backend.delete(&[layout::snapshot(id)]).map_err(|e| {
            Error::refused(
                format!(
                    "snapshot {} was stored after this run was taken for dead by a prune, may not be whole, and can't \
                     be deleted: {e}",
                    id.short()
                ),
                "run `snapshot check`, and `snapshot repair snapshots` if it finds something missing",
            )
        })?;
        Err(own::gone())
    }

    /// If a session has died, takes over what it stored, and clears it away. The index is loaded.
    ///
    /// A session of this machine before it was started last is not known to be dead for a day: another machine may have
    /// the same name. What it stored is taken over nevertheless, so that a first upload goes on after a power failure:
    /// that is safe beside a living session, too, which will index the same packs once more.
    ///
    /// # Errors
    /// When the store fails.
    pub fn adopt_leftovers(&self, reporter: &Reporter) -> Result<()> {
        let others = self.others(&self.begun);
        let is_before = |s: &&Running| {
            s.session.as_ref().is_some_and(|s| s.host == self.session.host && s.boot != self.session.boot)
        };
        let dead: Vec<_> = others.iter().filter(|s| s.is_dead(self.started)).collect();
        if dead.is_empty() && others.iter().find(is_before).is_none() {
            return Ok(());
        }
        self.adopt(reporter)?;
        // One that stays is cleared away by the next run: somebody else may have been faster.
        dead.iter().for_each(|s| drop(self.repo.reap(s)));
        Ok(())
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
        if self.heart.is_none() {
            return Ok(());
        }
        let looked = if self.repo.own.has_stored() { self.check_alive() } else { Ok(()) };
        drop(self.stop.take());
        let Some(heart) = self.heart.take() else { return looked };
        let paths = heart.join().unwrap_or_default();
        self.repo.own.end();
        self.repo.end_session(&self.name, &paths, &self.session).and(looked)
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        // Where that fails, a prune clears it away.
        let _ = self.stop_and_delete();
    }
}

/// A session of this process.
pub(super) fn own(kind: SessionKind) -> Session {
    Session { kind, host: host(), boot: boot(), pid: process(), started: clock::now() }
}
