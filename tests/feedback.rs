//! When to come back, as responses say it, and that no bytes do any harm.
#![cfg(feature = "http")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use quotalite::{Advertised, Dialect, Feedback, SECOND};

/// 2023-11-14T22:13:20Z.
const NOW: u64 = 1_700_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Reads headers as they are printed, one a line.
fn read(status: u16, headers: &str) -> Feedback {
    let lines = headers
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let pairs = lines.map(|line| line.split_once(':').unwrap());
    Feedback::read(status, pairs, now())
}

#[test]
fn when_to_come_back() {
    let cases = [
        ("Retry-After: 120", Some(120.0)),
        ("Retry-After: Tue, 14 Nov 2023 22:13:50 GMT", Some(30.0)),
        ("Retry-After: Fri, 31 Dec 1999 23:59:59 GMT", Some(0.0)),
        // The clock of the server is a day behind ours.
        (
            "Date: Mon, 13 Nov 2023 22:13:20 GMT\nRetry-After: Mon, 13 Nov 2023 22:13:30 GMT",
            Some(10.0),
        ),
        (
            "Date: yesterday\nRetry-After: Tue, 14 Nov 2023 22:13:30 GMT",
            Some(10.0),
        ),
        ("Retry-After: 1.5", Some(1.5)),
        // https://github.com/openai/openai-python/pull/1046
        ("retry-after-ms: 820", Some(0.82)),
        ("retry-after-ms: 820\nretry-after: 1", Some(0.82)),
        ("retry-after-ms: 1820\nretry-after: 1", Some(1.82)),
        ("retry-after-ms: 820\nretry-after: 30", Some(30.0)),
        ("x-ms-retry-after-ms: 5", Some(0.005)),
        // Twice, and once wrong.
        ("Retry-After: 5\nRetry-After: 7\nRetry-After: 6", Some(7.0)),
        ("Retry-After: soon\nRetry-After: 7", Some(7.0)),
        ("Retry-After: 5, 7", None),
        ("Retry-After: -1", None),
        ("Retry-After:", None),
        ("Retry-After: 999999999", Some(31_622_400.0)),
        (
            "Retry-After: 99999999999999999999999999999",
            Some(31_622_400.0),
        ),
    ];
    for (headers, expected) in cases {
        assert_eq!(
            read(429, headers).retry_after(),
            expected.map(Duration::from_secs_f64),
            "{headers}"
        );
    }
}

#[test]
fn what_is_a_refusal_because_of_a_limit() {
    let used_up = "x-ratelimit-remaining: 0\nx-ratelimit-reset: 60";
    let other = "anthropic-ratelimit-requests-remaining: 0\nanthropic-ratelimit-requests-reset: 5";
    let cases = [
        (429, "", true, None),
        (429, "Retry-After: 1", true, Some(1)),
        (429, used_up, true, Some(60)),
        (
            429,
            "Retry-After: 1\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 60",
            true,
            Some(1),
        ),
        (
            429,
            "x-ratelimit-remaining: 3\nx-ratelimit-reset: 60",
            true,
            None,
        ),
        (429, other, true, Some(5)),
        (503, "", false, None),
        (503, used_up, false, None),
        (503, "Retry-After: 9", true, Some(9)),
        (529, "", false, None),
        (529, "Retry-After: 9", true, Some(9)),
        (403, "", false, None),
        (403, used_up, true, Some(60)),
        (403, other, false, None),
        (403, "Retry-After: 60", true, Some(60)),
        (200, used_up, false, None),
        (301, "Retry-After: 60", false, None),
        (500, "Retry-After: 60", false, None),
    ];
    for (status, headers, is_rate_limited, wait) in cases {
        let feedback = read(status, headers);
        assert_eq!(feedback.status(), status);
        assert_eq!(
            feedback.is_rate_limited(),
            is_rate_limited,
            "{status} {headers}"
        );
        assert_eq!(
            feedback.wait(),
            wait.map(Duration::from_secs),
            "{status} {headers}"
        );
    }
}

#[test]
fn one_bad_header_hides_no_other() {
    let long = "1".repeat(Feedback::MAX_VALUE_BYTES + 1);
    let headers: &[(&str, &[u8])] = &[
        ("retry-after", long.as_bytes()),
        ("retry-after", b"\xff\xfe"),
        ("retry-after", b" 5\t"),
        ("x-ratelimit-limit", b"NaN"),
        ("x-ratelimit-limit", b"99999999999999999999999999"),
        ("x-ratelimit-remaining", b"1e3"),
        ("X-RATELIMIT-REMAINING", b"3"),
        ("ratelimit", b"\"a\";r=99999999999999999"),
    ];
    let feedback = Feedback::read(429, headers.iter().copied(), now());
    assert_eq!(feedback.retry_after(), Some(5 * SECOND));
    let limit = &feedback.advertised()[0];
    assert_eq!(
        (limit.limit(), limit.remaining()),
        (Some(u64::MAX), Some(3))
    );
    assert_eq!(feedback.advertised().len(), 1);
}

