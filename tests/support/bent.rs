//! Limiters that take what they are told for something else, to show that histories notice.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use quotalite::{Definition, Limit, LimitBuilder, MIN_WINDOW, Obstacle, OnConflict, Window};

use crate::real::Real;
use crate::subject::{Answer, Asked, Closing, Defined, Subject, Takes, Wait};

/// What is taken for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bend {
    /// Nothing. It shows that the others are noticed for that.
    Nothing,
    /// The time in which one token flows into a bucket is cut off to whole nanoseconds.
    CutsTokens,
    /// A bucket is a window in which as much can be charged as it holds.
    WindowsForBuckets,
    /// Whatever the zone, days are those of UTC.
    #[cfg_attr(
        not(feature = "calendar"),
        expect(dead_code, reason = "there are no calendars")
    )]
    DaysOfUtc,
    /// All keys that match a pattern have one ledger.
    OneLedgerForAll,
}

/// Limiters in memory, for one caller, that are told something else.
#[derive(Debug)]
pub struct Bent {
    bend: Bend,
    real: Real,
    /// As they were given.
    defined: BTreeMap<String, Limit>,
    /// By the request: the key that was put in the place of another.
    replaced: BTreeMap<usize, (String, String)>,
}

impl Bent {
    pub fn with(bend: Bend) -> Self {
        Self {
            bend,
            real: Real::in_memory(),
            defined: BTreeMap::new(),
            replaced: BTreeMap::new(),
        }
    }

    fn bent(&self, limit: &Limit) -> Limit {
        let bent = match (self.bend, limit.bucket()) {
            (Bend::CutsTokens, Some(bucket)) => {
                let token = bucket.per().as_nanos() / u128::from(bucket.refill());
                let per = token * u128::from(bucket.refill()) * 2;
                let per = Duration::from_nanos(u64::try_from(per).expect("short"));
                limit.to_builder().refill(bucket.refill() * 2, per)
            }
            (Bend::WindowsForBuckets, Some(bucket)) => {
                let fills = bucket.per().as_nanos() * u128::from(bucket.burst());
                let fills = u64::try_from(fills / u128::from(bucket.refill())).expect("short");
                let window = Duration::from_nanos(fills).max(MIN_WINDOW);
                let builder = Limit::new(limit.key()).overage(limit.overage());
                builder.rate(bucket.burst(), window)
            }
            (Bend::DaysOfUtc, None) => in_utc(limit),
            _ => return limit.clone(),
        };
        bent.build().unwrap_or_else(|_| limit.clone())
    }

    /// Puts the first key that matches a pattern in the place of another.
    fn asked(&mut self, (takes, id): &Asked, claim: usize) -> Asked {
        let one = "t:1";
        let mut takes = takes.clone();
        let has_own = |key: &str| self.defined.contains_key(key);
        let is_asked = takes.iter().any(|(key, _)| key == one);
        let other = takes
            .iter_mut()
            .find(|(key, _)| key.starts_with("t:") && !has_own(key));
        if let Some((key, _)) = other
            && self.bend == Bend::OneLedgerForAll
            && !is_asked
        {
            let key = std::mem::replace(key, one.to_owned());
            self.replaced.insert(claim, (key, one.to_owned()));
        }
        (takes, id.clone())
    }

    /// What was told of the limits that were defined.
    fn told(&self, claim: usize, mut answer: Answer) -> Answer {
        let told = match &mut answer {
            Answer::Refused(refused) | Answer::TooLate { refused, .. } => {
                Some((&mut refused.key, Some(&mut refused.obstacle)))
            }
            Answer::NeverFits { key, obstacle, .. } => Some((key, Some(obstacle))),
            Answer::Unknown { key } => Some((key, None)),
            _ => None,
        };
        if let Some((key, obstacle)) = told {
            if let Some((asked, one)) = self.replaced.get(&claim)
                && key == one
            {
                key.clone_from(asked);
            }
            if let (Some(obstacle), Some(limit)) = (obstacle, self.defined.get(key)) {
                *obstacle = self.as_defined(limit, *obstacle);
            }
        }
        answer
    }

