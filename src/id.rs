//! Typed identifiers: newtypes over 32 bytes that can't be mixed up.
//!
//! May depend on nothing else in the crate. Two families exist: ids of *blobs*, which are keyed hashes of
//! plaintext ([`BlobId`]), and ids of *stored objects*, which are the BLAKE3-256 of the file's bytes
//! ([`PackId`], [`IndexId`], [`SnapshotId`], …).

use std::fmt;

/// Writes bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.push(char::from(DIGITS[usize::from(b >> 4)]));
        out.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    out
}

/// Reads an even number of lower-case or upper-case hex digits; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let value = |d: u8| char::from(d).to_digit(16).and_then(|v| u8::try_from(v).ok());
    digits.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Reads exactly 64 hex digits.
            pub fn parse(text: &str) -> Option<Self> {
                unhex(text)?.try_into().ok().map(Self)
            }

            /// Takes exactly 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The first eight hex digits, for people.
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                Self::from_slice(d.bytes()?)
                    .ok_or_else(|| minicbor::decode::Error::message("an id is 32 bytes"))
            }
        }
    };
}

id_type!(
    /// Keyed hash of a blob's plaintext, under a key of its type.
    BlobId
);
id_type!(
    /// BLAKE3-256 of a pack file.
    PackId
);
id_type!(
    /// BLAKE3-256 of an index file.
    IndexId
);
id_type!(
    /// BLAKE3-256 of a snapshot file.
    SnapshotId
);
id_type!(
    /// BLAKE3-256 of a record of condemned packs.
    GcId
);
id_type!(
    /// BLAKE3-256 of a mark.
    MarkId
);
id_type!(
    /// BLAKE3-256 of a bundle.
    BundleId
);
id_type!(
    /// BLAKE3-256 of a key slot.
    SlotId
);

/// The first 16 bytes of a keyed hash of one database page.
pub type PageHash = [u8; 16];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_refusals() {
        let id = BlobId([0xa5; 32]);
        assert_eq!(BlobId::parse(&id.to_string()), Some(id));
        assert_eq!(BlobId::parse("a5"), None);
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("abc"), None);
        assert_eq!(unhex("é"), None);
    }
}
