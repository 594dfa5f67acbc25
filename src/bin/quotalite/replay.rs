//! What if: another definition over what was charged.

mod plot;
mod rerun;
mod svg;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;
use quotalite::{ChargeKind, Error, Limit, Look, Timestamp, Window};
use serde::Serialize;

use self::plot::Series;
use self::rerun::{Charge, Fate, Rerun, rerun};
use crate::ask;
use crate::limits::{TermsArgs, not_a_definition};
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BOLD, Cell, Column, DIM, Table, WARN, counted};

/// Try another definition on what was charged: who would have been refused, or have waited, and for how long
///
/// All charges that still stand in the ledger of a limit are asked for again, at their instants, of a limiter in memory that
/// has the other definition: once as if nobody waited, so that what is refused charges nothing, and once as if everybody
/// waited in line. The file is only read.
#[derive(Args, Debug)]
#[command(after_long_help = CAVEATS)]
pub(crate) struct ReplayArgs {
    /// The limit, or a key that a pattern matches
    #[arg(long, value_name = "KEY")]
    limit: String,
    /// The other rates: "20/s, 300/min", as in `limits set`
    #[arg(long = "as", value_name = "RATES", conflicts_with_all = ["burst", "refill"])]
    rates: Option<String>,
    #[command(flatten)]
    terms: TermsArgs,
    /// Only what was charged since then: so long ago, as `2h`, or a time as `2026-07-01T12:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = ask::since)]
    since: Option<ask::Since>,
    /// Draw it into this file, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

const CAVEATS: &str = "\
What it cannot know:
- The ledger has what was admitted. Who was refused then, and perhaps came back later, is not in it, and who waited is in \
it when the wait had ended.
- Amounts are those that permits were settled to, not what was asked for first.
- What was charged at one instant in one transaction is one row, and is asked for as one request; with a resolution, all \
that was charged in its span is, at the end of it. Where that is more than the other definition holds at once, it never fits, though its \
parts would.
- It begins with empty windows, and with no pauses. What is booked for later is no part of it.
- Days and months of a calendar begin where they would by the wall clock as it goes now.
- A limit keeps what its windows hold, and more only if `limits set --history` has said for how long.

The present definition is tried, too, as a check: nothing is refused by it, unless it was changed since, more was used than \
asked for, or charges were merged.

A million charges take some seconds. They take minutes where the line only grows and amounts differ widely, for small ones \
are then looked for a gap in all of it; `--since` makes it shorter.";

pub(crate) fn replay(shell: &Shell, args: &ReplayArgs) -> Result<Code, Failure> {
    if args.rates.is_none() && !args.terms.is_bucket() {
        return Err(Failure::misused("which other definition?")
            .hint("`--as \"20/s, 300/min\"`, or `--burst 100 --refill 10/s`"));
    }
    let builder = args
        .terms
        .add_to(Limit::new(&args.limit), args.rates.as_deref());
    let other = builder.build();
    let other = other.map_err(|error| not_a_definition(&error, args.rates.as_deref()))?;
    let recorded = shell.inspector()?.look(|look| Recorded::read(look, args))?;
    recorded.check()?;
    let answer = Answer::new(&recorded, &other)?;
    let series = |count| {
        let charged = (&recorded.charges[..], recorded.wall);
        Series::new(charged, &other, &answer.rerun, count)
    };
    if let Some(path) = &args.svg {
        let drawn = svg::draw(&answer, &series(svg::COLUMNS));
        let made = File::create_new(path).and_then(|mut file| file.write_all(drawn.as_bytes()));
        made.map_err(|error| {
            let message = format!("{}: {error}", path.display());
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Failure::misused(message).hint("nothing is overwritten: choose another name")
                }
                _ => Failure::failed(message),
            }
        })?;
    }
    let drawn = series(plot::COLUMNS_TOLD);
    let told = Told {
        answer: &answer,
        column_s: drawn.span.as_secs_f64(),
        column_capacity: drawn.capacity,
        columns: drawn.columns,
    };
    shell.print(&told, |out| {
        let width = show::width().min(120);
        answer.write(out, width)?;
        if answer.charges > 0 {
            writeln!(out)?;
            let series = series(plot::columns_in(width));
            series.write(out, answer.unit.as_deref(), width)?;
        }
        answer.write_notes(out)
    })?;
    Ok(Code::Done)
}

