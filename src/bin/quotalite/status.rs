//! How limits stand: `status` and `usage`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::Style;
use clap::Args;
use quotalite::{BreakerState, Error, Look, Timestamp, Usage};
use serde::Serialize;

use crate::shell::{Code, Failure, Shell, reader_leaves_within};
use crate::show::{self, BAD, BOLD, Cell, Column, DIM, Table, WARN, bar, colour_of, counted};

/// How limits stand: for each rate what is used and available, and when more comes free
///
/// At most 50 keys are shown on a terminal, in their order; all of them elsewhere.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Only keys that match: `*` is one or more characters
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// Show so many keys at most
    #[arg(long, value_name = "KEYS")]
    max: Option<usize>,
    /// Show it again and again, until ^C
    #[arg(long, short)]
    watch: bool,
    /// How long to wait in between
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::ask::duration, requires = "watch")]
    every: Duration,
}

/// How one limit stands
#[derive(Args, Debug)]
pub(crate) struct UsageArgs {
    /// The limit
    #[arg(value_parser = crate::ask::key)]
    key: String,
}

/// So many keys fit a terminal without losing whoever looks.
const MOST_ON_A_TERMINAL: usize = 50;

pub(crate) fn status(shell: &Shell, args: &StatusArgs) -> Result<Code, Failure> {
    let inspector = shell.inspector()?;
    let is_terminal = io::stdout().is_terminal();
    let most = match args.max {
        Some(most) => most,
        None if is_terminal && !shell.json => MOST_ON_A_TERMINAL,
        None => usize::MAX,
    };
    loop {
        let status = inspector.look(|look| Status::read(look, &args.pattern, most))?;
        if args.watch && is_terminal && !shell.json {
            // To the top, and what was there before goes; without colours, too.
            write!(io::stdout(), "\x1b[H\x1b[2J")?;
        }
        shell.print(&status, |out| status.write(out))?;
        if !args.watch || reader_leaves_within(args.every.max(Duration::from_millis(10))) {
            return Ok(Code::Done);
        }
    }
}

pub(crate) fn usage(shell: &Shell, args: &UsageArgs) -> Result<Code, Failure> {
    let standing = shell.inspector()?.look(|look| {
        let in_line = InLine::read(look)?;
        Standing::read(look, &args.key, &in_line)
    })?;
    shell.print(&standing, |out| standing.write(out))?;
    Ok(Code::Done)
}

/// How all limits stand.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    at: String,
    /// How many keys there are in the file.
    pub(crate) keys: u64,
    pub(crate) limits: Vec<Standing>,
    /// Whether there are more that match.
    #[serde(skip)]
    pub(crate) is_cut: bool,
    #[serde(skip)]
    pattern: String,
}

/// How one limit stands.
#[derive(Debug, Serialize)]
pub(crate) struct Standing {
    pub(crate) key: String,
    pub(crate) definition: String,
    pub(crate) unit: Option<String>,
    pub(crate) available: Option<u64>,
    pub(crate) paused_until: Option<String>,
    pub(crate) paused_for_s: Option<f64>,
    pub(crate) starts_slowly_until: Option<String>,
    pub(crate) starts_slowly_for_s: Option<f64>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) permits: u64,
    pub(crate) waiting: u64,
    pub(crate) booked: u64,
    pub(crate) debt: u64,
    pub(crate) decreasing: bool,
    pub(crate) parts: Vec<Gauge>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Breaker {
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) probes_from: Option<String>,
}

/// How a rate, a quota, a bucket, or the slots of a limit stand.
#[derive(Debug, Serialize)]
pub(crate) struct Gauge {
    #[serde(rename = "part")]
    pub(crate) name: String,
    pub(crate) used: u64,
    pub(crate) available: u64,
    pub(crate) capacity: u64,
    pub(crate) next_release: Option<String>,
    pub(crate) next_release_in_s: Option<f64>,
}

impl Gauge {
    /// How much of it is used, in thousandths; 1000 at most.
    pub(crate) fn used_thousandths(&self) -> u16 {
        let used = u128::from(self.used) * 1_000 / u128::from(self.capacity.max(1));
        u16::try_from(used.min(1_000)).unwrap_or(1_000)
    }
}

/// How many have booked, by key.
pub(crate) struct InLine(BTreeMap<String, u64>);

