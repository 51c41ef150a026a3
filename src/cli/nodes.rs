//! Entries of snapshots as people and programs read them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use snapshot::format::dump::Dump;
use snapshot::format::facts::{Facts, TableRows};
use snapshot::format::mark::{Proof, ProofKind};
use snapshot::format::snapshot::{Owner, Snapshot};
use snapshot::format::tree::{Node, NodeKind, Xattr};
use snapshot::id::hex;

use super::output::{clean_path, count, local_time, put_path, rfc3339, size};

/// What access control lists are stored as.
const ACL: &[u8] = b"system.posix_acl_";

/// Names of users and groups where a snapshot was taken.
pub struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// Those of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        let names = |owners: &[Owner]| owners.iter().map(|owner| (owner.id, owner.name.clone())).collect();
        Self { users: names(&snapshot.users), groups: names(&snapshot.groups) }
    }
}

/// How the long form shows things.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Owners as numbers.
    pub numeric: bool,
    /// Sizes like 1.5 MiB.
    pub human: bool,
    /// A terminal reads it: no name may play tricks there. A program gets the bytes as they are.
    pub terminal: bool,
}

impl Style {
    /// A name or path.
    pub fn name(self, bytes: &[u8]) -> Vec<u8> {
        if self.terminal { clean_path(bytes).into_bytes() } else { bytes.to_vec() }
    }

    /// What stands before the name.
    pub fn before(self, node: &Node, owners: &Owners) -> String {
        let name = |names: &HashMap<u32, String>, id: u32| match names.get(&id) {
            Some(name) if !self.numeric => clean_path(name.as_bytes()),
            _ => id.to_string(),
        };
        let length = match (node.device(), node.size.unwrap_or(0)) {
            (Some((major, minor)), _) => format!("{major}, {minor}"),
            (None, bytes) if self.human => size(bytes),
            (None, bytes) => bytes.to_string(),
        };
        let (user, group) = (name(&owners.users, node.uid), name(&owners.groups, node.gid));
        format!("{} {user:<8} {group:<8} {length:>12} {} ", mode(node), local_time(node.mtime))
    }

    /// What stands after the name: `pages` are the length and number of a database's pages, where they are known.
    pub fn after(self, node: &Node, pages: Option<(u32, u64)>) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(target) = &node.target {
            out.extend(b" -> ");
            out.extend(self.name(target));
        }
        if let Some((page_bytes, pages)) = pages {
            let facts = node.database.as_ref().and_then(|database| database.facts.as_ref());
            let inside = facts.map(rows_text).unwrap_or_default();
            out.extend(format!("  (database: {pages} pages of {page_bytes} bytes{inside})").bytes());
        }
        if let Some(dump) = &node.dump {
            let of = dump.server.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
            let name = dump.database_name().map_or_else(|| ", roles".to_owned(), |name| format!(", database {name}"));
            out.extend(b"  (PostgreSQL");
            out.extend(self.name(format!("{of}{name}").as_bytes()));
            out.push(b')');
        }
        if let Some(number) = node.hard_link {
            out.extend(format!("  (hard link {number})").bytes());
        }
        if let Some(why) = &node.unverified {
            out.extend(b"  (unverified: ");
            out.extend(self.name(why.as_bytes()));
            out.push(b')');
        }
        out
    }
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

/// The name of a kind.
pub fn word(kind: NodeKind) -> &'static str {
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

/// As `ls -l` writes it, and a mark for what is special.
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
    let xattrs = node.xattrs.as_deref().unwrap_or_default();
    text.push(match node.kind {
        NodeKind::Database => '*',
        _ if xattrs.iter().any(|xattr| xattr.name.starts_with(ACL)) => '+',
        _ if !xattrs.is_empty() => '@',
        _ => ' ',
    });
    text
}

/// Everything about a node but its blobs. `pages` as for [`Style::after`].
pub fn to_json(path: &[u8], node: &Node, owners: &Owners, pages: Option<(u32, u64)>) -> Map<String, Value> {
    let mut object = Map::new();
    put_path(&mut object, "path", path);
    let mut put = |key: &str, value: Value| drop(object.insert(key.into(), value));
    put("type", json!(word(node.kind)));
    put("mode", json!(node.mode));
    put("uid", json!(node.uid));
    put("gid", json!(node.gid));
    put("mtime", json!(rfc3339(node.mtime)));
    for (key, name) in [("user", owners.users.get(&node.uid)), ("group", owners.groups.get(&node.gid))] {
        name.into_iter().for_each(|name| put(key, json!(name)));
    }
    for (key, number) in [("inode", node.inode), ("size", node.size), ("hard_link", node.hard_link)] {
        number.into_iter().for_each(|n| put(key, json!(n)));
    }
    if let Some(time) = node.ctime {
        put("ctime", json!(rfc3339(time)));
    }
    if let Some((major, minor)) = node.device() {
        put("device", json!({"major": major, "minor": minor}));
    }
    if let Some(xattrs) = &node.xattrs {
        put("xattrs", xattrs.iter().map(xattr_json).collect());
    }
    if let Some(extents) = &node.extents {
        put("extents", json!(extents.as_chunks::<2>().0));
    }
    if let Some(database) = &node.database {
        let mut fields = json!({"wal_mode": database.wal_mode, "captured": rfc3339(database.captured)});
        if let Some((page_bytes, pages)) = pages {
            fields["page_bytes"] = json!(page_bytes);
            fields["pages"] = json!(pages);
        }
        if let Some(facts) = &database.facts {
            fields["facts"] = facts_json(facts);
        }
        put("database", fields);
    }
    if let Some(dump) = &node.dump {
        put("dump", dump_json(dump));
    }
    if let Some(why) = &node.unverified {
        put("unverified", json!(why));
    }
    if let Some(target) = &node.target {
        put_path(&mut object, "target", target);
    }
    object
}

