//! Deterministic CBOR (RFC 8949 §4.2) with integer keys, decoded strictly.
//!
//! Strictness is had by encoding again what was decoded: anything but the one deterministic form (unknown keys,
//! another order, long integers, trailing bytes, indefinite lengths) comes out differently and is refused.

use minicbor::{Decode, Decoder, Encode};

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
    #[cbor(decode_with = "decode_nanos")]
    pub nanos: u32,
}

const NANOS_PER_SEC: u32 = 1_000_000_000;

fn decode_nanos<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<u32, minicbor::decode::Error> {
    let nanos = d.u32()?;
    if nanos < NANOS_PER_SEC {
        Ok(nanos)
    } else {
        Err(minicbor::decode::Error::message("a second has 10^9 nanoseconds"))
    }
}

impl Time {
    /// The next point in time that can be told from this one.
    pub fn next(self) -> Self {
        match self.nanos + 1 {
            NANOS_PER_SEC.. => Self { secs: self.secs.saturating_add(1), nanos: 0 },
            nanos => Self { nanos, ..self },
        }
    }
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

    #[test]
    fn a_second_has_its_nanoseconds() {
        let last = Time { secs: -1, nanos: 999_999_999 };
        assert_eq!(decode::<Time>(&encode(&last)), Ok(last));
        assert!(decode::<Time>(&encode(&Time { nanos: 1_000_000_000, ..last })).is_err());
        assert_eq!(last.next(), Time::default());
        assert_eq!(last.next().next(), Time { secs: 0, nanos: 1 });
    }
}
