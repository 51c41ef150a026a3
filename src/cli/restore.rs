//! `snapshot restore`

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use snapshot::error::{Error, Result};
use snapshot::format::tree::NodeKind;
use snapshot::job::look;
use snapshot::job::restore::{self, Action, Kept, Options, PlannedItem, Summary};
use snapshot::repo::Selected;
use snapshot::report::Severity;
use snapshot::source::marker::MARKER;
use snapshot::source::owners::Ownership;

use super::args::{Filters, Overwrite, Owners, Restore};
use super::context::{Context, Session};
use super::keep;
use super::load;
use super::location::Location;
use super::nodes;
use super::output::{Out, clean_path, count, document, put_path, size};
use super::secrets;
use super::seen::Seen;

/// What every way to name the newest snapshot begins with: no id does.
const LATEST: &str = "latest";

/// Restores a snapshot, or a part of one, or takes a restore back.
pub fn run(context: &Context, args: Restore, out: &mut Out) -> Result<()> {
    let session = context.open_indexed();
    let target = args.target.clone().unwrap_or_default();
    if args.undo
        && let Some((copy, made)) = restore::newest_copy(&target)?
        && session.as_ref().ok().is_none_or(|session| {
            keep::newest(context, &session.repo, &target).map_or(true, |kept| kept.named.snapshot.time.secs < made)
        })
    {
        return undo_copy(context, &copy, args, out);
    }
    let session = session?;
    let (snapshot, keeps) = (args.snapshot.clone(), !args.no_safety);
    if snapshot.as_ref().is_some_and(|snapshot| snapshot.starts_with(LATEST)) {
        let mut seen = Seen::compare(context, &session.repo)?;
        seen.learn(&session.repo.read_snapshots()?.0);
    }
    if let (Some(url), Some(snapshot)) = (&args.postgres, &snapshot) {
        let options = load::options(url, &args)?;
        let selected = session.repo.select(snapshot, &args.filters.into(), &context.reporter)?;
        return load::run(context, &session.repo, &selected, &options, out);
    }
    let (filters, mut options) = options(context, args)?;
    let selected = match snapshot {
        Some(snapshot) => session.repo.select(&snapshot, &filters.into(), &context.reporter)?,
        None => undo(context, &session, &mut options)?,
    };
    let keep = |before: &restore::Before| keep::take(context, &session.repo, &options.target, before);
    let keep: Option<&restore::Keep<'_>> = if keeps { Some(&keep) } else { None };
    let summary = restore::run_keeping(&session.repo, &selected, &options, keep, &context.reporter)?;
    if let Kept::Copy(path, why) = &summary.kept {
        let why = format!("no snapshot of what was there could be taken, so its files are kept here: {why}");
        context.reporter.warn(Severity::Note, path.display(), why);
    }
    if context.global.json {
        let document = to_json(&selected, &options, &summary, context.display.seconds());
        return out.json(&context.with_usage(document));
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

/// Takes a restore back whose files were kept in the target.
fn undo_copy(context: &Context, copy: &Path, args: Restore, out: &mut Out) -> Result<()> {
    let (_, options) = options(context, args)?;
    if options.dry_run {
        return Err(Error::refused(
            format!("what would be done with {} can't be shown", copy.display()),
            "its files are what --undo would put back: look at them",
        ));
    }
    let summary = restore::undo_copy(copy, &options, &context.reporter)?;
    let Kept::Copy(kept, _) = &summary.kept else { return Ok(()) };
    if context.global.json {
        let mut object = document(json!({
            "files": summary.files,
            "deleted": summary.deleted,
            "kept": {"copy": kept.to_string_lossy()},
            "seconds": context.display.seconds(),
        }));
        put_path(&mut object, "target", options.target.as_os_str().as_bytes());
        put_path(&mut object, "copy", copy.as_os_str().as_bytes());
        return out.json(&object.into());
    }
    if context.global.quiet {
        return Ok(());
    }
    out.line(format!(
        "put back {} from {}, {} deleted; what was there is in {} (--undo)",
        count(summary.files, "name", "names"),
        clean_path(copy.as_os_str().as_bytes()),
        count(summary.deleted, "name", "names"),
        clean_path(kept.as_os_str().as_bytes()),
    ))
}

/// Sets the options to take the last restore into a target back; returns what was there before it.
fn undo(context: &Context, session: &Session, options: &mut Options) -> Result<Selected> {
    let selected = keep::newest(context, &session.repo, &options.target)?;
    let mut mark = Vec::new();
    look::dump(&session.repo, &selected, MARKER, &mut mark, &context.collecting_reporter())?;
    options.remove = restore::parse_made(&mark);
    (options.in_place, options.is_undo, options.verify_content) = (true, true, true);
    Ok(selected)
}

/// Options of a restore to a place of this machine: what must not be harmed.
pub fn place_options(context: &Context, target: PathBuf) -> Result<Options> {
    let location = context.location()?;
    let given = secrets::given(&context.global, &context.env);
    let mut keys: Vec<_> = given.iter().filter_map(|given| given.file().map(Path::to_path_buf)).collect();
    if let Location::Default { key_file, .. } = &location {
        keys.push(key_file.clone());
    }
    let repository = location.path().cloned();
    Ok(Options { target, home: context.env.home(), repository, keys, ..Options::default() })
}

fn options(context: &Context, args: Restore) -> Result<(Filters, Options)> {
    if matches!(args.owner, Owners::None) && !(args.map_user.is_empty() && args.map_group.is_empty()) {
        return Err(Error::Usage("--owner none leaves nobody to be mapped by --map-user and --map-group".into()));
    }
    let options = Options {
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
        ..place_options(context, args.target.unwrap_or_default())?
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
        "kept": match &summary.kept {
            Kept::Nothing => Value::Null,
            Kept::Snapshot(id) => json!({"snapshot_id": id.to_string()}),
            Kept::Copy(path, _) => json!({"copy": path.to_string_lossy()}),
        },
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

/// What was restored, for people.
pub fn to_text(selected: &Selected, options: &Options, summary: &Summary, seconds: f64) -> String {
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
    match &summary.kept {
        Kept::Nothing => {}
        Kept::Snapshot(id) => text += &format!("; what was there is in snapshot {} (--undo)", id.short()),
        Kept::Copy(path, _) => {
            text += &format!("; what was there is in {} (--undo)", clean_path(path.as_os_str().as_bytes()));
        }
    }
    if summary.resumed {
        text += "; went on with a restore that had not ended";
    }
    text
}
