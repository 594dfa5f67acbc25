//! Waking those who wait in line, across processes: words of the lock file, mapped into each of them.
//!
//! They are a hint and never the truth. Who waits sleeps on a word with a futex; who frees something
//! for it moves that word and wakes it. Every sleep has an end, so that a wake-up that is lost (its sender
//! was killed, or this platform has no futex) costs a moment and no more.

use std::time::Duration;

use crate::store::moves::Moves;

#[cfg(target_os = "linux")]
pub(super) use linux::{Wakes, sleep_on, wake_all_on};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::Wakes;

/// How long somebody who can be woken sleeps before it tries again, about, for a wake-up can get lost.
const TRIES_AGAIN: Duration = Duration::from_secs(1);

/// How long the first one in line sleeps before it looks, without touching the file, whether those in its way are
/// alive: a process that is killed wakes nobody. Those further back look less often, for the first one will
/// see it and wake whose turn it is.
const LOOKS_AGAIN: Duration = Duration::from_millis(60);

/// How long somebody sleeps whom nobody can wake, about.
pub(super) const SHORTEST_POLL: Duration = Duration::from_millis(4);

/// Wakes those who have booked, with nothing to look at.
pub(super) fn rouse_who_booked(moves: &Moves) {
    #[cfg(target_os = "linux")]
    if let Some((word, _)) = moves.to_sleep_on(moves.seen()) {
        linux::rouse_all_on(word);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = moves;
}

impl Wakes {
    /// How long to sleep before trying again.
    pub(super) fn tries_again(&self) -> Duration {
        jittered(if self.can_wake() {
            TRIES_AGAIN
        } else {
            SHORTEST_POLL
        })
    }
}

/// How long somebody sleeps with so many ahead before looking who is alive.
pub(super) fn looks_again(ahead: usize) -> Duration {
    let places = u32::try_from(ahead).map_or(u32::MAX, |ahead| ahead.saturating_add(1));
    jittered(LOOKS_AGAIN.saturating_mul(places).min(TRIES_AGAIN))
}

/// Never twice the same, so that sleepers do not march in step.
fn jittered(longest: Duration) -> Duration {
    let us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(fastrand::u64(us / 2..=us))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::thread::futex;

    use super::super::shared_page::SharedPage;

    /// The words that tickets sleep on.
    #[derive(Debug)]
    pub(in super::super) struct Wakes {
        /// None if the lock file could not be mapped: then everybody polls.
        page: Option<Arc<SharedPage>>,
    }

    impl Wakes {
        pub(in super::super) fn new(page: Option<Arc<SharedPage>>) -> Self {
            Self { page }
        }

        pub(in super::super) fn can_wake(&self) -> bool {
            self.page.is_some()
        }

        fn word(&self, ticket: i64) -> Option<&AtomicU32> {
            self.page.as_ref().map(|page| page.ticket(ticket))
        }

        /// What [`sleep`](Self::sleep) compares with.
        pub(in super::super) fn seen(&self, ticket: i64) -> u32 {
            self.word(ticket)
                .map_or(0, |word| word.load(Ordering::SeqCst))
        }

        /// Sleeps until the ticket is woken, if it was not since it was `seen`, but not longer than this. True if it
        /// was woken.
        pub(in super::super) fn sleep(&self, ticket: i64, seen: u32, longest: Duration) -> bool {
            let Some(word) = self.word(ticket) else {
                std::thread::sleep(longest);
                return false;
            };
            sleep_on(word, seen, longest)
        }

        pub(in super::super) fn wake(&self, ticket: i64) {
            if let Some(word) = self.word(ticket) {
                wake_all_on(word);
            }
        }
    }

    /// Sleeps until a word is moved, if it still is as it was `seen`, but not longer than this. True if it was moved.
    pub(in super::super) fn sleep_on(word: &AtomicU32, seen: u32, longest: Duration) -> bool {
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        // Whatever ends the sleep, the word tells whether there is something to do.
        let _: Result<(), _> = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
        word.load(Ordering::SeqCst) != seen
    }

    /// Moves a word and wakes all who sleep on it. Returns how many did.
    pub(in super::super) fn wake_all_on(word: &AtomicU32) -> usize {
        word.fetch_add(1, Ordering::SeqCst);
        rouse_all_on(word)
    }

    /// Wakes all who sleep on a word, which stays as it is. Returns how many did.
    pub(in super::super) fn rouse_all_on(word: &AtomicU32) -> usize {
        let woken: io::Result<usize> =
            futex::wake(word, futex::Flags::empty(), u32::MAX >> 1).map_err(Into::into);
        woken.unwrap_or_else(|error| {
            tracing::debug!(%error, "could not wake who waits");
            0
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::shared_page::SharedPage;

    /// Nobody is woken, everybody polls.
    #[derive(Debug)]
    pub(in super::super) struct Wakes;

    impl Wakes {
        pub(in super::super) fn new(_page: Option<Arc<SharedPage>>) -> Self {
            Self
        }

        pub(in super::super) fn can_wake(&self) -> bool {
            false
        }

        pub(in super::super) fn seen(&self, _ticket: i64) -> u32 {
            0
        }

        pub(in super::super) fn sleep(&self, _ticket: i64, _seen: u32, longest: Duration) -> bool {
            std::thread::sleep(longest);
            false
        }

        pub(in super::super) fn wake(&self, _ticket: i64) {}
    }
}
