//! The time from opening a file to closing it, in one process.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Options;
use super::connection::{Pooled, Pools, Setup, flags, prepare, waiting_until};
use super::file_control::has_moved;
use super::lock_file::LockFile;
use super::place::{Place, Watch};
use super::schema::{is_busy, migrate};
use super::sweep::SWEEP_EVERY;
use super::transaction::Access;
use super::wakes::Wakes;
use crate::calendar::LimitId;
use crate::clock::{Timeline, Timestamp, elapsed_at};
use crate::error::Error;
use crate::store::Few;

#[derive(Debug)]
pub(super) struct Session {
    /// Tells this session from every other of this process and of those forked from it.
    pub(super) number: u64,
    pub(super) pid: u32,
    pub(super) lock_file: Arc<LockFile>,
    pub(super) watch: Watch,
    pub(super) wakes: Wakes,
    pools: Arc<Pools>,
    /// How many calls are under way.
    calls: AtomicUsize,
    /// Whether its files were found to be lost, so that no further call may use it.
    is_lost: AtomicBool,
    /// What was last added to the time since boot to give an instant.
    offset_ns: AtomicI64,
    /// The owner that this process is, once it has booked something; 0 before.
    owner: AtomicI64,
    /// Held by the thread that makes this process an owner.
    pub(super) entering: Mutex<()>,
    bookings: AtomicI64,
    /// The bookings that will be used at their instants, the earliest first.
    accepted: Mutex<BinaryHeap<Reverse<(Timestamp, i64)>>>,
    charged: AtomicU32,
    written: AtomicU32,
    /// The limit that was last swept in passing.
    swept: AtomicI64,
}

/// How a session is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening<'o> {
    pub(super) create: bool,
    pub(super) deadline: Instant,
    /// What stood at the path when the former session was opened, if that had to be left.
    pub(super) left: Option<&'o Watch>,
}

/// All sessions of this process and, in a forked child, those that it inherited.
static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());

