//! Pauses: "nobody before this instant", for all processes.

use std::fmt;
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::limit::{LimitError, MAX_WINDOW, MIN_WINDOW, MINUTE, Time, nanos};

/// How many strikes can be counted at most: [`PausePolicy::escalate`].
pub const MAX_STRIKES: u32 = 64;

/// What somebody who was turned away tells everybody else: nobody before so long. For
/// [`Limiter::pause`](crate::Limiter::pause).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to `pause`"]
pub struct Backoff {
    length: Option<Duration>,
    is_strike: bool,
    asked_at: Option<Timestamp>,
}

impl Backoff {
    /// A strike that came without a time: the limit's [`PausePolicy`] says for how long.
    pub const fn strike() -> Self {
        Self {
            length: None,
            is_strike: true,
            asked_at: None,
        }
    }

    /// A strike that came with the time to stay away, as the `Retry-After` of a response does. It counts in place of the
    /// schedule's, up to the cap of the limit. One of no time is no strike.
    pub const fn retry_after(longest: Duration) -> Self {
        Self {
            length: Some(longest),
            ..Self::strike()
        }
    }

    /// A pause that nobody was turned away for: maintenance, or an operator's wish. It is no strike; up to the cap of the
    /// limit.
    pub const fn planned(length: Duration) -> Self {
        Self {
            length: Some(length),
            is_strike: false,
            asked_at: None,
        }
    }

    /// For how long, if it says so.
    pub(crate) const fn asks_for(&self) -> Option<Duration> {
        self.length
    }

    /// When the request was admitted that was turned away: [`Permit::at`](crate::Permit::at). If that was before the last
    /// pause began, the strike belongs to that pause, and does not count again; a time that came with it still pauses.
    pub const fn asked_at(mut self, at: Timestamp) -> Self {
        self.asked_at = Some(at);
        self
    }
}

/// A pause of a limit: nobody is admitted before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    since: Timestamp,
    until: Timestamp,
    strikes: u32,
}

impl Pause {
    /// When it began.
    #[must_use]
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// The first instant at which somebody is admitted again.
    #[must_use]
    pub const fn until(&self) -> Timestamp {
        self.until
    }

    /// How many strikes counted when it was last made longer.
    #[must_use]
    pub const fn strikes(&self) -> u32 {
        self.strikes
    }

    pub(crate) const fn new(since: Timestamp, until: Timestamp, strikes: u32) -> Self {
        Self {
            since,
            until,
            strikes,
        }
    }

    /// Whether nobody is admitted at an instant.
    pub(crate) fn holds(&self, at: Timestamp) -> bool {
        at < self.until
    }
}

/// What a limit does about strikes: for how long nobody is admitted after one, and how it starts again.
///
/// The first strikes pause it for as long as [`first`](Self::first) says. From so many on that count
/// ([`escalate`](Self::escalate)) each pauses it for twice as long as the one before, up to the [`cap`](Self::cap). A strike
/// counts for a time in which the limit was not paused, so that long pauses do not make it forget why they came.
///
/// ```
/// use quotalite::{Backoff, Limit, Limiter, MINUTE, ManualClock, PausePolicy, SECOND};
///
/// let clock = ManualClock::new();
/// let limiter = Limiter::in_memory_with(clock.clone());
/// let policy = PausePolicy::default().first(20 * SECOND).cap(2 * MINUTE);
/// limiter.define(Limit::new("openai:requests").per_second(10).pauses(policy))?;
/// let mut pauses = Vec::new();
/// for _ in 0..6 {
///     let pause = limiter.pause("openai:requests", Backoff::strike())?;
///     let length = pause.until().saturating_duration_since(pause.since());
///     pauses.push(length.as_secs());
///     clock.advance(length);
/// }
/// assert_eq!(pauses, [20, 20, 40, 80, 120, 120]);
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to a limit"]
pub struct PausePolicy {
    pub(crate) first: Duration,
    pub(crate) strikes: u32,
    pub(crate) within: Duration,
    pub(crate) cap: Duration,
    pub(crate) slow_start_percent: u8,
}

impl Default for PausePolicy {
    fn default() -> Self {
        Self {
            first: MINUTE,
            strikes: 3,
            within: Duration::from_mins(5),
            cap: Duration::from_mins(15),
            slow_start_percent: 50,
        }
    }
}

impl PausePolicy {
    /// How long the first strikes pause the limit. Defaults to a minute.
    pub const fn first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// From how many strikes on each pauses it for twice as long as the one before, and for how long a strike counts.
    /// Defaults to 3 within 5 minutes.
    pub const fn escalate(mut self, strikes: u32, within: Duration) -> Self {
        self.strikes = strikes;
        self.within = within;
        self
    }

    /// No pause is longer than this from when it is asked for, whatever it was asked for. Defaults to 15 minutes.
    pub const fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// With how much of its rates the limit starts again after a pause, in percent, so that all who have waited do not
    /// come at one instant. In the first window of each rate, or in the first minute of it if it is longer, so much of it is
    /// admitted, evenly; for rates with windows of more than a minute this is done only if the limit has no other. What is
    /// larger than such a part is admitted alone. Defaults to 50; 100 means all at once.
    ///
    /// Slots, [buckets](crate::Bucket) and [quotas](crate::Quota) start at once.
    pub const fn slow_start(mut self, percent: u8) -> Self {
        self.slow_start_percent = percent;
        self
    }

