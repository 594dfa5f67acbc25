//! The steps of a history that are about slots, ids and batches.

use std::time::Duration;

use super::held::{Held, pick, same_closing};
use super::{Check, Player, same};
use crate::asks::{Ask, Spent};
use crate::entry::{End, Entry};
use crate::history::{Op, Target, Under};
use crate::model::Verdict;
use crate::subject::{Answer, Asked, Closing, Takes, Which, ns};

impl Player<'_> {
    pub(super) fn step_named(&mut self, op: &Op) -> Check {
        match op {
            Op::TryUnder {
                slot,
                ask,
                under,
                holds,
            } => {
                let asked = self.asked(ask, Some(*under));
                self.remember(&asked);
                self.try_acquire(*slot, &asked, *holds)
            }
            Op::BookUnder {
                slot,
                ask,
                under,
                patience,
            } => {
                let asked = self.asked_ahead(ask, Some(*under));
                self.remember(&asked);
                self.book(*slot, &asked, *patience)
            }
            Op::Name { permit } => self.name_one(*permit),
            Op::Renew { slot, target, ms } => {
                self.renew(*slot, *target, Duration::from_millis(*ms))
            }
            Op::Detach { permit, ms, keeps } => {
                self.detach(*permit, Duration::from_millis(*ms), *keeps)
            }
            Op::SettleById { slot, id, spent } => {
                let slot = self.open(*slot);
                let id = self.id(*id);
                let used = self.used_by_id(&id, spent);
                let closing = self.subject.settle_by_id(slot, &id, &used);
                let must_be = self.settle_named(&id, &used);
                same_closing(&must_be, &closing)?;
                self.witness.check(&self.model)
            }
            Op::CancelById { slot, id } => {
                let slot = self.open(*slot);
                let id = self.id(*id);
                let closing = self.subject.cancel_by_id(slot, &id);
                let must_be = self.cancel_named(&id);
                same_closing(&must_be, &closing)
            }
            Op::TryAll { slot, asks } => self.try_all(*slot, asks),
            Op::SettleAll {
                slot,
                targets,
                spent,
            } => self.settle_all(*slot, targets, spent),
            Op::CancelAll { slot, targets } => self.cancel_all(*slot, targets),
            op => Err(format!("nobody plays {op:?}")),
        }
    }

    /// The first ids are those of callers, the others were given.
    fn id(&self, number: usize) -> String {
        let given = number
            .checked_sub(4)
            .and_then(|number| self.given_ids.iter().rev().nth(number));
        given
            .cloned()
            .unwrap_or_else(|| format!("job {}", number % 4))
    }

    /// What is asked for, the other way around if it repeats what was asked for before.
    pub(super) fn asked(&self, ask: &Ask, under: Option<Under>) -> Asked {
        let id = under.map(|under| self.id(under.id));
        let former = id.as_ref().and_then(|id| self.asked.get(id));
        let former = former.filter(|_| under.is_some_and(|under| under.repeats));
        let takes = match former {
            Some(former) => former.iter().rev().cloned().collect(),
            None => ask.takes(&self.model),
        };
        (takes, id)
    }

    /// The same, but mostly without the slots, which nobody can book.
    pub(super) fn asked_ahead(&self, ask: &Ask, under: Option<Under>) -> Asked {
        let (mut takes, id) = self.asked(ask, under);
        let is_of_rates = |take: &(String, u64)| !self.model.pools.contains_key(&take.0);
        if id.is_none() && takes.iter().any(is_of_rates) {
            takes.retain(is_of_rates);
        }
        (takes, id)
    }

    fn remember(&mut self, (takes, id): &Asked) {
        if let Some(id) = id {
            self.asked.insert(id.clone(), takes.clone());
        }
    }

    /// Each new permit that holds slots has a larger number; one that is found again has its own.
    pub(super) fn check_fence(
        &mut self,
        verdict: &Verdict,
        answer: &Answer,
        is_booked: bool,
    ) -> Check {
        let Answer::Admitted { fence: told, .. } = answer else {
            return Ok(());
        };
        let (entry, has_slots) = match verdict {
            Verdict::Admitted {
                entry: Some(entry), ..
            } => (*entry, !self.model.entries[*entry].slots.is_empty()),
            Verdict::Resumed {
                entry, has_slots, ..
            } => (*entry, *has_slots && !is_booked),
            _ => return same(&None, told),
        };
        same(&has_slots, &told.is_some())?;
        let Some(told) = *told else { return Ok(()) };
        match self.model.entries[entry].fence {
            Some(fence) => same(&fence, &told),
            None if told <= self.last_fence => {
                Err(format!("fence {told} after {}", self.last_fence))
            }
            None => {
                self.last_fence = told;
                self.model.entries[entry].fence = Some(told);
                Ok(())
            }
        }
    }

    fn name_one(&mut self, number: usize) -> Check {
        let Some(mut permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let id = self.subject.id(permit.claim);
        let named = match &id {
            Some(id) => self.name(&mut permit, id),
            None if permit.is_closed => Ok(()),
            None => Err("an open permit got no id".to_owned()),
        };
        let again = self.subject.id(permit.claim);
        self.permits.push(permit);
        named.and_then(|()| same(&id, &again))
    }

    /// Enters a permit into the list under the id that it was given, unless it had one or is over.
    fn name(&mut self, permit: &mut Held, id: &str) -> Check {
        if let Some(entry) = permit.entry {
            if let Some(known) = &self.model.entries[entry].id {
                return same(known, &id.to_owned());
            }
            if !permit.is_closed && self.model.name(entry, id) {
                self.given_ids.push(id.to_owned());
            }
            return Ok(());
        }
        if permit.is_closed {
            return Ok(());
        }
        self.model.become_owner(permit.opening);
        let mut request = permit.takes.clone();
        request.sort();
        permit.entry = Some(self.model.entries.len());
        self.model.entries.push(Entry {
            claim: permit.charged,
            at_ns: permit.at_ns,
            request,
            id: Some(id.to_owned()),
            slots: Takes::new(),
            owner: Some(permit.opening),
            is_detached: false,
            is_booked: permit.at_ns > self.model.now_ns,
            is_shared: false,
            expires_ns: None,
            end: None,
            fence: None,
        });
        self.given_ids.push(id.to_owned());
        Ok(())
    }

    fn renew(&mut self, slot: usize, target: Target, timeout: Duration) -> Check {
        let slot = self.open(slot);
        let (which, entry) = match target {
            Target::Permit(number) => match number.checked_rem(self.permits.len()) {
                Some(position) => {
                    let permit = &self.permits[position];
                    (Which::Claim(permit.claim), permit.entry)
                }
                None => return Ok(()),
            },
            Target::Id(number) => {
                let id = self.id(number);
                let entry = self.model.named(&id);
                (Which::Id(id), entry)
            }
        };
        let renewed = self.subject.renew(slot, &which, timeout);
        let must_be = entry.and_then(|entry| self.model.renew(entry, ns(timeout)));
        same(&must_be, &renewed)
    }

    fn detach(&mut self, number: usize, timeout: Duration, keeps: bool) -> Check {
        let Some(mut permit) = pick(&mut self.permits, number) else {
            return Ok(());
        };
        let has_timed_out = permit
            .entry
            .is_some_and(|entry| !self.model.entries[entry].is_open(self.model.now_ns));
        let Some(id) = self.subject.detach(permit.claim, timeout) else {
            let is_over = permit.is_closed || has_timed_out;
            self.permits.push(permit);
            return same(&true, &is_over);
        };
        same(&(false, false), &(permit.is_closed, has_timed_out))?;
        let named = self.name(&mut permit, &id);
        if let Some(entry) = permit.entry {
            self.model.detach(entry, ns(timeout));
        }
        // Whoever has it at hand can still settle it, but dropping it means nothing any more.
        permit.is_mine = false;
        if keeps {
            self.permits.push(permit);
        } else {
            self.let_go(&permit);
        }
        named
    }

    fn used_by_id(&self, id: &str, spent: &[Spent]) -> Takes {
        match self.model.named(id) {
            Some(entry) => {
                let entry = &self.model.entries[entry];
                let mut used = self.used(&entry.request, entry.at_ns, spent);
                // Who comes with an id cannot name a limit that was removed since: see
                // `what_was_removed_can_be_named_by_who_settles_under_an_id`.
                used.retain(|(key, _)| {
                    let line = self.model.lines.get(key);
                    line.is_some_and(|line| line.claims.contains(&entry.claim))
                });
                used
            }
            None => Takes::new(),
        }
    }

    fn settle_named(&mut self, id: &str, used: &Takes) -> Closing {
        let number = match self.model.told_of(id) {
            Ok(number) => number,
            Err(told) => return told,
        };
        let entry = self.model.entries[number].clone();
        match self.model.end(number, End::Settled) {
            Some(told) => told,
            None => self.correct(entry.claim, entry.at_ns, &entry.request, used),
        }
    }

    fn cancel_named(&mut self, id: &str) -> Closing {
        let number = match self.model.told_of(id) {
            Ok(number) => number,
            Err(told) => return told,
        };
        let claim = self.model.entries[number].claim;
        if let Some(told) = self.model.end(number, End::Cancelled) {
            return told;
        }
        self.model.give_back(claim);
        self.witness.forget(claim);
        Closing::Now(Vec::new())
    }

    fn try_all(&mut self, slot: usize, asks: &[(Ask, Option<Under>)]) -> Check {
        let slot = self.open(slot);
        let opening = self.slots[slot].expect("it is open");
        let asked = asks.iter().map(|(ask, under)| self.asked(ask, *under));
        let asked: Vec<Asked> = asked.collect();
        for asked in &asked {
            self.remember(asked);
        }
        let first_claim = self.claims + 1;
        self.claims += asked.len();
        let answers = self.subject.try_all(slot, &asked, first_claim);
        same(&asked.len(), &answers.len())?;
        // If one of them needs an owner, that is seen to before any of them is decided.
        let mut trial = self.model.clone();
        for ((takes, id), claim) in asked.iter().zip(first_claim..) {
            trial.acquire(&crate::model::Asking {
                opening,
                takes,
                id: id.as_deref(),
                deadline_ns: None,
                claim,
            });
        }
        if trial.owners.contains(&opening) {
            self.model.become_owner(opening);
        }
        for ((asked, answer), claim) in asked.iter().zip(&answers).zip(first_claim..) {
            let held = self.decide(slot, asked, claim, None, answer)?;
            self.permits.extend(held);
        }
        Ok(())
    }

    /// Those that the limiter in a slot can deal with: its own permits, and all that have ids.
    fn targets(&self, slot: usize, targets: &[Target]) -> Vec<(Which, Option<usize>)> {
        let own: Vec<usize> = (0..self.permits.len())
            .filter(|position| Some(self.permits[*position].opening) == self.slots[slot])
            .collect();
        let find = |target: &Target| match target {
            Target::Permit(number) => {
                let position = own[number.checked_rem(own.len())?];
                Some((Which::Claim(self.permits[position].claim), Some(position)))
            }
            Target::Id(number) => Some((Which::Id(self.id(*number)), None)),
        };
        targets.iter().filter_map(find).collect()
    }

    fn settle_all(&mut self, slot: usize, targets: &[Target], spent: &[Spent]) -> Check {
        let slot = self.open(slot);
        let targets = self.targets(slot, targets);
        let used = targets.iter().map(|(which, position)| match which {
            Which::Id(id) => self.used_by_id(id, spent),
            Which::Claim(_) => position.map_or_else(Takes::new, |position| {
                let permit = &self.permits[position];
                self.used(&permit.takes, permit.at_ns, spent)
            }),
        });
        let which = targets.iter().map(|(which, _)| which.clone());
        let all: Vec<(Which, Takes)> = which.zip(used).collect();
        let closings = self.subject.settle_all(slot, &all);
        same(&all.len(), &closings.len())?;
        for (((which, used), (_, position)), closing) in all.iter().zip(&targets).zip(&closings) {
            let must_be = match (which, position) {
                (Which::Id(id), _) => self.settle_named(id, used),
                (Which::Claim(_), None) => continue,
                (Which::Claim(_), Some(position)) => {
                    let permit = self.permits[*position].clone();
                    self.permits[*position].is_closed = true;
                    self.settle_held(&permit, used)
                }
            };
            same_closing(&must_be, closing)?;
        }
        self.witness.check(&self.model)
    }

    fn cancel_all(&mut self, slot: usize, targets: &[Target]) -> Check {
        let slot = self.open(slot);
        let targets = self.targets(slot, targets);
        let all: Vec<Which> = targets.iter().map(|(which, _)| which.clone()).collect();
        let closings = self.subject.cancel_all(slot, &all);
        same(&all.len(), &closings.len())?;
        for ((which, position), closing) in targets.iter().zip(&closings) {
            let must_be = match (which, position) {
                (Which::Id(id), _) => self.cancel_named(id),
                (Which::Claim(_), None) => continue,
                (Which::Claim(_), Some(position)) => {
                    let permit = self.permits[*position].clone();
                    self.permits[*position].is_closed = true;
                    self.cancel_held(&permit)
                }
            };
            same_closing(&must_be, closing)?;
        }
        Ok(())
    }
}
