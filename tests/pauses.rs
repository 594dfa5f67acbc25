//! Pauses, on both stores and a clock that stands still.
mod support;

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use quotalite::{
    Backoff, Booking, Decision, Denial, Error, Limit, Limiter, MINUTE, ManualClock, Obstacle,
    OnConflict, PausePolicy, Peek, Request, RequestError, SECOND,
};
use support::{in_both_stores, on_file, open};

const MS: Duration = Duration::from_millis(1);
const ALL_AT_ONCE: u8 = 100;

/// A limit that starts at once after a pause.
fn brisk(limit: quotalite::LimitBuilder) -> quotalite::LimitBuilder {
    limit.pauses(PausePolicy::default().slow_start(ALL_AT_ONCE))
}

fn pause(limiter: &Limiter, key: &str, length: Duration) {
    limiter.pause(key, Backoff::retry_after(length)).unwrap();
}

#[track_caller]
fn denied(limiter: &Limiter, request: &Request) -> Denial {
    match limiter.try_acquire(request).unwrap() {
        Decision::Denied(denial) => denial,
        Decision::Granted(permit) => panic!("granted at {:?}", permit.at()),
    }
}

/// How many are granted one after the other until one is not.
fn granted(limiter: &Limiter, key: &str) -> usize {
    let mut count = 0;
    while limiter.try_acquire(key).unwrap().is_granted() {
        count += 1;
    }
    count
}

/// From the booking made first to the last, how long until each.
fn waits(bookings: &mut [Booking]) -> Vec<u64> {
    let wait = |booking: &mut Booking| {
        let left = booking.check().unwrap().unwrap_or_default();
        u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap()
    };
    bookings.iter_mut().map(wait).collect()
}

#[test]
fn nobody_is_admitted_before_the_end_whatever_the_kind_of_the_limit() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("rate").per_second(10)))
            .unwrap();
        limiter.define(Limit::slots("slots", 2)).unwrap();
        limiter
            .define(Limit::new("bucket").burst(5).refill(1, SECOND))
            .unwrap();
        limiter
            .define(Limit::pattern("tenant:*").per_second(1))
            .unwrap();
        for key in ["rate", "slots", "bucket", "tenant:7"] {
            pause(limiter, key, 20 * SECOND);
            let request = Request::new().take(key, 1);
            let denial = denied(limiter, &request);
            assert_eq!(denial.obstacle(), Obstacle::Paused, "{key}");
            assert!(denial.is_paused());
            assert_eq!(denial.retry_after(), Some(20 * SECOND), "{key}");
            assert_eq!(
                denial.to_string(),
                format!("limit `{key}` (paused) admits 1 in 20s")
            );
            assert_eq!(limiter.peek(&request).unwrap(), Peek::Later(denial));
            let usage = limiter.usage(key).unwrap();
            assert_eq!(usage.available(), 0, "{key}");
            let left = usage
                .pause()
                .unwrap()
                .until()
                .saturating_duration_since(usage.at());
            assert_eq!(left, 20 * SECOND);
        }
        assert!(limiter.try_acquire("tenant:8").unwrap().is_granted());
        clock.advance(Duration::from_nanos(19_999_999_999));
        for key in ["rate", "slots", "bucket", "tenant:7"] {
            assert!(!limiter.try_acquire(key).unwrap().is_granted(), "{key}");
        }
        clock.advance(Duration::from_nanos(1));
        for key in ["rate", "slots", "bucket", "tenant:7"] {
            assert!(limiter.try_acquire(key).unwrap().is_granted(), "{key}");
            assert_eq!(limiter.usage(key).unwrap().pause(), None, "{key}");
        }
    });
}

#[test]
fn a_request_for_several_limits_waits_for_the_one_that_is_paused() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(10)))
            .unwrap();
        limiter.define(Limit::new("b").per_minute(1)).unwrap();
        pause(limiter, "a", 20 * SECOND);
        let both = Request::new().take("b", 1).take("a", 1);
        let denial = denied(limiter, &both);
        assert_eq!((denial.key(), denial.is_paused()), ("a", true));
        // Nothing of the other is charged for it.
        assert!(limiter.try_acquire("b").unwrap().is_granted());
        let denial = denied(limiter, &both);
        assert_eq!((denial.key(), denial.is_paused()), ("b", false));
        assert_eq!(denial.retry_after(), Some(MINUTE));
        clock.advance(MINUTE);
        assert!(limiter.try_acquire(&both).unwrap().is_granted());
    });
}

