//! `snapshot init`

use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use snapshot::crypto::KdfCost;
use snapshot::error::{Error, Result};

use super::args::{Init, Kdf};
use super::context::Context;
use super::make::make;
use super::output::{Out, clean, document, put_path};

/// Makes a repository.
pub fn run(context: &Context, args: &Init, out: &mut Out) -> Result<()> {
    let made = make(context, cost(&args.kdf)?, false)?;
    let id = made.session.repo.config().id();
    if context.global.json {
        let mut object = document(json!({"repository_id": id, "repository": made.at}));
        if let Some(path) = &made.key_file {
            put_path(&mut object, "key_file", path.as_os_str().as_bytes());
        }
        return out.json(&object.into());
    }
    if context.global.quiet {
        return Ok(());
    }
    out.line(format!("made repository {} in {}", id.get(..8).unwrap_or(&id), clean(&made.at)))
}

/// The cost of hashing a password, checked.
///
/// # Errors
/// [`Error::Usage`] if it is out of bounds.
pub fn cost(kdf: &Kdf) -> Result<KdfCost> {
    let mut cost = KdfCost::default();
    cost.memory_kib = kdf.kdf_memory.unwrap_or(cost.memory_kib);
    cost.passes = kdf.kdf_time.unwrap_or(cost.passes);
    if cost.is_acceptable() {
        Ok(cost)
    } else {
        Err(Error::Usage("--kdf-memory may be 19 MiB to 4 GiB, and --kdf-time 1 to 64".into()))
    }
}
