//! Circuit breakers, on both stores and a clock that stands still.
mod support;

use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    BreakerPolicy, BreakerState, Error, Limit, LimitError, Limiter, MINUTE, ManualClock, Obstacle,
    OnConflict, Permit, Report, Request, SECOND,
};
use support::{in_both_stores, on_file, open};

fn policy() -> BreakerPolicy {
    BreakerPolicy::default()
        .window(10 * SECOND)
        .minimum_calls(4)
        .failure_rate(50)
        .open_for(30 * SECOND)
        .probes(2)
}

fn state(limiter: &Limiter) -> BreakerState {
    limiter.usage("b").unwrap().breaker().unwrap().state()
}

fn reason(limiter: &Limiter) -> Option<String> {
    let usage = limiter.usage("b").unwrap();
    usage.breaker().unwrap().reason().map(str::to_owned)
}

fn call(limiter: &Limiter, report: Report) {
    let permit = limiter.try_acquire("b").unwrap().granted().unwrap();
    permit.report(report).unwrap();
}

fn opened(limiter: &Limiter) {
    limiter.define(Limit::breaker("b", policy())).unwrap();
    for _ in 0..4 {
        call(limiter, Report::failure());
    }
    assert_eq!(state(limiter), BreakerState::Open);
}

#[test]
fn it_opens_when_enough_calls_have_failed_and_says_why() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::breaker("b", policy())).unwrap();
        for _ in 0..3 {
            call(limiter, Report::failure());
        }
        // So few say nothing.
        assert_eq!(state(limiter), BreakerState::Closed);
        clock.advance(11 * SECOND);
        // They have left the window.
        for report in [Report::success(), Report::failure(), Report::success()] {
            call(limiter, report);
        }
        assert_eq!(
            (state(limiter), reason(limiter)),
            (BreakerState::Closed, None)
        );
        call(limiter, Report::failure());
        assert_eq!(state(limiter), BreakerState::Open);
        assert_eq!(reason(limiter).as_deref(), Some("2 of 4 calls failed"));
        let denial = limiter.try_acquire("b").unwrap().denied().unwrap();
        assert_eq!(denial.obstacle(), Obstacle::Breaker);
        assert_eq!(denial.to_string(), "limit `b` (breaker) admits 1 in 30s");
        assert_eq!(limiter.usage("b").unwrap().available(), 0);
    });
}

#[test]
fn it_opens_when_enough_calls_were_slow() {
    in_both_stores(|limiter, _clock| {
        let policy = policy().slow_rate(2 * SECOND, 75);
        limiter.define(Limit::breaker("b", policy)).unwrap();
        call(limiter, Report::success().took(SECOND));
        for _ in 0..2 {
            call(limiter, Report::success().took(2 * SECOND));
        }
        assert_eq!(state(limiter), BreakerState::Closed);
        call(limiter, Report::success().took(MINUTE));
        assert_eq!(reason(limiter).as_deref(), Some("3 of 4 calls were slow"));
    });
}

#[test]
fn a_few_probes_are_let_through_and_close_it_if_all_succeed() {
    in_both_stores(|limiter, clock| {
        opened(limiter);
        clock.advance(30 * SECOND);
        assert_eq!(state(limiter), BreakerState::HalfOpen);
        assert_eq!(limiter.usage("b").unwrap().available(), 2);
        let first = limiter.try_acquire("b").unwrap().granted().unwrap();
        let second = limiter.try_acquire("b").unwrap().granted().unwrap();
        let denial = limiter.try_acquire("b").unwrap().denied().unwrap();
        assert_eq!(
            (denial.obstacle(), denial.retry_after()),
            (Obstacle::Breaker, None)
        );
        let succeeded = || {
            let usage = limiter.usage("b").unwrap();
            let breaker = usage.breaker().unwrap();
            (breaker.succeeded(), breaker.probes())
        };
        assert_eq!(succeeded(), (0, 2));
        first.report(Report::success()).unwrap();
        assert_eq!(succeeded(), (1, 2));
        drop(first);
        // One that ends without a word is replaced.
        drop(second);
        let third = limiter.try_acquire("b").unwrap().granted().unwrap();
        assert_eq!(state(limiter), BreakerState::HalfOpen);
        third.report(Report::success()).unwrap();
        assert_eq!(
            (state(limiter), reason(limiter)),
            (BreakerState::Closed, None)
        );
        // What was counted before is forgotten.
        call(limiter, Report::failure());
        assert_eq!(state(limiter), BreakerState::Closed);
    });
}

