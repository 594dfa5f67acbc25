//! Pauses, as the model knows them: lists of when limits were paused and of who was turned away.

use std::collections::BTreeSet;

use quotalite::{Limit, PausePolicy, Rate};

use crate::line::{Charge, Line, Sum};
use crate::model::Model;
use crate::subject::{Answer, Paused, Takes, ns};

/// A minute: no slow start takes longer.
const LONGEST_START_NS: i64 = 60 * 1_000_000_000;

/// What somebody says who was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Strike,
    RetryAfter { ns: i64 },
    Planned { ns: i64 },
}

/// A time in which a limit was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub since_ns: i64,
    pub until_ns: i64,
}

/// One time that somebody was turned away, and for how long that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turned {
    at_ns: i64,
    within_ns: i64,
}

/// What is known of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    intervals: Vec<Interval>,
    turned: Vec<Turned>,
}

/// What a policy says, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub first_ms: u64,
    pub strikes: u32,
    pub within_ms: u64,
    pub cap_ms: u64,
    pub percent: u8,
}

/// The first is what is in force where nothing is said.
pub const POLICIES: [Policy; 5] = [
    Policy {
        first_ms: 60_000,
        strikes: 3,
        within_ms: 300_000,
        cap_ms: 900_000,
        percent: 50,
    },
    Policy {
        first_ms: 40,
        strikes: 2,
        within_ms: 1_000,
        cap_ms: 500,
        percent: 50,
    },
    Policy {
        first_ms: 7,
        strikes: 3,
        within_ms: 250,
        cap_ms: 2_000,
        percent: 10,
    },
    Policy {
        first_ms: 1_000,
        strikes: 1,
        within_ms: 5_000,
        cap_ms: 5_000,
        percent: 100,
    },
    Policy {
        first_ms: 3,
        strikes: 2,
        within_ms: 40,
        cap_ms: 40,
        percent: 30,
    },
];

impl Policy {
    pub fn built(&self) -> PausePolicy {
        let ms = std::time::Duration::from_millis;
        PausePolicy::default()
            .first(ms(self.first_ms))
            .escalate(self.strikes, ms(self.within_ms))
            .cap(ms(self.cap_ms))
            .slow_start(self.percent)
    }

    fn of(limit: &Limit) -> Self {
        let is_its = |policy: &&Self| policy.built() == limit.pauses();
        *POLICIES.iter().find(is_its).expect("one of them")
    }
}

impl Record {
    fn in_force(&self, now_ns: i64) -> Option<Interval> {
        let last = self.intervals.last().copied();
        last.filter(|interval| now_ns < interval.until_ns)
    }

    /// For how long it was not paused between two instants.
    fn open_ns(&self, from_ns: i64, to_ns: i64) -> i64 {
        let shut = self.intervals.iter().map(|interval| {
            let (since, until) = (interval.since_ns.max(from_ns), interval.until_ns.min(to_ns));
            (until - since).max(0)
        });
        to_ns - from_ns - shut.sum::<i64>()
    }

    /// With those only that still count.
    fn counting(&self, now_ns: i64) -> Self {
        let counts = |turned: &&Turned| self.open_ns(turned.at_ns, now_ns) < turned.within_ns;
        Self {
            intervals: self.intervals.clone(),
            turned: self.turned.iter().filter(counts).copied().collect(),
        }
    }

    fn strike(&mut self, policy: Policy, how: How, now_ns: i64) -> Interval {
        let in_force = self.in_force(now_ns);
        *self = self.counting(now_ns);
        let is_no_time = matches!(how, How::RetryAfter { ns: 0 });
        let is_strike = !matches!(how, How::Planned { .. }) && !is_no_time;
        let counts = is_strike && in_force.is_none();
        if counts {
            self.turned.push(Turned {
                at_ns: now_ns,
                within_ns: ns(std::time::Duration::from_millis(policy.within_ms)),
            });
        }
        let mut scheduled_ms = policy.first_ms;
        for _ in policy.strikes..=u32::try_from(self.turned.len()).expect("few") {
            scheduled_ms = (scheduled_ms * 2).min(1 << 40);
        }
        let asked_ns = match how {
            How::RetryAfter { ns } | How::Planned { ns } => ns,
            How::Strike if counts => i64::try_from(scheduled_ms).expect("short") * 1_000_000,
            How::Strike => 0,
        };
        let cap_ns = i64::try_from(policy.cap_ms).expect("short") * 1_000_000;
        let until_ns = now_ns + asked_ns.min(cap_ns);
        match in_force {
            Some(interval) if until_ns > interval.until_ns => {
                let last = self.intervals.last_mut().expect("one is in force");
                last.until_ns = until_ns;
            }
            None if until_ns > now_ns => self.intervals.push(Interval {
                since_ns: now_ns,
                until_ns,
            }),
            _ => {}
        }
        self.in_force(now_ns).unwrap_or(Interval {
            since_ns: now_ns,
            until_ns: now_ns,
        })
    }
}

