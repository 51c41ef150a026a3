//! Which repository is meant: the one named, or the embedded default.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use snapshot::backend::remote::{Limits, Place, Surroundings};
use snapshot::backend::{Backend, Local};
use snapshot::error::{Error, Result};

use super::env::Env;
use super::network;

/// What the user named.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// A local directory.
    Directory(PathBuf),
    /// A place on a network.
    Network(Place),
}

/// A repository's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// Named by the user.
    Named(Named),
    /// The default one, with its key file.
    Default {
        /// Its directory.
        repository: PathBuf,
        /// Its key file, kept apart from it.
        key_file: PathBuf,
    },
}

impl Location {
    /// Takes the option, else the variable, else the default.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Refused`] for what is no place this version can use.
    pub fn resolve(option: Option<&OsStr>, env: &Env) -> Result<Self> {
        let named = option.map(OsString::from).or_else(|| env.get("SNAPSHOT_REPO"));
        Self::resolve_named(named.as_deref(), env)
    }

    /// Takes what is named, else the default.
    ///
    /// # Errors
    /// As [`Location::resolve`].
    pub fn resolve_named(url: Option<&OsStr>, env: &Env) -> Result<Self> {
        match url {
            Some(url) => read(url).map(Self::Named),
            None => Ok(Self::Default { repository: env.default_repository()?, key_file: env.default_key_file()? }),
        }
    }

    /// Its directory, if it is on this machine.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Named(Named::Network(_)) => None,
            Self::Named(Named::Directory(path)) | Self::Default { repository: path, .. } => Some(path),
        }
    }

    /// Its storage. Nothing is made, and no connection either.
    ///
    /// # Errors
    /// When local storage can't be used, or what is set for the network makes no sense.
    pub fn backend(&self, env: &Env, limits: Limits, surroundings: Surroundings) -> Result<Arc<dyn Backend>> {
        match self {
            Self::Named(Named::Network(place)) => network::backend(place, env, limits, surroundings),
            Self::Named(Named::Directory(path)) | Self::Default { repository: path, .. } => {
                Ok(Arc::new(Local::new(path)?))
            }
        }
    }
}

fn read(url: &OsStr) -> Result<Named> {
    match url.to_str().and_then(Place::parse) {
        Some(place) => place.map(Named::Network),
        None => path_of(url).map(Named::Directory),
    }
}

fn path_of(url: &OsStr) -> Result<PathBuf> {
    if url.is_empty() {
        return Err(Error::Usage("--repo is empty".into()));
    }
    let Some((scheme, rest)) = split_scheme(url.as_bytes()) else {
        refuse_foreign(url)?;
        return Ok(PathBuf::from(url));
    };
    match scheme {
        b"file" if rest.starts_with(b"/") => Ok(PathBuf::from(OsStr::from_bytes(rest))),
        b"file" => Err(Error::Usage("a file URL has three slashes: file:///srv/backup".into())),
        _ => Err(Error::refused(
            format!("{}:// is no kind of repository known here", String::from_utf8_lossy(scheme)),
            "use a local path, sftp://user@host/path or s3://bucket/prefix",
        )),
    }
}

/// How other tools name places on a network: whoever means one must not get a local directory of that name.
const FOREIGN: [&str; 9] = ["s3:", "sftp:", "rest:", "b2:", "azure:", "gs:", "swift:", "rclone:", "ssh:"];

/// Refuses what looks like another tool's name of a place on a network, `host:path` of `scp` included.
fn refuse_foreign(url: &OsStr) -> Result<()> {
    let name = url.to_string_lossy();
    // What has a slash first is a path for sure.
    let host = name.split_once(':').map(|(host, _)| host).filter(|host| !host.contains('/') && host.contains('@'));
    if !FOREIGN.iter().any(|scheme| name.starts_with(scheme)) && host.is_none() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{name} is no place known here: write sftp://user@host/path, s3://bucket/prefix, or \
         s3:https://server/bucket/prefix; a local directory of that name is ./{name}"
    )))
}

/// `scheme://rest`, where the scheme is made of letters and digits.
fn split_scheme(url: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = url.windows(3).position(|w| w == b"://")?;
    let (scheme, rest) = (url.get(..at)?, url.get(at + 3..)?);
    (!scheme.is_empty() && scheme.iter().all(u8::is_ascii_alphanumeric)).then_some((scheme, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls() {
        for (url, path) in [("/srv/r", "/srv/r"), ("r", "r"), ("file:///srv/r", "/srv/r"), ("./a://b", "./a://b")] {
            assert_eq!(path_of(OsStr::new(url)).unwrap(), PathBuf::from(path), "{url}");
        }
        for (url, status) in [("", 2), ("file://host/r", 2), ("rest://x", 1)] {
            assert_eq!(path_of(OsStr::new(url)).unwrap_err().status(), status, "{url}");
        }
    }

    #[test]
    fn places_on_a_network() {
        for (url, shown) in
            [("sftp://u@h/r", "sftp://u@h/r"), ("s3://b/p", "s3://b/p"), ("s3:http://h/b", "s3:http://h/b")]
        {
            match read(OsStr::new(url)).unwrap() {
                Named::Network(place) => assert_eq!(place.to_string(), shown),
                Named::Directory(path) => panic!("{}", path.display()),
            }
        }
        assert_eq!(read(OsStr::new("sftp://h")).unwrap_err().status(), 2);
        for url in ["s3:s3.amazonaws.com/b/p", "s3:b/p", "rest:http://h/", "sftp:nas", "u@h:p", "b2:b:p", "rclone:f:b"]
        {
            assert_eq!(read(OsStr::new(url)).unwrap_err().status(), 2, "{url}");
        }
        for path in ["./sftp:file", "a:b", "of/u@h:p"] {
            assert_eq!(read(OsStr::new(path)).unwrap(), Named::Directory(path.into()));
        }
    }

    #[test]
    fn option_before_variable_before_default() {
        let env = Env::fixed(&[("SNAPSHOT_REPO", "/env"), ("HOME", "/home/u")]);
        let option = Location::resolve(Some(OsStr::new("/option")), &env).unwrap();
        let named = |path: &str| Location::Named(Named::Directory(path.into()));
        assert_eq!(option, named("/option"));
        assert_eq!(Location::resolve(None, &env).unwrap(), named("/env"));
        let empty = Env::fixed(&[("SNAPSHOT_REPO", ""), ("HOME", "/home/u")]);
        assert!(matches!(Location::resolve(None, &empty).unwrap(), Location::Default { .. }));
    }
}
