//! What responses say about limits, as servers really send it, dialect by dialect.
#![cfg(feature = "http")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quotalite::{Advertised, Counted, DAY, Dialect, Feedback, HOUR, MINUTE, SECOND};

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

/// What is told of a limit, beside its dialect: name, what is counted, limit, remaining, reset, window.
type Told<'a> = (
    Option<&'a str>,
    Counted,
    Option<u64>,
    Option<u64>,
    Option<f64>,
    Option<Duration>,
);

fn told(limit: &Advertised) -> Told<'_> {
    let reset = limit.reset().map(|reset| reset.as_secs_f64());
    let counted = limit.counted().clone();
    (
        limit.name(),
        counted,
        limit.limit(),
        limit.remaining(),
        reset,
        limit.window(),
    )
}

#[track_caller]
fn assert_told(headers: &str, dialect: Dialect, expected: &[Told<'_>]) {
    let feedback = read(200, headers);
    let found: Vec<Told<'_>> = feedback.advertised().iter().map(told).collect();
    assert_eq!(found, expected, "{headers}");
    assert!(
        feedback
            .advertised()
            .iter()
            .all(|limit| limit.dialect() == dialect),
        "{headers}"
    );
}

#[test]
fn openai() {
    use Counted::{Requests, Tokens};
    // https://developers.openai.com/api/docs/guides/rate-limits
    assert_told(
        "x-ratelimit-limit-requests: 60
         x-ratelimit-limit-tokens: 150000
         x-ratelimit-remaining-requests: 59
         x-ratelimit-remaining-tokens: 149984
         x-ratelimit-reset-requests: 1s
         x-ratelimit-reset-tokens: 6m0s",
        Dialect::OpenAi,
        &[
            (None, Requests, Some(60), Some(59), Some(1.0), None),
            (
                None,
                Tokens,
                Some(150_000),
                Some(149_984),
                Some(360.0),
                None,
            ),
        ],
    );
    // https://console.groq.com/docs/rate-limits
    assert_told(
        "x-ratelimit-limit-requests: 14400
         x-ratelimit-limit-tokens: 18000
         x-ratelimit-remaining-requests: 14370
         x-ratelimit-remaining-tokens: 17997
         x-ratelimit-reset-requests: 2m59.56s
         x-ratelimit-reset-tokens: 7.66s",
        Dialect::OpenAi,
        &[
            (
                None,
                Requests,
                Some(14_400),
                Some(14_370),
                Some(179.56),
                None,
            ),
            (None, Tokens, Some(18_000), Some(17_997), Some(7.66), None),
        ],
    );
}

#[test]
fn those_who_follow_openai() {
    use Counted::{Other, Requests, Tokens};
    // https://inference-docs.cerebras.ai/support/rate-limits
    assert_told(
        "x-ratelimit-limit-requests-day: 1000000000
         x-ratelimit-limit-tokens-minute: 1000000000
         x-ratelimit-remaining-requests-day: 999997455
         x-ratelimit-remaining-tokens-minute: 999998298
         x-ratelimit-reset-requests-day: 33011.382867
         x-ratelimit-reset-tokens-minute: 11.382867",
        Dialect::OpenAi,
        &[
            (
                None,
                Requests,
                Some(1_000_000_000),
                Some(999_997_455),
                Some(33_011.382_867),
                Some(DAY),
            ),
            (
                None,
                Tokens,
                Some(1_000_000_000),
                Some(999_998_298),
                Some(11.382_867),
                Some(MINUTE),
            ),
        ],
    );
    // https://docs.digitalocean.com/products/inference/reference/quota-specific-response-headers/
    assert_told(
        "x-ratelimit-limit-tokens-per-day: 5
         x-ratelimit-reset-tokens-per-day: 1700000007",
        Dialect::OpenAi,
        &[(None, Tokens, Some(5), None, Some(7.0), Some(DAY))],
    );
    // https://github.com/openai/openai-dotnet/issues/838
    assert_told(
        "x-ratelimit-limit-tokens: -1
         x-ratelimit-remaining-tokens: -1
         x-ratelimit-reset-tokens: 0",
        Dialect::OpenAi,
        &[(None, Tokens, None, None, Some(0.0), None)],
    );
    // https://github.com/openai/openai-python/issues/937
    assert_told(
        "x-rate-limit-reset-tokens: 55",
        Dialect::OpenAi,
        &[(None, Tokens, None, None, Some(55.0), None)],
    );
    assert_told(
        "X-RateLimit-Limit-Minute: 20
         X-RateLimit-Remaining-Hour: 499
         x-ratelimit-limit-project-tokens: 7",
        Dialect::OpenAi,
        &[
            (None, Requests, Some(20), None, None, Some(MINUTE)),
            (None, Requests, None, Some(499), None, Some(HOUR)),
            (
                None,
                Other("project-tokens".to_owned()),
                Some(7),
                None,
                None,
                None,
            ),
        ],
    );
}

#[test]
fn anthropic() {
    use Counted::{InputTokens, OutputTokens, Requests, Tokens};
    // A response of api.anthropic.com: https://rdrr.io/cran/tidyllm, tests/testthat/claude
    assert_told(
        "date: Thu, 21 Aug 2025 12:40:50 GMT
         anthropic-ratelimit-input-tokens-limit: 80000
         anthropic-ratelimit-input-tokens-remaining: 80000
         anthropic-ratelimit-input-tokens-reset: 2025-08-21T12:40:59Z
         anthropic-ratelimit-output-tokens-limit: 16000
         anthropic-ratelimit-output-tokens-remaining: 16000
         anthropic-ratelimit-output-tokens-reset: 2025-08-21T12:41:00Z
         anthropic-ratelimit-requests-limit: 1000
         anthropic-ratelimit-requests-remaining: 999
         anthropic-ratelimit-requests-reset: 2025-08-21T12:40:49Z
         anthropic-ratelimit-tokens-limit: 96000
         anthropic-ratelimit-tokens-remaining: 96000
         anthropic-ratelimit-tokens-reset: 2025-08-21T12:40:59Z
         anthropic-organization-id: 36562039-1ae4-48e6-ae28-1e517e3d2d12",
        Dialect::Anthropic,
        &[
            (
                None,
                InputTokens,
                Some(80_000),
                Some(80_000),
                Some(9.0),
                None,
            ),
            (
                None,
                OutputTokens,
                Some(16_000),
                Some(16_000),
                Some(10.0),
                None,
            ),
            (None, Requests, Some(1_000), Some(999), Some(0.0), None),
            (None, Tokens, Some(96_000), Some(96_000), Some(9.0), None),
        ],
    );
    assert_told(
        "anthropic-priority-input-tokens-limit: 10000
         anthropic-priority-input-tokens-remaining: 9618
         anthropic-priority-input-tokens-reset: 2023-11-14T22:13:21Z
         anthropic-ratelimit-input-tokens-limit: 5
         anthropic-ratelimit-reset: 5
         anthropic-limit: 5",
        Dialect::Anthropic,
        &[
            (
                Some("priority"),
                InputTokens,
                Some(10_000),
                Some(9_618),
                Some(1.0),
                None,
            ),
            (None, InputTokens, Some(5), None, None, None),
        ],
    );
}

#[test]
fn github_and_those_who_say_it_in_the_same_way() {
    use Counted::Requests;
    let cases: &[(&str, Told<'_>)] = &[
        // https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
        (
            "date: Thu, 01 Aug 2013 00:27:46 GMT
             x-ratelimit-limit: 60
             x-ratelimit-remaining: 56
             x-ratelimit-used: 4
             x-ratelimit-resource: core
             x-ratelimit-reset: 1375320500",
            (
                Some("core"),
                Requests,
                Some(60),
                Some(56),
                Some(3_634.0),
                None,
            ),
        ),
        (
            "X-RateLimit-Limit: 60\nX-RateLimit-Used: 61",
            (None, Requests, Some(60), Some(0), None, None),
        ),
        // https://docs.discord.com/developers/topics/rate-limits
        (
            "X-RateLimit-Limit: 5
             X-RateLimit-Remaining: 0
             X-RateLimit-Reset: 1700000064.25
             X-RateLimit-Reset-After: 64.57
             X-RateLimit-Bucket: abcd1234",
            (
                Some("abcd1234"),
                Requests,
                Some(5),
                Some(0),
                Some(64.57),
                None,
            ),
        ),
        // Milliseconds since 1970.
        (
            "X-RateLimit-Reset: 1700000005500",
            (None, Requests, None, None, Some(5.5), None),
        ),
        (
            "x-rate-limit-limit: 900",
            (None, Requests, Some(900), None, None, None),
        ),
    ];
    for (headers, expected) in cases {
        assert_told(headers, Dialect::XRateLimit, std::slice::from_ref(expected));
    }
    // Envoy: https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/filters/http/ratelimit/v3/rate_limit.proto
    assert_told(
        "x-ratelimit-limit: 10, 10;w=1;name=\"one, two\", 1000;w=3600
         x-ratelimit-remaining: 9
         x-ratelimit-reset: 1",
        Dialect::XRateLimit,
        &[
            (None, Requests, Some(10), Some(9), Some(1.0), Some(SECOND)),
            (None, Requests, Some(1_000), None, None, Some(HOUR)),
        ],
    );
}

#[test]
fn drafts_03_to_06() {
    use Counted::Requests;
    let d = Dialect::RateLimitFields;
    // draft-ietf-httpapi-ratelimit-headers-03, 3.1.
    assert_told(
        "RateLimit-Limit: 100, 100;w=10\nRateLimit-Remaining: 50\nRateLimit-Reset: 50",
        d,
        &[(
            None,
            Requests,
            Some(100),
            Some(50),
            Some(50.0),
            Some(10 * SECOND),
        )],
    );
    assert_told(
        "RateLimit-Limit: 10, 10;w=1, 50;w=60, 1000;w=3600, 5000;w=86400",
        d,
        &[
            (None, Requests, Some(10), None, None, Some(SECOND)),
            (None, Requests, Some(50), None, None, Some(MINUTE)),
            (None, Requests, Some(1_000), None, None, Some(HOUR)),
            (None, Requests, Some(5_000), None, None, Some(DAY)),
        ],
    );
    // draft-ietf-httpapi-ratelimit-headers-06, 2.1 and appendix.
    assert_told(
        "RateLimit-Limit: 100
         RateLimit-Policy: 100;w=60;burst=1000;comment=\"sliding window\", 5000;w=3600;burst=0;comment=\"fixed window\"
         RateLimit-Remaining: 50
         RateLimit-Reset: 44",
        d,
        &[
            (None, Requests, Some(100), Some(50), Some(44.0), Some(MINUTE)),
            (None, Requests, Some(5_000), None, None, Some(HOUR)),
        ],
    );
    // Which of the two it is cannot be known.
    assert_told(
        "RateLimit-Limit: 10\nRateLimit-Policy: 10;w=1, 10;w=60",
        d,
        &[
            (None, Requests, Some(10), None, None, None),
            (None, Requests, Some(10), None, None, Some(SECOND)),
            (None, Requests, Some(10), None, None, Some(MINUTE)),
        ],
    );
    // https://gitlab.com/gitlab-org/gitlab/-/issues/217312
    assert_told(
        "Date: Wed, 17 Jul 2019 00:58:50 GMT
         RateLimit-Limit: 600
         RateLimit-Observed: 6
         RateLimit-Remaining: 594
         RateLimit-Reset: 1563325137
         RateLimit-ResetTime: Wed, 17 Jul 2019 00:58:57 GMT",
        d,
        &[(None, Requests, Some(600), Some(594), Some(7.0), None)],
    );
}

#[test]
fn draft_07() {
    use Counted::Requests;
    let d = Dialect::RateLimitDictionary;
    // draft-ietf-httpapi-ratelimit-headers-07, 2.2 and 2.3.
    assert_told(
        "RateLimit-Policy: 100;w=10\nRateLimit: limit=100, remaining=50, reset=5",
        d,
        &[(
            None,
            Requests,
            Some(100),
            Some(50),
            Some(5.0),
            Some(10 * SECOND),
        )],
    );
    assert_told(
        "RateLimit: limit=100, remaining=50, reset=44
         RateLimit-Policy: 1000;w=3600, 5000;w=86400",
        d,
        &[
            (None, Requests, Some(100), Some(50), Some(44.0), None),
            (None, Requests, Some(1_000), None, None, Some(HOUR)),
            (None, Requests, Some(5_000), None, None, Some(DAY)),
        ],
    );
    assert_told(
        "RateLimit: limit=10, reset=1",
        d,
        &[(None, Requests, Some(10), None, Some(1.0), None)],
    );
}

#[test]
fn drafts_from_08_on() {
    use Counted::{Concurrency, ContentBytes, Requests, Tokens};
    let d = Dialect::RateLimitList;
    // draft-ietf-httpapi-ratelimit-headers-10, 3 and 4.
    assert_told(
        "RateLimit-Policy: \"burst\";q=100;w=60,\"daily\";q=1000;w=86400\nRateLimit: \"daily\";r=1;t=36400",
        d,
        &[
            (Some("burst"), Requests, Some(100), None, None, Some(MINUTE)),
            (
                Some("daily"),
                Requests,
                Some(1_000),
                Some(1),
                Some(36_400.0),
                Some(DAY),
            ),
        ],
    );
    assert_told(
        "RateLimit: \"default\";r=50;t=30",
        d,
        &[(Some("default"), Requests, None, Some(50), Some(30.0), None)],
    );
    assert_told(
        "RateLimit-Policy: \"a\";q=8;qu=\"concurrent-requests\"
         RateLimit-Policy: \"b\";q=65535;qu=\"content-bytes\";w=10, \"c\";q=9;qu=\"tokens\"
         RateLimit: \"a\";r=3",
        d,
        &[
            (Some("a"), Concurrency, Some(8), Some(3), None, None),
            (
                Some("b"),
                ContentBytes,
                Some(65_535),
                None,
                None,
                Some(10 * SECOND),
            ),
            (Some("c"), Tokens, Some(9), None, None, None),
        ],
    );
    // Appendix, with tokens for strings, and a quota in the wrong field.
    assert_told(
        "RateLimit-Policy: quota;q=100;w=1\nRateLimit: quota;t=1",
        d,
        &[(
            Some("quota"),
            Requests,
            Some(100),
            None,
            Some(1.0),
            Some(SECOND),
        )],
    );
    assert_told(
        "RateLimit: \"sliding\";q=12;r=6;t=1",
        d,
        &[(
            Some("sliding"),
            Requests,
            Some(12),
            Some(6),
            Some(1.0),
            None,
        )],
    );
    // What is not allowed is passed over, and no more than that.
    assert_told(
        "RateLimit-Policy: \"a\";q=-1;w=0, (\"b\");q=1, \"c\";q=5.5;w=1, \"d\";q=1;w=60.0, ?1;q=1
         RateLimit-Policy: \"broken
         RateLimit: \"e\";r=-5;t=-1, \"f\";r=1;t=x
         RateLimit: 100",
        d,
        &[
            (Some("d"), Requests, Some(1), None, None, None),
            (Some("f"), Requests, None, Some(1), None, None),
        ],
    );
}

#[test]
fn policies_with_partition_keys_are_limits_of_their_own() {
    let feedback = read(
        200,
        "RateLimit-Policy: \"peruser\";q=100;w=60;pk=:cHsdsRa894==:, \"peruser\";q=50;w=60;pk=:dHJpYWwxMjEzMjM=:
         RateLimit: \"peruser\";r=7;pk=:dHJpYWwxMjEzMjM=:, \"peruser\";r=9;pk=:QXBwLTk5OQ==:",
    );
    let keys = feedback.advertised().iter();
    let keys: Vec<_> = keys
        .map(|limit| {
            (
                limit.partition_key().unwrap(),
                limit.limit(),
                limit.remaining(),
            )
        })
        .collect();
    let first: &[u8] = &[0x70, 0x7b, 0x1d, 0xb1, 0x16, 0xbc, 0xf7];
    assert_eq!(
        keys,
        [
            (first, Some(100), None),
            (b"trial121323", Some(50), Some(7)),
            (b"App-999", None, Some(9))
        ]
    );
}

#[test]
fn what_is_said_twice_counts_in_its_stricter_form() {
    assert_told(
        "x-ratelimit-limit: 60
         x-ratelimit-limit: 50
         x-ratelimit-remaining: 7
         x-ratelimit-remaining: 8
         x-ratelimit-reset: 1
         x-ratelimit-reset: 2",
        Dialect::XRateLimit,
        &[(None, Counted::Requests, Some(50), Some(7), Some(2.0), None)],
    );
    assert_told(
        "RateLimit: \"a\";r=7;t=1\nRateLimit: \"a\";r=9;t=3\nRateLimit-Policy: \"a\";q=9;w=1, \"a\";q=8;w=1",
        Dialect::RateLimitList,
        &[(
            Some("a"),
            Counted::Requests,
            Some(8),
            Some(7),
            Some(3.0),
            Some(SECOND),
        )],
    );
}