    fn as_defined(&self, limit: &Limit, obstacle: Obstacle) -> Obstacle {
        let bent = self.bent(limit);
        let position = match obstacle {
            Obstacle::Rate(rate) => bent.rates().iter().position(|of| *of == rate),
            _ => None,
        };
        match (limit.bucket(), position) {
            (Some(bucket), _) => Obstacle::Bucket(bucket),
            (None, Some(position)) => Obstacle::Rate(limit.rates()[position]),
            (None, None) => obstacle,
        }
    }
}

fn in_utc(limit: &Limit) -> LimitBuilder {
    let builder = limit.to_builder().without_rates();
    let rates = limit.rates().iter();
    rates.fold(builder, |builder, rate| match rate.window() {
        Window::Calendar(quota) => builder.quota(rate.capacity(), quota.period(), "UTC"),
        _ => builder.set_rate(*rate),
    })
}

fn is_alike(a: &Limit, b: &Limit) -> bool {
    a.is_pattern() == b.is_pattern() && a.bucket().is_some() == b.bucket().is_some()
}

impl Subject for Bent {
    fn define(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Defined {
        let definition = match self.defined.get(limit.key()).cloned() {
            None => Definition::Created,
            Some(stored) if stored == *limit => return Defined::Done(Definition::Unchanged),
            Some(stored) => match conflict {
                OnConflict::Adopt => return Defined::Done(Definition::Adopted(stored)),
                OnConflict::Fail => {
                    let given = limit.clone();
                    return Defined::Conflict { stored, given };
                }
                OnConflict::Replace if !is_alike(&stored, limit) => return Defined::OtherKind,
                OnConflict::Replace => Definition::Replaced(stored),
            },
        };
        self.real
            .define(slot, &self.bent(limit), OnConflict::Replace);
        self.defined.insert(limit.key().to_owned(), limit.clone());
        Defined::Done(definition)
    }

    fn try_acquire(&mut self, slot: usize, ask: &Asked, claim: usize, holds: bool) -> Answer {
        let asked = self.asked(ask, claim);
        let answer = self.real.try_acquire(slot, &asked, claim, holds);
        self.told(claim, answer)
    }

    fn book(&mut self, slot: usize, ask: &Asked, wait: Wait, claim: usize) -> Answer {
        let asked = self.asked(ask, claim);
        let answer = self.real.book(slot, &asked, wait, claim);
        self.told(claim, answer)
    }

    fn give_back(&mut self, claim: usize, by_dropping: bool) {
        self.real.give_back(claim, by_dropping);
    }

    fn accept(&mut self, claim: usize, holds: bool) -> i64 {
        self.real.accept(claim, holds)
    }

    fn settle(&mut self, claim: usize, used: &Takes) -> Closing {
        let Some((asked, one)) = self.replaced.get(&claim) else {
            return self.real.settle(claim, used);
        };
        let mut used = used.clone();
        for (key, _) in used.iter_mut().filter(|(key, _)| key == asked) {
            key.clone_from(one);
        }
        let mut closing = self.real.settle(claim, &used);
        if let Closing::Now(settled) = &mut closing {
            for settling in settled.iter_mut().filter(|settling| settling.key == *one) {
                settling.key.clone_from(asked);
            }
            settled.sort_by(|a, b| a.key.cmp(&b.key));
        }
        closing
    }

    fn cancel(&mut self, claim: usize) -> Closing {
        self.real.cancel(claim)
    }

    fn let_go(&mut self, claim: usize) {
        self.real.let_go(claim);
    }

    fn advance(&mut self, duration: Duration) {
        self.real.advance(duration);
    }

    fn now_ns(&mut self, slot: usize) -> Option<i64> {
        self.real.now_ns(slot)
    }

    fn set_wall(&mut self, wall: SystemTime) {
        self.real.set_wall(wall);
    }
}
