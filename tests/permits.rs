//! Permits that are known by an id, on both stores: handed over, detached, renewed, and asked for twice.
mod support;

use std::time::Duration;

use quotalite::{
    Error, HOUR, Limit, Limiter, MINUTE, ManualClock, Permit, Request, RequestError, SECOND,
    Settled,
};
use support::{Scratch, in_both_stores, on_file};

const NANO: Duration = Duration::from_nanos(1);

fn open(scratch: &Scratch, clock: &ManualClock) -> Limiter {
    Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap()
}

fn define(limiter: &Limiter) {
    limiter.define(Limit::slots("slots", 1)).unwrap();
    limiter
        .define(Limit::new("tokens").rate(100, MINUTE))
        .unwrap();
}

fn ask() -> Request {
    Request::new().take("slots", 1).take("tokens", 60)
}

fn get(limiter: &Limiter, ask: &Request) -> Permit {
    limiter.try_acquire(ask).unwrap().granted().unwrap()
}

fn free(limiter: &Limiter) -> (u64, u64) {
    let free = |key| limiter.usage(key).unwrap().available();
    (free("slots"), free("tokens"))
}

#[test]
fn anybody_can_settle_or_cancel_a_permit_by_its_id_once() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let permit = get(limiter, &ask());
        let id = permit.id().unwrap();
        assert_eq!(id.to_string().len(), 26, "a ULID");
        assert_eq!(permit.id().unwrap(), id);
        assert_eq!(free(limiter), (0, 40));
        let settled = limiter.settle(&id, [("tokens", 10)]).unwrap();
        assert_eq!(settled.settlement().unwrap().amounts()[0].estimated(), 60);
        assert_eq!(free(limiter), (1, 90));
        // Its holder, and everybody else, comes too late.
        assert_eq!(permit.settle([("tokens", 1)]).unwrap(), Settled::Before);
        assert_eq!(limiter.cancel(&id).unwrap(), Settled::Before);
        drop(permit);
        assert_eq!(free(limiter), (1, 90));

        clock.advance(MINUTE);
        let permit = get(limiter, &ask());
        let other = permit.id().unwrap();
        assert_ne!(other, id);
        assert!(limiter.cancel(&other).unwrap().settlement().is_some());
        assert_eq!(permit.cancel().unwrap(), Settled::Before);
        assert_eq!(free(limiter), (1, 100));
        assert_eq!(
            limiter.settle("nobody", [("tokens", 1)]).unwrap(),
            Settled::Unknown
        );
        assert_eq!(limiter.renew("nobody", MINUTE).unwrap(), None);
    });
}

#[test]
fn what_is_wrongly_said_of_a_permit_is_refused_whether_it_has_ended_or_not() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let permit = get(limiter, &ask().id("a"));
        for _ in 0..2 {
            let refused = permit.settle([("mail", 1)]);
            assert!(
                matches!(&refused, Err(Error::Request(RequestError::NotTaken { key })) if key == "mail"),
                "{refused:?}"
            );
            limiter.cancel("a").unwrap();
        }
        assert_eq!(free(limiter), (1, 100));
    });
}

#[test]
fn an_id_is_forgotten_an_hour_after_its_permit_has_ended() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter);
    let permit = get(&limiter, &ask());
    let id = permit.id().unwrap();
    permit.settle([("tokens", 1)]).unwrap();
    clock.advance(HOUR);
    // Sweeping comes by once in a while.
    for _ in 0..300 {
        clock.advance(SECOND);
        drop(limiter.acquire("tokens").unwrap());
    }
    assert_eq!(limiter.cancel(&id).unwrap(), Settled::Unknown);
    assert_eq!(
        scratch.sqlite::<i64>("SELECT count(*) FROM ended_permit"),
        0
    );
    assert_eq!(
        scratch.sqlite::<i64>("SELECT count(*) FROM permit_charge"),
        0
    );
    assert!(scratch.sqlite::<i64>("SELECT count(*) FROM permit") <= 1);
}

