//! Files whose numbers somebody has edited: no number in them causes a panic, an overflow, or work without end.
mod support;

use quotalite::{Limit, Limiter, Request, SECOND};
use support::{open_raw, scratch};

/// Calls everything, and takes any answer or error. What is tested is that nothing panics, overflows (a
/// debug build would tell) or goes on for ever.
fn call_everything(limiter: &Limiter, story: &str) {
    let began = std::time::Instant::now();
    for ask in [("mail", 1), ("mail", 10), ("mail", u64::MAX)] {
        let _ = limiter.peek(ask);
        let _ = limiter.try_acquire(ask);
        let _ = limiter.book_within(ask, SECOND);
        if let Ok(booking) = limiter.book(ask) {
            let _ = limiter.book(ask).map(quotalite::Booking::cancel);
            drop(booking);
        }
    }
    let _ = limiter.try_acquire(&Request::new().take("mail", 3).take("post", 3));
    let _ = limiter.usage("mail");
    let _ = limiter.now();
    for _ in 0..129 {
        // One in 128 sweeps.
        let _ = limiter.try_acquire("post");
    }
    assert!(
        began.elapsed() < 5 * SECOND,
        "{story}: {:?}",
        began.elapsed()
    );
}

const ENDS: [i64; 7] = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];

fn with_hostile(edit: impl Fn(&rusqlite::Connection), story: &str) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("mail").per_second(10).per_hour(100))
        .unwrap();
    limiter
        .define(Limit::new("post").per_second(1_000))
        .unwrap();
    assert!(limiter.try_acquire(("mail", 3)).unwrap().is_granted());
    edit(&open_raw(&scratch.file()));
    call_everything(&limiter, story);
    let fresh = Limiter::open(scratch.file());
    call_everything(&fresh.unwrap_or(limiter), story);
}

#[test]
fn hostile_charges_cause_no_panic() {
    let columns = ["at_ns", "seq", "amount", "total"];
    for (first, column) in columns.iter().enumerate() {
        for value in ENDS {
            for other in &columns[first + 1..] {
                for other_value in [i64::MIN, i64::MAX] {
                    let sql =
                        format!("UPDATE charge SET {column} = {value}, {other} = {other_value}");
                    with_hostile(|file| file.execute_batch(&sql).unwrap(), &sql);
                }
            }
            let sql = format!("UPDATE charge SET {column} = {value}");
            with_hostile(|file| file.execute_batch(&sql).unwrap(), &sql);
        }
    }
}

/// The tables of what outlives a call, and a row for each that has none.
const OF_PERMITS: [(&str, &str); 9] = [
    ("permit", ""),
    ("permit_charge", "DELETE FROM charge"),
    ("slot", ""),
    ("ticket", ""),
    ("ticket_take", ""),
    (
        "ended_permit",
        "INSERT INTO ended_permit SELECT 'before', permit_id - 1, at_ns, at_ns, request, 'settled' FROM permit LIMIT 1",
    ),
    (
        "block",
        "INSERT INTO block SELECT limit_id, at_ns, seq FROM charge",
    ),
    ("debt", "INSERT INTO debt VALUES (1, 5, 1)"),
    (
        "correction",
        "INSERT INTO correction SELECT limit_id, 0, at_ns, seq, 0 FROM charge",
    ),
];

#[test]
fn hostile_permits_cause_no_panic() {
    for (table, row) in OF_PERMITS {
        let columns: Vec<String> = {
            let scratch = scratch();
            drop(Limiter::open(scratch.file()).unwrap());
            let file = open_raw(&scratch.file());
            let sql =
                format!("SELECT name FROM pragma_table_info('{table}') WHERE type = 'INTEGER'");
            let mut statement = file.prepare(&sql).unwrap();
            let names = statement.query_map([], |row| row.get(0)).unwrap();
            names.map(Result::unwrap).collect()
        };
        assert!(!columns.is_empty(), "{table}");
        for column in columns {
            for value in [i64::MIN, -1, 0, i64::MAX] {
                let sql = format!("{row}; UPDATE OR IGNORE {table} SET {column} = {value}");
                with_hostile_permits(&sql);
            }
        }
    }
}