impl InLine {
    pub(crate) fn read(look: &Look<'_>) -> Result<Self, Error> {
        let mut booked = BTreeMap::new();
        for row in look.bookings()? {
            *booked.entry(row.key).or_insert(0) += 1;
        }
        Ok(Self(booked))
    }
}

impl Status {
    pub(crate) fn read(look: &mut Look<'_>, pattern: &str, most: usize) -> Result<Self, Error> {
        let mut keys = look.keys(pattern, most.saturating_add(1))?;
        let is_cut = keys.len() > most;
        keys.truncate(most);
        let in_line = InLine::read(look)?;
        let limits = keys
            .iter()
            .map(|key| Standing::read(look, key, &in_line))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            at: show::instant(look, look.now()),
            keys: look.key_count()?,
            limits,
            is_cut,
            pattern: pattern.to_owned(),
        })
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(COLUMNS);
        for standing in &self.limits {
            standing.rows(&mut table);
        }
        if table.is_empty() {
            match &*self.pattern {
                "*" => writeln!(out, "{DIM}no keys{DIM:#}")?,
                pattern => writeln!(out, "{DIM}no keys match `{pattern}`{DIM:#}")?,
            }
        } else {
            table.write(out, show::width())?;
        }
        if self.is_cut {
            let count = show::number(self.keys);
            writeln!(
                out,
                "{DIM}and more: the file has {count} keys; `--max`, or a pattern such as 'tenant:*'{DIM:#}"
            )?;
        }
        Ok(())
    }
}

const COLUMNS: [Column; 7] = [
    Column::key("KEY"),
    Column::left("LIMIT", 3).cut_to(14),
    Column::left("", 5),
    Column::right("USED", 2),
    Column::right("AVAILABLE", 0),
    Column::left("MORE IN", 4),
    Column::left("", 1).cut_to(14),
];

/// How long a bar is.
const BAR: usize = 10;

impl Standing {
    pub(crate) fn read(look: &mut Look<'_>, key: &str, in_line: &InLine) -> Result<Self, Error> {
        let usage = look.usage(key)?;
        let available = available(look, &usage)?;
        // Whatever a part has left, those in line come first.
        let left = |part: u64| match usage.waiting() {
            0 => part,
            _ => part.min(available),
        };
        let at = |at: Timestamp| show::instant(look, at);
        let seconds = |until: Timestamp| until.saturating_duration_since(usage.at()).as_secs_f64();
        let limit = usage.limit();
        let pause = usage.pause();
        let breaker = usage.breaker().map(|breaker| Breaker {
            state: breaker.state().to_string(),
            reason: breaker.reason().map(str::to_owned),
            probes_from: breaker.probes_from().map(at),
        });
        let part =
            |name: String, [used, available, capacity]: [u64; 3], next: Option<Timestamp>| Gauge {
                name,
                used,
                available,
                capacity,
                next_release: next.map(at),
                next_release_in_s: next.map(seconds),
            };
        let rates = usage.rates().iter().map(|rate| {
            let numbers = [rate.used(), left(rate.available()), rate.rate().capacity()];
            let mut name = rate.rate().to_string();
            if let Some(unit) = limit.unit() {
                name = name.replacen('/', &format!(" {unit}/"), 1);
            }
            part(name, numbers, rate.next_release())
        });
        let bucket = usage.bucket().map(|bucket| {
            let available = left(bucket.available());
            let numbers = [bucket.used(), available, bucket.bucket().burst()];
            part(bucket.bucket().to_string(), numbers, bucket.next_release())
        });
        let slots = limit.slot_count().map(|count| {
            let numbers = [usage.held(), available, count];
            part(counted(count, "slot"), numbers, None)
        });
        Ok(Self {
            key: key.to_owned(),
            definition: limit.as_given().to_string(),
            unit: limit.unit().map(str::to_owned),
            available: has_number(&usage).then_some(available),
            paused_until: pause.map(|pause| at(pause.until())),
            paused_for_s: pause.map(|pause| seconds(pause.until())),
            starts_slowly_until: usage.starts_slowly_until().map(at),
            starts_slowly_for_s: usage.starts_slowly_until().map(seconds),
            breaker,
            permits: usage.permits(),
            waiting: usage.waiting(),
            booked: in_line.0.get(key).copied().unwrap_or(0),
            debt: usage.debt(),
            decreasing: usage.is_decreasing(),
            parts: rates.chain(bucket).chain(slots).collect(),
        })
    }

