//! The witness of a history: who was let through, in true time.

use crate::line::{Charge, Growth, Line};
use crate::model::Model;

/// What callers did, in true time: the time that a witness outside the machine would write down.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    pub now_ns: i64,
    seen: Vec<(String, Charge)>,
}

impl Witness {
    /// A charge whose instant comes again, after a boot that came up earlier, was seen before.
    pub fn saw(&mut self, key: &str, charge: Charge) {
        let mut seen = self.seen.iter();
        if !seen.any(|(of, seen)| of == key && seen.claim == charge.claim) {
            self.seen.push((key.to_owned(), charge));
        }
    }

    /// Somebody was let through at once.
    pub fn saw_now(&mut self, key: &str, amount: u64, claim: usize) {
        let charge = Charge {
            at_ns: self.now_ns,
            due_ns: self.now_ns,
            amount,
            booked_by: None,
            used_from_ns: None,
            claim,
            growth: None,
            is_merged: false,
            order: 0,
            since_ns: None,
        };
        self.saw(key, charge);
    }

    pub fn forget(&mut self, claim: usize) {
        self.seen.retain(|(_, charge)| charge.claim != claim);
    }

    /// What was charged to a limit that is no more.
    pub fn forget_limit(&mut self, key: &str) {
        self.seen.retain(|(of, _)| of != key);
    }

    pub fn forget_everything(&mut self) {
        self.seen.clear();
    }

    /// Takes note of what a request turned out to have used, by what is charged for it from now on.
    pub fn settled(&mut self, claim: usize, model: &Model) {
        let now_ns = self.now_ns;
        self.seen.retain_mut(|(key, seen)| {
            if seen.claim != claim {
                return true;
            }
            let line = model.lines.get(key);
            let Some(charge) = line.and_then(|line| line.charge_of(claim)) else {
                return false;
            };
            seen.amount = charge.amount;
            seen.growth = charge.growth.map(|growth| Growth {
                at_ns: now_ns,
                ..growth
            });
            true
        });
    }

    /// No window of true time holds more than its capacity.
    pub fn check(&self, model: &Model) -> Result<(), String> {
        for (key, line) in &model.lines {
            let mut seen = Line::new(key, line.limit.clone());
            // True time has no calendar.
            seen.was_replaced = line.was_replaced || line.has_calendar();
            let of_this = self.seen.iter().filter(|(of, _)| of == key);
            seen.charges = of_this.map(|(_, charge)| *charge).collect();
            seen.check_law()
                .map_err(|what| format!("in true time, `{key}` saw {what}"))?;
        }
        Ok(())
    }
}
