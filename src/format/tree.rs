//! Directories: nodes sorted by name, split into blobs by content.
//!
//! A directory is cut after a node whose name's BLAKE3 begins with a zero byte, so that one changed file in a directory
//! of 20,000 rewrites one part of some 256 nodes and the list of parts.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::cbor::Time;
use super::dump::Dump;
use super::facts::Facts;
use super::{MAX_TREE_NODES, cbor};
use crate::id::BlobId;

/// A part is never cut before it has this many nodes …
const PART_MIN_NODES: usize = 64;
/// … and always when it has this many,
const PART_MAX_NODES: usize = 1024;
/// or when its names, link targets, ids, extended attributes and tables of databases add up to this many bytes.
const PART_MAX_BYTES: usize = 1 << 20;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum NodeKind {
    /// A regular file.
    #[n(0)]
    File,
    /// A directory.
    #[n(1)]
    Directory,
    /// A symbolic link.
    #[n(2)]
    Symlink,
    /// A database captured page by page.
    #[n(3)]
    Database,
    /// A named pipe.
    #[n(4)]
    Fifo,
    /// A character device.
    #[n(5)]
    CharDevice,
    /// A block device.
    #[n(6)]
    BlockDevice,
    /// A socket: recorded, never restored.
    #[n(7)]
    Socket,
}

/// The chunks of a file's data, in order, as ids one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Content {
    /// 0: the ids are of chunks; n: of lists of level n − 1.
    #[n(0)]
    pub level: u8,
    /// 32 bytes for each id.
    #[n(1)]
    pub ids: ByteVec,
}

impl Content {
    /// Content of the given level.
    pub fn new(level: u8, ids: &[BlobId]) -> Self {
        Self { level, ids: join_ids(ids) }
    }

    /// The ids; `None` if they are not a multiple of 32 bytes.
    pub fn ids(&self) -> Option<Vec<BlobId>> {
        split_ids(&self.ids)
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::new(0, &[])
    }
}

/// Joins ids into one byte string.
pub fn join_ids(ids: &[BlobId]) -> ByteVec {
    ids.iter().flat_map(|id| id.0).collect::<Vec<u8>>().into()
}

/// Takes ids apart again.
pub fn split_ids(bytes: &[u8]) -> Option<Vec<BlobId>> {
    bytes.len().is_multiple_of(32).then(|| bytes.chunks_exact(32).filter_map(BlobId::from_slice).collect())
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Xattr {
    /// Its name.
    #[n(0)]
    pub name: ByteVec,
    /// Its value.
    #[n(1)]
    pub value: ByteVec,
}

/// What identifies the state of a `-wal` file: stat and the salts in its header.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WalStamp {
    /// Inode number.
    #[n(0)]
    pub inode: u64,
    /// Length in bytes.
    #[n(1)]
    pub size: u64,
    /// Modification time.
    #[n(2)]
    pub mtime: Time,
    /// Change time.
    #[n(3)]
    pub ctime: Time,
    /// Both salts, as they stand in the header.
    #[n(4)]
    pub salts: u64,
}

/// What is known of a captured database.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Database {
    /// Root of the page map.
    #[n(0)]
    pub map: BlobId,
    /// When the capture began: what was changed less than two seconds before it must be read again next time.
    #[n(1)]
    pub captured: Time,
    /// Device of the file.
    #[n(2)]
    pub device: u64,
    /// The `-wal` file at the capture, if there was one that was not empty; or the journal of an interrupted
    /// transaction that was put back.
    #[n(3)]
    pub wal: Option<WalStamp>,
    /// Whether the file was in WAL mode.
    #[n(4)]
    pub wal_mode: bool,
    /// Length of the main file at the capture, in bytes: that of the database unless pages came from the WAL.
    #[n(5)]
    pub file_bytes: u64,
    /// What it said of itself; `None` if it was captured by a version that did not look.
    #[n(6)]
    pub facts: Option<Facts>,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Node {
    /// File name: any bytes but `/` and NUL.
    #[n(0)]
    pub name: ByteVec,
    /// What it is.
    #[n(1)]
    pub kind: NodeKind,
    /// Permission bits, 0 to 0o7777.
    #[n(2)]
    pub mode: u32,
    /// Owner.
    #[n(3)]
    pub uid: u32,
    /// Group.
    #[n(4)]
    pub gid: u32,
    /// Modification time.
    #[n(5)]
    pub mtime: Time,
    /// Change time at the capture: tells whether the file was touched since.
    #[n(6)]
    pub ctime: Option<Time>,
    /// Inode number at the capture.
    #[n(7)]
    pub inode: Option<u64>,
    /// Length in bytes: files and databases.
    #[n(8)]
    pub size: Option<u64>,
    /// Data of a file: the bytes of its extents, or of the whole file, one after the other.
    #[n(9)]
    pub content: Option<Content>,
    /// Target of a symbolic link.
    #[n(10)]
    pub target: Option<ByteVec>,
    /// Number of a device node.
    #[n(11)]
    pub rdev: Option<u64>,
    /// Extended attributes, sorted by name.
    #[n(12)]
    pub xattrs: Option<Vec<Xattr>>,
    /// Sparse files: offset and length of each stretch of data, in order; the rest is holes.
    #[n(13)]
    pub extents: Option<Vec<u64>>,
    /// A directory's nodes.
    #[n(14)]
    pub tree: Option<BlobId>,
    /// A captured database.
    #[n(15)]
    pub database: Option<Database>,
    /// Names in this snapshot with the same number here are the same file.
    #[n(16)]
    pub hard_link: Option<u64>,
    /// Why a database was stored as a plain file, or a file may not be as it was at one moment.
    #[n(17)]
    pub unverified: Option<String>,
    /// A file that is the dump of a database.
    #[n(18)]
    pub dump: Option<Dump>,
}

