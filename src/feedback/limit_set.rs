//! Which limits the numbers of a provider are about, and what comes of what it says.

use super::{Advertised, Counted, Feedback};
use crate::clock::Timestamp;
use crate::limit::{Kind, Limit, MAX_CAPACITY, MINUTE, Rate};
use crate::pause::{Backoff, Pause};

/// Which limits of a file the numbers of a provider are about, and what is to be learned from them. For
/// [`Limiter::feedback`](crate::Limiter::feedback).
///
/// ```
/// use quotalite::LimitSet;
///
/// let openai = LimitSet::new()
///     .requests("openai:requests")
///     .tokens("openai:tokens")
///     .learning();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to `feedback`"]
pub struct LimitSet {
    keys: Vec<(Counted, String)>,
    learns: bool,
    only_lowers: bool,
    margin_percent: u8,
    concurrency_margin_percent: u8,
    pub(crate) asked_at: Option<Timestamp>,
}

impl Default for LimitSet {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            learns: false,
            only_lowers: false,
            margin_percent: 70,
            concurrency_margin_percent: 60,
            asked_at: None,
        }
    }
}

impl LimitSet {
    /// A set of no limits yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the provider says of this is about the limit of this key. The first limit of a set is paused where the provider
    /// does not say which one is exhausted.
    pub fn of(mut self, counted: Counted, key: impl Into<String>) -> Self {
        self.keys.push((counted, key.into()));
        self
    }

    /// What it says of requests is about the limit of this key.
    pub fn requests(self, key: impl Into<String>) -> Self {
        self.of(Counted::Requests, key)
    }

    /// What it says of tokens is about the limit of this key.
    pub fn tokens(self, key: impl Into<String>) -> Self {
        self.of(Counted::Tokens, key)
    }

    /// What it says of requests at the same time is about the limit of this key.
    pub fn concurrency(self, key: impl Into<String>) -> Self {
        self.of(Counted::Concurrency, key)
    }

    /// Lets each response change the limits, as [`Limiter::learn`](crate::Limiter::learn) does. Defaults to not.
    pub const fn learning(mut self) -> Self {
        self.learns = true;
        self
    }

    /// Lets what is learned lower limits and never raise them, so that what you have defined stays the most that is used.
    pub const fn only_lowering(mut self) -> Self {
        self.only_lowers = true;
        self
    }

    /// How much of what the provider allows becomes the limit when it is learned, in percent: what others use of the same
    /// account, and what its clock and ours disagree about, needs room. 1 to 100, and what is beyond that is cut to it. Defaults to
    /// 70.
    pub fn margin(mut self, percent: u8) -> Self {
        self.margin_percent = percent.clamp(1, 100);
        self
    }

    /// The same for requests at the same time. Defaults to 60.
    pub fn concurrency_margin(mut self, percent: u8) -> Self {
        self.concurrency_margin_percent = percent.clamp(1, 100);
        self
    }

    /// When the request was admitted that was answered: [`Permit::at`](crate::Permit::at). An answer that comes late then
    /// does not count as a strike of its own.
    pub const fn asked_at(mut self, at: Timestamp) -> Self {
        self.asked_at = Some(at);
        self
    }

    pub(crate) const fn learns(&self) -> bool {
        self.learns
    }

    fn key_of(&self, counted: &Counted) -> Option<&str> {
        let mut keys = self.keys.iter();
        let found = keys.find(|(of, _)| of == counted);
        found.map(|(_, key)| key.as_str())
    }

    /// What a response says of limits in the set, by their keys.
    pub(crate) fn told<'s, 'f>(
        &'s self,
        feedback: &'f Feedback,
    ) -> impl Iterator<Item = (&'s str, &'f Advertised)> + use<'s, 'f> {
        let told = feedback.advertised().iter();
        told.filter_map(|told| Some((self.key_of(told.counted())?, told)))
    }

    /// Which limits a response pauses, and for how long.
    pub(crate) fn paused(&self, feedback: &Feedback) -> Vec<(&str, Backoff)> {
        if !feedback.is_rate_limited() {
            return Vec::new();
        }
        let backoff = feedback
            .wait()
            .map_or(Backoff::strike(), Backoff::retry_after);
        let backoff = match self.asked_at {
            Some(at) => backoff.asked_at(at),
            None => backoff,
        };
        let exhausted = self.told(feedback).filter(|(_, told)| told.is_used_up());
        let mut keys: Vec<&str> = exhausted.map(|(key, _)| key).collect();
        keys.dedup();
        if keys.is_empty() {
            keys.extend(self.keys.first().map(|(_, key)| key.as_str()));
        }
        keys.into_iter().map(|key| (key, backoff)).collect()
    }

    /// What a limit becomes by what the provider says that it allows, if it says so, and a limit can be that.
    pub(crate) fn learned(&self, limit: &Limit, told: &Advertised) -> Option<Limit> {
        let allowed = told.limit().filter(|allowed| *allowed > 0)?;
        let share = |percent: u8| {
            let share = u128::from(allowed) * u128::from(percent) / 100;
            u64::try_from(share.max(1)).map_or(MAX_CAPACITY, |share| share.min(MAX_CAPACITY))
        };
        match limit.kind() {
            Kind::Slots(_) => {
                let count = share(self.concurrency_margin_percent);
                if self.only_lowers && limit.slot_count()? <= count {
                    return None;
                }
                limit.to_builder().slots(count).build().ok()
            }
            Kind::Rates(_) => {
                let window = told.window();
                let window = window.or_else(|| limit.rate_told(None)?.window().rolling());
                let window = window.unwrap_or(MINUTE);
                // What comes back later than after two windows is not of this one: a figure of a day, say.
                let is_of_another = told.reset().is_some_and(|reset| reset > 2 * window);
                if told.window().is_none() && is_of_another {
                    return None;
                }
                let rate = Rate::new(share(self.margin_percent), window).ok()?;
                let mut stored = limit.rates().iter();
                let stored = stored.find(|stored| stored.window() == rate.window());
                if self.only_lowers && stored.is_some_and(|s| s.capacity() <= rate.capacity()) {
                    return None;
                }
                limit.to_builder().set_rate(rate).build().ok()
            }
            Kind::Bucket(_) | Kind::Breaker(_) => None,
        }
    }
}

/// What came of a response: see [`Limiter::feedback`](crate::Limiter::feedback).
#[derive(Clone, Debug)]
pub struct Heard {
    pub(crate) feedback: Feedback,
    pub(crate) paused: Vec<(String, Pause)>,
    pub(crate) raised: Vec<(String, u64)>,
    pub(crate) learned: Vec<Learned>,
}

impl Heard {
    /// What the response said.
    #[must_use]
    pub const fn feedback(&self) -> &Feedback {
        &self.feedback
    }

    /// The limits that were paused because of it, by their keys.
    #[must_use]
    pub fn paused(&self) -> &[(String, Pause)] {
        &self.paused
    }

    /// What was charged because the provider has less left than we thought, by the keys of the limits.
    #[must_use]
    pub fn raised(&self) -> &[(String, u64)] {
        &self.raised
    }

    /// What was learned, if the set [learns](LimitSet::learning).
    #[must_use]
    pub fn learned(&self) -> &[Learned] {
        &self.learned
    }
}

/// A limit that was changed to what a provider says that it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub(crate) former: Limit,
    pub(crate) limit: Limit,
}

impl Learned {
    /// As it was.
    #[must_use]
    pub const fn former(&self) -> &Limit {
        &self.former
    }

    /// As it is now.
    #[must_use]
    pub const fn limit(&self) -> &Limit {
        &self.limit
    }
}
