//! What all processes together may try again.

#[cfg(feature = "retry")]
use std::time::Duration;

use super::Limiter;
use crate::error::{Error, RequestError};
use crate::limit::check_key;
use crate::retry_budget::RetryBudget;
#[cfg(feature = "retry")]
use crate::{permit::Permit, plan::Latest, request::Ask, store::Store};

impl Limiter {
    /// Counts one call that is no retry, for the [budgets](RetryBudget) of this name: 1 to 256 bytes, no control characters.
    ///
    /// # Errors
    /// [`RequestError::BudgetName`](crate::RequestError::BudgetName), and whatever can happen to the file. Nothing was counted
    /// then.
    pub fn note_call(&self, name: impl AsRef<str>) -> Result<(), Error> {
        self.store.note_call(checked(name.as_ref())?)
    }

    /// Asks for one retry, out of the budget that all processes share under this name. False if it is exhausted: then give up,
    /// or come again when more calls were made.
    ///
    /// # Errors
    /// [`RequestError::BudgetWindow`](crate::RequestError::BudgetWindow) unless the window is a second to an hour, and as
    /// [`note_call`](Self::note_call).
    pub fn try_retry(&self, name: impl AsRef<str>, budget: RetryBudget) -> Result<bool, Error> {
        budget.check()?;
        let name = checked(name.as_ref())?;
        let is_granted = self.store.try_retry(name, budget)?;
        if !is_granted {
            tracing::info!(name, "no retries are left for now");
        }
        Ok(is_granted)
    }
}

#[cfg(feature = "retry")]
impl Limiter {
    /// Waits in line until the clock shows this at the latest, or for as long as it takes.
    pub(crate) fn acquire_by(
        &self,
        ask: Ask<'_>,
        deadline: Option<Duration>,
    ) -> Result<Permit, Error> {
        self.stay(ask, deadline.map_or(Latest::Forever, Latest::UntilElapsed))
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }
}

fn checked(name: &str) -> Result<&str, Error> {
    match check_key(name) {
        Ok(()) => Ok(name),
        Err(_) => Err(RequestError::BudgetName { bytes: name.len() }.into()),
    }
}
