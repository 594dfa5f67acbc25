//! What callers hold: permits, and bookings that become permits.

mod booking;

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ulid::Ulid;

pub use self::booking::Booking;
use crate::breaker::Report;
use crate::clock::Timestamp;
use crate::error::{Error, RequestError};
use crate::settlement::{Settled, Settlement, Used};
use crate::store::{Change, Claim, Holder, Pending, Store, Which};

/// A request that was admitted and is charged.
///
/// Once it is known what was used, [`settle`](Self::settle) it; if nothing was, [`cancel`](Self::cancel)
/// it. If it is dropped instead, its slots come back, but its charges stay: an estimate that was never
/// settled never becomes free. To give slots back, dropping waits for the file's lock, up to the busy deadline;
/// what cannot be given back then is given back by the next change that this process makes.
pub struct Permit {
    store: Arc<dyn Store>,
    at: Timestamp,
    waited: Duration,
    is_resumed: bool,
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) claim: Claim,
    pub(crate) state: State,
    is_reported: bool,
}

impl Inner {
    /// What is told to whoever ends it, if it has ended.
    pub(crate) fn told(&self) -> Option<Settled> {
        let holder = self.claim.registered.as_ref().map(|found| found.holder);
        match (self.state, holder) {
            (State::Closed, Some(Holder::Ended(end))) => Some(end.told()),
            (State::Closed, _) => Some(Settled::Before),
            _ => None,
        }
    }
}

/// What dropping a permit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is a place in line, and is given back.
    Booked,
    /// It was used, and nobody said how much of it.
    Open,
    /// It was detached: whatever becomes of it, it is not for this to end it.
    Detached,
    /// It was settled or cancelled.
    Closed,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("at", &self.at())
            .field("waited", &self.waited)
            .finish_non_exhaustive()
    }
}

impl Permit {
    pub(crate) fn new(store: Arc<dyn Store>, claim: Claim, waited: Duration) -> Self {
        let holder = claim.registered.as_ref().map(|found| found.holder);
        let state = if matches!(holder, Some(Holder::Ended(_))) {
            State::Closed
        } else {
            State::Open
        };
        Self {
            store,
            at: claim.at,
            waited,
            is_resumed: claim.is_resumed,
            inner: Mutex::new(Inner {
                claim,
                state,
                is_reported: false,
            }),
        }
    }

