//! Limits that keep their history: it is there for as long as they say, and nothing that is decided knows of it.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    DAY, Decision, Error, HOUR, Limit, LimitBuilder, Limiter, MINUTE, ManualClock, OnConflict,
    Overage, Permit, SECOND,
};
use support::{Scratch, in_both_stores, on_file, open};

const MS: Duration = Duration::from_millis(1);

fn charge(limiter: &Limiter, key: &str) {
    assert!(limiter.try_acquire(key).unwrap().is_granted());
}

/// Gives whoever sweeps in passing the time to look at all limits.
fn sweep(limiter: &Limiter) {
    for _ in 0..2_000 {
        let booking = limiter.book("sweeps").unwrap();
        let _ = booking.accept();
    }
}

fn sweeping(scratch: &Scratch, clock: &ManualClock) -> Limiter {
    let limiter = open(scratch, clock);
    let sweeps = Limit::new("sweeps").rate(1_000_000, MS);
    limiter.define(sweeps).unwrap();
    limiter
}

fn rows_of(scratch: &Scratch, key: &str) -> i64 {
    scratch.sqlite(&format!(
        "SELECT count(*) FROM charge JOIN named_limit USING (limit_id) WHERE key = '{key}'"
    ))
}

#[test]
fn charges_stay_for_as_long_as_they_are_kept_and_then_go() {
    let (scratch, _, clock) = on_file();
    let limiter = sweeping(&scratch, &clock);
    for (key, keep) in [("none", Duration::ZERO), ("hour", HOUR), ("short", MS)] {
        let limit = Limit::new(key).per_minute(10).keep(keep);
        limiter.define(limit).unwrap();
        charge(&limiter, key);
    }
    let rows = || ["none", "hour", "short"].map(|key| rows_of(&scratch, key));
    clock.advance(58 * SECOND);
    sweep(&limiter);
    assert_eq!(rows(), [1, 1, 1], "windows hold what is kept for less");
    clock.advance(5 * SECOND);
    sweep(&limiter);
    assert_eq!(rows(), [0, 1, 0]);
    clock.advance(HOUR.saturating_sub(64 * SECOND));
    sweep(&limiter);
    assert_eq!(rows(), [0, 1, 0]);
    assert_eq!(limiter.usage("hour").unwrap().available(), 10);
    clock.advance(4 * SECOND);
    sweep(&limiter);
    assert_eq!(rows(), [0, 0, 0]);
}

#[test]
fn whoever_uses_a_limit_sweeps_as_much_of_its_history_as_comes_to_it() {
    let (scratch, limiter, clock) = on_file();
    let limit = Limit::new("k").per_second(10).keep(MINUTE);
    limiter.define(limit).unwrap();
    for _ in 0..6_000 {
        charge(&limiter, "k");
        clock.advance(100 * MS);
    }
    let rows = rows_of(&scratch, "k");
    // A minute, a second more, and what was charged since somebody last swept.
    assert!((600..=610 + 256).contains(&rows), "{rows}");
}

#[test]
fn what_is_merged_is_kept_for_as_long_after_the_last_of_it() {
    let (scratch, _, clock) = on_file();
    let limiter = sweeping(&scratch, &clock);
    let limit = Limit::new("k")
        .rate(10, MINUTE)
        .resolution(MINUTE)
        .keep(HOUR);
    limiter.define(limit).unwrap();
    let span_ns = i64::try_from(MINUTE.as_nanos()).unwrap();
    let into_ns = limiter.now().unwrap().as_nanos().rem_euclid(span_ns);
    clock
        .advance(MINUTE.saturating_sub(Duration::from_nanos(into_ns.unsigned_abs())) + 59 * SECOND);
    charge(&limiter, "k");
    clock.advance(HOUR.saturating_sub(SECOND));
    sweep(&limiter);
    assert_eq!(rows_of(&scratch, "k"), 1);
    clock.advance(63 * SECOND);
    sweep(&limiter);
    assert_eq!(rows_of(&scratch, "k"), 0);
}

