//! Windows: those that roll along, and those that go from one boundary of a calendar to the next.

use super::{Charge, Fit, Ledgers, LimitId, Total, Use};
use crate::clock::Timestamp;
use crate::limit::{self, Limit, Quota, Rate, nanos};
use crate::settlement::Overage;

/// One rate of one limit, its window lengthened by the pad.
pub(super) struct Window {
    limit: LimitId,
    capacity: i64,
    span: Span,
    /// Whether what was used beyond the capacity is charged all the same.
    can_be_exceeded: bool,
}

/// A window that would hold too much.
struct Over {
    ends_at: Timestamp,
    /// Its first charge and the last one up to its end.
    first: Charge,
    last: Charge,
    excess: i64,
}

/// As many windows have to be passed over at once for it to be worth while.
const FEWEST_SKIPPED: i64 = 4;

const DAY_NS: i64 = 86_400 * 1_000_000_000;

/// From where to where a window reaches.
#[derive(Clone, Copy)]
pub(super) enum Span {
    Rolling {
        reach_ns: i64,
    },
    Calendar {
        quota: Quota,
        pad_ns: i64,
        wall_shift_ns: i64,
    },
}

impl Span {
    pub(super) fn of(limit: &Limit, rate: &Rate, wall_shift_ns: i64) -> Self {
        let pad_ns = limit.pad_ns();
        match rate.window() {
            limit::Window::Rolling(window) => Self::Rolling {
                reach_ns: nanos(window) + pad_ns,
            },
            limit::Window::Calendar(quota) => Self::Calendar {
                quota,
                pad_ns,
                wall_shift_ns,
            },
        }
    }

    /// Up to which instant nobody asks for charges any more.
    ///
    /// A calendar asks again for what it has let go if the wall clock is set: back across the end of a period for
    /// all of that, forward for what lies before the present one. So the last period of a day ago is kept, and a
    /// day before it.
    pub(super) fn expired_until(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Rolling { .. } => self.start(now),
            Self::Calendar { .. } => self
                .start(now.saturating_minus_ns(DAY_NS))
                .saturating_minus_ns(DAY_NS),
        }
    }

    /// Where the period begins that holds an instant, and where the next one does.
    fn around(quota: Quota, wall_shift_ns: i64, at: Timestamp) -> (Timestamp, Timestamp) {
        let (from, until) = quota.around(at.as_nanos().saturating_add(wall_shift_ns));
        let instant = |wall_ns| Timestamp::from_nanos(wall_ns).saturating_minus_ns(wall_shift_ns);
        (instant(from), instant(until))
    }

    /// The window that ends at `at` holds the charges after this instant.
    fn start(self, at: Timestamp) -> Timestamp {
        match self {
            Self::Rolling { reach_ns } => at.saturating_minus_ns(reach_ns),
            Self::Calendar {
                quota,
                pad_ns,
                wall_shift_ns,
            } => {
                let (from, _) = Self::around(quota, wall_shift_ns, at);
                from.saturating_minus_ns(pad_ns).saturating_minus_ns(1)
            }
        }
    }

    /// The first instant whose window does not hold a charge made at `at` any more, if it can be written down.
    fn leaves(self, at: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Rolling { reach_ns } => at.checked_plus_ns(reach_ns),
            Self::Calendar {
                quota,
                pad_ns,
                wall_shift_ns,
            } => {
                let (_, until) = Self::around(quota, wall_shift_ns, at.checked_plus_ns(pad_ns)?);
                (until.as_nanos() < i64::MAX.saturating_sub(wall_shift_ns.max(0))).then_some(until)
            }
        }
    }

    /// The last instant whose window holds a charge made at `at`.
    fn end(self, at: Timestamp) -> Timestamp {
        let leaves = self.leaves(at);
        leaves.map_or(Timestamp::from_nanos(i64::MAX), |leaves| {
            leaves.saturating_minus_ns(1)
        })
    }
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

impl Window {
    pub(super) fn new(id: LimitId, limit: &Limit, rate: &Rate, wall_shift_ns: i64) -> Self {
        Self {
            limit: id,
            capacity: rate.capacity_units(),
            span: Span::of(limit, rate, wall_shift_ns),
            can_be_exceeded: limit.overage() == Overage::Charge,
        }
    }

    fn start(&self, at: Timestamp) -> Timestamp {
        self.span.start(at)
    }

    fn end(&self, at: Timestamp) -> Timestamp {
        self.span.end(at)
    }

    pub(super) fn usage<L: Ledgers>(
        &self,
        ledgers: &mut L,
        now: Timestamp,
    ) -> Result<Use, L::Error> {
        let first = ledgers.first_after(self.limit, self.start(now))?;
        let used = match ledgers.last_at(self.limit, now)? {
            Some(last) => sum_between(first.as_ref(), &last),
            None => 0,
        };
        let most = self.peak(ledgers, now, now)?;
        Ok(Use {
            used,
            available: (self.capacity - most).max(0),
            next_release: first
                .filter(|_| used > 0)
                .and_then(|first| self.span.leaves(first.at)),
            is_over: used.max(most) > self.capacity,
        })
    }

    /// How much can be added to a charge made at `at`; nothing if no window that ends now or later holds it.
    pub(super) fn room<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<Option<i64>, L::Error> {
        if self.end(at) < now {
            return Ok(None);
        }
        Ok(Some(self.capacity - self.peak(ledgers, at, now)?))
    }

