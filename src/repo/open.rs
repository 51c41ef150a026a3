//! Making and opening a repository, and loading its index.

use std::sync::{Arc, RwLock};

use rayon::prelude::*;

use super::own::Own;
use super::read::FrameCache;
use super::segments::BaseCache;
use super::strays::Strays;
use super::unlock::Opened;
use super::{Closed, Condemnation, Live, Lost, Repository, unlock};
use crate::backend::{Backend, Listed, at_once, both, layout};
use crate::crypto::{KdfCost, Keys, Secret};
use crate::error::{Error, Result};
use crate::format::config::Config;
use crate::format::header::{HEADER_BYTES, Kind};
use crate::format::index::{Index, RECORD_BYTES};
use crate::format::keyslot::Unlock;
use crate::format::pack::{PackInfo, open_directory, prefix_bytes};
use crate::format::{MAX_CONFIG_BYTES, MAX_INDEX_BYTES};
use crate::id::PackId;
use crate::index::{BlobIndex, Builder};
use crate::report::{Problem, Reporter, Severity};

/// Which index files are in memory.
#[derive(Debug)]
pub struct LoadedIndex {
    /// The files.
    pub files: Vec<IndexFile>,
    /// Whether these were all that were listed.
    pub complete: bool,
    /// Why one could not be had that may be sound, if that happened.
    pub unread: Option<Error>,
}

/// An index file that is in memory.
#[derive(Debug, Clone)]
pub struct IndexFile {
    /// Its path in the repository.
    pub path: String,
    /// Its length, in bytes.
    pub bytes: u64,
    /// How many blobs it describes.
    pub blobs: u64,
    /// Which packs came with it, by their numbers in the index in memory.
    pub packs: std::ops::Range<u32>,
    /// Whether it describes other packs, too, which came with another file.
    pub overlaps: bool,
}

/// Index files are opened together as long as they have so many bytes; a larger one by itself.
const INDEX_BYTES_AT_ONCE: u64 = 4 << 20;

/// Read in one go where a pack's directory is wanted: enough for most.
const DIRECTORY_GUESS_BYTES: u64 = 16 << 10;

impl Repository {
    /// Makes a repository with one key slot.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one, or anything else, at that place.
    pub fn init(backend: Arc<dyn Backend>, unlock: &Unlock, cost: KdfCost, label: &str) -> Result<Self> {
        let at = backend.describe();
        if backend.list("")?.iter().any(|l| !l.path.starts_with("tmp/") && !l.path.starts_with(layout::KEYS)) {
            return Err(Error::Exists { at, what: "a repository, or other files" });
        }
        let master = Secret::random()?;
        let keys = Keys::derive(&master);
        let config = Config::fresh()?;
        let bytes = config.to_bytes(&keys)?;
        // The slot first: a config without a slot would be a repository that nobody can open. A slot that a failed
        // or beaten init left behind wraps another master key and opens nothing.
        let slot = unlock::put_slot(&*backend, &master, unlock, cost, label)?;
        Self::outwait_rivals(&*backend, &slot.path)?;
        if !backend.put_new(layout::CONFIG, bytes.clone())? {
            backend.delete(std::slice::from_ref(&slot.path))?;
            return Err(Error::Exists { at, what: "a repository" });
        }
        backend.put(layout::CONFIG_COPY, bytes)?;
        Ok(Self::assemble(backend, config, (master, slot), keys))
    }

    pub(super) fn assemble(
        backend: Arc<dyn Backend>,
        config: Config,
        (master, opened): (Secret, Opened),
        keys: Keys,
    ) -> Self {
        Self {
            backend,
            config,
            master,
            keys,
            opened,
            index: RwLock::default(),
            frames: FrameCache::default(),
            bases: BaseCache::default(),
            strays: Strays::default(),
            own: Own::default(),
        }
    }

