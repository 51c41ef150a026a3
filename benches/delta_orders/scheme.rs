//! The alternatives, and which older version each leans a page's delta on. Depends on `history` and the library's
//! `format::zstd`.

use std::collections::HashMap;

use snapshot::format::zstd;

use super::history::{History, Version};
use super::store::Again;

/// zstd level of everything.
pub const LEVEL: i32 = zstd::DEFAULT_LEVEL;

/// How large a delta is judged to be, before pages are grouped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judge {
    /// By compressing the page by itself, with and without its base.
    Compress,
    /// By the part of its shingles that the base lacks.
    Shingles,
}

/// Which older version is the base.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Base {
    /// None: everything is stored in full.
    Never,
    /// The last full one.
    Full,
    /// The newest of those that lean on the last full one, as long as the delta does not pass this part of the full
    /// page; then the last full one. So deltas are at most 2 deep.
    Anchor(f64),
    /// Version k leans on k with its lowest set bit cleared, counted from the last full one (as FSFS of Subversion).
    Skip,
    /// The one before, at most so many in a row.
    Previous(usize),
}

/// An alternative, or as many as it has groups.
#[derive(Clone, Debug)]
pub struct Scheme {
    /// As in the table.
    pub name: String,
    /// Which version is leant on.
    pub base: Base,
    /// A page is stored in full again once its delta passes this part of the full page.
    pub full_above: f64,
    /// By whose judgement.
    pub judge: Judge,
    /// Whether deltas of one depth are grouped apart from those of another.
    pub by_depth: bool,
    /// Which pages are stored again though they did not change.
    pub again: Again,
    /// Most pages in a segment of deltas; each number is measured.
    pub groups: &'static [usize],
}

/// For each version that is stored, what it leans on, and how deep.
pub struct Plan(HashMap<Version, (Option<Version>, usize)>);

impl Plan {
    /// The base of a version.
    pub fn base(&self, version: Version) -> Option<Version> {
        self.0.get(&version).and_then(|(base, _)| *base)
    }

    /// How many versions must be decoded before this one.
    pub fn depth(&self, version: Version) -> usize {
        self.0.get(&version).map_or(0, |(_, depth)| *depth)
    }
}

/// Compressed length of each version by itself.
pub struct Lengths(pub Vec<u32>);

impl Lengths {
    /// Compresses them all.
    pub fn new(history: &History) -> Self {
        let full = |version| {
            let page = history.page(version);
            zstd::compress(page, LEVEL).map_or(page.len(), |out| out.len()) as u32
        };
        Self((0..history.versions() as Version).map(full).collect())
    }
}

/// The length of a delta by itself.
fn delta(history: &History, version: Version, base: Version, full: f64, judge: Judge) -> f64 {
    let (page, base) = (history.page(version), history.page(base));
    match judge {
        Judge::Compress => zstd::compress_delta(page, base, LEVEL).map_or(page.len(), |out| out.len()) as f64,
        Judge::Shingles => full * new_part(page, base),
    }
}

/// Decides for each version of these generations, which are stored in this order.
pub fn plan(history: &History, lengths: &Lengths, generations: &[usize], scheme: &Scheme) -> Plan {
    let mut since: Vec<Since> = (0..history.pages()).map(|_| Since::default()).collect();
    let mut plan = Plan(HashMap::new());
    for version in generations.iter().flat_map(|generation| &history.maps[*generation]).copied() {
        if plan.0.contains_key(&version) {
            continue;
        }
        let since = &mut since[history.number(version)];
        let full = f64::from(lengths.0[version as usize]);
        let fits = |base: &Version, part: f64| delta(history, version, *base, full, scheme.judge) <= part * full;
        let base = since.base(scheme.base, |base, part| fits(&base, part));
        let base = base.filter(|base| {
            matches!(scheme.base, Base::Anchor(_)) && plan.depth(*base) > 0 || fits(base, scheme.full_above)
        });
        if base.is_none() {
            *since = Since::default();
        }
        let depth = base.map_or(0, |base| plan.depth(base) + 1);
        since.versions.push(version);
        if depth == 1 {
            since.anchor = Some(version);
        }
        plan.0.insert(version, (base, depth));
    }
    plan
}

/// The versions of a page since its last full one.
#[derive(Default)]
struct Since {
    versions: Vec<Version>,
    anchor: Option<Version>,
}

impl Since {
    /// What the next version would lean on; `fits` says whether its delta against a base keeps below a part.
    fn base(&self, rule: Base, fits: impl Fn(Version, f64) -> bool) -> Option<Version> {
        let full = *self.versions.first()?;
        let count = self.versions.len();
        match rule {
            Base::Never => None,
            Base::Full => Some(full),
            Base::Anchor(part) => Some(self.anchor.filter(|anchor| fits(*anchor, part)).unwrap_or(full)),
            Base::Skip => Some(self.versions[count & (count - 1)]),
            Base::Previous(most) => (count <= most).then(|| self.versions[count - 1]),
        }
    }
}

const SHINGLE_BYTES: usize = 16;
/// One in so many shingles is looked at, chosen by its hash, so that moved bytes choose the same ones.
const SAMPLED: u64 = 4;
const TABLE_BITS: u32 = 16;

/// The part of the page's shingles that the base does not have. Runs of one byte don't count: they cost nothing.
pub fn new_part(page: &[u8], base: &[u8]) -> f64 {
    let mut table = vec![0u64; 1 << (TABLE_BITS - 6)];
    for hash in shingles(base) {
        let bit = hash >> (64 - TABLE_BITS);
        table[(bit / 64) as usize] |= 1 << (bit % 64);
    }
    let (mut all, mut new) = (0, 0);
    for hash in shingles(page) {
        let bit = hash >> (64 - TABLE_BITS);
        all += 1;
        new += usize::from(table[(bit / 64) as usize] >> (bit % 64) & 1 == 0);
    }
    if all == 0 { 0.0 } else { new as f64 / all as f64 }
}

fn shingles(page: &[u8]) -> impl Iterator<Item = u64> {
    page.windows(SHINGLE_BYTES).filter_map(|window| {
        let (low, high) = window.split_at(8);
        let [low, high] = [low, high].map(|half| half.try_into().map_or(0, u64::from_le_bytes));
        let hash = (low.rotate_left(29) ^ high.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let hash = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (low != high && hash % SAMPLED == 0).then_some(hash)
    })
}
