//! Settling and cancelling permits, on both stores.
mod support;

use quotalite::{
    Error, Limit, Limiter, MAX_CAPACITY, MINUTE, ManualClock, Overage, RateUsage, Request,
    RequestError, SECOND, Settled,
};
use support::{in_both_stores, scratch};

fn tokens(overage: Overage) -> Limit {
    Limit::new("tokens")
        .rate(100, MINUTE)
        .overage(overage)
        .build()
        .unwrap()
}

fn used(limiter: &Limiter) -> u64 {
    limiter
        .usage("tokens")
        .unwrap()
        .rates()
        .iter()
        .map(RateUsage::used)
        .sum()
}

#[test]
fn what_was_not_used_comes_free_at_the_charges_own_instant() {
    in_both_stores(|limiter, clock| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        let permit = limiter.acquire(("tokens", 80)).unwrap();
        clock.advance(10 * SECOND);
        let later = limiter.acquire(("tokens", 20)).unwrap();
        assert!(!limiter.try_acquire("tokens").unwrap().is_granted());
        let Settled::Now(settlement) = permit.settle([("tokens", 30)]).unwrap() else {
            panic!("it was open");
        };
        let amount = settlement.amount("tokens").unwrap();
        assert_eq!(
            (
                amount.estimated(),
                amount.used(),
                amount.charged(),
                amount.debt()
            ),
            (80, 30, 30, 0)
        );
        assert_eq!(used(limiter), 50);
        assert!(limiter.try_acquire(("tokens", 50)).unwrap().is_granted());
        // What is left of it leaves a minute after its own instant, and not after the settlement.
        clock.advance(50 * SECOND);
        assert_eq!(used(limiter), 70);
        drop(later);
    });
}

