//! The player of a history: each step goes to a subject and to the model, and they have to agree.

#[path = "changing.rs"]
mod changing;
#[path = "handles.rs"]
mod handles;
#[path = "held.rs"]
mod held;
#[path = "named.rs"]
mod named;
#[path = "pausing.rs"]
mod pausing;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use quotalite::{DAY, Limit, MAX_CAPACITY, OnConflict};

use self::handles::Handle;
use self::held::{Held, pick};
use crate::asks::Patience;
use crate::history::{Fate, History, Op, POOLS, SEEN, Wall, all_keys};
use crate::line::{Charge, Growth};
use crate::model::{Asking, Model, Verdict};
use crate::subject::{Answer, Asked, Row, Standing, Subject, Takes, Wait, ns, wall};
use crate::witness::Witness;

const SECOND_NS: i64 = 1_000_000_000;
/// How often the file is compared with the model, in steps.
const SCAN_EVERY: usize = 10;

/// Plays a history to a subject and to the model, and tells the first difference.
struct Player<'a> {
    subject: &'a mut dyn Subject,
    model: Model,
    witness: Witness,
    /// By slot: the opening that is open in it.
    slots: Vec<Option<usize>>,
    openings: usize,
    claims: usize,
    bookings: Vec<Held>,
    permits: Vec<Held>,
    handles: Vec<Handle>,
    handles_made: usize,
    /// By id: what was last asked for under it.
    asked: BTreeMap<String, Takes>,
    /// The ids that permits were given.
    given_ids: Vec<String>,
    last_fence: u64,
    last_denial: Option<(Takes, i64)>,
    /// The last instant at which something was written. A file may remember one that is up to a second
    /// earlier; what was only read or refused, it does not remember.
    written_ns: i64,
    /// By how much the wall clock was ahead of true time at any boot, at most and at least.
    most_ahead_ns: i64,
    least_ahead_ns: i64,
    first_now_ns: i64,
    /// What the wall clock showed at first, and at most.
    first_wall_ns: i64,
    latest_wall_ns: i64,
    has_quotas: bool,
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
        bookings: Vec::new(),
        permits: Vec::new(),
        handles: Vec::new(),
        handles_made: 0,
        asked: BTreeMap::new(),
        given_ids: Vec::new(),
        last_fence: 0,
        last_denial: None,
        written_ns: 0,
        most_ahead_ns: 0,
        least_ahead_ns: 0,
        first_now_ns: 0,
        first_wall_ns: history.start_ns,
        latest_wall_ns: history.start_ns,
        has_quotas: history.topics.quotas,
        boot_is_fixed: false,
    };
    player.subject.set_wall(wall(history.start_ns));
    let slot = player.open(0);
    if let Some(now_ns) = player.subject.now_ns(slot) {
        player.model.now_ns = now_ns;
    }
    player.written_ns = player.model.now_ns;
    player.first_now_ns = player.model.now_ns;
    for (line, shape) in history.shapes.iter().enumerate() {
        player.define(0, line, shape, OnConflict::Fail)?;
    }
    for (pool, shape) in history.pools.iter().enumerate() {
        player.define_as(0, &shape.limit(POOLS[pool]), OnConflict::Fail)?;
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
            Op::Try { slot, ask } => self.try_acquire(*slot, &self.asked(ask, None), false),
            Op::TryAndHold { slot, ask } => self.try_acquire(*slot, &self.asked(ask, None), true),
            Op::Book {
                slot,
                ask,
                patience,
            } => self.book(*slot, &self.asked_ahead(ask, None), *patience),
            Op::GiveBack {
                booking,
                by_dropping,
            } => {
                if let Some(held) = pick(&mut self.bookings, *booking) {
                    self.give_back(&held, *by_dropping);
                }
                Ok(())
            }
            Op::Accept { booking } => self.accept_one(*booking, false),
            Op::AcceptAndHold { booking } => self.accept_one(*booking, true),
            Op::Settle {
                permit,
                spent,
                keeps,
            } => self.settle(*permit, spent, *keeps),
            Op::Cancel { permit, keeps } => self.cancel(*permit, *keeps),
            Op::LetGo { permit } => {
                if let Some(held) = pick(&mut self.permits, *permit) {
                    self.let_go(&held);
                }
                Ok(())
            }
            Op::Peek { slot, ask } => self.peek(*slot, &ask.takes(&self.model)),
            Op::Usage { slot, line } => {
                let keys: Vec<&String> = self.model.lines.keys().collect();
                match line.checked_rem(keys.len()) {
                    Some(position) => self.usage(*slot, &keys[position].clone()),
                    None => Ok(()),
                }
            }
            Op::Advance(pace) => {
                self.advance(pace.stride_ns(&self.model));
                Ok(())
            }
            Op::Retry { slot } => self.retry(*slot),
            // Until somebody has acquired something in a new boot, the wall clock still says how long
            // the machine was off.
            Op::SetWall { .. } if !self.boot_is_fixed => Ok(()),
            Op::SetWall { ms } => self.set_wall(*ms),
            Op::Close { slot, fate } => {
                let slot = slot % self.slots.len();
                self.close(slot, *fate);
                Ok(())
            }
            Op::Reboot {
                uptime_ms,
                off_ms,
                wall,
                fate,
                wind_up,
            } => self.reboot(*uptime_ms, *off_ms, *wall, *fate, *wind_up),
            Op::Define { .. }
            | Op::DefineAgain { .. }
            | Op::DefineName { .. }
            | Op::DefinePool { .. }
            | Op::ChangeOverage { .. }
            | Op::Update { .. }
            | Op::Remove { .. } => self.step_changing(op),
            Op::HandOut {
                slot,
                handle,
                ask,
                block,
            } => self.hand_out(*slot, *handle, ask, *block),
            Op::EndBlock {
                handle,
                by_dropping,
            } => {
                self.end_block(*handle, *by_dropping);
                Ok(())
            }
            Op::Pause { slot, key, how } => self.pause(*slot, *key, *how),
            Op::Resume { slot, key } => self.resume(*slot, *key),
            op => self.step_named(op),
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

    fn try_acquire(&mut self, slot: usize, asked: &Asked, holds: bool) -> Check {
        let slot = self.open(slot);
        let claim = self.next_claim();
        let answer = self.subject.try_acquire(slot, asked, claim, holds);
        match self.decide(slot, asked, claim, None, &answer)? {
            Some(held) if holds => self.permits.push(held),
            Some(held) => self.let_go_of(&held),
            None => {}
        }
        Ok(())
    }

    /// Lets the model decide, and compares. What somebody holds then, if anything.
    fn decide(
        &mut self,
        slot: usize,
        (takes, id): &Asked,
        claim: usize,
        deadline_ns: Option<i64>,
        answer: &Answer,
    ) -> Result<Option<Held>, String> {
        let opening = self.slots[slot].expect("it is open");
        let asking = Asking {
            opening,
            takes,
            id: id.as_deref(),
            deadline_ns,
            claim,
        };
        let verdict = self.model.acquire(&asking);
        self.judge(&verdict, answer, takes)?;
        self.check_fence(&verdict, answer, deadline_ns.is_some())?;
        self.tell_witness(takes, &verdict, claim)?;
        Ok(self.held(&verdict, claim, opening, takes))
    }

    fn book(&mut self, slot: usize, asked: &Asked, patience: Patience) -> Check {
        let slot = self.open(slot);
        let now_ns = self.model.now_ns;
        let wait = patience.wait(&self.model, &asked.0);
        let deadline_ns = match wait {
            Wait::Forever => i64::MAX,
            Wait::Within(longest) => now_ns + ns(longest),
            Wait::Until { deadline_ns } => deadline_ns,
        };
        let claim = self.next_claim();
        let answer = self.subject.book(slot, asked, wait, claim);
        let held = self.decide(slot, asked, claim, Some(deadline_ns), &answer)?;
        self.bookings.extend(held);
        Ok(())
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
                self.try_acquire(slot, &(takes.clone(), None), false)?;
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
        self.stop(fate);
        self.scan()?;
        if wind_up {
            self.subject.wind_up_totals();
        }
        let uptime = Duration::from_millis(uptime_ms);
        let former_now_ns = self.model.now_ns;
        let stopped_ns = self.witness.now_ns;
        self.witness.now_ns += off_ms * 1_000_000 + ns(uptime);
        let mut ahead_ns = match wall_clock {
            Wall::Right => 0,
            Wall::Off { ms } => ms * 1_000_000,
            Wall::Unset => -self.true_wall_ns(),
        };
        let showing_ns = self.true_wall_ns() + ahead_ns;
        if !self.model.remembers(showing_ns, self.latest_wall_ns) {
            ahead_ns = self.latest_wall_ns - self.true_wall_ns();
        }
        self.subject.reboot(uptime);
        self.subject.set_wall(wall(self.true_wall_ns() + ahead_ns));
        let slot = self.open(0);
        let mut now_ns = self.subject.now_ns(slot).expect("files have a clock");
        let has_buckets = self.model.lines.values().any(|line| line.tank().is_some());
        if has_buckets && now_ns < former_now_ns {
            // What was poured out of a bucket is one number, and no longer knows when.
            let late = Duration::from_nanos(former_now_ns.abs_diff(now_ns));
            self.subject.advance(late);
            self.witness.now_ns += ns(late);
            now_ns = former_now_ns;
        }
        self.model.now_ns = now_ns;
        self.see_wall(self.true_wall_ns() + ahead_ns);
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
        for charge in lost.filter(|charge| charge.booked_by.is_some() && charge.due_ns > now_ns) {
            self.witness.forget(charge.claim);
        }
        if let Some(ledgers) = self.subject.rows() {
            self.model.forget_what_was_swept(former_now_ns, &ledgers);
        }
        if let Some(entries) = self.subject.entries() {
            self.model
                .forget_what_was_struck_out(former_now_ns, &entries);
        }
        self.scan()
    }

    fn advance(&mut self, stride_ns: i64) {
        let until_ns = self.model.now_ns + stride_ns;
        self.subject
            .advance(Duration::from_nanos(stride_ns.unsigned_abs()));
        // Whoever has booked and lives goes ahead when the instant comes, and so did whoever has said
        // before what it used.
        for (key, line) in &self.model.lines {
            for charge in &line.charges {
                let comes = self.model.now_ns < charge.due_ns && charge.due_ns <= until_ns;
                let goes_ahead = charge
                    .booked_by
                    .is_none_or(|opening| self.model.alive.contains(&opening));
                if comes && goes_ahead && charge.since_ns.is_none() {
                    let at_ns = self.witness.now_ns + charge.due_ns - self.model.now_ns;
                    // All windows that hold it end after it has grown.
                    let growth = charge.growth.map(|growth| Growth { at_ns, ..growth });
                    self.witness.saw(
                        key,
                        Charge {
                            at_ns,
                            due_ns: at_ns,
                            growth,
                            ..*charge
                        },
                    );
                }
            }
        }
        self.model.now_ns = until_ns;
        self.witness.now_ns += stride_ns;
        self.latest_wall_ns = self.latest_wall_ns.max(until_ns + self.model.wall_shift_ns);
    }

    /// Where there are calendars, mostly by hours, and never further back than is remembered. Somebody who writes sees
    /// it.
    fn set_wall(&mut self, ms: i64) -> Check {
        let ahead_ns = match (self.has_quotas, ms % 5) {
            (false, _) => ms * 1_000_000,
            (true, 0) => ms * 1_000_000 / 200,
            (true, _) => ms * 1_000_000 * 400,
        };
        let wall_ns = self.true_wall_ns() + ahead_ns;
        if !self.has_quotas {
            self.subject.set_wall(wall(wall_ns));
            return Ok(());
        }
        if !self.model.remembers(wall_ns, self.latest_wall_ns) {
            return Ok(());
        }
        self.subject.set_wall(wall(wall_ns));
        self.see_wall(wall_ns);
        let limit = Limit::new(SEEN).rate(MAX_CAPACITY, DAY);
        let limit = limit.build().expect("a limit that can be");
        self.define_as(0, &limit, OnConflict::Adopt)?;
        self.try_acquire(0, &(vec![(SEEN.to_owned(), 1)], None), false)
    }

    fn see_wall(&mut self, wall_ns: i64) {
        self.model.see_wall(wall_ns);
        self.latest_wall_ns = self.latest_wall_ns.max(wall_ns);
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
        if !matches!(verdict, Verdict::Admitted { at_ns, .. } if *at_ns == self.model.now_ns) {
            return Ok(());
        }
        let of_rates = |take: &&(String, u64)| {
            let line = self.model.lines.get(&take.0);
            line.is_some_and(|line| line.tank().is_none())
        };
        for (key, amount) in takes.iter().filter(of_rates) {
            self.witness.saw_now(key, *amount, claim);
        }
        self.witness.check(&self.model)
    }

    fn true_wall_ns(&self) -> i64 {
        self.first_wall_ns + self.witness.now_ns
    }

    fn scan(&mut self) -> Check {
        let ledgers: Option<BTreeMap<String, Vec<Row>>> = self.subject.rows();
        if let Some(ledgers) = ledgers {
            self.model.check_rows(&ledgers)?;
        }
        if let Some(entries) = self.subject.entries() {
            self.model.check_entries(&entries)?;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none() {
                continue;
            }
            if let Some(now_ns) = self.subject.now_ns(slot) {
                same(&self.model.now_ns, &now_ns)?;
            }
            for key in all_keys() {
                self.usage(slot, key)?;
            }
        }
        self.witness.check(&self.model)
    }
}
