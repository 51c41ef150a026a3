//! `snapshot check --restore-drill`: whole snapshots are restored and checked, for proof that they can be. What restores
//! is the job `restore` with all its verifying; here is where to, what is made of its problems, and what is recorded.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use snapshot::PROGRAM;
use snapshot::clock;
use snapshot::error::{Error, Result};
use snapshot::format::mark::{Proof, ProofKind};
use snapshot::job::restore::{self, Options, Summary};
use snapshot::repo::{Filter, MarkNote, Repository, Selected};
use snapshot::report::{Problem, Severity};
use snapshot::source::owners::Ownership;
use snapshot::source::scratch::Scratch;

use super::context::Context;
use super::output::{count, size};

/// What came of the drill with one snapshot.
pub struct Outcome {
    selected: Selected,
    /// What was restored; nothing if that ended too early to tell.
    restored: Summary,
    /// Whether all of it was as it must be, which is recorded then.
    proven: bool,
    seconds: f64,
}

/// Restores the snapshots that are named, or the newest of each source, one after the other, each to a scratch directory
/// below `folder` which is removed afterwards. The index is loaded.
///
/// # Errors
/// [`Error::Refused`] where there is too little space, [`Error::Usage`] for a part of a snapshot, [`Error::Interrupted`],
/// and when the scratch directory can't be written. Damage is no error: it is reported.
pub fn run(context: &Context, repo: &Repository, names: &[String], folder: &Path) -> Result<Vec<Outcome>> {
    let mut chosen = Vec::new();
    for name in names {
        let selected = repo.select(name, &Filter::default(), &context.reporter)?;
        if !selected.sub_path.is_empty() {
            return Err(Error::Usage(format!("a drill restores whole snapshots, and {name} names a part of one")));
        }
        chosen.push(selected);
    }
    if names.is_empty() {
        let newest = Filter { latest: Some(1), ..Filter::default() }.apply(repo.read_snapshots()?.0);
        chosen.extend(newest.into_iter().map(|named| Selected { named, sub_path: Vec::new() }));
    }
    chosen.into_iter().map(|selected| drill(context, repo, selected, folder)).collect()
}

fn drill(context: &Context, repo: &Repository, mut selected: Selected, folder: &Path) -> Result<Outcome> {
    let started = Instant::now();
    let scratch = Scratch::new(folder)?;
    let (needed, free) = (selected.named.snapshot.counts.bytes, scratch.free_bytes()?);
    if free < needed {
        return Err(Error::refused(
            format!(
                "restoring snapshot {} takes {}, and {} has {} left",
                selected.named.id.short(),
                size(needed),
                folder.display(),
                size(free)
            ),
            "name a directory on a larger disk with --scratch",
        ));
    }
    let target = scratch.path().join("target");
    // Nothing there needs to belong to anybody else.
    let options = Options { target: target.clone(), verify: true, ownership: Ownership::None, ..Options::default() };
    let reporter = context.collecting_reporter();
    let done = restore::run(repo, &selected, &options, &reporter);
    let mut damaged = tell(context, &selected, &target, reporter.problems());
    let restored = match done {
        Ok(summary) => summary,
        Err(error) => {
            let error = repo.only_this_object(error)?;
            let hint = error.hint().map(str::to_owned);
            report(context, Severity::Damage, name(&selected), format!("it can't be restored: {error}"), hint);
            damaged = true;
            Summary::default()
        }
    };
    scratch.remove()?;
    if !damaged {
        let proof = Proof { time: clock::now(), program: PROGRAM.to_owned(), kind: ProofKind::Drill };
        repo.put_mark(&mut selected.named, &MarkNote { proof: Some(proof), ..MarkNote::default() })?;
    }
    Ok(Outcome { selected, restored, proven: !damaged, seconds: started.elapsed().as_secs_f64() })
}

/// Reports a restore's problems as a check does, and says whether one of them is damage.
fn tell(context: &Context, selected: &Selected, target: &Path, problems: Vec<Problem>) -> bool {
    let mut damaged = false;
    for problem in problems {
        let Problem { severity, what, why, hint } = problem;
        let severity = if severity == Severity::Restore { Severity::Damage } else { severity };
        damaged |= severity == Severity::Damage;
        let inside = Path::new(&what).strip_prefix(target).ok().filter(|path| !path.as_os_str().is_empty());
        let what = inside.map_or(what.clone(), |path| format!("{} in {}", path.display(), name(selected)));
        report(context, severity, what, format!("restore drill: {why}"), hint);
    }
    damaged
}

fn report(context: &Context, severity: Severity, what: String, why: String, hint: Option<String>) {
    context.reporter.problem(Problem { severity, what, why, hint });
}

fn name(selected: &Selected) -> String {
    format!("snapshot {}", selected.named.id.short())
}

/// A line for people.
pub fn to_text(outcome: &Outcome) -> String {
    let Outcome { selected, restored, proven, seconds } = outcome;
    let snapshot = &selected.named.snapshot;
    format!(
        "{}: {} of {}:{}: {}, {}, {} restored and checked in {seconds:.1} s",
        if *proven { "proven" } else { "not proven" },
        name(selected),
        snapshot.host,
        snapshot.source,
        count(restored.files, "file", "files"),
        count(restored.databases, "database", "databases"),
        size(restored.bytes),
    )
}

/// The same for programs.
pub fn to_json(outcome: &Outcome) -> Value {
    let Outcome { selected, restored, proven, seconds } = outcome;
    json!({
        "snapshot_id": selected.named.id.to_string(),
        "proven": proven,
        "files": restored.files,
        "databases": restored.databases,
        "bytes": restored.bytes,
        "verified_files": restored.verified_files,
        "verified_databases": restored.verified_databases,
        "seconds": seconds,
    })
}
