//! Histories drawn at random: limits, and what happens to them in turn.
//!
//! Most amounts and times are relative to how the limits stand when their turn comes, so that requests
//! land on the edges of windows and capacities. The model says how they stand.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use quotalite::{Limit, LimitBuilder, MAX_CAPACITY, OnConflict, Overage, Window};

use crate::asks::{Ask, Pace, Patience, Spent, ask, pace, patience, spent};
use crate::subject::ns;

pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// The keys of limits of slots.
pub const POOLS: [&str; 2] = ["p", "q"];
/// What else can be defined where there are patterns: first those of rates, then of slots, then buckets.
pub const NAMES: [&str; 12] = [
    "t:*", "t:*", "t:a*", "t:*b", "t:a1", "t:ab", "s:*", "s:x*", "s:x1", "u:*", "u:x*", "u:x1",
];
/// Whether all buckets whose keys may match a pattern refill alike. Where they do not, and one definition takes over
/// from another, stores differ from the model and from each other: see
/// `what_is_missing_in_a_bucket_stays_missing_when_another_definition_takes_over`.
const REFILL_ALIKE: bool = true;
/// The keys that may match one.
const MATCHING: [&str; 10] = [
    "t:1", "t:a", "t:a1", "t:ab", "t:cb", "s:1", "s:x1", "u:1", "u:x1", "u:x2",
];
const TIMEOUTS_MS: [u64; 6] = [1, 7, 40, 1_000, 5_000, 2_000_000];
const WINDOWS_MS: [u64; 10] = [1, 2, 3, 5, 10, 40, 250, 1_000, 2_000, 5_000];
const PADS_NS: [u64; 6] = [0, 0, 0, 1, 999_999, 7_000_000];

/// All keys that anybody asks for.
pub fn all_keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain(POOLS).chain(MATCHING)
}

/// Whether a key or a pattern is of slots, if it is anything.
pub fn is_of_slots(name: &str) -> bool {
    POOLS.contains(&name) || name.starts_with("s:")
}

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

/// What histories are about, besides rates and slots.
#[derive(Clone, Copy, Debug)]
pub struct Topics {
    pub buckets: bool,
    pub changes: bool,
    pub patterns: bool,
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
    pub overage: Overage,
    /// It is a bucket, and has no rates.
    pub bucket: Option<Tub>,
}

/// The definition of a limit of slots, whatever its key.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub count: u64,
    pub timeout: Option<usize>,
}

/// A permit that is held, or one that is known by its id.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Permit(usize),
    Id(usize),
}

/// The id of a request, and whether it repeats what was last asked for under it.
#[derive(Clone, Copy, Debug)]
pub struct Under {
    pub id: usize,
    pub repeats: bool,
}

/// How far the wall clock is from the truth when a machine boots.
#[derive(Clone, Copy, Debug)]
pub enum Wall {
    Right,
    Off { ms: i64 },
    Unset,
}

/// What becomes of the bookings of a limiter that is closed, and of its permits, which are not given back
/// when they are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Their holders keep them, and the limiter lives on in them.
    Held,
    /// Nobody gives them back.
    Orphaned,
    Dropped,
}

#[derive(Clone, Debug)]
pub enum Op {
    Define {
        slot: usize,
        line: usize,
        shape: Shape,
        conflict: OnConflict,
    },
    DefineAgain {
        slot: usize,
        line: usize,
        conflict: OnConflict,
    },
    Try {
        slot: usize,
        ask: Ask,
    },
    Book {
        slot: usize,
        ask: Ask,
        patience: Patience,
    },
    GiveBack {
        booking: usize,
        by_dropping: bool,
    },
    Accept {
        booking: usize,
    },
    Peek {
        slot: usize,
        ask: Ask,
    },
    Usage {
        slot: usize,
        line: usize,
    },
    Advance(Pace),
    /// Comes back a nanosecond before the last denial says to, and then when it says to.
    Retry {
        slot: usize,
    },
    SetWall {
        ms: i64,
    },
    Close {
        slot: usize,
        fate: Fate,
    },
    Reboot {
        uptime_ms: u64,
        off_ms: i64,
        wall: Wall,
        fate: Fate,
        wind_up: bool,
    },
    /// As `Try`, and the permit stays open.
    TryAndHold {
        slot: usize,
        ask: Ask,
    },
    /// As `Accept`, and the permit stays open.
    AcceptAndHold {
        booking: usize,
    },
    /// By the limits of the permit in turn; it is dropped then, unless its holder keeps it.
    Settle {
        permit: usize,
        spent: Vec<Spent>,
        keeps: bool,
    },
    Cancel {
        permit: usize,
        keeps: bool,
    },
    LetGo {
        permit: usize,
    },
    ChangeOverage {
        slot: usize,
        line: usize,
        overage: Overage,
    },
    DefinePool {
        slot: usize,
        pool: usize,
        shape: Pool,
        conflict: OnConflict,
    },
    TryUnder {
        slot: usize,
        ask: Ask,
        under: Under,
        holds: bool,
    },
    BookUnder {
        slot: usize,
        ask: Ask,
        under: Under,
        patience: Patience,
    },
    /// Asks a permit for its id.
    Name {
        permit: usize,
    },
    Renew {
        slot: usize,
        target: Target,
        ms: u64,
    },
    Detach {
        permit: usize,
        ms: u64,
        keeps: bool,
    },
    SettleById {
        slot: usize,
        id: usize,
        spent: Vec<Spent>,
    },
    CancelById {
        slot: usize,
        id: usize,
    },
    /// What is granted is held.
    TryAll {
        slot: usize,
        asks: Vec<(Ask, Option<Under>)>,
    },
    /// Permits of other limiters are left out.
    SettleAll {
        slot: usize,
        targets: Vec<Target>,
        spent: Vec<Spent>,
    },
    CancelAll {
        slot: usize,
        targets: Vec<Target>,
    },
    /// A pattern, or a key that matches one.
    DefineName {
        slot: usize,
        name: usize,
        shape: Shape,
        pool: Pool,
        conflict: OnConflict,
    },
    /// One of the definitions there are.
    Update {
        slot: usize,
        name: usize,
        turn: Turn,
    },
    Remove {
        slot: usize,
        name: usize,
        is_forced: bool,
    },
}

