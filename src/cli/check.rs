//! `snapshot check`

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::check::{self, Options, ReadData, Summary};
use snapshot::report::{Problem, Severity};

use super::args::Check;
use super::context::Context;
use super::drill::{self, Outcome};
use super::output::{Out, count, document, size, steps_line};
use super::progress::problem_json;
use super::references;
use super::seen::Seen;

/// Looks for damage.
pub fn run(context: &Context, args: &Check, out: &mut Out) -> Result<()> {
    let session = context.open_as_stored()?;
    let read_data = if args.read_data { ReadData::All } else { args.read_data_subset.unwrap_or(ReadData::None) };
    let scratch = args.scratch.clone().map_or_else(|| context.scratch_dir(), Ok)?;
    let memory = context.cache_dir()?;
    let options = Options { read_data, databases: args.databases, scratch: scratch.clone(), memory };
    let mut seen = Seen::compare(context, &session.repo)?;
    let summary = check::run(&session.repo, &options, &context.reporter)?;
    seen.learn(&session.repo.read_snapshots()?.0);
    let drills = match &args.restore_drill {
        Some(names) => drill::run(context, &session.repo, names, &scratch)?,
        None => Vec::new(),
    };
    let references = match &args.references {
        Some(names) => references::run(context, &session.repo, names, &scratch, Severity::Damage)?,
        None => Vec::new(),
    };
    // What was met on the way, while the index was loaded, counts as well.
    let problems = context.reporter.problems();
    if context.global.json {
        let mut document = to_json(&summary, &problems, &drills, context.display.seconds());
        document["references"] = references.iter().map(references::to_json).collect();
        return out.json(&context.with_usage(document));
    }
    let damaged = damages(&problems);
    if context.global.quiet && damaged == 0 {
        return Ok(());
    }
    drills.iter().try_for_each(|outcome| out.line(drill::to_text(outcome)))?;
    references.iter().try_for_each(|checked| out.line(references::to_text(checked)))?;
    out.line(to_text(&summary, damaged, context.display.seconds()))?;
    steps_line(out, "what to do", &check::what_to_do(&problems))
}

fn damages(problems: &[Problem]) -> u64 {
    problems.iter().filter(|p| p.severity != Severity::Note).count() as u64
}

fn to_text(summary: &Summary, damaged: u64, seconds: f64) -> String {
    let mut parts = vec![
        count(summary.snapshots, "snapshot", "snapshots"),
        count(summary.trees, "tree", "trees"),
        count(summary.databases, "database", "databases"),
        count(summary.blobs, "blob", "blobs"),
        count(summary.packs, "pack", "packs"),
    ];
    if summary.bytes_read > 0 {
        let read = size(summary.bytes_read);
        // What is decoded is a matter of the bytes alone: the same bytes need it once.
        parts.push(match summary.bytes_decoded {
            0 => format!("{read} of data hashed (all of it was decoded by an earlier check, and is the same)"),
            all if all == summary.bytes_read => format!("{read} of data read"),
            some => format!("{read} of data hashed ({} of it decoded, the rest by an earlier check)", size(some)),
        });
    }
    if summary.databases_rebuilt > 0 {
        parts.push(format!("{} rebuilt", count(summary.databases_rebuilt, "database", "databases")));
    }
    let found = if damaged == 0 { "no damage".into() } else { count(damaged, "problem", "problems") };
    format!("{found}: checked {} in {seconds:.1} s", parts.join(", "))
}

fn to_json(summary: &Summary, problems: &[Problem], drills: &[Outcome], seconds: f64) -> Value {
    document(json!({
        "damaged": damages(problems) > 0,
        "what_to_do": check::what_to_do(problems),
        "problems": problems.iter().map(problem_json).collect::<Vec<_>>(),
        "snapshots": summary.snapshots,
        "trees": summary.trees,
        "blobs": summary.blobs,
        "packs": summary.packs,
        "bytes_read": summary.bytes_read,
        "bytes_decoded": summary.bytes_decoded,
        "databases": summary.databases,
        "databases_rebuilt": summary.databases_rebuilt,
        "drills": drills.iter().map(drill::to_json).collect::<Vec<_>>(),
        "seconds": seconds,
    }))
    .into()
}
