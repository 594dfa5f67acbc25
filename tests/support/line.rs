//! One limit and everything that was charged to it, as the model knows it: a list, and sums over it.

use std::collections::BTreeSet;
use std::iter;

use quotalite::{Bucket, Limit, MAX_CAPACITY, Overage, Rate};

use crate::bucket::{Deed, Event, Tank};
use crate::periods::leaves_ns;
use crate::subject::{Settling, ns};

/// Amounts add up to more than 64 bits hold when a limit is replaced by a smaller one.
pub type Sum = i128;

/// One charge of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Where it is entered.
    pub at_ns: i64,
    /// The instant that it was made or booked for, which is later if its limit has a resolution.
    pub due_ns: i64,
    pub amount: u64,
    /// The opening of a limiter that booked it ahead of its instant.
    pub booked_by: Option<usize>,
    /// The instant from which whoever has booked it strikes it out as used, if it will be. It may have been moved since.
    pub used_from_ns: Option<i64>,
    /// The request that it belongs to.
    pub claim: usize,
    /// What was added to it when it was settled. It is part of the amount.
    pub growth: Option<Growth>,
    /// Whether it shares a row with all others that are entered at the same instant.
    pub is_merged: bool,
    /// How much had been done to its limit before.
    pub order: usize,
    /// When it was taken, if it is a block, which somebody hands out until `at_ns`.
    pub since_ns: Option<i64>,
}

/// The last multiple of a resolution that is not after an instant.
fn entered_ns(limit: &Limit, at_ns: i64) -> i64 {
    let resolution = limit.resolution();
    resolution.map_or(at_ns, |resolution| {
        at_ns.div_euclid(ns(resolution)) * ns(resolution)
    })
}

/// By how much a charge has grown, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub at_ns: i64,
    /// What had room in all windows that had not ended.
    pub fitting: u64,
    /// What was charged though it had none.
    pub beyond: u64,
}

impl Charge {
    /// From when on it counts. An open block counts at every instant before its end, even if a clock that has fallen
    /// back shows one at which it was not taken yet: nobody knows when that was.
    fn counts_from_ns(&self) -> i64 {
        if self.since_ns.is_some() {
            i64::MIN
        } else {
            self.at_ns
        }
    }

    /// Whether it has begun to count at an instant.
    pub fn counts_at(&self, instant_ns: i64) -> bool {
        self.counts_from_ns() <= instant_ns
    }

    /// What the law counts of it in a window that ends at an instant: nobody could know then what was
    /// added later, and what was charged though it did not fit is over by intention.
    fn lawful(&self, end_ns: i64) -> Sum {
        let left_out = self.growth.map_or(0, |growth| {
            let is_later = growth.at_ns > end_ns;
            growth.beyond + if is_later { growth.fitting } else { 0 }
        });
        Sum::from(self.amount) - Sum::from(left_out)
    }
}

/// A limit and everything that was ever charged to it. What is put back into a bucket, or taken from it when its
/// permit is settled, stands by itself.
#[derive(Clone, Debug)]
pub struct Line {
    pub key: String,
    /// Its own definition, or the pattern's that it is made by.
    pub limit: Limit,
    pub charges: Vec<Charge>,
    /// What was left over by each settlement.
    pub debts: Vec<u64>,
    /// A definition that was replaced may have left more in a window than the new one allows.
    pub was_replaced: bool,
    /// All requests that were ever charged to it.
    pub claims: BTreeSet<usize>,
    /// What to add to an instant to know where it lies in a calendar.
    pub wall_shift_ns: i64,
    first: Option<Bucket>,
    deeds: Vec<(usize, Event)>,
    order: usize,
}

impl Line {
    pub fn new(key: &str, limit: Limit) -> Self {
        Self {
            key: key.to_owned(),
            first: limit.bucket(),
            limit,
            charges: Vec::new(),
            debts: Vec::new(),
            was_replaced: false,
            claims: BTreeSet::new(),
            wall_shift_ns: 0,
            deeds: Vec::new(),
            order: 0,
        }
    }

