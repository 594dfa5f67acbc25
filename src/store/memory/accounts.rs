//! What is charged and what is held, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;

use crate::adaptive::Adapted;
use crate::breaker::{Broken, Counts};
use crate::calendar::{
    Charge, Kept, Ledgers, Level, LimitId, Line, OpenBlock, OpenBlocks, Poured, Total, corrected,
    expired_until, poured_now, poured_until,
};
use crate::clock::Timestamp;
use crate::decision::Books;
use crate::limit::{Bucket, Limit};
use crate::pause::{Pause, Strikes};
use crate::store::{Block, MERGED, POURED, PermitNumber};

/// How many expired charges one acquisition removes from each ledger that it charges.
const SWEEP: usize = 64;

/// A ledger by instant and position in the instant.
pub(super) type Ledger = BTreeMap<(Timestamp, i64), Sum>;

/// The rest of a [`Charge`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    amount: i64,
    total: Total,
}

/// What is charged and what is held, as of now.
#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) ledgers: HashMap<LimitId, Ledger>,
    pub(super) slots: HashMap<LimitId, BTreeMap<PermitNumber, Held>>,
    /// What was poured out of each bucket.
    pub(super) buckets: HashMap<LimitId, Poured>,
    /// Which windows keep to their capacities, by the definitions that are in force.
    pub(super) kept: Kept,
    /// The charges that are blocks, some of which have ended.
    pub(super) blocks: HashMap<LimitId, BTreeSet<(Timestamp, i64)>>,
    /// When rates that follow a provider were last adapted.
    pub(super) adapted: HashMap<LimitId, Adapted>,
    /// The breakers that are not closed.
    pub(super) broken: HashMap<LimitId, Broken>,
    /// What was reported of calls, in tenths of the window of their breaker.
    pub(super) outcomes: HashMap<LimitId, BTreeMap<Timestamp, Counts>>,
    /// Strikes and pauses.
    pub(super) strikes: HashMap<LimitId, Strikes>,
    pub(super) now: Timestamp,
    pub(super) wall_shift_ns: i64,
}

/// Slots of one limit that one permit holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) amount: i64,
    pub(super) expires: Option<Timestamp>,
    pub(super) since: Timestamp,
}

