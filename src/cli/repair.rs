//! `snapshot repair`

use std::ops::Range;

use serde_json::{Map, Value, json};

use snapshot::error::Result;
use snapshot::job::repair::{
    Affected, Fill, LostItem, Options, SnapshotsSummary, Summary, What, repair_index, repair_packs, repair_snapshots,
};

use super::args::{LostPages, Repair, RepairSnapshots};
use super::context::Context;
use super::output::{Out, clean, clean_path, count, document, local_time, put_path, rfc3339, steps_line};

/// Mends the index, packs or snapshots.
pub fn run(context: &Context, args: &Repair, out: &mut Out) -> Result<()> {
    let repo = context.open_as_stored()?.repo;
    let summary = match args {
        Repair::Index => repair_index(&repo, &context.reporter)?,
        Repair::Packs => repair_packs(&repo, &context.reporter)?,
        Repair::Snapshots(args) => {
            let summary = repair_snapshots(&repo, &options(args), &context.reporter)?;
            return show_snapshots(context, &summary, args.dry_run, out);
        }
    };
    if context.global.json {
        return out.json(&context.with_usage(to_json(&summary)));
    }
    if !context.global.quiet {
        out.line(to_text(&summary))?;
        steps_line(out, "next", &summary.next_steps())?;
    }
    Ok(())
}

fn options(args: &RepairSnapshots) -> Options {
    let databases = args.keep_databases.map(|with| match with {
        LostPages::Zeros => Fill::Zeros,
        LostPages::OtherGenerations => Fill::OtherGenerations,
    });
    Options { dry_run: args.dry_run, forget: args.forget, databases }
}

fn to_json(summary: &Summary) -> Value {
    document(json!({
        "packs": summary.packs,
        "blobs": summary.blobs,
        "index_files_replaced": summary.index_files_replaced,
        "config_repaired": summary.config_repaired,
        "slots_repaired": summary.slots_repaired,
        "missing_packs": summary.missing_packs,
        "unreadable_packs": summary.unreadable_packs,
        "damaged_blobs": summary.damaged_blobs,
        "salvaged_blobs": summary.salvaged_blobs,
        "packs_condemned": summary.packs_condemned,
        "next": summary.next_steps(),
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
    let counted = [
        (summary.slots_repaired, "key slot mended", "key slots mended"),
        (summary.missing_packs, "pack missing", "packs missing"),
        (summary.unreadable_packs, "pack unreadable", "packs unreadable"),
        (summary.packs_condemned, "damaged pack set aside", "damaged packs set aside"),
        (summary.salvaged_blobs, "blob saved", "blobs saved"),
        (summary.damaged_blobs, "blob damaged and left out", "blobs damaged and left out"),
    ];
    for (n, one, many) in counted.into_iter().filter(|c| c.0 > 0) {
        text += &format!("; {}", count(n, one, many));
    }
    text
}

fn show_snapshots(context: &Context, summary: &SnapshotsSummary, dry_run: bool, out: &mut Out) -> Result<()> {
    if context.global.json {
        let affected: Vec<_> = summary.affected.iter().map(affected_json).collect();
        return out.json(
            &document(json!({
                "examined": summary.examined,
                "healed_pages": summary.healed_pages,
                "affected": affected,
                "unreadable": summary.unreadable,
                "mended": summary.mended,
                "dry_run": dry_run,
                "next": summary.next_steps(),
            }))
            .into(),
        );
    }
    for affected in &summary.affected {
        let snapshot = &affected.original.snapshot;
        out.line(format!(
            "snapshot {}, generation {} of {}, {}: {}",
            affected.original.id.short(),
            snapshot.generation,
            clean(&format!("{}:{}", snapshot.host, snapshot.source)),
            local_time(snapshot.time),
            outcome(affected)
        ))?;
        for item in &affected.lost {
            let path = match &item.path[..] {
                b"" => b"/".to_vec(),
                path if out.is_terminal() => clean_path(path).into_bytes(),
                path => path.to_vec(),
            };
            out.text("  lost: ")?;
            out.text(path)?;
            out.line(clean_path(describe(&item.what).as_bytes()))?;
        }
    }
    if context.global.quiet {
        return Ok(());
    }
    for path in &summary.mended {
        out.line(format!("{path}: a flipped bit {}", if dry_run { "can be put right" } else { "was put right" }))?;
    }
    if summary.healed_pages > 0 {
        let pages = count(summary.healed_pages, "lost page of databases is", "lost pages of databases are");
        let done = if dry_run { "would be put back" } else { "put back, for all snapshots that need them" };
        out.line(format!("{pages} the same elsewhere: {done}"))?;
    }
    let looked_at = count(summary.examined, "snapshot", "snapshots");
    match summary.affected.len() as u64 {
        0 => out.line(format!("{looked_at} looked at: by the index, nothing is lost of any"))?,
        n => out.line(format!("{looked_at} looked at: {} lost something", count(n, "one", "of them")))?,
    }
    steps_line(out, "next", &summary.next_steps())
}

fn outcome(affected: &Affected) -> String {
    let mut text = match (affected.salvaged, affected.is_lost) {
        (Some(id), _) => format!("salvaged as {}", id.short()),
        (None, true) => "nothing of it is left".into(),
        (None, false) => "would be salvaged without".into(),
    };
    if affected.forgotten {
        text += ", and forgotten";
    }
    text
}

fn describe(what: &What) -> String {
    match what {
        What::File => String::new(),
        What::Directory => ": the directory, with all that it held".into(),
        What::SomeOfDirectory => ": some of what the directory held; its names are lost, too".into(),
        What::Database => ": the database".into(),
        What::Pages { pages, lost, kept_as } => {
            let mut text = format!(": of the database's {}, {}", count(*pages, "page", "pages"), ranges(lost));
            if let Some(path) = kept_as {
                text += &format!("; kept, unsound, as {}", String::from_utf8_lossy(path));
            }
            text
        }
    }
}

/// `3, 5-9`.
fn ranges(lost: &[Range<u64>]) -> String {
    let one = |range: &Range<u64>| match range.end - range.start {
        1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    };
    lost.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn affected_json(affected: &Affected) -> Value {
    let snapshot = &affected.original.snapshot;
    json!({
        "snapshot_id": affected.original.id.to_string(),
        "host": snapshot.host,
        "source": snapshot.source,
        "generation": snapshot.generation,
        "time": rfc3339(snapshot.time),
        "salvaged_id": affected.salvaged.map(|id| id.to_string()),
        "is_lost": affected.is_lost,
        "forgotten": affected.forgotten,
        "lost": affected.lost.iter().map(item_json).collect::<Vec<_>>(),
    })
}

fn item_json(item: &LostItem) -> Value {
    let mut object = Map::new();
    put_path(&mut object, "path", &item.path);
    let kind = match &item.what {
        What::File => "file",
        What::Directory => "directory",
        What::SomeOfDirectory => "part of directory",
        What::Database | What::Pages { .. } => "database",
    };
    object.insert("kind".into(), json!(kind));
    if let What::Pages { pages, lost, kept_as } = &item.what {
        let lost: Vec<_> = lost.iter().map(|range| [range.start, range.end - 1]).collect();
        object.insert("pages".into(), json!(pages));
        object.insert("lost_pages".into(), json!(lost));
        if let Some(path) = kept_as {
            put_path(&mut object, "kept_as", path);
        }
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_pages() {
        assert_eq!(ranges(&[3..4, 5..10]), "3, 5-9");
    }
}
