//! Objects in memory, for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Backend, Listed};
use crate::error::{Error, Result};
use crate::format::cbor::Time;

/// A store in memory with a clock of its own that moves only when told.
#[derive(Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<String, (Vec<u8>, Time)>>,
    clock: Mutex<Time>,
}

impl Memory {
    /// An empty store, at the given time.
    pub fn at(now: Time) -> Self {
        Self { clock: Mutex::new(now), ..Self::default() }
    }

    /// Moves the store's clock on.
    pub fn advance(&self, secs: i64) {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).secs += secs;
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, (Vec<u8>, Time)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.objects().insert(path.into(), (bytes, self.now()));
        Ok(())
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        let mut objects = self.objects();
        if objects.contains_key(path) {
            return Ok(false);
        }
        objects.insert(path.into(), (bytes, self.now()));
        Ok(true)
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let objects = self.objects();
        let (bytes, _) = objects.get(path).ok_or_else(|| Error::Missing { what: path.into() })?;
        if bytes.len() as u64 > max_bytes {
            return Err(Error::corrupt(path, "it is larger than allowed"));
        }
        Ok(bytes.clone())
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let whole = self.get(path, u64::MAX)?;
        let range = usize::try_from(offset).ok().zip(usize::try_from(offset + len).ok());
        let part = range.and_then(|(from, to)| whole.get(from..to));
        part.map(<[u8]>::to_vec).ok_or_else(|| Error::corrupt(path, "it is cut short"))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let objects = self.objects();
        let below = objects.range(folder.to_owned()..).take_while(|(path, _)| path.starts_with(folder));
        Ok(below
            .map(|(path, (bytes, modified))| Listed {
                path: path.clone(),
                bytes: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        let mut objects = self.objects();
        paths.iter().for_each(|path| drop(objects.remove(path)));
        Ok(())
    }
}
