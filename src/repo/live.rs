//! What is going on in a repository: which sessions are running, and which packs are condemned. Both lie in one folder,
//! so that one listing shows them as they were at one moment.

use std::collections::BTreeMap;

use super::Repository;
use super::machine::{began_secs, boot, host, is_running};
use super::session::own;
use crate::backend::{Listed, layout};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::cbor::Time;
use crate::format::control::{self, Condemned, Session, SessionKind};
use crate::format::header::Kind;
use crate::id::{GcId, PackId};
use crate::report::{Problem, Reporter, Severity};

/// A session of another machine that was silent for this long, by the store's clock, is taken for dead.
const SILENCE_SECS: i64 = 24 * 3600;
/// So many seconds without a sign of life, which comes every ten minutes, are no accident.
const MISSED_SECS: i64 = 3600;

/// A session as a listing shows it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    name: String,
    /// Its first sign of life, by the store's clock.
    pub(super) first_seen: Time,
    last_seen: Time,
    /// Its objects.
    paths: Vec<String>,
    /// Whether it has its first object.
    has_first: bool,
    /// Whether it has the one that says that it is over.
    has_end: bool,
}

impl Seen {
    /// It ends by the deletion of its objects, of which some may be left, or by one more.
    fn is_over(&self) -> bool {
        !self.has_first || self.has_end
    }
}

/// One listing of what is going on.
#[derive(Debug, Clone, Default)]
pub struct Live {
    sessions: BTreeMap<String, Seen>,
    records: Vec<Listed>,
}

impl Live {
    fn of(listed: Vec<Listed>) -> Self {
        let mut live = Self::default();
        for listed in listed {
            let Some((name, part)) = layout::parse_session(&listed.path) else {
                live.records.extend(Some(listed).filter(|l| layout::is_gc(&l.path)));
                continue;
            };
            let seen = live.sessions.entry(name.to_owned()).or_insert_with(|| Seen {
                name: name.to_owned(),
                first_seen: listed.modified,
                last_seen: listed.modified,
                paths: Vec::new(),
                has_first: false,
                has_end: false,
            });
            seen.first_seen = seen.first_seen.min(listed.modified);
            seen.last_seen = seen.last_seen.max(listed.modified);
            seen.has_first |= part == layout::FIRST;
            seen.has_end |= part == layout::END;
            seen.paths.push(listed.path);
        }
        live
    }

    /// A session that is not over.
    pub(super) fn session(&self, name: &str) -> Option<&Seen> {
        self.sessions.get(name).filter(|seen| !seen.is_over())
    }

    /// Whether any session but this one is not over.
    pub fn has_others(&self, own: &str) -> bool {
        self.sessions.values().any(|seen| seen.name != own && !seen.is_over())
    }

    /// What is left of sessions that are over: their ends, which go last.
    fn remains(&self) -> (Vec<String>, Vec<String>) {
        let over = self.sessions.values().filter(|seen| seen.is_over());
        over.flat_map(|seen| seen.paths.iter().cloned()).partition(|path| path.ends_with(layout::END))
    }
}

/// A session that was found in the store, and is not over.
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

    /// Whether the process that has the session's number now is another: the number was handed out again, which in
    /// containers, where it is always the same few, is the rule. It began later than the session, and gave no sign of
    /// life for an hour: a clock that was set may say the first of any process.
    fn is_another(&self, session: &Session, store_now: Time) -> bool {
        store_now.secs - self.last_seen.secs > MISSED_SECS
            && began_secs(session.pid).is_some_and(|secs| secs > session.started.secs + MISSED_SECS)
    }

    /// Whether it has certainly or very probably ended without saying so: its process is gone from this machine, or
    /// it was silent for a day.
    pub fn is_dead(&self, store_now: Time) -> bool {
        if let Some(s) = &self.session
            && s.host == host()
            && s.boot == boot()
        {
            return !is_running(s.pid) || self.is_another(s, store_now);
        }
        store_now.secs - self.last_seen.secs > SILENCE_SECS
    }
}

/// A record of condemned packs with its path and its age by the store's clock.
#[derive(Debug, Clone)]
pub struct Condemnation {
    /// Its path in the repository.
    pub path: String,
    /// When the store wrote it, by the store's clock.
    pub modified: Time,
    /// Its contents.
    pub record: Condemned,
}

