//! Rates that follow what a provider allows and does not tell.
mod support;

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    Adaptive, Decision, Error, Limit, Limiter, MINUTE, ManualClock, OnConflict, RequestError,
    SECOND,
};
use support::{in_both_stores, on_file, open};

fn capacity(limiter: &Limiter) -> u64 {
    limiter.limit("api").unwrap().rates()[0].capacity()
}

#[test]
fn it_is_cut_once_for_a_window_and_grows_once_for_a_window_without_refusals() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("api").per_minute(100)).unwrap();
        let adaptive = Adaptive::between(20, 200).step(5).cut_to(50);
        clock.advance(MINUTE);
        for _ in 0..40 {
            limiter.adapt("api", adaptive, true).unwrap();
        }
        assert_eq!(capacity(limiter), 50);
        clock.advance(59 * SECOND);
        assert_eq!(limiter.adapt("api", adaptive, false).unwrap(), None);
        clock.advance(SECOND);
        limiter.acquire(("api", 24)).unwrap();
        assert_eq!(limiter.adapt("api", adaptive, false).unwrap(), None);
        limiter.acquire("api").unwrap();
        for _ in 0..3 {
            limiter.adapt("api", adaptive, false).unwrap();
        }
        assert_eq!(capacity(limiter), 55);
        for _ in 0..5 {
            clock.advance(MINUTE);
            limiter.adapt("api", adaptive, true).unwrap();
        }
        assert_eq!(capacity(limiter), 20);
        for _ in 0..100 {
            clock.advance(MINUTE);
            limiter.acquire(("api", capacity(limiter))).unwrap();
            limiter.adapt("api", adaptive, false).unwrap();
        }
        assert_eq!(capacity(limiter), 200);
    });
}

#[test]
fn what_is_idle_does_not_grow() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("api").per_second(10)).unwrap();
        let adaptive = Adaptive::between(10, 1_000);
        for _ in 0..200 {
            limiter.acquire("api").unwrap();
            assert_eq!(limiter.adapt("api", adaptive, false).unwrap(), None);
            clock.advance(SECOND);
        }
    });
}

#[test]
fn all_limiters_of_a_file_share_it() {
    let (scratch, limiter, clock) = on_file();
    let other = open(&scratch, &clock);
    limiter
        .define(Limit::new("api").per_second(5).per_minute(100))
        .unwrap();
    clock.advance(MINUTE);
    let adaptive = Adaptive::between(1, 1_000).window(MINUTE);
    other.adapt("api", adaptive, true).unwrap();
    assert_eq!(limiter.adapt("api", adaptive, true).unwrap(), None);
    assert_eq!(
        limiter.limit("api").unwrap().to_string(),
        "api: 5/s, 70/min"
    );
}

#[test]
fn what_cannot_adapt_is_refused_or_stays() {
    in_both_stores(|limiter, _clock| {
        limiter.define(Limit::slots("slots", 3)).unwrap();
        let adaptive = Adaptive::between(1, 10);
        assert_eq!(limiter.adapt("slots", adaptive, true).unwrap(), None);
        for bad in [
            Adaptive::between(0, 10),
            Adaptive::between(11, 10),
            adaptive.step(0),
            adaptive.cut_to(0),
            adaptive.cut_to(100),
        ] {
            let error = limiter.adapt("slots", bad, true).unwrap_err();
            assert!(matches!(error, Error::Request(RequestError::Adaptive)));
        }
    });
}

/// A provider that allows so many calls in any second and says nothing of it.
struct Provider {
    capacity: usize,
    accepted_ms: VecDeque<u64>,
}

impl Provider {
    fn refuses(&mut self, now_ms: u64) -> bool {
        while self
            .accepted_ms
            .front()
            .is_some_and(|at_ms| at_ms + 1_000 <= now_ms)
        {
            self.accepted_ms.pop_front();
        }
        if self.accepted_ms.len() >= self.capacity {
            return true;
        }
        self.accepted_ms.push_back(now_ms);
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 6 } else { 60 }))]

    /// Wherever it starts, after two minutes it stays near the hidden limit: hardly anything is refused, and most of it is used.
    #[test]
    fn it_converges_on_a_hidden_limit(hidden in 20_usize..150, first in 10_u64..300) {
        let clock = ManualClock::new();
        let limiter = Limiter::in_memory_with(clock.clone());
        let limit = Limit::new("api").per_second(first);
        limiter.define_or(limit, OnConflict::Replace).unwrap();
        let adaptive = Adaptive::between(5, 400).step(2).cut_to(80);
        let mut provider = Provider { capacity: hidden, accepted_ms: VecDeque::new() };
        let (mut accepted, mut refused) = (0_usize, 0_usize);
        for now_ms in (0..180_000).step_by(2) {
            if let Decision::Granted(_permit) = limiter.try_acquire("api").unwrap() {
                let is_refused = provider.refuses(now_ms);
                limiter.adapt("api", adaptive, is_refused).unwrap();
                if now_ms >= 120_000 {
                    accepted += usize::from(!is_refused);
                    refused += usize::from(is_refused);
                }
            }
            clock.advance(Duration::from_millis(2));
        }
        let used = accepted * 100 / (hidden * 60);
        prop_assert!(used >= 75, "{used} % of {hidden} used");
        prop_assert!(refused * 100 <= accepted * 10, "{refused} refused, {accepted} accepted");
    }
}
