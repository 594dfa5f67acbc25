//! Time: instants of a ledger, and the clocks they are read from.

mod manual;
mod system;
mod timeline;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use manual::ManualClock;
pub use system::SystemClock;
pub(crate) use timeline::{Change, HIGH_STEP_NS, Present, Timeline, elapsed_at};

/// An instant of a ledger: nanoseconds since the Unix epoch.
///
/// It agrees with the wall clock when the file is created and at each boot; in between it follows the
/// boot's monotonic clock, which no clock step can move. Compare instants of one file with each other,
/// not with the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant this many nanoseconds after the Unix epoch.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the Unix epoch.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this instant, or zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        if self.0 <= earlier.0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.0.abs_diff(earlier.0))
    }

    /// The instant `duration` later, or `None` beyond the year 2262.
    #[must_use]
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let nanos = i64::try_from(duration.as_nanos()).ok()?;
        self.checked_plus_ns(nanos)
    }

    pub(crate) const fn checked_plus_ns(self, nanos: i64) -> Option<Self> {
        match self.0.checked_add(nanos) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    pub(crate) const fn saturating_plus_ns(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    pub(crate) const fn saturating_minus_ns(self, nanos: i64) -> Self {
        Self(self.0.saturating_sub(nanos))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, nanos) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        write!(
            f,
            "{sign}{}.{:09}",
            nanos / 1_000_000_000,
            nanos % 1_000_000_000
        )
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        let distance = Duration::from_nanos(timestamp.0.unsigned_abs());
        if timestamp.0 < 0 {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        }
    }
}

/// Names one run of a machine's kernel, from boot to shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootId(pub u128);

/// Where a limiter reads the time and how it waits.
///
/// [`SystemClock`] is the default; [`ManualClock`] is for tests.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Which boot `elapsed` counts from. All processes of one boot must agree.
    fn boot(&self) -> BootId;

    /// The time since the boot. It never runs backwards, all processes of one boot read the same, and
    /// no step of the wall clock moves it.
    fn elapsed(&self) -> Duration;

    /// The wall clock. It is used once per boot, and for people who read the file.
    fn wall(&self) -> SystemTime;

    /// Returns when `elapsed` has reached `deadline`, at once if it has already.
    fn sleep_until(&self, deadline: Duration);

    /// Whether `elapsed` keeps pace with real time, so that a sleep of so long brings it so much further. Then limiters sleep in
    /// ways in which they can be woken early, and not by `sleep_until`.
    fn is_real(&self) -> bool {
        true
    }
}

/// What a clock shows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) boot: BootId,
    pub(crate) elapsed_ns: i64,
    pub(crate) wall_ns: i64,
}

/// No clock reading is taken to be later than this (the year 2116), so that a mad clock leaves room to
/// add windows to instants.
const LATEST_READING_NS: i64 = 1 << 62;

impl Reading {
    /// The time since the boot.
    pub(crate) const fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_ns.unsigned_abs())
    }

    pub(crate) fn of(clock: &dyn Clock) -> Self {
        let wall = clock.wall().duration_since(UNIX_EPOCH);
        Self {
            boot: clock.boot(),
            elapsed_ns: clamped_ns(clock.elapsed()),
            wall_ns: clamped_ns(wall.unwrap_or_default()),
        }
    }
}

fn clamped_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).map_or(LATEST_READING_NS, |ns| ns.min(LATEST_READING_NS))
}
