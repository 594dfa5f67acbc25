//! Limits: named budgets that cannot be built wrong.

mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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

/// A named budget: a key, a unit, one or more rates, and a pad. It is always valid; build one with
/// [`Limit::new`], or hand the builder itself to [`Limiter::define`](crate::Limiter::define).
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
    /// By window, shortest first; no two share a window.
    rates: Vec<Rate>,
    overage: Overage,
}

impl Limit {
    /// Starts the definition of a limit. What is wrong with it is told by
    /// [`LimitBuilder::build`], or by the `define` that the builder is given to.
    #[expect(
        clippy::new_ret_no_self,
        reason = "a limit that has no rate yet is no limit; this keeps the definition one line"
    )]
    pub fn new(key: impl Into<String>) -> LimitBuilder {
        LimitBuilder {
            key: key.into(),
            unit: None,
            pad: Duration::ZERO,
            rates: Vec::new(),
            overage: Overage::default(),
            wrong: None,
        }
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

    /// The rates, shortest window first.
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

    /// The rate with the smallest capacity: what one request can ask for at most.
    pub(crate) fn tightest(&self) -> Rate {
        let mut tightest = self.rates[0];
        for rate in &self.rates {
            if rate.capacity < tightest.capacity {
                tightest = *rate;
            }
        }
        tightest
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        text::write_rates(f, &self.rates, self.unit())?;
        if self.pad_ns > 0 {
            write!(f, ", pad {:?}", self.pad())?;
        }
        if self.overage != Overage::default() {
            write!(f, ", overage {}", self.overage.as_str())?;
        }
        Ok(())
    }
}

/// The definition of a [`Limit`] in the making.
#[derive(Clone, Debug)]
#[must_use = "a definition does nothing until it is given to `define`"]
pub struct LimitBuilder {
    key: String,
    unit: Option<String>,
    pad: Duration,
    rates: Vec<Rate>,
    overage: Overage,
    wrong: Option<LimitError>,
}

impl LimitBuilder {
    /// Adds a rate of `capacity` per `window`.
    pub fn rate(mut self, capacity: u64, window: Duration) -> Self {
        match Rate::new(capacity, window) {
            Ok(rate) => self.rates.push(rate),
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// Adds a rate of `capacity` per second.
    pub fn per_second(self, capacity: u64) -> Self {
        self.rate(capacity, SECOND)
    }

    /// Adds a rate of `capacity` per minute.
    pub fn per_minute(self, capacity: u64) -> Self {
        self.rate(capacity, MINUTE)
    }

    /// Adds a rate of `capacity` per hour.
    pub fn per_hour(self, capacity: u64) -> Self {
        self.rate(capacity, HOUR)
    }

    /// Adds a rate of `capacity` per 24 hours (a rolling window, no calendar day).
    pub fn per_day(self, capacity: u64) -> Self {
        self.rate(capacity, DAY)
    }

    /// Adds the rates of a text such as `"10/s, 300/min"` or `"90000 tokens/min"`; a unit in the text
    /// becomes the limit's.
    ///
    /// A rate is `capacity [unit] / [count] window`, with `_` allowed between digits, a unit of words
    /// after a space, and a window of `ms`, `s`, `min`, `h` or `d` (or their full words). Rates are
    /// separated by commas. A unit that is already given has to be the same.
    pub fn rates(mut self, text: &str) -> Self {
        match text::parse(text) {
            Ok(parsed) => {
                self.rates.extend(parsed.rates);
                if let Some(unit) = parsed.unit {
                    return self.unit(unit);
                }
            }
            Err(error) => self.wrong = self.wrong.or(Some(error.into())),
        }
        self
    }

    /// Says what an amount counts: `tokens`. At most [`MAX_UNIT_BYTES`] bytes. Defaults to none; a limit
    /// has one.
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        let unit = unit.into();
        match self.unit {
            Some(given) if given != unit => {
                let wrong = LimitError::TwoUnits { given, unit };
                self.wrong = self.wrong.or(Some(wrong));
                self.unit = None;
            }
            _ => self.unit = Some(unit),
        }
        self
    }

    /// Lengthens each window, to cover the jitter between a grant here and its arrival at a provider
    /// that counts for itself. Defaults to zero.
    pub fn pad(mut self, pad: Duration) -> Self {
        self.pad = pad;
        self
    }

    /// What happens when a permit used more than was charged for it. Defaults to [`Overage::Debt`].
    pub fn overage(mut self, overage: Overage) -> Self {
        self.overage = overage;
        self
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// A [`LimitError`] that says what is wrong; the first thing, if several are.
    pub fn build(self) -> Result<Limit, LimitError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        check_key(&self.key)?;
        if let Some(unit) = &self.unit {
            check_unit(unit)?;
        }
        let mut rates = self.rates;
        if rates.is_empty() {
            return Err(LimitError::NoRate);
        }
        if rates.len() > MAX_RATES {
            return Err(LimitError::TooManyRates { count: rates.len() });
        }
        rates.sort_by_key(|rate| rate.window_ns);
        if let Some(pair) = rates
            .windows(2)
            .find(|pair| pair[0].window_ns == pair[1].window_ns)
        {
            return Err(LimitError::SameWindow {
                window: pair[0].window(),
            });
        }
        if self.pad > MAX_WINDOW {
            return Err(LimitError::Pad { pad: self.pad });
        }
        let Ok(pad_ns) = i64::try_from(self.pad.as_nanos()) else {
            return Err(LimitError::Pad { pad: self.pad });
        };
        Ok(Limit {
            key: self.key.into(),
            unit: self.unit,
            pad_ns,
            rates,
            overage: self.overage,
        })
    }
}

impl TryFrom<LimitBuilder> for Limit {
    type Error = LimitError;

    fn try_from(builder: LimitBuilder) -> Result<Self, LimitError> {
        builder.build()
    }
}

impl TryFrom<&Limit> for Limit {
    type Error = LimitError;

    fn try_from(limit: &Limit) -> Result<Self, LimitError> {
        Ok(limit.clone())
    }
}

fn check_key(key: &str) -> Result<(), LimitError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(LimitError::KeyLength { bytes: key.len() });
    }
    match key.char_indices().find(|(_, c)| c.is_control()) {
        Some((offset, _)) => Err(LimitError::KeyControl { offset }),
        None => Ok(()),
    }
}

fn check_unit(unit: &str) -> Result<(), LimitError> {
    let wrong = unit.is_empty() || unit.len() > MAX_UNIT_BYTES || unit.contains(char::is_control);
    if wrong {
        return Err(LimitError::Unit { bytes: unit.len() });
    }
    Ok(())
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
