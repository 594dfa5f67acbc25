//! Any command, run when limits admit it: `run`.

mod heartbeat;
mod output;
mod program;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use quotalite::{
    Answer, Backoff, Decision, Last, Limit, LimitBuilder, Limiter, MAX_RETRIES, OnConflict, Peek,
    Permit, PermitRow, Request, RetryErrorKind, RetryEvent, RetryPolicy, retry,
};
use regex::bytes::Regex;

use self::heartbeat::with_heartbeat;
use self::program::{Ended, Program};
use crate::ask::{self, Take};
use crate::shell::{Code, Failure, Shell};
use crate::show;
use crate::signals::Signals;

/// Run a command when limits admit it, from any number of shells at once
///
/// All limits are taken at once, or none is. The command waits in line for as long as that takes, or as --within says, and then
/// runs in place: with the input, output and terminal of this call, and in its process group. What it ends with is passed
/// on: its exit code, or the signal that has ended it, which ends `run`, too. If it cannot be executed (126) or is not found
/// (127), nothing is charged.
///
/// Slots are held until the command has ended, however it ends: if they have a timeout, they are renewed while it runs. Should
/// `run` itself be killed with SIGKILL meanwhile, they come back when the command has ended (on Linux), or when they time out, as
/// they do while `run` is stopped: the command inherits a descriptor of the lock file that says so, with a number from 100 on. Daemons that it leaves behind have it, too, but keep slots only if `run` was killed. What was charged
/// to rates stays charged.
///
/// ^C and ^\ at a terminal reach the command by themselves, and `run` ends when it has. What is sent to `run` by a process is
/// passed on to the command: SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM. As long as it waits in line, any of
/// these ends `run`, which gives back its place before, for which it waits for the file's lock up to 5 s; another one a moment later ends it at once. Who is killed with SIGKILL there leaves its
/// place to whoever needs it next, but it stays charged if its turn comes before anybody looks.
///
/// With --retry, a command that ends with a code of --retry-on is run again after 1 s, 2 s, 4 s and so on, up to a minute, or
/// any shorter time: chance spreads those who have failed together. Each try waits in line and pays by itself. Giving up
/// passes on the last exit code. What is ended by ^C, ^\, SIGTERM or SIGHUP is not run again.
#[derive(Args, Debug)]
#[command(
    override_usage = "quotalite run --db FILE --limit KEY[=AMOUNT]... [OPTIONS] -- COMMAND..."
)]
pub(crate) struct RunArgs {
    /// Take so much of this limit, or 1; it can be said several times
    #[arg(long = "limit", required = true, value_name = "KEY[=AMOUNT]", value_parser = ask::take)]
    limits: Vec<Take>,
    /// Define the limit if it is not defined: "10/s, 300/min"
    ///
    /// The file is made if it is not there. If the limit is defined differently, nothing is run. There is one --limit
    /// then.
    #[arg(long)]
    rate: Option<String>,
    /// Define so many slots: how many commands may run at once
    ///
    /// As --rate does: of the limit itself, or of `KEY:slots` beside --rate, of which one is then taken, too.
    #[arg(long, value_name = "COUNT", value_parser = ask::count)]
    slots: Option<u64>,
    /// Wait in line no longer than this; 0 is now or not at all
    ///
    /// It is known at once whether rates admit it in time, and nothing is waited for in vain. With --retry, it counts from the
    /// start to the admission of the last try.
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    within: Option<Duration>,
    /// Run it again up to so many times
    #[arg(long, value_name = "TIMES", default_value = "0", hide_default_value = true, value_parser = RangedU64ValueParser::<u32>::new().range(..=u64::from(MAX_RETRIES)))]
    retry: u32,
    /// The exit codes that it is run again for
    #[arg(long, value_name = "CODES", value_delimiter = ',', default_value = "75", requires = "retry", value_parser = ask::exit_code)]
    retry_on: Vec<u8>,
    /// It was rate limited if it has failed and a line of its output matches this
    ///
    /// The --limits that are no slots are then paused for everybody who shares the file, for as long as their definitions
    /// say (a minute, if they do not), and it is run again as --retry says. The output of the command goes through pipes, each
    /// of them passed on as it comes: it sees no terminal there. A line of more than 64 KiB is looked at in pieces.
    #[arg(long, value_name = "REGEX")]
    retry_match: Option<Regex>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(shell: &Shell, args: &RunArgs) -> Result<Code, Failure> {
    let is_now_or_never = args.within == Some(Duration::ZERO);
    if is_now_or_never && args.retry > 0 {
        return Err(Failure::misused("`--within 0` leaves no time to try again"));
    }
    let program = Program::new(&args.command)?;
    // Before there is any other thread.
    let signals = Signals::heed()
        .map_err(|error| Failure::failed(format_args!("waiting for signals: {error}")))?;
    let limiter = args.limiter(shell)?;
    let job = Job {
        shell,
        args,
        program,
        signals,
        request: args.request(),
        limiter,
    };
    job.signals.stop(&job.limiter);
    let result = if is_now_or_never {
        job.run_now()
    } else {
        job.run()
    };
    // Whatever was to be given back has been.
    job.signals.end_if_asked(|| ());
    result
}

impl RunArgs {
    /// The limits, which are defined here if that is asked for.
    fn limiter(&self, shell: &Shell) -> Result<Limiter, Failure> {
        let limits = self.definitions()?;
        if limits.is_empty() {
            return shell.limiter();
        }
        let limiter = shell.new_limiter()?;
        limiter.define_all(limits, OnConflict::Fail)?;
        Ok(limiter)
    }

