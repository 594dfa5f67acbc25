//! What this machine can do: `bench`.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use quotalite::rusqlite::{self, Connection};
use quotalite::{DAY, Limit, LimitBuilder, Limiter, Request};
use serde::Serialize;

use crate::ask;
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, Column, DIM, Table};

/// What this machine can do, in ten seconds: calls a second, beside raw SQLite transactions in the same run
///
/// It makes a directory of its own, `quotalite-bench-*`, beside the file that `--db` names if it does, and removes it at the end;
/// a signal that ends it leaves it there.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// For how long each line is measured, in all rounds together
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = ask::duration)]
    each: Duration,
    /// A process of a crowd: the file that it works on. It says how long it worked, and then how long each call took.
    #[arg(long, hide = true, value_name = "FILE")]
    crowd: Option<PathBuf>,
}

/// Each line is measured in so many rounds, in turns with the others: what else the machine does concerns all of them.
const ROUNDS: u32 = 4;

/// So many processes are a crowd.
const CROWD: usize = 4;

#[derive(Debug, Serialize)]
struct Measured {
    processors: usize,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    calls_per_s: f64,
    /// Beside raw transactions in the same run.
    ratio: f64,
    p50_s: f64,
    p99_s: f64,
}

/// How long each call of a line has taken.
#[derive(Default)]
struct Calls {
    took: Vec<Duration>,
    /// In which time, of how many at once.
    time: Duration,
}

impl Calls {
    /// Makes calls for a while.
    fn add(
        &mut self,
        time: Duration,
        call: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let mut last = began;
        while last.duration_since(began) < time {
            call()?;
            let now = Instant::now();
            self.took.push(now.duration_since(last));
            last = now;
        }
        self.time += last.duration_since(began);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.time.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn line(mut self, what: &'static str, raw: f64) -> Line {
        self.took.sort_unstable();
        let at = |percent: usize| {
            let last = self.took.len().saturating_sub(1);
            let took = self.took.get((self.took.len() * percent / 100).min(last));
            took.map_or(0.0, Duration::as_secs_f64)
        };
        let calls_per_s = self.per_second();
        Line {
            what,
            calls_per_s,
            ratio: calls_per_s / raw,
            p50_s: at(50),
            p99_s: at(99),
        }
    }
}

/// What is measured.
type Subject<'s> = Box<dyn FnMut() -> Result<(), Failure> + 's>;

/// Nobody comes near it.
fn large(key: &str) -> LimitBuilder {
    let most = quotalite::MAX_CAPACITY;
    Limit::new(key).per_second(most).per_minute(most)
}

pub(crate) fn bench(shell: &Shell, args: &BenchArgs) -> Result<Code, Failure> {
    if let Some(file) = &args.crowd {
        return crowd_member(file, args.each);
    }
    let directory = Directory::make(shell)?;
    let path = directory.0.join("bench.db");
    let limiter = Limiter::open(&path)?;
    limiter.define(large("calls"))?;
    limiter.define(large("tokens"))?;
    limiter.define(Limit::new("full").rate(1, DAY))?;
    limiter.define(Limit::slots("slots", 1_000))?;
    let _full = limiter.acquire("full")?;
    let raw = Raw::open(&directory.0.join("raw.db")).map_err(Failure::failed)?;

    let both = Request::new().take("calls", 1).take("tokens", 900);
    let mut subjects: Vec<(&'static str, Subject<'_>)> = vec![
        ("raw SQLite transaction, one row", Box::new(|| raw.insert())),
        (
            "granted: one limit, two rates",
            Box::new(|| limiter.acquire("calls").map(drop).map_err(Failure::from)),
        ),
        (
            "granted: two limits, four rates",
            Box::new(|| limiter.acquire(&both).map(drop).map_err(Failure::from)),
        ),
        (
            "slots: taken and given back",
            Box::new(|| limiter.acquire("slots").map(drop).map_err(Failure::from)),
        ),
        (
            "refused",
            Box::new(|| limiter.try_acquire("full").map(drop).map_err(Failure::from)),
        ),
        (
            "peek",
            Box::new(|| limiter.peek("calls").map(drop).map_err(Failure::from)),
        ),
    ];
    let mut measured: Vec<Calls> = subjects.iter().map(|_| Calls::default()).collect();
    let mut threads = Calls::default();
    let mut processes = Calls::default();
    let round = args.each / ROUNDS;
    for _ in 0..ROUNDS {
        for ((_, call), calls) in subjects.iter_mut().zip(&mut measured) {
            calls.add(round, call)?;
        }
        crowd_of_threads(&limiter, round, &mut threads)?;
        crowd_of_processes(&path, round, &mut processes)?;
    }
    let names: Vec<&'static str> = subjects.iter().map(|(what, _)| *what).collect();
    drop(subjects);
    let raw = measured[0].per_second();
    let names = names
        .into_iter()
        .chain(["granted: 4 threads", "granted: 4 processes"]);
    let measured = Measured {
        processors: thread::available_parallelism().map_or(1, usize::from),
        lines: names
            .zip(measured.into_iter().chain([threads, processes]))
            .map(|(what, calls)| calls.line(what, raw))
            .collect(),
    };
    shell.print(&measured, |out| measured.write(out))?;
    Ok(Code::Done)
}

impl Measured {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new([
            Column::left("", 0),
            Column::right("CALLS/S", 0),
            Column::right("/ RAW", 1),
            Column::right("P50", 2),
            Column::right("P99", 3),
        ]);
        for line in &self.lines {
            let took = |seconds: f64| show::duration(show::from_seconds(seconds));
            table.row(vec![
                line.what.into(),
                show::rounded(line.calls_per_s).into(),
                format!("{:.2}", line.ratio).into(),
                took(line.p50_s).into(),
                took(line.p99_s).into(),
            ]);
        }
        table.write(out, show::width())?;
        let processors = show::counted(self.processors as u64, "processor");
        writeln!(
            out,
            "{DIM}{processors}; what else runs here was measured with it{DIM:#}"
        )
    }
}

