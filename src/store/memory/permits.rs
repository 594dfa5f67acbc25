//! Permits that hold slots or have an id, in memory.

use std::sync::Arc;
use std::time::Duration;

use super::accounts::Held;
use super::{PLACE, State};
use crate::calendar::Line;
use crate::clock::Timestamp;
use crate::definition::Known;
use crate::error::Error;
use crate::limit::Bucket;
use crate::plan::Plan;
use crate::settlement::{
    Correction, End, Estimate, Settled, Settlement, Used, correction, used_by_others,
};
use crate::store::{
    Change, Claim, Few, Holder, PermitNumber, REMEMBERED_NS, Registered, Row, SlotTake, Which,
    expiry,
};

/// A permit that holds slots or has an id.
#[derive(Debug)]
pub(super) struct OpenPermit {
    pub(super) id: Option<Box<str>>,
    pub(super) request: String,
    pub(super) at: Timestamp,
    pub(super) rows: Few<Row>,
    pub(super) slots: Few<SlotTake>,
    pub(super) expires: Option<Timestamp>,
    pub(super) fence: Option<PermitNumber>,
    pub(super) is_held: bool,
    /// Whether somebody else relies on it, who asked for the same under its id.
    pub(super) is_shared: bool,
    pub(super) is_detached: bool,
}

/// A permit that had an id.
#[derive(Debug)]
pub(super) struct EndedPermit {
    pub(super) number: PermitNumber,
    pub(super) end: End,
    pub(super) at: Timestamp,
    pub(super) request: String,
    pub(super) ended_at: Timestamp,
}

/// What was found under the id of a request.
#[expect(clippy::large_enum_variant, reason = "it is looked at once and gone")]
pub(super) enum Resumed {
    Whole(Claim),
    /// The permit is there, but its slots came back when its claim was dropped.
    WithoutSlots(PermitNumber),
}

impl State {
    pub(super) fn next_permit(&mut self) -> PermitNumber {
        self.last_permit += 1;
        PermitNumber(self.last_permit)
    }

    /// Enters a permit that holds slots or has an id.
    pub(super) fn enter_permit(
        &mut self,
        registered: &Registered,
        at: Timestamp,
        request: String,
        rows: &[Row],
        expires: Option<Timestamp>,
    ) {
        if let Some(id) = &registered.id {
            self.ids.insert(id.clone(), registered.number);
        }
        for slot in &registered.slots {
            let held = Held {
                amount: slot.amount.cast_signed(),
                expires,
                since: self.ledgers.now,
            };
            let slots = self.ledgers.slots.entry(slot.limit).or_default();
            slots.entry(registered.number).or_insert(held);
        }
        let permit = OpenPermit {
            id: registered.id.clone(),
            request,
            at,
            rows: rows.into(),
            slots: registered.slots.clone(),
            expires,
            fence: None,
            is_held: true,
            is_shared: false,
            is_detached: false,
        };
        self.permits.insert(registered.number, permit);
    }

    /// Gives a permit an id; not if it has timed out, for then nobody can settle it any more.
    pub(super) fn name_permit(&mut self, number: PermitNumber, id: &str, request: String) {
        if let Some(permit) = self.permits.get_mut(&number) {
            permit.id = Some(id.into());
            permit.request = request;
            self.ids.insert(id.into(), number);
        }
    }

    /// Ends permits whose timeout has passed, and forgets the ids of those that ended long ago.
    pub(super) fn end_what_is_due(&mut self, now: Timestamp) {
        let due = |permit: &OpenPermit| permit.expires.is_some_and(|expires| expires <= now);
        let expired: Vec<PermitNumber> = self
            .permits
            .iter()
            .filter_map(|(number, permit)| due(permit).then_some(*number))
            .collect();
        for number in expired {
            self.end_permit(number, End::Expired, now);
        }
        let oldest = now.saturating_minus_ns(REMEMBERED_NS);
        self.ended.retain(|_, ended| ended.ended_at > oldest);
    }