    /// How much of its tightest part is used, in thousandths.
    pub(crate) fn used_thousandths(&self) -> u16 {
        let parts = self.parts.iter().map(Gauge::used_thousandths);
        parts.max().unwrap_or(0)
    }

    /// Whether it lets nobody in, whatever is available.
    pub(crate) fn is_blocked(&self) -> bool {
        let is_open = |breaker: &Breaker| breaker.state != BreakerState::Closed.to_string();
        self.paused_for_s.is_some() || self.breaker.as_ref().is_some_and(is_open)
    }

    /// What else there is to say about it.
    pub(crate) fn notes(&self) -> (String, Style) {
        let mut notes = Vec::new();
        let mut style = Style::new();
        // An open breaker is a pause until it is half-open.
        let is_of_breaker = |breaker: &Breaker| breaker.probes_from == self.paused_until;
        let mut pause = self.paused_for_s.map(show::seconds);
        if let Some(breaker) = &self.breaker {
            let left = pause.take_if(|_| is_of_breaker(breaker));
            let left = left.map(|left| format!(" {left}"));
            let reason = breaker.reason.as_ref().map(|reason| format!(": {reason}"));
            notes.push(
                [
                    breaker.state.clone(),
                    left.unwrap_or_default(),
                    reason.unwrap_or_default(),
                ]
                .concat(),
            );
            if breaker.state != BreakerState::Closed.to_string() {
                style = BAD;
            }
        }
        if let Some(left) = pause {
            notes.push(format!("paused {left}"));
            style = BAD;
        }
        if let Some(left) = self.starts_slowly_for_s.map(show::seconds) {
            notes.push(format!("starts slowly {left}"));
            style = WARN;
        }
        if self.decreasing {
            notes.push("decreasing".to_owned());
            style = WARN;
        }
        for (count, what) in [(self.permits, "permit"), (self.debt, "in debt")] {
            if count > 0 {
                notes.push(match what {
                    "permit" => counted(count, what),
                    _ => format!("{} {what}", show::number(count)),
                });
            }
        }
        let waiting = self.waiting + self.booked;
        if waiting > 0 {
            notes.push(format!("{} waiting", show::number(waiting)));
        }
        (notes.join(", "), style)
    }

    fn rows(&self, table: &mut Table) {
        let (notes, style) = self.notes();
        let mut key = Cell::styled(&*self.key, BOLD);
        let mut notes = Cell::styled(notes, style);
        for part in &self.parts {
            let colour = colour_of(part.used, part.capacity);
            let more = part
                .next_release_in_s
                .map(show::seconds)
                .unwrap_or_default();
            table.row(vec![
                std::mem::take(&mut key),
                part.name.as_str().into(),
                Cell::styled(bar(part.used, part.capacity, BAR), colour),
                show::number(part.used).into(),
                show::number(part.available).into(),
                more.into(),
                std::mem::take(&mut notes),
            ]);
        }
        if self.parts.is_empty() {
            let nothing = Cell::default;
            table.row(vec![
                key,
                "breaker".into(),
                nothing(),
                show::number(self.permits).into(),
                nothing(),
                nothing(),
                notes,
            ]);
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{BOLD}{}{BOLD:#}: {}", self.key, self.definition)?;
        let mut table = Table::new(&COLUMNS[1..]);
        let mut rows = Table::new(COLUMNS);
        self.rows(&mut rows);
        for row in rows.into_rows() {
            table.row(&row[1..]);
        }
        table.write(out, show::width())
    }
}

/// The largest amount that would be admitted now. Those who wait in line keep for themselves some of what is free, or all of it.
pub(crate) fn available(look: &mut Look<'_>, usage: &Usage) -> Result<u64, Error> {
    let free = usage.available();
    if usage.waiting() == 0 || free == 0 {
        return Ok(free);
    }
    let key = usage.limit().key();
    let mut is_admitted = |amount: u64| look.peek((key, amount)).map(|peek| peek.is_now());
    // Mostly it is all of it, or nothing.
    if is_admitted(free)? {
        return Ok(free);
    }
    let (mut admitted, mut refused) = (0, free);
    let mut amount = 1;
    while refused - admitted > 1 {
        if is_admitted(amount)? {
            admitted = amount;
        } else {
            refused = amount;
        }
        amount = admitted + (refused - admitted) / 2;
    }
    Ok(admitted)
}

/// Whether what is available is a number: a breaker lets through whoever comes, or nobody.
fn has_number(usage: &Usage) -> bool {
    usage.breaker().is_none()
}
