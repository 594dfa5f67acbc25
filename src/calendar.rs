//! The calendar: when a request fits, by arithmetic over running totals.
//!
//! Nothing here does I/O or reads a clock; a store hands in its ledgers through [`Ledgers`].

mod block;
mod bucket;
mod slow_start;
mod window;

use std::collections::BTreeMap;

pub(crate) use self::block::{OpenBlock, OpenBlocks};
use self::bucket::Tank;
pub(crate) use self::bucket::{Full, Level, Poured, corrected, farthest, poured_now, poured_until};
use self::slow_start::SlowStart;
use self::window::{Span, Window};
use crate::clock::Timestamp;
use crate::limit::{Kind, Limit, Obstacle, Rate};
use crate::pause::Pause;
use crate::store::Few;

/// Names a limit inside a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LimitId(pub(crate) i64);

impl LimitId {
    /// Of a limit that has no ledger yet: nothing was ever charged to it.
    pub(crate) const NONE: Self = Self(0);
}

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

/// What the calendar reads of the ledgers of a store. Each call is one seek at most, where no block is open.
pub(crate) trait Ledgers {
    type Error;

    /// The last charge at or before an instant.
    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Self::Error>;

    /// The first charge after an instant.
    fn first_after(&mut self, limit: LimitId, at: Timestamp)
    -> Result<Option<Charge>, Self::Error>;

    /// The blocks of a limit that are open.
    fn open_blocks(&mut self, limit: LimitId) -> Result<OpenBlocks, Self::Error>;

    /// How full a bucket is by what was poured out of it. Nothing if nothing was.
    fn level(&mut self, limit: LimitId) -> Result<Option<Level>, Self::Error>;

    /// The last pause of a limit, which may be over.
    fn pause(&mut self, limit: LimitId) -> Result<Option<Pause>, Self::Error>;

    /// What to add to an instant to know where it lies in a calendar.
    fn wall_shift_ns(&self) -> i64;

    /// Of which windows is known whether they keep to their capacities; nothing where nobody remembers that.
    fn kept(&mut self) -> Option<&mut Kept> {
        None
    }
}

/// The windows, by limit and reach, of which was looked whether they keep to their capacities from now on, and what was
/// found. As long as the definitions stay the same, whatever is charged or taken back leaves it so.
#[derive(Debug, Default)]
pub(crate) struct Kept(BTreeMap<(LimitId, i64), bool>);

impl Kept {
    /// How many windows are remembered at most.
    const MOST: usize = 1_024;

    fn get(&self, limit: LimitId, reach_ns: i64) -> Option<bool> {
        self.0.get(&(limit, reach_ns)).copied()
    }

    fn insert(&mut self, limit: LimitId, reach_ns: i64, is_kept: bool) {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert((limit, reach_ns), is_kept);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// An amount asked of one limit, at most its smallest capacity or its slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) id: LimitId,
    /// The pattern that makes the limit, if one does.
    pub(crate) pattern: Option<LimitId>,
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

/// What one gauge says of an amount at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Now,
    /// Not before this instant, which is later.
    NotBefore(Timestamp),
    /// Not before any instant that can be written down.
    Never,
}

/// One thing that a line has to fit.
enum Gauge<'l> {
    Window(Window<'l>),
    SlowStart(SlowStart<'l>),
    Tank(Tank),
}

impl Gauge<'_> {
    fn fit<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
        skips_from: Option<Timestamp>,
    ) -> Result<Fit, L::Error> {
        match self {
            Self::Window(window) => window.fit(ledgers, at, amount, skips_from),
            Self::SlowStart(start) => start.fit(ledgers, at, amount),
            Self::Tank(tank) => tank.fit(ledgers, at, amount),
        }
    }
}

/// How many gauges a limit has.
fn gauge_count(limit: &Limit, pause: Option<Pause>) -> usize {
    let starts = pause.map_or(0, |pause| slow_start::rates(limit, pause).count());
    starts
        + match limit.kind() {
            Kind::Rates(_) => limit.rates().len(),
            Kind::Bucket(_) => 1,
            Kind::Slots(_) | Kind::Breaker(_) => 0,
        }
}

