//! Storing a stream in layers: a piece that changed little since the previous generation becomes a delta of rows.
//!
//! Which older piece a new one is compared with is found by their ends: where a stream is cut depends on the bytes just
//! before the cut, and of a hundred cuts one or two fall on a row that changed. So the pieces between the same two cuts
//! belong together, however far rows before them have shifted the stream.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::crypto::BlobType;
use crate::format::dump::{Layer, Layers, MAX_LAYER_BASES};
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
/// zstd level for what is new in a stream that has an older generation: it is little.
const LATER_LEVEL: i32 = 9;
/// A piece is stored in full once so many deltas would have to be decoded for it, or up to [`FRESH_SPREAD`] more by its
/// hash, so that not all of a stream is in the same night.
const FRESH_COST: u32 = 20;
const FRESH_SPREAD: u8 = 16;
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
    /// Where each piece of the older stream ends, in bytes.
    ends: Vec<u64>,
    /// How far the older stream was followed, in bytes, as far as that can be told.
    at: u64,
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
        let mut end = 0;
        let bytes = |piece: &u32| older.as_ref()?.layers().layers.get(*piece as usize).map(|layer| layer.plain_bytes);
        let pieces = older.iter().flat_map(|older| &older.layers().pieces);
        let ends = pieces.map(|piece| {
            end += u64::from(bytes(piece).unwrap_or(0));
            end
        });
        let ends = ends.collect();
        Self {
            repo,
            level: if older.is_some() { level.max(LATER_LEVEL) } else { level },
            older,
            by_chunk,
            by_hash,
            tails: HashMap::new(),
            read: 0,
            ends,
            at: 0,
            cache: VecDeque::new(),
            adopted: HashMap::new(),
            layers: Layers::default(),
            chunks: Vec::new(),
            known: HashMap::new(),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    /// The zstd level for what is to be stored.
    pub(super) fn level(&self) -> i32 {
        self.level
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
            None if self.repo.index().is_usable(&id) => (self.add(&plain, id, vec![], None), None),
            None => match self.delta(&plain, &hash) {
                Some((layer, body)) => (layer, Some(body)),
                None => (self.add(&plain, id, vec![], None), Some(plain)),
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

    fn add(&mut self, plain: &[u8], chunk: BlobId, bases: Vec<u32>, hash: Option<[u8; 32]>) -> u32 {
        let cost = self.layers.cost_on(&bases).unwrap_or(0);
        self.layers.layers.push(Layer { plain_bytes: plain.len() as u32, bases, hash, cost });
        self.chunks.push(chunk);
        self.chunks.len() as u32 - 1
    }

    /// The same piece in the previous generation, if it can be relied on.
    fn unchanged(&mut self, id: &BlobId, hash: &[u8; 32]) -> Option<u32> {
        let piece = *self.by_chunk.get(id).or_else(|| self.by_hash.get(hash))?;
        self.at = *self.ends.get(piece)?;
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
        let bases = self.counterparts(plain)?;
        let cost = self.older.as_ref()?.layers().cost_on(&bases)?;
        if cost == 0 || cost > FRESH_COST + u32::from(hash[0] % FRESH_SPREAD) {
            return None;
        }
        let mut text = Vec::new();
        for base in &bases {
            text.extend_from_slice(&self.layer(*base)?);
        }
        let body = rows::encode(plain, &text, self.level)?;
        let bases: Vec<u32> = bases.iter().map(|base| self.adopt(*base)).collect::<Option<_>>()?;
        let chunk = self.repo.keys().blob_id(BlobType::Chunk, &body);
        Some((self.add(plain, chunk, bases, Some(*hash)), body))
    }

    /// The layers of the older pieces that a new one takes the place of: several where a cut between them is gone. Where
    /// the new one ends at a new cut, its length tells how far it goes.
    fn counterparts(&mut self, plain: &[u8]) -> Option<Vec<Older>> {
        let tail = tail(plain);
        let end = match self.tails.get(tail) {
            Some(piece) => Some(*piece),
            None => self.read_ahead(tail),
        };
        let (from, to) = match end.and_then(|end| Some((end, *self.ends.get(end)?))) {
            Some((end, to)) if to <= self.at => (end, to),
            Some((_, to)) => (self.piece_at(self.at), to),
            None => (self.piece_at(self.at), self.at + plain.len() as u64),
        };
        self.at = to;
        let last = self.piece_at(to.checked_sub(1)?).max(from);
        let pieces = &self.older.as_ref()?.layers().pieces;
        // Of more than can be leant on, the last ones: what was cut away since lies before.
        let from = from.max((last + 1).saturating_sub(MAX_LAYER_BASES));
        pieces.get(from..pieces.len().min(last + 1)).map(<[u32]>::to_vec)
    }

    /// The older piece that has the byte at an offset.
    fn piece_at(&self, offset: u64) -> usize {
        self.ends.partition_point(|end| *end <= offset)
    }

    fn read_ahead(&mut self, wanted: &[u8]) -> Option<usize> {
        self.read = self.read.max(self.piece_at(self.at));
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
