//! Slots: who holds how many, and what comes back.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::Books;
use crate::error::Error;
use crate::store::{Claim, Few, Holding, PermitNumber, expiry};

const HELD: &str = "SELECT coalesce(sum(amount), 0) FROM slot
    WHERE limit_id = ?1 AND (expires_ns IS NULL OR expires_ns > ?2)";

impl Books for Transaction<'_> {
    fn held(&mut self, limit: LimitId) -> Result<i64, Error> {
        self.link
            .connection
            .prepare_cached(HELD)
            .and_then(|mut s| s.query_row((limit.0, self.now().as_nanos()), |row| row.get(0)))
            .map(|held: i64| held.max(0))
            .map_err(|error| self.sqlite(error))
    }
}

const INSERT_SLOT: &str =
    "INSERT INTO slot (limit_id, permit_id, amount, expires_ns) VALUES (?1, ?2, ?3, ?4)";

impl Transaction<'_> {
    /// Takes the slots of these lines.
    pub(super) fn hold<'l, 'k: 'l>(
        &mut self,
        owner: i64,
        lines: &mut (impl Iterator<Item = &'l Line<'k>> + Clone),
    ) -> Result<Holding, Error> {
        let now = self.now();
        let expires = expiry(lines.clone(), now);
        let permit = self.insert_permit(owner, expires)?;
        let mut limits = Few::new();
        for line in lines {
            let expires_ns = expires.map(Timestamp::as_nanos);
            self.link
                .connection
                .prepare_cached(INSERT_SLOT)
                .and_then(|mut s| s.execute((line.id.0, permit.0, line.amount, expires_ns)))
                .map_err(|error| self.sqlite(error))?;
            limits.push(line.id);
        }
        Ok(Holding { permit, limits })
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

const LAST_PERMIT: &str = "SELECT permit_id, ended_ns FROM permit ORDER BY permit_id DESC LIMIT 1";
const INSERT_PERMIT: &str =
    "INSERT INTO permit (permit_id, owner_id, at_ns, expires_ns) VALUES (?1, ?2, ?3, ?4)";
const DELETE_PERMIT: &str = "DELETE FROM permit WHERE permit_id = ?1";

impl Transaction<'_> {
    /// The number of a permit is its instant, or one more than that of the last one. So it grows even if a
    /// power failure takes the last ones from the file.
    fn insert_permit(
        &mut self,
        owner: i64,
        expires: Option<Timestamp>,
    ) -> Result<PermitNumber, Error> {
        self.wrote();
        let connection = self.link.connection;
        let last: Option<(i64, Option<i64>)> = connection
            .prepare_cached(LAST_PERMIT)
            .and_then(|mut s| {
                s.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let now_ns = self.now().as_nanos();
        let number = last.map_or(now_ns, |(last, _)| now_ns.max(last.saturating_add(1)));
        if let Some((last, Some(_ended))) = last {
            self.delete_permit(PermitNumber(last))?;
        }
        connection
            .prepare_cached(INSERT_PERMIT)
            .and_then(|mut s| s.execute((number, owner, now_ns, expires.map(Timestamp::as_nanos))))
            .map_err(|error| self.sqlite(error))?;
        Ok(PermitNumber(number))
    }

    fn delete_permit(&self, permit: PermitNumber) -> Result<(), Error> {
        self.link
            .connection
            .prepare_cached(DELETE_PERMIT)
            .and_then(|mut s| s.execute([permit.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const DELETE_SLOT: &str = "DELETE FROM slot WHERE limit_id = ?1 AND permit_id = ?2
    AND (expires_ns IS NULL OR expires_ns > ?3)";

impl Transaction<'_> {
    /// Gives the slots of a claim back. False if they had come back before.
    pub(super) fn let_go(&mut self, claim: &Claim) -> Result<bool, Error> {
        let Some(holding) = &claim.holding else {
            return Ok(true);
        };
        let now_ns = self.now().as_nanos();
        let mut was_held = true;
        for limit in &holding.limits {
            let deleted = self
                .link
                .connection
                .prepare_cached(DELETE_SLOT)
                .and_then(|mut s| s.execute((limit.0, holding.permit.0, now_ns)))
                .map_err(|error| self.sqlite(error))?;
            was_held &= deleted == 1;
            self.freed(*limit);
        }
        if was_held {
            self.wrote();
            self.end_permit(holding.permit)?;
        }
        Ok(was_held)
    }
}

const END_PERMIT: &str = "UPDATE permit SET ended_ns = ?2
    WHERE permit_id = ?1 AND permit_id = (SELECT max(permit_id) FROM permit)";

impl Transaction<'_> {
    /// Removes a permit, or marks it as ended if it is the last one: from that, the next one gets its number.
    fn end_permit(&mut self, permit: PermitNumber) -> Result<(), Error> {
        let marked = self
            .link
            .connection
            .prepare_cached(END_PERMIT)
            .and_then(|mut s| s.execute((permit.0, self.now().as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if marked == 0 {
            self.delete_permit(permit)?;
        }
        Ok(())
    }
}

const FIND_HELD_BY: &str = "SELECT permit_id FROM permit WHERE owner_id = ?1 AND ended_ns IS NULL";
const FIND_EXPIRED: &str =
    "SELECT permit_id FROM permit WHERE expires_ns <= ?1 AND ended_ns IS NULL LIMIT 64";
const DELETE_SLOTS: &str = "DELETE FROM slot WHERE permit_id = ?1 RETURNING limit_id";

impl Transaction<'_> {
    /// Gives back the slots of a dead owner. True if it had any.
    pub(super) fn release_all_of(&mut self, owner: i64) -> Result<bool, Error> {
        let permits = self.find_permits(FIND_HELD_BY, owner)?;
        self.take_slots_from(permits)
    }

    /// Removes permits whose timeout has passed, which count no more.
    pub(super) fn remove_expired(&mut self) -> Result<(), Error> {
        let permits = self.find_permits(FIND_EXPIRED, self.now().as_nanos())?;
        self.take_slots_from(permits).map(drop)
    }

    fn find_permits(&self, sql: &str, parameter: i64) -> Result<Vec<PermitNumber>, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| {
                s.query_map([parameter], |row| row.get(0).map(PermitNumber))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))
    }

    fn take_slots_from(&mut self, permits: Vec<PermitNumber>) -> Result<bool, Error> {
        let mut any = false;
        for permit in permits {
            any = true;
            self.wrote();
            let limits: Vec<LimitId> = self
                .link
                .connection
                .prepare_cached(DELETE_SLOTS)
                .and_then(|mut s| {
                    s.query_map([permit.0], |row| row.get(0).map(LimitId))?
                        .collect()
                })
                .map_err(|error| self.sqlite(error))?;
            for limit in limits {
                self.freed(limit);
            }
            self.end_permit(permit)?;
        }
        Ok(any)
    }
}
