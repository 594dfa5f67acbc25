//! Limits: named budgets that cannot be built wrong.

mod bucket;
mod builder;
mod error;
mod pattern;
mod quota;
mod rate;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use bucket::Bucket;
pub use builder::LimitBuilder;
pub(crate) use builder::check_key;
pub use error::LimitError;
pub(crate) use pattern::Pattern;
pub use quota::{Period, Quota};
pub(crate) use rate::nanos;
pub use rate::{Rate, Window};
pub use text::ParseRatesError;
pub(crate) use text::Time;
#[cfg(feature = "file")]
pub(crate) use text::parse_time;

use crate::breaker::BreakerPolicy;
use crate::clock::Timestamp;
use crate::pause::PausePolicy;
use crate::settlement::Overage;

/// One second, as a window.
pub const SECOND: Duration = Duration::from_secs(1);
/// One minute, as a window.
pub const MINUTE: Duration = Duration::from_mins(1);
/// One hour, as a window.
pub const HOUR: Duration = Duration::from_hours(1);
/// One day of 24 hours, as a window.
pub const DAY: Duration = Duration::from_hours(24);

/// The largest capacity of a rate, 2^53: the integers up to here survive every tool that an operator
/// may read the file with.
pub const MAX_CAPACITY: u64 = 1 << 53;
/// The shortest window of a rate, 1 ms.
pub const MIN_WINDOW: Duration = Duration::from_millis(1);
/// The longest window of a rate, 366 days; also the longest pad.
pub const MAX_WINDOW: Duration = Duration::from_hours(8784);
/// How many rates one limit can have.
pub const MAX_RATES: usize = 16;
/// How many bytes a key can have.
pub const MAX_KEY_BYTES: usize = 256;
/// How many bytes a unit can have.
pub const MAX_UNIT_BYTES: usize = 64;

/// A named budget: a key, a unit, and rates, slots or a bucket. It is always valid; build one with [`Limit::new`] or
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
    is_pattern: bool,
    terms: Arc<Terms>,
}

/// What a definition says besides its key. All limits that a pattern makes share its terms.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    unit: Option<String>,
    overage: Overage,
    pauses: PausePolicy,
    kind: Kind,
}

/// What there is to take of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rates(Rates),
    Slots(Slots),
    Bucket(Bucket),
    Breaker(BreakerPolicy),
}

impl Kind {
    /// As it stands in the file and in errors.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Rates(_) => "rates",
            Self::Slots(_) => "slots",
            Self::Bucket(_) => "a bucket",
            Self::Breaker(_) => "a breaker",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    /// By window, shortest first; no two share a window, and there is at least one.
    by_window: Vec<Rate>,
    pad_ns: i64,
    resolution_ns: i64,
    keep_ns: i64,
}

