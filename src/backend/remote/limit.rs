//! Bandwidth limits: bytes are let through at an even rate, in slices small enough that the line is never full for long.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How far the plan may lie behind the clock, as after a pause: what was not used is not made up for.
const SLACK: Duration = Duration::from_millis(100);
/// Slices without a limit, in bytes.
const FREE_SLICE_BYTES: usize = 256 << 10;
/// Bounds of a slice under a limit, in bytes.
const MIN_SLICE_BYTES: u64 = 1 << 10;
const MAX_SLICE_BYTES: u64 = 64 << 10;
/// Slices a second that a limit is cut into.
const SLICES_A_SECOND: u64 = 20;

/// One direction of a line, shared by all that use it.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Bytes a second; `None`: as many as there may be.
    rate: Option<u64>,
    /// When the next slice may pass.
    next: Mutex<Instant>,
}

impl Limiter {
    pub fn new(bytes_a_second: Option<u64>) -> Self {
        Self { rate: bytes_a_second.map(|rate| rate.max(1)), next: Mutex::new(Instant::now()) }
    }

    /// How many bytes at most to ask for at a time.
    pub fn slice_bytes(&self) -> usize {
        match self.rate {
            None => FREE_SLICE_BYTES,
            Some(rate) => (rate / SLICES_A_SECOND).clamp(MIN_SLICE_BYTES, MAX_SLICE_BYTES) as usize,
        }
    }

    /// When these bytes may pass. Asking reserves them; `None`: now.
    pub fn reserve(&self, bytes: usize) -> Option<Instant> {
        let rate = self.rate?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = Instant::now().checked_sub(SLACK).unwrap_or(*next);
        let at = (*next).max(earliest);
        *next = at + Duration::from_secs_f64(bytes as f64 / rate as f64);
        Some(at)
    }

    /// Waits until these bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        if let Some(at) = self.reserve(bytes) {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_planned_at_the_rate_and_pauses_are_not_made_up_for() {
        let limiter = Limiter::new(Some(1000));
        let first = limiter.reserve(500).unwrap();
        let second = limiter.reserve(250).unwrap();
        let third = limiter.reserve(1).unwrap();
        assert_eq!((second - first, third - second), (Duration::from_millis(500), Duration::from_millis(250)));
        *limiter.next.lock().unwrap() = Instant::now() - Duration::from_secs(60);
        assert!(limiter.reserve(1).unwrap() + 2 * SLACK >= Instant::now());
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        assert_eq!(Limiter::new(None).reserve(1 << 30), None);
        assert_eq!(Limiter::new(Some(2 << 20)).slice_bytes(), 64 << 10);
        assert_eq!(Limiter::new(Some(100)).slice_bytes(), 1 << 10);
    }
}
