//! Mending what can be mended beside workers that live.

use super::people::{DELETED, SWEPT};
use crate::calendar::LimitId;
use crate::error::Error;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::lock_file::LockFile;
use crate::store::sqlite::transaction::Transaction;

impl SqliteStore {
    /// What has expired, and what was removed here, is left to those who make the file small.
    pub(in crate::store::sqlite) fn mend_file(&self) -> Result<(), Error> {
        let session = self.session(self.deadline())?;
        self.write(&session, |transaction| transaction.mend(&session.lock_file))
    }
}

const OWNERS: &str = "SELECT owner_id FROM permit
        WHERE ended_ns IS NULL AND owner_id IS NOT NULL AND owner_id NOT IN (SELECT owner_id FROM owner)
    UNION SELECT owner_id FROM ticket WHERE owner_id NOT IN (SELECT owner_id FROM owner)
    UNION SELECT owner_id FROM booking WHERE owner_id NOT IN (SELECT owner_id FROM owner)";

impl Transaction<'_> {
    fn mend(&mut self, lock_file: &LockFile) -> Result<(), Error> {
        self.reclaim(lock_file)?;
        let reached = self.reached();
        for owner in self.numbers(OWNERS)? {
            self.reclaim_from(owner, reached)?;
        }
        self.write_charges()?;
        for (_, _, sql) in DELETED {
            let deleted = self
                .link
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute([]))
                .map_err(|error| self.sqlite(error))?;
            if deleted > 0 {
                self.wrote();
            }
        }
        for (_, sql) in SWEPT {
            for id in self.numbers(sql)? {
                self.give_up_ledger(LimitId(id))?;
            }
        }
        Ok(())
    }
}
