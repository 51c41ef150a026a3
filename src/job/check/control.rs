//! The small objects: config, key slots, snapshots and their chain, tombs, marks, records of condemned packs, sessions.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{damage, note, reason};
use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::config::Config;
use crate::format::control::{self, Condemned, Session};
use crate::format::header::Kind;
use crate::format::keyslot::Slot;
use crate::format::{MAX_CONFIG_BYTES, MAX_CONTROL_BYTES, MAX_SLOT_BYTES, MAX_SLOTS};
use crate::id::SnapshotId;
use crate::repo::{Marks, Named, Repository};
use crate::report::Reporter;

/// Folder of objects that are being written.
const TEMPORARY: &str = "tmp/";
const PUT_BACK: &str = "put the file back from a copy of the repository if there is one";

/// Checks all control objects and returns the snapshots that could be read.
pub(super) fn check(repo: &Repository, reporter: &Reporter) -> Result<Vec<Named>> {
    for path in [layout::CONFIG, layout::CONFIG_COPY] {
        check_config(repo, path, reporter)?;
    }
    check_slots(repo, reporter)?;
    check_records(repo, reporter)?;
    let (tombs, lost) = repo.read_tombs()?;
    for lost in lost {
        let why = reason(&repo.only_this_object(lost.error)?);
        damage(
            reporter,
            &lost.path,
            format!("{why}; this forgotten snapshot can't be taken back any more, and no other is affected"),
            format!(
                "{PUT_BACK}, or run `snapshot repair snapshots`: it puts one flipped bit right, and with --forget it \
                 removes what it can't mend"
            ),
        );
    }
    let marks = repo.read_marks()?;
    let (snapshots, lost) = repo.read_snapshots_with(&marks)?;
    for lost in lost {
        let why = reason(&repo.only_this_object(lost.error)?);
        damage(
            reporter,
            &lost.path,
            format!(
                "{why}; this snapshot can't be restored, and no prune runs while it is there; its data is untouched"
            ),
            format!(
                "{PUT_BACK}; else run `snapshot repair snapshots`: it puts one flipped bit right, and with --forget it \
                 gives up this snapshot and no other"
            ),
        );
    }
    check_chains(&snapshots, &tombs, reporter);
    check_marks(repo, marks, reporter)?;
    Ok(snapshots)
}

/// Marks hold no data, but what they say of a snapshot keeps a prune from dropping it.
fn check_marks(repo: &Repository, marks: Marks, reporter: &Reporter) -> Result<()> {
    let mut known = HashSet::new();
    // One that is just being forgotten or taken back is in one of the two, perhaps not in the one that is listed.
    for folder in [layout::SNAPSHOTS, layout::TOMBS, layout::SNAPSHOTS] {
        known.extend(repo.backend().list(folder)?.iter().filter_map(|l| SnapshotId::parse(l.name())));
    }
    for (id, of) in marks.of_snapshots().filter(|(_, of)| !known.contains(of)) {
        note(
            reporter,
            &layout::mark(id),
            format!("it is of snapshot {}, which is gone", of.short()),
            "the next `snapshot prune` removes it",
        );
    }
    for lost in marks.lost {
        let why = reason(&repo.only_this_object(lost.error)?);
        damage(
            reporter,
            &lost.path,
            format!(
                "{why}; what it says of a snapshot's tags or pin is lost, and no prune forgets anything while it is \
                 there"
            ),
            format!("{PUT_BACK}; else delete it, then look at `snapshot list` and give tags and pins again"),
        );
    }
    Ok(())
}