    fn definitions(&self) -> Result<Vec<Limit>, Failure> {
        if self.rate.is_none() && self.slots.is_none() {
            return Ok(Vec::new());
        }
        let [Take { key, .. }] = &*self.limits else {
            return Err(Failure::misused(
                "`--rate` and `--slots` define one limit, and several are named",
            )
            .hint("`quotalite limits set` defines each of them"));
        };
        let mut builders = Vec::new();
        if let Some(rates) = &self.rate {
            builders.push(Limit::new(key).rates(rates));
        }
        if let Some(count) = self.slots {
            let slots = self.slots_beside_rate();
            builders.push(Limit::slots(slots.as_ref().unwrap_or(key), count));
        }
        let limits = builders.into_iter().map(LimitBuilder::build);
        limits
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::misused(format_args!("limit `{key}`: {error}")))
    }

    /// The key of the slots that are taken beside a rate, if any are.
    fn slots_beside_rate(&self) -> Option<String> {
        match (&*self.limits, &self.rate, self.slots) {
            ([Take { key, .. }], Some(_), Some(_)) => Some(format!("{key}:slots")),
            _ => None,
        }
    }

    fn request(&self) -> Request {
        let request = ask::request(&self.limits);
        match self.slots_beside_rate() {
            Some(slots) => request.take(slots, 1),
            None => request,
        }
    }
}

/// A command, and what it is admitted by.
#[derive(Debug)]
struct Job<'a> {
    shell: &'a Shell,
    args: &'a RunArgs,
    program: Program,
    signals: Signals,
    limiter: Limiter,
    request: Request,
}

