//! Limits: named budgets that cannot be built wrong.

mod builder;
mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use builder::LimitBuilder;
pub use text::ParseRatesError;

use crate::settlement::Overage;

/// One second, as a window.
pub const SECOND: Duration = Duration::from_secs(1);
/// One minute, as a window.
pub const MINUTE: Duration = Duration::from_secs(60);
/// One hour, as a window.
pub const HOUR: Duration = Duration::from_secs(60 * 60);
/// One day of 24 hours, as a window.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The largest capacity of a rate, 2^53: the integers up to here survive every tool that an operator
/// may read the file with.
pub const MAX_CAPACITY: u64 = 1 << 53;
/// The shortest window of a rate, 1 ms.
pub const MIN_WINDOW: Duration = Duration::from_millis(1);
/// The longest window of a rate, 366 days; also the longest pad.
pub const MAX_WINDOW: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// How many rates one limit can have.
pub const MAX_RATES: usize = 16;
/// How many bytes a key can have.
pub const MAX_KEY_BYTES: usize = 256;
/// How many bytes a unit can have.
pub const MAX_UNIT_BYTES: usize = 64;

/// A capacity per window: at every instant, the charges of the window that ends there sum up to at
/// most the capacity.
///
/// ```
/// use quotalite::{MINUTE, Rate};
///
/// let rate = Rate::new(300, MINUTE)?;
/// assert_eq!(rate.to_string(), "300/min");
/// assert_eq!("300/min".parse::<Rate>().unwrap(), rate);
/// # Ok::<(), quotalite::LimitError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    capacity: i64,
    window_ns: i64,
}

impl Rate {
    /// A rate of `capacity` per `window`.
    ///
    /// # Errors
    /// [`LimitError::Capacity`] unless the capacity is 1 to [`MAX_CAPACITY`], and
    /// [`LimitError::Window`] unless the window is [`MIN_WINDOW`] to [`MAX_WINDOW`].
    pub fn new(capacity: u64, window: Duration) -> Result<Self, LimitError> {
        if capacity == 0 || capacity > MAX_CAPACITY {
            return Err(LimitError::Capacity { capacity });
        }
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            return Err(LimitError::Window { window });
        }
        let (Ok(capacity_units), Ok(window_ns)) =
            (i64::try_from(capacity), i64::try_from(window.as_nanos()))
        else {
            return Err(LimitError::Capacity { capacity });
        };
        Ok(Self {
            capacity: capacity_units,
            window_ns,
        })
    }

    /// How much may be charged in one window.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity.unsigned_abs()
    }

    /// The length of the window, without the limit's pad.
    #[must_use]
    pub const fn window(&self) -> Duration {
        Duration::from_nanos(self.window_ns.unsigned_abs())
    }

    pub(crate) const fn capacity_units(&self) -> i64 {
        self.capacity
    }

    pub(crate) const fn window_ns(&self) -> i64 {
        self.window_ns
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rate({self})")
    }
}

/// A named budget: a key, a unit, and rates or slots. It is always valid; build one with [`Limit::new`] or
/// [`Limit::slots`], or hand the builder itself to [`Limiter::define`](crate::Limiter::define).
///
/// ```
/// use quotalite::{Limit, MINUTE};
///
/// let limit = Limit::new("openai:tokens").rate(90_000, MINUTE).unit("tokens").build()?;
/// assert_eq!(limit.to_string(), "openai:tokens: 90000 tokens/min");
/// # Ok::<(), quotalite::LimitError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    key: Arc<str>,
    unit: Option<String>,
    pad_ns: i64,
    /// By window, shortest first; no two share a window. Empty for slots.
    rates: Vec<Rate>,
    overage: Overage,
    slots: Option<Slots>,
}

/// A concurrency limit: how many may be held at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slots {
    count: i64,
    timeout_ns: Option<i64>,
}

