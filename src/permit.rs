//! What callers hold: permits, and bookings that become permits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{Claim, Store};

/// A request that was admitted and is charged.
///
/// Dropping it changes nothing: what was charged stays charged until it leaves its windows.
#[derive(Debug)]
pub struct Permit {
    at: Timestamp,
    waited: Duration,
}

impl Permit {
    pub(crate) const fn new(at: Timestamp, waited: Duration) -> Self {
        Self { at, waited }
    }

    /// The instant at which the request is charged in all its limits.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// How long the request waited in line: from the decision to the instant of the charge.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }
}

/// A place in line: the request is charged at an instant that is now or lies in the future.
///
/// [`wait`](Self::wait) sleeps until then and gives the permit; [`accept`](Self::accept) gives it without
/// sleeping. A booking that is dropped instead is given back, even after its instant. If the process dies, whoever is refused or waits next gives back what
/// is still in the future; what is not counts as used.
#[must_use = "dropping a booking gives it back"]
pub struct Booking {
    store: Arc<dyn Store>,
    claim: Option<Claim>,
    booked_at: Timestamp,
    at: Timestamp,
    /// The first key of the request, if this has to wait.
    key: Option<Box<str>>,
}

impl fmt::Debug for Booking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booking")
            .field("at", &self.at)
            .field("wait_time", &self.wait_time())
            .finish_non_exhaustive()
    }
}

impl Booking {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        claim: Claim,
        booked_at: Timestamp,
        key: &str,
    ) -> Self {
        Self {
            store,
            at: claim.at,
            key: (claim.at > booked_at).then(|| key.into()),
            claim: Some(claim),
            booked_at,
        }
    }

    /// The instant at which the request is charged and the caller may go ahead.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// How long that was away when the request was booked; zero if it was admitted at once.
    #[must_use]
    pub const fn wait_time(&self) -> Duration {
        self.at.saturating_duration_since(self.booked_at)
    }

    /// Sleeps until the booked instant. There is no polling, and the file is not touched.
    #[must_use]
    pub fn wait(self) -> Permit {
        let waited = self.wait_time();
        if let Some(claim) = &self.claim
            && !waited.is_zero()
        {
            self.store.clock().sleep_until(claim.wake_at);
            tracing::debug!(limit = self.key.as_deref(), ?waited, "waited");
        }
        // The claim stays in place while this sleeps, so that an unwinding thread gives it back.
        self.accept()
    }

    /// Takes the permit without waiting, for event loops that have timers of their own: nothing may go
    /// ahead before [`Permit::at`]. Until then the booking lives as long as its limiter does, and comes
    /// back when that is dropped or its process dies.
    #[must_use]
    pub fn accept(mut self) -> Permit {
        if let Some(claim) = self.claim.take() {
            self.store.accept(&claim);
        }
        Permit::new(self.at, self.wait_time())
    }

    /// Gives everything back.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Moved`], [`Error::Sqlite`] and what else can happen to the file. The charge
    /// then stays, and counts as used.
    pub fn cancel(mut self) -> Result<(), Error> {
        match self.claim.take() {
            Some(claim) => self.store.cancel(&claim),
            None => Ok(()),
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take()
            && let Err(error) = self.store.cancel(&claim)
        {
            tracing::warn!(limit = self.key.as_deref(), %error, "a dropped booking could not be given back and counts as used");
        }
    }
}
