//! Requests that are decided inside a transaction of the caller's own.

use std::cell::RefCell;
use std::path::Path;

use rusqlite::{Connection, TransactionState};

use super::SqliteStore;
use super::acquire::{Attempt, attempt};
use super::connection::{flags, prepare};
use super::file_control::has_moved;
use super::memo::Memo;
use super::session::Session;
use super::transaction::Transaction;
use crate::error::{Error, RequestError};
use crate::plan::Plan;
use crate::store::{Outcome, Pending};

thread_local! {
    /// The sessions in whose files a transaction of this thread's has charged something, and has not ended as far as
    /// anybody knows.
    static PENDING: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Says until it is dropped that a transaction of this thread holds the write lock of a session's file.
#[derive(Debug)]
pub(crate) struct Held(u64);

impl Held {
    fn by_this_thread(session: &Session) -> Self {
        PENDING.with_borrow_mut(|pending| pending.push(session.number));
        Self(session.number)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        PENDING.with_borrow_mut(|pending| {
            if let Some(place) = pending.iter().position(|number| *number == self.0) {
                pending.swap_remove(place);
            }
        });
    }
}

/// Refuses to wait for a lock that this very thread holds.
pub(super) fn check_not_within(session: &Session) -> Result<(), RequestError> {
    let is_within = PENDING.with_borrow(|pending| pending.contains(&session.number));
    if is_within {
        return Err(RequestError::WithinTransaction);
    }
    Ok(())
}

/// How many statements a connection of the caller's keeps: theirs, and the few that decide a request.
const STATEMENTS: usize = 64;

impl SqliteStore {
    /// A connection to the file for the caller's own tables.
    pub(super) fn open_for_caller(&self) -> Result<Connection, Error> {
        let deadline = self.busy_deadline();
        let session = self.session(deadline)?;
        check_not_within(&session)?;
        // What a transaction of the caller's could not do for itself: others see it only once that has ended.
        self.become_owner(&session, deadline)?;
        let failed = |error| self.place.sqlite(error);
        let connection =
            Connection::open_with_flags(&self.place.database, flags()).map_err(failed)?;
        prepare(&connection, self.options.durability)
            .and_then(|()| connection.busy_timeout(self.options.busy_deadline))
            .map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        if has_moved(&connection) || !session.watch.clone().look() {
            return Err(self.place.moved());
        }
        Ok(connection)
    }

    /// Decides a request inside a transaction on this connection, which holds the write lock.
    pub(super) fn decide_within(
        &self,
        connection: &Connection,
        plan: &Plan<'_>,
    ) -> Result<(Outcome, Pending), Error> {
        let deadline = self.busy_deadline();
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
            &session.watch,
            &*self.options.clock,
        )?;
        let outcome = match attempt(&mut transaction, &session, plan, None)? {
            Attempt::Done(outcome) => outcome,
            Attempt::NeedsOwner => return Err(RequestError::NotConnected.into()),
        };
        // Who was told that it is its turn looks by itself before long, and by then this has ended or not.
        transaction.finish()?;
        let held = matches!(outcome, Outcome::Admitted { .. });
        let held = held.then(|| Held::by_this_thread(&session));
        Ok((outcome, Pending(held)))
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
