//! Definitions drawn at random: what limits are, whatever their keys, and how they are changed.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use quotalite::{Limit, LimitBuilder, MAX_CAPACITY, Overage, Period, Window};

use crate::strikes::POLICIES;
use crate::subject::ns;

const ZONES: [&str; 6] = [
    "UTC",
    "America/Los_Angeles",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Auckland",
];
/// The time in which all buckets whose keys may match a pattern refill: so that what is missing needs no rounding when
/// one definition takes over from another, and what is put back later is found again to the last part of it.
const ONE_REFILL: usize = 2;
const TIMEOUTS_MS: [u64; 6] = [1, 7, 40, 1_000, 5_000, 2_000_000];
const WINDOWS_MS: [u64; 10] = [1, 2, 3, 5, 10, 40, 250, 1_000, 2_000, 5_000];
const PADS_NS: [u64; 6] = [0, 0, 0, 1, 999_999, 7_000_000];
/// Some divide windows and pads, and some do not.
const RESOLUTIONS_NS: [u64; 8] = [0, 0, 0, 0, 0, 300_000, 1_000_000, 7_000_000];
/// For how long history is kept, which nothing depends on.
const KEEPS_MS: [u64; 4] = [0, 0, 1, 20_000_000];
/// The definition of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct Tub {
    pub burst: u64,
    pub refill: u64,
    pub per: usize,
}

/// How a definition is changed: capacities, and what flows into buckets, to so many quarters of what they were.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub quarters: u64,
    pub refill_quarters: u64,
}

/// A capacity per period of a calendar.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub capacity: u64,
    pub period: Period,
    pub zone: &'static str,
}

/// The definition of a limit, whatever its key.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Windows and capacities.
    pub rates: Vec<(usize, u64)>,
    /// Longer windows hold more.
    pub grows: bool,
    /// Capacities are close to the largest.
    pub is_huge: bool,
    pub pad: usize,
    pub resolution: usize,
    pub overage: Overage,
    /// What is done about strikes.
    pub policy: usize,
    /// It is a bucket, and has no rates.
    pub bucket: Option<Tub>,
    /// Its other rates, if they are asked for and it is no bucket. The shorter windows may be left out for them.
    pub quotas: Vec<Allowance>,
}

/// The definition of a limit of slots, whatever its key.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub policy: usize,
    pub count: u64,
    pub timeout: Option<usize>,
}

pub fn shape() -> impl Strategy<Value = Shape> {
    let rates = prop::collection::vec((0..WINDOWS_MS.len(), 1_u64..=6), 1..=3);
    let is_huge = prop::bool::weighted(0.15);
    let grows = prop::bool::weighted(0.8);
    let kinds = (
        prop::option::weighted(0.5, tub()),
        prop::collection::vec(allowance(), 0..=2),
    );
    let longer = (0..PADS_NS.len(), 0..RESOLUTIONS_NS.len());
    let besides = (overage(), 0..POLICIES.len());
    (rates, grows, is_huge, longer, besides, kinds).prop_map(
        |(rates, grows, is_huge, (pad, resolution), (overage, policy), (bucket, quotas))| Shape {
            rates,
            grows,
            is_huge,
            pad,
            resolution,
            overage,
            policy,
            bucket,
            quotas,
        },
    )
}

fn allowance() -> impl Strategy<Value = Allowance> {
    let period = prop_oneof![
        5 => Just(Period::Day),
        2 => Just(Period::Week),
        2 => Just(Period::Month),
        1 => Just(Period::Year),
    ];
    (1_u64..=12, period, select(&ZONES[..])).prop_map(|(capacity, period, zone)| Allowance {
        capacity,
        period,
        zone,
    })
}

fn tub() -> impl Strategy<Value = Tub> {
    (1_u64..=12, 1_u64..=7, 0..WINDOWS_MS.len()).prop_map(|(burst, refill, per)| Tub {
        burst,
        refill,
        per,
    })
}

