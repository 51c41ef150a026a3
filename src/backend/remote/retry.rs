//! Asking again: whole calls, with growing pauses, until they succeed or it makes no sense any more.
//!
//! Every call that comes here may be made twice without harm. Timeouts lie below this, in the single attempts.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::failure::{Failure, Remedy};
use super::meter::Meter;
use crate::error::{Error, Result};

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// For how long a call is repeated, from its first failure on: a network that is gone for some minutes comes back.
    patience: Duration,
    /// The first pause; each is twice the one before, and up to that much longer by chance.
    first: Duration,
    /// The longest pause, less chance.
    longest: Duration,
    /// After this long a wait is told even to those who did not ask for details.
    quiet: Duration,
}

const PACE: Pace = Pace {
    patience: Duration::from_secs(15 * 60),
    first: Duration::from_millis(250),
    longest: Duration::from_secs(20),
    quiet: Duration::from_secs(10),
};
/// How often a wait looks whether the user wants an end.
const LOOK: Duration = Duration::from_millis(100);
/// How long a call may go on after the user wants an end: what can be put in order is.
const GRACE: Duration = Duration::from_secs(5);

/// How much something matters to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// For those who asked for details.
    Detail,
    /// For everyone.
    Notice,
}

/// Hears of something.
pub type Tell = dyn Fn(Weight, &str) + Send + Sync;

/// What surrounds the calls of a store: whether the user wants an end, and who hears of waits.
pub struct Surroundings {
    /// Becomes true when the user wants an end.
    pub interrupted: &'static AtomicBool,
    /// Hears of failures that are waited out.
    pub tell: Box<Tell>,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for Surroundings {
    fn default() -> Self {
        Self { interrupted: &NEVER, tell: Box::new(|_, _| {}) }
    }
}

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    /// "read", "write", "list", "delete".
    pub action: &'static str,
    /// Object or folder, by its path in the repository.
    pub object: &'a str,
    /// The server and what lies there, for people.
    pub at: &'a str,
}

impl Call<'_> {
    fn fail(&self, failure: Failure) -> Error {
        failure.into_error(self.action, self.object, self.at)
    }
}

/// Repeats calls.
pub(super) struct Patience {
    /// Whether the server ever answered.
    reached: AtomicBool,
    /// Whether patience came to its end, and nothing has succeeded since: then further calls have none.
    gone: AtomicBool,
    /// Whether everyone was told that the server doesn't answer, and not yet that it does.
    told: AtomicBool,
    pace: Pace,
    surroundings: Surroundings,
}

impl Patience {
    pub fn new(surroundings: Surroundings) -> Self {
        let [reached, gone, told] = [false; 3].map(AtomicBool::new);
        Self { reached, gone, told, pace: PACE, surroundings }
    }

    fn is_interrupted(&self) -> bool {
        self.surroundings.interrupted.load(Ordering::Relaxed)
    }

    /// Makes a call, and makes it again as long as that may help.
    pub async fn with<T, F>(&self, call: Call<'_>, meter: &Meter, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let Pace { patience, first, longest, .. } = self.pace;
        let pauses = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_factor(2.0);
        let mut pauses = pauses.without_max_times().with_jitter().build();
        let mut since = None;
        loop {
            let failure = match self.unless_interrupted(attempt()).await {
                None => return Err(Error::Interrupted),
                Some(Ok(value)) => {
                    self.succeeded();
                    return Ok(value);
                }
                Some(Err(failure)) => failure,
            };
            let helps = match failure.remedy {
                Remedy::Missing => {
                    self.succeeded();
                    false
                }
                Remedy::Hint => false,
                Remedy::Again => true,
                Remedy::Contact => self.reached.load(Ordering::Relaxed),
            };
            let waited = since.get_or_insert_with(Instant::now).elapsed();
            let is_over = waited > patience || self.gone.load(Ordering::Relaxed);
            if !helps || is_over {
                self.gone.fetch_or(helps && is_over, Ordering::Relaxed);
                return Err(call.fail(failure));
            }
            let pause = pauses.next().unwrap_or(longest);
            self.tell(call, &failure, waited, pause);
            meter.retried();
            self.pause(pause).await?;
        }
    }

    fn succeeded(&self) {
        self.reached.store(true, Ordering::Relaxed);
        self.gone.store(false, Ordering::Relaxed);
        if self.told.swap(false, Ordering::Relaxed) {
            (self.surroundings.tell)(Weight::Notice, "the repository's server answers again");
        }
    }

    fn tell(&self, call: Call<'_>, failure: &Failure, waited: Duration, pause: Duration) {
        let Call { action, object, at } = call;
        let text =
            format!("cannot {action} {object} at {at}: {}; trying again in {:.1} s", failure.why, pause.as_secs_f64());
        (self.surroundings.tell)(Weight::Detail, &text);
        if waited >= self.pace.quiet && !self.told.swap(true, Ordering::Relaxed) {
            let text = format!(
                "{at} does not answer ({}); waiting for it, for up to {} min",
                failure.why,
                self.pace.patience.as_secs() / 60
            );
            (self.surroundings.tell)(Weight::Notice, &text);
        }
    }

