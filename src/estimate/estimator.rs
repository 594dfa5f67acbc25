//! Estimates that learn from what was used.

use crate::batch::Handle;
use crate::error::Error;
use crate::estimate::{EstimateTokens, TextEstimate};
use crate::limiter::Limiter;
use crate::settlement::Settled;

/// From how many calls on what was learned is used: a few may be anything.
const LEAST_CALLS: u64 = 10;

/// Estimates tokens for one limit, corrected by what calls have used before: in all processes that share the file, and
/// before any restart.
///
/// The estimate is that of its base, at first a [`TextEstimate`], times the limit's [ratio](crate::EstimateRatio). Until 10
/// calls were learned it is the base's alone. Of a workload that stays the same it comes within a few percent of the mean
/// after a hundred calls, whatever the base is off by between a sixteenth and 16 times. It is then an estimate of the mean:
/// about half of all calls use more, and settle above it. A base that is a [bound](EstimateTokens::is_bound) is not corrected.
///
/// ```
/// use quotalite::{Estimator, Limit, Limiter};
///
/// let limiter = Limiter::in_memory()?;
/// limiter.define(Limit::new("openai:tokens").per_minute(1_000_000))?;
/// let estimator = Estimator::new(&limiter, "openai:tokens");
/// for _ in 0..20 {
///     let estimate = estimator.estimate("Why is the sky blue?", 500)?;
///     let permit = limiter.acquire(("openai:tokens", estimate.amount()))?;
///     let used = 130; // as the response says
///     estimator.settle(&permit, &estimate, used)?;
/// }
/// let estimate = estimator.estimate("Why is the sky blue?", 500)?;
/// assert_eq!((estimate.raw(), estimate.amount()), (506, 130));
/// # Ok::<(), quotalite::Error>(())
/// ```
///
/// # Which calls to learn from
///
/// A call that has failed before it used anything is [cancelled](crate::Permit::cancel), and nothing is learned from it.
/// Give models that differ limits of their own: one ratio cannot be right for both.
#[derive(Clone, Debug)]
pub struct Estimator<E = TextEstimate> {
    limiter: Limiter,
    key: String,
    base: E,
}

impl Estimator {
    /// Estimates for the limit `key`, on the base of a [`TextEstimate`]. The limit need not be defined yet.
    pub fn new(limiter: &Limiter, key: impl Into<String>) -> Self {
        Self::with(limiter, key, TextEstimate)
    }
}

impl<E: EstimateTokens> Estimator<E> {
    /// Estimates for the limit `key`, on the base of another estimate. All estimators of a limit should have the same base,
    /// for they share what is learned.
    pub fn with(limiter: &Limiter, key: impl Into<String>, base: E) -> Self {
        Self {
            limiter: limiter.clone(),
            key: key.into(),
            base,
        }
    }

    /// The key of its limit.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Estimates a call that sends one text and may be answered with `output` tokens. Reads the file once, unless
    /// the base is a bound.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn estimate(&self, text: &str, output: u64) -> Result<Estimate, Error> {
        self.estimate_texts(&[text], output)
    }

    /// Estimates a call that sends these texts, the messages of a chat, and may be answered with `output` tokens. Reads the
    /// file once.
    ///
    /// # Errors
    /// As [`estimate`](Self::estimate).
    pub fn estimate_texts(&self, texts: &[&str], output: u64) -> Result<Estimate, Error> {
        let raw = self.base.call_tokens(texts, output);
        if self.base.is_bound() {
            let amount = raw.max(1);
            return Ok(Estimate { raw, amount });
        }
        let ratio = self.limiter.estimate_ratio(&self.key)?;
        let ratio = ratio.filter(|ratio| ratio.calls() >= LEAST_CALLS);
        let amount = ratio.map_or(raw.max(1), |ratio| ratio.corrected(raw));
        Ok(Estimate { raw, amount })
    }

    /// Settles a permit, or the one of this id, at what was used of this limit, and learns from it: both in one transaction,
    /// and only if the permit was still open, so that no call counts twice. Its other limits keep what was asked for.
    ///
    /// # Errors
    /// As [`Limiter::settle_all`], for one permit: [`Error::Request`] if it took nothing of this limit or is of another
    /// limiter, and whatever can happen to the file. The permit then stays as it was, and nothing is learned.
    pub fn settle<'a>(
        &self,
        permit: impl Into<Handle<'a>>,
        estimate: &Estimate,
        used: u64,
    ) -> Result<Settled, Error> {
        self.settle_amounts(permit, estimate, [(self.key.as_str(), used)])
    }

    /// [`settle`](Self::settle), and says what was used of other limits of the permit as well: of the daily tokens of a
    /// tenant, say. Where it says nothing of this limit, nothing is learned.
    ///
    /// # Errors
    /// As [`settle`](Self::settle), and [`Error::Request`] if it names a limit that was not asked for, or one twice.
    pub fn settle_amounts<'a, K: AsRef<str>>(
        &self,
        permit: impl Into<Handle<'a>>,
        estimate: &Estimate,
        used: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Settled, Error> {
        let lesson = (!self.base.is_bound()).then(|| (&*self.key, estimate.raw));
        self.limiter.settle_and_learn(permit.into(), lesson, used)
    }
}

/// How many tokens a call is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    raw: u64,
    amount: u64,
}

impl Estimate {
    /// What the base estimate says. Whoever settles the call without an [`Estimator`] says so to
    /// [`learn_estimate`](Limiter::learn_estimate).
    #[must_use]
    pub const fn raw(&self) -> u64 {
        self.raw
    }

    /// How much to ask for: the raw estimate as what was learned corrects it, rounded up, and 1 at least. It can be above
    /// every capacity of the limit, and then [`Error::NeverFits`] is the answer: to ask for less than a call will use would
    /// only hide that.
    #[must_use]
    pub const fn amount(&self) -> u64 {
        self.amount
    }
}
