//! The clock, in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::cbor::Time;

/// Now, by this machine's clock.
pub fn now() -> Time {
    let now = from_system(SystemTime::now());
    #[cfg(test)]
    let now = Time { secs: now.secs + skewed::secs(), ..now };
    now
}

/// A system time as stored.
pub fn from_system(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { secs: after.as_secs().cast_signed(), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            let nanos = (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000;
            Time { secs: -before.as_secs().cast_signed() - borrow, nanos }
        }
    }
}

/// Threads whose clock is wrong.
#[cfg(test)]
pub(crate) mod skewed {
    use std::cell::Cell;

    thread_local!(static SECS: Cell<i64> = const { Cell::new(0) });

    pub(super) fn secs() -> i64 {
        SECS.get()
    }

    /// From now on this thread's clock is so many seconds ahead.
    pub(crate) fn set(secs: i64) {
        SECS.set(secs);
    }
}
