//! Rates as people write them: `10/s, 300/min`, `90000 tokens/min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{LimitError, Period, Rate, Window, nanos};

/// A text that is not a rate or a list of rates, with the place where it goes wrong.
///
/// ```
/// use quotalite::{Limit, LimitError};
///
/// let Err(LimitError::Text(error)) = Limit::new("k").rates("10/s, 300/fortnight").build() else {
///     unreachable!()
/// };
/// assert_eq!(error.offset(), 10);
/// assert_eq!(
///     error.to_string(),
///     "`10/s, 300/fortnight` is wrong at byte 10: \
///      expected a window: ms, s, min, h or d, found `fortnight`"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseRatesError {
    text: String,
    offset: usize,
    problem: String,
}

impl ParseRatesError {
    /// The byte at which the text goes wrong.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The text that was parsed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ParseRatesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is wrong at byte {}: {}",
            self.text.escape_debug(),
            self.offset,
            self.problem
        )
    }
}

impl std::error::Error for ParseRatesError {}

/// What a text of rates says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) rates: Vec<Rate>,
    pub(super) unit: Option<String>,
}

pub(super) fn parse(text: &str) -> Result<Parsed, ParseRatesError> {
    let mut parser = Parser { text, offset: 0 };
    let mut parsed = Parsed {
        rates: Vec::new(),
        unit: None,
    };
    loop {
        let (rate, unit) = parser.rate()?;
        parsed.rates.push(rate);
        if let Some((offset, unit)) = unit {
            match &parsed.unit {
                Some(known) if known != unit => {
                    let problem = format!("a limit has one unit, found `{unit}` after `{known}`");
                    return Err(parser.error(offset, problem));
                }
                _ => parsed.unit = Some(unit.to_owned()),
            }
        }
        parser.skip_spaces();
        if parser.rest().is_empty() {
            return Ok(parsed);
        }
        parser.expect(',', "expected a comma or the end")?;
    }
}

impl FromStr for Rate {
    type Err = ParseRatesError;

    fn from_str(text: &str) -> Result<Self, ParseRatesError> {
        let mut parser = Parser { text, offset: 0 };
        let (rate, unit) = parser.rate()?;
        if let Some((offset, unit)) = unit {
            let problem = format!("a rate by itself has no unit, found `{unit}`");
            return Err(parser.error(offset, problem));
        }
        parser.skip_spaces();
        if parser.rest().is_empty() {
            Ok(rate)
        } else {
            Err(parser.unexpected("expected one rate and no more"))
        }
    }
}

/// A time as people write it: a whole number and its unit, `50ms`, `10 min`.
#[cfg(feature = "file")]
pub(crate) fn parse_time(text: &str) -> Result<Duration, ParseRatesError> {
    let mut parser = Parser { text, offset: 0 };
    parser.skip_spaces();
    let count = parser
        .number()?
        .ok_or_else(|| parser.unexpected("expected a number"))?;
    let time = parser.time(count, "expected a unit of time: ms, s, min, h or d")?;
    parser.skip_spaces();
    if parser.rest().is_empty() {
        Ok(time)
    } else {
        Err(parser.unexpected("expected one time and no more"))
    }
}

/// A unit, and where it stands.
type Unit<'a> = (usize, &'a str);

