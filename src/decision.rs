//! What comes of a request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::calendar::{self, Earliest, Ledgers, Line, Obstacle};
use crate::clock::Timestamp;
use crate::limit::Rate;
use crate::permit::Permit;

/// Whether a request was admitted.
#[derive(Debug)]
#[must_use = "a request that was denied must not go ahead"]
#[expect(
    clippy::large_enum_variant,
    reason = "most requests are granted, and a box would be an allocation for each"
)]
pub enum Decision {
    /// It was admitted and is charged.
    Granted(Permit),
    /// It was not admitted now, and nothing was charged.
    Denied(Denial),
}

impl Decision {
    /// Whether the request was admitted.
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        matches!(self, Self::Granted(_))
    }

    /// The permit, if the request was admitted.
    #[must_use]
    pub fn granted(self) -> Option<Permit> {
        match self {
            Self::Granted(permit) => Some(permit),
            Self::Denied(_) => None,
        }
    }

    /// The denial, if the request was not admitted.
    #[must_use]
    pub fn denied(self) -> Option<Denial> {
        match self {
            Self::Granted(_) => None,
            Self::Denied(denial) => Some(denial),
        }
    }
}

/// What would come of a request that is only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek {
    /// It would be admitted now.
    Now,
    /// It would be admitted later.
    Later(Denial),
}

impl Peek {
    /// Whether the request would be admitted now.
    #[must_use]
    pub const fn is_now(&self) -> bool {
        matches!(self, Self::Now)
    }

    /// When the request would be admitted, if that is later than now.
    #[must_use]
    pub const fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Now => None,
            Self::Later(denial) => Some(denial),
        }
    }
}

/// A request not admitted now: how long until it would be, and what stood in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    key: Arc<str>,
    rate: Rate,
    amount: u64,
    now: Timestamp,
    retry_at: Timestamp,
}

impl Denial {
    /// The key of the limit that has to be waited for longest.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The rate of that limit which has to be waited for longest.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// What was asked of that limit.
    #[must_use]
    pub const fn amount(&self) -> u64 {
        self.amount
    }

    /// When the decision was taken.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// The instant at which the same request would be admitted if nobody else came: not a nanosecond
    /// earlier, and not later.
    #[must_use]
    pub const fn retry_at(&self) -> Timestamp {
        self.retry_at
    }

    /// How long until [`retry_at`](Self::retry_at), counted from the decision.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        self.retry_at.saturating_duration_since(self.now)
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "limit `{}` ({}) admits {} in {}",
            self.key,
            self.rate,
            self.amount,
            for_people(self.retry_after())
        )
    }
}

/// A duration to the next millisecond, since who comes back too early is denied again; or in full, if it
/// is shorter than one.
pub(crate) fn for_people(duration: Duration) -> String {
    const MS: u128 = 1_000_000;
    if duration.as_nanos() < MS {
        return format!("{duration:?}");
    }
    let ms = u64::try_from(duration.as_nanos().div_ceil(MS)).unwrap_or(u64::MAX);
    format!("{:?}", Duration::from_millis(ms))
}

/// What the calendar says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Charge it at this instant.
    Admit(Timestamp),
    /// Charge nothing.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It fits only at this instant.
    Until { at: Timestamp, obstacle: Obstacle },
    /// It fits only at an instant that cannot be written down.
    Beyond { obstacle: Obstacle },
}

/// Decides a request: it is admitted at the earliest instant at which every window of every line allows
/// it, provided that this is no later than `latest`.
pub(crate) fn decide<L: Ledgers>(
    ledgers: &mut L,
    lines: &[Line<'_>],
    now: Timestamp,
    latest: Timestamp,
) -> Result<Verdict, L::Error> {
    Ok(match calendar::earliest(ledgers, lines, now)? {
        Earliest::Now => Verdict::Admit(now),
        Earliest::Later { at, .. } if at <= latest => Verdict::Admit(at),
        Earliest::Later { at, obstacle } => Verdict::Refuse(Refusal::Until { at, obstacle }),
        Earliest::Beyond { obstacle } => Verdict::Refuse(Refusal::Beyond { obstacle }),
    })
}

impl Denial {
    pub(crate) fn new(
        lines: &[Line<'_>],
        obstacle: &Obstacle,
        now: Timestamp,
        retry_at: Timestamp,
    ) -> Self {
        let line = &lines[obstacle.line];
        Self {
            key: Arc::clone(line.limit.shared_key()),
            rate: obstacle.rate,
            amount: line.amount.unsigned_abs(),
            now,
            retry_at,
        }
    }
}
