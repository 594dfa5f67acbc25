//! Buckets: when each is full again.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::{Full, LimitId, rescaled, spent};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limit::{Bucket, Limit};

const READ: &str = "SELECT full_ns, full_part, refill, refill_ns FROM bucket WHERE limit_id = ?1";

impl Transaction<'_> {
    /// When a bucket is full again, by what was poured out of it.
    pub(super) fn bucket_full_at(&mut self, limit: LimitId) -> Result<Option<Full>, Error> {
        if let Some(full) = self.link.memo.full_at(limit) {
            return Ok(full);
        }
        let row: Option<(i64, i64, i64, i64)> = self
            .link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([limit.0], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let full = match row {
            None => None,
            Some(row) => self.in_present_terms(limit, row)?,
        };
        self.link.memo.remember_full(limit, full);
        Ok(full)
    }

    /// What a row says, by the definition that is in force.
    fn in_present_terms(
        &mut self,
        limit: LimitId,
        (full_ns, full_part, refill, refill_ns): (i64, i64, i64, i64),
    ) -> Result<Option<Full>, Error> {
        let Some(known) = self.known_by_id(limit)? else {
            return Ok(None);
        };
        let Some(bucket) = known.limit.bucket() else {
            return Ok(None);
        };
        // Clamped, for the file may have been edited.
        let full = Full {
            at: Timestamp::from_nanos(full_ns),
            part: full_part.clamp(0, refill.saturating_sub(1).max(0)),
        };
        let former = bucket.refilling(refill, refill_ns);
        Ok(Some(if former == bucket {
            full
        } else {
            rescaled(former, bucket, full, known.changed)
        }))
    }
}

const WRITE: &str =
    "INSERT OR REPLACE INTO bucket (limit_id, full_ns, full_part, refill, refill_ns)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE_POURED: &str = "DELETE FROM charge WHERE limit_id = ?1 AND at_ns <= ?2";

impl Transaction<'_> {
    /// Pours out of a bucket what was booked for instants that have come, and changes what is left as is said: to
    /// nothing, if it is full.
    pub(super) fn pour(
        &mut self,
        limit: LimitId,
        bucket: Bucket,
        change: impl FnOnce(Option<Full>) -> Option<Full>,
    ) -> Result<(), Error> {
        let now = self.now();
        let stored = self.bucket_full_at(limit)?;
        let full = spent(self, limit, bucket, now)?;
        self.wrote();
        let key = (limit.0, now.as_nanos());
        if full != stored {
            self.link
                .connection
                .prepare_cached(DELETE_POURED)
                .and_then(|mut s| s.execute(key))
                .map_err(|error| self.sqlite(error))?;
            self.link.memo.changed(limit);
        }
        let changed = change(full);
        self.link.memo.remember_full(limit, changed);
        let Some(full) = changed else {
            return self.forget_bucket(limit);
        };
        let row = (
            limit.0,
            full.at.as_nanos(),
            full.part,
            bucket.refill().cast_signed(),
            bucket.per_ns(),
        );
        self.link
            .connection
            .prepare_cached(WRITE)
            .and_then(|mut s| s.execute(row))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    /// Pours out what was booked for instants that have come, if there is any.
    pub(super) fn sweep_bucket(&mut self, id: LimitId, limit: &Limit) -> Result<bool, Error> {
        let Some(bucket) = limit.bucket() else {
            return Ok(false);
        };
        let now = self.now();
        if spent(self, id, bucket, now)? != self.bucket_full_at(id)? {
            self.pour(id, bucket, |full| full)?;
        }
        Ok(true)
    }
}
