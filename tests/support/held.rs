//! What callers hold in a history: bookings and permits, and what becomes of them.

use super::{Check, Player, same};
use crate::asks::Spent;
use crate::entry::{End, Whose};
use crate::history::{Fate, is_of_slots};
use crate::model::Verdict;
use crate::subject::{Closing, Takes};

/// A booking or a permit that somebody holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub claim: usize,
    pub opening: usize,
    pub at_ns: i64,
    /// Where it was when its holder last looked: it may have been moved since.
    pub known_at_ns: i64,
    pub takes: Takes,
    /// Whether it is a permit that was settled, cancelled or detached by this holder.
    pub is_closed: bool,
    /// What everybody is told who ends it, if it had ended when it was asked for again.
    pub told: Option<Closing>,
    /// The permit in the list of the model, if it is there.
    pub entry: Option<usize>,
    /// Whether the permit ends with it.
    pub is_mine: bool,
    /// Whether it is the permit of an earlier request under the same id.
    pub is_resumed: bool,
    /// The request under whose name the charges stand.
    pub charged: usize,
}

/// Takes one of those that are held out of the list.
pub fn pick(held: &mut Vec<Held>, number: usize) -> Option<Held> {
    let position = number.checked_rem(held.len())?;
    Some(held.remove(position))
}

/// Takes those of one opening out of the list.
fn pick_all(held: &mut Vec<Held>, opening: usize) -> Vec<Held> {
    let of_this = |held: &Held| held.opening == opening;
    let (picked, others) = std::mem::take(held).into_iter().partition(of_this);
    *held = others;
    picked
}

pub fn same_closing(must_be: &Closing, is: &Closing) -> Check {
    match (must_be, is) {
        (Closing::Over, Closing::Before | Closing::Expired) => Ok(()),
        _ => same(must_be, is),
    }
}