#[test]
fn a_probe_that_fails_opens_it_again_and_late_answers_say_nothing() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::breaker("b", policy())).unwrap();
        let late = limiter.try_acquire("b").unwrap().granted().unwrap();
        opened(limiter);
        clock.advance(30 * SECOND);
        late.report(Report::failure()).unwrap();
        assert_eq!(state(limiter), BreakerState::HalfOpen);
        // It holds no probe's place, though it is under way.
        assert_eq!(limiter.usage("b").unwrap().available(), 2);
        call(limiter, Report::failure());
        assert_eq!(state(limiter), BreakerState::Open);
        assert_eq!(reason(limiter).as_deref(), Some("a probe failed"));
        let denial = limiter.try_acquire("b").unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(30 * SECOND));
    });
}

#[test]
fn it_keeps_away_all_who_ask_for_it_with_something_else() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("requests").per_second(10))
            .unwrap();
        opened(limiter);
        let both = Request::new().take("requests", 1).take("b", 1);
        assert!(!limiter.try_acquire(&both).unwrap().is_granted());
        assert_eq!(limiter.usage("requests").unwrap().rates()[0].used(), 0);
        let error = limiter.acquire_within(&both, SECOND).unwrap_err();
        assert!(matches!(error, Error::TooLate { denial, .. } if denial.key() == "b"));
        clock.advance(30 * SECOND);
        assert!(limiter.try_acquire(&both).unwrap().is_granted());
    });
}

#[test]
fn whoever_resumes_it_closes_it() {
    in_both_stores(|limiter, _clock| {
        opened(limiter);
        assert!(limiter.resume("b").unwrap().is_some());
        assert_eq!(state(limiter), BreakerState::Closed);
        assert!(limiter.try_acquire("b").unwrap().is_granted());
    });
}

#[test]
fn all_limiters_of_a_file_share_it_and_the_views_tell() {
    let (scratch, limiter, clock) = on_file();
    opened(&limiter);
    let other = open(&scratch, &clock);
    assert!(!other.try_acquire("b").unwrap().is_granted());
    assert_eq!(reason(&other).as_deref(), Some("4 of 4 calls failed"));
    // The clock of the views is later.
    let status: String = scratch.sqlite("SELECT rate FROM status WHERE key = 'b'");
    assert_eq!(status, "breaker half-open: 4 of 4 calls failed");
    let kind: String = scratch.sqlite("SELECT kind || ' ' || definition FROM limits");
    assert_eq!(
        kind,
        "breaker breaker, 50 % of 4 or more failed in 10s, open for 30s, probes 2"
    );
    assert_eq!(other.limit("b").unwrap(), limiter.limit("b").unwrap());
    let policy = policy().open_for(MINUTE);
    other
        .define_or(Limit::breaker("b", policy), OnConflict::Replace)
        .unwrap();
    assert_eq!(limiter.limit("b").unwrap().breaker_policy(), Some(policy));
    // Who is under way is in its way.
    clock.advance(MINUTE);
    let probe = limiter.try_acquire("b").unwrap().granted().unwrap();
    assert!(matches!(other.remove("b"), Err(Error::InUse { .. })));
    drop(probe);
    other.remove("b").unwrap();
    let left: i64 = scratch.sqlite(
        "SELECT (SELECT count(*) FROM breaker) + (SELECT count(*) FROM outcome) + (SELECT count(*) FROM breaker_policy)",
    );
    assert_eq!(left, 0);
}

#[test]
fn a_pattern_makes_breakers_that_stand_for_themselves() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::pattern("api:*").breaker(policy()))
            .unwrap();
        for _ in 0..4 {
            let permit = limiter.try_acquire("api:a").unwrap().granted().unwrap();
            permit.report(Report::failure()).unwrap();
        }
        assert!(!limiter.try_acquire("api:a").unwrap().is_granted());
        assert!(limiter.try_acquire("api:b").unwrap().is_granted());
    });
}

