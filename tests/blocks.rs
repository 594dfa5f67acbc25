//! Blocks: amounts that a process takes at once, and hands out from memory.

mod support;

use std::time::Duration;

use quotalite::{
    Backoff, Decision, Error, Limit, Limiter, MINUTE, ManualClock, OnConflict, PausePolicy,
    RateUsage, RequestError, SECOND,
};
use support::{in_both_stores, on_file, open};

const MS: Duration = Duration::from_millis(1);
const NS: Duration = Duration::from_nanos(1);

/// Lets all of this time go by but for a nanosecond.
fn advance_nearly(clock: &ManualClock, duration: Duration) {
    clock.advance(duration.checked_sub(NS).unwrap());
}

fn used(limiter: &Limiter) -> u64 {
    limiter.usage("hot").unwrap().rates()[0].used()
}

fn define(limiter: &Limiter, capacity: u64) {
    limiter
        .define(Limit::new("hot").per_second(capacity))
        .unwrap();
}

fn is_granted(decision: Result<Decision<()>, Error>) -> bool {
    decision.unwrap().is_granted()
}

#[test]
fn a_block_counts_from_when_it_is_taken_until_a_window_after_its_end() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        let hot = limiter.blocks("hot", 6).unwrap();
        assert!(is_granted(hot.try_acquire()));
        assert_eq!(used(limiter), 6);
        assert!(!limiter.try_acquire(("hot", 5)).unwrap().is_granted());
        assert!(limiter.try_acquire(("hot", 4)).unwrap().is_granted());
        // The others have left by then; nobody knows what was used of the block.
        clock.advance(SECOND);
        assert_eq!(used(limiter), 6);
        let denial = limiter.try_acquire(("hot", 5)).unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(100 * MS));
        advance_nearly(clock, 100 * MS);
        assert_eq!(used(limiter), 6);
        clock.advance(NS);
        assert_eq!(used(limiter), 0);
        std::mem::forget(hot);
    });
}

#[test]
fn what_a_block_holds_is_handed_out_until_it_ends_and_not_at_its_end() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        let hot = limiter.blocks("hot", 4).unwrap().lifetime(10 * MS);
        assert!(is_granted(hot.try_acquire()));
        advance_nearly(clock, 10 * MS);
        assert!(is_granted(hot.try_acquire_many(2)));
        assert_eq!(used(limiter), 4);
        clock.advance(NS);
        // A new one is taken, and of the former one 3 stay charged.
        assert!(is_granted(hot.try_acquire()));
        assert_eq!(used(limiter), 3 + 4);
    });
}

#[test]
fn what_is_left_comes_back_when_the_next_is_taken_and_when_it_is_dropped() {
    in_both_stores(|limiter, clock| {
        define(limiter, 100);
        let hot = limiter.blocks("hot", 10).unwrap();
        assert!(is_granted(hot.try_acquire_many(4)));
        assert_eq!(used(limiter), 10);
        assert!(is_granted(hot.try_acquire_many(7)));
        assert_eq!(used(limiter), 4 + 10);
        clock.advance(50 * MS);
        drop(hot);
        assert_eq!(used(limiter), 4 + 7);
        // What was used counts from when it was given back.
        advance_nearly(clock, SECOND);
        assert_eq!(used(limiter), 7);
        clock.advance(NS);
        assert_eq!(used(limiter), 0);
    });
}

#[test]
fn a_block_that_has_ended_gives_back_what_was_left_when_somebody_asks_again() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("hot").rate(10, MINUTE)).unwrap();
        let hot = limiter.blocks("hot", 10).unwrap();
        assert!(is_granted(hot.try_acquire()));
        clock.advance(30 * SECOND);
        assert!(!limiter.try_acquire("hot").unwrap().is_granted());
        hot.give_back().unwrap();
        assert_eq!(used(limiter), 1);
        // At its end, where the last of it may have been used.
        advance_nearly(clock, 30 * SECOND + 100 * MS);
        assert_eq!(used(limiter), 1);
        clock.advance(NS);
        assert_eq!(used(limiter), 0);
    });
}

#[test]
fn where_no_block_fits_a_call_is_charged_by_itself_or_denied_as_any_other() {
    in_both_stores(|limiter, _| {
        define(limiter, 10);
        assert!(limiter.try_acquire(("hot", 7)).unwrap().is_granted());
        let hot = limiter.blocks("hot", 100).unwrap();
        // Two of the three that are left, so that the block has one more.
        assert!(is_granted(hot.try_acquire_many(2)));
        assert_eq!(used(limiter), 10);
        assert!(is_granted(hot.try_acquire()));
        let denial = hot.try_acquire().unwrap().denied().unwrap();
        assert_eq!(limiter.try_acquire("hot").unwrap().denied(), Some(denial));
        // The block has ended with that: what was used of it counts as of now.
        assert_eq!(used(limiter), 10);
        let error = hot.try_acquire_many(11).unwrap_err();
        assert!(
            matches!(error, Error::NeverFits { amount: 11, .. }),
            "{error}"
        );
    });
}

