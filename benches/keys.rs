//! What a pattern costs that a million keys match: an acquisition of any of them beside one under a pattern that a single
//! key matches, opening the file, and how the file shrinks when all of them have gone idle. Run `cargo bench --bench keys`.
//!
//! Times of calls are taken in turns, and what counts is their ratio.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use quotalite::{DAY, HOUR, Limit, Limiter, ManualClock};
use rusqlite::Connection;
use support::{KEYED, PLENTY, Raw, compare, compare_calls};
use tempfile::TempDir;

const KEYS: i64 = 1_000_000;

fn open(path: &Path, clock: &ManualClock) -> Limiter {
    let builder = Limiter::builder(path);
    builder.clock(clock.clone()).open().unwrap()
}

fn key(number: i64) -> String {
    format!("tenant:{number:07}:tokens")
}

/// A file with so many keys under one pattern, each charged once within the last hour, by rows as the crate writes them.
fn filled(path: &Path, clock: &ManualClock, keys: i64) -> Limiter {
    let limiter = open(path, clock);
    let pattern = Limit::pattern("tenant:*:tokens")
        .rate(PLENTY, HOUR)
        .rate(PLENTY, DAY);
    limiter.define(pattern).unwrap();
    limiter
        .define(Limit::new("other").per_second(PLENTY))
        .unwrap();
    let now_ns = limiter.now().unwrap().as_nanos();
    let mut connection = Connection::open(path).unwrap();
    let transaction = connection.transaction().unwrap();
    let pattern: i64 = transaction
        .query_row(
            "SELECT limit_id FROM limit_definition WHERE is_pattern",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let last: i64 = transaction
        .query_row(
            "UPDATE limit_number SET last = last + ?1 RETURNING last - ?1",
            [keys],
            |row| row.get(0),
        )
        .unwrap();
    {
        let mut insert_key = transaction
            .prepare("INSERT INTO pattern_key (limit_id, key, pattern_id) VALUES (?1, ?2, ?3)")
            .unwrap();
        let mut insert_charge = transaction
            .prepare(
                "INSERT INTO charge (limit_id, at_ns, seq, amount, total) VALUES (?1, ?2, 0, 1, 1)",
            )
            .unwrap();
        // Not in the order of the keys, as they come in life.
        let mut order: Vec<i64> = (0..keys).collect();
        fastrand::seed(1);
        fastrand::shuffle(&mut order);
        for (number, id) in order.iter().zip(last + 1..) {
            insert_key.execute((id, key(*number), pattern)).unwrap();
        }
        // Each is charged some time after it was first seen, so that the pages of the ledgers are as full as they get.
        fastrand::shuffle(&mut order);
        for number in order {
            let id = last + 1 + number;
            insert_charge
                .execute((id, now_ns - 3_000_000_000_000 + id))
                .unwrap();
        }
    }
    transaction.commit().unwrap();
    truncate_wal(path);
    limiter
}

fn truncate_wal(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

fn bytes(path: &Path) -> u64 {
    truncate_wal(path);
    std::fs::metadata(path).unwrap().len()
}

fn count(path: &Path, table: &str) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .unwrap()
}

fn any_of(keys: i64) -> String {
    key(fastrand::i64(0..keys))
}

fn acquire(limiter: &Limiter, key: &str) {
    assert!(limiter.try_acquire(key).unwrap().is_granted());
}

fn figures(_: &mut Criterion) {
    let directory: TempDir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let place = |name: &str| directory.path().join(name);
    let (many, empty) = (place("many.db"), place("empty.db"));
    drop(filled(&empty, &clock, 0));
    let start = Instant::now();
    let among_many = filled(&many, &clock, KEYS);
    println!(
        "{KEYS} keys written in {:?}, {} bytes",
        start.elapsed(),
        bytes(&many)
    );
    std::fs::copy(&many, place("beside.db")).unwrap();
    let beside_many = open(&place("beside.db"), &clock);
    let among_few = filled(&place("few.db"), &clock, 1_000);
    let alone = filled(&place("one.db"), &clock, 1);
    let raw = |name: &str, limits: i64| {
        let mut raw = Raw::open(directory.path(), name, KEYED);
        raw.fill(limits);
        raw
    };
    let (mut raw_alone, mut raw_many) = (raw("raw-one.db", 1), raw("raw-many.db", KEYS));
    // Time goes on by about as much as a call takes.
    let tick = || clock.advance(Duration::from_micros(10));
    let run = |limiter: &Limiter, keys: i64| {
        tick();
        acquire(limiter, &any_of(keys));
    };
    let mut subjects: [support::Subject<'_>; 6] = [
        ("one key under a pattern", Box::new(|| run(&alone, 1))),
        (
            "raw transaction, a row of one limit",
            Box::new(|| raw_alone.transaction_of_any(1)),
        ),
        (
            "raw transaction, one of 1 000 000 limits",
            Box::new(|| raw_many.transaction_of_any(KEYS)),
        ),
        ("one of 1 000 keys", Box::new(|| run(&among_few, 1_000))),
        ("one of 1 000 000 keys", Box::new(|| run(&among_many, KEYS))),
        (
            "a limit beside 1 000 000 keys",
            Box::new(|| {
                tick();
                acquire(&beside_many, "other");
            }),
        ),
    ];
    compare_calls(&mut subjects);
    println!("the same in rounds of 20 000 calls, with what they pay now and then:");
    compare(&mut subjects);
    drop(subjects);
    open_times(
        &[("without keys", &empty), ("1 000 000 keys", &many)],
        &clock,
    );
    shrink(&many, &among_many, &clock);
}

fn open_times(files: &[(&str, &Path)], clock: &ManualClock) {
    for (name, path) in files {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let start = Instant::now();
                let limiter = open(path, clock);
                acquire(&limiter, &any_of(KEYS));
                start.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{:<44} {:>12?}",
            format!("opened, and one acquired: {name}"),
            times[times.len() / 2]
        );
    }
}

/// Lets all keys go idle, and uses something else until nothing is left of them.
fn shrink(path: &Path, limiter: &Limiter, clock: &ManualClock) {
    println!("{} keys, {} bytes", count(path, "pattern_key"), bytes(path));
    clock.advance(2 * DAY);
    let start = Instant::now();
    let mut calls: u64 = 0;
    let mut slowest = Duration::ZERO;
    let mut one = |calls: &mut u64| {
        // So slowly that not much is charged to this one itself at any time.
        clock.advance(Duration::from_millis(1));
        let start = Instant::now();
        acquire(limiter, "other");
        slowest = slowest.max(start.elapsed());
        *calls += 1;
    };
    while count(path, "pattern_key") > 0 {
        (0..12_800).for_each(|_| one(&mut calls));
    }
    let took = start.elapsed();
    // What came free last is given back with the next sweeps.
    (0..12_800).for_each(|_| one(&mut calls));
    println!(
        "none left after {calls} acquisitions of something else and {:?}, {} bytes; the slowest took {slowest:?}",
        took,
        bytes(path)
    );
}

criterion_group!(benches, figures);
criterion_main!(benches);
