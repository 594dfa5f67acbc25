//! A counter that moves with every transaction that writes, in the part of the lock file that all processes share.
//!
//! It is odd while one is under way. So an even counter that has not moved since proves that nothing was written
//! since, for the price of one load. A writer that dies leaves it odd, and then it proves nothing until the next
//! writer puts it right. Whoever writes by other means than this crate does not move it; so what was concluded
//! from it is looked at again before long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::shared_page::SharedPage;

/// What was written up to some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen(u32);

#[derive(Debug)]
pub(super) struct Generation(Option<Arc<SharedPage>>);

impl Generation {
    pub(super) fn new(page: Option<Arc<SharedPage>>) -> Self {
        Self(page)
    }

    fn word(&self) -> Option<&AtomicU32> {
        self.0.as_ref().map(|page| page.generation())
    }

    /// The present generation, if no transaction is under way that writes.
    pub(super) fn seen(&self) -> Option<Seen> {
        let seen = self.word()?.load(Ordering::SeqCst);
        seen.is_multiple_of(2).then_some(Seen(seen))
    }

    /// A number that moves whenever anybody begins or ends to write.
    pub(super) fn count(&self) -> u32 {
        self.word().map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Says that a transaction has begun which may write. It holds the write lock.
    pub(super) fn begin(&self) -> Begun<'_> {
        let Some(word) = self.word() else {
            return Begun(None);
        };
        let before = word.load(Ordering::SeqCst);
        // Another odd one if it is odd: what its writer has written before it died, nobody knows.
        let during = before.wrapping_add(1 + before % 2);
        word.store(during, Ordering::SeqCst);
        Begun(Some((word, before, during)))
    }
}

/// A transaction under way that may write.
#[derive(Debug)]
pub(super) struct Begun<'g>(Option<(&'g AtomicU32, u32, u32)>);

impl Begun<'_> {
    /// Says that it has ended. Others may have begun since.
    pub(super) fn end(self, has_written: bool) {
        if let Some((word, before, during)) = self.0 {
            let is_unchanged = !has_written && before.is_multiple_of(2);
            let after = if is_unchanged {
                before
            } else {
                during.wrapping_add(1)
            };
            let _ = word.compare_exchange(during, after, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}
