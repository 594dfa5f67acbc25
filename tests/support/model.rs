//! What limits are, said as plainly as can be: lists of charges, and sums over them.
//!
//! There are no running totals here and no calendar: every question is answered by trying all instants
//! at which the answer could change. It is slow, and shares nothing with the code it judges.

use std::collections::{BTreeMap, BTreeSet};

use quotalite::Limit;

use crate::definitions::{Stored, described};
use crate::entry::{Entry, Found, REMEMBERED_NS, Whose};
use crate::line::{Line, Sum};
use crate::strikes::Record;
use crate::subject::{BucketStanding, RateStanding, Settling, Standing, Takes};

/// What a request must be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Charged at this instant, with the number of the permit if it is in the list.
    Admitted { at_ns: i64, entry: Option<usize> },
    /// It was charged before, under its id.
    Resumed {
        at_ns: i64,
        entry: usize,
        whose: Whose,
        /// Whether it holds slots.
        has_slots: bool,
        /// Whether the caller stands in line until then.
        waits: bool,
    },
    /// It was booked before under its id, for an instant that is later than the caller allows.
    Later {
        at_ns: i64,
        deadline_ns: Option<i64>,
    },
    /// Not before `retry_at_ns`; with the deadline of a caller who would have waited.
    Refused {
        retry_at_ns: i64,
        deadline_ns: Option<i64>,
    },
    /// Not before somebody gives slots back.
    Taken {
        key: String,
        count: u64,
        amount: u64,
    },
    /// It asks for slots, which nobody can book.
    NotBookable { key: String },
    /// Its id stands for another request.
    IdTaken { id: String, stored: String },
    /// A limit is unknown, or never admits the amount. Which one is told is open if there are several.
    Wrong,
}

/// All limits of a file, and the present.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now_ns: i64,
    /// What to add to an instant to know where it lies in a calendar.
    pub wall_shift_ns: i64,
    /// All definitions, by key or pattern.
    pub definitions: BTreeMap<String, Stored>,
    /// Limits of rates and buckets: those of all keys that one is defined for, or that match a pattern.
    pub lines: BTreeMap<String, Line>,
    /// Limits of slots, in the same way.
    pub pools: BTreeMap<String, Limit>,
    pub entries: Vec<Entry>,
    /// By key: when it was paused, and by whom.
    pub paused: BTreeMap<String, Record>,
    /// The openings of limiters of which something is still held.
    pub alive: BTreeSet<usize>,
    /// Those that have booked ahead, or had a permit that is in the list.
    pub owners: BTreeSet<usize>,
    /// Those of the dead that were given back what they had not used. The rest they did use, and it is
    /// not asked for again, should a boot come up at an earlier instant.
    pub buried: BTreeSet<usize>,
}

/// A request and who makes it.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub opening: usize,
    pub takes: &'a Takes,
    pub id: Option<&'a str>,
    /// How long somebody who books would stand in line.
    pub deadline_ns: Option<i64>,
    pub claim: usize,
}

impl Model {
    /// What somebody who only looks is told.
    pub fn peek(&self, takes: &Takes) -> Verdict {
        if self.is_wrong(takes) {
            return Verdict::Wrong;
        }
        self.decide(takes, None)
    }

    /// Admits a request at the earliest instant that its caller allows, or refuses it.
    pub fn acquire(&mut self, asking: &Asking<'_>) -> Verdict {
        if self.is_wrong(asking.takes) {
            return Verdict::Wrong;
        }
        if asking.id.is_some() {
            self.become_owner(asking.opening);
        }
        let before = self.clone();
        let verdict = self.acquire_right(asking);
        if matches!(
            verdict,
            Verdict::NotBookable { .. } | Verdict::IdTaken { .. }
        ) {
            *self = before;
        }
        verdict
    }