#[test]
fn a_pause_is_never_made_shorter_and_is_lifted_by_who_resumes() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        assert_eq!(limiter.resume("a").unwrap(), None);
        pause(limiter, "a", 20 * SECOND);
        let kept = limiter.pause("a", Backoff::retry_after(SECOND)).unwrap();
        assert_eq!(
            denied(limiter, &Request::new().take("a", 1)).retry_at(),
            Some(kept.until())
        );
        clock.advance(5 * SECOND);
        let lifted = limiter.resume("a").unwrap().unwrap();
        assert_eq!(lifted.until(), kept.until());
        assert!(limiter.try_acquire("a").unwrap().is_granted());
        assert_eq!(limiter.resume("a").unwrap(), None);
    });
}

#[test]
fn absurd_times_are_cut_to_the_cap_of_the_limit() {
    in_both_stores(|limiter, _clock| {
        limiter.define(Limit::new("a").per_second(1)).unwrap();
        let policy = PausePolicy::default().cap(7 * SECOND);
        limiter
            .define(Limit::new("b").per_second(1).pauses(policy))
            .unwrap();
        for (key, cap) in [("a", 15 * MINUTE), ("b", 7 * SECOND)] {
            for length in [Duration::MAX, Duration::from_secs(1 << 40)] {
                let pause = limiter.pause(key, Backoff::retry_after(length)).unwrap();
                assert_eq!(pause.until().saturating_duration_since(pause.since()), cap);
            }
        }
        let error = limiter.pause("c", Backoff::strike()).unwrap_err();
        assert!(matches!(error, Error::UnknownLimit { key, .. } if key == "c"));
    });
}

#[test]
fn strikes_of_all_limiters_count_together_and_survive_who_saw_them() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("a").per_second(1)).unwrap();
    drop(limiter);
    let mut lengths = Vec::new();
    for _ in 0..4 {
        let limiter = open(&scratch, &clock);
        let pause = limiter.pause("a", Backoff::strike()).unwrap();
        let length = pause.until().saturating_duration_since(pause.since());
        lengths.push(length.as_secs());
        clock.advance(length);
    }
    assert_eq!(lengths, [60, 60, 120, 240]);
    clock.advance(300 * SECOND);
    let limiter = open(&scratch, &clock);
    let pause = limiter.pause("a", Backoff::strike()).unwrap();
    assert_eq!(pause.strikes(), 1);
}

#[test]
fn what_is_booked_before_the_end_is_moved_behind_it_in_its_order() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        let mut bookings: Vec<Booking> = (0..5).map(|_| limiter.book("a").unwrap()).collect();
        assert_eq!(waits(&mut bookings), [0, 1_000, 2_000, 3_000, 4_000]);
        clock.advance(500 * MS);
        // The first has gone, two of the others come before the end, and all keep their order.
        pause(limiter, "a", 2_200 * MS);
        assert_eq!(waits(&mut bookings), [0, 2_200, 3_200, 4_200, 5_200]);
        clock.advance(2_200 * MS);
        assert_eq!(waits(&mut bookings), [0, 0, 1_000, 2_000, 3_000]);
        // Nobody is let in between.
        let denial = denied(limiter, &Request::new().take("a", 1));
        assert_eq!(denial.retry_after(), Some(4 * SECOND));
    });
}

#[test]
fn what_is_booked_behind_the_end_stays_where_nothing_comes_before_it() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(brisk(Limit::new("a").per_minute(1)))
            .unwrap();
        let mut bookings: Vec<Booking> = (0..3).map(|_| limiter.book("a").unwrap()).collect();
        pause(limiter, "a", 20 * SECOND);
        assert_eq!(waits(&mut bookings), [0, 60_000, 120_000]);
    });
}

#[test]
fn what_was_moved_comes_forward_when_the_pause_is_lifted() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        let mut bookings: Vec<Booking> = (0..3).map(|_| limiter.book("a").unwrap()).collect();
        pause(limiter, "a", MINUTE);
        assert_eq!(waits(&mut bookings), [0, 60_000, 61_000]);
        clock.advance(10 * SECOND);
        limiter.resume("a").unwrap();
        // Always ahead of the present, if by no more than a nanosecond.
        assert_eq!(waits(&mut bookings), [0, 1, 1_001]);
        clock.advance(MS);
        assert_eq!(waits(&mut bookings), [0, 0, 1_000]);
    });
}

