//! Buckets and calendar quotas, alone and mixed with rates and slots, in a file and in memory.

mod support;

use std::time::Duration;

use quotalite::{Error, Limit, Limiter, MINUTE, ManualClock, Overage, Request, SECOND};

use support::{Scratch, scratch};

const MS: Duration = Duration::from_millis(1);

/// A limiter in a file and one in memory, each with its clock.
fn both() -> [(Option<Scratch>, Limiter, ManualClock); 2] {
    let scratch = scratch();
    let clock = ManualClock::new();
    let on_file = Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap();
    let memory_clock = ManualClock::new();
    let in_memory = Limiter::in_memory_with(memory_clock.clone());
    [
        (Some(scratch), on_file, clock),
        (None, in_memory, memory_clock),
    ]
}

#[test]
fn a_bucket_admits_its_burst_and_then_what_flows_in() {
    for (_scratch, limiter, clock) in both() {
        limiter
            .define(Limit::new("k").burst(5).refill(3, SECOND))
            .unwrap();
        for _ in 0..5 {
            assert!(limiter.try_acquire("k").unwrap().is_granted());
        }
        let denial = limiter.try_acquire("k").unwrap().denied().unwrap();
        // A third of a second, to the next whole nanosecond.
        assert_eq!(
            denial.retry_after(),
            Some(Duration::from_nanos(333_333_334))
        );
        clock.advance(Duration::from_nanos(333_333_333));
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(Duration::from_nanos(1));
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        // What was a part of a nanosecond late is not lost: after a second from the start, three have flowed in.
        clock.advance(Duration::from_nanos(333_333_332));
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(Duration::from_nanos(1));
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(Duration::from_nanos(333_333_333));
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(MINUTE);
        assert_eq!(limiter.usage("k").unwrap().available(), 5);
        assert!(matches!(
            limiter.try_acquire(("k", 6)),
            Err(Error::NeverFits { amount: 6, .. })
        ));
    }
}

#[test]
fn who_books_a_bucket_is_served_in_order_and_gaps_are_used() {
    for (_scratch, limiter, clock) in both() {
        limiter
            .define(Limit::new("k").burst(4).refill(1, SECOND))
            .unwrap();
        limiter
            .define(Limit::new("slow").rate(1, 10 * SECOND))
            .unwrap();
        assert!(limiter.try_acquire(("k", 4)).unwrap().is_granted());
        assert!(limiter.try_acquire("slow").unwrap().is_granted());
        // Held up by the other limit for longer than the bucket takes to fill.
        let both = Request::new().take("k", 4).take("slow", 1);
        let late = limiter.book(&both).unwrap();
        assert_eq!(late.wait_time(), 10 * SECOND);
        // Up to 6 s before that the bucket can be used, and still be full then.
        let early = limiter.book(("k", 2)).unwrap();
        assert_eq!(early.wait_time(), 2 * SECOND);
        let next = limiter.book(("k", 4)).unwrap();
        assert_eq!(next.wait_time(), 6 * SECOND);
        let behind = limiter.book(("k", 1)).unwrap();
        assert_eq!(behind.wait_time(), 11 * SECOND);
        drop(next);
        // 4 flow in until 6 s; what is taken then is there again at 10 s.
        let again = limiter.book(("k", 4)).unwrap();
        assert_eq!(again.wait_time(), 6 * SECOND);
        clock.advance(20 * SECOND);
        assert_eq!(limiter.usage("k").unwrap().available(), 4);
    }
}

#[test]
fn what_is_put_back_into_a_bucket_would_still_be_there() {
    for (_scratch, limiter, clock) in both() {
        limiter
            .define(Limit::new("k").burst(10).refill(1, SECOND))
            .unwrap();
        let first = limiter.acquire(("k", 10)).unwrap();
        clock.advance(10 * SECOND);
        let second = limiter.acquire(("k", 9)).unwrap();
        clock.advance(2 * SECOND);
        let third = limiter.acquire(("k", 3)).unwrap();
        // It was full again before the second one: without the first one it would have flowed over.
        first.cancel().unwrap();
        assert_eq!(limiter.usage("k").unwrap().available(), 0);
        // 7 were missing when the third one came.
        second.settle([("k", 1)]).unwrap();
        assert_eq!(limiter.usage("k").unwrap().available(), 7);
        third.cancel().unwrap();
        assert_eq!(limiter.usage("k").unwrap().available(), 10);
    }
}

#[test]
fn what_was_not_used_of_a_bucket_comes_back_and_what_was_used_beyond_is_owed() {
    for (_scratch, limiter, clock) in both() {
        limiter
            .define(
                Limit::new("k")
                    .burst(10)
                    .refill(1, SECOND)
                    .overage(Overage::Charge),
            )
            .unwrap();
        let permit = limiter.acquire(("k", 8)).unwrap();
        permit.settle([("k", 3)]).unwrap();
        assert_eq!(limiter.usage("k").unwrap().available(), 7);
        let permit = limiter.acquire(("k", 2)).unwrap();
        permit.settle([("k", 15)]).unwrap();
        let denial = limiter.try_acquire("k").unwrap().denied().unwrap();
        // 3 and 15 were taken of 10.
        assert_eq!(denial.retry_after(), Some(9 * SECOND));
        clock.advance(9 * SECOND);
        let permit = limiter.try_acquire("k").unwrap().granted().unwrap();
        permit.cancel().unwrap();
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(MS);
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
    }
}

/// As in a program that was built with an older time zone database, or without any.
#[cfg(feature = "calendar")]
#[test]
fn a_limit_whose_zone_is_not_known_here_is_in_nobodys_way() {
    use quotalite::Period;
    let (scratch, limiter, clock) = support::on_file();
    let limits = [
        Limit::new("plain").rate(1_000_000, quotalite::DAY),
        Limit::new("monthly").quota(5, Period::Month, "Europe/Berlin"),
        Limit::pattern("m:*").quota(5, Period::Month, "Europe/Berlin"),
        Limit::pattern("t:*").rate(5, SECOND),
    ];
    limiter
        .define_all(limits, quotalite::OnConflict::Fail)
        .unwrap();
    assert!(limiter.try_acquire("m:1").unwrap().is_granted());
    drop(limiter);
    support::open_raw(&scratch.file())
        .execute_batch("UPDATE quota SET zone = 'Mars/Olympus'")
        .unwrap();
    let limiter = support::open(&scratch, &clock);
    for _ in 0..2_000 {
        assert!(limiter.try_acquire("plain").unwrap().is_granted());
    }
    assert!(limiter.try_acquire("t:1").unwrap().is_granted());
    let permit = limiter
        .try_acquire(("plain", 3))
        .unwrap()
        .granted()
        .unwrap();
    permit.settle([("plain", 1)]).unwrap();
    for key in ["monthly", "m:1", "m:2"] {
        let told = limiter.try_acquire(key);
        assert!(
            matches!(told, Err(Error::Definition { .. })),
            "{key}: {told:?}"
        );
    }
    assert!(matches!(
        limiter.try_acquire("nobody"),
        Err(Error::UnknownLimit { .. })
    ));
}
