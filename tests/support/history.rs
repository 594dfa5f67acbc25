//! Histories drawn at random: limits, and what happens to them in turn.
//!
//! Most amounts and times are relative to how the limits stand when their turn comes, so that requests
//! land on the edges of windows and capacities. The model says how they stand.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use quotalite::{Limit, MAX_CAPACITY, OnConflict, Overage, Rate};

use crate::line::Line;
use crate::model::{Model, Verdict};
use crate::subject::{Takes, Wait, ns};

pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const WINDOWS_MS: [u64; 10] = [1, 2, 3, 5, 10, 40, 250, 1_000, 2_000, 5_000];
const PADS_NS: [u64; 6] = [0, 0, 0, 1, 999_999, 7_000_000];

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
}

#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Units(u64),
    /// Sixteenths of what fits at most.
    Share(u64),
    Whole,
    TooMuch,
}

/// Limits by number, taken modulo those that there are; the first mention of a limit counts.
#[derive(Clone, Debug)]
pub struct Ask(pub Vec<(usize, Amount)>);

/// What was used of one limit of a permit.
#[derive(Clone, Copy, Debug)]
pub enum Spent {
    /// Nothing is said of it.
    Unsaid,
    Nothing,
    /// Sixteenths of the estimate.
    Share(u64),
    More(u64),
    Times(u64),
    /// What is charged and what can be added to that, and this much.
    Room {
        more: u64,
    },
    Most,
}

