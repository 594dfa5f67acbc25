//! Threads of one process that want to write at the same moment share a transaction.
//!
//! SQLite has one writer at a time, and most of what a transaction costs is its beginning and its end. So whoever
//! comes while another is at it leaves a slip; whoever is next to begin a transaction does all that the slips ask
//! for in it, in the order in which they came, and each gets its own answer. There is no thread for this: the one
//! that leads is one of those who came, and the first in the queue leads next if nobody else does.
//!
//! A slip owns what it asks for, so that whoever left it can go away without it: one whose deadline has passed, or
//! one that is not a thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::acts::{Act, tried};
use super::connection::Deadline;
use super::session::Session;
use super::transaction::Transaction;
use crate::error::Error;

/// How many slips one transaction answers at most: those who come later shall not wait for too many.
const MOST_TOGETHER: usize = 64;

/// How long a thread that waits gives way to others before it goes to sleep: a transaction mostly takes less, and
/// waking a thread costs about as much as its part of it.
const GIVES_WAY: Duration = Duration::from_micros(100);

/// How often whoever leads gives way to others who may come along.
const MOST_YIELDS: u32 = 2;

/// How long a thread sleeps whose answer is under way.
const SHORT: Duration = Duration::from_millis(1);

/// Where those who want to write meet.
#[derive(Debug, Default)]
pub(super) struct Desk {
    queue: Mutex<Queue>,
    /// The same as in the queue, for those who look without locking it.
    is_led: AtomicBool,
    /// How many waiting ones the last transaction was for, too.
    joined: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    is_led: bool,
    waiting: VecDeque<Arc<dyn Waiting>>,
}

/// Somebody who waits at the desk.
pub(super) trait Waiting: fmt::Debug + Send + Sync {
    /// Does what it asks for and keeps the answer. Fails if the whole transaction has failed with it.
    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<(), Error>;

    /// Keeps the reason for which its transaction failed.
    fn fail(&self, error: Error);

    /// Says that the answer stands.
    fn tell(&self);

    /// Lets it look whether it is to lead.
    fn wake(&self);

    /// Whether others can do it for it.
    fn joins(&self) -> bool;

    /// Until when it can wait for locks.
    fn deadline(&self) -> Deadline;

    /// Whether it is this thread's.
    fn is_mine(&self) -> bool;
}

/// What somebody asks for, until it is answered.
#[derive(Debug)]
pub(super) struct Slip<A: Act> {
    /// Nothing for one who has to lead itself.
    act: Option<A>,
    answer: Mutex<Option<Result<A::Answer, Error>>>,
    is_told: AtomicBool,
    thread: Thread,
    deadline: Deadline,
}

impl<A: Act> Slip<A> {
    fn new(act: Option<A>, deadline: Deadline) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            act,
            answer: Mutex::new(None),
            is_told: AtomicBool::new(false),
            thread: thread::current(),
        })
    }

    fn answer(&self) -> MutexGuard<'_, Option<Result<A::Answer, Error>>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, once it stands.
    pub(super) fn told(&self) -> Option<Result<A::Answer, Error>> {
        self.is_told
            .load(Ordering::Acquire)
            .then(|| self.answer().take())
            .flatten()
    }
}

impl<A: Act> Waiting for Slip<A> {
    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<(), Error> {
        if let Some(act) = &self.act {
            *self.answer() = Some(tried(act, transaction, session)?);
        }
        Ok(())
    }

    fn fail(&self, error: Error) {
        *self.answer() = Some(Err(error));
    }

    fn tell(&self) {
        self.is_told.store(true, Ordering::Release);
        self.thread.unpark();
    }

    fn wake(&self) {
        self.thread.unpark();
    }

    fn joins(&self) -> bool {
        self.act.is_some()
    }

    fn deadline(&self) -> Deadline {
        self.deadline
    }

    fn is_mine(&self) -> bool {
        self.thread.id() == thread::current().id()
    }
}

/// Who was let in at once, and who has to wait.
pub(super) enum Came<'d, A: Act> {
    Leads(Lead<'d>),
    Waits(Arc<Slip<A>>),
}

