//! The flow of a create: one thread walks and feeds, workers read, hash and compress, one thread collects in order.
//!
//! ```text
//! walk ──work──▶ workers ──tickets──▶ collect ──packs──▶ uploaders (repo::Writer) ──▶ backend
//! ```
//!
//! Everything the walker finds is an [`Event`]; those that need work carry a ticket for its outcome, so that what is
//! collected has the order of the walk whatever the order of the work. The failing stage drops its ends, the others
//! see that and return; a closed queue is no success, so the caller joins all and takes the first error.
//!
//! A permit is taken for each piece of work and given back when its outcome was collected: that bounds memory. A batch
//! of small files takes its permit when it is begun, so that whatever the collector waits for has one.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::error::Error;
use crate::format::pack::Frame;
use crate::format::tree::Node;
use crate::id::BlobId;
use crate::source::capture::NewSegment;

use super::small::SmallFile;

/// Pieces of work under way, each of up to 4 MiB in and out, 1 MiB on average.
const PERMITS: usize = 6;

/// Something to be done by a worker.
pub enum Work {
    /// Read small files.
    Files(Vec<SmallFile>),
    /// Hash and compress a piece of a large file.
    Chunk(Vec<u8>),
    /// The same for what stands for a piece of a stream, which was counted as it was read; with its zstd level.
    Layer(Vec<u8>, i32),
    /// Encode pages of a database that were claimed.
    Segment(NewSegment),
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// A node for each small file, in order; `None` for one that vanished or could not be read.
    pub nodes: Vec<Option<Node>>,
    /// The id of a chunk.
    pub id: Option<BlobId>,
    /// What is to be stored.
    pub frames: Vec<Frame>,
}

/// Redeemed for an outcome.
pub type Ticket = Receiver<Outcome>;

/// What the walker found, in order.
pub enum Event {
    /// A directory begins.
    Enter(Box<Node>),
    /// It ends.
    Leave,
    /// A node that is complete.
    Node(Box<Node>),
    /// The next node of the batch of small files.
    Small,
    /// Another name of a file that came before: its contents are taken from there.
    Link(Box<Node>),
    /// The next piece of the large file whose node follows.
    Chunk(Ticket),
    /// A large file whose pieces are complete.
    Large(Box<Node>),
    /// A large file that could not be read to its end: its pieces are dropped.
    Abandon,
    /// A piece of a stream in layers, whose node comes when all of them are known.
    Layer(Ticket),
    /// A stream whose chunks are complete, and which they are.
    Stream(Box<Node>, Vec<BlobId>),
    /// Pages of a database.
    Segment(Ticket),
    /// A part of a page map.
    Map(BlobId, Vec<u8>),
}

/// A stage has ended early; its own error says why.
pub struct Closed;

impl From<Closed> for Error {
    fn from(_: Closed) -> Self {
        Error::Interrupted
    }
}

/// The walker's end.
pub struct Feeder {
    work: Sender<(Work, Sender<Outcome>)>,
    events: Sender<Event>,
    batches: Sender<Ticket>,
    permits: Sender<()>,
    batch: Vec<SmallFile>,
    batch_bytes: u64,
}

/// The collector's end.
pub struct Collector {
    /// In the order of the walk.
    pub events: Receiver<Event>,
    /// One for each batch of small files.
    pub batches: Receiver<Ticket>,
    permits: Receiver<()>,
}

impl Collector {
    /// Waits for an outcome, and lets the walker go on.
    pub fn redeem(&self, ticket: &Ticket) -> Result<Outcome, Closed> {
        let outcome = ticket.recv().map_err(|_| Closed);
        let _ = self.permits.try_recv();
        outcome
    }
}

/// The workers' end.
pub type Tasks = Receiver<(Work, Sender<Outcome>)>;

/// All ends of the flow.
pub fn open() -> (Feeder, Tasks, Collector) {
    let (work, tasks) = bounded(PERMITS);
    // Events are small but for their tickets, which permits bound.
    let (events, collected) = unbounded();
    let (batches, batch_tickets) = unbounded();
    let (permits, given_back) = bounded(PERMITS);
    let feeder = Feeder { work, events, batches, permits, batch: Vec::new(), batch_bytes: 0 };
    (feeder, tasks, Collector { events: collected, batches: batch_tickets, permits: given_back })
}

impl Feeder {
    /// Reports what was found.
    pub fn event(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).map_err(|_| Closed)
    }

    /// Hands out work, after the batch that is being gathered.
    pub fn submit(&mut self, work: Work) -> Result<Ticket, Closed> {
        self.flush()?;
        self.permits.send(()).map_err(|_| Closed)?;
        self.hand_out(work)
    }

    fn hand_out(&self, work: Work) -> Result<Ticket, Closed> {
        let (send, ticket) = bounded(1);
        self.work.send((work, send)).map_err(|_| Closed)?;
        Ok(ticket)
    }

    /// Adds a small file to the batch.
    pub fn small(&mut self, file: SmallFile) -> Result<(), Closed> {
        if self.batch.is_empty() {
            self.permits.send(()).map_err(|_| Closed)?;
        }
        self.batch_bytes += file.bytes();
        self.batch.push(file);
        self.event(Event::Small)?;
        if self.batch_bytes >= crate::repo::GATHER_BYTES as u64 || self.batch.len() >= super::small::BATCH_FILES {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands out the batch as it is.
    pub fn flush(&mut self) -> Result<(), Closed> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let files = std::mem::take(&mut self.batch);
        let ticket = self.hand_out(Work::Files(files))?;
        self.batches.send(ticket).map_err(|_| Closed)
    }
}