    async fn pause(&self, pause: Duration) -> Result<()> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if self.is_interrupted() {
                return Err(Error::Interrupted);
            }
            sleep(LOOK.min(until.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    /// `None` if the user wants an end and the attempt does not come to one soon.
    async fn unless_interrupted<T>(&self, attempt: impl Future<Output = T>) -> Option<T> {
        let watch = async {
            while !self.is_interrupted() {
                sleep(LOOK).await;
            }
            sleep(GRACE).await;
        };
        tokio::select! {
            done = attempt => Some(done),
            () = watch => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::{Arc, Mutex};

    use super::*;

    const CALL: Call<'static> = Call { action: "read", object: "config", at: "s3://b" };

    /// Everything a thousand times faster.
    fn patience(surroundings: Surroundings) -> Patience {
        let Pace { patience, first, longest, quiet } = PACE;
        let pace =
            Pace { patience: patience / 1000, first: first / 1000, longest: longest / 1000, quiet: quiet / 1000 };
        Patience { pace, ..Patience::new(surroundings) }
    }

    fn run<T>(patience: &Patience, meter: &Meter, attempt: impl Fn(u64) -> Result<T, Failure>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let attempts = AtomicU64::new(0);
        runtime.block_on(patience.with(CALL, meter, || {
            let n = attempts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(attempt(n))
        }))
    }

    #[test]
    fn what_can_get_better_is_tried_again_and_told() {
        let told: Arc<Mutex<Vec<(Weight, String)>>> = Arc::default();
        let heard = told.clone();
        let tell = Box::new(move |weight, text: &str| heard.lock().unwrap().push((weight, text.to_owned())));
        let patience = patience(Surroundings { interrupted: &NEVER, tell });
        let meter = Meter::default();
        let answer = |n| if n < 9 { Err(Failure::again("503 SlowDown")) } else { Ok(n) };
        assert_eq!(run(&patience, &meter, answer).unwrap(), 9);
        assert_eq!(meter.usage().retries, 9);
        let told = told.lock().unwrap();
        let notices: Vec<_> =
            told.iter().filter(|(weight, _)| *weight == Weight::Notice).map(|(_, text)| text).collect();
        assert!(notices[0].contains("does not answer (503 SlowDown)"), "{notices:?}");
        assert_eq!((notices.len(), &notices[1][..]), (2, "the repository's server answers again"));
        assert_eq!(told.len(), 9 + 2);
    }

    #[test]
    fn there_is_an_end_to_patience() {
        let patience = patience(Surroundings::default());
        let meter = Meter::default();
        let error = run::<()>(&patience, &meter, |_| Err(Failure::again("no answer"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot read config at s3://b: no answer");
        let retries = meter.usage().retries;
        assert!(retries > 9, "{retries}");
        // Who asks after that is not kept waiting for as long once more, until something succeeds.
        assert!(run::<()>(&patience, &meter, |_| Err(Failure::again("no answer"))).is_err());
        assert_eq!(meter.usage().retries, retries);
        run(&patience, &meter, |_| Ok(())).unwrap();
        run(&patience, &meter, |n| if n == 0 { Err(Failure::again("no answer")) } else { Ok(()) }).unwrap();
        assert_eq!(meter.usage().retries, retries + 1);
    }

    #[test]
    fn what_cannot_get_better_fails_at_once() {
        let patience = patience(Surroundings::default());
        let meter = Meter::default();
        let error =
            run::<()>(&patience, &meter, |_| Err(Failure::hopeless("the key is wrong", "give another"))).unwrap_err();
        assert_eq!(error.hint(), Some("give another"));
        assert!(run::<()>(&patience, &meter, |_| Err(Failure::new(Remedy::Contact, "connection refused"))).is_err());
        assert_eq!(meter.usage().retries, 0);
        assert!(matches!(
            run::<()>(&patience, &meter, |_| Err(Failure::new(Remedy::Missing, ""))),
            Err(Error::Missing { .. })
        ));
        // Now the server was reached.
        let answer = |n| if n == 0 { Err(Failure::new(Remedy::Contact, "connection refused")) } else { Ok(()) };
        run(&patience, &meter, answer).unwrap();
        assert_eq!(meter.usage().retries, 1);
    }

    #[test]
    fn an_interrupt_ends_a_wait() {
        static NOW: AtomicBool = AtomicBool::new(true);
        let patience = patience(Surroundings { interrupted: &NOW, ..Surroundings::default() });
        let meter = Meter::default();
        // What succeeds is done all the same: a job ends in order.
        run(&patience, &meter, |_| Ok(())).unwrap();
        assert!(matches!(run::<()>(&patience, &meter, |_| Err(Failure::again("no answer"))), Err(Error::Interrupted)));
    }
}
