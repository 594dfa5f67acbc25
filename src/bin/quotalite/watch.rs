//! Events as they happen: `watch`.

mod difference;
mod patterns;
mod snapshot;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;
use quotalite::{Error, Inspector};

use self::difference::{Event, difference};
use self::snapshot::{MOST, Snapshot};
use crate::shell::{Code, Failure, Shell, reader_leaves_within};
use crate::show::{self, BOLD, DIM, WARN};

/// Events as they happen, a line each, until ^C
///
/// It looks at the file again and again and tells what has changed in between: what was charged, booked, granted and given back,
/// who waits, pauses, breakers, definitions, limits that are full and free again, processes that have died. What comes and
/// goes between two looks is not seen, but for what is charged. Buckets have no ledger: of them it tells when they are full and free.
/// It watches 1000 keys at most: should more come to match, it says so, and goes on with those that it has.
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Only keys that match: `*` is one or more characters
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// How long to wait before the next look
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = crate::ask::duration)]
    every: Duration,
}

pub(crate) fn watch(shell: &Shell, args: &WatchArgs) -> Result<Code, Failure> {
    let inspector = shell.inspector()?;
    let every = args.every.max(Duration::from_millis(10));
    let mut former: Option<Snapshot> = None;
    let mut is_busy = false;
    loop {
        let began = Instant::now();
        match look(&inspector, &args.pattern, former.as_ref()) {
            Ok((snapshot, events)) => {
                if former.is_none() {
                    if snapshot.has_too_many {
                        let message = format!("more than {MOST} keys match `{}`", args.pattern);
                        let hint = "a narrower pattern, such as 'tenant:7*'";
                        return Err(Failure::misused(message).hint(hint));
                    }
                    if snapshot.is_empty() {
                        let pattern = &args.pattern;
                        Shell::warn(format_args!(
                            "{WARN}nothing matches `{pattern}` yet{WARN:#}"
                        ));
                    } else {
                        shell.remark(format_args!("{DIM}watching{DIM:#}"));
                    }
                }
                for event in &events {
                    shell.print(event, |out| write(event, out))?;
                }
                former = Some(snapshot);
                is_busy = false;
            }
            // What has happened meanwhile is told when it can be read.
            Err(error @ Error::Busy { .. }) => {
                if !is_busy {
                    Shell::warn(format_args!(
                        "{WARN}{error}{WARN:#}, and is looked at again"
                    ));
                }
                is_busy = true;
            }
            Err(error) => return Err(error.into()),
        }
        // It rests for as long as it has worked at least: whoever watches is not to be in the way of those who work.
        let took = began.elapsed();
        if reader_leaves_within(every.saturating_sub(took).max(took)) {
            return Ok(Code::Done);
        }
    }
}

/// How the file stands, and what has happened since the look before.
fn look(
    inspector: &Inspector,
    pattern: &str,
    former: Option<&Snapshot>,
) -> Result<(Snapshot, Vec<Event>), Error> {
    inspector.look(|look| {
        let snapshot = Snapshot::read(look, pattern, former)?;
        let wall = |at| (show::instant(look, at), show::time(look.wall(at)));
        let events = former.map(|former| difference(former, &snapshot, &wall));
        Ok((snapshot, events.unwrap_or_default()))
    })
}

fn write(event: &Event, out: &mut dyn Write) -> io::Result<()> {
    let key = event.key.as_deref().unwrap_or_default();
    let gap = if key.is_empty() { "" } else { "  " };
    writeln!(
        out,
        "{DIM}{}{DIM:#}  {BOLD}{key}{BOLD:#}{gap}{}",
        event.time,
        event.text()
    )
}
