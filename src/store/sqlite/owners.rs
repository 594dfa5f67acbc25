//! Owners: processes that book, wait in line or hold something. When one dies, what it had booked or held comes
//! back.

use std::collections::BTreeSet;
use std::io;

use super::ledger::Taken;
use super::lock_file::LockFile;
use super::transaction::{Transaction, print_boot};
use crate::clock::Timestamp;
use crate::error::Error;

/// How many ids are tried for a new owner, at most.
const MOST_IDS: usize = 1_000;

const INSERT_OWNER: &str =
    "INSERT INTO owner (pid, boot_id, lock_inode, since_ns) VALUES (?1, ?2, ?3, ?4)";

impl Transaction<'_> {
    /// Enters this process as an owner and takes the lock that says that it lives, before anybody else
    /// can see the row. The caller lets go of the lock if the transaction fails.
    ///
    /// Where a row was lost with its file, its id is given out again while its owner lives and holds the
    /// byte. The next id is free then, or the one after: none is given out twice in one transaction.
    pub(super) fn insert_owner(&mut self, lock_file: &LockFile) -> Result<i64, Error> {
        let (pid, boot) = (std::process::id(), print_boot(self.timeline().boot));
        let (lock_inode, since_ns) = (lock_file.inode(), self.now().as_nanos());
        self.wrote();
        for _ in 0..MOST_IDS {
            let id = self
                .link
                .connection
                .prepare_cached(INSERT_OWNER)
                .and_then(|mut statement| statement.insert((pid, &boot, lock_inode, since_ns)))
                .map_err(|error| self.sqlite(error))?;
            let is_mine = lock_file
                .lock_owner(id)
                .map_err(|source| self.place.failed("locking the byte of an owner", source))?;
            if is_mine {
                return Ok(id);
            }
            self.delete_owner(id)?;
        }
        Err(self.place.damaged(format!(
            "{MOST_IDS} owners in a row are held by processes that it does not know"
        )))
    }
}

pub(super) struct Owner {
    pub(super) id: i64,
    pub(super) boot: String,
    pub(super) lock_inode: i64,
}

const READ_OWNERS: &str = "SELECT owner_id, boot_id, lock_inode FROM owner";

impl Transaction<'_> {
    /// The owners whose locks say that they live no more.
    fn dead_owners(&self, lock_file: &LockFile) -> Result<Vec<Owner>, Error> {
        let owners: Vec<Owner> = self
            .link
            .connection
            .prepare_cached(READ_OWNERS)
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| {
                    Ok(Owner {
                        id: row.get(0)?,
                        boot: row.get(1)?,
                        lock_inode: row.get(2)?,
                    })
                };
                statement.query_map([], read)?.collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let boot = print_boot(self.timeline().boot);
        let mut dead = Vec::new();
        for owner in owners {
            let is_alive = is_alive(&owner, lock_file, &boot)
                .map_err(|source| self.place.failed("testing the byte of an owner", source))?;
            if !is_alive {
                dead.push(owner);
            }
        }
        Ok(dead)
    }

    /// Whether there is nobody dead from whom anything could come back.
    pub(super) fn all_owners_live(&self, lock_file: &LockFile) -> Result<bool, Error> {
        Ok(self.dead_owners(lock_file)?.is_empty())
    }

    /// Gives back what dead owners have booked and cannot have used. True if anything came back.
    ///
    /// An owner may have gone ahead and died since this transaction read the clock. So the clock is read
    /// again after its death is certain: what was booked for later than that, it cannot have used.
    pub(super) fn reclaim(&mut self, lock_file: &LockFile) -> Result<bool, Error> {
        let dead = self.dead_owners(lock_file)?;
        let reached = self.reached();
        let mut came_back = false;
        for owner in dead {
            came_back |= self.reclaim_from(owner.id, reached)?;
        }
        Ok(came_back)
    }

    /// Gives back what one owner has booked for later than `reached`, what it holds, and its places in line.
    pub(super) fn reclaim_from(&mut self, owner: i64, reached: Timestamp) -> Result<bool, Error> {
        let booked = self.find_owned(owner, reached)?;
        let mut came_back = !booked.is_empty();
        if came_back {
            self.tell_reclaimed(owner, &booked)?;
            for (charge, amount) in booked {
                self.amend(charge, -amount)?;
            }
        }
        came_back |= self.abandon_all_of(owner, reached)?;
        came_back |= self.remove_from_line(owner)?;
        self.forget_bookings(owner)?;
        self.delete_owner(owner)?;
        Ok(came_back)
    }
}

const DELETE_OWNER: &str = "DELETE FROM owner WHERE owner_id = ?1";

impl Transaction<'_> {
    fn delete_owner(&mut self, id: i64) -> Result<(), Error> {
        self.wrote();
        self.link
            .connection
            .prepare_cached(DELETE_OWNER)
            .and_then(|mut statement| statement.execute([id]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    fn tell_reclaimed(&self, owner: i64, booked: &[(Taken, i64)]) -> Result<(), Error> {
        if !tracing::enabled!(tracing::Level::INFO) {
            return Ok(());
        }
        for limit in booked
            .iter()
            .map(|(charge, _)| charge.limit)
            .collect::<BTreeSet<_>>()
        {
            let known = self
                .read_definition_from(limit)?
                .filter(|known| known.id == limit);
            tracing::info!(
                limit = known.as_ref().map(|known| known.limit.key()),
                owner,
                charges = booked
                    .iter()
                    .filter(|(charge, _)| charge.limit == limit)
                    .count(),
                "reclaimed the bookings of a dead process"
            );
        }
        Ok(())
    }
}

/// Only the lock tells: a process id can be in use again, or mean another process in another namespace.
pub(super) fn is_alive(owner: &Owner, lock_file: &LockFile, boot: &str) -> io::Result<bool> {
    if owner.boot != boot {
        return Ok(false);
    }
    if owner.lock_inode != lock_file.inode() {
        // Its lock is in a lock file that was removed since, where nobody can see it.
        return Ok(true);
    }
    if owner.id < 1 {
        return Ok(false);
    }
    lock_file.is_alive(owner.id)
}
