//! Frames compressed with zstd: exactly the stated length comes out, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::MAX_FRAME_BYTES;
use snapshot::format::zstd::{compress, compress_delta, decompress};
use snapshot_fuzz::take;

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let Some([way, a, b, c]) = take(&mut data) else { return };
    let stated = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
    assert!(stated <= MAX_FRAME_BYTES);
    let middle = data.len().min(usize::from(*a));
    match way % 3 {
        0 => {
            if let Ok(plain) = decompress(data, stated, None) {
                assert_eq!(plain.len(), stated);
            }
        }
        1 => {
            let (prefix, stored) = data.split_at(middle);
            if let Ok(plain) = decompress(stored, stated, Some(prefix)) {
                assert_eq!(plain.len(), stated);
            }
        }
        _ => {
            if let Some(packed) = compress(data, 1) {
                assert_eq!(decompress(&packed, data.len(), None).as_deref(), Ok(data));
            }
            let (prefix, plain) = data.split_at(middle);
            if let Some(packed) = compress_delta(plain, prefix, 1) {
                assert_eq!(decompress(&packed, plain.len(), Some(prefix)).as_deref(), Ok(plain));
            }
        }
    }
});