#[test]
fn a_block_is_in_nobodys_way_who_has_booked() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        assert!(limiter.try_acquire(("hot", 10)).unwrap().is_granted());
        let booking = limiter.book(("hot", 8)).unwrap();
        clock.advance(950 * MS);
        let hot = limiter.blocks("hot", 10).unwrap();
        assert!(!is_granted(hot.try_acquire()));
        clock.advance(50 * MS);
        // With those who have booked, two are left.
        assert!(is_granted(hot.try_acquire()));
        assert_eq!(used(limiter), 10);
        drop(booking.accept());
        // And who books now is put behind the block: its lifetime, and one window.
        let booking = limiter.book(("hot", 3)).unwrap();
        assert_eq!(booking.wait_time(), SECOND);
        let behind = limiter.book(("hot", 7)).unwrap();
        assert_eq!(behind.wait_time(), SECOND + 100 * MS);
    });
}

#[test]
fn only_rates_are_handed_out_in_blocks() {
    in_both_stores(|limiter, _| {
        define(limiter, 10);
        limiter.define(Limit::slots("slots", 2)).unwrap();
        limiter
            .define(Limit::new("bucket").burst(5).refill(1, SECOND))
            .unwrap();
        for (key, kind) in [("slots", "slots"), ("bucket", "a bucket")] {
            let error = limiter.blocks(key, 5).unwrap_err();
            let must_be = RequestError::NotInBlocks {
                key: key.to_owned(),
                kind,
            };
            assert!(matches!(error, Error::Request(error) if error == must_be));
        }
        let error = limiter.blocks("hot", 0).unwrap_err();
        assert_eq!(error.to_string(), "the amount of `hot` is zero");
        let error = limiter.blocks("hot", 1).unwrap().try_acquire_many(0);
        assert_eq!(
            error.unwrap_err().to_string(),
            "the amount of `hot` is zero"
        );
        let error = limiter.blocks("cold", 5).unwrap_err();
        assert!(matches!(error, Error::UnknownLimit { .. }));
        // It becomes one of slots while its blocks are handed out.
        let hot = limiter.blocks("hot", 5).unwrap();
        assert!(is_granted(hot.try_acquire()));
        limiter.force_remove("hot").unwrap();
        limiter.define(Limit::slots("hot", 2)).unwrap();
        assert!(is_granted(hot.try_acquire_many(4)));
        let error = hot.try_acquire().unwrap_err();
        assert!(matches!(
            error,
            Error::Request(RequestError::NotInBlocks { .. })
        ));
    });
}

#[test]
fn a_limit_is_in_use_while_a_block_is_open() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        let hot = limiter.blocks("hot", 5).unwrap();
        assert!(is_granted(hot.try_acquire()));
        let Error::InUse { by, .. } = limiter.remove("hot").unwrap_err() else {
            panic!("it is in use");
        };
        assert_eq!((by.blocks, by.bookings), (1, 0));
        assert_eq!(by.to_string(), "open blocks: 1");
        clock.advance(100 * MS);
        limiter.remove("hot").unwrap();
        drop(hot);
    });
}

#[test]
fn keys_of_patterns_and_several_rates_are_handed_out_in_blocks() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::pattern("tenant:*").per_second(10).rate(12, MINUTE))
            .unwrap();
        let hot = limiter.blocks("tenant:1", 8).unwrap();
        assert!(is_granted(hot.try_acquire()));
        for _ in 0..7 {
            assert!(is_granted(hot.try_acquire()));
        }
        clock.advance(2 * SECOND);
        assert!(is_granted(hot.try_acquire_many(2)));
        let usage = limiter.usage("tenant:1").unwrap();
        let used: Vec<u64> = usage.rates().iter().map(RateUsage::used).collect();
        assert_eq!(used, [4, 12]);
        assert_eq!(usage.available(), 0);
    });
}

#[test]
fn a_lowered_limit_takes_nothing_back_from_a_block() {
    in_both_stores(|limiter, _| {
        define(limiter, 10);
        let hot = limiter.blocks("hot", 8).unwrap();
        assert!(is_granted(hot.try_acquire()));
        let lower = Limit::new("hot").per_second(4);
        limiter.define_or(lower, OnConflict::Replace).unwrap();
        assert!(limiter.usage("hot").unwrap().is_decreasing());
        for _ in 0..7 {
            assert!(is_granted(hot.try_acquire()));
        }
        assert!(!is_granted(hot.try_acquire()));
    });
}

