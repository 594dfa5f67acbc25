//! Who holds, books and waits, and rows that belong to nobody and nothing.

use std::collections::BTreeMap;

use crate::checkup::{Checkup, FindingKind};
use crate::error::Error;
use crate::store::REMEMBERED_NS;
use crate::store::sqlite::inspector::Inspector;
use crate::store::sqlite::lock_file::LockFile;
use crate::store::sqlite::owners::{Owner, is_alive};
use crate::store::sqlite::transaction::{Transaction, print_boot};

impl Checkup {
    pub(super) fn look_at_people(&mut self, inspector: &Inspector) -> Result<(), Error> {
        let (mut gone, orphans) = inspector.look(|look| {
            let transaction = &look.transaction;
            self.look_at_permits(transaction)?;
            Ok((transaction.gone()?, transaction.orphans()?))
        })?;
        if !gone.is_empty() {
            // Whoever has ended meanwhile has given back what it held, and is in the file no more.
            let still = inspector.look(|look| look.transaction.gone())?;
            gone.retain(|owner, _| still.contains_key(owner));
        }
        for gone in gone.values() {
            self.find(gone.kind, &*format!("process {}", gone.pid), &*gone.holds);
        }
        let kinds = [
            FindingKind::DeadOwner,
            FindingKind::UnseenOwner,
            FindingKind::NoOwner,
        ];
        self.note_well(&kinds, "owners");
        for (table, count) in orphans {
            let what = format!("{count} rows belong to nothing that is there");
            self.find(FindingKind::Orphans, table, what);
        }
        self.note_well(&[FindingKind::Orphans], "no rows that belong to nothing");
        Ok(())
    }

    fn look_at_permits(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let expired = transaction.expired_long_ago()?;
        if expired > 0 {
            let what = format!("permits that have expired more than an hour ago: {expired}");
            self.find(FindingKind::ExpiredPermits, "permit", what);
        }
        for (table, count) in transaction.without_owner()? {
            let what = format!("{count} rows name owners that are not there");
            self.find(FindingKind::NoOwner, table, what);
        }
        Ok(())
    }
}

/// An owner whose lock does not say that it lives, and that holds something.
pub(super) struct Gone {
    pid: i64,
    kind: FindingKind,
    holds: String,
}

const HOLDERS: &str = "SELECT owner_id, pid, boot_id, lock_inode, slots, bookings, tickets FROM (
        SELECT *,
            (SELECT count(*) FROM permit AS p JOIN slot AS s USING (permit_id)
                WHERE p.owner_id = o.owner_id AND p.ended_ns IS NULL
                    AND (s.expires_ns IS NULL OR s.expires_ns > ?1)) AS slots,
            (SELECT count(*) FROM booking AS b WHERE b.owner_id = o.owner_id AND b.due_ns > ?1) AS bookings,
            (SELECT count(*) FROM ticket AS t WHERE t.owner_id = o.owner_id) AS tickets
        FROM owner AS o
    ) WHERE slots + bookings + tickets > 0";

