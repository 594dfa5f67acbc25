//! Why a request would be refused now, in words: `explain`.

use std::io::{self, Write};

use clap::Args;
use quotalite::{
    BreakerState, BreakerUsage, ChargeKind, Denial, Error, Limit, Look, Obstacle, Peek, Timestamp,
    Usage, Window,
};
use serde::Serialize;

use crate::admission::Refusal;
use crate::ask::{self, Take};
use crate::ledger::{Permit, Spenders, Taken, find_heirs, held_by, list, taken};
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
    /// When it would be admitted, in words.
    #[serde(skip)]
    when: Option<String>,
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
    #[serde(skip)]
    verdict: Verdict,
}

/// Whether it lets the amount in, in words.
#[derive(Debug)]
enum Verdict {
    Open(&'static str),
    Shut { how: &'static str, when: String },
}

#[derive(Debug, Serialize)]
struct Spent {
    at: String,
    amount: u64,
    #[serde(flatten)]
    by: Spenders,
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
    let inspector = shell.inspector()?;
    let mut explained = inspector.look(|look| {
        let peek = look.peek(&request)?;
        let limits = args.takes.iter().map(|take| OfLimit::read(look, take));
        let limits = limits.collect::<Result<_, Error>>()?;
        let when = match peek.denial() {
            Some(denial) => Some(when(denial, &look.usage(denial.key())?)),
            None => None,
        };
        Ok(Explained {
            admitted: peek.is_now(),
            refusal: refusal(&peek, look),
            limits,
            when,
        })
    })?;
    find_heirs(
        &inspector,
        explained
            .limits
            .iter_mut()
            .flat_map(|limit| &mut limit.permits),
    );
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

/// When a request would be admitted, in words that are true of what stands in its way.
fn when(denial: &Denial, usage: &Usage) -> String {
    if let Some(after) = denial.retry_after() {
        return format!("in {}", show::duration(after));
    }
    let is_free = usage.available() >= denial.amount();
    match denial.obstacle() {
        Obstacle::Slots(_) if !is_free => "when slots come back",
        Obstacle::Breaker if !is_free => "when a probe has ended",
        _ => "when those who wait in line have had their turn",
    }
    .to_owned()
}

impl OfLimit {
    fn read(look: &mut Look<'_>, take: &Take) -> Result<Self, Error> {
        let Take { key, amount } = take;
        let usage = look.usage(key)?;
        let peek = look.peek((key.as_str(), *amount))?;
        let now = look.now();
        let mut reasons = Vec::new();
        if let Some(denial) = peek.denial() {
            reasons.extend(obstacle(denial, &usage));
        }
        reasons.extend(state(&usage, look));
        let mut permits = look.permits()?;
        permits
            .retain(|row| row.state.is_open() && row.takes.iter().any(|(taken, _)| taken == key));
        let permits = permits.into_iter();
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
            verdict: Verdict::of(&peek, &usage),
            largest: largest(look, usage.limit())?,
        })
    }
}

impl Verdict {
    fn of(peek: &Peek, usage: &Usage) -> Self {
        let breaker = usage.breaker().map(BreakerUsage::state);
        let Some(denial) = peek.denial() else {
            return Self::Open(match breaker {
                None => "has room",
                Some(BreakerState::HalfOpen) => "lets a probe through",
                Some(_) => "lets calls through",
            });
        };
        let how = match (denial.obstacle(), breaker) {
            (_, Some(BreakerState::HalfOpen)) => "lets no more probes through",
            (_, Some(_)) => "lets nobody through",
            (Obstacle::Paused, None) => "lets nobody in",
            _ => "has no room",
        };
        let when = when(denial, usage);
        Self::Shut { how, when }
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

fn largest(look: &mut Look<'_>, limit: &Limit) -> Result<Vec<Spent>, Error> {
    let after = counts_from(limit, look.now());
    let mut charges = look.charges(limit.key(), after)?;
    charges.retain(|row| row.kind == ChargeKind::Charged && row.amount > 0);
    if charges.is_empty() {
        return Ok(Vec::new());
    }
    charges.sort_by_key(|row| (std::cmp::Reverse(row.amount), row.at));
    let spenders = Spenders::read(look, limit.key(), after)?;
    let spent = charges.iter().take(MOST).map(|row| Spent {
        at: show::instant(look, row.at),
        amount: row.amount,
        by: spenders.get(&row.at).cloned().unwrap_or_default(),
        time: show::time(look.wall(row.at)),
    });
    Ok(spent.collect())
}

/// What stands in the way, in words; nothing where [`state`] says it.
fn obstacle(denial: &Denial, usage: &Usage) -> Option<String> {
    let wanted = number(denial.amount());
    Some(match denial.obstacle() {
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
            format!(
                "{bucket}: {} available, {wanted} wanted; a bucket does not know who has spent what",
                number(available)
            )
        }
        Obstacle::Slots(count) if usage.available() >= denial.amount() => format!(
            "{} of {} held, {wanted} wanted; others have waited for longer",
            number(usage.held()),
            counted(count, "slot")
        ),
        Obstacle::Slots(count) => format!(
            "{} of {} held, {wanted} wanted; nobody knows when a holder ends",
            number(usage.held()),
            counted(count, "slot")
        ),
        Obstacle::Paused | Obstacle::Breaker | Obstacle::SlowStart => return None,
        other => other.to_string(),
    })
}

/// What else there is to know about how it stands.
pub(crate) fn state(usage: &Usage, look: &Look<'_>) -> Vec<String> {
    let time = |at: Timestamp| show::time(look.wall(at));
    let mut state = Vec::new();
    let broken = usage
        .breaker()
        .filter(|breaker| breaker.state() != BreakerState::Closed);
    let opens_again = broken.and_then(BreakerUsage::probes_from);
    // An open breaker is a pause until it is half-open.
    let pause = usage
        .pause()
        .filter(|pause| Some(pause.until()) != opens_again);
    if let Some(pause) = pause {
        let strikes = match pause.strikes() {
            0 => String::new(),
            strikes => format!(", after {}", counted(u64::from(strikes), "strike")),
        };
        state.push(format!(
            "paused since {} until {}{strikes}: `quotalite resume` lifts it",
            time(pause.since()),
            time(pause.until())
        ));
    }
    if let Some(breaker) = broken {
        state.push(broken_in_words(breaker, usage, time));
    }
    if let Some(until) = usage.starts_slowly_until() {
        state.push(format!(
            "it starts slowly after a pause: until {} it admits less than its rates do",
            time(until)
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

fn broken_in_words(
    breaker: &BreakerUsage,
    usage: &Usage,
    time: impl Fn(Timestamp) -> String,
) -> String {
    let at = |at: Option<Timestamp>| at.map_or_else(|| "an unknown time".to_owned(), &time);
    let (since, probes_from) = (at(breaker.since()), at(breaker.probes_from()));
    let reason = breaker.reason().unwrap_or("for no known reason");
    let probes = u64::from(breaker.probes());
    let counted_probes = counted(probes, "probe");
    if breaker.state() == BreakerState::Open {
        return format!(
            "breaker open since {since}: {reason}; nobody before {probes_from}, then {counted_probes} at a time: \
            `quotalite resume` closes it"
        );
    }
    let under_way = probes.saturating_sub(usage.available());
    format!(
        "breaker half-open since {probes_from}: {reason}; {counted_probes} at a time, {} under way, {} of {} succeeded: \
        one that fails opens it again",
        number(under_way),
        number(u64::from(breaker.succeeded())),
        number(probes)
    )
}

impl Explained {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match (&self.refusal, &self.when) {
            (Some(refusal), Some(when)) => {
                let alone = if refusal.retry_after_s.is_some() {
                    " if nobody else came"
                } else {
                    ""
                };
                writeln!(
                    out,
                    "{BAD}It would be refused now{BAD:#}, and admitted {BOLD}{when}{BOLD:#}{alone}: \
                    {BOLD}{}{BOLD:#} stands in the way.",
                    refusal.key
                )?;
            }
            _ => writeln!(out, "{GOOD}It would be admitted now.{GOOD:#}")?,
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
        writeln!(
            out,
            "\n{BOLD}{key}{BOLD:#}: {amount} wanted of {definition}"
        )?;
        match &self.verdict {
            Verdict::Open(how) => writeln!(out, "  {GOOD}{how}{GOOD:#}")?,
            Verdict::Shut { how, when } => {
                writeln!(out, "  {BAD}{how}{BAD:#}, and will {when}")?;
            }
        }
        for reason in &self.reasons {
            writeln!(out, "  {reason}")?;
        }
        self.write_people(out)?;
        if self.refusal.is_some() {
            self.write_largest(out)?;
        }
        Ok(())
    }

    fn write_people(&self, out: &mut dyn Write) -> io::Result<()> {
        let process = |pid: u32| format!("process {pid}");
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
                show::seconds(permit.since_s)
            )?;
            if !permit.heirs.is_empty() {
                writeln!(out, "    it {}", held_by(&permit.heirs))?;
            }
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
                show::seconds(waiting.since_s)
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
        Ok(())
    }

    fn write_largest(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.largest.is_empty() {
            return Ok(());
        }
        writeln!(out, "  largest charges that count:")?;
        for spent in &self.largest {
            let by = spent.by.to_string();
            let gap = if by.is_empty() { "" } else { ": " };
            let amount = number(spent.amount);
            writeln!(out, "    {amount} at {}{gap}{by}", spent.time)?;
        }
        if self.largest.iter().any(|spent| spent.by.is_nobody()) {
            let why = "the file knows who has spent something only under an id, until an hour after its end";
            writeln!(out, "    {DIM}{why}{DIM:#}")?;
        }
        Ok(())
    }
}
