//! Estimates, and what is learned about them, on both stores.
mod support;

use std::sync::Arc;

use proptest::prelude::*;
use quotalite::{
    ByteBound, Decision, Error, EstimateRatio, EstimateTokens, Estimator, Limit, Limiter,
    MAX_CAPACITY, ManualClock, OnConflict, Overage, Permit, Request, RequestError, SECOND, Settled,
    TextEstimate,
};
use support::{in_both_stores, on_file, open, open_raw};

const DAY: std::time::Duration = quotalite::DAY;

fn granted(limiter: &Limiter, request: &Request) -> Permit {
    match limiter.try_acquire(request).unwrap() {
        Decision::Granted(permit) => permit,
        Decision::Denied(denial) => panic!("{denial}"),
    }
}

fn define(limiter: &Limiter, key: &str) {
    let limit = Limit::new(key).per_minute(MAX_CAPACITY).unit("tokens");
    limiter.define(limit).unwrap();
}

fn ratio(limiter: &Limiter, key: &str) -> EstimateRatio {
    limiter.estimate_ratio(key).unwrap().unwrap()
}

fn learn_all(limiter: &Limiter, key: &str, calls: &[(u64, u64)]) {
    for (estimated, used) in calls {
        limiter.learn_estimate(key, *estimated, *used).unwrap();
    }
}

/// A pause in which nobody comes, and then so many that every ledger is swept.
fn sweep(limiter: &Limiter, clock: &ManualClock) {
    clock.advance(3 * DAY);
    for _ in 0..600 {
        assert!(limiter.try_acquire("sweeper").unwrap().is_granted());
        clock.advance(SECOND);
    }
}

#[test]
fn texts_come_to_what_the_table_says() {
    let long = "x".repeat(4_000);
    let cases: &[(&str, u64, u64)] = &[
        ("", 0, 0),
        ("a", 2, 1),
        ("abcd", 2, 4),
        ("abcde", 3, 5),
        ("How many tokens is this text?", 10, 29),
        ("ééééé", 3, 10),
        ("日本語", 2, 9),
        ("\u{0}\u{10ffff}", 2, 5),
        (&long, 1_200, 4_000),
    ];
    for (text, estimate, bound) in cases {
        assert_eq!(TextEstimate.input_tokens(text), *estimate, "{text:?}");
        assert_eq!(ByteBound.input_tokens(text), *bound, "{text:?}");
    }
}

#[test]
fn a_call_is_its_texts_and_its_output() {
    let texts = ["abcd", "", "abcde"];
    assert_eq!(TextEstimate.call_tokens(&texts, 500), 505);
    assert_eq!(ByteBound.framed(4).call_tokens(&texts, 500), 521);
    assert_eq!(TextEstimate.call_tokens(&[], 0), 0);
    let most = ByteBound.framed(u64::MAX);
    assert_eq!(most.call_tokens(&texts, u64::MAX), u64::MAX);
    let any: [Box<dyn EstimateTokens>; 3] = [
        Box::new(TextEstimate),
        Box::new(Arc::new(ByteBound)),
        Box::new(&ByteBound),
    ];
    let all: Vec<u64> = any.iter().map(|any| any.call_tokens(&texts, 1)).collect();
    assert_eq!(all, [6, 10, 10]);
}

#[cfg(feature = "tiktoken")]
mod tiktoken {
    use quotalite::{Tiktoken, UnknownModel};

    use super::*;

    #[test]
    fn models_that_nobody_knows_are_told() {
        let error = Tiktoken::for_model("parrot-1").unwrap_err();
        assert!(matches!(&error, UnknownModel { model, .. } if model == "parrot-1"));
        assert_eq!(
            error.to_string(),
            "there is no tokenizer for the model `parrot-1`"
        );
    }

    #[test]
    fn what_looks_like_a_special_token_is_text() {
        let gpt = Tiktoken::for_model("gpt-4o").unwrap();
        assert!(gpt.input_tokens("<|endoftext|>") > 1);
    }

