//! Limits that are changed, removed, and made by patterns while they are in use.

mod support;

use std::time::Duration;

use quotalite::{
    Decision, Definition, Error, HOUR, Limit, Limiter, MINUTE, OnConflict, Rate, Request,
    RequestError, SECOND, Settled,
};
use support::{in_both_stores, on_file, open};

const MS: Duration = Duration::from_millis(1);

fn replace(limiter: &Limiter, limit: quotalite::LimitBuilder) {
    limiter.define_or(limit, OnConflict::Replace).unwrap();
}

fn retry_after(limiter: &Limiter, key: &str, amount: u64) -> Option<Duration> {
    match limiter.try_acquire((key, amount)).unwrap() {
        Decision::Granted(_) => None,
        Decision::Denied(denial) => denial.retry_after(),
    }
}

#[test]
fn an_increase_counts_at_once_in_every_process() {
    let (scratch, limiter, clock) = on_file();
    let other = open(&scratch, &clock);
    limiter.define(Limit::new("k").rate(2, MINUTE)).unwrap();
    assert!(other.try_acquire(("k", 2)).unwrap().is_granted());
    assert!(!other.try_acquire("k").unwrap().is_granted());
    replace(&limiter, Limit::new("k").rate(3, MINUTE));
    assert!(other.try_acquire("k").unwrap().is_granted());
    assert_eq!(retry_after(&other, "k", 1), Some(MINUTE));
}

#[test]
fn a_decrease_takes_nothing_back_and_admits_nothing_until_it_fits() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").rate(10, MINUTE)).unwrap();
        for _ in 0..5 {
            assert!(limiter.try_acquire(("k", 2)).unwrap().is_granted());
            clock.advance(SECOND);
        }
        let booked = limiter.book(("k", 4)).unwrap();
        assert_eq!(booked.wait_time(), 56 * SECOND);
        replace(limiter, Limit::new("k").rate(4, MINUTE));
        let usage = limiter.usage("k").unwrap();
        assert!(usage.is_decreasing());
        assert_eq!((usage.rates()[0].used(), usage.available()), (10, 0));
        // The booking keeps its instant, though the window is over then; who comes later waits for it to leave.
        assert_eq!(retry_after(limiter, "k", 1), Some(116 * SECOND));
        assert_eq!(booked.wait_time(), 56 * SECOND);
        clock.advance(56 * SECOND);
        let permit = booked.accept();
        assert!(limiter.usage("k").unwrap().is_decreasing());
        clock.advance(3 * SECOND);
        assert!(!limiter.usage("k").unwrap().is_decreasing(), "4 of 4");
        permit.settle([("k", 1)]).unwrap();
        assert!(limiter.try_acquire(("k", 3)).unwrap().is_granted());
        assert_eq!(retry_after(limiter, "k", 4), Some(MINUTE));
    });
}

/// A pattern that has taken a ledger over from another takes it along when it goes.
#[test]
fn what_was_charged_is_gone_with_the_pattern_that_had_it_last() {
    for sweeps in [0, 1_000] {
        in_both_stores(|limiter, clock| {
            let many = Limit::new("other").rate(1 << 40, MINUTE);
            limiter.define(many).unwrap();
            limiter.define(Limit::pattern("t:*").rate(3, HOUR)).unwrap();
            let permit = limiter.acquire(("t:ab", 3)).unwrap();
            limiter
                .define(Limit::pattern("t:a*").rate(3, HOUR))
                .unwrap();
            limiter.force_remove("t:a*").unwrap();
            for _ in 0..sweeps {
                clock.advance(MS);
                drop(limiter.acquire("other").unwrap());
            }
            let settled = permit.settle([("t:ab", 2)]).unwrap();
            let charged = settled.settlement().unwrap().amounts()[0].charged();
            assert_eq!(charged, 0);
            assert_eq!(limiter.usage("t:ab").unwrap().available(), 3);
        });
    }
}