#[test]
fn a_detached_permit_outlives_its_limiter_until_its_timeout() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter);
    let id = get(&limiter, &ask()).detach(HOUR).unwrap();
    drop(limiter);
    let limiter = open(&scratch, &clock);
    clock.advance(MINUTE);
    assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    clock.advance((59 * MINUTE).saturating_sub(NANO));
    assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    clock.advance(NANO);
    assert!(limiter.try_acquire("slots").unwrap().is_granted());
    assert_eq!(
        limiter.settle(&id, [("tokens", 1)]).unwrap(),
        Settled::Expired
    );
}

#[test]
fn a_detached_permit_can_be_renewed_and_settled() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let permit = get(limiter, &ask());
        let id = permit.detach(SECOND).unwrap();
        drop(permit);
        assert_eq!(free(limiter), (0, 40));
        let now = limiter.now().unwrap();
        assert_eq!(
            limiter.renew(&id, 2 * SECOND).unwrap(),
            now.checked_add(2 * SECOND)
        );
        clock.advance((2 * SECOND).saturating_sub(NANO));
        assert_eq!(free(limiter), (0, 40));
        assert!(
            limiter
                .settle(&id, [("tokens", 70)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(free(limiter), (1, 30));
        assert_eq!(limiter.renew(&id, SECOND).unwrap(), None);
    });
}

#[test]
fn renewing_keeps_a_slot_beyond_its_timeout() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::slots("slots", 1).timeout(SECOND))
            .unwrap();
        let permit = limiter.acquire("slots").unwrap();
        for _ in 0..5 {
            clock.advance(SECOND / 2);
            assert!(permit.renew(SECOND).unwrap().is_some());
            assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        }
        clock.advance(SECOND);
        let next = limiter.try_acquire("slots").unwrap().granted().unwrap();
        assert_eq!(permit.renew(SECOND).unwrap(), None);
        drop(permit);
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        drop(next);
    });
}

#[test]
fn what_has_ended_gets_no_id_any_more() {
    in_both_stores(|limiter, _| {
        define(limiter);
        for permit in [
            limiter.acquire(("tokens", 10)).unwrap(),
            get(limiter, &Request::new().take("slots", 1).take("tokens", 10)),
        ] {
            assert!(!permit.has_ended());
            permit.settle([("tokens", 1)]).unwrap();
            assert!(permit.has_ended());
            for refused in [permit.id(), permit.detach(HOUR)] {
                assert!(
                    matches!(refused, Err(Error::Request(RequestError::Ended))),
                    "{refused:?}"
                );
            }
        }
        assert_eq!(free(limiter), (1, 98));
    });
}

#[test]
fn a_detached_permit_can_still_be_settled_by_who_has_it() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let permit = get(limiter, &ask());
        let id = permit.detach(SECOND).unwrap();
        assert_eq!(permit.detach(HOUR).unwrap(), id);
        clock.advance(59 * SECOND);
        assert_eq!(free(limiter).0, 0);
        assert!(!permit.has_ended());
        assert!(
            permit
                .settle([("tokens", 1)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(limiter.cancel(&id).unwrap(), Settled::Before);
        assert_eq!(free(limiter), (1, 99));
    });
}

#[test]
fn slots_that_are_taken_again_get_a_larger_fence() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let first = get(limiter, &ask().id("job"));
        assert!(!first.is_resumed());
        let fence = first.fence();
        drop(first);
        clock.advance(SECOND);
        let other = limiter.acquire("slots").unwrap();
        assert!(other.fence() > fence);
        let fence = other.fence();
        drop(other);
        let again = get(limiter, &ask().id("job"));
        assert!(again.is_resumed());
        assert!(again.fence() > fence);
        assert!(
            again
                .settle([("tokens", 2)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(free(limiter), (1, 98));
        let ended = get(limiter, &ask().id("job"));
        assert!(ended.is_resumed() && ended.has_ended());
    });
}

#[test]
fn only_what_ends_by_itself_can_be_renewed() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let permit = get(limiter, &ask().id("job"));
        assert_eq!(permit.renew(SECOND).unwrap(), None);
        assert_eq!(limiter.renew("job", SECOND).unwrap(), None);
        clock.advance(2 * SECOND);
        assert_eq!(free(limiter), (0, 40));
        let plain = limiter.acquire(("tokens", 1)).unwrap();
        assert_eq!(plain.renew(SECOND).unwrap(), None);
        drop(permit);
        assert!(limiter.renew("job", 2 * HOUR).unwrap().is_some());
    });
}

