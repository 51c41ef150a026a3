//! `snapshot find`

use serde_json::{Value, json};

use snapshot::error::Result;
use snapshot::job::find::{Finder, Group, Hit, Query, groups};
use snapshot::repo::{Filter, Named, Selected};

use super::args::Find;
use super::context::{Context, Session};
use super::nodes::{Owners, Style, to_json};
use super::output::{JSON_VERSION, Out, clean, count, rfc3339};

/// Finds names in snapshots.
pub fn run(context: &Context, args: Find, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let style = Style { numeric: args.numeric, human: args.human, terminal: out.is_terminal() };
    let long = args.long;
    let query = Query {
        patterns: args.patterns,
        ignore_case: args.ignore_case,
        newer: args.newer,
        older: args.older,
        kinds: args.kinds.into_iter().map(Into::into).collect(),
    };
    let filter = Filter { latest: args.latest, ..args.filters.into() };
    let selected = select(context, &session, &args.snapshots, &filter)?;
    let searched = selected.len();
    let mut finder = Finder::new(&session.repo, query, &context.reporter)?;
    if context.global.json {
        return as_json(&mut finder, groups(selected), searched, out);
    }
    let mut found = false;
    for group in groups(selected) {
        let Some(Named { snapshot, .. }) = group.snapshots.last() else { continue };
        let owners = owners(&group);
        let mut heading = Some(format!(
            "{} on {}: {} searched",
            clean(&snapshot.source),
            clean(&snapshot.host),
            count(group.snapshots.len() as u64, "snapshot", "snapshots")
        ));
        finder.search(&group, &mut |hit| {
            found = true;
            heading.take().map_or(Ok(()), |heading| out.line(heading))?;
            let mut line = format!("  {}  ", range(&group, &hit)).into_bytes();
            if let Some(owners) = owners.get(hit.last).filter(|_| long) {
                line.extend(style.before(&hit.node, owners).bytes());
            }
            line.extend(style.name(&hit.path));
            if long {
                line.extend(style.after(&hit.node, None));
            }
            out.line(line)
        })?;
    }
    if !found {
        let searched = count(searched as u64, "snapshot", "snapshots");
        context.display.remark(&format!("nothing found in {searched}"));
    }
    Ok(())
}

fn select(context: &Context, session: &Session, names: &[String], filter: &Filter) -> Result<Vec<Selected>> {
    if names.is_empty() {
        let all = filter.apply(session.repo.snapshots(&context.reporter)?);
        return Ok(all.into_iter().map(|named| Selected { named, sub_path: Vec::new() }).collect());
    }
    let mut out: Vec<Selected> = Vec::new();
    for name in names {
        let selected = session.repo.select(name, filter, &context.reporter)?;
        if !out.iter().any(|one| one.named.id == selected.named.id && one.sub_path == selected.sub_path) {
            out.push(selected);
        }
    }
    Ok(out)
}

/// Generations and ids of the first and the last snapshot that have something, in columns.
fn range(group: &Group, hit: &Hit) -> String {
    let (Some(first), Some(last)) = (group.snapshots.get(hit.first), group.snapshots.get(hit.last)) else {
        return String::new();
    };
    let (generations, ids) = if hit.first == hit.last {
        (first.snapshot.generation.to_string(), first.id.short())
    } else {
        let generations = format!("{}-{}", first.snapshot.generation, last.snapshot.generation);
        (generations, format!("{}..{}", first.id.short(), last.id.short()))
    };
    format!("{generations:>7}  {ids:<18}")
}

fn as_json(finder: &mut Finder<'_>, groups: Vec<Group>, searched: usize, out: &mut Out) -> Result<()> {
    // One document, written as it comes.
    out.text(format!("{{\"version\":{JSON_VERSION},\"snapshots_searched\":{searched},\"matches\":["))?;
    let mut comma = "";
    for group in groups {
        let Some(Named { snapshot, .. }) = group.snapshots.last() else { continue };
        let owners = owners(&group);
        finder.search(&group, &mut |hit| {
            let Some(owners) = owners.get(hit.last) else { return Ok(()) };
            let mut object = to_json(&hit.path, &hit.node, owners, None);
            let having = group.snapshots.get(hit.first..=hit.last).unwrap_or_default();
            object.insert("host".into(), json!(snapshot.host));
            object.insert("source".into(), json!(snapshot.source));
            object.insert("count".into(), json!(having.len()));
            object.insert("first".into(), having.first().map(brief).into());
            object.insert("last".into(), having.last().map(brief).into());
            object.insert("snapshots".into(), having.iter().map(|named| named.id.to_string()).collect());
            out.text(format!("{}{}", std::mem::replace(&mut comma, ","), Value::from(object)))
        })?;
    }
    out.line("]}")
}

/// The names of owners in each snapshot.
fn owners(group: &Group) -> Vec<Owners> {
    group.snapshots.iter().map(|named| Owners::of(&named.snapshot)).collect()
}

/// Which snapshot it is, in few words.
pub fn brief(named: &Named) -> Value {
    json!({
        "id": named.id.to_string(),
        "generation": named.snapshot.generation,
        "time": rfc3339(named.snapshot.time),
    })
}
