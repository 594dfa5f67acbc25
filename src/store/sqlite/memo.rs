//! What a connection remembers of the file between its transactions.
//!
//! A seek costs SQLite most of a microsecond. While nobody else has written, what was read before still
//! stands, and SQLite says for a few nanoseconds whether anybody has. So the memo is never a second
//! truth: it is asked only after the write lock is held and the file is known not to have changed since.

#![expect(
    clippy::option_option,
    reason = "whether there is an answer is one question, whether it names a charge is another"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::shifts::Position;
use crate::calendar::{Charge, Kept, LimitId, OpenBlocks, Poured};
use crate::clock::{Timeline, Timestamp};
use crate::definition::Known;
use crate::limit::LimitError;
use crate::pause::Pause;

/// How many limits and ledgers are remembered at most.
pub(super) const MOST: usize = 1_024;

/// How many windows of one ledger are remembered at most.
const MOST_RUNS: usize = 16;

/// How many charges are remembered for one window at most, and read at once when the window moves.
pub(super) const RUN: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Memo {
    /// The data version of the file as of which the rest holds; `None` if nothing does.
    pub(super) version: Option<u32>,
    pub(super) clock: Option<ClockRow>,
    /// Whether the line is empty, if that is known.
    pub(super) nobody_waits: Option<bool>,
    /// Whether no limit has blocks, if that is known.
    pub(super) nobody_has_blocks: Option<bool>,
    /// Holds for as long as `clock.definitions` stays the same, whoever writes.
    limits: BTreeMap<Arc<str>, Arc<Known>>,
    /// The same by id, as far as they were asked for by it.
    limits_by_id: BTreeMap<LimitId, Arc<Known>>,
    /// All patterns; holds as long as `limits` does.
    pub(super) patterns: Option<Vec<Arc<Known>>>,
    /// The patterns among them that this program cannot read, and why.
    pub(super) unreadable: Vec<(String, LimitError)>,
    /// The limits that patterns make of keys, with the numbers of their ledgers: others open and close those.
    keys: BTreeMap<Arc<str>, Arc<Known>>,
    /// Whether the totals of a ledger are shifted anywhere; holds as long as `limits` does.
    shifted: BTreeMap<LimitId, bool>,
    /// Whether the totals of any are; holds as long.
    pub(super) any_shifts: Option<bool>,
    /// The keys of all limits that are defined by themselves, if there are few; holds as long.
    pub(super) plain_keys: Option<BTreeSet<Box<str>>>,
    /// The last pauses of limits; holds as long.
    pauses: BTreeMap<LimitId, Option<Pause>>,
    /// Whether there are any; holds as long.
    pub(super) any_pauses: Option<bool>,
    /// Whether any breaker is not closed; holds as long.
    pub(super) any_broken: Option<bool>,
    /// Which windows keep to their capacities; holds as long.
    pub(super) kept: Kept,
    ledgers: BTreeMap<LimitId, LedgerMemo>,
    /// The blocks that are open, of limits that were asked for them.
    blocks: BTreeMap<LimitId, OpenBlocks>,
}

/// The row of the table `clock`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockRow {
    pub(super) timeline: Timeline,
    pub(super) definitions: i64,
}

#[derive(Debug, Default)]
struct LedgerMemo {
    /// What was poured out of the bucket; `Some(None)` if nothing was.
    poured: Option<Option<Poured>>,
    /// The very last charge; `Some(None)` if the ledger is empty.
    last: Option<Option<Charge>>,
    /// From where on no total is shifted, if that is known.
    unshifted_from: Option<Position>,
    runs: Vec<Run>,
}

/// The charges that follow an instant, without a gap: what a window that begins there finds first, and
/// what it will find when time has gone on.
#[derive(Debug)]
struct Run {
    after: Timestamp,
    charges: VecDeque<Charge>,
    /// Whether there are no charges but these after `after`.
    complete: bool,
}

impl Run {
    fn covers(&self, at: Timestamp) -> bool {
        self.after <= at && (self.complete || self.charges.back().is_some_and(|last| at < last.at))
    }

    /// The first charge after an instant that this run covers. A window only moves forward, so what
    /// lies before is let go.
    fn first_after(&mut self, at: Timestamp) -> Option<Charge> {
        while let Some(next) = self.charges.front() {
            if next.at > at {
                return Some(*next);
            }
            self.after = next.at;
            self.charges.pop_front();
        }
        None
    }

