//! Directories of packs, as they come from a store and behind the encryption.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::header::Kind;
use snapshot::format::index::Index;
use snapshot::format::pack::{class_key, open_directory, padme, prefix_bytes};
use snapshot::id::PackId;
use snapshot_fuzz::{keys, sealed, take};

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let Some([way]) = take(&mut data) else { return };
    let kind = if way & 2 == 0 { Kind::DataPack } else { Kind::MetadataPack };
    let id = PackId([0; 32]);
    if way & 1 == 0 {
        let _ = prefix_bytes(data, kind, "pack");
        let _ = open_directory(keys(), id, kind, data.len() as u64, data);
        return;
    }
    let Some(file_bytes) = take::<4>(&mut data) else { return };
    let file_bytes = u32::from_le_bytes(*file_bytes).into();
    let start = sealed(kind, class_key(keys(), kind), &[data]);
    let Ok(info) = open_directory(keys(), id, kind, file_bytes, &start) else { return };
    for (offset, frame) in info.frame_offsets().zip(&info.frames) {
        assert!(offset + u64::from(frame.stored_bytes) <= info.file_bytes);
    }
    assert!(padme(file_bytes) >= file_bytes);
    // A repair makes an index of what it found in packs: it must be one that can be read.
    let mut index = Index::default();
    index.add(&info);
    let (_, bytes) = index.clone().seal(keys()).expect("it can be sealed");
    index.records.sort_unstable();
    assert_eq!(Index::open(keys(), &bytes, "index").expect("it can be read"), index);
});
