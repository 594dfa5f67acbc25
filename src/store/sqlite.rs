//! The store in a SQLite file, shared by processes.

mod connection;
mod definitions;
mod file_control;
mod ledger;
mod lock_file;
mod memo;
mod owners;
mod place;
mod schema;
mod session;
mod sweep;
mod transaction;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use connection::Durability;

use self::connection::waiting_until;
use self::place::Place;
use self::session::Session;
use self::transaction::{Access, Transaction};
use super::{
    BookingId, Claim, Definition, Few, OnConflict, Outcome, Row, Store, denial, latest, lines,
};
use crate::calendar::Line;
use crate::clock::{Clock, Timestamp};
use crate::decision::{Peek, Verdict, decide};
use crate::error::Error;
use crate::limit::Limit;
use crate::plan::{Patience, Plan};
use crate::usage::Usage;

/// How a file is opened and used.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) durability: Durability,
    pub(crate) busy_deadline: Duration,
    pub(crate) reader_count: u32,
    pub(crate) mode: u32,
    pub(crate) trust_filesystem: bool,
    pub(crate) create: bool,
}

/// A caller that is ready to wait for its turn waits at least this long for the lock, so that a short
/// deadline is answered with an instant and not with `Busy`.
const SHORTEST_LOCK_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct SqliteStore {
    options: Options,
    place: Place,
    /// `None` after the file was found to have moved, until the next call opens what stands there.
    session: Mutex<Option<Arc<Session>>>,
}

impl SqliteStore {
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        schema::check_sqlite(rusqlite::version_number(), rusqlite::version())?;
        let place = Place::new(&options.path)?;
        if !options.trust_filesystem {
            place.check_filesystem()?;
        }
        let session = Arc::new(Session::open(&place, &options, options.create)?);
        let store = Self {
            options,
            place,
            session: Mutex::new(Some(Arc::clone(&session))),
        };
        // The first transaction in a file, and the first one of a boot, ties its instants to the clock.
        store.write(&session, |_| Ok(()))?;
        Ok(store)
    }

    /// The open session. After a fork the child opens one of its own: SQLite's connections and locks
    /// belong to the process that made them, and closing the copies would close the parent's.
    fn session(&self) -> Result<Arc<Session>, Error> {
        let mut current = self.lock_session();
        if let Some(session) = &*current {
            if session.is_ours() {
                return Ok(Arc::clone(session));
            }
            if let Some(inherited) = current.take() {
                Session::disown(inherited);
            }
        }
        // Never creates: a file that was removed comes back when somebody opens it on purpose.
        if !self.place.database.exists() {
            return Err(self.place.moved());
        }
        let session = Arc::new(Session::open(&self.place, &self.options, false)?);
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    fn lock_session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a session that can no longer be used.
    fn leave(&self, session: &Session) {
        let mut current = self.lock_session();
        if current
            .as_ref()
            .is_some_and(|open| open.number == session.number)
        {
            *current = None;
        }
    }

    /// Runs one transaction, and commits if it returns a value.
    fn transact<T>(
        &self,
        session: &Session,
        access: Access,
        lock_wait: Duration,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let asked = Instant::now();
        let deadline = asked + lock_wait;
        let mut link = session.link(access, &self.place, deadline)?;
        let result = waiting_until(deadline, || {
            let clock = &*self.options.clock;
            let mut transaction =
                Transaction::begin(&mut link, access, &self.place, &session.watch, clock, asked)?;
            let value = act(&mut transaction)?;
            transaction.finish()?;
            Ok(value)
        });
        if link.stuck || matches!(result, Err(Error::Moved { .. })) {
            self.leave(session);
        }
        result
    }

    fn read<T>(
        &self,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let session = self.session()?;
        self.transact(&session, Access::Read, self.options.busy_deadline, act)
    }

    fn write<T>(
        &self,
        session: &Session,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(session, Access::Write, self.options.busy_deadline, act)
    }

    /// Makes this process an owner, if it is none yet.
    fn become_owner(&self, session: &Session) -> Result<(), Error> {
        let mut owner = session.lock_owner();
        if owner.is_some() {
            return Ok(());
        }
        let mut entered = None;
        let result = self.write(session, |transaction| {
            // A good moment to see who else is gone.
            transaction.reclaim(&session.lock_file, None)?;
            let id = transaction.insert_owner(&session.lock_file)?;
            entered = Some(id);
            Ok(())
        });
        match result {
            Ok(()) => *owner = entered,
            Err(_) => {
                if let Some(id) = entered {
                    // Nobody has seen the row; should this fail, the byte stays locked and the id of
                    // the next owner is reported as damaged rather than shared.
                    let _ = session.lock_file.unlock_owner(id);
                }
            }
        }
        result
    }

    /// How long to wait for the write lock.
    fn lock_wait(&self, patience: Patience) -> Duration {
        match patience {
            Patience::UntilElapsed(deadline) => {
                let left = deadline.saturating_sub(self.options.clock.elapsed());
                self.options.busy_deadline.min(left.max(SHORTEST_LOCK_WAIT))
            }
            Patience::Now | Patience::Until(_) | Patience::Forever => self.options.busy_deadline,
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let session = self.lock_session().take();
        if let Some(inherited) = session
            && !inherited.is_ours()
        {
            Session::disown(inherited);
        }
    }
}

/// What one attempt at an acquisition came to.
enum Attempt {
    Done(Outcome),
    /// The request has to be booked, and this process is not an owner yet. Nothing was written.
    NeedsOwner,
}

impl Store for SqliteStore {
    fn define(&self, limit: &Limit, conflict: OnConflict) -> Result<Definition, Error> {
        let session = self.session()?;
        self.write(&session, |transaction| transaction.define(limit, conflict))
    }

    fn limit(&self, key: &str) -> Result<Limit, Error> {
        self.read(|transaction| Ok(transaction.known(key)?.limit.clone()))
    }

    fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.read(|transaction| {
            let known = transaction.read_all_definitions()?;
            Ok(known.into_iter().map(|known| known.limit).collect())
        })
    }

    fn acquire(&self, plan: &Plan<'_>) -> Result<Outcome, Error> {
        let session = self.session()?;
        loop {
            let owner = *session.lock_owner();
            let attempt = self.transact(
                &session,
                Access::Write,
                self.lock_wait(plan.patience),
                |transaction| attempt(transaction, &session, plan, owner),
            )?;
            match attempt {
                Attempt::Done(outcome) => return Ok(outcome),
                Attempt::NeedsOwner => self.become_owner(&session)?,
            }
        }
    }

    fn cancel(&self, claim: &Claim) -> Result<(), Error> {
        let session = self.session()?;
        if session.number != claim.session {
            // Charged in another file, or by the process that this one was forked from.
            return Ok(());
        }
        self.write(&session, |transaction| {
            let charges = transaction.find_claimed(claim)?;
            transaction.take_back(charges)
        })
    }

    fn peek(&self, plan: &Plan<'_>) -> Result<Peek, Error> {
        self.read(|transaction| {
            let known = transaction.all_known(plan)?;
            let lines = lines(plan, &known, &transaction.place.database)?;
            let now = transaction.now();
            match decide(transaction, &lines, now, now)? {
                Verdict::Admit(_) => Ok(Peek::Now),
                Verdict::Refuse(refusal) => {
                    denial(refusal, &lines, now, &transaction.place.database).map(Peek::Later)
                }
            }
        })
    }

    fn usage(&self, key: &str) -> Result<Usage, Error> {
        self.read(|transaction| {
            let known = transaction.known(key)?;
            let now = transaction.now();
            Usage::read(transaction, known.id, &known.limit, now)
        })
    }

    fn now(&self) -> Result<Timestamp, Error> {
        self.read(|transaction| Ok(transaction.now()))
    }

    fn clock(&self) -> &dyn Clock {
        &*self.options.clock
    }

    fn place(&self) -> &Path {
        &self.place.database
    }
}