    fn acquire_right(&mut self, asking: &Asking<'_>) -> Verdict {
        let (opening, claim) = (asking.opening, asking.claim);
        let mut request = asking.takes.clone();
        request.sort();
        let mut takes = asking.takes.clone();
        let mut retaken = None;
        if let Some(id) = asking.id {
            match self.find(opening, id, &request) {
                Found::Nothing => {}
                Found::Permit(entry, whose) => {
                    let verdict = self.resumed(entry, whose, asking);
                    if whose == Whose::Others && matches!(verdict, Verdict::Resumed { .. }) {
                        self.share(entry);
                    }
                    return verdict;
                }
                Found::WithoutSlots(entry) => {
                    takes.retain(|(key, _)| self.pools.contains_key(key));
                    retaken = Some(entry);
                }
                Found::Taken { stored } => {
                    let id = id.to_owned();
                    return Verdict::IdTaken { id, stored };
                }
            }
        }
        let of_slots = takes.iter().find(|(key, _)| self.pools.contains_key(key));
        let of_slots = of_slots.map(|(key, _)| key.clone());
        if let (Some(key), Some(_)) = (&of_slots, asking.deadline_ns) {
            return Verdict::NotBookable { key: key.clone() };
        }
        let mut verdict = self.decide(&takes, asking.deadline_ns);
        if self.may_come_back(&takes, &verdict) {
            self.give_back_what_the_dead_held();
            verdict = self.decide(&takes, asking.deadline_ns);
        }
        let Verdict::Admitted { mut at_ns, .. } = verdict else {
            return verdict;
        };
        let is_entered = of_slots.is_some() || asking.id.is_some();
        if (at_ns > self.now_ns || is_entered) && self.become_owner(opening) {
            at_ns = self.earliest(&takes);
        }
        let booked_by = (at_ns > self.now_ns).then_some(opening);
        if retaken.is_none() {
            self.charge(&takes, at_ns, booked_by, claim);
        }
        let entry = is_entered.then(|| {
            let id = asking.id.map(str::to_owned);
            let entry = || Entry {
                claim,
                at_ns,
                request,
                id,
                slots: Takes::new(),
                owner: None,
                is_detached: false,
                is_booked: booked_by.is_some(),
                is_shared: false,
                expires_ns: None,
                end: None,
                fence: None,
            };
            self.hold(opening, retaken, &takes, entry)
        });
        match retaken {
            Some(entry) => self.resumed(entry, Whose::Mine, asking),
            None => Verdict::Admitted { at_ns, entry },
        }
    }

    fn charge(&mut self, takes: &Takes, at_ns: i64, booked_by: Option<usize>, claim: usize) {
        if let Some(opening) = booked_by {
            self.forget_what_was_used(opening);
        }
        for (key, amount) in takes {
            let Some(line) = self.lines.get_mut(key) else {
                continue;
            };
            line.charge(at_ns, *amount, booked_by, claim);
        }
    }

    fn resumed(&self, entry: usize, whose: Whose, asking: &Asking<'_>) -> Verdict {
        let found = &self.entries[entry];
        let latest_ns = asking.deadline_ns.unwrap_or(self.now_ns).max(self.now_ns);
        let has_rates = found
            .request
            .iter()
            .any(|(key, _)| self.lines.contains_key(key));
        if has_rates && found.at_ns > latest_ns {
            return Verdict::Later {
                at_ns: found.at_ns,
                deadline_ns: asking.deadline_ns,
            };
        }
        Verdict::Resumed {
            at_ns: found.at_ns,
            entry,
            whose,
            has_slots: found.is_open(self.now_ns) && !found.slots.is_empty(),
            waits: asking.deadline_ns.is_some(),
        }
    }

    /// Only who stands behind slots or bookings looks for what the dead have left behind.
    fn may_come_back(&self, takes: &Takes, verdict: &Verdict) -> bool {
        let now = Verdict::Admitted {
            at_ns: self.now_ns,
            entry: None,
        };
        let mut lines = takes.iter().filter_map(|(key, _)| self.lines.get(key));
        let stands_behind = lines.any(|line| line.has_bookings_after(self.now_ns));
        matches!(verdict, Verdict::Taken { .. }) || (*verdict != now && stands_behind)
    }