impl Op {
    /// Whether it is about what a history is about.
    const fn is_on(&self, topics: Topics) -> bool {
        match self {
            Self::DefineName { .. } => topics.patterns,
            Self::Update { .. } | Self::Remove { .. } => topics.changes,
            _ => true,
        }
    }

    /// Whether it is about rates alone, and about no ids and no batches.
    const fn is_plain(&self) -> bool {
        !matches!(
            self,
            Self::DefinePool { .. }
                | Self::DefineName { .. }
                | Self::Update { .. }
                | Self::Remove { .. }
                | Self::TryUnder { .. }
                | Self::BookUnder { .. }
                | Self::Name { .. }
                | Self::Renew { .. }
                | Self::Detach { .. }
                | Self::SettleById { .. }
                | Self::CancelById { .. }
                | Self::TryAll { .. }
                | Self::SettleAll { .. }
                | Self::CancelAll { .. }
        )
    }
}

#[derive(Clone, Debug)]
pub struct History {
    pub slots: usize,
    pub shapes: Vec<Shape>,
    pub pools: Vec<Pool>,
    pub ops: Vec<Op>,
    pub topics: Topics,
}

impl History {
    /// What is left of it for limiters that know rates alone.
    pub fn plain(mut self) -> Self {
        self.pools.clear();
        self.ops.retain(Op::is_plain);
        self.without_buckets()
    }

    fn without_buckets(mut self) -> Self {
        for shape in &mut self.shapes {
            shape.bucket = None;
        }
        for op in &mut self.ops {
            if let Op::Define { shape, .. } = op {
                shape.bucket = None;
            }
        }
        self
    }

