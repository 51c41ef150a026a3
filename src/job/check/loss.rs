//! What damage costs: which paths of which snapshots, and how to say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::packs::{Packs, Trouble};
use super::{damage, note, some_of};
use crate::backend::layout;
use crate::error::Result;
use crate::id::{BlobId, SnapshotId};
use crate::repo::{Named, Repository};
use crate::report::Reporter;

/// Paths, snapshots and packs that are named; the others are counted.
const NAMED: usize = 5;
/// Blobs that are reported one by one when no pack is to blame.
const MAX_BLOBS: usize = 100;

/// Why something can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// The pack with this number is missing or damaged.
    Pack(u32),
    /// This blob is in no pack, or makes no sense.
    Blob(BlobId),
    /// More such blobs.
    Others,
}

/// Paths that are lost: the first few by name, and how many.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    first: Vec<Vec<u8>>,
    count: u64,
}

/// What is lost below one directory, by cause.
pub(super) type Loss = BTreeMap<Cause, Paths>;

/// Adds a path to a loss; an empty one stands for the directory itself.
pub(super) fn lose(loss: &mut Loss, cause: Cause, path: &[u8]) {
    let paths = loss.entry(cause).or_default();
    paths.count += 1;
    if paths.first.len() < NAMED {
        paths.first.push(path.to_vec());
    }
}

/// Adds what is lost in a directory to what is lost in the one above, where it is called `name`.
pub(super) fn merge(into: &mut Loss, name: Option<&[u8]>, from: &Loss) {
    for (cause, paths) in from {
        let all = into.entry(*cause).or_default();
        all.count += paths.count;
        let room = NAMED - all.first.len().min(NAMED);
        for path in paths.first.iter().take(room) {
            all.first.push(match name {
                Some(name) => [name, b"/", path].concat(),
                None => path.clone(),
            });
        }
    }
}

/// All that is lost.
#[derive(Default)]
pub(super) struct Losses {
    /// What is wrong with blobs that no pack is to blame for.
    reasons: BTreeMap<BlobId, String>,
    /// By cause: the snapshots affected, and the paths in the one that is affected most.
    by_cause: BTreeMap<Cause, (Vec<SnapshotId>, Paths)>,
    affected: BTreeSet<SnapshotId>,
}

impl Losses {
    /// The cause to name for a blob that no pack is to blame for.
    pub(super) fn blame(&mut self, id: BlobId, why: impl Into<String>) -> Cause {
        if self.reasons.len() >= MAX_BLOBS && !self.reasons.contains_key(&id) {
            return Cause::Others;
        }
        self.reasons.entry(id).or_insert_with(|| why.into());
        Cause::Blob(id)
    }

    /// Records what a snapshot lost.
    pub(super) fn add(&mut self, snapshot: SnapshotId, loss: &Loss) {
        for (cause, paths) in loss {
            let (snapshots, most) = self.by_cause.entry(*cause).or_default();
            snapshots.push(snapshot);
            if paths.count > most.count {
                *most = paths.clone();
            }
            self.affected.insert(snapshot);
        }
    }
}

/// Reports every pack with something wrong and every lost blob, with what it costs.
pub(super) fn report(
    repo: &Repository,
    packs: &Packs,
    losses: &Losses,
    snapshots: &[Named],
    index_files: &[String],
    reporter: &Reporter,
) -> Result<()> {
    let teller = Teller { losses, snapshots: snapshots.iter().map(|n| (n.id, n)).collect() };
    // A prune that ran meanwhile took packs away, and the index files that named them.
    let now = repo.backend().list(layout::INDEX)?;
    let changed = index_files.iter().any(|path| !now.iter().any(|l| l.path == *path));
    let path = |number: u32| {
        let index = repo.index();
        index.packs().get(number as usize).map_or_else(String::new, |p| layout::pack(p.kind(), p.id))
    };
    let mut condemned = packs.condemned_unknown.clone();
    for (number, fault) in &packs.faults {
        let what = path(*number);
        if packs.is_set_aside(*number) && !losses.by_cause.contains_key(&Cause::Pack(*number)) {
            condemned.extend((fault.trouble != Trouble::Missing).then_some(what));
            continue;
        }
        if changed && fault.trouble == Trouble::Missing {
            let why = format!("{}; but a prune ran while it was checked", fault.why);
            note(reporter, &what, why, "run `snapshot check` again");
            continue;
        }
        let cost = teller.cost(Cause::Pack(*number));
        let hint = hint(fault.trouble);
        match (cost, fault.trouble) {
            (Some(cost), _) => damage(reporter, &what, format!("{}; {}", fault.why, cost.lost), hint + &cost.way_out),
            (None, Trouble::Directory) => {
                let why =
                    "but what it holds is found through the index, so that nothing is lost as long as that is there";
                damage(reporter, &what, format!("{}; {why}", fault.why), hint);
            }
            (None, Trouble::Hash) => {
                damage(reporter, &what, format!("{}; but all that it holds is sound", fault.why), hint);
            }
            (None, Trouble::Index) => {
                note(reporter, &what, format!("{}; no snapshot needs these", fault.why), hint);
            }
            (None, Trouble::Missing | Trouble::Gone | Trouble::Frames) => {
                let why = "no snapshot needs what is lost with it, but the next one might rely on it";
                damage(reporter, &what, format!("{}; {why}", fault.why), hint);
            }
        }
    }
    report_condemned(condemned, reporter);
    report_unindexed(packs, path, reporter);
    for cause in losses.by_cause.keys() {
        let (what, why, hint) = match cause {
            Cause::Pack(number) if packs.faults.contains_key(number) => continue,
            Cause::Pack(number) => (path(*number), "it can't be read", hint(Trouble::Gone)),
            Cause::Blob(id) => {
                let why = losses.reasons.get(id).map_or("it is missing", String::as_str);
                (format!("blob {id}"), why, format!("run {CREATE}"))
            }
            Cause::Others => ("other blobs".into(), "more blobs are missing", format!("run {CREATE}")),
        };
        if let Some(cost) = teller.cost(*cause) {
            damage(reporter, &what, format!("{why}; {}", cost.lost), hint + &cost.way_out);
        }
    }
    Ok(())
}