pub fn turn() -> impl Strategy<Value = Turn> {
    let quarters = || prop_oneof![1 => Just(4_u64), 2 => 1_u64..=12];
    (quarters(), quarters()).prop_map(|(quarters, refill_quarters)| Turn {
        quarters,
        refill_quarters,
    })
}

pub fn overage() -> impl Strategy<Value = Overage> {
    prop_oneof![
        8 => Just(Overage::Debt),
        1 => Just(Overage::Charge),
        1 => Just(Overage::Deny),
    ]
}

pub fn pool() -> impl Strategy<Value = Pool> {
    let timeout = prop::option::of(0..TIMEOUTS_MS.len());
    (1_u64..=4, timeout, 0..POLICIES.len()).prop_map(|(count, timeout, policy)| Pool {
        policy,
        count,
        timeout,
    })
}

impl Shape {
    /// The limit of this shape that counts nothing for longer than `longest_ns`: what has left all
    /// windows may have been swept, so a longer one would not know of it.
    pub fn limit(&self, key: &str, longest_ns: i64) -> Limit {
        if let Some(tub) = self.bucket {
            return tub.limit(key, self);
        }
        let mut rates: Vec<(Duration, u64)> = self
            .rates
            .iter()
            .map(|(window, capacity)| (Duration::from_millis(WINDOWS_MS[*window]), *capacity))
            .filter(|(window, _)| ns(*window) <= longest_ns)
            .collect();
        if rates.is_empty() {
            rates.push((Duration::from_millis(1), 1));
        }
        rates.sort_unstable();
        rates.dedup_by_key(|(window, _)| *window);
        let longest = rates.last().expect("there is one").0;
        let room_ns = (longest_ns - ns(longest)).unsigned_abs();
        let pad = Duration::from_nanos(PADS_NS[self.pad].min(room_ns));
        // A resolution that has become coarser lengthens the windows, too.
        let shortest = rates.first().expect("there is one").0;
        let resolution = Duration::from_nanos(RESOLUTIONS_NS[self.resolution]);
        let fits = resolution <= shortest && ns(resolution + pad + longest) <= longest_ns;
        let resolution = if fits { resolution } else { Duration::ZERO };
        let mut builder = builder_of(key).pad(pad).overage(self.overage);
        builder = builder.resolution(resolution);
        let keep = KEEPS_MS[(self.pad + self.policy) % KEEPS_MS.len()];
        builder = builder.keep(Duration::from_millis(keep));
        builder = builder.pauses(POLICIES[self.policy].built());
        let mut former = 0;
        for (window, capacity) in rates {
            let capacity = if self.grows {
                former + capacity
            } else {
                capacity
            };
            former = capacity;
            builder = builder.rate(self.base() + capacity, window);
        }
        if !self.quotas.is_empty() && self.rates.len() == 3 {
            builder = builder.without_rates();
            former = 0;
        }
        let mut quotas = self.quotas.clone();
        quotas.sort_by_key(|quota| (quota.period, quota.zone));
        quotas.dedup_by_key(|quota| (quota.period, quota.zone));
        for quota in quotas {
            former += quota.capacity;
            builder = builder.quota(self.base() + former, quota.period, quota.zone);
        }
        builder.build().expect("a limit that can be")
    }

    const fn base(&self) -> u64 {
        if self.is_huge { MAX_CAPACITY - 60 } else { 0 }
    }

