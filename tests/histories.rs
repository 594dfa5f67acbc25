//! Random histories, compared step by step with a model that is too simple to be wrong.
//!
//! `cargo test` plays some hundreds of them; `QUOTALITE_HISTORIES=20000` says how many per test.

mod support;

#[path = "support/broken.rs"]
mod broken;
#[path = "support/model.rs"]
mod model;
#[path = "support/subject.rs"]
mod subject;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Debug;
use std::time::Duration;

use broken::{Broken, Flaw};
use model::{Charge, Model, Verdict, Witness};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};
use quotalite::{Definition, Limit, MAX_CAPACITY, OnConflict};
use subject::{Answer, Defined, Real, Row, Standing, Subject, Takes, Wait, ns, wall};

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const WINDOWS_MS: [u64; 10] = [1, 2, 3, 5, 10, 40, 250, 1_000, 2_000, 5_000];
const PADS_NS: [u64; 6] = [0, 0, 0, 1, 999_999, 7_000_000];
const SECOND_NS: i64 = 1_000_000_000;
/// What `ManualClock::new` shows.
const FIRST_WALL_NS: i64 = 1_700_000_000 * SECOND_NS;
/// How often the file is compared with the model, in steps.
const SCAN_EVERY: usize = 10;

/// The definition of a limit, whatever its key.
#[derive(Clone, Debug)]
struct Shape {
    /// Windows and capacities.
    rates: Vec<(usize, u64)>,
    /// Longer windows hold more.
    grows: bool,
    /// Capacities are close to the largest.
    is_huge: bool,
    pad: usize,
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    Units(u64),
    /// Sixteenths of what fits at most.
    Share(u64),
    Whole,
    TooMuch,
}

/// Limits by number, taken modulo those that there are; the first mention of a limit counts.
#[derive(Clone, Debug)]
struct Ask(Vec<(usize, Amount)>);

#[derive(Clone, Copy, Debug)]
enum Patience {
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
enum Pace {
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
enum Wall {
    Right,
    Off { ms: i64 },
    Unset,
}

/// What becomes of the bookings of a limiter that is closed.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Their holders keep them, and the limiter lives on in them.
    Held,
    /// Nobody gives them back.
    Orphaned,
    Dropped,
}

#[derive(Clone, Debug)]
enum Op {
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
}

#[derive(Clone, Debug)]
struct History {
    slots: usize,
    shapes: Vec<Shape>,
    ops: Vec<Op>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let rates = prop::collection::vec((0..WINDOWS_MS.len(), 1_u64..=6), 1..=3);
    let is_huge = prop::bool::weighted(0.15);
    (rates, prop::bool::weighted(0.8), is_huge, 0..PADS_NS.len()).prop_map(
        |(rates, grows, is_huge, pad)| Shape {
            rates,
            grows,
            is_huge,
            pad,
        },
    )
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
        8 => (slot.clone(), line).prop_map(|(slot, line)| Op::Usage { slot, line }),
        24 => pace().prop_map(Op::Advance),
        8 => slot.clone().prop_map(|slot| Op::Retry { slot }),
        1 => (-100_000_i64..=100_000).prop_map(|ms| Op::SetWall { ms }),
        4 => (slot, fate()).prop_map(|(slot, fate)| Op::Close { slot, fate }),
        2 => reboot(),
    ]
}

fn history() -> impl Strategy<Value = History> {
    let shapes = prop::collection::vec(shape(), 1..=4);
    (2_usize..=3, shapes, prop::collection::vec(op(), 1..=100))
        .prop_map(|(slots, shapes, ops)| History { slots, shapes, ops })
}

/// A booking that somebody holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    claim: usize,
    opening: usize,
    at_ns: i64,
}

/// Plays a history to a subject and to the model, and tells the first difference.
struct Player<'a> {
    subject: &'a mut dyn Subject,
    model: Model,
    witness: Witness,
    /// By slot: the opening that is open in it.
    slots: Vec<Option<usize>>,
    openings: usize,
    claims: usize,
    held: Vec<Held>,
    last_denial: Option<(Takes, i64)>,
    /// The last instant at which something was written. A file may remember one that is up to a second
    /// earlier; what was only read or refused, it does not remember.
    written_ns: i64,
    /// By how much the wall clock was ahead of true time at any boot, at most and at least.
    most_ahead_ns: i64,
    least_ahead_ns: i64,
    first_now_ns: i64,
    /// Whether something was written since the boot.
    boot_is_fixed: bool,
}

