//! By how much estimates are off, by definition: keys that a pattern matches share what is learned for it, and none of
//! them is kept because of that.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::definition::Known;
use crate::error::Error;
use crate::estimate::Learned;

const READ: &str =
    "SELECT calls, estimated_thousandths, used_thousandths FROM estimate WHERE limit_id = ?1";

impl Transaction<'_> {
    /// What was learned for the definition of a limit.
    pub(super) fn learned(&self, known: &Known) -> Result<Option<Learned>, Error> {
        self.link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([known.definition_id().0], |row| {
                    Ok(Learned::stored(row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const WRITE: &str =
    "INSERT OR REPLACE INTO estimate (limit_id, calls, estimated_thousandths, used_thousandths)
    VALUES (?1, ?2, ?3, ?4)";

impl Transaction<'_> {
    /// Learns from what one call has used.
    pub(super) fn learn(&mut self, known: &Known, estimated: u64, used: u64) -> Result<(), Error> {
        let learned = Learned::after(self.learned(known)?, estimated, used);
        let (calls, estimated, used) = learned.to_stored();
        self.wrote();
        self.link
            .connection
            .prepare_cached(WRITE)
            .and_then(|mut s| s.execute((known.definition_id().0, calls, estimated, used)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const KEEP: &str = "UPDATE estimate SET limit_id = ?2 WHERE limit_id = ?1";

impl Transaction<'_> {
    /// Lets what was learned for a definition count for the one in its place.
    pub(super) fn keep_learned(&self, former: LimitId, definition: LimitId) -> Result<(), Error> {
        self.link
            .connection
            .prepare_cached(KEEP)
            .and_then(|mut s| s.execute((former.0, definition.0)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const DELETE: &str = "DELETE FROM estimate WHERE limit_id = ?1";

impl Transaction<'_> {
    /// Forgets what was learned for a definition that is removed.
    pub(super) fn forget_learned(&self, definition: LimitId) -> Result<(), Error> {
        self.link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute([definition.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}
