//! Packs: there or not, as long as they should be, described rightly by the index, and sound to the last frame.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::{ReadData, damage, note, reason};
use crate::backend::{Listed, layout};
use crate::crypto;
use crate::error::{Error, Result};
use crate::format::index::Index;
use crate::format::pack::PackInfo;
use crate::format::segment::SlotSet;
use crate::id::BlobId;
use crate::index::{BlobIndex, Place};
use crate::repo::{Proven, Repository};
use crate::report::Reporter;

/// Directories that are read before the next look at whether the user asked for an end.
const DIRECTORIES_AT_ONCE: usize = 64;

/// What is wrong with a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Not there.
    Missing,
    /// Cut short, or another pack: it can't be used.
    Gone,
    /// Its directory is unreadable; the index still knows where everything is.
    Directory,
    /// The index lacks some of its blobs, or misplaces them.
    Index,
    /// Some frames are damaged.
    Frames,
    /// Everything in it is sound, and yet the file's hash is not its name.
    Hash,
}

/// A pack's trouble, in words.
pub(super) struct Fault {
    pub trouble: Trouble,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Sound,
    Gone,
    /// In no index file: taken from its own directory.
    Unindexed {
        needed: bool,
    },
}

/// How much of the packs was read.
#[derive(Default)]
pub(super) struct DataRead {
    /// Length of the packs read and hashed, in bytes.
    pub bytes: u64,
    /// Length of those that were decoded as well.
    pub bytes_decoded: u64,
}

/// What is known of the packs, by their numbers in the index in memory.
pub(super) struct Packs {
    states: Vec<State>,
    /// What is wrong with which pack.
    pub faults: BTreeMap<u32, Fault>,
    /// Blobs that can't be had from the pack with this number.
    bad: HashSet<(u32, BlobId)>,
    /// Blobs that a pack holds and its index doesn't tell of.
    untold: HashMap<BlobId, u32>,
    /// Which slots are present in segments that were decoded, by the pack's number.
    slots: HashMap<(u32, BlobId), SlotSet>,
    /// Condemned packs that the index describes without records: `repair packs` saved what could be read of them.
    husks: HashSet<u32>,
    /// Paths of packs of which nothing is known but that they are condemned.
    pub condemned_unknown: Vec<String>,
}

impl Packs {
    /// Compares the packs in the store with the index in memory, and reads their directories. Packs that no index file
    /// knows are added to the index in memory.
    pub(super) fn check(repo: &Repository, listed: &[Listed], reporter: &Reporter) -> Result<Self> {
        let known = repo.index().packs().len();
        let mut packs = Self {
            states: vec![State::Gone; known],
            faults: BTreeMap::new(),
            bad: HashSet::new(),
            untold: HashMap::new(),
            slots: HashMap::new(),
            husks: HashSet::new(),
            condemned_unknown: Vec::new(),
        };
        let told = records_of_packs(&repo.index(), known);
        packs.husks = husks(&repo.index(), &told);
        reporter.progress.files_total.store(listed.len() as u64, Ordering::Relaxed);
        for some in listed.chunks(DIRECTORIES_AT_ONCE) {
            reporter.check_interrupt()?;
            let opened: Vec<_> = some.par_iter().map(|l| repo.open_pack(&l.path, l.bytes)).collect();
            let mut unindexed = Index::default();
            for (listed, opened) in some.iter().zip(opened) {
                let opened = match opened {
                    Ok(info) => Ok(info),
                    Err(e) => Err(reason(&repo.only_this_object(e)?)),
                };
                match (number_of(repo, listed, known), opened) {
                    (Some(number), opened) => packs.compare(&repo.index(), number, &told, listed, opened),
                    (None, Ok(info)) => unindexed.add(&info),
                    (None, Err(why)) => packs.add_unknown(repo, listed, &why, reporter),
                }
            }
            packs.add_unindexed(repo, unindexed);
            reporter.advance(0, some.len() as u64);
        }
        for (number, _) in (0u32..).zip(&packs.states).filter(|(_, s)| **s == State::Gone).collect::<Vec<_>>() {
            packs.faults.entry(number).or_insert(Fault { trouble: Trouble::Missing, why: "it is missing".into() });
        }
        Ok(packs)
    }