    pub(super) fn give_back_slots(&mut self, number: PermitNumber) {
        for slots in self.ledgers.slots.values_mut() {
            slots.remove(&number);
        }
    }

    pub(super) fn end_permit(&mut self, number: PermitNumber, end: End, now: Timestamp) {
        self.give_back_slots(number);
        self.forget_booked_of(number);
        if let Some(permit) = self.permits.remove(&number)
            && let Some(id) = permit.id
        {
            self.ids.remove(&id);
            let ended = EndedPermit {
                number,
                end,
                at: permit.at,
                request: permit.request,
                ended_at: permit.expires.map_or(now, |expires| expires.min(now)),
            };
            self.ended.insert(id, ended);
        }
    }

    /// Says that somebody relies on a permit that is another's: it stays when that one drops its booking.
    pub(super) fn share(&mut self, claim: &Claim) {
        if let Some(registered) = &claim.registered
            && registered.holder == Holder::Other
            && let Some(permit) = self.permits.get_mut(&registered.number)
        {
            permit.is_shared = true;
        }
    }

    pub(super) fn is_shared(&self, number: PermitNumber) -> bool {
        let permit = self.permits.get(&number);
        permit.is_some_and(|permit| permit.is_shared)
    }

    /// Whether a permit is open, and nobody has detached it.
    pub(super) fn is_held(&self, number: PermitNumber) -> bool {
        let permit = self.permits.get(&number);
        permit.is_some_and(|permit| permit.is_held)
    }

    /// The claim on a permit is dropped: its slots come back, and if it has an id it can still be settled for a while.
    pub(super) fn abandon(&mut self, number: PermitNumber, now: Timestamp) {
        self.give_back_slots(number);
        match self.permits.get_mut(&number) {
            Some(permit) if permit.id.is_some() => {
                permit.is_held = false;
                permit.slots.clear();
                permit.expires = Some(now.saturating_plus_ns(REMEMBERED_NS));
            }
            _ => self.end_permit(number, End::Expired, now),
        }
    }

    /// Lets a permit that ends by itself do so later, as long as somebody answers for it.
    pub(super) fn renew(&mut self, number: PermitNumber, expires: Timestamp) -> Option<Timestamp> {
        let permit = self.permits.get_mut(&number)?;
        permit
            .expires
            .filter(|_| permit.is_held || permit.is_detached)?;
        permit.expires = Some(expires);
        self.let_slots_expire(number, expires);
        Some(expires)
    }

    /// Unties a permit from its claim, and lets it end by itself.
    pub(super) fn detach(&mut self, number: PermitNumber, expires: Timestamp) -> Option<Timestamp> {
        let permit = self.permits.get_mut(&number)?;
        permit.expires = Some(expires);
        permit.is_held = false;
        permit.is_detached = true;
        self.let_slots_expire(number, expires);
        Some(expires)
    }

    fn let_slots_expire(&mut self, number: PermitNumber, expires: Timestamp) {
        for slots in self.ledgers.slots.values_mut() {
            if let Some(held) = slots.get_mut(&number) {
                held.expires = Some(expires);
            }
        }
    }

