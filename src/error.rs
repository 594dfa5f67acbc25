//! What can go wrong, and what still holds when it does.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::decision::Denial;
use crate::definition::Use;
use crate::limit::{Limit, LimitError, MAX_CAPACITY, Obstacle};
use crate::llm::LlmError;
use crate::request::{MAX_BATCH, MAX_ID_BYTES, MAX_TAKES};

/// What can go wrong.
///
/// An error leaves the file as if the call had not been made: nothing is charged, booked or defined.
/// The one exception is said where it applies: a commit that fails with [`Error::Sqlite`] may leave the
/// question open whether it reached the disk; if it did, it counts as used.
///
/// A request that is only refused for now is no error but a [`Decision`](crate::Decision); contention
/// for the file is never reported as a refusal but as [`Error::Busy`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that was to be part of a definition is wrong: a rate, or a limit that was built by itself.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The definition of a limit or a pattern is wrong, or this program cannot read the one in the file: of a quota, if it
    /// was built without the feature `calendar`, or does not know the time zone. Nothing was changed.
    #[error("limit `{key}`: {source}")]
    Definition {
        /// The key, or the pattern.
        key: String,
        /// What is wrong.
        source: LimitError,
    },
    /// The request is wrong by itself, whatever is defined.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The names of a call to a language model make no key, or it does not say what it takes.
    #[error(transparent)]
    Llm(#[from] LlmError),
    /// The request names a limit that nobody has defined.
    #[error("limit `{key}` is not defined in {}", .file.display())]
    UnknownLimit {
        /// The key.
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// The amount is above a capacity, or the number of slots, so that no wait would help.
    #[error("limit `{key}` never admits {amount}: it has {obstacle}, in {}", .file.display())]
    NeverFits {
        /// The key of the limit.
        key: String,
        /// What was asked.
        amount: u64,
        /// What is too small.
        obstacle: Obstacle,
        /// The file.
        file: PathBuf,
    },
    /// The request fits only after the caller's deadline, or no slot came free until then. Nothing was booked.
    #[error("{denial}{} the deadline, in {}", too_late(.denial, *.deadline), .file.display())]
    TooLate {
        /// What stood in the way, and when the request would be admitted.
        denial: Denial,
        /// The last instant that the caller allowed.
        deadline: Timestamp,
        /// The file.
        file: PathBuf,
    },
    /// Waiting was [stopped](crate::Limiter::stop_waiting). What was booked is given back, as by dropping a
    /// [`Booking`](crate::Booking).
    #[error("waiting for limit `{key}` was stopped, in {}", .file.display())]
    Stopped {
        /// The key of the first limit that was asked for.
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// Something else was asked for under this id before. Nothing was charged.
    #[error("id `{id}` stands for another request, in {}: {stored}", .file.display())]
    IdTaken {
        /// The id.
        id: String,
        /// What was asked for: amounts and keys.
        stored: String,
        /// The file.
        file: PathBuf,
    },
    /// The line of bookings reaches beyond the year 2262.
    #[error("the bookings of limit `{key}` reach beyond the calendar, in {}", .file.display())]
    BeyondCalendar {
        /// The key of the limit.
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// The limit is already defined, differently.
    #[error(
        "limit is defined as {}`{stored}`, not as {}`{given}`, in {}",
        if_pattern(.stored), if_pattern(.given), .file.display()
    )]
    Conflict {
        /// The definition in the file.
        stored: Box<Limit>,
        /// The definition that the caller gave.
        given: Box<Limit>,
        /// The file.
        file: PathBuf,
    },
    /// The limit is of another kind, and what was taken of the one says nothing of the other. Nothing was changed.
    #[error("limit `{key}` is {stored} and cannot become {given}, in {}; remove it first", .file.display())]
    OtherKind {
        /// The key.
        key: String,
        /// What it is.
        stored: &'static str,
        /// What it was to become.
        given: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// What is charged was merged with a coarser resolution than the new definition has, and would not count by that for
    /// as long as it has to. Nothing was changed.
    #[error(
        "limit `{}` cannot have a finer resolution than what is charged to it was merged with, in {}: {stored}; \
        remove that first",
        .given.key(), .file.display()
    )]
    Finer {
        /// The definition in the file: of the limit, or of the pattern that has counted for its key until now.
        stored: Box<Limit>,
        /// The definition that the caller gave.
        given: Box<Limit>,
        /// The file.
        file: PathBuf,
    },
    /// The limit is in use, and was not removed.
    #[error("limit `{key}` is in use, in {}: {by}", .file.display())]
    InUse {
        /// The key.
        key: String,
        /// By what.
        by: Use,
        /// The file.
        file: PathBuf,
    },
    /// Another process or thread kept the file's write lock for longer than the caller could wait.
    #[error("{} was locked by others for {}", .file.display(), seconds(*.waited))]
    Busy {
        /// The file.
        file: PathBuf,
        /// How long the call waited for the lock.
        waited: Duration,
    },
    /// Something panicked at this call, in another thread that did it together with its own: the caller's clock, or its
    /// subscriber to traces. Nothing was changed.
    #[error("another thread panicked at this call")]
    Panicked,
    /// The file, or a file that belongs to it, was removed or replaced while it was open. The next call
    /// opens what stands at the path then, if anything does.
    #[error("{} was removed or replaced while it was open", .file.display())]
    Moved {
        /// The file that is no longer the one that was opened.
        file: PathBuf,
    },
    /// This process was forked while another thread was in the middle of a call, or a connection was being
    /// opened. What that thread had open can neither be used nor closed here, and it may have held locks of
    /// SQLite that all files share: this answer stays, for every file. Use the limiter before other threads do, or not after
    /// `fork`.
    #[error("{} was in use by another thread when this process was forked", .file.display())]
    Forked {
        /// The file.
        file: PathBuf,
    },
    /// The file was written by a newer version of this crate.
    #[error("{} has schema version {found}, this library knows versions up to {known}", .file.display())]
    NewerSchema {
        /// The file.
        file: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest version that this library knows.
        known: i64,
    },
    /// The file was written by an older version of this crate, or holds nothing yet, and is only to be read. A limiter that
    /// opens it brings it up to date, after which programs of the older version fail.
    #[error("{} has schema version {found}, and can be read once it was brought up to date to {current}", .file.display())]
    OlderSchema {
        /// The file.
        file: PathBuf,
        /// Its schema version.
        found: i64,
        /// The version that this library reads.
        current: i64,
    },
    /// The file is a database of another application.
    #[error("{} is a database of another application (application id {application_id:#x}, version {version})", .file.display())]
    ForeignFile {
        /// The file.
        file: PathBuf,
        /// The application id in its header.
        application_id: i64,
        /// The user version in its header.
        version: i64,
    },
    /// The file lies on a filesystem whose locks do not hold between processes.
    #[error("{} lies on {filesystem}, where locks between processes cannot be relied on; see `Builder::trust_filesystem`", .file.display())]
    Filesystem {
        /// The file.
        file: PathBuf,
        /// The name of the filesystem.
        filesystem: &'static str,
    },
    /// The SQLite that this program is linked with loses commits in WAL mode (fixed in 3.51.3).
    #[error("SQLite {found} can lose commits, 3.51.3 or later is needed")]
    OldSqlite {
        /// The version that is linked.
        found: String,
    },
    /// The file holds something that this library never writes.
    #[error("{} is damaged: {what}", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was found.
        what: String,
    },
    /// The machine's clock cannot be used.
    #[error("the clock cannot be used: {source}")]
    Clock {
        /// Why.
        source: io::Error,
    },
    /// A file could not be made or looked at.
    #[error("{}: {action}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// SQLite reported an error: a full disk, no permission, an I/O error, a damaged file. When the
    /// cause is gone, the same limiter works again.
    #[error("{}: {source}", .file.display())]
    Sqlite {
        /// The file.
        file: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

/// What is wrong with a request, or with what is said to have been used, by itself. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It names no limit.
    #[error("a request names at least one limit")]
    Empty,
    /// It names more than [`MAX_TAKES`] limits.
    #[error("a request names at most {MAX_TAKES} limits, this one names {count}")]
    TooManyTakes {
        /// How many it names.
        count: usize,
    },
    /// It asks for nothing of a limit.
    #[error("the amount of `{key}` is zero")]
    ZeroAmount {
        /// The key of the limit.
        key: String,
    },
    /// The bounds of an [`Adaptive`](crate::Adaptive) are 0 or the wrong way round, or it would not grow or not be cut.
    #[error(
        "an adaptive rate has 0 < floor <= ceiling <= 2^53, grows by 1 or more, and is cut to 1 to 99 percent"
    )]
    Adaptive,
    /// The window of a [`RetryBudget`](crate::RetryBudget) is shorter than a second or longer than an hour.
    #[error("the window of a retry budget is 1 s to 1 h, not {window:?}")]
    BudgetWindow {
        /// The window asked for.
        window: Duration,
    },
    /// The name of a retry budget is empty, longer than 256 bytes, or holds a control character.
    #[error(
        "the name of a retry budget has 1 to 256 bytes and no control characters, this one has {bytes} bytes"
    )]
    BudgetName {
        /// How many bytes the name has.
        bytes: usize,
    },
    /// It names a pattern where it has to name one of its keys.
    #[error("`{key}` is a pattern: each of its keys is paused and resumed by itself")]
    IsPattern {
        /// The pattern.
        key: String,
    },
    /// The permit was granted by another limiter.
    #[error("the permit was granted by another limiter")]
    OtherLimiter,
    /// The permit was settled, cancelled or has timed out before.
    #[error("the permit has ended")]
    Ended,
    /// There are more than [`MAX_BATCH`] things to do in one transaction.
    #[error("a batch does at most {MAX_BATCH} things, this one {count}")]
    BatchLength {
        /// How many there are.
        count: usize,
    },
    /// It asks for a place in the calendar, where slots and breakers have none: nobody knows when a holder ends.
    #[error("`{key}` cannot be booked ahead, as no slots or breakers can; `acquire` waits for it")]
    NotBookable {
        /// The key of the limit.
        key: String,
    },
    /// It asks for blocks of a limit that has no rates.
    #[error("`{key}` is {kind}; only rates and quotas are handed out in blocks")]
    NotInBlocks {
        /// The key of the limit.
        key: String,
        /// What it is.
        kind: &'static str,
    },
    /// Its id is empty, too long, or holds a control character.
    #[error(
        "an id has 1 to {MAX_ID_BYTES} bytes and no control characters, this one has {bytes} bytes"
    )]
    Id {
        /// How many bytes the id has.
        bytes: usize,
    },
    /// It says that more was used than any limit could have.
    #[error("{amount} of `{key}` cannot have been used: a capacity is at most {MAX_CAPACITY}")]
    TooMuch {
        /// The key of the limit.
        key: String,
        /// What is said to have been used.
        amount: u64,
    },
    /// It says what was used of a limit that the permit has charged nothing to, or of slots, which only come back.
    #[error("the permit has charged nothing to `{key}` that is settled by amount")]
    NotTaken {
        /// The key of the limit.
        key: String,
    },
    /// The limiter is in memory, and no transaction of a file can be part of it.
    #[error("a limiter in memory has no file")]
    NoFile,
    /// The transaction is one of another file.
    #[error("the transaction is on {}, which is not the file of the limiter", .path.display())]
    OtherFile {
        /// The file that the transaction is on.
        path: PathBuf,
    },
    /// The transaction does not hold the write lock, so that others could come in between.
    #[error(
        "the transaction does not hold the write lock; begin it with `TransactionBehavior::Immediate`"
    )]
    NoWriteLock,
    /// Slots and ids belong to a process that others know of, and no transaction can make it known before it commits.
    #[error(
        "slots and ids within a transaction need a connection that `Limiter::connect` has opened"
    )]
    NotConnected,
    /// The transaction was rolled back, or has not ended yet: nothing was charged.
    #[error("the transaction that the permit depends on was not committed")]
    NotCommitted,
    /// This thread has charged something in a transaction of its own that has not ended, and would wait for
    /// itself.
    #[error(
        "this thread is within a transaction of its own; end it first, and its provisional permits"
    )]
    WithinTransaction,
    /// A limit was to be changed to another one.
    #[error("the limit `{key}` cannot become `{given}`")]
    OtherKey {
        /// The key of the limit.
        key: String,
        /// The other key.
        given: String,
    },
    /// It names a limit twice.
    #[error("the limit `{key}` is named twice")]
    KeyTwice {
        /// The key of the limit.
        key: String,
    },
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl Error {
    /// Whether it says something of one request alone, so that others in the same transaction go on.
    pub(crate) const fn is_of_one(&self) -> bool {
        matches!(
            self,
            Self::Request(_)
                | Self::UnknownLimit { .. }
                | Self::NeverFits { .. }
                | Self::BeyondCalendar { .. }
                | Self::IdTaken { .. }
        )
    }
}

fn if_pattern(limit: &Limit) -> &'static str {
    if limit.is_pattern() {
        "the pattern "
    } else {
        ""
    }
}

fn too_late(denial: &Denial, deadline: Timestamp) -> String {
    match denial.retry_at() {
        Some(at) => format!(
            ", {} after",
            seconds(at.saturating_duration_since(deadline))
        ),
        None => " until".to_owned(),
    }
}

/// A duration for people, to the millisecond or, if it is shorter, in full.
fn seconds(duration: Duration) -> String {
    crate::decision::for_people(duration)
}
