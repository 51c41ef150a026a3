//! Mending what `check` found: the index, packs, snapshots.
//!
//! Nothing that holds data is deleted here, nor replaced before what replaces it is stored. What can be read of a
//! damaged pack is stored again, and the pack is condemned, so that a later prune deletes it; a snapshot that lost
//! something gets another one beside it, of what is left. Only index files that were written anew and unreadable records
//! of condemned packs are deleted. A repair runs as the one session that may replace index files, the prune's, so that
//! no prune and no other repair runs at the same time; cut off anywhere it leaves more than there was, never less.

mod databases;
mod heal;
mod index;
mod packs;
mod snapshots;
mod stock;
mod trees;

use std::sync::Arc;

pub use self::databases::Fill;
pub use self::index::repair_index;
pub use self::packs::repair_packs;
pub use self::snapshots::{Affected, LostItem, Options, SnapshotsSummary, What, repair_snapshots};
use crate::backend::layout;
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::control::{self, Condemned, SessionKind};
use crate::format::header::Kind;
use crate::repo::{Repository, Running, SessionGuard};

/// What `repair index` and `repair packs` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packs in the new index, but for those that were condemned as damaged.
    pub packs: u64,
    /// Different blobs in it.
    pub blobs: u64,
    /// Index files that the new one took the place of.
    pub index_files_replaced: u64,
    /// Whether the config or its copy was written anew.
    pub config_repaired: bool,
    /// Key slots of which a flipped bit was put right.
    pub slots_repaired: u64,
    /// Packs that the old index described and that are not there.
    pub missing_packs: u64,
    /// Packs of which nothing is known or that the store fails to read.
    pub unreadable_packs: u64,
    /// Blobs that can't be read, and lie nowhere else.
    pub damaged_blobs: u64,
    /// Blobs of damaged packs that were stored again.
    pub salvaged_blobs: u64,
    /// Damaged packs that were condemned: a later prune deletes them.
    pub packs_condemned: u64,
}

impl Summary {
    /// The commands to run next, in this order.
    pub fn next_steps(&self) -> Vec<&'static str> {
        let mut steps = Vec::new();
        if self.missing_packs + self.unreadable_packs + self.damaged_blobs > 0 {
            steps.extend(["snapshot create", "snapshot check", "snapshot repair snapshots"]);
        }
        if self.packs_condemned > 0 {
            steps.push("snapshot prune");
        }
        steps
    }
}

/// Announces a repair.
fn begin(repo: &Arc<Repository>) -> Result<SessionGuard> {
    let session = SessionGuard::start(repo, SessionKind::Prune)?;
    let now = session.store_time();
    let may_prune = |s: &Running| s.is_unread || s.session.as_ref().is_some_and(|s| s.kind == SessionKind::Prune);
    match session.others(session.begun()).iter().find(|s| may_prune(s) && !s.is_dead(now)) {
        Some(other) => Err(Error::Locked { what: "the repository's index".into(), by: other.describe() }),
        None => Ok(session),
    }
}

/// Mends what is beside packs and index: key slots, config, records that nobody can read, and the traces of dead
/// sessions, whose packs are in the index by now.
fn mend_the_rest(repo: &Repository, session: &SessionGuard, summary: &mut Summary) -> Result<()> {
    repo.backend().delete(&broken_records(repo)?)?;
    summary.config_repaired = repo.repair_config()?;
    summary.slots_repaired = repo.mend_flipped(layout::KEYS, false)?.len() as u64;
    let live = repo.live()?;
    let dead = session.others(&live).into_iter().filter(|s| s.is_dead(session.store_time()));
    dead.into_iter().try_for_each(|s| repo.reap(&s))?;
    repo.remove_remains(&live)
}

/// Records of condemned packs that no prune can read, or that are not what their names say.
fn broken_records(repo: &Repository) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for listed in repo.backend().list(layout::LIVE)?.into_iter().filter(|l| layout::is_gc(&l.path)) {
        let read = repo.backend().get(&listed.path, MAX_CONTROL_BYTES as u64).and_then(|bytes| {
            control::open::<Condemned>(repo.keys(), Kind::Gc, &bytes, &listed.path)?;
            Ok(blake3::hash(&bytes).to_string() == listed.name())
        });
        match read {
            Ok(true) | Err(Error::Missing { .. }) => {}
            // A version that nobody wrote is damage here: a newer program would have changed the config.
            Ok(false) | Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => broken.push(listed.path),
            Err(e) => return Err(e),
        }
    }
    Ok(broken)
}
