//! The ledgers: reading by seeks, charging, and taking back.

use std::collections::VecDeque;

use rusqlite::{CachedStatement, Row as SqlRow};

use super::transaction::Transaction;
use crate::calendar::{
    Charge, Kept, Ledgers, Level, LimitId, Line, OpenBlocks, Total, corrected, poured_now,
};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limit::{Bucket, Limit};
use crate::pause::Pause;
use crate::store::{Claim, Few, MERGED, POURED, Row};

const LAST_AT: &str = "SELECT at_ns, seq, amount, total FROM charge
    WHERE limit_id = ?1 AND at_ns <= ?2 ORDER BY at_ns DESC, seq DESC LIMIT 1";
const LAST_FEW: &str = "SELECT at_ns, seq, amount, total FROM charge
    WHERE limit_id = ?1 ORDER BY at_ns DESC, seq DESC";
const FEW: usize = 3;
const ALL_AFTER: &str = "SELECT at_ns, seq, amount, total FROM charge
    WHERE limit_id = ?1 AND at_ns > ?2 ORDER BY at_ns, seq";

impl Ledgers for Transaction<'_> {
    type Error = Error;

    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Error> {
        // Mostly nothing is booked, and then the very last charge is the answer for every instant from
        // its own on.
        match self.very_last(limit)? {
            Some(last) if last.at > at => self.seek(LAST_AT, limit, at),
            last => Ok(last),
        }
    }

    fn first_after(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Error> {
        if let Some(next) = self.link.memo.first_after(limit, at) {
            return Ok(next);
        }
        self.write_charges()?;
        let wanted = self.link.memo.worth_reading(limit, at);
        let read = |mut statement: CachedStatement<'_>| -> rusqlite::Result<VecDeque<Charge>> {
            let rows = statement.query_map((limit.0, at.as_nanos()), charge)?;
            rows.take(wanted).collect()
        };
        let mut charges = self
            .link
            .connection
            .prepare_cached(ALL_AFTER)
            .and_then(read)
            .map_err(|error| self.sqlite(error))?;
        self.correct(limit, &mut charges)?;
        let next = charges.front().copied();
        let complete = charges.len() < wanted;
        self.link.memo.remember_run(limit, at, charges, complete);
        Ok(next)
    }

    fn open_blocks(&mut self, limit: LimitId) -> Result<OpenBlocks, Error> {
        self.read_open_blocks(limit)
    }

    fn level(&mut self, limit: LimitId) -> Result<Option<Level>, Error> {
        self.bucket_level(limit)
    }

    fn pause(&mut self, limit: LimitId) -> Result<Option<Pause>, Error> {
        self.last_pause(limit)
    }

    fn wall_shift_ns(&self) -> i64 {
        self.timeline().calendar_shift_ns
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        Some(&mut self.link.memo.kept)
    }
}

impl Transaction<'_> {
    /// The last charge of a ledger, bookings included.
    pub(super) fn very_last(&mut self, limit: LimitId) -> Result<Option<Charge>, Error> {
        if let Some(last) = self.link.memo.very_last(limit) {
            return Ok(last);
        }
        self.write_charges()?;
        // A few more than the last one: of a ledger that has no more, nothing has to be read again.
        let mut charges = self
            .link
            .connection
            .prepare_cached(LAST_FEW)
            .and_then(|mut s| {
                let rows = s.query_map([limit.0], charge)?;
                rows.take(FEW)
                    .collect::<rusqlite::Result<VecDeque<Charge>>>()
            })
            .map_err(|error| self.sqlite(error))?;
        self.correct(limit, charges.iter_mut().rev())?;
        let last = charges.front().copied();
        self.link.memo.remember_very_last(limit, last);
        if charges.len() < FEW {
            let all = charges.into_iter().rev().collect();
            let beginning = Timestamp::from_nanos(i64::MIN);
            self.link.memo.remember_run(limit, beginning, all, true);
        }
        Ok(last)
    }

    /// Whether anything is booked after an instant, which is now or later: what lies ahead and is no block.
    pub(super) fn is_booked_after(&mut self, limit: LimitId, at: Timestamp) -> Result<bool, Error> {
        let Some(last) = self.very_last(limit)?.filter(|last| last.at > at) else {
            return Ok(false);
        };
        let before = match self.last_at(limit, at)? {
            Some(before) => before.total,
            None => self
                .first_after(limit, at)?
                .map_or(last.before(), |first| first.before()),
        };
        let in_blocks = self.read_open_blocks(limit)?.amount_after(at);
        Ok(last.total.since(before) > in_blocks)
    }

    fn seek(&mut self, sql: &str, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Error> {
        self.write_charges()?;
        let read = |mut statement: CachedStatement<'_>| {
            let mut rows = statement.query((limit.0, at.as_nanos()))?;
            rows.next()?.map(charge).transpose()
        };
        let mut found = self
            .link
            .connection
            .prepare_cached(sql)
            .and_then(read)
            .map_err(|error| self.sqlite(error))?;
        self.correct(limit, &mut found)?;
        Ok(found)
    }
}

