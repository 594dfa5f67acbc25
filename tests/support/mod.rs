//! What the tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

#[cfg(feature = "retry")]
pub mod answering;
#[cfg(target_os = "linux")]
pub mod audit;
pub mod jumping;
#[cfg(target_os = "linux")]
pub mod mount;
#[cfg(target_os = "linux")]
pub mod processes;
#[cfg(all(feature = "cli", target_os = "linux"))]
pub mod running;
#[cfg(feature = "cli")]
pub mod shell;
#[cfg(target_os = "linux")]
pub mod stays;
#[cfg(target_os = "linux")]
pub mod working;

use std::path::{Path, PathBuf};

use quotalite::{Limiter, ManualClock};
use rusqlite::Connection;
use rusqlite::types::FromSql;
use tempfile::TempDir;

/// A directory for one test, with a database path in it.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

pub fn scratch() -> Scratch {
    Scratch {
        directory: tempfile::tempdir().unwrap(),
    }
}

impl Scratch {
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("limits.db")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The one value that a query gives.
    pub fn sqlite<T: FromSql>(&self, query: &str) -> T {
        open_raw(&self.file())
            .query_row(query, [], |row| row.get(0))
            .unwrap()
    }
}

/// A limiter on a new file and on a clock that stands still.
pub fn on_file() -> (Scratch, Limiter, ManualClock) {
    let scratch = scratch();
    let clock = ManualClock::new();
    let limiter = open(&scratch, &clock);
    (scratch, limiter, clock)
}

/// Another limiter on the same file and clock.
pub fn open(scratch: &Scratch, clock: &ManualClock) -> Limiter {
    let builder = Limiter::builder(scratch.file());
    builder.clock(clock.clone()).open().unwrap()
}

/// The same story for both stores.
pub fn in_both_stores(story: impl Fn(&Limiter, &ManualClock)) {
    let clock = ManualClock::new();
    story(&Limiter::in_memory_with(clock.clone()), &clock);
    let (_scratch, limiter, clock) = on_file();
    story(&limiter, &clock);
}

/// A plain connection of SQLite to a file in use.
pub fn open_raw(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(20))
        .unwrap();
    connection
}
