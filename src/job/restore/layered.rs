//! Files that are stored in layers: decoded piece by piece, in order, and proved as a whole by their hash.

use std::os::fd::OwnedFd;

use super::context::Context;
use super::write::{File, Layout, Part};
use crate::error::Result;
use crate::source::temporary::read_exact_at;

/// Read at a time, in bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a file; `None` if it is lost, which was reported.
///
/// # Errors
/// What ends the whole restore.
pub(super) fn write(context: &Context<'_>, part: Part) -> Result<Option<File>> {
    let stream = match context.repo.stream(&part.node) {
        Ok(stream) => stream,
        Err(e) => return context.lose(&part.path(), e).map(|()| None),
    };
    let layout = Layout::of(&part.node);
    let file = File::new(part, layout, stream.len());
    let mut at = 0;
    for piece in 0..stream.len() {
        context.reporter.check_interrupt()?;
        let written = context.repo.read_piece(&stream, piece).and_then(|bytes| {
            file.write(context, at, &bytes)?;
            at += bytes.len() as u64;
            Ok(())
        });
        if let Err(e) = written {
            file.lose(context, e)?;
            return Ok(None);
        }
    }
    Ok(Some(file))
}

/// Whether a local file has this BLAKE3.
pub(super) fn has_hash(context: &Context<'_>, file: &OwnedFd, wanted: &[u8]) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let size = stat.st_size.unsigned_abs();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < size && context.reporter.check_interrupt().is_ok() {
        let n = (size - at).min(BUFFER_BYTES as u64) as usize;
        let Some(part) = buffer.get_mut(..n) else { return false };
        if read_exact_at(file, part, at).is_err() {
            return false;
        }
        hasher.update(part);
        at += n as u64;
    }
    hasher.finalize().as_bytes()[..] == *wanted
}
