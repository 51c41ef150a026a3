//! The environment: variables and the user's directories. Looked at here and nowhere else.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use snapshot::error::{Error, Result};

/// Folder of this program in each of the user's directories.
const FOLDER: &str = "snapshot";

/// Finds a variable by its name.
type Look = dyn Fn(&str) -> Option<OsString>;

/// Looks variables up; an empty one counts as absent where that makes sense.
pub struct Env {
    look: Box<Look>,
}

impl Env {
    /// The process's environment.
    pub fn of_process() -> Self {
        Self { look: Box::new(|name| std::env::var_os(name)) }
    }

    /// A variable, even an empty one.
    pub fn raw(&self, name: &str) -> Option<OsString> {
        (self.look)(name)
    }

    /// A variable that is not empty.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    /// The user's home, if there is one.
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from)
    }

    /// `$XDG_…` if it is an absolute path (the specification says to ignore others), else a folder in the home.
    fn user_dir(&self, variable: &str, in_home: &str) -> Option<PathBuf> {
        let absolute = |name: &str| self.get(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(in_home)))?;
        Some(base.join(FOLDER))
    }

    fn need(dir: Option<PathBuf>, what: &str) -> Result<PathBuf> {
        dir.ok_or_else(|| {
            Error::refused(
                format!("there is no place for the default {what}: HOME is not set"),
                "name a repository with --repo, and a key with --key-file or --password-file",
            )
        })
    }

    /// Where the default repository is.
    ///
    /// # Errors
    /// [`Error::Refused`] for a user without home.
    pub fn default_repository(&self) -> Result<PathBuf> {
        Ok(Self::need(self.user_dir("XDG_DATA_HOME", ".local/share"), "repository")?.join("repository"))
    }

    /// Where the key file of the default repository is.
    ///
    /// # Errors
    /// [`Error::Refused`] for a user without home.
    pub fn default_key_file(&self) -> Result<PathBuf> {
        Ok(Self::need(self.user_dir("XDG_CONFIG_HOME", ".config"), "key file")?.join("default.key"))
    }

    /// Makes sure of the directory for what may be forgotten: the one given, or the user's; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::File`] if the directory that was given can't be made.
    pub fn cache_dir(&self, given: Option<PathBuf>, no_cache: bool) -> Result<Option<PathBuf>> {
        let make = |dir: &PathBuf| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        if let Some(dir) = given {
            return make(&dir).map_err(|e| Error::file("create", &dir, e)).map(|()| Some(dir));
        }
        Ok(self.user_dir("XDG_CACHE_HOME", ".cache").filter(|dir| !no_cache && make(dir).is_ok()))
    }

    /// Makes sure of the directory for temporary data: that for caches, or the system's.
    ///
    /// # Errors
    /// As [`Env::cache_dir`].
    pub fn scratch_dir(&self, given: Option<PathBuf>, no_cache: bool) -> Result<PathBuf> {
        Ok(self.cache_dir(given, no_cache)?.unwrap_or_else(std::env::temp_dir))
    }
}

#[cfg(test)]
impl Env {
    /// An environment of just these variables.
    pub fn fixed(variables: &[(&str, &str)]) -> Self {
        let all: std::collections::HashMap<_, _> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        Self { look: Box::new(move |name| all.get(name).cloned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_follow_the_specification() {
        let home = Env::fixed(&[("HOME", "/home/u"), ("XDG_DATA_HOME", "relative"), ("XDG_CONFIG_HOME", "")]);
        assert_eq!(home.default_repository().unwrap(), PathBuf::from("/home/u/.local/share/snapshot/repository"));
        assert_eq!(home.default_key_file().unwrap(), PathBuf::from("/home/u/.config/snapshot/default.key"));
        let xdg = Env::fixed(&[("XDG_DATA_HOME", "/data"), ("XDG_CONFIG_HOME", "/config")]);
        assert_eq!(xdg.default_repository().unwrap(), PathBuf::from("/data/snapshot/repository"));
        assert_eq!(xdg.default_key_file().unwrap(), PathBuf::from("/config/snapshot/default.key"));
        assert_eq!(Env::fixed(&[]).default_repository().unwrap_err().status(), 1);
    }
}
