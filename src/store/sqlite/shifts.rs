//! Correcting totals without touching every row after the correction.
//!
//! A charge that changes changes all totals after it, and a ledger may have a million of them. So only the next few
//! rows are corrected in place; from there on, a row of `total_shift` says by how much the totals that follow
//! are to be corrected when they are read, up to the next such row. A correction costs at most a block of
//! rows, and one row for each shift that comes later: at most two for each block of the ledger.

use rusqlite::{OptionalExtension, Row as SqlRow};

use super::transaction::Transaction;
use crate::calendar::{Charge, LimitId, Total};
use crate::clock::Timestamp;
use crate::error::Error;

/// How many rows are corrected in place. Few in tests, so that short histories have shifts.
const BLOCK: usize = if cfg!(test) { 3 } else { 512 };

/// A place in a ledger: an instant and a position in it.
pub(super) type Position = (Timestamp, i64);

fn position(row: &SqlRow<'_>) -> rusqlite::Result<Position> {
    Ok((Timestamp::from_nanos(row.get(0)?), row.get(1)?))
}

const HAS_SHIFTS: &str = "SELECT EXISTS (SELECT 1 FROM total_shift WHERE limit_id = ?1)";
const ANY_SHIFTS: &str = "SELECT EXISTS (SELECT 1 FROM total_shift)";
const SHIFT_AT: &str = "SELECT shift FROM total_shift
    WHERE limit_id = ?1 AND at_ns <= ?2 AND (at_ns, seq) <= (?2, ?3)
    ORDER BY at_ns DESC, seq DESC LIMIT 1";

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
        let has_shifts = self
            .link
            .connection
            .prepare_cached(HAS_SHIFTS)
            .and_then(|mut s| s.query_row([limit.0], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.remember_shifts(limit, has_shifts);
        Ok(has_shifts)
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

    /// By how much the total of a row is corrected when it is read.
    pub(super) fn shift_at(&mut self, limit: LimitId, at: Position) -> Result<i64, Error> {
        if !self.has_shifts(limit)? {
            return Ok(0);
        }
        self.link
            .connection
            .prepare_cached(SHIFT_AT)
            .and_then(|mut s| {
                s.query_row((limit.0, at.0.as_nanos(), at.1), |row| row.get(0))
                    .optional()
            })
            .map(|shift: Option<i64>| shift.unwrap_or(0) & Total::MASK)
            .map_err(|error| self.sqlite(error))
    }

    /// The charge with its true total.
    pub(super) fn corrected(&mut self, limit: LimitId, charge: Charge) -> Result<Charge, Error> {
        let shift = self.shift_at(limit, (charge.at, charge.seq))?;
        Ok(Charge {
            total: charge.total.plus(shift),
            ..charge
        })
    }
}

const NEXT_SHIFT: &str = "SELECT at_ns, seq FROM total_shift
    WHERE limit_id = ?1 AND at_ns >= ?2 AND (at_ns, seq) > (?2, ?3)
    ORDER BY at_ns, seq LIMIT 1";
const BLOCK_ENDS: &str = "SELECT at_ns, seq FROM charge
    WHERE limit_id = ?1 AND at_ns >= ?2 AND (at_ns, seq) > (?2, ?3)
    ORDER BY at_ns, seq LIMIT 1 OFFSET ?4";
const INSERT: &str =
    "INSERT INTO total_shift (limit_id, at_ns, seq, shift) VALUES (?1, ?2, ?3, ?4)";
const CORRECT_ROWS: &str = "UPDATE charge SET total = (total - ?6) & 4611686018427387903
    WHERE limit_id = ?1 AND at_ns BETWEEN ?2 AND ?4
        AND (at_ns, seq) > (?2, ?3) AND (at_ns, seq) < (?4, ?5)";
const CORRECT_SHIFTS: &str = "UPDATE total_shift SET shift = (shift - ?4) & 4611686018427387903
    WHERE limit_id = ?1 AND at_ns >= ?2 AND (at_ns, seq) >= (?2, ?3)";

const END_OF_TIME: Position = (Timestamp::from_nanos(i64::MAX), i64::MAX);

impl Transaction<'_> {
    /// Takes `less` off all totals after a position.
    pub(super) fn correct_totals(
        &mut self,
        limit: LimitId,
        after: Position,
        less: i64,
    ) -> Result<(), Error> {
        self.write_charges()?;
        let connection = self.link.connection;
        let place = |position: Position| (limit.0, position.0.as_nanos(), position.1);
        let next_shift = if self.has_shifts(limit)? {
            connection
                .prepare_cached(NEXT_SHIFT)
                .and_then(|mut s| s.query_row(place(after), position).optional())
                .map_err(|error| self.sqlite(error))?
        } else {
            None
        };
        let (limit_id, at_ns, seq) = place(after);
        let offset = i64::try_from(BLOCK).unwrap_or(i64::MAX);
        let block_ends = connection
            .prepare_cached(BLOCK_ENDS)
            .and_then(|mut s| {
                s.query_row((limit_id, at_ns, seq, offset), position)
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let shifted_from = match (next_shift, block_ends) {
            (Some(shift), Some(end)) if shift <= end => Some(shift),
            (_, Some(end)) => {
                self.begin_shift(limit, end)?;
                Some(end)
            }
            (shift, None) => shift,
        };
        let end = shifted_from.unwrap_or(END_OF_TIME);
        let (_, end_ns, end_seq) = place(end);
        connection
            .prepare_cached(CORRECT_ROWS)
            .and_then(|mut s| s.execute((limit_id, at_ns, seq, end_ns, end_seq, less)))
            .map_err(|error| self.sqlite(error))?;
        if shifted_from.is_some() {
            connection
                .prepare_cached(CORRECT_SHIFTS)
                .and_then(|mut s| s.execute((limit_id, end_ns, end_seq, less)))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }

    /// Lets the totals from a row on be corrected by a row of their own.
    fn begin_shift(&mut self, limit: LimitId, at: Position) -> Result<(), Error> {
        let shift = self.shift_at(limit, at)?;
        if !self.has_shifts(limit)? {
            self.changed_definitions();
            self.link.memo.remember_shifts(limit, true);
        }
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut s| s.execute((limit.0, at.0.as_nanos(), at.1, shift)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const FORGET: &str = "DELETE FROM total_shift
    WHERE limit_id = ?1 AND (at_ns, seq) < (
        SELECT s.at_ns, s.seq FROM total_shift AS s
        WHERE s.limit_id = ?1 AND (s.at_ns, s.seq) <= (
            SELECT c.at_ns, c.seq FROM charge AS c WHERE c.limit_id = ?1
            ORDER BY c.at_ns, c.seq LIMIT 1
        )
        ORDER BY s.at_ns DESC, s.seq DESC LIMIT 1
    )";

impl Transaction<'_> {
    /// Removes shifts that no charge is left for.
    pub(super) fn sweep_shifts(&mut self, limit: LimitId) -> Result<(), Error> {
        if !self.has_shifts(limit)? {
            return Ok(());
        }
        self.link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute([limit.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::{Limit, Limiter, ManualClock, Overage, Permit};

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
            let raw = rusqlite::Connection::open(&path).unwrap();
            let wrong: i64 = raw.query_row(
                "SELECT count(*) FROM (
                    SELECT total - lag(total) OVER (ORDER BY at_ns, seq) AS step, amount FROM ledger
                 ) WHERE step & 4611686018427387903 <> amount",
                [],
                |row| row.get(0),
            ).unwrap();
            prop_assert_eq!(wrong, 0);
        }
    }

    #[test]
    fn a_correction_far_back_makes_one_shift_and_sweeping_removes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.db");
        let clock = ManualClock::new();
        let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
        limiter
            .define(Limit::new("k").rate(10_000, Duration::from_secs(10)))
            .unwrap();
        let shifts = || -> i64 {
            let raw = rusqlite::Connection::open(&path).unwrap();
            raw.query_row("SELECT count(*) FROM total_shift", [], |row| row.get(0))
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
        assert_eq!(limiter.usage("k").unwrap().available(), 10_000 - 400);
        clock.advance(Duration::from_secs(60));
        for _ in 0..400 {
            drop(limiter.acquire("k").unwrap());
            clock.advance(Duration::from_millis(100));
        }
        assert!(shifts() <= 1, "{}", shifts());
    }
}
