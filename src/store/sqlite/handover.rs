//! Permits that pass from one hand to another: they get an id, are relied on by others, taken up again, detached, and
//! renewed.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{Claim, Few, Holder, PermitNumber, Registered};

const NAME: &str = "UPDATE permit SET id = ?2, request = ?3
    WHERE permit_id = ?1 AND ended_ns IS NULL AND id IS NULL
        AND (expires_ns IS NULL OR expires_ns > ?4)";

impl Transaction<'_> {
    /// Gives the permit of a claim an id.
    pub(super) fn register(
        &mut self,
        claim: &Claim,
        owner: i64,
        id: &str,
    ) -> Result<Registered, Error> {
        let moved = self.moved(claim)?;
        let claim = moved.as_ref().unwrap_or(claim);
        let request = claim.print();
        let registered = match &claim.registered {
            None => {
                let name = Some((id, request.as_str()));
                Registered {
                    number: self.insert_permit(owner, (claim.at, claim.booking), None, name)?,
                    id: Some(id.into()),
                    slots: Few::new(),
                    fence: None,
                    holder: Holder::Claim,
                }
            }
            Some(registered) => {
                self.wrote();
                let (number, now_ns) = (registered.number, self.now().as_nanos());
                let named = self
                    .link
                    .connection
                    .prepare_cached(NAME)
                    .and_then(|mut s| s.execute((number.0, id, request.as_str(), now_ns)))
                    .map_err(|error| self.sqlite(error))?;
                let registered = Registered {
                    id: Some(id.into()),
                    ..(**registered).clone()
                };
                if named == 0 {
                    // It has timed out, and nobody can settle it any more.
                    return Ok(registered);
                }
                registered
            }
        };
        self.insert_permit_charges(registered.number, &claim.rows)?;
        Ok(registered)
    }
}

const RENEW: &str = "UPDATE permit SET expires_ns = ?2
    WHERE permit_id = ?1 AND ended_ns IS NULL AND expires_ns > ?3 AND (owner_id IS NOT NULL OR detached)";
const OWNER_OF: &str = "SELECT owner_id FROM permit WHERE permit_id = ?1";
const DETACH: &str = "UPDATE permit SET owner_id = NULL, detached = 1, expires_ns = ?2
    WHERE permit_id = ?1 AND ended_ns IS NULL AND (expires_ns IS NULL OR expires_ns > ?3)";

impl Transaction<'_> {
    /// Lets a permit that ends by itself do so later. Nothing if it has ended, or does not end by itself, or if nobody answers
    /// for it any more: its slots are back, and for how long it can still be settled is fixed.
    pub(super) fn renew(
        &mut self,
        permit: PermitNumber,
        timeout_ns: i64,
    ) -> Result<Option<Timestamp>, Error> {
        self.let_expire(RENEW, permit, timeout_ns)
    }

    /// Unties a permit from its owner, and lets it end by itself. Nothing if it has ended.
    pub(super) fn detach(
        &mut self,
        permit: PermitNumber,
        timeout_ns: i64,
    ) -> Result<Option<Timestamp>, Error> {
        let owner = self.owner_of(permit)?;
        let expires = self.let_expire(DETACH, permit, timeout_ns)?;
        // Its charges are not taken back when whoever has booked them dies.
        if let (Some(owner), Some(_)) = (owner, expires) {
            self.forget_booking_of(permit, owner)?;
        }
        Ok(expires)
    }

    fn owner_of(&self, permit: PermitNumber) -> Result<Option<i64>, Error> {
        self.link
            .connection
            .prepare_cached(OWNER_OF)
            .and_then(|mut s| s.query_row([permit.0], |row| row.get(0)).optional())
            .map(Option::flatten)
            .map_err(|error| self.sqlite(error))
    }

    fn let_expire(
        &mut self,
        sql: &str,
        permit: PermitNumber,
        timeout_ns: i64,
    ) -> Result<Option<Timestamp>, Error> {
        let now = self.now();
        let expires = now.saturating_plus_ns(timeout_ns);
        let changed = self
            .link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.execute((permit.0, expires.as_nanos(), now.as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if changed == 0 {
            return Ok(None);
        }
        self.wrote();
        self.let_slots_expire(permit, expires)?;
        Ok(Some(expires))
    }
}

const SHARE: &str = "UPDATE permit SET shared = 1 WHERE permit_id = ?1 AND NOT shared";
const IS_SHARED: &str = "SELECT shared FROM permit WHERE permit_id = ?1";

impl Transaction<'_> {
    /// Says that somebody relies on a permit that is another's: it stays when that one dies, or drops its booking.
    pub(super) fn share(&mut self, claim: &Claim) -> Result<(), Error> {
        let Some(registered) = &claim.registered else {
            return Ok(());
        };
        if registered.holder != Holder::Other {
            return Ok(());
        }
        let changed = self
            .link
            .connection
            .prepare_cached(SHARE)
            .and_then(|mut s| s.execute([registered.number.0]))
            .map_err(|error| self.sqlite(error))?;
        if changed == 0 {
            return Ok(());
        }
        self.wrote();
        match self.owner_of(registered.number)? {
            Some(owner) => self.forget_booking_of(registered.number, owner),
            None => Ok(()),
        }
    }

    pub(super) fn is_shared(&self, permit: PermitNumber) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(IS_SHARED)
            .and_then(|mut s| s.query_row([permit.0], |row| row.get(0)).optional())
            .map(|shared| shared.unwrap_or(false))
            .map_err(|error| self.sqlite(error))
    }
}

const ADOPT: &str = "UPDATE permit
    SET owner_id = ?2, expires_ns = ?3, fence = coalesce(?4, fence), booking_id = NULL
    WHERE permit_id = ?1";

impl Transaction<'_> {
    /// Makes an owner answer for a permit that nobody answers for.
    pub(super) fn adopt(
        &mut self,
        permit: PermitNumber,
        owner: i64,
        expires: Option<Timestamp>,
        fence: Option<PermitNumber>,
    ) -> Result<(), Error> {
        self.wrote();
        let fence = fence.map(|fence| fence.0);
        let expires_ns = expires.map(Timestamp::as_nanos);
        self.link
            .connection
            .prepare_cached(ADOPT)
            .and_then(|mut s| s.execute((permit.0, owner, expires_ns, fence)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}
