//! The three ways in which providers tell how their limits stand, and why they refuse.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::desk::Reason;
use super::windows::{Standing, Standings};

/// The style of headers and of errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `x-ratelimit-reset-requests: 1m0s`: until the window is empty.
    #[default]
    OpenAi,
    /// `anthropic-ratelimit-requests-reset: 2026-01-01T00:00:00Z`: when the window is empty.
    Anthropic,
    /// `RateLimit: "requests";r=3;t=17`: no more than `r` in the next `t` seconds, which is until the
    /// oldest charge leaves the window.
    Ietf,
}

/// Why a request got no completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Refused(Reason),
    Malformed(String),
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "openai" => Ok(Self::OpenAi),
            "anthropic" => Ok(Self::Anthropic),
            "ietf" => Ok(Self::Ietf),
            _ => Err(format!(
                "{name:?} is no dialect: it is openai, anthropic or ietf"
            )),
        }
    }
}

impl Dialect {
    /// Names and values. A limit that is not set is not told.
    pub fn headers(self, standings: &Standings, now: SystemTime) -> Vec<(String, String)> {
        let named = [
            ("requests", standings.requests),
            ("tokens", standings.tokens),
        ];
        let told: Vec<(&str, Standing)> = named
            .into_iter()
            .filter_map(|(name, standing)| Some((name, standing?)))
            .collect();
        match self {
            Self::OpenAi => told.iter().flat_map(openai).collect(),
            Self::Anthropic => told.iter().flat_map(|told| anthropic(told, now)).collect(),
            Self::Ietf if told.is_empty() => Vec::new(),
            Self::Ietf => ietf(&told),
        }
    }

    /// The content type and the body of an error.
    pub fn error(self, problem: &Problem) -> (&'static str, Value) {
        let message = problem.message();
        match self {
            Self::OpenAi => {
                let (class, code) = problem.openai();
                let error = json!({"message": message, "type": class, "param": null, "code": code});
                ("application/json", json!({"error": error}))
            }
            Self::Anthropic => {
                let error = json!({"type": problem.anthropic(), "message": message});
                ("application/json", json!({"type": "error", "error": error}))
            }
            Self::Ietf => ("application/problem+json", problem.ietf(&message)),
        }
    }
}

fn openai((name, standing): &(&str, Standing)) -> [(String, String); 3] {
    let header = |part| format!("x-ratelimit-{part}-{name}");
    [
        (header("limit"), standing.quota.limit.to_string()),
        (header("remaining"), standing.remaining.to_string()),
        (header("reset"), terse(standing.until_empty)),
    ]
}

fn anthropic((name, standing): &(&str, Standing), now: SystemTime) -> [(String, String); 3] {
    let header = |part| format!("anthropic-ratelimit-{name}-{part}");
    [
        (header("limit"), standing.quota.limit.to_string()),
        (header("remaining"), standing.remaining.to_string()),
        (header("reset"), rfc3339(now + standing.until_empty)),
    ]
}

fn ietf(told: &[(&str, Standing)]) -> Vec<(String, String)> {
    let list = |member: &dyn Fn(&(&str, Standing)) -> String| {
        told.iter().map(member).collect::<Vec<_>>().join(", ")
    };
    let policy = list(&|(name, standing)| {
        let window = whole_seconds(standing.quota.window);
        format!("\"{name}\";q={};w={window}", standing.quota.limit)
    });
    let now = list(&|(name, standing)| {
        let until = standing.until_next.unwrap_or(standing.quota.window);
        format!(
            "\"{name}\";r={};t={}",
            standing.remaining,
            whole_seconds(until)
        )
    });
    vec![
        ("ratelimit-policy".into(), policy),
        ("ratelimit".into(), now),
    ]
}

/// Rounded up, so that who waits as told has waited enough.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Rounded up.
pub fn whole_milliseconds(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

/// Like `1h0m0s`, `6m0s`, `8.64s` and `120ms`, rounded up to milliseconds.
fn terse(duration: Duration) -> String {
    let milliseconds = whole_milliseconds(duration);
    if milliseconds == 0 {
        return "0s".into();
    }
    if milliseconds < 1_000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1_000, rest % 1_000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// In UTC, rounded up to seconds.
fn rfc3339(time: SystemTime) -> String {
    let seconds = whole_seconds(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Of a day since 1970. Years that begin in March have their leap day at the end, and months of 153 days
/// in five.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day_of_month)
}

impl Problem {
    fn message(&self) -> String {
        match self {
            Self::Refused(Reason::Requests) => "Rate limit reached for requests.".into(),
            Self::Refused(Reason::Tokens) => "Rate limit reached for tokens.".into(),
            Self::Refused(Reason::Concurrency) => "Too many requests in flight.".into(),
            Self::Refused(Reason::RateLimited) => "Rate limit reached.".into(),
            Self::Refused(Reason::Down) => "The service is not available.".into(),
            Self::Malformed(why) => why.clone(),
        }
    }

    fn openai(&self) -> (&'static str, Value) {
        match self {
            Self::Refused(Reason::Tokens) => ("tokens", "rate_limit_exceeded".into()),
            Self::Refused(Reason::Down) => ("server_error", Value::Null),
            Self::Refused(_) => ("requests", "rate_limit_exceeded".into()),
            Self::Malformed(_) => ("invalid_request_error", Value::Null),
        }
    }

    fn anthropic(&self) -> &'static str {
        match self {
            Self::Refused(Reason::Down) => "overloaded_error",
            Self::Refused(_) => "rate_limit_error",
            Self::Malformed(_) => "invalid_request_error",
        }
    }

    fn ietf(&self, message: &str) -> Value {
        let (class, title, violated): (_, _, &[&str]) = match self {
            Self::Refused(Reason::Down) => ("#temporary-reduced-capacity", "Reduced capacity", &[]),
            Self::Refused(Reason::Requests) => ("#quota-exceeded", "Quota exceeded", &["requests"]),
            Self::Refused(Reason::Tokens) => ("#quota-exceeded", "Quota exceeded", &["tokens"]),
            Self::Refused(_) => ("#quota-exceeded", "Quota exceeded", &[]),
            Self::Malformed(_) => {
                return json!({"type": "about:blank", "title": "Bad Request", "detail": message});
            }
        };
        let class = format!("https://iana.org/assignments/http-problem-types{class}");
        json!({"type": class, "title": title, "detail": message, "violated-policies": violated})
    }
}