fn check_config(repo: &Repository, path: &str, reporter: &Reporter) -> Result<()> {
    let read = repo.backend().get(path, MAX_CONFIG_BYTES as u64);
    let why = match read.and_then(|bytes| Ok((Config::parse(&bytes, path)?, bytes))) {
        Ok((_, bytes)) if !Config::is_authentic(repo.keys(), &bytes) => {
            "it was not written with this repository's keys".into()
        }
        Ok((config, _)) if config != *repo.config() => "it differs from its copy".into(),
        Ok(_) => return Ok(()),
        Err(e) => reason(&repo.only_this_object(e)?),
    };
    let why = format!("{why}; its copy is used, and if that goes too the repository can't be opened");
    damage(reporter, path, why, "run `snapshot repair index`, which writes it anew");
    Ok(())
}

fn check_slots(repo: &Repository, reporter: &Reporter) -> Result<()> {
    let listed = repo.backend().list(layout::KEYS)?;
    let mut sound = 0;
    for slot in &listed {
        let read = get_named(repo, slot, MAX_SLOT_BYTES);
        match read.and_then(|bytes| Slot::parse(&bytes, &slot.path)) {
            Ok(_) => sound += 1,
            Err(Error::Missing { .. }) => {}
            Err(e) => damage(
                reporter,
                &slot.path,
                format!(
                    "{}; the password or key file that it belongs to may not open the repository",
                    reason(&repo.only_this_object(e)?)
                ),
                "run `snapshot repair index`, which puts one flipped bit right; else `snapshot key add` for a new one and \
                 `snapshot key remove` for this one",
            ),
        }
    }
    if sound == 0 {
        let why = "no key slot is readable: once this run ends, nobody can open the repository any more";
        damage(reporter, layout::KEYS, why, "run `snapshot key add` now if you can, or put the slots back from a copy");
    }
    if listed.len() > MAX_SLOTS {
        let why = format!("there are {} key slots, and only {MAX_SLOTS} are tried", listed.len());
        note(reporter, layout::KEYS, why, "run `snapshot key remove` for those that nobody uses");
    }
    Ok(())
}

/// Reads an object whose name must be the hash of its bytes.
fn get_named(repo: &Repository, listed: &Listed, max_bytes: usize) -> Result<Vec<u8>> {
    let bytes = repo.backend().get(&listed.path, max_bytes as u64)?;
    if blake3::hash(&bytes).to_string() == listed.name() {
        Ok(bytes)
    } else {
        Err(Error::corrupt(&listed.path, "its contents do not have the hash that is its name"))
    }
}

/// Records of condemned packs, and sessions: neither holds data, but broken ones hold up a prune.
fn check_records(repo: &Repository, reporter: &Reporter) -> Result<()> {
    for listed in repo.backend().list(layout::LIVE)? {
        if layout::parse_session(&listed.path).is_some() {
            check_session(repo, &listed, reporter)?;
            continue;
        }
        let read = get_named(repo, &listed, MAX_CONTROL_BYTES);
        match read.and_then(|b| control::open::<Condemned>(repo.keys(), Kind::Gc, &b, &listed.path)) {
            Ok(_) | Err(Error::Missing { .. }) => {}
            Err(e) => damage(
                reporter,
                &listed.path,
                format!(
                    "{}; the packs that it condemned stay until they are condemned again",
                    reason(&repo.only_this_object(e)?)
                ),
                "run `snapshot repair index`, which removes it",
            ),
        }
    }
    Ok(())
}

fn check_session(repo: &Repository, listed: &Listed, reporter: &Reporter) -> Result<()> {
    let read = repo.backend().get(&listed.path, MAX_CONTROL_BYTES as u64);
    match read.and_then(|b| control::open::<Session>(repo.keys(), Kind::Session, &b, &listed.path)) {
        Ok(_) | Err(Error::Missing { .. }) => {}
        Err(e) => damage(
            reporter,
            &listed.path,
            format!(
                "{}; no data is affected, but a prune waits a day for the run that it may belong to",
                reason(&repo.only_this_object(e)?)
            ),
            "run `snapshot prune` a day later, or `snapshot unlock` when nothing else is running",
        ),
    }
    Ok(())
}

