//! A clock is the caller's own code, and may panic: then nothing is lost, and nothing is done twice.

mod support;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use quotalite::{BootId, Clock, Limit, Limiter, ManualClock};
use support::{open_raw, scratch};

/// What it panics with.
const AS_TOLD: &str = "as it is told to";

/// Panics once, when it has been read so often.
#[derive(Clone, Debug)]
struct Fuse {
    clock: ManualClock,
    left: Arc<AtomicI64>,
}

impl Clock for Fuse {
    fn boot(&self) -> BootId {
        self.clock.boot()
    }

    fn elapsed(&self) -> Duration {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left == 0 {
            panic::panic_any(AS_TOLD);
        }
        self.clock.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    fn sleep_until(&self, deadline: Duration) {
        self.clock.sleep_until(deadline);
    }
}

/// Plays a story that ends with a call in which the clock panics when it is read for the n-th time, for each n, until
/// it is read less often. Then what is left has to be as it is without a panic.
fn play(
    prepare: impl Fn(&Limiter, &dyn Fn(bool)),
    call: impl Fn(&Limiter),
    is_well: impl Fn(&Limiter) -> bool,
) {
    for reads in 0..1_000 {
        let scratch = scratch();
        let fuse = Fuse {
            clock: ManualClock::new(),
            left: Arc::new(AtomicI64::new(-1)),
        };
        let builder = Limiter::builder(scratch.file()).clock(fuse.clone());
        let limiter = builder
            .busy_deadline(Duration::from_millis(20))
            .open()
            .unwrap();
        let raw = open_raw(&scratch.file());
        prepare(&limiter, &|keep| {
            let statement = if keep { "BEGIN IMMEDIATE" } else { "ROLLBACK" };
            raw.execute_batch(statement).unwrap();
        });
        fuse.left.store(reads, Ordering::SeqCst);
        let called = panic::catch_unwind(AssertUnwindSafe(|| call(&limiter)));
        fuse.left.store(-1, Ordering::SeqCst);
        assert!(is_well(&limiter), "after {reads} readings");
        match called {
            Ok(()) => {
                assert!(reads > 0, "the clock was never read");
                return;
            }
            Err(why) if why.downcast_ref() == Some(&AS_TOLD) => {}
            Err(why) => panic::resume_unwind(why),
        }
    }
    panic!("it is read more often than a thousand times");
}

#[test]
fn what_could_not_be_given_back_before_is_given_back_after_a_panic() {
    play(
        |limiter, lock| {
            limiter.define(Limit::slots("gpu", 1)).unwrap();
            limiter.define(Limit::new("calls").per_hour(100)).unwrap();
            let held = limiter.try_acquire("gpu").unwrap();
            lock(true);
            drop(held);
            lock(false);
        },
        |limiter| drop(limiter.try_acquire("calls").unwrap()),
        |limiter| limiter.try_acquire("gpu").unwrap().is_granted(),
    );
}

#[test]
fn a_call_that_panicked_has_charged_once_or_not_at_all() {
    play(
        |limiter, _| {
            limiter.define(Limit::new("calls").per_hour(10)).unwrap();
        },
        |limiter| assert!(limiter.try_acquire(("calls", 3)).unwrap().is_granted()),
        |limiter| [7, 10].contains(&limiter.usage("calls").unwrap().available()),
    );
}

#[test]
fn blocks_hand_out_no_more_than_there_is_after_a_panic() {
    play(
        |limiter, _| {
            limiter.define(Limit::new("hot").per_hour(12)).unwrap();
        },
        |limiter| {
            let hot = limiter.blocks("hot", 5).unwrap();
            let mut granted = 0;
            let mut panicked = None;
            for _ in 0..40 {
                let hand_out = || hot.try_acquire().unwrap().is_granted();
                match panic::catch_unwind(AssertUnwindSafe(hand_out)) {
                    Ok(is_granted) => granted += u32::from(is_granted),
                    Err(why) => panicked = Some(why),
                }
            }
            // A block that nobody knows about any more stays charged.
            assert!((7..=12).contains(&granted), "{granted} of 12");
            if let Some(why) = panicked {
                panic::resume_unwind(why);
            }
        },
        |_| true,
    );
}
