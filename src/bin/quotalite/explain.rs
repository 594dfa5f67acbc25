//! Why a request would be refused now, in words: `explain`.

use std::io::{self, Write};

use clap::Args;
use quotalite::{
    BreakerState, ChargeKind, ChargeRow, Error, Limit, Look, Obstacle, Peek, Timestamp, Usage,
    Window,
};
use serde::Serialize;

use crate::admission::Refusal;
use crate::ask::{self, Take};
use crate::ledger::{Permit, Taken, list, taken};
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BAD, BOLD, DIM, GOOD, counted, number};

/// Why a request would be refused now, until when, by which limit, and who holds and has spent what
///
/// Nothing is charged. Exits with 0 if it would be admitted, with 75 if not.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// Limits, with an amount if it is not 1
    #[arg(required = true, value_name = "KEY[=AMOUNT]", value_parser = ask::take)]
    takes: Vec<Take>,
}

#[derive(Debug, Serialize)]
struct Explained {
    admitted: bool,
    refusal: Option<Refusal>,
    limits: Vec<OfLimit>,
}

/// What one of the limits has to say.
#[derive(Debug, Serialize)]
struct OfLimit {
    key: String,
    amount: u64,
    definition: String,
    /// What of it stands in the way, if it were asked for alone.
    refusal: Option<Refusal>,
    reasons: Vec<String>,
    /// The largest charges that count in the widest window, the largest first.
    largest: Vec<Spent>,
    permits: Vec<Permit>,
    bookings: Vec<Booked>,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Serialize)]
struct Spent {
    at: String,
    amount: u64,
    #[serde(skip)]
    time: String,
}

#[derive(Debug, Serialize)]
struct Booked {
    at: String,
    amount: u64,
    pid: u32,
    #[serde(skip)]
    ahead: String,
}

#[derive(Debug, Serialize)]
struct Waiting {
    pid: Option<u32>,
    since: String,
    since_s: f64,
    takes: Vec<Taken>,
}

/// How many charges, permits and bookings are told of.
const MOST: usize = 5;

pub(crate) fn explain(shell: &Shell, args: &ExplainArgs) -> Result<Code, Failure> {
    let request = ask::request(&args.takes);
    let explained = shell.inspector()?.look(|look| {
        let peek = look.peek(&request)?;
        let limits = args.takes.iter().map(|take| OfLimit::read(look, take));
        let limits = limits.collect::<Result<_, Error>>()?;
        Ok(Explained {
            admitted: peek.is_now(),
            refusal: refusal(&peek, look),
            limits,
        })
    })?;
    shell.print(&explained, |out| explained.write(out))?;
    Ok(if explained.admitted {
        Code::Done
    } else {
        Code::Refused
    })
}

fn refusal(peek: &Peek, look: &Look<'_>) -> Option<Refusal> {
    peek.denial().map(|denial| Refusal::new(denial, look))
}

impl OfLimit {
    fn read(look: &mut Look<'_>, take: &Take) -> Result<Self, Error> {
        let Take { key, amount } = take;
        let usage = look.usage(key)?;
        let peek = look.peek((key.as_str(), *amount))?;
        let now = look.now();
        let charges = look.charges(key, counts_from(usage.limit(), now))?;
        let mut reasons = Vec::new();
        if let Some(denial) = peek.denial() {
            reasons.push(obstacle(denial.obstacle(), &usage, *amount));
        }
        reasons.extend(state(&usage, look));
        let permits = look.permits()?.into_iter();
        let permits = permits
            .filter(|row| row.state.is_open() && row.takes.iter().any(|(taken, _)| taken == key));
        let bookings = look.bookings()?.into_iter().filter(|row| row.key == *key);
        let waiting = look.waiting()?.into_iter();
        let waiting = waiting.filter(|row| row.takes.iter().any(|(wanted, _)| wanted == key));
        let since = |at: Timestamp| now.saturating_duration_since(at);
        Ok(Self {
            key: key.clone(),
            amount: *amount,
            definition: usage.limit().as_given().to_string(),
            refusal: refusal(&peek, look),
            reasons,
            largest: largest(charges, look),
            permits: permits.map(|row| Permit::new(row, look)).collect(),
            bookings: bookings
                .map(|row| Booked {
                    at: show::instant(look, row.at),
                    amount: row.amount,
                    pid: row.pid,
                    ahead: show::duration(row.at.saturating_duration_since(now)),
                })
                .collect(),
            waiting: waiting
                .map(|row| Waiting {
                    pid: row.pid,
                    since: show::instant(look, row.since),
                    since_s: since(row.since).as_secs_f64(),
                    takes: taken(row.takes),
                })
                .collect(),
        })
    }
}

