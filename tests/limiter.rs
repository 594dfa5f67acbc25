//! What callers see, told as small stories on a clock that stands still.
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use quotalite::{
    Clock, Definition, Error, HOUR, Limit, Limiter, MINUTE, ManualClock, OnConflict, Peek, Request,
    SECOND, Timestamp,
};
use support::{in_both_stores, on_file, open_raw};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_request_is_charged_whole_or_not_at_all() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("requests").per_second(10))
            .unwrap();
        limiter
            .define(Limit::new("tokens").rate(90_000, MINUTE))
            .unwrap();
        let ask = Request::new().take("requests", 1).take("tokens", 60_000);
        assert!(limiter.try_acquire(&ask).unwrap().is_granted());
        let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
        assert_eq!(denial.key(), "tokens");
        assert_eq!(denial.obstacle().to_string(), "90000/min");
        assert_eq!(
            (denial.amount(), denial.retry_after()),
            (60_000, Some(MINUTE))
        );
        assert_eq!(
            denial.to_string(),
            "limit `tokens` (90000/min) admits 60000 in 1min"
        );
        assert_eq!(limiter.usage("requests").unwrap().available(), 9);
        clock.advance(MINUTE);
        assert!(limiter.try_acquire(&ask).unwrap().is_granted());
    });
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_once_and_books_nothing() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        assert_eq!(limiter.acquire("k").unwrap().waited(), Duration::ZERO);
        let before = limiter.usage("k").unwrap();
        let Err(Error::TooLate {
            denial, deadline, ..
        }) = limiter.acquire_within("k", 400 * MS)
        else {
            panic!("a wait of a second fits into 400 ms");
        };
        assert_eq!(denial.retry_after(), Some(SECOND));
        assert_eq!(deadline.saturating_duration_since(denial.now()), 400 * MS);
        assert!(limiter.acquire_until("k", denial.now()).is_err());
        assert_eq!(limiter.usage("k").unwrap(), before);
        clock.advance(600 * MS);
        assert_eq!(
            limiter.book_within("k", 400 * MS).unwrap().wait_time(),
            400 * MS
        );
    });
}

#[test]
fn a_deadline_that_has_passed_means_now() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        assert!(limiter.acquire_until("k", Timestamp::from_nanos(0)).is_ok());
        assert!(limiter.acquire_within("k", Duration::ZERO).is_err());
    });
}

#[test]
fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        let _first = limiter.acquire("k").unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..5)
            .map(|number| {
                let waiting = limiter.book("k").unwrap();
                let order = Arc::clone(&order);
                thread::spawn(move || {
                    let permit = waiting.wait().unwrap();
                    order.lock().unwrap().push((number, permit.waited()));
                })
            })
            .collect();
        for served in 0..=5 {
            while clock.sleepers() > 5 - served || order.lock().unwrap().len() < served {
                thread::yield_now();
            }
            clock.advance(SECOND);
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let expected: Vec<_> = (0..5)
            .map(|number| (number, (number + 1) * SECOND))
            .collect();
        assert_eq!(*order.lock().unwrap(), expected);
    });
}

#[test]
fn dropping_or_cancelling_a_booking_gives_its_place_to_the_next() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        let now = limiter.book("k").unwrap();
        let later = limiter.book("k").unwrap();
        assert_eq!(later.wait_time(), SECOND);
        drop(later);
        assert_eq!(limiter.book("k").unwrap().wait_time(), SECOND);
        now.cancel().unwrap();
        let now = limiter.book("k").unwrap();
        assert_eq!(now.wait_time(), Duration::ZERO);
        let _permit = now.wait().unwrap();
        clock.advance(Duration::from_nanos(999_999_999));
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
    });
}

#[test]
fn a_small_request_fills_a_gap_only_where_it_delays_nobody() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").rate(10, SECOND)).unwrap();
        let _eight = limiter.acquire(("k", 8)).unwrap();
        clock.advance(500 * MS);
        let large = limiter.book(("k", 9)).unwrap();
        assert_eq!(large.wait_time(), 500 * MS);
        // One fits beside both: 8 + 1 now, 1 + 9 later. Two would push the large one back.
        let denial = limiter.try_acquire(("k", 2)).unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(1_500 * MS));
        assert_eq!(limiter.usage("k").unwrap().available(), 1);
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
        assert_eq!(
            large.at(),
            limiter.now().unwrap().checked_add(500 * MS).unwrap()
        );
    });
}

#[test]
fn peek_says_what_would_happen_and_consumes_nothing() {
    in_both_stores(|limiter, _| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        for _ in 0..3 {
            assert_eq!(limiter.peek("k").unwrap(), Peek::Now);
        }
        let _permit = limiter.acquire("k").unwrap();
        let peeked = limiter.peek("k").unwrap();
        assert_eq!(peeked.denial().unwrap().retry_after(), Some(SECOND));
        assert_eq!(
            limiter.try_acquire("k").unwrap().denied().as_ref(),
            peeked.denial()
        );
    });
}

