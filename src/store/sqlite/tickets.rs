//! Tickets: who waits in line, and whose turn it is.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::{LimitId, Line};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::line::{MOST_AHEAD, Waiter, who_can_go};
use crate::store::{Few, TicketId};

/// How long a limit is kept for somebody who was told to go and does not: it may have been stopped.
const LATE_AFTER_NS: i64 = 1_000_000_000;

const INSERT: &str = "INSERT INTO ticket (owner_id, since_ns, deadline_ns) VALUES (?1, ?2, ?3)";
const INSERT_TAKE: &str =
    "INSERT INTO ticket_take (ticket_id, limit_id, amount) VALUES (?1, ?2, ?3)";

impl Transaction<'_> {
    /// Goes to the end of the line.
    pub(super) fn queue(
        &mut self,
        owner: i64,
        lines: &[Line<'_>],
        latest: Timestamp,
    ) -> Result<TicketId, Error> {
        self.wrote();
        self.link.memo.nobody_waits = None;
        let since = self.now();
        let deadline_ns = Some(latest.as_nanos()).filter(|ns| *ns < i64::MAX);
        let connection = self.link.connection;
        let insert = || -> rusqlite::Result<i64> {
            let number = connection.prepare_cached(INSERT)?.insert((
                owner,
                since.as_nanos(),
                deadline_ns,
            ))?;
            for line in lines {
                connection.prepare_cached(INSERT_TAKE)?.execute((
                    number,
                    line.id.0,
                    line.amount,
                ))?;
            }
            Ok(number)
        };
        let number = insert().map_err(|error| self.sqlite(error))?;
        Ok(TicketId {
            number,
            owner,
            since,
        })
    }
}

const WAITS_ON: &str = "UPDATE ticket SET ready_ns = NULL
    WHERE ticket_id = ?1 AND owner_id = ?2 AND since_ns = ?3 AND ready_ns IS NOT NULL";
const FIND: &str = "SELECT 1 FROM ticket WHERE ticket_id = ?1 AND owner_id = ?2 AND since_ns = ?3";

impl Transaction<'_> {
    /// Whether a ticket is still in line.
    pub(super) fn is_in_line(&self, ticket: TicketId) -> Result<bool, Error> {
        let key = (ticket.number, ticket.owner, ticket.since.as_nanos());
        self.link
            .connection
            .prepare_cached(FIND)
            .and_then(|mut s| s.query_row(key, |_| Ok(())).optional())
            .map(|found| found.is_some())
            .map_err(|error| self.sqlite(error))
    }

    /// Says that whoever was told to go has come, and could not go after all.
    pub(super) fn goes_on_waiting(&mut self, ticket: TicketId) -> Result<(), Error> {
        let key = (ticket.number, ticket.owner, ticket.since.as_nanos());
        let changed = self
            .link
            .connection
            .prepare_cached(WAITS_ON)
            .and_then(|mut s| s.execute(key))
            .map_err(|error| self.sqlite(error))?;
        if changed > 0 {
            self.wrote();
        }
        Ok(())
    }
}

const DELETE: &str = "DELETE FROM ticket WHERE ticket_id = ?1 AND owner_id = ?2 AND since_ns = ?3";
const DELETE_TAKES: &str = "DELETE FROM ticket_take WHERE ticket_id = ?1 RETURNING limit_id";

impl Transaction<'_> {
    /// Leaves the line, served or not.
    pub(super) fn leave_line(&mut self, ticket: TicketId) -> Result<(), Error> {
        let key = (ticket.number, ticket.owner, ticket.since.as_nanos());
        let deleted = self
            .link
            .connection
            .prepare_cached(DELETE)
            .and_then(|mut s| s.execute(key))
            .map_err(|error| self.sqlite(error))?;
        if deleted > 0 {
            self.delete_takes(ticket.number)?;
        }
        Ok(())
    }

    fn delete_takes(&mut self, number: i64) -> Result<(), Error> {
        self.wrote();
        self.link.memo.nobody_waits = None;
        let limits: Vec<LimitId> = self
            .link
            .connection
            .prepare_cached(DELETE_TAKES)
            .and_then(|mut s| {
                s.query_map([number], |row| row.get(0).map(LimitId))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        for limit in limits {
            self.freed(limit);
        }
        Ok(())
    }
}

const DELETE_ALL_OF: &str = "DELETE FROM ticket WHERE owner_id = ?1 RETURNING ticket_id";

impl Transaction<'_> {
    /// Removes a dead owner from the line. True if it was in it.
    pub(super) fn remove_from_line(&mut self, owner: i64) -> Result<bool, Error> {
        let tickets: Vec<i64> = self
            .link
            .connection
            .prepare_cached(DELETE_ALL_OF)
            .and_then(|mut s| s.query_map([owner], |row| row.get(0))?.collect())
            .map_err(|error| self.sqlite(error))?;
        for ticket in &tickets {
            self.delete_takes(*ticket)?;
        }
        Ok(!tickets.is_empty())
    }
}

