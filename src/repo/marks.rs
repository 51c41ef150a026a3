//! Marks over the repository: which tags a snapshot has now, whether it is pinned, and when it was last proved to be
//! restorable.
//!
//! Several hosts may mark at once, and stores that only grow take marks as well: each is a new object, and what holds
//! is found by going through all of a snapshot in the order of (time, id).

use std::collections::HashMap;

use rayon::prelude::*;

use super::{Lost, Named, Repository};
use crate::backend::layout;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::MAX_CONTROL_BYTES;
use crate::format::cbor::Time;
use crate::format::mark::{Mark, Proof};
use crate::format::snapshot::Snapshot;
use crate::id::{MarkId, SnapshotId};
use crate::report::{Problem, Reporter, Severity};

/// Tags, pin and proof of a snapshot as its marks leave them.
#[derive(Debug, Clone, Default)]
pub(super) struct Marked {
    tags: Vec<String>,
    is_pinned: bool,
    /// Time of the newest mark.
    newest: Option<Time>,
    /// The last proof that it can be restored.
    proof: Option<Proof>,
}

impl Named {
    /// A snapshot of which nothing was said since it was made.
    pub fn new(id: SnapshotId, snapshot: Snapshot) -> Self {
        let marked = Marked { tags: snapshot.tags.clone(), is_pinned: snapshot.pinned, newest: None, proof: None };
        Self { id, snapshot, stored: None, marked }
    }

    /// The tags that it has now.
    pub fn tags(&self) -> &[String] {
        &self.marked.tags
    }

    /// Whether it is pinned now: no rule drops it.
    pub fn is_pinned(&self) -> bool {
        self.marked.is_pinned
    }

    /// The last proof that it can be restored, if there is one.
    pub fn proof(&self) -> Option<&Proof> {
        self.marked.proof.as_ref()
    }

    fn mark(&mut self, mark: &Mark) {
        let Marked { tags, is_pinned, newest, proof } = &mut self.marked;
        tags.retain(|tag| !mark.remove.contains(tag));
        for tag in &mark.add {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        *is_pinned = mark.pin.unwrap_or(*is_pinned);
        *newest = Some(mark.time);
        if let Some(other) = &mark.proof
            && proof.as_ref().is_none_or(|proof| proof.time <= other.time)
        {
            *proof = Some(other.clone());
        }
    }
}

/// What is to be said of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkNote {
    /// Tags to add.
    pub add: Vec<String>,
    /// Tags to take away, before others are added.
    pub remove: Vec<String>,
    /// Whether to pin it; `None` leaves that.
    pub pin: Option<bool>,
    /// That it was proved to be restorable.
    pub proof: Option<Proof>,
}

/// All marks in the store.
#[derive(Debug, Default)]
pub struct Marks {
    /// Sorted by (time, id).
    sound: Vec<(MarkId, Mark)>,
    /// Positions in `sound` of the marks of each snapshot.
    of: HashMap<SnapshotId, Vec<usize>>,
    /// Those that can't be read.
    pub lost: Vec<Lost>,
}

impl Marks {
    /// The marks that can be read.
    pub fn iter(&self) -> impl Iterator<Item = &Mark> {
        self.sound.iter().map(|(_, mark)| mark)
    }

    /// The ids of the marks that can be read, with the snapshots that they are of.
    pub fn of_snapshots(&self) -> impl Iterator<Item = (MarkId, SnapshotId)> {
        self.sound.iter().map(|(id, mark)| (*id, mark.snapshot))
    }

    /// Applies the marks of a snapshot that none was applied to yet.
    pub fn apply(&self, named: &mut Named) {
        for (_, mark) in self.of.get(&named.id).into_iter().flatten().filter_map(|at| self.sound.get(*at)) {
            named.mark(mark);
        }
    }

    /// Reports the marks that can't be read as damage; `cost` says what that means here.
    pub fn report_lost(&self, reporter: &Reporter, cost: &str) {
        for Lost { path, error } in &self.lost {
            reporter.problem(Problem {
                severity: Severity::Damage,
                what: path.clone(),
                why: format!("{error}; {cost}"),
                hint: Some("run `snapshot check`, which says what to do".into()),
            });
        }
    }
}

