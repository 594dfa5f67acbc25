//! Bookings: who has charged what ahead of its instant.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{CachedStatement, OptionalExtension, Row as SqlRow};

use super::ledger::{Taken, taken};
use super::transaction::Transaction;
use crate::calendar::{LimitId, Total};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{BookingId, Few, PermitNumber, Row};

const INSERT: &str =
    "INSERT INTO booking (owner_id, booking_id, limit_id, at_ns, seq, amount, due_ns)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

impl Transaction<'_> {
    /// Says whose charges these are, and when they are due.
    pub(super) fn book(
        &mut self,
        booking: BookingId,
        due: Timestamp,
        rows: &[Row],
    ) -> Result<(), Error> {
        let insert = |mut statement: CachedStatement<'_>| -> rusqlite::Result<()> {
            for row in rows {
                let BookingId { owner, number } = booking;
                let (at_ns, due_ns) = (row.at.as_nanos(), due.as_nanos());
                let amount = row.amount.cast_signed();
                let values = (owner, number, row.limit.0, at_ns, row.seq, amount, due_ns);
                statement.execute(values)?;
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

const FIND_OWNED: &str = "SELECT limit_id, at_ns, seq, c.amount, sum(b.amount)
    FROM booking AS b JOIN charge AS c USING (limit_id, at_ns, seq)
    WHERE owner_id = ?1 AND due_ns > ?2
    GROUP BY limit_id, at_ns, seq";

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

    /// What an owner has booked for later than `now`: the rows, and how much of each.
    pub(super) fn find_owned(
        &mut self,
        owner: i64,
        now: Timestamp,
    ) -> Result<Vec<(Taken, i64)>, Error> {
        self.write_charges()?;
        self.link
            .connection
            .prepare_cached(FIND_OWNED)
            .and_then(|mut s| {
                let read = |row: &SqlRow<'_>| {
                    let booked = row.get::<_, i64>(4)?.clamp(0, Total::MASK);
                    Ok((taken(row)?, booked))
                };
                s.query_map((owner, now.as_nanos()), read)?.collect()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const IS_MERGED_AHEAD: &str = "SELECT EXISTS (
        SELECT 1 FROM booking WHERE limit_id = ?1 AND due_ns > ?2 AND due_ns > at_ns
    )";

impl Transaction<'_> {
    /// Whether anything is booked for later than now that is entered earlier: it may be in a row that is not ahead.
    pub(super) fn is_merged_ahead(&self, limit: LimitId) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(IS_MERGED_AHEAD)
            .and_then(|mut s| s.query_row((limit.0, self.now().as_nanos()), |row| row.get(0)))
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

const FORGET_USED: &str = "DELETE FROM booking
    WHERE owner_id = ?1 AND booking_id = ?2 AND due_ns <= ?3";
const DUE: &str = "SELECT due_ns FROM booking WHERE owner_id = ?1 AND booking_id = ?2 LIMIT 1";

impl Transaction<'_> {
    /// Removes a booking whose instant has come, as far as its owner knows. If it was moved beyond the present, it stays:
    /// then the instant is told.
    pub(super) fn forget_used(&mut self, booking: BookingId) -> Result<Option<Timestamp>, Error> {
        self.wrote();
        let BookingId { owner, number } = booking;
        let now_ns = self.now().as_nanos();
        let connection = self.link.connection;
        let forget = || -> rusqlite::Result<Option<i64>> {
            let mut forget = connection.prepare_cached(FORGET_USED)?;
            if forget.execute((owner, number, now_ns))? > 0 {
                return Ok(None);
            }
            let mut due = connection.prepare_cached(DUE)?;
            due.query_row((owner, number), |row| row.get(0)).optional()
        };
        let due_ns = forget().map_err(|error| self.sqlite(error))?;
        Ok(due_ns.map(Timestamp::from_nanos))
    }
}

const FORGET_OF_PERMIT: &str = "DELETE FROM booking
    WHERE owner_id = ?1 AND booking_id = (SELECT booking_id FROM permit WHERE permit_id = ?2)";

impl Transaction<'_> {
    /// Removes what its owner has booked with a permit, and leaves the charges as they are.
    pub(super) fn forget_booking_of(
        &mut self,
        permit: PermitNumber,
        owner: i64,
    ) -> Result<(), Error> {
        self.wrote();
        self.link
            .connection
            .prepare_cached(FORGET_OF_PERMIT)
            .and_then(|mut statement| statement.execute((owner, permit.0)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
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
