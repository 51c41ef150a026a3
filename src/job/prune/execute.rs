//! Carrying out a plan. Each step may be the last that happens; what that leaves is argued at each.

use std::collections::HashSet;
use std::sync::Arc;

use super::Stock;
use super::plan::{Deletion, Plan};
use super::stock::MAX_INDEX_BLOBS;
use crate::backend::layout;
use crate::error::{Error, Result};
use crate::id::{PackId, SnapshotId};
use crate::repo::{Added, Named, Reach, Repository, SessionGuard, copy};
use crate::report::Reporter;

/// Unfinished uploads are leftovers after so many seconds by the store's clock.
const LEFTOVER_SECS: i64 = 24 * 3600;
/// Where a local store keeps unfinished uploads.
const TEMPORARY: &str = "tmp/";

/// How an execution went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The plan was carried out.
    Done {
        /// Bytes written for what was repacked, their index included.
        written_bytes: u64,
    },
    /// Snapshots came or went since it was made: nothing was deleted, and another plan is needed.
    Outdated,
}

/// Carries out a plan. `reach` holds what all snapshots need, if anything is to be deleted.
///
/// In this order, and safe to be cut off between any two steps and within each:
///
/// 1. *Tombs* whose data is about to go are removed. Cut off here: those snapshots can't be taken back although they
///    could have been; they were forgotten.
/// 2. *Snapshots are listed* again. One that a user took back in time is among them, see
///    [`Repository::unbury_snapshot`], and the plan is outdated.
/// 3. *A new index* in the place of the files that describe packs that go, without those, is stored; then *these files*
///    are deleted. Cut off in between: both describe the same packs. Cut off after it: the packs that go are described
///    by none, and no snapshot needs them; the next prune finds them and their record, and goes on.
/// 4. *The packs* are deleted, then *the records* that condemned them: as long as a pack is there, its record is, and
///    no writer relies on it. A pack that was reinstated may be relied on once its record is gone. *Snapshots whose tombs
///    went* in 1 and that are there nevertheless are removed: undoing was cut off before it saw that it came too late.
/// 5. *Snapshots are forgotten*, each stored as a tomb before it goes. Cut off in between: it is there twice, and
///    counts as not forgotten. Pins are looked for before and after: what was pinned meanwhile is taken back, and the
///    plan is outdated.
/// 6. *Needed blobs are copied* out of packs to be condemned. Cut off here: they lie in two places, which the next
///    prune makes one of.
/// 7. *Packs are condemned*, in one record. A writer that relies on one of them either was running when the record was
///    written, and nothing is deleted before it has ended; or it begins later, reads the record, and doesn't.
/// 8. *Marks* of snapshots that are gone, and *leftovers* of killed runs are removed, which nobody reads.
///
/// # Errors
/// Storage errors; [`Error::Refused`] if this run was taken for dead; damage found while copying.
pub fn execute(
    repo: &Arc<Repository>,
    session: &SessionGuard,
    stock: &Stock,
    plan: &Plan,
    mut reach: Reach,
    reporter: &Reporter,
) -> Result<Outcome> {
    reporter.check_interrupt()?;
    session.check_alive()?;
    let going = &plan.deletion.packs;
    let mut removed = HashSet::new();
    if !going.is_empty() {
        removed = listed_ids(repo, layout::TOMBS)?;
        let kept = remove_tombs(repo, stock, &plan.deletion, &mut reach, reporter)?;
        let snapshots = stock.snapshot_ids();
        if listed_ids(repo, layout::SNAPSHOTS)? != snapshots || !listed_ids(repo, layout::TOMBS)?.is_subset(&kept) {
            return Ok(Outcome::Outdated);
        }
        removed.retain(|id| !kept.contains(id) && !snapshots.contains(id));
        session.check_alive()?;
    }
    rewrite_index(repo, session, stock, going)?;
    if !plan.deletion.records.is_empty() {
        session.check_alive()?;
        let paths: Vec<_> = going.iter().filter_map(|id| stock.packs.get(id)).map(|l| l.path.clone()).collect();
        repo.backend().delete(&paths)?;
        repo.backend().delete(&plan.deletion.records)?;
        remove_revenants(repo, &removed)?;
    }
    if !forget(repo, plan, reporter)? {
        return Ok(Outcome::Outdated);
    }
    let written_bytes = condemn(repo, session, plan, reporter)?;
    remove_marks(repo, stock)?;
    remove_leftovers(repo, session)?;
    Ok(Outcome::Done { written_bytes })
}

