//! Prune: forgetting by policy, and reclaiming space in two phases.
//!
//! A run first deletes the packs that earlier runs condemned, if their time has come; then it forgets what the policy
//! drops, and condemns the packs of which no remaining snapshot needs anything, or too little. Nobody waits for it,
//! and whatever it condemned by mistake or that is needed again is found before it is deleted.
//!
//! `stock` lists what there is, `plan` and `reclaim` decide, `cost` reckons what that takes, `execute` acts.

mod cost;
mod execute;
mod flatten;
pub mod plan;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod races;
mod reclaim;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod slept_tests;
#[cfg(test)]
mod slot_tests;
mod stock;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use self::cost::{Cost, Requests};
use self::execute::{Outcome, execute};
use self::flatten::{Flatten, Workable};
use self::plan::Deletion;
pub use self::plan::Plan;
use self::reclaim::Inputs;
pub use self::reclaim::{Amount, Limit, Share};
use self::stock::Stock;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::id::SnapshotId;
use crate::job::policy::{self, Policy, Verdict};
use crate::repo::{Filter, Needs, Reach, Repository, SessionGuard};
use crate::report::{Reporter, Severity};

/// How often a run plans again when snapshots come and go.
const ATTEMPTS: u8 = 5;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to keep; an empty one forgets nothing.
    pub policy: Policy,
    /// Which snapshots the policy judges; the others are kept.
    pub filter: Filter,
    /// Only plan, and write nothing at all.
    pub dry_run: bool,
    /// How much unused space may stay in packs partly used.
    pub max_unused: Limit,
    /// How many bytes of packs may be repacked.
    pub max_repack: Option<u64>,
    /// How long condemned packs are kept, in seconds.
    pub grace_secs: i64,
    /// Delete at once, without grace; only if nothing else is running.
    pub instant: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// What is kept and forgotten, and why, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Snapshots forgotten.
    pub forgotten: u64,
    /// Condemned packs deleted.
    pub packs_deleted: u64,
    /// Their length, in bytes.
    pub bytes_deleted: u64,
    /// Packs condemned: those unused and those repacked.
    pub packs_condemned: u64,
    /// Their length, in bytes.
    pub bytes_condemned: u64,
    /// Packs whose needed blobs were copied into new ones.
    pub packs_repacked: u64,
    /// Their length, in bytes.
    pub bytes_repacked: u64,
    /// What was written for these, in bytes; 0 in a plan.
    pub bytes_rewritten: u64,
    /// Unused space that stays in packs partly used, in bytes.
    pub bytes_unused_kept: u64,
    /// Whether more would have been repacked within a larger [`Options::max_repack`].
    pub over_budget: bool,
    /// What there was, what becomes of it, and what that takes.
    pub cost: Cost,
    /// What keeps condemned packs from being deleted now, for people.
    pub waiting_for: Vec<String>,
}

/// Prunes. Loads the index itself. `announce` is called with what is going to be done before anything is; if snapshots
/// come and go meanwhile, what is done may differ.
///
/// # Errors
/// [`Error::Locked`] if another prune is running, or with [`Options::instant`] anything else; [`Error::Refused`] for
/// a policy that would drop a whole source; any snapshot, directory or page map that can't be read, since what it
/// needs can't be known then: nothing is deleted.
pub fn run(
    repo: &Arc<Repository>,
    options: &Options,
    announce: &mut dyn FnMut(&Summary),
    reporter: &Reporter,
) -> Result<Summary> {
    let options = &Options { grace_secs: if options.instant { 0 } else { options.grace_secs }, ..options.clone() };
    if options.dry_run {
        let stock = Stock::take(repo, None, reporter)?;
        let now = clock::now();
        let (plan, _) = make_plan(repo, &stock, options, (now, now), true, reporter)?;
        return Ok(summary(&stock, &plan, options));
    }
    let session = stock::begin(repo)?;
    let summary = if options.instant {
        run_instantly(repo, &session, options, announce, reporter)?
    } else {
        run_once(repo, &session, options, true, announce, reporter)?
    };
    // Whoever finds no bundle reads what would be in it from its own place.
    let _ = repo.rebundle();
    session.end()?;
    Ok(summary)
}