    /// The tokenizer's regular expression runs out of its stack.
    #[test]
    fn a_text_that_the_tokenizer_gives_up_on_counts_by_its_bytes() {
        let gpt = Tiktoken::for_model("gpt-4o").unwrap();
        let blanks = " ".repeat(2_000_000);
        assert_eq!(gpt.input_tokens(&blanks), 2_000_000);
    }

    proptest! {
        #[test]
        fn no_model_counts_more_tokens_than_bytes(text in any::<String>(), words in "[ -~\n]{0,200}") {
            for model in ["gpt-4o", "gpt-4", "text-davinci-003", "davinci"] {
                let model = Tiktoken::for_model(model).unwrap();
                for text in [&text, &words] {
                    prop_assert!(model.input_tokens(text) <= ByteBound.input_tokens(text), "{text:?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn more_text_and_more_output_are_never_less(
        texts in prop::collection::vec(any::<String>(), 0..5),
        more in any::<String>(),
        (output, further) in any::<(u64, u64)>(),
        frame in any::<u64>(),
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut longer = texts.clone();
        longer.push(&more);
        let joined = texts.concat();
        let bases: [Box<dyn EstimateTokens>; 3] =
            [Box::new(TextEstimate), Box::new(ByteBound), Box::new(TextEstimate.framed(frame))];
        for base in bases {
            let tokens = base.call_tokens(&texts, output);
            prop_assert!(tokens >= output);
            prop_assert!(base.call_tokens(&longer, output) >= tokens);
            prop_assert!(base.call_tokens(&texts, output.saturating_add(further)) >= tokens);
            let extended = format!("{joined}{more}");
            prop_assert!(base.input_tokens(&extended) >= base.input_tokens(&joined));
        }
    }

    #[test]
    fn a_larger_estimate_is_never_corrected_to_less(
        calls in prop::collection::vec(any::<(u64, u64)>(), 1..80),
        (a, b) in any::<(u64, u64)>(),
    ) {
        let limiter = Limiter::in_memory().unwrap();
        define(&limiter, "tokens");
        learn_all(&limiter, "tokens", &calls);
        let ratio = ratio(&limiter, "tokens");
        prop_assert!(ratio.corrected(a.max(b)) >= ratio.corrected(a.min(b)));
        prop_assert!(ratio.corrected(0) == 1);
    }
}

/// A workload of calls of many sizes that use a steady part of what is estimated, more or less.
fn workload(used_of_all: f64, seed: u64, count: usize) -> Vec<(u64, u64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut call = || {
        let size = 50 << random.u32(0..8);
        let estimated = 50 + random.u64(0..size);
        let noise = random.f64() * 0.3 + 0.85;
        let used = (f64::from(u32::try_from(estimated).unwrap()) * used_of_all * noise).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it lies between 1 and 20 000"
        )]
        let used = used as u64;
        (estimated, used)
    };
    (0..count).map(|_| call()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "they are small")]
fn is_within(part: f64, found: u64, wanted: u64) -> bool {
    (found as f64 / wanted as f64 - 1.0).abs() <= part
}

proptest! {
    #[test]
    fn after_a_hundred_settled_calls_the_mean_is_met(used in 0.3_f64..3.0, seed in any::<u64>()) {
        let limiter = Limiter::in_memory_with(ManualClock::new());
        define(&limiter, "tokens");
        let estimator = Estimator::new(&limiter, "tokens");
        for (estimated, used) in workload(used, seed, 100) {
            let estimate = estimator.estimate("", estimated).unwrap();
            let permit = limiter.try_acquire(("tokens", estimate.amount())).unwrap();
            estimator.settle(&permit.granted().unwrap(), &estimate, used).unwrap();
        }
        // On which the next calls are judged as a whole, as a budget is.
        let next = workload(used, seed ^ 1, 1_000);
        let wanted = next.iter().map(|(_, used)| used).sum();
        let amount = |(raw, _): &(u64, u64)| estimator.estimate("", *raw).unwrap().amount();
        let found = next.iter().map(amount).sum();
        prop_assert!(is_within(0.1, found, wanted), "{found} {wanted}");
    }

    #[test]
    fn a_workload_that_changes_is_followed(
        (former, used) in (0.3_f64..3.0, 0.3_f64..3.0),
        seed in any::<u64>(),
    ) {
        let limiter = Limiter::in_memory().unwrap();
        define(&limiter, "tokens");
        learn_all(&limiter, "tokens", &workload(former, seed, 500));
        learn_all(&limiter, "tokens", &workload(used, seed ^ 1, 250));
        let found = ratio(&limiter, "tokens").ratio();
        prop_assert!((found / used - 1.0).abs() < 0.2, "{found} {used}");
    }

    #[test]
    fn one_call_that_is_absurd_moves_it_by_less_than_a_quarter(
        used in 0.3_f64..3.0,
        seed in any::<u64>(),
        absurd in prop_oneof![
            any::<(u64, u64)>(),
            Just((1, 1 << 53)),
            Just((1 << 53, 1)),
            Just((1 << 53, u64::MAX)),
            Just((0, u64::MAX)),
            Just((u64::MAX, 0)),
        ],
    ) {
        let limiter = Limiter::in_memory().unwrap();
        define(&limiter, "tokens");
        learn_all(&limiter, "tokens", &workload(used, seed, 100));
        let before = ratio(&limiter, "tokens").ratio();
        learn_all(&limiter, "tokens", &[absurd]);
        let after = ratio(&limiter, "tokens").ratio();
        prop_assert!((0.75..1.25).contains(&(after / before)), "{before} {after}");
    }
}

#[test]
fn one_call_that_is_absurd_among_the_first_is_soon_forgotten() {
    for absurd in [(1, 1 << 53), (1 << 53, u64::MAX), (u64::MAX, 0)] {
        for place in [0, 1, 20] {
            let limiter = Limiter::in_memory().unwrap();
            define(&limiter, "tokens");
            let mut calls = workload(0.5, 7, 250);
            calls.insert(place, absurd);
            learn_all(&limiter, "tokens", &calls);
            let found = ratio(&limiter, "tokens").ratio();
            assert!((0.45..0.6).contains(&found), "{absurd:?} {place}: {found}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// To the last digit of the sums.
    #[test]
    fn both_stores_learn_the_same(
        calls in prop::collection::vec(
            prop_oneof![any::<(u64, u64)>(), (0_u64..5_000, 0_u64..9_000)], 1..80,
        ),
    ) {
        let memory = Limiter::in_memory().unwrap();
        let (_scratch, file, _clock) = on_file();
        for limiter in [&memory, &file] {
            define(limiter, "tokens");
            learn_all(limiter, "tokens", &calls);
        }
        let found = ratio(&file, "tokens");
        prop_assert_eq!(found, ratio(&memory, "tokens"));
        prop_assert_eq!(found.calls(), calls.len() as u64);
    }
}

#[test]
fn a_few_calls_correct_nothing_yet() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        let estimator = Estimator::new(limiter, "tokens");
        assert_eq!(estimator.key(), "tokens");
        for calls in 0..12 {
            let estimate = estimator.estimate("How many?", 97).unwrap();
            assert_eq!(estimate.raw(), 101);
            let corrected = if calls < 10 { 101 } else { 51 };
            assert_eq!(estimate.amount(), corrected, "{calls}");
            limiter.learn_estimate("tokens", 1_000, 500).unwrap();
        }
        // Nothing is no amount that can be asked for.
        let nothing = estimator.estimate_texts(&[], 0).unwrap();
        assert_eq!((nothing.raw(), nothing.amount()), (0, 1));
    });
}

#[test]
fn what_one_limiter_learns_all_know_and_the_file_keeps() {
    let (scratch, first, clock) = on_file();
    define(&first, "tokens");
    let second = open(&scratch, &clock);
    assert_eq!(second.estimate_ratio("tokens").unwrap(), None);
    first.learn_estimate("tokens", 1_000, 300).unwrap();
    second.learn_estimate("tokens", 1_000, 700).unwrap();
    for limiter in [&first, &second] {
        let found = ratio(limiter, "tokens");
        assert_eq!((found.calls(), found.corrected(3)), (2, 2));
        assert!((found.ratio() - 0.5).abs() < 1e-9);
    }
    let known = ratio(&first, "tokens");
    drop((first, second));
    assert_eq!(ratio(&open(&scratch, &clock), "tokens"), known);
    let told = "SELECT key || ' ' || calls || ' ' || ratio FROM estimates";
    assert_eq!(scratch.sqlite::<String>(told), "tokens 2 0.5");
}

#[test]
fn settling_learns_once_and_cancelling_nothing() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        define(limiter, "daily");
        limiter.define(Limit::slots("calls", 1)).unwrap();
        let estimator = Estimator::new(limiter, "tokens");
        let estimate = estimator.estimate("", 1_000).unwrap();
        let request = Request::new()
            .take("tokens", estimate.amount())
            .take("daily", estimate.amount())
            .take("calls", 1);
        let permit = granted(limiter, &request);
        let settled = estimator.settle(&permit, &estimate, 400).unwrap();
        let amounts = settled.settlement().unwrap().amounts();
        assert_eq!((amounts.len(), amounts[0].charged()), (1, 400));
        let again = estimator.settle(&permit, &estimate, 900).unwrap();
        assert_eq!(again, Settled::Before);
        assert_eq!(ratio(limiter, "tokens").calls(), 1);
        assert_eq!(ratio(limiter, "tokens").corrected(1_000), 400);

        // The slot came back; what is said of another limit holds, too.
        let permit = granted(limiter, &request);
        let used = [("tokens", 600), ("daily", 600)];
        let settled = estimator.settle_amounts(&permit, &estimate, used).unwrap();
        assert_eq!(settled.settlement().unwrap().amounts().len(), 2);
        assert_eq!(ratio(limiter, "tokens").corrected(1_000), 500);
        assert_eq!(limiter.estimate_ratio("daily").unwrap(), None);

        let permit = granted(limiter, &request);
        permit.cancel().unwrap();
        assert_eq!(
            estimator.settle(&permit, &estimate, 1).unwrap(),
            Settled::Before
        );
        let permit = granted(limiter, &request);
        estimator
            .settle_amounts(&permit, &estimate, [("daily", 5)])
            .unwrap();
        assert_eq!(ratio(limiter, "tokens").calls(), 2);
    });
}

