//! Definitions of limits, in memory.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::{PLACE, State, unknown};
use crate::adaptive::{Adapted, Adaptive};
use crate::calendar::{self, LimitId, Line};
use crate::clock::Timestamp;
use crate::definition::{
    Action, Author, Definition, Known, LimitChange, OnConflict, Use, check_replaceable,
    check_resolution, most_specific,
};
use crate::error::Error;
use crate::limit::{Bucket, Limit, Pattern};
use crate::store::{REMOVED_REMEMBERED, Row};
use crate::usage::Usage;

/// How many keys one acquisition looks at, whether they are idle.
const KEYS_SWEPT: usize = 4;

/// All definitions, and the ledgers of keys that match patterns.
#[derive(Debug, Default)]
pub(super) struct Limits {
    defined: BTreeMap<Arc<str>, Arc<Known>>,
    patterns: Vec<Arc<Known>>,
    keys: HashMap<Arc<str>, LimitId>,
    /// The keys that have ledgers, by the numbers of these.
    by_number: BTreeMap<LimitId, Arc<str>>,
    /// The last number that was given to a limit.
    last: i64,
    /// The key that was last looked at, whether it is idle.
    swept: i64,
    changes: HashMap<Arc<str>, VecDeque<LimitChange>>,
    /// The numbers of the ledgers that were removed last.
    removed: BTreeSet<LimitId>,
}

impl Limits {
    /// What is defined under this very text, limit or pattern.
    pub(super) fn defined(&self, text: &str) -> Option<&Arc<Known>> {
        self.defined.get(text)
    }

    /// The limit of a key: its own definition, or what the most specific pattern makes of it.
    pub(super) fn find(&self, key: &str) -> Option<Arc<Known>> {
        if let Some(known) = self.defined(key).filter(|known| !known.limit.is_pattern()) {
            return Some(Arc::clone(known));
        }
        let pattern = self.pattern_of(key)?;
        let id = self.keys.get(key).copied().unwrap_or(LimitId::NONE);
        Some(Arc::new(pattern.applied_to(key, id)))
    }

    /// The limit that has this ledger.
    pub(super) fn by_id(&self, id: LimitId) -> Option<Arc<Known>> {
        if let Some(key) = self.by_number.get(&id) {
            return self.find(key);
        }
        self.defined.values().find(|known| known.id == id).cloned()
    }

    /// Whether the ledger of a key that matches a pattern may have been closed because nothing was left in it: as long
    /// as the pattern is in force, it is the same for whatever definition counts for the key now.
    pub(super) fn may_be_closed(&self, row: &Row) -> bool {
        let mut patterns = self.patterns.iter();
        let is_in_force = patterns.any(|pattern| Some(pattern.id) == row.pattern);
        is_in_force && !self.removed.contains(&row.limit)
    }

    /// Puts a definition under another number, so that nothing that was charged counts for it.
    pub(super) fn renumber(&mut self, known: &Known) -> LimitId {
        let id = self.next();
        self.patterns.retain(|pattern| pattern.id != known.id);
        self.remember_removed(known.id);
        self.put(Known {
            id,
            was_lowered: false,
            ..known.clone()
        });
        id
    }

    fn remember_removed(&mut self, id: LimitId) {
        self.removed.insert(id);
        if self.removed.len() > REMOVED_REMEMBERED {
            self.removed.pop_first();
        }
    }

    /// The most specific pattern that matches a key.
    fn pattern_of(&self, key: &str) -> Option<&Arc<Known>> {
        most_specific(&self.patterns, key)
    }

    pub(super) fn all(&self) -> Vec<Limit> {
        let all = self.defined.values();
        all.map(|known| known.limit.clone()).collect()
    }

    pub(super) fn changes_of(&self, key: &str) -> Vec<LimitChange> {
        let changes = self.changes.get(key).into_iter().flatten();
        changes.rev().cloned().collect()
    }

    fn next(&mut self) -> LimitId {
        self.last += 1;
        LimitId(self.last)
    }

    fn open_ledger(&mut self, key: &Arc<str>) -> LimitId {
        let id = self.next();
        self.keys.insert(Arc::clone(key), id);
        self.by_number.insert(id, Arc::clone(key));
        id
    }

    fn close_ledger(&mut self, id: LimitId) {
        if let Some(key) = self.by_number.remove(&id) {
            self.keys.remove(&key);
        }
    }

    fn put(&mut self, known: Known) {
        let key = Arc::clone(known.limit.shared_key());
        let known = Arc::new(known);
        self.patterns.retain(|pattern| pattern.id != known.id);
        if known.limit.is_pattern() {
            self.patterns.push(Arc::clone(&known));
        }
        self.defined.insert(key, known);
    }

