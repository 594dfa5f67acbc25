//! The steps of a history that pause limits and resume them.

use super::{Check, Player, same};
use crate::strikes::{How, Interval};
use crate::subject::Paused;

fn told(interval: Interval) -> Paused {
    Paused {
        since_ns: interval.since_ns,
        until_ns: interval.until_ns,
    }
}

impl Player<'_> {
    /// A limit, or a key that nobody limits.
    fn key(&self, number: usize) -> String {
        let keys = self.model.lines.keys().chain(self.model.pools.keys());
        let keys: Vec<&String> = keys.collect();
        let key = keys.get(number % (keys.len() + 1));
        key.map_or_else(|| "nobody".to_owned(), |key| (*key).clone())
    }

    /// Of what is merged at one instant, nobody knows who came first.
    fn knows_order(&self, key: &str) -> bool {
        let line = self.model.lines.get(key);
        line.is_none_or(|line| line.limit.resolution().is_none())
    }

    pub(super) fn pause(&mut self, slot: usize, key: usize, how: How) -> Check {
        let key = self.key(key);
        if !self.knows_order(&key) {
            return Ok(());
        }
        let slot = self.open(slot);
        let paused = self.subject.pause(slot, &key, how);
        let before = self.model.record(&key);
        let must_be = self.model.pause(&key, how);
        if self.model.record(&key) != before {
            self.has_changed_pauses();
        }
        let moved = must_be.as_ref().map(|(_, moved)| moved.clone());
        self.follow(&moved.unwrap_or_default());
        same(&must_be.map(|(interval, _)| told(interval)), &paused)
    }

    pub(super) fn resume(&mut self, slot: usize, key: usize) -> Check {
        let key = self.key(key);
        if !self.knows_order(&key) {
            return Ok(());
        }
        let slot = self.open(slot);
        let resumed = self.subject.resume(slot, &key);
        let must_be = self.model.resume(&key);
        if matches!(must_be, Ok((Some(_), _))) {
            self.has_changed_pauses();
        }
        let must_be = must_be.map(|(lifted, moved)| {
            self.follow(&moved);
            lifted.map(told)
        });
        same(&must_be, &resumed)
    }

    fn has_changed_pauses(&mut self) {
        self.boot_is_fixed = true;
        self.written_ns = self.model.now_ns;
        self.break_blocks();
    }

    /// What somebody holds is where it was moved to.
    fn follow(&mut self, moved: &[usize]) {
        for held in self.bookings.iter_mut().chain(&mut self.permits) {
            if moved.contains(&held.charged)
                && let Some(due_ns) = self.model.due_ns(held.charged)
            {
                held.at_ns = due_ns;
            }
        }
    }
}
