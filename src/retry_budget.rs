//! How many retries all processes together may make.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::RequestError;
use crate::limit::{HOUR, MINUTE, SECOND, nanos};

/// How many of all calls may be retries, over all processes that use a file: so that many who fail do not make a server that
/// has trouble fail for good. For [`Limiter::try_retry`](crate::Limiter::try_retry).
///
/// ```
/// use quotalite::{Limiter, RetryBudget};
///
/// let limiter = Limiter::in_memory()?;
/// let budget = RetryBudget::default().at_least(1);
/// for _ in 0..10 {
///     limiter.note_call("openai")?;
/// }
/// let retries = (0..5).filter(|_| limiter.try_retry("openai", budget).unwrap()).count();
/// assert_eq!(retries, 2); // 20 % of 10
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to `try_retry`"]
pub struct RetryBudget {
    percent: u32,
    at_least: u32,
    window: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            at_least: 3,
            window: MINUTE,
        }
    }
}

impl RetryBudget {
    /// How many retries there may be for a hundred calls of the window. Defaults to 20.
    pub const fn percent(mut self, percent: u32) -> Self {
        self.percent = percent;
        self
    }

    /// So many retries there may be in a window, however few calls there are. Defaults to 3.
    pub const fn at_least(mut self, at_least: u32) -> Self {
        self.at_least = at_least;
        self
    }

    /// The time over which calls and retries are counted, by the second and on the strict side. Defaults to a minute.
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The shortest and the longest window.
    const WINDOWS: (Duration, Duration) = (SECOND, HOUR);

    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let (shortest, longest) = Self::WINDOWS;
        if self.window < shortest || self.window > longest {
            return Err(RequestError::BudgetWindow {
                window: self.window,
            });
        }
        Ok(())
    }

    /// Since when calls are counted, and since when retries are: what began within a second that is counted only in part, is a
    /// retry of the window, and no call of it.
    pub(crate) fn since(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let calls = now.saturating_minus_ns(nanos(self.window));
        (calls, calls.saturating_minus_ns(SPAN_NS))
    }

    /// Whether there may be one retry more.
    pub(crate) fn allows(&self, calls: i64, retries: i64) -> bool {
        let share = i128::from(calls) * i128::from(self.percent) / 100;
        i128::from(retries) < share.max(i128::from(self.at_least))
    }
}

/// Calls and retries are counted together that begin within this time.
pub(crate) const SPAN_NS: i64 = 1_000_000_000;

/// Where those are counted that begin at an instant.
pub(crate) fn span_of(at: Timestamp) -> Timestamp {
    at.saturating_minus_ns(at.as_nanos().rem_euclid(SPAN_NS))
}

/// For how long they are remembered: as long as any budget counts them.
pub(crate) const REMEMBERED_NS: i64 = 3_602 * SPAN_NS;
