//! What people write: limits and amounts, times.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use quotalite::Request;

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
    if key.is_empty() {
        return Err("it names no limit".to_owned());
    }
    Ok(Take {
        key: key.to_owned(),
        amount,
    })
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
        Ok(_) => return Err("of what? `30s`, `5m`, `1h 30m`".to_owned()),
        Err(_) => text
            .parse()
            .map_err(|error: jiff::Error| error.to_string())?,
    };
    let signed: SignedDuration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|error| error.to_string())?;
    Duration::try_from(signed).map_err(|_| "it is negative".to_owned())
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
