//! Limits that merge what is charged within a span of time.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    Error, HOUR, Limit, LimitBuilder, Limiter, MINUTE, ManualClock, OnConflict, Peek, Request,
    SECOND,
};
use support::{Scratch, in_both_stores, on_file, open};

const MS: Duration = Duration::from_millis(1);
const NS: Duration = Duration::from_nanos(1);

/// Ten a second, merged within a tenth of it.
fn merged() -> LimitBuilder {
    Limit::new("k").per_second(10).resolution(100 * MS)
}

/// Goes on to the next beginning of such a span.
fn go_to_next(clock: &ManualClock, limiter: &Limiter, span: Duration) {
    let span_ns = i64::try_from(span.as_nanos()).unwrap();
    let left_ns = span_ns - limiter.now().unwrap().as_nanos().rem_euclid(span_ns);
    clock.advance(Duration::from_nanos(left_ns.unsigned_abs()));
}

fn available(limiter: &Limiter) -> u64 {
    limiter.usage("k").unwrap().available()
}

fn is_granted(limiter: &Limiter, amount: u64) -> bool {
    limiter.try_acquire(("k", amount)).unwrap().is_granted()
}

fn rows(scratch: &Scratch) -> i64 {
    scratch.sqlite("SELECT count(*) FROM charge")
}

#[test]
fn what_is_merged_counts_for_a_window_from_the_end_of_its_span() {
    in_both_stores(|limiter, clock| {
        limiter.define(merged()).unwrap();
        go_to_next(clock, limiter, 100 * MS);
        clock.advance(30 * MS);
        assert!(is_granted(limiter, 4));
        clock.advance(40 * MS);
        assert!(is_granted(limiter, 6));
        let denial = limiter.try_acquire("k").unwrap().denied().unwrap();
        // The span has 30 ms to go, and then it is a second.
        assert_eq!(denial.retry_after(), Some(30 * MS + SECOND));
        let release = limiter.usage("k").unwrap().rates()[0].next_release();
        assert_eq!(release, denial.retry_at());
        clock.advance(30 * MS + 999 * MS + 999_999 * NS);
        assert!(!is_granted(limiter, 1));
        clock.advance(NS);
        assert!(is_granted(limiter, 10));
    });
}

#[test]
fn an_hour_of_charges_is_as_many_rows_as_it_has_spans() {
    let (scratch, limiter, clock) = on_file();
    let limit = Limit::new("k").rate(1_000_000, HOUR).resolution(MINUTE);
    limiter.define(limit).unwrap();
    for _ in 0..4_000 {
        clock.advance(3 * SECOND);
        assert!(is_granted(&limiter, 2));
    }
    // 200 minutes have gone by; what an hour and a minute no longer hold is swept.
    assert!(rows(&scratch) <= 64, "{}", rows(&scratch));
    let used = limiter.usage("k").unwrap().rates()[0].used();
    assert!((2_400..=2_440).contains(&used), "{used}");
}

#[test]
fn each_permit_of_a_row_settles_and_cancels_its_own_part() {
    in_both_stores(|limiter, _| {
        limiter.define(merged().per_hour(30)).unwrap();
        let granted = |amount| limiter.try_acquire(("k", amount)).unwrap().granted();
        let [a, b, c] = [2, 3, 4].map(|amount| granted(amount).unwrap());
        assert_eq!(available(limiter), 1);
        b.cancel().unwrap();
        assert_eq!(available(limiter), 4);
        a.settle([("k", 1)]).unwrap();
        assert_eq!(available(limiter), 5);
        c.settle([("k", 8)]).unwrap();
        assert_eq!(available(limiter), 1);
        assert!(is_granted(limiter, 1));
        assert!(!is_granted(limiter, 1));
    });
}

#[test]
fn an_empty_row_is_none() {
    let (scratch, limiter, _clock) = on_file();
    limiter.define(merged()).unwrap();
    for _ in 0..3 {
        let permits = [4, 6].map(|amount| {
            let decision = limiter.try_acquire(("k", amount)).unwrap();
            decision.granted().unwrap()
        });
        assert_eq!(rows(&scratch), 1);
        for permit in permits {
            permit.cancel().unwrap();
        }
        assert_eq!((rows(&scratch), available(&limiter)), (0, 10));
    }
}

#[test]
fn bookings_share_a_row_and_each_is_cancelled_by_itself() {
    in_both_stores(|limiter, clock| {
        limiter.define(merged()).unwrap();
        go_to_next(clock, limiter, 100 * MS);
        assert!(is_granted(limiter, 10));
        let book = |amount| limiter.book(("k", amount)).unwrap();
        let [first, second, third] = [5, 3, 4].map(book);
        assert_eq!(first.at(), second.at());
        // Behind them only two are left of that span.
        assert!(third.at() > second.at());
        drop(first);
        assert_eq!(book(7).at(), second.at());
    });
}