impl Session {
    /// Opens the file, makes it if it is not there and that is wanted, and migrates it. All of this
    /// happens under the lock file's guard: SQLite reports spurious locks to processes that create or
    /// switch a database to WAL at the same moment, whatever their busy timeout.
    pub(super) fn open(
        place: &Place,
        options: &Options,
        opening: Opening<'_>,
    ) -> Result<Arc<Self>, Error> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let asked = Instant::now();
        let busy = || Error::Busy {
            file: place.database.clone(),
            waited: asked.elapsed(),
        };
        if !opening.create && !place.database.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(place.failed("opening it", missing));
        }
        let lock_file = LockFile::open(&place.lock, options.mode)
            .map_err(|source| place.failed("opening its lock file", source))?;
        let guard = lock_file
            .guard_open(opening.deadline)
            .map_err(|source| place.failed("locking its lock file", source))?
            .ok_or_else(busy)?;
        if opening.create {
            place.create(options.mode)?;
        }
        let _under_way = UnderWay::new();
        Self::close_lost(place, opening.deadline)?;
        if let Some(left) = opening.left {
            left.remove_orphans(place)?;
        }
        let setup = Setup {
            durability: options.durability,
            reader_count: options.reader_count,
        };
        let connection = waiting_until(opening.deadline, || -> Result<Connection, Error> {
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
        drop(guard);
        let session = Arc::new(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            pid: std::process::id(),
            pools: Arc::new(Pools::new(place, &setup, connection)),
            wakes: lock_file.wakes(),
            lock_file: Arc::new(lock_file),
            watch,
            calls: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
            offset_ns: AtomicI64::new(i64::MIN),
            owner: AtomicI64::new(0),
            entering: Mutex::new(()),
            bookings: AtomicI64::new(0),
            accepted: Mutex::default(),
            charged: AtomicU32::new(0),
            written: AtomicU32::new(0),
            // Processes that live shortly shall not all sweep the same limits.
            swept: AtomicI64::new(fastrand::i64(0..1_000_000)),
        });
        let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Closes the sessions of this process that have lost the files at this place, whichever limiter they
    /// belong to.
    ///
    /// Within a process SQLite keeps one shared memory for a database. As long as one old connection is
    /// open, a new one would share the old memory, which no other process sees, but open the new WAL.
    fn close_lost(place: &Place, deadline: Instant) -> Result<(), Error> {
        let asked = Instant::now();
        loop {
            let lost: Vec<Arc<Self>> = SESSIONS
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .filter_map(Weak::upgrade)
                .filter(|session| session.is_ours() && session.watch.is_of(place))
                .filter(|session| !session.watch.clone().look())
                .collect();
            let mut in_use = false;
            for session in &lost {
                session.is_lost.store(true, Ordering::SeqCst);
                if session.calls.load(Ordering::SeqCst) == 0 {
                    session.pools.close(&session.watch);
                } else {
                    in_use = true;
                }
            }
            if !in_use {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy {
                    file: place.database.clone(),
                    waited: asked.elapsed(),
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether this process opened the session, and did not inherit it through `fork`.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// In a forked child: closes all that was inherited. False if that cannot be done.
    ///
    /// SQLite counts the locks of a process by file. As long as it counts those of the parent, a new
    /// connection of the child believes them to be its own and asks the kernel for none; so all
    /// inherited connections to the file have to be closed before one is opened. That is harmless (the
    /// kernel's locks are not inherited) provided that none was in the middle of a transaction, and
    /// that the child does not take itself for the last user and remove the WAL.
    pub(super) fn close_inherited() -> bool {
        let pid = std::process::id();
        let is_child = PID.load(Ordering::SeqCst) != pid;
        if is_child && UNDER_WAY.load(Ordering::SeqCst) != 0 {
            return false;
        }
        let Some(mut sessions) = lock_sessions() else {
            return false;
        };
        let mut all_closed = true;
        for session in sessions.iter().filter_map(Weak::upgrade) {
            if session.is_ours() {
                continue;
            }
            if session.calls.load(Ordering::SeqCst) == 0 {
                session.pools.close_without_checkpoint();
                session.lock_file.close();
            } else {
                all_closed = false;
            }
        }
        if all_closed {
            PID.store(pid, Ordering::SeqCst);
            sessions.retain(|session| session.upgrade().is_some_and(|session| session.is_ours()));
        }
        all_closed
    }

    /// Says that a call is under way, until the answer is dropped. `None` if the files are lost.
    pub(super) fn call(&self) -> Option<Call<'_>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let call = Call(self);
        (!self.is_lost.load(Ordering::SeqCst)).then_some(call)
    }

    pub(super) fn link(
        &self,
        access: Access,
        place: &Place,
        deadline: Instant,
    ) -> Result<Pooled, Error> {
        match access {
            Access::Read => self.pools.reader(place, &self.watch, deadline),
            Access::Look | Access::Write => self.pools.writer(place, &self.watch, deadline),
        }
    }

    /// Takes note of how instants follow the clock.
    pub(super) fn saw(&self, timeline: &Timeline) {
        self.offset_ns.store(timeline.offset_ns, Ordering::Relaxed);
    }

    /// What the clock shows at an instant, as far as this session knows.
    pub(super) fn elapsed_at(&self, at: Timestamp) -> Option<Duration> {
        let offset_ns = self.offset_ns.load(Ordering::Relaxed);
        (offset_ns != i64::MIN).then(|| elapsed_at(at, offset_ns))
    }

    pub(super) fn owner(&self) -> Option<i64> {
        Some(self.owner.load(Ordering::SeqCst)).filter(|owner| *owner != 0)
    }

    pub(super) fn set_owner(&self, owner: i64) {
        self.owner.store(owner, Ordering::SeqCst);
    }

    pub(super) fn next_booking(&self) -> i64 {
        self.bookings.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes note of a booking that will be used at its instant.
    pub(super) fn accepted(&self, at: Timestamp, number: i64) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.push(Reverse((at, number)));
    }

    /// The numbers of accepted bookings whose instants have come, not too many at a time.
    pub(super) fn used_bookings(&self, now: Timestamp) -> Few<i64> {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = Few::new();
        while used.len() < MOST_USED
            && let Some(next) = accepted.peek_mut()
            && next.0.0 <= now
        {
            used.push(PeekMut::pop(next).0.1);
        }
        used
    }

    /// If it is time to sweep: the limit after which to go on.
    pub(super) fn sweep_turn(&self) -> Option<LimitId> {
        let charged = self.charged.fetch_add(1, Ordering::Relaxed);
        charged
            .is_multiple_of(SWEEP_EVERY)
            .then(|| LimitId(self.swept.load(Ordering::Relaxed)))
    }

    /// Whether it is time to look at the length of the WAL.
    pub(super) fn is_wal_due(&self) -> bool {
        let written = self.written.fetch_add(1, Ordering::Relaxed);
        written % WAL_EVERY == WAL_EVERY - 1
    }

    pub(super) fn swept(&self, limit: LimitId) {
        self.swept.store(limit.0, Ordering::Relaxed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _under_way = UnderWay::new();
        if self.is_ours() {
            self.pools.close(&self.watch);
        } else if self.calls.load(Ordering::SeqCst) == 0 {
            self.pools.close_without_checkpoint();
        } else {
            // Inherited in the middle of a transaction of another thread: never to be closed.
            std::mem::forget(Arc::clone(&self.pools));
        }
    }
}

/// The process that last made sure that nothing inherited is open.
static PID: AtomicU32 = AtomicU32::new(0);

/// How many threads are opening or closing a session.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The list, unless a thread of the parent held its lock at the moment of the fork, for ever.
fn lock_sessions() -> Option<MutexGuard<'static, Vec<Weak<Session>>>> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match SESSIONS.try_lock() {
            Ok(sessions) => return Some(sessions),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::yield_now(),
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

/// How many bookings that were used are forgotten with each new one, at most.
const MOST_USED: usize = 64;

/// One writing transaction in this many looks at the length of the WAL.
const WAL_EVERY: u32 = 64;

/// How long the first open of a limiter waits for others who open.
pub(super) const LONGEST_OPEN: Duration = Duration::from_secs(30);
