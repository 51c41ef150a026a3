//! Database segments.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::segment::{self, Encoded, Segment, pages_per_segment, segment_id};
use snapshot::id::BlobId;
use snapshot_fuzz::{keys, take};

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((way, data)) if way % 3 == 0 => read(data, &[]),
        // A delta: what comes after its stated length is the older pages.
        Some((way, data)) if way % 3 == 1 => {
            let mut data = data;
            let Some(length) = take::<2>(&mut data) else { return };
            let (body, base) = data.split_at(data.len().min(u16::from_le_bytes(*length).into()));
            read(body, base);
        }
        Some((_, data)) => round_trip(data),
        None => {}
    }
});

fn read(body: &[u8], base: &[u8]) {
    let Ok(encoded) = Encoded::parse(body) else { return };
    assert!(encoded.present() <= pages_per_segment(encoded.page_bytes as usize));
    assert!(encoded.bases.len() <= encoded.present());
    assert!(encoded.decode(keys(), BlobId([0; 32]), base).is_err(), "the id is of no segment");
}

/// Pages of the input, some of them dropped: what is written is read.
fn round_trip(mut data: &[u8]) {
    let Some([size, mask]) = take(&mut data) else { return };
    let page_bytes = 512usize << (size % 3);
    let slots = (data.len() / page_bytes).min(pages_per_segment(page_bytes));
    if slots == 0 {
        return;
    }
    let plain = &data[..slots * page_bytes];
    let hashes: Vec<_> = plain.chunks(page_bytes).map(|page| keys().page_hash(page)).collect();
    let id = segment_id(keys(), page_bytes as u32, &hashes);

    let full = segment::encode(page_bytes as u32, plain, slots, 1);
    let decoded = Encoded::parse(&full).expect("it was written").decode(keys(), id, &[]).expect("it was written");
    assert_eq!(decoded.pages(0, slots), Some(plain));
    assert_eq!(decoded.page(slots), None);

    let keep = |i: usize| mask >> (i % 8) & 1 == 1;
    let kept = plain.chunks(page_bytes).enumerate().map(|(i, page)| keep(i).then(|| page.to_vec())).collect();
    let partial = segment::encode_partial(&Segment { page_bytes: page_bytes as u32, pages: kept }, &hashes, 1);
    let decoded = Encoded::parse(&partial).expect("it was written").decode(keys(), id, &[]).expect("it was written");
    for (i, page) in plain.chunks(page_bytes).enumerate() {
        assert_eq!(decoded.page_with(i, &hashes[i]), keep(i).then_some(page));
    }
}
