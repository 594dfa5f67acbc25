//! What each kind of limit costs beside a transaction that inserts one row, as in `benches/acquire.rs`. Run
//! `cargo bench --bench kinds --features calendar`.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use quotalite::{Limit, LimitBuilder, Limiter, MINUTE, Overage, Period, SECOND};
use support::{PLAIN, PLENTY, Raw, compare};
use tempfile::TempDir;

fn open(directory: &TempDir, name: &str, limit: LimitBuilder) -> Limiter {
    let limiter = Limiter::open(directory.path().join(name)).unwrap();
    limiter.define(limit).unwrap();
    limiter
}

fn grant(limiter: &Limiter) {
    assert!(limiter.try_acquire("key").unwrap().is_granted());
}

fn refuse(limiter: &Limiter) {
    assert!(!limiter.try_acquire("key").unwrap().is_granted());
}

fn settle(limiter: &Limiter) {
    limiter
        .try_acquire(("key", 2))
        .unwrap()
        .granted()
        .unwrap()
        .settle([("key", 1)])
        .unwrap();
}

fn ratios(_: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let mut raw = Raw::open(directory.path(), "raw.db", PLAIN);
    let limiter = |name: &str, limit: LimitBuilder| open(&directory, name, limit);
    let rates = limiter(
        "rates.db",
        Limit::new("key").per_second(PLENTY).rate(PLENTY, MINUTE),
    );
    let merged = limiter(
        "merged.db",
        Limit::new("key").per_day(PLENTY).resolution(MINUTE),
    );
    let bucket = Limit::new("key").burst(PLENTY).refill(PLENTY, SECOND);
    let settled = limiter("settled.db", bucket.clone().overage(Overage::Charge));
    let bucket = limiter("bucket.db", bucket);
    let drained = limiter(
        "drained.db",
        Limit::new("key").burst(1).refill(1, 366 * quotalite::DAY),
    );
    grant(&drained);
    let day = Limit::new("key").quota(PLENTY, Period::Day, "America/Los_Angeles");
    let quota = limiter("quota.db", day.clone());
    let rate_and_quota = limiter("both.db", day.rate(PLENTY, MINUTE));
    let spent = limiter(
        "spent.db",
        Limit::new("key").quota(1, Period::Year, "America/Los_Angeles"),
    );
    grant(&spent);
    let slots = limiter("slots.db", Limit::slots("key", 8));
    let rates_by_pattern = limiter(
        "pattern.db",
        Limit::pattern("k*").per_second(PLENTY).rate(PLENTY, MINUTE),
    );
    let bucket_by_pattern = limiter(
        "buckets.db",
        Limit::pattern("k*").burst(PLENTY).refill(PLENTY, SECOND),
    );
    compare(&mut [
        ("raw transaction, one row", Box::new(|| raw.transaction())),
        ("two rates", Box::new(|| grant(&rates))),
        ("a day, merged within a minute", Box::new(|| grant(&merged))),
        ("a bucket", Box::new(|| grant(&bucket))),
        ("a bucket, and settled", Box::new(|| settle(&settled))),
        ("a bucket, refused", Box::new(|| refuse(&drained))),
        ("a daily quota", Box::new(|| grant(&quota))),
        (
            "a daily quota and a rate",
            Box::new(|| grant(&rate_and_quota)),
        ),
        ("a quota, refused", Box::new(|| refuse(&spent))),
        ("slots, and given back", Box::new(|| grant(&slots))),
        (
            "two rates by a pattern",
            Box::new(|| grant(&rates_by_pattern)),
        ),
        (
            "a bucket by a pattern",
            Box::new(|| grant(&bucket_by_pattern)),
        ),
    ]);
}

criterion_group!(benches, ratios);
criterion_main!(benches);
