//! `snapshot prune`

use std::collections::BTreeMap;

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::policy::{Policy, Verdict};
use snapshot::job::prune::{self, Options, Summary};

use super::args::Prune;
use super::context::Context;
use super::output::{Out, Table, clean, count, document, local_time, rfc3339, size};
use super::seen::Seen;

/// Prunes.
pub fn run(context: &Context, args: Prune, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let options = options(args);
    let mut seen = Seen::compare(context, &session.repo)?;
    let summary = prune::run(&session.repo, &options, &context.reporter)?;
    if !options.dry_run {
        seen.settle(&session.repo)?;
    }
    if context.global.json {
        return out.json(&to_json(&summary, options.dry_run));
    }
    if context.global.quiet {
        return Ok(());
    }
    let lines = verdict_lines(&summary.verdicts, options.dry_run).into_iter();
    lines.chain(summary_lines(&summary, options.dry_run)).try_for_each(|line| out.line(line))
}

fn options(args: Prune) -> Options {
    Options {
        policy: Policy {
            last: args.keep_last,
            hourly: args.keep_hourly,
            daily: args.keep_daily,
            weekly: args.keep_weekly,
            monthly: args.keep_monthly,
            yearly: args.keep_yearly,
            within: args.keep_within,
            tags: args.keep_tags,
        },
        filter: args.filters.into(),
        dry_run: args.dry_run,
        max_unused: args.max_unused,
        max_repack: args.max_repack,
        grace_secs: args.grace,
        instant: args.instant,
    }
}

/// What is kept and why, source by source.
fn verdict_lines(verdicts: &[Verdict], dry_run: bool) -> Vec<String> {
    let mut sources: BTreeMap<(&str, &str), Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        let snapshot = &verdict.named.snapshot;
        sources.entry((&snapshot.host, &snapshot.source)).or_default().push(verdict);
    }
    let mut lines = Vec::new();
    for ((host, source), members) in sources {
        lines.push(format!("{} on {}:", clean(source), clean(host)));
        let mut table = Table::new(&["", "ID", "GEN", "TIME", "WHY"], &[2]);
        for Verdict { named, keep } in members {
            let (verb, why) = match (keep.is_empty(), dry_run) {
                (false, _) => ("keep", keep.join(", ")),
                (true, true) => ("would forget", String::new()),
                (true, false) => ("forget", String::new()),
            };
            let snapshot = &named.snapshot;
            let time = local_time(snapshot.time);
            table.row(vec![verb.into(), named.id.short(), snapshot.generation.to_string(), time, why]);
        }
        lines.extend(table.lines().into_iter().map(|line| format!("  {line}")));
    }
    lines
}

fn summary_lines(summary: &Summary, dry_run: bool) -> Vec<String> {
    let would = if dry_run { "would have " } else { "" };
    let packs = |n| count(n, "pack", "packs");
    let mut lines = vec![
        format!("{would}forgotten: {}", count(summary.forgotten, "snapshot", "snapshots")),
        format!("{would}deleted: {}, {}", packs(summary.packs_deleted), size(summary.bytes_deleted)),
        format!(
            "{would}marked for deletion by a later prune: {}, {}",
            packs(summary.packs_condemned),
            size(summary.bytes_condemned)
        ),
    ];
    if summary.packs_repacked > 0 {
        let repacked = (packs(summary.packs_repacked), size(summary.bytes_repacked));
        lines.push(format!("{would}rewritten: {}, {} (among the marked)", repacked.0, repacked.1));
    }
    if summary.bytes_unused_kept > 0 {
        lines.push(format!("unused data that stays in packs still in use: {}", size(summary.bytes_unused_kept)));
    }
    lines.extend(summary.waiting_for.iter().map(|who| format!("deletion waits for {}", clean(who))));
    lines
}

fn to_json(summary: &Summary, dry_run: bool) -> Value {
    let verdict = |Verdict { named, keep }: &Verdict| {
        json!({
            "id": named.id.to_string(),
            "generation": named.snapshot.generation,
            "time": rfc3339(named.snapshot.time),
            "host": named.snapshot.host,
            "source": named.snapshot.source,
            "tags": named.tags(),
            "pinned": named.is_pinned(),
            "keep": !keep.is_empty(),
            "reasons": keep,
        })
    };
    document(json!({
        "dry_run": dry_run,
        "snapshots": summary.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        "forgotten": summary.forgotten,
        "packs_deleted": summary.packs_deleted,
        "bytes_deleted": summary.bytes_deleted,
        "packs_condemned": summary.packs_condemned,
        "bytes_condemned": summary.bytes_condemned,
        "packs_repacked": summary.packs_repacked,
        "bytes_repacked": summary.bytes_repacked,
        "bytes_unused_kept": summary.bytes_unused_kept,
        "waiting_for": summary.waiting_for,
    }))
    .into()
}
