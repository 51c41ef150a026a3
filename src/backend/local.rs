//! A local directory, through OpenDAL.
//!
//! OpenDAL's `fs` neither syncs directories nor creates exclusively and atomically at once, so this writes each object
//! under a temporary name through it (which syncs the file), then renames, or links where there must be none yet, and
//! syncs the directory. Directories are synced into their parents when they are made.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use opendal::{ErrorKind, blocking, options, services};

use super::{Backend, Listed};
use crate::crypto;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::id::hex;

/// Folder of unfinished objects.
const TEMPORARY: &str = "tmp/";

/// The absolute path without `..`, resolved as the system does: OpenDAL (0.59) lists for ever below a path with it.
fn without_parents(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        if part == Component::ParentDir {
            // Of a link, the parent of what it points to.
            out = fs::canonicalize(&out).unwrap_or(out);
            out.pop();
        } else {
            out.push(part);
        }
    }
    Ok(out)
}

/// A repository in a local directory.
pub struct Local {
    root: PathBuf,
    key_prefix: String,
    op: blocking::Operator,
    known_folders: Mutex<HashSet<PathBuf>>,
    // Dropped last: the operator runs on it.
    _runtime: tokio::runtime::Runtime,
}

impl Local {
    /// Uses the directory at `root`, which need not exist before the first put.
    ///
    /// # Errors
    /// [`Error::Refused`] when no thread can be started.
    pub fn new(root: &Path) -> Result<Self> {
        let root = without_parents(root).map_err(|e| Error::file("find", root, e))?;
        let refuse =
            |why: String| Error::refused(format!("local storage can't be used: {why}"), "check the path given");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("storage")
            .build()
            .map_err(|e| refuse(e.to_string()))?;
        let text = root.to_str().ok_or_else(|| refuse(format!("{} is not UTF-8", root.display())))?;
        // Anchored at the file system's root: an operator makes the directory it is anchored at, which only a put may.
        let key_prefix = format!("{}/", text.trim_matches('/'));
        let op = {
            let _context = runtime.enter();
            let op = opendal::Operator::new(services::Fs::default().root("/")).map_err(|e| refuse(e.to_string()))?;
            blocking::Operator::new(op).map_err(|e| refuse(e.to_string()))?
        };
        Ok(Self { root, key_prefix, op, known_folders: Mutex::default(), _runtime: runtime })
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Makes a folder and everything above it, each synced into its parent.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut known = self.known_folders.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(folder) {
            return Ok(());
        }
        let missing: Vec<_> = folder.ancestors().take_while(|f| !f.is_dir()).collect();
        for made in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(0o700).create(made) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => sync_folder(made.parent().unwrap_or(Path::new("/")))?,
            }
        }
        known.insert(folder.to_path_buf());
        Ok(())
    }

    /// Writes under a temporary name, synced.
    fn write_temporary(&self, object: &str, bytes: Vec<u8>) -> Result<PathBuf> {
        let name = format!("{TEMPORARY}{}", hex(&crypto::random::<16>()?));
        let full = self.full(&name);
        self.make_folder(&self.full(TEMPORARY)).map_err(|e| storage("write", object, &e))?;
        self.op.write(&self.key(&name), bytes).map_err(|e| {
            let _ = fs::remove_file(&full);
            failed("write", object, &e)
        })?;
        Ok(full)
    }

    /// What the operator calls the object.
    fn key(&self, path: &str) -> String {
        format!("{}{path}", self.key_prefix)
    }

    /// Gives the temporary file its name by `place`, and makes that durable.
    fn publish<T>(&self, path: &str, bytes: Vec<u8>, place: impl Fn(&Path, &Path) -> io::Result<T>) -> Result<T> {
        let to = self.full(path);
        let folder = to.parent().unwrap_or(&self.root).to_path_buf();
        self.make_folder(&folder).map_err(|e| storage("write", path, &e))?;
        let from = self.write_temporary(path, bytes)?;
        let done = place(&from, &to).and_then(|done| sync_folder(&folder).map(|()| done));
        let _ = fs::remove_file(&from);
        done.map_err(|e| storage("write", path, &e))
    }
}

impl Backend for Local {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.publish(path, bytes, |from, to| fs::rename(from, to))
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        // link(2) is atomic and fails where there is something already.
        self.publish(path, bytes, |from, to| match fs::hard_link(from, to) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        })
    }

    fn get(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let key = self.key(path);
        let size = self.op.stat(&key).map_err(|e| failed("read", path, &e))?.content_length();
        if size > max_bytes {
            return Err(Error::corrupt(path, format!("it has {size} bytes, more than allowed")));
        }
        Ok(self.op.read(&key).map_err(|e| failed("read", path, &e))?.to_vec())
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let options = options::ReadOptions { range: (offset..offset.saturating_add(len)).into(), ..Default::default() };
        match self.op.read_options(&self.key(path), options) {
            Ok(got) if got.len() as u64 == len => Ok(got.to_vec()),
            Err(e) if e.kind() != ErrorKind::RangeNotSatisfied => Err(failed("read", path, &e)),
            _ => Err(Error::corrupt(path, "it is cut short")),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let options = options::ListOptions { recursive: true, ..Default::default() };
        let entries = match self.op.list_options(&self.key(folder), options) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| failed("list", folder, &e))?,
        };
        let mut out = Vec::new();
        for entry in entries.iter().filter(|e| e.metadata().is_file()) {
            let path = entry.path().trim_start_matches('/').strip_prefix(&self.key_prefix).unwrap_or(entry.path());
            let modified = entry.metadata().last_modified().map_or(Time::default(), |t| {
                let t = t.into_inner();
                Time { secs: t.as_second(), nanos: t.subsec_nanosecond().unsigned_abs() }
            });
            out.push(Listed { path: path.to_owned(), bytes: entry.metadata().content_length(), modified });
        }
        out.sort();
        Ok(out)
    }

    fn delete(&self, paths: &[String]) -> Result<()> {
        let mut folders = HashSet::new();
        for path in paths {
            self.op.delete(&self.key(path)).map_err(|e| failed("delete", path, &e))?;
            folders.extend(self.full(path).parent().map(|f| (f.to_path_buf(), path)));
        }
        for (folder, path) in folders {
            match sync_folder(&folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(storage("delete", path, &e)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn storage(action: &'static str, object: &str, error: &io::Error) -> Error {
    let full = error.kind() == io::ErrorKind::StorageFull;
    Error::Storage { action, object: object.into(), why: error.to_string(), full }
}

fn failed(action: &'static str, object: &str, error: &opendal::Error) -> Error {
    use std::error::Error as _;
    if error.kind() == ErrorKind::NotFound {
        return Error::Missing { what: object.into() };
    }
    // OpenDAL wraps the system's error, sometimes in another one; its own text repeats the context.
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return storage(action, object, io);
        }
        source = inner.source();
    }
    let why = error.to_string();
    Error::Storage { action, object: object.into(), full: why.contains("No space left"), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_goes_up_and_down_is_listed_like_any_other() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("deep/er")).unwrap();
        std::os::unix::fs::symlink("deep/er", folder.path().join("link")).unwrap();
        Local::new(&folder.path().join("deep/repo")).unwrap().put("keys/a", vec![1]).unwrap();
        for path in ["deep/er/../repo", "link/../repo", "deep/./../deep/repo", "none/../deep/repo"] {
            let listed = Local::new(&folder.path().join(path)).unwrap().list("keys/").unwrap();
            assert_eq!(listed.len(), 1, "{path}");
        }
    }
}