    /// The instant at which the request is charged in all its limits.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// A number that grows from each permit that holds slots to the next, over all processes, if this one holds
    /// any. Hand it to what the slots protect: who has seen a larger one can turn away a holder whose slot
    /// has timed out.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        let inner = self.lock();
        let registered = inner.claim.registered.as_ref();
        registered
            .filter(|registered| !registered.slots.is_empty())
            .map(|registered| {
                registered
                    .fence
                    .unwrap_or(registered.number)
                    .0
                    .unsigned_abs()
            })
    }

    /// Whether this is the permit of an earlier request under the same [id](crate::Request::id), so that
    /// nothing was charged for this one.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Whether it has been settled, cancelled or has timed out, as far as is known here. A permit that was asked for
    /// again under its id can come so. Then [`settle`](Self::settle) tells whether somebody has settled it
    /// ([`Settled::Before`]), so that the work is done, or whether it has timed out
    /// ([`Settled::Expired`]), and nobody knows.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lock().state == State::Closed
    }

    /// How long the request waited in line: from the decision to the instant of the charge.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// Counts the time since this reading of the clock as waited.
    pub(crate) fn queued_since(mut self, since: Duration) -> Self {
        let elapsed = self.store.clock().elapsed();
        self.waited = self.waited.max(elapsed.saturating_sub(since));
        self
    }

    /// Says what was used of some or all of its limits. What is less than was asked for comes free at once, for
    /// every process, and as if it had never been charged; what is more is dealt with as the limit's
    /// [`Overage`](crate::Overage) says. A limit that is not named keeps what was asked for. Its slots
    /// come back.
    ///
    /// A permit can be settled or cancelled once; what comes later changes nothing.
    ///
    /// ```
    /// use quotalite::{Limit, Limiter, MINUTE};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("tokens").rate(90_000, MINUTE))?;
    /// let permit = limiter.acquire(("tokens", 1_800))?;
    /// permit.settle([("tokens", 620)])?;
    /// assert_eq!(limiter.usage("tokens")?.available(), 89_380);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Request`] if it names a limit that was not asked for, or one twice; and whatever can happen to
    /// the file. The permit then stays as it was, and can be settled again.
    pub fn settle<K: AsRef<str>>(
        &self,
        used: impl IntoIterator<Item = (K, u64)>,
    ) -> Result<Settled, Error> {
        let used = Used::new(used)?;
        let settled = self.close(|claim| {
            self.store
                .change(Change::settle(Which::Claim(claim), &used))
        })?;
        tell_settled(&settled);
        Ok(settled)
    }

    /// Gives everything back, as if the request had never been made.
    ///
    /// # Errors
    /// Whatever can happen to the file. The permit then stays as it was, and can be cancelled again.
    pub fn cancel(&self) -> Result<Settled, Error> {
        self.close(|claim| self.store.change(Change::cancel(Which::Claim(claim))))
    }

    /// The id under which any process can [settle](crate::Limiter::settle), cancel or renew this permit: that of
    /// the [request](crate::Request::id), or a new ULID, under which the permit is entered into the file
    /// when it is first asked for.
    ///
    /// If the process ends without settling it, the permit can still be settled under its id for an hour. To let it
    /// live longer, [`detach`](Self::detach) it.
    ///
    /// # Errors
    /// [`RequestError::Ended`](crate::RequestError::Ended) if it was settled or cancelled without an id, and
    /// whatever can happen to the file. The permit then stays as it was.
    pub fn id(&self) -> Result<PermitId, Error> {
        self.register(&mut self.lock())
    }

    fn register(&self, inner: &mut Inner) -> Result<PermitId, Error> {
        let registered = inner.claim.registered.as_ref();
        if let Some(id) = registered.and_then(|registered| registered.id.as_deref()) {
            return Ok(PermitId(id.into()));
        }
        if inner.state == State::Closed {
            return Err(RequestError::Ended.into());
        }
        let id = PermitId::new(&*self.store);
        let registered = self.store.register(&inner.claim, &id.0)?;
        inner.claim.registered = Some(Box::new(registered));
        Ok(id)
    }

    /// Unties the permit from the life of this process: it stays open, slots included, until somebody settles or
    /// cancels it under its id, or until so long from now. Then its slots come back, and what it has
    /// charged stays charged. For batches whose results another process fetches.
    ///
    /// ```
    /// use quotalite::{HOUR, Limit, Limiter, MINUTE};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("tokens").rate(90_000, MINUTE))?;
    /// let id = limiter.acquire(("tokens", 1_800))?.detach(24 * HOUR)?;
    /// // Later, perhaps in another process:
    /// limiter.settle(&id, [("tokens", 620)])?;
    /// assert_eq!(limiter.usage("tokens")?.available(), 89_380);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`RequestError::Ended`](crate::RequestError::Ended) if it has ended, and whatever can happen to the file.
    /// The permit then stays with this process.
    pub fn detach(&self, timeout: Duration) -> Result<PermitId, Error> {
        let mut inner = self.lock();
        if inner.state == State::Closed {
            return Err(RequestError::Ended.into());
        }
        let id = self.register(&mut inner)?;
        match self.store.detach(&inner.claim, clamped_ns(timeout))? {
            Some(_) => inner.state = State::Detached,
            None => return Err(RequestError::Ended.into()),
        }
        Ok(id)
    }

    /// Lets the permit go on for so long from now, where its slots have a
    /// [timeout](crate::LimitBuilder::timeout) or it is [detached](Self::detach). Returns the instant at which they come
    /// back. `None` if it has ended, if its slots have come back already, or if it does not end by itself: nothing is
    /// changed then. Who renews as a heartbeat, and knows of a timeout, has lost its slots when it gets `None`. That somebody has
    /// [reset](crate::Limiter::reset) or removed the limit by force, it does not tell.
    ///
    /// # Errors
    /// Whatever can happen to the file. The permit then stays as it was.
    pub fn renew(&self, timeout: Duration) -> Result<Option<Timestamp>, Error> {
        let inner = self.lock();
        let which = Which::Claim(&inner.claim);
        self.store.renew(which, clamped_ns(timeout))
    }

    /// Says what became of the call that it was for, to the [breakers](crate::Limit::breaker) that it was let through by. The
    /// first report counts, and those after it change nothing. Report before you settle: who has
    /// taken up the permit under its id may be too late afterwards. A permit that is dropped without a report is not counted, and
    /// one that was let through by no breaker has nobody to report to.
    ///
    /// # Errors
    /// Whatever can happen to the file. Nothing was counted then, and it can be reported again.
    pub fn report(&self, report: Report) -> Result<(), Error> {
        let mut inner = self.lock();
        if !inner.is_reported {
            self.store.report(&inner.claim, report)?;
            inner.is_reported = true;
        }
        Ok(())
    }

    pub(crate) fn close(
        &self,
        act: impl FnOnce(&Claim) -> Result<Settled, Error>,
    ) -> Result<Settled, Error> {
        let mut inner = self.lock();
        if let Some(told) = inner.told() {
            return Ok(told);
        }
        // Should it panic, nobody knows whether it was done: it must not be done twice.
        let open = std::mem::replace(&mut inner.state, State::Closed);
        let settled = act(&inner.claim);
        if settled.is_err() {
            inner.state = open;
        }
        settled
    }

    pub(crate) fn is_of(&self, store: &dyn Store) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.store), store)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let inner = self.lock();
        let claim = &inner.claim;
        let limit = claim.first_key();
        let result = match inner.state {
            State::Booked => self.store.give_back(claim),
            State::Open => {
                // It holds a slot while something runs, and has charged more than one of something: who drops it has
                // likely forgotten to settle it.
                if claim.holds_slots() && claim.rows.iter().any(|row| row.amount > 1) {
                    tracing::warn!(
                        limit,
                        "a permit was dropped and not settled: its estimate stays charged"
                    );
                }
                self.store.release(claim)
            }
            State::Detached | State::Closed => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(limit, %error, "what a dropped permit or booking held could not be given back yet");
        }
    }
}