    /// Settles or cancels a permit, if it is open.
    pub(super) fn change(&mut self, change: Change<'_>) -> Result<Settled, Error> {
        let now = self.ledgers.now;
        self.end_what_is_due(now);
        let found;
        let claim = match change.which {
            Which::Claim(claim) => match self.moved(claim) {
                Some(moved) => {
                    found = moved;
                    &found
                }
                None => claim,
            },
            Which::Id(id) => {
                let Some(number) = self.ids.get(id).copied() else {
                    let ended = self.ended.get(id).map(|ended| ended.end.told());
                    return Ok(ended.unwrap_or(Settled::Unknown));
                };
                found = self.claim_on(number, Holder::Other);
                &found
            }
        };
        if let Some(used) = change.used {
            used.check(&claim.rows)?;
        }
        if let Some(registered) = &claim.registered
            && !self.permits.contains_key(&registered.number)
        {
            let ended = registered.id.as_ref().and_then(|id| self.ended.get(id));
            let ended = ended.filter(|ended| ended.number == registered.number);
            return Ok(ended.map_or(End::Expired, |ended| ended.end).told());
        }
        let (settlement, end) = match change.used {
            Some(used) => (self.settle(claim, used), End::Settled),
            None => (self.take_back(claim), End::Cancelled),
        };
        self.forget_booked(claim);
        if let Some(registered) = &claim.registered {
            self.end_permit(registered.number, end, now);
        }
        if let Some((key, estimated, used)) = change.used.and_then(Used::lesson)
            && let Some(known) = self.limits.find(key)
        {
            self.learn(&known, estimated, used);
        }
        Ok(Settled::Now(settlement))
    }

    fn take_back(&mut self, claim: &Claim) -> Settlement {
        for row in &claim.rows {
            match self.still_poured(row) {
                Some((known, bucket)) if row.at <= self.ledgers.now => {
                    let amount = row.amount.cast_signed();
                    self.ledgers.put_back(known.id, bucket, row.at, amount);
                }
                _ => {
                    let amount = row.amount.cast_signed();
                    self.ledgers.amend(row.limit, row.at, row.seq, -amount);
                }
            }
        }
        Settlement::default()
    }

    /// The limit that a row was charged to, unless it was removed since.
    fn still_known(&self, row: &Row) -> Option<Arc<Known>> {
        let known = self.limits.find(&row.key);
        known.filter(|known| known.id == row.limit || self.limits.may_be_closed(row))
    }

    /// The bucket that a row was poured out of, as long as it is there.
    fn still_poured(&self, row: &Row) -> Option<(Arc<Known>, Bucket)> {
        let known = self.still_known(row)?;
        let bucket = known.limit.bucket()?;
        Some((known, bucket))
    }

    /// A claim on an open permit.
    pub(super) fn claim_on(&self, number: PermitNumber, holder: Holder) -> Claim {
        let permit = self.permits.get(&number);
        let at = permit.map_or(self.ledgers.now, |permit| permit.at);
        Claim {
            at,
            wake_at: self.timeline.elapsed_at(at),
            moves: self.moves.seen(),
            session: 0,
            process: crate::process::mark(),
            rows: permit.map(|permit| permit.rows.clone()).unwrap_or_default(),
            booking: None,
            accepted: None,
            block: None,
            is_resumed: true,
            registered: Some(Box::new(Registered {
                number,
                id: permit.and_then(|permit| permit.id.clone()),
                slots: permit
                    .map(|permit| permit.slots.clone())
                    .unwrap_or_default(),
                fence: permit.and_then(|permit| permit.fence),
                holder,
            })),
        }
    }

    fn settle(&mut self, claim: &Claim, used: &Used) -> Settlement {
        let now = self.ledgers.now;
        let mut settlement = Settlement::default();
        for row in &claim.rows {
            let Some(used) = used.of(&row.key) else {
                continue;
            };
            let Some(known) = self.still_known(row) else {
                settlement.add(row, used, Correction::NOTHING);
                continue;
            };
            let stands = self.ledgers.amount(row.limit, row.at, row.seq).is_some();
            let estimate = Estimate {
                id: known.id,
                limit: &known.limit,
                at: row.at,
                charged: row.amount.cast_signed(),
                used: used.cast_signed(),
                can_grow: stands || known.limit.bucket().is_some(),
            };
            // Before its instant nobody is let through by it.
            let from = now.max(claim.at);
            let Ok(correction) = correction(&mut self.ledgers, &estimate, from);
            let more = correction.charged - estimate.charged;
            // It may have been closed meanwhile because it was empty.
            let needs_none = known.limit.bucket().is_none() && correction.debt == 0;
            let id = if needs_none {
                known.id
            } else {
                self.with_ledger(&known)
            };
            match known.limit.bucket() {
                // What was booked may not have been poured out yet, though its instant has come.
                Some(bucket) if row.at <= now => {
                    self.ledgers.put_back(id, bucket, row.at, -more);
                }
                _ => self.ledgers.amend(row.limit, row.at, row.seq, more),
            }
            if correction.debt > 0 {
                self.owe(id, correction.debt);
            }
            settlement.add(row, used, correction);
        }
        settlement
    }

