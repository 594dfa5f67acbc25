//! Blocks: what processes have taken to hand out from memory. Each is a charge at the block's end, and a row that says
//! that it counts before, too. Nobody has to do anything when one ends, or when its process dies: the charge stays,
//! and the row means nothing any more.

use rusqlite::Row as SqlRow;

use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::{LimitId, Line, OpenBlock, OpenBlocks, Total};
use crate::clock::{HIGH_STEP_NS, Timestamp};
use crate::error::Error;
use crate::plan::Plan;
use crate::store::{Block, Handed};

const ANYTHING: &str = "SELECT EXISTS (SELECT 1 FROM block)";
const OPEN: &str = "SELECT at_ns, amount
    FROM block AS b CROSS JOIN charge AS c USING (limit_id, at_ns, seq)
    WHERE b.limit_id = ?1 AND b.at_ns > ?2";

fn open_block(row: &SqlRow<'_>) -> rusqlite::Result<OpenBlock> {
    Ok(OpenBlock {
        until: Timestamp::from_nanos(row.get(0)?),
        amount: row.get::<_, i64>(1)?.clamp(0, Total::MASK),
    })
}

impl Transaction<'_> {
    /// Whether no limit has blocks: then nothing more is read.
    fn nobody_has_blocks(&mut self) -> Result<bool, Error> {
        if let Some(nobody_has) = self.link.memo.nobody_has_blocks {
            return Ok(nobody_has);
        }
        let any: bool = self
            .link
            .connection
            .prepare_cached(ANYTHING)
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.nobody_has_blocks = Some(!any);
        Ok(!any)
    }

    pub(super) fn read_open_blocks(&mut self, limit: LimitId) -> Result<OpenBlocks, Error> {
        if self.nobody_has_blocks()? {
            return Ok(OpenBlocks::default());
        }
        if let Some(blocks) = self.link.memo.blocks(limit) {
            return Ok(blocks.clone());
        }
        let blocks: OpenBlocks = self
            .link
            .connection
            .prepare_cached(OPEN)
            .and_then(|mut s| {
                s.query_map((limit.0, self.now().as_nanos()), open_block)?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.remember_blocks(limit, blocks.clone());
        Ok(blocks)
    }
}

const INSERT: &str = "INSERT INTO block (limit_id, at_ns, seq) VALUES (?1, ?2, ?3)";

impl Transaction<'_> {
    /// Takes a block of a limit that has room for it.
    pub(super) fn take_block(
        &mut self,
        line: &Line<'_>,
        (amount, until): (i64, Timestamp),
        session: &Session,
    ) -> Result<Block, Error> {
        let seq = self.charge(line.id, until, amount)?;
        self.link
            .connection
            .prepare_cached(INSERT)
            .and_then(|mut s| s.execute((line.id.0, until.as_nanos(), seq)))
            .map_err(|error| self.sqlite(error))?;
        let now = self.now();
        if let Some(blocks) = self.link.memo.blocks_mut(line.id) {
            blocks.insert(OpenBlock { until, amount }, now);
        }
        self.link.memo.nobody_has_blocks = Some(false);
        let timeline = self.timeline();
        Ok(Block {
            limit: line.id,
            until,
            seq,
            amount: amount.unsigned_abs(),
            readings: timeline.elapsed_at(now)..timeline.elapsed_at(until),
            moves: (session.moves.clone(), session.moves.seen()),
            session: session.number,
            process: session.process,
        })
    }
}

const DELETE: &str = "DELETE FROM block WHERE limit_id = ?1 AND at_ns = ?2 AND seq = ?3";

impl Transaction<'_> {
    /// Ends the block that a plan comes with, whatever becomes of the plan.
    pub(super) fn end_former(&mut self, plan: &Plan<'_>, session: &Session) -> Result<(), Error> {
        match plan.block.and_then(|block| block.former) {
            Some(former) => self.end_block(former, session),
            None => Ok(()),
        }
    }

    /// Ends a block: what was used of it is charged now, or at its end if that has come, and the rest not at all.
    /// That is never more in any window, so it always fits. A block of another session is in another file, and
    /// one that was inherited through `fork` is the parent's.
    pub(super) fn end_block(&mut self, handed: Handed<'_>, session: &Session) -> Result<(), Error> {
        let Handed { block, used } = handed;
        if (block.session, block.process) != (session.number, session.process) {
            return Ok(());
        }
        let used = used.cast_signed();
        let Some(charge) = self.find_charged(block.limit, block.until, block.seq)? else {
            return Ok(());
        };
        let (now, until, amount) = (self.now(), charge.at, charge.amount);
        if let Some(blocks) = self.link.memo.blocks_mut(block.limit) {
            blocks.remove(OpenBlock { until, amount });
        }
        if until <= now {
            return self.amend(charge, used - amount);
        }
        self.take_back(charge)?;
        self.link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute((block.limit.0, block.until.as_nanos(), block.seq)))
            .map_err(|error| self.sqlite(error))?;
        if used > 0
            && let Some(known) = self.known_by_id(block.limit)?
        {
            self.enter(block.limit, &known.limit, now, used)?;
        }
        Ok(())
    }
}

const FORGET: &str = "DELETE FROM block WHERE limit_id = ?1 AND at_ns <= ?2";

impl Transaction<'_> {
    /// Removes the rows of blocks that have ended, and that no clock which falls back unnoticed could open again.
    pub(super) fn sweep_blocks(&mut self, limit: LimitId) -> Result<(), Error> {
        if self.nobody_has_blocks()? {
            return Ok(());
        }
        let ended = self.now().saturating_minus_ns(HIGH_STEP_NS);
        let forgotten = self
            .link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute((limit.0, ended.as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if forgotten > 0 {
            self.wrote();
            self.link.memo.nobody_has_blocks = None;
        }
        Ok(())
    }
}
