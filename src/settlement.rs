//! Settling: from what was estimated to what was used.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::calendar::{self, Ledgers, LimitId};
use crate::clock::Timestamp;
use crate::error::{Error, RequestError};
use crate::estimate::Lesson;
use crate::limit::{Limit, MAX_CAPACITY};
use crate::store::Row;

/// What a limit does about a permit that used more than was charged for it.
///
/// Whatever fits beside the charges and bookings of the others is always added to the permit's own charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overage {
    /// What does not fit is recorded as the limit's [debt](crate::Usage::debt), for people to see: a sum that grows, which
    /// nothing pays back and nobody waits for.
    #[default]
    Debt,
    /// All of it is charged, though it does not fit: those who come later wait it out.
    Charge,
    /// What does not fit is forgotten. Whoever settles is not refused: what was used was used.
    Deny,
}

impl Overage {
    /// As it stands in the file and in definitions.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Debt => "debt",
            Self::Charge => "charge",
            Self::Deny => "deny",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Debt, Self::Charge, Self::Deny]
            .into_iter()
            .find(|overage| overage.as_str() == text)
    }
}

/// What came of settling or cancelling a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// It was open, and now it is closed.
    Now(Settlement),
    /// It had been settled or cancelled before. Nothing was changed.
    Before,
    /// It had come to an end by itself, because its timeout had passed. What it had charged stays charged.
    Expired,
    /// There is no permit of this id, or it has ended more than an hour ago.
    Unknown,
}

impl Settled {
    /// What was changed, if anything was.
    #[must_use]
    pub const fn settlement(&self) -> Option<&Settlement> {
        match self {
            Self::Now(settlement) => Some(settlement),
            Self::Before | Self::Expired | Self::Unknown => None,
        }
    }
}

/// How a permit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Settled,
    Cancelled,
    Expired,
}

impl End {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "cancelled" => Self::Cancelled,
            "expired" => Self::Expired,
            _ => Self::Settled,
        }
    }

    /// What somebody is told who comes after it.
    pub(crate) const fn told(self) -> Settled {
        match self {
            Self::Settled | Self::Cancelled => Settled::Before,
            Self::Expired => Settled::Expired,
        }
    }
}

/// How the charges of a permit were changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    pub(crate) amounts: Vec<SettledAmount>,
}

impl Settlement {
    /// Each limit whose amount was given.
    #[must_use]
    pub fn amounts(&self) -> &[SettledAmount] {
        &self.amounts
    }

    pub(crate) fn add(&mut self, row: &Row, used: u64, correction: Correction) {
        self.amounts.push(SettledAmount {
            key: Arc::clone(&row.key),
            estimated: row.amount,
            used,
            charged: correction.charged.unsigned_abs(),
            debt: correction.debt.unsigned_abs(),
        });
    }

    /// What became of one limit, if its amount was given.
    #[must_use]
    pub fn amount(&self, key: &str) -> Option<&SettledAmount> {
        self.amounts.iter().find(|amount| amount.key() == key)
    }
}

/// How one charge of a permit was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledAmount {
    pub(crate) key: Arc<str>,
    pub(crate) estimated: u64,
    pub(crate) used: u64,
    pub(crate) charged: u64,
    pub(crate) debt: u64,
}

impl SettledAmount {
    /// The key of the limit.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What the request had asked for, and what was charged until now.
    #[must_use]
    pub const fn estimated(&self) -> u64 {
        self.estimated
    }

    /// What was used, as the caller says.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// What is charged from now on, at the permit's own instant.
    #[must_use]
    pub const fn charged(&self) -> u64 {
        self.charged
    }

    /// What was added to the limit's debt.
    #[must_use]
    pub const fn debt(&self) -> u64 {
        self.debt
    }
}

/// What was used, checked by itself: no key twice, no amount above [`MAX_CAPACITY`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    amounts: SmallVec<[(Box<str>, u64); 4]>,
    lesson: Option<Lesson>,
}

