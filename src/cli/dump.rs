//! `snapshot dump`

use std::os::unix::ffi::OsStrExt;

use snapshot::error::Result;
use snapshot::job::look;

use super::args::Dump;
use super::context::Context;
use super::output::Out;

/// Writes one file or database to standard output.
pub fn run(context: &Context, args: Dump, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let selected = session.repo.select(&args.snapshot, &args.filters.into(), &context.reporter)?;
    look::dump(&session.repo, &selected, args.path.as_bytes(), out, &context.reporter)?;
    Ok(())
}
