//! Making files below a restore's target, and nowhere else.
//!
//! Every directory below the target is opened by its name in the directory above, never through a symbolic link, and
//! everything is made relative to such a handle: neither a planted link nor a directory that is moved away leads out
//! of the target. A file is made under a temporary name and gets its own when it is complete.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::crypto;
use crate::error::{Error, Result};
use crate::id::hex;

/// What temporary names begin with; 16 hex digits of the run, `-` and 8 of the file follow.
const TEMPORARY: &str = ".snapshot-restore-";
const TEMPORARY_BYTES: usize = TEMPORARY.len() + 16 + 1 + 8;
/// Directories that are kept open.
const OPEN_FOLDERS: usize = 64;
/// Unfinished files that are kept open: the others are opened again for each write.
const OPEN_FILES: usize = 256;
const OPEN_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// While it is being filled nobody else needs a directory.
const FILLING: Mode = Mode::RWXU;

/// What all directories of one restore share.
struct Shared {
    path: PathBuf,
    root: Arc<OwnedFd>,
    /// Tells this run's temporary names from others'.
    run: String,
    next: AtomicU64,
    open_files: AtomicUsize,
    open_folders: Mutex<VecDeque<Arc<OwnedFd>>>,
}

/// A directory at or below the target.
pub struct Folder {
    shared: Arc<Shared>,
    parent: Option<Arc<Folder>>,
    name: Vec<u8>,
    is_new: bool,
    handle: Mutex<Weak<OwnedFd>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Folder {
    /// Opens the target, which is made if it is missing. Links on the way to it are followed: the user named it.
    ///
    /// # Errors
    /// [`Error::File`] if it is no directory or can't be written.
    pub fn target(path: &Path) -> Result<Arc<Self>> {
        let path = std::path::absolute(path).map_err(|e| Error::file("find", path, e))?;
        let is_new = !path.exists();
        if is_new {
            std::fs::create_dir_all(&path).map_err(|e| Error::file("create", &path, e))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(&path, flags, Mode::empty()).map_err(|e| Error::file("open", &path, e))?;
        let access = fs::Access::WRITE_OK | fs::Access::EXEC_OK;
        fs::accessat(&root, ".", access, AtFlags::EACCESS).map_err(|e| Error::file("write to", &path, e))?;
        let root = Arc::new(root);
        let handle = Mutex::new(Arc::downgrade(&root));
        let shared = Arc::new(Shared {
            path,
            root,
            run: hex(&crypto::random::<8>()?),
            next: AtomicU64::new(0),
            open_files: AtomicUsize::new(0),
            open_folders: Mutex::default(),
        });
        let target = Self { shared, parent: None, name: Vec::new(), is_new, handle };
        if !is_new {
            target.clear_leftovers()?;
        }
        Ok(Arc::new(target))
    }

    /// Whether this run made it: nothing is in it that this run did not put there.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Where it is, for people and for what needs a path.
    pub fn path(&self) -> PathBuf {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(OsStr::from_bytes(&at.name));
            at = parent;
        }
        let mut path = self.shared.path.clone();
        path.extend(names.into_iter().rev());
        path
    }

    /// The path of a name in it.
    pub fn path_of(&self, name: &[u8]) -> PathBuf {
        self.path().join(OsStr::from_bytes(name))
    }

    fn failed(&self, action: &'static str, name: &[u8], error: impl Into<io::Error>) -> Error {
        Error::file(action, self.path_of(name), error)
    }

    /// An open handle. Directories are opened again when needed, each by its name in the one above.
    ///
    /// # Errors
    /// [`Error::File`] if something else is there by now.
    pub fn handle(&self) -> Result<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut at = self;
        let mut handle = loop {
            if let Some(open) = lock(&at.handle).upgrade() {
                break open;
            }
            closed.push(at);
            match &at.parent {
                Some(parent) => at = parent,
                None => break self.shared.root.clone(),
            }
        };
        if closed.is_empty() {
            return Ok(handle);
        }
        for folder in closed.into_iter().rev() {
            let open = fs::openat(&handle, &folder.name, OPEN_FOLDER, Mode::empty());
            handle = Arc::new(open.map_err(|e| Error::file("open", folder.path(), e))?);
            *lock(&folder.handle) = Arc::downgrade(&handle);
        }
        let mut kept = lock(&self.shared.open_folders);
        kept.push_back(handle.clone());
        if kept.len() > OPEN_FOLDERS {
            kept.pop_front();
        }
        Ok(handle)
    }