    /// Whether an amount fits at `at`. If not, a search that began at `skips_from` passes over all that is full at once.
    pub(super) fn fit<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
        skips_from: Option<Timestamp>,
    ) -> Result<Fit, L::Error> {
        let Some(over) = self.last_over(ledgers, at, amount)? else {
            return Ok(Fit::Now);
        };
        let further = match skips_from {
            Some(now) => self.over_further(ledgers, &over, amount, now)?,
            None => None,
        };
        let over = further.unwrap_or(over);
        let release = match self.span {
            Span::Rolling { .. } => self.leaver(ledgers, &over)?,
            // All that leave with it leave at once.
            Span::Calendar { .. } => over.first.at,
        };
        Ok(self.span.leaves(release).map_or(Fit::Never, Fit::NotBefore))
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

    /// The last window that would be over if `amount` was charged at `at`.
    fn last_over<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
    ) -> Result<Option<Over>, L::Error> {
        // Bookings may lie in (at, at + reach); they are looked at from the end, for the last one that
        // is over moves `at` furthest.
        let mut last = ledgers.last_at(self.limit, self.end(at))?;
        while let Some(charge) = last {
            let ends_at = charge.at.max(at);
            let over = self.over(ledgers, ends_at, charge, amount)?;
            if over.is_some() || ends_at == at {
                return Ok(over);
            }
            last = ledgers.last_at(self.limit, charge.at.saturating_minus_ns(1))?;
        }
        Ok(None)
    }

    /// The window that ends at `ends_at`, up to which `last` is the last charge, if `amount` more would be too much for it.
    fn over<L: Ledgers>(
        &self,
        ledgers: &mut L,
        ends_at: Timestamp,
        last: Charge,
        amount: i64,
    ) -> Result<Option<Over>, L::Error> {
        let first = ledgers.first_after(self.limit, self.start(ends_at))?;
        Ok(first.and_then(|first| {
            let excess = sum_between(Some(&first), &last) + amount - self.capacity;
            (excess > 0).then_some(Over {
                ends_at,
                first,
                last,
                excess,
            })
        }))
    }

    /// The last window of a row that begins after `over`, each of which begins where the one before ends, such that
    /// `amount` more would be too much for all of them. Whatever is charged up to its end counts in one of them.
    ///
    /// None holds more than the capacity. So if less than `amount` is missing in all of them together, less
    /// than that is missing in each: two totals tell.
    fn over_further<L: Ledgers>(
        &self,
        ledgers: &mut L,
        over: &Over,
        amount: i64,
        now: Timestamp,
    ) -> Result<Option<Over>, L::Error> {
        let Span::Rolling { reach_ns } = self.span else {
            return Ok(None);
        };
        let is_kept = match ledgers.kept() {
            Some(kept) if !self.can_be_exceeded => kept.get(self.limit, reach_ns),
            _ => Some(false),
        };
        if is_kept == Some(false) {
            return Ok(None);
        }
        let end_of_time = Timestamp::from_nanos(i64::MAX);
        let Some(very_last) = ledgers.last_at(self.limit, end_of_time)? else {
            return Ok(None);
        };
        let line_ns = very_last
            .at
            .as_nanos()
            .saturating_sub(over.ends_at.as_nanos());
        // No more than have a sum below the modulus of the totals.
        let most = (line_ns / reach_ns).min(Total::MASK / self.capacity);
        let mut end_if_over = |windows: i64| -> Result<Option<(Timestamp, Charge)>, L::Error> {
            let end = over.ends_at.saturating_plus_ns(windows * reach_ns);
            let last = ledgers.last_at(self.limit, end)?.unwrap_or(over.last);
            let missing = windows * self.capacity - last.total.since(over.last.total);
            Ok((missing < amount).then_some((end, last)))
        };
        let (mut found, mut low, mut high) = (None, 0, most + 1);
        // Mostly a line is full to its end, or but for its last window.
        let mut windows = most;
        while high - low > 1 {
            match end_if_over(windows)? {
                None => high = windows,
                end => (found, low) = (end, windows),
            }
            windows = match low {
                _ if high == most => most - 1,
                0 => 1,
                low => low.midpoint(high).min(low * 2),
            };
        }
        let Some((end, last)) = found.filter(|_| low >= FEWEST_SKIPPED) else {
            return Ok(None);
        };
        if is_kept.is_none() {
            let is_kept = self.is_kept(ledgers, now)?;
            if let Some(kept) = ledgers.kept() {
                kept.insert(self.limit, reach_ns, is_kept);
            }
            if !is_kept {
                return Ok(None);
            }
        }
        self.over(ledgers, end, last, amount)
    }

    /// Whether no window that ends at `now` or later holds more than the capacity.
    fn is_kept<L: Ledgers>(&self, ledgers: &mut L, now: Timestamp) -> Result<bool, L::Error> {
        let mut ends_at = now;
        loop {
            if let Some(last) = ledgers.last_at(self.limit, ends_at)?
                && self.over(ledgers, ends_at, last, 0)?.is_some()
            {
                return Ok(false);
            }
            match ledgers.first_after(self.limit, ends_at)? {
                Some(next) => ends_at = next.at,
                None => return Ok(true),
            }
        }
    }

    /// The earliest instant by which the first charges of a window sum up to what it has too much.
    ///
    /// Mostly that is the first or one of the next few. Else the ledger is bisected by time, where
    /// every other guess interpolates, as charges tend to come at an even pace.
    fn leaver<L: Ledgers>(&self, ledgers: &mut L, over: &Over) -> Result<Timestamp, L::Error> {
        let Over {
            first,
            last,
            excess,
            ..
        } = *over;
        let base = first.before();
        let mut low = first;
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
