//! Calls that are tried again.

mod answer;
mod error;
mod event;
mod policy;
mod run;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

pub use self::answer::{Answer, Classify, ErrorsBy, Itself, Last, ResultsBy, Retryable};
pub use self::error::{RetryError, RetryErrorKind, Try};
use self::event::Listeners;
pub use self::event::RetryEvent;
pub use self::policy::{Jitter, MAX_RETRIES, RetryPolicy, RetryPolicyError};
use crate::limiter::Limiter;
use crate::permit::Permit;
use crate::request::Ask;
use crate::retry_budget::RetryBudget;

/// Makes a call that limits allow, and tries it again by this policy if it fails. Needs the feature `retry`.
///
/// ```
/// use std::time::Duration;
/// use quotalite::{Answer, Limit, Limiter, Request, RetryPolicy, Retryable, SECOND, retry};
///
/// #[derive(Debug)]
/// struct TooManyRequests {
///     retry_after: Duration,
/// }
///
/// impl Retryable for TooManyRequests {
///     fn answer(&self) -> Answer {
///         Answer::RateLimited { retry_after: Some(self.retry_after) }
///     }
/// }
///
/// let limiter = Limiter::in_memory()?;
/// limiter.define(Limit::new("openai:requests").per_second(10))?;
/// limiter.define(Limit::new("openai:tokens").per_minute(90_000))?;
///
/// let request = Request::new().take("openai:requests", 1).take("openai:tokens", 1_800);
/// let mut refusals = 1;
/// let call = || {
///     if refusals > 0 {
///         refusals -= 1;
///         let retry_after = Duration::from_millis(20);
///         return Err(TooManyRequests { retry_after });
///     }
///     Ok("an answer")
/// };
/// let policy = RetryPolicy::exponential(Duration::from_millis(5), 2).within(10 * SECOND);
/// let answer = retry(policy).run(&limiter, &request, call);
/// assert_eq!(answer.unwrap(), "an answer");
/// // Each try has paid.
/// assert_eq!(limiter.usage("openai:tokens")?.rates()[0].used(), 3_600);
/// # Ok::<(), quotalite::Error>(())
/// ```
///
/// See [`Retry`] for what else can be said, and for what happens.
pub fn retry<'a>(policy: RetryPolicy) -> Retry<'a> {
    Retry {
        policy,
        pauses: Pauses::First,
        budget: None,
        id: None,
        listeners: Listeners::default(),
        classifier: Itself,
    }
}

/// Makes calls that limits allow, and tries them again: see [`retry`].
///
/// Each try waits in line and pays by itself, as if it were a request of its own. What it was charged stays charged
/// when it fails, for the provider may have counted it; who knows that it was not [cancels](Permit::cancel) the permit in
/// [`run_with`](Self::run_with). Slots come back when the call has returned, or panicked: no permit is held while a job waits.
///
/// What the answer means decides what comes next ([`Answer`]). Errors say it themselves ([`Retryable`]), or a function
/// does: [`classify_errors`](Self::classify_errors), [`classify`](Self::classify).
///
/// - **Rate limited**: limits are [paused](Limiter::pause) for every process, by default the first one of the request, for as
///   long as was said or as the limit's [`PausePolicy`](crate::PausePolicy) says, up to the cap of that. The next try waits for
///   the end of the pause, or for the delay of the policy if that is longer.
/// - **Transient**: it is tried again after the delay of the policy.
/// - **Fatal**: it is given up.
///
/// A job is at most 1 + [`retries`](RetryPolicy::retries) calls; it may be fewer by a
/// [deadline](RetryPolicy::within) or a [budget](Self::budget). It can be run many times, each time for a job of its own.
#[must_use = "it does nothing until it is run"]
pub struct Retry<'a, C = Itself> {
    policy: RetryPolicy,
    pauses: Pauses,
    budget: Option<(String, RetryBudget)>,
    id: Option<Arc<str>>,
    listeners: Listeners<'a>,
    classifier: C,
}

/// What is paused when a call is rate limited.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pauses {
    /// The first limit of the request.
    First,
    Keys(Vec<String>),
}

