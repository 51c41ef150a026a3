//! `snapshot restore --postgres`

use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::load::{self, Options, Summary};
use snapshot::repo::{Repository, Selected};
use snapshot::source::postgres::Clean;

use super::args::{Owners, Restore};
use super::context::Context;
use super::output::{Out, clean_path, document, put_path, size};
use super::parse;

/// Loads a database of a snapshot into a server.
pub fn run(context: &Context, repo: &Repository, selected: &Selected, options: &Options, out: &mut Out) -> Result<()> {
    let summary = load::run(repo, selected, options, &context.reporter)?;
    let seconds = context.display.seconds();
    if context.global.json {
        return out.json(&context.with_usage(to_json(selected, options, &summary, seconds)));
    }
    if context.global.quiet {
        return Ok(());
    }
    let done = if options.dry_run { "would load" } else { "loaded" };
    let how = match (summary.created, options.clean) {
        (true, _) => ", newly made",
        (false, Clean::Yes) => ", in place of what was there",
        (false, Clean::No) => "",
    };
    let roles = if summary.globals { ", after the roles" } else { "" };
    out.line(format!(
        "{done} {} ({}) from snapshot {} into {}{how}{roles} in {seconds:.1} s",
        clean_path(&summary.path),
        size(summary.bytes),
        selected.named.id.short(),
        clean_path(summary.target.as_bytes()),
    ))
}

/// What was asked for.
pub fn options(url: &str, args: &Restore) -> Result<Options> {
    Ok(Options {
        url: parse::postgres(url)?,
        database: args.postgres_database.as_ref().map(|name| name.as_bytes().to_vec()),
        clean: if args.clean { Clean::Yes } else { Clean::No },
        create: args.create,
        globals: args.globals,
        owners: !matches!(args.owner, Owners::None),
        dry_run: args.dry_run,
    })
}

fn to_json(selected: &Selected, options: &Options, summary: &Summary, seconds: f64) -> Value {
    let mut object = document(json!({
        "snapshot_id": selected.named.id.to_string(),
        "postgres": summary.target,
        "bytes": summary.bytes,
        "created": summary.created,
        "globals": summary.globals,
        "seconds": seconds,
        "dry_run": options.dry_run,
    }));
    put_path(&mut object, "path", &summary.path);
    object.into()
}
