//! Calls and retries, counted for budgets that all processes share.

use super::transaction::Transaction;
use crate::error::Error;
use crate::retry_budget::{REMEMBERED_NS, RetryBudget, span_of};

const COUNT: &str = "INSERT INTO attempt (name, at_ns, calls, retries) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (name, at_ns) DO UPDATE SET calls = calls + ?3, retries = retries + ?4";
const SUMS: &str =
    "SELECT coalesce(sum(calls) FILTER (WHERE at_ns > ?2), 0), coalesce(sum(retries), 0)
    FROM attempt WHERE name = ?1 AND at_ns > ?3";

impl Transaction<'_> {
    pub(super) fn note_call(&mut self, name: &str) -> Result<(), Error> {
        self.count_attempt(name, 1, 0)
    }

    /// Counts a retry, if the budget allows it.
    pub(super) fn try_retry(&mut self, name: &str, budget: RetryBudget) -> Result<bool, Error> {
        let (calls_since, retries_since) = budget.since(self.now());
        let since = (name, calls_since.as_nanos(), retries_since.as_nanos());
        let (calls, retries) = self
            .link
            .connection
            .prepare_cached(SUMS)
            .and_then(|mut s| s.query_row(since, |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(|error| self.sqlite(error))?;
        let is_allowed = budget.allows(calls, retries);
        if is_allowed {
            self.count_attempt(name, 0, 1)?;
        }
        Ok(is_allowed)
    }

    fn count_attempt(&mut self, name: &str, calls: i64, retries: i64) -> Result<(), Error> {
        self.wrote();
        let at_ns = span_of(self.now()).as_nanos();
        self.link
            .connection
            .prepare_cached(COUNT)
            .and_then(|mut s| s.execute((name, at_ns, calls, retries)))
            .map(drop)
            .map_err(|error| self.sqlite(error))?;
        self.sweep_attempts()
    }
}

const FORGET: &str = "DELETE FROM attempt WHERE (name, at_ns) IN (
        SELECT name, at_ns FROM attempt WHERE at_ns < ?1 ORDER BY at_ns LIMIT 16
    )";

impl Transaction<'_> {
    /// Forgets a few of those that no budget counts any more: more than one call can have added.
    fn sweep_attempts(&self) -> Result<(), Error> {
        let oldest = self.now().saturating_minus_ns(REMEMBERED_NS);
        self.link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute([oldest.as_nanos()]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}
