//! Waiting in line for slots, on both stores and a clock that stands still.
mod support;

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use quotalite::{Error, Limit, Limiter, MINUTE, OnConflict, Permit, Request, RequestError, SECOND};
use support::in_both_stores;

type Answer = Result<Permit, Error>;

/// Lets a thread wait, and returns once it is in line.
fn wait(
    limiter: &Limiter,
    key: &str,
    act: impl FnOnce(&Limiter) -> Answer + Send + 'static,
) -> Receiver<Answer> {
    let before = limiter.usage(key).unwrap().waiting();
    let (sender, receiver) = channel();
    let clone = limiter.clone();
    thread::spawn(move || drop(sender.send(act(&clone))));
    until("it waits in line", || {
        limiter.usage(key).unwrap().waiting() > before
    });
    receiver
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn get(answers: &Receiver<Answer>) -> Permit {
    let answer = answers.recv_timeout(Duration::from_secs(20));
    answer.expect("it was served").unwrap()
}

/// Still waits after a while that is long for those who can go.
fn assert_waits(answers: &Receiver<Answer>) {
    assert!(answers.recv_timeout(Duration::from_millis(30)).is_err());
}

fn slots(count: u64) -> Request {
    Request::new().take("slots", count)
}

#[test]
fn who_comes_first_is_served_first() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        let mut held = limiter.acquire("slots").unwrap();
        let line: Vec<_> = (0..4)
            .map(|_| wait(limiter, "slots", |limiter| limiter.acquire("slots")))
            .collect();
        assert_eq!(limiter.usage("slots").unwrap().waiting(), 4);
        clock.advance(SECOND);
        for (place, next) in line.iter().enumerate() {
            assert!(!limiter.try_acquire("slots").unwrap().is_granted());
            drop(held);
            held = get(next);
            assert_eq!(held.waited(), SECOND);
            for later in &line[place + 1..] {
                assert!(later.try_recv().is_err(), "somebody has overtaken");
            }
        }
        drop(held);
        assert_eq!(limiter.usage("slots").unwrap().waiting(), 0);
        assert!(limiter.try_acquire("slots").unwrap().is_granted());
    });
}

#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 3)).unwrap();
        let (one, two) = (
            limiter.acquire("slots").unwrap(),
            limiter.acquire("slots").unwrap(),
        );
        let large = wait(limiter, "slots", |limiter| limiter.acquire(&slots(3)));
        // One is free, but it is kept for who came first.
        let denial = limiter.try_acquire("slots").unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), None);
        assert!(!limiter.peek("slots").unwrap().is_now());
        let small = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
        drop(one);
        assert_waits(&large);
        drop(two);
        let large = get(&large);
        assert_waits(&small);
        drop(large);
        drop(get(&small));
    });
}

#[test]
fn several_go_at_once_when_there_is_room_for_several() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 4)).unwrap();
        let held = limiter.acquire(&slots(4)).unwrap();
        let line: Vec<_> = [1, 2, 1, 1]
            .map(|count| {
                wait(limiter, "slots", move |limiter| {
                    limiter.acquire(&slots(count))
                })
            })
            .into();
        drop(held);
        let first: Vec<Permit> = line[..3].iter().map(get).collect();
        assert_waits(&line[3]);
        drop(first);
        drop(get(&line[3]));
    });
}

#[test]
fn who_waits_is_charged_nothing() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").rate(2, MINUTE)).unwrap();
        let ask = || slots(1).take("mail", 1);
        let held = limiter.acquire("slots").unwrap();
        let waiting = wait(limiter, "slots", move |limiter| limiter.acquire(&ask()));
        assert_eq!(limiter.usage("mail").unwrap().available(), 2);
        // What it is not short of, others may use.
        assert!(limiter.try_acquire(("mail", 2)).unwrap().is_granted());
        clock.advance(10 * SECOND);
        drop(held);
        assert_waits(&waiting);
        assert_eq!(limiter.usage("slots").unwrap().held(), 0);
        // Now the rate is what it is short of, and the slots others may use.
        assert!(!limiter.try_acquire("mail").unwrap().is_granted());
        assert!(limiter.try_acquire("slots").unwrap().is_granted());
        let since = limiter.now().unwrap();
        clock.advance(50 * SECOND);
        let permit = get(&waiting);
        assert_eq!(Some(permit.at()), since.checked_add(50 * SECOND));
        assert_eq!(limiter.usage("mail").unwrap().available(), 1);
    });
}