/// How a rate starts after a pause: in windows of so long so much, until an instant.
struct Start {
    part_ns: i64,
    most: Sum,
    until_ns: i64,
}

impl Start {
    fn of(line: &Line, rate: &Rate, interval: Interval) -> Option<Self> {
        let window_ns = ns(rate.window().rolling()?);
        let is_shortest = line.limit.rates().first() == Some(rate);
        let percent = Policy::of(&line.limit).percent;
        if percent == 100 || (window_ns > LONGEST_START_NS && !is_shortest) {
            return None;
        }
        let first_ns = window_ns.min(LONGEST_START_NS);
        let share = Sum::from(rate.capacity()) * Sum::from(percent) * Sum::from(first_ns)
            / (100 * Sum::from(window_ns));
        let parts = share.clamp(1, 10);
        let part_ns = i64::try_from(Sum::from(first_ns) / parts).expect("short");
        Some(Self {
            part_ns: part_ns + line.limit.resolution().map_or(0, ns),
            most: (share / parts).max(1),
            until_ns: interval.until_ns + first_ns,
        })
    }

    /// The most that any of its windows holds in which a charge at an instant would count.
    fn fullest(&self, line: &Line, at_ns: i64) -> Option<Sum> {
        if at_ns >= self.until_ns {
            return None;
        }
        let resolution_ns = line.limit.resolution().map_or(1, ns);
        let entered_ns = at_ns.div_euclid(resolution_ns) * resolution_ns;
        let end_ns = self.until_ns.min(entered_ns + self.part_ns);
        let later = line.charges.iter().map(|charge| charge.at_ns);
        let instants: BTreeSet<i64> = later
            .filter(|x| at_ns < *x && *x < end_ns)
            .chain([at_ns])
            .collect();
        let held = |x: i64| -> Sum {
            let inside = line.charges.iter();
            let inside =
                inside.filter(|charge| charge.counts_at(x) && x < charge.at_ns + self.part_ns);
            inside.map(|charge| Sum::from(charge.amount)).sum()
        };
        instants.into_iter().map(held).max()
    }
}

impl Model {
    /// When somebody is admitted again by a key, if not now.
    pub fn paused_until_ns(&self, key: &str) -> Option<i64> {
        let record = self.paused.get(key)?;
        Some(record.in_force(self.now_ns)?.until_ns)
    }

    pub fn paused(&self, key: &str) -> Option<Paused> {
        let record = self.paused.get(key)?;
        let interval = record.in_force(self.now_ns)?;
        Some(Paused {
            since_ns: interval.since_ns,
            until_ns: interval.until_ns,
        })
    }

    /// What of it still counts.
    pub fn record(&self, key: &str) -> Record {
        let record = self.paused.get(key);
        record
            .map(|record| record.counting(self.now_ns))
            .unwrap_or_default()
    }

    /// Whether a charge is moved behind a pause: what is booked, and what others know by an id.
    fn can_be_moved(&self, charge: &Charge) -> bool {
        let mut entries = self.entries.iter();
        charge.booked_by.is_some()
            || entries.any(|entry| {
                entry.claim == charge.claim
                    && entry.id.is_some()
                    && entry.ended(self.now_ns).is_none()
            })
    }

    fn last_pause(&self, key: &str) -> Option<Interval> {
        self.paused.get(key)?.intervals.last().copied()
    }

    fn starts(&self, line: &Line) -> Vec<(Rate, Start)> {
        let Some(interval) = self.last_pause(&line.key) else {
            return Vec::new();
        };
        let rates = line.limit.rates().iter();
        let starts = rates.filter_map(|rate| Some((*rate, Start::of(line, rate, interval)?)));
        starts.collect()
    }

    /// Whether a slow start leaves an amount at an instant.
    pub fn start_admits(&self, line: &Line, at_ns: i64, amount: u64) -> bool {
        let starts = self.starts(line);
        starts.iter().all(|(_, start)| {
            let held = start.fullest(line, at_ns).unwrap_or(0);
            held == 0 || held + Sum::from(amount) <= start.most
        })
    }

    /// What a slow start leaves of a rate now, if it is on and there is anything.
    pub fn start_leaves(&self, line: &Line, rate: &Rate) -> Option<u64> {
        let starts = self.starts(line);
        let (_, start) = starts.iter().find(|(of, _)| of == rate)?;
        let held = start.fullest(line, self.now_ns)?;
        let left = (start.most - held).max(0);
        (held > 0).then(|| u64::try_from(left).expect("small"))
    }

    /// Whether nothing is taken of a limit but what is needed at once.
    pub fn is_starting(&self, line: &Line) -> bool {
        let mut starts = self.starts(line).into_iter();
        self.paused_until_ns(&line.key).is_some()
            || starts.any(|(_, start)| self.now_ns < start.until_ns)
    }

