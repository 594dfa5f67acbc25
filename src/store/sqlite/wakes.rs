//! Waking those who wait in line, across processes: one page of the lock file, mapped into each of them.
//!
//! It is a hint and never the truth. Who waits sleeps on a word of the page with a futex; who frees something
//! for it moves that word and wakes it. Every sleep has an end, so that a wake-up that is lost (its sender
//! was killed, or this platform has no futex) costs a moment and no more.

use std::time::Duration;

#[cfg(target_os = "linux")]
pub(super) use linux::Wakes;
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
    use std::fs::File;
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::thread::futex;

    use super::super::wake_page::WakePage;

    /// The words of the page.
    #[derive(Debug)]
    pub(in super::super) struct Wakes {
        /// None if the page could not be mapped: then everybody polls.
        page: Option<WakePage>,
    }

    impl Wakes {
        pub(in super::super) fn of(lock_file: Option<&File>) -> Self {
            let closed = || io::Error::from(io::ErrorKind::NotConnected);
            let page = lock_file.ok_or_else(closed).and_then(WakePage::map);
            if let Err(error) = &page {
                tracing::debug!(%error, "who waits in line polls, for the lock file cannot be mapped");
            }
            Self { page: page.ok() }
        }

        pub(in super::super) fn can_wake(&self) -> bool {
            self.page.is_some()
        }

        fn word(&self, ticket: i64) -> Option<&AtomicU32> {
            let words = self.page.as_ref()?.words();
            let position = usize::try_from(ticket.unsigned_abs()).ok()? % words.len();
            words.get(position)
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
            let timeout = futex::Timespec {
                tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: longest.subsec_nanos().into(),
            };
            // Whatever ends the sleep, the word tells whether there is something to do.
            let _: Result<(), _> = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
            word.load(Ordering::SeqCst) != seen
        }

        pub(in super::super) fn wake(&self, ticket: i64) {
            if let Some(word) = self.word(ticket) {
                word.fetch_add(1, Ordering::SeqCst);
                let woken: io::Result<usize> =
                    futex::wake(word, futex::Flags::empty(), u32::MAX >> 1).map_err(Into::into);
                if let Err(error) = woken {
                    tracing::debug!(%error, "could not wake who waits in line");
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::fs::File;
    use std::time::Duration;

    /// Nobody is woken, everybody polls.
    #[derive(Debug)]
    pub(in super::super) struct Wakes;

    impl Wakes {
        pub(in super::super) fn of(_lock_file: Option<&File>) -> Self {
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
