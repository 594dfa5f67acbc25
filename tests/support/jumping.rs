//! A clock that jumps to where somebody sleeps until, for jobs that run in one thread.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use quotalite::{BootId, Clock, Limiter, ManualClock};

use super::{Scratch, scratch};

#[derive(Clone, Debug, Default)]
pub struct JumpingClock {
    clock: ManualClock,
    jumps: Arc<Mutex<Vec<Duration>>>,
}

impl JumpingClock {
    /// The time since it was made.
    pub fn passed(&self) -> Duration {
        let started = ManualClock::new().elapsed();
        self.clock.elapsed().saturating_sub(started)
    }

    /// The sleeps that were none of no length, in their order.
    pub fn jumps(&self) -> Vec<Duration> {
        self.jumps.lock().unwrap().clone()
    }

    pub fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }
}

impl Clock for JumpingClock {
    fn boot(&self) -> BootId {
        self.clock.boot()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    fn is_real(&self) -> bool {
        false
    }

    fn sleep_until(&self, deadline: Duration) {
        let left = deadline.saturating_sub(self.elapsed());
        if !left.is_zero() {
            self.jumps.lock().unwrap().push(left);
            self.clock.advance(left);
        }
    }
}

/// Another limiter on the same file and clock.
pub fn open_jumping(scratch: &Scratch, clock: &JumpingClock) -> Limiter {
    let builder = Limiter::builder(scratch.file());
    builder.clock(clock.clone()).open().unwrap()
}

/// The same story for both stores: with one limiter, another one that shares its limits, and their clock.
pub fn in_both_jumping(story: impl Fn(&Limiter, &Limiter, &JumpingClock)) {
    let clock = JumpingClock::default();
    let limiter = Limiter::in_memory_with(clock.clone());
    story(&limiter, &limiter.clone(), &clock);
    let (scratch, clock) = (scratch(), JumpingClock::default());
    let limiter = open_jumping(&scratch, &clock);
    story(&limiter, &open_jumping(&scratch, &clock), &clock);
}
