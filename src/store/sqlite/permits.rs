//! Permits that the file knows of, because they hold slots or have an id.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::OptionalExtension;

use super::ledger::{Taken, taken};
use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::settlement::End;
use crate::store::{
    BookingId, Claim, Few, Holder, PermitNumber, REMEMBERED_NS, Registered, Row, SlotTake,
};

const LAST: &str =
    "SELECT permit_id, ended_ns, (SELECT max(fence) FROM permit WHERE fence IS NOT NULL)
    FROM permit ORDER BY permit_id DESC LIMIT 1";
const DELETE_FENCED: &str =
    "DELETE FROM permit WHERE fence IS NOT NULL AND fence < ?1 AND ended_ns IS NOT NULL";
const INSERT: &str =
    "INSERT INTO permit (permit_id, owner_id, at_ns, expires_ns, id, request, booking_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const DELETE: &str = "DELETE FROM permit WHERE permit_id = ?1";

impl Transaction<'_> {
    /// Enters a permit, with an id and what was asked for under it if it has one. Its number is the present instant,
    /// or one more than that of the last permit; so it grows even if a power failure takes the last ones
    /// from the file.
    pub(super) fn insert_permit(
        &mut self,
        owner: i64,
        (at, booking): (Timestamp, Option<BookingId>),
        expires: Option<Timestamp>,
        name: Option<(&str, &str)>,
    ) -> Result<PermitNumber, Error> {
        let number = self.next_permit()?;
        let (id, request) = name.unzip();
        let (at_ns, expires_ns) = (at.as_nanos(), expires.map(Timestamp::as_nanos));
        let booking = booking.map(|booking| booking.number);
        let values = (number.0, owner, at_ns, expires_ns, id, request, booking);
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut s| s.execute(values))
            .map_err(|error| self.sqlite(error))?;
        Ok(number)
    }

    /// A number that is larger than all before it. It is taken once a permit has it.
    pub(super) fn next_permit(&mut self) -> Result<PermitNumber, Error> {
        self.wrote();
        let last: Option<(i64, Option<i64>, Option<i64>)> = self
            .link
            .connection
            .prepare_cached(LAST)
            .and_then(|mut s| {
                s.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let largest = last.map(|(last, _, fence)| fence.map_or(last, |fence| fence.max(last)));
        let next = largest.map_or(Some(i64::MIN), |largest| largest.checked_add(1));
        let Some(next) = next else {
            return Err(self
                .place
                .damaged("no permit can have a larger number than its last one"));
        };
        let number = self.now().as_nanos().max(next);
        if let Some((last, Some(_ended), _)) = last {
            self.delete_permit(PermitNumber(last))?;
        }
        if let Some((_, _, Some(_fence))) = last {
            self.link
                .connection
                .prepare_cached(DELETE_FENCED)
                .and_then(|mut s| s.execute([number]))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(PermitNumber(number))
    }

    fn delete_permit(&self, permit: PermitNumber) -> Result<(), Error> {
        self.link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute([permit.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const INSERT_CHARGE: &str = "INSERT INTO permit_charge (permit_id, limit_id, at_ns, seq, amount) VALUES (?1, ?2, ?3, ?4, ?5)";

impl Transaction<'_> {
    /// Says which charges belong to a permit that has an id.
    pub(super) fn insert_permit_charges(
        &mut self,
        permit: PermitNumber,
        rows: &[Row],
    ) -> Result<(), Error> {
        for row in rows {
            let (at_ns, amount) = (row.at.as_nanos(), row.amount.cast_signed());
            self.link
                .connection
                .prepare_cached(INSERT_CHARGE)
                .and_then(|mut s| s.execute((permit.0, row.limit.0, at_ns, row.seq, amount)))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }
}

/// A permit that was found by its id.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) number: PermitNumber,
    pub(super) owner: Option<i64>,
    pub(super) at: Timestamp,
    pub(super) request: String,
    pub(super) detached: bool,
    pub(super) fence: Option<PermitNumber>,
    pub(super) end: Option<End>,
}

const FIND_OPEN: &str = "SELECT permit_id, owner_id, at_ns, request, detached, expires_ns, fence
    FROM permit WHERE id = ?1";
const FIND_ENDED: &str = "SELECT permit_id, at_ns, request, outcome FROM ended_permit
    WHERE id = ?1 AND ended_ns > ?2";

impl Transaction<'_> {
    /// The permit of an id; one whose timeout has passed ends here. One that ended long ago is forgotten, whether
    /// it was swept or not.
    pub(super) fn find_permit(&mut self, id: &str) -> Result<Option<Found>, Error> {
        let connection = self.link.connection;
        let open = connection
            .prepare_cached(FIND_OPEN)
            .and_then(|mut s| {
                s.query_row([id], |row| {
                    let found = Found {
                        number: PermitNumber(row.get(0)?),
                        owner: row.get(1)?,
                        at: Timestamp::from_nanos(row.get(2)?),
                        request: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
                        detached: row.get(4)?,
                        fence: row.get::<_, Option<i64>>(6)?.map(PermitNumber),
                        end: None,
                    };
                    Ok((found, row.get::<_, Option<i64>>(5)?))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let (now_ns, oldest_ns) = (self.now().as_nanos(), self.forgotten_until_ns());
        if let Some((mut found, expires_ns)) = open {
            let expired_ns = expires_ns.filter(|expires_ns| *expires_ns <= now_ns);
            if expired_ns.is_some() {
                found.end = Some(End::Expired);
                self.end_permit(found.number, End::Expired)?;
            }
            let is_forgotten = expired_ns.is_some_and(|expired_ns| expired_ns <= oldest_ns);
            return Ok((!is_forgotten).then_some(found));
        }
        connection
            .prepare_cached(FIND_ENDED)
            .and_then(|mut s| {
                s.query_row((id, oldest_ns), |row| {
                    Ok(Found {
                        number: PermitNumber(row.get(0)?),
                        owner: None,
                        at: Timestamp::from_nanos(row.get(1)?),
                        request: row.get(2)?,
                        detached: false,
                        fence: None,
                        end: Some(End::parse(&row.get::<_, String>(3)?)),
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

impl Transaction<'_> {
    /// Who ended at this instant or before it is not remembered any more.
    fn forgotten_until_ns(&self) -> i64 {
        self.now().saturating_minus_ns(REMEMBERED_NS).as_nanos()
    }
}

const STANDS: &str =
    "SELECT EXISTS (SELECT 1 FROM permit WHERE permit_id = ?1 AND ended_ns IS NULL)";

impl Transaction<'_> {
    pub(super) fn is_open(&self, permit: PermitNumber) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(STANDS)
            .and_then(|mut s| s.query_row([permit.0], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }
}

const CHARGES_OF: &str =
    "SELECT limit_id, at_ns, seq, amount FROM permit_charge WHERE permit_id = ?1";

impl Transaction<'_> {
    /// A claim on a permit that was found by its id.
    pub(super) fn claim_on(
        &mut self,
        found: &Found,
        id: &str,
        session: &Session,
        holder: Holder,
    ) -> Result<Claim, Error> {
        let charges: Vec<Taken> = self
            .link
            .connection
            .prepare_cached(CHARGES_OF)
            .and_then(|mut s| s.query_map([found.number.0], taken)?.collect())
            .map_err(|error| self.sqlite(error))?;
        let mut slots = Few::new();
        for (limit, amount) in self.slots_of(found.number)? {
            if let Some(known) = self.known_by_id(limit)? {
                slots.push(SlotTake {
                    limit,
                    key: known.limit.shared_key().clone(),
                    amount: amount.unsigned_abs(),
                });
            }
        }
        let mut rows = Few::with_capacity(charges.len());
        let mut removed = Few::new();
        for charge in charges {
            let row = |key: Arc<str>, pattern| Row {
                limit: charge.limit,
                pattern,
                key,
                at: charge.at,
                seq: charge.seq,
                amount: charge.amount.unsigned_abs(),
            };
            match self.known_by_id(charge.limit)? {
                Some(known) => {
                    rows.push(row(known.limit.shared_key().clone(), known.pattern));
                }
                None => removed.push(row("".into(), None)),
            }
        }
        // Only the request still names what was removed since.
        for mut row in removed {
            let named = |key: &str| rows.iter().any(|row: &Row| *row.key == *key);
            let held = |key: &str| slots.iter().any(|slot: &SlotTake| *slot.key == *key);
            let mut takes = found
                .request
                .lines()
                .filter_map(|take| take.split_once(' '));
            let key = takes.find(|(amount, key)| {
                !named(key) && !held(key) && amount.parse() == Ok(row.amount)
            });
            if let Some((_, key)) = key {
                row.key = key.into();
                rows.push(row);
            }
        }
        Ok(Claim {
            at: found.at,
            wake_at: self.timeline().elapsed_at(found.at),
            moves: session.moves.seen(),
            session: session.number,
            process: session.process,
            rows,
            booking: None,
            accepted: None,
            block: None,
            is_resumed: true,
            registered: Some(Box::new(Registered {
                number: found.number,
                id: Some(id.into()),
                slots,
                fence: found.fence,
                holder,
            })),
        })
    }
}

const IS_OPEN: &str =
    "SELECT expires_ns, owner_id FROM permit WHERE permit_id = ?1 AND ended_ns IS NULL";
const HOW_ENDED: &str = "SELECT outcome FROM ended_permit
    WHERE id = ?1 AND permit_id = ?2 AND ended_ns > ?3";

impl Transaction<'_> {
    /// Whether a permit is open and this owner answers for it: nobody has detached it meanwhile.
    pub(super) fn is_held_by(
        &self,
        permit: PermitNumber,
        owner: Option<i64>,
    ) -> Result<bool, Error> {
        let holder: Option<Option<i64>> = self
            .link
            .connection
            .prepare_cached(IS_OPEN)
            .and_then(|mut s| s.query_row([permit.0], |row| row.get(1)).optional())
            .map_err(|error| self.sqlite(error))?;
        Ok(holder.is_some_and(|holder| holder.is_some() && holder == owner))
    }

    /// Ends the permit of a claim. Returns how it had ended, if it had.
    pub(super) fn close(&mut self, claim: &Claim, end: End) -> Result<Option<End>, Error> {
        let Some(registered) = &claim.registered else {
            return Ok(None);
        };
        let number = registered.number;
        let connection = self.link.connection;
        let open: Option<(Option<i64>, Option<i64>)> = connection
            .prepare_cached(IS_OPEN)
            .and_then(|mut s| {
                s.query_row([number.0], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let now_ns = self.now().as_nanos();
        match open {
            Some((Some(expires_ns), _)) if expires_ns <= now_ns => {
                self.end_permit(number, End::Expired)?;
                Ok(Some(End::Expired))
            }
            Some((_, owner)) => {
                let slots = registered.slots.iter().map(|slot| slot.limit);
                self.give_back_slots(number, slots)?;
                // Its owner's booking of it, if it is one, must not be taken for that of a later charge.
                if let (Some(owner), Some(_), None) = (owner, &registered.id, claim.booking) {
                    self.forget_booking_of(number, owner)?;
                }
                self.strike_out(number, end)?;
                Ok(None)
            }
            None => {
                let Some(id) = &registered.id else {
                    return Ok(Some(End::Expired));
                };
                let key = (&**id, number.0, self.forgotten_until_ns());
                let outcome: Option<String> = connection
                    .prepare_cached(HOW_ENDED)
                    .and_then(|mut s| s.query_row(key, |row| row.get(0)).optional())
                    .map_err(|error| self.sqlite(error))?;
                Ok(Some(outcome.map_or(End::Expired, |text| End::parse(&text))))
            }
        }
    }

    /// Ends a permit of which nothing but the number is known.
    fn end_permit(&mut self, permit: PermitNumber, end: End) -> Result<(), Error> {
        let slots = self.slots_of(permit)?;
        self.give_back_slots(permit, slots.into_iter().map(|(limit, _)| limit))?;
        self.strike_out(permit, end)
    }
}

const REMEMBER: &str =
    "INSERT OR REPLACE INTO ended_permit (id, permit_id, at_ns, ended_ns, request, outcome)
    SELECT id, permit_id, at_ns, min(?2, coalesce(expires_ns, ?2)), coalesce(request, ''), ?3 FROM permit
    WHERE permit_id = ?1 AND id IS NOT NULL";
const DELETE_CHARGES: &str = "DELETE FROM permit_charge WHERE permit_id = ?1";
const MARK: &str = "UPDATE permit SET ended_ns = ?2, id = NULL, request = NULL, expires_ns = NULL
    WHERE permit_id = ?1
        AND (fence IS NOT NULL OR permit_id = (SELECT max(permit_id) FROM permit))";

impl Transaction<'_> {
    /// Removes a permit, or marks it as ended if it has the last number: from that, the next one gets its own. Its id
    /// is remembered.
    fn strike_out(&mut self, permit: PermitNumber, end: End) -> Result<(), Error> {
        self.wrote();
        let now_ns = self.now().as_nanos();
        let connection = self.link.connection;
        let strike = || -> rusqlite::Result<usize> {
            let remembered =
                connection
                    .prepare_cached(REMEMBER)?
                    .execute((permit.0, now_ns, end.as_str()))?;
            if remembered > 0 {
                connection
                    .prepare_cached(DELETE_CHARGES)?
                    .execute([permit.0])?;
            }
            connection.prepare_cached(MARK)?.execute((permit.0, now_ns))
        };
        if strike().map_err(|error| self.sqlite(error))? == 0 {
            self.delete_permit(permit)?;
        }
        Ok(())
    }
}

const ABANDON: &str = "UPDATE permit SET owner_id = NULL, expires_ns = ?2
    WHERE permit_id = ?1 AND id IS NOT NULL AND ended_ns IS NULL
        AND (expires_ns IS NULL OR expires_ns > ?3)";

impl Transaction<'_> {
    /// The claim on a permit is dropped: its slots come back. A permit that has an id stays open for a while, so that
    /// somebody can still settle it; but not if it has timed out before.
    pub(super) fn abandon(
        &mut self,
        permit: PermitNumber,
        slots: impl IntoIterator<Item = LimitId>,
    ) -> Result<(), Error> {
        self.wrote();
        self.give_back_slots(permit, slots)?;
        let until_ns = self.now().saturating_plus_ns(REMEMBERED_NS).as_nanos();
        let abandoned = self
            .link
            .connection
            .prepare_cached(ABANDON)
            .and_then(|mut s| s.execute((permit.0, until_ns, self.now().as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if abandoned == 0 {
            self.strike_out(permit, End::Expired)?;
        }
        Ok(())
    }
}

const HELD_BY: &str = "SELECT permit_id, EXISTS (
        SELECT 1 FROM booking AS b
        WHERE b.owner_id = p.owner_id AND b.booking_id = p.booking_id AND b.due_ns > ?2
    )
    FROM permit AS p WHERE owner_id = ?1 AND ended_ns IS NULL";

impl Transaction<'_> {
    /// Gives back the slots of a dead owner. True if it had any. What it had booked for later than `reached` is gone
    /// altogether.
    pub(super) fn abandon_all_of(&mut self, owner: i64, reached: Timestamp) -> Result<bool, Error> {
        let permits: Vec<(PermitNumber, bool)> = self
            .link
            .connection
            .prepare_cached(HELD_BY)
            .and_then(|mut s| {
                s.query_map((owner, reached.as_nanos()), |row| {
                    Ok((PermitNumber(row.get(0)?), row.get(1)?))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let any = !permits.is_empty();
        let mut freed = BTreeMap::<LimitId, usize>::new();
        for (permit, is_ahead) in permits {
            if is_ahead {
                self.end_permit(permit, End::Cancelled)?;
                continue;
            }
            let slots = self.slots_of(permit)?;
            for (limit, _) in &slots {
                *freed.entry(*limit).or_default() += 1;
            }
            self.abandon(permit, slots.into_iter().map(|(limit, _)| limit))?;
        }
        for (limit, permits) in freed {
            let known = self.known_by_id(limit)?;
            tracing::info!(
                limit = known.as_ref().map(|known| known.limit.key()),
                owner,
                permits,
                "reclaimed the slots of a dead process"
            );
        }
        Ok(any)
    }
}

const FIND_EXPIRED: &str = "SELECT permit_id FROM permit
    WHERE expires_ns <= ?1 AND ended_ns IS NULL LIMIT 256";
const FORGET: &str = "DELETE FROM ended_permit
    WHERE id IN (SELECT id FROM ended_permit WHERE ended_ns <= ?1 ORDER BY ended_ns LIMIT 256)";

impl Transaction<'_> {
    /// Ends permits whose timeout has passed, and forgets the ids of those that ended long ago; a few at a time, but
    /// twice as many as can have been added since the last time.
    pub(super) fn sweep_permits(&mut self) -> Result<(), Error> {
        let now = self.now();
        let expired: Vec<PermitNumber> = self
            .link
            .connection
            .prepare_cached(FIND_EXPIRED)
            .and_then(|mut s| {
                s.query_map([now.as_nanos()], |row| row.get(0).map(PermitNumber))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        for permit in expired {
            self.end_permit(permit, End::Expired)?;
        }
        let forgotten = self
            .link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute([self.forgotten_until_ns()]))
            .map_err(|error| self.sqlite(error))?;
        if forgotten > 0 {
            self.wrote();
        }
        Ok(())
    }
}
