//! `repair packs`: what can still be read of damaged packs is stored again, and they are condemned.
//!
//! All data is read. A pack that is sound is left alone; of any other one, whatever frame still authenticates and lies
//! in no sound pack goes into new packs, the index is written anew without the damaged one's blobs, and a record
//! condemns it: no writer relies on it any more, and a later prune deletes it. A pack that the *store* fails to read is
//! not condemned: its disk may be mended, or its permissions.
//!
//! Order: new packs, an index of them, the whole index, the old index files go, the record. Cut off before the record,
//! damaged packs lie there with nothing looked for in them; the next run condemns them, or a prune does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::stock::{Stock, gather, husks, merged, read_directories};
use super::{Summary, begin, mend_the_rest};
use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::pack::PackInfo;
use crate::id::{BlobId, PackId};
use crate::index::BlobIndex;
use crate::repo::{Proven, Repository, Salvage, Salvaged, SessionGuard};
use crate::report::{Problem, Reporter, Severity};

/// A pack that is not as it should be.
struct Bad {
    listed: Listed,
    id: PackId,
    why: String,
    /// Whether it is the store that fails, not the contents.
    is_withheld: bool,
    /// Whether a sound pack has this name, too, in the other folder: the record would condemn both.
    is_copy: bool,
}

/// Reads all packs, saves what can be read of damaged ones, builds the index anew, and mends the config.
///
/// # Errors
/// [`Error::Locked`] while a prune is running, and when the store fails. Nothing is deleted before the new index is
/// stored.
pub fn repair_packs(repo: &Arc<Repository>, reporter: &Reporter) -> Result<Summary> {
    let session = begin(repo)?;
    let stock = Stock::read(repo, reporter)?;
    let mut summary = Summary { missing_packs: stock.report_missing(reporter), ..Summary::default() };
    load_all(repo, &stock, reporter)?;
    let (sound, bad) = audit(repo, &stock, reporter)?;
    let doomed: HashSet<PackId> = bad.iter().filter(|b| !b.is_withheld && !b.is_copy).map(|b| b.id).collect();
    let mut files = gather(husks(&repo.index(), |id| doomed.contains(id)), &sound);
    drop(sound);

    session.check_alive()?;
    let new = salvage(repo, &stock, &bad, &merged(&files), &mut summary, reporter)?;
    let news = repo.index().extract(|pack| new.contains(&pack.id));
    session.check_alive()?;
    let mut index = merged(&files);
    files.drain(..).try_for_each(|file| repo.put_index(file).map(drop))?;
    session.check_alive()?;
    index.add(news);
    index.condemn(stock.condemned.iter().copied());
    summary.packs = index.packs().iter().filter(|p| !doomed.contains(&p.id)).count() as u64;
    (summary.blobs, summary.index_files_replaced) = (index.len() as u64, stock.old_files.len() as u64);
    repo.replace_index(index);
    repo.backend().delete(&stock.old_files)?;
    summary.packs_condemned = condemn(repo, &session, doomed.difference(&stock.condemned).copied().collect())?;
    mend_the_rest(repo, &session, &mut summary)?;
    session.end()?;
    Ok(summary)
}

/// Puts everything that is known of packs into the index in memory: segments that lean on others are decoded with it.
fn load_all(repo: &Repository, stock: &Stock, reporter: &Reporter) -> Result<()> {
    let mut index = BlobIndex::default();
    read_directories(repo, &stock.listed, reporter, |_, opened| {
        match opened {
            Ok(info) => index.add_pack(&info),
            Err(e) => drop(repo.only_this_object(e)?),
        }
        Ok(())
    })?;
    index.add(stock.old.extract(|_| true));
    repo.replace_index(index);
    Ok(())
}

