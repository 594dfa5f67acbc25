//! `doctor --fix` beside others: a little at a time, and if it is killed, the next one ends it.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use quotalite::{HOUR, Limit, Limiter, Request};
use rusqlite::Connection;
use support::audit::audit;
use support::processes::eventually;
use support::{Scratch, open_raw, scratch};

/// How many rows `doctor --fix` removes in one transaction, at most.
const BATCH: i64 = 256;

fn doctor(file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    command.arg("--db").arg(file).arg("doctor").args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn run(file: &Path, arguments: &[&str]) -> Output {
    let mut command = doctor(file, arguments);
    command.stdout(Stdio::piped()).output().unwrap()
}

/// Permits that are in use, and so many rows of each of some tables that belong to nothing.
fn with_orphans(count: i64) -> Scratch {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").rate(100, HOUR)).unwrap();
    for id in ["one", "other"] {
        limiter
            .acquire(&Request::new().take("k", 1).id(id))
            .unwrap();
    }
    drop(limiter);
    let planted = format!(
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {count})
            INSERT INTO permit_charge SELECT 1000 + n / 3, n % 3, 0, 1, 0 FROM n;
        WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {count})
            INSERT INTO ticket_take SELECT n, 1, 1 FROM n;
        INSERT INTO quota VALUES (4711, 'day', 'UTC', 1), (4711, 'hour', 'UTC', 1), (4712, 'day', 'UTC', 1)"
    );
    open_raw(&scratch.file()).execute_batch(&planted).unwrap();
    scratch
}

fn orphans(connection: &Connection) -> [i64; 3] {
    [
        "SELECT count(*) FROM permit_charge WHERE permit_id NOT IN (SELECT permit_id FROM permit)",
        "SELECT count(*) FROM ticket_take",
        "SELECT count(*) FROM quota",
    ]
    .map(|sql| connection.query_row(sql, [], |row| row.get(0)).unwrap())
}

/// Where each transaction ends in a WAL.
fn commits(wal: &[u8]) -> Vec<usize> {
    let number = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    (32..wal.len())
        .step_by(frame)
        .take_while(|at| wal.get(at + 8..at + 16) == Some(&wal[16..24]))
        .filter(|at| number(at + 4) > 0)
        .map(|at| at + frame)
        .collect()
}

#[test]
fn no_transaction_removes_more_than_a_few_rows() {
    let scratch = with_orphans(2_000);
    let file = scratch.file();
    // As long as somebody reads what was there before, all that is written stays in the WAL.
    let reader = open_raw(&file);
    reader.execute_batch("BEGIN").unwrap();
    let before = orphans(&reader);
    assert_eq!(before, [2_000, 2_000, 3]);
    let output = run(&file, &["--fix"]);
    assert!(output.status.success(), "{output:?}");

    // Not by this process, which would lose its locks.
    let copies = scratch.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let wal = scratch.path().join("limits.db-wal");
    let status = Command::new("cp").args([&file, &wal, &copies]).status();
    assert!(status.unwrap().success());
    drop(reader);
    let (copy, copied_wal) = (copies.join("limits.db"), copies.join("limits.db-wal"));
    let database = std::fs::read(&copy).unwrap();
    let wal = std::fs::read(&copied_wal).unwrap();

    let mut last = before;
    let mut batches = 0;
    for commit in commits(&wal) {
        std::fs::write(&copy, &database).unwrap();
        std::fs::write(&copied_wal, &wal[..commit]).unwrap();
        let left = orphans(&open_raw(&copy));
        let removed: i64 = last.iter().sum::<i64>() - left.iter().sum::<i64>();
        assert!((0..=BATCH).contains(&removed), "{last:?} {left:?}");
        batches += i64::from(removed > 0);
        last = left;
    }
    assert_eq!(last, [0; 3]);
    assert!(batches >= before.iter().sum::<i64>() / BATCH, "{batches}");
}

#[test]
fn what_a_killed_one_has_left_is_mended_by_the_next() {
    let scratch = with_orphans(60_000);
    let file = scratch.file();
    let before = orphans(&open_raw(&file));
    let mut child = doctor(&file, &["--fix"]).spawn().unwrap();
    let raw = Connection::open(&file).unwrap();
    raw.busy_timeout(Duration::ZERO).unwrap();
    // With the write lock, which it needs for each of its transactions.
    let mut left = before;
    eventually("a part is removed", || {
        if raw.execute_batch("BEGIN IMMEDIATE").is_err() {
            return false;
        }
        left = orphans(&raw);
        if left == before {
            raw.execute_batch("ROLLBACK").unwrap();
        }
        left != before
    });
    child.kill().unwrap();
    child.wait().unwrap();
    drop(raw);
    assert!(left.iter().sum::<i64>() > 0, "{left:?}");
    audit(&file, &[]).assert_clean();
    assert_eq!(orphans(&open_raw(&file)), left);
    assert_eq!(run(&file, &[]).status.code(), Some(1));
    let output = run(&file, &["--fix"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(orphans(&open_raw(&file)), [0; 3]);
    let output = run(&file, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("nothing found\n"), "{said}");
    // What is in use has stayed.
    let limiter = Limiter::open(&file).unwrap();
    assert_eq!(limiter.usage("k").unwrap().rates()[0].used(), 2);
    limiter.settle("one", [("k", 0)]).unwrap();
    assert_eq!(limiter.usage("k").unwrap().rates()[0].used(), 1);
}
