//! Limits in the making.

use std::sync::Arc;
use std::time::Duration;

use super::rate::nanos;
use super::{
    Bucket, DAY, HOUR, Kind, Limit, LimitError, MAX_CAPACITY, MAX_KEY_BYTES, MAX_RATES,
    MAX_UNIT_BYTES, MAX_WINDOW, MIN_WINDOW, MINUTE, Pattern, Period, Rate, Rates, SECOND, Slots,
    Terms, text,
};
use crate::breaker::BreakerPolicy;
use crate::error::Error;
use crate::pause::PausePolicy;
use crate::settlement::Overage;

/// The definition of a [`Limit`] in the making.
#[derive(Clone, Debug)]
#[must_use = "a definition does nothing until it is given to `define`"]
pub struct LimitBuilder {
    key: String,
    is_pattern: bool,
    unit: Option<String>,
    pad: Duration,
    resolution: Duration,
    keep: Duration,
    rates: Vec<Rate>,
    overage: Overage,
    slots: Option<u64>,
    timeout: Option<Duration>,
    burst: Option<u64>,
    refill: Option<Rate>,
    pauses: PausePolicy,
    breaker: Option<BreakerPolicy>,
    wrong: Option<LimitError>,
}

impl LimitBuilder {
    pub(super) fn new(key: String) -> Self {
        Self {
            key,
            is_pattern: false,
            unit: None,
            pad: Duration::ZERO,
            resolution: Duration::ZERO,
            keep: Duration::ZERO,
            rates: Vec::new(),
            overage: Overage::default(),
            slots: None,
            timeout: None,
            burst: None,
            refill: None,
            pauses: PausePolicy::default(),
            breaker: None,
            wrong: None,
        }
    }

    pub(super) fn of(limit: &Limit) -> Self {
        let bucket = limit.bucket();
        Self {
            is_pattern: limit.is_pattern(),
            unit: limit.unit().map(str::to_owned),
            pad: limit.pad(),
            resolution: limit.resolution().unwrap_or_default(),
            keep: limit.keep().unwrap_or_default(),
            rates: limit.rates().to_vec(),
            overage: limit.overage(),
            slots: limit.slot_count(),
            timeout: limit.timeout(),
            burst: bucket.map(|bucket| bucket.burst()),
            refill: bucket.and_then(|bucket| Rate::new(bucket.refill(), bucket.per()).ok()),
            pauses: limit.pauses(),
            breaker: limit.breaker_policy(),
            ..Self::new(limit.key().to_owned())
        }
    }

    pub(super) fn for_all_that_match(mut self) -> Self {
        self.is_pattern = true;
        self
    }