impl Repository {
    fn read_mark_at(&self, path: &str) -> Result<(MarkId, Mark)> {
        let bytes = self.backend.get(path, MAX_CONTROL_BYTES as u64)?;
        let id = MarkId(*blake3::hash(&bytes).as_bytes());
        if path != layout::mark(id) {
            return Err(Error::corrupt(path, "its contents do not have the hash that is its name"));
        }
        Ok((id, Mark::open(&self.keys, &bytes, path)?))
    }

    /// All marks: those that can be read, and those that can't.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn read_marks(&self) -> Result<Marks> {
        let listed = self.backend.list(layout::MARKS)?;
        self.backend.want(&listed);
        let read: Vec<_> = listed.par_iter().map(|l| self.read_mark_at(&l.path)).collect();
        let mut marks = Marks::default();
        for (listed, read) in listed.into_iter().zip(read) {
            match read {
                Ok(mark) => marks.sound.push(mark),
                // A prune took it away, since its snapshot is gone.
                Err(Error::Missing { .. }) => {}
                Err(error) => marks.lost.push(Lost { path: listed.path, error }),
            }
        }
        marks.sound.sort_by_key(|(id, mark)| (mark.time, *id));
        for (at, (_, mark)) in marks.sound.iter().enumerate() {
            marks.of.entry(mark.snapshot).or_default().push(at);
        }
        Ok(marks)
    }

    /// Whether a mark that is in the store now pins any of these snapshots, which were not pinned before; or may pin it,
    /// because it can't be read.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn is_any_pinned(&self, ids: &[SnapshotId]) -> Result<bool> {
        let marks = self.read_marks()?;
        let mut pins: HashMap<SnapshotId, bool> = HashMap::new();
        for mark in marks.iter().filter(|mark| ids.contains(&mark.snapshot)) {
            pins.extend(mark.pin.map(|pin| (mark.snapshot, pin)));
        }
        Ok(!marks.lost.is_empty() || pins.into_values().any(|pin| pin))
    }

    /// Stores a mark, and changes `named` as it says. Its time lies after that of every mark known of this snapshot,
    /// whatever the clock says.
    ///
    /// # Errors
    /// [`Error::Refused`] if the snapshot was forgotten meanwhile by somebody who had not seen the mark. Storage errors.
    pub fn put_mark(&self, named: &mut Named, note: &MarkNote) -> Result<()> {
        let after = named.marked.newest.map_or(Time { secs: i64::MIN, nanos: 0 }, Time::next);
        let mark = Mark {
            time: clock::now().max(after),
            snapshot: named.id,
            add: note.add.clone(),
            remove: note.remove.clone(),
            pin: note.pin,
            slot: Some(self.slot()),
            proof: note.proof.clone(),
        };
        let (id, bytes) = mark.seal(&self.keys)?;
        self.backend.put(&layout::mark(id), bytes)?;
        // A prune looks for new pins after it has forgotten something. What it did not see, is seen from here: in a
        // listing, since the snapshot itself would be read from a copy on this machine.
        if !self.snapshot_names()?.contains(&layout::snapshot(named.id)) {
            return Err(Error::refused(
                format!("snapshot {} was forgotten meanwhile", named.id.short()),
                format!("`snapshot undo-forget {}` takes it back, with its new tags", named.id.short()),
            ));
        }
        named.mark(&mark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::mark::ProofKind;
    use crate::repo::testing::{World, noise};

    fn note(add: &[&str], remove: &[&str], pin: Option<bool>) -> MarkNote {
        let owned = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
        MarkNote { add: owned(add), remove: owned(remove), pin, proof: None }
    }

    fn only(repo: &Repository) -> Named {
        repo.read_snapshots().unwrap().0.remove(0)
    }

    #[test]
    fn what_was_said_last_holds() {
        let world = World::new();
        world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let mut named = only(&world.repo);
        assert!(named.tags().is_empty() && !named.is_pinned());
        // Each sees what the one before it has done, whatever the clock says.
        for (say, tags, pinned) in [
            (note(&["a", "b"], &[], None), &["a", "b"][..], false),
            (note(&["c", "a"], &["b"], Some(true)), &["a", "c"], true),
            (note(&["b"], &["a", "b", "x"], None), &["c", "b"], true),
            (note(&[], &[], Some(false)), &["c", "b"], false),
        ] {
            world.repo.put_mark(&mut named, &say).unwrap();
            for seen in [&named, &only(&world.repo)] {
                assert_eq!(
                    (seen.tags(), seen.is_pinned()),
                    (&tags.iter().map(ToString::to_string).collect::<Vec<_>>()[..], pinned)
                );
            }
        }
        assert_eq!(world.paths(layout::MARKS).len(), 4);
        assert!(named.snapshot.tags.is_empty(), "the snapshot itself stays as it is");
    }

    #[test]
    fn the_latest_proof_counts() {
        let world = World::new();
        world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let mut named = only(&world.repo);
        let proof = |secs| Proof { time: Time { secs, nanos: 0 }, program: "p".into(), kind: ProofKind::Drill };
        // One of a copy that was proved before comes after.
        for (secs, latest) in [(5, 5), (9, 9), (7, 9)] {
            world.repo.put_mark(&mut named, &MarkNote { proof: Some(proof(secs)), ..MarkNote::default() }).unwrap();
            world.repo.put_mark(&mut named, &note(&["a"], &[], None)).unwrap();
            for seen in [&named, &only(&world.repo)] {
                assert_eq!(seen.proof(), Some(&proof(latest)));
            }
        }
    }

    #[test]
    fn a_clock_that_stands_in_the_past_does_not_matter() {
        let world = World::new();
        let id = world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let ahead = Time { secs: clock::now().secs + 1_000_000, nanos: 999_999_999 };
        let mark = Mark {
            time: ahead,
            snapshot: id,
            add: vec!["a".into()],
            remove: vec![],
            pin: None,
            slot: None,
            proof: None,
        };
        let (name, bytes) = mark.seal(world.repo.keys()).unwrap();
        world.repo.backend().put(&layout::mark(name), bytes).unwrap();
        world.repo.put_mark(&mut only(&world.repo), &note(&["b"], &["a"], None)).unwrap();
        let marks = world.repo.read_marks().unwrap();
        assert_eq!(marks.iter().last().unwrap().time, ahead.next());
        assert_eq!(only(&world.repo).tags(), ["b"]);
    }

    #[test]
    fn a_damaged_mark_is_lost_and_nothing_else() {
        let world = World::new();
        world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let mut named = only(&world.repo);
        world.repo.put_mark(&mut named, &note(&["a"], &[], None)).unwrap();
        let first = world.paths(layout::MARKS).remove(0);
        world.repo.put_mark(&mut named, &note(&["b"], &[], None)).unwrap();
        world.damage(&first);
        let marks = world.repo.read_marks().unwrap();
        assert_eq!(marks.lost.iter().map(|l| l.path.clone()).collect::<Vec<_>>(), [first]);
        assert_eq!(only(&world.repo).tags(), ["b"]);
        let reporter = Reporter::silent();
        assert_eq!(world.repo.snapshots(&reporter).unwrap().len(), 1);
        assert_eq!(reporter.worst(), Some(Severity::Damage));
    }

    #[test]
    fn a_snapshot_that_is_gone_is_not_marked_in_silence() {
        let world = World::new();
        let id = world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let mut named = only(&world.repo);
        world.repo.bury_snapshot(id).unwrap();
        assert!(matches!(world.repo.put_mark(&mut named, &note(&[], &[], Some(true))), Err(Error::Refused { .. })));
        world.repo.unbury_snapshot(id).unwrap();
        assert!(only(&world.repo).is_pinned());
    }
}
