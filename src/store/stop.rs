//! Ending waits before their time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// How long a thread sleeps at once: the clock of the machine goes on while the machine sleeps, and that of sleepers does not.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Whether those who wait in this process are to stop, and what they sleep on.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_said: Mutex<bool>,
    said: Condvar,
    /// How many sleep on something else, and have to be woken there.
    elsewhere: AtomicUsize,
}

impl Stop {
    pub(super) fn is_said(&self) -> bool {
        *self.lock()
    }

    pub(super) fn say(&self) {
        *self.lock() = true;
        self.said.notify_all();
    }

    /// Sleeps until the clock shows this, or until it is said. A clock that does not keep pace with real time is not left early.
    pub(super) fn sleep_until(&self, clock: &dyn Clock, until: Duration) {
        if !clock.is_real() && !self.is_said() {
            return clock.sleep_until(until);
        }
        let mut is_said = self.lock();
        loop {
            let left = until.saturating_sub(clock.elapsed());
            if left.is_zero() || *is_said {
                return;
            }
            let woken = self.said.wait_timeout(is_said, left.min(LONGEST_SLEEP));
            is_said = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Who looks whether it is said only after this, is known to whoever says it before it goes to sleep.
    #[cfg(target_os = "linux")]
    pub(super) fn sleeps_elsewhere(&self) -> Elsewhere<'_> {
        self.elsewhere.fetch_add(1, Ordering::SeqCst);
        Elsewhere(self)
    }

    /// Wakes those who sleep on something else until they have seen what is said, or for as long as that takes anybody who can run.
    pub(super) fn rouse(&self, wake: impl Fn()) {
        const TRIES: u32 = 1_000;
        const NAP: Duration = Duration::from_millis(1);
        for _ in 0..TRIES {
            if self.elsewhere.load(Ordering::SeqCst) == 0 {
                return;
            }
            // One that has looked and is not yet asleep is missed by this, and not by the next one.
            wake();
            std::thread::sleep(NAP);
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that sleeps on something else.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct Elsewhere<'s>(&'s Stop);

#[cfg(target_os = "linux")]
impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        self.0.elsewhere.fetch_sub(1, Ordering::SeqCst);
    }
}