/// What waiting has come to.
pub(super) enum Waited<'d> {
    Told,
    Leads(Lead<'d>),
    TooLate,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn led<'d>(&'d self, queue: &mut Queue) -> Lead<'d> {
        queue.is_led = true;
        self.is_led.store(true, Ordering::Relaxed);
        Lead {
            desk: self,
            taken: Vec::new(),
            acting: None,
            was_panicking: thread::panicking(),
        }
    }

    /// Leads, if nobody does and nobody waits.
    pub(super) fn try_lead(&self) -> Option<Lead<'_>> {
        if self.is_led.load(Ordering::Relaxed) {
            return None;
        }
        let mut queue = self.lock();
        (!queue.is_led && queue.waiting.is_empty()).then(|| self.led(&mut queue))
    }

    /// Leads at once if nobody is there, else leaves a slip. Without an act it is one that only its thread can do.
    pub(super) fn come<A: Act + 'static>(
        &self,
        act: impl FnOnce() -> Option<A>,
        deadline: Deadline,
    ) -> Came<'_, A> {
        if let Some(lead) = self.try_lead() {
            return Came::Leads(lead);
        }
        let slip = Slip::new(act(), deadline);
        self.lock().waiting.push_back(Arc::clone(&slip) as _);
        Came::Waits(slip)
    }

    /// Waits until the slip is answered, or its thread is to lead.
    pub(super) fn wait<A: Act + 'static>(&self, slip: &Arc<Slip<A>>) -> Waited<'_> {
        let deadline = slip.deadline.at;
        let mut sleeps_from = Instant::now() + GIVES_WAY;
        loop {
            if slip.is_told.load(Ordering::Acquire) {
                return Waited::Told;
            }
            if !self.is_led.load(Ordering::Relaxed)
                && let Some(lead) = self.lead_from(slip)
            {
                return Waited::Leads(lead);
            }
            let now = Instant::now();
            if now >= deadline {
                if self.take_away(slip) {
                    return Waited::TooLate;
                }
                // It is being answered.
                thread::park_timeout(SHORT);
            } else if now < sleeps_from {
                thread::yield_now();
            } else {
                thread::park_timeout(deadline - now);
                sleeps_from = now;
            }
        }
    }

    /// Leads, if nobody does and the first in the queue lets others go with it or is this one.
    fn lead_from<A: Act + 'static>(&self, slip: &Arc<Slip<A>>) -> Option<Lead<'_>> {
        let mut queue = self.lock();
        let first = queue.waiting.front()?;
        let is_first = is_same(first, slip);
        if queue.is_led || !(is_first || (slip.joins() && first.joins())) {
            return None;
        }
        if is_first && !slip.joins() {
            queue.waiting.pop_front();
        }
        Some(self.led(&mut queue))
    }

    /// Takes a slip out of the queue. False if it is no longer in it.
    pub(super) fn take_away<A: Act + 'static>(&self, slip: &Arc<Slip<A>>) -> bool {
        let mut queue = self.lock();
        let place = queue.waiting.iter().position(|other| is_same(other, slip));
        if let Some(place) = place {
            queue.waiting.remove(place);
        }
        // It may have been woken to lead.
        if !queue.is_led
            && let Some(first) = queue.waiting.front()
        {
            first.wake();
        }
        place.is_some()
    }
}

fn is_same<A: Act + 'static>(other: &Arc<dyn Waiting>, slip: &Arc<Slip<A>>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(slip))
}

/// Leads: may begin a transaction, for itself and for those whose slips it takes.
#[derive(Debug)]
pub(super) struct Lead<'d> {
    desk: &'d Desk,
    taken: Vec<Arc<dyn Waiting>>,
    /// For which of them it is acting.
    acting: Option<usize>,
    /// Something that is dropped by a panic may come to the desk, too.
    was_panicking: bool,
}

