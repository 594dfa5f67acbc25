//! What a provider can be told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::limits::Limits;

/// How a provider is from its start. The default has no limits and answers at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    pub limits: Limits,
    pub dialect: Dialect,
    /// Whether a request that is refused by a limit counts as a request all the same. Its tokens do not.
    pub charge_refused: bool,
    /// Whether refusals carry `retry-after-ms` beside `Retry-After`.
    pub retry_after_ms: bool,
    /// Whether a request keeps its slot until the answer would have been ready, although the client hung up.
    pub finish_abandoned: bool,
    /// What an answer takes at least, and what chance may add to it.
    pub latency: Duration,
    pub jitter: Duration,
    /// Of the jitter and of the lengths of the answers.
    pub seed: u64,
}

/// What works at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Up,
    /// Everything takes ten times as long.
    Slow,
    /// Everything is answered 429, whatever the limits say.
    RateLimited,
    /// Everything is answered 503.
    Down,
}

/// A mode, and what it tells those it turns away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    pub mode: Mode,
    #[serde(default)]
    pub retry_after_s: Option<u64>,
}

impl Mode {
    pub fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Slow)
    }
}

impl From<Mode> for Outage {
    fn from(mode: Mode) -> Self {
        Self {
            mode,
            retry_after_s: None,
        }
    }
}
