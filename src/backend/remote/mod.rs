//! A repository on a network: S3 and others through OpenDAL, SFTP through the `ssh` of the system.
//!
//! May depend on `id`, `error`, `format`, `crypto`. The only place with async code besides `local.rs`: calls block their
//! thread until they are done, repeated where that helps (`retry.rs`), counted (`meter.rs`) and kept to the bandwidth
//! allowed (`limit.rs`). All that a call needs is handed in: nothing here reads the environment.

mod answers;
mod failure;
mod http;
mod limit;
mod meter;
mod objects;
mod other;
mod place;
mod retry;
mod s3;
mod sftp;

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

use super::{Backend, Listed};
use crate::error::{Error, Result};
use failure::Failure;
use limit::Limiter;
use meter::Meter;
use retry::{Call, Patience};

pub use meter::{Requests, Usage};
pub use other::Options;
pub use place::{OtherPlace, Place, S3Place, Service, SftpPlace};
pub use retry::{Surroundings, Weight};
pub use s3::{Addressing, Credentials, Settings as S3Settings};
pub use sftp::Settings as SftpSettings;

/// How often a part is asked for that comes back too short.
const SHORT_READS: usize = 3;
/// Threads that move bytes between sockets and memory.
const WORKERS: usize = 2;

/// Bandwidth, in bytes a second; `None`: all there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// To the server.
    pub up: Option<u64>,
    /// From the server.
    pub down: Option<u64>,
}

/// What moves the bytes of a store, and counts them.
#[derive(Debug)]
struct Line {
    meter: Meter,
    up: Limiter,
    down: Limiter,
}

/// A repository on a network.
pub struct Remote {
    place: String,
    /// The same with the server's name, for errors.
    at: String,
    store: Store,
    line: Arc<Line>,
    patience: Patience,
    // Dropped last: the store runs on it.
    runtime: Runtime,
}

enum Store {
    Objects(objects::Objects),
    Sftp(sftp::Sftp),
}

impl Remote {
    /// Uses a bucket. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Refused`] for settings that make no sense.
    pub fn s3(place: &S3Place, settings: &S3Settings, limits: Limits, surroundings: Surroundings) -> Result<Self> {
        Self::build(limits, surroundings, |line| {
            Ok((place.to_string(), Store::Objects(s3::open(place, settings, line)?)))
        })
    }

    /// Uses a container of another service that OpenDAL knows. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Refused`] for settings that make no sense, and if the service was not built in.
    pub fn other(place: &OtherPlace, settings: Options, limits: Limits, surroundings: Surroundings) -> Result<Self> {
        Self::build(limits, surroundings, |line| {
            Ok((place.to_string(), Store::Objects(other::open(place, settings, line)?)))
        })
    }

    /// Uses a directory of a server. No connection is made yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when no thread can be started.
    pub fn sftp(place: &SftpPlace, settings: SftpSettings, limits: Limits, surroundings: Surroundings) -> Result<Self> {
        Self::build(limits, surroundings, |line| {
            Ok((place.to_string(), Store::Sftp(sftp::Sftp::new(place.clone(), settings, line))))
        })
    }

    fn build(
        limits: Limits,
        surroundings: Surroundings,
        make: impl FnOnce(Arc<Line>) -> Result<(String, Store)>,
    ) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).thread_name("storage").enable_all().build();
        let runtime = runtime.map_err(|e| {
            Error::refused(format!("no thread for storage can be started: {e}"), "run fewer programs at once")
        })?;
        let line =
            Arc::new(Line { meter: Meter::default(), up: Limiter::new(limits.up), down: Limiter::new(limits.down) });
        let (place, store) = {
            let _context = runtime.enter();
            make(line.clone())?
        };
        let at = match &store {
            Store::Objects(objects) if !place.contains(&objects.host) => format!("{place} on {}", objects.host),
            _ => place.clone(),
        };
        Ok(Self { place, at, store, line, patience: Patience::new(surroundings), runtime })
    }

    fn run<T, F>(&self, action: &'static str, object: &str, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let call = Call { action, object, at: &self.at };
        self.runtime.block_on(self.patience.with(call, &self.line.meter, attempt))
    }
}

impl Backend for Remote {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let bytes = Bytes::from(bytes);
        self.run("write", path, || async {
            match &self.store {
                Store::Objects(objects) => objects.put(path, bytes.clone()).await,
                Store::Sftp(sftp) => sftp.put(path, bytes.clone()).await,
            }
        })
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        let bytes = Bytes::from(bytes);
        let is_new = self.run("write", path, || async {
            match &self.store {
                Store::Objects(objects) => objects.put_new(path, bytes.clone()).await,
                Store::Sftp(sftp) => sftp.put_new(path, bytes.clone()).await,
            }
        })?;
        // If the answer to an attempt was lost, what is there may be ours.
        Ok(is_new || self.get(path, bytes.len() as u64).is_ok_and(|there| there == bytes))
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let got = self.run("read", path, || async {
            match &self.store {
                Store::Objects(objects) => objects.get(path, max_bytes).await,
                Store::Sftp(sftp) => sftp.get(path, max_bytes).await,
            }
        })?;
        got.ok_or_else(|| Error::corrupt(path, "it is larger than allowed"))
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        // Something on the way may have cut it short.
        for _ in 0..SHORT_READS {
            let got = self.run("read", path, || async {
                match &self.store {
                    Store::Objects(objects) => objects.get_range(path, offset, len).await,
                    Store::Sftp(sftp) => sftp.get_range(path, offset, len).await,
                }
            })?;
            if let Some(got) = got {
                return Ok(got);
            }
        }
        Err(Error::corrupt(path, "it is cut short"))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let mut listed = self.run("list", folder, || async {
            match &self.store {
                Store::Objects(objects) => objects.list(folder).await,
                Store::Sftp(sftp) => sftp.list(folder).await,
            }
        })?;
        listed.sort();
        Ok(listed)
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        let Some(first) = paths.first() else { return Ok(()) };
        self.run("delete", first, || async {
            match &self.store {
                Store::Objects(objects) => objects.delete(paths).await,
                Store::Sftp(sftp) => sftp.delete(paths).await,
            }
        })
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn concurrency(&self) -> usize {
        match &self.store {
            Store::Objects(_) => objects::CONCURRENCY,
            Store::Sftp(_) => sftp::CONCURRENCY,
        }
    }

    fn usage(&self) -> Option<Usage> {
        Some(self.line.meter.usage())
    }
}
