//! Bundles: copies of many small objects in one, so that a machine which sees a repository for the first time fetches a
//! few objects instead of thousands.
//!
//! ```text
//!  0   8  magic "SNAPBNDL"
//!  8   for each object:  2  length of its path, little-endian
//!                        4  length of its bytes, little-endian
//!                        …  path, bytes
//! ```
//!
//! A bundle proves nothing and need not: what comes out of it is used only where the bytes have the hash that is the
//! object's name, and only for objects that the store lists in their own place. Objects in it are sealed as they are there.

use super::layout::named_hash;

const MAGIC: &[u8; 8] = b"SNAPBNDL";
/// Lengths of a path and of bytes.
const LENGTHS: usize = 2 + 4;
/// Longest bundle that is written, in bytes, unless a single object is longer.
pub const BUNDLE_BYTES: usize = 8 << 20;
/// Longest bundle that is read, in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 64 << 20;
/// Longer objects, in bytes, are not worth it.
pub const MAX_BUNDLED_BYTES: u64 = 1 << 20;

/// Puts objects together.
pub struct Bundler(Vec<u8>);

impl Default for Bundler {
    fn default() -> Self {
        Self(MAGIC.to_vec())
    }
}

impl Bundler {
    /// Adds an object; `false` if it does not fit.
    pub fn add(&mut self, path: &str, bytes: &[u8]) -> bool {
        let (Ok(path_bytes), Ok(len)) = (u16::try_from(path.len()), u32::try_from(bytes.len())) else { return false };
        if !self.is_empty() && self.0.len() + LENGTHS + path.len() + bytes.len() > BUNDLE_BYTES {
            return false;
        }
        self.0.extend_from_slice(&path_bytes.to_le_bytes());
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(path.as_bytes());
        self.0.extend_from_slice(bytes);
        true
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.len() == MAGIC.len()
    }

    /// The bundle.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The objects in a bundle whose bytes have the hash that is their name, up to where it makes no sense any more.
pub fn unbundle(bundle: &[u8]) -> impl Iterator<Item = (&str, [u8; 32], &[u8])> {
    let mut rest = bundle.strip_prefix(MAGIC).unwrap_or_default();
    let next = move || {
        let (path_bytes, after) = rest.split_first_chunk()?;
        let (len, after) = after.split_first_chunk()?;
        let (path, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*path_bytes)))?;
        let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = after;
        Some((path, bytes))
    };
    std::iter::from_fn(next).filter_map(|(path, bytes)| {
        let path = std::str::from_utf8(path).ok()?;
        let hash = named_hash(path)?;
        (*blake3::hash(bytes).as_bytes() == hash).then_some((path, hash, bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: u32) -> (String, Vec<u8>) {
        let bytes = n.to_le_bytes().repeat(100);
        (format!("snapshots/{}", blake3::hash(&bytes)), bytes)
    }

    fn bundle(count: u32) -> Vec<u8> {
        let mut bundler = Bundler::default();
        for (path, bytes) in (0..count).map(object) {
            assert!(bundler.add(&path, &bytes));
        }
        bundler.finish()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let bundle = bundle(10);
        let out: Vec<_> = unbundle(&bundle).map(|(path, _, bytes)| (path.to_owned(), bytes.to_vec())).collect();
        assert_eq!(out, (0..10).map(object).collect::<Vec<_>>());
        assert!(Bundler::default().is_empty() && unbundle(&Bundler::default().finish()).next().is_none());
    }

    #[test]
    fn of_a_damaged_one_the_sound_objects_come_out() {
        let bundle = bundle(10);
        for at in 0..bundle.len() {
            let mut flipped = bundle.clone();
            flipped[at] ^= 1;
            let sound = unbundle(&flipped).inspect(|(path, _, bytes)| {
                assert!((0..10).map(object).any(|(p, b)| p == *path && b == *bytes), "byte {at}");
            });
            assert!(sound.count() < 10, "byte {at}");
            assert!(unbundle(&bundle[..at]).count() < 10);
        }
    }

    #[test]
    fn a_bundle_has_its_limit_and_a_single_object_has_none() {
        let mut bundler = Bundler::default();
        assert!(bundler.add("snapshots/a", &vec![0; BUNDLE_BYTES]));
        assert!(!bundler.add("snapshots/b", &[]));
    }
}
