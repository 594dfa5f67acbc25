//! What a provider says, for everybody: pauses, what others have used, and what it allows.

use http::{HeaderMap, StatusCode};

use super::Limiter;
use crate::error::Error;
use crate::feedback::{Advertised, Feedback, Heard, Learned, LimitSet};

impl Limiter {
    /// Takes what an HTTP response says about limits for all processes: see [`heed`](Self::heed), and
    /// [`Feedback`] for what is read. Needs the feature `http`.
    ///
    /// ```
    /// use quotalite::{Limit, LimitSet, Limiter, SECOND};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("openai:requests").per_second(10))?;
    /// let openai = LimitSet::new().requests("openai:requests");
    /// let response = http::Response::builder().status(429).header("Retry-After", "7").body(()).unwrap();
    /// let heard = limiter.feedback(&openai, response.status(), response.headers())?;
    /// assert_eq!(heard.paused()[0].0, "openai:requests");
    /// let denial = limiter.try_acquire("openai:requests")?.denied().unwrap();
    /// assert!(denial.is_paused() && denial.retry_after() > Some(6 * SECOND));
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`heed`](Self::heed).
    pub fn feedback(
        &self,
        set: &LimitSet,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Heard, Error> {
        let now = self.store.clock().wall();
        self.heed(set, Feedback::of_response(status, headers, now))
    }

    /// Takes what a provider says for all processes:
    ///
    /// - If it has [refused](Feedback::is_rate_limited) a request because of a limit, the limits that nothing remains of are
    ///   [paused](Self::pause), or the first one of the set if it does not say which these are: for as
    ///   [long](Feedback::wait) as it says, or by the limits' own policies.
    /// - Where less remains than our ledger would admit, others have used the rest: as much is charged, so that no more is
    ///   admitted than remains. It counts for a whole window, and never puts a window over its capacity: of a limit of several
    ///   rates, the one with the least room bounds it. Where more remains than we think, nothing is given back.
    /// - If the set is [`learning`](LimitSet::learning), limits become what it allows: see [`learn`](Self::learn).
    ///
    /// What is not about a limit of the set is only told. A provider that does not tell a window means that of the limit, if it
    /// has one rate, or else its minute.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`] if a limit is not defined that the response tells of, and whatever can happen to the file. Each limit is dealt with by itself, and what was done before stays.
    pub fn heed(&self, set: &LimitSet, feedback: Feedback) -> Result<Heard, Error> {
        let mut heard = Heard {
            paused: Vec::new(),
            raised: Vec::new(),
            learned: Vec::new(),
            feedback,
        };
        for (key, backoff) in set.paused(&heard.feedback) {
            heard
                .paused
                .push((key.to_owned(), self.pause(key, backoff)?));
        }
        if set.learns() {
            heard.learned = self.learn(set, &heard.feedback)?;
        }
        for (key, told) in set.told(&heard.feedback) {
            let Some(remaining) = told.remaining() else {
                continue;
            };
            let raised = self.raise(key, told.window(), remaining)?;
            if raised > 0 {
                tracing::debug!(limit = key, remaining, raised, "others have used it, too");
                heard.raised.push((key.to_owned(), raised));
            }
        }
        Ok(heard)
    }

    /// Lets limits become what a provider says that it allows, less a [margin](LimitSet::margin), for all processes. Returns
    /// those that are another now, as they were and as they are; [`changes`](Self::changes) tells them, too.
    ///
    /// A provider that does not tell a window means that of the limit, if it has one rate, or else its minute; unless it says that
    /// more comes back only after two such windows or later, as OpenAI does where it counts by the day: then nothing is
    /// learned. A day's figure of which little is used looks like a minute's: where a provider may count by the day, learn
    /// with [`only_lowering`](LimitSet::only_lowering). A rate takes the place of the one with the same window, or is added; the slots of a concurrency limit become so many. Buckets stay, and
    /// so do limits that cannot be what is told.
    ///
    /// # Errors
    /// As [`heed`](Self::heed).
    pub fn learn(&self, set: &LimitSet, feedback: &Feedback) -> Result<Vec<Learned>, Error> {
        let mut all = Vec::new();
        for (key, told) in set.told(feedback) {
            let is_stricter = |(other, stricter): (&str, &Advertised)| {
                other == key
                    && stricter.window() == told.window()
                    && stricter.limit() < told.limit()
            };
            // Of several policies that count the same over the same time, the strictest is the one to keep to.
            if set
                .told(feedback)
                .filter(|(_, told)| told.limit().is_some())
                .any(is_stricter)
            {
                continue;
            }
            let limit = self.store.limit(key)?;
            let Some(learned) = set.learned(&limit, told) else {
                continue;
            };
            if learned == limit {
                continue;
            }
            let former = self.update(key, |limit| {
                set.learned(limit, told).unwrap_or_else(|| limit.clone())
            })?;
            tracing::info!(limit = key, %former, learned = %learned, "learned");
            all.push(Learned {
                former,
                limit: learned,
            });
        }
        Ok(all)
    }
}
