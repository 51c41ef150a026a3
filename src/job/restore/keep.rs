//! Keeping what a restore is about to change: in a snapshot, which the caller takes, or, where that can't be had, by
//! further names in a directory of the target.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FileType;

use super::before::{Before, Kept};
use super::context::Context;
use super::{Keep, existing};
use crate::clock;
use crate::error::{Error, Result};
use crate::source::exclusive::beside;
use crate::source::marker::MARKER;
use crate::source::sqlite::SIDECARS;
use crate::source::target::Folder;

/// What the names of such directories begin with; the time, in seconds since 1970, follows.
pub(super) const COPY: &str = ".snapshot-before-restore-";

/// Keeps what changes.
///
/// # Errors
/// [`Error::Refused`] if it can't be kept at all: then nothing may be changed. [`Error::Interrupted`].
pub(super) fn keep(context: &Context<'_>, target: &Arc<Folder>, before: &Before, keep: &Keep<'_>) -> Result<Kept> {
    context.reporter.check_interrupt()?;
    let why = match keep(before) {
        Ok(id) => return Ok(Kept::Snapshot(id)),
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(e) => e.to_string(),
    };
    match copy_to_new(target, before) {
        Ok(path) => Ok(Kept::Copy(path, why)),
        Err(e) => Err(Error::refused(
            format!("what is there can't be kept: no snapshot of it could be taken ({why}), and no copy made ({e})"),
            "nothing was changed; see that the repository can be written, or restore with --no-safety, which keeps \
             nothing of what is replaced",
        )),
    }
}

/// Keeps what changes in a new directory of the target, and returns its path.
///
/// # Errors
/// [`Error::File`].
pub(super) fn copy_to_new(target: &Arc<Folder>, before: &Before) -> Result<PathBuf> {
    let mut seconds = clock::now().secs;
    loop {
        let name = format!("{COPY}{seconds}").into_bytes();
        if target.stat(&name)?.is_none() {
            copy(target, before, &name)?;
            return Ok(target.path_of(&name));
        }
        seconds += 1;
    }
}

/// Gives everything that changes a further name in a directory of the target: that needs no room, and what is restored
/// comes beside it. A database keeps the log or journal that belongs to it.
fn copy(target: &Arc<Folder>, before: &Before, name: &[u8]) -> Result<()> {
    let copy = target.make(name, false)?;
    let mut made = Vec::new();
    for there in &before.replaced {
        let path = there.folder.path();
        let below = path.strip_prefix(target.path()).unwrap_or(&path);
        let (mut from, mut into) = (target.clone(), copy.clone());
        for part in below.components() {
            let part = part.as_os_str().as_encoded_bytes();
            into = into.make(part, false)?;
            let Some(inner) = from.enter(part)? else { break };
            from = inner;
            made.push((into.clone(), from.clone()));
        }
        let names = [there.name.clone(), beside(&there.name, SIDECARS[0]), beside(&there.name, SIDECARS[2])];
        let names = if existing::is_database(&there.folder, &there.name) { &names[..] } else { &names[..1] };
        for name in names {
            match there.folder.stat(name)? {
                Some(stat) if existing::kind(&stat) == FileType::Directory => {
                    let inner = into.make(name, false)?;
                    made.extend(there.folder.enter(name)?.map(|from| (inner, from)));
                }
                // The log of a database that is deleted is named by itself, too.
                Some(_) if into.stat(name)?.is_none() => into.link(name, &there.folder)?,
                _ => {}
            }
        }
    }
    made.iter().try_for_each(|(into, from)| into.take_owner_of(from))?;
    copy.link(MARKER, target)?;
    copy.sync()
}
