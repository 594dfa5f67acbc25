//! What is defined: `limits`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use quotalite::{
    Action, Definition, Error, Limit, LimitBuilder, LimitChange, Limiter, LimitsFile, OnConflict,
    Overage,
};
use serde::Serialize;

use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BOLD, Cell, Column, DIM, Table};

/// See and change what is defined
#[derive(Debug, Subcommand)]
pub(crate) enum LimitsCommand {
    List(ListArgs),
    Show(ShowArgs),
    Set(SetArgs),
    Remove(RemoveArgs),
    Apply(ApplyArgs),
}

/// All definitions
#[derive(Args, Debug)]
pub(crate) struct ListArgs {}

/// A definition, and who has changed it
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// A limit, a pattern, or a key that a pattern matches
    key: String,
}

/// Define a limit, or change it, for all processes from their next request on
///
/// What is not said stays as it is defined: its pad, its unit. The file is made if it is not there. A key with a `*` in it is a
/// pattern: one limit for every key that matches.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("terms").required(true))]
pub(crate) struct SetArgs {
    /// The limit, or a pattern
    key: String,
    /// Rates: "10/s, 300/min", "90000 tokens/min", "1500/calendar day in Asia/Tokyo"
    #[arg(group = "terms")]
    rates: Option<String>,
    /// So many slots: how many permits may hold it at once
    #[arg(long, value_name = "COUNT", group = "terms")]
    slots: Option<u64>,
    #[command(flatten)]
    terms: TermsArgs,
    /// Slots come back after this long, whoever holds them
    #[arg(long, value_name = "TIME", value_parser = crate::ask::duration, requires = "slots")]
    timeout: Option<Duration>,
    /// Keep what is charged in the file for this long, to be looked at and replayed
    ///
    /// It changes nothing about who is admitted. At least what the windows still hold is always there.
    #[arg(long, value_name = "TIME", value_parser = crate::ask::duration)]
    history: Option<Duration>,
    /// Merge what is charged within so long: a long window of a hot limit stays small
    #[arg(long, value_name = "TIME", value_parser = crate::ask::duration)]
    resolution: Option<Duration>,
    /// What the amounts are: "tokens", or "" for nothing in particular; the rates can say it, too
    #[arg(long)]
    unit: Option<String>,
    /// What becomes of what was used beyond the estimate, where it does not fit
    #[arg(long, value_name = "HOW")]
    overage: Option<Beyond>,
    /// Fail if something of this is defined differently, instead of changing it
    #[arg(long)]
    no_replace: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Beyond {
    /// It is shown as debt
    Debt,
    /// It is charged, and who comes later waits it out
    Charge,
    /// It is forgotten
    Deny,
}

impl From<Beyond> for Overage {
    fn from(beyond: Beyond) -> Self {
        match beyond {
            Beyond::Debt => Self::Debt,
            Beyond::Charge => Self::Charge,
            Beyond::Deny => Self::Deny,
        }
    }
}

/// What a definition can say besides its rates, whether it is set or only tried.
///
/// One of the group `terms` is a bucket; who uses this adds the others.
#[derive(Args, Debug)]
pub(crate) struct TermsArgs {
    /// A bucket that holds so much; needs --refill
    #[arg(long, value_name = "AMOUNT", group = "terms", requires = "refill")]
    burst: Option<u64>,
    /// How fast the bucket refills: "10/s"
    #[arg(long, value_name = "RATE", requires = "burst")]
    refill: Option<String>,
    /// Lengthen each window by this, for the jitter on the way to a provider
    #[arg(long, value_name = "TIME", value_parser = crate::ask::duration)]
    pad: Option<Duration>,
}

impl TermsArgs {
    /// Adds these, and the rates if there are any, to the definition of a limit.
    pub(crate) fn add_to(
        &self,
        mut builder: LimitBuilder,
        rates: Option<&str>,
    ) -> Result<LimitBuilder, Failure> {
        if let Some(rates) = rates {
            builder = builder.rates(rates);
        }
        if let (Some(burst), Some(refill)) = (self.burst, &self.refill) {
            let (amount, per, unit) = refill_of(refill)?;
            builder = builder.burst(burst).refill(amount, per);
            if let Some(unit) = unit {
                builder = builder.unit(unit);
            }
        }
        if let Some(pad) = self.pad {
            builder = builder.pad(pad);
        }
        Ok(builder)
    }
}

/// Remove a definition, with all that was charged to it
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The limit, or the pattern
    key: String,
    /// Even if somebody holds it or waits for it
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Define all limits of a TOML file, or none
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// The file: examples/limits.toml is one
    file: PathBuf,
    /// Fail if one is defined differently, instead of changing it
    #[arg(long)]
    no_replace: bool,
}

