//! Keeping what a restore replaces: a snapshot of it, under a source name of its own, taken before anything is changed;
//! and finding it again for `restore --undo`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapshot::error::{Error, Result};
use snapshot::id::SnapshotId;
use snapshot::job::{create, restore};
use snapshot::repo::{BEFORE_RESTORE, Named, Repository, Selected, host, split_path};
use snapshot::report::Severity;

use super::context::Context;

/// Its tag.
const TAG: &str = "before-restore";
/// So many paths are named by such a snapshot; it holds them all.
const NAMED_PATHS: usize = 100;
/// Writers of a database that is replaced by force are held up for so long at most.
const MAX_LOCK: Duration = Duration::from_secs(30);
const LEVEL: i32 = 3;

/// The name of the source that snapshots of what was in a target belong to.
fn source_of(target: &Path) -> String {
    format!("{BEFORE_RESTORE}{}", target.display())
}

/// The target's own path, links resolved, by which it is found again.
fn canonical(target: &Path) -> Result<PathBuf> {
    target.canonicalize().map_err(|e| Error::file("find", target, e))
}

/// Takes a snapshot of what is about to change.
pub fn take(context: &Context, repo: &Arc<Repository>, target: &Path, before: &restore::Before) -> Result<SnapshotId> {
    let absolute = std::path::absolute(target).map_err(|e| Error::file("find", target, e))?;
    let canonical = canonical(target)?;
    let in_canonical = |path: PathBuf| path.strip_prefix(&absolute).map(|below| canonical.join(below)).unwrap_or(path);
    let replaced: Vec<_> = before.replaced().map(in_canonical).collect();
    let named = replaced.iter().take(NAMED_PATHS).cloned().collect();
    let options = create::Options {
        paths: replaced.into_iter().chain([restore::Before::mark(&canonical)]).collect(),
        named: Some(named),
        stdin: None,
        postgres: vec![],
        preset: create::PresetChoice::None,
        host: None,
        source: Some(source_of(&canonical)),
        tags: vec![TAG.into()],
        pin: false,
        time: None,
        excludes: vec![],
        exclude_files: vec![],
        exclude_caches: false,
        one_file_system: false,
        dry_run: false,
        level: LEVEL,
        spool_dir: context.scratch_dir()?,
        max_lock: MAX_LOCK,
    };
    context.display.detail(|| format!("keeping what is in {} now", target.display()));
    // What it meets is no problem of the restore.
    let reporter = context.collecting_reporter();
    let summary = create::run(repo, &options, &reporter)?;
    if let Some(problem) = reporter.problems().into_iter().find(|p| p.severity == Severity::Source) {
        return Err(Error::refused(format!("{}: {}", problem.what, problem.why), "see why it can't be read"));
    }
    summary.id.ok_or_else(|| Error::refused("no snapshot was made", "report this"))
}

/// The newest snapshot of what was in a target before something was restored there, and that target in it.
///
/// # Errors
/// [`Error::Refused`] if there is none.
pub fn newest(context: &Context, repo: &Repository, target: &Path) -> Result<Selected> {
    let canonical = canonical(target)?;
    let source = source_of(&canonical);
    let newest: Option<Named> = repo.newest(&host(), &source, &context.reporter)?;
    let named = newest.ok_or_else(|| {
        Error::refused(
            format!("the repository has nothing of what was in {} before a restore", canonical.display()),
            "`snapshot list --tag before-restore` shows what was kept of other directories",
        )
    })?;
    Ok(Selected { named, sub_path: split_path(canonical.as_os_str().as_encoded_bytes()) })
}
