//! `snapshot stats`

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::stats::{self, Holding, OfSnapshot, OfSource, One, Overhead, Weight};
use snapshot::repo::{Filter, Selected};

use super::args::Stats;
use super::context::Context;
use super::output::{Out, Table, clean, clean_path, count, document, local_time, number, put_path, rfc3339, size};

/// Shows what snapshots hold and cost.
pub fn run(context: &Context, args: Stats, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let filter = Filter { latest: args.latest, ..args.filters.into() };
    if let Some(snapshot) = &args.snapshot {
        let selected = session.repo.select(snapshot, &filter, &context.reporter)?;
        let one = stats::one(&session.repo, &selected, &context.reporter)?;
        return show_one(context, &selected, &one, out);
    }
    let all = stats::run(&session.repo, &filter, &context.reporter)?;
    if context.global.json {
        return out.json(&to_json(&all));
    }
    for source in &all.sources {
        show_source(source, out)?;
    }
    out.line(format!("whole repository: {}", holding_text(&all.holding)))?;
    out.line(format!("  {}", weight_text(&all.holding, &all.unique)))?;
    overhead_lines(&all.overhead).into_iter().try_for_each(|line| out.line(format!("  {line}")))
}

/// Bytes of which each blob has its share, as a whole number.
fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}

fn show_one(context: &Context, selected: &Selected, one: &One, out: &mut Out) -> Result<()> {
    let path = selected.sub_path.join(&b'/');
    if context.global.json {
        let mut object = document(json!({
            "snapshot_id": selected.named.id.to_string(),
            "files": one.holding.files,
            "directories": one.directories,
            "databases": one.holding.databases,
            "logical": one.holding.logical,
            "unique": weight_json(&one.unique),
            "alone": weight_json(&one.alone),
        }));
        put_path(&mut object, "path", &path);
        return out.json(&object.into());
    }
    let place = if path.is_empty() { String::new() } else { format!(":{}", clean_path(&path)) };
    let name = format!("{}{place}", selected.named.id.short());
    out.line(format!("snapshot {name}: {}", held(&one.holding, one.directories)))?;
    out.line(format!("  {}", weight_text(&one.holding, &one.unique)))?;
    let alone = size(whole(one.alone.stored));
    out.line(format!("  needed by nothing else: {}, {alone} stored", count(one.alone.blobs, "blob", "blobs")))
}

fn show_source(source: &OfSource, out: &mut Out) -> Result<()> {
    let (name, host) = (clean(&source.source), clean(&source.host));
    out.line(format!("{name} on {host}: {}", holding_text(&source.holding)))?;
    let mut table =
        Table::new(&["ID", "GEN", "TIME", "FILES", "DATABASES", "SIZE", "ADDED", "ALONE"], &[1, 3, 4, 5, 6, 7]);
    for OfSnapshot { named, alone } in &source.snapshots {
        let counts = &named.snapshot.counts;
        table.row(vec![
            named.id.short(),
            named.snapshot.generation.to_string(),
            local_time(named.snapshot.time),
            number(counts.files),
            number(counts.databases),
            size(counts.bytes),
            size(counts.bytes_stored),
            size(whole(alone.stored)),
        ]);
    }
    table.lines().into_iter().try_for_each(|line| out.line(format!("  {line}")))?;
    out.line(format!("  {}", weight_text(&source.holding, &source.unique)))
}

fn held(holding: &Holding, directories: u64) -> String {
    let mut parts = vec![count(holding.files, "file", "files")];
    if directories > 0 {
        parts.push(count(directories, "directory", "directories"));
    }
    if holding.databases > 0 {
        parts.push(count(holding.databases, "database", "databases"));
    }
    parts.push(size(holding.logical));
    parts.join(", ")
}

fn holding_text(holding: &Holding) -> String {
    format!("{}, {} in all", count(holding.snapshots, "snapshot", "snapshots"), size(holding.logical))
}

/// How many times as much the first is, where that can be said.
fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then_some(of / to)
}

