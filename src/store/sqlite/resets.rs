//! Limits that begin anew: what was charged, held and paused is forgotten, and the definition stays.

use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::definition::{Action, Author, Known};
use crate::error::Error;
use crate::limit::Limit;

impl Transaction<'_> {
    /// Gives a limit, or all those that a pattern makes, an empty ledger. Who waits keeps its place, in line or in the
    /// calendar, and is admitted by the new one.
    pub(super) fn reset(
        &mut self,
        key: &str,
        author: &Author,
        session: &Session,
    ) -> Result<Limit, Error> {
        let stored = self.defined(key)?;
        let known = match &stored {
            Some(_) => None,
            None => Some(self.known(key)?),
        };
        self.begin_to_move(session);
        self.reclaim(&session.lock_file)?;
        let (limit, ledgers) = match (stored, known) {
            (Some(stored), _) => self.reset_definition(stored)?,
            (None, Some(known)) if known.id != LimitId::NONE => {
                let id = self.reset_key(&known)?;
                (known.limit.clone(), vec![id])
            }
            (None, Some(known)) => return Ok(known.limit.clone()),
            (None, None) => return Err(self.unknown(key)),
        };
        self.changed_definitions();
        self.note_change(&limit, Action::Reset, author)?;
        for id in ledgers {
            self.move_bookings(id)?;
            self.freed(id);
        }
        Ok(limit)
    }

    /// Returns the ledgers that somebody waits for.
    fn reset_definition(&mut self, stored: Known) -> Result<(Limit, Vec<LimitId>), Error> {
        let waited_for = if stored.limit.is_pattern() {
            self.keys_waited_for(stored.id)?
        } else {
            Vec::new()
        };
        let id = self.next_limit()?;
        self.take_slots_from_all(&stored)?;
        self.keep_learned(stored.id, id)?;
        self.delete_definition(stored.id)?;
        self.give_up_ledger(stored.id)?;
        self.write_definition(id, &stored.limit, false)?;
        self.changed_definitions();
        if !stored.limit.is_pattern() {
            self.carry_over(stored.id, id)?;
            return Ok((stored.limit, vec![id]));
        }
        let mut opened = Vec::with_capacity(waited_for.len());
        for (former, key) in waited_for {
            let id = self.open_ledger(&key)?;
            self.carry_over(former, id)?;
            opened.push(id);
        }
        Ok((stored.limit, opened))
    }

    /// Gives a key that a pattern matches a new ledger in the place of the one that it has.
    fn reset_key(&mut self, known: &Known) -> Result<LimitId, Error> {
        self.take_slots_from_all(known)?;
        self.delete_key(known.id)?;
        self.give_up_ledger(known.id)?;
        let id = self.open_ledger(known.limit.key())?;
        self.carry_over(known.id, id)?;
        Ok(id)
    }
}

// Ahead of the present: by a ticket, by a booking, or by a permit that was one and has an id.
const KEYS_WAITED_FOR: &str = "SELECT limit_id, key FROM pattern_key
    WHERE pattern_id = ?1 AND limit_id IN (
        SELECT limit_id FROM ticket_take
        UNION SELECT limit_id FROM booking WHERE due_ns > ?2
        UNION SELECT c.limit_id FROM permit AS p JOIN permit_charge AS c USING (permit_id)
            WHERE p.at_ns > ?2 AND p.ended_ns IS NULL AND p.id IS NOT NULL
    )";

impl Transaction<'_> {
    fn keys_waited_for(&self, pattern: LimitId) -> Result<Vec<(LimitId, String)>, Error> {
        self.link
            .connection
            .prepare_cached(KEYS_WAITED_FOR)
            .and_then(|mut s| {
                s.query_map((pattern.0, self.now().as_nanos()), |row| {
                    Ok((LimitId(row.get(0)?), row.get(1)?))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const CARRY_TICKETS: &str = "UPDATE ticket_take SET limit_id = ?2 WHERE limit_id = ?1";
// Where it will stand in the new ledger is not known yet: until it is booked again, at no instant.
const CARRY_BOOKINGS: &str = "UPDATE booking SET limit_id = ?2, at_ns = -9223372036854775808
    WHERE limit_id = ?1 AND due_ns > ?3";
const CARRY_PERMITS: &str = "UPDATE permit_charge SET limit_id = ?2, at_ns = -9223372036854775808
    WHERE limit_id = ?1 AND permit_id IN (
        SELECT permit_id FROM permit WHERE at_ns > ?3 AND ended_ns IS NULL AND id IS NOT NULL
    )";

impl Transaction<'_> {
    /// Lets those who wait for one ledger wait for another.
    fn carry_over(&mut self, former: LimitId, id: LimitId) -> Result<(), Error> {
        self.write_charges()?;
        self.wrote();
        self.link.memo.nobody_waits = None;
        let connection = self.link.connection;
        let (former, id, now_ns) = (former.0, id.0, self.now().as_nanos());
        let carry = || -> rusqlite::Result<()> {
            connection
                .prepare_cached(CARRY_TICKETS)?
                .execute((former, id))?;
            for sql in [CARRY_BOOKINGS, CARRY_PERMITS] {
                connection
                    .prepare_cached(sql)?
                    .execute((former, id, now_ns))?;
            }
            Ok(())
        };
        carry().map_err(|error| self.sqlite(error))
    }
}
