//! Pauses, and what is booked and has to be moved because of them, in memory.

use std::sync::Arc;

use super::State;
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::place_again;
use crate::definition::Known;
use crate::error::Error;
use crate::pause::{Backoff, Pause, Strikes};
use crate::store::{BookingId, Claim, Few, PermitNumber, Row};

/// What is booked, and can be moved as long as it lies ahead.
#[derive(Debug)]
pub(super) struct Booked {
    pub(super) at: Timestamp,
    pub(super) rows: Few<Row>,
    /// The permit that has it, if that has an id.
    pub(super) permit: Option<PermitNumber>,
}

/// Of how many bookings those are forgotten whose instants have come.
const SWEPT_EVERY: i64 = 256;

impl State {
    /// Remembers what is booked, so that it can be moved.
    pub(super) fn remember_booked(&mut self, booked: Booked) -> BookingId {
        self.last_booking += 1;
        let number = self.last_booking;
        if number % SWEPT_EVERY == 0 {
            let now = self.ledgers.now;
            self.booked.retain(|_, booked| booked.at > now);
        }
        self.booked.insert(number, booked);
        BookingId { owner: 0, number }
    }

    pub(super) fn forget_booked(&mut self, claim: &Claim) {
        if let Some(booking) = claim.booking {
            self.booked.remove(&booking.number);
        }
    }

    pub(super) fn forget_booked_of(&mut self, permit: PermitNumber) {
        let is_its = |booked: &Booked| booked.permit == Some(permit);
        self.booked.retain(|_, booked| !is_its(booked));
    }

    /// The claim as it is now, if what it has booked was moved. A permit that has an id knows that, too, when it is no
    /// booking any more because somebody else relies on it.
    pub(super) fn moved(&self, claim: &Claim) -> Option<Claim> {
        if !claim.can_be_moved() {
            return None;
        }
        let registered = claim.registered.as_ref();
        let permit = registered.and_then(|found| self.permits.get(&found.number));
        let permitted = permit.map(|permit| (permit.at, &permit.rows));
        let booked = || {
            let booked = self.booked.get(&claim.booking?.number)?;
            Some((booked.at, &booked.rows))
        };
        let (at, rows) = permitted.or_else(booked)?;
        let mut limits = rows.iter().zip(&claim.rows);
        let is_in_its_ledgers = limits.all(|(row, claimed)| row.limit == claimed.limit);
        (at != claim.at || !is_in_its_ledgers).then(|| Claim {
            at,
            wake_at: self.timeline.elapsed_at(at),
            rows: rows.clone(),
            ..claim.clone()
        })
    }

    /// What is known of the strikes against a limit, and what a pause makes of that.
    fn struck(&self, known: &Known, backoff: Backoff) -> (Strikes, Strikes, Pause) {
        let before = self.ledgers.strikes.get(&known.id);
        let mut before = before.cloned().unwrap_or_default();
        before.forget(self.ledgers.now);
        let mut strikes = before.clone();
        let pause = strikes.strike(&known.limit.pauses(), backoff, self.ledgers.now);
        (before, strikes, pause)
    }

    /// Whether a pause would change anything.
    pub(super) fn would_pause(&self, key: &str, backoff: Backoff) -> Result<bool, Error> {
        let (before, strikes, _) = self.struck(&*self.known(key)?, backoff);
        Ok(strikes != before)
    }

    pub(super) fn pause(&mut self, key: &str, backoff: Backoff) -> Result<Pause, Error> {
        let known = self.known(key)?;
        let now = self.ledgers.now;
        let (before, strikes, pause) = self.struck(&known, backoff);
        if strikes == before {
            return Ok(pause);
        }
        let id = self.with_ledger(&known);
        let is_moved = strikes.pause != before.pause;
        self.ledgers.strikes.insert(id, strikes);
        let is_before = |booked: &Booked| now < booked.at && booked.at < pause.until();
        let mut of_it = self.booked.values().filter(|booked| is_of(booked, id));
        if is_moved && of_it.any(is_before) {
            self.move_booked(id);
        }
        Ok(pause)
    }

    pub(super) fn is_paused(&self, key: &str) -> Result<bool, Error> {
        let known = self.known(key)?;
        let strikes = self.ledgers.strikes.get(&known.id);
        let pause = strikes.and_then(|strikes| strikes.pause);
        let is_broken = self.ledgers.broken.contains_key(&known.id);
        Ok(is_broken || pause.is_some_and(|pause| pause.holds(self.ledgers.now)))
    }

    pub(super) fn lift_pause(&mut self, key: &str) -> Result<Option<Pause>, Error> {
        let known = self.known(key)?;
        let now = self.ledgers.now;
        let strikes = self.ledgers.strikes.get_mut(&known.id);
        let lifted = strikes.and_then(|strikes| strikes.lift(now));
        if self.ledgers.broken.contains_key(&known.id) {
            self.close_breaker(known.id);
        }
        if lifted.is_some() {
            self.move_booked(known.id);
        }
        Ok(lifted)
    }

    /// Books anew, in their order, what is booked of a limit and lies ahead.
    pub(super) fn move_booked(&mut self, limit: LimitId) {
        let now = self.ledgers.now;
        let ahead = self.booked.iter();
        let ahead = ahead.filter(|(_, booked)| booked.at > now && is_of(booked, limit));
        let mut numbers: Vec<(Timestamp, i64, i64)> = ahead
            .map(|(number, booked)| {
                let seq = booked.rows.iter().find(|row| row.limit == limit);
                (booked.at, seq.map_or(0, |row| row.seq), *number)
            })
            .collect();
        numbers.sort_unstable();
        for (_, _, number) in &numbers {
            for row in &self.booked[number].rows {
                let amount = row.amount.cast_signed();
                self.ledgers.amend(row.limit, row.at, row.seq, -amount);
            }
        }
        for (_, _, number) in numbers {
            self.book_again(number);
        }
    }

    fn book_again(&mut self, number: i64) {
        let Some(mut booked) = self.booked.remove(&number) else {
            return;
        };
        // What was removed since is charged to nobody any more.
        let known: Few<(Arc<Known>, i64)> = booked
            .rows
            .iter()
            .filter_map(|row| Some((self.limits.by_id(row.limit)?, row.amount.cast_signed())))
            .collect();
        let lines: Few<Line<'_>> = known
            .iter()
            .map(|(known, amount)| Line {
                id: known.id,
                pattern: known.pattern,
                limit: &known.limit,
                amount: *amount,
            })
            .collect();
        let now = self.ledgers.now;
        let Ok(at) = place_again(&mut self.ledgers, &lines, booked.at, now);
        booked.at = at;
        for line in &lines {
            let (entered, seq) = self.ledgers.charge_line(line, at);
            for row in booked.rows.iter_mut().filter(|row| row.limit == line.id) {
                (row.at, row.seq) = (entered, seq);
            }
        }
        let permit = booked
            .permit
            .and_then(|permit| self.permits.get_mut(&permit));
        if let Some(permit) = permit {
            permit.at = at;
            permit.rows.clone_from(&booked.rows);
        }
        self.booked.insert(number, booked);
    }
}

fn is_of(booked: &Booked, limit: LimitId) -> bool {
    booked.rows.iter().any(|row| row.limit == limit)
}
