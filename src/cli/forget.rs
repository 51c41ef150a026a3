//! `snapshot forget` and `snapshot undo-forget`

use serde_json::json;

use snapshot::error::{Error, Result};
use snapshot::id::SnapshotId;
use snapshot::job::forget;
use snapshot::repo::Filter;

use super::args::Forget;
use super::context::Context;
use super::output::{Out, document};
use super::seen::Seen;

/// Forgets snapshots.
pub fn run(context: &Context, args: &Forget, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let mut ids: Vec<SnapshotId> = Vec::new();
    // All names first: a wrong one must not leave half of them forgotten.
    for text in &args.snapshots {
        let selected = session.repo.select(text, &Filter::default(), &context.reporter)?;
        if !selected.sub_path.is_empty() {
            return Err(Error::Usage(format!("only whole snapshots can be forgotten, not \"{text}\"")));
        }
        if !ids.contains(&selected.named.id) {
            ids.push(selected.named.id);
        }
    }
    let mut seen = Seen::compare(context, &session.repo)?;
    let done = forget::forget(&session.repo, &ids, &context.reporter)?;
    seen.settle(&session.repo)?;
    show(context, out, "forgotten", "forgot", &done)
}

/// Takes forgotten snapshots back.
pub fn undo(context: &Context, args: &Forget, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let done = forget::undo_forget(&session.repo, &args.snapshots, &context.reporter)?;
    show(context, out, "restored", "took back", &done)
}

fn show(context: &Context, out: &mut Out, field: &str, verb: &str, ids: &[SnapshotId]) -> Result<()> {
    if context.global.json {
        let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
        return out.json(&document(json!({field: names})).into());
    }
    if context.global.quiet {
        return Ok(());
    }
    ids.iter().try_for_each(|id| out.line(format!("{verb} snapshot {}", id.short())))
}