struct Parser<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Parser<'a> {
    /// `capacity [unit] / [count] window`, or `capacity [unit] / calendar period [in zone]`.
    fn rate(&mut self) -> Result<(Rate, Option<Unit<'a>>), ParseRatesError> {
        self.skip_spaces();
        let start = self.offset;
        let capacity = self
            .number()?
            .ok_or_else(|| self.unexpected("expected a number"))?;
        let unit = self.unit()?;
        self.expect('/', "expected `/` and a window")?;
        self.skip_spaces();
        let window_at = self.offset;
        if self.word("calendar") {
            let rate = self.quota(start, capacity)?;
            return Ok((rate, unit));
        }
        let count = self.number()?.unwrap_or(1);
        let window = self.time(count, "expected a window: ms, s, min, h or d")?;
        let rate = Rate::new(capacity, window);
        match rate {
            Ok(rate) => Ok((rate, unit)),
            Err(error @ LimitError::Capacity { .. }) => Err(self.error(start, error.to_string())),
            Err(error) => Err(self.error(window_at, error.to_string())),
        }
    }

    /// The name of a unit of time, so many of which are the longest time there is if they are longer.
    fn time(&mut self, count: u64, expected: &str) -> Result<Duration, ParseRatesError> {
        self.skip_spaces();
        let name_at = self.offset;
        let name = self.take_while(char::is_alphanumeric);
        let Some(one_ns) = window_named(name) else {
            self.offset = name_at;
            return Err(self.unexpected(expected));
        };
        let time = one_ns.checked_mul(count).map(Duration::from_nanos);
        Ok(time.unwrap_or(Duration::MAX))
    }

    /// `period [in zone]`.
    fn quota(&mut self, start: usize, capacity: u64) -> Result<Rate, ParseRatesError> {
        self.skip_spaces();
        let period_at = self.offset;
        let Some(period) = Period::parse(self.take_while(char::is_alphabetic)) else {
            self.offset = period_at;
            return Err(self.unexpected("expected a period: day, week, month or year"));
        };
        self.skip_spaces();
        let mut zone_at = period_at;
        let mut zone = "UTC";
        if self.word("in") {
            self.skip_spaces();
            zone_at = self.offset;
            zone = self.take_while(|c| !matches!(c, ' ' | ','));
        }
        let quota = period
            .in_zone(zone)
            .map_err(|error| self.error(zone_at, error.to_string()))?;
        Rate::per(capacity, quota).map_err(|error| self.error(start, error.to_string()))
    }

    /// Whether this word follows; then it is taken.
    fn word(&mut self, wanted: &str) -> bool {
        let start = self.offset;
        let is_it = self.take_while(char::is_alphabetic) == wanted;
        if !is_it {
            self.offset = start;
        }
        is_it
    }

    /// Words after a space, or nothing. What sticks to the number is no unit: `1.5/s` and `10k/s` are
    /// refused rather than taken for something else.
    fn unit(&mut self) -> Result<Option<Unit<'a>>, ParseRatesError> {
        let glued = !self.rest().starts_with([' ', '/', ',']) && !self.rest().is_empty();
        if glued {
            return Err(self.unexpected("expected a whole number, then a space or `/`"));
        }
        self.skip_spaces();
        let start = self.offset;
        if !self.rest().starts_with(char::is_alphabetic) {
            return Ok(None);
        }
        let unit = self
            .take_while(|c| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-'))
            .trim_end();
        if unit.split(' ').any(|word| window_named(word).is_some()) {
            let problem = format!("`{unit}` names a window, not a unit");
            return Err(self.error(start, problem));
        }
        Ok(Some((start, unit)))
    }

    /// Digits with `_` between them, or nothing.
    fn number(&mut self) -> Result<Option<u64>, ParseRatesError> {
        let start = self.offset;
        let digits = self.take_while(|c| c.is_ascii_digit() || c == '_');
        if digits.is_empty() {
            return Ok(None);
        }
        if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
            return Err(self.error(start, "an underscore stands between digits".to_owned()));
        }
        match digits.replace('_', "").parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.error(start, format!("`{digits}` is too large"))),
        }
    }

    fn expect(&mut self, wanted: char, problem: &str) -> Result<(), ParseRatesError> {
        match self.rest().strip_prefix(wanted) {
            Some(_) => {
                self.offset += wanted.len_utf8();
                Ok(())
            }
            None => Err(self.unexpected(problem)),
        }
    }

    fn skip_spaces(&mut self) {
        self.take_while(|c| c == ' ');
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn unexpected(&self, problem: &str) -> ParseRatesError {
        let found: String = self
            .rest()
            .chars()
            .take_while(|c| !matches!(c, ',' | ' '))
            .take(20)
            .collect();
        let problem = match self.rest().chars().next() {
            None => format!("{problem}, found the end"),
            Some(first) if found.is_empty() => format!("{problem}, found `{first}`"),
            Some(_) => format!("{problem}, found `{}`", found.escape_debug()),
        };
        self.error(self.offset, problem)
    }

    fn error(&self, offset: usize, problem: String) -> ParseRatesError {
        ParseRatesError {
            text: self.text.to_owned(),
            offset,
            problem,
        }
    }
}

/// The windows that have a name, longest first, as they are printed.
const NAMED_WINDOWS: [(&str, u64); 5] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

fn window_named(name: &str) -> Option<u64> {
    let short = match name.to_ascii_lowercase().as_str() {
        "ms" | "millisecond" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "min",
        "h" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return None,
    };
    NAMED_WINDOWS
        .iter()
        .find(|(known, _)| *known == short)
        .map(|(_, ns)| *ns)
}

pub(super) fn write_rates(
    f: &mut fmt::Formatter<'_>,
    rates: &[Rate],
    unit: Option<&str>,
) -> fmt::Result {
    for (position, rate) in rates.iter().enumerate() {
        if position > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{}", rate.capacity())?;
        if let Some(unit) = unit {
            write!(f, " {unit}")?;
        }
        f.write_str("/")?;
        match rate.window() {
            Window::Rolling(window) => write_window(f, nanos(window).unsigned_abs())?,
            Window::Calendar(quota) => write!(f, "{quota}")?,
        }
    }
    Ok(())
}

