//! Bookings: who has charged what ahead of its instant.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::CachedStatement;

use super::ledger::{Taken, taken};
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{BookingId, Claim, Few, Row};

const INSERT: &str = "INSERT INTO booking (owner_id, booking_id, limit_id, at_ns, seq)
    VALUES (?1, ?2, ?3, ?4, ?5)";

impl Transaction<'_> {
    /// Says whose charges these are.
    pub(super) fn book(
        &mut self,
        booking: BookingId,
        at: Timestamp,
        rows: &[Row],
    ) -> Result<(), Error> {
        let insert = |mut statement: CachedStatement<'_>| -> rusqlite::Result<()> {
            for row in rows {
                let BookingId { owner, number } = booking;
                statement.execute((owner, number, row.limit.0, at.as_nanos(), row.seq))?;
            }
            Ok(())
        };
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(insert)
            .map_err(|error| self.sqlite(error))
    }
}

const FIND_BOOKED: &str = "SELECT b.limit_id, b.at_ns, b.seq, c.amount
    FROM booking AS b LEFT JOIN charge AS c USING (limit_id, at_ns, seq)
    WHERE owner_id = ?1 AND booking_id = ?2";

const FIND_OWNED: &str = "SELECT limit_id, at_ns, seq, amount
    FROM booking JOIN charge USING (limit_id, at_ns, seq)
    WHERE owner_id = ?1 AND at_ns > ?2";

impl Transaction<'_> {
    /// The limits of a booking, if it is still there, each with the charge if that is.
    pub(super) fn find_booked(
        &self,
        booking: BookingId,
    ) -> Result<Vec<(LimitId, Option<Taken>)>, Error> {
        self.link
            .connection
            .prepare_cached(FIND_BOOKED)
            .and_then(|mut s| {
                s.query_map((booking.owner, booking.number), |row| {
                    let amount: Option<i64> = row.get(3)?;
                    let charge = amount.map(|_| taken(row)).transpose()?;
                    Ok((LimitId(row.get(0)?), charge))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))
    }

    /// What an owner has booked after `now`.
    pub(super) fn find_owned(&self, owner: i64, now: Timestamp) -> Result<Vec<Taken>, Error> {
        self.link
            .connection
            .prepare_cached(FIND_OWNED)
            .and_then(|mut s| s.query_map((owner, now.as_nanos()), taken)?.collect())
            .map_err(|error| self.sqlite(error))
    }
}

const FORGET_ONE: &str = "DELETE FROM booking WHERE owner_id = ?1 AND booking_id = ?2";
const FORGET_ALL: &str = "DELETE FROM booking WHERE owner_id = ?1";

impl Transaction<'_> {
    /// Removes a booking and leaves its charges as they are.
    pub(super) fn forget_booking(&mut self, booking: BookingId) -> Result<(), Error> {
        self.wrote();
        self.link
            .connection
            .prepare_cached(FORGET_ONE)
            .and_then(|mut statement| statement.execute((booking.owner, booking.number)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    /// Removes all bookings of an owner and leaves their charges as they are.
    pub(super) fn forget_bookings(&mut self, owner: i64) -> Result<(), Error> {
        self.wrote();
        self.link
            .connection
            .prepare_cached(FORGET_ALL)
            .and_then(|mut statement| statement.execute([owner]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const FORGET_ROW: &str = "DELETE FROM booking
    WHERE owner_id = ?1 AND limit_id = ?2 AND at_ns = ?3 AND seq = ?4";

impl Transaction<'_> {
    /// Removes the booking of a claim of which only the owner is known, and leaves its charges as they are.
    pub(super) fn forget_booked_rows(&mut self, owner: i64, claim: &Claim) -> Result<(), Error> {
        self.wrote();
        for row in &claim.rows {
            let key = (owner, row.limit.0, claim.at.as_nanos(), row.seq);
            self.link
                .connection
                .prepare_cached(FORGET_ROW)
                .and_then(|mut statement| statement.execute(key))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }
}

/// The bookings of one session that will be used at their instants, to be struck out after that.
#[derive(Debug, Default)]
pub(crate) struct Accepted(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    /// The earliest first.
    waiting: BinaryHeap<Reverse<(Timestamp, i64)>>,
    /// What the transaction that is under way has struck out.
    taken: Vec<(Timestamp, i64)>,
}

/// How many bookings that were used are forgotten with each new one, at most.
const MOST_USED: usize = 64;

impl Accepted {
    pub(super) fn push(&self, at: Timestamp, number: i64) {
        self.lock().waiting.push(Reverse((at, number)));
    }

    /// The numbers of bookings whose instants have come, not too many at a time.
    pub(super) fn take_used(&self, now: Timestamp) -> Few<i64> {
        let mut numbers = self.lock();
        let Numbers { waiting, taken } = &mut *numbers;
        let mut used = Few::new();
        while used.len() < MOST_USED
            && let Some(next) = waiting.peek_mut()
            && next.0.0 <= now
        {
            let Reverse((at, number)) = PeekMut::pop(next);
            taken.push((at, number));
            used.push(number);
        }
        used
    }

    /// Says whether the transaction was committed that was to strike them out.
    pub(super) fn ended(&self, is_committed: bool) {
        let mut numbers = self.lock();
        let Numbers { waiting, taken } = &mut *numbers;
        if is_committed {
            taken.clear();
        } else {
            waiting.extend(taken.drain(..).map(Reverse));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
