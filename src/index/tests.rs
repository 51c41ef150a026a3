//! Tests of the index in memory.

use super::*;
use crate::crypto::{Keys, Secret};
use crate::format::pack::{Encoding, Entry, Frame, PackBuilder};

fn pack(ids: &[u8]) -> PackInfo {
    let mut builder = PackBuilder::new(Kind::DataPack);
    for id in ids {
        let entries = vec![Entry { id: BlobId([*id; 32]), kind: BlobType::Chunk, plain_bytes: 1 }];
        builder.push(Frame { encoding: Encoding::Raw, plain_bytes: 1, entries, bases: vec![], body: vec![0] });
    }
    builder.seal(&Keys::derive(&Secret([0; 32]))).unwrap().info
}

#[test]
fn condemned_places_give_way() {
    let (a, b) = (pack(&[1, 2]), pack(&[2, 3]));
    let mut index = BlobIndex::default();
    index.add_pack(&a);
    index.condemn([a.id]);
    assert!(!index.is_usable(&BlobId([2; 32])));
    index.add_pack(&b);
    assert!(index.is_usable(&BlobId([2; 32])) && !index.is_usable(&BlobId([1; 32])));
    assert_eq!(index.places(&BlobId([2; 32])).count(), 2);
    assert_eq!((index.len(), index.iter().count()), (3, 4));
    let kept = index.extract(|p| p.id == b.id);
    assert_eq!((kept.packs.len(), kept.records.len()), (1, 2));

    let mut index = BlobIndex::default();
    index.add_pack(&a);
    index.add_pack(&b);
    index.condemn([a.id]);
    assert!(index.is_usable(&BlobId([2; 32])), "condemning later changes the preference too");
}

#[test]
fn strays_are_found_and_not_relied_on() {
    let (a, b) = (pack(&[1, 2]), pack(&[2, 3]));
    let mut index = BlobIndex::default();
    index.add_stray(&a);
    assert!(index.find(&BlobId([1; 32])).is_some() && !index.is_usable(&BlobId([1; 32])));
    index.add_pack(&b);
    assert!(index.is_usable(&BlobId([2; 32])), "it lies in a pack that is described, too");
    index.add_stray(&b);
    assert!(index.is_usable(&BlobId([3; 32])), "a pack that is known stays what it is");
}
