//! Requests that are part of the caller's own transaction.

use std::sync::Arc;

use super::{Limiter, tell_granted, tell_refused};
use crate::decision::Decision;
use crate::error::Error;
use crate::permit::Provisional;
use crate::plan::{Patience, Plan};
use crate::request::Ask;
use crate::store::{Outcome, Queued, TableConnection};

impl Limiter {
    /// A connection to the limiter's file, for tables of the caller's own beside the limiter's, and for
    /// transactions that [`try_acquire_in`](Self::try_acquire_in) takes part in. It waits for locks for up to 5
    /// seconds.
    ///
    /// The tables of this crate are not to be written to; names that begin with `app_` will never be used by
    /// it.
    ///
    /// # Errors
    /// [`RequestError::NoFile`](crate::RequestError::NoFile) in memory, and whatever can happen to the file.
    pub fn connect(&self) -> Result<TableConnection, Error> {
        self.store.connect()
    }

    /// Asks to be admitted now, or not at all, as part of a transaction of the caller's own on the limiter's file: what
    /// is charged is charged if that commits, together with whatever else it writes, and not if it is rolled back.
    ///
    /// The transaction has to be on this file and to hold the write lock: begin it with
    /// [`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate), on a connection of
    /// [`connect`](Self::connect). Keep it short, for everybody who shares the file waits for it. The instant of the
    /// charge is that of this call. Several requests can be part of one transaction, and of savepoints in it (both are
    /// taken as the [connection](rusqlite::Connection) that they are of). What was denied changes nothing.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("limits.db");
    /// use quotalite::rusqlite::TransactionBehavior;
    /// use quotalite::{Decision, Limit, Limiter};
    ///
    /// let limiter = Limiter::open(path)?;
    /// limiter.define(Limit::new("openai:tokens").per_minute(90_000))?;
    /// let mut connection = limiter.connect()?;
    /// connection.execute_batch("CREATE TABLE IF NOT EXISTS app_job (prompt TEXT, tokens INTEGER)")?;
    ///
    /// // Enqueue the job and reserve its budget: both, or neither.
    /// let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    /// match limiter.try_acquire_in(&transaction, ("openai:tokens", 1_800))? {
    ///     Decision::Granted(provisional) => {
    ///         transaction.execute("INSERT INTO app_job VALUES ('Hello', 1800)", [])?;
    ///         transaction.commit()?;
    ///         let permit = provisional.committed()?;
    ///         permit.settle([("openai:tokens", 1_234)])?;
    ///     }
    ///     Decision::Denied(denial) => println!("{denial}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire); [`RequestError::OtherFile`](crate::RequestError::OtherFile),
    /// [`RequestError::NoWriteLock`](crate::RequestError::NoWriteLock) and
    /// [`RequestError::NoFile`](crate::RequestError::NoFile) if the transaction is none that this can be part of;
    /// [`RequestError::NotConnected`](crate::RequestError::NotConnected) if slots or an id are asked for and this
    /// process is not known to the file yet. The transaction goes on as if the call had not been made.
    pub fn try_acquire_in<'a>(
        &self,
        transaction: &rusqlite::Connection,
        ask: impl Into<Ask<'a>>,
    ) -> Result<Decision<Provisional>, Error> {
        let plan = Plan::new(ask.into(), Patience::Now)?;
        let (outcome, pending) = self.store.acquire_within(transaction, &plan)?;
        Ok(match outcome {
            Outcome::Admitted { claim, .. } => {
                tell_granted(&plan, claim.at);
                let store = Arc::clone(&self.store);
                Decision::Granted(Provisional::new(store, claim, pending))
            }
            Outcome::Refused { denial, .. } | Outcome::Queued(Queued { denial, .. }) => {
                tell_refused(&denial, "denied");
                Decision::Denied(denial)
            }
        })
    }
}
