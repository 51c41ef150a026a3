//! The table that is printed. Depends on `history`, `restore` and `store`.

use super::history::{History, PAGE_BYTES};
use super::restore::Restored;
use super::store::{Bytes, Store};

/// What was measured of an alternative.
pub struct Row {
    /// Its name.
    pub name: String,
    /// Pages in a segment of deltas.
    pub group: usize,
    /// Pages of the first generation.
    pub first_pages: usize,
    /// All generations, without a prune.
    pub store: Store,
    /// Restores of generations 1, 30 and the last.
    pub restored: [Restored; 3],
    /// After retention.
    pub retained: Left,
    /// After a prune to the two newest generations.
    pub newest_two: Left,
}

/// What prunes leave.
pub struct Left {
    /// Bytes of a fresh repository with the same generations.
    pub fresh: f64,
    /// What is left, for each byte of that, by how far the prune goes.
    pub parts: [f64; 4],
    /// How much of that is hashes of absent slots.
    pub absent: [f64; 4],
}

/// What the workload was, and the head of the table.
pub fn heading(history: &History) -> String {
    let nights = history.maps.len();
    let [first, last] = [0, nights - 1].map(|at| (history.maps[at].len() * PAGE_BYTES) >> 20);
    let changed = history.versions() - history.maps[0].len();
    let share = changed as f64 / history.maps[1..].iter().map(Vec::len).sum::<usize>() as f64;
    format!(
        "{nights} generations, {first} MiB growing to {last} MiB, {} pages ({:.2} %) changed a night\n\n\
         | order | pages a segment | stored, MiB | first, MiB | KiB a night, 2–30 | KiB a night, last 30 | naming bases, % | \
         full again, % | bases of a delta segment, mean | most | depth of segments | decoded 30 / last, each once | \
         with 32 MiB | fetched | time | retained, whole bases | slots | in full | rebase | fresh, MiB | newest two, whole bases | slots | \
         in full | rebase | fresh, MiB |\n|{}",
        changed / (nights - 1),
        share * 100.0,
        "---|".repeat(25)
    )
}

impl Row {
    /// A line of the table.
    pub fn markdown(&self) -> String {
        let store = &self.store;
        let mib = |bytes: f64| format!("{:.2}", bytes / f64::from(1 << 20));
        let total = store.bytes();
        let nights = store.added.len();
        let mean = |added: &[Bytes]| {
            format!("{:.1}", added.iter().map(|b| b.all).sum::<usize>() as f64 / added.len() as f64 / 1024.0)
        };
        let later: usize = store.added[1..].iter().map(|added| added.all).sum();
        let deltas: Vec<_> = store.segments.iter().filter(|segment| !segment.bases.is_empty()).collect();
        let bases: usize = deltas.iter().map(|segment| segment.bases.len()).sum();
        let slots: usize = store.segments.iter().map(|segment| segment.slots.len()).sum();
        let delta_pages: usize = deltas.iter().map(|segment| segment.slots.len()).sum();
        let most = deltas.iter().map(|segment| segment.bases.len()).max().unwrap_or_default();
        let depth = store.segments.iter().map(|segment| segment.depth).max().unwrap_or_default();
        let again = slots - self.first_pages - delta_pages;
        let percent = |part: usize, of: usize| format!("{:.1}", part as f64 * 100.0 / of.max(1) as f64);
        let later_ones = |of: fn(&Restored) -> f64| {
            let [first, month, last] = self.restored.each_ref().map(of);
            format!("{:.2} / {:.2}", month / first, last / first)
        };
        let mut cells = vec![
            self.name.clone(),
            self.group.to_string(),
            mib(total.all as f64),
            mib(store.added[0].all as f64),
            mean(&store.added[1..30.min(nights)]),
            mean(&store.added[nights - 30..]),
            percent(total.naming, later),
            percent(again, slots - self.first_pages),
            format!("{:.1}", bases as f64 / deltas.len().max(1) as f64),
            most.to_string(),
            depth.to_string(),
            later_ones(|restored| restored.once),
            later_ones(|restored| restored.cached),
            later_ones(|restored| restored.fetched),
            later_ones(|restored| restored.time),
        ];
        for left in [&self.retained, &self.newest_two] {
            let parts = left.parts.iter().zip(&left.absent);
            cells.extend(parts.map(|(part, absent)| format!("{part:.3} ({absent:.3})")));
            cells.push(mib(left.fresh));
        }
        format!("| {} |", cells.join(" | "))
    }
}
