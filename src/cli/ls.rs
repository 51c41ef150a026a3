//! `snapshot ls`

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use snapshot::error::{Error, Result};
use snapshot::job::look::{self, Listed};
use snapshot::repo::Repository;
use snapshot::report::{Problem, Severity};

use super::args::Ls;
use super::context::Context;
use super::nodes::{Owners, Style, to_json};
use super::output::{JSON_VERSION, Out};

/// Shows the files in a snapshot.
pub fn run(context: &Context, args: Ls, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let mut selected = session.repo.select(&args.snapshot, &args.filters.into(), &context.reporter)?;
    if let Some(path) = &args.path {
        selected.sub_path.extend(components(path)?);
    }
    let owners = Owners::of(&selected.named.snapshot);
    let recursive = !args.no_recursive;
    let with_pages = args.long || context.global.json;
    let pages = |listed: &Listed| if with_pages { pages(context, &session.repo, listed) } else { None };
    if !context.global.json {
        let style = Style { numeric: args.numeric, human: args.human, terminal: out.is_terminal() };
        let mut branches = Branches::default();
        return look::ls(&session.repo, &selected, recursive, &mut |listed| {
            context.reporter.check_interrupt()?;
            let mut line = Vec::new();
            if args.long {
                line.extend(style.before(&listed.node, &owners).bytes());
            }
            if args.tree {
                line.extend(branches.before(&listed).bytes());
                line.extend(style.name(&listed.node.name));
            } else {
                line.extend(style.name(&listed.path));
            }
            if args.long {
                line.extend(style.after(&listed.node, pages(&listed)));
            }
            out.line(line)
        });
    }
    // One document, written as it comes: a snapshot may have millions of files.
    out.text(format!("{{\"version\":{JSON_VERSION},\"snapshot_id\":\"{}\",\"nodes\":[", selected.named.id))?;
    let mut comma = "";
    look::ls(&session.repo, &selected, recursive, &mut |listed| {
        context.reporter.check_interrupt()?;
        let node = serde_json::Value::from(to_json(&listed.path, &listed.node, &owners, pages(&listed)));
        out.text(format!("{}{node}", std::mem::replace(&mut comma, ",")))
    })?;
    out.line("]}")
}

/// Length and number of a database's pages. A map that can't be read is reported, and the rest is shown.
fn pages(context: &Context, repo: &Repository, listed: &Listed) -> Option<(u32, u64)> {
    let read = look::database_pages(repo, listed.node.database.as_ref()?);
    read.map_err(|e| {
        context.reporter.problem(Problem {
            severity: Severity::Damage,
            what: String::from_utf8_lossy(&listed.path).into_owned(),
            why: e.to_string(),
            hint: e.hint().map(str::to_owned),
        });
    })
    .ok()
}

/// The lines that a tree is drawn with.
#[derive(Default)]
struct Branches {
    /// For each directory around the entry, whether it is the last of its own.
    is_last: Vec<bool>,
}

impl Branches {
    /// What stands before an entry's name.
    fn before(&mut self, listed: &Listed) -> String {
        self.is_last.truncate(listed.depth);
        let mut text: String = self.is_last.iter().map(|is_last| if *is_last { "    " } else { "│   " }).collect();
        text.push_str(if listed.is_last { "└── " } else { "├── " });
        self.is_last.push(listed.is_last);
        text
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use snapshot::format::tree::{Node, NodeKind};

    #[test]
    fn paths_within_a_snapshot() {
        assert_eq!(components(OsStr::new("/a//b/./c/")).unwrap(), [b"a", b"b", b"c"]);
        assert!(components(OsStr::new("a/../b")).is_err());
    }

    #[test]
    fn a_tree_is_drawn() {
        let mut branches = Branches::default();
        let mut line = |depth, is_last| {
            let node = Node::bare(b"x", NodeKind::File);
            branches.before(&Listed { path: vec![], node, depth, is_last })
        };
        assert_eq!(line(0, false), "├── ");
        assert_eq!(line(1, true), "│   └── ");
        assert_eq!(line(2, true), "│       └── ");
        assert_eq!(line(0, true), "└── ");
        assert_eq!(line(1, false), "    ├── ");
    }
}