    /// What is left of it if it is about these.
    fn on(mut self, topics: Topics) -> Self {
        self.topics = topics;
        self.ops.retain(|op| op.is_on(topics));
        if topics.buckets {
            self
        } else {
            self.without_buckets()
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let rates = prop::collection::vec((0..WINDOWS_MS.len(), 1_u64..=6), 1..=3);
    let is_huge = prop::bool::weighted(0.15);
    let grows = prop::bool::weighted(0.8);
    let bucket = prop::option::weighted(0.5, tub());
    (rates, grows, is_huge, 0..PADS_NS.len(), overage(), bucket).prop_map(
        |(rates, grows, is_huge, pad, overage, bucket)| Shape {
            rates,
            grows,
            is_huge,
            pad,
            overage,
            bucket,
        },
    )
}

fn tub() -> impl Strategy<Value = Tub> {
    (1_u64..=12, 1_u64..=7, 0..WINDOWS_MS.len()).prop_map(|(burst, refill, per)| Tub {
        burst,
        refill,
        per,
    })
}

fn turn() -> impl Strategy<Value = Turn> {
    let quarters = || prop_oneof![1 => Just(4_u64), 2 => 1_u64..=12];
    (quarters(), quarters()).prop_map(|(quarters, refill_quarters)| Turn {
        quarters,
        refill_quarters,
    })
}

/// What changes definitions.
fn changing_op() -> impl Strategy<Value = Op> {
    let slot = 0_usize..6;
    prop_oneof![
        4 => (slot.clone(), 0..NAMES.len(), shape(), pool(), conflict()).prop_map(
            |(slot, name, shape, pool, conflict)| Op::DefineName { slot, name, shape, pool, conflict }
        ),
        4 => (slot.clone(), 0_usize..32, turn()).prop_map(
            |(slot, name, turn)| Op::Update { slot, name, turn }
        ),
        1 => (slot, 0_usize..32, any::<bool>()).prop_map(
            |(slot, name, is_forced)| Op::Remove { slot, name, is_forced }
        ),
    ]
}

fn overage() -> impl Strategy<Value = Overage> {
    prop_oneof![
        8 => Just(Overage::Debt),
        1 => Just(Overage::Charge),
        1 => Just(Overage::Deny),
    ]
}

fn wall_clock() -> impl Strategy<Value = Wall> {
    prop_oneof![
        3 => Just(Wall::Right),
        2 => (-5_000_i64..=0).prop_map(|ms| Wall::Off { ms }),
        1 => (-3_600_000_i64..=0).prop_map(|ms| Wall::Off { ms }),
        1 => (1_i64..=100_000).prop_map(|ms| Wall::Off { ms }),
        1 => Just(Wall::Unset),
    ]
}

fn conflict() -> impl Strategy<Value = OnConflict> {
    select(vec![
        OnConflict::Fail,
        OnConflict::Adopt,
        OnConflict::Replace,
        OnConflict::Replace,
    ])
}

fn fate() -> impl Strategy<Value = Fate> {
    select(vec![
        Fate::Held,
        Fate::Orphaned,
        Fate::Orphaned,
        Fate::Dropped,
    ])
}

fn reboot() -> impl Strategy<Value = Op> {
    let uptime_ms = prop_oneof![0_u64..2_000, 1_000_u64..60_000];
    let off_ms = prop_oneof![0_i64..2_000, 0_i64..10_000_000];
    (uptime_ms, off_ms, wall_clock(), fate(), any::<bool>()).prop_map(
        |(uptime_ms, off_ms, wall, fate, wind_up)| Op::Reboot {
            uptime_ms,
            off_ms,
            wall,
            fate,
            wind_up,
        },
    )
}

fn pool() -> impl Strategy<Value = Pool> {
    let timeout = prop::option::of(0..TIMEOUTS_MS.len());
    (1_u64..=4, timeout).prop_map(|(count, timeout)| Pool { count, timeout })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (0_usize..8).prop_map(Target::Permit),
        (0_usize..8).prop_map(Target::Id),
    ]
}

fn under() -> impl Strategy<Value = Under> {
    (0_usize..4, prop::bool::weighted(0.8)).prop_map(|(id, repeats)| Under { id, repeats })
}

fn millis() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0_u64..5_000, 1 => 0_u64..10_000_000]
}

