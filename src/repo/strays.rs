//! Packs that no index file describes, and index files that say what is not so: looked for once, when a blob is not found
//! otherwise.
//!
//! A missing index file, unlike a damaged one, leaves no trace: blobs that it described only seem to be missing. Before
//! a reader says so, it lists the packs and reads the directories of those that the index doesn't know. That costs a
//! listing and one read for each such pack, once, and only where something would fail otherwise. Such a pack may also
//! be one that a running writer has just stored: what is in it may be read, but no writer relies on it, since nothing
//! would keep it if that other writer died.
//!
//! An index file that was made with the right keys, but by a program with a fault, by somebody who has the keys, or long
//! ago and is back, may say that blobs are where they are not, or keep silent about them. A reader that doesn't find
//! something asks all packs themselves.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Repository;
use crate::backend::layout;
use crate::format::index::Index;
use crate::id::BlobId;
use crate::report::{Problem, Severity};

/// What came of looking.
#[derive(Default)]
pub(super) struct Strays(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether packs were found, once they were looked for.
    found: Option<bool>,
    /// Whether whatever is found is only read: then all packs may be asked.
    reads: bool,
    /// Whether they were.
    asked: bool,
    notes: Vec<Problem>,
}

impl Strays {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After another index was loaded they are looked for again.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        (state.found, state.asked, state.reads) = (None, false, false);
    }

    /// From now on all packs may be asked.
    pub(super) fn allow_asking(&self) {
        self.lock().reads = true;
    }
}

impl Repository {
    /// Adds the packs that no index file describes to the index in memory, for reading; whether there were any. Done
    /// once: whoever asks later, or meanwhile, gets the same answer. The caller must not hold the index.
    pub(super) fn adopt_strays(&self) -> bool {
        let mut state = self.strays.lock();
        if let Some(found) = state.found {
            return found;
        }
        // A store that can't be listed adds nothing; that the blob is missing is said by the caller.
        let (packs, unreadable) = self.open_undescribed().unwrap_or_default();
        self.with_index(|index| packs.iter().for_each(|pack| index.add_stray(pack)));
        let first = packs.first().map(|p| layout::pack(p.header.kind, p.id));
        if let Some(what) = first {
            let mut why = format!(
                "no index file describes it, nor {} other packs: one was lost, or a run is going on; they were read \
                 instead, which is slower",
                packs.len() - 1
            );
            if !unreadable.is_empty() {
                why += &format!("; {} more can't be read", unreadable.len());
            }
            let hint = Some("run `snapshot repair index`, unless another run is writing just now".into());
            state.notes.push(Problem { severity: Severity::Note, what, why, hint });
        }
        state.found = Some(!packs.is_empty());
        !packs.is_empty()
    }

    /// After a blob was not where the index says: adds what all packs say themselves to the index in memory, for reading;
    /// whether that was done, now or before. Done once, and only after [`Repository::load_index`]. The caller must not hold
    /// the index.
    pub fn ask_packs(&self) -> bool {
        let mut state = self.strays.lock();
        if state.reads && !state.asked {
            state.asked = true;
            // What can't be listed or opened adds nothing; what is missing is said by the caller.
            let (packs, _) = self.open_packs(|_| true).unwrap_or_default();
            let mut part = Index::default();
            packs.iter().for_each(|pack| part.add(pack));
            self.with_index(|index| index.add_beside(part));
        }
        state.asked
    }

    /// Takes note that a blob was found only by asking the packs.
    pub(super) fn note_wrong_index(&self, id: &BlobId) {
        let mut state = self.strays.lock();
        if state.notes.iter().all(|note| note.what != layout::INDEX) {
            let why = format!("blob {id} is not where it says; the packs were asked themselves, which is slower");
            let hint = Some("run `snapshot repair index`, which makes the index anew".into());
            state.notes.push(Problem { severity: Severity::Note, what: layout::INDEX.into(), why, hint });
        }
    }

    /// What is to be told of packs that were found without an index, each once.
    pub fn take_notes(&self) -> Vec<Problem> {
        std::mem::take(&mut self.strays.lock().notes)
    }
}
