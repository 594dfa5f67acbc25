//! Limits that begin anew, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::State;
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::definition::{Action, Known};
use crate::error::Error;
use crate::limit::Limit;

impl State {
    /// Gives a limit, or all those that a pattern makes, an empty ledger. Who waits keeps its place, in line or in the
    /// calendar, and is admitted by the new one.
    pub(super) fn reset(&mut self, key: &str) -> Result<Limit, Error> {
        let now = self.ledgers.now;
        let known = self.known_or_pattern(key)?;
        if known.id == LimitId::NONE {
            return Ok(known.limit.clone());
        }
        let former = self.ledgers_with_keys(&known);
        self.ledgers.kept.clear();
        if known.pattern.is_none() {
            let id = self.limits.renumber(&known);
            if let Some(learned) = self.learned.remove(&known.id) {
                self.learned.insert(id, learned);
            }
        }
        let waited_for: Vec<(LimitId, Arc<str>)> = former
            .iter()
            .filter(|(id, _)| self.is_waited_for(*id))
            .cloned()
            .collect();
        for (id, _) in former {
            self.give_up_ledger(id);
        }
        let mut renumbered = BTreeMap::new();
        for (id, key) in waited_for {
            if let Some(known) = self.limits.find(&key) {
                let known = self.with_its_ledger(known);
                renumbered.insert(id, known);
            }
        }
        self.carry_over(&renumbered);
        self.limits.note(&known.limit, Action::Reset, now);
        self.tell_those_in_line();
        for known in renumbered.into_values() {
            self.move_booked(known.id);
        }
        Ok(known.limit.clone())
    }

    /// The ledgers that a definition is in force for, or that of one key, each with its key.
    fn ledgers_with_keys(&self, known: &Known) -> Vec<(LimitId, Arc<str>)> {
        let of = |id| {
            let known = self.limits.by_id(id)?;
            Some((id, Arc::clone(known.limit.shared_key())))
        };
        self.ledgers_of(known).into_iter().filter_map(of).collect()
    }

    fn with_its_ledger(&mut self, known: Arc<Known>) -> Arc<Known> {
        if known.id != LimitId::NONE {
            return known;
        }
        self.with_ledger(&known);
        self.limits.find(known.limit.key()).unwrap_or(known)
    }

    /// Whether somebody waits for a limit, in line or for an instant.
    fn is_waited_for(&self, id: LimitId) -> bool {
        let now = self.ledgers.now;
        let mut tickets = self.tickets.values();
        let mut booked = self.booked.values().filter(|booked| booked.at > now);
        tickets.any(|ticket| ticket.waiter.takes.iter().any(|(known, _)| known.id == id))
            || booked.any(|booked| booked.rows.iter().any(|row| row.limit == id))
    }

    /// Lets those who wait for former ledgers wait for those in their place.
    fn carry_over(&mut self, renumbered: &BTreeMap<LimitId, Arc<Known>>) {
        let now = self.ledgers.now;
        for ticket in self.tickets.values_mut() {
            for (known, _) in &mut ticket.waiter.takes {
                if let Some(renumbered) = renumbered.get(&known.id) {
                    *known = Arc::clone(renumbered);
                }
            }
        }
        for booked in self.booked.values_mut().filter(|booked| booked.at > now) {
            for row in &mut booked.rows {
                if let Some(known) = renumbered.get(&row.limit) {
                    (row.limit, row.pattern) = (known.id, known.pattern);
                    // Until it is booked again it stands nowhere in the new ledger.
                    row.at = Timestamp::from_nanos(i64::MIN);
                }
            }
        }
    }
}