    /// A pack that can't be read and that no index file describes.
    fn add_unknown(&mut self, repo: &Repository, listed: &Listed, why: &str, reporter: &Reporter) {
        let Some((_, id)) = layout::parse_pack(&listed.path) else { return };
        if repo.index().has_pack(&id) {
            let why = "the pack of this name lies in the other folder, and nobody looks for it here";
            note(reporter, &listed.path, why, "delete it");
        } else if repo.index().is_condemned(&id) {
            self.condemned_unknown.push(listed.path.clone());
        } else {
            damage(
                reporter,
                &listed.path,
                format!("{why}; no index file knows it either, so that what it held can't be told"),
                "put the file back from a copy of the repository if there is one; else run `snapshot repair packs`, \
                 which saves what can be read of it and sets it aside",
            );
        }
    }

    fn add_unindexed(&mut self, repo: &Repository, packs: Index) {
        if packs.packs.is_empty() {
            return;
        }
        repo.with_index(|index| index.add(packs));
        // The same pack under a second path is not added twice.
        self.states.resize(repo.index().packs().len(), State::Unindexed { needed: false });
    }

    /// Compares a pack in the store with what the index says of it.
    fn compare(
        &mut self,
        index: &BlobIndex,
        number: u32,
        told: &[u32],
        listed: &Listed,
        opened: Result<PackInfo, String>,
    ) {
        let Some(pack) = index.packs().get(number as usize) else { return };
        let (trouble, why) = if listed.bytes != pack.file_bytes {
            (Trouble::Gone, format!("it has {} bytes where the index says {}", listed.bytes, pack.file_bytes))
        } else {
            match opened {
                Err(why) => (Trouble::Directory, why),
                Ok(info) if info.header != pack.header || !frames_equal(pack, &info) => {
                    (Trouble::Gone, "it is not the pack that the index describes".into())
                }
                Ok(info) => match self.compare_blobs(index, number, told, &info) {
                    0 => {
                        self.set(number, State::Sound);
                        return;
                    }
                    n => (Trouble::Index, format!("the index lacks {n} of its blobs, or says wrongly where they are")),
                },
            }
        };
        self.faults.insert(number, Fault { trouble, why });
        if trouble != Trouble::Gone {
            self.set(number, State::Sound);
        }
    }

    /// How many blobs of a pack the index lacks or misplaces.
    fn compare_blobs(&mut self, index: &BlobIndex, number: u32, told: &[u32], info: &PackInfo) -> usize {
        let untold = index.untold(number, info);
        let all: usize = info.frames.iter().map(|f| f.entries.len()).sum();
        // Records beyond those of the directory point to what isn't there.
        let told = told.get(number as usize).map_or(0, |n| *n as usize);
        let beyond = (told + untold.len()).saturating_sub(all);
        // What was not saved of a damaged pack can't be had from it.
        if !self.husks.contains(&number) {
            self.untold.extend(untold.iter().map(|id| (*id, number)));
        }
        untold.len().max(beyond)
    }

    fn set(&mut self, number: u32, state: State) {
        if let Some(s) = self.states.get_mut(number as usize) {
            *s = state;
        }
    }