#[test]
fn a_pad_lengthens_the_window() {
    in_both_stores(|limiter, _| {
        limiter
            .define(Limit::new("k").per_second(1).pad(50 * MS))
            .unwrap();
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        let denial = limiter.try_acquire("k").unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(1_050 * MS));
    });
}

#[test]
fn what_can_never_fit_is_said_at_once() {
    in_both_stores(|limiter, _| {
        limiter
            .define(Limit::new("k").per_second(10).per_minute(5))
            .unwrap();
        for amount in [6, 11, u64::MAX] {
            let Err(Error::NeverFits {
                key,
                obstacle,
                amount: asked,
                ..
            }) = limiter.acquire(("k", amount))
            else {
                panic!("{amount} was admitted");
            };
            assert_eq!(
                (key.as_str(), obstacle.to_string(), asked),
                ("k", "5/min".into(), amount)
            );
        }
        assert!(matches!(
            limiter.try_acquire("unheard"),
            Err(Error::UnknownLimit { key, .. }) if key == "unheard"
        ));
        assert!(matches!(
            limiter.usage("unheard"),
            Err(Error::UnknownLimit { .. })
        ));
    });
}

#[test]
fn a_different_definition_is_the_callers_decision() {
    in_both_stores(|limiter, _| {
        let first = Limit::new("k").per_second(10).build().unwrap();
        let second = Limit::new("k")
            .per_second(20)
            .unit("calls")
            .build()
            .unwrap();
        assert_eq!(limiter.define(&first).unwrap(), Definition::Created);
        assert_eq!(limiter.define(&first).unwrap(), Definition::Unchanged);
        let error = limiter.define(&second).unwrap_err().to_string();
        assert!(
            error.contains("`k: 10/s`, not as `k: 20 calls/s`"),
            "{error}"
        );
        assert_eq!(
            limiter.define_or(&second, OnConflict::Adopt).unwrap(),
            Definition::Adopted(first.clone())
        );
        assert_eq!(limiter.limit("k").unwrap(), first);
        assert_eq!(
            limiter.define_or(&second, OnConflict::Replace).unwrap(),
            Definition::Replaced(first)
        );
        assert_eq!(limiter.limits().unwrap(), [second]);
        assert!(matches!(
            limiter.define(Limit::new("").per_second(1)),
            Err(Error::Definition { .. })
        ));
    });
}

#[test]
fn a_replaced_definition_holds_for_every_limiter_of_the_file_at_once() {
    let (scratch, one, clock) = on_file();
    let other = Limiter::builder(scratch.file())
        .clock(clock)
        .open()
        .unwrap();
    one.define(Limit::new("k").per_minute(2)).unwrap();
    assert!(other.try_acquire(("k", 2)).unwrap().is_granted());
    assert!(!other.try_acquire("k").unwrap().is_granted());
    one.define_or(Limit::new("k").per_minute(3), OnConflict::Replace)
        .unwrap();
    assert!(other.try_acquire("k").unwrap().is_granted());
    one.define_or(Limit::new("k").per_minute(1), OnConflict::Replace)
        .unwrap();
    let denial = other.try_acquire("k").unwrap().denied().unwrap();
    assert_eq!(
        (denial.retry_after(), denial.obstacle().capacity()),
        (Some(MINUTE), 1)
    );
}

#[test]
fn keys_are_data_and_never_sql() {
    in_both_stores(|limiter, _| {
        let keys = [
            "'; DROP TABLE charge; --",
            "a\"b",
            "%",
            "_",
            "ключ",
            "\u{1F980}",
            "a b",
        ];
        for key in keys {
            limiter.define(Limit::new(key).per_second(1)).unwrap();
            assert!(limiter.try_acquire(key).unwrap().is_granted());
            assert!(!limiter.try_acquire(key).unwrap().is_granted());
        }
        assert_eq!(limiter.limits().unwrap().len(), keys.len());
    });
}

#[test]
fn a_line_beyond_the_calendar_is_an_error_and_charges_nothing() {
    in_both_stores(|limiter, _| {
        limiter
            .define(Limit::new("k").rate(1, quotalite::MAX_WINDOW))
            .unwrap();
        let mut permits = 0;
        let error = loop {
            match limiter.book("k") {
                Ok(booking) => drop(booking.accept()),
                Err(error) => break error,
            }
            permits += 1;
            assert!(
                permits < 400,
                "366 days each, from 2023 on, do not end before the year 2262"
            );
        };
        assert!(matches!(error, Error::BeyondCalendar { .. }), "{error}");
        assert!(permits > 200);
        assert!(matches!(
            limiter.try_acquire("k"),
            Err(Error::BeyondCalendar { .. })
        ));
        assert!(limiter.usage("k").is_ok());
    });
}

