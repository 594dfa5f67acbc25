//! The two bugs that started this crate.
mod support;

use std::time::Duration;

use quotalite::{Limit, SECOND};
use support::on_file;

/// A pre-check counted rows that had left the window but had not been cleaned up yet, so that one a
/// second became one in ten seconds.
#[test]
fn one_a_second_admits_again_after_a_second_though_nothing_was_cleaned_up() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    for second in 0..20 {
        assert!(
            limiter.try_acquire("mail").unwrap().is_granted(),
            "second {second}"
        );
        clock.advance(Duration::from_nanos(999_999_999));
        let denial = limiter.try_acquire("mail").unwrap().denied().unwrap();
        assert_eq!(denial.retry_after(), Some(Duration::from_nanos(1)));
        clock.advance(denial.retry_after().unwrap());
    }
    let kept: i64 = scratch.sqlite("SELECT count(*) FROM charge");
    assert!(
        kept > 1,
        "the expired rows are still there, which is the point: {kept}"
    );
}

/// A limiter took a token from one bucket and then failed on the next.
#[test]
fn ten_thousand_refusals_on_the_minute_leave_the_second_untouched() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("second").per_second(10)).unwrap();
    limiter
        .define(Limit::new("minute").per_minute(100))
        .unwrap();
    let ask = quotalite::Request::new()
        .take("second", 1)
        .take("minute", 1);
    for _ in 0..10 {
        for _ in 0..10 {
            assert!(limiter.try_acquire(&ask).unwrap().is_granted());
        }
        clock.advance(SECOND);
    }
    let before: i64 = scratch.sqlite("SELECT count(*) FROM charge");
    for _ in 0..10_000 {
        let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
        assert_eq!(
            (denial.key(), denial.retry_after()),
            ("minute", Some(50 * SECOND))
        );
    }
    assert_eq!(scratch.sqlite::<i64>("SELECT count(*) FROM charge"), before);
    assert_eq!(limiter.usage("second").unwrap().available(), 10);
}
