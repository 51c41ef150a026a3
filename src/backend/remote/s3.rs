//! A bucket of S3, or of one of the many services that speak its protocol.
//!
//! An object is put with one request that carries its MD5, so that the service refuses what did not arrive whole; it
//! is visible when that is done and not before.

use std::sync::Arc;

use opendal::{HttpTransporter, OperationContext, Operator, services};

use super::Line;
use super::http::{Dialect, Transport};
use super::objects::Objects;
use super::place::S3Place;
use crate::error::{Error, Result};

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
pub(super) fn open(place: &S3Place, settings: &Settings, line: Arc<Line>) -> Result<Objects> {
    let region = settings.region.as_deref().unwrap_or(DEFAULT_REGION);
    let endpoint = place.endpoint.clone().or_else(|| settings.endpoint.clone());
    let endpoint = endpoint.unwrap_or_else(|| amazon(region));
    let refuse =
        |why: String| Error::refused(format!("{place} can't be used: {why}"), "check the endpoint (AWS_ENDPOINT_URL)");
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
    let transport = Transport::new(line, Dialect::S3, host.clone(), settings.authorities.as_deref())?;
    let context = OperationContext::new().with_http_transport(HttpTransporter::new(transport));
    let op = Operator::new(builder).map_err(|e| refuse(e.message().to_owned()))?.with_context(context);
    Ok(Objects { op, host, renames: false })
}

/// Amazon's address for a region.
fn amazon(region: &str) -> String {
    let of_country = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{of_country}")
}
