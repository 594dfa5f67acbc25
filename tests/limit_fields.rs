//! What servers say about their limits: readable for every parser of structured fields, and read back as it was meant.
#![cfg(feature = "http")]

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use proptest::prelude::*;
use quotalite::{
    Backoff, Counted, Decision, Denial, Feedback, Limit, LimitBuilder, LimitFields, Limiter,
    MAX_CAPACITY, MINUTE, ManualClock, Obstacle, SECOND, Usage, Window,
};
use sfv::{BareItem, Item, List, ListEntry, Parser};

/// The largest integer of structured fields: RFC 9651, 3.3.1.
const LARGEST: u64 = 999_999_999_999_999;

fn limiter() -> (ManualClock, Limiter) {
    let clock = ManualClock::new();
    (clock.clone(), Limiter::in_memory_with(clock))
}

fn lines(fields: &LimitFields) -> Vec<String> {
    fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

fn read(fields: &LimitFields) -> Feedback {
    Feedback::read(429, fields.iter(), SystemTime::now())
}

#[test]
fn each_kind_of_limit() -> Result<(), quotalite::Error> {
    let (clock, limiter) = limiter();
    limiter.define(Limit::new("tokens").rates("10 tokens/500ms, 90000 tokens/min"))?;
    limiter.define(Limit::new("search").burst(100).refill(8, SECOND))?;
    limiter.define(Limit::slots("gpu", 8))?;
    let _permits = [
        limiter.try_acquire(("tokens", 4))?.granted(),
        limiter.try_acquire(("search", 3))?.granted(),
        limiter.try_acquire(("gpu", 2))?.granted(),
    ];
    clock.advance(Duration::from_millis(100));
    let usages = [
        limiter.usage("tokens")?,
        limiter.usage("search")?,
        limiter.usage("gpu")?,
    ];
    assert_eq!(
        lines(&LimitFields::of(&usages)),
        [
            "ratelimit-policy: \"tokens;500ms\";q=10;qu=\"tokens\";w=1, \"tokens;min\";q=90000;qu=\"tokens\";w=60, \
             \"search\";q=100;w=13, \"gpu\";q=8;qu=\"concurrent-requests\"",
            "ratelimit: \"tokens;500ms\";r=6;t=1, \"tokens;min\";r=89996;t=60, \"search\";r=97;t=1, \"gpu\";r=6",
        ]
    );
    Ok(())
}

#[test]
fn denials() -> Result<(), quotalite::Error> {
    let (clock, limiter) = limiter();
    limiter.define(Limit::new("a").rates("2/s, 10/min"))?;
    limiter.define(Limit::new("b").per_minute(1))?;
    limiter.define(Limit::slots("gpu", 1))?;
    let _permits = [limiter.try_acquire(("a", 2))?, limiter.try_acquire("b")?];
    clock.advance(Duration::from_millis(1));
    let denial = limiter.try_acquire("a")?.denied().unwrap();
    assert_eq!(denial.retry_after(), Some(Duration::from_millis(999)));

    // The minute has nothing to do with it, and would say something later than `Retry-After`.
    let fields = LimitFields::of(&[limiter.usage("a")?]).with_denial(&denial);
    let said = lines(&fields);
    assert_eq!(
        said[1..],
        [
            "ratelimit: \"a;s\";r=0;t=1, \"a;min\";r=8",
            "retry-after: 1"
        ]
    );
    assert_eq!(
        (read(&fields).retry_after(), read(&fields).wait()),
        (Some(SECOND), Some(SECOND))
    );

    let alone = LimitFields::default().with_denial(&denial);
    assert_eq!(
        lines(&alone),
        ["ratelimit: \"a;s\";r=0;t=1", "retry-after: 1"]
    );

    let holder = limiter.try_acquire("gpu")?;
    let denial = limiter.try_acquire("gpu")?.denied().unwrap();
    assert_eq!(
        lines(&LimitFields::default().with_denial(&denial)),
        ["ratelimit: \"gpu\";r=0"]
    );
    drop(holder);

    // The longest wait counts, whichever comes first.
    let Decision::Denied(long) = limiter.try_acquire("b")? else {
        panic!("it fits")
    };
    let short = limiter.try_acquire("a")?.denied().unwrap();
    for fields in [
        LimitFields::default()
            .with_denial(&short)
            .with_denial(&long),
        LimitFields::default()
            .with_denial(&long)
            .with_denial(&short),
    ] {
        let longest = long.retry_after().max(short.retry_after()).unwrap();
        assert_eq!(read(&fields).retry_after(), Some(rounded(longest)));
    }
    Ok(())
}

#[cfg(feature = "calendar")]
#[test]
fn windows_of_a_calendar_have_no_length() -> Result<(), quotalite::Error> {
    use quotalite::Period;
    let (_clock, limiter) = limiter();
    limiter.define(Limit::new("a").quota(1_500, Period::Month, "America/Los_Angeles"))?;
    let policies = lines(&LimitFields::of(&[limiter.usage("a")?]));
    assert_eq!(
        policies[0],
        "ratelimit-policy: \"a;calendar month in America/Los_Angeles\";q=1500"
    );
    Ok(())
}

#[test]
fn fields_stand_in_the_place_of_what_stood_there() -> Result<(), quotalite::Error> {
    let (_clock, limiter) = limiter();
    let key = "°".repeat(128);
    let mut limit = Limit::new(&key);
    for ms in 1..=16 {
        limit = limit.rate(ms, Duration::from_millis(ms));
    }
    limiter.define(limit)?;
    let mut headers = HeaderMap::new();
    headers.append("RateLimit", "\"of somebody else\";r=1".parse().unwrap());
    headers.append(
        "RateLimit",
        "\"of somebody else, too\";r=1".parse().unwrap(),
    );
    headers.append("Retry-After", "7".parse().unwrap());
    let fields = LimitFields::of(&[limiter.usage(&key)?]);
    fields.insert_into(&mut headers);
    assert!(
        headers
            .values()
            .all(|value| value.len() <= Feedback::MAX_VALUE_BYTES)
    );
    assert!(headers.get_all("ratelimit").iter().count() > 1);
    let feedback = Feedback::of_response(http::StatusCode::OK, &headers, SystemTime::now());
    assert_eq!(feedback.advertised().len(), 16);
    assert_eq!(feedback.retry_after(), Some(7 * SECOND));

    LimitFields::default().insert_into(&mut headers);
    assert_eq!(headers.get("retry-after").unwrap(), "7");
    Ok(())
}

#[test]
fn a_crowd_of_limits_is_cut_and_the_denied_one_stays() -> Result<(), quotalite::Error> {
    let (_clock, limiter) = limiter();
    limiter.define(Limit::pattern("t*").per_minute(1))?;
    let _permit = limiter.try_acquire("t99")?;
    let denial = limiter.try_acquire("t99")?.denied().unwrap();
    let usages: Result<Vec<Usage>, _> = (0..100).map(|n| limiter.usage(&format!("t{n}"))).collect();
    let usages = usages?;
    let fields = LimitFields::of(usages.iter().chain(&usages)).with_denial(&denial);
    let feedback = read(&fields);
    assert_eq!(feedback.advertised().len(), Feedback::MAX_ADVERTISED);
    assert!(
        feedback
            .advertised()
            .iter()
            .any(|limit| limit.name() == Some("t99;min"))
    );
    assert_eq!(feedback.wait(), Some(MINUTE));
    Ok(())
}

/// The next whole second, which is what the fields can say.
fn rounded(time: Duration) -> Duration {
    let partial = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs() + partial).clamp(SECOND, Feedback::MAX_TIME)
}

