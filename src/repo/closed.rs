//! A repository that was found and is not open yet: its config is read once, and the copy of it only where it is needed.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Repository, unlock};
use crate::backend::{Backend, Cached, Listed, both, layout};
use crate::crypto::{Keys, Secret};
use crate::error::{Error, Result};
use crate::format::MAX_CONFIG_BYTES;
use crate::format::config::Config;
use crate::format::keyslot::Unlock;
use crate::report::{Problem, Reporter, Severity};

/// A config as it was read, and its bytes.
type Found = Result<(Config, Vec<u8>)>;

/// A repository that is not open.
pub struct Closed {
    backend: Arc<dyn Backend>,
    /// The key slots, as listed.
    slots: Result<Vec<Listed>>,
    first: Found,
    copy: OnceCell<Found>,
}

fn read(backend: &dyn Backend, path: &str) -> Found {
    let bytes = backend.get(path, MAX_CONFIG_BYTES as u64)?;
    Config::parse(&bytes, path).map(|config| (config, bytes))
}

fn authentic<'f>(keys: &Keys, found: &'f Found) -> Option<&'f Config> {
    found.as_ref().ok().filter(|(_, bytes)| Config::is_authentic(keys, bytes)).map(|(config, _)| config)
}

impl Closed {
    /// Looks for a repository.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::Unsupported`], or why neither the config nor its copy can be had.
    pub fn find(backend: Arc<dyn Backend>) -> Result<Self> {
        let (first, slots) = both(&*backend, || read(&*backend, layout::CONFIG), || backend.list(layout::KEYS));
        let Err(error) = first else { return Ok(Self { backend, slots, first, copy: OnceCell::new() }) };
        match (read(&*backend, layout::CONFIG_COPY), error) {
            (Ok(found), error) => Ok(Self { backend, slots, first: Err(error), copy: OnceCell::from(Ok(found)) }),
            (Err(Error::Missing { .. }), Error::Missing { .. }) => Err(Error::NoRepository { at: backend.describe() }),
            // Of a place that holds no config that makes sense, a wrong key is not the thing to say.
            (_, error @ Error::Unsupported { .. }) | (Err(error @ Error::Unsupported { .. }), _) | (_, error) => {
                Err(error)
            }
        }
    }

    /// Reads what has been read before, and writes what is written, in a directory: see [`Cached`]. For repositories
    /// that are asked over a network; without a directory nothing is left behind.
    #[must_use]
    pub fn cached(self, cache: Option<(PathBuf, u64)>) -> Self {
        let configs = [Some(&self.first), self.copy.get()];
        let id = configs.into_iter().flatten().flatten().map(|(config, _)| config.id()).next();
        let directory = cache.zip(id).map(|((dir, max_bytes), id)| (dir.join(id), max_bytes));
        Self { backend: Arc::new(Cached::new(self.backend, directory)), ..self }
    }

    fn copy(&self) -> &Found {
        self.copy.get_or_init(|| read(&*self.backend, layout::CONFIG_COPY))
    }

    /// Opens it with a secret; `secret` is what it is called in errors. The index is loaded separately.
    ///
    /// # Errors
    /// [`Error::WrongKey`], or damage to the key slots or to both configs.
    pub fn open(mut self, unlock: &Unlock, secret: &str, reporter: &Reporter) -> Result<Repository> {
        let slots = std::mem::replace(&mut self.slots, Ok(Vec::new()))?;
        let right = |master: &Secret| {
            let keys = Keys::derive(master);
            authentic(&keys, &self.first).or_else(|| authentic(&keys, self.copy())).is_some()
        };
        let opened = unlock::find_master(&*self.backend, &slots, unlock, secret, &right)?;
        let keys = Keys::derive(&opened.0);
        let config = if let Some(config) = authentic(&keys, &self.first) {
            config.clone()
        } else if let Some(config) = authentic(&keys, self.copy()) {
            reporter.problem(Problem {
                severity: Severity::Note,
                what: layout::CONFIG.into(),
                why: "it is damaged or missing; its copy was used".into(),
                hint: Some("run `snapshot repair index`, which writes it anew".into()),
            });
            config.clone()
        } else {
            let forged = || Error::corrupt(layout::CONFIG, "it was not written with this repository's keys");
            return Err(self.first.err().unwrap_or_else(forged));
        };
        Ok(Repository::assemble(self.backend, config, opened, keys))
    }
}