/// The gauges of a line, and what each is called; the widest window first, since it moves furthest. With the last pause,
/// as long as that still matters.
fn gauges<'l>(
    line: &Line<'l>,
    pause: Option<Pause>,
    wall_shift_ns: i64,
) -> impl Iterator<Item = (Gauge<'l>, Obstacle)> + use<'l> {
    let (id, limit) = (line.id, line.limit);
    let rates = limit.rates().iter().rev();
    let windows = rates.map(move |rate| {
        let window = Window::new(id, limit, rate, wall_shift_ns);
        (Gauge::Window(window), Obstacle::Rate(*rate))
    });
    let tank = limit.bucket().map(|bucket| {
        let tank = Tank { limit: id, bucket };
        (Gauge::Tank(tank), Obstacle::Bucket(bucket))
    });
    let starts = pause.map(|pause| slow_start::rates(limit, pause));
    let starts = starts.into_iter().flatten().map(move |(rate, pause)| {
        let start = SlowStart::new(id, limit, rate, pause);
        (Gauge::SlowStart(start), Obstacle::SlowStart)
    });
    windows.chain(tank).chain(starts)
}

/// The last pause of a limit, as long as it matters at `now` or later.
pub(crate) fn pause_of<L: Ledgers>(
    ledgers: &mut L,
    limit: LimitId,
    now: Timestamp,
) -> Result<Option<Pause>, L::Error> {
    let pause = ledgers.pause(limit)?;
    Ok(pause.filter(|pause| now < slow_start::end(*pause)))
}

/// How often what is in the way is looked at one by one, before a look is taken at how far all is full.
const MOVES_BETWEEN_SKIPS: u64 = 4;

/// Finds the earliest instant at or after `now` at which all lines fit, bookings included, and no pause holds.
///
/// A charge at `t` counts in the windows that end in `[t, t + w)`. While one of those is over, `t`
/// moves to where enough of that window's charges have left; every instant skipped would be over too, so
/// that the first `t` at which no window is over is the earliest. Buckets and calendars move it in the same way. Where
/// many windows in a row are full, `t` moves past all of them at once.
pub(crate) fn earliest<L: Ledgers>(
    ledgers: &mut L,
    lines: &[Line<'_>],
    now: Timestamp,
) -> Result<Earliest, L::Error> {
    let mut at = now;
    let mut blocker = None;
    let mut checks = 0;
    let mut pauses = Few::with_capacity(lines.len());
    for (position, line) in lines.iter().enumerate() {
        let pause = pause_of(ledgers, line.id, now)?;
        if let Some(pause) = pause.filter(|pause| pause.holds(at)) {
            at = pause.until();
            blocker = Some(Blocker {
                line: position,
                obstacle: match line.limit.kind() {
                    Kind::Breaker(_) => Obstacle::Breaker,
                    _ => Obstacle::Paused,
                },
            });
        }
        checks += gauge_count(line.limit, pause);
        pauses.push(pause);
    }
    let mut agreed = 0;
    if checks == 0 {
        return Ok(blocker.map_or(Earliest::Now, |blocker| Earliest::Later { at, blocker }));
    }
    let wall_shift_ns = ledgers.wall_shift_ns();
    loop {
        for (position, line) in lines.iter().enumerate() {
            for (gauge, obstacle) in gauges(line, pauses[position], wall_shift_ns) {
                if agreed == checks {
                    return Ok(
                        blocker.map_or(Earliest::Now, |blocker| Earliest::Later { at, blocker })
                    );
                }
                let found = Blocker {
                    line: position,
                    obstacle,
                };
                for moves in 1_u64.. {
                    let skips_from = (moves % MOVES_BETWEEN_SKIPS == 0).then_some(now);
                    match gauge.fit(ledgers, at, line.amount, skips_from)? {
                        Fit::Now => break,
                        Fit::NotBefore(later) => at = later,
                        Fit::Never => return Ok(Earliest::Beyond { blocker: found }),
                    }
                    blocker = Some(found);
                    agreed = 0;
                }
                agreed += 1;
            }
        }
    }
}

/// How much of a limit is used at an instant, what could be charged there, and when more comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) used: i64,
    pub(crate) available: i64,
    pub(crate) next_release: Option<Timestamp>,
    /// Whether more is used, or was promised, than the definition allows.
    pub(crate) is_over: bool,
}

/// Reads off how one rate of a limit stands at `now`.
pub(crate) fn usage<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    rate: &Rate,
    now: Timestamp,
) -> Result<Use, L::Error> {
    Window::new(id, limit, rate, ledgers.wall_shift_ns()).usage(ledgers, now)
}

