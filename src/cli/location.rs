//! Which repository is meant: the one named, or the embedded default.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use snapshot::backend::{Backend, Local};
use snapshot::error::{Error, Result};

use super::env::Env;

/// A repository's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// Named by the user.
    Named(PathBuf),
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
            Some(url) => path_of(url).map(Self::Named),
            None => Ok(Self::Default { repository: env.default_repository()?, key_file: env.default_key_file()? }),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Named(path) => path,
            Self::Default { repository, .. } => repository,
        }
    }

    /// Its storage. Nothing is made.
    ///
    /// # Errors
    /// When local storage can't be used.
    pub fn backend(&self) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Local::new(self.path())?))
    }
}

fn path_of(url: &OsStr) -> Result<PathBuf> {
    if url.is_empty() {
        return Err(Error::Usage("--repo is empty".into()));
    }
    let Some((scheme, rest)) = split_scheme(url.as_bytes()) else { return Ok(PathBuf::from(url)) };
    match scheme {
        b"file" if rest.starts_with(b"/") => Ok(PathBuf::from(OsStr::from_bytes(rest))),
        b"file" => Err(Error::Usage("a file URL has three slashes: file:///srv/backup".into())),
        b"sftp" | b"s3" => Err(Error::refused(
            format!("repositories at {}:// are not in this version yet", String::from_utf8_lossy(scheme)),
            "use a local path; it may be on a mounted disk or network share",
        )),
        _ => Err(Error::refused(
            format!("{}:// is no kind of repository known here", String::from_utf8_lossy(scheme)),
            "use a local path",
        )),
    }
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
        for (url, status) in [("", 2), ("file://host/r", 2), ("sftp://u@h/r", 1), ("s3://b/p", 1), ("rest://x", 1)] {
            assert_eq!(path_of(OsStr::new(url)).unwrap_err().status(), status, "{url}");
        }
    }

    #[test]
    fn option_before_variable_before_default() {
        let env = Env::fixed(&[("SNAPSHOT_REPO", "/env"), ("HOME", "/home/u")]);
        let option = Location::resolve(Some(OsStr::new("/option")), &env).unwrap();
        assert_eq!(option, Location::Named("/option".into()));
        assert_eq!(Location::resolve(None, &env).unwrap(), Location::Named("/env".into()));
        let empty = Env::fixed(&[("SNAPSHOT_REPO", ""), ("HOME", "/home/u")]);
        assert!(matches!(Location::resolve(None, &empty).unwrap(), Location::Default { .. }));
    }
}
