//! Telling those who have booked, and those who hand out from memory, that something was paused or resumed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A counter that moves whenever a limit is paused or resumed, by which bookings may be moved: while whoever does it keeps
/// all others from booking, and before it reads the clock.
///
/// Who reads the clock and then finds the counter where it was when it booked, knows that nobody has paused anything since
/// then as of that instant or an earlier one. Who does not find it there has to look.
#[derive(Clone)]
pub(crate) struct Moves(Arc<dyn Word>);

/// Where the counter is, if there is one: else everybody has to look.
pub(crate) trait Word: fmt::Debug + Send + Sync {
    fn word(&self) -> Option<&AtomicU32>;
}

impl Word for AtomicU32 {
    fn word(&self) -> Option<&AtomicU32> {
        Some(self)
    }
}

/// What the counter was when somebody booked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MovesSeen(Option<u32>);

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Moves").field(&self.seen()).finish()
    }
}

impl Moves {
    pub(crate) fn new(word: impl Word + 'static) -> Self {
        Self(Arc::new(word))
    }

    /// Of one process alone.
    pub(crate) fn own() -> Self {
        Self::new(AtomicU32::new(0))
    }

    /// What the counter is now.
    pub(crate) fn seen(&self) -> MovesSeen {
        MovesSeen(self.word().map(|word| word.load(Ordering::SeqCst)))
    }

    /// Whether it is known that nothing was paused or resumed since.
    pub(crate) fn is_unmoved(&self, seen: MovesSeen) -> bool {
        seen.0.is_some() && self.seen() == seen
    }

    /// Whether something was paused or resumed since. Where there is no counter, nobody knows.
    pub(crate) fn have_moved(&self, seen: MovesSeen) -> bool {
        seen.0.is_some() && self.seen() != seen
    }

    pub(crate) fn count(&self) {
        if let Some(word) = self.word() {
            word.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The counter, for who can sleep on it.
    #[cfg(target_os = "linux")]
    pub(crate) fn to_sleep_on(&self, seen: MovesSeen) -> Option<(&AtomicU32, u32)> {
        self.word().zip(seen.0)
    }

    fn word(&self) -> Option<&AtomicU32> {
        self.0.word()
    }
}
