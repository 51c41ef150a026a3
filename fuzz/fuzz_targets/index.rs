//! Index files, as they come from a store and behind the encryption.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::crypto::TAG_BYTES;
use snapshot::format::header::Kind;
use snapshot::format::index::Index;
use snapshot_fuzz::{keys, pieces, sealed, take};

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let Some([way]) = take(&mut data) else { return };
    let file = match way % 3 {
        0 => data.to_vec(),
        // The table is the first piece, the blocks are the others.
        1 => sealed(Kind::Index, &keys().index, &pieces(data)),
        // A table that fits the blocks: so many of the pieces describe packs, the others are records.
        _ => {
            let Some([pack_blocks]) = take(&mut data) else { return };
            let mut blocks = pieces(data);
            let table = table(&blocks, usize::from(*pack_blocks).min(blocks.len()));
            blocks.insert(0, &table);
            sealed(Kind::Index, &keys().index, &blocks)
        }
    };
    let Ok(index) = Index::open(keys(), &file, "index") else { return };
    for record in &index.records {
        assert!(index.packs[record.pack as usize].frames.len() > record.frame as usize);
    }
    let (_, again) = index.clone().seal(keys()).expect("it can be sealed");
    assert_eq!(Index::open(keys(), &again, "index").expect("it can be read"), index);
});

fn table(blocks: &[&[u8]], pack_blocks: usize) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&(pack_blocks as u32).to_le_bytes());
    out.extend_from_slice(&((blocks.len() - pack_blocks) as u32).to_le_bytes());
    for (i, block) in blocks.iter().enumerate() {
        out.extend_from_slice(&((block.len() + TAG_BYTES) as u32).to_le_bytes());
        if i >= pack_blocks {
            let mut first = block.to_vec();
            first.resize(32, 0);
            out.extend_from_slice(&first);
        }
    }
    out
}