#[test]
fn a_permit_is_settled_by_its_id_too() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        let estimator = Estimator::new(limiter, "tokens");
        let estimate = estimator.estimate("", 1_000).unwrap();
        let request = Request::new().take("tokens", 1_000).id("job 7");
        drop(granted(limiter, &request));
        assert!(
            estimator
                .settle("job 7", &estimate, 250)
                .unwrap()
                .settlement()
                .is_some()
        );
        for id in ["job 7", "job 8"] {
            let settled = estimator.settle(id, &estimate, 999).unwrap();
            assert!(settled.settlement().is_none(), "{settled:?}");
        }
        let known = ratio(limiter, "tokens");
        assert_eq!((known.calls(), known.corrected(1_000)), (1, 250));
    });
}

#[test]
fn what_cannot_be_settled_teaches_nothing() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        define(limiter, "other");
        let estimator = Estimator::new(limiter, "tokens");
        let estimate = estimator.estimate("", 10).unwrap();
        let permit = limiter
            .try_acquire(("other", 10))
            .unwrap()
            .granted()
            .unwrap();
        let error = estimator.settle(&permit, &estimate, 5).unwrap_err();
        assert!(
            matches!(&error, Error::Request(RequestError::NotTaken { key }) if key == "tokens")
        );
        let permit = limiter.try_acquire("tokens").unwrap().granted().unwrap();
        let error = estimator.settle(&permit, &estimate, MAX_CAPACITY + 1);
        assert!(matches!(
            error,
            Err(Error::Request(RequestError::TooMuch { .. }))
        ));
        let stranger = Limiter::in_memory().unwrap();
        let error = Estimator::new(&stranger, "tokens").settle(&permit, &estimate, 5);
        assert!(matches!(
            error,
            Err(Error::Request(RequestError::OtherLimiter))
        ));
        assert_eq!(limiter.estimate_ratio("tokens").unwrap(), None);
        estimator.settle(&permit, &estimate, 5).unwrap();
        assert_eq!(ratio(limiter, "tokens").calls(), 1);
    });
}

