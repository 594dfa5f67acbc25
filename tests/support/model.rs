//! What limits are, said as plainly as can be: lists of charges, and sums over them.
//!
//! There are no running totals here and no calendar: every question is answered by trying all instants
//! at which the answer could change. It is slow, and it was written before the code it judges was read,
//! all but settling.

use std::collections::{BTreeMap, BTreeSet};

use quotalite::{Definition, Limit, OnConflict};

use crate::line::{Charge, Line, Sum};
use crate::subject::{Answer, Defined, RateStanding, Refused, Row, Settling, Standing, Takes};

/// The running totals of a ledger count modulo this.
const TOTALS_WRAP_AT: Sum = 1 << 62;

/// What a request must be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Charged at this instant.
    Admitted { at_ns: i64 },
    /// Not before `retry_at_ns`; with the deadline of a caller who would have waited.
    Refused {
        retry_at_ns: i64,
        deadline_ns: Option<i64>,
    },
    /// A limit is unknown, or never admits the amount. Which one is told is open if there are several.
    Wrong,
}

/// All limits of a file, and the present.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now_ns: i64,
    pub lines: BTreeMap<String, Line>,
    /// The openings of limiters of which something is still held.
    pub alive: BTreeSet<usize>,
    /// Those that have booked ahead.
    owners: BTreeSet<usize>,
    /// Those of the dead that were given back what they had not used. The rest they did use, and it is
    /// not asked for again, should a boot come up at an earlier instant.
    buried: BTreeSet<usize>,
}

impl Model {
    pub fn define(&mut self, limit: &Limit, conflict: OnConflict) -> Defined {
        let Some(line) = self.lines.get_mut(limit.key()) else {
            let line = Line::new(limit.clone());
            self.lines.insert(limit.key().to_owned(), line);
            return Defined::Done(Definition::Created);
        };
        if line.limit == *limit {
            return Defined::Done(Definition::Unchanged);
        }
        match conflict {
            OnConflict::Fail => Defined::Conflict {
                stored: line.limit.clone(),
                given: limit.clone(),
            },
            OnConflict::Adopt => Defined::Done(Definition::Adopted(line.limit.clone())),
            OnConflict::Replace => {
                line.was_replaced |=
                    line.limit.rates() != limit.rates() || line.limit.pad() != limit.pad();
                let former = std::mem::replace(&mut line.limit, limit.clone());
                Defined::Done(Definition::Replaced(former))
            }
        }
    }

    /// What somebody who only looks is told.
    pub fn peek(&self, takes: &Takes) -> Verdict {
        if self.is_wrong(takes) {
            return Verdict::Wrong;
        }
        match self.earliest(takes) {
            at_ns if at_ns == self.now_ns => Verdict::Admitted { at_ns },
            retry_at_ns => Verdict::Refused {
                retry_at_ns,
                deadline_ns: None,
            },
        }
    }

    /// Admits the request now, or refuses it.
    pub fn try_acquire(&mut self, takes: &Takes, claim: usize) -> Verdict {
        self.acquire(None, takes, None, claim)
    }

    /// Admits the request at the earliest instant, if that is not after the deadline.
    pub fn book(
        &mut self,
        opening: usize,
        takes: &Takes,
        deadline_ns: i64,
        claim: usize,
    ) -> Verdict {
        self.acquire(Some(opening), takes, Some(deadline_ns), claim)
    }

    fn acquire(
        &mut self,
        opening: Option<usize>,
        takes: &Takes,
        deadline_ns: Option<i64>,
        claim: usize,
    ) -> Verdict {
        if self.is_wrong(takes) {
            return Verdict::Wrong;
        }
        let stands_behind = takes
            .iter()
            .any(|(key, _)| self.lines[key].has_charges_after(self.now_ns));
        if !self.admits(takes, self.now_ns) && stands_behind {
            self.give_back_what_the_dead_booked();
        }
        let mut at_ns = self.earliest(takes);
        if at_ns > deadline_ns.unwrap_or(self.now_ns).max(self.now_ns) {
            return Verdict::Refused {
                retry_at_ns: at_ns,
                deadline_ns,
            };
        }
        let mut booked_by = None;
        if at_ns > self.now_ns {
            let opening = opening.expect("only who books is charged later");
            if self.owners.insert(opening) {
                self.give_back_what_the_dead_booked();
                at_ns = self.earliest(takes);
            }
            booked_by = Some(opening).filter(|_| at_ns > self.now_ns);
            if booked_by.is_some() {
                self.forget_what_was_used(opening);
            }
        }
        for (key, amount) in takes {
            let line = self.lines.get_mut(key).expect("checked");
            line.charges.push(Charge {
                at_ns,
                amount: *amount,
                booked_by,
                accepted: false,
                claim,
                growth: None,
            });
        }
        Verdict::Admitted { at_ns }
    }