    pub fn charge(&mut self, at_ns: i64, amount: u64, booked_by: Option<usize>, claim: usize) {
        self.order += 1;
        self.claims.insert(claim);
        self.charges.push(Charge {
            at_ns: entered_ns(&self.limit, at_ns),
            due_ns: at_ns,
            amount,
            booked_by,
            used_from_ns: None,
            claim,
            growth: None,
            is_merged: self.limit.resolution().is_some(),
            order: self.order,
            since_ns: None,
        });
    }

    /// Puts a block in the place of what a request was just charged, if it can be larger: how much, and until when.
    pub fn become_block(
        &mut self,
        claim: usize,
        size: u64,
        lifetime_ns: i64,
        now_ns: i64,
    ) -> Option<(u64, i64)> {
        let until_ns = now_ns + lifetime_ns;
        let position = self
            .charges
            .iter()
            .position(|charge| charge.claim == claim)?;
        let charge = self.charges.remove(position);
        let free = |rate: &Rate| {
            let end_ns = self.leaves_ns(rate, until_ns);
            Sum::from(rate.capacity()) - self.fullest_between(now_ns, end_ns, rate)
        };
        let room = self.limit.rates().iter().map(free).min()?.min(size.into());
        if until_ns == now_ns || room <= charge.amount.into() {
            self.charges.insert(position, charge);
            return None;
        }
        let amount = u64::try_from(room).expect("it is more than was asked for");
        self.charges.push(Charge {
            at_ns: until_ns,
            due_ns: until_ns,
            amount,
            since_ns: Some(now_ns),
            is_merged: false,
            ..charge
        });
        Some((amount, until_ns))
    }

    /// What was used of a block is charged at its end, or now if that is earlier.
    pub fn end_block(&mut self, claim: usize, used: u64, now_ns: i64) {
        let of_it = |charge: &Charge| charge.claim == claim;
        let Some(position) = self.charges.iter().position(of_it) else {
            return;
        };
        let entered_ns = entered_ns(&self.limit, now_ns);
        let charge = &mut self.charges[position];
        charge.amount = used;
        if charge.at_ns > now_ns {
            charge.at_ns = entered_ns;
            charge.due_ns = now_ns;
            charge.since_ns = None;
            charge.is_merged = self.limit.resolution().is_some();
        }
        self.charges.retain(|charge| charge.amount > 0);
    }

    /// From now on another definition counts.
    pub fn become_another(&mut self, limit: &Limit, now_ns: i64) {
        self.was_replaced |= self.limit.rates() != limit.rates() || self.limit.pad() != limit.pad();
        if let Some(bucket) = limit.bucket()
            && self.limit.bucket() != Some(bucket)
        {
            self.done(now_ns, Deed::Become(bucket));
        }
        self.limit = limit.clone();
    }

    fn done(&mut self, at_ns: i64, deed: Deed) {
        self.order += 1;
        self.deeds.push((self.order, Event { at_ns, deed }));
    }

    /// All that was done to it, if it is a bucket. What was booked for an instant was booked before that came, and so
    /// comes before what is done then.
    pub fn tank(&self) -> Option<Tank> {
        let taken = self.charges.iter().map(|charge| {
            let deed = Deed::Take(charge.amount);
            let at_ns = charge.at_ns;
            (charge.order, Event { at_ns, deed })
        });
        let mut events: Vec<(usize, Event)> = taken.chain(self.deeds.iter().copied()).collect();
        events.sort_by_key(|(order, event)| (event.at_ns, *order));
        Some(Tank {
            first: self.first?,
            events: events.into_iter().map(|(_, event)| event).collect(),
        })
    }

    /// When what is charged at an instant does not count any more.
    pub fn leaves_ns(&self, rate: &Rate, at_ns: i64) -> i64 {
        let longer = self.limit.pad() + self.limit.resolution().unwrap_or_default();
        leaves_ns(rate, longer, at_ns, self.wall_shift_ns)
    }

    pub fn has_calendar(&self) -> bool {
        let mut rates = self.limit.rates().iter();
        rates.any(|rate| rate.window().rolling().is_none())
    }

