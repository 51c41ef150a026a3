//! Keys, authenticated encryption and password hashing.
//!
//! The only user of the cryptographic crates. May depend on `id` and `error` only; it knows nothing of object
//! layouts beyond the header bytes it binds. Derivations are normative in `repo-format.md`, "Keys".

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, Result};
use crate::id::{BlobId, PageHash};

/// Bytes that sealing adds to a message (the Poly1305 tag).
pub const TAG_BYTES: usize = 16;

/// Fills an array with random bytes of the operating system.
///
/// # Errors
/// [`Error::Refused`] when the system has no randomness to give, which no supported Linux does.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(|e| {
        Error::refused(format!("the operating system gives no random bytes: {e}"), "check /dev/urandom")
    })?;
    Ok(out)
}

/// A 256-bit secret that is wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// 32 fresh random bytes.
    pub fn random() -> Result<Self> {
        random().map(Self)
    }

    fn derive(&self, context: &str) -> Self {
        Self(blake3::derive_key(context, &self.0))
    }
}

/// What a blob is; each type has its own id key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BlobType {
    /// A piece of a file.
    Chunk = 1,
    /// Pages of a database.
    Segment = 2,
    /// A part of a directory.
    Tree = 3,
    /// A list of chunk ids of a large file.
    List = 4,
    /// A root, inner node or leaf of a page map.
    Map = 5,
}

impl BlobType {
    /// Reads the stored number.
    pub fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Chunk,
            2 => Self::Segment,
            3 => Self::Tree,
            4 => Self::List,
            5 => Self::Map,
            _ => return None,
        })
    }

    /// Whether blobs of this type lie in data packs; the others lie in metadata packs.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Chunk | Self::Segment)
    }
}

/// All keys of a repository, derived from its master key.
pub struct Keys {
    ids: [[u8; 32]; 5],
    page: [u8; 32],
    /// Seals data packs.
    pub data: Secret,
    /// Seals metadata packs.
    pub metadata: Secret,
    /// Seals index files.
    pub index: Secret,
    /// Seals snapshots, records of condemned packs, and sessions.
    pub control: Secret,
    /// Seeds the chunker's gear table.
    pub chunker: Secret,
    config: Secret,
}

impl Keys {
    /// Derives every key from the master key.
    pub fn derive(master: &Secret) -> Self {
        let id = |name: &str| master.derive(&format!("snapshot 2026 v1 id {name}")).0;
        Self {
            ids: [id("chunk"), id("segment"), id("tree"), id("list"), id("map")],
            page: id("page"),
            data: master.derive("snapshot 2026 v1 seal data"),
            metadata: master.derive("snapshot 2026 v1 seal metadata"),
            index: master.derive("snapshot 2026 v1 seal index"),
            control: master.derive("snapshot 2026 v1 seal control"),
            chunker: master.derive("snapshot 2026 v1 chunker"),
            config: master.derive("snapshot 2026 v1 config"),
        }
    }

    /// The id of a blob: for segments `plaintext` is their list of page hashes (`format::segment`).
    pub fn blob_id(&self, kind: BlobType, plaintext: &[u8]) -> BlobId {
        BlobId(*blake3::keyed_hash(&self.ids[kind as usize - 1], plaintext).as_bytes())
    }

    /// The keyed hash of one database page.
    pub fn page_hash(&self, page: &[u8]) -> PageHash {
        let mut out = [0; 16];
        out.copy_from_slice(&blake3::keyed_hash(&self.page, page).as_bytes()[..16]);
        out
    }

    /// Authenticates the config's bytes.
    pub fn config_mac(&self, bytes: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.config.0, bytes).as_bytes()
    }
}

/// The key of one stored object: seals each message at its own position, once.
pub struct ObjectKey {
    aead: ChaCha20Poly1305,
    padding: Secret,
}

impl ObjectKey {
    /// Derives the key of the object with the given header, which carries 32 random bytes.
    pub fn derive(class: &Secret, header: &[u8]) -> Self {
        let derive = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            hasher.update(&class.0).update(header);
            *hasher.finalize().as_bytes()
        };
        let mut key = derive("snapshot 2026 v1 object");
        let aead = ChaCha20Poly1305::new(&Key::from(key));
        key.zeroize();
        Self { aead, padding: Secret(derive("snapshot 2026 v1 padding")) }
    }

    /// Seals `buf[from..]` in place and appends the tag.
    ///
    /// # Errors
    /// [`Error::Refused`] for a message of 256 GiB or more.
    pub fn seal(&self, position: u32, aad: &[u8], buf: &mut Vec<u8>, from: usize) -> Result<()> {
        let message = buf.get_mut(from..).unwrap_or_default();
        let tag = self
            .aead
            .encrypt_inout_detached(&nonce(position), aad, message.into())
            .map_err(|_| Error::refused("a message is too long to be sealed", "report this"))?;
        buf.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens a sealed message in place and cuts the tag off; `false` if it is not authentic.
    #[must_use]
    pub fn open(&self, position: u32, aad: &[u8], sealed: &mut Vec<u8>) -> bool {
        let Some(len) = self.open_in_place(position, aad, sealed).map(|message| message.len()) else { return false };
        sealed.truncate(len);
        true
    }

    /// Opens a sealed message where it lies; `None` if it is not authentic.
    #[must_use]
    pub fn open_in_place<'a>(&self, position: u32, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        let (message, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        let tag = Tag::try_from(&*tag).ok()?;
        self.aead.decrypt_inout_detached(&nonce(position), aad, (&mut *message).into(), &tag).ok()?;
        Some(message)
    }

    /// Appends `n` bytes that can't be told from sealed ones.
    pub fn pad(&self, buf: &mut Vec<u8>, n: usize) {
        let at = buf.len();
        buf.resize(at + n, 0);
        blake3::Hasher::new_keyed(&self.padding.0).finalize_xof().fill(&mut buf[at..]);
    }
}