    /// Who books anew strikes out what it had booked for instants that have come: those charges stay, even
    /// if a power failure should turn the clock back.
    fn forget_what_was_used(&mut self, opening: usize) {
        let now_ns = self.now_ns;
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            if charge.booked_by == Some(opening) && charge.accepted && charge.at_ns <= now_ns {
                charge.booked_by = None;
            }
        }
    }

    pub fn accept(&mut self, claim: usize) {
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            charge.accepted |= charge.claim == claim;
        }
    }

    /// Corrects what a request was charged to what was used.
    pub fn settle(&mut self, claim: usize, used: &Takes) -> Vec<Settling> {
        let now_ns = self.now_ns;
        let settled = self
            .lines
            .iter_mut()
            .filter_map(|(key, line)| {
                let (_, used) = used.iter().find(|(said, _)| said == key)?;
                Some(line.settle(claim, *used, now_ns))
            })
            .collect();
        // Whoever says what was used has used it, and does not get it back by dying.
        for charge in self.lines.values_mut().flat_map(|line| &mut line.charges) {
            charge.booked_by = charge.booked_by.filter(|_| charge.claim != claim);
        }
        settled
    }

    /// Takes back everything that a request was charged.
    pub fn give_back(&mut self, claim: usize) {
        for line in self.lines.values_mut() {
            line.charges.retain(|charge| charge.claim != claim);
        }
    }

    pub fn standing(&self, key: &str) -> Option<Standing> {
        let line = self.lines.get(key)?;
        let rates: Vec<RateStanding> = line
            .limit
            .rates()
            .iter()
            .map(|rate| {
                let reach_ns = line.reach_ns(rate);
                let fullest = line.fullest(self.now_ns, reach_ns);
                let available = (Sum::from(rate.capacity()) - fullest).max(0);
                let inside = line
                    .charges
                    .iter()
                    .map(|charge| charge.at_ns)
                    .filter(|at_ns| self.now_ns - reach_ns < *at_ns && *at_ns <= self.now_ns);
                RateStanding {
                    rate: *rate,
                    used: u64::try_from(line.used(self.now_ns, reach_ns)).expect("small"),
                    available: u64::try_from(available).expect("small"),
                    next_release_ns: inside.min().map(|at_ns| at_ns + reach_ns),
                }
            })
            .collect();
        Some(Standing {
            limit: line.limit.clone(),
            at_ns: self.now_ns,
            available: rates.iter().map(|rate| rate.available).min()?,
            rates,
            debt: line.debt(),
        })
    }

    /// The next instant at which a charge counts or stops to count in some window.
    pub fn next_change_ns(&self) -> Option<i64> {
        let mut changes = Vec::new();
        for line in self.lines.values() {
            for charge in &line.charges {
                changes.push(charge.at_ns);
                changes.extend(
                    line.limit
                        .rates()
                        .iter()
                        .map(|rate| charge.at_ns + line.reach_ns(rate)),
                );
            }
        }
        changes
            .into_iter()
            .filter(|at_ns| *at_ns > self.now_ns)
            .min()
    }

    fn is_wrong(&self, takes: &Takes) -> bool {
        takes.iter().any(|(key, amount)| {
            self.lines.get(key).is_none_or(|line| {
                let mut rates = line.limit.rates().iter();
                rates.any(|rate| rate.capacity() < *amount)
            })
        })
    }

    fn admits(&self, takes: &Takes, at_ns: i64) -> bool {
        let mut takes = takes.iter();
        takes.all(|(key, amount)| self.lines[key].admits(at_ns, *amount))
    }

    /// A request becomes admissible only when a charge leaves a window, so these are all instants to try.
    fn earliest(&self, takes: &Takes) -> i64 {
        let mut candidates = BTreeSet::from([self.now_ns]);
        for (key, _) in takes {
            let line = &self.lines[key];
            for charge in &line.charges {
                candidates.extend(
                    line.limit
                        .rates()
                        .iter()
                        .map(|rate| charge.at_ns + line.reach_ns(rate))
                        .filter(|leaves_ns| *leaves_ns > self.now_ns),
                );
            }
        }
        candidates
            .into_iter()
            .find(|at_ns| self.admits(takes, *at_ns))
            .expect("when everything has left its windows, the request fits")
    }

    fn give_back_what_the_dead_booked(&mut self) {
        let of_the_dead =
            |opening| !self.alive.contains(&opening) && !self.buried.contains(&opening);
        for line in self.lines.values_mut() {
            line.charges.retain(|charge| {
                charge.at_ns <= self.now_ns || !charge.booked_by.is_some_and(of_the_dead)
            });
            for charge in &mut line.charges {
                charge.booked_by = charge.booked_by.filter(|opening| !of_the_dead(*opening));
            }
        }
        self.buried.extend(self.owners.difference(&self.alive));
    }

    /// Compares an answer with the verdict. What was charged is in the model already, and a refusal
    /// charges nothing, so this is asked after the verdict was given.
    pub fn check(&self, verdict: &Verdict, answer: &Answer, takes: &Takes) -> Result<(), String> {
        match (verdict, answer) {
            (
                Verdict::Admitted { at_ns },
                Answer::Admitted {
                    at_ns: told,
                    waits_ns,
                },
            ) if at_ns == told && *waits_ns == at_ns - self.now_ns => Ok(()),
            (
                Verdict::Refused {
                    retry_at_ns,
                    deadline_ns: None,
                },
                Answer::Refused(refused),
            ) if *retry_at_ns == refused.retry_at_ns => self.check_refusal(refused, takes),
            (
                Verdict::Refused {
                    retry_at_ns,
                    deadline_ns: Some(deadline_ns),
                },
                Answer::TooLate {
                    refused,
                    deadline_ns: told,
                },
            ) if *retry_at_ns == refused.retry_at_ns
                && (deadline_ns == told
                    || (*deadline_ns < self.now_ns && *told == self.now_ns)) =>
            {
                self.check_refusal(refused, takes)
            }
            (Verdict::Wrong, Answer::Unknown { key })
                if takes.iter().any(|take| take.0 == *key) && !self.lines.contains_key(key) =>
            {
                Ok(())
            }
            (Verdict::Wrong, Answer::NeverFits { key, amount, rate })
                if takes.contains(&(key.clone(), *amount))
                    && self.lines[key].limit.rates().contains(rate)
                    && rate.capacity() < *amount =>
            {
                Ok(())
            }
            _ => Err(format!("it must be {verdict:?}, it was {answer:?}")),
        }
    }

    /// A nanosecond before the request fits, the rate that the denial names forbids it by itself.
    fn check_refusal(&self, refused: &Refused, takes: &Takes) -> Result<(), String> {
        if refused.now_ns != self.now_ns {
            return Err(format!("now is {}, the denial: {refused:?}", self.now_ns));
        }
        if !takes.contains(&(refused.key.clone(), refused.amount)) {
            return Err(format!("a denial of something else: {refused:?}"));
        }
        let line = &self.lines[&refused.key];
        let is_the_one = line.limit.rates().contains(&refused.rate)
            && !line.rate_admits(&refused.rate, refused.retry_at_ns - 1, refused.amount);
        if is_the_one {
            Ok(())
        } else {
            Err(format!(
                "another rate stands in the way than the one of {refused:?}"
            ))
        }
    }

    /// Compares the ledgers of a file with the charges.
    pub fn check_rows(&self, ledgers: &BTreeMap<String, Vec<Row>>) -> Result<(), String> {
        for key in ledgers.keys() {
            if !self.lines.contains_key(key) {
                return Err(format!("there are rows of `{key}`, which nobody defined"));
            }
        }
        let none = Vec::new();
        for (key, line) in &self.lines {
            let rows = ledgers.get(key).unwrap_or(&none);
            check_totals(rows)
                .and_then(|()| line.check_charges(rows, self.now_ns))
                .and_then(|()| line.check_law())
                .map_err(|what| format!("`{key}`: {what}: {rows:?}"))?;
        }
        Ok(())
    }

    /// After a boot that came up with an earlier instant than the last: what had left its windows may
    /// have been swept, and does not come back. Rows that are still there count again.
    pub fn forget_what_was_swept(&mut self, latest_ns: i64, ledgers: &BTreeMap<String, Vec<Row>>) {
        for (key, line) in &mut self.lines {
            let reach_ns = line.longest_reach_ns();
            let mut rows = ledgers.get(key).cloned().unwrap_or_default();
            line.charges.retain(|charge| {
                if charge.at_ns + reach_ns > latest_ns {
                    return true;
                }
                let found = rows
                    .iter()
                    .position(|row| row.at_ns == charge.at_ns && is_amount(row, charge.amount));
                found.map(|position| rows.remove(position)).is_some()
            });
        }
    }
}