#[test]
fn what_a_dead_process_has_booked_of_a_row_comes_back_and_the_rest_stays() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(merged()).unwrap();
    go_to_next(&clock, &limiter, 100 * MS);
    clock.advance(20 * MS);
    assert!(is_granted(&limiter, 10));
    let other = open(&scratch, &clock);
    let kept = limiter.book(("k", 4)).unwrap();
    let ask = Request::new().take("k", 3).id("lost");
    let (lost, named) = (other.book(("k", 2)).unwrap(), other.book(&ask).unwrap());
    assert_eq!([lost.at(), named.at()], [kept.at(); 2]);
    assert_eq!(rows(&scratch), 2);
    // Nobody gives them back when the other limiter is gone, and with it what says that its owner lives.
    forget_bookings_of(&scratch, || drop((lost, named, other)));
    let next = limiter.book(("k", 6)).unwrap();
    assert_eq!(next.at(), kept.at());
    assert!(limiter.book("k").unwrap().at() > kept.at());
    let amount: i64 = scratch.sqlite("SELECT max(amount) FROM charge");
    assert_eq!(amount, 10);
}

/// Its row stands at the beginning of the span, and that has come.
#[test]
fn what_a_dead_process_has_booked_comes_back_up_to_its_very_instant() {
    let (scratch, limiter, clock) = on_file();
    let limit = Limit::new("k").rate(1, 90 * SECOND).resolution(MINUTE);
    limiter.define(limit).unwrap();
    go_to_next(&clock, &limiter, MINUTE);
    assert!(is_granted(&limiter, 1));
    let other = open(&scratch, &clock);
    let lost = other.book("k").unwrap();
    assert_eq!(lost.wait_time(), 150 * SECOND);
    let due = lost.at();
    clock.advance(130 * SECOND);
    // Who looks without the lock sees that somebody has died, too.
    assert!(!is_granted(&limiter, 1) && !is_granted(&limiter, 1));
    forget_bookings_of(&scratch, || drop((lost, other)));
    assert_eq!(limiter.book("k").unwrap().at(), due);
}

#[test]
fn what_is_settled_before_its_instant_grows_as_far_as_it_fits_from_there_on() {
    in_both_stores(|limiter, clock| {
        let limit = Limit::new("k").rate(10, 90 * SECOND).resolution(MINUTE);
        limiter.define(limit).unwrap();
        go_to_next(clock, limiter, MINUTE);
        assert!(is_granted(limiter, 10));
        let booking = limiter.book(("k", 4)).unwrap();
        clock.advance(130 * SECOND);
        let settled = booking.accept().settle([("k", 9)]).unwrap();
        let amount = settled.settlement().unwrap().amount("k").unwrap();
        assert_eq!((amount.charged(), amount.debt()), (9, 0));
        clock.advance(20 * SECOND);
        assert_eq!(available(limiter), 1);
    });
}

/// Lets the file be after something as it was before, as if nobody had written.
fn forget_bookings_of(scratch: &Scratch, something: impl FnOnce()) {
    const TABLES: [&str; 4] = ["charge", "booking", "permit", "permit_charge"];
    let connection = support::open_raw(&scratch.file());
    for table in TABLES {
        let keep = format!("CREATE TEMP TABLE kept_{table} AS SELECT * FROM main.{table}");
        connection.execute_batch(&keep).unwrap();
    }
    something();
    for table in TABLES {
        let bring_back = format!(
            "DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM kept_{table}"
        );
        connection.execute_batch(&bring_back).unwrap();
    }
}

#[test]
fn threads_that_share_a_row_take_what_there_is_and_no_more() {
    let (scratch, limiter, _clock) = on_file();
    let limit = Limit::new("k").per_day(1_000).resolution(MINUTE);
    limiter.define(limit).unwrap();
    let granted = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while is_granted(&limiter, 1) {
                    granted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(granted.into_inner(), 1_000);
    assert_eq!(rows(&scratch), 1);
    let amount: i64 = scratch.sqlite("SELECT amount FROM charge");
    assert_eq!(amount, 1_000);
}

#[test]
fn what_was_used_of_a_block_is_merged_when_it_is_given_back() {
    in_both_stores(|limiter, clock| {
        limiter.define(merged()).unwrap();
        go_to_next(clock, limiter, 100 * MS);
        assert!(is_granted(limiter, 1));
        let hot = limiter.blocks("k", 8).unwrap();
        assert!(hot.try_acquire_many(2).unwrap().is_granted());
        assert_eq!(available(limiter), 1);
        hot.give_back().unwrap();
        assert_eq!(available(limiter), 7);
        clock.advance(SECOND + 100 * MS);
        assert_eq!(available(limiter), 10);
    });
}

#[test]
fn a_resolution_becomes_coarser_but_not_finer() {
    in_both_stores(|limiter, clock| {
        limiter.define(merged()).unwrap();
        go_to_next(clock, limiter, 500 * MS);
        clock.advance(450 * MS);
        assert!(is_granted(limiter, 10));
        let finer = merged().resolution(50 * MS);
        let refused = limiter.define_or(finer, OnConflict::Replace).unwrap_err();
        assert!(matches!(refused, Error::Finer { .. }), "{refused}");
        let message = refused.to_string();
        assert!(
            message.contains("limit `k` cannot have a finer resolution")
                && message.contains("k: 10/s, resolution 100ms"),
            "{message}"
        );
        let exact = limiter.update("k", |limit| limit.to_builder().resolution(Duration::ZERO));
        assert!(matches!(exact, Err(Error::Finer { .. })), "{exact:?}");
        // What is charged stands at 400 ms, and now counts for a second and a half from there.
        limiter
            .update("k", |limit| limit.to_builder().resolution(500 * MS))
            .unwrap();
        let denial = limiter.try_acquire("k").unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(1_450 * MS));
        limiter.force_remove("k").unwrap();
        limiter.define(merged().resolution(MS)).unwrap();
        assert!(is_granted(limiter, 10));
    });
}

