//! Quotas by the calendar of a time zone, on a clock that stands still, and with a wall clock that is set.
#![cfg(feature = "calendar")]
mod support;

use std::time::{Duration, SystemTime};

use chrono::{Datelike, NaiveDate, TimeZone};
use chrono_tz::Tz;
use quotalite::{
    Booking, DAY, Decision, HOUR, Limit, Limiter, MINUTE, ManualClock, Overage, Period, SECOND,
    Settled,
};
use support::{open, scratch};

const NANOSECOND: Duration = Duration::from_nanos(1);
const BERLIN: Tz = Tz::Europe__Berlin;

/// What the wall clock of the world shows when the clocks of a zone first show this.
fn local(zone: Tz, (year, month, day): (i32, u32, u32), hour: u32, minute: u32) -> SystemTime {
    let date = NaiveDate::from_ymd_opt(year, month, day).unwrap();
    let shown = date.and_hms_opt(hour, minute, 0).unwrap();
    let at = zone.from_local_datetime(&shown).earliest().unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(at.timestamp().unsigned_abs())
}

/// The same story for both stores, from an instant on.
fn from(start: SystemTime, story: impl Fn(&Limiter, &ManualClock)) {
    let clock = ManualClock::new();
    clock.set_wall(start);
    story(&Limiter::in_memory_with(clock.clone()), &clock);
    let clock = ManualClock::new();
    clock.set_wall(start);
    let scratch = scratch();
    story(&open(&scratch, &clock), &clock);
}

fn less(duration: Duration, by: Duration) -> Duration {
    duration.checked_sub(by).unwrap()
}

fn per_day(capacity: u64, zone: Tz) -> quotalite::LimitBuilder {
    Limit::new("k").quota(capacity, Period::Day, zone.name())
}

fn is_granted(limiter: &Limiter, amount: u64) -> bool {
    limiter.try_acquire(("k", amount)).unwrap().is_granted()
}

/// How long until one more is admitted, which it is not now.
#[track_caller]
fn retry_after(limiter: &Limiter) -> Duration {
    match limiter.try_acquire("k").unwrap() {
        Decision::Denied(denial) => denial.retry_after().unwrap(),
        Decision::Granted(_) => panic!("it was granted"),
    }
}

/// Denied now, to the nanosecond, for so long.
#[track_caller]
fn assert_comes_free_after(limiter: &Limiter, clock: &ManualClock, duration: Duration) {
    assert_eq!(retry_after(limiter), duration);
    clock.advance(less(duration, NANOSECOND));
    assert_eq!(retry_after(limiter), NANOSECOND);
    clock.advance(NANOSECOND);
    assert!(is_granted(limiter, 1));
}

#[test]
fn a_day_ends_at_midnight_however_long_it_was() {
    let cases = [
        ("24 hours", BERLIN, (2024, 3, 30), 24 * HOUR),
        ("23 hours", BERLIN, (2024, 3, 31), 23 * HOUR),
        ("25 hours", BERLIN, (2024, 10, 27), 25 * HOUR),
        (
            "half an hour more",
            Tz::Australia__Lord_Howe,
            (2024, 4, 7),
            24 * HOUR + HOUR / 2,
        ),
        (
            "its last hour twice",
            Tz::America__Sao_Paulo,
            (2018, 2, 17),
            25 * HOUR,
        ),
        (
            "midnight is left out",
            Tz::America__Havana,
            (2024, 3, 9),
            24 * HOUR,
        ),
        (
            "without the next day",
            Tz::Pacific__Apia,
            (2011, 12, 29),
            24 * HOUR,
        ),
        ("a leap day", BERLIN, (2024, 2, 29), 24 * HOUR),
    ];
    for (story, zone, date, length) in cases {
        from(local(zone, date, 0, 0), |limiter, clock| {
            limiter.define(per_day(5, zone)).unwrap();
            assert!(is_granted(limiter, 3), "{story}");
            clock.advance(10 * HOUR);
            assert!(is_granted(limiter, 2), "{story}");
            assert_eq!(limiter.usage("k").unwrap().rates()[0].used(), 5);
            assert_comes_free_after(limiter, clock, less(length, 10 * HOUR));
            assert!(
                is_granted(limiter, 4),
                "all of it came back at once: {story}"
            );
            assert!(!is_granted(limiter, 1), "{story}");
        });
    }
}

