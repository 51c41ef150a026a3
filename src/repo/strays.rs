//! Packs that no index file describes: looked for once, when a blob is not found otherwise.
//!
//! A missing index file, unlike a damaged one, leaves no trace: blobs that it described only seem to be missing. Before
//! a reader says so, it lists the packs and reads the directories of those that the index doesn't know. That costs a
//! listing and one read for each such pack, once, and only where something would fail otherwise. Such a pack may also
//! be one that a running writer has just stored: what is in it may be read, but no writer relies on it, since nothing
//! would keep it if that other writer died.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Repository;
use crate::backend::layout;
use crate::report::{Problem, Severity};

/// What came of looking.
#[derive(Default)]
pub(super) struct Strays(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether packs were found, once they were looked for.
    found: Option<bool>,
    notes: Vec<Problem>,
}

impl Strays {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After another index was loaded they are looked for again.
    pub(super) fn forget(&self) {
        self.lock().found = None;
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

    /// What is to be told of packs that were found without an index, each once.
    pub fn take_notes(&self) -> Vec<Problem> {
        std::mem::take(&mut self.strays.lock().notes)
    }
}
