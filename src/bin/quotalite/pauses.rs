//! Nobody before an instant, and everybody again: `pause` and `resume`.

use std::time::Duration;

use clap::{ArgGroup, Args};
use quotalite::Backoff;
use serde::Serialize;

use crate::ask;
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BAD, BOLD, DIM, GOOD, WARN};

/// Let nobody in for a while, in all processes
///
/// Who waits or has booked before the end is moved behind it. A pause is never shortened by a later, shorter one; `resume`
/// lifts it. It is no longer than the limit's cap: 15 minutes, unless its definition says something else.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("how_long").required(true))]
pub(crate) struct PauseArgs {
    /// The limit
    #[arg(value_parser = ask::key)]
    key: String,
    /// For how long
    #[arg(group = "how_long", value_name = "TIME", value_parser = ask::duration)]
    length: Option<Duration>,
    /// For as long as the limit says: longer and longer for strikes that follow each other
    #[arg(long, group = "how_long")]
    strike: bool,
}

/// Let everybody in again
#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    /// The limit
    #[arg(value_parser = ask::key)]
    key: String,
}

#[derive(Debug, Serialize)]
struct Standing {
    key: String,
    paused: bool,
    until: Option<String>,
    left_s: Option<f64>,
    strikes: Option<u32>,
}

pub(crate) fn pause(shell: &Shell, args: &PauseArgs) -> Result<Code, Failure> {
    let limiter = shell.limiter()?;
    let backoff = match args.length {
        Some(length) => Backoff::planned(length),
        None => Backoff::strike(),
    };
    let pause = limiter.pause(&args.key, backoff)?;
    let paused = shell.inspector()?.look(|look| {
        let left = pause.until().saturating_duration_since(look.now());
        Ok(Standing {
            key: args.key.clone(),
            paused: !left.is_zero(),
            until: Some(show::instant(look, pause.until())),
            left_s: Some(left.as_secs_f64()),
            strikes: Some(pause.strikes()),
        })
    })?;
    // A moment has gone by since.
    let left = show::from_seconds(paused.left_s.unwrap_or_default());
    if args
        .length
        .is_some_and(|length| length > left + Duration::from_secs(1))
    {
        shell.warn(format_args!(
            "{WARN}the limit's definition caps its pauses{WARN:#}"
        ));
    }
    shell.print(&paused, |out| {
        let left = show::duration(left);
        writeln!(
            out,
            "{BOLD}{}{BOLD:#}: {BAD}paused{BAD:#} for {left}",
            args.key
        )
    })?;
    Ok(Code::Done)
}

pub(crate) fn resume(shell: &Shell, args: &ResumeArgs) -> Result<Code, Failure> {
    let lifted = shell.limiter()?.resume(&args.key)?;
    let resumed = Standing {
        key: args.key.clone(),
        paused: false,
        until: None,
        left_s: None,
        strikes: lifted.map(|pause| pause.strikes()),
    };
    shell.print(&resumed, |out| {
        let key = &args.key;
        if lifted.is_some() {
            writeln!(out, "{BOLD}{key}{BOLD:#}: {GOOD}resumed{GOOD:#}")
        } else {
            writeln!(out, "{BOLD}{key}{BOLD:#}: {DIM}was not paused{DIM:#}")
        }
    })?;
    Ok(Code::Done)
}
