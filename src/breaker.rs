//! Circuit breakers: when calls fail, nobody makes them for a while, and then a few try.

use std::fmt;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::limit::{LimitError, MAX_WINDOW, MIN_WINDOW, MINUTE, nanos};

/// When a [breaker](crate::Limit::breaker) opens, for how long, and how it closes again.
///
/// Closed, it lets every call through and counts what is [reported](crate::Permit::report) of them. If of enough calls of the
/// window too many failed, or were too slow, it opens: nobody is let through for [`open_for`](Self::open_for). Then it is
/// half-open: no more than [`probes`](Self::probes) calls are let through at the same time. If as many of these succeed, it
/// closes and begins to count anew; if one fails, or is too slow, it opens again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to a limit"]
pub struct BreakerPolicy {
    pub(crate) window: Duration,
    pub(crate) minimum_calls: u32,
    pub(crate) failure_percent: u8,
    pub(crate) slow_call: Duration,
    pub(crate) slow_percent: u8,
    pub(crate) open_for: Duration,
    pub(crate) probes: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            window: MINUTE,
            minimum_calls: 10,
            failure_percent: 50,
            slow_call: MAX_WINDOW,
            slow_percent: 100,
            open_for: Duration::from_secs(30),
            probes: 3,
        }
    }
}

impl BreakerPolicy {
    /// The time over which reports count, by tenths of it. Defaults to a minute.
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// With fewer reports in the window it does not open. Defaults to 10.
    pub const fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = calls;
        self
    }

    /// It opens when so many of a hundred reported calls have failed. Defaults to 50.
    pub const fn failure_rate(mut self, percent: u8) -> Self {
        self.failure_percent = percent;
        self
    }

    /// It opens when so many of a hundred reported calls took as long as this. Defaults to never.
    pub const fn slow_rate(mut self, slow_call: Duration, percent: u8) -> Self {
        self.slow_call = slow_call;
        self.slow_percent = percent;
        self
    }

    /// For how long nobody is let through. Defaults to 30 s.
    pub const fn open_for(mut self, open_for: Duration) -> Self {
        self.open_for = open_for;
        self
    }

    /// How many calls are let through at the same time after that, and how many of them have to succeed. Defaults to 3.
    pub const fn probes(mut self, probes: u32) -> Self {
        self.probes = probes;
        self
    }

    pub(crate) fn check(self) -> Result<Self, LimitError> {
        for (what, time) in [
            ("window", self.window),
            ("slow call", self.slow_call),
            ("time for which it is open", self.open_for),
        ] {
            if !(MIN_WINDOW..=MAX_WINDOW).contains(&time) {
                return Err(LimitError::BreakerTime { what, time });
            }
        }
        for (what, count, most) in [
            ("minimum of calls", self.minimum_calls, u32::MAX),
            ("failure rate", self.failure_percent.into(), 100),
            ("rate of slow calls", self.slow_percent.into(), 100),
            ("number of probes", self.probes, u32::MAX),
        ] {
            if !(1..=most).contains(&count) {
                return Err(LimitError::BreakerCount { what, count });
            }
        }
        Ok(self)
    }

    /// Reports are counted together that come within this time.
    fn span_ns(&self) -> i64 {
        (nanos(self.window) / 10).max(1)
    }

    /// Where what is reported at an instant is counted, and from where on it counts.
    pub(crate) fn spans(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let span = now.saturating_minus_ns(now.as_nanos().rem_euclid(self.span_ns()));
        (span, now.saturating_minus_ns(nanos(self.window)))
    }

    /// Why a breaker opens with what was reported in the window, if it does.
    fn reason(&self, counts: Counts) -> Option<String> {
        let Counts {
            calls,
            failures,
            slow,
        } = counts;
        let is_too_many = |count: i64, percent: u8| {
            i128::from(count) * 100 >= i128::from(calls) * i128::from(percent)
        };
        if calls < i64::from(self.minimum_calls) {
            return None;
        }
        if is_too_many(failures, self.failure_percent) {
            return Some(format!("{failures} of {calls} calls failed"));
        }
        is_too_many(slow, self.slow_percent).then(|| format!("{slow} of {calls} calls were slow"))
    }
}

impl fmt::Display for BreakerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            window,
            minimum_calls,
            failure_percent,
            slow_call,
            slow_percent,
            open_for,
            probes,
        } = self;
        write!(
            f,
            "breaker, {failure_percent} % of {minimum_calls} or more failed in {window:?}"
        )?;
        if *slow_call < MAX_WINDOW {
            write!(f, " or {slow_percent} % took {slow_call:?}")?;
        }
        write!(f, ", open for {open_for:?}, probes {probes}")
    }
}

