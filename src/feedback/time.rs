//! Times as headers tell them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::fmt::friendly::SpanParser;
use jiff::{SignedDuration, Timestamp};

use crate::limit::MAX_WINDOW;

/// What no time that is read exceeds.
pub(super) const MAX_TIME: Duration = MAX_WINDOW;

/// Numbers from here on are no times to wait, of which this would be 31 years, but seconds since 1970.
const FIRST_EPOCH_SECOND: Duration = Duration::from_secs(1_000_000_000);
/// Numbers from here on are no seconds since 1970, which would be in the year 5138, but milliseconds.
const FIRST_EPOCH_MILLISECOND: Duration = Duration::from_secs(100_000_000_000);

/// When a response was made, since 1970, by the clock that the instants in it were read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin(Duration);

impl Origin {
    pub(super) fn at(instant: SystemTime) -> Self {
        Self(since_epoch(instant))
    }

    pub(super) fn of_date(text: &str) -> Option<Self> {
        httpdate::parse_http_date(text).ok().map(Self::at)
    }

    /// Of two dates, the earlier one makes waits longer, and so is the safe one.
    pub(super) fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// How long until what a header says, in any of the forms that are in use: a number, an HTTP date, an instant as
    /// of RFC 3339, or a duration with units.
    pub(super) fn time_until(self, text: &str) -> Option<Duration> {
        if let Some(number) = seconds(text) {
            return Some(self.time_until_number(number));
        }
        if let Ok(date) = httpdate::parse_http_date(text) {
            return Some(self.time_until_instant(since_epoch(date)));
        }
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Some(self.time_until_instant(unsigned(instant.as_duration())));
        }
        let duration = SpanParser::new().parse_duration(text).ok()?;
        (!duration.is_negative()).then(|| unsigned(duration).min(MAX_TIME))
    }

    /// How long it is until a number of seconds, which says by its size what it counts.
    pub(super) fn time_until_number(self, number: Duration) -> Duration {
        if number < FIRST_EPOCH_SECOND {
            number.min(MAX_TIME)
        } else if number < FIRST_EPOCH_MILLISECOND {
            self.time_until_instant(number)
        } else {
            self.time_until_instant(number / 1_000)
        }
    }

    fn time_until_instant(self, since_epoch: Duration) -> Duration {
        since_epoch.saturating_sub(self.0).min(MAX_TIME)
    }
}

/// A number of seconds, whole or not.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    // No negative number and no NaN starts with a digit, so only what is too large fails.
    Some(Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX))
}

/// A number of milliseconds that is a time to wait.
pub(super) fn milliseconds(text: &str) -> Option<Duration> {
    seconds(text).map(|thousand_times| (thousand_times / 1_000).min(MAX_TIME))
}

/// The next whole second, since who comes back too early is denied again.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    let partial = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(partial)
}

fn since_epoch(instant: SystemTime) -> Duration {
    instant.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn unsigned(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn until(text: &str) -> Option<Duration> {
        Origin::at(UNIX_EPOCH + NOW).time_until(text)
    }

    #[test]
    fn every_form_of_a_time() {
        let secs = Duration::from_secs_f64;
        let cases = [
            // RFC 9110, 10.2.3.
            ("120", secs(120.0)),
            ("0", secs(0.0)),
            // RFC 9110, 5.6.7, in its three forms; the last two are of 1994, and past.
            ("Tue, 14 Nov 2023 22:13:50 GMT", secs(30.0)),
            ("Tuesday, 14-Nov-23 22:13:50 GMT", secs(30.0)),
            ("Tue Nov 14 22:13:50 2023", secs(30.0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", secs(0.0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", secs(0.0)),
            ("Sun Nov  6 08:49:37 1994", secs(0.0)),
            // Go's durations: https://pkg.go.dev/time#Duration.String
            ("1s", secs(1.0)),
            ("6m0s", secs(360.0)),
            ("20ms", secs(0.02)),
            ("8.64s", secs(8.64)),
            ("1h2m3.5s", secs(3_723.5)),
            ("2m59.56s", secs(179.56)),
            ("1.5ms", secs(0.001_5)),
            ("250µs", secs(0.000_25)),
            ("0s", secs(0.0)),
            ("100000h0m0s", MAX_TIME),
            // RFC 3339.
            ("2023-11-14T22:13:50Z", secs(30.0)),
            ("2023-11-14T23:13:50.25+01:00", secs(30.25)),
            ("2023-11-14T22:13:19Z", secs(0.0)),
            ("9999-01-01T00:00:00Z", MAX_TIME),
            // Seconds and milliseconds since 1970, and parts of seconds.
            ("1700000030", secs(30.0)),
            ("1700000030000", secs(30.0)),
            ("64.57", secs(64.57)),
            ("1699999999", secs(0.0)),
            ("31622400", MAX_TIME),
            ("999999999", MAX_TIME),
            ("1000000000", secs(0.0)),
            ("99999999999999999999999999", MAX_TIME),
            ("1e400", MAX_TIME),
            ("9.5e-05", secs(0.000_095)),
        ];
        for (text, expected) in cases {
            assert_eq!(until(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        let texts = [
            "",
            " ",
            "-1",
            "-1s",
            "+5",
            "nan",
            "NaN",
            "inf",
            "infinity",
            "0x10",
            "1_000",
            "1,000",
            "1 2",
            "soon",
            "s",
            "Tue, 14 Nov 2023 22:13:50",
            "Wed, 14 Nov 2023 22:13:50 GMT",
            "Tue, 31 Feb 2023 00:00:00 GMT",
            "2023-11-14T22:13:50",
            "99999999999999999999h",
            "5s ago",
            "\u{0}",
        ];
        for text in texts {
            assert_eq!(until(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_ends_of_the_scale() {
        for instant in [
            UNIX_EPOCH - NOW,
            UNIX_EPOCH,
            UNIX_EPOCH + Duration::from_secs(u64::MAX >> 2),
        ] {
            for text in [
                "0",
                "5",
                "1700000000",
                "2023-11-14T22:13:50Z",
                "0001-01-01T00:00:00Z",
                "18446744073709551615",
            ] {
                assert!(
                    Origin::at(instant)
                        .time_until(text)
                        .is_some_and(|time| time <= MAX_TIME)
                );
            }
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
        assert_eq!(whole_seconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds("820"), Some(Duration::from_millis(820)));
        assert_eq!(milliseconds("1e300"), Some(MAX_TIME));
    }
}
