//! Definitions as the model knows them: by name, and what they say of each key of a history.

use quotalite::{Definition, Limit, OnConflict};

use crate::history::all_keys;
use crate::line::Line;
use crate::model::Model;
use crate::periods::begins_ns;
use crate::subject::{Defined, Removed};

/// A definition, and whether more was in use than it allows when it was made.
#[derive(Clone, Debug)]
pub struct Stored {
    pub limit: Limit,
    pub was_lowered: bool,
}

/// A limit as people write it, by the name of its key.
pub fn described(key: &str, limit: &Limit) -> String {
    let definition = limit.to_string();
    let definition = definition.strip_prefix(limit.key()).expect("it is named");
    format!("{key}{definition}")
}

/// Tries every length for every star.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    match pattern.split_first() {
        None => key.is_empty(),
        Some((b'*', rest)) => (1..=key.len()).any(|length| matches(rest, &key[length..])),
        Some((letter, rest)) => key.first() == Some(letter) && matches(rest, &key[1..]),
    }
}

/// By what the most specific pattern is the last: it says most letters, or more of them first.
fn precision(pattern: &str) -> (usize, usize, std::cmp::Reverse<&str>) {
    let letters = pattern.bytes().filter(|letter| *letter != b'*').count();
    let before = pattern.find('*').expect("a pattern has one");
    (letters, before, std::cmp::Reverse(pattern))
}

fn kind(limit: &Limit) -> (bool, bool, bool) {
    (
        limit.is_pattern(),
        limit.bucket().is_some(),
        limit.slot_count().is_some(),
    )
}

impl Model {
    /// The name of the definition that counts for a key.
    fn name_for(&self, key: &str) -> Option<&str> {
        if let Some((name, _)) = self.definitions.get_key_value(key) {
            return Some(name);
        }
        let names = self.definitions.keys().map(String::as_str);
        let patterns = names.filter(|name| name.contains('*'));
        patterns
            .filter(|pattern| matches(pattern.as_bytes(), key.as_bytes()))
            .max_by_key(|pattern| precision(pattern))
    }

