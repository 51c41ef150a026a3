//! `snapshot prune`

use std::collections::BTreeMap;

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::format::cbor::Time;
use snapshot::job::policy::{Policy, Verdict};
use snapshot::job::prune::{self, Amount, Cost, Options, Requests, Share, Summary};

use super::args::Prune;
use super::context::Context;
use super::output::{Out, Table, clean, count, document, local_time, number, rfc3339, size};
use super::seen::Seen;

/// Prunes.
pub fn run(context: &Context, args: Prune, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let options = options(args);
    let mut seen = Seen::compare(context, &session.repo)?;
    let mut told = Ok(());
    let mut announce = |plan: &Summary| {
        if context.global.json || context.global.quiet {
            return;
        }
        let mut lines = cost_lines(plan).into_iter();
        // Whoever watches sees it above the progress; else it is a part of the result.
        if context.display.is_personal() {
            lines.for_each(|line| context.display.remark(&line));
        } else {
            told = lines.try_for_each(|line| out.line(line)).and_then(|()| out.finish());
        }
    };
    let summary = prune::run(&session.repo, &options, &mut announce, &context.reporter)?;
    told?;
    if !options.dry_run {
        seen.settle(&session.repo)?;
    }
    if context.global.json {
        return out.json(&context.with_usage(to_json(&summary, &options)));
    }
    // The plan is what a dry run was asked for.
    if context.global.quiet && !options.dry_run {
        return Ok(());
    }
    let mut lines = verdict_lines(&summary.verdicts, options.dry_run);
    if options.dry_run {
        lines.extend(cost_lines(&summary));
    }
    lines.extend(summary_lines(&summary, &options));
    lines.into_iter().try_for_each(|line| out.line(line))
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

/// What there is, what becomes of it, and what that takes.
fn cost_lines(summary: &Summary) -> Vec<String> {
    let Cost { data, metadata, data_deleted, metadata_deleted, requests, .. } = summary.cost;
    let mut table = Table::new(&["", "DATA PACKS", "SIZE", "METADATA PACKS", "SIZE"], &[1, 2, 3, 4]);
    let mut row = |name: &str, [data, metadata]: [Amount; 2]| {
        if data.packs + metadata.packs > 0 {
            let cells = [data, metadata].into_iter().flat_map(|a| [number(a.packs), size(a.bytes)]);
            table.row(std::iter::once(name.to_owned()).chain(cells).collect());
        }
    };
    row("there are", [data.total, metadata.total]);
    row("  all needed", [data.used, metadata.used]);
    row("  partly needed", [data.partly_used, metadata.partly_used]);
    row("  not needed", [data.unused, metadata.unused]);
    row("  just stored", [data.young, metadata.young]);
    row("  marked before", [data.condemned, metadata.condemned]);
    row("delete now", [data_deleted, metadata_deleted]);
    row("mark: not needed", [data.unused, metadata.unused]);
    row("mark: rewritten", [data.repack, metadata.repack]);
    let mut lines = table.lines();
    let bytes = |name: &str, data: u64, metadata: u64| {
        (data + metadata > 0).then(|| format!("{name}: {} of data, {} of metadata", size(data), size(metadata)))
    };
    lines.extend(bytes("written anew, about", data.rewritten_bytes, metadata.rewritten_bytes));
    lines.extend(bytes("stays though not needed", data.unused_kept_bytes, metadata.unused_kept_bytes));
    let Cost { index_files, index_bytes, index_files_replaced, index_bytes_replaced, .. } = summary.cost;
    let files = |n| count(n, "file", "files");
    let mut index = format!("index: {}, {}", files(index_files), size(index_bytes));
    if index_files_replaced > 0 {
        index += &format!("; {}, {}, written anew", files(index_files_replaced), size(index_bytes_replaced));
    }
    lines.push(index);
    lines.push(format!(
        "requests, about: {}, {}, {}, {}",
        count(requests.list, "list", "lists"),
        count(requests.get, "read", "reads"),
        count(requests.put, "write", "writes"),
        count(requests.delete, "deletion", "deletions"),
    ));
    lines
}

/// When what this run marks can be deleted, if it marks anything that it doesn't delete itself.
fn free_after(summary: &Summary, options: &Options) -> Option<Time> {
    let now = snapshot::clock::now();
    let later = Time { secs: now.secs.saturating_add(options.grace_secs), ..now };
    (summary.packs_condemned > 0 && !options.instant).then_some(later)
}

fn summary_lines(summary: &Summary, options: &Options) -> Vec<String> {
    let would = if options.dry_run { "would have " } else { "" };
    let packs = |n| count(n, "pack", "packs");
    let when = free_after(summary, options).map(|time| format!("; free with a prune after {}", local_time(time)));
    let mut lines = vec![
        format!("{would}forgotten: {}", count(summary.forgotten, "snapshot", "snapshots")),
        format!("{would}deleted: {}, {}", packs(summary.packs_deleted), size(summary.bytes_deleted)),
        format!(
            "{would}marked for deletion by a later prune: {}, {}{}",
            packs(summary.packs_condemned),
            size(summary.bytes_condemned),
            when.unwrap_or_default()
        ),
    ];
    if summary.packs_repacked > 0 {
        let repacked = (packs(summary.packs_repacked), size(summary.bytes_repacked));
        let into = if options.dry_run { String::new() } else { format!(" as {}", size(summary.bytes_rewritten)) };
        lines.push(format!("{would}rewritten: {}, {}{into} (among the marked)", repacked.0, repacked.1));
    }
    if summary.over_budget {
        lines.push("more would be rewritten if --max-repack allowed it".into());
    }
    if summary.bytes_unused_kept > 0 {
        lines.push(format!("unused data that stays in packs still in use: {}", size(summary.bytes_unused_kept)));
    }
    lines.extend(summary.waiting_for.iter().map(|who| format!("deletion waits for {}", clean(who))));
    lines
}

fn cost_json(cost: &Cost) -> Value {
    let amount = |a: Amount| json!({"packs": a.packs, "bytes": a.bytes});
    let share = |share: Share, deleted: Amount| {
        json!({
            "total": amount(share.total),
            "used": amount(share.used),
            "partly_used": amount(share.partly_used),
            "unused": amount(share.unused),
            "young": amount(share.young),
            "condemned": amount(share.condemned),
            "delete": amount(deleted),
            "repack": amount(share.repack),
            "rewritten_bytes": share.rewritten_bytes,
            "unused_kept_bytes": share.unused_kept_bytes,
        })
    };
    let Requests { list, get, put, delete } = cost.requests;
    json!({
        "data": share(cost.data, cost.data_deleted),
        "metadata": share(cost.metadata, cost.metadata_deleted),
        "index": {
            "files": cost.index_files,
            "bytes": cost.index_bytes,
            "files_replaced": cost.index_files_replaced,
            "bytes_replaced": cost.index_bytes_replaced,
        },
        "requests": {"list": list, "get": get, "put": put, "delete": delete},
    })
}

fn to_json(summary: &Summary, options: &Options) -> Value {
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
        "dry_run": options.dry_run,
        "snapshots": summary.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        "forgotten": summary.forgotten,
        "packs_deleted": summary.packs_deleted,
        "bytes_deleted": summary.bytes_deleted,
        "packs_condemned": summary.packs_condemned,
        "bytes_condemned": summary.bytes_condemned,
        "packs_repacked": summary.packs_repacked,
        "bytes_repacked": summary.bytes_repacked,
        "bytes_rewritten": summary.bytes_rewritten,
        "bytes_unused_kept": summary.bytes_unused_kept,
        "over_budget": summary.over_budget,
        "free_after": free_after(summary, options).map(rfc3339),
        "plan": cost_json(&summary.cost),
        "waiting_for": summary.waiting_for,
    }))
    .into()
}
