//! The player of a history: each step goes to a subject and to the model, and they have to agree.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use quotalite::{Definition, Limit, OnConflict};

use crate::history::{Fate, History, KEYS, Op, Patience, Shape, Wall};
use crate::model::{Charge, Line, Model, Verdict, Witness};
use crate::subject::{Answer, Defined, Row, Standing, Subject, Takes, Wait, ns, wall};

const SECOND_NS: i64 = 1_000_000_000;
/// What `ManualClock::new` shows.
const FIRST_WALL_NS: i64 = 1_700_000_000 * SECOND_NS;
/// How often the file is compared with the model, in steps.
const SCAN_EVERY: usize = 10;

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

pub type Check = Result<(), String>;

fn same<T: PartialEq + Debug>(must_be: &T, is: &T) -> Check {
    if must_be == is {
        return Ok(());
    }
    Err(format!("it must be {must_be:?}, it was {is:?}"))
}

pub fn play(subject: &mut dyn Subject, slots: usize, history: &History) -> Check {
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
            Op::Try { slot, ask } => self.try_acquire(*slot, &ask.takes(&self.model)),
            Op::Book {
                slot,
                ask,
                patience,
            } => self.book(*slot, &ask.takes(&self.model), *patience),
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
            Op::Peek { slot, ask } => self.peek(*slot, &ask.takes(&self.model)),
            Op::Usage { slot, line } => self.usage(*slot, KEYS[line % KEYS.len()]),
            Op::Advance(pace) => {
                self.advance(pace.stride_ns(&self.model));
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
        let longest_ns = defined.map_or(i64::MAX, Line::longest_reach_ns);
        self.define_as(slot, &shape.limit(key, longest_ns), conflict)
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
        let wait = patience.wait(&self.model, takes);
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
