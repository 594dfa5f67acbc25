//! Why a job was given up.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::event::counted;
use super::policy::RetryPolicyError;
use crate::clock::Timestamp;
use crate::error::Error;

/// One call of a job that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    pub(super) at: Timestamp,
    pub(super) waited: Duration,
    pub(super) answer: Answer,
    pub(super) delay: Option<Duration>,
}

impl Try {
    /// The instant at which it was admitted and charged: [`Permit::at`](crate::Permit::at).
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// How long it had waited in line, the end of a pause included: [`Permit::waited`](crate::Permit::waited).
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// What its answer meant.
    #[must_use]
    pub const fn answer(&self) -> Answer {
        self.answer
    }

    /// How long the next one was to wait at least, from the answer on. `None` if it was decided then that there is no next
    /// one.
    #[must_use]
    pub const fn delay(&self) -> Option<Duration> {
        self.delay
    }
}

/// Why a job was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetryErrorKind {
    /// It has had all the retries of its policy.
    #[error("no retries are left")]
    Exhausted,
    /// The next try would have come too late: see [`RetryPolicy::within`](crate::RetryPolicy::within).
    #[error("the next try would come too late")]
    Deadline,
    /// All processes together have made as many retries as they may: see [`RetryBudget`](crate::RetryBudget).
    #[error("the budget for retries is used up")]
    Budget,
    /// The call would fail each time: [`Answer::Fatal`].
    #[error("another try would not help")]
    Fatal,
    /// The limiter has failed, or what it was asked is wrong: [`RetryError::limiter_error`] says how.
    #[error("the limiter has failed")]
    Limiter,
    /// The policy is wrong. Nothing was called.
    #[error(transparent)]
    Policy(#[from] RetryPolicyError),
}

/// A job that was given up: why, what the last call came to, and all the calls before.
///
/// `L` is what is kept of the last call: its error, or a [`Last`](crate::Last) where
/// [results](crate::Retry::classify) are looked at.
pub struct RetryError<L>(pub(super) Box<Told<L>>);

#[derive(Debug)]
pub(super) struct Told<L> {
    pub(super) id: Arc<str>,
    pub(super) kind: RetryErrorKind,
    pub(super) last: Option<L>,
    pub(super) limiter_error: Option<Error>,
    pub(super) tries: Vec<Try>,
}

impl<L> RetryError<L> {
    /// Why it was given up.
    #[must_use]
    pub const fn kind(&self) -> RetryErrorKind {
        self.0.kind
    }

    /// The name of the job, as in its [events](crate::RetryEvent::id).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// What the last call came to. `None` if none was made.
    #[must_use]
    pub const fn last(&self) -> Option<&L> {
        self.0.last.as_ref()
    }

    /// What the last call came to. `None` if none was made.
    #[must_use]
    pub fn into_last(self) -> Option<L> {
        self.0.last
    }

    /// What the limiter said: how it has failed, or [`Error::TooLate`], if it was its word that the next try would come too
    /// late.
    #[must_use]
    pub const fn limiter_error(&self) -> Option<&Error> {
        self.0.limiter_error.as_ref()
    }

    /// The calls that were made, in their order.
    #[must_use]
    pub fn tries(&self) -> &[Try] {
        &self.0.tries
    }
}

impl<L: fmt::Debug> fmt::Debug for RetryError<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            id,
            kind,
            last,
            limiter_error,
            tries,
        } = &*self.0;
        f.debug_struct("RetryError")
            .field("id", id)
            .field("kind", kind)
            .field("last", last)
            .field("limiter_error", limiter_error)
            .field("tries", tries)
            .finish()
    }
}

impl<L> fmt::Display for RetryError<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tries = u32::try_from(self.tries().len()).unwrap_or(u32::MAX);
        write!(f, "gave up after {}: {}", counted(tries), self.kind())
    }
}

/// Its source is what the limiter said if that has [failed](RetryErrorKind::Limiter), else what the last call came to.
impl<L: StdError + 'static> StdError for RetryError<L> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let limiter_error = self.limiter_error().map(|error| error as _);
        if self.kind() == RetryErrorKind::Limiter {
            return limiter_error;
        }
        self.last().map(|last| last as _).or(limiter_error)
    }
}