/// Frees what is wholly unused before anything is copied, since the disk may be full: condemn; delete and repack;
/// delete what was repacked. That nothing else is running is asked for at the start; what begins meanwhile is seen by
/// the same rules as ever.
fn run_instantly(
    repo: &Arc<Repository>,
    session: &SessionGuard,
    options: &Options,
    announce: &mut dyn FnMut(&Summary),
    reporter: &Reporter,
) -> Result<Summary> {
    if let Some(other) = session.living(&session.look()?).first() {
        return Err(Error::Locked { what: "the repository".into(), by: other.describe() });
    }
    let no_policy = Options { policy: Policy::default(), ..options.clone() };
    let mut total = run_once(repo, session, options, false, announce, reporter)?;
    for repack in [true, false] {
        let next = run_once(repo, session, &no_policy, repack, &mut |_| {}, reporter)?;
        total.packs_deleted += next.packs_deleted;
        total.bytes_deleted += next.bytes_deleted;
        total.packs_condemned += next.packs_condemned;
        total.bytes_condemned += next.bytes_condemned;
        total.packs_repacked += next.packs_repacked;
        total.bytes_repacked += next.bytes_repacked;
        total.bytes_rewritten += next.bytes_rewritten;
        total.bytes_unused_kept = next.bytes_unused_kept;
        total.over_budget |= next.over_budget;
        total.waiting_for = next.waiting_for;
    }
    Ok(total)
}

/// Plans and acts; what needs copying is put off unless `repack`.
fn run_once(
    repo: &Arc<Repository>,
    session: &SessionGuard,
    options: &Options,
    repack: bool,
    announce: &mut dyn FnMut(&Summary),
    reporter: &Reporter,
) -> Result<Summary> {
    for attempt in 0..ATTEMPTS {
        let stock = Stock::take(repo, Some(session), reporter)?;
        let now = (clock::now(), session.store_time());
        let (mut plan, reach) = make_plan(repo, &stock, options, now, repack, reporter)?;
        if attempt == 0 {
            announce(&summary(&stock, &plan, options));
        }
        if !repack {
            plan.reclaim = plan.reclaim.without_repacks();
        }
        reporter.progress.bytes_total.store(plan.reclaim.repack_bytes, Ordering::Relaxed);
        if let Outcome::Done { written_bytes } = execute(repo, session, &stock, &plan, reach, reporter)? {
            return Ok(Summary { bytes_rewritten: written_bytes, ..summary(&stock, &plan, options) });
        }
    }
    Err(Error::Locked { what: "the list of snapshots".into(), by: "other commands that keep changing it".into() })
}

/// Makes the plan. The set that comes with it holds what all snapshots need, if anything is to be deleted, and else
/// what the remaining ones need.
fn make_plan(
    repo: &Repository,
    stock: &Stock,
    options: &Options,
    now: (Time, Time),
    repack: bool,
    reporter: &Reporter,
) -> Result<(Plan, Reach)> {
    let verdicts = judge(stock, options, now, reporter)?;
    let (ripe, waiting_for) = plan::ripe(&stock.records, &stock.live, options.grace_secs, now);
    let trees = |keep: bool| {
        verdicts.iter().filter(|v| v.keep.is_empty() != keep).map(|v| v.named.snapshot.tree).collect::<Vec<_>>()
    };
    let mut reach = Reach::without_bases();
    reach.add(repo, trees(true), reporter)?;
    let (flatten, flat_needs) = if repack { plan_flatten(repo, stock, &reach, options)? } else { Default::default() };
    reach.close(&repo.index())?;
    let mut kept = flat_needs;
    let mut deletion = Deletion::default();
    if !ripe.is_empty() {
        // What this run forgets can be taken back until a later one deletes it.
        kept = kept.or_else(|| Some(reach.needs().clone()));
        reach.add(repo, trees(false), reporter)?;
        deletion = plan::deletion(&repo.index(), &ripe, &stock.unsound, reach.needs())?;
    }
    let reclaim = reclaim::reclaim(&Inputs {
        index: &repo.index(),
        needs: kept.as_ref().unwrap_or(reach.needs()),
        unsound: &stock.unsound,
        young: &stock.young,
        reinstated: &deletion.reinstated,
        max_unused: options.max_unused,
        max_repack: options.max_repack,
        flatten: &flatten,
    })?;
    let cost = Cost::of(stock, &repo.index(), (&verdicts, &deletion, &reclaim));
    Ok((Plan { verdicts, deletion, reclaim, waiting_for, cost }, reach))
}