#[test]
fn who_asks_for_rates_alone_does_not_overtake_who_waits_for_them_with_slots() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").rate(1, MINUTE)).unwrap();
        drop(limiter.acquire("mail").unwrap());
        let both = wait(limiter, "slots", |limiter| {
            limiter.acquire(&slots(1).take("mail", 1))
        });
        let alone = wait(limiter, "mail", |limiter| limiter.acquire("mail"));
        clock.advance(MINUTE);
        drop(get(&both));
        assert_waits(&alone);
        clock.advance(MINUTE);
        drop(get(&alone));
    });
}

/// The quota of one tenant is used up for long; the slots that it shares with others are free meanwhile.
#[test]
fn nobody_stands_still_for_a_limit_that_those_ahead_cannot_use() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("tenant:a").per_day(1)).unwrap();
        limiter.define(Limit::new("tenant:b").per_day(9)).unwrap();
        drop(limiter.acquire("tenant:a").unwrap());
        let stuck = wait(limiter, "slots", |limiter| {
            limiter.acquire_within(&slots(1).take("tenant:a", 1), 2 * quotalite::DAY)
        });
        for _ in 0..3 {
            let ask = slots(1).take("tenant:b", 1);
            let permit = limiter.try_acquire(&ask).unwrap().granted().unwrap();
            let next = wait(limiter, "slots", move |limiter| limiter.acquire(&ask));
            drop(permit);
            drop(get(&next));
        }
        assert_waits(&stuck);
    });
}

#[test]
fn a_deadline_ends_the_wait_and_lets_the_next_one_go() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 2)).unwrap();
        let held = limiter.acquire("slots").unwrap();
        let large = wait(limiter, "slots", |limiter| {
            limiter.acquire_within(&slots(2), SECOND)
        });
        let small = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
        clock.advance(Duration::from_nanos(999_999_999));
        assert_waits(&large);
        assert_waits(&small);
        clock.advance(Duration::from_nanos(1));
        match large.recv_timeout(20 * SECOND).unwrap() {
            Err(Error::TooLate { denial, .. }) => {
                assert_eq!((denial.key(), denial.retry_at()), ("slots", None));
            }
            other => panic!("{other:?}"),
        }
        drop(get(&small));
        drop(held);
    });
}

#[test]
fn what_the_rates_admit_only_after_the_deadline_is_refused_at_once() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").rate(1, MINUTE)).unwrap();
        let ask = slots(1).take("mail", 1);
        let held = limiter.acquire(&ask).unwrap();
        let refused = limiter.acquire_within(&ask, 59 * SECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        let refused = limiter.acquire_within("slots", Duration::ZERO);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        assert_eq!(limiter.usage("slots").unwrap().waiting(), 0);
        drop(held);
    });
}

#[test]
fn a_slot_that_times_out_goes_to_the_next_in_line() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::slots("slots", 1).timeout(SECOND))
            .unwrap();
        let held = limiter.acquire("slots").unwrap();
        let next = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
        clock.advance(SECOND);
        let next = get(&next);
        assert!(next.fence() > held.fence());
    });
}

#[test]
fn a_settlement_lets_those_in_line_go() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 2)).unwrap();
        limiter
            .define(Limit::new("tokens").rate(100, MINUTE))
            .unwrap();
        let ask = || slots(1).take("tokens", 80);
        let first = limiter.acquire(&ask()).unwrap();
        let second = wait(limiter, "slots", move |limiter| limiter.acquire(&ask()));
        assert_waits(&second);
        first.settle([("tokens", 20)]).unwrap();
        let second = get(&second);
        second.cancel().unwrap();
        assert_eq!(limiter.usage("tokens").unwrap().available(), 80);
    });
}

