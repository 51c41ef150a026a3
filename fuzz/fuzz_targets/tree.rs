//! Trees, and the lists of chunks of large files.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::cbor;
use snapshot::format::tree::{Tree, join_ids, split, split_ids};

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((way, data)) if way % 2 == 0 => tree(data),
        Some((_, data)) => content_list(data),
        None => {}
    }
});

fn tree(data: &[u8]) {
    let Ok(tree) = Tree::decode(data) else { return };
    assert_eq!(cbor::encode(&tree), data, "there is one encoding of a tree");
    for node in &tree.nodes {
        let name = &*node.name;
        assert!(!name.contains(&b'/') && !name.contains(&0) && !name.is_empty() && name != b"." && name != b"..");
        assert!(node.content.as_ref().is_none_or(|content| content.ids().is_some()));
        let _ = node.display_name();
    }
    let parts = split(tree.nodes.clone());
    assert_eq!(parts.concat(), tree.nodes);
}

fn content_list(data: &[u8]) {
    match split_ids(data) {
        Some(ids) => assert_eq!(*join_ids(&ids), *data),
        None => assert!(data.len() % 32 != 0),
    }
}
