//! How a limit stands.

use crate::breaker::BreakerUsage;
use crate::calendar::{self, LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::{Books, free_slots};
use crate::limit::{Bucket, Limit, Rate};
use crate::line::is_of_slots;
use crate::pause::Pause;

/// How a limit stands at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    limit: Limit,
    at: Timestamp,
    rates: Vec<RateUsage>,
    bucket: Option<BucketUsage>,
    pause: Option<Pause>,
    starts_until: Option<Timestamp>,
    breaker: Option<BreakerUsage>,
    free_slots: Option<u64>,
    held: u64,
    is_over: bool,
    people: People,
}

/// Who has to do with a limit, besides its charges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct People {
    pub(crate) permits: u64,
    pub(crate) waiting: u64,
    pub(crate) debt: u64,
    /// Whether the definition was changed to one that what was used did not fit.
    pub(crate) was_lowered: bool,
}

impl Usage {
    /// The limit, as it is defined.
    #[must_use]
    pub const fn limit(&self) -> &Limit {
        &self.limit
    }

    /// The instant.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// Each rate, shortest window first.
    #[must_use]
    pub fn rates(&self) -> &[RateUsage] {
        &self.rates
    }

    /// How the bucket stands, if this is one.
    #[must_use]
    pub const fn bucket(&self) -> Option<&BucketUsage> {
        self.bucket.as_ref()
    }

    /// Whether more is used, held or booked than the definition allows since it was lowered: nothing is admitted
    /// until it fits again.
    #[must_use]
    pub const fn is_decreasing(&self) -> bool {
        self.people.was_lowered && self.is_over
    }

    /// How many slots are held; 0 if this is no concurrency limit. A process that has died may still count,
    /// until somebody needs its slots.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// The pause that is in force, if the limit is [paused](crate::Limiter::pause).
    #[must_use]
    pub const fn pause(&self) -> Option<Pause> {
        self.pause
    }

    /// Until when it admits less than its rates do, because it [starts slowly](crate::PausePolicy::slow_start) after a
    /// pause that has ended; nothing if it does not.
    #[must_use]
    pub const fn starts_slowly_until(&self) -> Option<Timestamp> {
        self.starts_until
    }

    /// How the breaker stands, if this is one.
    #[must_use]
    pub const fn breaker(&self) -> Option<&BreakerUsage> {
        self.breaker.as_ref()
    }

    /// The largest amount that would be admitted now, if nobody waits in line for it; 0 if none would.
    #[must_use]
    pub fn available(&self) -> u64 {
        if self.pause.is_some() {
            return 0;
        }
        if let Some(free) = self.free_slots {
            return free;
        }
        let rates = self.rates.iter().map(|rate| rate.available);
        let bucket = self.bucket.iter().map(|bucket| bucket.available);
        rates.chain(bucket).min().unwrap_or(0)
    }

    /// What permits used beyond what could be charged for it, as far as the limit records that
    /// ([`Overage::Debt`](crate::Overage::Debt)), since it was defined.
    #[must_use]
    pub const fn debt(&self) -> u64 {
        self.people.debt
    }

    /// How many permits hold slots of it.
    #[must_use]
    pub const fn permits(&self) -> u64 {
        self.people.permits
    }

    /// How many callers wait in line for it: for slots, or behind those who do. Who only waits for rates
    /// has booked its charge and is not counted.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.people.waiting
    }

    /// Whether more is in use than the definition allows, whatever brought that about.
    pub(crate) const fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) const fn with(mut self, people: People) -> Self {
        self.people = people;
        self
    }

    pub(crate) fn read<B: Books>(
        ledgers: &mut B,
        id: LimitId,
        limit: &Limit,
        at: Timestamp,
    ) -> Result<Self, B::Error> {
        let line = Line {
            id,
            pattern: None,
            limit,
            amount: 1,
        };
        let has_slots = is_of_slots(&line);
        let held = if has_slots {
            ledgers.held(id)?.unsigned_abs()
        } else {
            0
        };
        let free_slots = if has_slots {
            let free = free_slots(ledgers, &line)?;
            Some(u64::try_from(free).unwrap_or(0))
        } else {
            None
        };
        let breaker = match limit.breaker_policy() {
            Some(policy) => Some(BreakerUsage::new(policy, ledgers.broken(id)?, at)),
            None => None,
        };
        let mut is_over = limit.slot_count().is_some_and(|count| held > count);
        let last_pause = calendar::pause_of(ledgers, id, at)?;
        let pause = last_pause.filter(|pause| pause.holds(at));
        let starts_until = last_pause
            .filter(|pause| !pause.holds(at))
            .and_then(|pause| calendar::end_of_start(limit, pause))
            .filter(|until| *until > at);
        let mut rates = Vec::with_capacity(limit.rates().len());
        for rate in limit.rates() {
            let read = calendar::usage(ledgers, id, limit, rate, at)?;
            is_over |= read.is_over;
            let mut available = read.available.unsigned_abs();
            if let Some(last) = last_pause {
                let starts = calendar::room_at_start(ledgers, id, limit, rate, last, at)?;
                available = available.min(starts.map_or(u64::MAX, i64::unsigned_abs));
            }
            if pause.is_some() {
                available = 0;
            }
            rates.push(RateUsage {
                rate: *rate,
                used: read.used.unsigned_abs(),
                available,
                next_release: read.next_release,
            });
        }
        let level = calendar::level(ledgers, id, limit, at)?;
        is_over |= level.is_some_and(|read| read.is_over);
        let bucket = limit.bucket().zip(level).map(|(bucket, read)| BucketUsage {
            bucket,
            used: read.used.unsigned_abs(),
            available: if pause.is_some() {
                0
            } else {
                read.available.unsigned_abs()
            },
            next_release: read.next_release,
        });
        Ok(Self {
            limit: limit.clone(),
            at,
            rates,
            bucket,
            pause,
            starts_until,
            breaker,
            free_slots,
            held,
            is_over,
            people: People::default(),
        })
    }
}

/// How one rate of a limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateUsage {
    rate: Rate,
    used: u64,
    available: u64,
    next_release: Option<Timestamp>,
}

impl RateUsage {
    /// The rate.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// The sum of the charges in the window that ends now.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// The largest amount that this rate would admit now: what is unused, less what is booked so soon
    /// that it needs it.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.available
    }

    /// When the next charge leaves the window, if any is in it.
    #[must_use]
    pub const fn next_release(&self) -> Option<Timestamp> {
        self.next_release
    }
}

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketUsage {
    bucket: Bucket,
    used: u64,
    available: u64,
    next_release: Option<Timestamp>,
}

impl BucketUsage {
    /// The bucket.
    #[must_use]
    pub const fn bucket(&self) -> Bucket {
        self.bucket
    }

    /// What is missing in it; what has only partly flowed back counts as missing.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// The largest amount that it would admit now: what it holds, less what is booked so soon that it needs it.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.available
    }

    /// When it holds one more, unless it is full.
    #[must_use]
    pub const fn next_release(&self) -> Option<Timestamp> {
        self.next_release
    }
}