#[test]
fn a_booking_of_several_limits_is_moved_as_a_whole() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        limiter.define(Limit::new("b").rate(10, MINUTE)).unwrap();
        let both = Request::new().take("a", 1).take("b", 4);
        let mut bookings: Vec<Booking> = (0..2).map(|_| limiter.book(&both).unwrap()).collect();
        let mut other = limiter.book(("b", 6)).unwrap();
        assert_eq!(other.check().unwrap(), Some(MINUTE));
        pause(limiter, "a", 10 * SECOND);
        assert_eq!(waits(&mut bookings), [0, 10_000]);
        // What it left free of the other limit can be used, and what is booked there stays.
        assert_eq!(limiter.usage("b").unwrap().available(), 2);
        assert_eq!(other.check().unwrap(), Some(MINUTE));
        clock.advance(10 * SECOND);
        let permit = bookings.pop().unwrap().accept();
        permit.settle([("b", 1)]).unwrap();
        assert_eq!(limiter.usage("b").unwrap().rates()[0].used(), 5);
    });
}

#[test]
fn what_was_moved_is_settled_cancelled_and_dropped_where_it_is() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_minute(10)))
            .unwrap();
        limiter
            .define(brisk(Limit::new("bucket").burst(10).refill(1, SECOND)))
            .unwrap();
        for key in ["a", "bucket"] {
            let _now = limiter.acquire((key, 10)).unwrap();
            let [settled, cancelled, dropped] = [(); 3].map(|()| limiter.book((key, 3)).unwrap());
            let settled = settled.accept();
            pause(limiter, key, 5 * MINUTE);
            // It is free for the others, as if it had been taken from where it went.
            settled.settle([(key, 1)]).unwrap();
            cancelled.cancel().unwrap();
            drop(dropped);
            let mut all = limiter.book((key, 9)).unwrap();
            assert_eq!(all.check().unwrap(), Some(5 * MINUTE), "{key}");
            drop(all);
            limiter.resume(key).unwrap();
        }
        clock.advance(10 * MINUTE);
    });
}

#[test]
fn a_permit_with_an_id_follows_its_booking() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        let _now = limiter.acquire("a").unwrap();
        let ask = Request::new().take("a", 1).id("job");
        let booking = limiter.book(&ask).unwrap();
        let named_later = limiter.book("a").unwrap();
        pause(limiter, "a", 20 * SECOND);
        // Whoever asks again is told where it is now.
        let denial = denied(limiter, &ask);
        assert_eq!(denial.retry_after(), Some(20 * SECOND));
        let permit = named_later.accept();
        let id = permit.id().unwrap();
        clock.advance(30 * SECOND);
        assert_eq!(limiter.usage("a").unwrap().rates()[0].used(), 0);
        let permit = booking.wait().unwrap();
        assert_eq!(permit.waited(), 20 * SECOND);
        limiter.cancel(&id).unwrap();
        limiter.settle("job", [("a", 1)]).unwrap();
        assert_eq!(granted(limiter, "a"), 1);
    });
}

#[test]
fn who_waits_for_less_long_than_the_pause_is_told() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_second(1)))
            .unwrap();
        let _now = limiter.acquire("a").unwrap();
        let booking = limiter.book_within("a", 3 * SECOND).unwrap();
        let mut patient = limiter
            .book_until("a", booking.at().checked_add(MINUTE).unwrap())
            .unwrap();
        pause(limiter, "a", 10 * SECOND);
        clock.advance(SECOND);
        let error = booking.wait().unwrap_err();
        let Error::TooLate {
            denial, deadline, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((denial.key(), denial.is_paused()), ("a", true));
        assert_eq!(denial.retry_after(), Some(9 * SECOND));
        assert_eq!(deadline.saturating_duration_since(denial.now()), 2 * SECOND);
        // It was given back, but what stands behind it was promised its own instant.
        assert_eq!(patient.check().unwrap(), Some(10 * SECOND));
        let error = limiter.acquire_within("a", 3 * SECOND).unwrap_err();
        assert!(matches!(error, Error::TooLate { denial, .. } if denial.is_paused()));
    });
}

