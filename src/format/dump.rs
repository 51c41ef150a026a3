//! What is known of the dump of a database server, and the layers that such a stream may be stored in.
//!
//! ```text
//! u32 layers | u32 pieces
//! per layer:   u32 plain_bytes | u8 bases | bases × u32 number of an earlier layer
//!              | if there are bases, 32 bytes: BLAKE3 of the decoded layer
//! pieces × u32 number of a layer
//! ```
//!
//! Each layer is a chunk. One without bases is that chunk's bytes; one with bases is a delta of rows against the
//! decoded layers of these numbers, joined. The stream is the layers of the pieces, one after the other.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::MAX_FRAME_BYTES;
use super::bytes::Reader;

/// Deltas that must be decoded to have one layer, itself included, at most.
pub const MAX_LAYER_COST: u32 = 64;
/// Layers that one leans on, at most.
pub const MAX_LAYER_BASES: usize = 4;

/// The dump of a database.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Dump {
    /// What it is a dump of: `postgres` for an archive of `pg_dump`, `postgres-globals` for roles and tablespaces.
    #[n(0)]
    pub kind: String,
    /// Version of the server, in its own words.
    #[n(1)]
    pub server: Option<String>,
    /// Name of the database.
    #[n(2)]
    pub database: Option<ByteVec>,
    /// Version of the program that made the dump, in its own words.
    #[n(3)]
    pub tool: Option<String>,
    /// BLAKE3 of the dump.
    #[n(4)]
    pub hash: ByteVec,
    /// How many of the first chunks hold the list of the layers that the others are; without it they are the dump.
    #[n(5)]
    pub layers: Option<u32>,
}

impl Dump {
    /// Kind of an archive of `pg_dump`.
    pub const POSTGRES: &'static str = "postgres";
    /// Kind of the roles and tablespaces of a server.
    pub const POSTGRES_GLOBALS: &'static str = "postgres-globals";

    /// The database's name, for people.
    pub fn database_name(&self) -> Option<String> {
        self.database.as_ref().map(|name| String::from_utf8_lossy(name).into_owned())
    }
}

/// A chunk of a stream: as it is, or as a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Length decoded, in bytes.
    pub plain_bytes: u32,
    /// What it leans on: numbers of layers before it.
    pub bases: Vec<u32>,
    /// BLAKE3 of the decoded bytes; only told of layers with bases, whose chunk's id stands for other bytes.
    pub hash: Option<[u8; 32]>,
    /// How many deltas must be decoded to have it: not stored, since it follows from the bases.
    pub cost: u32,
}

/// A stream's layers, and which of them make it up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layers {
    /// All of them: those that are leant on come first.
    pub layers: Vec<Layer>,
    /// The layer of each piece of the stream.
    pub pieces: Vec<u32>,
}

impl Layers {
    /// Length of the stream, in bytes.
    pub fn plain_bytes(&self) -> u64 {
        let bytes = |piece: &u32| self.layers.get(*piece as usize).map_or(0, |layer| u64::from(layer.plain_bytes));
        self.pieces.iter().map(bytes).sum()
    }

    /// Whether there is nothing to tell that a list of chunks would not.
    pub fn is_flat(&self) -> bool {
        self.layers.iter().all(|layer| layer.bases.is_empty())
    }

