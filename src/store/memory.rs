//! A store in memory: the same decisions for one process, and for tests.

mod accounts;
mod acquire;
mod attempts;
mod blocks;
mod breakers;
mod estimates;
mod limits;
mod pauses;
mod permits;
mod resets;

use std::collections::{BTreeMap, HashMap};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use self::accounts::Accounts;
use self::attempts::Attempts;
use self::limits::Limits;
use self::pauses::Booked;
use self::permits::{EndedPermit, OpenPermit};
use super::moves::Moves;
use super::stop::Stop;
use super::{
    Change, Claim, Compacted, Few, Handed, Holder, Outcome, Pending, PermitNumber, Queued,
    Registered, Store, TableConnection, Which, denial, lines,
};
use crate::adaptive::Adaptive;
use crate::breaker::Report;
use crate::calendar::LimitId;
use crate::clock::{Clock, Reading, Timeline, Timestamp};
use crate::decision::{Peek, Verdict};
use crate::definition::{Definition, Known, LimitChange, OnConflict};
use crate::error::{Error, RequestError};
use crate::estimate::Learned;
use crate::limit::{Limit, MAX_CAPACITY};
use crate::line::Waiter;
use crate::pause::{Backoff, Pause};
use crate::plan::Plan;
use crate::retry_budget::RetryBudget;
use crate::settlement::Settled;
use crate::usage::{People, Usage};

/// What errors name in place of a file.
const PLACE: &str = ":memory:";

/// No call takes long: whoever waits for one for longer than this waits in vain.
const LONGEST_CALL: Duration = Duration::from_secs(5);

/// How long somebody sleeps before trying again: time alone may have brought those ahead to where they leave it
/// something, and that wakes nobody.
const TRIES_AGAIN: Duration = Duration::from_secs(1);

/// How often somebody who waits looks at a clock that does not keep pace with real time.
const POLL: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct MemoryStore {
    clock: Box<dyn Clock>,
    state: Mutex<State>,
    /// Wakes those who wait in line.
    freed: Condvar,
    /// Wakes those who have booked.
    moved: Condvar,
    stop: Stop,
}

#[derive(Debug)]
struct State {
    timeline: Timeline,
    limits: Limits,
    ledgers: Accounts,
    debts: HashMap<LimitId, i64>,
    /// By how much estimates are off, by definition.
    learned: HashMap<LimitId, Learned>,
    /// The number of the last permit that held slots or had an id.
    last_permit: i64,
    permits: BTreeMap<PermitNumber, OpenPermit>,
    ids: HashMap<Box<str>, PermitNumber>,
    ended: HashMap<Box<str>, EndedPermit>,
    /// What is booked and lies ahead, by the order in which it was.
    booked: BTreeMap<i64, Booked>,
    last_booking: i64,
    moves: Moves,
    /// Calls and retries by the names of their budgets, second by second.
    attempts: HashMap<Box<str>, BTreeMap<Timestamp, Attempts>>,
    /// Who waits in line, the smallest number first.
    tickets: BTreeMap<i64, Ticket>,
    last_ticket: i64,
    /// Counts what those in line may have waited for.
    changes: u32,
}

#[derive(Debug)]
struct Ticket {
    waiter: Waiter,
    latest: Timestamp,
}

impl MemoryStore {
    pub(crate) fn new(clock: Box<dyn Clock>) -> Self {
        let timeline = Timeline::start(Reading::of(&*clock));
        Self {
            clock,
            state: Mutex::new(State {
                timeline,
                limits: Limits::default(),
                ledgers: Accounts::new(timeline.high),
                debts: HashMap::new(),
                learned: HashMap::new(),
                last_permit: 0,
                permits: BTreeMap::new(),
                ids: HashMap::new(),
                ended: HashMap::new(),
                booked: BTreeMap::new(),
                last_booking: 0,
                moves: Moves::own(),
                attempts: HashMap::new(),
                tickets: BTreeMap::new(),
                last_ticket: 0,
                changes: 0,
            }),
            freed: Condvar::new(),
            moved: Condvar::new(),
            stop: Stop::default(),
        }
    }

    /// Says that something came free, or that somebody has left the line.
    fn changed(&self, state: &mut State) {
        state.changes = state.changes.wrapping_add(1);
        self.freed.notify_all();
    }

    /// The state and the present. A panic cannot leave the state half changed: nothing in here panics
    /// between two changes.
    fn enter(&self) -> (MutexGuard<'_, State>, Reading, Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (reading, now) = self.read_clock(&mut state);
        (state, reading, now)
    }

