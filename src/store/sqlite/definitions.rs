//! Definitions of limits: looked up, made, replaced and removed while they are in use.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::memo::MOST;
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::definition::{
    Action, Author, Definition, Known, OnConflict, Use, check_replaceable, check_resolution,
    most_specific,
};
use crate::error::Error;
use crate::limit::{Limit, Pattern};
use crate::plan::Plan;
use crate::store::Few;
use crate::usage::Usage;

const WAITED_FOR: &str = "SELECT DISTINCT limit_id
    FROM ticket_take JOIN pattern_key USING (limit_id) WHERE pattern_id = ?1";

impl Transaction<'_> {
    pub(super) fn define(
        &mut self,
        limit: &Limit,
        conflict: OnConflict,
        author: &Author,
    ) -> Result<Definition, Error> {
        let Some(stored) = self.defined(limit.key())? else {
            // What was charged to a key by another pattern stays charged, and what is missing in its bucket
            // missing; what was taken of another kind says nothing of this one.
            let mut keys = self.keys_for(limit)?;
            let kind = limit.kind().as_str();
            for (key, former) in &keys {
                if former.limit.kind().as_str() != kind {
                    self.delete_key(*key)?;
                    self.give_up_ledger(*key)?;
                    continue;
                }
                check_resolution(&former.limit, limit, &self.place.database)?;
                if let Some(bucket) = former.limit.bucket() {
                    self.pour(*key, bucket, |poured| poured)?;
                }
            }
            keys.retain(|(_, former)| former.limit.kind().as_str() == kind);
            let id = match keys.first() {
                Some((key, _)) if !limit.is_pattern() => {
                    self.delete_key(*key)?;
                    *key
                }
                _ => self.next_limit()?,
            };
            self.write_definition(id, limit, false)?;
            self.changed_definitions();
            if limit.is_pattern() {
                for (key, _) in &keys {
                    self.bind_key(*key, id)?;
                }
            }
            self.note_change(limit, Action::Created, author)?;
            self.see_whether_lowered(id, limit)?;
            self.may_admit_more(id, limit)?;
            return Ok(Definition::Created);
        };
        if stored.limit == *limit {
            return Ok(Definition::Unchanged);
        }
        let former = stored.limit.clone();
        match conflict {
            OnConflict::Adopt => Ok(Definition::Adopted(former)),
            OnConflict::Fail => Err(Error::Conflict {
                stored: Box::new(former),
                given: Box::new(limit.clone()),
                file: self.place.database.clone(),
            }),
            OnConflict::Replace => {
                self.replace(&stored, limit, author)?;
                Ok(Definition::Replaced(former))
            }
        }
    }

    /// Puts a definition in the place of the one that is in force, for everybody.
    pub(super) fn replace(
        &mut self,
        stored: &Known,
        limit: &Limit,
        author: &Author,
    ) -> Result<(), Error> {
        check_replaceable(&stored.limit, limit, &self.place.database)?;
        if let Some(bucket) = stored.limit.bucket().filter(|_| !limit.is_pattern()) {
            self.pour(stored.id, bucket, |poured| poured)?;
        }
        self.write_definition(stored.id, limit, limit.is_pattern())?;
        self.changed_definitions();
        self.note_change(limit, Action::Replaced, author)?;
        if let Some(bucket) = limit.bucket().filter(|_| !limit.is_pattern()) {
            // What is missing in it is written down in the terms of the new one.
            self.pour(stored.id, bucket, |poured| poured)?;
        }
        self.see_whether_lowered(stored.id, limit)?;
        self.may_admit_more(stored.id, limit)
    }

    /// Says that something may have come free of a limit, or of those that a pattern makes, because it was changed.
    fn may_admit_more(&mut self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        if !limit.is_pattern() {
            self.freed(id);
            return Ok(());
        }
        let waited_for: Vec<LimitId> = self
            .link
            .connection
            .prepare_cached(WAITED_FOR)
            .and_then(|mut s| {
                s.query_map([id.0], |row| row.get(0).map(LimitId))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        for id in waited_for {
            self.freed(id);
        }
        Ok(())
    }

    /// Says so if more is in use than a new definition allows.
    fn see_whether_lowered(&mut self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        if limit.is_pattern() {
            return Ok(());
        }
        let now = self.now();
        if Usage::read(self, id, limit, now)?.is_over() {
            self.write_definition(id, limit, true)?;
            self.link.memo.forget_limits();
        }
        Ok(())
    }

    /// Removes a limit or a pattern, with all that was charged to it. An error if it is in use, unless it is forced.
    pub(super) fn remove(
        &mut self,
        key: &str,
        is_forced: bool,
        author: &Author,
    ) -> Result<Limit, Error> {
        let Some(stored) = self.defined(key)? else {
            return Err(self.unknown(key));
        };
        let in_use = self.in_use(&stored)?;
        if !is_forced && in_use.any() {
            return Err(Error::InUse {
                key: key.to_owned(),
                by: in_use,
                file: self.place.database.clone(),
            });
        }
        let in_vain = self.tickets_for(&stored)?;
        self.wait_in_vain(in_vain);
        self.take_slots_from_all(&stored)?;
        self.delete_definition(stored.id)?;
        self.give_up_ledger(stored.id)?;
        self.changed_definitions();
        self.note_change(&stored.limit, Action::Removed, author)?;
        self.freed(stored.id);
        Ok(stored.limit.clone())
    }

    /// The limit of `key`: its own definition, or what the most specific pattern makes of it.
    pub(super) fn known(&mut self, key: &str) -> Result<Arc<Known>, Error> {
        self.find(key)?.ok_or_else(|| self.unknown(key))
    }

    pub(super) fn unknown(&self, key: &str) -> Error {
        Error::UnknownLimit {
            key: key.to_owned(),
            file: self.place.database.clone(),
        }
    }

    /// The limits of a plan, in its order.
    pub(super) fn all_known(&mut self, plan: &Plan<'_>) -> Result<Few<Arc<Known>>, Error> {
        plan.takes().map(|(key, _)| self.known(key)).collect()
    }

    /// A limit by its number, if there still is one.
    pub(super) fn known_by_id(&mut self, id: LimitId) -> Result<Option<Arc<Known>>, Error> {
        if let Some(known) = self.link.memo.limit_by_id(id) {
            return Ok(Some(Arc::clone(known)));
        }
        if let Some(key) = self.key_of(id)? {
            let known = self.find(&key)?;
            return Ok(known.filter(|known| known.id == id));
        }
        let known = self
            .read_definition_from(id)?
            .filter(|known| known.id == id);
        Ok(known.map(|known| {
            let known = Arc::new(known);
            self.link.memo.remember_limit_by_id(&known);
            known
        }))
    }

    pub(super) fn find(&mut self, key: &str) -> Result<Option<Arc<Known>>, Error> {
        if let Some(known) = self.link.memo.limit(key) {
            return Ok(Some(Arc::clone(known)));
        }
        if self.may_be_plain(key)?
            && let Some(known) = self.read_definition(key)?
            && !known.limit.is_pattern()
        {
            return Ok(Some(self.remember(known)));
        }
        let Some(pattern) = self.most_specific(key)? else {
            return Ok(None);
        };
        let id = self.find_key(key, pattern.id)?.unwrap_or(LimitId::NONE);
        let known = Arc::new(pattern.applied_to(key, id));
        self.link.memo.remember_key(&known);
        Ok(Some(known))
    }

    /// Whether a key may be defined by itself. Where few are, all of them are remembered: most keys that are asked for
    /// are made by patterns where there are any.
    fn may_be_plain(&mut self, key: &str) -> Result<bool, Error> {
        if self.link.memo.plain_keys.is_none() {
            let keys = self.read_plain_keys()?;
            self.link.memo.plain_keys = Some(keys);
        }
        let keys = self.link.memo.plain_keys.as_ref();
        Ok(keys.is_none_or(|keys| keys.len() >= MOST || keys.contains(key)))
    }

    fn remember(&mut self, known: Known) -> Arc<Known> {
        let known = Arc::new(known);
        self.link.memo.remember_limit(&known);
        known
    }

    /// What is defined under this very text, limit or pattern.
    pub(super) fn defined(&mut self, text: &str) -> Result<Option<Known>, Error> {
        self.read_definition(text)
    }

    /// The pattern that counts for a key, if any matches.
    pub(super) fn most_specific(&mut self, key: &str) -> Result<Option<Arc<Known>>, Error> {
        if self.link.memo.patterns.is_none() {
            let patterns = self.read_patterns()?;
            self.link.memo.patterns = Some(patterns.known.into_iter().map(Arc::new).collect());
            self.link.memo.unreadable = patterns.unreadable;
        }
        let patterns = self.link.memo.patterns.as_deref().unwrap_or_default();
        let found = most_specific(patterns, key);
        for (text, error) in &self.link.memo.unreadable {
            let pattern = Pattern(text);
            let counts = found.is_none_or(|found| {
                pattern.cmp_specific(Pattern(found.limit.key())) == Ordering::Greater
            });
            if counts && pattern.matches(key) {
                return Err(Error::Definition {
                    key: text.clone(),
                    source: error.clone(),
                });
            }
        }
        Ok(found.cloned())
    }
}

const TAKE_SLOTS: &str = "DELETE FROM slot WHERE limit_id = ?1
    OR limit_id IN (SELECT limit_id FROM slot JOIN pattern_key USING (limit_id) WHERE pattern_id = ?1)";

impl Transaction<'_> {
    /// Lets nobody hold slots of a limit any more.
    pub(super) fn take_slots_from_all(&mut self, known: &Known) -> Result<(), Error> {
        if known.limit.slot_count().is_none() && known.limit.breaker_policy().is_none() {
            return Ok(());
        }
        self.wrote();
        self.link
            .connection
            .prepare_cached(TAKE_SLOTS)
            .and_then(|mut s| s.execute([known.id.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const PLAIN_KEYS: &str = "SELECT key FROM limit_definition WHERE NOT is_pattern";

impl Transaction<'_> {
    /// The keys of limits that are defined by themselves, or as many as are worth remembering.
    fn read_plain_keys(&self) -> Result<BTreeSet<Box<str>>, Error> {
        self.link
            .connection
            .prepare_cached(PLAIN_KEYS)
            .and_then(|mut s| s.query_map([], |row| row.get(0))?.take(MOST).collect())
            .map_err(|error| self.sqlite(error))
    }
}

const USE: &str = "SELECT
    (SELECT count(*) FROM slot
        WHERE limit_id = ?1 AND (expires_ns IS NULL OR expires_ns > ?2)),
    (SELECT count(*) FROM permit_charge JOIN permit USING (permit_id)
        WHERE limit_id = ?1 AND ended_ns IS NULL AND (expires_ns IS NULL OR expires_ns > ?2)),
    (SELECT count(*) FROM charge WHERE limit_id = ?1 AND at_ns > ?2),
    (SELECT count(*) FROM ticket_take WHERE limit_id = ?1),
    (SELECT count(*) FROM block WHERE limit_id = ?1 AND at_ns > ?2)";
const PATTERN_USE: &str = "SELECT
    (SELECT count(*) FROM slot JOIN pattern_key USING (limit_id)
        WHERE pattern_id = ?1 AND (expires_ns IS NULL OR expires_ns > ?2)),
    (SELECT count(*) FROM permit JOIN permit_charge USING (permit_id) JOIN pattern_key USING (limit_id)
        WHERE pattern_id = ?1 AND ended_ns IS NULL AND (expires_ns IS NULL OR expires_ns > ?2)),
    (SELECT count(*) FROM pattern_key JOIN charge USING (limit_id) WHERE pattern_id = ?1 AND at_ns > ?2),
    (SELECT count(*) FROM ticket_take JOIN pattern_key USING (limit_id) WHERE pattern_id = ?1),
    (SELECT count(*) FROM block JOIN pattern_key USING (limit_id) WHERE pattern_id = ?1 AND at_ns > ?2)";

const TICKETS: &str = "SELECT ticket_id FROM ticket_take WHERE limit_id = ?1";
const PATTERN_TICKETS: &str = "SELECT DISTINCT ticket_id
    FROM ticket_take JOIN pattern_key USING (limit_id) WHERE pattern_id = ?1";

impl Transaction<'_> {
    /// Who waits for a limit, or for one that this pattern makes.
    fn tickets_for(&self, known: &Known) -> Result<Few<i64>, Error> {
        let sql = if known.limit.is_pattern() {
            PATTERN_TICKETS
        } else {
            TICKETS
        };
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map([known.id.0], |row| row.get(0))?.collect())
            .map_err(|error| self.sqlite(error))
    }

    /// Who would notice if a limit were gone, as far as the file knows.
    fn in_use(&self, known: &Known) -> Result<Use, Error> {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let sql = if known.limit.is_pattern() {
            PATTERN_USE
        } else {
            USE
        };
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| {
                s.query_row((known.id.0, self.now().as_nanos()), |row| {
                    let blocks = count(row.get(4)?);
                    Ok(Use {
                        slots: count(row.get(0)?),
                        permits: count(row.get(1)?),
                        bookings: count(row.get(2)?).saturating_sub(blocks),
                        blocks,
                        waiting: count(row.get(3)?),
                    })
                })
            })
            .map_err(|error| self.sqlite(error))
    }
}
