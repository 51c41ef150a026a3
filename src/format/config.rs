//! The repository's parameters: readable without a key, authenticated once one is known.
//!
//! ```text
//! header (48; first length = that of the CBOR) | CBOR | keyed hash of all before (32)
//! ```

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::header::{HEADER_BYTES, Header, Kind};
use super::{MAX_CONFIG_BYTES, VERSION, cbor};
use crate::chunker::ChunkerParams;
use crate::crypto::{self, Keys};
use crate::error::{Error, Result};
use crate::id::hex;

/// What every client must know before it touches the repository.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Config {
    /// 16 random bytes.
    #[n(0)]
    pub repository: ByteVec,
    /// Oldest format version a reader must know.
    #[n(1)]
    pub min_reader: u32,
    /// Oldest format version a writer must know.
    #[n(2)]
    pub min_writer: u32,
    /// Names of features in use; an unknown one is refused.
    #[n(3)]
    pub features: Vec<String>,
    /// How files are cut.
    #[n(4)]
    pub chunker: ChunkerParams,
}

impl Config {
    /// Parameters of a new repository.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn fresh() -> Result<Self> {
        Ok(Self {
            repository: crypto::random::<16>()?.to_vec().into(),
            min_reader: VERSION.into(),
            min_writer: VERSION.into(),
            features: Vec::new(),
            chunker: ChunkerParams::default(),
        })
    }

    /// The repository's id in hex.
    pub fn id(&self) -> String {
        hex(&self.repository)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn to_bytes(&self, keys: &Keys) -> Result<Vec<u8>> {
        let body = cbor::encode(self);
        let mut out = Header::fresh(Kind::Config, body.len() as u32)?.to_bytes().to_vec();
        out.extend_from_slice(&body);
        let mac = keys.config_mac(&out);
        out.extend_from_slice(&mac);
        Ok(out)
    }

    /// Reads a config; `what` names the file in errors. Not yet authenticated: see [`Config::is_authentic`].
    ///
    /// # Errors
    /// [`Error::Corrupt`], or [`Error::Unsupported`] if this program is too old for the repository.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let header = Header::parse(bytes, Kind::Config, what)?;
        let rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
        if bytes.len() > MAX_CONFIG_BYTES || rest.len() != header.first_bytes as usize + 32 {
            return Err(Error::corrupt(what, "its length is not the stated one"));
        }
        let config: Self =
            cbor::decode(&rest[..header.first_bytes as usize]).map_err(|why| Error::corrupt(what, why))?;
        let unsupported = |why: String| Error::Unsupported { what: "this repository".into(), why };
        if config.min_reader > VERSION.into() || config.min_writer > VERSION.into() {
            return Err(unsupported(format!(
                "it asks for format version {}",
                config.min_reader.max(config.min_writer)
            )));
        }
        if let Some(feature) = config.features.first() {
            return Err(unsupported(format!("it uses the feature \"{feature}\"")));
        }
        if config.repository.len() != 16 || !config.chunker.is_sane() {
            return Err(Error::corrupt(what, "its parameters make no sense"));
        }
        Ok(config)
    }

    /// Whether the bytes of a config were written by a holder of the keys.
    pub fn is_authentic(keys: &Keys, bytes: &[u8]) -> bool {
        bytes.split_last_chunk::<32>().is_some_and(|(text, mac)| {
            blake3::Hash::from_bytes(keys.config_mac(text)) == blake3::Hash::from_bytes(*mac)
        })
    }
}
