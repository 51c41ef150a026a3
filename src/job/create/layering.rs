//! Storing a stream in layers: a piece that changed little since the previous generation becomes a delta of rows.
//!
//! Which older piece a new one is compared with is found by their ends: where a stream is cut depends on the bytes just
//! before the cut, and of a hundred cuts one or two fall on a row that changed. So the pieces between the same two cuts
//! belong together, however far rows before them have shifted the stream.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::crypto::BlobType;
use crate::format::dump::{Layer, Layers};
use crate::format::rows;
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::repo::{Repository, Stream};

/// The chunker has seen only so many bytes where it cuts.
const TAIL_BYTES: usize = 64;
/// Pieces of the older stream that are read ahead to find where it goes on, for each new piece.
const AHEAD: usize = 4;
/// Decoded layers that are kept: those read ahead, and some more.
const CACHED_LAYERS: usize = 8;
/// zstd level for rows that are new: they are few.
const DELTA_LEVEL: i32 = 9;
/// A piece is stored in full again after so many generations, or up to [`FRESH_SPREAD`] more of them by its hash, so
/// that not all of a stream is in the same night.
const FRESH_AFTER: u8 = 24;
const FRESH_SPREAD: u8 = 16;
/// Deltas that lean on each other, at most.
const DEPTH: usize = 8;
/// Deltas against two pieces lean on no more than so many others: they are decoded twice as often with each.
const JOINT_DEPTH: usize = 3;
/// The list of layers is stored in pieces of this many bytes.
const LIST_BYTES: usize = 1 << 20;

/// A layer of the previous generation: its number there.
type Older = u32;

/// Puts a stream into layers.
pub(super) struct Layering<'r> {
    repo: &'r Repository,
    level: i32,
    older: Option<Stream>,
    /// Pieces of the older stream by their content.
    by_chunk: HashMap<BlobId, usize>,
    by_hash: HashMap<[u8; 32], usize>,
    /// Pieces of the older stream by their ends, as far as they were read.
    tails: HashMap<Vec<u8>, usize>,
    read: usize,
    /// Where the older stream goes on.
    next: usize,
    cache: VecDeque<(Older, Arc<Vec<u8>>)>,
    adopted: HashMap<Older, u32>,
    layers: Layers,
    chunks: Vec<BlobId>,
    /// Own layers by their content.
    known: HashMap<[u8; 32], u32>,
    hasher: blake3::Hasher,
    bytes: u64,
}

/// A stream in layers.
pub(super) struct Layered {
    /// All chunks, those with the list of layers first.
    pub chunks: Vec<BlobId>,
    /// What is to be stored of the list of layers; empty if the chunks are the stream.
    pub lists: Vec<Vec<u8>>,
    /// BLAKE3 of the stream.
    pub hash: [u8; 32],
    /// Its length, in bytes.
    pub bytes: u64,
}

