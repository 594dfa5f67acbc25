//! The places in the calendar of those who stand in line: where each of them would be charged as soon as its rates
//! admit it. They are charged nothing yet; what is booked meanwhile must only not be in their way.

use smallvec::SmallVec;

use super::{Waiter, is_of_slots, rates_admit, who_can_go};
use crate::breaker::Broken;
use crate::calendar::{Charge, Ledgers, Level, LimitId, Line, OpenBlocks, Total};
use crate::clock::Timestamp;
use crate::decision::{Books, Verdict, decide};
use crate::pause::Pause;
use crate::store::Few;

/// Decides a booking: in the calendar, around the places of those who wait ahead of it.
///
/// Who is short of slots alone has no place: nobody knows when they come free, and the rates can be used until
/// then.
pub(crate) fn book_behind<B: Books>(
    books: &mut B,
    ahead: &[Waiter],
    lines: &[Line<'_>],
    now: Timestamp,
    latest: Timestamp,
) -> Result<Verdict, B::Error> {
    let can_go = who_can_go(books, ahead, now)?;
    let mut places = Places::none(books);
    for (position, waiter) in ahead.iter().enumerate() {
        let rates: Few<Line<'_>> = waiter.lines().filter(|line| !is_of_slots(line)).collect();
        let never_fits =
            |line: &Line<'_>| line.amount > line.limit.tightest().capacity().cast_signed();
        // A limit can have become smaller since it was asked for.
        if waiter.is_late || rates.iter().any(never_fits) {
            continue;
        }
        if can_go.contains(&position) {
            places.keep(&rates, now);
        } else if let Some((at, _)) = rates_admit(&mut places, &rates, now)? {
            places.keep(&rates, at);
        }
    }
    decide(&mut places, lines, now, latest)
}

/// Ledgers as if those in line were charged at their places already.
#[derive(Debug)]
pub(super) struct Places<'b, B> {
    books: &'b mut B,
    kept: SmallVec<[Place; 8]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    limit: LimitId,
    at: Timestamp,
    amount: i64,
}

impl<'b, B> Places<'b, B> {
    pub(super) fn none(books: &'b mut B) -> Self {
        Self {
            books,
            kept: SmallVec::new(),
        }
    }

    pub(super) fn keep(&mut self, lines: &[Line<'_>], at: Timestamp) {
        self.kept.extend(lines.iter().map(|line| Place {
            limit: line.id,
            at: line.limit.entered_at(at),
            amount: line.amount,
        }));
    }

    /// The instants of the places on a limit.
    fn instants(&self, limit: LimitId) -> impl Iterator<Item = Timestamp> {
        let of_it = self.kept.iter().filter(move |place| place.limit == limit);
        of_it.map(|place| place.at)
    }

    /// What the places on a limit come to, as far as they lie where `counts` says.
    fn sum(&self, limit: LimitId, counts: impl Fn(Timestamp) -> bool) -> i64 {
        let of_it = self.kept.iter().filter(|place| place.limit == limit);
        of_it
            .filter(|place| counts(place.at))
            .fold(0, |sum: i64, place| sum.saturating_add(place.amount))
    }
}

impl<B: Ledgers> Places<'_, B> {
    /// All places at an instant as one charge, behind what is truly charged there.
    fn charge_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Charge, B::Error> {
        let before = match self.books.last_at(limit, at)? {
            Some(last) => last.total,
            // What lay before may have been swept, and what follows still counts from there.
            None => self
                .books
                .first_after(limit, at)?
                .map_or(Total::ZERO, |next| next.before()),
        };
        Ok(Charge {
            at,
            seq: i64::MAX,
            amount: self.sum(limit, |place| place == at),
            total: before.plus(self.sum(limit, |place| place <= at)),
        })
    }

    /// What is truly charged, with the total that the places make it.
    fn raised(&self, limit: LimitId, charge: Charge) -> Charge {
        Charge {
            total: charge
                .total
                .plus(self.sum(limit, |place| place < charge.at)),
            ..charge
        }
    }
}

impl<B: Ledgers> Ledgers for Places<'_, B> {
    type Error = B::Error;

    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, B::Error> {
        let charged = self.books.last_at(limit, at)?;
        let place = self.instants(limit).filter(|place| *place <= at).max();
        match place {
            Some(place) if charged.is_none_or(|charge| charge.at <= place) => {
                self.charge_at(limit, place).map(Some)
            }
            _ => Ok(charged.map(|charge| self.raised(limit, charge))),
        }
    }

    fn first_after(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, B::Error> {
        let charged = self.books.first_after(limit, at)?;
        let place = self.instants(limit).filter(|place| *place > at).min();
        match place {
            Some(place) if charged.is_none_or(|charge| place < charge.at) => {
                self.charge_at(limit, place).map(Some)
            }
            _ => Ok(charged.map(|charge| self.raised(limit, charge))),
        }
    }

    fn open_blocks(&mut self, limit: LimitId) -> Result<OpenBlocks, B::Error> {
        self.books.open_blocks(limit)
    }

    fn level(&mut self, limit: LimitId) -> Result<Option<Level>, B::Error> {
        self.books.level(limit)
    }

    fn pause(&mut self, limit: LimitId) -> Result<Option<Pause>, B::Error> {
        self.books.pause(limit)
    }

    fn wall_shift_ns(&self) -> i64 {
        self.books.wall_shift_ns()
    }
}

impl<B: Books> Books for Places<'_, B> {
    fn held(&mut self, limit: LimitId) -> Result<i64, B::Error> {
        self.books.held(limit)
    }

    fn held_since(&mut self, limit: LimitId, at: Timestamp) -> Result<i64, B::Error> {
        self.books.held_since(limit, at)
    }

    fn broken(&mut self, limit: LimitId) -> Result<Option<Broken>, B::Error> {
        self.books.broken(limit)
    }
}
