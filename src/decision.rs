//! What comes of a request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::Broken;
use crate::calendar::{self, Blocker, Earliest, Ledgers, LimitId, Line};
use crate::clock::Timestamp;
use crate::limit::{MAX_CAPACITY, Obstacle};
use crate::line::is_of_slots;
use crate::permit::Permit;
use crate::store::Few;

/// Whether a request was admitted.
#[derive(Debug)]
#[must_use = "a request that was denied must not go ahead"]
pub enum Decision<P = Permit> {
    /// It was admitted and is charged.
    Granted(P),
    /// It was not admitted now, and nothing was charged.
    Denied(Denial),
}

impl<P> Decision<P> {
    /// Whether the request was admitted. What only asks this drops the permit with the decision, and slots with it: keep the
    /// permit for as long as they are held.
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        matches!(self, Self::Granted(_))
    }

    /// The permit, if the request was admitted.
    #[must_use]
    pub fn granted(self) -> Option<P> {
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
    obstacle: Obstacle,
    amount: u64,
    now: Timestamp,
    retry_at: Option<Timestamp>,
}

impl Denial {
    /// The key of the limit that has to be waited for longest.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What of that limit stands in the way: the rate that has to be waited for longest, its slots, or a pause.
    #[must_use]
    pub const fn obstacle(&self) -> Obstacle {
        self.obstacle
    }

    /// Whether that limit is [paused](crate::Limiter::pause).
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        matches!(self.obstacle, Obstacle::Paused)
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
    /// earlier, and not later. `None` if it waits for slots, since nobody knows when a holder ends: then
    /// [wait in line](crate::Limiter::acquire_within).
    #[must_use]
    pub const fn retry_at(&self) -> Option<Timestamp> {
        self.retry_at
    }

    /// How long until [`retry_at`](Self::retry_at), counted from the decision.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.retry_at {
            Some(at) => Some(at.saturating_duration_since(self.now)),
            None => None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            obstacle,
            amount,
            ..
        } = self;
        match self.retry_after() {
            Some(after) => {
                let after = for_people(after);
                write!(f, "limit `{key}` ({obstacle}) admits {amount} in {after}")
            }
            None => write!(f, "limit `{key}` ({obstacle}) has no room for {amount}"),
        }
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
    let (minutes, rest) = (ms / 60_000, Duration::from_millis(ms % 60_000));
    let (days, hours) = (minutes / (24 * 60), minutes / 60 % 24);
    let units = [(days, "d"), (hours, "h"), (minutes % 60, "min")];
    let units = units.iter().filter(|(count, _)| *count > 0);
    let mut parts: Vec<String> = units
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if !rest.is_zero() || parts.is_empty() {
        parts.push(format!("{rest:?}"));
    }
    parts.join(" ")
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
    Until { at: Timestamp, blocker: Blocker },
    /// It fits only at an instant that cannot be written down.
    Beyond { blocker: Blocker },
    /// It fits when somebody gives slots back.
    Taken { blocker: Blocker },
    /// It would fit, but for those who wait in line for it.
    Behind { blocker: Blocker },
}

impl Refusal {
    /// Whether it ends when somebody else does something, and not by time alone.
    pub(crate) const fn is_of_the_line(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Behind { .. })
    }
}

/// What decisions read of a store: its ledgers, and who holds slots.
pub(crate) trait Books: Ledgers {
    /// How many slots of a limit are held.
    fn held(&mut self, limit: LimitId) -> Result<i64, Self::Error>;

    /// How many are held by permits that were granted at an instant or later.
    fn held_since(&mut self, limit: LimitId, at: Timestamp) -> Result<i64, Self::Error>;

    /// How a breaker stands, unless it is closed.
    fn broken(&mut self, limit: LimitId) -> Result<Option<Broken>, Self::Error>;
}

/// How many slots of a line are free; of a breaker, how many it lets through.
pub(crate) fn free_slots<B: Books>(books: &mut B, line: &Line<'_>) -> Result<i64, B::Error> {
    let Some(policy) = line.limit.breaker_policy() else {
        let count = line.limit.slot_count().unwrap_or(0).cast_signed();
        return Ok(count.saturating_sub(books.held(line.id)?));
    };
    Ok(match books.broken(line.id)? {
        None => MAX_CAPACITY.cast_signed(),
        Some(broken) => i64::from(policy.probes) - books.held_since(line.id, broken.until)?,
    })
}

