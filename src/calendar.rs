//! The calendar: when a request fits, by arithmetic over running totals.
//!
//! Nothing here does I/O or reads a clock; a store hands in its ledgers through [`Ledgers`].

use crate::clock::Timestamp;
use crate::limit::{Limit, Obstacle, Rate};

/// Names a limit inside a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LimitId(pub(crate) i64);

/// A running sum of amounts. It counts modulo 2^62 so that a ledger never has to be renumbered; only
/// differences mean anything, and those stay far below 2^62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total(pub(crate) i64);

impl Total {
    pub(crate) const ZERO: Self = Self(0);
    pub(crate) const MASK: i64 = (1 << 62) - 1;

    pub(crate) const fn plus(self, amount: i64) -> Self {
        Self(self.0.wrapping_add(amount) & Self::MASK)
    }

    pub(crate) const fn since(self, earlier: Self) -> i64 {
        self.0.wrapping_sub(earlier.0) & Self::MASK
    }
}

/// One row of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) at: Timestamp,
    /// Orders the charges of one instant.
    pub(crate) seq: i64,
    pub(crate) amount: i64,
    /// The sum of all amounts up to this row, itself included.
    pub(crate) total: Total,
}

impl Charge {
    /// The running total just before this row.
    pub(crate) const fn before(&self) -> Total {
        self.total.plus(-self.amount)
    }
}

/// What the calendar reads of the ledgers of a store. Each call is one seek.
pub(crate) trait Ledgers {
    type Error;

    /// The last charge at or before an instant.
    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Self::Error>;

    /// The first charge after an instant.
    fn first_after(&mut self, limit: LimitId, at: Timestamp)
    -> Result<Option<Charge>, Self::Error>;
}

/// An amount asked of one limit, at most its smallest capacity or its slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) id: LimitId,
    pub(crate) limit: &'a Limit,
    pub(crate) amount: i64,
}

/// The earliest instant at which a request fits, and what stood in the way until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earliest {
    Now,
    Later {
        at: Timestamp,
        blocker: Blocker,
    },
    /// Later than any instant that can be written down.
    Beyond {
        blocker: Blocker,
    },
}

/// What a request has to wait for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocker {
    /// The position of the line in the request.
    pub(crate) line: usize,
    pub(crate) obstacle: Obstacle,
}

/// Finds the earliest instant at or after `now` at which all lines fit, bookings included.
///
/// A charge at `t` counts in the windows that end in `[t, t + w)`. While one of those is over, `t`
/// moves to where enough of that window's charges have left; every instant skipped would be over too, so
/// that the first `t` at which no window is over is the earliest.
pub(crate) fn earliest<L: Ledgers>(
    ledgers: &mut L,
    lines: &[Line<'_>],
    now: Timestamp,
) -> Result<Earliest, L::Error> {
    let mut at = now;
    let mut blocker = None;
    let checks: usize = lines.iter().map(|line| line.limit.rates().len()).sum();
    let mut agreed = 0;
    if checks == 0 {
        return Ok(Earliest::Now);
    }
    loop {
        for (position, line) in lines.iter().enumerate() {
            // The widest window moves furthest.
            for rate in line.limit.rates().iter().rev() {
                if agreed == checks {
                    return Ok(
                        blocker.map_or(Earliest::Now, |blocker| Earliest::Later { at, blocker })
                    );
                }
                let window = Window {
                    limit: line.id,
                    capacity: rate.capacity_units(),
                    reach_ns: line.limit.reach_ns(rate),
                };
                while let Some(release) = window.over_until(ledgers, at, line.amount)? {
                    let found = Blocker {
                        line: position,
                        obstacle: Obstacle::Rate(*rate),
                    };
                    let Some(later) = release.checked_plus_ns(window.reach_ns) else {
                        return Ok(Earliest::Beyond { blocker: found });
                    };
                    at = later;
                    blocker = Some(found);
                    agreed = 0;
                }
                agreed += 1;
            }
        }
    }
}

/// How much of a rate is used at an instant, what could be charged there, and when more comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) used: i64,
    pub(crate) available: i64,
    pub(crate) next_release: Option<Timestamp>,
}

/// Reads off how one rate of a limit stands at `now`.
pub(crate) fn usage<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    rate: &Rate,
    now: Timestamp,
) -> Result<Use, L::Error> {
    let window = Window {
        limit: id,
        capacity: rate.capacity_units(),
        reach_ns: limit.reach_ns(rate),
    };
    let first = ledgers.first_after(id, window.start(now))?;
    let used = match ledgers.last_at(id, now)? {
        Some(last) => sum_between(first.as_ref(), &last),
        None => 0,
    };
    let most = window.peak(ledgers, now, now)?;
    Ok(Use {
        used,
        available: (window.capacity - most).max(0),
        next_release: first
            .filter(|_| used > 0)
            .and_then(|first| first.at.checked_plus_ns(window.reach_ns)),
    })
}

/// How much can be added to a charge made at `at` so that no window is over which ends now or later; less
/// than zero if one is over already, nothing if no such window holds it any more.
pub(crate) fn room<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    at: Timestamp,
    now: Timestamp,
) -> Result<Option<i64>, L::Error> {
    let mut room: Option<i64> = None;
    for rate in limit.rates() {
        let window = Window {
            limit: id,
            capacity: rate.capacity_units(),
            reach_ns: limit.reach_ns(rate),
        };
        if window.end(at) < now {
            continue;
        }
        let free = window.capacity - window.peak(ledgers, at, now)?;
        room = Some(room.map_or(free, |room| room.min(free)));
    }
    Ok(room)
}

