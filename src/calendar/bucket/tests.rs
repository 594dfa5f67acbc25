//! Buckets against one that is filled and emptied step by step, and knows nothing of instants at which it will be full.

use std::convert::Infallible;

use proptest::prelude::*;

use super::super::{Charge, OpenBlocks, Total};
use super::*;
use crate::limit::{Limit, MAX_CAPACITY, MAX_WINDOW, MIN_WINDOW, nanos};
use crate::pause::Pause;

const LEDGER: LimitId = LimitId(1);

/// What is booked, by instant, and when the bucket is full again by what was poured out of it.
#[derive(Clone, Debug, Default)]
struct Book {
    rows: Vec<Charge>,
    full: Option<Full>,
}

impl Book {
    fn new(full: Option<Full>, mut booked: Vec<(i64, i64)>) -> Self {
        booked.sort_unstable();
        let mut total = Total(Total::MASK - 3);
        let rows = booked.iter().enumerate().map(|(seq, (at_ns, amount))| {
            total = total.plus(*amount);
            Charge {
                at: Timestamp::from_nanos(*at_ns),
                seq: i64::try_from(seq).unwrap(),
                amount: *amount,
                total,
            }
        });
        Self {
            rows: rows.collect(),
            full,
        }
    }

    /// Instant by instant.
    fn booked(&self) -> impl Iterator<Item = (i64, i64)> {
        let instants = self.rows.chunk_by(|a, b| a.at == b.at);
        instants.map(|rows| {
            let amount = rows.iter().map(|row| row.amount).sum();
            (rows[0].at.as_nanos(), amount)
        })
    }
}

impl Ledgers for Book {
    type Error = Infallible;

    fn last_at(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        let after = self.rows.partition_point(|row| row.at <= at);
        Ok(after.checked_sub(1).map(|last| self.rows[last]))
    }

    fn first_after(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        let after = self.rows.partition_point(|row| row.at <= at);
        Ok(self.rows.get(after).copied())
    }

    fn open_blocks(&mut self, _: LimitId) -> Result<OpenBlocks, Infallible> {
        Ok(OpenBlocks::default())
    }

    fn level(&mut self, _: LimitId) -> Result<Option<Level>, Infallible> {
        let level = |full| Level {
            full,
            through: None,
        };
        Ok(self.full.map(level))
    }

    fn pause(&mut self, _: LimitId) -> Result<Option<Pause>, Infallible> {
        Ok(None)
    }

    fn wall_shift_ns(&self) -> i64 {
        0
    }
}

/// A bucket and what is in it, in parts of which an amount has `per` and a nanosecond brings `refill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vessel {
    at_ns: i64,
    holds: i128,
    depth: i128,
    per: i128,
    refill: i128,
}

impl Vessel {
    /// At an instant before all others, by what was poured out of it.
    fn new(bucket: Bucket, full: Option<Full>, at_ns: i64) -> Self {
        let refill = i128::from(bucket.refill());
        let depth = i128::from(bucket.burst()) * i128::from(bucket.per_ns());
        let missing = full.map_or(0, |full| {
            let ns = i128::from(full.at.as_nanos()) - i128::from(at_ns);
            (ns * refill + i128::from(full.part)).max(0)
        });
        Self {
            at_ns,
            holds: depth - missing,
            depth,
            per: bucket.per_ns().into(),
            refill,
        }
    }

    fn go_on(&mut self, until_ns: i64) {
        let ns = i128::from(until_ns) - i128::from(self.at_ns);
        assert!(ns >= 0);
        self.holds = self.depth.min(self.holds + ns * self.refill);
        self.at_ns = until_ns;
    }

    fn take(&mut self, at_ns: i64, amount: i64) {
        self.go_on(at_ns);
        self.holds -= i128::from(amount) * self.per;
    }
}

/// What was poured out of a bucket, what is booked of it, and the present.
#[derive(Clone, Debug)]
struct Case {
    bucket: Bucket,
    book: Book,
    now_ns: i64,
}

impl Case {
    fn tank(&self) -> Tank {
        Tank {
            limit: LEDGER,
            bucket: self.bucket,
        }
    }

