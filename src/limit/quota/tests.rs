//! Periods against another library's time zones, found by looking at what its clocks show, minute by minute.

use std::ops::Range;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, Offset, TimeZone};
use chrono_tz::Tz;

use super::{Period, Quota};

const ZONES: [Tz; 14] = [
    Tz::UTC,
    Tz::America__Los_Angeles,
    Tz::Europe__Berlin,
    // By half an hour.
    Tz::Australia__Lord_Howe,
    // At one minute past midnight: the old date is shown again for an hour.
    Tz::America__St_Johns,
    // Over midnight, so that a date begins at one o'clock.
    Tz::America__Havana,
    Tz::America__Sao_Paulo,
    Tz::Africa__Cairo,
    Tz::Asia__Beirut,
    Tz::Asia__Kathmandu,
    Tz::Asia__Kolkata,
    // Without the 30th of December 2011.
    Tz::Pacific__Apia,
    Tz::America__Toronto,
    // Twice a year, by the moon.
    Tz::Africa__Casablanca,
];

/// The two libraries bring their own copies of the time zone database, or take the machine's: they agree about
/// the past.
const FIRST_YEAR_THEY_MAY_DIFFER: i32 = 2025;

/// All years since 1990 in the long form; else those of a leap day, of the date that was left out, and the last ones.
fn years() -> Vec<Range<i32>> {
    let is_long = std::env::var_os("QUOTALITE_LONG").is_some_and(|value| value == "1");
    let wanted = |year: &i32| is_long || [2000, 2011, 2023, 2024].contains(year);
    let years = (1990..FIRST_YEAR_THEY_MAY_DIFFER).filter(wanted);
    years.map(|year| year..year + 1).collect()
}

const MINUTE_NS: i64 = 60 * 1_000_000_000;
const HOUR_NS: i64 = 60 * MINUTE_NS;
const DAY_NS: i64 = 24 * HOUR_NS;

fn date(year: i32, month: u32, day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, month, day).unwrap()
}

fn midnight_in_utc(date: NaiveDate) -> i64 {
    let midnight = date.and_hms_opt(0, 0, 0).unwrap().and_utc();
    midnight.timestamp_nanos_opt().unwrap()
}

fn offset(zone: Tz, at_ns: i64) -> i32 {
    let at = DateTime::from_timestamp_nanos(at_ns).naive_utc();
    zone.offset_from_utc_datetime(&at).fix().local_minus_utc()
}

fn shown(zone: Tz, at_ns: i64) -> NaiveDate {
    zone.timestamp_nanos(at_ns).date_naive()
}

/// The first instant at which a clock shows this date, or a later one if it never shows this.
fn begins(zone: Tz, date: NaiveDate) -> i64 {
    // No zone is further from UTC, and in each of these years all are off by whole minutes.
    let earliest = midnight_in_utc(date) - 16 * HOUR_NS;
    let minute = |number: i64| earliest + number * MINUTE_NS;
    let is_shown = |at_ns| shown(zone, at_ns) >= date;
    let (mut before, mut after) = (0, 32 * 60);
    assert!(!is_shown(minute(before)) && is_shown(minute(after)));
    let is_even = (0..32).all(|hour| offset(zone, minute(hour * 60)) == offset(zone, earliest));
    while after - before > 1 {
        let middle = if is_even {
            i64::midpoint(before, after)
        } else {
            before + 1
        };
        if is_shown(minute(middle)) {
            after = middle;
        } else {
            before = middle;
        }
    }
    assert!(!is_shown(minute(after) - 1));
    minute(after)
}

/// The first days of the periods that touch these years.
fn first_days(period: Period, years: Range<i32>) -> Vec<NaiveDate> {
    let first = date(years.start, 1, 1);
    let first = match period {
        Period::Week => first - Days::new(first.weekday().num_days_from_monday().into()),
        Period::Day | Period::Month | Period::Year => first,
    };
    let next = |date: &NaiveDate| {
        let next = match period {
            Period::Day => *date + Days::new(1),
            Period::Week => *date + Days::new(7),
            Period::Month => *date + Months::new(1),
            Period::Year => *date + Months::new(12),
        };
        (date.year() < years.end).then_some(next)
    };
    std::iter::successors(Some(first), next).collect()
}

