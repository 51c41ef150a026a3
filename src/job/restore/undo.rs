//! Taking a restore back whose files were kept by further names in the target, since no snapshot of them could be taken.
//!
//! It needs no repository. What is there is kept in the same way first, so it can be taken back itself.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::before::{Before, Kept, There, parse_made};
use super::delete::Deletion;
use super::keep::{self, COPY};
use super::{Options, Summary, existing};
use crate::error::{Error, Result};
use crate::report::Reporter;
use crate::source::exclusive::{Exclusive, beside, owner_of};
use crate::source::marker::{MARKER, Marker};
use crate::source::sqlite::SIDECARS;
use crate::source::target::Folder;

const MARK: &str = "A restore into this directory is being taken back. Run `snapshot restore --undo` again.\n";

/// The newest directory with what was in a target before a restore, and when it was made, in seconds since 1970.
///
/// # Errors
/// [`Error::File`] if the target can't be read.
pub fn newest_copy(target: &Path) -> Result<Option<(PathBuf, i64)>> {
    let Some(folder) = Folder::look(target)? else { return Ok(None) };
    let seconds = |name: &[u8]| std::str::from_utf8(name.strip_prefix(COPY.as_bytes())?).ok()?.parse::<i64>().ok();
    let names = folder.names()?;
    let newest = names.iter().filter_map(|name| seconds(name).map(|secs| (secs, name))).max();
    Ok(newest.map(|(secs, name)| (folder.path_of(name), secs)))
}

/// A name that is put back.
struct Part {
    /// Where it is kept.
    kept: Arc<Folder>,
    /// The names of the directories below the target that it goes to.
    below: Vec<Vec<u8>>,
    name: Vec<u8>,
}

/// Puts back what is in such a directory, deletes what the restore made, and removes the directory.
///
/// # Errors
/// [`Error::Refused`] if a database that is there is open, or if what is there can't be kept; [`Error::Locked`] if a
/// restore is at work there; [`Error::File`].
pub fn undo_copy(copy: &Path, options: &Options, reporter: &Reporter) -> Result<Summary> {
    let target = Folder::target(&options.target)?;
    let marker = Marker::take(&target)?;
    let name = copy.file_name().unwrap_or_default().as_encoded_bytes();
    let kept = target.enter(name)?.ok_or_else(|| Error::file("read", copy, std::io::ErrorKind::NotFound))?;
    let mut made = Vec::new();
    if let Some(mark) = kept.open_file(MARKER)? {
        let mut bytes = Vec::new();
        std::fs::File::from(mark).read_to_end(&mut bytes).map_err(|e| Error::file("read", kept.path_of(MARKER), e))?;
        made = parse_made(&bytes);
    }
    let mut before = Before::default();
    let mut parts = Vec::new();
    gather(&kept, Some(&target), &[], &mut parts, &mut before)?;
    let mut deletion = Deletion::default();
    deletion.add_made(&target, &made, options)?;
    deletion.tell(&mut before)?;
    if let Some(objection) = before.objection().filter(|_| !options.force) {
        marker.abandon(&target, None)?;
        return Err(objection);
    }
    marker.write(&target, &[MARK.as_bytes(), &before.record()].concat())?;
    let again = keep::copy_to_new(&target, &before)?;
    for part in &parts {
        reporter.check_interrupt()?;
        part.put_back(&target, options.force)?;
    }
    let deleted = deletion.run(options, reporter)?;
    remove(&target, name)?;
    marker.remove(&target)?;
    let why = "it was kept without a snapshot".to_owned();
    Ok(Summary { files: parts.len() as u64, deleted, kept: Kept::Copy(again, why), ..Summary::default() })
}

/// Lists what is kept, and finds out what it replaces. A database comes with the log or journal that was kept with it,
/// which is brought into it first.
fn gather(
    kept: &Arc<Folder>,
    folder: Option<&Arc<Folder>>,
    below: &[Vec<u8>],
    parts: &mut Vec<Part>,
    before: &mut Before,
) -> Result<()> {
    let mut names = kept.names()?;
    names.sort();
    let is_known = |name: &[u8]| names.binary_search_by(|other| other[..].cmp(name)).is_ok();
    for name in names.iter().filter(|name| !(below.is_empty() && name[..] == *MARKER)) {
        let there = folder.map_or(Ok(None), |folder| folder.stat(name))?;
        let path = [below, std::slice::from_ref(name)].concat();
        if let Some(inner) = kept.enter(name)? {
            if there.is_none() {
                before.made.push(path.join(&b'/'));
            }
            let folder = folder.map_or(Ok(None), |folder| folder.enter(name))?;
            parts.push(Part { kept: kept.clone(), below: below.to_vec(), name: name.clone() });
            gather(&inner, folder.as_ref(), &path, parts, before)?;
            continue;
        }
        if owner_of(name).is_some_and(|owner| is_known(owner) && existing::is_database(kept, owner)) {
            continue;
        }
        match folder.filter(|_| there.is_some()) {
            None => before.made.push(path.join(&b'/')),
            Some(folder) => {
                before.add_database(folder, name)?;
                before.replaced.push(There { folder: folder.clone(), name: name.clone() });
            }
        }
        parts.push(Part { kept: kept.clone(), below: below.to_vec(), name: name.clone() });
    }
    Ok(())
}

impl Part {
    fn put_back(&self, target: &Arc<Folder>, force: bool) -> Result<()> {
        let Self { kept, below, name } = self;
        let folder = below.iter().try_fold(target.clone(), |folder, name| folder.make(name, false))?;
        if let Some(inner) = kept.enter(name)? {
            let made = folder.make(name, true)?;
            return if made.is_new() { made.take_owner_of(&inner) } else { Ok(()) };
        }
        let is_database = existing::is_database(kept, name);
        if is_database {
            drop(Exclusive::take(kept, name, force)?);
        }
        let made = folder.temporary(name);
        made.make_link(kept, name)?;
        if !is_database && !existing::is_database(&folder, name) {
            return made.place();
        }
        let _alone = Exclusive::take(&folder, name, force)?;
        SIDECARS.iter().try_for_each(|suffix| folder.remove(&beside(name, suffix)))?;
        folder.sync()?;
        made.place()?;
        folder.sync()
    }
}

/// Removes a directory with everything in it.
fn remove(folder: &Arc<Folder>, name: &[u8]) -> Result<()> {
    let Some(inner) = folder.enter(name)? else { return folder.remove(name) };
    inner.names()?.iter().try_for_each(|name| remove(&inner, name))?;
    folder.remove_folder(name)
}
