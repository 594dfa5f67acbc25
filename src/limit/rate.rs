//! Rates: a capacity per window.

use std::fmt;
use std::time::Duration;

use super::{LimitError, MAX_CAPACITY, MAX_WINDOW, MIN_WINDOW, Quota, text};

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
    window: Window,
}

/// What the capacity of a rate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Window {
    /// It rolls along: a charge counts for this long.
    Rolling(Duration),
    /// It goes from one boundary of a calendar to the next, where all charges stop to count.
    Calendar(Quota),
}

impl Window {
    /// How long a charge counts, if that is always the same.
    #[must_use]
    pub const fn rolling(self) -> Option<Duration> {
        match self {
            Self::Rolling(window) => Some(window),
            Self::Calendar(_) => None,
        }
    }
}

impl Rate {
    /// A rate of `capacity` per `window`, which rolls along.
    ///
    /// # Errors
    /// [`LimitError::Capacity`] unless the capacity is 1 to [`MAX_CAPACITY`], and
    /// [`LimitError::Window`] unless the window is [`MIN_WINDOW`] to [`MAX_WINDOW`].
    pub fn new(capacity: u64, window: Duration) -> Result<Self, LimitError> {
        let capacity = check_capacity(capacity)?;
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            return Err(LimitError::Window { window });
        }
        Ok(Self {
            capacity,
            window: Window::Rolling(window),
        })
    }

    /// A rate of `capacity` per period of a calendar.
    ///
    /// # Errors
    /// [`LimitError::Capacity`] unless the capacity is 1 to [`MAX_CAPACITY`].
    pub fn per(capacity: u64, quota: Quota) -> Result<Self, LimitError> {
        Ok(Self {
            capacity: check_capacity(capacity)?,
            window: Window::Calendar(quota),
        })
    }

    /// How much may be charged in one window.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity.unsigned_abs()
    }

    /// The window, without the limit's pad.
    #[must_use]
    pub const fn window(&self) -> Window {
        self.window
    }

    pub(crate) const fn capacity_units(&self) -> i64 {
        self.capacity
    }

    /// The length of the window; of a quota, that of most of its periods.
    pub(super) const fn usual_length(&self) -> Duration {
        match self.window {
            Window::Rolling(window) => window,
            Window::Calendar(quota) => quota.period().usual_length(),
        }
    }

    /// Shorter windows first; of the same length, those that roll along first.
    pub(super) fn order(&self) -> impl Ord + use<> {
        let zone = match self.window {
            Window::Rolling(_) => None,
            Window::Calendar(quota) => Some((quota.period(), quota.zone_name())),
        };
        (self.usual_length(), zone)
    }
}

pub(super) fn check_capacity(capacity: u64) -> Result<i64, LimitError> {
    if capacity == 0 || capacity > MAX_CAPACITY {
        return Err(LimitError::Capacity { capacity });
    }
    Ok(capacity.cast_signed())
}

/// A window as whole nanoseconds; none that is allowed has more than fit.
pub(crate) fn nanos(window: Duration) -> i64 {
    i64::try_from(window.as_nanos()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rate({self})")
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write_rates(f, std::slice::from_ref(self), None)
    }
}