#[test]
fn a_permit_is_closed_once() {
    in_both_stores(|limiter, _| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        let permit = limiter.acquire(("tokens", 80)).unwrap();
        assert!(
            permit
                .settle([("tokens", 30)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(permit.settle([("tokens", 10)]).unwrap(), Settled::Before);
        assert_eq!(permit.cancel().unwrap(), Settled::Before);
        assert_eq!(used(limiter), 30);
        let permit = limiter.acquire(("tokens", 50)).unwrap();
        assert!(permit.cancel().unwrap().settlement().is_some());
        assert_eq!(permit.settle([("tokens", 10)]).unwrap(), Settled::Before);
        assert_eq!(used(limiter), 30);
    });
}

#[test]
fn what_is_wrong_with_a_settlement_changes_nothing() {
    in_both_stores(|limiter, _| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        let permit = limiter.acquire(("tokens", 80)).unwrap();
        let wrong: [(&[(&str, u64)], RequestError); 3] = [
            (
                &[("tokens", 1), ("mail", 1)],
                RequestError::NotTaken { key: "mail".into() },
            ),
            (
                &[("tokens", 1), ("tokens", 2)],
                RequestError::KeyTwice {
                    key: "tokens".into(),
                },
            ),
            (
                &[("tokens", u64::MAX)],
                RequestError::TooMuch {
                    key: "tokens".into(),
                    amount: u64::MAX,
                },
            ),
        ];
        for (amounts, expected) in wrong {
            match permit.settle(amounts.iter().copied()) {
                Err(Error::Request(error)) => assert_eq!(error, expected),
                other => panic!("{other:?}"),
            }
            assert_eq!(used(limiter), 80);
        }
        assert!(
            permit
                .settle([("tokens", 0)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(used(limiter), 0);
    });
}

#[test]
fn an_estimate_that_nobody_settles_stays_charged() {
    in_both_stores(|limiter, clock| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        drop(limiter.acquire(("tokens", 80)).unwrap());
        clock.advance(59 * SECOND);
        assert_eq!(used(limiter), 80);
        clock.advance(SECOND);
        assert_eq!(used(limiter), 0);
    });
}

/// A permit for 30 beside another charge of 50 turns out to have used 90 of 100.
#[test]
fn what_was_used_beyond_the_estimate_is_dealt_with_as_the_limit_says() {
    for (overage, charged, debt) in [
        (Overage::Debt, 50, 40),
        (Overage::Deny, 50, 0),
        (Overage::Charge, 90, 0),
    ] {
        in_both_stores(|limiter, clock| {
            limiter.define(tokens(overage)).unwrap();
            let permit = limiter.acquire(("tokens", 30)).unwrap();
            clock.advance(10 * SECOND);
            drop(limiter.acquire(("tokens", 50)).unwrap());
            let settled = permit.settle([("tokens", 90)]).unwrap();
            let amount = settled.settlement().unwrap().amount("tokens").unwrap();
            assert_eq!(
                (amount.charged(), amount.debt()),
                (charged, debt),
                "{overage:?}"
            );
            assert_eq!(used(limiter), 50 + charged);
            assert_eq!(limiter.usage("tokens").unwrap().debt(), debt);
            assert_eq!(limiter.usage("tokens").unwrap().available(), 0);
            // It leaves as a whole at the end of its own window.
            let denial = limiter.try_acquire("tokens").unwrap().denied().unwrap();
            assert_eq!(denial.retry_after(), Some(50 * SECOND));
            clock.advance(50 * SECOND);
            assert_eq!(used(limiter), 50);
        });
    }
}

#[test]
fn what_is_charged_beyond_the_estimate_leaves_bookings_their_room() {
    in_both_stores(|limiter, clock| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        drop(limiter.acquire(("tokens", 50)).unwrap());
        clock.advance(10 * SECOND);
        let permit = limiter.acquire(("tokens", 30)).unwrap();
        let booked = limiter.book(("tokens", 60)).unwrap();
        assert_eq!(booked.wait_time(), 50 * SECOND);
        // 20 fit now, but only 10 when the booking's turn comes.
        let settled = permit.settle([("tokens", 100)]).unwrap();
        let amount = settled.settlement().unwrap().amount("tokens").unwrap();
        assert_eq!((amount.charged(), amount.debt()), (40, 60));
        clock.advance(50 * SECOND);
        drop(booked.accept());
        assert_eq!(used(limiter), 100);
    });
}

#[test]
fn an_overage_of_charge_delays_who_comes_later_but_moves_no_booking() {
    in_both_stores(|limiter, clock| {
        limiter.define(tokens(Overage::Charge)).unwrap();
        let permit = limiter.acquire(("tokens", 60)).unwrap();
        clock.advance(SECOND);
        let other = limiter.acquire(("tokens", 40)).unwrap();
        let booked = limiter.book(("tokens", 60)).unwrap();
        assert_eq!(booked.wait_time(), 59 * SECOND);
        other.settle([("tokens", 200)]).unwrap();
        assert_eq!(booked.wait_time(), 59 * SECOND);
        assert_eq!(used(limiter), 260);
        // 200 until 61 s, and beside the 60 that are booked for 60 s only 40 fit until 120 s.
        let next = limiter.book(("tokens", 40)).unwrap();
        assert_eq!(next.wait_time(), MINUTE);
        permit.settle([("tokens", 1)]).unwrap();
        assert_eq!(used(limiter), 201);
    });
}

#[test]
fn a_settlement_after_every_window_changes_nothing_but_the_debt() {
    in_both_stores(|limiter, clock| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        let (low, high) = (
            limiter.acquire(("tokens", 30)).unwrap(),
            limiter.acquire(("tokens", 30)).unwrap(),
        );
        clock.advance(2 * MINUTE);
        assert!(limiter.try_acquire(("tokens", 100)).unwrap().is_granted());
        low.settle([("tokens", 3)]).unwrap();
        high.settle([("tokens", 40)]).unwrap();
        let usage = limiter.usage("tokens").unwrap();
        assert_eq!((used(limiter), usage.debt()), (100, 10));
    });
}

#[test]
fn limits_of_one_request_are_settled_each_by_itself() {
    in_both_stores(|limiter, _| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        limiter.define(Limit::new("mail").per_second(10)).unwrap();
        let ask = Request::new().take("mail", 2).take("tokens", 50);
        let permit = limiter.acquire(&ask).unwrap();
        permit.settle([("tokens", 10)]).unwrap();
        assert_eq!(used(limiter), 10);
        assert_eq!(limiter.usage("mail").unwrap().available(), 8);
    });
}

