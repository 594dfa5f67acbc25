//! One limit and everything that was charged to it, as the model knows it: a list, and sums over it.

use std::iter;

use quotalite::{Limit, MAX_CAPACITY, Overage, Rate};

use crate::subject::{Settling, ns, rolling};

/// Amounts add up to more than 64 bits hold when a limit is replaced by a smaller one.
pub type Sum = i128;

/// One charge of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    pub at_ns: i64,
    pub amount: u64,
    /// The opening of a limiter that booked it ahead of its instant.
    pub booked_by: Option<usize>,
    /// Whether it will be used, once its instant comes.
    pub accepted: bool,
    /// The request that it belongs to.
    pub claim: usize,
    /// What was added to it when it was settled. It is part of the amount.
    pub growth: Option<Growth>,
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

/// A limit and everything that was ever charged to it.
#[derive(Clone, Debug)]
pub struct Line {
    pub limit: Limit,
    pub charges: Vec<Charge>,
    /// What was left over by each settlement.
    pub debts: Vec<u64>,
    /// A definition that was replaced may have left more in a window than the new one allows.
    pub was_replaced: bool,
}

impl Line {
    pub const fn new(limit: Limit) -> Self {
        Self {
            limit,
            charges: Vec::new(),
            debts: Vec::new(),
            was_replaced: false,
        }
    }

    pub fn reach_ns(&self, rate: &Rate) -> i64 {
        ns(rolling(rate)) + ns(self.limit.pad())
    }

    pub fn longest_reach_ns(&self) -> i64 {
        let reaches = self.limit.rates().iter().map(|rate| self.reach_ns(rate));
        reaches.max().expect("a limit has a rate")
    }

    /// The charges that count at `instant_ns` in a window of this reach.
    fn inside(&self, instant_ns: i64, reach_ns: i64) -> impl Iterator<Item = &Charge> {
        self.charges.iter().filter(move |charge| {
            instant_ns - reach_ns < charge.at_ns && charge.at_ns <= instant_ns
        })
    }

    /// Their sum.
    pub fn used(&self, instant_ns: i64, reach_ns: i64) -> Sum {
        let counting = self.inside(instant_ns, reach_ns);
        counting.map(|charge| Sum::from(charge.amount)).sum()
    }

    /// The most that any window holds in which a charge at `at_ns` would count.
    pub fn fullest(&self, at_ns: i64, reach_ns: i64) -> Sum {
        self.fullest_between(at_ns, at_ns + reach_ns, reach_ns)
    }

    /// The most that any window holds which ends at `first_ns` or later, but before `end_ns`.
    fn fullest_between(&self, first_ns: i64, end_ns: i64, reach_ns: i64) -> Sum {
        let later = self.charges.iter().map(|charge| charge.at_ns);
        let instants = later.filter(|&later_ns| first_ns < later_ns && later_ns < end_ns);
        iter::once(first_ns)
            .chain(instants)
            .map(|instant_ns| self.used(instant_ns, reach_ns))
            .max()
            .expect("at least the first instant")
    }

    pub fn rate_admits(&self, rate: &Rate, at_ns: i64, amount: u64) -> bool {
        self.fullest(at_ns, self.reach_ns(rate)) + Sum::from(amount) <= Sum::from(rate.capacity())
    }

    pub fn admits(&self, at_ns: i64, amount: u64) -> bool {
        let mut rates = self.limit.rates().iter();
        rates.all(|rate| self.rate_admits(rate, at_ns, amount))
    }

    pub fn has_charges_after(&self, now_ns: i64) -> bool {
        self.charges.iter().any(|charge| charge.at_ns > now_ns)
    }

    pub fn charge_of(&self, claim: usize) -> Option<&Charge> {
        self.charges.iter().find(|charge| charge.claim == claim)
    }

    /// How much can be added to a charge at `at_ns`: nothing that would put a window over which holds it
    /// and has not ended, and nothing if no such window is left.
    pub fn room(&self, at_ns: i64, now_ns: i64) -> u64 {
        let free = |rate: &Rate| {
            let (reach_ns, end_ns) = (self.reach_ns(rate), at_ns + self.reach_ns(rate));
            let first_ns = at_ns.max(now_ns);
            (first_ns < end_ns).then(|| {
                Sum::from(rate.capacity()) - self.fullest_between(first_ns, end_ns, reach_ns)
            })
        };
        let least = self.limit.rates().iter().filter_map(free).min();
        u64::try_from(least.unwrap_or(0).max(0)).expect("small")
    }

    /// Corrects the charge of a request to what was used of it. It may have been swept, after a boot.
    pub fn settle(
        &mut self,
        claim: usize,
        at_ns: i64,
        estimated: u64,
        used: u64,
        now_ns: i64,
    ) -> Settling {
        let of_it = |charge: &Charge| charge.claim == claim;
        let position = self.charges.iter().position(of_it);
        let excess = used.saturating_sub(estimated);
        let fitting = excess.min(self.room(at_ns, now_ns));
        let rest = excess - fitting;
        let (beyond, debt) = match self.limit.overage() {
            Overage::Debt => (0, rest),
            Overage::Charge => (rest, 0),
            Overage::Deny => (0, 0),
        };
        let charged = used.min(estimated) + fitting + beyond;
        match position {
            None => {}
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
            key: self.limit.key().to_owned(),
            estimated,
            used,
            charged,
            debt,
        }
    }

    pub fn debt(&self) -> u64 {
        let debt: u64 = self.debts.iter().sum();
        debt.min(MAX_CAPACITY)
    }

    /// No window holds more than its capacity.
    pub fn check_law(&self) -> Result<(), String> {
        if self.was_replaced {
            return Ok(());
        }
        for rate in self.limit.rates() {
            let reach_ns = self.reach_ns(rate);
            let growths = self.charges.iter().filter_map(|charge| charge.growth);
            let charges = self.charges.iter().map(|charge| charge.at_ns);
            for end_ns in charges.chain(growths.map(|growth| growth.at_ns)) {
                let inside = self.inside(end_ns, reach_ns);
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
