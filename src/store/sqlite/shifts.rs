//! Correcting totals without touching every row before or after the correction.
//!
//! A charge that becomes less makes all totals after it less; or all before it more, for only differences mean anything.
//! There may be millions of either. So if a few rows come after it, their totals are corrected in place. If there are
//! more, only the next few are, up to the place of a row of `correction`: that says by how much more the totals before it
//! are when they are read.
//!
//! Such rows stand in levels, each level on about every sixteenth place of the one below. On each level, the first row
//! after a charge counts for it, and its shift is the sum of these. To shift everything before a place: on the lowest level the
//! rows from there back to a place of the next level; on that, the rows from there back to a place of the one
//! above; and so on. So there are some ten rows to change on each level, and one to read.

use rusqlite::{OptionalExtension, Row as SqlRow};

use super::transaction::Transaction;
use crate::calendar::{Charge, LimitId, Total};
use crate::clock::Timestamp;
use crate::error::Error;

/// How many rows are corrected in place. Few in tests, so that short histories have shifts.
const BLOCK: i64 = if cfg!(test) { 3 } else { 16 };

/// The levels; the view `ledger` knows how many there are.
const LEVELS: u32 = 5;

/// One place in two to this power is on the next level, too.
const FANOUT_BITS: u32 = if cfg!(test) { 1 } else { 4 };

/// A place in a ledger: an instant and a position in it.
pub(super) type Position = (Timestamp, i64);

const BEGINNING: Position = (Timestamp::from_nanos(i64::MIN), i64::MIN);
const END_OF_TIME: Position = (Timestamp::from_nanos(i64::MAX), i64::MAX);

fn position(row: &SqlRow<'_>) -> rusqlite::Result<Position> {
    Ok((Timestamp::from_nanos(row.get(0)?), row.get(1)?))
}

/// The highest level on which a place is: thrown like dice, but the same whenever it is asked.
fn highest_level((at, seq): Position) -> u32 {
    let mut bits = at.as_nanos().cast_unsigned() ^ seq.cast_unsigned().rotate_left(32);
    // The finalizer of splitmix64: each bit depends on all.
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits.trailing_zeros() / FANOUT_BITS).min(LEVELS - 1)
}

/// By how much totals are corrected when they are read.
#[derive(Clone, Copy, Debug)]
struct Shift {
    by: i64,
    /// Up to which place that holds.
    until: Position,
}

const HAS_SHIFTS: &str = "SELECT EXISTS (SELECT 1 FROM correction WHERE limit_id = ?1)";
const ANY_SHIFTS: &str = "SELECT EXISTS (SELECT 1 FROM correction)";
const NEXT: &str = "SELECT at_ns, seq, shift FROM correction
    WHERE limit_id = ?1 AND level = ?2 AND at_ns >= ?3 AND (at_ns, seq) > (?3, ?4)
    ORDER BY at_ns, seq LIMIT 1";

