//! Where a repository on a network is: the URLs, read and written.
//!
//! `sftp://[user@]host[:port]/path` is an absolute path, `…/~/path` one in the user's home on the server;
//! `sftp:[user@]host:path` means what it means to `scp`. `s3://bucket/prefix` is a bucket of the service that the
//! settings name, `s3:https://host[:port]/bucket/prefix` names it itself.

use std::fmt;

use crate::error::{Error, Result};

/// A place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of a server that is reached by SSH.
    Sftp(SftpPlace),
    /// Objects below a prefix in a bucket.
    S3(S3Place),
    /// Objects of another service.
    Other(OtherPlace),
}

/// A service that OpenDAL knows, and that may be built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Azure Blob Storage: `azblob://container/prefix`.
    Azblob,
    /// Google Cloud Storage: `gs://bucket/prefix`.
    Gcs,
    /// Backblaze B2: `b2://bucket/prefix`.
    B2,
    /// WebDAV: `webdav://host/path` and, without TLS, `webdav+http://host/path`.
    Webdav,
}

/// Schemes of URLs, and what they mean.
const SCHEMES: [(&str, Service); 5] = [
    ("azblob", Service::Azblob),
    ("gs", Service::Gcs),
    ("b2", Service::B2),
    ("webdav", Service::Webdav),
    ("webdav+http", Service::Webdav),
];

/// Objects below a prefix in a container of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherPlace {
    /// The service.
    pub service: Service,
    /// The scheme as it was given.
    pub scheme: String,
    /// The container, or the host and port of WebDAV.
    pub container: String,
    /// The prefix, without slashes at its ends; may be empty.
    pub prefix: String,
}

/// A directory of a server that is reached by SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpPlace {
    /// The user there; `None`: as `ssh` chooses.
    pub user: Option<String>,
    /// The host, or its name in the configuration of `ssh`.
    pub host: String,
    /// The port; `None`: as `ssh` chooses.
    pub port: Option<u16>,
    /// The directory, absolute or below the user's home. Not empty.
    pub path: String,
}

/// Objects below a prefix in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Place {
    /// `https://host[:port]`, if the URL names one.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// The prefix, without slashes at its ends; may be empty.
    pub prefix: String,
}

impl Place {
    /// Reads a URL; `None` if it is none of a network.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that is not complete.
    pub fn parse(url: &str) -> Option<Result<Self>> {
        if let Some(rest) = url.strip_prefix("sftp://") {
            return Some(sftp_url(rest).map(Self::Sftp));
        }
        if let Some(rest) = url.strip_prefix("s3://") {
            return Some(bucket(None, rest).map(Self::S3));
        }
        if let Some(rest) = url.strip_prefix("s3:")
            && (rest.starts_with("https://") || rest.starts_with("http://"))
        {
            return Some(service_url(rest).map(Self::S3));
        }
        if let Some((scheme, rest)) = url.split_once("://")
            && let Some((_, service)) = SCHEMES.iter().find(|(known, _)| *known == scheme)
        {
            return Some(other(*service, scheme, rest).map(Self::Other));
        }
        url.strip_prefix("sftp:").and_then(scp_like).map(|place| place.map(Self::Sftp))
    }
}

fn usage<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Usage(why.into()))
}

/// `[user@]host[:port]/path`
fn sftp_url(rest: &str) -> Result<SftpPlace> {
    let Some((authority, path)) = rest.split_once('/') else {
        return usage("an SFTP URL needs a path: sftp://user@host/srv/backup");
    };
    let (user, server) = split_user(authority)?;
    let (host, port) = match server.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    let port = match port.map(str::parse) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return usage(format!("\"{authority}\" has no port after its colon: sftp://user@host:22/path")),
    };
    let path = match path.strip_prefix("~/") {
        Some(in_home) => in_home.trim_matches('/').to_owned(),
        None => format!("/{}", path.trim_matches('/')),
    };
    checked(SftpPlace { user, host: host.to_owned(), port, path: unescape(&path)? })
}

/// `[user@]host:path`; `None` if there is no colon: that is a local file's name.
fn scp_like(rest: &str) -> Option<Result<SftpPlace>> {
    let (authority, path) = rest.split_once(':')?;
    let place = split_user(authority).and_then(|(user, host)| {
        let path = if path == "/" { path } else { path.trim_end_matches('/') };
        checked(SftpPlace { user, host: host.to_owned(), port: None, path: path.to_owned() })
    });
    Some(place)
}

fn split_user(authority: &str) -> Result<(Option<String>, &str)> {
    let Some((user, host)) = authority.rsplit_once('@') else { return Ok((None, authority)) };
    if user.contains(':') {
        return usage("a password in a URL would be seen by everyone on this machine: use an SSH key, or an agent");
    }
    Ok((Some(unescape(user)?), host))
}

fn checked(place: SftpPlace) -> Result<SftpPlace> {
    // ssh would take it for an option.
    let bad = |word: &str| word.is_empty() || word.starts_with('-') || word.contains(char::is_whitespace);
    if bad(&place.host) || place.user.as_deref().is_some_and(bad) {
        return usage("an SFTP URL needs a host: sftp://user@host/srv/backup");
    }
    if place.path.is_empty() {
        return usage("an SFTP URL needs a path: sftp://user@host/srv/backup");
    }
    if place.path.contains('\0') {
        return usage("a path has no zero bytes");
    }
    Ok(place)
}