#[test]
fn limits_that_are_not_there_are_named() {
    in_both_stores(|limiter, _clock| {
        let estimator = Estimator::new(limiter, "tokens");
        let errors = [
            limiter.learn_estimate("tokens", 1, 1).unwrap_err(),
            limiter.estimate_ratio("tokens").unwrap_err(),
            estimator.estimate("Hi", 1).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(&error, Error::UnknownLimit { key, .. } if key == "tokens"));
        }
    });
}

#[test]
fn an_estimate_above_the_capacity_never_fits() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::new("tokens").per_minute(1_000))
            .unwrap();
        learn_all(limiter, "tokens", &[(100, 300); 10]);
        let estimator = Estimator::new(limiter, "tokens");
        let estimate = estimator.estimate("", 500).unwrap();
        assert_eq!(estimate.amount(), 1_500);
        let error = limiter.try_acquire(("tokens", estimate.amount()));
        assert!(matches!(error, Err(Error::NeverFits { amount: 1_500, .. })));
    });
}

#[test]
fn what_was_learned_stays_with_the_definition_and_goes_with_it() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        learn_all(limiter, "tokens", &[(100, 300); 3]);
        let limit = Limit::new("tokens").per_minute(5).overage(Overage::Charge);
        limiter.define_or(limit, OnConflict::Replace).unwrap();
        assert_eq!(ratio(limiter, "tokens").calls(), 3);
        let permit = limiter.try_acquire("tokens").unwrap().granted().unwrap();
        limiter.remove("tokens").unwrap();
        // Nothing is learned for what is no more, and nothing goes wrong.
        let estimator = Estimator::new(limiter, "tokens");
        define(limiter, "other");
        let estimate = Estimator::new(limiter, "other").estimate("", 1).unwrap();
        estimator.settle(&permit, &estimate, 3).unwrap();
        define(limiter, "tokens");
        assert_eq!(limiter.estimate_ratio("tokens").unwrap(), None);
    });
}

