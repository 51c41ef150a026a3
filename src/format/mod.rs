//! Bytes ↔ values of every stored object, without I/O. Normative description: `repo-format.md`.
//!
//! May depend on `id`, `error`, `crypto`. Everything read here may come from a hostile store: lengths are checked
//! against the limits below before anything is allocated, and CBOR must be the one deterministic encoding.

mod bytes;
pub mod cbor;
pub mod config;
pub mod control;
pub mod dump;
pub mod facts;
pub mod header;
pub mod index;
pub mod keyslot;
pub mod mark;
pub mod pack;
pub mod pagemap;
pub mod rows;
pub mod segment;
mod slots;
pub mod snapshot;
pub mod tree;
pub mod zstd;

/// Version of the format written here.
pub const VERSION: u8 = 1;
/// Largest config file, in bytes.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// Largest key slot file, in bytes.
pub const MAX_SLOT_BYTES: usize = 64 << 10;
/// Most key slots that are tried.
pub const MAX_SLOTS: usize = 32;
/// Largest snapshot, mark, session or record of condemned packs, in bytes.
pub const MAX_CONTROL_BYTES: usize = 16 << 20;
/// Largest pack file, in bytes.
pub const MAX_PACK_BYTES: u64 = 256 << 20;
/// Largest directory of a pack, in bytes.
pub const MAX_PACK_DIRECTORY_BYTES: usize = 16 << 20;
/// Largest index file, in bytes.
pub const MAX_INDEX_BYTES: u64 = 1 << 30;
/// Largest plaintext of a frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
/// Most nodes in one tree blob.
pub const MAX_TREE_NODES: usize = 65_536;
/// Deepest directory tree that is restored.
pub const MAX_TREE_DEPTH: usize = 4096;
/// Longest chain of patches of a page map's leaf.
pub const MAX_PATCH_DEPTH: usize = 64;
