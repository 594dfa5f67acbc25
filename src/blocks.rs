//! Blocks: amounts of a hot limit that a process takes at once, and hands out from memory.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crate::decision::Decision;
use crate::error::Error;
use crate::permit::clamped_ns;
use crate::plan::{BlockAsk, Patience, Plan};
use crate::process::{self, Mark};
use crate::request::Ask;
use crate::store::{Block, Handed, Outcome, Store};

/// How long what was taken may be handed out, if nothing else is said.
const LIFETIME: Duration = Duration::from_millis(100);

/// A process that dies keeps its block from everybody for so long at most.
const LONGEST_LIFETIME: Duration = Duration::from_mins(1);

/// How long a forked child waits for a thread that may be none of its own.
const LONGEST_LOCK: Duration = Duration::from_secs(1);

/// Hands out from memory what it takes of one limit in blocks: for keys that are asked for more often than any file can
/// be written to. Made by [`Limiter::blocks`](crate::Limiter::blocks); threads share it by reference.
///
/// The calls never exceed the limit. From when it is taken until one window after its end, the whole block counts in
/// every window, for everybody: as if all of it were used at each instant at which it may be. What that costs:
///
/// - While calls are denied, each `window + lifetime` admits at least the capacity less what is held unused, which is at most
///   one block for each such value in all processes. The shorter the lifetime beside the window, and the smaller the blocks
///   beside the capacity, the less is lost: of 10 000 a second, with 4 processes that have blocks of 100 for 10 ms, at most 5 %.
/// - What is handed out is no permit: it cannot be settled, cancelled or named by an id.
/// - A file that is removed or replaced takes the block with it once this process has noticed, with any other call or when the
///   block has ended.
/// - What is held is handed out until the block's end, though the limit may have been lowered or removed meanwhile.
/// - A process that dies has used its block, as far as anybody knows. It counts for its time, and then no more.
///
/// What is left of a block is given back when the next one is taken, when this is dropped, and by
/// [`give_back`](Self::give_back). Until then it stays charged, for whole windows where nobody asks any more.
pub struct Blocks {
    store: Arc<dyn Store>,
    key: Arc<str>,
    size: u64,
    lifetime_ns: i64,
    state: Mutex<State>,
    /// A thread has what it went for.
    is_back: Condvar,
    /// The process whose threads last had the state.
    user: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    block: Option<Box<Block>>,
    left: u64,
    /// The process of which a thread goes for a new block, if one does. It has taken along what was left.
    taking: Option<Mark>,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks")
            .field("key", &self.key)
            .field("size", &self.size)
            .field("lifetime_ns", &self.lifetime_ns)
            .finish_non_exhaustive()
    }
}

impl Blocks {
    pub(crate) fn new(store: Arc<dyn Store>, key: &str, size: u64) -> Self {
        Self {
            store,
            key: key.into(),
            size,
            lifetime_ns: clamped_ns(LIFETIME),
            state: Mutex::default(),
            is_back: Condvar::new(),
            user: AtomicU32::new(process::mark().as_u32()),
        }
    }

