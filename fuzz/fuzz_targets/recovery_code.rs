//! Recovery codes and object names as typed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::id::{BlobId, hex, unhex};
use snapshot::repo::decode_recovery_code;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Some(secret) = decode_recovery_code(&text) {
        assert_eq!(secret.len(), 20);
        assert_eq!(decode_recovery_code(&text.to_lowercase()), Some(secret));
    }
    if let Some(bytes) = unhex(&text) {
        assert_eq!(hex(&bytes), text.to_lowercase());
    }
    if let Some(id) = BlobId::parse(&text) {
        assert_eq!(id.to_string(), text.to_lowercase());
    }
});