#[test]
fn slots_and_buckets_decrease_too() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::slots("slots", 3)).unwrap();
        limiter
            .define(Limit::new("bucket").burst(10).refill(1, SECOND))
            .unwrap();
        let held: Vec<_> = (0..3).map(|_| limiter.acquire("slots").unwrap()).collect();
        assert!(limiter.try_acquire(("bucket", 8)).unwrap().is_granted());
        replace(limiter, Limit::new("slots").slots(1));
        // 8 are missing, of 4.
        replace(limiter, Limit::new("bucket").burst(4).refill(2, SECOND));
        for key in ["slots", "bucket"] {
            assert!(limiter.usage(key).unwrap().is_decreasing(), "{key}");
        }
        assert_eq!(retry_after(limiter, "bucket", 1), Some(5 * SECOND / 2));
        clock.advance(2 * SECOND);
        assert!(!limiter.usage("bucket").unwrap().is_decreasing());
        let mut held = held.into_iter();
        drop((held.next(), held.next()));
        assert!(!limiter.usage("slots").unwrap().is_decreasing());
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        drop(held);
        assert!(limiter.try_acquire("slots").unwrap().is_granted());
    });
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::new("k").per_second(10).per_hour(1_000).pad(5 * MS))
            .unwrap();
        let rate = Rate::new(20, SECOND).unwrap();
        limiter
            .update("k", |limit| limit.to_builder().set_rate(rate))
            .unwrap();
        assert_eq!(
            limiter.limit("k").unwrap().to_string(),
            "k: 20/s, 1000/h, pad 5ms"
        );
        let told = limiter.update("nobody", Limit::to_builder);
        assert!(matches!(told, Err(Error::UnknownLimit { .. })));
        let told = limiter.update("k", |_| Limit::new("other").per_second(1));
        assert!(matches!(
            told,
            Err(Error::Request(RequestError::OtherKey { .. }))
        ));
        let told = limiter.update("k", |limit| limit.to_builder().without_rates());
        assert!(matches!(told, Err(Error::Definition { .. })));
        assert_eq!(
            limiter.limit("k").unwrap().to_string(),
            "k: 20/s, 1000/h, pad 5ms"
        );
    });
}

#[test]
fn a_limit_stays_of_its_kind_until_it_is_removed() {
    in_both_stores(|limiter, _clock| {
        let kinds = || {
            [
                Limit::new("k").per_second(1),
                Limit::new("k").slots(1),
                Limit::new("k").burst(1).refill(1, SECOND),
            ]
        };
        for first in kinds() {
            limiter.define(first.clone()).unwrap();
            let first = first.build().unwrap();
            for other in kinds() {
                if other.clone().build().unwrap() == first {
                    continue;
                }
                let told = limiter.define_or(other, OnConflict::Replace);
                assert!(matches!(told, Err(Error::OtherKind { .. })), "{told:?}");
                assert_eq!(limiter.limit("k").unwrap(), first);
            }
            limiter.remove("k").unwrap();
        }
        limiter.define(Limit::new("a*").per_second(1)).unwrap();
        let told = limiter.define_or(Limit::pattern("a*").per_second(1), OnConflict::Replace);
        assert_eq!(
            told.unwrap_err().to_string().split(", in ").next(),
            Some("limit `a*` is rates and cannot become a pattern of rates")
        );
    });
}

#[test]
fn what_is_in_use_is_removed_only_by_force() {
    in_both_stores(|limiter, clock| {
        let limits = [
            Limit::slots("slots", 1),
            Limit::new("rate").rate(2, MINUTE),
            Limit::pattern("t:*").rate(2, MINUTE),
        ];
        limiter.define_all(limits, OnConflict::Fail).unwrap();
        let refused = |key: &str| match limiter.remove(key) {
            Err(Error::InUse { by, .. }) => by.to_string(),
            other => panic!("{key}: {other:?}"),
        };
        let held = limiter.acquire("slots").unwrap();
        assert_eq!(refused("slots"), "holding slots: 1");
        held.cancel().unwrap();
        let with_id = Request::new().take("rate", 1).take("t:1", 1).id("job");
        let permit = limiter.acquire(&with_id).unwrap();
        assert_eq!(refused("rate"), "open permits: 1");
        assert_eq!(refused("t:*"), "open permits: 1");
        permit.settle([("rate", 2)]).unwrap();
        let booked = limiter.book(("rate", 1)).unwrap();
        assert_eq!(refused("rate"), "bookings: 1");
        drop(booked);
        // What was only charged does not keep a limit.
        for key in ["slots", "rate", "t:*"] {
            limiter.remove(key).unwrap();
            assert!(matches!(
                limiter.limit(key),
                Err(Error::UnknownLimit { .. })
            ));
        }
        assert!(limiter.limits().unwrap().is_empty());
        assert!(matches!(
            limiter.remove("rate"),
            Err(Error::UnknownLimit { .. })
        ));
        // Defined anew, it begins anew.
        limiter.define(Limit::new("rate").rate(2, MINUTE)).unwrap();
        let permit = limiter.acquire(("rate", 2)).unwrap();
        limiter.force_remove("rate").unwrap();
        limiter.define(Limit::new("rate").rate(2, MINUTE)).unwrap();
        assert!(limiter.try_acquire(("rate", 1)).unwrap().is_granted());
        let settled = permit.settle([("rate", 1)]).unwrap();
        let amount = settled.settlement().unwrap().amount("rate").unwrap();
        assert_eq!((amount.charged(), amount.debt()), (0, 0));
        assert_eq!(limiter.usage("rate").unwrap().available(), 1);
        clock.advance(MINUTE);
    });
}

