//! What callers hold: permits, and bookings that become permits.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::settlement::{Settled, Settlement, Used};
use crate::store::{Claim, Store};

/// A request that was admitted and is charged.
///
/// Once it is known what was used, [`settle`](Self::settle) it; if nothing was, [`cancel`](Self::cancel)
/// it. If it is dropped instead, its slots come back, but its charges stay: an estimate that was never
/// settled never becomes free.
pub struct Permit {
    store: Arc<dyn Store>,
    claim: Claim,
    waited: Duration,
    state: Mutex<State>,
}

/// What dropping a permit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is a place in line, and is given back.
    Booked,
    /// It was used, and nobody said how much of it.
    Open,
    /// It was settled or cancelled.
    Closed,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("at", &self.at())
            .field("waited", &self.waited)
            .finish_non_exhaustive()
    }
}

impl Permit {
    pub(crate) const fn new(store: Arc<dyn Store>, claim: Claim, waited: Duration) -> Self {
        Self {
            store,
            claim,
            waited,
            state: Mutex::new(State::Open),
        }
    }

    /// The instant at which the request is charged in all its limits.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.claim.at
    }

    /// A number that grows from each permit that holds slots to the next, over all processes, if this one holds
    /// any. Hand it to what the slots protect: who has seen a larger one can turn away a holder whose slot
    /// has timed out.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        let holding = self.claim.holding.as_ref()?;
        Some(holding.permit.0.unsigned_abs())
    }

    /// How long the request waited in line: from the decision to the instant of the charge.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// Counts the time since this reading of the clock as waited.
    pub(crate) fn queued_since(mut self, since: Duration) -> Self {
        let elapsed = self.store.clock().elapsed();
        self.waited = self.waited.max(elapsed.saturating_sub(since));
        self
    }

    /// Says what was used of some or all of its limits. What is less than was asked for comes free at once, for
    /// every process, and as if it had never been charged; what is more is dealt with as the limit's
    /// [`Overage`](crate::Overage) says. A limit that is not named keeps what was asked for.
    ///
    /// A permit can be settled or cancelled once; what comes later changes nothing.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, MINUTE};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("tokens").rate(90_000, MINUTE))?;
    /// let permit = limiter.acquire(("tokens", 1_800))?;
    /// permit.settle([("tokens", 620)])?;
    /// assert_eq!(limiter.usage("tokens")?.available(), 89_380);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Request`] if it names a limit that was not asked for, or one twice; and whatever can happen to
    /// the file. The permit then stays as it was, and can be settled again.
    pub fn settle<K: AsRef<str>>(
        &self,
        used: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Settled, Error> {
        let used = Used::new(used)?;
        let settled = self.close(|| self.store.settle(&self.claim, &used))?;
        for amount in settled
            .settlement()
            .into_iter()
            .flat_map(Settlement::amounts)
        {
            tracing::debug!(
                limit = amount.key(),
                estimated = amount.estimated(),
                used = amount.used(),
                debt = amount.debt(),
                "settled"
            );
        }
        Ok(settled)
    }

    /// Gives everything back, as if the request had never been made.
    ///
    /// # Errors
    /// Whatever can happen to the file. The permit then stays as it was, and can be cancelled again.
    pub fn cancel(&self) -> Result<Settled, Error> {
        self.close(|| self.store.cancel(&self.claim))
    }

    fn close(&self, act: impl FnOnce() -> Result<Settled, Error>) -> Result<Settled, Error> {
        let mut state = self.lock();
        if *state == State::Closed {
            return Ok(Settled::Before);
        }
        let settled = act()?;
        *state = State::Closed;
        Ok(settled)
    }

    /// Whether somebody who drops it has likely forgotten to settle it: it holds a slot while something runs,
    /// and has charged more than one of something.
    fn is_estimate(&self) -> bool {
        self.claim.holding.is_some() && self.claim.rows.iter().any(|row| row.amount > 1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let limit = self.claim.first_key();
        let result = match *self.lock() {
            State::Booked => self.store.cancel(&self.claim).map(drop),
            State::Open => {
                if self.is_estimate() {
                    tracing::warn!(
                        limit,
                        "a permit was dropped and not settled: its estimate stays charged"
                    );
                }
                self.store.release(&self.claim)
            }
            State::Closed => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(limit, %error, "what a dropped permit or booking held could not be given back");
        }
    }
}

/// A place in line: the request is charged at an instant that is now or lies in the future.
///
/// [`wait`](Self::wait) sleeps until then and gives the permit; [`accept`](Self::accept) gives it without
/// sleeping. A booking that is dropped instead is given back, even after its instant. If the process dies,
/// whoever is refused or waits next gives back what is still in the future; what is not counts as used.
#[must_use = "dropping a booking gives it back"]
pub struct Booking {
    permit: Permit,
}

impl fmt::Debug for Booking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booking")
            .field("at", &self.at())
            .field("wait_time", &self.wait_time())
            .finish_non_exhaustive()
    }
}

impl Booking {
    pub(crate) const fn new(store: Arc<dyn Store>, claim: Claim, wait: Duration) -> Self {
        let mut permit = Permit::new(store, claim, wait);
        permit.state = Mutex::new(State::Booked);
        Self { permit }
    }

    /// The instant at which the request is charged and the caller may go ahead.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.permit.at()
    }

    /// How long that was away when the request was booked; zero if it was admitted at once.
    #[must_use]
    pub const fn wait_time(&self) -> Duration {
        self.permit.waited
    }

    /// Sleeps until the booked instant. There is no polling, and the file is not touched.
    #[must_use]
    pub fn wait(self) -> Permit {
        let Permit { store, claim, .. } = &self.permit;
        let waited = self.wait_time();
        if !waited.is_zero() {
            // Should this thread unwind, the booking is dropped and given back.
            store.clock().sleep_until(claim.wake_at);
            tracing::debug!(limit = claim.first_key(), ?waited, "waited");
        }
        self.accept()
    }

    /// Takes the permit without waiting, for event loops that have timers of their own: nothing may go
    /// ahead before [`Permit::at`]. Until then the permit comes back when its process dies.
    #[must_use]
    pub fn accept(self) -> Permit {
        *self.permit.lock() = State::Open;
        self.permit
    }

    /// Gives everything back.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Moved`], [`Error::Sqlite`] and what else can happen to the file. The charge
    /// then stays, and counts as used.
    pub fn cancel(self) -> Result<(), Error> {
        let permit = self.accept();
        permit.cancel().map(drop)
    }
}