/// Sleeps on the real clock: what is tested is who is woken.
#[test]
fn whoever_waits_is_woken_when_the_pause_is_lifted_or_is_too_long() {
    let scratch = support::scratch();
    let other = Limiter::open(scratch.file()).unwrap();
    let pairs = [(Limiter::open(scratch.file()).unwrap(), other), {
        let memory = Limiter::in_memory().unwrap();
        (memory.clone(), memory)
    }];
    for (waiting, other) in pairs {
        waiting
            .define(brisk(Limit::new("a").rate(1, 300 * MS)))
            .unwrap();
        let _now = waiting.acquire("a").unwrap();
        let patient = waiting.book("a").unwrap();
        let hurried = waiting.book_within("a", MINUTE).unwrap();
        pause(&other, "a", 14 * MINUTE);
        let (sender, receiver) = channel();
        let too_late = sender.clone();
        thread::spawn(move || too_late.send(hurried.wait().map(|permit| permit.waited())));
        let told = receiver.recv_timeout(10 * SECOND).unwrap();
        assert!(matches!(told, Err(Error::TooLate { .. })), "{told:?}");
        thread::spawn(move || sender.send(patient.wait().map(|permit| permit.waited())));
        assert!(receiver.recv_timeout(100 * MS).is_err());
        other.resume("a").unwrap();
        let waited = receiver.recv_timeout(10 * SECOND).unwrap().unwrap();
        assert!(waited < 10 * SECOND, "{waited:?}");
    }
}

#[test]
fn who_waits_for_slots_waits_for_the_end_of_the_pause() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        let held = limiter.acquire("slots").unwrap();
        pause(limiter, "slots", 20 * SECOND);
        // Who holds them is unknown after it, and so is what is said of it.
        assert!(denied(limiter, &Request::new().take("slots", 1)).is_paused());
        let error = limiter.acquire_within("slots", SECOND).unwrap_err();
        assert!(matches!(error, Error::TooLate { .. }), "{error}");
        let (sender, receiver) = channel();
        let clone = limiter.clone();
        thread::spawn(move || sender.send(clone.acquire("slots").unwrap().waited()));
        while limiter.usage("slots").unwrap().waiting() == 0 {
            thread::sleep(MS);
        }
        drop(held);
        assert!(receiver.recv_timeout(50 * MS).is_err());
        clock.advance(20 * SECOND);
        assert_eq!(receiver.recv_timeout(10 * SECOND).unwrap(), 20 * SECOND);
    });
}

#[test]
fn a_limit_starts_with_part_of_its_rate_and_evenly() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("a").per_second(10).per_minute(300))
            .unwrap();
        let slowly = || {
            let usage = limiter.usage("a").unwrap();
            let until = usage.starts_slowly_until();
            until.map(|until| until.saturating_duration_since(usage.at()))
        };
        assert_eq!(slowly(), None);
        pause(limiter, "a", 20 * SECOND);
        assert_eq!(slowly(), None, "nobody is admitted at all");
        clock.advance(20 * SECOND);
        assert_eq!(slowly(), Some(MINUTE));
        // Half of 10 in the first second is 5, one each 200 ms.
        let mut in_first_second = 0;
        for _ in 0..5 {
            in_first_second += granted(limiter, "a");
            let denial = denied(limiter, &Request::new().take("a", 1));
            assert!(matches!(denial.obstacle(), Obstacle::SlowStart), "{denial}");
            assert_eq!(denial.retry_after(), Some(200 * MS));
            clock.advance(200 * MS);
        }
        assert_eq!(in_first_second, 5);
        // Half of 300 in the first minute is 150, fifteen each six seconds.
        let mut in_first_minute = in_first_second;
        for _ in 0..590 {
            in_first_minute += granted(limiter, "a");
            clock.advance(100 * MS);
        }
        assert_eq!(in_first_minute, 150);
        assert_eq!(slowly(), None);
        assert_eq!(granted(limiter, "a"), 10);
    });
}

#[test]
fn what_is_larger_than_a_part_of_a_slow_start_is_admitted_alone() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("tokens").per_minute(90_000))
            .unwrap();
        pause(limiter, "tokens", 20 * SECOND);
        clock.advance(20 * SECOND);
        // 4 500 in six seconds.
        assert_eq!(limiter.usage("tokens").unwrap().available(), 90_000);
        assert!(
            limiter
                .try_acquire(("tokens", 20_000))
                .unwrap()
                .is_granted()
        );
        assert_eq!(limiter.usage("tokens").unwrap().available(), 0);
        let denial = denied(limiter, &Request::new().take("tokens", 1));
        assert_eq!(denial.retry_after(), Some(6 * SECOND));
        clock.advance(6 * SECOND);
        assert!(limiter.try_acquire(("tokens", 4_000)).unwrap().is_granted());
        assert_eq!(limiter.usage("tokens").unwrap().available(), 500);
    });
}

