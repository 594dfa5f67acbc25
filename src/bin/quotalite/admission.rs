//! To be admitted without running anything: `wait` and `peek`.

use std::io;
use std::time::Duration;

use clap::Args;
use quotalite::{Decision, Denial, Error, Peek};
use serde::Serialize;

use crate::ask::{self, Take};
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BAD, DIM, GOOD};
use crate::signals::Signals;

/// Wait in line until a request is admitted, and charge it
///
/// Slots come back when this ends, unless `--detach` keeps them: it prints an id by which `settle` or `cancel` ends the
/// permit, from any process. A signal that ends it while it waits lets it give back its place before.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// Limits, with an amount if it is not 1: they are admitted together or not at all
    #[arg(required = true, value_name = "KEY[=AMOUNT]", value_parser = ask::take)]
    takes: Vec<Take>,
    /// Give up at once if it would take longer; 0 is now or not
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    within: Option<Duration>,
    /// Keep the permit for so long, whatever the timeout of its slots is, or until somebody settles it, and print its id
    #[arg(long, value_name = "TIME", value_parser = ask::some_time)]
    detach: Option<Duration>,
    /// Name the permit: asked for again under the same id, it is not charged again
    #[arg(long)]
    id: Option<String>,
}

/// Whether a request would be admitted now, and if not, when
///
/// Nothing is charged. Exits with 0 if it would be, with 75 if not.
#[derive(Args, Debug)]
pub(crate) struct PeekArgs {
    /// Limits, with an amount if it is not 1
    #[arg(required = true, value_name = "KEY[=AMOUNT]", value_parser = ask::take)]
    takes: Vec<Take>,
}

#[derive(Debug, Serialize)]
struct Admitted {
    waited_s: f64,
    id: Option<String>,
    fence: Option<String>,
    /// Whether it had been admitted before, under the same id.
    resumed: bool,
    /// Whether that one was settled or cancelled, or has timed out.
    ended: bool,
}

pub(crate) fn wait(shell: &Shell, args: &WaitArgs) -> Result<Code, Failure> {
    // Before there is any other thread.
    let signals = Signals::heed()
        .map_err(|error| Failure::failed(format_args!("waiting for signals: {error}")))?;
    let limiter = shell.limiter()?;
    signals.stop(&limiter);
    let mut request = ask::request(&args.takes);
    if let Some(id) = &args.id {
        request = request.id(id);
    }
    let admitted = match args.within {
        None => limiter.acquire(&request).map_err(Failure::from),
        Some(Duration::ZERO) => match limiter.try_acquire(&request) {
            Ok(Decision::Granted(permit)) => Ok(permit),
            Ok(Decision::Denied(denial)) => Err(refused(&denial)),
            Err(error) => Err(error.into()),
        },
        Some(longest) => limiter
            .acquire_within(&request, longest)
            .map_err(Failure::from),
    };
    let admitted = admitted.and_then(|permit| {
        let id = match args.detach {
            Some(timeout) => Some(permit.detach(timeout)?.to_string()),
            None => args.id.clone(),
        };
        Ok((permit, id))
    });
    // Nobody has been told of it yet.
    signals.end_if_asked(|| {
        if let Ok((permit, _)) = &admitted
            && !permit.is_resumed()
            && let Err(error) = permit.cancel()
        {
            Shell::warn(format_args!(
                "quotalite: what it was charged stays: {error}"
            ));
        }
    });
    let (permit, id) = admitted?;
    let admitted = Admitted {
        waited_s: permit.waited().as_secs_f64(),
        id,
        fence: permit.fence().map(|fence| fence.to_string()),
        resumed: permit.is_resumed(),
        ended: permit.has_ended(),
    };
    if admitted.ended {
        Shell::warn(format_args!(
            "quotalite: the permit of this id had ended before, and nothing was charged"
        ));
    }
    let printed = shell.hand_over(&admitted, |out| match (&admitted.id, args.detach) {
        (Some(id), Some(_)) => writeln!(out, "{id}"),
        _ => Ok(()),
    });
    if let Err(error) = printed {
        let is_lost = args.detach.is_some() && args.id.is_none();
        if !is_lost {
            return Err(error.into());
        }
        let outcome = match permit.cancel() {
            Ok(_) => "it was cancelled".to_owned(),
            Err(error) => format!("what it was charged stays ({error})"),
        };
        let message = format!("its id could not be printed, and {outcome}: {error}");
        return Err(Failure::failed(message));
    }
    if args.detach.is_none() {
        let waited = show::duration(permit.waited());
        shell.remark(format_args!(
            "{GOOD}admitted{GOOD:#} {DIM}after {waited}{DIM:#}"
        ));
    }
    Ok(Code::Done)
}

/// What somebody is told who was not admitted and does not wait.
pub(crate) fn refused(denial: &Denial) -> Failure {
    Failure::of(Code::Refused, denial)
}

/// What stands in the way of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    pub(crate) key: String,
    pub(crate) obstacle: String,
    pub(crate) amount: u64,
    /// Nothing where it waits for slots: nobody knows when these come free.
    pub(crate) retry_at: Option<String>,
    pub(crate) retry_after_s: Option<f64>,
    #[serde(skip)]
    text: String,
}

impl Refusal {
    pub(crate) fn new(denial: &Denial, look: &quotalite::Look<'_>) -> Self {
        Self {
            key: denial.key().to_owned(),
            obstacle: denial.obstacle().to_string(),
            amount: denial.amount(),
            retry_at: denial.retry_at().map(|at| show::instant(look, at)),
            retry_after_s: denial.retry_after().map(|after| after.as_secs_f64()),
            text: denial.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Peeked {
    admitted: bool,
    refusal: Option<Refusal>,
}

pub(crate) fn peek(shell: &Shell, args: &PeekArgs) -> Result<Code, Failure> {
    let request = ask::request(&args.takes);
    let peeked = shell.inspector()?.look(|look| -> Result<_, Error> {
        let peek = look.peek(&request)?;
        Ok(Peeked {
            admitted: peek.is_now(),
            refusal: match &peek {
                Peek::Later(denial) => Some(Refusal::new(denial, look)),
                Peek::Now => None,
            },
        })
    })?;
    shell.print(&peeked, |out| -> io::Result<()> {
        match &peeked.refusal {
            None => writeln!(out, "{GOOD}now{GOOD:#}"),
            Some(refusal) => writeln!(out, "{BAD}not now{BAD:#}: {}", refusal.text),
        }
    })?;
    Ok(if peeked.admitted {
        Code::Done
    } else {
        Code::Refused
    })
}
