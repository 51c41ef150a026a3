//! Key slots: the master key, sealed under a password, a key file or a recovery code.
//!
//! ```text
//! header (48; its salt is that of the derivation, its first length 0) | CBOR to the end of the file
//! ```

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::cbor::{self, Time};
use super::header::{HEADER_BYTES, Header, Kind};
use super::{MAX_SLOT_BYTES, VERSION};
use crate::crypto::{KdfCost, Secret, Wrapping};
use crate::error::{Error, Result};

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum SlotKind {
    /// A password, by Argon2id.
    #[n(0)]
    Password,
    /// A key file: 256 random bits.
    #[n(1)]
    KeyFile,
    /// A printed code: 160 random bits.
    #[n(2)]
    RecoveryCode,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Body {
    #[n(0)]
    kind: SlotKind,
    #[n(1)]
    cost: Option<KdfCost>,
    #[n(2)]
    commitment: ByteVec,
    #[n(3)]
    wrapped: ByteVec,
    #[n(4)]
    created: Time,
    #[n(5)]
    label: String,
}

/// A key slot as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    header: Header,
    body: Body,
}

/// A secret that may open a slot.
#[derive(Clone)]
pub enum Unlock {
    /// A password as typed. It may be a recovery code, too.
    Password(Vec<u8>),
    /// The bytes of a key file.
    KeyFile(Vec<u8>),
    /// The bytes of a recovery code.
    RecoveryCode(Vec<u8>),
}

impl Unlock {
    /// Which slots it may open.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::Password(_) => SlotKind::Password,
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::RecoveryCode(_) => SlotKind::RecoveryCode,
        }
    }

    fn wrapping(&self, salt: &[u8; 32], cost: Option<KdfCost>) -> Result<Wrapping> {
        match self {
            Self::Password(p) => Wrapping::from_password(p, salt, cost.unwrap_or_default()),
            Self::KeyFile(s) | Self::RecoveryCode(s) => Ok(Wrapping::from_random(s, salt)),
        }
    }
}

impl Slot {
    /// Seals the master key under a secret. `cost` counts for passwords only.
    ///
    /// # Errors
    /// When there is no randomness, or the cost is out of bounds.
    pub fn make(master: &Secret, unlock: &Unlock, cost: KdfCost, label: &str, created: Time) -> Result<Self> {
        let header = Header::fresh(Kind::Slot, 0)?;
        let cost = (unlock.kind() == SlotKind::Password).then_some(cost);
        let wrapping = unlock.wrapping(&header.salt, cost)?;
        let wrapped = wrapping.wrap(master, &header.to_bytes())?.into();
        let commitment = wrapping.commitment.to_vec().into();
        Ok(Self { header, body: Body { kind: unlock.kind(), cost, commitment, wrapped, created, label: label.into() } })
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.header.to_bytes()[..], &cbor::encode(&self.body)].concat()
    }

    /// Reads a slot; `what` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for anything that can't be a slot, costs out of bounds included.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        if bytes.len() > MAX_SLOT_BYTES {
            return Err(Error::corrupt(what, "it is larger than a key slot may be"));
        }
        let header = Header::parse(bytes, Kind::Slot, what)?;
        let body: Body = cbor::decode(&bytes[HEADER_BYTES..]).map_err(|why| Error::corrupt(what, why))?;
        let fits = body.commitment.len() == 32
            && body.cost.is_some() == (body.kind == SlotKind::Password)
            && body.cost.is_none_or(|c| c.is_acceptable());
        if !fits {
            return Err(Error::corrupt(what, format!("its parameters are out of bounds (format version {VERSION})")));
        }
        Ok(Self { header, body })
    }

    /// Opens the slot; `None` if the secret is another.
    ///
    /// # Errors
    /// When the password can't be hashed.
    pub fn open(&self, unlock: &Unlock) -> Result<Option<Secret>> {
        if unlock.kind() != self.body.kind {
            return Ok(None);
        }
        let wrapping = unlock.wrapping(&self.header.salt, self.body.cost)?;
        if blake3::Hash::from_bytes(wrapping.commitment)
            != blake3::Hash::from_slice(&self.body.commitment).unwrap_or(blake3::Hash::from_bytes([0; 32]))
        {
            return Ok(None);
        }
        Ok(wrapping.unwrap(&self.body.wrapped, &self.header.to_bytes()))
    }

    /// What opens it.
    pub fn kind(&self) -> SlotKind {
        self.body.kind
    }

    /// Cost of hashing the password, if it is one.
    pub fn cost(&self) -> Option<KdfCost> {
        self.body.cost
    }

    /// When it was made.
    pub fn created(&self) -> Time {
        self.body.created
    }

    /// The user's name for it.
    pub fn label(&self) -> &str {
        &self.body.label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_open_with_their_secret_only() {
        let master = Secret([3; 32]);
        let cost = KdfCost { memory_kib: 19 * 1024, passes: 1, lanes: 1 };
        for (right, wrong) in [
            (Unlock::Password(b"a".to_vec()), Unlock::Password(b"b".to_vec())),
            (Unlock::KeyFile(vec![1; 32]), Unlock::KeyFile(vec![2; 32])),
            (Unlock::RecoveryCode(vec![1; 20]), Unlock::KeyFile(vec![1; 20])),
        ] {
            let bytes = Slot::make(&master, &right, cost, "laptop", Time::default()).unwrap().to_bytes();
            let slot = Slot::parse(&bytes, "keys/x").unwrap();
            assert_eq!(slot.open(&right).unwrap().unwrap().0, master.0);
            assert!(slot.open(&wrong).unwrap().is_none());
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                let opened = Slot::parse(&bad, "keys/x").and_then(|s| s.open(&right));
                // The label and the date are not secret and bind nothing.
                assert!(!matches!(opened, Ok(Some(m)) if m.0 != master.0), "byte {at}");
            }
        }
    }
}
