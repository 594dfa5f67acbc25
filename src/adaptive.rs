//! Limits that feel their way to what a provider allows.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::RequestError;
use crate::limit::{Limit, MAX_CAPACITY, Rate, nanos};

/// How a rate follows what a provider allows but does not tell: by additive increase and multiplicative decrease, between
/// bounds. For [`Limiter::adapt`](crate::Limiter::adapt).
///
/// That is how TCP shares a link: see [RFC 5681, 3.1](https://www.rfc-editor.org/rfc/rfc5681#section-3.1). As there, what was
/// not used says nothing about whether more is allowed: it grows only while at least half of it is in use, as
/// [RFC 7661](https://www.rfc-editor.org/rfc/rfc7661) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to `adapt`"]
pub struct Adaptive {
    floor: u64,
    ceiling: u64,
    step: u64,
    percent: u8,
    window: Option<Duration>,
}

impl Adaptive {
    /// Lets the capacity of a rate be anything between these two. It grows by a hundredth of the ceiling, 1 at least, after each
    /// window in which half of it was used and nobody was refused, and becomes 70 % of what it was when somebody is.
    pub const fn between(floor: u64, ceiling: u64) -> Self {
        let step = ceiling / 100;
        Self {
            floor,
            ceiling,
            step: if step == 0 { 1 } else { step },
            percent: 70,
            window: None,
        }
    }

    /// By how much it grows after each window in which nobody was refused.
    pub const fn step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// To how much of what it was it is cut when somebody is refused, in percent: 1 to 99.
    pub const fn cut_to(mut self, percent: u8) -> Self {
        self.percent = percent;
        self
    }

    /// Which rate of the limit is meant, if it has several: the one with this window.
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    const NEVER_CHANGED: Timestamp = Adapted::NEVER.changed;

    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let is_right = 0 < self.floor
            && self.floor <= self.ceiling
            && self.ceiling <= MAX_CAPACITY
            && self.step > 0
            && (1..100).contains(&self.percent);
        if is_right {
            Ok(())
        } else {
            Err(RequestError::Adaptive)
        }
    }

    /// The rate that it is about, and its window.
    fn rate_of(&self, limit: &Limit) -> Option<(Rate, Duration)> {
        let rate = limit.rate_told(self.window)?;
        Some((rate, rate.window().rolling()?))
    }

    /// What becomes of a limit with an answer, and what is to be remembered for the next one. Nothing if nothing changes.
    /// `used` reads how much of a rate is in use; that is asked only where it matters.
    pub(crate) fn adapt<E>(
        &self,
        limit: &Limit,
        adapted: Adapted,
        (was_refused, now): (bool, Timestamp),
        used: impl FnOnce(&Rate) -> Result<i64, E>,
    ) -> Result<Option<(Adapted, Option<Rate>)>, E> {
        let Some((rate, window)) = self.rate_of(limit) else {
            return Ok(None);
        };
        let outcome = self.outcome((rate, window), adapted, was_refused, now);
        if let Some((_, Some(grown))) = &outcome
            && grown.capacity() > rate.capacity()
            && used(&rate)? < rate.capacity_units() / 2
        {
            return Ok(None);
        }
        Ok(outcome)
    }

    fn outcome(
        &self,
        (rate, window): (Rate, Duration),
        adapted: Adapted,
        was_refused: bool,
        now: Timestamp,
    ) -> Option<(Adapted, Option<Rate>)> {
        let is_past = |at: Timestamp| at.saturating_plus_ns(nanos(window)) <= now;
        if !was_refused && adapted.changed == Self::NEVER_CHANGED {
            // A window begins in which nobody may be refused.
            let begun = Adapted {
                changed: now,
                ..adapted
            };
            return Some((begun, None));
        }
        if !was_refused {
            let next = rate.capacity().saturating_add(self.step);
            let next = next.clamp(self.floor, self.ceiling);
            let is_due = is_past(adapted.changed) && is_past(adapted.refused);
            let grown = Rate::new(next, window).ok().filter(|grown| *grown != rate);
            let changed = Adapted {
                changed: now,
                ..adapted
            };
            return grown.filter(|_| is_due).map(|grown| (changed, Some(grown)));
        }
        if !is_past(adapted.cut) {
            // One look at the clock in a sixteenth of the window tells enough.
            let soon = adapted.refused.saturating_plus_ns(nanos(window) / 16);
            let refused = Adapted {
                refused: now,
                ..adapted
            };
            return (soon <= now).then_some((refused, None));
        }
        let share = u128::from(rate.capacity()) * u128::from(self.percent) / 100;
        let next = u64::try_from(share).unwrap_or(u64::MAX);
        let cut = Rate::new(next.clamp(self.floor, self.ceiling), window);
        let changed = Adapted {
            changed: now,
            cut: now,
            refused: now,
        };
        Some((changed, cut.ok().filter(|cut| *cut != rate)))
    }
}

/// When a limit was last adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adapted {
    pub(crate) changed: Timestamp,
    pub(crate) cut: Timestamp,
    /// When somebody was last refused, more or less.
    pub(crate) refused: Timestamp,
}

impl Adapted {
    pub(crate) const NEVER: Self = Self {
        changed: Timestamp::from_nanos(i64::MIN),
        cut: Timestamp::from_nanos(i64::MIN),
        refused: Timestamp::from_nanos(i64::MIN),
    };
}
