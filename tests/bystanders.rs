//! What a pause, a breaker and a provider's figures must not do to those who did not ask for it.
#![allow(missing_docs)]

use std::time::Duration;

use quotalite::*;

fn open(dir: &std::path::Path, clock: &ManualClock) -> Limiter {
    Limiter::builder(dir.join("l.db"))
        .clock(clock.clone())
        .open()
        .unwrap()
}

fn removed(limiter: &Limiter, clock: &ManualClock) -> Option<Duration> {
    limiter.define(Limit::new("a").per_second(1)).unwrap();
    limiter.define(Limit::new("b").per_second(1)).unwrap();
    let both = Request::new().take("a", 1).take("b", 1);
    let _first = limiter.book(&both).unwrap().accept();
    let mut second = limiter.book(&both).unwrap();
    limiter.force_remove("a").unwrap();
    limiter.pause("b", Backoff::planned(20 * SECOND)).unwrap();
    clock.advance(SECOND);
    second.check().unwrap()
}

#[test]
fn a_booking_of_a_removed_limit_is_moved_in_memory() {
    let clock = ManualClock::new();
    assert_eq!(
        removed(&Limiter::in_memory_with(clock.clone()), &clock),
        Some(19 * SECOND)
    );
}
#[test]
fn a_booking_of_a_removed_limit_is_moved_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    assert_eq!(
        removed(&open(dir.path(), &clock), &clock),
        Some(19 * SECOND)
    );
}

fn shared(one: &Limiter, other: &Limiter, clock: &ManualClock) -> [Option<Duration>; 2] {
    one.define(Limit::new("a").per_second(1)).unwrap();
    let _first = one.book("a").unwrap().accept();
    let ask = Request::new().take("a", 1).id("job");
    let mut mine = one.book(&ask).unwrap();
    let mut theirs = other.book(&ask).unwrap();
    one.pause("a", Backoff::planned(20 * SECOND)).unwrap();
    clock.advance(SECOND);
    [mine.check().unwrap(), theirs.check().unwrap()]
}
#[test]
fn a_booking_that_others_share_by_its_id_is_moved_in_memory() {
    let clock = ManualClock::new();
    let l = Limiter::in_memory_with(clock.clone());
    assert_eq!(shared(&l, &l, &clock), [Some(19 * SECOND); 2]);
}
#[test]
fn a_booking_that_others_share_by_its_id_is_moved_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (one, other) = (open(dir.path(), &clock), open(dir.path(), &clock));
    assert_eq!(shared(&one, &other, &clock), [Some(19 * SECOND); 2]);
}
#[test]
fn a_breaker_takes_one_of_each_request() {
    let limiter = Limiter::in_memory_with(ManualClock::new());
    limiter
        .define(Limit::breaker("b", BreakerPolicy::default()))
        .unwrap();
    let told = limiter.try_acquire(("b", 5));
    assert!(matches!(told, Err(Error::NeverFits { .. })), "{told:?}");
}

#[test]
fn what_was_reported_and_struck_long_ago_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let l = open(dir.path(), &clock);
    l.define(Limit::pattern("b:*").breaker(BreakerPolicy::default()))
        .unwrap();
    l.define(Limit::pattern("r:*").per_second(10)).unwrap();
    l.define(Limit::new("busy").per_second(10)).unwrap();
    for i in 0..50 {
        l.acquire(format!("b:{i}").as_str())
            .unwrap()
            .report(Report::success())
            .unwrap();
        l.pause(
            format!("r:{i}").as_str(),
            Backoff::retry_after(Duration::ZERO),
        )
        .unwrap();
    }
    for _ in 0..20_000 {
        clock.advance(SECOND);
        let _ = l.try_acquire("busy").unwrap();
    }
    let raw = rusqlite::Connection::open(dir.path().join("l.db")).unwrap();
    let n = |sql: &str| raw.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(
        (
            n("SELECT count(*) FROM outcome"),
            n("SELECT count(*) FROM strike"),
            n("SELECT count(*) FROM pattern_key")
        ),
        (0, 0, 0)
    );
}

