//! Where ledgers are kept. A store does one atomic operation per call; what to decide, it asks the
//! calendar.

mod claim;
mod memory;
mod moves;
mod sqlite;
mod stop;

use std::fmt;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use smallvec::SmallVec;

use crate::adaptive::Adaptive;
use crate::breaker::Report;
use crate::calendar::{Blocker, Line};
use crate::clock::{Clock, Timestamp};
use crate::decision::{Denial, Peek, Refusal};
use crate::definition::{Definition, Known, LimitChange, OnConflict};
use crate::error::{Error, RequestError};
use crate::estimate::Learned;
use crate::limit::{Kind, Limit};
use crate::line::is_of_slots;
use crate::pause::{Backoff, Pause};
use crate::plan::{Latest, Patience, Plan};
use crate::process::Mark;
use crate::retry_budget::RetryBudget;
use crate::settlement::Settled;
use crate::usage::Usage;

pub(crate) use claim::{
    Block, BookingId, Change, Claim, Handed, Holder, MERGED, POURED, PermitNumber, Registered, Row,
    SlotTake, Which,
};
pub(crate) use memory::MemoryStore;
pub(crate) use sqlite::{Accepted, Held, Options, SqliteStore};
pub use sqlite::{Durability, TableConnection};
#[cfg(feature = "inspect")]
pub use sqlite::{Inspector, Look};
#[cfg(feature = "inspect")]
pub(crate) use sqlite::{check_up, mend_permissions};

