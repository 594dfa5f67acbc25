//! What users call.

mod adaptive;
mod builder;
mod definitions;
mod estimates;
#[cfg(feature = "http")]
mod feedback;
#[cfg(target_os = "linux")]
mod lifeline;
mod pauses;
mod retries;
mod within;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use self::builder::Builder;
use self::builder::system_clock;
use crate::batch::{Handle, change_all, check_length};
use crate::blocks::Blocks;
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Denial, Peek};
use crate::error::{Error, RequestError};
use crate::permit::{Booking, Permit, clamped_ns, tell_settled};
use crate::plan::{Latest, Patience, Plan};
use crate::request::Ask;
use crate::settlement::{Settled, Used};
use crate::store::{Change, MemoryStore, Outcome, Queued, Store, Which, check_blocks, stopped};
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
    /// lock for no longer than the busy deadline. [`Error::Stopped`] after [`stop_waiting`](Self::stop_waiting).
    pub fn acquire<'a>(&self, ask: impl Into<Ask<'a>>) -> Result<Permit, Error> {
        self.stay(ask.into(), Latest::Forever)
    }

    /// Waits in line for at most this long. If the rates would admit the request only after that, it is
    /// refused at once, and nothing is booked.
    ///
    /// # Errors
    /// [`Error::TooLate`], and as [`acquire`](Self::acquire). The lock is waited for at most as
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
                    if self.store.is_stopped() {
                        return Err(stopped(&*self.store, first_key(&plan)));
                    }
                }
                outcome => {
                    place.queued = None;
                    let booking = self.booked(&plan, outcome)?;
                    let Some(since) = since else {
                        return booking.wait();
                    };
                    let was_told = !booking.wait_time().is_zero();
                    let permit = booking.wait()?.queued_since(since);
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
                let latest = plan.patience.latest().unwrap_or(Latest::Forever);
                let store = Arc::clone(&self.store);
                return Ok(Booking::new(store, claim, wait, latest));
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

    /// Hands out one limit of rates or quotas from memory, in blocks of at most `size`: for keys that are asked for more
    /// often than a file can be written to. See [`Blocks`] for what that costs.
    ///
    /// ```
    /// use std::time::Duration;
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("hot").per_second(100_000))?;
    /// // 1 000 at a time, each for 10 ms: at most a hundredth of the capacity is lost.
    /// let hot = limiter.blocks("hot", 1_000)?.lifetime(Duration::from_millis(10));
    /// std::thread::scope(|scope| {
    ///     for _ in 0..4 {
    ///         scope.spawn(|| hot.try_acquire().is_ok_and(|decision| decision.is_granted()));
    ///     }
    /// });
    /// drop(hot); // gives back what nobody asked for
    /// assert_eq!(limiter.usage("hot")?.available(), 100_000 - 4);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`RequestError::ZeroAmount`] for blocks of nothing, [`RequestError::NotInBlocks`] for slots and buckets,
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    ///
    /// [`RequestError::ZeroAmount`]: crate::RequestError::ZeroAmount
    /// [`RequestError::NotInBlocks`]: crate::RequestError::NotInBlocks
    pub fn blocks(&self, key: &str, size: u64) -> Result<Blocks, Error> {
        if size == 0 {
            let key = key.to_owned();
            return Err(RequestError::ZeroAmount { key }.into());
        }
        check_blocks(&self.store.limit(key)?)?;
        Ok(Blocks::new(Arc::clone(&self.store), key, size))
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

    /// Ends all waits in line on this limiter and its clones, for good: for programs that are asked to end. Whoever waits in line, or
    /// sleeps until a booked instant or its next [retry](crate::RetryPolicy), gives back its place and what it has booked, as by
    /// dropping a [`Booking`], and gets [`Error::Stopped`]; so does whoever would begin to wait. What needs no waiting goes on: who is
    /// admitted at once is admitted, and permits are settled as ever. Waiting for the file's lock goes on, too, up to the
    /// busy deadline. Other processes do not notice, nor do other limiters of this one. It is not for signal handlers.
    ///
    /// A process that ends without this leaves what it has booked behind: others give it back if they need it before its
    /// instant, and if nobody does, it counts as used.
    ///
    /// ```
    /// use quotalite::{Error, Limit, Limiter};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("mail").per_hour(1))?;
    /// limiter.acquire("mail")?;
    /// let worker = std::thread::spawn({
    ///     let limiter = limiter.clone();
    ///     move || limiter.acquire("mail")
    /// });
    /// limiter.stop_waiting();
    /// assert!(matches!(worker.join().unwrap(), Err(Error::Stopped { .. })));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// It returns when those who sleep until an instant have been told; they need the file's lock to give anything back, and may be
    /// waiting for it. Who waits for slots can take up to a second to hear it. On a clock that does not
    /// [keep pace with real time](Clock::is_real), who sleeps until an instant hears it when that has come.
    pub fn stop_waiting(&self) {
        self.store.stop_waiting();
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
