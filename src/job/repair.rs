//! `repair index` and `repair packs`: the index anew, from what the packs themselves say.
//!
//! Nothing that holds data is ever deleted: a pack that can't be read stays where it is and is left out of the index, so
//! that the next snapshot stores anew what the source still has. Only index files, which the new one replaces, and
//! unreadable records of condemned packs are deleted. It runs as the one session that may replace index files, the
//! prune's, so that no prune runs at the same time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::control::{self, Condemned, SessionKind};
use crate::format::header::Kind;
use crate::format::index::Index;
use crate::format::pack::PackInfo;
use crate::id::{BlobId, PackId};
use crate::index::BlobIndex;
use crate::repo::{Proven, Repository, SessionGuard};
use crate::report::{Problem, Reporter, Severity};

/// An index file is closed when it holds this many records: about 190 MiB.
const MAX_RECORDS: usize = 4_000_000;
/// Directories that are read before the next look at whether the user asked for an end.
const DIRECTORIES_AT_ONCE: usize = 64;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packs in the new index.
    pub packs: u64,
    /// Different blobs in it.
    pub blobs: u64,
    /// Index files that the new one took the place of.
    pub index_files_replaced: u64,
    /// Whether the config or its copy was written anew.
    pub config_repaired: bool,
    /// Packs left out because they can't be read.
    pub unreadable_packs: u64,
    /// Blobs left out because their bytes are damaged; only `repair packs` looks for these.
    pub damaged_blobs: u64,
}

/// Builds the index anew from the packs' directories, and mends the config.
///
/// # Errors
/// [`Error::Locked`] while a prune is running, and when the store fails. Nothing is deleted before the new index is
/// stored.
pub fn repair_index(repo: &Arc<Repository>, reporter: &Reporter) -> Result<Summary> {
    repair(repo, false, reporter)
}

/// Does what [`repair_index`] does, and reads all data to leave out of the index what is damaged.
///
/// # Errors
/// As [`repair_index`].
pub fn repair_packs(repo: &Arc<Repository>, reporter: &Reporter) -> Result<Summary> {
    repair(repo, true, reporter)
}

fn repair(repo: &Arc<Repository>, read_data: bool, reporter: &Reporter) -> Result<Summary> {
    let session = SessionGuard::start(repo, SessionKind::Prune)?;
    let now = session.store_time();
    let is_prune = |kind| kind == SessionKind::Prune;
    if let Some(other) =
        session.others()?.iter().find(|s| s.session.as_ref().is_some_and(|s| is_prune(s.kind)) && !s.is_dead(now))
    {
        return Err(Error::Locked { what: "the repository's index".into(), by: other.describe() });
    }

    // Index files first: one that is written from here on describes packs that may be missing below, and stays.
    let old_files = repo.backend().list(layout::INDEX)?;
    let old = read_index(repo, &old_files, reporter)?;
    let mut listed = repo.backend().list(layout::DATA_PACKS)?;
    listed.extend(repo.backend().list(layout::METADATA_PACKS)?);
    listed.retain(|l| layout::parse_pack(&l.path).is_some());
    let Found { packs, kept, doubtful, unreadable } = read_directories(repo, &listed, &old, reporter)?;
    let mut files = gather(&packs, old.extract(|pack| kept.contains(&pack.id)));
    drop((old, packs));
    listed.retain(|l| read_data || doubtful.contains(&l.path));
    let damaged = drop_damaged(repo, &listed, &mut files, reporter)?;
    let index = merged(&files);
    let summary = Summary {
        packs: index.packs().len() as u64,
        blobs: index.len() as u64,
        index_files_replaced: old_files.len() as u64,
        unreadable_packs: unreadable,
        damaged_blobs: damaged.len() as u64,
        config_repaired: false,
    };
    session.check_alive()?;
    for file in files {
        repo.put_index(file)?;
    }
    repo.replace_index(index);
    // From here on the new index is durable.
    let mut obsolete: Vec<String> = old_files.into_iter().map(|l| l.path).collect();
    obsolete.extend(broken_records(repo)?);
    repo.backend().delete(&obsolete)?;
    let condemned = repo.condemned(reporter)?;
    repo.with_index(|index| index.condemn(condemned.into_iter().flat_map(|c| c.record.packs)));
    let config_repaired = repo.repair_config()?;
    session.end()?;
    Ok(Summary { config_repaired, ..summary })
}

/// What the readable index files say.
fn read_index(repo: &Repository, listed: &[Listed], reporter: &Reporter) -> Result<BlobIndex> {
    let mut index = BlobIndex::default();
    for listed in listed {
        reporter.check_interrupt()?;
        match repo.open_index(&listed.path) {
            Ok(part) => index.add(part),
            Err(Error::Missing { .. }) => {}
            Err(e) => {
                let error = repo.only_this_object(e)?;
                reporter.warn(Severity::Note, &listed.path, format!("{error}; the new index takes its place"));
            }
        }
    }
    Ok(index)
}

