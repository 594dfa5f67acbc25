//! The line: who waits for slots, in order, and who may go ahead of them.
//!
//! Rates are waited for in the calendar. Slots have none, for nobody knows when a holder ends: who wants some
//! waits by a ticket until everything in its request is free at once, and charges nothing until then. A
//! limit that a ticket is short of is kept for it; a limit that it is not short of, others may use, as long as
//! all who can go still can.
//! So nobody is overtaken where that would delay it, and nobody stands still for a limit that
//! those ahead could not use anyway.

mod places;

use std::sync::Arc;

use smallvec::SmallVec;

pub(crate) use self::places::book_behind;
use crate::calendar::{self, Blocker, Earliest, LimitId, Line};
use crate::clock::Timestamp;
use crate::decision::{Books, Refusal, Verdict, decide};
use crate::definition::Known;
use crate::limit::Obstacle;
use crate::plan::Patience;
use crate::store::Few;

/// How many tickets are looked at for one decision. Who has more ahead of it, is behind them.
pub(crate) const MOST_AHEAD: usize = 256;

/// Somebody who waits by a ticket.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    /// Who waits; nobody in particular where only one process can.
    pub(crate) owner: i64,
    pub(crate) takes: Few<(Arc<Known>, i64)>,
    /// It was told long ago that it can go, and did not: it is stopped, or stuck. Nothing is kept for it.
    pub(crate) is_late: bool,
}

impl Waiter {
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.takes.iter().map(|(known, amount)| Line {
            id: known.id,
            pattern: known.pattern,
            limit: &known.limit,
            amount: *amount,
        })
    }
}

/// What those ahead leave to those behind.
#[derive(Debug, Default)]
struct Kept {
    /// Limits that somebody ahead is short of.
    wanted: SmallVec<[LimitId; 8]>,
    /// What those ahead who can go will take.
    promised: SmallVec<[(LimitId, i64); 8]>,
}

impl Kept {
    fn is_wanted(&self, limit: LimitId) -> bool {
        self.wanted.contains(&limit)
    }

    fn promised(&self, limit: LimitId) -> i64 {
        let promises = self.promised.iter().filter(|(id, _)| *id == limit);
        promises.fold(0, |sum: i64, (_, amount)| sum.saturating_add(*amount))
    }

    /// A line that asks for what was promised to others, too: if that fits, so does the line behind them.
    fn behind<'a>(&self, line: &Line<'a>) -> Line<'a> {
        Line {
            amount: line.amount.saturating_add(self.promised(line.id)),
            ..*line
        }
    }

    /// Whether a line is short of something now.
    fn is_short<B: Books>(
        &self,
        books: &mut B,
        line: &Line<'_>,
        now: Timestamp,
    ) -> Result<bool, B::Error> {
        if self.is_wanted(line.id) {
            return Ok(true);
        }
        let line = self.behind(line);
        if line.amount > line.limit.tightest().capacity().cast_signed() {
            return Ok(true);
        }
        Ok(decide(books, &[line], now, now)? != Verdict::Admit(now))
    }

    /// Lets one more stand ahead. True if it can go now.
    fn stand_ahead<B: Books>(
        &mut self,
        books: &mut B,
        waiter: &Waiter,
        now: Timestamp,
    ) -> Result<bool, B::Error> {
        let mut short = Few::<LimitId>::new();
        for line in waiter.lines() {
            if self.is_short(books, &line, now)? {
                short.push(line.id);
            }
        }
        let can_go = short.is_empty();
        if waiter.is_late {
            return Ok(can_go);
        }
        if can_go {
            let promises = waiter.lines().map(|line| (line.id, line.amount));
            self.promised.extend(promises);
        }
        self.wanted.extend(short);
        Ok(can_go)
    }
}

