//! When the WAL is copied into the database, and by whom.
//!
//! Copying waits for the disk, some milliseconds, and somebody has to do it who could have gone on in the meantime. So
//! SQLite does not do it by itself at the end of some commit. Whoever is refused, or waits for its instant, has time
//! and copies early. If nobody had time, whoever has committed copies when the WAL is long, after all whose requests
//! were in that transaction have got their answers, and by a connection that only reads: others go on writing. Only
//! where the WAL still grows, because no writer has found everything copied, are all made to wait until it starts anew.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::connection::waiting_until;
use super::place::Watch;
use super::schema::PAGE_BYTES;

/// The unit of the lengths below. Small in tests, so that short ones see all of them.
const UNIT: u32 = if cfg!(test) { 1 << 5 } else { 1 << 10 };

/// When so many pages have come since it was last copied, whoever has time copies the WAL.
const PAGES_WORTH_COPYING: u32 = UNIT;

/// When so many have come, somebody has to.
pub(super) const PAGES_LONG: u32 = 8 * UNIT;

/// From this length on, it is made to start anew.
const PAGES_TOO_LONG: u32 = 16 * UNIT;

/// To how much the file of the WAL is cut back when it starts anew.
pub(super) const WAL_BYTES_KEPT: i64 = PAGES_TOO_LONG as i64 * PAGE_BYTES;

/// Who waits for less than this has no time to copy anything.
pub(super) const TIME_TO_COPY: Duration = Duration::from_millis(10);

/// How long a caller waits for the others to let the WAL start anew. Another one will try again.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long somebody who only wants the file to be small makes the others wait.
const SHORT_PATIENCE: Duration = Duration::from_millis(5);

thread_local! {
    /// How long the WAL was after the last commit of this thread.
    static PAGES: Cell<u32> = const { Cell::new(0) };
}

/// What SQLite calls after each commit.
#[expect(clippy::unnecessary_wraps, reason = "the signature is SQLite's")]
pub(super) fn note_pages(_: &Wal, pages: c_int) -> rusqlite::Result<()> {
    PAGES.set(u32::try_from(pages).unwrap_or(0));
    Ok(())
}

/// What a session knows of its WAL.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// How many pages it had after the last commit of this process.
    pages: AtomicU32,
    /// How many it had when this process last copied it: those are not worth copying again.
    copied: AtomicU32,
    is_under_way: AtomicBool,
}

/// What is to be done about the WAL by one who has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Copy,
    StartAnew,
}

impl Checkpoints {
    /// Says that this thread has ended a transaction that may have written.
    pub(super) fn ended(&self) {
        let pages = PAGES.take();
        if pages != 0 && pages < self.pages.swap(pages, Ordering::Relaxed) {
            // It has started anew.
            self.copied.store(0, Ordering::Relaxed);
        }
    }

    /// How many pages have come since they were last copied.
    fn uncopied(&self) -> u32 {
        let pages = self.pages.load(Ordering::Relaxed);
        pages.saturating_sub(self.copied.load(Ordering::Relaxed))
    }

    pub(super) fn due(&self) -> Due {
        let is_too_long = self.pages.load(Ordering::Relaxed) >= PAGES_TOO_LONG;
        match self.uncopied() {
            PAGES_WORTH_COPYING.. if is_too_long => Due::StartAnew,
            PAGES_LONG.. => Due::Copy,
            _ => Due::Nothing,
        }
    }

    /// Whether somebody who has time should copy it.
    pub(super) fn is_worth_copying(&self) -> bool {
        self.uncopied() >= PAGES_WORTH_COPYING
    }

    /// Copies what can be copied without anybody's waiting for it, unless another thread is at it.
    pub(super) fn copy(&self, connection: &Connection, opened: &Watch) {
        // What belongs to other files by now is not to be touched.
        if !opened.clone().look() || self.is_under_way.swap(true, Ordering::Acquire) {
            return;
        }
        self.note(checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)"));
        self.is_under_way.store(false, Ordering::Release);
    }

