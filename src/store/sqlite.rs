//! The store in a SQLite file, shared by processes.

mod acquire;
mod acts;
mod adaptations;
mod attempts;
#[cfg(feature = "inspect")]
mod backup;
mod blocks;
mod bookings;
mod breakers;
mod buckets;
mod calls;
mod changes;
mod checkpoints;
#[cfg(feature = "inspect")]
mod checkup;
mod compacting;
mod connection;
mod crowd;
mod definitions;
mod desk;
mod dropped;
mod estimates;
mod file_control;
mod generation;
mod handover;
#[cfg(all(feature = "inspect", target_os = "linux"))]
mod heirs;
#[cfg(feature = "inspect")]
mod inspector;
mod joined;
mod ledger;
mod lock_file;
mod memo;
mod moving;
mod owners;
mod patterns;
mod pauses;
mod permits;
mod place;
mod reads;
mod record;
mod refusals;
mod resets;
mod schema;
mod session;
mod settling;
mod shared_page;
mod shifts;
mod slots;
mod sweep;
mod terms;
mod tickets;
mod transaction;
mod wakes;

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

pub(crate) use bookings::Accepted;
#[cfg(feature = "inspect")]
pub(crate) use checkup::{check_up, mend_permissions};
pub use connection::Durability;
#[cfg(feature = "inspect")]
pub use inspector::{Inspector, Look};
pub(crate) use joined::Held;
pub use joined::TableConnection;

use self::acquire::Attempt;
use self::acts::{Acquisition, All, attempt_all};
use self::connection::Deadline;
use self::dropped::Dropped;
use self::place::Place;
use self::refusals::Hint;
use self::session::{LONGEST_OPEN, Opening, Session};
use self::transaction::{Access, Transaction};
use self::wakes::{SHORTEST_POLL, looks_again};
use super::stop::Stop;
use super::{
    Change, Claim, Compacted, Handed, Holder, Outcome, Pending, Queued, Registered, Store, Which,
};
use crate::adaptive::Adaptive;
use crate::breaker::Report;
use crate::clock::{Clock, Timestamp};
use crate::decision::Peek;
use crate::definition::{Author, Definition, LimitChange, OnConflict};
use crate::error::Error;
use crate::estimate::Learned;
use crate::limit::Limit;
use crate::pause::{Backoff, Pause};
use crate::plan::Plan;
use crate::process::Mark;
use crate::retry_budget::RetryBudget;
use crate::settlement::Settled;
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
    /// The process that opened this.
    process: Mark,
    /// What was last added to the time since boot to give an instant.
    offset_ns: AtomicI64,
    state: RwLock<State>,
    /// Of the session in there; 0 if there is none.
    session_number: AtomicU64,
    stop: Stop,
}

#[derive(Debug)]
struct State {
    /// `None` after the file was found to have moved, until the next call opens what stands there.
    session: Option<Arc<Session>>,
    /// The sessions that were left. They are closed when the file is opened anew, all of this process
    /// together. Those of owners stay as long as this limiter lives: what they had booked is still waited
    /// for, and nobody may take it for a dead process's.
    left: Vec<Arc<Session>>,
}

impl SqliteStore {
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        schema::check_sqlite(rusqlite::version_number(), rusqlite::version())?;
        let place = Place::new(&options.path)?;
        if !options.trust_filesystem {
            place.check_filesystem()?;
        }
        if !Session::close_inherited() {
            return Err(place.forked());
        }
        // Opening takes as long as it takes those in front; nobody is to be turned away for that.
        let opening = Opening {
            create: options.create,
            deadline: Deadline::after(options.busy_deadline.max(LONGEST_OPEN)),
        };
        let session = Session::open(&place, &options, opening)?;
        let store = Self {
            options,
            place,
            process: crate::process::mark(),
            offset_ns: AtomicI64::new(i64::MIN),
            state: RwLock::new(State {
                session: Some(Arc::clone(&session)),
                left: Vec::new(),
            }),
            session_number: AtomicU64::new(session.number),
            stop: Stop::default(),
        };
        // The first transaction in a file, and the first one of a boot, ties its instants to the clock.
        let look = |transaction: &mut Transaction<'_>| Ok(transaction.clock_has_to_be_fixed());
        if store.transact(&session, Access::Look, store.deadline(), look)? {
            store.write(&session, |_| Ok(()))?;
        }
        Ok(store)
    }
}

impl Store for SqliteStore {
    fn define(&self, limits: &[Limit], conflict: OnConflict) -> Result<Vec<Definition>, Error> {
        let session = self.session(self.deadline())?;
        let author = Author::this_process();
        self.write(&session, |transaction| {
            let define = |limit| transaction.define(limit, conflict, &author);
            limits.iter().map(define).collect()
        })
    }