    /// The instants at which pauses and slow starts may begin to admit something.
    pub fn ends_of_pauses(&self, key: &str) -> Vec<i64> {
        let mut ends: Vec<i64> = self.paused_until_ns(key).into_iter().collect();
        if let Some(line) = self.lines.get(key) {
            for (_, start) in self.starts(line) {
                ends.push(start.until_ns);
                let leaving = line.charges.iter().map(|charge| charge.at_ns);
                ends.extend(leaving.map(|at_ns| at_ns + start.part_ns));
            }
        }
        ends
    }

    /// Pauses a limit, and moves what is booked before the end. Returns the pause, and the requests that were moved.
    pub fn pause(&mut self, key: &str, how: How) -> Option<(Interval, Vec<usize>)> {
        let policy = Policy::of(self.limit(key)?);
        let now_ns = self.now_ns;
        let before = self.last_pause(key);
        let record = self.paused.entry(key.to_owned()).or_default();
        let interval = record.strike(policy, how, now_ns);
        if self.last_pause(key) == before {
            return Some((interval, Vec::new()));
        }
        self.give_back_what_the_dead_held();
        let line = self.lines.get(key);
        let mut booked = line.iter().flat_map(|line| &line.charges);
        let is_before = booked.any(|charge| {
            let is_ahead = now_ns < charge.due_ns && charge.due_ns < interval.until_ns;
            is_ahead && self.can_be_moved(charge)
        });
        let moved = if is_before {
            self.move_bookings(key)
        } else {
            Vec::new()
        };
        Some((interval, moved))
    }

    pub fn resume(&mut self, key: &str) -> Result<(Option<Interval>, Vec<usize>), Answer> {
        if self.limit(key).is_none() {
            return Err(Answer::Unknown {
                key: key.to_owned(),
            });
        }
        let now_ns = self.now_ns;
        let record = self.paused.entry(key.to_owned()).or_default();
        let Some(lifted) = record.in_force(now_ns) else {
            return Ok((None, Vec::new()));
        };
        record.intervals.last_mut().expect("it is there").until_ns = now_ns;
        self.give_back_what_the_dead_held();
        Ok((Some(lifted), self.move_bookings(key)))
    }

    /// Takes away all that is booked of a limit, and books it again in its order.
    fn move_bookings(&mut self, key: &str) -> Vec<usize> {
        let Some(line) = self.lines.get(key) else {
            return Vec::new();
        };
        let ahead = line.charges.iter();
        let ahead = ahead.filter(|charge| charge.due_ns > self.now_ns && self.can_be_moved(charge));
        let mut order: Vec<(i64, usize, usize)> = ahead
            .map(|charge| (charge.due_ns, charge.order, charge.claim))
            .collect();
        order.sort_unstable();
        let claims: Vec<usize> = order.iter().map(|(_, _, claim)| *claim).collect();
        let mut removed = Vec::new();
        for (due_ns, _, claim) in order {
            let mut charges = Vec::new();
            for (key, line) in &mut self.lines {
                let is_its = |charge: &&mut Charge| charge.claim == claim;
                let of_it = line.charges.iter_mut().filter(is_its);
                charges.extend(of_it.map(|charge| (key.clone(), *charge)));
                line.give_back(claim);
            }
            removed.push((due_ns, claim, charges));
        }
        for (due_ns, claim, charges) in removed {
            let takes: Takes = charges
                .iter()
                .map(|(key, charge)| (key.clone(), charge.amount))
                .collect();
            let now_ns = self.now_ns;
            // What a limit has become too small for, fits nowhere.
            let is_wrong = |take: &&(String, u64)| self.is_wrong(&vec![(*take).clone()]);
            let (wrong, right): (Vec<_>, Vec<_>) = takes.iter().partition(is_wrong);
            let right: Takes = right.into_iter().cloned().collect();
            let ends = wrong
                .iter()
                .filter_map(|(key, _)| self.paused_until_ns(key));
            let former = wrong.first().map(|_| due_ns);
            let first_ns = ends.chain(former).chain([now_ns + 1]).max();
            self.now_ns = first_ns.expect("it is after now");
            let at_ns = self.earliest(&right);
            self.now_ns = now_ns;
            for (key, former) in charges {
                let line = self.lines.get_mut(&key).expect("it was charged");
                line.charge(at_ns, former.amount, former.booked_by, claim);
                let charge = line.charges.last_mut().expect("it was charged");
                charge.used_from_ns = former.used_from_ns;
            }
            let mut entries = self.entries.iter_mut();
            if let Some(entry) = entries.find(|entry| entry.claim == claim) {
                entry.at_ns = at_ns;
            }
        }
        claims
    }

    /// Where a request is charged.
    pub fn due_ns(&self, claim: usize) -> Option<i64> {
        let mut lines = self.lines.values();
        lines.find_map(|line| Some(line.charge_of(claim)?.due_ns))
    }

    pub fn is_any_paused(&self, takes: &Takes) -> bool {
        let mut keys = takes.iter().map(|(key, _)| key);
        keys.any(|key| self.paused_until_ns(key).is_some())
    }
}
