//! The provider to rehearse with, on instants that the tests choose: its windows beside a naive model, its
//! audit beside broken windows, and its figures.

#[path = "../examples/provider/provider.rs"]
mod provider;

use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use provider::audit::{Accepted, Era, overruns};
use provider::chat::{Chat, count_tokens};
use provider::desk::{Desk, Reason, Verdict};
use provider::dialect::Dialect;
use provider::limits::{Limits, Quota};
use provider::settings::{Mode, Settings};
use provider::windows::{Standing, Standings, Wait, Windows};

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn limits(requests: Option<(u64, u64)>, tokens: Option<(u64, u64)>) -> Limits {
    let quota = |(limit, window_ms)| Quota::new(limit, ms(window_ms));
    Limits {
        requests: requests.map(quota),
        tokens: tokens.map(quota),
        concurrency: None,
    }
}

/// Everything that was ever admitted, added up anew for each question.
struct Model {
    limits: Limits,
    log: Vec<(Instant, u64)>,
}

impl Model {
    fn used(&self, at: Instant, quota: Quota, amount: fn(u64) -> u64) -> u64 {
        let counted = |since: Instant| at.duration_since(since) < quota.window;
        let log = self.log.iter().filter(|(since, _)| counted(*since));
        log.map(|(_, tokens)| amount(*tokens)).sum()
    }

    fn fits(&self, at: Instant, tokens: u64) -> bool {
        let requests = self.limits.requests;
        let window = self.limits.tokens;
        requests.is_none_or(|quota| self.used(at, quota, |_| 1) < quota.limit)
            && window
                .is_none_or(|quota| self.used(at, quota, |tokens| tokens) + tokens <= quota.limit)
    }
}

/// Whether what is told of a window is what the model says of it now, and when it says that this changes.
fn agrees(
    model: &Model,
    at: Instant,
    standing: Standing,
    amount: fn(u64) -> u64,
) -> Result<(), TestCaseError> {
    let used = |after| model.used(at + after, standing.quota, amount);
    let just_before = |after: Duration| after.checked_sub(ms(1)).unwrap();
    let now = used(Duration::ZERO);
    prop_assert_eq!(standing.remaining, standing.quota.limit - now);
    prop_assert_eq!(used(standing.until_empty), 0);
    prop_assert_eq!(standing.until_next.is_some(), now > 0);
    if let Some(until_next) = standing.until_next {
        prop_assert!(used(until_next) < now);
        prop_assert_eq!(used(just_before(until_next)), now);
        prop_assert!(used(just_before(standing.until_empty)) > 0);
    }
    Ok(())
}

fn quota() -> impl Strategy<Value = Option<(u64, u64)>> {
    prop_oneof![Just(None), (1_u64..=5, 1_u64..=12).prop_map(Some)]
}

fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let gap_ms = prop_oneof![Just(0_u64), Just(1), 0..=4_u64, 0..=15_u64];
    prop::collection::vec((gap_ms, 1_u64..=6), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn windows_do_what_the_model_does(
        requests in quota(),
        tokens in quota(),
        steps in steps(),
    ) {
        let limits = limits(requests, tokens);
        let mut model = Model { limits, log: Vec::new() };
        let mut windows = Windows::new(&limits);
        let mut at = Instant::now();
        for (gap_ms, tokens) in steps {
            at += ms(gap_ms);
            let fits = model.fits(at, tokens);
            match windows.try_take(at, tokens) {
                Ok(()) => {
                    prop_assert!(fits);
                    model.log.push((at, tokens));
                }
                Err(misfit) => {
                    prop_assert!(!fits);
                    match misfit.wait() {
                        Wait::None => prop_assert!(false, "refused, and need not wait"),
                        Wait::For(wait) => {
                            prop_assert!(model.fits(at + wait, tokens));
                            prop_assert!(!model.fits(at + wait.checked_sub(ms(1)).unwrap(), tokens));
                        }
                        Wait::Forever => prop_assert!(limits.tokens.unwrap().limit < tokens),
                    }
                }
            }
            let standings = windows.standings(at);
            if let Some(standing) = standings.requests {
                agrees(&model, at, standing, |_| 1)?;
            }
            if let Some(standing) = standings.tokens {
                agrees(&model, at, standing, |tokens| tokens)?;
            }
        }
    }

    /// Whatever moves: no window is over at any acceptance, and the counters add up.
    #[test]
    fn a_desk_lets_nothing_be_over(
        first in (quota(), quota()),
        second in (quota(), quota()),
        most in prop::option::of(1_usize..4),
        charge_refused in any::<bool>(),
        steps in prop::collection::vec((0_u64..=6, 1_u64..=6, 0_u8..=40), 1..120),
    ) {
        let both = [first, second].map(|(requests, tokens)| Limits {
            concurrency: most,
            ..limits(requests, tokens)
        });
        let mut at = Instant::now();
        let settings = Settings { limits: both[0], charge_refused, ..Settings::default() };
        let mut desk = Desk::new(settings, at);
        for (gap_ms, tokens, what) in steps {
            at += ms(gap_ms);
            match what {
                0 => desk.set_limits(at, both[0]),
                1 => desk.set_limits(at, both[1]),
                2 => desk.set_outage(at, Mode::Down.into()),
                3 | 4 => desk.set_outage(at, Mode::Up.into()),
                5..=15 if desk.report(at).in_flight > 0 => desk.release(),
                _ => {
                    desk.arrive(at, Some(tokens));
                }
            }
            let report = desk.report(at);
            prop_assert!(most.is_none_or(|most| report.max_in_flight <= most));
            let refused = report.refused;
            let sum = refused.requests + refused.tokens + refused.concurrency + refused.outage;
            prop_assert_eq!(report.arrivals, report.accepted + sum);
            prop_assert_eq!(refused.outage, report.in_outage.down);
        }
        prop_assert_eq!(desk.audit(), []);
    }

    /// The capacity is what somebody gets who asks for one more at every millisecond until refused.
    #[test]
    fn a_greedy_client_uses_all_that_is_available(
        limits_ms in prop::collection::vec((1_u64..=5, 1_u64..=9), 1..3),
        stretches in prop::collection::vec((1_u64..=20, any::<bool>(), any::<prop::sample::Index>()), 1..6),
    ) {
        let mut at = Instant::now();
        let mut desk = Desk::new(Settings { limits: limits(Some(limits_ms[0]), None), ..Settings::default() }, at);
        for (length_ms, is_down, which) in stretches {
            let mode = if is_down { Mode::Down } else { Mode::Up };
            desk.set_outage(at, mode.into());
            desk.set_limits(at, limits(Some(limits_ms[which.index(limits_ms.len())]), None));
            for _ in 0..length_ms {
                while matches!(desk.arrive(at, Some(1)).verdict, Verdict::Accepted { .. }) {}
                let report = desk.report(at);
                prop_assert_eq!(report.requests.available, Some(report.accepted));
                at += ms(1);
            }
        }
    }
}

/// A way to get windows wrong.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    None,
    /// Everything is forgotten at each full window from the start.
    Fixed,
    /// A bucket of the limit that fills up evenly meanwhile.
    Bucket,
    /// What is as old as the window less a millisecond has left it.
    Short,
    /// Of two limits, only the first is looked at.
    HalfBlind,
}

/// Requests of one token each, at most `limit` in ten milliseconds.
fn admit(flaw: Flaw, limit: u64, arrivals: &[Instant]) -> Vec<Accepted> {
    let start = arrivals[0];
    let mut accepted: Vec<Accepted> = Vec::new();
    let mut exact = Windows::new(&limits(Some((limit, 10)), Some((limit, 10))));
    let mut short = Windows::new(&limits(Some((limit, 9)), None));
    let mut blind = Windows::new(&limits(Some((limit, 10)), None));
    let (mut level, mut filled) = (limit * 10, start);
    for &at in arrivals {
        let tokens = if matches!(flaw, Flaw::HalfBlind) {
            2
        } else {
            1
        };
        let admitted = match flaw {
            Flaw::None => exact.try_take(at, tokens).is_ok(),
            Flaw::Short => short.try_take(at, tokens).is_ok(),
            Flaw::HalfBlind => blind.try_take(at, tokens).is_ok(),
            Flaw::Fixed => {
                let window = |at: Instant| at.duration_since(start).as_millis() / 10;
                let same = |other: &&Accepted| window(other.at) == window(at);
                (accepted.iter().filter(same).count() as u64) < limit
            }
            Flaw::Bucket => {
                let passed_ms = u64::try_from(at.duration_since(filled).as_millis()).unwrap();
                level = (level + passed_ms * limit).min(limit * 10);
                filled = at;
                let has_one = level >= 10;
                level -= if has_one { 10 } else { 0 };
                has_one
            }
        };
        if admitted {
            accepted.push(Accepted { at, tokens });
        }
    }
    accepted
}

