//! Tagging and pinning snapshots that are there already. Each change is stored as a mark, an object of its own; the
//! snapshots stay as they are. Needs no session: a mark relies on no data, and stores that only grow take it.

use crate::error::{Error, Result};
use crate::repo::{MarkNote, Named, Repository};
use crate::report::Reporter;

/// What is to become of tags and pin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Tags to have from now on.
    pub add: Vec<String>,
    /// Tags not to have any more.
    pub remove: Vec<String>,
    /// Tags to have instead of all others; `add` and `remove` don't count then.
    pub set: Option<Vec<String>>,
    /// Whether to pin; `None` leaves that.
    pub pin: Option<bool>,
}

/// A snapshot as it is afterwards.
#[derive(Debug, Clone)]
pub struct Tagged {
    /// The snapshot.
    pub named: Named,
    /// Whether anything changed.
    pub changed: bool,
}

/// Changes what is said of snapshots. What holds already is not said again.
///
/// # Errors
/// [`Error::Usage`] for an empty tag; [`Error::Refused`] for a snapshot that was forgotten meanwhile: those
/// before it are marked. Storage errors.
pub fn run(repo: &Repository, snapshots: Vec<Named>, change: &Change, reporter: &Reporter) -> Result<Vec<Tagged>> {
    if [&change.add, &change.remove].into_iter().chain(&change.set).flatten().any(String::is_empty) {
        return Err(Error::Usage("a tag has at least one character".into()));
    }
    let mut done = Vec::with_capacity(snapshots.len());
    for mut named in snapshots {
        reporter.check_interrupt()?;
        let note = note(&named, change);
        let changed = note != MarkNote::default();
        if changed {
            repo.put_mark(&mut named, &note)?;
        }
        done.push(Tagged { named, changed });
    }
    Ok(done)
}

/// What has to be said of a snapshot so that the change holds.
fn note(named: &Named, change: &Change) -> MarkNote {
    let has = |tag: &String| named.tags().contains(tag);
    let mut add: Vec<String> = Vec::new();
    for tag in change.set.as_ref().unwrap_or(&change.add) {
        if !has(tag) && !add.contains(tag) {
            add.push(tag.clone());
        }
    }
    let goes = |tag: &&String| match &change.set {
        Some(set) => !set.contains(tag),
        None => change.remove.contains(tag) && !change.add.contains(tag),
    };
    let remove = named.tags().iter().filter(goes).cloned().collect();
    MarkNote { add, remove, pin: change.pin.filter(|pin| *pin != named.is_pinned()), proof: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::layout;
    use crate::repo::testing::{World, noise};

    fn tags(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_changes_is_said() {
        let world = World::new();
        world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
        let change =
            |add: &[&str], remove: &[&str]| Change { add: tags(add), remove: tags(remove), ..Change::default() };
        let set = |set: &[&str], pin| Change { set: Some(tags(set)), pin, ..Change::default() };
        for (marks, change, expected) in [
            (1, change(&["a", "b", "a"], &[]), &["a", "b"][..]),
            (1, change(&["b"], &["c"]), &["a", "b"]),
            (2, change(&["c"], &["a", "c"]), &["b", "c"]),
            (3, set(&["d", "b"], None), &["b", "d"]),
            (3, set(&["b", "d"], Some(false)), &["b", "d"]),
            (4, set(&[], Some(true)), &[]),
            (4, set(&[], Some(true)), &[]),
        ] {
            let before = world.paths(layout::MARKS).len();
            let all = world.repo.read_snapshots().unwrap().0;
            let done = run(&world.repo, all, &change, &Reporter::silent()).unwrap();
            assert_eq!(done[0].named.tags(), expected, "{change:?}");
            assert_eq!(world.paths(layout::MARKS).len(), marks, "{change:?}");
            assert_eq!(done[0].changed, marks > before, "{change:?}");
        }
        let all = world.repo.read_snapshots().unwrap().0;
        assert!(all[0].is_pinned());
        assert!(matches!(run(&world.repo, all, &change(&[""], &[]), &Reporter::silent()), Err(Error::Usage(_))));
    }
}
