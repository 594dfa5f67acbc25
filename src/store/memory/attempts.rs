//! Calls and retries, counted for budgets.

use super::State;
use crate::clock::Timestamp;
use crate::retry_budget::{REMEMBERED_NS, RetryBudget, span_of};

/// What was tried within a span of time.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    pub(super) calls: i64,
    retries: i64,
}

impl State {
    /// Counts a retry, if the budget allows it.
    pub(super) fn try_retry(&mut self, name: &str, budget: RetryBudget, now: Timestamp) -> bool {
        let (calls_since, retries_since) = budget.since(now);
        let spans = self.attempts.get(name).into_iter().flatten();
        let counted = spans.filter(|(at, _)| **at > retries_since);
        let (calls, retries) = counted.fold((0, 0), |(calls, retries), (at, attempts)| {
            let is_call_of_it = i64::from(*at > calls_since);
            let calls = calls + is_call_of_it * attempts.calls;
            (calls, retries + attempts.retries)
        });
        let is_allowed = budget.allows(calls, retries);
        if is_allowed {
            self.count_attempt(name, now).retries += 1;
        }
        is_allowed
    }

    /// Where what is tried now is counted. What no budget counts any more is forgotten.
    pub(super) fn count_attempt(&mut self, name: &str, now: Timestamp) -> &mut Attempts {
        let oldest = now.saturating_minus_ns(REMEMBERED_NS);
        self.attempts.retain(|_, spans| {
            *spans = spans.split_off(&oldest);
            !spans.is_empty()
        });
        let spans = self.attempts.entry(name.into()).or_default();
        spans.entry(span_of(now)).or_default()
    }
}
