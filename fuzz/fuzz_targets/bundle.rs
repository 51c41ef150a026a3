//! Bundles of small objects, as they come from a store.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::backend::{Bundler, unbundle};

fuzz_target!(|data: &[u8]| {
    let objects: Vec<_> = unbundle(data).collect();
    let mut bundler = Bundler::default();
    for (path, _, bytes) in &objects {
        assert!(bundler.add(path, bytes), "what was in one fits into one");
    }
    let again = bundler.finish();
    assert!(unbundle(&again).eq(objects), "what goes in comes out");
});