/// Where a charge had been settled to nothing, the next booking for that instant came to lie, and was given
/// back in its stead when the one who had settled was gone.
#[test]
fn who_settled_a_booking_to_nothing_takes_no_other_with_it_when_it_dies() {
    let clock = ManualClock::new();
    let scratch = scratch();
    let open = || {
        let builder = Limiter::builder(scratch.file()).clock(clock.clone());
        builder.open().unwrap()
    };
    let (settles, waits, asks) = (open(), open(), open());
    settles.define(tokens(Overage::Debt)).unwrap();
    drop(settles.acquire(("tokens", 100)).unwrap());
    let permit = settles.book(("tokens", 50)).unwrap().accept();
    permit.settle([("tokens", 0)]).unwrap();
    let booked = waits.book(("tokens", 50)).unwrap();
    assert_eq!(booked.at(), permit.at());
    drop((permit, settles));
    assert!(!asks.try_acquire("tokens").unwrap().is_granted());
    clock.advance(MINUTE);
    assert_eq!(used(&asks), 50);
    drop(booked.accept());
}

/// Its instant came less than a second after the last write, and the machine's clock was lost.
#[test]
fn a_booking_that_was_settled_counts_as_used_even_after_a_power_cut() {
    let clock = ManualClock::new();
    let scratch = scratch();
    let open = || {
        let builder = Limiter::builder(scratch.file()).clock(clock.clone());
        builder.open().unwrap()
    };
    let limiter = open();
    limiter.define(tokens(Overage::Debt)).unwrap();
    drop(limiter.acquire(("tokens", 100)).unwrap());
    clock.advance(59 * SECOND + SECOND / 2);
    let booking = limiter.book(("tokens", 50)).unwrap();
    clock.advance(SECOND / 2);
    let permit = booking.accept();
    permit.settle([("tokens", 40)]).unwrap();
    drop((permit, limiter));
    clock.reboot(SECOND / 10);
    clock.set_wall(std::time::UNIX_EPOCH);
    let limiter = open();
    assert!(!limiter.try_acquire(("tokens", 61)).unwrap().is_granted());
    clock.advance(SECOND / 2);
    assert_eq!(used(&limiter), 40);
}

/// The file stops counting a debt at the largest number that every tool can read.
#[test]
fn a_debt_grows_up_to_the_largest_capacity() {
    in_both_stores(|limiter, _| {
        limiter.define(tokens(Overage::Debt)).unwrap();
        let permits = [(); 2].map(|()| limiter.acquire(("tokens", 1)).unwrap());
        for permit in permits {
            permit.settle([("tokens", MAX_CAPACITY)]).unwrap();
        }
        assert_eq!(limiter.usage("tokens").unwrap().debt(), MAX_CAPACITY);
    });
}

#[test]
fn the_overage_is_part_of_the_definition() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(tokens(Overage::Charge)).unwrap();
    let other = Limiter::open(scratch.file()).unwrap();
    assert_eq!(other.limit("tokens").unwrap().overage(), Overage::Charge);
    assert_eq!(
        other.limit("tokens").unwrap().to_string(),
        "tokens: 100/min, overage charge"
    );
    assert!(matches!(
        other.define(tokens(Overage::Debt)),
        Err(Error::Conflict { .. })
    ));
}
