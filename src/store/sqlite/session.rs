//! The time from opening a file to closing it, in one process.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Options;
use super::connection::{Pooled, Pools, Setup, flags, prepare, waiting_until};
use super::file_control::has_moved;
use super::lock_file::LockFile;
use super::place::{Place, Watch};
use super::schema::migrate;
use super::sweep::SWEEP_EVERY;
use super::transaction::Access;
use crate::calendar::LimitId;
use crate::error::Error;

#[derive(Debug)]
pub(super) struct Session {
    /// Tells this session from every other of this process and of those forked from it.
    pub(super) number: u64,
    pid: u32,
    pub(super) lock_file: LockFile,
    pub(super) watch: Watch,
    pools: Pools,
    /// The owner that this process is, once it has booked something.
    owner: Mutex<Option<i64>>,
    bookings: AtomicI64,
    charged: AtomicU32,
    /// The limit that was last swept in passing.
    swept: AtomicI64,
}

impl Session {
    /// Opens the file, makes it if it is not there and `create` allows that, and migrates it. All of this
    /// happens under the lock file's guard: SQLite reports spurious locks to processes that create or
    /// switch a database to WAL at the same moment, whatever their busy timeout.
    pub(super) fn open(place: &Place, options: &Options, create: bool) -> Result<Self, Error> {
        static SESSIONS: AtomicU64 = AtomicU64::new(1);
        let asked = Instant::now();
        // Opening takes as long as it takes those in front; nobody can be refused for that.
        let deadline = asked + options.busy_deadline.max(LONGEST_OPEN);
        if !create && !place.database.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(place.failed("opening it", missing));
        }
        let lock_file = LockFile::open(&place.lock, options.mode)
            .map_err(|source| place.failed("opening its lock file", source))?;
        let guard = lock_file
            .guard_open(deadline)
            .map_err(|source| place.failed("locking its lock file", source))?
            .ok_or_else(|| Error::Busy {
                file: place.database.clone(),
                waited: asked.elapsed(),
            })?;
        if create {
            place.create(options.mode)?;
        }
        let setup = Setup {
            durability: options.durability,
            reader_count: options.reader_count,
        };
        let connection = waiting_until(deadline, || -> Result<Connection, Error> {
            let failed = |error| place.sqlite(error);
            let connection =
                Connection::open_with_flags(&place.database, flags()).map_err(failed)?;
            prepare(&connection, setup.durability).map_err(failed)?;
            migrate(&connection, place)?;
            Ok(connection)
        })?;
        let watch = Watch::new(place)?;
        if has_moved(&connection) || !watch.has_lock_file(lock_file.inode()) {
            return Err(place.moved());
        }
        drop(guard);
        Ok(Self {
            number: SESSIONS.fetch_add(1, Ordering::Relaxed),
            pid: std::process::id(),
            pools: Pools::new(place, &setup, connection),
            lock_file,
            watch,
            owner: Mutex::new(None),
            bookings: AtomicI64::new(0),
            charged: AtomicU32::new(0),
            // Processes that live shortly shall not all sweep the same limits.
            swept: AtomicI64::new(fastrand::i64(0..1_000_000)),
        })
    }

    /// Whether this process opened the session, and did not inherit it through `fork`.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Lets go of a session that belongs to the parent process, without closing any of its connections.
    pub(super) fn disown(session: Arc<Self>) {
        session.lock_file.close();
        std::mem::forget(session);
    }

    pub(super) fn link(
        &self,
        access: Access,
        place: &Place,
        deadline: Instant,
    ) -> Result<Pooled, Error> {
        match access {
            Access::Read => self.pools.reader(place, deadline),
            Access::Write => self.pools.writer(place, deadline),
        }
    }

    pub(super) fn lock_owner(&self) -> MutexGuard<'_, Option<i64>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_booking(&self) -> i64 {
        self.bookings.fetch_add(1, Ordering::Relaxed)
    }

    /// If it is time to sweep: the limit after which to go on.
    pub(super) fn sweep_turn(&self) -> Option<LimitId> {
        let charged = self.charged.fetch_add(1, Ordering::Relaxed);
        charged
            .is_multiple_of(SWEEP_EVERY)
            .then(|| LimitId(self.swept.load(Ordering::Relaxed)))
    }

    pub(super) fn swept(&self, limit: LimitId) {
        self.swept.store(limit.0, Ordering::Relaxed);
    }
}

/// How long an open waits for others who open, at the least.
const LONGEST_OPEN: Duration = Duration::from_secs(30);
