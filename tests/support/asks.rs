//! What is asked for in a history, what is used of it, and how time passes, relative to how the limits stand.

use std::time::Duration;

use proptest::prelude::*;
use quotalite::{Limit, MAX_CAPACITY, Overage, Rate, Window};

use crate::history::{KEYS, SEEN};
use crate::line::Line;
use crate::model::{Model, Verdict};
use crate::subject::{Takes, Wait, ns};

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
    /// Only where there are calendars.
    Hours(u64),
}

pub fn ask() -> impl Strategy<Value = Ask> {
    let amount = prop_oneof![
        12 => (1_u64..=2).prop_map(Amount::Units),
        4 => (1_u64..=16).prop_map(Amount::Share),
        2 => Just(Amount::Whole),
        1 => Just(Amount::TooMuch),
    ];
    prop::collection::vec((0_usize..16, amount), 1..=3).prop_map(Ask)
}

pub fn spent() -> impl Strategy<Value = Vec<Spent>> {
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

pub fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![
        4 => Just(Patience::Forever),
        1 => Just(Patience::None),
        2 => (1_u64..20_000).prop_map(Patience::Millis),
        1 => (-50_i64..20_000).prop_map(|ahead_ms| Patience::Until { ahead_ms }),
        2 => (0_i64..=1).prop_map(|less_ns| Patience::Enough { less_ns }),
    ]
}

pub fn pace() -> impl Strategy<Value = Pace> {
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
        2 => (1_u64..=50).prop_map(Pace::Hours),
    ]
}

impl Amount {
    /// How much it is of a limit.
    pub fn of(self, limit: Option<&Limit>) -> u64 {
        let rates = limit.map(Limit::rates).unwrap_or_default();
        let capacities = rates.iter().map(Rate::capacity);
        let burst = limit.and_then(Limit::bucket).map(|bucket| bucket.burst());
        let slots = limit.and_then(Limit::slot_count);
        let most = capacities.chain(burst).chain(slots).min();
        let most = most.unwrap_or(1);
        match self {
            // Units of a huge limit are huge.
            Self::Units(units) if most > 1 << 40 => most / 3 * units,
            Self::Units(units) => units.min(most),
            Self::Share(sixteenths) => (most / 16 * sixteenths).max(1),
            Self::Whole => most,
            Self::TooMuch => most + 1,
        }
    }
}

impl Ask {
    /// What it asks for, in units of the limits that there are.
    pub fn takes(&self, model: &Model) -> Takes {
        let mut takes = Takes::new();
        for (line, amount) in &self.0 {
            // One mention in sixteen is of a limit that may not be defined.
            let defined = model.lines.keys().chain(model.pools.keys());
            let defined: Vec<&String> = defined.filter(|key| *key != SEEN).collect();
            let key = match line.checked_rem(defined.len()) {
                Some(position) if *line != 15 => defined[position],
                _ => KEYS[3],
            };
            let amount = amount.of(model.limit(key));
            if takes.iter().all(|(taken, _)| taken != key) {
                takes.push((key.to_owned(), amount));
            }
        }
        takes
    }
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
        let most = match line.limit.bucket() {
            // A bucket that is overdrawn for ever takes as long to fill.
            Some(bucket) if line.limit.overage() == Overage::Charge => {
                estimated + 3 * bucket.burst()
            }
            _ => MAX_CAPACITY,
        };
        Some(used.min(most).min(MAX_CAPACITY))
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
            Self::Hours(hours) if model.has_calendars() => ns(Duration::from_secs(hours * 3_600)),
            Self::Hours(seconds) | Self::Seconds(seconds) => ns(Duration::from_secs(seconds)),
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
                let limit = line.checked_rem(lines.len()).map(|line| &lines[line].limit);
                let window = limit.map_or(Duration::ZERO, |limit| {
                    let rate = rate.checked_rem(limit.rates().len());
                    match (
                        limit.bucket(),
                        rate.map(|rate| limit.rates()[rate].window()),
                    ) {
                        (Some(bucket), _) => bucket.per(),
                        (_, Some(Window::Rolling(window))) => {
                            window + limit.pad() + limit.resolution().unwrap_or_default()
                        }
                        _ => Duration::from_hours(3),
                    }
                });
                ns(window) * sixteenths / 16 + nudge_ns
            }
        };
        stride_ns.max(0)
    }
}
