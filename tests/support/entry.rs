//! Permits that hold slots or have an id, as the model knows them: a list of all that there ever were.

use crate::model::Model;
use crate::subject::{Closing, Takes};

/// For how long an id is remembered after the end of its permit, and an abandoned permit can be settled.
pub const REMEMBERED_NS: i64 = 3_600 * 1_000_000_000;

/// How a permit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Settled,
    Cancelled,
    Expired,
}

/// One permit.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The request under whose name its charges stand.
    pub claim: usize,
    pub at_ns: i64,
    /// What was asked for, by key.
    pub request: Takes,
    pub id: Option<String>,
    /// The slots that it holds, until it ends.
    pub slots: Takes,
    /// The opening that answers for it.
    pub owner: Option<usize>,
    pub is_detached: bool,
    /// Whether it was booked and is taken back when its owner dies before its instant, be its limits removed or not.
    pub is_booked: bool,
    /// Whether somebody else was told that it has this permit, under its id.
    pub is_shared: bool,
    pub expires_ns: Option<i64>,
    /// What somebody did to it. The end by time alone is not written down.
    pub end: Option<(End, i64)>,
    /// As it was told to whoever got its slots.
    pub fence: Option<u64>,
}

impl Entry {
    /// How and when it ended, if it has.
    pub fn ended(&self, now_ns: i64) -> Option<(End, i64)> {
        let expired = self
            .expires_ns
            .filter(|expires_ns| *expires_ns <= now_ns)
            .map(|expires_ns| (End::Expired, expires_ns));
        self.end.or(expired)
    }

    pub fn is_open(&self, now_ns: i64) -> bool {
        self.ended(now_ns).is_none()
    }

    pub fn slots_of(&self, key: &str, now_ns: i64) -> u64 {
        let of_it = self.slots.iter().filter(|(of, _)| of == key);
        let amounts = of_it.map(|(_, amount)| *amount);
        if self.is_open(now_ns) {
            amounts.sum()
        } else {
            0
        }
    }
}

/// Whose permit it is that was found under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Nobody answered for it; now whoever has found it does.
    Mine,
    Others,
    /// It has ended.
    Nobodys,
}

/// What a request under an id finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Permit(usize, Whose),
    /// Its slots came back when its holder was gone, and have to be taken again.
    WithoutSlots(usize),
    /// Another request was made under the id.
    Taken {
        stored: String,
    },
}

impl Model {
    pub fn held(&self, key: &str) -> u64 {
        let slots = self.entries.iter();
        slots.map(|entry| entry.slots_of(key, self.now_ns)).sum()
    }

    /// The permit that an id stands for.
    pub fn named(&self, id: &str) -> Option<usize> {
        let of_it = |entry: &Entry| entry.id.as_deref() == Some(id);
        let position = self.entries.iter().rposition(of_it)?;
        let ended = self.entries[position].ended(self.now_ns);
        let is_forgotten =
            ended.is_some_and(|(_, ended_ns)| ended_ns + REMEMBERED_NS <= self.now_ns);
        (!is_forgotten).then_some(position)
    }

    /// Looks for what was granted before under an id.
    pub fn find(&mut self, opening: usize, id: &str, request: &Takes) -> Found {
        let held_by_another = |model: &Self, number: usize| {
            let entry = &model.entries[number];
            entry.is_open(model.now_ns) && entry.owner.is_some_and(|owner| owner != opening)
        };
        if self
            .named(id)
            .is_some_and(|number| held_by_another(self, number))
        {
            self.give_back_what_the_dead_held();
        }
        let Some(number) = self.named(id) else {
            return Found::Nothing;
        };
        let entry = &self.entries[number];
        let ended = entry.ended(self.now_ns);
        if ended.is_some_and(|(end, _)| end == End::Cancelled) {
            return Found::Nothing;
        }
        if entry.request != *request {
            let stored = entry.request.iter();
            let stored: Vec<String> = stored.map(|(key, n)| format!("{n} {key}")).collect();
            return Found::Taken {
                stored: stored.join(", "),
            };
        }
        if ended.is_some() {
            return Found::Permit(number, Whose::Nobodys);
        }
        if entry.owner.is_some() || entry.is_detached {
            return Found::Permit(number, Whose::Others);
        }
        let asks_for_slots = request.iter().any(|(key, _)| self.pools.contains_key(key));
        if asks_for_slots && entry.slots.is_empty() {
            return Found::WithoutSlots(number);
        }
        let entry = &mut self.entries[number];
        entry.owner = Some(opening);
        entry.expires_ns = None;
        Found::Permit(number, Whose::Mine)
    }

    /// Takes the slots of a request, for a new permit or for one whose slots came back.
    pub fn hold(
        &mut self,
        opening: usize,
        retaken: Option<usize>,
        takes: &Takes,
        new: impl FnOnce() -> Entry,
    ) -> usize {
        let number = retaken.unwrap_or_else(|| {
            self.entries.push(new());
            self.entries.len() - 1
        });
        let of_slots = |(key, _): &&(String, u64)| self.pools.contains_key(key);
        let slots: Takes = takes.iter().filter(of_slots).cloned().collect();
        let timeouts = slots
            .iter()
            .filter_map(|(key, _)| self.pools[key].timeout());
        let entry = &mut self.entries[number];
        // Slots that are taken again come with a new number.
        entry.fence = None;
        entry.owner = Some(opening);
        entry.expires_ns = timeouts
            .min()
            .map(|timeout| self.now_ns + crate::subject::ns(timeout));
        entry.slots = slots;
        number
    }

