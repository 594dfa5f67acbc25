//! Windows: those that roll along, and those that go from one boundary of a calendar to the next.

use super::{Charge, Fit, Ledgers, LimitId, OpenBlocks, Total, Use};
use crate::clock::Timestamp;
use crate::limit::{self, Limit, Quota, Rate, nanos};
use crate::settlement::Overage;

/// One rate of one limit, its window lengthened by the pad and the resolution.
pub(super) struct Window<'l> {
    id: LimitId,
    limit: &'l Limit,
    capacity: i64,
    span: Span,
}

/// A window that would hold too much.
struct Over {
    ends_at: Timestamp,
    /// Its first charge and the last one up to its end, and what is charged in it.
    first: Option<Charge>,
    last: Option<Charge>,
    charged: i64,
    /// How much more it would hold than its capacity, open blocks included.
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
        /// By how much its windows are lengthened, as those that roll are.
        longer_ns: i64,
        wall_shift_ns: i64,
    },
}

impl Span {
    pub(super) fn of(limit: &Limit, rate: &Rate, wall_shift_ns: i64) -> Self {
        let longer_ns = limit.lengthened_by_ns();
        match rate.window() {
            limit::Window::Rolling(window) => Self::Rolling {
                reach_ns: nanos(window) + longer_ns,
            },
            limit::Window::Calendar(quota) => Self::Calendar {
                quota,
                longer_ns,
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
    pub(super) fn start(self, at: Timestamp) -> Timestamp {
        match self {
            Self::Rolling { reach_ns } => at.saturating_minus_ns(reach_ns),
            Self::Calendar {
                quota,
                longer_ns,
                wall_shift_ns,
            } => {
                let (from, _) = Self::around(quota, wall_shift_ns, at);
                from.saturating_minus_ns(longer_ns).saturating_minus_ns(1)
            }
        }
    }

    /// The first instant whose window does not hold a charge made at `at` any more, if it can be written down.
    fn leaves(self, at: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Rolling { reach_ns } => at.checked_plus_ns(reach_ns),
            Self::Calendar {
                quota,
                longer_ns,
                wall_shift_ns,
            } => {
                let (_, until) = Self::around(quota, wall_shift_ns, at.checked_plus_ns(longer_ns)?);
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

impl<'l> Window<'l> {
    pub(super) fn new(id: LimitId, limit: &'l Limit, rate: &Rate, wall_shift_ns: i64) -> Self {
        let span = Span::of(limit, rate, wall_shift_ns);
        Self::of(id, limit, rate.capacity_units(), span)
    }

    pub(super) const fn of(id: LimitId, limit: &'l Limit, capacity: i64, span: Span) -> Self {
        Self {
            id,
            limit,
            capacity,
            span,
        }
    }

    /// Whether what was used beyond the capacity is charged all the same, or a charge counts before its instant.
    fn can_be_exceeded(&self) -> bool {
        self.limit.overage() == Overage::Charge || self.limit.resolution_ns() > 0
    }

    fn start(&self, at: Timestamp) -> Timestamp {
        self.span.start(at)
    }

    fn end(&self, at: Timestamp) -> Timestamp {
        self.span.end(at)
    }

    /// The last instant whose window holds what is charged at `at`, wherever that is entered.
    fn end_of_new(&self, at: Timestamp) -> Timestamp {
        self.end(self.limit.entered_at(at))
    }

    pub(super) fn usage<L: Ledgers>(
        &self,
        ledgers: &mut L,
        now: Timestamp,
    ) -> Result<Use, L::Error> {
        let first = ledgers.first_after(self.id, self.start(now))?;
        let charged = match ledgers.last_at(self.id, now)? {
            Some(last) => sum_between(first.as_ref(), &last),
            None => 0,
        };
        let open = ledgers.open_blocks(self.id)?;
        let used = charged.saturating_add(open.amount_after(now));
        let most = self.peak(ledgers, now, self.end_of_new(now))?;
        let next = first.filter(|_| charged > 0).map(|first| first.at);
        Ok(Use {
            used,
            available: (self.capacity - most).max(0),
            next_release: next
                .or(open.first_after(now))
                .and_then(|next| self.span.leaves(next)),
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
        let most = self.peak(ledgers, at.max(now), self.end(at))?;
        Ok(Some(self.capacity - most))
    }

    /// How much can be used anywhere from `now` until `until`; less than zero if a window is over already.
    pub(super) fn room_until<L: Ledgers>(
        &self,
        ledgers: &mut L,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<i64, L::Error> {
        Ok(self.capacity - self.peak(ledgers, now, self.end(until))?)
    }

    /// Whether an amount fits at `at`. If not, a search that began at `skips_from` passes over all that is full at once.
    pub(super) fn fit<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
        skips_from: Option<Timestamp>,
    ) -> Result<Fit, L::Error> {
        let open = ledgers.open_blocks(self.id)?;
        let end = self.end_of_new(at);
        let Some(over) = self.last_over(ledgers, &open, (at, end), amount)? else {
            return Ok(Fit::Now);
        };
        let further = match skips_from {
            // Beyond the last of them, blocks are charges as any other.
            Some(now) if open.first_after(over.ends_at).is_none() => {
                self.over_further(ledgers, &over, amount, now)?
            }
            _ => None,
        };
        let release = self.release(ledgers, &open, &further.unwrap_or(over))?;
        Ok(release
            .and_then(|release| self.span.leaves(release))
            .map_or(Fit::Never, Fit::NotBefore))
    }

    /// Whether an amount fits at `at`, as far as windows tell that end at `last` or earlier.
    pub(super) fn fit_up_to<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
        last: Timestamp,
    ) -> Result<Fit, L::Error> {
        let open = ledgers.open_blocks(self.id)?;
        let end = self.end_of_new(at).min(last);
        let Some(over) = self.last_over(ledgers, &open, (at, end), amount)? else {
            return Ok(Fit::Now);
        };
        let release = self.release(ledgers, &open, &over)?;
        Ok(release
            .and_then(|release| self.span.leaves(release))
            .map_or(Fit::Never, Fit::NotBefore))
    }

    /// The most that any window holds in which a charge at `at` would count, and which ends at `last` or earlier.
    pub(super) fn most_up_to<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        last: Timestamp,
    ) -> Result<i64, L::Error> {
        self.peak(ledgers, at, self.end_of_new(at).min(last))
    }

    /// The instant of what has to leave a window before there is room in it.
    fn release<L: Ledgers>(
        &self,
        ledgers: &mut L,
        open: &OpenBlocks,
        over: &Over,
    ) -> Result<Option<Timestamp>, L::Error> {
        let charged = over.first.zip(over.last).filter(|_| over.charged > 0);
        Ok(match (charged, self.span) {
            (Some((first, last)), Span::Rolling { .. }) if over.charged >= over.excess => {
                Some(self.leaver(ledgers, &first, &last, over.excess)?)
            }
            // All that leave with it leave at once.
            (Some((first, _)), Span::Calendar { .. }) => Some(first.at),
            // Blocks leave after all that is charged up to here.
            (_, Span::Rolling { .. }) => open.reaches(over.ends_at, over.excess - over.charged),
            (None, Span::Calendar { .. }) => open.first_after(over.ends_at),
        })
    }

    /// The most that any window holds which ends at `from` or later, and at `end` or earlier.
    fn peak<L: Ledgers>(
        &self,
        ledgers: &mut L,
        from: Timestamp,
        end: Timestamp,
    ) -> Result<i64, L::Error> {
        let open = ledgers.open_blocks(self.id)?;
        let mut most = open.amount_after(from);
        let mut last = ledgers.last_at(self.id, end)?;
        while let Some(charge) = last {
            let ends_at = charge.at.max(from);
            let first = ledgers.first_after(self.id, self.start(ends_at))?;
            let charged = sum_between(first.as_ref(), &charge);
            most = most.max(charged.saturating_add(open.amount_after(ends_at)));
            if ends_at == from {
                break;
            }
            last = ledgers.last_at(self.id, charge.at.saturating_minus_ns(1))?;
        }
        Ok(most)
    }

    /// The last window that would be over if `amount` was charged at `at`, of those that end at `end` or earlier.
    fn last_over<L: Ledgers>(
        &self,
        ledgers: &mut L,
        open: &OpenBlocks,
        (at, end): (Timestamp, Timestamp),
        amount: i64,
    ) -> Result<Option<Over>, L::Error> {
        // Bookings may lie in (at, at + reach); they are looked at from the end, for the last one that
        // is over moves `at` furthest.
        let mut last = ledgers.last_at(self.id, end)?;
        loop {
            let ends_at = last.map_or(at, |charge| charge.at.max(at));
            let over = self.over(ledgers, open, ends_at, last, amount)?;
            let Some(charge) = last.filter(|_| over.is_none() && ends_at != at) else {
                return Ok(over);
            };
            last = ledgers.last_at(self.id, charge.at.saturating_minus_ns(1))?;
        }
    }

    /// The window that ends at `ends_at`, up to which `last` is the last charge, if `amount` more would be too much for it.
    fn over<L: Ledgers>(
        &self,
        ledgers: &mut L,
        open: &OpenBlocks,
        ends_at: Timestamp,
        last: Option<Charge>,
        amount: i64,
    ) -> Result<Option<Over>, L::Error> {
        let first = match last {
            Some(_) => ledgers.first_after(self.id, self.start(ends_at))?,
            None => None,
        };
        let charged = last.map_or(0, |last| sum_between(first.as_ref(), &last));
        let excess = charged
            .saturating_add(open.amount_after(ends_at))
            .saturating_add(amount - self.capacity);
        Ok((excess > 0).then_some(Over {
            ends_at,
            first,
            last,
            charged,
            excess,
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
            Some(kept) if !self.can_be_exceeded() => kept.get(self.id, reach_ns),
            _ => Some(false),
        };
        if is_kept == Some(false) {
            return Ok(None);
        }
        let end_of_time = Timestamp::from_nanos(i64::MAX);
        let Some(very_last) = ledgers.last_at(self.id, end_of_time)? else {
            return Ok(None);
        };
        let Some(over_last) = over.last else {
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
            let last = ledgers.last_at(self.id, end)?.unwrap_or(over_last);
            let missing = windows * self.capacity - last.total.since(over_last.total);
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
                kept.insert(self.id, reach_ns, is_kept);
            }
            if !is_kept {
                return Ok(None);
            }
        }
        self.over(ledgers, &OpenBlocks::default(), end, Some(last), amount)
    }

    /// Whether no window that ends at `now` or later holds more than the capacity.
    fn is_kept<L: Ledgers>(&self, ledgers: &mut L, now: Timestamp) -> Result<bool, L::Error> {
        let mut ends_at = now;
        loop {
            let last = ledgers.last_at(self.id, ends_at)?;
            let over = self.over(ledgers, &OpenBlocks::default(), ends_at, last, 0)?;
            if over.is_some() {
                return Ok(false);
            }
            match ledgers.first_after(self.id, ends_at)? {
                Some(next) => ends_at = next.at,
                None => return Ok(true),
            }
        }
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
            let Some(whole) = ledgers.last_at(self.id, low.at)? else {
                return Ok(high);
            };
            let low_sum = whole.total.since(base);
            if low_sum >= excess {
                return Ok(low.at);
            }
            let Some(next) = ledgers.first_after(self.id, low.at)? else {
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
            if let Some(probe) = ledgers.last_at(self.id, guess)? {
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

#[cfg(test)]
mod tests;
