//! What is known of the dump of a database server, and the layers that such a stream may be stored in.
//!
//! ```text
//! u32 layers | u32 pieces
//! per layer:   u32 plain_bytes | u8 version | u8 bases | bases × u32 number of an earlier layer
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

/// Deltas that lean on each other, at most.
pub const MAX_LAYER_DEPTH: u8 = 16;
/// Layers that one leans on, at most.
pub const MAX_LAYER_BASES: usize = 2;

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
    /// How many generations lie between it and the last one without bases: for writers.
    pub version: u8,
    /// What it leans on: numbers of layers before it.
    pub bases: Vec<u32>,
    /// BLAKE3 of the decoded bytes; only told of layers with bases, whose chunk's id stands for other bytes.
    pub hash: Option<[u8; 32]>,
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

    /// How many deltas must be decoded to have a layer.
    pub fn depth(&self, layer: u32) -> usize {
        let Some(layer) = self.layers.get(layer as usize) else { return 0 };
        layer.bases.iter().map(|base| self.depth(*base) + 1).max().unwrap_or(0)
    }

    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.layers.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        for layer in &self.layers {
            out.extend_from_slice(&layer.plain_bytes.to_le_bytes());
            out.extend_from_slice(&[layer.version, layer.bases.len() as u8]);
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
        let mut depths: Vec<u8> = Vec::new();
        for number in 0..layers {
            let (plain_bytes, version, bases) = (reader.u32()?, reader.u8()?, usize::from(reader.u8()?));
            if bases > MAX_LAYER_BASES || plain_bytes as usize > MAX_FRAME_BYTES {
                return None;
            }
            let bases: Vec<u32> = (0..bases).map(|_| reader.u32()).collect::<Option<_>>()?;
            let before = |base: &u32| depths.get(*base as usize).filter(|_| (*base as usize) < number);
            let below: Vec<u8> = bases.iter().map(|base| before(base).copied()).collect::<Option<_>>()?;
            let depth = below.iter().max().map_or(0, |most| most + 1);
            if depth > MAX_LAYER_DEPTH {
                return None;
            }
            depths.push(depth);
            let hash = if bases.is_empty() { None } else { Some(reader.id()?) };
            out.layers.push(Layer { plain_bytes, version, bases, hash });
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
        Layer { plain_bytes: 5, version: 3, bases: bases.to_vec(), hash }
    }

    #[test]
    fn layers_round_trip_and_nonsense_is_refused() {
        let sound = Layers { layers: vec![layer(&[]), layer(&[0]), layer(&[1, 0])], pieces: vec![2, 0, 2] };
        let bytes = sound.encode();
        assert_eq!(Layers::decode(&bytes, 3).as_ref(), Ok(&sound));
        assert_eq!((sound.plain_bytes(), sound.depth(2), sound.is_flat()), (15, 2, false));
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
        assert!(refused(vec![layer(&[]), layer(&[]), layer(&[]), layer(&[0, 1, 2])], vec![3]), "on three");
        let long = Layer { plain_bytes: u32::MAX, ..layer(&[]) };
        assert!(refused(vec![long], vec![0]));
        let chain = |n: u32| (0..n).map(|at| layer(&at.checked_sub(1).map_or(vec![], |b| vec![b]))).collect::<Vec<_>>();
        assert!(!refused(chain(17), vec![16]) && refused(chain(18), vec![17]), "a chain");
    }
}