#[test]
fn those_who_have_waited_do_not_come_at_one_instant() {
    in_both_stores(|limiter, _clock| {
        limiter.define(Limit::new("a").per_minute(300)).unwrap();
        pause(limiter, "a", 20 * SECOND);
        let mut bookings: Vec<Booking> = (0..100).map(|_| limiter.book("a").unwrap()).collect();
        let waits = waits(&mut bookings);
        let at_once = waits.iter().filter(|wait| **wait == 20_000).count();
        assert_eq!(at_once, 15);
        assert_eq!(waits[99], 20_000 + 6 * 6_000);
    });
}

#[test]
fn blocks_end_with_a_pause() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(brisk(Limit::new("a").per_minute(1_000)))
            .unwrap();
        let blocks = limiter.blocks("a", 100).unwrap();
        assert!(blocks.try_acquire().unwrap().is_granted());
        assert_eq!(limiter.usage("a").unwrap().rates()[0].used(), 100);
        pause(limiter, "a", 20 * SECOND);
        let denial = blocks.try_acquire().unwrap().denied().unwrap();
        assert!(denial.is_paused());
        // What was left of it came back.
        assert_eq!(limiter.usage("a").unwrap().rates()[0].used(), 1);
        clock.advance(20 * SECOND);
        assert!(blocks.try_acquire().unwrap().is_granted());
    });
}

#[test]
fn a_policy_is_part_of_the_definition() {
    let (scratch, limiter, clock) = on_file();
    let policy = PausePolicy::default()
        .first(5 * SECOND)
        .escalate(2, MINUTE)
        .slow_start(10);
    let limit = Limit::new("a")
        .per_second(10)
        .pauses(policy)
        .build()
        .unwrap();
    assert_eq!(
        limit.to_string(),
        "a: 10/s, pauses of 5s, doubled from 2 in 1min on, at most 15min, slow start 10 %"
    );
    limiter.define(&limit).unwrap();
    let other = open(&scratch, &clock);
    assert_eq!(other.limit("a").unwrap(), limit);
    assert_eq!(other.limit("a").unwrap().pauses(), policy);
    let plain = Limit::new("a").per_second(10).build().unwrap();
    assert!(matches!(other.define(&plain), Err(Error::Conflict { .. })));
    other.define_or(&plain, OnConflict::Replace).unwrap();
    assert_eq!(limiter.limit("a").unwrap(), plain);
}

#[test]
fn the_views_tell_who_is_paused() {
    let (scratch, limiter, _clock) = on_file();
    limiter.define(Limit::new("a").per_second(10)).unwrap();
    limiter.define(Limit::new("b").per_second(10)).unwrap();
    pause(&limiter, "a", 20 * SECOND);
    // The clock of the test is not that of the views, which is later: then the pause is over.
    let paused: String = scratch.sqlite(
        "SELECT group_concat(n.key || ' ' || p.strikes) FROM pause AS p JOIN named_limit AS n USING (limit_id)",
    );
    assert_eq!(paused, "a 1");
    let columns: i64 = scratch.sqlite("SELECT count(*) FROM status WHERE paused_until IS NULL");
    assert_eq!(columns, 2);
}

#[test]
fn what_does_not_matter_any_more_is_swept() {
    let (scratch, limiter, clock): (_, _, ManualClock) = on_file();
    limiter
        .define(Limit::pattern("tenant:*").per_second(100_000))
        .unwrap();
    pause(&limiter, "tenant:1", 20 * SECOND);
    let left = || -> i64 {
        scratch.sqlite("SELECT (SELECT count(*) FROM pause) + (SELECT count(*) FROM strike) + (SELECT count(*) FROM pattern_key WHERE key = 'tenant:1')")
    };
    assert_eq!(left(), 3);
    clock.advance(20 * SECOND + 5 * MINUTE);
    for _ in 0..2_000 {
        assert!(limiter.try_acquire("tenant:2").unwrap().is_granted());
    }
    assert_eq!(left(), 0);
}

#[test]
fn a_pattern_is_not_paused_as_if_it_were_a_key() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::pattern("u:*").per_minute(100))
            .unwrap();
        for error in [
            limiter.pause("u:*", Backoff::strike()).unwrap_err(),
            limiter.resume("u:*").unwrap_err(),
        ] {
            assert!(
                matches!(&error, Error::Request(RequestError::IsPattern { key }) if key == "u:*"),
                "{error}"
            );
        }
        pause(limiter, "u:1", SECOND);
        assert!(denied(limiter, &Request::new().take("u:1", 1)).is_paused());
        assert_eq!(granted(limiter, "u:2"), 100);
    });
}