    /// Makes a directory in it, or takes the one that is there. What else has the name is an error, unless `replace`
    /// allows to remove it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make(self: &Arc<Self>, name: &[u8], replace: bool) -> Result<Arc<Self>> {
        let at = self.handle()?;
        let mut is_new = true;
        match fs::mkdirat(&at, name, FILLING) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.is_folder(name)? => is_new = false,
            Err(Errno::EXIST) if replace => {
                self.remove(name)?;
                fs::mkdirat(&at, name, FILLING).map_err(|e| self.failed("create", name, e))?;
            }
            Err(Errno::EXIST) => {
                let why = io::Error::new(io::ErrorKind::NotADirectory, "something that is no directory has its name");
                return Err(self.failed("create", name, why));
            }
            Err(e) => return Err(self.failed("create", name, e)),
        }
        let made = Arc::new(Self {
            shared: self.shared.clone(),
            parent: Some(self.clone()),
            name: name.to_vec(),
            is_new,
            handle: Mutex::default(),
        });
        if !is_new {
            made.open_up()?;
            made.clear_leftovers()?;
        }
        Ok(made)
    }

    fn is_folder(&self, name: &[u8]) -> Result<bool> {
        Ok(self.stat(name)?.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory))
    }

    /// Lets its owner write into a directory that was there. Where that is not us, making files will say so.
    fn open_up(&self) -> Result<()> {
        let handle = self.handle()?;
        let mode = fs::fstat(&*handle).map(|s| Mode::from_raw_mode(s.st_mode));
        if let Ok(mode) = mode
            && !mode.contains(FILLING)
        {
            let _ = fs::fchmod(&*handle, mode | FILLING);
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<Vec<u8>>> {
        let unread = |e| Error::file("list", self.path(), e);
        let entries = fs::Dir::read_from(&*self.handle()?).map_err(unread)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unread)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Removes what a killed restore left under temporary names.
    fn clear_leftovers(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| is_temporary(name)) {
            self.remove(name)?;
        }
        Ok(())
    }

    /// What has this name, links not followed; `None` if nothing has.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn stat(&self, name: &[u8]) -> Result<Option<Stat>> {
        match fs::statat(self.handle()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("inspect", name, e)),
        }
    }

    /// Opens a regular file for reading; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open_file(&self, name: &[u8]) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match fs::openat(self.handle()?, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(e) => Err(self.failed("open", name, e)),
        }
    }

    /// Removes a name that is no directory's; nothing happens if nothing has it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        match fs::unlinkat(self.handle()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("remove", name, e)),
        }
    }

    /// Removes an empty directory that is in the way.
    ///
    /// # Errors
    /// [`Error::File`], if it is not empty too.
    pub fn remove_folder(&self, name: &[u8]) -> Result<()> {
        fs::unlinkat(self.handle()?, name, AtFlags::REMOVEDIR).map_err(|e| self.failed("remove", name, e))
    }

    /// Begins something that will have the given name.
    pub fn temporary(self: &Arc<Self>, name: &[u8]) -> Temporary {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{TEMPORARY}{}-{:08x}", self.shared.run, number & 0xffff_ffff);
        Temporary {
            folder: self.clone(),
            name: name.to_vec(),
            temporary,
            file: Mutex::default(),
            exists: AtomicBool::new(false),
        }
    }
}

fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(TEMPORARY.as_bytes()).filter(|_| name.len() == TEMPORARY_BYTES);
    digits.is_some_and(|d| d.iter().enumerate().all(|(i, b)| if i == 16 { *b == b'-' } else { b.is_ascii_hexdigit() }))
}

