//! Reading blobs: locate, fetch the frame, open it, decode it, verify the blob's id.
//!
//! Nothing leaves here that was not authenticated at its pack and whose id was not recomputed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Repository;
use crate::backend::layout;
use crate::crypto::{BlobType, ObjectKey};
use crate::error::{Error, Result};
use crate::format::MAX_TREE_NODES;
use crate::format::index::IndexedPack;
use crate::format::pack::{Encoding, FrameInfo, PackInfo, class_key, frame_aad};
use crate::format::pagemap::{Inner, Root};
use crate::format::segment::Base;
use crate::format::tree::{Content, Node, Tree};
use crate::id::BlobId;
use crate::index::Place;

/// Decoded frames that are kept, in bytes: trees lie many to a frame.
const FRAME_CACHE_BYTES: usize = 8 << 20;

#[derive(Default)]
pub(super) struct FrameCache(Mutex<Cached>);

/// Pack and frame, by their numbers in the index.
type FrameKey = (u32, u32);

/// Newest last.
#[derive(Default)]
struct Cached {
    frames: VecDeque<(FrameKey, Arc<Vec<u8>>)>,
    bytes: usize,
}

impl FrameCache {
    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clear(&self) {
        *self.lock() = Cached::default();
    }

    fn get(&self, key: FrameKey) -> Option<Arc<Vec<u8>>> {
        self.lock().frames.iter().rev().find(|(k, _)| *k == key).map(|(_, frame)| frame.clone())
    }

    fn put(&self, key: FrameKey, frame: &Arc<Vec<u8>>) {
        let mut cached = self.lock();
        cached.bytes += frame.len();
        cached.frames.push_back((key, frame.clone()));
        while cached.bytes > FRAME_CACHE_BYTES
            && let Some((_, old)) = cached.frames.pop_front()
        {
            cached.bytes -= old.len();
        }
    }
}

/// What it takes to fetch and open one frame, copied out of the index.
pub struct FrameReader {
    what: String,
    path: String,
    offset: u64,
    stored_bytes: u32,
    position: u32,
    plain_bytes: u32,
    encoding: Encoding,
    header: crate::format::header::Header,
    bases: Vec<Base>,
}

impl FrameReader {
    /// For frame number `frame` of a pack whose directory was read, at `offset` in the file.
    pub(super) fn of_pack(pack: &PackInfo, frame: u32, offset: u64, info: &FrameInfo) -> Self {
        Self {
            what: format!("frame {frame} of pack {}", pack.id),
            path: layout::pack(pack.header.kind, pack.id),
            offset,
            stored_bytes: info.stored_bytes,
            position: frame + 1,
            plain_bytes: info.plain_bytes,
            encoding: info.encoding,
            header: pack.header,
            bases: info.bases.clone(),
        }
    }

    /// For a frame of a pack as an index describes it; `None` if there is none of this number.
    pub(super) fn of_index(pack: &IndexedPack, number: u32) -> Option<Self> {
        let frame = pack.frames.get(number as usize)?;
        Some(Self {
            what: format!("frame {number} of pack {}", pack.id),
            path: layout::pack(pack.kind(), pack.id),
            offset: pack.frame_offset(number),
            stored_bytes: frame.stored_bytes(),
            position: number + 1,
            plain_bytes: frame.plain_bytes(),
            encoding: frame.encoding(),
            header: pack.header,
            bases: pack.bases(number).to_vec(),
        })
    }

