//! `repair index`: the index anew, from what the packs themselves say.
//!
//! A pack that can't be read stays where it is and is left out, so that the next snapshot stores anew what the source
//! still has.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::stock::{Stock, gather, husks, known_husks, merged, read_directories};
use super::{Summary, begin, mend_the_rest};
use crate::backend::{Listed, layout};
use crate::error::Result;
use crate::format::index::Index;
use crate::format::pack::PackInfo;
use crate::id::{BlobId, PackId};
use crate::repo::{Proven, Repository};
use crate::report::{Problem, Reporter, Severity};

const REPAIR_PACKS: &str = "run `snapshot repair packs`, which saves what can still be read of it";

/// Builds the index anew from the packs' directories, and mends the config.
///
/// # Errors
/// [`crate::error::Error::Locked`] while a prune is running, and when the store fails. Nothing is deleted before the new
/// index is stored.
pub fn repair_index(repo: &Arc<Repository>, reporter: &Reporter) -> Result<Summary> {
    let session = begin(repo)?;
    let stock = Stock::read(repo, reporter)?;
    let mut summary = Summary { missing_packs: stock.report_missing(reporter), ..Summary::default() };
    let found = Found::read(repo, &stock, reporter)?;
    summary.unreadable_packs = found.unreadable;
    let kept = stock.old.extract(|pack| found.kept.contains(&pack.id));
    let mut first = husks(&stock.old, |id| found.husks.contains(id));
    first.extend((!kept.packs.is_empty()).then_some(kept));
    let mut files = gather(first, &found.packs);
    let doubtful: Vec<_> = stock.listed.iter().filter(|l| found.doubtful.contains(&l.path)).cloned().collect();
    summary.damaged_blobs = drop_damaged(repo, &doubtful, &mut files, reporter)?;
    let Stock { old_files, condemned, .. } = stock;
    let mut index = merged(&files);
    index.condemn(condemned);
    (summary.packs, summary.blobs) = ((index.packs().len() - found.husks.len()) as u64, index.len() as u64);
    summary.index_files_replaced = old_files.len() as u64;
    session.check_alive()?;
    files.into_iter().try_for_each(|file| repo.put_index(file).map(drop))?;
    session.check_alive()?;
    repo.replace_index(index);
    // From here on the new index is durable.
    repo.backend().delete(&old_files)?;
    mend_the_rest(repo, &session, &mut summary)?;
    session.end()?;
    Ok(summary)
}

/// What the packs' directories say.
#[derive(Default)]
struct Found {
    packs: Vec<PackInfo>,
    /// Packs whose directory is damaged, but which the old index describes with the length that they still have.
    kept: HashSet<PackId>,
    /// Damaged packs of which `repair packs` has saved what it could: nothing is to be looked for in them.
    husks: HashSet<PackId>,
    /// Paths of packs of which the old index lacks some blobs, and of condemned packs that it doesn't know. Either it is
    /// wrong, or `repair packs` left these out as damaged: only their data can tell.
    doubtful: HashSet<String>,
    unreadable: u64,
}

impl Found {
    fn read(repo: &Repository, stock: &Stock, reporter: &Reporter) -> Result<Self> {
        let known_husks = known_husks(&stock.old, &stock.condemned);
        let mut found = Self::default();
        read_directories(repo, &stock.listed, reporter, |listed, opened| {
            let id = layout::parse_pack(&listed.path).map(|(_, id)| id);
            if let Some(id) = id.filter(|id| known_husks.contains(id)) {
                found.husks.insert(id);
                return Ok(());
            }
            let error = match opened {
                Ok(info) => {
                    found.sort_in(stock, listed, info);
                    return Ok(());
                }
                Err(e) => repo.only_this_object(e)?,
            };
            let Some(id) = id else { return Ok(()) };
            let known = stock.old.number(&id).and_then(|n| stock.old.packs().get(n as usize));
            let consequence = match known {
                // Set aside already, and of nothing it is known what it held.
                None if stock.condemned.contains(&id) => return Ok(()),
                Some(pack) if pack.file_bytes == listed.bytes => {
                    found.kept.insert(id);
                    "what the index knew of it is kept"
                }
                _ => {
                    found.unreadable += 1;
                    "it is left where it is and out of the index"
                }
            };
            reporter.problem(Problem {
                severity: Severity::Damage,
                what: listed.path.clone(),
                why: format!("{error}; {consequence}"),
                hint: Some(REPAIR_PACKS.into()),
            });
            Ok(())
        })?;
        Ok(found)
    }

    fn sort_in(&mut self, stock: &Stock, listed: &Listed, info: PackInfo) {
        let is_doubtful = match stock.old.number(&info.id) {
            Some(number) => !stock.old.untold(number, &info).is_empty(),
            None => stock.condemned.contains(&info.id),
        };
        if is_doubtful {
            self.doubtful.insert(listed.path.clone());
        }
        self.packs.push(info);
    }
}

/// Reads packs and takes the records of damaged blobs out of the new index files; returns how many blobs of packs that
/// are not condemned these are.
fn drop_damaged(repo: &Repository, listed: &[Listed], files: &mut [Index], reporter: &Reporter) -> Result<u64> {
    if listed.is_empty() {
        return Ok(0);
    }
    // Segments that lean on others are decoded through the index in memory.
    let mut index = merged(files);
    index.condemn(repo.condemned(&Reporter::silent())?.into_iter().flat_map(|c| c.record.packs));
    repo.replace_index(index);
    reporter.progress.bytes_total.store(listed.iter().map(|l| l.bytes).sum(), Ordering::Relaxed);
    let mut damaged: HashSet<(PackId, BlobId)> = HashSet::new();
    let mut count = 0;
    repo.audit_packs(listed, &Proven::default(), reporter, |listed, audit| {
        let audit = match audit {
            Ok(audit) => audit,
            // Reported when its directory was read.
            Err(e) => return repo.only_this_object(e).map(drop),
        };
        damaged.extend(audit.bad.iter().map(|blob| (audit.info.id, *blob)));
        let Some(first) = audit.faults.first().filter(|_| !repo.index().is_condemned(&audit.info.id)) else {
            return Ok(());
        };
        count += audit.bad.len() as u64;
        reporter.problem(Problem {
            severity: Severity::Damage,
            what: listed.path.clone(),
            why: format!("{first}; {} blobs of it are left out of the index", audit.bad.len()),
            hint: Some(REPAIR_PACKS.into()),
        });
        Ok(())
    })?;
    for Index { packs, records } in files {
        records.retain(|r| packs.get(r.pack as usize).is_none_or(|p| !damaged.contains(&(p.id, r.id))));
    }
    Ok(count)
}
