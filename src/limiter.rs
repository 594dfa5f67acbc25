//! What users call.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::decision::{Decision, Denial, Peek};
use crate::error::Error;
use crate::limit::{Limit, LimitError};
use crate::permit::{Booking, Permit};
use crate::plan::{Latest, Patience, Plan};
use crate::request::Ask;
use crate::store::{
    Definition, Durability, MemoryStore, OnConflict, Options, Outcome, Queued, SqliteStore, Store,
};
use crate::usage::Usage;

/// Shares limits through one file. Clones share everything; so do limiters of any process that opened
/// the same file.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("limits.db");
/// use quotalite::{Decision, Limit, Limiter, MINUTE, Request};
///
/// let limiter = Limiter::open(path)?;
/// limiter.define(Limit::new("openai:requests").per_second(10).per_minute(300))?;
/// limiter.define(Limit::new("openai:tokens").rate(90_000, MINUTE).unit("tokens"))?;
///
/// let ask = Request::new().take("openai:requests", 1).take("openai:tokens", 1_800);
/// match limiter.try_acquire(&ask)? {
///     Decision::Granted(permit) => println!("go, charged at {:?}", permit.at()),
///     Decision::Denied(denial) => println!("{denial}: come back in {:?}", denial.retry_after()),
/// }
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone)]
pub struct Limiter {
    store: Arc<dyn Store>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("file", &self.store.place())
            .finish()
    }
}