    /// The same frame in a file at another path.
    pub(super) fn at(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// Length of the decoded frame, in bytes.
    pub fn plain_bytes(&self) -> u32 {
        self.plain_bytes
    }

    /// Segments that are needed to decode the frame.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// The pack's path in the repository.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the sealed frame lies in the pack: offset and length in bytes.
    pub fn range(&self) -> (u64, u64) {
        (self.offset, u64::from(self.stored_bytes))
    }

    /// How the frame is encoded.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Opens the sealed frame: what comes out is authentic, and encoded still.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not authentic.
    pub fn open(&self, repo: &Repository, mut sealed: Vec<u8>) -> Result<Vec<u8>> {
        let len = self.open_in_place(repo, &mut sealed)?.len();
        sealed.truncate(len);
        Ok(sealed)
    }

    /// Opens the sealed frame where it lies.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not authentic.
    pub fn open_in_place<'a>(&self, repo: &Repository, sealed: &'a mut [u8]) -> Result<&'a [u8]> {
        let key = ObjectKey::derive(class_key(&repo.keys, self.header.kind), &self.header.to_bytes());
        let aad = frame_aad(&self.header, self.encoding, self.plain_bytes);
        key.open_in_place(self.position, &aad, sealed).ok_or_else(|| Error::corrupt(&self.what, "it is not authentic"))
    }

    /// Decodes an opened frame of several blobs. Their ids are not verified: see [`Repository::verify`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it can't be decoded, or is a segment.
    pub fn decode(&self, body: Vec<u8>) -> Result<Vec<u8>> {
        let decoded = match self.decode_slice(&body)? {
            Cow::Owned(plain) => Some(plain),
            Cow::Borrowed(_) => None,
        };
        Ok(decoded.unwrap_or(body))
    }

    /// The same for a body that is only borrowed: one that is not compressed is not copied.
    ///
    /// # Errors
    /// As [`FrameReader::decode`].
    pub fn decode_slice<'a>(&self, body: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let plain_bytes = self.plain_bytes as usize;
        match self.encoding {
            Encoding::Raw if body.len() == plain_bytes => Ok(body.into()),
            Encoding::Zstd => crate::format::zstd::decompress(body, plain_bytes, None)
                .map(Cow::Owned)
                .map_err(|why| Error::corrupt(&self.what, why)),
            Encoding::Raw => Err(Error::corrupt(&self.what, "its length is not the stated one")),
            Encoding::Segment => {
                Err(Error::corrupt(&self.what, "it holds a database segment where a blob is expected"))
            }
        }
    }
}

/// What tells where a blob is, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// The index files.
    Index,
    /// Packs that no index file describes.
    Strays,
    /// All packs.
    Packs,
}

impl Witness {
    pub(super) const ALL: [Self; 3] = [Self::Index, Self::Strays, Self::Packs];
}

