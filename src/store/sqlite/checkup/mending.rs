//! Mending what can be mended beside workers that live: what belongs to nothing is looked for without the write lock, and
//! removed a little at a time.

use std::time::{Duration, Instant};

use rusqlite::params_from_iter;
use rusqlite::types::Value;

use super::people::{DELETED, Orphans, SWEPT, no_ledger};
use crate::calendar::LimitId;
use crate::error::Error;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::session::Session;
use crate::store::sqlite::transaction::Transaction;

/// For how long one transaction goes on. Others have their turns in between.
const STEP: Duration = Duration::from_millis(2);

impl SqliteStore {
    /// What has expired, and the ledgers that are given up here, are left to those who make the file small.
    ///
    /// Whoever is killed in between leaves a file with less to mend than before.
    pub(in crate::store::sqlite) fn mend_file(&self) -> Result<(), Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| {
            transaction.reclaim(&session.lock_file)
        })?;
        for owner in self.read(|transaction| transaction.numbers(OWNERS))? {
            self.write(&session, |transaction| transaction.reclaim_from_none(owner))?;
        }
        for orphans in &DELETED {
            self.delete(&session, orphans)?;
        }
        for (_, sql) in SWEPT {
            let found = self.read(|transaction| transaction.numbers(sql))?;
            let mut left = found.as_slice();
            while !left.is_empty() {
                let done = self.write(&session, |transaction| transaction.give_up_some(left))?;
                left = &left[done..];
            }
        }
        Ok(())
    }

    fn delete(&self, session: &Session, orphans: &Orphans) -> Result<(), Error> {
        let mut after = vec![Value::Integer(i64::MIN); orphans.columns];
        loop {
            let found = self.read(|transaction| transaction.orphans_after(orphans, &after))?;
            let Some(last) = found.last() else {
                return Ok(());
            };
            after.clone_from(last);
            self.write(session, |transaction| transaction.delete(orphans, &found))?;
        }
    }
}

const OWNERS: &str = "SELECT owner_id FROM permit
        WHERE ended_ns IS NULL AND owner_id IS NOT NULL AND owner_id NOT IN (SELECT owner_id FROM owner)
    UNION SELECT owner_id FROM ticket WHERE owner_id NOT IN (SELECT owner_id FROM owner)
    UNION SELECT owner_id FROM booking WHERE owner_id NOT IN (SELECT owner_id FROM owner)";
const IS_NONE: &str = "SELECT ?1 NOT IN (SELECT owner_id FROM owner)";
const IS_NO_LEDGER: &str = concat!("SELECT ", no_ledger!("?1"));

// What was found can have come to belong to something before the write lock was had: a number that was free is given out
// again. So each of these looks once more.
impl Transaction<'_> {
    fn reclaim_from_none(&mut self, owner: i64) -> Result<(), Error> {
        if self.holds(IS_NONE, owner)? {
            let reached = self.reached();
            self.reclaim_from(owner, reached)?;
        }
        Ok(())
    }

    fn delete(&mut self, orphans: &Orphans, found: &[Vec<Value>]) -> Result<(), Error> {
        let connection = self.link.connection;
        let delete = || -> rusqlite::Result<usize> {
            let mut statement = connection.prepare_cached(orphans.delete)?;
            let each = found
                .iter()
                .map(|key| statement.execute(params_from_iter(key)));
            each.sum()
        };
        if delete().map_err(|error| self.sqlite(error))? > 0 {
            self.wrote();
        }
        Ok(())
    }

    /// Gives up as many of these ledgers as there is time for, one at least. Returns how many.
    fn give_up_some(&mut self, found: &[i64]) -> Result<usize, Error> {
        let until = Instant::now() + STEP;
        let mut done = 0;
        for id in found {
            if self.holds(IS_NO_LEDGER, *id)? {
                self.give_up_ledger(LimitId(*id))?;
            }
            done += 1;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(done)
    }
}

impl Transaction<'_> {
    fn orphans_after(&self, orphans: &Orphans, after: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
        self.link
            .connection
            .prepare_cached(orphans.find)
            .and_then(|mut s| {
                let columns = 0..orphans.columns;
                let key = |row: &rusqlite::Row<'_>| columns.clone().map(|n| row.get(n)).collect();
                s.query_map(params_from_iter(after), key)?.collect()
            })
            .map_err(|error| self.sqlite(error))
    }

    /// Whether something is so for a number.
    fn holds(&self, sql: &str, number: i64) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([number], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }
}
