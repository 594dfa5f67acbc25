//! What a provider says, taken for all: pauses, what others have used, and what it allows. On both stores.
#![cfg(feature = "http")]
mod support;

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use quotalite::{
    Counted, Error, Feedback, Heard, Limit, LimitSet, Limiter, MINUTE, ManualClock, SECOND,
};
use support::in_both_stores;

const KEYS: [&str; 3] = ["requests", "tokens", "in flight"];

fn define(limiter: &Limiter) {
    limiter
        .define(Limit::new(KEYS[0]).per_second(10).per_minute(300))
        .unwrap();
    limiter
        .define(Limit::new(KEYS[1]).per_minute(90_000))
        .unwrap();
    limiter.define(Limit::slots(KEYS[2], 8)).unwrap();
}

fn set() -> LimitSet {
    LimitSet::new()
        .requests(KEYS[0])
        .tokens(KEYS[1])
        .concurrency(KEYS[2])
}

fn heed(limiter: &Limiter, set: &LimitSet, status: u16, headers: &[(&str, &str)]) -> Heard {
    let headers = headers.iter().copied();
    let feedback = Feedback::read(status, headers, SystemTime::UNIX_EPOCH);
    limiter.heed(set, feedback).unwrap()
}

fn paused_for(limiter: &Limiter, key: &str) -> Option<Duration> {
    let usage = limiter.usage(key).unwrap();
    let pause = usage.pause()?;
    Some(pause.until().saturating_duration_since(usage.at()))
}

#[test]
fn a_refusal_pauses_what_is_exhausted_for_as_long_as_it_says() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let headers = [
            ("x-ratelimit-remaining-requests", "12"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6.5s"),
        ];
        // An answer that is none of a refusal pauses nothing.
        assert!(heed(limiter, &set(), 200, &headers).paused().is_empty());
        let heard = heed(limiter, &set(), 429, &headers);
        assert_eq!(heard.paused().len(), 1);
        assert_eq!(
            paused_for(limiter, "tokens"),
            Some(Duration::from_millis(6_500))
        );
        assert_eq!(paused_for(limiter, "requests"), None);
        clock.advance(MINUTE);

        // Where it does not say which, the first is.
        heed(limiter, &set(), 429, &[("retry-after", "20")]);
        assert_eq!(paused_for(limiter, "requests"), Some(20 * SECOND));
        assert_eq!(paused_for(limiter, "tokens"), None);
        clock.advance(MINUTE);

        // Where it does not say for how long, the limit does.
        heed(limiter, &set(), 429, &[]);
        assert_eq!(paused_for(limiter, "requests"), Some(MINUTE));
    });
}

#[test]
fn no_header_pauses_for_longer_than_the_cap() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        for told in [
            "99999999",
            "4102444800",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "-1",
            "NaN",
            "1e99",
        ] {
            heed(limiter, &set(), 429, &[("retry-after", told)]);
            let paused = paused_for(limiter, "requests").unwrap();
            assert!(paused <= 15 * MINUTE, "{told}: {paused:?}");
        }
    });
}

#[test]
fn a_late_answer_to_what_was_asked_before_is_no_strike_of_its_own() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let permit = limiter.acquire("requests").unwrap();
        clock.advance(SECOND);
        heed(limiter, &set(), 429, &[]);
        clock.advance(2 * MINUTE);
        let heard = heed(limiter, &set().asked_at(permit.at()), 429, &[]);
        assert_eq!(paused_for(limiter, "requests"), None);
        assert_eq!(heard.paused()[0].1.strikes(), 1);
    });
}

#[test]
fn what_others_have_used_is_charged_and_nothing_is_given_back() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        limiter.acquire(("tokens", 10_000)).unwrap();
        let heard = heed(
            limiter,
            &set(),
            200,
            &[("x-ratelimit-remaining-tokens", "50000")],
        );
        assert_eq!(heard.raised(), [("tokens".to_owned(), 30_000)]);
        assert_eq!(limiter.usage("tokens").unwrap().available(), 50_000);
        let heard = heed(
            limiter,
            &set(),
            200,
            &[("x-ratelimit-remaining-tokens", "70000")],
        );
        assert!(heard.raised().is_empty());
        assert_eq!(limiter.usage("tokens").unwrap().available(), 50_000);
        clock.advance(MINUTE);
        assert_eq!(limiter.usage("tokens").unwrap().available(), 90_000);

        // A second of the requests holds no more than 10, whatever others have used in the minute.
        let heard = heed(
            limiter,
            &set(),
            200,
            &[("x-ratelimit-remaining-requests", "100")],
        );
        assert_eq!(heard.raised(), [("requests".to_owned(), 10)]);
        clock.advance(SECOND);
        let heard = heed(
            limiter,
            &set(),
            200,
            &[("x-ratelimit-remaining-requests", "283")],
        );
        assert_eq!(heard.raised(), [("requests".to_owned(), 7)]);
    });
}

