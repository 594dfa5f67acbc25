//! A worker process: it asks, waits in line, and says on its standard output what it got.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use quotalite::{Error, Limiter, Permit, Request, Timestamp};

use crate::{Failure, REQUESTS, TOKENS};

/// What a worker tells its parent, one line each.
pub enum Line {
    /// A permit is there.
    Grant(Grant),
    /// The request would be admitted only after the end of the run; the limit and rate in the way.
    Refused { key: String, rate: String },
    /// A job was called.
    Done { job: usize },
}

/// A permit, as the worker saw it.
#[derive(Clone, Copy)]
pub struct Grant {
    pub at_ns: i64,
    pub waited_ns: i64,
    /// From the instant of the permit to when the worker was there to use it.
    pub late_ns: i64,
    pub tokens: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant(grant) => {
                let Grant {
                    at_ns,
                    waited_ns,
                    late_ns,
                    tokens,
                } = grant;
                write!(f, "grant {at_ns} {waited_ns} {late_ns} {tokens}")
            }
            Self::Refused { key, rate } => write!(f, "refused {key} {rate}"),
            Self::Done { job } => write!(f, "done {job}"),
        }
    }
}

impl Line {
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        Some(match fields[..] {
            ["grant", at, waited, late, tokens] => Self::Grant(Grant {
                at_ns: at.parse().ok()?,
                waited_ns: waited.parse().ok()?,
                late_ns: late.parse().ok()?,
                tokens: tokens.parse().ok()?,
            }),
            ["refused", key, rate] => Self::Refused {
                key: key.into(),
                rate: rate.into(),
            },
            ["done", job] => Self::Done {
                job: job.parse().ok()?,
            },
            _ => return None,
        })
    }
}

/// What a worker does, and where.
pub struct Order {
    pub db: PathBuf,
    /// How long a call takes on average.
    pub call: Duration,
    pub work: Work,
}

/// Where a worker's jobs come from.
pub enum Work {
    /// Its own prompts, short ones until `turn` and long ones until `end`.
    Own { turn: Timestamp, end: Timestamp },
    /// The jobs that come in on its standard input.
    Handed,
}

pub fn run(order: &Order) -> Result<(), Failure> {
    let limiter = Limiter::builder(&order.db).create(false).open()?;
    match order.work {
        Work::Own { turn, end } => own(&limiter, order.call, turn, end),
        Work::Handed => handed(&limiter, order.call),
    }
}

fn own(limiter: &Limiter, call: Duration, turn: Timestamp, end: Timestamp) -> Result<(), Failure> {
    loop {
        let now = patiently(|| limiter.now())?;
        if now >= end {
            return Ok(());
        }
        let tokens = if now < turn {
            fastrand::u64(20..=200)
        } else {
            fastrand::u64(400..=1_600)
        };
        let ask = ask(tokens);
        match patiently(|| limiter.acquire_until(&ask, end)) {
            Ok(permit) => {
                acknowledge(limiter, &permit, tokens)?;
                call_model(call);
            }
            Err(Error::TooLate { denial, .. }) => {
                let (key, rate) = (denial.key().to_owned(), denial.obstacle().to_string());
                return say(&Line::Refused { key, rate });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn handed(limiter: &Limiter, call: Duration) -> Result<(), Failure> {
    for line in io::stdin().lines() {
        let line = line?;
        let mut fields = line.splitn(3, '\t');
        let (Some(job), Some(tokens)) = (fields.next(), fields.next()) else {
            return Err(format!("no job: {line}").into());
        };
        let (job, tokens) = (job.parse()?, tokens.parse()?);
        let ask = ask(tokens);
        let permit = patiently(|| limiter.acquire(&ask))?;
        acknowledge(limiter, &permit, tokens)?;
        call_model(call);
        say(&Line::Done { job })?;
    }
    Ok(())
}

/// Calls again if the machine is so loaded that the lock was not to be had: then nothing was charged.
pub fn patiently<T>(call: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match call() {
            Err(Error::Busy { .. }) => {}
            answered => return answered,
        }
    }
}

fn ask(tokens: u64) -> Request {
    Request::new().take(REQUESTS, 1).take(TOKENS, tokens)
}

/// Stands for the call of a model, which takes its time.
fn call_model(call: Duration) {
    thread::sleep(call.mul_f64(0.5 + fastrand::f64()));
}

fn acknowledge(limiter: &Limiter, permit: &Permit, tokens: u64) -> Result<(), Failure> {
    let late = patiently(|| limiter.now())?.saturating_duration_since(permit.at());
    say(&Line::Grant(Grant {
        at_ns: permit.at().as_nanos(),
        waited_ns: i64::try_from(permit.waited().as_nanos())?,
        late_ns: i64::try_from(late.as_nanos())?,
        tokens,
    }))
}

/// One short write, so that the parent gets the whole line or, if this process is killed, none of it.
fn say(line: &Line) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes())?;
    Ok(stdout.flush()?)
}