/// A concurrency limit: how many may be held at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
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
        LimitBuilder::new(key.into()).slots(count)
    }

    /// Starts the definition of a circuit breaker: when too many calls that were let through fail, nobody is let through for a
    /// while, in any process, and then a few try. Requests take 1 of it beside their other limits, and each
    /// [reports](crate::Permit::report) what became of its call.
    ///
    /// ```
    /// use quotalite::{BreakerPolicy, BreakerState, Limit, Limiter, ManualClock, Report, SECOND};
    ///
    /// let clock = ManualClock::new();
    /// let limiter = Limiter::in_memory_with(clock.clone());
    /// let policy = BreakerPolicy::default().minimum_calls(2).open_for(30 * SECOND).probes(1);
    /// limiter.define(Limit::breaker("openai:breaker", policy))?;
    /// for _ in 0..2 {
    ///     limiter.acquire("openai:breaker")?.report(Report::failure())?;
    /// }
    /// let denial = limiter.try_acquire("openai:breaker")?.denied().unwrap();
    /// assert_eq!(denial.retry_after(), Some(30 * SECOND));
    /// let usage = limiter.usage("openai:breaker")?;
    /// assert_eq!(usage.breaker().unwrap().reason(), Some("2 of 2 calls failed"));
    ///
    /// clock.advance(30 * SECOND);
    /// let probe = limiter.acquire("openai:breaker")?;
    /// assert!(!limiter.try_acquire("openai:breaker")?.is_granted());
    /// probe.report(Report::success())?;
    /// assert_eq!(limiter.usage("openai:breaker")?.breaker().unwrap().state(), BreakerState::Closed);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn breaker(key: impl Into<String>, policy: BreakerPolicy) -> LimitBuilder {
        LimitBuilder::new(key.into()).breaker(policy)
    }

    /// Starts the definition of a pattern: a limit for every key that it matches, each with a ledger of its own. A `*`
    /// stands for one or more characters, whichever they are.
    ///
    /// Where no limit is defined for a key itself, the most specific pattern that matches it counts: the one with
    /// the most characters besides `*`; among equals, the one with more of them before its first `*`. Nothing is
    /// written for a key until something is charged to it, and nothing is left of it when all of that has left
    /// its windows. The pattern's own text is a key as any other that it matches, and no sum over them.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::pattern("tenant:*:tokens").per_day(100_000))?;
    /// limiter.define(Limit::pattern("tenant:big-*:tokens").per_day(1_000_000))?;
    /// assert!(limiter.try_acquire(("tenant:42:tokens", 90_000))?.is_granted());
    /// assert!(limiter.try_acquire(("tenant:43:tokens", 90_000))?.is_granted());
    /// assert!(!limiter.try_acquire(("tenant:42:tokens", 90_000))?.is_granted());
    /// assert!(limiter.try_acquire(("tenant:big-one:tokens", 900_000))?.is_granted());
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn pattern(pattern: impl Into<String>) -> LimitBuilder {
        LimitBuilder::new(pattern.into()).for_all_that_match()
    }

    /// A definition that starts out as this one, to change something about it.
    pub fn to_builder(&self) -> LimitBuilder {
        LimitBuilder::of(self)
    }

    /// The name under which requests take from this limit, or the pattern.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this is a [pattern](Self::pattern), and stands for many limits.
    #[must_use]
    pub const fn is_pattern(&self) -> bool {
        self.is_pattern
    }

    /// What an amount counts, if the definition says so: `tokens`.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.terms.unit.as_deref()
    }

    /// By how much each window is lengthened.
    #[must_use]
    pub fn pad(&self) -> Duration {
        Duration::from_nanos(self.pad_ns().unsigned_abs())
    }

    /// Within which time charges are merged, if they are; by as much each window is lengthened.
    #[must_use]
    pub fn resolution(&self) -> Option<Duration> {
        let resolution = Duration::from_nanos(self.resolution_ns().unsigned_abs());
        (!resolution.is_zero()).then_some(resolution)
    }

    /// For how long charges stay in the ledger after they were made, if they stay longer than the windows need them.
    #[must_use]
    pub fn keep(&self) -> Option<Duration> {
        let keep = Duration::from_nanos(self.keep_ns().unsigned_abs());
        (!keep.is_zero()).then_some(keep)
    }

    /// What happens when a permit used more than was charged for it.
    #[must_use]
    pub fn overage(&self) -> Overage {
        self.terms.overage
    }

    /// What is done about strikes: see [`Limiter::pause`](crate::Limiter::pause).
    pub fn pauses(&self) -> PausePolicy {
        self.terms.pauses
    }

    /// How many may be held at once, if this is a concurrency limit.
    #[must_use]
    pub fn slot_count(&self) -> Option<u64> {
        match self.kind() {
            Kind::Slots(slots) => Some(slots.count.unsigned_abs()),
            Kind::Rates(_) | Kind::Bucket(_) | Kind::Breaker(_) => None,
        }
    }

    /// When it opens and closes, if this is a breaker.
    #[must_use = "this changes nothing"]
    pub fn breaker_policy(&self) -> Option<BreakerPolicy> {
        match self.kind() {
            Kind::Breaker(policy) => Some(*policy),
            Kind::Rates(_) | Kind::Slots(_) | Kind::Bucket(_) => None,
        }
    }

    /// After how long a slot comes back although its permit is still held, if that is limited.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        let timeout_ns = self.timeout_ns()?;
        Some(Duration::from_nanos(timeout_ns.unsigned_abs()))
    }

    /// The bucket, if this is one.
    #[must_use]
    pub fn bucket(&self) -> Option<Bucket> {
        match self.kind() {
            Kind::Bucket(bucket) => Some(*bucket),
            Kind::Rates(_) | Kind::Slots(_) | Kind::Breaker(_) => None,
        }
    }

    /// The rates, shortest window first; none if this is a concurrency limit or a bucket.
    #[must_use]
    pub fn rates(&self) -> &[Rate] {
        match self.kind() {
            Kind::Rates(rates) => &rates.by_window,
            Kind::Slots(_) | Kind::Bucket(_) | Kind::Breaker(_) => &[],
        }
    }

    /// The rate that is meant by who tells a window, or none: then the only one is, or that of a minute.
    pub(crate) fn rate_told(&self, window: Option<Duration>) -> Option<Rate> {
        let rates = self.rates();
        let of = |window: Duration| {
            let mut rates = rates.iter().copied();
            rates.find(|rate| rate.window().rolling() == Some(window))
        };
        match (window, rates) {
            (Some(window), _) => of(window),
            (None, [rate]) => Some(*rate),
            (None, _) => of(MINUTE),
        }
    }

    /// Whether it has a quota.
    pub(crate) fn has_calendar(&self) -> bool {
        let mut windows = self.rates().iter().map(Rate::window);
        windows.any(|window| matches!(window, Window::Calendar(_)))
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.terms.kind
    }

    pub(crate) fn shared_key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn pad_ns(&self) -> i64 {
        match self.kind() {
            Kind::Rates(rates) => rates.pad_ns,
            Kind::Slots(_) | Kind::Bucket(_) | Kind::Breaker(_) => 0,
        }
    }

    /// Within how much time charges are merged; 0 if they are not.
    pub(crate) fn resolution_ns(&self) -> i64 {
        match self.kind() {
            Kind::Rates(rates) => rates.resolution_ns,
            Kind::Slots(_) | Kind::Bucket(_) | Kind::Breaker(_) => 0,
        }
    }

    /// For how long charges stay at least; 0 if only for as long as windows hold them.
    pub(crate) fn keep_ns(&self) -> i64 {
        match self.kind() {
            Kind::Rates(rates) => rates.keep_ns,
            Kind::Slots(_) | Kind::Bucket(_) | Kind::Breaker(_) => 0,
        }
    }

    /// By how much longer than its window a charge counts from where it is entered.
    pub(crate) fn lengthened_by_ns(&self) -> i64 {
        self.pad_ns() + self.resolution_ns()
    }

    /// Where in the ledger a charge of an instant stands: at the beginning of what it is merged with, or at its own
    /// instant.
    pub(crate) fn entered_at(&self, at: Timestamp) -> Timestamp {
        match self.resolution_ns() {
            0 => at,
            resolution_ns => at.saturating_minus_ns(at.as_nanos().rem_euclid(resolution_ns)),
        }
    }

    pub(crate) fn timeout_ns(&self) -> Option<i64> {
        match self.kind() {
            Kind::Slots(slots) => slots.timeout_ns,
            Kind::Rates(_) | Kind::Bucket(_) | Kind::Breaker(_) => None,
        }
    }

    /// What one request can ask for at most: the slots, the burst, or the rate with the smallest capacity.
    pub(crate) fn tightest(&self) -> Obstacle {
        match self.kind() {
            Kind::Slots(slots) => Obstacle::Slots(slots.count.unsigned_abs()),
            Kind::Bucket(bucket) => Obstacle::Bucket(*bucket),
            Kind::Breaker(_) => Obstacle::Breaker,
            Kind::Rates(Rates { by_window, .. }) => {
                let mut tightest = by_window[0];
                for rate in by_window {
                    if rate.capacity() < tightest.capacity() {
                        tightest = *rate;
                    }
                }
                Obstacle::Rate(tightest)
            }
        }
    }

    /// The limit that this pattern makes of a key.
    pub(crate) fn applied_to(&self, key: &str) -> Self {
        Self {
            key: key.into(),
            is_pattern: false,
            terms: Arc::clone(&self.terms),
        }
    }
}