pub(crate) fn limits(shell: &Shell, command: &LimitsCommand) -> Result<Code, Failure> {
    match command {
        LimitsCommand::List(_) => list(shell),
        LimitsCommand::Show(args) => show(shell, args),
        LimitsCommand::Set(args) => set(shell, args),
        LimitsCommand::Remove(args) => remove(shell, args),
        LimitsCommand::Apply(args) => apply(shell, args),
    }
}

#[derive(Debug, Serialize)]
struct Defined {
    key: String,
    definition: String,
    pattern: bool,
}

impl Defined {
    fn of(limit: &Limit) -> Self {
        Self {
            key: limit.key().to_owned(),
            definition: limit.as_given().to_string(),
            pattern: limit.is_pattern(),
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    limits: Vec<Defined>,
}

fn list(shell: &Shell) -> Result<Code, Failure> {
    let limits = shell.inspector()?.look(|look| look.limits())?;
    let list = List {
        limits: limits.iter().map(Defined::of).collect(),
    };
    shell.print(&list, |out| {
        let mut table = Table::new([
            Column::key("KEY"),
            Column::left("DEFINITION", 0).cut_to(20),
            Column::left("", 1),
        ]);
        for limit in &list.limits {
            let pattern = if limit.pattern { "pattern" } else { "" };
            table.row(vec![
                Cell::styled(&*limit.key, BOLD),
                limit.definition.as_str().into(),
                Cell::styled(pattern, DIM),
            ]);
        }
        table.write(out, show::width())
    })?;
    Ok(Code::Done)
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    limit: Defined,
    /// The pattern that makes it, if one does. The changes are those of the pattern then.
    made_by: Option<String>,
    changes: Vec<Changed>,
}

#[derive(Debug, Serialize)]
struct Changed {
    at: String,
    action: &'static str,
    definition: String,
    program: String,
    pid: u32,
    #[serde(skip)]
    time: String,
}

/// What was done to a definition, in a word.
pub(crate) fn action_of(change: &LimitChange) -> &'static str {
    match change.action() {
        Action::Created => "created",
        Action::Replaced => "replaced",
        Action::Removed => "removed",
        Action::Reset => "reset",
        _ => "changed",
    }
}

fn show(shell: &Shell, args: &ShowArgs) -> Result<Code, Failure> {
    let shown = shell.inspector()?.look(|look| {
        let limit = look.limit(&args.key)?;
        let pattern = look.pattern_of(&args.key)?;
        let changes = look.changes(pattern.as_ref().unwrap_or(&limit).key())?;
        let changes = changes.iter().map(|change| Changed {
            at: show::instant(look, change.at()),
            action: action_of(change),
            definition: change.definition().to_owned(),
            program: change.program().to_owned(),
            pid: change.pid(),
            time: show::time(look.wall(change.at())),
        });
        Ok(Shown {
            limit: Defined::of(&limit),
            made_by: pattern.map(|pattern| pattern.key().to_owned()),
            changes: changes.collect(),
        })
    })?;
    shell.print(&shown, |out| {
        let Defined {
            key, definition, ..
        } = &shown.limit;
        write!(out, "{BOLD}{key}{BOLD:#}: {definition}")?;
        if let Some(pattern) = &shown.made_by {
            write!(out, ", by the pattern {pattern}")?;
        }
        writeln!(out)?;
        let mut table = Table::new([
            Column::left("WHEN", 0),
            Column::left("WHAT", 0),
            Column::left("DEFINITION", 0).cut_to(20),
            Column::left("BY", 1).cut_to(10),
            Column::right("PID", 2),
        ]);
        for change in &shown.changes {
            table.row(vec![
                change.time.as_str().into(),
                change.action.into(),
                change.definition.as_str().into(),
                change.program.as_str().into(),
                change.pid.to_string().into(),
            ]);
        }
        if table.is_empty() {
            Ok(())
        } else {
            table.write(out, show::width())
        }
    })?;
    Ok(Code::Done)
}

/// What became of one definition.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    limit: Defined,
    #[serde(rename = "outcome")]
    was: &'static str,
    former: Option<String>,
}