    /// Ends a permit for somebody who has it at hand. What is told if it had ended before.
    pub fn end(&mut self, number: usize, end: End) -> Option<Closing> {
        let now_ns = self.now_ns;
        if let Some((ended, ended_ns)) = self.entries[number].ended(now_ns) {
            let Some(id) = &self.entries[number].id else {
                return Some(Closing::Expired);
            };
            let mut later = self.entries[number + 1..].iter();
            if later.any(|entry| entry.id.as_ref() == Some(id)) {
                return Some(Closing::Over);
            }
            let is_remembered = now_ns < ended_ns + REMEMBERED_NS;
            return Some(match ended {
                End::Settled | End::Cancelled if is_remembered => Closing::Before,
                _ => Closing::Expired,
            });
        }
        self.entries[number].end = Some((end, now_ns));
        None
    }

    /// What is told to somebody who comes with an id, unless its permit is open.
    pub fn told_of(&self, id: &str) -> Result<usize, Closing> {
        let number = self.named(id).ok_or(Closing::Unknown)?;
        match self.entries[number].ended(self.now_ns) {
            None => Ok(number),
            Some((End::Expired, _)) => Err(Closing::Expired),
            Some(_) => Err(Closing::Before),
        }
    }

    /// Its holder is gone, so its slots come back. Under its id it can still be settled for a while.
    pub fn abandon(&mut self, number: usize) {
        let now_ns = self.now_ns;
        let entry = &mut self.entries[number];
        if !entry.is_open(now_ns) {
            return;
        }
        entry.slots.clear();
        entry.owner = None;
        match entry.id {
            Some(_) => entry.expires_ns = Some(now_ns + REMEMBERED_NS),
            None => entry.end = Some((End::Expired, now_ns)),
        }
        self.keep_what_was_booked(number);
    }

    /// Somebody relies on a permit that another answers for.
    pub fn share(&mut self, number: usize) {
        self.entries[number].is_shared = true;
        self.keep_what_was_booked(number);
    }

    /// The charges of a permit are no longer taken back when whoever has booked them dies.
    fn keep_what_was_booked(&mut self, number: usize) {
        let claim = self.entries[number].claim;
        self.entries[number].is_booked = false;
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            charge.booked_by = charge.booked_by.filter(|_| charge.claim != claim);
        }
    }

    /// Puts off the end of a permit that has one ahead. The instant, if there was anything to put off.
    pub fn renew(&mut self, number: usize, timeout_ns: i64) -> Option<i64> {
        let now_ns = self.now_ns;
        let entry = &mut self.entries[number];
        let is_abandoned = entry.owner.is_none() && !entry.is_detached;
        if !entry.is_open(now_ns) || entry.expires_ns.is_none() || is_abandoned {
            return None;
        }
        entry.expires_ns = Some(now_ns + timeout_ns);
        entry.expires_ns
    }

    /// From now on nobody answers for the permit, and it ends by itself.
    pub fn detach(&mut self, number: usize, timeout_ns: i64) {
        let now_ns = self.now_ns;
        let entry = &mut self.entries[number];
        if entry.is_open(now_ns) {
            entry.owner = None;
            entry.is_detached = true;
            entry.expires_ns = Some(now_ns + timeout_ns);
            self.keep_what_was_booked(number);
        }
    }

    /// Gives a permit an id, if it is open.
    pub fn name(&mut self, number: usize, id: &str) -> bool {
        let is_open = self.entries[number].is_open(self.now_ns);
        if is_open {
            self.entries[number].id = Some(id.to_owned());
        }
        is_open
    }

    /// Makes an opening an owner, and sees who else is gone. True if it was none.
    pub fn become_owner(&mut self, opening: usize) -> bool {
        let is_new = self.owners.insert(opening);
        if is_new {
            self.give_back_what_the_dead_held();
        }
        is_new
    }

    /// Takes back what the dead have booked and cannot have used, and the slots that they held.
    pub fn give_back_what_the_dead_held(&mut self) {
        let now_ns = self.now_ns;
        let dead: Vec<usize> = self.owners.difference(&self.alive).copied().collect();
        let dead: Vec<usize> = dead
            .into_iter()
            .filter(|opening| !self.buried.contains(opening))
            .collect();
        let of_the_dead = |opening: Option<usize>| opening.is_some_and(|of| dead.contains(&of));
        let mut taken_back = Vec::new();
        for line in self.lines.values_mut() {
            line.charges.retain(|charge| {
                let stays = charge.due_ns <= now_ns || !of_the_dead(charge.booked_by);
                if !stays {
                    taken_back.push(charge.claim);
                }
                stays
            });
            for charge in &mut line.charges {
                charge.booked_by = charge.booked_by.filter(|of| !of_the_dead(Some(*of)));
            }
        }
        for number in 0..self.entries.len() {
            let entry = &mut self.entries[number];
            if !entry.is_open(now_ns) || !of_the_dead(entry.owner) {
                continue;
            }
            let is_ahead = entry.is_booked && entry.at_ns > now_ns;
            if is_ahead || taken_back.contains(&entry.claim) {
                entry.end = Some((End::Cancelled, now_ns));
            } else {
                self.abandon(number);
            }
        }
        self.buried.extend(dead);
    }
}
