//! Setting owner, extended attributes, mode and times of what was restored, in the one order that works.
//!
//! Changing the owner clears set-user-id bits and capabilities, so it comes first; user attributes can't be set on a
//! file that the mode lets nobody write, so the mode comes after them; with an access control list, the group's bits
//! of the mode are the list's mask, so that list and mode, set one after the other, agree; times come last. Contents
//! count as restored even where the file system or the user may not set an attribute: that is counted, and told once
//! for each attribute at the end.
//!
//! May depend on `error`, `report`, `format` and its neighbours.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::owners::Owners;
use super::temporary::Temporary;
use crate::error::{Error, Result};
use crate::format::tree::{Node, NodeKind};
use crate::report::{Reporter, Severity};

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const ACCESS_LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";
/// Longest list of names of attributes that Linux gives, in bytes.
const MAX_NAMES_BYTES: usize = 64 << 10;

/// What could not be set: on how many files, and on which first.
struct Failure {
    count: u64,
    first: PathBuf,
    why: String,
}

/// Sets attributes, and reports what can't be set.
pub struct Attributes {
    owners: Owners,
    /// Only root may give files away.
    gives_away: bool,
    user: u32,
    failures: Mutex<BTreeMap<String, Failure>>,
}

impl Attributes {
    /// For the user that this process runs as.
    pub fn new(owners: Owners) -> Self {
        let user = rustix::process::geteuid();
        let gives_away = user.is_root() && !owners.are_left();
        Self { owners, gives_away, user: user.as_raw(), failures: Mutex::default() }
    }

    fn count(&self, what: String, path: impl FnOnce() -> PathBuf, why: impl FnOnce() -> String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.entry(what).or_insert_with(|| Failure { count: 0, first: path(), why: why() }).count += 1;
    }

    /// Counts a failure.
    fn note(&self, result: Result<(), Errno>, attribute: &str, path: &impl Fn() -> PathBuf) -> bool {
        let Err(error) = result else { return true };
        self.count(format!("{attribute} can't be set"), path, || error.to_string());
        false
    }

    /// Reports everything that could not be set, in one note for each kind.
    pub fn report(&self, reporter: &Reporter) {
        let failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        for (what, Failure { count, first, why }) in failures {
            let others = match count {
                1 => String::new(),
                2 => ", and on another file".into(),
                n => format!(", and on {} others", n - 1),
            };
            reporter.warn(Severity::Note, first.display(), format!("{what} here{others}: {why}"));
        }
    }

    /// Whom a node belongs to here, if that can be set; counts it if it is somebody else.
    fn owner(&self, node: &Node, path: &impl Fn() -> PathBuf) -> Option<(u32, u32)> {
        let owner = self.owners.of(node.uid, node.gid);
        if self.gives_away {
            return Some(owner);
        }
        if owner.0 != self.user && !self.owners.are_left() {
            let why = || "only root can give files away, so they belong to who restored them".into();
            self.count("the owner can't be set".into(), path, why);
        }
        None
    }

