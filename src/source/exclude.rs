//! What is left out of a snapshot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};

/// What a CACHEDIR.TAG file begins with, see bford.info/cachedir.
const CACHE_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
/// The name of such a file.
pub const CACHE_TAG_NAME: &str = "CACHEDIR.TAG";

/// Patterns in gitignore syntax, relative to one source.
pub struct Excludes(Gitignore);

impl Excludes {
    /// Patterns of presets, files with one pattern a line, and patterns given one by one: what comes later has the last
    /// word, so that `!` takes back what a preset leaves out.
    ///
    /// # Errors
    /// [`Error::Usage`] for a pattern that can't be read, [`Error::File`] for a file.
    pub fn new(root: &Path, presets: &[String], patterns: &[String], files: &[PathBuf]) -> Result<Self> {
        let mut builder = GitignoreBuilder::new(root);
        for pattern in presets {
            builder.add_line(None, pattern).map_err(|e| usage(pattern, &e))?;
        }
        for file in files {
            let text = std::fs::read_to_string(file).map_err(|e| Error::file("read", file, e))?;
            for line in text.lines() {
                builder.add_line(None, line).map_err(|e| usage(line, &e))?;
            }
        }
        for pattern in patterns {
            builder.add_line(None, pattern).map_err(|e| usage(pattern, &e))?;
        }
        builder.build().map(Self).map_err(|e| Error::Usage(format!("the excludes can't be used: {e}")))
    }

    /// Whether a path below the root is left out.
    pub fn excludes(&self, path: &Path, is_directory: bool) -> bool {
        !self.0.is_empty() && self.0.matched(path, is_directory).is_ignore()
    }
}

fn usage(pattern: &str, error: &ignore::Error) -> Error {
    Error::Usage(format!("the exclude pattern \"{pattern}\" can't be used: {error}"))
}

/// Whether a directory says that it is a cache.
pub fn is_cache(directory: &Path) -> bool {
    let mut start = [0; CACHE_TAG.len()];
    let read = File::open(directory.join(CACHE_TAG_NAME)).and_then(|mut f| f.read_exact(&mut start));
    read.is_ok() && start == CACHE_TAG
}