    /// For how long each block may be handed out. Defaults to 100 ms; more than a minute counts as a minute. The shorter
    /// beside the windows, the less of the capacity is lost, and the sooner a block of a process that died comes back. With
    /// none at all, each call is a transaction of its own.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime_ns = clamped_ns(lifetime.min(LONGEST_LIFETIME));
        self
    }

    /// Asks for one, as [`try_acquire_many`](Self::try_acquire_many).
    ///
    /// # Errors
    /// As [`try_acquire_many`](Self::try_acquire_many).
    pub fn try_acquire(&self) -> Result<Decision<()>, Error> {
        self.try_acquire_many(1)
    }

    /// Asks for an amount to be handed out now, or not at all.
    ///
    /// If the block holds it, that takes no transaction. Else a new block is taken: as much as fits now, up to the size that
    /// was asked for. Where no more fits than this amount, it is charged by itself, so that the end of a window is
    /// usable, and a denial is that of [`Limiter::try_acquire`](crate::Limiter::try_acquire). What was left of the
    /// former block is given back in the same transaction.
    ///
    /// The clock is read before it is decided whether the block still holds. If this process is stopped between that and
    /// what it does then, it is as late as after any other grant.
    ///
    /// # Errors
    /// As [`Limiter::try_acquire`](crate::Limiter::try_acquire), when a block has to be taken; nothing was handed out then.
    /// [`RequestError::NotInBlocks`](crate::RequestError::NotInBlocks) if the limit has become one of another kind.
    pub fn try_acquire_many(&self, amount: u64) -> Result<Decision<()>, Error> {
        let is_handed_out = |state: &mut State| amount > 0 && state.hand_out(amount, &*self.store);
        let Some(mut taking) = self.come(is_handed_out)? else {
            return Ok(Decision::Granted(()));
        };
        let ask = Ask::from((&*self.key, amount));
        let plan = Plan::new(ask, Patience::Now)?.of_block(BlockAsk {
            size: self.size,
            lifetime_ns: self.lifetime_ns,
            former: taking.handed(),
        });
        let outcome = self.store.acquire(&plan, None)?;
        taking.block = None;
        Ok(match outcome {
            Outcome::Admitted { claim, .. } => {
                if let Some(block) = claim.block {
                    tracing::trace!(limit = &*self.key, amount = block.amount, "took a block");
                    taking.left = block.amount.saturating_sub(amount);
                    taking.block = Some(block);
                }
                Decision::Granted(())
            }
            Outcome::Refused { denial, .. } => Decision::Denied(denial),
            Outcome::Queued(queued) => {
                self.store.leave(&queued)?;
                Decision::Denied(queued.denial)
            }
        })
    }

    /// Gives back what is left, and lets the rest count from now on only: for whoever knows that it will not ask again soon.
    /// The next call takes a new block.
    ///
    /// # Errors
    /// Whatever can happen to the file. What could not be given back then is given back by the next change that this process
    /// makes; or it counts for its time, if the file cannot be opened any more.
    pub fn give_back(&self) -> Result<(), Error> {
        let Some(mut taking) = self.come(|state| state.block.is_none())? else {
            return Ok(());
        };
        let (block, left) = (taking.block.take(), taking.left);
        match block {
            Some(block) => self.store.end_block(handed(&block, left)),
            None => Ok(()),
        }
    }

    /// Comes to the state. If that is not all that is wanted, goes with what is left, and others wait until it is back: for no
    /// longer than they would for the file.
    fn come(&self, is_all: impl Fn(&mut State) -> bool) -> Result<Option<Taking<'_>>, Error> {
        let mut state = self.lock()?;
        let mut asked = None;
        loop {
            if state.taking.is_none_or(|taking| taking != process::mark()) {
                if is_all(&mut state) {
                    return Ok(None);
                }
                state.taking = Some(process::mark());
                return Ok(Some(Taking {
                    blocks: self,
                    block: state.block.take(),
                    left: state.left,
                    was_panicking: thread::panicking(),
                }));
            }
            let waited = asked.get_or_insert_with(Instant::now).elapsed();
            let Some(left) = self.store.busy_deadline().checked_sub(waited) else {
                let file = self.store.place().to_owned();
                return Err(Error::Busy { file, waited });
            };
            let back = self.is_back.wait_timeout(state, left);
            state = back.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The state. In a child that was forked, a thread of the parent may have it for ever.
    fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mark = process::mark().as_u32();
        let mut deadline = None;
        loop {
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if self.user.load(Ordering::Relaxed) == mark => {
                    self.state.lock().unwrap_or_else(PoisonError::into_inner)
                }
                Err(TryLockError::WouldBlock) => {
                    let now = Instant::now();
                    if now >= *deadline.get_or_insert(now + LONGEST_LOCK) {
                        let file = self.store.place().to_owned();
                        return Err(Error::Forked { file });
                    }
                    thread::sleep(Duration::from_micros(50));
                    continue;
                }
            };
            self.user.store(mark, Ordering::Relaxed);
            return Ok(state);
        }
    }
}

impl State {
    /// Hands out an amount, if the block holds it and has not ended. What was inherited through `fork` is the parent's, and
    /// what was taken of a file that has moved since counts in no other.
    fn hand_out(&mut self, amount: u64, store: &dyn Store) -> bool {
        let Some(block) = &mut self.block else {
            return false;
        };
        if amount > self.left || block.process != process::mark() || !store.is_in(block.session) {
            return false;
        }
        let reading = store.clock().elapsed();
        let (moves, seen) = &block.moves;
        // In this order: see `Moves`.
        if !block.readings.contains(&reading) || moves.have_moved(*seen) {
            return false;
        }
        // A clock that falls back would let the block live for longer.
        block.readings.start = reading;
        self.left -= amount;
        true
    }
}

/// A thread that goes for a new block, with what was left of the former one. When it is back, the others find what it brings.
struct Taking<'b> {
    blocks: &'b Blocks,
    block: Option<Box<Block>>,
    left: u64,
    /// Something that is dropped by a panic may come for a block, too.
    was_panicking: bool,
}

impl Taking<'_> {
    fn handed(&self) -> Option<Handed<'_>> {
        let block = self.block.as_deref()?;
        Some(handed(block, self.left))
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let panics = thread::panicking() && !self.was_panicking;
        // It fails only in a forked child, where nobody waits.
        if let Ok(mut state) = self.blocks.lock() {
            // Where this thread panics, nobody knows whether the block was given back: it stays charged.
            *state = State {
                block: self.block.take().filter(|_| !panics),
                left: self.left,
                taking: None,
            };
        }
        self.blocks.is_back.notify_all();
    }
}

fn handed(block: &Block, left: u64) -> Handed<'_> {
    Handed {
        block,
        used: block.amount.saturating_sub(left),
    }
}

/// Gives back what is left, as [`give_back`](Blocks::give_back). That waits for the file's lock, up to the busy deadline.
impl Drop for Blocks {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = &state.block
            && let Err(error) = self.store.end_block(handed(block, state.left))
        {
            tracing::warn!(limit = &*self.key, %error, "a block could not be given back yet");
        }
    }
}