/// What brings lost data back, and what makes the best of what stays lost.
const CREATE: &str = "`snapshot create`: what the source still has is stored anew, for the old snapshots too; then \
                      `snapshot repair snapshots` salvages what is left of snapshots that still lack something";

fn hint(trouble: Trouble) -> String {
    match trouble {
        Trouble::Missing => format!("run `snapshot repair index`, which drops it from the index, then {CREATE}"),
        Trouble::Gone | Trouble::Frames => {
            format!("run `snapshot repair packs`, which saves what can still be read of it, then {CREATE}")
        }
        Trouble::Index => {
            "run `snapshot repair index`, which builds the index anew from the packs; what it leaves out then is damaged, \
             and `snapshot create` stores anew what the source still has"
                .into()
        }
        Trouble::Directory | Trouble::Hash => {
            "run `snapshot repair packs`, which saves what it holds in a new pack, or put the file back from a copy of \
             the repository"
                .into()
        }
    }
}

/// Packs that are damaged and that nobody looks for anything in any more.
fn report_condemned(paths: Vec<String>, reporter: &Reporter) {
    if let Some(first) = paths.first().cloned() {
        let total = paths.len() as u64;
        let all = some_of(paths, total, NAMED);
        let why =
            format!("it is damaged, and condemned: nothing is looked for in it any more. Packs in this state: {all}");
        note(reporter, &first, why, "nothing to do: a later prune deletes it");
    }
}

/// Packs that no index file knows: left by an interrupted run, or the index file was lost.
fn report_unindexed(packs: &Packs, path: impl Fn(u32) -> String, reporter: &Reporter) {
    let (needed, others): (Vec<_>, Vec<_>) = packs.unindexed().partition(|(_, needed)| *needed);
    let names = |numbers: &[(u32, bool)]| {
        let all = numbers.iter().map(|(number, _)| path(*number));
        let first = all.clone().next().unwrap_or_default();
        (first, some_of(all, numbers.len() as u64, NAMED))
    };
    if !needed.is_empty() {
        let (first, all) = names(&needed);
        let why = format!(
            "snapshots need it and no readable index file knows it: one was lost or damaged. Packs in this state: {all}. Nothing is \
             lost, but until it is mended commands can't find what is in them"
        );
        damage(reporter, &first, why, "run `snapshot repair index`, which builds the index anew from the packs");
    }
    if !others.is_empty() {
        let (first, all) = names(&others);
        let why = format!("no index file knows it and no snapshot needs it. Packs in this state: {all}");
        note(
            reporter,
            &first,
            why,
            "left by an interrupted run, or being written now; the next `snapshot prune` removes it",
        );
    }
}

struct Cost {
    /// What is lost, in words.
    lost: String,
    /// Which snapshots to turn to.
    way_out: String,
}

struct Teller<'a> {
    losses: &'a Losses,
    snapshots: HashMap<SnapshotId, &'a Named>,
}

impl Teller<'_> {
    fn cost(&self, cause: Cause) -> Option<Cost> {
        let (ids, paths) = self.losses.by_cause.get(&cause)?;
        let shown = paths.first.iter().map(|p| match String::from_utf8_lossy(p) {
            path if path.is_empty() => "everything".into(),
            path => path.into_owned(),
        });
        let lost = format!(
            "lost: {}; in {}",
            some_of(shown, paths.count, NAMED),
            some_of(ids.iter().rev().map(|id| format!("snapshot {}", id.short())), ids.len() as u64, NAMED)
        );
        let sources: BTreeSet<_> = ids.iter().filter_map(|id| self.source(id)).collect();
        let way_out = sources.into_iter().take(3).map(|(host, source)| {
            let sound = self
                .snapshots
                .values()
                .filter(|n| self.source(&n.id) == Some((host, source)) && !self.losses.affected.contains(&n.id));
            match sound.max_by_key(|n| (n.snapshot.generation, n.snapshot.time)) {
                Some(n) => format!("; the newest unaffected snapshot of {host}:{source} is {}", n.id.short()),
                None => format!("; no snapshot of {host}:{source} is unaffected"),
            }
        });
        Some(Cost { lost, way_out: way_out.collect() })
    }

    fn source(&self, id: &SnapshotId) -> Option<(&str, &str)> {
        let snapshot = &self.snapshots.get(id)?.snapshot;
        Some((&snapshot.host, &snapshot.source))
    }
}
