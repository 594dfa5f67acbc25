//! What callers tell everybody: that somebody was turned away, and what others have used.

use std::time::Duration;

use super::Limiter;
use crate::error::{Error, RequestError};
use crate::pause::{Backoff, Pause};

impl Limiter {
    /// Pauses a limit for every process: nobody is admitted by it before the pause ends, whatever its rates or slots have
    /// free. For whoever was turned away: a 429 teaches all.
    ///
    /// Until then every request that names the limit is denied with the end as its
    /// [`retry_after`](crate::Denial::retry_after) and [`Obstacle::Paused`](crate::Obstacle::Paused) as its reason, or waits
    /// for it. What is booked for an instant before the end is moved behind it, and what is booked after that as well, in
    /// their order; who waits for less long than that is told at once. Blocks end.
    ///
    /// The pause is as long as the [`Backoff`] asks for or the [`PausePolicy`](crate::PausePolicy) of the limit says, and
    /// no longer than the cap of that. A pause is never made shorter by another one: the one that ends last counts. While one
    /// is in force, another strike is taken for one more answer to what had been sent before, and does not make the next
    /// pauses longer. Returns the pause that is in force then.
    ///
    /// ```
    /// use quotalite::{Backoff, Decision, Limit, Limiter, SECOND};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("openai:requests").per_second(10))?;
    /// limiter.pause("openai:requests", Backoff::retry_after(20 * SECOND))?;
    /// let denial = limiter.try_acquire("openai:requests")?.denied().unwrap();
    /// assert!(denial.is_paused());
    /// assert!(denial.retry_after() > Some(19 * SECOND));
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownLimit`]; [`RequestError::IsPattern`](crate::RequestError::IsPattern), since each key of a pattern is paused by itself; and whatever can
    /// happen to the file. Nothing was paused then.
    pub fn pause(&self, key: impl AsRef<str>, backoff: Backoff) -> Result<Pause, Error> {
        let key = key.as_ref();
        self.check_no_pattern(key)?;
        let pause = self.store.pause(key, backoff)?;
        let length = pause.until().saturating_duration_since(pause.since());
        tracing::warn!(limit = key, ?length, strikes = pause.strikes(), "paused");
        if backoff.asks_for() > Some(length) {
            tracing::warn!(limit = key, asked_for = ?backoff.asks_for(), "the pause was cut to the cap of the limit");
        }
        Ok(pause)
    }

    /// Charges what others have used who take of the same, outside of this file: so much that no more of a rate is left than
    /// `remaining`, now. Returns how much that is; 0 if less is left already. Nothing is ever given back.
    ///
    /// The rate is the one with this window; if none is told, the only one, or that of a minute. The charge counts for a whole
    /// window, and never puts one over its capacity: of a limit of several rates, the one with the least room bounds it. Of a
    /// bucket, no more than `remaining` is left; slots are nobody else's.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("api").per_minute(500))?;
    /// assert_eq!(limiter.raise("api", None, 120)?, 380);
    /// assert_eq!(limiter.usage("api")?.available(), 120);
    /// assert_eq!(limiter.raise("api", None, 200)?, 0);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file. Nothing was charged then.
    pub fn raise(
        &self,
        key: impl AsRef<str>,
        window: Option<Duration>,
        remaining: u64,
    ) -> Result<u64, Error> {
        self.store.raise(key.as_ref(), window, remaining)
    }

    /// Ends the pause of a limit, for every process. What was moved behind it comes forward, in its order, and the limit
    /// starts slowly, as after any pause. The strikes that led to it still count for what is left of their time. Returns the
    /// pause that was in force, if one was.
    ///
    /// # Errors
    /// As [`pause`](Self::pause). The pause stays then.
    pub fn resume(&self, key: impl AsRef<str>) -> Result<Option<Pause>, Error> {
        let key = key.as_ref();
        self.check_no_pattern(key)?;
        let lifted = self.store.resume(key)?;
        if lifted.is_some() {
            tracing::info!(limit = key, "resumed");
        }
        Ok(lifted)
    }

    /// A pattern counts for nobody: what is said of it as a key would be heard by none of its keys.
    fn check_no_pattern(&self, key: &str) -> Result<(), Error> {
        let limit = self.store.limit(key)?;
        if limit.is_pattern() && limit.key() == key {
            let key = key.to_owned();
            return Err(RequestError::IsPattern { key }.into());
        }
        Ok(())
    }
}
