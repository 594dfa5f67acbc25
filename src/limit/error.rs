//! What is wrong with definitions.

use std::time::Duration;

use super::{MAX_CAPACITY, MAX_KEY_BYTES, MAX_RATES, MAX_UNIT_BYTES, ParseRatesError, Rate};
use crate::pause::MAX_STRIKES;

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
    /// There is no time zone of this name, or this program does not know any.
    #[error("there is no time zone `{zone}` here: {reason}")]
    Zone {
        /// The name.
        zone: String,
        /// Why it was not found.
        reason: String,
    },
    /// A bucket has no burst, or no refill.
    #[error("a bucket needs a burst and a refill, this one has no {missing}")]
    HalfBucket {
        /// What it has not.
        missing: &'static str,
    },
    /// A bucket would take longer than 366 days to fill.
    #[error("a bucket of {burst} that refills at {refill} takes more than 366 days to fill")]
    SlowRefill {
        /// What it would hold.
        burst: u64,
        /// How it would refill.
        refill: Rate,
    },
    /// A bucket was given something that belongs to rates or slots.
    #[error("a bucket has no {what}")]
    NotForBuckets {
        /// What it was given.
        what: &'static str,
    },
    /// A pattern has no `*`, or two in a row.
    #[error("a pattern has a `*` for what differs, and no two in a row; `{pattern}` is none")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
    /// The number of slots is 0 or above [`MAX_CAPACITY`].
    #[error("a limit has 1 to {MAX_CAPACITY} slots, not {count}")]
    Slots {
        /// The number asked for.
        count: u64,
    },
    /// The timeout is shorter than [`MIN_WINDOW`](crate::MIN_WINDOW) or longer than [`MAX_WINDOW`](crate::MAX_WINDOW).
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
    #[error("two rates have the same window: {first} and {second}")]
    SameWindow {
        /// One of them.
        first: Rate,
        /// The other one.
        second: Rate,
    },
    /// The capacity is 0 or above [`MAX_CAPACITY`].
    #[error("a capacity is 1 to {MAX_CAPACITY}, not {capacity}")]
    Capacity {
        /// The capacity asked for.
        capacity: u64,
    },
    /// The window is shorter than [`MIN_WINDOW`](crate::MIN_WINDOW) or longer than [`MAX_WINDOW`](crate::MAX_WINDOW).
    #[error("a window is 1 ms to 366 days, not {window:?}")]
    Window {
        /// The window asked for.
        window: Duration,
    },
    /// The pad is longer than [`MAX_WINDOW`](crate::MAX_WINDOW).
    #[error("a pad is at most 366 days, not {pad:?}")]
    Pad {
        /// The pad asked for.
        pad: Duration,
    },
    /// The resolution is longer than the shortest window.
    #[error("a resolution is at most the shortest window, {shortest:?}, not {resolution:?}")]
    Resolution {
        /// The resolution asked for.
        resolution: Duration,
        /// The shortest window; of a quota, its usual length.
        shortest: Duration,
    },
    /// The history is kept for longer than [`MAX_WINDOW`](crate::MAX_WINDOW).
    #[error("a history is kept for at most 366 days, not {keep:?}")]
    Keep {
        /// The time asked for.
        keep: Duration,
    },
    /// A time of a [`PausePolicy`](crate::PausePolicy) is shorter than [`MIN_WINDOW`](crate::MIN_WINDOW) or longer than
    /// [`MAX_WINDOW`](crate::MAX_WINDOW).
    #[error("the {what} is 1 ms to 366 days, not {time:?}")]
    PauseTime {
        /// Which time.
        what: &'static str,
        /// The time asked for.
        time: Duration,
    },
    /// So many strikes are never counted.
    #[error("pauses become longer from 1 to {MAX_STRIKES} strikes on, not {count}")]
    Strikes {
        /// The number asked for.
        count: u32,
    },
    /// A slow start has no such share.
    #[error("a slow start has 1 to 100 percent, not {percent}")]
    SlowStart {
        /// The share asked for.
        percent: u8,
    },
    /// A time of a [`BreakerPolicy`](crate::BreakerPolicy) is shorter than [`MIN_WINDOW`](crate::MIN_WINDOW) or longer than
    /// [`MAX_WINDOW`](crate::MAX_WINDOW).
    #[error("the {what} of a breaker is 1 ms to 366 days, not {time:?}")]
    BreakerTime {
        /// Which time.
        what: &'static str,
        /// The time asked for.
        time: Duration,
    },
    /// A number of a [`BreakerPolicy`](crate::BreakerPolicy) is 0, or a rate above 100 percent.
    #[error("the {what} of a breaker is not {count}")]
    BreakerCount {
        /// Which number.
        what: &'static str,
        /// The number asked for.
        count: u32,
    },
    /// A breaker was given something that belongs to another kind of limit.
    #[error("a breaker has no {what}")]
    NotForBreakers {
        /// What it was given.
        what: &'static str,
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