    fn replace(&self, stored: &Limit, limit: &Limit) -> Result<bool, Error> {
        let session = self.session(self.deadline())?;
        let author = Author::this_process();
        self.write(&session, |transaction| {
            let known = transaction.defined(stored.key())?;
            let known = known.ok_or_else(|| transaction.unknown(stored.key()))?;
            let still_stands = known.limit == *stored;
            if still_stands && known.limit != *limit {
                transaction.replace(&known, limit, &author)?;
            }
            Ok(still_stands)
        })
    }

    fn remove(&self, key: &str, is_forced: bool) -> Result<Limit, Error> {
        let session = self.session(self.deadline())?;
        let author = Author::this_process();
        self.write(&session, |transaction| {
            transaction.reclaim(&session.lock_file)?;
            transaction.remove(key, is_forced, &author)
        })
    }

    fn reset(&self, key: &str) -> Result<Limit, Error> {
        let session = self.session(self.deadline())?;
        let author = Author::this_process();
        let limit = self.write(&session, |transaction| {
            transaction.reset(key, &author, &session)
        })?;
        session.wake_all_who_booked();
        Ok(limit)
    }

    fn compact(&self) -> Result<Compacted, Error> {
        self.compact_file()
    }

    #[cfg(feature = "inspect")]
    fn mend(&self) -> Result<(), Error> {
        self.mend_file()
    }

    fn pause(&self, key: &str, backoff: Backoff) -> Result<Pause, Error> {
        let session = self.session(self.deadline())?;
        let (pause, is_new) = self.write(&session, |transaction| {
            transaction.pause(key, backoff, &session)
        })?;
        if is_new {
            session.wake_all_who_booked();
        }
        Ok(pause)
    }

    fn resume(&self, key: &str) -> Result<Option<Pause>, Error> {
        let session = self.session(self.deadline())?;
        let lifted = self.write(&session, |transaction| transaction.resume(key, &session))?;
        if lifted.is_some() {
            session.wake_all_who_booked();
        }
        Ok(lifted)
    }

