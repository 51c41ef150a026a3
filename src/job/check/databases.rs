//! Rebuilding databases, letting SQLite look at them, and comparing what is in them with what was recorded when they
//! were captured.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::structure::FoundDatabase;
use super::{damage, note};
use crate::error::{Error, Result};
use crate::repo::Repository;
use crate::report::Reporter;
use crate::source::scratch::Scratch;
use crate::source::sqlite::examine::{Finding, examine};

/// Differences to the record that are shown.
const MAX_DIFFERENCES: usize = 5;

/// Rebuilds each database below `scratch`, one at a time, and has SQLite check it. Returns how many were rebuilt.
pub(super) fn check(
    repo: &Repository,
    databases: &[FoundDatabase],
    scratch: &Path,
    reporter: &Reporter,
) -> Result<u64> {
    let mut rebuilt = 0;
    let scratch = Scratch::new(scratch)?;
    let path = scratch.path().join("data.db");
    for database in databases {
        reporter.check_interrupt()?;
        let name = database.name();
        reporter.current(|| name.clone());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|e| Error::file("create", &path, e))?;
        match repo.materialise(&database.map, &file, reporter) {
            Ok(_) => {
                rebuilt += 1;
                judge(database, &path, reporter)?;
            }
            // The disk that it is rebuilt on: says nothing about the repository.
            Err(Error::File { action, error, .. }) => {
                return Err(Error::File { action, path, error });
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
            let hint =
                "its pages are those that were captured, so the record is wrong: look at it with the application";
            damage(reporter, &record.name(), why, hint);
        }
    }
    Ok(())
}
