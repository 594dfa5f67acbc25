//! What histories, and the reading for them, have shown of permits with ids: each as short as it can be told.
mod support;

use std::cell::Cell;
use std::time::Duration;

use quotalite::{
    Error, HOUR, Limit, Limiter, MINUTE, ManualClock, OnConflict, Overage, Permit, Request,
    RequestError, SECOND, Settled,
};
use support::{Scratch, open, open_raw};

fn on_both(story: impl Fn(&Limiter, &ManualClock)) {
    support::in_both_stores(|limiter, clock| {
        define(limiter);
        story(limiter, clock);
    });
}

fn on_file() -> (Scratch, Limiter, ManualClock) {
    let (scratch, limiter, clock) = support::on_file();
    define(&limiter);
    (scratch, limiter, clock)
}

fn define(limiter: &Limiter) {
    limiter.define(Limit::slots("slots", 1)).unwrap();
    limiter
        .define(Limit::slots("timed", 1).timeout(SECOND))
        .unwrap();
    limiter
        .define(Limit::new("tokens").rate(100, MINUTE))
        .unwrap();
}

/// Whoever has permits or bookings in the file counts as dead from now on.
fn kill_all(scratch: &Scratch) {
    let connection = open_raw(&scratch.file());
    let kill = "UPDATE owner SET boot_id = 'another'";
    connection.execute(kill, []).unwrap();
}

fn get(limiter: &Limiter, ask: &Request) -> Permit {
    limiter.try_acquire(ask).unwrap().granted().unwrap()
}

fn tokens(amount: u64) -> Request {
    Request::new().take("tokens", amount)
}

fn free(limiter: &Limiter, key: &str) -> u64 {
    limiter.usage(key).unwrap().available()
}

fn settle(limiter: &Limiter, id: impl AsRef<str>) -> Settled {
    limiter.settle(id, [("tokens", 1)]).unwrap()
}

#[test]
fn a_permit_that_is_settled_gets_no_new_id_to_be_settled_under() {
    on_both(|limiter, _| {
        for detaches in [false, true] {
            let permit = get(limiter, &tokens(40));
            permit.settle([("tokens", 30)]).unwrap();
            let refused = if detaches {
                permit.detach(HOUR)
            } else {
                permit.id()
            };
            assert!(
                matches!(refused, Err(Error::Request(RequestError::Ended))),
                "{refused:?}"
            );
            assert_eq!(permit.renew(HOUR).unwrap(), None);
        }
        assert_eq!(free(limiter, "tokens"), 40);
    });
}

#[test]
fn a_permit_that_has_ended_keeps_its_id() {
    on_both(|limiter, _| {
        let ask = tokens(40).id("job");
        get(limiter, &ask).settle([("tokens", 30)]).unwrap();
        assert_eq!(get(limiter, &ask).id().unwrap().to_string(), "job");
    });
}

#[test]
fn asking_for_an_id_changes_nothing_about_a_timeout() {
    on_both(|limiter, clock| {
        let ask = tokens(10).take("timed", 1);
        let permit = get(limiter, &ask);
        let id = permit.id().unwrap();
        clock.advance(SECOND);
        assert_eq!(settle(limiter, &id), Settled::Expired);
        let late = get(limiter, &ask);
        clock.advance(SECOND);
        assert_eq!(free(limiter, "timed"), 1);
        let id = late.id().unwrap();
        assert_eq!(free(limiter, "timed"), 1);
        assert!(settle(limiter, &id).settlement().is_none());
    });
}

#[test]
fn what_has_timed_out_does_not_open_again_when_it_is_dropped() {
    on_both(|limiter, clock| {
        let permit = get(limiter, &tokens(10).take("timed", 1).id("job"));
        clock.advance(SECOND);
        drop(permit);
        assert_eq!(settle(limiter, "job"), Settled::Expired);
        assert_eq!(free(limiter, "tokens"), 90);
    });
}

#[test]
fn only_a_permit_that_has_a_timeout_can_be_renewed() {
    on_both(|limiter, clock| {
        let permit = get(limiter, &tokens(10).take("slots", 1).id("job"));
        assert_eq!(permit.renew(SECOND).unwrap(), None);
        assert_eq!(limiter.renew("job", SECOND).unwrap(), None);
        clock.advance(SECOND);
        assert_eq!(free(limiter, "slots"), 0);
        assert!(settle(limiter, "job").settlement().is_some());
    });
}