#[test]
fn a_key_of_a_pattern_is_not_idle_before_its_history_is_over() {
    let (scratch, _, clock) = on_file();
    let limiter = sweeping(&scratch, &clock);
    for (pattern, keep) in [("kept:*", HOUR), ("gone:*", Duration::ZERO)] {
        let pattern = Limit::pattern(pattern).per_second(10).keep(keep);
        limiter.define(pattern).unwrap();
    }
    for key in ["kept:1", "gone:1"] {
        charge(&limiter, key);
    }
    let keys = || scratch.sqlite::<i64>("SELECT count(*) FROM pattern_key");
    clock.advance(3 * SECOND);
    sweep(&limiter);
    assert_eq!((keys(), rows_of(&scratch, "kept:1")), (1, 1));
    clock.advance(HOUR);
    sweep(&limiter);
    assert_eq!(keys(), 0);
}

#[test]
fn a_history_is_part_of_the_definition() {
    in_both_stores(|limiter, _| {
        let plain = || Limit::new("k").per_second(10);
        limiter.define(plain()).unwrap();
        let conflict = limiter.define(plain().keep(DAY)).unwrap_err();
        assert!(matches!(conflict, Error::Conflict { .. }), "{conflict}");
        limiter
            .define_or(plain().keep(7 * DAY), OnConflict::Replace)
            .unwrap();
        let limit = limiter.limit("k").unwrap();
        assert_eq!(limit.keep(), Some(7 * DAY));
        assert_eq!(limit.to_string(), "k: 10/s, keep 7d");
        let changes = limiter.changes("k").unwrap();
        assert_eq!(changes[0].definition(), "10/s, keep 7d");
        let pattern = Limit::pattern("t:*").per_second(1).keep(HOUR);
        limiter.define(pattern).unwrap();
        assert_eq!(limiter.limit("t:1").unwrap().keep(), Some(HOUR));
    });
}

#[test]
fn it_is_read_again_from_the_file() {
    let (scratch, limiter, clock) = on_file();
    let limit = Limit::new("k").per_second(10).keep(7 * DAY + SECOND);
    limiter.define(limit).unwrap();
    let again = open(&scratch, &clock);
    assert_eq!(again.limit("k").unwrap(), limiter.limit("k").unwrap());
    assert_eq!(
        scratch.sqlite::<String>("SELECT definition FROM limits"),
        "10/s, keep 604801s"
    );
}

/// The promise is about one definition: what is still there counts for another.
#[test]
fn a_longer_window_counts_what_was_kept() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("k").per_second(10).keep(HOUR))
            .unwrap();
        for _ in 0..30 {
            charge(limiter, "k");
            clock.advance(SECOND);
        }
        limiter
            .update("k", |limit| limit.to_builder().per_minute(31))
            .unwrap();
        assert_eq!(limiter.usage("k").unwrap().available(), 1);
    });
}

/// What happens to a limit.
#[derive(Clone, Copy, Debug)]
enum Op {
    Try { amount: u64 },
    Book { amount: u64, key: usize },
    Settle { permit: usize, used: u64 },
    Cancel { permit: usize },
    Drop { permit: usize },
    Block,
    Advance { ms: u64 },
    Many { count: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1_u64..6).prop_map(|amount| Op::Try { amount }),
        4 => (1_u64..6, 0..KEYS.len()).prop_map(|(amount, key)| Op::Book { amount, key }),
        6 => (0_usize..60, 0_u64..9).prop_map(|(permit, used)| Op::Settle { permit, used }),
        2 => (0_usize..60).prop_map(|permit| Op::Cancel { permit }),
        2 => (0_usize..60).prop_map(|permit| Op::Drop { permit }),
        1 => Just(Op::Block),
        8 => (0_u64..60).prop_map(|ms| Op::Advance { ms }),
        1 => (300_u64..3_000).prop_map(|ms| Op::Advance { ms }),
        2 => any::<u8>().prop_map(|count| Op::Many { count }),
    ]
}