impl Node {
    /// A node with nothing but a name and a kind.
    pub fn bare(name: &[u8], kind: NodeKind) -> Self {
        Self {
            name: name.to_vec().into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            ctime: None,
            inode: None,
            size: None,
            content: None,
            target: None,
            rdev: None,
            xattrs: None,
            extents: None,
            tree: None,
            database: None,
            hard_link: None,
            unverified: None,
            dump: None,
        }
    }

    /// The name, for people.
    pub fn display_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// A part of a directory, or the list of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Tree {
    /// Nodes, sorted by name; empty if there are parts.
    #[n(0)]
    pub nodes: Vec<Node>,
    /// Tree blobs that hold the nodes, in order.
    #[n(1)]
    pub parts: Option<Vec<BlobId>>,
}

impl Tree {
    /// Reads a tree blob and checks what every user relies on: sane names in strictly rising order, and fields that
    /// fit the kind of node.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let tree: Self = cbor::decode(bytes)?;
        if tree.nodes.len() > MAX_TREE_NODES || tree.parts.as_ref().is_some_and(|p| p.len() > MAX_TREE_NODES) {
            return Err("it has more entries than allowed".into());
        }
        if tree.parts.is_some() && !tree.nodes.is_empty() {
            return Err("it has both nodes and parts".into());
        }
        if let Some(bad) = tree.nodes.iter().find(|n| !n.is_sane()) {
            return Err(format!("its node {:?} makes no sense", bad.display_name()));
        }
        if !tree.nodes.windows(2).all(|w| w[0].name < w[1].name) {
            return Err("its names are not in order".into());
        }
        Ok(tree)
    }
}

impl Node {
    /// Major and minor number of a device node, which Linux mixes in one.
    pub fn device(&self) -> Option<(u32, u32)> {
        let n = self.rdev?;
        Some(((n >> 32 & 0xffff_f000 | n >> 8 & 0xfff) as u32, (n >> 12 & 0xffff_ff00 | n & 0xff) as u32))
    }

    /// Length of what has no fixed length.
    fn variable_bytes(&self) -> usize {
        let xattrs = self.xattrs.iter().flatten().map(|x| x.name.len() + x.value.len()).sum::<usize>();
        let content = self.content.as_ref().map_or(0, |c| c.ids.len());
        let extents = self.extents.as_ref().map_or(0, |e| e.len() * 9);
        let facts = self.database.as_ref().and_then(|d| d.facts.as_ref()).map_or(0, Facts::variable_bytes);
        self.name.len() + self.target.as_ref().map_or(0, |t| t.len()) + content + extents + xattrs + facts
    }