/// Something under a temporary name; it is removed when dropped before [`Temporary::place`].
pub struct Temporary {
    folder: Arc<Folder>,
    name: Vec<u8>,
    temporary: String,
    file: Mutex<Option<Arc<OwnedFd>>>,
    exists: AtomicBool,
}

impl Temporary {
    /// The path that it will have.
    pub fn path(&self) -> PathBuf {
        self.folder.path_of(&self.name)
    }

    fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> Error {
        self.folder.failed(action, &self.name, error)
    }

    fn made(&self, result: rustix::io::Result<()>) -> Result<()> {
        result.map_err(|e| self.failed("create", e))?;
        self.exists.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes an empty file for nobody else to read.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_file(&self) -> Result<()> {
        let opened = self.open(OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
        self.exists.store(true, Ordering::Relaxed);
        *lock(&self.file) = Some(opened);
        Ok(())
    }

    fn open(&self, more: OFlags, mode: Mode) -> Result<Arc<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        let opened = fs::openat(self.folder.handle()?, &self.temporary, flags, mode);
        let opened = opened.map_err(|e| self.failed("create", e))?;
        self.folder.shared.open_files.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(opened))
    }

    fn close(&self) {
        if lock(&self.file).take().is_some() {
            self.folder.shared.open_files.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_symlink(&self, target: &[u8]) -> Result<()> {
        self.made(fs::symlinkat(target, self.folder.handle()?, &self.temporary))
    }

    /// Makes a pipe or a device node.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_special(&self, kind: FileType, device: u64) -> Result<()> {
        self.made(fs::mknodat(self.folder.handle()?, &self.temporary, kind, Mode::empty(), device))
    }

    /// Makes a further name of a file that is there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_link(&self, folder: &Folder, name: &[u8]) -> Result<()> {
        self.made(fs::linkat(folder.handle()?, name, self.folder.handle()?, &self.temporary, AtFlags::empty()))
    }

    /// The open file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn file(&self) -> Result<Arc<OwnedFd>> {
        let mut file = lock(&self.file);
        match &*file {
            Some(open) => Ok(open.clone()),
            None => Ok(file.insert(self.open(OFlags::empty(), Mode::empty())?).clone()),
        }
    }

    /// The directory and the name in it by which attributes of what is no file are set.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn place_now(&self) -> Result<(Arc<OwnedFd>, &str)> {
        Ok((self.folder.handle()?, &self.temporary))
    }

    /// Sets the length: what was not written is a hole.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        fs::ftruncate(&*self.file()?, bytes).map_err(|e| self.failed("write", e))
    }

    /// Writes at an offset; several threads may.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        let file = self.file()?;
        while !bytes.is_empty() {
            match rustix::io::pwrite(&*file, bytes, offset) {
                Ok(0) => return Err(self.failed("write", io::ErrorKind::WriteZero)),
                Ok(n) => {
                    bytes = bytes.get(n..).unwrap_or_default();
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed("write", e)),
            }
        }
        if self.folder.shared.open_files.load(Ordering::Relaxed) > OPEN_FILES {
            self.close();
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn sync(&self) -> Result<()> {
        fs::fdatasync(&*self.file()?).map_err(|e| self.failed("write", e))
    }

    /// Gives it its name, in place of what has it.
    ///
    /// # Errors
    /// [`Error::File`], if a directory has the name too.
    pub fn place(&self) -> Result<()> {
        let at = self.folder.handle()?;
        fs::renameat(&at, &self.temporary, &at, &self.name).map_err(|e| self.failed("create", e))?;
        // Renaming one name of a file to another name of the same file does nothing: then both are still there.
        self.exists.store(false, Ordering::Relaxed);
        if !self.folder.is_new {
            let _ = fs::unlinkat(&at, &self.temporary, AtFlags::empty());
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.close();
        if self.exists.load(Ordering::Relaxed)
            && let Ok(at) = self.folder.handle()
        {
            let _ = fs::unlinkat(at, &self.temporary, AtFlags::empty());
        }
    }
}
