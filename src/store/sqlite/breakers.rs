//! Circuit breakers: what is reported, and how they stand.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::breaker::{BreakerPolicy, Broken, Counts, Report, Verdict, judge};
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::pause::Pause;
use crate::store::Claim;

const ANY: &str = "SELECT EXISTS (SELECT 1 FROM breaker)";
const READ: &str = "SELECT since_ns, until_ns, successes, reason FROM breaker WHERE limit_id = ?1";

impl Transaction<'_> {
    /// How a breaker stands, unless it is closed. Mostly all are, and then nothing is read.
    pub(super) fn read_broken(&mut self, limit: LimitId) -> Result<Option<Broken>, Error> {
        let any = match self.link.memo.any_broken {
            Some(any) => any,
            None => self.has_any(ANY)?,
        };
        self.link.memo.any_broken = Some(any);
        if !any {
            return Ok(None);
        }
        self.link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([limit.0], |row| {
                    let [since, until] = [row.get(0)?, row.get(1)?].map(Timestamp::from_nanos);
                    Ok(Broken {
                        since,
                        until,
                        successes: u32::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                        reason: row.get(3)?,
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const TAKEN: &str = "SELECT since_ns FROM slot WHERE limit_id = ?1 AND permit_id = ?2";

impl Transaction<'_> {
    /// Takes a report of a call to all breakers that it was let through by.
    pub(super) fn report(&mut self, claim: &Claim, report: Report) -> Result<(), Error> {
        let Some(registered) = &claim.registered else {
            return Ok(());
        };
        for slot in &registered.slots {
            let known = self.known_by_id(slot.limit)?;
            let policy = known.and_then(|known| known.limit.breaker_policy());
            let Some(policy) = policy else {
                continue;
            };
            let taken_ns: Option<i64> = self
                .link
                .connection
                .prepare_cached(TAKEN)
                .and_then(|mut s| {
                    s.query_row((slot.limit.0, registered.number.0), |row| row.get(0))
                        .optional()
                })
                .map_err(|error| self.sqlite(error))?;
            let asked_at = taken_ns.map_or(claim.at, Timestamp::from_nanos);
            self.report_to(slot.limit, &policy, report.counts(&policy), asked_at)?;
        }
        Ok(())
    }

    fn report_to(
        &mut self,
        limit: LimitId,
        policy: &BreakerPolicy,
        report: Counts,
        asked_at: Timestamp,
    ) -> Result<(), Error> {
        let broken = self.read_broken(limit)?;
        let counts = match broken {
            Some(_) => Counts::default(),
            None => self.count(limit, policy, report)?,
        };
        let times = (asked_at, self.now());
        match judge(policy, broken.as_ref(), report, counts, times) {
            Verdict::Stays => Ok(()),
            Verdict::Becomes(becomes) => self.become_broken(limit, broken.as_ref(), &becomes),
            Verdict::Closes => self.close_breaker(limit),
        }
    }
}

const COUNT: &str = "INSERT INTO outcome (limit_id, at_ns, calls, failures, slow)
    VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (limit_id, at_ns) DO UPDATE
    SET calls = calls + ?3, failures = failures + ?4, slow = slow + ?5";
const FORGET: &str = "DELETE FROM outcome WHERE limit_id = ?1 AND at_ns <= ?2";
const SUMS: &str =
    "SELECT coalesce(sum(calls), 0), coalesce(sum(failures), 0), coalesce(sum(slow), 0)
    FROM outcome WHERE limit_id = ?1 AND at_ns > ?2";

impl Transaction<'_> {
    /// Counts a report, and returns what the window holds with it.
    fn count(
        &mut self,
        limit: LimitId,
        policy: &BreakerPolicy,
        report: Counts,
    ) -> Result<Counts, Error> {
        self.wrote();
        let (span, since) = policy.spans(self.now());
        let Counts {
            calls,
            failures,
            slow,
        } = report;
        let row = (limit.0, span.as_nanos(), calls, failures, slow);
        let since = (limit.0, since.as_nanos());
        let connection = self.link.connection;
        let count = || -> rusqlite::Result<Counts> {
            connection.prepare_cached(COUNT)?.execute(row)?;
            connection.prepare_cached(FORGET)?.execute(since)?;
            connection.prepare_cached(SUMS)?.query_row(since, |row| {
                Ok(Counts {
                    calls: row.get(0)?,
                    failures: row.get(1)?,
                    slow: row.get(2)?,
                })
            })
        };
        count().map_err(|error| self.sqlite(error))
    }
}

const WRITE: &str =
    "INSERT OR REPLACE INTO breaker (limit_id, since_ns, until_ns, successes, reason)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE: &str = "DELETE FROM breaker WHERE limit_id = ?1";
const FORGET_ALL: &str = "DELETE FROM outcome WHERE limit_id = ?1";

impl Transaction<'_> {
    fn become_broken(
        &mut self,
        limit: LimitId,
        former: Option<&Broken>,
        broken: &Broken,
    ) -> Result<(), Error> {
        self.wrote();
        let (since_ns, until_ns) = (broken.since.as_nanos(), broken.until.as_nanos());
        let row = (
            limit.0,
            since_ns,
            until_ns,
            broken.successes,
            &*broken.reason,
        );
        self.link
            .connection
            .prepare_cached(WRITE)
            .and_then(|mut s| s.execute(row))
            .map_err(|error| self.sqlite(error))?;
        if former.is_none_or(|former| former.until != broken.until) {
            let now = self.now();
            let pause = self.last_pause(limit)?.filter(|pause| pause.holds(now));
            let until = pause.map_or(broken.until, |pause| pause.until().max(broken.until));
            self.write_pause(limit, Pause::new(now, until, 0))?;
            // Who waits for a probe has to know until when it waits now.
            self.look_who_waits(limit);
            self.changed_definitions();
        }
        Ok(())
    }

    /// Forgets what has left the window of a breaker.
    pub(super) fn sweep_outcomes(
        &mut self,
        limit: LimitId,
        policy: &BreakerPolicy,
    ) -> Result<(), Error> {
        let (_, since) = policy.spans(self.now());
        let deleted = self
            .link
            .connection
            .prepare_cached(FORGET)
            .and_then(|mut s| s.execute((limit.0, since.as_nanos())))
            .map_err(|error| self.sqlite(error))?;
        if deleted > 0 {
            self.wrote();
        }
        Ok(())
    }

    /// Lets everybody through again, and begins to count anew.
    pub(super) fn close_breaker(&mut self, limit: LimitId) -> Result<(), Error> {
        self.forget_breaker(limit)?;
        self.wrote();
        self.changed_definitions();
        self.freed(limit);
        Ok(())
    }

    /// Forgets what is known of a breaker.
    pub(super) fn forget_breaker(&self, limit: LimitId) -> Result<(), Error> {
        for sql in [DELETE, FORGET_ALL] {
            self.link
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute([limit.0]))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }
}