    /// When nobody asks for it any more.
    pub fn forgotten_ns(&self, at_ns: i64) -> i64 {
        let rates = self.limit.rates().iter();
        let leaves = rates.map(|rate| self.leaves_ns(rate, at_ns));
        leaves.max().unwrap_or(at_ns)
    }

    /// The charges that count at an instant in the window of a rate.
    fn inside<'l>(&'l self, instant_ns: i64, rate: &'l Rate) -> impl Iterator<Item = &'l Charge> {
        self.charges.iter().filter(move |charge| {
            charge.counts_from_ns() <= instant_ns && instant_ns < self.leaves_ns(rate, charge.at_ns)
        })
    }

    /// Their sum.
    pub fn used(&self, instant_ns: i64, rate: &Rate) -> Sum {
        let counting = self.inside(instant_ns, rate);
        counting.map(|charge| Sum::from(charge.amount)).sum()
    }

    /// When the next of them leaves.
    pub fn next_release_ns(&self, instant_ns: i64, rate: &Rate) -> Option<i64> {
        let inside = self.inside(instant_ns, rate);
        let first_ns = inside.map(|charge| charge.at_ns).min()?;
        Some(self.leaves_ns(rate, first_ns))
    }

    /// The most that any window holds in which a charge at `at_ns` would count.
    pub fn fullest(&self, at_ns: i64, rate: &Rate) -> Sum {
        let end_ns = self.leaves_ns(rate, entered_ns(&self.limit, at_ns));
        self.fullest_between(at_ns, end_ns, rate)
    }

    /// The most that any window holds which ends at `first_ns` or later, but before `end_ns`.
    fn fullest_between(&self, first_ns: i64, end_ns: i64, rate: &Rate) -> Sum {
        let later = self.charges.iter().map(|charge| charge.at_ns);
        let instants = later.filter(|&later_ns| first_ns < later_ns && later_ns < end_ns);
        iter::once(first_ns)
            .chain(instants)
            .map(|instant_ns| self.used(instant_ns, rate))
            .max()
            .expect("at least the first instant")
    }

    pub fn rate_admits(&self, rate: &Rate, at_ns: i64, amount: u64) -> bool {
        self.fullest(at_ns, rate) + Sum::from(amount) <= Sum::from(rate.capacity())
    }

    pub fn admits(&self, at_ns: i64, amount: u64) -> bool {
        let mut rates = self.limit.rates().iter();
        rates.all(|rate| self.rate_admits(rate, at_ns, amount))
            && self.tank().is_none_or(|tank| tank.admits(at_ns, amount))
    }

    /// The instants at which an amount may begin to fit: when a charge leaves a window, or enough has flowed into a
    /// bucket.
    pub fn candidates(&self, now_ns: i64, amount: u64) -> Vec<i64> {
        if let Some(tank) = self.tank() {
            return tank.candidates(now_ns, amount);
        }
        let rates = self.limit.rates().iter();
        let leaving = rates.flat_map(|rate| {
            let charges = self.charges.iter();
            charges.map(|charge| self.leaves_ns(rate, charge.at_ns))
        });
        leaving.collect()
    }

    /// Whether more is in use than the definition allows.
    pub fn is_over(&self, now_ns: i64) -> bool {
        let mut rates = self.limit.rates().iter();
        rates.any(|rate| self.fullest(now_ns, rate) > Sum::from(rate.capacity()))
            || self.tank().is_some_and(|tank| tank.is_over(now_ns))
    }

    pub fn has_bookings_after(&self, now_ns: i64) -> bool {
        let mut charges = self.charges.iter();
        charges.any(|charge| {
            let is_due_later = charge.booked_by.is_some() && charge.due_ns > now_ns;
            charge.since_ns.is_none() && (charge.at_ns > now_ns || is_due_later)
        })
    }

    pub fn charge_of(&self, claim: usize) -> Option<&Charge> {
        self.charges.iter().find(|charge| charge.claim == claim)
    }