    /// Says that bookings may be moved from now on: see [`Moves`].
    fn begin_to_move(&self, state: &mut State) {
        state.moves.count();
        self.read_clock(state);
    }

    fn read_clock(&self, state: &mut State) -> (Reading, Timestamp) {
        let reading = Reading::of(&*self.clock);
        let present = state.timeline.present(reading);
        state.timeline = present.timeline;
        state.timeline.high = present.now;
        state.ledgers.now = present.now;
        state.ledgers.wall_shift_ns = state.timeline.calendar_shift_ns;
        (reading, present.now)
    }
}

impl Store for MemoryStore {
    fn define(&self, limits: &[Limit], conflict: OnConflict) -> Result<Vec<Definition>, Error> {
        let (mut state, _, _) = self.enter();
        let defined = state.define_all(limits, conflict)?;
        self.changed(&mut state);
        Ok(defined)
    }

    fn replace(&self, stored: &Limit, limit: &Limit) -> Result<bool, Error> {
        let (mut state, _, _) = self.enter();
        let still_stands = state.replace_if(stored, limit)?;
        self.changed(&mut state);
        Ok(still_stands)
    }

    fn remove(&self, key: &str, is_forced: bool) -> Result<Limit, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        let removed = state.remove(key, is_forced)?;
        self.changed(&mut state);
        Ok(removed)
    }

    fn reset(&self, key: &str) -> Result<Limit, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        state.known_or_pattern(key)?;
        self.begin_to_move(&mut state);
        let reset = state.reset(key)?;
        self.changed(&mut state);
        self.moved.notify_all();
        Ok(reset)
    }

    fn compact(&self) -> Result<Compacted, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        state.sweep_all();
        Ok(Compacted {
            before_bytes: 0,
            after_bytes: 0,
            deleted: 0,
            wal_is_cut: true,
        })
    }

    #[cfg(feature = "inspect")]
    fn mend(&self) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&self, key: &str, backoff: Backoff) -> Result<Pause, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        if !state.would_pause(key, backoff)? {
            return state.pause(key, backoff);
        }
        self.begin_to_move(&mut state);
        let paused = state.pause(key, backoff);
        self.changed(&mut state);
        self.moved.notify_all();
        paused
    }

    fn resume(&self, key: &str) -> Result<Option<Pause>, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        if !state.is_paused(key)? {
            return Ok(None);
        }
        self.begin_to_move(&mut state);
        let resumed = state.lift_pause(key);
        self.changed(&mut state);
        self.moved.notify_all();
        resumed
    }

    fn raise(&self, key: &str, window: Option<Duration>, remaining: u64) -> Result<u64, Error> {
        let (mut state, _, _) = self.enter();
        state.raise(key, (window, remaining))
    }

    fn note_call(&self, name: &str) -> Result<(), Error> {
        let (mut state, _, now) = self.enter();
        state.count_attempt(name, now).calls += 1;
        Ok(())
    }

    fn try_retry(&self, name: &str, budget: RetryBudget) -> Result<bool, Error> {
        let (mut state, _, now) = self.enter();
        Ok(state.try_retry(name, budget, now))
    }

    fn report(&self, claim: &Claim, report: Report) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        state.report(claim, report);
        self.changed(&mut state);
        Ok(())
    }

    fn adapt(
        &self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
    ) -> Result<Option<Limit>, Error> {
        let (mut state, _, _) = self.enter();
        let adapted = state.adapt(key, adaptive, was_refused)?;
        self.changed(&mut state);
        Ok(adapted)
    }

    fn learn_estimate(&self, key: &str, estimated: u64, used: u64) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        let known = state.known(key)?;
        state.learn(&known, estimated, used);
        Ok(())
    }

    fn learned(&self, key: &str) -> Result<Option<Learned>, Error> {
        let (state, _, _) = self.enter();
        Ok(state.learned(&*state.known(key)?))
    }

    fn sleep(&self, claim: &Claim) {
        if !self.clock.is_real() {
            return self.rest(claim.wake_at);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = claim.wake_at.saturating_sub(self.clock.elapsed());
            let is_moved = claim.can_be_moved() && !state.moves.is_unmoved(claim.moves);
            if left.is_zero() || is_moved || self.stop.is_said() {
                return;
            }
            let woken = self.moved.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn rest(&self, until: Duration) {
        self.stop.sleep_until(&*self.clock, until);
    }

    fn stop_waiting(&self) {
        self.stop.say(|_| ());
        // Who has looked before that has this, or is asleep.
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.freed.notify_all();
        self.moved.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_said()
    }

    fn look_after(&self, claim: &Claim) -> Result<Option<Claim>, Error> {
        let (state, _, _) = self.enter();
        if !claim.can_be_moved() || state.moves.is_unmoved(claim.moves) {
            return Ok(None);
        }
        let moves = state.moves.seen();
        let claim = state.moved(claim).unwrap_or_else(|| claim.clone());
        Ok(Some(Claim { moves, ..claim }))
    }

    fn is_open(&self, claim: &Claim) -> Result<bool, Error> {
        let (state, _, _) = self.enter();
        let registered = claim.registered.as_ref();
        Ok(registered.is_none_or(|registered| state.permits.contains_key(&registered.number)))
    }

    fn changes_of(&self, key: &str) -> Result<Vec<LimitChange>, Error> {
        let (state, _, _) = self.enter();
        Ok(state.limits.changes_of(key))
    }

    fn limit(&self, key: &str) -> Result<Limit, Error> {
        let (state, _, _) = self.enter();
        let known = state.known_or_pattern(key)?;
        Ok(known.limit.clone())
    }

    fn limits(&self) -> Result<Vec<Limit>, Error> {
        let (state, _, _) = self.enter();
        Ok(state.limits.all())
    }

    fn acquire(&self, plan: &Plan<'_>, waited: Option<&Queued>) -> Result<Outcome, Error> {
        let (mut state, reading, now) = self.enter();
        self.attempt(&mut state, (reading, now), plan, waited)
    }

    fn wait(&self, queued: &Queued) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tries_again = Instant::now() + TRIES_AGAIN;
        while state.changes == queued.seen && Instant::now() < tries_again {
            let left = queued.again_at.map_or(Duration::MAX, |again_at| {
                again_at.saturating_sub(self.clock.elapsed())
            });
            if left.is_zero() || self.stop.is_said() {
                return;
            }
            let nap = if self.clock.is_real() { left } else { POLL };
            let woken = self.freed.wait_timeout(state, nap.min(TRIES_AGAIN));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave(&self, queued: &Queued) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        state.tickets.remove(&queued.ticket.number);
        self.changed(&mut state);
        Ok(())
    }

    fn change(&self, change: Change<'_>) -> Result<Settled, Error> {
        let (mut state, _, _) = self.enter();
        let settled = state.change(change);
        self.changed(&mut state);
        settled
    }

    fn acquire_all(&self, plans: &[Plan<'_>]) -> Result<Vec<Result<Outcome, Error>>, Error> {
        let (mut state, reading, now) = self.enter();
        let attempt = |plan| self.attempt(&mut state, (reading, now), plan, None);
        Ok(plans.iter().map(attempt).collect())
    }

    fn change_all(&self, changes: &[Change<'_>]) -> Result<Vec<Result<Settled, Error>>, Error> {
        let (mut state, _, _) = self.enter();
        let settled = changes.iter().map(|change| state.change(*change)).collect();
        self.changed(&mut state);
        Ok(settled)
    }

    fn register(&self, claim: &Claim, id: &str) -> Result<Registered, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        let moved = state.moved(claim);
        let claim = moved.as_ref().unwrap_or(claim);
        let Some(registered) = &claim.registered else {
            let registered = Registered {
                number: state.next_permit(),
                id: Some(id.into()),
                slots: Few::new(),
                fence: None,
                holder: Holder::Claim,
            };
            state.enter_permit(&registered, claim.at, claim.print(), &claim.rows, None);
            if let Some(booking) = claim.booking
                && let Some(booked) = state.booked.get_mut(&booking.number)
            {
                booked.permit = Some(registered.number);
            }
            return Ok(registered);
        };
        let mut registered = (**registered).clone();
        registered.id = Some(id.into());
        state.name_permit(registered.number, id, claim.print());
        Ok(registered)
    }

    fn detach(&self, claim: &Claim, timeout_ns: i64) -> Result<Option<Timestamp>, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        let expires = now.saturating_plus_ns(timeout_ns);
        let number = claim.registered.as_ref().map(|found| found.number);
        let expires = number.and_then(|number| state.detach(number, expires));
        // Those in line have to know that the slots come back by themselves, and when.
        self.changed(&mut state);
        Ok(expires)
    }

    fn renew(&self, which: Which<'_>, timeout_ns: i64) -> Result<Option<Timestamp>, Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        let number = match which {
            Which::Claim(claim) => claim.registered.as_ref().map(|found| found.number),
            Which::Id(id) => state.ids.get(id).copied(),
        };
        let expires = now.saturating_plus_ns(timeout_ns);
        let expires = number.and_then(|number| state.renew(number, expires));
        self.changed(&mut state);
        Ok(expires)
    }

    fn release(&self, claim: &Claim) -> Result<(), Error> {
        if let Some(registered) = &claim.registered
            && registered.holder == Holder::Claim
        {
            let (mut state, _, now) = self.enter();
            state.end_what_is_due(now);
            if state.is_held(registered.number) {
                state.abandon(registered.number, now);
                self.changed(&mut state);
            }
        }
        Ok(())
    }

    fn give_back(&self, claim: &Claim) -> Result<(), Error> {
        let (mut state, _, now) = self.enter();
        state.end_what_is_due(now);
        match claim.registered.as_ref().map(|found| found.number) {
            Some(number) if !state.is_held(number) => {}
            Some(number) if state.is_shared(number) => state.abandon(number, now),
            _ => {
                state.change(Change::cancel(Which::Claim(claim)))?;
            }
        }
        self.changed(&mut state);
        Ok(())
    }

    fn is_in(&self, _session: u64) -> bool {
        true
    }

    fn end_block(&self, handed: Handed<'_>) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        state.end_block(handed);
        self.changed(&mut state);
        Ok(())
    }

    fn busy_deadline(&self) -> Duration {
        LONGEST_CALL
    }

    fn connect(&self) -> Result<TableConnection, Error> {
        Err(RequestError::NoFile.into())
    }

    #[cfg(target_os = "linux")]
    fn lifeline(&self) -> Result<OwnedFd, Error> {
        Err(RequestError::NoFile.into())
    }

    fn acquire_within(
        &self,
        _connection: &Connection,
        _plan: &Plan<'_>,
    ) -> Result<(Outcome, Pending), Error> {
        Err(RequestError::NoFile.into())
    }

    fn give_up(&self, _claim: &Claim, _number: i64) {}

    fn is_committed(&self, _claim: &Claim, _number: i64) -> Result<bool, Error> {
        Err(RequestError::NoFile.into())
    }

    fn peek(&self, plan: &Plan<'_>) -> Result<Peek, Error> {
        let (mut state, _, now) = self.enter();
        let known = state.all_known(plan)?;
        let lines = lines(plan, &known, Path::new(PLACE))?;
        match state.decide(&lines, plan, None, now, now) {
            Verdict::Admit(_) => Ok(Peek::Now),
            Verdict::Refuse(refusal) => {
                denial(refusal, &lines, now, Path::new(PLACE)).map(Peek::Later)
            }
        }
    }

    fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (mut state, _, now) = self.enter();
        let known = state.known(key)?;
        let Ok(usage) = Usage::read(&mut state.ledgers, known.id, &known.limit, now);
        Ok(usage.with(state.people(&known)))
    }

    fn now(&self) -> Result<Timestamp, Error> {
        let (_state, _, now) = self.enter();
        Ok(now)
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn place(&self) -> &Path {
        Path::new(PLACE)
    }
}

