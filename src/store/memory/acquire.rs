//! One attempt at an acquisition, in memory.

use std::path::Path;

use super::MemoryStore;
use super::pauses::Booked;
use super::permits::Resumed;
use super::{PLACE, State, Ticket};
use crate::calendar::Line;
use crate::clock::{Reading, Timestamp};
use crate::decision::{Verdict, decide};
use crate::error::Error;
use crate::line::{Waiter, Waiting, book_behind, decide_behind, is_of_slots, waiting};
use crate::plan::{Patience, Plan};
use crate::store::{
    Claim, Few, Holder, Outcome, Queued, Registered, Row, SlotTake, TicketId, booked_for_later,
    check_bookable, denial, expiry, latest, lines,
};

impl MemoryStore {
    /// Decides one request and charges it, or lets it wait in line.
    pub(super) fn attempt(
        &self,
        state: &mut State,
        (reading, now): (Reading, Timestamp),
        plan: &Plan<'_>,
        waited: Option<&Queued>,
    ) -> Result<Outcome, Error> {
        let known = state.all_known(plan)?;
        let mut lines = lines(plan, &known, Path::new(PLACE))?;
        let latest = latest(plan.patience, now, reading.elapsed());
        if let Some(former) = plan.block.and_then(|block| block.former) {
            state.end_block(former);
            self.changed(state);
        }
        let mut resumed = None;
        if let Some(id) = plan.id() {
            match state.resume(plan, id)? {
                None => {}
                Some(Resumed::Whole(claim)) => {
                    // Somebody else was served who waited for the same.
                    if let Some(queued) = waited {
                        state.tickets.remove(&queued.ticket.number);
                        self.changed(state);
                    }
                    let refused = booked_for_later(claim.at, &lines, plan, now, latest);
                    if refused.is_none() {
                        state.share(&claim);
                    }
                    return Ok(refused.unwrap_or(Outcome::Admitted { claim, now }));
                }
                Some(Resumed::WithoutSlots(number)) => {
                    lines.retain(|line| is_of_slots(line));
                    resumed = Some(number);
                }
            }
        }
        check_bookable(plan, &lines)?;
        let number = waited.map(|queued| queued.ticket.number);
        let refusal = match state.decide(&lines, plan, number, now, latest) {
            Verdict::Admit(at) => {
                if let Some(number) = number {
                    state.tickets.remove(&number);
                    self.changed(state);
                }
                state.open_ledgers(&mut lines);
                let claim = match resumed {
                    Some(number) => state.retake(number, &lines, now),
                    None => match state.block_now(plan, &lines, now) {
                        Some(block) => state.charge_block(&lines, block, now),
                        None => state.charge(plan, &lines, at, now),
                    },
                };
                return Ok(Outcome::Admitted { claim, now });
            }
            Verdict::Refuse(refusal) => refusal,
        };
        let times = (now, latest);
        let Ok(waits) = waiting(&mut state.ledgers, &lines, &refusal, plan.patience, times);
        let refusal = match waits {
            Waiting::Not => refusal,
            Waiting::InVain(refusal) => refusal,
            Waiting::Until(mut again_at) => {
                let denial = denial(refusal, &lines, now, Path::new(PLACE))?;
                state.open_ledgers(&mut lines);
                let number = number.unwrap_or_else(|| state.queue(&lines, latest));
                for line in lines.iter().filter(|line| is_of_slots(line)) {
                    again_at = again_at.min(state.ledgers.next_expiry(line.id));
                }
                return Ok(Outcome::Queued(Queued {
                    denial,
                    ticket: TicketId {
                        number,
                        owner: 0,
                        since: now,
                    },
                    session: 0,
                    process: crate::process::mark(),
                    seen: state.changes,
                    in_the_way: Few::new(),
                    ahead: 0,
                    again_at: (again_at < Timestamp::from_nanos(i64::MAX))
                        .then(|| state.timeline.elapsed_at(again_at)),
                }));
            }
        };
        if let Some(number) = number {
            state.tickets.remove(&number);
            self.changed(state);
        }
        Ok(Outcome::Refused {
            denial: denial(refusal, &lines, now, Path::new(PLACE))?,
            deadline: (plan.patience != Patience::Now).then_some(latest),
        })
    }
}

impl State {
    /// Decides behind those who stand before this ticket, or behind all.
    pub(super) fn decide(
        &mut self,
        lines: &[Line<'_>],
        plan: &Plan<'_>,
        before: Option<i64>,
        now: Timestamp,
        latest: Timestamp,
    ) -> Verdict {
        let books = &mut self.ledgers;
        if self.tickets.is_empty() {
            let Ok(verdict) = decide(books, lines, now, latest);
            return verdict;
        }
        let ahead: Vec<Waiter> = self
            .tickets
            .range(..before.unwrap_or(i64::MAX))
            .filter(|(_, ticket)| now < ticket.latest)
            .map(|(_, ticket)| ticket.waiter.clone())
            .collect();
        let Ok(verdict) = if plan.patience.books() {
            book_behind(books, &ahead, lines, now, latest)
        } else {
            decide_behind(books, &ahead, lines, now, latest)
        };
        verdict
    }

    /// Goes to the end of the line.
    fn queue(&mut self, lines: &[Line<'_>], latest: Timestamp) -> i64 {
        let take = |line: &Line<'_>| Some((self.limits.find(line.limit.key())?, line.amount));
        let waiter = Waiter {
            owner: 0,
            takes: lines.iter().filter_map(take).collect(),
            is_late: false,
        };
        self.last_ticket += 1;
        self.tickets
            .insert(self.last_ticket, Ticket { waiter, latest });
        self.last_ticket
    }

    /// Takes everything that a request asks for.
    fn charge(
        &mut self,
        plan: &Plan<'_>,
        lines: &[Line<'_>],
        at: Timestamp,
        now: Timestamp,
    ) -> Claim {
        let rows: Few<Row> = lines
            .iter()
            .filter(|line| !is_of_slots(line))
            .map(|line| Row::new(line, self.ledgers.charge_line(line, at)))
            .collect();
        let slots = lines.iter().filter(|line| is_of_slots(line));
        let booking = (at > now).then(|| {
            self.remember_booked(Booked {
                at,
                rows: rows.clone(),
                permit: None,
            })
        });
        let mut registered = None;
        if plan.id().is_some() || slots.clone().next().is_some() {
            let expires = expiry(slots.clone(), now);
            let permit = Registered {
                number: self.next_permit(),
                id: plan.id().map(Into::into),
                slots: slots.map(SlotTake::new).collect(),
                fence: None,
                holder: Holder::Claim,
            };
            self.enter_permit(&permit, at, plan.print(), &rows, expires);
            if let Some(booking) = booking
                && let Some(booked) = self.booked.get_mut(&booking.number)
            {
                booked.permit = Some(permit.number);
            }
            registered = Some(Box::new(permit));
        }
        for line in lines {
            self.ledgers.sweep(line.id, line.limit);
        }
        self.sweep_keys();
        Claim {
            at,
            wake_at: self.timeline.elapsed_at(at),
            moves: self.moves.seen(),
            session: 0,
            process: crate::process::mark(),
            rows,
            booking,
            accepted: None,
            block: None,
            is_resumed: false,
            registered,
        }
    }
}
