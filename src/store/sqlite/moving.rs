//! Moving what is booked: behind a pause, or forward when that is lifted.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use rusqlite::OptionalExtension;

use super::ledger::Taken;
use super::shared_page::SharedPage;
use super::transaction::Transaction;
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::place_again;
use crate::error::Error;
use crate::store::moves::Word;
use crate::store::{BookingId, Claim, Few};

/// Where processes count pauses.
#[derive(Debug)]
pub(super) struct Page(pub(super) Option<Arc<SharedPage>>);

impl Word for Page {
    fn word(&self) -> Option<&AtomicU32> {
        self.0.as_ref().map(|page| page.moves())
    }
}

/// A row of a booking.
#[derive(Clone, Copy, Debug)]
struct Booked {
    limit: LimitId,
    at: Timestamp,
    seq: i64,
    amount: i64,
}

/// What is moved: a booking, or a permit with an id that was one, and that others rely on since.
#[derive(Clone, Copy, Debug)]
enum Movable {
    Booking(BookingId),
    Permit(i64),
}

// Permits that are no bookings any more, of which a charge lies ahead.
macro_rules! permits_ahead {
    () => {
        "SELECT permit_id, p.at_ns AS due_ns, c.seq
        FROM permit AS p JOIN permit_charge AS c USING (permit_id)
        WHERE c.limit_id = ?1 AND p.at_ns > ?2 AND p.ended_ns IS NULL AND p.id IS NOT NULL
            AND NOT EXISTS (
                SELECT 1 FROM booking AS b
                WHERE (b.owner_id, b.booking_id) = (p.owner_id, p.booking_id)
            )"
    };
}