/// Decides which segments will lean on no other any more, and what is needed then; nothing if it isn't worth the work.
fn plan_flatten(
    repo: &Repository,
    stock: &Stock,
    direct: &Reach,
    options: &Options,
) -> Result<(Flatten, Option<Needs>)> {
    let index = repo.index();
    let available = plan::marks(&index, |id| !stock.unsound.contains(id) && !index.is_condemned(id));
    let rewritable = plan::marks(&index, |id| !stock.unsound.contains(id) && !stock.young.contains(id));
    let packs = Workable { available: &available, rewritable: &rewritable };
    let mut flatten = flatten::flatten(&index, direct.needs(), direct.leaning(), &packs);
    let all: u64 = index.packs().iter().map(|pack| pack.file_bytes).sum();
    let forced = flatten.packs(&index, &available);
    let forced_bytes: u64 = index.packs().iter().filter(|p| forced.contains(&p.id)).map(|p| p.file_bytes).sum();
    let is_worth = flatten.saved_bytes > options.max_unused.of(all);
    if !is_worth || options.max_repack.is_some_and(|most| forced_bytes > most) {
        flatten.copied.clear();
    }
    if flatten.copied.is_empty() && flatten.done.is_empty() {
        return Ok(Default::default());
    }
    let needs = flatten.needs(&index, direct)?;
    Ok((flatten, Some(needs)))
}

/// Judges all snapshots, oldest first. A mark that can't be read may pin any of them: none is forgotten then.
fn judge(
    stock: &Stock,
    options: &Options,
    (now, store_now): (Time, Time),
    reporter: &Reporter,
) -> Result<Vec<Verdict>> {
    let mut judged: HashMap<SnapshotId, Vec<String>> = HashMap::new();
    let mut otherwise = "no keep option was given";
    if !options.policy.is_empty() && !stock.marks.lost.is_empty() {
        otherwise = "a mark that can't be read may pin it";
        stock.marks.report_lost(reporter, "it may pin a snapshot, so this run forgets none");
    } else if !options.policy.is_empty() {
        otherwise = "left out by the filters";
        let mut chosen = options.filter.apply(stock.snapshots.clone());
        let apart = now.secs.abs_diff(store_now.secs);
        if apart > policy::MAX_APART_SECS.unsigned_abs() {
            let why = format!("it is {} h off, so snapshots are judged by the times alone that they say", apart / 3600);
            reporter.warn(Severity::Note, "the store's clock", why);
            chosen.iter_mut().for_each(|named| named.stored = None);
        }
        let verdicts = policy::apply(&options.policy, chosen, now)?;
        judged.extend(verdicts.into_iter().map(|v| (v.named.id, v.keep)));
    }
    let verdict = |named: &crate::repo::Named| {
        let unjudged = || if named.is_pinned() { policy::PINNED } else { otherwise };
        let keep = judged.get(&named.id).cloned().unwrap_or_else(|| vec![unjudged().into()]);
        Verdict { named: named.clone(), keep }
    };
    Ok(stock.snapshots.iter().map(verdict).collect())
}

fn summary(stock: &Stock, plan: &Plan, options: &Options) -> Summary {
    let Plan { verdicts, deletion, reclaim, waiting_for, cost } = plan;
    let deleted: Vec<_> = deletion.packs.iter().filter_map(|id| stock.packs.get(id)).collect();
    let mut summary = Summary {
        forgotten: verdicts.iter().filter(|v| v.keep.is_empty()).count() as u64,
        verdicts: verdicts.clone(),
        packs_deleted: deleted.len() as u64,
        bytes_deleted: deleted.iter().map(|l| l.bytes).sum(),
        packs_condemned: (reclaim.unused.len() + reclaim.repack.len()) as u64,
        bytes_condemned: reclaim.bytes,
        packs_repacked: reclaim.repack.len() as u64,
        bytes_repacked: reclaim.repack_bytes,
        bytes_rewritten: 0,
        bytes_unused_kept: reclaim.unused_kept_bytes,
        over_budget: reclaim.over_budget,
        cost: *cost,
        waiting_for: waiting_for.clone(),
    };
    if options.dry_run && options.instant {
        summary.packs_deleted += summary.packs_condemned;
        summary.bytes_deleted += summary.bytes_condemned;
    }
    summary
}