impl Repository {
    /// Lists what is going on: one request.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn live(&self) -> Result<Live> {
        self.backend.list(layout::LIVE).map(Live::of)
    }

    /// All sessions that are not over.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn sessions(&self) -> Result<Vec<Running>> {
        Ok(self.running(&self.live()?, ""))
    }

    /// Reads the sessions that are not over, but for this run's own.
    pub fn running(&self, live: &Live, own: &str) -> Vec<Running> {
        let others = live.sessions.values().filter(|seen| seen.name != own && !seen.is_over());
        others.map(|seen| self.read_session(seen)).collect()
    }

    fn read_session(&self, seen: &Seen) -> Running {
        let Seen { name, first_seen, last_seen, paths, .. } = seen.clone();
        let mut running = Running { name, session: None, is_unread: false, first_seen, last_seen, paths };
        for path in &seen.paths {
            match self.backend.get(path, MAX_CONTROL_BYTES as u64) {
                Ok(bytes) => running.session = control::open(&self.keys, Kind::Session, &bytes, path).ok(),
                // It has ended since it was listed, or nobody can read it.
                Err(Error::Missing { .. } | Error::Corrupt { .. }) => {}
                Err(_) => running.is_unread = true,
            }
            if running.session.is_some() {
                running.is_unread = false;
                break;
            }
        }
        running
    }

    /// Ends a session that is dead: its objects go, or it gets one more where nothing can be deleted.
    ///
    /// # Errors
    /// When the store allows neither.
    pub fn reap(&self, dead: &Running) -> Result<()> {
        self.end_session(&dead.name, &dead.paths, &own(SessionKind::Write))
    }

    /// Deletes a session's objects, or stores one more that says that it is over. The first object goes with the others:
    /// from then on it is over, whatever is left.
    pub(super) fn end_session(&self, name: &str, paths: &[String], ended_by: &Session) -> Result<()> {
        self.backend.delete(paths).or_else(|denied| {
            let bytes = control::seal(&self.keys, Kind::Session, ended_by)?;
            self.backend.put(&layout::session(name, layout::END), bytes).map_err(|_| denied)
        })
    }

    /// Deletes what is left of sessions that are over.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remove_remains(&self, live: &Live) -> Result<()> {
        let (ends, rest) = live.remains();
        // An end goes after what it ends, which would be running without it.
        self.backend.delete(&rest)?;
        self.backend.delete(&ends)
    }

    /// All records of condemned packs. A damaged one is reported and left out: what no prune can read, no prune acts
    /// on.
    ///
    /// # Errors
    /// When the store can't be listed, or fails to hand out a record: a prune may read it the next moment, and act on
    /// it, so nobody who relies on packs may do without it.
    pub fn condemned(&self, reporter: &Reporter) -> Result<Vec<Condemnation>> {
        self.records(&self.live()?, reporter)
    }

    /// The same for records that are listed already.
    ///
    /// # Errors
    /// When the store fails to hand out a record.
    pub fn records(&self, live: &Live, reporter: &Reporter) -> Result<Vec<Condemnation>> {
        let mut out = Vec::new();
        for Listed { path, modified, .. } in live.records.iter().cloned() {
            let read = || {
                let bytes = self.backend.get(&path, MAX_CONTROL_BYTES as u64)?;
                control::open(&self.keys, Kind::Gc, &bytes, &path)
            };
            // Whoever doesn't know it relies on what the prune that reads it well will delete: damage on the way must not
            // pass for damage of the record.
            let read = read().or_else(|e| if matches!(e, Error::Corrupt { .. }) { read() } else { Err(e) });
            match read {
                Ok(record) => out.push(Condemnation { path, modified, record }),
                Err(Error::Missing { .. }) if self.backend.list(layout::LIVE)?.iter().any(|l| l.path == path) => {
                    let why = "the storage lists it and does not hand it out".into();
                    return Err(Error::Storage { action: "read", object: path, why, full: false });
                }
                Err(Error::Missing { .. }) => {}
                // A version that nobody wrote is damage here: a newer program would have changed the config.
                Err(e @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => reporter.problem(Problem {
                    severity: Severity::Note,
                    what: path,
                    why: format!("{e}; nothing will be deleted on account of it"),
                    hint: Some("run `snapshot repair index`, which removes it".into()),
                }),
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Records packs as condemned, durably, and marks them in the index in memory.
    ///
    /// # Errors
    /// When the store fails.
    pub fn condemn(&self, packs: Vec<PackId>, sessions: Vec<String>) -> Result<()> {
        let record = Condemned { time: clock::now(), packs, sessions };
        let bytes = control::seal(&self.keys, Kind::Gc, &record)?;
        self.backend.put(&layout::gc(GcId(*blake3::hash(&bytes).as_bytes())), bytes)?;
        self.with_index(|index| index.condemn(record.packs));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::process;
    use super::*;

    const NOW: i64 = 2_000_000;

    /// A session of this boot, with a process number, that began so long before this process, and was last seen so many
    /// seconds ago.
    fn running(pid: u32, began_before_secs: i64, silent_secs: i64) -> Running {
        let started = Time { secs: began_secs(process()).unwrap() - began_before_secs, nanos: 0 };
        let session = Session { pid, started, ..own(SessionKind::Write) };
        let seen = Time { secs: NOW - silent_secs, nanos: 0 };
        let (first_seen, last_seen) = (seen, seen);
        Running { name: "n".into(), session: Some(session), is_unread: false, first_seen, last_seen, paths: vec![] }
    }

    fn is_dead(running: &Running) -> bool {
        running.is_dead(Time { secs: NOW, nanos: 0 })
    }

    #[test]
    fn a_number_that_was_handed_out_again_does_not_keep_a_session_alive() {
        let me = process();
        assert!(is_dead(&running(me, 2 * MISSED_SECS, 2 * MISSED_SECS)));
        // It gave a sign of life: the clock was set.
        assert!(!is_dead(&running(me, 2 * MISSED_SECS, 700)));
        // It is that process, and this machine slept.
        assert!(!is_dead(&running(me, -5, 3 * SILENCE_SECS)));
        // No process gets this number: it is above the largest that Linux can be set to.
        assert!(is_dead(&running(1 << 23, -5, 0)));
    }

    #[test]
    fn a_process_of_another_user_runs() {
        // The first process of all is root's; whoever isn't root may not send it anything.
        assert!(is_running(1));
        assert!(!is_running(u32::MAX));
    }
}