    fn raise(&self, key: &str, window: Option<Duration>, remaining: u64) -> Result<u64, Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| {
            transaction.raise(key, (window, remaining))
        })
    }

    fn note_call(&self, name: &str) -> Result<(), Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| transaction.note_call(name))
    }

    fn try_retry(&self, name: &str, budget: RetryBudget) -> Result<bool, Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| transaction.try_retry(name, budget))
    }

    fn report(&self, claim: &Claim, report: Report) -> Result<(), Error> {
        if !claim.holds_slots() || claim.process != crate::process::mark() {
            return Ok(());
        }
        let session = self.session_of(claim)?;
        self.write(&session, |transaction| transaction.report(claim, report))
    }

    fn adapt(
        &self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
    ) -> Result<Option<Limit>, Error> {
        // Mostly nothing is to be done, and nobody has to wait for the lock to know that.
        let would = self.read(|transaction| transaction.would_adapt(key, adaptive, was_refused))?;
        if would.is_none() {
            return Ok(None);
        }
        let session = self.session(self.deadline())?;
        let author = Author::this_process();
        self.write(&session, |transaction| {
            transaction.adapt(key, adaptive, was_refused, &author)
        })
    }

    fn learn_estimate(&self, key: &str, estimated: u64, used: u64) -> Result<(), Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| {
            let known = transaction.known(key)?;
            transaction.learn(&known, estimated, used)
        })
    }

    fn learned(&self, key: &str) -> Result<Option<Learned>, Error> {
        self.read(|transaction| {
            let known = transaction.known(key)?;
            transaction.learned(&known)
        })
    }

    fn sleep(&self, claim: &Claim) {
        let clock = &*self.options.clock;
        match self.open_session() {
            Some(session)
                if claim.can_be_moved() && clock.is_real() && session.number == claim.session =>
            {
                session.sleep_until_moved(claim, clock, &self.stop);
            }
            _ => self.rest(claim.wake_at),
        }
    }

    fn rest(&self, until: Duration) {
        self.stop.sleep_until(&*self.options.clock, until);
    }

    fn stop_waiting(&self) {
        // Those of other processes are woken, too, and sleep on.
        self.stop.say(wakes::rouse_who_booked);
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_said()
    }

    fn look_after(&self, claim: &Claim) -> Result<Option<Claim>, Error> {
        if !claim.can_be_moved() || claim.process != crate::process::mark() {
            return Ok(None);
        }
        let session = self.session_of(claim)?;
        if session.moves.is_unmoved(claim.moves) {
            return Ok(None);
        }
        // With the lock: nobody who pauses something now has read the clock before whoever asks.
        self.write(&session, |transaction| {
            let moves = session.moves.seen();
            let claim = transaction.moved(claim)?.unwrap_or_else(|| claim.clone());
            Ok(Some(Claim { moves, ..claim }))
        })
    }

    fn is_open(&self, claim: &Claim) -> Result<bool, Error> {
        let Some(registered) = &claim.registered else {
            return Ok(true);
        };
        if claim.process != crate::process::mark() {
            return Ok(true);
        }
        self.session_of(claim)?;
        self.read(|transaction| transaction.is_open(registered.number))
    }

    fn changes_of(&self, key: &str) -> Result<Vec<LimitChange>, Error> {
        self.read(|transaction| transaction.changes_of(key))
    }

    fn limit(&self, key: &str) -> Result<Limit, Error> {
        self.read(|transaction| transaction.limit_of(key))
    }

    fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.read(|transaction| transaction.all_limits())
    }

    fn acquire(&self, plan: &Plan<'_>, waited: Option<&Queued>) -> Result<Outcome, Error> {
        let ends_block = plan.block.is_some_and(|block| block.former.is_some());
        let may_be_known = plan.id().is_none() && waited.is_none() && !ends_block;
        let hint = if may_be_known {
            self.hint(plan)
        } else {
            Hint::Nothing
        };
        let was_refused = match hint {
            Hint::IsRefused { denial, deadline } => {
                return Ok(Outcome::Refused { denial, deadline });
            }
            Hint::WasRefused => true,
            Hint::Nothing => false,
        };
        let deadline = self.lock_deadline(plan.patience);
        let session = self.session(deadline)?;
        if was_refused && let Some(outcome) = self.glance(&session, plan, deadline)? {
            self.use_time_of(&session, &outcome);
            return Ok(outcome);
        }
        // A ticket of another session is in another file, or in nobody's.
        let waited = waited.filter(|queued| queued.session == session.number);
        let ticket = waited.map(|queued| queued.ticket);
        loop {
            match self.together(&session, deadline, &Acquisition { plan, ticket })? {
                Attempt::Done(outcome) => {
                    let is_refused = matches!(outcome, Outcome::Refused { .. });
                    self.use_time_of(&session, &outcome);
                    // Mostly it is what it was.
                    if may_be_known && is_refused != was_refused {
                        session.refusals.remember(plan, is_refused);
                    }
                    return Ok(outcome);
                }
                Attempt::NeedsOwner => self.become_owner(&session, deadline)?,
            }
        }
    }

    fn wait(&self, queued: &Queued) {
        let Ok(session) = self.session(self.deadline()) else {
            return thread::sleep(SHORTEST_POLL);
        };
        let clock = &*self.options.clock;
        let tries_again = Instant::now() + session.wakes.tries_again();
        loop {
            let left = tries_again.saturating_duration_since(Instant::now());
            let until_again = queued.again_at.map_or(Duration::MAX, |again_at| {
                let ahead = again_at.saturating_sub(clock.elapsed());
                if ahead.is_zero() || clock.is_real() {
                    ahead
                } else {
                    SHORTEST_POLL
                }
            });
            let nap = left.min(until_again).min(looks_again(queued.ahead));
            let is_over = nap.is_zero()
                || self.stop.is_said()
                || session.wakes.sleep(queued.ticket.number, queued.seen, nap)
                || !session.are_alive(&queued.in_the_way);
            if is_over {
                return;
            }
        }
    }

    fn leave(&self, queued: &Queued) -> Result<(), Error> {
        let session = self.session(self.deadline())?;
        if queued.process != crate::process::mark() || queued.session != session.number {
            return Ok(());
        }
        self.let_go(&session, Dropped::Place(queued.ticket))
    }

    fn change(&self, change: Change<'_>) -> Result<Settled, Error> {
        if change.is_inherited() {
            return Ok(Settled::Before);
        }
        let session = match change.which {
            Which::Claim(claim) => self.session_of(claim)?,
            Which::Id(_) => self.session(self.deadline())?,
        };
        self.together(&session, self.deadline(), &change)
    }

    fn acquire_all(&self, plans: &[Plan<'_>]) -> Result<Vec<Result<Outcome, Error>>, Error> {
        let deadline = self.deadline();
        let session = self.session(deadline)?;
        let mut is_careful = false;
        loop {
            let all = self.transact(&session, Access::Write, deadline, |transaction| {
                let all = attempt_all(transaction, &session, plans, is_careful)?;
                if !matches!(all, All::Done(_)) {
                    transaction.undo();
                }
                Ok(all)
            })?;
            match all {
                All::Done(outcomes) => return Ok(outcomes),
                All::NeedsOwner => self.become_owner(&session, deadline)?,
                All::NeedsCare => is_careful = true,
            }
        }
    }

    fn change_all(&self, changes: &[Change<'_>]) -> Result<Vec<Result<Settled, Error>>, Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| {
            let mut all = Vec::with_capacity(changes.len());
            for change in changes {
                if !change.is_inherited() && change.is_of_another(session.number) {
                    all.push(Err(self.place.moved()));
                    continue;
                }
                let settled =
                    transaction.as_a_whole(|transaction| transaction.change(*change, &session));
                match settled {
                    Err(error) if !error.is_of_one() => return Err(error),
                    settled => all.push(settled),
                }
            }
            Ok(all)
        })
    }

    fn register(&self, claim: &Claim, id: &str) -> Result<Registered, Error> {
        let session = self.session_of(claim)?;
        let owner = loop {
            match session.owner() {
                Some(owner) => break owner,
                None => self.become_owner(&session, self.deadline())?,
            }
        };
        self.write(&session, |transaction| {
            transaction.register(claim, owner, id)
        })
    }

    fn detach(&self, claim: &Claim, timeout_ns: i64) -> Result<Option<Timestamp>, Error> {
        let Some(registered) = &claim.registered else {
            return Ok(None);
        };
        let session = self.session_of(claim)?;
        self.write(&session, |transaction| {
            transaction.detach(registered.number, timeout_ns)
        })
    }

    fn renew(&self, which: Which<'_>, timeout_ns: i64) -> Result<Option<Timestamp>, Error> {
        match which {
            Which::Claim(claim) => {
                let Some(registered) = &claim.registered else {
                    return Ok(None);
                };
                let session = self.session_of(claim)?;
                self.write(&session, |transaction| {
                    transaction.renew(registered.number, timeout_ns)
                })
            }
            Which::Id(id) => {
                let session = self.session(self.deadline())?;
                self.write(&session, |transaction| {
                    match transaction.find_permit(id)? {
                        Some(found) if found.end.is_none() => {
                            transaction.renew(found.number, timeout_ns)
                        }
                        _ => Ok(None),
                    }
                })
            }
        }
    }

    fn release(&self, claim: &Claim) -> Result<(), Error> {
        if claim.registered.is_none() && claim.booking.is_none() {
            return Ok(());
        }
        // What was inherited through `fork` is the parent's to use.
        if claim.process != crate::process::mark() {
            return Ok(());
        }
        if let Some(registered) = &claim.registered {
            if registered.holder != Holder::Claim {
                return Ok(());
            }
            let session = self.session_of(claim)?;
            return self.let_go(&session, Dropped::Permit(claim.clone()));
        }
        if let (Some(booking), Some(accepted)) = (claim.booking, &claim.accepted) {
            accepted.push(claim.at, booking.number);
        }
        Ok(())
    }

    fn give_back(&self, claim: &Claim) -> Result<(), Error> {
        if claim.process != crate::process::mark() {
            return Ok(());
        }
        let session = self.session_of(claim)?;
        self.let_go(&session, Dropped::Booking(claim.clone()))
    }

    fn is_in(&self, session: u64) -> bool {
        self.session_number.load(Ordering::Relaxed) == session
    }

    fn end_block(&self, handed: Handed<'_>) -> Result<(), Error> {
        let Handed { block, used } = handed;
        if block.process != crate::process::mark() {
            return Ok(());
        }
        let session = self.session(self.deadline())?;
        if block.session != session.number {
            return Ok(());
        }
        self.let_go(&session, Dropped::Block(block.clone(), used))
    }

    fn busy_deadline(&self) -> Duration {
        self.options.busy_deadline
    }

    fn connect(&self) -> Result<TableConnection, Error> {
        self.open_for_caller()
    }

    #[cfg(target_os = "linux")]
    fn lifeline(&self) -> Result<OwnedFd, Error> {
        let session = self.session(self.deadline())?;
        if session.owner().is_none() {
            self.become_owner(&session, self.deadline())?;
        }
        session.lock_file.to_inherit().map_err(|source| {
            self.place
                .failed("keeping its lock file open for a child", source)
        })
    }

    fn acquire_within(
        &self,
        connection: &Connection,
        plan: &Plan<'_>,
    ) -> Result<(Outcome, Pending), Error> {
        self.decide_within(connection, plan)
    }

    fn give_up(&self, claim: &Claim, number: i64) {
        if claim.registered.is_some()
            && let Ok(session) = self.session_of(claim)
        {
            session
                .put_off
                .push([Dropped::Provisional(claim.clone(), number)]);
        }
    }

    fn is_committed(&self, claim: &Claim, number: i64) -> Result<bool, Error> {
        self.was_committed(claim, number)
    }

    fn peek(&self, plan: &Plan<'_>) -> Result<Peek, Error> {
        self.read(|transaction| transaction.peek(plan))
    }

    fn usage(&self, key: &str) -> Result<Usage, Error> {
        self.read(|transaction| transaction.usage(key))
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
