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

/// From this length on, whoever has time copies the WAL.
const PAGES_WORTH_COPYING: u32 = 1 << 10;

/// From this length on, somebody has to.
pub(super) const PAGES_LONG: u32 = 8 << 10;

/// From this length on, it is made to start anew.
const PAGES_TOO_LONG: u32 = 16 << 10;

/// To how much the file of the WAL is cut back when it starts anew.
pub(super) const WAL_BYTES_KEPT: i64 = PAGES_TOO_LONG as i64 * PAGE_BYTES;

/// Who waits for less than this has no time to copy anything.
pub(super) const TIME_TO_COPY: Duration = Duration::from_millis(10);

/// How long a caller waits for the others to let the WAL start anew. Another one will try again.
const PATIENCE: Duration = Duration::from_millis(50);

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
        if pages != 0 {
            self.pages.store(pages, Ordering::Relaxed);
        }
    }

    /// How many pages have come since they were last copied.
    fn uncopied(&self) -> u32 {
        let pages = self.pages.load(Ordering::Relaxed);
        match pages.checked_sub(self.copied.load(Ordering::Relaxed)) {
            Some(uncopied) => uncopied,
            // It has started anew.
            None => pages,
        }
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