fn usual_ns(quota: Quota) -> i64 {
    i64::try_from(quota.period().usual_length().as_nanos()).unwrap()
}

/// Where the offset changes in these years, to the hour.
fn changes(zone: Tz, years: Range<i32>) -> Vec<i64> {
    let from = midnight_in_utc(date(years.start, 1, 1));
    let until = midnight_in_utc(date(years.end, 1, 1));
    let hours = (from..until).step_by(usize::try_from(HOUR_NS).unwrap());
    let has_changed = |at_ns: &i64| offset(zone, *at_ns) != offset(zone, at_ns + HOUR_NS);
    hours.filter(has_changed).collect()
}

/// Checks these instants against the boundaries, in the order given.
fn check(quota: Quota, boundaries: &[i64], instants: &[i64]) {
    for at_ns in instants {
        let next = boundaries.partition_point(|boundary| boundary <= at_ns);
        assert_eq!(
            quota.around(*at_ns),
            (boundaries[next - 1], boundaries[next]),
            "{quota} around {at_ns}: {}",
            DateTime::from_timestamp_nanos(*at_ns)
        );
    }
}

#[test]
fn a_period_begins_when_its_first_date_is_first_shown() {
    for zone in ZONES {
        for years in years() {
            let changes = changes(zone, years.clone());
            for period in Period::ALL {
                check_period(zone, period, years.clone(), &changes);
            }
        }
    }
}

fn check_period(zone: Tz, period: Period, years: Range<i32>, changes: &[i64]) {
    let mut random = fastrand::Rng::with_seed(1);
    let quota = period.in_zone(zone.name()).unwrap();
    let first_days = first_days(period, years);
    let mut boundaries: Vec<i64> = first_days.iter().map(|date| begins(zone, *date)).collect();
    assert!(boundaries.is_sorted());
    // A date that is left out is no period.
    boundaries.dedup();
    let mut instants: Vec<i64> = boundaries
        .windows(2)
        .flat_map(|pair| [pair[0], random.i64(pair[0]..pair[1]), pair[1] - 1])
        .collect();
    for change in changes {
        instants.extend((0..12).map(|_| change + random.i64(-2 * DAY_NS..2 * DAY_NS)));
        let quarters = (-8..=8).map(|quarter| change + quarter * 15 * MINUTE_NS);
        instants.extend(quarters.flat_map(|at_ns| [at_ns - 1, at_ns]));
    }
    let within = boundaries[0]..boundaries[boundaries.len() - 1];
    instants.retain(|at_ns| within.contains(at_ns));
    instants.sort_unstable();
    check(quota, &boundaries, &instants);
    // What is remembered of the last one must not matter.
    random.shuffle(&mut instants);
    check(quota, &boundaries, &instants);
}

type Ymd = (i32, u32, u32);

/// Days that begin or end in an unusual way: where, which, from what hour on, and for how many minutes.
const DAYS: [(&str, Tz, Ymd, u32, i64); 14] = [
    ("23 hours", Tz::Europe__Berlin, (2024, 3, 31), 0, 23 * 60),
    ("25 hours", Tz::Europe__Berlin, (2024, 10, 27), 0, 25 * 60),
    (
        "half an hour",
        Tz::Australia__Lord_Howe,
        (2024, 4, 7),
        0,
        24 * 60 + 30,
    ),
    (
        "from one on",
        Tz::America__Sao_Paulo,
        (2018, 11, 4),
        1,
        23 * 60,
    ),
    (
        "its last hour twice",
        Tz::America__Sao_Paulo,
        (2018, 2, 17),
        0,
        25 * 60,
    ),
    (
        "its first hour twice",
        Tz::America__Havana,
        (2023, 11, 5),
        0,
        25 * 60,
    ),
    (
        "from one on",
        Tz::America__Havana,
        (2024, 3, 10),
        1,
        23 * 60,
    ),
    ("from one on", Tz::Africa__Cairo, (2024, 4, 26), 1, 23 * 60),
    (
        "for a minute, and then again",
        Tz::America__St_Johns,
        (2010, 11, 7),
        0,
        25 * 60,
    ),
    (
        "before the one left out",
        Tz::Pacific__Apia,
        (2011, 12, 29),
        0,
        24 * 60,
    ),
    (
        "after the one left out",
        Tz::Pacific__Apia,
        (2011, 12, 31),
        0,
        24 * 60,
    ),
    (
        "a leap day",
        Tz::America__Los_Angeles,
        (2024, 2, 29),
        0,
        24 * 60,
    ),
    (
        "a leap day of a century",
        Tz::Asia__Kathmandu,
        (2000, 2, 29),
        0,
        24 * 60,
    ),
    ("no leap day", Tz::UTC, (2100, 2, 28), 0, 24 * 60),
];

