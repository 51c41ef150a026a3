//! Copies of a repository's immutable objects on the local disk, so that they need not be fetched again.
//!
//! Each is a file named by the hash of its bytes, which is verified before the copy is used: what a crash, a full disk or
//! a curious hand left there is thrown away and fetched anew. Everything here may be deleted at any time, also by
//! another process that uses the same directory; nothing here is an error. Contents are sealed as they are in the
//! repository.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::id::hex;

/// How much the copies of one repository may take, in bytes, unless told otherwise.
pub const DEFAULT_CACHE_BYTES: u64 = 4 << 30;
/// So much of the disk stays free: one part in this many, and [`RESERVE_BYTES`].
const RESERVE_PART: u64 = 20;
const RESERVE_BYTES: u64 = 256 << 20;
/// What is left when there was too much, in per cent of what there may be.
const TRIMMED_PERCENT: u64 = 90;
/// When a copy was used last is written down this exactly.
const TOUCH: Duration = Duration::from_secs(3600);
/// A file that another process is writing, or died writing, is left alone for this long.
const UNFINISHED: Duration = Duration::from_secs(24 * 3600);
/// Ends the name of a file that is being written.
const UNFINISHED_SUFFIX: &str = ".tmp";

type Hash = [u8; 32];

/// A directory of copies.
pub struct Copies {
    dir: PathBuf,
    max_bytes: u64,
    /// Those that were found sound by this process.
    sound: Mutex<HashSet<Hash>>,
    /// Whether there is more than there was.
    has_written: AtomicBool,
    unfinished: AtomicU64,
}

impl Copies {
    /// Uses a directory, which is made when the first copy is.
    pub fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self {
            dir,
            max_bytes,
            sound: Mutex::default(),
            has_written: AtomicBool::new(false),
            unfinished: AtomicU64::new(0),
        }
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        let name = hex(hash);
        self.dir.join(name.get(..2).unwrap_or_default()).join(name)
    }

    /// Whether there is a copy, sound or not.
    pub fn has(&self, hash: &Hash) -> bool {
        self.is_known_sound(hash) || self.path(hash).exists()
    }

    fn is_known_sound(&self, hash: &Hash) -> bool {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).contains(hash)
    }

    /// The whole object, of at most `max_bytes`.
    pub fn read(&self, hash: &Hash, max_bytes: u64) -> Option<Vec<u8>> {
        let file = File::open(self.path(hash)).ok()?;
        let len = file.metadata().ok()?.len();
        if len > max_bytes {
            return None;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).ok()?);
        (&file).take(max_bytes).read_to_end(&mut bytes).ok()?;
        if *blake3::hash(&bytes).as_bytes() != *hash {
            self.remove(hash);
            return None;
        }
        touch(&file);
        Some(bytes)
    }

    /// A part of the object.
    pub fn read_range(&self, hash: &Hash, offset: u64, len: u64) -> Option<Vec<u8>> {
        let file = File::open(self.path(hash)).ok()?;
        if !self.is_known_sound(hash) {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&file).ok()?;
            if *hasher.finalize().as_bytes() != *hash {
                self.remove(hash);
                return None;
            }
            touch(&file);
            self.sound.lock().unwrap_or_else(PoisonError::into_inner).insert(*hash);
        }
        let end = offset.checked_add(len)?;
        if end > file.metadata().ok()?.len() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Writes a copy if there is room, and says whether it did.
    pub fn write(&self, hash: &Hash, bytes: &[u8]) -> bool {
        let path = self.path(hash);
        if path.exists() {
            return true;
        }
        let written = self.write_beside(&path, bytes);
        self.has_written.fetch_or(written.is_ok(), Ordering::Relaxed);
        written.is_ok()
    }

    fn write_beside(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.dir);
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let disk = rustix::fs::statvfs(folder)?;
        let reserve = (disk.f_blocks * disk.f_frsize / RESERVE_PART).max(RESERVE_BYTES);
        if disk.f_bavail * disk.f_frsize < reserve + bytes.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let number = self.unfinished.fetch_add(1, Ordering::Relaxed);
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(format!(".{}.{number}{UNFINISHED_SUFFIX}", std::process::id()));
        let done = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&unfinished, path));
        if done.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        done
    }

    /// Drops a copy.
    pub fn remove(&self, hash: &Hash) {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).remove(hash);
        let _ = fs::remove_file(self.path(hash));
    }

    /// Drops the copies that were used longest ago, if there is too much.
    fn trim(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut found: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for folder in fs::read_dir(&self.dir)? {
            for file in fs::read_dir(folder?.path())? {
                let file = file?;
                // Another process may have dropped it.
                let Ok(meta) = file.metadata() else { continue };
                let used = meta.modified()?;
                let is_unfinished = file.file_name().as_encoded_bytes().ends_with(UNFINISHED_SUFFIX.as_bytes());
                if !is_unfinished {
                    found.push((used, meta.len(), file.path()));
                } else if now.duration_since(used).is_ok_and(|age| age > UNFINISHED) {
                    let _ = fs::remove_file(file.path());
                }
            }
        }
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        if total <= self.max_bytes {
            return Ok(());
        }
        found.sort_unstable();
        let goal = self.max_bytes / 100 * TRIMMED_PERCENT;
        for (_, bytes, path) in found {
            if total <= goal {
                break;
            }
            total -= bytes;
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if self.has_written.load(Ordering::Relaxed) {
            // What can't be looked at is looked at the next time.
            let _ = self.trim();
        }
    }
}

/// Notes that a copy was used.
fn touch(file: &File) {
    let now = SystemTime::now();
    let is_old = |used: SystemTime| now.duration_since(used).is_ok_and(|age| age > TOUCH);
    if file.metadata().and_then(|meta| meta.modified()).is_ok_and(is_old) {
        let _ = file.set_modified(now);
    }
}