const ANYBODY: &str = "SELECT EXISTS (SELECT 1 FROM ticket)";

impl Transaction<'_> {
    pub(super) fn nobody_waits(&mut self) -> Result<bool, Error> {
        if let Some(nobody_waits) = self.link.memo.nobody_waits {
            return Ok(nobody_waits);
        }
        let anybody: bool = self
            .link
            .connection
            .prepare_cached(ANYBODY)
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        self.link.memo.nobody_waits = Some(!anybody);
        Ok(!anybody)
    }
}

// One more than are looked at: who has so many ahead is behind them. The number is no parameter, because SQLite
// would plan the statement anew for each value bound to a limit.
const TICKETS_OF: &str = "SELECT ticket_id FROM ticket_take
    WHERE limit_id = ?1 AND ticket_id < ?2 ORDER BY ticket_id LIMIT 257";
const TICKET: &str = "SELECT owner_id, deadline_ns, ready_ns FROM ticket WHERE ticket_id = ?1";
const TAKES: &str = "SELECT limit_id, amount FROM ticket_take WHERE ticket_id = ?1";

impl Transaction<'_> {
    /// Who waits for these limits, and for what those who do wait for, before a ticket; the first one first.
    pub(super) fn line_before(
        &mut self,
        limits: impl IntoIterator<Item = LimitId>,
        before: Option<TicketId>,
    ) -> Result<BTreeMap<i64, Waiter>, Error> {
        let mut waiters = BTreeMap::new();
        let before = before.map_or(i64::MAX, |ticket| ticket.number);
        let mut to_look_at: Vec<LimitId> = limits.into_iter().collect();
        let mut seen = to_look_at.clone();
        while let Some(limit) = to_look_at.pop() {
            for number in self.tickets_of(limit, before)? {
                if waiters.len() > MOST_AHEAD || waiters.contains_key(&number) {
                    continue;
                }
                let Some(waiter) = self.waiter(number)? else {
                    continue;
                };
                for (known, _) in &waiter.takes {
                    if !seen.contains(&known.id) {
                        seen.push(known.id);
                        to_look_at.push(known.id);
                    }
                }
                waiters.insert(number, waiter);
            }
        }
        Ok(waiters)
    }

    fn tickets_of(&self, limit: LimitId, before: i64) -> Result<Vec<i64>, Error> {
        self.link
            .connection
            .prepare_cached(TICKETS_OF)
            .and_then(|mut s| s.query_map((limit.0, before), |row| row.get(0))?.collect())
            .map_err(|error| self.sqlite(error))
    }

    /// Nobody, if its deadline has passed: it will see that, too.
    fn waiter(&mut self, number: i64) -> Result<Option<Waiter>, Error> {
        let connection = self.link.connection;
        let row: Option<(i64, Option<i64>, Option<i64>)> = connection
            .prepare_cached(TICKET)
            .and_then(|mut s| {
                s.query_row([number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        let now_ns = self.now().as_nanos();
        let Some((owner, deadline_ns, ready_ns)) = row else {
            return Ok(None);
        };
        if deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
            return Ok(None);
        }
        let takes: Vec<(LimitId, i64)> = connection
            .prepare_cached(TAKES)
            .and_then(|mut s| {
                s.query_map([number], |row| Ok((LimitId(row.get(0)?), row.get(1)?)))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let mut known = Few::with_capacity(takes.len());
        for (limit, amount) in takes {
            if let Some(limit) = self.known_by_id(limit)? {
                known.push((limit, amount.max(0)));
            }
        }
        Ok(Some(Waiter {
            owner,
            takes: known,
            is_late: ready_ns
                .is_some_and(|ready_ns| ready_ns.saturating_add(LATE_AFTER_NS) <= now_ns),
        }))
    }
}

const TELL: &str = "UPDATE ticket SET ready_ns = ?2 WHERE ticket_id = ?1 AND ready_ns IS NULL";

impl Transaction<'_> {
    /// Whose turn it is now that something came free: the numbers of their tickets, but for the one that has just
    /// come. It may stand behind somebody who can go and does not, and would come again and again.
    pub(super) fn next_in_line(
        &mut self,
        freed: &[LimitId],
        came: &[i64],
    ) -> Result<Few<i64>, Error> {
        if self.nobody_waits()? {
            return Ok(Few::new());
        }
        let line = self.line_before(freed.iter().copied(), None)?;
        let (numbers, waiters): (Vec<i64>, Vec<Waiter>) = line.into_iter().unzip();
        let now = self.now();
        let turns = who_can_go(self, &waiters, now)?;
        let turns: Few<i64> = turns
            .into_iter()
            .map(|position| numbers[position])
            .filter(|number| !came.contains(number))
            .collect();
        for number in &turns {
            let changed = self
                .link
                .connection
                .prepare_cached(TELL)
                .and_then(|mut s| s.execute((number, now.as_nanos())))
                .map_err(|error| self.sqlite(error))?;
            if changed > 0 {
                self.wrote();
            }
        }
        Ok(turns)
    }
}
