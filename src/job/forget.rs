//! Forgetting single snapshots, and taking that back while their data is still there.
//!
//! Both announce themselves as writers: a prune that starts meanwhile knows that something is going on. Against one
//! that is about to delete, the order of steps protects, see [`Repository::unbury_snapshot`].

use std::collections::HashSet;
use std::sync::Arc;

use crate::backend::layout;
use crate::error::{Error, Result};
use crate::format::control::SessionKind;
use crate::id::{PackId, SnapshotId};
use crate::repo::{Named, Reach, Repository, SessionGuard};
use crate::report::Reporter;

/// Fewest hex digits that name a snapshot.
const MIN_PREFIX: usize = 2;

/// Forgets snapshots, and returns those that were there.
///
/// # Errors
/// [`Error::Refused`], before anything is forgotten, if one of them is pinned, or may be by a mark that can't be read;
/// [`Error::Unknown`] for a snapshot that isn't there; those named before it are forgotten. Storage errors.
pub fn forget(repo: &Arc<Repository>, ids: &[SnapshotId], reporter: &Reporter) -> Result<Vec<SnapshotId>> {
    let session = SessionGuard::start(repo, SessionKind::Write)?;
    refuse_pinned(repo, ids)?;
    let mut done = Vec::new();
    for id in ids {
        reporter.check_interrupt()?;
        repo.bury_snapshot(*id).map_err(|e| match e {
            Error::Missing { .. } => Error::Unknown { kind: "snapshot", name: id.to_string() },
            e => e,
        })?;
        done.push(*id);
    }
    session.end()?;
    Ok(done)
}

fn refuse_pinned(repo: &Repository, ids: &[SnapshotId]) -> Result<()> {
    let marks = repo.read_marks()?;
    if let Some(lost) = marks.lost.first() {
        return Err(Error::refused(
            format!("nothing is forgotten: {}, and it may pin a snapshot", lost.error),
            "run `snapshot check`, which says what to do",
        ));
    }
    // A snapshot that can't be read is refused when it is chosen; one that is gone, when it is forgotten.
    let (snapshots, _) = repo.read_snapshots_with(&marks)?;
    match snapshots.iter().find(|named| named.is_pinned() && ids.contains(&named.id)) {
        Some(pinned) => Err(Error::refused(
            format!("snapshot {} is pinned; nothing was forgotten", pinned.id.short()),
            format!("`snapshot tag {} --unpin` lets it go", pinned.id.short()),
        )),
        None => Ok(()),
    }
}

/// Takes back forgotten snapshots, named by the first digits of their ids, if all their data is still there: all of
/// them or none. Data in condemned packs is there: the next prune finds that it is needed, and keeps it.
///
/// # Errors
/// [`Error::Refused`] if a prefix names none or several of the forgotten snapshots, or something is missing.
pub fn undo_forget(repo: &Arc<Repository>, prefixes: &[String], reporter: &Reporter) -> Result<Vec<SnapshotId>> {
    let session = SessionGuard::start(repo, SessionKind::Write)?;
    repo.load_index_to_write(session.begun(), reporter)?;
    let (tombs, _) = repo.read_tombs()?;
    let mut chosen: Vec<&Named> = Vec::new();
    for prefix in prefixes {
        let one = choose(&tombs, prefix)?;
        if !chosen.iter().any(|c| c.id == one.id) {
            chosen.push(one);
        }
    }
    let packs = stored_packs(repo)?;
    for named in &chosen {
        check_complete(repo, named, &packs, reporter)?;
    }
    session.check_alive()?;
    for named in &chosen {
        repo.unbury_snapshot(named.id).map_err(|e| match e {
            Error::Missing { .. } => gone(named, "a prune has deleted its data"),
            e => e,
        })?;
    }
    session.end()?;
    Ok(chosen.into_iter().map(|named| named.id).collect())
}

fn choose<'t>(tombs: &'t [Named], prefix: &str) -> Result<&'t Named> {
    let prefix = prefix.to_ascii_lowercase();
    let mut found = tombs.iter().filter(|t| prefix.len() >= MIN_PREFIX && t.id.to_string().starts_with(&prefix));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            let names: Vec<_> = tombs.iter().map(|t| t.id.short()).collect();
            let hint = if names.is_empty() {
                "no forgotten snapshot is left: its data may be deleted, or it was never forgotten".into()
            } else {
                format!("these can be taken back: {}", names.join(", "))
            };
            Err(Error::refused(format!("no forgotten snapshot matches \"{prefix}\""), hint))
        }
        _ => Err(Error::refused(format!("several forgotten snapshots match \"{prefix}\""), "give more digits")),
    }
}