#[test]
fn what_is_allowed_becomes_the_limit_less_a_margin_on_request() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        let headers = [
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-limit-tokens", "200000"),
            (
                "ratelimit-policy",
                "\"busy\";q=20;qu=\"concurrent-requests\"",
            ),
            ("ratelimit", "\"busy\";r=20"),
        ];
        assert!(heed(limiter, &set(), 200, &headers).learned().is_empty());
        let heard = heed(limiter, &set().learning(), 200, &headers);
        let learned: Vec<String> = heard
            .learned()
            .iter()
            .map(|learned| learned.limit().to_string())
            .collect();
        assert_eq!(
            learned,
            [
                "in flight: 12 slots",
                "requests: 10/s, 350/min",
                "tokens: 140000/min"
            ]
        );
        assert_eq!(
            heard.learned()[1].former().to_string(),
            "requests: 10/s, 300/min"
        );
        assert_eq!(
            limiter.limit("tokens").unwrap().to_string(),
            "tokens: 140000/min"
        );
        // Who changed what is told as of any change.
        assert_eq!(limiter.changes("tokens").unwrap().len(), 2);
        let heard = heed(limiter, &set().learning(), 200, &headers);
        assert!(heard.learned().is_empty());
        let more = set().learning().margin(90).concurrency_margin(100);
        heed(limiter, &more, 200, &headers);
        assert_eq!(
            limiter.limit("requests").unwrap().to_string(),
            "requests: 10/s, 450/min"
        );
        assert_eq!(
            limiter.limit("in flight").unwrap().to_string(),
            "in flight: 20 slots"
        );
    });
}

#[test]
fn a_window_that_is_told_is_learned_with_its_limit() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::new("requests").per_minute(300))
            .unwrap();
        let policy = [("ratelimit-policy", "\"a\";q=100;w=10, \"b\";q=5000;w=3600")];
        heed(
            limiter,
            &LimitSet::new().requests("requests").learning(),
            200,
            &policy,
        );
        assert_eq!(
            limiter.limit("requests").unwrap().to_string(),
            "requests: 70/10s, 300/min, 3500/h"
        );
    });
}

#[test]
fn a_limit_that_is_not_defined_is_named() {
    in_both_stores(|limiter, _clock| {
        let feedback = Feedback::read(429, [("retry-after", "1")], SystemTime::UNIX_EPOCH);
        let error = limiter.heed(&set(), feedback).unwrap_err();
        assert!(matches!(error, Error::UnknownLimit { key, .. } if key == "requests"));
        let other = LimitSet::new().of(Counted::Other("credits".to_owned()), "credits");
        let feedback = Feedback::read(
            200,
            [("x-ratelimit-limit-requests", "1")],
            SystemTime::UNIX_EPOCH,
        );
        assert!(
            limiter
                .heed(&other.learning(), feedback)
                .unwrap()
                .learned()
                .is_empty()
        );
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 2_000 }))]

    /// Whatever is told, no window is over and no more is left than remains, where the other rates leave room for that.
    #[test]
    fn raising_keeps_to_the_law(steps in prop::collection::vec((0_u64..400, 0_u64..3_000, any::<bool>()), 1..60)) {
        let clock = ManualClock::new();
        let limiter = Limiter::in_memory_with(clock.clone());
        limiter.define(Limit::new("a").per_second(10).per_minute(300)).unwrap();
        for (remaining, ms, takes) in steps {
            clock.advance(Duration::from_millis(ms));
            if takes {
                let _ = limiter.try_acquire("a").unwrap();
            }
            let before = limiter.usage("a").unwrap();
            let raised = limiter.raise("a", None, remaining).unwrap();
            let after = limiter.usage("a").unwrap();
            for (before, after) in before.rates().iter().zip(after.rates()) {
                prop_assert_eq!(after.used(), before.used() + raised);
                prop_assert!(after.used() <= after.rate().capacity());
            }
            let [second, minute] = after.rates() else { panic!("two rates") };
            prop_assert!(minute.available() <= remaining || second.available() == 0);
        }
    }
}

#[test]
fn of_policies_that_count_the_same_the_strictest_is_learned_and_a_name_can_be_a_unit() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        let policies = [(
            "ratelimit-policy",
            "\"requests\";q=1000;w=60, \"burst\";q=600;w=60, \"tokens\";q=100000;w=60",
        )];
        let heard = heed(limiter, &set().learning(), 200, &policies);
        let learned: Vec<String> = heard
            .learned()
            .iter()
            .map(|learned| learned.limit().to_string())
            .collect();
        assert_eq!(learned, ["requests: 10/s, 420/min", "tokens: 70000/min"]);
    });
}

#[test]
fn a_figure_that_cannot_be_of_the_window_is_not_learned_for_it() {
    in_both_stores(|limiter, _clock| {
        limiter.define(Limit::new("api").per_minute(3)).unwrap();
        let set = LimitSet::new().requests("api").learning();
        let learned = |reset| {
            let headers = [
                ("x-ratelimit-limit-requests", "200"),
                ("x-ratelimit-remaining-requests", "199"),
                ("x-ratelimit-reset-requests", reset),
            ];
            let heard = heed(limiter, &set, 200, &headers);
            heard.learned().len()
        };
        // Of 200 a day one comes back after 7 minutes.
        assert_eq!(learned("7m12s"), 0);
        assert_eq!(learned("2m0.1s"), 0);
        assert_eq!(learned("1m1s"), 1);
        assert_eq!(limiter.limit("api").unwrap().to_string(), "api: 140/min");
    });
}

#[test]
fn what_only_lowers_never_raises() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        let set = set().learning().only_lowering();
        let heard = |requests, in_flight| {
            let headers = [
                ("x-ratelimit-limit-requests", requests),
                ("x-ratelimit-limit-concurrent-requests", in_flight),
            ];
            heed(limiter, &set, 200, &headers).learned().len()
        };
        assert_eq!(heard("500", "100"), 0);
        assert_eq!(heard("400", "10"), 2);
        assert_eq!(heard("500", "100"), 0);
        let limits = [KEYS[0], KEYS[2]].map(|key| limiter.limit(key).unwrap().to_string());
        assert_eq!(limits, ["requests: 10/s, 280/min", "in flight: 6 slots"]);
    });
}
