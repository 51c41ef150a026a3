//! Several requests at a time: over a network, most of the time of each is waiting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Backend;

/// Does something for each, as many at a time as the store answers best, or as there are processors, and returns what
/// came of each, in order.
pub fn at_once<T: Sync, R: Send>(backend: &dyn Backend, all: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    so_many_at_once(backend.concurrency().max(processors), all, act)
}

/// Does something for each, so many at a time, and returns what came of each, in order.
pub fn so_many_at_once<T: Sync, R: Send>(most: usize, all: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(all.len())));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(number) else { return };
            let out = act(one);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, out));
        }
    };
    std::thread::scope(|scope| {
        let helpers = most.min(all.len()).saturating_sub(1);
        (0..helpers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, out)| out).collect()
}

/// Does two things, at the same time where each waits for a server.
pub fn both<A, B: Send>(backend: &dyn Backend, one: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> (A, B) {
    if backend.concurrency() <= 1 {
        return (one(), other());
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;

    #[test]
    fn everything_is_done_once_and_in_order() {
        let all: Vec<u32> = (0..100).collect();
        let doubled = at_once(&Memory::default(), &all, |n| n * 2);
        assert_eq!(doubled, (0..100).map(|n| n * 2).collect::<Vec<_>>());
        assert!(at_once(&Memory::default(), &[0; 0], |n| *n).is_empty());
    }
}
