//! Making files below a restore's target, and nowhere else.
//!
//! Every directory below the target is opened by its name in the directory above, never through a symbolic link, and
//! everything is made relative to such a handle: neither a planted link nor a directory that is moved away leads out
//! of the target. A file is made under a temporary name and gets its own when it is complete (`temporary`).
//!
//! May depend on `crypto` for randomness, `error`, `id` and its neighbours `temporary`, `marker` and `steps`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Uid};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::marker::{self, MARKER};
use super::steps::step;
use super::temporary::{REUSED_BYTES, Temporary, is_temporary, is_temporary_of};
use crate::error::{Error, Result};

/// Directories that are kept open.
const OPEN_FOLDERS: usize = 64;
const OPEN_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// While it is being filled nobody else needs a directory.
const FILLING: Mode = Mode::RWXU;

/// What all directories of one restore share.
pub(super) struct Shared {
    path: PathBuf,
    root: Arc<OwnedFd>,
    /// Number of the next temporary name.
    pub(super) next: AtomicU64,
    pub(super) open_files: AtomicUsize,
    /// Whether unfinished files stay for the next run to go on with.
    pub(super) keeps_unfinished: AtomicBool,
    open_folders: Mutex<VecDeque<Arc<OwnedFd>>>,
}

/// A directory at or below the target.
pub struct Folder {
    pub(super) shared: Arc<Shared>,
    parent: Option<Arc<Folder>>,
    name: Vec<u8>,
    is_new: bool,
    handle: Mutex<Weak<OwnedFd>>,
    /// Large files that a killed restore left under temporary names.
    leftovers: Mutex<Vec<Vec<u8>>>,
    /// The mode it had, if that had to be widened.
    mode_before: OnceLock<Mode>,
    passes_on_acl: OnceLock<bool>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let target = Self::open_root(path, is_new)?;
        target.open_up()?;
        let access = fs::Access::WRITE_OK | fs::Access::EXEC_OK;
        fs::accessat(&target.shared.root, ".", access, AtFlags::EACCESS)
            .map_err(|e| Error::file("write to", &target.shared.path, e))?;
        Ok(target)
    }

    /// Opens the target only to look; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::File`] if it is no directory or can't be read.
    pub fn look(path: &Path) -> Result<Option<Arc<Self>>> {
        let path = std::path::absolute(path).map_err(|e| Error::file("find", path, e))?;
        if path.exists() { Self::open_root(path, false).map(Some) } else { Ok(None) }
    }

    fn open_root(path: PathBuf, is_new: bool) -> Result<Arc<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(&path, flags, Mode::empty()).map_err(|e| Error::file("open", &path, e))?;
        let root = Arc::new(root);
        let handle = Mutex::new(Arc::downgrade(&root));
        let shared = Arc::new(Shared {
            path,
            root,
            next: AtomicU64::new(0),
            open_files: AtomicUsize::new(0),
            keeps_unfinished: AtomicBool::new(false),
            open_folders: Mutex::default(),
        });
        Ok(Arc::new(Self { handle, ..Self::bare(shared, None, &[], is_new) }))
    }

    fn bare(shared: Arc<Shared>, parent: Option<Arc<Self>>, name: &[u8], is_new: bool) -> Self {
        Self {
            shared,
            parent,
            name: name.to_vec(),
            is_new,
            handle: Mutex::default(),
            leftovers: Mutex::default(),
            mode_before: OnceLock::new(),
            passes_on_acl: OnceLock::new(),
        }
    }

    /// From now on large unfinished files stay, for the next run to go on with.
    pub fn keep_unfinished(&self) {
        self.shared.keeps_unfinished.store(true, Ordering::Relaxed);
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

    pub(super) fn failed(&self, action: &'static str, name: &[u8], error: impl Into<io::Error>) -> Error {
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
        step();
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
        let made = Arc::new(Self::bare(self.shared.clone(), Some(self.clone()), name, is_new));
        if !is_new {
            made.open_up()?;
            made.find_leftovers()?;
        }
        Ok(made)
    }

    /// A directory in it that is there; `None` if there is none. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn enter(self: &Arc<Self>, name: &[u8]) -> Result<Option<Arc<Self>>> {
        let is_there = self.is_folder(name)?;
        Ok(is_there.then(|| Arc::new(Self::bare(self.shared.clone(), Some(self.clone()), name, false))))
    }

    fn is_folder(&self, name: &[u8]) -> Result<bool> {
        Ok(self.stat(name)?.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory))
    }

    /// Lets its owner write into a directory that was there. Where that is not us, making files will say so.
    ///
    /// # Errors
    /// [`Error::File`] if something else is there by now.
    pub fn open_up(&self) -> Result<()> {
        let handle = self.handle()?;
        let mode = fs::fstat(&*handle).map(|s| Mode::from_raw_mode(s.st_mode));
        if let Ok(mode) = mode
            && !mode.contains(FILLING)
            && fs::fchmod(&*handle, mode | FILLING).is_ok()
        {
            let _ = self.mode_before.set(mode);
        }
        Ok(())
    }

    /// Gives a directory that is to stay as it was the mode that it had.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn close_up(&self) -> Result<()> {
        let Some(mode) = self.mode_before.get() else { return Ok(()) };
        fs::fchmod(&*self.handle()?, *mode).map_err(|e| Error::file("set the mode of", self.path(), e))
    }

    /// The names in it, in no particular order.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
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

    /// Looks for what a killed restore left under temporary names: large files are kept to go on with, the others are
    /// removed.
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::Locked`] if another restore is at work in here.
    pub fn find_leftovers(&self) -> Result<()> {
        for name in self.names()? {
            if name == MARKER && self.parent.is_some() {
                marker::refuse_held(self)?;
            }
            if !is_temporary(&name) {
                continue;
            }
            let is_large = self.stat(&name)?.is_some_and(|s| {
                let is_file = FileType::from_raw_mode(s.st_mode) == FileType::RegularFile;
                let is_ours = s.st_uid == rustix::process::geteuid().as_raw() && s.st_nlink == 1;
                is_file && is_ours && s.st_size.unsigned_abs() >= REUSED_BYTES
            });
            if is_large { lock(&self.leftovers).push(name) } else { self.remove(&name)? }
        }
        Ok(())
    }

    /// Goes on with what a killed restore left of the file with this name; its content may be anything.
    pub fn adopt(self: &Arc<Self>, name: &[u8]) -> Option<Temporary> {
        let mut leftovers = lock(&self.leftovers);
        let at = leftovers.iter().position(|leftover| is_temporary_of(leftover, name))?;
        let leftover = leftovers.swap_remove(at);
        drop(leftovers);
        Temporary::adopt(self, name, &leftover)
    }

    /// Removes what was not gone on with.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove_leftovers(&self) -> Result<()> {
        let leftovers = std::mem::take(&mut *lock(&self.leftovers));
        leftovers.iter().try_for_each(|name| self.remove(name))
    }

    /// Whether a name in it is where another file system is mounted, or another part of this one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn is_mount(&self, name: &[u8]) -> Result<bool> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match fs::statx(self.handle()?, name, flags, StatxFlags::BASIC_STATS) {
            Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
                Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
            }
            // An old kernel, which shows other file systems but no bind mounts.
            Ok(found) => {
                let here = fs::fstat(&*self.handle()?).map_err(|e| self.failed("inspect", name, e))?;
                Ok(fs::makedev(found.stx_dev_major, found.stx_dev_minor) != here.st_dev)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.failed("inspect", name, e)),
        }
    }

    /// When it was changed last.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn time(&self) -> Result<Timestamps> {
        let stat = fs::fstat(&*self.handle()?).map_err(|e| Error::file("inspect", self.path(), e))?;
        let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let changed = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
        Ok(Timestamps { last_access: omitted, last_modification: changed })
    }

    /// Sets when it was changed last.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_time(&self, time: &Timestamps) -> Result<()> {
        fs::futimens(&*self.handle()?, time).map_err(|e| Error::file("set the time of", self.path(), e))
    }

    /// Whether what is made in it gets its access control list.
    pub fn passes_on_acl(&self) -> bool {
        let has = || self.handle().is_ok_and(|at| fs::fgetxattr_query(&*at, "system.posix_acl_default").is_ok());
        *self.passes_on_acl.get_or_init(has)
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

    /// Gives it the owner, as far as we may, and the mode of another directory.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn take_owner_of(&self, other: &Self) -> Result<()> {
        let failed = |e| Error::file("set the mode of", self.path(), e);
        let stat = fs::fstat(&*other.handle()?).map_err(failed)?;
        let at = self.handle()?;
        let _ = fs::fchown(&at, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        fs::fchmod(&at, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed)
    }

    /// Makes a further name, in this directory, of what has the same name in another; of a link, of the link itself.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn link(&self, name: &[u8], other: &Self) -> Result<()> {
        step();
        fs::linkat(other.handle()?, name, self.handle()?, name, AtFlags::empty())
            .map_err(|e| self.failed("create", name, e))
    }

    /// Opens a regular file for reading and writing; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open_to_write(&self, name: &[u8]) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match fs::openat(self.handle()?, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(e) => Err(self.failed("open", name, e)),
        }
    }

    /// Makes a file that must not be there yet, for nobody else to read.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(&self, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(self.handle()?, name, flags, Mode::RUSR | Mode::WUSR);
        made.map_err(|e| self.failed("create", name, e))
    }

    /// Makes the names in it durable: what was made, renamed or removed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn sync(&self) -> Result<()> {
        step();
        match fs::fsync(&*self.handle()?) {
            // Not every file system can do that for a directory.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(Error::file("write", self.path(), e)),
        }
    }

    /// Removes a name that is no directory's; nothing happens if nothing has it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        step();
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
        step();
        fs::unlinkat(self.handle()?, name, AtFlags::REMOVEDIR).map_err(|e| self.failed("remove", name, e))
    }

    /// Where a symbolic link leads; `None` if there is none of this name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn link_target(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match fs::readlinkat(self.handle()?, name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(e) => Err(self.failed("read", name, e)),
        }
    }

    /// Begins something that will have the given name.
    pub fn temporary(self: &Arc<Self>, name: &[u8]) -> Temporary {
        Temporary::new(self, name)
    }
}
