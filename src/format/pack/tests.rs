//! Tests of packs: their directories, where they are closed, what their seals bind.

use super::*;

fn base(n: u8) -> Base {
    Base { id: BlobId([n; 32]), slots: [1, n].into_iter().collect() }
}

fn frame(n: usize) -> Frame {
    let entry = Entry { id: BlobId([n as u8; 32]), kind: BlobType::Chunk, plain_bytes: n as u32 };
    Frame { encoding: Encoding::Raw, plain_bytes: n as u32, entries: vec![entry], bases: vec![], body: vec![7; n] }
}

#[test]
fn padme_lengths() {
    for (n, want) in [(0, 0), (1, 1), (9, 10), (1000, 1024), (1 << 24, 1 << 24), ((1 << 24) + 1, (1 << 24) + (1 << 19))]
    {
        assert_eq!(padme(n), want, "{n}");
    }
}

#[test]
fn a_directory_of_any_length_fits_its_place() {
    let keys = Keys::derive(&Secret([1; 32]));
    assert!(std::ptr::eq(class_key(&keys, Kind::DataPack), &keys.data));
    assert!(std::ptr::eq(class_key(&keys, Kind::MetadataPack), &keys.metadata));
    for (blobs, bases) in (1..40).flat_map(|n| [(n, 0), (1, n)]) {
        let mut builder = PackBuilder::new(Kind::DataPack);
        let one = frame(40);
        let kind = if bases > 0 { BlobType::Segment } else { BlobType::Chunk };
        let many = Frame {
            entries: vec![Entry { plain_bytes: 1, kind, ..one.entries[0] }; blobs],
            bases: vec![base(9); bases],
            encoding: if bases > 0 { Encoding::Segment } else { Encoding::Raw },
            plain_bytes: blobs as u32,
            ..frame(40)
        };
        builder.push(one);
        builder.push(many);
        let mut directory = vec![];
        put_directory(&mut directory, &builder.frames.iter().map(Frame::info).collect::<Vec<_>>());
        assert_eq!((builder.directory_bytes, builder.body_bytes), (directory.len(), 2 * (40 + TAG_BYTES)));
        let unpadded = builder.unpadded_bytes();
        let sealed = builder.seal(&keys).unwrap();
        assert_eq!(sealed.bytes.len() as u64, padme(unpadded as u64));
        let start = prefix_bytes(&sealed.bytes, Kind::DataPack, "x").unwrap();
        let bytes = &sealed.bytes[..start];
        let id = sealed.info.id;
        let opened = open_directory(&keys, id, Kind::DataPack, sealed.info.file_bytes, bytes).unwrap();
        assert_eq!(opened, sealed.info);
    }
}

#[test]
fn a_frame_is_bound_to_header_encoding_and_length() {
    let header = Header::fresh(Kind::DataPack, 600).unwrap();
    let aad = frame_aad(&header, Encoding::Zstd, 0x0403_0201);
    assert_eq!(aad[..HEADER_BYTES], header.to_bytes());
    assert_eq!(aad[HEADER_BYTES..], [1, 1, 2, 3, 4]);
}

#[test]
fn a_pack_is_closed_where_it_is_padded_least() {
    const STEP: usize = 256 << 10;
    let mut builder = PackBuilder::new(Kind::DataPack);
    assert!(builder.is_empty());
    let push = |builder: &mut PackBuilder, bytes: usize| {
        assert!(!builder.is_full());
        builder.push(frame(bytes));
        padme(builder.unpadded_bytes() as u64) as usize - builder.unpadded_bytes()
    };
    (0..8).for_each(|_| assert!(push(&mut builder, 1 << 20) < STEP));
    assert!(!builder.is_empty() && !builder.is_better_split());
    // Little enough padding closes it at once.
    let mut good = PackBuilder::new(Kind::DataPack);
    (0..8).for_each(|_| assert!(push(&mut good, 1 << 20) < STEP));
    assert!(push(&mut good, STEP - 10_000) < 10_000 && good.is_full());
    assert_eq!((good.take_full().frames.len(), good.is_empty()), (9, true));
    // Else it grows to its limit, and what lies past the best place is for the next one.
    let best = push(&mut builder, STEP - 50_000);
    assert!((40_000..50_000).contains(&best));
    assert!(push(&mut builder, 100_000) > best && builder.is_better_split());
    (0..4).for_each(|_| assert!(push(&mut builder, 1 << 20) > best));
    assert!(builder.is_full() && builder.unpadded_bytes() < 13 << 20);
    let taken = builder.take_full();
    assert_eq!((taken.frames.len(), builder.frames.len()), (9, 5));
    assert!(!taken.is_better_split() && !builder.is_full() && !builder.is_better_split());
    assert_eq!(builder.body_bytes, 100_000 + (4 << 20) + 5 * TAG_BYTES);
}

