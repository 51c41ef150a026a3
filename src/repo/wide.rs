//! Doing the same with many objects at once: as many as there are cores, or, where each waits for a server's answer, as
//! many as the store answers best.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::Repository;
use crate::backend::at_once;
use crate::error::Result;

/// Has everything that is done by many threads done by so many, or by one for each core if those are more: a few more
/// threads than cores do no harm, and most of them wait for a server. Only the first call in a process, before any such
/// work, has an effect.
pub fn widen(threads: usize) {
    let threads = threads.max(std::thread::available_parallelism().map_or(1, usize::from));
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

impl Repository {
    /// Does something with each, several at a time, until one fails.
    ///
    /// # Errors
    /// The first one.
    pub fn for_each<T: Sync>(&self, items: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
        if self.backend.concurrency() <= 1 {
            return items.par_iter().try_for_each(&act);
        }
        let failed = AtomicBool::new(false);
        let act = |item: &T| {
            // What comes after a failure is left out.
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            act(item).inspect_err(|_| failed.store(true, Ordering::Relaxed))
        };
        at_once(&*self.backend, items, act).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use crate::backend::Faulty;
    use crate::error::Error;
    use crate::repo::Repository;
    use crate::repo::testing::World;

    fn repo(concurrency: usize) -> Arc<Repository> {
        let world = World::new();
        world.reopen_through(Arc::new(Faulty::recorder(world.memory.clone()).wide(concurrency)))
    }

    #[test]
    fn each_is_dealt_with_once_and_the_first_failure_ends_it() {
        let items: Vec<u32> = (0..100).collect();
        for concurrency in [1, 8] {
            let repo = repo(concurrency);
            let seen = Mutex::new(Vec::new());
            let note = |n: &u32| {
                seen.lock().unwrap().push(*n);
                Ok(())
            };
            repo.for_each(&items, note).unwrap();
            let seen = seen.into_inner().unwrap();
            assert_eq!(seen.len(), 100);
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 100);
            let fails = |n: &u32| if *n == 3 { Err(Error::Interrupted) } else { Ok(()) };
            assert!(matches!(repo.for_each(&items, fails), Err(Error::Interrupted)));
        }
    }

    #[test]
    fn a_store_that_answers_slowly_is_asked_many_things_at_once() {
        let repo = repo(8);
        // Each waits for the seven others: with fewer threads this would never end.
        let barrier = std::sync::Barrier::new(8);
        repo.for_each(&[(); 16], |()| {
            barrier.wait();
            Ok(())
        })
        .unwrap();
    }
}
