//! Snapshots and forgotten snapshots.

use std::collections::HashSet;

use rayon::prelude::*;

use super::marks::{Marked, Marks};
use super::{Live, Repository, Running};
use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::cbor::Time;
use crate::format::control::SessionKind;
use crate::format::snapshot::Snapshot;
use crate::id::{BlobId, PackId, SnapshotId};
use crate::index::Place;
use crate::report::{Problem, Reporter, Severity};

/// Longest object of which every bit is tried, in bytes: two seconds of work.
const MAX_MENDED_BYTES: u64 = 16 << 10;

/// Where only one of them is wanted, so many snapshots are in memory at a time, of one KiB or so each.
const SNAPSHOTS_AT_ONCE: usize = 1024;

/// A snapshot with its name, and what was said of it later.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its id.
    pub id: SnapshotId,
    /// Its contents as stored. Its tags and pin are those that it was made with: see [`Named::tags`].
    pub snapshot: Snapshot,
    /// When the store wrote it, by the store's clock; `None` if that was not asked.
    pub stored: Option<Time>,
    /// What holds now, by its marks.
    pub(super) marked: Marked,
}

/// An object that could not be read, and why.
#[derive(Debug)]
pub struct Lost {
    /// Its path in the repository.
    pub path: String,
    /// What is wrong.
    pub error: Error,
}

/// Which snapshots there are, and the newest generation of one source.
#[derive(Debug, Clone)]
pub struct Generations {
    /// The paths of all snapshots, sorted.
    pub names: Vec<String>,
    /// The newest generation.
    pub newest: Option<Named>,
}

fn report_lost(lost: Vec<Lost>, reporter: &Reporter) {
    for Lost { path, error } in lost {
        reporter.problem(Problem {
            severity: Severity::Damage,
            what: path,
            why: error.to_string(),
            hint: Some("run `snapshot check`; the other snapshots are not affected".into()),
        });
    }
}

/// The bytes of which these differ in one bit, if that is what happened to them; names are hashes of the bytes.
fn unflip(bytes: &[u8], name: [u8; 32]) -> Option<Vec<u8>> {
    (0..bytes.len()).into_par_iter().find_map_any(|at| {
        let mut tried = bytes.to_vec();
        (0..8).find_map(|bit| {
            tried[at] ^= 1 << bit;
            let is_it = *blake3::hash(&tried).as_bytes() == name;
            if !is_it {
                tried[at] ^= 1 << bit;
            }
            is_it.then(|| tried.clone())
        })
    })
}

impl Repository {
    pub(super) fn read_snapshot_at(&self, path: &str) -> Result<Named> {
        let (id, bytes) = self.snapshot_bytes(path)?;
        Ok(Named::new(id, Snapshot::open(&self.keys, &bytes, path)?))
    }

    /// The bytes of a snapshot or tomb, which have the hash that is its name.
    fn snapshot_bytes(&self, path: &str) -> Result<(SnapshotId, Vec<u8>)> {
        let bytes = self.backend.get(path, MAX_CONTROL_BYTES as u64)?;
        let hash = SnapshotId(*blake3::hash(&bytes).as_bytes());
        if path.rsplit('/').next() != Some(&hash.to_string()) {
            return Err(Error::corrupt(path, "its contents do not have the hash that is its name"));
        }
        Ok((hash, bytes))
    }

    /// Snapshots as they were made, without their marks.
    pub(super) fn read_snapshots_in(&self, folder: &str) -> Result<(Vec<Named>, Vec<Lost>)> {
        Ok(self.read_listed_snapshots(self.backend.list(folder)?))
    }

    fn read_listed_snapshots(&self, listed: Vec<Listed>) -> (Vec<Named>, Vec<Lost>) {
        self.backend.want(&listed);
        let read: Vec<_> = listed.par_iter().map(|l| self.read_snapshot_at(&l.path)).collect();
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        for (Listed { path, modified, .. }, read) in listed.into_iter().zip(read) {
            match read {
                Ok(named) => found.push(Named { stored: Some(modified), ..named }),
                // Forgotten since it was listed.
                Err(Error::Missing { .. }) => {}
                Err(error) => lost.push(Lost { path, error }),
            }
        }
        // What was salvaged of a snapshot comes after it, and so is what `latest` means.
        found.sort_by_key(|n| (n.snapshot.time, n.snapshot.generation, n.snapshot.is_salvaged(), n.id));
        (found, lost)
    }