/// Reads all packs: what the sound ones hold, and the others.
fn audit(repo: &Repository, stock: &Stock, reporter: &Reporter) -> Result<(Vec<PackInfo>, Vec<Bad>)> {
    reporter.progress.bytes_total.store(stock.listed.iter().map(|l| l.bytes).sum(), Ordering::Relaxed);
    let (mut sound, mut bad) = (Vec::new(), Vec::new());
    repo.audit_packs(&stock.listed, &Proven::default(), reporter, |listed, audit| {
        let Some((_, id)) = layout::parse_pack(&listed.path) else { return Ok(()) };
        let (why, is_withheld) = match audit {
            Ok(audit) => match audit.faults.first() {
                None if audit.intact => {
                    sound.push(audit.info);
                    return Ok(());
                }
                None => ("its contents do not have the hash that is its name".into(), false),
                Some(first) => (first.clone(), false),
            },
            Err(e) => match repo.only_this_object(e)? {
                Error::Missing { .. } => return Ok(()),
                Error::Corrupt { why, .. } => (why, false),
                Error::Unsupported { why, .. } => (why, false),
                e => (e.to_string(), true),
            },
        };
        bad.push(Bad { listed: listed.clone(), id, why, is_withheld, is_copy: false });
        Ok(())
    })?;
    let sound_ids: HashSet<PackId> = sound.iter().map(|info| info.id).collect();
    bad.iter_mut().for_each(|b| b.is_copy = sound_ids.contains(&b.id));
    Ok((sound, bad))
}

/// Stores again what can be read of damaged packs and is in no sound one, reports on each pack, and returns the new
/// packs.
fn salvage(
    repo: &Arc<Repository>,
    stock: &Stock,
    bad: &[Bad],
    sound: &BlobIndex,
    summary: &mut Summary,
    reporter: &Reporter,
) -> Result<HashSet<PackId>> {
    let mut salvage = Salvage::new(repo, &stock.old, &bad.iter().map(|b| b.id).collect());
    let mut results: Vec<Salvaged> = Vec::new();
    for bad in bad {
        results.push(salvage.pack(
            &bad.listed,
            |id| sound.places(id).any(|place| sound.slots(place).is_none()),
            reporter,
        )?);
    }
    let mut lost: HashSet<BlobId> = HashSet::new();
    for (bad, result) in bad.iter().zip(&mut results) {
        result.lost.retain(|id| !salvage.saved().contains(id));
        lost.extend(&result.lost);
        summary.salvaged_blobs += result.saved;
        summary.unreadable_packs += u64::from(!result.described || bad.is_withheld);
        // What was said when it was condemned need not be said again.
        if !stock.condemned.contains(&bad.id) {
            report(bad, result, reporter);
        }
    }
    summary.damaged_blobs = lost.len() as u64;
    let before = repo.index().packs().len();
    salvage.finish()?;
    Ok(repo.index().packs().iter().skip(before).map(|pack| pack.id).collect())
}

fn report(bad: &Bad, result: &Salvaged, reporter: &Reporter) {
    let (saved, lost) = (result.saved, result.lost.len());
    let (severity, outcome) = match (result.described, lost) {
        (false, _) => (Severity::Damage, "nothing in it can be read, nor is it known what it held".to_owned()),
        (true, 0) if saved == 0 => (Severity::Note, "all that it holds lies in other packs, too".to_owned()),
        (true, 0) => (Severity::Note, format!("all of it that lay nowhere else was saved: {saved} blobs")),
        (true, n) => (Severity::Damage, format!("{saved} blobs of it were saved; {n} are lost")),
    };
    let hint = if bad.is_withheld {
        "mend the disk or the permissions and run `snapshot repair packs` again; the pack is left where it is"
    } else if severity == Severity::Damage {
        "run `snapshot create`: what the source still has is stored anew, for the old snapshots too; then \
         `snapshot repair snapshots` for what is still lost"
    } else if bad.is_copy {
        "delete it: the pack of this name lies in the other folder"
    } else {
        "a later `snapshot prune` deletes it"
    };
    let severity = if bad.is_withheld { Severity::Damage } else { severity };
    let why = format!("{}; {outcome}", bad.why);
    reporter.problem(Problem { severity, what: bad.listed.path.clone(), why, hint: Some(hint.into()) });
}

/// Condemns packs as a prune does.
fn condemn(repo: &Repository, session: &SessionGuard, packs: Vec<PackId>) -> Result<u64> {
    if packs.is_empty() {
        return Ok(0);
    }
    let count = packs.len() as u64;
    let running = session.living(&session.look()?);
    repo.condemn(packs, running.into_iter().map(|s| s.name).collect())?;
    Ok(count)
}
