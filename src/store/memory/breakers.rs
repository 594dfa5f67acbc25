//! Circuit breakers, in memory.

use super::State;
use crate::breaker::{BreakerPolicy, Broken, Counts, Report, Verdict, judge};
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::pause::Pause;
use crate::store::Claim;

impl State {
    /// Takes a report of a call to all breakers that it was let through by.
    pub(super) fn report(&mut self, claim: &Claim, report: Report) {
        let Some(registered) = &claim.registered else {
            return;
        };
        for slot in &registered.slots {
            let known = self.limits.by_id(slot.limit);
            let Some(policy) = known.and_then(|known| known.limit.breaker_policy()) else {
                continue;
            };
            let slots = self.ledgers.slots.get(&slot.limit);
            let held = slots.and_then(|slots| slots.get(&registered.number));
            let asked_at = held.map_or(claim.at, |held| held.since);
            self.report_to(slot.limit, &policy, report.counts(&policy), asked_at);
        }
    }

    fn report_to(
        &mut self,
        limit: LimitId,
        policy: &BreakerPolicy,
        report: Counts,
        asked_at: Timestamp,
    ) {
        let now = self.ledgers.now;
        let broken = self.ledgers.broken.get(&limit).cloned();
        let counts = match broken {
            Some(_) => Counts::default(),
            None => self.count(limit, policy, report),
        };
        match judge(policy, broken.as_ref(), report, counts, (asked_at, now)) {
            Verdict::Stays => {}
            Verdict::Becomes(becomes) => self.become_broken(limit, broken.as_ref(), becomes),
            Verdict::Closes => self.close_breaker(limit),
        }
    }

    fn count(&mut self, limit: LimitId, policy: &BreakerPolicy, report: Counts) -> Counts {
        let (span, since) = policy.spans(self.ledgers.now);
        let spans = self.ledgers.outcomes.entry(limit).or_default();
        spans.entry(span).or_default().add(report);
        spans.retain(|at, _| *at > since);
        let mut sum = Counts::default();
        for counts in spans.values() {
            sum.add(*counts);
        }
        sum
    }

    fn become_broken(&mut self, limit: LimitId, former: Option<&Broken>, broken: Broken) {
        let now = self.ledgers.now;
        if former.is_none_or(|former| former.until != broken.until) {
            let strikes = self.ledgers.strikes.entry(limit).or_default();
            let pause = strikes.pause.filter(|pause| pause.holds(now));
            let until = pause.map_or(broken.until, |pause| pause.until().max(broken.until));
            strikes.pause = Some(Pause::new(now, until, 0));
        }
        self.ledgers.broken.insert(limit, broken);
    }

    /// Lets everybody through again, and begins to count anew.
    pub(super) fn close_breaker(&mut self, limit: LimitId) {
        self.ledgers.broken.remove(&limit);
        self.ledgers.outcomes.remove(&limit);
    }
}
