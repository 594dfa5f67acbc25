//! The baseline: a transaction that inserts one row, with the settings of this crate's files, and no limit at all.

use std::time::Duration;

use rusqlite::Connection;

use crate::worker::{Outcome, Task};

pub fn caller(task: &Task) -> impl FnMut() -> Outcome + Send + use<> {
    let connection = Connection::open(&task.place).expect("a file");
    connection
        .busy_timeout(Duration::from_secs(30))
        .expect("a setting");
    connection
        .execute_batch(
            "PRAGMA page_size = 1024;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA cache_size = -4096;
             PRAGMA journal_size_limit = 4194304;
             PRAGMA wal_autocheckpoint = 4096;
             CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, at_ns INTEGER, amount INTEGER);",
        )
        .expect("a table");
    let mut next = 1_700_000_000_000_000_000_i64;
    move || {
        next += 1;
        match insert(&connection, next) {
            Ok(()) => Outcome::Granted,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

fn insert(connection: &Connection, at_ns: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
    connection
        .prepare_cached("INSERT INTO row (at_ns, amount) VALUES (?1, 1)")?
        .execute([at_ns])?;
    connection.prepare_cached("COMMIT")?.execute(())?;
    Ok(())
}