fn lowered(l: &Limiter) -> Vec<i64> {
    l.define(
        Limit::new("a")
            .rate(5, MINUTE)
            .pauses(PausePolicy::default().slow_start(100)),
    )
    .unwrap();
    l.define(Limit::new("b").per_second(1)).unwrap();
    let _now = l.book("b").unwrap().accept();
    let mut both = l.book(&Request::new().take("a", 5).take("b", 1)).unwrap();
    let mut others: Vec<_> = (0..30).map(|_| l.book("b").unwrap()).collect();
    l.define_or(
        Limit::new("a")
            .rate(3, MINUTE)
            .pauses(PausePolicy::default().slow_start(100)),
        OnConflict::Replace,
    )
    .unwrap();
    l.pause("a", Backoff::planned(20 * SECOND)).unwrap();
    both.check().unwrap();
    let mut at: Vec<i64> = others
        .iter_mut()
        .chain([&mut both])
        .map(|b| {
            b.check().unwrap();
            b.at().as_nanos()
        })
        .collect();
    at.sort_unstable();
    at.windows(2).map(|w| w[1] - w[0]).collect()
}
#[test]
fn a_booking_that_one_limit_is_too_small_for_keeps_to_the_other_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let gaps = lowered(&open(dir.path(), &clock));
    assert!(gaps.iter().all(|g| *g >= 1_000_000_000), "{gaps:?}");
}
#[test]
fn a_booking_that_one_limit_is_too_small_for_keeps_to_the_other_in_memory() {
    let clock = ManualClock::new();
    let gaps = lowered(&Limiter::in_memory_with(clock));
    assert!(gaps.iter().all(|g| *g >= 1_000_000_000), "{gaps:?}");
}
#[test]
fn a_strike_that_changes_nothing_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let l = open(dir.path(), &clock);
    l.define(Limit::new("a").per_second(10)).unwrap();
    l.pause("a", Backoff::planned(20 * SECOND)).unwrap();
    let raw = rusqlite::Connection::open(dir.path().join("l.db")).unwrap();
    let n = || {
        raw.query_row("SELECT definitions FROM clock", [], |r| r.get::<_, i64>(0))
            .unwrap()
    };
    let before = n();
    for _ in 0..5 {
        l.pause("a", Backoff::strike()).unwrap();
    }
    assert_eq!(n(), before);
}
#[cfg(feature = "http")]
#[test]
fn an_absurd_header_is_no_error() {
    let l = Limiter::in_memory().unwrap();
    l.define(Limit::new("a").per_minute(10)).unwrap();
    let mut h = http::HeaderMap::new();
    h.insert(
        "x-ratelimit-limit-requests",
        "99999999999999999999".parse().unwrap(),
    );
    h.insert("x-ratelimit-remaining-requests", "3".parse().unwrap());
    let set = LimitSet::new().requests("a").learning();
    let heard = l.feedback(&set, http::StatusCode::OK, &h);
    assert!(heard.is_ok(), "{heard:?}");
}
#[test]
fn a_wait_of_nothing_is_no_strike() {
    let clock = ManualClock::new();
    let l = Limiter::in_memory_with(clock.clone());
    l.define(Limit::new("a").per_second(10)).unwrap();
    let at = l.acquire("a").unwrap().at();
    clock.advance(SECOND);
    for _ in 0..40 {
        l.pause("a", Backoff::retry_after(Duration::ZERO).asked_at(at))
            .unwrap();
    }
    let p = l.pause("a", Backoff::strike()).unwrap();
    assert!(
        p.strikes() <= 2,
        "{p:?} {:?}",
        p.until().saturating_duration_since(p.since())
    );
}
#[test]
fn a_detached_permit_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let l = open(dir.path(), &clock);
    l.define(
        Limit::new("a")
            .per_second(1)
            .pauses(PausePolicy::default().slow_start(100)),
    )
    .unwrap();
    let _f = l.book("a").unwrap().accept();
    let p = l.book("a").unwrap().accept();
    p.detach(HOUR).unwrap();
    l.pause("a", Backoff::planned(20 * SECOND)).unwrap();
    let raw = rusqlite::Connection::open(dir.path().join("l.db")).unwrap();
    let n: i64 = raw
        .query_row(
            "SELECT count(*) FROM charge, pause WHERE at_ns > since_ns AND at_ns < until_ns",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(n, 0);
}
#[test]
fn the_first_success_only_begins_a_window() {
    let clock = ManualClock::new();
    let l = Limiter::in_memory_with(clock.clone());
    l.define(Limit::new("a").per_minute(10)).unwrap();
    let a = l.adapt("a", Adaptive::between(1, 100), false).unwrap();
    assert!(a.is_none(), "{a:?}");
}
