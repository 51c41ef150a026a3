//! `snapshot restore`

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Map, Value, json};

use snapshot::error::Result;
use snapshot::job::restore::{self, Action, Options, PlannedItem, Summary};
use snapshot::repo::Selected;

use super::args::{Overwrite, Restore};
use super::context::Context;
use super::output::{Out, clean_path, count, document, put_path, size};
use super::seen::Seen;

/// What every way to name the newest snapshot begins with: no id does.
const LATEST: &str = "latest";

/// Restores a snapshot, or a part of one.
pub fn run(context: &Context, args: Restore, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    if args.snapshot.starts_with(LATEST) {
        let mut seen = Seen::compare(context, &session.repo)?;
        seen.learn(&session.repo.read_snapshots()?.0);
    }
    let selected = session.repo.select(&args.snapshot, &args.filters.into(), &context.reporter)?;
    let options = Options {
        target: args.target,
        include: args.include,
        exclude: args.exclude,
        overwrite: args.overwrite.map(|when| match when {
            Overwrite::Always => restore::Overwrite::Always,
            Overwrite::IfChanged => restore::Overwrite::IfChanged,
            Overwrite::Never => restore::Overwrite::Never,
        }),
        force: args.force,
        dry_run: args.dry_run,
        verify: args.verify,
    };
    let summary = restore::run(&session.repo, &selected, &options, &context.reporter)?;
    if context.global.json {
        return out.json(&to_json(&selected, &options, &summary, context.display.seconds()));
    }
    for item in &summary.planned {
        out.line(format!("{:<8}{}", word(item.action), clean_path(item.path.as_os_str().as_bytes())))?;
    }
    if context.global.quiet {
        return Ok(());
    }
    out.line(to_text(&selected, &options, &summary, context.display.seconds()))
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Replace => "replace",
        Action::Keep => "keep",
        Action::Omit => "omit",
    }
}

fn to_json(selected: &Selected, options: &Options, summary: &Summary, seconds: f64) -> Value {
    let mut object = document(json!({
        "snapshot_id": selected.named.id.to_string(),
        "files": summary.files,
        "directories": summary.directories,
        "databases": summary.databases,
        "others": summary.others,
        "bytes": summary.bytes,
        "skipped": summary.skipped,
        "verified_databases": summary.verified_databases,
        "seconds": seconds,
        "dry_run": options.dry_run,
    }));
    put_path(&mut object, "target", options.target.as_os_str().as_bytes());
    if options.dry_run {
        object.insert("planned".into(), summary.planned.iter().map(planned_json).collect());
    }
    object.into()
}

fn planned_json(item: &PlannedItem) -> Value {
    let mut object = Map::new();
    put_path(&mut object, "path", item.path.as_os_str().as_bytes());
    object.insert("action".into(), json!(word(item.action)));
    object.insert("bytes".into(), json!(item.bytes));
    object.into()
}

fn to_text(selected: &Selected, options: &Options, summary: &Summary, seconds: f64) -> String {
    let mut parts = vec![count(summary.files, "file", "files"), count(summary.directories, "directory", "directories")];
    for (n, one, many) in [(summary.databases, "database", "databases"), (summary.others, "other", "others")] {
        if n > 0 {
            parts.push(count(n, one, many));
        }
    }
    parts.push(size(summary.bytes));
    let mut text = format!(
        "{} {} from snapshot {} to {} in {seconds:.1} s",
        if options.dry_run { "would restore" } else { "restored" },
        parts.join(", "),
        selected.named.id.short(),
        target(&options.target),
    );
    if summary.skipped > 0 {
        text += &format!("; {} left as they are", count(summary.skipped, "name", "names"));
    }
    if summary.verified_databases > 0 {
        text += &format!("; {} verified", count(summary.verified_databases, "database", "databases"));
    }
    text
}

fn target(path: &Path) -> String {
    clean_path(path.as_os_str().as_bytes())
}
