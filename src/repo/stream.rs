//! The contents of files as a stream of pieces, whether they are stored as chunks or in layers.

use super::Repository;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::dump::{Layer, Layers};
use crate::format::rows;
use crate::format::tree::Node;
use crate::id::BlobId;

/// Where the pieces of a file are.
pub struct Stream {
    name: String,
    layers: Layers,
    chunks: Vec<BlobId>,
}

impl Stream {
    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.layers.pieces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layers.pieces.is_empty()
    }

    /// What the pieces are made of.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The chunk that a layer is stored as.
    pub fn chunk(&self, layer: u32) -> Option<&BlobId> {
        self.chunks.get(layer as usize)
    }
}

impl Repository {
    /// Finds the pieces of a file. The caller has loaded the index.
    ///
    /// # Errors
    /// [`Error::Missing`] if a chunk is nowhere, [`Error::Corrupt`] if the list of layers is damaged or the pieces
    /// don't add up to the file's size.
    pub fn stream(&self, node: &Node) -> Result<Stream> {
        let name = node.display_name();
        let content = node.content.as_ref().ok_or_else(|| Error::corrupt(&name, "it has no content"))?;
        let mut chunks = self.chunks(content)?;
        let layers = match node.dump.as_ref().and_then(|dump| dump.layers) {
            None => {
                let flat = |id: &BlobId| {
                    let plain_bytes = self.place(id)?.plain_bytes;
                    Ok(Layer { plain_bytes, bases: Vec::new(), hash: None, cost: 0 })
                };
                let layers = chunks.iter().map(flat).collect::<Result<Vec<_>>>()?;
                Layers { pieces: (0..).take(layers.len()).collect(), layers }
            }
            Some(lists) => {
                let rest = chunks.split_off((lists as usize).min(chunks.len()));
                let lists = std::mem::replace(&mut chunks, rest);
                let list = lists.iter().map(|id| self.read_blob(id, BlobType::Chunk)).collect::<Result<Vec<_>>>()?;
                chunks.iter().try_for_each(|id| self.place(id).map(drop))?;
                Layers::decode(&list.concat(), chunks.len()).map_err(|why| Error::corrupt(&name, why))?
            }
        };
        // Of a sparse file the chunks are the stretches of data.
        if node.extents.is_none() && Some(layers.plain_bytes()) != node.size {
            return Err(Error::corrupt(name, "its pieces don't add up to its size"));
        }
        Ok(Stream { name, layers, chunks })
    }

    /// Reads and verifies a piece of a stream.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_piece(&self, stream: &Stream, piece: usize) -> Result<Vec<u8>> {
        let layer =
            stream.layers.pieces.get(piece).ok_or_else(|| Error::corrupt(&stream.name, "it has no such piece"))?;
        self.read_layer(stream, *layer)
    }

    /// Reads, decodes and verifies a layer of a stream.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Corrupt`].
    pub fn read_layer(&self, stream: &Stream, number: u32) -> Result<Vec<u8>> {
        let plain = self.decode_layer(stream, number)?;
        let layer = stream.layers.layers.get(number as usize);
        // Only this one's: if a layer below decodes to something else, so does this.
        match layer.and_then(|layer| layer.hash) {
            Some(hash) if *blake3::hash(&plain).as_bytes() != hash => {
                Err(Error::corrupt(&stream.name, "a layer of it does not decode to what it stands for"))
            }
            _ => Ok(plain),
        }
    }

    /// The same, not verified as a whole if it has bases.
    fn decode_layer(&self, stream: &Stream, number: u32) -> Result<Vec<u8>> {
        let bad = |why: &str| Error::corrupt(&stream.name, why);
        let layer = stream.layers.layers.get(number as usize).zip(stream.chunk(number));
        let (layer, chunk) = layer.ok_or_else(|| bad("it has no such layer"))?;
        let body = self.read_blob(chunk, BlobType::Chunk)?;
        if layer.bases.is_empty() {
            let fits = body.len() == layer.plain_bytes as usize;
            return if fits { Ok(body) } else { Err(bad("a layer of it is not as long as stated")) };
        }
        // How much this takes was bounded when the list was read.
        let bases = layer.bases.iter().map(|base| self.decode_layer(stream, *base)).collect::<Result<Vec<_>>>()?;
        rows::decode(&body, &bases.concat(), layer.plain_bytes as usize).map_err(|why| bad(&why))
    }
}