impl<'r> Layering<'r> {
    /// For a stream whose previous generation is `older`. If that can't be read, everything is stored in full.
    pub(super) fn new(repo: &'r Repository, older: Option<&Node>, level: i32) -> Self {
        let older = older.and_then(|node| repo.stream(node).ok());
        let (mut by_chunk, mut by_hash) = (HashMap::new(), HashMap::new());
        for (piece, layer) in older.iter().flat_map(|older| older.layers().pieces.iter().enumerate()) {
            let Some(older) = &older else { break };
            match older.layers().layers.get(*layer as usize).and_then(|layer| layer.hash) {
                Some(hash) => drop(by_hash.entry(hash).or_insert(piece)),
                None => drop(older.chunk(*layer).map(|id| by_chunk.entry(*id).or_insert(piece))),
            }
        }
        Self {
            repo,
            level: level.max(DELTA_LEVEL),
            older,
            by_chunk,
            by_hash,
            tails: HashMap::new(),
            read: 0,
            next: 0,
            cache: VecDeque::new(),
            adopted: HashMap::new(),
            layers: Layers::default(),
            chunks: Vec::new(),
            known: HashMap::new(),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    /// Adds the next piece of the stream; returns what is to be stored for it as a chunk, if anything.
    pub(super) fn piece(&mut self, plain: Vec<u8>) -> Option<Vec<u8>> {
        self.hasher.update(&plain);
        self.bytes += plain.len() as u64;
        let hash = *blake3::hash(&plain).as_bytes();
        if let Some(layer) = self.known.get(&hash) {
            self.layers.pieces.push(*layer);
            return None;
        }
        let id = self.repo.keys().blob_id(BlobType::Chunk, &plain);
        let (layer, stored) = match self.unchanged(&id, &hash) {
            Some(layer) => (layer, None),
            None if self.repo.index().is_usable(&id) => (self.add(&plain, id, 0, vec![], None), None),
            None => match self.delta(&plain, &hash) {
                Some((layer, body)) => (layer, Some(body)),
                None => (self.add(&plain, id, 0, vec![], None), Some(plain)),
            },
        };
        self.known.insert(hash, layer);
        self.layers.pieces.push(layer);
        stored
    }

    /// Ends the stream.
    pub(super) fn finish(self) -> Layered {
        let Self { repo, layers, chunks, hasher, bytes, .. } = self;
        let hash = *hasher.finalize().as_bytes();
        if layers.is_flat() {
            let of = |piece: &u32| chunks.get(*piece as usize).copied();
            return Layered { chunks: layers.pieces.iter().filter_map(of).collect(), lists: vec![], hash, bytes };
        }
        let lists: Vec<Vec<u8>> = layers.encode().chunks(LIST_BYTES).map(<[u8]>::to_vec).collect();
        let ids = lists.iter().map(|list| repo.keys().blob_id(BlobType::Chunk, list));
        Layered { chunks: ids.chain(chunks).collect(), lists, hash, bytes }
    }

    fn add(&mut self, plain: &[u8], chunk: BlobId, version: u8, bases: Vec<u32>, hash: Option<[u8; 32]>) -> u32 {
        self.layers.layers.push(Layer { plain_bytes: plain.len() as u32, version, bases, hash });
        self.chunks.push(chunk);
        self.chunks.len() as u32 - 1
    }

    /// The same piece in the previous generation, if it can be relied on.
    fn unchanged(&mut self, id: &BlobId, hash: &[u8; 32]) -> Option<u32> {
        let piece = *self.by_chunk.get(id).or_else(|| self.by_hash.get(hash))?;
        self.next = piece + 1;
        let layer = *self.older.as_ref()?.layers().pieces.get(piece)?;
        self.adopt(layer)
    }

    /// Takes a layer of the previous generation over, with those that it leans on; `None` if a chunk of them can't be
    /// relied on.
    fn adopt(&mut self, older: Older) -> Option<u32> {
        if let Some(layer) = self.adopted.get(&older) {
            return Some(*layer);
        }
        let stream = self.older.as_ref()?;
        let (mut layer, chunk) = (stream.layers().layers.get(older as usize)?.clone(), *stream.chunk(older)?);
        if !self.repo.index().is_usable(&chunk) {
            return None;
        }
        layer.bases = layer.bases.iter().map(|base| self.adopt(*base)).collect::<Option<_>>()?;
        self.layers.layers.push(layer);
        self.chunks.push(chunk);
        let number = self.chunks.len() as u32 - 1;
        self.adopted.insert(older, number);
        Some(number)
    }

    /// Makes a piece a delta against the previous generation.
    fn delta(&mut self, plain: &[u8], hash: &[u8; 32]) -> Option<(u32, Vec<u8>)> {
        let found = self.counterparts(plain)?;
        let layers = self.older.as_ref()?.layers();
        let mut version = found.iter().filter_map(|l| layers.layers.get(*l as usize)).map(|l| l.version).max()?;
        version = version.checked_add(1)?;
        if version > FRESH_AFTER + hash[0] % FRESH_SPREAD {
            return None;
        }
        let bases = match &found[..] {
            [one] => vec![self.ancestor(*one)?],
            several if several.iter().any(|layer| layers.depth(*layer) > JOINT_DEPTH) => return None,
            several => several.to_vec(),
        };
        if bases.iter().any(|base| layers.depth(*base) >= DEPTH) {
            return None;
        }
        let mut text = Vec::new();
        for base in &bases {
            text.extend_from_slice(&self.layer(*base)?);
        }
        let body = rows::encode(plain, &text, self.level)?;
        let bases: Vec<u32> = bases.iter().map(|base| self.adopt(*base)).collect::<Option<_>>()?;
        let chunk = self.repo.keys().blob_id(BlobType::Chunk, &body);
        Some((self.add(plain, chunk, version, bases, Some(*hash)), body))
    }

    /// What the next version after a layer leans on: version *n* on *n* with its lowest set bit cleared, so that depth
    /// grows with the logarithm only (skip-deltas, as in Subversion's FSFS).
    fn ancestor(&self, older: Older) -> Option<Older> {
        let layers = &self.older.as_ref()?.layers().layers;
        let mut at = older;
        for _ in 0..layers.get(older as usize)?.version.trailing_ones() {
            match layers.get(at as usize)?.bases[..] {
                [one] => at = one,
                _ => break,
            }
        }
        Some(at)
    }

    /// The layers of the older pieces that a new one takes the place of: two where a cut between them is gone.
    fn counterparts(&mut self, plain: &[u8]) -> Option<Vec<Older>> {
        let tail = tail(plain);
        let end = match self.tails.get(tail) {
            Some(piece) => Some(*piece),
            None => self.read_ahead(tail),
        };
        let range = match end {
            Some(end) => {
                let first = if end >= self.next { self.next.max(end.saturating_sub(1)) } else { end };
                self.next = end + 1;
                first..end + 1
            }
            // A new cut: what comes next is the rest of the same piece.
            None => self.next..self.next + 1,
        };
        self.older.as_ref()?.layers().pieces.get(range).map(<[u32]>::to_vec)
    }

    fn read_ahead(&mut self, wanted: &[u8]) -> Option<usize> {
        self.read = self.read.max(self.next);
        for _ in 0..AHEAD {
            let piece = self.read;
            let layer = *self.older.as_ref()?.layers().pieces.get(piece)?;
            self.read += 1;
            let Some(plain) = self.layer(layer) else { continue };
            self.tails.insert(tail(&plain).to_vec(), piece);
            if tail(&plain) == wanted {
                return Some(piece);
            }
        }
        None
    }

    fn layer(&mut self, older: Older) -> Option<Arc<Vec<u8>>> {
        if let Some((_, plain)) = self.cache.iter().find(|(number, _)| *number == older) {
            return Some(plain.clone());
        }
        // What can't be read is stored anew.
        let plain = Arc::new(self.repo.read_layer(self.older.as_ref()?, older).ok()?);
        self.cache.push_back((older, plain.clone()));
        if self.cache.len() > CACHED_LAYERS {
            self.cache.pop_front();
        }
        Some(plain)
    }
}

fn tail(plain: &[u8]) -> &[u8] {
    plain.get(plain.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default()
}