    fn is_sane(&self) -> bool {
        let name = &*self.name;
        let named = !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, b'/' | 0));
        let whole_ids = self.content.as_ref().is_none_or(|c| c.ids.len().is_multiple_of(32) && c.level <= 4);
        let fits = match self.kind {
            NodeKind::File => self.size.is_some() && self.content.is_some(),
            NodeKind::Directory => self.tree.is_some(),
            NodeKind::Symlink => self.target.as_ref().is_some_and(|t| !t.contains(&0)),
            NodeKind::Database => {
                let is_sane = |d: &Database| d.facts.as_ref().is_none_or(Facts::is_sane);
                self.size.is_some() && self.database.as_ref().is_some_and(is_sane)
            }
            NodeKind::CharDevice | NodeKind::BlockDevice => self.rdev.is_some(),
            NodeKind::Fifo | NodeKind::Socket => true,
        };
        let dump_fits = self.dump.as_ref().is_none_or(|dump| self.kind == NodeKind::File && dump.hash.len() == 32);
        named && whole_ids && fits && dump_fits && self.mode <= 0o7777 && self.extents_fit()
    }

    /// Extents must rise, not touch the end twice, and stay within the file.
    fn extents_fit(&self) -> bool {
        let Some(extents) = &self.extents else { return true };
        let mut end = 0u64;
        extents.len().is_multiple_of(2)
            && extents.chunks_exact(2).all(|e| {
                let from_here = e[0] >= end;
                end = e[0].saturating_add(e[1]);
                from_here && Some(end) <= self.size
            })
    }
}

/// Cuts sorted nodes into the parts that are stored as blobs: one part if there are few.
pub fn split(nodes: Vec<Node>) -> Vec<Vec<Node>> {
    let mut parts = vec![];
    let mut part = vec![];
    let mut bytes = 0;
    for node in nodes {
        let cut_here = blake3::hash(&node.name).as_bytes()[0] == 0;
        bytes += node.variable_bytes();
        part.push(node);
        if (cut_here && part.len() >= PART_MIN_NODES) || part.len() >= PART_MAX_NODES || bytes >= PART_MAX_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
    }
    if !part.is_empty() || parts.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::facts::TableRows;

    fn file(name: &str) -> Node {
        Node { size: Some(1), content: Some(Content::default()), ..Node::bare(name.as_bytes(), NodeKind::File) }
    }

    #[test]
    fn bad_trees_are_refused() {
        let encode = |nodes: Vec<Node>| cbor::encode(&Tree { nodes, parts: None });
        assert!(Tree::decode(&encode(vec![file("a"), file("b")])).is_ok());
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert!(Tree::decode(&encode(vec![file(bad)])).is_err(), "{bad:?}");
        }
        assert!(Tree::decode(&encode(vec![file("b"), file("a")])).is_err());
        assert!(Tree::decode(&encode(vec![file("a"), file("a")])).is_err());
        assert!(Tree::decode(&encode(vec![Node { extents: Some(vec![0, 2]), ..file("a") }])).is_err());
        assert!(Tree::decode(&encode(vec![Node { extents: Some(vec![u64::MAX, 2]), ..file("a") }])).is_err());
        assert!(Tree::decode(&encode(vec![Node { content: None, ..file("a") }])).is_err());
        let database = |names: &[&str]| {
            let tables = names.iter().map(|name| TableRows { name: (*name).into(), rows: 1 }).collect();
            let facts = Some(Facts { tables: Some(tables), ..Facts::default() });
            let (map, captured) = (BlobId([1; 32]), Time::default());
            let database = Database { map, captured, device: 0, wal: None, wal_mode: true, file_bytes: 0, facts };
            Node { size: Some(1), database: Some(database), ..Node::bare(b"d", NodeKind::Database) }
        };
        assert!(Tree::decode(&encode(vec![database(&["a", "b"])])).is_ok());
        assert!(Tree::decode(&encode(vec![database(&["b", "a"])])).is_err());
        assert!(Tree::decode(&encode(vec![Node { database: None, ..database(&[]) }])).is_err());
    }

    #[test]
    fn device_numbers() {
        let device = |rdev| Node { rdev, ..Node::bare(b"d", NodeKind::CharDevice) }.device();
        assert_eq!(device(None), None);
        assert_eq!(device(Some(0x0801)), Some((8, 1)));
        // As makedev(3) of the GNU C library puts 0x12345678 and 0x9abcdef0 together.
        assert_eq!(device(Some(0x1234_59ab_cde6_78f0)), Some((0x1234_5678, 0x9abc_def0)));
    }

    #[test]
    fn one_new_name_changes_one_part() {
        let names = |extra: Option<&str>| {
            let mut names: Vec<_> = (0..20_000).map(|i| format!("file-{i:05}")).collect();
            names.extend(extra.map(str::to_owned));
            names.sort();
            split(names.iter().map(|n| file(n)).collect())
        };
        let (before, after) = (names(None), names(Some("file-10000-new")));
        assert!(before.len() > 20 && before.iter().map(Vec::len).sum::<usize>() == 20_000);
        assert_eq!(after.iter().filter(|part| !before.contains(part)).count(), 1);
    }
}