    /// The paths of all snapshots, sorted.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn snapshot_names(&self) -> Result<Vec<String>> {
        Ok(self.backend.list(layout::SNAPSHOTS)?.into_iter().map(|l| l.path).collect())
    }

    /// All snapshots, oldest first, and those that can't be read. What marks that can't be read say of them is left
    /// out: see [`Repository::read_marks`].
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn read_snapshots(&self) -> Result<(Vec<Named>, Vec<Lost>)> {
        // Whoever marks a snapshot has seen it: marks that were listed before the snapshots are all of known ones.
        let marks = self.read_marks()?;
        self.read_snapshots_with(&marks)
    }

    /// The same, with marks that were read before.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn read_snapshots_with(&self, marks: &Marks) -> Result<(Vec<Named>, Vec<Lost>)> {
        let (mut found, lost) = self.read_snapshots_in(layout::SNAPSHOTS)?;
        found.iter_mut().for_each(|named| marks.apply(named));
        Ok((found, lost))
    }

    /// All forgotten snapshots that can still be taken back, as they were made, and those that can't be read.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn read_tombs(&self) -> Result<(Vec<Named>, Vec<Lost>)> {
        self.read_snapshots_in(layout::TOMBS)
    }

    /// All readable snapshots, oldest first; others are reported as damage, and so are marks that can't be read.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn snapshots(&self, reporter: &Reporter) -> Result<Vec<Named>> {
        let marks = self.read_marks()?;
        marks.report_lost(reporter, "what it says of a snapshot's tags or pin is not shown");
        let (found, lost) = self.read_snapshots_with(&marks)?;
        report_lost(lost, reporter);
        Ok(found)
    }

    /// The newest generation of a source, as it was made, and which snapshots there are at all.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn generations(&self, host: &str, source: &str, reporter: &Reporter) -> Result<Generations> {
        let listed = self.backend.list(layout::SNAPSHOTS)?;
        let names = listed.iter().map(|l| l.path.clone()).collect();
        self.backend.want(&listed);
        let mut newest: Option<Named> = None;
        for some in listed.chunks(SNAPSHOTS_AT_ONCE) {
            let (found, lost) = self.read_listed_snapshots(some.to_vec());
            report_lost(lost, reporter);
            let of_source = found.into_iter().filter(|n| n.snapshot.host == host && n.snapshot.source == source);
            newest = newest.into_iter().chain(of_source).max_by_key(|n| (n.snapshot.generation, n.snapshot.started));
        }
        Ok(Generations { names, newest })
    }

    /// The newest generation of a source, as it was made.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn newest(&self, host: &str, source: &str, reporter: &Reporter) -> Result<Option<Named>> {
        Ok(self.generations(host, source, reporter)?.newest)
    }

    /// Stores a snapshot: from here on it exists.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_snapshot(&self, snapshot: &Snapshot) -> Result<SnapshotId> {
        let (id, bytes) = snapshot.seal(&self.keys)?;
        self.backend.put(&layout::snapshot(id), bytes)?;
        Ok(id)
    }

    /// Moves a snapshot from one folder to the other under its name: the copy is durable before the original goes, and
    /// what came wrong from the store does not take the original's place.
    fn move_snapshot(&self, from: &str, to: &str) -> Result<()> {
        let (_, bytes) = self.snapshot_bytes(from)?;
        self.backend.put(to, bytes)?;
        self.backend.delete(&[from.to_owned()])
    }

    /// Forgets a snapshot; it can be taken back until its packs are deleted.
    ///
    /// # Errors
    /// When the store fails.
    pub fn bury_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.move_snapshot(&layout::snapshot(id), &layout::tomb(id))
    }

    /// Takes back what the one prune that runs has just forgotten itself: it deletes no tombs meanwhile.
    ///
    /// # Errors
    /// [`Error::Missing`] if somebody else took it back. Storage errors.
    pub fn exhume_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.move_snapshot(&layout::tomb(id), &layout::snapshot(id))
    }

    /// Puts a snapshot that can't be read where it holds up no prune: the same bytes as a tomb.
    ///
    /// # Errors
    /// When the store fails.
    pub fn bury_unreadable(&self, path: &str) -> Result<()> {
        let bytes = self.backend.get(path, MAX_CONTROL_BYTES as u64)?;
        self.backend.put(&path.replacen(layout::SNAPSHOTS, layout::TOMBS, 1), bytes)?;
        self.backend.delete(&[path.to_owned()])
    }

    /// Takes a forgotten snapshot back. The tomb goes last, and must still be there after the snapshot is: a prune
    /// removes the tombs whose packs it is about to delete before it lists the snapshots for the last time.
    ///
    /// # Errors
    /// [`Error::Refused`] if a prune was faster.
    pub fn unbury_snapshot(&self, id: SnapshotId) -> Result<()> {
        let (tomb, path) = (layout::tomb(id), layout::snapshot(id));
        let (_, bytes) = self.snapshot_bytes(&tomb)?;
        self.backend.put(&path, bytes)?;
        match self.backend.get(&tomb, MAX_CONTROL_BYTES as u64) {
            Ok(_) => self.backend.delete(&[tomb]),
            // Without a prune, it was another undo that took the tomb away, or a prune that has ended since.
            Err(Error::Missing { .. })
                if self.is_left_alone(self.read_snapshot_at(&path)?.snapshot.tree, &self.live()?)? =>
            {
                Ok(())
            }
            Err(Error::Missing { .. }) => {
                self.backend.delete(&[path])?;
                Err(Error::refused(
                    format!("snapshot {} can't be taken back: a prune is deleting its data", id.short()),
                    "its data is gone or about to go",
                ))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether no prune is running that may not have seen a snapshot, and every pack that it needs is in the store.
    pub(super) fn is_left_alone(&self, tree: BlobId, live: &Live) -> Result<bool> {
        // A session that can't be read may be one.
        let may_prune = |s: &Running| s.session.as_ref().is_none_or(|s| s.kind == SessionKind::Prune);
        Ok(!self.running(live, "").iter().any(may_prune) && self.is_whole(tree)?)
    }

    fn is_whole(&self, tree: BlobId) -> Result<bool> {
        let Ok(needs) = self.reachable([tree], &Reporter::silent()) else { return Ok(false) };
        let mut listed = self.backend.list(layout::DATA_PACKS)?;
        listed.extend(self.backend.list(layout::METADATA_PACKS)?);
        let there: HashSet<PackId> = listed.iter().filter_map(|l| Some(layout::parse_pack(&l.path)?.1)).collect();
        let index = self.index();
        let is_there = |place: Place| index.packs().get(place.pack as usize).is_some_and(|p| there.contains(&p.id));
        Ok(needs.iter().all(|at| needs.are_met_at(&index, at, is_there)))
    }

    /// Writes key slots, snapshots or tombs in which one bit has flipped anew, as their names say that they were, and
    /// returns their paths. Any other damage is left as it is. With `dry_run` nothing is written.
    ///
    /// # Errors
    /// When the store fails.
    pub fn mend_flipped(&self, folder: &str, dry_run: bool) -> Result<Vec<String>> {
        let mut mended = Vec::new();
        for Listed { path, .. } in self.backend.list(folder)? {
            let bytes = match self.backend.get(&path, MAX_MENDED_BYTES) {
                Ok(bytes) => bytes,
                // Larger than any that is tried, or gone.
                Err(e) => {
                    self.only_this_object(e)?;
                    continue;
                }
            };
            let Some(sound) = SnapshotId::parse(path.rsplit('/').next().unwrap_or_default())
                .filter(|id| *blake3::hash(&bytes).as_bytes() != id.0)
                .and_then(|id| unflip(&bytes, id.0))
            else {
                continue;
            };
            if !dry_run {
                self.backend.put(&path, sound)?;
            }
            mended.push(path);
        }
        Ok(mended)
    }
}