/// What the file says.
#[derive(Debug)]
struct Recorded {
    limit: Limit,
    charges: Vec<Charge>,
    /// What the wall clock showed at the first of them, and shows now.
    wall: SystemTime,
    /// For programs: the first charge and the last one.
    span: Option<[String; 2]>,
}

impl Recorded {
    fn read(look: &mut Look<'_>, args: &ReplayArgs) -> Result<Self, Error> {
        let limit = look.limit(&args.limit)?;
        let beginning = Timestamp::from_nanos(i64::MIN);
        let after = args.since.map_or(beginning, |since| since.after(look));
        let rows = if limit.rates().is_empty() || limit.is_pattern() {
            Vec::new()
        } else {
            look.charges(&args.limit, after)?
        };
        let charges: Vec<Charge> = rows
            .iter()
            .filter(|row| row.kind == ChargeKind::Charged && row.amount > 0)
            .map(|row| Charge {
                at: last_instant(&limit, row.at).min(look.now()),
                amount: row.amount,
            })
            .collect();
        let ends = charges.first().zip(charges.last());
        Ok(Self {
            wall: look.wall(ends.map_or(look.now(), |(first, _)| first.at)),
            span: ends.map(|(first, last)| [first.at, last.at].map(|at| show::instant(look, at))),
            limit,
            charges,
        })
    }

    fn check(&self) -> Result<(), Failure> {
        let key = self.limit.key();
        if self.limit.is_pattern() {
            let message = format!("`{key}` is a pattern, and has no ledger of its own");
            return Err(Failure::misused(message).hint("name one of its keys"));
        }
        if self.limit.rates().is_empty() {
            let message = format!("{} has no ledger to replay", self.limit);
            return Err(Failure::misused(message).hint("only limits of rates and quotas have one"));
        }
        Ok(())
    }
}

/// When the last of a row was charged, at the latest: what is merged stands at the beginning of its span, where windows hold
/// more than they did when it was admitted.
fn last_instant(limit: &Limit, at: Timestamp) -> Timestamp {
    let span = limit.resolution().unwrap_or_default();
    let rest = span.saturating_sub(Duration::from_nanos(1));
    at.checked_add(rest).unwrap_or(at)
}

#[derive(Debug, Serialize)]
struct Answer {
    limit: String,
    unit: Option<String>,
    charges: u64,
    amount: u64,
    first: Option<String>,
    last: Option<String>,
    /// For how long the limit keeps what has left its windows.
    keeps_s: Option<f64>,
    as_it_is: Outcome,
    instead: Outcome,
    #[serde(skip)]
    walls: [SystemTime; 2],
    #[serde(skip)]
    reach: Option<Duration>,
    #[serde(skip)]
    rerun: Rerun,
}

/// With what is drawn, for programs that draw it themselves.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    /// How long a column is, and the most that the other definition lets through in it, roughly.
    column_s: f64,
    column_capacity: u64,
    columns: Vec<plot::Bar>,
}

/// What would have become of all charges by one definition.
#[derive(Debug, Serialize)]
struct Outcome {
    definition: String,
    /// If nobody waited.
    refused: Portion,
    /// If everybody waited in line.
    delayed: Delayed,
    never_fit: Portion,
}

/// Some of all charges.
#[derive(Debug, Default, Serialize)]
struct Portion {
    count: u64,
    share: f64,
    amount: u64,
}

#[derive(Debug, Serialize)]
struct Delayed {
    #[serde(flatten)]
    of_all: Portion,
    median_s: Option<f64>,
    p90_s: Option<f64>,
    p99_s: Option<f64>,
    longest_s: Option<f64>,
}

