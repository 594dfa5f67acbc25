//! What callers learn about their estimates.

use super::Limiter;
use crate::batch::Handle;
use crate::error::{Error, RequestError};
use crate::estimate::{EstimateRatio, Learned, Lesson};
use crate::permit::tell_settled;
use crate::settlement::{Settled, Used};
use crate::store::{Change, Which};

impl Limiter {
    /// Says that a call for which `estimated` was reckoned has used `used`, in the unit of the limit, so that every process
    /// that shares the file estimates better: see [`EstimateRatio`]. An estimate of 0 is taken for 1. An
    /// [`Estimator`](crate::Estimator) does this when it settles; this is for those who settle by themselves.
    ///
    /// For a key that a pattern matches it is learned for the pattern, and so for all keys that this one counts for: they
    /// are too many to know each by itself, and nothing is kept for a key because of it. What was learned stays when a
    /// definition is replaced, and goes when it is removed. It changes nothing about what is charged.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file. Nothing was learned then.
    pub fn learn_estimate(
        &self,
        key: impl AsRef<str>,
        estimated: u64,
        used: u64,
    ) -> Result<(), Error> {
        self.store.learn_estimate(key.as_ref(), estimated, used)
    }

    /// By how much the estimates for a limit are off, as far as all processes have
    /// [learned](Self::learn_estimate); nothing if nobody has. Of a key that a pattern matches, what was learned for the
    /// pattern. Writes nothing.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn estimate_ratio(&self, key: impl AsRef<str>) -> Result<Option<EstimateRatio>, Error> {
        let learned = self.store.learned(key.as_ref())?;
        Ok(learned.map(Learned::ratio))
    }

    /// Settles a permit, and learns from it, if it is a lesson, what was used of a limit for which so much had been estimated.
    pub(crate) fn settle_and_learn<K: AsRef<str>>(
        &self,
        handle: Handle<'_>,
        lesson: Option<(&str, u64)>,
        used: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Settled, Error> {
        let lesson = lesson.map(|(key, estimated)| Lesson {
            key: key.into(),
            estimated,
        });
        let used = Used::new(used)?.learning(lesson);
        let settle = |which: Which<'_>| self.store.change(Change::settle(which, &used));
        let settled = match handle.permit_or_id() {
            Ok(permit) if !permit.is_of(&*self.store) => {
                return Err(RequestError::OtherLimiter.into());
            }
            Ok(permit) => permit.close(|claim| settle(Which::Claim(claim)))?,
            Err(id) => settle(Which::Id(id))?,
        };
        tell_settled(&settled);
        Ok(settled)
    }
}
