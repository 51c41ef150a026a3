//! `snapshot repair`

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::repair::{Summary, repair_index, repair_packs};

use super::args::Repair;
use super::context::Context;
use super::output::{Out, count, document};

/// Mends the index.
pub fn run(context: &Context, args: &Repair, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let summary = match args {
        Repair::Index => repair_index(&session.repo, &context.reporter)?,
        Repair::Packs => repair_packs(&session.repo, &context.reporter)?,
    };
    if context.global.json {
        return out.json(&to_json(&summary));
    }
    if context.global.quiet {
        return Ok(());
    }
    out.line(to_text(&summary))
}

fn to_json(summary: &Summary) -> Value {
    document(json!({
        "packs": summary.packs,
        "blobs": summary.blobs,
        "index_files_replaced": summary.index_files_replaced,
        "config_repaired": summary.config_repaired,
        "unreadable_packs": summary.unreadable_packs,
        "damaged_blobs": summary.damaged_blobs,
    }))
    .into()
}

fn to_text(summary: &Summary) -> String {
    let mut text = format!(
        "the index was written anew: {}, {}, in place of {}",
        count(summary.packs, "pack", "packs"),
        count(summary.blobs, "blob", "blobs"),
        count(summary.index_files_replaced, "index file", "index files"),
    );
    if summary.config_repaired {
        text += "; the config was written anew";
    }
    if summary.unreadable_packs > 0 {
        text += &format!("; {} left out, unreadable", count(summary.unreadable_packs, "pack", "packs"));
    }
    if summary.damaged_blobs > 0 {
        text += &format!("; {} left out, damaged", count(summary.damaged_blobs, "blob", "blobs"));
    }
    text
}