impl Portion {
    fn of(charges: &[Charge], fates: &[Fate], is_one: impl Fn(Fate) -> bool) -> Self {
        let both = charges.iter().zip(fates);
        let amounts = both.filter(|(_, fate)| is_one(**fate));
        let (mut count, mut amount) = (0_u64, 0_u64);
        for (charge, _) in amounts {
            count += 1;
            amount = amount.saturating_add(charge.amount);
        }
        Self {
            count,
            share: share(count, charges.len() as u64),
            amount,
        }
    }

    fn cell(&self) -> Cell {
        if self.count == 0 {
            return "0".into();
        }
        let share = match self.share * 100.0 {
            percent if percent < 0.1 => "<0.1".to_owned(),
            percent if percent > 99.9 && percent < 100.0 => ">99.9".to_owned(),
            percent => format!("{percent:.1}"),
        };
        Cell::styled(format!("{} ({share} %)", show::number(self.count)), WARN)
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is a share")]
fn share(count: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        count as f64 / all as f64
    }
}

impl Outcome {
    fn new(limit: &Limit, charges: &[Charge], rerun: &Rerun) -> Self {
        let delay = |fate: &Fate| match fate {
            Fate::Delayed(delay) => Some(*delay),
            _ => None,
        };
        let mut delays: Vec<Duration> = rerun.in_line.iter().filter_map(delay).collect();
        delays.sort_unstable();
        let quantile = |percent| quantile(&delays, percent).map(|delay| delay.as_secs_f64());
        Self {
            definition: limit.as_given().to_string(),
            refused: Portion::of(charges, &rerun.now, |fate| fate == Fate::Refused),
            delayed: Delayed {
                of_all: Portion::of(charges, &rerun.in_line, |fate| {
                    matches!(fate, Fate::Delayed(_))
                }),
                median_s: quantile(50),
                p90_s: quantile(90),
                p99_s: quantile(99),
                longest_s: quantile(100),
            },
            never_fit: Portion::of(charges, &rerun.now, |fate| fate == Fate::Never),
        }
    }

    fn row(&self, title: &str) -> Vec<Cell> {
        let delayed = &self.delayed;
        let time = |seconds: Option<f64>| -> Cell {
            let time = seconds.map(Duration::try_from_secs_f64);
            let time = time.and_then(Result::ok).map(show::duration);
            time.unwrap_or_default().into()
        };
        vec![
            Cell::styled(title, DIM),
            self.refused.cell(),
            delayed.of_all.cell(),
            time(delayed.median_s),
            time(delayed.p90_s),
            time(delayed.p99_s),
            time(delayed.longest_s),
            self.never_fit.cell(),
        ]
    }
}

/// The smallest of these that so many percent are not above, of those that are sorted.
fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

impl Answer {
    fn new(recorded: &Recorded, other: &Limit) -> Result<Self, Failure> {
        let Recorded {
            limit,
            charges,
            wall,
            span,
        } = recorded;
        // What lies behind its windows is no concern of a definition that is tried.
        let present = limit.to_builder().keep(Duration::ZERO).build();
        let present = present.map_err(Failure::failed)?;
        let (as_it_is, instead) = thread::scope(|scope| {
            let as_it_is = scope.spawn(|| rerun(&present, charges, *wall));
            let instead = rerun(other, charges, *wall);
            (as_it_is.join(), instead)
        });
        let as_it_is = as_it_is.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let instead = instead?;
        let [first, last] = match span {
            Some(ends) => ends.clone().map(Some),
            None => [None, None],
        };
        let lasted = charges.first().zip(charges.last());
        let lasted = lasted.map_or(Duration::ZERO, |(first, last)| {
            last.at.saturating_duration_since(first.at)
        });
        Ok(Self {
            limit: limit.key().to_owned(),
            unit: limit.unit().map(str::to_owned),
            charges: charges.len() as u64,
            amount: charges
                .iter()
                .fold(0, |sum, charge| sum.saturating_add(charge.amount)),
            first,
            last,
            keeps_s: limit.keep().map(|keep| keep.as_secs_f64()),
            as_it_is: Outcome::new(limit, charges, &as_it_is),
            instead: Outcome::new(other, charges, &instead),
            walls: [*wall, *wall + lasted],
            reach: longest_window(limit)
                .filter(|reach| limit.keep().is_none_or(|keep| keep <= *reach)),
            rerun: instead,
        })
    }