fn unknown(key: &str) -> Error {
    Error::UnknownLimit {
        key: key.to_owned(),
        file: PLACE.into(),
    }
}

impl State {
    /// What is defined under this very text, or what a pattern makes of it.
    fn known_or_pattern(&self, text: &str) -> Result<Arc<Known>, Error> {
        match self.limits.defined(text) {
            Some(known) => Ok(Arc::clone(known)),
            None => self.known(text),
        }
    }

    fn known(&self, key: &str) -> Result<Arc<Known>, Error> {
        self.limits.find(key).ok_or_else(|| unknown(key))
    }

    fn owe(&mut self, limit: LimitId, debt: i64) {
        if debt > 0 {
            let owed = self.debts.entry(limit).or_default();
            *owed = owed.saturating_add(debt).min(MAX_CAPACITY.cast_signed());
        }
    }

    fn all_known(&self, plan: &Plan<'_>) -> Result<Few<Arc<Known>>, Error> {
        plan.takes().map(|(key, _)| self.known(key)).collect()
    }

    fn people(&self, known: &Known) -> People {
        let limit = known.id;
        let waits = |ticket: &&Ticket| {
            let mut takes = ticket.waiter.takes.iter();
            takes.any(|(known, _)| known.id == limit)
        };
        People {
            permits: self.ledgers.slots.get(&limit).map_or(0, BTreeMap::len) as u64,
            waiting: self.tickets.values().filter(waits).count() as u64,
            debt: self.debts.get(&limit).map_or(0, |debt| debt.unsigned_abs()),
            was_lowered: known.was_lowered,
        }
    }
}