    fn append(&mut self, charge: Charge) {
        if !self.complete {
            return;
        }
        if self.charges.len() < RUN {
            self.charges.push_back(charge);
        } else {
            self.complete = false;
        }
    }
}

impl Memo {
    /// Forgets what depends on nobody else having written.
    pub(super) fn forget_ledgers(&mut self) {
        self.version = None;
        self.nobody_waits = None;
        self.nobody_has_blocks = None;
        self.ledgers.clear();
        self.blocks.clear();
        self.keys.clear();
    }

    pub(super) fn forget_limits(&mut self) {
        self.limits.clear();
        self.limits_by_id.clear();
        self.patterns = None;
        self.keys.clear();
        self.shifted.clear();
        self.any_shifts = None;
        self.pauses.clear();
        self.any_pauses = None;
        self.any_broken = None;
        self.plain_keys = None;
        self.kept.clear();
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        self.forget_ledgers();
        self.forget_limits();
        self.clock = None;
    }

    pub(super) fn limit(&self, key: &str) -> Option<&Arc<Known>> {
        self.limits.get(key).or_else(|| self.keys.get(key))
    }

    pub(super) fn remember_key(&mut self, known: &Arc<Known>) {
        if self.keys.len() >= MOST {
            self.keys.clear();
        }
        let key = Arc::clone(known.limit.shared_key());
        self.keys.insert(key, Arc::clone(known));
    }

    pub(super) fn forget_key(&mut self, key: &str) {
        self.keys.remove(key);
    }

    pub(super) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    pub(super) fn poured(&self, limit: LimitId) -> Option<Option<&Poured>> {
        let poured = self.ledgers.get(&limit)?.poured.as_ref()?;
        Some(poured.as_ref())
    }

    pub(super) fn remember_poured(&mut self, limit: LimitId, poured: Option<Poured>) {
        self.ledger(limit).poured = Some(poured);
    }

    pub(super) fn blocks(&self, limit: LimitId) -> Option<&OpenBlocks> {
        self.blocks.get(&limit)
    }

    pub(super) fn blocks_mut(&mut self, limit: LimitId) -> Option<&mut OpenBlocks> {
        self.blocks.get_mut(&limit)
    }

    pub(super) fn remember_blocks(&mut self, limit: LimitId, blocks: OpenBlocks) {
        if self.blocks.len() >= MOST {
            self.blocks.clear();
        }
        self.blocks.insert(limit, blocks);
    }

    pub(super) fn forget_blocks(&mut self, limit: LimitId) {
        self.blocks.remove(&limit);
    }

    pub(super) fn has_shifts(&self, limit: LimitId) -> Option<bool> {
        self.shifted.get(&limit).copied()
    }

    pub(super) fn remember_shifts(&mut self, limit: LimitId, has_shifts: bool) {
        if has_shifts {
            self.any_shifts = Some(true);
        }
        if self.shifted.len() >= MOST {
            self.shifted.clear();
        }
        self.shifted.insert(limit, has_shifts);
    }

    pub(super) fn shifts_are_gone(&mut self, limit: LimitId) {
        self.shifted.remove(&limit);
    }

    /// Whether no total is shifted from a place on, as far as is known.
    pub(super) fn is_unshifted(&self, limit: LimitId, at: Position) -> bool {
        let ledger = self.ledgers.get(&limit);
        let from = ledger.and_then(|ledger| ledger.unshifted_from);
        from.is_some_and(|from| from <= at)
    }

    /// Remembers that no total is shifted from a place on, where more was not known.
    pub(super) fn remember_unshifted(&mut self, limit: LimitId, from: Position) {
        self.ledger(limit).unshifted_from = Some(from);
    }

    /// The last pause of a limit, if that is remembered.
    pub(super) fn pause(&self, limit: LimitId) -> Option<Option<Pause>> {
        self.pauses.get(&limit).copied()
    }

    pub(super) fn remember_pause(&mut self, limit: LimitId, pause: Option<Pause>) {
        if self.pauses.len() >= MOST {
            self.pauses.clear();
        }
        self.pauses.insert(limit, pause);
    }

