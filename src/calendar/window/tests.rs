//! Windows with open blocks in them, against adding up at every nanosecond.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::calendar::{
    self, Earliest, Level, Line, OpenBlock, OpenBlocks, Total, earliest, room_until,
};
use crate::limit::MIN_WINDOW;
use crate::pause::Pause;

const LEDGER: LimitId = LimitId(1);
const NOW: i64 = 1_000;

/// The shortest window is too long to look at each of its nanoseconds, so time goes by in steps.
const STEP_NS: i64 = 100_000;

fn at(step: i64) -> Timestamp {
    Timestamp::from_nanos(step * STEP_NS)
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: i64,
    amount: i64,
    is_block: bool,
}

/// Charges and open blocks, and how many steps and how much two rates have.
#[derive(Clone, Debug)]
struct Scene {
    entries: Vec<Entry>,
    rates: [(i64, i64); 2],
}

impl Scene {
    fn limit(&self) -> Limit {
        let rates = self.rates.iter();
        let rate = |builder: limit::LimitBuilder, (steps, capacity): &(i64, i64)| {
            let window = Duration::from_nanos((steps * STEP_NS).unsigned_abs());
            builder.rate(capacity.unsigned_abs(), window)
        };
        rates.fold(Limit::new("k"), rate).build().unwrap()
    }

    /// What a window of so many steps holds that ends at a step which is not past. A block counts until it has left.
    fn used(&self, end: i64, steps: i64) -> i64 {
        let counts = |entry: &&Entry| (entry.is_block || entry.at <= end) && end < entry.at + steps;
        let counting = self.entries.iter().filter(counts);
        counting.map(|entry| entry.amount).sum()
    }

    /// What fits of each rate into all windows that end from one step on, and before a charge at another has left.
    fn room(&self, from: i64, last: i64) -> i64 {
        let rates = self.rates.iter();
        let room = rates.flat_map(|(steps, capacity)| {
            (from..last + steps).map(move |end| capacity - self.used(end, *steps))
        });
        room.min().unwrap()
    }
}

impl Ledgers for Scene {
    type Error = Infallible;

    fn last_at(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        Ok(self.charges().into_iter().rfind(|charge| charge.at <= at))
    }

    fn first_after(&mut self, _: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        Ok(self.charges().into_iter().find(|charge| charge.at > at))
    }

    fn open_blocks(&mut self, _: LimitId) -> Result<OpenBlocks, Infallible> {
        let blocks = self.entries.iter().filter(|entry| entry.is_block);
        let open = blocks.map(|entry| OpenBlock {
            until: at(entry.at),
            amount: entry.amount,
        });
        Ok(open.collect())
    }

    fn level(&mut self, _: LimitId) -> Result<Option<Level>, Infallible> {
        Ok(None)
    }

    fn pause(&mut self, _: LimitId) -> Result<Option<Pause>, Infallible> {
        Ok(None)
    }

    fn wall_shift_ns(&self) -> i64 {
        0
    }
}

impl Scene {
    fn charges(&self) -> Vec<Charge> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| entry.at);
        let mut total = Total(Total::MASK - 7);
        let charges = entries.iter().zip(0..).map(|(entry, seq)| {
            total = total.plus(entry.amount);
            Charge {
                at: at(entry.at),
                seq,
                amount: entry.amount,
                total,
            }
        });
        charges.collect()
    }
}

fn scene() -> impl Strategy<Value = Scene> {
    let charge = (NOW - 40..NOW + 40, 1_i64..4).prop_map(|(at, amount)| Entry {
        at,
        amount,
        is_block: false,
    });
    let block = (NOW + 1..NOW + 30, 1_i64..6).prop_map(|(at, amount)| Entry {
        at,
        amount,
        is_block: true,
    });
    let entries = prop::collection::vec(prop_oneof![3 => charge, 1 => block], 0..14);
    let shortest = i64::try_from(MIN_WINDOW.as_nanos()).unwrap() / STEP_NS;
    let rates = (shortest..20, 3_i64..10, 20_i64..40, 8_i64..25);
    (entries, rates).prop_map(|(entries, (short, few, long, many))| Scene {
        entries,
        rates: [(short, few), (long, many)],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4_000 }))]

    #[test]
    fn open_blocks_count_at_every_instant(scene in scene(), amount in 1_i64..4, lifetime in 1_i64..30) {
        let limit = scene.limit();
        let mut ledgers = scene.clone();
        let now = at(NOW);

        let line = Line { id: LEDGER, pattern: None, limit: &limit, amount };
        let Ok(found) = earliest(&mut ledgers, &[line], now);
        let first = (NOW..NOW + 1_000).find(|first| scene.room(*first, *first) >= amount).unwrap();
        let told = match found {
            Earliest::Now => now,
            Earliest::Later { at, .. } => at,
            Earliest::Beyond { .. } => unreachable!("nothing lies so far away"),
        };
        prop_assert_eq!(told, at(first));

        let Ok(room) = room_until(&mut ledgers, LEDGER, &limit, now, at(NOW + lifetime));
        prop_assert_eq!(room, scene.room(NOW, NOW + lifetime));

        for rate in limit.rates() {
            let Ok(usage) = calendar::usage(&mut ledgers, LEDGER, &limit, rate, now);
            let steps = limit::nanos(rate.window().rolling().unwrap()) / STEP_NS;
            prop_assert_eq!(usage.used, scene.used(NOW, steps));
            let ends = NOW..NOW + steps;
            let most = ends.map(|end| scene.used(end, steps)).max().unwrap();
            prop_assert_eq!(usage.available, (rate.capacity_units() - most).max(0));
            let leaves = scene.entries.iter().filter(|entry| {
                (entry.is_block || entry.at <= NOW) && NOW < entry.at + steps
            });
            let next = leaves.map(|entry| at(entry.at + steps)).min();
            prop_assert_eq!(usage.next_release, next);
        }
    }
}