impl Limit {
    /// Starts the definition of a limit. What is wrong with it is told by
    /// [`LimitBuilder::build`], or by the `define` that the builder is given to.
    #[expect(
        clippy::new_ret_no_self,
        reason = "a limit that has no rate yet is no limit; this keeps the definition one line"
    )]
    pub fn new(key: impl Into<String>) -> LimitBuilder {
        LimitBuilder::new(key.into())
    }

    /// Starts the definition of a concurrency limit: at most `count` may be held at once. A slot comes back
    /// when its permit is settled, cancelled or dropped, and when its process ends, however it ends.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::slots("in-flight", 2))?;
    /// let (first, second) = (limiter.acquire("in-flight")?, limiter.acquire("in-flight")?);
    /// assert!(!limiter.try_acquire("in-flight")?.is_granted());
    /// drop(first);
    /// assert!(limiter.try_acquire("in-flight")?.is_granted());
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn slots(key: impl Into<String>, count: u64) -> LimitBuilder {
        LimitBuilder::slots(key.into(), count)
    }

    /// The name under which requests take from this limit.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What an amount counts, if the definition says so: `tokens`.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_deref()
    }

    /// By how much each window is lengthened.
    #[must_use]
    pub const fn pad(&self) -> Duration {
        Duration::from_nanos(self.pad_ns.unsigned_abs())
    }

    /// What happens when a permit used more than was charged for it.
    #[must_use]
    pub const fn overage(&self) -> Overage {
        self.overage
    }

    /// How many may be held at once, if this is a concurrency limit.
    #[must_use]
    pub fn slot_count(&self) -> Option<u64> {
        self.slots.map(|slots| slots.count.unsigned_abs())
    }

    /// After how long a slot comes back although its permit is still held, if that is limited.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        let timeout_ns = self.slots?.timeout_ns?;
        Some(Duration::from_nanos(timeout_ns.unsigned_abs()))
    }

    /// The rates, shortest window first; none if this is a concurrency limit.
    #[must_use]
    pub fn rates(&self) -> &[Rate] {
        &self.rates
    }

    pub(crate) fn shared_key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) const fn pad_ns(&self) -> i64 {
        self.pad_ns
    }

    /// How long a charge counts in this rate: its window and the pad.
    pub(crate) const fn reach_ns(&self, rate: &Rate) -> i64 {
        rate.window_ns + self.pad_ns
    }

    /// How long a charge counts in any rate of this limit.
    pub(crate) fn longest_reach_ns(&self) -> i64 {
        self.rates.last().map_or(0, |rate| self.reach_ns(rate))
    }

    pub(crate) fn timeout_ns(&self) -> Option<i64> {
        self.slots?.timeout_ns
    }

    /// What one request can ask for at most: the slots, or the rate with the smallest capacity.
    pub(crate) fn tightest(&self) -> Obstacle {
        if let Some(slots) = self.slots {
            return Obstacle::Slots(slots.count.unsigned_abs());
        }
        let mut tightest = self.rates[0];
        for rate in &self.rates {
            if rate.capacity < tightest.capacity {
                tightest = *rate;
            }
        }
        Obstacle::Rate(tightest)
    }
}

/// What stands in the way of a request: a rate, or slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// A rate, one of the limit's.
    Rate(Rate),
    /// The limit's slots, so many.
    Slots(u64),
}

impl Obstacle {
    /// The most that it could ever admit at once.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        match self {
            Self::Rate(rate) => rate.capacity(),
            Self::Slots(count) => *count,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => rate.fmt(f),
            Self::Slots(1) => f.write_str("1 slot"),
            Self::Slots(count) => write!(f, "{count} slots"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        match self.slot_count() {
            Some(count) => Obstacle::Slots(count).fmt(f)?,
            None => text::write_rates(f, &self.rates, self.unit())?,
        }
        if let Some(timeout) = self.timeout() {
            write!(f, ", timeout {timeout:?}")?;
        }
        if self.pad_ns > 0 {
            write!(f, ", pad {:?}", self.pad())?;
        }
        if self.overage != Overage::default() {
            write!(f, ", overage {}", self.overage.as_str())?;
        }
        Ok(())
    }
}