impl Lead<'_> {
    /// Lets those come who were in the last transaction and are about to ask for more: they may need this processor for
    /// it. To be called before the write lock is asked for.
    pub(super) fn let_others_come(&self) {
        let expected = self.desk.joined.load(Ordering::Relaxed);
        for _ in 0..MOST_YIELDS {
            if expected == 0 || self.desk.lock().waiting.len() >= expected {
                return;
            }
            thread::yield_now();
        }
    }

    /// Takes the slips that are there. To be called once the write lock is held: from then on it does not take long.
    ///
    /// The present is read after that: nobody is to be decided as of an instant before it came.
    pub(super) fn take(&mut self, transaction: &mut Transaction<'_>) {
        let mut queue = self.desk.lock();
        let room = MOST_TOGETHER.saturating_sub(self.taken.len());
        let joining = queue.waiting.iter().take_while(|slip| slip.joins());
        let count = joining.take(room).count();
        self.taken.extend(queue.waiting.drain(..count));
        drop(queue);
        if count > 0 {
            transaction.read_clock();
        }
    }

    /// Does what the slips that it has taken ask for, and those that come meanwhile.
    pub(super) fn act_for_others(
        &mut self,
        transaction: &mut Transaction<'_>,
        session: &Session,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < self.taken.len() {
            for (place, slip) in self.taken.iter().enumerate().skip(done) {
                self.acting = Some(place);
                let acted = slip.act(transaction, session);
                self.acting = None;
                acted?;
            }
            done = self.taken.len();
            self.take(transaction);
        }
        Ok(())
    }

    /// Whether it has taken anybody's slip.
    pub(super) fn has_others(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Lets each of those for whom it has tried to act have it done by itself.
    pub(super) fn act_for_each(&mut self, act: impl Fn(&dyn Waiting) -> Result<(), Error>) {
        while let Some(slip) = self.taken.first() {
            self.acting = Some(0);
            if let Err(error) = act(&**slip) {
                slip.fail(error);
            }
            self.acting = None;
            slip.tell();
            self.taken.remove(0);
        }
    }

    /// Tells those for whom it has acted, once that is committed.
    pub(super) fn tell_others(&mut self) {
        self.desk.joined.store(self.taken.len(), Ordering::Relaxed);
        self.taken.drain(..).for_each(|slip| slip.tell());
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Whoever does next what this thread panicked at would panic, too: it is told, and not done again.
        let panics = thread::panicking() && !self.was_panicking;
        if let Some(place) = self.acting.take().filter(|_| panics) {
            let slip = self.taken.remove(place);
            slip.fail(Error::Panicked);
            slip.tell();
        }
        let mut queue = self.desk.lock();
        // What was not told was not done.
        for slip in self.taken.drain(..).rev() {
            queue.waiting.push_front(slip);
        }
        if panics {
            // There would be nobody to receive what others do for it.
            queue.waiting.retain(|slip| !slip.is_mine());
        }
        queue.is_led = false;
        self.desk.is_led.store(false, Ordering::Relaxed);
        if let Some(first) = queue.waiting.front() {
            first.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};
    use std::time::Duration;

    use super::super::acts::Borrowed;
    use super::super::connection::Deadline;
    use super::super::{Durability, Options, SqliteStore};
    use super::*;
    use crate::clock::ManualClock;

    /// Asks for nothing, or for something that no thread can do.
    #[derive(Clone, Debug)]
    struct Asks {
        panics: bool,
    }

    impl Act for Asks {
        type Answer = ();

        fn act(&self, _: &mut Transaction<'_>, _: &Session) -> Result<(), Error> {
            assert!(!self.panics, "as it is told to");
            Ok(())
        }
    }

    impl Borrowed for Asks {
        type Owned = Self;

        fn owned(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn what_panics_is_told_and_not_done_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.db");
        let options = Options {
            path: file.clone(),
            clock: Box::new(ManualClock::new()),
            durability: Durability::default(),
            busy_deadline: Duration::from_secs(5),
            reader_count: 1,
            mode: 0o600,
            trust_filesystem: true,
            create: true,
        };
        let store = SqliteStore::open(options).unwrap();
        let session = store.open_session().unwrap();
        let ask = |panics: bool| {
            let deadline = Deadline::after(Duration::from_secs(30));
            let ask = Asks { panics };
            panic::catch_unwind(AssertUnwindSafe(|| {
                store.together(&session, deadline, &ask)
            }))
        };
        for _ in 0..20 {
            let raw = rusqlite::Connection::open(&file).unwrap();
            raw.execute_batch("BEGIN IMMEDIATE").unwrap();
            let told = thread::scope(|scope| {
                let threads: Vec<_> = (0..6)
                    .map(|number| scope.spawn(move || ask(number == 3)))
                    .collect();
                // Until all of them have come to where they wait: one leads.
                while session.desk.lock().waiting.len() < 5 {
                    thread::yield_now();
                }
                raw.execute_batch("ROLLBACK").unwrap();
                let told = threads.into_iter().map(|thread| thread.join().unwrap());
                told.collect::<Vec<_>>()
            });
            let panicked = told.iter().filter(|told| told.is_err()).count();
            assert!(panicked <= 1, "{told:?}");
            // Whoever asked for it is told, if it was another thread that panicked.
            let is_told = matches!(told[3], Err(_) | Ok(Err(Error::Panicked)));
            assert!(is_told, "{told:?}");
            let done = told
                .iter()
                .filter(|told| matches!(told, Ok(Ok(()))))
                .count();
            assert!(done >= 4, "{told:?}");
            assert!(session.desk.lock().waiting.is_empty());
            assert!(matches!(ask(false), Ok(Ok(()))));
        }
    }
}
