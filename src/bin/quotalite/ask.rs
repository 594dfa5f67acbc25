//! What people write: limits and amounts, times.

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Span, SpanRelativeTo};
use quotalite::{Look, Request, Timestamp};

/// An amount of a limit: `KEY`, or `KEY=AMOUNT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) key: String,
    pub(crate) amount: u64,
}

/// What follows the last `=` is an amount if it looks like a number; a key may have one, too. Whoever means a key that ends like
/// that says its amount behind it.
pub(crate) fn take(text: &str) -> Result<Take, String> {
    let looks_like_a_number = |text: &str| {
        let digits = text.trim_start_matches(['-', '+', '.']);
        text.is_empty() || digits.starts_with(|first: char| first.is_ascii_digit())
    };
    let (key, amount) = match text.rsplit_once('=') {
        Some((key, amount)) if looks_like_a_number(amount) => {
            let number = amount.parse();
            (
                key,
                number.map_err(|_| format!("`{amount}` is no whole number to take"))?,
            )
        }
        _ => (text, 1),
    };
    Ok(Take {
        key: self::key(key)?,
        amount,
    })
}

/// The key of one limit. No key that somebody means has a `*` in it: it would be one of those that a pattern matches.
pub(crate) fn key(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it names no limit".to_owned());
    }
    if text.contains('*') {
        return Err("it is a pattern: name one of its keys".to_owned());
    }
    Ok(text.to_owned())
}

/// The request for all of these.
pub(crate) fn request(takes: &[Take]) -> Request {
    takes.iter().fold(Request::new(), |request, take| {
        request.take(&take.key, take.amount)
    })
}

/// A time: `30s`, `1h 30m`, `2 days`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let span: Span = match text.parse::<u32>() {
        Ok(0) => Span::new(),
        Ok(_) => return Err(format!("of what? {EXAMPLES}")),
        Err(_) => text.parse().map_err(|_| no_length(text))?,
    };
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("months and years differ in length: {EXAMPLES}"));
    }
    let signed: Result<SignedDuration, _> = span.to_duration(SpanRelativeTo::days_are_24_hours());
    let signed = signed.map_err(|_| no_length(text))?;
    Duration::try_from(signed).map_err(|_| "it is negative".to_owned())
}

const EXAMPLES: &str = "`30s`, `5m`, `1h 30m`, `7 days`";

fn no_length(text: &str) -> String {
    format!("`{}` is no length of time: {EXAMPLES}", text.escape_debug())
}

/// How many: a whole number, and not 0.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it has to be more than nothing".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("`{}` is no whole number", text.escape_debug())),
    }
}

/// What a command can fail with.
pub(crate) fn exit_code(text: &str) -> Result<u8, String> {
    match text.trim().parse() {
        Ok(code @ 1..) => Ok(code),
        _ => Err("an exit code to try again for is 1 to 255".to_owned()),
    }
}

/// A time that is longer than nothing.
pub(crate) fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

/// From when on something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    Wall(SystemTime),
}

/// So long ago, or a time: `2h`, `2026-07-01T12:00:00Z`.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let zoned = || {
        let local: jiff::civil::DateTime = text.parse().ok()?;
        let zoned = local.to_zoned(jiff::tz::TimeZone::system()).ok()?;
        Some(zoned.timestamp())
    };
    let instant = text.parse::<jiff::Timestamp>().ok().or_else(zoned);
    instant
        .map(|instant| Since::Wall(instant.into()))
        .ok_or_else(|| {
            "neither a length of time nor a time: `2h`, `2026-07-01T12:00:00Z`".to_owned()
        })
}

impl Since {
    /// The last instant that is before it.
    pub(crate) fn after(self, look: &Look<'_>) -> Timestamp {
        let from = match self {
            Self::Ago(ago) => {
                let ago_ns = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
                look.now().as_nanos().saturating_sub(ago_ns)
            }
            Self::Wall(wall) => look.instant(wall).as_nanos(),
        };
        Timestamp::from_nanos(from.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_follow_the_last_equals_sign() {
        for (text, key, amount) in [
            ("a", "a", 1),
            ("a=3", "a", 3),
            ("a=b", "a=b", 1),
            ("a=b=7", "a=b", 7),
            ("a=1x=7", "a=1x", 7),
            ("a=-b", "a=-b", 1),
            (
                "tenant:1:tokens=9007199254740992",
                "tenant:1:tokens",
                1 << 53,
            ),
        ] {
            let expected = Take {
                key: key.to_owned(),
                amount,
            };
            assert_eq!(take(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "=3",
            "a=",
            "a=1.5",
            "a=.5",
            "a=-3",
            "a=1k",
            "a=1 000",
            "a:*",
            "a:*=1",
            "a=99999999999999999999",
        ] {
            assert!(take(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_as_people_write_them() {
        for (text, seconds) in [
            ("0", 0),
            ("30s", 30),
            ("5m", 300),
            ("1h 30m", 5_400),
            ("2 days", 172_800),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "30", "-5s", "soon", "1 month", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