    pub(super) fn note(&mut self, limit: &Limit, action: Action, at: Timestamp) {
        let Author { pid, program } = Author::this_process();
        let key = Arc::clone(limit.shared_key());
        let changes = self.changes.entry(key).or_default();
        changes.push_back(LimitChange {
            at,
            action,
            pid,
            program,
            definition: limit.as_given().to_string(),
        });
        if changes.len() > LimitChange::KEPT {
            changes.pop_front();
        }
    }
}

impl State {
    /// Defines limits, all of them or none.
    pub(super) fn define_all(
        &mut self,
        limits: &[Limit],
        conflict: OnConflict,
    ) -> Result<Vec<Definition>, Error> {
        // Whether one of them stands in the way of all is seen before anything is changed.
        let mut planned = BTreeMap::<&str, &Limit>::new();
        for limit in limits {
            let stored = self.limits.defined(limit.key()).map(|known| &known.limit);
            let stored = planned.get(limit.key()).copied().or(stored);
            match (stored.filter(|stored| *stored != limit), conflict) {
                (Some(stored), OnConflict::Fail) => {
                    return Err(Error::Conflict {
                        stored: Box::new(stored.clone()),
                        given: Box::new(limit.clone()),
                        file: PLACE.into(),
                    });
                }
                (Some(stored), OnConflict::Replace) => {
                    check_replaceable(stored, limit, Path::new(PLACE))?;
                }
                (Some(_), OnConflict::Adopt) => continue,
                (None, _) => self.check_taken_over(limit, &planned)?,
            }
            planned.insert(limit.key(), limit);
        }
        let defined = limits.iter().map(|limit| self.define(limit, conflict));
        let defined = defined.collect();
        self.tell_those_in_line();
        Ok(defined)
    }

    /// Refuses a definition for which keys would count that have merged more coarsely what was charged to them, by the
    /// patterns that will be there then.
    fn check_taken_over(
        &self,
        limit: &Limit,
        planned: &BTreeMap<&str, &Limit>,
    ) -> Result<(), Error> {
        let stored = self.limits.patterns.iter().map(|known| &known.limit);
        let stored = stored.filter(|stored| !planned.contains_key(stored.key()));
        let new = planned.values().copied();
        let patterns: Vec<&Limit> = stored
            .chain(new.filter(|limit| limit.is_pattern()))
            .collect();
        let specific = |a: &Limit, b: &Limit| Pattern(a.key()).cmp_specific(Pattern(b.key()));
        let is_taken = |key: &str| planned.get(key).is_some_and(|limit| !limit.is_pattern());
        for key in self.limits.keys.keys().filter(|key| !is_taken(key)) {
            let matching = patterns
                .iter()
                .filter(|other| Pattern(other.key()).matches(key));
            let Some(former) = matching.max_by(|a, b| specific(a, b)) else {
                continue;
            };
            let is_its = if limit.is_pattern() {
                Pattern(limit.key()).matches(key) && specific(limit, former) == Ordering::Greater
            } else {
                **key == *limit.key()
            };
            if is_its && former.kind().as_str() == limit.kind().as_str() {
                check_resolution(former, limit, Path::new(PLACE))?;
            }
        }
        Ok(())
    }

    fn define(&mut self, limit: &Limit, conflict: OnConflict) -> Definition {
        let Some(stored) = self.limits.defined(limit.key()).cloned() else {
            // What was charged to the keys by another pattern stays charged, and what is missing in their
            // buckets missing.
            self.close_ledgers_of_another_kind(limit);
            let former = self.buckets_taken_over_by(limit);
            let id = match self.limits.keys.get(limit.key()).copied() {
                Some(id) if !limit.is_pattern() => {
                    self.limits.close_ledger(id);
                    id
                }
                _ => self.limits.next(),
            };
            for (id, former) in former {
                if let Some(bucket) = limit.bucket() {
                    self.rescale(id, former, bucket);
                }
            }
            self.put(id, limit, Action::Created);
            return Definition::Created;
        };
        if stored.limit == *limit {
            return Definition::Unchanged;
        }
        let former = stored.limit.clone();
        if conflict == OnConflict::Adopt {
            return Definition::Adopted(former);
        }
        self.replace(&stored, limit);
        Definition::Replaced(former)
    }

    /// Puts a definition in the place of another, if that is the one in force.
    pub(super) fn replace_if(&mut self, stored: &Limit, limit: &Limit) -> Result<bool, Error> {
        let Some(known) = self.limits.defined(stored.key()).cloned() else {
            return Err(unknown(stored.key()));
        };
        let still_stands = known.limit == *stored;
        if still_stands && known.limit != *limit {
            check_replaceable(&known.limit, limit, Path::new(PLACE))?;
            self.replace(&known, limit);
            self.tell_those_in_line();
        }
        Ok(still_stands)
    }