fn with_hostile_permits(sql: &str) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("mail").per_second(10).per_hour(100))
        .unwrap();
    let slots = Limit::slots("slots", 2).timeout(SECOND);
    limiter.define(slots).unwrap();
    let job = Request::new().take("slots", 1).take("mail", 3).id("job");
    let permit = limiter.try_acquire(&job).unwrap().granted().unwrap();
    let _second = limiter.try_acquire("slots").unwrap().granted().unwrap();
    open_raw(&scratch.file())
        .execute_batch(
            "INSERT INTO ticket (owner_id, since_ns) SELECT owner_id, since_ns FROM owner LIMIT 1;
             INSERT INTO ticket_take SELECT ticket_id, limit_id, 1 FROM ticket, limit_definition;",
        )
        .unwrap();
    open_raw(&scratch.file()).execute_batch(sql).unwrap();
    let began = std::time::Instant::now();
    for limiter in [Limiter::open(scratch.file()).unwrap(), limiter] {
        let _ = limiter.usage("slots");
        let _ = limiter.try_acquire(("slots", 1));
        let _ = limiter.acquire_within(("slots", 1), SECOND / 500);
        let _ = limiter.try_acquire("mail");
        let _ = limiter.try_acquire(&job);
        let _ = limiter.renew("job", SECOND);
        let _ = limiter.settle("job", [("mail", 90)]);
        let _ = limiter.cancel("before");
        let _ = limiter.try_acquire(&Request::new().take("slots", 1).id("before"));
    }
    let _ = permit.settle([("mail", 1)]);
    assert!(began.elapsed() < 5 * SECOND, "{sql}: {:?}", began.elapsed());
}

#[test]
fn hostile_ledgers_cause_no_panic() {
    for seed in 0..60 {
        let story = format!("seed {seed}");
        let edit = |file: &rusqlite::Connection| {
            let now: i64 = file
                .query_row("SELECT at_ns FROM charge", [], |row| row.get(0))
                .unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..40 {
                let any = |random: &mut fastrand::Rng| match random.u8(0..4) {
                    0 => ENDS[random.usize(..ENDS.len())],
                    1 => random.i64(..),
                    _ => random.i64(-5..20),
                };
                let near = now.wrapping_add(random.i64(-4_000_000_000..4_000_000_000));
                let at = if random.bool() {
                    near
                } else {
                    any(&mut random)
                };
                let (seq, amount, total) = (any(&mut random), any(&mut random), any(&mut random));
                let owner = random.bool().then(|| any(&mut random));
                file.execute(
                    "INSERT OR IGNORE INTO charge VALUES (1, ?1, ?2, ?3, ?4)",
                    (at, seq, amount, total),
                )
                .unwrap();
                file.execute(
                    "INSERT OR IGNORE INTO booking VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6)",
                    (owner, any(&mut random), at, seq, amount, any(&mut random)),
                )
                .unwrap();
                file.execute(
                    "INSERT OR IGNORE INTO owner VALUES (?1, ?2, 'x', ?2, ?2)",
                    (owner, any(&mut random)),
                )
                // The largest id leaves none for the next row without one.
                .ok();
            }
        };
        with_hostile(edit, &story);
    }
}

#[test]
fn a_hostile_clock_causes_no_panic() {
    for column in [
        "offset_ns",
        "high_ns",
        "wall_minus_instant_ns",
        "calendar_shift_ns",
        "definitions",
    ] {
        for value in ENDS {
            for boot in ["boot_id", "'00000000000000000000000000000000'"] {
                let sql = format!("UPDATE clock SET {column} = {value}, boot_id = {boot}");
                with_hostile(|file| file.execute_batch(&sql).unwrap(), &sql);
            }
        }
    }
}

