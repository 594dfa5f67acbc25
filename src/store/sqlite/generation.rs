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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn two_processes() -> [Generation; 2] {
        let file = tempfile::tempfile().unwrap();
        [(); 2].map(|()| Generation::new(Some(Arc::new(SharedPage::map(&file).unwrap()))))
    }

    #[test]
    fn what_was_written_is_seen_by_all_and_what_was_rolled_back_by_nobody() {
        let [one, other] = two_processes();
        let before = other.seen();
        assert!(before.is_some());
        let begun = one.begin();
        assert_eq!(other.seen(), None);
        begun.end(false);
        assert_eq!(other.seen(), before);
        one.begin().end(true);
        assert!(other.seen().is_some() && other.seen() != before);
    }

    #[test]
    fn after_a_writer_that_died_nothing_is_proved_until_the_next_one() {
        let [one, other] = two_processes();
        let before = other.seen();
        let _dead = one.begin();
        assert_eq!(other.seen(), None);
        // It was rolled back, but who knows what the dead one has written.
        let begun = other.begin();
        assert_eq!(one.seen(), None);
        begun.end(false);
        assert!(one.seen().is_some() && one.seen() != before);
    }

    /// The lock comes free before the counter says so.
    #[test]
    fn whoever_ends_late_does_not_speak_for_the_next_one() {
        let [one, other] = two_processes();
        let first = one.begin();
        let second = other.begin();
        first.end(true);
        assert_eq!(one.seen(), None);
        second.end(true);
        assert!(one.seen().is_some());
    }

    #[test]
    fn without_a_page_nothing_is_proved() {
        let generation = Generation::new(None);
        generation.begin().end(true);
        assert_eq!(generation.seen(), None);
    }
}