#[test]
fn what_has_expired_is_swept_by_those_who_come_by() {
    let (scratch, limiter, clock) = on_file();
    limiter
        .define(Limit::new("busy").rate(1_000, SECOND))
        .unwrap();
    limiter
        .define(Limit::new("idle").rate(1_000, SECOND))
        .unwrap();
    for _ in 0..500 {
        assert!(limiter.try_acquire("idle").unwrap().is_granted());
    }
    let mut most = 0;
    for _ in 0..5_000 {
        assert!(limiter.try_acquire("busy").unwrap().is_granted());
        clock.advance(10 * MS);
        most = most.max(scratch.sqlite("SELECT count(*) FROM charge WHERE limit_id = 1"));
    }
    assert_eq!(
        scratch.sqlite::<i64>("SELECT count(*) FROM charge WHERE limit_id = 2"),
        0
    );
    // A window holds 100, another second is kept for the clock, and a sweep comes every 128 charges.
    assert!(most <= 100 + 100 + 128, "{most}");
}

#[test]
fn the_file_shrinks_when_what_was_large_has_expired() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("k").rate(1 << 40, HOUR)).unwrap();
    let now_ns = limiter.now().unwrap().as_nanos();
    open_raw(&scratch.file())
        .execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 20000)
             INSERT INTO charge (limit_id, at_ns, seq, amount, total)
             SELECT 1, ?1 - 1000000 + n, 0, 1, n FROM n",
            [now_ns],
        )
        .unwrap();
    let bytes = || {
        scratch
            .sqlite::<i64>("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    };
    let large = bytes();
    // A sweep removes 256 for 128 that are added.
    for _ in 0..128 * 165 {
        clock.advance(3 * HOUR);
        assert!(limiter.try_acquire("k").unwrap().is_granted());
    }
    assert!(
        large > 440 << 10 && bytes() < 420 << 10,
        "{large} bytes, then {}",
        bytes()
    );
}

/// A clock that goes on by a nanosecond after it was looked at, once it is told to.
#[derive(Debug)]
struct Hurrying {
    clock: ManualClock,
    hurries: Arc<AtomicBool>,
}

impl Clock for Hurrying {
    fn boot(&self) -> quotalite::BootId {
        self.clock.boot()
    }

    fn elapsed(&self) -> Duration {
        let elapsed = self.clock.elapsed();
        if self.hurries.swap(false, Ordering::SeqCst) {
            self.clock.advance(Duration::from_nanos(1));
        }
        elapsed
    }

    fn wall(&self) -> std::time::SystemTime {
        self.clock.wall()
    }

    fn sleep_until(&self, deadline: Duration) {
        self.clock.sleep_until(deadline);
    }
}

/// A process waits for its turn, goes ahead and dies, all while another one is in the middle of a
/// transaction that began before that turn: it must not take the charge for one that was not used.
#[test]
fn a_turn_that_came_before_its_owner_was_seen_dead_counts_as_used() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("k").per_second(1)).unwrap();
    let _first = limiter.acquire("k").unwrap();
    let turn = limiter.book("k").unwrap().accept().at();
    let hurries = Arc::new(AtomicBool::new(false));
    let hurrying = Hurrying {
        clock: clock.clone(),
        hurries: Arc::clone(&hurries),
    };
    let other = Limiter::builder(scratch.file())
        .clock(hurrying)
        .open()
        .unwrap();
    drop(limiter);
    clock.advance(Duration::from_nanos(999_999_999));
    hurries.store(true, Ordering::SeqCst);
    let denial = other.try_acquire("k").unwrap().denied().unwrap();
    assert_eq!(
        denial.now().checked_add(Duration::from_nanos(1)),
        Some(turn)
    );
    assert_eq!(denial.retry_at(), turn.checked_add(SECOND));
}

#[test]
fn the_clock_of_a_limiter_is_the_files() {
    let (scratch, limiter, clock) = on_file();
    let start = limiter.now().unwrap();
    clock.advance(SECOND);
    clock.set_wall(std::time::SystemTime::UNIX_EPOCH);
    limiter.define(Limit::new("k").per_second(1)).unwrap();
    assert!(limiter.try_acquire("k").unwrap().is_granted());
    // Another boot, ten seconds old, whose battery is dead.
    clock.reboot(10 * SECOND);
    let rebooted = Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap();
    let gone = rebooted.now().unwrap().saturating_duration_since(start);
    assert!(gone >= 10 * SECOND && gone <= 11 * SECOND, "{gone:?}");
    assert!(
        rebooted.try_acquire("k").unwrap().is_granted(),
        "nobody is locked out"
    );
    assert_eq!(clock.elapsed(), 10 * SECOND);
}