impl Player<'_> {
    /// What somebody holds to whom this was told.
    pub(super) fn held(
        &self,
        verdict: &Verdict,
        claim: usize,
        opening: usize,
        takes: &Takes,
    ) -> Option<Held> {
        let held = Held {
            claim,
            opening,
            at_ns: 0,
            known_at_ns: 0,
            takes: takes.clone(),
            is_closed: false,
            told: None,
            entry: None,
            is_mine: true,
            is_resumed: false,
            charged: claim,
        };
        match verdict {
            Verdict::Admitted { at_ns, entry } => Some(Held {
                at_ns: *at_ns,
                known_at_ns: *at_ns,
                entry: *entry,
                ..held
            }),
            Verdict::Resumed {
                at_ns,
                entry,
                whose,
                ..
            } => Some(Held {
                at_ns: *at_ns,
                known_at_ns: *at_ns,
                entry: Some(*entry),
                is_closed: *whose == Whose::Nobodys,
                told: self.model.entries[*entry].ended(self.model.now_ns).map(
                    |(end, _)| match end {
                        End::Expired => Closing::Expired,
                        End::Settled | End::Cancelled => Closing::Before,
                    },
                ),
                is_mine: *whose == Whose::Mine,
                is_resumed: true,
                charged: self.model.entries[*entry].claim,
                ..held
            }),
            _ => None,
        }
    }

    pub(super) fn give_back(&mut self, booking: &Held, by_dropping: bool) {
        self.subject.give_back(booking.claim, by_dropping);
        let is_shared = |entry: usize| self.model.entries[entry].is_shared;
        if by_dropping && (booking.is_resumed || booking.entry.is_some_and(is_shared)) {
            self.let_go_of(booking);
        } else if !booking.is_closed && self.end(booking.entry, End::Cancelled).is_none() {
            self.model.give_back(booking.charged);
            self.witness.forget(booking.charged);
        }
        self.bury_if_nothing_is_left(booking.opening);
    }

    /// Ends a permit, if it is in the list. What is told if it had ended before.
    pub(super) fn end(&mut self, entry: Option<usize>, end: End) -> Option<Closing> {
        self.model.end(entry?, end)
    }

    pub(super) fn accept_one(&mut self, number: usize, holds: bool) -> Check {
        match pick(&mut self.bookings, number) {
            Some(booking) => self.accept(booking, holds),
            None => Ok(()),
        }
    }

    fn accept(&mut self, mut booking: Held, holds: bool) -> Check {
        let (must_be, opening) = (booking.at_ns, booking.opening);
        let entry = booking.entry.map(|entry| &self.model.entries[entry]);
        // Where it was moved to is forgotten then.
        let has_ended = entry.is_some_and(|entry| !entry.is_open(self.model.now_ns));
        let at_ns = self.subject.accept(booking.claim, holds);
        booking.known_at_ns = at_ns;
        if holds {
            self.permits.push(booking);
        } else {
            self.let_go_of(&booking);
        }
        self.bury_if_nothing_is_left(opening);
        if has_ended {
            return Ok(());
        }
        same(&must_be, &at_ns)
    }

    pub(super) fn settle(&mut self, number: usize, spent: &[Spent], keeps: bool) -> Check {
        let Some(permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let used = self.used(&permit.takes, permit.at_ns, spent);
        let closing = self.subject.settle(permit.claim, &used);
        let must_be = self.settle_held(&permit, &used);
        same_closing(&must_be, &closing)?;
        self.keep_closed(permit, keeps);
        self.witness.check(&self.model)
    }

    pub(super) fn settle_held(&mut self, permit: &Held, used: &Takes) -> Closing {
        if permit.is_closed {
            return permit.told.clone().unwrap_or(Closing::Before);
        }
        match self.end(permit.entry, End::Settled) {
            Some(told) => told,
            None => self.correct(permit.charged, permit.at_ns, &permit.takes, used),
        }
    }

    pub(super) fn correct(
        &mut self,
        claim: usize,
        at_ns: i64,
        takes: &Takes,
        used: &Takes,
    ) -> Closing {
        let settled = self.model.settle(claim, at_ns, takes, used);
        self.witness.settled(claim, &self.model);
        if settled.iter().any(|settling| settling.debt > 0) {
            self.written_ns = self.model.now_ns;
        }
        Closing::Now(settled)
    }

    /// What is said to be used of the rates that were taken.
    pub(super) fn used(&self, takes: &Takes, at_ns: i64, spent: &[Spent]) -> Takes {
        let takes = takes.iter().zip(spent.iter().cycle());
        let said = takes.filter_map(|((key, estimated), spent)| {
            if is_of_slots(key) {
                return None;
            }
            let used = match self.model.lines.get(key) {
                Some(line) => spent.amount(*estimated, line, at_ns, self.model.now_ns)?,
                None => *estimated,
            };
            Some((key.clone(), used))
        });
        said.collect()
    }

    pub(super) fn cancel(&mut self, number: usize, keeps: bool) -> Check {
        let Some(permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let closing = self.subject.cancel(permit.claim);
        let must_be = self.cancel_held(&permit);
        same_closing(&must_be, &closing)?;
        self.keep_closed(permit, keeps);
        Ok(())
    }

    pub(super) fn cancel_held(&mut self, permit: &Held) -> Closing {
        if permit.is_closed {
            return permit.told.clone().unwrap_or(Closing::Before);
        }
        if let Some(told) = self.end(permit.entry, End::Cancelled) {
            return told;
        }
        self.model.give_back(permit.charged);
        self.witness.forget(permit.charged);
        Closing::Now(Vec::new())
    }

    pub(super) fn keep_closed(&mut self, mut permit: Held, keeps: bool) {
        permit.is_closed = true;
        if keeps {
            self.permits.push(permit);
        } else {
            self.let_go(&permit);
        }
    }

    /// Drops a permit. Its charges stay, but for what still lies ahead when its limiter is gone.
    pub(super) fn let_go(&mut self, permit: &Held) {
        self.subject.let_go(permit.claim);
        self.let_go_of(permit);
        self.bury_if_nothing_is_left(permit.opening);
    }

    /// What dropping a permit means.
    pub(super) fn let_go_of(&mut self, permit: &Held) {
        match permit.entry {
            _ if permit.is_closed => {}
            None => self.model.accept(permit.charged, permit.known_at_ns),
            Some(entry) => {
                // Somebody else who has it may have detached it.
                if permit.is_mine && !self.model.entries[entry].is_detached {
                    self.model.abandon(entry);
                }
            }
        }
    }

    pub(super) fn close(&mut self, slot: usize, fate: Fate) {
        let Some(opening) = self.slots[slot].filter(|_| self.subject.is_durable()) else {
            return;
        };
        match fate {
            Fate::Held => {}
            Fate::Orphaned | Fate::Dropped => {
                let bookings = pick_all(&mut self.bookings, opening);
                let permits = pick_all(&mut self.permits, opening);
                self.let_go_all(&bookings, &permits, fate);
                self.let_go_handles(Some(opening), fate);
            }
        }
        self.subject.close(slot);
        self.slots[slot] = None;
        self.bury_if_nothing_is_left(opening);
    }

    /// A machine that stops takes all bookings and permits with it, so those that are held are orphaned.
    pub(super) fn stop(&mut self, fate: Fate) {
        let bookings = std::mem::take(&mut self.bookings);
        let permits = std::mem::take(&mut self.permits);
        self.let_go_all(&bookings, &permits, fate);
        self.let_go_handles(None, fate);
        for slot in 0..self.slots.len() {
            self.close(slot, fate);
        }
    }

    fn let_go_all(&mut self, bookings: &[Held], permits: &[Held], fate: Fate) {
        if fate == Fate::Dropped {
            for booking in bookings {
                self.give_back(booking, true);
            }
            for permit in permits {
                self.let_go(permit);
            }
            return;
        }
        let all = bookings.iter().chain(permits);
        let claims: Vec<usize> = all.clone().map(|held| held.claim).collect();
        self.subject.die(&claims);
        for held in all {
            self.bury_if_nothing_is_left(held.opening);
        }
    }

    pub(super) fn bury_if_nothing_is_left(&mut self, opening: usize) {
        let is_open = self.slots.contains(&Some(opening));
        let mut held = self.bookings.iter().chain(&self.permits);
        let mut handles = self.handles.iter();
        if !is_open
            && held.all(|held| held.opening != opening)
            && handles.all(|handle| handle.opening != opening)
        {
            self.model.alive.remove(&opening);
        }
    }
}
