//! A look before a restore: what it would do with each name, and what it would delete. Changes nothing; reads no data
//! from the repository, and local files only where content was asked to be compared.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::context::Context;
use super::delete::Deletion;
use super::existing::{self, Link, Verdict};
use super::plan::{Step, Walk};
use super::{Action, Overwrite, PlannedItem, Summary};
use crate::error::Result;
use crate::format::tree::{Node, NodeKind};
use crate::source::marker::MARKER;
use crate::source::target::Folder;

/// A directory that the look is in.
struct Level {
    /// `None` if there is none yet.
    folder: Option<Arc<Folder>>,
    /// Whether something in it may be deleted: not where something else is mounted.
    deletes: bool,
}

struct Look<'a, 'c> {
    context: &'a Context<'c>,
    /// What happens to each name is left out if only what to delete is looked for.
    lists: bool,
    path: PathBuf,
    levels: Vec<Level>,
    /// Files with several names: device and inode of one that stays, or `None` for one that is written.
    linked: HashMap<u64, Option<(u64, u64)>>,
    summary: Summary,
    deletion: Deletion,
}

/// Lists what would be done, if `lists`, and plans what to delete, if that is wanted. Directories that are only made
/// for what is in them are not listed.
///
/// # Errors
/// If a directory can't be listed that something is to be deleted from.
pub(super) fn look(
    walk: &mut Walk<'_>,
    context: &Context<'_>,
    target: Option<Arc<Folder>>,
    lists: bool,
) -> Result<(Summary, Deletion)> {
    let mut look = Look {
        context,
        lists,
        path: context.options.target.clone(),
        levels: vec![Level { folder: target, deletes: context.options.delete }],
        linked: HashMap::new(),
        summary: Summary::default(),
        deletion: Deletion::default(),
    };
    look.delete(walk)?;
    while let Some(step) = walk.next()? {
        match step {
            Step::Enter { node, wanted } => look.enter(walk, &node, wanted)?,
            Step::Leave => {
                look.path.pop();
                look.levels.pop();
            }
            Step::Node(node) => look.node(walk, &node)?,
        }
    }
    if lists {
        for item in look.deletion.planned(&context.options.target) {
            look.summary.deleted += 1;
            look.summary.planned.push(item);
        }
    }
    Ok((look.summary, look.deletion))
}

impl Look<'_, '_> {
    fn folder(&self) -> Option<&Arc<Folder>> {
        self.levels.last().and_then(|level| level.folder.as_ref())
    }

    fn delete(&mut self, walk: &Walk<'_>) -> Result<()> {
        if let Some(Level { folder: Some(folder), deletes: true }) = self.levels.last() {
            self.deletion.look(walk, folder, self.context.options)?;
        }
        Ok(())
    }

    fn enter(&mut self, walk: &Walk<'_>, node: &Node, wanted: bool) -> Result<()> {
        self.path.push(OsStr::from_bytes(&node.name));
        let around = self.folder().cloned();
        let mut deletes = self.levels.last().is_some_and(|level| level.deletes);
        let folder = match &around {
            Some(around) => around.enter(&node.name)?,
            None => None,
        };
        if deletes && around.as_ref().zip(folder.as_ref()).map_or(Ok(false), |(a, _)| a.is_mount(&node.name))? {
            self.deletion.pass_over(self.path.clone());
            deletes = false;
        }
        if wanted && self.lists {
            let action = self.folder_action(node, around.as_deref(), folder.as_deref())?;
            self.add(node, action);
        }
        self.levels.push(Level { folder, deletes });
        self.delete(walk)
    }

    fn folder_action(&self, node: &Node, around: Option<&Folder>, folder: Option<&Folder>) -> Result<Action> {
        if let Some(folder) = folder {
            let differs = || folder.handle().map(|handle| self.context.attributes.differ(&handle, node));
            let stays = self.context.overwrite == Overwrite::Never || !differs()?;
            return Ok(if stays { Action::Keep } else { Action::Metadata });
        }
        let there = around.map_or(Ok(None), |around| around.stat(&node.name))?;
        if there.is_some() && !self.context.options.replaces_kinds() {
            let why = std::io::Error::new(std::io::ErrorKind::NotADirectory, super::NO_DIRECTORY);
            self.context.lose(&self.path, crate::error::Error::file("create", &self.path, why))?;
            return Ok(Action::Omit);
        }
        Ok(if there.is_some() { Action::Replace } else { Action::Create })
    }

    fn node(&mut self, walk: &Walk<'_>, node: &Node) -> Result<()> {
        if !self.lists {
            return Ok(());
        }
        self.path.push(OsStr::from_bytes(&node.name));
        let action = self.action(walk, node)?;
        self.add(node, action);
        self.path.pop();
        Ok(())
    }

    fn action(&mut self, walk: &Walk<'_>, node: &Node) -> Result<Action> {
        if node.kind == NodeKind::Socket || (walk.is_at_top() && node.name[..] == *MARKER) {
            return Ok(Action::Omit);
        }
        let Some(folder) = self.folder().cloned() else { return Ok(Action::Create) };
        if self.deletion.is_in_the_way(&folder.path_of(&node.name)) {
            return Ok(Action::Replace);
        }
        let link = match node.hard_link.and_then(|group| self.linked.get(&group)) {
            None => Link::No,
            Some(None) => Link::Planned,
            Some(Some((device, inode))) => Link::There(*device, *inode),
        };
        let (action, stays) = match existing::judge(self.context, &folder, node, link) {
            Ok(Verdict::Create) => (Action::Create, false),
            Ok(Verdict::Replace(_)) => (Action::Replace, false),
            Ok(Verdict::Keep) => (Action::Keep, true),
            Ok(Verdict::Same(file)) if self.context.attributes.differ(&file, node) => (Action::Metadata, true),
            Ok(Verdict::Same(_)) => (Action::Keep, true),
            Err(e) => {
                self.context.lose(&self.path, e)?;
                (Action::Omit, true)
            }
        };
        if let (Some(group), Link::No) = (node.hard_link, link)
            && action != Action::Omit
        {
            let inode = if stays { folder.stat(&node.name)?.map(|stat| (stat.st_dev, stat.st_ino)) } else { None };
            self.linked.insert(group, inode);
        }
        Ok(action)
    }

    fn add(&mut self, node: &Node, action: Action) {
        let bytes = node.size.unwrap_or(0);
        let summary = &mut self.summary;
        match (action, node.kind) {
            (Action::Omit | Action::Delete, _) => {}
            (Action::Metadata, _) => summary.metadata += 1,
            (_, NodeKind::Directory) => summary.directories += 1,
            (Action::Keep, _) => summary.skipped += 1,
            (_, NodeKind::File) => summary.files += 1,
            (_, NodeKind::Database) => summary.databases += 1,
            _ => summary.others += 1,
        }
        if matches!(action, Action::Create | Action::Replace) {
            summary.bytes += bytes;
        }
        summary.planned.push(PlannedItem { path: self.path.clone(), kind: node.kind, bytes, action });
    }
}
