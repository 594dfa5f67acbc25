//! A store in memory: the same decisions for one process, and for tests.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Claim, Definition, Few, Known, OnConflict, Outcome, Row, Store, denial, latest, lines,
};
use crate::calendar::{Charge, Ledgers, LimitId, Line, Total};
use crate::clock::{Clock, Reading, Timeline, Timestamp};
use crate::decision::{Peek, Verdict, decide};
use crate::error::Error;
use crate::limit::Limit;
use crate::plan::{Patience, Plan};
use crate::settlement::{Estimate, Settlement, Used, correction};
use crate::usage::Usage;

/// What errors name in place of a file.
const PLACE: &str = ":memory:";

/// How many expired charges one acquisition removes from each ledger that it charges.
const SWEEP: usize = 64;

#[derive(Debug)]
pub(crate) struct MemoryStore {
    clock: Box<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    timeline: Timeline,
    limits: HashMap<Arc<str>, Arc<Known>>,
    ledgers: Books,
    debts: HashMap<LimitId, i64>,
}

/// A ledger by instant and position in the instant.
type Ledger = BTreeMap<(Timestamp, i64), Sum>;

/// The rest of a [`Charge`].
#[derive(Clone, Copy, Debug)]
struct Sum {
    amount: i64,
    total: Total,
}

#[derive(Debug, Default)]
struct Books(HashMap<LimitId, Ledger>);

impl MemoryStore {
    pub(crate) fn new(clock: Box<dyn Clock>) -> Self {
        let timeline = Timeline::start(Reading::of(&*clock));
        Self {
            clock,
            state: Mutex::new(State {
                timeline,
                limits: HashMap::new(),
                ledgers: Books::default(),
                debts: HashMap::new(),
            }),
        }
    }

    /// The state and the present. A panic cannot leave the state half changed: nothing in here panics
    /// between two changes.
    fn enter(&self) -> (MutexGuard<'_, State>, Reading, Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = Reading::of(&*self.clock);
        let present = state.timeline.present(reading);
        state.timeline = present.timeline;
        state.timeline.high = present.now;
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

    fn acquire(&self, plan: &Plan<'_>) -> Result<Outcome, Error> {
        let (mut state, reading, now) = self.enter();
        let known = state.all_known(plan)?;
        let lines = lines(plan, &known, Path::new(PLACE))?;
        let latest = latest(plan.patience, now, reading);
        match state.decide(&lines, now, latest) {
            Verdict::Admit(at) => {
                let rows = lines
                    .iter()
                    .map(|line| Row::new(line, state.ledgers.charge(line.id, at, line.amount)))
                    .collect();
                for line in &lines {
                    let expired = now.saturating_minus_ns(line.limit.longest_reach_ns());
                    state.ledgers.sweep(line.id, expired);
                }
                let wake_at = state.timeline.elapsed_at(at);
                Ok(Outcome::Admitted {
                    claim: Claim {
                        at,
                        wake_at,
                        session: 0,
                        pid: std::process::id(),
                        rows,
                        booking: None,
                        accepted: None,
                    },
                    now,
                })
            }
            Verdict::Refuse(refusal) => Ok(Outcome::Refused {
                denial: denial(refusal, &lines, now, Path::new(PLACE))?,
                deadline: (plan.patience != Patience::Now).then_some(latest),
            }),
        }
    }

    fn cancel(&self, claim: &Claim) -> Result<(), Error> {
        let (mut state, _, _) = self.enter();
        for row in &claim.rows {
            state.ledgers.amend(row.limit, claim.at, row.seq, 0);
        }
        Ok(())
    }

    fn settle(&self, claim: &Claim, used: &Used) -> Result<Settlement, Error> {
        let (mut state, _, now) = self.enter();
        used.check(&claim.rows)?;
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
        Ok(settlement)
    }

    fn peek(&self, plan: &Plan<'_>) -> Result<Peek, Error> {
        let (mut state, _, now) = self.enter();
        let known = state.all_known(plan)?;
        let lines = lines(plan, &known, Path::new(PLACE))?;
        match state.decide(&lines, now, now) {
            Verdict::Admit(_) => Ok(Peek::Now),
            Verdict::Refuse(refusal) => {
                denial(refusal, &lines, now, Path::new(PLACE)).map(Peek::Later)
            }
        }
    }

    fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (mut state, _, now) = self.enter();
        let known = state.known(key)?;
        let debt = state.debts.get(&known.id).copied().unwrap_or(0);
        let Ok(usage) = Usage::read(&mut state.ledgers, known.id, &known.limit, now);
        Ok(usage.owing(debt))
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

    fn owe(&mut self, limit: LimitId, debt: i64) {
        if debt > 0 {
            let owed = self.debts.entry(limit).or_default();
            *owed = owed.saturating_add(debt);
        }
    }

    fn all_known(&self, plan: &Plan<'_>) -> Result<Few<Arc<Known>>, Error> {
        plan.takes().map(|(key, _)| self.known(key)).collect()
    }

    fn decide(&mut self, lines: &[Line<'_>], now: Timestamp, latest: Timestamp) -> Verdict {
        let Ok(verdict) = decide(&mut self.ledgers, lines, now, latest);
        verdict
    }
}

impl Books {
    /// Adds a charge and returns its position in the instant.
    fn charge(&mut self, limit: LimitId, at: Timestamp, amount: i64) -> i64 {
        let ledger = self.0.entry(limit).or_default();
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

    /// What stands in a row, unless it was swept.
    fn amount(&self, limit: LimitId, at: Timestamp, seq: i64) -> Option<i64> {
        Some(self.ledger(limit)?.get(&(at, seq))?.amount)
    }

    /// Changes what stands in a row, unless it was swept; a row of nothing is removed.
    fn amend(&mut self, limit: LimitId, at: Timestamp, seq: i64, amount: i64) {
        let Some(ledger) = self.0.get_mut(&limit) else {
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
        if let Some(ledger) = self.0.get_mut(&limit) {
            for _ in 0..SWEEP {
                match ledger.first_entry() {
                    Some(entry) if entry.key().0 <= expired => entry.remove(),
                    _ => return,
                };
            }
        }
    }

    fn ledger(&self, limit: LimitId) -> Option<&Ledger> {
        self.0.get(&limit)
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

impl Ledgers for Books {
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