/// The tables of buckets, patterns and quotas.
const OF_KINDS: [&str; 9] = [
    "bucket",
    "refill",
    "pattern_key",
    "limit_number",
    "limit_change",
    "limit_definition",
    "boundary",
    "quota",
    "charge",
];

fn integers_of(table: &str) -> Vec<String> {
    let scratch = scratch();
    drop(Limiter::open(scratch.file()).unwrap());
    let file = open_raw(&scratch.file());
    let sql = format!("SELECT name FROM pragma_table_info('{table}') WHERE type = 'INTEGER'");
    let mut statement = file.prepare(&sql).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

#[test]
fn hostile_buckets_patterns_and_quotas_cause_no_panic() {
    for table in OF_KINDS {
        for column in integers_of(table) {
            for value in [i64::MIN, -1, 0, 1 << 53, i64::MAX] {
                with_hostile_kinds(&format!("UPDATE OR IGNORE {table} SET {column} = {value}"));
            }
        }
    }
    for lows in [
        "x''",
        "x'00'",
        "zeroblob(24)",
        "randomblob(24 * 100)",
        "randomblob(47)",
    ] {
        with_hostile_kinds(&format!("UPDATE bucket SET lows = {lows}"));
        with_hostile_kinds(&format!(
            "UPDATE bucket SET lows = {lows}, refill = 9007199254740992, full_ns = {}",
            i64::MAX
        ));
    }
}

fn with_hostile_kinds(sql: &str) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let bucket = |limit: quotalite::LimitBuilder| limit.burst(10).refill(3, SECOND);
    let limits = [bucket(Limit::new("bucket")), bucket(Limit::pattern("b:*"))];
    limiter
        .define_all(limits, quotalite::OnConflict::Fail)
        .unwrap();
    #[cfg(feature = "calendar")]
    limiter
        .define(Limit::new("day").quota(9, quotalite::Period::Day, "Europe/Berlin"))
        .unwrap();
    let keys = ["bucket", "b:1", "day"];
    let permits: Vec<_> = keys
        .iter()
        .filter_map(|key| limiter.acquire((*key, 8)).ok())
        .collect();
    let ahead: Vec<_> = keys
        .iter()
        .filter_map(|key| limiter.book((*key, 5)).ok())
        .collect();
    open_raw(&scratch.file()).execute_batch(sql).unwrap();
    let began = std::time::Instant::now();
    let mut all = vec![limiter];
    all.extend(Limiter::open(scratch.file()));
    for limiter in &all {
        for key in keys {
            let _ = limiter.usage(key);
            let _ = limiter.peek((key, 3));
            let _ = limiter.try_acquire((key, 3));
            let _ = limiter.book((key, 3));
            let _ = limiter.changes(key);
        }
        let faster = |limit: &Limit| limit.to_builder().refill(7, SECOND);
        let _ = limiter.update("bucket", faster);
        let _ = limiter.update("b:*", faster);
        let _ = limiter.define(bucket(Limit::new("b:1")));
        let _ = limiter.usage("b:1");
    }
    for (permit, key) in permits.iter().zip(keys) {
        let _ = permit.settle([(key, 1)]);
    }
    drop(ahead);
    let file = open_raw(&scratch.file());
    for view in ["limits", "status", "charges", "changes"] {
        let mut statement = file.prepare(&format!("SELECT * FROM {view}")).unwrap();
        let mut rows = statement.query([]).unwrap();
        // SQLite may say that a number is too large, but it has to say something.
        while let Ok(Some(_)) = rows.next() {}
    }
    for limiter in &all {
        let _ = limiter.force_remove("b:*");
        let _ = limiter.limits();
    }
    assert!(began.elapsed() < 5 * SECOND, "{sql}: {:?}", began.elapsed());
}