#[test]
fn slots_cannot_be_booked_ahead() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        match limiter.book("slots") {
            Err(Error::Request(RequestError::NotBookable { key })) => assert_eq!(key, "slots"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn who_waits_learns_that_a_slot_comes_back_sooner_by_itself() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::slots("slots", 1).timeout(MINUTE))
            .unwrap();
        let held = limiter.acquire("slots").unwrap();
        let next = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
        held.renew(SECOND).unwrap();
        clock.advance(SECOND);
        let permit = get(&next);
        let next = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
        permit.detach(SECOND / 2).unwrap();
        clock.advance(SECOND / 2);
        drop(get(&next));
    });
}

#[test]
fn a_turn_that_comes_because_time_has_brought_those_ahead_further_is_not_missed() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").per_second(8)).unwrap();
        let held = limiter.acquire("slots").unwrap();
        drop(limiter.acquire(("mail", 3)).unwrap());
        let all = Request::new().take("slots", 1).take("mail", 8);
        let first = wait(limiter, "slots", move |limiter| limiter.acquire(&all));
        // 5 are left, but the first one is short of 8.
        let second = wait(limiter, "mail", |limiter| limiter.acquire("mail"));
        assert_waits(&second);
        // Now it is short of a slot only, and leaves the mail to others.
        clock.advance(SECOND);
        drop(get(&second));
        drop(held);
        clock.advance(SECOND);
        drop(get(&first));
    });
}

#[test]
fn more_slots_reach_those_who_wait_at_once() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        let _held = limiter.acquire("slots").unwrap();
        let mut longest = Duration::ZERO;
        let mut served = Vec::new();
        for count in 2..8 {
            let next = wait(limiter, "slots", |limiter| limiter.acquire("slots"));
            let start = Instant::now();
            let more = Limit::slots("slots", count);
            limiter.define_or(more, OnConflict::Replace).unwrap();
            served.push(get(&next));
            longest = longest.max(start.elapsed());
        }
        // Who is not called tries again after half a second to a second.
        assert!(longest < SECOND / 2, "{longest:?}");
    });
}

#[test]
fn who_cannot_be_served_in_time_is_told_of_the_rate_that_is_too_late() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").per_minute(5)).unwrap();
        let _held = limiter.acquire(&slots(1).take("mail", 5)).unwrap();
        match limiter.acquire_within(&slots(1).take("mail", 1), SECOND) {
            Err(Error::TooLate { denial, .. }) => {
                assert_eq!(denial.key(), "mail");
                assert_eq!(denial.retry_after(), Some(MINUTE));
            }
            other => panic!("{other:?}"),
        }
    });
}

/// Else a stream of bookings could keep it waiting for ever.
#[test]
fn who_books_leaves_its_place_to_who_waits_for_slots_and_the_same_rate() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").per_second(1)).unwrap();
        drop(limiter.acquire("mail").unwrap());
        let both = slots(1).take("mail", 1);
        let first = wait(limiter, "slots", move |limiter| limiter.acquire(&both));
        let booked: Vec<_> = (0..3).map(|_| limiter.book("mail").unwrap()).collect();
        let waits: Vec<Duration> = booked.iter().map(quotalite::Booking::wait_time).collect();
        assert_eq!(waits, [2 * SECOND, 3 * SECOND, 4 * SECOND]);
        clock.advance(SECOND);
        let permit = get(&first);
        assert_eq!(permit.at(), limiter.now().unwrap());
        drop(permit);
        // Nobody waits any more: the next one stands behind the bookings alone.
        assert_eq!(limiter.book("mail").unwrap().wait_time(), 4 * SECOND);
        drop(booked);
    });
}