#[test]
fn keys_that_match_have_ledgers_of_their_own() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::pattern("t:*").rate(2, MINUTE))
            .unwrap();
        let one_each = Request::new().take("t:1", 2).take("t:2", 1);
        assert!(limiter.try_acquire(&one_each).unwrap().is_granted());
        assert_eq!(retry_after(limiter, "t:1", 1), Some(MINUTE));
        assert_eq!(retry_after(limiter, "t:2", 1), None);
        assert_eq!(limiter.usage("t:3").unwrap().available(), 2);
        assert_eq!(limiter.limit("t:3").unwrap().to_string(), "t:3: 2/min");
        assert!(!limiter.limit("t:3").unwrap().is_pattern());
        assert!(limiter.limit("t:*").unwrap().is_pattern());
        assert!(matches!(
            limiter.try_acquire("u:1"),
            Err(Error::UnknownLimit { .. })
        ));
        assert!(matches!(
            limiter.try_acquire(("t:9", 3)),
            Err(Error::NeverFits { .. })
        ));
        let keys: Vec<String> = limiter
            .limits()
            .unwrap()
            .iter()
            .map(|limit| limit.key().to_owned())
            .collect();
        assert_eq!(keys, ["t:*"]);
        replace(limiter, Limit::pattern("t:*").rate(3, MINUTE));
        assert!(limiter.try_acquire("t:1").unwrap().is_granted());
        clock.advance(MINUTE);
        assert!(limiter.try_acquire(("t:1", 3)).unwrap().is_granted());
    });
}

#[test]
fn the_most_specific_definition_counts_with_what_was_charged_before() {
    in_both_stores(|limiter, _clock| {
        limiter.define(Limit::pattern("t:*").rate(5, HOUR)).unwrap();
        assert!(limiter.try_acquire(("t:big:1", 4)).unwrap().is_granted());
        assert!(limiter.try_acquire(("t:2", 4)).unwrap().is_granted());
        limiter
            .define(Limit::pattern("t:big:*").rate(10, HOUR))
            .unwrap();
        assert_eq!(limiter.usage("t:big:1").unwrap().available(), 6);
        assert_eq!(limiter.usage("t:2").unwrap().available(), 1);
        let defined = limiter
            .define(Limit::new("t:big:1").rate(20, HOUR))
            .unwrap();
        assert_eq!(defined, Definition::Created);
        assert_eq!(limiter.usage("t:big:1").unwrap().available(), 16);
        // With a limit goes its ledger, and the key is another one of the pattern's.
        limiter.remove("t:big:1").unwrap();
        assert_eq!(limiter.usage("t:big:1").unwrap().available(), 10);
        assert!(limiter.try_acquire(("t:big:1", 7)).unwrap().is_granted());
        limiter.remove("t:big:*").unwrap();
        assert_eq!(limiter.usage("t:big:1").unwrap().available(), 5);
        assert_eq!(limiter.usage("t:2").unwrap().available(), 1);
        limiter.remove("t:*").unwrap();
        limiter.define(Limit::pattern("t:*").rate(5, HOUR)).unwrap();
        assert_eq!(limiter.usage("t:2").unwrap().available(), 5);
    });
}