/// A percent-encoded name, as it was before.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let [byte, tail @ ..] = rest {
        if *byte == b'%' {
            let digits = str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{1,60}", "[ -~]{1,256}", "[a-z:;%/\"\\\\,=]{1,12}"]
}

fn definition() -> impl Strategy<Value = (LimitBuilder, u64)> {
    let unit = prop_oneof![
        Just(None),
        Just(Some("tokens".to_owned())),
        "\\PC{1,16}".prop_map(Some)
    ];
    let capacity = prop_oneof![1..1_000_u64, 1..=MAX_CAPACITY];
    let rates = prop::collection::btree_map(1..31_622_400_000_u64, capacity.clone(), 1..5);
    let rates = (key(), rates).prop_map(|(key, rates)| {
        rates
            .into_iter()
            .fold(Limit::new(key), |limit, (ms, capacity)| {
                limit.rate(capacity, Duration::from_millis(ms))
            })
    });
    let bucket = (key(), 1..1_000_u64, 1..1_000_u64, 1..86_400_u64);
    let bucket = bucket.prop_map(|(key, burst, refill, per)| {
        Limit::new(key)
            .burst(burst)
            .refill(refill.max(burst / 300 + 1), Duration::from_secs(per))
    });
    let slots = (key(), capacity).prop_map(|(key, count)| Limit::slots(key, count));
    let limit = prop_oneof![rates, bucket, slots];
    (limit, unit, any::<u64>()).prop_map(|(limit, unit, used)| match unit {
        Some(unit) => (limit.unit(unit), used),
        None => (limit, used),
    })
}

