//! Pauses, and the strikes that they came from.

use rusqlite::OptionalExtension;

use super::session::Session;
use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::pause::{Backoff, LONGEST_SLOW_START_NS, Pause, Strike, Strikes};

const ANY: &str = "SELECT EXISTS (SELECT 1 FROM pause) OR EXISTS (SELECT 1 FROM strike)";
const READ: &str = "SELECT since_ns, until_ns, strikes FROM pause WHERE limit_id = ?1";
const READ_STRIKES: &str =
    "SELECT at_ns, fades_ns FROM strike WHERE limit_id = ?1 ORDER BY strike_id";

impl Transaction<'_> {
    /// The last pause of a limit. Mostly there are none, and then nothing is read.
    pub(super) fn last_pause(&mut self, limit: LimitId) -> Result<Option<Pause>, Error> {
        let any = match self.link.memo.any_pauses {
            Some(any) => any,
            None => self.has_any(ANY)?,
        };
        self.link.memo.any_pauses = Some(any);
        if !any {
            return Ok(None);
        }
        if let Some(pause) = self.link.memo.pause(limit) {
            return Ok(pause);
        }
        let pause = self.read_pause(limit)?;
        self.link.memo.remember_pause(limit, pause);
        Ok(pause)
    }

    /// What a statement without parameters says, yes or no.
    pub(super) fn has_any(&self, sql: &str) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }

    fn read_pause(&self, limit: LimitId) -> Result<Option<Pause>, Error> {
        self.link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([limit.0], |row| {
                    let [since, until] = [row.get(0)?, row.get(1)?].map(Timestamp::from_nanos);
                    let strikes = u32::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
                    Ok(Pause::new(since, until, strikes))
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }

    fn read_strikes(&self, limit: LimitId) -> Result<Strikes, Error> {
        let counting = self
            .link
            .connection
            .prepare_cached(READ_STRIKES)
            .and_then(|mut s| {
                s.query_map([limit.0], |row| {
                    let [at, fades] = [row.get(0)?, row.get(1)?].map(Timestamp::from_nanos);
                    Ok(Strike { at, fades })
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        Ok(Strikes {
            pause: self.read_pause(limit)?,
            counting,
        })
    }
}

const WRITE: &str = "INSERT OR REPLACE INTO pause (limit_id, since_ns, until_ns, strikes)
    VALUES (?1, ?2, ?3, ?4)";
const DELETE_STRIKES: &str = "DELETE FROM strike WHERE limit_id = ?1";
const WRITE_STRIKE: &str = "INSERT INTO strike (limit_id, at_ns, fades_ns) VALUES (?1, ?2, ?3)";

impl Transaction<'_> {
    pub(super) fn write_pause(&self, limit: LimitId, pause: Pause) -> Result<(), Error> {
        let (since_ns, until_ns) = (pause.since().as_nanos(), pause.until().as_nanos());
        let values = (limit.0, since_ns, until_ns, pause.strikes());
        self.link
            .connection
            .prepare_cached(WRITE)
            .and_then(|mut s| s.execute(values))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    fn write_strikes(&mut self, limit: LimitId, strikes: &Strikes) -> Result<(), Error> {
        if let Some(pause) = strikes.pause {
            self.write_pause(limit, pause)?;
        }
        let connection = self.link.connection;
        let write = || -> rusqlite::Result<()> {
            connection
                .prepare_cached(DELETE_STRIKES)?
                .execute([limit.0])?;
            for strike in &strikes.counting {
                let values = (limit.0, strike.at.as_nanos(), strike.fades.as_nanos());
                connection.prepare_cached(WRITE_STRIKE)?.execute(values)?;
            }
            Ok(())
        };
        write().map_err(|error| self.sqlite(error))?;
        self.wrote();
        self.changed_definitions();
        Ok(())
    }

    /// Says that bookings may be moved from now on. With the lock, and before the clock is read: see [`Moves`].
    ///
    /// [`Moves`]: crate::store::moves::Moves
    pub(super) fn begin_to_move(&mut self, session: &Session) {
        session.moves.count();
        self.read_clock();
    }

    /// Lets nobody in before an instant, and moves those behind it who have booked before. Returns the pause, and whether
    /// anything has changed.
    pub(super) fn pause(
        &mut self,
        key: &str,
        backoff: Backoff,
        session: &Session,
    ) -> Result<(Pause, bool), Error> {
        let known = self.known(key)?;
        let policy = known.limit.pauses();
        let mut before = self.read_strikes(known.id)?;
        before.forget(self.now());
        let mut strikes = before.clone();
        let pause = strikes.strike(&policy, backoff, self.now());
        if strikes == before {
            return Ok((pause, false));
        }
        self.begin_to_move(session);
        // By now it is later.
        let mut strikes = before.clone();
        let pause = strikes.strike(&policy, backoff, self.now());
        let id = if known.id == LimitId::NONE {
            self.open_ledger(key)?
        } else {
            known.id
        };
        self.write_strikes(id, &strikes)?;
        if strikes.pause != before.pause {
            self.reclaim(&session.lock_file)?;
            if self.is_booked_before(id, pause.until())? {
                self.move_bookings(id)?;
            }
        }
        Ok((pause, true))
    }

    /// Lets everybody in again, and those first who have booked. Returns the pause that was in force.
    pub(super) fn resume(&mut self, key: &str, session: &Session) -> Result<Option<Pause>, Error> {
        let known = self.known(key)?;
        let mut strikes = self.read_strikes(known.id)?;
        if known.limit.breaker_policy().is_some() && self.read_broken(known.id)?.is_some() {
            self.close_breaker(known.id)?;
        }
        if strikes.clone().lift(self.now()).is_none() {
            return Ok(None);
        }
        self.begin_to_move(session);
        let Some(lifted) = strikes.lift(self.now()) else {
            return Ok(None);
        };
        self.write_strikes(known.id, &strikes)?;
        self.reclaim(&session.lock_file)?;
        self.move_bookings(known.id)?;
        self.freed(known.id);
        Ok(Some(lifted))
    }
}

const DELETE: &str = "DELETE FROM pause WHERE limit_id = ?1";
const FADE: &str = "DELETE FROM strike WHERE limit_id = ?1 AND fades_ns <= ?2";
const FORGET: &str = "DELETE FROM pause WHERE limit_id = ?1 AND until_ns <= ?2
    AND NOT EXISTS (SELECT 1 FROM strike AS s WHERE s.limit_id = ?1)";

impl Transaction<'_> {
    /// Forgets all pauses and strikes of a limit.
    pub(super) fn forget_strikes(&self, limit: LimitId) -> Result<(), Error> {
        for sql in [DELETE, DELETE_STRIKES] {
            self.link
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute([limit.0]))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }

    /// Forgets those of a limit that do not matter any more. Whoever remembers them decides the same.
    pub(super) fn sweep_strikes(&mut self, limit: LimitId) -> Result<(), Error> {
        if self.link.memo.any_pauses == Some(false) {
            return Ok(());
        }
        let now = self.now();
        let over = now.saturating_minus_ns(LONGEST_SLOW_START_NS);
        for (sql, until) in [(FADE, now), (FORGET, over)] {
            let deleted = self
                .link
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute((limit.0, until.as_nanos())))
                .map_err(|error| self.sqlite(error))?;
            if deleted > 0 {
                self.wrote();
            }
        }
        Ok(())
    }
}