    /// Sets everything on an open file or directory. `path` names it in notes; `inherited` is whether it may have got
    /// an access control list from the directory that it was made in.
    pub fn apply(&self, file: impl AsFd, node: &Node, inherited: bool, path: impl Fn() -> PathBuf) {
        let file = file.as_fd();
        let owned = self.owner(node, &path).is_some_and(|(uid, gid)| {
            self.note(fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))), "the owner", &path)
        });
        if inherited {
            for name in [ACCESS_LIST, DEFAULT_LIST].into_iter().filter(|name| !has(node, name.as_bytes())) {
                // Where there is none, or there are none at all, there is nothing to remove.
                let _ = fs::fremovexattr(file, name);
            }
        }
        self.apply_xattrs(node, &path, |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()));
        self.note(fs::fchmod(file, self.mode(file, node, owned)), "the mode", &path);
        self.note(fs::futimens(file, &times(node)), "the modification time", &path);
    }

    /// The same for a file or directory that was there before: attributes that the snapshot doesn't have go. Says
    /// whether anything was different.
    pub fn apply_over(&self, file: &OwnedFd, node: &Node, path: impl Fn() -> PathBuf) -> bool {
        if !self.differ(file, node) {
            return false;
        }
        for name in extra_xattrs(file, node) {
            let attribute = format!("the absence of attribute \"{}\"", String::from_utf8_lossy(&name));
            self.note(fs::fremovexattr(file, &name), &attribute, &path);
        }
        self.apply(file, node, false, path);
        true
    }

    /// Whether anything that can be set on a file or directory is not as in the snapshot.
    pub fn differ(&self, file: &OwnedFd, node: &Node) -> bool {
        let Ok(stat) = fs::fstat(file) else { return true };
        let owner_differs = self.gives_away && self.owners.of(node.uid, node.gid) != (stat.st_uid, stat.st_gid);
        owner_differs
            || stat.st_mode & 0o7777 != self.mode(file.as_fd(), node, self.gives_away).as_raw_mode()
            || !has_time(&stat, node)
            || node.xattrs.iter().flatten().any(|x| get(file, &x.name).as_deref() != Some(&x.value))
            || !extra_xattrs(file, node).is_empty()
    }

    /// Whether what is no file has the owner and time that it would be given.
    pub fn are_those_of(&self, stat: &Stat, node: &Node) -> bool {
        let owned = !self.gives_away || self.owners.of(node.uid, node.gid) == (stat.st_uid, stat.st_gid);
        let is_link = node.kind == NodeKind::Symlink;
        owned && (is_link || stat.st_mode & 0o7777 == node.mode) && has_time(stat, node)
    }

    /// Sets what can be set on a symbolic link, pipe or device under its temporary name.
    ///
    /// # Errors
    /// When it can't be reached.
    pub fn apply_by_name(&self, made: &Temporary, node: &Node) -> Result<()> {
        let path = || made.path();
        let (folder, name) = made.place_now()?;
        let owned = self.owner(node, &path).is_some_and(|(uid, gid)| {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            let done = fs::chownat(&folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW);
            self.note(done, "the owner", &path)
        });
        let by_path = [proc_path(folder.as_fd()).as_bytes(), b"/", name].concat();
        self.apply_xattrs(node, &path, |name, value| fs::lsetxattr(&by_path[..], name, value, XattrFlags::empty()));
        if node.kind != NodeKind::Symlink {
            // The calls that take a name follow links: open what is there, without following, and go through that.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = fs::openat(&folder, name, flags, Mode::empty()).map_err(|e| Error::file("open", path(), e))?;
            let mode = self.mode(opened.as_fd(), node, owned);
            self.note(fs::chmod(proc_path(opened.as_fd()), mode), "the mode", &path);
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
    fn mode(&self, file: BorrowedFd<'_>, node: &Node, owned: bool) -> Mode {
        if owned || node.kind == NodeKind::Directory || node.mode & (SET_USER_ID | SET_GROUP_ID) == 0 {
            return Mode::from_raw_mode(node.mode);
        }
        let (uid, gid) = self.owners.of(node.uid, node.gid);
        let is = fs::fstat(file).map(|s| (s.st_uid == uid, s.st_gid == gid)).unwrap_or_default();
        let dropped = if is.0 { 0 } else { SET_USER_ID } | if is.1 { 0 } else { SET_GROUP_ID };
        Mode::from_raw_mode(node.mode & !dropped)
    }
}

fn has(node: &Node, name: &[u8]) -> bool {
    node.xattrs.iter().flatten().any(|x| x.name[..] == *name)
}

fn has_time(stat: &Stat, node: &Node) -> bool {
    (stat.st_mtime, stat.st_mtime_nsec.cast_signed()) == (node.mtime.secs, i64::from(node.mtime.nanos))
}

/// Attributes of a file that a snapshot of it would have had. Those of security modules are the system's.
fn extra_xattrs(file: &OwnedFd, node: &Node) -> Vec<Vec<u8>> {
    // Most files have none: that costs one call.
    if matches!(fs::flistxattr_query(file), Ok(0) | Err(_)) {
        return Vec::new();
    }
    let mut names = vec![0; MAX_NAMES_BYTES];
    let Ok(len) = fs::flistxattr(file, &mut names[..]) else { return Vec::new() };
    names.truncate(len);
    let is_plain = |name: &[u8]| {
        name.starts_with(b"user.")
            || [ACCESS_LIST, DEFAULT_LIST, "security.capability"].iter().any(|known| known.as_bytes() == name)
    };
    names.split(|b| *b == 0).filter(|name| is_plain(name) && !has(node, name)).map(<[u8]>::to_vec).collect()
}

fn get(file: &OwnedFd, name: &[u8]) -> Option<Vec<u8>> {
    let mut value = vec![0; fs::fgetxattr_query(file, name).ok()?];
    let len = if value.is_empty() { 0 } else { fs::fgetxattr(file, name, &mut value[..]).ok()? };
    value.truncate(len);
    Some(value)
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
