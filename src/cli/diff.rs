//! `snapshot diff`

use serde_json::{Map, Value, json};

use snapshot::error::Result;
use snapshot::format::tree::NodeKind;
use snapshot::job::diff::{self, Aspects, Change, DatabaseChange, Summary, TableChange, TableKind, Tally};

use super::args::Diff;
use super::context::Context;
use super::find::brief;
use super::nodes::{Style, word};
use super::output::{JSON_VERSION, Out, clean, count, number, put_path, size};

/// Shows what differs between two snapshots.
pub fn run(context: &Context, args: Diff, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let filter = args.filters.into();
    let before = session.repo.select(&args.before, &filter, &context.reporter)?;
    let after = session.repo.select(&args.after, &filter, &context.reporter)?;
    let is_shown = |change: &Change| args.metadata || !change.aspects.is_metadata();
    if context.global.json {
        // One document, written as it comes.
        let (from, to) = (brief(&before.named), brief(&after.named));
        out.text(format!("{{\"version\":{JSON_VERSION},\"before\":{from},\"after\":{to},\"changes\":["))?;
        let mut comma = "";
        let summary = diff::run(&session.repo, &before, &after, &context.reporter, &mut |change| {
            if !is_shown(&change) {
                return Ok(());
            }
            out.text(format!("{}{}", std::mem::replace(&mut comma, ","), change_json(&change)))
        })?;
        return out.line(format!("],\"summary\":{}}}", summary_json(&summary)));
    }
    let style = Style { numeric: false, human: true, terminal: out.is_terminal() };
    let summary = diff::run(&session.repo, &before, &after, &context.reporter, &mut |change| {
        if !is_shown(&change) {
            return Ok(());
        }
        out.line(to_line(&change, style))?;
        database_lines(&change).into_iter().try_for_each(|line| out.line(format!("     {line}")))
    })?;
    if context.global.quiet { Ok(()) } else { out.line(summary_text(&summary, args.metadata)) }
}

fn letter(change: &Change) -> char {
    match (&change.before, &change.after) {
        (None, _) => '+',
        (_, None) => '-',
        _ if change.aspects.kind => 'T',
        _ if change.aspects.content => 'M',
        _ => 'U',
    }
}

fn to_line(change: &Change, style: Style) -> Vec<u8> {
    let mut line = format!("{}    ", letter(change)).into_bytes();
    line.extend(style.name(&change.path));
    let node = change.after.as_ref().or(change.before.as_ref());
    if node.is_some_and(|node| node.kind == NodeKind::Directory) {
        line.push(b'/');
    }
    let mut notes = Vec::new();
    match (&change.before, &change.after) {
        (Some(a), Some(b)) => {
            if a.kind != b.kind {
                notes.push(format!("{}, was {}", word(b.kind), word(a.kind)));
            } else if let (true, Some(was), Some(is)) = (change.aspects.content, a.size, b.size) {
                notes.push(if was == is { size(is) } else { format!("{}, was {}", size(is), size(was)) });
            }
            if a.mode != b.mode {
                notes.push(format!("mode {:04o}, was {:04o}", b.mode, a.mode));
            }
            if change.aspects.owner {
                notes.push(format!("owner {}:{}, was {}:{}", b.uid, b.gid, a.uid, a.gid));
            }
            if change.aspects.xattrs {
                notes.push("extended attributes".into());
            }
            if change.aspects.mtime && change.aspects.is_metadata() {
                notes.push("time".into());
            }
        }
        (one, other) => notes.extend(one.as_ref().or(other.as_ref()).and_then(|node| node.size).map(size)),
    }
    if !notes.is_empty() {
        line.extend(format!("  ({})", notes.join("; ")).bytes());
    }
    line
}

