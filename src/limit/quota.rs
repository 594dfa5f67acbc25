//! Periods of a calendar, in a time zone.

use std::fmt;
use std::time::Duration;

use super::{DAY, LimitError};

/// A period of a calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first of a month to the first of the next.
    Month,
    /// From the first of January to the next.
    Year,
}

impl Period {
    const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Year];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|period| period.as_str().eq_ignore_ascii_case(text))
    }

    /// How long it is for most, to put it in order with others.
    pub(super) const fn usual_length(self) -> Duration {
        let days = match self {
            Self::Day => 1,
            Self::Week => 7,
            Self::Month => 31,
            Self::Year => 365,
        };
        Duration::from_secs(days * DAY.as_secs())
    }

    /// A period of this length by the calendar of a time zone, named as in the IANA time zone database:
    /// `America/Los_Angeles`, or `UTC`.
    ///
    /// # Errors
    /// [`LimitError::Zone`] if there is no time zone of this name, or if the crate was built without its
    /// feature `calendar`.
    pub fn in_zone(self, zone: impl AsRef<str>) -> Result<Quota, LimitError> {
        Quota::new(self, zone.as_ref())
    }
}

/// A period of the calendar of one time zone. All it needs to know of the zone is looked up when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    period: Period,
    zone: Zone,
}

impl Quota {
    fn new(period: Period, zone: &str) -> Result<Self, LimitError> {
        Ok(Self {
            period,
            zone: Zone::named(zone)?,
        })
    }

    /// How long it is.
    #[must_use]
    pub const fn period(&self) -> Period {
        self.period
    }

    /// The name of the time zone.
    #[must_use]
    pub fn zone_name(&self) -> &'static str {
        self.zone.name()
    }

    /// Where the period begins that holds a reading of the wall clock, and where the next one does, in nanoseconds
    /// since the Unix epoch.
    pub(crate) fn around(self, wall_ns: i64) -> (i64, i64) {
        self.zone.around(self.period, wall_ns)
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({self})")
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "calendar {} in {}",
            self.period.as_str(),
            self.zone_name()
        )
    }
}

#[cfg(feature = "calendar")]
use zoned::Zone;

#[cfg(not(feature = "calendar"))]
use without::Zone;

#[cfg(feature = "calendar")]
mod zoned {
    use std::collections::BTreeMap;
    use std::hash::{Hash, Hasher};
    use std::sync::{Mutex, PoisonError};

    use jiff::civil::{Date, DateTime};
    use jiff::tz::{AmbiguousOffset, TimeZone};
    use jiff::{Timestamp, ToSpan};

    use super::{LimitError, Period};

    /// A time zone. There is one of each name in a process, for as long as that lives: so that rates are plain
    /// values, and so that the last period is remembered in one place.
    #[derive(Clone, Copy)]
    pub(super) struct Zone(&'static Named);

    struct Named {
        name: String,
        zone: TimeZone,
        /// The period that was last asked for, of each length: a day is asked for a million times.
        last: Mutex<BTreeMap<Period, (i64, i64)>>,
    }

    static ZONES: Mutex<BTreeMap<&'static str, &'static Named>> = Mutex::new(BTreeMap::new());

    impl Zone {
        pub(super) fn named(name: &str) -> Result<Self, LimitError> {
            let wrong = |reason: String| LimitError::Zone {
                zone: name.to_owned(),
                reason,
            };
            let zone = TimeZone::get(name).map_err(|error| wrong(error.to_string()))?;
            let name = zone
                .iana_name()
                .ok_or_else(|| wrong("it has no name in the database".to_owned()))?
                .to_owned();
            let mut zones = ZONES.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = zones.get(&*name) {
                return Ok(Self(known));
            }
            // Never more than the database has names.
            let named: &'static Named = Box::leak(Box::new(Named {
                name,
                zone,
                last: Mutex::default(),
            }));
            zones.insert(&named.name, named);
            Ok(Self(named))
        }

        pub(super) fn name(self) -> &'static str {
            &self.0.name
        }

        pub(super) fn around(self, period: Period, wall_ns: i64) -> (i64, i64) {
            let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((from, until)) = last.get(&period)
                && (*from..*until).contains(&wall_ns)
            {
                return (*from, *until);
            }
            let found = self.find(period, wall_ns);
            last.insert(period, found);
            found
        }

        fn find(self, period: Period, wall_ns: i64) -> (i64, i64) {
            let zone = &self.0.zone;
            let date = Timestamp::from_nanosecond(i128::from(wall_ns))
                .map_or(Date::MIN, |at| zone.to_datetime(at).date());
            let mut first = first_day(period, date);
            let mut from = self.begins(first);
            loop {
                let next = day_after(period, first);
                let until = self.begins(next);
                // A clock that is set back across midnight shows the old date again in the new period; and where a
                // zone leaves out a date, that has no length. The last period ends with all that can be written down.
                if wall_ns < until || until == i64::MAX {
                    return (from, until);
                }
                (first, from) = (next, until);
            }
        }

        /// The first instant of a date, as far as it can be written down.
        fn begins(self, date: Date) -> i64 {
            let midnight = DateTime::from_parts(date, jiff::civil::Time::midnight());
            let ambiguous = self.0.zone.to_ambiguous_timestamp(midnight);
            let is_left_out = matches!(ambiguous.offset(), AmbiguousOffset::Gap { .. });
            let Ok(at) = ambiguous.compatible() else {
                return i64::MAX;
            };
            // Where clocks jump over midnight, the date begins with the jump: mostly at this very instant, which what
            // precedes it does not include.
            let after = at.checked_add(1.nanosecond()).unwrap_or(at);
            let jump = is_left_out.then(|| self.0.zone.preceding(after).next());
            let at = jump.flatten().map_or(at, |jump| jump.timestamp());
            let at_ns = at.as_nanosecond();
            i64::try_from(at_ns).unwrap_or(if at_ns < 0 { i64::MIN } else { i64::MAX })
        }
    }

    fn first_day(period: Period, date: Date) -> Date {
        match period {
            Period::Day => date,
            Period::Week => {
                let days = date.weekday().to_monday_zero_offset();
                date.checked_sub(i64::from(days).days()).unwrap_or(date)
            }
            Period::Month => date.first_of_month(),
            Period::Year => date.first_of_year(),
        }
    }

    fn day_after(period: Period, first: Date) -> Date {
        let span = match period {
            Period::Day => 1.day(),
            Period::Week => 1.week(),
            Period::Month => 1.month(),
            Period::Year => 1.year(),
        };
        first.saturating_add(span)
    }

    impl PartialEq for Zone {
        fn eq(&self, other: &Self) -> bool {
            std::ptr::eq(self.0, other.0)
        }
    }

    impl Eq for Zone {}

    impl Hash for Zone {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.name.hash(state);
        }
    }
}

#[cfg(not(feature = "calendar"))]
mod without {
    use super::{LimitError, Period};

    /// There is none without the feature, so that nothing is asked of it.
    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    pub(super) enum Zone {}

    impl Zone {
        pub(super) fn named(name: &str) -> Result<Self, LimitError> {
            Err(LimitError::Zone {
                zone: name.to_owned(),
                reason: "this program was built without the feature `calendar` of quotalite"
                    .to_owned(),
            })
        }

        pub(super) const fn name(self) -> &'static str {
            match self {}
        }

        pub(super) const fn around(self, _period: Period, _wall_ns: i64) -> (i64, i64) {
            match self {}
        }
    }
}

#[cfg(all(test, feature = "calendar"))]
mod tests;