type Check = Result<(), String>;

fn same<T: PartialEq + Debug>(must_be: &T, is: &T) -> Check {
    if must_be == is {
        return Ok(());
    }
    Err(format!("it must be {must_be:?}, it was {is:?}"))
}

fn play(subject: &mut dyn Subject, slots: usize, history: &History) -> Check {
    let mut player = Player {
        subject,
        model: Model::default(),
        witness: Witness::default(),
        slots: vec![None; slots],
        openings: 0,
        claims: 0,
        held: Vec::new(),
        last_denial: None,
        written_ns: 0,
        most_ahead_ns: 0,
        least_ahead_ns: 0,
        first_now_ns: 0,
        boot_is_fixed: false,
    };
    let slot = player.open(0);
    if let Some(now_ns) = player.subject.now_ns(slot) {
        player.model.now_ns = now_ns;
    }
    player.written_ns = player.model.now_ns;
    player.first_now_ns = player.model.now_ns;
    for (line, shape) in history.shapes.iter().enumerate() {
        player.define(0, line, shape, OnConflict::Fail)?;
    }
    for (step, op) in history.ops.iter().enumerate() {
        let is_due = (step + 1) % SCAN_EVERY == 0 || step + 1 == history.ops.len();
        player
            .step(op)
            .and_then(|()| if is_due { player.scan() } else { Ok(()) })
            .map_err(|what| format!("step {step}, {op:?}: {what}"))?;
    }
    Ok(())
}

