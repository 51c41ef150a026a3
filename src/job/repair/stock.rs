//! What is there before a repair of the index: index files, packs and their directories.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::index::Index;
use crate::format::pack::PackInfo;
use crate::id::PackId;
use crate::index::BlobIndex;
use crate::repo::Repository;
use crate::report::{Reporter, Severity};

/// An index file is closed when it holds this many records: about 190 MiB.
const MAX_RECORDS: usize = 4_000_000;
/// Directories that are read before the next look at whether the user asked for an end.
const DIRECTORIES_AT_ONCE: usize = 64;

/// What is there.
pub(super) struct Stock {
    /// Paths of the index files, to be deleted once there is another index.
    pub old_files: Vec<String>,
    /// What those say that can be read.
    pub old: BlobIndex,
    /// Packs that a record condemns.
    pub condemned: HashSet<PackId>,
    /// The packs in the store.
    pub listed: Vec<Listed>,
}

impl Stock {
    /// Lists index files and packs, and reads the former.
    pub(super) fn read(repo: &Repository, reporter: &Reporter) -> Result<Self> {
        // Index files first: one that is written from here on describes packs that may be missing below, and stays.
        let old_files = repo.backend().list(layout::INDEX)?;
        let old = read_index(repo, &old_files, reporter)?;
        let condemned = repo.condemned(&Reporter::silent())?.into_iter().flat_map(|c| c.record.packs).collect();
        let mut listed = repo.backend().list(layout::DATA_PACKS)?;
        listed.extend(repo.backend().list(layout::METADATA_PACKS)?);
        listed.retain(|l| layout::parse_pack(&l.path).is_some());
        Ok(Self { old_files: old_files.into_iter().map(|l| l.path).collect(), old, condemned, listed })
    }

    /// How many packs the old index describes, condemned ones aside, that are not there. They are reported.
    pub(super) fn report_missing(&self, reporter: &Reporter) -> u64 {
        let there: HashSet<PackId> = self.listed.iter().filter_map(|l| Some(layout::parse_pack(&l.path)?.1)).collect();
        let missing = self.old.packs().iter().filter(|p| !there.contains(&p.id) && !self.condemned.contains(&p.id));
        let mut count = 0;
        for pack in missing {
            count += 1;
            let why = "it is missing; the new index doesn't know it any more";
            reporter.warn(Severity::Note, layout::pack(pack.kind(), pack.id), why);
        }
        count
    }
}

/// The packs of an index that `wanted` holds, without its records of their blobs: so known, nobody takes them for packs
/// that lack an index, and nobody looks for anything in them.
pub(super) fn husks(index: &BlobIndex, wanted: impl Fn(&PackId) -> bool) -> Vec<Index> {
    let packs: Vec<_> = index.packs().iter().filter(|pack| wanted(&pack.id)).cloned().collect();
    if packs.is_empty() { Vec::new() } else { vec![Index { packs, records: Vec::new() }] }
}

/// The condemned packs that an index describes without records: `repair packs` saved what could be read of them.
pub(super) fn known_husks(index: &BlobIndex, condemned: &HashSet<PackId>) -> HashSet<PackId> {
    let mut with_records = vec![false; index.packs().len()];
    for (_, place) in index.iter() {
        if let Some(has) = with_records.get_mut(place.pack as usize) {
            *has = true;
        }
    }
    let without = index.packs().iter().zip(with_records).filter(|(pack, has)| !has && condemned.contains(&pack.id));
    without.map(|(pack, _)| pack.id).collect()
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

/// Reads the directories of all packs, and hands on what came of each.
pub(super) fn read_directories(
    repo: &Repository,
    listed: &[Listed],
    reporter: &Reporter,
    mut each: impl FnMut(&Listed, Result<PackInfo>) -> Result<()>,
) -> Result<()> {
    reporter.progress.files_total.store(listed.len() as u64, Ordering::Relaxed);
    for some in listed.chunks(DIRECTORIES_AT_ONCE) {
        reporter.check_interrupt()?;
        let opened: Vec<_> = some.par_iter().map(|l| repo.open_pack(&l.path, l.bytes)).collect();
        for (listed, opened) in some.iter().zip(opened) {
            each(listed, opened)?;
        }
        reporter.advance(0, some.len() as u64);
    }
    Ok(())
}

/// New index files: what is in `first`, and these packs.
pub(super) fn gather(first: Vec<Index>, packs: &[PackInfo]) -> Vec<Index> {
    let mut files = first;
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

/// Index files as one index.
pub(super) fn merged(files: &[Index]) -> BlobIndex {
    let mut index = BlobIndex::default();
    files.iter().for_each(|file| index.add(file.clone()));
    index
}