#[test]
fn a_flood_of_limits_is_cut() {
    let named = (0..1_000).map(|n| (format!("x-ratelimit-limit-kind{n}"), "1".to_owned()));
    let items: Vec<String> = (0..400).map(|n| format!("p{n};q=1")).collect();
    let quotas: Vec<String> = (1..400).map(|n| format!("{n};w=1")).collect();
    let listed = [
        ("ratelimit-policy".to_owned(), items.join(",")),
        ("x-ratelimit-limit".to_owned(), quotas.join(",")),
    ];
    let feedback = Feedback::read(200, named.chain(listed), now());
    assert_eq!(feedback.advertised().len(), Feedback::MAX_ADVERTISED);
}

#[test]
fn a_response_of_the_http_crate() {
    let response = http::Response::builder()
        .status(429)
        .header("Retry-After", "3")
        .header("RateLimit", "\"a\";r=1")
        .header("RateLimit", "\"b\";r=2")
        .body(())
        .unwrap();
    let feedback = Feedback::of_response(response.status(), response.headers(), now());
    assert_eq!(
        (feedback.status(), feedback.retry_after()),
        (429, Some(3 * SECOND))
    );
    assert_eq!(feedback.advertised().len(), 2);
}

/// Every header that is read, and some that only look so.
const NAMES: &[&str] = &[
    "date",
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "ratelimit-observed",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-used",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-resource",
    "x-rate-limit-reset",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens-minute",
    "x-ratelimit-reset-",
    "x-ratelimit-",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-input-tokens-remaining",
    "anthropic-ratelimit-output-tokens-reset",
    "anthropic-priority-input-tokens-reset",
    "anthropic-ratelimit-",
    "anthropic--",
];

/// Bytes of all kinds, and texts that are nearly right.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        any::<String>().prop_map(String::into_bytes),
        "[0-9]{0,30}(\\.[0-9]{0,12})?(ms|s|m|h|d|us|µs|ns|e[0-9]{1,4})?".prop_map(String::into_bytes),
        "([0-9]{1,21}(\\.[0-9]{1,10})?(h|m|s|ms)){1,4}".prop_map(String::into_bytes),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,12})?(Z|[+-][0-9]{2}:[0-9]{2})"
            .prop_map(String::into_bytes),
        "(Sun|Mon|Tue|Wed|Thu|Fri|Sat), [0-9]{2} (Jan|Feb|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
            .prop_map(String::into_bytes),
        "((\"[ -~]{0,8}\"|[0-9-]{1,17}|[a-z]{1,3})(;(q|qu|w|r|t|pk)=(\"[a-z]{0,9}\"|-?[0-9]{1,16}|:[A-Za-z=]{0,8}:))\
          {0,4},? ?){0,5}"
            .prop_map(String::into_bytes),
        "((limit|remaining|reset|x)=-?[0-9]{1,16},? ?){0,4}".prop_map(String::into_bytes),
    ]
}

fn any_instant() -> impl Strategy<Value = SystemTime> {
    prop_oneof![
        Just(UNIX_EPOCH),
        (0..1_u64 << 40).prop_map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
    ]
}

