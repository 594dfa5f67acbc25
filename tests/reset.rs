//! Limits that begin anew: nothing that was charged before counts, and whoever waits keeps its place.
mod support;

use std::thread;
use std::time::{Duration, Instant};

use quotalite::{
    Action, Backoff, BreakerPolicy, BreakerState, Error, HOUR, Limit, Limiter, MINUTE, Overage,
    Report, Request, SECOND, Settled, Settlement,
};
use support::{in_both_stores, on_file, open, open_raw};

fn used(limiter: &Limiter, key: &str) -> (u64, u64) {
    let usage = limiter.usage(key).unwrap();
    (usage.available(), usage.debt())
}

/// Whatever a permit was charged for counts for nothing.
fn counts_for_nothing(settled: &Settled) {
    assert_ne!(*settled, Settled::Unknown);
}

#[test]
fn a_limit_of_every_kind_is_as_it_was_when_it_was_defined() {
    in_both_stores(|limiter, _| {
        let limits = [
            Limit::new("rates").rate(10, SECOND).rate(12, HOUR),
            Limit::new("merged").rate(10, HOUR).resolution(SECOND),
            Limit::new("bucket").burst(10).refill(1, MINUTE),
            Limit::slots("slots", 10),
        ];
        for limit in limits {
            let limit = limit.build().unwrap();
            let key = limit.key();
            limiter.define(limit.clone()).unwrap();
            let full = used(limiter, key);
            let permit = limiter.acquire((key, 9)).unwrap();
            limiter
                .pause(key, Backoff::planned(Duration::from_secs(30)))
                .unwrap();
            assert_eq!(used(limiter, key).0, 0, "{key}");
            assert_eq!(limiter.reset(key).unwrap(), limit);
            assert_eq!(used(limiter, key), full, "{key}");
            assert_eq!(limiter.usage(key).unwrap().pause(), None);
            assert_eq!(limiter.limit(key).unwrap(), limit);
            let all = limiter.acquire((key, 10)).unwrap();
            drop(permit);
            assert_eq!(used(limiter, key).0, 0, "{key}");
            drop(all);
        }
    });
}

#[test]
fn what_is_owed_is_forgotten() {
    in_both_stores(|limiter, _| {
        let limit = Limit::new("k").rate(10, HOUR).overage(Overage::Debt);
        limiter.define(limit).unwrap();
        let permit = limiter.acquire(("k", 10)).unwrap();
        permit.settle([("k", 25)]).unwrap();
        assert_eq!(used(limiter, "k"), (0, 15));
        limiter.reset("k").unwrap();
        assert_eq!(used(limiter, "k"), (10, 0));
    });
}

#[test]
fn a_breaker_closes_and_forgets_what_was_reported() {
    in_both_stores(|limiter, _| {
        let policy = BreakerPolicy::default().minimum_calls(2);
        limiter.define(Limit::breaker("b", policy)).unwrap();
        for _ in 0..2 {
            let permit = limiter.acquire("b").unwrap();
            permit.report(Report::failure()).unwrap();
        }
        let state = || limiter.usage("b").unwrap().breaker().unwrap().state();
        assert_eq!(state(), BreakerState::Open);
        limiter.reset("b").unwrap();
        assert_eq!(state(), BreakerState::Closed);
        let permit = limiter.acquire("b").unwrap();
        permit.report(Report::failure()).unwrap();
        assert_eq!(state(), BreakerState::Closed, "one of two calls");
    });
}