fn is_amount(row: &Row, amount: u64) -> bool {
    u64::try_from(row.amount) == Ok(amount)
}

/// Each total is the one before it and the amount of its row.
fn check_totals(rows: &[Row]) -> Result<(), String> {
    for row in rows {
        if row.amount <= 0 || !(0..TOTALS_WRAP_AT).contains(&Sum::from(row.total)) {
            return Err(format!("a row that nobody should write: {row:?}"));
        }
    }
    for pair in rows.windows(2) {
        let step = Sum::from(pair[1].total) - Sum::from(pair[0].total);
        if step.rem_euclid(TOTALS_WRAP_AT) != Sum::from(pair[1].amount) {
            return Err(format!("the totals do not add up: {pair:?}"));
        }
    }
    Ok(())
}

impl Line {
    /// Every charge that still counts has its row, and every row its charge.
    fn check_charges(&self, rows: &[Row], now_ns: i64) -> Result<(), String> {
        let reach_ns = self.longest_reach_ns();
        let mut charges = self.charges.clone();
        for row in rows {
            let found = charges.iter().position(|charge| {
                charge.at_ns == row.at_ns
                    && is_amount(row, charge.amount)
                    && charge.booked_by.is_some() == row.owner_id.is_some()
            });
            let Some(position) = found else {
                return Err(format!("nothing was charged for {row:?}"));
            };
            charges.swap_remove(position);
        }
        match charges
            .iter()
            .find(|charge| charge.at_ns + reach_ns > now_ns)
        {
            Some(charge) => Err(format!("there is no row of {charge:?}")),
            None => Ok(()),
        }
    }
}