#[test]
fn a_bad_breaker_cannot_be_built() {
    let cases = [
        (
            policy().window(Duration::ZERO),
            "the window of a breaker is 1 ms to 366 days, not 0ns",
        ),
        (
            policy().probes(0),
            "the number of probes of a breaker is not 0",
        ),
        (
            policy().failure_rate(101),
            "the failure rate of a breaker is not 101",
        ),
    ];
    for (policy, message) in cases {
        let error = Limit::breaker("b", policy).build().unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = Limit::breaker("b", policy())
        .per_second(1)
        .build()
        .unwrap_err();
    assert!(matches!(error, LimitError::NotForBreakers { what: "rate" }));
}

/// The rules, with a list of what was reported.
#[derive(Default)]
struct Naive {
    now_ms: u64,
    reports: Vec<(u64, bool)>,
    /// Since when it is half-open or will be, and how many probes have succeeded.
    open: Option<(u64, usize)>,
    /// When each that is under way was let through.
    under_way: Vec<u64>,
}

impl Naive {
    fn lets_through(&self) -> bool {
        let Some((until_ms, _)) = self.open else {
            return true;
        };
        let probes = self.under_way.iter().filter(|at_ms| **at_ms >= until_ms);
        self.now_ms >= until_ms && probes.count() < 2
    }

    fn report(&mut self, asked_ms: u64, failed: bool) {
        match self.open {
            Some((until_ms, _)) if asked_ms < until_ms => {}
            Some(_) if failed => self.open = Some((self.now_ms + 30_000, 0)),
            Some((_, 1)) => {
                self.open = None;
                self.reports.clear();
            }
            Some((until_ms, _)) => self.open = Some((until_ms, 1)),
            None => {
                self.reports.push((self.now_ms, failed));
                let now_ms = self.now_ms;
                self.reports
                    .retain(|(at_ms, _)| at_ms / 1_000 * 1_000 + 10_000 > now_ms);
                let failures = self.reports.iter().filter(|(_, failed)| *failed).count();
                if self.reports.len() >= 4 && failures * 2 >= self.reports.len() {
                    self.open = Some((now_ms + 30_000, 0));
                }
            }
        }
    }

    fn state(&self) -> BreakerState {
        match self.open {
            None => BreakerState::Closed,
            Some((until_ms, _)) if self.now_ms < until_ms => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Ask,
    Report { call: usize, failed: bool },
    Drop { call: usize },
    Advance { ms: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Ask),
        5 => (0_usize..4, any::<bool>()).prop_map(|(call, failed)| Op::Report { call, failed }),
        2 => (0_usize..4).prop_map(|call| Op::Drop { call }),
        2 => prop_oneof![0_u64..1_500, 0_u64..31_000].prop_map(|ms| Op::Advance { ms }),
    ]
}

fn follow(limiter: &Limiter, clock: &ManualClock, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut naive = Naive::default();
    let mut calls: Vec<Permit> = Vec::new();
    limiter.define(Limit::breaker("b", policy())).unwrap();
    for op in ops {
        match *op {
            Op::Ask => {
                let permit = limiter.try_acquire("b").unwrap().granted();
                prop_assert_eq!(permit.is_some(), naive.lets_through());
                if let Some(permit) = permit {
                    naive.under_way.push(naive.now_ms);
                    calls.push(permit);
                }
            }
            Op::Report { call, failed } if call < calls.len() => {
                let report = if failed {
                    Report::failure()
                } else {
                    Report::success()
                };
                calls[call].report(report).unwrap();
                drop(calls.remove(call));
                let asked_ms = naive.under_way.remove(call);
                naive.report(asked_ms, failed);
            }
            Op::Drop { call } if call < calls.len() => {
                drop(calls.remove(call));
                naive.under_way.remove(call);
            }
            Op::Advance { ms } => {
                clock.advance(Duration::from_millis(ms));
                naive.now_ms += ms;
            }
            _ => {}
        }
        prop_assert_eq!(state(limiter), naive.state());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 100 } else { 2_000 }))]

    #[test]
    fn a_breaker_stands_as_the_rules_say(ops in prop::collection::vec(op(), 1..150)) {
        let clock = ManualClock::new();
        follow(&Limiter::in_memory_with(clock.clone()), &clock, &ops)?;
        let (_scratch, limiter, clock) = on_file();
        follow(&limiter, &clock, &ops)?;
    }
}

#[test]
fn the_first_report_of_a_permit_counts() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::breaker("b", policy())).unwrap();
        let permit = limiter.acquire("b").unwrap();
        for _ in 0..10 {
            permit.report(Report::failure()).unwrap();
        }
        assert_eq!(state(limiter), BreakerState::Closed);
        for _ in 0..3 {
            call(limiter, Report::failure());
        }
        assert_eq!(reason(limiter).unwrap(), "4 of 4 calls failed");
        clock.advance(30 * SECOND);
        let probe = limiter.acquire("b").unwrap();
        for _ in 0..3 {
            probe.report(Report::success()).unwrap();
        }
        assert_eq!(state(limiter), BreakerState::HalfOpen);
    });
}

#[test]
fn a_pattern_makes_one_for_each_key() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::pattern("breaker:*").breaker(policy()))
            .unwrap();
        for _ in 0..4 {
            let permit = limiter.acquire("breaker:one").unwrap();
            permit.report(Report::failure()).unwrap();
        }
        assert!(!limiter.try_acquire("breaker:one").unwrap().is_granted());
        assert!(limiter.try_acquire("breaker:other").unwrap().is_granted());
    });
}
