//! Places in line.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Permit, State, clamped_ns};
use crate::clock::Timestamp;
use crate::decision::Denial;
use crate::error::{Error, RequestError};
use crate::plan::Latest;
use crate::store::{Claim, Store, stopped};

/// A place in line: the request is charged at an instant that is now or lies in the future.
///
/// [`wait`](Self::wait) sleeps until then and gives the permit; [`accept`](Self::accept) gives it without
/// sleeping. A booking that is dropped instead is given back, even after its instant, unless it only took up
/// an earlier permit under its [id](crate::Request::id). If the process dies, whoever is refused or waits next
/// gives back what is still in the future; what is not counts as used.
#[must_use = "dropping a booking gives it back"]
pub struct Booking {
    permit: Permit,
    latest: Latest,
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
    pub(crate) fn new(store: Arc<dyn Store>, claim: Claim, wait: Duration, latest: Latest) -> Self {
        let latest = match latest {
            // One that has passed means now.
            Latest::Until(deadline) => Latest::Until(deadline.max(claim.at)),
            latest => latest,
        };
        let permit = Permit::new(store, claim, wait);
        let mut inner = permit.lock();
        // Who takes up an earlier permit under its id gives nothing back by dropping it: it is somebody else's,
        // or was dropped by somebody who may go ahead with it.
        if inner.state == State::Open && !inner.claim.is_resumed {
            inner.state = State::Booked;
        }
        drop(inner);
        Self { permit, latest }
    }

    /// The instant at which the request is charged and the caller may go ahead, as far as is known here:
    /// [`check`](Self::check) looks.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.permit.at()
    }

    /// How long that was away when the request was booked; zero if it was admitted at once.
    #[must_use]
    pub const fn wait_time(&self) -> Duration {
        self.permit.waited
    }

    /// Sleeps until the booked instant. There is no polling, and the file is not touched, unless somebody
    /// [pauses](crate::Limiter::pause) a limit meanwhile: then the booking may have been moved, and this sleeps until the
    /// instant that it was moved to.
    ///
    /// # Errors
    /// [`Error::TooLate`] at once if it was moved beyond what its caller allowed, [`Error::Stopped`] if waiting was
    /// [stopped](crate::Limiter::stop_waiting), [`RequestError::Ended`](crate::RequestError::Ended) at the booked instant if
    /// somebody has settled or cancelled it under its [id](crate::Request::id) meanwhile, and whatever can happen to the file
    /// when it is looked at. The booking is given back then.
    pub fn wait(mut self) -> Result<Permit, Error> {
        if self.wait_time().is_zero() {
            return Ok(self.accept());
        }
        let store = Arc::clone(&self.permit.store);
        loop {
            let claim = self.permit.lock().claim.clone();
            // Should this thread unwind, the booking is dropped and given back.
            store.sleep(&claim);
            if store.is_stopped() {
                return Err(stopped(&*store, claim.first_key().unwrap_or_default()));
            }
            match self.has_come(&claim) {
                Ok(true) => break,
                Ok(false) => {}
                // There is time to look again.
                Err(Error::Busy { .. }) if store.clock().elapsed() < claim.wake_at => {}
                Err(error) => return Err(error),
            }
        }
        self.is_still_open()?;
        let waited = self.wait_time();
        let limit = self.permit.lock().claim.first_key().map(str::to_owned);
        tracing::debug!(limit, ?waited, "waited");
        Ok(self.accept())
    }

    /// Refuses to go ahead with what somebody else has settled or cancelled under its id.
    fn is_still_open(&self) -> Result<(), Error> {
        let claim = self.permit.lock().claim.clone();
        if !claim.has_id() || self.permit.store.is_open(&claim)? {
            return Ok(());
        }
        // There is nothing left to give back.
        self.permit.lock().state = State::Closed;
        Err(RequestError::Ended.into())
    }

    /// Looks, without sleeping, whether the booked instant has come, and whether the booking was moved: for event loops that
    /// have timers of their own. `None` if the caller may go ahead, and [`accept`](Self::accept); else how long until then.
    ///
    /// ```
    /// use quotalite::{Backoff, Limit, Limiter, ManualClock, SECOND};
    ///
    /// let clock = ManualClock::new();
    /// let limiter = Limiter::in_memory_with(clock.clone());
    /// limiter.define(Limit::new("mail").per_second(1))?;
    /// let first = limiter.book("mail")?.accept();
    /// let mut second = limiter.book("mail")?;
    /// limiter.pause("mail", Backoff::retry_after(20 * SECOND))?;
    /// clock.advance(SECOND);
    /// assert_eq!(second.check()?, Some(19 * SECOND));
    /// clock.advance(19 * SECOND);
    /// assert_eq!(second.check()?, None);
    /// let permit = second.accept();
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLate`] if it was moved beyond what its caller allowed, and whatever can happen to the file when it is looked at.
    /// The booking stays as it was; drop it to give it back.
    pub fn check(&mut self) -> Result<Option<Duration>, Error> {
        let claim = self.permit.lock().claim.clone();
        if self.has_come(&claim)? {
            return Ok(None);
        }
        let wake_at = self.permit.lock().claim.wake_at;
        let left = wake_at.saturating_sub(self.permit.store.clock().elapsed());
        Ok((!left.is_zero()).then_some(left))
    }

    /// Whether the instant of a claim has come, and still is the one; else the claim is as it is now.
    fn has_come(&mut self, claim: &Claim) -> Result<bool, Error> {
        let store = &self.permit.store;
        // In this order: who pauses the limit after it was looked at, has a later present, and moves this no more.
        let has_come = store.clock().elapsed() >= claim.wake_at;
        let Some(moved) = store.look_after(claim)? else {
            return self.is_early_enough(claim).map(|()| has_come);
        };
        let is_there = moved.at == claim.at;
        let further = moved.wake_at.saturating_sub(claim.wake_at);
        let less = claim.wake_at.saturating_sub(moved.wake_at);
        self.permit.waited = (self.permit.waited + further).saturating_sub(less);
        self.permit.at = moved.at;
        self.permit.lock().claim = moved.clone();
        self.is_early_enough(&moved)?;
        Ok(has_come && is_there)
    }

    /// Refuses an instant that is later than the caller allows.
    fn is_early_enough(&self, claim: &Claim) -> Result<(), Error> {
        let store = &self.permit.store;
        let before = |elapsed: Duration| {
            let earlier = claim.wake_at.saturating_sub(elapsed);
            claim.at.saturating_minus_ns(clamped_ns(earlier))
        };
        let deadline = match self.latest {
            Latest::Forever => return Ok(()),
            Latest::Until(deadline) => deadline,
            Latest::UntilElapsed(deadline) => before(deadline),
        };
        if claim.at <= deadline {
            return Ok(());
        }
        let now = before(store.clock().elapsed());
        let row = claim.rows.first();
        Err(Error::TooLate {
            denial: Denial::of_moved(
                row.map_or_else(|| "".into(), |row| Arc::clone(&row.key)),
                row.map_or(0, |row| row.amount),
                now,
                claim.at,
            ),
            deadline,
            file: store.place().to_owned(),
        })
    }

    /// Takes the permit without waiting, for event loops that have timers of their own: nothing may go
    /// ahead before [`Permit::at`], nor before [`check`](Self::check) has said at that instant that it was not moved. Until
    /// then the permit comes back when its process dies, unless it was settled.
    #[must_use]
    pub fn accept(self) -> Permit {
        let mut inner = self.permit.lock();
        if inner.state == State::Booked {
            inner.state = State::Open;
        }
        drop(inner);
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
