//! `snapshot completions`

use clap::CommandFactory;

use snapshot::error::Result;

use super::args::{Cli, Completions};
use super::output::Out;

/// Prints a completion script.
pub fn run(args: &Completions, out: &mut Out) -> Result<()> {
    // Into memory first: the generator panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "snapshot", &mut script);
    out.line(script.trim_ascii_end())
}