    pub(crate) fn check(self) -> Result<Self, LimitError> {
        let times = [
            ("first pause", self.first),
            ("time in which strikes count", self.within),
            ("cap on pauses", self.cap),
        ];
        for (what, time) in times {
            if !(MIN_WINDOW..=MAX_WINDOW).contains(&time) {
                return Err(LimitError::PauseTime { what, time });
            }
        }
        if !(1..=MAX_STRIKES).contains(&self.strikes) {
            return Err(LimitError::Strikes {
                count: self.strikes,
            });
        }
        if !(1..=100).contains(&self.slow_start_percent) {
            return Err(LimitError::SlowStart {
                percent: self.slow_start_percent,
            });
        }
        Ok(self)
    }

    /// How long the last of so many strikes pauses a limit.
    fn length_ns(&self, strikes: usize) -> i64 {
        let first = nanos(self.first);
        let from = usize::try_from(self.strikes).unwrap_or(usize::MAX);
        let doubled = (strikes + 1).saturating_sub(from).min(62);
        first.saturating_mul(1 << doubled)
    }
}

impl fmt::Display for PausePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            first,
            strikes,
            within,
            cap,
            slow_start_percent,
        } = self;
        let time = |time: &Duration| Time(nanos(*time));
        write!(
            f,
            "pauses of {}, doubled from {strikes} in {} on, at most {}, slow start {slow_start_percent} %",
            time(first),
            time(within),
            time(cap)
        )
    }
}

/// What is known of the strikes against a limit, and of its last pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strikes {
    pub(crate) pause: Option<Pause>,
    /// Those that still count, the oldest first.
    pub(crate) counting: SmallVec<[Strike; 4]>,
}

/// One time that somebody was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) at: Timestamp,
    /// When it ceases to count, if the limit is not paused for longer until then.
    pub(crate) fades: Timestamp,
}

impl Strikes {
    /// Leaves those out that do not count any more, as whoever sweeps may have done.
    pub(crate) fn forget(&mut self, now: Timestamp) {
        self.counting.retain(|strike| strike.fades > now);
    }

    /// Lets nobody in from now on, for as long as the policy makes of it. Returns the pause, which may be the one that was
    /// in force: a pause never becomes shorter.
    pub(crate) fn strike(
        &mut self,
        policy: &PausePolicy,
        backoff: Backoff,
        now: Timestamp,
    ) -> Pause {
        self.forget(now);
        let last = self.pause;
        let in_force = last.filter(|pause| pause.holds(now));
        let is_of_the_last = last.is_some_and(|pause| {
            let is_earlier = |asked_at| asked_at <= pause.since;
            backoff.asked_at.is_some_and(is_earlier)
        });
        // Who may come again at once was not turned away for long, and what was sent with it is told the same.
        let is_no_time = backoff.length.is_some_and(|length| length.is_zero());
        let counts = backoff.is_strike && in_force.is_none() && !is_of_the_last && !is_no_time;
        if counts {
            if self.counting.len() >= MAX_STRIKES as usize {
                self.counting.remove(0);
            }
            self.counting.push(Strike {
                at: now,
                fades: now.saturating_plus_ns(nanos(policy.within)),
            });
        }
        let length_ns = match backoff.length {
            Some(length) => i64::try_from(length.as_nanos()).unwrap_or(i64::MAX),
            None if counts => policy.length_ns(self.counting.len()),
            None => 0,
        };
        let from = in_force.map_or(now, |pause| pause.until);
        let until = now
            .saturating_plus_ns(length_ns.min(nanos(policy.cap)))
            .max(from);
        let longer_ns = until.as_nanos().saturating_sub(from.as_nanos());
        for strike in &mut self.counting {
            strike.fades = strike.fades.saturating_plus_ns(longer_ns);
        }
        let since = in_force.map_or(now, |pause| pause.since);
        let strikes = u32::try_from(self.counting.len()).unwrap_or(MAX_STRIKES);
        let pause = Pause::new(since, until, strikes);
        // One of no length is none, and what came before it is still to be known.
        if pause.holds(now) {
            self.pause = Some(pause);
        }
        pause
    }

    /// Lets everybody in again. Returns the pause that was in force.
    pub(crate) fn lift(&mut self, now: Timestamp) -> Option<Pause> {
        let lifted = self.pause.filter(|pause| pause.holds(now))?;
        let left_ns = lifted.until.as_nanos().saturating_sub(now.as_nanos());
        for strike in &mut self.counting {
            strike.fades = strike.fades.saturating_minus_ns(left_ns);
        }
        self.pause = Some(Pause {
            until: now,
            ..lifted
        });
        Some(lifted)
    }

    /// Whether nothing of it matters any more.
    pub(crate) fn are_forgotten(&self, now: Timestamp) -> bool {
        let is_over = |pause: Pause| pause.until.saturating_plus_ns(LONGEST_SLOW_START_NS) <= now;
        self.counting.iter().all(|strike| strike.fades <= now) && self.pause.is_none_or(is_over)
    }
}

/// No slow start takes longer.
pub(crate) const LONGEST_SLOW_START_NS: i64 = 60 * 1_000_000_000;

#[cfg(test)]
mod tests;
