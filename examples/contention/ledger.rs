//! Ledgers with many charges, written by plain SQL: by acquisitions it would take minutes.

use std::path::Path;
use std::thread;
use std::time::Duration;

use quotalite::{Limiter, Permit, Request};
use rusqlite::{Connection, OptionalExtension};

use crate::Failure;

/// The last charge of a limit, after which others are written.
struct Ledger {
    connection: Connection,
    limit_id: i64,
    at_ns: i64,
    total: i64,
}

/// Charges spread over the last fifty minutes.
pub fn fill(limiter: &Limiter, file: &Path, key: &str, count: u64) -> Result<(), Failure> {
    const SPREAD_NS: i64 = 3_000_000_000_000;
    if count == 0 {
        return Ok(());
    }
    let mut ledger = Ledger::open(file, key)?;
    ledger.at_ns = limiter.now()?.as_nanos() - SPREAD_NS;
    ledger.append(count, SPREAD_NS / i64::try_from(count)?)
}

/// Permits whose charges lie this far apart, and all of them before `later` other charges.
pub fn permits_before(
    limiter: &Limiter,
    file: &Path,
    key: &str,
    (permits, apart, later): (usize, u64, u64),
) -> Result<Vec<Permit>, Failure> {
    let ask = Request::new().take(key, 1_800);
    let mut ledger = Ledger::open(file, key)?;
    let mut granted = Vec::with_capacity(permits);
    for position in 1..=permits {
        let permit = limiter.try_acquire(&ask)?.granted();
        granted.push(permit.ok_or("a limit that admits all has refused")?);
        let count = if position == permits { later } else { apart };
        ledger.seek()?;
        ledger.append(count, 1)?;
        // Nothing of what was written may lie in the future: it would be a line of bookings.
        thread::sleep(Duration::from_nanos(count));
    }
    Ok(granted)
}

const LIMIT: &str = "SELECT limit_id FROM limit_definition WHERE key = ?1";

const LAST: &str = "SELECT at_ns, total FROM charge WHERE limit_id = ?1
    ORDER BY at_ns DESC, seq DESC LIMIT 1";

const APPEND: &str =
    "WITH RECURSIVE later (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM later WHERE n < ?1)
    INSERT INTO charge (limit_id, at_ns, seq, amount, total)
    SELECT ?2, ?3 + n * ?4, 0, 1, ?5 + n FROM later";

impl Ledger {
    fn open(file: &Path, key: &str) -> Result<Self, Failure> {
        let connection = Connection::open(file)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "synchronous", "off")?;
        let limit_id = connection.query_row(LIMIT, [key], |row| row.get(0))?;
        Ok(Self {
            connection,
            limit_id,
            at_ns: 0,
            total: 0,
        })
    }

    fn seek(&mut self) -> Result<(), Failure> {
        let mut last = self.connection.prepare_cached(LAST)?;
        let found = last.query_row([self.limit_id], |row| Ok((row.get(0)?, row.get(1)?)));
        if let Some(found) = found.optional()? {
            (self.at_ns, self.total) = found;
        }
        Ok(())
    }

    /// In transactions that are small enough for the log to start anew between them.
    fn append(&mut self, count: u64, step_ns: i64) -> Result<(), Failure> {
        let mut left = i64::try_from(count)?;
        while left > 0 {
            let part = left.min(200_000);
            self.connection.prepare_cached(APPEND)?.execute((
                part,
                self.limit_id,
                self.at_ns,
                step_ns,
                self.total,
            ))?;
            self.at_ns += part * step_ns;
            self.total += part;
            left -= part;
        }
        Ok(())
    }
}
