//! The limits of a provider: plain data, which the windows enforce and the audit judges by.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// So much in any stretch of time of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quota {
    pub limit: u64,
    pub window: Duration,
}

/// What is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub requests: Option<Quota>,
    pub tokens: Option<Quota>,
    /// Requests in flight at once.
    pub concurrency: Option<usize>,
}

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

impl Quota {
    pub const fn new(limit: u64, window: Duration) -> Self {
        Self { limit, window }
    }

    fn parse(text: &str) -> Option<Self> {
        let (limit, window) = text.split_once('/')?;
        let unit_at = window.find(|letter: char| !letter.is_ascii_digit())?;
        let (count, unit) = window.split_at(unit_at);
        let count: u64 = if count.is_empty() {
            1
        } else {
            count.parse().ok()?
        };
        let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let window = Duration::from_millis(count.checked_mul(*unit_ms)?);
        (!window.is_zero()).then_some(Self::new(limit.parse().ok()?, window))
    }
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| {
            format!("{text:?} is no quota: write it like 10/s, 600/1m, 5000/1h or 20/500ms")
        })
    }
}

impl TryFrom<String> for Quota {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Quota> for String {
    fn from(quota: Quota) -> Self {
        quota.to_string()
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}ms", self.limit, self.window.as_millis())
    }
}
