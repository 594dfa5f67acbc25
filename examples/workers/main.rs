//! Worker processes share the limits of one file. One is killed on the way and another takes its place.
//! Then the ledger is audited, and the exit status says whether the limits held.
//!
//! ```sh
//! cargo run --release --example workers
//! cargo run --release --example workers -- --input examples/prompts.tsv --db demo.db
//! ```

mod audit;
mod report;
mod team;
mod worker;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lexopt::ValueExt;
use quotalite::{Limit, LimitError, Limiter, MINUTE, SECOND, Timestamp};

use crate::worker::{Order, Work};

const REQUESTS: &str = "demo:requests";
const TOKENS: &str = "demo:tokens";

const HELP: &str = "\
Worker processes share the limits of one file; then its ledger is audited.

usage: cargo run --release --example workers -- [options]

  --input FILE   hand out the jobs of FILE, one a line: tokens<TAB>payload
  --db PATH      make the file at PATH (defaults to one in the temporary directory)
  --seconds N    how long the workers run, or the pace of the jobs, 2 to 50 (defaults to 15)
  --workers N    how many worker processes, 1 to 64 (defaults to 8)
  --help         this text

The exit status is 0 if every law held, 1 if one was broken, 2 if the demo could not run.
";

type Failure = Box<dyn Error + Send + Sync>;

struct Options {
    input: Option<PathBuf>,
    db: Option<PathBuf>,
    seconds: u32,
    workers: usize,
}

/// A job from the input.
pub struct Job {
    tokens: u64,
    payload: String,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let outcome = if arguments.next().is_some_and(|first| first == team::WORKER) {
        be_worker(&arguments.collect::<Vec<_>>()).map(|()| true)
    } else {
        parse_options()
            .and_then(|options| options.map_or(Ok(true), |options| demonstrate(&options)))
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("workers: {error}");
            ExitCode::from(2)
        }
    }
}

fn parse_options() -> Result<Option<Options>, Failure> {
    use lexopt::Arg::Long;
    let mut options = Options {
        input: None,
        db: None,
        seconds: 15,
        workers: 8,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("input") => options.input = Some(parser.value()?.into()),
            Long("db") => options.db = Some(parser.value()?.into()),
            Long("seconds") => options.seconds = number(&parser.value()?, "--seconds", 2, 50)?,
            Long("workers") => {
                options.workers = number(&parser.value()?, "--workers", 1, 64)? as usize;
            }
            Long("help") | lexopt::Arg::Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            _ => return Err(format!("{}; see --help", argument.unexpected()).into()),
        }
    }
    Ok(Some(options))
}

fn number(value: &OsString, name: &str, least: u32, most: u32) -> Result<u32, Failure> {
    match value.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{name} takes a number from {least} to {most}").into()),
    }
}

fn demonstrate(options: &Options) -> Result<bool, Failure> {
    let jobs = options.input.as_deref().map(read_jobs).transpose()?;
    let limits = match &jobs {
        Some(jobs) => limits_for_jobs(jobs, options.seconds)?,
        None => limits_for_own_prompts(options.seconds)?,
    };
    let db = place(options.db.as_deref())?;
    let limiter = Limiter::open(&db)?;
    for limit in &limits {
        limiter.define(limit)?;
    }

    let run = team::run(&limiter, &db, &limits, jobs.as_deref(), options)?;
    let grants: Vec<_> = run
        .workers
        .iter()
        .flat_map(|worker| worker.grants.iter().copied())
        .collect();
    let findings = audit::audit(&db, &limits, &grants)?;
    report::print(&run, &findings, jobs.as_deref(), &db)
}

/// Requests bind first, then tokens, and the minute is spent shortly before the end.
fn limits_for_own_prompts(seconds: u32) -> Result<[Limit; 2], LimitError> {
    limits(
        (40, u64::from(seconds) * 25),
        (20_000, u64::from(seconds) * 20_000),
    )
}

/// Limits under which the jobs take about two thirds of the time.
fn limits_for_jobs(jobs: &[Job], seconds: u32) -> Result<[Limit; 2], LimitError> {
    let spread = |sum: u64| (sum * 3).div_ceil(u64::from(seconds) * 2);
    let requests = jobs.len() as u64;
    let tokens = jobs.iter().map(|job| job.tokens).sum();
    let largest = jobs.iter().map(|job| job.tokens).max().unwrap_or(1);
    // A killed worker's job is called again, so that the minute must hold more than the jobs.
    limits(
        (spread(requests), requests * 2),
        (spread(tokens).max(largest), tokens.saturating_mul(2)),
    )
}

/// Every limit has a rate per minute, and thereby the file keeps the charges of at least a minute.
fn limits(requests: (u64, u64), tokens: (u64, u64)) -> Result<[Limit; 2], LimitError> {
    Ok([
        Limit::new(REQUESTS)
            .per_second(requests.0)
            .per_minute(requests.1)
            .build()?,
        Limit::new(TOKENS)
            .rate(tokens.0, SECOND)
            .rate(tokens.1, MINUTE)
            .unit("tokens")
            .build()?,
    ])
}

fn read_jobs(path: &Path) -> Result<Vec<Job>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut jobs = Vec::new();
    for (position, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let job = line.split_once('\t').and_then(|(tokens, payload)| {
            let tokens = tokens
                .trim()
                .parse()
                .ok()
                .filter(|tokens| (1..=1_000_000).contains(tokens))?;
            Some(Job {
                tokens,
                payload: payload.to_owned(),
            })
        });
        let Some(job) = job else {
            let place = format!("{}:{}", path.display(), position + 1);
            return Err(
                format!("{place}: expected tokens (1 to 1000000), a tab, and a payload").into(),
            );
        };
        jobs.push(job);
    }
    match jobs.len() {
        0 => Err(format!("{}: no jobs in it", path.display()).into()),
        1..=5_000 => Ok(jobs),
        many => Err(format!(
            "{}: {many} jobs, the demo takes at most 5000",
            path.display()
        )
        .into()),
    }
}

/// Where the file goes. It must be a new one: charges of others would spoil the audit.
fn place(wanted: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(path) = wanted else {
        let directory = tempfile::Builder::new().prefix("quotalite-").tempdir()?;
        return Ok(directory.keep().join("limits.db"));
    };
    if path.try_exists()? {
        return Err(format!("{} exists; the demo needs a new file", path.display()).into());
    }
    Ok(path.to_owned())
}

fn be_worker(arguments: &[OsString]) -> Result<(), Failure> {
    let number = |text: &OsString| text.parse::<i64>();
    let instant = |text| number(text).map(Timestamp::from_nanos);
    let [db, call_us, times @ ..] = arguments else {
        return Err("a worker is started by the demo".into());
    };
    worker::run(&Order {
        db: db.into(),
        call: Duration::from_micros(number(call_us)?.unsigned_abs()),
        work: match times {
            [turn, end] => Work::Own {
                turn: instant(turn)?,
                end: instant(end)?,
            },
            _ => Work::Handed,
        },
    })
}