impl Limiter {
    /// Opens the file, or makes it, with the defaults of [`Builder`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).open()
    }

    /// Sets up how the file is opened.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder {
            path: path.as_ref().to_owned(),
            clock: None,
            durability: Durability::default(),
            busy_deadline: Duration::from_secs(5),
            readers: 4,
            mode: 0o600,
            trust_filesystem: false,
            create: true,
        }
    }

    /// A limiter for this process alone, on the machine's clock. It forgets everything when it is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Clock`] if the machine's clock cannot be used.
    pub fn in_memory() -> Result<Self, Error> {
        Ok(Self::in_memory_with(system_clock()?))
    }

    /// A limiter for this process alone, on this clock: for tests, mostly, with a
    /// [`ManualClock`](crate::ManualClock).
    #[must_use]
    pub fn in_memory_with(clock: impl Clock) -> Self {
        Self {
            store: Arc::new(MemoryStore::new(Box::new(clock))),
        }
    }

    /// Defines a limit. Doing so again changes nothing; where another definition stands,
    /// [`Error::Conflict`] shows both. Every process can define what it needs when it starts.
    pub fn define<L>(&self, limit: L) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        self.define_or(limit, OnConflict::Fail)
    }

    /// Defines a limit, and says what to do where another definition stands.
    pub fn define_or<L>(&self, limit: L, conflict: OnConflict) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        let limit = limit.try_into().map_err(LimitError::from)?;
        let definition = self.store.define(&limit, conflict)?;
        if !matches!(definition, Definition::Unchanged) {
            tracing::debug!(limit = limit.key(), given = %limit, outcome = ?definition, "defined");
        }
        Ok(definition)
    }

    /// The definition of a limit, as it is in force.
    pub fn limit(&self, key: &str) -> Result<Limit, Error> {
        self.store.limit(key)
    }

    /// All definitions, by key.
    pub fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.store.limits()
    }

    /// Asks to be admitted now, or not at all. A denial charges nothing, and says when to come back.
    ///
    /// It never overtakes: where somebody has booked or waits in line, it is granted only if that delays nobody.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::UnknownLimit`] and [`Error::NeverFits`] say what is wrong with the
    /// request; [`Error::Busy`] says that the lock could not be had within the busy deadline.
    pub fn try_acquire<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Decision, Error> {
        let plan = Plan::new(ask.into(), Patience::Now)?;
        Ok(match self.store.acquire(&plan, None)? {
            Outcome::Admitted { claim, .. } => {
                tell_granted(&plan, claim.at);
                let store = Arc::clone(&self.store);
                Decision::Granted(Permit::new(store, claim, Duration::ZERO))
            }
            Outcome::Refused { denial, .. } => {
                tell_refused(&denial, "denied");
                Decision::Denied(denial)
            }
            Outcome::Queued(queued) => {
                self.store.leave(&queued)?;
                Decision::Denied(queued.denial)
            }
        })
    }

    /// Waits in line until the request is admitted, however long that takes.
    ///
    /// For rates, the wait is one booking: no polling, first come first served across processes. Who asks for
    /// slots, too, waits in line until everything is free at once, is charged nothing until then, and
    /// is woken when it is its turn.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire): the line is waited in for as long as it takes, the file's
    /// lock for no longer than the busy deadline.
    pub fn acquire<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Permit, Error> {
        self.stay(ask.into(), Latest::Forever)
    }

    /// Waits in line for at most this long. If the rates would admit the request only after that, it is
    /// refused at once, and nothing is booked.
    ///
    /// # Errors
    /// [`Error::TooLate`], and as [`try_acquire`](Self::try_acquire). The lock is waited for at most as
    /// long as the request may wait (but at least 50 ms), or the busy deadline if that is shorter.
    pub fn acquire_within<'a>(
        &self,
        ask: impl Into<Ask<'a>>,
        longest: Duration,
    ) -> Result<Permit, Error> {
        self.stay(ask.into(), self.after(longest))
    }

    /// Waits in line until this instant at the latest. If the rates would admit the request only after
    /// that, it is refused at once, and nothing is booked. A deadline that has passed means now.
    ///
    /// # Errors
    /// As [`acquire_within`](Self::acquire_within).
    pub fn acquire_until<'a>(
        &self,
        ask: impl Into<Ask<'a>>,
        deadline: Timestamp,
    ) -> Result<Permit, Error> {
        self.stay(ask.into(), Latest::Until(deadline))
    }

    fn after(&self, longest: Duration) -> Latest {
        Latest::UntilElapsed(self.store.clock().elapsed().saturating_add(longest))
    }

    fn stay(&self, ask: Ask<'_>, latest: Latest) -> Result<Permit, Error> {
        let plan = Plan::new(ask, Patience::Wait(latest))?;
        let mut place = Place {
            store: &*self.store,
            queued: None,
        };
        let mut since = None;
        loop {
            match self.store.acquire(&plan, place.queued.as_ref())? {
                Outcome::Queued(queued) => {
                    if since.is_none() {
                        since = Some(self.store.clock().elapsed());
                        tell_refused(&queued.denial, "waits in line");
                    }
                    self.store.wait(place.queued.insert(queued));
                }
                outcome => {
                    place.queued = None;
                    let permit = self.booked(&plan, outcome)?.wait();
                    return Ok(match since {
                        Some(since) => permit.queued_since(since),
                        None => permit,
                    });
                }
            }
        }
    }

    /// Takes a place in line without waiting yet: [`acquire`](Self::acquire) in two steps. Only for rates:
    /// slots cannot be booked ahead.
    ///
    /// ```
    /// use std::time::Duration;
    /// use quotalite::{Limit, Limiter, ManualClock, SECOND};
    ///
    /// let clock = ManualClock::new();
    /// let limiter = Limiter::in_memory_with(clock.clone());
    /// limiter.define(Limit::new("mail").per_second(1))?;
    /// let first = limiter.book("mail")?;
    /// let second = limiter.book("mail")?;
    /// assert_eq!((first.wait_time(), second.wait_time()), (Duration::ZERO, SECOND));
    /// drop(second); // given back
    /// clock.advance(SECOND);
    /// assert!(limiter.try_acquire("mail")?.is_granted());
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn book<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Booking, Error> {
        self.take_place(ask.into(), Latest::Forever)
    }

    /// Takes a place in line that is at most this far away: [`acquire_within`](Self::acquire_within) in
    /// two steps.
    pub fn book_within<'a>(
        &self,
        ask: impl Into<Ask<'a>>,
        longest: Duration,
    ) -> Result<Booking, Error> {
        self.take_place(ask.into(), self.after(longest))
    }

    /// Takes a place in line that is not after this instant: [`acquire_until`](Self::acquire_until) in
    /// two steps.
    pub fn book_until<'a>(
        &self,
        ask: impl Into<Ask<'a>>,
        deadline: Timestamp,
    ) -> Result<Booking, Error> {
        self.take_place(ask.into(), Latest::Until(deadline))
    }

    fn take_place(&self, ask: Ask<'_>, latest: Latest) -> Result<Booking, Error> {
        let plan = Plan::new(ask, Patience::Book(latest))?;
        let outcome = self.store.acquire(&plan, None)?;
        self.booked(&plan, outcome)
    }

    fn booked(&self, plan: &Plan<'_>, outcome: Outcome) -> Result<Booking, Error> {
        let (denial, deadline) = match outcome {
            Outcome::Admitted { claim, now } => {
                let wait = claim.at.saturating_duration_since(now);
                if wait.is_zero() {
                    tell_granted(plan, now);
                } else {
                    tracing::debug!(limit = first_key(plan), ?wait, "booked");
                }
                return Ok(Booking::new(Arc::clone(&self.store), claim, wait));
            }
            Outcome::Refused { denial, deadline } => (denial, deadline),
            Outcome::Queued(queued) => {
                self.store.leave(&queued)?;
                (queued.denial, None)
            }
        };
        tell_refused(&denial, "too late");
        Err(Error::TooLate {
            deadline: deadline.unwrap_or_else(|| denial.now()),
            denial,
            file: self.store.place().to_owned(),
        })
    }

    /// Says whether a request would be admitted now, and if not, when. Consumes nothing.
    pub fn peek<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Peek, Error> {
        self.store.peek(&Plan::new(ask.into(), Patience::Now)?)
    }

    /// How a limit stands: for each rate, what is used and available, and when more comes free.
    pub fn usage(&self, key: &str) -> Result<Usage, Error> {
        self.store.usage(key)
    }

    /// The present instant of this file.
    pub fn now(&self) -> Result<Timestamp, Error> {
        self.store.now()
    }
}

