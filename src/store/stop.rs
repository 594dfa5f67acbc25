//! Ending waits before their time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use super::moves::Moves;
use crate::clock::Clock;
use crate::process::Mark;

/// How long a thread sleeps at once: the clock of the machine goes on while the machine sleeps, and that of sleepers does not.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// How long somebody waits for those who hear of it, or have the list. In a forked child they may be threads that are not there.
const TRIES: u32 = 1_000;
const NAP: Duration = Duration::from_millis(1);

/// Whether those who wait in this process are to stop, and what they sleep on.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_said: AtomicBool,
    said: Condvar,
    /// Those who sleep on the word of something that moves bookings, and have to be woken there.
    asleep: Mutex<Vec<Sleeper>>,
    last: AtomicU64,
}

/// A thread that sleeps on a word.
#[derive(Debug)]
struct Sleeper {
    number: u64,
    process: Mark,
    moves: Moves,
}

impl Stop {
    pub(super) fn is_said(&self) -> bool {
        self.is_said.load(Ordering::SeqCst)
    }

    /// Says it, and wakes those who sleep on words until they have heard it.
    pub(super) fn say(&self, wake: impl Fn(&Moves)) {
        self.is_said.store(true, Ordering::SeqCst);
        for _ in 0..TRIES {
            let asleep = self.try_lock();
            // With the list, nobody is between looking whether it is said and going to sleep.
            self.said.notify_all();
            if let Some(asleep) = asleep {
                let here = crate::process::mark();
                let mut ours = asleep.iter().filter(|sleeper| sleeper.process == here);
                let Some(first) = ours.next() else {
                    return;
                };
                // One that has looked and is not yet asleep is missed by this, and not by the next one.
                wake(&first.moves);
                ours.for_each(|sleeper| wake(&sleeper.moves));
            }
            thread::sleep(NAP);
        }
    }

    /// Sleeps until the clock shows this, or until it is said. A clock that does not keep pace with real time is not left early.
    pub(super) fn sleep_until(&self, clock: &dyn Clock, until: Duration) {
        if !clock.is_real() && !self.is_said() {
            return clock.sleep_until(until);
        }
        let Some(mut asleep) = self.try_lock_for_long() else {
            return clock.sleep_until(until);
        };
        loop {
            let left = until.saturating_sub(clock.elapsed());
            if left.is_zero() || self.is_said() {
                return;
            }
            let woken = self.said.wait_timeout(asleep, left.min(LONGEST_SLEEP));
            asleep = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whoever looks whether it is said only after this, and before it sleeps on the word, does not miss it.
    #[cfg(target_os = "linux")]
    pub(super) fn sleeps_on(&self, moves: &Moves) -> Asleep<'_> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        if let Some(mut asleep) = self.try_lock_for_long() {
            asleep.push(Sleeper {
                number,
                process: crate::process::mark(),
                moves: moves.clone(),
            });
        }
        Asleep { stop: self, number }
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Vec<Sleeper>>> {
        match self.asleep.try_lock() {
            Ok(asleep) => Some(asleep),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The list, unless somebody has it who is not there. Nobody has it for longer than a moment.
    fn try_lock_for_long(&self) -> Option<MutexGuard<'_, Vec<Sleeper>>> {
        const YIELDS: u32 = 1_000;
        (0..YIELDS + TRIES).find_map(|tried| {
            match tried {
                0 => {}
                1..YIELDS => thread::yield_now(),
                _ => thread::sleep(NAP),
            }
            self.try_lock()
        })
    }
}

/// That a thread sleeps, for as long as it does.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct Asleep<'s> {
    stop: &'s Stop,
    number: u64,
}

#[cfg(target_os = "linux")]
impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        if let Some(mut asleep) = self.stop.try_lock_for_long() {
            asleep.retain(|sleeper| sleeper.number != self.number);
        }
    }
}