/// The sum from `first`, the first charge after a window's start, to `last`, the last one up to its end.
fn sum_between(first: Option<&Charge>, last: &Charge) -> i64 {
    match first {
        Some(first) if (first.at, first.seq) <= (last.at, last.seq) => {
            last.total.since(first.before())
        }
        _ => 0,
    }
}

/// One rate of one limit, its window lengthened by the pad.
struct Window {
    limit: LimitId,
    capacity: i64,
    reach_ns: i64,
}

impl Window {
    /// The last instant whose window holds a charge made at `at`.
    fn end(&self, at: Timestamp) -> Timestamp {
        at.saturating_plus_ns(self.reach_ns - 1)
    }

    /// The window that ends at `at` holds the charges after this instant.
    fn start(&self, at: Timestamp) -> Timestamp {
        at.saturating_minus_ns(self.reach_ns)
    }

    /// The most that any window holds which a charge at `at` counts in and which ends at `from` or later.
    fn peak<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        from: Timestamp,
    ) -> Result<i64, L::Error> {
        let from = from.max(at);
        let mut most = 0;
        let mut last = ledgers.last_at(self.limit, self.end(at))?;
        while let Some(charge) = last {
            let ends_at = charge.at.max(from);
            let first = ledgers.first_after(self.limit, self.start(ends_at))?;
            most = most.max(sum_between(first.as_ref(), &charge));
            if ends_at == from {
                break;
            }
            last = ledgers.last_at(self.limit, charge.at.saturating_minus_ns(1))?;
        }
        Ok(most)
    }

    /// If `amount` charged at `at` would be over in some window: the instant of the charge that has to
    /// leave before it can fit.
    fn over_until<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
    ) -> Result<Option<Timestamp>, L::Error> {
        // Bookings may lie in (at, at + reach); they are looked at from the end, for the last one that
        // is over moves `at` furthest.
        let mut last = ledgers.last_at(self.limit, self.end(at))?;
        while let Some(charge) = last {
            let ends_at = charge.at.max(at);
            if let Some(first) = ledgers.first_after(self.limit, self.start(ends_at))? {
                let excess = sum_between(Some(&first), &charge) + amount - self.capacity;
                if excess > 0 {
                    return self.leaver(ledgers, &first, &charge, excess).map(Some);
                }
            }
            if ends_at == at {
                return Ok(None);
            }
            last = ledgers.last_at(self.limit, charge.at.saturating_minus_ns(1))?;
        }
        Ok(None)
    }

    /// The earliest instant by which the charges from `first` on sum up to `excess`; the charges up to
    /// `last` do.
    ///
    /// Mostly that is the first or one of the next few. Else the ledger is bisected by time, where
    /// every other guess interpolates, as charges tend to come at an even pace.
    fn leaver<L: Ledgers>(
        &self,
        ledgers: &mut L,
        first: &Charge,
        last: &Charge,
        excess: i64,
    ) -> Result<Timestamp, L::Error> {
        let base = first.before();
        let mut low = *first;
        let mut high = last.at;
        let mut high_sum = last.total.since(base);
        let mut step: u32 = 0;
        if first.amount >= excess {
            return Ok(first.at);
        }
        loop {
            // `low` may have later siblings in its instant, and they leave together with it.
            let Some(whole) = ledgers.last_at(self.limit, low.at)? else {
                return Ok(high);
            };
            let low_sum = whole.total.since(base);
            if low_sum >= excess {
                return Ok(low.at);
            }
            let Some(next) = ledgers.first_after(self.limit, low.at)? else {
                return Ok(high);
            };
            if next.at >= high {
                return Ok(high);
            }
            low = next;
            step += 1;
            if step <= 4 {
                continue;
            }
            let guess = if step.is_multiple_of(2) {
                midpoint(low.at, high)
            } else {
                interpolate((low.at, low_sum), (high, high_sum), excess)
            };
            if let Some(probe) = ledgers.last_at(self.limit, guess)? {
                let sum = probe.total.since(base);
                if sum >= excess {
                    high = probe.at;
                    high_sum = sum;
                    if high <= low.at {
                        return Ok(high);
                    }
                } else if probe.at > low.at {
                    low = probe;
                }
            }
        }
    }
}

fn midpoint(low: Timestamp, high: Timestamp) -> Timestamp {
    Timestamp::from_nanos(low.as_nanos().midpoint(high.as_nanos()))
}

/// Where the sum would reach `wanted` if it grew evenly between two instants.
fn interpolate(low: (Timestamp, i64), high: (Timestamp, i64), wanted: i64) -> Timestamp {
    let span = i128::from(high.0.as_nanos()) - i128::from(low.0.as_nanos());
    let rise = i128::from(high.1) - i128::from(low.1);
    let part = i128::from(wanted) - i128::from(low.1);
    if rise <= 0 || part <= 0 {
        return midpoint(low.0, high.0);
    }
    let along = (span * part / rise).clamp(0, span);
    i64::try_from(i128::from(low.0.as_nanos()) + along)
        .map_or_else(|_| midpoint(low.0, high.0), Timestamp::from_nanos)
}