#[test]
fn unusual_days() {
    for (story, zone, (year, month, day), hour, minutes) in DAYS {
        let quota = Period::Day.in_zone(zone.name()).unwrap();
        let first_shown = date(year, month, day).and_hms_opt(hour, 0, 0).unwrap();
        let from = zone.from_local_datetime(&first_shown).earliest().unwrap();
        let from = from.timestamp_nanos_opt().unwrap();
        let until = from + minutes * MINUTE_NS;
        for at_ns in [until - 1, from, from + HOUR_NS, from] {
            assert_eq!(
                quota.around(at_ns),
                (from, until),
                "{story}: {quota} at {at_ns}"
            );
        }
        assert_eq!(quota.around(until).0, until, "{story}: {quota}");
        assert_eq!(quota.around(from - 1).1, from, "{story}: {quota}");
    }
}

#[test]
fn leap_years() {
    let cases = [
        (Period::Month, 2024, 2, 29),
        (Period::Month, 2100, 2, 28),
        (Period::Year, 2000, 1, 366),
        (Period::Year, 2100, 1, 365),
    ];
    for (period, year, month, days) in cases {
        let quota = period.in_zone("UTC").unwrap();
        let from = midnight_in_utc(date(year, month, 1));
        let until = from + days * DAY_NS;
        for at_ns in [from, until - 1] {
            assert_eq!(quota.around(at_ns), (from, until), "{quota}, {year}");
        }
    }
}

#[test]
fn periods_follow_each_other_without_a_gap_to_the_last_one() {
    for zone in ZONES {
        for period in Period::ALL {
            let quota = period.in_zone(zone.name()).unwrap();
            for years in years() {
                check_tiling(quota, years.start..years.end + 2);
            }
            for at_ns in [i64::MIN, i64::MIN + 1, -1, 0, 1 << 62, i64::MAX - 1] {
                let (from, until) = quota.around(at_ns);
                assert!(from <= at_ns && at_ns < until, "{quota} {at_ns}");
            }
            // Nobody may have to search the calendar up to the year 9999 for this.
            assert_eq!(
                quota.around(i64::MAX),
                quota.around(i64::MAX - 1),
                "{quota}"
            );
        }
    }
}

fn check_tiling(quota: Quota, years: Range<i32>) {
    let usual_ns = usual_ns(quota);
    let (mut from, mut until) = quota.around(midnight_in_utc(date(years.start, 1, 1)));
    let end = midnight_in_utc(date(years.end, 1, 1));
    while until < end {
        let next = quota.around(until);
        assert_eq!(next.0, until, "{quota}");
        let length_ns = next.1 - next.0;
        assert!(
            length_ns > usual_ns - 4 * DAY_NS.min(usual_ns / 8),
            "{quota} {next:?}"
        );
        assert!(length_ns <= usual_ns + DAY_NS, "{quota} {next:?}");
        assert_eq!(quota.around(until - 1), (from, until), "{quota}");
        (from, until) = next;
    }
}

#[test]
fn threads_that_ask_at_the_same_time_do_not_mix_periods_up() {
    let quotas = Period::ALL.map(|period| period.in_zone("Europe/Berlin").unwrap());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..5_000 {
                    let quota = quotas[random.usize(..4)];
                    let at_ns = random.i64(0..DAY_NS * 20_000);
                    let (from, until) = quota.around(at_ns);
                    assert!(from <= at_ns && at_ns < until, "{quota} {at_ns}");
                    assert!(until - from <= usual_ns(quota) + DAY_NS, "{quota} {at_ns}");
                }
            });
        }
    });
}