#[test]
fn what_a_pattern_has_merged_is_not_taken_over_by_a_finer_one() {
    in_both_stores(|limiter, _| {
        let hourly = |limit: LimitBuilder| limit.per_hour(10);
        limiter
            .define(hourly(Limit::pattern("t:*")).resolution(MINUTE))
            .unwrap();
        assert!(limiter.try_acquire("t:ab").unwrap().is_granted());
        let finer = [
            hourly(Limit::new("t:ab")),
            hourly(Limit::pattern("t:a*")).resolution(SECOND),
        ];
        for limit in finer {
            let refused = limiter.define(limit).unwrap_err();
            assert!(matches!(refused, Error::Finer { .. }), "{refused}");
        }
        // Nothing was merged for these.
        limiter.define(hourly(Limit::new("t:b"))).unwrap();
        limiter
            .define(hourly(Limit::pattern("t:a*")).resolution(2 * MINUTE))
            .unwrap();
        assert_eq!(limiter.usage("t:ab").unwrap().available(), 9);
    });
}

#[test]
fn people_see_the_resolution_and_what_is_merged() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(merged()).unwrap();
    go_to_next(&clock, &limiter, 100 * MS);
    assert!(is_granted(&limiter, 3));
    clock.advance(60 * MS);
    assert!(is_granted(&limiter, 4));
    let limit: String =
        scratch.sqlite("SELECT resolution_ns || ' ' || definition FROM limits WHERE key = 'k'");
    assert_eq!(limit, "100000000 10/s, resolution 100ms");
    let charges: String = scratch.sqlite("SELECT group_concat(amount, ' ') FROM charges");
    assert_eq!(charges, "7");
    let entered_ns: i64 = scratch.sqlite("SELECT at_ns % 100000000 FROM charges WHERE key = 'k'");
    assert_eq!(entered_ns, 0);
}

/// The earliest instant at which an amount of one limit fits, in nanoseconds from now.
fn wait_ns(limiter: &Limiter, key: &str, amount: u64) -> u128 {
    match limiter.peek((key, amount)).unwrap() {
        Peek::Now => 0,
        Peek::Later(denial) => denial.retry_after().unwrap().as_nanos(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever was charged: with a resolution nothing is admitted before it would be without one, and as long as
    /// nobody has booked, nothing later than by the resolution.
    #[test]
    fn a_resolution_delays_by_itself_at_most_and_never_hastens(
        window_ms in 2_u64..=400,
        part in 1_u32..=12,
        pad_us in prop_oneof![Just(0_u64), 0..=5_000_u64],
        capacity in 1_u64..=9,
        steps in prop::collection::vec((0_u64..=90_000, 1_u64..=4), 1..60),
    ) {
        let window = Duration::from_millis(window_ms);
        let resolution = window / part;
        let pad = Duration::from_micros(pad_us);
        let limit = |key: &str| Limit::new(key).rate(capacity, window).pad(pad);
        let clock = ManualClock::new();
        let limiter = Limiter::in_memory_with(clock.clone());
        limiter.define(limit("exact")).unwrap();
        limiter.define(limit("merged").resolution(resolution)).unwrap();
        for (stride_us, amount) in steps {
            clock.advance(Duration::from_micros(stride_us));
            let amount = amount.min(capacity);
            let exact_ns = wait_ns(&limiter, "exact", amount);
            let merged_ns = wait_ns(&limiter, "merged", amount);
            prop_assert!(exact_ns <= merged_ns, "{exact_ns} {merged_ns}");
            prop_assert!(merged_ns <= exact_ns + resolution.as_nanos(), "{exact_ns} {merged_ns}");
            let both = Request::new().take("exact", amount).take("merged", amount);
            let _ = limiter.try_acquire(&both).unwrap();
        }
    }
}
