//! A look before a restore: what it would do with each name, and what it would delete. Changes nothing; reads no data
//! from the repository, and local files only where content was asked to be compared.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::before::{Before, There};
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
    path: PathBuf,
    levels: Vec<Level>,
    /// Files with several names: device and inode of one that stays, or `None` for one that is written.
    linked: HashMap<u64, Option<(u64, u64)>>,
    looked: Looked,
}

/// What a look has found.
#[derive(Default)]
pub(super) struct Looked {
    /// Of a dry run: what would be done.
    pub summary: Summary,
    /// What is to be deleted.
    pub deletion: Deletion,
    /// What is about to change.
    pub before: Before,
}

/// Finds out what is about to change, plans what to delete, if that is wanted, and for a dry run lists what would be
/// done. Directories that are only made for what is in them are not listed.
///
/// # Errors
/// If a directory can't be listed that something is to be deleted from.
pub(super) fn look(walk: &mut Walk<'_>, context: &Context<'_>, target: Option<Arc<Folder>>) -> Result<Looked> {
    let mut look = Look {
        context,
        path: context.options.target.clone(),
        levels: vec![Level { folder: target.clone(), deletes: context.options.delete }],
        linked: HashMap::new(),
        looked: Looked { deletion: Deletion::new(context.options)?, ..Looked::default() },
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
    let Looked { mut summary, mut deletion, mut before } = look.looked;
    if let Some(target) = &target {
        deletion.add_made(target, &context.options.remove, context.options)?;
    }
    deletion.tell(&mut before)?;
    if context.options.dry_run {
        for item in deletion.planned(&context.options.target) {
            summary.deleted += 1;
            summary.planned.push(item);
        }
    }
    Ok(Looked { summary, deletion, before })
}

impl Look<'_, '_> {
    fn folder(&self) -> Option<&Arc<Folder>> {
        self.levels.last().and_then(|level| level.folder.as_ref())
    }

    fn delete(&mut self, walk: &Walk<'_>) -> Result<()> {
        if let Some(Level { folder: Some(folder), deletes: true }) = self.levels.last() {
            self.looked.deletion.look(walk, folder, self.context.options)?;
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
            self.looked.deletion.pass_over(self.path.clone());
            deletes = false;
        }
        if wanted {
            let action = self.folder_action(node, around.as_deref(), folder.as_deref())?;
            self.add(node, action, around.as_ref())?;
        } else if folder.is_none() {
            self.will_make();
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
        self.path.push(OsStr::from_bytes(&node.name));
        let action = self.action(walk, node)?;
        let folder = self.folder().cloned();
        self.add(node, action, folder.as_ref())?;
        self.path.pop();
        Ok(())
    }

    fn action(&mut self, walk: &Walk<'_>, node: &Node) -> Result<Action> {
        if node.kind == NodeKind::Socket || (walk.is_at_top() && node.name[..] == *MARKER) {
            return Ok(Action::Omit);
        }
        let Some(folder) = self.folder().cloned() else { return Ok(Action::Create) };
        if self.looked.deletion.is_in_the_way(&folder.path_of(&node.name)) {
            return Ok(Action::Replace);
        }
        if existing::may_be_database(node) && self.looked.before.locked.is_none() && !self.context.options.force {
            self.looked.before.locked = existing::refuse_locked(&folder, node).err();
            if self.looked.before.locked.is_some() {
                // The whole restore is refused for that.
                return Ok(Action::Replace);
            }
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

    /// Counts what is done with a node, which is or will be in `around`.
    fn add(&mut self, node: &Node, action: Action, around: Option<&Arc<Folder>>) -> Result<()> {
        match (action, around) {
            (Action::Create, _) => self.will_make(),
            // A directory's own attributes come with what is kept of its contents.
            (Action::Metadata, _) if node.kind == NodeKind::Directory => {}
            (Action::Replace | Action::Metadata, Some(around)) => {
                if action == Action::Replace && existing::may_be_database(node) {
                    self.looked.before.add_database(around, &node.name)?;
                }
                self.looked.before.replaced.push(There { folder: around.clone(), name: node.name.to_vec() });
            }
            _ => {}
        }
        if self.context.options.dry_run {
            self.list(node, action);
        }
        Ok(())
    }

    /// Remembers that the path looked at is made.
    fn will_make(&mut self) {
        if let Ok(below) = self.path.strip_prefix(&self.context.options.target) {
            self.looked.before.made.push(below.as_os_str().as_bytes().to_vec());
        }
    }

    fn list(&mut self, node: &Node, action: Action) {
        let bytes = node.size.unwrap_or(0);
        let summary = &mut self.looked.summary;
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
