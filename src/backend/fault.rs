//! A store that fails on command, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Backend, Listed};
use crate::error::{Error, Result};

/// Fails the n-th write and every one after it, as a full disk or a lost connection does.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    writes: AtomicU64,
    fail_from: u64,
}

impl Faulty {
    /// Passes everything to `inner`, but fails writes and deletions from number `fail_from` (counted from 0) on.
    pub fn new(inner: Arc<dyn Backend>, fail_from: u64) -> Self {
        Self { inner, writes: AtomicU64::new(0), fail_from }
    }

    /// How many writes and deletions were asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    fn count(&self, action: &'static str, object: &str) -> Result<()> {
        if self.writes.fetch_add(1, Ordering::SeqCst) < self.fail_from {
            return Ok(());
        }
        Err(Error::Storage { action, object: object.into(), why: "injected fault".into(), full: false })
    }
}

impl Backend for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.count("write", path)?;
        self.inner.put(path, bytes)
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        self.count("write", path)?;
        self.inner.put_new(path, bytes)
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.inner.get(path, max_bytes)
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.inner.get_range(path, offset, len)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.inner.list(folder)
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            self.count("delete", path)?;
            self.inner.delete(std::slice::from_ref(path))?;
        }
        Ok(())
    }
}