impl Transaction<'_> {
    /// The owners that hold something and do not live, or not as far as anybody can see.
    pub(super) fn gone(&self) -> Result<BTreeMap<i64, Gone>, Error> {
        let holders: Vec<(Owner, i64, [i64; 3])> = self
            .link
            .connection
            .prepare_cached(HOLDERS)
            .and_then(|mut s| {
                s.query_map([self.now().as_nanos()], |row| {
                    let owner = Owner {
                        id: row.get(0)?,
                        boot: row.get(2)?,
                        lock_inode: row.get(3)?,
                    };
                    Ok((owner, row.get(1)?, [row.get(4)?, row.get(5)?, row.get(6)?]))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let boot = print_boot(self.timeline().boot);
        // Where there is none, no lock in it can be seen.
        let lock_file = LockFile::open_existing(&self.place.lock).ok();
        let mut gone = BTreeMap::new();
        for (owner, pid, [slots, bookings, tickets]) in holders {
            let lock_file = lock_file
                .as_ref()
                .filter(|lock_file| lock_file.inode() == owner.lock_inode);
            let kind = match lock_file {
                _ if owner.boot != boot => FindingKind::DeadOwner,
                Some(lock_file) => match is_alive(&owner, lock_file, &boot) {
                    Ok(false) => FindingKind::DeadOwner,
                    Ok(true) | Err(_) => continue,
                },
                None => FindingKind::UnseenOwner,
            };
            let holds = format!(
                "permits with slots: {slots}, bookings ahead: {bookings}, places in line: {tickets}"
            );
            gone.insert(owner.id, Gone { pid, kind, holds });
        }
        Ok(gone)
    }
}

const EXPIRED: &str = "SELECT count(*) FROM permit WHERE expires_ns <= ?1 AND ended_ns IS NULL";
const PERMITS: &str = "SELECT count(*) FROM permit
    WHERE ended_ns IS NULL AND owner_id IS NOT NULL AND owner_id NOT IN (SELECT owner_id FROM owner)";
const TICKETS: &str =
    "SELECT count(*) FROM ticket WHERE owner_id NOT IN (SELECT owner_id FROM owner)";
const BOOKINGS: &str = "SELECT count(*) FROM booking
    WHERE due_ns > ?1 AND owner_id NOT IN (SELECT owner_id FROM owner)";

impl Transaction<'_> {
    fn expired_long_ago(&self) -> Result<i64, Error> {
        let long_ago = self.now().saturating_minus_ns(REMEMBERED_NS);
        self.count_of(EXPIRED, [long_ago.as_nanos()])
    }

    /// Rows by their tables that name owners which are not there.
    fn without_owner(&self) -> Result<Vec<(&'static str, i64)>, Error> {
        let counts = [
            ("permit", self.count_of(PERMITS, [])?),
            ("ticket", self.count_of(TICKETS, [])?),
            ("booking", self.count_of(BOOKINGS, [self.now().as_nanos()])?),
        ];
        Ok(counts.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    pub(super) fn count_of(&self, sql: &str, with: impl rusqlite::Params) -> Result<i64, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(with, |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }
}

/// Rows of a table that belong to nothing.
pub(super) struct Orphans {
    pub(super) table: &'static str,
    pub(super) count: &'static str,
    /// The primary keys of the next ones after one, a few at a time.
    pub(super) find: &'static str,
    /// How many columns a primary key has.
    pub(super) columns: usize,
    /// Deletes the one with this key, if it still belongs to nothing.
    pub(super) delete: &'static str,
}

macro_rules! parameter {
    ($column:literal) => {
        ", ?"
    };
}

macro_rules! orphans {
    ($($table:literal ($first:literal $(, $column:literal)*) where $which:expr;)+) => {
        [$(Orphans {
            table: $table,
            count: concat!("SELECT count(*) FROM ", $table, " WHERE ", $which),
            find: concat!(
                "SELECT ", $first $(, ", ", $column)*, " FROM ", $table,
                " WHERE (", $first $(, ", ", $column)*, ") > (?" $(, parameter!($column))*, ") AND ", $which,
                " ORDER BY ", $first $(, ", ", $column)*, " LIMIT 256"
            ),
            columns: [$first $(, $column)*].len(),
            delete: concat!(
                "DELETE FROM ", $table,
                " WHERE (", $first $(, ", ", $column)*, ") = (?" $(, parameter!($column))*, ") AND ", $which
            ),
        },)+]
    };
}

macro_rules! no_definition {
    () => {
        "limit_id NOT IN (SELECT limit_id FROM limit_definition)"
    };
}

/// Each ledger that was removed is known as long as anybody may come back to it. One by one: a union would be put together
/// anew by each statement, and there can be a million keys.
macro_rules! no_ledger {
    ($id:literal) => {
        concat!(
            $id,
            " NOT IN (SELECT limit_id FROM limit_definition) AND ",
            $id,
            " NOT IN (SELECT limit_id FROM pattern_key) AND ",
            $id,
            " NOT IN (SELECT limit_id FROM removed_ledger)"
        )
    };
}
pub(super) use no_ledger;

/// Those that are deleted as they are.
pub(super) const DELETED: [Orphans; 11] = orphans! {
    "rate" ("limit_id", "window_ns") where no_definition!();
    "quota" ("limit_id", "period", "zone") where no_definition!();
    "refill" ("limit_id", "since_ns") where no_definition!();
    "pause_policy" ("limit_id") where no_definition!();
    "breaker_policy" ("limit_id") where no_definition!();
    "adaptation" ("limit_id") where no_definition!();
    "estimate" ("limit_id") where no_definition!();
    "permit_charge" ("permit_id", "limit_id") where "permit_id NOT IN (SELECT permit_id FROM permit)";
    "slot" ("limit_id", "permit_id") where "permit_id NOT IN (SELECT permit_id FROM permit)";
    "ticket_take" ("ticket_id", "limit_id") where "ticket_id NOT IN (SELECT ticket_id FROM ticket)";
    "booking" ("owner_id", "booking_id", "limit_id")
        where concat!("due_ns > (SELECT high_ns + 10000000000 FROM clock) AND ", no_ledger!("limit_id"));
};

// Charges can be many: from each ledger to the next, and not row by row.
macro_rules! ledgers_of {
    ($table:literal) => {
        concat!(
            "WITH RECURSIVE ids (id) AS (
                SELECT min(limit_id) FROM ",
            $table,
            "
                UNION ALL SELECT (SELECT min(limit_id) FROM ",
            $table,
            " WHERE limit_id > id) FROM ids
                WHERE id IS NOT NULL
            )
            SELECT id FROM ids WHERE id IS NOT NULL AND ",
            no_ledger!("id")
        )
    };
}

/// The numbers of ledgers that are no limit's, by the tables that they have rows in. They are swept as those of limits that
/// were removed.
pub(super) const SWEPT: [(&str, &str); 10] = [
    ("charge", ledgers_of!("charge")),
    ("slot", ledgers_of!("slot")),
    ("debt", ledgers_of!("debt")),
    ("bucket", ledgers_of!("bucket")),
    ("block", ledgers_of!("block")),
    ("correction", ledgers_of!("correction")),
    ("pause", ledgers_of!("pause")),
    ("strike", ledgers_of!("strike")),
    ("breaker", ledgers_of!("breaker")),
    ("outcome", ledgers_of!("outcome")),
];

impl Transaction<'_> {
    /// How many rows, or whole ledgers, of which tables belong to nothing.
    fn orphans(&self) -> Result<BTreeMap<&'static str, i64>, Error> {
        let mut orphans = BTreeMap::new();
        for Orphans { table, count, .. } in DELETED {
            *orphans.entry(table).or_default() += self.count_of(count, [])?;
        }
        for (table, sql) in SWEPT {
            let ledgers = self.numbers(sql)?;
            *orphans.entry(table).or_default() += i64::try_from(ledgers.len()).unwrap_or(i64::MAX);
        }
        orphans.retain(|_, count| *count > 0);
        Ok(orphans)
    }

    pub(super) fn numbers(&self, sql: &str) -> Result<Vec<i64>, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
            .map_err(|error| self.sqlite(error))
    }
}
