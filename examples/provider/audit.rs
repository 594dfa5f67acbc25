//! An audit of everything that was accepted. It owes nothing to the windows: for each acceptance it adds
//! up the window that ends there, afresh.

use std::time::Instant;

use super::limits::{Limits, Quota};

/// A request that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub at: Instant,
    pub tokens: u64,
}

/// A stretch of time, which lasts until the next one begins, in which the limits stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    pub since: Instant,
    /// How many requests had been accepted before: instants alone cannot tell what came first.
    pub after: usize,
    pub limits: Limits,
    /// Whether anything was accepted at all.
    pub open: bool,
}

/// A window that held more than its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The position of the acceptance at which the window ends.
    pub position: usize,
    pub what: &'static str,
    pub used: u64,
    pub quota: Quota,
}

/// The sum of a window rises only where something is accepted, so that no other instant can be worse
/// than these.
pub fn overruns(accepted: &[Accepted], eras: &[Era]) -> Vec<Overrun> {
    assert!(
        accepted.is_sorted_by_key(|accepted| accepted.at),
        "acceptances are in order"
    );
    let mut found = Vec::new();
    for position in 0..accepted.len() {
        let era = eras
            .iter()
            .rfind(|era| era.after <= position)
            .expect("an era from the beginning");
        let mut judge = |what, quota: Option<Quota>, amount: fn(&Accepted) -> u64| {
            let Some(quota) = quota else { return };
            let used = fullness(&accepted[..=position], quota, amount);
            if used > quota.limit {
                found.push(Overrun {
                    position,
                    what,
                    used,
                    quota,
                });
            }
        };
        judge("requests", era.limits.requests, |_| 1);
        judge("tokens", era.limits.tokens, |accepted| accepted.tokens);
    }
    found
}

fn fullness(until: &[Accepted], quota: Quota, amount: fn(&Accepted) -> u64) -> u64 {
    let Some(last) = until.last() else { return 0 };
    let in_window = until
        .iter()
        .rev()
        .take_while(|accepted| last.at.duration_since(accepted.at) < quota.window);
    in_window.map(amount).sum()
}