    /// How much can be added to a charge that is entered at `at_ns`: nothing that would put a window over which holds it
    /// and has not ended, and nothing if no such window is left. What is taken from a bucket is taken now.
    pub fn room(&self, at_ns: i64, now_ns: i64) -> u64 {
        let first_ns = at_ns.max(now_ns);
        if let Some(tank) = self.tank() {
            return tank.room(first_ns);
        }
        let free = |rate: &Rate| {
            let end_ns = self.leaves_ns(rate, at_ns);
            (first_ns < end_ns)
                .then(|| Sum::from(rate.capacity()) - self.fullest_between(first_ns, end_ns, rate))
        };
        let least = self.limit.rates().iter().filter_map(free).min();
        u64::try_from(least.unwrap_or(0).max(0)).expect("small")
    }

    /// Corrects the charge of a request to what was used of it. It may have been swept, after a boot. Of a limit that
    /// was removed since nothing is charged any more.
    pub fn settle(
        &mut self,
        claim: usize,
        at_ns: i64,
        estimated: u64,
        used: u64,
        now_ns: i64,
    ) -> Settling {
        let settling = Settling {
            key: self.key.clone(),
            estimated,
            used,
            charged: 0,
            debt: 0,
        };
        if !self.claims.contains(&claim) {
            return settling;
        }
        let of_it = |charge: &Charge| charge.claim == claim;
        let position = self.charges.iter().position(of_it);
        let excess = used.saturating_sub(estimated);
        let entered_ns = position.map_or(at_ns, |position| self.charges[position].at_ns);
        let fitting = excess.min(self.room(entered_ns, now_ns.max(at_ns)));
        let rest = excess - fitting;
        let (beyond, debt) = match self.limit.overage() {
            Overage::Debt => (0, rest),
            Overage::Charge => (rest, 0),
            Overage::Deny => (0, 0),
        };
        let charged = used.min(estimated) + fitting + beyond;
        match position {
            None => {}
            // What was used beyond the estimate is taken from a bucket now; what was not, was never taken.
            Some(position) if charged > estimated && self.is_poured(position, now_ns) => {
                self.done(now_ns, Deed::Take(charged - estimated));
            }
            Some(position) if charged == 0 => {
                self.charges.remove(position);
            }
            Some(position) => {
                self.charges[position].amount = charged;
                self.charges[position].growth = (fitting + beyond > 0).then_some(Growth {
                    at_ns: now_ns,
                    fitting,
                    beyond,
                });
            }
        }
        self.debts.push(debt);
        Settling {
            charged,
            debt,
            ..settling
        }
    }

    /// Whether a charge has been taken from a bucket.
    fn is_poured(&self, position: usize, now_ns: i64) -> bool {
        self.first.is_some() && self.charges[position].at_ns <= now_ns
    }

    /// Takes back what a request was charged.
    pub fn give_back(&mut self, claim: usize) {
        self.charges.retain(|charge| charge.claim != claim);
    }

    pub fn debt(&self) -> u64 {
        let debt: u64 = self.debts.iter().sum();
        debt.min(MAX_CAPACITY)
    }

    /// No window holds more than its capacity: by the very instants of all charges, and by no more than the pad longer,
    /// whatever the resolution.
    pub fn check_law(&self) -> Result<(), String> {
        if self.was_replaced {
            return Ok(());
        }
        for rate in self.limit.rates() {
            let growths = self.charges.iter().filter_map(|charge| charge.growth);
            let charges = self.charges.iter();
            let from_ns = |charge: &Charge| charge.since_ns.unwrap_or(charge.due_ns);
            let charges = charges.flat_map(|charge| [charge.due_ns, from_ns(charge)]);
            for end_ns in charges.chain(growths.map(|growth| growth.at_ns)) {
                let inside = self.charges.iter().filter(|charge| {
                    let (pad, shift_ns) = (self.limit.pad(), self.wall_shift_ns);
                    from_ns(charge) <= end_ns
                        && end_ns < leaves_ns(rate, pad, charge.due_ns, shift_ns)
                });
                let used: Sum = inside.map(|charge| charge.lawful(end_ns)).sum();
                if used > Sum::from(rate.capacity()) {
                    return Err(format!(
                        "{used} in the window of {rate} that ends at {end_ns}: {:?}",
                        self.charges
                    ));
                }
            }
        }
        Ok(())
    }
}
