//! `snapshot completions`

use clap::CommandFactory;

use snapshot::error::Result;

use super::args::{Cli, Completions};
use super::output::Out;

/// Prints a completion script.
pub fn run(args: &Completions, out: &mut Out) -> Result<()> {
    // Into memory first: the generator panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(), "snapshot", &mut script);
    out.line(script.trim_ascii_end())
}

/// The command line without what is hidden, which the generator for bash would offer.
fn visible() -> clap::Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("snapshot")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments().cloned())
        .subcommands(shown)
}
