//! `snapshot ls`

use serde_json::{Map, Value, json};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use snapshot::error::{Error, Result};
use snapshot::format::tree::{Node, NodeKind};
use snapshot::job::look::{self, Listed};

use super::args::Ls;
use super::context::Context;
use super::output::{JSON_VERSION, Out, clean_path, local_time, put_path, rfc3339};

/// Shows the files in a snapshot.
pub fn run(context: &Context, args: Ls, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let mut selected = session.repo.select(&args.snapshot, &args.filters.into(), &context.reporter)?;
    if let Some(path) = &args.path {
        selected.sub_path.extend(components(path)?);
    }
    let recursive = !args.no_recursive;
    if !context.global.json {
        return look::ls(&session.repo, &selected, recursive, &mut |listed| {
            context.reporter.check_interrupt()?;
            out.line(to_line(&listed, args.long, out.is_terminal()))
        });
    }
    // One document, written as it comes: a snapshot may have millions of files.
    out.text(format!("{{\"version\":{JSON_VERSION},\"snapshot_id\":\"{}\",\"nodes\":[", selected.named.id))?;
    let mut first = true;
    look::ls(&session.repo, &selected, recursive, &mut |listed| {
        context.reporter.check_interrupt()?;
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        out.text(format!("{comma}{}", to_json(&listed)))
    })?;
    out.line("]}")
}

/// The parts of a path within a snapshot.
fn components(path: &OsStr) -> Result<Vec<Vec<u8>>> {
    let parts = path.as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
    if parts.iter().any(|part| part == b"..") {
        return Err(Error::Usage(format!("a path within a snapshot has no \"..\": {}", path.display())));
    }
    Ok(parts)
}

fn to_line(Listed { path, node }: &Listed, long: bool, terminal: bool) -> Vec<u8> {
    // On a terminal no name may play tricks; a program gets the bytes as they are.
    let show = |bytes: &[u8]| if terminal { clean_path(bytes).into_bytes() } else { bytes.to_vec() };
    let mut line = Vec::new();
    if long {
        let size = node.size.unwrap_or(0);
        let when = local_time(node.mtime);
        line.extend(format!("{} {:>5} {:>5} {size:>12} {when} ", mode(node), node.uid, node.gid).bytes());
    }
    line.extend(show(path));
    if let (true, Some(target)) = (long, &node.target) {
        line.extend(b" -> ");
        line.extend(show(target));
    }
    if let (true, Some(why)) = (long, &node.unverified) {
        line.extend(b"  (unverified: ");
        line.extend(show(why.as_bytes()));
        line.push(b')');
    }
    line
}

fn letter(kind: NodeKind) -> char {
    match kind {
        NodeKind::File | NodeKind::Database => '-',
        NodeKind::Directory => 'd',
        NodeKind::Symlink => 'l',
        NodeKind::Fifo => 'p',
        NodeKind::CharDevice => 'c',
        NodeKind::BlockDevice => 'b',
        NodeKind::Socket => 's',
    }
}

fn word(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Database => "database",
        NodeKind::Directory => "directory",
        NodeKind::Symlink => "symlink",
        NodeKind::Fifo => "fifo",
        NodeKind::CharDevice => "char-device",
        NodeKind::BlockDevice => "block-device",
        NodeKind::Socket => "socket",
    }
}

/// As `ls -l` writes it; a database is marked by `*` at the end.
fn mode(node: &Node) -> String {
    let mut text = String::from(letter(node.kind));
    for (shift, special, small, large) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = node.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, node.mode & special != 0) {
            (true, true) => small,
            (false, true) => large,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text.push(if node.kind == NodeKind::Database { '*' } else { ' ' });
    text
}

fn to_json(Listed { path, node }: &Listed) -> Value {
    let mut object = Map::new();
    put_path(&mut object, "path", path);
    object.insert("type".into(), json!(word(node.kind)));
    object.insert("mode".into(), json!(node.mode));
    object.insert("uid".into(), json!(node.uid));
    object.insert("gid".into(), json!(node.gid));
    object.insert("mtime".into(), json!(rfc3339(node.mtime)));
    if let Some(size) = node.size {
        object.insert("size".into(), json!(size));
    }
    if let Some(target) = &node.target {
        put_path(&mut object, "target", target);
    }
    if let Some(why) = &node.unverified {
        object.insert("unverified".into(), json!(why));
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_within_a_snapshot() {
        assert_eq!(components(OsStr::new("/a//b/./c/")).unwrap(), [b"a", b"b", b"c"]);
        assert!(components(OsStr::new("a/../b")).is_err());
    }

    #[test]
    fn long_lines() {
        let node = Node { mode: 0o4751, size: Some(7), ..Node::bare(b"a", NodeKind::Database) };
        assert_eq!(mode(&node), "-rwsr-x--x*");
        let node = Node { mode: 0o1666, target: Some(b"x\n".to_vec().into()), ..Node::bare(b"a", NodeKind::Symlink) };
        assert_eq!(mode(&node), "lrw-rw-rwT ");
        let listed = Listed { path: b"d/a".to_vec(), node };
        assert!(to_line(&listed, true, true).ends_with(b" d/a -> x\\n"));
        assert!(to_line(&listed, true, false).ends_with(b" d/a -> x\n"));
        assert_eq!(to_line(&listed, false, false), b"d/a");
    }
}