    pub(super) fn limit_by_id(&self, id: LimitId) -> Option<&Arc<Known>> {
        self.limits_by_id.get(&id)
    }

    pub(super) fn remember_limit_by_id(&mut self, known: &Arc<Known>) {
        if self.limits_by_id.len() >= MOST {
            self.limits_by_id.clear();
        }
        self.limits_by_id.insert(known.id, Arc::clone(known));
    }

    pub(super) fn remember_limit(&mut self, known: &Arc<Known>) {
        if self.limits.len() >= MOST {
            self.limits.clear();
        }
        let key = Arc::clone(known.limit.shared_key());
        self.limits.insert(key, Arc::clone(known));
    }

    pub(super) fn very_last(&self, limit: LimitId) -> Option<Option<Charge>> {
        self.ledgers.get(&limit)?.last
    }

    pub(super) fn remember_very_last(&mut self, limit: LimitId, last: Option<Charge>) {
        self.ledger(limit).last = Some(last);
    }

    /// The first charge after `at`, if that is remembered.
    pub(super) fn first_after(&mut self, limit: LimitId, at: Timestamp) -> Option<Option<Charge>> {
        let runs = &mut self.ledgers.get_mut(&limit)?.runs;
        // Of the windows that could answer, the one that this is: the others begin further back.
        let run = runs
            .iter_mut()
            .filter(|run| run.covers(at))
            .max_by_key(|run| run.after)?;
        Some(run.first_after(at))
    }

    /// How many charges to read for a window that begins at `at`: one, or several if the window moves
    /// while nobody else writes, so that they will be asked for.
    pub(super) fn worth_reading(&self, limit: LimitId, at: Timestamp) -> usize {
        let moves = |ledger: &LedgerMemo| ledger.runs.iter().any(|run| run.after <= at);
        if self.ledgers.get(&limit).is_some_and(moves) {
            RUN
        } else {
            1
        }
    }

    /// Takes in the charges that follow `at`; `complete` if there are no more.
    pub(super) fn remember_run(
        &mut self,
        limit: LimitId,
        after: Timestamp,
        charges: VecDeque<Charge>,
        complete: bool,
    ) {
        let runs = &mut self.ledger(limit).runs;
        // The same window, a little later: the run that lies closest before has been used up.
        let used_up = runs
            .iter_mut()
            .filter(|run| run.after <= after)
            .max_by_key(|run| run.after);
        let run = Run {
            after,
            charges,
            complete,
        };
        if let Some(used_up) = used_up {
            *used_up = run;
            return;
        }
        if runs.len() >= MOST_RUNS {
            runs.clear();
        }
        runs.push(run);
    }

    /// Takes in a charge that this connection has added behind all others.
    pub(super) fn appended(&mut self, limit: LimitId, charge: Charge) {
        let ledger = self.ledger(limit);
        ledger.last = Some(Some(charge));
        for run in &mut ledger.runs {
            run.append(charge);
        }
    }

    /// The last charge has become this.
    pub(super) fn grown(&mut self, limit: LimitId, charge: Charge) {
        let ledger = self.ledger(limit);
        ledger.last = Some(Some(charge));
        for run in &mut ledger.runs {
            if let Some(last) = run.charges.back_mut()
                && (last.at, last.seq) == (charge.at, charge.seq)
            {
                *last = charge;
            }
        }
    }

    /// Lets go of the very last charge, which this connection has removed.
    pub(super) fn removed_last(&mut self, limit: LimitId) {
        let ledger = self.ledger(limit);
        let removed = ledger.last.take().flatten();
        for run in &mut ledger.runs {
            if run.charges.back() == removed.as_ref() {
                run.charges.pop_back();
            }
            if run.complete && !run.charges.is_empty() {
                ledger.last = Some(run.charges.back().copied());
            }
        }
    }

    /// A ledger was changed somewhere else than at its end.
    pub(super) fn changed(&mut self, limit: LimitId) {
        self.ledgers.remove(&limit);
    }