/// A place that keeps limits and their ledgers.
///
/// Each method is one atomic operation: it takes effect as a whole, or fails and leaves everything as
/// if it had not been called; and no other caller, in whatever process, sees or changes anything in
/// between. In particular `acquire` reads the clock, decides and charges without anybody else's
/// charge coming in between.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Defines limits, or says what to do about definitions that are there: all of them, or none.
    fn define(&self, limits: &[Limit], conflict: OnConflict) -> Result<Vec<Definition>, Error>;

    /// Puts a definition in the place of another, if that is still the one in force. False if it is not.
    fn replace(&self, stored: &Limit, limit: &Limit) -> Result<bool, Error>;

    /// Removes a limit, and all that was charged to it; if it is in use, only where that is forced.
    fn remove(&self, key: &str, is_forced: bool) -> Result<Limit, Error>;

    /// Forgets what was charged to a limit, or to those that a pattern makes, and what is held and paused of it. Its
    /// definition stays, and so does the place of those who wait.
    fn reset(&self, key: &str) -> Result<Limit, Error>;

    /// Removes all that counts for nothing any more, and gives back what room that leaves: many short operations.
    fn compact(&self) -> Result<Compacted, Error>;

    /// Gives back what the dead held, and removes what belongs to nothing.
    #[cfg(feature = "inspect")]
    fn mend(&self) -> Result<(), Error>;

    /// Lets nobody in before an instant, and moves those behind it who have booked before.
    fn pause(&self, key: &str, backoff: Backoff) -> Result<Pause, Error>;

    /// Lets everybody in again. Returns the pause that was in force.
    fn resume(&self, key: &str) -> Result<Option<Pause>, Error>;

    /// Charges what others have used, who take of the same, so that no more of a rate is left than this: of the one with
    /// this window, or the one that is meant if nothing is said. Returns how much that is.
    fn raise(&self, key: &str, window: Option<Duration>, remaining: u64) -> Result<u64, Error>;

    /// Counts a call that is no retry.
    fn note_call(&self, name: &str) -> Result<(), Error>;

    /// Counts a retry, if a budget allows one more.
    fn try_retry(&self, name: &str, budget: RetryBudget) -> Result<bool, Error>;

    /// Takes a report of a call to the breakers that it was let through by.
    fn report(&self, claim: &Claim, report: Report) -> Result<(), Error>;

    /// Lets a rate follow an answer of a provider. Returns the limit if it is another now.
    fn adapt(
        &self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
    ) -> Result<Option<Limit>, Error>;

    /// Learns from what a call has used of what was estimated for it: see [`Learned`].
    fn learn_estimate(&self, key: &str, estimated: u64, used: u64) -> Result<(), Error>;

    /// What was learned for a limit. Writes nothing.
    fn learned(&self, key: &str) -> Result<Option<Learned>, Error>;

    /// Sleeps until the instant of a claim, until what it has booked may have been moved, or until waiting is stopped.
    fn sleep(&self, claim: &Claim);

    /// Sleeps until the clock shows this, or until waiting is stopped.
    fn rest(&self, until: Duration);

    /// Wakes all who wait, for good.
    fn stop_waiting(&self);

    /// Whether nobody is to wait any more.
    fn is_stopped(&self) -> bool;

    /// Looks whether what a claim has booked was moved. Nothing if it certainly was not; else the claim as it is now, which
    /// can be where it was. Who has read the clock before may go ahead if it was not moved beyond that.
    fn look_after(&self, claim: &Claim) -> Result<Option<Claim>, Error>;

    /// Whether a permit that has an id was ended by nobody, as far as the file knows.
    fn is_open(&self, claim: &Claim) -> Result<bool, Error>;

    /// The last changes of a limit, the last one first.
    fn changes_of(&self, key: &str) -> Result<Vec<LimitChange>, Error>;

    /// The definition of a limit.
    fn limit(&self, key: &str) -> Result<Limit, Error>;

    /// All definitions, by key.
    fn limits(&self) -> Result<Vec<Limit>, Error>;

    /// Decides a request and charges or books it, or lets it wait in line, or charges nothing. Who has waited
    /// shows what it was told when it began to.
    fn acquire(&self, plan: &Plan<'_>, waited: Option<&Queued>) -> Result<Outcome, Error>;

    /// Sleeps until it may be somebody's turn, or until waiting is stopped.
    fn wait(&self, queued: &Queued);

    /// Leaves the line.
    fn leave(&self, queued: &Queued) -> Result<(), Error>;

    /// Corrects what `acquire` charged or booked to what was used, or takes it back, and takes back the slots. A
    /// permit that is no longer there is no error.
    fn change(&self, change: Change<'_>) -> Result<Settled, Error>;

    /// `acquire`, for each plan by itself and in their order, in one operation. None of them waits.
    fn acquire_all(&self, plans: &[Plan<'_>]) -> Result<Vec<Result<Outcome, Error>>, Error>;

    /// `change`, for each permit by itself and in their order, in one operation.
    fn change_all(&self, changes: &[Change<'_>]) -> Result<Vec<Result<Settled, Error>>, Error>;

    /// Gives a permit an id under which any process can settle it.
    fn register(&self, claim: &Claim, id: &str) -> Result<Registered, Error>;

    /// Lets a permit that has an id outlive its process, and end by itself after this long.
    fn detach(&self, claim: &Claim, timeout_ns: i64) -> Result<Option<Timestamp>, Error>;

    /// Lets a permit go on until so long from now. Returns that instant; nothing if the permit has ended.
    fn renew(&self, which: Which<'_>, timeout_ns: i64) -> Result<Option<Timestamp>, Error>;

    /// Says that what `acquire` charged or booked will not be corrected any more, and takes back the slots. What fails
    /// is tried again with the next change.
    fn release(&self, claim: &Claim) -> Result<(), Error>;

    /// Takes back what `acquire` booked, unless somebody else who asked under the same id relies on it. What fails is
    /// tried again with the next change.
    fn give_back(&self, claim: &Claim) -> Result<(), Error>;

    /// Whether what was taken in a session may still be handed out: not if the file has moved since.
    fn is_in(&self, session: u64) -> bool;

    /// Gives back what was not used of a block. What fails is tried again with the next change.
    fn end_block(&self, handed: Handed<'_>) -> Result<(), Error>;

    /// For how long a call waits at most for others to let it at the file.
    fn busy_deadline(&self) -> Duration;

    /// A connection of the caller's own to the file.
    fn connect(&self) -> Result<TableConnection, Error>;

    /// What keeps this process known to be alive to others, for as long as any process has it open.
    #[cfg(target_os = "linux")]
    fn lifeline(&self) -> Result<OwnedFd, Error>;

    /// `acquire`, as part of a transaction of the caller's own that has the write lock: what is charged is charged when
    /// that commits. It never waits.
    fn acquire_within(
        &self,
        connection: &Connection,
        plan: &Plan<'_>,
    ) -> Result<(Outcome, Pending), Error>;

    /// Lets what was charged within a transaction of the caller's be dropped with the next change, if that was
    /// committed.
    fn give_up(&self, claim: &Claim, number: i64);

    /// Whether the transaction of the caller's was committed that charged this.
    fn is_committed(&self, claim: &Claim, number: i64) -> Result<bool, Error>;

    /// What `acquire` would say now. Writes nothing.
    fn peek(&self, plan: &Plan<'_>) -> Result<Peek, Error>;

    /// How a limit stands. Writes nothing.
    fn usage(&self, key: &str) -> Result<Usage, Error>;

    /// The present instant. Writes nothing.
    fn now(&self) -> Result<Timestamp, Error>;

    /// The clock that instants are read from.
    fn clock(&self) -> &dyn Clock;

    /// The file, as errors name it.
    fn place(&self) -> &Path;
}

/// What [`Limiter::compact`](crate::Limiter::compact) has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// How many bytes the database and its WAL had together.
    pub before_bytes: u64,
    /// How many they have now. Others can have written meanwhile.
    pub after_bytes: u64,
    /// How many rows were changed or deleted that count for nothing any more.
    pub deleted: u64,
    /// Whether the WAL is empty. If not, somebody reads in it, or writes.
    pub wal_is_cut: bool,
}

/// What came of an acquisition.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is charged at `claim.at`, which is `now` or a booked instant after it.
    Admitted { claim: Claim, now: Timestamp },
    /// It waits in line, and has to come again.
    Queued(Queued),
    /// Nothing was charged. `deadline` is the last instant that the caller allowed, if that was not now.
    Refused {
        denial: Denial,
        deadline: Option<Timestamp>,
    },
}

/// What keeps a thread from waiting for its own transaction, as long as that has charged something and not ended.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) held: Option<Held>,
    /// By what the file knows the transaction, if it was committed.
    pub(crate) number: i64,
}

/// A place in line.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    /// What stands in the way.
    pub(crate) denial: Denial,
    pub(crate) ticket: TicketId,
    pub(crate) session: u64,
    pub(crate) process: Mark,
    /// What the word that wakes it was when it began to wait.
    pub(crate) seen: u32,
    /// The owners that may hold it up: should one of them die, nobody would call.
    pub(crate) in_the_way: Few<i64>,
    /// How many wait ahead.
    pub(crate) ahead: usize,
    /// The reading of the clock at which to come again if nobody has called.
    pub(crate) again_at: Option<Duration>,
}

/// Names a ticket in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TicketId {
    /// Smaller is earlier.
    pub(crate) number: i64,
    pub(crate) owner: i64,
    pub(crate) since: Timestamp,
}

/// For how long the id of a permit that has ended is remembered, and for how long somebody can still settle the
/// permit of a process that has died.
pub(crate) const REMEMBERED_NS: i64 = 3_600 * 1_000_000_000;

/// Of how many limits that were removed it is remembered that they were.
pub(crate) const REMOVED_REMEMBERED: usize = 4_096;

/// As many as one request mostly has limits; more go to the heap.
pub(crate) type Few<T> = SmallVec<[T; 4]>;

/// Puts a request beside the definitions of its limits, which `known` finds in the order of the request.
///
/// This is also where an amount that no wait would help is refused.
pub(crate) fn lines<'k>(
    plan: &Plan<'_>,
    known: &'k [Arc<Known>],
    place: &Path,
) -> Result<Few<Line<'k>>, Error> {
    let mut lines = Few::with_capacity(known.len());
    for ((_, amount), known) in plan.takes().zip(known) {
        if plan.block.is_some() {
            check_blocks(&known.limit)?;
        }
        let tightest = known.limit.tightest();
        // One call is let through by a breaker, or none.
        let most = match known.limit.kind() {
            Kind::Breaker(_) => 1,
            _ => tightest.capacity(),
        };
        if amount > most {
            return Err(Error::NeverFits {
                key: known.limit.key().to_owned(),
                amount,
                obstacle: tightest,
                file: place.to_owned(),
            });
        }
        lines.push(Line {
            id: known.id,
            pattern: known.pattern,
            limit: &known.limit,
            amount: amount.cast_signed(),
        });
    }
    Ok(lines)
}

/// Refuses to hand out from memory what is no rate: nobody would know until when it counts.
pub(crate) fn check_blocks(limit: &Limit) -> Result<(), RequestError> {
    match limit.kind() {
        Kind::Rates(_) => Ok(()),
        kind => Err(RequestError::NotInBlocks {
            key: limit.key().to_owned(),
            kind: kind.as_str(),
        }),
    }
}

/// Refuses to book slots ahead.
pub(crate) fn check_bookable(plan: &Plan<'_>, lines: &[Line<'_>]) -> Result<(), RequestError> {
    let slots = lines.iter().find(|line| is_of_slots(line));
    match slots.filter(|_| plan.patience.books()) {
        Some(line) => Err(RequestError::NotBookable {
            key: line.limit.key().to_owned(),
        }),
        None => Ok(()),
    }
}

