//! What a worker process has open, and what it calls.

use std::mem;
use std::path::Path;
use std::time::Duration;

use quotalite::{Ask, Limit, Limiter, MINUTE, Permit, Request};

use crate::raw::Raw;
use crate::round::{self, Call, Sample, Span};
use crate::subjects::Calls;
use crate::{Failure, ledger};

/// Nobody reaches this.
const PLENTY: u64 = 1 << 40;

/// A limit that admits everything.
const OPEN: &str = "open";
const SHORT: Duration = Duration::from_millis(100);

/// A limit that is used up for a day. So many different amounts of it are asked for in turns.
const SPENT: &str = "spent";
const SPENT_PER_DAY: u64 = 1 << 20;
const AMOUNTS: u64 = 4_096;

/// A limit whose callers stand in line for days: nobody's turn comes during a run.
const BUSY: &str = "busy";
const CALLERS_PER_HOUR: u64 = 100;

/// Settlements and bookings change what they are measured on, so that a round makes only so many.
const FEW: usize = 64;
const TO_SETTLE: usize = FEW * crate::MOST_ROUNDS * crate::PARTS as usize;

/// As many charges lie between one to settle and the next: they share neither a page nor a correction.
const APART: u64 = 1_000;

pub enum Work {
    Raw(Raw),
    Limited {
        limiter: Limiter,
        to_settle: Vec<Permit>,
    },
}

impl Work {
    /// Opens the file and makes it what the calls need. All processes of a crowd do the same.
    pub fn prepare(file: &Path, calls: Calls, size: u64) -> Result<Self, Failure> {
        if calls == Calls::Raw {
            return Ok(Self::Raw(Raw::open(file)?));
        }
        let limiter = Limiter::open(file)?;
        let mut to_settle = Vec::new();
        // What is charged leaves the windows either all the time or not during a run: it would be swept from some round on.
        limiter.define(match calls {
            Calls::GrantedAndSwept => Limit::new(OPEN).rate(PLENTY, SHORT).per_second(PLENTY),
            _ => Limit::new(OPEN).rate(PLENTY, MINUTE).per_hour(PLENTY),
        })?;
        match calls {
            Calls::Raw | Calls::GrantedAndSwept | Calls::FromBlock => {}
            Calls::Granted => ledger::fill(&limiter, file, OPEN, size)?,
            Calls::Refused | Calls::RefusedAnew | Calls::Mixed => spend(&limiter)?,
            Calls::Settle => {
                let counts = (TO_SETTLE, APART, size);
                to_settle = ledger::permits_before(&limiter, file, OPEN, counts)?;
                fastrand::shuffle(&mut to_settle);
            }
            Calls::Book | Calls::RefusedByLine => stand_in_line(&limiter, size)?,
        }
        Ok(Self::Limited { limiter, to_settle })
    }

    /// Calls until the round is over, with so many threads.
    pub fn round(&mut self, span: Span, calls: Calls, threads: usize) -> Result<Sample, Failure> {
        let (limiter, to_settle) = match self {
            Self::Raw(raw) => {
                let call: Call<'_> = Box::new(|| raw.transaction().map(|()| true));
                return round::run(span, 1, vec![call]);
            }
            Self::Limited { limiter, to_settle } => (&*limiter, to_settle),
        };
        match calls {
            Calls::Settle => {
                let rest = to_settle.len().saturating_sub(FEW);
                let mut now = to_settle.split_off(rest);
                round::run(span, 1, vec![Box::new(move || settle_one(&mut now))])
            }
            Calls::Book => {
                let mut left = FEW;
                round::run(span, 1, vec![Box::new(move || book(limiter, &mut left))])
            }
            Calls::FromBlock => {
                let blocks = limiter.blocks(OPEN, 100)?;
                let call =
                    move || -> Result<bool, Failure> { Ok(blocks.try_acquire()?.is_granted()) };
                round::run(span, 16, vec![Box::new(call)])
            }
            _ => {
                let callers = (0..threads).map(|_| caller(limiter, calls));
                // Reading the clock takes as long as a part of a call that is answered from memory.
                let timed_of = if calls == Calls::Refused { 16 } else { 1 };
                round::run(span, timed_of, callers.collect())
            }
        }
    }
}

/// One of those that can call as often as they like.
fn caller(limiter: &Limiter, calls: Calls) -> Call<'_> {
    let granted =
        |ask: Ask<'_>| -> Result<bool, Failure> { Ok(limiter.try_acquire(ask)?.is_granted()) };
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        // Each amount but the largest is less than the one that was refused before it, and nothing follows from that.
        let amount = AMOUNTS - turn % AMOUNTS;
        let as_expected = match calls {
            Calls::Refused => !granted(SPENT.into())?,
            Calls::RefusedAnew => !granted((&Request::new().take(SPENT, amount)).into())?,
            Calls::RefusedByLine => !granted((&Request::new().take(BUSY, amount)).into())?,
            Calls::Mixed if turn % 2 == 0 => !granted(SPENT.into())?,
            _ => granted(OPEN.into())?,
        };
        if as_expected {
            return Ok(true);
        }
        Err("a limit has admitted what it should refuse, or refused what it should admit".into())
    })
}

/// Uses up a day. Only the first process finds something left.
fn spend(limiter: &Limiter) -> Result<(), Failure> {
    limiter.define(Limit::new(SPENT).per_second(PLENTY).per_day(SPENT_PER_DAY))?;
    let all = Request::new().take(SPENT, SPENT_PER_DAY);
    // What is granted here stays charged: only bookings come back when they are dropped.
    drop(limiter.try_acquire(&all)?);
    Ok(())
}

/// The line: the first callers are admitted and fill an hour, and so many stand behind them.
fn stand_in_line(limiter: &Limiter, callers: u64) -> Result<(), Failure> {
    let hour = CALLERS_PER_HOUR * AMOUNTS;
    limiter.define(Limit::new(BUSY).per_second(PLENTY).per_hour(hour))?;
    for _ in 0..CALLERS_PER_HOUR + callers {
        take_place(limiter)?;
    }
    Ok(())
}

fn take_place(limiter: &Limiter) -> Result<(), Failure> {
    let booking = limiter.book(&Request::new().take(BUSY, AMOUNTS))?;
    // It keeps its place for as long as the process lives.
    mem::forget(booking);
    Ok(())
}

fn book(limiter: &Limiter, left: &mut usize) -> Result<bool, Failure> {
    if *left == 0 {
        return Ok(false);
    }
    *left -= 1;
    take_place(limiter).map(|()| true)
}

fn settle_one(permits: &mut Vec<Permit>) -> Result<bool, Failure> {
    let Some(permit) = permits.pop() else {
        return Ok(false);
    };
    permit.settle([(OPEN, 620)])?;
    Ok(true)
}