    fn ledger(&mut self, limit: LimitId) -> &mut LedgerMemo {
        if self.ledgers.len() >= MOST && !self.ledgers.contains_key(&limit) {
            self.ledgers.clear();
        }
        self.ledgers.entry(limit).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::Total;

    const LEDGER: LimitId = LimitId(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_nanos(seconds)
    }

    fn charge(seconds: i64) -> Charge {
        Charge {
            at: at(seconds),
            seq: 0,
            amount: 1,
            total: Total(seconds),
        }
    }

    fn remember(memo: &mut Memo, after: i64, seconds: &[i64], complete: bool) {
        let charges = seconds.iter().map(|second| charge(*second)).collect();
        memo.remember_run(LEDGER, at(after), charges, complete);
    }

    #[test]
    fn a_run_answers_up_to_its_last_charge_and_no_further() {
        let mut memo = Memo::default();
        remember(&mut memo, 10, &[20, 30], false);
        assert_eq!(memo.first_after(LEDGER, at(9)), None);
        assert_eq!(memo.first_after(LEDGER, at(10)), Some(Some(charge(20))));
        assert_eq!(memo.first_after(LEDGER, at(19)), Some(Some(charge(20))));
        assert_eq!(memo.first_after(LEDGER, at(20)), Some(Some(charge(30))));
        assert_eq!(memo.first_after(LEDGER, at(30)), None);
        assert_eq!(memo.first_after(LimitId(2), at(10)), None);
    }

    #[test]
    fn a_complete_run_knows_that_nothing_follows_until_something_is_appended() {
        let mut memo = Memo::default();
        remember(&mut memo, 10, &[], true);
        assert_eq!(memo.first_after(LEDGER, at(50)), Some(None));
        memo.appended(LEDGER, charge(60));
        assert_eq!(memo.very_last(LEDGER), Some(Some(charge(60))));
        assert_eq!(memo.first_after(LEDGER, at(50)), Some(Some(charge(60))));
        assert_eq!(memo.first_after(LEDGER, at(60)), Some(None));
    }

    #[test]
    fn an_incomplete_run_takes_nothing_in() {
        let mut memo = Memo::default();
        remember(&mut memo, 10, &[20], false);
        memo.appended(LEDGER, charge(60));
        assert_eq!(memo.first_after(LEDGER, at(15)), Some(Some(charge(20))));
        assert_eq!(memo.first_after(LEDGER, at(20)), None);
    }

    #[test]
    fn a_long_run_stays_right_when_it_stops_growing() {
        let mut memo = Memo::default();
        remember(&mut memo, 0, &[], true);
        for second in 1..=100 {
            memo.appended(LEDGER, charge(second));
        }
        assert_eq!(memo.first_after(LEDGER, at(5)), Some(Some(charge(6))));
        assert_eq!(memo.first_after(LEDGER, at(99)), None);
    }

    #[test]
    fn what_is_removed_from_the_end_was_never_there() {
        let mut memo = Memo::default();
        remember(&mut memo, 10, &[20, 30], true);
        remember(&mut memo, 5, &[20], false);
        memo.remember_very_last(LEDGER, Some(charge(30)));
        memo.removed_last(LEDGER);
        assert_eq!(memo.very_last(LEDGER), Some(Some(charge(20))));
        assert_eq!(memo.first_after(LEDGER, at(20)), Some(None));
        memo.appended(LEDGER, charge(25));
        assert_eq!(memo.first_after(LEDGER, at(20)), Some(Some(charge(25))));
        memo.removed_last(LEDGER);
        memo.removed_last(LEDGER);
        // What comes before is not remembered.
        assert_eq!(memo.very_last(LEDGER), None);
    }

    #[test]
    fn windows_that_move_take_the_place_of_their_own_runs() {
        let mut memo = Memo::default();
        assert_eq!(memo.worth_reading(LEDGER, at(0)), 1);
        for second in 0..100 {
            remember(&mut memo, second + 1_000, &[second + 1_001], false);
            if second == 0 {
                assert_eq!(memo.worth_reading(LEDGER, at(0)), 1);
            }
            remember(&mut memo, second, &[second + 1], false);
            assert_eq!(memo.worth_reading(LEDGER, at(second + 1)), RUN);
        }
        assert_eq!(memo.ledgers[&LEDGER].runs.len(), 2);
        assert_eq!(memo.first_after(LEDGER, at(99)), Some(Some(charge(100))));
        assert_eq!(
            memo.first_after(LEDGER, at(1_099)),
            Some(Some(charge(1_100)))
        );
    }
}
