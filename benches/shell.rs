//! How long `quotalite status` takes, as a process, beside a start of the program that does nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quotalite::{Limit, Limiter, OnConflict, Request};

/// So many keys, each with a charge.
const KEYS: usize = 100_000;
const ROUNDS: usize = 31;

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let [few, plain, matched] =
        ["few.db", "plain.db", "matched.db"].map(|name| directory.path().join(name));
    define(&few, 10);
    define(&plain, KEYS);
    let limiter = Limiter::open(&matched).expect("it opens");
    limiter
        .define(Limit::pattern("key:*").per_second(10).per_minute(300))
        .expect("it is defined");
    charge(&limiter, KEYS);
    drop(limiter);
    let subjects: [(&str, &Path, &[&str]); 5] = [
        ("--version", &few, &["--version"]),
        ("status: 10 keys", &few, &["status"]),
        (
            "status: 50 of 100 000 limits",
            &plain,
            &["status", "--max", "50"],
        ),
        (
            "status: 50 of 100 000 keys of a pattern",
            &matched,
            &["status", "--max", "50"],
        ),
        (
            "status --json: 100 000 limits",
            &plain,
            &["status", "--json"],
        ),
    ];
    let mut took = subjects.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for ((_, db, arguments), took) in subjects.iter().zip(&mut took) {
            took.push(time(db, arguments));
        }
    }
    println!(
        "{:<40} {:>10} {:>10}",
        "a process, in turns", "median", "longest"
    );
    for ((what, ..), took) in subjects.iter().zip(&mut took) {
        took.sort_unstable();
        let (median, longest) = (took[ROUNDS / 2], took[ROUNDS - 1]);
        println!("{what:<40} {median:>10.1?} {longest:>10.1?}");
    }
}

fn define(db: &Path, count: usize) {
    let limiter = Limiter::open(db).expect("it opens");
    let limits = (0..count).map(|at| Limit::new(key(at)).per_second(10).per_minute(300));
    limiter
        .define_all(limits, OnConflict::Fail)
        .expect("they are defined");
    charge(&limiter, count);
}

fn key(at: usize) -> String {
    format!("key:{at:06}")
}

fn charge(limiter: &Limiter, count: usize) {
    for first in (0..count).step_by(1_000) {
        let asks = (first..count.min(first + 1_000)).map(|at| Request::new().take(key(at), 1));
        let asks: Vec<Request> = asks.collect();
        limiter.try_acquire_all(&asks).expect("they are decided");
    }
}

fn time(db: &Path, arguments: &[&str]) -> Duration {
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_quotalite"))
        .arg("--db")
        .arg(db)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .expect("it starts");
    assert!(status.success());
    began.elapsed()
}
