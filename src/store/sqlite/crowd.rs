//! Processes that want to write at the same moment take turns.
//!
//! SQLite's lock is nobody's in particular when it comes free: a process that has just had it mostly gets it again,
//! and those that ask for it now and then wait for long. So those that do not get it take a number, and sleep until
//! it is called. Whoever writes while others wait calls the next one when its turn has lasted for long enough, and
//! takes a number itself. Within a turn a process writes as it likes, for each change of hands costs as much as
//! many transactions: the next process has to be woken, and to read anew what others have written.
//!
//! The numbers stand in the part of the lock file that all share. They are a hint and never the truth: what is
//! exclusive is SQLite's lock. One that is called and does not come (it is stopped, or dead), and one that has the lock
//! and no more to do, hold up the next one for as long as it sleeps at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::generation::Generation;
use super::shared_page::SharedPage;
#[cfg(target_os = "linux")]
use super::wakes::{sleep_on, wake_all_on};

/// How long a turn lasts while others wait.
const TURN: Duration = Duration::from_millis(2);

/// How long the next one sleeps before it looks whether anybody is still writing; those behind it, so many times as
/// long.
const NAP: Duration = Duration::from_micros(200);

/// How many numbers are called at a time at most, if nobody answers to them.
const MOST_CALLED: u32 = 8;

/// Where more seem to wait, the numbers are wrong.
const MOST_WAITING: u32 = 4_096;

#[derive(Debug)]
pub(super) struct Crowd {
    page: Option<Arc<SharedPage>>,
    made: Instant,
    /// When the turn of this process began, in microseconds since `made`.
    began_us: AtomicU64,
    /// Whether it has called another in its place.
    is_over: AtomicBool,
}

impl Crowd {
    pub(super) fn new(page: Option<Arc<SharedPage>>) -> Self {
        Self {
            page,
            made: Instant::now(),
            began_us: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }
}

#[cfg(target_os = "linux")]
impl Crowd {
    /// Whether those who wait are called; else there is nothing to wait for, and whoever wants the lock polls.
    pub(super) fn calls(&self) -> bool {
        self.page.is_some()
    }

    /// Waits for its turn, if it has called another in its place.
    pub(super) fn come(&self, generation: &Generation, deadline: Instant) {
        if self.is_over.load(Ordering::Relaxed) {
            self.wait(generation, deadline);
        }
    }

    /// Takes a number and waits until it is called, or nobody has written for a while. Whether it was called.
    pub(super) fn wait(&self, generation: &Generation, deadline: Instant) -> bool {
        let Some(page) = &self.page else {
            return false;
        };
        let mut is_called = true;
        let number = page.taken().fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        loop {
            let seat = page.seat(number);
            let seen = seat.load(Ordering::SeqCst);
            let called = page.called().load(Ordering::SeqCst);
            let ahead = number.wrapping_sub(called);
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_ahead(ahead) {
                break;
            }
            if left.is_zero() {
                is_called = false;
                break;
            }
            let written = generation.count();
            let nap = NAP.saturating_mul(ahead.min(MOST_CALLED));
            let is_woken = sleep_on(seat, seen, nap.min(left));
            if !is_woken && generation.count() == written {
                // Those before it have had the time to see that, too.
                let _ = move_from(page.called(), called, number);
                is_called = false;
                break;
            }
        }
        self.is_over.store(false, Ordering::Relaxed);
        self.began_us.store(self.now_us(), Ordering::Relaxed);
        is_called
    }

    /// Calls the next one, if somebody waits and the turn of this process has lasted for long enough.
    pub(super) fn leave(&self) {
        let Some(page) = &self.page else {
            return;
        };
        let called = page.called().load(Ordering::SeqCst);
        let waiting = page.taken().load(Ordering::SeqCst).wrapping_sub(called);
        if waiting == 0 {
            return;
        }
        if waiting > MOST_WAITING {
            let _ = move_from(page.called(), called, called.wrapping_add(waiting));
            return;
        }
        let lasts_us = self
            .now_us()
            .saturating_sub(self.began_us.load(Ordering::Relaxed));
        if u128::from(lasts_us) < TURN.as_micros() || self.is_over.load(Ordering::Relaxed) {
            return;
        }
        for last in 0..waiting.min(MOST_CALLED) {
            let last = called.wrapping_add(last);
            let next = last.wrapping_add(1);
            if !move_from(page.called(), last, next) {
                return;
            }
            // Nobody answers who is about to look, has gone, or is dead.
            if wake_all_on(page.seat(next)) > 0 {
                self.is_over.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Moves a number on, unless somebody else has.
#[cfg(target_os = "linux")]
fn move_from(number: &AtomicU32, from: u32, to: u32) -> bool {
    number
        .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}

/// Whether so many have to be called before; not if the number was called, however long ago.
#[cfg(target_os = "linux")]
fn is_ahead(ahead: u32) -> bool {
    ahead != 0 && ahead < u32::MAX / 2
}

/// Nobody is called, everybody polls.
#[cfg(not(target_os = "linux"))]
impl Crowd {
    pub(super) fn calls(&self) -> bool {
        false
    }

    pub(super) fn come(&self, _generation: &Generation, _deadline: Instant) {}

    pub(super) fn wait(&self, _generation: &Generation, _deadline: Instant) -> bool {
        false
    }

    pub(super) fn leave(&self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    fn page() -> Arc<SharedPage> {
        Arc::new(SharedPage::map(&tempfile::tempfile().unwrap()).unwrap())
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[test]
    fn whoever_waits_is_called_by_one_that_goes_on_writing() {
        let page = page();
        let writes = Generation::new(Some(Arc::clone(&page)));
        let (busy, other) = (
            Crowd::new(Some(Arc::clone(&page))),
            Crowd::new(Some(Arc::clone(&page))),
        );
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    busy.come(&writes, far());
                    writes.begin().end(true);
                    busy.leave();
                }
            });
            let generation = Generation::new(Some(Arc::clone(&page)));
            // It can seem to have stopped, where its thread has no processor.
            let is_called = (0..1_000).any(|_| other.wait(&generation, far()));
            is_over.store(true, Ordering::SeqCst);
            assert!(is_called);
        });
    }

    #[test]
    fn nobody_waits_long_for_one_that_does_not_write_any_more() {
        let page = page();
        let generation = Generation::new(Some(Arc::clone(&page)));
        let crowd = Crowd::new(Some(page));
        assert!(!crowd.wait(&generation, far()));
        // Nor beyond its deadline for one that does.
        assert!(!crowd.wait(&generation, Instant::now()));
    }
}
