//! Files under temporary names: written there, given their own name when they are complete.
//!
//! May depend on `error` and its neighbours `target` and `steps`. A temporary name tells whose it is, so that a run that was killed
//! can be gone on with: what it left may hold anything, and is taken only as far as its content is proved.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{self, AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::steps::step;
use super::target::{Folder, lock};
use crate::error::{Error, Result};

/// What temporary names begin with; 16 hex digits for the final name, `-` and 8 of a number follow.
const TEMPORARY: &str = ".snapshot-restore-";
const TEMPORARY_BYTES: usize = TEMPORARY.len() + 16 + 1 + 8;
/// What a killed run left is gone on with if it has this many bytes: less is fetched again as quickly.
pub(super) const REUSED_BYTES: u64 = 1 << 20;
/// Unfinished files that are kept open: the others are opened again for each write.
const OPEN_FILES: usize = 256;

/// Temporary names of the file with this name begin so. The hash may be another one in another build: then the name is
/// not known again, and what has it is removed.
fn prefix(name: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    format!("{TEMPORARY}{:016x}-", hasher.finish())
}

/// Whether this is a temporary name of a restore.
pub fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(TEMPORARY.as_bytes()).filter(|_| name.len() == TEMPORARY_BYTES);
    digits.is_some_and(|d| d.iter().enumerate().all(|(i, b)| if i == 16 { *b == b'-' } else { b.is_ascii_hexdigit() }))
}

pub(super) fn is_temporary_of(temporary: &[u8], name: &[u8]) -> bool {
    temporary.starts_with(prefix(name).as_bytes())
}

/// Something under a temporary name; it is removed when dropped before [`Temporary::place`].
pub struct Temporary {
    folder: Arc<Folder>,
    name: Vec<u8>,
    temporary: Vec<u8>,
    file: Mutex<Option<Arc<OwnedFd>>>,
    exists: AtomicBool,
}

impl Temporary {
    pub(super) fn new(folder: &Arc<Folder>, name: &[u8]) -> Self {
        let number = folder.shared.next.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{}{:08x}", prefix(name), number & 0xffff_ffff).into_bytes();
        let (file, exists) = (Mutex::default(), AtomicBool::new(false));
        Self { folder: folder.clone(), name: name.to_vec(), temporary, file, exists }
    }

    /// Takes over a file that another run left; `None` if it can't be opened.
    pub(super) fn adopt(folder: &Arc<Folder>, name: &[u8], leftover: &[u8]) -> Option<Self> {
        // Under a number of this run, so that no other name of this run is the same.
        let made = Self::new(folder, name);
        let at = folder.handle().ok()?;
        fs::renameat(&at, leftover, &at, &made.temporary).ok()?;
        made.exists.store(true, Ordering::Relaxed);
        made.file().is_ok().then_some(made)
    }

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
        step();
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

    fn is_large(&self) -> bool {
        let size = |file: &Arc<OwnedFd>| fs::fstat(&**file).map_or(0, |s| s.st_size.unsigned_abs());
        self.exists.load(Ordering::Relaxed) && self.file().is_ok_and(|file| size(&file) >= REUSED_BYTES)
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
    pub fn place_now(&self) -> Result<(Arc<OwnedFd>, &[u8])> {
        Ok((self.folder.handle()?, &self.temporary))
    }

    /// Sets the length: what was not written is a hole.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        fs::ftruncate(&*self.file()?, bytes).map_err(|e| self.failed("write", e))
    }

    /// Makes it share the blocks of another file, where the file system can; says whether it does.
    pub fn share_blocks_of(&self, other: &OwnedFd) -> bool {
        self.file().is_ok_and(|file| fs::ioctl_ficlone(&*file, other).is_ok())
    }

    /// Makes a stretch of it a hole.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&*self.file()?, flags, offset, bytes) {
            Ok(()) => Ok(()),
            // Where there are no holes, zeros are as good.
            Err(_) => {
                let zeros = vec![0; 64 << 10];
                let end = offset + bytes;
                (offset..end).step_by(zeros.len()).try_for_each(|at| {
                    let n = (zeros.len() as u64).min(end - at) as usize;
                    self.write_at(zeros.get(..n).unwrap_or_default(), at)
                })
            }
        }
    }

    /// Writes at an offset; several threads may.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        step();
        write_all_at(&*self.file()?, bytes, offset).map_err(|e| self.failed("write", e))?;
        if self.folder.shared.open_files.load(Ordering::Relaxed) > OPEN_FILES {
            self.close();
        }
        Ok(())
    }

    /// Makes what was written durable, attributes too.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn sync(&self) -> Result<()> {
        step();
        fs::fsync(&*self.file()?).map_err(|e| self.failed("write", e))
    }

    /// Where it is until it gets its name.
    pub fn temporary_path(&self) -> PathBuf {
        self.folder.path_of(&self.temporary)
    }

    /// Gives it its name, in place of what has it.
    ///
    /// # Errors
    /// [`Error::File`], if a directory has the name too.
    pub fn place(&self) -> Result<()> {
        let at = self.folder.handle()?;
        step();
        fs::renameat(&at, &self.temporary, &at, &self.name).map_err(|e| self.failed("create", e))?;
        // Renaming one name of a file to another name of the same file does nothing: then both are still there.
        self.exists.store(false, Ordering::Relaxed);
        if !self.folder.is_new() {
            let _ = fs::unlinkat(&at, &self.temporary, AtFlags::empty());
        }
        Ok(())
    }
}

/// Fills all of `bytes` from an offset of a file.
///
/// # Errors
/// The system's, and [`io::ErrorKind::UnexpectedEof`].
pub fn read_exact_at(file: impl AsFd, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(&file, &mut *bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                bytes = bytes.get_mut(n..).unwrap_or_default();
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes all of some bytes at an offset of a file.
pub(super) fn write_all_at(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let keeps = self.folder.shared.keeps_unfinished.load(Ordering::Relaxed) && self.is_large();
        self.close();
        if self.exists.load(Ordering::Relaxed)
            && !keeps
            && let Ok(at) = self.folder.handle()
        {
            let _ = fs::unlinkat(at, &self.temporary, AtFlags::empty());
        }
    }
}