/// What is wrong with the definition of a limit. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The key is empty or longer than [`MAX_KEY_BYTES`].
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, this one has {bytes}")]
    KeyLength {
        /// How many bytes the key has.
        bytes: usize,
    },
    /// The key holds a control character.
    #[error("a key has no control characters, this one has one at byte {offset}")]
    KeyControl {
        /// Where the character stands.
        offset: usize,
    },
    /// The unit is empty, longer than [`MAX_UNIT_BYTES`], or holds a control character.
    #[error(
        "a unit has 1 to {MAX_UNIT_BYTES} bytes and no control characters, this one has {bytes} bytes"
    )]
    Unit {
        /// How many bytes the unit has.
        bytes: usize,
    },
    /// Two different units are given.
    #[error("a limit has one unit, not `{given}` and `{unit}`")]
    TwoUnits {
        /// The first one.
        given: String,
        /// The other one.
        unit: String,
    },
    /// There is no rate.
    #[error("a limit needs at least one rate")]
    NoRate,
    /// The number of slots is 0 or above [`MAX_CAPACITY`].
    #[error("a limit has 1 to {MAX_CAPACITY} slots, not {count}")]
    Slots {
        /// The number asked for.
        count: u64,
    },
    /// The timeout is shorter than [`MIN_WINDOW`] or longer than [`MAX_WINDOW`].
    #[error("a timeout is 1 ms to 366 days, not {timeout:?}")]
    Timeout {
        /// The timeout asked for.
        timeout: Duration,
    },
    /// A limit of slots was given something that belongs to rates.
    #[error("a limit of slots has no {what}")]
    NotForSlots {
        /// What it was given.
        what: &'static str,
    },
    /// A limit of rates was given a timeout.
    #[error("only a limit of slots has a timeout")]
    OnlyForSlots,
    /// There are more than [`MAX_RATES`] rates.
    #[error("a limit has at most {MAX_RATES} rates, this one has {count}")]
    TooManyRates {
        /// How many rates there are.
        count: usize,
    },
    /// Two rates have the same window, of which one could never matter.
    #[error("two rates have the same window of {window:?}")]
    SameWindow {
        /// The window.
        window: Duration,
    },
    /// The capacity is 0 or above [`MAX_CAPACITY`].
    #[error("a capacity is 1 to {MAX_CAPACITY}, not {capacity}")]
    Capacity {
        /// The capacity asked for.
        capacity: u64,
    },
    /// The window is shorter than [`MIN_WINDOW`] or longer than [`MAX_WINDOW`].
    #[error("a window is 1 ms to 366 days, not {window:?}")]
    Window {
        /// The window asked for.
        window: Duration,
    },
    /// The pad is longer than [`MAX_WINDOW`].
    #[error("a pad is at most 366 days, not {pad:?}")]
    Pad {
        /// The pad asked for.
        pad: Duration,
    },
    /// The text is not a list of rates.
    #[error(transparent)]
    Text(#[from] ParseRatesError),
}

impl From<std::convert::Infallible> for LimitError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_limit_cannot_be_built() {
        let cases = [
            (
                Limit::new("").per_second(1),
                "a key has 1 to 256 bytes, this one has 0",
            ),
            (
                Limit::new("k".repeat(257)).per_second(1),
                "a key has 1 to 256 bytes, this one has 257",
            ),
            (
                Limit::new("a\nb").per_second(1),
                "a key has no control characters, this one has one at byte 1",
            ),
            (
                Limit::new("k").rates("10 tokens/s").unit("calls"),
                "a limit has one unit, not `tokens` and `calls`",
            ),
            (Limit::new("k"), "a limit needs at least one rate"),
            (
                Limit::new("k").per_second(0),
                "a capacity is 1 to 9007199254740992, not 0",
            ),
            (
                Limit::new("k").per_second(MAX_CAPACITY + 1),
                "a capacity is 1 to 9007199254740992, not 9007199254740993",
            ),
            (
                Limit::new("k").rate(1, Duration::from_micros(999)),
                "a window is 1 ms to 366 days, not 999µs",
            ),
            (
                Limit::new("k").rate(1, MAX_WINDOW + Duration::from_nanos(1)),
                "a window is 1 ms to 366 days, not 31622400.000000001s",
            ),
            (
                Limit::new("k").per_second(1).rate(2, SECOND),
                "two rates have the same window of 1s",
            ),
            (
                Limit::new("k").per_second(1).pad(Duration::MAX),
                "a pad is at most 366 days, not 18446744073709551615.999999999s",
            ),
            (
                Limit::new("k").per_second(1).unit(""),
                "a unit has 1 to 64 bytes and no control characters, this one has 0 bytes",
            ),
        ];
        for (builder, message) in cases {
            assert_eq!(builder.build().unwrap_err().to_string(), message);
        }
        let many = (1..=17).fold(Limit::new("k"), |builder, n| {
            builder.rate(1, Duration::from_secs(n))
        });
        assert_eq!(many.build(), Err(LimitError::TooManyRates { count: 17 }));
    }

    #[test]
    fn the_bounds_themselves_are_allowed() {
        let limit = Limit::new("k".repeat(MAX_KEY_BYTES))
            .rate(MAX_CAPACITY, MIN_WINDOW)
            .rate(1, MAX_WINDOW)
            .pad(MAX_WINDOW)
            .build()
            .unwrap();
        assert_eq!(limit.longest_reach_ns(), 2 * 31_622_400_000_000_000);
        assert_eq!(limit.tightest().capacity(), 1);
    }

    #[test]
    fn a_limit_prints_as_people_write_it() {
        let limit = Limit::new("openai:tokens")
            .rates("90_000 tokens/min, 1000 tokens / 5 s")
            .pad(Duration::from_millis(50))
            .build()
            .unwrap();
        assert_eq!(
            limit.to_string(),
            "openai:tokens: 1000 tokens/5s, 90000 tokens/min, pad 50ms"
        );
    }
}
