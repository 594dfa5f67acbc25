//! Requests that are made again under their ids, on both stores: whoever retries is charged once.
mod support;

use std::time::Duration;

use quotalite::{Error, Limit, Limiter, MINUTE, Permit, Request, RequestError, SECOND, Settled};
use support::{in_both_stores, on_file, open};

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
        drop(other.wait().unwrap());
        assert_eq!(free(limiter).1, 0);
    });
}

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
        let second = second.wait().unwrap();
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
    let settled = booked.wait().unwrap().settle([("tokens", 1)]).unwrap();
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
        drop(booked.wait().unwrap());
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
