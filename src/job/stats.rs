//! What snapshots hold and what they cost: sizes, deduplication, compression, what each generation added and what
//! forgetting it alone would free, and what the repository has beside.
//!
//! Only metadata is read. A blob that is first found in one generation going forward, and first found in the same one
//! going backward, is in that one alone; so two walks, each reading every directory once, do for any number of
//! snapshots. Memory goes with the number of blobs, as that of the index does.

use std::collections::HashMap;
use std::ops::AddAssign;

use crate::backend::layout;
use crate::error::{Error, Result};
use crate::format::header::HEADER_BYTES;
use crate::format::tree::NodeKind;
use crate::id::{BlobId, SnapshotId};
use crate::index::{BlobIndex, Place};
use crate::repo::{Filter, Named, Reach, Repository, Selected, Start};
use crate::report::{Problem, Reporter, Severity};

/// Blobs, counted and weighed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weight {
    /// How many there are.
    pub blobs: u64,
    /// Their length, in bytes.
    pub plain: u64,
    /// What they take in their packs, compressed and sealed, in bytes. Of a frame that holds several blobs, each has
    /// its share.
    pub stored: f64,
}

impl AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.blobs += other.blobs;
        self.plain += other.plain;
        self.stored += other.stored;
    }
}

/// What a snapshot, a source or the whole repository holds, as counted when it was stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Snapshots.
    pub snapshots: u64,
    /// Regular files, over all snapshots.
    pub files: u64,
    /// Databases, over all snapshots.
    pub databases: u64,
    /// Length of all files and databases, over all snapshots, in bytes.
    pub logical: u64,
}

impl AddAssign for Holding {
    fn add_assign(&mut self, other: Self) {
        self.snapshots += other.snapshots;
        self.files += other.files;
        self.databases += other.databases;
        self.logical += other.logical;
    }
}

/// One snapshot of many.
#[derive(Debug, Clone)]
pub struct OfSnapshot {
    /// The snapshot; its own counts say what it added.
    pub named: Named,
    /// What no other snapshot needs: freed if this one is forgotten alone.
    pub alone: Weight,
}

/// One source.
#[derive(Debug, Clone)]
pub struct OfSource {
    /// Host.
    pub host: String,
    /// Source.
    pub source: String,
    /// What its snapshots hold.
    pub holding: Holding,
    /// All blobs that they need, each once.
    pub unique: Weight,
    /// What no other source needs.
    pub alone: Weight,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<OfSnapshot>,
}

/// What is in the store beside what snapshots need, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overhead {
    /// All objects.
    pub total: u64,
    /// Packs that the index knows and that are not condemned.
    pub packs: u64,
    /// Their headers and directories.
    pub directories: u64,
    /// What hides their sizes.
    pub padding: u64,
    /// Frames, or parts of them, that no snapshot needs.
    pub unused: f64,
    /// Packs that a prune has marked for deletion.
    pub condemned: u64,
    /// Packs that no index names: a running or interrupted command's.
    pub unknown_packs: u64,
    /// Index files.
    pub index: u64,
    /// Snapshots, keys, records and the like.
    pub other: u64,
}

/// The whole repository.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The sources asked for, and their snapshots asked for.
    pub sources: Vec<OfSource>,
    /// What all snapshots hold.
    pub holding: Holding,
    /// All blobs that any snapshot needs, each once.
    pub unique: Weight,
    /// What else there is.
    pub overhead: Overhead,
}

/// One snapshot, or a directory in one.
#[derive(Debug, Clone)]
pub struct One {
    /// What it holds.
    pub holding: Holding,
    /// Directories in it.
    pub directories: u64,
    /// The blobs that it needs, each once.
    pub unique: Weight,
    /// What nothing else in the repository needs. For a part of a snapshot, its other parts don't count.
    pub alone: Weight,
}

/// The first and the last snapshot that need a blob, by their places in the order of sources and generations.
type Span = (u32, u32);

fn weigh(index: &BlobIndex, id: &BlobId) -> Weight {
    let Some(place) = index.find(id) else { return Weight::default() };
    Weight { blobs: 1, plain: place.plain_bytes.into(), stored: stored(index, place) }
}

