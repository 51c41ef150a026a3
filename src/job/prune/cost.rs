//! What a prune will take, reckoned from the plan: for people who want to know before it happens.

use super::plan::Deletion;
use super::reclaim::{Amount, Reclaim, Share};
use super::stock::Stock;
use crate::format::header::Kind;
use crate::format::pack::PACK_TARGET_BYTES;
use crate::index::BlobIndex;
use crate::job::policy::Verdict;

/// What there is, what becomes of it, and what that takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Packs with data, as they are and as they are to be.
    pub data: Share,
    /// The same of metadata.
    pub metadata: Share,
    /// Packs with data that earlier runs condemned and this one deletes.
    pub data_deleted: Amount,
    /// The same of metadata.
    pub metadata_deleted: Amount,
    /// Index files there are.
    pub index_files: u64,
    /// Their length, in bytes.
    pub index_bytes: u64,
    /// Those of them that are written anew, in fewer files.
    pub index_files_replaced: u64,
    /// Their length, in bytes.
    pub index_bytes_replaced: u64,
    /// What the store is asked for from here on, about.
    pub requests: Requests,
}

/// How often a store is asked for something, about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Lists of a folder.
    pub list: u64,
    /// Objects read, whole or in part.
    pub get: u64,
    /// Objects written.
    pub put: u64,
    /// Objects deleted.
    pub delete: u64,
}

impl Cost {
    /// Reckons what carrying out a plan will take.
    pub(super) fn of(
        stock: &Stock,
        index: &BlobIndex,
        (verdicts, deletion, reclaim): (&[Verdict], &Deletion, &Reclaim),
    ) -> Self {
        let [data, metadata] = reclaim.shares;
        let mut cost = Self { data, metadata, index_files: stock.index_files.len() as u64, ..Self::default() };
        for id in &deletion.packs {
            let Some(listed) = stock.packs.get(id) else { continue };
            let kind = index.number(id).and_then(|n| index.packs().get(n as usize)).map(|pack| pack.kind());
            let metadata = kind == Some(Kind::MetadataPack);
            let amount = if metadata { &mut cost.metadata_deleted } else { &mut cost.data_deleted };
            amount.add(listed.bytes);
        }
        cost.index_bytes = stock.index_files.iter().map(|f| f.bytes).sum();
        for file in stock.index_files_to_replace(index, &deletion.packs) {
            cost.index_files_replaced += 1;
            cost.index_bytes_replaced += file.bytes;
        }
        cost.requests = requests(&cost, verdicts, deletion, reclaim);
        cost
    }
}

fn requests(cost: &Cost, verdicts: &[Verdict], deletion: &Deletion, reclaim: &Reclaim) -> Requests {
    let forgotten = verdicts.iter().filter(|v| v.keep.is_empty()).count() as u64;
    let frames = reclaim.copies.chunk_by(|a, b| (a.place.pack, a.place.frame) == (b.place.pack, b.place.frame));
    let packs_written = |share: &Share| share.rewritten_bytes.div_ceil(PACK_TARGET_BYTES as u64);
    let written = packs_written(&cost.data) + packs_written(&cost.metadata);
    let condemned = u64::from(!reclaim.unused.is_empty() || !reclaim.repack.is_empty());
    let deleted = cost.data_deleted.packs + cost.metadata_deleted.packs;
    let (deletes, replaced) = (u64::from(deleted > 0), u64::from(cost.index_files_replaced > 0));
    Requests {
        // The own session twice or more, leftovers; snapshots and tombs twice before anything is deleted.
        list: 2 + condemned * 2 + deletes * 6,
        get: frames.count() as u64 + forgotten,
        put: written + u64::from(written > 0) + replaced + condemned + forgotten,
        delete: deleted + deletion.records.len() as u64 + cost.index_files_replaced + forgotten + 1,
    }
}
