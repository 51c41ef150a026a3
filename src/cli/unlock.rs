//! `snapshot unlock`

use serde_json::json;

use snapshot::error::Result;
use snapshot::job::unlock;

use super::args::Unlock;
use super::context::Context;
use super::output::{Out, document};

/// Clears away sessions that ended without saying so.
pub fn run(context: &Context, args: &Unlock, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let summary = unlock::run(&session.repo, args.remove_all, &context.reporter)?;
    if context.global.json {
        return out.json(&document(json!({"removed": summary.removed, "running": summary.running})).into());
    }
    if context.global.quiet {
        return Ok(());
    }
    for removed in &summary.removed {
        out.line(format!("cleared away: {removed}"))?;
    }
    for running in &summary.running {
        out.line(format!("left, since it may be running: {running}"))?;
    }
    if summary.removed.is_empty() && summary.running.is_empty() {
        out.line("nothing to clear away")?;
    }
    Ok(())
}
