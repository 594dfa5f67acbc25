//! Keys that match a pattern: each gets a ledger when something is first charged to it, and loses it when it is idle.

use std::cmp::Ordering;
use std::sync::Arc;

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::{LimitId, Line};
use crate::definition::Known;
use crate::error::Error;
use crate::limit::{Limit, Pattern};

const FIND: &str = "SELECT limit_id FROM pattern_key WHERE key = ?1 AND pattern_id = ?2";
const KEY_OF: &str = "SELECT key FROM pattern_key WHERE limit_id = ?1";
const INSERT: &str = "INSERT INTO pattern_key (limit_id, key, pattern_id) VALUES (?1, ?2, ?3)";
const DELETE: &str = "DELETE FROM pattern_key WHERE limit_id = ?1";

impl Transaction<'_> {
    /// The number of the ledger that a key has by the pattern that counts for it, if it has one.
    pub(super) fn find_key(&self, key: &str, pattern: LimitId) -> Result<Option<LimitId>, Error> {
        self.link
            .connection
            .prepare_cached(FIND)
            .and_then(|mut s| {
                s.query_row((key, pattern.0), |row| row.get(0).map(LimitId))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))
    }

    pub(super) fn key_of(&self, id: LimitId) -> Result<Option<String>, Error> {
        self.link
            .connection
            .prepare_cached(KEY_OF)
            .and_then(|mut s| s.query_row([id.0], |row| row.get(0)).optional())
            .map_err(|error| self.sqlite(error))
    }

    /// Gives ledgers to the keys of a request that have none yet.
    pub(super) fn open_ledgers(&mut self, lines: &mut [Line<'_>]) -> Result<(), Error> {
        for line in lines {
            if line.id == LimitId::NONE {
                line.id = self.open_ledger(line.limit.key())?;
            }
        }
        Ok(())
    }

    /// Gives a ledger to a key that matches a pattern.
    pub(super) fn open_ledger(&mut self, key: &str) -> Result<LimitId, Error> {
        let Some(pattern) = self.most_specific(key)? else {
            return Err(self.place.damaged("a pattern is gone that was just there"));
        };
        let id = self.next_limit()?;
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut s| s.execute((id.0, key, pattern.id.0)))
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.forget_key(key);
        Ok(id)
    }

    /// Lets a key have no ledger of its own any more.
    pub(super) fn delete_key(&mut self, id: LimitId) -> Result<(), Error> {
        self.wrote();
        self.link.memo.forget_keys();
        self.link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute([id.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const KEYS_FROM: &str = "SELECT limit_id, key, pattern_id FROM pattern_key
    WHERE limit_id > ?1 ORDER BY limit_id";
const IS_NEEDED: &str = "SELECT
    EXISTS (SELECT 1 FROM slot WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM ticket_take WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM permit_charge WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM debt WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM pause WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM strike WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM breaker WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM outcome WHERE limit_id = ?1)
    OR EXISTS (SELECT 1 FROM charge WHERE limit_id = ?1)";

/// How many keys one sweep looks at: few while all are in use, and more than one process can have added since it last
/// swept while they are not.
pub(super) const FEWEST_KEYS: usize = 4;
pub(super) const MOST_KEYS: usize = 256;

/// How many rows one sweep of keys deletes, and those of one key more.
const MOST_DELETED: u64 = 2_048;

/// Where the sweep of keys goes on, and with how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyTurn {
    pub(super) after: LimitId,
    pub(super) count: usize,
}

impl KeyTurn {
    /// Goes on behind the next key, which this program cannot read.
    pub(super) fn skipped(self) -> Self {
        Self {
            after: LimitId(self.after.0.saturating_add(1)),
            count: FEWEST_KEYS,
        }
    }
}

impl Transaction<'_> {
    /// Looks at the next few keys after a turn, and takes their ledgers from those that are idle. Returns where to go
    /// on: with more keys, if most of these were.
    pub(super) fn sweep_keys(&mut self, turn: KeyTurn) -> Result<KeyTurn, Error> {
        let keys: Vec<(LimitId, String, LimitId)> = self
            .link
            .connection
            .prepare_cached(KEYS_FROM)
            .and_then(|mut s| {
                s.query_map([turn.after.0], |row| {
                    Ok((LimitId(row.get(0)?), row.get(1)?, LimitId(row.get(2)?)))
                })?
                .take(turn.count)
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let mut idle = 0;
        let mut last = None;
        let before = self.link.connection.total_changes();
        for (id, key, pattern) in &keys {
            idle += usize::from(self.sweep_key(*id, key, *pattern)?);
            last = Some(*id);
            // Some of them may have much to delete.
            if self.link.connection.total_changes() - before > MOST_DELETED {
                break;
            }
        }
        Ok(KeyTurn {
            after: match (last, keys.last()) {
                (Some(last), Some((end, ..))) if last != *end || keys.len() == turn.count => last,
                _ => LimitId(0),
            },
            count: if idle * 2 > keys.len() {
                (turn.count * 2).min(MOST_KEYS)
            } else if idle == 0 {
                (turn.count / 2).max(FEWEST_KEYS)
            } else {
                turn.count
            },
        })
    }

    /// True if the key was idle and is gone.
    pub(super) fn sweep_key(
        &mut self,
        id: LimitId,
        key: &str,
        pattern: LimitId,
    ) -> Result<bool, Error> {
        match self.most_specific(key)? {
            Some(known) if known.id == pattern => {
                self.sweep_ledger(id, &known.limit)?;
                // By the definition that is in force: what stands there may be in the terms of another.
                let now = self.now();
                if self
                    .bucket_level(id)?
                    .is_some_and(|level| level.full.at >= now)
                {
                    return Ok(false);
                }
            }
            // Its pattern was removed, and nobody asks for this ledger any more.
            _ => {
                if !self.empty_ledger(id)? {
                    return Ok(false);
                }
                self.delete_key(id)?;
                self.give_up_ledger(id)?;
                self.execute_for(MARK_EMPTY, id)?;
                return Ok(true);
            }
        }
        let is_needed: bool = self
            .link
            .connection
            .prepare_cached(IS_NEEDED)
            .and_then(|mut s| s.query_row([id.0], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        if is_needed {
            return Ok(false);
        }
        self.empty_ledger(id)?;
        self.delete_key(id)?;
        Ok(true)
    }
}

// Every key that matches begins as the pattern does, up to its first star.
const KEYS_THAT_BEGIN: &str = "SELECT limit_id, key, pattern_id FROM pattern_key
    WHERE key >= ?1 AND key <= ?1 || char(1114111)";
const REBIND: &str = "UPDATE pattern_key SET pattern_id = ?2 WHERE limit_id = ?1";

impl Transaction<'_> {
    /// The ledgers of keys for which a definition will count once it is made, and what counts for them until
    /// then. For a pattern, this looks at all keys in use that begin as it does.
    pub(super) fn keys_for(&mut self, limit: &Limit) -> Result<Vec<(LimitId, Arc<Known>)>, Error> {
        if !limit.is_pattern() {
            let Some(former) = self.most_specific(limit.key())? else {
                return Ok(Vec::new());
            };
            let id = self.find_key(limit.key(), former.id)?;
            return Ok(id.map(|id| (id, former)).into_iter().collect());
        }
        let start = limit.key().split('*').next().unwrap_or_default();
        let keys: Vec<(LimitId, String, LimitId)> = self
            .link
            .connection
            .prepare_cached(KEYS_THAT_BEGIN)
            .and_then(|mut s| {
                s.query_map([start], |row| {
                    Ok((LimitId(row.get(0)?), row.get(1)?, LimitId(row.get(2)?)))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let new = Pattern(limit.key());
        let mut taken = Vec::new();
        for (id, key, bound_to) in keys {
            let former = self.most_specific(&key)?.filter(|former| {
                let beats = new.cmp_specific(Pattern(former.limit.key())) == Ordering::Greater;
                former.id == bound_to && beats && new.matches(&key)
            });
            taken.extend(former.map(|former| (id, former)));
        }
        Ok(taken)
    }

    /// Lets another pattern count for the ledger of a key.
    pub(super) fn bind_key(&mut self, id: LimitId, pattern: LimitId) -> Result<(), Error> {
        self.wrote();
        self.link.memo.forget_keys();
        self.link
            .connection
            .prepare_cached(REBIND)
            .and_then(|mut s| s.execute((id.0, pattern.0)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const GIVE_UP: &str = "INSERT OR IGNORE INTO removed_ledger (limit_id) VALUES (?1)";
const IS_REMOVED: &str = "SELECT EXISTS (SELECT 1 FROM removed_ledger WHERE limit_id = ?1)";
const NEXT_REMOVED: &str = "SELECT limit_id FROM removed_ledger WHERE NOT is_empty LIMIT 1";
const MARK_EMPTY: &str = "UPDATE removed_ledger SET is_empty = 1 WHERE limit_id = ?1";
// As many as `REMOVED_REMEMBERED`.
const FORGET_REMOVED: &str = "DELETE FROM removed_ledger WHERE is_empty AND limit_id <= (
        SELECT limit_id FROM removed_ledger ORDER BY limit_id DESC LIMIT 1 OFFSET 4096
    )";
const GIVE_BACK_SLOTS: &str = "DELETE FROM slot WHERE limit_id = ?1";
const FORGET_DEBT: &str = "DELETE FROM debt WHERE limit_id = ?1";
const FORGET_BUCKET: &str = "DELETE FROM bucket WHERE limit_id = ?1";
const FORGET_BLOCKS: &str = "DELETE FROM block WHERE limit_id = ?1";
const FORGET_SHIFTS: &str = "DELETE FROM correction WHERE limit_id = ?1";
// As many as a sweep of a limit that is in use.
const EMPTY: &str = "DELETE FROM charge
    WHERE (limit_id, at_ns, seq) IN (
        SELECT limit_id, at_ns, seq FROM charge WHERE limit_id = ?1 ORDER BY at_ns, seq LIMIT 256
    )";

impl Transaction<'_> {
    /// Leaves the ledger of a limit that is no more to whoever sweeps.
    pub(super) fn give_up_ledger(&mut self, id: LimitId) -> Result<(), Error> {
        self.wrote();
        self.execute_for(GIVE_UP, id)?;
        self.link
            .connection
            .prepare_cached(FORGET_REMOVED)
            .and_then(|mut s| s.execute([]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    /// Whether a ledger is one of those that were removed last.
    pub(super) fn is_removed(&self, id: LimitId) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(IS_REMOVED)
            .and_then(|mut s| s.query_row([id.0], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    /// Deletes a few charges of the next limit that was removed.
    pub(super) fn sweep_removed(&mut self) -> Result<(), Error> {
        let next = self
            .link
            .connection
            .prepare_cached(NEXT_REMOVED)
            .and_then(|mut s| s.query_row([], |row| row.get(0).map(LimitId)).optional())
            .map_err(|error| self.sqlite(error))?;
        if let Some(id) = next
            && self.empty_ledger(id)?
        {
            self.execute_for(MARK_EMPTY, id)?;
        }
        Ok(())
    }

    /// Deletes a few charges of a limit, and what else there is of it. True if nothing is left.
    fn empty_ledger(&mut self, id: LimitId) -> Result<bool, Error> {
        self.wrote();
        self.link.memo.changed(id);
        self.link.memo.forget_blocks(id);
        let deleted = self.execute_for(EMPTY, id)?;
        self.sweep_shifts(id)?;
        if deleted == 256 {
            return Ok(false);
        }
        for sql in [
            GIVE_BACK_SLOTS,
            FORGET_DEBT,
            FORGET_BUCKET,
            FORGET_BLOCKS,
            FORGET_SHIFTS,
        ] {
            self.execute_for(sql, id)?;
        }
        self.forget_strikes(id)?;
        self.forget_breaker(id)?;
        self.link.memo.shifts_are_gone(id);
        Ok(true)
    }

    fn execute_for(&self, sql: &str, id: LimitId) -> Result<usize, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.execute([id.0]))
            .map_err(|error| self.sqlite(error))
    }
}
