//! Blocks, in memory.

use super::State;
use crate::calendar::Line;
use crate::clock::Timestamp;
use crate::decision::block_size;
use crate::plan::Plan;
use crate::store::{Block, Claim, Few, Handed};

impl State {
    /// The block that is to be taken in the place of what a request asks for: how large, and until when. None where
    /// others stand in line, who would have to wait for what nobody may need.
    pub(super) fn block_now(
        &mut self,
        plan: &Plan<'_>,
        lines: &[Line<'_>],
        now: Timestamp,
    ) -> Option<(i64, Timestamp)> {
        let (Some(ask), [line], true) = (plan.block, lines, self.tickets.is_empty()) else {
            return None;
        };
        let until = now.saturating_plus_ns(ask.lifetime_ns);
        let Ok(size) = block_size(&mut self.ledgers, line, ask.size, now, until);
        size.map(|size| (size, until))
    }

    /// Takes a block, of which what was asked for is part.
    pub(super) fn charge_block(
        &mut self,
        lines: &[Line<'_>],
        (amount, until): (i64, Timestamp),
        now: Timestamp,
    ) -> Claim {
        let line = &lines[0];
        let seq = self.ledgers.take_block(line.id, amount, until);
        self.ledgers.sweep(line.id, line.limit);
        self.sweep_keys();
        Claim {
            at: now,
            wake_at: self.timeline.elapsed_at(now),
            moves: self.moves.seen(),
            session: 0,
            process: crate::process::mark(),
            rows: Few::new(),
            booking: None,
            accepted: None,
            block: Some(Box::new(Block {
                limit: line.id,
                until,
                seq,
                amount: amount.unsigned_abs(),
                readings: self.timeline.elapsed_at(now)..self.timeline.elapsed_at(until),
                moves: (self.moves.clone(), self.moves.seen()),
                session: 0,
                process: crate::process::mark(),
            })),
            is_resumed: false,
            registered: None,
        }
    }

    /// Gives back what was not used of a block, unless it was inherited through `fork`.
    pub(super) fn end_block(&mut self, handed: Handed<'_>) {
        if handed.block.process == crate::process::mark() {
            let used = handed.used.cast_signed();
            if let Some(known) = self.limits.by_id(handed.block.limit) {
                self.ledgers.end_block(handed.block, used, &known.limit);
            }
        }
    }
}