/// A place in line, which is left if its holder does not get to its end.
struct Place<'s> {
    store: &'s dyn Store,
    queued: Option<Queued>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(queued) = &self.queued
            && let Err(error) = self.store.leave(queued)
        {
            tracing::warn!(limit = queued.denial.key(), %error, "a place in line stays until its deadline or the end of this process");
        }
    }
}

fn tell_refused(denial: &Denial, how: &'static str) {
    let retry_after = denial.retry_after();
    tracing::debug!(limit = denial.key(), obstacle = %denial.obstacle(), ?retry_after, "{how}");
}

fn tell_granted(plan: &Plan<'_>, at: Timestamp) {
    tracing::trace!(limit = first_key(plan), at_ns = at.as_nanos(), "granted");
}

fn first_key<'a>(plan: &Plan<'a>) -> &'a str {
    plan.takes().next().map_or("", |(key, _)| key)
}

fn system_clock() -> Result<SystemClock, Error> {
    SystemClock::new().map_err(|source| Error::Clock { source })
}

/// How a file is opened.
#[derive(Debug)]
#[must_use = "a builder opens nothing until `open`"]
pub struct Builder {
    path: PathBuf,
    clock: Option<Box<dyn Clock>>,
    durability: Durability,
    busy_deadline: Duration,
    readers: u32,
    mode: u32,
    trust_filesystem: bool,
    create: bool,
}

impl Builder {
    /// What a power failure may forget. Defaults to [`Durability::Normal`]; for windows of minutes and
    /// budgets of a day, choose [`Durability::Full`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long a call waits for the file's write lock before it fails with [`Error::Busy`]. Defaults to
    /// 5 seconds, and is at most a day.
    pub fn busy_deadline(mut self, deadline: Duration) -> Self {
        self.busy_deadline = deadline.min(crate::limit::DAY);
        self
    }

    /// Where the time comes from. Defaults to [`SystemClock`]. All processes that share a file must use
    /// the same kind.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// How many connections `peek`, `usage` and the like may use at the same time; one more is always
    /// there for writing. Defaults to 4, and is at least 1.
    pub fn readers(mut self, count: u32) -> Self {
        self.readers = count.max(1);
        self
    }

    /// The permissions of the file on Linux, if it is made. Defaults to `0o600`: other users have no access. With
    /// `0o660`, put it into a directory that its group may write, and let nobody else.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o666;
        self
    }

    /// Opens the file even on a filesystem that several machines may share, such as NFS or virtiofs.
    /// Defaults to false. If processes of two machines open it, limits are exceeded and the file is
    /// damaged within minutes.
    pub fn trust_filesystem(mut self, trust: bool) -> Self {
        self.trust_filesystem = trust;
        self
    }

    /// Whether to make the file if it is not there. Defaults to true. Without it, a missing file is
    /// [`Error::Io`].
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens the file, makes it if need be, and brings its schema up to date. Any number of processes
    /// can do so at once.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Sqlite`] if the file cannot be made or opened (a symbolic link in its
    /// place is refused), [`Error::Filesystem`], [`Error::NewerSchema`], [`Error::ForeignFile`],
    /// [`Error::OldSqlite`], [`Error::Clock`], and [`Error::Busy`] if others have been opening it for 30
    /// seconds.
    pub fn open(self) -> Result<Limiter, Error> {
        let clock = match self.clock {
            Some(clock) => clock,
            None => Box::new(system_clock()?),
        };
        let store = SqliteStore::open(Options {
            path: self.path,
            clock,
            durability: self.durability,
            busy_deadline: self.busy_deadline,
            reader_count: self.readers,
            mode: self.mode,
            trust_filesystem: self.trust_filesystem,
            create: self.create,
        })?;
        Ok(Limiter {
            store: Arc::new(store),
        })
    }
}