impl Job<'_> {
    fn run(&self) -> Result<Code, Failure> {
        self.tell_of_the_line()?;
        let mut policy = RetryPolicy::default().retries(self.args.retry);
        if let Some(within) = self.args.within {
            policy = policy.within(within);
        }
        let mut job = retry(policy)
            .classify(|result: &Result<Ended, Failure>| self.judge(result))
            .on_event(|event| self.heed(event))
            .without_pausing();
        for key in self.paused_keys()? {
            job = job.pauses(key);
        }
        let call = |permit: &Permit| self.call(permit);
        let error = match job.run_with(&self.limiter, &self.request, call) {
            Ok(ended) => return Ok(ended.code),
            Err(error) => error,
        };
        let kind = error.kind();
        let told = error.limiter_error().map(Failure::from);
        match (error.into_last(), told) {
            (_, Some(failure)) if kind == RetryErrorKind::Limiter => Err(failure),
            (Some(Last::Returned(ended)), _) => Ok(ended.code),
            (Some(Last::Failed(failure)), _) | (None, Some(failure)) => Err(failure),
            (None, None) => Err(Failure::misused(kind)),
        }
    }

    /// Runs it if it is admitted now.
    fn run_now(&self) -> Result<Code, Failure> {
        match self.limiter.try_acquire(&self.request)? {
            Decision::Granted(permit) => {
                let ended = self.call(&permit)?;
                if ended.code != Code::Child(0) && !ended.on_demand && ended.matches {
                    for key in self.paused_keys()? {
                        let strike = Backoff::strike().asked_at(permit.at());
                        self.limiter.pause(key, strike)?;
                    }
                }
                Ok(ended.code)
            }
            Decision::Denied(denial) => Err(Failure::of(Code::Refused, denial)),
        }
    }

    /// What is paused when it was rate limited.
    fn paused_keys(&self) -> Result<Vec<&str>, Failure> {
        let mut keys = Vec::new();
        if self.args.retry_match.is_some() {
            for Take { key, .. } in &self.args.limits {
                if self.limiter.limit(key)?.slot_count().is_none() {
                    keys.push(key.as_str());
                }
            }
        }
        Ok(keys)
    }

    /// Tells whoever sits there why nothing happens yet.
    fn tell_of_the_line(&self) -> Result<(), Failure> {
        if self.shell.json || !io::stderr().is_terminal() {
            return Ok(());
        }
        if let Peek::Later(denial) = self.limiter.peek(&self.request)? {
            let (key, obstacle) = (denial.key(), denial.obstacle());
            let wait = denial.retry_after();
            let wait = wait.map(|wait| format!(": {}", show::duration(wait)));
            let wait = wait.unwrap_or_default();
            self.shell.remark(format_args!(
                "quotalite: waits for `{key}` ({obstacle}){wait}"
            ));
        }
        Ok(())
    }

    fn heed(&self, event: &RetryEvent) {
        match event {
            RetryEvent::RateLimited { .. } => {
                self.shell.remark(format_args!("quotalite: {event}"));
            }
            // The exit code is that of the last try.
            RetryEvent::GaveUp {
                tries: 1..,
                kind: RetryErrorKind::Deadline,
                ..
            } => {
                Shell::warn(format_args!("quotalite: {event}"));
            }
            RetryEvent::Retrying { .. } => {
                self.shell.remark(format_args!("quotalite: {event}"));
                self.signals.stop(&self.limiter);
            }
            _ => {}
        }
    }

    /// What the end of the command means for another try.
    fn judge(&self, result: &Result<Ended, Failure>) -> Answer {
        match result {
            Ok(ended) if ended.code == Code::Child(0) => Answer::Success,
            Ok(ended) if ended.on_demand => Answer::Fatal,
            Ok(ended) if ended.matches => Answer::RateLimited { retry_after: None },
            Ok(ended) if self.args.retry_on.contains(&ended.code.number()) => Answer::Transient,
            Ok(_) | Err(_) => Answer::Fatal,
        }
    }

    /// Runs the command once.
    fn call(&self, permit: &Permit) -> Result<Ended, Failure> {
        let pattern = self.args.retry_match.as_ref();
        // The child inherits what is open when it is started, and nobody else is to.
        let started = self.lifeline(permit).and_then(|lifeline| {
            let timeout = self.timeout(permit)?;
            let started = self.program.start(&self.signals, pattern);
            drop(lifeline);
            Ok((started?, timeout))
        });
        match started {
            Ok((running, timeout)) => {
                let warn = |what: &dyn Display| Shell::warn(format_args!("quotalite: {what}"));
                with_heartbeat(permit, timeout, warn, || running.wait(&self.signals))
            }
            Err(failure) => match permit.cancel() {
                Ok(_) => Err(failure),
                Err(error) => Err(failure.hint(format!("what it was charged stays: {error}"))),
            },
        }
    }

    /// After how long its slots come back if nobody renews them: as they were taken, whatever has become of the definition since.
    fn timeout(&self, permit: &Permit) -> Result<Option<Duration>, Failure> {
        let Some(fence) = permit.fence() else {
            return Ok(None);
        };
        let permits = self.shell.inspector()?.look(|look| look.permits())?;
        let is_open = |row: &&PermitRow| row.fence == fence && row.state.is_open();
        Ok(match permits.iter().find(is_open) {
            Some(row) => row
                .expires
                .map(|expires| expires.saturating_duration_since(row.at)),
            // They are back already.
            None => Some(Duration::ZERO),
        })
    }

    /// Keeps slots until the command has ended, even if this process ends before. Rates need none: they stay charged.
    #[cfg(target_os = "linux")]
    fn lifeline(&self, permit: &Permit) -> Result<Option<OwnedFd>, Failure> {
        if permit.fence().is_none() {
            return Ok(None);
        }
        Ok(Some(self.limiter.lifeline()?))
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "on Linux this can fail")]
    fn lifeline(&self, _permit: &Permit) -> Result<(), Failure> {
        Ok(())
    }
}