fn database_lines(change: &Change) -> Vec<String> {
    let Some(database) = &change.database else { return Vec::new() };
    let DatabaseChange { pages: (before, after), pages_changed, .. } = database;
    let mut pages = format!("{} of {} changed", number(*pages_changed), count(*before, "page", "pages"));
    if after > before {
        pages += &format!(", {} more", number(after - before));
    } else if before > after {
        pages += &format!(", {} fewer", number(before - after));
    }
    let mut lines = vec![pages];
    lines.extend(database.tables.iter().map(table_line));
    let rest = [
        (database.overflow, "of long rows"),
        (database.free, "free"),
        (database.pointer_map, "of pointers"),
        (database.lock, "for locks"),
    ];
    let mut rest: Vec<_> =
        rest.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", number(*n))).collect();
    if database.header > 0 {
        rest.push("the file's header".into());
    }
    if !rest.is_empty() {
        lines.push(format!("other pages: {}", rest.join(", ")));
    }
    lines.extend(database.tables_unknown.as_ref().map(|why| format!("its tables can't be told: {}", clean(why))));
    lines
}

fn table_line(table: &TableChange) -> String {
    let mut notes = Vec::new();
    match (table.was_there, table.is_there) {
        (false, true) => notes.push("new".to_owned()),
        (true, false) => notes.push("dropped".to_owned()),
        _ => {}
    }
    if table.pages > 0 {
        notes.push(count(table.pages, "page", "pages"));
    }
    if table.pages_left > 0 {
        notes.push(format!("{} given up", count(table.pages_left, "page", "pages")));
    }
    match (table.rows, table.rows_more) {
        (Some((before, after)), _) if before != after => {
            notes.push(format!("{}, was {}", count(after, "row", "rows"), number(before)));
        }
        (None, Some(more)) if more != 0 => {
            let sign = if more > 0 { "more" } else { "fewer" };
            notes.push(format!("{} {sign}", count(more.unsigned_abs(), "row", "rows")));
        }
        _ => {}
    }
    format!("{} {}: {}", kind(table.kind), clean(&table.name), notes.join(", "))
}

fn kind(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Table => "table",
        TableKind::Index => "index",
    }
}

fn tally_text(tally: &Tally, before: Option<u64>) -> Option<String> {
    let kinds = [
        (tally.files, "file", "files"),
        (tally.directories, "directory", "directories"),
        (tally.databases, "database", "databases"),
        (tally.others, "other", "others"),
    ];
    let mut parts: Vec<_> =
        kinds.into_iter().filter(|(n, ..)| *n > 0).map(|(n, one, many)| count(n, one, many)).collect();
    if parts.is_empty() {
        return None;
    }
    parts.push(size(tally.bytes));
    let before = before.map(|before| format!(" (was {})", size(before))).unwrap_or_default();
    Some(parts.join(", ") + &before)
}

fn summary_text(summary: &Summary, metadata: bool) -> String {
    let mut parts = Vec::new();
    for (verb, tally, before) in [
        ("added", &summary.added, None),
        ("removed", &summary.removed, None),
        ("changed", &summary.changed, Some(summary.changed_bytes_before)),
    ] {
        parts.extend(tally_text(tally, before).map(|text| format!("{verb} {text}")));
    }
    if summary.metadata > 0 {
        let hint = if metadata { "" } else { " (--metadata shows them)" };
        parts.push(format!("{} in attributes only{hint}", count(summary.metadata, "differs", "differ")));
    }
    if parts.is_empty() { "no differences".into() } else { parts.join("; ") }
}

fn aspects_json(aspects: Aspects) -> Value {
    let Aspects { kind, content, mode, owner, mtime, xattrs } = aspects;
    let all =
        [(kind, "kind"), (content, "content"), (mode, "mode"), (owner, "owner"), (mtime, "mtime"), (xattrs, "xattrs")];
    all.into_iter().filter(|(differs, _)| *differs).map(|(_, name)| name).collect()
}

fn change_json(change: &Change) -> Value {
    let mut object = Map::new();
    put_path(&mut object, "path", &change.path);
    let fate = match (&change.before, &change.after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    };
    object.insert("change".into(), json!(fate));
    for (node, suffix) in [(&change.before, "_before"), (&change.after, "")] {
        let Some(node) = node else { continue };
        object.insert(format!("type{suffix}"), json!(word(node.kind)));
        node.size.into_iter().for_each(|bytes| drop(object.insert(format!("size{suffix}"), json!(bytes))));
        if fate == "changed" {
            for (aspect, key, value) in [
                (change.aspects.mode, "mode", node.mode),
                (change.aspects.owner, "uid", node.uid),
                (change.aspects.owner, "gid", node.gid),
            ] {
                if aspect {
                    object.insert(format!("{key}{suffix}"), json!(value));
                }
            }
        }
    }
    if fate == "changed" {
        object.insert("aspects".into(), aspects_json(change.aspects));
    }
    if let Some(database) = &change.database {
        object.insert("database".into(), database_json(database));
    }
    object.into()
}

