//! A file that an earlier version of the crate has written.

mod support;

use std::path::Path;

use quotalite::{DAY, Limit, Limiter, MINUTE, OnConflict, SECOND, Settled};
use rusqlite::Connection;
use support::scratch;

const FORMER: [&str; 12] = [
    include_str!("../migrations/0001_ledger.sql"),
    include_str!("../migrations/0002_permits.sql"),
    include_str!("../migrations/0003_shared.sql"),
    include_str!("../migrations/0004_kinds.sql"),
    include_str!("../migrations/0005_views.sql"),
    include_str!("../migrations/0006_corrections.sql"),
    include_str!("../migrations/0007_blocks.sql"),
    include_str!("../migrations/0008_resolution.sql"),
    include_str!("../migrations/0009_pauses.sql"),
    include_str!("../migrations/0010_retries.sql"),
    include_str!("../migrations/0011_breakers.sql"),
    include_str!("../migrations/0012_estimates.sql"),
];

/// A file of the schema that so many migrations make.
fn former(path: &Path, version: usize) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL",
        )
        .unwrap();
    for migration in &FORMER[..version] {
        connection.execute_batch(migration).unwrap();
    }
    connection
        .execute_batch(&format!(
            "PRAGMA application_id = {}; PRAGMA user_version = {version}",
            0x7174_6C74
        ))
        .unwrap();
    connection
}

/// An instant that the crate takes for the present.
fn now_ns() -> i64 {
    let other = tempfile::tempdir().unwrap();
    let limiter = Limiter::open(other.path().join("other.db")).unwrap();
    limiter.now().unwrap().as_nanos()
}

