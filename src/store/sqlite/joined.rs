//! Requests that are decided inside a transaction of the caller's own.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionState};

use super::SqliteStore;
use super::acquire::{Attempt, attempt};
use super::checkpoints::PAGES_LONG;
use super::connection::{flags, prepare, wait_for_lock_of_caller};
use super::file_control::has_moved;
use super::memo::Memo;
use super::session::Session;
use super::transaction::Transaction;
use crate::error::{Error, RequestError};
use crate::plan::Plan;
use crate::store::{Claim, Outcome, Pending, REMEMBERED_NS};

/// A connection to a limiter's file for tables of the caller's own: see
/// [`Limiter::connect`](crate::Limiter::connect). It can be used like the [`rusqlite::Connection`] that it is.
///
/// It is not to be taken through `fork`. As long as one is open, a child that is forked gets [`Error::Forked`]
/// from every limiter: SQLite would count the parent's locks as the child's. And if the file, or one that belongs
/// to it, is removed or replaced meanwhile, no limiter of this process opens what stands there ([`Error::Busy`])
/// until it is dropped.
#[derive(Debug)]
pub struct TableConnection {
    // Closed before others may open what stands at its path then.
    connection: Connection,
    lent_by: Lent,
}

/// The session whose files are in use as long as the connection is.
#[derive(Debug)]
struct Lent(Arc<Session>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.gives_connection_back();
    }
}

impl TableConnection {
    fn new(connection: Connection, session: Arc<Session>) -> Self {
        Self {
            connection,
            lent_by: Lent(session),
        }
    }
}

impl Drop for TableConnection {
    fn drop(&mut self) {
        // A child is not to take itself for the last user of the file, and remove its WAL; nor is anybody to copy a WAL
        // into a database that it does not belong to any more.
        let session = &self.lent_by.0;
        if (!session.is_ours() || !session.watch.clone().look())
            && let Err(error) = self
                .connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        {
            tracing::error!(%error, "a connection may touch a WAL that is not its own");
        }
    }
}

impl Deref for TableConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for TableConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