#[derive(Clone, Copy, Debug)]
pub enum Patience {
    Forever,
    None,
    Millis(u64),
    Until {
        ahead_ms: i64,
    },
    /// Exactly as long as it takes, less so many nanoseconds.
    Enough {
        less_ns: i64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Nanos(u64),
    /// Sixteenths of a window of a limit.
    Share {
        line: usize,
        rate: usize,
        sixteenths: i64,
        nudge_ns: i64,
    },
    /// To the next instant at which a charge counts or stops to count.
    Change {
        nudge_ns: i64,
    },
    Seconds(u64),
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
#[derive(Clone, Copy, Debug)]
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
}

#[derive(Clone, Debug)]
pub struct History {
    pub slots: usize,
    pub shapes: Vec<Shape>,
    pub ops: Vec<Op>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let rates = prop::collection::vec((0..WINDOWS_MS.len(), 1_u64..=6), 1..=3);
    let is_huge = prop::bool::weighted(0.15);
    let grows = prop::bool::weighted(0.8);
    (rates, grows, is_huge, 0..PADS_NS.len(), overage()).prop_map(
        |(rates, grows, is_huge, pad, overage)| Shape {
            rates,
            grows,
            is_huge,
            pad,
            overage,
        },
    )
}

fn overage() -> impl Strategy<Value = Overage> {
    prop_oneof![
        8 => Just(Overage::Debt),
        1 => Just(Overage::Charge),
        1 => Just(Overage::Deny),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let amount = prop_oneof![
        12 => (1_u64..=2).prop_map(Amount::Units),
        4 => (1_u64..=16).prop_map(Amount::Share),
        2 => Just(Amount::Whole),
        1 => Just(Amount::TooMuch),
    ];
    prop::collection::vec((0_usize..16, amount), 1..=3).prop_map(Ask)
}

fn spent() -> impl Strategy<Value = Vec<Spent>> {
    let one = prop_oneof![
        2 => Just(Spent::Unsaid),
        4 => Just(Spent::Nothing),
        6 => (1_u64..16).prop_map(Spent::Share),
        2 => Just(Spent::Share(16)),
        3 => (1_u64..=2).prop_map(Spent::More),
        2 => (2_u64..=30).prop_map(Spent::Times),
        6 => (0_u64..=1).prop_map(|more| Spent::Room { more }),
        1 => Just(Spent::Most),
    ];
    prop::collection::vec(one, 1..=3)
}

fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![
        4 => Just(Patience::Forever),
        1 => Just(Patience::None),
        2 => (1_u64..20_000).prop_map(Patience::Millis),
        1 => (-50_i64..20_000).prop_map(|ahead_ms| Patience::Until { ahead_ms }),
        2 => (0_i64..=1).prop_map(|less_ns| Patience::Enough { less_ns }),
    ]
}

fn pace() -> impl Strategy<Value = Pace> {
    let share = (0_usize..4, 0_usize..3, 1_i64..=16, -1_i64..=1);
    prop_oneof![
        1 => (0_u64..=3).prop_map(Pace::Nanos),
        6 => share.prop_map(|(line, rate, sixteenths, nudge_ns)| Pace::Share {
            line,
            rate,
            sixteenths,
            nudge_ns,
        }),
        6 => (-1_i64..=1).prop_map(|nudge_ns| Pace::Change { nudge_ns }),
        1 => (1_u64..=3_600).prop_map(Pace::Seconds),
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

fn op() -> impl Strategy<Value = Op> {
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

pub fn history() -> impl Strategy<Value = History> {
    let shapes = prop::collection::vec(shape(), 1..=4);
    (2_usize..=3, shapes, prop::collection::vec(op(), 1..=100))
        .prop_map(|(slots, shapes, ops)| History { slots, shapes, ops })
}

impl Shape {
    /// The limit of this shape that counts nothing for longer than `longest_ns`: what has left all
    /// windows may have been swept, so a longer one would not know of it.
    pub fn limit(&self, key: &str, longest_ns: i64) -> Limit {
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
        let mut builder = Limit::new(key).pad(pad).overage(self.overage);
        let mut former = 0;
        for (window, capacity) in rates {
            let capacity = if self.grows {
                former + capacity
            } else {
                capacity
            };
            former = capacity;
            let base = if self.is_huge { MAX_CAPACITY - 20 } else { 0 };
            builder = builder.rate(base + capacity, window);
        }
        builder.build().expect("a limit that can be")
    }
}

impl Ask {
    /// What it asks for, in units of the limits that there are.
    pub fn takes(&self, model: &Model) -> Takes {
        let mut takes = Takes::new();
        for (line, amount) in &self.0 {
            // One mention in sixteen is of a limit that may not be defined.
            let defined = model.lines.len();
            let key = KEYS[if *line == 15 { 3 } else { line % defined }];
            let rates = model.lines.get(key).map(|line| line.limit.rates());
            let capacities = rates.into_iter().flatten().map(Rate::capacity);
            let most = capacities.min().unwrap_or(1);
            let amount = match *amount {
                // Units of a huge limit are huge.
                Amount::Units(units) if most > 1 << 40 => most / 3 * units,
                Amount::Units(units) => units.min(most),
                Amount::Share(sixteenths) => (most / 16 * sixteenths).max(1),
                Amount::Whole => most,
                Amount::TooMuch => most + 1,
            };
            if takes.iter().all(|(taken, _)| taken != key) {
                takes.push((key.to_owned(), amount));
            }
        }
        takes
    }
}

/// The same limit, but for what it does about permits that used more.
pub fn with_overage(limit: &Limit, overage: Overage) -> Limit {
    let builder = Limit::new(limit.key()).pad(limit.pad()).overage(overage);
    let rates = limit.rates().iter();
    let builder = rates.fold(builder, |builder, rate| {
        builder.rate(rate.capacity(), rate.window())
    });
    builder.build().expect("a limit that can be")
}

impl Spent {
    /// Says what was used of a limit of which a permit for `at_ns` was charged this much.
    pub fn amount(self, estimated: u64, line: &Line, at_ns: i64, now_ns: i64) -> Option<u64> {
        let used = match self {
            Self::Unsaid => return None,
            Self::Nothing => 0,
            Self::Share(16) => estimated,
            // The estimate of a huge limit is huge.
            Self::Share(sixteenths) if estimated > 1 << 40 => estimated / 16 * sixteenths,
            Self::Share(sixteenths) => (estimated * sixteenths).div_ceil(16),
            Self::More(units) => estimated + units,
            Self::Times(times) => estimated.saturating_mul(times),
            Self::Room { more } => estimated + line.room(at_ns, now_ns) + more,
            Self::Most => MAX_CAPACITY,
        };
        Some(used.min(MAX_CAPACITY))
    }
}

impl Patience {
    pub fn wait(self, model: &Model, takes: &Takes) -> Wait {
        let within = |ns: i64| Wait::Within(Duration::from_nanos(ns.unsigned_abs()));
        match self {
            Self::Forever => Wait::Forever,
            Self::None => within(0),
            Self::Millis(ms) => Wait::Within(Duration::from_millis(ms)),
            Self::Until { ahead_ms } => Wait::Until {
                deadline_ns: model.now_ns + ahead_ms * 1_000_000,
            },
            Self::Enough { less_ns } => match model.peek(takes) {
                Verdict::Refused { retry_at_ns, .. } => {
                    within(retry_at_ns - model.now_ns - less_ns)
                }
                _ => within(0),
            },
        }
    }
}

impl Pace {
    /// How far the clock goes; never back.
    pub fn stride_ns(self, model: &Model) -> i64 {
        let stride_ns = match self {
            Self::Nanos(nanos) => ns(Duration::from_nanos(nanos)),
            Self::Seconds(seconds) => ns(Duration::from_secs(seconds)),
            Self::Change { nudge_ns } => {
                let change_ns = model.next_change_ns();
                change_ns.map_or(0, |at_ns| at_ns - model.now_ns + nudge_ns)
            }
            Self::Share {
                line,
                rate,
                sixteenths,
                nudge_ns,
            } => {
                let lines: Vec<_> = model.lines.values().collect();
                let limit = &lines[line % lines.len()].limit;
                let rate = limit.rates()[rate % limit.rates().len()];
                ns(rate.window() + limit.pad()) * sixteenths / 16 + nudge_ns
            }
        };
        stride_ns.max(0)
    }
}
