//! Histories drawn at random: limits, and what happens to them in turn.
//!
//! Most amounts and times are relative to how the limits stand when their turn comes, so that requests
//! land on the edges of windows and capacities. The model says how they stand.

use std::iter;

use proptest::prelude::*;
use proptest::sample::select;
use quotalite::{OnConflict, Overage};

use crate::asks::{Amount, Ask, Pace, Patience, Spent, ask, pace, patience, spent};
use crate::shapes::{Pool, Shape, Turn, overage, pool, shape, turn};
use crate::strikes::How;

pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// The keys of limits of slots.
pub const POOLS: [&str; 2] = ["p", "q"];
/// What else can be defined where there are patterns: first those of rates, then of slots, then buckets.
pub const NAMES: [&str; 12] = [
    "t:*", "t:*", "t:a*", "t:*b", "t:a1", "t:ab", "s:*", "s:x*", "s:x1", "u:*", "u:x*", "u:x1",
];
/// What `ManualClock::new` shows.
pub const FIRST_WALL_NS: i64 = 1_700_000_000 * 1_000_000_000;
/// In the seconds of the Unix epoch.
const STARTS: [i64; 12] = [
    // The first of January, March, May and July of 2024, and the leap day.
    1_704_067_200,
    1_709_251_200,
    1_714_521_600,
    1_719_792_000,
    1_709_164_800,
    // Clocks are put forward and back in Los Angeles, in Berlin, on Lord Howe Island and in Auckland.
    1_710_064_800,
    1_730_624_400,
    1_711_846_800,
    1_729_990_800,
    1_712_415_600,
    1_728_142_200,
    1_727_532_000,
];
/// A limit that is only there for somebody to write something.
pub const SEEN: &str = "seen";
/// The keys that may match one.
const MATCHING: [&str; 10] = [
    "t:1", "t:a", "t:a1", "t:ab", "t:cb", "s:1", "s:x1", "u:1", "u:x1", "u:x2",
];

/// All keys that anybody asks for.
pub fn all_keys() -> impl Iterator<Item = &'static str> {
    let all = KEYS.into_iter().chain(POOLS).chain(MATCHING);
    all.chain(iter::once(SEEN))
}

/// Whether a key or a pattern is of slots, if it is anything.
pub fn is_of_slots(name: &str) -> bool {
    POOLS.contains(&name) || name.starts_with("s:")
}

/// What histories are about, besides rates and slots.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is drawn for itself")]
pub struct Topics {
    pub buckets: bool,
    pub changes: bool,
    pub patterns: bool,
    /// Never without the feature `calendar`.
    pub quotas: bool,
    /// What is handed out from memory.
    pub handles: bool,
    /// Limits that merge what is charged within a span of time.
    pub merged: bool,
    pub strikes: bool,
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

/// How large a block is to be, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub size: Amount,
    pub lifetime_ns: i64,
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
    /// From what somebody has taken, or from a new one.
    HandOut {
        slot: usize,
        handle: Option<usize>,
        ask: Ask,
        block: Block,
    },
    EndBlock {
        handle: usize,
        by_dropping: bool,
    },
    /// Of any limit that there is.
    Pause {
        slot: usize,
        key: usize,
        how: How,
    },
    Resume {
        slot: usize,
        key: usize,
    },
}

