//! Proving what was restored, after it has its name: every file is read back and compared by its hashes, SQLite checks
//! the databases, and what is in them is compared with what was recorded when they were captured.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Advice;

use super::context::Context;
use super::database::read_back;
use super::display;
use super::reuse::has_content;
use super::write::{File, Part, State};
use crate::error::{Error, Result};
use crate::report::{Problem, Severity};
use crate::source::sqlite::examine::{Finding, examine};

/// Differences to the record that are shown.
const SHOWN_DIFFERENCES: usize = 3;

/// Sends the file system of some files to its disk, once for all: what is read back then comes from there.
pub(super) fn flush(files: &[File]) {
    // Only a help: where it fails, what is read back comes from memory.
    if let Some(Ok(handle)) = files.first().map(|file| file.part.folder.handle()) {
        let _ = rustix::fs::syncfs(&*handle);
    }
}

/// Lets go of what the system keeps of a file in memory; `dirty` if it may not be on the disk yet.
fn forget_cached(file: &OwnedFd, dirty: bool) {
    if dirty {
        let _ = rustix::fs::fdatasync(file);
    }
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Reads a file back that was written; one that is not as it was is removed, and reported.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn file(context: &Context<'_>, file: &File) -> Result<()> {
    if !file.is(|state| matches!(state, State::Done)) {
        return Ok(());
    }
    context.reporter.check_interrupt()?;
    let part = &file.part;
    let is_sound = || {
        let opened = part.folder.open_file(&part.node.name)?;
        let opened = opened.ok_or_else(|| Error::file("read back", part.path(), io::ErrorKind::NotFound))?;
        forget_cached(&opened, false);
        has_content(context, &part.node, &opened)
    };
    match is_sound() {
        Ok(true) => {
            context.tally.verified.add(1);
            return Ok(());
        }
        Ok(false) => context.lose(&part.path(), disprove(part))?,
        Err(e) => context.lose(&part.path(), e)?,
    }
    file.set(State::Lost);
    context.tally.files.take_back(1);
    Ok(())
}

/// Removes what is not what was written.
fn disprove(part: &Part) -> Error {
    let what = match part.folder.remove(&part.node.name) {
        Ok(()) => "what was read back is not what was written, and it was removed".to_owned(),
        Err(e) => format!("what was read back is not what was written; remove it, which was tried: {e}"),
    };
    Error::refused(what, "the target's disk or this machine's memory is failing: restore to another one")
}

/// Reads a restored database back, has SQLite check it, and compares what is in it with what was recorded when it was
/// captured; `false` if it did not pass, which is reported.
///
/// # Errors
/// If it can't be read, or is not as it was captured: then it is removed. [`Error::Interrupted`].
pub(super) fn database(context: &Context<'_>, part: &Part) -> Result<bool> {
    prove(context, part)?;
    let path = &part.path();
    let tell = |severity, why, hint: Option<&str>| {
        let hint = hint.map(str::to_owned);
        context.reporter.problem(Problem { severity, what: display(path), why, hint });
    };
    let older = Some("an older snapshot may hold a sound version");
    let examined = examine(path, context.reporter)?;
    for found in &examined.findings {
        match found {
            Finding::Unsound(why) => {
                tell(Severity::Restore, format!("restored as it was captured, but not sound: {why}"), older);
            }
            Finding::Orphans(n) => {
                let why = format!("restored exactly, with {n} rows that refer to rows which are not there");
                tell(Severity::Note, why, None);
            }
            Finding::CantTell(why) => {
                tell(Severity::Note, format!("restored exactly, but it could not be checked: {why}"), None);
            }
        }
    }
    let recorded = part.node.database.as_ref().and_then(|database| database.facts.as_ref());
    if let (Some(recorded), Some(facts)) = (recorded, &examined.facts) {
        let differences = recorded.differences(facts, SHOWN_DIFFERENCES);
        if !differences.is_empty() {
            let why = format!("restored, but it is not what was recorded at its capture: {}", differences.join("; "));
            tell(Severity::Restore, why, older);
            return Ok(false);
        }
    }
    Ok(examined.is_sound())
}

/// Checks a complete database before it takes the place of one that is there. `path` is where it is now, `place` where
/// it goes.
///
/// # Errors
/// [`Error::Refused`] if it is not sound, unless that is forced; [`Error::Interrupted`].
pub(super) fn check_sound(context: &Context<'_>, path: &Path, place: &Path) -> Result<()> {
    if context.options.force || context.options.exact {
        return Ok(());
    }
    for found in examine(path, context.reporter)?.findings {
        match found {
            Finding::Orphans(_) => {}
            Finding::Unsound(why) => {
                return Err(Error::refused(
                    format!("the database in the snapshot is not sound, and what is there was left: {why}"),
                    "an older snapshot may hold a sound version; --force restores this one, and to another directory \
                     it comes without",
                ));
            }
            Finding::CantTell(why) => {
                let why = format!("it could not be checked whether what replaces it is sound: {why}");
                context.reporter.warn(Severity::Note, display(place), why);
            }
        }
    }
    Ok(())
}

/// Reads a database back; one that is not as it was captured is removed.
fn prove(context: &Context<'_>, part: &Part) -> Result<()> {
    let path = part.path();
    let (Some(database), Some(file)) = (&part.node.database, part.folder.open_file(&part.node.name)?) else {
        return Err(Error::file("read back", path, io::ErrorKind::NotFound));
    };
    forget_cached(&file, true);
    let hash = read_back(context, &file, &path, part.node.size.unwrap_or(0))?;
    let is_captured = hash.as_bytes()[..] == context.repo.read_map(&database.map)?.0.file_hash[..];
    if is_captured { Ok(()) } else { Err(disprove(part)) }
}
