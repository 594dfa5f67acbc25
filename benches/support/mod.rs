//! What the benches share: the baseline, and taking turns.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// The baseline: `BEGIN IMMEDIATE; INSERT one row; COMMIT`, with this crate's pragmas and with prepared
/// statements.
pub struct Raw {
    connection: Connection,
    insert: &'static str,
    next: i64,
}

pub const PLAIN: (&str, &str) = (
    "CREATE TABLE row (id INTEGER PRIMARY KEY, at_ns INTEGER, amount INTEGER)",
    "INSERT INTO row (at_ns, amount) VALUES (?1, 1)",
);

/// A row with the columns and the key of a charge.
pub const KEYED: (&str, &str) = (
    "CREATE TABLE row (limit_id INTEGER NOT NULL, at_ns INTEGER NOT NULL, seq INTEGER NOT NULL,
     amount INTEGER NOT NULL, total INTEGER NOT NULL, PRIMARY KEY (limit_id, at_ns, seq))
     WITHOUT ROWID",
    "INSERT INTO row (limit_id, at_ns, seq, amount, total) VALUES (1, ?1, 0, 1, ?1)",
);

impl Raw {
    /// A file with this crate's settings.
    pub fn open(directory: &Path, name: &str, table: (&str, &'static str)) -> Self {
        Self::with_pages(directory, name, table, 1_024)
    }

    /// The same, with pages of another size.
    pub fn with_pages(
        directory: &Path,
        name: &str,
        table: (&str, &'static str),
        page_bytes: u32,
    ) -> Self {
        let connection = Connection::open(directory.join(name)).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {page_bytes};
                 PRAGMA auto_vacuum = INCREMENTAL;
                 PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = NORMAL;
                 PRAGMA cache_size = -4096;
                 PRAGMA journal_size_limit = 4194304;
                 PRAGMA wal_autocheckpoint = {};",
                4_194_304 / page_bytes
            ))
            .unwrap();
        connection.execute_batch(table.0).unwrap();
        Self {
            connection,
            insert: table.1,
            next: 1_700_000_000_000_000_000,
        }
    }

    /// Inserts as many rows as limits, one of each, into a table keyed as a charge.
    pub fn fill(&mut self, limits: i64) {
        let transaction = self.connection.transaction().unwrap();
        let mut order: Vec<i64> = (1..=limits).collect();
        fastrand::shuffle(&mut order);
        for limit in order {
            transaction
                .prepare_cached("INSERT INTO row (limit_id, at_ns, seq, amount, total) VALUES (?1, ?2, 0, 1, 1)")
                .unwrap()
                .execute((limit, self.next + limit))
                .unwrap();
        }
        self.next += limits;
        transaction.commit().unwrap();
    }

    /// A transaction that inserts a row of any of these limits.
    pub fn transaction_of_any(&mut self, limits: i64) {
        self.next += 1_000;
        let run = |sql: &str| {
            self.connection
                .prepare_cached(sql)
                .unwrap()
                .execute([])
                .unwrap()
        };
        run("BEGIN IMMEDIATE");
        self.connection
            .prepare_cached(
                "INSERT INTO row (limit_id, at_ns, seq, amount, total) VALUES (?1, ?2, 0, 1, 1)",
            )
            .unwrap()
            .execute((fastrand::i64(1..=limits), self.next))
            .unwrap();
        run("COMMIT");
    }

    pub fn transaction(&mut self) {
        self.next += 1_000;
        let run = |sql: &str| {
            self.connection
                .prepare_cached(sql)
                .unwrap()
                .execute([])
                .unwrap()
        };
        run("BEGIN IMMEDIATE");
        self.connection
            .prepare_cached(self.insert)
            .unwrap()
            .execute([self.next])
            .unwrap();
        run("COMMIT");
    }
}

/// Nobody reaches this.
pub const PLENTY: u64 = 1 << 40;

pub type Subject<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Runs the subjects in turns, a round of each after the other, and prints the median of each and its
/// ratio to the first. A round writes some 20 MiB: so each holds what is paid now and then, such as copying the WAL into the
/// database.
pub fn compare(subjects: &mut [Subject<'_>]) {
    compare_in_rounds_of(20_000, subjects);
}

/// The same, where each call is timed by itself: what is paid now and then, such as copying the WAL into the database,
/// is not in the median.
pub fn compare_calls(subjects: &mut [Subject<'_>]) {
    compare_in_rounds_of(1, subjects);
}

fn compare_in_rounds_of(calls: u32, subjects: &mut [Subject<'_>]) {
    let all_calls = if calls == 1 { 82_000 } else { 15 * calls };
    let rounds = (all_calls / calls) as usize;
    let mut times = vec![Vec::with_capacity(rounds); subjects.len()];
    for _ in 0..rounds {
        for ((_, subject), times) in subjects.iter_mut().zip(&mut times) {
            let start = Instant::now();
            for _ in 0..calls {
                subject();
            }
            times.push(start.elapsed() / calls);
        }
    }
    let medians: Vec<Duration> = times
        .iter_mut()
        .map(|times| {
            times.sort();
            times[times.len() / 2]
        })
        .collect();
    println!(
        "{:<44} {:>12} {:>18}",
        "in turns, median of a call", "time", "throughput / first"
    );
    for ((name, _), median) in subjects.iter().zip(&medians) {
        let ratio = medians[0].as_secs_f64() / median.as_secs_f64();
        println!("{name:<44} {median:>12?} {ratio:>18.2}");
    }
}