fn charge(row: &SqlRow<'_>) -> rusqlite::Result<Charge> {
    Ok(Charge {
        at: Timestamp::from_nanos(row.get(0)?),
        seq: row.get(1)?,
        // Clamped and masked, for the file may have been edited: no number in it may overflow here.
        amount: row.get::<_, i64>(2)?.clamp(0, Total::MASK),
        total: Total(row.get::<_, i64>(3)? & Total::MASK),
    })
}

const INSERT: &str = "INSERT INTO charge (limit_id, at_ns, seq, amount, total)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const GROW: &str = "UPDATE charge
    SET amount = min(amount + ?4, 4611686018427387903), total = (total + ?4) & 4611686018427387903
    WHERE limit_id = ?1 AND at_ns = ?2 AND seq = ?3";

/// A row that is charged at the end of a ledger, and not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwritten {
    limit: LimitId,
    charge: Charge,
    /// How much of it is new, if the rest is in the file.
    grown_by: Option<i64>,
}

impl Transaction<'_> {
    /// Charges a line at an instant, which lies ahead if it is booked. Returns where the charge stands.
    pub(super) fn charge_line(
        &mut self,
        line: &Line<'_>,
        at: Timestamp,
    ) -> Result<(Timestamp, i64), Error> {
        if let Some(bucket) = line.limit.bucket() {
            let (now, amount) = (self.now(), line.amount);
            if at <= now {
                self.pour(line.id, bucket, |poured| {
                    Some(poured_now(bucket, poured, now, amount))
                })?;
                return Ok((at, POURED));
            }
        }
        self.enter(line.id, line.limit, at, line.amount)
    }

    /// Charges an amount to a limit of rates, or ahead to a bucket. Returns where the charge stands.
    pub(super) fn enter(
        &mut self,
        id: LimitId,
        limit: &Limit,
        at: Timestamp,
        amount: i64,
    ) -> Result<(Timestamp, i64), Error> {
        if limit.resolution_ns() > 0 {
            let at = limit.entered_at(at);
            self.merge(id, at, amount)?;
            return Ok((at, MERGED));
        }
        Ok((at, self.charge(id, at, amount)?))
    }

    /// Puts back into a bucket what was poured out of it at an instant, or pours out more now if that is negative.
    pub(super) fn put_back(
        &mut self,
        limit: LimitId,
        bucket: Bucket,
        taken_at: Timestamp,
        amount: i64,
    ) -> Result<(), Error> {
        let now = self.now();
        if amount > 0 {
            self.freed(limit);
        }
        self.pour(limit, bucket, |poured| {
            corrected(bucket, poured, taken_at, now, amount)
        })
    }

    /// Adds a charge and returns its position in its instant.
    ///
    /// What is charged at the present stands in one row for all who are charged in this transaction: each of them
    /// knows its own part.
    pub(super) fn charge(
        &mut self,
        limit: LimitId,
        at: Timestamp,
        amount: i64,
    ) -> Result<i64, Error> {
        let is_booked = at > self.now();
        let unwritten = self.unwritten.iter_mut();
        let mut same = unwritten.filter(|row| (row.limit, row.charge.at) == (limit, at));
        if !is_booked && let Some(row) = same.find(|row| row.charge.seq != MERGED) {
            row.charge.amount = row.charge.amount.saturating_add(amount);
            row.charge.total = row.charge.total.plus(amount);
            let charge = row.charge;
            self.link.memo.grown(limit, charge);
            self.charged();
            return Ok(charge.seq);
        }
        let very_last = self.very_last(limit)?;
        let previous = self.last_at(limit, at)?;
        let (seq, before) = match previous {
            Some(previous) if previous.at == at => {
                (previous.seq.saturating_add(1).max(0), previous.total)
            }
            Some(previous) => (0, previous.total),
            None => (0, self.total_before_all_after(limit, at)?),
        };
        let added = Charge {
            at,
            seq,
            amount,
            total: before.plus(amount),
        };
        self.charged();
        if very_last.is_some_and(|last| last.at > at) {
            self.insert(limit, added)?;
            self.correct_totals(limit, (at, seq), -amount)?;
        } else {
            self.link.memo.appended(limit, added);
            if is_booked {
                self.insert(limit, added)?;
            } else {
                self.add_unwritten(limit, added, None);
            }
        }
        Ok(seq)
    }

    /// Adds to what is merged at an instant.
    fn merge(&mut self, limit: LimitId, at: Timestamp, amount: i64) -> Result<(), Error> {
        self.charged();
        let very_last = self.very_last(limit)?;
        let is_it = |last: &Charge| (last.at, last.seq) == (at, MERGED);
        if let Some(last) = very_last.filter(is_it) {
            let grown = Charge {
                amount: last.amount.saturating_add(amount),
                total: last.total.plus(amount),
                ..last
            };
            self.link.memo.grown(limit, grown);
            let mut unwritten = self.unwritten.iter_mut();
            match unwritten.find(|row| row.limit == limit && is_it(&row.charge)) {
                Some(row) => {
                    row.charge = grown;
                    row.grown_by = row.grown_by.map(|by| by.saturating_add(amount));
                }
                None => self.add_unwritten(limit, grown, Some(amount)),
            }
            return Ok(());
        }
        let mut added = Charge {
            at,
            seq: MERGED,
            amount,
            total: Total::ZERO,
        };
        if very_last.is_none_or(|last| last.at < at) {
            let before = very_last.map_or(Total::ZERO, |last| last.total);
            added.total = before.plus(amount);
            self.link.memo.appended(limit, added);
            self.add_unwritten(limit, added, None);
            return Ok(());
        }
        self.write_charges()?;
        if self.find_charged(limit, at, MERGED)?.is_some() {
            self.grow(limit, added)?;
        } else {
            let earlier = at.saturating_minus_ns(1);
            let before = match self.last_at(limit, earlier)? {
                Some(previous) => previous.total,
                None => self.total_before_all_after(limit, earlier)?,
            };
            added.total = before.plus(amount);
            self.insert(limit, added)?;
        }
        self.correct_totals(limit, (at, MERGED), -amount)
    }

    /// What lay before may have been swept, and what lies ahead still counts from there.
    fn total_before_all_after(&mut self, limit: LimitId, at: Timestamp) -> Result<Total, Error> {
        let next = self.first_after(limit, at)?;
        Ok(next.map_or(Total::ZERO, |next| next.before()))
    }

    fn add_unwritten(&mut self, limit: LimitId, charge: Charge, grown_by: Option<i64>) {
        self.unwritten.push(Unwritten {
            limit,
            charge,
            grown_by,
        });
    }

    /// Writes what was charged, before anybody reads or changes it in the file.
    pub(super) fn write_charges(&mut self) -> Result<(), Error> {
        for row in std::mem::take(&mut self.unwritten) {
            let Unwritten { limit, charge, .. } = row;
            match row.grown_by {
                None => self.insert(limit, charge)?,
                Some(amount) => self.grow(limit, Charge { amount, ..charge })?,
            }
        }
        Ok(())
    }

    /// Adds an amount to the row where it is charged.
    fn grow(&self, limit: LimitId, added: Charge) -> Result<(), Error> {
        let Charge {
            at, seq, amount, ..
        } = added;
        self.link
            .connection
            .prepare_cached(GROW)
            .and_then(|mut s| s.execute((limit.0, at.as_nanos(), seq, amount)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    fn insert(&mut self, limit: LimitId, charge: Charge) -> Result<(), Error> {
        let Charge {
            at, seq, amount, ..
        } = charge;
        let stored = self.stored_total(limit, (at, seq), charge.total)?;
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut statement| {
                statement.execute((limit.0, at.as_nanos(), seq, amount, stored.0))
            })
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const AMEND: &str = "UPDATE charge
    SET amount = ?4, total = (total + ?4 - amount) & 4611686018427387903
    WHERE limit_id = ?1 AND at_ns = ?2 AND seq = ?3";

impl Transaction<'_> {
    /// Adds to the amount of a charge, or takes from it, and changes the totals after it. A charge of which nothing is
    /// left goes.
    pub(super) fn amend(&mut self, charge: Taken, more: i64) -> Result<(), Error> {
        let amount = charge.amount.saturating_add(more);
        if more == 0 {
            return Ok(());
        }
        if amount <= 0 {
            return self.take_back(charge);
        }
        self.wrote();
        self.freed(charge.limit);
        self.write_charges()?;
        let Taken { limit, at, seq, .. } = charge;
        self.link
            .connection
            .prepare_cached(AMEND)
            .and_then(|mut s| s.execute((limit.0, at.as_nanos(), seq, amount)))
            .map_err(|error| self.sqlite(error))?;
        self.correct_totals(limit, (at, seq), -more)
    }
}

/// Where a row of a claim stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stands {
    InLedger(Taken),
    /// Its instant has come, and if it was of a bucket, that knows of it; if not, it was swept.
    Poured,
    /// It was taken back.
    Nowhere,
}

/// A charge that is to be taken back or changed. It may stand for what several permits were charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Taken {
    pub(super) limit: LimitId,
    pub(super) at: Timestamp,
    pub(super) seq: i64,
    pub(super) amount: i64,
}

