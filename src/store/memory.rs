//! A store in memory: the same decisions for one process, and for tests.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{
    Claim, Definition, Few, Holding, Known, OnConflict, Outcome, PermitNumber, Queued, Row, Store,
    TicketId, denial, expiry, latest, lines,
};
use crate::calendar::{Charge, Ledgers, LimitId, Line, Total};
use crate::clock::{Clock, Reading, Timeline, Timestamp};
use crate::decision::{Books, Peek, Verdict, decide};
use crate::error::{Error, RequestError};
use crate::limit::{DAY, Limit, MAX_CAPACITY};
use crate::line::{Waiter, decide_behind, is_of_slots, rates_admit};
use crate::plan::{Patience, Plan};
use crate::settlement::{Estimate, Settled, Settlement, Used, correction};
use crate::usage::{People, Usage};

/// What errors name in place of a file.
const PLACE: &str = ":memory:";

/// How often somebody who waits looks at a clock that does not keep pace with real time.
const POLL: Duration = Duration::from_millis(1);

/// How many expired charges one acquisition removes from each ledger that it charges.
const SWEEP: usize = 64;

#[derive(Debug)]
pub(crate) struct MemoryStore {
    clock: Box<dyn Clock>,
    state: Mutex<State>,
    /// Wakes those who wait in line.
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    timeline: Timeline,
    limits: HashMap<Arc<str>, Arc<Known>>,
    ledgers: Accounts,
    debts: HashMap<LimitId, i64>,
    /// The number of the last permit that holds slots.
    last_permit: i64,
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

/// A ledger by instant and position in the instant.
type Ledger = BTreeMap<(Timestamp, i64), Sum>;

/// The rest of a [`Charge`].
#[derive(Clone, Copy, Debug)]
struct Sum {
    amount: i64,
    total: Total,
}

/// What is charged and what is held, as of now.
#[derive(Debug)]
struct Accounts {
    ledgers: HashMap<LimitId, Ledger>,
    slots: HashMap<LimitId, BTreeMap<PermitNumber, Held>>,
    now: Timestamp,
}

/// Slots of one limit that one permit holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    amount: i64,
    expires: Option<Timestamp>,
}

impl MemoryStore {
    pub(crate) fn new(clock: Box<dyn Clock>) -> Self {
        let timeline = Timeline::start(Reading::of(&*clock));
        Self {
            clock,
            state: Mutex::new(State {
                timeline,
                limits: HashMap::new(),
                ledgers: Accounts {
                    ledgers: HashMap::new(),
                    slots: HashMap::new(),
                    now: timeline.high,
                },
                debts: HashMap::new(),
                last_permit: 0,
                tickets: BTreeMap::new(),
                last_ticket: 0,
                changes: 0,
            }),
            freed: Condvar::new(),
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
        let reading = Reading::of(&*self.clock);
        let present = state.timeline.present(reading);
        state.timeline = present.timeline;
        state.timeline.high = present.now;
        state.ledgers.now = present.now;
        (state, reading, present.now)
    }
}

impl Store for MemoryStore {
    fn define(&self, limit: &Limit, conflict: OnConflict) -> Result<Definition, Error> {
        let (mut state, _, _) = self.enter();
        let stored = state.limits.get(limit.key()).cloned();
        let (id, definition) = match stored {
            None => {
                let id = LimitId(i64::try_from(state.limits.len()).unwrap_or(i64::MAX));
                (id, Definition::Created)
            }
            Some(stored) if stored.limit == *limit => return Ok(Definition::Unchanged),
            Some(stored) => match conflict {
                OnConflict::Fail => {
                    return Err(Error::Conflict {
                        stored: Box::new(stored.limit.clone()),
                        given: Box::new(limit.clone()),
                        file: PLACE.into(),
                    });
                }
                OnConflict::Adopt => return Ok(Definition::Adopted(stored.limit.clone())),
                OnConflict::Replace => (stored.id, Definition::Replaced(stored.limit.clone())),
            },
        };
        let known = Known {
            id,
            limit: limit.clone(),
        };
        let key = Arc::clone(limit.shared_key());
        state.limits.insert(key, Arc::new(known));
        self.changed(&mut state);
        Ok(definition)
    }

    fn limit(&self, key: &str) -> Result<Limit, Error> {
        let (state, _, _) = self.enter();
        state.known(key).map(|known| known.limit.clone())
    }

