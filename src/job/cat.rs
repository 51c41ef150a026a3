//! Single stored objects and blobs, for those who look under the bonnet: found by the start of their names, opened and
//! verified as every reader does.

use crate::backend::{Listed, layout};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::cbor;
use crate::format::index::Index;
use crate::format::pack::PackInfo;
use crate::format::pagemap::{Change, Inner, Root, StoredLeaf};
use crate::format::snapshot::Snapshot;
use crate::format::tree::Tree;
use crate::format::{MAX_CONTROL_BYTES, control, header};
use crate::id::{BlobId, SnapshotId, hex, unhex};
use crate::index::Place;
use crate::repo::{Named, Repository};

/// Fewest digits that name something.
const MIN_DIGITS: usize = 2;

/// A blob of a page map.
pub enum MapNode {
    /// The root.
    Root(Root),
    /// An inner node: its children.
    Inner(Vec<BlobId>),
    /// A leaf as stored, a whole one or a patch, with its entries.
    Leaf(StoredLeaf, Vec<Change>),
}

fn digits(prefix: &str) -> Option<String> {
    let digits = prefix.to_ascii_lowercase();
    let good = (MIN_DIGITS..=64).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    good.then_some(digits)
}

/// The one thing found.
fn only<T>(mut found: Vec<T>, kind: &'static str, prefix: &str) -> Result<T> {
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(Error::Unknown { kind, name: prefix.into() }),
        (_, more) => Err(Error::refused(format!("\"{prefix}\" fits {} of these", more + 1), "give more digits")),
    }
}

/// The one object below these folders whose name begins with `prefix`.
///
/// # Errors
/// [`Error::Unknown`] if there is none, [`Error::Refused`] if there are several.
pub fn object(repo: &Repository, folders: &[&str], kind: &'static str, prefix: &str) -> Result<Listed> {
    let digits = digits(prefix).ok_or_else(|| Error::Unknown { kind, name: prefix.into() })?;
    let mut found = Vec::new();
    for folder in folders {
        let listed = repo.backend().list(folder)?.into_iter().filter(|l| l.name().starts_with(&digits));
        found.extend(listed.filter(|l| layout::parse_session(&l.path).is_none()));
    }
    only(found, kind, prefix)
}

/// A snapshot, also a forgotten one; whether it is one comes with it.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Refused`], or [`Error::Corrupt`].
pub fn snapshot(repo: &Repository, prefix: &str) -> Result<(Named, bool)> {
    let found = object(repo, &[layout::SNAPSHOTS, layout::TOMBS], "snapshot", prefix)?;
    let bytes = repo.backend().get(&found.path, MAX_CONTROL_BYTES as u64)?;
    let hash = blake3::hash(&bytes);
    if hash.to_string() != found.name() {
        return Err(Error::corrupt(&found.path, "its contents do not have the hash that is its name"));
    }
    let snapshot = Snapshot::open(repo.keys(), &bytes, &found.path)?;
    Ok((Named::new(SnapshotId(*hash.as_bytes()), snapshot), found.path.starts_with(layout::TOMBS)))
}

/// A record of condemned packs, with its path.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Refused`], or [`Error::Corrupt`].
pub fn condemned(repo: &Repository, prefix: &str) -> Result<(Listed, control::Condemned)> {
    let found = object(repo, &[layout::LIVE], "gc record", prefix)?;
    let bytes = repo.backend().get(&found.path, MAX_CONTROL_BYTES as u64)?;
    let record = control::open(repo.keys(), header::Kind::Gc, &bytes, &found.path)?;
    Ok((found, record))
}

/// An index file.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Refused`], or [`Error::Corrupt`].
pub fn index(repo: &Repository, prefix: &str) -> Result<(Listed, Index)> {
    let found = object(repo, &[layout::INDEX], "index file", prefix)?;
    let index = repo.open_index(&found.path)?;
    Ok((found, index))
}

/// The directory of a pack, read from the pack itself.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Refused`], or [`Error::Corrupt`].
pub fn pack(repo: &Repository, prefix: &str) -> Result<PackInfo> {
    let found = object(repo, &[layout::DATA_PACKS, layout::METADATA_PACKS], "pack", prefix)?;
    repo.open_pack(&found.path, found.bytes)
}

/// The one blob whose id begins with `prefix`, of one type or of any, with all its places, the best first. The caller
/// has loaded the index.
///
/// # Errors
/// [`Error::Unknown`] if there is none, [`Error::Refused`] if there are several.
pub fn find_blob(repo: &Repository, kind: Option<BlobType>, prefix: &str) -> Result<(BlobId, Vec<Place>)> {
    let name = match kind {
        Some(BlobType::Tree) => "tree",
        Some(BlobType::Map) => "page map",
        _ => "blob",
    };
    let digits = digits(prefix).ok_or_else(|| Error::Unknown { kind: name, name: prefix.into() })?;
    let index = repo.index();
    let fits = |id: &BlobId| {
        // Most ids differ in the first byte.
        let whole = unhex(&digits[..digits.len() & !1]).unwrap_or_default();
        id.0.starts_with(&whole) && hex(&id.0).starts_with(&digits)
    };
    let mut found: Vec<BlobId> = index
        .iter()
        .filter(|(id, place)| kind.is_none_or(|kind| place.kind == kind) && fits(id))
        .map(|(id, _)| *id)
        .collect();
    found.sort();
    found.dedup();
    let id = only(found, name, prefix)?;
    Ok((id, index.places(&id).collect()))
}