impl Used {
    pub(crate) fn new<K: AsRef<str>>(
        amounts: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Self, Error> {
        let mut used = Self::default();
        for (key, amount) in amounts {
            let key = key.as_ref();
            if used.of(key).is_some() {
                let key = key.to_owned();
                return Err(RequestError::KeyTwice { key }.into());
            }
            if amount > MAX_CAPACITY {
                let key = key.to_owned();
                return Err(RequestError::TooMuch { key, amount }.into());
            }
            used.amounts.push((key.into(), amount));
        }
        Ok(used)
    }

    /// The same, to be learned from.
    pub(crate) fn learning(self, lesson: Option<Lesson>) -> Self {
        Self { lesson, ..self }
    }

    /// What is to be learned once it is settled: of which limit, what was estimated, and what was used.
    pub(crate) fn lesson(&self) -> Option<(&str, u64, u64)> {
        let Lesson { key, estimated } = self.lesson.as_ref()?;
        Some((key, *estimated, self.of(key)?))
    }

    /// What was used of a limit, if that is said.
    pub(crate) fn of(&self, key: &str) -> Option<u64> {
        let said = self.amounts.iter().find(|(name, _)| **name == *key);
        said.map(|(_, amount)| *amount)
    }

    /// Refuses what is said of limits that the permit took nothing of.
    pub(crate) fn check(&self, taken: &[Row]) -> Result<(), Error> {
        for (key, _) in &self.amounts {
            if taken.iter().all(|row| *row.key != **key) {
                return Err(RequestError::NotTaken {
                    key: key.to_string(),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// A charge as it stands, and what was used of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate<'a> {
    pub(crate) id: LimitId,
    pub(crate) limit: &'a Limit,
    pub(crate) at: Timestamp,
    pub(crate) charged: i64,
    pub(crate) used: i64,
    /// Whether there is a charge that can become larger, or a bucket that can be poured out.
    pub(crate) can_grow: bool,
}

/// What a charge becomes, and what is left as debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correction {
    pub(crate) charged: i64,
    pub(crate) debt: i64,
}

impl Correction {
    /// Of a limit that is no more.
    pub(crate) const NOTHING: Self = Self {
        charged: 0,
        debt: 0,
    };
}

/// How far above its capacity a window may be charged: far enough for anything true, and so that no sum
/// comes near the modulus of the totals.
const FARTHEST_OVER: i64 = 1 << 60;

/// What others have used of a limit, if no more is left of it than this: of the rate that is meant, or of the bucket.
pub(crate) fn used_by_others<L: Ledgers>(
    ledgers: &mut L,
    id: LimitId,
    limit: &Limit,
    (window, remaining): (Option<Duration>, u64),
    now: Timestamp,
) -> Result<i64, L::Error> {
    let left = i64::try_from(remaining).unwrap_or(i64::MAX);
    let Some(room) = calendar::room(ledgers, id, limit, now, now)? else {
        return Ok(0);
    };
    let available = match limit.rate_told(window) {
        Some(rate) => calendar::usage(ledgers, id, limit, &rate, now)?.available,
        None if limit.bucket().is_some() => room,
        None => return Ok(0),
    };
    Ok((available - left).min(room).max(0))
}

/// What becomes of a charge of which this much was used.
pub(crate) fn correction<L: Ledgers>(
    ledgers: &mut L,
    estimate: &Estimate<'_>,
    now: Timestamp,
) -> Result<Correction, L::Error> {
    let excess = estimate.used - estimate.charged;
    if excess <= 0 {
        return Ok(Correction {
            charged: estimate.used,
            debt: 0,
        });
    }
    // Where no window holds the charge any more, nothing can be charged that anybody would notice.
    let room = calendar::room(ledgers, estimate.id, estimate.limit, estimate.at, now)?;
    let room = room.filter(|_| estimate.can_grow);
    let overage = estimate.limit.overage();
    let farthest_over = estimate
        .limit
        .bucket()
        .map_or(FARTHEST_OVER, calendar::farthest);
    let more = match overage {
        Overage::Charge => excess.min(room.unwrap_or(0).saturating_add(farthest_over)),
        Overage::Debt | Overage::Deny => excess.min(room.unwrap_or(0)),
    }
    .max(0);
    Ok(Correction {
        charged: estimate.charged + more,
        debt: match overage {
            Overage::Debt => excess - more,
            Overage::Charge | Overage::Deny => 0,
        },
    })
}
