//! What the file system says about a file, as a node.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::format::cbor::Time;
use crate::format::tree::{Node, NodeKind, Xattr};

/// File systems whose change times can be trusted to show every write at once, by the magic numbers of statfs(2):
/// ext2–4, XFS, Btrfs, tmpfs, F2FS, overlayfs, ZFS, bcachefs, ramfs.
const LOCAL_FILE_SYSTEMS: [u64; 9] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010, 0x794C_7630, 0x2FC1_2FC1, 0xCA45_1A4E, 0x8584_58F6];

/// A node with everything that stat(2) says; contents and attributes are the caller's.
pub fn node(name: &[u8], meta: &Metadata) -> Node {
    let kind = meta.file_type();
    let kind = if kind.is_file() {
        NodeKind::File
    } else if kind.is_dir() {
        NodeKind::Directory
    } else if kind.is_symlink() {
        NodeKind::Symlink
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else if kind.is_char_device() {
        NodeKind::CharDevice
    } else if kind.is_block_device() {
        NodeKind::BlockDevice
    } else {
        NodeKind::Socket
    };
    let is_device = matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice);
    Node {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: mtime(meta),
        ctime: (kind == NodeKind::File).then(|| ctime(meta)),
        inode: (kind == NodeKind::File).then(|| meta.ino()),
        size: (kind == NodeKind::File).then(|| meta.size()),
        rdev: is_device.then(|| meta.rdev()),
        ..Node::bare(name, kind)
    }
}

/// Modification time.
pub fn mtime(meta: &Metadata) -> Time {
    Time { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 }
}

/// Change time.
pub fn ctime(meta: &Metadata) -> Time {
    Time { secs: meta.ctime(), nanos: meta.ctime_nsec() as u32 }
}

/// The target of a symbolic link.
///
/// # Errors
/// The system's.
pub fn link_target(path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::read_link(path).map(|target| target.as_os_str().as_bytes().to_vec())
}

/// Extended attributes, sorted by name; none where the file system has none. Those that vanish meanwhile are left out.
///
/// # Errors
/// The system's.
pub fn xattrs(path: &Path) -> std::io::Result<Option<Vec<Xattr>>> {
    use rustix::io::Errno;
    // Most files have none: the length alone is asked for first, which costs one call.
    let mut names = match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::NOTSUP | Errno::NOENT) => return Ok(None),
        len => vec![0; len? + 256],
    };
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    names.truncate(len);
    let mut out = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 64 << 10];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(len) => value.truncate(len),
            Err(Errno::NODATA | Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        }
        out.push(Xattr { name: name.to_vec().into(), value: value.into() });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((!out.is_empty()).then_some(out))
}

/// Whether a file lies on a file system whose times can be relied on.
pub fn is_local(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| LOCAL_FILE_SYSTEMS.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}
