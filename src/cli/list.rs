//! `snapshot list`

use serde_json::{Map, Value, json};

use snapshot::error::Result;
use snapshot::format::mark::Proof;
use snapshot::id::hex;
use snapshot::repo::{Filter, Named};

use super::args::List;
use super::context::Context;
use super::create::counts_json;
use super::nodes::proof_json;
use super::output::{Out, Table, clean_path, local_time, rfc3339, size};
use super::seen::Seen;

/// Where the presets stand with `-v`: before the paths.
const PRESET_COLUMN: usize = 6;

/// Shows the snapshots.
pub fn run(context: &Context, args: List, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let filter = Filter { latest: args.latest, ..args.filters.into() };
    let mut seen = Seen::compare(context, &session.repo)?;
    let all = session.repo.snapshots(&context.reporter)?;
    seen.learn(&all);
    let snapshots = filter.apply(all);
    if context.global.json {
        return out.json(&snapshots.iter().map(to_json).collect());
    }
    if snapshots.is_empty() {
        context.display.remark("no snapshots");
        return Ok(());
    }
    let mut headings = vec!["ID", "GEN", "TIME", "HOST", "SOURCE", "TAGS", "PATHS", "SIZE", "ADDED", ""];
    let is_verbose = context.global.verbose > 0;
    if is_verbose {
        headings.insert(PRESET_COLUMN, "PRESET");
    }
    let mut table = Table::new(&headings, if is_verbose { &[1, 8, 9] } else { &[1, 7, 8] });
    for named in &snapshots {
        let mut row = to_row(named);
        if is_verbose {
            row.insert(PRESET_COLUMN, named.snapshot.preset.clone().unwrap_or_default());
        }
        table.row(row);
    }
    table.lines().into_iter().try_for_each(|line| out.line(line))
}

fn to_json(named: &Named) -> Value {
    let Named { id, snapshot, .. } = named;
    let mut object = match counts_json(&snapshot.counts) {
        Value::Object(counts) => counts,
        _ => Map::new(),
    };
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    object.insert("id".into(), json!(id.to_string()));
    object.insert("generation".into(), json!(snapshot.generation));
    object.insert("time".into(), json!(rfc3339(snapshot.time)));
    object.insert("host".into(), json!(snapshot.host));
    object.insert("source".into(), json!(snapshot.source));
    object.insert("tags".into(), json!(named.tags()));
    object.insert("pinned".into(), json!(named.is_pinned()));
    object.insert("proven".into(), json!(named.proof().map(proof_json)));
    object.insert("preset".into(), json!(snapshot.preset));
    object.insert("previous".into(), json!(snapshot.previous.map(|id| id.to_string())));
    object.insert("program".into(), json!(snapshot.program));
    object.insert("paths".into(), snapshot.paths.iter().map(|path| text(path)).collect());
    if snapshot.paths.iter().any(|path| std::str::from_utf8(path).is_err()) {
        object.insert("paths_hex".into(), snapshot.paths.iter().map(|path| hex(path)).collect());
    }
    object.into()
}

fn to_row(named: &Named) -> Vec<String> {
    let Named { id, snapshot, .. } = named;
    vec![
        id.short(),
        snapshot.generation.to_string(),
        local_time(snapshot.time),
        snapshot.host.clone(),
        snapshot.source.clone(),
        named.tags().join(","),
        snapshot.paths.iter().map(|path| clean_path(path)).collect::<Vec<_>>().join(" "),
        size(snapshot.counts.bytes),
        size(snapshot.counts.bytes_stored),
        mark(named),
    ]
}

/// `!` for databases stored unverified, `~` for sources that could not be read, whether it is pinned, and when it was
/// last proved to be restorable.
fn mark(named: &Named) -> String {
    let counts = &named.snapshot.counts;
    let marks = [(counts.unverified > 0, "!"), (counts.skipped > 0, "~"), (named.is_pinned(), "pinned")];
    let mut marks: Vec<_> = marks.iter().filter(|(holds, _)| *holds).map(|(_, mark)| (*mark).to_owned()).collect();
    // The day alone: the rest is in the JSON.
    let day = |proof: &Proof| format!("proven {}", local_time(proof.time).split(' ').next().unwrap_or_default());
    marks.extend(named.proof().map(day));
    marks.join(" ")
}