/// What the packs' directories say.
#[derive(Default)]
struct Found {
    packs: Vec<PackInfo>,
    /// Packs whose directory is damaged, but which the old index describes with the length that they still have.
    kept: HashSet<PackId>,
    /// Paths of packs of which the old index lacks some blobs. Either it is wrong, or `repair packs` left these out as
    /// damaged: only their data can tell.
    doubtful: HashSet<String>,
    unreadable: u64,
}

/// Reads the directories of all packs.
fn read_directories(repo: &Repository, listed: &[Listed], old: &BlobIndex, reporter: &Reporter) -> Result<Found> {
    let mut found = Found::default();
    reporter.progress.files_total.store(listed.len() as u64, Ordering::Relaxed);
    for some in listed.chunks(DIRECTORIES_AT_ONCE) {
        reporter.check_interrupt()?;
        let opened: Vec<_> = some.par_iter().map(|l| repo.open_pack(&l.path, l.bytes)).collect();
        for (listed, opened) in some.iter().zip(opened) {
            let error = match opened {
                Ok(info) => {
                    if old.number(&info.id).is_some_and(|number| !old.untold(number, &info).is_empty()) {
                        found.doubtful.insert(listed.path.clone());
                    }
                    found.packs.push(info);
                    continue;
                }
                Err(e) => repo.only_this_object(e)?,
            };
            let known = layout::parse_pack(&listed.path).map(|(_, id)| id).filter(|id| {
                let pack = old.number(id).and_then(|n| old.packs().get(n as usize));
                pack.is_some_and(|p| p.file_bytes == listed.bytes)
            });
            let consequence = match known {
                Some(id) => {
                    found.kept.insert(id);
                    "what the index knew of it is kept"
                }
                None => {
                    found.unreadable += 1;
                    "it is left where it is and out of the index: run `snapshot create` to store anew what the source \
                     still has, and `snapshot check` to see what is lost"
                }
            };
            reporter.problem(Problem {
                severity: Severity::Damage,
                what: listed.path.clone(),
                why: format!("{error}; {consequence}"),
                hint: None,
            });
        }
        reporter.advance(0, some.len() as u64);
    }
    Ok(found)
}

/// The new index files: what the packs say, and what was kept of the old index.
fn gather(packs: &[PackInfo], kept: Index) -> Vec<Index> {
    let mut files: Vec<Index> = if kept.packs.is_empty() { Vec::new() } else { vec![kept] };
    for pack in packs {
        if files.last().is_none_or(|file| file.records.len() >= MAX_RECORDS) {
            files.push(Index::default());
        }
        if let Some(file) = files.last_mut() {
            file.add(pack);
        }
    }
    files
}

fn merged(files: &[Index]) -> BlobIndex {
    let mut index = BlobIndex::default();
    files.iter().for_each(|file| index.add(file.clone()));
    index
}

/// Reads all packs and takes the records of damaged blobs out of the new index files; returns these blobs.
fn drop_damaged(
    repo: &Repository,
    listed: &[Listed],
    files: &mut [Index],
    reporter: &Reporter,
) -> Result<HashSet<(PackId, BlobId)>> {
    if listed.is_empty() {
        return Ok(HashSet::new());
    }
    // Segments that lean on others are decoded through the index in memory.
    repo.replace_index(merged(files));
    let known: Vec<_> = listed
        .iter()
        .filter(|l| layout::parse_pack(&l.path).is_some_and(|(_, id)| repo.index().has_pack(&id)))
        .cloned()
        .collect();
    reporter.progress.bytes_total.store(known.iter().map(|l| l.bytes).sum(), Ordering::Relaxed);
    let mut damaged = HashSet::new();
    repo.audit_packs(&known, &Proven::default(), reporter, |listed, audit| {
        let why = match audit {
            Ok(audit) => {
                damaged.extend(audit.bad.iter().map(|blob| (audit.info.id, *blob)));
                let Some(first) = audit.faults.first() else { return Ok(()) };
                format!("{first}; {} blobs of it are left out of the index", audit.bad.len())
            }
            // Reported when its directory was read.
            Err(e) => return repo.only_this_object(e).map(drop),
        };
        reporter.problem(Problem {
            severity: Severity::Damage,
            what: listed.path.clone(),
            why,
            hint: Some(
                "run `snapshot create`: what the source still has is stored anew; `snapshot check` tells what is lost"
                    .into(),
            ),
        });
        Ok(())
    })?;
    for file in files {
        let Index { packs, records } = file;
        records.retain(|r| packs.get(r.pack as usize).is_none_or(|p| !damaged.contains(&(p.id, r.id))));
    }
    Ok(damaged)
}

/// Records of condemned packs that no prune can read, or that are not what their names say.
fn broken_records(repo: &Repository) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for listed in repo.backend().list(layout::GC)? {
        let read = repo.backend().get(&listed.path, MAX_CONTROL_BYTES as u64).and_then(|bytes| {
            control::open::<Condemned>(repo.keys(), Kind::Gc, &bytes, &listed.path)?;
            Ok(blake3::hash(&bytes).to_string() == listed.name())
        });
        match read {
            Ok(true) | Err(Error::Missing { .. }) => {}
            Ok(false) | Err(Error::Corrupt { .. }) => broken.push(listed.path),
            Err(e) => return Err(e),
        }
    }
    Ok(broken)
}
