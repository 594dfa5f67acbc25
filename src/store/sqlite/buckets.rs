//! Buckets: what was poured out of each.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::{Full, Ledgers, Level, LimitId, Poured, poured_until};
use crate::clock::Timestamp;
use crate::definition::Known;
use crate::error::Error;
use crate::limit::{Bucket, Limit};

const READ: &str = "SELECT full_ns, full_part, refill, refill_ns, written_ns, lows FROM bucket
    WHERE limit_id = ?1";

/// A row of `bucket`.
struct Row {
    full_ns: i64,
    full_part: i64,
    refill: i64,
    refill_ns: i64,
    written_ns: i64,
    lows: Vec<u8>,
}

impl Transaction<'_> {
    /// What was poured out of a bucket, as far as anybody has written it down.
    pub(super) fn poured(&mut self, limit: LimitId) -> Result<Option<Poured>, Error> {
        if let Some(poured) = self.link.memo.poured(limit) {
            return Ok(poured.cloned());
        }
        let row = self
            .link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([limit.0], |row| {
                    Ok(Row {
                        full_ns: row.get(0)?,
                        full_part: row.get(1)?,
                        refill: row.get(2)?,
                        refill_ns: row.get(3)?,
                        written_ns: row.get(4)?,
                        lows: row.get(5)?,
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let poured = self.in_present_terms(limit, row)?;
        self.link.memo.remember_poured(limit, poured.clone());
        Ok(poured)
    }

    pub(super) fn bucket_level(&mut self, limit: LimitId) -> Result<Option<Level>, Error> {
        if let Some(poured) = self.link.memo.poured(limit) {
            return Ok(poured.map(Poured::level));
        }
        Ok(self.poured(limit)?.as_ref().map(Poured::level))
    }

    /// What a row says, by the definition that is in force: through all those that were since it was written. What was booked
    /// for instants before the present one was poured out by those.
    fn in_present_terms(
        &mut self,
        limit: LimitId,
        row: Option<Row>,
    ) -> Result<Option<Poured>, Error> {
        let Some(known) = self.known_by_id(limit)? else {
            return Ok(None);
        };
        let Some(bucket) = known.limit.bucket() else {
            return Ok(None);
        };
        let mut written_ns = i64::MIN;
        let mut former = None;
        let mut poured = None;
        if let Some(row) = row {
            // Clamped, for the file may have been edited.
            let full = Full {
                at: Timestamp::from_nanos(row.full_ns),
                part: row.full_part.clamp(0, row.refill.saturating_sub(1).max(0)),
            };
            written_ns = row.written_ns;
            former = Some(bucket.refilling(row.refill, row.refill_ns));
            poured = Some(Poured::read(full, &row.lows));
        }
        let was_changed = known.changed.as_nanos() >= written_ns;
        let is_missing = poured.is_some() && (was_changed || former != Some(bucket));
        let first = Timestamp::from_nanos(i64::MIN);
        let is_booked = was_changed
            && self
                .first_after(limit, first)?
                .is_some_and(|charge| charge.at <= known.changed);
        if !is_missing && !is_booked {
            return Ok(poured);
        }
        let mut terms = Vec::new();
        if was_changed {
            terms = self.refills_since(&known, written_ns)?;
        }
        terms.push((
            known.changed,
            bucket.refill().cast_signed(),
            bucket.per_ns(),
        ));
        for (since, refill, refill_ns) in terms {
            let next = bucket.refilling(refill, refill_ns);
            // Nothing can have been booked before the first of them.
            let before = former.replace(next).unwrap_or(next);
            if is_booked {
                poured = poured_until(self, limit, before, poured, since)?;
            }
            if before != next {
                poured = poured.map(|poured| poured.rescaled(before, next, since));
            }
            if let Some(poured) = &mut poured {
                poured.through = is_booked.then_some(since);
            }
        }
        Ok(poured)
    }
}

const REFILLS_SINCE: &str = "SELECT since_ns, refill, refill_ns FROM refill
    WHERE limit_id = ?1 AND since_ns >= ?2 ORDER BY since_ns";
const LAST_REFILL: &str = "SELECT refill, refill_ns FROM refill
    WHERE limit_id = ?1 ORDER BY since_ns DESC LIMIT 1";
const WRITE_REFILL: &str = "INSERT OR REPLACE INTO refill (limit_id, since_ns, refill, refill_ns)
    VALUES (?1, ?2, ?3, ?4)";
const OLDEST_REFILLS: &str = "SELECT since_ns, refill, refill_ns FROM refill
    WHERE limit_id = ?1 ORDER BY since_ns LIMIT 2";
const COUNT_REFILLS: &str = "SELECT count(*) FROM refill WHERE limit_id = ?1";
const DELETE_REFILL: &str = "DELETE FROM refill WHERE limit_id = ?1 AND since_ns = ?2";

/// How many ways in which a bucket has refilled are remembered; of more, the oldest count as the slower ones of them.
const MOST_REFILLS: i64 = 256;

impl Transaction<'_> {
    /// How a bucket has refilled since an instant.
    fn refills_since(
        &self,
        known: &Known,
        written_ns: i64,
    ) -> Result<Vec<(Timestamp, i64, i64)>, Error> {
        let definition = known.pattern.unwrap_or(known.id);
        self.link
            .connection
            .prepare_cached(REFILLS_SINCE)
            .and_then(|mut s| {
                s.query_map((definition.0, written_ns), |row| {
                    Ok((Timestamp::from_nanos(row.get(0)?), row.get(1)?, row.get(2)?))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))
    }

    /// Says how a bucket, or those of a pattern, refill from now on.
    pub(super) fn write_refill(&self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        let Some(bucket) = limit.bucket() else {
            return Ok(());
        };
        let connection = self.link.connection;
        let now_ns = self.now().as_nanos();
        let present = (bucket.refill().cast_signed(), bucket.per_ns());
        let write = || -> rusqlite::Result<()> {
            let last: Option<(i64, i64)> = connection
                .prepare_cached(LAST_REFILL)?
                .query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if last == Some(present) {
                return Ok(());
            }
            let mut put = connection.prepare_cached(WRITE_REFILL)?;
            put.execute((id.0, now_ns, present.0, present.1))?;
            let count: i64 = connection
                .prepare_cached(COUNT_REFILLS)?
                .query_row([id.0], |row| row.get(0))?;
            if count <= MOST_REFILLS {
                return Ok(());
            }
            let oldest: Vec<(i64, i64, i64)> = connection
                .prepare_cached(OLDEST_REFILLS)?
                .query_map([id.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<rusqlite::Result<_>>()?;
            if let [first, second] = oldest[..] {
                let is_slower = i128::from(second.1) * i128::from(first.2)
                    < i128::from(first.1) * i128::from(second.2);
                let slower = if is_slower { second } else { first };
                connection
                    .prepare_cached(DELETE_REFILL)?
                    .execute((id.0, second.0))?;
                put.execute((id.0, first.0, slower.1, slower.2))?;
            }
            Ok(())
        };
        write().map_err(|error| self.sqlite(error))
    }
}

const WRITE: &str =
    "INSERT OR REPLACE INTO bucket (limit_id, full_ns, full_part, refill, refill_ns, written_ns, lows)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const DELETE_POURED: &str = "DELETE FROM charge WHERE limit_id = ?1 AND at_ns <= ?2";

impl Transaction<'_> {
    /// Pours out of a bucket what was booked for instants that have come, and changes what came of that as is said.
    pub(super) fn pour(
        &mut self,
        limit: LimitId,
        bucket: Bucket,
        change: impl FnOnce(Option<Poured>) -> Option<Poured>,
    ) -> Result<(), Error> {
        let now = self.now();
        let stored = self.poured(limit)?;
        let mut poured = poured_until(self, limit, bucket, stored.clone(), now)?;
        self.wrote();
        let through = poured.as_mut().and_then(|poured| poured.through.take());
        if through.is_some() || poured != stored {
            self.link
                .connection
                .prepare_cached(DELETE_POURED)
                .and_then(|mut s| s.execute((limit.0, now.as_nanos())))
                .map_err(|error| self.sqlite(error))?;
            self.link.memo.changed(limit);
        }
        let changed = change(poured);
        if let Some(poured) = &changed {
            let row = (
                limit.0,
                poured.full.at.as_nanos(),
                poured.full.part,
                bucket.refill().cast_signed(),
                bucket.per_ns(),
                now.as_nanos(),
                poured.lows_to_bytes(),
            );
            self.link
                .connection
                .prepare_cached(WRITE)
                .and_then(|mut s| s.execute(row))
                .map_err(|error| self.sqlite(error))?;
        }
        self.link.memo.remember_poured(limit, changed);
        Ok(())
    }

    /// Pours out what was booked for instants that have come, if there is any.
    pub(super) fn sweep_bucket(&mut self, id: LimitId, limit: &Limit) -> Result<bool, Error> {
        let Some(bucket) = limit.bucket() else {
            return Ok(false);
        };
        let now = self.now();
        let stored = self.poured(id)?;
        let is_in_ledger = stored
            .as_ref()
            .is_some_and(|poured| poured.through.is_some());
        if is_in_ledger || poured_until(self, id, bucket, stored.clone(), now)? != stored {
            self.pour(id, bucket, |poured| poured)?;
        }
        Ok(true)
    }
}
