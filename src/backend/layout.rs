//! Which path an object has.

use crate::format::header::Kind;
use crate::id::{BundleId, GcId, IndexId, MarkId, PackId, SnapshotId};

/// The repository's parameters.
pub const CONFIG: &str = "config";
/// A copy of [`CONFIG`], written just after it.
pub const CONFIG_COPY: &str = "config.bak";
/// Folder of the key slots.
pub const KEYS: &str = "keys/";
/// Folder of the data packs.
pub const DATA_PACKS: &str = "packs/d/";
/// Folder of the metadata packs.
pub const METADATA_PACKS: &str = "packs/m/";
/// Folder of the index.
pub const INDEX: &str = "index/";
/// Folder of the snapshots.
pub const SNAPSHOTS: &str = "snapshots/";
/// Folder of forgotten snapshots.
pub const TOMBS: &str = "tombs/";
/// Folder of the marks: tags and pins that snapshots got later.
pub const MARKS: &str = "marks/";
/// Folder of what is going on: running sessions, and records of condemned packs. One listing shows both.
pub const LIVE: &str = "live/";

/// The first object of a session: it is there from the beginning to the end.
pub const FIRST: &str = "0";
/// The object by which a session ends where nothing can be deleted.
pub const END: &str = "end";

/// Folder of the bundles: copies of small objects, many in one.
pub const BUNDLES: &str = "bundles/";

/// Path of a pack.
pub fn pack(kind: Kind, id: PackId) -> String {
    let folder = if kind == Kind::DataPack { DATA_PACKS } else { METADATA_PACKS };
    let name = id.to_string();
    format!("{folder}{}/{name}", &name[..2])
}

/// The pack's id and kind, from its path; `None` for anything that isn't a pack's path.
pub fn parse_pack(path: &str) -> Option<(Kind, PackId)> {
    let (kind, rest) = match path.strip_prefix(DATA_PACKS) {
        Some(rest) => (Kind::DataPack, rest),
        None => (Kind::MetadataPack, path.strip_prefix(METADATA_PACKS)?),
    };
    let id = PackId::parse(rest.split_once('/')?.1)?;
    (pack(kind, id) == path).then_some((kind, id))
}

/// Path of a bundle.
pub fn bundle(id: BundleId) -> String {
    format!("{BUNDLES}{id}")
}

/// The hash that an object's bytes have, where that is its name, and the object may be read from a copy of it: tombs are
/// also read to find out whether they are still there.
pub fn named_hash(path: &str) -> Option<[u8; 32]> {
    let (folder, name) = path.rsplit_once('/')?;
    let is_copied = parse_pack(path).is_some()
        || [KEYS, INDEX, SNAPSHOTS, MARKS, LIVE, BUNDLES].iter().any(|f| f.trim_end_matches('/') == folder);
    PackId::parse(name).filter(|_| is_copied).map(|id| id.0)
}

/// Path of an index file.
pub fn index(id: IndexId) -> String {
    format!("{INDEX}{id}")
}

/// Path of a snapshot.
pub fn snapshot(id: SnapshotId) -> String {
    format!("{SNAPSHOTS}{id}")
}

/// Path of a forgotten snapshot: the same bytes under the same name.
pub fn tomb(id: SnapshotId) -> String {
    format!("{TOMBS}{id}")
}

/// Path of a mark.
pub fn mark(id: MarkId) -> String {
    format!("{MARKS}{id}")
}

/// Path of a record of condemned packs.
pub fn gc(id: GcId) -> String {
    format!("{LIVE}{id}")
}

/// Whether this is the path of a record of condemned packs.
pub fn is_gc(path: &str) -> bool {
    path.strip_prefix(LIVE).is_some_and(|name| GcId::parse(name).is_some())
}

/// Path of a session's object: a number, or [`END`].
pub fn session(name: &str, part: &str) -> String {
    format!("{LIVE}{name}.{part}")
}

/// The session's name and which of its objects it is, from a path; `None` for anything that isn't a session's.
pub fn parse_session(path: &str) -> Option<(&str, &str)> {
    let (name, part) = path.strip_prefix(LIVE)?.split_once('.')?;
    let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (!name.is_empty() && (is_number || part == END)).then_some((name, part))
}
