//! Defining limits, and changing and removing them while they are in use.

use super::Limiter;
use crate::definition::{Definition, LimitChange, OnConflict};
use crate::error::{Error, RequestError};
use crate::limit::Limit;
use crate::store::Compacted;

impl Limiter {
    /// Defines a limit. Doing so again changes nothing; where another definition stands,
    /// [`Error::Conflict`] shows both. Every process can define what it needs when it starts.
    ///
    /// # Errors
    /// [`Error::Definition`] if the limit is not one, [`Error::Conflict`], [`Error::Finer`] if it would count for keys whose
    /// charges another definition has merged more coarsely, and whatever can happen to the file.
    /// Nothing is defined then, and what stood there stands.
    pub fn define<L>(&self, limit: L) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        Error: From<L::Error>,
    {
        self.define_or(limit, OnConflict::Fail)
    }

    /// Defines a limit, and says what to do where another definition stands.
    ///
    /// # Errors
    /// As [`define`](Self::define); [`Error::Conflict`] only with [`OnConflict::Fail`].
    pub fn define_or<L>(&self, limit: L, conflict: OnConflict) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        Error: From<L::Error>,
    {
        let mut definitions = self.define_all([limit], conflict)?;
        Ok(definitions.pop().unwrap_or(Definition::Unchanged))
    }

    /// Defines limits, all of them or none, in one transaction. Returns what came of each.
    ///
    /// # Errors
    /// As [`define_or`](Self::define_or).
    pub fn define_all<L>(
        &self,
        limits: impl IntoIterator<Item = L>,
        conflict: OnConflict,
    ) -> Result<Vec<Definition>, Error>
    where
        L: TryInto<Limit>,
        Error: From<L::Error>,
    {
        let limits = limits.into_iter().map(TryInto::try_into);
        let limits: Vec<Limit> = limits.collect::<Result<_, _>>()?;
        let definitions = self.store.define(&limits, conflict)?;
        for (limit, definition) in limits.iter().zip(&definitions) {
            if !matches!(definition, Definition::Unchanged) {
                tracing::debug!(limit = limit.key(), given = %limit, outcome = ?definition, "defined");
            }
        }
        Ok(definitions)
    }

    /// Changes the definition of a limit or a pattern, for all processes: the next acquisition anywhere is decided by
    /// the new one. As with [`OnConflict::Replace`], what was charged and booked stays. `change` is asked again if
    /// somebody else has changed the limit meanwhile, so that no change is lost.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, Rate, SECOND};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("api").per_second(10).per_day(10_000))?;
    /// let rate = Rate::new(20, SECOND)?;
    /// let former = limiter.update("api", |limit| limit.to_builder().set_rate(rate))?;
    /// assert_eq!(former.to_string(), "api: 10/s, 10000/d");
    /// assert_eq!(limiter.limit("api")?.to_string(), "api: 20/s, 10000/d");
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], [`Error::Definition`] if the new definition is none, [`Error::OtherKind`],
    /// [`RequestError::OtherKey`](crate::RequestError::OtherKey) if it is of another limit, and whatever can happen to
    /// the file. Nothing was changed then.
    pub fn update<L>(&self, key: &str, change: impl Fn(&Limit) -> L) -> Result<Limit, Error>
    where
        L: TryInto<Limit>,
        Error: From<L::Error>,
    {
        loop {
            let former = self.store.limit(key)?;
            let limit = change(&former).try_into()?;
            if limit.key() != key {
                let given = limit.key().to_owned();
                let key = key.to_owned();
                return Err(RequestError::OtherKey { key, given }.into());
            }
            if self.store.replace(&former, &limit)? {
                tracing::debug!(limit = key, given = %limit, former = %former, "changed");
                return Ok(former);
            }
        }
    }

    /// Removes a limit or a pattern, with all that was charged to it, and returns it. A key that a pattern matches is
    /// limited by that from then on.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`]; [`Error::InUse`] if permits hold slots of it or have an id, if it is booked, or if
    /// somebody waits in line for it; and whatever can happen to the file. Nothing was removed then.
    pub fn remove(&self, key: &str) -> Result<Limit, Error> {
        self.remove_or(key, false)
    }

    /// Removes a limit or a pattern although it is in use. Who waits in line for it is told
    /// [`Error::UnknownLimit`]; who has booked it goes ahead at its instant; who settles a permit that took
    /// something of it is told that nothing of that is charged.
    ///
    /// # Errors
    /// As [`remove`](Self::remove), but never [`Error::InUse`].
    pub fn force_remove(&self, key: &str) -> Result<Limit, Error> {
        self.remove_or(key, true)
    }

    fn remove_or(&self, key: &str, is_forced: bool) -> Result<Limit, Error> {
        let limit = self.store.remove(key, is_forced)?;
        tracing::debug!(limit = key, former = %limit, is_forced, "removed");
        Ok(limit)
    }

    /// Forgets what was charged to a limit, what is held of it, what it owes, and that it is paused, and returns its
    /// definition, which stays. For a pattern, that is so for all its keys; for a key that a pattern matches, for that key
    /// alone.
    ///
    /// Who waits for it, in line or for an instant that was booked, is admitted anew, in the same order. Permits that
    /// were granted before go on; settling them changes nothing that is charged from now on. What was [learned about
    /// estimates](crate::Estimator) stays.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("api").per_day(1))?;
    /// assert!(limiter.try_acquire("api")?.is_granted());
    /// assert!(!limiter.try_acquire("api")?.is_granted());
    /// limiter.reset("api")?;
    /// assert!(limiter.try_acquire("api")?.is_granted());
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file. Nothing was changed then.
    pub fn reset(&self, key: &str) -> Result<Limit, Error> {
        let limit = self.store.reset(key)?;
        tracing::debug!(limit = key, "reset");
        Ok(limit)
    }

    /// Makes the file as small as it can be while others use it: removes all charges, keys and permits that count for
    /// nothing any more, and gives back the room that they took. All of this happens by and by without it, a little with
    /// each 128th acquisition; after a flood of keys, or before a file is put away, this does the rest at once. It takes
    /// many short transactions, between which others have their turns.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("limits.db");
    /// use quotalite::Limiter;
    ///
    /// let compacted = Limiter::open(&path)?.compact()?;
    /// assert!(compacted.after_bytes <= compacted.before_bytes);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// Whatever can happen to the file. What was removed until then stays removed.
    pub fn compact(&self) -> Result<Compacted, Error> {
        let compacted = self.store.compact()?;
        tracing::debug!(?compacted, "compacted");
        Ok(compacted)
    }

    /// Gives back what the dead held, removes what belongs to nothing, and makes the file small.
    #[cfg(feature = "inspect")]
    pub(crate) fn mend(&self) -> Result<(), Error> {
        self.store.mend()?;
        self.compact().map(drop)
    }

    /// Who changed a limit or a pattern, and when: the last [`LimitChange::KEPT`] changes, the last one first. A limit
    /// that was removed still has them, until many others were changed.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn changes(&self, key: &str) -> Result<Vec<LimitChange>, Error> {
        self.store.changes_of(key)
    }

    /// The definition of a limit or a pattern, as it is in force; for a key that a pattern matches, the limit that it
    /// makes of it.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn limit(&self, key: &str) -> Result<Limit, Error> {
        self.store.limit(key)
    }

    /// All definitions, by key.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.store.limits()
    }
}