/// What became of a call: see [`Permit::report`](crate::Permit::report).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is reported"]
pub struct Report {
    has_failed: bool,
    took: Duration,
}

impl Report {
    /// It succeeded.
    pub const fn success() -> Self {
        Self {
            has_failed: false,
            took: Duration::ZERO,
        }
    }

    /// It failed, in a way that says that others will, too: not because of what was asked.
    pub const fn failure() -> Self {
        Self {
            has_failed: true,
            took: Duration::ZERO,
        }
    }

    /// How long it took, for breakers that count slow calls.
    pub const fn took(mut self, took: Duration) -> Self {
        self.took = took;
        self
    }

    /// As it is counted.
    pub(crate) fn counts(self, policy: &BreakerPolicy) -> Counts {
        Counts {
            calls: 1,
            failures: i64::from(self.has_failed),
            slow: i64::from(self.took >= policy.slow_call),
        }
    }
}

/// What was reported of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: i64,
    pub(crate) failures: i64,
    pub(crate) slow: i64,
}

impl Counts {
    pub(crate) fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.failures += more.failures;
        self.slow += more.slow;
    }

    fn is_bad(self) -> bool {
        self.failures > 0 || self.slow > 0
    }
}

/// A breaker that is not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) since: Timestamp,
    /// When it is half-open.
    pub(crate) until: Timestamp,
    /// How many probes have succeeded since.
    pub(crate) successes: u32,
    pub(crate) reason: String,
}

impl Broken {
    fn open(policy: &BreakerPolicy, now: Timestamp, reason: String) -> Self {
        Self {
            since: now,
            until: now.saturating_plus_ns(nanos(policy.open_for)),
            successes: 0,
            reason,
        }
    }
}

/// What a report makes of a breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stays as it is.
    Stays,
    /// It is open until it is half-open, or one more probe has succeeded.
    Becomes(Broken),
    /// It is closed, and what was counted is forgotten.
    Closes,
}

/// Judges a report of a call that was let through at `asked_at`. `counts` is what was reported in the window, this report
/// included; they matter where it is closed.
pub(crate) fn judge(
    policy: &BreakerPolicy,
    broken: Option<&Broken>,
    report: Counts,
    counts: Counts,
    (asked_at, now): (Timestamp, Timestamp),
) -> Verdict {
    let Some(broken) = broken else {
        let reason = policy.reason(counts);
        return reason.map_or(Verdict::Stays, |reason| {
            Verdict::Becomes(Broken::open(policy, now, reason))
        });
    };
    // What was let through before it opened says nothing of whether it can close.
    if asked_at < broken.until {
        return Verdict::Stays;
    }
    if report.is_bad() {
        let what = if report.failures > 0 {
            "failed"
        } else {
            "was slow"
        };
        return Verdict::Becomes(Broken::open(policy, now, format!("a probe {what}")));
    }
    let successes = broken.successes.saturating_add(1);
    if successes >= policy.probes {
        return Verdict::Closes;
    }
    Verdict::Becomes(Broken {
        successes,
        ..broken.clone()
    })
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls are let through, and counted.
    Closed,
    /// Nobody is let through.
    Open,
    /// A few are let through, to see whether they succeed.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

/// How a breaker stands, and why: [`Usage::breaker`](crate::Usage::breaker).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerUsage {
    policy: BreakerPolicy,
    broken: Option<Broken>,
    at: Timestamp,
}

impl BreakerUsage {
    pub(crate) const fn new(policy: BreakerPolicy, broken: Option<Broken>, at: Timestamp) -> Self {
        Self { policy, broken, at }
    }

    /// Whether it lets calls through.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match &self.broken {
            None => BreakerState::Closed,
            Some(broken) if self.at < broken.until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Since when it is not closed.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        self.broken.as_ref().map(|broken| broken.since)
    }

    /// When it lets probes through, if it is open; since when, if it is half-open.
    #[must_use]
    pub fn probes_from(&self) -> Option<Timestamp> {
        self.broken.as_ref().map(|broken| broken.until)
    }

    /// How many probes are let through at the same time while it is half-open, and how many have to succeed.
    #[must_use]
    pub const fn probes(&self) -> u32 {
        self.policy.probes
    }

    /// How many probes have succeeded since it is half-open.
    #[must_use]
    pub fn succeeded(&self) -> u32 {
        self.broken.as_ref().map_or(0, |broken| broken.successes)
    }

    /// Why it opened: `7 of 10 calls failed`.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.broken.as_ref().map(|broken| broken.reason.as_str())
    }
}