fn stored_packs(repo: &Repository) -> Result<HashSet<PackId>> {
    let mut listed = repo.backend().list(layout::DATA_PACKS)?;
    listed.extend(repo.backend().list(layout::METADATA_PACKS)?);
    Ok(listed.iter().filter_map(|l| layout::parse_pack(&l.path)).map(|(_, id)| id).collect())
}

/// Checks that every blob the snapshot needs is in the index, and in a pack that exists.
fn check_complete(repo: &Repository, named: &Named, packs: &HashSet<PackId>, reporter: &Reporter) -> Result<()> {
    let mut reach = Reach::default();
    reach.add(repo, [named.snapshot.tree], reporter).map_err(|e| match e {
        e @ (Error::Missing { .. } | Error::Corrupt { .. }) => gone(named, &e.to_string()),
        e => e,
    })?;
    let index = repo.index();
    let needs = reach.needs();
    let is_there = |p| index.frame(p).is_some_and(|(pack, _)| packs.contains(&pack.id));
    let lost = needs.iter().find(|at| !needs.are_met_at(&index, *at, is_there));
    match lost.and_then(|at| index.id_at(at)) {
        Some(lost) => Err(gone(named, &format!("the pack that holds blob {lost} is missing"))),
        None => Ok(()),
    }
}

fn gone(named: &Named, why: &str) -> Error {
    Error::refused(
        format!("snapshot {} can't be taken back: {why}", named.id.short()),
        "forgetting can be undone until a prune deletes the data",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::repo::MarkNote;
    use crate::repo::testing::{World, noise, sessions};

    #[test]
    fn forget_and_take_back() {
        let world = World::new();
        let reporter = Reporter::silent();
        let ids: Vec<_> = (1..=3).map(|n| world.snapshot("/s", n, &[noise(n, 100)], |_| None)).collect();
        assert_eq!(forget(&world.repo, &ids[..2], &reporter).unwrap(), ids[..2]);
        assert_eq!(world.read_all(), [3]);
        assert!(matches!(forget(&world.repo, &ids[..1], &reporter), Err(Error::Unknown { .. })));

        let prefix = |id: &SnapshotId| id.to_string()[..12].to_owned();
        let undo = |prefixes: &[String]| undo_forget(&world.repo, prefixes, &reporter);
        for bad in ["", "a", "0123456789", &prefix(&ids[2])] {
            assert!(matches!(undo(&[prefix(&ids[0]), bad.into()]), Err(Error::Refused { .. })), "{bad}");
            assert_eq!(world.read_all(), [3], "nothing was taken back");
        }
        let upper = prefix(&ids[0]).to_uppercase();
        assert_eq!(undo(&[upper, prefix(&ids[0])]).unwrap(), ids[..1]);
        assert_eq!(world.read_all(), [1, 3]);
        assert_eq!(undo(&[prefix(&ids[1])]).unwrap(), [ids[1]]);
        assert_eq!(world.read_all(), [1, 2, 3]);
        assert!(world.paths(layout::TOMBS).is_empty() && sessions(&*world.memory).is_empty());
    }

    #[test]
    fn pinned_snapshots_are_not_forgotten() {
        let world = World::new();
        let reporter = Reporter::silent();
        let ids: Vec<_> = (1..=2).map(|n| world.snapshot("/s", n, &[noise(n, 100)], |_| None)).collect();
        let mut second = world.repo.read_snapshots().unwrap().0.remove(1);
        let pin = |pin| MarkNote { pin: Some(pin), ..MarkNote::default() };
        world.repo.put_mark(&mut second, &pin(true)).unwrap();
        assert!(matches!(forget(&world.repo, &ids, &reporter), Err(Error::Refused { .. })));
        assert_eq!(world.read_all(), [1, 2], "all or none");
        world.repo.put_mark(&mut second, &pin(false)).unwrap();
        let mark = world.paths(layout::MARKS).remove(0);
        let sound = world.memory.get(&mark, u64::MAX).unwrap();
        world.damage(&mark);
        assert!(matches!(forget(&world.repo, &ids[..1], &reporter), Err(Error::Refused { .. })));
        world.memory.put(&mark, sound).unwrap();
        assert_eq!(forget(&world.repo, &ids, &reporter).unwrap(), ids);
    }

    #[test]
    fn what_is_not_all_there_is_not_taken_back() {
        for kind in [layout::DATA_PACKS, layout::METADATA_PACKS] {
            let world = World::new();
            let reporter = Reporter::silent();
            let id = world.snapshot("/s", 1, &[noise(1, 100)], |_| None);
            forget(&world.repo, &[id], &reporter).unwrap();
            world.clear(kind);
            let repo = world.reopen();
            assert!(matches!(undo_forget(&repo, &[id.to_string()], &reporter), Err(Error::Refused { .. })));
            assert!(world.paths(layout::SNAPSHOTS).is_empty());
            assert_eq!(world.paths(layout::TOMBS).len(), 1);
        }
    }
}