/// The instant after which what was charged can still count.
fn counts_from(limit: &Limit, now: Timestamp) -> Timestamp {
    let reach = limit.rates().iter().map(|rate| match rate.window() {
        Window::Rolling(window) => window + limit.pad() + limit.resolution().unwrap_or_default(),
        // A period of a calendar begins a year ago at the earliest.
        _ => quotalite::MAX_WINDOW,
    });
    let reach = reach.max().unwrap_or_default();
    let reach_ns = i64::try_from(reach.as_nanos()).unwrap_or(i64::MAX);
    Timestamp::from_nanos(now.as_nanos().saturating_sub(reach_ns))
}

fn largest(mut charges: Vec<ChargeRow>, look: &Look<'_>) -> Vec<Spent> {
    charges.retain(|row| row.kind == ChargeKind::Charged && row.amount > 0);
    charges.sort_by_key(|row| (std::cmp::Reverse(row.amount), row.at));
    let spent = charges.iter().take(MOST).map(|row| Spent {
        at: show::instant(look, row.at),
        amount: row.amount,
        time: show::time(look.wall(row.at)),
    });
    spent.collect()
}

/// What stands in the way, in words.
fn obstacle(obstacle: Obstacle, usage: &Usage, amount: u64) -> String {
    let wanted = number(amount);
    match obstacle {
        Obstacle::Rate(rate) => {
            let standing = usage
                .rates()
                .iter()
                .find(|standing| standing.rate() == rate);
            let used = standing.map_or(0, quotalite::RateUsage::used);
            let available = standing.map_or(0, quotalite::RateUsage::available);
            format!(
                "{rate}: {} of {} used, {} available, {wanted} wanted",
                number(used),
                number(rate.capacity()),
                number(available)
            )
        }
        Obstacle::Bucket(bucket) => {
            let available = usage.bucket().map_or(0, quotalite::BucketUsage::available);
            format!("{bucket}: {} available, {wanted} wanted", number(available))
        }
        Obstacle::Slots(count) => format!(
            "{} of {} held, {wanted} wanted; nobody knows when a holder ends",
            number(usage.held()),
            counted(count, "slot")
        ),
        Obstacle::Paused => "it is paused".to_owned(),
        Obstacle::SlowStart => {
            "it starts slowly after a pause: less than its rates for a while".to_owned()
        }
        Obstacle::Breaker => {
            "its breaker lets nobody through, or all its probes are under way".to_owned()
        }
        other => other.to_string(),
    }
}

/// What else there is to know about how it stands.
fn state(usage: &Usage, look: &Look<'_>) -> Vec<String> {
    let mut state = Vec::new();
    if let Some(pause) = usage.pause() {
        state.push(format!(
            "paused since {} until {}, after {}: `quotalite resume` lifts it",
            show::time(look.wall(pause.since())),
            show::time(look.wall(pause.until())),
            counted(u64::from(pause.strikes()), "strike")
        ));
    }
    if let Some(breaker) = usage
        .breaker()
        .filter(|breaker| breaker.state() != BreakerState::Closed)
    {
        let reason = breaker.reason().unwrap_or("for no known reason");
        let from = breaker.probes_from().map(|at| show::time(look.wall(at)));
        let from = from.map(|from| format!(", probes from {from}"));
        state.push(format!(
            "breaker {}: {reason}{}",
            breaker.state(),
            from.unwrap_or_default()
        ));
    }
    if usage.is_decreasing() {
        state.push("it was lowered: nothing is admitted until what is in use fits".to_owned());
    }
    if usage.debt() > 0 {
        state.push(format!(
            "{} used beyond what could be charged",
            number(usage.debt())
        ));
    }
    state
}

