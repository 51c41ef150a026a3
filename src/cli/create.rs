//! `snapshot create`

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use snapshot::error::{Error, Result};
use snapshot::format::snapshot::{Counts, Snapshot};
use snapshot::job::check::references::Checked;
use snapshot::job::create::{self, Options, Stdin, Summary};
use snapshot::report::Severity;

use super::args::Create;
use super::context::{Context, Session};
use super::make::open_or_make;
use super::output::{Out, count, document, rfc3339, size};
use super::parse;
use super::references;
use super::seen::Seen;
use super::storage;

/// Takes a snapshot, and says what it is.
pub fn run(context: &Context, args: Create, out: &mut Out) -> Result<()> {
    let (checks_references, reckons) = (args.check_references, args.cost);
    let (session, summary) = take(context, args)?;
    let mut checked = Vec::new();
    if let (true, Some(id)) = (checks_references, summary.id) {
        // What was just stored is in an index file, and not in memory.
        session.repo.load_index(&context.reporter)?;
        let scratch = context.scratch_dir()?;
        checked = references::run(context, &session.repo, &[id.to_string()], &scratch, Severity::Source)?;
    }
    let cost = reckons.then(|| storage::estimate(&summary, context.usage().unwrap_or_default()));
    if context.global.json {
        let mut document = context.with_usage(to_json(&summary, &checked));
        if let Some(cost) = cost {
            document["cost"] = storage::to_json(&cost);
        }
        return out.json(&document);
    }
    if context.global.quiet && !reckons {
        return Ok(());
    }
    out.line(to_text(&summary))?;
    if let Some(cost) = cost {
        out.line(storage::estimate_text(&cost, summary.snapshot.counts.bytes_stored))?;
    }
    checked.iter().try_for_each(|checked| out.line(references::to_text(checked)))
}

/// Takes a snapshot; makes the default repository if it isn't there and nothing else was named.
///
/// # Errors
/// When there is nothing to save, or storing fails.
pub fn take(context: &Context, args: Create) -> Result<(Session, Summary)> {
    let options = options(context, args)?;
    // A dry run makes nothing, no repository either.
    let session = if options.dry_run { context.open()? } else { open_or_make(context)? };
    let summary = create::run(&session.repo, &options, &context.reporter)?;
    let mut seen = Seen::compare_with(context, &session.repo, &summary.before)?;
    if let Summary { id: Some(id), snapshot, .. } = &summary {
        seen.add(&snapshot.host, &snapshot.source, snapshot.generation, *id);
    }
    Ok((session, summary))
}

fn options(context: &Context, args: Create) -> Result<Options> {
    let (paths, stdin) = sources(args.paths, args.stdin, args.stdin_from_command, args.stdin_name)?;
    Ok(Options {
        paths,
        named: None,
        stdin,
        postgres: args.postgres.iter().map(|url| parse::postgres(url)).collect::<Result<_>>()?,
        host: args.host,
        source: args.source,
        tags: args.tags,
        pin: args.pin,
        time: args.time,
        excludes: args.excludes,
        exclude_files: args.exclude_files,
        exclude_caches: args.exclude_caches,
        one_file_system: args.one_file_system,
        preset: args.preset.unwrap_or_default(),
        dry_run: args.dry_run,
        level: args.compression,
        spool_dir: context.scratch_dir()?,
        max_lock: Duration::from_secs(args.max_lock),
    })
}

/// The words after the options are paths, or the command whose output is wanted.
fn sources(
    words: Vec<OsString>,
    stdin: bool,
    from_command: bool,
    name: Option<OsString>,
) -> Result<(Vec<PathBuf>, Option<Stdin>)> {
    if !stdin && !from_command {
        return match name {
            Some(_) => Err(Error::Usage("--stdin-name needs --stdin or --stdin-from-command".into())),
            None => Ok((words.into_iter().map(PathBuf::from).collect(), None)),
        };
    }
    let name = name.map_or_else(|| b"stdin".to_vec(), OsStringExt::into_vec);
    Ok((Vec::new(), Some(Stdin { name, command: from_command.then_some(words) })))
}