const IS_BEFORE: &str = concat!(
    "SELECT EXISTS (SELECT 1 FROM booking WHERE limit_id = ?1 AND due_ns > ?2 AND due_ns < ?3)
    OR EXISTS (SELECT 1 FROM (",
    permits_ahead!(),
    ") WHERE due_ns < ?3)"
);
const OF_LIMIT: &str = concat!(
    "SELECT due_ns, seq, owner_id, booking_id FROM booking WHERE limit_id = ?1 AND due_ns > ?2
    UNION ALL
    SELECT due_ns, seq, NULL, permit_id FROM (",
    permits_ahead!(),
    ") ORDER BY 1, 2, 3, 4"
);
const ROWS: &str = "SELECT limit_id, at_ns, seq, amount FROM booking
    WHERE owner_id = ?1 AND booking_id = ?2";
const PERMIT_ROWS: &str =
    "SELECT limit_id, at_ns, seq, amount FROM permit_charge WHERE permit_id = ?1";
const MOVE: &str = "UPDATE booking SET at_ns = ?4, seq = ?5, due_ns = ?6
    WHERE owner_id = ?1 AND booking_id = ?2 AND limit_id = ?3";
const FORGET: &str = "DELETE FROM booking
    WHERE owner_id = ?1 AND booking_id = ?2 AND limit_id = ?3";

impl Transaction<'_> {
    /// Whether somebody has booked a limit for an instant that lies ahead, but before this one.
    pub(super) fn is_booked_before(&self, limit: LimitId, until: Timestamp) -> Result<bool, Error> {
        let times = (limit.0, self.now().as_nanos(), until.as_nanos());
        self.link
            .connection
            .prepare_cached(IS_BEFORE)
            .and_then(|mut s| s.query_row(times, |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    /// Books anew, in their order, what is booked of a limit and lies ahead.
    ///
    /// All of it is taken away first, the last one first: so each row is the last of its ledger when it goes and when
    /// it comes, and no totals have to be corrected.
    pub(super) fn move_bookings(&mut self, limit: LimitId) -> Result<(), Error> {
        self.write_charges()?;
        let now_ns = self.now().as_nanos();
        let movable: Vec<(Movable, Timestamp)> = self
            .link
            .connection
            .prepare_cached(OF_LIMIT)
            .and_then(|mut s| {
                s.query_map((limit.0, now_ns), |row| {
                    let due = Timestamp::from_nanos(row.get(0)?);
                    let number = row.get(3)?;
                    let movable = match row.get(2)? {
                        Some(owner) => Movable::Booking(BookingId { owner, number }),
                        None => Movable::Permit(number),
                    };
                    Ok((movable, due))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let mut taken = Vec::with_capacity(movable.len());
        for (movable, due) in movable.into_iter().rev() {
            let rows = self.booked_rows(movable)?;
            for row in &rows {
                if let Some(charge) = self.find_charged(row.limit, row.at, row.seq)? {
                    self.amend(charge, -row.amount)?;
                }
            }
            taken.push((movable, due, rows));
        }
        while let Some((movable, due, rows)) = taken.pop() {
            self.book_again(movable, due, &rows)?;
        }
        // What was looked at while they were away is not so any more.
        self.link.memo.kept.clear();
        Ok(())
    }

    fn booked_rows(&mut self, movable: Movable) -> Result<Few<Booked>, Error> {
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Booked {
                limit: LimitId(row.get(0)?),
                at: Timestamp::from_nanos(row.get(1)?),
                seq: row.get(2)?,
                amount: row.get::<_, i64>(3)?.max(0),
            })
        };
        let connection = self.link.connection;
        let rows = || -> rusqlite::Result<Few<Booked>> {
            match movable {
                Movable::Booking(BookingId { owner, number }) => {
                    let mut statement = connection.prepare_cached(ROWS)?;
                    statement.query_map((owner, number), read)?.collect()
                }
                Movable::Permit(permit) => {
                    let mut statement = connection.prepare_cached(PERMIT_ROWS)?;
                    statement.query_map([permit], read)?.collect()
                }
            }
        };
        rows().map_err(|error| self.sqlite(error))
    }

    fn book_again(
        &mut self,
        movable: Movable,
        due: Timestamp,
        rows: &[Booked],
    ) -> Result<(), Error> {
        let mut known = Few::with_capacity(rows.len());
        for row in rows {
            match self.known_by_id(row.limit)? {
                Some(limit) => known.push((limit, row.amount)),
                // What was removed since is charged to nobody any more.
                None => self.forget_row(movable, row.limit)?,
            }
        }
        let lines: Few<Line<'_>> = known
            .iter()
            .map(|(known, amount)| Line {
                id: known.id,
                pattern: known.pattern,
                limit: &known.limit,
                amount: *amount,
            })
            .collect();
        let now = self.now();
        let at = place_again(self, &lines, due, now)?;
        let permit = match movable {
            Movable::Booking(booking) => self.permit_of(booking)?,
            Movable::Permit(permit) => Some(permit),
        };
        for line in &lines {
            let (entered, seq) = self.charge_line(line, at)?;
            let entered_ns = entered.as_nanos();
            let connection = self.link.connection;
            let update = || -> rusqlite::Result<()> {
                if let Movable::Booking(BookingId { owner, number }) = movable {
                    let row = (owner, number, line.id.0, entered_ns, seq, at.as_nanos());
                    connection.prepare_cached(MOVE)?.execute(row)?;
                }
                if let Some(permit) = permit {
                    let row = (permit, line.id.0, entered_ns, seq);
                    connection.prepare_cached(MOVE_CHARGE)?.execute(row)?;
                }
                Ok(())
            };
            update().map_err(|error| self.sqlite(error))?;
        }
        if let Some(permit) = permit {
            self.link
                .connection
                .prepare_cached(MOVE_PERMIT)
                .and_then(|mut s| s.execute((permit, at.as_nanos())))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }

    fn forget_row(&self, movable: Movable, limit: LimitId) -> Result<(), Error> {
        let Movable::Booking(BookingId { owner, number }) = movable else {
            return Ok(());
        };
        self.link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute((owner, number, limit.0)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const PERMIT_OF: &str =
    "SELECT permit_id FROM permit WHERE owner_id = ?1 AND booking_id = ?2 AND ended_ns IS NULL";
const MOVE_PERMIT: &str = "UPDATE permit SET at_ns = ?2 WHERE permit_id = ?1";
const MOVE_CHARGE: &str = "UPDATE permit_charge SET at_ns = ?3, seq = ?4
    WHERE permit_id = ?1 AND limit_id = ?2";

impl Transaction<'_> {
    fn permit_of(&self, booking: BookingId) -> Result<Option<i64>, Error> {
        self.link
            .connection
            .prepare_cached(PERMIT_OF)
            .and_then(|mut s| {
                s.query_row((booking.owner, booking.number), |row| row.get(0))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const BOOKED_NOW: &str = "SELECT limit_id, at_ns, seq, due_ns FROM booking
    WHERE owner_id = ?1 AND booking_id = ?2";
const PERMITTED_NOW: &str = "SELECT c.limit_id, c.at_ns, c.seq, p.at_ns
    FROM permit AS p JOIN permit_charge AS c USING (permit_id)
    WHERE permit_id = ?1 AND ended_ns IS NULL";

impl Transaction<'_> {
    /// The claim as it is now, if what it has booked was moved. A permit that has an id knows that, too, when it is no
    /// booking any more because somebody else relies on it.
    pub(super) fn moved(&mut self, claim: &Claim) -> Result<Option<Claim>, Error> {
        if !claim.can_be_moved() {
            return Ok(None);
        }
        let read = |row: &rusqlite::Row<'_>| {
            let taken = Taken {
                limit: LimitId(row.get(0)?),
                at: Timestamp::from_nanos(row.get(1)?),
                seq: row.get(2)?,
                amount: 0,
            };
            Ok((taken, Timestamp::from_nanos(row.get(3)?)))
        };
        let registered = claim.registered.as_ref();
        let named = registered.filter(|registered| registered.id.is_some());
        let connection = self.link.connection;
        let rows = || -> rusqlite::Result<Few<(Taken, Timestamp)>> {
            if let Some(registered) = named {
                let mut statement = connection.prepare_cached(PERMITTED_NOW)?;
                return statement.query_map([registered.number.0], read)?.collect();
            }
            let Some(BookingId { owner, number }) = claim.booking else {
                return Ok(Few::new());
            };
            let mut statement = connection.prepare_cached(BOOKED_NOW)?;
            statement.query_map((owner, number), read)?.collect()
        };
        let rows = rows().map_err(|error| self.sqlite(error))?;
        let Some(at) = rows.iter().map(|(_, due)| *due).max() else {
            return Ok(None);
        };
        let stands = |limit: LimitId| rows.iter().find(|(now, _)| now.limit == limit);
        let is_in_its_ledgers = claim.rows.iter().all(|row| stands(row.limit).is_some());
        if at == claim.at && is_in_its_ledgers {
            return Ok(None);
        }
        let mut moved = Claim {
            at,
            wake_at: self.timeline().elapsed_at(at),
            ..claim.clone()
        };
        for row in &mut moved.rows {
            if stands(row.limit).is_none()
                && let Some(known) = self.find(&row.key)?
                && stands(known.id).is_some()
            {
                // The limit was reset.
                (row.limit, row.pattern) = (known.id, known.pattern);
            }
            if let Some((now, _)) = stands(row.limit) {
                (row.at, row.seq) = (now.at, now.seq);
            }
        }
        Ok(Some(moved))
    }
}
