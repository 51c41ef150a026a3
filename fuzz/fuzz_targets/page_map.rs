//! Page maps: root, inner node, leaf.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::MAX_PATCH_DEPTH;
use snapshot::format::cbor;
use snapshot::format::pagemap::{FAN_OUT, Inner, LEAF_PAGES, Root, StoredLeaf};
use snapshot::id::BlobId;

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((way, data)) if way % 3 == 0 => root(data),
        Some((way, data)) if way % 3 == 1 => inner(data),
        Some((_, data)) => leaf(data),
        None => {}
    }
});

fn root(data: &[u8]) {
    let Ok(root) = Root::decode(data) else { return };
    assert_eq!(cbor::encode(&root), data);
    let last = root.leaves() - 1;
    assert!((1..=LEAF_PAGES).contains(&root.leaf_pages(last)));
    assert_eq!(root.leaf_pages(last + 1), 0);
}

fn inner(data: &[u8]) {
    let Ok(children) = Inner::decode(data) else { return };
    assert!((1..=FAN_OUT).contains(&children.len()));
    assert_eq!(cbor::encode(&Inner::new(&children)), data);
}

fn leaf(data: &[u8]) {
    let Ok((leaf, changes)) = StoredLeaf::decode(data) else { return };
    assert_eq!(cbor::encode(&leaf), data);
    assert!(changes.iter().all(|(page, _)| u32::from(*page) < leaf.pages));
    assert!(changes.windows(2).all(|pair| pair[0].0 < pair[1].0));
    if leaf.depth as usize >= MAX_PATCH_DEPTH {
        return;
    }
    // What was read can be patched, and the patch can be read.
    let patch = StoredLeaf::patch(BlobId([5; 32]), &leaf, leaf.pages as usize, &changes);
    let (again, same) = StoredLeaf::decode(&cbor::encode(&patch)).expect("it can be read");
    assert_eq!((again, same), (patch, changes));
}