#[test]
fn an_id_is_remembered_for_an_hour_and_not_a_nanosecond_longer() {
    on_both(|limiter, clock| {
        let ask = tokens(10).take("timed", 1).id("timed out");
        let timed = get(limiter, &ask);
        get(limiter, &tokens(10).id("settled"))
            .settle([("tokens", 1)])
            .unwrap();
        clock.advance(HOUR.saturating_sub(Duration::from_nanos(1)));
        assert_eq!(settle(limiter, "settled"), Settled::Before);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(settle(limiter, "settled"), Settled::Unknown);
        clock.advance(SECOND.saturating_sub(Duration::from_nanos(1)));
        // However late its end is noticed.
        assert_eq!(timed.settle([("tokens", 1)]).unwrap(), Settled::Expired);
        assert_eq!(settle(limiter, "timed out"), Settled::Expired);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(settle(limiter, "timed out"), Settled::Unknown);
        assert_eq!(get(limiter, &ask).at(), limiter.now().unwrap());
    });
}

#[test]
fn what_was_cancelled_stays_cancelled_when_the_next_try_is_denied() {
    on_both(|limiter, _| {
        let ask = tokens(100).id("job");
        get(limiter, &ask).cancel().unwrap();
        drop(get(limiter, &tokens(1)));
        assert!(!limiter.try_acquire(&ask).unwrap().is_granted());
        assert_eq!(settle(limiter, "job"), Settled::Before);
    });
}