/// Whether a limit of a request is paused.
pub(crate) fn is_any_paused<L: Ledgers>(
    ledgers: &mut L,
    lines: &[Line<'_>],
    now: Timestamp,
) -> Result<bool, L::Error> {
    for line in lines {
        let pause = calendar::pause_of(ledgers, line.id, now)?;
        if pause.is_some_and(|pause| pause.holds(now)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Decides a request: it is admitted if its slots are free, at the earliest instant at which every window of
/// every line allows it, provided that this is no later than `latest`. Slots are held from now on or not at
/// all, and so are never booked ahead.
pub(crate) fn decide<B: Books>(
    books: &mut B,
    lines: &[Line<'_>],
    now: Timestamp,
    latest: Timestamp,
) -> Result<Verdict, B::Error> {
    let mut latest = latest;
    for (position, line) in lines.iter().enumerate() {
        if !is_of_slots(line) {
            continue;
        }
        latest = now;
        // Then what is known is when it ends, and not who holds slots then.
        if is_any_paused(books, lines, now)? {
            break;
        }
        if line.amount > free_slots(books, line)? {
            let blocker = Blocker {
                line: position,
                obstacle: line.limit.tightest(),
            };
            return Ok(Verdict::Refuse(Refusal::Taken { blocker }));
        }
    }
    Ok(match calendar::earliest(books, lines, now)? {
        Earliest::Now => Verdict::Admit(now),
        Earliest::Later { at, .. } if at <= latest => Verdict::Admit(at),
        Earliest::Later { at, blocker } => Verdict::Refuse(Refusal::Until { at, blocker }),
        Earliest::Beyond { blocker } => Verdict::Refuse(Refusal::Beyond { blocker }),
    })
}

/// Where a booking goes that has to be moved: to the earliest instant after `now` at which it fits. What a limit has become
/// too small for since it was booked, fits nowhere: that limit is left out, but for its pause, and the booking comes no
/// earlier than it was.
pub(crate) fn place_again<L: Ledgers>(
    ledgers: &mut L,
    lines: &[Line<'_>],
    booked: Timestamp,
    now: Timestamp,
) -> Result<Timestamp, L::Error> {
    let mut first = now.saturating_plus_ns(1);
    let mut fitting = Few::with_capacity(lines.len());
    for line in lines {
        if line.amount <= line.limit.tightest().capacity().cast_signed() {
            fitting.push(*line);
            continue;
        }
        first = first.max(booked);
        if let Some(pause) = calendar::pause_of(ledgers, line.id, now)? {
            first = first.max(pause.until());
        }
    }
    Ok(match calendar::earliest(ledgers, &fitting, first)? {
        Earliest::Now => first,
        Earliest::Later { at, .. } => at,
        // Nobody lives to see it.
        Earliest::Beyond { .. } => first.max(booked),
    })
}

/// How large a block can be that is taken now and ends at `until`, if its caller gains by it: no more than what it asks
/// for at once is charged at once.
pub(crate) fn block_size<L: Ledgers>(
    ledgers: &mut L,
    line: &Line<'_>,
    size: u64,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<i64>, L::Error> {
    let size = size.min(MAX_CAPACITY).cast_signed();
    // As long as a limit starts slowly after a pause, nothing is taken beyond what is needed.
    let pause = calendar::pause_of(ledgers, line.id, now)?;
    let is_slow = pause.is_some_and(|pause| calendar::starts_slowly(line.limit, pause, now));
    if size <= line.amount || until <= now || is_slow {
        return Ok(None);
    }
    let room = calendar::room_until(ledgers, line.id, line.limit, now, until)?;
    Ok(Some(room.min(size)).filter(|size| *size > line.amount))
}

impl Denial {
    /// What is told to somebody whose booking was moved too far behind a pause.
    pub(crate) const fn of_moved(
        key: Arc<str>,
        amount: u64,
        now: Timestamp,
        retry_at: Timestamp,
    ) -> Self {
        Self {
            key,
            obstacle: Obstacle::Paused,
            amount,
            now,
            retry_at: Some(retry_at),
        }
    }

    /// The same, decided at another instant.
    pub(crate) fn as_of(&self, now: Timestamp) -> Self {
        Self {
            now,
            ..self.clone()
        }
    }

    pub(crate) fn new(
        lines: &[Line<'_>],
        blocker: &Blocker,
        now: Timestamp,
        retry_at: Option<Timestamp>,
    ) -> Self {
        let line = &lines[blocker.line];
        Self {
            key: Arc::clone(line.limit.shared_key()),
            obstacle: blocker.obstacle,
            amount: line.amount.unsigned_abs(),
            now,
            retry_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_say_them() {
        let cases = [
            (0, "0ns"),
            (999_999, "999.999µs"),
            (1_000_001, "2ms"),
            (59_999_000_001, "1min"),
            (60_000_000_000, "1min"),
            (3_600_000_000_000, "1h"),
            (698_954_115_000_000, "8d 2h 9min 14.115s"),
            (86_400_000_000_000, "1d"),
        ];
        for (nanos, text) in cases {
            assert_eq!(for_people(Duration::from_nanos(nanos)), text);
        }
    }
}