impl<C> fmt::Debug for Retry<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("policy", &self.policy)
            .field("pauses", &self.pauses)
            .field("budget", &self.budget)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<'a> Retry<'a> {
    /// Lets a function say what errors mean; what is `Ok` is a success. An error that it takes for a success is
    /// [`Fatal`](Answer::Fatal): there is nothing to return in its place.
    ///
    /// ```
    /// use std::io::{self, ErrorKind};
    /// use quotalite::{Answer, Limit, Limiter, RetryErrorKind, RetryPolicy, retry};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("disk").per_second(10))?;
    /// let error = retry(RetryPolicy::default())
    ///     .classify_errors(|error: &io::Error| match error.kind() {
    ///         ErrorKind::TimedOut => Answer::Transient,
    ///         _ => Answer::Fatal,
    ///     })
    ///     .run(&limiter, "disk", || std::fs::read("/nowhere"))
    ///     .unwrap_err();
    /// assert_eq!(error.kind(), RetryErrorKind::Fatal);
    /// assert_eq!(error.into_last().unwrap().kind(), ErrorKind::NotFound);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn classify_errors<E, F>(self, answer: F) -> Retry<'a, ErrorsBy<F>>
    where
        F: FnMut(&E) -> Answer,
    {
        self.with_classifier(ErrorsBy(answer))
    }

    /// Lets a function say what results mean, values as well as errors: for clients that return a response whatever its
    /// status is. The last result of a job that is given up is a [`Last`].
    #[cfg_attr(
        feature = "http",
        doc = r#"
```
use std::time::SystemTime;
use http::Response;
use quotalite::{Answer, Last, Limit, Limiter, RetryPolicy, retry};

let limiter = Limiter::in_memory()?;
limiter.define(Limit::new("api").per_second(10))?;
let call = || -> Result<Response<&str>, std::io::Error> {
    Ok(Response::builder().status(404).body("nothing here").unwrap())
};
let error = retry(RetryPolicy::default())
    .classify(|result: &Result<Response<_>, _>| match result {
        Ok(response) => Answer::of_response(response.status(), response.headers(), SystemTime::now()),
        Err(_) => Answer::Transient,
    })
    .run(&limiter, "api", call)
    .unwrap_err();
let Some(Last::Returned(response)) = error.into_last() else { panic!() };
assert_eq!(*response.body(), "nothing here");
# Ok::<(), quotalite::Error>(())
```"#
    )]
    pub fn classify<T, E, F>(self, answer: F) -> Retry<'a, ResultsBy<F>>
    where
        F: FnMut(&Result<T, E>) -> Answer,
    {
        self.with_classifier(ResultsBy(answer))
    }

    fn with_classifier<C>(self, classifier: C) -> Retry<'a, C> {
        Retry {
            policy: self.policy,
            pauses: self.pauses,
            budget: self.budget,
            id: self.id,
            listeners: self.listeners,
            classifier,
        }
    }
}

impl<'a, C> Retry<'a, C> {
    /// Pauses this limit, rather than the first one of the request, when a call is rate limited; said several times, all of
    /// these. A limit that is not part of the request is paused, too, and waited for.
    pub fn pauses(mut self, key: impl Into<String>) -> Self {
        match &mut self.pauses {
            Pauses::First => self.pauses = Pauses::Keys(vec![key.into()]),
            Pauses::Keys(keys) => keys.push(key.into()),
        }
        self
    }

    /// Pauses nothing when a call is rate limited: for callers that pause limits themselves, as `Limiter::feedback` does.
    /// The job then waits for as long as it was told by itself.
    pub fn without_pausing(mut self) -> Self {
        self.pauses = Pauses::Keys(Vec::new());
        self
    }

    /// Makes retries only out of a budget that all processes share under this name (1 to 256 bytes, no control
    /// characters): [`Limiter::try_retry`]. The first call of each job is [noted](Limiter::note_call) there.
    pub fn budget(mut self, name: impl Into<String>, budget: RetryBudget) -> Self {
        self.budget = Some((name.into(), budget));
        self
    }

    /// Names the job in its [events](RetryEvent::id). By default each run has a new ULID.
    ///
    /// It has nothing to do with the [id of a request](crate::Request::id), under which only the first try is acquired: it may
    /// take up what was paid for before, and the others pay.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(Arc::from(id.into()));
        self
    }

    /// Calls this with each event, in the thread that runs the job. Nothing is held meanwhile but, in
    /// [`Resumed`](RetryEvent::Resumed), the permit of the try that begins.
    pub fn on_event(mut self, callback: impl FnMut(&RetryEvent) + 'a) -> Self {
        self.listeners.callbacks.push(Box::new(callback));
        self
    }

    /// Sends each event to this channel. It does not matter whether anybody listens.
    pub fn events(mut self, channel: Sender<RetryEvent>) -> Self {
        self.listeners.channels.push(channel);
        self
    }

    /// Runs a job: waits in line for what is asked for, calls, and tries again. See [`Retry`].
    ///
    /// # Errors
    /// [`RetryError`] says why it was given up ([`RetryErrorKind`]), what the last call came to, and what came before.
    ///
    /// # Panics
    /// Only if the call, the classifier or a callback does; slots come back then.
    pub fn run<'k, T, E>(
        &mut self,
        limiter: &Limiter,
        ask: impl Into<Ask<'k>>,
        mut call: impl FnMut() -> Result<T, E>,
    ) -> Result<T, RetryError<C::Last>>
    where
        C: Classify<T, E>,
    {
        self.run_job(limiter, ask.into(), |_permit| call())
    }

    /// [`run`](Self::run), for calls that settle or cancel the permit that they are made with.
    ///
    /// ```
    /// use quotalite::{Answer, Limit, Limiter, Permit, RetryPolicy, retry};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("tokens").per_minute(90_000))?;
    /// let call = |permit: &Permit| {
    ///     let used = 620;
    ///     permit.settle([("tokens", used)])?;
    ///     Ok::<_, quotalite::Error>(used)
    /// };
    /// let used = retry(RetryPolicy::default())
    ///     .classify_errors(|_: &quotalite::Error| Answer::Fatal)
    ///     .run_with(&limiter, ("tokens", 1_800), call);
    /// assert_eq!(used.unwrap(), 620);
    /// assert_eq!(limiter.usage("tokens")?.available(), 89_380);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_with<'k, T, E>(
        &mut self,
        limiter: &Limiter,
        ask: impl Into<Ask<'k>>,
        call: impl FnMut(&Permit) -> Result<T, E>,
    ) -> Result<T, RetryError<C::Last>>
    where
        C: Classify<T, E>,
    {
        self.run_job(limiter, ask.into(), call)
    }
}

/// A time for people: `2.0 s`, or `20 ms` if it is shorter than a tenth of a second.
fn in_seconds(time: Duration) -> String {
    if time.is_zero() || time >= Duration::from_millis(100) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    format!("{:.0} ms", time.as_secs_f64() * 1_000.0)
}
