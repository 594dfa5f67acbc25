//! Making a file small while it is in use: all that sweeping would remove in time, a few milliseconds at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::OptionalExtension;

use super::SqliteStore;
use super::connection::Deadline;
use super::session::Session;
use super::transaction::{Access, Transaction};
use crate::calendar::LimitId;
use crate::error::Error;
use crate::store::Compacted;

/// For how long one transaction goes on. Others have their turns in between.
const STEP: Duration = Duration::from_millis(2);

/// What deletes as many rows at a time has more to delete.
const BATCH: u64 = 256;

/// For how long the WAL is tried to be cut, should somebody be in the way.
const PATIENCE: Duration = Duration::from_millis(500);

impl SqliteStore {
    pub(super) fn compact_file(&self) -> Result<Compacted, Error> {
        let session = self.session(self.deadline())?;
        let before_bytes = self.bytes();
        let mut deleted = 0;
        let mut next = Some(Part::Definitions(LimitId(0)));
        while let Some(part) = next {
            let swept;
            (next, swept) = self.write(&session, |transaction| transaction.compact(part))?;
            deleted += swept;
        }
        let wal_is_cut = self.cut_wal(&session)?;
        Ok(Compacted {
            before_bytes,
            after_bytes: self.bytes(),
            deleted,
            wal_is_cut,
        })
    }

    /// How large the database and its WAL are.
    fn bytes(&self) -> u64 {
        let length = |path: &Path| path.symlink_metadata().map_or(0, |found| found.len());
        length(&self.place.database) + length(&self.place.wal)
    }

    /// Copies all of the WAL and makes it empty, unless somebody reads in it.
    fn cut_wal(&self, session: &Session) -> Result<bool, Error> {
        let deadline = Deadline::after(PATIENCE);
        let _lead = self.lead(session, Access::Look, self.deadline())?;
        let Some(_call) = session.call() else {
            return Err(self.place.moved());
        };
        let link = session.link(Access::Look, &self.place, self.deadline())?;
        Ok(session
            .checkpoints
            .cut(&link.connection, &session.watch, deadline.at))
    }
}

/// What is looked at next.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The ledgers of the definitions after this one.
    Definitions(LimitId),
    /// Those of the keys after this one.
    Keys(LimitId),
    /// Those that were removed.
    Removed,
    Permits,
    Pages,
}

impl Transaction<'_> {
    /// Sweeps for a while. Returns where to go on, if there is more, and how many rows were deleted.
    fn compact(&mut self, mut part: Part) -> Result<(Option<Part>, u64), Error> {
        let until = Instant::now() + STEP;
        let before = self.link.connection.total_changes();
        loop {
            let next = self.compact_one(part)?;
            let deleted = self.link.connection.total_changes() - before;
            match next {
                Some(next) if Instant::now() < until => part = next,
                next => return Ok((next, deleted)),
            }
        }
    }

    fn compact_one(&mut self, part: Part) -> Result<Option<Part>, Error> {
        let before = self.link.connection.total_changes();
        let next = match part {
            Part::Definitions(after) => {
                let Some(id) = self.definition_after(after)? else {
                    return Ok(Some(Part::Keys(LimitId(0))));
                };
                match self.read_definition_from(id) {
                    Ok(Some(known)) if known.id == id => self.sweep_ledger(id, &known.limit)?,
                    // One that this program cannot read is swept by those that can, if there are any.
                    Ok(_) | Err(Error::Definition { .. } | Error::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
                Part::Definitions(id)
            }
            Part::Keys(after) => {
                let Some((id, key, pattern)) = self.key_after(after)? else {
                    return Ok(Some(Part::Removed));
                };
                match self.sweep_key(id, &key, pattern) {
                    Ok(_) | Err(Error::Definition { .. } | Error::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
                Part::Keys(id)
            }
            Part::Removed => {
                self.sweep_removed()?;
                let is_done = self.link.connection.total_changes() == before;
                return Ok(Some(if is_done { Part::Permits } else { part }));
            }
            Part::Permits => {
                self.sweep_permits()?;
                self.sweep_provisional()?;
                Part::Pages
            }
            Part::Pages => return Ok(self.return_some_pages()?.then_some(part)),
        };
        let deleted = self.link.connection.total_changes() - before;
        Ok(Some(if deleted >= BATCH { part } else { next }))
    }
}

const DEFINITION_AFTER: &str = "SELECT limit_id FROM limit_definition
    WHERE limit_id > ?1 AND NOT is_pattern ORDER BY limit_id LIMIT 1";
const KEY_AFTER: &str = "SELECT limit_id, key, pattern_id FROM pattern_key
    WHERE limit_id > ?1 ORDER BY limit_id LIMIT 1";

impl Transaction<'_> {
    fn definition_after(&self, after: LimitId) -> Result<Option<LimitId>, Error> {
        self.link
            .connection
            .prepare_cached(DEFINITION_AFTER)
            .and_then(|mut s| {
                s.query_row([after.0], |row| row.get(0).map(LimitId))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))
    }

    fn key_after(&self, after: LimitId) -> Result<Option<(LimitId, String, LimitId)>, Error> {
        self.link
            .connection
            .prepare_cached(KEY_AFTER)
            .and_then(|mut s| {
                s.query_row([after.0], |row| {
                    Ok((LimitId(row.get(0)?), row.get(1)?, LimitId(row.get(2)?)))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

/// So few, that a slow disk is noticed soon.
const PAGES_AT_ONCE: i64 = 16;

impl Transaction<'_> {
    /// Gives a few free pages back to the filesystem. False if there are none.
    fn return_some_pages(&mut self) -> Result<bool, Error> {
        let free = self.free_pages()?;
        if free > 0 {
            self.return_so_many(free.min(PAGES_AT_ONCE))?;
        }
        Ok(self.free_pages()? < free)
    }
}