#[test]
fn keys_share_what_is_learned_for_their_pattern_and_are_not_kept_by_it() {
    in_both_stores(|limiter, clock| {
        let pattern = Limit::pattern("tenant:*").per_day(1_000_000);
        limiter.define(pattern).unwrap();
        limiter.define(Limit::new("sweeper").per_second(1)).unwrap();
        limiter.learn_estimate("tenant:1", 100, 200).unwrap();
        let estimator = Estimator::new(limiter, "tenant:2");
        let estimate = estimator.estimate("", 100).unwrap();
        let permit = limiter
            .try_acquire(("tenant:2", 100))
            .unwrap()
            .granted()
            .unwrap();
        estimator.settle(&permit, &estimate, 400).unwrap();
        for key in ["tenant:1", "tenant:2", "tenant:3", "tenant:*"] {
            let known = ratio(limiter, key);
            assert_eq!((known.calls(), known.corrected(100)), (2, 300), "{key}");
        }
        // A definition of its own has learned nothing yet, and takes nothing from the others.
        define(limiter, "tenant:3");
        assert_eq!(limiter.estimate_ratio("tenant:3").unwrap(), None);
        limiter.learn_estimate("tenant:3", 1, 1).unwrap();
        limiter.remove("tenant:3").unwrap();
        assert_eq!(ratio(limiter, "tenant:3").calls(), 2);
        sweep(limiter, clock);
        assert_eq!(ratio(limiter, "tenant:2").calls(), 2);
        limiter.remove("tenant:*").unwrap();
        limiter
            .define(Limit::pattern("tenant:*").per_day(1))
            .unwrap();
        assert_eq!(limiter.estimate_ratio("tenant:1").unwrap(), None);
    });
}

