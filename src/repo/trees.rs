//! Storing directories and lists of chunks, cut where the format's rules say.

use super::Writer;
use crate::crypto::BlobType;
use crate::error::Result;
use crate::format::cbor;
use crate::format::tree::{Content, Node, Tree, split};
use crate::id::BlobId;

/// Ids that stand in the node itself; more go to lists.
const INLINE_IDS: usize = 64;
/// A list is cut after an id whose first two bytes are below 32 of 65,536, that is about every 2,048 …
const LIST_CUT_BELOW: u16 = 32;
/// … and always at this many ids.
const LIST_MAX_IDS: usize = 8192;

impl Writer {
    /// Stores a directory with these nodes, sorted by name.
    ///
    /// # Errors
    /// When storing a pack failed.
    pub fn put_tree(&mut self, nodes: Vec<Node>) -> Result<BlobId> {
        let mut ids = Vec::new();
        for nodes in split(nodes) {
            ids.push(self.put(BlobType::Tree, &cbor::encode(&Tree { nodes, parts: None }))?);
        }
        match ids[..] {
            [only] => Ok(only),
            _ => self.put(BlobType::Tree, &cbor::encode(&Tree { nodes: Vec::new(), parts: Some(ids) })),
        }
    }

    /// The content of a file with these chunks; stores lists if they are many.
    ///
    /// # Errors
    /// When storing a pack failed.
    pub fn put_content(&mut self, mut ids: Vec<BlobId>) -> Result<Content> {
        let mut level = 0;
        while ids.len() > INLINE_IDS {
            let mut lists = Vec::new();
            let mut list = Vec::new();
            for id in ids {
                list.extend_from_slice(&id.0);
                let cut_here = u16::from_le_bytes([id.0[0], id.0[1]]) < LIST_CUT_BELOW;
                if cut_here || list.len() == LIST_MAX_IDS * 32 {
                    lists.push(self.put(BlobType::List, &std::mem::take(&mut list))?);
                }
            }
            if !list.is_empty() {
                lists.push(self.put(BlobType::List, &list)?);
            }
            ids = lists;
            level += 1;
        }
        Ok(Content::new(level, &ids))
    }
}