    fn write(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let charges = counted(self.charges, "charge");
        write!(out, "{BOLD}{}{BOLD:#}: {charges}", self.limit)?;
        if self.charges == 0 {
            return writeln!(out, " to replay");
        }
        let [first, last] = self.walls.map(show::time);
        let unit = self.unit.as_deref().unwrap_or("in all");
        let amount = show::number(self.amount);
        writeln!(out, ", {amount} {unit}, from {first} to {last}")?;
        let definitions = [("as it is", &self.as_it_is), ("instead ", &self.instead)];
        for (title, Outcome { definition, .. }) in definitions {
            writeln!(out, "{DIM}{title}{DIM:#}  {BOLD}{definition}{BOLD:#}")?;
        }
        writeln!(out)?;
        let mut table = Table::new([
            Column::left("", 0),
            Column::right("REFUSED", 0),
            Column::right("DELAYED", 0),
            Column::right("MEDIAN", 2),
            Column::right("90 %", 3),
            Column::right("99 %", 4),
            Column::right("LONGEST", 1),
            Column::right("NEVER FITS", 5),
        ]);
        table.row(self.as_it_is.row("as it is"));
        table.row(self.instead.row("instead"));
        table.write(out, width)?;
        writeln!(
            out,
            "{DIM}refused if nobody waited; delayed if everybody waited in line, and by how much those were{DIM:#}"
        )
    }

    /// What should be known about the figures.
    fn write_notes(&self, out: &mut dyn Write) -> io::Result<()> {
        let Outcome {
            refused, never_fit, ..
        } = &self.as_it_is;
        if refused.count + never_fit.count > 0 {
            writeln!(
                out,
                "{WARN}Not all of it fits the present definition: that was changed meanwhile, more was used than asked for, or \
                 charges of one instant are one row. The figures are as far off.{WARN:#}"
            )?;
        }
        let never_fit = &self.instead.never_fit;
        if never_fit.count > 0 {
            let charges = counted(never_fit.count, "charge");
            writeln!(
                out,
                "{WARN}{charges} would never be admitted: more was charged at once than `{}` holds.{WARN:#}",
                self.instead.definition
            )?;
        }
        if let Some(reach) = self.reach {
            let reach = show::duration(reach);
            writeln!(
                out,
                "{DIM}`{}` keeps no history beyond its windows, of {reach}: `quotalite limits set KEY \"RATES\" --history 7d` keeps what \
                 is charged from then on for a week. For a key of a pattern, it is the pattern that keeps it.{DIM:#}",
                self.limit
            )?;
        }
        Ok(())
    }
}

/// How far back the windows of a limit look, by their usual lengths.
fn longest_window(limit: &Limit) -> Option<Duration> {
    let longer = limit.pad() + limit.resolution().unwrap_or_default();
    let windows = limit.rates().iter().map(|rate| window_of(rate.window()));
    windows.max().map(|longest| longest + longer)
}

/// How long a window is; that of a calendar, mostly.
fn window_of(window: Window) -> Duration {
    let days = match window {
        Window::Rolling(window) => return window,
        Window::Calendar(quota) => match quota.period() {
            quotalite::Period::Day => 1,
            quotalite::Period::Week => 7,
            quotalite::Period::Month => 30,
            _ => 365,
        },
        _ => 1,
    };
    quotalite::DAY * days
}
