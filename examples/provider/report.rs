//! What has happened since the start or the last reset.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::audit::Era;
use super::limits::{Limits, Quota};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Since the start or the last reset.
    pub seconds: f64,
    /// Requests for completions, of whatever kind.
    pub arrivals: u64,
    pub accepted: u64,
    /// What the accepted were charged.
    pub accepted_tokens: u64,
    /// Requests that were answered 400.
    pub malformed: u64,
    pub refused: Refused,
    /// Arrivals in each mode but `up`.
    pub in_outage: InOutage,
    pub in_flight: usize,
    pub max_in_flight: usize,
    pub requests: Share,
    pub tokens: Share,
    /// From the start or the last reset to the last arrival.
    pub per_second: Vec<Second>,
}

/// A request that several limits would refuse is counted under the first of them in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub requests: u64,
    pub tokens: u64,
    pub concurrency: u64,
    pub outage: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InOutage {
    pub slow: u64,
    pub rate_limited: u64,
    pub down: u64,
}

/// How much of its capacity a limit has given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The most that could have been accepted from the first arrival to the report.
    pub available: Option<u64>,
    /// What was accepted, in relation to that.
    pub used: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    pub arrivals: u64,
    pub accepted: u64,
    pub too_many_requests: u64,
}

impl Share {
    pub fn new(accepted: u64, available: Option<u64>) -> Self {
        let used = available
            .filter(|available| *available > 0)
            .map(|available| as_f64(accepted) / as_f64(available));
        Self { available, used }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for shares")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

/// What a client could have had that takes all that fits as soon as it fits: nobody can have more, as
/// what is taken earlier leaves the window earlier. `None` where there was no limit at some time.
pub fn available(
    eras: &[Era],
    from: Instant,
    until: Instant,
    quota: impl Fn(&Limits) -> Option<Quota>,
) -> Option<u64> {
    let mut taken: Vec<(Instant, u64)> = Vec::new();
    let mut at = from;
    loop {
        let started = eras.partition_point(|era| era.since <= at);
        let era = &eras[started.checked_sub(1)?];
        let mut next = eras.get(started).map(|era| era.since);
        if era.open {
            let quota = quota(&era.limits)?;
            let held = taken
                .iter()
                .rev()
                .take_while(|(since, _)| at.duration_since(*since) < quota.window);
            let (oldest, used) = held.fold((at, 0), |(_, used), (since, amount)| {
                (*since, used + amount)
            });
            if used < quota.limit {
                taken.push((at, quota.limit - used));
            }
            let release = oldest.checked_add(quota.window);
            next = next.into_iter().chain(release).min();
        }
        match next {
            Some(next) if next <= until => at = next,
            _ => return Some(taken.iter().map(|(_, amount)| amount).sum()),
        }
    }
}
