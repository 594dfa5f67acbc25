//! Slots, on both stores: who holds them, and when they come back.
mod support;

use std::time::Duration;

use quotalite::{
    Decision, Error, Limit, LimitError, Limiter, MINUTE, ManualClock, Obstacle, Permit, Request,
    SECOND, Settled,
};
use support::{in_both_stores, scratch};

fn get(limiter: &Limiter, ask: &Request) -> Option<Permit> {
    limiter.try_acquire(ask).unwrap().granted()
}

fn slots(count: u64) -> Request {
    Request::new().take("slots", count)
}

#[test]
fn slots_are_held_until_they_are_given_back_in_whatever_way() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 3)).unwrap();
        limiter
            .define(Limit::new("tokens").rate(100, MINUTE))
            .unwrap();
        let ask = slots(2).take("tokens", 10);
        let ways: [&dyn Fn(Permit); 4] = [
            &drop,
            &|permit| drop(permit.settle([("tokens", 4)]).unwrap()),
            &|permit| drop(permit.cancel().unwrap()),
            &|permit| drop(permit.settle([("tokens", 10)]).unwrap()),
        ];
        for (way, charged) in ways.into_iter().zip([10, 4, 0, 10]) {
            let permit = get(limiter, &ask).unwrap();
            assert_eq!(limiter.usage("slots").unwrap().held(), 2);
            assert_eq!(limiter.usage("slots").unwrap().available(), 1);
            let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
            assert_eq!(denial.key(), "slots");
            assert_eq!(denial.obstacle(), Obstacle::Slots(3));
            assert_eq!(denial.retry_after(), None);
            assert_eq!(
                denial.to_string(),
                "limit `slots` (3 slots) has no room for 2"
            );
            assert!(!limiter.peek(&ask).unwrap().is_now());
            way(permit);
            assert_eq!(limiter.usage("slots").unwrap().held(), 0);
            assert_eq!(limiter.usage("tokens").unwrap().available(), 100 - charged);
            clock.advance(MINUTE);
        }
    });
}

#[test]
fn a_request_takes_slots_and_charges_or_neither() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        limiter.define(Limit::new("mail").per_second(1)).unwrap();
        let ask = slots(1).take("mail", 1);
        drop(get(limiter, &ask).unwrap());
        // The rate stands in the way, and so no slot is taken.
        let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
        assert_eq!((denial.key(), denial.retry_after()), ("mail", Some(SECOND)));
        assert_eq!(limiter.usage("slots").unwrap().held(), 0);
        // A slot stands in the way, and so nothing is charged.
        clock.advance(SECOND);
        let held = get(limiter, &slots(1)).unwrap();
        assert!(get(limiter, &ask).is_none());
        assert_eq!(limiter.usage("mail").unwrap().available(), 1);
        drop(held);
        assert!(get(limiter, &ask).is_some());
    });
}

#[test]
fn a_permit_is_one_holder_however_many_slots_it_takes() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 8)).unwrap();
        let (three, five) = (get(limiter, &slots(3)).unwrap(), get(limiter, &slots(5)));
        assert!(five.is_some() && get(limiter, &slots(1)).is_none());
        drop(three);
        assert!(get(limiter, &slots(4)).is_none());
        assert!(get(limiter, &slots(3)).is_some());
        match limiter.try_acquire(&slots(9)) {
            Err(Error::NeverFits { obstacle, .. }) => assert_eq!(obstacle.to_string(), "8 slots"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn fences_only_grow() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 2)).unwrap();
        limiter.define(Limit::new("mail").per_second(9)).unwrap();
        let mut last = 0;
        let mut held = Vec::new();
        for step in 0..40 {
            let permit = get(limiter, &slots(1)).unwrap();
            let fence = permit.fence().unwrap();
            assert!(fence > last, "{fence} after {last}");
            last = fence;
            held.push(permit);
            if step % 3 == 0 {
                clock.advance(Duration::from_nanos(1));
            }
            if held.len() == 2 {
                drop(held.remove(step % 2));
            }
        }
        let without = limiter.acquire("mail").unwrap();
        assert_eq!(without.fence(), None);
    });
}

