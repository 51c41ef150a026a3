//! What retention keeps, and what a prune leaves. Depends on `history` and `store`.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::history::History;
use super::store::{Bytes, Copied, Slot, Store, encoded};

/// How far a prune goes. All drop the segments and slots that nobody needs, deltas that are kept counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub enum Depth {
    /// All slots of a segment are kept that a delta leans on.
    WholeBases,
    /// Slots of base segments are dropped too.
    Slots,
    /// A delta is stored in full, where its base is needed by no snapshot and no other delta.
    InFull,
    /// The same where several deltas share the base: the oldest is stored in full, the others lean on it.
    Rebase,
}

/// The generations that 7 daily, 4 weekly and 12 monthly ones of `generations` nights are. Keeping the newest of each
/// period every night leaves the same ones as doing it on the last night alone.
pub fn retained(generations: usize) -> Vec<usize> {
    let newest = |most: usize, period: &dyn Fn(usize) -> usize| {
        let mut kept = Vec::new();
        for night in (0..generations).rev() {
            if kept.last().is_none_or(|last| period(*last) != period(night)) {
                kept.push(night);
            }
        }
        kept.truncate(most);
        kept
    };
    let daily = newest(7, &|night| night);
    let weekly = newest(4, &|night| night / 7);
    let monthly = newest(12, &|night| night * 12 / 365);
    Vec::from_iter([daily, weekly, monthly].concat().into_iter().collect::<BTreeSet<_>>())
}

/// What the copies that are kept lean on.
struct Kept {
    live: HashSet<Copied>,
    /// All that are needed, bases included.
    bases: HashMap<Copied, Option<Copied>>,
}

impl Kept {
    /// With `whole`, every slot of a segment that is leant on counts as needed.
    fn new(store: &Store, generations: &[usize], whole: bool) -> Self {
        let live: HashSet<_> = generations.iter().flat_map(|at| &store.maps[*at]).copied().collect();
        let mut kept = Self { live, bases: HashMap::new() };
        let all = slots(store).collect::<HashMap<_, _>>();
        let mut open: Vec<_> = kept.live.iter().copied().collect();
        while let Some(copied) = open.pop() {
            let base = all.get(&copied).copied().flatten();
            if kept.bases.insert(copied, base).is_some() {
                continue;
            }
            open.extend(base);
            if let Some(Copied { segment, .. }) = base.filter(|_| whole) {
                let slots = store.segments[segment].slots.iter();
                let slots = slots.map(|slot| Copied { version: slot.version, segment });
                open.extend(slots.filter(|slot| !kept.bases.contains_key(slot)));
            }
        }
        kept
    }

    /// Removes bases that no snapshot needs, newest first, so that what one leans on is looked at after it.
    fn drop_bases(&mut self, several: bool) {
        let mut leaning: HashMap<Copied, Vec<Copied>> = HashMap::new();
        for (copied, base) in &self.bases {
            if let Some(base) = base {
                leaning.entry(*base).or_default().push(*copied);
            }
        }
        let mut dead: Vec<_> = self.bases.keys().copied().filter(|copied| !self.live.contains(copied)).collect();
        // A base is always of an earlier segment.
        dead.sort_unstable_by_key(|copied| std::cmp::Reverse((copied.segment, copied.version)));
        for base in dead {
            let mut deltas = leaning.remove(&base).unwrap_or_default();
            if deltas.len() > 1 && !several {
                continue;
            }
            deltas.sort_unstable();
            // The oldest takes the place of the base, the others lean on that.
            let mut heir = None;
            for delta in deltas {
                self.bases.insert(delta, heir);
                heir = heir.or(Some(delta));
            }
            if let Some(below) = self.bases.remove(&base).flatten() {
                leaning.entry(below).or_default().retain(|copied| *copied != base);
            }
        }
    }
}

fn slots(store: &Store) -> impl Iterator<Item = (Copied, Option<Copied>)> {
    store.segments.iter().enumerate().flat_map(|(segment, of)| {
        of.slots.iter().map(move |slot| (Copied { version: slot.version, segment }, slot.base))
    })
}

/// Bytes left once only these generations are kept.
pub fn left(history: &History, store: &Store, generations: &[usize], depth: Depth) -> Bytes {
    let mut kept = Kept::new(store, generations, depth == Depth::WholeBases);
    if depth >= Depth::InFull {
        kept.drop_bases(depth >= Depth::Rebase);
    }
    let mut bytes = Bytes::default();
    for (number, segment) in store.segments.iter().enumerate() {
        let present = segment.slots.iter().filter_map(|slot| {
            let copied = Copied { version: slot.version, segment: number };
            kept.bases.get(&copied).map(|base| Slot { version: slot.version, base: *base })
        });
        let present: Vec<_> = present.collect();
        if present == segment.slots {
            bytes += segment.bytes;
        } else if !present.is_empty() {
            let bases: HashSet<_> = present.iter().filter_map(|slot| Some(slot.base?.segment)).collect();
            bytes += encoded(history, &present, segment.slots.len() - present.len(), bases.len()).0;
        }
    }
    bytes
}
