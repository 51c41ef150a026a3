//! `snapshot copy`

use std::sync::Arc;

use serde_json::{Value, json};

use snapshot::error::{Error, Result};
use snapshot::job::copy::{self, Summary};
use snapshot::repo::{Filter, Named, Repository};

use super::args::Copy;
use super::context::Context;
use super::location::Location;
use super::output::{Out, count, document, size};
use super::secrets;

/// Copies snapshots from another repository into this one.
pub fn run(context: &Context, args: Copy, out: &mut Out) -> Result<()> {
    let to = context.open()?;
    let from = open_source(context, &args)?;
    let snapshots = choose(context, &from, &args)?;
    let summary = copy::run(&from, &to.repo, snapshots, args.compression, &context.reporter)?;
    if context.global.json {
        return out.json(&context.with_usage(to_json(&summary, context.display.seconds())));
    }
    if context.global.quiet {
        return Ok(());
    }
    for copied in &summary.copied {
        let (from, to) = (copied.from.short(), copied.to.short());
        out.line(format!("snapshot {from} is {to} there, generation {}", copied.generation))?;
    }
    let skipped = match summary.skipped {
        0 => String::new(),
        n => format!(" ({} there already)", count(n, "snapshot was", "snapshots were")),
    };
    out.line(format!(
        "copied {}{skipped}; new {}, stored {} in {:.1} s",
        count(summary.copied.len() as u64, "snapshot", "snapshots"),
        size(summary.bytes_new),
        size(summary.bytes_stored),
        context.display.seconds()
    ))
}

/// Opens the repository that is copied from: by its own secret, or else by the one that opened the target.
fn open_source(context: &Context, args: &Copy) -> Result<Arc<Repository>> {
    let from = args.from_repo.clone().or_else(|| context.env.get("SNAPSHOT_FROM_REPO"));
    let location = Location::resolve_named(from.as_deref(), &context.env)?;
    let own = secrets::given_for_source(args, &context.env);
    Ok(context.open_at(&location, own)?.repo)
}

fn choose(context: &Context, from: &Repository, args: &Copy) -> Result<Vec<Named>> {
    let filter = Filter::from(args.filters.clone());
    if args.snapshots.is_empty() {
        return Ok(filter.apply(from.snapshots(&context.reporter)?));
    }
    let mut chosen: Vec<Named> = Vec::new();
    for text in &args.snapshots {
        let selected = from.select(text, &filter, &context.reporter)?;
        if !selected.sub_path.is_empty() {
            return Err(Error::Usage(format!("only whole snapshots can be copied, not \"{text}\"")));
        }
        if !chosen.iter().any(|c| c.id == selected.named.id) {
            chosen.push(selected.named);
        }
    }
    Ok(chosen)
}

fn to_json(summary: &Summary, seconds: f64) -> Value {
    let one =
        |c: &copy::Copied| json!({"from": c.from.to_string(), "to": c.to.to_string(), "generation": c.generation});
    document(json!({
        "copied": summary.copied.iter().map(one).collect::<Vec<_>>(),
        "skipped": summary.skipped,
        "bytes_new": summary.bytes_new,
        "bytes_stored": summary.bytes_stored,
        "seconds": seconds,
    }))
    .into()
}
