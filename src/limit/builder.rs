//! Limits in the making.

use std::time::Duration;

use super::{
    DAY, HOUR, Limit, LimitError, MAX_CAPACITY, MAX_KEY_BYTES, MAX_RATES, MAX_UNIT_BYTES,
    MAX_WINDOW, MIN_WINDOW, MINUTE, Rate, SECOND, Slots, text,
};
use crate::settlement::Overage;

/// The definition of a [`Limit`] in the making.
#[derive(Clone, Debug)]
#[must_use = "a definition does nothing until it is given to `define`"]
pub struct LimitBuilder {
    key: String,
    unit: Option<String>,
    pad: Duration,
    rates: Vec<Rate>,
    overage: Overage,
    slots: Option<u64>,
    timeout: Option<Duration>,
    wrong: Option<LimitError>,
}

impl LimitBuilder {
    pub(super) fn new(key: String) -> Self {
        Self {
            key,
            unit: None,
            pad: Duration::ZERO,
            rates: Vec::new(),
            overage: Overage::default(),
            slots: None,
            timeout: None,
            wrong: None,
        }
    }

    pub(super) fn slots(key: String, count: u64) -> Self {
        Self {
            slots: Some(count),
            ..Self::new(key)
        }
    }

    /// Adds a rate of `capacity` per `window`.
    pub fn rate(mut self, capacity: u64, window: Duration) -> Self {
        match Rate::new(capacity, window) {
            Ok(rate) => self.rates.push(rate),
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
    /// A rate is `capacity [unit] / [count] window`, with `_` allowed between digits, a unit of words
    /// after a space, and a window of `ms`, `s`, `min`, `h` or `d` (or their full words). Rates are
    /// separated by commas. A unit that is already given has to be the same.
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

    /// Checks the definition.
    ///
    /// # Errors
    /// A [`LimitError`] that says what is wrong; the first thing, if several are.
    pub fn build(self) -> Result<Limit, LimitError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        check_key(&self.key)?;
        if let Some(unit) = &self.unit {
            check_unit(unit)?;
        }
        let (rates, pad_ns, slots) = match self.slots {
            Some(count) => (Vec::new(), 0, Some(self.check_slots(count)?)),
            None => (check_rates(self.rates)?, nanos_of_pad(self.pad)?, None),
        };
        if slots.is_none() && self.timeout.is_some() {
            return Err(LimitError::OnlyForSlots);
        }
        Ok(Limit {
            key: self.key.into(),
            unit: self.unit,
            pad_ns,
            rates,
            overage: self.overage,
            slots,
        })
    }

    fn check_slots(&self, count: u64) -> Result<Slots, LimitError> {
        let given = [
            ("rate", !self.rates.is_empty()),
            ("pad", !self.pad.is_zero()),
            ("overage", self.overage != Overage::default()),
        ];
        if let Some((what, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return Err(LimitError::NotForSlots { what });
        }
        if !(1..=MAX_CAPACITY).contains(&count) {
            return Err(LimitError::Slots { count });
        }
        let nanos = |timeout: Duration| {
            let is_allowed = (MIN_WINDOW..=MAX_WINDOW).contains(&timeout);
            i64::try_from(timeout.as_nanos())
                .ok()
                .filter(|_| is_allowed)
                .ok_or(LimitError::Timeout { timeout })
        };
        Ok(Slots {
            count: count.cast_signed(),
            timeout_ns: self.timeout.map(nanos).transpose()?,
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
    rates.sort_by_key(|rate| rate.window_ns);
    match rates
        .windows(2)
        .find(|pair| pair[0].window_ns == pair[1].window_ns)
    {
        Some(pair) => Err(LimitError::SameWindow {
            window: pair[0].window(),
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

impl TryFrom<LimitBuilder> for Limit {
    type Error = LimitError;

    fn try_from(builder: LimitBuilder) -> Result<Self, LimitError> {
        builder.build()
    }
}

impl TryFrom<&Limit> for Limit {
    type Error = LimitError;

    fn try_from(limit: &Limit) -> Result<Self, LimitError> {
        Ok(limit.clone())
    }
}

fn check_key(key: &str) -> Result<(), LimitError> {
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