/// Decides a request and charges it, inside a transaction that holds the write lock.
fn attempt(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plan: &Plan<'_>,
    owner: Option<i64>,
) -> Result<Attempt, Error> {
    let now = transaction.now();
    let known = transaction.all_known(plan)?;
    let lines = lines(plan, &known, &transaction.place.database)?;
    let latest = latest(plan.patience, now, transaction.reading);
    let mut verdict = decide(transaction, &lines, now, latest)?;
    // Only what is booked can come back, and only those who are not served at once need to look.
    if verdict != Verdict::Admit(now)
        && anything_booked(transaction, &lines, now)?
        && transaction.reclaim(&session.lock_file, owner)?
    {
        verdict = decide(transaction, &lines, now, latest)?;
    }
    let at = match verdict {
        Verdict::Admit(at) => at,
        Verdict::Refuse(refusal) => {
            return Ok(Attempt::Done(Outcome::Refused {
                denial: denial(refusal, &lines, now, &transaction.place.database)?,
                deadline: (plan.patience != Patience::Now).then_some(latest),
            }));
        }
    };
    let booking = if at == now {
        None
    } else {
        let Some(owner) = owner else {
            return Ok(Attempt::NeedsOwner);
        };
        Some(BookingId {
            owner,
            number: session.next_booking(),
        })
    };
    let mut rows = Few::with_capacity(lines.len());
    for line in &lines {
        let seq = transaction.charge(line.id, at, line.amount, booking)?;
        rows.push(Row {
            limit: line.id,
            seq,
        });
    }
    if let Some(turn) = session.sweep_turn() {
        let next = transaction.sweep(&lines, turn)?;
        session.swept(next);
    }
    Ok(Attempt::Done(Outcome::Admitted {
        claim: Claim {
            at,
            wake_at: transaction.timeline().elapsed_at(at),
            session: session.number,
            rows,
            booking,
        },
        now,
    }))
}

fn anything_booked(
    transaction: &mut Transaction<'_>,
    lines: &[Line<'_>],
    now: Timestamp,
) -> Result<bool, Error> {
    for line in lines {
        if transaction
            .very_last(line.id)?
            .is_some_and(|last| last.at > now)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