const DELETE: &str = "DELETE FROM charge WHERE limit_id = ?1 AND at_ns = ?2 AND seq = ?3";

impl Transaction<'_> {
    /// Removes a charge, and corrects the totals after it.
    pub(super) fn take_back(&mut self, charge: Taken) -> Result<(), Error> {
        self.write_charges()?;
        self.wrote();
        self.freed(charge.limit);
        let last = self.very_last(charge.limit)?;
        let is_last = last.is_some_and(|last| (last.at, last.seq) == (charge.at, charge.seq));
        self.link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute((charge.limit.0, charge.at.as_nanos(), charge.seq)))
            .map_err(|error| self.sqlite(error))?;
        if is_last {
            self.link.memo.removed_last(charge.limit);
            return Ok(());
        }
        self.correct_totals(charge.limit, (charge.at, charge.seq), charge.amount)
    }
}

const FIND_CHARGED: &str = "SELECT limit_id, at_ns, seq, amount FROM charge
    WHERE limit_id = ?1 AND at_ns = ?2 AND seq = ?3";

impl Transaction<'_> {
    /// Where each row of a claim stands.
    pub(super) fn find_standing(&mut self, claim: &Claim) -> Result<Few<Stands>, Error> {
        self.write_charges()?;
        // A permit that the file knows of has its charges for as long as it is open.
        let booked = match claim.booking {
            Some(booking) if claim.registered.is_none() => Some(self.find_booked(booking)?),
            _ => None,
        };
        let stands = |row: &Row| {
            if row.seq == POURED {
                return Ok(Stands::Poured);
            }
            if let Some(booked) = &booked {
                let found = booked.iter().find(|(limit, _)| *limit == row.limit);
                return Ok(match found {
                    Some((_, Some(charge))) => Stands::InLedger(*charge),
                    Some((_, None)) => Stands::Poured,
                    None => Stands::Nowhere,
                });
            }
            let found = self.find_charged(row.limit, row.at, row.seq)?;
            Ok(found.map_or(Stands::Poured, Stands::InLedger))
        };
        claim.rows.iter().map(stands).collect()
    }

    pub(super) fn find_charged(
        &self,
        limit: LimitId,
        at: Timestamp,
        seq: i64,
    ) -> Result<Option<Taken>, Error> {
        let read = |mut statement: CachedStatement<'_>| {
            let mut rows = statement.query((limit.0, at.as_nanos(), seq))?;
            rows.next()?.map(taken).transpose()
        };
        self.link
            .connection
            .prepare_cached(FIND_CHARGED)
            .and_then(read)
            .map_err(|error| self.sqlite(error))
    }
}

pub(super) fn taken(row: &SqlRow<'_>) -> rusqlite::Result<Taken> {
    Ok(Taken {
        limit: LimitId(row.get(0)?),
        at: Timestamp::from_nanos(row.get(1)?),
        seq: row.get(2)?,
        amount: row.get::<_, i64>(3)?.clamp(0, Total::MASK),
    })
}