/// The share that a blob has in its frame.
fn stored(index: &BlobIndex, place: Place) -> f64 {
    let Some((_, frame)) = index.frame(place) else { return 0.0 };
    if frame.plain_bytes() == 0 || place.plain_bytes == frame.plain_bytes() {
        return frame.stored_bytes().into();
    }
    f64::from(frame.stored_bytes()) * f64::from(place.plain_bytes) / f64::from(frame.plain_bytes())
}

/// Looks at all snapshots; those that pass the filter are told one by one. The caller has loaded the index. A snapshot
/// that can't be read whole is reported as damage and counts with nothing.
///
/// # Errors
/// [`Error::Interrupted`], or when the store can't be listed.
pub fn run(repo: &Repository, filter: &Filter, reporter: &Reporter) -> Result<Stats> {
    let sources = by_source(repo.snapshots(reporter)?);
    let (mut spans, mut uniques) = (HashMap::new(), Vec::new());
    let mut first = 0u32;
    for snapshots in &sources {
        uniques.push(walk(repo, snapshots, first, &mut spans, reporter)?);
        first += snapshots.len() as u32;
    }
    let starts: Vec<u32> = sources
        .iter()
        .scan(0, |at, snapshots| {
            *at += snapshots.len() as u32;
            Some(*at - snapshots.len() as u32)
        })
        .collect();
    let mut alone = vec![Weight::default(); first as usize];
    let mut source_alone = vec![Weight::default(); sources.len()];
    let mut unique = Weight::default();
    let index = repo.index();
    for (id, (first, last)) in &spans {
        let weight = weigh(&index, id);
        unique += weight;
        let source_of = |at: u32| starts.partition_point(|start| *start <= at).saturating_sub(1);
        if first == last {
            alone[*first as usize] += weight;
        }
        if source_of(*first) == source_of(*last) {
            source_alone[source_of(*first)] += weight;
        }
    }
    drop(index);
    let mut alone = alone.into_iter();
    let mut told = Vec::new();
    let mut holding = Holding::default();
    for ((snapshots, unique), source_alone) in sources.into_iter().zip(uniques).zip(source_alone) {
        let Some(Named { snapshot, .. }) = snapshots.first() else { continue };
        let (host, source) = (snapshot.host.clone(), snapshot.source.clone());
        let mut held = Holding::default();
        snapshots.iter().for_each(|named| held += holding_of(named));
        holding += held;
        let wanted: Vec<SnapshotId> = filter.apply(snapshots.clone()).iter().map(|named| named.id).collect();
        let all = snapshots.into_iter().zip(alone.by_ref()).map(|(named, alone)| OfSnapshot { named, alone });
        // All are taken, so that the weights stay with their snapshots.
        let snapshots: Vec<_> = all.collect::<Vec<_>>().into_iter().filter(|s| wanted.contains(&s.named.id)).collect();
        if !snapshots.is_empty() {
            told.push(OfSource { host, source, holding: held, unique, alone: source_alone, snapshots });
        }
    }
    let overhead = overhead(repo, unique.stored)?;
    Ok(Stats { sources: told, holding, unique, overhead })
}

fn holding_of(Named { snapshot, .. }: &Named) -> Holding {
    let counts = &snapshot.counts;
    Holding { snapshots: 1, files: counts.files, databases: counts.databases, logical: counts.bytes }
}

/// Snapshots of each source, oldest first; the sources in the order of their first snapshots.
fn by_source(snapshots: Vec<Named>) -> Vec<Vec<Named>> {
    let mut out: Vec<Vec<Named>> = Vec::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for named in snapshots {
        let key = (named.snapshot.host.clone(), named.snapshot.source.clone());
        let place = *places.entry(key).or_insert(out.len());
        match out.get_mut(place) {
            Some(group) => group.push(named),
            None => out.push(vec![named]),
        }
    }
    out
}

