//! What is told while a job goes on.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use super::error::RetryErrorKind;
use super::in_seconds;

/// What becomes of a job while it runs, for whoever shows it to somebody: as text, it is a line of a status display.
///
/// ```
/// use std::sync::mpsc::channel;
/// use quotalite::{Answer, Jitter, Limit, Limiter, RetryPolicy, retry};
///
/// let limiter = Limiter::in_memory()?;
/// limiter.define(Limit::new("api").per_second(10))?;
/// let (sender, receiver) = channel();
/// let mut failures = 1;
/// let call = || {
///     if failures > 0 {
///         failures -= 1;
///         return Err("timeout");
///     }
///     Ok("done")
/// };
/// let policy = RetryPolicy::fixed(std::time::Duration::from_millis(20)).jitter(Jitter::None);
/// let done = retry(policy)
///     .classify_errors(|_: &&str| Answer::Transient)
///     .events(sender)
///     .run(&limiter, "api", call);
/// assert_eq!(done.unwrap(), "done");
/// let lines: Vec<String> = receiver.iter().map(|event| event.to_string()).collect();
/// assert_eq!(lines, ["retry 1/5 in 20 ms", "retry 1/5", "succeeded, in 2 tries"]);
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryEvent {
    /// A call was refused because of a limit. If limits are paused for it, they are paused by now.
    #[non_exhaustive]
    RateLimited {
        /// The name of the job.
        id: Arc<str>,
        /// When, by the wall clock.
        at: SystemTime,
        /// For how long to stay away, if that was said.
        retry_after: Option<Duration>,
    },
    /// The job waits, and will then be tried again.
    #[non_exhaustive]
    Retrying {
        /// The name of the job.
        id: Arc<str>,
        /// When, by the wall clock.
        at: SystemTime,
        /// Which retry this will be, from 1 on.
        retry: u32,
        /// How many there can be.
        of: u32,
        /// How long it will wait at least: the delay of the policy, or the rest of a pause that is longer. It may have to
        /// wait in line after that.
        delay: Duration,
    },
    /// The wait is over, the next try is admitted, and the call is made.
    #[non_exhaustive]
    Resumed {
        /// The name of the job.
        id: Arc<str>,
        /// When, by the wall clock.
        at: SystemTime,
        /// Which retry this is, from 1 on.
        retry: u32,
        /// How many there can be.
        of: u32,
    },
    /// The job is given up.
    #[non_exhaustive]
    GaveUp {
        /// The name of the job.
        id: Arc<str>,
        /// When, by the wall clock.
        at: SystemTime,
        /// How many calls were made.
        tries: u32,
        /// Why.
        kind: RetryErrorKind,
    },
    /// The job is done.
    #[non_exhaustive]
    Succeeded {
        /// The name of the job.
        id: Arc<str>,
        /// When, by the wall clock.
        at: SystemTime,
        /// How many calls were made.
        tries: u32,
    },
}

impl RetryEvent {
    /// The name of the job: what [`Retry::id`](crate::Retry::id) has named it, or a new
    /// [ULID](https://github.com/ulid/spec) for each run.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::RateLimited { id, .. }
            | Self::Retrying { id, .. }
            | Self::Resumed { id, .. }
            | Self::GaveUp { id, .. }
            | Self::Succeeded { id, .. } => id,
        }
    }

    /// When it happened, by the wall clock of the limiter.
    #[must_use]
    pub const fn at(&self) -> SystemTime {
        match self {
            Self::RateLimited { at, .. }
            | Self::Retrying { at, .. }
            | Self::Resumed { at, .. }
            | Self::GaveUp { at, .. }
            | Self::Succeeded { at, .. } => *at,
        }
    }

    fn trace(&self) {
        match self {
            Self::RateLimited {
                id, retry_after, ..
            } => tracing::debug!(job = %id, ?retry_after, "a call was rate limited"),
            Self::Retrying {
                id,
                retry,
                of,
                delay,
                ..
            } => tracing::info!(job = %id, retry, of, ?delay, "will be tried again"),
            Self::Resumed { id, retry, of, .. } => {
                tracing::debug!(job = %id, retry, of, "is tried again");
            }
            Self::GaveUp {
                id, tries, kind, ..
            } => tracing::warn!(job = %id, tries, why = %kind, "gave up"),
            Self::Succeeded { id, tries, .. } => tracing::debug!(job = %id, tries, "succeeded"),
        }
    }
}

impl fmt::Display for RetryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RateLimited { retry_after, .. } => match retry_after {
                Some(after) => write!(f, "rate limited for {}", in_seconds(*after)),
                None => f.write_str("rate limited"),
            },
            Self::Retrying {
                retry, of, delay, ..
            } => write!(f, "retry {retry}/{of} in {}", in_seconds(*delay)),
            Self::Resumed { retry, of, .. } => write!(f, "retry {retry}/{of}"),
            Self::GaveUp { tries, kind, .. } => {
                write!(f, "gave up after {}: {kind}", counted(*tries))
            }
            Self::Succeeded { tries, .. } => write!(f, "succeeded, in {}", counted(*tries)),
        }
    }
}

pub(super) fn counted(tries: u32) -> String {
    match tries {
        1 => "1 try".to_owned(),
        tries => format!("{tries} tries"),
    }
}

type Callback<'a> = Box<dyn FnMut(&RetryEvent) + 'a>;

/// Who is told.
#[derive(Default)]
pub(super) struct Listeners<'a> {
    pub(super) callbacks: Vec<Callback<'a>>,
    pub(super) channels: Vec<Sender<RetryEvent>>,
}

impl Listeners<'_> {
    pub(super) fn tell(&mut self, event: &RetryEvent) {
        event.trace();
        for callback in &mut self.callbacks {
            callback(event);
        }
        // Whoever has stopped listening is forgotten.
        self.channels
            .retain(|channel| channel.send(event.clone()).is_ok());
    }
}