impl Player<'_> {
    fn step(&mut self, op: &Op) -> Check {
        match op {
            Op::Define {
                slot,
                line,
                shape,
                conflict,
            } => self.define(*slot, *line, shape, *conflict),
            Op::DefineAgain {
                slot,
                line,
                conflict,
            } => match self.model.lines.get(KEYS[line % KEYS.len()]) {
                Some(line) => self.define_as(*slot, &line.limit.clone(), *conflict),
                None => Ok(()),
            },
            Op::Try { slot, ask } => self.try_acquire(*slot, &self.takes(ask)),
            Op::Book {
                slot,
                ask,
                patience,
            } => self.book(*slot, &self.takes(ask), *patience),
            Op::GiveBack {
                booking,
                by_dropping,
            } => {
                if let Some(held) = self.pick(*booking) {
                    self.give_back(held, *by_dropping);
                }
                Ok(())
            }
            Op::Accept { booking } => match self.pick(*booking) {
                Some(held) => self.accept(held),
                None => Ok(()),
            },
            Op::Peek { slot, ask } => self.peek(*slot, &self.takes(ask)),
            Op::Usage { slot, line } => self.usage(*slot, KEYS[line % KEYS.len()]),
            Op::Advance(pace) => {
                self.advance(self.stride_ns(*pace));
                Ok(())
            }
            Op::Retry { slot } => self.retry(*slot),
            // Until somebody has acquired something in a new boot, the wall clock still says how long
            // the machine was off.
            Op::SetWall { .. } if !self.boot_is_fixed => Ok(()),
            Op::SetWall { ms } => {
                let ahead_ns = ms * 1_000_000;
                self.subject.set_wall(wall(self.true_wall_ns() + ahead_ns));
                Ok(())
            }
            Op::Close { slot, fate } => {
                let slot = slot % self.slots.len();
                self.close(slot, *fate)
            }
            Op::Reboot {
                uptime_ms,
                off_ms,
                wall,
                fate,
                wind_up,
            } => self.reboot(*uptime_ms, *off_ms, *wall, *fate, *wind_up),
        }
    }

    /// The slot, with an open limiter in it.
    fn open(&mut self, slot: usize) -> usize {
        let slot = slot % self.slots.len();
        if self.slots[slot].is_none() {
            self.subject.open(slot);
            self.slots[slot] = Some(self.openings);
            self.model.alive.insert(self.openings);
            self.openings += 1;
        }
        slot
    }

    fn define(&mut self, slot: usize, line: usize, shape: &Shape, conflict: OnConflict) -> Check {
        let key = KEYS[line % KEYS.len()];
        let defined = self.model.lines.get(key);
        let longest_ns = defined.map_or(i64::MAX, model::Line::longest_reach_ns);
        self.define_as(slot, &limit(key, shape, longest_ns), conflict)
    }

    fn define_as(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Check {
        let slot = self.open(slot);
        let defined = self.subject.define(slot, limit, conflict);
        let must_be = self.model.define(limit, conflict);
        if let Defined::Done(Definition::Created | Definition::Replaced(_)) = must_be {
            self.written_ns = self.model.now_ns;
        }
        same(&must_be, &defined)?;
        match self.subject.limits(slot) {
            Some(limits) => {
                let lines = self.model.lines.values();
                same(&lines.map(|line| line.limit.clone()).collect(), &limits)
            }
            None => Ok(()),
        }
    }

    fn try_acquire(&mut self, slot: usize, takes: &Takes) -> Check {
        let slot = self.open(slot);
        let claim = self.next_claim();
        let answer = self.subject.try_acquire(slot, takes);
        let verdict = self.model.try_acquire(takes, claim);
        self.judge(&verdict, &answer, takes)?;
        self.tell_witness(takes, &verdict, claim)
    }

    fn book(&mut self, slot: usize, takes: &Takes, patience: Patience) -> Check {
        let slot = self.open(slot);
        let now_ns = self.model.now_ns;
        let within = |ns: i64| Wait::Within(Duration::from_nanos(ns.unsigned_abs()));
        let wait = match patience {
            Patience::Forever => Wait::Forever,
            Patience::None => within(0),
            Patience::Millis(ms) => Wait::Within(Duration::from_millis(ms)),
            Patience::Until { ahead_ms } => Wait::Until {
                deadline_ns: now_ns + ahead_ms * 1_000_000,
            },
            Patience::Enough { less_ns } => match self.model.peek(takes) {
                Verdict::Refused { retry_at_ns, .. } => within(retry_at_ns - now_ns - less_ns),
                _ => within(0),
            },
        };
        let deadline_ns = match wait {
            Wait::Forever => i64::MAX,
            Wait::Within(longest) => now_ns + ns(longest),
            Wait::Until { deadline_ns } => deadline_ns,
        };
        let claim = self.next_claim();
        let opening = self.slots[slot].expect("it is open");
        let answer = self.subject.book(slot, takes, wait, claim);
        let verdict = self.model.book(opening, takes, deadline_ns, claim);
        self.judge(&verdict, &answer, takes)?;
        if let Verdict::Admitted { at_ns } = verdict {
            self.held.push(Held {
                claim,
                opening,
                at_ns,
            });
        }
        self.tell_witness(takes, &verdict, claim)
    }

    fn peek(&mut self, slot: usize, takes: &Takes) -> Check {
        let slot = self.open(slot);
        match self.subject.peek(slot, takes) {
            Some(answer) => self.judge(&self.model.peek(takes), &answer, takes),
            None => Ok(()),
        }
    }

    fn judge(&mut self, verdict: &Verdict, answer: &Answer, takes: &Takes) -> Check {
        self.model.check(verdict, answer, takes)?;
        if let Verdict::Refused { retry_at_ns, .. } = verdict {
            self.last_denial = Some((takes.clone(), *retry_at_ns));
        }
        Ok(())
    }

    fn retry(&mut self, slot: usize) -> Check {
        let Some((takes, retry_at_ns)) = self.last_denial.take() else {
            return Ok(());
        };
        for at_ns in [retry_at_ns - 1, retry_at_ns] {
            if at_ns >= self.model.now_ns {
                self.advance(at_ns - self.model.now_ns);
                self.try_acquire(slot, &takes)?;
            }
        }
        Ok(())
    }

    fn usage(&mut self, slot: usize, key: &str) -> Check {
        let slot = self.open(slot);
        let Some(told) = self.subject.usage(slot, key) else {
            return Ok(());
        };
        let must_be: Result<Standing, Answer> =
            self.model.standing(key).ok_or_else(|| Answer::Unknown {
                key: key.to_owned(),
            });
        same(&must_be, &told)
    }

    fn pick(&mut self, booking: usize) -> Option<Held> {
        let position = booking.checked_rem(self.held.len())?;
        Some(self.held.remove(position))
    }

    fn give_back(&mut self, held: Held, by_dropping: bool) {
        self.subject.give_back(held.claim, by_dropping);
        self.model.give_back(held.claim);
        self.witness.forget(held.claim);
        self.bury_if_nothing_is_left(held.opening);
    }

    fn accept(&mut self, held: Held) -> Check {
        let at_ns = self.subject.accept(held.claim);
        self.model.accept(held.claim);
        self.bury_if_nothing_is_left(held.opening);
        same(&held.at_ns, &at_ns)
    }

    fn close(&mut self, slot: usize, fate: Fate) -> Check {
        let Some(opening) = self.slots[slot].filter(|_| self.subject.is_durable()) else {
            return Ok(());
        };
        let (of_this, of_others): (Vec<Held>, Vec<Held>) =
            self.held.iter().partition(|held| held.opening == opening);
        match fate {
            Fate::Held => {}
            Fate::Orphaned => {
                self.held = of_others;
                of_this.into_iter().try_for_each(|held| self.accept(held))?;
            }
            Fate::Dropped => {
                self.held = of_others;
                for held in of_this {
                    self.give_back(held, true);
                }
            }
        }
        self.subject.close(slot);
        self.slots[slot] = None;
        self.bury_if_nothing_is_left(opening);
        Ok(())
    }

    fn bury_if_nothing_is_left(&mut self, opening: usize) {
        let is_open = self.slots.contains(&Some(opening));
        if !is_open && self.held.iter().all(|held| held.opening != opening) {
            self.model.alive.remove(&opening);
        }
    }

    fn reboot(
        &mut self,
        uptime_ms: u64,
        off_ms: i64,
        wall_clock: Wall,
        fate: Fate,
        wind_up: bool,
    ) -> Check {
        if !self.subject.is_durable() {
            return Ok(());
        }
        // A machine that stops takes all bookings with it, so those that are held are orphaned.
        let fate = match fate {
            Fate::Held | Fate::Orphaned => Fate::Orphaned,
            Fate::Dropped => Fate::Dropped,
        };
        for held in std::mem::take(&mut self.held) {
            match fate {
                Fate::Dropped => self.give_back(held, false),
                _ => self.accept(held)?,
            }
        }
        for slot in 0..self.slots.len() {
            self.close(slot, fate)?;
        }
        self.scan()?;
        if wind_up {
            self.subject.wind_up_totals();
        }
        let uptime = Duration::from_millis(uptime_ms);
        let former_now_ns = self.model.now_ns;
        let stopped_ns = self.witness.now_ns;
        self.witness.now_ns += off_ms * 1_000_000 + ns(uptime);
        let ahead_ns = match wall_clock {
            Wall::Right => 0,
            Wall::Off { ms } => ms * 1_000_000,
            Wall::Unset => -self.true_wall_ns(),
        };
        self.subject.reboot(uptime);
        self.subject.set_wall(wall(self.true_wall_ns() + ahead_ns));
        let slot = self.open(0);
        let now_ns = self.subject.now_ns(slot).expect("files have a clock");
        self.model.now_ns = now_ns;
        self.last_denial = None;
        self.boot_is_fixed = false;
        if now_ns < self.written_ns - SECOND_NS + ns(uptime) {
            return Err(format!(
                "it came up at {now_ns}, {uptime:?} after the boot; it had written at {}",
                self.written_ns
            ));
        }
        self.most_ahead_ns = self.most_ahead_ns.max(ahead_ns);
        if now_ns - self.first_now_ns > self.witness.now_ns + self.most_ahead_ns {
            return Err(format!(
                "{now_ns} lies ahead of any wall clock that it was shown"
            ));
        }
        if ahead_ns > self.least_ahead_ns {
            // The wall clock has gone forward by more than true time, so instants may have, too, and
            // limits no longer hold in true time across this boot.
            self.witness.forget_everything();
        } else if now_ns - former_now_ns > self.witness.now_ns - stopped_ns {
            return Err(format!(
                "it came up at {now_ns}, it was {former_now_ns}; in true time {} went by",
                self.witness.now_ns - stopped_ns
            ));
        }
        self.least_ahead_ns = self.least_ahead_ns.min(ahead_ns);
        // A booking comes due without a write. If the wall clock was lost, the file comes up at what was
        // last written and the uptime, and takes a booking after that for one that was never used.
        let lost = self.model.lines.values().flat_map(|line| &line.charges);
        for charge in lost.filter(|charge| charge.booked_by.is_some() && charge.at_ns > now_ns) {
            self.witness.forget(charge.claim);
        }
        if let Some(ledgers) = self.subject.rows() {
            self.model.forget_what_was_swept(former_now_ns, &ledgers);
        }
        self.scan()
    }

    fn advance(&mut self, stride_ns: i64) {
        let until_ns = self.model.now_ns + stride_ns;
        self.subject
            .advance(Duration::from_nanos(stride_ns.unsigned_abs()));
        // Whoever has booked and lives goes ahead when the instant comes.
        for (key, line) in &self.model.lines {
            for charge in &line.charges {
                let comes = self.model.now_ns < charge.at_ns && charge.at_ns <= until_ns;
                let goes_ahead = charge
                    .booked_by
                    .is_some_and(|opening| self.model.alive.contains(&opening));
                if comes && goes_ahead {
                    let at_ns = self.witness.now_ns + charge.at_ns - self.model.now_ns;
                    self.witness.saw(key, Charge { at_ns, ..*charge });
                }
            }
        }
        self.model.now_ns = until_ns;
        self.witness.now_ns += stride_ns;
    }

    fn stride_ns(&self, pace: Pace) -> i64 {
        let stride_ns = match pace {
            Pace::Nanos(nanos) => ns(Duration::from_nanos(nanos)),
            Pace::Seconds(seconds) => ns(Duration::from_secs(seconds)),
            Pace::Change { nudge_ns } => {
                let change_ns = self.model.next_change_ns();
                change_ns.map_or(0, |at_ns| at_ns - self.model.now_ns + nudge_ns)
            }
            Pace::Share {
                line,
                rate,
                sixteenths,
                nudge_ns,
            } => {
                let lines: Vec<_> = self.model.lines.values().collect();
                let limit = &lines[line % lines.len()].limit;
                let rate = limit.rates()[rate % limit.rates().len()];
                ns(rate.window() + limit.pad()) * sixteenths / 16 + nudge_ns
            }
        };
        stride_ns.max(0)
    }

    fn takes(&self, ask: &Ask) -> Takes {
        let mut takes = Takes::new();
        for (line, amount) in &ask.0 {
            // One mention in sixteen is of a limit that may not be defined.
            let defined = self.model.lines.len();
            let key = KEYS[if *line == 15 { 3 } else { line % defined }];
            let rates = self.model.lines.get(key).map(|line| line.limit.rates());
            let capacities = rates.into_iter().flatten().map(quotalite::Rate::capacity);
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

    fn next_claim(&mut self) -> usize {
        self.claims += 1;
        self.claims
    }

    fn tell_witness(&mut self, takes: &Takes, verdict: &Verdict, claim: usize) -> Check {
        self.boot_is_fixed |= *verdict != Verdict::Wrong;
        if let Verdict::Admitted { .. } = verdict {
            self.written_ns = self.model.now_ns;
        }
        if *verdict
            != (Verdict::Admitted {
                at_ns: self.model.now_ns,
            })
        {
            return Ok(());
        }
        for (key, amount) in takes {
            let charge = Charge {
                at_ns: self.witness.now_ns,
                amount: *amount,
                booked_by: None,
                accepted: false,
                claim,
            };
            self.witness.saw(key, charge);
        }
        self.witness.check(&self.model)
    }

    fn true_wall_ns(&self) -> i64 {
        FIRST_WALL_NS + self.witness.now_ns
    }

    fn scan(&mut self) -> Check {
        let ledgers: Option<BTreeMap<String, Vec<Row>>> = self.subject.rows();
        if let Some(ledgers) = ledgers {
            self.model.check_rows(&ledgers)?;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none() {
                continue;
            }
            if let Some(now_ns) = self.subject.now_ns(slot) {
                same(&self.model.now_ns, &now_ns)?;
            }
            for key in KEYS {
                self.usage(slot, key)?;
            }
        }
        self.witness.check(&self.model)
    }
}

/// The limit of this shape that counts nothing for longer than `longest_ns`: what has left all windows
/// may have been swept, so a longer one would not know of it.
fn limit(key: &str, shape: &Shape, longest_ns: i64) -> Limit {
    let mut rates: Vec<(Duration, u64)> = shape
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
    let pad = Duration::from_nanos(PADS_NS[shape.pad].min(room_ns));
    let mut builder = Limit::new(key).pad(pad);
    let mut former = 0;
    for (window, capacity) in rates {
        let capacity = if shape.grows {
            former + capacity
        } else {
            capacity
        };
        former = capacity;
        let base = if shape.is_huge { MAX_CAPACITY - 20 } else { 0 };
        builder = builder.rate(base + capacity, window);
    }
    builder.build().expect("a limit that can be")
}

fn play_many(play: impl Fn(&History) -> Check) {
    let told = env::var("QUOTALITE_HISTORIES").ok();
    let count = told.map_or(300, |count| count.parse().expect("a number of histories"));
    let mut runner = TestRunner::new(Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/histories.regressions",
        ))),
        ..Config::with_cases(count)
    });
    let played = runner.run(&history(), |history| {
        play(&history).map_err(TestCaseError::fail)
    });
    match played {
        Ok(()) => {}
        Err(TestError::Fail(why, history)) => panic!("{why}\n{history:#?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn limiters_of_one_file_do_what_the_model_does() {
    play_many(|history| play(&mut Real::on_file(history.slots), history.slots, history));
}

#[test]
fn a_limiter_in_memory_does_what_the_model_does() {
    play_many(|history| play(&mut Real::in_memory(), 1, history));
}

/// How many histories it takes until one tells a difference, of at most so many.
fn noticed_after(flaw: Flaw, at_most: u32) -> Option<u32> {
    let mut runner = TestRunner::deterministic();
    let histories = history();
    (1..=at_most).find(|_| {
        let history = histories
            .new_tree(&mut runner)
            .expect("nothing is filtered");
        play(&mut Broken::with(flaw), 1, &history.current()).is_err()
    })
}

#[track_caller]
fn assert_noticed(flaw: Flaw) {
    let after = noticed_after(flaw, 40);
    println!("{flaw:?}: noticed in history {after:?}");
    assert!(after.is_some(), "40 histories did not notice: {flaw:?}");
}

#[test]
fn a_plain_limiter_without_a_flaw_is_not_accused() {
    assert_eq!(noticed_after(Flaw::Nothing, 300), None);
}

#[test]
fn histories_notice_a_limiter_that_counts_what_was_not_cleaned_up_yet() {
    assert_noticed(Flaw::CountsUntilCleaned);
}

#[test]
fn histories_notice_a_limiter_that_charges_one_limit_and_is_stopped_by_the_next() {
    assert_noticed(Flaw::ChargesOneByOne);
}

#[test]
fn histories_notice_a_limiter_with_fixed_buckets() {
    assert_noticed(Flaw::FixedBuckets);
}

#[test]
fn histories_notice_a_limiter_that_overtakes_those_who_booked() {
    assert_noticed(Flaw::Overtakes);
}

#[test]
fn histories_notice_a_limiter_that_counts_a_charge_a_nanosecond_too_long() {
    assert_noticed(Flaw::ClosedWindow);
}

fn shape_of(rates: &[(usize, u64)]) -> Shape {
    Shape {
        rates: rates.to_vec(),
        grows: false,
        is_huge: false,
        pad: 0,
    }
}

fn try_one(line: usize) -> Op {
    Op::Try {
        slot: 0,
        ask: Ask(vec![(line, Amount::Units(1))]),
    }
}

fn book_one_of_each(lines: &[usize]) -> Op {
    Op::Book {
        slot: 1,
        ask: Ask(lines.iter().map(|line| (*line, Amount::Units(1))).collect()),
        patience: Patience::Forever,
    }
}

/// The rows that followed kept counting what had been swept, and the new one did not.
fn charge_before_a_booking_when_the_past_is_swept() -> History {
    History {
        slots: 2,
        // One a millisecond, and three in 40 ms; the other limit makes the booking wait.
        shapes: vec![shape_of(&[(0, 1), (5, 3)]), shape_of(&[(3, 1)])],
        ops: vec![
            try_one(0),
            Op::Advance(Pace::Seconds(2)),
            try_one(1),
            // The first acquisition of a limiter sweeps.
            book_one_of_each(&[0, 1]),
            try_one(0),
            Op::Advance(Pace::Change { nudge_ns: 0 }),
            Op::Advance(Pace::Change { nudge_ns: 0 }),
            Op::Usage { slot: 0, line: 0 },
        ],
    }
}

#[test]
fn a_charge_before_a_booking_adds_up_when_the_past_is_swept() {
    let history = charge_before_a_booking_when_the_past_is_swept();
    play(&mut Real::on_file(2), 2, &history).unwrap();
}

#[test]
fn a_charge_before_a_booking_adds_up_in_memory_when_the_past_is_swept() {
    let history = charge_before_a_booking_when_the_past_is_swept();
    play(&mut Real::in_memory(), 1, &history).unwrap();
}