const KEYS: [&str; 3] = ["k", "t:1", "t:2"];

fn limits(keep: Duration, overage: Overage, resolution: Duration) -> Vec<Limit> {
    let rates = |limit: LimitBuilder| {
        let limit = limit.rate(12, 50 * MS).rate(40, 400 * MS);
        let limit = limit.overage(overage).resolution(resolution).keep(keep);
        limit.build().unwrap()
    };
    vec![rates(Limit::new("k")), rates(Limit::pattern("t:*"))]
}

/// What a limiter says at each step.
fn play(limiter: &Limiter, clock: &ManualClock, ops: &[Op]) -> Vec<String> {
    let mut permits: Vec<Permit> = Vec::new();
    let mut told = Vec::new();
    for op in ops {
        told.push(match *op {
            Op::Try { amount } => match limiter.try_acquire(("k", amount)).unwrap() {
                Decision::Granted(permit) => {
                    let text = format!("{:?}", permit.at());
                    permits.push(permit);
                    text
                }
                Decision::Denied(denial) => format!("{denial:?}"),
            },
            Op::Book { amount, key } => {
                let permit = limiter.book((KEYS[key], amount)).unwrap().accept();
                let text = format!("{:?}", permit.at());
                permits.push(permit);
                text
            }
            Op::Settle { permit, used } if permit < permits.len() => {
                let permit = &permits[permit];
                let key = KEYS.iter().find_map(|key| {
                    let settled = permit.settle([(*key, used)]);
                    settled.ok().map(|settled| format!("{settled:?}"))
                });
                key.unwrap()
            }
            Op::Cancel { permit } if permit < permits.len() => {
                format!("{:?}", permits[permit].cancel().unwrap())
            }
            Op::Drop { permit } if permit < permits.len() => {
                drop(permits.swap_remove(permit));
                String::new()
            }
            Op::Settle { .. } | Op::Cancel { .. } | Op::Drop { .. } => String::new(),
            Op::Block => {
                let blocks = limiter.blocks("k", 3).unwrap().lifetime(20 * MS);
                format!("{:?}", blocks.try_acquire().unwrap().is_granted())
            }
            Op::Advance { ms } => {
                clock.advance(Duration::from_millis(ms));
                String::new()
            }
            // So many that somebody sweeps in passing.
            Op::Many { count } => {
                let granted = (0..count).filter(|_| {
                    clock.advance(2 * MS);
                    limiter.try_acquire("k").unwrap().is_granted()
                });
                granted.count().to_string()
            }
        });
        for key in KEYS {
            let usage = limiter.usage(key).unwrap();
            let rates = usage.rates().iter().map(|rate| {
                let (used, available) = (rate.used(), rate.available());
                format!("{used} {available} {:?}", rate.next_release())
            });
            let rates: Vec<String> = rates.collect();
            told.push(format!(
                "{key}: {rates:?} {} {}",
                usage.debt(),
                usage.waiting()
            ));
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_decided_knows_of_a_history(
        ops in prop::collection::vec(op(), 1..120),
        keep_ms in prop_oneof![Just(1_u64), Just(200), Just(2_000), Just(86_400_000)],
        overage in prop_oneof![Just(Overage::Debt), Just(Overage::Charge), Just(Overage::Deny)],
        resolution_ms in prop_oneof![3 => Just(0_u64), 1 => Just(7)],
        is_in_memory in any::<bool>(),
    ) {
        let resolution = Duration::from_millis(resolution_ms);
        let told = [Duration::ZERO, Duration::from_millis(keep_ms)].map(|keep| {
            let (_scratch, on_file, clock) = on_file();
            let limiter = if is_in_memory {
                Limiter::in_memory_with(clock.clone())
            } else {
                on_file
            };
            limiter.define_all(limits(keep, overage, resolution), OnConflict::Fail).unwrap();
            play(&limiter, &clock, &ops)
        });
        for (step, (without, with)) in told[0].iter().zip(&told[1]).enumerate() {
            prop_assert_eq!(without, with, "step {}", step);
        }
    }
}
