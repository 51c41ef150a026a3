//! `snapshot guard`: a snapshot, then a command, and if that fails the snapshot back.
//!
//! Standard output belongs to the command. What is said here goes to standard error.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde_json::json;

use snapshot::error::{Error, Result};
use snapshot::format::snapshot::Snapshot;
use snapshot::id::SnapshotId;
use snapshot::job::create::{PresetChoice, place_of};
use snapshot::job::restore::{self, LeftOut, Options};
use snapshot::repo::{Named, Selected};
use snapshot::report::Severity;

use super::args::{Create, Guard};
use super::context::{self, Context, Session};
use super::output::clean_path;
use super::{create, keep};

/// The snapshot could not be taken, or not whole: the command was not run.
const NOT_RUN: u8 = 125;
/// The command is there and can't be run.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;
/// The command failed, and not everything could be put back.
const NOT_PUT_BACK: u8 = 124;
/// It was interrupted.
const INTERRUPTED: u8 = 130;
const TAG: &str = "guard";

/// Something that is guarded.
struct Source {
    /// As it was given.
    path: PathBuf,
    /// Where it is in the snapshot.
    place: Vec<Vec<u8>>,
    /// Where it is restored: itself, or the directory that a file is in.
    target: PathBuf,
    is_directory: bool,
}

/// How the command ended.
enum Ended {
    Well,
    /// It failed, with this exit status of our own, in words.
    Badly(u8, String),
}

/// Runs a command, with a way back.
pub fn run(context: &Context, args: Guard) -> Result<()> {
    refuse_useless(&args.create)?;
    let left_out = LeftOut {
        patterns: args.create.excludes.clone(),
        files: args.create.exclude_files.clone(),
        caches: args.create.exclude_caches,
        root: PathBuf::new(),
    };
    let begun = sources(context, &args.create.paths, &left_out).and_then(|sources| {
        // What a preset leaves out would be missing from the snapshot, and so be deleted by a rollback.
        let preset = Some(PresetChoice::None);
        let create = Create { preset, tags: [&[TAG.to_owned()], &args.create.tags[..]].concat(), ..args.create };
        let (session, id, snapshot) = take(context, create, args.allow_incomplete)?;
        Ok((sources, session, id, snapshot))
    });
    let (sources, session, id, snapshot) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            context.display.error(&error);
            context.display.notice("the command was not run");
            context.end_with(NOT_RUN);
            return Ok(());
        }
    };
    say_way_back(context, &sources, id, &left_out);
    let (status, why) = match start(context, &args.command) {
        Ended::Well => {
            event(context, "done", id, &format!("the command is done; snapshot {} stays", id.short()));
            return Ok(());
        }
        Ended::Badly(status, why) => (status, why),
    };
    context.end_with(status);
    if !(args.rollback || asks(context, &why)) {
        event(context, "failed", id, &format!("{why}; nothing was put back"));
        say_way_back(context, &sources, id, &left_out);
        return Ok(());
    }
    context.display.notice(&format!("{why}; putting snapshot {} back", id.short()));
    let selected = Selected { named: Named::new(id, snapshot), sub_path: Vec::new() };
    if let Err(error) = put_back(context, &session, &selected, &sources, &left_out, !args.no_safety) {
        context.display.error(&error);
    } else if context.reporter.worst() < Some(Severity::Restore) {
        event(context, "rolled-back", id, &format!("everything is as it was in snapshot {}", id.short()));
        return Ok(());
    }
    context.end_with(NOT_PUT_BACK);
    event(context, "not-rolled-back", id, "not everything could be put back");
    say_way_back(context, &sources, id, &left_out);
    Ok(())
}

/// Options of `create` that make no snapshot of paths as they are now, or one that can't be put back.
fn refuse_useless(create: &Create) -> Result<()> {
    let is_from_elsewhere = create.stdin || create.stdin_from_command || !create.postgres.is_empty();
    if is_from_elsewhere || create.dry_run || create.check_references || create.preset.is_some() {
        let why = "guard takes a snapshot of paths, whole: it has no --dry-run, --stdin, --stdin-from-command, --postgres, \
                   --preset or --check-references";
        return Err(Error::Usage(why.into()));
    }
    Ok(())
}

/// Finds out what is guarded, and refuses what could not be put back.
fn sources(context: &Context, paths: &[OsString], left_out: &LeftOut) -> Result<Vec<Source>> {
    let source = |path: &OsString| {
        let path = PathBuf::from(path);
        let is_directory = path.metadata().map_err(|e| Error::file("read", &path, e))?.is_dir();
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let target = if is_directory { path.clone() } else { above.to_path_buf() };
        let source = Source { place: place_of(&path)?, path, target, is_directory };
        restore::check_target(&options(context, &source, left_out)?)?;
        Ok(source)
    };
    paths.iter().map(source).collect()
}