impl Held {
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl Accounts {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            ledgers: HashMap::new(),
            slots: HashMap::new(),
            buckets: HashMap::new(),
            kept: Kept::default(),
            blocks: HashMap::new(),
            adapted: HashMap::new(),
            broken: HashMap::new(),
            outcomes: HashMap::new(),
            strikes: HashMap::new(),
            now,
            wall_shift_ns: 0,
        }
    }

    /// Charges a line at an instant, which lies ahead if it is booked. Returns where the charge stands.
    pub(super) fn charge_line(&mut self, line: &Line<'_>, at: Timestamp) -> (Timestamp, i64) {
        match line.limit.bucket() {
            Some(bucket) if at <= self.now => {
                let (now, amount) = (self.now, line.amount);
                self.pour(line.id, bucket, |poured| {
                    Some(poured_now(bucket, poured, now, amount))
                });
                (at, POURED)
            }
            _ => self.enter(line.id, line.limit, at, line.amount),
        }
    }

    /// Charges an amount to a limit of rates, or ahead to a bucket. Returns where the charge stands.
    fn enter(
        &mut self,
        id: LimitId,
        limit: &Limit,
        at: Timestamp,
        amount: i64,
    ) -> (Timestamp, i64) {
        if limit.resolution_ns() == 0 {
            return (at, self.charge(id, at, amount));
        }
        let at = limit.entered_at(at);
        if self.amount(id, at, MERGED).is_some() {
            self.amend(id, at, MERGED, amount);
        } else {
            self.insert(id, (at, MERGED), amount);
        }
        (at, MERGED)
    }

    /// Pours out of a bucket what was booked for instants that have come, and changes what came of that as is said.
    pub(super) fn pour(
        &mut self,
        limit: LimitId,
        bucket: Bucket,
        change: impl FnOnce(Option<Poured>) -> Option<Poured>,
    ) {
        let now = self.now;
        let poured = self.buckets.remove(&limit);
        let Ok(poured) = poured_until(self, limit, bucket, poured, now);
        if let Some(ledger) = self.ledgers.get_mut(&limit) {
            ledger.retain(|(at, _), _| *at > now);
        }
        if let Some(poured) = change(poured) {
            self.buckets.insert(limit, poured);
        }
    }

    /// Puts back into a bucket what was poured out of it at an instant, or pours out more now if that is negative.
    pub(super) fn put_back(
        &mut self,
        limit: LimitId,
        bucket: Bucket,
        taken_at: Timestamp,
        amount: i64,
    ) {
        let now = self.now;
        self.pour(limit, bucket, |poured| {
            corrected(bucket, poured, taken_at, now, amount)
        });
    }

    /// Whether nothing is left of what was charged to a limit and held of it.
    pub(super) fn is_idle(&self, limit: LimitId) -> bool {
        let is_empty = self.ledger(limit).is_none_or(BTreeMap::is_empty);
        let is_free = self.slots.get(&limit).is_none_or(BTreeMap::is_empty);
        let is_full = self
            .buckets
            .get(&limit)
            .is_none_or(|poured| poured.full.at < self.now);
        let strikes = self.strikes.get(&limit);
        let is_calm = strikes.is_none_or(|strikes| strikes.are_forgotten(self.now));
        let is_closed = !self.broken.contains_key(&limit) && !self.outcomes.contains_key(&limit);
        is_empty && is_free && is_full && is_calm && is_closed
    }

    pub(super) fn forget(&mut self, limit: LimitId) {
        self.ledgers.remove(&limit);
        self.slots.remove(&limit);
        self.buckets.remove(&limit);
        self.blocks.remove(&limit);
        self.strikes.remove(&limit);
        self.adapted.remove(&limit);
        self.broken.remove(&limit);
        self.outcomes.remove(&limit);
    }

    /// Takes a block of a limit that has room for it, and returns its position in its end.
    pub(super) fn take_block(&mut self, limit: LimitId, amount: i64, until: Timestamp) -> i64 {
        let seq = self.charge(limit, until, amount);
        let blocks = self.blocks.entry(limit).or_default();
        *blocks = blocks.split_off(&(self.now, i64::MAX));
        blocks.insert((until, seq));
        seq
    }

    /// Ends a block: what was used of it is charged now, or at its end if that has come.
    pub(super) fn end_block(&mut self, block: &Block, used: i64, limit: &Limit) {
        let (id, until, seq) = (block.limit, block.until, block.seq);
        let Some(amount) = self.amount(id, until, seq) else {
            return;
        };
        if until <= self.now {
            return self.amend(id, until, seq, used - amount);
        }
        self.amend(id, until, seq, -amount);
        if let Some(blocks) = self.blocks.get_mut(&id) {
            blocks.remove(&(until, seq));
        }
        if used > 0 {
            self.enter(id, limit, self.now, used);
        }
    }

    /// How many blocks of a limit are open.
    pub(super) fn open_block_count(&self, limit: LimitId) -> usize {
        let blocks = self.blocks.get(&limit).into_iter().flatten();
        blocks.filter(|(until, _)| *until > self.now).count()
    }

    /// Adds a charge and returns its position in the instant.
    fn charge(&mut self, limit: LimitId, at: Timestamp, amount: i64) -> i64 {
        let ledger = self.ledgers.entry(limit).or_default();
        let seq = match ledger.range(..=(at, i64::MAX)).next_back() {
            Some((&(previous_at, seq), _)) if previous_at == at => (seq + 1).max(0),
            _ => 0,
        };
        self.insert(limit, (at, seq), amount);
        seq
    }

    fn insert(&mut self, limit: LimitId, position: (Timestamp, i64), amount: i64) {
        let ledger = self.ledgers.entry(limit).or_default();
        let before = match ledger.range(..position).next_back() {
            Some((_, sum)) => sum.total,
            // What lay before may have been swept, and what follows still counts from there.
            None => ledger
                .first_key_value()
                .map_or(Total::ZERO, |next| charge_of(next).before()),
        };
        for (_, sum) in ledger.range_mut(position..) {
            sum.total = sum.total.plus(amount);
        }
        let total = before.plus(amount);
        ledger.insert(position, Sum { amount, total });
    }

    /// When the next slot of a limit comes back by itself.
    pub(super) fn next_expiry(&self, limit: LimitId) -> Timestamp {
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
    pub(super) fn amount(&self, limit: LimitId, at: Timestamp, seq: i64) -> Option<i64> {
        Some(self.ledger(limit)?.get(&(at, seq))?.amount)
    }

    /// Adds to what stands in a row, or takes from it, unless it was swept; a row of nothing is removed.
    pub(super) fn amend(&mut self, limit: LimitId, at: Timestamp, seq: i64, more: i64) {
        let Some(ledger) = self.ledgers.get_mut(&limit) else {
            return;
        };
        let Some(sum) = ledger.get_mut(&(at, seq)) else {
            return;
        };
        sum.amount += more;
        let is_empty = sum.amount == 0;
        for (_, sum) in ledger.range_mut((at, seq)..) {
            sum.total = sum.total.plus(more);
        }
        if is_empty {
            ledger.remove(&(at, seq));
        }
    }

    /// Removes a few charges that no window holds any more, and that are not kept.
    pub(super) fn sweep(&mut self, id: LimitId, limit: &Limit) {
        if let Some(policy) = limit.breaker_policy()
            && let Some(spans) = self.outcomes.get_mut(&id)
        {
            let (_, since) = policy.spans(self.now);
            spans.retain(|at, _| *at > since);
            if spans.is_empty() {
                self.outcomes.remove(&id);
            }
        }
        if let Some(bucket) = limit.bucket() {
            return self.pour(id, bucket, |poured| poured);
        }
        if let Some(expired) = expired_until(limit, self.now, self.wall_shift_ns) {
            self.sweep_until(id, expired);
        }
    }

    fn sweep_until(&mut self, limit: LimitId, expired: Timestamp) {
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

    fn held_since(&mut self, limit: LimitId, at: Timestamp) -> Result<i64, Infallible> {
        let slots = self.slots.get(&limit);
        let held = slots.into_iter().flat_map(BTreeMap::values);
        let since = held.filter(|held| held.since >= at && held.counts(self.now));
        Ok(i64::try_from(since.count()).unwrap_or(i64::MAX))
    }

    fn broken(&mut self, limit: LimitId) -> Result<Option<Broken>, Infallible> {
        Ok(self.broken.get(&limit).cloned())
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
            .and_then(|ledger| ledger.range((at.saturating_plus_ns(1), i64::MIN)..).next())
            .map(charge_of))
    }

    fn open_blocks(&mut self, limit: LimitId) -> Result<OpenBlocks, Infallible> {
        let blocks = self.blocks.get(&limit).into_iter().flatten();
        let open = blocks.filter_map(|(until, seq)| {
            let amount = self.amount(limit, *until, *seq)?;
            Some(OpenBlock {
                until: *until,
                amount,
            })
        });
        Ok(open.collect())
    }

    fn level(&mut self, limit: LimitId) -> Result<Option<Level>, Infallible> {
        Ok(self.buckets.get(&limit).map(Poured::level))
    }

    fn pause(&mut self, limit: LimitId) -> Result<Option<Pause>, Infallible> {
        let strikes = self.strikes.get(&limit);
        Ok(strikes.and_then(|strikes| strikes.pause))
    }

    fn wall_shift_ns(&self) -> i64 {
        self.wall_shift_ns
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        Some(&mut self.kept)
    }
}