#[test]
fn a_permit_of_before_changes_nothing_of_after() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("rate").rate(10, HOUR)).unwrap();
        limiter
            .define(Limit::new("bucket").burst(10).refill(1, HOUR))
            .unwrap();
        limiter.define(Limit::slots("slots", 2)).unwrap();
        let all = || {
            Request::new()
                .take("rate", 2)
                .take("bucket", 2)
                .take("slots", 1)
        };
        let before: Vec<_> = (0..2).map(|_| limiter.acquire(&all()).unwrap()).collect();
        for key in ["rate", "bucket", "slots"] {
            limiter.reset(key).unwrap();
        }
        let after = limiter.acquire(&all()).unwrap();
        clock.advance(SECOND);
        let stands = ["rate", "bucket", "slots"].map(|key| used(limiter, key));
        assert_eq!(stands, [(8, 0), (8, 0), (1, 0)]);
        let mut before = before.into_iter();
        let mut next = || before.next().unwrap();
        let more = Settlement::default();
        let settled = next().settle([("rate", 10), ("bucket", 10)]).unwrap();
        assert_ne!(settled, Settled::Now(more), "it says what it was told");
        counts_for_nothing(&next().cancel().unwrap());
        assert_eq!(
            ["rate", "bucket", "slots"].map(|key| used(limiter, key)),
            stands
        );
        after.cancel().unwrap();
        let empty = ["rate", "bucket", "slots"].map(|key| used(limiter, key));
        assert_eq!(empty, [(10, 0), (10, 0), (2, 0)]);
    });
}

#[test]
fn a_permit_with_an_id_is_still_settled_by_it() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").rate(10, HOUR)).unwrap();
        limiter.define(Limit::slots("s", 1)).unwrap();
        let ask = Request::new().take("k", 4).take("s", 1);
        let permit = limiter.acquire(&ask.id("job")).unwrap();
        limiter.reset("k").unwrap();
        limiter.reset("s").unwrap();
        assert_eq!((used(limiter, "k").0, used(limiter, "s").0), (10, 1));
        let other = limiter.acquire("s").unwrap();
        counts_for_nothing(&limiter.settle("job", [("k", 9)]).unwrap());
        assert_eq!((used(limiter, "k").0, used(limiter, "s").0), (10, 0));
        drop(permit);
        drop(other);
        assert_eq!(used(limiter, "s").0, 1);
    });
}

#[test]
fn who_has_booked_keeps_its_place_and_is_admitted_earlier() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").rate(2, MINUTE)).unwrap();
        limiter.define(Limit::new("other").rate(2, MINUTE)).unwrap();
        let ask = Request::new().take("k", 1).take("other", 1);
        let bookings: Vec<_> = (0..2 * 3).map(|_| limiter.book(&ask).unwrap()).collect();
        clock.advance(SECOND * 30);
        limiter.reset("k").unwrap();
        // What the other limit was charged stands.
        assert_eq!(used(limiter, "k").0, 0);
        limiter.reset("other").unwrap();
        // What is moved is moved to an instant that is to come.
        clock.advance(Duration::from_nanos(1));
        let mut bookings = bookings.into_iter();
        drop(bookings.next());
        drop(bookings.next());
        let waits: Vec<_> = bookings
            .map(|mut booking| booking.check().unwrap())
            .collect();
        let minute = Some(MINUTE);
        assert_eq!(waits, [None, None, minute, minute]);
    });
}

#[test]
fn what_was_booked_and_moved_to_the_new_ledger_can_be_taken_back() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").rate(1, MINUTE)).unwrap();
        limiter.acquire("k").unwrap();
        let booked = limiter.book("k").unwrap();
        limiter.reset("k").unwrap();
        assert_eq!(used(limiter, "k").0, 0, "it goes now");
        booked.cancel().unwrap();
        assert_eq!(used(limiter, "k").0, 1);
    });
}

#[test]
fn who_waits_in_line_is_admitted() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::slots("s", 1)).unwrap();
        limiter.define(Limit::pattern("p:*").slots(1)).unwrap();
        for (key, reset) in [("s", "s"), ("p:1", "p:1"), ("p:1", "p:*")] {
            let held = limiter.acquire(key).unwrap();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| limiter.acquire(key).map(drop));
                let deadline = Instant::now() + Duration::from_secs(20);
                while limiter.usage(key).unwrap().waiting() == 0 {
                    assert!(Instant::now() < deadline, "nobody waits for {key}");
                    thread::sleep(Duration::from_millis(1));
                }
                limiter.reset(reset).unwrap();
                waiter.join().unwrap().unwrap();
            });
            drop(held);
            assert_eq!(used(limiter, key).0, 1, "{reset}");
        }
    });
}