fn weight_text(holding: &Holding, unique: &Weight) -> String {
    let times = |ratio: Option<f64>| ratio.map(|n| format!(" (1 : {n:.1})")).unwrap_or_default();
    format!(
        "different: {} in {}{}; stored: {}{}",
        size(unique.plain),
        count(unique.blobs, "blob", "blobs"),
        times(ratio(holding.logical as f64, unique.plain as f64)),
        size(whole(unique.stored)),
        times(ratio(unique.plain as f64, unique.stored)),
    )
}

fn overhead_lines(overhead: &Overhead) -> Vec<String> {
    let Overhead { total, packs, directories, padding, unused, condemned, unknown_packs, index, other } = *overhead;
    let mut lines = vec![format!(
        "on disk: {}: packs {} (of it directories {}, padding {}, unused {}), index {}, other {}",
        size(total),
        size(packs),
        size(directories),
        size(padding),
        size(whole(unused)),
        size(index),
        size(other),
    )];
    if condemned > 0 {
        lines.push(format!("marked for deletion by a later prune: {}", size(condemned)));
    }
    if unknown_packs > 0 {
        lines.push(format!(
            "packs that are not in the index, of a running or interrupted command: {}",
            size(unknown_packs)
        ));
    }
    lines
}

fn weight_json(weight: &Weight) -> Value {
    json!({"blobs": weight.blobs, "plain": weight.plain, "stored": whole(weight.stored)})
}

fn holding_json(holding: &Holding, unique: &Weight) -> Value {
    json!({
        "snapshot_count": holding.snapshots,
        "files": holding.files,
        "databases": holding.databases,
        "logical": holding.logical,
        "unique": weight_json(unique),
        "deduplication": ratio(holding.logical as f64, unique.plain as f64),
        // Bytes stored are a sum of shares, whose order is not always the same.
        "compression": ratio(unique.plain as f64, unique.stored.round()),
    })
}

fn snapshot_json(OfSnapshot { named, alone }: &OfSnapshot) -> Value {
    let counts = &named.snapshot.counts;
    json!({
        "id": named.id.to_string(),
        "generation": named.snapshot.generation,
        "time": rfc3339(named.snapshot.time),
        "files": counts.files,
        "databases": counts.databases,
        "logical": counts.bytes,
        "bytes_new": counts.bytes_new,
        "bytes_stored": counts.bytes_stored,
        "alone": weight_json(alone),
    })
}

fn source_json(source: &OfSource) -> Value {
    let mut object = holding_json(&source.holding, &source.unique);
    object["host"] = json!(source.host);
    object["source"] = json!(source.source);
    object["alone"] = weight_json(&source.alone);
    object["snapshots"] = source.snapshots.iter().map(snapshot_json).collect();
    object
}

fn to_json(all: &stats::Stats) -> Value {
    let Overhead { total, packs, directories, padding, unused, condemned, unknown_packs, index, other } = all.overhead;
    let overhead = json!({
        "total": total,
        "packs": packs,
        "directories": directories,
        "padding": padding,
        "unused": whole(unused),
        "condemned": condemned,
        "unknown_packs": unknown_packs,
        "index": index,
        "other": other,
    });
    document(json!({
        "sources": all.sources.iter().map(source_json).collect::<Value>(),
        "whole": holding_json(&all.holding, &all.unique),
        "overhead": overhead,
    }))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_ratios() {
        let holding = Holding { snapshots: 2, files: 4, databases: 0, logical: 4096 };
        let unique = Weight { blobs: 3, plain: 2048, stored: 512.4 };
        assert_eq!(weight_text(&holding, &unique), "different: 2.0 KiB in 3 blobs (1 : 2.0); stored: 512 B (1 : 4.0)");
        assert_eq!(weight_text(&holding, &Weight::default()), "different: 0 B in 0 blobs; stored: 0 B");
        assert_eq!(holding_json(&holding, &Weight::default())["compression"], Value::Null);
        let lines = overhead_lines(&Overhead { condemned: 5, ..Overhead::default() });
        assert_eq!((lines.len(), lines[1].as_str()), (2, "marked for deletion by a later prune: 5 B"));
    }
}