thread_local! {
    /// The files in which a transaction of this thread's has charged something, and has not ended as far as anybody
    /// knows.
    static PENDING: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// Says until it is dropped that a transaction of this thread holds the write lock of a file.
#[derive(Debug)]
pub(crate) struct Held(PathBuf);

impl Held {
    fn by_this_thread(file: &Path) -> Self {
        PENDING.with_borrow_mut(|pending| pending.push(file.to_owned()));
        Self(file.to_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A thread that ends may have given up its list before what is dropped with it.
        let _ = PENDING.try_with(|pending| {
            let mut pending = pending.borrow_mut();
            if let Some(place) = pending.iter().position(|file| *file == self.0) {
                pending.swap_remove(place);
            }
        });
    }
}

/// Refuses to wait for a lock that this very thread holds.
pub(super) fn check_not_within(file: &Path) -> Result<(), RequestError> {
    let is_it = |pending: &RefCell<Vec<PathBuf>>| {
        let pending = pending.borrow();
        pending.iter().any(|within| within == file)
    };
    if PENDING.try_with(is_it).unwrap_or(false) {
        return Err(RequestError::WithinTransaction);
    }
    Ok(())
}

/// How many statements a connection of the caller's keeps: theirs, and the few that decide a request.
const STATEMENTS: usize = 64;

impl SqliteStore {
    /// A connection to the file for the caller's own tables.
    pub(super) fn open_for_caller(&self) -> Result<TableConnection, Error> {
        let deadline = self.deadline();
        let session = self.session(deadline)?;
        check_not_within(&self.place.database)?;
        // What a transaction of the caller's could not do for itself: others see it only once that has ended.
        self.become_owner(&session, deadline)?;
        let failed = |error| self.place.sqlite(error);
        let connection =
            Connection::open_with_flags(&self.place.database, flags()).map_err(failed)?;
        prepare(&connection, self.options.durability)
            .and_then(|()| connection.busy_handler(Some(wait_for_lock_of_caller)))
            // Nobody of this crate sees when it commits.
            .and_then(|()| connection.pragma_update(None, "wal_autocheckpoint", PAGES_LONG))
            .map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        if has_moved(&connection) || !session.watch.clone().look() {
            return Err(self.place.moved());
        }
        session.lends_connection();
        Ok(TableConnection::new(connection, session))
    }

    /// Decides a request inside a transaction on this connection, which holds the write lock.
    pub(super) fn decide_within(
        &self,
        connection: &Connection,
        plan: &Plan<'_>,
    ) -> Result<(Outcome, Pending), Error> {
        let deadline = self.deadline();
        let session = self.session(deadline)?;
        self.check_same_file(connection, &session)?;
        let state = connection
            .transaction_state(Some("main"))
            .map_err(|error| self.place.sqlite(error))?;
        if state != TransactionState::Write {
            return Err(RequestError::NoWriteLock.into());
        }
        let (mut memo, mut stuck) = (Memo::default(), false);
        let mut transaction = Transaction::join(
            connection,
            (&mut memo, &mut stuck),
            &self.place,
            &session,
            &*self.options.clock,
        )?;
        let outcome = match attempt(&mut transaction, &session, plan, None)? {
            Attempt::Done(outcome) => outcome,
            Attempt::NeedsOwner => return Err(RequestError::NotConnected.into()),
        };
        let is_admitted = matches!(outcome, Outcome::Admitted { .. });
        let mut pending = Pending::default();
        if is_admitted {
            pending.number = transaction.enter_provisional()?;
            pending.held = Some(Held::by_this_thread(&self.place.database));
        }
        // Who was told that it is its turn looks by itself before long, and by then this has ended or not.
        transaction.finish()?;
        Ok((outcome, pending))
    }

    /// Whether the transaction was committed that this was part of.
    pub(super) fn was_committed(&self, claim: &Claim, number: i64) -> Result<bool, Error> {
        let is_committed = self.read(|transaction| transaction.is_committed(number))?;
        if is_committed && let Err(error) = self.clean_up_in_turn(claim) {
            tracing::debug!(%error, "it is cleaned up later");
        }
        Ok(is_committed)
    }

    /// What other acquisitions do in passing, and one within a transaction of the caller's does not: sweeps, and a WAL
    /// that starts anew.
    fn clean_up_in_turn(&self, claim: &Claim) -> Result<(), Error> {
        let deadline = self.deadline();
        let session = self.session(deadline)?;
        let Some(turn) = session.sweep_turn() else {
            return Ok(());
        };
        self.write(&session, |transaction| {
            for row in &claim.rows {
                if let Some(known) = transaction.find(&row.key)? {
                    transaction.sweep_ledger(known.id, &known.limit)?;
                }
            }
            let next = transaction.sweep(&[], turn)?;
            session.swept(next);
            Ok(())
        })
    }

    fn check_same_file(&self, connection: &Connection, session: &Session) -> Result<(), Error> {
        let path = connection.path().filter(|path| !path.is_empty());
        if !path.is_some_and(|path| is_same_file(Path::new(path), &self.place.database)) {
            return Err(RequestError::OtherFile {
                path: path.unwrap_or(":memory:").into(),
            }
            .into());
        }
        if has_moved(connection) || !session.watch.clone().look() {
            return Err(self.place.moved());
        }
        Ok(())
    }
}

const ENTER: &str = "INSERT INTO provisional (number, at_ns) VALUES (?1, ?2)";
const FIND: &str = "SELECT EXISTS (SELECT 1 FROM provisional WHERE number = ?1)";
const FORGET: &str = "DELETE FROM provisional
    WHERE number IN (SELECT number FROM provisional WHERE at_ns <= ?1 ORDER BY at_ns LIMIT 256)";

impl Transaction<'_> {
    /// Leaves something by which it is seen later whether this was committed.
    fn enter_provisional(&mut self) -> Result<i64, Error> {
        self.wrote();
        let number = fastrand::i64(..);
        self.link
            .connection
            .prepare_cached(ENTER)
            .and_then(|mut s| s.execute((number, self.now().as_nanos())))
            .map(|_| number)
            .map_err(|error| self.sqlite(error))
    }

    pub(super) fn is_committed(&self, number: i64) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(FIND)
            .and_then(|mut s| s.query_row([number], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    /// Forgets transactions that nobody asks about any more, a few at a time.
    pub(super) fn sweep_provisional(&mut self) -> Result<(), Error> {
        let oldest_ns = self.now().saturating_minus_ns(REMEMBERED_NS).as_nanos();
        let forgotten = self
            .link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute([oldest_ns]))
            .map_err(|error| self.sqlite(error))?;
        if forgotten > 0 {
            self.wrote();
        }
        Ok(())
    }
}

#[cfg(unix)]
fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