    /// Whether there is a repository.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn exists(backend: &dyn Backend) -> Result<bool> {
        match backend.get(layout::CONFIG, MAX_CONFIG_BYTES as u64) {
            Err(Error::Missing { .. }) => Ok(!backend.list(layout::CONFIG_COPY)?.is_empty()),
            Err(e) => Err(e),
            Ok(_) => Ok(true),
        }
    }

    /// Opens a repository with a secret; `secret` is what it is called in errors. The index is loaded separately.
    ///
    /// # Errors
    /// As [`Closed::find`] and [`Closed::open`].
    pub fn open(backend: Arc<dyn Backend>, unlock: &Unlock, secret: &str, reporter: &Reporter) -> Result<Self> {
        Closed::find(backend)?.open(unlock, secret, reporter)
    }

    /// Writes the config and its copy anew where they differ from what was opened.
    ///
    /// # Errors
    /// When the store fails.
    pub fn repair_config(&self) -> Result<bool> {
        let bad: Vec<_> = [layout::CONFIG, layout::CONFIG_COPY]
            .into_iter()
            .filter(|path| {
                let bytes = self.backend.get(path, MAX_CONFIG_BYTES as u64).unwrap_or_default();
                !Config::is_authentic(&self.keys, &bytes)
            })
            .collect();
        let bytes = self.config.to_bytes(&self.keys)?;
        bad.iter().try_for_each(|path| self.backend.put(path, bytes.clone()))?;
        Ok(!bad.is_empty())
    }

    /// Loads all index files and marks condemned packs, for reading. An index file that can't be used is reported and
    /// skipped, and the packs that it may have described are read instead: the index never blocks a restore, and nor
    /// does a record of condemned packs.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn load_index(&self, reporter: &Reporter) -> Result<()> {
        let condemned = || {
            self.condemned(reporter).or_else(|e| {
                reporter.warn(Severity::Note, layout::LIVE, self.only_this_object(e)?);
                Ok::<_, Error>(Vec::new())
            })
        };
        // Who only reads finds out in either order what a prune has deleted.
        let (condemned, listed) = both(&*self.backend, condemned, || self.backend.list(layout::INDEX));
        self.load_index_after(listed?, &condemned?, reporter)?;
        self.strays.allow_asking();
        Ok(())
    }

    /// Does the same for whoever will rely on the packs that the index names: without every record of condemned packs,
    /// one that a prune is about to delete might be among them. `live` was listed after the session was announced.
    ///
    /// # Errors
    /// When the store fails to list anything or to hand out such a record.
    pub fn load_index_to_write(&self, live: &Live, reporter: &Reporter) -> Result<()> {
        // The records come before the index: were a pack deleted between the two, its record would be gone, and the pack
        // of the older index would pass for one that may be relied on.
        let condemned = self.records(live, reporter)?;
        self.load_index_after(self.backend.list(layout::INDEX)?, &condemned, reporter)
    }

    fn load_index_after(&self, listed: Vec<Listed>, condemned: &[Condemnation], reporter: &Reporter) -> Result<()> {
        if !self.load_listed_index(listed, condemned, reporter)?.complete {
            self.adopt_packs(reporter)?;
        }
        Ok(())
    }

    /// Loads all index files into memory, and says which they were.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn load_index_files(&self, condemned: &[Condemnation], reporter: &Reporter) -> Result<LoadedIndex> {
        self.load_listed_index(self.backend.list(layout::INDEX)?, condemned, reporter)
    }

    fn load_listed_index(
        &self,
        listed: Vec<Listed>,
        condemned: &[Condemnation],
        reporter: &Reporter,
    ) -> Result<LoadedIndex> {
        self.backend.want(&listed);
        // What is there already would be held beside what replaces it.
        self.replace_index(BlobIndex::default());
        let mut index = Builder::new((listed.iter().map(|l| l.bytes).sum::<u64>() / RECORD_BYTES) as usize);
        let mut loaded = LoadedIndex { files: Vec::new(), complete: true, unread: None };
        let mut rest = &listed[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |l: &&Listed| {
                bytes += l.bytes;
                bytes <= INDEX_BYTES_AT_ONCE
            };
            let (some, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = after;
            let opened: Vec<_> = some.par_iter().map(|l| self.open_index(&l.path)).collect();
            for (listed, opened) in some.iter().zip(opened) {
                match opened {
                    Ok(part) => {
                        let (blobs, described) = (part.records.len() as u64, part.packs.len());
                        let packs = index.add(part);
                        let overlaps = packs.len() < described;
                        let (path, bytes) = (listed.path.clone(), listed.bytes);
                        loaded.files.push(IndexFile { path, bytes, blobs, packs, overlaps });
                    }
                    // A prune may have replaced it since it was listed.
                    Err(Error::Missing { .. }) => loaded.complete = false,
                    Err(e) => {
                        let e = self.only_this_object(e)?;
                        loaded.complete = false;
                        reporter.problem(Problem {
                            severity: Severity::Note,
                            what: listed.path.clone(),
                            why: format!("{e}; packs are read instead, which is slower"),
                            hint: Some("run `snapshot repair index`".into()),
                        });
                        loaded.unread = loaded.unread.or(Some(e).filter(|e| !matches!(e, Error::Corrupt { .. })));
                    }
                }
            }
        }
        self.replace_index(index.finish(condemned.iter().flat_map(|c| c.record.packs.iter().copied())));
        Ok(loaded)
    }

    /// Opens one index file.
    ///
    /// # Errors
    /// When it can't be read, or is damaged.
    pub fn open_index(&self, path: &str) -> Result<Index> {
        let bytes = self.backend.get(path, MAX_INDEX_BYTES)?;
        if path.strip_prefix(layout::INDEX) != Some(&blake3::hash(&bytes).to_string()) {
            return Err(Error::corrupt(path, "its contents do not have the hash that is its name"));
        }
        Index::open(&self.keys, &bytes, path)
    }

    /// Adds packs that no index file describes, from their own directories, and returns them: what a killed run left,
    /// or what a lost index described.
    ///
    /// # Errors
    /// When the store can't be listed. Packs that can't be read are reported and left out.
    pub fn adopt_packs(&self, reporter: &Reporter) -> Result<Vec<PackInfo>> {
        let (adopted, unreadable) = self.open_undescribed()?;
        unreadable.into_iter().for_each(|lost| reporter.warn(Severity::Note, lost.path, lost.error));
        let mut part = Index::default();
        adopted.iter().for_each(|pack| part.add(pack));
        self.with_index(|index| index.add(part));
        Ok(adopted)
    }

    /// Opens the packs that the index in memory doesn't know; those that can't be opened come second.
    pub(super) fn open_undescribed(&self) -> Result<(Vec<PackInfo>, Vec<Lost>)> {
        self.open_packs(|id| !self.index().has_pack(id))
    }

    /// Opens the packs that are wanted; those that can't be opened come second.
    pub(super) fn open_packs(&self, is_wanted: impl Fn(&PackId) -> bool) -> Result<(Vec<PackInfo>, Vec<Lost>)> {
        let mut listed = self.backend.list(layout::DATA_PACKS)?;
        listed.extend(self.backend.list(layout::METADATA_PACKS)?);
        listed.retain(|l| layout::parse_pack(&l.path).is_some_and(|(_, id)| is_wanted(&id)));
        let opened = at_once(&*self.backend, &listed, |l| self.open_pack(&l.path, l.bytes));
        let (mut packs, mut unreadable) = (Vec::new(), Vec::new());
        for (listed, opened) in listed.into_iter().zip(opened) {
            match opened {
                Ok(pack) => packs.push(pack),
                // A prune deleted it since it was listed.
                Err(Error::Missing { .. }) => {}
                Err(error) => unreadable.push(Lost { path: listed.path, error }),
            }
        }
        Ok((packs, unreadable))
    }

    /// Reads the directory of a pack.
    ///
    /// # Errors
    /// When it can't be read, or is damaged.
    pub fn open_pack(&self, path: &str, file_bytes: u64) -> Result<PackInfo> {
        let (kind, id) = layout::parse_pack(path).ok_or_else(|| Error::corrupt(path, "it has no pack's name"))?;
        let start = self.read_prefix(path, kind, file_bytes)?;
        open_directory(&self.keys, id, kind, file_bytes, &start)
    }

    /// Reads header and directory of a pack, or more.
    pub(super) fn read_prefix(&self, path: &str, kind: Kind, file_bytes: u64) -> Result<Vec<u8>> {
        let mut start = self.backend.get_range(path, 0, DIRECTORY_GUESS_BYTES.min(file_bytes))?;
        if start.len() < HEADER_BYTES {
            return Err(Error::corrupt(path, "it is cut short"));
        }
        let need = prefix_bytes(&start, kind, path)? as u64;
        if need > file_bytes {
            return Err(Error::corrupt(path, "it ends within its directory"));
        }
        if need > start.len() as u64 {
            start = self.backend.get_range(path, 0, need)?;
        }
        Ok(start)
    }
}
