//! The time from opening a file to closing it, in one process.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Options;
use super::bookings::Accepted;
use super::checkpoints::Checkpoints;
use super::connection::{Deadline, Pooled, Pools, Setup, flags, prepare, waiting_until};
use super::crowd::Crowd;
use super::desk::Desk;
use super::dropped::PutOff;
use super::file_control::has_moved;
use super::generation::Generation;
use super::lock_file::LockFile;
use super::moving::Page;
use super::place::{Place, Watch};
use super::record::{note_opened, remove_orphans};
use super::refusals::Refusals;
use super::schema::{is_busy, migrate};
use super::sweep::{SWEEP_EVERY, Turn};
use super::transaction::Access;
use super::wakes::Wakes;
#[cfg(target_os = "linux")]
use super::wakes::{sleep_on, wake_all_on};
use crate::clock::Clock;
use crate::error::Error;
use crate::process::Mark;
use crate::store::Claim;
use crate::store::moves::Moves;
#[cfg(target_os = "linux")]
use crate::store::stop::LONGEST_SLEEP;
use crate::store::stop::Stop;

#[derive(Debug)]
pub(super) struct Session {
    /// Tells this session from every other of this process and of those forked from it.
    pub(super) number: u64,
    pub(super) process: Mark,
    pub(super) lock_file: Arc<LockFile>,
    pub(super) watch: Watch,
    pub(super) wakes: Wakes,
    pub(super) generation: Generation,
    pub(super) moves: Moves,
    pub(super) crowd: Crowd,
    pub(super) refusals: Refusals,
    pools: Arc<Pools>,
    /// How many calls are under way.
    calls: AtomicUsize,
    /// Whether its files were found to be lost, so that no further call may use it.
    is_lost: AtomicBool,
    /// The owner that this process is, once it has booked something; 0 before.
    owner: AtomicI64,
    /// Held by the thread that makes this process an owner.
    pub(super) entering: Mutex<()>,
    bookings: AtomicI64,
    pub(super) accepted: Arc<Accepted>,
    charged: AtomicU32,
    pub(super) checkpoints: Checkpoints,
    pub(super) put_off: PutOff,
    pub(super) desk: Desk,
    /// What was last swept in passing.
    swept: Mutex<Turn>,
}

/// How a session is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub(super) create: bool,
    pub(super) deadline: Deadline,
}

/// All sessions of this process; in a child that was forked and has not closed them yet, those of its parent. One leaves
/// the list only once it is closed.
static SESSIONS: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Listed {
    number: u64,
    database: PathBuf,
    session: Weak<Session>,
}