/// As in `10/s` and `10/90s`.
fn write_window(f: &mut fmt::Formatter<'_>, window_ns: u64) -> fmt::Result {
    match NAMED_WINDOWS
        .iter()
        .find(|(_, ns)| window_ns.is_multiple_of(*ns))
    {
        Some((name, ns)) if window_ns == *ns => f.write_str(name),
        Some((name, ns)) => write!(f, "{}{name}", window_ns / ns),
        None => write!(f, "{window_ns}ns"),
    }
}

/// As in `7d` and `1min`: a whole number, and a unit that it comes out even in.
pub(crate) struct Time(pub(crate) i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time_ns = self.0.unsigned_abs();
        match NAMED_WINDOWS
            .iter()
            .find(|(_, ns)| time_ns.is_multiple_of(*ns))
        {
            Some((name, ns)) => write!(f, "{}{name}", time_ns / ns),
            None => write!(f, "{time_ns}ns"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_that_are_rates() {
        let cases = [
            ("10/s", "10/s", None),
            ("10/s, 300/min", "10/s, 300/min", None),
            ("90000 tokens/min", "90000/min", Some("tokens")),
            ("90_000 tokens / 1 minute", "90000/min", Some("tokens")),
            ("1/500ms,2/ 2 hours , 3/7d", "1/500ms, 2/2h, 3/7d", None),
            ("5 input tokens/60s", "5/min", Some("input tokens")),
            ("1/90s", "1/90s", None),
        ];
        for (text, rates, unit) in cases {
            let parsed = parse(text).unwrap();
            let printed: Vec<String> = parsed.rates.iter().map(ToString::to_string).collect();
            assert_eq!(printed.join(", "), rates, "{text}");
            assert_eq!(parsed.unit.as_deref(), unit, "{text}");
        }
    }

    #[test]
    fn a_rate_by_itself_has_no_unit() {
        assert!("300/min".parse::<Rate>().is_ok());
        let error = "300 tokens/min".parse::<Rate>().unwrap_err();
        assert_eq!(error.offset(), 4);
        assert!("1/s, 2/min".parse::<Rate>().is_err());
    }

    #[test]
    fn texts_that_are_not() {
        let cases = [
            ("", 0, "expected a number, found the end"),
            ("ten/s", 0, "expected a number, found `ten/s`"),
            ("10", 2, "expected `/` and a window, found the end"),
            ("10, 5/s", 2, "expected `/` and a window, found `,`"),
            (
                "10/",
                3,
                "expected a window: ms, s, min, h or d, found the end",
            ),
            (
                "10/s 300/min",
                5,
                "expected a comma or the end, found `300/min`",
            ),
            ("10/s,", 5, "expected a number, found the end"),
            ("0/s", 0, "a capacity is 1 to 9007199254740992, not 0"),
            ("1/s, 1/0s", 7, "a window is 1 ms to 366 days, not 0ns"),
            ("1/400d", 2, "a window is 1 ms to 366 days, not 34560000s"),
            (
                "99999999999999999999/s",
                0,
                "`99999999999999999999` is too large",
            ),
            ("_1/s", 0, "an underscore stands between digits"),
            ("1__0/s", 0, "an underscore stands between digits"),
            (
                "1.5/s",
                1,
                "expected a whole number, then a space or `/`, found `.5/s`",
            ),
            (
                "10k/min",
                2,
                "expected a whole number, then a space or `/`, found `k/min`",
            ),
            (
                "1e3/s",
                1,
                "expected a whole number, then a space or `/`, found `e3/s`",
            ),
            ("10 *2/s", 3, "expected `/` and a window, found `*2/s`"),
            ("10 s/min", 3, "`s` names a window, not a unit"),
            (
                "10 requests per minute/s",
                3,
                "`requests per minute` names a window, not a unit",
            ),
            (
                "1 a/s, 1 b/min",
                9,
                "a limit has one unit, found `b` after `a`",
            ),
        ];
        for (text, offset, problem) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(
                (error.offset, error.problem.as_str()),
                (offset, problem),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_the_place_is_inside(text in any::<String>()) {
            if let Err(error) = parse(&text) {
                prop_assert!(text.is_char_boundary(error.offset()));
                let _ = error.to_string();
            }
        }

        #[test]
        fn no_text_of_the_right_letters_panics(text in "[0-9_]{0,4}[ a-z]{0,4}/?[0-9 ]{0,22}[a-z,]{0,4}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_printed_parses_back(capacity in 1_u64..=super::super::MAX_CAPACITY, ms in 1_u64..=31_622_400_000) {
            let rate = Rate::new(capacity, Duration::from_millis(ms)).unwrap();
            prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
        }
    }
}