fn times(limit: &Advertised) -> impl Iterator<Item = Duration> {
    limit.reset().into_iter().chain(limit.window())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_panic_and_no_time_is_absurd(
        status in any::<u16>(),
        headers in prop::collection::vec((prop::sample::select(NAMES), value()), 0..12),
        now in any_instant(),
    ) {
        let feedback = Feedback::read(status, headers, now);
        prop_assert!(feedback.retry_after().is_none_or(|time| time <= Feedback::MAX_TIME));
        prop_assert!(feedback.wait().is_none_or(|time| time <= Feedback::MAX_TIME));
        prop_assert!(feedback.advertised().len() <= Feedback::MAX_ADVERTISED);
        for limit in feedback.advertised() {
            prop_assert!(times(limit).all(|time| time <= Feedback::MAX_TIME));
            prop_assert!(limit.window() != Some(Duration::ZERO));
            prop_assert!(limit.limit().is_some() || limit.remaining().is_some() || limit.reset().is_some());
        }
    }

    #[test]
    fn no_name_panics(name in "(x-|anthropic-)?(rate-?limit-?|priority-)?[a-zA-Z-]{0,20}", value in value()) {
        let _ = Feedback::read(429, [(name, value)], now());
    }

    #[test]
    fn a_bad_header_changes_nothing_else(bad in prop::collection::vec(0x80_u8..=0xff, 1..20), at in 0..6_usize) {
        let good: Vec<(&str, &[u8])> = vec![
            ("retry-after", b"5"),
            ("x-ratelimit-limit", b"10"),
            ("x-ratelimit-reset-tokens", b"1m"),
            ("anthropic-ratelimit-requests-remaining", b"4"),
            ("ratelimit", b"\"a\";r=1"),
        ];
        let mut headers = good.clone();
        let names: Vec<&str> = good.iter().map(|(name, _)| *name).collect();
        headers.insert(at.min(good.len()), (names[at % names.len()], &bad));
        prop_assert_eq!(Feedback::read(429, headers, now()), Feedback::read(429, good, now()));
    }

    #[test]
    fn dates_come_back(seconds in 0..31_622_400_u64, skew in 0..100_000_000_u64) {
        let date = i64::try_from(NOW - skew).unwrap();
        let date = DateTime::<Utc>::from_timestamp(date, 0).unwrap();
        let at = date + chrono::Duration::seconds(i64::try_from(seconds).unwrap());
        let day = at.format("%A").to_string();
        let forms = [
            at.format("%a, %d %b %Y %H:%M:%S GMT").to_string(),
            format!("{day}, {}", at.format("%d-%b-%y %H:%M:%S GMT")),
            at.format("%a %b %e %H:%M:%S %Y").to_string(),
            at.to_rfc3339(),
            at.timestamp().to_string(),
            at.timestamp_millis().to_string(),
            seconds.to_string(),
        ];
        let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        for form in forms {
            let headers = [("date", &date), ("x-ratelimit-reset", &form), ("retry-after", &form)];
            let feedback = Feedback::read(429, headers, now());
            prop_assert_eq!(feedback.retry_after(), Some(Duration::from_secs(seconds)), "{}", &form);
            prop_assert_eq!(feedback.advertised()[0].reset(), feedback.retry_after(), "{}", &form);
        }
    }

    #[test]
    fn durations_of_go_come_back(hours in 0..8_000_u64, minutes in 0..60_u64, ms in 0..60_000_u64) {
        // As `String` of https://pkg.go.dev/time#Duration prints it.
        let (whole, part) = (ms / 1_000, ms % 1_000);
        let part = if part == 0 { String::new() } else { format!(".{part:03}").trim_end_matches('0').to_owned() };
        let text = match (hours, minutes) {
            (0, 0) if whole == 0 && ms > 0 => format!("{ms}ms"),
            (0, 0) => format!("{whole}{part}s"),
            (0, _) => format!("{minutes}m{whole}{part}s"),
            _ => format!("{hours}h{minutes}m{whole}{part}s"),
        };
        let time = Duration::from_secs(hours * 3_600 + minutes * 60) + Duration::from_millis(ms);
        let feedback = Feedback::read(200, [("x-ratelimit-reset-requests", &text)], now());
        prop_assert_eq!(feedback.advertised()[0].reset(), Some(time), "{}", text);
    }

    #[test]
    fn amounts_come_back(limit in any::<u64>(), remaining in any::<u64>(), ms in 0..1_000_000_000_u64) {
        let (limit_text, remaining_text, ms_text) = (limit.to_string(), remaining.to_string(), ms.to_string());
        for (family, dialect) in [
            (["x-ratelimit-limit", "x-ratelimit-remaining"], Dialect::XRateLimit),
            (["ratelimit-limit", "ratelimit-remaining"], Dialect::RateLimitFields),
            (["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"], Dialect::OpenAi),
            (["anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining"], Dialect::Anthropic),
        ] {
            let headers = [(family[0], &limit_text), (family[1], &remaining_text), ("retry-after-ms", &ms_text)];
            let feedback = Feedback::read(200, headers, now());
            let told = &feedback.advertised()[0];
            prop_assert_eq!((told.limit(), told.remaining()), (Some(limit), Some(remaining)));
            prop_assert_eq!(told.dialect(), dialect);
            prop_assert_eq!(feedback.retry_after(), Some(Duration::from_millis(ms)));
        }
    }
}
