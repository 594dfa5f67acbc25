//! A file that an earlier version of the crate has written.

mod support;

use quotalite::{Limit, Limiter, MINUTE, OnConflict, SECOND};
use rusqlite::Connection;
use support::scratch;

const FORMER: [&str; 3] = [
    include_str!("../migrations/0001_ledger.sql"),
    include_str!("../migrations/0002_permits.sql"),
    include_str!("../migrations/0003_shared.sql"),
];

#[test]
fn what_an_earlier_version_has_defined_and_charged_goes_on() {
    let scratch = scratch();
    let now_ns = {
        let other = tempfile::tempdir().unwrap();
        let limiter = Limiter::open(other.path().join("other.db")).unwrap();
        limiter.now().unwrap().as_nanos()
    };
    let connection = Connection::open(scratch.file()).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL",
        )
        .unwrap();
    for migration in FORMER {
        connection.execute_batch(migration).unwrap();
    }
    connection
        .execute_batch(&format!(
            "PRAGMA application_id = {};
             PRAGMA user_version = 3;
             INSERT INTO limit_definition (limit_id, key, unit, pad_ns) VALUES (7, 'tokens', 'tokens', 5000000);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 60000000000, 100);
             INSERT INTO limit_definition (limit_id, key, pad_ns, slots) VALUES (9, 'slots', 0, 2);
             INSERT INTO charge (limit_id, at_ns, seq, amount, total) VALUES (7, {}, 0, 30, 30)",
            0x7174_6C74,
            now_ns - 1_000_000_000,
        ))
        .unwrap();
    drop(connection);
    let limiter = Limiter::open(scratch.file()).unwrap();
    assert_eq!(
        limiter.limit("tokens").unwrap().to_string(),
        "tokens: 100 tokens/min, pad 5ms"
    );
    assert_eq!(limiter.usage("tokens").unwrap().available(), 70);
    assert!(limiter.try_acquire(("tokens", 70)).unwrap().is_granted());
    assert!(!limiter.try_acquire("tokens").unwrap().is_granted());
    let _held = limiter.try_acquire(("slots", 2)).unwrap();
    // No new limit gets a number that one has had.
    limiter.define(Limit::pattern("t:*").per_second(5)).unwrap();
    limiter
        .define(Limit::new("bucket").burst(5).refill(1, SECOND))
        .unwrap();
    assert!(limiter.try_acquire(("t:1", 5)).unwrap().is_granted());
    assert!(limiter.try_acquire(("bucket", 5)).unwrap().is_granted());
    let numbers: i64 = scratch.sqlite(
        "SELECT min(limit_id) FROM (
            SELECT limit_id FROM limit_definition WHERE key IN ('t:*', 'bucket')
            UNION ALL SELECT limit_id FROM pattern_key)",
    );
    assert!(numbers > 9, "{numbers}");
    limiter
        .define_or(Limit::new("tokens").rate(50, MINUTE), OnConflict::Replace)
        .unwrap();
    assert!(limiter.usage("tokens").unwrap().is_decreasing());
    let rows: i64 = scratch.sqlite("SELECT count(*) FROM status");
    assert_eq!(rows, 4);
}