    /// What a layer on these bases would cost; `None` if one of them is not there.
    pub fn cost_on(&self, bases: &[u32]) -> Option<u32> {
        let below = bases.iter().map(|base| self.layers.get(*base as usize).map(|layer| layer.cost));
        let below = below.sum::<Option<u32>>()?;
        Some(if bases.is_empty() { 0 } else { below.saturating_add(1) })
    }

    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.layers.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        for layer in &self.layers {
            out.extend_from_slice(&layer.plain_bytes.to_le_bytes());
            out.push(layer.bases.len() as u8);
            layer.bases.iter().for_each(|base| out.extend_from_slice(&base.to_le_bytes()));
            out.extend_from_slice(layer.hash.as_ref().map_or(&[][..], |hash| hash));
        }
        self.pieces.iter().for_each(|piece| out.extend_from_slice(&piece.to_le_bytes()));
        out
    }

    /// Reads what [`Layers::encode`] wrote, for as many layers as there are chunks.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: &[u8], chunks: usize) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        Self::take(&mut reader, chunks)
            .filter(|_| reader.0.is_empty())
            .ok_or_else(|| "its list of layers makes no sense".into())
    }

    fn take(reader: &mut Reader<'_>, chunks: usize) -> Option<Self> {
        let (layers, pieces) = (reader.u32()? as usize, reader.u32()? as usize);
        if layers != chunks || pieces > reader.0.len() / 4 {
            return None;
        }
        let mut out = Self::default();
        for _ in 0..layers {
            let (plain_bytes, bases) = (reader.u32()?, usize::from(reader.u8()?));
            if bases > MAX_LAYER_BASES || plain_bytes as usize > MAX_FRAME_BYTES {
                return None;
            }
            let bases: Vec<u32> = (0..bases).map(|_| reader.u32()).collect::<Option<_>>()?;
            // Only layers before this one are there.
            let cost = out.cost_on(&bases).filter(|cost| *cost <= MAX_LAYER_COST)?;
            let hash = if bases.is_empty() { None } else { Some(reader.id()?) };
            out.layers.push(Layer { plain_bytes, bases, hash, cost });
        }
        out.pieces = (0..pieces).map(|_| reader.u32().filter(|p| (*p as usize) < layers)).collect::<Option<_>>()?;
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(bases: &[u32]) -> Layer {
        let hash = (!bases.is_empty()).then_some([7; 32]);
        Layer { plain_bytes: 5, bases: bases.to_vec(), hash, cost: 0 }
    }

    #[test]
    fn layers_round_trip_and_nonsense_is_refused() {
        let with_cost = |cost, layer| Layer { cost, ..layer };
        let layers = vec![layer(&[]), with_cost(1, layer(&[0])), with_cost(2, layer(&[1, 0]))];
        let sound = Layers { layers, pieces: vec![2, 0, 2] };
        let bytes = sound.encode();
        assert_eq!(Layers::decode(&bytes, 3).as_ref(), Ok(&sound));
        assert_eq!((sound.plain_bytes(), sound.is_flat()), (15, false));
        assert!(Layers::decode(&bytes, 2).is_err() && Layers::decode(&bytes, 4).is_err());
        assert!((0..bytes.len()).all(|end| Layers::decode(&bytes[..end], 3).is_err()));
        assert!(Layers::decode(&[&bytes[..], &[0]].concat(), 3).is_err());
        let refused = |layers: Vec<Layer>, pieces: Vec<u32>| {
            let chunks = layers.len();
            Layers::decode(&Layers { layers, pieces }.encode(), chunks).is_err()
        };
        assert!(refused(vec![layer(&[0])], vec![0]), "it leans on itself");
        assert!(refused(vec![layer(&[1]), layer(&[])], vec![0]), "on a later one");
        assert!(refused(vec![layer(&[])], vec![1]), "a piece of no layer");
        assert!(refused(vec![layer(&[]), layer(&[0, 0, 0, 0, 0])], vec![1]), "on five");
        let long = Layer { plain_bytes: u32::MAX, ..layer(&[]) };
        assert!(refused(vec![long], vec![0]));
        let chain = |n: u32| (0..n).map(|at| layer(&at.checked_sub(1).map_or(vec![], |b| vec![b]))).collect::<Vec<_>>();
        assert!(!refused(chain(65), vec![64]) && refused(chain(66), vec![65]), "a chain");
        let doubling = (0..8u32).map(|at| layer(&at.checked_sub(1).map_or(vec![], |b| vec![b, b]))).collect();
        assert!(refused(doubling, vec![7]), "127 deltas for one layer");
    }
}