fn nonce(position: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&position.to_le_bytes());
    Nonce::from(bytes)
}

/// Cost of Argon2id: RFC 9106's second recommended profile by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct KdfCost {
    /// Memory in KiB.
    #[n(0)]
    pub memory_kib: u32,
    /// Passes.
    #[n(1)]
    pub passes: u32,
    /// Lanes.
    #[n(2)]
    pub lanes: u32,
}

impl Default for KdfCost {
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 }
    }
}

impl KdfCost {
    /// What is accepted from a stored key slot, so that a hostile store can't exhaust the machine: 19 MiB to
    /// 4 GiB, up to 64 passes and 16 lanes.
    pub fn is_acceptable(&self) -> bool {
        (19 * 1024..=4 * 1024 * 1024).contains(&self.memory_kib)
            && (1..=64).contains(&self.passes)
            && (1..=16).contains(&self.lanes)
    }
}

/// What wraps a master key in a slot: a key-encryption key and a commitment to it. ChaCha20-Poly1305 does not
/// commit to its key, so the commitment is compared before anything is decrypted.
pub struct Wrapping {
    kek: Secret,
    /// Stored in the slot.
    pub commitment: [u8; 32],
}

impl Wrapping {
    /// From a password, by Argon2id.
    ///
    /// # Errors
    /// [`Error::Refused`] for a cost outside [`KdfCost::is_acceptable`].
    pub fn from_password(password: &[u8], salt: &[u8; 32], cost: KdfCost) -> Result<Self> {
        let refuse =
            |why: String| Error::refused(why, "memory may be 19 MiB to 4 GiB, passes up to 64, lanes up to 16");
        if !cost.is_acceptable() {
            return Err(refuse("the cost of the password hash is out of bounds".into()));
        }
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
            .map_err(|e| refuse(format!("the cost of the password hash is refused: {e}")))?;
        let mut root = Secret([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password, salt, &mut root.0)
            .map_err(|e| refuse(format!("the password can't be hashed: {e}")))?;
        Ok(Self::from_root(&root, salt))
    }

    /// From a secret with at least 160 bits of randomness: a key file or recovery code. No stretching needed.
    pub fn from_random(secret: &[u8], salt: &[u8; 32]) -> Self {
        Self::from_root(&Secret(blake3::derive_key("snapshot 2026 v1 slot secret", secret)), salt)
    }

    fn from_root(root: &Secret, salt: &[u8; 32]) -> Self {
        let derive =
            |context| *blake3::Hasher::new_derive_key(context).update(&root.0).update(salt).finalize().as_bytes();
        Self {
            kek: Secret(derive("snapshot 2026 v1 slot key")),
            commitment: derive("snapshot 2026 v1 slot commitment"),
        }
    }

    /// Seals the master key. A slot's salt is fresh, so the key-encryption key is used once.
    ///
    /// # Errors
    /// As [`ObjectKey::seal`].
    pub fn wrap(&self, master: &Secret, aad: &[u8]) -> Result<Vec<u8>> {
        let mut out = master.0.to_vec();
        ObjectKey::derive(&self.kek, &[]).seal(0, aad, &mut out, 0)?;
        Ok(out)
    }

    /// Opens a wrapped master key; `None` if it is not authentic.
    pub fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Option<Secret> {
        let mut buf = wrapped.to_vec();
        if !ObjectKey::derive(&self.kek, &[]).open(0, aad, &mut buf) {
            return None;
        }
        let master = buf.as_slice().try_into().ok().map(Secret);
        buf.zeroize();
        master
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_messages_open_only_where_they_were_sealed() {
        let class = Secret([7; 32]);
        let key = ObjectKey::derive(&class, b"header");
        let mut sealed = b"message".to_vec();
        key.seal(3, b"aad", &mut sealed, 0).unwrap();
        assert_eq!(sealed.len(), 7 + TAG_BYTES);
        assert!(!key.open(4, b"aad", &mut sealed.clone()));
        assert!(!key.open(3, b"bad", &mut sealed.clone()));
        assert!(!ObjectKey::derive(&class, b"other").open(3, b"aad", &mut sealed.clone()));
        assert!(!key.open(3, b"aad", &mut sealed[..10].to_vec()));
        assert!(key.open(3, b"aad", &mut sealed));
        assert_eq!(sealed, b"message");
    }

    #[test]
    fn wrapping_needs_the_same_secret() {
        let master = Secret([9; 32]);
        let salt = [1; 32];
        let cost = KdfCost { memory_kib: 19 * 1024, passes: 1, lanes: 1 };
        let right = Wrapping::from_password(b"right", &salt, cost).unwrap();
        let wrapped = right.wrap(&master, b"slot").unwrap();
        assert_eq!(right.unwrap(&wrapped, b"slot").unwrap().0, master.0);
        assert!(right.unwrap(&wrapped, b"else").is_none());
        let wrong = Wrapping::from_password(b"wrong", &salt, cost).unwrap();
        assert_ne!(wrong.commitment, right.commitment);
        assert!(wrong.unwrap(&wrapped, b"slot").is_none());
        let greedy = KdfCost { memory_kib: u32::MAX, passes: 1, lanes: 1 };
        assert!(Wrapping::from_password(b"right", &salt, greedy).is_err());
    }
}
