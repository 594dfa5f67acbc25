//! Buckets that refill.

use std::fmt;
use std::time::Duration;

use super::rate::{check_capacity, nanos};
use super::{LimitError, MAX_WINDOW, Rate, Window};

/// A token bucket: it holds `burst` at most, is full at first, and refills evenly. What is charged is taken out; what
/// it does not hold has to be waited for.
///
/// It is kept as the instant at which it will be full again: the [generic cell rate algorithm][gcra], in whole
/// numbers and without rounding.
///
/// [gcra]: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
///
/// ```
/// use quotalite::{Limit, Limiter, ManualClock, SECOND};
///
/// let clock = ManualClock::new();
/// let limiter = Limiter::in_memory_with(clock.clone());
/// limiter.define(Limit::new("api").burst(20).refill(10, SECOND))?;
/// assert!(limiter.try_acquire(("api", 20))?.is_granted());
/// let denial = limiter.try_acquire(("api", 1))?.denied().unwrap();
/// assert_eq!(denial.retry_after(), Some(SECOND / 10));
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    burst: i64,
    refill: i64,
    per_ns: i64,
}

impl Bucket {
    pub(super) fn new(burst: u64, refill: Rate) -> Result<Self, LimitError> {
        let Window::Rolling(per) = refill.window() else {
            return Err(LimitError::NotForBuckets {
                what: "calendar quota",
            });
        };
        let bucket = Self {
            burst: check_capacity(burst)?,
            refill: refill.capacity_units(),
            per_ns: nanos(per),
        };
        let longest = i128::from(nanos(MAX_WINDOW)) * i128::from(bucket.refill);
        if bucket.depth() > longest {
            return Err(LimitError::SlowRefill { burst, refill });
        }
        Ok(bucket)
    }

    /// What it holds when it is full: the most that can be taken at once.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        self.burst.unsigned_abs()
    }

    /// How much flows into it in [`per`](Self::per).
    #[must_use]
    pub const fn refill(&self) -> u64 {
        self.refill.unsigned_abs()
    }

    /// The time in which [`refill`](Self::refill) flows into it, evenly.
    #[must_use]
    pub const fn per(&self) -> Duration {
        Duration::from_nanos(self.per_ns.unsigned_abs())
    }

    /// One of the same size that refills in another way, as a file says.
    pub(crate) fn refilling(self, refill: i64, per_ns: i64) -> Self {
        Self {
            refill: refill.max(1),
            per_ns: per_ns.max(1),
            ..self
        }
    }

    /// How many parts a nanosecond has, so that whatever is taken out comes back after a whole number of them.
    pub(crate) const fn parts(&self) -> i128 {
        self.refill as i128
    }

    /// How many parts of nanoseconds it takes until this much has come back.
    pub(crate) const fn weight(&self, amount: i64) -> i128 {
        amount as i128 * self.per_ns as i128
    }

    /// How many parts of nanoseconds it takes to fill it when it is empty.
    pub(crate) const fn depth(&self) -> i128 {
        self.weight(self.burst)
    }

    pub(crate) const fn per_ns(&self) -> i64 {
        self.per_ns
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

impl Bucket {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, unit: Option<&str>) -> fmt::Result {
        write!(f, "burst {}", self.burst)?;
        if let Some(unit) = unit {
            write!(f, " {unit}")?;
        }
        match Rate::new(self.refill(), self.per()) {
            Ok(rate) => write!(f, ", refill {rate}"),
            Err(_) => Ok(()),
        }
    }
}
