//! Setting owner, extended attributes, mode and times of what was restored, in the one order that works.
//!
//! Changing the owner clears set-user-id bits and capabilities, so it comes first; user attributes can't be set on a
//! file that the mode lets nobody write, so the mode comes after them; times come last. Contents count as restored
//! even where the file system or the user may not set an attribute: that is noted once for each attribute, not for
//! thousands of files.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::target::Temporary;
use crate::error::{Error, Result};
use crate::format::tree::{Node, NodeKind};
use crate::report::{Reporter, Severity};

/// Set-user-id and set-group-id.
const SET_ID_BITS: u32 = 0o6000;

/// Sets attributes, and reports what can't be set.
pub struct Attributes<'a> {
    reporter: &'a Reporter,
    /// Only root may give files away.
    as_root: bool,
    user: u32,
    noted: Mutex<HashSet<String>>,
}

impl<'a> Attributes<'a> {
    /// For the user that this process runs as.
    pub fn new(reporter: &'a Reporter) -> Self {
        let user = rustix::process::geteuid();
        Self { reporter, as_root: user.is_root(), user: user.as_raw(), noted: Mutex::default() }
    }

    /// Checks a result; the first failure of each attribute is reported, with the file it happened on.
    fn note(&self, result: Result<(), Errno>, attribute: &str, path: &impl Fn() -> PathBuf) -> bool {
        let Err(error) = result else { return true };
        let is_first = self.noted.lock().unwrap_or_else(PoisonError::into_inner).insert(attribute.to_owned());
        if is_first {
            let why = format!("{attribute} can't be set, here and perhaps on other files: {error}");
            self.reporter.warn(Severity::Note, path().display(), why);
        }
        false
    }

    /// Sets everything on an open file or directory. `path` names it in notes.
    pub fn apply(&self, file: impl AsFd, node: &Node, path: impl Fn() -> PathBuf) {
        let file = file.as_fd();
        let owned = self.as_root && {
            let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
            self.note(fs::fchown(file, owner.0, owner.1), "the owner", &path)
        };
        self.apply_xattrs(node, &path, |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()));
        self.note(fs::fchmod(file, self.mode(node, owned)), "the mode", &path);
        self.note(fs::futimens(file, &times(node)), "the modification time", &path);
    }

    /// Sets what can be set on a symbolic link, pipe or device under its temporary name.
    ///
    /// # Errors
    /// When it can't be reached.
    pub fn apply_by_name(&self, made: &Temporary, node: &Node) -> Result<()> {
        let path = || made.path();
        let (folder, name) = made.place_now()?;
        let owned = self.as_root && {
            let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
            let done = fs::chownat(&folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW);
            self.note(done, "the owner", &path)
        };
        let by_path = format!("{}/{name}", proc_path(folder.as_fd()));
        self.apply_xattrs(node, &path, |name, value| fs::lsetxattr(&by_path, name, value, XattrFlags::empty()));
        if node.kind != NodeKind::Symlink {
            // The calls that take a name follow links: open what is there, without following, and go through that.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = fs::openat(&folder, name, flags, Mode::empty()).map_err(|e| Error::file("open", path(), e))?;
            self.note(fs::chmod(proc_path(opened.as_fd()), self.mode(node, owned)), "the mode", &path);
        }
        let done = fs::utimensat(&folder, name, &times(node), AtFlags::SYMLINK_NOFOLLOW);
        self.note(done, "the modification time", &path);
        Ok(())
    }

    fn apply_xattrs(&self, node: &Node, path: &impl Fn() -> PathBuf, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) {
        for xattr in node.xattrs.iter().flatten() {
            let attribute = || format!("the attribute \"{}\"", String::from_utf8_lossy(&xattr.name));
            if let Err(e) = set(&xattr.name, &xattr.value) {
                self.note(Err(e), &attribute(), path);
            }
        }
    }

    /// The mode to set: never one that lets others act as somebody whom the file did not belong to.
    fn mode(&self, node: &Node, owned: bool) -> Mode {
        let keeps = owned || node.kind == NodeKind::Directory || (!self.as_root && node.uid == self.user);
        Mode::from_raw_mode(if keeps { node.mode } else { node.mode & !SET_ID_BITS })
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn times(node: &Node) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: node.mtime.secs, tv_nsec: node.mtime.nanos.into() },
    }
}
