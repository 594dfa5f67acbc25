//! Permits that are known by an id, on both stores: handed over, detached, renewed and swept.
mod support;

use std::time::Duration;

use quotalite::{
    Error, HOUR, Limit, Limiter, MINUTE, Permit, Request, RequestError, SECOND, Settled,
};
use support::{in_both_stores, on_file, open};

const NANO: Duration = Duration::from_nanos(1);

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
        // Its slots are back, though it can be settled for an hour, and somebody else may have them.
        let again = get(limiter, &ask().id("job"));
        drop(permit);
        let _other = limiter.try_acquire("slots").unwrap().granted().unwrap();
        assert_eq!(limiter.renew("job", 2 * HOUR).unwrap(), None);
        assert_eq!(again.renew(SECOND).unwrap(), None);
        clock.advance(59 * MINUTE);
        assert!(
            again
                .settle([("tokens", 1)])
                .unwrap()
                .settlement()
                .is_some()
        );
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

/// Whoever asked first may go ahead with it, or has done so.
/// Two callers retry one job.
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
