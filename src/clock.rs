//! The clock, in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::cbor::Time;

/// Now, by this machine's clock.
pub fn now() -> Time {
    from_system(SystemTime::now())
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
