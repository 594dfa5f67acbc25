//! What an acquisition costs beside the cheapest thing that SQLite can do with the same file settings: a
//! transaction that inserts one row. Run `cargo bench --bench acquire`.
//!
//! Absolute times differ between machines and minutes. So each figure is measured in turns with the
//! baseline, a short round of each after the other, and what counts is the ratio of the medians.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use quotalite::{Limit, Limiter, MINUTE, Request};
use rusqlite::Connection;
use support::{KEYED, PLAIN, PLENTY, Raw, compare};
use tempfile::TempDir;

fn open(directory: &TempDir, name: &str) -> Limiter {
    Limiter::open(directory.path().join(name)).unwrap()
}

/// A limiter whose ledger `key` holds this many live charges.
fn filled(directory: &TempDir, charges: usize) -> Limiter {
    let path = directory.path().join(format!("filled-{charges}.db"));
    let limiter = Limiter::open(&path).unwrap();
    limiter
        .define(Limit::new("key").per_hour(PLENTY).rate(PLENTY, MINUTE))
        .unwrap();
    let now_ns = limiter.now().unwrap().as_nanos();
    let step_ns = 3_000_000_000_000 / i64::try_from(charges).unwrap();
    let mut connection = Connection::open(&path).unwrap();
    let transaction = connection.transaction().unwrap();
    {
        let mut insert = transaction
            .prepare(
                "INSERT INTO charge (limit_id, at_ns, seq, amount, total) VALUES (1, ?1, 0, 1, ?2)",
            )
            .unwrap();
        for n in 1..=i64::try_from(charges).unwrap() {
            let at_ns = now_ns - 3_000_000_000_000 + n * step_ns;
            insert.execute((at_ns, n)).unwrap();
        }
    }
    transaction.commit().unwrap();
    limiter
}

fn ratios(_: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let mut plain = Raw::open(directory.path(), "plain.db", PLAIN);
    let mut keyed = Raw::open(directory.path(), "keyed.db", KEYED);
    let mut stock = Raw::with_pages(directory.path(), "stock.db", PLAIN, 4_096);
    let granted = open(&directory, "granted.db");
    granted
        .define(Limit::new("key").per_second(PLENTY).rate(PLENTY, MINUTE))
        .unwrap();
    let refused = open(&directory, "refused.db");
    refused
        .define(Limit::new("key").per_second(PLENTY).per_day(1))
        .unwrap();
    assert!(refused.try_acquire("key").unwrap().is_granted());
    let several = open(&directory, "several.db");
    several
        .define(
            Limit::new("requests")
                .per_second(PLENTY)
                .rate(PLENTY, MINUTE),
        )
        .unwrap();
    several
        .define(Limit::new("tokens").rate(PLENTY, MINUTE))
        .unwrap();
    let ask = Request::new().take("requests", 1).take("tokens", 1_800);
    let (few, many) = (filled(&directory, 100), filled(&directory, 1_000_000));
    let grant =
        |limiter: &Limiter| assert!(limiter.try_acquire(black_box("key")).unwrap().is_granted());
    compare(&mut [
        ("raw transaction, one row", Box::new(|| plain.transaction())),
        (
            "raw transaction, one row keyed as a charge",
            Box::new(|| keyed.transaction()),
        ),
        (
            "raw transaction, one row, SQLite's page size",
            Box::new(|| stock.transaction()),
        ),
        (
            "granted: one limit, two rates",
            Box::new(|| grant(&granted)),
        ),
        (
            "granted: two limits, three rates",
            Box::new(|| assert!(several.try_acquire(black_box(&ask)).unwrap().is_granted())),
        ),
        (
            "refused",
            Box::new(|| assert!(!refused.try_acquire(black_box("key")).unwrap().is_granted())),
        ),
        (
            "peek",
            Box::new(|| drop(refused.peek(black_box("key")).unwrap())),
        ),
        ("granted: 100 live charges", Box::new(|| grant(&few))),
        ("granted: 1 000 000 live charges", Box::new(|| grant(&many))),
    ]);
}

fn times(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let mut raw = Raw::open(directory.path(), "plain.db", PLAIN);
    criterion.bench_function("raw transaction", |b| b.iter(|| raw.transaction()));
    let limiter = open(&directory, "granted.db");
    limiter
        .define(Limit::new("key").per_second(PLENTY).rate(PLENTY, MINUTE))
        .unwrap();
    criterion.bench_function("granted", |b| {
        b.iter(|| limiter.try_acquire(black_box("key")).unwrap());
    });
    limiter.define(Limit::new("one").per_day(1)).unwrap();
    assert!(limiter.try_acquire("one").unwrap().is_granted());
    criterion.bench_function("refused", |b| {
        b.iter(|| limiter.try_acquire(black_box("one")).unwrap());
    });
}

criterion_group!(benches, ratios, times);
criterion_main!(benches);