    /// Reads the packs chosen by `choice` whole, and decodes those that were not `proven` before; adds what is proven now.
    pub(super) fn read_data(
        &mut self,
        repo: &Repository,
        listed: &[Listed],
        choice: ReadData,
        proven: &mut Proven,
        reporter: &Reporter,
    ) -> Result<DataRead> {
        let number = |l: &Listed| number_of(repo, l, usize::MAX);
        let known = proven.clone();
        let mut chosen = choose(listed, choice, crypto::random()?);
        // What is known to be unreadable isn't read again.
        let unreadable = |n: u32| {
            self.states.get(n as usize) == Some(&State::Gone)
                || self.faults.get(&n).is_some_and(|f| f.trouble == Trouble::Directory)
        };
        chosen.retain(|l| number(l).is_some_and(|n| !unreadable(n)));
        reporter.progress.bytes_total.store(chosen.iter().map(|l| l.bytes).sum(), Ordering::Relaxed);
        let mut read = DataRead::default();
        repo.audit_packs(&chosen, &known, reporter, |listed, audit| {
            let Some(number) = number(listed) else { return Ok(()) };
            read.bytes += listed.bytes;
            match audit {
                Ok(audit) => {
                    read.bytes_decoded += if audit.is_decoded { listed.bytes } else { 0 };
                    proven.learn(&audit);
                    self.slots.extend(audit.slots.into_iter().map(|(id, slots)| ((number, id), slots)));
                    if let Some(first) = audit.faults.first() {
                        let why = match audit.faults.len() {
                            1 => first.clone(),
                            n => format!("{first}; and {} more of its frames", n - 1),
                        };
                        self.faults.insert(number, Fault { trouble: Trouble::Frames, why });
                        self.bad.extend(audit.bad.into_iter().map(|id| (number, id)));
                    } else if !audit.intact {
                        let why = "its contents do not have the hash that is its name".into();
                        self.faults.entry(number).or_insert(Fault { trouble: Trouble::Hash, why });
                    }
                }
                Err(e) => {
                    let error = repo.only_this_object(e)?;
                    let is_missing = matches!(error, Error::Missing { .. });
                    let trouble = if is_missing { Trouble::Missing } else { Trouble::Gone };
                    self.faults.insert(number, Fault { trouble, why: reason(&error) });
                    self.set(number, State::Gone);
                }
            }
            Ok(())
        })?;
        Ok(read)
    }

    /// Whether a blob can be had from a place, as far as is known. It counts as needed.
    pub(super) fn usable(&mut self, id: &BlobId, place: Place) -> bool {
        if !self.bad.is_empty() && self.bad.contains(&(place.pack, *id)) {
            return false;
        }
        match self.states.get_mut(place.pack as usize) {
            Some(State::Sound) => true,
            Some(State::Unindexed { needed }) => {
                *needed = true;
                true
            }
            Some(State::Gone) | None => false,
        }
    }

    /// Records that a blob turned out to be damaged.
    pub(super) fn found_bad(&mut self, id: BlobId, pack: u32, error: &Error) {
        self.bad.insert((pack, id));
        self.faults.entry(pack).or_insert(Fault { trouble: Trouble::Frames, why: error.to_string() });
    }

    /// Whether a pack is damaged, and set aside already.
    pub(super) fn is_set_aside(&self, number: u32) -> bool {
        self.husks.contains(&number)
    }

    /// The pack that holds a blob which the index doesn't know.
    pub(super) fn untold(&self, id: &BlobId) -> Option<u32> {
        self.untold.get(id).copied()
    }

    /// Which slots of a segment are present at a place, if it was decoded.
    pub(super) fn slots(&self, id: &BlobId, place: Place) -> Option<SlotSet> {
        self.slots.get(&(place.pack, *id)).copied()
    }

    /// Numbers of the packs that are in no index file, and whether a snapshot needs what they hold.
    pub(super) fn unindexed(&self) -> impl Iterator<Item = (u32, bool)> {
        (0..).zip(&self.states).filter_map(|(number, state)| match state {
            State::Unindexed { needed } => Some((number, *needed)),
            _ => None,
        })
    }
}

/// The number of the pack that lies at this path, if it is among the first `known` of the index in memory.
fn number_of(repo: &Repository, listed: &Listed, known: usize) -> Option<u32> {
    let (kind, id) = layout::parse_pack(&listed.path).filter(|(kind, id)| listed.path == layout::pack(*kind, *id))?;
    let index = repo.index();
    let number = index.number(&id).filter(|n| (*n as usize) < known)?;
    (index.packs().get(number as usize)?.kind() == kind).then_some(number)
}

fn frames_equal(pack: &crate::format::index::IndexedPack, info: &PackInfo) -> bool {
    pack.frames.len() == info.frames.len()
        && (0..).zip(&pack.frames).zip(&info.frames).all(|((number, a), b)| {
            a.stored_bytes() == b.stored_bytes
                && a.plain_bytes() == b.plain_bytes
                && a.encoding() == b.encoding
                && pack.bases(number) == b.bases
                && pack.slots(number) == b.slots.as_ref()
        })
}