    /// Lets a rate follow an answer. Returns the limit if it is another now.
    pub(super) fn adapt(
        &mut self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
    ) -> Result<Option<Limit>, Error> {
        let Some(known) = self.limits.defined(key).cloned() else {
            return Err(unknown(key));
        };
        let last = self.ledgers.adapted.get(&known.id).copied();
        let last = last.unwrap_or(Adapted::NEVER);
        let now = self.ledgers.now;
        let adapted = adaptive.adapt(&known.limit, last, (was_refused, now), |rate| {
            let usage = calendar::usage(&mut self.ledgers, known.id, &known.limit, rate, now);
            usage.map(|usage| usage.used)
        });
        let Ok(Some((adapted, rate))) = adapted else {
            return Ok(None);
        };
        self.ledgers.adapted.insert(known.id, adapted);
        let Some(rate) = rate else {
            return Ok(None);
        };
        let limit: Limit = known.limit.to_builder().set_rate(rate).try_into()?;
        self.replace(&known, &limit);
        self.tell_those_in_line();
        Ok(Some(limit))
    }

    fn replace(&mut self, stored: &Known, limit: &Limit) {
        if let (Some(former), Some(bucket)) = (stored.limit.bucket(), limit.bucket()) {
            for id in self.ledgers_of(stored) {
                self.rescale(id, former, bucket);
            }
        }
        self.put(stored.id, limit, Action::Replaced);
    }

    /// What was taken of another kind says nothing of this one.
    fn close_ledgers_of_another_kind(&mut self, limit: &Limit) {
        let taken = self.taken_over_by(limit).into_iter();
        let is_other = |former: &Known| former.limit.kind().as_str() != limit.kind().as_str();
        let other = taken.filter(|(_, former)| is_other(former));
        let ids: Vec<LimitId> = other.map(|(id, _)| id).collect();
        for id in ids {
            self.give_up_ledger(id);
        }
    }

    /// The ledgers of buckets for which a new definition will count, and what they are until then.
    fn buckets_taken_over_by(&self, limit: &Limit) -> Vec<(LimitId, Bucket)> {
        let taken = self.taken_over_by(limit).into_iter();
        let buckets = taken.filter_map(|(id, former)| Some((id, former.limit.bucket()?)));
        buckets.collect()
    }

    /// The ledgers of keys for which a new definition will count, and what does until then.
    fn taken_over_by(&self, limit: &Limit) -> Vec<(LimitId, Arc<Known>)> {
        let will_be_its = |key: &str| {
            let (new, pattern) = (Pattern(limit.key()), self.limits.pattern_of(key));
            let beats = |former: &Arc<Known>| {
                new.cmp_specific(Pattern(former.limit.key())) == Ordering::Greater
            };
            if limit.is_pattern() {
                new.matches(key) && pattern.is_some_and(beats)
            } else {
                key == limit.key()
            }
        };
        let taken = self.limits.keys.iter().filter(|(key, _)| will_be_its(key));
        let former =
            taken.filter_map(|(key, id)| Some((*id, self.limits.pattern_of(key)?.clone())));
        former.collect()
    }

    /// The ledgers that a definition is in force for.
    pub(super) fn ledgers_of(&self, known: &Known) -> Vec<LimitId> {
        if !known.limit.is_pattern() {
            return vec![known.id];
        }
        let is_its = |key: &&Arc<str>| {
            let found = self.limits.find(key);
            found.is_some_and(|found| found.pattern == Some(known.id))
        };
        let keys = self.limits.keys.keys().filter(is_its);
        keys.filter_map(|key| self.limits.keys.get(key).copied())
            .collect()
    }

    /// What is missing in a bucket stays missing.
    fn rescale(&mut self, id: LimitId, former: Bucket, bucket: Bucket) {
        let now = self.ledgers.now;
        self.ledgers.pour(id, former, |poured| {
            poured.map(|poured| poured.rescaled(former, bucket, now))
        });
    }

    fn put(&mut self, id: LimitId, limit: &Limit, action: Action) {
        self.ledgers.kept.clear();
        let now = self.ledgers.now;
        let Ok(usage) = Usage::read(&mut self.ledgers, id, limit, now);
        self.limits.put(Known {
            id,
            limit: limit.clone(),
            pattern: None,
            changed: now,
            was_lowered: usage.is_over() || (limit.is_pattern() && action == Action::Replaced),
        });
        self.limits.note(limit, action, now);
    }

