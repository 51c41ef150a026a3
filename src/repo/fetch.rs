//! Reading many frames: those that lie close to each other in a pack come in one read, and each is read once.

use std::ops::Range;

use super::{FrameReader, Repository};
use crate::error::{Error, Result};
use crate::index::Place;

/// Most bytes that one read fetches, unless a single frame is longer.
const READ_BYTES: u64 = 4 << 20;
/// Reads are kept so small that there are about this many, for all threads to have work.
const READS_WANTED: u64 = 32;

/// How much is read at a time from a store.
struct Sizes {
    /// Below this a read is not made smaller.
    min: u64,
    /// Unneeded bytes between two frames that are read along.
    gap: u64,
}

const NEAR: Sizes = Sizes { min: 256 << 10, gap: 64 << 10 };
/// Where a request takes as long as the way of a megabyte, and has its price.
const FAR: Sizes = Sizes { min: 1 << 20, gap: 256 << 10 };

fn sizes(repo: &Repository) -> Sizes {
    if repo.backend().is_remote() { FAR } else { NEAR }
}

/// A frame, and which of the caller's items lie in it.
pub struct Wanted {
    /// Where it is.
    pub place: Place,
    /// The items.
    pub items: Range<usize>,
}

struct Part {
    /// `None` if the index is damaged.
    reader: Option<FrameReader>,
    items: Range<usize>,
}

/// Frames that are fetched with one read.
pub struct Run {
    parts: Vec<Part>,
}

/// Arranges frames, sorted by pack and frame, into reads.
pub fn arrange(repo: &Repository, wanted: Vec<Wanted>) -> Vec<Run> {
    let to_part = |w: Wanted| Part { reader: repo.frame_reader(w.place).ok(), items: w.items };
    let parts: Vec<Part> = wanted.into_iter().map(to_part).collect();
    let total: u64 = parts.iter().filter_map(|p| p.reader.as_ref()).map(|r| r.range().1).sum();
    let Sizes { min, gap } = sizes(repo);
    let limit = (total / READS_WANTED).clamp(min, READ_BYTES);
    let mut runs: Vec<Run> = Vec::new();
    for part in parts {
        match runs.last_mut().filter(|run| run.takes(&part, limit, gap)) {
            Some(run) => run.parts.push(part),
            None => runs.push(Run { parts: vec![part] }),
        }
    }
    runs
}

impl Run {
    fn takes(&self, next: &Part, limit: u64, most: u64) -> bool {
        let ends = [self.parts.first(), self.parts.last(), Some(next)].map(|p| p.and_then(|p| p.reader.as_ref()));
        let [Some(first), Some(last), Some(next)] = ends else { return false };
        let ((start, _), (at, len), (next_at, next_len)) = (first.range(), last.range(), next.range());
        last.path() == next.path()
            && next_at.checked_sub(at + len).is_some_and(|gap| gap <= most)
            && next_at + next_len - start <= limit
    }

    fn read(&self, repo: &Repository) -> Result<Vec<u8>> {
        let ends = [self.parts.first(), self.parts.last()].map(|p| p.and_then(|p| p.reader.as_ref()));
        let [Some(first), Some(last)] = ends else { return Ok(Vec::new()) };
        let (from, (at, len)) = (first.range().0, last.range());
        repo.backend().get_range(first.path(), from, at + len - from)
    }

    /// Reads and opens every frame and hands it on, encoded still, with the caller's items in it. `None` stands for a
    /// frame that could not be had this way: its items have to be read one by one, which tells why.
    ///
    /// # Errors
    /// What `each` returns; and that a server can't be reached, which would be no better one by one.
    pub fn each(
        &self,
        repo: &Repository,
        mut each: impl FnMut(Range<usize>, Option<(&FrameReader, &[u8])>) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = match self.read(repo) {
            Err(e @ (Error::Remote { .. } | Error::Interrupted)) => {
                repo.only_this_object(e)?;
                Vec::new()
            }
            read => read.unwrap_or_default(),
        };
        let from = self.parts.first().and_then(|p| p.reader.as_ref()).map_or(0, |r| r.range().0);
        for part in &self.parts {
            let opened = part.reader.as_ref().and_then(|reader| {
                let (at, len) = reader.range();
                let start = usize::try_from(at.checked_sub(from)?).ok()?;
                let sealed = buffer.get_mut(start..start.checked_add(usize::try_from(len).ok()?)?)?;
                Some((reader, reader.open_in_place(repo, sealed).ok()?))
            });
            each(part.items.clone(), opened)?;
        }
        Ok(())
    }
}