impl Explained {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.refusal {
            None => writeln!(out, "{GOOD}It would be admitted now.{GOOD:#}")?,
            Some(refusal) => {
                write!(out, "{BAD}It would be refused now{BAD:#}")?;
                match refusal.retry_after_s {
                    Some(after) => {
                        let after = show::duration(show::from_seconds(after));
                        write!(
                            out,
                            ", and admitted in {BOLD}{after}{BOLD:#} if nobody else came"
                        )?;
                    }
                    None => write!(out, ", until slots come free")?,
                }
                writeln!(out, ": {BOLD}{}{BOLD:#} stands in the way.", refusal.key)?;
            }
        }
        self.limits.iter().try_for_each(|limit| limit.write(out))
    }
}

impl OfLimit {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            key, definition, ..
        } = self;
        let amount = number(self.amount);
        writeln!(out, "\n{BOLD}{key}{BOLD:#}: {amount} of {definition}")?;
        match &self.refusal {
            None => writeln!(out, "  {GOOD}has room{GOOD:#}")?,
            Some(refusal) => {
                let when = refusal.retry_after_s.map(|after| {
                    let after = show::duration(show::from_seconds(after));
                    format!("in {after}")
                });
                let when = when.unwrap_or_else(|| "when a slot comes back".to_owned());
                writeln!(out, "  {BAD}has no room{BAD:#}, and will {when}")?;
            }
        }
        for reason in &self.reasons {
            writeln!(out, "  {reason}")?;
        }
        self.write_people(out)
    }

    fn write_people(&self, out: &mut dyn Write) -> io::Result<()> {
        let process = |pid: u32| format!("process {pid}");
        let since = |seconds: f64| show::duration(show::from_seconds(seconds));
        for permit in self.permits.iter().take(MOST) {
            let id = permit
                .id
                .as_ref()
                .map(|id| format!(", id {id}"))
                .unwrap_or_default();
            let holder = permit.pid.map(|pid| format!(" by {}", process(pid)));
            let holder = holder.unwrap_or_default();
            let takes = list(&permit.takes);
            let state = permit.state;
            writeln!(
                out,
                "  {state}{holder} for {}: {takes}{id}",
                since(permit.since_s)
            )?;
        }
        for booked in self.bookings.iter().take(MOST) {
            let amount = number(booked.amount);
            writeln!(
                out,
                "  booked by process {}: {amount} in {}",
                booked.pid, booked.ahead
            )?;
        }
        for waiting in self.waiting.iter().take(MOST) {
            let who = waiting.pid.map_or_else(|| "a process".to_owned(), process);
            let takes = list(&waiting.takes);
            writeln!(
                out,
                "  {who} waits for {takes}, since {}",
                since(waiting.since_s)
            )?;
        }
        let told = [self.permits.len(), self.bookings.len(), self.waiting.len()];
        let untold: usize = told.iter().map(|count| count.saturating_sub(MOST)).sum();
        if untold > 0 {
            writeln!(
                out,
                "  {DIM}and {untold} more: `--json` has them all{DIM:#}"
            )?;
        }
        if !self.largest.is_empty() && self.refusal.is_some() {
            let each = self.largest.iter();
            let each = each.map(|spent| format!("{} at {}", number(spent.amount), spent.time));
            let each = each.collect::<Vec<_>>().join(", ");
            writeln!(out, "  {DIM}largest charges that count: {each}{DIM:#}")?;
        }
        Ok(())
    }
}
