//! Bookings that were used leave no rows behind.
mod support;

use std::time::Duration;

use quotalite::{Error, Limit, Limiter, SECOND};
use support::{on_file, open_raw, scratch};

#[test]
fn a_booking_whose_striking_out_failed_is_struck_out_later() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("k").per_second(1)).unwrap();
    let rows = || scratch.sqlite::<i64>("SELECT count(*) FROM booking");
    let accept = || limiter.book("k").unwrap().accept();
    drop(accept());
    for _ in 0..5 {
        drop(accept());
    }
    assert_eq!(rows(), 5);
    clock.advance(5 * SECOND);
    let edit = |sql: &str| open_raw(&scratch.file()).execute_batch(sql).unwrap();
    edit("CREATE TRIGGER stubborn BEFORE DELETE ON booking BEGIN SELECT raise(ABORT, 'no'); END");
    let failed = limiter.book("k");
    assert!(matches!(failed, Err(Error::Sqlite { .. })), "{failed:?}");
    edit("DROP TRIGGER stubborn");
    drop(accept());
    assert_eq!(rows(), 1, "the new one");
}

/// Real time: threads that wait in line, and drop their permits while others hold what they hold.
#[test]
fn what_threads_have_waited_for_is_struck_out() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let limit = Limit::new("k").rate(2, Duration::from_millis(1));
    limiter.define(limit).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..300 {
                    limiter.acquire("k").unwrap();
                }
            });
        }
    });
    // Each new booking strikes out what is used by then.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(20));
        for _ in 0..200 {
            limiter.acquire("k").unwrap();
        }
    }
    let left: i64 = scratch.sqlite("SELECT count(*) FROM booking");
    assert!(left <= 2, "{left}");
}
