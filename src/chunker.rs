//! Content-defined cutting of file data, pure.
//!
//! Depends on nothing else in the crate. The gear hash of FastCDC (Xia et al., "FastCDC: a Fast and Efficient
//! Content-Defined Chunking Approach", USENIX ATC 2016) with its normalisation: a stricter mask below the desired
//! size, a looser one above. The gear table is drawn from the repository's chunker key. A key does not make the cuts
//! secret (eprint 2025/558): sizes are hidden by packs, not by this.

use minicbor::{Decode, Encode};

/// The chunker in a repository's config.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChunkerParams {
    /// The algorithm's name.
    #[n(0)]
    pub name: String,
    /// Smallest chunk but a file's last, in bytes.
    #[n(1)]
    pub min_bytes: u32,
    /// Desired chunk, in bytes; a power of two.
    #[n(2)]
    pub desired_bytes: u32,
    /// Largest chunk, in bytes.
    #[n(3)]
    pub max_bytes: u32,
}

impl Default for ChunkerParams {
    fn default() -> Self {
        Self { name: "gear-1".into(), min_bytes: 512 << 10, desired_bytes: 1 << 20, max_bytes: 4 << 20 }
    }
}

impl ChunkerParams {
    /// Whether they can be used: bounded, and an algorithm known here.
    pub fn is_sane(&self) -> bool {
        self.name == "gear-1"
            && self.desired_bytes.is_power_of_two()
            && (64 << 10..self.desired_bytes).contains(&self.min_bytes)
            && (self.desired_bytes + 1..=16 << 20).contains(&self.max_bytes)
    }
}

/// Finds where to cut.
pub struct Chunker {
    gear: Box<[u64; 256]>,
    min: usize,
    desired: usize,
    max: usize,
    strict: u64,
    loose: u64,
}

impl Chunker {
    /// A chunker with the gear table of a key.
    pub fn new(params: &ChunkerParams, key: &[u8; 32]) -> Self {
        let mut bytes = [0; 2048];
        blake3::Hasher::new_keyed(key).finalize_xof().fill(&mut bytes);
        let mut gear = Box::new([0; 256]);
        for (value, bytes) in gear.iter_mut().zip(bytes.as_chunks().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        let bits = params.desired_bytes.ilog2();
        Self {
            gear,
            min: params.min_bytes as usize,
            desired: params.desired_bytes as usize,
            max: params.max_bytes as usize,
            // The top bits of a gear hash have seen the most bytes.
            strict: !0 << (64 - (bits + 1)),
            loose: !0 << (64 - (bits - 1)),
        }
    }

    /// Longest chunk, in bytes: what a caller must buffer.
    pub fn max_bytes(&self) -> usize {
        self.max
    }

    /// Files up to this many bytes are one chunk.
    pub fn min_bytes(&self) -> usize {
        self.min
    }

    /// The length of the first chunk of `data`, which holds [`Chunker::max_bytes`] or ends the stream.
    pub fn cut(&self, data: &[u8]) -> usize {
        if data.len() <= self.min {
            return data.len();
        }
        let end = data.len().min(self.max);
        let middle = end.min(self.desired);
        let mut hash = 0u64;
        let mut find = |from: usize, to: usize, mask: u64| {
            data[from..to]
                .iter()
                .position(|b| {
                    hash = (hash << 1).wrapping_add(self.gear[usize::from(*b)]);
                    hash & mask == 0
                })
                .map(|i| from + i + 1)
        };
        find(self.min, middle, self.strict).or_else(|| find(middle, end, self.loose)).unwrap_or(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(chunker: &Chunker, mut data: &[u8]) -> Vec<blake3::Hash> {
        let mut out = vec![];
        while !data.is_empty() {
            let (chunk, rest) = data.split_at(chunker.cut(data));
            out.push(blake3::hash(chunk));
            data = rest;
        }
        out
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let chunker = Chunker::new(&ChunkerParams::default(), &[5; 32]);
        let mut data = vec![0; 24 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut data);
        let before = cuts(&chunker, &data);
        assert!((12..40).contains(&before.len()), "{}", before.len());
        data.splice(5_000_000..5_000_000, *b"inserted");
        let after = cuts(&chunker, &data);
        let new = after.iter().filter(|c| !before.contains(c)).count();
        assert!((1..=3).contains(&new), "{new}");
        assert_ne!(cuts(&Chunker::new(&ChunkerParams::default(), &[6; 32]), &data), after, "the key counts");
    }
}
