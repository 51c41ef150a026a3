//! `snapshot restore`

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Map, Value, json};

use snapshot::error::{Error, Result};
use snapshot::format::tree::NodeKind;
use snapshot::job::restore::{self, Action, Options, PlannedItem, Summary};
use snapshot::repo::Selected;
use snapshot::source::owners::Ownership;

use super::args::{Filters, Overwrite, Owners, Restore};
use super::context::Context;
use super::load;
use super::location::Location;
use super::nodes;
use super::output::{Out, clean_path, count, document, put_path, size};
use super::secrets;
use super::seen::Seen;

/// What every way to name the newest snapshot begins with: no id does.
const LATEST: &str = "latest";

/// Restores a snapshot, or a part of one.
pub fn run(context: &Context, args: Restore, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let snapshot = args.snapshot.clone();
    let database = args.postgres.as_deref().map(|url| load::options(url, &args)).transpose()?;
    if snapshot.starts_with(LATEST) {
        let mut seen = Seen::compare(context, &session.repo)?;
        seen.learn(&session.repo.read_snapshots()?.0);
    }
    if let Some(options) = database {
        let selected = session.repo.select(&snapshot, &args.filters.into(), &context.reporter)?;
        return load::run(context, &session.repo, &selected, &options, out);
    }
    let (filters, options) = options(context, args)?;
    let selected = session.repo.select(&snapshot, &filters.into(), &context.reporter)?;
    let summary = restore::run(&session.repo, &selected, &options, &context.reporter)?;
    if context.global.json {
        return out.json(&to_json(&selected, &options, &summary, context.display.seconds()));
    }
    for item in &summary.planned {
        let bytes = match item.kind {
            NodeKind::File | NodeKind::Database => size(item.bytes),
            _ => String::new(),
        };
        let path = item.path.as_os_str().as_bytes();
        out.text(format!("{:<8} {bytes:>10}  ", word(item.action)))?;
        if out.is_terminal() { out.line(clean_path(path))? } else { out.line(path)? }
    }
    if context.global.quiet {
        return Ok(());
    }
    out.line(to_text(&selected, &options, &summary, context.display.seconds()))
}

fn options(context: &Context, args: Restore) -> Result<(Filters, Options)> {
    if matches!(args.owner, Owners::None) && !(args.map_user.is_empty() && args.map_group.is_empty()) {
        return Err(Error::Usage("--owner none leaves nobody to be mapped by --map-user and --map-group".into()));
    }
    let location = context.location()?;
    let given = secrets::given(&context.global, &context.env);
    let mut keys: Vec<_> = given.iter().filter_map(|given| given.file().map(Path::to_path_buf)).collect();
    if let Location::Default { key_file, .. } = &location {
        keys.push(key_file.clone());
    }
    let options = Options {
        target: args.target.unwrap_or_default(),
        include: args.include,
        exclude: args.exclude,
        overwrite: args.overwrite.map(|when| match when {
            Overwrite::Always => restore::Overwrite::Always,
            Overwrite::IfChanged => restore::Overwrite::IfChanged,
            Overwrite::Never => restore::Overwrite::Never,
        }),
        in_place: args.in_place,
        delete: args.delete,
        verify_content: args.verify_content,
        force: args.force,
        dry_run: args.dry_run,
        verify: args.verify,
        ownership: match args.owner {
            Owners::Names => Ownership::Names,
            Owners::Numbers => Ownership::Numbers,
            Owners::None => Ownership::None,
        },
        map_users: args.map_user,
        map_groups: args.map_group,
        home: context.env.home(),
        repository: Some(location.path().clone()),
        keys,
    };
    Ok((args.filters, options))
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Replace => "replace",
        Action::Keep => "keep",
        Action::Metadata => "metadata",
        Action::Delete => "delete",
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
        "bytes_fetched": summary.fetched,
        "bytes_reused": summary.reused,
        "skipped": summary.skipped,
        "metadata": summary.metadata,
        "deleted": summary.deleted,
        "resumed": summary.resumed,
        "verified_files": summary.verified_files,
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
    object.insert("type".into(), json!(nodes::word(item.kind)));
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
    let would = options.dry_run;
    let mut text = format!(
        "{} {} from snapshot {} to {} in {seconds:.1} s",
        if would { "would restore" } else { "restored" },
        parts.join(", "),
        selected.named.id.short(),
        clean_path(options.target.as_os_str().as_bytes()),
    );
    if summary.reused > 0 {
        text += &format!("; {} fetched, {} reused", size(summary.fetched), size(summary.reused));
    }
    if summary.skipped > 0 {
        text += &format!("; {} left as they are", count(summary.skipped, "name", "names"));
    }
    if summary.metadata > 0 {
        text += &format!("; attributes of {} set", count(summary.metadata, "name", "names"));
    }
    if summary.deleted > 0 {
        let done = if would { "would be deleted" } else { "deleted" };
        text += &format!("; {} {done}", count(summary.deleted, "name", "names"));
    }
    let (files, databases) = (summary.verified_files, summary.verified_databases);
    let of = [(files, "file", "files"), (databases, "database", "databases")];
    let of: Vec<_> = of.iter().filter(|(n, ..)| *n > 0).map(|(n, one, many)| count(*n, one, many)).collect();
    if !of.is_empty() {
        text += &format!("; {} verified", of.join(" and "));
    }
    if summary.resumed {
        text += "; went on with a restore that had not ended";
    }
    text
}
