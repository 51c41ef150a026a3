//! What a restore has to fetch and to decode. Depends on `history`, `store` and the library's `format::zstd`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustix::time::{ClockId, clock_gettime};
use snapshot::format::zstd;

use super::Result;
use super::history::{History, PAGE_BYTES};
use super::store::{SegmentId, Store, prefix};

/// A restore's cache of decoded segments.
const CACHE_BYTES: usize = 32 << 20;
/// Past so many times the database, counting is given up.
const GIVEN_UP: usize = 1000;
/// The shortest of so many runs counts.
const RUNS: usize = 3;

/// What restoring a generation takes, for each byte of its database.
#[derive(Clone, Copy, Default)]
pub struct Restored {
    /// Plain bytes decoded, each segment once.
    pub once: f64,
    /// The same with a cache of 32 MiB, least recently used first out; infinite where counting was given up.
    pub cached: f64,
    /// Stored bytes of the segments.
    pub fetched: f64,
    /// Nanoseconds of processor time to decode each segment once.
    pub time: f64,
}

/// Counts for one generation. Segments are decoded in the order of the first page that lies in them, and all their pages
/// written at once.
///
/// # Errors
/// A segment that does not decode.
pub fn restored(history: &History, store: &Store, generation: usize) -> Result<Restored> {
    let map = &store.maps[generation];
    let mut wanted: Vec<SegmentId> = Vec::new();
    let mut seen = BTreeSet::new();
    for copied in map {
        if seen.insert(copied.segment) {
            wanted.push(copied.segment);
        }
    }
    let database = map.len() * PAGE_BYTES;
    let mut cache = Cache { limit: database * GIVEN_UP, ..Cache::default() };
    for segment in &wanted {
        if !cache.decode(store, *segment) {
            break;
        }
    }
    let mut all: BTreeSet<SegmentId> = BTreeSet::new();
    while let Some(segment) = wanted.pop() {
        if all.insert(segment) {
            wanted.extend(&store.segments[segment].bases);
        }
    }
    let mut time = f64::INFINITY;
    for _ in 0..RUNS {
        time = time.min(decode(history, store, &all)?);
    }
    let sum = |of: &dyn Fn(SegmentId) -> usize| all.iter().map(|at| of(*at)).sum::<usize>() as f64 / database as f64;
    Ok(Restored {
        once: sum(&|at| store.segments[at].plain_bytes()),
        cached: if cache.decoded > cache.limit { f64::INFINITY } else { cache.decoded as f64 / database as f64 },
        fetched: sum(&|at| store.segments[at].bytes.all),
        time: time / database as f64,
    })
}

/// Decodes segments, and compares them; returns nanoseconds of processor time.
fn decode(history: &History, store: &Store, all: &BTreeSet<SegmentId>) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for segment in all.iter().map(|at| &store.segments[*at]) {
        let Some(packed) = &segment.packed else { continue };
        let prefix = prefix(history, &segment.slots);
        let started = now();
        let prefix = (!prefix.is_empty()).then_some(prefix.as_slice());
        let plain = zstd::decompress(packed, segment.plain_bytes(), prefix)?;
        nanoseconds += now() - started;
        let pages = plain.chunks_exact(PAGE_BYTES).zip(&segment.slots);
        if !pages.into_iter().all(|(page, slot)| page == history.page(slot.version)) {
            return Err("a segment decodes to something else".into());
        }
    }
    Ok(nanoseconds)
}

fn now() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

#[derive(Default)]
struct Cache {
    decoded: usize,
    limit: usize,
    held: usize,
    clock: u64,
    used: HashMap<SegmentId, u64>,
    oldest: BTreeMap<u64, SegmentId>,
}

impl Cache {
    /// False once the limit is passed.
    fn decode(&mut self, store: &Store, segment: SegmentId) -> bool {
        self.clock += 1;
        if let Some(used) = self.used.get_mut(&segment) {
            self.oldest.remove(used);
            *used = self.clock;
            self.oldest.insert(self.clock, segment);
            return true;
        }
        for base in &store.segments[segment].bases {
            if !self.decode(store, *base) {
                return false;
            }
        }
        let bytes = store.segments[segment].plain_bytes();
        self.decoded += bytes;
        self.held += bytes;
        self.clock += 1;
        self.used.insert(segment, self.clock);
        self.oldest.insert(self.clock, segment);
        while self.held > CACHE_BYTES {
            let Some((_, out)) = self.oldest.pop_first() else { break };
            self.used.remove(&out);
            self.held -= store.segments[out].plain_bytes();
        }
        self.decoded <= self.limit
    }
}
