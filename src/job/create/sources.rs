//! From the paths given to the top of the snapshot's tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::{Reporter, Severity};
use crate::source::postgres::Url;

/// A directory at the top of the tree: sources, and what leads to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// What is taken whole; nothing below it is listed in `below`.
    pub source: Option<PathBuf>,
    /// Where it is in the file system, for its attributes.
    pub path: PathBuf,
    /// Further names.
    pub below: BTreeMap<Vec<u8>, Top>,
}

/// Arranges paths by where they restore to: as given, `..` resolved, without a leading `/`. A path within
/// another is part of it; one that does not exist is reported.
///
/// # Errors
/// When none of them exists.
pub fn arrange(paths: &[PathBuf], reporter: &Reporter) -> Result<Top> {
    let mut top = Top { path: PathBuf::from("."), ..Top::default() };
    let mut first_error = None;
    let mut found = 0;
    for path in paths {
        if let Err(e) = fs::symlink_metadata(path) {
            if paths.len() > 1 {
                reporter.warn(Severity::Source, path.display(), format!("it can't be read: {e}"));
            }
            first_error = first_error.or_else(|| Some(Error::file("read", path, e)));
            continue;
        }
        found += 1;
        top.insert(path)?;
    }
    match first_error {
        Some(e) if found == 0 => Err(e),
        _ => Ok(top),
    }
}

impl Top {
    /// All sources below, in order.
    pub fn sources(&self) -> Vec<&Path> {
        match &self.source {
            Some(source) => vec![source],
            None => self.below.values().flat_map(Top::sources).collect(),
        }
    }

    fn insert(&mut self, path: &Path) -> Result<()> {
        let (names, absolute) = names(path)?;
        let mut at = self;
        let mut here = PathBuf::from(if absolute { "/" } else { "." });
        for name in names {
            if at.source.is_some() {
                return Ok(());
            }
            here.push(std::ffi::OsStr::from_bytes(&name));
            at = at.below.entry(name).or_insert_with(|| Top { path: here.clone(), ..Top::default() });
        }
        at.source = Some(path.to_path_buf());
        at.below.clear();
        Ok(())
    }
}

/// The names that lead to a path in the tree of a snapshot of it.
///
/// # Errors
/// [`Error::File`] if there is no current directory.
pub fn place_of(path: &Path) -> Result<Vec<Vec<u8>>> {
    names(path).map(|(names, _)| names)
}

/// The names that a path restores to, and whether it counts from the root.
fn names(path: &Path) -> Result<(Vec<Vec<u8>>, bool)> {
    let resolve = |path: &Path| {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name.as_bytes().to_vec()),
                Component::ParentDir if names.pop().is_none() => return None,
                _ => {}
            }
        }
        Some(names)
    };
    if path.is_absolute() {
        return Ok((resolve(path).unwrap_or_default(), true));
    }
    if let Some(names) = resolve(path) {
        return Ok((names, false));
    }
    // It leads out of the current directory: only the absolute path has a name.
    let absolute = std::path::absolute(path).map_err(|e| Error::file("find", path, e))?;
    Ok((resolve(&absolute).unwrap_or_default(), true))
}

/// The default name of a source: the canonical absolute path, or several joined by colons; databases by server and name,
/// so that a password or a user that changes makes no other source.
///
/// # Errors
/// When none of the paths exists.
pub fn default_name(paths: &[PathBuf], databases: &[Url]) -> Result<String> {
    let mut names: Vec<String> = databases.iter().map(Url::label).collect();
    let of_databases = names.len();
    let mut failed = None;
    for path in paths {
        match fs::canonicalize(path) {
            Ok(path) => names.push(String::from_utf8_lossy(&path.into_os_string().into_vec()).into_owned()),
            Err(e) => failed = Some(Error::file("read", path, e)),
        }
    }
    match failed {
        Some(e) if names.len() == of_databases => Err(e),
        _ => {
            names.sort();
            names.dedup();
            Ok(names.join(":"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_dots_first() {
        let text = |path: &str| {
            let (names, absolute) = names(Path::new(path)).unwrap();
            (String::from_utf8(names.join(&b'/')).unwrap(), absolute)
        };
        assert_eq!(text("data"), ("data".into(), false));
        assert_eq!(text("./data/../x/."), ("x".into(), false));
        assert_eq!(text("/var//lib/../log"), ("var/log".into(), true));
        assert_eq!(text("."), (String::new(), false));
        assert!(text("../x").1 && !text("../x").0.contains(".."));
    }

    #[test]
    fn a_path_within_another_is_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        let reporter = Reporter::silent();
        for order in [["a", "a/b"], ["a/b", "a"]] {
            let top = arrange(&order.map(path), &reporter).unwrap();
            let mut at = &top;
            while at.source.is_none() {
                assert_eq!(at.below.len(), 1);
                at = at.below.values().next().unwrap();
            }
            assert_eq!((at.source.as_deref(), at.below.len()), (Some(&*path("a")), 0));
        }
        assert!(arrange(&[path("none")], &reporter).is_err());
        assert!(arrange(&[path("none"), path("a")], &reporter).is_ok());
        assert_eq!(reporter.worst(), Some(Severity::Source));
    }
}
