//! What users call.

mod builder;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use self::builder::Builder;
use self::builder::system_clock;
use crate::batch::{Handle, change_all, check_length};
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Denial, Peek};
use crate::definition::{Definition, LimitChange, OnConflict};
use crate::error::{Error, RequestError};
use crate::limit::{Limit, LimitError};
use crate::permit::{Booking, Permit, Provisional, clamped_ns, tell_settled};
use crate::plan::{Latest, Patience, Plan};
use crate::request::Ask;
use crate::settlement::{Settled, Used};
use crate::store::{Change, MemoryStore, Outcome, Queued, Store, Which};
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
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).open()
    }

    /// Sets up how the file is opened.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::of(path.as_ref())
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
    ///
    /// # Errors
    /// [`Error::Limit`] if the limit is not one, [`Error::Conflict`], and whatever can happen to the file.
    /// Nothing is defined then, and what stood there stands.
    pub fn define<L>(&self, limit: L) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        self.define_or(limit, OnConflict::Fail)
    }

    /// Defines a limit, and says what to do where another definition stands.
    ///
    /// # Errors
    /// As [`define`](Self::define); [`Error::Conflict`] only with [`OnConflict::Fail`].
    pub fn define_or<L>(&self, limit: L, conflict: OnConflict) -> Result<Definition, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        let mut definitions = self.define_all([limit], conflict)?;
        Ok(definitions.pop().unwrap_or(Definition::Unchanged))
    }

    /// Defines limits, all of them or none, in one transaction. Returns what came of each.
    ///
    /// # Errors
    /// As [`define_or`](Self::define_or).
    pub fn define_all<L>(
        &self,
        limits: impl IntoIterator<Item = L>,
        conflict: OnConflict,
    ) -> Result<Vec<Definition>, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        let limits = limits.into_iter().map(TryInto::try_into);
        let limits: Vec<Limit> = limits.collect::<Result<_, _>>().map_err(LimitError::from)?;
        let definitions = self.store.define(&limits, conflict)?;
        for (limit, definition) in limits.iter().zip(&definitions) {
            if !matches!(definition, Definition::Unchanged) {
                tracing::debug!(limit = limit.key(), given = %limit, outcome = ?definition, "defined");
            }
        }
        Ok(definitions)
    }

    /// Changes the definition of a limit or a pattern, for all processes: the next acquisition anywhere is decided by
    /// the new one. As with [`OnConflict::Replace`], what was charged and booked stays. `change` is asked again if
    /// somebody else has changed the limit meanwhile, so that no change is lost.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, Rate, SECOND};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("api").per_second(10).per_day(10_000))?;
    /// let rate = Rate::new(20, SECOND)?;
    /// let former = limiter.update("api", |limit| limit.to_builder().set_rate(rate))?;
    /// assert_eq!(former.to_string(), "api: 10/s, 10000/d");
    /// assert_eq!(limiter.limit("api")?.to_string(), "api: 20/s, 10000/d");
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], [`Error::Limit`] if the new definition is none, [`Error::OtherKind`],
    /// [`RequestError::OtherKey`](crate::RequestError::OtherKey) if it is of another limit, and whatever can happen to
    /// the file. Nothing was changed then.
    pub fn update<L>(&self, key: &str, change: impl Fn(&Limit) -> L) -> Result<Limit, Error>
    where
        L: TryInto<Limit>,
        LimitError: From<L::Error>,
    {
        loop {
            let former = self.store.limit(key)?;
            let limit = change(&former).try_into().map_err(LimitError::from)?;
            if limit.key() != key {
                let given = limit.key().to_owned();
                let key = key.to_owned();
                return Err(RequestError::OtherKey { key, given }.into());
            }
            if self.store.replace(&former, &limit)? {
                tracing::debug!(limit = key, given = %limit, former = %former, "changed");
                return Ok(former);
            }
        }
    }

    /// Removes a limit or a pattern, with all that was charged to it, and returns it. A key that a pattern matches is
    /// limited by that from then on.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`]; [`Error::InUse`] if permits hold slots of it or have an id, if it is booked, or if
    /// somebody waits in line for it; and whatever can happen to the file. Nothing was removed then.
    pub fn remove(&self, key: &str) -> Result<Limit, Error> {
        self.remove_or(key, false)
    }

    /// Removes a limit or a pattern although it is in use. Who waits for it is told [`Error::UnknownLimit`]; who
    /// settles a permit that took something of it is told that nothing of that is charged.
    ///
    /// # Errors
    /// As [`remove`](Self::remove), but never [`Error::InUse`].
    pub fn force_remove(&self, key: &str) -> Result<Limit, Error> {
        self.remove_or(key, true)
    }

    fn remove_or(&self, key: &str, is_forced: bool) -> Result<Limit, Error> {
        let limit = self.store.remove(key, is_forced)?;
        tracing::debug!(limit = key, former = %limit, is_forced, "removed");
        Ok(limit)
    }

    /// Who changed a limit or a pattern, and when: the last [`LimitChange::KEPT`] changes, the last one first. A limit
    /// that was removed still has them, until many others were changed.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn changes(&self, key: &str) -> Result<Vec<LimitChange>, Error> {
        self.store.changes_of(key)
    }

    /// The definition of a limit or a pattern, as it is in force; for a key that a pattern matches, the limit that it
    /// makes of it.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn limit(&self, key: &str) -> Result<Limit, Error> {
        self.store.limit(key)
    }

    /// All definitions, by key.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.store.limits()
    }

    /// Asks to be admitted now, or not at all. A denial charges nothing, and says when to come back.
    ///
    /// It never overtakes: where somebody has booked, or waits in line for what it asks for, it is granted only if
    /// that delays nobody. Who waits for slots and rates keeps only what it is short of; the rates may be
    /// used by others until its slots come free.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::UnknownLimit`] and [`Error::NeverFits`] say what is wrong with the
    /// request; [`Error::Busy`] says that the lock could not be had within the busy deadline.
    pub fn try_acquire<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Decision, Error> {
        let plan = Plan::new(ask.into(), Patience::Now)?;
        let outcome = self.store.acquire(&plan, None)?;
        self.decided(&plan, outcome)
    }

    /// A connection to the limiter's file, for tables of the caller's own beside the limiter's, and for transactions that
    /// [`try_acquire_in`](Self::try_acquire_in) takes part in. It waits for locks up to the busy deadline.
    ///
    /// The tables of this crate are not to be written to; names that begin with `app_` will never be used by
    /// it. Do not take such a connection through `fork`.
    ///
    /// # Errors
    /// [`RequestError::NoFile`] in memory, and whatever can happen to the file.
    pub fn connect(&self) -> Result<rusqlite::Connection, Error> {
        self.store.connect()
    }

    /// Asks to be admitted now, or not at all, as part of a transaction of the caller's own on the limiter's file: what
    /// is charged is charged if that commits, together with whatever else it writes, and not if it is rolled back.
    ///
    /// The transaction has to be on this file and to hold the write lock: begin it with
    /// [`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate), on a connection of
    /// [`connect`](Self::connect). Keep it short, for everybody who shares the file waits for it. The instant of the
    /// charge is that of this call. Several requests can be part of one transaction, and of savepoints in it (both are
    /// taken as the [connection](rusqlite::Connection) that they are of). What was denied changes nothing.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("limits.db");
    /// use quotalite::rusqlite::TransactionBehavior;
    /// use quotalite::{Decision, Limit, Limiter};
    ///
    /// let limiter = Limiter::open(path)?;
    /// limiter.define(Limit::new("openai:tokens").per_minute(90_000))?;
    /// let mut connection = limiter.connect()?;
    /// connection.execute_batch("CREATE TABLE IF NOT EXISTS app_job (prompt TEXT, tokens INTEGER)")?;
    ///
    /// // Enqueue the job and reserve its budget: both, or neither.
    /// let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    /// match limiter.try_acquire_in(&transaction, ("openai:tokens", 1_800))? {
    ///     Decision::Granted(provisional) => {
    ///         transaction.execute("INSERT INTO app_job VALUES ('Hello', 1800)", [])?;
    ///         transaction.commit()?;
    ///         let permit = provisional.committed();
    ///         permit.settle([("openai:tokens", 1_234)])?;
    ///     }
    ///     Decision::Denied(denial) => println!("{denial}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire); [`RequestError::OtherFile`], [`RequestError::NoWriteLock`] and
    /// [`RequestError::NoFile`] if the transaction is none that this can be part of;
    /// [`RequestError::NotConnected`] if slots or an id are asked for and this process is not known to the file yet. The
    /// transaction goes on as if the call had not been made.
    pub fn try_acquire_in<'a>(
        &self,
        transaction: &rusqlite::Connection,
        ask: impl Into<Ask<'a>>,
    ) -> Result<Decision<Provisional>, Error> {
        let plan = Plan::new(ask.into(), Patience::Now)?;
        let (outcome, pending) = self.store.acquire_within(transaction, &plan)?;
        Ok(match outcome {
            Outcome::Admitted { claim, .. } => {
                tell_granted(&plan, claim.at);
                let store = Arc::clone(&self.store);
                Decision::Granted(Provisional::new(store, claim, pending))
            }
            Outcome::Refused { denial, .. } | Outcome::Queued(Queued { denial, .. }) => {
                tell_refused(&denial, "denied");
                Decision::Denied(denial)
            }
        })
    }

    fn decided(&self, plan: &Plan<'_>, outcome: Outcome) -> Result<Decision, Error> {
        Ok(match outcome {
            Outcome::Admitted { claim, .. } => {
                tell_granted(plan, claim.at);
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
                    let booking = self.booked(&plan, outcome)?;
                    let Some(since) = since else {
                        return Ok(booking.wait());
                    };
                    let was_told = !booking.wait_time().is_zero();
                    let permit = booking.wait().queued_since(since);
                    if !was_told {
                        let waited = permit.waited();
                        tracing::debug!(limit = first_key(&plan), ?waited, "waited");
                    }
                    return Ok(permit);
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
    ///
    /// Those who wait in line for slots, too, have their places in the calendar where their rates will admit them,
    /// and a booking is made around these.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire), and [`RequestError::NotBookable`] for slots. Nothing was booked then.
    ///
    /// [`RequestError::NotBookable`]: crate::RequestError::NotBookable
    pub fn book<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Booking, Error> {
        self.take_place(ask.into(), Latest::Forever)
    }

    /// Takes a place in line that is at most this far away: [`acquire_within`](Self::acquire_within) in
    /// two steps.
    ///
    /// # Errors
    /// [`Error::TooLate`], and as [`book`](Self::book).
    pub fn book_within<'a>(
        &self,
        ask: impl Into<Ask<'a>>,
        longest: Duration,
    ) -> Result<Booking, Error> {
        self.take_place(ask.into(), self.after(longest))
    }

    /// Takes a place in line that is not after this instant: [`acquire_until`](Self::acquire_until) in
    /// two steps.
    ///
    /// # Errors
    /// [`Error::TooLate`], and as [`book`](Self::book).
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

    /// Settles a permit under its id, in whatever process it was granted: see [`Permit::settle`].
    ///
    /// # Errors
    /// [`Error::Request`] if it names a limit that was not asked for, or one twice; and whatever can happen to
    /// the file. The permit then stays as it was.
    pub fn settle<K: AsRef<str>>(
        &self,
        id: impl AsRef<str>,
        used: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Settled, Error> {
        let used = Used::new(used)?;
        let settled = self
            .store
            .change(Change::settle(Which::Id(id.as_ref()), &used))?;
        tell_settled(&settled);
        Ok(settled)
    }

    /// Cancels a permit under its id: see [`Permit::cancel`].
    ///
    /// # Errors
    /// Whatever can happen to the file. The permit then stays as it was.
    pub fn cancel(&self, id: impl AsRef<str>) -> Result<Settled, Error> {
        self.store.change(Change::cancel(Which::Id(id.as_ref())))
    }

    /// Lets a permit that has a timeout go on for so long from now, under its id: see [`Permit::renew`].
    ///
    /// # Errors
    /// Whatever can happen to the file. The permit then stays as it was.
    pub fn renew(
        &self,
        id: impl AsRef<str>,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, Error> {
        self.store
            .renew(Which::Id(id.as_ref()), clamped_ns(timeout))
    }

    /// [`try_acquire`](Self::try_acquire) for many requests in one transaction: each is admitted whole or not at
    /// all, by itself and in their order, as if they came one after the other with nobody in between.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, Request};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("mail").per_second(3))?;
    /// let asks = [1, 4, 2].map(|amount| Request::new().take("mail", amount));
    /// let decisions = limiter.try_acquire_all(&asks)?;
    /// let granted: Vec<bool> = decisions
    ///     .iter()
    ///     .map(|decision| decision.as_ref().is_ok_and(|decision| decision.is_granted()))
    ///     .collect();
    /// assert_eq!(granted, [true, false, true]);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with one request is told in its place. [`RequestError::BatchLength`] for more than
    /// [`MAX_BATCH`] requests, and whatever can happen to the file; then nothing was charged.
    ///
    /// [`RequestError::BatchLength`]: crate::RequestError::BatchLength
    /// [`MAX_BATCH`]: crate::MAX_BATCH
    pub fn try_acquire_all<'a, A: Into<Ask<'a>>>(
        &self,
        asks: impl IntoIterator<Item = A>,
    ) -> Result<Vec<Result<Decision, Error>>, Error> {
        let plans: Vec<Result<Plan<'_>, Error>> = asks
            .into_iter()
            .map(|ask| Plan::new(ask.into(), Patience::Now))
            .collect();
        check_length(plans.len())?;
        let right: Vec<Plan<'_>> = plans
            .iter()
            .filter_map(|plan| plan.as_ref().ok())
            .copied()
            .collect();
        let mut outcomes = self.store.acquire_all(&right)?.into_iter();
        let decide = |plan: Result<Plan<'_>, Error>| {
            let plan = plan?;
            match outcomes.next() {
                Some(outcome) => self.decided(&plan, outcome?),
                // A store answers each plan.
                None => Err(RequestError::Empty.into()),
            }
        };
        Ok(plans.into_iter().map(decide).collect())
    }

    /// [`settle`](Permit::settle) for many permits in one transaction, each by itself and in their order. Permits
    /// are given as such, or by their ids.
    ///
    /// # Errors
    /// What is wrong with one settlement is told in its place. Otherwise as
    /// [`try_acquire_all`](Self::try_acquire_all).
    pub fn settle_all<'a, H, K, U>(
        &self,
        settlements: impl IntoIterator<Item = (H, U)>,
    ) -> Result<Vec<Result<Settled, Error>>, Error>
    where
        H: Into<Handle<'a>>,
        K: AsRef<str>,
        U: IntoIterator<Item = (K, u64)>,
    {
        let mut wrong = Vec::new();
        let mut changes = Vec::new();
        for (position, (handle, used)) in settlements.into_iter().enumerate() {
            match Used::new(used) {
                Ok(used) => changes.push((handle.into(), Some(used))),
                Err(error) => wrong.push((position, error)),
            }
        }
        check_length(wrong.len() + changes.len())?;
        let mut results = change_all(&*self.store, &changes)?;
        for (position, error) in wrong {
            results.insert(position.min(results.len()), Err(error));
        }
        Ok(results)
    }

    /// [`cancel`](Permit::cancel) for many permits in one transaction, each by itself and in their order.
    ///
    /// # Errors
    /// As [`settle_all`](Self::settle_all).
    pub fn cancel_all<'a, H: Into<Handle<'a>>>(
        &self,
        permits: impl IntoIterator<Item = H>,
    ) -> Result<Vec<Result<Settled, Error>>, Error> {
        let changes: Vec<(Handle<'a>, Option<Used>)> = permits
            .into_iter()
            .map(|handle| (handle.into(), None))
            .collect();
        change_all(&*self.store, &changes)
    }

    /// Says whether a request would be admitted now, and if not, when. Consumes nothing. An
    /// [id](crate::Request::id) is not looked up: it is judged as a new request.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub fn peek<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Peek, Error> {
        self.store.peek(&Plan::new(ask.into(), Patience::Now)?)
    }

    /// How a limit stands: for each rate, what is used and available, and when more comes free.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn usage(&self, key: &str) -> Result<Usage, Error> {
        self.store.usage(key)
    }

    /// The present instant of this file.
    ///
    /// # Errors
    /// Whatever can happen to the file.
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
            tracing::warn!(limit = queued.denial.key(), %error, "a place in line could not be left yet");
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
