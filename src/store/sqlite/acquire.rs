//! One attempt at an acquisition, inside a transaction that holds the write lock.

use std::slice;
use std::sync::Arc;

use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::Line;
use crate::clock::Timestamp;
use crate::decision::{Verdict, block_size, decide, is_any_paused};
use crate::error::Error;
use crate::line::{Waiter, Waiting, book_behind, decide_behind, is_of_slots, waiting};
use crate::plan::{Patience, Plan};
use crate::settlement::End;
use crate::store::{
    BookingId, Claim, Few, Holder, Outcome, PermitNumber, Queued, Registered, Row, TicketId,
    booked_for_later, check_bookable, denial, expiry, latest, lines,
};

/// What one attempt at an acquisition came to.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every attempt is the large one"
)]
pub(super) enum Attempt {
    Done(Outcome),
    /// The request has to be booked, has to wait or takes slots, and this process is not an owner yet.
    /// Nothing was charged, though what dead processes held may have come back.
    NeedsOwner,
}

/// Decides a request, and charges it or goes to the end of the line if it has to wait; with a ticket, it keeps
/// its place there.
pub(super) fn attempt(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plan: &Plan<'_>,
    ticket: Option<TicketId>,
) -> Result<Attempt, Error> {
    let owner = session.owner();
    let now = transaction.now();
    let known = transaction.all_known(plan)?;
    let mut lines = lines(plan, &known, &transaction.place.database)?;
    let latest = latest(plan.patience, now, transaction.reading.elapsed());
    transaction.end_former(plan, session)?;
    let mut resumed = None;
    if let Some(id) = plan.id() {
        if owner.is_none() {
            return Ok(Attempt::NeedsOwner);
        }
        match resume(transaction, session, plan, id)? {
            Resumed::Not => {}
            Resumed::Whole(claim) => {
                let refused = booked_for_later(claim.at, &lines, plan, now, latest);
                if refused.is_none() {
                    transaction.share(&claim)?;
                }
                // Somebody else was served who waited for the same.
                let outcome = refused.unwrap_or(Outcome::Admitted { claim, now });
                return leave_with(transaction, ticket, outcome);
            }
            Resumed::WithoutSlots { number, at } => {
                // After a boot that came up late it can lie ahead.
                if let Some(refused) = booked_for_later(at, &lines, plan, now, latest) {
                    return leave_with(transaction, ticket, refused);
                }
                // Its charges stand; only the slots have to be taken again.
                lines.retain(|line| is_of_slots(line));
                resumed = Some(number);
            }
        }
    }
    let has_slots = lines.iter().any(is_of_slots);
    check_bookable(plan, &lines)?;
    let (mut verdict, mut ahead) = decide_in_line(transaction, &lines, plan, ticket, latest)?;
    // Those who book stand behind others whatever they are told.
    let is_behind = plan.patience.books() && !ahead.is_empty();
    if verdict != Verdict::Admit(now)
        && (is_behind || may_come_back(transaction, &lines, &verdict)?)
        && transaction.reclaim(&session.lock_file)?
    {
        (verdict, ahead) = decide_in_line(transaction, &lines, plan, ticket, latest)?;
    }
    match verdict {
        Verdict::Admit(at) => {
            let needs_owner = at > now || has_slots || plan.id().is_some();
            let owner = match owner {
                None if needs_owner => return Ok(Attempt::NeedsOwner),
                owner => owner.filter(|_| needs_owner),
            };
            if let Some(ticket) = ticket {
                transaction.leave_line(ticket)?;
            }
            transaction.open_ledgers(&mut lines)?;
            let claim = match (resumed, plan.id(), owner) {
                (Some(number), Some(id), Some(owner)) => {
                    retake(transaction, session, &lines, number, owner, id)?
                }
                _ => match block_now(transaction, plan, &lines, &ahead)? {
                    Some(size) => charge_block(transaction, session, &lines[0], size)?,
                    None => charge(transaction, session, plan, &lines, owner, at)?,
                },
            };
            Ok(Attempt::Done(Outcome::Admitted { claim, now }))
        }
        Verdict::Refuse(refusal) => {
            if !plan.patience.books() {
                look_whose_turn_it_is(transaction, &lines)?;
            }
            let times = (now, latest);
            let refusal = match waiting(transaction, &lines, &refusal, plan.patience, times)? {
                Waiting::Not => refusal,
                Waiting::InVain(refusal) => refusal,
                Waiting::Until(again_at) => {
                    let Some(owner) = owner else {
                        return Ok(Attempt::NeedsOwner);
                    };
                    let place = &transaction.place.database;
                    let denial = denial(refusal, &lines, now, place)?;
                    transaction.open_ledgers(&mut lines)?;
                    let ticket = stand_in_line(transaction, &lines, owner, ticket, latest)?;
                    transaction.came(ticket);
                    let again_at = again_or_expiry(transaction, &lines, again_at)?;
                    return Ok(Attempt::Done(Outcome::Queued(Queued {
                        denial,
                        ticket,
                        session: session.number,
                        process: session.process,
                        // Before the commit: whoever frees something after it will see the ticket.
                        seen: session.wakes.seen(ticket.number),
                        in_the_way: in_the_way(transaction, &lines, &ahead, owner)?,
                        ahead: ahead.len(),
                        again_at: (again_at < Timestamp::from_nanos(i64::MAX))
                            .then(|| transaction.timeline().elapsed_at(again_at)),
                    })));
                }
            };
            let denial = denial(refusal, &lines, now, &transaction.place.database)?;
            let deadline = (plan.patience != Patience::Now).then_some(latest);
            leave_with(transaction, ticket, Outcome::Refused { denial, deadline })
        }
    }
}