#[test]
fn an_id_that_comes_too_late_stands_for_nothing() {
    let (scratch, limiter, clock) = on_file();
    limiter
        .define(Limit::slots("slots", 1).timeout(SECOND))
        .unwrap();
    limiter
        .define(Limit::new("tokens").rate(100, MINUTE))
        .unwrap();
    let late = get(&limiter, &ask());
    clock.advance(SECOND);
    let next = limiter.acquire("slots").unwrap();
    // Sweeping comes by once in a while.
    for _ in 0..200 {
        drop(limiter.try_acquire("tokens").unwrap());
        clock.advance(SECOND / 4);
        next.renew(SECOND).unwrap();
    }
    let id = late.id().unwrap();
    assert_eq!(
        limiter.settle(&id, [("tokens", 1)]).unwrap(),
        Settled::Unknown
    );
    assert_eq!(late.settle([("tokens", 1)]).unwrap(), Settled::Expired);
    assert_eq!(
        scratch.sqlite::<i64>("SELECT count(*) FROM permit_charge"),
        0
    );
}

/// Its charge would be given back when the process dies, and then be somebody else's.
#[test]
fn a_booked_permit_with_an_id_that_is_dropped_stays_charged() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter);
    drop(limiter.acquire(("tokens", 100)).unwrap());
    let ask = Request::new().take("tokens", 30).id("later");
    drop(limiter.book(&ask).unwrap().accept());
    drop(limiter);
    let other = open(&scratch, &clock);
    assert!(!other.try_acquire("tokens").unwrap().is_granted());
    let booked = other.book(("tokens", 80)).unwrap();
    assert_eq!(booked.wait_time(), 2 * MINUTE);
    let settled = other.settle("later", [("tokens", 10)]).unwrap();
    assert_eq!(settled.settlement().unwrap().amounts()[0].charged(), 10);
    clock.advance(MINUTE);
    assert_eq!(free(&other).1, 90);
}

#[test]
fn the_same_id_and_request_are_charged_once() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let named = || ask().id("job 17");
        let permit = get(limiter, &named());
        assert_eq!(permit.id().unwrap().to_string(), "job 17");
        clock.advance(SECOND);
        let again = get(limiter, &named());
        assert_eq!(again.at(), permit.at());
        assert_eq!(again.fence(), permit.fence());
        // The second handle holds nothing by itself.
        drop(again);
        assert_eq!(free(limiter), (0, 40));
        permit.settle([("tokens", 20)]).unwrap();
        assert_eq!(free(limiter), (1, 80));
        // It is the same permit still, and it is settled.
        let late = get(limiter, &named());
        assert_eq!(late.at(), permit.at());
        assert_eq!(late.settle([("tokens", 1)]).unwrap(), Settled::Before);
        assert_eq!(free(limiter), (1, 80));
    });
}

#[test]
fn an_id_stands_for_one_request() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let permit = get(limiter, &ask().id("job"));
        for other in [
            Request::new().take("tokens", 60).id("job"),
            ask().take("more", 1).id("job"),
            Request::new().take("slots", 1).take("tokens", 61).id("job"),
        ] {
            limiter.define(Limit::new("more").per_second(1)).unwrap();
            match limiter.try_acquire(&other) {
                Err(Error::IdTaken { id, stored, .. }) => {
                    assert_eq!(
                        (id.as_str(), stored.as_str()),
                        ("job", "1 slots, 60 tokens")
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        // The order does not matter.
        let turned = Request::new().take("tokens", 60).take("slots", 1).id("job");
        assert_eq!(get(limiter, &turned).at(), permit.at());
        assert_eq!(free(limiter), (0, 40));
    });
}

#[test]
fn what_was_cancelled_under_an_id_is_charged_anew() {
    in_both_stores(|limiter, _| {
        define(limiter);
        get(limiter, &ask().id("job")).cancel().unwrap();
        assert_eq!(free(limiter), (1, 100));
        let permit = get(limiter, &ask().id("job"));
        assert_eq!(free(limiter), (0, 40));
        permit.settle([("tokens", 5)]).unwrap();
        assert_eq!(free(limiter), (1, 95));
    });
}

#[test]
fn a_permit_that_was_dropped_is_taken_up_again_under_its_id() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let first = get(limiter, &ask().id("job"));
        let at = first.at();
        drop(first);
        // Its slot came back, its charge stands.
        assert_eq!(free(limiter), (1, 40));
        clock.advance(SECOND);
        let other = limiter.acquire("slots").unwrap();
        assert!(!limiter.try_acquire(&ask().id("job")).unwrap().is_granted());
        drop(other);
        let again = get(limiter, &ask().id("job"));
        assert_eq!(again.at(), at);
        assert_eq!(free(limiter), (0, 40));
        again.settle([("tokens", 1)]).unwrap();
        assert_eq!(free(limiter), (1, 99));
    });
}