/// What stands in the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// A rate, one of the limit's.
    Rate(Rate),
    /// The limit's slots, so many.
    Slots(u64),
    /// The limit's bucket.
    Bucket(Bucket),
    /// The limit is [paused](crate::Limiter::pause).
    Paused,
    /// The limit is a [breaker](Limit::breaker) that is open, or half-open and all its probes are under way.
    Breaker,
    /// The limit [starts slowly](crate::PausePolicy::slow_start) after a pause, and admits less than its rates will.
    SlowStart,
}

impl Obstacle {
    /// The most that it could ever admit at once; 0 where it is a pause or the slow start after one, which pass.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        match self {
            Self::Paused | Self::SlowStart => 0,
            Self::Breaker => MAX_CAPACITY,
            Self::Rate(rate) => rate.capacity(),
            Self::Slots(count) => *count,
            Self::Bucket(bucket) => bucket.burst(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => rate.fmt(f),
            Self::Slots(1) => f.write_str("1 slot"),
            Self::Slots(count) => write!(f, "{count} slots"),
            Self::Bucket(bucket) => bucket.fmt(f),
            Self::Paused => f.write_str("paused"),
            Self::Breaker => f.write_str("breaker"),
            Self::SlowStart => f.write_str("slow start after a pause"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.as_given())
    }
}

/// A definition as people write it, without its key.
#[derive(Debug)]
pub struct AsGiven<'l>(&'l Limit);

impl Limit {
    /// The definition as people write it, without its key: `10/s, 300/min`.
    #[must_use]
    pub const fn as_given(&self) -> AsGiven<'_> {
        AsGiven(self)
    }
}

impl fmt::Display for AsGiven<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.0;
        match limit.kind() {
            Kind::Slots(slots) => Obstacle::Slots(slots.count.unsigned_abs()).fmt(f)?,
            Kind::Bucket(bucket) => bucket.write(f, limit.unit())?,
            Kind::Breaker(policy) => policy.fmt(f)?,
            Kind::Rates(rates) => text::write_rates(f, &rates.by_window, limit.unit())?,
        }
        let times = [
            ("timeout", limit.timeout_ns().unwrap_or(0)),
            ("pad", limit.pad_ns()),
            ("resolution", limit.resolution_ns()),
            ("keep", limit.keep_ns()),
        ];
        for (what, time_ns) in times.into_iter().filter(|(_, time_ns)| *time_ns > 0) {
            write!(f, ", {what} {}", Time(time_ns))?;
        }
        if limit.overage() != Overage::default() {
            write!(f, ", overage {}", limit.overage().as_str())?;
        }
        if limit.pauses() != PausePolicy::default() {
            write!(f, ", {}", limit.pauses())?;
        }
        Ok(())
    }
}