fn options(context: &Context, source: &Source, left_out: &LeftOut) -> Result<Options> {
    let root = std::path::absolute(&source.path).map_err(|e| Error::file("find", &source.path, e))?;
    Ok(Options {
        in_place: true,
        delete: source.is_directory,
        exact: true,
        verify_content: true,
        left_out: LeftOut { root, ..left_out.clone() },
        ..super::restore::place_options(context, source.target.clone())?
    })
}

/// Takes the snapshot.
fn take(context: &Context, create: Create, allows_incomplete: bool) -> Result<(Session, SnapshotId, Snapshot)> {
    let (session, summary) = create::take(context, create)?;
    let text = create::to_text(&summary);
    let id = summary.id.ok_or_else(|| Error::refused("no snapshot was made", "report this"))?;
    event(context, "snapshot", id, &text);
    let is_whole = context.reporter.worst() < Some(Severity::Source) && summary.snapshot.counts.skipped == 0;
    if !is_whole && !allows_incomplete {
        return Err(Error::refused(
            format!("snapshot {} is incomplete: some of the source could not be read as it should", id.short()),
            "see the warnings above; --allow-incomplete runs the command all the same",
        ));
    }
    Ok((session, id, summary.snapshot))
}

/// Says something that happened, for people or for programs.
fn event(context: &Context, what: &str, id: SnapshotId, text: &str) {
    context
        .display
        .event(text, &json!({"type": "guard", "event": what, "snapshot_id": id.to_string(), "message": text}));
}

/// Says how the snapshot is restored, should this process not come to it.
fn say_way_back(context: &Context, sources: &[Source], id: SnapshotId, left_out: &LeftOut) {
    let is_whole = left_out.patterns.is_empty() && left_out.files.is_empty() && !left_out.caches;
    for source in sources {
        let place = clean_path(&source.place.join(&b'/'));
        let target = std::path::absolute(&source.target).unwrap_or_else(|_| source.target.clone());
        // What was left out is not in the snapshot, and must not be deleted for that.
        let how = if source.is_directory && is_whole { "--delete" } else { "--in-place" };
        let target = clean_path(target.as_os_str().as_encoded_bytes());
        context.display.remark(&format!("to go back: snapshot restore {}:{place} --target {target} {how}", id.short()));
    }
}

/// Runs the command to its end.
fn start(context: &Context, command: &[OsString]) -> Ended {
    let Some((program, arguments)) = command.split_first() else {
        return Ended::Badly(NOT_FOUND, "no command was given".into());
    };
    let name = program.to_string_lossy().into_owned();
    context.display.finish();
    let (waited, interrupted) = context::with_signals_to(|| Command::new(program).args(arguments).spawn());
    match waited {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ended::Badly(NOT_FOUND, format!("there is no command {name}")),
        Err(e) => Ended::Badly(NOT_EXECUTABLE, format!("{name} can't be run: {e}")),
        Ok(_) if interrupted => Ended::Badly(INTERRUPTED, format!("{name} was interrupted")),
        Ok(status) => judge(&name, status),
    }
}

fn judge(name: &str, status: ExitStatus) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ended::Well,
        (Some(code), _) => {
            Ended::Badly(u8::try_from(code).unwrap_or(u8::MAX), format!("{name} failed with status {code}"))
        }
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            Ended::Badly(u8::try_from(128 + signal).unwrap_or(u8::MAX), format!("{name} was ended by signal {signal}"))
        }
    }
}

/// Asks whether to go back, where there is somebody to ask.
fn asks(context: &Context, why: &str) -> bool {
    if !(io::stdin().is_terminal() && context.display.is_personal()) {
        return false;
    }
    let _ = write!(io::stderr(), "{why}. Put everything back as it was before? [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Restores everything, over what is there.
fn put_back(
    context: &Context,
    session: &Session,
    selected: &Selected,
    sources: &[Source],
    left_out: &LeftOut,
    keeps: bool,
) -> Result<()> {
    // The command may have taken so long that the packs are others by now.
    session.repo.load_index(&context.reporter)?;
    for source in sources {
        let options = options(context, source, left_out)?;
        let selected = Selected { sub_path: source.place.clone(), ..selected.clone() };
        let keep = |before: &restore::Before| keep::take(context, &session.repo, &options.target, before);
        let keep: Option<&restore::Keep<'_>> = if keeps { Some(&keep) } else { None };
        let summary = restore::run_keeping(&session.repo, &selected, &options, keep, &context.reporter)?;
        context.display.remark(&super::restore::to_text(&selected, &options, &summary, context.display.seconds()));
    }
    Ok(())
}
