//! What is defined: `limits`.

mod set;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use quotalite::{Action, Definition, Limit, LimitChange, LimitsFile, OnConflict};
use serde::Serialize;

use self::set::{SetArgs, set};
pub(crate) use self::set::{TermsArgs, not_a_definition};
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BOLD, Cell, Column, DIM, Table, WARN};

/// See and change what is defined
#[derive(Debug, Subcommand)]
pub(crate) enum LimitsCommand {
    List(ListArgs),
    Show(ShowArgs),
    Set(Box<SetArgs>),
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

/// Remove a definition, with all that was charged to it
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The limit, or the pattern
    key: String,
    /// Even if somebody holds it or waits for it: who is in line for slots is refused, who has booked goes ahead at its instant
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

fn remove(shell: &Shell, args: &RemoveArgs) -> Result<Code, Failure> {
    let limiter = shell.limiter()?;
    let limit = limiter.limit(&args.key)?;
    let pattern = shell.inspector()?.look(|look| look.pattern_of(&args.key))?;
    if let Some(pattern) = pattern {
        let (key, pattern) = (&args.key, pattern.key());
        let message =
            format!("`{key}` has no definition of its own: the pattern `{pattern}` makes it");
        return Err(Failure::misused(message).hint("`quotalite reset KEY` begins a key anew"));
    }
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
    if applied.limits.is_empty() {
        Shell::warn(format_args!("{WARN}no limit is defined in it{WARN:#}"));
    }
    shell.print(&applied, |out| {
        applied
            .limits
            .iter()
            .try_for_each(|outcome| outcome.write(out))
    })?;
    Ok(Code::Done)
}
