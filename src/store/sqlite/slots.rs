//! Slots: how many are held, and when they come back by themselves.

use super::transaction::Transaction;
use crate::breaker::Broken;
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::Books;
use crate::error::Error;
use crate::store::{PermitNumber, SlotTake};

// Each amount is cut to the largest that a limit can have, for the file may have been edited.
const HELD: &str = "SELECT coalesce(sum(max(0, min(amount, 9007199254740992))), 0) FROM slot
    WHERE limit_id = ?1 AND (expires_ns IS NULL OR expires_ns > ?2)";

const HELD_SINCE: &str = "SELECT count(*) FROM slot
    WHERE limit_id = ?1 AND since_ns >= ?3 AND (expires_ns IS NULL OR expires_ns > ?2)";

impl Books for Transaction<'_> {
    fn held(&mut self, limit: LimitId) -> Result<i64, Error> {
        self.link
            .connection
            .prepare_cached(HELD)
            .and_then(|mut s| s.query_row((limit.0, self.now().as_nanos()), |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    fn held_since(&mut self, limit: LimitId, at: Timestamp) -> Result<i64, Error> {
        let times = (limit.0, self.now().as_nanos(), at.as_nanos());
        self.link
            .connection
            .prepare_cached(HELD_SINCE)
            .and_then(|mut s| s.query_row(times, |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    fn broken(&mut self, limit: LimitId) -> Result<Option<Broken>, Error> {
        self.read_broken(limit)
    }
}

const INSERT_SLOT: &str = "INSERT INTO slot (limit_id, permit_id, amount, expires_ns, since_ns)
    VALUES (?1, ?2, ?3, ?4, ?5)";

impl Transaction<'_> {
    /// Takes the slots of one line.
    pub(super) fn take_slots(
        &mut self,
        permit: PermitNumber,
        line: &Line<'_>,
        expires: Option<Timestamp>,
    ) -> Result<SlotTake, Error> {
        let expires_ns = expires.map(Timestamp::as_nanos);
        self.link
            .connection
            .prepare_cached(INSERT_SLOT)
            .and_then(|mut s| {
                let since_ns = self.now().as_nanos();
                s.execute((line.id.0, permit.0, line.amount, expires_ns, since_ns))
            })
            .map_err(|error| self.sqlite(error))?;
        Ok(SlotTake::new(line))
    }
}

const NEXT_EXPIRY: &str =
    "SELECT min(expires_ns) FROM slot WHERE limit_id = ?1 AND expires_ns > ?2";

impl Transaction<'_> {
    /// When the next slot of a limit comes back by itself, if one does.
    pub(super) fn next_expiry(&self, limit: LimitId) -> Result<Option<Timestamp>, Error> {
        self.link
            .connection
            .prepare_cached(NEXT_EXPIRY)
            .and_then(|mut s| s.query_row((limit.0, self.now().as_nanos()), |row| row.get(0)))
            .map(|next: Option<i64>| next.map(Timestamp::from_nanos))
            .map_err(|error| self.sqlite(error))
    }
}

const HOLDERS: &str = "SELECT DISTINCT owner_id FROM slot JOIN permit USING (permit_id)
    WHERE limit_id = ?1 AND owner_id IS NOT NULL LIMIT 64";

impl Transaction<'_> {
    /// The owners that hold slots of a limit, or as many of them as are worth watching.
    pub(super) fn holders(&self, limit: LimitId) -> Result<Vec<i64>, Error> {
        self.link
            .connection
            .prepare_cached(HOLDERS)
            .and_then(|mut s| s.query_map([limit.0], |row| row.get(0))?.collect())
            .map_err(|error| self.sqlite(error))
    }
}

const SLOTS_OF: &str = "SELECT limit_id, amount FROM slot WHERE permit_id = ?1";

impl Transaction<'_> {
    /// The slots that a permit holds.
    pub(super) fn slots_of(&self, permit: PermitNumber) -> Result<Vec<(LimitId, i64)>, Error> {
        self.link
            .connection
            .prepare_cached(SLOTS_OF)
            .and_then(|mut s| {
                s.query_map([permit.0], |row| Ok((LimitId(row.get(0)?), row.get(1)?)))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const GIVE_BACK: &str = "DELETE FROM slot WHERE limit_id = ?1 AND permit_id = ?2";
const RENEW: &str = "UPDATE slot SET expires_ns = ?3 WHERE limit_id = ?1 AND permit_id = ?2";

impl Transaction<'_> {
    /// Takes slots of a limit from a permit.
    pub(super) fn give_back_slots(
        &mut self,
        permit: PermitNumber,
        limits: impl IntoIterator<Item = LimitId>,
    ) -> Result<(), Error> {
        for limit in limits {
            self.wrote();
            self.freed(limit);
            self.link
                .connection
                .prepare_cached(GIVE_BACK)
                .and_then(|mut s| s.execute((limit.0, permit.0)))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }

    /// Lets the slots of a permit come back by themselves at this instant.
    pub(super) fn let_slots_expire(
        &mut self,
        permit: PermitNumber,
        expires: Timestamp,
    ) -> Result<(), Error> {
        for (limit, _) in self.slots_of(permit)? {
            self.link
                .connection
                .prepare_cached(RENEW)
                .and_then(|mut s| s.execute((limit.0, permit.0, expires.as_nanos())))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }
}