    /// Slots are free now or not at all; rates admit sooner or later.
    fn decide(&self, takes: &Takes, deadline_ns: Option<i64>) -> Verdict {
        for (key, amount) in takes {
            let count = self.pools.get(key).and_then(Limit::slot_count);
            if let Some(count) = count
                && !self.is_any_paused(takes)
                && self.held(key) + amount > count
            {
                return Verdict::Taken {
                    key: key.clone(),
                    count,
                    amount: *amount,
                };
            }
        }
        match self.earliest(takes) {
            at_ns if at_ns <= deadline_ns.unwrap_or(self.now_ns).max(self.now_ns) => {
                Verdict::Admitted { at_ns, entry: None }
            }
            retry_at_ns => Verdict::Refused {
                retry_at_ns,
                deadline_ns,
            },
        }
    }

    /// Who books anew strikes out what it had booked for instants that have come: those charges stay, even
    /// if a power failure should turn the clock back.
    fn forget_what_was_used(&mut self, opening: usize) {
        let now_ns = self.now_ns;
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            if charge.booked_by != Some(opening)
                || charge.used_from_ns.is_none_or(|from_ns| from_ns > now_ns)
            {
                continue;
            }
            if charge.due_ns <= now_ns {
                charge.booked_by = None;
            } else {
                charge.used_from_ns = Some(charge.due_ns);
            }
        }
    }

    /// Says that what was booked will be used: at this instant, as far as its owner knows.
    pub fn accept(&mut self, claim: usize, at_ns: i64) {
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            if charge.claim == claim {
                charge.used_from_ns = Some(at_ns);
            }
        }
    }

    /// Corrects what a request was charged to what was used.
    pub fn settle(
        &mut self,
        claim: usize,
        at_ns: i64,
        taken: &Takes,
        used: &Takes,
    ) -> Vec<Settling> {
        let now_ns = self.now_ns;
        let mut settled: Vec<Settling> = Vec::new();
        for (key, used) in used {
            let Some((_, estimated)) = taken.iter().find(|(of, _)| of == key) else {
                continue;
            };
            settled.push(match self.lines.get_mut(key) {
                Some(line) => line.settle(claim, at_ns, *estimated, *used, now_ns),
                None => Settling {
                    key: key.clone(),
                    estimated: *estimated,
                    used: *used,
                    charged: 0,
                    debt: 0,
                },
            });
        }
        settled.sort_by(|a, b| a.key.cmp(&b.key));
        // Whoever says what was used has used it, and does not get it back by dying.
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            charge.booked_by = charge.booked_by.filter(|_| charge.claim != claim);
        }
        settled
    }

    /// Takes back everything that a request was charged.
    pub fn give_back(&mut self, claim: usize) {
        for line in self.lines.values_mut() {
            line.give_back(claim);
        }
    }

    pub fn standing(&self, key: &str) -> Option<Standing> {
        let limit = self.limit(key)?;
        let standing = Standing {
            limit: described(key, limit),
            at_ns: self.now_ns,
            available: 0,
            rates: Vec::new(),
            bucket: None,
            debt: 0,
            held: 0,
            permits: 0,
            paused: self.paused(key),
            is_decreasing: self.is_decreasing(key),
        };
        let is_paused = standing.paused.is_some();
        if let Some(count) = limit.slot_count() {
            let held = self.held(key);
            let holders = self.entries.iter();
            let holders = holders.filter(|entry| entry.slots_of(key, self.now_ns) > 0);
            return Some(Standing {
                available: if is_paused {
                    0
                } else {
                    count.saturating_sub(held)
                },
                held,
                permits: holders.count() as u64,
                ..standing
            });
        }
        let line = self.lines.get(key)?;
        let rates: Vec<RateStanding> = line
            .limit
            .rates()
            .iter()
            .map(|rate| {
                let available = Sum::from(rate.capacity()) - line.fullest(self.now_ns, rate);
                RateStanding {
                    rate: *rate,
                    used: u64::try_from(line.used(self.now_ns, rate)).expect("small"),
                    available: if is_paused {
                        0
                    } else {
                        let left = self.start_leaves(line, rate).unwrap_or(u64::MAX);
                        left.min(u64::try_from(available.max(0)).expect("small"))
                    },
                    next_release_ns: line.next_release_ns(self.now_ns, rate),
                }
            })
            .collect();
        let bucket = line.tank().map(|tank| BucketStanding {
            used: tank.used(self.now_ns),
            available: if is_paused { 0 } else { tank.room(self.now_ns) },
            next_release_ns: tank.next_release_ns(self.now_ns),
        });
        let available = rates.iter().map(|rate| rate.available);
        let of_bucket = bucket.iter().map(|bucket| bucket.available);
        Some(Standing {
            available: available.chain(of_bucket).min()?,
            rates,
            bucket,
            debt: line.debt(),
            ..standing
        })
    }

    /// The next instant at which a charge counts or stops to count in some window.
    pub fn next_change_ns(&self) -> Option<i64> {
        let mut changes = Vec::new();
        for line in self.lines.values() {
            for charge in &line.charges {
                changes.extend([charge.at_ns, charge.due_ns]);
                let rates = line.limit.rates().iter();
                changes.extend(rates.map(|rate| line.leaves_ns(rate, charge.at_ns)));
            }
            if let Some(tank) = line.tank() {
                changes.extend(tank.next_release_ns(self.now_ns));
            }
        }
        let keys = self.paused.keys();
        changes.extend(keys.flat_map(|key| self.ends_of_pauses(key)));
        for entry in &self.entries {
            changes.extend(entry.expires_ns.filter(|_| entry.end.is_none()));
            let ended = entry.ended(self.now_ns).filter(|_| entry.id.is_some());
            changes.extend(ended.map(|(_, ended_ns)| ended_ns + REMEMBERED_NS));
        }
        changes
            .into_iter()
            .filter(|at_ns| *at_ns > self.now_ns)
            .min()
    }

    pub fn is_wrong(&self, takes: &Takes) -> bool {
        takes.iter().any(|(key, amount)| {
            self.limit(key).is_none_or(|limit| {
                let mut rates = limit.rates().iter();
                limit.slot_count().is_some_and(|count| count < *amount)
                    || limit
                        .bucket()
                        .is_some_and(|bucket| bucket.burst() < *amount)
                    || rates.any(|rate| rate.capacity() < *amount)
            })
        })
    }

    fn admits(&self, takes: &Takes, at_ns: i64) -> bool {
        takes.iter().all(|(key, amount)| {
            let line = self.lines.get(key);
            let is_over = self.paused_until_ns(key).is_none_or(|ends| ends <= at_ns);
            let starts = |line: &Line| self.start_admits(line, at_ns, *amount);
            is_over && line.is_none_or(|line| line.admits(at_ns, *amount) && starts(line))
        })
    }

    /// Whether a request becomes admissible is told by one of its limits, so these are all instants to try.
    pub fn earliest(&self, takes: &Takes) -> i64 {
        let mut candidates = BTreeSet::from([self.now_ns]);
        for (key, amount) in takes {
            let ends = self.ends_of_pauses(key).into_iter();
            candidates.extend(ends.filter(|end_ns| *end_ns > self.now_ns));
            if let Some(line) = self.lines.get(key) {
                let later = line.candidates(self.now_ns, *amount).into_iter();
                candidates.extend(later.filter(|later_ns| *later_ns > self.now_ns));
            }
        }
        candidates
            .into_iter()
            .find(|at_ns| self.admits(takes, *at_ns))
            .expect("when everything has left its windows, the request fits")
    }
}
