//! Blocks that are open: what a process hands out from memory until they end.

use smallvec::SmallVec;

use crate::clock::Timestamp;

/// A block that has not ended. It is charged at its end, where what was used last counts at the latest; until then
/// nobody knows what was used of it, so all of it counts from when it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenBlock {
    pub(crate) until: Timestamp,
    pub(crate) amount: i64,
}

/// The open blocks of a limit, the first to end first. Mostly there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenBlocks(SmallVec<[OpenBlock; 2]>);

impl FromIterator<OpenBlock> for OpenBlocks {
    fn from_iter<I: IntoIterator<Item = OpenBlock>>(blocks: I) -> Self {
        let mut blocks: SmallVec<_> = blocks.into_iter().collect();
        blocks.sort_by_key(|block: &OpenBlock| block.until);
        Self(blocks)
    }
}

impl OpenBlocks {
    /// Takes in a block, and lets go of those that have ended by now.
    pub(crate) fn insert(&mut self, block: OpenBlock, now: Timestamp) {
        self.0.retain(|open| open.until > now);
        let before = self.0.partition_point(|open| open.until <= block.until);
        self.0.insert(before, block);
    }

    pub(crate) fn remove(&mut self, block: OpenBlock) {
        if let Some(position) = self.0.iter().position(|open| *open == block) {
            self.0.remove(position);
        }
    }

    /// Those that end after an instant.
    fn after(&self, at: Timestamp) -> &[OpenBlock] {
        let ended = self.0.partition_point(|block| block.until <= at);
        &self.0[ended..]
    }

    /// What a window that ends at an instant holds of them beside its charges: those that end within it stand among
    /// these.
    pub(crate) fn amount_after(&self, at: Timestamp) -> i64 {
        let amounts = self.after(at).iter().map(|block| block.amount);
        amounts.fold(0, i64::saturating_add)
    }

    /// When the next of them ends.
    pub(super) fn first_after(&self, at: Timestamp) -> Option<Timestamp> {
        self.after(at).first().map(|block| block.until)
    }

    /// The end of the one with which those that end after `at` come to an amount.
    pub(super) fn reaches(&self, at: Timestamp, amount: i64) -> Option<Timestamp> {
        let mut sum: i64 = 0;
        let mut after = self.after(at).iter();
        let last = after.find(|block| {
            sum = sum.saturating_add(block.amount);
            sum >= amount
        });
        last.map(|block| block.until)
    }
}