impl Session {
    /// Opens the file, makes it if it is not there and that is wanted, and migrates it. All of this
    /// happens under the lock file's guard: SQLite reports spurious locks to processes that create or
    /// switch a database to WAL at the same moment, whatever their busy timeout.
    pub(super) fn open(
        place: &Place,
        options: &Options,
        opening: Opening,
    ) -> Result<Arc<Self>, Error> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let busy = || opening.deadline.busy(place);
        place.check_kind(opening.create)?;
        // From here until the session is in the list, a child that is forked could not close what is open.
        let _under_way = UnderWay::new();
        let lock_file = LockFile::open(&place.lock, options.mode)
            .map_err(|source| place.failed("opening its lock file", source))?;
        let guard = loop {
            let guard = lock_file
                .guard_open(opening.deadline.at)
                .map_err(|source| place.failed("locking its lock file", source))?
                .ok_or_else(busy)?;
            if Self::close_lost(place) {
                break guard;
            }
            // Other processes need not wait for the calls of this one.
            drop(guard);
            if opening.deadline.has_passed() {
                return Err(busy());
            }
            thread::sleep(NAP);
        };
        let page = lock_file.page().map_err(|source| {
            if source.kind() == ErrorKind::NotFound {
                place.moved()
            } else {
                place.failed("mapping its lock file", source)
            }
        })?;
        remove_orphans(&lock_file, place)?;
        if opening.create {
            place.create(options.mode)?;
        }
        let setup = Setup {
            durability: options.durability,
            reader_count: options.reader_count,
        };
        let connection = waiting_until(opening.deadline.at, || -> Result<Connection, Error> {
            let failed = |error| place.sqlite(error);
            let connection =
                Connection::open_with_flags(&place.database, flags()).map_err(failed)?;
            prepare(&connection, setup.durability).map_err(failed)?;
            migrate(&connection, place)?;
            Ok(connection)
        })
        .map_err(|error| match error {
            Error::Sqlite { source, .. } if is_busy(&source) => busy(),
            error => error,
        })?;
        let watch = Watch::new(place)?;
        if has_moved(&connection) || !watch.has_lock_file(lock_file.inode()) {
            return Err(place.moved());
        }
        note_opened(&lock_file, place);
        drop(guard);
        let pools = Pools::new(place, &setup, connection)
            .map_err(|source| place.failed("starting a thread for its connections", source))?;
        let session = Arc::new(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            process: crate::process::mark(),
            pools: Arc::new(pools),
            wakes: Wakes::new(page.clone()),
            generation: Generation::new(page.clone()),
            moves: Moves::new(Page(page.clone())),
            crowd: Crowd::new(page),
            refusals: Refusals::default(),
            lock_file: Arc::new(lock_file),
            watch,
            calls: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
            owner: AtomicI64::new(0),
            entering: Mutex::new(()),
            bookings: AtomicI64::new(0),
            accepted: Arc::default(),
            charged: AtomicU32::new(0),
            checkpoints: Checkpoints::default(),
            put_off: PutOff::default(),
            desk: Desk::default(),
            swept: Mutex::new(Turn::anywhere()),
        });
        lock(&SESSIONS).push(Listed {
            number: session.number,
            database: place.database.clone(),
            session: Arc::downgrade(&session),
        });
        Ok(session)
    }

    /// Closes the sessions of this process that have lost the files at this place, whichever limiter they
    /// belong to. False if calls on them are under way; no new ones begin.
    ///
    /// Within a process SQLite keeps one shared memory for a database. As long as one old connection is
    /// open, a new one would share the old memory, which no other process sees, but open the new WAL.
    fn close_lost(place: &Place) -> bool {
        let all = Self::all_at(place);
        let is_lost = |session: &&Arc<Self>| session.is_ours() && !session.watch.clone().look();
        let lost: Vec<&Arc<Self>> = all.iter().filter(is_lost).collect();
        for session in &lost {
            session.is_lost.store(true, Ordering::SeqCst);
        }
        if lost.iter().any(|session| session.is_in_use()) {
            return false;
        }
        // They share a WAL, which whoever of them closes last copies into the database. The one that has
        // worked last knows whether that may be.
        let may_checkpoint = lost.iter().any(|session| session.may_checkpoint());
        for session in lost {
            session.pools.close(may_checkpoint);
        }
        true
    }

    /// The sessions of this process at a place. Those of other files are left alone: whoever drops one of them
    /// meanwhile is to find it closed.
    fn all_at(place: &Place) -> Vec<Arc<Self>> {
        // Collected, so that the list is no longer locked when one of them is dropped: that locks it.
        lock(&SESSIONS)
            .iter()
            .filter(|listed| listed.database == place.database)
            .filter_map(|listed| listed.session.upgrade())
            .collect()
    }

    fn may_checkpoint(&self) -> bool {
        self.pools.may_checkpoint(&self.watch)
    }

    /// Closes all connections that nobody uses.
    pub(super) fn close(&self) {
        self.pools.close(self.may_checkpoint());
    }

    fn is_in_use(&self) -> bool {
        self.calls.load(Ordering::SeqCst) != 0
    }

    /// Whether this process opened the session, and did not inherit it through `fork`.
    pub(super) fn is_ours(&self) -> bool {
        self.process == crate::process::mark()
    }

    /// In a forked child: closes all that was inherited. False if that cannot be done.
    ///
    /// SQLite counts the locks of a process by file. As long as it counts those of the parent, a new
    /// connection of the child believes them to be its own and asks the kernel for none; so all
    /// inherited connections to the file have to be closed before one is opened. That is harmless (the
    /// kernel's locks are not inherited) provided that no thread of the parent was inside SQLite, whatever
    /// file it had open there, and that the child does not take itself for the last user and remove the WAL.
    pub(super) fn close_inherited() -> bool {
        let mark = crate::process::mark().as_u32();
        // Before the mark: another thread of this child may have closed everything and be opening.
        let under_way = UNDER_WAY.load(Ordering::SeqCst);
        match MARK.compare_exchange(0, mark, Ordering::SeqCst, Ordering::SeqCst) {
            // Nothing was ever opened.
            Ok(_) => return true,
            Err(last) if last == mark => return true,
            Err(_) if under_way != 0 => return false,
            Err(_) => {}
        }
        let Some(mut sessions) = lock_until(&SESSIONS, Instant::now() + LONGEST_LOCK) else {
            return false;
        };
        if MARK.load(Ordering::SeqCst) == mark {
            return true;
        }
        let inherited: Option<Vec<Arc<Self>>> = sessions
            .iter()
            .map(|listed| {
                listed
                    .session
                    .upgrade()
                    .filter(|session| !session.is_in_use())
            })
            .collect();
        let Some(inherited) = inherited else {
            return false;
        };
        for session in &inherited {
            session.pools.close_inherited();
            session.lock_file.close();
        }
        sessions.clear();
        MARK.store(mark, Ordering::SeqCst);
        // Before the sessions, which lock the list when they are dropped.
        drop(sessions);
        true
    }

    /// Says that a call is under way, until the answer is dropped. `None` if the files are lost.
    pub(super) fn call(&self) -> Option<Call<'_>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let call = Call(self);
        (!self.is_lost.load(Ordering::SeqCst)).then_some(call)
    }

    /// Says that a connection was opened for the caller's own use: the files are in use until it is given back.
    pub(super) fn lends_connection(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn gives_connection_back(&self) {
        self.calls.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn link(
        &self,
        access: Access,
        place: &Place,
        deadline: Deadline,
    ) -> Result<Pooled, Error> {
        match access {
            Access::Read => self.pools.reader(place, &self.watch, deadline),
            Access::Look | Access::Write => self.pools.writer(place, &self.watch, deadline),
        }
    }

    pub(super) fn owner(&self) -> Option<i64> {
        Some(self.owner.load(Ordering::SeqCst)).filter(|owner| *owner != 0)
    }

    pub(super) fn set_owner(&self, owner: i64) {
        self.owner.store(owner, Ordering::SeqCst);
    }

    /// Whether all of these owners are, as far as their locks tell. Who has left its lock in another lock file is
    /// taken for dead here, and looked at again in a transaction.
    pub(super) fn are_alive(&self, owners: &[i64]) -> bool {
        owners
            .iter()
            .all(|owner| self.lock_file.is_alive(*owner).unwrap_or(false))
    }

    /// Sleeps until the instant of a claim, until what is booked may have been moved, or until waiting is stopped.
    #[cfg(target_os = "linux")]
    pub(super) fn sleep_until_moved(&self, claim: &Claim, clock: &dyn Clock, stop: &Stop) {
        let Some((word, seen)) = self.moves.to_sleep_on(claim.moves) else {
            return stop.sleep_until(clock, claim.wake_at);
        };
        let _sleeper = stop.sleeps_on(&self.moves);
        loop {
            let left = claim.wake_at.saturating_sub(clock.elapsed());
            let is_over =
                left.is_zero() || stop.is_said() || sleep_on(word, seen, left.min(LONGEST_SLEEP));
            if is_over {
                return;
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn sleep_until_moved(&self, claim: &Claim, clock: &dyn Clock, stop: &Stop) {
        stop.sleep_until(clock, claim.wake_at);
    }

    /// Lets all who have booked look whether that was moved.
    pub(super) fn wake_all_who_booked(&self) {
        #[cfg(target_os = "linux")]
        if let Some((word, _)) = self.moves.to_sleep_on(self.moves.seen()) {
            wake_all_on(word);
        }
    }

    pub(super) fn next_booking(&self) -> i64 {
        self.bookings.fetch_add(1, Ordering::Relaxed)
    }

    /// If it is time to sweep: where to go on.
    pub(super) fn sweep_turn(&self) -> Option<Turn> {
        let charged = self.charged.fetch_add(1, Ordering::Relaxed);
        charged
            .is_multiple_of(SWEEP_EVERY)
            .then(|| *lock(&self.swept))
    }

    pub(super) fn swept(&self, next: Turn) {
        *lock(&self.swept) = next;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let under_way = UNDER_WAY.load(Ordering::SeqCst);
        let _under_way = UnderWay::new();
        if self.is_ours() {
            self.close();
        } else if MARK.load(Ordering::SeqCst) != crate::process::mark().as_u32() {
            if under_way != 0 || self.is_in_use() {
                // It stays in the list as one that could not be closed.
                return std::mem::forget(Arc::clone(&self.pools));
            }
            self.pools.close_inherited();
        }
        if let Some(mut sessions) = lock_until(&SESSIONS, Instant::now() + LONGEST_LOCK) {
            sessions.retain(|listed| listed.number != self.number);
        }
    }
}

/// The process that last made sure that nothing inherited is open.
static MARK: AtomicU32 = AtomicU32::new(0);

/// How many threads are opening or closing connections outside of calls. A child that is forked meanwhile
/// can use nothing that it inherits.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
pub(super) struct UnderWay;

impl UnderWay {
    pub(super) fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock, unless another thread keeps it for too long: for ever, if that is a thread of the parent that
/// held it when this process was forked.
pub(super) fn lock_until<T>(mutex: &Mutex<T>, deadline: Instant) -> Option<MutexGuard<'_, T>> {
    locked_until(|| mutex.try_lock(), deadline)
}

/// The same of any lock.
pub(super) fn locked_until<G>(
    try_lock: impl Fn() -> Result<G, TryLockError<G>>,
    deadline: Instant,
) -> Option<G> {
    loop {
        match try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_micros(50));
            }
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call<'s>(&'s Session);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long a thread sleeps before it looks whether calls have ended.
const NAP: Duration = Duration::from_micros(200);

/// How long the list of sessions can be locked by somebody who lives.
const LONGEST_LOCK: Duration = Duration::from_secs(1);

/// How long the first open of a limiter waits for others who open.
pub(super) const LONGEST_OPEN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limiter;

    /// A limiter that one thread drops while another opens a file has to be closed when it is dropped.
    #[test]
    fn whoever_opens_a_file_holds_on_to_no_session_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| Limiter::open(directory.path().join(name)).unwrap();
        let limiters = ["a.db", "b.db", "b.db"].map(open);
        let at = |name: &str| Place::new(&directory.path().join(name)).unwrap();
        assert_eq!(Session::all_at(&at("a.db")).len(), 1);
        assert_eq!(Session::all_at(&at("b.db")).len(), 2);
        assert_eq!(Session::all_at(&at("c.db")).len(), 0);
        drop(limiters);
        assert_eq!(Session::all_at(&at("b.db")).len(), 0);
    }
}