    fn limits(&self) -> Result<Vec<Limit>, Error> {
        let (state, _, _) = self.enter();
        let mut limits: Vec<Limit> = state.limits.values().map(|k| k.limit.clone()).collect();
        limits.sort_by(|a, b| a.key().cmp(b.key()));
        Ok(limits)
    }

    fn acquire(&self, plan: &Plan<'_>, waited: Option<&Queued>) -> Result<Outcome, Error> {
        let (mut state, reading, now) = self.enter();
        let known = state.all_known(plan)?;
        let lines = lines(plan, &known, Path::new(PLACE))?;
        let has_slots = lines.iter().any(is_of_slots);
        if has_slots && plan.patience.books() {
            let key = plan.takes().zip(&lines).find(|(_, line)| is_of_slots(line));
            let key = key.map_or("", |((key, _), _)| key).to_owned();
            return Err(RequestError::NotBookable { key }.into());
        }
        let latest = latest(plan.patience, now, reading);
        let number = waited.map(|queued| queued.ticket.number);
        let refusal = match state.decide(&lines, plan, number, now, latest) {
            Verdict::Admit(at) => {
                if let Some(number) = number {
                    state.tickets.remove(&number);
                    self.changed(&mut state);
                }
                let claim = state.charge(&lines, at, now);
                return Ok(Outcome::Admitted { claim, now });
            }
            Verdict::Refuse(refusal) => refusal,
        };
        let denial = denial(refusal, &lines, now, Path::new(PLACE))?;
        if plan.patience.waits() && latest > now && (has_slots || refusal.is_of_the_line()) {
            let Ok(rates) = rates_admit(&mut state.ledgers, &lines, now);
            if rates.is_none_or(|(at, _)| at <= latest) {
                let number = number.unwrap_or_else(|| state.queue(&known, &lines, latest));
                let mut again_at = rates.map_or(latest, |(at, _)| at);
                for line in lines.iter().filter(|line| is_of_slots(line)) {
                    again_at = again_at.min(state.ledgers.next_expiry(line.id));
                }
                return Ok(Outcome::Queued(Queued {
                    denial,
                    ticket: TicketId {
                        number,
                        owner: 0,
                        since: now,
                    },
                    session: 0,
                    pid: std::process::id(),
                    seen: state.changes,
                    again_at: (again_at < Timestamp::from_nanos(i64::MAX))
                        .then(|| state.timeline.elapsed_at(again_at)),
                }));
            }
        }
        if let Some(number) = number {
            state.tickets.remove(&number);
            self.changed(&mut state);
        }
        Ok(Outcome::Refused {
            denial,
            deadline: (plan.patience != Patience::Now).then_some(latest),
        })
    }

    fn wait(&self, queued: &Queued) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.changes == queued.seen {
            let left = queued.again_at.map_or(Duration::MAX, |again_at| {
                again_at.saturating_sub(self.clock.elapsed())
            });
            if left.is_zero() {
                return;
            }
            let nap = if self.clock.is_real() { left } else { POLL };
            let woken = self.freed.wait_timeout(state, nap.min(DAY));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave(&self, queued: &Queued) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        state.tickets.remove(&queued.ticket.number);
        self.changed(&mut state);
        Ok(())
    }

    fn cancel(&self, claim: &Claim) -> Result<Settled, Error> {
        let (mut state, _, _) = self.enter();
        if !state.let_go(claim) {
            return Ok(Settled::Expired);
        }
        for row in &claim.rows {
            state.ledgers.amend(row.limit, claim.at, row.seq, 0);
        }
        self.changed(&mut state);
        Ok(Settled::Now(Settlement::default()))
    }

    fn release(&self, claim: &Claim) -> Result<(), Error> {
        if claim.holding.is_some() {
            let (mut state, _, _) = self.enter();
            state.let_go(claim);
            self.changed(&mut state);
        }
        Ok(())
    }