#[test]
fn what_an_earlier_version_has_defined_and_charged_goes_on() {
    let scratch = scratch();
    let now_ns = now_ns();
    let connection = former(&scratch.file(), 3);
    connection
        .execute_batch(&format!(
            "INSERT INTO limit_definition (limit_id, key, unit, pad_ns) VALUES (7, 'tokens', 'tokens', 5000000);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 60000000000, 100);
             INSERT INTO limit_definition (limit_id, key, pad_ns, slots) VALUES (9, 'slots', 0, 2);
             INSERT INTO charge (limit_id, at_ns, seq, amount, total) VALUES (7, {}, 0, 30, 30)",
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

/// A version that kept corrections on one level, from the place of each on.
#[test]
fn corrections_of_an_earlier_version_still_hold() {
    let scratch = scratch();
    let connection = former(&scratch.file(), 5);
    let start_ns = now_ns() - 1_000_000_000;
    // Each row was charged 10 and corrected to 4; every third one begins a block.
    connection
        .execute_batch(&format!(
            "INSERT INTO limit_definition (limit_id, key, pad_ns) VALUES (7, 'tokens', 0);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 60000000000, 1000000);
             WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 1000)
             INSERT INTO charge (limit_id, at_ns, seq, amount, total)
             SELECT 7, {start_ns} + n, 0, 4, 4 * n + 6 * (n - n % 3) FROM number;
             INSERT INTO total_shift (limit_id, at_ns, seq, shift)
             SELECT limit_id, at_ns, 0, (-6 * (at_ns - {start_ns})) & 4611686018427387903
             FROM charge WHERE (at_ns - {start_ns}) % 3 = 0;"
        ))
        .unwrap();
    let totals = "SELECT group_concat(step, ' ') FROM (
        SELECT DISTINCT (total - lag(total) OVER (ORDER BY at_ns, seq)) & 4611686018427387903 AS step FROM ledger
    )";
    let read = |sql: &str| -> String { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(read(totals), "4");
    let limiter = Limiter::open(scratch.file()).unwrap();
    assert_eq!(read(totals), "4");
    assert_eq!(
        limiter.usage("tokens").unwrap().available(),
        1_000_000 - 4_000
    );
    let permit = limiter
        .try_acquire(("tokens", 10))
        .unwrap()
        .granted()
        .unwrap();
    permit.settle([("tokens", 4)]).unwrap();
    assert_eq!(
        limiter.usage("tokens").unwrap().available(),
        1_000_000 - 4_004
    );
    assert_eq!(read(totals), "4");
    assert_eq!(read("SELECT CAST(max(level) AS TEXT) FROM correction"), "2");
}

/// A version that knew of a booking only where it stands, and found a permit's by that.
#[test]
fn what_was_booked_by_an_earlier_version_comes_back_or_stays() {
    let scratch = scratch();
    let connection = former(&scratch.file(), 7);
    let at_ns = now_ns() + 3_600_000_000_000;
    // Both were booked by a process that is gone: the first of them was detached since.
    connection
        .execute_batch(&format!(
            "INSERT INTO limit_definition (limit_id, key, pad_ns) VALUES (7, 'calls', 0);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 86400000000000, 10);
             INSERT INTO owner (owner_id, pid, boot_id, lock_inode, since_ns) VALUES (3, 1, 'gone', 1, 1);
             INSERT INTO charge (limit_id, at_ns, seq, amount, total)
             VALUES (7, {at_ns}, 0, 1, 1), (7, {at_ns}, 1, 4, 5), (7, {at_ns}, 2, 5, 10);
             INSERT INTO booking (owner_id, booking_id, limit_id, at_ns, seq)
             VALUES (3, 8, 7, {at_ns}, 1), (3, 9, 7, {at_ns}, 2);
             INSERT INTO permit (permit_id, owner_id, at_ns, expires_ns, id, request, detached)
             VALUES (20, NULL, {at_ns}, {at_ns} * 2, 'detached', '1 calls', 1),
                 (21, 3, {at_ns}, NULL, 'named', '4 calls', 0);
             INSERT INTO permit_charge (permit_id, limit_id, seq, amount) VALUES (20, 7, 0, 1), (21, 7, 1, 4)"
        ))
        .unwrap();
    drop(connection);
    let limiter = Limiter::open(scratch.file()).unwrap();
    let told = |sql: &str| scratch.sqlite::<String>(sql);
    assert_eq!(
        told("SELECT group_concat(amount || ' ' || (due_ns - at_ns), ', ') FROM booking"),
        "4 0, 5 0"
    );
    assert_eq!(
        told("SELECT group_concat(id || ' ' || coalesce(booking_id, '-'), ', ') FROM permit"),
        "detached -, named 8"
    );
    assert_eq!(limiter.usage("calls").unwrap().available(), 0);
    assert!(limiter.try_acquire(("calls", 9)).unwrap().is_granted());
    assert!(!limiter.try_acquire("calls").unwrap().is_granted());
    assert_eq!(
        limiter.settle("named", [("calls", 1)]).unwrap(),
        Settled::Before
    );
    let cancelled = limiter.cancel("detached").unwrap();
    assert!(matches!(cancelled, Settled::Now(_)), "{cancelled:?}");
    assert!(limiter.try_acquire("calls").unwrap().is_granted());
}

/// A version that learned nothing about estimates.
#[test]
fn limits_of_an_earlier_version_learn_about_estimates() {
    let scratch = scratch();
    former(&scratch.file(), 9)
        .execute_batch(
            "INSERT INTO limit_definition (limit_id, key, pad_ns) VALUES (7, 'tokens', 0);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 60000000000, 100)",
        )
        .unwrap();
    let limiter = Limiter::open(scratch.file()).unwrap();
    assert_eq!(limiter.estimate_ratio("tokens").unwrap(), None);
    limiter.learn_estimate("tokens", 100, 25).unwrap();
    let ratio = limiter.estimate_ratio("tokens").unwrap().unwrap();
    assert_eq!((ratio.calls(), ratio.corrected(100)), (1, 25));
    let told: f64 = scratch.sqlite("SELECT ratio FROM estimates WHERE key = 'tokens'");
    assert!((told - 0.25).abs() < 1e-9);
}

/// A version that kept nothing for longer than windows hold it.
#[test]
fn limits_of_an_earlier_version_keep_no_history_until_they_are_told_to() {
    let scratch = scratch();
    former(&scratch.file(), 12)
        .execute_batch(
            "INSERT INTO limit_definition (limit_id, key, pad_ns) VALUES (7, 'calls', 0);
             INSERT INTO rate (limit_id, window_ns, capacity) VALUES (7, 1000000000, 10)",
        )
        .unwrap();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let limit = limiter.limit("calls").unwrap();
    assert_eq!(
        (limit.keep(), limit.to_string()),
        (None, "calls: 10/s".to_owned())
    );
    limiter
        .update("calls", |limit| limit.to_builder().keep(7 * DAY))
        .unwrap();
    drop(limiter);
    let limiter = Limiter::open(scratch.file()).unwrap();
    assert_eq!(limiter.limit("calls").unwrap().keep(), Some(7 * DAY));
}
