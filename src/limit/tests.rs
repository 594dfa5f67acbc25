use super::*;

#[test]
fn a_bad_limit_cannot_be_built() {
    let cases = [
        (
            Limit::new("").per_second(1),
            "a key has 1 to 256 bytes, this one has 0",
        ),
        (
            Limit::new("k".repeat(257)).per_second(1),
            "a key has 1 to 256 bytes, this one has 257",
        ),
        (
            Limit::new("a\nb").per_second(1),
            "a key has no control characters, this one has one at byte 1",
        ),
        (
            Limit::new("k").rates("10 tokens/s").unit("calls"),
            "a limit has one unit, not `tokens` and `calls`",
        ),
        (Limit::new("k"), "a limit needs at least one rate"),
        (
            Limit::new("k").per_second(0),
            "a capacity is 1 to 9007199254740992, not 0",
        ),
        (
            Limit::new("k").per_second(MAX_CAPACITY + 1),
            "a capacity is 1 to 9007199254740992, not 9007199254740993",
        ),
        (
            Limit::new("k").rate(1, Duration::from_micros(999)),
            "a window is 1 ms to 366 days, not 999µs",
        ),
        (
            Limit::new("k").rate(1, MAX_WINDOW + Duration::from_nanos(1)),
            "a window is 1 ms to 366 days, not 31622400.000000001s",
        ),
        (
            Limit::new("k").per_second(1).rate(2, SECOND),
            "two rates have the same window: 1/s and 2/s",
        ),
        (
            Limit::new("k").per_second(1).pad(Duration::MAX),
            "a pad is at most 366 days, not 18446744073709551615.999999999s",
        ),
        (
            Limit::new("k").per_minute(1).resolution(MINUTE + SECOND),
            "a resolution is at most the shortest window, 60s, not 61s",
        ),
        (
            Limit::slots("k", 1).resolution(SECOND),
            "a limit of slots has no resolution",
        ),
        (
            Limit::new("k")
                .burst(1)
                .refill(1, SECOND)
                .resolution(SECOND),
            "a bucket has no resolution",
        ),
        (
            Limit::new("k").per_second(1).keep(MAX_WINDOW + SECOND),
            "a history is kept for at most 366 days, not 31622401s",
        ),
        (
            Limit::new("k").per_second(1).keep(Duration::MAX),
            "a history is kept for at most 366 days, not 18446744073709551615.999999999s",
        ),
        (
            Limit::slots("k", 1).keep(SECOND),
            "a limit of slots has no history",
        ),
        (
            Limit::new("k").burst(1).refill(1, SECOND).keep(SECOND),
            "a bucket has no history",
        ),
        (
            Limit::breaker("k", BreakerPolicy::default()).keep(SECOND),
            "a breaker has no history",
        ),
        (
            Limit::new("k").per_second(1).unit(""),
            "a unit has 1 to 64 bytes and no control characters, this one has 0 bytes",
        ),
    ];
    for (builder, message) in cases {
        assert_eq!(builder.build().unwrap_err().to_string(), message);
    }
    let many = (1..=17).fold(Limit::new("k"), |builder, n| {
        builder.rate(1, Duration::from_secs(n))
    });
    assert_eq!(many.build(), Err(LimitError::TooManyRates { count: 17 }));
}

#[test]
fn the_bounds_themselves_are_allowed() {
    let limit = Limit::new("k".repeat(MAX_KEY_BYTES))
        .rate(MAX_CAPACITY, MIN_WINDOW)
        .rate(1, MAX_WINDOW)
        .pad(MAX_WINDOW)
        .keep(MAX_WINDOW)
        .build()
        .unwrap();
    assert_eq!(limit.pad(), MAX_WINDOW);
    assert_eq!(limit.keep(), Some(MAX_WINDOW));
    assert_eq!(limit.tightest().capacity(), 1);
}

#[test]
fn a_limit_prints_as_people_write_it() {
    let limit = Limit::new("openai:tokens")
        .rates("90_000 tokens/min, 1000 tokens / 5 s")
        .pad(Duration::from_millis(50))
        .build()
        .unwrap();
    assert_eq!(
        limit.to_string(),
        "openai:tokens: 1000 tokens/5s, 90000 tokens/min, pad 50ms"
    );
    let merged = Limit::new("hot").per_day(1_000).resolution(MINUTE).build();
    assert_eq!(merged.unwrap().to_string(), "hot: 1000/d, resolution 1min");
    for (keep, text) in [
        (7 * DAY, "k: 1/s, keep 7d"),
        (DAY, "k: 1/s, keep 1d"),
        (90 * MINUTE, "k: 1/s, keep 90min"),
        (Duration::from_nanos(1), "k: 1/s, keep 1ns"),
        (Duration::ZERO, "k: 1/s"),
    ] {
        let kept = Limit::new("k").per_second(1).keep(keep).build().unwrap();
        assert_eq!(kept.to_string(), text);
        assert_eq!(kept.to_builder().build(), Ok(kept));
    }
}

#[test]
fn what_is_merged_stands_at_its_beginning() {
    let merged = Limit::new("k")
        .per_second(1)
        .resolution(Duration::from_nanos(10));
    let merged = merged.build().unwrap();
    let exact = Limit::new("k").per_second(1).build().unwrap();
    for (at_ns, entered_ns) in [(0, 0), (9, 0), (10, 10), (19, 10), (-1, -10), (-10, -10)] {
        let at = Timestamp::from_nanos(at_ns);
        assert_eq!(merged.entered_at(at), Timestamp::from_nanos(entered_ns));
        assert_eq!(exact.entered_at(at), at);
    }
    let first = Timestamp::from_nanos(i64::MIN);
    assert_eq!(merged.entered_at(first), first);
}
