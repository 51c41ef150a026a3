//! Snapshots, marks, records of condemned packs, and sessions: as they come from a store and behind the encryption.

#![no_main]

use libfuzzer_sys::fuzz_target;
use minicbor::{Decode, Encode};
use snapshot::format::cbor;
use snapshot::format::control::{self, Condemned, Session};
use snapshot::format::header::Kind;
use snapshot::format::mark::Mark;
use snapshot::format::snapshot::Snapshot;
use snapshot_fuzz::{keys, sealed};

fuzz_target!(|data: &[u8]| {
    let Some((way, data)) = data.split_first() else { return };
    match way % 6 {
        0 => {
            let _ = Snapshot::open(keys(), data, "snapshot");
        }
        1 => open::<Snapshot>(Kind::Snapshot, data),
        2 => open::<Condemned>(Kind::Gc, data),
        3 => open::<Session>(Kind::Session, data),
        4 => open::<Mark>(Kind::Mark, data),
        _ => {
            let _ = Mark::open(keys(), data, "mark");
        }
    }
});

fn open<T: for<'b> Decode<'b, ()> + Encode<()>>(kind: Kind, plain: &[u8]) {
    let file = sealed(kind, &keys().control, &[plain]);
    if let Ok(value) = control::open::<T>(keys(), kind, &file, "object") {
        assert_eq!(cbor::encode(&value), plain, "there is one encoding of it");
    }
}
