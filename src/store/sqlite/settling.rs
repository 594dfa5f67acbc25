//! Correcting what was charged to what was used.

use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::error::Error;
use crate::settlement::{End, Estimate, Settled, Settlement, Used, correction};
use crate::store::{Change, Claim, Holder, Which};
use crate::usage::People;

impl Transaction<'_> {
    /// Corrects the charges of a claim.
    fn settle(&mut self, claim: &Claim, used: &Used) -> Result<Settled, Error> {
        if let Some(end) = self.close(claim, End::Settled)? {
            return Ok(end.told());
        }
        let charges = self.find_claimed(claim)?;
        let mut settlement = Settlement::default();
        for row in &claim.rows {
            let Some(used) = used.of(&row.key) else {
                continue;
            };
            let known = self.known(&row.key)?;
            let charge = charges.iter().find(|charge| charge.limit == row.limit);
            let estimate = Estimate {
                id: row.limit,
                limit: &known.limit,
                at: claim.at,
                charged: charge.map_or(row.amount.cast_signed(), |charge| charge.amount),
                used: used.cast_signed(),
            };
            let now = self.now();
            let correction = correction(self, &estimate, now)?;
            if let Some(charge) = charge {
                self.amend(*charge, correction.charged)?;
            }
            self.owe(row.limit, correction.debt)?;
            settlement.add(row, used, correction);
        }
        // Whoever says what was used has used it: nothing of it comes back when its process dies. And where
        // the charge was removed, the next one for that instant must not be taken for it.
        if let Some(booking) = claim.booking {
            self.forget_booking(booking)?;
        }
        Ok(Settled::Now(settlement))
    }
}

impl Transaction<'_> {
    /// Takes back the charges of a claim, and its slots.
    pub(super) fn cancel(&mut self, claim: &Claim) -> Result<Settled, Error> {
        if let Some(end) = self.close(claim, End::Cancelled)? {
            return Ok(end.told());
        }
        let charges = self.find_claimed(claim)?;
        self.take_back(charges)?;
        if let Some(booking) = claim.booking {
            self.forget_booking(booking)?;
        }
        Ok(Settled::Now(Settlement::default()))
    }

    /// Settles or cancels a permit: of a claim that this session made, or by its id.
    pub(super) fn change(
        &mut self,
        change: Change<'_>,
        session: &Session,
    ) -> Result<Settled, Error> {
        if change.is_inherited() {
            return Ok(Settled::Before);
        }
        let found;
        let claim = match change.which {
            Which::Claim(claim) => claim,
            Which::Id(id) => {
                let Some(permit) = self.find_permit(id)? else {
                    return Ok(Settled::Unknown);
                };
                if let Some(end) = permit.end {
                    return Ok(end.told());
                }
                found = self.claim_on(&permit, id, session, Holder::Other)?;
                &found
            }
        };
        match change.used {
            Some(used) => {
                used.check(&claim.rows)?;
                self.settle(claim, used)
            }
            None => self.cancel(claim),
        }
    }
}

const OWE: &str = "INSERT INTO debt (limit_id, amount, since_ns) VALUES (?1, ?2, ?3)
    ON CONFLICT (limit_id) DO UPDATE SET amount = min(amount + ?2, 9007199254740992)";

impl Transaction<'_> {
    fn owe(&mut self, limit: LimitId, debt: i64) -> Result<(), Error> {
        if debt == 0 {
            return Ok(());
        }
        self.wrote();
        self.link
            .connection
            .prepare_cached(OWE)
            .and_then(|mut s| s.execute((limit.0, debt, self.now().as_nanos())))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const PEOPLE: &str = "SELECT
    (SELECT count(*) FROM slot
        WHERE limit_id = ?1 AND (expires_ns IS NULL OR expires_ns > ?2)),
    (SELECT count(*) FROM ticket_take WHERE limit_id = ?1),
    (SELECT amount FROM debt WHERE limit_id = ?1)";

impl Transaction<'_> {
    /// Who has to do with a limit, besides its charges.
    pub(super) fn people(&self, limit: LimitId) -> Result<People, Error> {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        self.link
            .connection
            .prepare_cached(PEOPLE)
            .and_then(|mut s| {
                s.query_row((limit.0, self.now().as_nanos()), |row| {
                    Ok(People {
                        permits: count(row.get(0)?),
                        waiting: count(row.get(1)?),
                        debt: count(row.get::<_, Option<i64>>(2)?.unwrap_or(0)),
                    })
                })
            })
            .map_err(|error| self.sqlite(error))
    }
}
