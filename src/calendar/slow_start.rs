//! The slow start after a pause: for a while, each rate admits only part of what it could, spread evenly.

use super::window::{Span, Window};
use super::{Fit, Ledgers, LimitId};
use crate::clock::Timestamp;
use crate::limit::{Limit, Rate, nanos};
use crate::pause::{LONGEST_SLOW_START_NS, Pause};

/// Into how many parts the first window is divided, if so many come to one each.
const MOST_PARTS: i128 = 10;

/// When a pause does not matter any more.
pub(super) fn end(pause: Pause) -> Timestamp {
    pause.until().saturating_plus_ns(LONGEST_SLOW_START_NS)
}

/// The rates of a limit that start slowly after a pause, each with that.
pub(super) fn rates(limit: &Limit, pause: Pause) -> impl Iterator<Item = (&Rate, Pause)> {
    let is_slow = limit.pauses().slow_start_percent < 100;
    let shortest = limit.rates().first();
    limit.rates().iter().filter_map(move |rate| {
        let window = nanos(rate.window().rolling()?);
        let starts = window <= LONGEST_SLOW_START_NS || Some(rate) == shortest;
        (is_slow && starts).then_some((rate, pause))
    })
}

/// How long the slow start of a rate takes.
fn length_ns(rate: &Rate) -> i64 {
    let window = rate.window().rolling().map(nanos);
    window.map_or(LONGEST_SLOW_START_NS, |window| {
        window.min(LONGEST_SLOW_START_NS)
    })
}

/// When the slow start of a rate ends.
pub(super) fn end_of(rate: &Rate, pause: Pause) -> Timestamp {
    pause.until().saturating_plus_ns(length_ns(rate))
}

/// What one rate admits until `until`: in each part of the first window so much, or one charge alone.
pub(super) struct SlowStart<'l> {
    id: LimitId,
    limit: &'l Limit,
    capacity: i64,
    part_ns: i64,
    until: Timestamp,
}

impl<'l> SlowStart<'l> {
    pub(super) fn new(id: LimitId, limit: &'l Limit, rate: &Rate, pause: Pause) -> Self {
        let first_ns = length_ns(rate);
        let window_ns = rate.window().rolling().map_or(first_ns, nanos);
        let percent = i128::from(limit.pauses().slow_start_percent);
        let share = i128::from(rate.capacity_units()) * percent * i128::from(first_ns)
            / (100 * i128::from(window_ns));
        let parts = share.clamp(1, MOST_PARTS);
        let part_ns = i128::from(first_ns) / parts;
        Self {
            id,
            limit,
            capacity: i64::try_from((share / parts).max(1)).unwrap_or(i64::MAX),
            part_ns: i64::try_from(part_ns).unwrap_or(first_ns) + limit.resolution_ns(),
            until: end_of(rate, pause),
        }
    }

    /// A window of one part. What is larger than it may hold has to be alone in it.
    fn part(&self, amount: i64) -> Window<'l> {
        let span = Span::Rolling {
            reach_ns: self.part_ns,
        };
        Window::of(self.id, self.limit, self.capacity.max(amount), span)
    }

    pub(super) fn fit<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
    ) -> Result<Fit, L::Error> {
        if at >= self.until {
            return Ok(Fit::Now);
        }
        let last = self.until.saturating_minus_ns(1);
        let fit = self.part(amount).fit_up_to(ledgers, at, amount, last)?;
        Ok(match fit {
            Fit::Now => Fit::Now,
            Fit::NotBefore(later) => Fit::NotBefore(later.min(self.until)),
            Fit::Never => Fit::NotBefore(self.until),
        })
    }

    /// The most that can be charged at an instant; nothing if this does not limit it.
    pub(super) fn room<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
    ) -> Result<Option<i64>, L::Error> {
        if at >= self.until {
            return Ok(None);
        }
        let last = self.until.saturating_minus_ns(1);
        let most = self.part(0).most_up_to(ledgers, at, last)?;
        Ok((most > 0).then(|| (self.capacity - most).max(0)))
    }
}
