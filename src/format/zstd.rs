//! Compression of frames: zstd with a bounded window and exactly the stated output length.
//!
//! The only user of the zstd crate. Contexts are kept per thread: making one costs more than compressing a small
//! frame with it.

use std::cell::RefCell;

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, find_frame_compressed_size, get_error_name, get_frame_content_size,
};

/// zstd level used unless the user chooses another.
pub const DEFAULT_LEVEL: i32 = 3;
/// From this many bytes on the default level has larger tables and longer matches (hash log, chain log, minimum):
/// measured on 1 MiB frames against the level's own, databases come out 1 % smaller at the same speed, text 4 % smaller
/// and a tenth faster, program code 1 % larger.
const TUNING: (u32, u32, u32) = (18, 17, 6);
const TUNED_FROM_BYTES: usize = 512 << 10;
/// Largest window that is decoded: 16 MiB.
const WINDOW_LOG_MAX: u32 = 24;
/// Below this many bytes nothing is taken for random: compressing it to see is cheap.
const SAMPLE_FROM_BYTES: usize = 64 << 10;
const SAMPLE_BYTES: usize = 4 << 10;
/// What a frame that is not to be skipped begins with.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

thread_local! {
    static ENCODER: RefCell<CCtx<'static>> = RefCell::new(CCtx::create());
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DECODER: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Compresses `plain`; `None` if that would not save at least a sixty-fourth.
pub fn compress(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    if plain.len() < 16 {
        return None;
    }
    encode(plain, level, None).filter(|out| out.len() < plain.len() - plain.len() / 64)
}

/// Compresses `plain` against a `prefix` of older bytes that the decoder will have too.
pub fn compress_delta(plain: &[u8], prefix: &[u8], level: i32) -> Option<Vec<u8>> {
    encode(plain, level, Some(prefix))
}

fn encode(plain: &[u8], level: i32, prefix: Option<&[u8]>) -> Option<Vec<u8>> {
    // Frames wait in packs: they must not carry the spare room that compressing needs.
    SCRATCH.with_borrow_mut(|out| {
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        encode_into(out, plain, level, prefix)?;
        Some(out.as_slice().to_vec())
    })
}

fn encode_into(out: &mut Vec<u8>, plain: &[u8], level: i32, prefix: Option<&[u8]>) -> Option<usize> {
    if let Some(prefix) = prefix {
        // A context of its own: the borrow of the prefix must not outlive this call.
        let mut cctx = CCtx::create();
        let reach = (prefix.len() + plain.len()).next_power_of_two().trailing_zeros();
        cctx.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        cctx.set_parameter(CParameter::WindowLog(reach.clamp(10, WINDOW_LOG_MAX))).ok()?;
        cctx.ref_prefix(prefix).ok()?;
        return cctx.compress2(out, plain).ok();
    }
    ENCODER.with_borrow_mut(|cctx| {
        // 0 stands for what the level has.
        let tuned = level == DEFAULT_LEVEL && plain.len() >= TUNED_FROM_BYTES;
        let (hash, chain, min) = if tuned { TUNING } else { (0, 0, 0) };
        cctx.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        cctx.set_parameter(CParameter::HashLog(hash)).ok()?;
        cctx.set_parameter(CParameter::ChainLog(chain)).ok()?;
        cctx.set_parameter(CParameter::MinMatch(min)).ok()?;
        cctx.compress2(out, plain).ok()
    })
}

/// Whether data is not worth compressing, by samples from three places: media, archives, ciphertext.
pub fn looks_random(plain: &[u8]) -> bool {
    if plain.len() < SAMPLE_FROM_BYTES {
        return false;
    }
    let last = plain.len() - SAMPLE_BYTES;
    [0, last / 2, last].iter().all(|&at| {
        let sample = &plain[at..at + SAMPLE_BYTES];
        encode(sample, 1, None).is_some_and(|out| out.len() > SAMPLE_BYTES - SAMPLE_BYTES / 32)
    })
}

/// Decompresses exactly one frame to exactly `plain_bytes` bytes, with `prefix` if it was compressed against one.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn decompress(stored: &[u8], plain_bytes: usize, prefix: Option<&[u8]>) -> Result<Vec<u8>, String> {
    if !stored.starts_with(&MAGIC) || find_frame_compressed_size(stored).ok() != Some(stored.len()) {
        return Err("it is not exactly one zstd frame".into());
    }
    if get_frame_content_size(stored).ok().flatten() != Some(plain_bytes as u64) {
        return Err(format!("it does not state that it has {plain_bytes} bytes"));
    }
    let mut out = Vec::with_capacity(plain_bytes);
    let run = |dctx: &mut DCtx<'_>, out: &mut Vec<u8>| {
        dctx.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(get_error_name)?;
        dctx.decompress(out, stored).map_err(get_error_name)
    };
    let got = match prefix {
        None => DECODER.with_borrow_mut(|dctx| run(dctx, &mut out)),
        Some(prefix) => {
            let mut dctx = DCtx::create();
            dctx.ref_prefix(prefix).map_err(|e| get_error_name(e).to_string())?;
            run(&mut dctx, &mut out)
        }
    };
    match got {
        Ok(n) if n == plain_bytes => Ok(out),
        Ok(n) => Err(format!("it decompresses to {n} bytes where {plain_bytes} are stated")),
        Err(why) => Err(format!("it can't be decompressed ({why})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_with_and_without_prefix() {
        let old: Vec<u8> = (0..200_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        assert!(looks_random(&old) && compress(&old, 3).is_none(), "random data is stored as it is");
        let text = b"SELECT * FROM accounts;\n".repeat(9000);
        assert!(!looks_random(&text));
        let packed = compress(&text, 3).unwrap();
        assert_eq!(decompress(&packed, text.len(), None).unwrap(), text);
        assert!(decompress(&packed, text.len() - 1, None).is_err());
        assert!(decompress(&packed, text.len() + 1, None).is_err());
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        let empty = encode(b"", 3, None).unwrap();
        assert_eq!(decompress(&empty, 0, None).unwrap(), b"");
        for bad in [[&packed[..], &[0]].concat(), [&packed[..], &empty].concat(), [&skippable[..], &packed].concat()] {
            assert!(decompress(&bad, text.len(), None).is_err(), "more than one frame");
        }
        assert!(decompress(&skippable, 0, None).is_err() && decompress(b"", 0, None).is_err());
        let mut new = old.clone();
        new[1000] ^= 1;
        let delta = compress_delta(&new, &old, 3).unwrap();
        assert!(delta.len() < 4000, "{}", delta.len());
        assert_eq!(decompress(&delta, new.len(), Some(&old)).unwrap(), new);
        assert!(decompress(&delta, new.len(), None).is_err());
    }
}