    /// The same of another kind, if that is what stands there; but sometimes not.
    pub fn alike(&self, defined: &Limit) -> Self {
        let (window, capacity) = self.rates[0];
        let tub = Tub {
            burst: capacity,
            refill: capacity,
            per: window,
        };
        let stays = self.rates.len() == 3;
        let bucket = match self.bucket {
            bucket if stays => bucket,
            bucket => defined.bucket().and(bucket.or(Some(tub))),
        };
        let per = defined.bucket().and_then(|bucket| {
            let mut windows = WINDOWS_MS.iter();
            windows.position(|ms| Duration::from_millis(*ms) == bucket.per())
        });
        let bucket = bucket.map(|tub| Tub {
            per: per.unwrap_or(tub.per),
            ..tub
        });
        // A bucket that lacks what a huge one did would take longer to fill than anybody counts.
        let is_huge = defined.bucket().map(|bucket| bucket.burst() > 1 << 40);
        Self {
            bucket,
            is_huge: is_huge.unwrap_or(self.is_huge),
            // What was charged before is no longer there for a window that is longer.
            quotas: Vec::new(),
            ..self.clone()
        }
    }

    /// What is defined under a name of a key that may match a pattern, or of a pattern. All those of rates have the
    /// same longest window: one may take over the ledger of another.
    pub fn named(&self, name: &str) -> Limit {
        let (window, capacity) = self.rates[0];
        let mut shape = self.clone();
        if name.starts_with("u:") {
            let tub = self.bucket.unwrap_or(Tub {
                burst: capacity,
                refill: capacity,
                per: window,
            });
            shape.is_huge = false;
            shape.bucket = Some(Tub {
                per: ONE_REFILL,
                ..tub
            });
        } else {
            shape.bucket = None;
            shape.quotas.clear();
            shape.is_huge = false;
            shape.pad = 0;
            shape.resolution = 0;
            let longest = WINDOWS_MS.len() - 1;
            shape.rates.retain(|(window, _)| *window != longest);
            shape.rates.push((longest, capacity + 6));
        }
        shape.limit(name, i64::MAX)
    }
}

/// A limit or a pattern, by its name.
fn builder_of(name: &str) -> LimitBuilder {
    if name.contains('*') {
        Limit::pattern(name)
    } else {
        Limit::new(name)
    }
}

impl Tub {
    fn limit(self, key: &str, shape: &Shape) -> Limit {
        let builder = builder_of(key).overage(shape.overage);
        builder
            .pauses(POLICIES[shape.policy].built())
            .burst(shape.base() + self.burst)
            .refill(
                shape.base() + self.refill,
                Duration::from_millis(WINDOWS_MS[self.per]),
            )
            .build()
            .expect("a limit that can be")
    }
}

impl Turn {
    /// The same limit, changed; as it is, if it cannot be.
    pub fn of(self, limit: &Limit) -> Limit {
        let turned = |capacity: u64, quarters: u64| {
            let turned = capacity.saturating_mul(quarters) / 4;
            turned.clamp(1, MAX_CAPACITY)
        };
        let mut builder = limit.to_builder().without_rates();
        for rate in limit.rates() {
            let capacity = turned(rate.capacity(), self.quarters);
            builder = match rate.window() {
                Window::Calendar(quota) => {
                    builder.quota(capacity, quota.period(), quota.zone_name())
                }
                Window::Rolling(window) => builder.rate(capacity, window),
                _ => builder.set_rate(*rate),
            };
        }
        if let Some(count) = limit.slot_count() {
            builder = builder.slots(turned(count, self.quarters));
        }
        if let Some(bucket) = limit.bucket() {
            builder = builder
                .burst(turned(bucket.burst(), self.quarters))
                .refill(turned(bucket.refill(), self.refill_quarters), bucket.per());
        }
        builder.build().unwrap_or_else(|_| limit.clone())
    }
}

impl Pool {
    pub fn limit(&self, key: &str) -> Limit {
        let limit = builder_of(key).slots(self.count);
        let limit = limit.pauses(POLICIES[self.policy].built());
        let timeout = self.timeout.map(|timeout| TIMEOUTS_MS[timeout]);
        let limit = match timeout {
            Some(ms) => limit.timeout(Duration::from_millis(ms)),
            None => limit,
        };
        limit.build().expect("a limit that can be")
    }
}
