//! The repository's parameters: read before any key is known.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::chunker::Chunker;
use snapshot::format::config::Config;
use snapshot::format::header::Kind;
use snapshot_fuzz::{enveloped, header, keys};

fuzz_target!(|data: &[u8]| {
    let Some((way, data)) = data.split_first() else { return };
    let file = if way % 2 == 0 {
        data.to_vec()
    } else {
        // CBOR in a sound envelope.
        let text = [&header(Kind::Config, data.len()).to_bytes()[..], data].concat();
        let mac = keys().config_mac(&text);
        let mut file = enveloped(Kind::Config, data);
        file.extend_from_slice(&mac);
        assert!(Config::is_authentic(keys(), &file));
        file
    };
    let _ = Config::is_authentic(keys(), &file);
    if let Ok(config) = Config::parse(&file, "config") {
        // Whatever is accepted can be used.
        let chunker = Chunker::new(&config.chunker, &keys().chunker.0);
        assert!(chunker.min_bytes() < chunker.max_bytes());
        assert_eq!(config.id().len(), 32);
    }
});
