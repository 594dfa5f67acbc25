//! The earliest instant against one that is searched for among all that could be it, in lines long enough to be skipped.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limit::MAX_CAPACITY;
use crate::pause::Pause;
use crate::settlement::Overage;

const LEDGER: LimitId = LimitId(1);

fn at(ms: i64) -> Timestamp {
    Timestamp::from_nanos(ms * 1_000_000)
}

/// Charges by instant, each with its place in it.
#[derive(Default)]
struct Booked {
    charges: Vec<(Timestamp, i64)>,
    /// Those of the charges that count before, too.
    open: OpenBlocks,
    kept: Kept,
    seeks: usize,
}

impl Booked {
    /// The charge at an index; its total counts from a number that soon wraps.
    fn charge(&self, index: usize) -> Charge {
        let (at, amount) = self.charges[index];
        let before = self.charges[..=index].iter();
        let sum = before.fold(Total(Total::MASK - 50), |sum, (_, more)| sum.plus(*more));
        let seq = self.charges[..index]
            .iter()
            .filter(|(other, _)| *other == at);
        Charge {
            at,
            seq: i64::try_from(seq.count()).unwrap(),
            amount,
            total: sum,
        }
    }

    fn add(&mut self, at: Timestamp, amount: i64) {
        let index = self.charges.partition_point(|(other, _)| *other <= at);
        self.charges.insert(index, (at, amount));
    }

    fn sum(&self, after: Timestamp, until: Timestamp) -> i128 {
        let counts = |(at, _): &&(Timestamp, i64)| after < *at && *at <= until;
        let counted = self.charges.iter().filter(counts);
        let charged: i128 = counted.map(|(_, amount)| i128::from(*amount)).sum();
        charged + i128::from(self.open.amount_after(until))
    }

    /// A block is taken that ends at an instant.
    fn take_block(&mut self, until: Timestamp, amount: i64) {
        self.add(until, amount);
        self.open.insert(OpenBlock { until, amount }, at(0));
    }

    fn fits(&self, limit: &Limit, t: Timestamp, amount: i64) -> bool {
        limit.rates().iter().all(|rate| {
            let window_ns = reach_ns(rate);
            let starts = |end: Timestamp| end.saturating_minus_ns(window_ns);
            let later = self.charges.iter().map(|(at, _)| *at);
            let ends = later.filter(|at| t < *at && starts(*at) < t);
            std::iter::once(t).chain(ends).all(|end| {
                let sum = self.sum(starts(end), end) + i128::from(amount);
                sum <= i128::from(rate.capacity_units())
            })
        })
    }

    /// Looks at every instant at which something leaves.
    fn searched(&self, limit: &Limit, now: Timestamp, amount: i64) -> Timestamp {
        let leaves = |rate| {
            let charges = self.charges.iter();
            charges.map(move |(at, _)| at.saturating_plus_ns(reach_ns(rate)))
        };
        let mut all: Vec<Timestamp> = limit.rates().iter().flat_map(leaves).collect();
        all.retain(|at| *at > now);
        all.push(now);
        all.sort_unstable();
        let fits = |at: &&Timestamp| self.fits(limit, **at, amount);
        *all.iter().find(fits).unwrap()
    }

    fn found(&mut self, limit: &Limit, now: Timestamp, amount: i64) -> Timestamp {
        let line = Line {
            id: LEDGER,
            pattern: None,
            limit,
            amount,
        };
        match earliest(self, &[line], now) {
            Ok(Earliest::Now) => now,
            Ok(Earliest::Later { at, .. }) => at,
            Ok(Earliest::Beyond { .. }) => panic!("all instants here can be written down"),
        }
    }
}

fn reach_ns(rate: &Rate) -> i64 {
    match rate.window() {
        crate::limit::Window::Rolling(window) => i64::try_from(window.as_nanos()).unwrap(),
        crate::limit::Window::Calendar(_) => panic!("no calendars here"),
    }
}

impl Ledgers for Booked {
    type Error = Infallible;

    fn last_at(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        self.seeks += 1;
        let after = self.charges.partition_point(|(other, _)| *other <= at);
        Ok(after.checked_sub(1).map(|last| self.charge(last)))
    }

    fn first_after(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        self.seeks += 1;
        let after = self.charges.partition_point(|(other, _)| *other <= at);
        Ok((after < self.charges.len()).then(|| self.charge(after)))
    }

    fn open_blocks(&mut self, _: LimitId) -> Result<OpenBlocks, Infallible> {
        Ok(self.open.clone())
    }

    fn level(&mut self, _: LimitId) -> Result<Option<Level>, Infallible> {
        Ok(None)
    }

    fn pause(&mut self, _: LimitId) -> Result<Option<Pause>, Infallible> {
        Ok(None)
    }

    fn wall_shift_ns(&self) -> i64 {
        0
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        Some(&mut self.kept)
    }
}

