//! Correcting what was charged to what was used.

use std::sync::Arc;
use std::time::Duration;

use super::ledger::Stands;
use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::{LimitId, Line};
use crate::definition::Known;
use crate::error::Error;
use crate::settlement::{
    Correction, End, Estimate, Settled, Settlement, Used, correction, used_by_others,
};
use crate::store::{Change, Claim, Holder, Row, Which};
use crate::usage::People;

impl Transaction<'_> {
    /// Corrects the charges of a claim.
    fn settle(&mut self, claim: &Claim, used: &Used) -> Result<Settled, Error> {
        if let Some(end) = self.close(claim, End::Settled)? {
            return Ok(end.told());
        }
        let mut settlement = Settlement::default();
        let stands = self.find_standing(claim)?;
        for (row, stands) in claim.rows.iter().zip(stands) {
            let Some(used) = used.of(&row.key) else {
                continue;
            };
            let Some(known) = self.still_known(row)? else {
                settlement.add(row, used, Correction::NOTHING);
                continue;
            };
            let estimate = Estimate {
                id: known.id,
                limit: &known.limit,
                at: row.at,
                charged: row.amount.cast_signed(),
                used: used.cast_signed(),
                can_grow: matches!(stands, Stands::InLedger(_)) || known.limit.bucket().is_some(),
            };
            let now = self.now();
            // Before its instant nobody is let through by it.
            let correction = correction(self, &estimate, now.max(claim.at))?;
            // It may have been closed meanwhile because it was empty.
            let needs_none = known.limit.bucket().is_none() && correction.debt == 0;
            let id = if needs_none {
                known.id
            } else {
                self.with_ledger(&known)?
            };
            match (stands, known.limit.bucket()) {
                // What was booked may not have been poured out yet, though its instant has come.
                (Stands::InLedger(_) | Stands::Poured, Some(bucket)) if row.at <= now => {
                    let back = estimate.charged - correction.charged;
                    self.put_back(id, bucket, row.at, back)?;
                }
                (Stands::InLedger(charge), _) => {
                    self.amend(charge, correction.charged - estimate.charged)?;
                }
                (Stands::Poured | Stands::Nowhere, _) => {}
            }
            if correction.debt > 0 {
                self.owe(id, correction.debt)?;
            }
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
    /// The limit that a row was charged to, unless it was removed since.
    fn still_known(&mut self, row: &Row) -> Result<Option<Arc<Known>>, Error> {
        let known = self.find(&row.key)?;
        if known.as_ref().is_none_or(|known| known.id == row.limit) {
            return Ok(known);
        }
        // The ledger of a key that matches a pattern may have been closed meanwhile, because nothing was left in it. As
        // long as the pattern is in force, it is the same for whatever definition counts for the key now.
        self.most_specific(&row.key)?;
        let mut patterns = self.link.memo.patterns.iter().flatten();
        let is_in_force = patterns.any(|pattern| Some(pattern.id) == row.pattern);
        // Another pattern may have taken it over, and gone with it.
        let is_gone = self.is_removed(row.limit)? || self.key_of(row.limit)?.is_some();
        let may_be_closed = is_in_force && !is_gone;
        Ok(known.filter(|_| may_be_closed))
    }

    /// The number of the ledger of a limit, which it gets if it has none.
    fn with_ledger(&mut self, known: &Known) -> Result<LimitId, Error> {
        match known.id {
            LimitId::NONE => self.open_ledger(known.limit.key()),
            id => Ok(id),
        }
    }

    /// Takes back the charges of a claim, and its slots.
    pub(super) fn cancel(&mut self, claim: &Claim) -> Result<Settled, Error> {
        if let Some(end) = self.close(claim, End::Cancelled)? {
            return Ok(end.told());
        }
        let stands = self.find_standing(claim)?;
        for (row, stands) in claim.rows.iter().zip(stands) {
            let known = self.still_known(row)?;
            let bucket = known.and_then(|known| Some((known.id, known.limit.bucket()?)));
            match (stands, bucket) {
                (Stands::InLedger(_) | Stands::Poured, Some((id, bucket)))
                    if row.at <= self.now() =>
                {
                    self.put_back(id, bucket, row.at, row.amount.cast_signed())?;
                }
                (Stands::InLedger(charge), _) => self.amend(charge, -row.amount.cast_signed())?,
                (Stands::Poured | Stands::Nowhere, _) => {}
            }
        }
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
            Which::Claim(claim) => match self.moved(claim)? {
                Some(moved) => {
                    found = moved;
                    &found
                }
                None => claim,
            },
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
                let settled = self.settle(claim, used)?;
                if let (Settled::Now(_), Some((key, estimated, used))) = (&settled, used.lesson())
                    && let Some(known) = self.find(key)?
                {
                    self.learn(&known, estimated, used)?;
                }
                Ok(settled)
            }
            None => self.cancel(claim),
        }
    }
}

impl Transaction<'_> {
    /// Charges what others have used.
    pub(super) fn raise(&mut self, key: &str, told: (Option<Duration>, u64)) -> Result<u64, Error> {
        let known = self.known(key)?;
        let now = self.now();
        let more = used_by_others(self, known.id, &known.limit, told, now)?;
        if more > 0 {
            let line = Line {
                id: self.with_ledger(&known)?,
                pattern: known.pattern,
                limit: &known.limit,
                amount: more,
            };
            self.charge_line(&line, now)?;
        }
        Ok(more.unsigned_abs())
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
    pub(super) fn people(&self, known: &Known) -> Result<People, Error> {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        self.link
            .connection
            .prepare_cached(PEOPLE)
            .and_then(|mut s| {
                s.query_row((known.id.0, self.now().as_nanos()), |row| {
                    Ok(People {
                        was_lowered: known.was_lowered,
                        permits: count(row.get(0)?),
                        waiting: count(row.get(1)?),
                        debt: count(row.get::<_, Option<i64>>(2)?.unwrap_or(0)),
                    })
                })
            })
            .map_err(|error| self.sqlite(error))
    }
}