#[test]
fn all_kinds_can_be_patterns_and_mix_in_one_request() {
    in_both_stores(|limiter, clock| {
        let limits = [
            Limit::pattern("rate:*").rate(3, MINUTE),
            Limit::pattern("bucket:*").burst(3).refill(1, SECOND),
            Limit::pattern("slots:*").slots(1),
        ];
        limiter.define_all(limits, OnConflict::Fail).unwrap();
        let ask = |user: u32| {
            Request::new()
                .take(format!("rate:{user}"), 1)
                .take(format!("bucket:{user}"), 2)
                .take(format!("slots:{user}"), 1)
        };
        let first = limiter.acquire(&ask(1)).unwrap();
        let second = limiter.acquire(&ask(2)).unwrap();
        let denied = limiter.try_acquire(&ask(1)).unwrap().denied().unwrap();
        assert_eq!(denied.key(), "slots:1");
        drop(first);
        let denied = limiter.try_acquire(&ask(1)).unwrap().denied().unwrap();
        assert_eq!(
            (denied.key(), denied.retry_after()),
            ("bucket:1", Some(SECOND))
        );
        clock.advance(SECOND);
        assert!(limiter.try_acquire(&ask(1)).unwrap().is_granted());
        assert!(matches!(
            second.settle([("rate:2", 0), ("bucket:2", 0)]).unwrap(),
            Settled::Now(_)
        ));
        assert_eq!(limiter.usage("bucket:2").unwrap().available(), 3);
    });
}

#[test]
fn keys_that_are_idle_leave_nothing_in_the_file() {
    let (scratch, limiter, clock) = on_file();
    let limits = [
        Limit::pattern("rate:*").rate(3, SECOND),
        Limit::pattern("bucket:*").burst(3).refill(1, SECOND),
        Limit::new("busy").rate(1_000_000, SECOND),
    ];
    limiter.define_all(limits, OnConflict::Fail).unwrap();
    for key in 0..2_000 {
        let ask = Request::new()
            .take(format!("rate:{key}"), 1)
            .take(format!("bucket:{key}"), 1);
        assert!(limiter.try_acquire(&ask).unwrap().is_granted());
    }
    let count = |table: &str| scratch.sqlite::<i64>(&format!("SELECT count(*) FROM {table}"));
    assert_eq!(count("pattern_key"), 4_000);
    // One key is kept in use by a slot-less permit with an id.
    let kept = limiter
        .acquire(&Request::new().take("rate:7", 1).id("job"))
        .unwrap();
    clock.advance(10 * SECOND);
    for _ in 0..128 * 60 {
        assert!(limiter.try_acquire("busy").unwrap().is_granted());
    }
    assert_eq!(count("pattern_key"), 1);
    assert_eq!(count("bucket"), 0);
    let charges: i64 = scratch.sqlite(
        "SELECT count(*) FROM charge WHERE limit_id <> (
            SELECT limit_id FROM limit_definition WHERE key = 'busy')",
    );
    assert_eq!(charges, 0);
    // Whoever settles late is still heard, though the ledger was closed meanwhile.
    let settled = kept.settle([("rate:7", 5)]).unwrap();
    let amount = settled
        .settlement()
        .unwrap()
        .amount("rate:7")
        .unwrap()
        .clone();
    assert_eq!((amount.charged(), amount.debt()), (1, 4));
    assert_eq!(limiter.usage("rate:7").unwrap().debt(), 4);
    assert_eq!(limiter.usage("rate:8").unwrap().available(), 3);
}

#[test]
fn those_in_line_wait_for_the_limit_as_it_is_now() {
    in_both_stores(|limiter, clock| {
        let limits = [Limit::slots("slots", 1), Limit::new("rate").rate(5, MINUTE)];
        limiter.define_all(limits, OnConflict::Fail).unwrap();
        let held = limiter.acquire("slots").unwrap();
        let ask = Request::new().take("slots", 1).take("rate", 4);
        let waiting = std::thread::spawn({
            let limiter = limiter.clone();
            move || limiter.acquire(&ask).map(|permit| permit.at())
        });
        let in_line = |count: u64| {
            let deadline = std::time::Instant::now() + 20 * SECOND;
            while limiter.usage("slots").unwrap().waiting() != count {
                assert!(std::time::Instant::now() < deadline);
                std::thread::sleep(MS);
            }
        };
        in_line(1);
        // It is short of the slot alone. So the rate can be used, and then it is short of that, too, and keeps it.
        assert!(limiter.try_acquire(("rate", 2)).unwrap().is_granted());
        assert!(!limiter.try_acquire(("rate", 1)).unwrap().is_granted());
        // With more of it, there is enough for both.
        replace(limiter, Limit::new("rate").rate(10, MINUTE));
        assert!(limiter.try_acquire(("rate", 4)).unwrap().is_granted());
        replace(limiter, Limit::new("slots").slots(2));
        let at = waiting.join().unwrap().unwrap();
        assert_eq!(at, limiter.now().unwrap());
        drop(held);
        clock.advance(MINUTE);
        assert!(limiter.try_acquire(("rate", 10)).unwrap().is_granted());
    });
}