#[test]
fn a_dropped_permit_with_an_id_can_be_settled_by_others() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let permit = get(limiter, &ask());
        let id = permit.id().unwrap();
        drop(permit);
        assert_eq!(free(limiter), (1, 40));
        assert!(
            limiter
                .settle(&id, [("tokens", 6)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(free(limiter), (1, 94));
    });
}

#[test]
fn booked_ahead_under_an_id() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        drop(limiter.acquire(("tokens", 100)).unwrap());
        let ask = Request::new().take("tokens", 30).id("later");
        let booked = limiter.book(&ask).unwrap();
        assert_eq!(booked.wait_time(), MINUTE);
        let again = limiter.book(&ask).unwrap();
        assert_eq!((again.at(), again.wait_time()), (booked.at(), MINUTE));
        // Cancelled by somebody else, the place is free for others.
        assert!(limiter.cancel("later").unwrap().settlement().is_some());
        let other = limiter.book(("tokens", 100)).unwrap();
        assert_eq!(other.wait_time(), MINUTE);
        drop((booked, again));
        clock.advance(MINUTE);
        drop(other.wait());
        assert_eq!(free(limiter).1, 0);
    });
}

/// Whoever asked first may go ahead with it, or has done so.
#[test]
fn a_booking_that_takes_up_an_earlier_permit_gives_it_back_only_when_told_to() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let ask = Request::new().take("tokens", 60).id("a");
        drop(get(limiter, &ask));
        let again = limiter.book(&ask).unwrap();
        assert!(again.wait_time().is_zero());
        drop(again);
        assert_eq!(free(limiter), (1, 40));
        // Only who says so gives it back.
        limiter.book(&ask).unwrap().cancel().unwrap();
        assert_eq!(free(limiter), (1, 100));

        // The same for one that is still ahead.
        drop(get(limiter, &Request::new().take("tokens", 60)));
        let ask = ask.id("b");
        drop(limiter.book(&ask).unwrap().accept());
        let again = limiter.book(&ask).unwrap();
        assert_eq!(again.wait_time(), MINUTE);
        drop(again);
        clock.advance(MINUTE);
        assert_eq!(free(limiter), (1, 40));
    });
}

/// Two callers retry one job.
#[test]
fn nobody_goes_on_a_booking_that_whoever_asked_first_has_dropped() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        drop(limiter.acquire(("tokens", 100)).unwrap());
        let ask = Request::new().take("tokens", 100).id("job");
        let (first, second) = (limiter.book(&ask).unwrap(), limiter.book(&ask).unwrap());
        drop(first);
        let other = limiter.book(("tokens", 100)).unwrap();
        assert_eq!(
            (second.wait_time(), other.wait_time()),
            (MINUTE, 2 * MINUTE)
        );
        clock.advance(MINUTE);
        let second = second.wait();
        assert!(!second.has_ended());
        assert!(matches!(
            second.settle([("tokens", 40)]),
            Ok(Settled::Now(_))
        ));
        drop(other);
        assert_eq!(free(limiter).1, 60);
    });
}