#[test]
fn a_slot_with_a_timeout_comes_back_at_its_end_and_not_a_nanosecond_before() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::slots("slots", 1).timeout(SECOND))
            .unwrap();
        limiter
            .define(Limit::new("tokens").rate(9, MINUTE))
            .unwrap();
        let ask = slots(1).take("tokens", 3);
        let first = get(limiter, &ask).unwrap();
        clock.advance(Duration::from_nanos(999_999_999));
        assert!(get(limiter, &ask).is_none());
        clock.advance(Duration::from_nanos(1));
        let second = get(limiter, &ask).unwrap();
        assert!(second.fence() > first.fence());
        // The late holder changes nothing, neither for itself nor for the one that came after.
        assert_eq!(first.settle([("tokens", 0)]).unwrap(), Settled::Expired);
        assert_eq!(limiter.usage("slots").unwrap().held(), 1);
        assert_eq!(limiter.usage("tokens").unwrap().available(), 3);
        drop(first);
        assert_eq!(limiter.usage("slots").unwrap().held(), 1);
        assert!(
            second
                .settle([("tokens", 1)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(limiter.usage("tokens").unwrap().available(), 5);
    });
}

#[test]
fn fewer_slots_than_are_held_admit_nobody_until_enough_came_back() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("slots", 3)).unwrap();
        let mut held: Vec<Permit> = (0..3).map(|_| get(limiter, &slots(1)).unwrap()).collect();
        limiter
            .define_or(Limit::slots("slots", 1), quotalite::OnConflict::Replace)
            .unwrap();
        for _ in 0..2 {
            assert_eq!(limiter.usage("slots").unwrap().available(), 0);
            assert!(get(limiter, &slots(1)).is_none());
            held.pop();
        }
        held.pop();
        assert!(get(limiter, &slots(1)).is_some());
    });
}

#[test]
fn a_definition_of_slots_is_kept_and_checked() {
    in_both_stores(|limiter, _| {
        let limit = Limit::slots("slots", 3).timeout(MINUTE).unit("calls");
        limiter.define(limit).unwrap();
        let kept = limiter.limit("slots").unwrap();
        assert_eq!(kept.slot_count(), Some(3));
        assert_eq!(kept.timeout(), Some(MINUTE));
        assert_eq!(kept.to_string(), "slots: 3 slots, timeout 1min");
        assert!(kept.rates().is_empty());
    });
    let wrong = [
        (
            Limit::slots("k", 0),
            "a limit has 1 to 9007199254740992 slots, not 0",
        ),
        (
            Limit::slots("k", 1).per_second(1),
            "a limit of slots has no rate",
        ),
        (
            Limit::slots("k", 1).pad(SECOND),
            "a limit of slots has no pad",
        ),
        (
            Limit::slots("k", 1).timeout(Duration::ZERO),
            "a timeout is 1 ms to 366 days, not 0ns",
        ),
        (
            Limit::new("k").per_second(1).timeout(SECOND),
            "only a limit of slots has a timeout",
        ),
    ];
    for (builder, message) in wrong {
        let error: LimitError = builder.build().unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn slots_of_one_limiter_are_seen_by_another_and_outlive_nobody() {
    let scratch = scratch();
    let clock = ManualClock::new();
    let open = || {
        Limiter::builder(scratch.file())
            .clock(clock.clone())
            .open()
            .unwrap()
    };
    let (one, other) = (open(), open());
    one.define(Limit::slots("slots", 1)).unwrap();
    let permit = get(&one, &slots(1)).unwrap();
    assert!(get(&other, &slots(1)).is_none());
    // The permit keeps its limiter alive.
    drop(one);
    assert!(get(&other, &slots(1)).is_none());
    drop(permit);
    assert!(matches!(
        other.try_acquire(&slots(1)).unwrap(),
        Decision::Granted(_)
    ));
}

/// A request that was refused before is looked at first.
#[test]
fn who_was_refused_before_can_wait_all_the_same() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let rate = Limit::new("calls").rate(1, Duration::from_millis(80));
    limiter.define(rate).unwrap();
    limiter.define(Limit::slots("in flight", 2)).unwrap();
    let ask = Request::new().take("calls", 1).take("in flight", 1);
    for refusals in 0..4 {
        drop(limiter.acquire("calls").unwrap());
        for _ in 0..refusals {
            assert!(!limiter.try_acquire(&ask).unwrap().is_granted());
        }
        let too_short = limiter.acquire_within(&ask, Duration::from_millis(1));
        assert!(
            matches!(too_short, Err(Error::TooLate { .. })),
            "{too_short:?}"
        );
        let permit = limiter.acquire_within(&ask, 20 * SECOND).unwrap();
        assert!(permit.waited() > Duration::ZERO);
    }
}
