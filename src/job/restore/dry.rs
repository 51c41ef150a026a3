//! The plan alone: what a restore would do, looked up without changing anything.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::context::Context;
use super::existing::{SIDECARS, is_captured};
use super::plan::{Step, Walk};
use super::{Action, Overwrite, PlannedItem, Summary};
use crate::error::Result;
use crate::format::tree::{Node, NodeKind};

/// Lists what would be done. Directories that are only made for what is in them are not listed.
pub(super) fn run(walk: &mut Walk<'_>, context: &Context<'_>) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut path = context.options.target.clone();
    while let Some(step) = walk.next()? {
        match step {
            Step::Enter { node, wanted } => {
                path.push(OsStr::from_bytes(&node.name));
                if wanted {
                    let action = if path.is_dir() { Action::Keep } else { Action::Create };
                    add(&mut summary, path.clone(), &node, action);
                }
            }
            Step::Leave => {
                path.pop();
            }
            Step::Node(node) => {
                let path = path.join(OsStr::from_bytes(&node.name));
                let action = action(context, &node, &path);
                add(&mut summary, path, &node, action);
            }
        }
    }
    Ok(summary)
}

fn action(context: &Context<'_>, node: &Node, path: &Path) -> Action {
    if node.kind == NodeKind::Socket {
        return Action::Omit;
    }
    let Ok(there) = path.symlink_metadata() else { return Action::Create };
    match context.options.overwrite {
        Some(Overwrite::Never) => Action::Keep,
        Some(Overwrite::IfChanged) if is_unchanged(context, node, path, &there) => Action::Keep,
        _ => Action::Replace,
    }
}

fn is_unchanged(context: &Context<'_>, node: &Node, path: &Path, there: &Metadata) -> bool {
    if !there.is_file() || node.size != Some(there.len()) {
        return false;
    }
    let Some(database) = &node.database else {
        return (node.mtime.secs, i64::from(node.mtime.nanos)) == (there.mtime(), there.mtime_nsec());
    };
    let has = |suffix: &[u8]| {
        let mut beside = path.as_os_str().to_owned();
        beside.push(OsStr::from_bytes(suffix));
        Path::new(&beside).symlink_metadata().is_ok_and(|m| m.len() > 0)
    };
    let Ok(file) = File::open(path) else { return false };
    !has(SIDECARS[0])
        && !has(SIDECARS[2])
        && is_captured(context, database, &file.into(), path, there.len()).unwrap_or(false)
}

fn add(summary: &mut Summary, path: PathBuf, node: &Node, action: Action) {
    let bytes = node.size.unwrap_or(0);
    match (action, node.kind) {
        (Action::Omit, _) => {}
        (_, NodeKind::Directory) => summary.directories += 1,
        (Action::Keep, _) => summary.skipped += 1,
        (_, NodeKind::File) => summary.files += 1,
        (_, NodeKind::Database) => summary.databases += 1,
        _ => summary.others += 1,
    }
    if matches!(action, Action::Create | Action::Replace) {
        summary.bytes += bytes;
    }
    summary.planned.push(PlannedItem { path, kind: node.kind, bytes, action });
}
