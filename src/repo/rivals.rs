//! Two machines that make the same repository at once, on a server that takes a conditional put and ignores the
//! condition, as some do.
//!
//! Each puts its key slot and then lists the slots, so at least one of the two sees the other. Whoever sees another one
//! waits for its config before putting its own; of two that wait, the one with the higher slot waits twice as long. A
//! slot that a killed init left behind costs that wait.

use std::time::Duration;

use super::Repository;
use crate::backend::{Backend, layout};
use crate::error::{Error, Result};

/// For how long a rival may take from its slot to its config.
const WAIT: Duration = Duration::from_secs(10);
/// A slot that is so much older than the own one, in seconds, has no init behind it that still runs.
const OLD_SECS: i64 = 3600;

impl Repository {
    /// Returns when nobody else is about to put a config; `own` is the path of the slot just stored.
    ///
    /// # Errors
    /// [`Error::Exists`] if somebody did.
    pub(super) fn outwait_rivals(backend: &dyn Backend, own: &str) -> Result<()> {
        if backend.is_remote() { outwait(backend, own, WAIT) } else { Ok(()) }
    }
}

fn outwait(backend: &dyn Backend, own: &str, wait: Duration) -> Result<()> {
    let slots = backend.list(layout::KEYS)?;
    let since = slots.iter().find(|slot| slot.path == own).map_or(i64::MIN, |slot| slot.modified.secs - OLD_SECS);
    let rivals: Vec<_> = slots.iter().filter(|slot| slot.path != own && slot.modified.secs >= since).collect();
    let rounds = match rivals.iter().any(|rival| rival.path.as_str() < own) {
        _ if rivals.is_empty() => 0,
        true => 2,
        false => 1,
    };
    for _ in 0..rounds {
        std::thread::sleep(wait);
        if Repository::exists(backend)? {
            backend.delete(&[own.to_owned()])?;
            return Err(Error::Exists { at: backend.describe(), what: "a repository" });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;
    use crate::format::cbor::Time;

    fn store(slots: &[&str]) -> Memory {
        let memory = Memory::at(Time { secs: 1_000_000, nanos: 0 });
        slots.iter().for_each(|slot| memory.put(slot, vec![1]).unwrap());
        memory
    }

    #[test]
    fn who_sees_another_waits_for_its_config() {
        let wait = Duration::from_millis(200);
        for (own, other) in [("keys/a", "keys/b"), ("keys/b", "keys/a")] {
            let memory = store(&[own, other]);
            let done = std::thread::scope(|scope| {
                scope.spawn(|| memory.put(layout::CONFIG, vec![1]).unwrap());
                outwait(&memory, own, wait)
            });
            assert!(matches!(done, Err(Error::Exists { .. })), "{done:?}");
            assert!(memory.get(own, 9).is_err(), "the slot opens nothing and is gone");
        }
    }

    #[test]
    fn who_is_alone_or_left_over_keeps_nobody() {
        outwait(&store(&["keys/a"]), "keys/a", Duration::MAX).unwrap();
        let memory = store(&["keys/old"]);
        memory.advance(OLD_SECS + 1);
        memory.put("keys/a", vec![1]).unwrap();
        outwait(&memory, "keys/a", Duration::MAX).unwrap();
        // One that was killed just now.
        outwait(&store(&["keys/a", "keys/b"]), "keys/b", Duration::from_millis(1)).unwrap();
    }
}
