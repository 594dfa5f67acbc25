//! Connections to the file: how they are set up, pooled, and how they wait for locks.

use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use scheduled_thread_pool::ScheduledThreadPool;

use super::checkpoints::{WAL_BYTES_KEPT, note_pages};
use super::memo::Memo;
use super::place::{Place, Watch};
use super::session::UnderWay;
use crate::error::Error;

/// How safe a charge is when the power fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What was acknowledged in the last moments before a power failure can be forgotten; the file is
    /// never damaged, and no crash of a process or of all of them loses anything. SQLite's
    /// `synchronous=NORMAL`.
    #[default]
    Normal,
    /// Nothing that was acknowledged is forgotten. Each acquisition then waits for the disk: for windows
    /// of minutes and budgets of a day, that is what you want. SQLite's `synchronous=FULL`.
    Full,
}

/// How connections are set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) durability: Durability,
    pub(super) reader_count: u32,
}

/// A connection, what it remembers of the file, and its watch over it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) memo: Memo,
    pub(super) watch: Option<Watch>,
    /// A transaction could not be ended: nothing more can be done with this connection.
    pub(super) stuck: bool,
}

impl Link {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            memo: Memo::default(),
            watch: None,
            stuck: false,
        }
    }
}

/// How long a caller that needed a new connection waits until its pool is at rest again.
const MAKING_PATIENCE: Duration = Duration::from_millis(20);

/// How long a thread takes at most, as a rule, to find that it has no more to do.
const LYING_DOWN: Duration = Duration::from_micros(100);

/// What the pages of a connection's cache may take, in KiB.
const CACHE_KIB: i64 = 4 << 10;

/// Each statement of this crate, and room for those that depend on nothing but the schema.
const STATEMENTS: usize = 256;

pub(super) fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
}

/// Sets up a connection, the busy handler first: each statement after it may meet a lock.
pub(super) fn prepare(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.busy_handler(Some(wait_for_lock))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(
        None,
        "synchronous",
        match durability {
            Durability::Normal => "NORMAL",
            Durability::Full => "FULL",
        },
    )?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.wal_hook(Some(note_pages));
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Until when a call waits for locks of whatever kind, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    asked: Instant,
    pub(super) at: Instant,
}

impl Deadline {
    pub(super) fn after(patience: Duration) -> Self {
        let asked = Instant::now();
        Self {
            asked,
            at: asked + patience,
        }
    }

    pub(super) fn has_passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// What a caller is told who could not have a lock in time.
    pub(super) fn busy(self, place: &Place) -> Error {
        Error::Busy {
            file: place.database.clone(),
            waited: self.asked.elapsed(),
        }
    }
}