/// The counts of a snapshot, for programs.
pub fn counts_json(counts: &Counts) -> Value {
    json!({
        "files": counts.files,
        "directories": counts.directories,
        "databases": counts.databases,
        "others": counts.others,
        "bytes": counts.bytes,
        "bytes_read": counts.bytes_read,
        "bytes_new": counts.bytes_new,
        "bytes_stored": counts.bytes_stored,
        "seconds": seconds(counts),
        "skipped": counts.skipped,
        "unverified": counts.unverified,
    })
}

fn seconds(counts: &Counts) -> f64 {
    counts.millis as f64 / 1000.0
}

fn to_json(Summary { id, snapshot, .. }: &Summary, checked: &[Checked]) -> Value {
    let mut object = document(counts_json(&snapshot.counts));
    object.extend(document(json!({
        "snapshot_id": id.map(|id| id.to_string()),
        "generation": snapshot.generation,
        "host": snapshot.host,
        "source": snapshot.source,
        "time": rfc3339(snapshot.time),
        "preset": snapshot.preset,
        "references": checked.iter().map(references::to_json).collect::<Vec<_>>(),
        "dry_run": id.is_none(),
    })));
    object.into()
}

/// What a snapshot holds and cost, for people.
pub fn to_text(Summary { id, snapshot, .. }: &Summary) -> String {
    let Snapshot { generation, counts, .. } = snapshot;
    let name = id.map_or_else(|| "dry run, nothing stored".to_owned(), |id| format!("snapshot {}", id.short()));
    let mut holds = vec![count(counts.files, "file", "files")];
    if counts.databases > 0 {
        holds.push(count(counts.databases, "database", "databases"));
    }
    holds.push(size(counts.bytes));
    let mut text = format!(
        "{name}  generation {generation}  {}; read {}, new {}, stored {} in {:.1} s",
        holds.join(", "),
        size(counts.bytes_read),
        size(counts.bytes_new),
        size(counts.bytes_stored),
        seconds(counts),
    );
    if counts.unverified > 0 {
        text += &format!("; {} unverified", count(counts.unverified, "database", "databases"));
    }
    if counts.skipped > 0 {
        text += &format!("; {} not read as it should be", count(counts.skipped, "source", "sources"));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn parse(line: &[&str]) -> Result<(Vec<PathBuf>, Option<Stdin>)> {
        let line = ["snapshot", "create"].iter().chain(line);
        match Cli::try_parse_from(line).map_err(|e| Error::Usage(e.to_string()))?.command {
            Command::Create(args) => sources(args.paths, args.stdin, args.stdin_from_command, args.stdin_name),
            _ => panic!(),
        }
    }

    #[test]
    fn words_are_paths_or_a_command() {
        assert_eq!(parse(&["a", "b"]).unwrap().0, [PathBuf::from("a"), PathBuf::from("b")]);
        let (paths, stdin) =
            parse(&["--stdin-from-command", "--stdin-name", "x", "--", "dump", "-F", "--all"]).unwrap();
        let stdin = stdin.unwrap();
        assert!(paths.is_empty());
        assert_eq!(stdin.name, b"x");
        assert_eq!(stdin.command.unwrap(), ["dump", "-F", "--all"]);
        let stdin = parse(&["--stdin"]).unwrap().1.unwrap();
        assert_eq!((stdin.name, stdin.command), (b"stdin".to_vec(), None));
    }

    #[test]
    fn wrong_words_are_refused() {
        for bad in [
            &[][..],
            &["--stdin", "a"],
            &["--stdin-from-command"],
            &["--stdin", "--stdin-from-command", "--", "a"],
            &["--stdin-name", "x", "a"],
            &["--compression", "20", "a"],
            &["--time", "yesterday", "a"],
        ] {
            assert_eq!(parse(bad).err().map(|e| e.status()), Some(2), "{bad:?}");
        }
    }
}