    /// Charges what others have used.
    pub(super) fn raise(&mut self, key: &str, told: (Option<Duration>, u64)) -> Result<u64, Error> {
        let known = self.known(key)?;
        let now = self.ledgers.now;
        let Ok(more) = used_by_others(&mut self.ledgers, known.id, &known.limit, told, now);
        if more > 0 {
            let line = Line {
                id: self.with_ledger(&known),
                pattern: known.pattern,
                limit: &known.limit,
                amount: more,
            };
            self.ledgers.charge_line(&line, now);
        }
        Ok(more.unsigned_abs())
    }

    /// What was granted before under the id of a request: the whole of it, or all but the slots.
    pub(super) fn resume(&mut self, plan: &Plan<'_>, id: &str) -> Result<Option<Resumed>, Error> {
        self.end_what_is_due(self.ledgers.now);
        let number = self.ids.get(id).copied();
        let open = number.and_then(|number| self.permits.get(&number));
        let ended = self.ended.get(id);
        let stored = match (open, ended) {
            (Some(open), _) => &open.request,
            (None, Some(ended)) if ended.end != End::Cancelled => &ended.request,
            _ => return Ok(None),
        };
        if *stored != plan.print() {
            return Err(Error::IdTaken {
                id: id.to_owned(),
                stored: stored.replace('\n', ", "),
                file: PLACE.into(),
            });
        }
        let (Some(number), Some(open)) = (number, open) else {
            let end = ended.map_or(End::Expired, |ended| ended.end);
            let mut claim = self.claim_on(PermitNumber(0), Holder::Ended(end));
            claim.at = ended.map_or(claim.at, |ended| ended.at);
            if let Some(registered) = &mut claim.registered {
                registered.id = Some(id.into());
            }
            return Ok(Some(Resumed::Whole(claim)));
        };
        if open.is_held || open.is_detached {
            return Ok(Some(Resumed::Whole(self.claim_on(number, Holder::Other))));
        }
        let claim = self.claim_on(number, Holder::Claim);
        if claim.print() != open.request {
            return Ok(Some(Resumed::WithoutSlots(number)));
        }
        self.adopt(number, None);
        Ok(Some(Resumed::Whole(claim)))
    }

    pub(super) fn adopt(&mut self, number: PermitNumber, expires: Option<Timestamp>) {
        if let Some(permit) = self.permits.get_mut(&number) {
            permit.is_held = true;
            permit.expires = expires;
        }
    }

    /// Takes the slots again of a permit that nobody answers for any more.
    pub(super) fn retake(
        &mut self,
        number: PermitNumber,
        lines: &[Line<'_>],
        now: Timestamp,
    ) -> Claim {
        let expires = expiry(lines.iter(), now);
        // Others may have held the slots since, with larger numbers.
        let fence = self.next_permit();
        if let Some(permit) = self.permits.get_mut(&number) {
            permit.fence = Some(fence);
        }
        self.adopt(number, expires);
        for line in lines {
            let held = Held {
                amount: line.amount,
                expires,
                since: now,
            };
            let slots = self.ledgers.slots.entry(line.id).or_default();
            slots.insert(number, held);
            if let Some(permit) = self.permits.get_mut(&number) {
                permit.slots.push(SlotTake::new(line));
            }
        }
        self.claim_on(number, Holder::Claim)
    }
}