/// Decides a request behind those who wait ahead of it, the first one first.
pub(crate) fn decide_behind<B: Books>(
    books: &mut B,
    ahead: &[Waiter],
    lines: &[Line<'_>],
    now: Timestamp,
    latest: Timestamp,
) -> Result<Verdict, B::Error> {
    let mut kept = Kept::default();
    let mut can_go = Few::<&Waiter>::new();
    for waiter in ahead {
        if kept.stand_ahead(books, waiter, now)? && !waiter.is_late {
            can_go.push(waiter);
        }
    }
    let is_behind = |position: usize, line: &Line<'_>| Blocker {
        line: position,
        obstacle: line.limit.tightest(),
    };
    let mut behind = Few::with_capacity(lines.len());
    for (position, line) in lines.iter().enumerate() {
        let with_promises = kept.behind(line);
        let capacity = line.limit.tightest().capacity().cast_signed();
        if kept.is_wanted(line.id) || with_promises.amount > capacity || ahead.len() > MOST_AHEAD {
            let blocker = is_behind(position, line);
            return Ok(Verdict::Refuse(Refusal::Behind { blocker }));
        }
        behind.push(with_promises);
    }
    let verdict = decide(books, &behind, now, latest)?;
    if verdict != Verdict::Admit(now) || can_go.len() == ahead.len() {
        return Ok(verdict);
    }
    // Somebody ahead waits for something else. If the request left it short of one limit more, it would keep that,
    // too, and hold up those between the two who can go now.
    let mut kept = Kept {
        promised: lines.iter().map(|line| (line.id, line.amount)).collect(),
        ..Kept::default()
    };
    for waiter in ahead {
        let goes = kept.stand_ahead(books, waiter, now)?;
        if !goes && can_go.iter().any(|other| std::ptr::eq(*other, waiter)) {
            let held_up = lines.iter().position(|line| kept.is_wanted(line.id));
            let position = held_up.unwrap_or(0);
            let blocker = is_behind(position, &lines[position]);
            return Ok(Verdict::Refuse(Refusal::Behind { blocker }));
        }
    }
    Ok(verdict)
}

/// The positions of those who can go now, of all who wait, the first one first.
pub(crate) fn who_can_go<B: Books>(
    books: &mut B,
    waiters: &[Waiter],
    now: Timestamp,
) -> Result<Few<usize>, B::Error> {
    let mut kept = Kept::default();
    let mut can_go = Few::new();
    for (position, waiter) in waiters.iter().enumerate() {
        if kept.stand_ahead(books, waiter, now)? {
            can_go.push(position);
        }
    }
    Ok(can_go)
}

/// When the rates of a request would admit it at the earliest, if they do not now.
fn rates_admit<B: Books>(
    books: &mut B,
    lines: &[Line<'_>],
    now: Timestamp,
) -> Result<Option<(Timestamp, Blocker)>, B::Error> {
    Ok(match calendar::earliest(books, lines, now)? {
        Earliest::Now => None,
        Earliest::Later { at, blocker } => Some((at, blocker)),
        Earliest::Beyond { blocker } => Some((Timestamp::from_nanos(i64::MAX), blocker)),
    })
}

/// Whether a request that is refused now waits by a ticket, and when to come again then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// It asks for nothing that is waited for in this way, or its caller does not wait.
    Not,
    /// Its rates admit it too late, whatever else stands in the way.
    InVain(Refusal),
    /// Without being called, it comes again when its rates admit it, or to be told that it is too late.
    Until(Timestamp),
}

/// Whether somebody who is refused now can wait until `latest` for slots, or behind others who do.
pub(crate) fn waiting<B: Books>(
    books: &mut B,
    lines: &[Line<'_>],
    refusal: &Refusal,
    patience: Patience,
    (now, latest): (Timestamp, Timestamp),
) -> Result<Waiting, B::Error> {
    let is_of_the_line = refusal.is_of_the_line() || lines.iter().any(is_of_slots);
    if !is_of_the_line || !patience.waits() || latest <= now {
        return Ok(Waiting::Not);
    }
    Ok(match rates_admit(books, lines, now)? {
        Some((at, blocker)) if at > latest => Waiting::InVain(Refusal::Until { at, blocker }),
        Some((at, _)) => Waiting::Until(at),
        None => Waiting::Until(latest),
    })
}

/// Whether a line is one of slots.
pub(crate) fn is_of_slots(line: &Line<'_>) -> bool {
    matches!(
        line.limit.tightest(),
        Obstacle::Slots(_) | Obstacle::Breaker
    )
}

#[cfg(test)]
mod tests;
