//! Where ledgers are kept. A store does one atomic operation per call; what to decide, it asks the
//! calendar.

mod memory;
mod sqlite;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::calendar::{LimitId, Line};
use crate::clock::{Clock, Reading, Timestamp};
use crate::decision::{Denial, Peek, Refusal};
use crate::error::Error;
use crate::limit::Limit;
use crate::plan::{Patience, Plan};
use crate::settlement::{Settlement, Used};
use crate::usage::Usage;

pub(crate) use memory::MemoryStore;
pub use sqlite::Durability;
pub(crate) use sqlite::{Accepted, Options, SqliteStore};

/// A place that keeps limits and their ledgers.
///
/// Each method is one atomic operation: it takes effect as a whole, or fails and leaves everything as
/// if it had not been called; and no other caller, in whatever process, sees or changes anything in
/// between. In particular `acquire` reads the clock, decides and charges without anybody else's
/// charge coming in between.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Defines a limit, or says what to do about the definition that is there.
    fn define(&self, limit: &Limit, conflict: OnConflict) -> Result<Definition, Error>;

    /// The definition of a limit.
    fn limit(&self, key: &str) -> Result<Limit, Error>;

    /// All definitions, by key.
    fn limits(&self) -> Result<Vec<Limit>, Error>;

    /// Decides a request and charges or books it, or charges nothing.
    fn acquire(&self, plan: &Plan<'_>) -> Result<Outcome, Error>;

    /// Takes back what `acquire` charged or booked. A claim that is no longer there is no error.
    fn cancel(&self, claim: &Claim) -> Result<(), Error>;

    /// Corrects what `acquire` charged to what was used.
    fn settle(&self, claim: &Claim, used: &Used) -> Result<Settlement, Error>;

    /// Says that what `acquire` booked is used, once its instant comes, and will not be corrected any more.
    /// Writes nothing.
    fn accept(&self, _claim: &Claim) {}

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

/// What to do when a limit is already defined, differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Fail with [`Error::Conflict`], which shows both definitions.
    #[default]
    Fail,
    /// Keep what is stored.
    Adopt,
    /// Put the new definition in its place, for all processes. Charges and bookings stay; a window
    /// that is new or longer counts what the ledger still holds.
    Replace,
}

/// What came of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Definition {
    /// The limit was not there and now is.
    Created,
    /// The limit was there, defined the same.
    Unchanged,
    /// The limit was there, and this stored definition stays in force ([`OnConflict::Adopt`]).
    Adopted(Limit),
    /// The limit was there, and this former definition is gone ([`OnConflict::Replace`]).
    Replaced(Limit),
}

/// What came of an acquisition.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is charged at `claim.at`, which is `now` or a booked instant after it.
    Admitted { claim: Claim, now: Timestamp },
    /// Nothing was charged. `deadline` is the last instant that the caller allowed, if that was not now.
    Refused {
        denial: Denial,
        deadline: Option<Timestamp>,
    },
}

/// What was charged for one acquisition, so that it can be taken back.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) at: Timestamp,
    /// The reading of the clock at `at`.
    pub(crate) wake_at: Duration,
    /// The file that was open when this was charged: what stands at the path later may be another one.
    pub(crate) session: u64,
    pub(crate) pid: u32,
    pub(crate) rows: Few<Row>,
    /// Who booked the rows; nobody if they were charged at once.
    pub(crate) booking: Option<BookingId>,
    /// Where to say that the booking is used.
    pub(crate) accepted: Option<Arc<Accepted>>,
}

impl Claim {
    /// What is told of it in a trace.
    pub(crate) fn first_key(&self) -> Option<&str> {
        self.rows.first().map(|row| &*row.key)
    }
}

/// As many as one request mostly has limits; more go to the heap.
pub(crate) type Few<T> = SmallVec<[T; 4]>;

/// A row of a ledger, at the instant of its claim.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) limit: LimitId,
    pub(crate) key: Arc<str>,
    pub(crate) seq: i64,
    pub(crate) amount: u64,
}

impl Row {
    /// The row in which a line was charged.
    pub(crate) fn new(line: &Line<'_>, seq: i64) -> Self {
        Self {
            limit: line.id,
            key: Arc::clone(line.limit.shared_key()),
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

/// A limit as a store has found it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: LimitId,
    pub(crate) limit: Limit,
}

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
        let tightest = known.limit.tightest();
        if amount > tightest.capacity() {
            return Err(Error::NeverFits {
                key: known.limit.key().to_owned(),
                amount,
                rate: tightest,
                file: place.to_owned(),
            });
        }
        lines.push(Line {
            id: known.id,
            limit: &known.limit,
            amount: amount.cast_signed(),
        });
    }
    Ok(lines)
}

/// The last instant at which a plan may be admitted.
pub(crate) fn latest(patience: Patience, now: Timestamp, reading: Reading) -> Timestamp {
    match patience {
        Patience::Now => now,
        Patience::Forever => Timestamp::from_nanos(i64::MAX),
        Patience::Until(deadline) => deadline.max(now),
        Patience::UntilElapsed(deadline) => {
            let elapsed = Duration::from_nanos(reading.elapsed_ns.unsigned_abs());
            now.checked_add(deadline.saturating_sub(elapsed))
                .unwrap_or(Timestamp::from_nanos(i64::MAX))
        }
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
        Refusal::Until { at, obstacle } => Ok(Denial::new(lines, &obstacle, now, at)),
        Refusal::Beyond { obstacle } => Err(Error::BeyondCalendar {
            key: lines[obstacle.line].limit.key().to_owned(),
            file: place.to_owned(),
        }),
    }
}