fn database_json(database: &DatabaseChange) -> Value {
    json!({
        "page_bytes": database.page_bytes.1,
        "page_bytes_before": database.page_bytes.0,
        "pages": database.pages.1,
        "pages_before": database.pages.0,
        "pages_changed": database.pages_changed,
        "tables": database.tables.iter().map(table_json).collect::<Value>(),
        "free": database.free,
        "overflow": database.overflow,
        "pointer_map": database.pointer_map,
        "lock": database.lock,
        "header": database.header,
        "tables_unknown": database.tables_unknown,
    })
}

fn table_json(table: &TableChange) -> Value {
    let fate = match (table.was_there, table.is_there) {
        (false, _) => "added",
        (_, false) => "removed",
        _ => "changed",
    };
    let mut object = json!({
        "type": kind(table.kind),
        "name": table.name,
        "table": table.table,
        "change": fate,
        "pages": table.pages,
        "pages_left": table.pages_left,
    });
    if let Some(more) = table.rows_more {
        object["rows_more"] = json!(more);
    }
    if let Some((before, after)) = table.rows {
        object["rows_before"] = json!(before);
        object["rows"] = json!(after);
    }
    object
}

fn summary_json(summary: &Summary) -> Value {
    let tally = |tally: &Tally| {
        json!({
            "files": tally.files,
            "directories": tally.directories,
            "databases": tally.databases,
            "others": tally.others,
            "bytes": tally.bytes,
        })
    };
    let mut changed = tally(&summary.changed);
    changed["bytes_before"] = json!(summary.changed_bytes_before);
    json!({
        "added": tally(&summary.added),
        "removed": tally(&summary.removed),
        "changed": changed,
        "metadata": summary.metadata,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapshot::format::tree::Node;

    #[test]
    fn lines_and_summaries() {
        let style = Style { numeric: false, human: true, terminal: true };
        let node = |mode, size| Node { mode, size: Some(size), ..Node::bare(b"a\n", NodeKind::File) };
        let mut change = Change {
            path: b"d/a\n".to_vec(),
            before: Some(node(0o644, 10)),
            after: Some(node(0o600, 2048)),
            aspects: Aspects { content: true, mode: true, mtime: true, ..Aspects::default() },
            database: None,
        };
        assert_eq!(to_line(&change, style), b"M    d/a\\n  (2.0 KiB, was 10 B; mode 0600, was 0644)");
        assert_eq!(change_json(&change)["aspects"], json!(["content", "mode", "mtime"]));
        change.before = None;
        assert_eq!(to_line(&change, style), b"+    d/a\\n  (2.0 KiB)");
        change.after = Some(Node::bare(b"a", NodeKind::Directory));
        assert_eq!(to_line(&change, style), b"+    d/a\\n/");
        let mut summary = Summary::default();
        assert_eq!(summary_text(&summary, false), "no differences");
        summary.changed = Tally { files: 1, bytes: 2048, ..Tally::default() };
        summary.metadata = 2;
        assert_eq!(
            summary_text(&summary, false),
            "changed 1 file, 2.0 KiB (was 0 B); 2 differ in attributes only (--metadata shows them)"
        );
    }

    #[test]
    fn tables() {
        let table = TableChange {
            kind: TableKind::Table,
            name: "t\u{1b}".into(),
            table: "t".into(),
            was_there: true,
            is_there: true,
            pages: 3,
            pages_left: 1,
            rows_more: Some(-2),
            rows: None,
        };
        assert_eq!(table_line(&table), "table t\\u{1b}: 3 pages, 1 page given up, 2 rows fewer");
        let table = TableChange { rows: Some((1200, 1198)), ..table };
        assert_eq!(table_line(&table), "table t\\u{1b}: 3 pages, 1 page given up, 1,198 rows, was 1,200");
    }
}
