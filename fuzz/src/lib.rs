//! What the fuzz targets share: fixed keys, and sealing under them, so that the parsers behind the encryption are
//! reached. The first byte of every input says which way it takes; `examples/fuzz_seeds.rs` knows the same layouts.

use std::sync::OnceLock;

use snapshot::crypto::{Keys, ObjectKey, Secret};
use snapshot::format::header::{Header, Kind};

/// The keys that every target uses.
pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::derive(&Secret([1; 32])))
}

/// A header with a fixed salt.
pub fn header(kind: Kind, first_bytes: usize) -> Header {
    Header { kind, epoch: 0, first_bytes: first_bytes as u32, salt: [2; 32] }
}

/// A header that states the body's length, and the body.
pub fn enveloped(kind: Kind, body: &[u8]) -> Vec<u8> {
    [&header(kind, body.len()).to_bytes()[..], body].concat()
}

/// An object whose messages are sealed one after the other, as `repo-format.md` says.
pub fn sealed(kind: Kind, class: &Secret, messages: &[&[u8]]) -> Vec<u8> {
    let first = messages.first().map_or(0, |m| m.len() + snapshot::crypto::TAG_BYTES);
    let aad = header(kind, first).to_bytes();
    let key = ObjectKey::derive(class, &aad);
    let mut out = aad.to_vec();
    for (position, message) in (0..).zip(messages) {
        let from = out.len();
        out.extend_from_slice(message);
        key.seal(position, &aad, &mut out, from).expect("a short message can be sealed");
    }
    out
}

/// Takes the first `N` bytes of an input.
pub fn take<'a, const N: usize>(data: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = data.split_first_chunk::<N>()?;
    *data = tail;
    Some(head)
}

/// Cuts an input into pieces, each led by its length in two bytes, little-endian; the last may be shorter than it says.
pub fn pieces(mut data: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some(length) = take::<2>(&mut data) {
        let (piece, rest) = data.split_at(data.len().min(u16::from_le_bytes(*length).into()));
        out.push(piece);
        data = rest;
    }
    out
}
