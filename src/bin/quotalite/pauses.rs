//! Nobody before an instant, and everybody again: `pause` and `resume`.

use std::time::Duration;

use clap::Args;
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
pub(crate) struct PauseArgs {
    /// The limit
    #[arg(value_parser = ask::key)]
    key: String,
    /// For how long
    #[arg(value_name = "TIME", value_parser = ask::some_time, required_unless_present = "strike")]
    length: Option<Duration>,
    /// For as long as the limit says: longer and longer for strikes that follow each other
    #[arg(long, conflicts_with = "length")]
    strike: bool,
}

/// Let everybody in again
///
/// As after each pause, a limit of rates starts slowly, for a minute or its window: `status` says so, and `limits set --slow-start 100`
/// lets it start at once.
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
    let left = show::from_seconds(paused.left_s.unwrap_or_default());
    if let Some(length) = args.length {
        // A moment has gone by since.
        if length > left + Duration::from_secs(1) {
            let (key, length) = (&args.key, show::duration(length));
            Shell::warn(format_args!(
                "{WARN}the limit's definition caps its pauses{WARN:#}: `quotalite limits set {key} --pause-cap \"{length}\"` \
                lets them be as long"
            ));
        } else if left > length {
            Shell::warn(format_args!(
                "{WARN}it was paused for longer before{WARN:#}, and stays so: `quotalite resume` lifts it"
            ));
        }
    }
    shell.print(&paused, |out| {
        let left = show::duration(as_asked(left, args.length));
        writeln!(
            out,
            "{BOLD}{}{BOLD:#}: {BAD}paused{BAD:#} for {left}",
            args.key
        )
    })?;
    Ok(Code::Done)
}

/// What has gone by since it was asked for is of no interest.
fn as_asked(left: Duration, asked: Option<Duration>) -> Duration {
    let is_as_asked =
        |asked: &Duration| left <= *asked && asked.saturating_sub(left) < Duration::from_secs(1);
    asked.filter(is_as_asked).unwrap_or(left)
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
