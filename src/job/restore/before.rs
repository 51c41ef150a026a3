//! What a restore is about to change, looked at before anything is: who has it open, and what is to be kept.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use super::existing;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::source::exclusive::{beside, in_use};
use crate::source::handles::{FileId, open_elsewhere};
use crate::source::marker::MARKER;
use crate::source::sqlite::SIDECARS;
use crate::source::target::Folder;

/// What a mark has between its text and the names that the restore makes, and between these.
pub(super) const SEPARATOR: u8 = 0;

/// Something that has a name in the target.
#[derive(Clone)]
pub(super) struct There {
    pub folder: Arc<Folder>,
    pub name: Vec<u8>,
}

/// What a restore is about to change in its target.
#[derive(Default)]
pub struct Before {
    /// What is replaced, deleted, or gets other attributes.
    pub(super) replaced: Vec<There>,
    /// Paths below the target that it makes, each after the directory that it is in.
    pub(super) made: Vec<Vec<u8>>,
    /// The files of databases among what is replaced or deleted.
    files: Vec<(FileId, PathBuf)>,
    /// A database that is locked by somebody.
    pub(super) locked: Option<Error>,
}

impl Before {
    /// The absolute paths of what is replaced, deleted, or gets other attributes.
    pub fn replaced(&self) -> impl Iterator<Item = PathBuf> {
        self.replaced.iter().map(|there| there.folder.path_of(&there.name))
    }

    /// The mark of this restore, which tells what it makes.
    pub fn mark(target: &Path) -> PathBuf {
        target.join(OsStr::from_bytes(MARKER))
    }

    /// Whether nothing that is there changes.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
    }

    /// Remembers the files of a database that is replaced or deleted.
    pub(super) fn add_database(&mut self, folder: &Folder, name: &[u8]) -> Result<()> {
        for name in [name.to_vec(), beside(name, SIDECARS[0]), beside(name, SIDECARS[1])] {
            if let Some(stat) = folder.stat(&name)?.filter(|s| existing::kind(s) == FileType::RegularFile) {
                self.files.push(((stat.st_dev, stat.st_ino), folder.path_of(&name)));
            }
        }
        Ok(())
    }

    /// Why this must not be done unless it is forced: somebody has a database open.
    pub(super) fn objection(&mut self) -> Option<Error> {
        if let Some(locked) = self.locked.take() {
            return Some(locked);
        }
        let wanted: Vec<FileId> = self.files.iter().map(|(id, _)| *id).collect();
        let open = open_elsewhere(&wanted);
        self.files.iter().find_map(|(id, path)| open.get(id).map(|holder| in_use(path, holder)))
    }

    /// The names that it makes, as a mark tells them.
    pub(super) fn record(&self) -> Vec<u8> {
        let mut record = Vec::new();
        for name in &self.made {
            record.push(SEPARATOR);
            record.extend_from_slice(name);
        }
        record
    }
}

/// Where what was there before a restore is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kept {
    /// Nowhere: nothing of it was changed, or that was not wanted.
    #[default]
    Nothing,
    /// In a snapshot.
    Snapshot(SnapshotId),
    /// In a directory, for the reason given.
    Copy(PathBuf, String),
}

/// The paths below the target that a restore made, as its mark tells them. None of them leads out of the target.
pub fn parse_made(mark: &[u8]) -> Vec<Vec<u8>> {
    let names = mark.split(|b| *b == SEPARATOR).skip(1);
    let is_below = |name: &&[u8]| name.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    names.filter(is_below).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_only_what_is_below_the_target() {
        let before = Before { made: vec![b"a".to_vec(), b"a/b\n".to_vec()], ..Before::default() };
        let mark = [b"text\nof it\n".to_vec(), before.record()].concat();
        assert_eq!(parse_made(&mark), before.made);
        assert_eq!(parse_made(b"\0../x\0/etc/passwd\0a/../../x\0\0fine"), [b"fine"]);
        assert!(parse_made(b"text").is_empty());
    }
}