#[test]
fn nothing_is_left_in_the_file_of_keys_that_are_idle_and_limits_that_are_gone() {
    let (scratch, limiter, clock) = on_file();
    limiter
        .define(Limit::pattern("tenant:*").per_day(1_000))
        .unwrap();
    limiter.define(Limit::new("sweeper").per_second(1)).unwrap();
    define(&limiter, "tokens");
    let count = |table: &str| scratch.sqlite::<i64>(&format!("SELECT count(*) FROM {table}"));
    for tenant in 0..20 {
        let key = format!("tenant:{tenant}");
        limiter.learn_estimate(&key, 10, 20).unwrap();
    }
    limiter.learn_estimate("tokens", 10, 20).unwrap();
    assert_eq!((count("pattern_key"), count("estimate")), (0, 2));
    for tenant in 0..20 {
        assert!(
            limiter
                .try_acquire(&format!("tenant:{tenant}"))
                .unwrap()
                .is_granted()
        );
    }
    assert_eq!(count("pattern_key"), 20);
    sweep(&limiter, &clock);
    assert_eq!((count("pattern_key"), count("estimate")), (0, 2));
    let keys = "SELECT group_concat(key, ' ') FROM estimates";
    assert_eq!(scratch.sqlite::<String>(keys), "tenant:* tokens");
    limiter.force_remove("tenant:*").unwrap();
    limiter.remove("tokens").unwrap();
    assert_eq!((count("estimate"), count("estimates")), (0, 0));
}

#[test]
fn what_somebody_wrote_into_the_file_wrecks_nothing() {
    let (scratch, limiter, _clock) = on_file();
    define(&limiter, "tokens");
    limiter.learn_estimate("tokens", 10, 20).unwrap();
    let connection = open_raw(&scratch.file());
    for (calls, estimated, used) in [
        (-1, -1, -1),
        (0, 0, 0),
        (i64::MAX, i64::MAX, i64::MAX),
        (50, 1, i64::MAX),
        (50, i64::MAX, 1),
    ] {
        connection
            .execute(
                "UPDATE estimate SET calls = ?1, estimated_thousandths = ?2, used_thousandths = ?3",
                (calls, estimated, used),
            )
            .unwrap();
        let known = ratio(&limiter, "tokens");
        assert!((0.06..16.1).contains(&known.ratio()), "{known:?}");
        learn_all(&limiter, "tokens", &[(1_000, 500); 800]);
        let known = ratio(&limiter, "tokens").ratio();
        assert!((known - 0.5).abs() < 0.1, "{known}");
    }
}

#[test]
fn a_bound_stays_one_whatever_calls_use() {
    in_both_stores(|limiter, _clock| {
        define(limiter, "tokens");
        let bounded = Estimator::with(limiter, "tokens", Box::new(ByteBound.framed(4)));
        for _ in 0..20 {
            let estimate = bounded.estimate("hello world", 500).unwrap();
            assert_eq!((estimate.raw(), estimate.amount()), (515, 515));
            let permit = granted(limiter, &Request::new().take("tokens", 515));
            bounded.settle(&permit, &estimate, 100).unwrap();
        }
        assert_eq!(limiter.estimate_ratio("tokens").unwrap(), None);
        assert_eq!(bounded.estimate("", 0).unwrap().amount(), 4);
        assert_eq!(limiter.usage("tokens").unwrap().rates()[0].used(), 2_000);
    });
}