    /// With everything poured out that was booked for instants that have come.
    fn poured(&self) -> Option<Poured> {
        let now = Timestamp::from_nanos(self.now_ns);
        let poured = self.book.full.map(|full| Poured::read(full, &[]));
        unwrap(poured_until(
            &mut self.book.clone(),
            LEDGER,
            self.bucket,
            poured,
            now,
        ))
    }

    /// As it was before everything else.
    fn vessel(&self) -> Vessel {
        let first = self.book.rows.first().map(|row| row.at.as_nanos());
        let full = self.book.full.map(|full| full.at.as_nanos());
        let start = [first, full].into_iter().flatten().min();
        Vessel::new(
            self.bucket,
            self.book.full,
            start.unwrap_or(self.now_ns).min(self.now_ns),
        )
    }

    /// With what is booked up to an instant.
    fn vessel_at(&self, at_ns: i64) -> Vessel {
        let mut vessel = self.vessel();
        for (booked_at, amount) in self.book.booked().filter(|(booked, _)| *booked <= at_ns) {
            vessel.take(booked_at, amount);
        }
        vessel.go_on(at_ns);
        vessel
    }

    /// Whether so much can be taken at an instant, and nobody who has booked can tell, or at least is still served.
    fn fits(&self, at_ns: i64, amount: i64) -> bool {
        let mut without = self.vessel_at(at_ns);
        let mut with = without;
        with.take(at_ns, amount);
        if with.holds < 0 {
            return false;
        }
        for (booked_at, amount) in self.book.booked().filter(|(booked, _)| *booked > at_ns) {
            without.take(booked_at, amount);
            with.take(booked_at, amount);
            if with.holds < 0 && with != without {
                return false;
            }
        }
        true
    }

    fn earliest(&self, amount: i64) -> Option<i64> {
        let mut at = Timestamp::from_nanos(self.now_ns);
        loop {
            match unwrap(self.tank().fit(&mut self.book.clone(), at, amount)) {
                Fit::Now => return Some(at.as_nanos()),
                Fit::NotBefore(later) => {
                    assert!(later > at, "it has to move");
                    at = later;
                }
                Fit::Never => return None,
            }
        }
    }

    fn room(&self, at_ns: i64) -> i64 {
        let at = Timestamp::from_nanos(at_ns);
        unwrap(self.tank().room(&mut self.book.clone(), at))
    }

    fn check_room(&self, at_ns: i64) {
        let room = self.room(at_ns);
        assert!(room <= self.bucket.burst().cast_signed());
        assert!(room < 1 || self.fits(at_ns, room), "{room} at {at_ns}");
        assert!(!self.fits(at_ns, room.max(0) + 1), "{room} at {at_ns}");
        let holds = self.vessel_at(at_ns).holds;
        assert_eq!(room < 0, holds < 0, "less than nothing if it is over now");
    }

    fn check_usage(&self) {
        let now = Timestamp::from_nanos(self.now_ns);
        let usage = unwrap(self.tank().usage(&mut self.book.clone(), now));
        let vessel = self.vessel_at(self.now_ns);
        let missing = vessel.depth - vessel.holds;
        let used = i128::from(usage.used);
        assert!(used * vessel.per >= missing && (used - 1) * vessel.per < missing);
        assert_eq!(usage.available, self.room(self.now_ns).max(0));
        assert_eq!(usage.next_release.is_some(), used > 0);
        if let Some(release) = usage.next_release {
            let missing_at = |at_ns| {
                let mut vessel = vessel;
                vessel.go_on(at_ns);
                vessel.depth - vessel.holds
            };
            let less = (used - 1) * vessel.per;
            assert!(missing_at(release.as_nanos()) <= less);
            assert!(missing_at(release.as_nanos() - 1) > less);
        }
        let mut later = vessel;
        let mut is_over = vessel.holds < 0;
        for (at_ns, amount) in self.book.booked().filter(|(at_ns, _)| *at_ns > self.now_ns) {
            later.take(at_ns, amount);
            is_over |= later.holds < 0;
        }
        assert_eq!(usage.is_over, is_over);
    }
}

