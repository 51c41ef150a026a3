//! The collecting end of a create: nodes become trees, frames go to the writer.

use std::collections::{HashMap, VecDeque};

use super::pipeline::{Collector, Event, Outcome, Ticket};
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::snapshot::Counts;
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::repo::Writer;
use crate::report::{Reporter, Severity};

/// What was collected.
pub struct Collected {
    /// The root directory.
    pub tree: BlobId,
    /// How many nodes of each kind, and their length.
    pub counts: Counts,
}

struct Collecting<'a> {
    ends: &'a Collector,
    writer: &'a mut Writer,
    reporter: &'a Reporter,
    /// The directories that are open, the root first.
    open: Vec<(Node, Vec<Node>)>,
    batch: VecDeque<Option<Node>>,
    chunks: Vec<BlobId>,
    /// The first node of each group of hard links.
    links: HashMap<u64, Node>,
    counts: Counts,
    root: Option<BlobId>,
}

/// Collects until the walk ends. Fails if it ended early.
///
/// # Errors
/// When storing has failed, or another stage ended early.
pub fn collect(ends: &Collector, writer: &mut Writer, reporter: &Reporter) -> Result<Collected> {
    let mut collecting = Collecting {
        ends,
        writer,
        reporter,
        open: Vec::new(),
        batch: VecDeque::new(),
        chunks: Vec::new(),
        links: HashMap::new(),
        counts: Counts::default(),
        root: None,
    };
    for event in &ends.events {
        collecting.event(event)?;
    }
    // Without the root's end the walk was cut off; its own error says why.
    let tree = collecting.root.ok_or(Error::Interrupted)?;
    Ok(Collected { tree, counts: collecting.counts })
}

impl Collecting<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Enter(node) => self.open.push((*node, Vec::new())),
            Event::Leave => self.leave()?,
            Event::Node(node) => self.add(*node),
            Event::Small => {
                if let Some(node) = self.next_small()? {
                    self.add(node);
                }
            }
            Event::Link(node) => {
                let first = node.hard_link.and_then(|group| self.links.get(&group));
                if let Some(first) = first {
                    let Node { content, extents, database, unverified, size, kind, .. } = first.clone();
                    self.add(Node { content, extents, database, unverified, size, kind, ..*node });
                } else {
                    let why = "it can't be read: it is a further name of a file that could not be read";
                    self.reporter.warn(Severity::Source, self.path_of(&node.name), why);
                }
            }
            Event::Chunk(ticket) => {
                let id = self.redeem(&ticket)?.id.ok_or(Error::Interrupted)?;
                self.chunks.push(id);
            }
            Event::Large(mut node) => {
                let ids = std::mem::take(&mut self.chunks);
                node.content = Some(self.writer.put_content(ids)?);
                self.add(*node);
            }
            Event::Abandon => self.chunks.clear(),
            Event::Stream(mut node, ids) => {
                node.content = Some(self.writer.put_content(ids)?);
                self.add(*node);
            }
            Event::Layer(ticket) | Event::Segment(ticket) => drop(self.redeem(&ticket)?),
            Event::Map(id, bytes) => {
                let stored = self.writer.put(BlobType::Map, &bytes)?;
                debug_assert_eq!(stored, id);
            }
        }
        Ok(())
    }

    /// The path of a name in the directory that is open last, from the root of the snapshot, for people.
    fn path_of(&self, name: &[u8]) -> String {
        let above = self.open.iter().skip(1).map(|(node, _)| &node.name[..]);
        above.chain([name]).map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
    }

    fn redeem(&mut self, ticket: &Ticket) -> Result<Outcome> {
        let mut outcome = self.ends.redeem(ticket)?;
        for frame in outcome.frames.drain(..) {
            self.writer.put_frame(frame)?;
        }
        Ok(outcome)
    }

    fn next_small(&mut self) -> Result<Option<Node>> {
        if self.batch.is_empty() {
            let ticket = self.ends.batches.recv().map_err(|_| Error::Interrupted)?;
            self.batch = self.redeem(&ticket)?.nodes.into();
        }
        self.batch.pop_front().ok_or(Error::Interrupted)
    }

    fn add(&mut self, node: Node) {
        self.counts.add(&node);
        if let Some(group) = node.hard_link {
            self.links.entry(group).or_insert_with(|| node.clone());
        }
        if let Some((_, nodes)) = self.open.last_mut() {
            nodes.push(node);
        }
    }

    fn leave(&mut self) -> Result<()> {
        let Some((mut directory, mut nodes)) = self.open.pop() else { return Ok(()) };
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        // A file that came to be where the dumps of databases are: those came first.
        nodes.dedup_by(|later, first| later.name == first.name);
        let tree = self.writer.put_tree(nodes)?;
        if self.open.is_empty() {
            self.root = Some(tree);
        } else {
            directory.tree = Some(tree);
            self.add(directory);
        }
        Ok(())
    }
}
