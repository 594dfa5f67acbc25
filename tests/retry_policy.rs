//! The delays of retries.
#![cfg(feature = "retry")]

use std::time::Duration;

use proptest::prelude::*;
use quotalite::{Jitter, MINUTE, RetryPolicy, SECOND};

const MS: Duration = Duration::from_millis(1);

fn delays(policy: RetryPolicy) -> Vec<Duration> {
    policy.delays().collect()
}

#[test]
fn delays_grow_as_the_policy_says() {
    let plain = |policy: RetryPolicy| policy.jitter(Jitter::None);
    let cases = [
        (
            plain(RetryPolicy::default()),
            [1_000, 2_000, 4_000, 8_000, 16_000],
        ),
        (
            plain(RetryPolicy::default().cap(5 * SECOND)),
            [1_000, 2_000, 4_000, 5_000, 5_000],
        ),
        // Floats would make 200.000003 ms and the like of it.
        (
            plain(RetryPolicy::exponential(100 * MS, 2)),
            [100, 200, 400, 800, 1_600],
        ),
        (
            plain(RetryPolicy::exponential(100 * MS, 10)),
            [100, 1_000, 10_000, 60_000, 60_000],
        ),
        (plain(RetryPolicy::exponential(7 * MS, 1)), [7; 5]),
        (plain(RetryPolicy::exponential(2 * MINUTE, 2)), [60_000; 5]),
        (
            plain(RetryPolicy::linear(SECOND, 250 * MS)),
            [1_000, 1_250, 1_500, 1_750, 2_000],
        ),
        (
            plain(RetryPolicy::linear(Duration::ZERO, 30 * SECOND)),
            [0, 30_000, 60_000, 60_000, 60_000],
        ),
        (plain(RetryPolicy::fixed(300 * MS)), [300; 5]),
        (plain(RetryPolicy::fixed(2 * MINUTE)), [60_000; 5]),
    ];
    for (policy, ms) in cases {
        let expected = ms.map(Duration::from_millis);
        assert_eq!(delays(policy), expected, "{policy}");
    }
    assert_eq!(delays(RetryPolicy::default().retries(0)), []);
    // The first one is as it was given; the others have as many digits as make sense.
    let first = Duration::from_nanos(1_234_567_891);
    let expected = [first, Duration::from_millis(2_469)];
    assert_eq!(
        delays(plain(RetryPolicy::exponential(first, 2)))[..2],
        expected
    );
}

#[test]
fn a_seed_draws_the_same_jitter_each_time_and_no_seed_another_one() {
    let policy = RetryPolicy::default().retries(10);
    assert_eq!(delays(policy.seed(7)), delays(policy.seed(7)));
    assert_ne!(delays(policy.seed(7)), delays(policy.seed(8)));
    assert_ne!(delays(policy), delays(policy));
}

#[test]
fn jitter_uses_all_of_its_room() {
    let policy = RetryPolicy::fixed(SECOND).retries(1_000).seed(1);
    for (jitter, shortest) in [(Jitter::Full, Duration::ZERO), (Jitter::Equal, SECOND / 2)] {
        let delays = delays(policy.jitter(jitter));
        let room = SECOND.saturating_sub(shortest);
        assert!(delays.iter().any(|delay| *delay < shortest + room / 20));
        assert!(delays.iter().any(|delay| *delay + room / 20 > SECOND));
        let mean = delays.iter().sum::<Duration>() / 1_000;
        let middle = shortest + room / 2;
        assert!(mean.abs_diff(middle) < room / 20, "{mean:?}");
    }
}

#[test]
fn policies_are_told_in_a_line() {
    assert_eq!(
        RetryPolicy::default().to_string(),
        "5 retries after 1s, times 2 each, at most 60s, full jitter"
    );
    let policy = RetryPolicy::linear(SECOND, 2 * SECOND).jitter(Jitter::Equal);
    assert_eq!(
        policy.within(MINUTE).to_string(),
        "5 retries after 1s, plus 2s each, at most 60s, equal jitter, within 60s"
    );
    assert_eq!(
        RetryPolicy::fixed(SECOND).jitter(Jitter::None).to_string(),
        "5 retries after 1s each, at most 60s, no jitter"
    );
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0_u64..100_000_000_000).prop_map(Duration::from_nanos),
        (any::<u64>(), 0_u32..1_000_000_000).prop_map(|(s, ns)| Duration::new(s, ns)),
        Just(Duration::MAX),
        Just(Duration::ZERO),
    ]
}

fn any_policy() -> impl Strategy<Value = RetryPolicy> {
    let growth = prop_oneof![
        (any_time(), any::<u16>())
            .prop_map(|(first, factor)| RetryPolicy::exponential(first, factor)),
        (any_time(), any_time()).prop_map(|(first, step)| RetryPolicy::linear(first, step)),
        any_time().prop_map(RetryPolicy::fixed),
    ];
    (growth, any_time(), 0_u32..=1_000, any::<u64>())
        .prop_map(|(policy, cap, retries, seed)| policy.cap(cap).retries(retries).seed(seed))
}

proptest! {
    #[test]
    fn jitter_stays_within_its_delay_and_delays_within_the_cap(
        policy in any_policy(), cap in any_time(), retries in 0_u32..=200,
    ) {
        let policy = policy.cap(cap).retries(retries);
        let plain = delays(policy.jitter(Jitter::None));
        prop_assert_eq!(plain.len(), retries as usize);
        let full = delays(policy.jitter(Jitter::Full));
        let equal = delays(policy.jitter(Jitter::Equal));
        prop_assert_eq!((full.len(), equal.len()), (plain.len(), plain.len()));
        for ((delay, full), equal) in plain.iter().zip(full).zip(equal) {
            prop_assert!(*delay <= cap);
            prop_assert!(full <= *delay);
            prop_assert!(*delay / 2 <= equal && equal <= *delay);
        }
    }

    /// Exponential delays are those of exact arithmetic, rounded.
    #[test]
    fn delays_double(first_ms in 1_u64..60_000, factor in 1_u16..10, retries in 1_u32..40) {
        let policy = RetryPolicy::exponential(Duration::from_millis(first_ms), factor);
        let delays = delays(policy.jitter(Jitter::None).retries(retries));
        let mut exact = u128::from(first_ms) * 1_000_000;
        for delay in delays {
            let capped = exact.min(MINUTE.as_nanos());
            prop_assert!(delay.as_nanos().abs_diff(capped) < 1_000_000, "{delay:?}");
            exact = exact.saturating_mul(factor.into());
        }
    }
}