fn unwrap<T>(result: Result<T, Infallible>) -> T {
    let Ok(value) = result;
    value
}

/// Any bucket of this size, of the kinds that the terms of limits exclude as well.
fn bucket(burst: u64, refill: i64, per_ns: i64) -> Bucket {
    let limit = Limit::new("k")
        .burst(burst)
        .refill(MAX_CAPACITY, MIN_WINDOW);
    let bucket = limit.build().unwrap().bucket().unwrap();
    bucket.refilling(refill, per_ns)
}

prop_compose! {
    /// So small that every nanosecond can be tried.
    fn small()(
        burst in 1_i64..=8,
        refill in 1_i64..=7,
        per_ns in 1_i64..=9,
        poured in proptest::option::of((-10_i64..30, 0_i64..7)),
        // More than it can hold, too, as if there had been room for that before.
        booked in prop::collection::vec((-5_i64..40, 1_i64..=10), 0..8),
        now_ns in 0_i64..20,
    ) -> Case {
        let full = poured.map(|(at_ns, part)| Full {
            at: Timestamp::from_nanos(at_ns),
            part: part % refill,
        });
        Case { bucket: bucket(burst.unsigned_abs(), refill, per_ns), book: Book::new(full, booked), now_ns }
    }
}

/// In two digits, since it can be longer than any number; of two that are not negative.
fn product(amount: i128, by: i128) -> (u128, u128) {
    let (amount, by) = (amount.unsigned_abs(), by.unsigned_abs());
    let low = (amount & u128::from(u64::MAX)) * by;
    (
        (amount >> 64) * by + (low >> 64),
        low & u128::from(u64::MAX),
    )
}

const NOW_NS: i64 = 1_700_000_000_000_000_000;

fn capacities() -> impl Strategy<Value = u64> {
    prop_oneof![
        1_u64..=20,
        1_u64..=MAX_CAPACITY,
        prop::sample::select(vec![
            1,
            7,
            65_537,
            999_999_937,
            9_007_199_254_740_881,
            MAX_CAPACITY
        ]),
    ]
}

fn refill_times() -> impl Strategy<Value = i64> {
    let (shortest, longest) = (nanos(MIN_WINDOW), nanos(MAX_WINDOW));
    prop_oneof![
        shortest..=longest,
        prop::sample::select(vec![
            shortest,
            1_000_003,
            999_999_999_989,
            86_399_999_999_999,
            longest
        ]),
    ]
}

