//! Rebuilding databases, letting SQLite look at them, and comparing what is in them with what was recorded when they
//! were captured.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::structure::FoundDatabase;
use super::{damage, note};
use crate::crypto;
use crate::error::{Error, Result};
use crate::id::hex;
use crate::repo::Repository;
use crate::report::Reporter;
use crate::source::sqlite::examine::{Finding, examine};

/// Differences to the record that are shown.
const MAX_DIFFERENCES: usize = 5;

/// A file that is deleted when dropped.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
        let path = folder.join(format!("snapshot-check-{}.db", hex(&crypto::random::<16>()?)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        Ok(Self { file: file.map_err(|e| Error::file("create", &path, e))?, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Rebuilds each database below `scratch`, one at a time, and has SQLite check it. Returns how many were rebuilt.
pub(super) fn check(
    repo: &Repository,
    databases: &[FoundDatabase],
    scratch: &Path,
    reporter: &Reporter,
) -> Result<u64> {
    let mut rebuilt = 0;
    for database in databases {
        reporter.check_interrupt()?;
        let name = database.name();
        reporter.current(|| name.clone());
        let scratch = Scratch::new(scratch)?;
        match repo.materialise(&database.map, &scratch.file, reporter) {
            Ok(_) => {
                rebuilt += 1;
                judge(database, &scratch.path, reporter)?;
            }
            // The disk that it is rebuilt on: says nothing about the repository.
            Err(Error::File { action, error, .. }) => {
                return Err(Error::File { action, path: scratch.path.clone(), error });
            }
            Err(e) => {
                let error = repo.only_this_object(e)?;
                let why = format!("it can't be rebuilt: {error}; this generation of it can't be restored");
                let hint =
                    "run `snapshot check --read-data` to see which object is to blame, and restore another generation";
                damage(reporter, &name, why, hint);
            }
        }
    }
    Ok(rebuilt)
}

/// Reports what SQLite says of a database that equals the captured one byte for byte, and whether that is what was
/// recorded of it.
fn judge(database: &FoundDatabase, path: &Path, reporter: &Reporter) -> Result<()> {
    let name = database.name();
    let hint = "it was so when it was captured: repair it at the source, or look for an older generation that is sound";
    let examined = examine(path, reporter)?;
    for found in &examined.findings {
        match found {
            Finding::Unsound(why) => damage(reporter, &name, format!("SQLite finds it damaged: {why}"), hint),
            Finding::Orphans(n) => {
                note(reporter, &name, format!("{n} rows refer to rows that are not there (foreign_key_check)"), hint);
            }
            Finding::CantTell(why) => {
                let hint = "let the application itself check it";
                note(reporter, &name, format!("SQLite can't check it here: {why}"), hint);
            }
        }
    }
    let Some(facts) = &examined.facts else { return Ok(()) };
    for record in &database.records {
        let differences = record.facts.as_ref().map(|recorded| recorded.differences(facts, MAX_DIFFERENCES));
        if let Some(differences) = differences.filter(|differences| !differences.is_empty()) {
            let why = format!("it is not what was recorded at its capture: {}", differences.join("; "));
            let hint = "its pages are those that were captured, so the record is wrong: look at it with the application";
            damage(reporter, &record.name(), why, hint);
        }
    }
    Ok(())
}