#[test]
fn what_is_missing_in_a_bucket_stays_missing_when_another_definition_takes_over() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::pattern("u:*").burst(10).refill(1, SECOND))
            .unwrap();
        for key in ["u:1", "u:x1", "u:x2"] {
            assert!(limiter.try_acquire((key, 8)).unwrap().is_granted());
        }
        clock.advance(SECOND);
        limiter
            .define(Limit::pattern("u:x*").burst(20).refill(2, MINUTE))
            .unwrap();
        limiter
            .define(Limit::new("u:1").burst(30).refill(3, MINUTE))
            .unwrap();
        let missing = |key| limiter.usage(key).unwrap().bucket().unwrap().used();
        assert_eq!(["u:1", "u:x1", "u:x2"].map(missing), [7, 7, 7]);
        clock.advance(MINUTE);
        assert_eq!(["u:1", "u:x1", "u:x2"].map(missing), [4, 5, 5]);
        replace(limiter, Limit::pattern("u:x*").burst(20).refill(1, MINUTE));
        clock.advance(MINUTE);
        assert_eq!(["u:1", "u:x1", "u:x2"].map(missing), [1, 4, 4]);
    });
}

#[test]
fn what_is_missing_in_the_buckets_of_a_pattern_stays_missing_however_often_it_changes() {
    in_both_stores(|limiter, clock| {
        let bucket = |amount, per| Limit::pattern("t:*").burst(10).refill(amount, per);
        limiter.define(bucket(10, SECOND)).unwrap();
        for key in ["t:1", "t:22", "t:3"] {
            assert!(limiter.try_acquire((key, 10)).unwrap().is_granted());
        }
        replace(limiter, bucket(1, HOUR));
        // By the first definition it would be full since long.
        clock.advance(10 * SECOND);
        replace(limiter, bucket(1, HOUR).unit("calls"));
        let left = HOUR.checked_sub(10 * SECOND);
        assert_eq!(retry_after(limiter, "t:1", 1), left);
        replace(limiter, bucket(1, MINUTE));
        assert_eq!(
            retry_after(limiter, "t:1", 1),
            left.map(|left| left / 60 + Duration::from_nanos(1))
        );
        // By another pattern, and by itself.
        limiter
            .define(Limit::pattern("t:2*").burst(10).refill(1, HOUR))
            .unwrap();
        limiter
            .define(Limit::new("t:3").burst(10).refill(1, HOUR))
            .unwrap();
        for key in ["t:22", "t:3"] {
            let after = retry_after(limiter, key, 1).unwrap();
            assert!(after.abs_diff(left.unwrap()) < MS, "{key}: {after:?}");
        }
    });
}

#[test]
fn a_file_gives_back_what_its_ledgers_do_not_need_any_more() {
    let (scratch, limiter, clock) = on_file();
    limiter
        .define(Limit::new("k").per_second(1_000_000))
        .unwrap();
    for _ in 0..45_000 {
        assert!(limiter.try_acquire("k").unwrap().is_granted());
    }
    let pages = || scratch.sqlite::<i64>("PRAGMA page_count");
    let full = pages();
    clock.advance(HOUR);
    for _ in 0..450 * 128 {
        clock.advance(MS);
        assert!(limiter.try_acquire("k").unwrap().is_granted());
    }
    // Some are kept for growth.
    assert!(
        pages() < 500 && full > 900,
        "{} of {full} pages are left",
        pages()
    );
}