    fn settle(&self, claim: &Claim, used: &Used) -> Result<Settled, Error> {
        let (mut state, _, now) = self.enter();
        used.check(&claim.rows)?;
        if !state.let_go(claim) {
            return Ok(Settled::Expired);
        }
        let mut settlement = Settlement::default();
        for row in &claim.rows {
            let Some(used) = used.of(&row.key) else {
                continue;
            };
            let known = state.known(&row.key)?;
            let charged = state.ledgers.amount(row.limit, claim.at, row.seq);
            let estimate = Estimate {
                id: row.limit,
                limit: &known.limit,
                at: claim.at,
                charged: charged.unwrap_or(row.amount.cast_signed()),
                used: used.cast_signed(),
            };
            let Ok(correction) = correction(&mut state.ledgers, &estimate, now);
            let amount = correction.charged;
            state.ledgers.amend(row.limit, claim.at, row.seq, amount);
            state.owe(row.limit, correction.debt);
            settlement.add(row, used, correction);
        }
        self.changed(&mut state);
        Ok(Settled::Now(settlement))
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
        Ok(usage.with(state.people(known.id)))
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

impl State {
    fn known(&self, key: &str) -> Result<Arc<Known>, Error> {
        self.limits
            .get(key)
            .cloned()
            .ok_or_else(|| Error::UnknownLimit {
                key: key.to_owned(),
                file: PLACE.into(),
            })
    }

    /// Takes the slots of a request, if it has any.
    fn hold(&mut self, lines: &[Line<'_>], now: Timestamp) -> Option<Holding> {
        let lines = lines
            .iter()
            .filter(|line| line.limit.slot_count().is_some());
        let limits: Few<LimitId> = lines.clone().map(|line| line.id).collect();
        if limits.is_empty() {
            return None;
        }
        self.last_permit += 1;
        let permit = PermitNumber(self.last_permit);
        let expires = expiry(lines.clone(), now);
        for line in lines {
            let held = Held {
                amount: line.amount,
                expires,
            };
            let slots = self.ledgers.slots.entry(line.id).or_default();
            slots.insert(permit, held);
        }
        Some(Holding { permit, limits })
    }

    /// Gives the slots of a claim back. False if they had come back before.
    fn let_go(&mut self, claim: &Claim) -> bool {
        let Some(holding) = &claim.holding else {
            return true;
        };
        let mut was_held = true;
        for limit in &holding.limits {
            let slots = self.ledgers.slots.entry(*limit).or_default();
            let held = slots.remove(&holding.permit);
            was_held &= held.is_some_and(|held| held.counts(self.ledgers.now));
        }
        was_held
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

    /// Decides behind those who stand before this ticket, or behind all.
    fn decide(
        &mut self,
        lines: &[Line<'_>],
        plan: &Plan<'_>,
        before: Option<i64>,
        now: Timestamp,
        latest: Timestamp,
    ) -> Verdict {
        let books = &mut self.ledgers;
        if plan.patience.books() || self.tickets.is_empty() {
            let Ok(verdict) = decide(books, lines, now, latest);
            return verdict;
        }
        let ahead: Vec<Waiter> = self
            .tickets
            .range(..before.unwrap_or(i64::MAX))
            .filter(|(_, ticket)| now < ticket.latest)
            .map(|(_, ticket)| ticket.waiter.clone())
            .collect();
        let Ok(verdict) = decide_behind(books, &ahead, lines, now, latest);
        verdict
    }

    fn people(&self, limit: LimitId) -> People {
        let waits = |ticket: &&Ticket| {
            let mut takes = ticket.waiter.takes.iter();
            takes.any(|(known, _)| known.id == limit)
        };
        People {
            permits: self.ledgers.slots.get(&limit).map_or(0, BTreeMap::len) as u64,
            waiting: self.tickets.values().filter(waits).count() as u64,
            debt: self.debts.get(&limit).map_or(0, |debt| debt.unsigned_abs()),
        }
    }

    /// Goes to the end of the line.
    fn queue(&mut self, known: &[Arc<Known>], lines: &[Line<'_>], latest: Timestamp) -> i64 {
        let amounts = lines.iter().map(|line| line.amount);
        let waiter = Waiter {
            takes: known.iter().cloned().zip(amounts).collect(),
            is_late: false,
        };
        self.last_ticket += 1;
        self.tickets
            .insert(self.last_ticket, Ticket { waiter, latest });
        self.last_ticket
    }

    /// Takes everything that a request asks for.
    fn charge(&mut self, lines: &[Line<'_>], at: Timestamp, now: Timestamp) -> Claim {
        let rows = lines
            .iter()
            .filter(|line| !is_of_slots(line))
            .map(|line| Row::new(line, self.ledgers.charge(line.id, at, line.amount)))
            .collect();
        let holding = self.hold(lines, now);
        for line in lines {
            let expired = now.saturating_minus_ns(line.limit.longest_reach_ns());
            self.ledgers.sweep(line.id, expired);
        }
        Claim {
            at,
            wake_at: self.timeline.elapsed_at(at),
            session: 0,
            pid: std::process::id(),
            rows,
            booking: None,
            accepted: None,
            holding,
        }
    }
}

impl Held {
    fn counts(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl Accounts {
    /// Adds a charge and returns its position in the instant.
    fn charge(&mut self, limit: LimitId, at: Timestamp, amount: i64) -> i64 {
        let ledger = self.ledgers.entry(limit).or_default();
        let previous = ledger.range(..=(at, i64::MAX)).next_back();
        let (seq, before) = match previous {
            Some((&(previous_at, seq), sum)) if previous_at == at => (seq + 1, sum.total),
            Some((_, sum)) => (0, sum.total),
            // What lay before may have been swept, and the bookings ahead still count from there.
            None => (
                0,
                ledger
                    .first_key_value()
                    .map_or(Total::ZERO, |next| charge_of(next).before()),
            ),
        };
        for (_, sum) in ledger.range_mut((at, seq)..) {
            sum.total = sum.total.plus(amount);
        }
        let total = before.plus(amount);
        ledger.insert((at, seq), Sum { amount, total });
        seq
    }

    /// When the next slot of a limit comes back by itself.
    fn next_expiry(&self, limit: LimitId) -> Timestamp {
        let slots = self
            .slots
            .get(&limit)
            .into_iter()
            .flat_map(BTreeMap::values);
        let expiries = slots.filter_map(|held| held.expires);
        expiries
            .filter(|expires| *expires > self.now)
            .min()
            .unwrap_or(Timestamp::from_nanos(i64::MAX))
    }

    /// What stands in a row, unless it was swept.
    fn amount(&self, limit: LimitId, at: Timestamp, seq: i64) -> Option<i64> {
        Some(self.ledger(limit)?.get(&(at, seq))?.amount)
    }

    /// Changes what stands in a row, unless it was swept; a row of nothing is removed.
    fn amend(&mut self, limit: LimitId, at: Timestamp, seq: i64, amount: i64) {
        let Some(ledger) = self.ledgers.get_mut(&limit) else {
            return;
        };
        let Some(sum) = ledger.get_mut(&(at, seq)) else {
            return;
        };
        let more = amount - sum.amount;
        sum.amount = amount;
        for (_, sum) in ledger.range_mut((at, seq)..) {
            sum.total = sum.total.plus(more);
        }
        if amount == 0 {
            ledger.remove(&(at, seq));
        }
    }

    /// Removes a few charges that no window holds any more.
    fn sweep(&mut self, limit: LimitId, expired: Timestamp) {
        if let Some(ledger) = self.ledgers.get_mut(&limit) {
            for _ in 0..SWEEP {
                match ledger.first_entry() {
                    Some(entry) if entry.key().0 <= expired => entry.remove(),
                    _ => return,
                };
            }
        }
    }

    fn ledger(&self, limit: LimitId) -> Option<&Ledger> {
        self.ledgers.get(&limit)
    }
}

fn charge_of((&(at, seq), sum): (&(Timestamp, i64), &Sum)) -> Charge {
    Charge {
        at,
        seq,
        amount: sum.amount,
        total: sum.total,
    }
}

impl Books for Accounts {
    fn held(&mut self, limit: LimitId) -> Result<i64, Infallible> {
        let now = self.now;
        let Some(slots) = self.slots.get_mut(&limit) else {
            return Ok(0);
        };
        slots.retain(|_, held| held.counts(now));
        Ok(slots.values().map(|held| held.amount).sum())
    }
}

impl Ledgers for Accounts {
    type Error = Infallible;

    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        Ok(self
            .ledger(limit)
            .and_then(|ledger| ledger.range(..=(at, i64::MAX)).next_back())
            .map(charge_of))
    }

    fn first_after(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        Ok(self
            .ledger(limit)
            .and_then(|ledger| ledger.range((at.saturating_plus_ns(1), 0)..).next())
            .map(charge_of))
    }
}