    /// The keys that a definition counts for.
    pub fn keys_of(&self, name: &str) -> Vec<&'static str> {
        let keys = all_keys().filter(|key| self.name_for(key) == Some(name));
        keys.collect()
    }

    pub fn define(&mut self, limit: &Limit, conflict: OnConflict) -> Defined {
        let stored = self.definitions.get(limit.key());
        match stored.map(|stored| stored.limit.clone()) {
            None => {
                self.put(limit);
                Defined::Done(Definition::Created)
            }
            Some(stored) if stored == *limit => Defined::Done(Definition::Unchanged),
            Some(stored) if conflict == OnConflict::Adopt => {
                Defined::Done(Definition::Adopted(stored))
            }
            Some(stored) if conflict == OnConflict::Fail => Defined::Conflict {
                stored,
                given: limit.clone(),
            },
            Some(stored) if kind(&stored) != kind(limit) => Defined::OtherKind,
            Some(stored) if stored.resolution() > limit.resolution() => Defined::Finer,
            Some(stored) => {
                self.put(limit);
                Defined::Done(Definition::Replaced(stored))
            }
        }
    }

    pub fn update(&mut self, limit: &Limit) -> Defined {
        if self.definitions.contains_key(limit.key()) {
            self.define(limit, OnConflict::Replace)
        } else {
            Defined::Unknown
        }
    }

    fn put(&mut self, limit: &Limit) {
        let name = limit.key();
        let stored = Stored {
            limit: limit.clone(),
            was_lowered: limit.is_pattern() && self.definitions.contains_key(name),
        };
        self.definitions.insert(name.to_owned(), stored);
        self.apply_definitions();
        let is_over = self.is_over(name);
        let stored = self.definitions.get_mut(name).expect("it was just made");
        stored.was_lowered |= is_over;
    }

    /// Removes a definition, and with it what was charged to the keys that it counts for, whether another one does from
    /// then on or not. What the dead have left behind is in nobody's way.
    pub fn remove(&mut self, name: &str, is_forced: bool) -> Removed {
        let before = self.clone();
        self.give_back_what_the_dead_held();
        let removed = self.remove_right(name, is_forced);
        if !matches!(removed, Removed::Done(_)) {
            *self = before;
        }
        removed
    }

    fn remove_right(&mut self, name: &str, is_forced: bool) -> Removed {
        let Some(stored) = self.definitions.get(name) else {
            return Removed::Unknown;
        };
        let limit = stored.limit.clone();
        let (slots, permits, bookings) = self.in_use(name);
        if !is_forced && slots + permits + bookings > 0 {
            return Removed::InUse(slots > 0, permits > 0, bookings > 0);
        }
        let keys: Vec<String> = self.keys_of(name).into_iter().map(str::to_owned).collect();
        self.definitions.remove(name);
        for key in &keys {
            self.forget(key);
        }
        self.apply_definitions();
        Removed::Done(limit)
    }

    fn in_use(&self, name: &str) -> (usize, usize, usize) {
        let (mut slots, mut permits, mut bookings) = (0, 0, 0);
        for key in self.keys_of(name) {
            let open = self.entries.iter();
            let open = open.filter(|entry| entry.is_open(self.now_ns));
            let holds = open.clone().filter(|entry| {
                let mut slots = entry.slots.iter();
                slots.any(|(of, _)| of == key)
            });
            slots += holds.count();
            if let Some(line) = self.lines.get(key) {
                permits += open
                    .filter(|entry| entry.id.is_some() && line.claims.contains(&entry.claim))
                    .count();
                let charges = line.charges.iter();
                bookings += charges.filter(|charge| charge.at_ns > self.now_ns).count();
            }
        }
        (slots, permits, bookings)
    }

    /// What was charged and is held of a key that nobody limits any more.
    fn forget(&mut self, key: &str) {
        self.lines.remove(key);
        self.pools.remove(key);
        self.paused.remove(key);
        for entry in &mut self.entries {
            entry.slots.retain(|(of, _)| of != key);
        }
    }

    fn apply_definitions(&mut self) {
        for key in all_keys() {
            let name = self.name_for(key);
            let Some(limit) = name.map(|name| self.definitions[name].limit.clone()) else {
                self.forget(key);
                continue;
            };
            if limit.slot_count().is_some() {
                self.pools.insert(key.to_owned(), limit);
                continue;
            }
            if let Some(line) = self.lines.get_mut(key) {
                line.become_another(&limit, self.now_ns);
            } else {
                let mut line = Line::new(key, limit);
                line.wall_shift_ns = self.wall_shift_ns;
                self.lines.insert(key.to_owned(), line);
            }
        }
    }

    /// The wall clock is seen. It has to be off by a second until calendars follow it.
    pub fn see_wall(&mut self, wall_ns: i64) {
        let shift_ns = wall_ns - self.now_ns;
        if (shift_ns - self.wall_shift_ns).abs() < 1_000_000_000 {
            return;
        }
        self.wall_shift_ns = shift_ns;
        for line in self.lines.values_mut() {
            line.wall_shift_ns = shift_ns;
            line.was_replaced |= line.has_calendar();
        }
    }

    pub fn has_calendars(&self) -> bool {
        self.lines.values().any(Line::has_calendar)
    }

    /// Whether it would still be known what counts if the wall clock showed this, although it showed a later time
    /// before: what calendars have let go is kept for a day.
    pub fn remembers(&self, wall_ns: i64, latest_wall_ns: i64) -> bool {
        const DAY_NS: i64 = 86_400 * SECOND_NS;
        const SECOND_NS: i64 = 1_000_000_000;
        let rates = self.lines.values().flat_map(|line| line.limit.rates());
        rates.into_iter().all(|rate| {
            let begins = |wall_ns: i64| begins_ns(rate, wall_ns);
            let earliest = begins(wall_ns - SECOND_NS).zip(begins(latest_wall_ns + SECOND_NS));
            earliest.is_none_or(|(asked_ns, kept_ns)| asked_ns >= kept_ns - DAY_NS)
        })
    }

    pub fn limit(&self, key: &str) -> Option<&Limit> {
        let line = self.lines.get(key).map(|line| &line.limit);
        line.or_else(|| self.pools.get(key))
    }

    /// All definitions, by key.
    pub fn limits(&self) -> Vec<Limit> {
        let stored = self.definitions.values();
        stored.map(|stored| stored.limit.clone()).collect()
    }

    fn is_over(&self, key: &str) -> bool {
        let slots = self.pools.get(key).and_then(Limit::slot_count);
        let line = self.lines.get(key);
        slots.is_some_and(|count| self.held(key) > count)
            || line.is_some_and(|line| line.is_over(self.now_ns))
    }

    pub fn is_decreasing(&self, key: &str) -> bool {
        let name = self.name_for(key);
        name.is_some_and(|name| self.definitions[name].was_lowered) && self.is_over(key)
    }
}