/// Time may have brought the turn of somebody ahead. If nobody told it, it could never be late, and one that is stopped
/// would be waited for without end.
fn look_whose_turn_it_is(
    transaction: &mut Transaction<'_>,
    lines: &[Line<'_>],
) -> Result<(), Error> {
    if !transaction.nobody_waits()? {
        let ids = lines.iter().map(|line| line.id);
        ids.for_each(|id| transaction.look_who_waits(id));
    }
    Ok(())
}

/// Leaves the line, if it stands there, and is told this.
fn leave_with(
    transaction: &mut Transaction<'_>,
    ticket: Option<TicketId>,
    outcome: Outcome,
) -> Result<Attempt, Error> {
    if let Some(ticket) = ticket {
        transaction.leave_line(ticket)?;
    }
    Ok(Attempt::Done(outcome))
}

/// What a request that is only looked at is told.
#[derive(Debug)]
pub(super) struct Glance {
    pub(super) outcome: Outcome,
    /// Whether the wall clock has to do with it.
    pub(super) goes_by_wall: bool,
    /// Whether it could become another that nobody writes down: by the death of a process, or by the end of a pause.
    pub(super) changes_unwritten: bool,
}

/// Refuses a request that the committed state refuses already, where nothing of the dead could come back and nobody waits;
/// else says nothing. For this the write lock is not needed.
pub(super) fn glance(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plan: &Plan<'_>,
) -> Result<Option<Glance>, Error> {
    if transaction.clock_has_to_be_fixed() || !transaction.nobody_waits()? {
        return Ok(None);
    }
    let now = transaction.now();
    let latest = latest(plan.patience, now, transaction.reading.elapsed());
    let known = transaction.all_known(plan)?;
    let lines = lines(plan, &known, &transaction.place.database)?;
    check_bookable(plan, &lines)?;
    let verdict = decide(transaction, &lines, now, latest)?;
    let Verdict::Refuse(refusal) = verdict else {
        return Ok(None);
    };
    let may_come_back = may_come_back(transaction, &lines, &verdict)?;
    if may_come_back && !transaction.all_owners_live(&session.lock_file)? {
        return Ok(None);
    }
    let times = (now, latest);
    let refusal = match waiting(transaction, &lines, &refusal, plan.patience, times)? {
        Waiting::Not => refusal,
        Waiting::InVain(refusal) => refusal,
        Waiting::Until(_) => return Ok(None),
    };
    let denial = denial(refusal, &lines, now, &transaction.place.database)?;
    let deadline = (plan.patience != Patience::Now).then_some(latest);
    let goes_by_wall = lines.iter().any(|line| line.limit.has_calendar());
    // Nobody has asked yet who holds slots at the end of a pause.
    let has_slots = lines.iter().any(is_of_slots);
    let hides_slots = has_slots && is_any_paused(transaction, &lines, now)?;
    Ok(Some(Glance {
        outcome: Outcome::Refused { denial, deadline },
        goes_by_wall,
        changes_unwritten: may_come_back || hides_slots,
    }))
}

/// What is decided behind those who wait, and who they are.
pub(super) fn decide_in_line(
    transaction: &mut Transaction<'_>,
    lines: &[Line<'_>],
    plan: &Plan<'_>,
    ticket: Option<TicketId>,
    latest: Timestamp,
) -> Result<(Verdict, Vec<Waiter>), Error> {
    let now = transaction.now();
    if transaction.nobody_waits()? {
        return Ok((decide(transaction, lines, now, latest)?, Vec::new()));
    }
    let line = transaction.line_before(lines.iter().map(|line| line.id), ticket)?;
    let ahead: Vec<Waiter> = line.into_values().collect();
    let verdict = if plan.patience.books() {
        book_behind(transaction, &ahead, lines, now, latest)?
    } else {
        decide_behind(transaction, &ahead, lines, now, latest)?
    };
    Ok((verdict, ahead))
}

/// How many owners are watched for at most: the nearest ahead.
const MOST_WATCHED: usize = 16;

/// The other owners that may hold somebody up: those who hold what it waits for, and those who wait ahead.
fn in_the_way(
    transaction: &Transaction<'_>,
    lines: &[Line<'_>],
    ahead: &[Waiter],
    owner: i64,
) -> Result<Few<i64>, Error> {
    let mut owners = Few::new();
    for line in lines.iter().filter(|line| is_of_slots(line)) {
        owners.extend(transaction.holders(line.id)?);
    }
    owners.extend(
        ahead
            .iter()
            .rev()
            .take(MOST_WATCHED)
            .map(|waiter| waiter.owner),
    );
    owners.sort_unstable();
    owners.dedup();
    owners.retain(|other| *other != owner);
    Ok(owners)
}

/// Whether what stands in the way could be something that a dead process left behind: only bookings, slots
/// and tickets come back, and only those who are not served at once need to look.
fn may_come_back(
    transaction: &mut Transaction<'_>,
    lines: &[Line<'_>],
    verdict: &Verdict,
) -> Result<bool, Error> {
    if let Verdict::Refuse(refusal) = verdict
        && refusal.is_of_the_line()
    {
        return Ok(true);
    }
    let now = transaction.now();
    for line in lines {
        if transaction.is_booked_after(line.id, now)?
            || (line.limit.resolution_ns() > 0 && transaction.is_merged_ahead(line.id)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes everything that a request asks for. There is an owner if one is needed.
fn charge(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plan: &Plan<'_>,
    lines: &[Line<'_>],
    owner: Option<i64>,
    at: Timestamp,
) -> Result<Claim, Error> {
    let now = transaction.now();
    let mut rows = Few::with_capacity(lines.len());
    for line in lines.iter().filter(|line| !is_of_slots(line)) {
        let stands = transaction.charge_line(line, at)?;
        rows.push(Row::new(line, stands));
    }
    let booking = owner.filter(|_| at > now).map(|owner| BookingId {
        owner,
        number: session.next_booking(),
    });
    let mut registered = None;
    if let Some(owner) = owner {
        let slots = lines.iter().filter(|line| is_of_slots(line));
        if plan.id().is_some() || slots.clone().next().is_some() {
            let expires = expiry(slots.clone(), now);
            let request = plan.id().map(|_| plan.print());
            let name = plan.id().zip(request.as_deref());
            let number = transaction.insert_permit(owner, (at, booking), expires, name)?;
            if name.is_some() {
                transaction.insert_permit_charges(number, &rows)?;
            }
            registered = Some(Box::new(Registered {
                number,
                id: plan.id().map(Into::into),
                slots: slots
                    .map(|line| transaction.take_slots(number, line, expires))
                    .collect::<Result<_, _>>()?,
                fence: None,
                holder: Holder::Claim,
            }));
        }
    }
    if let Some(booking) = booking {
        transaction.book(booking, at, &rows)?;
        for number in session.accepted.take_used(now) {
            let used = BookingId { number, ..booking };
            if let Some(moved_to) = transaction.forget_used(used)? {
                session.accepted.push(moved_to, number);
            }
        }
    }
    sweep_in_passing(transaction, session, lines)?;
    Ok(Claim {
        at,
        wake_at: transaction.timeline().elapsed_at(at),
        moves: session.moves.seen(),
        session: session.number,
        process: session.process,
        rows,
        booking,
        accepted: booking.map(|_| Arc::clone(&session.accepted)),
        block: None,
        is_resumed: false,
        registered,
    })
}

/// The block that is to be taken in the place of what a request asks for: how large, and until when. None where others
/// stand in line, who would have to wait for what nobody may need.
fn block_now(
    transaction: &mut Transaction<'_>,
    plan: &Plan<'_>,
    lines: &[Line<'_>],
    ahead: &[Waiter],
) -> Result<Option<(i64, Timestamp)>, Error> {
    let (Some(ask), [line], []) = (plan.block, lines, ahead) else {
        return Ok(None);
    };
    let now = transaction.now();
    let until = now.saturating_plus_ns(ask.lifetime_ns);
    let size = block_size(transaction, line, ask.size, now, until)?;
    Ok(size.map(|size| (size, until)))
}

/// Takes a block, of which what was asked for is part.
fn charge_block(
    transaction: &mut Transaction<'_>,
    session: &Session,
    line: &Line<'_>,
    size: (i64, Timestamp),
) -> Result<Claim, Error> {
    let now = transaction.now();
    let block = transaction.take_block(line, size, session)?;
    sweep_in_passing(transaction, session, slice::from_ref(line))?;
    Ok(Claim {
        at: now,
        wake_at: transaction.timeline().elapsed_at(now),
        moves: session.moves.seen(),
        session: session.number,
        process: session.process,
        rows: Few::new(),
        booking: None,
        accepted: None,
        block: Some(Box::new(block)),
        is_resumed: false,
        registered: None,
    })
}

fn sweep_in_passing(
    transaction: &mut Transaction<'_>,
    session: &Session,
    lines: &[Line<'_>],
) -> Result<(), Error> {
    // A transaction of the caller's own is none of ours to make longer.
    if !transaction.is_part()
        && let Some(turn) = session.sweep_turn()
    {
        let next = transaction.sweep(lines, turn)?;
        session.swept(next);
    }
    Ok(())
}

/// What was found under the id of a request.
#[expect(clippy::large_enum_variant, reason = "it is looked at once and gone")]
enum Resumed {
    Not,
    Whole(Claim),
    /// The permit is there, but its slots came back when its process died.
    WithoutSlots {
        number: PermitNumber,
        at: Timestamp,
    },
}

/// Looks for what was granted before under the same id.
fn resume(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plan: &Plan<'_>,
    id: &str,
) -> Result<Resumed, Error> {
    let Some(mut found) = transaction.find_permit(id)? else {
        return Ok(Resumed::Not);
    };
    let me = session.owner();
    let is_of_another = found.owner.is_some_and(|owner| Some(owner) != me);
    if is_of_another && found.end.is_none() && transaction.reclaim(&session.lock_file)? {
        match transaction.find_permit(id)? {
            Some(again) => found = again,
            None => return Ok(Resumed::Not),
        }
    }
    if found.end == Some(End::Cancelled) {
        return Ok(Resumed::Not);
    }
    if found.request != plan.print() {
        return Err(Error::IdTaken {
            id: id.to_owned(),
            stored: found.request.replace('\n', ", "),
            file: transaction.place.database.clone(),
        });
    }
    let holder = match (found.end, found.owner, found.detached) {
        (Some(end), _, _) => Holder::Ended(end),
        (None, None, false) => Holder::Claim,
        _ => Holder::Other,
    };
    let claim = transaction.claim_on(&found, id, session, holder)?;
    let lacks_slots = claim.print() != found.request;
    if holder == Holder::Claim && lacks_slots {
        let (number, at) = (found.number, found.at);
        return Ok(Resumed::WithoutSlots { number, at });
    }
    if let (Holder::Claim, Some(me)) = (holder, me) {
        transaction.adopt(found.number, me, None, None)?;
    }
    Ok(Resumed::Whole(claim))
}

/// Takes the slots again of a permit that nobody answers for any more.
fn retake(
    transaction: &mut Transaction<'_>,
    session: &Session,
    lines: &[Line<'_>],
    number: PermitNumber,
    owner: i64,
    id: &str,
) -> Result<Claim, Error> {
    let expires = expiry(lines.iter(), transaction.now());
    // Others may have held the slots since, with larger numbers.
    let fence = transaction.next_permit()?;
    transaction.adopt(number, owner, expires, Some(fence))?;
    for line in lines {
        transaction.take_slots(number, line, expires)?;
    }
    match transaction.find_permit(id)? {
        Some(found) => transaction.claim_on(&found, id, session, Holder::Claim),
        None => Err(transaction
            .place
            .damaged("a permit is gone that was just there")),
    }
}

/// Waits by a ticket, the former one if it is still in line.
fn stand_in_line(
    transaction: &mut Transaction<'_>,
    lines: &[Line<'_>],
    owner: i64,
    ticket: Option<TicketId>,
    latest: Timestamp,
) -> Result<TicketId, Error> {
    match ticket {
        Some(ticket) if transaction.is_in_line(ticket)? => {
            transaction.goes_on_waiting(ticket)?;
            Ok(ticket)
        }
        _ => transaction.queue(owner, lines, latest),
    }
}

/// When to come again without being called: when the rates admit, or a slot comes back by itself.
fn again_or_expiry(
    transaction: &Transaction<'_>,
    lines: &[Line<'_>],
    mut again_at: Timestamp,
) -> Result<Timestamp, Error> {
    for line in lines.iter().filter(|line| is_of_slots(line)) {
        if let Some(expires) = transaction.next_expiry(line.id)? {
            again_at = again_at.min(expires);
        }
    }
    Ok(again_at)
}
