//! Rates that follow what a provider allows.

use super::Limiter;
use crate::adaptive::Adaptive;
use crate::error::Error;
use crate::limit::Limit;

impl Limiter {
    /// Lets a rate follow what a provider allows, for all processes: say for each answer whether the provider refused because
    /// of a limit. A refusal cuts the capacity, at most once for a window, whichever process says it, so that many who are refused at once
    /// count once; a window without any raises it, if half of it is in use. Returns the limit as it is from now on, if this changed it.
    ///
    /// It is for rates: slots, buckets and quotas stay as they are. Of several rates it is about that of a
    /// [window](Adaptive::window), or of a minute if that is not told; the others still bound it. A cut counts as any lowered limit: nothing is taken back. [`changes`](Self::changes) tells the last ones.
    ///
    /// ```
    /// use quotalite::{Adaptive, Limit, Limiter, ManualClock, MINUTE};
    ///
    /// let clock = ManualClock::new();
    /// let limiter = Limiter::in_memory_with(clock.clone());
    /// limiter.define(Limit::new("api").per_minute(100))?;
    /// let adaptive = Adaptive::between(10, 1_000);
    /// assert_eq!(limiter.adapt("api", adaptive, true)?.unwrap().to_string(), "api: 70/min");
    /// assert_eq!(limiter.adapt("api", adaptive, true)?, None); // still the same overload
    /// clock.advance(MINUTE);
    /// limiter.acquire(("api", 40))?; // what is not in use does not grow
    /// assert_eq!(limiter.adapt("api", adaptive, false)?.unwrap().to_string(), "api: 80/min");
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`RequestError::Adaptive`](crate::RequestError::Adaptive) if a bound is 0 or they are the wrong way round, if it would not
    /// grow, or be cut to less than 1 or more than 99 percent; [`Error::UnknownLimit`]; and whatever can happen to the file.
    /// Nothing was changed then.
    pub fn adapt(
        &self,
        key: impl AsRef<str>,
        adaptive: Adaptive,
        was_refused: bool,
    ) -> Result<Option<Limit>, Error> {
        adaptive.check()?;
        let key = key.as_ref();
        let adapted = self.store.adapt(key, &adaptive, was_refused)?;
        if let Some(limit) = &adapted {
            tracing::info!(limit = key, adapted = %limit, was_refused, "adapted");
        }
        Ok(adapted)
    }
}