pub(crate) fn tell_settled(settled: &Settled) {
    let settlement = settled.settlement();
    for amount in settlement.into_iter().flat_map(Settlement::amounts) {
        tracing::debug!(
            limit = amount.key(),
            estimated = amount.estimated(),
            used = amount.used(),
            debt = amount.debt(),
            "settled"
        );
    }
}

pub(crate) fn clamped_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A permit that is one once the caller's own transaction has committed: see
/// [`Limiter::try_acquire_in`](crate::Limiter::try_acquire_in).
///
/// Dropping it says that the transaction was rolled back, and that there is nothing to give back. If it was
/// committed all the same, its charges stay, and its slots come back with the next change that this process
/// makes.
#[must_use = "it is a permit only once it is said that the transaction has committed"]
#[derive(Debug)]
pub struct Provisional {
    /// Nothing once it was said that the transaction has committed.
    permit: Option<Permit>,
    at: Timestamp,
    is_resumed: bool,
    pending: Pending,
    /// It is of the thread that has the transaction.
    _stays: PhantomData<*const ()>,
}

impl Provisional {
    pub(crate) fn new(store: Arc<dyn Store>, claim: Claim, pending: Pending) -> Self {
        let permit = Permit::new(store, claim, Duration::ZERO);
        // Until the transaction commits there is nothing to give back.
        permit.lock().state = State::Closed;
        Self {
            at: permit.at(),
            is_resumed: permit.is_resumed(),
            permit: Some(permit),
            pending,
            _stays: PhantomData,
        }
    }

    /// The instant at which the request is charged in all its limits, if the transaction commits.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether it is the permit of an earlier request under the same [id](crate::Request::id), so that nothing was
    /// charged for this one.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Takes the permit, once the transaction has committed. Say so at once: until then, this thread cannot use the
    /// limiter in any other way that writes ([`RequestError::WithinTransaction`]).
    ///
    /// # Errors
    /// [`RequestError::NotCommitted`] if the transaction was rolled back, has not ended, or ended more than an
    /// hour ago; and whatever can happen to the file.
    pub fn committed(mut self) -> Result<Permit, Error> {
        self.pending.held = None;
        let Some(permit) = self.permit.take() else {
            return Err(RequestError::NotCommitted.into());
        };
        if !permit
            .store
            .is_committed(&permit.lock().claim, self.pending.number)?
        {
            return Err(RequestError::NotCommitted.into());
        }
        let mut inner = permit.lock();
        let holder = inner.claim.registered.as_ref().map(|found| found.holder);
        if !matches!(holder, Some(Holder::Ended(_))) {
            inner.state = State::Open;
        }
        drop(inner);
        Ok(permit)
    }
}

impl Drop for Provisional {
    fn drop(&mut self) {
        // Should the transaction have been committed all the same, nobody would give the slots back.
        if let Some(permit) = &self.permit {
            let number = self.pending.number;
            permit.store.give_up(&permit.lock().claim, number);
        }
    }
}

/// Names a permit, in any process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermitId(Box<str>);

impl PermitId {
    /// A new [ULID](https://github.com/ulid/spec).
    pub(crate) fn new(store: &dyn Store) -> Self {
        let since_epoch = store.clock().wall().duration_since(SystemTime::UNIX_EPOCH);
        let ms = since_epoch.map_or(0, |since_epoch| since_epoch.as_millis());
        let ms = u64::try_from(ms).unwrap_or(0);
        Self(Ulid::from_parts(ms, random()).to_string().into())
    }
}

/// Random bits from the system: generators of a process are copied when it forks, and all its children would draw
/// the same ids.
pub(crate) fn random() -> u128 {
    let half = || u128::from(getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)));
    half() << 64 | half()
}

impl AsRef<str> for PermitId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
