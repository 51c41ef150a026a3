//! Deterministic CBOR (RFC 8949 §4.2) with integer keys, decoded strictly.
//!
//! Strictness is had by encoding again what was decoded: anything but the one deterministic form (unknown keys,
//! another order, long integers, trailing bytes, indefinite lengths) comes out differently and is refused.

use minicbor::{Decode, Encode};

/// Encodes a value.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing into a Vec can't fail, and no Encode of this crate reports an error of its own.
    let _ = minicbor::encode(value, &mut out);
    out
}

/// Decodes a value from exactly its deterministic encoding.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn decode<T: for<'b> Decode<'b, ()> + Encode<()>>(bytes: &[u8]) -> Result<T, String> {
    let value: T = minicbor::decode(bytes).map_err(|e| format!("its CBOR can't be read ({e})"))?;
    if encode(&value) == bytes { Ok(value) } else { Err("its CBOR is not in the deterministic form".into()) }
}

/// A point in time: seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    #[n(0)]
    pub secs: i64,
    /// 0 to 999,999,999.
    #[n(1)]
    pub nanos: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_deterministic_form_is_read() {
        let time = Time { secs: 5, nanos: 7 };
        assert_eq!(encode(&time), [0x82, 5, 7]);
        assert_eq!(decode::<Time>(&[0x82, 5, 7]), Ok(time));
        for bad in [&[0x82, 0x18, 5, 7][..], &[0x82, 5, 7, 0], &[0x83, 5, 7, 0], &[0x9f, 5, 7, 0xff], &[0x82, 5]] {
            assert!(decode::<Time>(bad).is_err(), "{bad:02x?}");
        }
    }
}
