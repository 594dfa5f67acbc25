//! What the answers to calls mean.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// What the answer to a call means for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The call has done what it was made for.
    Success,
    /// It was refused because of a limit. The limits are paused for everybody, and it is tried again.
    RateLimited {
        /// For how long to stay away, if that was said.
        retry_after: Option<Duration>,
    },
    /// It failed, and may succeed another time: a timeout, a broken connection, a server in trouble. It is tried again.
    Transient,
    /// It would fail each time: nothing is tried again.
    Fatal,
}

impl Answer {
    /// What an HTTP response means: [`RateLimited`](Self::RateLimited) with its [`wait`](crate::Feedback::wait) if it
    /// [is](crate::Feedback::is_rate_limited); otherwise, 408 and what is 500 or more is [`Transient`](Self::Transient),
    /// other statuses from 400 on are [`Fatal`](Self::Fatal), and what is below that is a [`Success`](Self::Success). Needs
    /// the feature `http`.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use quotalite::{Answer, Feedback};
    ///
    /// let answer = |status, retry_after| {
    ///     let headers = [("retry-after", retry_after)];
    ///     Answer::of(&Feedback::read(status, headers, SystemTime::now()))
    /// };
    /// let in_a_second = Answer::RateLimited { retry_after: Some(Duration::from_secs(1)) };
    /// assert_eq!([answer(429, "1"), answer(503, "1")], [in_a_second; 2]);
    /// assert_eq!(answer(429, ""), Answer::RateLimited { retry_after: None });
    /// assert_eq!([answer(503, ""), answer(408, "")], [Answer::Transient; 2]);
    /// assert_eq!(answer(404, "1"), Answer::Fatal);
    /// assert_eq!(answer(204, ""), Answer::Success);
    /// ```
    #[cfg(feature = "http")]
    #[must_use]
    pub fn of(feedback: &crate::Feedback) -> Self {
        if feedback.is_rate_limited() {
            let retry_after = feedback.wait();
            return Self::RateLimited { retry_after };
        }
        match feedback.status() {
            408 | 500.. => Self::Transient,
            400.. => Self::Fatal,
            _ => Self::Success,
        }
    }

    /// What a response of the crate [`http`] means, or of a client that uses its types: as [`of`](Self::of). `now` is when
    /// it came, by the clock of this machine. Needs the feature `http`.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn of_response(
        status: http::StatusCode,
        headers: &http::HeaderMap,
        now: std::time::SystemTime,
    ) -> Self {
        Self::of(&crate::Feedback::of_response(status, headers, now))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::RateLimited { retry_after: None } => f.write_str("rate limited"),
            Self::RateLimited {
                retry_after: Some(after),
            } => write!(f, "rate limited for {}", super::in_seconds(*after)),
            Self::Transient => f.write_str("failed, perhaps not for long"),
            Self::Fatal => f.write_str("failed for good"),
        }
    }
}

impl StdError for Answer {}

/// Errors that know what they mean for the next try.
///
/// ```
/// use std::time::Duration;
/// use quotalite::{Answer, Retryable};
///
/// enum ApiError {
///     TooManyRequests { seconds: u64 },
///     Timeout,
///     NotAuthorized,
/// }
///
/// impl Retryable for ApiError {
///     fn answer(&self) -> Answer {
///         match self {
///             Self::TooManyRequests { seconds } => Answer::RateLimited {
///                 retry_after: Some(Duration::from_secs(*seconds)),
///             },
///             Self::Timeout => Answer::Transient,
///             Self::NotAuthorized => Answer::Fatal,
///         }
///     }
/// }
/// ```
pub trait Retryable {
    /// What the error means. One that says [`Answer::Success`] is taken for [`Answer::Fatal`]: there is nothing to return in
    /// its place.
    fn answer(&self) -> Answer;
}

/// How a retry comes to know what a result means: by its error [itself](Itself), or by a function of the caller's, of
/// [errors](crate::Retry::classify_errors) or of [results](crate::Retry::classify).
pub trait Classify<T, E>: private::Sealed {
    /// What is kept of the last call when a job is given up.
    type Last;

    /// What the call has returned, or what it means that it has not.
    #[doc(hidden)]
    fn judge(&mut self, result: Result<T, E>) -> Result<T, (Answer, Self::Last)>;
}

mod private {
    pub trait Sealed {}
}

/// Errors say themselves what they mean: see [`Retryable`]. What is `Ok` is a success.
#[derive(Clone, Copy, Debug, Default)]
pub struct Itself;

/// A function says what errors mean: see [`Retry::classify_errors`](crate::Retry::classify_errors).
#[derive(Clone, Copy, Debug)]
pub struct ErrorsBy<F>(pub(super) F);

/// A function says what results mean: see [`Retry::classify`](crate::Retry::classify).
#[derive(Clone, Copy, Debug)]
pub struct ResultsBy<F>(pub(super) F);

impl private::Sealed for Itself {}
impl<F> private::Sealed for ErrorsBy<F> {}
impl<F> private::Sealed for ResultsBy<F> {}

impl<T, E: Retryable> Classify<T, E> for Itself {
    type Last = E;

    fn judge(&mut self, result: Result<T, E>) -> Result<T, (Answer, E)> {
        result.map_err(|error| (of_failure(error.answer()), error))
    }
}

impl<T, E, F: FnMut(&E) -> Answer> Classify<T, E> for ErrorsBy<F> {
    type Last = E;

    fn judge(&mut self, result: Result<T, E>) -> Result<T, (Answer, E)> {
        result.map_err(|error| (of_failure((self.0)(&error)), error))
    }
}

impl<T, E, F: FnMut(&Result<T, E>) -> Answer> Classify<T, E> for ResultsBy<F> {
    type Last = Last<T, E>;

    fn judge(&mut self, result: Result<T, E>) -> Result<T, (Answer, Last<T, E>)> {
        let answer = (self.0)(&result);
        match result {
            Ok(value) if answer == Answer::Success => Ok(value),
            Ok(value) => Err((answer, Last::Returned(value))),
            Err(error) => Err((of_failure(answer), Last::Failed(error))),
        }
    }
}

/// There is nothing to return in place of an error.
fn of_failure(answer: Answer) -> Answer {
    match answer {
        Answer::Success => Answer::Fatal,
        answer => answer,
    }
}

/// What the last call of a job that was given up came to, where [results](crate::Retry::classify) are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last<T, E> {
    /// A value that was taken for no success: a response with the status 429, say.
    Returned(T),
    /// An error.
    Failed(E),
}

impl<T, E> From<Last<T, E>> for Result<T, E> {
    fn from(last: Last<T, E>) -> Self {
        match last {
            Last::Returned(value) => Ok(value),
            Last::Failed(error) => Err(error),
        }
    }
}

impl<T, E: fmt::Display> fmt::Display for Last<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(_) => f.write_str("what was returned is no success"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<T: fmt::Debug, E: StdError + 'static> StdError for Last<T, E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Returned(_) => None,
            // The error speaks for itself, and is not named twice.
            Self::Failed(error) => error.source(),
        }
    }
}
