//! What callers hold in a history: bookings and permits, and what becomes of them.

use super::{Check, Player, same};
use crate::history::{Fate, Spent};
use crate::subject::{Closing, Takes};

/// A booking or a permit that somebody holds.
#[derive(Clone, Debug)]
pub struct Held {
    claim: usize,
    opening: usize,
    at_ns: i64,
    takes: Takes,
    /// Whether it is a permit that was settled or cancelled.
    is_closed: bool,
}

impl Held {
    pub fn new(claim: usize, opening: usize, at_ns: i64, takes: &Takes) -> Self {
        Self {
            claim,
            opening,
            at_ns,
            takes: takes.clone(),
            is_closed: false,
        }
    }
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

impl Player<'_> {
    pub(super) fn give_back(&mut self, booking: &Held, by_dropping: bool) {
        self.subject.give_back(booking.claim, by_dropping);
        self.model.give_back(booking.claim);
        self.witness.forget(booking.claim);
        self.bury_if_nothing_is_left(booking.opening);
    }

    pub(super) fn accept_one(&mut self, number: usize, holds: bool) -> Check {
        match pick(&mut self.bookings, number) {
            Some(booking) => self.accept(booking, holds),
            None => Ok(()),
        }
    }

    fn accept(&mut self, booking: Held, holds: bool) -> Check {
        let (must_be, opening) = (booking.at_ns, booking.opening);
        let at_ns = self.subject.accept(booking.claim, holds);
        if holds {
            self.permits.push(booking);
        } else {
            self.model.accept(booking.claim);
        }
        self.bury_if_nothing_is_left(opening);
        same(&must_be, &at_ns)
    }

    pub(super) fn settle(&mut self, number: usize, spent: &[Spent], keeps: bool) -> Check {
        let Some(permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let used = self.used(&permit, spent);
        let closing = self.subject.settle(permit.claim, &used);
        if permit.is_closed {
            same(&Closing::Before, &closing)?;
        } else {
            let settled = self.model.settle(permit.claim, &used);
            self.witness.settled(permit.claim, &self.model);
            if settled.iter().any(|settling| settling.debt > 0) {
                self.written_ns = self.model.now_ns;
            }
            same(&Closing::Now(settled), &closing)?;
        }
        self.keep_closed(permit, keeps);
        self.witness.check(&self.model)
    }

    fn used(&self, permit: &Held, spent: &[Spent]) -> Takes {
        let takes = permit.takes.iter().zip(spent.iter().cycle());
        let said = takes.filter_map(|((key, estimated), spent)| {
            let line = &self.model.lines[key];
            let used = spent.amount(*estimated, line, permit.at_ns, self.model.now_ns)?;
            Some((key.clone(), used))
        });
        said.collect()
    }

    pub(super) fn cancel(&mut self, number: usize, keeps: bool) -> Check {
        let Some(permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let closing = self.subject.cancel(permit.claim);
        if permit.is_closed {
            same(&Closing::Before, &closing)?;
        } else {
            self.model.give_back(permit.claim);
            self.witness.forget(permit.claim);
            same(&Closing::Now(Vec::new()), &closing)?;
        }
        self.keep_closed(permit, keeps);
        Ok(())
    }

    fn keep_closed(&mut self, mut permit: Held, keeps: bool) {
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
        self.model.accept(permit.claim);
        self.bury_if_nothing_is_left(permit.opening);
    }

    pub(super) fn close(&mut self, slot: usize, fate: Fate) -> Check {
        let Some(opening) = self.slots[slot].filter(|_| self.subject.is_durable()) else {
            return Ok(());
        };
        match fate {
            Fate::Held => {}
            Fate::Orphaned | Fate::Dropped => {
                let bookings = pick_all(&mut self.bookings, opening);
                let permits = pick_all(&mut self.permits, opening);
                self.let_go_all(bookings, &permits, fate)?;
            }
        }
        self.subject.close(slot);
        self.slots[slot] = None;
        self.bury_if_nothing_is_left(opening);
        Ok(())
    }

    /// A machine that stops takes all bookings and permits with it, so those that are held are orphaned.
    pub(super) fn stop(&mut self, fate: Fate) -> Check {
        let bookings = std::mem::take(&mut self.bookings);
        let permits = std::mem::take(&mut self.permits);
        self.let_go_all(bookings, &permits, fate)?;
        for slot in 0..self.slots.len() {
            self.close(slot, fate)?;
        }
        Ok(())
    }

    fn let_go_all(&mut self, bookings: Vec<Held>, permits: &[Held], fate: Fate) -> Check {
        for booking in bookings {
            match fate {
                Fate::Dropped => self.give_back(&booking, true),
                Fate::Held | Fate::Orphaned => self.accept(booking, false)?,
            }
        }
        for permit in permits {
            self.let_go(permit);
        }
        Ok(())
    }

    fn bury_if_nothing_is_left(&mut self, opening: usize) {
        let is_open = self.slots.contains(&Some(opening));
        let mut held = self.bookings.iter().chain(&self.permits);
        if !is_open && held.all(|held| held.opening != opening) {
            self.model.alive.remove(&opening);
        }
    }
}
