//! Removing expired charges, a few at a time, unless they are kept. No decision depends on it: a window begins where it
//! begins, whatever lies before.

use super::patterns::{FEWEST_KEYS, KeyTurn};
use super::transaction::Transaction;
use crate::calendar::{Ledgers, LimitId, Line, expired_until};
use crate::clock::{HIGH_STEP_NS, Timestamp};
use crate::error::Error;
use crate::limit::Limit;

/// One acquisition in this many sweeps: the pages at a ledger's old end are others than those at its
/// new end, and writing them each time would double the cost.
pub(super) const SWEEP_EVERY: u32 = 128;

/// How many free pages are given back to the filesystem at a time, and how many are kept for growth.
const PAGES_RETURNED: i64 = 256;
const PAGES_KEPT: i64 = 256;

/// Where the next sweep goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) definitions: LimitId,
    pub(super) keys: KeyTurn,
}

impl Turn {
    /// Processes that live shortly shall not all sweep the same limits.
    pub(super) fn anywhere() -> Self {
        let after = LimitId(fastrand::i64(0..1_000_000));
        Self {
            definitions: after,
            keys: KeyTurn {
                after,
                count: FEWEST_KEYS,
            },
        }
    }
}

impl Transaction<'_> {
    /// Removes a few expired charges of the limits of a request, and of the next limits after `turn`: so that those
    /// which nobody uses are swept by whoever comes by. Returns where to go on.
    pub(super) fn sweep(&mut self, lines: &[Line<'_>], turn: Turn) -> Result<Turn, Error> {
        self.write_charges()?;
        for line in lines {
            self.sweep_ledger(line.id, line.limit)?;
        }
        let after = LimitId(turn.definitions.0.saturating_add(1));
        let next = match self.read_definition_from(after) {
            // One that this program cannot read is swept by those that can.
            Err(Error::Definition { .. }) => after,
            Err(error) => return Err(error),
            Ok(Some(next)) => {
                if lines.iter().all(|line| line.id != next.id) {
                    self.sweep_ledger(next.id, &next.limit)?;
                }
                self.write_boundaries(&next.limit)?;
                next.id
            }
            Ok(None) => LimitId(0),
        };
        let keys = match self.sweep_keys(turn.keys) {
            Err(Error::Definition { .. }) => turn.keys.skipped(),
            keys => keys?,
        };
        self.sweep_removed()?;
        self.sweep_permits()?;
        self.sweep_provisional()?;
        self.return_pages()?;
        Ok(Turn {
            definitions: next,
            keys,
        })
    }

    /// A charge is kept for as long as a clock that falls back unnoticed could ask for it.
    pub(super) fn sweep_ledger(&mut self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        if !self.sweep_bucket(id, limit)? {
            self.sweep_blocks(id)?;
            if let Some(expired) = expired_until(limit, self.now(), self.wall_shift_ns()) {
                self.delete_until(id, expired.saturating_minus_ns(HIGH_STEP_NS))?;
            }
        }
        if let Some(policy) = limit.breaker_policy() {
            self.sweep_outcomes(id, &policy)?;
        }
        self.sweep_strikes(id)?;
        self.sweep_shifts(id)
    }
}

// At most 256 at a time: twice as many as a process can have added since it last swept. The number
// is no parameter, because SQLite would plan the statement anew for each value bound to a limit.
const DELETE_UNTIL: &str = "DELETE FROM charge
    WHERE (limit_id, at_ns, seq) IN (
        SELECT limit_id, at_ns, seq FROM charge
        WHERE limit_id = ?1 AND at_ns <= ?2 ORDER BY at_ns, seq LIMIT 256
    )";

impl Transaction<'_> {
    fn delete_until(&mut self, limit: LimitId, expired: Timestamp) -> Result<(), Error> {
        let deleted = self
            .link
            .connection
            .prepare_cached(DELETE_UNTIL)
            .and_then(|mut statement| statement.execute((limit.0, expired.as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if deleted > 0 {
            self.link.memo.changed(limit);
            self.wrote();
        }
        Ok(())
    }
}

const FREE_PAGES: &str = "PRAGMA freelist_count";

impl Transaction<'_> {
    pub(super) fn free_pages(&self) -> Result<i64, Error> {
        self.link
            .connection
            .prepare_cached(FREE_PAGES)
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    /// Gives free pages back to the filesystem, but keeps some, so that a ledger which grows and shrinks
    /// does not ask for them again each time.
    fn return_pages(&mut self) -> Result<(), Error> {
        let free = self.free_pages()?;
        if free > PAGES_KEPT {
            self.return_so_many((free - PAGES_KEPT).min(PAGES_RETURNED))?;
        }
        Ok(())
    }

    /// Gives so many free pages back to the filesystem.
    pub(super) fn return_so_many(&mut self, pages: i64) -> Result<(), Error> {
        // Each step gives one page back.
        self.link
            .connection
            .prepare(&format!("PRAGMA incremental_vacuum({pages})"))
            .and_then(|mut statement| {
                let mut rows = statement.query([])?;
                while rows.next()?.is_some() {}
                Ok(())
            })
            .map_err(|error| self.sqlite(error))?;
        self.wrote();
        Ok(())
    }
}