#[test]
fn months_weeks_and_years_end_with_their_last_day() {
    let cases = [
        ("a leap year", Period::Month, (2024, 2, 28), 2 * DAY),
        ("no leap year", Period::Month, (2023, 2, 28), DAY),
        (
            "with a short day",
            Period::Week,
            (2024, 3, 29),
            2 * DAY + 23 * HOUR,
        ),
        (
            "with a long day",
            Period::Month,
            (2024, 10, 1),
            31 * DAY + HOUR,
        ),
        ("a leap year", Period::Year, (2024, 1, 1), 366 * DAY),
    ];
    for (story, period, date, left) in cases {
        from(local(BERLIN, date, 0, 0), |limiter, clock| {
            let limit = Limit::new("k").quota(1, period, BERLIN.name());
            limiter.define(limit).unwrap();
            assert!(is_granted(limiter, 1), "{story}");
            assert_comes_free_after(limiter, clock, left);
        });
    }
}

#[test]
fn a_pad_keeps_what_was_charged_just_before_midnight() {
    from(local(BERLIN, (2024, 3, 30), 23, 0), |limiter, clock| {
        limiter.define(per_day(3, BERLIN).pad(5 * MINUTE)).unwrap();
        assert!(is_granted(limiter, 1));
        clock.advance(less(55 * MINUTE, NANOSECOND));
        assert!(is_granted(limiter, 1));
        clock.advance(NANOSECOND);
        // From here on it may arrive after midnight, and counts until the midnight after that: 23 hours.
        assert!(is_granted(limiter, 1));
        assert_eq!(retry_after(limiter), 5 * MINUTE);
        clock.advance(5 * MINUTE);
        assert!(is_granted(limiter, 2));
        assert_comes_free_after(limiter, clock, 23 * HOUR);
    });
}

#[test]
fn a_quota_and_a_rate_are_kept_both() {
    from(local(BERLIN, (2024, 3, 30), 23, 59), |limiter, clock| {
        limiter.define(per_day(10, BERLIN).per_hour(10)).unwrap();
        assert!(is_granted(limiter, 10));
        clock.advance(MINUTE);
        assert_eq!(limiter.usage("k").unwrap().rates()[1].used(), 0);
        assert_comes_free_after(limiter, clock, 59 * MINUTE);
    });
}

#[test]
fn bookings_go_to_the_next_days_with_room() {
    from(local(BERLIN, (2024, 3, 30), 12, 0), |limiter, clock| {
        limiter.define(per_day(10, BERLIN)).unwrap();
        let mut bookings: Vec<_> = (0..5).map(|_| limiter.book(("k", 6)).unwrap()).collect();
        let waits: Vec<Duration> = bookings.iter().map(Booking::wait_time).collect();
        let midnights = [12, 12 + 23, 12 + 23 + 24, 12 + 23 + 48].map(|hours| hours * HOUR);
        assert_eq!((waits[0], &waits[1..]), (Duration::ZERO, &midnights[..]));
        // Beside the six of each day.
        let small = limiter.book(("k", 5)).unwrap();
        assert_eq!(small.wait_time(), 12 * HOUR + 23 * HOUR + 72 * HOUR);
        assert!(is_granted(limiter, 4));
        assert!(!is_granted(limiter, 1));
        // A day that comes free is used by who asks next.
        drop(bookings.remove(2));
        assert_eq!(limiter.book(("k", 6)).unwrap().wait_time(), midnights[1]);
        clock.advance(12 * HOUR);
        assert_eq!(limiter.usage("k").unwrap().available(), 4);
        assert!(!is_granted(limiter, 5));
        assert!(is_granted(limiter, 4));
    });
}

#[test]
fn what_is_settled_after_midnight_changes_nothing_of_the_new_day() {
    for overage in [Overage::Debt, Overage::Charge, Overage::Deny] {
        from(local(BERLIN, (2024, 10, 27), 23, 0), |limiter, clock| {
            limiter
                .define(per_day(10, BERLIN).overage(overage))
                .unwrap();
            let less = limiter.acquire(("k", 4)).unwrap();
            let more = limiter.acquire(("k", 4)).unwrap();
            clock.advance(HOUR);
            assert!(is_granted(limiter, 9));
            less.settle([("k", 1)]).unwrap();
            assert!(!is_granted(limiter, 2), "{overage:?}");
            let Settled::Now(settlement) = more.settle([("k", 40)]).unwrap() else {
                panic!("it was open");
            };
            let debt = if overage == Overage::Debt { 36 } else { 0 };
            assert_eq!(settlement.amount("k").unwrap().debt(), debt, "{overage:?}");
            assert!(is_granted(limiter, 1), "{overage:?}");
            assert!(!is_granted(limiter, 1), "{overage:?}");
        });
    }
}