fn item(entry: &ListEntry) -> &Item {
    match entry {
        ListEntry::Item(item) => item,
        ListEntry::InnerList(_) => panic!("no lists in lists"),
    }
}

fn figure(item: &Item, key: &str) -> Option<u64> {
    let value = item.params.get(key).and_then(BareItem::as_integer)?;
    Some(u64::try_from(value).unwrap())
}

/// Name, capacity, window, available, and time until more is, of all that there is in a limit.
type Stand = (String, u64, Option<Duration>, u64, Option<Duration>);

fn stands(usage: &Usage) -> Vec<Stand> {
    let key = usage.limit().key();
    let mut stands = Vec::new();
    for used in usage.rates() {
        let rate = used.rate();
        let Window::Rolling(window) = rate.window() else {
            panic!("no calendar")
        };
        let release = used
            .next_release()
            .map(|release| release.saturating_duration_since(usage.at()));
        let name = LimitFields::policy_name(key, Obstacle::Rate(rate));
        stands.push((
            name,
            rate.capacity(),
            Some(window),
            used.available(),
            release,
        ));
    }
    if let Some(used) = usage.bucket() {
        let bucket = used.bucket();
        let fills_in = bucket.per().as_nanos() * u128::from(bucket.burst());
        let fills_in = fills_in.div_ceil(bucket.refill().into());
        let window = Duration::from_nanos(fills_in.try_into().unwrap());
        let release = used
            .next_release()
            .map(|release| release.saturating_duration_since(usage.at()));
        let name = LimitFields::policy_name(key, Obstacle::Bucket(bucket));
        stands.push((
            name,
            bucket.burst(),
            Some(window),
            used.available(),
            release,
        ));
    }
    if let Some(count) = usage.limit().slot_count() {
        stands.push((
            LimitFields::policy_name(key, Obstacle::Slots(count)),
            count,
            None,
            usage.available(),
            None,
        ));
    }
    stands
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_said_is_read_back(definitions in prop::collection::vec(definition(), 1..4), after in 0..10_000_u64) {
        let (clock, limiter) = limiter();
        let mut permits = Vec::new();
        let mut usages: HashMap<String, Usage> = HashMap::new();
        let mut denial = None;
        for (definition, used) in definitions {
            let Ok(limit) = definition.build() else { continue };
            if usages.contains_key(limit.key()) {
                continue;
            }
            limiter.define(limit.to_builder()).unwrap();
            let most = limiter.usage(limit.key()).unwrap().available();
            permits.push(limiter.try_acquire((limit.key(), used % most + 1)).unwrap());
            clock.advance(Duration::from_millis(after));
            denial = limiter.try_acquire((limit.key(), most)).unwrap().denied().or(denial);
            usages.insert(limit.key().to_owned(), limiter.usage(limit.key()).unwrap());
        }

        let mut fields = LimitFields::of(usages.values());
        if let Some(denial) = &denial {
            fields = fields.with_denial(denial);
        }
        let feedback = read(&fields);
        let wait = denial.as_ref().and_then(Denial::retry_after).map(rounded);
        prop_assert_eq!(feedback.retry_after(), wait);

        let expected: Vec<(Usage, Stand)> =
            usages.values().flat_map(|usage| stands(usage).into_iter().map(|stand| (usage.clone(), stand))).collect();
        prop_assert_eq!(feedback.advertised().len(), expected.len());
        for (usage, (name, capacity, window, available, release)) in &expected {
            let told = feedback.advertised().iter().find(|limit| limit.name() == Some(name)).unwrap();
            prop_assert_eq!(told.limit(), Some(*capacity.min(&LARGEST)));
            prop_assert_eq!(told.remaining(), Some(*available.min(&LARGEST)));
            prop_assert_eq!(told.window(), window.map(rounded));
            let reset = release.map(rounded).filter(|reset| wait.is_none_or(|wait| *reset <= wait));
            prop_assert_eq!(told.reset(), reset);
            if usage.limit().slot_count().is_some() {
                prop_assert_eq!(told.counted(), &Counted::Concurrency);
            } else if usage.limit().unit() == Some("tokens") {
                prop_assert_eq!(told.counted(), &Counted::Tokens);
            }
            let (key, _) = name.split_once(';').unwrap_or((name, ""));
            prop_assert_eq!(decoded(key), usage.limit().key());
        }

        // The same by the parser of structured fields alone.
        let mut policies: HashMap<String, (Option<u64>, Option<u64>)> = HashMap::new();
        for (name, value) in fields.iter().filter(|(name, _)| *name != "retry-after") {
            prop_assert!(value.len() <= Feedback::MAX_VALUE_BYTES);
            for entry in &Parser::new(&value).parse::<List>().unwrap() {
                let item = item(entry);
                let BareItem::String(policy) = &item.bare_item else { panic!("{value}") };
                let told = policies.entry(policy.as_str().to_owned()).or_default();
                match name {
                    "ratelimit" => told.1 = figure(item, "r"),
                    _ => told.0 = figure(item, "q"),
                }
            }
        }
        for (_, (name, capacity, _, available, _)) in &expected {
            let told = (Some(*capacity.min(&LARGEST)), Some(*available.min(&LARGEST)));
            prop_assert_eq!(policies.get(name), Some(&told));
        }
    }

    #[test]
    fn no_two_keys_have_one_name(one in key(), other in key(), count in 1..9_u64) {
        let slots = |key: &str| LimitFields::policy_name(key, Obstacle::Slots(count));
        prop_assert_eq!(decoded(&slots(&one)), one.as_str());
        prop_assert_eq!(one == other, slots(&one) == slots(&other));
        prop_assert!(slots(&one).bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b';'));
    }
}

#[test]
fn nobody_is_invited_before_a_pause_ends() -> Result<(), quotalite::Error> {
    let (_, limiter) = limiter();
    limiter.define(Limit::new("a").per_second(10).per_minute(20))?;
    limiter.define(Limit::slots("b", 2))?;
    assert!(limiter.try_acquire("a")?.is_granted());
    for key in ["a", "b"] {
        limiter.pause(key, Backoff::planned(90 * SECOND))?;
    }
    let fields = LimitFields::of(&[limiter.usage("a")?, limiter.usage("b")?]);
    assert_eq!(
        lines(&fields)[1],
        "ratelimit: \"a;s\";r=0;t=90, \"a;min\";r=0;t=90, \"b\";r=0;t=90"
    );
    Ok(())
}