    /// Removes a limit or a pattern. An error if it is in use, unless it is forced.
    pub(super) fn remove(&mut self, key: &str, is_forced: bool) -> Result<Limit, Error> {
        let Some(known) = self.limits.defined(key).cloned() else {
            return Err(unknown(key));
        };
        let ledgers = self.ledgers_of(&known);
        let in_use = self.in_use(&ledgers);
        if !is_forced && in_use.any() {
            return Err(Error::InUse {
                key: key.to_owned(),
                by: in_use,
                file: PLACE.into(),
            });
        }
        self.ledgers.kept.clear();
        self.limits.defined.remove(key);
        self.limits.patterns.retain(|other| other.id != known.id);
        for id in ledgers {
            self.give_up_ledger(id);
        }
        self.limits.remember_removed(known.id);
        self.learned.remove(&known.id);
        let now = self.ledgers.now;
        self.limits.note(&known.limit, Action::Removed, now);
        self.tell_those_in_line();
        Ok(known.limit.clone())
    }

    /// Lets those who wait do so for the limits as they are now, and for none that was removed.
    pub(super) fn tell_those_in_line(&mut self) {
        let limits = &self.limits;
        for ticket in self.tickets.values_mut() {
            ticket.waiter.takes.retain(|(known, _)| {
                let found = limits.find(known.limit.key());
                match found.filter(|found| found.id == known.id) {
                    Some(found) => {
                        *known = found;
                        true
                    }
                    None => false,
                }
            });
        }
    }

    /// What was charged to a limit and is held of it is no more.
    pub(super) fn give_up_ledger(&mut self, id: LimitId) {
        for permit in self.permits.values_mut() {
            permit.slots.retain(|slot| slot.limit != id);
        }
        self.close_ledger(id);
        self.limits.remember_removed(id);
    }

    fn close_ledger(&mut self, id: LimitId) {
        self.limits.close_ledger(id);
        self.ledgers.forget(id);
        self.debts.remove(&id);
    }

    /// Who would notice if limits were gone.
    fn in_use(&self, ledgers: &[LimitId]) -> Use {
        let now = self.ledgers.now;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let is_of_them = |id: LimitId| ledgers.contains(&id);
        let slots = ledgers.iter().filter_map(|id| self.ledgers.slots.get(id));
        let held = slots.flat_map(BTreeMap::values);
        let permits = self.permits.values().filter(|permit| {
            permit.id.is_some() && permit.rows.iter().any(|row| is_of_them(row.limit))
        });
        let booked = ledgers.iter().filter_map(|id| self.ledgers.ledgers.get(id));
        let booked = booked.flat_map(BTreeMap::keys).filter(|(at, _)| *at > now);
        let waits = self.tickets.values().filter(|ticket| {
            let mut takes = ticket.waiter.takes.iter();
            takes.any(|(known, _)| is_of_them(known.id))
        });
        let blocks = ledgers.iter().map(|id| self.ledgers.open_block_count(*id));
        let blocks = count(blocks.sum());
        Use {
            slots: count(held.filter(|held| held.counts(now)).count()),
            permits: count(permits.count()),
            bookings: count(booked.count()).saturating_sub(blocks),
            blocks,
            waiting: count(waits.count()),
        }
    }

    /// Gives ledgers to the keys of a request that have none yet.
    pub(super) fn open_ledgers(&mut self, lines: &mut [Line<'_>]) {
        for line in lines {
            if line.id == LimitId::NONE {
                line.id = self.limits.open_ledger(line.limit.shared_key());
            }
        }
    }

    /// The number of the ledger of a limit, which it gets if it has none.
    pub(super) fn with_ledger(&mut self, known: &Known) -> LimitId {
        match known.id {
            LimitId::NONE => self.limits.open_ledger(known.limit.shared_key()),
            id => id,
        }
    }

    /// Takes the ledgers from all keys that are idle.
    pub(super) fn sweep_all(&mut self) {
        self.limits.swept = 0;
        loop {
            self.sweep_keys();
            if self.limits.swept == 0 {
                return;
            }
        }
    }

    /// Takes the ledgers from the next few keys that are idle.
    pub(super) fn sweep_keys(&mut self) {
        let after = LimitId(self.limits.swept + 1);
        let next = self.limits.by_number.range(after..).take(KEYS_SWEPT);
        let next: Vec<(LimitId, Arc<str>)> = next.map(|(id, key)| (*id, Arc::clone(key))).collect();
        self.limits.swept = next.last().map_or(0, |(id, _)| id.0);
        for (id, key) in next {
            if let Some(known) = self.limits.find(&key) {
                self.ledgers.sweep(id, &known.limit);
            }
            let is_held =
                |permit: &super::OpenPermit| permit.rows.iter().any(|row| row.limit == id);
            let waits = |ticket: &super::Ticket| {
                let mut takes = ticket.waiter.takes.iter();
                takes.any(|(known, _)| known.id == id)
            };
            let is_needed = !self.ledgers.is_idle(id)
                || self.debts.contains_key(&id)
                || self.permits.values().any(is_held)
                || self.tickets.values().any(waits);
            if !is_needed {
                self.close_ledger(id);
            }
        }
    }
}
