//! The steps by which a target is changed, one call before each. They do nothing, except in tests, which kill the
//! process at every one of them: what is there then must be the old state or the new one.

/// Something on the disk is about to change.
#[cfg(not(test))]
pub(super) fn step() {}

#[cfg(test)]
pub use tests::{kill_at, step};

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Steps until the end; so many that it never comes unless a test asks for it.
    static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

    /// Kills this process at the step with this number, counted from 0.
    pub fn kill_at(step: u64) {
        LEFT.store(step, Ordering::SeqCst);
    }

    /// Counts a step, or dies.
    pub fn step() {
        let counted = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u64::MAX => Some(left),
            _ => left.checked_sub(1),
        });
        if counted.is_err() {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::park();
        }
    }
}
