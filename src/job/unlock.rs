//! Clearing away sessions that ended without saying so: what they stored is taken over first.
//!
//! Nothing ever waits for this: `create` does the same for sessions that are certainly dead, and `prune` too. It is for
//! those of machines that are gone, which count as running for a day.

use std::sync::Arc;

use crate::error::Result;
use crate::format::control::SessionKind;
use crate::repo::{Repository, SessionGuard};
use crate::report::Reporter;

/// What was done; sessions in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Sessions that were cleared away.
    pub removed: Vec<String>,
    /// Sessions that are running, or may be.
    pub running: Vec<String>,
}

/// Clears dead sessions away; with `all` the others too. One that is running after all fails before it commits.
///
/// # Errors
/// When the store fails.
pub fn run(repo: &Arc<Repository>, all: bool, reporter: &Reporter) -> Result<Summary> {
    let session = SessionGuard::start(repo, SessionKind::Write)?;
    repo.load_index_to_write(session.begun(), reporter)?;
    let before = session.others(session.begun());
    session.adopt_leftovers(reporter)?;
    let left = session.others(&session.look()?);
    let mut summary = Summary::default();
    for other in before {
        let is_left = left.iter().any(|s| s.name == other.name);
        if is_left && all {
            session.adopt(reporter)?;
            repo.reap(&other)?;
        }
        if is_left && !all { &mut summary.running } else { &mut summary.removed }.push(other.describe());
    }
    session.end()?;
    Ok(summary)
}
