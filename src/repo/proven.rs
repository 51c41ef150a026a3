//! Packs that were decoded on this machine before, and found sound to the last blob.
//!
//! What a pack decodes to depends on nothing but its bytes, and its name is their hash: as long as the hash is right,
//! decoding it again finds what it found before. So a second check of the same data costs as much as hashing it. The
//! memory is a file in the cache directory; without it everything is decoded again. Segments that lean on others decode
//! to the same as long as these do, which are named by their contents and checked where they lie. Packs with segments
//! whose pages were dropped are never remembered: which pages they have is looked at.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Audit, Repository};
use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::id::PackId;

/// The first line: what another version found says nothing about this one.
const HEADING: &str = concat!("snapshot ", env!("CARGO_PKG_VERSION"), ": packs decoded and found sound");

/// Remembers sound packs.
#[derive(Debug, Default, Clone)]
pub struct Proven {
    file: Option<PathBuf>,
    packs: HashSet<PackId>,
    is_changed: bool,
}

impl Proven {
    /// What was remembered of this repository in a cache directory. Whatever can't be read is not remembered.
    pub fn load(repo: &Repository, folder: &Path) -> Self {
        let file = folder.join(format!("{}.sound-packs", repo.config().id()));
        let packs = fs::read_to_string(&file).ok().and_then(|text| {
            let lines = text.strip_prefix(HEADING)?.strip_prefix('\n')?.lines();
            lines.map(PackId::parse).collect()
        });
        Self { file: Some(file), packs: packs.unwrap_or_default(), is_changed: false }
    }

    /// Whether a pack was found sound.
    pub fn holds(&self, id: &PackId) -> bool {
        self.packs.contains(id)
    }

    /// Remembers a pack if all that it holds is sound, and on its own.
    pub fn learn(&mut self, audit: &Audit) {
        if audit.is_sound_alone {
            self.is_changed |= self.packs.insert(audit.info.id);
        }
    }

    /// Writes down what is remembered of the packs that are there still.
    ///
    /// # Errors
    /// [`Error::File`] if that fails: the next check decodes everything again.
    pub fn save(&mut self, there: &[Listed]) -> Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_changed) else { return Ok(()) };
        let there: HashSet<_> = there.iter().filter_map(|l| Some(layout::parse_pack(&l.path)?.1)).collect();
        self.packs.retain(|id| there.contains(id));
        let mut text = format!("{HEADING}\n");
        let mut packs: Vec<_> = self.packs.iter().collect();
        packs.sort_unstable();
        for id in packs {
            text.push_str(&id.to_string());
            text.push('\n');
        }
        // Under a name of its own first: two checks may end at the same moment.
        let made = file.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&made, text).and_then(|()| fs::rename(&made, file)).map_err(|e| {
            let _ = fs::remove_file(&made);
            Error::file("write", file, e)
        })
    }
}