/// Walks the snapshots of a source forward and backward, notes in `spans` who needs what, and weighs all of it. The
/// first snapshot has the number `number`.
fn walk(
    repo: &Repository,
    snapshots: &[Named],
    number: u32,
    spans: &mut HashMap<BlobId, Span>,
    reporter: &Reporter,
) -> Result<Weight> {
    let mut unique = Weight::default();
    let mut forward = Reach::default();
    for (number, named) in (number..).zip(snapshots) {
        reporter.current(|| format!("snapshot {}", named.id.short()));
        let added = match forward.add(repo, [named.snapshot.tree], reporter) {
            Ok(added) => added,
            Err(e @ Error::Interrupted) => return Err(e),
            Err(e) => {
                damage(named, &e, reporter);
                continue;
            }
        };
        let index = repo.index();
        for id in added.new_blobs().filter_map(|position| index.id_at(position)) {
            unique += weigh(&index, &id);
            // Another source may have it already, with a lower number.
            spans.entry(id).or_insert((number, number));
        }
    }
    // What was found is not needed any more, and takes much room.
    drop(forward);
    let mut backward = Reach::default();
    for (number, named) in (number..).zip(snapshots).collect::<Vec<_>>().into_iter().rev() {
        // What can't be read was told above.
        match backward.add(repo, [named.snapshot.tree], reporter) {
            Ok(added) => {
                let index = repo.index();
                for id in added.new_blobs().filter_map(|position| index.id_at(position)) {
                    if let Some(span) = spans.get_mut(&id) {
                        span.1 = span.1.max(number);
                    }
                }
            }
            Err(e @ Error::Interrupted) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(unique)
}

fn damage(named: &Named, error: &Error, reporter: &Reporter) {
    reporter.problem(Problem {
        severity: Severity::Damage,
        what: format!("snapshot {}", named.id.short()),
        why: format!("{error}; what it needs is not counted, so that other numbers are too low or too high"),
        hint: Some("run `snapshot check` to see what is affected".into()),
    });
}

/// What the store holds beside blobs that are needed, which take `used` bytes in their frames.
fn overhead(repo: &Repository, used: f64) -> Result<Overhead> {
    let mut out = Overhead::default();
    let index = repo.index();
    let mut frames = 0;
    for object in repo.backend().list("")? {
        out.total += object.bytes;
        let known = layout::parse_pack(&object.path).map(|(_, id)| {
            let pack = index.number(&id).and_then(|number| index.packs().get(number as usize));
            pack.map(|pack| (pack, index.is_condemned(&id)))
        });
        match known {
            None if object.path.starts_with(layout::INDEX) => out.index += object.bytes,
            None => out.other += object.bytes,
            Some(None) => out.unknown_packs += object.bytes,
            Some(Some((_, true))) => out.condemned += object.bytes,
            Some(Some((pack, false))) => {
                let directory = HEADER_BYTES as u64 + u64::from(pack.header.first_bytes);
                let own_frames = pack.frames.iter().map(|frame| u64::from(frame.stored_bytes())).sum::<u64>();
                out.packs += object.bytes;
                out.directories += directory;
                out.padding += object.bytes.saturating_sub(directory + own_frames);
                frames += own_frames;
            }
        }
    }
    out.unused = (frames as f64 - used).max(0.0);
    Ok(out)
}

/// Looks at one snapshot, or a directory in it. The caller has loaded the index.
///
/// # Errors
/// [`Error::Unknown`] if there is no such place, [`Error::Refused`] for what is no directory, [`Error::Missing`] or
/// [`Error::Corrupt`] if some of it can't be read; other snapshots that can't be read are reported as damage.
pub fn one(repo: &Repository, selected: &Selected, reporter: &Reporter) -> Result<One> {
    let Start::Directory(tree, _) = selected.find(repo, &[])? else {
        return Err(Error::refused(
            "only whole snapshots and directories have statistics",
            "name the directory around it",
        ));
    };
    let mut out = One {
        holding: Holding { snapshots: 1, ..Holding::default() },
        directories: 0,
        unique: Weight::default(),
        alone: Weight::default(),
    };
    let mut waiting = vec![tree];
    while let Some(tree) = waiting.pop() {
        reporter.check_interrupt()?;
        for node in repo.read_tree(&tree)? {
            match node.kind {
                NodeKind::File => out.holding.files += 1,
                NodeKind::Database => out.holding.databases += 1,
                NodeKind::Directory => out.directories += 1,
                _ => {}
            }
            out.holding.logical += node.size.unwrap_or(0);
            waiting.extend(node.tree);
        }
    }
    let needed = repo.reachable([tree], reporter)?;
    let mut others = Reach::default();
    for named in repo.snapshots(reporter)?.iter().filter(|named| named.id != selected.named.id) {
        match others.add(repo, [named.snapshot.tree], reporter) {
            Ok(_) => {}
            Err(e @ Error::Interrupted) => return Err(e),
            Err(e) => damage(named, &e, reporter),
        }
    }
    let index = repo.index();
    for position in needed.iter() {
        let Some(id) = index.id_at(position) else { continue };
        let weight = weigh(&index, &id);
        out.unique += weight;
        if !others.needs().has(position) {
            out.alone += weight;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::Node;
    use crate::job::sample::{Sample, noise};

    fn alone(stats: &Stats) -> Vec<u64> {
        stats.sources.iter().flat_map(|source| &source.snapshots).map(|s| s.alone.plain).collect()
    }

    #[test]
    fn what_each_snapshot_has_alone() {
        let mut sample = Sample::new();
        let files: Vec<Node> = (0..4u8).map(|n| sample.file(&format!("f{n}"), &noise(n, 1000 << n))).collect();
        // The first file comes back after a generation without it: nobody has it alone.
        let of = [vec![0, 1], vec![1, 2], vec![0, 1, 3]];
        for numbers in of {
            sample.snapshot(numbers.into_iter().map(|n| files[n].clone()).collect());
        }
        let reporter = Reporter::silent();
        let stats = run(&sample.repo, &Filter::default(), &reporter).unwrap();
        let trees: Vec<_> = stats.sources[0].snapshots.iter().map(|s| s.named.snapshot.tree).collect();
        let tree_bytes = |n: usize| u64::from(sample.repo.place(&trees[n]).unwrap().plain_bytes);
        assert_eq!(alone(&stats), [tree_bytes(0), tree_bytes(1) + 4000, tree_bytes(2) + 8000]);
        let all = 15_000 + (0..3).map(tree_bytes).sum::<u64>();
        assert_eq!((stats.unique.plain, stats.unique.blobs), (all, 7));
        assert_eq!(stats.sources[0].alone, stats.sources[0].unique);
        for (n, named) in stats.sources[0].snapshots.iter().enumerate() {
            let selected = Selected { named: named.named.clone(), sub_path: vec![] };
            let one = one(&sample.repo, &selected, &reporter).unwrap();
            assert_eq!((one.alone.plain, one.alone.blobs), (named.alone.plain, named.alone.blobs), "{n}");
            assert_eq!(one.holding.files, [2, 2, 3][n]);
        }
        assert!(reporter.problems().is_empty());
        let overhead = stats.overhead;
        let parts = overhead.directories + overhead.padding;
        let frames = stats.unique.stored + overhead.unused;
        assert!((overhead.packs as f64 - parts as f64 - frames).abs() < 1.0, "{overhead:?}");
        assert_eq!(overhead.total, overhead.packs + overhead.index + overhead.other);
        assert!(overhead.unused < 1.0 && overhead.padding > 0, "{overhead:?}");

        // The last one is not needed any more: what it alone had is unused.
        let last = &stats.sources[0].snapshots[2];
        sample.repo.bury_snapshot(last.named.id).unwrap();
        let after = run(&sample.repo, &Filter::default(), &reporter).unwrap();
        assert!((after.overhead.unused - last.alone.stored).abs() < 1.0);
        let filtered = run(&sample.repo, &Filter { latest: Some(1), ..Filter::default() }, &reporter).unwrap();
        assert_eq!((filtered.sources[0].snapshots.len(), filtered.holding), (1, after.holding));
        assert_eq!(alone(&filtered), alone(&after)[1..]);
    }

    #[test]
    fn a_damaged_snapshot_is_named_and_the_rest_counted() {
        let mut sample = Sample::new();
        let file = sample.file("a", b"abc");
        let lost = sample.snapshot(vec![file]);
        let file = sample.file("b", b"de");
        sample.snapshot(vec![file]);
        sample.damage(&lost.named.snapshot.tree, 0);
        let reporter = Reporter::silent();
        let stats = run(&sample.repo, &Filter::default(), &reporter).unwrap();
        assert_eq!(reporter.problems().len(), 1);
        assert_eq!(alone(&stats)[0], 0);
        assert!(alone(&stats)[1] > 2 && stats.overhead.unused > 0.0);
    }
}
