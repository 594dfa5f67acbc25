//! Events as they happen: `watch`.

mod difference;
mod snapshot;

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use self::difference::{Event, difference};
use self::snapshot::Snapshot;
use crate::shell::{Code, Failure, Shell, nobody_reads};
use crate::show::{self, BOLD, DIM};

/// Events as they happen, a line each, until ^C
///
/// It looks at the file again and again and tells what has changed in between: what was charged, booked, granted and given back,
/// who waits, pauses, breakers, definitions, limits that are full and free again, processes that have died. What comes and
/// goes between two looks is not seen, but for what is charged. Buckets have no ledger: of them it tells when they are full and free.
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Only keys that match: `*` is one or more characters
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// How long to wait before the next look
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = crate::ask::duration)]
    every: Duration,
}

/// More are too many to be read several times a second.
const MOST: usize = 1_000;

pub(crate) fn watch(shell: &Shell, args: &WatchArgs) -> Result<Code, Failure> {
    let inspector = shell.inspector()?;
    let every = args.every.max(Duration::from_millis(10));
    let mut former: Option<Snapshot> = None;
    loop {
        let next = Instant::now() + every;
        let (snapshot, events) = inspector.look(|look| {
            let snapshot = Snapshot::read(look, &args.pattern, MOST, former.as_ref())?;
            let wall = |at| (show::instant(look, at), show::time(look.wall(at)));
            let events = former
                .as_ref()
                .map(|former| difference(former, &snapshot, &wall));
            Ok((snapshot, events.unwrap_or_default()))
        })?;
        if snapshot.is_cut() {
            let message = format!("more than {MOST} keys match `{}`", args.pattern);
            return Err(Failure::misused(message).hint("a narrower pattern, such as 'tenant:7*'"));
        }
        if former.is_none() {
            shell.remark(format_args!("{DIM}watching{DIM:#}"));
        }
        former = Some(snapshot);
        for event in &events {
            shell.print(event, |out| write(event, out))?;
        }
        if nobody_reads() {
            return Ok(Code::Done);
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
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