#[test]
fn a_key_of_a_pattern_is_reset_alone_and_all_of_them_with_the_pattern() {
    in_both_stores(|limiter, _| {
        limiter
            .define(Limit::pattern("tenant:*").rate(5, HOUR))
            .unwrap();
        let keys = ["tenant:1", "tenant:2", "tenant:3"];
        let available = || keys.map(|key| used(limiter, key).0);
        limiter.reset("tenant:1").unwrap();
        let permits = keys.map(|key| limiter.acquire((key, 3)).unwrap());
        limiter.reset("tenant:1").unwrap();
        assert_eq!(available(), [5, 2, 2]);
        let [first, ..] = permits;
        limiter.acquire(("tenant:1", 1)).unwrap();
        first.settle([("tenant:1", 5)]).unwrap();
        assert_eq!(available(), [4, 2, 2]);
        limiter.reset("tenant:*").unwrap();
        assert_eq!(available(), [5, 5, 5]);
        let booked = ["tenant:1", "tenant:2"].map(|key| {
            limiter.acquire((key, 5)).unwrap();
            limiter.book((key, 2)).unwrap()
        });
        limiter.reset("tenant:*").unwrap();
        assert_eq!(available(), [3, 3, 5]);
        let [one, two] = booked;
        one.cancel().unwrap();
        drop(two.accept());
        assert_eq!(available(), [5, 3, 5]);
    });
}

#[test]
fn a_block_that_is_handed_out_ends() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").rate(100, HOUR)).unwrap();
        let blocks = limiter.blocks("k", 10).unwrap();
        assert!(blocks.try_acquire().unwrap().is_granted());
        assert_eq!(used(limiter, "k").0, 90);
        limiter.reset("k").unwrap();
        assert_eq!(used(limiter, "k").0, 100);
        assert!(blocks.try_acquire().unwrap().is_granted());
        assert_eq!(used(limiter, "k").0, 90, "it has taken another");
    });
}

#[test]
fn it_is_written_down_who_did_it() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        limiter.define(Limit::pattern("p:*").per_second(1)).unwrap();
        limiter.acquire("p:1").unwrap();
        for key in ["k", "p:1", "p:*"] {
            limiter.reset(key).unwrap();
            let last = &limiter.changes(key).unwrap()[0];
            assert_eq!((last.action(), last.definition()), (Action::Reset, "1/s"));
            assert_eq!(last.pid(), std::process::id());
        }
        let error = limiter.reset("unknown").unwrap_err();
        assert!(matches!(error, Error::UnknownLimit { .. }), "{error}");
    });
}

#[test]
fn other_processes_know_at_once_and_the_old_rows_are_swept() {
    let (scratch, limiter, clock) = on_file();
    let other = open(&scratch, &clock);
    limiter.define(Limit::new("k").rate(1_000, HOUR)).unwrap();
    for _ in 0..1_000 {
        limiter.acquire("k").unwrap();
        clock.advance(Duration::from_micros(1));
    }
    assert!(!other.try_acquire("k").unwrap().is_granted());
    assert!(!other.try_acquire("k").unwrap().is_granted(), "from memory");
    limiter.reset("k").unwrap();
    assert!(other.try_acquire("k").unwrap().is_granted());
    for _ in 0..900 {
        limiter.acquire("k").unwrap();
    }
    let left: i64 = open_raw(&scratch.file())
        .query_row(
            "SELECT count(*) FROM charge WHERE limit_id = 1",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(left, 0);
    assert_eq!(limiter.usage("k").unwrap().available(), 99);
}