#[test]
fn the_audit_catches_what_the_exact_windows_do_not_do() {
    let flaws = [
        Flaw::None,
        Flaw::Fixed,
        Flaw::Bucket,
        Flaw::Short,
        Flaw::HalfBlind,
    ];
    for flaw in flaws {
        let mut caught = 0;
        for seed in 0..200 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let limit = chance.u64(2..=5);
            let start = Instant::now();
            let mut at = start;
            let arrivals: Vec<Instant> = (0..60)
                .map(|_| {
                    at += ms(chance.u64(0..=3));
                    at
                })
                .collect();
            let era = Era {
                since: start,
                after: 0,
                limits: limits(Some((limit, 10)), Some((limit, 10))),
                open: true,
            };
            let found = overruns(&admit(flaw, limit, &arrivals), &[era]);
            caught += usize::from(!found.is_empty());
        }
        match flaw {
            Flaw::None => assert_eq!(caught, 0),
            _ => assert!(caught > 100, "{flaw:?} was caught {caught} times of 200"),
        }
    }
}

#[test]
fn a_charge_leaves_at_the_very_end_of_its_window() {
    let start = Instant::now();
    let mut windows = Windows::new(&limits(Some((1, 10)), None));
    windows.try_take(start, 1).unwrap();
    let just_before = ms(10).checked_sub(Duration::from_nanos(1)).unwrap();
    let misfit = windows.try_take(start + just_before, 1).unwrap_err();
    assert_eq!(misfit.wait(), Wait::For(Duration::from_nanos(1)));
    windows.try_take(start + ms(10), 1).unwrap();
}

#[test]
fn what_one_window_refuses_is_not_charged_in_the_other() {
    let start = Instant::now();
    let mut windows = Windows::new(&limits(Some((2, 10)), Some((5, 10))));
    let misfit = windows.try_take(start, 6).unwrap_err();
    assert_eq!(
        (misfit.requests, misfit.tokens),
        (Wait::None, Wait::Forever)
    );
    windows.try_take(start, 4).unwrap();
    let misfit = windows.try_take(start, 2).unwrap_err();
    assert_eq!(
        (misfit.requests, misfit.tokens),
        (Wait::None, Wait::For(ms(10)))
    );
    let standings = windows.standings(start);
    assert_eq!(standings.requests.unwrap().remaining, 1);
    assert_eq!(standings.tokens.unwrap().remaining, 1);
}

#[test]
fn refused_requests_count_if_so_told() {
    let start = Instant::now();
    let limits = limits(Some((1, 10)), Some((100, 10)));
    for (charge_refused, expected_ms) in [(false, 4), (true, 10)] {
        let settings = Settings {
            limits,
            charge_refused,
            ..Settings::default()
        };
        let mut desk = Desk::new(settings, start);
        desk.arrive(start, Some(1));
        let refused = Verdict::Refused {
            reason: Reason::Requests,
            retry_after: Some(ms(expected_ms)),
        };
        let answer = desk.arrive(start + ms(6), Some(1));
        assert_eq!(answer.verdict, refused);
        assert_eq!(answer.standings.tokens.unwrap().remaining, 99);
        let again = desk.arrive(start + ms(10), Some(1)).verdict;
        let is_accepted = matches!(again, Verdict::Accepted { .. });
        assert_eq!(is_accepted, !charge_refused);
    }
}

#[test]
fn longer_windows_remember_what_the_shorter_had_forgotten() {
    let start = Instant::now();
    let settings = Settings {
        limits: limits(Some((1, 10)), None),
        ..Settings::default()
    };
    let mut desk = Desk::new(settings, start);
    desk.arrive(start, Some(1));
    desk.arrive(start + ms(10), Some(1));
    desk.set_limits(start + ms(20), limits(Some((2, 100)), None));
    let refused = Verdict::Refused {
        reason: Reason::Requests,
        retry_after: Some(ms(80)),
    };
    assert_eq!(desk.arrive(start + ms(20), Some(1)).verdict, refused);
}