impl Transaction<'_> {
    /// Whether the totals of a ledger are shifted anywhere. Most are not, and then nothing more is read. Who makes the
    /// first shift in a ledger lets all others forget what they know of the definitions, and this with it.
    fn has_shifts(&mut self, limit: LimitId) -> Result<bool, Error> {
        if let Some(has_shifts) = self.link.memo.has_shifts(limit) {
            return Ok(has_shifts);
        }
        if !self.any_shifts()? {
            return Ok(false);
        }
        let has_shifts = self.reads_shifts(limit)?;
        self.link.memo.remember_shifts(limit, has_shifts);
        Ok(has_shifts)
    }

    fn reads_shifts(&self, limit: LimitId) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(HAS_SHIFTS)
            .and_then(|mut s| s.query_row([limit.0], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    /// Whether any ledger is shifted, as of when the definitions were last read.
    fn any_shifts(&mut self) -> Result<bool, Error> {
        if let Some(any) = self.link.memo.any_shifts {
            return Ok(any);
        }
        let any = self
            .link
            .connection
            .prepare_cached(ANY_SHIFTS)
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.any_shifts = Some(any);
        Ok(any)
    }

    /// The first place of a level after a position, and the shift that stands there.
    fn next_on(
        &self,
        level: u32,
        limit: LimitId,
        after: Position,
    ) -> Result<Option<(Position, i64)>, Error> {
        self.link
            .connection
            .prepare_cached(NEXT)
            .and_then(|mut s| {
                s.query_row((limit.0, level, after.0.as_nanos(), after.1), |row| {
                    Ok((position(row)?, row.get(2)?))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }

    fn shift_from(&mut self, limit: LimitId, at: Position) -> Result<Shift, Error> {
        let mut shift = Shift {
            by: 0,
            until: END_OF_TIME,
        };
        if self.link.memo.is_unshifted(limit, at) || !self.has_shifts(limit)? {
            return Ok(shift);
        }
        for level in 0..LEVELS {
            let Some((place, by)) = self.next_on(level, limit, at)? else {
                if level == 0 {
                    self.link.memo.remember_unshifted(limit, at);
                }
                break;
            };
            shift.by = shift.by.wrapping_add(by);
            shift.until = shift.until.min(place);
        }
        Ok(shift)
    }

    /// The total as it is to be written for a row, so that it is read as it is given.
    pub(super) fn stored_total(
        &mut self,
        limit: LimitId,
        at: Position,
        total: Total,
    ) -> Result<Total, Error> {
        let shift = self.shift_from(limit, at)?;
        Ok(total.plus(shift.by.wrapping_neg()))
    }

    /// Gives charges, the earliest first, their true totals.
    pub(super) fn correct<'c>(
        &mut self,
        limit: LimitId,
        charges: impl IntoIterator<Item = &'c mut Charge>,
    ) -> Result<(), Error> {
        let mut shift: Option<Shift> = None;
        for charge in charges {
            let place = (charge.at, charge.seq);
            let holds = match shift.filter(|shift| place < shift.until) {
                Some(shift) => shift,
                None => self.shift_from(limit, place)?,
            };
            charge.total = charge.total.plus(holds.by);
            shift = Some(holds);
        }
        Ok(())
    }
}

const BLOCK_ENDS: &str = "SELECT at_ns, seq FROM charge
    WHERE limit_id = ?1 AND at_ns >= ?2 AND (at_ns, seq) > (?2, ?3)
    ORDER BY at_ns, seq LIMIT 1 OFFSET ?4";
const CORRECT_ROWS: &str = "UPDATE charge SET total = (total - ?6) & 4611686018427387903
    WHERE limit_id = ?1 AND at_ns BETWEEN ?2 AND ?4
        AND (at_ns, seq) > (?2, ?3) AND (at_ns, seq) < (?4, ?5)";

impl Transaction<'_> {
    /// Takes `less` off all totals after a position, compared with those up to it.
    pub(super) fn correct_totals(
        &mut self,
        limit: LimitId,
        after: Position,
        less: i64,
    ) -> Result<(), Error> {
        self.write_charges()?;
        self.link.memo.changed(limit);
        let connection = self.link.connection;
        let (after_ns, after_seq) = (after.0.as_nanos(), after.1);
        let block_end = connection
            .prepare_cached(BLOCK_ENDS)
            .and_then(|mut s| {
                s.query_row((limit.0, after_ns, after_seq, BLOCK), position)
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let shifted_before = match block_end {
            None => None,
            Some(block_end) => Some(self.place_up_to(limit, after, block_end)?),
        };
        let (end, end_seq) = shifted_before.unwrap_or(END_OF_TIME);
        connection
            .prepare_cached(CORRECT_ROWS)
            .and_then(|mut s| {
                s.execute((limit.0, after_ns, after_seq, end.as_nanos(), end_seq, less))
            })
            .map_err(|error| self.sqlite(error))?;
        match shifted_before {
            Some(place) => self.shift_before(limit, place, less),
            None => Ok(()),
        }
    }

    /// The next place after a position that has a shift. If there is none up to `end`, that becomes one.
    fn place_up_to(
        &mut self,
        limit: LimitId,
        after: Position,
        end: Position,
    ) -> Result<Position, Error> {
        let next = if self.has_shifts(limit)? {
            self.next_on(0, limit, after)?
        } else {
            None
        };
        match next {
            Some((next, _)) if next <= end => return Ok(next),
            Some((_, shift)) => self.insert_shift(0, limit, end, shift)?,
            None => {
                // Others may remember that there is none in this ledger, whatever is remembered here.
                if !self.reads_shifts(limit)? {
                    self.changed_definitions();
                }
                self.link.memo.remember_shifts(limit, true);
                self.insert_shift(0, limit, end, 0)?;
            }
        }
        for level in 1..=highest_level(end) {
            let next = self.next_on(level, limit, end)?;
            self.insert_shift(level, limit, end, next.map_or(0, |(_, shift)| shift))?;
        }
        Ok(end)
    }
}

const INSERT: &str = "INSERT OR IGNORE INTO correction (limit_id, level, at_ns, seq, shift)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const LAST_PLACE: &str = "SELECT at_ns, seq FROM correction
    WHERE limit_id = ?1 AND level = ?2 AND at_ns <= ?3 AND (at_ns, seq) <= (?3, ?4)
    ORDER BY at_ns DESC, seq DESC LIMIT 1";
const SHIFT: &str = "UPDATE correction SET shift = (shift + ?7) & 4611686018427387903
    WHERE limit_id = ?1 AND level = ?2 AND at_ns BETWEEN ?3 AND ?5
        AND (at_ns, seq) > (?3, ?4) AND (at_ns, seq) <= (?5, ?6)";

impl Transaction<'_> {
    fn insert_shift(
        &self,
        level: u32,
        limit: LimitId,
        place: Position,
        shift: i64,
    ) -> Result<(), Error> {
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut s| s.execute((limit.0, level, place.0.as_nanos(), place.1, shift)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    /// Makes all totals before a place that has a shift larger.
    fn shift_before(&self, limit: LimitId, place: Position, more: i64) -> Result<(), Error> {
        let mut upto = place;
        for level in 0..LEVELS {
            let above = self.last_place(level + 1, limit, upto)?;
            let from = above.unwrap_or(BEGINNING);
            if from < upto {
                let (from_ns, upto_ns) = (from.0.as_nanos(), upto.0.as_nanos());
                let rows = (limit.0, level, from_ns, from.1, upto_ns, upto.1, more);
                self.link
                    .connection
                    .prepare_cached(SHIFT)
                    .and_then(|mut s| s.execute(rows))
                    .map_err(|error| self.sqlite(error))?;
            }
            if above.is_none() {
                break;
            }
            upto = from;
        }
        Ok(())
    }

    /// The last place of a level up to a position.
    fn last_place(
        &self,
        level: u32,
        limit: LimitId,
        upto: Position,
    ) -> Result<Option<Position>, Error> {
        self.link
            .connection
            .prepare_cached(LAST_PLACE)
            .and_then(|mut s| {
                s.query_row((limit.0, level, upto.0.as_nanos(), upto.1), position)
                    .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const FIRST: &str = "SELECT at_ns, seq FROM charge WHERE limit_id = ?1 ORDER BY at_ns, seq LIMIT 1";
const FORGET: &str = "DELETE FROM correction
    WHERE (limit_id, level, at_ns, seq) IN (
        SELECT limit_id, level, at_ns, seq FROM correction
        WHERE limit_id = ?1 AND level = ?2 AND (at_ns, seq) <= (?3, ?4)
        ORDER BY at_ns, seq LIMIT 256
    )";

impl Transaction<'_> {
    /// Removes shifts that no charge is left for: not too many at a time, like the charges.
    pub(super) fn sweep_shifts(&mut self, limit: LimitId) -> Result<(), Error> {
        if !self.has_shifts(limit)? {
            return Ok(());
        }
        let connection = self.link.connection;
        let first = connection
            .prepare_cached(FIRST)
            .and_then(|mut s| s.query_row([limit.0], position).optional())
            .map_err(|error| self.sqlite(error))?
            .unwrap_or(END_OF_TIME);
        let key = |level| (limit.0, level, first.0.as_nanos(), first.1);
        // From the top, for where there is a row of a level, there has to be one of each lower level.
        for level in (0..LEVELS).rev() {
            let forgotten = connection
                .prepare_cached(FORGET)
                .and_then(|mut s| s.execute(key(level)))
                .map_err(|error| self.sqlite(error))?;
            if forgotten > 0 {
                self.wrote();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::{Limit, Limiter, MAX_CAPACITY, ManualClock, Overage, Permit};

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Try { amount: u64 },
        Book { amount: u64 },
        Settle { permit: usize, used: u64 },
        Cancel { permit: usize },
        Drop { permit: usize },
        Advance { ms: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (1_u64..6).prop_map(|amount| Op::Try { amount }),
            4 => (1_u64..6).prop_map(|amount| Op::Book { amount }),
            6 => (0_usize..40, 0_u64..9).prop_map(|(permit, used)| Op::Settle { permit, used }),
            2 => (0_usize..40).prop_map(|permit| Op::Cancel { permit }),
            1 => (0_usize..40).prop_map(|permit| Op::Drop { permit }),
            6 => (0_u64..40).prop_map(|ms| Op::Advance { ms }),
        ]
    }

    fn limit() -> Limit {
        Limit::new("k")
            .rate(12, Duration::from_millis(50))
            .rate(40, Duration::from_millis(400))
            .overage(Overage::Debt)
            .build()
            .unwrap()
    }

    /// What a limiter says at each step.
    fn play(limiter: &Limiter, clock: &ManualClock, ops: &[Op]) -> Vec<String> {
        let mut permits: Vec<Permit> = Vec::new();
        let mut told = Vec::new();
        for op in ops {
            told.push(match *op {
                Op::Try { amount } => {
                    let decision = limiter.try_acquire(("k", amount)).unwrap();
                    let text = match &decision {
                        crate::Decision::Granted(permit) => format!("{:?}", permit.at()),
                        crate::Decision::Denied(denial) => format!("{denial:?}"),
                    };
                    permits.extend(decision.granted());
                    text
                }
                Op::Book { amount } => {
                    let permit = limiter.book(("k", amount)).unwrap().accept();
                    let at = permit.at();
                    permits.push(permit);
                    format!("{at:?}")
                }
                Op::Settle { permit, used } => match permits.get(permit) {
                    Some(permit) => format!("{:?}", permit.settle([("k", used)]).unwrap()),
                    None => String::new(),
                },
                Op::Cancel { permit } => match permits.get(permit) {
                    Some(permit) => format!("{:?}", permit.cancel().unwrap()),
                    None => String::new(),
                },
                Op::Drop { permit } => {
                    if permit < permits.len() {
                        drop(permits.swap_remove(permit));
                    }
                    String::new()
                }
                Op::Advance { ms } => {
                    clock.advance(Duration::from_millis(ms));
                    String::new()
                }
            });
            told.push(format!("{:?}", limiter.usage("k").unwrap()));
        }
        told
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 400 }))]

        /// The store in memory corrects every total.
        #[test]
        fn shifted_totals_say_what_corrected_ones_do(ops in prop::collection::vec(op(), 1..120)) {
            let clock = ManualClock::new();
            let memory = Limiter::in_memory_with(clock.clone());
            memory.define(limit()).unwrap();
            let expected = play(&memory, &clock, &ops);

            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("limits.db");
            let clock = ManualClock::new();
            let file = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
            file.define(limit()).unwrap();
            // Another one, which did not make the shifts, sees them too.
            let told = play(&file, &clock, &ops);
            prop_assert_eq!(told, expected);
            let other = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
            prop_assert_eq!(other.usage("k").unwrap(), memory.usage("k").unwrap());
            prop_assert_eq!(wrong_rows(&path), Vec::<String>::new());
        }

        /// As many rows as it takes to reach every level.
        #[test]
        fn totals_stay_sums_wherever_a_ledger_is_corrected(
            count in 40_usize..160,
            corrections in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..HUGE), 1..120),
            gone in 0_u64..60,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("limits.db");
            let clock = ManualClock::new();
            let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
            limiter.define(Limit::new("k").rate(MAX_CAPACITY, Duration::from_secs(1))).unwrap();
            let other = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
            let mut amounts = vec![HUGE; count];
            let permits: Vec<Permit> = (0..count).map(|n| {
                // Some share an instant.
                clock.advance(Duration::from_millis(n as u64 % 3));
                limiter.acquire(("k", HUGE)).unwrap()
            }).collect();
            for (which, used) in corrections {
                let which = which.index(count);
                if permits[which].settle([("k", used)]).unwrap().settlement().is_some() {
                    amounts[which] = used;
                }
                let used: u64 = amounts.iter().sum();
                prop_assert_eq!(limiter.usage("k").unwrap().available(), MAX_CAPACITY - used);
                prop_assert_eq!(other.usage("k").unwrap().available(), MAX_CAPACITY - used);
            }
            prop_assert_eq!(wrong_rows(&path), Vec::<String>::new());
            // The first ones leave the window; rows are kept for a second longer.
            clock.advance(Duration::from_millis(2_000 - gone));
            for _ in 0..130 {
                let permit = other.acquire("k").unwrap();
                clock.advance(Duration::from_micros(100));
                permit.settle([("k", 2)]).unwrap();
            }
            prop_assert_eq!(wrong_rows(&path), Vec::<String>::new());
        }
    }

    /// So that a ledger of these uses up what a limit can have.
    const HUGE: u64 = MAX_CAPACITY / 160;

    /// The rows whose total is not that of the row before and their amount, as the views show them, and the places that
    /// lack the level below.
    fn wrong_rows(path: &Path) -> Vec<String> {
        let raw = rusqlite::Connection::open(path).unwrap();
        let mut wrong = raw
            .prepare(
                "SELECT 'total at ' || at_ns || ', ' || seq FROM (
                    SELECT at_ns, seq, total - lag(total) OVER (ORDER BY at_ns, seq) AS step, amount FROM ledger
                 ) WHERE step & 4611686018427387903 <> amount
                 UNION ALL
                 SELECT 'level ' || level || ' at ' || at_ns || ', ' || seq FROM correction AS s
                 WHERE level > 0 AND NOT EXISTS (
                    SELECT 1 FROM correction AS t WHERE t.level = s.level - 1 AND (t.at_ns, t.seq) = (s.at_ns, s.seq)
                 )",
            )
            .unwrap();
        let rows = wrong.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn a_correction_far_back_makes_one_place_and_sweeping_removes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.db");
        let clock = ManualClock::new();
        let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
        limiter
            .define(Limit::new("k").rate(10_000, Duration::from_secs(10)))
            .unwrap();
        let shifts = || -> i64 {
            let raw = rusqlite::Connection::open(&path).unwrap();
            raw.query_row(
                "SELECT count(*) FROM correction WHERE level = 0",
                [],
                |row| row.get(0),
            )
            .unwrap()
        };
        let top_level = || -> i64 {
            let raw = rusqlite::Connection::open(&path).unwrap();
            raw.query_row("SELECT max(level) FROM correction", [], |row| row.get(0))
                .unwrap()
        };
        let permits: Vec<Permit> = (0..100)
            .map(|_| {
                clock.advance(Duration::from_millis(1));
                limiter.acquire(("k", 10)).unwrap()
            })
            .collect();
        assert_eq!(shifts(), 0);
        permits[0].settle([("k", 4)]).unwrap();
        assert_eq!(shifts(), 1);
        permits[1].settle([("k", 4)]).unwrap();
        assert_eq!(shifts(), 1);
        assert_eq!(limiter.usage("k").unwrap().available(), 10_000 - 1_000 + 12);
        for permit in &permits[2..] {
            permit.settle([("k", 4)]).unwrap();
        }
        assert!(shifts() <= 2 * 100 / 3, "{}", shifts());
        assert_eq!(top_level(), i64::from(super::LEVELS) - 1);
        assert_eq!(limiter.usage("k").unwrap().available(), 10_000 - 400);
        clock.advance(Duration::from_mins(1));
        for _ in 0..400 {
            drop(limiter.acquire("k").unwrap());
            clock.advance(Duration::from_millis(100));
        }
        assert_eq!(shifts(), 0);
    }
}
