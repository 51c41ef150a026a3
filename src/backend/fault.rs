//! A store that fails on command and keeps a list of what it was asked, for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Backend, Listed};
use crate::error::{Error, Result};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write and every later one fails, as on a full disk.
    Full,
    /// The write and whatever is asked after it fails, as for a process that is killed.
    Killed,
    /// The write fails and does nothing; the next one succeeds.
    Refused,
    /// The write is done, but its answer is lost.
    Unanswered,
    /// A put leaves half of the object under its name, as a store does that isn't atomic.
    Torn,
    /// A put leaves half of the object in the folder of unfinished ones.
    Unfinished,
    /// A read or a listing fails; the next one succeeds.
    Unread,
}

/// What a store is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// To write an object.
    Put,
    /// To read one, or a part of it.
    Get,
    /// To list a folder.
    List,
    /// To delete an object.
    Delete,
}

impl Op {
    fn is_write(self) -> bool {
        matches!(self, Self::Put | Self::Delete)
    }
}

/// One thing that was asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// What.
    pub op: Op,
    /// Of which object or folder.
    pub path: String,
}

/// Passes everything on to another store until its fault comes.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    fault: Fault,
    at: u64,
    writes: AtomicU64,
    reads: AtomicU64,
    calls: Mutex<Vec<Call>>,
    concurrency: usize,
}

impl Faulty {
    /// Fails writes and deletions from number `fail_from` (counted from 0) on, as a full disk does.
    pub fn new(inner: Arc<dyn Backend>, fail_from: u64) -> Self {
        Self::with(inner, Fault::Full, fail_from)
    }

    /// Has the fault at write number `at`, counted from 0, where each deleted object counts; [`Fault::Unread`] at read
    /// number `at`.
    pub fn with(inner: Arc<dyn Backend>, fault: Fault, at: u64) -> Self {
        Self {
            inner,
            fault,
            at,
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            calls: Mutex::default(),
            concurrency: 1,
        }
    }

    /// Is asked so many things at once, as one that is far away.
    pub fn wide(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// Never fails, and lists what is asked.
    pub fn recorder(inner: Arc<dyn Backend>) -> Self {
        Self::with(inner, Fault::Full, u64::MAX)
    }

    /// How many writes and deletions were asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Takes what was asked so far, in order.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does what is asked, or what the fault makes of it. `half` is what a torn put leaves.
    fn call<T>(&self, op: Op, path: &str, half: &[u8], act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call { op, path: path.into() });
        let counter = if op.is_write() { &self.writes } else { &self.reads };
        let number = counter.fetch_add(1, Ordering::SeqCst);
        let is_hit = number == self.at && op.is_write() == (self.fault != Fault::Unread);
        let is_past = self.writes() > self.at;
        match self.fault {
            Fault::Full if is_past && op.is_write() => {}
            Fault::Killed if is_past => {}
            Fault::Refused | Fault::Unread if is_hit => {}
            Fault::Unanswered if is_hit => drop(act()?),
            Fault::Torn if is_hit && op == Op::Put => self.inner.put(path, half.to_vec())?,
            Fault::Unfinished if is_hit && op == Op::Put => self.inner.put("tmp/unfinished", half.to_vec())?,
            Fault::Torn | Fault::Unfinished if is_hit => {}
            _ => return act(),
        }
        let action = match op {
            Op::Put => "write",
            Op::Get => "read",
            Op::List => "list",
            Op::Delete => "delete",
        };
        Err(Error::Storage { action, object: path.into(), why: "injected fault".into(), full: false })
    }
}

fn half(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() / 2].to_vec()
}

impl Backend for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.call(Op::Put, path, &half(&bytes), || self.inner.put(path, bytes))
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.call(Op::Put, path, &half(&bytes), || self.inner.put_new(path, bytes))
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.call(Op::Get, path, &[], || self.inner.get(path, max_bytes))
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.call(Op::Get, path, &[], || self.inner.get_range(path, offset, len))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.call(Op::List, folder, &[], || self.inner.list(folder))
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            self.call(Op::Delete, path, &[], || self.inner.delete(std::slice::from_ref(path)))?;
        }
        Ok(())
    }
}
