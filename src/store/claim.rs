//! What was charged for an acquisition, as whoever has to take it back or change it knows it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::moves::{Moves, MovesSeen};
use super::{Accepted, Few};
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::plan::print_takes;
use crate::process::Mark;
use crate::settlement::{End, Used};

/// What was charged for one acquisition, so that it can be taken back.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) at: Timestamp,
    /// The reading of the clock at `at`.
    pub(crate) wake_at: Duration,
    /// What was known of pauses when it was booked.
    pub(crate) moves: MovesSeen,
    /// The file that was open when this was charged: what stands at the path later may be another one.
    pub(crate) session: u64,
    pub(crate) process: Mark,
    pub(crate) rows: Few<Row>,
    /// Who booked the rows; nobody if they were charged at once.
    pub(crate) booking: Option<BookingId>,
    /// Where to say that the booking is used.
    pub(crate) accepted: Option<Arc<Accepted>>,
    /// The block that was taken in the place of `rows`.
    pub(crate) block: Option<Box<Block>>,
    /// Whether it was granted to an earlier request.
    pub(crate) is_resumed: bool,
    /// What the file knows of the permit, if it holds slots or has an id.
    pub(crate) registered: Option<Box<Registered>>,
}

impl Claim {
    /// Whether what it has charged may be moved as long as that lies ahead. A permit that has an id may have been a
    /// booking, whoever asked for it first.
    pub(crate) fn can_be_moved(&self) -> bool {
        let registered = self.registered.as_ref();
        let is_named = registered
            .is_some_and(|found| found.id.is_some() && !matches!(found.holder, Holder::Ended(_)));
        self.booking.is_some() || is_named
    }

    pub(crate) fn has_id(&self) -> bool {
        let registered = self.registered.as_ref();
        registered.is_some_and(|registered| registered.id.is_some())
    }

    pub(crate) fn holds_slots(&self) -> bool {
        let slots = self.registered.as_ref().map(|registered| &registered.slots);
        slots.is_some_and(|slots| !slots.is_empty())
    }

    /// What was asked for, as [`Plan::print`] prints it.
    pub(crate) fn print(&self) -> String {
        let rates = self.rows.iter().map(|row| (&*row.key, row.amount));
        let slots = self.registered.iter().flat_map(|found| &found.slots);
        let mut takes: Vec<(&str, u64)> = rates
            .chain(slots.map(|slot| (&*slot.key, slot.amount)))
            .collect();
        takes.sort_unstable();
        print_takes(takes)
    }

    /// What is told of it in a trace.
    pub(crate) fn first_key(&self) -> Option<&str> {
        let rates = self.rows.iter().map(|row| &*row.key);
        let slots = self.registered.iter().flat_map(|found| &found.slots);
        rates.chain(slots.map(|slot| &*slot.key)).next()
    }
}

/// A block, as it is known to whoever hands it out. It is charged at its end, and counts until then, too.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) limit: LimitId,
    pub(crate) until: Timestamp,
    pub(crate) seq: i64,
    pub(crate) amount: u64,
    /// The readings of the clock from which it may be handed out, and before which it has to be.
    pub(crate) readings: Range<Duration>,
    /// Pauses, and what was known of them when it was taken: with the next one it ends.
    pub(crate) moves: (Moves, MovesSeen),
    pub(crate) session: u64,
    pub(crate) process: Mark,
}

/// A block, and what was used of it up to now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed<'a> {
    pub(crate) block: &'a Block,
    pub(crate) used: u64,
}

/// A permit as its file knows it.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    pub(crate) number: PermitNumber,
    pub(crate) id: Option<Box<str>>,
    pub(crate) slots: Few<SlotTake>,
    /// The number that its slots came with, if they were taken again since.
    pub(crate) fence: Option<PermitNumber>,
    pub(crate) holder: Holder,
}

/// Slots of one limit.
#[derive(Clone, Debug)]
pub(crate) struct SlotTake {
    pub(crate) limit: LimitId,
    pub(crate) key: Arc<str>,
    pub(crate) amount: u64,
}

impl SlotTake {
    pub(crate) fn new(line: &Line<'_>) -> Self {
        Self {
            limit: line.id,
            key: Arc::clone(line.limit.shared_key()),
            amount: line.amount.unsigned_abs(),
        }
    }
}

/// Whose permit it is, as a claim sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The claim's: it ends with it.
    Claim,
    /// Somebody else's, or nobody's: the claim only knows of it.
    Other,
    /// Nobody's any more.
    Ended(End),
}

/// What becomes of a permit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) which: Which<'a>,
    /// What was used; it is cancelled if that is not said.
    pub(crate) used: Option<&'a Used>,
}

impl<'a> Change<'a> {
    pub(crate) const fn settle(which: Which<'a>, used: &'a Used) -> Self {
        Self {
            which,
            used: Some(used),
        }
    }

    pub(crate) const fn cancel(which: Which<'a>) -> Self {
        Self { which, used: None }
    }

    /// Whether the permit was granted in another session than this: by what stood at the path before.
    pub(crate) fn is_of_another(&self, session: u64) -> bool {
        matches!(self.which, Which::Claim(claim) if claim.session != session)
    }

    /// Whether the permit was inherited through `fork`: then it is the parent's to change.
    pub(crate) fn is_inherited(&self) -> bool {
        matches!(self.which, Which::Claim(claim) if claim.process != crate::process::mark())
    }
}

/// Which permit is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Claim(&'a Claim),
    Id(&'a str),
}

/// Names a permit that a file knows of. It grows from each permit to the next, so that whoever has seen a
/// larger one can fence off a smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PermitNumber(pub(crate) i64);

/// The position, in its instant, of what was poured out of a bucket at once: it stands in no ledger.
pub(crate) const POURED: i64 = -1;

/// The position, in its instant, of the row in which a limit that has a resolution merges its charges.
pub(crate) const MERGED: i64 = -2;

/// A row of a ledger, as far as it is a claim's: others can have been charged in it, too.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) limit: LimitId,
    /// The pattern that made the limit, if one did.
    pub(crate) pattern: Option<LimitId>,
    pub(crate) key: Arc<str>,
    pub(crate) at: Timestamp,
    pub(crate) seq: i64,
    pub(crate) amount: u64,
}

impl Row {
    /// The row in which a line was charged, by its instant and its position in that.
    pub(crate) fn new(line: &Line<'_>, (at, seq): (Timestamp, i64)) -> Self {
        Self {
            limit: line.id,
            pattern: line.pattern,
            key: Arc::clone(line.limit.shared_key()),
            at,
            seq,
            amount: line.amount.unsigned_abs(),
        }
    }
}

/// Names a booking in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BookingId {
    pub(crate) owner: i64,
    /// Counts the bookings of that owner.
    pub(crate) number: i64,
}
