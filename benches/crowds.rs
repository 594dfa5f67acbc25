//! Ways in which processes can wait for the write lock of one file, side by side. Run `cargo bench --bench crowds`.
//!
//! Eight processes do nothing but write, each one row a transaction, for a while. The first four ways are raw SQLite; the
//! last is this crate, whose transactions are longer: so what counts is what eight processes get done beside one
//! in the same way, how long the longest call takes, and how evenly they share.

mod support;

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use quotalite::{Limit, Limiter, MINUTE};
use rusqlite::Connection;
use support::{PLAIN, PLENTY, Raw};

const PROCESSES: usize = 8;
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// SQLite's own busy handler.
    Stock,
    /// Gives way twice, then sleeps for random times that grow to a millisecond.
    Sleeps,
    /// `flock` on a file beside the database, around each transaction.
    Gate,
    /// Asks for the lock for some 30 µs, and only then goes to the gate.
    SpinThenGate,
    /// Takes a number, and writes for 2 ms when it is called.
    Turns,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Stock, "raw, SQLite's busy handler"),
    (Way::Sleeps, "raw, short random sleeps"),
    (Way::Gate, "raw, flock as a gate"),
    (Way::SpinThenGate, "raw, a short spin, then the gate"),
    (Way::Turns, "quotalite: numbers and turns"),
];

fn nap(attempt: i32) -> bool {
    if attempt < 2 {
        thread::yield_now();
    } else {
        let longest = (20_u64 << attempt.clamp(0, 10)).min(1_000);
        thread::sleep(Duration::from_micros(fastrand::u64(longest / 4..=longest)));
    }
    true
}

fn spin(attempt: i32) -> bool {
    thread::yield_now();
    attempt < 30
}

/// One transaction after the other.
fn writer(way: Way, directory: &Path) -> Box<dyn FnMut()> {
    if way == Way::Turns {
        let limiter = Limiter::open(directory.join("limits.db")).unwrap();
        let limit = Limit::new("key").per_hour(PLENTY).rate(PLENTY, MINUTE);
        limiter.define(limit).unwrap();
        return Box::new(move || assert!(limiter.try_acquire("key").unwrap().is_granted()));
    }
    let connection = Connection::open(directory.join("raw.db")).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
        .execute_batch("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4096;")
        .unwrap();
    match way {
        Way::Sleeps => connection.busy_handler(Some(nap)).unwrap(),
        Way::SpinThenGate => connection.busy_handler(Some(spin)).unwrap(),
        Way::Stock | Way::Gate | Way::Turns => {}
    }
    let gate = directory.join("gate");
    let write = move || -> rusqlite::Result<()> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        connection.prepare_cached(PLAIN.1)?.execute([1])?;
        connection.prepare_cached("COMMIT")?.execute([]).map(drop)
    };
    Box::new(move || {
        let through_the_gate = || {
            let _gate = Flock::lock(File::create(&gate).unwrap(), FlockArg::LockExclusive).unwrap();
            while write().is_err() {}
        };
        match way {
            Way::Gate => through_the_gate(),
            Way::SpinThenGate if write().is_err() => through_the_gate(),
            Way::SpinThenGate => {}
            Way::Stock | Way::Sleeps | Way::Turns => write().unwrap(),
        }
    })
}

/// What one process did in a round.
struct Work {
    calls: u32,
    p99: Duration,
    longest: Duration,
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The entry of a worker process: writes from one moment to another, and says what came of it.
fn work(way: Way, directory: &Path, begin: Duration) {
    let mut write = writer(way, directory);
    write();
    thread::sleep(begin.saturating_sub(since_epoch()));
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < ROUND {
        let call = Instant::now();
        write();
        times.push(call.elapsed());
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    println!(
        "{} {} {}",
        times.len(),
        p99.as_nanos(),
        times[times.len() - 1].as_nanos()
    );
}

fn round(way: Way, directory: &Path, count: usize) -> Vec<Work> {
    let begin = since_epoch() + Duration::from_millis(150);
    let number = WAYS.iter().position(|(of, _)| *of == way).unwrap();
    let children: Vec<_> = (0..count)
        .map(|_| {
            Command::new(env::current_exe().unwrap())
                .env("CROWDS_WAY", number.to_string())
                .env("CROWDS_DIRECTORY", directory)
                .env("CROWDS_BEGIN", begin.as_nanos().to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    children
        .into_iter()
        .map(|mut child| {
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert!(child.wait().unwrap().success());
            let told: Vec<u64> = line
                .split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect();
            Work {
                calls: told[0].try_into().unwrap(),
                p99: Duration::from_nanos(told[1]),
                longest: Duration::from_nanos(told[2]),
            }
        })
        .collect()
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

fn main() {
    let told = |name: &str| env::var(name).ok();
    if let (Some(way), Some(directory), Some(begin)) = (
        told("CROWDS_WAY"),
        told("CROWDS_DIRECTORY"),
        told("CROWDS_BEGIN"),
    ) {
        let begin = Duration::from_nanos(begin.parse().unwrap());
        return work(
            WAYS[way.parse::<usize>().unwrap()].0,
            Path::new(&directory),
            begin,
        );
    }
    let directory = tempfile::tempdir().unwrap();
    drop(Raw::open(directory.path(), "raw.db", PLAIN));
    drop(writer(Way::Turns, directory.path()));
    let mut rounds: Vec<Vec<(Vec<Work>, Vec<Work>)>> = WAYS.map(|_| Vec::new()).into();
    for _ in 0..ROUNDS {
        for ((way, _), rounds) in WAYS.iter().zip(&mut rounds) {
            let one = round(*way, directory.path(), 1);
            rounds.push((one, round(*way, directory.path(), PROCESSES)));
        }
    }
    println!(
        "{:<36} {:>11} {:>11} {:>7} {:>10} {:>10} {:>8}",
        "calls a second, medians of rounds", "1 process", "8", "8 / 1", "p99", "longest", "max/min"
    );
    for ((_, name), rounds) in WAYS.iter().zip(&rounds) {
        let per_second = |works: &[Work]| {
            let calls: u32 = works.iter().map(|work| work.calls).sum();
            f64::from(calls) / ROUND.as_secs_f64()
        };
        let alone = median(rounds.iter().map(|(one, _)| per_second(one)).collect());
        let crowd = median(rounds.iter().map(|(_, all)| per_second(all)).collect());
        let p99 = median(
            rounds
                .iter()
                .flat_map(|(_, all)| all.iter().map(|w| w.p99))
                .collect(),
        );
        let longest = rounds
            .iter()
            .flat_map(|(_, all)| all.iter().map(|w| w.longest))
            .max();
        let spread = rounds.iter().map(|(_, all)| {
            let calls = || all.iter().map(|work| work.calls);
            f64::from(calls().max().unwrap()) / f64::from(calls().min().unwrap().max(1))
        });
        println!(
            "{name:<36} {alone:>11.0} {crowd:>11.0} {:>7.2} {p99:>10.1?} {:>10.1?} {:>8.2}",
            crowd / alone,
            longest.unwrap_or_default(),
            median(spread.collect()),
        );
    }
}
