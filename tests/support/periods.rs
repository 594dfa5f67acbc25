//! For how long a charge counts: in windows that roll along, and in periods of calendars.

use std::time::Duration;

use quotalite::{Rate, Window};

use crate::subject::ns;

/// When what is charged at an instant does not count any more for a rate. The wall clock shows instants with a shift.
pub fn leaves_ns(rate: &Rate, pad: Duration, at_ns: i64, wall_shift_ns: i64) -> i64 {
    match rate.window() {
        Window::Rolling(window) => at_ns + ns(window) + ns(pad),
        #[cfg(feature = "calendar")]
        Window::Calendar(quota) => {
            let wall_ns = at_ns + wall_shift_ns + ns(pad);
            calendar::period(quota.period(), quota.zone_name(), wall_ns).1 - wall_shift_ns
        }
        window => panic!("{window:?} is no window of a history; {wall_shift_ns}"),
    }
}

/// Where the period begins that holds a reading of the wall clock, if it is of a calendar.
pub fn begins_ns(rate: &Rate, wall_ns: i64) -> Option<i64> {
    match rate.window() {
        #[cfg(feature = "calendar")]
        Window::Calendar(quota) => {
            Some(calendar::period(quota.period(), quota.zone_name(), wall_ns).0)
        }
        _ => {
            let _ = wall_ns;
            None
        }
    }
}

#[cfg(feature = "calendar")]
mod calendar {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
    use chrono_tz::Tz;
    use quotalite::Period;

    type Known = BTreeMap<(Period, String), BTreeMap<i64, i64>>;

    thread_local! {
        /// The periods that were asked for: from where to where each reaches.
        static KNOWN: RefCell<Known> = RefCell::default();
    }

    /// Where the period begins that holds a reading of the wall clock, and where it ends.
    pub fn period(period: Period, zone: &str, wall_ns: i64) -> (i64, i64) {
        KNOWN.with_borrow_mut(|known| {
            let known = known.entry((period, zone.to_owned())).or_default();
            let found = known.range(..=wall_ns).next_back();
            if let Some((from, until)) = found.filter(|(_, until)| wall_ns < **until) {
                return (*from, *until);
            }
            let (from, until) = find(period, zone.parse().expect("a zone"), wall_ns);
            known.insert(from, until);
            (from, until)
        })
    }

    fn date(zone: Tz, wall_ns: i64) -> NaiveDate {
        DateTime::from_timestamp_nanos(wall_ns)
            .with_timezone(&zone)
            .date_naive()
    }

    /// What all dates of a period have in common.
    fn name(period: Period, date: NaiveDate) -> (i32, u32) {
        match period {
            Period::Day => (date.year(), date.ordinal()),
            Period::Week => (date.iso_week().year(), date.iso_week().week()),
            Period::Month => (date.year(), date.month()),
            _ => (date.year(), 0),
        }
    }

    /// By halving: a little more than a period away the clock shows another one. Zones whose clocks go back across
    /// midnight are not asked for.
    fn find(period: Period, zone: Tz, wall_ns: i64) -> (i64, i64) {
        let this = name(period, date(zone, wall_ns));
        let is_this = |wall_ns: i64| name(period, date(zone, wall_ns)) == this;
        let days = match period {
            Period::Day => 2,
            Period::Week => 8,
            Period::Month => 32,
            _ => 367,
        };
        let far = |wall_ns: i64, back: bool| {
            let at: DateTime<Utc> = DateTime::from_timestamp_nanos(wall_ns);
            let far = if back {
                at.checked_sub_days(Days::new(days))
            } else {
                at.checked_add_days(Days::new(days))
            };
            far.and_then(|far| far.timestamp_nanos_opt())
                .expect("of this time")
        };
        let (mut outside, mut inside) = (far(wall_ns, true), wall_ns);
        while inside - outside > 1 {
            let middle = outside.midpoint(inside);
            if is_this(middle) {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        let from = inside;
        let (mut inside, mut outside) = (wall_ns, far(wall_ns, false));
        while outside - inside > 1 {
            let middle = inside.midpoint(outside);
            if is_this(middle) {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        (from, outside)
    }
}