#[test]
fn frames_that_no_index_could_hold_are_refused() {
    let read = |info: &FrameInfo| reread(info, Kind::DataPack);
    let sound = frame(300).info();
    assert_eq!(read(&sound), Some(sound.clone()));
    assert_eq!(read(&FrameInfo { stored_bytes: TAG_BYTES as u32 - 1, ..sound.clone() }), None);
    let entry = |plain_bytes| Entry { plain_bytes, ..sound.entries[0] };
    let full = MAX_FRAME_BYTES as u32;
    let whole = FrameInfo { plain_bytes: full, entries: vec![entry(full)], ..sound.clone() };
    assert!(read(&whole).is_some());
    assert_eq!(read(&FrameInfo { entries: vec![entry(full), entry(0)], ..whole }), None);
}

fn reread(info: &FrameInfo, pack: Kind) -> Option<FrameInfo> {
    let mut bytes = vec![];
    put_frame(&mut bytes, info);
    take_frame(&mut Reader(&bytes), pack)
}

#[test]
fn frames_that_hold_what_they_must_not_are_refused() {
    let sound = frame(300).info();
    let of = |kind| FrameInfo { entries: vec![Entry { kind, ..sound.entries[0] }], ..sound.clone() };
    let segment = FrameInfo { encoding: Encoding::Segment, ..of(BlobType::Segment) };
    for (info, data, metadata) in [
        (of(BlobType::Chunk), true, false),
        (of(BlobType::Tree), false, true),
        (of(BlobType::List), false, true),
        (of(BlobType::Map), false, true),
        (segment.clone(), true, false),
        (of(BlobType::Segment), false, false),
        (FrameInfo { encoding: Encoding::Segment, ..sound.clone() }, false, false),
        (FrameInfo { bases: vec![base(3)], ..sound.clone() }, false, false),
        (FrameInfo { bases: vec![base(3)], ..segment.clone() }, true, false),
        (FrameInfo { plain_bytes: 299, ..segment }, false, false),
    ] {
        assert_eq!(reread(&info, Kind::DataPack).is_some(), data, "{info:?} in a data pack");
        assert_eq!(reread(&info, Kind::MetadataPack).is_some(), metadata, "{info:?} in a metadata pack");
    }
}

#[test]
fn directory_round_trip_and_flips() {
    let keys = Keys::derive(&Secret([1; 32]));
    let mut builder = PackBuilder::new(Kind::DataPack);
    builder.push(frame(10));
    builder.push(frame(300));
    let sealed = builder.seal(&keys).unwrap();
    assert_eq!(sealed.bytes.len() as u64, sealed.info.file_bytes);
    let open = |bytes: &[u8]| open_directory(&keys, sealed.info.id, Kind::DataPack, bytes.len() as u64, bytes);
    assert_eq!(open(&sealed.bytes).unwrap(), sealed.info);
    let end = HEADER_BYTES + sealed.info.header.first_bytes as usize;
    for at in 0..end {
        let mut bad = sealed.bytes.clone();
        bad[at] ^= 1;
        assert!(open(&bad).is_err(), "byte {at}");
    }
    assert!(open(&sealed.bytes[..end - 1]).is_err());
    assert!(open(&sealed.bytes[..end + 20]).is_err(), "frames past the end of the file");
}