/// Threads that ask at once share transactions.
fn crowd_of_threads(limiter: &Limiter, time: Duration, all: &mut Calls) -> Result<(), Failure> {
    let began = Instant::now();
    let each = thread::scope(|scope| {
        let work = || {
            let mut calls = Calls::default();
            calls.add(time, &mut || {
                limiter.acquire("calls").map(drop).map_err(Failure::from)
            })?;
            Ok(calls.took)
        };
        let threads: Vec<_> = (0..CROWD).map(|_| scope.spawn(work)).collect();
        let panicked = || Failure::failed("a thread panicked");
        let each = threads.into_iter();
        each.map(|thread| thread.join().map_err(|_| panicked())?)
            .collect::<Result<Vec<_>, Failure>>()
    })?;
    all.took.extend(each.into_iter().flatten());
    all.time += began.elapsed();
    Ok(())
}

fn crowd_of_processes(path: &Path, time: Duration, all: &mut Calls) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::failed(format_args!("starting processes: {error}"));
    let program = env::current_exe().map_err(failed)?;
    let start = || {
        Command::new(&program)
            .args([
                "bench",
                "--each",
                &format!("{}us", time.as_micros()),
                "--crowd",
            ])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)
    };
    let mut crowd = (0..CROWD).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    let mut answers = Vec::new();
    for process in &mut crowd {
        answers.extend(process.stdout.take().map(|out| BufReader::new(out).lines()));
    }
    // Each says that it is ready, and begins when its input ends.
    for answer in &mut answers {
        answer.next();
    }
    for process in &mut crowd {
        drop(process.stdin.take());
    }
    let mut longest = Duration::ZERO;
    for answer in answers {
        let mut took = answer.map(|line| {
            let nanos = line.map_err(failed)?.parse();
            nanos.map(Duration::from_nanos).map_err(Failure::failed)
        });
        longest = longest.max(took.next().unwrap_or(Ok(Duration::ZERO))?);
        let calls = took.collect::<Result<Vec<_>, Failure>>()?;
        all.took.extend(calls);
    }
    // They began together, but for some microseconds.
    all.time += longest;
    for mut process in crowd {
        process.wait().map_err(failed)?;
    }
    Ok(())
}

fn crowd_member(file: &Path, time: Duration) -> Result<Code, Failure> {
    let limiter = Limiter::builder(file).create(false).open()?;
    drop(limiter.acquire("calls")?);
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    io::stdin().read_line(&mut String::new())?;
    let mut calls = Calls::default();
    calls.add(time, &mut || {
        limiter.acquire("calls").map(drop).map_err(Failure::from)
    })?;
    let mut out = io::BufWriter::new(out);
    writeln!(out, "{}", calls.time.as_nanos())?;
    for took in calls.took {
        writeln!(out, "{}", took.as_nanos())?;
    }
    out.flush()?;
    Ok(Code::Done)
}

/// A directory on the disk that is meant, which goes when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn make(shell: &Shell) -> Result<Self, Failure> {
        let beside = shell.db().ok().and_then(Path::parent).map(Path::to_owned);
        let beside = match beside {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent,
            None => env::temp_dir(),
        };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let unique = since.unwrap_or_default().as_nanos();
        let path = beside.join(format!("quotalite-bench-{}-{unique}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            // Where nobody can be told, it stays.
            let _ = writeln!(anstream::stderr(), "{}: {error}", self.0.display());
        }
    }
}

/// What is compared with: a transaction of SQLite with nothing in it but a row, under the pragmas of this crate. It is not
/// on a file of this crate.
struct Raw(Connection);

impl Raw {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
            CREATE TABLE row (at INTEGER, amount INTEGER) STRICT",
        )?;
        Ok(Self(connection))
    }

    fn insert(&self) -> Result<(), Failure> {
        let insert = || -> rusqlite::Result<()> {
            self.0.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.0
                .prepare_cached("INSERT INTO row VALUES (1, 1)")?
                .execute([])?;
            self.0.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        };
        insert().map_err(Failure::failed)
    }
}