fn limit(rates: &[(u64, u64)], overage: Overage) -> Limit {
    let builder = Limit::new("k").overage(overage);
    let rates = rates.iter();
    let builder = rates.fold(builder, |builder, (capacity, window_ms)| {
        builder.rate(*capacity, Duration::from_millis(*window_ms))
    });
    builder.build().unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Book(u64),
    Cancel(prop::sample::Index),
    Advance(i64),
    /// The limit becomes another.
    Change,
    /// One is found to have used more than fits.
    Exceed(prop::sample::Index),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        60 => Just(Op::Book(1)),
        6 => (1_u64..4).prop_map(Op::Book),
        3 => any::<prop::sample::Index>().prop_map(Op::Cancel),
        2 => (0_i64..40).prop_map(Op::Advance),
        1 => Just(Op::Change),
        1 => any::<prop::sample::Index>().prop_map(Op::Exceed),
    ];
    prop::collection::vec(op, 1..120)
}

fn rates() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop_oneof![
        Just(vec![(1, 10)]),
        Just(vec![(3, 10)]),
        Just(vec![(1, 10), (3, 40)]),
        Just(vec![(2, 7), (5, 30)]),
        Just(vec![(1, 10), (4, 40), (5, 55)]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 2_000 }))]

    #[test]
    fn what_is_skipped_is_full(
        ops in ops(),
        first in rates(),
        second in rates(),
        exceeds in any::<bool>(),
        block in prop::option::of(1_i64..120),
    ) {
        let overage = if exceeds { Overage::Charge } else { Overage::Debt };
        let limits = [limit(&first, overage), limit(&second, overage)];
        let mut present = &limits[0];
        let mut booked = Booked::default();
        if let Some(ends_ms) = block {
            booked.take_block(at(ends_ms), 1);
        }
        let mut now = at(0);
        for op in ops {
            match op {
                Op::Book(amount) => {
                    let amount = amount.min(present.tightest().capacity()).cast_signed();
                    let found = booked.found(present, now, amount);
                    prop_assert_eq!(found, booked.searched(present, now, amount));
                    booked.add(found, amount);
                }
                Op::Cancel(which) if !booked.charges.is_empty() => {
                    let index = which.index(booked.charges.len());
                    let (at, amount) = booked.charges.remove(index);
                    booked.open.remove(OpenBlock { until: at, amount });
                }
                Op::Advance(ms) => now = now.saturating_plus_ns(ms * 1_000_000),
                Op::Change => {
                    present = &limits[usize::from(std::ptr::eq(present, &raw const limits[0]))];
                    booked.kept.clear();
                }
                Op::Exceed(which) if exceeds && block.is_none() && !booked.charges.is_empty() => {
                    let index = which.index(booked.charges.len());
                    booked.charges[index].1 += 5;
                }
                Op::Cancel(_) | Op::Exceed(_) => {}
            }
        }
    }
}

/// How many seeks it takes to find a place behind so many who have booked `amount` at a time.
fn seeks(limit: &Limit, count: i64, amount: u64, has_block: bool) -> usize {
    let mut booked = Booked::default();
    if has_block {
        booked.take_block(at(25), amount.cast_signed());
    }
    let amount = amount.cast_signed();
    let mut last = at(0);
    for _ in 0..count {
        last = booked.found(limit, last, amount);
        booked.add(last, amount);
    }
    booked.found(limit, at(0), amount);
    booked.seeks = 0;
    let found = booked.found(limit, at(0), amount);
    assert_eq!(found, booked.searched(limit, at(0), amount));
    booked.seeks
}

#[test]
fn a_long_line_takes_no_more_seeks_than_a_short_one() {
    for (rates, amount) in [
        (&[(1, 10)][..], 1),
        (&[(10, 10), (30, 100)], 1),
        (&[(1, 10), (3, 40)], 1),
        (&[(MAX_CAPACITY, 10)], MAX_CAPACITY),
        (&[(8, 10)], 4),
    ] {
        let limit = limit(rates, Overage::Debt);
        for (has_block, most) in [(false, 60), (true, 120)] {
            let seeks = |count| seeks(&limit, count, amount, has_block);
            let (short, long) = (seeks(300), seeks(400));
            assert!(
                long <= most,
                "{rates:?}: {long} seeks, {short} in a shorter line, {has_block}"
            );
        }
    }
}

#[test]
fn a_gap_is_not_made_up_for_by_windows_that_hold_too_much() {
    let (former, lowered) = (
        limit(&[(2, 10)], Overage::Debt),
        limit(&[(1, 10)], Overage::Debt),
    );
    let mut booked = Booked::default();
    (0..40).for_each(|n| booked.add(at(n * 10), 2));
    booked.charges.remove(20);
    assert_eq!(booked.found(&former, at(0), 1), at(200));
    booked.kept.clear();
    assert_eq!(booked.found(&lowered, at(0), 1), at(200));
}