/// When the slots of these lines come back although they are still held, if ever.
pub(crate) fn expiry<'l, 'k: 'l>(
    lines: impl Iterator<Item = &'l Line<'k>>,
    now: Timestamp,
) -> Option<Timestamp> {
    let timeouts = lines.filter_map(|line| line.limit.timeout_ns());
    timeouts
        .min()
        .map(|timeout_ns| now.saturating_plus_ns(timeout_ns))
}

/// The last instant at which a plan may be admitted.
pub(crate) fn latest(patience: Patience, now: Timestamp, elapsed: Duration) -> Timestamp {
    match patience.latest() {
        None => now,
        Some(Latest::Forever) => Timestamp::from_nanos(i64::MAX),
        Some(Latest::Until(deadline)) => deadline.max(now),
        Some(Latest::UntilElapsed(deadline)) => now
            .checked_add(deadline.saturating_sub(elapsed))
            .unwrap_or(Timestamp::from_nanos(i64::MAX)),
    }
}

/// The refusal of a request whose permit was booked before under the same id, for an instant that is later than its
/// caller allows this time.
pub(crate) fn booked_for_later(
    at: Timestamp,
    lines: &[Line<'_>],
    plan: &Plan<'_>,
    now: Timestamp,
    latest: Timestamp,
) -> Option<Outcome> {
    if at <= latest {
        return None;
    }
    // Slots are held from now on, whatever instant their permit bears.
    let position = lines.iter().position(|line| !is_of_slots(line))?;
    let blocker = Blocker {
        line: position,
        obstacle: lines.get(position)?.limit.tightest(),
    };
    Some(Outcome::Refused {
        denial: Denial::new(lines, &blocker, now, Some(at)),
        deadline: (plan.patience != Patience::Now).then_some(latest),
    })
}

/// What is told to somebody whose wait was stopped.
pub(crate) fn stopped(store: &dyn Store, key: &str) -> Error {
    Error::Stopped {
        key: key.to_owned(),
        file: store.place().to_owned(),
    }
}

/// A refusal, as the caller is told of it.
pub(crate) fn denial(
    refusal: Refusal,
    lines: &[Line<'_>],
    now: Timestamp,
    place: &Path,
) -> Result<Denial, Error> {
    match refusal {
        Refusal::Until { at, blocker } => Ok(Denial::new(lines, &blocker, now, Some(at))),
        Refusal::Taken { blocker } | Refusal::Behind { blocker } => {
            Ok(Denial::new(lines, &blocker, now, None))
        }
        Refusal::Beyond { blocker } => Err(Error::BeyondCalendar {
            key: lines[blocker.line].limit.key().to_owned(),
            file: place.to_owned(),
        }),
    }
}