/// The window of a rate that ends at `at` holds the charges after this instant.
#[cfg(feature = "inspect")]
pub(crate) fn window_start(
    limit: &Limit,
    rate: &Rate,
    wall_shift_ns: i64,
    at: Timestamp,
) -> Timestamp {
    window::Span::of(limit, rate, wall_shift_ns).start(at)
}

/// Whether a limit admits less than it could at an instant, because of a pause that has ended or not.
pub(crate) fn starts_slowly(limit: &Limit, pause: Pause, at: Timestamp) -> bool {
    let mut rates = slow_start::rates(limit, pause);
    pause.holds(at) || rates.any(|(rate, pause)| at < slow_start::end_of(rate, pause))
}

/// How much of a rate can be charged at an instant, as far as a slow start limits it.
pub(crate) fn room_at_start<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    rate: &Rate,
    pause: Pause,
    at: Timestamp,
) -> Result<Option<i64>, L::Error> {
    if slow_start::rates(limit, pause).all(|(slow, _)| slow != rate) {
        return Ok(None);
    }
    SlowStart::new(id, limit, rate, pause).room(ledgers, at)
}

/// When a limit has started again after a pause, if it does so slowly.
pub(crate) fn end_of_start(limit: &Limit, pause: Pause) -> Option<Timestamp> {
    let ends = slow_start::rates(limit, pause).map(|(rate, pause)| slow_start::end_of(rate, pause));
    ends.max()
}

/// Reads off how a bucket stands at `now`, if the limit is one.
pub(crate) fn level<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    now: Timestamp,
) -> Result<Option<Use>, L::Error> {
    let tank = |bucket| Tank { limit: id, bucket };
    let tank = limit.bucket().map(tank);
    tank.map(|tank| tank.usage(ledgers, now)).transpose()
}

/// How much can be added to a charge made at `at` so that no window is over which ends now or later; less
/// than zero if one is over already, nothing if no such window holds it any more. A bucket has no such memory: whatever
/// is added to what was poured out of it is poured now.
pub(crate) fn room<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    at: Timestamp,
    now: Timestamp,
) -> Result<Option<i64>, L::Error> {
    if let Some(bucket) = limit.bucket() {
        return Tank { limit: id, bucket }
            .room(ledgers, at.max(now))
            .map(Some);
    }
    let wall_shift_ns = ledgers.wall_shift_ns();
    let mut room: Option<i64> = None;
    for rate in limit.rates() {
        let window = Window::new(id, limit, rate, wall_shift_ns);
        if let Some(free) = window.room(ledgers, at, now)? {
            room = Some(room.map_or(free, |room| room.min(free)));
        }
    }
    Ok(room)
}

/// How much of a limit of rates can be used anywhere between now and a later instant, though nobody knows when: so
/// that no window is over which ends from now on, up to those that the last of it has left.
pub(crate) fn room_until<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    now: Timestamp,
    until: Timestamp,
) -> Result<i64, L::Error> {
    let wall_shift_ns = ledgers.wall_shift_ns();
    let mut room = i64::MAX;
    for rate in limit.rates() {
        let window = Window::new(id, limit, rate, wall_shift_ns);
        room = room.min(window.room_until(ledgers, now, until)?);
    }
    Ok(room)
}

/// Up to which instant the charges of a limit can go: no window holds them any more, and none is to be kept. Nothing if
/// it has no windows.
pub(crate) fn expired_until(
    limit: &Limit,
    now: Timestamp,
    wall_shift_ns: i64,
) -> Option<Timestamp> {
    let spans = limit
        .rates()
        .iter()
        .map(|rate| Span::of(limit, rate, wall_shift_ns));
    let expired = spans.map(|span| span.expired_until(now)).min()?;
    Some(match limit.keep_ns() {
        0 => expired,
        // What is merged stands at the beginning of its span, and may have been charged at its end.
        keep_ns => expired.min(now.saturating_minus_ns(keep_ns + limit.resolution_ns())),
    })
}

#[cfg(test)]
mod tests;