/// What is about slots, ids and batches.
fn named_op() -> impl Strategy<Value = Op> {
    let slot = 0_usize..6;
    let targets = || prop::collection::vec(target(), 1..=4);
    let asks = prop::collection::vec((ask(), prop::option::weighted(0.3, under())), 1..=4);
    prop_oneof![
        4 => (slot.clone(), 0_usize..2, pool(), conflict()).prop_map(
            |(slot, pool, shape, conflict)| Op::DefinePool { slot, pool, shape, conflict }
        ),
        24 => (slot.clone(), ask(), under(), any::<bool>()).prop_map(
            |(slot, ask, under, holds)| Op::TryUnder { slot, ask, under, holds }
        ),
        10 => (slot.clone(), ask(), under(), patience()).prop_map(
            |(slot, ask, under, patience)| Op::BookUnder { slot, ask, under, patience }
        ),
        6 => (0_usize..8).prop_map(|permit| Op::Name { permit }),
        5 => (slot.clone(), target(), millis()).prop_map(
            |(slot, target, ms)| Op::Renew { slot, target, ms }
        ),
        5 => (0_usize..8, millis(), any::<bool>()).prop_map(
            |(permit, ms, keeps)| Op::Detach { permit, ms, keeps }
        ),
        8 => (slot.clone(), 0_usize..8, spent()).prop_map(
            |(slot, id, spent)| Op::SettleById { slot, id, spent }
        ),
        5 => (slot.clone(), 0_usize..8).prop_map(|(slot, id)| Op::CancelById { slot, id }),
        6 => (slot.clone(), asks).prop_map(|(slot, asks)| Op::TryAll { slot, asks }),
        4 => (slot.clone(), targets(), spent()).prop_map(
            |(slot, targets, spent)| Op::SettleAll { slot, targets, spent }
        ),
        2 => (slot, targets()).prop_map(|(slot, targets)| Op::CancelAll { slot, targets }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![12 => plain_op(), 6 => named_op(), 1 => changing_op()]
}

fn plain_op() -> impl Strategy<Value = Op> {
    let slot = 0_usize..6;
    let line = 0_usize..4;
    prop_oneof![
        3 => (slot.clone(), line.clone(), shape(), conflict()).prop_map(
            |(slot, line, shape, conflict)| Op::Define { slot, line, shape, conflict }
        ),
        1 => (slot.clone(), line.clone(), conflict()).prop_map(
            |(slot, line, conflict)| Op::DefineAgain { slot, line, conflict }
        ),
        30 => (slot.clone(), ask()).prop_map(|(slot, ask)| Op::Try { slot, ask }),
        24 => (slot.clone(), ask(), patience()).prop_map(
            |(slot, ask, patience)| Op::Book { slot, ask, patience }
        ),
        6 => (0_usize..8, any::<bool>()).prop_map(
            |(booking, by_dropping)| Op::GiveBack { booking, by_dropping }
        ),
        4 => (0_usize..8).prop_map(|booking| Op::Accept { booking }),
        5 => (slot.clone(), ask()).prop_map(|(slot, ask)| Op::Peek { slot, ask }),
        8 => (slot.clone(), line.clone()).prop_map(|(slot, line)| Op::Usage { slot, line }),
        24 => pace().prop_map(Op::Advance),
        8 => slot.clone().prop_map(|slot| Op::Retry { slot }),
        1 => (-100_000_i64..=100_000).prop_map(|ms| Op::SetWall { ms }),
        4 => (slot.clone(), fate()).prop_map(|(slot, fate)| Op::Close { slot, fate }),
        2 => reboot(),
        16 => (slot.clone(), ask()).prop_map(|(slot, ask)| Op::TryAndHold { slot, ask }),
        8 => (0_usize..8).prop_map(|booking| Op::AcceptAndHold { booking }),
        20 => (0_usize..8, spent(), prop::bool::weighted(0.3)).prop_map(
            |(permit, spent, keeps)| Op::Settle { permit, spent, keeps }
        ),
        3 => (0_usize..8, prop::bool::weighted(0.3)).prop_map(
            |(permit, keeps)| Op::Cancel { permit, keeps }
        ),
        3 => (0_usize..8).prop_map(|permit| Op::LetGo { permit }),
        1 => (slot, line, overage()).prop_map(
            |(slot, line, overage)| Op::ChangeOverage { slot, line, overage }
        ),
    ]
}

/// `QUOTALITE_TOPICS=bp` plays histories of buckets and patterns alone.
fn topics() -> impl Strategy<Value = Topics> {
    let told = std::env::var("QUOTALITE_TOPICS").ok();
    let often = || prop::bool::weighted(0.5);
    (often(), often(), prop::bool::weighted(0.4)).prop_map(move |drawn| {
        let (buckets, changes, patterns) = drawn;
        let is_told = |letter: char| told.as_ref().map(|told| told.contains(letter));
        Topics {
            buckets: is_told('b').unwrap_or(buckets),
            changes: is_told('c').unwrap_or(changes),
            patterns: is_told('p').unwrap_or(patterns),
        }
    })
}

pub fn history() -> impl Strategy<Value = History> {
    let shapes = prop::collection::vec(shape(), 1..=4);
    let pools = prop::collection::vec(pool(), 0..=2);
    let ops = prop::collection::vec(op(), 1..=120);
    (2_usize..=3, shapes, pools, ops, topics()).prop_map(|(slots, shapes, pools, ops, topics)| {
        let history = History {
            slots,
            shapes,
            pools,
            ops,
            topics,
        };
        history.on(topics)
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
        let mut builder = builder_of(key).pad(pad).overage(self.overage);
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
        builder.build().expect("a limit that can be")
    }

    const fn base(&self) -> u64 {
        if self.is_huge { MAX_CAPACITY - 20 } else { 0 }
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
        // What is missing then needs no rounding: what is put back later would be found again to the last part of it.
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
            shape.bucket = Some(if REFILL_ALIKE {
                Tub {
                    refill: 2,
                    per: 2,
                    ..tub
                }
            } else {
                tub
            });
        } else {
            shape.bucket = None;
            shape.is_huge = false;
            shape.pad = 0;
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
            if REFILL_ALIKE && limit.key().starts_with("u:") {
                let builder = builder.burst(turned(bucket.burst(), self.quarters));
                return builder.build().expect("a limit that can be");
            }
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
        let timeout = self.timeout.map(|timeout| TIMEOUTS_MS[timeout]);
        let limit = match timeout {
            Some(ms) => limit.timeout(Duration::from_millis(ms)),
            None => limit,
        };
        limit.build().expect("a limit that can be")
    }
}
