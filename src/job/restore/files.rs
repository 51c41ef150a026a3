//! Gathering files into batches: each is written by frames, then come links, then directories that are complete.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::context::Context;
use super::existing::Link;
use super::write::{File, Layout, Part, Piece, State, pieces, write_batch};
use super::{layered, reuse, verify};
use crate::error::{Error, Result};
use crate::format::tree::Node;
use crate::source::target::Folder;

/// A batch is written when it has this many files and pieces: about 20 MiB of plan.
const BATCH_ITEMS: usize = 50_000;

/// A name of a file that has several.
enum Linked {
    /// In the batch that is being gathered.
    Planned,
    /// Restored.
    There(Arc<Folder>, Vec<u8>),
}

/// Gathers files and writes them in batches.
pub(super) struct Files<'a> {
    context: &'a Context<'a>,
    files: Vec<File>,
    pieces: Vec<Piece>,
    linked: HashMap<u64, Linked>,
    links: Vec<Part>,
    /// Directories that the walk has left, deepest first, and what they are to be like.
    closed: Vec<(Arc<Folder>, Option<Node>)>,
}

impl<'a> Files<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, files: vec![], pieces: vec![], linked: HashMap::new(), links: vec![], closed: vec![] }
    }

    /// A directory gets its attributes when everything in it is there; without a node it stays as it was.
    pub(super) fn close_folder(&mut self, folder: Arc<Folder>, node: Option<Node>) {
        self.closed.push((folder, node));
    }

    /// Another name of the same file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn link_of(&self, node: &Node) -> Result<Link> {
        Ok(match node.hard_link.and_then(|group| self.linked.get(&group)) {
            None => Link::No,
            Some(Linked::Planned) => Link::Planned,
            Some(Linked::There(folder, name)) => {
                folder.stat(name)?.map_or(Link::No, |stat| Link::There(stat.st_dev, stat.st_ino))
            }
        })
    }

    /// Adds a file to the batch, or to the links that follow it.
    pub(super) fn add(&mut self, part: Part) -> Result<()> {
        if matches!(part.node.hard_link.and_then(|group| self.linked.get(&group)), Some(Linked::Planned)) {
            self.links.push(part);
            return Ok(());
        }
        if self.is_linked(&part) {
            self.context.tally.files.add(1);
            self.context.reporter.advance(part.node.size.unwrap_or(0), 1);
            return Ok(());
        }
        if part.node.dump.as_ref().is_some_and(|dump| dump.layers.is_some()) {
            self.files.extend(layered::write(self.context, part)?);
            return Ok(());
        }
        let number = self.files.len() as u32;
        let layout = Layout::of(&part.node);
        let pieces = match pieces(self.context.repo, &part.node, number, layout.data_bytes) {
            Ok(pieces) => pieces,
            Err(e) => return self.context.lose(&part.path(), e),
        };
        if let Some(group) = part.node.hard_link {
            self.linked.insert(group, Linked::Planned);
        }
        self.files.push(File::new(part, layout, pieces.len()));
        self.pieces.extend(pieces);
        Ok(())
    }

    /// Whether a name could be made as a link to a file that is restored already.
    pub(super) fn is_linked(&self, part: &Part) -> bool {
        let group = part.node.hard_link.and_then(|group| self.linked.get(&group));
        let Some(Linked::There(folder, name)) = group else { return false };
        let made = part.folder.temporary(&part.node.name);
        // Where links are not to be had, the contents are written once more.
        made.make_link(folder, name).and_then(|()| part.place(self.context, &made)).is_ok()
    }

    /// Further names of this one can be links to it.
    pub(super) fn remember_link(&mut self, part: &Part) {
        if let Some(group) = part.node.hard_link {
            self.linked.insert(group, Linked::There(part.folder.clone(), part.node.name.to_vec()));
        }
    }

    pub(super) fn flush_if_full(&mut self) -> Result<()> {
        if self.files.len() + self.pieces.len() + self.links.len() + self.closed.len() < BATCH_ITEMS {
            return Ok(());
        }
        self.flush()
    }

    /// Writes everything that was gathered.
    pub(super) fn flush(&mut self) -> Result<()> {
        while !self.files.is_empty() {
            let pieces = std::mem::take(&mut self.pieces);
            let files = std::mem::take(&mut self.files);
            let taken = reuse::take_local(self.context, &files, pieces);
            let written = taken.and_then(|pieces| write_batch(self.context, &files, pieces));
            if let (Err(Error::Interrupted), Some(file)) = (&written, files.first()) {
                file.part.folder.keep_unfinished();
            }
            written?;
            if self.context.options.verify {
                verify::flush(&files);
                files.par_iter().try_for_each(|file| verify::file(self.context, file))?;
            }
            for file in files {
                if file.is(|s| matches!(s, State::Done | State::Kept)) {
                    self.remember_link(&file.part);
                } else if let Some(group) = file.part.node.hard_link {
                    self.linked.remove(&group);
                }
            }
            // Where the first of several names was lost, the next one is written instead: another round.
            std::mem::take(&mut self.links).into_iter().try_for_each(|part| self.add(part))?;
        }
        std::mem::take(&mut self.closed).into_iter().try_for_each(|(folder, node)| close(self.context, &folder, node))
    }
}

/// Gives a directory that is complete its attributes.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn close(context: &Context<'_>, folder: &Folder, node: Option<Node>) -> Result<()> {
    let done = folder.remove_leftovers().and_then(|()| {
        let Some(node) = node else { return folder.close_up() };
        let handle = folder.handle()?;
        if folder.is_new() {
            context.attributes.apply(&*handle, &node, folder.passes_on_acl(), || folder.path());
        } else if context.attributes.apply_over(&handle, &node, || folder.path()) {
            context.tally.metadata.add(1);
        }
        Ok(())
    });
    done.or_else(|e| context.lose(&folder.path(), e))
}
