//! Objects in a bucket of S3, or of one of the many services that speak its protocol, through OpenDAL.
//!
//! An object is put with one request that carries its MD5, so that the service refuses what did not arrive whole; it
//! is visible when that is done and not before. Safety never rests on conditional puts: some services take the
//! condition and ignore it.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use opendal::{Buffer, ErrorKind, HttpTransporter, OperationContext, Operator, options, services};

use super::Line;
use super::answers::of_opendal;
use super::failure::Failure;
use super::http::Transport;
use super::place::S3Place;
use crate::backend::Listed;
use crate::error::{Error, Result};
use crate::format::cbor::Time;

/// Requests at a time that fill most lines, even with parts of some hundred kilobytes.
pub(super) const CONCURRENCY: usize = 8;
/// Names that one request deletes at most.
const DELETE_NAMES: usize = 1000;
/// Where buckets are that no one says otherwise of.
const DEFAULT_REGION: &str = "us-east-1";

/// How the bucket stands in addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://host/bucket/object`
    Path,
    /// `https://bucket.host/object`
    Host,
}

/// The account.
#[derive(Clone)]
pub enum Credentials {
    /// Given in words.
    Keys {
        /// The access key's id.
        id: String,
        /// The secret.
        secret: String,
        /// What temporary ones have besides.
        token: Option<String>,
    },
    /// From the shared files, a profile of them, an identity provider, or the machine the program runs on.
    Found {
        /// A profile; `None`: the one that is named "default".
        profile: Option<String>,
    },
}

/// How a service is reached.
#[derive(Clone)]
pub struct Settings {
    /// Its address; `None`: Amazon's.
    pub endpoint: Option<String>,
    /// The bucket's region; `None`: the one that most services take.
    pub region: Option<String>,
    /// The account.
    pub credentials: Credentials,
    /// How the bucket stands in addresses; `None`: as it is usual for the service.
    pub addressing: Option<Addressing>,
    /// Certificates to trust instead of the system's, as PEM.
    pub authorities: Option<Vec<u8>>,
}

/// A bucket, and a prefix in it.
pub(super) struct S3 {
    op: Operator,
    /// The service's host and port.
    pub host: String,
}

impl S3 {
    pub fn new(place: &S3Place, settings: &Settings, line: Arc<Line>) -> Result<Self> {
        let region = settings.region.as_deref().unwrap_or(DEFAULT_REGION);
        let endpoint = place.endpoint.clone().or_else(|| settings.endpoint.clone());
        let endpoint = endpoint.unwrap_or_else(|| amazon(region));
        let refuse = |why: String| {
            Error::refused(format!("{place} can't be used: {why}"), "check the endpoint (AWS_ENDPOINT_URL)")
        };
        let uri: http::Uri = endpoint.parse().map_err(|e| refuse(format!("\"{endpoint}\" is no address: {e}")))?;
        let host = match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) => authority.to_string(),
            _ => return Err(refuse(format!("\"{endpoint}\" is no address like https://host"))),
        };
        let is_amazon = uri.host().is_some_and(|h| h.ends_with(".amazonaws.com") || h.ends_with(".amazonaws.com.cn"));
        // A dot in the bucket's name would not fit the certificate.
        let addressing = settings.addressing.unwrap_or(match is_amazon && !place.bucket.contains('.') {
            true => Addressing::Host,
            false => Addressing::Path,
        });
        let mut builder = services::S3::default()
            .root(&format!("/{}", place.prefix))
            .bucket(&place.bucket)
            .endpoint(&endpoint)
            .region(region)
            .checksum_algorithm("md5");
        if addressing == Addressing::Host {
            builder = builder.enable_virtual_host_style();
        }
        builder = match &settings.credentials {
            Credentials::Keys { id, secret, token } => {
                let builder = builder.disable_config_load().disable_ec2_metadata();
                // An empty token is none.
                let token = token.as_deref().unwrap_or_default();
                builder.access_key_id(id).secret_access_key(secret).session_token(token)
            }
            Credentials::Found { profile: Some(profile) } => builder.profile(profile),
            Credentials::Found { profile: None } => builder,
        };
        let transport = Transport::new(line, host.clone(), settings.authorities.as_deref())?;
        let context = OperationContext::new().with_http_transport(HttpTransporter::new(transport));
        let op = Operator::new(builder).map_err(|e| refuse(e.message().to_owned()))?.with_context(context);
        Ok(Self { op, host })
    }

    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        self.op.write(path, bytes).await.map(drop).map_err(|e| of_opendal(&e))
    }

    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool, Failure> {
        let options = options::WriteOptions { if_not_exists: true, ..Default::default() };
        match self.op.write_options(path, bytes, options).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::ConditionNotMatch => Ok(false),
            Err(e) => Err(of_opendal(&e)),
        }
    }

    /// `None` if it is longer.
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Failure> {
        let reader = self.op.reader(path).await.map_err(|e| of_opendal(&e))?;
        let mut stream = reader.into_stream(..).await.map_err(|e| of_opendal(&e))?;
        let mut out = Vec::new();
        while let Some(part) = stream.try_next().await.map_err(|e| of_opendal(&e))? {
            if (out.len() + part.len()) as u64 > max_bytes {
                return Ok(None);
            }
            append(&mut out, part);
        }
        Ok(Some(out))
    }

    /// `None` if the object ends before.
    pub async fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, Failure> {
        let reader = self.op.reader(path).await.map_err(|e| of_opendal(&e))?;
        let mut out = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        let read = async {
            let mut stream = reader.into_stream(offset..offset.saturating_add(len)).await?;
            while let Some(part) = stream.try_next().await? {
                append(&mut out, part);
            }
            Ok::<_, opendal::Error>(())
        };
        match read.await {
            Err(e) if e.kind() == ErrorKind::RangeNotSatisfied => Ok(None),
            Err(e) => Err(of_opendal(&e)),
            Ok(()) => Ok((out.len() as u64 == len).then_some(out)),
        }
    }

    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let options = options::ListOptions { recursive: true, ..Default::default() };
        // The root of an operator is the empty path; it has names of its own for it.
        let mut lister = match self.op.lister_options(if folder.is_empty() { "/" } else { folder }, options).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            lister => lister.map_err(|e| of_opendal(&e))?,
        };
        let mut out = Vec::new();
        loop {
            let entry = match lister.try_next().await {
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                entry => entry.map_err(|e| of_opendal(&e))?,
            };
            let Some(entry) = entry else { break };
            let metadata = entry.metadata();
            if metadata.is_file() {
                let modified = metadata.last_modified().map_or(Time::default(), |t| {
                    let t = t.into_inner();
                    Time { secs: t.as_second(), nanos: t.subsec_nanosecond().unsigned_abs() }
                });
                out.push(Listed { path: entry.path().to_owned(), bytes: metadata.content_length(), modified });
            }
        }
        Ok(out)
    }

    pub async fn delete(&self, paths: &[String]) -> Result<(), Failure> {
        for some in paths.chunks(DELETE_NAMES) {
            self.op.delete_iter(some.to_vec()).await.map_err(|e| of_opendal(&e))?;
        }
        Ok(())
    }
}

/// Amazon's address for a region.
fn amazon(region: &str) -> String {
    let of_country = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{of_country}")
}

fn append(out: &mut Vec<u8>, mut part: Buffer) {
    for bytes in part.by_ref() {
        out.extend_from_slice(&bytes);
    }
}