/// Whether the generations of each source lead to each other. Prunes take links out of a chain legitimately, and of two
/// runs at once both make the same generation.
fn check_chains(snapshots: &[Named], tombs: &[Named], reporter: &Reporter) {
    let mut sources: BTreeMap<(&str, &str), BTreeMap<u64, Vec<&Named>>> = BTreeMap::new();
    let all = || snapshots.iter().chain(tombs);
    for named in all() {
        let snapshot = &named.snapshot;
        let source = sources.entry((&snapshot.host, &snapshot.source)).or_default();
        source.entry(snapshot.generation).or_default().push(named);
    }
    let ids: HashMap<_, _> = all().map(|n| (n.id, n)).collect();
    for ((host, source), generations) in &sources {
        let mut last_gap = None;
        for named in generations.values().flatten() {
            let Some(previous) = named.snapshot.previous else { continue };
            let before = named.snapshot.generation.saturating_sub(1);
            let what = layout::snapshot(named.id);
            let twins = generations.get(&before);
            match ids.get(&previous).map(|p| &p.snapshot) {
                Some(p) if p.host == *host && p.source == *source && p.generation < named.snapshot.generation => {}
                Some(_) => damage(
                    reporter,
                    &what,
                    format!("the snapshot before it, {}, is of another source or younger", previous.short()),
                    "compare both with `snapshot ls` before you rely on either",
                ),
                // What was salvaged of a snapshot stands in its place, and the next one still names the snapshot itself.
                None if twins.is_some_and(|twins| twins.iter().any(|t| t.snapshot.is_salvaged())) => {}
                None if twins.is_some() => note(
                    reporter,
                    &what,
                    format!(
                        "generation {before} of {host}:{source} is not the snapshot {} that it was made after, which is \
                         gone: there were two, of runs at once or of two machines with one name",
                        previous.short()
                    ),
                    "nothing to do, unless you know of neither; `snapshot create --host` tells machines apart",
                ),
                None => last_gap = last_gap.max(Some((before, previous))),
            }
        }
        // Rules take links out of every chain: nothing to be alarmed at.
        if let Some((before, id)) = last_gap {
            let newest = generations.keys().next_back().copied().unwrap_or(0);
            let why = format!(
                "{} of its {newest} generations are there, with those that can be taken back; the others were forgotten \
                 or pruned, as is usual, the last of them generation {before} (snapshot {})",
                generations.len(),
                id.short()
            );
            note(reporter, &format!("{host}:{source}"), why, "nothing to do, unless you know of neither");
        }
    }
}

/// Lists the whole repository, notes what doesn't belong there, and returns the packs.
pub(super) fn list_all(repo: &Repository, reporter: &Reporter) -> Result<Vec<Listed>> {
    const FOLDERS: [&str; 7] =
        [layout::KEYS, layout::INDEX, layout::SNAPSHOTS, layout::TOMBS, layout::MARKS, layout::LIVE, layout::BUNDLES];
    let (mut packs, mut unfinished) = (Vec::new(), Vec::new());
    for listed in repo.backend().list("")? {
        let path = listed.path.as_str();
        if layout::parse_pack(path).is_some() {
            packs.push(listed);
        } else if path.starts_with(TEMPORARY) {
            unfinished.push(listed);
        } else if path != layout::CONFIG
            && path != layout::CONFIG_COPY
            && !FOLDERS.iter().any(|folder| path.starts_with(folder))
        {
            note(reporter, path, "it is no object of this repository", "look at it, and delete it if nobody needs it");
        }
    }
    if !unfinished.is_empty() && repo.sessions()?.is_empty() {
        let bytes: u64 = unfinished.iter().map(|l| l.bytes).sum();
        let why = format!("{} unfinished files of interrupted runs, {bytes} bytes", unfinished.len());
        note(reporter, TEMPORARY, why, "a prune deletes them once they are a day old");
    }
    Ok(packs)
}
