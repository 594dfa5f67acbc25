//! The baseline: `BEGIN IMMEDIATE; INSERT one row; COMMIT`, with the settings of this crate's files and with
//! prepared statements.

use std::path::Path;

use rusqlite::Connection;

use crate::Failure;

pub struct Raw {
    connection: Connection,
    next: i64,
}

const SETTINGS: &str = "PRAGMA page_size = 1024;
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA cache_size = -4096;
    PRAGMA journal_size_limit = 4194304;
    PRAGMA wal_autocheckpoint = 4096;
    CREATE TABLE row (id INTEGER PRIMARY KEY, at_ns INTEGER, amount INTEGER);";

const INSERT: &str = "INSERT INTO row (at_ns, amount) VALUES (?1, 1)";

impl Raw {
    pub fn open(file: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(file)?;
        connection.execute_batch(SETTINGS)?;
        Ok(Self {
            connection,
            next: 1_700_000_000_000_000_000,
        })
    }

    pub fn transaction(&mut self) -> Result<(), Failure> {
        self.next += 1_000;
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])?;
        self.connection
            .prepare_cached(INSERT)?
            .execute([self.next])?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }
}
