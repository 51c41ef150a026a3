//! What there is: snapshots, packs, index and sessions, listed in the order in which a prune can rely on them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::backend::{Listed, layout};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::control::SessionKind;
use crate::id::{PackId, SnapshotId};
use crate::index::BlobIndex;
use crate::repo::{Condemnation, IndexFile, Lost, Marks, Named, Repository, Running, SessionGuard};
use crate::report::Reporter;

/// More small index files than this are merged.
const MAX_SMALL_INDEX_FILES: usize = 16;
/// Most blobs in one index file that a prune writes, which then has some 13 MB. Reading and writing one takes a few
/// times as much memory, beside the index of all.
pub const MAX_INDEX_BLOBS: u64 = 256 << 10;

/// How often a prune tries again when another one began at the same moment.
const ATTEMPTS: u8 = 3;

/// What a prune finds.
pub struct Stock {
    /// Other sessions that are running.
    pub live: Vec<Running>,
    /// All snapshots, oldest first.
    pub snapshots: Vec<Named>,
    /// All marks, listed before the snapshots.
    pub marks: Marks,
    /// Records of condemned packs.
    pub records: Vec<Condemnation>,
    /// The index files that are in memory.
    pub index_files: Vec<IndexFile>,
    /// The packs in the store.
    pub packs: HashMap<PackId, Listed>,
    /// Packs that a running writer may just have stored, or that came while this was listed.
    pub young: HashSet<PackId>,
    /// Packs in the index that are missing, or don't have the length they should have.
    pub unsound: HashSet<PackId>,
}

/// Begins a prune's session, clears dead sessions away, and makes sure that no other prune runs.
///
/// Two that begin at once announce themselves before they look, so that at least one sees the other; each that does
/// gives way, and tries again a moment later.
///
/// # Errors
/// [`Error::Locked`] if another prune is running.
pub fn begin(repo: &Arc<Repository>) -> Result<SessionGuard> {
    let mut attempt = 1;
    loop {
        let session = SessionGuard::start(repo, SessionKind::Prune)?;
        let mut rival = None;
        for other in session.others(session.begun()) {
            if other.is_dead(session.store_time()) {
                repo.reap(&other)?;
            } else if other.is_unread || other.session.as_ref().is_some_and(|s| s.kind == SessionKind::Prune) {
                rival = Some(other);
            }
        }
        let Some(rival) = rival else {
            repo.remove_remains(session.begun())?;
            return Ok(session);
        };
        session.end()?;
        if attempt == ATTEMPTS {
            return Err(Error::Locked { what: "pruning this repository".into(), by: rival.describe() });
        }
        attempt += 1;
        let [moment] = crate::crypto::random::<1>()?;
        std::thread::sleep(std::time::Duration::from_millis(20 + u64::from(moment)));
    }
}

impl Stock {
    /// Lists everything and loads the index. `own` is this run's session, which a dry run doesn't have.
    ///
    /// The order matters. Packs are listed before sessions: a pack of that list was stored by a session that is
    /// still running, and then is younger than that session, or by one that has ended, whose snapshot then is in the
    /// list of snapshots that follows. So a pack is never taken for unused because its snapshot is not there *yet*.
    /// The index comes after the snapshots, since what a snapshot needs is in the index before the snapshot exists.
    ///
    /// # Errors
    /// An error that names it if a snapshot can't be read: what it needs can't be known. Storage errors.
    pub fn take(repo: &Repository, own: Option<&SessionGuard>, reporter: &Reporter) -> Result<Self> {
        let mut packs = list_packs(repo)?;
        let listed = repo.live()?;
        let store_now = own.map_or_else(clock::now, SessionGuard::store_time);
        let mut live = repo.running(&listed, own.map_or("", SessionGuard::name));
        live.retain(|s| !s.is_dead(store_now));
        let marks = repo.read_marks()?;
        let (snapshots, lost) = repo.read_snapshots_with(&marks)?;
        if let Some(Lost { error, .. }) = lost.into_iter().next() {
            return Err(error);
        }
        let records = repo.records(&listed, reporter)?;
        let loaded = repo.load_index_files(&records, reporter)?;
        // It would be readable again, and name packs that this run deletes: the next writer would rely on them.
        if let Some(error) = loaded.unread {
            return Err(error);
        }
        repo.adopt_packs(reporter)?;

        let mut young = HashSet::new();
        if let Some(oldest) = live.iter().map(|s| s.first_seen).min() {
            young.extend(packs.iter().filter(|(_, listed)| listed.modified >= oldest).map(|(id, _)| *id));
        }
        if repo.index().packs().iter().any(|p| !packs.contains_key(&p.id)) {
            for (id, listed) in list_packs(repo)? {
                if packs.insert(id, listed).is_none() {
                    young.insert(id);
                }
            }
        }
        let is_sound = |id, bytes| packs.get(id).is_some_and(|listed: &Listed| listed.bytes == bytes);
        let index = repo.index();
        let unsound = index.packs().iter().filter(|p| !is_sound(&p.id, p.file_bytes)).map(|p| p.id).collect();
        drop(index);
        Ok(Self { live, snapshots, marks, records, index_files: loaded.files, packs, young, unsound })
    }

    /// The index files that are to be replaced when some packs go: those that describe one of them, and with them the
    /// small ones; these also where there are many.
    pub fn index_files_to_replace(
        &self,
        index: &BlobIndex,
        going: &HashSet<PackId>,
    ) -> impl Iterator<Item = &IndexFile> {
        let is_small = |file: &IndexFile| file.blobs < MAX_INDEX_BLOBS / 2;
        let small = self.index_files.iter().filter(|f| is_small(f)).count();
        let merge = !going.is_empty() || small > MAX_SMALL_INDEX_FILES;
        let goes = move |number: u32| index.packs().get(number as usize).is_some_and(|pack| going.contains(&pack.id));
        self.index_files.iter().filter(move |file| {
            let concerned = file.overlaps || file.packs.clone().any(goes);
            (!going.is_empty() && concerned) || (merge && is_small(file))
        })
    }

    /// The ids of the snapshots.
    pub fn snapshot_ids(&self) -> HashSet<SnapshotId> {
        self.snapshots.iter().map(|n| n.id).collect()
    }
}

fn list_packs(repo: &Repository) -> Result<HashMap<PackId, Listed>> {
    let mut listed = repo.backend().list(layout::DATA_PACKS)?;
    listed.extend(repo.backend().list(layout::METADATA_PACKS)?);
    Ok(listed.into_iter().filter_map(|l| layout::parse_pack(&l.path).map(|(_, id)| (id, l))).collect())
}
