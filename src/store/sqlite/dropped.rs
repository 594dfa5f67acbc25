//! What is dropped: permits, bookings, blocks and places in line. What cannot be let go of at once, because the file is
//! locked for too long or its disk is full, is let go of by the next transaction of this process that writes.
//! Else it would be held for as long as the process lives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::session::Session;
use super::transaction::Transaction;
use crate::error::Error;
use crate::store::{Block, Claim, Handed, TicketId};

#[derive(Clone, Debug)]
pub(super) enum Dropped {
    /// Its charges stay.
    Permit(Claim),
    /// The same, if the transaction of the caller's was committed that charged it; by what the file knows that.
    Provisional(Claim, i64),
    /// It is taken back, unless somebody else relies on it.
    Booking(Claim),
    /// What was not used of it is taken back; with what was.
    Block(Block, u64),
    Place(TicketId),
}

impl Transaction<'_> {
    /// Lets go of something that was dropped.
    pub(super) fn let_go(&mut self, dropped: &Dropped, session: &Session) -> Result<(), Error> {
        let (claim, is_taken_back) = match dropped {
            Dropped::Permit(claim) => (claim, false),
            Dropped::Provisional(claim, number) => {
                // What was rolled back has left its number to another permit.
                if !self.is_committed(*number)? {
                    return Ok(());
                }
                (claim, false)
            }
            Dropped::Booking(claim) => (claim, true),
            Dropped::Block(block, used) => {
                let handed = Handed { block, used: *used };
                return self.end_block(handed, session);
            }
            Dropped::Place(ticket) => return self.leave_line(*ticket),
        };
        let moved = self.moved(claim)?;
        let claim = moved.as_ref().unwrap_or(claim);
        if let Some(registered) = &claim.registered {
            let number = registered.number;
            if !self.is_held_by(number, session.owner())? {
                return Ok(());
            }
            if !is_taken_back || self.is_shared(number)? {
                let slots = registered.slots.iter().map(|slot| slot.limit);
                self.abandon(number, slots)?;
                // Its charges stay, for whoever settles it: they are nobody's booking any more.
                return match claim.booking {
                    Some(booking) => self.forget_booking(booking),
                    None => Ok(()),
                };
            }
        }
        if is_taken_back {
            self.cancel(claim)?;
        }
        Ok(())
    }

    /// Lets go of what could not be let go of before. What fails now is not tried again.
    pub(super) fn let_go_of_all(&mut self, dropped: &[Dropped], session: &Session) {
        for dropped in dropped {
            let result = self.as_a_whole(|transaction| transaction.let_go(dropped, session));
            if let Err(error) = result {
                tracing::warn!(%error, "what was dropped could not be given back");
            }
        }
    }
}

/// What is still to be let go of.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    any: AtomicBool,
    dropped: Mutex<Vec<Dropped>>,
}

impl PutOff {
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    pub(super) fn push(&self, more: impl IntoIterator<Item = Dropped>) {
        let mut dropped = self.lock();
        dropped.extend(more);
        self.any.store(!dropped.is_empty(), Ordering::SeqCst);
    }

    pub(super) fn take(&self) -> Vec<Dropped> {
        if !self.any() {
            return Vec::new();
        }
        let mut dropped = self.lock();
        self.any.store(false, Ordering::SeqCst);
        std::mem::take(&mut *dropped)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Dropped>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
