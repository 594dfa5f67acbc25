//! Exact rate limits that unrelated processes on one machine share through one SQLite file.
//!
//! A request for several limits (10 a second and 300 a minute, 90 000 tokens a minute) is admitted whole
//! or not at all, in one `BEGIN IMMEDIATE` transaction over timestamp tables. There is no daemon, and
//! nothing runs while nobody calls; nothing is forgotten across restarts, and nothing is lost when a process dies.
//!
//! ```
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("limits.db");
//! use std::time::Duration;
//! use quotalite::{Decision, Limit, Limiter, MINUTE, Request};
//!
//! let limiter = Limiter::open(path)?;
//! limiter.define(Limit::new("openai:requests").per_second(10).per_minute(300))?;
//! limiter.define(Limit::new("openai:tokens").rate(90_000, MINUTE).unit("tokens"))?;
//!
//! // One, now or not; a denial knows when to come back, and what stood in the way.
//! match limiter.try_acquire("openai:requests")? {
//!     Decision::Granted(_permit) => println!("go"),
//!     Decision::Denied(denial) => println!("{denial}"),
//! }
//!
//! // Wait in line for at most 5 s; refused at once if that cannot be met.
//! let ask = Request::new().take("openai:requests", 1).take("openai:tokens", 1_800);
//! let permit = limiter.acquire_within(&ask, Duration::from_secs(5))?;
//! println!("charged at {:?}, after {:?} in line", permit.at(), permit.waited());
//! # Ok::<(), quotalite::Error>(())
//! ```
//!
//! # Where to look
//!
//! - [`Limiter`]: everything that callers do. [`Builder`] sets up how a file is opened.
//! - [`Limit`], [`Rate`]: definitions; [`Limit::slots`] for how many may run at once, [`Bucket`] for what refills,
//!   [`Quota`] for calendars, [`Limit::pattern`] for many keys. [`Request`], [`Ask`]: what is asked for.
//! - [`Limiter::update`], [`Limiter::remove`], [`Limiter::changes`]: limits that are changed while they are in use.
//! - [`Limiter::try_acquire_in`]: requests within a transaction of the caller's own; [`Provisional`] permits.
#![cfg_attr(
    feature = "file",
    doc = "- [`LimitsFile`], [`Limiter::apply`]: definitions that an operator writes in a TOML file."
)]
#![cfg_attr(
    feature = "http",
    doc = "- [`Feedback`]: what a server's responses say about its limits. [`LimitFields`]: the same, for servers to say."
)]
#![cfg_attr(
    feature = "retry",
    doc = "- [`retry`], [`RetryPolicy`]: calls that are tried again, each time admitted anew, and that teach everybody what they were told."
)]
#![cfg_attr(
    feature = "inspect",
    doc = "- [`Inspector`]: a look into the file, for people and dashboards, that changes nothing. [`Checkup`]: what may be wrong with it."
)]
//! - [`Limiter::blocks`], [`Blocks`]: hot keys, handed out from memory. [`LimitBuilder::resolution`]: their long windows,
//!   kept small. [`LimitBuilder::keep`]: what was charged, kept to be looked at.
//! - [`Limiter::pause`], [`Backoff`], [`PausePolicy`]: nobody before an instant, when a provider has said no.
//!   [`Limit::breaker`], [`Permit::report`]: nobody for a while, when calls fail. [`RetryBudget`]: how many may be tried
//!   again. [`Limiter::adapt`]: a rate that follows what is refused.
//! - [`Decision`], [`Denial`], [`Permit`], [`Booking`], [`Peek`], [`Usage`]: the answers.
//! - [`Permit::settle`], [`Permit::cancel`], [`Permit::detach`]: what becomes of a permit; [`Settled`] tells, and
//!   [`Overage`] says what a limit does about too low an estimate. [`PermitId`], [`Request::id`]: permits that other
//!   processes know, and that are granted once.
//! - [`Estimator`], [`EstimateTokens`]: how many tokens to ask for, learned from what was used. [`llm`]: the usual limits of
//!   calls to language models, and requests for them.
//! - [`Error`]: what can go wrong, and what still holds then.
//! - [`ManualClock`]: for tests, together with [`Limiter::in_memory_with`].
//!
//! # Features
//!
//! - `calendar`: quotas that end with the day, week, month or year of a time zone ([`LimitBuilder::quota`]). Without it, a
//!   file that has such limits can be opened; whatever names these fails, and so does [`Limiter::limits`].
//! - `file`: limits read from a TOML file, and applied as a whole.
//! - `http`: what HTTP responses say about limits, read from their headers and written into them.
//! - `inspect`: a look into the file that changes nothing.
//! - `retry`: calls that are tried again.
//! - `tiktoken`: tokens counted by the tokenizers of OpenAI's models. It makes a program some megabytes larger.
//!
//! # What is promised, and where
//!
//! A charge at `t` counts at `s` in a window of length `w` when `s - w < t <= s`. At every instant the sum in
//! every rate's window is at most its capacity, over all processes, threads and restarts, whatever the wall
//! clock does; only an amount that is [settled](Permit::settle) above its estimate can show afterwards that a
//! window that has ended was over, and is charged in windows that are full where the limit says so
//! ([`Overage::Charge`]). No slot is granted beyond those that a limit has.
//!
//! Linux is where all of this is promised and tested. On macOS and Windows the crate is meant to compile, but
//! is not tested: there the wall clock stands in for the boot clock, and nobody notices when the
//! file is replaced on Windows.
//!
//! A limiter may be used after `fork`, in parent and child: the child opens the file anew with its first
//! call, unless another thread was in the middle of a call or a connection was being opened
//! ([`Error::Forked`], then and from then on). Until that call, or its `exec`, it keeps its parent's bookings
//! and slots alive.
//!
//! Two copies of SQLite in one process must not open the same file: POSIX locks belong to the process, and
//! one copy would drop those of the other. If your program links SQLite by another way than
//! `rusqlite`, inspect the file from another process.
#![warn(unreachable_pub)]

