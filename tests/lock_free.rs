//! What is answered while somebody else keeps the write lock. These tests need real time: who waits for a lock does so by it.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use quotalite::{Error, HOUR, Limit, Limiter, Request};
use rusqlite::Connection;
use support::{Scratch, open_raw, scratch};

const DEADLINE: Duration = Duration::from_millis(150);

fn open(scratch: &Scratch) -> Limiter {
    let builder = Limiter::builder(scratch.file());
    builder.busy_deadline(DEADLINE).open().unwrap()
}

/// Keeps the write lock of a file until it is dropped.
fn keep_lock(scratch: &Scratch) -> Connection {
    let connection = open_raw(&scratch.file());
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

#[track_caller]
fn assert_denied(limiter: &Limiter, ask: &Request) {
    let decision = limiter.try_acquire(ask).unwrap();
    assert!(!decision.is_granted(), "{ask:?}");
}

#[test]
fn what_was_refused_is_refused_again_and_so_is_what_asks_for_more() {
    let scratch = scratch();
    let limiter = open(&scratch);
    limiter
        .define(Limit::new("day").per_day(10).per_hour(9))
        .unwrap();
    limiter.define(Limit::new("other").per_day(10)).unwrap();
    let day = |amount| Request::new().take("day", amount);
    let both = |amount| Request::new().take("day", amount).take("other", amount);
    assert!(limiter.try_acquire(&day(5)).unwrap().is_granted());
    assert_denied(&limiter, &day(5));
    assert_denied(&limiter, &both(6));
    let lock = keep_lock(&scratch);
    for _ in 0..3 {
        for amount in 5..9 {
            assert_denied(&limiter, &day(amount));
        }
        let too_late = limiter.book_within(&day(7), HOUR / 2);
        assert!(
            matches!(too_late, Err(Error::TooLate { .. })),
            "{too_late:?}"
        );
    }
    // What may fit has to ask for the lock.
    let busy = limiter.try_acquire(&day(4));
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    drop(lock);
    assert!(limiter.try_acquire(&day(4)).unwrap().is_granted());
}

#[test]
fn slots_that_are_taken_are_refused_as_long_as_their_holders_live() {
    let scratch = scratch();
    let (limiter, other) = (open(&scratch), open(&scratch));
    limiter.define(Limit::slots("gpu", 2)).unwrap();
    let ask = Request::new().take("gpu", 1);
    let held = other.acquire(("gpu", 2)).unwrap();
    assert_denied(&limiter, &ask);
    let lock = keep_lock(&scratch);
    assert_denied(&limiter, &ask);
    drop(lock);
    drop(held);
    assert!(limiter.try_acquire(&ask).unwrap().is_granted());
}

#[test]
fn who_stands_behind_bookings_is_refused_as_long_as_those_who_booked_live() {
    let scratch = scratch();
    let (limiter, other) = (open(&scratch), open(&scratch));
    limiter.define(Limit::new("hour").per_hour(2)).unwrap();
    let ask = Request::new().take("hour", 2);
    assert!(limiter.try_acquire(&ask).unwrap().is_granted());
    let booked = other.book(("hour", 2)).unwrap();
    assert_denied(&limiter, &ask);
    let lock = keep_lock(&scratch);
    assert_denied(&limiter, &ask);
    drop(lock);
    drop(booked);
    assert_denied(&limiter, &ask);
}

/// One thread goes for a new block; the others wait for it, and each for no longer than it would for the file.
#[test]
fn threads_that_share_blocks_wait_no_longer_than_one_of_them_would() {
    let scratch = scratch();
    let limiter = open(&scratch);
    limiter.define(Limit::new("hot").per_hour(1_000)).unwrap();
    let hot = limiter.blocks("hot", 100).unwrap();
    let lock = keep_lock(&scratch);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let busy = hot.try_acquire();
                assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
            });
        }
    });
    let took = began.elapsed();
    assert!(
        took < 6 * DEADLINE,
        "12 threads one after the other: {took:?}"
    );
    drop(lock);
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert!(hot.try_acquire().unwrap().is_granted()));
        }
    });
    assert_eq!(limiter.usage("hot").unwrap().available(), 900);
    hot.give_back().unwrap();
    assert_eq!(limiter.usage("hot").unwrap().available(), 988);
}

/// Whoever has the lock may be stopped for as long as others care to wait.
#[cfg(target_os = "linux")]
#[test]
fn who_waits_for_a_lock_that_does_not_come_free_hardly_needs_a_processor() {
    use nix::sys::resource::{UsageWho, getrusage};

    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        let (user, system) = (usage.user_time(), usage.system_time());
        let micros = user.tv_usec() + system.tv_usec();
        let seconds = user.tv_sec() + system.tv_sec();
        Duration::from_micros((seconds * 1_000_000 + micros).unsigned_abs())
    };
    let scratch = scratch();
    let limiter = Limiter::builder(scratch.file())
        .busy_deadline(Duration::from_secs(1))
        .open()
        .unwrap();
    limiter.define(Limit::new("k").per_hour(10)).unwrap();
    let _lock = keep_lock(&scratch);
    let before = cpu();
    let busy = limiter.try_acquire("k");
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    let used = cpu().checked_sub(before).unwrap();
    assert!(used < Duration::from_millis(80), "{used:?} of a second");
}