/// The bytes that a blob's id stands for. Of a segment: its pages, one after the other, without those that a prune
/// dropped.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Corrupt`].
pub fn blob(repo: &Repository, id: &BlobId, kind: BlobType) -> Result<Vec<u8>> {
    if kind != BlobType::Segment {
        return repo.read_blob(id, kind);
    }
    let decoded = repo.read_segment(id)?;
    Ok((0..decoded.hashes.len()).filter_map(|slot| decoded.page(slot)).flatten().copied().collect())
}

/// A tree blob as stored.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Corrupt`].
pub fn tree(repo: &Repository, id: &BlobId) -> Result<Tree> {
    let bytes = repo.read_blob(id, BlobType::Tree)?;
    Tree::decode(&bytes).map_err(|why| Error::corrupt(format!("tree {id}"), why))
}

/// A blob of a page map, whichever it is.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Corrupt`].
pub fn map(repo: &Repository, id: &BlobId) -> Result<MapNode> {
    let bytes = repo.read_blob(id, BlobType::Map)?;
    // Which of the three it is can be told from the number of fields; each is decoded strictly.
    if cbor::decode::<Root>(&bytes).is_ok() {
        return Root::decode(&bytes).map(MapNode::Root).map_err(|why| Error::corrupt(format!("page map {id}"), why));
    }
    if let Ok(children) = Inner::decode(&bytes) {
        return Ok(MapNode::Inner(children));
    }
    let (leaf, changes) = StoredLeaf::decode(&bytes).map_err(|why| Error::corrupt(format!("page map {id}"), why))?;
    Ok(MapNode::Leaf(leaf, changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample::{Sample, noise};

    #[test]
    fn objects_and_blobs_by_the_start_of_their_names() {
        let mut sample = Sample::new();
        let file = sample.file("a", b"some bytes");
        let chunk = file.content.as_ref().unwrap().ids().unwrap()[0];
        let database = noise(2, 512 * 3);
        let pages = sample.pages(512, &database);
        let segment = pages[0].segment;
        let node = sample.database("data.db", 512, &database, &pages);
        let map_id = node.database.as_ref().unwrap().map;
        let selected = sample.snapshot(vec![file, node]);
        let repo = &sample.repo;
        let id = chunk.to_string();
        let (found, places) = find_blob(repo, None, &id[..40].to_ascii_uppercase()).unwrap();
        assert_eq!((found, places.len()), (chunk, 1));
        assert_eq!(find_blob(repo, None, &id[..39]).unwrap().0, chunk);
        assert_eq!(blob(repo, &chunk, places[0].kind).unwrap(), b"some bytes");
        assert_eq!(blob(repo, &segment, BlobType::Segment).unwrap(), database);
        for bad in ["", "f", "xyz", "zz", &"0".repeat(65), &"0".repeat(64)] {
            assert!(matches!(find_blob(repo, None, bad), Err(Error::Unknown { .. })), "{bad}");
        }
        assert!(matches!(find_blob(repo, Some(BlobType::Tree), &id), Err(Error::Unknown { .. })));

        let tree_id = find_blob(repo, Some(BlobType::Tree), &selected.named.snapshot.tree.to_string()).unwrap().0;
        assert_eq!(tree(repo, &tree_id).unwrap().nodes.len(), 2);
        let MapNode::Root(root) = map(repo, &map_id).unwrap() else { panic!("a root") };
        let leaf = crate::format::tree::split_ids(&root.children).unwrap()[0];
        assert!(
            matches!(map(repo, &leaf).unwrap(), MapNode::Leaf(stored, entries) if stored.pages == 3 && entries.len() == 3)
        );

        let id = selected.named.id.to_string();
        assert!(!snapshot(repo, &id[..8]).unwrap().1);
        repo.bury_snapshot(selected.named.id).unwrap();
        assert!(snapshot(repo, &id).unwrap().1, "it is forgotten");
        let listed = repo.backend().list(layout::DATA_PACKS).unwrap();
        let info = pack(repo, listed[0].name()).unwrap();
        assert_eq!(info.frames.iter().map(|frame| frame.entries.len()).sum::<usize>(), 2);
        assert!(matches!(
            object(repo, &[layout::KEYS, layout::SNAPSHOTS], "key slot", "zz"),
            Err(Error::Unknown { .. })
        ));
    }
}