impl Op {
    /// Whether it is about what a history is about.
    const fn is_on(&self, topics: Topics) -> bool {
        match self {
            Self::DefineName { .. } => topics.patterns,
            Self::Update { .. } | Self::Remove { .. } => topics.changes,
            Self::HandOut { .. } | Self::EndBlock { .. } => topics.handles,
            Self::Pause { .. } | Self::Resume { .. } => topics.strikes,
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
                | Self::HandOut { .. }
                | Self::EndBlock { .. }
                | Self::Pause { .. }
                | Self::Resume { .. }
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
    /// What the wall clock shows at first.
    pub start_ns: i64,
}

impl History {
    /// What is left of it for limiters that know rates alone.
    pub fn plain(self) -> Self {
        self.only(Topics::default())
    }

    /// What is left of it for one caller who has no slots, no ids and no batches.
    pub fn only(mut self, topics: Topics) -> Self {
        self.pools.clear();
        self.ops.retain(|op| {
            op.is_plain() || matches!(op, Op::DefineName { name, .. } if !is_of_slots(NAMES[*name]))
        });
        self.on(topics)
    }

    /// What is left of it if it is about these.
    fn on(mut self, topics: Topics) -> Self {
        self.topics = topics;
        self.ops.retain(|op| op.is_on(topics));
        if !topics.quotas {
            self.start_ns = FIRST_WALL_NS;
        }
        let in_ops = self.ops.iter_mut().filter_map(|op| match op {
            Op::Define { shape, .. } | Op::DefineName { shape, .. } => Some(shape),
            _ => None,
        });
        for shape in self.shapes.iter_mut().chain(in_ops) {
            if !topics.buckets {
                shape.bucket = None;
            }
            if !topics.quotas {
                shape.quotas.clear();
            }
            if !topics.merged {
                shape.resolution = 0;
            }
            if !topics.strikes {
                shape.policy = 0;
            }
        }
        let in_ops = self.ops.iter_mut().filter_map(|op| match op {
            Op::DefinePool { shape: pool, .. } | Op::DefineName { pool, .. } => Some(pool),
            _ => None,
        });
        for pool in self.pools.iter_mut().chain(in_ops) {
            if !topics.strikes {
                pool.policy = 0;
            }
        }
        self
    }
}

/// Somewhere around the boundaries of periods, and where clocks are put forward or back.
fn start_ns() -> impl Strategy<Value = i64> {
    (select(&STARTS[..]), -2_000_i64..2_000)
        .prop_map(|(start_s, minutes)| (start_s + minutes * 60) * 1_000_000_000)
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

/// What is handed out from memory.
fn handing_out() -> impl Strategy<Value = Op> {
    let size = prop_oneof![
        2 => (1_u64..=2).prop_map(Amount::Units),
        4 => (1_u64..=16).prop_map(Amount::Share),
        1 => Just(Amount::TooMuch),
    ];
    // Beside windows of 1 ms to 5 s.
    let lifetime_ns = select(vec![
        0,
        1,
        300_000,
        1_000_000,
        4_000_000,
        40_000_000,
        300_000_000,
        6_000_000_000,
    ]);
    let block = (size, lifetime_ns).prop_map(|(size, lifetime_ns)| Block { size, lifetime_ns });
    let handle = prop::option::weighted(0.8, 0_usize..4);
    prop_oneof![
        8 => (0_usize..6, handle, ask(), block).prop_map(
            |(slot, handle, ask, block)| Op::HandOut { slot, handle, ask, block }
        ),
        1 => (0_usize..4, any::<bool>()).prop_map(
            |(handle, by_dropping)| Op::EndBlock { handle, by_dropping }
        ),
    ]
}

/// What is about pauses.
fn pausing() -> impl Strategy<Value = Op> {
    let length_ns = select(vec![
        0,
        1,
        1_000_000,
        3_000_000,
        40_000_000,
        300_000_000,
        2_000_000_000,
        1 << 50,
    ]);
    let how = prop_oneof![
        3 => Just(How::Strike),
        3 => length_ns.clone().prop_map(|ns| How::RetryAfter { ns }),
        1 => length_ns.prop_map(|ns| How::Planned { ns }),
    ];
    prop_oneof![
        3 => (0_usize..6, 0_usize..32, how).prop_map(|(slot, key, how)| Op::Pause { slot, key, how }),
        1 => (0_usize..6, 0_usize..32).prop_map(|(slot, key)| Op::Resume { slot, key }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => plain_op(),
        6 => named_op(),
        1 => changing_op(),
        6 => handing_out(),
        2 => pausing(),
    ]
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

/// What is told by its letters, or whatever is drawn.
fn topics(told: Option<String>) -> impl Strategy<Value = Topics> {
    let has_calendar = cfg!(feature = "calendar");
    let often = || prop::bool::weighted(0.5);
    let seldom = || prop::bool::weighted(0.35);
    let drawn = (
        often(),
        often(),
        seldom(),
        seldom(),
        often(),
        (often(), often()),
    );
    drawn.prop_map(move |drawn| {
        let (buckets, changes, patterns, quotas, handles, (merged, strikes)) = drawn;
        let is_told = |letter: char| told.as_ref().map(|told| told.contains(letter));
        Topics {
            buckets: is_told('b').unwrap_or(buckets),
            changes: is_told('c').unwrap_or(changes),
            patterns: is_told('p').unwrap_or(patterns),
            quotas: has_calendar && is_told('q').unwrap_or(quotas),
            handles: is_told('h').unwrap_or(handles),
            merged: is_told('m').unwrap_or(merged),
            strikes: is_told('s').unwrap_or(strikes),
        }
    })
}

/// Histories of the topics whose first letters are told, or of any.
pub fn history(told: Option<String>) -> impl Strategy<Value = History> {
    let shapes = prop::collection::vec(shape(), 1..=4);
    let pools = prop::collection::vec(pool(), 0..=2);
    let ops = prop::collection::vec(op(), 1..=150);
    let about = (topics(told), start_ns());
    (2_usize..=3, shapes, pools, ops, about).prop_map(|(slots, shapes, pools, ops, about)| {
        let (topics, start_ns) = about;
        let history = History {
            slots,
            shapes,
            pools,
            ops,
            topics,
            start_ns,
        };
        history.on(topics)
    })
}