/// The condemned packs without records.
fn husks(index: &BlobIndex, told: &[u32]) -> HashSet<u32> {
    let packs = (0..).zip(index.packs()).zip(told);
    packs
        .filter(|((_, pack), told)| **told == 0 && index.is_condemned(&pack.id))
        .map(|((number, _), _)| number)
        .collect()
}

/// How many records the index has for each pack.
fn records_of_packs(index: &BlobIndex, packs: usize) -> Vec<u32> {
    let mut counts = vec![0; packs];
    for (_, place) in index.iter() {
        if let Some(count) = counts.get_mut(place.pack as usize) {
            *count += 1;
        }
    }
    counts
}

/// Chooses whole packs; `seed` decides where the choice is random.
fn choose(listed: &[Listed], choice: ReadData, seed: [u8; 32]) -> Vec<Listed> {
    let total: u64 = listed.iter().map(|l| l.bytes).sum();
    let budget = match choice {
        ReadData::None => return Vec::new(),
        ReadData::All => return listed.to_vec(),
        ReadData::Part { n, of } => {
            // By name and nothing else, so that it doesn't matter which packs came and went between two runs.
            let part = |l: &Listed| {
                let (_, id) = layout::parse_pack(&l.path)?;
                let start = *id.0.first_chunk::<8>()?;
                Some(u64::from_le_bytes(start) % u64::from(of.max(1)) + 1)
            };
            return listed.iter().filter(|l| part(l) == Some(u64::from(n))).cloned().collect();
        }
        ReadData::Percent(percent) => (total as f64 * percent / 100.0).ceil() as u64,
        ReadData::Bytes(bytes) => bytes,
    };
    let mut shuffled: Vec<_> =
        listed.iter().map(|l| (*blake3::keyed_hash(&seed, l.path.as_bytes()).as_bytes(), l)).collect();
    shuffled.sort_unstable_by_key(|(order, _)| *order);
    let mut sum = 0;
    let within = shuffled.into_iter().take_while(|(_, l)| {
        let more = sum < budget;
        sum += l.bytes;
        more
    });
    within.map(|(_, l)| l.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor::Time;
    use crate::format::header::Kind;
    use crate::id::PackId;

    fn packs() -> Vec<Listed> {
        let pack = |n: u32| {
            let path = layout::pack(Kind::DataPack, PackId(*blake3::hash(&n.to_le_bytes()).as_bytes()));
            Listed { path, bytes: 1000 + u64::from(n), modified: Time::default() }
        };
        (0..200).map(pack).collect()
    }

    #[test]
    fn all_parts_together_are_everything() {
        let packs = packs();
        for of in [1, 2, 7, 300] {
            let mut all: Vec<_> = (1..=of).flat_map(|n| choose(&packs, ReadData::Part { n, of }, [0; 32])).collect();
            assert_eq!(all.len(), packs.len(), "no pack twice");
            all.sort();
            let mut wanted = packs.clone();
            wanted.sort();
            assert_eq!(all, wanted);
        }
        let first = choose(&packs, ReadData::Part { n: 1, of: 3 }, [1; 32]);
        assert_eq!(first, choose(&packs, ReadData::Part { n: 1, of: 3 }, [2; 32]), "the same each time");
        assert!((30..100).contains(&first.len()), "{}", first.len());
    }

    #[test]
    fn random_subsets_have_the_size_asked_for() {
        let packs = packs();
        let total: u64 = packs.iter().map(|l| l.bytes).sum();
        let bytes = |choice, seed| choose(&packs, choice, [seed; 32]).iter().map(|l| l.bytes).sum::<u64>();
        assert!((total / 10..total / 10 + 1200).contains(&bytes(ReadData::Percent(10.0), 1)));
        assert_eq!(bytes(ReadData::Percent(100.0), 1), total);
        assert!((5000..6200).contains(&bytes(ReadData::Bytes(5000), 1)));
        assert_eq!(bytes(ReadData::Bytes(u64::MAX), 1), total);
        assert_eq!(bytes(ReadData::None, 1), 0);
        let (a, b) = (choose(&packs, ReadData::Bytes(9000), [1; 32]), choose(&packs, ReadData::Bytes(9000), [2; 32]));
        assert_ne!(a, b, "another choice each time");
    }
}