    /// Copies all of it, and makes it start anew. Nobody writes meanwhile.
    pub(super) fn start_anew(&self, connection: &Connection, opened: &Watch) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !opened.clone().look() {
                return;
            }
            let copied = waiting_until(deadline, || {
                checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)")
            });
            match copied {
                // SQLite does not wait for somebody else who copies.
                Ok((true, _)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_micros(200));
                }
                copied => return self.note(copied),
            }
        }
    }

    /// Copies all of it and cuts its file to nothing, if nobody is in the way until then.
    pub(super) fn cut(&self, connection: &Connection, opened: &Watch, deadline: Instant) -> bool {
        loop {
            if !opened.clone().look() {
                return false;
            }
            // Nobody writes as long as this waits for those who read.
            let wait = deadline.min(Instant::now() + SHORT_PATIENCE);
            let cut = waiting_until(wait, || {
                checkpoint(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
            });
            if let Ok((false, _)) = cut {
                self.pages.store(0, Ordering::Relaxed);
                self.copied.store(0, Ordering::Relaxed);
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(SHORT_PATIENCE);
        }
    }

    fn note(&self, copied: rusqlite::Result<(bool, u32)>) {
        match copied {
            Ok((is_blocked, pages)) => {
                self.copied.store(pages, Ordering::Relaxed);
                tracing::trace!(pages, is_blocked, "copied the WAL");
            }
            Err(error) => tracing::debug!(%error, "the WAL could not be copied"),
        }
    }
}

/// Returns whether somebody was in the way, and the length of the WAL.
fn checkpoint(connection: &Connection, sql: &str) -> rusqlite::Result<(bool, u32)> {
    connection.prepare_cached(sql)?.query_row([], |row| {
        let pages = u32::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
        Ok((row.get(0)?, pages))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::{DAY, Limit, Limiter};

    fn after(checkpoints: &Checkpoints, pages: u32) -> Due {
        PAGES.set(pages);
        checkpoints.ended();
        checkpoints.due()
    }

    #[test]
    fn a_wal_that_has_started_anew_is_all_to_be_copied() {
        let checkpoints = Checkpoints::default();
        assert_eq!(after(&checkpoints, PAGES_LONG - 1), Due::Nothing);
        assert!(checkpoints.is_worth_copying());
        assert_eq!(after(&checkpoints, PAGES_LONG), Due::Copy);
        checkpoints.note(Ok((false, PAGES_LONG)));
        assert_eq!(after(&checkpoints, PAGES_LONG + 1), Due::Nothing);
        assert!(!checkpoints.is_worth_copying());
        for _ in 0..2 {
            // As long as it was before, and none of it is what was copied then.
            assert_eq!(after(&checkpoints, 1), Due::Nothing);
            assert_eq!(after(&checkpoints, PAGES_LONG), Due::Copy);
            checkpoints.note(Ok((false, PAGES_LONG)));
        }
    }

    #[test]
    fn a_wal_that_never_starts_anew_by_itself_is_made_to() {
        let checkpoints = Checkpoints::default();
        checkpoints.note(Ok((false, PAGES_TOO_LONG - 1)));
        assert_eq!(after(&checkpoints, PAGES_TOO_LONG), Due::Nothing);
        let worth_it = PAGES_TOO_LONG + PAGES_WORTH_COPYING;
        assert_eq!(after(&checkpoints, worth_it), Due::StartAnew);
        checkpoints.note(Ok((true, worth_it)));
        assert_eq!(after(&checkpoints, worth_it + 1), Due::Nothing);
    }

    fn limiter() -> (TempDir, Limiter) {
        let directory = tempfile::tempdir().unwrap();
        let limiter = Limiter::open(directory.path().join("a.db")).unwrap();
        let limits = [
            Limit::new("open").per_day(1 << 40),
            Limit::new("spent").per_day(1),
        ];
        for limit in limits {
            limiter.define(limit).unwrap();
        }
        (directory, limiter)
    }

    fn pages_in(directory: &TempDir, file: &str) -> u64 {
        let length = Path::metadata(&directory.path().join(file)).unwrap().len();
        length / PAGE_BYTES.unsigned_abs()
    }

    #[test]
    fn whoever_commits_keeps_the_wal_short() {
        let (directory, limiter) = limiter();
        for _ in 0..2_000 {
            drop(limiter.acquire("open").unwrap());
        }
        // Much more was written than ever stood in the WAL, and it is in the database.
        assert!(pages_in(&directory, "a.db-wal") < u64::from(PAGES_TOO_LONG));
        assert!(pages_in(&directory, "a.db") > 50);
    }

    #[test]
    fn whoever_is_refused_for_long_copies_before_somebody_has_to() {
        let (directory, limiter) = limiter();
        drop(limiter.acquire("spent").unwrap());
        let before = pages_in(&directory, "a.db");
        for _ in 0..PAGES_WORTH_COPYING * 2 {
            drop(limiter.acquire(("open", 1)).unwrap());
        }
        assert_eq!(pages_in(&directory, "a.db"), before, "nobody has had time");
        let denial = limiter.try_acquire("spent").unwrap().denied().unwrap();
        assert!(denial.retry_after().unwrap() > DAY / 2);
        assert!(pages_in(&directory, "a.db") > before);
    }
}