impl Outcome {
    fn of(limit: &Limit, definition: &Definition) -> Self {
        let (was, former) = match definition {
            Definition::Created => ("created", None),
            Definition::Replaced(former) => ("replaced", Some(former.as_given().to_string())),
            Definition::Adopted(stored) => ("kept", Some(stored.as_given().to_string())),
            _ => ("unchanged", None),
        };
        Self {
            limit: Defined::of(limit),
            was,
            former,
        }
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let Defined {
            key, definition, ..
        } = &self.limit;
        write!(out, "{BOLD}{key}{BOLD:#}: {definition} {DIM}({}", self.was)?;
        if let Some(former) = &self.former {
            write!(out, ": it was {former}")?;
        }
        writeln!(out, "){DIM:#}")
    }
}

fn set(shell: &Shell, args: &SetArgs) -> Result<Code, Failure> {
    let new = args.terms(None)?.build().map_err(Failure::misused)?;
    let limiter = shell.new_limiter()?;
    let outcome = if args.no_replace {
        args.define_only(shell, &limiter, new)?
    } else {
        args.change_or_define(&limiter, &new)?
    };
    shell.print(&outcome, |out| outcome.write(out))?;
    Ok(Code::Done)
}

impl SetArgs {
    /// Defines the limit, or fails if anything that is said here is defined differently. So does a change that somebody else makes
    /// just then.
    fn define_only(
        &self,
        shell: &Shell,
        limiter: &Limiter,
        new: Limit,
    ) -> Result<Outcome, Failure> {
        let stored = shell.inspector()?.look(|look| {
            // What a pattern makes of a key is no definition of its own.
            if look.pattern_of(&self.key)?.is_some() {
                return Ok(None);
            }
            match look.limit(&self.key) {
                Ok(stored) => Ok(Some(stored)),
                Err(Error::UnknownLimit { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        let same = match stored {
            Some(stored) => self
                .terms(Some(&stored))?
                .build()
                .map_err(Failure::misused)?,
            None => new,
        };
        let definition = limiter.define(same.clone())?;
        Ok(Outcome::of(&same, &definition))
    }

    /// Others may define the limit and remove it meanwhile.
    fn change_or_define(&self, limiter: &Limiter, new: &Limit) -> Result<Outcome, Failure> {
        // What cannot be built from here could not be built anew.
        let change = |stored: &Limit| {
            self.terms(Some(stored))
                .unwrap_or_else(|_| stored.to_builder())
        };
        loop {
            match limiter.update(&self.key, change) {
                Ok(former) => {
                    let limit = change(&former).build().map_err(Failure::misused)?;
                    let definition = if former == limit {
                        Definition::Unchanged
                    } else {
                        Definition::Replaced(former)
                    };
                    return Ok(Outcome::of(&limit, &definition));
                }
                Err(Error::UnknownLimit { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match limiter.define(new.clone()) {
                Ok(definition) => return Ok(Outcome::of(new, &definition)),
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is defined now, with what is said here in its place. What is not said stays, unless it is of another kind.
    fn terms(&self, stored: Option<&Limit>) -> Result<LimitBuilder, Failure> {
        let mut builder = match stored {
            Some(stored) if self.is_of_its_kind(stored) => stored.to_builder(),
            _ if self.key.contains('*') => Limit::pattern(&self.key),
            _ => Limit::new(&self.key),
        };
        if self.rates.is_some() {
            builder = builder.without_rates();
        }
        if self.unit.is_some() || self.speed_says_the_unit() {
            builder = builder.without_unit();
        }
        builder = self.terms.add_to(builder, self.rates.as_deref())?;
        if let Some(slots) = self.slots {
            builder = builder.slots(slots);
        }
        if let Some(history) = self.history {
            builder = builder.keep(history);
        }
        if let Some(resolution) = self.resolution {
            builder = builder.resolution(resolution);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(unit) = self.unit.as_deref().filter(|unit| !unit.is_empty()) {
            builder = builder.unit(unit);
        }
        if let Some(overage) = self.overage {
            builder = builder.overage(overage.into());
        }
        Ok(builder)
    }

    fn speed_says_the_unit(&self) -> bool {
        let speed = self.rates.as_deref().or(self.terms.refill.as_deref());
        let limit = Limit::new("unit").rates(speed.unwrap_or_default()).build();
        limit.is_ok_and(|limit| limit.unit().is_some())
    }

    fn is_of_its_kind(&self, stored: &Limit) -> bool {
        if self.slots.is_some() {
            stored.slot_count().is_some()
        } else if self.terms.burst.is_some() {
            stored.bucket().is_some()
        } else {
            !stored.rates().is_empty()
        }
    }
}

/// How fast a bucket refills, which is written as a rate is, and of what.
fn refill_of(text: &str) -> Result<(u64, Duration, Option<String>), Failure> {
    let limit = Limit::new("refill")
        .rates(text)
        .build()
        .map_err(Failure::misused)?;
    match limit.rates() {
        [rate] => match rate.window().rolling() {
            Some(window) => {
                let unit = limit.unit().map(str::to_owned);
                Ok((rate.capacity(), window, unit))
            }
            None => Err(Failure::misused(
                "a bucket refills evenly, not by a calendar",
            )),
        },
        _ => Err(Failure::misused("a bucket refills at one rate: \"10/s\"")),
    }
}

fn remove(shell: &Shell, args: &RemoveArgs) -> Result<Code, Failure> {
    let limiter = shell.limiter()?;
    let limit = limiter.limit(&args.key)?;
    let question = format!("remove {limit}, with all that was charged to it?");
    Shell::confirm(question, args.yes)?;
    let removed = if args.force {
        limiter.force_remove(&args.key)?
    } else {
        limiter.remove(&args.key)?
    };
    let outcome = Outcome {
        limit: Defined::of(&removed),
        was: "removed",
        former: None,
    };
    shell.print(&outcome, |out| outcome.write(out))?;
    Ok(Code::Done)
}

#[derive(Debug, Serialize)]
struct Applied {
    limits: Vec<Outcome>,
}

fn apply(shell: &Shell, args: &ApplyArgs) -> Result<Code, Failure> {
    let file = LimitsFile::read(&args.file)?;
    let limiter = shell.new_limiter()?;
    let on_conflict = if args.no_replace {
        OnConflict::Fail
    } else {
        OnConflict::Replace
    };
    let outcomes = limiter.apply(&file, on_conflict)?;
    let outcomes = outcomes
        .iter()
        .map(|(limit, outcome)| Outcome::of(limit, outcome));
    let applied = Applied {
        limits: outcomes.collect(),
    };
    shell.print(&applied, |out| {
        applied
            .limits
            .iter()
            .try_for_each(|outcome| outcome.write(out))
    })?;
    Ok(Code::Done)
}