#[test]
fn the_slots_that_cannot_be_booked_are_named() {
    on_both(|limiter, _| {
        let ask = tokens(1).take("slots", 1).id("job");
        drop(get(limiter, &ask));
        match limiter.book(&ask) {
            Err(Error::Request(RequestError::NotBookable { key })) => assert_eq!(key, "slots"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn who_finds_the_place_of_another_gives_nothing_back_by_dropping_it() {
    on_both(|limiter, clock| {
        drop(get(limiter, &tokens(100)));
        let ask = tokens(100).id("job");
        let booking = limiter.book(&ask).unwrap();
        drop(limiter.book(&ask).unwrap());
        clock.advance(MINUTE);
        assert_eq!(free(limiter, "tokens"), 0);
        // Who says so gives it back for both.
        limiter.book(&ask).unwrap().cancel().unwrap();
        assert_eq!(free(limiter, "tokens"), 100);
        drop(booking);
    });
}

#[test]
fn who_waits_for_what_another_has_ended_does_not_go_ahead() {
    on_both(|limiter, clock| {
        for settles in [false, true] {
            drop(get(limiter, &tokens(100)));
            let ask = tokens(60).id("job");
            let [first, second] = [(), ()].map(|()| limiter.book(&ask).unwrap());
            if settles {
                assert!(settle(limiter, "job").settlement().is_some());
            } else {
                assert!(limiter.cancel("job").unwrap().settlement().is_some());
            }
            clock.advance(MINUTE);
            for waits in [first, second] {
                let refused = waits.wait();
                assert!(
                    matches!(refused, Err(Error::Request(RequestError::Ended))),
                    "{refused:?}"
                );
            }
            // Nothing was given back a second time.
            assert_eq!(free(limiter, "tokens"), 100 - u64::from(settles));
            clock.advance(MINUTE);
        }
        let plain = limiter.book(&tokens(100).id("whole")).unwrap();
        let behind = limiter.book(&tokens(1).id("behind")).unwrap();
        clock.advance(MINUTE);
        drop((plain.wait().unwrap(), behind.wait().unwrap()));
    });
}

#[test]
fn what_one_has_booked_and_another_settled_stays_charged_when_the_first_dies() {
    for detaches in [false, true] {
        let (scratch, limiter, clock) = on_file();
        drop(get(&limiter, &tokens(100)));
        let ask = tokens(60).id("job");
        let booking = limiter.book(&ask).unwrap();
        let other = open(&scratch, &clock);
        let second = other.book(&ask).unwrap().accept();
        if detaches {
            second.detach(HOUR).unwrap();
        } else {
            second.settle([("tokens", 60)]).unwrap();
        }
        kill_all(&scratch);
        assert!(other.book_within(&tokens(100), SECOND).is_err());
        clock.advance(MINUTE);
        assert_eq!(free(&other, "tokens"), 40);
        assert_eq!(settle(&other, "job").settlement().is_some(), detaches);
        assert_eq!(free(&other, "tokens"), if detaches { 99 } else { 40 });
        drop(booking);
    }
}

#[test]
fn what_was_booked_under_an_id_and_dropped_stays_charged_when_its_process_dies() {
    let (scratch, limiter, clock) = on_file();
    drop(get(&limiter, &tokens(100)));
    let ask = tokens(60).id("job");
    drop(limiter.book(&ask).unwrap().accept());
    kill_all(&scratch);
    let other = open(&scratch, &clock);
    let again = other.book(&ask).unwrap();
    assert_eq!(again.wait_time(), MINUTE);
    let permit = {
        clock.advance(MINUTE);
        again.accept()
    };
    assert_eq!(free(&other, "tokens"), 40);
    drop(permit);
}

#[test]
fn what_was_used_is_not_charged_again_when_a_boot_comes_up_a_little_earlier() {
    let (scratch, limiter, clock) = on_file();
    // Half a second is not enough for the file to note how far time has come.
    clock.advance(Duration::from_millis(500));
    let ask = tokens(60).id("job");
    let permit = get(&limiter, &ask);
    let at = permit.at();
    std::mem::forget(permit);
    clock.reboot(Duration::ZERO);
    clock.set_wall(std::time::UNIX_EPOCH);
    let other = open(&scratch, &clock);
    assert!(other.now().unwrap() < at);
    let denial = other.try_acquire(&ask).unwrap().denied().unwrap();
    assert_eq!(denial.retry_at(), Some(at));
    drop(other.book(&ask).unwrap().accept());
    clock.advance(SECOND);
    assert_eq!(free(&other, "tokens"), 40);
}

fn settle_tokens(limiter: &Limiter, id: impl AsRef<str>, used: u64) -> (u64, u64) {
    let settled = limiter.settle(id, [("tokens", used)]).unwrap();
    let amount = settled.settlement().unwrap().amount("tokens").unwrap();
    (amount.estimated(), amount.charged())
}

#[test]
fn what_was_used_beyond_a_booking_is_taken_from_a_bucket_when_that_is_said() {
    on_both(|limiter, clock| {
        let bucket = Limit::new("bucket").burst(10).refill(1, SECOND);
        limiter.define(bucket.overage(Overage::Charge)).unwrap();
        drop(get(limiter, &Request::new().take("bucket", 10)));
        let permit = limiter.book(("bucket", 1)).unwrap().accept();
        // It has long filled again, and nobody has looked since the booking came due.
        clock.advance(MINUTE);
        permit.settle([("bucket", 8)]).unwrap();
        assert_eq!(free(limiter, "bucket"), 3);
        clock.advance(MINUTE);
        let permit = limiter.book(("bucket", 10)).unwrap();
        let next = limiter.book(("bucket", 4)).unwrap();
        clock.advance(4 * SECOND);
        // It had 4 s to fill before the next one, without this one it would have been full then.
        drop(permit);
        assert_eq!(free(limiter, "bucket"), 6);
        drop(next);
        assert_eq!(free(limiter, "bucket"), 10);
    });
}

#[test]
fn what_was_removed_can_be_named_by_who_settles_under_an_id() {
    on_both(|limiter, _| {
        let permit = get(limiter, &tokens(10));
        let id = permit.id().unwrap();
        limiter.force_remove("tokens").unwrap();
        assert_eq!(settle_tokens(limiter, id, 10), (10, 0));
    });
}

#[test]
fn what_was_used_beyond_an_idle_key_of_a_pattern_is_taken_from_its_own_bucket() {
    on_both(|limiter, clock| {
        let pattern = Limit::pattern("u:*").burst(10).refill(1, SECOND);
        limiter.define(pattern).unwrap();
        let permit = get(limiter, &Request::new().take("u:1", 5));
        clock.advance(MINUTE);
        // The next acquisitions sweep the key, whose bucket is full.
        for _ in 0..300 {
            drop(get(limiter, &tokens(1)));
            clock.advance(SECOND);
        }
        permit.settle([("u:1", 20)]).unwrap();
        assert_eq!(free(limiter, "u:1"), 0);
        assert_eq!(free(limiter, "u:2"), 10);
        assert_eq!(limiter.usage("u:1").unwrap().debt(), 5);
    });
}

#[test]
fn a_pattern_is_in_use_while_what_was_booked_and_settled_lies_ahead() {
    on_both(|limiter, _| {
        limiter
            .define(Limit::pattern("t:*").rate(1, MINUTE))
            .unwrap();
        drop(get(limiter, &Request::new().take("t:1", 1)));
        let permit = limiter.book("t:1").unwrap().accept();
        permit.settle([("t:1", 1)]).unwrap();
        let refused = limiter.remove("t:*");
        assert!(
            matches!(&refused, Err(Error::InUse { by, .. }) if by.bookings == 1),
            "{refused:?}"
        );
    });
}

#[test]
fn what_is_missing_in_a_bucket_stays_missing_when_another_definition_takes_over() {
    on_both(|limiter, clock| {
        let bucket = |refill, per| Limit::pattern("u:*").burst(12).refill(refill, per);
        limiter.define(bucket(1, SECOND)).unwrap();
        drop(get(limiter, &Request::new().take("u:1", 12)));
        // Its own definition takes over what the pattern has charged.
        limiter
            .define(Limit::new("u:1").burst(12).refill(2, SECOND))
            .unwrap();
        clock.advance(3 * SECOND);
        assert_eq!(free(limiter, "u:1"), 6);
        // The pattern is changed twice while nobody looks.
        drop(get(limiter, &Request::new().take("u:2", 12)));
        for refill in [4, 1] {
            let replaced = bucket(refill, SECOND);
            limiter
                .define_or(replaced, quotalite::OnConflict::Replace)
                .unwrap();
            clock.advance(SECOND);
        }
        assert_eq!(free(limiter, "u:2"), 5);
    });
}

#[test]
fn what_comes_due_in_a_bucket_is_poured_by_the_terms_of_its_time() {
    const MS: Duration = Duration::from_millis(1);
    // A key of its own, and one of a pattern, which nobody looks at while that is changed.
    for changes in [1, 2] {
        let ends = ["u:1", "u:*"].map(|key| {
            let end = Cell::new(None);
            on_both(|limiter, clock| {
                let define = |burst, refill, per| {
                    let is_pattern = key.ends_with('*');
                    let builder = if is_pattern {
                        Limit::pattern(key)
                    } else {
                        Limit::new(key)
                    };
                    let limit = builder.burst(burst).refill(refill, per);
                    limiter.define_or(limit, OnConflict::Replace).unwrap();
                };
                define(2, 2, 3 * MS);
                drop(get(limiter, &Request::new().take("u:1", 1)));
                let start = limiter.now().unwrap();
                // Due after 1.5 ms, when the one has run out.
                let booking = limiter.book(&Request::new().take("u:1", 2)).unwrap();
                assert_eq!(limiter.now().unwrap(), start);
                clock.advance(MS * 27 / 16);
                drop(booking.accept());
                if changes == 2 {
                    define(1, 1, 300 * MS);
                }
                define(1, 1, 3 * MS);
                let usage = limiter.usage("u:1").unwrap();
                let bucket = usage.bucket().unwrap();
                let next = bucket
                    .next_release()
                    .unwrap()
                    .saturating_duration_since(start);
                // Of the two, 1/8 has run out.
                assert_eq!((bucket.used(), next), (2, MS * 69 / 16), "{key}");
                end.set(Some(next));
            });
            end.get().unwrap()
        });
        assert_eq!(ends[0], ends[1]);
    }
}

#[test]
fn a_pattern_that_was_removed_begins_anew() {
    on_both(|limiter, _| {
        for kind in [
            Limit::pattern("t:*").rate(1, MINUTE),
            Limit::pattern("t:*").slots(1),
            Limit::pattern("t:*").burst(1).refill(1, MINUTE),
        ] {
            limiter.define(kind.clone()).unwrap();
            let held = get(limiter, &Request::new().take("t:1", 1));
            limiter.force_remove("t:*").unwrap();
            limiter.define(kind).unwrap();
            assert_eq!(free(limiter, "t:1"), 1);
            drop(held);
            limiter.force_remove("t:*").unwrap();
        }
    });
}

#[test]
fn a_permit_of_what_was_removed_changes_nothing_of_the_pattern_that_follows() {
    on_both(|limiter, _| {
        let bucket = |builder: quotalite::LimitBuilder| builder.burst(10).refill(1, MINUTE);
        limiter.define(bucket(Limit::new("u:1"))).unwrap();
        limiter.define(bucket(Limit::pattern("u:*"))).unwrap();
        let permit = get(limiter, &Request::new().take("u:1", 10));
        limiter.remove("u:1").unwrap();
        drop(get(limiter, &Request::new().take("u:1", 10)));
        permit.cancel().unwrap();
        assert_eq!(free(limiter, "u:1"), 0);
    });
}

#[test]
fn a_permit_of_an_idle_key_is_settled_by_the_definition_that_follows() {
    on_both(|limiter, clock| {
        let bucket = |builder: quotalite::LimitBuilder| builder.burst(10).refill(1, SECOND);
        limiter.define(bucket(Limit::pattern("u:*"))).unwrap();
        let permit = get(limiter, &Request::new().take("u:1", 5));
        clock.advance(MINUTE);
        for _ in 0..300 {
            drop(get(limiter, &tokens(1)));
            clock.advance(SECOND);
        }
        limiter.define(bucket(Limit::new("u:1"))).unwrap();
        permit.settle([("u:1", 9)]).unwrap();
        assert_eq!(free(limiter, "u:1"), 6);
    });
}

#[test]
fn a_permit_under_an_id_holds_no_slots_of_a_limit_that_was_removed_since() {
    support::in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("gpu", 1)).unwrap();
        let ask = Request::new().take("gpu", 1).id("job");
        let permit = limiter.try_acquire(&ask).unwrap().granted().unwrap();
        assert!(permit.fence().is_some());
        limiter.force_remove("gpu").unwrap();
        limiter.define(Limit::slots("gpu", 1)).unwrap();
        let again = limiter.try_acquire(&ask).unwrap().granted().unwrap();
        assert!(again.is_resumed());
        assert_eq!(again.fence(), None);
    });
}