/// `https://host[:port]/bucket[/prefix]`
fn service_url(url: &str) -> Result<S3Place> {
    let after = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(after);
    match rest.split_once('/') {
        Some((host, path)) if !host.is_empty() => bucket(Some(format!("{scheme}{host}")), path),
        _ => usage("this S3 URL needs a bucket: s3:https://host/bucket/prefix"),
    }
}

/// `container[/prefix]`
fn other(service: Service, scheme: &str, rest: &str) -> Result<OtherPlace> {
    let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    if container.is_empty() || container.contains('@') {
        return usage(format!(
            "such a URL is {scheme}://{}/path",
            if service == Service::Webdav { "host" } else { "container" }
        ));
    }
    Ok(OtherPlace { service, scheme: scheme.to_owned(), container: container.to_owned(), prefix: prefix.to_owned() })
}

/// `bucket[/prefix]`
fn bucket(endpoint: Option<String>, rest: &str) -> Result<S3Place> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    if bucket.is_empty() || bucket.contains(['@', ':']) {
        return usage("an S3 URL begins with a bucket: s3://bucket/prefix");
    }
    if prefix.split('/').any(|part| part == "." || part == ".." || (part.is_empty() && !prefix.is_empty())) {
        return usage("the prefix of an S3 URL has no empty parts, no . and no ..: s3://bucket/prefix");
    }
    Ok(S3Place { endpoint, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// Replaces `%41` by `A`.
fn unescape(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return usage(format!("\"{text}\" has a % that two hexadecimal digits must follow; write % as %25")),
        }
    }
    String::from_utf8(out).or_else(|_| usage(format!("\"{text}\" is not UTF-8")))
}

impl SftpPlace {
    /// `user@host:port`, as far as they are known.
    pub fn server(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        if self.host.contains(':') {
            format!("{user}[{}]{port}", self.host)
        } else {
            format!("{user}{}{port}", self.host)
        }
    }
}

impl fmt::Display for SftpPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let home = if self.path.starts_with('/') { "" } else { "/~/" };
        write!(f, "sftp://{}{home}{}", self.server(), self.path)
    }
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "s3:{endpoint}/{}", self.bucket)?,
            None => write!(f, "s3://{}", self.bucket)?,
        }
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl fmt::Display for OtherPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.container)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sftp(place) => place.fmt(f),
            Self::S3(place) => place.fmt(f),
            Self::Other(place) => place.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sftp(url: &str) -> SftpPlace {
        match Place::parse(url).unwrap().unwrap() {
            Place::Sftp(place) => place,
            _ => panic!("{url}"),
        }
    }

    fn s3(url: &str) -> S3Place {
        match Place::parse(url).unwrap().unwrap() {
            Place::S3(place) => place,
            _ => panic!("{url}"),
        }
    }

    #[test]
    fn servers_and_their_paths() {
        let place = sftp("sftp://u@h:2222/srv/b/");
        assert_eq!((place.user.as_deref(), &place.host[..], place.port), (Some("u"), "h", Some(2222)));
        for (url, path, shown) in [
            ("sftp://h/srv/b", "/srv/b", "sftp://h/srv/b"),
            ("sftp://h//srv/b", "/srv/b", "sftp://h/srv/b"),
            ("sftp://u@h/~/b", "b", "sftp://u@h/~/b"),
            ("sftp:u@h:b/c/", "b/c", "sftp://u@h/~/b/c"),
            ("sftp:h:/b", "/b", "sftp://h/b"),
            ("sftp://[::1]:22/b", "/b", "sftp://[::1]:22/b"),
            ("sftp://h/a%20b", "/a b", "sftp://h/a b"),
        ] {
            let place = sftp(url);
            assert_eq!((&place.path[..], &place.to_string()[..]), (path, shown), "{url}");
        }
    }

    #[test]
    fn buckets() {
        let place = s3("s3://b/p/q/");
        assert_eq!((place.endpoint, &place.bucket[..], &place.prefix[..]), (None, "b", "p/q"));
        let place = s3("s3:http://127.0.0.1:9000/b");
        assert_eq!(
            (place.endpoint.as_deref(), &place.bucket[..], &place.prefix[..]),
            (Some("http://127.0.0.1:9000"), "b", "")
        );
        assert_eq!(s3("s3:https://h/b/p").to_string(), "s3:https://h/b/p");
    }

    #[test]
    fn other_services() {
        for (url, service) in [
            ("azblob://c/p", Service::Azblob),
            ("gs://c/p/q", Service::Gcs),
            ("b2://c", Service::B2),
            ("webdav://h:8080/p", Service::Webdav),
            ("webdav+http://h/p", Service::Webdav),
        ] {
            match Place::parse(url).unwrap().unwrap() {
                Place::Other(place) => assert_eq!((place.service, &place.to_string()[..]), (service, url)),
                _ => panic!("{url}"),
            }
        }
    }

    #[test]
    fn what_is_not_complete_is_wrong_usage() {
        for url in [
            "sftp://h",
            "sftp:///srv/b",
            "sftp://u:secret@h/b",
            "sftp://-oProxyCommand=x/b",
            "sftp://h:port/b",
            "sftp://h/~/",
            "sftp://h/%zz",
            "s3://",
            "s3:///p",
            "s3://b/../p",
            "s3://b//p/q//r",
            "s3:https://h",
            "gs://",
            "webdav://user:secret@h/p",
        ] {
            assert_eq!(Place::parse(url).unwrap().unwrap_err().status(), 2, "{url}");
        }
        for url in ["/srv/b", "s3:here", "sftp:here", "rest://h/b"] {
            assert!(Place::parse(url).is_none(), "{url}");
        }
    }
}