#[test]
fn a_pause_of_no_time_ends_no_block() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        let policy = PausePolicy::default().first(SECOND).escalate(3, SECOND);
        limiter
            .define(Limit::new("other").per_second(1).pauses(policy))
            .unwrap();
        limiter.pause("other", Backoff::strike()).unwrap();
        // The strike does not count any more, and nobody has swept it.
        clock.advance(MINUTE);
        let hot = limiter.blocks("hot", 5).unwrap().lifetime(MINUTE);
        assert!(is_granted(hot.try_acquire()));
        let nothing = Backoff::planned(Duration::ZERO);
        limiter.pause("other", nothing).unwrap();
        assert!(is_granted(hot.try_acquire()));
        assert_eq!(used(limiter), 5, "no other block was taken");
    });
}

#[test]
fn a_clock_that_falls_back_ends_the_block() {
    in_both_stores(|limiter, clock| {
        define(limiter, 10);
        let hot = limiter.blocks("hot", 8).unwrap();
        clock.advance(50 * MS);
        assert!(is_granted(hot.try_acquire()));
        clock.reboot(MS);
        assert!(is_granted(hot.try_acquire()));
        assert!(used(limiter) >= 2);
        assert_eq!(
            limiter.usage("hot").unwrap().available(),
            10 - used(limiter)
        );
    });
}

/// What a process that dies has taken.
#[test]
fn a_block_that_nobody_gives_back_counts_and_then_does_not() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter, 10);
    let dead = open(&scratch, &clock);
    let hot = dead.blocks("hot", 10).unwrap();
    assert!(is_granted(hot.try_acquire()));
    std::mem::forget(hot);
    drop(dead);
    let denial = limiter.try_acquire("hot").unwrap().denied().unwrap();
    assert_eq!(denial.retry_after(), Some(SECOND + 100 * MS));
    clock.advance(SECOND + 100 * MS);
    assert!(limiter.try_acquire(("hot", 10)).unwrap().is_granted());
    // The first acquisition of a limiter sweeps, and the row of a block goes a second after its end.
    clock.advance(5 * SECOND);
    let _ = open(&scratch, &clock).try_acquire("hot").unwrap();
    assert_eq!(scratch.sqlite::<i64>("SELECT count(*) FROM block"), 0);
}

#[test]
fn the_views_count_an_open_block() {
    let scratch = support::scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("hot").rate(10, MINUTE)).unwrap();
    let hot = limiter.blocks("hot", 6).unwrap().lifetime(60 * SECOND);
    assert!(is_granted(hot.try_acquire()));
    let _ = limiter.try_acquire("hot").unwrap();
    let status = |column: &str| -> i64 {
        scratch.sqlite(&format!("SELECT {column} FROM status WHERE key = 'hot'"))
    };
    assert_eq!((status("used"), status("available")), (7, 3));
    let charges =
        |column: &str| -> i64 { scratch.sqlite(&format!("SELECT sum({column}) FROM charges")) };
    assert_eq!(
        (charges("amount"), charges("booked"), charges("block")),
        (7, 0, 1)
    );
    drop(hot);
    assert_eq!((status("used"), status("available")), (2, 8));
    assert_eq!(charges("block"), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_block_of_a_file_that_was_replaced_is_handed_out_no_more() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter, 10);
    let hot = limiter.blocks("hot", 6).unwrap();
    assert!(is_granted(hot.try_acquire()));
    // Real time: a look at the directory holds for so long, and its time stamps are coarse.
    std::thread::sleep(60 * MS);
    for suffix in ["", "-wal", "-shm", "-lock"] {
        std::fs::remove_file(format!("{}{suffix}", scratch.file().display())).unwrap();
    }
    let other = open(&scratch, &clock);
    define(&other, 100);
    let error = limiter.try_acquire("hot").unwrap_err();
    assert!(matches!(error, Error::Moved { .. }), "{error}");
    assert!(is_granted(hot.try_acquire()));
    assert_eq!(used(&other), 6);
    drop(hot);
    assert_eq!(used(&other), 1);
}

/// Nobody knows what a thread that was stopped in the middle does; but no other thread hands out what is gone.
#[test]
fn threads_share_what_is_in_a_block() {
    let limiter = Limiter::in_memory_with(ManualClock::new());
    define(&limiter, 1_000);
    let hot = limiter.blocks("hot", 64).unwrap();
    let granted: usize = std::thread::scope(|scope| {
        let count = || (0..1_000).filter(|_| is_granted(hot.try_acquire())).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(granted, 1_000);
}