mod adaptive;
mod batch;
mod blocks;
mod breaker;
mod calendar;
#[cfg(feature = "inspect")]
mod checkup;
mod clock;
mod decision;
mod definition;
mod error;
mod estimate;
#[cfg(feature = "http")]
mod feedback;
#[cfg(feature = "inspect")]
mod inspection;
mod limit;
mod limiter;
#[cfg(feature = "file")]
mod limits_file;
mod line;
pub mod llm;
mod pause;
mod permit;
mod plan;
mod process;
mod request;
#[cfg(feature = "retry")]
mod retry;
mod retry_budget;
mod settlement;
mod store;
mod usage;

pub use adaptive::Adaptive;
pub use batch::Handle;
pub use blocks::Blocks;
pub use breaker::{BreakerPolicy, BreakerState, BreakerUsage, Report};
#[cfg(feature = "inspect")]
pub use checkup::{Checkup, Finding, FindingKind, Severity};
pub use clock::{BootId, Clock, ManualClock, SystemClock, Timestamp};
pub use decision::{Decision, Denial, Peek};
pub use definition::{Action, Definition, LimitChange, OnConflict, Use};
pub use error::{Error, RequestError};
pub use estimate::{
    ByteBound, Estimate, EstimateRatio, EstimateTokens, Estimator, Framed, TextEstimate,
};
#[cfg(feature = "tiktoken")]
pub use estimate::{Tiktoken, UnknownModel};
#[cfg(feature = "http")]
pub use feedback::{Advertised, Counted, Dialect, Feedback, Heard, Learned, LimitFields, LimitSet};
#[cfg(feature = "inspect")]
pub use inspection::{
    BookingRow, ChargeKind, ChargeRow, OwnerId, OwnerRow, PermitRow, PermitState, SpenderRow,
    WaiterRow,
};
pub use limit::{
    AsGiven, Bucket, DAY, HOUR, Limit, LimitBuilder, LimitError, MAX_CAPACITY, MAX_KEY_BYTES,
    MAX_RATES, MAX_UNIT_BYTES, MAX_WINDOW, MIN_WINDOW, MINUTE, Obstacle, ParseRatesError, Period,
    Quota, Rate, SECOND, Window,
};
pub use limiter::{Builder, Limiter};
#[cfg(feature = "file")]
pub use limits_file::{FilePlace, LimitsFile, LimitsFileError};
pub use pause::{Backoff, MAX_STRIKES, Pause, PausePolicy};
pub use permit::{Booking, Permit, PermitId, Provisional};
pub use request::{Ask, MAX_BATCH, MAX_ID_BYTES, MAX_TAKES, Request};
#[cfg(feature = "retry")]
pub use retry::{
    Answer, Classify, ErrorsBy, Itself, Jitter, Last, MAX_RETRIES, ResultsBy, Retry, RetryError,
    RetryErrorKind, RetryEvent, RetryPolicy, RetryPolicyError, Retryable, Try, retry,
};
pub use retry_budget::RetryBudget;
pub use settlement::{Overage, Settled, SettledAmount, Settlement};
pub use store::{Compacted, Durability, TableConnection};
#[cfg(feature = "inspect")]
pub use store::{Inspector, Look};
pub use usage::{BucketUsage, RateUsage, Usage};

/// The version of `rusqlite` that connections and transactions of the caller's own have to be of.
pub use rusqlite;

/// So are those of the page about providers.
#[cfg(all(doctest, feature = "http", feature = "retry"))]
#[doc = include_str!("../docs/providers.md")]
struct Providers;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
