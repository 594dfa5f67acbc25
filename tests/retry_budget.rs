//! Retries that all processes share, on both stores and a clock that stands still.
mod support;

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use quotalite::{Error, HOUR, Limiter, ManualClock, RequestError, RetryBudget, SECOND};
use support::{in_both_stores, on_file, open};

fn retries(limiter: &Limiter, budget: RetryBudget) -> u32 {
    let mut granted = 0;
    while limiter.try_retry("api", budget).unwrap() {
        granted += 1;
    }
    granted
}

#[test]
fn retries_are_a_share_of_the_calls_of_the_window() {
    in_both_stores(|limiter, clock| {
        let budget = RetryBudget::default();
        assert_eq!(retries(limiter, budget), 3);
        for _ in 0..100 {
            limiter.note_call("api").unwrap();
        }
        assert_eq!(retries(limiter, budget), 17);
        assert_eq!(retries(limiter, budget.percent(25)), 5);
        assert!(limiter.try_retry("another", budget).unwrap());
        clock.advance(62 * SECOND);
        assert_eq!(retries(limiter, budget), 3);
        assert_eq!(retries(limiter, budget.percent(0).at_least(0)), 0);
    });
}

#[test]
fn all_limiters_of_a_file_share_it_and_it_outlives_them() {
    let (scratch, limiter, clock) = on_file();
    let budget = RetryBudget::default().at_least(2);
    assert!(limiter.try_retry("api", budget).unwrap());
    drop(limiter);
    let others = [open(&scratch, &clock), open(&scratch, &clock)];
    assert!(others[0].try_retry("api", budget).unwrap());
    assert!(!others[1].try_retry("api", budget).unwrap());
}

#[test]
fn bad_budgets_are_refused() {
    in_both_stores(|limiter, _clock| {
        for window in [Duration::ZERO, Duration::MAX, HOUR + SECOND] {
            let error = limiter
                .try_retry("api", RetryBudget::default().window(window))
                .unwrap_err();
            assert!(matches!(
                error,
                Error::Request(RequestError::BudgetWindow { .. })
            ));
        }
        for name in ["", "a\nb", &"a".repeat(257)] {
            let error = limiter.note_call(name).unwrap_err();
            assert!(matches!(
                error,
                Error::Request(RequestError::BudgetName { .. })
            ));
        }
    });
}

#[test]
fn what_no_budget_counts_any_more_is_forgotten() {
    let (scratch, limiter, clock) = on_file();
    for _ in 0..300 {
        limiter.note_call("api").unwrap();
        clock.advance(SECOND);
    }
    clock.advance(2 * HOUR);
    for _ in 0..30 {
        limiter.note_call("another").unwrap();
    }
    let left: i64 = scratch.sqlite("SELECT count(*) FROM attempt");
    assert_eq!(left, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 600 }))]

    /// Counted by true instants, the retries of any window are at most the share of its calls, or so many as there may be at
    /// least; and a budget that is not exhausted by the second either way grants one.
    #[test]
    fn retries_never_exceed_the_share(steps in prop::collection::vec((any::<bool>(), 0_u64..4_000), 1..200)) {
        let (_scratch, limiter, clock): (_, Limiter, ManualClock) = on_file();
        let budget = RetryBudget::default().window(20 * SECOND).at_least(1);
        let mut calls: VecDeque<u64> = VecDeque::new();
        let mut retries: VecDeque<u64> = VecDeque::new();
        let mut now_ms = 0;
        for (is_call, ms) in steps {
            now_ms += ms;
            clock.advance(Duration::from_millis(ms));
            let within = |all: &VecDeque<u64>, ms: u64| {
                all.iter().filter(|at| **at + ms > now_ms).count()
            };
            if is_call {
                limiter.note_call("api").unwrap();
                calls.push_back(now_ms);
            } else if limiter.try_retry("api", budget).unwrap() {
                let before = within(&retries, 20_000);
                prop_assert!(before < (within(&calls, 20_000) / 5).max(1));
                retries.push_back(now_ms);
            } else {
                let before = within(&retries, 22_000);
                prop_assert!(before >= (within(&calls, 18_000) / 5).max(1));
            }
        }
    }
}