#[test]
fn midnight_stands_still_while_the_wall_clock_is_trimmed() {
    let start = local(BERLIN, (2024, 6, 1), 20, 0);
    from(start, |limiter, clock| {
        limiter.define(per_day(1, BERLIN)).unwrap();
        assert!(is_granted(limiter, 1));
        for ms in [999, 500, 0, 1_500, 1_998, 1_001] {
            clock.advance(HOUR / 2);
            let elapsed = limiter.now().unwrap();
            let trimmed = SystemTime::from(elapsed) + Duration::from_millis(ms);
            clock.set_wall(trimmed.checked_sub(Duration::from_millis(999)).unwrap());
            // Something that writes, so that it is stored if anything is.
            limiter
                .define(Limit::new(format!("other {ms}")).per_second(1))
                .unwrap();
        }
        assert_comes_free_after(limiter, clock, HOUR);
    });
}

#[test]
fn midnight_follows_a_wall_clock_that_was_set() {
    let start = local(BERLIN, (2024, 6, 1), 20, 0);
    from(start, |limiter, clock| {
        limiter.define(per_day(1, BERLIN)).unwrap();
        assert!(is_granted(limiter, 1));
        for (hours, minutes, left) in [(21, 0, 3 * HOUR), (16, 30, 7 * HOUR + HOUR / 2)] {
            clock.set_wall(local(BERLIN, (2024, 6, 1), hours, minutes));
            assert_eq!(retry_after(limiter), left);
        }
        clock.advance(HOUR / 2);
        // Past midnight by the new time, by which it was charged ten minutes after midnight.
        clock.set_wall(local(BERLIN, (2024, 6, 2), 0, 40));
        assert_eq!(retry_after(limiter), 23 * HOUR + 20 * MINUTE);
        // And now before.
        clock.set_wall(local(BERLIN, (2024, 6, 2), 0, 20));
        assert!(is_granted(limiter, 1));
        assert!(!is_granted(limiter, 1));
    });
}

/// Charges one at a time, so often that everything is swept that may be.
fn spend(limiter: &Limiter, times: usize) {
    for _ in 0..times {
        assert!(is_granted(limiter, 1));
    }
}

#[test]
fn a_wall_clock_that_is_set_back_across_a_boundary_spends_nothing_twice() {
    let periods = [
        (Period::Day, 3 * HOUR),
        (Period::Week, 4 * DAY),
        (Period::Month, 10 * DAY),
        (Period::Year, 100 * DAY),
    ];
    // The end of a year, of a week, and of a day of 25 hours in Cairo.
    let ends = [
        (Tz::UTC, (2029, 1, 1)),
        (BERLIN, (2024, 4, 1)),
        (Tz::Africa__Cairo, (2024, 11, 1)),
    ];
    for (zone, end) in ends {
        for (period, before) in periods {
            for back in [SECOND, 20 * MINUTE, HOUR, 12 * HOUR, 23 * HOUR] {
                check_set_back(zone, end, period, before, back);
            }
        }
    }
}

/// All is spent some time before a date, then as much as possible in the period of that date; then the clock is set back.
/// What counts is what was spent in the present period by what the clock shows since.
fn check_set_back(
    zone: Tz,
    end: (i32, u32, u32),
    period: Period,
    before: Duration,
    back: Duration,
) {
    let end = local(zone, end, 0, 10);
    from(end - before, |limiter, clock| {
        let limit = Limit::new("k").quota(600, period, zone.name());
        limiter.define(limit).unwrap();
        spend(limiter, 600);
        clock.advance(before);
        let again = limiter.usage("k").unwrap().available();
        spend(limiter, usize::try_from(again).unwrap());
        clock.set_wall(end - back);
        let now = shown(zone, end - back);
        let is_of_now = |at: SystemTime| is_one(period, shown(zone, at), now);
        let first = if is_of_now(end - before - back) {
            600
        } else {
            0
        };
        let used = limiter.usage("k").unwrap().rates()[0].used();
        assert_eq!(
            used,
            first + again,
            "{period:?} in {zone} before {now}, {back:?} back"
        );
        assert!(again == 0 || !is_granted(limiter, 1));
    });
}

fn shown(zone: Tz, at: SystemTime) -> NaiveDate {
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap();
    zone.timestamp_opt(seconds, 0).unwrap().date_naive()
}

/// Whether two dates are of one period.
fn is_one(period: Period, first: NaiveDate, second: NaiveDate) -> bool {
    match period {
        Period::Week => first.iso_week() == second.iso_week(),
        Period::Month => (first.year(), first.month()) == (second.year(), second.month()),
        Period::Year => first.year() == second.year(),
        _ => first == second,
    }
}