/// How much is in a database, where it was counted.
fn rows_text(facts: &Facts) -> String {
    let Some((tables, rows)) = facts.tables.as_ref().zip(facts.rows()) else { return String::new() };
    format!(", {}, {}", count(tables.len() as u64, "table", "tables"), count(rows, "row", "rows"))
}

/// What was recorded of a database.
pub fn facts_json(facts: &Facts) -> Value {
    let table = |table: &TableRows| json!({"name": table.name, "rows": table.rows});
    json!({
        "user_version": facts.user_version,
        "application_id": facts.application_id,
        "schema_version": facts.schema_version,
        "encoding": facts.encoding,
        "free_pages": facts.free_pages,
        "schema_hash": facts.schema_hash.as_ref().map(|hash| hex(&hash[..])),
        "tables": facts.tables.as_ref().map(|tables| tables.iter().map(table).collect::<Vec<_>>()),
    })
}

/// When and how a snapshot was proved to be restorable.
pub fn proof_json(proof: &Proof) -> Value {
    let by = match proof.kind {
        ProofKind::Drill => "restore-drill",
    };
    json!({"time": rfc3339(proof.time), "program": proof.program, "by": by})
}

/// What is known of a dump.
pub fn dump_json(dump: &Dump) -> Value {
    let mut object = Map::new();
    object.insert("kind".into(), json!(dump.kind));
    if let Some(name) = &dump.database {
        put_path(&mut object, "database", name);
    }
    for (key, value) in [("server_version", &dump.server), ("tool_version", &dump.tool)] {
        value.iter().for_each(|value| drop(object.insert(key.into(), json!(value))));
    }
    object.insert("hash".into(), json!(hex(&dump.hash)));
    object.into()
}

/// An extended attribute: text as text, all else in hex.
pub fn xattr_json(xattr: &Xattr) -> Value {
    let mut object = Map::new();
    for (key, bytes) in [("name", &xattr.name), ("value", &xattr.value)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => object.insert(key.into(), json!(text)),
            Err(_) => object.insert(format!("{key}_hex"), json!(hex(bytes))),
        };
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> Owners {
        Owners { users: HashMap::from([(7, "ada\u{1b}".into())]), groups: HashMap::new() }
    }

    #[test]
    fn the_long_form() {
        let style = Style { numeric: false, human: false, terminal: true };
        let node = Node { mode: 0o4751, size: Some(7), uid: 7, ..Node::bare(b"a", NodeKind::Database) };
        assert_eq!(mode(&node), "-rwsr-x--x*");
        let before = style.before(&node, &owners());
        assert!(before.starts_with("-rwsr-x--x* ada\\u{1b} 0                   7 "), "{before}");
        assert!(Style { numeric: true, ..style }.before(&node, &owners()).contains("* 7        0 "));
        let large = Node { size: Some(3 << 20), ..node };
        assert!(Style { human: true, ..style }.before(&large, &owners()).contains(" 3.0 MiB "));
        assert_eq!(style.after(&large, Some((512, 3))), b"  (database: 3 pages of 512 bytes)");

        let xattr = |name: &[u8]| Some(vec![Xattr { name: name.to_vec().into(), value: vec![0xff].into() }]);
        let link = Node {
            mode: 0o1666,
            target: Some(b"x\n".to_vec().into()),
            xattrs: xattr(b"system.posix_acl_access"),
            hard_link: Some(3),
            ..Node::bare(b"a", NodeKind::Symlink)
        };
        assert_eq!(mode(&link), "lrw-rw-rwT+");
        assert_eq!(style.after(&link, None), b" -> x\\n  (hard link 3)");
        assert_eq!(Style { terminal: false, ..style }.after(&link, None), b" -> x\n  (hard link 3)");
        let device = Node { rdev: Some(0x0801), xattrs: xattr(b"user.a"), ..Node::bare(b"d", NodeKind::BlockDevice) };
        assert!(style.before(&device, &owners()).contains("         8, 1 ") && mode(&device).ends_with('@'));
        let json = Value::from(to_json(b"d", &device, &owners(), None));
        assert_eq!(json["device"], json!({"major": 8, "minor": 1}));
        assert_eq!(json["xattrs"], json!([{"name": "user.a", "value_hex": "ff"}]));
    }
}