/// Forgets what the plan says, unless something of it was pinned since. Whoever pins a snapshot looks whether it is
/// still there after the mark is, and here marks are read once more after the snapshots went: one of the two sees it.
/// Whether the plan still holds.
fn forget(repo: &Repository, plan: &Plan, reporter: &Reporter) -> Result<bool> {
    let going: Vec<SnapshotId> = plan.verdicts.iter().filter(|v| v.keep.is_empty()).map(|v| v.named.id).collect();
    if going.is_empty() {
        return Ok(true);
    }
    if repo.is_any_pinned(&going)? {
        return Ok(false);
    }
    let mut buried = Vec::new();
    for id in going {
        reporter.check_interrupt()?;
        match repo.bury_snapshot(id) {
            Ok(()) => buried.push(id),
            // Somebody else forgot it.
            Err(Error::Missing { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    if !repo.is_any_pinned(&buried)? {
        return Ok(true);
    }
    // Which of them it was is for the next plan to say.
    for id in buried {
        match repo.exhume_snapshot(id) {
            // Somebody else was faster.
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// Returns how much was written for what was copied, in bytes.
fn condemn(repo: &Arc<Repository>, session: &SessionGuard, plan: &Plan, reporter: &Reporter) -> Result<u64> {
    let written = copy(repo, &plan.reclaim.copies, reporter)?;
    let packs: Vec<PackId> = [&plan.reclaim.unused[..], &plan.reclaim.repack].concat();
    if !packs.is_empty() {
        let running = session.living(&session.look()?);
        repo.condemn(packs, running.into_iter().map(|s| s.name).collect())?;
    }
    Ok(written)
}

/// Removes the forgotten snapshots that need what is about to be deleted, and returns the ids of the others. Whatever
/// of a tomb is beyond `reach` and lies in no pack that stays is about to go.
///
/// A tomb that can't be read, or whose directories can't, is removed too: it could not be taken back either, since
/// that takes every blob it needs; left alone, nobody could say that it doesn't need what goes. When the store merely
/// failed to answer, the prune ends instead.
fn remove_tombs(
    repo: &Repository,
    stock: &Stock,
    deletion: &Deletion,
    reach: &mut Reach,
    reporter: &Reporter,
) -> Result<HashSet<SnapshotId>> {
    let (tombs, lost) = repo.read_tombs()?;
    let mut doomed: Vec<String> = Vec::new();
    for lost in lost {
        match lost.error {
            Error::Corrupt { .. } | Error::Unsupported { .. } => doomed.push(lost.path),
            e => return Err(e),
        }
    }
    let mut kept = HashSet::new();
    for Named { id, snapshot, .. } in tombs {
        match reach.add(repo, [snapshot.tree], reporter) {
            Ok(added) if !lose_something(repo, stock, deletion, reach, &added) => {
                kept.insert(id);
            }
            Ok(added) => {
                reach.remove(&added);
                doomed.push(layout::tomb(id));
            }
            Err(Error::Missing { .. } | Error::Corrupt { .. }) => doomed.push(layout::tomb(id)),
            Err(e) => return Err(e),
        }
    }
    repo.backend().delete(&doomed)?;
    Ok(kept)
}

/// Whether something of what was added last lies in no pack that stays.
fn lose_something(repo: &Repository, stock: &Stock, deletion: &Deletion, reach: &Reach, added: &Added) -> bool {
    let index = repo.index();
    let stays = |place| {
        let pack = index.frame(place).map(|(pack, _)| pack.id);
        pack.is_some_and(|pack| stock.packs.contains_key(&pack) && !deletion.packs.contains(&pack))
    };
    added.touched().any(|position| !reach.needs().are_met_at(&index, position, stays))
}

/// Removes snapshots that came back after they were listed for the last time, while their tombs went: whoever took them
/// back does that as soon as it looks for the tomb, unless it was cut off before.
fn remove_revenants(repo: &Repository, removed: &HashSet<SnapshotId>) -> Result<()> {
    let back: Vec<_> =
        listed_ids(repo, layout::SNAPSHOTS)?.intersection(removed).map(|id| layout::snapshot(*id)).collect();
    repo.backend().delete(&back)
}

fn listed_ids(repo: &Repository, folder: &str) -> Result<HashSet<SnapshotId>> {
    Ok(repo.backend().list(folder)?.iter().filter_map(|l| SnapshotId::parse(l.name())).collect())
}

/// Stores an index of the packs that are there and stay, as far as files which are to be replaced describe them or
/// none does; then deletes these files.
fn rewrite_index(repo: &Repository, session: &SessionGuard, stock: &Stock, going: &HashSet<PackId>) -> Result<()> {
    let (old, keep) = {
        let index = repo.index();
        let mut written = vec![true; index.packs().len()];
        let described = stock.index_files.iter().flat_map(|file| file.packs.clone());
        described.for_each(|number| written[number as usize] = false);
        let mut old = Vec::new();
        for file in stock.index_files_to_replace(&index, going) {
            file.packs.clone().for_each(|number| written[number as usize] = true);
            old.push(file.path.clone());
        }
        let stays = |id: &PackId| stock.packs.contains_key(id) && !going.contains(id);
        let keep = index.packs().iter().zip(written).filter(|(pack, written)| *written && stays(&pack.id));
        (old, keep.map(|(pack, _)| pack.id).collect::<HashSet<_>>())
    };
    for group in index_groups(repo, |id| keep.contains(id)) {
        let index = repo.index().extract(|pack| group.contains(&pack.id));
        repo.put_index(index)?;
    }
    if old.is_empty() {
        return Ok(());
    }
    session.check_alive()?;
    repo.backend().delete(&old)
}

/// The packs to keep, in groups whose blobs fit into one index file.
fn index_groups(repo: &Repository, keep: impl Fn(&PackId) -> bool) -> Vec<HashSet<PackId>> {
    let index = repo.index();
    let mut blobs = vec![0u64; index.packs().len()];
    for (_, place) in index.iter() {
        if let Some(count) = blobs.get_mut(place.pack as usize) {
            *count += 1;
        }
    }
    let mut groups: Vec<HashSet<PackId>> = Vec::new();
    let mut in_last = 0;
    for (pack, count) in index.packs().iter().zip(blobs).filter(|(pack, _)| keep(&pack.id)) {
        if groups.is_empty() || in_last + count > MAX_INDEX_BLOBS {
            groups.push(HashSet::new());
            in_last = 0;
        }
        in_last += count;
        groups.last_mut().into_iter().for_each(|group| {
            group.insert(pack.id);
        });
    }
    groups
}

/// Deletes the marks of snapshots that are neither there nor can be taken back. A snapshot that is just being forgotten
/// or taken back is always in one of the two folders, but not always in the one that is listed: hence thrice.
fn remove_marks(repo: &Repository, stock: &Stock) -> Result<()> {
    let mut known = HashSet::new();
    for folder in [layout::SNAPSHOTS, layout::TOMBS, layout::SNAPSHOTS] {
        if stock.marks.of_snapshots().all(|(_, of)| known.contains(&of)) {
            return Ok(());
        }
        known.extend(listed_ids(repo, folder)?);
    }
    let gone = stock.marks.of_snapshots().filter(|(_, of)| !known.contains(of));
    repo.backend().delete(&gone.map(|(id, _)| layout::mark(id)).collect::<Vec<_>>())
}

fn remove_leftovers(repo: &Repository, session: &SessionGuard) -> Result<()> {
    let now = session.store_time().secs;
    let mut left = repo.backend().list(TEMPORARY)?;
    left.retain(|l| now.saturating_sub(l.modified.secs) > LEFTOVER_SECS);
    repo.backend().delete(&left.into_iter().map(|l| l.path).collect::<Vec<_>>())
}
