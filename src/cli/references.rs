//! Whether rows and files agree: the part that `create --check-references` and `check --references` share.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::check::references::{Checked, check};
use snapshot::repo::{Filter, Named, Repository};
use snapshot::report::Severity;

use super::context::Context;
use super::output::{clean_path, count};

/// Checks the snapshots of these names; without one, the newest of each source. Files that are missing
/// are reported as `severity`. The index must be loaded.
pub fn run(
    context: &Context,
    repo: &Arc<Repository>,
    names: &[String],
    scratch: &Path,
    severity: Severity,
) -> Result<Vec<Checked>> {
    let reporter = &context.reporter;
    let snapshots: Vec<Named> = if names.is_empty() {
        Filter { latest: Some(1), ..Filter::default() }.apply(repo.snapshots(reporter)?)
    } else {
        let select = |name: &String| Ok(repo.select(name, &Filter::default(), reporter)?.named);
        names.iter().map(select).collect::<Result<_>>()?
    };
    check(repo, &snapshots, scratch, severity, reporter)
}

/// A line about an application in a snapshot.
pub fn to_text(checked: &Checked) -> String {
    let Checked { snapshot, path, preset, references, dangling, orphans, is_elsewhere } = checked;
    let place = if path.is_empty() { "/".into() } else { clean_path(path) };
    let found = if *is_elsewhere {
        "the files are kept elsewhere".to_owned()
    } else {
        let referred = count(*references, "file", "files");
        format!("rows refer to {referred}, {dangling} of them missing; no row refers to {orphans} others")
    };
    format!("{preset} in {place} of snapshot {}: {found}", snapshot.short())
}

/// The same for programs.
pub fn to_json(checked: &Checked) -> Value {
    let Checked { snapshot, path, preset, references, dangling, orphans, is_elsewhere } = checked;
    json!({
        "snapshot_id": snapshot.to_string(),
        "path": String::from_utf8_lossy(path),
        "preset": preset,
        "references": references,
        "dangling": dangling,
        "orphans": orphans,
        "elsewhere": is_elsewhere,
    })
}