#[test]
fn latency_is_the_base_and_some_jitter_and_ten_times_that_when_slow() {
    let start = Instant::now();
    let settings = Settings {
        latency: ms(20),
        jitter: ms(10),
        seed: 7,
        ..Settings::default()
    };
    let latencies = |mode: Mode| -> Vec<Duration> {
        let mut desk = Desk::new(settings, start);
        desk.set_outage(start, mode.into());
        let answers = (0..200).map(|_| desk.arrive(start, Some(1)).verdict);
        answers
            .map(|verdict| match verdict {
                Verdict::Accepted { latency } => latency,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let usual = latencies(Mode::Up);
    assert!(
        usual
            .iter()
            .all(|latency| (ms(20)..=ms(30)).contains(latency))
    );
    assert!(usual.iter().any(|latency| *latency < ms(22)));
    assert!(usual.iter().any(|latency| *latency > ms(28)));
    assert_eq!(latencies(Mode::Up), usual);
    let slow: Vec<Duration> = usual.iter().map(|latency| *latency * 10).collect();
    assert_eq!(latencies(Mode::Slow), slow);
}

#[test]
fn quotas_are_read_as_they_are_written() {
    let quota = |text: &str| Quota::from_str(text).ok();
    assert_eq!(quota("10/s"), Some(Quota::new(10, ms(1_000))));
    assert_eq!(quota("20/500ms"), Some(Quota::new(20, ms(500))));
    assert_eq!(quota("600/2m"), Some(Quota::new(600, ms(120_000))));
    assert_eq!(quota("0/1h"), Some(Quota::new(0, ms(3_600_000))));
    let written = quota("7/3s").unwrap().to_string();
    assert_eq!(quota(&written), quota("7/3s"));
    for text in [
        "",
        "10",
        "10/",
        "10/5",
        "/s",
        "10/0s",
        "10/1d",
        "-1/s",
        "1/ s",
        "1/99999999999999999999s",
    ] {
        assert_eq!(quota(text), None, "{text:?}");
    }
}

#[test]
fn tokens_are_counted_by_words_and_marks() {
    for (text, tokens) in [
        ("", 0),
        ("word", 1),
        ("words", 2),
        ("Hello, world!", 6),
        ("a b  c", 3),
        ("  ", 0),
    ] {
        assert_eq!(count_tokens(text), tokens, "{text:?}");
    }
    let usage = |seed, number: u32| {
        let body = format!(
            r#"{{"model": "m", "messages": [{{"content": "prompt {number}"}}], "max_tokens": 40}}"#
        );
        Chat::parse(body.as_bytes()).unwrap().usage(seed)
    };
    let lengths: Vec<u64> = (0..100)
        .map(|number| usage(1, number).completion_tokens)
        .collect();
    assert!(lengths.iter().all(|length| (1..=40).contains(length)));
    assert!(lengths.iter().any(|length| *length < 8) && lengths.iter().any(|length| *length > 32));
    assert_eq!(usage(1, 5), usage(1, 5));
    assert!((0..100).any(|number| usage(1, number) != usage(2, number)));
}

fn told(dialect: Dialect, until_empty: Duration, now: SystemTime) -> String {
    let standings = Standings {
        requests: Some(Standing {
            quota: Quota::new(9, ms(60_000)),
            remaining: 4,
            until_next: None,
            until_empty,
        }),
        tokens: None,
    };
    dialect.headers(&standings, now)[2].1.clone()
}

#[test]
fn resets_are_written_like_the_examples() {
    let written = [
        (0, "0s"),
        (1, "1ms"),
        (120_000_000, "120ms"),
        (119_000_001, "120ms"),
        (999_000_001, "1s"),
        (8_640_000_000, "8.64s"),
        (60_000_000_000, "1m0s"),
        (432_000_000_000, "7m12s"),
        (86_400_000_000, "1m26.4s"),
        (3_600_000_000_000, "1h0m0s"),
    ];
    for (nanoseconds, text) in written {
        let until = Duration::from_nanos(nanoseconds);
        assert_eq!(told(Dialect::OpenAi, until, UNIX_EPOCH), text);
    }
}

/// Beside a library that the provider does not use.
#[test]
fn dates_are_right_for_two_centuries() {
    for day in 0..73_500_u64 {
        let seconds = day * 86_400 + day % 86_400;
        let text = told(Dialect::Anthropic, Duration::from_secs(seconds), UNIX_EPOCH);
        let read = chrono::DateTime::parse_from_rfc3339(&text).unwrap();
        assert_eq!(read.timestamp().unsigned_abs(), seconds, "{text}");
    }
}
