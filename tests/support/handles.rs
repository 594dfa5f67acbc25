//! Those who hand out from memory in a history.

use std::time::Duration;

use super::{Check, Player, same};
use crate::asks::Ask;
use crate::history::{Block, Fate};
use crate::model::{Asking, Verdict};
use crate::subject::Answer;

/// Somebody who hands out a limit from memory.
#[derive(Clone, Debug)]
pub struct Handle {
    number: usize,
    pub opening: usize,
    key: String,
    size: u64,
    lifetime_ns: i64,
    taken: Option<Taken>,
}

/// What is left of a block, and until when.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// The request under whose name the block is charged.
    claim: usize,
    until_ns: i64,
    amount: u64,
    left: u64,
    /// Whether something was paused since.
    is_broken: bool,
}

impl Player<'_> {
    pub(super) fn hand_out(
        &mut self,
        slot: usize,
        handle: Option<usize>,
        ask: &Ask,
        block: Block,
    ) -> Check {
        let number = handle.and_then(|handle| handle.checked_rem(self.handles.len()));
        let position = match number {
            Some(position) => position,
            None => match self.open_handle(slot, ask, block)? {
                Some(position) => position,
                None => return Ok(()),
            },
        };
        let handle = self.handles[position].clone();
        let (_, amount) = ask.0[0];
        let amount = amount.of(self.model.limit(&handle.key));
        let handed = self.subject.hand_out(handle.number, amount);
        let claim = self.next_claim();
        if let Some(taken) = &mut self.handles[position].taken
            && amount <= taken.left
            && self.model.now_ns < taken.until_ns
            && !taken.is_broken
        {
            taken.left -= amount;
            let line = self.model.lines.get(&handle.key);
            // What was taken of a limit that is no more is nothing to the one that is.
            if line.is_some_and(|line| line.claims.contains(&taken.claim)) {
                self.witness.saw_now(&handle.key, amount, claim);
            }
            same(&Ok(()), &handed)?;
            return self.witness.check(&self.model);
        }
        self.take(position, amount, claim, handed)
    }

    /// A new block is taken, or a single amount, or nothing; the former block ends.
    fn take(
        &mut self,
        position: usize,
        amount: u64,
        claim: usize,
        handed: Result<(), Answer>,
    ) -> Check {
        let handle = self.handles[position].clone();
        let key = handle.key;
        if let Some(limit) = self.model.limit(&key)
            && limit.rates().is_empty()
        {
            return same(&Err(Answer::NotInBlocks { key }), &handed);
        }
        let takes = vec![(key.clone(), amount)];
        if !self.model.is_wrong(&takes) {
            self.end_taken(position);
        }
        let verdict = self.model.acquire(&Asking {
            opening: handle.opening,
            takes: &takes,
            id: None,
            deadline_ns: None,
            claim,
        });
        match (&verdict, handed) {
            (Verdict::Admitted { .. }, Ok(())) => {}
            (_, Err(answer)) => self.judge(&verdict, &answer, &takes)?,
            (_, Ok(())) => return Err(format!("it must be {verdict:?}, it was handed out")),
        }
        self.tell_witness(&takes, &verdict, claim)?;
        if let Verdict::Admitted { .. } = verdict {
            let now_ns = self.model.now_ns;
            let is_starting = self.model.is_starting(&self.model.lines[&key]);
            let line = self.model.lines.get_mut(&key).expect("it was admitted");
            let block = if is_starting {
                None
            } else {
                line.become_block(claim, handle.size, handle.lifetime_ns, now_ns)
            };
            self.handles[position].taken = block.map(|(size, until_ns)| Taken {
                claim,
                until_ns,
                amount: size,
                left: size - amount,
                is_broken: false,
            });
        }
        Ok(())
    }

    /// Whatever was paused, nobody hands out what was taken before.
    pub(super) fn break_blocks(&mut self) {
        for taken in self.handles.iter_mut().flat_map(|handle| &mut handle.taken) {
            taken.is_broken = true;
        }
    }

    /// The position of a new one, if there is a limit for it.
    fn open_handle(
        &mut self,
        slot: usize,
        ask: &Ask,
        block: Block,
    ) -> Result<Option<usize>, String> {
        let slot = self.open(slot);
        let (key, _) = ask.takes(&self.model).swap_remove(0);
        let limit = self.model.limit(&key);
        let size = block.size.of(limit);
        let must_be = match limit {
            None => Err(Answer::Unknown { key: key.clone() }),
            Some(limit) if limit.rates().is_empty() => {
                Err(Answer::NotInBlocks { key: key.clone() })
            }
            Some(_) => Ok(()),
        };
        let number = self.handles_made;
        self.handles_made += 1;
        let lifetime = Duration::from_nanos(block.lifetime_ns.unsigned_abs());
        let opened = self.subject.open_handle(slot, number, &key, size, lifetime);
        same(&must_be, &opened)?;
        if must_be.is_err() {
            return Ok(None);
        }
        self.handles.push(Handle {
            number,
            opening: self.slots[slot].expect("it is open"),
            key,
            size,
            lifetime_ns: block.lifetime_ns,
            taken: None,
        });
        Ok(Some(self.handles.len() - 1))
    }

    /// What is left of a block is given back.
    fn end_taken(&mut self, position: usize) {
        let handle = &mut self.handles[position];
        if let Some(taken) = handle.taken.take()
            && let Some(line) = self.model.lines.get_mut(&handle.key)
        {
            line.end_block(taken.claim, taken.amount - taken.left, self.model.now_ns);
        }
    }

    pub(super) fn end_block(&mut self, handle: usize, by_dropping: bool) {
        let Some(position) = handle.checked_rem(self.handles.len()) else {
            return;
        };
        let number = self.handles[position].number;
        self.subject.end_block(number, by_dropping);
        self.end_taken(position);
        if by_dropping {
            let handle = self.handles.remove(position);
            self.bury_if_nothing_is_left(handle.opening);
        }
    }

    /// What becomes of the blocks of those whose limiter is closed, or of all of them.
    pub(super) fn let_go_handles(&mut self, opening: Option<usize>, fate: Fate) {
        let is_meant = |handle: &Handle| opening.is_none_or(|opening| handle.opening == opening);
        if fate != Fate::Dropped {
            let (gone, others) = self.handles.drain(..).partition(is_meant);
            self.handles = others;
            let gone: Vec<Handle> = gone;
            let numbers: Vec<usize> = gone.iter().map(|handle| handle.number).collect();
            self.subject.die_handing_out(&numbers);
            for handle in gone {
                self.bury_if_nothing_is_left(handle.opening);
            }
            return;
        }
        while let Some(position) = self.handles.iter().position(is_meant) {
            self.end_block(position, true);
        }
    }
}