thread_local! {
    static LOCK_DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets the statements of this thread wait for locks until `deadline`, while `act` runs.
pub(super) fn waiting_until<T>(deadline: Instant, act: impl FnOnce() -> T) -> T {
    struct Reset(Option<Instant>);
    impl Drop for Reset {
        fn drop(&mut self) {
            LOCK_DEADLINE.set(self.0);
        }
    }
    let _reset = Reset(LOCK_DEADLINE.replace(Some(deadline)));
    act()
}

/// How often a thread gives way to others before it sleeps.
const YIELDS: i32 = 8;

/// The longest that a thread sleeps before it asks for a lock again.
const LONGEST_NAP_US: u64 = 1_000;

/// SQLite's own busy handler sleeps up to 100 ms at a time, and those who come later overtake. This one
/// yields first, then sleeps for short, random times that grow to a millisecond.
fn wait_for_lock(attempt: i32) -> bool {
    let Some(deadline) = LOCK_DEADLINE.get() else {
        return false;
    };
    nap_until(deadline, attempt)
}

/// How long a connection of the caller's own waits for a lock.
const CALLERS_PATIENCE: Duration = Duration::from_secs(5);

/// The same for a connection of the caller's own, where nobody says until when: the time counts from the first
/// attempt.
pub(super) fn wait_for_lock_of_caller(attempt: i32) -> bool {
    thread_local! {
        static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    if attempt == 0 {
        DEADLINE.set(Some(Instant::now() + CALLERS_PATIENCE));
    }
    DEADLINE
        .get()
        .is_some_and(|deadline| nap_until(deadline, attempt))
}

/// Lets a moment go by before the next attempt. False if there is to be none.
fn nap_until(deadline: Instant, attempt: i32) -> bool {
    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
        return false;
    };
    if attempt < YIELDS {
        thread::yield_now();
    } else {
        let longest = (20_u64 << (attempt - YIELDS).clamp(0, 10)).min(LONGEST_NAP_US);
        let nap = Duration::from_micros(fastrand::u64(longest / 4..=longest));
        thread::sleep(nap.min(left));
    }
    true
}

/// A connection that waits to be pooled.
type Spare = Arc<Mutex<Option<Link>>>;

/// What a pool does not tell of the connections that it makes.
#[derive(Debug, Default)]
struct Making {
    /// How many were begun, and how many of them are over.
    begun: AtomicUsize,
    over: AtomicUsize,
    /// Why the last one could not be made, if it could not.
    error: Mutex<Option<rusqlite::Error>>,
}

impl Making {
    fn set_error(&self, error: Option<rusqlite::Error>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn take_error(&self) -> Option<rusqlite::Error> {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Waits a moment for connections that are being made, also those that nobody needs any more, and for
    /// their thread to lie down.
    fn settle(&self) {
        let deadline = Instant::now() + MAKING_PATIENCE;
        while self.over.load(Ordering::SeqCst) != self.begun() && Instant::now() < deadline {
            thread::yield_now();
        }
        thread::sleep(LYING_DOWN);
    }
}

/// Says that a connection is being made, until it is dropped.
struct Made {
    making: Arc<Making>,
    _under_way: UnderWay,
}

impl Made {
    fn begin(making: &Arc<Making>) -> Self {
        making.begun.fetch_add(1, Ordering::SeqCst);
        Self {
            making: Arc::clone(making),
            _under_way: UnderWay::new(),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.making.over.fetch_add(1, Ordering::SeqCst);
    }
}

/// A pool reports only that it has no connection; this keeps the reason.
#[derive(Debug)]
struct KeepError(Arc<Making>);

impl r2d2::HandleError<rusqlite::Error> for KeepError {
    fn handle_error(&self, error: rusqlite::Error) {
        self.0.set_error(Some(error));
    }
}

/// Makes the connections of one role for a pool.
#[derive(Debug)]
pub(super) struct LinkManager {
    sqlite: SqliteConnectionManager,
    spare: Spare,
    making: Arc<Making>,
    threads: Threads,
}

fn take_spare(spare: &Spare) -> Option<Link> {
    spare.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl ManageConnection for LinkManager {
    // Boxed, because a pool moves it with every call.
    type Connection = Box<Link>;
    type Error = rusqlite::Error;

    fn connect(&self) -> rusqlite::Result<Box<Link>> {
        // r2d2 calls this on a thread of its own, outside of any call, and locks the pool after that. With
        // one thread, a job that stands behind is done once that is over.
        let made = Made::begin(&self.making);
        let link = match take_spare(&self.spare) {
            Some(link) => Ok(Box::new(link)),
            None => self.sqlite.connect().map(Link::new).map(Box::new),
        };
        if link.is_ok() {
            self.making.set_error(None);
        }
        self.threads.0.execute(move || drop(made));
        link
    }

    fn is_valid(&self, _: &mut Box<Link>) -> rusqlite::Result<()> {
        Ok(())
    }

    fn has_broken(&self, link: &mut Box<Link>) -> bool {
        link.stuck
    }
}

pub(super) type Pooled = r2d2::PooledConnection<LinkManager>;

/// The connections of one process.
///
/// SQLite admits one writer at a time, and threads that queue for one connection wait for each other
/// without touching the file, whereas connections of their own would poll for its lock: hence one
/// connection that writes, and several that read beside it. DESIGN.md has the measurement.
#[derive(Debug)]
pub(super) struct Pools {
    writer: Pool,
    readers: Pool,
    /// The connection that opened the file, for whoever writes first.
    first: Spare,
    threads: Threads,
}

/// The thread on which r2d2 opens connections.
#[derive(Clone)]
struct Threads(Arc<ScheduledThreadPool>);

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

#[derive(Debug)]
struct Pool {
    links: r2d2::Pool<LinkManager>,
    making: Arc<Making>,
}

impl Pools {
    pub(super) fn new(place: &Place, setup: &Setup, first: Connection) -> io::Result<Self> {
        // r2d2 opens connections on a thread of this pool, which sleeps for the rest of its life: with
        // no idle timeout and no lifetime, r2d2 schedules nothing else.
        //
        // It panics where the system makes no more threads, and has no other way to say so.
        let threads = catch_unwind(|| ScheduledThreadPool::new(1))
            .map(|threads| Threads(Arc::new(threads)))
            .map_err(|_| io::Error::other("the system makes no more threads"))?;
        let pool = |size: u32, spare: Spare, read_only: bool| {
            let durability = setup.durability;
            let sqlite = SqliteConnectionManager::file(&place.database)
                .with_flags(flags())
                .with_init(move |connection| {
                    let deadline = Instant::now() + Duration::from_secs(5);
                    waiting_until(deadline, || prepare(connection, durability))?;
                    connection.pragma_update(None, "query_only", read_only)
                });
            let making = Arc::new(Making::default());
            let links = r2d2::Pool::builder()
                .max_size(size)
                .min_idle(Some(0))
                .idle_timeout(None)
                .max_lifetime(None)
                .test_on_check_out(false)
                .thread_pool(Arc::clone(&threads.0))
                .error_handler(Box::new(KeepError(Arc::clone(&making))))
                .build_unchecked(LinkManager {
                    sqlite,
                    spare,
                    making: Arc::clone(&making),
                    threads: threads.clone(),
                });
            Pool { links, making }
        };
        let first: Spare = Arc::new(Mutex::new(Some(Link::new(first))));
        Ok(Self {
            writer: pool(1, Arc::clone(&first), false),
            readers: pool(setup.reader_count, Spare::default(), true),
            first,
            threads,
        })
    }

    pub(super) fn writer(
        &self,
        place: &Place,
        watch: &Watch,
        deadline: Deadline,
    ) -> Result<Pooled, Error> {
        self.writer.get(place, watch, deadline)
    }

    pub(super) fn reader(
        &self,
        place: &Place,
        watch: &Watch,
        deadline: Deadline,
    ) -> Result<Pooled, Error> {
        self.readers.get(place, watch, deadline)
    }

    /// Whether the last connection may copy the WAL into the database when it closes, as far as the one
    /// that writes knows.
    pub(super) fn may_checkpoint(&self, opened: &Watch) -> bool {
        let allows = |link: &mut Link| {
            let watch = link.watch.get_or_insert_with(|| opened.clone());
            watch.allows_checkpoint()
        };
        match self.writer.links.try_get() {
            Some(mut link) => allows(&mut link),
            None => opened.clone().allows_checkpoint(),
        }
    }

    /// Closes all connections that nobody uses. The last one of all processes copies the WAL into the
    /// database, if it may.
    pub(super) fn close(&self, may_checkpoint: bool) {
        if may_checkpoint {
            self.close_each(|_| {});
        } else {
            self.close_without_checkpoint();
        }
    }

    /// Closes all connections that nobody uses, without copying the WAL into the database or removing
    /// it, whoever else is there or not.
    pub(super) fn close_without_checkpoint(&self) {
        self.close_each(|link| {
            let config = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            if let Err(error) = link.connection.set_db_config(config, true) {
                tracing::error!(%error, "a connection may touch a WAL that is not its own any more");
            }
        });
    }

    /// Closes what was inherited through `fork`. These pools are never to be touched again after that, nor
    /// dropped.
    ///
    /// Their thread is not in this process, but `parking_lot` still has it in its list of sleeping threads,
    /// as a node in memory that a new thread will be given: the list would end in a circle. Waking it
    /// takes it out, and may leave it a lock that it never gives back.
    pub(super) fn close_inherited(self: &Arc<Self>) {
        self.close_without_checkpoint();
        self.threads.0.execute(|| ());
        std::mem::forget(Arc::clone(self));
    }

    fn close_each(&self, prepare: impl Fn(&Link)) {
        if let Some(link) = take_spare(&self.first) {
            prepare(&link);
        }
        for pool in [&self.writer, &self.readers] {
            while let Some(mut link) = pool.links.try_get() {
                prepare(&link);
                // The pool drops what is stuck instead of keeping it.
                link.stuck = true;
            }
        }
    }
}

impl Pool {
    fn get(&self, place: &Place, watch: &Watch, deadline: Deadline) -> Result<Pooled, Error> {
        if let Some(link) = self.links.try_get() {
            return Ok(link);
        }
        // A new connection must not open another file; and r2d2 would try until the deadline.
        if !watch.clone().holds() {
            return Err(place.moved());
        }
        let begun = self.making.begun();
        let left = deadline.at.saturating_duration_since(Instant::now());
        let link = self.links.get_timeout(left);
        // So that a child which is forked after this call finds nobody in the middle of anything.
        if self.making.begun() != begun {
            self.making.settle();
        }
        match link {
            Ok(link) => Ok(link),
            Err(_) => match self.making.take_error() {
                Some(error) => Err(place.sqlite(error)),
                None => Err(deadline.busy(place)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_durability_waits_for_the_disk() {
        for (durability, synchronous) in [(Durability::Normal, 1), (Durability::Full, 2)] {
            let connection = Connection::open_in_memory().unwrap();
            prepare(&connection, durability).unwrap();
            let set: i64 = connection
                .pragma_query_value(None, "synchronous", |row| row.get(0))
                .unwrap();
            assert_eq!(set, synchronous, "{durability:?}");
        }
    }
}