#[test]
fn nobody_goes_on_a_booking_of_a_process_that_has_died() {
    let (scratch, first, clock) = on_file();
    define(&first);
    drop(first.acquire(("tokens", 100)).unwrap());
    let ask = Request::new().take("tokens", 100).id("job");
    let _lost = first.book(&ask).unwrap();
    let second = open(&scratch, &clock);
    let booked = second.book(&ask).unwrap();
    // As if the first one were of a boot that is over.
    let killed = "UPDATE owner SET boot_id = 'another' WHERE owner_id = 1";
    support::open_raw(&scratch.file())
        .execute(killed, [])
        .unwrap();
    let other = open(&scratch, &clock).book(("tokens", 100)).unwrap();
    assert_eq!(
        (booked.wait_time(), other.wait_time()),
        (MINUTE, 2 * MINUTE)
    );
    clock.advance(MINUTE);
    let settled = booked.wait().settle([("tokens", 1)]).unwrap();
    assert!(matches!(settled, Settled::Now(_)), "{settled:?}");
}

#[test]
fn a_place_in_line_under_an_id_is_no_permit_to_go_now() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        drop(limiter.acquire(("tokens", 100)).unwrap());
        let ask = Request::new().take("tokens", 30).id("later");
        let booked = limiter.book(&ask).unwrap();
        let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
        assert_eq!(denial.retry_at(), Some(booked.at()));
        let refused = limiter.acquire_within(&ask, 59 * SECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        clock.advance(MINUTE);
        assert_eq!(get(limiter, &ask).at(), booked.at());
        drop(booked.wait());
    });
}

#[test]
fn bad_ids_are_refused() {
    in_both_stores(|limiter, _| {
        define(limiter);
        for id in ["", "a\nb", &"x".repeat(129)] {
            match limiter.try_acquire(&ask().id(id)) {
                Err(Error::Request(RequestError::Id { bytes })) => assert_eq!(bytes, id.len()),
                other => panic!("{other:?}"),
            }
        }
        drop(get(limiter, &ask().id("x".repeat(128))));
    });
}

#[test]
fn two_who_wait_for_the_same_under_one_id_get_one_permit_and_both_leave_the_line() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let held = limiter.acquire("slots").unwrap();
        let answers: Vec<_> = (0..2)
            .map(|_| {
                let limiter = limiter.clone();
                std::thread::spawn(move || limiter.acquire(&ask().id("job")).unwrap())
            })
            .collect();
        let deadline = std::time::Instant::now() + 20 * SECOND;
        while limiter.usage("slots").unwrap().waiting() < 2 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(held);
        let permits: Vec<Permit> = answers
            .into_iter()
            .map(|answer| answer.join().unwrap())
            .collect();
        assert_eq!(permits[0].fence(), permits[1].fence());
        assert_eq!(limiter.usage("slots").unwrap().waiting(), 0);
        assert_eq!(free(limiter), (0, 40));
        drop(permits);
        assert_eq!(free(limiter), (1, 40));
    });
}

#[test]
fn a_permit_that_somebody_else_has_detached_outlives_the_first_handle_on_it() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let first = get(limiter, &ask().id("job"));
        let second = get(limiter, &ask().id("job"));
        second.detach(24 * HOUR).unwrap();
        drop(first);
        assert_eq!(free(limiter), (0, 40));
        clock.advance(23 * HOUR);
        let settled = limiter.settle("job", [("tokens", 1)]).unwrap();
        assert!(settled.settlement().is_some(), "{settled:?}");
        assert_eq!(free(limiter).0, 1);
    });
}

#[test]
fn what_ends_by_itself_does_not_pile_up() {
    let (scratch, limiter, clock) = on_file();
    let slots = Limit::slots("slots", 1).timeout(SECOND);
    limiter.define(slots).unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    for n in 0..3_000 {
        std::mem::forget(get(&limiter, &Request::new().take("slots", 1)));
        drop(get(
            &limiter,
            &Request::new().take("mail", 1).id(n.to_string()),
        ));
        clock.advance(4 * SECOND);
    }
    // Those of the last hour can still be settled under their ids.
    let kept: i64 = scratch.sqlite("SELECT count(*) FROM permit");
    assert!((900..900 + 256).contains(&kept), "{kept}");
    let slots: i64 = scratch.sqlite("SELECT count(*) FROM slot");
    assert!(slots < 256, "{slots}");
}