#[test]
fn what_a_limit_of_its_own_took_over_from_a_pattern_goes_with_it() {
    in_both_stores(|limiter, _clock| {
        for bucket in [true, false] {
            let of_kind = |limit: quotalite::LimitBuilder| {
                if bucket {
                    limit.burst(5).refill(1, HOUR)
                } else {
                    limit.rate(5, HOUR)
                }
            };
            limiter.define(of_kind(Limit::pattern("u:*"))).unwrap();
            let permit = limiter.acquire(("u:1", 2)).unwrap();
            limiter.define(of_kind(Limit::new("u:1"))).unwrap();
            limiter.remove("u:1").unwrap();
            let settled = permit.settle([("u:1", 4)]).unwrap();
            let amount = settled.settlement().unwrap().amount("u:1").unwrap();
            assert_eq!((amount.charged(), amount.debt()), (0, 0));
            assert_eq!(limiter.usage("u:1").unwrap().available(), 5);
            limiter.remove("u:*").unwrap();
        }
    });
}

#[test]
fn a_bucket_that_fills_slower_than_it_was_written_down_is_not_swept_before_it_is_full() {
    in_both_stores(|limiter, clock| {
        let bucket = |amount, per| Limit::pattern("t:*").burst(10).refill(amount, per);
        limiter.define(bucket(10, SECOND)).unwrap();
        limiter
            .define(Limit::new("busy").rate(1_000_000, HOUR))
            .unwrap();
        assert!(limiter.try_acquire(("t:1", 10)).unwrap().is_granted());
        clock.advance(SECOND / 10);
        replace(limiter, bucket(10, HOUR));
        clock.advance(2 * SECOND);
        for _ in 0..600 {
            assert!(limiter.try_acquire("busy").unwrap().is_granted());
        }
        assert_eq!(limiter.usage("t:1").unwrap().available(), 1);
    });
}

#[test]
fn however_often_a_pattern_changes_its_buckets_fill_no_faster_than_it_said() {
    in_both_stores(|limiter, clock| {
        let bucket = |burst, amount, per| Limit::pattern("t:*").burst(burst).refill(amount, per);
        limiter.define(bucket(10, 10, SECOND)).unwrap();
        assert!(limiter.try_acquire(("t:1", 10)).unwrap().is_granted());
        for round in 0..400 {
            replace(limiter, bucket(10 + round % 2, 10 + round % 3, HOUR));
            clock.advance(SECOND / 10);
        }
        assert_eq!(limiter.usage("t:1").unwrap().bucket().unwrap().used(), 10);
    });
}

#[test]
fn a_definition_of_another_kind_begins_a_new_ledger() {
    in_both_stores(|limiter, _clock| {
        limiter
            .define(Limit::pattern("t:*").rate(10, HOUR))
            .unwrap();
        let permit = limiter.acquire(("t:1", 10)).unwrap();
        limiter
            .define(Limit::new("t:1").burst(10).refill(1, HOUR))
            .unwrap();
        assert_eq!(limiter.usage("t:1").unwrap().available(), 10);
        let settled = permit.settle([("t:1", 12)]).unwrap();
        let amount = settled.settlement().unwrap().amount("t:1").unwrap();
        assert_eq!((amount.charged(), amount.debt()), (0, 0));
        assert_eq!(limiter.usage("t:1").unwrap().available(), 10);
    });
}

#[test]
fn what_was_used_beyond_a_charge_that_is_gone_is_owed() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").rate(1_000, SECOND)).unwrap();
        let permit = limiter.acquire("k").unwrap();
        clock.advance(5 * SECOND);
        for _ in 0..300 {
            assert!(limiter.try_acquire("k").unwrap().is_granted());
        }
        // A window that is longer does not know what was swept.
        replace(limiter, Limit::new("k").rate(1_000, HOUR));
        let settled = permit.settle([("k", 500)]).unwrap();
        let amount = settled.settlement().unwrap().amount("k").unwrap();
        assert_eq!((amount.charged(), amount.debt()), (1, 499));
        assert_eq!(limiter.usage("k").unwrap().available(), 700);
    });
}

/// Defining many limits one after the other took longer for each of them.
#[test]
fn patterns_are_found_without_a_look_at_all_definitions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    drop(Limiter::open(&path).unwrap());
    let connection = quotalite::rusqlite::Connection::open(&path).unwrap();
    let plan: String = connection
        .query_row(
            "EXPLAIN QUERY PLAN SELECT limit_id, key FROM limit_definition WHERE is_pattern",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("limit_definition_patterns"), "{plan}");
}