    /// Adds a rate of `capacity` per `window`.
    pub fn rate(mut self, capacity: u64, window: Duration) -> Self {
        match Rate::new(capacity, window) {
            Ok(rate) => self.rates.push(rate),
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// Adds a rate of `capacity` per period of the calendar of a time zone, which is named as in the IANA time
    /// zone database (`America/Los_Angeles`, or `UTC`). Everything charged in a period stops to count when the
    /// next one begins, by the wall clock. Needs the feature `calendar`.
    ///
    #[cfg_attr(feature = "calendar", doc = "```")]
    #[cfg_attr(not(feature = "calendar"), doc = "```ignore")]
    /// use quotalite::{Limit, Period};
    ///
    /// let limit = Limit::new("gemini:requests")
    ///     .per_minute(15)
    ///     .quota(1_500, Period::Day, "America/Los_Angeles")
    ///     .build()?;
    /// assert_eq!(
    ///     limit.to_string(),
    ///     "gemini:requests: 15/min, 1500/calendar day in America/Los_Angeles"
    /// );
    /// # Ok::<(), quotalite::LimitError>(())
    /// ```
    pub fn quota(mut self, capacity: u64, period: Period, zone: impl AsRef<str>) -> Self {
        let quota = period.in_zone(zone);
        match quota.and_then(|quota| Rate::per(capacity, quota)) {
            Ok(rate) => self.rates.push(rate),
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// Puts this rate in the place of the one that has the same window, or adds it.
    pub fn set_rate(mut self, rate: Rate) -> Self {
        self.rates.retain(|other| other.window() != rate.window());
        self.rates.push(rate);
        self
    }

    /// Takes away all rates.
    pub fn without_rates(mut self) -> Self {
        self.rates.clear();
        self
    }

    /// Takes away the unit.
    pub fn without_unit(mut self) -> Self {
        self.unit = None;
        self
    }

    /// Makes it a concurrency limit, of which this many may be held at once: [`Limit::slots`] for patterns, and for
    /// definitions that change.
    pub fn slots(mut self, count: u64) -> Self {
        self.slots = Some(count);
        self
    }

    /// Makes it a [bucket](Bucket) that holds this much, and says with [`refill`](Self::refill) how it fills again.
    pub fn burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    /// Lets the bucket refill evenly, by `amount` in each `per`.
    pub fn refill(mut self, amount: u64, per: Duration) -> Self {
        match Rate::new(amount, per) {
            Ok(rate) => self.refill = Some(rate),
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// Adds a rate of `capacity` per second.
    pub fn per_second(self, capacity: u64) -> Self {
        self.rate(capacity, SECOND)
    }

    /// Adds a rate of `capacity` per minute.
    pub fn per_minute(self, capacity: u64) -> Self {
        self.rate(capacity, MINUTE)
    }

    /// Adds a rate of `capacity` per hour.
    pub fn per_hour(self, capacity: u64) -> Self {
        self.rate(capacity, HOUR)
    }

    /// Adds a rate of `capacity` per 24 hours (a rolling window, no calendar day).
    pub fn per_day(self, capacity: u64) -> Self {
        self.rate(capacity, DAY)
    }

    /// Adds the rates of a text such as `"10/s, 300/min"` or `"90000 tokens/min"`; a unit in the text
    /// becomes the limit's.
    ///
    /// A rate is `capacity [unit] / [count] window`, with `_` allowed between digits, a unit of words after a
    /// space, and a window of `ms`, `s`, `min`, `h` or `d` (or their full words). A [`quota`](Self::quota) is
    /// `capacity [unit] / calendar period [in zone]`, where the period is a `day`, `week`, `month` or `year`, and
    /// the zone `UTC` if none is named. Rates are separated by commas. A unit that is already given has to be the
    /// same.
    pub fn rates(mut self, text: &str) -> Self {
        match text::parse(text) {
            Ok(parsed) => {
                self.rates.extend(parsed.rates);
                if let Some(unit) = parsed.unit {
                    return self.unit(unit);
                }
            }
            Err(error) => self.wrong = self.wrong.or(Some(error.into())),
        }
        self
    }

    /// Says what an amount counts: `tokens`. At most [`MAX_UNIT_BYTES`] bytes. Defaults to none; a limit
    /// has one.
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        let unit = unit.into();
        match self.unit {
            Some(given) if given != unit => {
                let wrong = LimitError::TwoUnits { given, unit };
                self.wrong = self.wrong.or(Some(wrong));
                self.unit = None;
            }
            _ => self.unit = Some(unit),
        }
        self
    }

    /// Lengthens each window, to cover the jitter between a grant here and its arrival at a provider
    /// that counts for itself. Defaults to zero.
    pub fn pad(mut self, pad: Duration) -> Self {
        self.pad = pad;
        self
    }

    /// Merges what is charged within this time into one row of the ledger, so that a long window of a very hot limit
    /// stays small: with a resolution of a minute, a day is some 1 440 rows, however much is charged. Defaults to
    /// zero: each charge keeps its instant. At most the shortest window.
    ///
    /// All that is merged counts from the beginning of its span of time, and each window is lengthened by the
    /// resolution. So what is charged counts up to that much longer than its window, never shorter: nothing is
    /// admitted that an exact limit would refuse, and what has to wait for a window waits that much longer at most.
    /// Those who come behind bookings can wait longer, where only the exact instants would have left them a gap.
    ///
    /// It is one for all rates of a limit. A short and a long window of a hot limit are better two limits, taken by
    /// one request, of which the long one has a resolution. A resolution can be made coarser while the limit is in
    /// use, but not finer ([`Error::Finer`](crate::Error::Finer)).
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, MINUTE, Request};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("calls").per_second(10_000))?;
    /// limiter.define(Limit::new("calls:day").per_day(500_000_000).resolution(MINUTE))?;
    /// let ask = Request::new().take("calls", 1).take("calls:day", 1);
    /// assert!(limiter.try_acquire(&ask)?.is_granted());
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn resolution(mut self, resolution: Duration) -> Self {
        self.resolution = resolution;
        self
    }

    /// Keeps the history of the limit: charges stay in the ledger for so long after they were made, though they have left
    /// all windows, to be looked at and replayed. Defaults to zero: what has left all windows is swept, a little at a
    /// time. At most 366 days. Only for rates and quotas.
    ///
    /// It changes no decision. A charge counts in its windows and not longer, and one that a window still holds stays,
    /// however short this is. But a definition with longer windows that is [put in the place](crate::OnConflict::Replace)
    /// of this one finds more of what was charged before, and counts it. A key of a
    /// [pattern](Limit::pattern) has its ledger for as long as that has a history. A row takes some 40 bytes of the file.
    ///
    /// ```
    /// use quotalite::{DAY, Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("mail").per_second(10).keep(7 * DAY))?;
    /// let limit = limiter.limit("mail")?;
    /// assert_eq!(limit.keep(), Some(7 * DAY));
    /// assert_eq!(limit.to_string(), "mail: 10/s, keep 7d");
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// What happens when a permit used more than was charged for it. Defaults to [`Overage::Debt`].
    pub fn overage(mut self, overage: Overage) -> Self {
        self.overage = overage;
        self
    }

    /// Lets a slot come back after this long although its permit is still held, unless that is renewed. Only
    /// for limits of slots. Defaults to never: a slow or stopped process keeps its slots.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Takes the timeout away: slots come back when they are given back, or their process ends.
    pub fn without_timeout(mut self) -> Self {
        self.timeout = None;
        self
    }

    /// What is done about strikes, and how the limit starts again after a pause: see
    /// [`Limiter::pause`](crate::Limiter::pause).
    pub fn pauses(mut self, pauses: PausePolicy) -> Self {
        match pauses.check() {
            Ok(pauses) => self.pauses = pauses,
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// Makes it a [breaker](Limit::breaker): for definitions that change, and for patterns.
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        match policy.check() {
            Ok(policy) => self.breaker = Some(policy),
            Err(error) => self.wrong = self.wrong.or(Some(error)),
        }
        self
    }

    /// What is wrong so far, so that whoever reads definitions can say where they go wrong.
    #[cfg(feature = "file")]
    pub(crate) fn take_wrong(&mut self) -> Option<LimitError> {
        self.wrong.take()
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// A [`LimitError`] that says what is wrong; the first thing, if several are.
    pub fn build(self) -> Result<Limit, LimitError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        check_key(&self.key)?;
        if self.is_pattern && !Pattern(&self.key).is_valid() {
            return Err(LimitError::Pattern { pattern: self.key });
        }
        if let Some(unit) = &self.unit {
            check_unit(unit)?;
        }
        let kind = if let Some(policy) = self.breaker {
            Kind::Breaker(self.check_breaker(policy)?)
        } else if let Some(count) = self.slots {
            Kind::Slots(self.check_slots(count)?)
        } else if self.burst.is_some() || self.refill.is_some() {
            Kind::Bucket(self.check_bucket()?)
        } else {
            let rates = check_rates(self.rates)?;
            Kind::Rates(Rates {
                pad_ns: nanos_of_pad(self.pad)?,
                resolution_ns: nanos_of_resolution(self.resolution, &rates)?,
                keep_ns: nanos_of_keep(self.keep)?,
                by_window: rates,
            })
        };
        if self.timeout.is_some() && !matches!(kind, Kind::Slots(_)) {
            return Err(LimitError::OnlyForSlots);
        }
        Ok(Limit {
            key: self.key.into(),
            is_pattern: self.is_pattern,
            terms: Arc::new(Terms {
                unit: self.unit,
                overage: self.overage,
                pauses: self.pauses,
                kind,
            }),
        })
    }

    fn check_breaker(&self, policy: BreakerPolicy) -> Result<BreakerPolicy, LimitError> {
        let given = [
            ("rate", !self.rates.is_empty()),
            ("slots", self.slots.is_some()),
            ("burst", self.burst.is_some()),
            ("refill", self.refill.is_some()),
            ("pad", !self.pad.is_zero()),
            ("resolution", !self.resolution.is_zero()),
            ("history", !self.keep.is_zero()),
            ("overage", self.overage != Overage::default()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((what, _)) => Err(LimitError::NotForBreakers { what }),
            None => Ok(policy),
        }
    }

    fn check_bucket(&self) -> Result<Bucket, LimitError> {
        let given = [
            ("rate", !self.rates.is_empty()),
            ("pad", !self.pad.is_zero()),
            ("resolution", !self.resolution.is_zero()),
            ("history", !self.keep.is_zero()),
        ];
        if let Some((what, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return Err(LimitError::NotForBuckets { what });
        }
        match (self.burst, self.refill) {
            (Some(burst), Some(refill)) => Bucket::new(burst, refill),
            (None, _) => Err(LimitError::HalfBucket { missing: "burst" }),
            (_, None) => Err(LimitError::HalfBucket { missing: "refill" }),
        }
    }

    fn check_slots(&self, count: u64) -> Result<Slots, LimitError> {
        let given = [
            ("rate", !self.rates.is_empty()),
            ("burst", self.burst.is_some()),
            ("refill", self.refill.is_some()),
            ("pad", !self.pad.is_zero()),
            ("resolution", !self.resolution.is_zero()),
            ("history", !self.keep.is_zero()),
            ("overage", self.overage != Overage::default()),
        ];
        if let Some((what, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return Err(LimitError::NotForSlots { what });
        }
        if !(1..=MAX_CAPACITY).contains(&count) {
            return Err(LimitError::Slots { count });
        }
        let check = |timeout: Duration| {
            let is_allowed = (MIN_WINDOW..=MAX_WINDOW).contains(&timeout);
            is_allowed
                .then(|| nanos(timeout))
                .ok_or(LimitError::Timeout { timeout })
        };
        Ok(Slots {
            count: count.cast_signed(),
            timeout_ns: self.timeout.map(check).transpose()?,
        })
    }
}

fn check_rates(mut rates: Vec<Rate>) -> Result<Vec<Rate>, LimitError> {
    if rates.is_empty() {
        return Err(LimitError::NoRate);
    }
    if rates.len() > MAX_RATES {
        return Err(LimitError::TooManyRates { count: rates.len() });
    }
    rates.sort_by_key(Rate::order);
    match rates
        .windows(2)
        .find(|pair| pair[0].window() == pair[1].window())
    {
        Some(pair) => Err(LimitError::SameWindow {
            first: pair[0],
            second: pair[1],
        }),
        None => Ok(rates),
    }
}

fn nanos_of_pad(pad: Duration) -> Result<i64, LimitError> {
    let nanos = i64::try_from(pad.as_nanos()).ok();
    nanos
        .filter(|_| pad <= MAX_WINDOW)
        .ok_or(LimitError::Pad { pad })
}

fn nanos_of_keep(keep: Duration) -> Result<i64, LimitError> {
    if keep > MAX_WINDOW {
        return Err(LimitError::Keep { keep });
    }
    Ok(nanos(keep))
}

/// The rates are by window, shortest first.
fn nanos_of_resolution(resolution: Duration, rates: &[Rate]) -> Result<i64, LimitError> {
    let shortest = rates.first().map_or(Duration::ZERO, Rate::usual_length);
    if resolution > shortest {
        return Err(LimitError::Resolution {
            resolution,
            shortest,
        });
    }
    Ok(nanos(resolution))
}

impl TryFrom<LimitBuilder> for Limit {
    type Error = Error;

    /// [`LimitBuilder::build`], with an error that names the key.
    fn try_from(builder: LimitBuilder) -> Result<Self, Error> {
        let key = builder.key.clone();
        let named = |source| Error::Definition { key, source };
        builder.build().map_err(named)
    }
}

impl From<&Limit> for Limit {
    fn from(limit: &Limit) -> Self {
        limit.clone()
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), LimitError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(LimitError::KeyLength { bytes: key.len() });
    }
    match key.char_indices().find(|(_, c)| c.is_control()) {
        Some((offset, _)) => Err(LimitError::KeyControl { offset }),
        None => Ok(()),
    }
}

fn check_unit(unit: &str) -> Result<(), LimitError> {
    let wrong = unit.is_empty() || unit.len() > MAX_UNIT_BYTES || unit.contains(char::is_control);
    if wrong {
        return Err(LimitError::Unit { bytes: unit.len() });
    }
    Ok(())
}