prop_compose! {
    /// What users can define, up to the bounds.
    fn large()(
        burst in capacities(),
        refill in capacities(),
        per_ns in refill_times(),
    )(
        bucket in {
            let limit = Limit::new("k").burst(burst);
            let limit = limit.refill(refill, std::time::Duration::from_nanos(per_ns.unsigned_abs()));
            // A bucket that takes more than 366 days to fill is no limit: a smaller one is.
            let limit = limit.build().or_else(|_| {
                let most = i128::from(nanos(MAX_WINDOW)) * i128::from(refill) / i128::from(per_ns);
                let burst = u64::try_from(most.clamp(1, i128::from(burst))).unwrap();
                Limit::new("k").burst(burst).refill(refill, std::time::Duration::from_nanos(per_ns.unsigned_abs())).build()
            });
            Just(limit.unwrap().bucket().unwrap())
        },
        // In thousandths of the time that it takes to fill.
        poured in proptest::option::of((-100_i64..1_500, any::<u64>())),
        booked in prop::collection::vec((-50_i64..3_000, 0_i64..1_100, prop::bool::ANY), 0..10),
    ) -> Case {
        let fills_ns = bucket.depth() / bucket.parts();
        let at = |thousandths: i64| {
            let ns = fills_ns * i128::from(thousandths) / 1_000;
            NOW_NS + i64::try_from(ns).unwrap() + thousandths
        };
        let full = poured.map(|(thousandths, part)| Full {
            at: Timestamp::from_nanos(at(thousandths)),
            part: (part % bucket.refill()).cast_signed(),
        });
        let burst = i128::from(bucket.burst());
        let booked = booked.into_iter().map(|(thousandths, amount, is_one)| {
            let amount = if is_one { 1 } else { (burst * i128::from(amount) / 1_000).max(1) };
            (at(thousandths), i64::try_from(amount).unwrap())
        });
        Case { bucket, book: Book::new(full, booked.collect()), now_ns: NOW_NS }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_earliest_instant_is_the_first_of_all_that_fit(case in small(), amount in 1_i64..=8) {
        let amount = amount.min(case.bucket.burst().cast_signed());
        let first = (case.now_ns..10_000).find(|at_ns| case.fits(*at_ns, amount));
        prop_assert_eq!(case.earliest(amount), first);
    }

    #[test]
    fn room_is_the_most_that_fits(case in small(), later in 0_i64..30) {
        case.check_room(case.now_ns + later);
        case.check_usage();
    }

    #[test]
    fn large_buckets_are_as_exact_as_small_ones(
        case in large(),
        share in 1_u64..=1_000,
        before in prop::collection::vec(0_u64..=1_000, 8),
    ) {
        let part = u128::from(case.bucket.burst()) * u128::from(share) / 1_000;
        for amount in [1, i64::try_from(part.max(1)).unwrap(), case.bucket.burst().cast_signed()] {
            let at_ns = case.earliest(amount).unwrap();
            prop_assert!(case.fits(at_ns, amount));
            let waits_ns = at_ns - case.now_ns;
            if waits_ns > 0 {
                prop_assert!(!case.fits(at_ns - 1, amount));
            }
            for thousandths in &before {
                let ns = i128::from(waits_ns) * i128::from(*thousandths) / 1_000;
                let earlier = case.now_ns + i64::try_from(ns).unwrap();
                prop_assert!(earlier == at_ns || !case.fits(earlier, amount), "{} fits earlier", amount);
            }
        }
        for (at_ns, _) in case.book.booked().filter(|(at_ns, _)| *at_ns > case.now_ns) {
            case.check_room(at_ns - 1);
            case.check_room(at_ns);
        }
        case.check_room(case.now_ns);
        case.check_usage();
    }

    #[test]
    fn what_is_booked_is_poured_when_its_instant_has_come(case in prop_oneof![small(), large()]) {
        let poured = case.poured();
        let before = case.vessel_at(case.now_ns);
        let full = poured.as_ref().map(|poured| poured.full);
        prop_assert_eq!(Vessel::new(case.bucket, full, case.now_ns), before);
        // And what is poured now is missing now.
        let mut vessel = before;
        vessel.take(case.now_ns, 5);
        let full = poured_now(case.bucket, poured, Timestamp::from_nanos(case.now_ns), 5).full;
        prop_assert!(full.part >= 0 && i128::from(full.part) < case.bucket.parts());
        prop_assert_eq!(Vessel::new(case.bucket, Some(full), case.now_ns), vessel);
    }

    #[test]
    fn what_is_put_back_is_as_if_it_had_never_been_taken(
        case in small(),
        steps in prop::collection::vec((0_i64..12, 1_i64..=10, any::<prop::sample::Index>(), 0_i64..=10), 1..150),
    ) {
        let bucket = case.bucket;
        let mut now_ns = case.now_ns;
        let mut poured = None;
        // What was taken, when, and whether some of it was put back.
        let mut taken: Vec<(i64, i64, bool)> = Vec::new();
        for (later_ns, amount, which, back) in steps {
            now_ns += later_ns;
            let now = Timestamp::from_nanos(now_ns);
            if later_ns % 3 > 0 || taken.is_empty() {
                poured = Some(poured_now(bucket, poured, now, amount));
                taken.push((now_ns, amount, false));
            } else {
                let (at_ns, amount, is_settled) = which.get(&taken).to_owned();
                let place = which.index(taken.len());
                let back = if is_settled { 0 } else { back.min(amount) };
                taken[place] = (at_ns, amount - back, true);
                if let Some(poured) = &mut poured {
                    poured.put_back(bucket, Timestamp::from_nanos(at_ns), now, back);
                }
            }
            let mut vessel = Vessel::new(bucket, None, case.now_ns);
            for (at_ns, amount, _) in &taken {
                vessel.take(*at_ns, *amount);
            }
            vessel.go_on(now_ns);
            let full = poured.as_ref().map(|poured| poured.full);
            let found = Vessel::new(bucket, full, now_ns);
            if taken.len() <= MOST_LOWS {
                prop_assert_eq!(found, vessel);
            } else {
                prop_assert!(found.holds <= vessel.holds, "nothing is given away where not all is remembered");
            }
            // What a file keeps of it says the same.
            let bytes = poured.as_ref().map(Poured::lows_to_bytes);
            let read = full.zip(bytes).map(|(full, bytes)| Poured::read(full, &bytes));
            prop_assert_eq!(&read, &poured);
        }
    }

    #[test]
    fn what_is_missing_stays_missing_when_the_terms_change(
        case in prop_oneof![small(), large()],
        other in prop_oneof![small(), large()],
    ) {
        let (former, bucket) = (case.bucket, other.bucket);
        let now = Timestamp::from_nanos(case.now_ns);
        let full = case.book.full.unwrap_or(Full { at: now, part: 0 });
        let before = Vessel::new(former, Some(full), case.now_ns);
        let after = Vessel::new(bucket, Some(Poured::read(full, &[]).rescaled(former, bucket, now).full), case.now_ns);
        let missing = |vessel: Vessel| vessel.depth - vessel.holds;
        // Rounded up to the next part: both in parts of parts.
        let exact = product(missing(before), after.per);
        let is_farthest = missing(after) == FARTHEST_NS * after.refill;
        prop_assert!(is_farthest || product(missing(after), before.per) >= exact);
        prop_assert!(missing(after) == 0 || product(missing(after) - 1, before.per) < exact);
        prop_assert_eq!(missing(before) == 0, missing(after) == 0);
    }
}

/// As a file can say that somebody has edited.
#[test]
fn no_number_overflows() {
    let ends = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];
    let instants = ends.map(Timestamp::from_nanos);
    let buckets = [
        bucket(1, 1, nanos(MAX_WINDOW)),
        bucket(MAX_CAPACITY, MAX_CAPACITY.cast_signed(), nanos(MAX_WINDOW)),
        bucket(MAX_CAPACITY, 1, 1),
    ];
    let most = Total::MASK;
    let rows = |count: i64| (0..count).map(|n| (i64::MAX - count + n, most)).collect();
    let books = [
        vec![],
        vec![(i64::MAX, most)],
        vec![(0, most); 3],
        rows(1_200),
    ];
    for bucket in buckets {
        for at in instants {
            for part in ends {
                let numbers = [i64::MAX, at.as_nanos(), part];
                let low: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                let hostile = low.repeat(3);
                for (now, lows) in instants
                    .iter()
                    .flat_map(|now| [(*now, &hostile[..]), (*now, &[])])
                {
                    let poured = Poured::read(Full { at, part }, lows);
                    for former in [
                        bucket.refilling(i64::MAX, i64::MAX),
                        bucket.refilling(i64::MIN, 0),
                    ] {
                        let full = Full {
                            at,
                            part: part.max(0),
                        };
                        let _ = Poured::read(full, lows).rescaled(former, bucket, now);
                    }
                    for amount in [0, 1, most] {
                        let mut poured = poured_now(bucket, Some(poured.clone()), now, amount);
                        poured.put_back(bucket, at, now, amount);
                    }
                }
            }
        }
        for booked in &books {
            for at in instants {
                let full = (at.as_nanos() != 0).then_some(Full { at, part: 0 });
                let mut book = Book::new(full, booked.clone());
                let tank = Tank {
                    limit: LEDGER,
                    bucket,
                };
                for now in [instants[1], instants[3], instants[5]] {
                    let poured = full.map(|full| Poured::read(full, &[]));
                    unwrap(poured_until(&mut book, LEDGER, bucket, poured, now));
                    unwrap(tank.fit(&mut book, now, 1));
                    unwrap(tank.fit(&mut book, now, bucket.burst().cast_signed()));
                    unwrap(tank.room(&mut book, now));
                    unwrap(tank.usage(&mut book, now));
                }
            }
        }
    }
}