impl Repository {
    /// Where a blob is, or that it is missing.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn place(&self, id: &BlobId) -> Result<Place> {
        let find = || self.index().find(id);
        find()
            .or_else(|| self.adopt_strays().then(find).flatten())
            .or_else(|| self.ask_packs().then(find).flatten().inspect(|_| self.note_wrong_index(id)))
            .ok_or_else(|| Error::Missing { what: format!("blob {id}") })
    }

    /// Whether a blob can be read without a request to a server: older pages that can't are done without, as a night
    /// in which few pages change would fetch much of the database otherwise.
    pub fn is_near(&self, id: &BlobId) -> bool {
        let index = self.index();
        let pack = index.find(id).and_then(|place| index.packs().get(place.pack as usize));
        pack.is_some_and(|pack| self.backend.is_near(&layout::pack(pack.kind(), pack.id)))
    }

    /// What it takes to read the frame of a place.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a place that the index doesn't have.
    pub fn frame_reader(&self, place: Place) -> Result<FrameReader> {
        let index = self.index();
        let pack = index.packs().get(place.pack as usize);
        let reader = pack.and_then(|pack| FrameReader::of_index(pack, place.frame));
        reader.ok_or_else(|| Error::corrupt("index", "a place points nowhere"))
    }

    /// Fetches and opens the frame of a place.
    pub(super) fn fetch(&self, reader: &FrameReader) -> Result<Vec<u8>> {
        let (offset, len) = reader.range();
        reader.open(self, self.backend.get_range(&reader.path, offset, len)?)
    }

    /// Cuts a blob out of its decoded frame and verifies it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the bytes are not those that the id stands for.
    pub fn verify<'f>(&self, id: &BlobId, place: Place, frame: &'f [u8]) -> Result<&'f [u8]> {
        let from = place.offset as usize;
        let blob = frame.get(from..from + place.plain_bytes as usize);
        blob.filter(|blob| self.keys.blob_id(place.kind, blob) == *id)
            .ok_or_else(|| Error::corrupt(format!("blob {id}"), "its bytes are not those that its id stands for"))
    }

    /// Reads a blob that is not a segment. If its first place is damaged, the others are tried.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_blob(&self, id: &BlobId, kind: BlobType) -> Result<Vec<u8>> {
        self.try_places(id, |place| {
            if place.kind != kind {
                return Err(Error::corrupt(format!("blob {id}"), "it is not of the type expected"));
            }
            let key = (place.pack, place.frame);
            let frame = match self.frames.get(key) {
                Some(frame) => frame,
                None => {
                    let reader = self.frame_reader(place)?;
                    let frame = Arc::new(reader.decode(self.fetch(&reader)?)?);
                    self.frames.put(key, &frame);
                    frame
                }
            };
            self.verify(id, place, &frame).map(<[u8]>::to_vec)
        })
    }

    fn try_places<T>(&self, id: &BlobId, read: impl Fn(Place) -> Result<T>) -> Result<T> {
        let (mut tried, mut first_error) = (Vec::new(), None);
        for witness in Witness::ALL {
            for place in self.places_by(witness, id, &tried) {
                match read(place) {
                    Ok(value) => {
                        self.note_witness(witness, id);
                        return Ok(value);
                    }
                    Err(e) => first_error = first_error.or(Some(e)),
                }
                tried.push(place);
            }
        }
        Err(first_error.unwrap_or_else(|| Error::Missing { what: format!("blob {id}") }))
    }

    /// The places of a blob that a witness names, but for some; those are asked one after the other.
    pub(super) fn places_by(&self, witness: Witness, id: &BlobId, tried: &[Place]) -> Vec<Place> {
        let has_said = match witness {
            Witness::Index => true,
            Witness::Strays => self.adopt_strays(),
            Witness::Packs => self.ask_packs(),
        };
        if !has_said {
            return Vec::new();
        }
        self.index().places(id).filter(|place| !tried.contains(place)).collect()
    }

    /// Takes note of how a blob was found.
    pub(super) fn note_witness(&self, witness: Witness, id: &BlobId) {
        if witness == Witness::Packs {
            self.note_wrong_index(id);
        }
    }

    /// Reads all nodes of a directory, in order.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_tree(&self, id: &BlobId) -> Result<Vec<Node>> {
        let read = |id: &BlobId| {
            let bytes = self.read_blob(id, BlobType::Tree)?;
            Tree::decode(&bytes).map_err(|why| Error::corrupt(format!("tree {id}"), why))
        };
        let tree = read(id)?;
        let Some(parts) = tree.parts else { return Ok(tree.nodes) };
        let mut nodes: Vec<Node> = Vec::new();
        for part in &parts {
            let tree = read(part)?;
            let in_order = nodes.last().zip(tree.nodes.first()).is_none_or(|(a, b)| a.name < b.name);
            if tree.parts.is_some() || !in_order || nodes.len() > MAX_TREE_NODES * 256 {
                return Err(Error::corrupt(format!("tree {id}"), "its parts don't fit together"));
            }
            nodes.extend(tree.nodes);
        }
        Ok(nodes)
    }

    /// The chunks of a file, in order.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn chunks(&self, content: &Content) -> Result<Vec<BlobId>> {
        let mut ids = content.ids().ok_or_else(|| Error::corrupt("a file's content", "it is no list of ids"))?;
        for _ in 0..content.level {
            let mut below = Vec::new();
            for list in &ids {
                let bytes = self.read_blob(list, BlobType::List)?;
                let more = crate::format::tree::split_ids(&bytes);
                below.extend(more.ok_or_else(|| Error::corrupt(format!("list {list}"), "it is no list of ids"))?);
            }
            ids = below;
        }
        Ok(ids)
    }

    /// Reads the root of a page map, and the ids of its leaves, in order.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_map(&self, id: &BlobId) -> Result<(Root, Vec<BlobId>)> {
        let bad = |id: &BlobId, why: String| Error::corrupt(format!("page map {id}"), why);
        let root = Root::decode(&self.read_blob(id, BlobType::Map)?).map_err(|why| bad(id, why))?;
        let mut level = crate::format::tree::split_ids(&root.children).unwrap_or_default();
        for _ in 0..root.height {
            let mut below = Vec::new();
            for node in &level {
                below.extend(Inner::decode(&self.read_blob(node, BlobType::Map)?).map_err(|why| bad(node, why))?);
                if below.len() > root.leaves() {
                    return Err(bad(id, "it has more leaves than pages".into()));
                }
            }
            level = below;
        }
        if level.len() == root.leaves() {
            Ok((root, level))
        } else {
            Err(bad(id, "its leaves are not as many as its pages need".into()))
        }
    }
}
