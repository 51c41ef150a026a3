//! `snapshot tag`

use serde_json::{Value, json};

use snapshot::error::{Error, Result};
use snapshot::job::tag::{self, Change, Tagged};
use snapshot::repo::{Filter, Named};

use super::args::Tag;
use super::context::{Context, Session};
use super::output::{Out, clean, document};

/// Changes tags and pins of snapshots.
pub fn run(context: &Context, args: Tag, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    let Tag { snapshots, filters, add, remove, set, pin, unpin } = args;
    let chosen = choose(context, &session, &snapshots, &filters.into())?;
    // An empty word takes all tags away.
    let set = set.map(|tags| tags.into_iter().filter(|tag| !tag.is_empty()).collect());
    let pin = (pin || unpin).then_some(pin);
    let done = tag::run(&session.repo, chosen, &Change { add, remove, set, pin }, &context.reporter)?;
    if context.global.json {
        let all: Vec<_> = done.iter().map(to_json).collect();
        return out.json(&document(json!({"snapshots": all})).into());
    }
    if context.global.quiet {
        return Ok(());
    }
    if done.is_empty() {
        context.display.remark("no snapshots");
    }
    done.iter().try_for_each(|tagged| out.line(to_text(tagged)))
}

/// The snapshots named, or all that pass the filter.
fn choose(context: &Context, session: &Session, names: &[String], filter: &Filter) -> Result<Vec<Named>> {
    if names.is_empty() {
        if filter.is_empty() {
            let what = "name snapshots, or say which with --host, --source, --tag or --path";
            return Err(Error::Usage(what.into()));
        }
        return Ok(filter.apply(session.repo.snapshots(&context.reporter)?));
    }
    session.repo.read_marks()?.report_lost(&context.reporter, "what it says of a snapshot's tags or pin is not known");
    let mut chosen: Vec<Named> = Vec::new();
    for text in names {
        let selected = session.repo.select(text, filter, &context.reporter)?;
        if !selected.sub_path.is_empty() {
            return Err(Error::Usage(format!("only whole snapshots have tags, not \"{text}\"")));
        }
        if chosen.iter().all(|named| named.id != selected.named.id) {
            chosen.push(selected.named);
        }
    }
    Ok(chosen)
}

fn to_text(Tagged { named, changed }: &Tagged) -> String {
    let tags = if named.tags().is_empty() { "no tags".into() } else { clean(&named.tags().join(",")).into_owned() };
    let pin = if named.is_pinned() { ", pinned" } else { "" };
    let unchanged = if *changed { "" } else { " (as before)" };
    format!("snapshot {}: {tags}{pin}{unchanged}", named.id.short())
}

fn to_json(Tagged { named, changed }: &Tagged) -> Value {
    json!({"id": named.id.to_string(), "tags": named.tags(), "pinned": named.is_pinned(), "changed": changed})
}
