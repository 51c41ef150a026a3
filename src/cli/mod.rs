//! The command line: parse → run → exit status. The only user of the terminal, the environment and the user's
//! directories; thin, since what the commands do is in [`snapshot::job`].

mod args;
mod cat;
mod check;
mod completions;
mod context;
mod copy;
mod create;
mod diff;
mod drill;
mod dump;
mod env;
mod find;
mod forget;
mod guard;
mod help;
mod init;
mod keep;
mod key;
mod list;
mod load;
mod location;
mod ls;
mod make;
mod network;
mod nodes;
mod output;
mod parse;
mod progress;
mod prune;
mod references;
mod repair;
mod restore;
mod secrets;
mod seen;
mod stats;
mod storage;
mod tag;
mod unlock;

use std::process::ExitCode;

use clap::Parser;

use snapshot::error::Result;
use snapshot::report::Severity;

use args::{Cli, Command};
use context::Context;
use output::Out;

/// What a problem of some severity adds to the exit status of a command that did its job.
type Weigh = fn(Severity) -> u8;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let context = Context::new(cli.global);
    let weigh = weigh(&cli.command);
    let display = context.display.clone();
    let mut out = Out::new(move || display.finish());
    let done = context::catch_signals().and_then(|()| run(&context, cli.command, &mut out)).and_then(|()| out.finish());
    context.tell_usage();
    context.tell_notes();
    context.display.finish();
    match done {
        // Whoever read the result has seen enough: not an error.
        Err(error) if !out.is_closed() => {
            context.display.error(&error);
            ExitCode::from(error.status())
        }
        _ if context.status().is_some() => ExitCode::from(context.status().unwrap_or_default()),
        _ => ExitCode::from(context.reporter.problems().iter().map(|p| weigh(p.severity)).max().unwrap_or(0)),
    }
}

fn run(context: &Context, command: Command, out: &mut Out) -> Result<()> {
    match command {
        Command::Init(args) => init::run(context, &args, out),
        Command::Create(args) => create::run(context, *args, out),
        Command::List(args) => list::run(context, args, out),
        Command::Ls(args) => ls::run(context, args, out),
        Command::Find(args) => find::run(context, args, out),
        Command::Diff(args) => diff::run(context, args, out),
        Command::Dump(args) => dump::run(context, args, out),
        Command::Restore(args) => restore::run(context, *args, out),
        Command::Guard(args) => guard::run(context, *args),
        Command::Tag(args) => tag::run(context, args, out),
        Command::Forget(args) => forget::run(context, &args, out),
        Command::UndoForget(args) => forget::undo(context, &args, out),
        Command::Prune(args) => prune::run(context, args, out),
        Command::Check(args) => check::run(context, &args, out),
        Command::Stats(args) => stats::run(context, args, out),
        Command::Cat(args) => cat::run(context, &args, out),
        Command::Repair(args) => repair::run(context, &args, out),
        Command::Key(args) => key::run(context, &args, out),
        Command::Copy(args) => copy::run(context, *args, out),
        Command::Unlock(args) => unlock::run(context, &args, out),
        Command::Completions(args) => completions::run(&args, out),
    }
}

/// Damage is status 4 for `check` alone, and so is a snapshot that this machine has seen and that is gone. What only
/// shows or mends says with 1 that something could not be read, and so does a prune that forgets nothing for that
/// reason; a command that did its job beside a damaged object elsewhere has warned of it and ends with 0.
fn weigh(command: &Command) -> Weigh {
    match command {
        Command::Create(_) => |s| if s == Severity::Source { 3 } else { 0 },
        Command::Restore(_) => |s| if s == Severity::Restore { 5 } else { 0 },
        Command::Check(_) => |s| if s == Severity::Note { 0 } else { 4 },
        Command::List(_)
        | Command::Ls(_)
        | Command::Find(_)
        | Command::Diff(_)
        | Command::Stats(_)
        | Command::Tag(_)
        | Command::Prune(_)
        | Command::Repair(_) => |s| if s == Severity::Damage { 1 } else { 0 },
        _ => |_| 0,
    }
}

/// Shows help, the version, or what is wrong with the command line.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|arg| arg == "--json");
    if json && error.use_stderr() {
        // The sentence ends before the first empty line; usage and tips follow.
        let text = error.to_string();
        let sentence: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let message = sentence.join(" ");
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        eprint_line(&progress::error_line("usage", message, Some("see `snapshot --help`")));
    } else {
        // Nobody is left to be told if this fails.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn status(line: &[&str], severity: Severity) -> u8 {
        weigh(&Cli::try_parse_from(line).unwrap().command)(severity)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn severities_become_statuses() {
        let all = [Severity::Note, Severity::Warning, Severity::Source, Severity::Damage, Severity::Restore];
        for (line, expected) in [
            (&["snapshot", "create", "a"][..], [0, 0, 3, 0, 0]),
            (&["snapshot", "check"], [0, 4, 4, 4, 4]),
            (&["snapshot", "restore", "latest", "--target", "t"], [0, 0, 0, 0, 5]),
            (&["snapshot", "list"], [0, 0, 0, 1, 0]),
            (&["snapshot", "prune"], [0, 0, 0, 1, 0]),
            (&["snapshot", "forget", "ab"], [0, 0, 0, 0, 0]),
            (&["snapshot", "find", "x"], [0, 0, 0, 1, 0]),
            (&["snapshot", "diff", "latest~1", "latest"], [0, 0, 0, 1, 0]),
            (&["snapshot", "stats"], [0, 0, 0, 1, 0]),
        ] {
            assert_eq!(all.map(|severity| status(line, severity)), expected, "{line:?}");
        }
    }
}
